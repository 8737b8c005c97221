"""Every condition of the protocol, by name; each can be removed to see what breaks.

Those of the record's writes are read from CallStore: the model evaluates the text that is sent to DynamoDB. A
condition removed from the code is removed from the model too, whose tests then show what breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from botocore.exceptions import ClientError

from shared.call import Outcome
from shared.call_store import CallStore
from tests.calls import call_record


class Recorder:
    """Takes the place of the DynamoDB client: stores the one request and refuses it."""

    def __init__(self) -> None:
        self.request: dict[str, Any] = {}

    def update_item(self, **request: Any) -> NoReturn:
        self.request = request
        raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}}, "UpdateItem")

    put_item = update_item

    def transact_write_items(self, **request: Any) -> NoReturn:
        self.request = request["TransactItems"][0]["Update"]
        raise ClientError({"Error": {"Code": "TransactionCanceledException"}}, "TransactWriteItems")


_LEFT = {"reason": "x", "callStatus": "x", "at": 1}
_END = Outcome("failed", "outcome_unknown")

# The writes as the processes make them. A write that depends on the record its caller read is listed once for
# each.
WRITES: dict[str, Callable[[CallStore], Any]] = {
    "create": lambda store: store.create(call_record()),
    "take_lease": lambda store: store.take_lease("x", "lease", 2, 1),
    "note_slots_item": lambda store: store.note_slots_item("x", "lease", 1),
    "wait": lambda store: store.wait("x", "trunk", 3, 4, 1, lease="lease"),
    "wait_free": lambda store: store.wait("x", "trunk", 3, 4, 1),
    "enter_line": lambda store: store.enter_line(
        "x", "line", "turn", "slot", 4, 1, lease="lease", seen=call_record()
    ),
    "enter_line, uncount": lambda store: store.enter_line(
        "x", "line", "turn", "slot", 4, 1, lease="lease", uncount=True, seen=call_record()
    ),
    "enter_line_free": lambda store: store.enter_line("x", "line", "turn", "slot", 4, 1, seen=call_record()),
    "admit": lambda store: store.admit("x", "line", "turn", "admitted", 4, 1),
    "leave_line": lambda store: store.leave_line("x", "line"),
    "hold": lambda store: store.hold(call_record(line_of="line", turn="turn"), "lease", 2, 1),
    "reschedule": lambda store: store.reschedule(call_record(), call_record(), 1),
    "change_times": lambda store: store.change_times(call_record(), call_record(), 1),
    "fence": lambda store: store.fence(
        call_record(lease_id="lease"), "room", "+1", [], {}, "token", 1, lambda: True
    ),
    "unfence": lambda store: store.unfence("x", "lease", "retry", 3, 4, 1),
    "answered": lambda store: store.answered("x", "lease", 4, 1),
    "note_left": lambda store: store.note_left(call_record(room_sid="room"), _LEFT),
    "note_joined": lambda store: store.note_joined(call_record(room_sid="room"), 1),
    "note_missing": lambda store: store.note_missing(
        call_record(), 4, phone_missing_since_ms=1, agent_missing_since_ms=None
    ),
    "end": lambda store: store.end(call_record(), _END, 4, 1),
    "end, lease seen": lambda store: store.end(call_record(lease_id="lease"), _END, 4, 1),
    "end, hangup seen": lambda store: store.end(call_record(status="dialing", hangup={}), _END, 4, 1),
    "end, lease and hangup seen": lambda store: store.end(
        call_record(status="dialing", lease_id="lease", hangup={}), _END, 4, 1
    ),
    "ask_to_hang_up": lambda store: store.ask_to_hang_up(call_record(status="dialing"), "max_duration", 1),
    "leave_due": lambda store: store.leave_due("x"),
    "postpone": lambda store: store.postpone(call_record(), 4),
    "stop_webhooks": lambda store: store.stop_webhooks("x", 1),
    "note_agent_left": lambda store: store.note_agent_left(call_record(room_sid="room"), 1),
    "note_orphan": lambda store: store.note_orphan("x"),
    "put_off": lambda store: store.put_off(("x", "CALL"), 4, 1),
    "keep": lambda store: store.keep("x", 4),
    "append_report": lambda store: store.append_report("x", "room", "id", {}, 1, ended_since_ms=1),
}


def request(write: str) -> dict[str, Any]:
    """The request that CallStore sends to DynamoDB for this write."""
    recorder = Recorder()
    WRITES[write](CallStore(recorder, "table"))  # type: ignore[arg-type]
    return recorder.request


def conditions(write: str) -> tuple[str, ...]:
    """The parts of the write's condition that are joined by AND."""
    sent = request(write)
    parts, depth, text = [""], 0, sent["ConditionExpression"]
    if ":source" in text:
        # An end may come from any status that was seen; the other changes have one they come from.
        source = "seen" if write.startswith("end") else sent["ExpressionAttributeValues"][":source"]["S"]
        text = text.replace(":source", f":{source}")
    for word in text.split(" "):
        if word == "AND" and not depth:
            parts.append("")
            continue
        depth += word.count("(") - word.count(")")
        parts[-1] += f" {word}" if parts[-1] else word
    return tuple(parts)


