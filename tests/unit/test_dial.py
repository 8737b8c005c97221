"""Each branch of a dial, with the table's own conditions and what other processes do in between."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from shared.call import Outcome
from shared.call_store import ROOM_CLOSED
from shared.durations import Durations
from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.livekit.client import RoomView
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


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    one = OneCall(monkeypatch)
    one.livekit.views = [NO_PHONE]
    return one


def dial(one: OneCall, since: int = NOW) -> list[str]:
    """LiveKit's requests while the call's message is worked on."""
    asyncio.run(one.dialler().dial(one.message(since)))
    return one.livekit.asked


def sent(one: OneCall) -> list[tuple[dict[str, Any], str | None, float]]:
    return one.dial_queue.sent


def message(delay: float, **more: Any) -> tuple[dict[str, Any], str | None, float]:
    return {"callId": CALL_ID, "workspaceId": "demo", **more}, "demo", delay


def waits(one: OneCall, seconds: float, attempts: int) -> None:
    """The call waits for `seconds` from now on, without a lease, and one message comes after that."""
    call = one.call
    assert (call.status, call.lease_id, call.lease_until_ms, call.attempts) == ("queued", None, 0, attempts)
    assert call.wait_until_ms == one.now + int(seconds * 1000)
    assert call.check_at_ms == call.wait_until_ms + 30_000
    assert sent(one) == [message(seconds)]


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
    assert one.limits.next_free("ST_1") == NOW + 500
    assert (sent(one), one.slept) == ([], [0.0])
    assert one.counted == {"CallsDialed": 1, "DialDelay": 0, "CallsAnswered": 1}


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
    assert one.limits.next_free("ST_1") == NOW + 250


@pytest.mark.parametrize(("per_second", "gap"), [(1, 1000), (3, 333)])
def test_a_trunk_is_given_so_many_calls_a_second(one: OneCall, per_second: int, gap: int) -> None:
    one.workspaces.put(dataclasses.replace(WORKSPACE, calls_per_second=per_second))
    one.place()
    dial(one)
    assert one.limits.next_free("ST_1") == NOW + gap


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
        {"wait_until_ms": NOW + 1},
        # Past its deadline: what is leased or waits is not ended by a message that is not its own.
        {"lease_id": "other", "lease_until_ms": NOW, "queue_deadline_ms": NOW},
        {"wait_until_ms": NOW + 1, "queue_deadline_ms": NOW},
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


@pytest.mark.parametrize(
    ("paused_at", "fields", "extended"),
    [
        (NOW - 99_000, {}, 30_000),
        (NOW - 7_000, {"events": ({"type": "call.queued", "at": NOW - 99_000},)}, 37_000),
        (NOW - 99_000, {"events": ({"type": "call.queued", "at": NOW - 8_000},)}, 38_000),
        # Un-fenced during the pause.
        (
            NOW - 50_000,
            {"events": tuple({"type": "call.queued", "at": NOW - at} for at in (99_000, 8_000))},
            80_000,
        ),
        (NOW - 99_000, {"paused_until_ms": NOW + 10_000}, 20_000),
        (NOW - 99_000, {"paused_until_ms": NOW + 30_001}, 0),
        # Past its deadline, which the pause extends.
        (NOW - 99_000, {"queue_deadline_ms": NOW - 1}, 30_000),
    ],
)
def test_a_paused_call_waits_and_the_time_does_not_count(
    one: OneCall, paused_at: int, fields: dict[str, Any], extended: int
) -> None:
    before = one.place(**fields)
    one.limits.pause(paused_at)
    assert dial(one) == []
    waits(one, 30, attempts=0)
    assert one.call.queue_deadline_ms == before.queue_deadline_ms + extended
    assert one.call.paused_until_ms == (NOW + 30_000 if extended else before.paused_until_ms)


def test_a_pause_that_is_over_meanwhile_extends_nothing(one: OneCall) -> None:
    one.place()
    one.limits.pause(NOW - 5_000)
    one.after(one.limits, "paused", one.limits.resume)
    dial(one)
    waits(one, 30, attempts=0)
    assert one.call.queue_deadline_ms == CALL.queue_deadline_ms


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
    assert one.limits.next_free("ST_1") == NOW + 5_500


def test_a_trunk_that_is_free_later_makes_the_call_wait(one: OneCall) -> None:
    one.place()
    one.limits.reserve_trunk("ST_1", 5_001, NOW, NOW)
    assert dial(one) == []
    waits(one, 5.001, attempts=0)


def test_a_wait_that_another_message_has_begun_sends_no_second_one(one: OneCall) -> None:
    one.place()
    one.limits.pause(NOW)
    one.before(one.calls, "wait", lambda: one.calls.wait(CALL_ID, NOW + 1, NOW + 2, NOW))
    dial(one)
    assert (sent(one), one.call.wait_until_ms) == ([], NOW + 1)


def test_a_call_that_ended_before_its_first_wait_is_cleared_by_who_ended_it(one: OneCall) -> None:
    one.place()
    one.limits.pause(NOW)
    one.before(one.calls, "wait", one.cancel)
    assert (dial(one), sent(one), one.cleared) == ([], [], False)


# ── the slot ────────────────────────────────────────────────────────────────────────────────────────


def full(one: OneCall) -> None:
    for other in ("b" * 24, "c" * 24):
        one.limits.take_slot("demo", other, 2)


@pytest.mark.parametrize(
    ("age", "left", "delay"),
    [(0, 3_600_000, 7.5), (100_000, 100_000, 3.75), (100_000, 1_000, 1.5), (0, 1, 7.5)],
)
def test_a_call_without_a_slot_asks_the_more_often_the_less_time_it_has(
    one: OneCall, age: int, left: int, delay: float
) -> None:
    full(one)
    events = ({"type": "call.queued", "at": at} for at in (NOW - age, NOW))
    one.place(events=tuple(events), queue_deadline_ms=NOW + left)
    assert dial(one) == []
    waits(one, delay, attempts=0)
    asks_until = {0: 10_000, 1: 6_000}.get(round(7.5 - delay) // 3, 4_000)
    assert not one.limits.take_slot("demo", "d" * 24, 9, waited=False, now_ms=NOW + asks_until)
    assert one.limits.take_slot("demo", "d" * 24, 9, waited=False, now_ms=NOW + asks_until + 1)


@pytest.mark.parametrize(
    ("waited_until", "until", "takes"),
    [(0, NOW, False), (0, NOW - 1, True), (NOW, NOW + 5_000, True), (1, NOW + 5_000, True)],
)
def test_a_newcomer_takes_no_slot_while_others_wait(
    one: OneCall, waited_until: int, until: int, takes: bool
) -> None:
    one.limits.note_waiting("demo", until)
    one.place(wait_until_ms=waited_until)
    assert dial(one) == (DIALED if takes else [])


def test_a_call_that_waited_may_not_exceed_the_limit(one: OneCall) -> None:
    full(one)
    one.place(wait_until_ms=NOW)
    assert dial(one) == []


def test_a_call_that_ended_while_it_asked_for_a_slot_is_cleared(one: OneCall) -> None:
    """It has this process's lease, so no other clears it before the lease's end."""
    full(one)
    one.place()
    one.before(one.calls, "wait", one.cancel)
    dial(one)
    assert (one.cleared, sent(one)) == (True, [])


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
        ("fence", DIALED, "in_progress"),
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
        waits(one, 2, attempts=1)
        assert one.limits.next_free("ST_1") == 0
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
        waits(one, waits_for, attempts=1)
        assert one.limits.next_free("ST_1") == NOW + free_in


@pytest.mark.parametrize("reason", ["no slot", "no time"])
def test_a_wait_for_anything_else_extends_nothing(one: OneCall, reason: str) -> None:
    one.place()
    if reason == "no slot":
        full(one)
    one.seconds = 64
    one.after(one.calls, "take_lease", lambda: one.limits.pause(NOW))
    dial(one)
    assert one.call.wait_until_ms > NOW
    assert one.call.queue_deadline_ms == CALL.queue_deadline_ms


def test_a_switch_that_is_set_at_the_last_moment_stops_the_dial(one: OneCall) -> None:
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: one.limits.pause(NOW))
    assert dial(one) == [*DIALED[:2], "delete_room"]
    waits(one, 30, attempts=1)
    assert one.call.queue_deadline_ms == CALL.queue_deadline_ms + 30_000
    assert one.limits.active_calls("demo") == {CALL_ID}


@pytest.mark.parametrize("now", [LEASE_END, LEASE_END - 1])
def test_a_dial_that_is_stopped_after_its_lease_deletes_nothing(one: OneCall, now: int) -> None:
    one.place()
    one.after(one.limits, "reserve_trunk", lambda: one.limits.pause(NOW))
    one.before(one.limits, "paused", one.pass_to(now), at=2)
    asked = dial(one)
    over = now == LEASE_END
    assert (asked, len(sent(one))) == (DIALED[:2] if over else [*DIALED[:2], "delete_room"], not over)


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
