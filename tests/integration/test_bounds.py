"""When a call ends, at the latest: the bounds that the README publishes, in production's durations."""

from __future__ import annotations

import pytest

from shared.call import Call, Outcome
from shared.ending import end_call
from shared.livekit.client import RoomView
from tests.clocked import DOWN, MINUTE, START, Clocked, RoomsInMemory
from tests.interleaving import once
from tests.system import System


@pytest.fixture
def world(system: System) -> Clocked:
    return Clocked(system)


def end_of(call: Call) -> tuple[str, str]:
    return call.status, call.events[-1]["reason"]


def minutes(call: Call, since: int = START) -> float:
    assert call.ended_at_ms is not None
    return (call.ended_at_ms - since) / MINUTE


def test_a_call_whose_messages_are_all_lost_expires_after_an_hour(world: Clocked) -> None:
    world.dial_queue.loses = True
    call_id = world.place()
    call = world.minutes_until_ended(call_id, 62)
    assert end_of(call) == ("expired", "expired")
    assert 60 <= minutes(call) <= 61
    assert call.due_shard is None


def test_a_message_is_sent_again_any_number_of_times_and_the_last_one_dials(world: Clocked) -> None:
    call_id = world.place()
    for sent in range(12):
        assert len(world.dial_queue.sent) == 1, f"after {sent} minutes"
        world.dial_queue.sent.clear()
        world.now += MINUTE
        world.reconcile()
    world.dial()
    assert world.call(call_id).status == "in_progress"
    assert world.livekit.requests["CreateSIPParticipant"] == 1


def test_a_paused_system_expires_nothing_however_long(world: Clocked) -> None:
    world.limits.pause(world.now)
    call_id = world.place(queue_deadline_ms=START + 3 * MINUTE)
    for _ in range(10):
        world.now += MINUTE
        world.reconcile()
        world.dial()
    assert world.call(call_id).status == "queued"
    world.limits.resume()
    world.now += MINUTE
    world.dial()
    assert world.call(call_id).status == "in_progress"


def test_a_call_whose_worker_died_before_the_fence_is_dialled_within_minutes(world: Clocked) -> None:
    until = START + 180_000
    call_id = world.place(lease_id="dead", lease_until_ms=until, attempts=1, check_at_ms=until)
    world.dial_queue.sent.clear()
    while world.call(call_id).status == "queued":
        world.now += MINUTE
        world.reconcile()
        world.dial()
    assert world.call(call_id).status == "in_progress"
    assert world.now - until <= 2 * MINUTE


@pytest.mark.parametrize("left", [None, "USER_REJECTED"])
def test_a_dial_whose_worker_died_ends_within_six_minutes(world: Clocked, left: str | None) -> None:
    call_id = world.place_dialing(
        phone_left={"reason": left, "callStatus": "ringing", "at": START} if left else None
    )
    call = world.minutes_until_ended(call_id, 6)
    assert end_of(call) == (("rejected", "rejected") if left else ("failed", "outcome_unknown"))
    assert world.livekit.requests.get("CreateSIPParticipant", 0) == 0


def test_a_phone_that_still_rings_is_waited_for_and_then_found_answered(world: Clocked) -> None:
    call_id = world.place_dialing(ring_timeout_seconds=60, lease_until_ms=START + 1, check_at_ms=START + 1)
    room = world.call(call_id).room_name
    for status in ("dialing", "ringing"):
        world.livekit.rooms[room] = RoomView(status, True)
        world.now += MINUTE
        world.reconcile()
        assert world.call(call_id).status == "dialing"
    world.livekit.rooms[room] = RoomView("active", True)
    world.now += MINUTE
    world.reconcile()
    assert world.call(call_id).status == "in_progress"


@pytest.mark.parametrize("canceled", [False, True])
@pytest.mark.parametrize("status", ["dialing", "ringing"])
def test_a_dial_in_an_orphan_room_ends_within_six_minutes_canceled_or_not(
    world: Clocked, status: str, canceled: bool
) -> None:
    """Worker and LiveKit crashed while it rang; LiveKit keeps listing the phone."""
    call_id = world.place_dialing()
    room = world.call(call_id).room_name
    world.livekit.rooms[room] = RoomView(status, True, joined_at_ms=START)
    world.livekit.orphans.add(room)
    if canceled:
        assert world.calls.ask_to_hang_up(world.call(call_id), "canceled_by_api", world.now).won
    call = world.minutes_until_ended(call_id, 6)
    assert end_of(call) == (("canceled", "canceled_by_api") if canceled else ("failed", "outcome_unknown"))
    assert call_id not in world.limits.active_calls("demo")
    world.now += 2 * MINUTE
    world.reconcile()
    assert world.call(call_id).due_shard is None
    assert room not in world.livekit.rooms


