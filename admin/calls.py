"""`admin call`: show, list, cancel.

A call is found in the index byWorkspace, the newest first: no command scans the table of calls. What the index
lacks (status, job id) is compared in the records themselves, so such a search reads each call of its time.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

from admin.target import Target
from admin.terminal import AdminError, Terminal, UsageError, card, table
from shared.call import Call, Status, event_id_of, iso, snapshot
from shared.call_store import CallStore
from shared.canceling import Canceler
from shared.clock import now_ms
from shared.delivery_store import Delivery
from shared.durations import Durations
from shared.errors import RequestRefusedError, StoreError
from shared.line import waiting_view
from shared.telemetry import masked

STATUSES: tuple[str, ...] = get_args(Status)
# Entries of the index that are read at once: with each comes its record, unless a filter leaves few of them.
PAGE, FILTERED_PAGE = 100, 1000
# Calls canceled at the same time; a DynamoDB client keeps 20 connections.
THREADS = 10

# What reading a record raises that no version of this code wrote.
_UNREADABLE = (KeyError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """What is looked for: calls placed within a time, both ends included, of which each given field is so."""

    since_ms: int
    until_ms: int
    to: str | None = None
    agent: str | None = None
    room: str | None = None
    status: str | None = None
    job: str | None = None

    @property
    def between(self) -> tuple[str, str]:
        return iso(self.since_ms), iso(self.until_ms)


# ── show ────────────────────────────────────────────────────────────────────────────────────────────


def show(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    _, deliveries = target.of_calls
    by, value = arguments.call
    call = existing(target, value) if by == "call" else _newest_of(target, terminal, arguments, by, value)
    rows = {row.sequence: row for row in deliveries.of_call(call.call_id)}
    terminal.give(_as_json(call, rows), _as_text(call, rows))
    if by == "to":
        terminal.say(
            "\nThe newest call to this number. Others: " + target.command(f"call list --to {value} --since 30d")
        )


def _newest_of(target: Target, terminal: Terminal, arguments: argparse.Namespace, by: str, value: str) -> Call:
    """The newest call with this job, room or number. Raises AdminError when there is none in that time."""
    search = search_of(arguments, **{by: value})
    call = next(newest(target, terminal, search, arguments.workspace), None)
    if call is None:
        names = {"job": "with the job", "room": "in the room", "to": "to the number"}
        raise AdminError(
            f"no call {names[by]} {value} was placed between {' and '.join(search.between)}; --since 30d looks "
            "further back"
        )
    return call


def _as_json(call: Call, rows: dict[int, Delivery]) -> dict[str, Any]:
    """The call for scripts, by its public names; without what its client and its agent said about the person. The
    consent is shown.
    """
    return _state(call) | {
        "purpose": call.purpose,
        "scheduledAt": _time(call.scheduled_at_ms),
        "expiresAt": _time(call.expires_at_ms),
        "timeZone": call.time_zone,
        "consent": call.consent,
        "callbackUrl": _without_query(call.callback_url),
        "attempts": call.attempts,
        "waitsUntil": _time(call.wait_until_ms if call.status == "queued" else None),
        "queuedUntil": _time(call.queue_deadline_ms if call.status == "queued" else None),
        "nextLookAt": _time(call.check_at_ms),
        "hangUp": call.hangup and {"reason": call.hangup["reason"], "askedAt": iso(call.hangup["at"])},
        "webhooksStoppedAt": _time(call.webhooks_stopped_at_ms),
        "restoredAt": _time(call.restored_at_ms),
        "events": [
            {
                "sequence": sequence,
                "id": event_id_of(call, sequence),
                "type": entry["type"],
                "timestamp": iso(entry["at"]),
                "delivery": rows[sequence].state if sequence in rows else None,
                "attempts": len(rows[sequence].attempts) if sequence in rows else 0,
                **({"gates": _receipt(entry["gates"])} if "gates" in entry else {}),
            }
            for sequence, entry in enumerate(call.events, start=1)
        ],
    }


def _as_text(call: Call, rows: dict[int, Delivery]) -> str:
    shown = _as_json(call, rows)
    asked = shown["hangUp"]
    facts = {
        "Call": call.call_id,
        "Workspace": call.workspace_id,
        "Status": call.status,
        "End reason": shown["endReason"],
        "SIP code": shown["sipStatusCode"],
        "To": call.to,
        "From": shown["from"],
        "Agent": call.call_agent_id,
        "Room": call.room_name,
        "Job": call.job_id,
        "Purpose": call.purpose,
        "Scheduled at": shown["scheduledAt"],
        "Expires at": shown["expiresAt"],
        "Time zone": call.time_zone,
        "Consent": call.consent and _plain(call.consent),
        "Created": call.created_at,
        "Dialed": shown["dialedAt"],
        "Answered": shown["answeredAt"],
        "Ended": shown["endedAt"],
        "Seconds": shown["durationSeconds"],
        "Attempts": call.attempts,
        "Waits for": shown["waitingFor"],
        "Waits until": shown["waitsUntil"],
        "Expires queued": shown["queuedUntil"],
        "Next look": shown["nextLookAt"],
        "Hanging up": asked and f"{asked['reason']}, asked for at {asked['askedAt']}",
        "Webhooks to": shown["callbackUrl"],
        "Webhooks stopped": shown["webhooksStoppedAt"],
        "Restored": shown["restoredAt"],
    }
    events = [
        (
            str(entry["sequence"]),
            entry["timestamp"],
            entry["type"],
            entry["delivery"] or "-",
            str(entry["attempts"]),
        )
        for entry in shown["events"]
    ]
    return (
        card([(name, str(value)) for name, value in facts.items() if value is not None])
        + "\n\n"
        + table(("#", "event at", "event", "webhook", "attempts"), events)
        + "".join(_as_receipt(entry) for entry in shown["events"] if entry.get("gates"))
    )


def _receipt(text: str) -> list[dict[str, Any]] | None:
    """The gates that let the phone ring, and what each saw (gates.py). None when the text cannot be read."""
    try:
        gates = json.loads(text)
        return [{"name": str(gate["name"]), "detail": dict(gate["detail"])} for gate in gates]
    except _UNREADABLE:
        return None


def _as_receipt(entry: dict[str, Any]) -> str:
    """Why a phone was let ring."""
    rows = [(gate["name"], _plain(gate["detail"]) or "-") for gate in entry["gates"]]
    return f"\n\nWhat let event {entry['sequence']} ring:\n\n" + table(("gate", "saw"), rows)


def _plain(value: Any) -> str:
    """A JSON value for people: `count 3, seconds 86400`; what is null is left out."""
    match value:
        case dict():
            return ", ".join(f"{name} {_plain(one)}" for name, one in value.items() if one not in (None, [], {}))
        case list():
            return (
                "; ".join(map(_plain, value))
                if any(isinstance(one, dict) for one in value)
                else " ".join(map(str, value))
            )
        case bool():
            return "yes" if value else "no"
        case _:
            # A client's text does not control the terminal.
            return "".join(character if character.isprintable() else " " for character in str(value))


def _without_query(url: str | None) -> str | None:
    """The URL without its query, which may hold a secret of the receiver's."""
    if url is None or "?" not in url:
        return url
    return url.partition("?")[0] + "?..."


