"""`admin deliveries`: list, redrive.

A redrive makes deliveries that did not arrive due again, after an outage. It only makes the rows due: the
reconciler, which runs every minute, sends their messages. So a redrive may be interrupted at any point and
repeated.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from admin.calls import Search, existing, pages_of, search_of, workspaces_of
from admin.target import Target
from admin.terminal import Terminal, card, table
from shared.call import Call, iso
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import Delivery, DeliveryStore
from shared.table_keys import expires_at

# Concurrent requests to DynamoDB; a client keeps 20 connections.
THREADS = 10

# States of a delivery: to be redriven, or the reason why not.
DEAD, WAITING, NEVER_MADE = "dead", "waiting", "neverMade"
DUE, UNDER_WAY, STOPPED, DELIVERED = "due", "underWay", "stopped", "delivered"
REDRIVEN = (DEAD, WAITING, NEVER_MADE)
STATES = (*REDRIVEN, DUE, UNDER_WAY, STOPPED, DELIVERED)


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, deliveries = target.of_calls
    listed: list[dict[str, Any]] = []
    if arguments.call:
        call = existing(target, arguments.call)
        states = arguments.states or STATES
        seen = collections.Counter(calls=1 if call.callback_url else 0)
        found: Iterator[tuple[Call, str, Delivery]] = (
            (call, *each) for each in (_deliveries(deliveries, now_ms(), call) if call.callback_url else ())
        )
        given: dict[str, Any] = {"callId": call.call_id}
    else:
        search = search_of(arguments)
        workspaces = workspaces_of(target, arguments.workspace)
        states = arguments.states or REDRIVEN
        seen = collections.Counter(calls=0)
        found = _find(calls, deliveries, terminal, workspaces, search, seen)
        given = {"since": search.between[0], "until": search.between[1], "workspaces": workspaces}
    for call, state, row in found:
        seen[state] += 1
        if state in states and len(listed) < arguments.limit:
            listed.append(_as_json(call, state, row))
    header = ("call", "workspace", "#", "event", "webhook", "attempts", "last attempt", "answer", "next attempt")
    text = table(header, [_cells(one) for one in listed]) if listed else "There is none."
    terminal.give(given | {"found": dict(seen), "deliveries": listed}, f"{text}\n\n{_told(seen)}")
    if len(listed) < sum(seen[state] for state in states):
        terminal.say(f"\nThese are {len(listed)} of {sum(seen[state] for state in states):,}: --limit shows more.")


def _as_json(call: Call, state: str, row: Delivery) -> dict[str, Any]:
    last = row.attempts[-1] if row.attempts else {}
    return {
        "callId": call.call_id,
        "workspaceId": call.workspace_id,
        "sequence": row.sequence,
        "type": call.events[row.sequence - 1]["type"],
        "state": state,
        "attempts": len(row.attempts),
        "lastAttemptAt": iso(last["at"]) if last else None,
        "lastStatus": last.get("status"),
        "lastError": last.get("error"),
        "nextAttemptAt": iso(row.next_attempt_at_ms) if state in (WAITING, DUE) else None,
    }


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    answer = one["lastStatus"] if one["lastError"] is None else one["lastError"]
    cells = (
        *(one["callId"], one["workspaceId"], one["sequence"], one["type"], one["state"], one["attempts"]),
        *(one["lastAttemptAt"], answer, one["nextAttemptAt"]),
    )
    return tuple("-" if cell is None else str(cell) for cell in cells)


def redrive(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, deliveries = target.of_calls
    search = search_of(arguments)
    workspaces = workspaces_of(target, arguments.workspace)
    found: list[Delivery] = []
    seen = collections.Counter(calls=0)
    for _, state, row in _find(calls, deliveries, terminal, workspaces, search, seen):
        seen[state] += 1
        if state in REDRIVEN:
            found.append(dataclasses.replace(row, attempts=()))
    since, until = search.between
    given = {"since": since, "until": until, "workspaces": workspaces, "found": dict(seen)}
    if arguments.dry_run or not found:
        terminal.give(given | {"dryRun": arguments.dry_run, "redriven": 0}, _told(seen))
        terminal.say(
            f"\n{_events(len(found))} would be made due. Nothing was changed."
            if found
            else "\nThere is nothing to redrive."
        )
        return
    terminal.say(_told(seen) + "\n")
    terminal.confirm(
        f"{_events(len(found))} will be sent to their receivers, within minutes, and again for up to three days.",
        "Redrive?",
    )
    redriven = 0
    for done, changed in enumerate(_make_due(calls, deliveries, found), start=1):
        redriven += changed
        terminal.progress(done, len(found), "made due")
    text = f"{_events(redriven)} made due."
    if redriven < len(found):
        text += f" {_events(len(found) - redriven)} changed meanwhile and stayed as they were."
    terminal.give(given | {"dryRun": False, "redriven": redriven}, text)


def _find(
    calls: CallStore,
    deliveries: DeliveryStore,
    terminal: Terminal,
    workspaces: list[str],
    search: Search,
    seen: collections.Counter[str],
) -> Iterator[tuple[Call, str, Delivery]]:
    """The deliveries of the calls of that time, each with its call and its state; counts the calls."""
    with ThreadPoolExecutor(THREADS) as threads:
        for workspace_id in workspaces:
            for page, _ in pages_of(calls, workspace_id, search):
                with_webhooks = [call for call in page if call.callback_url is not None]
                seen["calls"] += len(with_webhooks)
                rows = threads.map(partial(_deliveries, deliveries, now_ms()), with_webhooks)
                for call, of_call in zip(with_webhooks, rows, strict=True):
                    yield from ((call, state, row) for state, row in of_call)
                terminal.progress(seen["calls"], None, "calls looked at")
    terminal.progress(seen["calls"], seen["calls"], "calls looked at")


def _deliveries(deliveries: DeliveryStore, now: int, call: Call) -> list[tuple[str, Delivery]]:
    rows = {row.sequence: row for row in deliveries.of_call(call.call_id)}
    return [
        (_state(call, rows[n], now), rows[n])
        if n in rows
        else (
            NEVER_MADE if call.webhooks_stopped_at_ms is None else STOPPED,
            Delivery(call.call_id, call.workspace_id, n, "pending", 0, now),
        )
        for n in range(1, len(call.events) + 1)
    ]


def _state(call: Call, row: Delivery, now: int) -> str:
    if row.state == "delivered":
        return DELIVERED
    if row.state == "stopped" or call.webhooks_stopped_at_ms is not None:
        return STOPPED
    if row.lease_until_ms >= now:
        return UNDER_WAY
    if row.state == "pending" and row.next_attempt_at_ms <= now:
        return DUE
    return DEAD if row.state == "dead" else WAITING


def _make_due(calls: CallStore, deliveries: DeliveryStore, found: list[Delivery]) -> Iterator[bool]:
    """Yields for each delivery whether it was made due; not if its call's record is gone. Extends the record's
    expiry.
    """

    def one(row: Delivery) -> bool:
        now = now_ms()
        if not calls.keep(row.call_id, expires_at(now)):
            return False
        if deliveries.get(row.call_id, row.sequence) is None:
            deliveries.create(row.call_id, row.workspace_id, row.sequence, now, now)
            return True
        return deliveries.make_due(row, now)

    with ThreadPoolExecutor(THREADS) as threads:
        yield from threads.map(one, found)


def _told(seen: collections.Counter[str]) -> str:
    names = {
        "calls": "Calls with webhooks",
        DEAD: "Dead",
        WAITING: "Wait for their next attempt",
        NEVER_MADE: "Never made",
        DUE: "Due already",
        UNDER_WAY: "Under way",
        STOPPED: "Stopped by 410",
        DELIVERED: "Delivered",
    }
    return card([(name, f"{seen[key]:,}") for key, name in names.items()])


def _events(number: int) -> str:
    return "1 event" if number == 1 else f"{number:,} events"
