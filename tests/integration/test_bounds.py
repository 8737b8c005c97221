"""When a call ends, at the latest: the bounds that the README publishes, in production's durations."""

from __future__ import annotations

import pytest

from shared.call import Call, Outcome
from shared.ending import end_call
from shared.livekit.client import RoomView
from tests.clock import MINUTE, START
from tests.in_memory import DOWN, RoomsInMemory
from tests.interleaving import once
from tests.simulation import Simulation
from tests.system import System


@pytest.fixture
def simulation(system: System) -> Simulation:
    return Simulation(dynamodb=system.dynamodb)


def end_of(call: Call) -> tuple[str, str]:
    return call.status, call.events[-1]["reason"]


def minutes(call: Call, since: int = START) -> float:
    assert call.ended_at_ms is not None
    return (call.ended_at_ms - since) / MINUTE


def test_a_call_whose_messages_are_all_lost_expires_after_an_hour(simulation: Simulation) -> None:
    simulation.dial_queue.loses = True
    call_id = simulation.place()
    call = simulation.minutes_until_ended(call_id, 62)
    assert end_of(call) == ("expired", "expired")
    assert 60 <= minutes(call) <= 61
    assert call.due_shard is None


def test_a_message_is_sent_again_any_number_of_times_and_the_last_one_dials(simulation: Simulation) -> None:
    call_id = simulation.place()
    for sent in range(12):
        assert len(simulation.dial_queue.messages) == 1, f"after {sent} minutes"
        simulation.dial_queue.messages.clear()
        simulation.clock.now += MINUTE
        simulation.reconcile()
    simulation.dial()
    assert simulation.call(call_id).status == "in_progress"
    assert simulation.livekit.requests["CreateSIPParticipant"] == 1


def test_a_paused_system_expires_nothing_however_long(simulation: Simulation) -> None:
    simulation.limits.pause(simulation.clock.now)
    call_id = simulation.place(queue_deadline_ms=START + 3 * MINUTE)
    for _ in range(10):
        simulation.clock.now += MINUTE
        simulation.reconcile()
        simulation.dial()
    assert simulation.call(call_id).status == "queued"
    simulation.limits.resume(simulation.clock.now)
    simulation.clock.now += MINUTE
    simulation.reconcile()
    simulation.dial()
    assert simulation.call(call_id).status == "in_progress"


def test_a_call_whose_worker_died_before_the_fence_is_dialled_within_minutes(simulation: Simulation) -> None:
    until = START + 180_000
    call_id = simulation.place(lease_id="dead", lease_until_ms=until, attempts=1, check_at_ms=until)
    simulation.dial_queue.messages.clear()
    while simulation.call(call_id).status == "queued":
        simulation.clock.now += MINUTE
        simulation.reconcile()
        simulation.dial()
    assert simulation.call(call_id).status == "in_progress"
    assert simulation.clock.now - until <= 2 * MINUTE


@pytest.mark.parametrize("left", [None, "USER_REJECTED"])
def test_a_dial_whose_worker_died_ends_within_six_minutes(simulation: Simulation, left: str | None) -> None:
    call_id = simulation.place_dialing(
        phone_left={"reason": left, "callStatus": "ringing", "at": START} if left else None
    )
    call = simulation.minutes_until_ended(call_id, 6)
    assert end_of(call) == (("rejected", "rejected") if left else ("failed", "outcome_unknown"))
    assert simulation.livekit.requests.get("CreateSIPParticipant", 0) == 0


def test_a_phone_that_still_rings_is_waited_for_and_then_found_answered(simulation: Simulation) -> None:
    call_id = simulation.place_dialing(ring_timeout_seconds=60, lease_until_ms=START + 1, check_at_ms=START + 1)
    room = simulation.call(call_id).room_name
    for status in ("dialing", "ringing"):
        simulation.livekit.rooms[room] = RoomView(status, True)
        simulation.clock.now += MINUTE
        simulation.reconcile()
        assert simulation.call(call_id).status == "dialing"
    simulation.livekit.rooms[room] = RoomView("active", True)
    simulation.clock.now += MINUTE
    simulation.reconcile()
    assert simulation.call(call_id).status == "in_progress"


@pytest.mark.parametrize("canceled", [False, True])
@pytest.mark.parametrize("status", ["dialing", "ringing"])
def test_a_dial_in_an_orphan_room_ends_within_six_minutes_canceled_or_not(
    simulation: Simulation, status: str, canceled: bool
) -> None:
    """Worker and LiveKit crashed while it rang; LiveKit keeps listing the phone."""
    call_id = simulation.place_dialing()
    room = simulation.call(call_id).room_name
    simulation.livekit.rooms[room] = RoomView(status, True, joined_at_ms=START)
    simulation.livekit.orphans.add(room)
    if canceled:
        assert simulation.calls.ask_to_hang_up(
            simulation.call(call_id), "canceled_by_api", simulation.clock.now
        ).won
    call = simulation.minutes_until_ended(call_id, 6)
    assert end_of(call) == (("canceled", "canceled_by_api") if canceled else ("failed", "outcome_unknown"))
    assert call_id not in simulation.limits.active_calls("demo")
    simulation.clock.now += 2 * MINUTE
    simulation.reconcile()
    assert simulation.call(call_id).due_shard is None
    assert room not in simulation.livekit.rooms


