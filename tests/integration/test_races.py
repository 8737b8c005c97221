"""Orders of events that the model of the dialling protocol (tests/model) found, played with the real parts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from shared.call import Call
from shared.errors import LiveKitUnclearError
from shared.limits import LimitStore
from shared.livekit.client import LiveKit, RoomView
from tests.integration.test_reconcile import reconcile_until_ended
from tests.interleaving import change, once
from tests.system import System


def told_by_livekit(system: System, call_id: str, name: str, sid: str) -> str:
    """LiveKit's event about one of the call's rooms, as the handler takes it. Returns what was done."""
    room_name = system.item(call_id)["roomName"]
    event = WebhookEvent(
        event=name, room=Room(name=room_name, sid=sid, metadata=f'{{"callId":"{call_id}"}}'), created_at=1
    )
    if name == "participant_left":
        reason = DisconnectReason.CLIENT_INITIATED
        event.participant.CopyFrom(ParticipantInfo(identity=f"call-{call_id}", disconnect_reason=reason))
    applied: str = system.modules["livekit_events"].event_applier.apply(event)[0]
    return applied


def after_the_next_read(system: System, monkeypatch: pytest.MonkeyPatch, call_id: str, **changes: Any) -> None:
    """The record changes between the handler's reading it and its write."""
    calls = system.modules["livekit_events"].event_applier.calls
    read = calls.get

    def read_and_change(asked: str) -> Call | None:
        seen: Call | None = read(asked)
        monkeypatch.setattr(calls, "get", read)
        change(system, call_id, **changes)
        return seen

    monkeypatch.setattr(calls, "get", read_and_change)


@pytest.mark.parametrize("name", ["room_finished", "participant_left"])
@pytest.mark.parametrize("status", ["dialing", "in_progress"])
def test_an_event_of_the_last_attempts_room_says_nothing_of_the_next(
    system: System, monkeypatch: pytest.MonkeyPatch, status: str, name: str
) -> None:
    call_id = system.place()
    later = int(time.time() * 1000) + 60_000
    change(
        system, call_id, status="dialing", lease_id="one", lease_until_ms=later, room_sid="RM_1", dialed_at_ms=1
    )
    after_the_next_read(system, monkeypatch, call_id, status=status, lease_id="two", room_sid="RM_2")
    assert told_by_livekit(system, call_id, name, "RM_1") == "ignored"
    item = system.item(call_id)
    assert (item["status"], item.get("left")) == (status, None)


def test_an_event_of_the_answered_room_ends_a_call_answered_meanwhile(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = system.place()
    later = int(time.time() * 1000) + 60_000
    change(
        system, call_id, status="dialing", lease_id="one", lease_until_ms=later, room_sid="RM_1", dialed_at_ms=1
    )
    after_the_next_read(system, monkeypatch, call_id, status="in_progress", answered_at_ms=2)
    assert told_by_livekit(system, call_id, "participant_left", "RM_1") == "ended"


def test_an_earlier_rooms_event_does_not_hide_a_later_room_from_the_reconciler(system: System) -> None:
    """The second attempt's worker died before the fence, the call was canceled, the first room's event came."""
    call_id = system.place()
    change(system, call_id, lease_id="dead", lease_until_ms=1, attempts=2)
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    assert told_by_livekit(system, call_id, "room_finished", "RM_1") == "ignored"
    assert "dueShard" in system.item(call_id)
    change(system, call_id, check_at_ms=1)
    assert system.reconcile() == {"cleared": 1}
    assert "dueShard" not in system.item(call_id)


def test_a_room_that_closed_does_not_end_a_dial_that_is_still_on_its_way(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dial's answer is lost, its room closes, and only then does the phone join: the room is made again."""
    dial, view_room = LiveKit.dial, LiveKit.view_room
    call_id = system.place()
    ended_when_it_rang: list[bool] = []
    late: list[asyncio.Task[None]] = []
    looks: list[str] = []
    looked_twice = asyncio.Event()

    async def dial_late(livekit: LiveKit, **request: Any) -> None:
        async def after_two_looks() -> None:
            await looked_twice.wait()
            ended_when_it_rang.append(system.ended(call_id))
            await dial(livekit, **request)

        sid = system.item(call_id)["roomSid"]
        assert await asyncio.to_thread(told_by_livekit, system, call_id, "room_finished", sid) == "noted"
        late.append(asyncio.create_task(after_two_looks()))
        raise LiveKitUnclearError

    async def count_looks(livekit: LiveKit, room: str, identity: str) -> RoomView:
        if late:
            looks.append(room)
        if len(looks) == 2:
            looked_twice.set()
        return await view_room(livekit, room, identity)

    monkeypatch.setattr(LiveKit, "dial", dial_late)
    monkeypatch.setattr(LiveKit, "view_room", count_looks)
    system.run_until(lambda: system.ended(call_id))
    assert ended_when_it_rang == [False]
    assert len(system.calls_placed()) == 1


def test_a_call_that_another_worker_holds_is_not_cleared_by_one_that_waits(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot taken after the clearing would stay taken: nothing of the call would be due any more."""
    call_id = system.place()
    change(system, call_id, lease_id="dead", lease_until_ms=1, attempts=1)

    def leased_and_canceled() -> None:
        change(system, call_id, lease_id="other", lease_until_ms=int(time.time() * 1000) + 60_000, attempts=2)
        assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200

    system.limits.pause(1)
    once(monkeypatch, LimitStore, "standing", after=leased_and_canceled)
    system.dial()
    assert system.item(call_id)["status"] == "canceled"
    assert "dueShard" in system.item(call_id)


def test_a_call_is_not_ended_while_its_phone_cannot_be_hung_up(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to hang up while it rang, answered all the same, and LiveKit does not do what it is asked."""
    dial = LiveKit.dial
    call_id = system.place("+15550000012")

    async def dial_and_cancel(livekit: LiveKit, **request: Any) -> None:
        change(system, call_id, hangup={"reason": "canceled_by_api", "at": 1})
        await dial(livekit, **request)

    monkeypatch.setattr(LiveKit, "dial", dial_and_cancel)
    system.faults(deleteRoom={"fail": "unavailable"})
    system.dial()
    assert system.calls_placed()[0]["outcome"] is None
    assert system.item(call_id)["status"] == "dialing"
    system.faults(deleteRoom=None)
    change(system, call_id, lease_until_ms=1, check_at_ms=1)
    reconcile_until_ended(system, call_id)
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("canceled", "canceled_by_api")
    assert system.calls_placed()[0]["outcome"] is not None


def test_one_look_that_finds_nobody_does_not_end_a_call_that_was_asked_to_hang_up(system: System) -> None:
    """A look may be wrong; no process would hang up the phone once the call has left the index."""
    call_id = system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    now = int(time.time() * 1000)
    change(
        system,
        call_id,
        status="dialing",
        lease_id="dead",
        lease_until_ms=1,
        dialed_at_ms=now,
        check_at_ms=1,
        attempts=1,
    )
    change(system, call_id, hangup={"reason": "canceled_by_api", "at": now})
    assert system.reconcile() == {"noted": 1}
    assert not system.ended(call_id)
    reconcile_until_ended(system, call_id)
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("canceled", "canceled_by_api")
