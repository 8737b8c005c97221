"""A short tone, for an agent without a speech provider."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from livekit import rtc

RATE = 48_000
HERTZ = 440
FRAME_SAMPLES = RATE // 100
# The share of full loudness. The tone fades in and out over EDGE_SECONDS, so that it does not click.
LOUDNESS = 0.2
EDGE_SECONDS = 0.02


def tone(seconds: float) -> Iterator[rtc.AudioFrame]:
    """The tone as frames of 10 ms."""
    total = int(seconds * RATE)
    for start in range(0, total, FRAME_SAMPLES):
        samples = [_sample(n, total) for n in range(start, start + FRAME_SAMPLES)]
        yield rtc.AudioFrame(struct.pack(f"<{FRAME_SAMPLES}h", *samples), RATE, 1, FRAME_SAMPLES)


def _sample(n: int, total: int) -> int:
    edge = EDGE_SECONDS * RATE
    loudness = LOUDNESS * max(0.0, min(1.0, n / edge, (total - n) / edge))
    return round(32767 * loudness * math.sin(2 * math.pi * HERTZ * n / RATE))


async def play(participant: rtc.LocalParticipant, seconds: float) -> None:
    """Publishes a track, plays the tone on it, and unpublishes the track."""
    source = rtc.AudioSource(RATE, 1)
    track = rtc.LocalAudioTrack.create_audio_track("tone", source)
    options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    publication = await participant.publish_track(track, options)
    for frame in tone(seconds):
        await source.capture_frame(frame)
    await source.wait_for_playout()
    await participant.unpublish_track(publication.sid)
    await source.aclose()
