"""The history of one call, and what the page shows of it: a summary, the three promises, a timeline; and the lines
of all workspaces.

Its sources are the record and its deliveries (the table's stream), the steps of the functions
(`local/process_hooks/step_log.py`), LiveKit's stand-in, the webhook receiver, and the console's own requests. All
times are epoch milliseconds.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shared.call import ENDED, Call
from shared.limits import Everything
from shared.line import waiting_view
from shared.policies import DEFAULT, Policy
from shared.zones import zones_for

Json = dict[str, Any]

LOG_LINES_SHOWN = 400
CALLS_OF_A_LINE_SHOWN = 100


@dataclass(slots=True)
class CallHistory:
    """What the sources report of one call. item: its record. deliveries: by sequence. fault: the one injected by
    the console."""

    call_id: str
    item: Json = field(default_factory=dict)
    deliveries: dict[int, Json] = field(default_factory=dict)
    steps: list[Json] = field(default_factory=list)
    livekit: list[Json] = field(default_factory=list)
    hooks: list[Json] = field(default_factory=list)
    requests: list[Json] = field(default_factory=list)
    lines: list[Json] = field(default_factory=list)
    fault: Json | None = None

    @property
    def placed_at(self) -> int:
        """The time of the request, if the console sent it; else when the call was accepted."""
        asked = [int(request["at"]) for request in self.requests[:1]]
        return min([*asked, milliseconds(self.item["createdAt"])])


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the timeline. at: epoch milliseconds. minor: shown only with every step. tone: "good", "bad", "".

    delivery: the sequence of the event whose delivery failed in this row, else 0. folded: the rows that this one
    sums up.
    """

    at: int
    who: str
    what: str
    detail: str = ""
    minor: bool = False
    tone: str = ""
    delivery: int = 0
    folded: tuple[Row, ...] = ()


def milliseconds(text: str) -> int:
    """ISO 8601 as epoch milliseconds."""
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1000)


# ── summary and promises ────────────────────────────────────────────────────────────────────────


def summary(history: CallHistory, now: int) -> Json:
    """The fields of a call that the list shows. waitingFor, earliestRingAt: as the API answers them."""
    item = history.item
    end: Json = next((entry for entry in item["events"] if entry["type"] == "call.ended"), {})
    return {
        "callId": history.call_id,
        "to": item["to"],
        "agent": item["callAgentId"],
        "status": item["status"],
        "reason": end.get("reason"),
        "sipStatusCode": end.get("sipStatusCode"),
        "placedAt": history.placed_at,
        "endedAt": item.get("endedAt"),
        "killed": sum(step["phase"] == "died" for step in history.steps),
        **waiting_view(Call.from_item(item), now),
    }


# The steps after which a call waits.
_WAITS = ("CallStore.enter_line", "CallStore.wait", "CallStore.unfence", "CallStore.reschedule")


def lines(histories: Iterable[CallHistory], limits: Everything, now: int) -> list[Json]:
    """The line of each workspace: its slots, what stops it, and the calls that wait, in their turn.

    A call that waits for a delayed message is not in the line and comes after those that are.
    """
    waiting: dict[str, list[tuple[str, Json]]] = {}
    for history in histories:
        item = history.item
        if item.get("status") != "queued":
            continue
        view = waiting_view(Call.from_item(item), now)
        if view["waitingFor"] is not None:
            since = [step["at"] for step in history.steps if step["point"] in _WAITS and step.get("won")]
            call = {"callId": history.call_id, "to": item["to"], "since": max(since, default=history.placed_at)}
            turn = item["turn"] if "lineOf" in item else f"~{item['createdAt']}"
            waiting.setdefault(item["workspaceId"], []).append((turn, call | view))
    found = []
    for workspace_id, workspace in sorted(limits.workspaces.items()):
        standing = limits.standing(workspace)
        calls = [call for _, call in sorted(waiting.get(workspace_id, ()), key=lambda entry: entry[0])]
        found.append(
            {
                "workspaceId": workspace_id,
                "slots": workspace.max_concurrent_calls,
                "slotsTaken": sum(len(item.call_ids) for item in standing.slots),
                "pausedAt": limits.switch.paused_at_ms,
                "trunk": {
                    "id": workspace.sip_trunk_id,
                    "faults": len(standing.trunk.faults),
                    "stops": standing.trunk.stops,
                    "stoppedUntil": standing.trunk.stopped_until_ms,
                    "probeUntil": standing.trunk.probe_until_ms,
                    "fault": standing.trunk.fault,
                },
                "waiting": len(calls),
                "calls": calls[:CALLS_OF_A_LINE_SHOWN],
            }
        )
    return found


