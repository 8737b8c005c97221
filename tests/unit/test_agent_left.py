"""A look for an agent that has left: only a phone that is alone in its room is hung up."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dial_worker.agent_left import look_for_agent
from dial_worker.dial import Dialler
from shared.call import Call, Outcome
from shared.call_store import Write
from shared.durations import Durations
from shared.errors import LiveKitError, LiveKitUnclearError
from shared.livekit.client import RoomView
from tests.calls import ANSWERED, NOW, ended
from tests.unit.test_hang_up import DELETED, OFF, Services

LEFT_ALONE = dataclasses.replace(ANSWERED, agent_missing_since_ms=NOW - 5_000, check_at_ms=NOW + 20_000)
ALONE = RoomView("active", agent_present=False)


class OneCall(Services):
    """The call as it is found, and how its end is written."""

    def __init__(self, call: Call | None, *views: RoomView, end: Write | None = None, **more: Any) -> None:
        super().__init__(*views, **more)
        self.call = call
        self.end_write = end
        self.trouble: LiveKitError | None = None

    def get(self, call_id: str) -> Call | None:
        return self.call

    async def view_room(self, room: str, identity: str) -> RoomView:
        if self.trouble is not None:
            raise self.trouble
        return await super().view_room(room, identity)

    def note_missing(self, seen: Call, check_at: int, **since: int | None) -> Write:
        self.asked.append(f"note {check_at} {since}")
        return Write(True, None)

    def end(self, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
        self.asked.append(f"end {outcome.status} {outcome.reason}")
        return self.end_write or Write(True, ended(seen, outcome.status, outcome.reason, at=now))

    def free_slot(self, call: Call) -> None:
        self.asked.append("free")

    def leave_due(self, call_id: str) -> None:
        self.asked.append("leave")


def looked(services: OneCall) -> list[str]:
    """What the table and LiveKit are asked."""
    line = SimpleNamespace(calls=services, free_slot=services.free_slot)
    dialler = SimpleNamespace(
        calls=services, livekit=services, line=line, durations=Durations(), clock=lambda: NOW
    )
    asyncio.run(look_for_agent(cast(Dialler, dialler), LEFT_ALONE.call_id))
    return services.asked


@pytest.mark.parametrize(
    "call",
    [
        None,
        dataclasses.replace(LEFT_ALONE, status="dialing"),
        dataclasses.replace(LEFT_ALONE, status="completed"),
        dataclasses.replace(LEFT_ALONE, agent_missing_since_ms=None),
        dataclasses.replace(LEFT_ALONE, check_at_ms=None),
    ],
    ids=["gone", "dialing", "ended", "agent back", "not due"],
)
def test_a_call_that_misses_no_agent_is_not_looked_at(call: Call | None) -> None:
    assert looked(OneCall(call)) == []


def test_a_phone_that_is_gone_is_left_to_its_own_event() -> None:
    assert looked(OneCall(LEFT_ALONE, OFF)) == ["view"]


@pytest.mark.parametrize(
    "view", [dataclasses.replace(ALONE, agent_present=True), dataclasses.replace(ALONE, other_present=True)]
)
def test_a_phone_with_someone_to_talk_to_goes_on_and_the_agent_is_missed_no_more(view: RoomView) -> None:
    assert looked(OneCall(LEFT_ALONE, view)) == [
        "view",
        f"note {LEFT_ALONE.check_at_ms} {{'agent_missing_since_ms': None}}",
    ]


HUNG_UP = ["view", f"ask agent_left {NOW}", "view", DELETED, "view"]


def test_a_phone_that_is_alone_is_hung_up_and_its_call_ends_and_is_cleared() -> None:
    services = OneCall(LEFT_ALONE, ALONE, ALONE, OFF)
    assert looked(services) == [*HUNG_UP, "end completed agent_left", "free", DELETED, "leave"]


def test_a_phone_that_is_still_on_is_the_reconcilers() -> None:
    assert looked(OneCall(LEFT_ALONE, ALONE, ALONE, ALONE)) == HUNG_UP


def test_an_end_that_came_first_clears_its_own_call() -> None:
    services = OneCall(LEFT_ALONE, ALONE, ALONE, OFF, end=Write(False, None))
    assert looked(services) == [*HUNG_UP, "end completed agent_left"]


def test_what_livekit_cannot_be_asked_is_the_reconcilers(caplog: pytest.LogCaptureFixture) -> None:
    services = OneCall(LEFT_ALONE, ALONE)
    services.trouble = LiveKitUnclearError()
    with caplog.at_level("WARNING"):
        assert looked(services) == []
    assert [record.message for record in caplog.records] == ["agent not looked for"]
