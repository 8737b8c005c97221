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
from tests.in_memory import CALL, CALL_ID, NOW, WORKSPACE, World

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
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(monkeypatch)
    world.livekit.views = [NO_PHONE]
    return world


def dial(world: World, since: int = NOW) -> list[str]:
    """LiveKit's requests while the call's message is worked on."""
    asyncio.run(world.dialler().dial(world.message(since)))
    return world.livekit.asked


def sent(world: World) -> list[tuple[dict[str, Any], str | None, float]]:
    return world.dial_queue.sent


def message(delay: float, **more: Any) -> tuple[dict[str, Any], str | None, float]:
    return {"callId": CALL_ID, "workspaceId": "demo", **more}, "demo", delay


def waits(world: World, seconds: float, attempts: int) -> None:
    """The call waits for `seconds` from now on, without a lease, and one message comes after that."""
    call = world.call
    assert (call.status, call.lease_id, call.lease_until_ms, call.attempts) == ("queued", None, 0, attempts)
    assert call.wait_until_ms == world.now + int(seconds * 1000)
    assert call.check_at_ms == call.wait_until_ms + 30_000
    assert sent(world) == [message(seconds)]


# ── answered ────────────────────────────────────────────────────────────────────────────────────────


def test_a_phone_that_answers(world: World) -> None:
    world.place()
    world.after(world.livekit, "dial", world.pass_to(NOW + 9_000))
    assert dial(world) == DIALED
    call = world.call
    assert (call.status, call.attempts, call.room_sid, call.dialed_at_ms) == ("in_progress", 1, "RM_1", NOW)
    assert (call.answered_at_ms, call.check_at_ms) == (NOW + 9_000, NOW + 39_000)
    assert call.lease_until_ms == LEASE_END
    assert re.fullmatch("[0-9a-f]{16}", call.lease_id or "")
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.dialing", "call.answered"]
    assert world.limits.active_calls("demo") == {CALL_ID}
    assert world.limits.next_free("ST_1") == NOW + 500
    assert (sent(world), world.slept) == ([], [0.0])
    assert world.counted == {"CallsDialed": 1, "DialDelay": 0, "CallsAnswered": 1}


def test_what_livekit_is_asked(world: World) -> None:
    world.place(dynamic_variables='{"a": 1}', metadata='{"b": 2}')
    dial(world)
    created = world.livekit.arguments["create_room"]
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
    assert world.livekit.arguments["dial"] == {
        "room": CALL.room_name,
        "identity": CALL.identity,
        "trunk_id": "ST_1",
        "to": CALL.to,
        "from_number": "+12025550100",
        "ring": 40,
        "longest": 1855,
        "timeout": 55,
    }


def test_an_agent_gets_objects_when_the_call_has_none(world: World) -> None:
    world.place()
    dial(world)
    metadata = json.loads(world.livekit.arguments["create_room"]["metadata"])
    assert (metadata["dynamicVariables"], metadata["metadata"]) == ({}, {})


def test_ring_time_and_longest_call_are_scaled_and_the_time_out_is_at_least_the_clients(world: World) -> None:
    world.durations = Durations(scale=0.5, answer_margin=1)
    world.place()
    dial(world)
    arguments = world.livekit.arguments["dial"]
    assert (arguments["ring"], arguments["timeout"], arguments["longest"]) == (20, 22, 922)
    assert world.limits.next_free("ST_1") == NOW + 250


@pytest.mark.parametrize(("per_second", "gap"), [(1, 1000), (3, 333)])
def test_a_trunk_is_given_so_many_calls_a_second(world: World, per_second: int, gap: int) -> None:
    world.workspaces.put(dataclasses.replace(WORKSPACE, calls_per_second=per_second))
    world.place()
    dial(world)
    assert world.limits.next_free("ST_1") == NOW + gap


@pytest.mark.parametrize(
    ("own", "numbers", "shown"),
    [("+12025550177", ("+12025550100",), "+12025550177"), (None, ("+1", "+2"), "+1"), (None, (), None)],
)
def test_the_number_that_is_shown(
    world: World, own: str | None, numbers: tuple[str, ...], shown: str | None
) -> None:
    world.workspaces.put(dataclasses.replace(WORKSPACE, from_numbers=numbers))
    world.place(from_number=own)
    dial(world)
    assert world.livekit.arguments["dial"]["from_number"] == shown
    assert world.call.events[1].get("from") == shown


