"""`admin line`: show."""

from __future__ import annotations

import argparse
import collections
from typing import Any

from admin.target import Target
from admin.terminal import Terminal, card, table
from admin.trunks import described, state_of
from shared.call import Call, iso
from shared.clock import now_ms
from shared.limits import Standing
from shared.line import admitted_of, earliest_ms, line_of
from shared.slots import capacities
from shared.telemetry import masked
from shared.workspaces import Workspace

# Pages of the index that are counted, each of a megabyte: some 400,000 calls in a few seconds.
COUNTED_PAGES = 50
# Later than any turn: the entries of a line are read whenever their calls may ring.
EVER_MS = 9_999_999_999_998


def show(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, _ = target.of_calls
    workspace = target.existing(arguments.workspace)
    standing = target.limits.standing(workspace)
    workspace = standing.workspace or workspace
    line = line_of(workspace.workspace_id)
    waiting, more = calls.count_line(line, COUNTED_PAGES)
    admitted, _ = calls.count_line(admitted_of(line), COUNTED_PAGES)
    entries = calls.line(line, EVER_MS, arguments.limit)
    found = {call.call_id: call for call in calls.read_due([(call_id, "CALL") for call_id, _ in entries]).calls}
    # The index shows for a moment longer what was admitted or has ended.
    head = [
        (call, turn)
        for call_id, turn in entries
        if (call := found.get(call_id)) is not None and call.status == "queued" and call.in_line
    ]
    reasons = collections.Counter(call.waiting_for or "slot" for call, _ in head)
    shown = {
        "workspaceId": workspace.workspace_id,
        "waiting": waiting,
        "moreWait": more,
        "admitted": admitted,
        "waitingFor": dict(reasons.most_common()),
        "waitingSince": min((call.created_at for call, _ in head), default=None),
        "head": [_as_json(place, call, turn) for place, (call, turn) in enumerate(head, start=1)],
        "slots": _slots(workspace, standing),
        "trunk": described(standing.trunk),
        "pausedAt": _time(standing.switch.paused_at_ms),
    }
    terminal.give(shown, _as_text(shown, _trunk(standing)))
    if 0 < len(head) < waiting:
        terminal.say(
            f"\nReasons, times and calls are those of the first {len(head)}, in their turn; "
            "--limit takes up to 1000."
        )


def _as_json(place: int, call: Call, turn: str) -> dict[str, Any]:
    return {
        "place": place,
        "callId": call.call_id,
        "to": masked(call.to),
        "waitingFor": call.waiting_for,
        "since": call.created_at,
        "turn": iso(earliest_ms(turn)),
    }


def _slots(workspace: Workspace, standing: Standing) -> dict[str, Any]:
    """The slots in use, of each item that has a part of the limit or ids yet."""
    limit = workspace.max_concurrent_calls
    items = [
        {"item": item.number, "inUse": len(item.call_ids), "limit": capacity}
        for item, capacity in zip(standing.slots, capacities(limit, standing.slots), strict=True)
        if capacity or item.call_ids
    ]
    crowded_ms = max((item.crowded_until_ms for item in standing.slots), default=0)
    return {
        "inUse": sum(len(item.call_ids) for item in standing.slots),
        "limit": limit,
        "items": items,
        "newcomersWaitUntil": _time(crowded_ms if crowded_ms >= now_ms() else None),
    }


def _trunk(standing: Standing) -> str:
    trunk = standing.trunk
    said = f"{trunk.trunk_id}, {state_of(trunk)}"
    if trunk.state(now_ms()) == "stopped":
        said += f" from {_time(trunk.stopped_at_ms)} until {_time(trunk.stopped_until_ms)}"
    return said + (f": {trunk.fault}" if trunk.fault else "")


def _as_text(shown: dict[str, Any], trunk: str) -> str:
    head, slots = shown["head"], shown["slots"]
    reasons = ", ".join(f"{number} for {why}" for why, number in shown["waitingFor"].items())
    of_items = ", ".join(f"{item['inUse']} of {item['limit']}" for item in slots["items"])
    facts = [
        ("Workspace", shown["workspaceId"]),
        ("Wait", f"{'more than ' if shown['moreWait'] else ''}{shown['waiting']:,}"),
        *([("", f"of the first {len(head)}: {reasons}")] if head else []),
        *([("Longest since", shown["waitingSince"])] if head else []),
        ("Admitted", f"{shown['admitted']:,}, not taken by a worker yet"),
        ("Slots in use", f"{slots['inUse']} of {slots['limit']}"),
        *([("of each item", of_items)] if len(slots["items"]) > 1 else []),
        *(
            [("Newcomers", f"behind the line until {slots['newcomersWaitUntil']}")]
            if slots["newcomersWaitUntil"]
            else []
        ),
        ("Trunk", trunk),
        ("Dialling", "on" if shown["pausedAt"] is None else f"paused since {shown['pausedAt']}"),
    ]
    if not head:
        return card(facts)
    rows = [
        (
            *(str(call["place"]), call["callId"], call["to"]),
            *(call["waitingFor"] or "-", call["since"], call["turn"]),
        )
        for call in head
    ]
    return card(facts) + "\n\n" + table(("#", "call", "to", "waits for", "since", "turn"), rows)


def _time(ms: int | None) -> str | None:
    return iso(ms) if ms else None