def promises(history: CallHistory, simulated: bool) -> list[Json]:
    """The three promises, each with its figure and its state: kept, broken, or open while that is not decided."""
    events = history.item["events"]
    over = history.item["status"] in ENDED
    rings = sum(event["kind"] == "invite" for event in history.livekit)
    ends = sum(entry["type"] == "call.ended" for entry in events)
    states = Counter(row["state"] for row in history.deliveries.values())
    settled = states["delivered"] + states["dead"] + states["stopped"]
    if not history.item.get("callbackUrl"):
        figure, state = "no callback", "open"
    else:
        figure = f"{states['delivered']} of {len(events)} delivered"
        state = "kept" if over and settled == len(events) else "open"
        if missing := states["dead"] + states["stopped"]:
            figure += f", {missing} given up and listed"
    return [
        {
            "name": "Rings at most once",
            "figure": _times(rings, "rang", "has not rung") if simulated else "LiveKit knows",
            "state": "broken" if rings > 1 else "kept" if over and simulated else "open",
        },
        {
            "name": "Ends exactly once",
            "figure": _times(ends, "ended", "has not ended"),
            "state": "broken" if ends > 1 else "kept" if ends == 1 else "open",
        },
        {"name": "Every event accounted for", "figure": figure, "state": state},
    ]


def _times(count: int, verb: str, never: str) -> str:
    return never if count == 0 else f"{verb} once" if count == 1 else f"{verb} {count} times"


def next_look(history: CallHistory, now: int) -> Json | None:
    """What a call waits for, and until when; None when nothing is due."""
    item = history.item
    if item["status"] in ENDED:
        due = [row for row in history.deliveries.values() if row["state"] == "pending"]
        at = min((max(row["nextAttemptAt"], row.get("leaseUntil", 0)) for row in due), default=0)
        return {"at": at, "what": "a webhook is tried again"} if at > now else None
    if item["status"] in ("queued", "dialing") and item.get("leaseUntil", 0) > now:
        return {"at": item["leaseUntil"], "what": "the worker's lease ends; if it died, the reconciler takes over"}
    if item.get("waitUntil", 0) > now:
        return {"at": item["waitUntil"], "what": "the call has waited and comes again"}
    if "lineOf" in item and "admittedAt" not in item:
        return {"at": item["checkAt"], "what": "its time in the line is over"} if item["checkAt"] > now else None
    if item.get("checkAt", 0) > now:
        return {"at": item["checkAt"], "what": "the reconciler looks at the call"}
    return None


def receipt(history: CallHistory) -> Json | None:
    """What let the call ring: the gates of its last `call.dialing`, and whether it was put back before it rang.
    None before the first."""
    events = history.item["events"]
    fenced = [place for place, entry in enumerate(events) if "gates" in entry]
    if not fenced:
        return None
    entry, after = events[fenced[-1]], events[fenced[-1] + 1 :]
    put_back = any(later["type"] == "call.queued" for later in after)
    return {"at": entry["at"], "gates": json.loads(entry["gates"]), "putBack": put_back}


def callee_zones(history: CallHistory) -> list[str]:
    """The time zones in which the callee may be; none when they are not known."""
    zones, _ = zones_for(Policy(DEFAULT), history.item.get("timeZone"), history.item["to"])
    return list(zones)