@pytest.mark.parametrize("scale", [1, 0.5])
def test_the_first_look_at_a_short_call_is_at_its_end(world: World, scale: float) -> None:
    world.durations = Durations(scale=scale)
    world.place(max_duration_seconds=20)
    dial(world)
    assert world.call.check_at_ms == NOW + int(20_000 * scale)


def test_the_delay_of_a_dial_is_measured_from_the_first_event(world: World) -> None:
    kinds = {"call.queued": NOW - 9_000, "call.dialing": NOW - 5_000}
    events = [{"type": kind, "at": at} for kind, at in kinds.items()]
    world.place(events=(*events, {"type": "call.queued", "at": NOW - 1_000}))
    dial(world)
    assert world.counted["DialDelay"] == 9_000


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
def test_a_call_that_is_not_this_messages_is_left_alone(world: World, fields: dict[str, Any]) -> None:
    before = world.place(**fields)
    assert (dial(world), world.call, sent(world)) == ([], before, [])


@pytest.mark.parametrize(
    "fields", [{"lease_id": "dead", "lease_until_ms": NOW - 1, "attempts": 0}, {"wait_until_ms": NOW}]
)
def test_a_call_whose_lease_or_wait_is_over_is_dialled(world: World, fields: dict[str, Any]) -> None:
    world.place(**fields)
    assert dial(world) == DIALED


def test_a_lease_that_another_process_took_first_is_its_own(world: World) -> None:
    world.place()
    world.before(world.calls, "take_lease", lambda: world.calls.take_lease(CALL_ID, "other", LEASE_END, NOW))
    assert (dial(world), sent(world), world.limits.active_calls("demo")) == ([], [], frozenset())
    assert world.call.lease_id == "other"


# ── the record is missing ───────────────────────────────────────────────────────────────────────────


def test_a_record_that_comes_a_moment_later_is_dialled(world: World) -> None:
    world.before(world.calls, "get", world.place, at=5)
    assert dial(world) == DIALED
    assert world.slept[:4] == [0.2] * 4


@pytest.mark.parametrize("since", [NOW, NOW - 58_999])
def test_a_message_without_a_record_is_repeated_as_old_as_it_is(world: World, since: int) -> None:
    assert dial(world, since) == []
    assert (world.slept, sent(world)) == ([0.2] * 5, [message(2, since=since)])


def test_a_message_without_a_record_is_dropped_after_a_minute(world: World) -> None:
    assert dial(world, NOW - 59_000) == []
    assert (sent(world), world.counted) == ([], {"OrphanMessages": 1})


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
    world: World, paused_at: int, fields: dict[str, Any], extended: int
) -> None:
    before = world.place(**fields)
    world.limits.pause(paused_at)
    assert dial(world) == []
    waits(world, 30, attempts=0)
    assert world.call.queue_deadline_ms == before.queue_deadline_ms + extended
    assert world.call.paused_until_ms == (NOW + 30_000 if extended else before.paused_until_ms)


def test_a_pause_that_is_over_meanwhile_extends_nothing(world: World) -> None:
    world.place()
    world.limits.pause(NOW - 5_000)
    world.after(world.limits, "paused", world.limits.resume)
    dial(world)
    waits(world, 30, attempts=0)
    assert world.call.queue_deadline_ms == CALL.queue_deadline_ms


def test_a_call_expires_at_its_deadline_and_not_before(world: World) -> None:
    world.place(queue_deadline_ms=NOW + 1)
    assert dial(world) == DIALED


def test_a_call_at_its_deadline_expires(world: World) -> None:
    world.place(queue_deadline_ms=NOW)
    assert dial(world) == []
    assert world.end == ("expired", "expired")
    assert world.call.end_event["retryable"]
    assert world.cleared


@pytest.mark.parametrize(
    "workspace",
    [
        dataclasses.replace(WORKSPACE, workspace_id="other"),
        dataclasses.replace(WORKSPACE, disabled=True),
        dataclasses.replace(WORKSPACE, allowed_calling_codes=frozenset({"+44"})),
    ],
    ids=["gone", "disabled", "country"],
)
def test_what_a_workspace_may_not_call_any_more_ends(world: World, workspace: Any) -> None:
    world.place()
    world.dynamodb.table("workspaces").clear()
    world.workspaces.put(workspace)
    assert dial(world) == []
    assert world.end == ("failed", "not_allowed")
    assert not world.call.end_event["retryable"]
    assert world.cleared


