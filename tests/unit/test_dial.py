"""Each branch of a dial, with the table's own conditions and what other processes do in between."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from shared.call import Outcome, iso
from shared.call_store import ROOM_CLOSED
from shared.durations import Durations
from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError, QueueError, StoreError
from shared.line import earliest_ms
from shared.livekit.client import RoomView
from shared.numbers import Suppression, ring_write
from shared.policies import Cap, Policy, Window
from shared.trunk import Trunk
from tests.one_call import CALL, CALL_ID, NOW, WORKSPACE, OneCall

LEASE_END = NOW + 240_000  # 180 s of the process and a minute
NO_PHONE = RoomView(None, agent_present=True)
EMPTY = RoomView(None, agent_present=False)
RINGS = RoomView("ringing", agent_present=True)
TALKS = RoomView("active", agent_present=True)
BUSY = LiveKitError("resource_exhausted", 429, 486)
CANCELED = LiveKitError("canceled", 408)
INTERNAL = LiveKitError("internal", 500)
UNSENT = LiveKitUnreachableError()
UNKNOWN = LiveKitUnclearError(502)
NO_ANSWER_LEFT = {"reason": "USER_UNAVAILABLE", "callStatus": "ringing", "at": NOW}
DIALED = ["create_room", "view_room", "dial"]
LINE, TURN = "demo#single", f"{NOW - 3}#{NOW - 9}#{CALL_ID}"
# The table's requests: the record, the workspace, then all that decides; then the lease, the slot, the trunk's
# moment, what may have changed meanwhile, the fence, the answer.
READS = ["get_item", "get_item", "batch_get_item"]
DIALS = [*READS, *["update_item"] * 3, "batch_get_item", "transact_write_items", "update_item"]


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    one = OneCall(monkeypatch)
    one.livekit.views = [NO_PHONE]
    return one


def dial(one: OneCall, since: int = NOW, slots_item: int | None = None) -> list[str]:
    """LiveKit's requests while the call's message is worked on. slots_item: of an admitted call's message."""
    one.dynamodb.requests.clear()
    asyncio.run(one.dialler().dial(one.message(since, slots_item)))
    one.requests = list(one.dynamodb.requests)
    return one.livekit.asked


def sent(one: OneCall) -> list[tuple[dict[str, Any], str | None, float]]:
    return one.dial_queue.sent


def message(delay: float, **more: Any) -> tuple[dict[str, Any], str | None, float]:
    return {"callId": CALL_ID, "workspaceId": "demo", **more}, "demo", delay


def waits(one: OneCall, seconds: float, attempts: int, why: str = "retry") -> None:
    """The call waits for `seconds` from now on, without a lease, and one message comes after that."""
    call = one.call
    assert (call.waiting_for, call.line_of) == (why, None)
    assert (call.status, call.lease_id, call.lease_until_ms, call.attempts) == ("queued", None, 0, attempts)
    assert call.wait_until_ms == one.now + int(seconds * 1000)
    assert call.check_at_ms == call.wait_until_ms + 30_000
    assert sent(one) == [message(seconds)]


def in_line(one: OneCall, why: str, attempts: int = 0, turn: str = f"{NOW}#{NOW}#{CALL_ID}") -> None:
    """The call waits in the line, with neither a lease nor a slot, and nothing looks at it before its deadline."""
    call = one.call
    assert (call.status, call.line_of, call.turn, call.waiting_for) == ("queued", LINE, turn, why)
    assert (call.lease_id, call.lease_until_ms, call.wait_until_ms) == (None, 0, 0)
    assert (call.admitted_at_ms, call.admission, call.slots_item) == (None, None, None)
    assert (call.attempts, call.check_at_ms) == (attempts, CALL.queue_deadline_ms)
    assert all(CALL_ID not in item.call_ids for item in one.limits.slots("demo", 4))


def place_admitted(one: OneCall, **fields: Any) -> Any:
    """The call as its admission leaves it."""
    given: dict[str, Any] = {
        "line_of": f"{LINE}#admitted",
        "turn": TURN,
        "waiting_for": "slot",
        "admitted_at_ms": NOW - 5,
        "admission": "token",
    }
    return one.place(**given | fields)


def other_waits(one: OneCall, call_id: str = "d" * 24, turn: int = NOW - 1) -> None:
    """Another call waits in the line."""
    one.calls.create(dataclasses.replace(CALL, call_id=call_id))
    entered = one.calls.enter_line(call_id, LINE, f"{turn}#{NOW}#{call_id}", "slot", NOW + 9_999, NOW)
    assert entered.won


def admits(one: OneCall, item: int = 0, call_id: str = "d" * 24) -> bool:
    """Whether the other call's message was sent, once, and nothing else."""
    return sent(one) == [({"callId": call_id, "workspaceId": "demo", "slotsItem": item}, "demo", 0)]


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.message == text]


# ── answered ────────────────────────────────────────────────────────────────────────────────────────


def test_a_phone_that_answers(one: OneCall) -> None:
    one.place()
    one.after(one.livekit, "dial", one.pass_to(NOW + 9_000))
    assert dial(one) == DIALED
    call = one.call
    assert (call.status, call.attempts, call.room_sid, call.dialed_at_ms) == ("in_progress", 1, "RM_1", NOW)
    assert (call.answered_at_ms, call.check_at_ms) == (NOW + 9_000, NOW + 39_000)
    assert call.lease_until_ms == LEASE_END
    assert re.fullmatch("[0-9a-f]{16}", call.lease_id or "")
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.dialing", "call.answered"]
    assert one.limits.active_calls("demo") == {CALL_ID}
    assert one.limits.trunk("ST_1").next_free_ms == NOW + 500
    assert (sent(one), one.slept) == ([], [0.0])
    assert one.counted == {"CallsDialed": 1, "DialDelay": 0, "CallsAnswered": 1}
    assert one.requests == DIALS
    assert (call.slots_item, call.line_of, call.admitted_at_ms) == (0, None, None)


def test_what_livekit_is_asked(one: OneCall) -> None:
    one.place(dynamic_variables='{"a": 1}', metadata='{"b": 2}')
    dial(one)
    created = one.livekit.arguments["create_room"]
    assert json.loads(created.pop("metadata")) == {
        "callId": CALL_ID,
        "workspaceId": "demo",
        "callAgentId": "agent-1",
        "to": CALL.to,
        "dynamicVariables": {"a": 1},
        "metadata": {"b": 2},
        "eventsUrl": f"https://api.example/v1/api/call/{CALL_ID}/events",
    }
    assert json.loads(created.pop("room")) == {"callId": CALL_ID}
    assert created == {"name": CALL.room_name, "agent": "agent"}
    assert one.livekit.arguments["dial"] == {
        "room": CALL.room_name,
        "identity": CALL.identity,
        "trunk_id": "ST_1",
        "to": CALL.to,
        "from_number": "+12025550100",
        "ring_seconds": 40,
        "longest_seconds": 1855,
        "timeout": 55,
        "dtmf": "",
    }


def test_an_agent_gets_objects_when_the_call_has_none(one: OneCall) -> None:
    one.place()
    dial(one)
    metadata = json.loads(one.livekit.arguments["create_room"]["metadata"])
    assert (metadata["dynamicVariables"], metadata["metadata"]) == ({}, {})


def test_ring_time_and_longest_call_are_scaled_and_the_time_out_is_at_least_the_clients(one: OneCall) -> None:
    one.durations = Durations(scale=0.5, answer_margin=1)
    one.place()
    dial(one)
    arguments = one.livekit.arguments["dial"]
    assert (arguments["ring_seconds"], arguments["timeout"], arguments["longest_seconds"]) == (20, 22, 922)
    assert one.limits.trunk("ST_1").next_free_ms == NOW + 250


@pytest.mark.parametrize(("per_second", "gap"), [(1, 1000), (3, 333)])
def test_a_trunk_is_given_so_many_calls_a_second(one: OneCall, per_second: int, gap: int) -> None:
    one.workspaces.put(dataclasses.replace(WORKSPACE, calls_per_second=per_second))
    one.place()
    dial(one)
    assert one.limits.trunk("ST_1").next_free_ms == NOW + gap


@pytest.mark.parametrize(
    ("own", "numbers", "shown"),
    [("+12025550177", ("+12025550100",), "+12025550177"), (None, ("+1", "+2"), "+1"), (None, (), None)],
)
def test_the_number_that_is_shown(
    one: OneCall, own: str | None, numbers: tuple[str, ...], shown: str | None
) -> None:
    one.workspaces.put(dataclasses.replace(WORKSPACE, from_numbers=numbers))
    one.place(from_number=own)
    dial(one)
    assert one.livekit.arguments["dial"]["from_number"] == shown
    assert one.call.events[1].get("from") == shown


@pytest.mark.parametrize("scale", [1, 0.5])
def test_the_first_look_at_a_short_call_is_at_its_end(one: OneCall, scale: float) -> None:
    one.durations = Durations(scale=scale)
    one.place(max_duration_seconds=20)
    dial(one)
    assert one.call.check_at_ms == NOW + int(20_000 * scale)


def test_the_delay_of_a_dial_is_measured_from_the_first_event(one: OneCall) -> None:
    kinds = {"call.queued": NOW - 9_000, "call.dialing": NOW - 5_000}
    events = [{"type": kind, "at": at} for kind, at in kinds.items()]
    one.place(events=(*events, {"type": "call.queued", "at": NOW - 1_000}))
    dial(one)
    assert one.counted["DialDelay"] == 9_000


# ── nothing to do ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "dialing", "lease_id": "other"},
        {"status": "in_progress"},
        {"status": "canceled"},
        {"lease_id": "other", "lease_until_ms": NOW},
        {"lease_id": "other", "lease_until_ms": NOW + 1},
        {"wait_until_ms": NOW + 5_001},
        # Past its deadline: what is leased or waits is not ended by a message that is not its own.
        {"lease_id": "other", "lease_until_ms": NOW, "queue_deadline_ms": NOW},
        {"wait_until_ms": NOW + 5_001, "queue_deadline_ms": NOW},
        # In the line it does not overtake, and its deadline is the reconciler's.
        {"line_of": LINE, "turn": TURN, "waiting_for": "slot"},
        {"line_of": LINE, "turn": TURN, "waiting_for": "slot", "queue_deadline_ms": NOW},
    ],
)
def test_a_call_that_is_not_this_messages_is_left_alone(one: OneCall, fields: dict[str, Any]) -> None:
    before = one.place(**fields)
    assert (dial(one), one.call, sent(one)) == ([], before, [])


@pytest.mark.parametrize(
    "fields", [{"lease_id": "dead", "lease_until_ms": NOW - 1, "attempts": 0}, {"wait_until_ms": NOW}]
)
def test_a_call_whose_lease_or_wait_is_over_is_dialled(one: OneCall, fields: dict[str, Any]) -> None:
    one.place(**fields)
    assert dial(one) == DIALED


def test_a_lease_that_another_process_took_first_is_its_own(one: OneCall) -> None:
    one.place()
    one.before(one.calls, "take_lease", lambda: one.calls.take_lease(CALL_ID, "other", LEASE_END, NOW))
    assert (dial(one), sent(one), one.limits.active_calls("demo")) == ([], [], frozenset())
    assert one.call.lease_id == "other"


# ── the record is missing ───────────────────────────────────────────────────────────────────────────


def test_a_record_that_comes_a_moment_later_is_dialled(one: OneCall) -> None:
    one.before(one.calls, "get", one.place, at=5)
    assert dial(one) == DIALED
    assert one.slept[:4] == [0.2] * 4


