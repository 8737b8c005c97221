"""What a run of the reconciler does with a call in each state, at each of its times, and with what fails."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from reconcile_calls.reconcile import EXPIRED_AT_MOST, LIVEKIT_REQUESTS, RequestsSpentError, requests_of
from shared.call import Call, Outcome, iso
from shared.call_store import Due, Write
from shared.durations import Durations
from shared.errors import LiveKitError, StoreError
from shared.livekit.client import Presence, RoomView
from shared.switch import Switch
from shared.table_keys import due_shard
from tests.one_call import CALL, CALL_ID, NOW, WORKSPACE, OneCall

GONE = RoomView(None, agent_present=True)
RINGS = RoomView("ringing", agent_present=True)
TALKS = RoomView("active", agent_present=True, joined_at_ms=NOW - 600_000)
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
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    one = OneCall(monkeypatch)
    one.livekit.views = [GONE]
    return one


def reconcile(one: OneCall, **changes: Any) -> dict[str, int]:
    """How often each action was taken in one run."""
    return dict(asyncio.run(one.reconciler(**changes).run()))


def place(one: OneCall, fields: dict[str, Any], **more: Any) -> Call:
    one.limits.take_slot("demo", CALL_ID, 5)
    return one.place(**fields | more)


def looks_in(one: OneCall, milliseconds: int) -> bool:
    """Whether the call is looked at again in exactly so long."""
    return one.call.check_at_ms == NOW + milliseconds


def none(one: OneCall) -> bool:
    """Nothing was asked of LiveKit."""
    return one.livekit.asked == []


def other_writes(one: OneCall) -> Any:
    """Another process changes the call: it is due at another time."""
    return one.calls.postpone(one.call, NOW - 5)


# ── what is due ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("check_at", "done"), [(NOW, {"sent_again": 1}), (NOW + 1, {})])
def test_what_is_due_is_worked_on_and_nothing_else(one: OneCall, check_at: int, done: dict[str, int]) -> None:
    place(one, QUEUED, check_at_ms=check_at)
    assert reconcile(one) == done


@pytest.mark.parametrize("shards", [[due_shard(CALL_ID)], [0, 15]])
def test_a_run_works_on_its_own_shards(one: OneCall, shards: list[int]) -> None:
    place(one, QUEUED)
    assert reconcile(one, shards=shards) == ({"sent_again": 1} if shards == [10] else {})


@pytest.mark.parametrize("check_at", [None, NOW + 1])
@pytest.mark.parametrize("key", ["CALL", "DELIVERY#0001"])
def test_an_index_that_is_stale_is_not_believed(one: OneCall, key: str, check_at: int | None) -> None:
    if key == "CALL":
        place(one, QUEUED)
    else:
        one.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]

    def moved() -> None:
        item.pop("checkAt")
        if check_at is not None:
            item["checkAt"] = check_at

    one.before(one.calls, "read_due", moved)
    assert reconcile(one) == {}
    assert one.counted == {"DueLateness": 0}
    assert (one.dial_queue.sent, one.webhook_queue.sent) == ([], [])


def test_a_run_without_time_begins_nothing(one: OneCall) -> None:
    place(one, QUEUED)
    assert reconcile(one, time_left=lambda: False) == {}


@pytest.mark.parametrize(("call", "delivery"), [(2_000, 7_000), (7_000, 2_000)])
def test_the_oldest_item_tells_how_late_a_run_is(one: OneCall, call: int, delivery: int) -> None:
    place(one, QUEUED, check_at_ms=NOW - call)
    one.deliveries.create(CALL_ID, "demo", 1, NOW, NOW - delivery)
    reconcile(one)
    assert one.counted["DueLateness"] == 7_000


def place_many(one: OneCall, number: int, fields: dict[str, Any], shard: str = "a") -> None:
    for n in range(number):
        call_id = f"{shard}{n:023x}"
        one.calls.create(dataclasses.replace(CALL, **fields | {"call_id": call_id, "room_name": f"room-{n}"}))


@pytest.mark.parametrize("number", [1, 49, 50, 51, 130])
def test_many_items_are_worked_on_once_each(one: OneCall, number: int) -> None:
    place_many(one, number, QUEUED)
    reads: list[int] = []
    read_due = one.calls.read_due

    def noted(keys: list[tuple[str, str]]) -> Due:
        reads.append(len(keys))
        return read_due(keys)

    one.calls.read_due = noted  # type: ignore[method-assign]
    assert reconcile(one) == {"sent_again": number}
    assert sorted(reads) == sorted([50] * (number // 50) + [number % 50] * (number % 50 > 0))
    assert len({message["callId"] for message, _, _ in one.dial_queue.sent}) == number


def test_a_shard_that_cannot_be_read_does_not_hold_up_the_others(one: OneCall) -> None:
    place_many(one, 1, QUEUED, shard="a")
    place_many(one, 1, QUEUED, shard="b")
    due = one.calls.due

    def broken(shard: int, now_ms: int) -> Any:
        if shard == 10:
            raise StoreError("throttled")
        yield from due(shard, now_ms)

    one.calls.due = broken  # type: ignore[method-assign]
    assert reconcile(one) == {"sent_again": 1}
    assert one.counted["ReconcileErrors"] == 1


def raises(error: Exception) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_a_portion_that_cannot_be_read_is_left_to_the_next_run(one: OneCall) -> None:
    before = place(one, QUEUED)
    one.before(one.calls, "read_due", raises(StoreError("throttled")))
    assert reconcile(one) == {}
    assert (one.call, one.counted["ReconcileErrors"]) == (before, 1)


# ── queued ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("until", [NOW, NOW + 90_000])
def test_a_queued_call_with_a_lease_is_its_process_s(one: OneCall, until: int) -> None:
    place(one, QUEUED, lease_id="live", lease_until_ms=until, queue_deadline_ms=NOW)
    assert reconcile(one) == {"postponed": 1}
    assert (one.call.check_at_ms, one.dial_queue.sent) == (until, [])


@pytest.mark.parametrize("fields", [{}, {"lease_id": "dead", "lease_until_ms": NOW - 1}])
def test_the_message_of_a_queued_call_is_repeated(one: OneCall, fields: dict[str, Any]) -> None:
    place(one, QUEUED, **fields)
    assert reconcile(one) == {"sent_again": 1}
    assert one.dial_queue.sent == [({"callId": CALL_ID, "workspaceId": "demo"}, "demo", 0)]
    assert looks_in(one, 60_000)
    assert one.counted == {"DueLateness": 0, "DialMessagesRepeated": 1}


@pytest.mark.parametrize("left", [1, 0, -1])
@pytest.mark.parametrize("waits", [{}, {"wait_until_ms": NOW + 9}], ids=["", "waits"])
def test_a_queued_call_expires_at_its_deadline(one: OneCall, left: int, waits: dict[str, Any]) -> None:
    place(one, QUEUED, queue_deadline_ms=NOW + left, attempts=1, **waits)
    assert reconcile(one) == ({"sent_again": 1} if left > 0 else {"expires": 1, "ended": 1})
    if left <= 0:
        assert one.end == ("expired", "expired")
        assert one.call.end_event["retryable"]
        assert one.cleared
        assert one.counted["CallsEndedByReconciler"] == 1
        assert one.dial_queue.sent == []


@pytest.mark.parametrize("readable", [True, False])
def test_a_queued_call_does_not_expire_while_dialling_may_be_paused(one: OneCall, readable: bool) -> None:
    place(one, QUEUED, queue_deadline_ms=NOW)
    if readable:
        one.limits.pause(NOW)
    else:
        one.before(one.limits, "switch", raises(StoreError("throttled")))
    assert reconcile(one) == {"sent_again": 1}
    assert one.counted["ReconcileErrors"] == (0 if readable else 1)


@pytest.mark.parametrize(("paused", "expires"), [(3_000, True), (3_001, False)])
def test_paused_time_does_not_count_against_the_deadline(one: OneCall, paused: int, expires: bool) -> None:
    place(one, QUEUED, queue_deadline_ms=NOW - 3_000, created_at=iso(NOW - 60_000))
    one.limits.pause(NOW - 50_000)
    one.limits.resume(NOW - 50_000 + paused)
    assert reconcile(one) == ({"expires": 1, "ended": 1} if expires else {"sent_again": 1})


# ── in the line ─────────────────────────────────────────────────────────────────────────────────────

LINE, TURN = "demo#single", f"{NOW:013}#{NOW}#{CALL_ID}"
WAITING: dict[str, Any] = {"line_of": LINE, "turn": TURN, "waiting_for": "slot"}
ADMITTED = WAITING | {"line_of": f"{LINE}#admitted", "admitted_at_ms": NOW - 60_000, "admission": "token"}


def full(one: OneCall) -> None:
    """No slot is free: a run admits no call."""
    for other in ("b" * 24, "c" * 24):
        one.calls.create(dataclasses.replace(CALL, call_id=other, check_at_ms=NOW * 2))
        one.limits.take_slot("demo", other, 2)


@pytest.mark.parametrize("left", [60_001, 3_600_000])
def test_a_call_in_the_line_is_looked_at_at_its_deadline_and_not_before(one: OneCall, left: int) -> None:
    full(one)
    before = one.place(**WAITING, queue_deadline_ms=NOW + left)
    assert reconcile(one) == {"postponed": 1}
    assert one.call == dataclasses.replace(before, check_at_ms=NOW + left)
    assert one.dial_queue.sent == []


def test_the_deadline_of_a_call_in_the_line_counts_the_pauses(one: OneCall) -> None:
    full(one)
    one.place(**WAITING, created_at=iso(NOW - 60_000), queue_deadline_ms=NOW + 5_000)
    one.limits.pause(NOW - 99_000)
    one.limits.resume(NOW + 30_000)
    one.now = NOW + 30_000
    assert reconcile(one) == {"postponed": 1}
    assert one.call.check_at_ms == NOW + 95_000


@pytest.mark.parametrize("unknown", ["paused", "unreadable"])
def test_a_call_in_the_line_past_its_deadline_is_looked_at_each_minute_while_dialling_may_be_paused(
    one: OneCall, unknown: str
) -> None:
    full(one)
    one.place(**WAITING, queue_deadline_ms=NOW - 9, created_at=iso(NOW - 9))
    if unknown == "paused":
        one.limits.pause(NOW - 9)
    else:
        one.before(one.limits, "switch", raises(StoreError("throttled")))
    assert reconcile(one) == {"postponed": 1}
    assert looks_in(one, 60_000)


def test_a_call_in_the_line_expires_at_its_deadline(one: OneCall) -> None:
    full(one)
    one.place(**WAITING, queue_deadline_ms=NOW)
    assert reconcile(one) == {"expires": 1, "ended": 1}
    assert one.end == ("expired", "expired")
    call = one.call
    assert (call.line_of, call.waiting_for, call.due_shard, one.livekit.asked) == (None, None, None, [])


@pytest.mark.parametrize(("fields", "item"), [({}, 0), ({"slots_item": 2, "attempts": 1}, 2)])
def test_the_message_of_an_admitted_call_is_repeated_as_such(
    one: OneCall, fields: dict[str, Any], item: int
) -> None:
    one.place(**ADMITTED, **fields)
    assert reconcile(one) == {"sent_again": 1}
    assert one.dial_queue.sent == [
        ({"callId": CALL_ID, "workspaceId": "demo", "slotsItem": item}, "demo", 0),
    ]
    assert looks_in(one, 60_000)
    assert one.call.line_of == ADMITTED["line_of"]


def test_an_admitted_call_expires_too(one: OneCall) -> None:
    one.place(**ADMITTED, queue_deadline_ms=NOW)
    assert reconcile(one) == {"expires": 1, "ended": 1}


# ── calls expire after all else, and not all at once ────────────────────────────────────────────────


def test_calls_expire_after_everything_else_of_the_run(one: OneCall) -> None:
    """A backlog that expires at once does not delay a call under way."""
    place_many(one, 3, QUEUED | {"queue_deadline_ms": NOW}, shard="b")
    rooms(one, "absent")
    place(one, TALKING, phone_missing_since_ms=NOW - 30_000)
    ended: list[str] = []
    end = one.calls.end

    def noted(seen: Call, outcome: Outcome, check_at_ms: int, now_ms: int) -> Write:
        ended.append(seen.status)
        return end(seen, outcome, check_at_ms, now_ms)

    one.calls.end = noted  # type: ignore[method-assign]
    fill_asked: list[int] = []
    one.before(one.limits, "everything", lambda: fill_asked.append(len(ended)))
    assert reconcile(one) == {"expires": 3, "ended": 4}
    assert ended == ["in_progress", "queued", "queued", "queued"]
    assert fill_asked[0] <= 1


@pytest.mark.parametrize(
    ("shards", "number", "sleeps"),
    [(range(16), 40, []), (range(16), 41, [0.2]), (range(16), 130, [0.2] * 3), ([10], 5, [0.2, 0.2])],
)
def test_so_many_calls_expire_in_a_second(one: OneCall, shards: Any, number: int, sleeps: list[float]) -> None:
    """200 in all runs of a minute together."""
    place_many(one, number, QUEUED | {"queue_deadline_ms": NOW})
    assert reconcile(one, shards=shards) == {"expires": number, "ended": number}
    assert [seconds for seconds in one.slept if seconds] == sleeps


def test_calls_that_expire_are_left_to_the_next_run_when_time_is_over(one: OneCall) -> None:
    place_many(one, 50, QUEUED | {"queue_deadline_ms": NOW})
    reconciler = one.reconciler(time_left=lambda: one.now < NOW + 200)
    assert asyncio.run(reconciler.run()) == {"expires": 50, "ended": 40}
    one.now += 1_000
    assert reconcile(one) == {"expires": 10, "ended": 10}


def test_a_run_finds_no_more_calls_that_expire_than_it_has_time_for(one: OneCall) -> None:
    assert EXPIRED_AT_MOST == 750
    reconciler = one.reconciler(shards=[10])
    reconciler.switch = Switch()
    reconciler.expired = [CALL] * 749
    call = one.place(queue_deadline_ms=NOW)
    for found in (750, 750):
        assert asyncio.run(reconciler._queued(call)) == "expires"
        assert len(reconciler.expired) == found
    reconciler.shards = [10, 11]
    asyncio.run(reconciler._queued(call))
    assert len(reconciler.expired) == 751


def test_a_call_that_cannot_expire_holds_up_no_other(one: OneCall) -> None:
    place_many(one, 3, QUEUED | {"queue_deadline_ms": NOW})
    one.before(one.calls, "end", raises(StoreError("throttled")))
    assert reconcile(one) == {"expires": 3, "ended": 2}
    assert one.counted["ReconcileErrors"] == 1


def test_a_call_that_was_taken_before_it_expired_is_its_process_s(one: OneCall) -> None:
    one.place(queue_deadline_ms=NOW)
    one.before(one.calls, "end", lambda: one.calls.take_lease(CALL_ID, "other", NOW + 9, NOW))
    assert reconcile(one) == {"expires": 1, "lost": 1}
    assert one.call.lease_id == "other"


# ── queued, and changed by others ───────────────────────────────────────────────────────────────────


def test_a_queued_call_that_another_process_moves_gets_no_message(one: OneCall) -> None:
    place(one, QUEUED)
    one.before(one.calls, "postpone", lambda: other_writes(one))
    assert reconcile(one) == {"lost": 1}
    assert one.dial_queue.sent == []


def test_a_call_that_another_process_ends_is_cleared_by_it(one: OneCall) -> None:
    place(one, QUEUED, queue_deadline_ms=NOW)
    one.before(one.calls, "end", one.cancel)
    assert reconcile(one) == {"expires": 1, "lost": 1}
    assert (one.cleared, one.counted["CallsEndedByReconciler"]) == (False, 0)


# ── dialing ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("until", [NOW, NOW + 90_000])
def test_a_dial_under_way_is_its_process_s(one: OneCall, until: int) -> None:
    place(one, DIALING, lease_until_ms=until)
    assert reconcile(one) == {"postponed": 1}
    assert one.call.check_at_ms == until
    assert none(one)


@pytest.mark.parametrize("lease_until", [NOW, NOW + 90_000])
def test_a_dial_under_way_that_was_canceled_is_hung_up(one: OneCall, lease_until: int) -> None:
    place(one, DIALING, lease_until_ms=lease_until, hangup=HANGUP)
    assert reconcile(one, requests_left=1) == {"postponed": 1}
    assert one.livekit.asked == ["remove_participant"]
    assert looks_in(one, 30_000)


@pytest.mark.parametrize("hangup", [None, HANGUP], ids=["", "canceled"])
def test_a_phone_that_is_absent_on_two_looks_has_left(one: OneCall, hangup: dict[str, Any] | None) -> None:
    place(one, DIALING, hangup=hangup)
    assert reconcile(one) == {"noted": 1}
    assert one.call.phone_missing_since_ms == NOW
    assert looks_in(one, 30_000)
    one.now = NOW + 30_000
    assert reconcile(one) == {"ended": 1}
    assert one.end == (("canceled", "canceled_by_api") if hangup else ("failed", "outcome_unknown"))
    assert one.counted["CallsEndedByReconciler"] == (0 if hangup else 1)
    assert one.cleared
    assert one.livekit.asked == ["view_room", "view_room", "delete_room"]


@pytest.mark.parametrize(("missing", "done"), [(29_999, "noted"), (30_000, "ended")])
@pytest.mark.parametrize("fields", [DIALING, TALKING], ids=["dialing", "talking"])
def test_two_looks_are_half_a_minute_apart(one: OneCall, fields: dict[str, Any], missing: int, done: str) -> None:
    place(one, fields, phone_missing_since_ms=NOW - missing)
    assert reconcile(one) == {done: 1}
    if done == "noted":
        assert one.call.phone_missing_since_ms == NOW - missing
        assert looks_in(one, 30_000)


def test_one_look_is_enough_when_livekit_said_that_the_phone_left(one: OneCall) -> None:
    place(one, DIALING, phone_left=LEFT | {"reason": "USER_REJECTED", "callStatus": "ringing"})
    assert reconcile(one) == {"ended": 1}
    assert one.end == ("rejected", "rejected")
    assert one.cleared


def test_a_phone_that_rings_is_let_ring(one: OneCall) -> None:
    place(one, DIALING, phone_missing_since_ms=NOW - 20_000)
    one.livekit.views = [RINGS]
    assert reconcile(one) == {"noted": 1}
    assert one.call.phone_missing_since_ms is None
    assert (one.call.status, looks_in(one, 30_000)) == ("dialing", True)


@pytest.mark.parametrize("ago", [10_000, 600_000], ids=["just now", "long ago"])
def test_a_phone_that_has_answered_meanwhile_talks(one: OneCall, ago: int) -> None:
    place(one, DIALING, dialed_at_ms=NOW - ago)
    one.livekit.views = [dataclasses.replace(TALKS, joined_at_ms=NOW - ago)]
    assert reconcile(one) == {"answered": 1}
    call = one.call
    assert (call.status, call.answered_at_ms, call.events[-1].get("inferred")) == ("in_progress", NOW, True)
    assert looks_in(one, 30_000)
    assert one.counted["CallsAnswered"] == 1


def test_a_phone_that_has_answered_and_left_has_ended(one: OneCall) -> None:
    place(one, DIALING, phone_left=LEFT)
    one.livekit.views = [TALKS]
    assert reconcile(one) == {"ended": 1}
    assert (one.end, one.cleared) == (("completed", "hangup"), True)


def test_an_answer_that_another_process_wrote_first_is_its_own(one: OneCall) -> None:
    place(one, DIALING)
    one.livekit.views = [TALKS]
    one.before(one.calls, "answered", one.cancel)
    assert reconcile(one) == {"lost": 1}
    assert one.counted["CallsAnswered"] == 0


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_dial_has_ended_when_no_call_could_last_longer(one: OneCall, scale: float, early: int) -> None:
    """Without a look: LiveKit has been unreachable for that long."""
    one.durations = Durations(scale=scale)
    longest = int((40 + 1800) * scale * 1000) + 450_000
    place(one, DIALING, dialed_at_ms=NOW - longest + early)
    one.livekit.views = [TALKS]
    assert reconcile(one) == ({"answered": 1} if early else {"ended": 1})
    assert one.livekit.asked == (["view_room"] if early else ["delete_room"])
    if not early:
        assert one.end == ("failed", "outcome_unknown")


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
    one: OneCall, scale: float, dialed: int, joined: int, seen: int | None, status: str
) -> None:
    one.durations = Durations(scale=scale)
    dialed_at = NOW - int((40 * scale + 80) * 1000)
    place(
        one,
        DIALING,
        dialed_at_ms=dialed_at - dialed,
        phone_seen_at_ms=None if seen is None else dialed_at + seen,
    )
    one.livekit.views = [dataclasses.replace(RINGS, joined_at_ms=dialed_at + joined)]
    assert reconcile(one) == ({"answered": 1} if status == "talks" else {"noted": 1})
    assert one.call.phone_missing_since_ms == (NOW if status == "absent" else None)


@pytest.mark.parametrize(
    ("view", "request_"), [(RINGS, "remove_participant"), (TALKS, "delete_room")], ids=["rings", "talks"]
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_canceled_dial_of_a_dead_process_is_hung_up(
    one: OneCall, view: RoomView, request_: str, gone: bool
) -> None:
    place(one, DIALING, hangup=HANGUP)
    one.livekit.views = [view]
    one.livekit.phone_in_room, one.livekit.orphan = not gone, gone
    assert reconcile(one, requests_left=2) == {"noted" if gone else "postponed": 1}
    assert one.livekit.asked[:2] == ["view_room", request_]
    assert looks_in(one, 30_000)
    assert one.call.phone_missing_since_ms == (NOW if gone else None)


# ── in progress ─────────────────────────────────────────────────────────────────────────────────────

HUNG_UP = ["view_room", "delete_room", "view_room", "delete_room"]


def rooms(one: OneCall, presence: Presence, *views: RoomView) -> None:
    one.livekit.presence[CALL.room_name] = presence
    one.livekit.views = list(views) or [GONE]


@pytest.mark.parametrize(
    ("talked", "seconds"), [(0, 300), (1_500_000, 300), (1_500_001, 299.999), (1_799_000, 1), (1_799_999, 0.001)]
)
def test_a_call_that_goes_on_is_looked_at_later_and_at_its_end(one: OneCall, talked: int, seconds: float) -> None:
    rooms(one, "both")
    place(
        one,
        TALKING,
        answered_at_ms=NOW - talked,
        phone_missing_since_ms=NOW - 1,
        agent_missing_since_ms=NOW - 1,
    )
    assert reconcile(one) == {"alive": 1}
    assert looks_in(one, int(seconds * 1000))
    assert (one.call.phone_missing_since_ms, one.call.agent_missing_since_ms) == (None, None)
    assert one.livekit.asked == ["rooms_present"]


@pytest.mark.parametrize(
    "view", [TALKS, dataclasses.replace(ALONE, other_present=True)], ids=["agent", "another phone"]
)
def test_a_phone_that_is_not_alone_goes_on(one: OneCall, view: RoomView) -> None:
    rooms(one, "some", view)
    place(one, TALKING, agent_missing_since_ms=NOW - 99_000)
    assert reconcile(one, requests_left=2) == {"alive": 1}
    assert one.call.agent_missing_since_ms is None


@pytest.mark.parametrize(("since", "kept"), [(None, NOW), (NOW - 29_999, NOW - 29_999)])
def test_a_phone_that_is_alone_is_looked_at_again(one: OneCall, since: int | None, kept: int) -> None:
    rooms(one, "some", ALONE)
    place(one, TALKING, agent_missing_since_ms=since, phone_missing_since_ms=NOW - 60_000)
    assert reconcile(one) == {"noted": 1}
    assert (one.call.agent_missing_since_ms, one.call.phone_missing_since_ms) == (kept, None)
    assert looks_in(one, 30_000)


def test_a_phone_that_is_alone_on_two_looks_is_hung_up(one: OneCall) -> None:
    rooms(one, "some", ALONE, ALONE, GONE)
    place(one, TALKING, agent_missing_since_ms=NOW - 30_000)
    assert reconcile(one) == {"ended": 1}
    assert (one.end, one.cleared) == (("completed", "agent_left"), True)
    assert one.livekit.asked == ["rooms_present", "view_room", *HUNG_UP]
    assert one.counted["CallsEndedByReconciler"] == 0


@pytest.mark.parametrize("presence", ["some", "absent"])
def test_a_phone_that_has_left_without_an_event_ends_at_the_second_look(one: OneCall, presence: Presence) -> None:
    rooms(one, presence)
    place(one, TALKING)
    assert reconcile(one) == {"noted": 1}
    assert (one.call.phone_missing_since_ms, looks_in(one, 30_000)) == (NOW, True)
    one.now = NOW + 30_000
    assert reconcile(one) == {"ended": 1}
    assert (one.end, one.cleared) == (("completed", "disconnected"), True)
    assert one.call.end_event["inferred"]
    assert one.livekit.asked.count("view_room") == (2 if presence == "some" else 0)
    assert one.counted["CallsEndedByReconciler"] == 1


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_call_is_hung_up_at_its_longest(one: OneCall, scale: float, early: int) -> None:
    one.durations = Durations(scale=scale)
    rooms(one, "both", TALKS, GONE)
    place(one, TALKING, answered_at_ms=NOW - int(1_800_000 * scale) + early)
    assert reconcile(one) == ({"alive": 1} if early else {"ended": 1})
    assert one.end == (None if early else ("completed", "max_duration"))


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("early", [0, 1])
def test_a_call_that_cannot_be_hung_up_ends_without_livekit(one: OneCall, scale: float, early: int) -> None:
    one.durations = Durations(scale=scale)
    rooms(one, "both", TALKS)
    one.livekit.fail["rooms_present"] = DOWN
    place(one, TALKING, answered_at_ms=NOW - int(1_800_000 * scale) - 450_000 + early)
    assert reconcile(one) == ({"postponed": 1} if early else {"ended": 1})
    if early:
        assert one.call.hangup == {"reason": "max_duration", "at": NOW}
    else:
        assert one.end == ("failed", "outcome_unknown")
        assert one.call.end_event["inferred"]
        assert one.cleared


@pytest.mark.parametrize(("views", "done"), [([TALKS, GONE], "ended"), ([TALKS, TALKS], "postponed")])
def test_a_canceled_call_is_hung_up_until_its_phone_is_gone(
    one: OneCall, views: list[RoomView], done: str
) -> None:
    rooms(one, "both", *views)
    place(one, TALKING, hangup=HANGUP)
    assert reconcile(one) == {done: 1}
    assert one.livekit.asked == ["rooms_present", *(HUNG_UP if done == "ended" else HUNG_UP[:3])]
    assert one.end == (("completed", "canceled_by_api") if done == "ended" else None)
    if done == "postponed":
        assert looks_in(one, 30_000)


def test_what_another_process_has_noted_is_kept(one: OneCall) -> None:
    rooms(one, "absent")
    place(one, TALKING)
    one.before(one.calls, "note_missing", lambda: other_writes(one))
    assert reconcile(one) == {"lost": 1}
    assert one.call.phone_missing_since_ms is None


# ── ended ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_ended_call_without_a_room_is_cleared(one: OneCall) -> None:
    rooms(one, "absent")
    place(one, ENDED)
    assert reconcile(one, requests_left=1) == {"cleared": 1}
    assert (one.livekit.asked, one.cleared) == (["rooms_present"], True)


@pytest.mark.parametrize("presence", ["some", "both"])
def test_an_ended_call_with_a_room_is_cleared_with_it(one: OneCall, presence: Presence) -> None:
    rooms(one, presence)
    place(one, ENDED)
    assert reconcile(one, requests_left=2) == {"cleared": 1}
    assert (one.livekit.asked, one.cleared) == (["rooms_present", "delete_room"], True)


def test_an_orphan_room_is_looked_at_once_more(one: OneCall) -> None:
    rooms(one, "some")
    one.livekit.orphan = True
    place(one, ENDED)
    assert reconcile(one) == {"postponed": 1}
    assert looks_in(one, 30_000)
    assert one.limits.active_calls("demo") == frozenset()


@pytest.mark.parametrize(
    ("until", "dialed", "cleared"),
    [(NOW, None, False), (NOW + 90_000, None, False), (NOW - 1, None, True), (NOW + 90_000, NOW, True)],
)
def test_a_call_that_ended_before_its_dial_is_cleared_after_its_lease(
    one: OneCall, until: int, dialed: int | None, cleared: bool
) -> None:
    """Its process may still make the room."""
    rooms(one, "absent")
    place(one, ENDED, answered_at_ms=None, dialed_at_ms=dialed, lease_until_ms=until)
    assert reconcile(one) == ({"cleared": 1} if cleared else {"postponed": 1})
    assert one.cleared is cleared
    if not cleared:
        assert one.call.check_at_ms == until


# ── deliveries ──────────────────────────────────────────────────────────────────────────────────────


def test_the_messages_of_due_deliveries_are_repeated(one: OneCall) -> None:
    for sequence, check_at in ((1, NOW), (2, NOW - 9), (3, NOW + 1)):
        one.deliveries.create(CALL_ID, "demo", sequence, NOW, check_at)
    assert reconcile(one) == {"deliveries_sent_again": 2}
    assert {message["sequence"] for message, _, _ in one.webhook_queue.sent} == {1, 2}
    assert one.webhook_queue.sent[0][0]["callId"] == CALL_ID
    assert {group for _, group, _ in one.webhook_queue.sent} == {"demo"}
    rows = one.deliveries.of_call(CALL_ID)
    assert [row.check_at_ms for row in rows] == [NOW + 60_000, NOW + 60_000, NOW + 1]
    assert one.counted["ReconcileErrors"] == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_delivery_whose_message_is_not_confirmed_is_an_error(one: OneCall, number: int) -> None:
    for sequence in range(number):
        one.deliveries.create(CALL_ID, "demo", 1 + sequence, NOW, NOW)
    one.webhook_queue.unconfirmed = {0}
    assert reconcile(one) == ({"deliveries_sent_again": 1} if number == 2 else {})
    assert one.counted["ReconcileErrors"] == 1


def test_a_delivery_that_another_process_has_taken_gets_no_message(one: OneCall) -> None:
    one.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    one.before(one.deliveries, "postpone", lambda: one.deliveries.take(CALL_ID, 1, "other", NOW, NOW + 45_000))
    assert reconcile(one) == {}
    assert one.webhook_queue.sent == []


# ── what fails ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [DIALING, TALKING, ENDED], ids=["dialing", "talking", "ended"])
def test_a_call_that_livekit_cannot_be_asked_of_is_postponed(one: OneCall, fields: dict[str, Any]) -> None:
    before = place(one, fields)
    one.livekit.fail = {"rooms_present": DOWN, "delete_room": DOWN}
    one.livekit.views = [DOWN]
    assert reconcile(one) == {"postponed": 1}
    assert looks_in(one, 30_000)
    assert one.call == dataclasses.replace(before, check_at_ms=NOW + 30_000)
    assert one.counted["ReconcileErrors"] == 0


@pytest.mark.parametrize("error", [StoreError("throttled"), RuntimeError("a bug")])
def test_a_call_that_fails_is_put_off_and_holds_up_no_other(one: OneCall, error: Exception) -> None:
    place(one, QUEUED)
    place_many(one, 2, QUEUED)
    one.before(one.calls, "postpone", raises(error))
    assert reconcile(one) == {"sent_again": 2}
    assert one.counted["ReconcileErrors"] == 1
    due = [call.check_at_ms for call in one.calls.get_many([CALL_ID, *(f"a{n:023x}" for n in range(2))])]
    assert sorted(due, key=str) == [NOW + 30_000, NOW + 60_000, NOW + 60_000]


def test_a_delivery_that_fails_is_put_off(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    one.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    one.before(one.deliveries, "postpone", raises(StoreError("throttled")))
    assert reconcile(one) == {}
    logged = [record.__dict__ for record in caplog.records if record.levelname == "ERROR"]
    assert [(line["call_id"], line["sort_key"]) for line in logged] == [(CALL_ID, "DELIVERY#0001")]
    row = one.deliveries.get(CALL_ID, 1)
    assert row is not None
    assert (row.check_at_ms, one.counted["ReconcileErrors"]) == (NOW + 30_000, 1)


def test_an_item_that_cannot_even_be_put_off_is_an_error_of_its_own(one: OneCall) -> None:
    place(one, QUEUED)
    one.before(one.calls, "postpone", raises(StoreError("throttled")))
    one.before(one.calls, "put_off", raises(StoreError("throttled")))
    assert reconcile(one) == {}
    assert one.counted["ReconcileErrors"] == 2


@pytest.mark.parametrize("key", ["CALL", "DELIVERY#0001"])
def test_an_item_that_cannot_be_read_is_put_off_by_its_key(one: OneCall, key: str) -> None:
    place(one, QUEUED)
    one.deliveries.create(CALL_ID, "demo", 1, NOW, NOW)
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]
    del item["workspaceId"]
    done = reconcile(one)
    assert done == ({"deliveries_sent_again": 1} if key == "CALL" else {"sent_again": 1})
    item = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", key]
    assert item["checkAt"] == NOW + 300_000
    assert one.counted["UnreadableItems"] == 1


def test_a_listing_that_fails_of_itself_leaves_the_rooms_to_single_looks(one: OneCall) -> None:
    place(one, TALKING)
    one.before(one.livekit, "rooms_present", raises(RuntimeError("a bug")))
    one.livekit.views = [TALKS]
    assert reconcile(one) == {"alive": 1}
    assert one.counted["ReconcileErrors"] == 1


# ── requests to LiveKit ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fields", [TALKING, ENDED], ids=["talking", "ended"])
def test_rooms_are_listed_by_the_fifty(one: OneCall, fields: dict[str, Any]) -> None:
    place_many(one, 120, fields)
    one.livekit.presence = {f"room-{n}": "both" for n in range(120)} if fields is TALKING else {}
    reconciler = one.reconciler()
    done = asyncio.run(reconciler.run())
    assert done == {"alive" if fields is TALKING else "cleared": 120}
    assert one.livekit.asked == ["rooms_present"] * 3
    assert reconciler.requests_left == LIVEKIT_REQUESTS - 3


def test_no_rooms_are_listed_for_calls_that_are_not_in_one(one: OneCall) -> None:
    place(one, DIALING)
    one.livekit.views = [RINGS]
    reconcile(one)
    assert one.livekit.asked == ["view_room"]


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
    one: OneCall, fields: dict[str, Any], view: RoomView, requests: int
) -> None:
    one.livekit.presence[CALL.room_name] = "some"
    one.livekit.views = [view]
    place(one, fields)
    reconciler = one.reconciler(requests_left=requests)
    asyncio.run(reconciler.run())
    assert (len(one.livekit.asked), reconciler.requests_left) == (requests, 0)
    one.dynamodb.table("calls").clear()
    one.livekit.asked.clear()
    place(one, fields)
    assert reconcile(one, requests_left=requests - 1) == {"postponed": 1}
    assert len(one.livekit.asked) < requests
    assert looks_in(one, 30_000)


@pytest.mark.parametrize(("left", "number", "spent"), [(1, 1, True), (3, 3, True), (2, 3, False), (0, 1, False)])
def test_requests_are_spent_if_enough_are_left(one: OneCall, left: int, number: int, spent: bool) -> None:
    reconciler = one.reconciler(requests_left=left)
    if spent:
        reconciler.spend_requests(number)
        assert reconciler.requests_left == left - number
    else:
        with pytest.raises(RequestsSpentError):
            reconciler.spend_requests(number)
        assert reconciler.requests_left == left


def test_requests_are_not_spent_if_their_answers_come_too_late(one: OneCall) -> None:
    reconciler = one.reconciler(answers_in_time=lambda requests: requests < 3)
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
def test_slots_are_repaired_every_fifth_minute(one: OneCall, scale: float, late: int, repairs: bool) -> None:
    one.durations = Durations(scale=scale, slot_repair=300 * scale)
    one.limits.take_slot("demo", "c" * 24, 5)
    one.now = int(REPAIR + late * scale)
    reconcile(one)
    assert (one.limits.active_calls("demo") == frozenset()) is repairs
    assert one.counted["SlotsRepaired"] == repairs


@pytest.mark.parametrize(("shards", "repairs"), [([0], True), (range(4), True), (range(4, 8), False)])
def test_one_run_of_a_minute_repairs_slots(one: OneCall, shards: Any, repairs: bool) -> None:
    one.limits.take_slot("demo", "c" * 24, 5)
    one.now = REPAIR
    reconcile(one, shards=shards)
    assert (one.limits.active_calls("demo") == frozenset()) is repairs


def test_only_slots_of_calls_that_have_ended_are_freed(one: OneCall) -> None:
    place_many(one, 1, QUEUED | {"check_at_ms": NOW + 1}, shard="1")
    place_many(one, 1, ENDED | {"check_at_ms": NOW + 1}, shard="2")
    for call_id in (f"1{0:023x}", f"2{0:023x}", "3" * 24):
        one.limits.take_slot("demo", call_id, 5)
    one.limits.take_slot("other", "4" * 24, 5)
    one.now = REPAIR
    reconcile(one)
    assert one.limits.active_calls("demo") == {f"1{0:023x}"}
    assert one.limits.active_calls("other") == frozenset()
    assert one.counted["SlotsRepaired"] == 3


@pytest.mark.parametrize("item", [0, 1, 7])
def test_slots_of_every_item_are_repaired(one: OneCall, item: int, caplog: pytest.LogCaptureFixture) -> None:
    one.limits.take_slot("demo", "3" * 24, 5, item=item)
    one.now = REPAIR
    reconcile(one)
    assert one.limits.active_calls("demo", 8) == frozenset()
    logged = [record.__dict__ for record in caplog.records if record.message == "slot freed that no call holds"]
    assert [line["call_id"] for line in logged] == ["3" * 24]


def test_a_slot_of_a_call_that_waits_in_the_line_is_freed_and_the_call_waits_on(one: OneCall) -> None:
    """No worker takes one for it meanwhile."""
    full(one)
    waiting = one.place(**WAITING, check_at_ms=NOW + 70_000, attempts=1)
    one.limits.take_slot("demo", CALL_ID, 9, item=1)
    one.now = REPAIR + 300_000
    seen: list[Call] = []
    one.before(one.limits, "free_slot", lambda: seen.append(one.call))
    one.after(one.limits, "free_slot", lambda: takes.append(one.calls.take_lease(CALL_ID, "x", 9, one.now).won))
    takes: list[bool] = []
    one.reconciler().repair_slots(one.limits.everything())
    assert CALL_ID not in one.limits.active_calls("demo", 2)
    assert one.call == waiting
    [held] = seen
    assert (held.lease_until_ms, held.check_at_ms) == (one.now + 60_000, one.now + 60_000)
    assert held.lease_id is not None
    assert takes == [False]
    assert one.counted == {"SlotsRepaired": 1}


@pytest.mark.parametrize("by", ["admission", "lease"])
def test_a_slot_of_a_call_that_leaves_the_line_meanwhile_is_kept(one: OneCall, by: str) -> None:
    one.place(**WAITING)
    one.limits.take_slot("demo", CALL_ID, 9)

    def leaves() -> None:
        if by == "admission":
            assert one.line.admit_one("demo", 0)
        else:
            assert one.calls.hold(one.call, "other", NOW + 9, NOW).won

    one.before(one.calls, "hold", leaves)
    one.reconciler().repair_slots(one.limits.everything())
    assert one.limits.active_calls("demo") == {CALL_ID}
    assert one.counted["SlotsRepaired"] == 0


@pytest.mark.parametrize(
    "fields", [QUEUED, ADMITTED, {"lease_id": "live", "lease_until_ms": NOW + 9}, DIALING, TALKING]
)
def test_a_slot_of_a_call_that_may_have_it_is_kept(one: OneCall, fields: dict[str, Any]) -> None:
    before = place(one, fields)
    one.reconciler().repair_slots(one.limits.everything())
    assert one.limits.active_calls("demo") == {CALL_ID}
    assert one.call == before


def test_a_slot_of_a_call_that_cannot_be_read_is_kept(one: OneCall) -> None:
    place(one, QUEUED)
    one.limits.take_slot("demo", "3" * 24, 5)
    del one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]["workspaceId"]
    one.reconciler().repair_slots(one.limits.everything())
    assert one.limits.active_calls("demo") == {CALL_ID}


def test_a_repair_that_fails_fails_alone(one: OneCall) -> None:
    place(one, QUEUED)
    one.now = REPAIR + 300_000
    one.before(one.limits, "free_slot", raises(StoreError("throttled")))
    one.limits.take_slot("demo", "3" * 24, 5)
    assert reconcile(one) == {"sent_again": 1}
    assert one.counted["ReconcileErrors"] == 1


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────


def other_waits(one: OneCall, workspace_id: str = "demo", call_id: str = "d" * 24) -> None:
    """Another call waits in the line."""
    one.calls.create(
        dataclasses.replace(CALL, call_id=call_id, workspace_id=workspace_id, check_at_ms=NOW + 3_600_000)
    )
    line, turn = f"{workspace_id}#single", f"{NOW - 1}#{NOW}#{call_id}"
    assert one.calls.enter_line(call_id, line, turn, "slot", NOW + 3_600_000, NOW).won


def sent_to(one: OneCall) -> list[tuple[str, int]]:
    return sorted((body["callId"][:1], body["slotsItem"]) for body, _, _ in one.dial_queue.sent)


@pytest.mark.parametrize(("shards", "fills"), [([0], True), (range(4), True), (range(4, 8), False)])
def test_one_run_of_a_minute_fills_the_lines(one: OneCall, shards: Any, fills: bool) -> None:
    other_waits(one)
    assert reconcile(one, shards=shards) == ({"admitted": 1} if fills else {})
    assert sent_to(one) == ([("d", 0)] if fills else [])


def test_the_lines_of_all_workspaces_are_filled(one: OneCall) -> None:
    for n in range(9):
        one.workspaces.put(dataclasses.replace(WORKSPACE, workspace_id=f"w{n}"))
        other_waits(one, f"w{n}", f"{n}" * 24)
    other_waits(one)
    assert reconcile(one) == {"admitted": 10}
    assert sent_to(one) == [*((f"{n}", 0) for n in range(9)), ("d", 0)]


def test_a_line_that_fails_holds_up_no_other(one: OneCall) -> None:
    for n in range(3):
        one.workspaces.put(dataclasses.replace(WORKSPACE, workspace_id=f"w{n}"))
        other_waits(one, f"w{n}", f"{n}" * 24)
    one.before(one.calls, "admit", raises(StoreError("throttled")))
    place(one, QUEUED)
    assert reconcile(one) == {"admitted": 2, "sent_again": 1}
    assert one.counted["ReconcileErrors"] == 1


def test_workspaces_that_cannot_be_read_hold_up_nothing_else(one: OneCall) -> None:
    other_waits(one)
    place(one, QUEUED)
    one.before(one.limits, "everything", raises(StoreError("throttled")))
    assert reconcile(one) == {"sent_again": 1}
    assert one.counted["ReconcileErrors"] == 1


def test_a_run_without_time_fills_no_lines(one: OneCall) -> None:
    other_waits(one)
    assert reconcile(one, time_left=lambda: False) == {}


def test_a_paused_line_is_not_filled(one: OneCall) -> None:
    other_waits(one)
    one.limits.pause(NOW)
    assert reconcile(one) == {}


def test_lines_are_filled_before_slots_are_repaired(one: OneCall) -> None:
    """A repair of many slots takes long; the next run fills what it has freed."""
    for call_id in ("3" * 24, "4" * 24):
        one.limits.take_slot("demo", call_id, 2)
    other_waits(one)
    one.now = REPAIR + 300_000
    assert reconcile(one) == {}
    assert one.limits.active_calls("demo") == frozenset()
    assert reconcile(one) == {"admitted": 1}


def test_a_repair_ends_with_the_runs_time(one: OneCall) -> None:
    one.limits.take_slot("demo", "3" * 24, 2)
    one.reconciler(time_left=lambda: False).repair_slots(one.limits.everything())
    assert one.limits.active_calls("demo") == {"3" * 24}


def test_a_slots_item_that_cannot_be_repaired_holds_up_no_other(one: OneCall) -> None:
    one.limits.take_slot("demo", "3" * 24, 2)
    one.limits.take_slot("demo", "4" * 24, 2, item=1)

    def fails() -> None:
        raise StoreError("down")

    one.before(one.calls, "read_due", fails)
    one.reconciler().repair_slots(one.limits.everything())
    assert len(one.limits.active_calls("demo", 2)) == 1
    assert one.counted["ReconcileErrors"] == 1


def stop_trunk(one: OneCall, trunk_id: str, until: int) -> None:
    for call_id in ("1", "2", "3"):
        one.limits.note_trunk_fault(trunk_id, call_id, "text", 60_000, 60_000, until - 60_000)


def test_stopped_trunks_are_told_and_admit_none(one: OneCall, caplog: pytest.LogCaptureFixture) -> None:
    other_waits(one)
    stop_trunk(one, "ST_1", NOW + 1)
    stop_trunk(one, "ST_2", NOW)
    one.limits.note_trunk_fault("ST_3", "1", "text", 60_000, 60_000, NOW)
    one.limits.reserve_trunk("ST_4", 500, NOW, NOW)
    assert reconcile(one) == {}
    assert one.counted["TrunksStopped"] == 2
    logged = [record.__dict__ for record in caplog.records if record.message == "trunk is stopped"]
    assert sorted((line["trunk_id"], line["stops"]) for line in logged) == [("ST_1", 1), ("ST_2", 1)]
    one.now = NOW + 1
    assert reconcile(one) == {"admitted": 1}, "one to try it"


def test_without_a_stopped_trunk_nothing_is_counted(one: OneCall) -> None:
    reconcile(one)
    assert "TrunksStopped" not in one.counted


def test_a_slot_that_is_freed_by_a_run_admits_one(one: OneCall) -> None:
    """The end of a call, whichever process finds it."""
    rooms(one, "absent")
    full(one)
    one.limits.free_slot("demo", "b" * 24)
    place(one, TALKING, phone_missing_since_ms=NOW - 30_000, slots_item=0)
    other_waits(one)
    one.limits.note_crowded("demo", 0, NOW, NOW)
    assert reconcile(one, shards=[due_shard(CALL_ID)]) == {"ended": 1}
    assert sent_to(one) == [("d", 0)]


def test_an_end_that_is_not_this_runs_is_not_counted(one: OneCall) -> None:
    place(one, TALKING, phone_missing_since_ms=NOW - 30_000)
    ended = Outcome("completed", "hangup")
    one.before(one.calls, "end", lambda: one.calls.end(one.call, ended, NOW + 1, NOW))
    assert reconcile(one) == {"lost": 1}
    assert (one.end, one.counted["CallsEndedByReconciler"]) == (("completed", "hangup"), 0)