def detail(history: CallHistory, simulated: bool, now: int) -> Json:
    """All data that the page shows of the chosen call."""
    return summary(history, now) | {
        "fault": history.fault,
        "promises": promises(history, simulated),
        "next": next_look(history, now),
        "receipt": receipt(history),
        "zones": callee_zones(history),
        "rows": [asdict(row) for row in timeline(history, simulated)],
        "record": history.item,
        "deliveries": [history.deliveries[sequence] for sequence in sorted(history.deliveries)],
        "hooks": history.hooks,
        "lines": sorted(history.lines, key=lambda line: str(line["at"]))[-LOG_LINES_SHOWN:],
    }


# ── the timeline ────────────────────────────────────────────────────────────────────────────────


def timeline(history: CallHistory, simulated: bool) -> list[Row]:
    """All rows of a call in the order of their times; in the same millisecond cause before effect."""
    rows = [
        *_request_rows(history),
        *_livekit_rows(history),
        *_record_rows(history),
        *_step_rows(history, simulated),
        *_attempt_rows(history),
        *_hook_rows(history),
    ]
    return _with_retries_folded(sorted(rows, key=lambda row: row.at))


def _with_retries_folded(rows: Sequence[Row]) -> list[Row]:
    """The rows; several failed attempts at one delivery are one row, at the time of the first."""
    failed: dict[int, list[Row]] = {}
    for row in rows:
        if row.delivery:
            failed.setdefault(row.delivery, []).append(row)
    shown = []
    for row in rows:
        group = failed.get(row.delivery, [])
        attempts = [each.what.rpartition(" → ") for each in group if each.who == "Deliver"]
        if len(attempts) < 2:
            shown.append(row)
        elif row is group[0]:
            outcomes = Counter(outcome for _, _, outcome in attempts)
            counted = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.items())
            shown.append(
                Row(
                    row.at,
                    "Deliver",
                    f"{attempts[0][0]}: {len(attempts)} attempts failed",
                    f"{counted}; the last {(group[-1].at - row.at) / 1000:.1f} s after the first",
                    tone="bad",
                    delivery=row.delivery,
                    folded=tuple(group),
                )
            )
    return shown


def _request_rows(history: CallHistory) -> Iterator[Row]:
    for asked in history.requests:
        yield Row(asked["at"], "client", asked["what"], asked.get("detail", ""), minor=asked.get("minor", False))
        if "status" in asked:
            good = 200 <= asked["status"] < 300
            answered = asked["at"] + asked["ms"]
            yield Row(
                answered,
                "client",
                f"answer {asked['status']}",
                f"after {asked['ms']} ms",
                minor=good,
                tone="" if good else "bad",
            )


# The step that writes each event, so that the event's row names its writer.
_WRITES = {
    "call.dialing": "CallStore.fence",
    "call.answered": "CallStore.answered",
    "call.ended": "CallStore.end",
    "call.queued": "CallStore.unfence",
}


def _record_rows(history: CallHistory) -> Iterator[Row]:
    item = history.item
    yield Row(milliseconds(item["createdAt"]), "InitiateCall", "accepted", "the request is valid and allowed")
    writers: dict[str, list[str]] = {}
    for step in history.steps:
        if step.get("won"):
            writers.setdefault(step["point"], []).append(step["function"])
    for entry in item["events"][1:]:
        kind = entry["type"]
        mine = writers.get(_WRITES.get(kind, ""), [])
        who = mine.pop(0) if mine else "record"
        match kind:
            case "call.dialing":
                yield Row(entry["at"], who, "fenced", "from here on it is not dialled again")
            case "call.answered":
                yield Row(entry["at"], who, "answered", "dialing → in_progress", tone="good")
            case "call.queued":
                yield Row(entry["at"], who, "queued again", "LiveKit refused before anything rang")
            case "call.ended":
                code = f", SIP {entry['sipStatusCode']}" if entry.get("sipStatusCode") else ""
                yield Row(
                    entry["at"],
                    who,
                    "ended",
                    f"{entry['status']}: {entry['reason']}{code}",
                    tone="good" if entry["status"] == "completed" else "",
                )
            case _:
                yield Row(entry["at"], who, kind, "the agent's report")


