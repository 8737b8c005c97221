"""Detects when the phone is answered: the callee hears nothing that is said before that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterable
from typing import Literal

from livekit import rtc
from livekit.agents.utils.participant import wait_for_participant_attribute, wait_for_track_publication

from reports import Reports

logger = logging.getLogger("ringonce.agent")

CALL_STATUS = "sip.callStatus"
# A LiveKit server that restarts takes every phone out of its rooms and brings it back after about ten seconds.
AWAY_SECONDS = 30.0
LOOK_SECONDS = 0.1
# A frame is loud when its samples' root mean square, of 32767, is over this: -60 dB. Before the answer LiveKit
# passes on neither ringing nor early media, and every sample of the phone's track is 0.
LOUD = 30.0
LOUD_FRAMES = 10
RATE, FRAME_MS = 8_000, 20

# How an answer is detected: by LiveKit's status, or by speech.
Answer = Literal["status", "speech"]


async def answered(room: rtc.Room, identity: str, reports: Reports) -> Answer | None:
    """Waits until the phone is answered; None when it, or the agent, leaves before that. Reports that it rings.

    An answered phone has the `sip.callStatus` `active`. When a LiveKit server restarts, the phone comes back as
    `dialing` even if it was answered, and stays so: then only its speech shows the answer. Must not be called
    again after an answer."""
    ringing = asyncio.create_task(_tell_ringing(room, identity, reports))
    try:
        while await _present(room, identity):
            if (answer := await _answer(room, identity)) is not None:
                return answer
        return None
    finally:
        ringing.cancel()


async def _tell_ringing(room: rtc.Room, identity: str, reports: Reports) -> None:
    while await _present(room, identity):
        # It raises RuntimeError when the phone leaves meanwhile.
        with contextlib.suppress(RuntimeError):
            await wait_for_participant_attribute(room, identity=identity, attribute=CALL_STATUS, value="ringing")
            reports.tell("agent.ringing")
            return


async def _answer(room: rtc.Room, identity: str) -> Answer | None:
    """The answer during one stay of the phone in the room; None when it, or the agent, leaves unanswered."""
    active = asyncio.create_task(
        wait_for_participant_attribute(room, identity=identity, attribute=CALL_STATUS, value="active")
    )
    heard = asyncio.create_task(_sounds(room, identity))
    try:
        await asyncio.wait({active, heard}, return_when=asyncio.FIRST_COMPLETED)
        if not active.done():
            heard.result()
            logger.info("LiveKit reports no answer, but speech is heard")
            return "speech"
        with contextlib.suppress(RuntimeError):
            active.result()
            return "status"
        return None
    finally:
        active.cancel()
        heard.cancel()
        await asyncio.gather(active, heard, return_exceptions=True)


async def _present(room: rtc.Room, identity: str) -> bool:
    """Whether the phone is in the room, or comes back within AWAY_SECONDS."""
    clock = asyncio.get_running_loop().time
    until = clock() + AWAY_SECONDS
    while identity not in room.remote_participants:
        if clock() >= until or not room.isconnected():
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return room.isconnected()


async def _sounds(room: rtc.Room, identity: str) -> None:
    """Waits until speech is heard on the phone's track."""
    while True:
        with contextlib.suppress(RuntimeError):
            publication = await wait_for_track_publication(
                room, identity=identity, kind=rtc.TrackKind.KIND_AUDIO, wait_for_subscription=True
            )
            if publication.track is not None and await _loud(publication.track):
                return
        await asyncio.sleep(LOOK_SECONDS)


async def _loud(track: rtc.Track) -> bool:
    """Whether LOUD_FRAMES frames of the track were loud before it ended."""
    stream = rtc.AudioStream.from_track(track=track, sample_rate=RATE, num_channels=1, frame_size_ms=FRAME_MS)
    try:
        return await _are_loud(stream)
    finally:
        await stream.aclose()


async def _are_loud(events: AsyncIterable[rtc.AudioFrameEvent]) -> bool:
    loud = 0
    async for event in events:
        samples = event.frame.data
        loud += math.sqrt(sum(sample * sample for sample in samples) / max(len(samples), 1)) > LOUD
        if loud == LOUD_FRAMES:
            return True
    return False
