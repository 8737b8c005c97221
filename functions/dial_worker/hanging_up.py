"""Hanging up a call that was answered: its time is over, its agent is gone, or a client asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dial_worker.livekit_sip import LiveKit
from shared.call import Call, Outcome
from shared.call_store import CallStore

# How many requests to LiveKit `hang_up` makes.
HANG_UP_REQUESTS = 3


async def hang_up(
    calls: CallStore, livekit: LiveKit, call: Call, reason: str, clock: Callable[[], int]
) -> tuple[Call, Outcome] | None:
    """Writes the request to hang up, deletes the room, and looks whether the phone is off.

    Returns the call and its outcome when the phone is off; None when it is still on, or the call has moved on.
    Raises LiveKitError or StoreError; the reconciler repeats it until the phone is off.
    """
    if call.hangup is None:
        write = await asyncio.to_thread(calls.ask_to_hang_up, call, reason, clock())
        if not write.won or write.call is None:
            return None
        call = write.call
    was_on = (await livekit.view_room(call.roomName, call.identity)).call_status is not None
    ended_it = await livekit.delete_room(call.roomName)
    if (await livekit.view_room(call.roomName, call.identity)).call_status is not None:
        return None
    return call, Outcome("completed", "disconnected", inferred=not (was_on and ended_it))