# The name of each step when it is done, and when its condition fails. Steps that append an event are shown by the
# event's row instead; "+" marks rows that are shown without "every step".
_STEPS: dict[str, tuple[str, str]] = {
    "CallStore.create": ("+queued", "the record was there"),
    "CallStore.take_lease": ("+claimed", "claim lost: another has it"),
    "CallStore.wait": ("+waits", "waits already"),
    "CallStore.enter_line": ("+in the line", "not put into the line: another was faster"),
    "CallStore.admit": ("+admitted", "not admitted: it has left its place"),
    "CallStore.reschedule": ("+moved", "not moved: another was faster"),
    "CallStore.change_times": ("+moved", "not moved: another was faster"),
    "CallStore.fence": ("", "fence lost"),
    "CallStore.unfence": ("", "un-fence lost"),
    "CallStore.answered": ("", "answer not written"),
    "CallStore.end": ("", "end lost: it had ended"),
    "CallStore.note_left": ("noted that it left", "nothing to note"),
    "CallStore.ask_to_hang_up": ("+hang-up asked for", "nothing to hang up"),
    "CallStore.postpone": ("looked, later again", "looked"),
    "CallStore.leave_due": ("nothing is due any more", "still due"),
    "LimitStore.take_slot": ("slot taken", "no slot is free"),
    "LimitStore.free_slot": ("slot free", ""),
    "DeliveryStore.create": ("delivery row written", ""),
    "DeliveryStore.take": ("delivery claimed", ""),
    "DeliveryStore.finish": ("attempt noted", ""),
    "Queue.send": ("message sent", ""),
    "LiveKit.create_room": ("room asked for", ""),
    "LiveKit.dial": ("dial answered", ""),
}
# What a call waits for, after "waits" and "in the line".
_REASONS = {
    "scheduled_at": "until the time it is scheduled for",
    "calling_window": "for the hours at which it may ring",
    "frequency": "for enough time since other calls to this number",
    "slot": "for a slot: all slots of the workspace are taken",
    "trunk": "for its trunk, which is stopped or has no free moment soon",
    "paused": "until dialling is resumed",
    "retry": "for its next attempt: LiveKit failed before anything rang",
}
_DETAILS = {
    "CallStore.create": "record written, message in DialQueue",
    "CallStore.take_lease": "one worker's lease; nothing rings yet",
    "CallStore.change_times": "while a worker has it, which asks the gates again",
}


def _step_rows(history: CallHistory, simulated: bool) -> Iterator[Row]:
    claims = 0
    for step in history.steps:
        point, phase, who, at = step["point"], step["phase"], step["function"], step["at"]
        if phase == "died":
            moment = {"before": "right before", "during": "during", "after": "right after"}[step["when"]]
            yield Row(at, who, "killed", f"the process is gone, {moment} {point}", tone="bad")
        elif phase == "started":
            if point == "LiveKit.dial":
                yield Row(at, who, "dial sent", "CreateSIPParticipant, once", minor=simulated)
        elif "error" in step and point == "LiveKit.dial":
            yield Row(at, who, "dial answered", f"not with a call: {step['error']}", minor=simulated)
        elif "error" in step:
            yield Row(at, who, f"{point} failed", step["error"], minor=True, tone="bad")
        elif point in _STEPS:
            done, lost = _STEPS[point]
            won = step.get("won", step.get("result", True))
            what = done if won else lost
            if not what:
                continue
            extra = _DETAILS.get(point, "") if won else ""
            if point == "CallStore.create":
                # Other processes may continue with the record before this step's answer has arrived.
                at -= step["ms"]
            if point == "CallStore.take_lease" and won:
                claims += 1
                extra = f"attempt {claims}, {extra}"
            if point in _WAITS and won:
                nothing = "nothing makes it wait now" if point == "CallStore.reschedule" else ""
                extra = _REASONS.get(step.get("waitingFor", ""), nothing)
            if point == "CallStore.create" and won and "waitingFor" in step:
                extra = f"record written; it waits {_REASONS.get(step['waitingFor'], '')}"
            if point == "CallStore.admit" and won:
                extra = _admitted_for(step)
            if "admits" in step:
                what, extra = "+slot freed", f"the call to {step['admits']} is admitted for it"
            # A real LiveKit has no feed: its side is shown by the worker's steps.
            major = what.startswith("+") or (not simulated and point.startswith("LiveKit."))
            yield Row(at, who, what.lstrip("+"), extra or f"{point}, {step['ms']} ms", minor=not major)