# The name of each part. A part that is missing here makes the tests fail: the model has to be extended.
NAMES = {
    "#status = :queued": "queued",
    "#status = :dialing": "dialing",
    "#status = :seen": "status as seen",
    "(attribute_not_exists(leaseUntil) OR leaseUntil < :now)": "no live lease",
    "(attribute_not_exists(waitUntil) OR waitUntil <= :now)": "not waiting",
    "leaseId = :lease": "lease mine",
    "(attribute_not_exists(lineOf) OR attribute_exists(admittedAt))": "not in line",
    "attribute_not_exists(admittedAt)": "not admitted",
    "attribute_not_exists(slotsItem)": "no slots item",
    "lineOf = :line": "line as seen",
    "turn = :turn": "turn as seen",
    "#status <> :queued": "not queued",
    "attribute_not_exists(leaseId)": "no lease",
    "leaseUntil > :now": "lease live",
    "attribute_not_exists(hangup)": "no hangup",
    "attribute_exists(hangup)": "hangup",
    "attribute_not_exists(phoneSeenAt)": "no phone seen",
    "attribute_not_exists(#left)": "nothing left",
    "(attribute_not_exists(#left) OR #left.reason = :closed)": "no event about the phone",
    "checkAt = :was": "next look as seen",
    "roomSid = :room": "room as seen",
    "attribute_exists(endedAt)": "ended",
    "attribute_not_exists(scheduledAt)": "times as seen",
    "attribute_not_exists(callExpiresAt)": "times as seen",
}
# The condition of an end depends on the record that was read.
_AS_SEEN = {"lease mine": "lease as seen", "no lease": "lease as seen"} | dict.fromkeys(
    ("no hangup", "hangup"), "hangup as seen"
)
# Writes that no promise of the model rests on.
NOT_MODELLED = {
    "create": "the record's birth: before the first message that does anything",
    "note_slots_item": "in which item a slot is: of one call's slot there is one item here",
    "reschedule": "other times are one step of the model of one number, without the line",
    "change_times": "as `reschedule`",
    "note_orphan": "that an agent makes its orphan room again after its removal is not modelled",
    "postpone": "only when to look next; looks come at any time here",
    "put_off": "only when to look next, as `postpone`",
    "stop_webhooks": "webhooks are not modelled",
    "note_agent_left": "brings on a look, and a request to hang up like that of a call that lasts too long",
    "keep": "how long a record lives after its end",
    "append_report": "what agents report: it changes nothing that another write asks for",
}


def switch(write: str, name: str) -> str:
    kind = write.split(",")[0]
    return f"{kind}: {_AS_SEEN.get(name, name) if kind == 'end' else name}"


# write → its conditions in the code, as (switch, name).
IN_FORCE = {
    write: tuple((switch(write, NAMES[text]), NAMES[text]) for text in conditions(write) if text in NAMES)
    for write in WRITES
    if write not in NOT_MODELLED
}

# The parts of take_slot's condition.
TAKE_SLOT = {
    "take_slot: its own slot": "contains(activeCalls, :id)",
    "take_slot: limit": "size(activeCalls) < :capacity",
    "take_slot: not crowded": "(attribute_not_exists(crowdedUntil) OR crowdedUntil < :now)",
}

