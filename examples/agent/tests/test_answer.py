"""Detecting the answer: from LiveKit's status, and from speech after a server's restart has reset the status."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import pytest
from livekit import rtc

import answer
from reports import Reports
from tests.fakes import IDENTITY, FakeRoom, Phone, until


@pytest.fixture(autouse=True)
def phones_are_participants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library accepts only participants that a server created."""
    monkeypatch.setattr(rtc, "RemoteParticipant", Phone)


class Recorder:
    """Records reports."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def tell(self, kind: str, data: dict[str, Any] | None = None) -> None:
        self.kinds.append(kind)


def wait(room: FakeRoom, recorder: Recorder) -> asyncio.Task[answer.Answer | None]:
    return asyncio.create_task(answer.answered(cast(rtc.Room, room), IDENTITY, cast(Reports, recorder)))


async def silence_heard(room: FakeRoom, frames: int = 2 * answer.LOUD_FRAMES) -> None:
    """Returns when the phone's track has carried silence for longer than detecting speech takes."""
    stream = rtc.AudioStream.from_track(track=room.phone.track.track, frame_size_ms=answer.FRAME_MS)
    async for event in stream:
        assert not any(event.frame.data)
        frames -= 1
        if not frames:
            break
    await stream.aclose()


def test_a_ringing_phone_is_answered_when_livekit_reports_it() -> None:
    async def run() -> None:
        room, recorder = FakeRoom(), Recorder()
        waiting = wait(room, recorder)
        await until(lambda: room.waited_for() == 2)
        room.status("ringing")
        await silence_heard(room)
        assert not waiting.done()
        room.status("active")
        assert await waiting == "status"
        assert recorder.kinds == ["agent.ringing"]
        assert room.waited_for() == 0

    asyncio.run(run())


def test_an_agent_that_joins_late_hears_an_answered_phone_with_the_status_dialing() -> None:
    async def run() -> None:
        room = FakeRoom()
        waiting = wait(room, Recorder())
        await silence_heard(room)
        assert not waiting.done()
        await room.phone.track.speak()
        assert await waiting == "speech"

    asyncio.run(run())


@pytest.mark.parametrize("said", ["active", None])
def test_the_wait_continues_for_a_phone_that_rejoins_after_a_restart(said: str | None) -> None:
    """The phone rang before the restart; it is answered before or after it rejoins."""

    async def run() -> None:
        room, recorder = FakeRoom(), Recorder()
        waiting = wait(room, recorder)
        await until(lambda: room.waited_for() == 2)
        room.status("ringing")
        room.leave()
        await until(lambda: room.waited_for() == 0)
        room.come_back()
        await until(lambda: room.waited_for() == 1)
        await silence_heard(room)
        assert not waiting.done()
        if said is None:
            await room.phone.track.speak()
        else:
            room.status(said)
        assert await waiting == ("speech" if said is None else "status")
        assert recorder.kinds == ["agent.ringing"]

    asyncio.run(run())


def test_a_phone_that_stays_away_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "AWAY_SECONDS", 0.05)

    async def run() -> None:
        room, recorder = FakeRoom(), Recorder()
        waiting = wait(room, recorder)
        await until(lambda: room.waited_for() == 2)
        room.leave()
        assert await waiting is None
        assert recorder.kinds == []

    asyncio.run(run())


@pytest.mark.parametrize("away", [True, False])
def test_a_room_that_closes_ends_the_wait(away: bool) -> None:
    async def run() -> None:
        room = FakeRoom()
        waiting = wait(room, Recorder())
        await until(lambda: room.waited_for() == 2)
        if away:
            room.leave()
        room.close()
        assert await waiting is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("levels", "loud"),
    [
        ([0] * 500, False),
        # The noise of a codec in silence.
        ([8] * 500, False),
        # A click on the line.
        ([0] * 100 + [20_000] * (answer.LOUD_FRAMES - 1) + [0] * 100, False),
        ([200] * answer.LOUD_FRAMES, True),
        # Syllables, and the pauses between them.
        ([0, 0, 300, -400] * answer.LOUD_FRAMES, True),
    ],
)
def test_speech_is_ten_loud_frames(levels: list[int], loud: bool) -> None:
    async def frames(levels: Iterable[int]) -> AsyncIterator[rtc.AudioFrameEvent]:
        for level in levels:
            yield rtc.AudioFrameEvent(rtc.AudioFrame(struct.pack("<160h", *[level] * 160), answer.RATE, 1, 160))

    assert asyncio.run(answer._are_loud(frames(levels))) is loud