def test_a_trunk_that_is_free_soon_is_waited_for(world: World) -> None:
    world.place()
    world.limits.reserve_trunk("ST_1", 5_000, NOW, NOW)
    assert dial(world) == DIALED
    assert (world.slept, world.call.dialed_at_ms) == ([5], NOW + 5_000)
    assert world.limits.next_free("ST_1") == NOW + 5_500


def test_a_trunk_that_is_free_later_makes_the_call_wait(world: World) -> None:
    world.place()
    world.limits.reserve_trunk("ST_1", 5_001, NOW, NOW)
    assert dial(world) == []
    waits(world, 5.001, attempts=0)


def test_a_wait_that_another_message_has_begun_sends_no_second_one(world: World) -> None:
    world.place()
    world.limits.pause(NOW)
    world.before(world.calls, "wait", lambda: world.calls.wait(CALL_ID, NOW + 1, NOW + 2, NOW))
    dial(world)
    assert (sent(world), world.call.wait_until_ms) == ([], NOW + 1)


def test_a_call_that_ended_before_its_first_wait_is_cleared_by_who_ended_it(world: World) -> None:
    world.place()
    world.limits.pause(NOW)
    world.before(world.calls, "wait", world.cancel)
    assert (dial(world), sent(world), world.cleared) == ([], [], False)


# ── the slot ────────────────────────────────────────────────────────────────────────────────────────


def full(world: World) -> None:
    for other in ("b" * 24, "c" * 24):
        world.limits.take_slot("demo", other, 2)


@pytest.mark.parametrize(
    ("age", "left", "delay"),
    [(0, 3_600_000, 7.5), (100_000, 100_000, 3.75), (100_000, 1_000, 1.5), (0, 1, 7.5)],
)
def test_a_call_without_a_slot_asks_the_more_often_the_less_time_it_has(
    world: World, age: int, left: int, delay: float
) -> None:
    full(world)
    events = ({"type": "call.queued", "at": at} for at in (NOW - age, NOW))
    world.place(events=tuple(events), queue_deadline_ms=NOW + left)
    assert dial(world) == []
    waits(world, delay, attempts=0)
    asks_until = {0: 10_000, 1: 6_000}.get(round(7.5 - delay) // 3, 4_000)
    assert not world.limits.take_slot("demo", "d" * 24, 9, waited=False, now=NOW + asks_until)
    assert world.limits.take_slot("demo", "d" * 24, 9, waited=False, now=NOW + asks_until + 1)


@pytest.mark.parametrize(
    ("waited_until", "until", "takes"),
    [(0, NOW, False), (0, NOW - 1, True), (NOW, NOW + 5_000, True), (1, NOW + 5_000, True)],
)
def test_a_newcomer_takes_no_slot_while_others_wait(
    world: World, waited_until: int, until: int, takes: bool
) -> None:
    world.limits.note_waiting("demo", until)
    world.place(wait_until_ms=waited_until)
    assert dial(world) == (DIALED if takes else [])


def test_a_call_that_waited_may_not_exceed_the_limit(world: World) -> None:
    full(world)
    world.place(wait_until_ms=NOW)
    assert dial(world) == []


def test_a_call_that_ended_while_it_asked_for_a_slot_is_cleared(world: World) -> None:
    """It has this process's lease, so no other clears it before the lease's end."""
    full(world)
    world.place()
    world.before(world.calls, "wait", world.cancel)
    dial(world)
    assert (world.cleared, sent(world)) == (True, [])


# ── a lease that is over ────────────────────────────────────────────────────────────────────────────


STALLS: dict[str, Callable[[World], tuple[Any, str]]] = {
    "lease": lambda world: (world.calls, "take_lease"),
    "slot": lambda world: (world.limits, "take_slot"),
    "agent": lambda world: (world.livekit, "view_room"),
    "fence": lambda world: (world.calls, "fence"),
    "dial": lambda world: (world.livekit, "dial"),
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
    world: World, stall: str, asked: list[str], status: str, error: LiveKitError | None
) -> None:
    world.place()
    if error is not None:
        world.livekit.fail["dial"] = error
    world.after(*STALLS[stall](world), world.pass_to(LEASE_END))
    assert dial(world) == asked
    assert (world.call.status, sent(world)) == (status, [])
    assert (CALL_ID in world.limits.active_calls("demo")) is (stall != "lease")


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
    world: World, stall: str, asked: list[str], status: str
) -> None:
    world.place()
    world.after(*STALLS[stall](world), world.pass_to(LEASE_END - 1))
    assert dial(world) == asked
    assert world.call.status == status