@pytest.mark.parametrize("since", [NOW, NOW - 58_999])
def test_a_message_without_a_record_is_repeated_as_old_as_it_is(one: OneCall, since: int) -> None:
    assert dial(one, since) == []
    assert (one.slept, sent(one)) == ([0.2] * 5, [message(2, since=since)])


def test_a_message_without_a_record_is_dropped_after_a_minute(one: OneCall) -> None:
    assert dial(one, NOW - 59_000) == []
    assert (sent(one), one.counted) == ([], {"OrphanMessages": 1})


# ── before the lease ────────────────────────────────────────────────────────────────────────────────


def test_a_call_expires_at_its_deadline_and_not_before(one: OneCall) -> None:
    one.place(queue_deadline_ms=NOW + 1)
    assert dial(one) == DIALED


def test_a_call_at_its_deadline_expires(one: OneCall) -> None:
    one.place(queue_deadline_ms=NOW)
    assert dial(one) == []
    assert one.end == ("expired", "expired")
    assert one.call.end_event["retryable"]
    assert one.cleared


@pytest.mark.parametrize(
    "workspace",
    [
        dataclasses.replace(WORKSPACE, workspace_id="other"),
        dataclasses.replace(WORKSPACE, disabled=True),
        dataclasses.replace(WORKSPACE, allowed_calling_codes=frozenset({"+44"})),
    ],
    ids=["gone", "disabled", "country"],
)
def test_what_a_workspace_may_not_call_any_more_ends(one: OneCall, workspace: Any) -> None:
    one.place()
    one.dynamodb.table("workspaces").clear()
    one.workspaces.put(workspace)
    assert dial(one) == []
    assert one.end == ("failed", "not_allowed")
    assert not one.call.end_event["retryable"]
    assert one.cleared


def test_a_trunk_that_is_free_soon_is_waited_for(one: OneCall) -> None:
    one.place()
    one.limits.reserve_trunk("ST_1", 5_000, NOW, NOW)
    assert dial(one) == DIALED
    assert (one.slept, one.call.dialed_at_ms) == ([5], NOW + 5_000)
    assert one.limits.trunk("ST_1").next_free_ms == NOW + 5_500


def test_a_trunk_that_is_free_later_makes_the_call_wait(one: OneCall) -> None:
    one.place()
    one.limits.reserve_trunk("ST_1", 5_001, NOW, NOW)
    assert dial(one) == []
    waits(one, 5.001, attempts=0, why="trunk")


def test_a_wait_that_another_message_has_begun_sends_no_second_one(one: OneCall) -> None:
    one.place()
    one.limits.reserve_trunk("ST_1", 5_001, NOW, NOW)
    one.before(one.calls, "wait", lambda: one.calls.wait(CALL_ID, "trunk", NOW + 1, NOW + 2, NOW))
    dial(one)
    assert (sent(one), one.call.wait_until_ms) == ([], NOW + 1)


def test_a_call_that_ended_before_its_first_wait_is_cleared_by_who_ended_it(one: OneCall) -> None:
    one.place()
    one.limits.reserve_trunk("ST_1", 5_001, NOW, NOW)
    one.before(one.calls, "wait", one.cancel)
    assert (dial(one), sent(one), one.cleared) == ([], [], False)


@pytest.mark.parametrize(("paused", "ends"), [(3_000, True), (3_001, False)])
def test_paused_time_does_not_count_against_the_deadline(one: OneCall, paused: int, ends: bool) -> None:
    one.place(created_at=iso(NOW - 60_000), queue_deadline_ms=NOW - 3_000)
    one.limits.pause(NOW - 50_000)
    one.limits.resume(NOW - 50_000 + paused)
    assert dial(one) == ([] if ends else DIALED)
    assert one.end == (("expired", "expired") if ends else None)


# ── into the line ───────────────────────────────────────────────────────────────────────────────────


def full(one: OneCall) -> None:
    for other in ("b" * 24, "c" * 24):
        one.limits.take_slot("demo", other, 2)


def crowd(one: OneCall, until: int = NOW, item: int = 0) -> None:
    """Calls wait for a slot."""
    one.limits.note_crowded("demo", item, until, NOW * 2)


def crowded_until(one: OneCall, item: int = 0) -> int:
    return one.limits.slots("demo", item + 1)[item].crowded_until_ms


def stop_trunk(one: OneCall, seconds: int = 60, until: int = NOW + 1) -> None:
    """The trunk is stopped until then."""
    for call_id in ("1", "2", "3"):
        one.limits.note_trunk_fault("ST_1", call_id, "text", seconds * 1000, 9**9, until - seconds * 1000)


STOPS: dict[str, Callable[[OneCall], Any]] = {
    "paused": lambda one: one.limits.pause(NOW),
    "trunk": stop_trunk,
}


