"""Hanging up a ringing phone or an answered call, and deleting a call's room."""

from __future__ import annotations

import asyncio

from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.clock import Clock
from shared.livekit.client import LiveKit, OrphanRoomError

# How many requests to LiveKit `hang_up_call` makes.
HANG_UP_REQUESTS = 3


async def delete_room(calls: CallStore, livekit: LiveKit, call: Call) -> bool:
    """Deletes the call's room, which hangs up every participant. Raises LiveKitError.

    Returns False when it was an orphan: its server has crashed, so it held no phone, even if LiveKit listed one.
    Removing it dispatches its agent once more.
    """
    try:
        await livekit.delete_room(call.room_name)
    except OrphanRoomError:
        # First, so that the removal's `room_finished` does not take the call out of the index of what is due.
        await asyncio.to_thread(calls.note_orphan, call.call_id)
        await livekit.remove_orphan(call.room_name)
        return False
    return True


async def hang_up_phone(calls: CallStore, livekit: LiveKit, call: Call, *, answered: bool) -> bool:
    """Hangs up the phone. Returns False when it was not in the room, or the room was an orphan.

    Before the answer the room is kept: a dial under way would recreate it without an agent. Raises LiveKitError.
    """
    if answered:
        return await delete_room(calls, livekit, call)
    return await livekit.remove_participant(call.room_name, call.identity)


async def hang_up_call(
    calls: CallStore, livekit: LiveKit, call: Call, reason: str, clock: Clock
) -> tuple[Call, Outcome] | None:
    """Hangs up an answered call: stores the request to hang up, deletes the room, checks that the phone is gone.

    Returns the call and its outcome when the phone is gone; None when it is not, or when the request was lost to
    another change. Raises LiveKitError or StoreError; the reconciler repeats it until the phone is gone.
    """
    if call.hangup is None:
        write = await asyncio.to_thread(calls.ask_to_hang_up, call, reason, clock())
        if not write.won or write.call is None:
            return None
        call = write.call
    was_on = (await livekit.view_room(call.room_name, call.identity)).call_status is not None
    ended_it = await delete_room(calls, livekit, call)
    if (await livekit.view_room(call.room_name, call.identity)).call_status is not None:
        return None
    return call, Outcome("completed", "disconnected", inferred=not (was_on and ended_it))