# ── room and agent ──────────────────────────────────────────────────────────────────────────────────


def test_the_room_of_an_earlier_attempt_is_deleted_first(world: World) -> None:
    world.place(attempts=1)
    assert dial(world) == ["delete_room", *DIALED]


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
    world: World, request_: str, error: LiveKitError, fault: int
) -> None:
    world.place()
    world.livekit.views = [error]
    if request_ == "create_room":
        world.livekit.fail[request_] = error
    assert dial(world) == DIALED[: 1 if request_ == "create_room" else 2]
    waits(world, 3.75, attempts=1)
    assert world.counted["ConfigurationFaults"] == fault
    assert world.call.queue_deadline_ms == CALL.queue_deadline_ms


@pytest.mark.parametrize(("before", "delay"), [(1, 7.5), (2, 15), (3, 30)])
def test_attempts_are_ever_further_apart(world: World, before: int, delay: float) -> None:
    world.place(attempts=before)
    world.livekit.fail["create_room"] = INTERNAL
    dial(world)
    waits(world, delay, attempts=before + 1)


@pytest.mark.parametrize("before", [4, 5])
def test_the_fifth_attempt_is_the_last(world: World, before: int) -> None:
    world.place(attempts=before)
    world.livekit.fail["create_room"] = INTERNAL
    dial(world)
    assert world.end == ("failed", "livekit_unavailable")
    assert world.call.end_event["retryable"]
    assert (world.cleared, sent(world)) == (True, [])


def test_a_call_whose_room_cannot_be_deleted_stays_due_without_a_slot(world: World) -> None:
    world.place(attempts=4)
    world.livekit.fail["delete_room"] = INTERNAL
    dial(world)
    assert world.end == ("failed", "livekit_unavailable")
    assert (world.limits.active_calls("demo"), world.cleared) == (frozenset(), False)


def test_an_agent_is_looked_for_ever_less_often(world: World) -> None:
    world.place()
    world.livekit.views = [*[EMPTY] * 6, NO_PHONE]
    dial(world)
    assert world.slept[:6] == pytest.approx([0.5, 0.75, 1.125, 1.6875, 2, 2])
    assert world.call.status == "in_progress"


def test_an_agent_that_does_not_come_ends_the_call_after_twenty_seconds(world: World) -> None:
    world.place()
    world.livekit.views = [EMPTY]
    world.after(world.calls, "take_lease", world.pass_to(NOW + 1_000))
    asked = dial(world)
    assert 20 <= sum(world.slept) < 22
    assert (asked[-1], asked.count("dial"), asked.count("delete_lost_dispatches")) == ("delete_room", 0, 3)
    assert world.end == ("failed", "agent_unavailable")
    assert world.call.end_event["retryable"]
    assert world.cleared


def clocked_agent(world: World, *moments: int) -> None:
    """Looks for the agent happen at these milliseconds after the first; then the agent is there."""
    world.livekit.views = [*[EMPTY] * len(moments), NO_PHONE]
    for place, moment in enumerate(moments, start=1):
        world.before(world.livekit, "view_room", world.pass_to(NOW + moment), at=place)


@pytest.mark.parametrize(("moment", "status"), [(19_999, "in_progress"), (20_000, "failed")])
def test_the_last_moment_of_an_agent(world: World, moment: int, status: str) -> None:
    world.place()
    clocked_agent(world, moment)
    dial(world)
    assert world.call.status == status


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize(
    ("moments", "times"), [([4_999], 0), ([5_000], 1), ([5_000, 9_999], 1), ([5_000, 10_000], 2)]
)
def test_a_lost_dispatch_is_made_again_every_five_seconds(
    world: World, lost: bool, moments: list[int], times: int
) -> None:
    world.place()
    world.livekit.dispatches_lost = lost
    clocked_agent(world, *moments)
    asked = dial(world)
    assert asked.count("delete_lost_dispatches") == times
    assert asked.count("dispatch_agent") == world.counted["AgentsDispatchedAgain"] == times * lost
    assert world.call.status == "in_progress"
    if times and lost:
        created, again = (world.livekit.arguments[method] for method in ("create_room", "dispatch_agent"))
        assert again == {"room": CALL.room_name, "agent": "agent", "metadata": created["metadata"]}