@pytest.mark.parametrize("why", STOPS)
def test_a_call_that_may_not_be_dialled_now_waits_in_the_line_at_the_cost_of_one_write(
    one: OneCall, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    one.place()
    STOPS[why](one)
    with caplog.at_level("INFO"):
        assert dial(one) == []
    in_line(one, why)
    assert (one.requests, sent(one)) == ([*READS, "update_item"], [])
    assert [(line["call_id"], line["waiting_for"]) for line in logged(caplog, "waits in the line")] == [
        (CALL_ID, why)
    ]
    assert crowded_until(one) == 0


def test_the_deadline_at_which_a_paused_call_is_looked_at_counts_the_pauses(one: OneCall) -> None:
    one.place(created_at=iso(NOW - 60_000))
    one.limits.pause(NOW - 9_000)
    one.limits.resume(NOW - 8_000)
    one.limits.pause(NOW - 70)
    dial(one)
    assert one.call.check_at_ms == CALL.queue_deadline_ms + 1_070


def test_a_call_without_a_slot_waits_in_the_line(one: OneCall) -> None:
    full(one)
    one.place()
    assert dial(one) == []
    in_line(one, "slot")
    assert (one.requests, sent(one)) == ([*READS, "update_item", "update_item"], [])
    assert crowded_until(one) == NOW + 60_000


@pytest.mark.parametrize(("until", "writes"), [(NOW + 29_999, 2), (NOW + 30_000, 1)])
def test_that_calls_wait_is_written_twice_a_minute_at_most(one: OneCall, until: int, writes: int) -> None:
    full(one)
    crowd(one, until)
    one.place()
    dial(one)
    in_line(one, "slot")
    assert one.requests == [*READS, *["update_item"] * writes]


def test_a_paused_call_that_is_past_its_deadline_waits(one: OneCall) -> None:
    one.place(queue_deadline_ms=NOW - 1, created_at=iso(NOW))
    one.limits.pause(NOW - 2)
    dial(one)
    assert (one.end, one.call.waiting_for, one.call.in_line) == (None, "paused", True)


@pytest.mark.parametrize("why", STOPS)
def test_of_two_messages_of_a_call_one_puts_it_into_the_line(one: OneCall, why: str) -> None:
    one.place()
    STOPS[why](one)
    one.before(one.calls, "enter_line", lambda: one.calls.enter_line(CALL_ID, LINE, "0#0#a", "slot", NOW, NOW))
    assert (dial(one), sent(one), one.call.turn) == ([], [], "0#0#a")


@pytest.mark.parametrize("why", STOPS)
def test_a_call_that_ended_before_it_waits_is_cleared_by_who_ended_it(one: OneCall, why: str) -> None:
    one.place()
    STOPS[why](one)
    one.before(one.calls, "enter_line", one.cancel)
    assert (dial(one), sent(one), one.cleared) == ([], [], False)


# A call that keeps its slot after a dial that rang nothing, and one whose process is dead.
HOLDS: dict[str, dict[str, Any]] = {
    "retry": {"attempts": 1, "slots_item": 1, "wait_until_ms": NOW, "waiting_for": "retry"},
    "earlier version": {"attempts": 1},
    "dead": {"attempts": 1, "slots_item": 1, "lease_id": "dead", "lease_until_ms": NOW - 1},
    "dead before it was counted": {"lease_id": "dead", "lease_until_ms": NOW - 1},
}


@pytest.mark.parametrize("holds", HOLDS)
@pytest.mark.parametrize("why", STOPS)
def test_a_slot_is_freed_under_a_lease_before_its_call_waits(one: OneCall, why: str, holds: str) -> None:
    call = one.place(**HOLDS[holds])
    item = call.held_slots_item or 0
    one.limits.take_slot("demo", CALL_ID, 9, item=item)
    STOPS[why](one)
    held: list[Any] = []
    one.before(one.limits, "free_slot", lambda: held.append(one.call))
    assert dial(one) == []
    in_line(one, why, attempts=HOLDS[holds].get("attempts", 0))
    assert one.requests == [*READS, "update_item", "get_item", "update_item", "update_item"]
    [leased] = held
    assert (leased.lease_id not in (None, "dead"), leased.slots_item) == (True, item)


@pytest.mark.parametrize("why", STOPS)
def test_a_slot_that_another_process_may_have_taken_is_not_freed(one: OneCall, why: str) -> None:
    one.place(**HOLDS["retry"])
    one.limits.take_slot("demo", CALL_ID, 9, item=1)
    STOPS[why](one)
    one.before(one.calls, "take_lease", lambda: one.calls.take_lease(CALL_ID, "other", LEASE_END, NOW, 1))
    assert dial(one) == []
    assert (one.call.lease_id, one.call.line_of) == ("other", None)
    assert one.limits.active_calls("demo", 2) == {CALL_ID}


@pytest.mark.parametrize(("late", "enters"), [(0, False), (1, True)])
def test_a_process_that_stalls_before_it_frees_a_slot_frees_none(one: OneCall, late: int, enters: bool) -> None:
    one.place(**HOLDS["retry"])
    one.limits.take_slot("demo", CALL_ID, 9, item=1)
    one.limits.pause(NOW)
    one.after(one.calls, "take_lease", one.pass_to(LEASE_END - late))
    dial(one)
    assert (one.limits.active_calls("demo", 2) == frozenset()) is enters
    assert one.call.in_line is enters


def test_a_process_that_stalls_after_it_has_freed_a_slot_does_not_undo_what_another_did(one: OneCall) -> None:
    one.place(**HOLDS["retry"])
    one.limits.pause(NOW)

    def other() -> None:
        one.now = LEASE_END + 1
        assert one.calls.take_lease(CALL_ID, "other", one.now + 9_000, one.now, 1).won

    one.after(one.limits, "free_slot", other)
    dial(one)
    assert (one.call.lease_id, one.call.line_of) == ("other", None)


def test_a_call_that_is_canceled_while_its_slot_is_freed_is_cleared(one: OneCall) -> None:
    one.place(**HOLDS["retry"])
    one.limits.pause(NOW)
    one.after(one.limits, "free_slot", one.cancel)
    assert dial(one) == ["delete_room"]
    assert (one.end, one.cleared) == (("canceled", "canceled_by_api"), True)


# ── the slot ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("until", "takes"), [(NOW, False), (NOW - 1, True)])
@pytest.mark.parametrize("admitted", [False, True])
def test_only_admitted_calls_take_a_slot_while_others_wait(
    one: OneCall, admitted: bool, until: int, takes: bool
) -> None:
    crowd(one, until)
    if admitted:
        place_admitted(one)
    else:
        one.place()
    assert dial(one) == (DIALED if takes or admitted else [])


def test_an_admitted_call_costs_no_more_than_one_that_never_waited(one: OneCall) -> None:
    crowd(one)
    place_admitted(one)
    assert dial(one, slots_item=0) == DIALED
    call = one.call
    assert (call.line_of, call.waiting_for, call.admitted_at_ms) == (None, None, NOW - 5)
    assert one.requests == DIALS


def test_a_call_that_has_its_slot_needs_no_other(one: OneCall) -> None:
    """After a dial that rang nothing; the workspace is full, and others wait."""
    one.place(**HOLDS["retry"])
    full(one)
    crowd(one)
    one.limits.take_slot("demo", CALL_ID, 9, item=1)
    one.workspaces.put(dataclasses.replace(WORKSPACE, slots_items_used=2))
    assert dial(one)[-3:] == DIALED
    assert one.call.slots_item == 1


def test_a_newcomer_admits_the_first_if_a_slot_is_free(one: OneCall) -> None:
    crowd(one, NOW + 30_000)
    other_waits(one)
    one.place()
    assert dial(one) == []
    in_line(one, "slot")
    assert admits(one)
    # Into the line; who is admitted already, who waits; the claim, and that others wait.
    assert one.requests == [*READS, "update_item", "query", "query", "update_item", "update_item"]


def test_a_newcomer_behind_nobody_admits_itself(one: OneCall) -> None:
    crowd(one)
    one.place()
    assert dial(one) == []
    assert admits(one, call_id=CALL_ID)
    assert (one.call.in_line, one.call.admitted_at_ms) == (False, NOW)
    one.now += 1
    assert dial(one, slots_item=0) == DIALED


def test_a_newcomer_that_the_index_does_not_show_admits_itself(one: OneCall) -> None:
    crowd(one)
    one.place()
    one.calls.line = lambda *asked: []  # type: ignore[method-assign]
    dial(one)
    assert admits(one, call_id=CALL_ID)


def test_a_slot_that_was_freed_since_it_was_read_is_not_left_free(one: OneCall) -> None:
    """Its end admitted no call, as no call waited yet."""
    full(one)
    other_waits(one)
    one.place()
    one.before(one.limits, "note_crowded", lambda: one.limits.free_slot("demo", "b" * 24))
    dial(one)
    in_line(one, "slot")
    assert admits(one)


def test_a_newcomer_to_a_full_workspace_admits_nobody(one: OneCall) -> None:
    full(one)
    crowd(one)
    other_waits(one)
    one.place()
    dial(one)
    in_line(one, "slot")
    assert sent(one) == []


@pytest.mark.parametrize("item", [0, None])
def test_an_admitted_call_without_a_slot_returns_to_its_turn_and_admits_nobody(
    one: OneCall, item: int | None
) -> None:
    full(one)
    other_waits(one)
    place_admitted(one)
    assert dial(one, slots_item=item) == []
    in_line(one, "slot", turn=TURN)
    assert (sent(one), one.requests) == ([], [*READS, "update_item", "update_item"])


def test_an_admitted_call_whose_slot_is_taken_at_the_last_moment_returns_to_its_turn(one: OneCall) -> None:
    other_waits(one)
    place_admitted(one)
    one.before(one.limits, "take_slot", lambda: full(one))
    assert dial(one, slots_item=0) == []
    in_line(one, "slot", turn=TURN)
    assert sent(one) == []


def test_a_newcomer_whose_slot_is_taken_at_the_last_moment_waits(one: OneCall) -> None:
    """With the lease that it has, and without having counted an attempt."""
    one.place()
    one.before(one.limits, "take_slot", lambda: full(one))
    assert dial(one) == []
    in_line(one, "slot")
    assert sent(one) == []
    assert one.requests == [
        *READS,
        *("update_item", "update_item", "update_item"),  # the lease, the two others' slots
        *("update_item", "update_item", "update_item"),  # the slot, that calls wait, into the line
    ]


def test_a_newcomer_that_others_begin_to_wait_before_waits_behind_them(one: OneCall) -> None:
    """A slot is free: the first of the line gets it."""
    other_waits(one)
    one.place()
    one.before(one.limits, "take_slot", lambda: crowd(one, NOW + 20_000))
    assert dial(one) == []
    in_line(one, "slot")
    assert admits(one)


def test_a_newcomer_that_loses_its_slot_admits_for_one_that_was_freed_meanwhile(one: OneCall) -> None:
    other_waits(one)
    one.place()
    one.before(one.limits, "take_slot", lambda: full(one))
    one.before(one.limits, "note_crowded", lambda: one.limits.free_slot("demo", "b" * 24))
    dial(one)
    in_line(one, "slot")
    assert admits(one)


def test_a_call_that_ended_while_it_asked_for_a_slot_is_cleared(one: OneCall) -> None:
    """It has this process's lease, so no other clears it before the lease's end."""
    one.place()
    one.before(one.limits, "take_slot", lambda: full(one))
    one.before(one.calls, "enter_line", one.cancel)
    assert dial(one) == ["delete_room"]
    assert (one.cleared, sent(one)) == (True, [])


def test_an_admission_that_fails_does_not_fail_the_newcomer(one: OneCall) -> None:
    crowd(one)
    one.place()

    def broken(line_of: str, until_ms: int, limit: int, from_ms: int = 0) -> list[tuple[str, str]]:
        raise StoreError("throttled")

    one.calls.line = broken  # type: ignore[method-assign]
    dial(one)
    in_line(one, "slot")
    assert one.counted["AdmissionErrors"] == 1


# ── several slots items ─────────────────────────────────────────────────────────────────────────────


def eighty(one: OneCall, *taken: int, **changes: Any) -> None:
    """The workspace has 80 slots in two items, of which so many are taken in each."""
    one.workspaces.put(dataclasses.replace(WORKSPACE, max_concurrent_calls=80, **changes))
    for item, number in enumerate(taken):
        fill_item(one, item, number)


def fill_item(one: OneCall, item: int, number: int = 40) -> None:
    for n in range(number):
        one.limits.take_slot("demo", f"{item}-{n}", 40, item=item)


@pytest.mark.parametrize(("taken", "preferred", "item"), [((40, 39), None, 1), ((0, 0), 1, 1), ((3, 40), 1, 0)])
def test_a_slot_is_taken_where_one_is_free(
    one: OneCall, taken: tuple[int, int], preferred: int | None, item: int
) -> None:
    eighty(one, *taken)
    one.place()
    assert dial(one, slots_item=preferred) == DIALED
    assert one.call.slots_item == item
    assert CALL_ID in one.limits.slots("demo", 2)[item].call_ids
    assert one.requests == DIALS


def test_a_slot_that_was_lost_is_tried_in_another_item(one: OneCall) -> None:
    eighty(one)
    one.place()
    one.before(one.limits, "take_slot", lambda: fill_item(one, 0))
    stored: list[Any] = []
    one.before(one.limits, "take_slot", lambda: stored.append(one.call.slots_item), at=42)
    assert dial(one, slots_item=0) == DIALED
    assert one.call.slots_item == 1
    assert stored == [1], "the record tells it before it is taken"
    assert CALL_ID in one.limits.slots("demo", 2)[1].call_ids


def test_a_slot_that_was_taken_in_another_item_is_freed_there(one: OneCall) -> None:
    eighty(one)
    one.place()
    one.before(one.limits, "take_slot", lambda: fill_item(one, 0))
    one.after(one.limits, "reserve_trunk", lambda: one.limits.pause(NOW))
    dial(one, slots_item=0)
    in_line(one, "paused", attempts=1)
    assert len(one.limits.active_calls("demo", 2)) == 40


def test_a_call_that_finds_no_slot_in_any_item_waits(one: OneCall) -> None:
    eighty(one)
    one.place()
    for item in (0, 1):
        one.before(one.limits, "take_slot", functools.partial(fill_item, one, item))
    assert dial(one, slots_item=0) == []
    in_line(one, "slot")
    assert [crowded_until(one, item) for item in (0, 1)] == [NOW + 60_000] * 2
    assert sent(one) == []


def test_a_process_whose_lease_another_has_taken_tries_no_other_item(one: OneCall) -> None:
    eighty(one)
    one.place()

    def other() -> None:
        fill_item(one, 0)
        one.now = LEASE_END + 1
        one.calls.take_lease(CALL_ID, "other", one.now + 9_000, one.now, 0)

    one.before(one.limits, "take_slot", other)
    assert dial(one, slots_item=0) == []
    call = one.call
    assert (call.lease_id, call.slots_item, call.line_of) == ("other", 0, None)
    assert CALL_ID not in one.limits.active_calls("demo", 2)


@pytest.mark.parametrize(("first", "dials"), [(4, True), (5, False)])
def test_a_lowered_limit_counts_the_ids_of_all_items(one: OneCall, first: int, dials: bool) -> None:
    one.workspaces.put(dataclasses.replace(WORKSPACE, max_concurrent_calls=10, slots_items_used=3))
    fill_item(one, 0, first)
    fill_item(one, 2, 5)
    one.place()
    assert dial(one) == (DIALED if dials else [])
    if not dials:
        in_line(one, "slot")
        assert crowded_until(one, 2) == NOW + 60_000


def test_a_limit_that_was_raised_meanwhile_is_read_with_its_items(one: OneCall) -> None:
    """The worker's workspace is that of its cache."""
    full(one)
    one.place()
    cached = dataclasses.replace(WORKSPACE)
    one.workspaces.put(dataclasses.replace(WORKSPACE, max_concurrent_calls=41))
    one.workspaces.get = lambda workspace_id: cached  # type: ignore[method-assign]
    assert dial(one) == DIALED


# ── an admitted call that does not ring ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("item", "next_"), [(0, True), (3, True), (None, False)])
def test_a_call_that_was_canceled_after_its_admission_admits_the_next(
    one: OneCall, item: int | None, next_: bool
) -> None:
    other_waits(one)
    place_admitted(one)
    one.cancel()
    assert dial(one, slots_item=item) == []
    assert admits(one, item or 0) is next_


def test_an_admission_that_comes_again_after_its_call_admits_nobody(one: OneCall) -> None:
    """The end of the call has freed its slot, and admitted the next if calls waited then."""
    place_admitted(one)
    one.livekit.fail = {"dial": BUSY}
    assert dial(one, slots_item=0) == [*DIALED, "delete_room"]
    assert one.end == ("busy", "busy")
    other_waits(one)
    dial(one, slots_item=0)
    assert sent(one) == []


@pytest.mark.parametrize("attempts", [0, 1])
@pytest.mark.parametrize("why", ["expired", "not_allowed"])
def test_an_admitted_call_that_may_not_ring_admits_the_next(one: OneCall, why: str, attempts: int) -> None:
    """attempts: it has been tried before it waited, and holds no slot since."""
    other_waits(one)
    crowd(one)
    if why == "expired":
        place_admitted(one, queue_deadline_ms=NOW, attempts=attempts)
    else:
        place_admitted(one, attempts=attempts)
        one.workspaces.put(dataclasses.replace(WORKSPACE, disabled=True))
    dial(one, slots_item=2)
    assert one.call.end_event["reason"] == why
    assert admits(one, 2)
    assert one.cleared


def test_an_admitted_call_that_has_its_slot_admits_one_when_it_ends(one: OneCall) -> None:
    """Its message was repeated by the reconciler."""
    for call_id in ("d" * 24, "f" * 24):
        other_waits(one, call_id)
    crowd(one)
    place_admitted(one, queue_deadline_ms=NOW, attempts=1, slots_item=0)
    one.limits.take_slot("demo", CALL_ID, 2)
    dial(one, slots_item=0)
    assert one.end == ("expired", "expired")
    assert admits(one)


def test_a_newcomer_that_may_not_ring_admits_nobody(one: OneCall) -> None:
    other_waits(one)
    crowd(one)
    one.place(queue_deadline_ms=NOW)
    dial(one)
    assert (one.end, sent(one)) == (("expired", "expired"), [])


@pytest.mark.parametrize(("early", "slept"), [(0, 0), (1, 0.001), (5_000, 5)])
def test_a_message_may_come_a_little_before_its_calls_turn(one: OneCall, early: int, slept: float) -> None:
    place_admitted(one, turn=f"{NOW + early}#{NOW - 9}#{CALL_ID}")
    assert dial(one, slots_item=0) == DIALED
    assert (one.slept[0], one.call.dialed_at_ms) == (slept, NOW + early)


@pytest.mark.parametrize(("why", "then"), [("paused", "paused"), (None, "scheduled_at")])
def test_a_message_that_comes_too_early_puts_its_call_back(one: OneCall, why: str | None, then: str) -> None:
    turn = f"{NOW + 5_001}#{NOW - 9}#{CALL_ID}"
    place_admitted(one, turn=turn, waiting_for=why)
    assert dial(one, slots_item=0) == []
    in_line(one, then, turn=turn)
    assert (sent(one), one.slept) == ([], [])


# ── a lease that is over ────────────────────────────────────────────────────────────────────────────


STALLS: dict[str, Callable[[OneCall], tuple[Any, str]]] = {
    "lease": lambda one: (one.calls, "take_lease"),
    "slot": lambda one: (one.limits, "take_slot"),
    "agent": lambda one: (one.livekit, "view_room"),
    "fence": lambda one: (one.calls, "fence"),
    "dial": lambda one: (one.livekit, "dial"),
}


@pytest.mark.parametrize(
    ("stall", "asked", "status"),
    [
        ("lease", [], "queued"),
        ("slot", [], "queued"),
        ("agent", DIALED[:2], "queued"),
        ("fence", DIALED[:2], "dialing"),
        ("dial", DIALED, "dialing"),
    ],
)
@pytest.mark.parametrize("error", [None, BUSY])
def test_a_process_whose_lease_is_over_does_nothing_more(
    one: OneCall, stall: str, asked: list[str], status: str, error: LiveKitError | None
) -> None:
    one.place()
    if error is not None:
        one.livekit.fail["dial"] = error
    one.after(*STALLS[stall](one), one.pass_to(LEASE_END))
    assert dial(one) == asked
    assert (one.call.status, sent(one)) == (status, [])
    assert (CALL_ID in one.limits.active_calls("demo")) is (stall != "lease")


@pytest.mark.parametrize(
    ("stall", "asked", "status"),
    [
        # Too late for a dial: the room is deleted and the call waits.
        ("lease", [*DIALED[:2], "delete_room"], "queued"),
        ("slot", [*DIALED[:2], "delete_room"], "queued"),
        ("agent", [*DIALED[:2], "delete_room"], "queued"),
        # Too late for its decision: it is put back.
        ("fence", [*DIALED[:2], "delete_room"], "queued"),
        ("dial", DIALED, "in_progress"),
    ],
)
def test_a_process_acts_until_its_leases_last_millisecond(
    one: OneCall, stall: str, asked: list[str], status: str
) -> None:
    one.place()
    one.after(*STALLS[stall](one), one.pass_to(LEASE_END - 1))
    assert dial(one) == asked
    assert one.call.status == status


# ── room and agent ──────────────────────────────────────────────────────────────────────────────────


def test_the_room_of_an_earlier_attempt_is_deleted_first(one: OneCall) -> None:
    one.place(attempts=1)
    assert dial(one) == ["delete_room", *DIALED]


@pytest.mark.parametrize("request_", ["create_room", "view_room"])
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (INTERNAL, 0),
        (LiveKitError("unauthenticated", 401), 1),
        (LiveKitError("permission_denied", 403), 1),
        (LiveKitError("not_found", 404), 0),
        (UNSENT, 1),
    ],
)
def test_a_livekit_that_fails_before_the_fence_is_tried_again(
    one: OneCall, request_: str, error: LiveKitError, fault: int
) -> None:
    one.place()
    one.livekit.views = [error]
    if request_ == "create_room":
        one.livekit.fail[request_] = error
    assert dial(one) == DIALED[: 1 if request_ == "create_room" else 2]
    waits(one, 3.75, attempts=1)
    assert one.counted["ConfigurationFaults"] == fault
    assert one.call.queue_deadline_ms == CALL.queue_deadline_ms