def _time(ms: int | None) -> str | None:
    return iso(ms) if ms else None


# ── list ────────────────────────────────────────────────────────────────────────────────────────────


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    search = search_of(
        arguments,
        to=arguments.to,
        agent=arguments.agent,
        room=arguments.room,
        job=arguments.job,
        status=arguments.status,
    )
    found = list(itertools.islice(newest(target, terminal, search, arguments.workspace), arguments.limit))
    header = ("created", "call", "workspace", "to", "agent", "status", "reason")
    rows = [
        (
            *(call.created_at, call.call_id, call.workspace_id, masked(call.to), call.call_agent_id),
            *(call.status, call.end_event.get("reason") or _state(call)["waitingFor"] or "-"),
        )
        for call in found
    ]
    between = " and ".join(search.between)
    text = table(header, rows) if rows else f"No such call was placed between {between}."
    terminal.give([_listed(call) for call in found], text)
    if len(found) == arguments.limit:
        terminal.say(f"\nThere may be more: --limit, or --until {found[-1].created_at}")
    else:
        terminal.say(f"\nThese are all between {between}; --since 30d looks further back.")


def _listed(call: Call) -> dict[str, Any]:
    """The call as the API lists it, its number masked."""
    return _state(call) | {"to": masked(call.to)}


def _state(call: Call) -> dict[str, Any]:
    """The call after its latest event, and why it waits."""
    return snapshot(call, len(call.events)) | waiting_view(call, now_ms())


def search_of(arguments: argparse.Namespace, **fields: str | None) -> Search:
    until_ms = arguments.until if arguments.until is not None else now_ms()
    if until_ms < arguments.since:
        raise UsageError("--until is before --since")
    return Search(arguments.since, until_ms, **fields)


def newest(target: Target, terminal: Terminal, search: Search, workspace_id: str | None) -> Iterator[Call]:
    """The calls that are looked for, of one workspace or of all, the newest first. Shows how far it has looked."""
    calls, _ = target.of_calls
    pages = itertools.count(1)

    def of_workspace(of: str) -> Iterator[Call]:
        for page, back_to in pages_of(calls, of, search):
            terminal.progress(next(pages), None, f"pages read, back to {back_to or search.between[0]}")
            for call in page:
                if search.status in (None, call.status) and search.job in (None, call.job_id):
                    yield call

    each = [of_workspace(of) for of in workspaces_of(target, workspace_id)]
    try:
        yield from heapq.merge(*each, key=lambda call: call.created_at, reverse=True)
    finally:
        read = next(pages) - 1
        terminal.progress(read, read, "pages read")


def workspaces_of(target: Target, workspace_id: str | None) -> list[str]:
    """The workspace that is named, or all. Raises AdminError when it does not exist."""
    if workspace_id:
        return [target.existing(workspace_id).workspace_id]
    return [workspace.workspace_id for workspace in target.store.all()]


