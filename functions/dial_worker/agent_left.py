"""Handles the message that an agent has left a call under way: a callee who stays alone is hung up."""

from __future__ import annotations

import asyncio
import functools

from dial_worker.dial import Dialler
from shared.ending import clear_with_room, end_call
from shared.errors import LiveKitError
from shared.hang_up import delete_room, hang_up_call
from shared.telemetry import logger


async def look_for_agent(dialler: Dialler, call_id: str) -> None:
    """Hangs up an answered phone that is alone in its room, without an agent or a second phone.

    When LiveKit cannot be asked, the reconciler does it later. Raises StoreError when DynamoDB fails.
    """
    call = await asyncio.to_thread(dialler.calls.get, call_id)
    if (
        call is None
        or call.status != "in_progress"
        or call.agent_missing_since_ms is None
        or call.check_at_ms is None
    ):
        return
    try:
        view = await dialler.livekit.view_room(call.room_name, call.identity)
        if view.call_status is None:
            return
        if view.accompanied:
            await asyncio.to_thread(
                dialler.calls.note_missing, call, call.check_at_ms, agent_missing_since_ms=None
            )
            return
        hung_up = await hang_up_call(dialler.calls, dialler.livekit, call, "agent_left", dialler.clock)
        if hung_up is None:
            return
        ended = await asyncio.to_thread(end_call, dialler.calls, *hung_up, dialler.durations, dialler.clock)
        if ended is not None:
            delete = functools.partial(delete_room, dialler.calls, dialler.livekit)
            await clear_with_room(dialler.line, ended, delete)
    except LiveKitError as exc:
        logger.warning("agent not looked for", extra={"call_id": call_id, "livekit": str(exc)})