@pytest.mark.parametrize(("before", "delay"), [(1, 7.5), (2, 15), (3, 30)])
def test_attempts_are_ever_further_apart(one: OneCall, before: int, delay: float) -> None:
    one.place(attempts=before)
    one.livekit.fail["create_room"] = INTERNAL
    dial(one)
    waits(one, delay, attempts=before + 1)


@pytest.mark.parametrize("before", [4, 5])
def test_the_fifth_attempt_is_the_last(one: OneCall, before: int) -> None:
    one.place(attempts=before)
    one.livekit.fail["create_room"] = INTERNAL
    dial(one)
    assert one.end == ("failed", "livekit_unavailable")
    assert one.call.end_event["retryable"]
    assert (one.cleared, sent(one)) == (True, [])


def test_a_call_whose_room_cannot_be_deleted_stays_due_without_a_slot(one: OneCall) -> None:
    one.place(attempts=4)
    one.livekit.fail["delete_room"] = INTERNAL
    dial(one)
    assert one.end == ("failed", "livekit_unavailable")
    assert (one.limits.active_calls("demo"), one.cleared) == (frozenset(), False)


def test_an_agent_is_looked_for_ever_less_often(one: OneCall) -> None:
    one.place()
    one.livekit.views = [*[EMPTY] * 6, NO_PHONE]
    dial(one)
    assert one.slept[:6] == pytest.approx([0.5, 0.75, 1.125, 1.6875, 2, 2])
    assert one.call.status == "in_progress"


def test_an_agent_that_does_not_come_ends_the_call_after_twenty_seconds(one: OneCall) -> None:
    one.place()
    one.livekit.views = [EMPTY]
    one.after(one.calls, "take_lease", one.pass_to(NOW + 1_000))
    asked = dial(one)
    assert 20 <= sum(one.slept) < 22
    assert (asked[-1], asked.count("dial"), asked.count("delete_lost_dispatches")) == ("delete_room", 0, 3)
    assert one.end == ("failed", "agent_unavailable")
    assert one.call.end_event["retryable"]
    assert one.cleared


def clocked_agent(one: OneCall, *moments: int) -> None:
    """Looks for the agent happen at these milliseconds after the first; then the agent is there."""
    one.livekit.views = [*[EMPTY] * len(moments), NO_PHONE]
    for place, moment in enumerate(moments, start=1):
        one.before(one.livekit, "view_room", one.pass_to(NOW + moment), at=place)


@pytest.mark.parametrize(("moment", "status"), [(19_999, "in_progress"), (20_000, "failed")])
def test_the_last_moment_of_an_agent(one: OneCall, moment: int, status: str) -> None:
    one.place()
    clocked_agent(one, moment)
    dial(one)
    assert one.call.status == status


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize(
    ("moments", "times"), [([4_999], 0), ([5_000], 1), ([5_000, 9_999], 1), ([5_000, 10_000], 2)]
)
def test_a_lost_dispatch_is_made_again_every_five_seconds(
    one: OneCall, lost: bool, moments: list[int], times: int
) -> None:
    one.place()
    one.livekit.dispatches_lost = lost
    clocked_agent(one, *moments)
    asked = dial(one)
    assert asked.count("delete_lost_dispatches") == times
    assert asked.count("dispatch_agent") == one.counted["AgentsDispatchedAgain"] == times * lost
    assert one.call.status == "in_progress"
    if times and lost:
        created, again = (one.livekit.arguments[method] for method in ("create_room", "dispatch_agent"))
        assert again == {"room": CALL.room_name, "agent": "agent", "metadata": created["metadata"]}


@pytest.mark.parametrize(("now", "times"), [(LEASE_END, 0), (LEASE_END - 1, 1)])
def test_no_agent_is_dispatched_after_the_lease(one: OneCall, now: int, times: int) -> None:
    one.place()
    one.livekit.dispatches_lost = True
    clocked_agent(one, 5_000)
    one.after(one.livekit, "delete_lost_dispatches", one.pass_to(now))
    assert dial(one).count("dispatch_agent") == times
    assert one.end is None


def test_a_call_that_is_canceled_while_its_agent_is_awaited_is_cleared_at_once(one: OneCall) -> None:
    one.place()
    one.livekit.views = [EMPTY]
    one.before(one.livekit, "view_room", one.cancel, at=2)
    assert dial(one) == ["create_room", "view_room", "view_room", "delete_room"]
    assert (one.end, one.cleared) == (("canceled", "canceled_by_api"), True)


# ── pacing, the switch and the fence ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("seconds", "dials"), [(65.0, True), (64.999, False)])
def test_a_dial_needs_time_for_the_ring_and_its_writes(one: OneCall, seconds: float, dials: bool) -> None:
    """A ring of 40 s, 15 s for LiveKit's answer, 10 s for the writes."""
    one.place()
    one.seconds = seconds
    assert dial(one) == (DIALED if dials else [*DIALED[:2], "delete_room"])
    if not dials:
        waits(one, 2, attempts=1, why="trunk")
        assert one.limits.trunk("ST_1").next_free_ms == 0
        assert one.counted == {}


@pytest.mark.parametrize(("free_in", "waits_for"), [(4_000, None), (4_001, 4.001)])
def test_a_trunk_that_is_free_too_late_for_this_process_is_not_taken(
    one: OneCall, free_in: int, waits_for: float | None
) -> None:
    one.place()
    one.seconds = 69
    one.after(one.livekit, "create_room", lambda: one.limits.reserve_trunk("ST_1", free_in, NOW, NOW))
    asked = dial(one)
    if waits_for is None:
        assert (asked, one.call.dialed_at_ms) == (DIALED, NOW + free_in)
    else:
        assert asked == [*DIALED[:2], "delete_room"]
        waits(one, waits_for, attempts=1, why="trunk")
        assert one.limits.trunk("ST_1").next_free_ms == NOW + free_in


@pytest.mark.parametrize("why", STOPS)
def test_what_stops_dialling_at_the_last_moment_stops_the_dial(one: OneCall, why: str) -> None:
    """The agent does not wait with the call, and its slot is free for others."""
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: STOPS[why](one))
    assert dial(one) == [*DIALED[:2], "delete_room"]
    in_line(one, why, attempts=1)
    assert (sent(one), one.counted) == ([], {})


@pytest.mark.parametrize("why", STOPS)
@pytest.mark.parametrize("now", [LEASE_END, LEASE_END - 1])
def test_a_dial_that_is_stopped_after_its_lease_deletes_nothing(one: OneCall, now: int, why: str) -> None:
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: STOPS[why](one))
    one.after(one.limits, "standing", one.pass_to(now), at=2)
    if why == "trunk":
        one.before(one.limits, "standing", lambda: stop_trunk(one, until=LEASE_END + 9), at=2)
    asked = dial(one)
    over = now == LEASE_END
    assert asked == (DIALED[:2] if over else [*DIALED[:2], "delete_room"])
    assert one.call.in_line is not over
    assert (CALL_ID in one.limits.active_calls("demo")) is over