def pages_of(calls: CallStore, workspace_id: str, search: Search) -> Iterator[tuple[list[Call], str | None]]:
    """Pages of a workspace's calls, the newest first, by what the index knows; with each, how far back it goes
    (None: the last page).
    """
    filtered = (search.to, search.agent, search.room) != (None, None, None)
    start = None
    while True:
        page, start = calls.page_of_workspace(
            workspace_id,
            limit=FILTERED_PAGE if filtered else PAGE,
            agent=search.agent,
            to=search.to,
            room=search.room,
            created_after=search.between[0],
            created_before=search.between[1],
            start=start,
        )
        yield page, start and start[0]
        if start is None:
            return


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────

CANCELED, HANGING_UP, HAD_ENDED, UNKNOWN, FAILED = "canceled", "hangingUp", "hadEnded", "unknown", "failed"


def cancel(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, _ = target.of_calls
    call_ids = list(dict.fromkeys(arguments.calls))
    with ThreadPoolExecutor(THREADS) as threads:
        seen = dict(zip(call_ids, threads.map(lambda one: _read(calls, one), call_ids), strict=True))
        going = [call for call in seen.values() if isinstance(call, Call) and not call.ended]
        if len(going) > 1:
            waiting = sum(call.status == "queued" for call in going)
            terminal.confirm(
                f"{len(going)} calls end: {waiting} that wait will not ring, {len(going) - waiting} that ring or "
                "are talked on are hung up.",
                "Cancel them?",
            )
        canceler = _canceler(target, calls, terminal, going)
        done = list(threads.map(lambda one: _canceled(canceler, one, seen[one]), call_ids))
    header = ("call", "workspace", "was", "now")
    rows = [(one["callId"], one["workspaceId"] or "-", one["was"] or "-", _said(one)) for one in done]
    terminal.give(done, table(header, rows))
    results = collections.Counter(one["result"] for one in done)
    if results[HANGING_UP]:
        terminal.say("\nWhat is being hung up ends within a minute or two: `call show` tells.")
    if failed := results[UNKNOWN] + results[FAILED]:
        raise AdminError(f"{failed} of {len(done)} could not be canceled")


def _canceler(target: Target, calls: CallStore, terminal: Terminal, going: list[Call]) -> Canceler:
    """Reads LiveKit's secret if a phone has to be hung up. Without it the reconciler does that alone."""
    secret = None
    if target.livekit_secret is not None and any(call.status != "queued" for call in going):
        secret = target.livekit_secret()
        try:
            secret.get()
        except StoreError as exc:
            terminal.say(f"LiveKit cannot be asked from here ({exc}): the reconciler hangs up, within a minute.\n")
            secret = None
    return Canceler(calls, secret, Durations(), now_ms)


def _read(calls: CallStore, call_id: str) -> Call | AdminError | None:
    """One record that cannot be read does not hold up the others."""
    try:
        return readable(calls, call_id)
    except AdminError as exc:
        return exc


def _canceled(canceler: Canceler, call_id: str, seen: Call | AdminError | None) -> dict[str, Any]:
    """What came of one call, for scripts."""
    if seen is None:
        return _outcome(call_id, None, None, UNKNOWN)
    if isinstance(seen, AdminError):
        return _outcome(call_id, None, None, FAILED) | {"error": str(seen)}
    if seen.ended:
        return _outcome(call_id, seen, seen, HAD_ENDED)
    try:
        canceler.cancel(seen)
        now = canceler.calls.get(call_id)
    except RequestRefusedError:
        # It ended meanwhile.
        return _outcome(call_id, seen, canceler.calls.get(call_id), HAD_ENDED)
    except StoreError as exc:
        return _outcome(call_id, seen, None, FAILED) | {"error": str(exc)}
    return _outcome(call_id, seen, now, HANGING_UP if now is not None and not now.ended else CANCELED)


def _outcome(call_id: str, seen: Call | None, now: Call | None, result: str) -> dict[str, Any]:
    return {
        "callId": call_id,
        "workspaceId": seen and seen.workspace_id,
        "was": seen and seen.status,
        "result": result,
        "status": now and now.status,
        "endReason": now and now.end_event.get("reason"),
    }


def _said(one: dict[str, Any]) -> str:
    end = f"{one['status']}, {one['endReason']}"
    return {
        CANCELED: end,
        HANGING_UP: "being hung up",
        HAD_ENDED: f"had ended: {end}",
        UNKNOWN: "no such call",
        FAILED: f"not canceled: {one.get('error')}",
    }[one["result"]]


def existing(target: Target, call_id: str) -> Call:
    """Raises AdminError when there is no such call."""
    calls, _ = target.of_calls
    call = readable(calls, call_id)
    if call is None:
        raise AdminError(f"no call {call_id} in {target.name}: a record is kept for 30 days after the call's end")
    return call


def readable(calls: CallStore, call_id: str) -> Call | None:
    """Raises AdminError when there is a record which cannot be read."""
    try:
        return calls.get(call_id)
    except _UNREADABLE as exc:
        raise AdminError(
            f"the record of the call {call_id} cannot be read ({type(exc).__name__}): see docs/operations.md, "
            "Unreadable items"
        ) from exc
