"""The state of a server: its settings, its rooms, their participants and the calls placed."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from livekit.protocol import agent, agent_dispatch, models

from local.livekit.faults import Faults
from local.livekit.wire import Failure

AGENT, SIP = models.ParticipantInfo.AGENT, models.ParticipantInfo.SIP


@dataclass(frozen=True)
class Settings:
    """`time_scale` multiplies LiveKit's own limits, so that tests need not wait 80 seconds for one. The durations
    of a call are real seconds and part of `faults`, which a reset restores. `slack`: real seconds added to the
    limits for what other processes do, which a slow machine does late: join a room, take an event."""

    api_key: str
    api_secret: str
    webhook_urls: tuple[str, ...] = ()
    time_scale: float = 1.0
    faults: Faults = Faults()  # noqa: RUF009 - it is frozen
    slack: float = 0


@dataclass(eq=False)
class Member:
    """A participant of a room. `call`: only of a SIP participant; `job`, `work`: only of an agent.

    `connected`: False when its server has crashed; only redis still has it. `alive`: False when its own process
    has died, which its server does not know yet."""

    room: Room
    info: models.ParticipantInfo
    call: Call | None = None
    job: agent.Job | None = None
    work: asyncio.Task[None] | None = None
    connected: bool = True
    alive: bool = True


@dataclass(eq=False)
class Room:
    """`agents`: those of the request that created it. `counts`: later numbers of participants and publishers that
    `info` does not show yet, each with its time; `opened`: the time of the first update (both by the loop's
    clock). `orphan`: its server has crashed, and redis still has it."""

    info: models.Room
    agents: list[agent_dispatch.RoomAgentDispatch]
    opened: float
    members: dict[str, Member] = field(default_factory=dict)
    dispatches: dict[str, agent_dispatch.AgentDispatch] = field(default_factory=dict)
    closing: asyncio.TimerHandle | None = None
    counts: deque[tuple[float, int, int]] = field(default_factory=deque)
    orphan: bool = False

    def guests(self) -> list[Member]:
        """All participants but agents: an agent does not keep a room open and is not counted as a participant."""
        return [member for member in self.members.values() if member.info.kind != AGENT and member.connected]

    def working_agents(self) -> list[Member]:
        return [one for one in self.members.values() if one.info.kind == AGENT and one.connected and one.alive]

    def is_talked_in(self) -> bool:
        """Whether a phone in the room has answered."""
        return any(one.call and one.call.status == "active" for one in self.guests())


@dataclass(eq=False)
class Call:
    """One INVITE. `answered` becomes None or the failure. `end` becomes the reason when the call does not end by
    its script: `crashed` with the server, `lost` with the SIP service only. `status` is the phone's, which the
    attribute of `member` may lag behind."""

    number: str
    caller: str
    trunk_id: str
    room_name: str
    identity: str
    sip_call_id: str
    ringing_timeout: float
    max_call_duration: float
    at_ms: int
    script: str
    participant_id: str = ""
    status: str = "dialing"
    outcome: str | None = None
    disconnect_reason: str | None = None
    failure: Failure | None = None
    answered_at_ms: int | None = None
    ended_at_ms: int | None = None
    answered: asyncio.Future[Failure | None] = field(default_factory=lambda: _future())
    end: asyncio.Future[Literal["callee", "removed", "crashed", "lost"]] = field(default_factory=lambda: _future())
    rang: asyncio.Event = field(default_factory=asyncio.Event)
    member: Member = field(init=False)

    async def ends_within(self, seconds: float) -> bool:
        """Waits for at most `seconds`; True as soon as the callee hangs up or the participant is removed."""
        await asyncio.wait({self.end}, timeout=max(seconds, 0))
        return self.end.done()

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "at": datetime.fromtimestamp(self.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
            "atMs": self.at_ms,
            "roomName": self.room_name,
            "participantIdentity": self.identity,
            "sipCallId": self.sip_call_id,
            "trunkId": self.trunk_id,
            "from": self.caller,
            "ringingTimeoutSeconds": self.ringing_timeout,
            "maxCallDurationSeconds": self.max_call_duration,
            "script": self.script,
            "callStatus": self.status,
            "outcome": self.outcome,
            "sipStatusCode": self.failure.meta.get("sip_status_code") if self.failure else None,
            "disconnectReason": self.disconnect_reason,
            "answeredAtMs": self.answered_at_ms,
            "endedAtMs": self.ended_at_ms,
        }

    def ids(self) -> dict[str, str]:
        """The fields that identify it in the log of events."""
        return {
            "number": self.number,
            "roomName": self.room_name,
            "identity": self.identity,
            "sipCallId": self.sip_call_id,
        }


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()