@pytest.mark.parametrize(("now", "enters"), [(LEASE_END, False), (LEASE_END - 1, True)])
def test_a_process_that_stalls_while_it_deletes_the_room_frees_no_slot(
    one: OneCall, now: int, enters: bool
) -> None:
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: one.limits.pause(NOW))
    one.after(one.livekit, "delete_room", one.pass_to(now))
    dial(one)
    assert one.call.in_line is enters
    assert (CALL_ID in one.limits.active_calls("demo")) is not enters


def test_a_room_that_cannot_be_deleted_does_not_keep_the_call_from_waiting(one: OneCall) -> None:
    one.place()
    one.livekit.fail["delete_room"] = INTERNAL
    one.after(one.limits, "reserve_trunk", lambda: one.limits.pause(NOW))
    dial(one)
    in_line(one, "paused", attempts=1)


def test_a_call_that_is_canceled_before_its_fence_is_cleared_and_does_not_ring(one: OneCall) -> None:
    one.place()
    one.before(one.calls, "fence", one.cancel)
    assert dial(one) == [*DIALED[:2], "delete_room"]
    assert (one.end, one.cleared) == (("canceled", "canceled_by_api"), True)
    assert one.counted == {}


def test_a_call_that_is_canceled_before_its_fence_is_not_cleared_after_the_lease(one: OneCall) -> None:
    one.place()
    one.before(one.calls, "fence", one.cancel)
    one.after(one.calls, "fence", one.pass_to(LEASE_END))
    assert (dial(one), one.cleared) == (DIALED[:2], False)


def test_a_fence_after_the_lease_is_lost(one: OneCall) -> None:
    one.place()
    one.before(one.livekit, "view_room", lambda: one.calls.take_lease(CALL_ID, "x", NOW, LEASE_END + 1))
    assert dial(one) == DIALED[:2]
    assert (one.call.status, one.end, sent(one)) == ("queued", None, [])


# ── the answer ──────────────────────────────────────────────────────────────────────────────────────


def seen_by_livekit(one: OneCall) -> None:
    """LiveKit's event that the phone joined the room."""
    assert one.calls.note_joined(one.call, one.now).won


def left(one: OneCall, **left: Any) -> Callable[[], None]:
    """LiveKit's event that the phone left the room."""

    def write() -> None:
        assert one.calls.note_left(one.call, NO_ANSWER_LEFT | left).won

    return write


def test_a_phone_that_left_before_its_answer_arrived_has_ended(one: OneCall) -> None:
    one.place()
    one.after(one.livekit, "dial", left(one, reason="CLIENT_INITIATED", callStatus="hangup"))
    assert dial(one) == [*DIALED, "delete_room"]
    assert (one.end, one.cleared, one.counted["CallsAnswered"]) == (("completed", "hangup"), True, 0)


def test_an_agent_that_left_while_the_phone_rang_is_looked_for(one: OneCall) -> None:
    one.place()
    one.after(one.livekit, "dial", lambda: one.calls.note_agent_left(one.call, NOW))
    dial(one)
    assert sent(one) == [message(5, agentLeft=True)]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_phone_that_answers_despite_a_cancel_is_hung_up(one: OneCall, deleted: bool) -> None:
    one.place()
    one.after(one.livekit, "dial", one.cancel)
    if not deleted:
        one.livekit.fail["delete_room"] = INTERNAL
    assert dial(one)[:4] == [*DIALED, "delete_room"]
    assert one.end == (("canceled", "canceled_by_api") if deleted else None)
    assert one.cleared is deleted


@pytest.mark.parametrize("error", [None, UNKNOWN, CANCELED])
def test_a_call_that_has_ended_meanwhile_is_not_touched(one: OneCall, error: LiveKitError | None) -> None:
    one.place()

    def ended() -> None:
        one.calls.end(one.call, Outcome("failed", "outcome_unknown"), NOW + 60_000, NOW)

    one.after(one.livekit, "dial", ended)
    if error is not None:
        one.livekit.fail["dial"] = error
    assert [request for request in dial(one) if request != "view_room"] == ["create_room", "dial"]
    assert (one.end, one.cleared) == (("failed", "outcome_unknown"), False)


# ── an error ────────────────────────────────────────────────────────────────────────────────────────


def fail(one: OneCall, error: LiveKitError, *views: RoomView | LiveKitError, after: int = 0) -> None:
    """The dial fails after so many milliseconds; then looks find `views`."""
    one.place()
    one.livekit.fail["dial"] = error
    one.livekit.views = [NO_PHONE, *(views or (NO_PHONE,))]
    one.after(one.livekit, "dial", lambda: one.pass_to(one.now + after)())


@pytest.mark.parametrize(
    ("error", "end", "fault"),
    [
        (BUSY, ("busy", "busy"), 0),
        (LiveKitError("permission_denied", 403, 403), ("failed", "trunk_error"), 1),
        (LiveKitError("unavailable", 503, 503), ("failed", "carrier_error"), 0),
    ],
)
def test_the_carriers_code_decides_at_once(
    one: OneCall, error: LiveKitError, end: tuple[str, str], fault: int
) -> None:
    fail(one, error)
    assert dial(one) == [*DIALED, "delete_room"]
    assert (one.end, one.cleared) == (end, True)
    assert one.call.end_event["sipStatusCode"] == error.sip_status_code
    assert one.counted["ConfigurationFaults"] == fault


@pytest.mark.parametrize(("after", "reason"), [(38_000, "no_answer"), (37_999, "carrier_error")])
def test_a_dial_that_lasted_its_ring_time_was_not_answered(one: OneCall, after: int, reason: str) -> None:
    fail(one, CANCELED, after=after)
    assert dial(one) == [*DIALED, "view_room", "delete_room"]
    assert one.call.end_event["reason"] == reason
    assert one.cleared


@pytest.mark.parametrize(
    ("error", "seen", "slept"),
    [(INTERNAL, False, 0), (INTERNAL, True, 10), (CANCELED, False, 10), (CANCELED, True, 10)],
)
def test_livekits_event_is_waited_for_if_there_may_be_one(
    one: OneCall, error: LiveKitError, seen: bool, slept: int
) -> None:
    fail(one, error)
    if seen:
        one.before(one.livekit, "dial", lambda: seen_by_livekit(one))
    dial(one)
    assert one.slept[1:] == pytest.approx([0.2] * slept)
    assert one.end is not None


def test_livekits_event_decides_when_it_comes(one: OneCall) -> None:
    fail(one, CANCELED)
    one.before(one.calls, "get", left(one, reason="ROOM_DELETED"), at=4)
    dial(one)
    assert one.end == ("failed", "removed")
    assert len(one.slept) == 3


def test_a_cancel_that_comes_while_the_event_is_awaited_decides(one: OneCall) -> None:
    fail(one, CANCELED)
    one.before(one.calls, "get", one.cancel, at=3)
    dial(one)
    assert one.end == ("canceled", "canceled_by_api")
    assert len(one.slept) == 2


def test_a_call_that_ends_while_the_event_is_awaited_is_not_touched(one: OneCall) -> None:
    fail(one, CANCELED)
    one.before(
        one.calls,
        "get",
        lambda: one.calls.end(one.call, Outcome("no_answer", "no_answer"), NOW, NOW),
        at=3,
    )
    assert dial(one) == [*DIALED, "view_room"]
    assert (one.end, one.cleared, len(one.slept)) == (("no_answer", "no_answer"), False, 2)


# ── the trunk's breaker ─────────────────────────────────────────────────────────────────────────────

REFUSED = LiveKitError("permission_denied", 403, 403)
UNAUTHENTICATED = LiveKitError("unauthenticated", 401, 401)


def faults(one: OneCall, number: int) -> None:
    """So many other calls have failed by the trunk's fault, in a row."""
    for n in range(number):
        one.limits.note_trunk_fault("ST_1", f"{n}", "text", 60_000, 9**9, NOW)


@pytest.mark.parametrize("error", [REFUSED, UNAUTHENTICATED])
def test_a_trunks_fault_is_counted(one: OneCall, error: LiveKitError) -> None:
    fail(one, error)
    dial(one)
    assert one.end == ("failed", "trunk_error")
    assert one.limits.trunk("ST_1").faults == {CALL_ID}
    assert (one.counted["TrunkStops"], one.counted["ConfigurationFaults"]) == (0, 1)


def test_a_fault_that_livekit_tells_without_a_code_is_counted(one: OneCall) -> None:
    fail(one, LiveKitError("not_found", 404))
    one.before(one.livekit, "dial", left(one, reason="SIP_TRUNK_FAILURE"))
    dial(one)
    assert one.end == ("failed", "trunk_error")
    assert one.limits.trunk("ST_1").faults == {CALL_ID}


@pytest.mark.parametrize(
    "error",
    [BUSY, LiveKitError("unavailable", 503, 503), LiveKitError("unauthenticated", 401), INTERNAL, CANCELED],
)
def test_what_is_no_fault_of_the_trunk_is_not_counted(one: OneCall, error: LiveKitError) -> None:
    fail(one, error)
    dial(one)
    assert one.call.ended
    assert one.limits.trunk("ST_1").faults == frozenset()