# What the processes do or do not do, and where.
OF_THE_PROCESSES = {
    # dial_worker
    "a lease outlives its holder": "durations.lease_margin, dial_call",
    "lease before slot": "dial_call, _dial_leased",
    "slot before the dial": "_dial_leased",
    "the last attempt's room is deleted": "_prepare_room",
    "the worker waits for an agent that has a job": "livekit.client.delete_lost_dispatches",
    "a lost dispatch is deleted before a new one is created": "livekit.client.delete_lost_dispatches",
    "the waiting worker reads the record": "_await_agent",
    "the agent joins before the dial": "_await_agent",
    "the worker checks whether its lease has expired": "_lease_over",
    "waiting clears only what no other process holds": "_clear_if_canceled",
    "a slot is freed before the line": "_enter_line",
    "a slot is freed for the line under a lease": "_enter_line",
    "only the winner of the fence dials": "_dial_leased",
    "a dial is sent once": "livekit.client.connect, failover=False",
    "an unclear dial is not sent again": "outcomes.verdict",
    "un-fence: no phone in the room": "_determine_outcome",
    "un-fence: no phone on two looks": "_determine_outcome",
    "un-fence: no event on the record": "_determine_outcome",
    "an error without a SIP code requires a look": "_handle_error",
    "an orphan room is created again to be deleted": "hang_up.delete_room",
    "the worker looks twice": "_determine_outcome",
    "a closed room alone does not end a dial": "_determine_outcome",
    "the answer checks for a phone that left": "_handle_answer",
    "the worker ends only what is still its own": "_still_mine",
    # shared/ending
    "no end follows an end": "CallStore.end, TRANSITIONS",
    "the end and its event are one write": "CallStore._transition",
    "an ended call stays due": "CallStore.end, clear",
    "only the winner of the end clears": "_end",
    "the slot is freed before the room is deleted": "ending.clear_with_room",
    "the slot is freed before the call leaves the index": "ending.clear, clear_with_room",
    "the room is deleted before the call leaves the index": "ending.clear_with_room",
    # reconcile_calls
    "the reconciler leaves a live dial alone": "_dialing",
    "the reconciler looks twice": "_missing_long_enough",
    "a phone that rings too long counts as gone": "_credible_status",
    "a phone that joined again is connected": "_credible_status",
    "clearing waits for another process's lease": "_ended",
    "slots are repaired": "reconcile, repair_slots",
    "the repair frees only what has ended or waits in the line": "_repair_slot",
    "the repair frees the slots of calls in the line": "_repair_slot",
    "the repair holds a call in the line": "_repair_slot",
    # calls_api
    "a fenced call is hung up instead of canceled": "cancel",
    "the room stays while it rings": "hang_up_now",
    "cancel looks again": "hang_up_now",
    "cancel clears only what no other process touched": "cancel",
    # livekit_events
    "an event does not end a call that is dialing": "settle._phone_left, _room_finished",
    "an event of another room is ignored": "settle",
    "an event ends a call that was answered meanwhile": "settle._phone_left",
    "moving a phone does not end its call": "outcomes.NOT_AN_END",
    "an event clears only what was fenced": "settle._room_finished",
}

# The same for what several calls of a workspace do with its slots (line.py).
OF_THE_LINE = {
    # shared/line
    "a freed slot admits the first": "Line.free_slot",
    "only a slot that was really freed admits": "Line.free_slot",
    "the first in turn is tried first": "Line._admit_one",
    "the entry of a call that is gone is removed": "Line._claim, _outstanding",
    "a newcomer counts those admitted": "Line.admit_behind",
    "a fill counts those admitted": "Line.fill, _outstanding",
    "a call without a slot crowds it": "Line.crowd",
    # dial_worker
    "a newcomer reads whether others wait": "_slots_item",
    "an admitted call that returns admits no other": "_wait_for_slot",
    "the message of a call that is gone admits the next": "dial",
    "the message of a call that had a slot admits no other": "dial",
    # reconcile_calls
    "the reconciler fills the line": "_fill_lines",
    "the reconciler repeats an admission's message": "_queued",
}

# The same for calls to one number and what may keep it from ringing (gates.py).
OF_THE_GATES = {
    # shared/gates, dial_worker
    "what may have changed is read again": "_fence_and_dial",
    "an old decision is not sent": "_fence_and_dial",
    "a call's own ring does not count": "gates.decide",
    "the pause switch is read": "_may_fence",
    "without the marker nothing rings": "Standing.paused",
    "a new decision has a new token": "_fence_and_dial",
    "a write lost to one's own fence un-fences": "_undo_late_fence",
    "the window is checked before the dial": "_dial_fenced",
    "an old fence does not dial": "_dial_fenced, durations.decision_valid",
    # shared/call_store
    "an unclear fence is repeated with its token": "CallStore.fence",
    "one's own earlier fence counts as won": "CallStore.fence",
    # shared/numbers
    "fence, with a ring: the number as read": "ring_write",
    "fence, no ring: the number as read": "ring_write",
    "a ring changes the version": "_update",
    "a suppression changes the version": "_update",
    "a suppression's write: the number as read": "NumberStore._change",
    "a suppression's write keeps the rings": "NumberStore._change",
    "an item lives as long as its rings count": "_update",
    "an item with an endless suppression has no end": "_update",
    "only the un-fenced ring is removed": "NumberStore.forget_ring",
    # calls_api
    "an opt-out is suppressed before it is reported": "reports",
}

SWITCHES = tuple(
    dict.fromkeys(
        [
            *(name for parts in IN_FORCE.values() for name, _ in parts),
            *TAKE_SLOT,
            *OF_THE_PROCESSES,
            *OF_THE_LINE,
            *OF_THE_GATES,
        ]
    )
)