@pytest.mark.parametrize(("now", "times"), [(LEASE_END, 0), (LEASE_END - 1, 1)])
def test_no_agent_is_dispatched_after_the_lease(world: World, now: int, times: int) -> None:
    world.place()
    world.livekit.dispatches_lost = True
    clocked_agent(world, 5_000)
    world.after(world.livekit, "delete_lost_dispatches", world.pass_to(now))
    assert dial(world).count("dispatch_agent") == times
    assert world.end is None


def test_a_call_that_is_canceled_while_its_agent_is_awaited_is_cleared_at_once(world: World) -> None:
    world.place()
    world.livekit.views = [EMPTY]
    world.before(world.livekit, "view_room", world.cancel, at=2)
    assert dial(world) == ["create_room", "view_room", "view_room", "delete_room"]
    assert (world.end, world.cleared) == (("canceled", "canceled_by_api"), True)


# ── pacing, the switch and the fence ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("seconds", "dials"), [(65.0, True), (64.999, False)])
def test_a_dial_needs_time_for_the_ring_and_its_writes(world: World, seconds: float, dials: bool) -> None:
    """A ring of 40 s, 15 s for LiveKit's answer, 10 s for the writes."""
    world.place()
    world.seconds = seconds
    assert dial(world) == (DIALED if dials else [*DIALED[:2], "delete_room"])
    if not dials:
        waits(world, 2, attempts=1)
        assert world.limits.next_free("ST_1") == 0
        assert world.counted == {}


@pytest.mark.parametrize(("free_in", "waits_for"), [(4_000, None), (4_001, 4.001)])
def test_a_trunk_that_is_free_too_late_for_this_process_is_not_taken(
    world: World, free_in: int, waits_for: float | None
) -> None:
    world.place()
    world.seconds = 69
    world.after(world.livekit, "create_room", lambda: world.limits.reserve_trunk("ST_1", free_in, NOW, NOW))
    asked = dial(world)
    if waits_for is None:
        assert (asked, world.call.dialed_at_ms) == (DIALED, NOW + free_in)
    else:
        assert asked == [*DIALED[:2], "delete_room"]
        waits(world, waits_for, attempts=1)
        assert world.limits.next_free("ST_1") == NOW + free_in


@pytest.mark.parametrize("reason", ["no slot", "no time"])
def test_a_wait_for_anything_else_extends_nothing(world: World, reason: str) -> None:
    world.place()
    if reason == "no slot":
        full(world)
    world.seconds = 64
    world.after(world.calls, "take_lease", lambda: world.limits.pause(NOW))
    dial(world)
    assert world.call.wait_until_ms > NOW
    assert world.call.queue_deadline_ms == CALL.queue_deadline_ms


def test_a_switch_that_is_set_at_the_last_moment_stops_the_dial(world: World) -> None:
    world.place()
    world.after(world.limits, "reserve_trunk", lambda: world.limits.pause(NOW))
    assert dial(world) == [*DIALED[:2], "delete_room"]
    waits(world, 30, attempts=1)
    assert world.call.queue_deadline_ms == CALL.queue_deadline_ms + 30_000
    assert world.limits.active_calls("demo") == {CALL_ID}


@pytest.mark.parametrize("now", [LEASE_END, LEASE_END - 1])
def test_a_dial_that_is_stopped_after_its_lease_deletes_nothing(world: World, now: int) -> None:
    world.place()
    world.after(world.limits, "reserve_trunk", lambda: world.limits.pause(NOW))
    world.before(world.limits, "paused", world.pass_to(now), at=2)
    asked = dial(world)
    over = now == LEASE_END
    assert (asked, len(sent(world))) == (DIALED[:2] if over else [*DIALED[:2], "delete_room"], not over)


def test_a_call_that_is_canceled_before_its_fence_is_cleared_and_does_not_ring(world: World) -> None:
    world.place()
    world.before(world.calls, "fence", world.cancel)
    assert dial(world) == [*DIALED[:2], "delete_room"]
    assert (world.end, world.cleared) == (("canceled", "canceled_by_api"), True)
    assert world.counted == {}