def test_an_answer_found_late_of_a_phone_that_has_left_ends_at_once(
    world: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = world.place_dialing(phone_left={"reason": "CLIENT_INITIATED", "callStatus": "hangup", "at": START})
    world.livekit.rooms[world.call(call_id).room_name] = RoomView("active", True)
    world.now = world.call(call_id).lease_until_ms + 1
    world.reconcile()
    assert end_of(world.call(call_id)) == ("completed", "hangup")
    assert [entry["type"] for entry in world.call(call_id).events][-2:] == ["call.answered", "call.ended"]


def test_a_dial_that_livekit_cannot_be_asked_about_ends_all_the_same(world: Clocked) -> None:
    world.livekit.down = DOWN
    call_id = world.place_dialing(max_duration_seconds=600)
    call = world.minutes_until_ended(call_id, 30)
    assert end_of(call) == ("failed", "outcome_unknown")
    assert minutes(call) <= 40 / 60 + 10 + 10


@pytest.mark.parametrize("seconds", [1, 61, 299, 331])
def test_a_call_whose_events_were_lost_ends_within_eight_minutes(world: Clocked, seconds: int) -> None:
    """Whenever between two looks the phone leaves."""
    call_id = world.place_answered()
    room = world.call(call_id).room_name
    gone_at = START + 1000 * seconds
    while not world.call(call_id).ended:
        world.now += MINUTE
        if world.now >= gone_at:
            world.livekit.rooms.pop(room, None)
        world.reconcile()
    call = world.call(call_id)
    assert end_of(call) == ("completed", "disconnected")
    assert minutes(call, gone_at) <= 8


def test_one_missing_look_ends_nothing(world: Clocked) -> None:
    call_id = world.place_answered()
    room = world.call(call_id).room_name
    view = world.livekit.rooms.pop(room)
    world.now += MINUTE
    world.reconcile()
    assert world.call(call_id).phone_missing_since_ms is not None
    world.livekit.rooms[room] = view
    world.now += MINUTE
    world.reconcile()
    assert (world.call(call_id).status, world.call(call_id).phone_missing_since_ms) == ("in_progress", None)


def test_a_call_that_talks_on_is_hung_up_at_its_limit(world: Clocked) -> None:
    call_id = world.place_answered(max_duration_seconds=900)
    call = world.minutes_until_ended(call_id, 17)
    assert end_of(call) == ("completed", "max_duration")
    assert 15 <= minutes(call) <= 17
    assert world.livekit.rooms == {}


@pytest.mark.parametrize("trouble", ["down", "keeps"])
def test_whatever_livekit_says_a_call_ends_ten_minutes_after_its_limit(world: Clocked, trouble: str) -> None:
    call_id = world.place_answered(max_duration_seconds=300)
    if trouble == "down":
        world.livekit.down = DOWN
    else:
        world.livekit.keeps.add(world.call(call_id).room_name)
    call = world.minutes_until_ended(call_id, 16)
    assert end_of(call) == ("completed", "max_duration")
    assert minutes(call) <= 5 + 10


def test_the_room_of_an_ended_call_is_deleted_as_soon_as_livekit_can_be_asked(world: Clocked) -> None:
    call_id = world.place_answered(max_duration_seconds=60)
    world.limits.take_slot("demo", call_id, 1)
    world.livekit.down = DOWN
    assert world.minutes_until_ended(call_id, 12).due_shard is not None
    assert len(world.livekit.rooms) == 1
    world.livekit.down = None
    for _ in range(2):
        world.now += MINUTE
        world.reconcile()
    assert world.call(call_id).due_shard is None
    assert world.livekit.rooms == {}
    assert world.limits.active_calls("demo") == frozenset()


def test_a_phone_that_is_left_alone_is_hung_up_within_minutes(world: Clocked) -> None:
    """The agent went while it rang: the first look comes soon after the answer."""
    call_id = world.place_answered()
    world.livekit.rooms[world.call(call_id).room_name] = RoomView("active", False)
    call = world.minutes_until_ended(call_id, 4)
    assert end_of(call) == ("completed", "agent_left")
    assert minutes(call) <= 3


def test_a_request_to_hang_up_is_repeated_until_the_phone_is_gone(world: Clocked) -> None:
    call_id = world.place_answered()
    world.livekit.keeps.add(world.call(call_id).room_name)
    world.calls.ask_to_hang_up(world.call(call_id), "canceled_by_api", world.now)
    for _ in range(3):
        world.now += MINUTE
        world.reconcile()
        assert not world.call(call_id).ended
    assert world.livekit.requests["DeleteRoom"] == 3
    world.livekit.keeps.clear()
    assert end_of(world.minutes_until_ended(call_id, 1)) == ("completed", "canceled_by_api")


def test_a_look_does_not_put_off_a_request_to_hang_up(world: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request comes while the reconciler finds everything well."""
    call_id = world.place_answered()
    rooms_present = type(world.livekit).rooms_present

    async def meanwhile(livekit: object, names: list[str]) -> object:
        monkeypatch.undo()
        world.calls.ask_to_hang_up(world.call(call_id), "canceled_by_api", world.now)
        return await rooms_present(world.livekit, names)

    monkeypatch.setattr(type(world.livekit), "rooms_present", meanwhile)
    world.now += MINUTE
    world.reconcile()
    assert not world.call(call_id).ended
    assert end_of(world.minutes_until_ended(call_id, 1)) == ("completed", "canceled_by_api")


@pytest.mark.parametrize("seconds", [30, 120])
def test_a_lease_ends_a_minute_after_the_process_that_took_it(
    world: Clocked, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    call_id = world.place()
    leases: list[int] = []
    # Between the lease and the fence.
    once(
        monkeypatch, RoomsInMemory, "create_room", before=lambda: leases.append(world.call(call_id).lease_until_ms)
    )
    world.dial(seconds)
    assert leases == [START + (seconds + 60) * 1000]


@pytest.mark.parametrize("state", ["dialing", "in_progress", "ended"])
@pytest.mark.parametrize("trouble", ["livekit is down", "the requests are spent"])
def test_a_call_that_livekit_was_not_asked_about_comes_later(world: Clocked, state: str, trouble: str) -> None:
    """Otherwise it would be first in each run, and use up the requests that others need."""
    call_id = world.place_dialing() if state == "dialing" else world.place_answered()
    if state == "ended":
        end_call(
            world.calls, world.call(call_id), Outcome("completed", "hangup"), world.durations, lambda: world.now
        )
    check_at = world.call(call_id).check_at_ms
    assert check_at is not None
    # Its lease is over by then.
    world.now = check_at + 1000
    if trouble == "livekit is down":
        world.livekit.down = DOWN
        world.reconcile()
    else:
        world.reconcile(requests_left=0)
        assert world.livekit.requests == {}
    assert world.call(call_id).check_at_ms == world.now + 30_000
    assert world.call(call_id).due_shard is not None


def test_an_ended_call_whose_lease_is_live_is_cleared_after_it(world: Clocked) -> None:
    """Its worker may still create the room and take the slot, which would stay for ever if cleared before."""
    call_id = world.place()
    until = world.now + 3 * MINUTE
    assert world.calls.take_lease(call_id, "other", until, world.now).won
    ended = end_call(
        world.calls,
        world.call(call_id),
        Outcome("canceled", "canceled_by_api"),
        world.durations,
        lambda: world.now,
    )
    assert ended is not None
    assert ended.check_at_ms == until
    # Something makes it due before.
    world.calls.postpone(ended, world.now)
    for now in (world.now, until):
        world.now = now
        world.limits.take_slot("demo", call_id, 1)
        world.livekit.rooms[ended.room_name] = RoomView(None, True)
        world.reconcile()
        assert world.call(call_id).check_at_ms == until
        assert world.call(call_id).due_shard is not None
        assert world.limits.active_calls("demo") == {call_id}
        assert world.livekit.rooms
    world.now = until + 1
    world.reconcile()
    assert world.call(call_id).due_shard is None
    assert world.limits.active_calls("demo") == frozenset()
    assert world.livekit.rooms == {}
