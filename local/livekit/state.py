"""The state of the stand-in: rooms, their participants, the calls placed, and a log of all that happened.

Rules from livekit/livekit `pkg/service/roommanager.go`, `pkg/rtc/room.go`, `pkg/telemetry/events.go`.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from livekit.protocol import agent, agent_dispatch, models, room, sip

from local.livekit import agent as reporting
from local.livekit import phone
from local.livekit.faults import Faults
from local.livekit.webhooks import Notifier
from local.livekit.wire import Failure, twirp_error

AGENT, SIP = models.ParticipantInfo.AGENT, models.ParticipantInfo.SIP
# LiveKit's own limits in seconds (livekit `pkg/config/config.go`, `pkg/service/sip.go`; sip `participant.go`)
EMPTY_TIMEOUT, DEPARTURE_TIMEOUT = 300, 20
DIAL_LIMIT, DEFAULT_RINGING_TIMEOUT, DEFAULT_MAX_CALL_DURATION = 80, 180, 24 * 3600
# The number of the trunk, used when a dial names no caller.
TRUNK_NUMBER = "+15550009999"


@dataclass(frozen=True)
class Settings:
    """`time_scale` multiplies LiveKit's own limits, so that tests need not wait 80 seconds for one; the
    script of a call is in real seconds, and among the `faults`, which are what a reset goes back to.
    `slack`: real seconds that it waits besides for what others must do, however slow their machine is: come into a
    room, take an event."""

    api_key: str
    api_secret: str
    webhook_urls: tuple[str, ...] = ()
    time_scale: float = 1.0
    faults: Faults = Faults()  # noqa: RUF009 (frozen)
    slack: float = 0


@dataclass(eq=False)
class Member:
    """A participant of a room. `call`: only of a SIP participant."""

    room: Room
    info: models.ParticipantInfo
    call: Call | None = None


@dataclass(eq=False)
class Room:
    info: models.Room
    members: dict[str, Member] = field(default_factory=dict)
    dispatches: dict[str, agent_dispatch.AgentDispatch] = field(default_factory=dict)
    closing: asyncio.TimerHandle | None = None

    def guests(self) -> list[Member]:
        """Everyone but agents: an agent does not keep a room open, and does not count as a participant."""
        return [member for member in self.members.values() if member.info.kind != AGENT]


@dataclass(eq=False)
class Call:
    """One INVITE. `answered` becomes None, or the failure; `end` who ended it, when it is not its script."""

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
    end: asyncio.Future[Literal["callee", "removed"]] = field(default_factory=lambda: _future())
    rang: asyncio.Event = field(default_factory=asyncio.Event)

    async def ends_within(self, seconds: float) -> bool:
        """Waits so long; True as soon as the callee hangs up or the participant is removed."""
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


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex[:12]


class LiveKit:
    """One LiveKit server. Belongs to one event loop; `reset` ends every task it started."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notifier = Notifier(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clear()

    def _clear(self) -> None:
        self.rooms: dict[str, Room] = {}
        self.calls: list[Call] = []
        self.dispatches: list[dict[str, str]] = []
        self.events: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.refused_once: set[tuple[str, str, str]] = set()
        self.stopped = asyncio.Event()
        self.set_faults(self.settings.faults)
        self.webhook_urls = self.settings.webhook_urls

    def set_faults(self, faults: Faults) -> None:
        self.faults = faults
        self.method_failures: Counter[str] = Counter()
        self._dice: dict[str, random.Random] = {}

    async def reset(self) -> None:
        """Drops all state and ends every call, timer and delivery; waiting dials are answered `canceled`."""
        for open_room in self.rooms.values():
            if open_room.closing:
                open_room.closing.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in self.calls:
            if not call.answered.done():
                call.answered.set_result(phone.CANCELED)
            call.rang.set()
        self.stopped.set()
        self.notifier.forget()
        self._clear()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def dice(self, purpose: str) -> float:
        """The next random number below 1 for one purpose. Each has its own sequence, so that with a seed the
        outcomes of dials do not depend on how many webhooks were sent in between."""
        if purpose not in self._dice:
            seed = self.faults.seed
            self._dice[purpose] = random.Random(None if seed is None else f"{seed} {purpose}")
        return self._dice[purpose].random()

    def scaled(self, seconds: float) -> float:
        return seconds * self.settings.time_scale

    def note(self, kind: str, **fields: Any) -> None:
        """Writes to the log of events."""
        self.events.append({"sequence": len(self.events) + 1, "atMs": now_ms(), "kind": kind, **fields})

    # Rooms

    def find_room(self, name: str) -> Room:
        """Raises TwirpError when there is no such room."""
        if name not in self.rooms:
            raise twirp_error("not_found", "requested room does not exist")
        return self.rooms[name]

    def find_member(self, room_name: str, identity: str) -> Member:
        """Raises TwirpError when the room or the participant is absent."""
        found = self.rooms[room_name].members.get(identity) if room_name in self.rooms else None
        if not found:
            raise twirp_error("not_found", "participant does not exist")
        return found

    def get_or_create_room(self, request: room.CreateRoomRequest) -> Room:
        """The room of that name. One that exists stays as it is: the request's agents are ignored."""
        if existing := self.rooms.get(request.name):
            return existing
        created = now_ms()
        info = models.Room(
            sid=new_id("RM_"),
            name=request.name,
            metadata=request.metadata,
            empty_timeout=request.empty_timeout or EMPTY_TIMEOUT,
            departure_timeout=request.departure_timeout or DEPARTURE_TIMEOUT,
            max_participants=request.max_participants,
            creation_time=created // 1000,
            creation_time_ms=created,
        )
        new_room = self.rooms[request.name] = Room(info)
        self.note("room_started", roomName=request.name, sid=info.sid)
        self.notifier.notify("room_started", info)
        self._close_later(new_room, self.scaled(info.empty_timeout) + self.settings.slack)
        for wanted in request.agents:
            self.dispatch_agent(new_room, wanted.agent_name, wanted.metadata)
        return new_room

    def close_room(self, closed: Room, reason: models.DisconnectReason) -> None:
        """Everyone leaves, then the room is finished."""
        for member in list(closed.members.values()):
            self.leave(member, reason)
        if closed.closing:
            closed.closing.cancel()
        del self.rooms[closed.info.name]
        self.note("room_finished", roomName=closed.info.name, sid=closed.info.sid)
        self.notifier.notify("room_finished", closed.info)

    def _close_later(self, empty: Room, seconds: float) -> None:
        empty.closing = asyncio.get_running_loop().call_later(
            seconds, self.close_room, empty, models.DisconnectReason.ROOM_CLOSED
        )

    def dispatch_agent(self, into: Room, agent_name: str, metadata: str) -> agent_dispatch.AgentDispatch:
        """One more agent for the room: it joins after `agentJoinSeconds`, unless it never does."""
        dispatch = agent_dispatch.AgentDispatch(
            id=new_id("AD_"), agent_name=agent_name, room=into.info.name, metadata=metadata
        )
        dispatch.state.created_at = time.time_ns()
        into.dispatches[dispatch.id] = dispatch
        kept = {"id": dispatch.id, "agentName": agent_name, "roomName": into.info.name, "metadata": metadata}
        self.dispatches.append(kept)
        self.note("agent_dispatched", **kept)
        if phone.agent_joins(self, metadata):
            self.spawn(self._agent_joins(into, dispatch))
        return dispatch

    async def _agent_joins(self, into: Room, dispatch: agent_dispatch.AgentDispatch) -> None:
        await asyncio.sleep(self.faults.agent_join_seconds)
        if self.rooms.get(into.info.name) is not into or dispatch.id not in into.dispatches:
            return
        job = agent.Job(
            id=new_id("AJ_"),
            dispatch_id=dispatch.id,
            agent_name=dispatch.agent_name,
            metadata=dispatch.metadata,
            state=agent.JobState(status=agent.JobStatus.JS_RUNNING),
        )
        job.state.participant_identity = f"agent-{job.id}"
        dispatch.state.jobs.append(job)
        self.join(into, models.ParticipantInfo(identity=f"agent-{job.id}", kind=AGENT))
        if phone.agent_reports(self, dispatch.metadata):
            await reporting.work(self, into, dispatch.metadata)

    # Participants

    def join(self, into: Room, info: models.ParticipantInfo, call: Call | None = None) -> Member:
        """A participant enters. One with the same identity is put out first."""
        if former := into.members.get(info.identity):
            self.leave(former, models.DisconnectReason.DUPLICATE_IDENTITY)
        joined = now_ms()
        info.sid, info.state = new_id("PA_"), models.ParticipantInfo.ACTIVE
        info.joined_at, info.joined_at_ms, info.is_publisher = joined // 1000, joined, True
        info.tracks.add(sid=new_id("TR_"), type=models.TrackType.AUDIO, source=models.TrackSource.MICROPHONE)
        member = into.members[info.identity] = Member(into, info, call)
        if info.kind != AGENT and into.closing:
            into.closing.cancel()
        self._count(into)
        kind = models.ParticipantInfo.Kind.Name(info.kind)
        self.note("participant_joined", roomName=into.info.name, identity=info.identity, participantKind=kind)
        self.notifier.notify("participant_joined", into.info, info)
        self.notifier.notify("track_published", into.info, info, info.tracks[0])
        return member

    def leave(self, member: Member, reason: models.DisconnectReason) -> None:
        """A participant goes, and with it its call. Nothing happens if it has gone already."""
        from_room, info = member.room, member.info
        if from_room.members.get(info.identity) is not member:
            return
        del from_room.members[info.identity]
        info.state, info.disconnect_reason = models.ParticipantInfo.DISCONNECTED, reason
        self._count(from_room)
        name = models.DisconnectReason.Name(reason)
        if member.call:
            member.call.disconnect_reason = name
            if not member.call.end.done():
                member.call.end.set_result("removed")
        self.note("participant_left", roomName=from_room.info.name, identity=info.identity, reason=name)
        self.notifier.notify("track_unpublished", from_room.info, info, info.tracks[0])
        self.notifier.notify("participant_left", from_room.info, info)
        if info.kind != AGENT and not from_room.guests():
            self._close_later(from_room, self.scaled(from_room.info.departure_timeout))

    @staticmethod
    def _count(counted: Room) -> None:
        counted.info.num_participants = len(counted.guests())
        counted.info.num_publishers = len(counted.members)

    # Calls

    def dial(self, request: sip.CreateSIPParticipantRequest, script: phone.Script, limit: float) -> Call:
        """Joins the room as the SIP participant and sends the INVITE; the call then lives on its own,
        whatever becomes of the request that asked for it. `limit`: seconds until the server gives up."""
        into = self.get_or_create_room(room.CreateRoomRequest(name=request.room_name))
        call = Call(
            number=request.sip_call_to,
            caller=request.sip_number or TRUNK_NUMBER,
            trunk_id=request.sip_trunk_id,
            room_name=request.room_name,
            identity=request.participant_identity or f"sip_{request.sip_call_to}",
            sip_call_id=new_id("SCL_"),
            ringing_timeout=_seconds(request.ringing_timeout) or self.scaled(DEFAULT_RINGING_TIMEOUT),
            max_call_duration=_seconds(request.max_call_duration) or self.scaled(DEFAULT_MAX_CALL_DURATION),
            at_ms=now_ms(),
            script=script.outcome,
        )
        attributes = {
            "sip.callID": call.sip_call_id,
            "sip.trunkID": call.trunk_id,
            "sip.callStatus": call.status,
        }
        if not request.hide_phone_number:
            attributes["sip.phoneNumber"] = call.number
            attributes["sip.hostname"] = request.trunk.hostname or "sip.example.com"
            attributes["sip.trunkPhoneNumber"] = call.caller
        info = models.ParticipantInfo(
            identity=call.identity,
            name=request.participant_name,
            metadata=request.participant_metadata,
            kind=SIP,
            attributes={**request.participant_attributes, **attributes},
        )
        self.calls.append(call)
        member = self.join(into, info, call)
        call.participant_id = info.sid
        self.note("invite", **_of(call))
        self.spawn(phone.live(self, call, member, script, limit))
        return call

    def set_status(self, call: Call, member: Member, status: str) -> None:
        call.status = member.info.attributes["sip.callStatus"] = status
        if status == "ringing":
            call.rang.set()
        self.note(status, **_of(call))

    def answer(self, call: Call, member: Member) -> None:
        member.info.attributes.update({"sip.callIDFull": str(uuid.uuid4()), "sip.callTag": uuid.uuid4().hex[:8]})
        call.answered_at_ms = now_ms()
        self.set_status(call, member, "active")
        call.answered.set_result(None)

    def call_over(self, call: Call, outcome: str, failure: Failure | None) -> None:
        call.outcome, call.failure, call.ended_at_ms = outcome, failure, now_ms()
        self.note("call_over", outcome=outcome, **_of(call))
        call.rang.set()
        if not call.answered.done():
            call.answered.set_result(failure)

    def hang_up(self, calls: Iterable[Call]) -> int:
        """The callees hang up (or decline, while it rings). Returns how many did."""
        live = [call for call in calls if not call.end.done() and call.outcome is None]
        for call in live:
            call.end.set_result("callee")
        return len(live)


def _of(call: Call) -> dict[str, str]:
    return {
        "number": call.number,
        "roomName": call.room_name,
        "identity": call.identity,
        "sipCallId": call.sip_call_id,
    }


def _seconds(duration: Any) -> float:
    """A protobuf Duration in seconds; 0 when unset or negative."""
    return max(0.0, float(duration.seconds) + float(duration.nanos) / 1e9)