def test_a_call_that_is_canceled_before_its_fence_is_not_cleared_after_the_lease(world: World) -> None:
    world.place()
    world.before(world.calls, "fence", world.cancel)
    world.after(world.calls, "fence", world.pass_to(LEASE_END))
    assert (dial(world), world.cleared) == (DIALED[:2], False)


def test_a_fence_after_the_lease_is_lost(world: World) -> None:
    world.place()
    world.before(world.livekit, "view_room", lambda: world.calls.take_lease(CALL_ID, "x", NOW, LEASE_END + 1))
    assert dial(world) == DIALED[:2]
    assert (world.call.status, world.end, sent(world)) == ("queued", None, [])


# ── the answer ──────────────────────────────────────────────────────────────────────────────────────


def seen_by_livekit(world: World) -> None:
    """LiveKit's event that the phone joined the room."""
    assert world.calls.note_joined(world.call, world.now).won


def left(world: World, **left: Any) -> Callable[[], None]:
    """LiveKit's event that the phone left the room."""

    def write() -> None:
        assert world.calls.note_left(world.call, NO_ANSWER_LEFT | left).won

    return write


def test_a_phone_that_left_before_its_answer_arrived_has_ended(world: World) -> None:
    world.place()
    world.after(world.livekit, "dial", left(world, reason="CLIENT_INITIATED", callStatus="hangup"))
    assert dial(world) == [*DIALED, "delete_room"]
    assert (world.end, world.cleared, world.counted["CallsAnswered"]) == (("completed", "hangup"), True, 0)


def test_an_agent_that_left_while_the_phone_rang_is_looked_for(world: World) -> None:
    world.place()
    world.after(world.livekit, "dial", lambda: world.calls.note_agent_left(world.call, NOW))
    dial(world)
    assert sent(world) == [message(5, agentLeft=True)]


@pytest.mark.parametrize("deleted", [True, False])
def test_a_phone_that_answers_despite_a_cancel_is_hung_up(world: World, deleted: bool) -> None:
    world.place()
    world.after(world.livekit, "dial", world.cancel)
    if not deleted:
        world.livekit.fail["delete_room"] = INTERNAL
    assert dial(world)[:4] == [*DIALED, "delete_room"]
    assert world.end == (("canceled", "canceled_by_api") if deleted else None)
    assert world.cleared is deleted


@pytest.mark.parametrize("error", [None, UNKNOWN, CANCELED])
def test_a_call_that_has_ended_meanwhile_is_not_touched(world: World, error: LiveKitError | None) -> None:
    world.place()

    def ended() -> None:
        world.calls.end(world.call, Outcome("failed", "outcome_unknown"), NOW + 60_000, NOW)

    world.after(world.livekit, "dial", ended)
    if error is not None:
        world.livekit.fail["dial"] = error
    assert [request for request in dial(world) if request != "view_room"] == ["create_room", "dial"]
    assert (world.end, world.cleared) == (("failed", "outcome_unknown"), False)


# ── an error ────────────────────────────────────────────────────────────────────────────────────────


def fail(world: World, error: LiveKitError, *views: RoomView | LiveKitError, after: int = 0) -> None:
    """The dial fails after so many milliseconds; then looks find `views`."""
    world.place()
    world.livekit.fail["dial"] = error
    world.livekit.views = [NO_PHONE, *(views or (NO_PHONE,))]
    world.after(world.livekit, "dial", lambda: world.pass_to(world.now + after)())


@pytest.mark.parametrize(
    ("error", "end", "fault"),
    [
        (BUSY, ("busy", "busy"), 0),
        (LiveKitError("permission_denied", 403, 403), ("failed", "trunk_error"), 1),
        (LiveKitError("unavailable", 503, 503), ("failed", "carrier_error"), 0),
    ],
)
def test_the_carriers_code_decides_at_once(
    world: World, error: LiveKitError, end: tuple[str, str], fault: int
) -> None:
    fail(world, error)
    assert dial(world) == [*DIALED, "delete_room"]
    assert (world.end, world.cleared) == (end, True)
    assert world.call.end_event["sipStatusCode"] == error.sip_status_code
    assert world.counted["ConfigurationFaults"] == fault


@pytest.mark.parametrize(("after", "reason"), [(38_000, "no_answer"), (37_999, "carrier_error")])
def test_a_dial_that_lasted_its_ring_time_was_not_answered(world: World, after: int, reason: str) -> None:
    fail(world, CANCELED, after=after)
    assert dial(world) == [*DIALED, "view_room", "delete_room"]
    assert world.call.end_event["reason"] == reason
    assert world.cleared


