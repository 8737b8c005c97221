"""Handles the message that an agent has left a call under way: a callee who stays alone is hung up."""

from __future__ import annotations

import asyncio
import functools

from dial_worker.dial import Dialling
from shared.ending import clear_with_room, end_call
from shared.errors import LiveKitError
from shared.hang_up import delete_room, hang_up_call
from shared.telemetry import logger


async def look_for_agent(parts: Dialling, call_id: str) -> None:
    """Hangs up an answered phone that is alone in its room, without an agent or a second phone.

    When LiveKit cannot be asked, the reconciler does it later. Raises StoreError when DynamoDB fails.
    """
    call = await asyncio.to_thread(parts.calls.get, call_id)
    if call is None or call.status != "in_progress" or call.agentMissingSince is None or call.checkAt is None:
        return
    try:
        view = await parts.livekit.view_room(call.roomName, call.identity)
        if view.call_status is None:
            return
        if view.accompanied:
            await asyncio.to_thread(parts.calls.note_missing, call, call.checkAt, agentMissingSince=None)
            return
        hung_up = await hang_up_call(parts.calls, parts.livekit, call, "agent_left", parts.clock)
        if hung_up is None:
            return
        ended = await asyncio.to_thread(end_call, parts.calls, *hung_up, parts.durations, parts.clock)
        if ended is not None:
            delete = functools.partial(delete_room, parts.calls, parts.livekit)
            await clear_with_room(parts.calls, parts.limits, ended, delete)
    except LiveKitError as exc:
        logger.warning("agent not looked for", extra={"call_id": call_id, "livekit": str(exc)})
