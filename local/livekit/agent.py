"""The agent that LiveKit's stand-in lets join: it listens to nobody, but reports what a real one would.

It reads its dispatch and signs its reports with the very file that agents copy, examples/agent/ringonce_agent.py.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import aiohttp

from examples.agent.ringonce_agent import ReportFailed, ReportRefused, read_dispatch, report

if TYPE_CHECKING:
    from local.livekit.state import Call, LiveKit, Room

LOOK_SECONDS = 0.01


async def work(livekit: LiveKit, room: Room, job_metadata: str) -> None:
    """From the agent's joining to a little after the call's end. A refused report is noted in the log."""
    dispatch = read_dispatch(job_metadata)
    async with aiohttp.ClientSession() as session:
        tell = functools.partial(
            report,
            dispatch,
            room.info.name,
            api_key=livekit.settings.api_key,
            api_secret=livekit.settings.api_secret,
            session=session,
        )
        try:
            call = await _phone(livekit, room)
            if call is None:
                return
            await call.rang.wait()
            await tell("agent.ringing")
            if await asyncio.shield(call.answered) is not None:
                return
            name = dispatch.dynamic_variables.get("firstName", "there")
            turns = [{"speaker": "agent", "text": f"Hello {name}"}, {"speaker": "callee", "text": "Hello"}]
            await tell("agent.transcript", {"turns": turns})
            await asyncio.wait({call.end}, timeout=livekit.faults.durations(call.number)[1])
            await tell("agent.summary", {"text": f"{name} said hello"})
        except (ReportRefused, ReportFailed) as exc:
            livekit.note("report_failed", roomName=room.info.name, error=str(exc))


async def _phone(livekit: LiveKit, room: Room) -> Call | None:
    """The call in this room, once it is dialled; None when the room closes without."""
    while livekit.rooms.get(room.info.name) is room:
        for call in livekit.calls:
            if call.room_name == room.info.name and call.outcome is None:
                return call
        await asyncio.sleep(LOOK_SECONDS)
    return None