@pytest.mark.parametrize(
    ("error", "seen", "slept"),
    [(INTERNAL, False, 0), (INTERNAL, True, 10), (CANCELED, False, 10), (CANCELED, True, 10)],
)
def test_livekits_event_is_waited_for_if_there_may_be_one(
    world: World, error: LiveKitError, seen: bool, slept: int
) -> None:
    fail(world, error)
    if seen:
        world.before(world.livekit, "dial", lambda: seen_by_livekit(world))
    dial(world)
    assert world.slept[1:] == pytest.approx([0.2] * slept)
    assert world.end is not None


def test_livekits_event_decides_when_it_comes(world: World) -> None:
    fail(world, CANCELED)
    world.before(world.calls, "get", left(world, reason="ROOM_DELETED"), at=4)
    dial(world)
    assert world.end == ("failed", "removed")
    assert len(world.slept) == 3


def test_a_cancel_that_comes_while_the_event_is_awaited_decides(world: World) -> None:
    fail(world, CANCELED)
    world.before(world.calls, "get", world.cancel, at=3)
    dial(world)
    assert world.end == ("canceled", "canceled_by_api")
    assert len(world.slept) == 2


def test_a_call_that_ends_while_the_event_is_awaited_is_not_touched(world: World) -> None:
    fail(world, CANCELED)
    world.before(
        world.calls,
        "get",
        lambda: world.calls.end(world.call, Outcome("no_answer", "no_answer"), NOW, NOW),
        at=3,
    )
    assert dial(world) == [*DIALED, "view_room"]
    assert (world.end, world.cleared, len(world.slept)) == (("no_answer", "no_answer"), False, 2)


# ── the outcome is unknown ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [CANCELED, UNKNOWN, UNSENT])
def test_a_phone_that_turns_out_to_be_answered_is(world: World, error: LiveKitError) -> None:
    fail(world, error, RINGS, RINGS, TALKS)
    dial(world)
    assert world.call.status == "in_progress"
    assert world.slept[1:] == ([2] if error is CANCELED else [2, 2])


def test_a_phone_that_is_absent_for_half_a_minute_has_left(world: World) -> None:
    fail(world, UNKNOWN)
    dial(world)
    assert world.slept[1:] == [2] * 15
    assert world.end == ("failed", "outcome_unknown")
    assert world.cleared


def test_a_phone_that_was_there_is_absent_anew(world: World) -> None:
    fail(world, UNKNOWN, NO_PHONE, NO_PHONE, RINGS, UNKNOWN, NO_PHONE)
    dial(world)
    assert world.slept[1:] == [2] * 19
    assert world.end == ("failed", "outcome_unknown")


def test_a_look_that_fails_shows_nothing(world: World) -> None:
    fail(world, INTERNAL, UNKNOWN)
    dial(world)
    assert (world.call.status, world.end) == ("dialing", None)


@pytest.mark.parametrize(
    ("reason", "sleeps"), [("USER_UNAVAILABLE", 0), (ROOM_CLOSED, 15)], ids=["left", "room closed"]
)
def test_only_an_event_of_the_phone_proves_that_it_left(world: World, reason: str, sleeps: int) -> None:
    fail(world, UNKNOWN)
    world.after(world.livekit, "dial", left(world, reason=reason))
    dial(world)
    assert len(world.slept) == 1 + sleeps
    assert world.end is not None


@pytest.mark.parametrize(("seconds", "looks"), [(60, 25), (12, 1), (10.001, 1), (10, 0)])
def test_what_this_process_has_no_time_to_find_out_is_the_reconcilers(
    world: World, seconds: float, looks: int
) -> None:
    fail(world, UNKNOWN, RINGS)
    world.after(world.livekit, "dial", lambda: setattr(world, "seconds", seconds))
    asked = dial(world)
    assert len(asked) == len(DIALED) + looks
    assert (world.call.status, sent(world)) == ("dialing", [])


@pytest.mark.parametrize(("now", "looks"), [(LEASE_END, 0), (LEASE_END - 1, 1)])
def test_what_is_not_found_out_by_the_leases_end_is_the_reconcilers(world: World, now: int, looks: int) -> None:
    fail(world, INTERNAL, UNKNOWN)
    world.after(world.livekit, "dial", lambda: setattr(world, "seconds", 9999))
    world.after(world.livekit, "view_room", world.pass_to(now), at=2)
    assert len(dial(world)) == len(DIALED) + 1 + looks
    assert world.call.status == "dialing"