def test_the_third_fault_in_a_row_stops_the_trunk(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    fail(one, REFUSED, after=3_000)
    faults(one, 2)
    stopped: list[bool] = []
    one.before(one.calls, "end", lambda: stopped.append(one.limits.trunk("ST_1").stops == 1))
    dial(one)
    assert stopped == [True], "before the slot is freed for a call that must find it stopped"
    trunk = one.limits.trunk("ST_1")
    assert (trunk.stopped_at_ms, trunk.stopped_until_ms) == (NOW + 3_000, NOW + 63_000)
    assert trunk.fault == str(REFUSED)
    assert one.counted["TrunkStops"] == 1
    [line] = logged(caplog, "trunk stopped")
    assert (line["trunk_id"], line["stops"], line["until"]) == ("ST_1", 1, iso(NOW + 63_000))
    assert line["livekit"] == str(REFUSED)


def test_a_call_that_fails_to_try_a_trunk_stops_it_for_twice_as_long(one: OneCall) -> None:
    fail(one, REFUSED)
    stop_trunk(one, until=NOW)
    dial(one)
    trunk = one.limits.trunk("ST_1")
    assert (trunk.stops, trunk.stopped_until_ms) == (2, NOW + 120_000)


def test_the_durations_say_how_long_a_trunk_is_stopped(one: OneCall) -> None:
    one.durations = Durations(trunk_stop=5, trunk_stop_longest=8)
    fail(one, REFUSED)
    faults(one, 2)
    dial(one)
    assert one.limits.trunk("ST_1").stopped_until_ms == NOW + 5_000
    one.dynamodb.table("calls").clear()
    one.place()
    one.now = NOW + 5_000
    dial(one)
    assert one.limits.trunk("ST_1").stopped_until_ms == NOW + 13_000


def test_a_fault_that_cannot_be_counted_does_not_keep_the_call_from_ending(
    one: OneCall, caplog: pytest.LogCaptureFixture
) -> None:
    fail(one, REFUSED)

    def broken() -> None:
        raise StoreError("throttled")

    one.before(one.limits, "note_trunk_fault", broken)
    dial(one)
    assert (one.end, one.cleared) == (("failed", "trunk_error"), True)
    assert [line["trunk_id"] for line in logged(caplog, "trunk fault not counted")] == ["ST_1"]


def test_one_call_tries_a_trunk_whose_stop_is_over(one: OneCall) -> None:
    one.place()
    stop_trunk(one, until=NOW)
    other = "b" * 24
    one.calls.create(dataclasses.replace(CALL, call_id=other))
    claimed: list[Any] = []
    waiting: list[Any] = []

    def another() -> None:
        claimed.append(one.limits.trunk("ST_1"))
        asyncio.run(one.dialler().dial(dataclasses.replace(one.message(), call_id=other)))
        waiting.append(one.calls.get(other))

    def within() -> None:
        # The test's own loop runs: the other worker is another process.
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    one.after(one.livekit, "create_room", within)
    assert dial(one) == DIALED
    assert [(trunk.probe_call, trunk.probe_until_ms) for trunk in claimed] == [(CALL_ID, NOW + 180_000)]
    assert [(call.in_line, call.waiting_for, call.attempts) for call in waiting] == [(True, "trunk", 0)]
    # The first was answered: the trunk is in use again.
    assert admits(one, call_id=other)


def test_a_claim_that_another_was_faster_with_is_lost(one: OneCall) -> None:
    one.place()
    stop_trunk(one, until=NOW)
    seen = one.limits.trunk("ST_1")
    one.before(one.limits, "claim_probe", lambda: one.limits.claim_probe(seen, "other", NOW + 9, NOW))
    assert dial(one) == []
    in_line(one, "trunk")
    assert one.limits.trunk("ST_1").probe_call == "other"


@pytest.mark.parametrize("until", [NOW + 1, NOW])
def test_a_call_without_a_slot_claims_no_trunk_and_says_what_it_waits_for(one: OneCall, until: int) -> None:
    """Until its stop is over it waits for the trunk, then for a slot: another call may try the trunk."""
    one.place()
    full(one)
    stop_trunk(one, until=until)
    dial(one)
    in_line(one, "trunk" if until > NOW else "slot")
    assert one.limits.trunk("ST_1").probe_call == ""


@pytest.mark.parametrize(("until", "dials"), [(NOW + 1, False), (NOW, True)])
def test_a_trunk_is_tried_again_when_the_process_that_tried_it_is_over(
    one: OneCall, until: int, dials: bool
) -> None:
    one.place()
    stop_trunk(one, until=NOW - 9)
    one.limits.claim_probe(one.limits.trunk("ST_1"), "dead", until, NOW - 5)
    assert dial(one) == (DIALED if dials else [])
    if not dials:
        in_line(one, "trunk")


def test_a_call_may_go_on_trying_the_trunk_that_it_has_claimed(one: OneCall) -> None:
    one.place()
    stop_trunk(one, until=NOW - 9)
    one.limits.claim_probe(one.limits.trunk("ST_1"), CALL_ID, NOW + 9, NOW - 5)
    assert dial(one) == DIALED


def test_a_trunk_that_another_call_tries_at_the_last_moment_stops_the_dial(one: OneCall) -> None:
    one.place()

    def tried() -> None:
        stop_trunk(one, until=NOW)
        one.limits.claim_probe(one.limits.trunk("ST_1"), "other", NOW + 9, NOW)

    one.after(one.limits, "reserve_trunk", tried)
    assert dial(one) == [*DIALED[:2], "delete_room"]
    in_line(one, "trunk", attempts=1)


def test_a_trunk_whose_stop_is_over_at_the_last_moment_is_claimed(one: OneCall) -> None:
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: stop_trunk(one, until=NOW))
    one.before(one.calls, "fence", lambda: claimed.append(one.limits.trunk("ST_1").probe_call))
    claimed: list[str] = []
    assert dial(one) == DIALED
    assert claimed == [CALL_ID]


def test_a_process_that_stalls_past_its_time_after_it_claimed_a_trunk_dials_nothing(one: OneCall) -> None:
    one.place()
    stop_trunk(one, until=NOW)
    one.after(one.limits, "claim_probe", one.pass_to(LEASE_END))
    assert dial(one) == []
    assert one.call.status == "queued"


@pytest.mark.parametrize("error", [None, BUSY, LiveKitError("unavailable", 503, 503)])
def test_what_the_carrier_answers_ends_a_stop_and_fills_the_line(
    one: OneCall, error: LiveKitError | None, caplog: pytest.LogCaptureFixture
) -> None:
    one.place()
    if error is not None:
        one.livekit.fail["dial"] = error
    stop_trunk(one, until=NOW)
    other_waits(one)
    with caplog.at_level("INFO"):
        dial(one)
    assert one.limits.trunk("ST_1") == Trunk("ST_1", next_free_ms=NOW + 500)
    assert admits(one)
    assert [line["trunk_id"] for line in logged(caplog, "trunk in use again")] == ["ST_1"]