def test_an_answer_found_late_of_a_phone_that_has_left_ends_at_once(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = simulation.place_dialing(
        phone_left={"reason": "CLIENT_INITIATED", "callStatus": "hangup", "at": START}
    )
    simulation.livekit.rooms[simulation.call(call_id).room_name] = RoomView("active", True)
    simulation.clock.now = simulation.call(call_id).lease_until_ms + 1
    simulation.reconcile()
    assert end_of(simulation.call(call_id)) == ("completed", "hangup")
    assert [entry["type"] for entry in simulation.call(call_id).events][-2:] == ["call.answered", "call.ended"]


def test_a_dial_that_livekit_cannot_be_asked_about_ends_all_the_same(simulation: Simulation) -> None:
    simulation.livekit.down = DOWN
    call_id = simulation.place_dialing(max_duration_seconds=600)
    call = simulation.minutes_until_ended(call_id, 30)
    assert end_of(call) == ("failed", "outcome_unknown")
    assert minutes(call) <= 40 / 60 + 10 + 10


@pytest.mark.parametrize("seconds", [1, 61, 299, 331])
def test_a_call_whose_events_were_lost_ends_within_eight_minutes(simulation: Simulation, seconds: int) -> None:
    """Whenever between two looks the phone leaves."""
    call_id = simulation.place_answered()
    room = simulation.call(call_id).room_name
    gone_at = START + 1000 * seconds
    while not simulation.call(call_id).ended:
        simulation.clock.now += MINUTE
        if simulation.clock.now >= gone_at:
            simulation.livekit.rooms.pop(room, None)
        simulation.reconcile()
    call = simulation.call(call_id)
    assert end_of(call) == ("completed", "disconnected")
    assert minutes(call, gone_at) <= 8


def test_one_missing_look_ends_nothing(simulation: Simulation) -> None:
    call_id = simulation.place_answered()
    room = simulation.call(call_id).room_name
    view = simulation.livekit.rooms.pop(room)
    simulation.clock.now += MINUTE
    simulation.reconcile()
    assert simulation.call(call_id).phone_missing_since_ms is not None
    simulation.livekit.rooms[room] = view
    simulation.clock.now += MINUTE
    simulation.reconcile()
    assert (simulation.call(call_id).status, simulation.call(call_id).phone_missing_since_ms) == (
        "in_progress",
        None,
    )


def test_a_call_that_talks_on_is_hung_up_at_its_limit(simulation: Simulation) -> None:
    call_id = simulation.place_answered(max_duration_seconds=900)
    call = simulation.minutes_until_ended(call_id, 17)
    assert end_of(call) == ("completed", "max_duration")
    assert 15 <= minutes(call) <= 17
    assert simulation.livekit.rooms == {}


@pytest.mark.parametrize("trouble", ["down", "keeps"])
def test_whatever_livekit_says_a_call_ends_ten_minutes_after_its_limit(
    simulation: Simulation, trouble: str
) -> None:
    call_id = simulation.place_answered(max_duration_seconds=300)
    if trouble == "down":
        simulation.livekit.down = DOWN
    else:
        simulation.livekit.keeps.add(simulation.call(call_id).room_name)
    call = simulation.minutes_until_ended(call_id, 16)
    assert end_of(call) == ("completed", "max_duration")
    assert minutes(call) <= 5 + 10


def test_the_room_of_an_ended_call_is_deleted_as_soon_as_livekit_can_be_asked(simulation: Simulation) -> None:
    call_id = simulation.place_answered(max_duration_seconds=60)
    simulation.limits.take_slot("demo", call_id, 1)
    simulation.livekit.down = DOWN
    assert simulation.minutes_until_ended(call_id, 12).due_shard is not None
    assert len(simulation.livekit.rooms) == 1
    simulation.livekit.down = None
    for _ in range(2):
        simulation.clock.now += MINUTE
        simulation.reconcile()
    assert simulation.call(call_id).due_shard is None
    assert simulation.livekit.rooms == {}
    assert simulation.limits.active_calls("demo") == frozenset()


def test_a_phone_that_is_left_alone_is_hung_up_within_minutes(simulation: Simulation) -> None:
    """The agent went while it rang: the first look comes soon after the answer."""
    call_id = simulation.place_answered()
    simulation.livekit.rooms[simulation.call(call_id).room_name] = RoomView("active", False)
    call = simulation.minutes_until_ended(call_id, 4)
    assert end_of(call) == ("completed", "agent_left")
    assert minutes(call) <= 3


def test_a_request_to_hang_up_is_repeated_until_the_phone_is_gone(simulation: Simulation) -> None:
    call_id = simulation.place_answered()
    simulation.livekit.keeps.add(simulation.call(call_id).room_name)
    simulation.calls.ask_to_hang_up(simulation.call(call_id), "canceled_by_api", simulation.clock.now)
    for _ in range(3):
        simulation.clock.now += MINUTE
        simulation.reconcile()
        assert not simulation.call(call_id).ended
    assert simulation.livekit.requests["DeleteRoom"] == 3
    simulation.livekit.keeps.clear()
    assert end_of(simulation.minutes_until_ended(call_id, 1)) == ("completed", "canceled_by_api")


def test_a_look_does_not_put_off_a_request_to_hang_up(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request comes while the reconciler finds everything well."""
    call_id = simulation.place_answered()
    rooms_present = type(simulation.livekit).rooms_present

    async def meanwhile(livekit: object, names: list[str]) -> object:
        monkeypatch.undo()
        simulation.calls.ask_to_hang_up(simulation.call(call_id), "canceled_by_api", simulation.clock.now)
        return await rooms_present(simulation.livekit, names)

    monkeypatch.setattr(type(simulation.livekit), "rooms_present", meanwhile)
    simulation.clock.now += MINUTE
    simulation.reconcile()
    assert not simulation.call(call_id).ended
    assert end_of(simulation.minutes_until_ended(call_id, 1)) == ("completed", "canceled_by_api")


@pytest.mark.parametrize("seconds", [30, 120])
def test_a_lease_ends_a_minute_after_the_process_that_took_it(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    call_id = simulation.place()
    leases: list[int] = []
    # Between the lease and the fence.
    once(
        monkeypatch,
        RoomsInMemory,
        "create_room",
        before=lambda: leases.append(simulation.call(call_id).lease_until_ms),
    )
    simulation.dial(seconds)
    assert leases == [START + (seconds + 60) * 1000]


@pytest.mark.parametrize("state", ["dialing", "in_progress", "ended"])
@pytest.mark.parametrize("trouble", ["livekit is down", "the requests are spent"])
def test_a_call_that_livekit_was_not_asked_about_comes_later(
    simulation: Simulation, state: str, trouble: str
) -> None:
    """Otherwise it would be first in each run, and use up the requests that others need."""
    call_id = simulation.place_dialing() if state == "dialing" else simulation.place_answered()
    if state == "ended":
        end_call(
            simulation.calls,
            simulation.call(call_id),
            Outcome("completed", "hangup"),
            simulation.durations,
            simulation.clock,
        )
    check_at = simulation.call(call_id).check_at_ms
    assert check_at is not None
    # Its lease is over by then.
    simulation.clock.now = check_at + 1000
    if trouble == "livekit is down":
        simulation.livekit.down = DOWN
        simulation.reconcile()
    else:
        simulation.reconcile(requests_left=0)
        assert simulation.livekit.requests == {}
    assert simulation.call(call_id).check_at_ms == simulation.clock.now + 30_000
    assert simulation.call(call_id).due_shard is not None


def test_an_ended_call_whose_lease_is_live_is_cleared_after_it(simulation: Simulation) -> None:
    """Its worker may still create the room and take the slot, which would stay for ever if cleared before."""
    call_id = simulation.place()
    until = simulation.clock.now + 3 * MINUTE
    assert simulation.calls.take_lease(call_id, "other", until, simulation.clock.now).won
    ended = end_call(
        simulation.calls,
        simulation.call(call_id),
        Outcome("canceled", "canceled_by_api"),
        simulation.durations,
        simulation.clock,
    )
    assert ended is not None
    assert ended.check_at_ms == until
    # Something makes it due before.
    simulation.calls.postpone(ended, simulation.clock.now)
    for now in (simulation.clock.now, until):
        simulation.clock.now = now
        simulation.limits.take_slot("demo", call_id, 1)
        simulation.livekit.rooms[ended.room_name] = RoomView(None, True)
        simulation.reconcile()
        assert simulation.call(call_id).check_at_ms == until
        assert simulation.call(call_id).due_shard is not None
        assert simulation.limits.active_calls("demo") == {call_id}
        assert simulation.livekit.rooms
    simulation.clock.now = until + 1
    simulation.reconcile()
    assert simulation.call(call_id).due_shard is None
    assert simulation.limits.active_calls("demo") == frozenset()
    assert simulation.livekit.rooms == {}