def _admitted_for(step: Json) -> str:
    freed = step.get("freed")
    if freed is None:
        return "a slot is free"
    return f"for the slot of the call to {freed['by']}, {max(0, step['at'] - freed['at'])} ms after it was freed"


def _livekit_rows(history: CallHistory) -> Iterator[Row]:
    for event in history.livekit:
        at = event["atMs"]
        match event["kind"]:
            case "room_started":
                yield Row(at, "livekit", "room made", event["roomName"])
            case "agent_dispatched":
                yield Row(at, "livekit", "agent dispatched", event["agentName"], minor=True)
            case "participant_joined" if event.get("participantKind") == "AGENT":
                yield Row(at, "livekit", "agent joined", event["identity"])
            case "invite":
                yield Row(at, "livekit", "INVITE", f"to {event['number']}")
            case "ringing":
                yield Row(at, "livekit", "ringing")
            case "active":
                yield Row(at, "livekit", "picked up")
            case "hangup":
                yield Row(at, "livekit", "hung up")
            case "call_over" if event["outcome"] != "completed":
                yield Row(at, "livekit", "call over", event["outcome"])
            case "participant_left":
                yield Row(at, "livekit", "left", f"{event['identity']}: {event['reason']}", minor=True)
            case "room_finished":
                yield Row(at, "livekit", "room closed", minor=True)


def _attempt_rows(history: CallHistory) -> Iterator[Row]:
    events: Sequence[Json] = history.item["events"]
    for sequence, row in sorted(history.deliveries.items()):
        kind = events[sequence - 1]["type"] if sequence <= len(events) else f"event {sequence}"
        for n, attempt in enumerate(row.get("attempts", ()), 1):
            status = attempt.get("status")
            good = status is not None and 200 <= status < 300
            answer = status if status is not None else attempt.get("error", "no answer")
            extra = f"attempt {n}, {attempt['ms']} ms"
            if n == len(row["attempts"]) and row["state"] in ("dead", "stopped"):
                extra += f"; {row['state']}"
            yield Row(
                attempt["at"] + attempt["ms"],
                "Deliver",
                f"{kind} → {answer}",
                extra,
                tone="good" if good else "bad",
                delivery=0 if good else sequence,
            )


def _hook_rows(history: CallHistory) -> Iterator[Row]:
    seen: Counter[str] = Counter()
    for hook in history.hooks:
        at, kind = hook["receivedAtMs"], hook["type"]
        seen[hook["id"]] += 1
        if not hook["verified"]:
            yield Row(at, "receiver", f"{kind} not genuine", hook["error"], tone="bad")
        elif seen[hook["id"]] > 1:
            failed = hook["sequence"] if _fails(hook["behaviour"]) else 0
            yield Row(at, "receiver", f"{kind} came again", f"the same id: {hook['id']}", delivery=failed)
        else:
            yield Row(at, "receiver", f"{kind} received", "signature verified", minor=True)


def _fails(behaviour: Json) -> bool:
    """Whether the receiver, behaving like this, fails to take a webhook."""
    return bool(behaviour.get("hang") or behaviour.get("redirectTo") or behaviour.get("status", 200) >= 300)
