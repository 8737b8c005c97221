"""Concurrent actions on a call: which one wins, and that it still rings once and ends once, with one event.

The order is made by hooks: the other party acts right before or after one step of the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared.call_store import CallStore
from shared.limits import LimitStore
from shared.livekit.client import LiveKit
from tests.interleaving import (
    change,
    change_durations,
    once,
    other_worker,
    phone_left,
    requests,
    room_finished,
    rooms,
    tell,
)
from tests.system import DEADLINE_SECONDS, System

ANSWERS, BUSY, TALKS_ON, RINGS = "+15550000000", "+15550000001", "+15550000012", "+15550000002"


@pytest.fixture
def silent(system: System) -> Iterator[System]:
    """LiveKit's own events are discarded: the test sends them."""
    system.servers.taken_by = lambda body: None
    yield system
    system.servers.taken_by = None


def end_of(system: System, call_id: str) -> tuple[str, str, int | None]:
    """The end event, after checking that there is only one."""
    item = system.item(call_id)
    ends = [entry for entry in item["events"] if entry["type"] == "call.ended"]
    assert len(ends) == 1
    assert item["events"][-1] == ends[0]
    return item["status"], ends[0]["reason"], ends[0].get("sipStatusCode")


def cancel(system: System, call_id: str, status: int = 200) -> None:
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == status


def nothing_left(system: System, call_id: str) -> None:
    """Its room is gone, its slot free, and nothing of it is due."""

    def cleared() -> bool:
        if "dueShard" in system.item(call_id):
            change(system, call_id, check_at_ms=1)
            system.reconcile()
        return "dueShard" not in system.item(call_id)

    system.run_until(cleared)
    assert rooms(system) == []
    assert call_id not in system.limits.active_calls("demo")


# ── the worker against LiveKit's events ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["before the worker's end", "after it"])
def test_the_carriers_code_is_the_better_reason(
    silent: System, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    call_id = silent.place(BUSY)

    def event() -> None:
        assert tell(silent, phone_left(silent, call_id, "USER_REJECTED", "ringing")) == 200

    hooks: dict[str, Any] = {"before" if when.startswith("before") else "after": event}
    once(monkeypatch, CallStore, "end", **hooks)
    silent.dial()
    assert end_of(silent, call_id) == ("busy", "busy", 486)
    assert tell(silent, phone_left(silent, call_id, "USER_REJECTED", "ringing")) == 200
    assert end_of(silent, call_id) == ("busy", "busy", 486)
    nothing_left(silent, call_id)


def test_the_event_is_the_reason_where_the_dials_own_answer_was_lost(silent: System) -> None:
    silent.faults(createSIPParticipant={"fail": "cut"})
    call_id = silent.place(BUSY)
    left: list[int] = []

    def told(livekit: LiveKit, *given: Any) -> Any:
        """The worker looks into the room: meanwhile the event comes."""
        if not left and silent.item(call_id)["status"] == "dialing":
            left.append(tell(silent, phone_left(silent, call_id, "USER_UNAVAILABLE", "ringing")))
        return view_room(livekit, *given)

    view_room = LiveKit.view_room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveKit, "view_room", told)
        silent.dial()
    assert left == [200]
    assert end_of(silent, call_id) == ("no_answer", "no_answer", None)


def test_a_phone_that_has_left_before_the_answer_is_written_is_over(
    silent: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = silent.place(TALKS_ON)

    def leaves() -> None:
        tell(silent, phone_left(silent, call_id, "CLIENT_INITIATED", "hangup"))

    once(monkeypatch, CallStore, "answered", before=leaves)
    silent.dial()
    assert end_of(silent, call_id) == ("completed", "hangup", None)
    assert silent.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]
    nothing_left(silent, call_id)


