"""What a run of the reconciler does with a call in each state, at each of its times, and with what fails."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from reconcile_calls.reconcile import LIVEKIT_REQUESTS, RequestsSpentError, requests_of
from shared.call import Call, Outcome
from shared.call_store import Due
from shared.durations import Durations
from shared.errors import LiveKitError, StoreError
from shared.livekit.client import Presence, RoomView
from shared.table_keys import due_shard
from tests.in_memory import CALL, CALL_ID, NOW, World

GONE = RoomView(None, agent_present=True)
RINGS = RoomView("ringing", agent_present=True)
TALKS = RoomView("active", agent_present=True, joined_at=NOW - 600_000)
ALONE = dataclasses.replace(TALKS, agent_present=False)
DOWN = LiveKitError("internal", 500)
HANGUP = {"reason": "canceled_by_api", "at": NOW - 5_000}
LEFT = {"reason": "CLIENT_INITIATED", "callStatus": "hangup", "at": NOW - 5_000}

QUEUED: dict[str, Any] = {}
# Fenced ten seconds ago by a process that is dead.
DIALING = {
    "status": "dialing",
    "attempts": 1,
    "lease_id": "dead",
    "lease_until_ms": NOW - 1,
    "dialed_at_ms": NOW - 10_000,
    "room_sid": "RM_1",
}
TALKING = DIALING | {"status": "in_progress", "answered_at_ms": NOW - 600_000, "dialed_at_ms": NOW - 610_000}
ENDED = TALKING | {"status": "completed", "ended_at_ms": NOW - 60_000}
ENDED["events"] = (*CALL.events, {"type": "call.ended", "at": NOW, "status": "completed", "reason": "hangup"})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(monkeypatch)
    world.livekit.views = [GONE]
    return world


def reconcile(world: World, **changes: Any) -> dict[str, int]:
    """How often each action was taken in one run."""
    return dict(asyncio.run(world.reconciler(**changes).run()))


def place(world: World, fields: dict[str, Any], **more: Any) -> Call:
    world.limits.take_slot("demo", CALL_ID, 5)
    return world.place(**fields | more)


def looks_in(world: World, milliseconds: int) -> bool:
    """Whether the call is looked at again in exactly so long."""
    return world.call.check_at_ms == NOW + milliseconds


def none(world: World) -> bool:
    """Nothing was asked of LiveKit."""
    return world.livekit.asked == []


def other_writes(world: World) -> Any:
    """Another process changes the call: it is due at another time."""
    return world.calls.postpone(world.call, NOW - 5)


# ── what is due ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("check_at", "done"), [(NOW, {"sent_again": 1}), (NOW + 1, {})])
def test_what_is_due_is_worked_on_and_nothing_else(world: World, check_at: int, done: dict[str, int]) -> None:
    place(world, QUEUED, check_at_ms=check_at)
    assert reconcile(world) == done


@pytest.mark.parametrize("shards", [[due_shard(CALL_ID)], [0, 15]])
def test_a_run_works_on_its_own_shards(world: World, shards: list[int]) -> None:
    place(world, QUEUED)
    assert reconcile(world, shards=shards) == ({"sent_again": 1} if shards == [10] else {})


@pytest.mark.parametrize("check_at", [None, NOW + 1])
@pytest.mark.parametrize("key", ["CALL", "DELIVERY#0001"])
def test_an_index_that_is_stale_is_not_believed(world: World, key: str, check_at: int | None) -> None:
    if key == "CALL":
        place(world, QUEUED)
    else:
        world.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    item = world.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]

    def moved() -> None:
        item.pop("checkAt")
        if check_at is not None:
            item["checkAt"] = check_at

    world.before(world.calls, "read_due", moved)
    assert reconcile(world) == {}
    assert world.counted == {"DueLateness": 0}
    assert (world.dial_queue.sent, world.webhook_queue.sent) == ([], [])


def test_a_run_without_time_begins_nothing(world: World) -> None:
    place(world, QUEUED)
    assert reconcile(world, time_left=lambda: False) == {}


@pytest.mark.parametrize(("call", "delivery"), [(2_000, 7_000), (7_000, 2_000)])
def test_the_oldest_item_tells_how_late_a_run_is(world: World, call: int, delivery: int) -> None:
    place(world, QUEUED, check_at_ms=NOW - call)
    world.deliveries.create(CALL_ID, "demo", 1, NOW, NOW - delivery)
    reconcile(world)
    assert world.counted["DueLateness"] == 7_000


def place_many(world: World, number: int, fields: dict[str, Any], shard: str = "a") -> None:
    for n in range(number):
        call_id = f"{shard}{n:023x}"
        world.calls.create(dataclasses.replace(CALL, **fields | {"call_id": call_id, "room_name": f"room-{n}"}))


@pytest.mark.parametrize("number", [1, 49, 50, 51, 130])
def test_many_items_are_worked_on_once_each(world: World, number: int) -> None:
    place_many(world, number, QUEUED)
    reads: list[int] = []
    read_due = world.calls.read_due

    def noted(keys: list[tuple[str, str]]) -> Due:
        reads.append(len(keys))
        return read_due(keys)

    world.calls.read_due = noted  # type: ignore[method-assign]
    assert reconcile(world) == {"sent_again": number}
    assert sorted(reads) == sorted([50] * (number // 50) + [number % 50] * (number % 50 > 0))
    assert len({message["callId"] for message, _, _ in world.dial_queue.sent}) == number


def test_a_shard_that_cannot_be_read_does_not_hold_up_the_others(world: World) -> None:
    place_many(world, 1, QUEUED, shard="a")
    place_many(world, 1, QUEUED, shard="b")
    due = world.calls.due

    def broken(shard: int, now: int) -> Any:
        if shard == 10:
            raise StoreError("throttled")
        yield from due(shard, now)

    world.calls.due = broken  # type: ignore[method-assign]
    assert reconcile(world) == {"sent_again": 1}
    assert world.counted["ReconcileErrors"] == 1


def raises(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_a_portion_that_cannot_be_read_is_left_to_the_next_run(world: World) -> None:
    before = place(world, QUEUED)
    world.before(world.calls, "read_due", raises(StoreError("throttled")))
    assert reconcile(world) == {}
    assert (world.call, world.counted["ReconcileErrors"]) == (before, 1)


# ── queued ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("until", [NOW, NOW + 90_000])
def test_a_queued_call_with_a_lease_is_its_process_s(world: World, until: int) -> None:
    place(world, QUEUED, lease_id="live", lease_until_ms=until, queue_deadline_ms=NOW)
    assert reconcile(world) == {"postponed": 1}
    assert (world.call.check_at_ms, world.dial_queue.sent) == (until, [])


@pytest.mark.parametrize("fields", [{}, {"lease_id": "dead", "lease_until_ms": NOW - 1}])
def test_the_message_of_a_queued_call_is_repeated(world: World, fields: dict[str, Any]) -> None:
    place(world, QUEUED, **fields)
    assert reconcile(world) == {"sent_again": 1}
    assert world.dial_queue.sent == [({"callId": CALL_ID, "workspaceId": "demo"}, "demo", 0)]
    assert looks_in(world, 60_000)
    assert world.counted == {"DueLateness": 0, "DialMessagesRepeated": 1}


@pytest.mark.parametrize(("left", "done"), [(1, "sent_again"), (0, "ended"), (-1, "ended")])
def test_a_queued_call_expires_at_its_deadline(world: World, left: int, done: str) -> None:
    place(world, QUEUED, queue_deadline_ms=NOW + left)
    assert reconcile(world) == {done: 1}
    if done == "ended":
        assert world.end == ("expired", "expired")
        assert world.call.end_event["retryable"]
        assert world.cleared
        assert world.counted["CallsEndedByReconciler"] == 1
        assert world.dial_queue.sent == []


@pytest.mark.parametrize("readable", [True, False])
def test_a_queued_call_does_not_expire_while_dialling_may_be_paused(world: World, readable: bool) -> None:
    place(world, QUEUED, queue_deadline_ms=NOW)
    if readable:
        world.limits.pause(NOW)
    else:
        world.before(world.limits, "paused", raises(StoreError("throttled")))
    assert reconcile(world) == {"sent_again": 1}
    assert world.counted["ReconcileErrors"] == (0 if readable else 1)


def test_a_queued_call_that_another_process_moves_gets_no_message(world: World) -> None:
    place(world, QUEUED)
    world.before(world.calls, "postpone", lambda: other_writes(world))
    assert reconcile(world) == {"lost": 1}
    assert world.dial_queue.sent == []


def test_a_call_that_another_process_ends_is_cleared_by_it(world: World) -> None:
    place(world, QUEUED, queue_deadline_ms=NOW)
    world.before(world.calls, "end", world.cancel)
    assert reconcile(world) == {"lost": 1}
    assert (world.cleared, world.counted["CallsEndedByReconciler"]) == (False, 0)


# ── dialing ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("until", [NOW, NOW + 90_000])
def test_a_dial_under_way_is_its_process_s(world: World, until: int) -> None:
    place(world, DIALING, lease_until_ms=until)
    assert reconcile(world) == {"postponed": 1}
    assert world.call.check_at_ms == until
    assert none(world)


@pytest.mark.parametrize("lease_until", [NOW, NOW + 90_000])
def test_a_dial_under_way_that_was_canceled_is_hung_up(world: World, lease_until: int) -> None:
    place(world, DIALING, lease_until_ms=lease_until, hangup=HANGUP)
    assert reconcile(world, requests_left=1) == {"postponed": 1}
    assert world.livekit.asked == ["remove_participant"]
    assert looks_in(world, 30_000)


@pytest.mark.parametrize("hangup", [None, HANGUP], ids=["", "canceled"])
def test_a_phone_that_is_absent_on_two_looks_has_left(world: World, hangup: dict[str, Any] | None) -> None:
    place(world, DIALING, hangup=hangup)
    assert reconcile(world) == {"noted": 1}
    assert world.call.phone_missing_since_ms == NOW
    assert looks_in(world, 30_000)
    world.now = NOW + 30_000
    assert reconcile(world) == {"ended": 1}
    assert world.end == (("canceled", "canceled_by_api") if hangup else ("failed", "outcome_unknown"))
    assert world.counted["CallsEndedByReconciler"] == (0 if hangup else 1)
    assert world.cleared
    assert world.livekit.asked == ["view_room", "view_room", "delete_room"]


@pytest.mark.parametrize(("missing", "done"), [(29_999, "noted"), (30_000, "ended")])
@pytest.mark.parametrize("fields", [DIALING, TALKING], ids=["dialing", "talking"])
def test_two_looks_are_half_a_minute_apart(world: World, fields: dict[str, Any], missing: int, done: str) -> None:
    place(world, fields, phone_missing_since_ms=NOW - missing)
    assert reconcile(world) == {done: 1}
    if done == "noted":
        assert world.call.phone_missing_since_ms == NOW - missing
        assert looks_in(world, 30_000)


def test_one_look_is_enough_when_livekit_said_that_the_phone_left(world: World) -> None:
    place(world, DIALING, phone_left=LEFT | {"reason": "USER_REJECTED", "callStatus": "ringing"})
    assert reconcile(world) == {"ended": 1}
    assert world.end == ("rejected", "rejected")
    assert world.cleared


def test_a_phone_that_rings_is_let_ring(world: World) -> None:
    place(world, DIALING, phone_missing_since_ms=NOW - 20_000)
    world.livekit.views = [RINGS]
    assert reconcile(world) == {"noted": 1}
    assert world.call.phone_missing_since_ms is None
    assert (world.call.status, looks_in(world, 30_000)) == ("dialing", True)


@pytest.mark.parametrize("ago", [10_000, 600_000], ids=["just now", "long ago"])
def test_a_phone_that_has_answered_meanwhile_talks(world: World, ago: int) -> None:
    place(world, DIALING, dialed_at_ms=NOW - ago)
    world.livekit.views = [dataclasses.replace(TALKS, joined_at=NOW - ago)]
    assert reconcile(world) == {"answered": 1}
    call = world.call
    assert (call.status, call.answered_at_ms, call.events[-1].get("inferred")) == ("in_progress", NOW, True)
    assert looks_in(world, 30_000)
    assert world.counted["CallsAnswered"] == 1


def test_a_phone_that_has_answered_and_left_has_ended(world: World) -> None:
    place(world, DIALING, phone_left=LEFT)
    world.livekit.views = [TALKS]
    assert reconcile(world) == {"ended": 1}
    assert (world.end, world.cleared) == (("completed", "hangup"), True)


def test_an_answer_that_another_process_wrote_first_is_its_own(world: World) -> None:
    place(world, DIALING)
    world.livekit.views = [TALKS]
    world.before(world.calls, "answered", world.cancel)
    assert reconcile(world) == {"lost": 1}
    assert world.counted["CallsAnswered"] == 0


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_dial_has_ended_when_no_call_could_last_longer(world: World, scale: float, early: int) -> None:
    """Without a look: LiveKit has been unreachable for that long."""
    world.durations = Durations(scale=scale)
    longest = int((40 + 1800) * scale * 1000) + 450_000
    place(world, DIALING, dialed_at_ms=NOW - longest + early)
    world.livekit.views = [TALKS]
    assert reconcile(world) == ({"answered": 1} if early else {"ended": 1})
    assert world.livekit.asked == (["view_room"] if early else ["delete_room"])
    if not early:
        assert world.end == ("failed", "outcome_unknown")


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize(
    ("dialed", "joined", "seen", "status"),
    [
        # Until the ring time and LiveKit's 80 s are over it may ring.
        (-1, 0, None, "rings"),
        (0, 0, None, "absent"),
        # It joined again since: LiveKit's event had it at 5 s, or else 30 s after the dial at the latest.
        (0, 6_000, 5_999, "talks"),
        (0, 5_999, 5_000, "absent"),
        (0, 6_000, 6_999, "absent"),
        (0, 30_000, None, "absent"),
        (0, 30_999, None, "absent"),
        (0, 31_000, None, "talks"),
        (0, 31_000, 60_000, "talks"),
    ],
)
def test_a_phone_that_rings_too_long_is_a_crashed_servers(
    world: World, scale: float, dialed: int, joined: int, seen: int | None, status: str
) -> None:
    world.durations = Durations(scale=scale)
    dialed_at = NOW - int((40 * scale + 80) * 1000)
    place(
        world,
        DIALING,
        dialed_at_ms=dialed_at - dialed,
        phone_seen_at_ms=None if seen is None else dialed_at + seen,
    )
    world.livekit.views = [dataclasses.replace(RINGS, joined_at=dialed_at + joined)]
    assert reconcile(world) == ({"answered": 1} if status == "talks" else {"noted": 1})
    assert world.call.phone_missing_since_ms == (NOW if status == "absent" else None)


@pytest.mark.parametrize(
    ("view", "request_"), [(RINGS, "remove_participant"), (TALKS, "delete_room")], ids=["rings", "talks"]
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_canceled_dial_of_a_dead_process_is_hung_up(
    world: World, view: RoomView, request_: str, gone: bool
) -> None:
    place(world, DIALING, hangup=HANGUP)
    world.livekit.views = [view]
    world.livekit.phone_in_room, world.livekit.orphan = not gone, gone
    assert reconcile(world, requests_left=2) == {"noted" if gone else "postponed": 1}
    assert world.livekit.asked[:2] == ["view_room", request_]
    assert looks_in(world, 30_000)
    assert world.call.phone_missing_since_ms == (NOW if gone else None)


# ── in progress ─────────────────────────────────────────────────────────────────────────────────────

HUNG_UP = ["view_room", "delete_room", "view_room", "delete_room"]


def rooms(world: World, presence: Presence, *views: RoomView) -> None:
    world.livekit.presence[CALL.room_name] = presence
    world.livekit.views = list(views) or [GONE]


@pytest.mark.parametrize(
    ("talked", "seconds"), [(0, 300), (1_500_000, 300), (1_500_001, 299.999), (1_799_000, 1), (1_799_999, 0.001)]
)
def test_a_call_that_goes_on_is_looked_at_later_and_at_its_end(world: World, talked: int, seconds: float) -> None:
    rooms(world, "both")
    place(
        world,
        TALKING,
        answered_at_ms=NOW - talked,
        phone_missing_since_ms=NOW - 1,
        agent_missing_since_ms=NOW - 1,
    )
    assert reconcile(world) == {"alive": 1}
    assert looks_in(world, int(seconds * 1000))
    assert (world.call.phone_missing_since_ms, world.call.agent_missing_since_ms) == (None, None)
    assert world.livekit.asked == ["rooms_present"]


@pytest.mark.parametrize(
    "view", [TALKS, dataclasses.replace(ALONE, other_present=True)], ids=["agent", "another phone"]
)
def test_a_phone_that_is_not_alone_goes_on(world: World, view: RoomView) -> None:
    rooms(world, "some", view)
    place(world, TALKING, agent_missing_since_ms=NOW - 99_000)
    assert reconcile(world, requests_left=2) == {"alive": 1}
    assert world.call.agent_missing_since_ms is None


@pytest.mark.parametrize(("since", "kept"), [(None, NOW), (NOW - 29_999, NOW - 29_999)])
def test_a_phone_that_is_alone_is_looked_at_again(world: World, since: int | None, kept: int) -> None:
    rooms(world, "some", ALONE)
    place(world, TALKING, agent_missing_since_ms=since, phone_missing_since_ms=NOW - 60_000)
    assert reconcile(world) == {"noted": 1}
    assert (world.call.agent_missing_since_ms, world.call.phone_missing_since_ms) == (kept, None)
    assert looks_in(world, 30_000)


def test_a_phone_that_is_alone_on_two_looks_is_hung_up(world: World) -> None:
    rooms(world, "some", ALONE, ALONE, GONE)
    place(world, TALKING, agent_missing_since_ms=NOW - 30_000)
    assert reconcile(world) == {"ended": 1}
    assert (world.end, world.cleared) == (("completed", "agent_left"), True)
    assert world.livekit.asked == ["rooms_present", "view_room", *HUNG_UP]
    assert world.counted["CallsEndedByReconciler"] == 0


@pytest.mark.parametrize("presence", ["some", "absent"])
def test_a_phone_that_has_left_without_an_event_ends_at_the_second_look(world: World, presence: Presence) -> None:
    rooms(world, presence)
    place(world, TALKING)
    assert reconcile(world) == {"noted": 1}
    assert (world.call.phone_missing_since_ms, looks_in(world, 30_000)) == (NOW, True)
    world.now = NOW + 30_000
    assert reconcile(world) == {"ended": 1}
    assert (world.end, world.cleared) == (("completed", "disconnected"), True)
    assert world.call.end_event["inferred"]
    assert world.livekit.asked.count("view_room") == (2 if presence == "some" else 0)
    assert world.counted["CallsEndedByReconciler"] == 1


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_call_is_hung_up_at_its_longest(world: World, scale: float, early: int) -> None:
    world.durations = Durations(scale=scale)
    rooms(world, "both", TALKS, GONE)
    place(world, TALKING, answered_at_ms=NOW - int(1_800_000 * scale) + early)
    assert reconcile(world) == ({"alive": 1} if early else {"ended": 1})
    assert world.end == (None if early else ("completed", "max_duration"))


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_call_that_cannot_be_hung_up_ends_without_livekit(world: World, scale: float, early: int) -> None:
    world.durations = Durations(scale=scale)
    rooms(world, "both", TALKS)
    world.livekit.fail["rooms_present"] = DOWN
    place(world, TALKING, answered_at_ms=NOW - int(1_800_000 * scale) - 450_000 + early)
    assert reconcile(world) == ({"postponed": 1} if early else {"ended": 1})
    if early:
        assert world.call.hangup == {"reason": "max_duration", "at": NOW}
    else:
        assert world.end == ("failed", "outcome_unknown")
        assert world.call.end_event["inferred"]
        assert world.cleared


@pytest.mark.parametrize(("views", "done"), [([TALKS, GONE], "ended"), ([TALKS, TALKS], "postponed")])
def test_a_canceled_call_is_hung_up_until_its_phone_is_gone(
    world: World, views: list[RoomView], done: str
) -> None:
    rooms(world, "both", *views)
    place(world, TALKING, hangup=HANGUP)
    assert reconcile(world) == {done: 1}
    assert world.livekit.asked == ["rooms_present", *(HUNG_UP if done == "ended" else HUNG_UP[:3])]
    assert world.end == (("completed", "canceled_by_api") if done == "ended" else None)
    if done == "postponed":
        assert looks_in(world, 30_000)


def test_what_another_process_has_noted_is_kept(world: World) -> None:
    rooms(world, "absent")
    place(world, TALKING)
    world.before(world.calls, "note_missing", lambda: other_writes(world))
    assert reconcile(world) == {"lost": 1}
    assert world.call.phone_missing_since_ms is None


# ── ended ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_ended_call_without_a_room_is_cleared(world: World) -> None:
    rooms(world, "absent")
    place(world, ENDED)
    assert reconcile(world, requests_left=1) == {"cleared": 1}
    assert (world.livekit.asked, world.cleared) == (["rooms_present"], True)


@pytest.mark.parametrize("presence", ["some", "both"])
def test_an_ended_call_with_a_room_is_cleared_with_it(world: World, presence: Presence) -> None:
    rooms(world, presence)
    place(world, ENDED)
    assert reconcile(world, requests_left=2) == {"cleared": 1}
    assert (world.livekit.asked, world.cleared) == (["rooms_present", "delete_room"], True)


def test_an_orphan_room_is_looked_at_once_more(world: World) -> None:
    rooms(world, "some")
    world.livekit.orphan = True
    place(world, ENDED)
    assert reconcile(world) == {"postponed": 1}
    assert looks_in(world, 30_000)
    assert world.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize(
    ("until", "dialed", "cleared"),
    [(NOW, None, False), (NOW + 90_000, None, False), (NOW - 1, None, True), (NOW + 90_000, NOW, True)],
)
def test_a_call_that_ended_before_its_dial_is_cleared_after_its_lease(
    world: World, until: int, dialed: int | None, cleared: bool
) -> None:
    """Its process may still make the room."""
    rooms(world, "absent")
    place(world, ENDED, answered_at_ms=None, dialed_at_ms=dialed, lease_until_ms=until)
    assert reconcile(world) == ({"cleared": 1} if cleared else {"postponed": 1})
    assert world.cleared is cleared
    if not cleared:
        assert world.call.check_at_ms == until


# ── deliveries ──────────────────────────────────────────────────────────────────────────────────────


def test_the_messages_of_due_deliveries_are_repeated(world: World) -> None:
    for sequence, check_at in ((1, NOW), (2, NOW - 9), (3, NOW + 1)):
        world.deliveries.create(CALL_ID, "demo", sequence, NOW, check_at)
    assert reconcile(world) == {"deliveries_sent_again": 2}
    assert {message["sequence"] for message, _, _ in world.webhook_queue.sent} == {1, 2}
    assert world.webhook_queue.sent[0][0]["callId"] == CALL_ID
    assert {group for _, group, _ in world.webhook_queue.sent} == {"demo"}
    rows = world.deliveries.of_call(CALL_ID)
    assert [row.check_at_ms for row in rows] == [NOW + 60_000, NOW + 60_000, NOW + 1]
    assert world.counted["ReconcileErrors"] == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_delivery_whose_message_is_not_confirmed_is_an_error(world: World, number: int) -> None:
    for sequence in range(number):
        world.deliveries.create(CALL_ID, "demo", 1 + sequence, NOW, NOW)
    world.webhook_queue.unconfirmed = {0}
    assert reconcile(world) == ({"deliveries_sent_again": 1} if number == 2 else {})
    assert world.counted["ReconcileErrors"] == 1


def test_a_delivery_that_another_process_has_taken_gets_no_message(world: World) -> None:
    world.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    world.before(
        world.deliveries, "postpone", lambda: world.deliveries.take(CALL_ID, 1, "other", NOW, NOW + 45_000)
    )
    assert reconcile(world) == {}
    assert world.webhook_queue.sent == []


# ── what fails ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [DIALING, TALKING, ENDED], ids=["dialing", "talking", "ended"])
def test_a_call_that_livekit_cannot_be_asked_of_is_postponed(world: World, fields: dict[str, Any]) -> None:
    before = place(world, fields)
    world.livekit.fail = {"rooms_present": DOWN, "delete_room": DOWN}
    world.livekit.views = [DOWN]
    assert reconcile(world) == {"postponed": 1}
    assert looks_in(world, 30_000)
    assert world.call == dataclasses.replace(before, check_at_ms=NOW + 30_000)
    assert world.counted["ReconcileErrors"] == 0


@pytest.mark.parametrize("error", [StoreError("throttled"), RuntimeError("a bug")])
def test_a_call_that_fails_is_put_off_and_holds_up_no_other(world: World, error: Exception) -> None:
    place(world, QUEUED)
    place_many(world, 2, QUEUED)
    world.before(world.calls, "postpone", raises(error))
    assert reconcile(world) == {"sent_again": 2}
    assert world.counted["ReconcileErrors"] == 1
    due = [call.check_at_ms for call in world.calls.get_many([CALL_ID, *(f"a{n:023x}" for n in range(2))])]
    assert sorted(due, key=str) == [NOW + 30_000, NOW + 60_000, NOW + 60_000]


def test_a_delivery_that_fails_is_put_off(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    world.before(world.deliveries, "postpone", raises(StoreError("throttled")))
    assert reconcile(world) == {}
    logged = [record.__dict__ for record in caplog.records if record.levelname == "ERROR"]
    assert [(line["call_id"], line["sort_key"]) for line in logged] == [(CALL_ID, "DELIVERY#0001")]
    row = world.deliveries.get(CALL_ID, 1)
    assert row is not None
    assert (row.check_at_ms, world.counted["ReconcileErrors"]) == (NOW + 30_000, 1)


def test_an_item_that_cannot_even_be_put_off_is_an_error_of_its_own(world: World) -> None:
    place(world, QUEUED)
    world.before(world.calls, "postpone", raises(StoreError("throttled")))
    world.before(world.calls, "put_off", raises(StoreError("throttled")))
    assert reconcile(world) == {}
    assert world.counted["ReconcileErrors"] == 2


@pytest.mark.parametrize("key", ["CALL", "DELIVERY#0001"])
def test_an_item_that_cannot_be_read_is_put_off_by_its_key(world: World, key: str) -> None:
    place(world, QUEUED)
    world.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    item = world.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]
    del item["workspaceId"]
    done = reconcile(world)
    assert done == ({"deliveries_sent_again": 1} if key == "CALL" else {"sent_again": 1})
    item = world.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]
    assert item["checkAt"] == NOW + 300_000
    assert world.counted["UnreadableItems"] == 1


def test_a_listing_that_fails_of_itself_leaves_the_rooms_to_single_looks(world: World) -> None:
    place(world, TALKING)
    world.before(world.livekit, "rooms_present", raises(RuntimeError("a bug")))
    world.livekit.views = [TALKS]
    assert reconcile(world) == {"alive": 1}
    assert world.counted["ReconcileErrors"] == 1


# ── requests to LiveKit ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [TALKING, ENDED], ids=["talking", "ended"])
def test_rooms_are_listed_by_the_fifty(world: World, fields: dict[str, Any]) -> None:
    place_many(world, 120, fields)
    world.livekit.presence = {f"room-{n}": "both" for n in range(120)} if fields is TALKING else {}
    reconciler = world.reconciler()
    done = asyncio.run(reconciler.run())
    assert done == {"alive" if fields is TALKING else "cleared": 120}
    assert world.livekit.asked == ["rooms_present"] * 3
    assert reconciler.requests_left == LIVEKIT_REQUESTS - 3


def test_no_rooms_are_listed_for_calls_that_are_not_in_one(world: World) -> None:
    place(world, DIALING)
    world.livekit.views = [RINGS]
    reconcile(world)
    assert world.livekit.asked == ["view_room"]


@pytest.mark.parametrize(
    ("fields", "view", "requests"),
    [
        (DIALING, RINGS, 1),
        (DIALING | {"lease_until_ms": NOW, "hangup": HANGUP}, RINGS, 1),
        (DIALING | {"hangup": HANGUP}, RINGS, 2),
        (TALKING, TALKS, 2),
        (TALKING | {"hangup": HANGUP}, TALKS, 4),
        (ENDED, GONE, 2),
    ],
)
def test_a_run_that_has_spent_its_requests_leaves_the_call_due(
    world: World, fields: dict[str, Any], view: RoomView, requests: int
) -> None:
    world.livekit.presence[CALL.room_name] = "some"
    world.livekit.views = [view]
    place(world, fields)
    reconciler = world.reconciler(requests_left=requests)
    asyncio.run(reconciler.run())
    assert (len(world.livekit.asked), reconciler.requests_left) == (requests, 0)
    world.dynamodb.table("calls").clear()
    world.livekit.asked.clear()
    place(world, fields)
    assert reconcile(world, requests_left=requests - 1) == {"postponed": 1}
    assert len(world.livekit.asked) < requests
    assert looks_in(world, 30_000)


@pytest.mark.parametrize(("left", "number", "spent"), [(1, 1, True), (3, 3, True), (2, 3, False), (0, 1, False)])
def test_requests_are_spent_if_enough_are_left(world: World, left: int, number: int, spent: bool) -> None:
    reconciler = world.reconciler(requests_left=left)
    if spent:
        reconciler.spend_requests(number)
        assert reconciler.requests_left == left - number
    else:
        with pytest.raises(RequestsSpentError):
            reconciler.spend_requests(number)
        assert reconciler.requests_left == left


def test_requests_are_not_spent_if_their_answers_come_too_late(world: World) -> None:
    reconciler = world.reconciler(answers_in_time=lambda requests: requests < 3)
    reconciler.spend_requests(2)
    with pytest.raises(RequestsSpentError):
        reconciler.spend_requests(3)
    assert reconciler.requests_left == LIVEKIT_REQUESTS - 2


def test_the_runs_of_a_minute_share_livekits_requests() -> None:
    assert [requests_of(range(number)) for number in (16, 4, 1)] == [500, 125, 31]


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────

# A run in the minute of a repair.
REPAIR = NOW - NOW % 300_000


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize(("late", "repairs"), [(0, True), (59_999, True), (60_000, False), (299_999, False)])
def test_slots_are_repaired_every_fifth_minute(world: World, scale: float, late: int, repairs: bool) -> None:
    world.durations = Durations(scale=scale, slot_repair=300 * scale)
    world.limits.take_slot("demo", "c" * 24, 5)
    world.now = int(REPAIR + late * scale)
    reconcile(world)
    assert (world.limits.active_calls("demo") == frozenset()) is repairs
    assert world.counted["SlotsRepaired"] == repairs


@pytest.mark.parametrize(("shards", "repairs"), [([0], True), (range(4), True), (range(4, 8), False)])
def test_one_run_of_a_minute_repairs_slots(world: World, shards: Any, repairs: bool) -> None:
    world.limits.take_slot("demo", "c" * 24, 5)
    world.now = REPAIR
    reconcile(world, shards=shards)
    assert (world.limits.active_calls("demo") == frozenset()) is repairs


def test_only_slots_of_calls_that_have_ended_are_freed(world: World) -> None:
    place_many(world, 1, QUEUED | {"check_at_ms": NOW + 1}, shard="1")
    place_many(world, 1, ENDED | {"check_at_ms": NOW + 1}, shard="2")
    for call_id in (f"1{0:023x}", f"2{0:023x}", "3" * 24):
        world.limits.take_slot("demo", call_id, 5)
    world.limits.take_slot("other", "4" * 24, 5)
    world.now = REPAIR
    reconcile(world)
    assert world.limits.active_calls("demo") == {f"1{0:023x}"}
    assert world.limits.active_calls("other") == frozenset()
    assert world.counted["SlotsRepaired"] == 3


def test_a_repair_that_fails_fails_alone(world: World) -> None:
    place(world, QUEUED)
    world.now = REPAIR + 300_000
    world.before(world.limits, "slots", raises(StoreError("throttled")))
    assert reconcile(world) == {"sent_again": 1}
    assert world.counted["ReconcileErrors"] == 1


def test_an_end_that_is_not_this_runs_is_not_counted(world: World) -> None:
    place(world, TALKING, phone_missing_since_ms=NOW - 30_000)
    ended = Outcome("completed", "hangup")
    world.before(world.calls, "end", lambda: world.calls.end(world.call, ended, NOW + 1, NOW))
    assert reconcile(world) == {"lost": 1}
    assert (world.end, world.counted["CallsEndedByReconciler"]) == (("completed", "hangup"), 0)