@pytest.mark.parametrize("there", [True, False])
def test_a_canceled_phone_that_still_rings_is_hung_up(world: World, there: bool) -> None:
    """A phone that LiveKit lists and does not find is absent."""
    fail(world, UNKNOWN, RINGS, RINGS, NO_PHONE)
    world.livekit.phone_in_room = there
    world.after(world.livekit, "dial", world.cancel)
    asked = dial(world)
    assert asked[3:7] == ["view_room", "remove_participant"] * 2
    assert len(world.slept) == 1 + (17 if there else 15)
    assert (world.end, world.cleared) == (("canceled", "canceled_by_api"), True)


def test_a_canceled_phone_that_cannot_be_hung_up_is_not_absent(world: World) -> None:
    fail(world, UNKNOWN, RINGS)
    world.livekit.fail["remove_participant"] = INTERNAL
    world.after(world.livekit, "dial", world.cancel)
    dial(world)
    assert (world.call.status, world.end) == ("dialing", None)


@pytest.mark.parametrize("error", [UNKNOWN, UNSENT, INTERNAL])
def test_a_phone_that_was_in_the_room_ends_with_an_unknown_outcome(world: World, error: LiveKitError) -> None:
    fail(world, error, RINGS, RINGS, NO_PHONE)
    dial(world)
    assert world.end == ("failed", "outcome_unknown")
    assert world.counted["DialsUnfenced"] == 0


def test_a_dial_that_livekit_gave_up_is_not_repeated_though_its_room_could_not_be_seen_at_once(
    world: World,
) -> None:
    fail(world, INTERNAL, UNKNOWN, NO_PHONE)
    dial(world)
    assert world.end == ("failed", "livekit_error")
    assert (world.counted["DialsUnfenced"], sent(world)) == (0, [])


# ── un-fenced ───────────────────────────────────────────────────────────────────────────────────────


def test_a_dial_that_rang_nothing_is_tried_again(world: World) -> None:
    fail(world, UNSENT)
    assert dial(world) == [*DIALED, *["view_room"] * 16]
    waits(world, 3.75, attempts=1)
    call = world.call
    assert (call.room_sid, call.dialed_at_ms) == (None, None)
    assert [entry["type"] for entry in call.events] == ["call.queued", "call.dialing", "call.queued"]
    assert world.counted["DialsUnfenced"] == 1
    assert world.limits.active_calls("demo") == {CALL_ID}


@pytest.mark.parametrize(("before", "again"), [(3, True), (4, False), (5, False)])
def test_a_dial_that_rang_nothing_is_tried_five_times(world: World, before: int, again: bool) -> None:
    fail(world, UNSENT)
    world.dynamodb.table("calls").clear()
    world.place(attempts=before)
    dial(world)
    if again:
        waits(world, 30, attempts=before + 1)
    else:
        assert world.end == ("failed", "livekit_unavailable")
        assert world.call.end_event["retryable"]
        assert (world.cleared, sent(world)) == (True, [])


EVENTS: dict[str, Callable[[World], Callable[[], Any]]] = {
    "joined": lambda world: lambda: seen_by_livekit(world),
    "left": lambda world: left(world),
    "canceled": lambda world: world.cancel,
}


@pytest.mark.parametrize("moment", ["during the dial", "at the last moment"])
@pytest.mark.parametrize("what", EVENTS)
def test_a_dial_of_which_anything_is_known_is_not_repeated(world: World, what: str, moment: str) -> None:
    fail(world, UNSENT)
    if moment == "during the dial":
        world.before(world.livekit, "dial", EVENTS[what](world))
    else:
        world.before(world.calls, "unfence", EVENTS[what](world))
    dial(world)
    assert world.call.ended
    assert (world.cleared, sent(world), world.counted["DialsUnfenced"]) == (True, [], 0)


def test_a_dial_that_another_process_has_ended_is_not_repeated(world: World) -> None:
    fail(world, UNSENT)

    def ended() -> None:
        world.calls.end(world.call, Outcome("failed", "outcome_unknown"), NOW, NOW)

    world.before(world.calls, "unfence", ended)
    dial(world)
    assert (world.end, world.cleared, sent(world)) == (("failed", "outcome_unknown"), False, [])