def test_what_the_carrier_answers_ends_the_count_of_faults(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    one.place()
    faults(one, 2)
    other_waits(one)
    with caplog.at_level("INFO"):
        dial(one)
    assert one.limits.trunk("ST_1").faults == frozenset()
    assert (sent(one), logged(caplog, "trunk in use again")) == ([], []), "nothing has waited for the trunk"


@pytest.mark.parametrize("error", [INTERNAL, CANCELED, UNKNOWN, UNSENT, UNAUTHENTICATED])
def test_what_is_not_the_carriers_answer_ends_no_stop(one: OneCall, error: LiveKitError) -> None:
    fail(one, error)
    stop_trunk(one, until=NOW)
    dial(one)
    assert one.limits.trunk("ST_1").stops == (2 if error is UNAUTHENTICATED else 1)


def test_a_phone_that_rang_out_without_a_code_shows_that_the_trunk_works(one: OneCall) -> None:
    fail(one, CANCELED, after=40_000)
    stop_trunk(one, until=NOW)
    one.before(one.livekit, "dial", left(one, reason="USER_UNAVAILABLE", callStatus="ringing"))
    dial(one)
    assert one.end == ("no_answer", "no_answer")
    assert not one.limits.trunk("ST_1").faulty


def test_an_answer_that_only_a_look_finds_shows_that_the_trunk_works(one: OneCall) -> None:
    fail(one, UNKNOWN, TALKS)
    stop_trunk(one, until=NOW)
    dial(one)
    assert one.call.status == "in_progress"
    assert not one.limits.trunk("ST_1").faulty


def test_a_dial_from_before_a_stop_does_not_end_it(one: OneCall) -> None:
    one.place()
    faults(one, 2)
    one.before(one.calls, "answered", lambda: stop_trunk(one))
    dial(one)
    assert one.call.status == "in_progress"
    assert one.limits.trunk("ST_1").stops == 1


def test_a_workspace_whose_trunk_is_changed_at_the_last_moment_is_looked_at_anew(one: OneCall) -> None:
    one.place()
    changed = dataclasses.replace(WORKSPACE, sip_trunk_id="ST_2")
    one.after(one.limits, "reserve_trunk", lambda: one.workspaces.put(changed))
    assert "dial" not in dial(one)
    assert one.call.status == "queued"
    assert sent(one) == [message(2)]


def test_newcomers_alone_do_not_keep_a_line_crowded(one: OneCall) -> None:
    """Slots are free and no call waits: the newcomer is admitted, and the next may come at once a little later."""
    one.place()
    crowd(one, NOW + 10_000)
    dial(one)
    assert crowded_until(one) == NOW + 10_000
    assert one.call.admitted_at_ms == NOW


def test_a_trunk_without_faults_costs_nothing(one: OneCall) -> None:
    fail(one, BUSY)
    dial(one)
    # As an answered one, with the end instead of the answer, the slot, and out of the index of what is due.
    assert one.requests == [*DIALS, "update_item", "update_item"]


@pytest.mark.parametrize("error", [StoreError("throttled"), QueueError("down")])
def test_a_trunk_that_cannot_be_reset_does_not_fail_the_call(
    one: OneCall, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one.place()
    stop_trunk(one, until=NOW)

    def broken() -> None:
        raise error

    one.before(one.limits, "reset_trunk", broken)
    dial(one)
    assert one.call.status == "in_progress"
    assert [line["trunk_id"] for line in logged(caplog, "trunk not reset")] == ["ST_1"]


# ── the outcome is unknown ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [CANCELED, UNKNOWN, UNSENT])
def test_a_phone_that_turns_out_to_be_answered_is(one: OneCall, error: LiveKitError) -> None:
    fail(one, error, RINGS, RINGS, TALKS)
    dial(one)
    assert one.call.status == "in_progress"
    assert one.slept[1:] == ([2] if error is CANCELED else [2, 2])


def test_a_phone_that_is_absent_for_half_a_minute_has_left(one: OneCall) -> None:
    fail(one, UNKNOWN)
    dial(one)
    assert one.slept[1:] == [2] * 15
    assert one.end == ("failed", "outcome_unknown")
    assert one.cleared


def test_a_phone_that_was_there_is_absent_anew(one: OneCall) -> None:
    fail(one, UNKNOWN, NO_PHONE, NO_PHONE, RINGS, UNKNOWN, NO_PHONE)
    dial(one)
    assert one.slept[1:] == [2] * 19
    assert one.end == ("failed", "outcome_unknown")


def test_a_look_that_fails_shows_nothing(one: OneCall) -> None:
    fail(one, INTERNAL, UNKNOWN)
    dial(one)
    assert (one.call.status, one.end) == ("dialing", None)


@pytest.mark.parametrize(
    ("reason", "sleeps"), [("USER_UNAVAILABLE", 0), (ROOM_CLOSED, 15)], ids=["left", "room closed"]
)
def test_only_an_event_of_the_phone_proves_that_it_left(one: OneCall, reason: str, sleeps: int) -> None:
    fail(one, UNKNOWN)
    one.after(one.livekit, "dial", left(one, reason=reason))
    dial(one)
    assert len(one.slept) == 1 + sleeps
    assert one.end is not None


@pytest.mark.parametrize(("seconds", "looks"), [(60, 25), (12, 1), (10.001, 1), (10, 0)])
def test_what_this_process_has_no_time_to_determine_outcome_is_the_reconcilers(
    one: OneCall, seconds: float, looks: int
) -> None:
    fail(one, UNKNOWN, RINGS)
    one.after(one.livekit, "dial", lambda: setattr(one, "seconds", seconds))
    asked = dial(one)
    assert len(asked) == len(DIALED) + looks
    assert (one.call.status, sent(one)) == ("dialing", [])


@pytest.mark.parametrize(("now", "looks"), [(LEASE_END, 0), (LEASE_END - 1, 1)])
def test_what_is_not_found_out_by_the_leases_end_is_the_reconcilers(one: OneCall, now: int, looks: int) -> None:
    fail(one, INTERNAL, UNKNOWN)
    one.after(one.livekit, "dial", lambda: setattr(one, "seconds", 9999))
    one.after(one.livekit, "view_room", one.pass_to(now), at=2)
    assert len(dial(one)) == len(DIALED) + 1 + looks
    assert one.call.status == "dialing"


@pytest.mark.parametrize("there", [True, False])
def test_a_canceled_phone_that_still_rings_is_hung_up(one: OneCall, there: bool) -> None:
    """A phone that LiveKit lists and does not find is absent."""
    fail(one, UNKNOWN, RINGS, RINGS, NO_PHONE)
    one.livekit.phone_in_room = there
    one.after(one.livekit, "dial", one.cancel)
    asked = dial(one)
    assert asked[3:7] == ["view_room", "remove_participant"] * 2
    assert len(one.slept) == 1 + (17 if there else 15)
    assert (one.end, one.cleared) == (("canceled", "canceled_by_api"), True)


def test_a_canceled_phone_that_cannot_be_hung_up_is_not_absent(one: OneCall) -> None:
    fail(one, UNKNOWN, RINGS)
    one.livekit.fail["remove_participant"] = INTERNAL
    one.after(one.livekit, "dial", one.cancel)
    dial(one)
    assert (one.call.status, one.end) == ("dialing", None)


@pytest.mark.parametrize("error", [UNKNOWN, UNSENT, INTERNAL])
def test_a_phone_that_was_in_the_room_ends_with_an_unknown_outcome(one: OneCall, error: LiveKitError) -> None:
    fail(one, error, RINGS, RINGS, NO_PHONE)
    dial(one)
    assert one.end == ("failed", "outcome_unknown")
    assert one.counted["DialsUnfenced"] == 0


def test_a_dial_that_livekit_gave_up_is_not_repeated_though_its_room_could_not_be_seen_at_once(
    one: OneCall,
) -> None:
    fail(one, INTERNAL, UNKNOWN, NO_PHONE)
    dial(one)
    assert one.end == ("failed", "livekit_error")
    assert (one.counted["DialsUnfenced"], sent(one)) == (0, [])


# ── un-fenced ───────────────────────────────────────────────────────────────────────────────────────


def test_a_dial_that_rang_nothing_is_tried_again(one: OneCall) -> None:
    fail(one, UNSENT)
    assert dial(one) == [*DIALED, *["view_room"] * 16]
    waits(one, 3.75, attempts=1)
    call = one.call
    assert (call.room_sid, call.dialed_at_ms) == (None, None)
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.dialing", "call.queued"]
    assert one.counted["DialsUnfenced"] == 1
    assert one.limits.active_calls("demo") == {CALL_ID}


@pytest.mark.parametrize(("before", "again"), [(3, True), (4, False), (5, False)])
def test_a_dial_that_rang_nothing_is_tried_five_times(one: OneCall, before: int, again: bool) -> None:
    fail(one, UNSENT)
    one.dynamodb.table("calls").clear()
    one.place(attempts=before)
    dial(one)
    if again:
        waits(one, 30, attempts=before + 1)
    else:
        assert one.end == ("failed", "livekit_unavailable")
        assert one.call.end_event["retryable"]
        assert (one.cleared, sent(one)) == (True, [])


EVENTS: dict[str, Callable[[OneCall], Callable[[], Any]]] = {
    "joined": lambda one: lambda: seen_by_livekit(one),
    "left": lambda one: left(one),
    "canceled": lambda one: one.cancel,
}


@pytest.mark.parametrize("moment", ["during the dial", "at the last moment"])
@pytest.mark.parametrize("what", EVENTS)
def test_a_dial_of_which_anything_is_known_is_not_repeated(one: OneCall, what: str, moment: str) -> None:
    fail(one, UNSENT)
    if moment == "during the dial":
        one.before(one.livekit, "dial", EVENTS[what](one))
    else:
        one.before(one.calls, "unfence", EVENTS[what](one))
    dial(one)
    assert one.call.ended
    assert (one.cleared, sent(one), one.counted["DialsUnfenced"]) == (True, [], 0)


def test_a_dial_that_another_process_has_ended_is_not_repeated(one: OneCall) -> None:
    fail(one, UNSENT)

    def ended() -> None:
        one.calls.end(one.call, Outcome("failed", "outcome_unknown"), NOW, NOW)

    one.before(one.calls, "unfence", ended)
    dial(one)
    assert (one.end, one.cleared, sent(one)) == (("failed", "outcome_unknown"), False, [])


# ── the rules of the workspace ──────────────────────────────────────────────────────────────────────

SECOND_READ = 2  # Of the limits: before the lease, and before the fence.
HOUR = 3_600_000


def policy(one: OneCall, **rules: Any) -> None:
    policies = {"default": Policy("default", **rules)}
    one.workspaces.put(dataclasses.replace(WORKSPACE, policies=policies))


def opt_out(one: OneCall, scope: str = "all") -> None:
    one.numbers.suppress("demo", CALL.to, Suppression(scope, "asked", one.now), one.now)


def ring_of_another(one: OneCall, call_id: str = "b" * 24, at: int = NOW) -> None:
    """The fence of another call to the number."""
    other = dataclasses.replace(CALL, call_id=call_id, lease_id="other", lease_until_ms=at + 9_000)
    one.calls.create(other)
    record = one.numbers.get("demo", CALL.to)
    write = ring_write("numbers", record, call_id, counted=True, now_ms=at)
    assert one.calls.fence(other, "RM_2", None, [], write, f"{call_id}-{at}", at, lambda: True).won


def rings(one: OneCall) -> dict[str, int]:
    return one.numbers.get("demo", CALL.to).rings


def wait_until(one: OneCall, why: str, at: int, attempts: int = 0) -> None:
    """The call waits in the line at the turn of that time."""
    in_line(one, why, attempts, turn=f"{at:013}#{NOW}#{CALL_ID}")


def window(opens: int, closes: int) -> dict[str, Any]:
    """A window in UTC that opens and closes at these minutes after NOW, which is 08:01 there."""
    start = NOW // 60_000 % 1440
    return {"zone": "Etc/UTC", "windows": (Window(frozenset(range(7)), start + opens, start + closes),)}


@pytest.mark.parametrize("scope", ["all", "default"])
def test_a_suppressed_number_does_not_ring(one: OneCall, scope: str) -> None:
    one.place()
    opt_out(one, scope)
    assert dial(one) == []
    assert one.end == ("failed", "suppressed")
    assert not one.call.end_event["retryable"]
    assert one.cleared


def test_a_suppression_of_another_purpose_does_not_keep_a_call_from_ringing(one: OneCall) -> None:
    one.place()
    opt_out(one, "sales")
    assert dial(one) == DIALED


MOMENTS: dict[str, Callable[[OneCall], tuple[Any, str]]] = {
    "after the first decision": lambda one: (one.calls, "take_lease"),
    "while the agent is awaited": lambda one: (one.livekit, "view_room"),
    "before the second decision": lambda one: (one.limits, "reserve_trunk"),
    "between the read and the fence": lambda one: (one.calls, "fence"),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("moment", MOMENTS)
def test_after_an_opt_out_nothing_rings_however_late_it_comes(one: OneCall, moment: str, known: bool) -> None:
    """known: there is a record of the number already."""
    one.place()
    if known:
        opt_out(one, "sales")
    one.before(*MOMENTS[moment](one), lambda: opt_out(one))
    assert "dial" not in dial(one)
    assert one.end == ("failed", "suppressed")
    assert [entry["type"] for entry in one.call.events] == ["call.queued", "call.ended"]
    assert (one.cleared, one.livekit.asked[-1], sent(one)) == (True, "delete_room", [])


def test_a_policy_that_is_removed_at_the_last_moment_lets_nothing_ring(one: OneCall) -> None:
    sales = dataclasses.replace(WORKSPACE, policies={"sales": Policy("sales")})
    one.workspaces.put(sales)
    one.place(purpose="sales")
    one.after(one.limits, "reserve_trunk", lambda: one.workspaces.put(WORKSPACE))
    assert "dial" not in dial(one)
    assert (one.end, one.cleared) == (("failed", "not_allowed"), True)


@pytest.mark.parametrize(
    "changes",
    [
        {"disabled": True},
        {"allowed_calling_codes": frozenset()},
        {"policies": {"default": Policy("default", consent_required=True)}},
    ],
    ids=["disabled", "country", "consent"],
)
def test_a_workspace_that_does_not_allow_a_call_any_more_at_the_last_moment_ends_it(
    one: OneCall, changes: dict[str, Any]
) -> None:
    one.place()
    changed = dataclasses.replace(WORKSPACE, **changes)
    one.after(one.limits, "reserve_trunk", lambda: one.workspaces.put(changed))
    assert dial(one) == [*DIALED[:2], "delete_room"]
    assert (one.end, one.cleared) == (("failed", "not_allowed"), True)


@pytest.mark.parametrize("read", [1, SECOND_READ])
def test_a_number_whose_record_cannot_be_read_does_not_ring(one: OneCall, read: int) -> None:
    one.place()

    def malformed() -> None:
        opt_out(one)
        del one.dynamodb.table("numbers")[f"demo#{CALL.to}",]["suppressed"]["all"]["reason"]

    one.before(one.limits, "standing", malformed, at=read)
    with pytest.raises(StoreError, match="cannot be read"):
        dial(one)
    assert "dial" not in one.livekit.asked
    assert one.call.status == "queued"


@pytest.mark.parametrize("late", [False, True])
def test_while_the_marker_is_missing_nothing_rings(one: OneCall, late: bool) -> None:
    """A table that was lost must not read as if there were no suppressions."""
    one.place()
    lose = one.dynamodb.table("numbers").clear
    if late:
        one.after(one.limits, "reserve_trunk", lose)
    else:
        lose()
    assert dial(one) == ([*DIALED[:2], "delete_room"] if late else [])
    in_line(one, "paused", attempts=int(late))


# ── scheduled_at ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("early", "dials"), [(5_000, True), (5_001, False)])
def test_a_delayed_message_may_come_a_little_early(one: OneCall, early: int, dials: bool) -> None:
    """SQS counts whole seconds. A message that is earlier is another's: its own comes yet."""
    before = one.place(scheduled_at_ms=NOW + early, wait_until_ms=NOW + early, waiting_for="scheduled_at")
    assert dial(one) == (DIALED if dials else [])
    assert sent(one) == []
    if dials:
        assert one.call.dialed_at_ms == NOW + early
    else:
        assert (one.call, one.slept) == (before, [])


def test_a_call_that_is_not_yet_to_ring_waits_for_its_time(one: OneCall) -> None:
    """Its message came although its record says nothing of a wait."""
    one.place(scheduled_at_ms=NOW + HOUR)
    assert dial(one) == []
    wait_until(one, "scheduled_at", NOW + HOUR)


def test_a_call_whose_time_is_moved_before_its_fence_rings_at_the_new_one(one: OneCall) -> None:
    """By another process, between the decision and the fence."""
    one.place()

    def move() -> None:
        item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
        item["scheduledAt"] = NOW + HOUR

    one.before(one.calls, "fence", move)
    assert dial(one) == [*DIALED[:2], "delete_room"]
    wait_until(one, "scheduled_at", NOW + HOUR, attempts=1)
    assert one.limits.active_calls("demo") == frozenset()


def test_a_call_whose_deadline_is_moved_meanwhile_expires_at_the_new_one(one: OneCall) -> None:
    one.place()

    def move() -> None:
        item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
        item["callExpiresAt"] = NOW

    one.before(one.calls, "fence", move)
    assert dial(one) == [*DIALED[:2], "delete_room"]
    assert one.end == ("expired", "expired")


@pytest.mark.parametrize(("late", "dials"), [(-1, True), (0, False)])
def test_a_deadline_that_passes_while_the_agent_is_awaited(one: OneCall, late: int, dials: bool) -> None:
    one.place(expires_at_ms=NOW + 9_000)
    one.after(one.livekit, "view_room", one.pass_to(NOW + 9_000 + late))
    assert dial(one) == (DIALED if dials else [*DIALED[:2], "delete_room"])
    if not dials:
        assert (one.end, one.cleared) == (("expired", "expired"), True)


def test_a_clients_deadline_counts_paused_time(one: OneCall) -> None:
    """It is a time of day; the time in the queue is not."""
    one.place(created_at=iso(NOW - 60_000), expires_at_ms=NOW)
    one.limits.pause(NOW - 50_000)
    one.limits.resume(NOW - 10_000)
    dial(one)
    assert one.end == ("expired", "expired")


@pytest.mark.parametrize(("late", "dials"), [(0, True), (1, False)])
def test_a_deadline_that_passes_between_the_fence_and_the_dial(one: OneCall, late: int, dials: bool) -> None:
    one.place(expires_at_ms=NOW + 9_000)
    one.after(one.calls, "fence", one.pass_to(NOW + 9_000 + late))
    assert ("dial" in dial(one)) is dials


# ── calling windows ─────────────────────────────────────────────────────────────────────────────────


def test_a_call_outside_its_window_waits_until_it_opens(one: OneCall) -> None:
    policy(one, **window(60, 120))
    one.place()
    assert dial(one) == []
    wait_until(one, "calling_window", NOW + HOUR)
    assert one.requests == [*READS, "update_item"]


def test_a_window_that_closes_while_the_agent_is_awaited(one: OneCall) -> None:
    """The ring of 40 s would end after it: the agent does not wait with the call."""
    policy(one, **window(-60, 1))
    one.place()
    one.after(one.livekit, "view_room", one.pass_to(NOW + 20_001))
    assert dial(one) == [*DIALED[:2], "delete_room"]
    tomorrow = NOW + 24 * HOUR - HOUR
    wait_until(one, "calling_window", tomorrow, attempts=1)
    assert one.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize(("now", "dials"), [(NOW + 17_000, True), (NOW + 17_001, False)])
def test_a_ring_ends_in_its_window_though_the_fence_takes_long(one: OneCall, now: int, dials: bool) -> None:
    """Decided 9 s before; nothing is dialled that would ring beyond the window's end."""
    policy(one, caps=(Cap(3, 3600),), **window(-60, 1))
    one.place()
    one.after(one.livekit, "view_room", one.pass_to(NOW + 15_000))
    one.after(one.calls, "fence", one.pass_to(now))
    asked = dial(one)
    assert asked == (DIALED if dials else [*DIALED[:2], "delete_room"])
    if dials:
        assert one.call.status == "in_progress"
        assert set(rings(one)) == {CALL_ID}
        return
    waits(one, 2, attempts=1)
    assert (rings(one), one.counted["DialsUnfenced"]) == ({}, 1)
    assert [entry["type"] for entry in one.call.events] == ["call.queued", "call.dialing", "call.queued"]


def test_a_window_that_never_opens_keeps_its_call_until_its_deadline(one: OneCall) -> None:
    """At a turn that has come it would be admitted again and again."""
    policy(one, zone="Etc/UTC", windows=(Window(frozenset(range(7)), 0, 1),))
    one.place(ring_timeout_seconds=61)
    dial(one)
    wait_until(one, "calling_window", CALL.queue_deadline_ms)


# ── how old a decision may be ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("late", "dials"), [(10_000, True), (10_001, False)])
def test_a_decision_is_good_for_ten_seconds(one: OneCall, late: int, dials: bool) -> None:
    policy(one, min_gap_seconds=60)
    one.place()
    one.after(one.calls, "fence", one.pass_to(NOW + late))
    assert dial(one) == (DIALED if dials else [*DIALED[:2], "delete_room"])
    if not dials:
        waits(one, 2, attempts=1)
        assert rings(one) == {}


def test_a_call_that_is_canceled_before_it_is_put_back_ends(one: OneCall) -> None:
    one.place()
    one.after(one.calls, "fence", one.pass_to(NOW + 10_001))
    one.before(one.calls, "unfence", one.cancel)
    assert "dial" not in dial(one)
    assert (one.end, sent(one)) == (("canceled", "canceled_by_api"), [])


def test_a_ring_that_cannot_be_forgotten_does_not_hold_up_its_call(
    one: OneCall, caplog: pytest.LogCaptureFixture
) -> None:
    policy(one, min_gap_seconds=60)
    one.place()
    one.after(one.calls, "fence", one.pass_to(NOW + 10_001))

    def broken() -> None:
        raise StoreError("throttled")

    one.before(one.numbers, "forget_ring", broken)
    dial(one)
    waits(one, 2, attempts=1)
    assert [line["call_id"] for line in logged(caplog, "ring not forgotten")] == [CALL_ID]
    # Its own ring does not count.
    one.now, one.livekit.asked = one.call.wait_until_ms, []
    assert dial(one)[-1] == "dial"


def test_a_dial_that_rang_nothing_does_not_count_for_the_number(one: OneCall) -> None:
    policy(one, min_gap_seconds=60)
    fail(one, UNSENT)
    dial(one)
    assert (one.call.status, rings(one)) == ("queued", {})


# ── frequency ───────────────────────────────────────────────────────────────────────────────────────


def test_a_number_that_has_rung_waits_for_its_time(one: OneCall) -> None:
    policy(one, min_gap_seconds=3600)
    ring_of_another(one, at=NOW - 60_000)
    other_waits(one)
    place_admitted(one)
    assert dial(one, slots_item=0) == []
    wait_until(one, "frequency", NOW + HOUR - 60_000)
    assert admits(one), "its slot is for the next"


def test_of_a_newcomer_that_may_not_ring_yet_no_other_call_is_admitted(one: OneCall) -> None:
    policy(one, min_gap_seconds=3600)
    ring_of_another(one)
    other_waits(one)
    one.place()
    dial(one)
    assert (one.call.waiting_for, sent(one)) == ("frequency", [])


def test_a_number_that_rings_while_the_agent_is_awaited_frees_slot_and_room(one: OneCall) -> None:
    policy(one, min_gap_seconds=3600)
    one.place()
    one.before(one.limits, "reserve_trunk", lambda: ring_of_another(one))
    assert dial(one) == [*DIALED[:2], "delete_room"]
    wait_until(one, "frequency", NOW + HOUR, attempts=1)
    assert one.limits.active_calls("demo") == frozenset()


def test_the_slot_of_a_number_that_rings_meanwhile_is_for_the_next(one: OneCall) -> None:
    policy(one, min_gap_seconds=3600)
    one.place()

    def others_wait() -> None:
        ring_of_another(one)
        other_waits(one)
        one.limits.note_crowded("demo", 0, NOW + 60_000, NOW)

    one.before(one.limits, "reserve_trunk", others_wait)
    dial(one)
    wait_until(one, "frequency", NOW + HOUR, attempts=1)
    assert admits(one)


@pytest.mark.parametrize(("count", "dials"), [(1, False), (2, True)])
def test_a_ring_between_the_read_and_the_fence_counts(one: OneCall, count: int, dials: bool) -> None:
    policy(one, caps=(Cap(count, 3600),))
    one.place()
    one.before(one.calls, "fence", lambda: ring_of_another(one))
    assert ("dial" in dial(one)) is dials
    if dials:
        # Decided anew, a moment later.
        assert rings(one) == {"b" * 24: NOW, CALL_ID: NOW + 50}
        assert one.requests.count("transact_write_items") == 3
    else:
        assert rings(one) == {"b" * 24: NOW}
        wait_until(one, "frequency", NOW + HOUR, attempts=1)


def test_a_number_that_others_write_again_and_again_makes_the_call_wait(one: OneCall) -> None:
    one.place()
    fence = one.calls.fence

    def contended(*given: Any, **named: Any) -> Any:
        scope = f"p{one.now % 9}"
        one.numbers.suppress("demo", CALL.to, Suppression(scope, "other", one.now), one.now)
        return fence(*given, **named)

    one.calls.fence = contended  # type: ignore[method-assign]
    assert dial(one) == [*DIALED[:2], "delete_room"]
    assert one.now == NOW + 2_000
    # Not at once: it would meet the same others.
    call = one.call
    assert one.now + 2_500 <= earliest_ms(call.turn or "0") <= one.now + 5_000
    in_line(one, "retry", attempts=1, turn=call.turn or "")
    assert one.requests.count("transact_write_items") == 40
    assert one.limits.active_calls("demo") == frozenset()


def test_a_copy_of_a_fence_that_is_executed_late_rings_nothing(one: OneCall) -> None:
    """The process has read the number again and decided to wait; then the call turns out to be fenced."""
    policy(one, min_gap_seconds=3600)
    one.place()
    original = one.dynamodb.transact_write_items
    late: list[Callable[[], Any]] = []

    def conflicts(**request: Any) -> Any:
        late.append(functools.partial(original, **request))
        error: Any = {
            "Error": {"Code": "TransactionCanceledException"},
            "CancellationReasons": [{"Code": "None"}, {"Code": "TransactionConflict"}],
        }
        raise ClientError(error, "TransactWriteItems")

    one.dynamodb.__dict__["transact_write_items"] = conflicts
    # Before the second decision is carried out, which is that dialling is paused.
    one.before(one.limits, "standing", lambda: one.limits.pause(NOW), at=3)
    one.before(one.livekit, "delete_room", lambda: late[0]())
    assert dial(one) == [*DIALED[:2], "delete_room"]
    assert [entry["type"] for entry in one.call.events] == ["call.queued", "call.dialing", "call.queued"]
    waits(one, 2, attempts=1)
    assert rings(one) == {}


# ── what the fence writes and the dial says ─────────────────────────────────────────────────────────


def test_the_receipt_says_what_let_it_ring(one: OneCall) -> None:
    policy(one, version=7, min_gap_seconds=60, **window(-60, 60))
    one.place()
    dial(one)
    receipt = json.loads(one.call.events[1]["gates"])
    assert [gate["name"] for gate in receipt] == [
        "workspace",
        "destination",
        "policy",
        "consent",
        "suppression",
        "calling_window",
        "frequency",
    ]
    assert all(gate["passed"] for gate in receipt)
    assert receipt[2]["detail"] == {"purpose": "default", "version": 7}
    assert receipt[4]["detail"] == {"readAt": iso(NOW)}


def test_the_token_of_a_fence_is_as_long_as_dynamodb_takes(one: OneCall) -> None:
    one.place()
    tokens: list[str] = []
    fence = one.calls.fence

    def noted(*given: Any, **named: Any) -> Any:
        tokens.append(given[5])
        if len(tokens) < 3:
            one.numbers.suppress("demo", CALL.to, Suppression(f"p{len(tokens)}", "x", NOW), NOW)
        return fence(*given, **named)

    one.calls.fence = noted  # type: ignore[method-assign]
    dial(one)
    lease = one.call.lease_id
    assert tokens == [f"{lease}-fence-{n}" for n in (1, 2, 3)]
    assert len(f"{lease}-fence-999") <= 36


@pytest.mark.parametrize("counted", [True, False])
def test_a_ring_is_stored_where_a_policy_counts_it(one: OneCall, counted: bool) -> None:
    """Of any purpose: those of the others count too."""
    policies = {"other": Policy("other", min_gap_seconds=60 if counted else 0)}
    one.workspaces.put(dataclasses.replace(WORKSPACE, policies=policies))
    one.place()
    dial(one)
    assert rings(one) == ({CALL_ID: NOW} if counted else {})


def test_tones_are_sent_after_the_answer(one: OneCall) -> None:
    one.place(dtmf="ww123#")
    dial(one)
    assert one.livekit.arguments["dial"]["dtmf"] == "ww123#"