def test_a_phone_that_leaves_while_the_answer_is_written_is_over(
    silent: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event finds the call dialing, and in progress when it comes to write."""
    call_id = silent.place(TALKS_ON)
    [record] = silent.receive("DialQueue")

    def event() -> None:
        # Right before the worker writes `answered`, the event has read; right after it, it writes.
        once(monkeypatch, CallStore, "note_left", before=worker_writes)
        tell(silent, phone_left(silent, call_id, "CLIENT_INITIATED", "hangup"))

    def worker_writes() -> None:
        call = calls.get(call_id)
        assert call is not None
        assert call.lease_id is not None
        assert answered(calls, call_id, call.lease_id, call.check_at_ms, int(time.time() * 1000)).won

    calls, answered = silent.modules["livekit_events"].event_applier.calls, CallStore.answered
    once(monkeypatch, CallStore, "answered", before=event)
    other_worker(silent, [record])
    assert end_of(silent, call_id) == ("completed", "hangup", None)


def fenced_by_a_dead_worker(system: System) -> str:
    call_id = system.place(ANSWERS)
    now = int(time.time() * 1000)
    change(
        system,
        call_id,
        status="dialing",
        lease_id="dead",
        lease_until_ms=now - 1,
        dialed_at_ms=now,
        room_sid="RM_1",
        check_at_ms=1,
    )
    return call_id


@pytest.mark.parametrize("turned", [False, True], ids=["the phone first", "the room first"])
def test_the_phones_own_reason_is_better_than_the_rooms(silent: System, turned: bool) -> None:
    """The worker is dead: only the events show what happened."""
    call_id = fenced_by_a_dead_worker(silent)
    events = [phone_left(silent, call_id, "USER_UNAVAILABLE", "ringing"), room_finished(silent, call_id)]
    for event in reversed(events) if turned else events:
        assert tell(silent, event) == 200
    silent.reconcile()
    assert end_of(silent, call_id) == ("no_answer", "no_answer", None)


def test_a_room_that_finished_says_nothing_of_a_phone_that_nobody_saw(silent: System) -> None:
    call_id = fenced_by_a_dead_worker(silent)
    assert tell(silent, room_finished(silent, call_id)) == 200
    silent.reconcile()
    assert end_of(silent, call_id) == ("failed", "outcome_unknown", None)


# ── cancelling ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("owner", "method", "number", "rings", "status"),
    [
        (CallStore, "take_lease", ANSWERS, 0, "canceled"),
        (LimitStore, "take_slot", ANSWERS, 0, "canceled"),
        (LiveKit, "create_room", ANSWERS, 0, "canceled"),
        (LimitStore, "reserve_trunk", ANSWERS, 0, "canceled"),
        (CallStore, "fence", ANSWERS, 0, "canceled"),
        (LiveKit, "dial", RINGS, 1, "canceled"),
        (LiveKit, "dial", TALKS_ON, 1, "canceled"),
        (CallStore, "answered", TALKS_ON, 1, "canceled"),
        (CallStore, "end", BUSY, 1, "canceled"),
    ],
)
def test_a_cancel_wins_at_every_step_until_the_end_is_written(
    system: System, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: str, rings: int, status: str
) -> None:
    call_id = system.place(number, ring_timeout_seconds=10)
    once(monkeypatch, owner, method, before=lambda: cancel(system, call_id))
    system.dial()
    assert end_of(system, call_id) == (status, "canceled_by_api", None)
    assert len(system.calls_placed()) == rings
    cancel(system, call_id)
    nothing_left(system, call_id)


def test_a_cancel_right_after_the_answer_hangs_up(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    call_id = system.place(TALKS_ON)
    once(monkeypatch, CallStore, "answered", after=lambda: cancel(system, call_id))
    system.dial()
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("completed", "canceled_by_api", None)
    nothing_left(system, call_id)


def test_a_cancel_right_after_the_end_is_refused(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    call_id = system.place(BUSY)
    once(monkeypatch, CallStore, "end", after=lambda: cancel(system, call_id, 409))
    system.dial()
    assert end_of(system, call_id) == ("busy", "busy", 486)


def test_a_cancel_while_nothing_rang_yet_wins_over_the_next_attempt(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = system.place("+15550000010")
    once(monkeypatch, CallStore, "unfence", before=lambda: cancel(system, call_id))
    system.dial()
    assert end_of(system, call_id) == ("canceled", "canceled_by_api", None)
    assert system.calls_placed() == []
    nothing_left(system, call_id)


# ── two workers, one message ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (CallStore, "take_lease"),
        (LimitStore, "take_slot"),
        (LiveKit, "create_room"),
        (CallStore, "fence"),
        (LiveKit, "dial"),
        (CallStore, "answered"),
    ],
)
def test_two_workers_with_the_same_message_ring_once(
    system: System, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    call_id = system.place(ANSWERS)
    [record] = system.receive("DialQueue")
    answers: list[dict[str, Any]] = []
    once(monkeypatch, owner, method, before=lambda: answers.append(other_worker(system, [record])))
    other_worker(system, [record])
    assert answers == [{"batchItemFailures": []}]
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("completed", "hangup", None)
    assert len(system.calls_placed()) == 1
    assert len(system.http.get(f"{system.servers.livekit_url}/_standin/dispatches").json()["dispatches"]) == 1


def test_one_batch_may_hold_a_message_twice(system: System) -> None:
    call_id = system.place(ANSWERS)
    [record] = system.receive("DialQueue")
    other_worker(system, [record, record | {"messageId": "again"}, record | {"messageId": "and again"}])
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_a_message_that_comes_back_after_the_end_does_nothing(system: System) -> None:
    call_id = system.place(BUSY)
    [record] = system.receive("DialQueue")
    other_worker(system, [record])
    item, asked = system.item(call_id), requests(system)
    assert other_worker(system, [record]) == {"batchItemFailures": []}
    assert (system.item(call_id), requests(system)) == (item, asked)


# ── events that come wrong ──────────────────────────────────────────────────────────────────────────


def talking(system: System) -> str:
    call_id = system.place(TALKS_ON)
    system.dial()
    assert system.item(call_id)["status"] == "in_progress"
    return call_id


def test_an_event_may_come_twice_and_late(silent: System) -> None:
    call_id = talking(silent)
    left, finished = phone_left(silent, call_id, "CLIENT_INITIATED", "hangup"), room_finished(silent, call_id)
    assert tell(silent, left) == 200
    item = silent.item(call_id)
    for event in (left, left | {"id": "EV_3", "createdAt": str(int(time.time()) - 600)}):
        assert tell(silent, event) == 200
    assert silent.item(call_id) == item
    assert tell(silent, finished) == 200
    cleared = silent.item(call_id)
    assert "dueShard" not in cleared
    for event in (finished, left):
        assert tell(silent, event) == 200
    assert silent.item(call_id) == cleared
    assert end_of(silent, call_id) == ("completed", "hangup", None)


def test_the_room_may_finish_before_the_phone_has_left(silent: System) -> None:
    call_id = talking(silent)
    left = phone_left(silent, call_id, "CLIENT_INITIATED", "hangup")
    assert tell(silent, room_finished(silent, call_id)) == 200
    assert end_of(silent, call_id) == ("completed", "disconnected", None)
    assert tell(silent, left) == 200
    assert end_of(silent, call_id) == ("completed", "disconnected", None), "the first end stays"
    assert silent.limits.active_calls("demo") == frozenset()


def test_a_phone_that_is_moved_has_not_left(silent: System) -> None:
    call_id = talking(silent)
    for reason in ("MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"):
        later = int(time.time() * 1000) + 10**6
        change(silent, call_id, check_at_ms=later)
        assert tell(silent, phone_left(silent, call_id, reason, "active")) == 200
        item = silent.item(call_id)
        assert item["status"] == "in_progress"
        assert item["checkAt"] < later, "looked at soon: it may not come back"
        change(silent, call_id, check_at_ms=1)
        silent.reconcile()
        assert silent.item(call_id)["status"] == "in_progress", "it came back"


@pytest.mark.parametrize("reason", ["MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"])
def test_a_phone_that_is_moved_while_it_rings_is_no_reason(
    silent: System, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    call_id = silent.place(BUSY)

    def is_moved() -> None:
        tell(silent, phone_left(silent, call_id, reason, "ringing"))

    once(monkeypatch, LiveKit, "dial", after=is_moved)
    silent.dial()
    assert "left" not in silent.item(call_id)
    assert end_of(silent, call_id) == ("busy", "busy", 486)


def test_an_event_of_something_else_changes_nothing(silent: System) -> None:
    call_id = talking(silent)
    item = silent.item(call_id)
    left, finished = phone_left(silent, call_id, "CLIENT_INITIATED", "hangup"), room_finished(silent, call_id)
    room, phone = left["room"], left["participant"]
    strange = [
        left | {"room": room | {"name": "another-room"}},
        left | {"room": room | {"sid": "RM_of_an_earlier_attempt"}},
        left | {"participant": phone | {"identity": "call-" + "f" * 24}},
        left | {"participant": phone | {"identity": "agent-1"}},
        left | {"participant": phone | {"identity": ""}},
        left | {"event": "participant_joined"},
        left | {"event": "something_new", "new": {"field": 1}},
        {"event": "room_finished", "id": "EV_4"},
    ]
    for metadata in ("", "{}", "[]", "nonsense", '{"callId": 7}', '{"callId": "ffffffffffff"}'):
        strange.append(finished | {"room": finished["room"] | {"metadata": metadata}})
    for event in strange:
        assert tell(silent, event) == 200, event
        assert silent.item(call_id) == item, event
    assert tell(silent, left) == 200
    assert silent.ended(call_id), "the event itself was right"


def test_an_event_before_the_fence_changes_nothing(silent: System) -> None:
    """Of the room of an attempt that LiveKit refused."""
    call_id = silent.place(ANSWERS)
    item = silent.item(call_id)
    for event in (phone_left(silent, call_id, "ROOM_DELETED", "dialing"), room_finished(silent, call_id)):
        assert tell(silent, event) == 200
    assert silent.item(call_id) == item


# ── the room ────────────────────────────────────────────────────────────────────────────────────────


def test_a_room_that_is_deleted_while_it_rings_ends_the_call(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It rings for a minute: longer than the slowest machine takes to delete the room.
    change_durations(monkeypatch, system, "dial_worker", scale=1)
    call_id = system.place(RINGS, ring_timeout_seconds=60)
    invites: list[int] = []

    async def delete(livekit: LiveKit, **request: Any) -> None:
        """As soon as it rings, another client deletes the room."""
        ringing = asyncio.ensure_future(dial(livekit, **request))
        while (await livekit.view_room(request["room"], request["identity"])).call_status != "ringing":
            assert not ringing.done()
        invites.append(len(system.calls_placed()))
        await livekit.delete_room(request["room"])
        await ringing

    dial = LiveKit.dial
    monkeypatch.setattr(LiveKit, "dial", delete)
    system.dial()
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("failed", "removed", None)
    assert invites == [1]
    assert len(system.calls_placed()) == 1
    nothing_left(system, call_id)


def test_a_room_that_is_deleted_before_the_dial_is_hung_up_as_soon_as_it_is_answered(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit recreates the room, without an agent. It has sent the event that the first one is finished."""
    call_id = system.place(TALKS_ON)
    monkeypatch.setattr(LiveKit, "dial", in_a_new_room(lambda: "left" in system.item(call_id)))
    system.dial()
    assert end_of(system, call_id) == ("completed", "agent_hangup", None)
    assert len(system.calls_placed()) == 1
    nothing_left(system, call_id)


def test_a_phone_answered_in_a_room_without_an_agent_is_hung_up_after_two_looks(
    silent: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = silent.place(TALKS_ON)
    monkeypatch.setattr(LiveKit, "dial", in_a_new_room(lambda: True))
    silent.dial()
    assert silent.item(call_id)["status"] == "in_progress"

    def hung_up() -> bool:
        silent.reconcile()
        return silent.ended(call_id)

    silent.run_until(hung_up)
    assert end_of(silent, call_id) == ("completed", "agent_left", None)
    assert len(silent.calls_placed()) == 1


def in_a_new_room(ready: Callable[[], bool]) -> Callable[..., Any]:
    """A dial whose room is deleted right before it; it goes out as soon as `ready`."""
    dial = LiveKit.dial

    async def deleted_first(livekit: LiveKit, **request: Any) -> None:
        await livekit.delete_room(request["room"])
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not await asyncio.to_thread(ready):
            assert time.monotonic() < deadline
        await dial(livekit, **request)

    return deleted_first
