"""Hanging up: the right request for a phone that rings and for one that talks, and what its end is known of."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import cast

import pytest

from shared.call import Call, Outcome
from shared.call_store import CallStore, Write
from shared.hang_up import HANG_UP_REQUESTS, delete_room, hang_up_call, hang_up_phone
from shared.livekit.client import LiveKit, OrphanRoomError, RoomView
from tests.calls import ANSWERED, DIALING, NOW, asked_to_hang_up

ON, OFF = RoomView("active", agent_present=True), RoomView(None, agent_present=True)


class Services:
    """LiveKit and the table: what they are asked, in order. views: what looks find. orphan: the room is one."""

    def __init__(self, *views: RoomView, orphan: bool = False, asking: Write | None = None) -> None:
        self.views = list(views)
        self.orphan = orphan
        self.asking = asking
        self.asked: list[str] = []

    async def view_room(self, room: str, identity: str) -> RoomView:
        assert (room, identity) == (DIALING.room_name, DIALING.identity)
        self.asked.append("view")
        return self.views.pop(0)

    async def delete_room(self, name: str) -> None:
        self.asked.append(f"delete {name}")
        if self.orphan:
            raise OrphanRoomError("unknown", 500)

    async def remove_orphan(self, name: str) -> None:
        self.asked.append(f"remove {name}")

    async def remove_participant(self, room: str, identity: str) -> bool:
        self.asked.append(f"take {identity} out of {room}")
        return bool(self.views)

    def note_orphan(self, call_id: str) -> None:
        self.asked.append("note orphan")

    def ask_to_hang_up(self, seen: Call, reason: str, now: int) -> Write:
        self.asked.append(f"ask {reason} {now}")
        return self.asking or Write(True, dataclasses.replace(seen, hangup={"reason": reason, "at": now}))

    @property
    def parts(self) -> tuple[CallStore, LiveKit]:
        return cast(CallStore, self), cast(LiveKit, self)


DELETED = f"delete {DIALING.room_name}"
ORPHAN = [DELETED, "note orphan", f"remove {DIALING.room_name}"]


def test_an_orphan_is_noted_before_it_is_removed() -> None:
    services = Services()
    assert asyncio.run(delete_room(*services.parts, DIALING)) is True
    assert services.asked == [DELETED]
    services = Services(orphan=True)
    assert asyncio.run(delete_room(*services.parts, DIALING)) is False
    assert services.asked == ORPHAN


def test_a_phone_that_rings_is_taken_out_of_its_room_and_one_that_talks_loses_the_room() -> None:
    taken = [f"take {DIALING.identity} out of {DIALING.room_name}"]
    for views, there in (((ON,), True), ((), False)):
        services = Services(*views)
        assert asyncio.run(hang_up_phone(*services.parts, DIALING, answered=False)) is there
        assert services.asked == taken, "the room stays: a dial under way would make it again"
    for orphan, asked in ((False, [DELETED]), (True, ORPHAN)):
        services = Services(orphan=orphan)
        assert asyncio.run(hang_up_phone(*services.parts, DIALING, answered=True)) is not orphan
        assert services.asked == asked


def hang_up(services: Services, call: Call = ANSWERED) -> tuple[Call, Outcome] | None:
    return asyncio.run(hang_up_call(*services.parts, call, "agent_left", lambda: NOW))


@pytest.mark.parametrize(
    ("before", "orphan", "inferred"), [(ON, False, False), (OFF, False, True), (ON, True, True), (OFF, True, True)]
)
def test_the_moment_of_the_end_is_known_only_of_a_phone_that_was_on_and_lost_its_room(
    before: RoomView, orphan: bool, inferred: bool
) -> None:
    services = Services(before, OFF, orphan=orphan)
    found = hang_up(services)
    assert found is not None
    call, outcome = found
    assert call.hangup == {"reason": "agent_left", "at": NOW}
    assert outcome == Outcome("completed", "disconnected", inferred=inferred)
    assert services.asked == [f"ask agent_left {NOW}", "view", *(ORPHAN if orphan else [DELETED]), "view"]


def test_a_phone_that_is_still_on_has_not_been_hung_up() -> None:
    services = Services(ON, ON)
    assert hang_up(services) is None
    assert len(services.asked) == 1 + HANG_UP_REQUESTS, "of LiveKit, behind the table"


def test_what_was_asked_before_is_seen_through_and_not_asked_again() -> None:
    call = asked_to_hang_up(ANSWERED)
    services = Services(ON, OFF)
    found = hang_up(services, call)
    assert found is not None
    assert found[0] is call
    assert services.asked == ["view", DELETED, "view"]


@pytest.mark.parametrize("write", [Write(False, ANSWERED), Write(False, None)])
def test_a_call_that_moved_on_is_not_hung_up(write: Write) -> None:
    services = Services(asking=write)
    assert hang_up(services) is None
    assert services.asked == [f"ask agent_left {NOW}"], "nothing of LiveKit"
