"""The agent that joins the rooms of LiveKit's stand-in: it processes no audio, but sends a real agent's reports.

It reads its dispatch and signs its reports with the file that agents copy, examples/agent/ringonce_agent.py.
"""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any, Protocol

import aiohttp

from examples.agent.ringonce_agent import ReportFailedError, ReportRefusedError, read_dispatch, report
from local.livekit.faults import Faults
from local.livekit.rooms import Call, Room, Settings
from local.livekit.scripts import OUTCOMES, Script, script_of

LOOK_SECONDS = 0.01


class Server(Protocol):
    """The part of the server that an agent uses."""

    settings: Settings
    faults: Faults
    rooms: dict[str, Room]
    calls: list[Call]

    def note(self, kind: str, **fields: Any) -> None: ...


def number_of(metadata: str) -> str:
    """The number to be called, `to` in a dispatch's metadata; "" when it names none."""
    try:
        return str(json.loads(metadata)["to"])
    except (ValueError, TypeError, KeyError):
        return ""


def script_of_dispatch(faults: Faults, metadata: str) -> Script:
    """The script of the number to be called: its override, else the one of its digits."""
    number = number_of(metadata)
    fault = faults.numbers.get(number)
    return OUTCOMES[fault.outcome] if fault else script_of(number)


def join_seconds(faults: Faults, metadata: str) -> float:
    """Seconds that the agent of a dispatch needs to join."""
    own = faults.of_number(number_of(metadata)).agent_join_seconds
    return faults.agent_join_seconds if own is None else own


def reports(faults: Faults, metadata: str) -> bool:
    """Whether the agent of a dispatch sends reports (`work`)."""
    return script_of_dispatch(faults, metadata).agent_reports


async def work(server: Server, room: Room, job_metadata: str) -> None:
    """Sends the agent's reports, from its joining until shortly after the call's end. A refused report is
    logged."""
    dispatch = read_dispatch(job_metadata)
    async with aiohttp.ClientSession() as session:
        tell = functools.partial(
            report,
            dispatch,
            room.info.name,
            api_key=server.settings.api_key,
            api_secret=server.settings.api_secret,
            session=session,
        )
        try:
            call = await _phone(server, room)
            if call is None:
                return
            await call.rang.wait()
            await tell("agent.ringing")
            if await asyncio.shield(call.answered) is not None:
                return
            name = dispatch.dynamic_variables.get("firstName", "there")
            turns = [{"speaker": "agent", "text": f"Hello {name}"}, {"speaker": "callee", "text": "Hello"}]
            await tell("agent.transcript", {"turns": turns})
            await asyncio.wait({call.end}, timeout=server.faults.durations(call.number)[1])
            await tell("agent.summary", {"text": f"{name} said hello"})
        except (ReportRefusedError, ReportFailedError) as exc:
            server.note("report_failed", roomName=room.info.name, error=str(exc))


async def _phone(server: Server, room: Room) -> Call | None:
    """Waits for the call in this room; None when the room closes before one is dialled."""
    while server.rooms.get(room.info.name) is room:
        for call in server.calls:
            if call.room_name == room.info.name and call.outcome is None:
                return call
        await asyncio.sleep(LOOK_SECONDS)
    return None
