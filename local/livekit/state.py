"""One LiveKit server: the changes of its rooms, their participants and calls, and a log of them.

Rules from livekit/livekit `pkg/service/roommanager.go`, `pkg/rtc/room.go`, `pkg/telemetry/events.go`.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

from livekit.protocol import agent, agent_dispatch, models, room, sip

from local.livekit import agent as agents
from local.livekit.failures import CANCELED, NO_NODE, NO_NODES, NOT_PUBLISHED
from local.livekit.faults import Faults
from local.livekit.rooms import AGENT, SIP, Call, Member, Room, Settings
from local.livekit.webhooks import Notifier
from local.livekit.wire import Failure, TwirpError, rpc_error

ROOM_END_REASONS = {
    models.DisconnectReason.ROOM_DELETED: models.RoomEndReason.ROOM_END_API_DELETE,
    models.DisconnectReason.ROOM_CLOSED: models.RoomEndReason.ROOM_END_IDLE_TIMEOUT,
}
# LiveKit's own limits in seconds (livekit `pkg/config/config.go`, `pkg/service/sip.go`, `pkg/rtc/room.go`; sip
# `participant.go`)
EMPTY_TIMEOUT, DEPARTURE_TIMEOUT, ROOM_UPDATE_INTERVAL = 300, 20, 5
DIAL_LIMIT, DEFAULT_RINGING_TIMEOUT, DEFAULT_MAX_CALL_DURATION = 80, 180, 24 * 3600
# Measured, in seconds: until a participant whose process died is removed, and until agents and SIP participants
# rejoin after the server's restart.
CONNECTION_TIMEOUT, AGENT_REJOINS, SIP_REJOINS = 22, 7, 9
# The SIP service's limit for publishing a participant's audio.
PUBLISH_LIMIT = 10
# Real seconds after which an agent that has not spoken leaves when its callee has left.
AGENT_LEAVES_SECONDS = 0.02
# The codecs of a server's default settings (livekit `pkg/config/config.go`).
ENABLED_CODECS = (
    "audio/opus",
    "audio/red",
    "video/VP8",
    "video/H264",
    "video/VP9",
    "video/AV1",
    "video/H265",
    "video/rtx",
)
# The number of the trunk, used when a dial names no caller.
TRUNK_NUMBER = "+15550009999"


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
        # Connections of the requests in progress: a server that crashes cuts them.
        self.connections: Counter[asyncio.Transport] = Counter()
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
        self.down_until = 0.0
        self._starting_agents: set[asyncio.Task[None]] = set()
        self.set_faults(self.settings.faults)
        self.webhook_urls = self.settings.webhook_urls

    def set_faults(self, faults: Faults) -> None:
        self.faults = faults
        self.method_failures: Counter[str] = Counter()
        # The number of lost dispatches: by the number to be called, and in total ("").
        self.dispatches_lost: Counter[str] = Counter()
        self._dice: dict[str, random.Random] = {}

    async def reset(self) -> None:
        """Drops all state and ends every call, timer and delivery; pending dials are answered `canceled`."""
        for open_room in self.rooms.values():
            if open_room.closing:
                open_room.closing.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for call in self.calls:
            if not call.answered.done():
                call.answered.set_result(CANCELED)
            call.rang.set()
        self.stopped.set()
        self.notifier.forget()
        self._clear()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
            raise rpc_error("not_found", "requested room does not exist")
        return self.rooms[name]

    def find_served_room(self, name: str) -> Room:
        """Raises TwirpError when no server has this room."""
        if name not in self.rooms or self.rooms[name].orphan:
            raise TwirpError(NO_NODE)
        return self.rooms[name]

    def find_member(self, room_name: str, identity: str) -> Member:
        """Raises TwirpError when the room or the participant is absent."""
        found = self.rooms[room_name].members.get(identity) if room_name in self.rooms else None
        if not found:
            raise rpc_error("not_found", "participant does not exist")
        return found

    def get_or_create_room(self, request: room.CreateRoomRequest) -> Room:
        """The room of that name. An existing one is not changed: the request's agents are ignored. An orphan is
        opened again with its state in redis, and its own agents are dispatched once more."""
        if existing := self.rooms.get(request.name):
            if existing.orphan:
                self._open(existing)
                for wanted in existing.agents:
                    self.dispatch_agent(existing, wanted.agent_name, wanted.metadata, outlives_room=True)
            return existing
        if self.faults.draining:
            raise TwirpError(NO_NODES)
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
            turn_password=uuid.uuid4().hex,
            enabled_codecs=[models.Codec(mime=mime) for mime in ENABLED_CODECS],
        )
        new_room = self.rooms[request.name] = Room(info, list(request.agents), 0)
        self._open(new_room)
        for wanted in new_room.agents:
            self.dispatch_agent(new_room, wanted.agent_name, wanted.metadata)
        return new_room

    def _open(self, opened: Room) -> None:
        opened.orphan, opened.opened = False, asyncio.get_running_loop().time()
        opened.dispatches.clear()
        self._count(opened)
        self.note("room_started", roomName=opened.info.name, sid=opened.info.sid)
        self.notifier.notify("room_started", self.shown(opened))
        self._close_later(opened, self.scaled(opened.info.empty_timeout) + self.settings.slack)

    def close_room(self, closed: Room, reason: models.DisconnectReason) -> None:
        """All participants leave, then the room is finished."""
        for member in list(closed.members.values()):
            self.leave(member, reason)
        if closed.closing:
            closed.closing.cancel()
        del self.rooms[closed.info.name]
        self.note("room_finished", roomName=closed.info.name, sid=closed.info.sid)
        self.notifier.notify("room_finished", self.shown(closed), end_reason=ROOM_END_REASONS[reason])

    def _close_later(self, empty: Room, seconds: float) -> None:
        empty.closing = asyncio.get_running_loop().call_later(
            seconds, self.close_room, empty, models.DisconnectReason.ROOM_CLOSED
        )

    def shown(self, of: Room) -> models.Room:
        """The room as LiveKit shows it: its counts are updated at intervals only."""
        own, now = self.faults.room_count_seconds, asyncio.get_running_loop().time()
        every = self.scaled(ROOM_UPDATE_INTERVAL) if own is None else own
        updated = of.opened + (now - of.opened) // every * every if every else now
        while of.counts and of.counts[0][0] <= updated:
            _, of.info.num_participants, of.info.num_publishers = of.counts.popleft()
        return of.info

    @staticmethod
    def _count(counted: Room) -> None:
        publishers = sum(one.connected and one.info.is_publisher for one in counted.members.values())
        counted.counts.append((asyncio.get_running_loop().time(), len(counted.guests()), publishers))

    # Agents

    def dispatch_agent(
        self, into: Room, agent_name: str, metadata: str, *, outlives_room: bool = False
    ) -> agent_dispatch.AgentDispatch:
        """Dispatches one more agent to the room. A free worker takes the job immediately, and its agent joins
        after `agentJoinSeconds`; without a free worker the dispatch is lost and not repeated. `outlives_room`: the
        agent joins also when the room was deleted meanwhile, and so creates it again."""
        dispatch = self._note_dispatch(into, agent_name, metadata)
        lost = self._lost_dispatch(metadata)
        if lost is None:
            job = self._new_job(dispatch, agent.JobState(status=agent.JobStatus.JS_PENDING))
            job.state.participant_identity = f"agent-{job.id}"
            task = self.spawn(self._agent_joins(into, dispatch, job, outlives_room))
            self._starting_agents.add(task)
            task.add_done_callback(self._starting_agents.discard)
        elif lost:
            status = agent.JobStatus.JS_PENDING if lost == "RETRYING" else agent.JobStatus.JS_FAILED
            self._new_job(dispatch, agent.JobState(status=status, reason=f"JSR_{lost}"))
        return dispatch

    def _lost_dispatch(self, metadata: str) -> str | None:
        """Why no worker takes the job of this dispatch, as the reason of its JobState; "" when there is no job to
        show a reason; None when a worker takes it."""
        faults, number = self.faults, agents.number_of(metadata)
        if self.dispatches_lost[number] < faults.of_number(number).lost_dispatches:
            self.dispatches_lost[number] += 1
            return faults.dispatches.reason or ""
        spent = faults.dispatches.times is not None and self.dispatches_lost[""] >= faults.dispatches.times
        if not spent and self.dice("dispatch") < faults.dispatches.lose:
            self.dispatches_lost[""] += 1
            return faults.dispatches.reason or ""
        if (
            self.dice("agent") < faults.rates.get("agent_never_joins", 0)
            or not agents.script_of_dispatch(faults, metadata).agent_joins
        ):
            return ""
        if faults.agent_capacity is not None and self.agents_at_work() >= faults.agent_capacity:
            return "NO_CAPACITY"
        return None

    def _note_dispatch(self, into: Room, agent_name: str, metadata: str) -> agent_dispatch.AgentDispatch:
        dispatch = agent_dispatch.AgentDispatch(
            id=new_id("AD_"), agent_name=agent_name, room=into.info.name, metadata=metadata
        )
        dispatch.state.created_at = time.time_ns()
        into.dispatches[dispatch.id] = dispatch
        kept = {"id": dispatch.id, "agentName": agent_name, "roomName": into.info.name, "metadata": metadata}
        self.dispatches.append(kept)
        self.note("agent_dispatched", **kept)
        return dispatch

    @staticmethod
    def _new_job(dispatch: agent_dispatch.AgentDispatch, state: agent.JobState) -> agent.Job:
        return dispatch.state.jobs.add(
            id=new_id("AJ_"),
            dispatch_id=dispatch.id,
            agent_name=dispatch.agent_name,
            metadata=dispatch.metadata,
            state=state,
        )

    def agents_at_work(self) -> int:
        """The number of agents in rooms and of those about to join."""
        return len(self._starting_agents) + sum(len(one.working_agents()) for one in self.rooms.values())

    async def _agent_joins(
        self, into: Room, dispatch: agent_dispatch.AgentDispatch, job: agent.Job, outlives_room: bool
    ) -> None:
        await asyncio.sleep(agents.join_seconds(self.faults, dispatch.metadata))
        if self.rooms.get(into.info.name) is not into and outlives_room:
            into = self.get_or_create_room(room.CreateRoomRequest(name=into.info.name))
        elif self.rooms.get(into.info.name) is not into or dispatch.id not in into.dispatches:
            return
        job.state.status = agent.JobStatus.JS_RUNNING
        info = models.ParticipantInfo(
            identity=job.state.participant_identity, kind=AGENT, attributes={"lk.agent.name": dispatch.agent_name}
        )
        member = self.join(into, info)
        member.job = job
        if into.is_talked_in():
            self.publish(member)
        if agents.reports(self.faults, dispatch.metadata):
            member.work = self.spawn(agents.work(self, into, dispatch.metadata))

    def delete_dispatch(self, into: Room, dispatch_id: str) -> agent_dispatch.AgentDispatch | None:
        """Deletes a dispatch: its agents leave, or do not join. None when there is no such dispatch."""
        deleted = into.dispatches.pop(dispatch_id, None)
        if deleted:
            identities = {job.state.participant_identity for job in deleted.state.jobs}
            for member in into.working_agents():
                if member.info.identity in identities:
                    self.leave(member, models.DisconnectReason.CLIENT_INITIATED)
        return deleted

    async def _silent_agents_leave(self, left: Room) -> None:
        """Agents that have not spoken leave after the callee, unless another participant is there."""
        await asyncio.sleep(AGENT_LEAVES_SECONDS)
        for member in left.working_agents() if not left.guests() else ():
            if not member.info.tracks:
                self.leave(member, models.DisconnectReason.CLIENT_INITIATED)

    # Participants

    def join(self, into: Room, info: models.ParticipantInfo, call: Call | None = None) -> Member:
        """A participant joins. One with the same identity is removed first."""
        if former := into.members.get(info.identity):
            self.leave(former, models.DisconnectReason.DUPLICATE_IDENTITY)
        joined = now_ms()
        info.sid, info.state = new_id("PA_"), models.ParticipantInfo.ACTIVE
        info.joined_at, info.joined_at_ms = joined // 1000, joined
        info.permission.CopyFrom(
            models.ParticipantPermission(
                can_subscribe=True, can_publish=True, can_publish_data=True, can_update_metadata=True
            )
        )
        member = into.members[info.identity] = Member(into, info, call)
        if info.kind != AGENT and into.closing:
            into.closing.cancel()
        self._count(into)
        kind = models.ParticipantInfo.Kind.Name(info.kind)
        self.note("participant_joined", roomName=into.info.name, identity=info.identity, participantKind=kind)
        self.notifier.notify("participant_joined", self.shown(into), info)
        return member

    def publish(self, member: Member) -> None:
        """Publishes a participant's audio: a phone's when it joins, an agent's at the answer."""
        info = member.info
        codec = models.SimulcastCodecInfo(
            mime_type="audio/opus", mid="0", cid="audio", video_layer_mode="ONE_SPATIAL_LAYER_PER_STREAM"
        )
        info.tracks.add(
            sid=new_id("TR_"),
            type=models.TrackType.AUDIO,
            name=info.identity,
            source=models.TrackSource.MICROPHONE,
            mime_type=codec.mime_type,
            mid=codec.mid,
            codecs=[codec],
            stream="camera",
            version=models.TimedVersion(unix_micro=time.time_ns() // 1000),
            backup_codec_policy=models.BackupCodecPolicy.SIMULCAST,
        )
        info.is_publisher = True
        self._count(member.room)
        self.notifier.notify("track_published", self.shown(member.room), info, info.tracks[0])

    def leave(self, member: Member, reason: models.DisconnectReason) -> None:
        """A participant leaves, and its call ends. Does nothing when it or its server is gone already."""
        from_room, info = member.room, member.info
        if from_room.members.get(info.identity) is not member or not member.connected:
            return
        del from_room.members[info.identity]
        info.state, info.disconnect_reason = models.ParticipantInfo.DISCONNECTED, reason
        self._count(from_room)
        name = models.DisconnectReason.Name(reason)
        if member.call:
            member.call.disconnect_reason = name
            if not member.call.end.done():
                member.call.end.set_result("removed")
        if member.job:
            failed = reason == models.DisconnectReason.CONNECTION_TIMEOUT
            member.job.state.status = agent.JobStatus.JS_FAILED if failed else agent.JobStatus.JS_SUCCESS
        self.note("participant_left", roomName=from_room.info.name, identity=info.identity, reason=name)
        for track in info.tracks:
            self.notifier.notify("track_unpublished", self.shown(from_room), info, track)
        self.notifier.notify("participant_left", self.shown(from_room), info)
        if info.kind != AGENT and not from_room.guests():
            self.spawn(self._silent_agents_leave(from_room))
            self._close_later(from_room, self.scaled(from_room.info.departure_timeout))

    # Deaths

    def crash(self, down: float) -> None:
        """The server crashes with the SIP service and the agents while redis lives, and is up again after `down`
        seconds. Phones are cut off; every room keeps its state, and nothing happens in it any more."""
        self._server_dies(down)
        for task in self._starting_agents:
            task.cancel()
        for call in self._live_calls():
            call.end.set_result("crashed")
        for member in self._everyone():
            _stop_work(member)
            member.alive = False
        self.note("crash")

    def restart(self, down: float, phones_rejoin: float | None, agents_rejoin: float | None) -> None:
        """The server goes down and is up again after `down` seconds; phones, SIP service and agents continue
        without it and rejoin after so many seconds more (None: SIP_REJOINS and AGENT_REJOINS, scaled)."""
        self._server_dies(down)
        for task in self._starting_agents:
            task.cancel()
        for member in self._everyone():
            is_agent = member.info.kind == AGENT
            asked, own = (agents_rejoin, AGENT_REJOINS) if is_agent else (phones_rejoin, SIP_REJOINS)
            if member.alive:
                self.spawn(self._rejoins(member, down + (self.scaled(own) if asked is None else asked)))
        self.note("restart")

    def is_down(self) -> bool:
        return asyncio.get_running_loop().time() < self.down_until

    def _server_dies(self, down: float) -> None:
        self.down_until = asyncio.get_running_loop().time() + down
        for connection in self.connections:
            connection.abort()
        self.notifier.lose_all()
        for orphan in self.rooms.values():
            self.shown(orphan)
            orphan.counts.clear()
            orphan.orphan = True
            if orphan.closing:
                orphan.closing.cancel()
            for member in orphan.members.values():
                member.connected = False

    def _everyone(self) -> list[Member]:
        return [member for one in self.rooms.values() for member in one.members.values()]

    async def _rejoins(self, member: Member, seconds: float) -> None:
        """A participant that outlived its server rejoins: a phone's `sip.callStatus` is `dialing` again. The first
        one opens the room again; its agents' dispatches reach no worker, because none has registered yet."""
        await asyncio.sleep(seconds)
        if not member.alive or (member.call and member.call.outcome is not None):
            return
        name = member.room.info.name
        into = self.rooms.get(name)
        if into is None:
            into = self.get_or_create_room(room.CreateRoomRequest(name=name))
        elif into.orphan:
            self._open(into)
            for wanted in into.agents:
                self._note_dispatch(into, wanted.agent_name, wanted.metadata)
        elif (there := into.members.get(member.info.identity)) and there.connected:
            return
        info = models.ParticipantInfo(
            identity=member.info.identity,
            name=member.info.name,
            metadata=member.info.metadata,
            kind=member.info.kind,
            attributes=member.info.attributes,
        )
        if member.call:
            info.attributes["sip.callStatus"] = "dialing"
        again = self.join(into, info, member.call)
        again.job, again.work = member.job, member.work
        if member.call:
            member.call.member, member.call.participant_id = again, info.sid
        if member.info.tracks:
            self.publish(again)

    def agents_die(self, dying: Iterable[Member], at_once: bool) -> int:
        """Kills agents' processes. The server notices it after CONNECTION_TIMEOUT, or with `at_once` immediately.
        Returns how many were killed."""
        died = [member for member in dying if member.info.kind == AGENT and member.connected and member.alive]
        for member in died:
            _stop_work(member)
            if at_once:
                self.leave(member, models.DisconnectReason.CLIENT_INITIATED)
            else:
                self._goes_silent(member)
        return len(died)

    def sip_dies(self, calls: Iterable[Call]) -> int:
        """Kills the SIP service of these calls: their phones get no more audio, and the server notices it after
        CONNECTION_TIMEOUT. Returns how many calls were active."""
        wanted = set(calls)
        lost = [call for call in self._live_calls() if call in wanted and call.member.connected]
        for call in lost:
            call.end.set_result("lost")
            self._goes_silent(call.member)
        return len(lost)

    def _goes_silent(self, member: Member) -> None:
        member.alive = False
        self.spawn(self._times_out(member))

    async def _times_out(self, member: Member) -> None:
        await asyncio.sleep(self.scaled(CONNECTION_TIMEOUT))
        self.leave(member, models.DisconnectReason.CONNECTION_TIMEOUT)

    # Calls

    async def invite(self, request: sip.CreateSIPParticipantRequest, outcome: str) -> Call:
        """Joins the room as the SIP participant, publishes its audio and sends the INVITE. outcome: the outcome of
        the script that the phone follows.

        Raises TwirpError, without ringing, when the participant is removed before its audio is published."""
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
            script=outcome,
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
        call.member = self.join(into, info, call)
        call.participant_id = info.sid
        if self.faults.publish_seconds and await call.ends_within(self.faults.publish_seconds):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), self.scaled(PUBLISH_LIMIT))
            raise TwirpError(NOT_PUBLISHED)
        if self.rooms.get(request.room_name) is not into or into.orphan:
            raise TwirpError(NO_NODE)
        self.publish(call.member)
        self.calls.append(call)
        self.note("invite", **call.ids())
        return call

    def set_status(self, call: Call, status: str) -> None:
        call.status = status
        if call.member.connected:
            call.member.info.attributes["sip.callStatus"] = status
        if status == "ringing":
            call.rang.set()
        self.note(status, **call.ids())

    def answer(self, call: Call) -> None:
        """The phone answers; the agents in the room begin to speak."""
        attributes = {"sip.callIDFull": str(uuid.uuid4()), "sip.callTag": uuid.uuid4().hex[:8]}
        if call.member.connected:
            call.member.info.attributes.update(attributes)
        call.answered_at_ms = now_ms()
        self.set_status(call, "active")
        for member in call.member.room.working_agents():
            if not member.info.tracks:
                self.publish(member)
        call.answered.set_result(None)

    def call_over(self, call: Call, outcome: str, failure: Failure | None) -> None:
        call.outcome, call.failure, call.ended_at_ms = outcome, failure, now_ms()
        self.note("call_over", outcome=outcome, **call.ids())
        call.rang.set()

    def tell(self, call: Call, failure: Failure | None) -> None:
        """Answers the dial unless it is answered already."""
        if not call.answered.done():
            call.answered.set_result(failure)

    def _live_calls(self) -> list[Call]:
        return [call for call in self.calls if not call.end.done() and call.outcome is None]

    def hang_up(self, calls: Iterable[Call]) -> int:
        """The callees of these calls hang up, or decline while it rings. Returns how many calls that ended."""
        wanted = set(calls)
        live = [call for call in self._live_calls() if call in wanted]
        for call in live:
            call.end.set_result("callee")
        return len(live)


def _stop_work(member: Member) -> None:
    if member.work:
        member.work.cancel()


def _seconds(duration: Any) -> float:
    """A protobuf Duration in seconds; 0 when unset or negative."""
    return max(0.0, float(duration.seconds) + float(duration.nanos) / 1e9)
