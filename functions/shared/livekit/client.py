"""The LiveKit API as this project uses it: rooms, agent dispatches, the phone's participant.

The only module that imports the LiveKit client. Its errors become LiveKitError, LiveKitUnreachableError (never
sent) or LiveKitUnclearError (sent, outcome unknown)."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, cast

import aiohttp
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from livekit import api
from livekit.protocol.agent import Job, JobStateReason, JobStatus
from livekit.protocol.models import ParticipantInfo

from shared.clock import to_ms
from shared.errors import (
    LiveKitError,
    LiveKitSecretUnreadableError,
    LiveKitUnclearError,
    LiveKitUnreachableError,
    StoreError,
)
from shared.livekit.secret import LiveKitSecret

CALL_STATUS = "sip.callStatus"

# Any other `code` in an error's JSON is not LiveKit's (twitchtv/twirp errors.go). The client spells data_loss
# as one word.
TWIRP_CODES = frozenset(
    {
        "canceled",
        "unknown",
        "invalid_argument",
        "malformed",
        "deadline_exceeded",
        "not_found",
        "bad_route",
        "already_exists",
        "permission_denied",
        "unauthenticated",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "dataloss",
    }
)

# ListRooms accepts more names; this many keep the response small.
ROOMS_PER_REQUEST = 50

# A room: phone and agent are both in it; it exists, with fewer participants; it does not exist.
Presence = Literal["both", "some", "absent"]


# What DeleteRoom answers for a room whose server crashed while redis lived (measured on livekit-server 1.13).
_ORPHAN = "could not find object"


class OrphanRoomError(LiveKitError):
    """LiveKit lists this room, but it cannot be deleted: the server that hosted it has crashed."""


@dataclasses.dataclass(frozen=True, slots=True)
class RoomView:
    """The participants of a room. call_status: the phone's `sip.callStatus`, None when it is absent.
    other_present: a second phone or another person. joined_at: epoch ms at which the phone joined, 0 when absent.
    """

    call_status: str | None
    agent_present: bool
    other_present: bool = False
    joined_at_ms: int = 0

    @property
    def accompanied(self) -> bool:
        """Whether an agent or another participant is with the phone."""
        return self.agent_present or self.other_present


@asynccontextmanager
async def connect(read_secret: Callable[[], LiveKitSecret], request_timeout: float) -> AsyncIterator[LiveKit]:
    """A client for one invocation (its session belongs to the running loop). request_timeout: seconds.

    read_secret is called at the first request; its StoreError fails that request as LiveKitSecretUnreadableError.
    So an unreadable secret fails only work that needs LiveKit."""
    client = _LazyClient(read_secret, request_timeout)
    try:
        yield LiveKit(cast(api.LiveKitAPI, client))
    finally:
        await client.aclose()


class _LazyClient:
    """api.LiveKitAPI, made when the first method of one of its services is called."""

    def __init__(self, read_secret: Callable[[], LiveKitSecret], request_timeout: float) -> None:
        self._read_secret = read_secret
        self._request_timeout = request_timeout
        self._making: asyncio.Task[api.LiveKitAPI] | None = None
        self._client: api.LiveKitAPI | None = None

    def __getattr__(self, service: str) -> _LazyService:
        return _LazyService(self, service)

    async def made(self) -> api.LiveKitAPI:
        """Raises LiveKitSecretUnreadableError. Concurrent requests share one read of the secret; after a failed
        one the next request reads it again.
        """
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        making = self._making
        try:
            # A canceled request must not cancel the read for the others.
            return await asyncio.shield(making)
        except Exception:
            if self._making is making:
                self._making = None
            raise

    async def _make(self) -> api.LiveKitAPI:
        try:
            secret = await asyncio.to_thread(self._read_secret)
        except StoreError as exc:
            raise LiveKitSecretUnreadableError from exc
        # `failover=False`: on LiveKit Cloud the client would otherwise send CreateSIPParticipant up to three
        # times, and LiveKit does not deduplicate it.
        self._client = api.LiveKitAPI(
            secret.url,
            secret.api_key,
            secret.api_secret,
            timeout=aiohttp.ClientTimeout(total=self._request_timeout),
            failover=False,
        )
        return self._client

    async def aclose(self) -> None:
        """Waits for nothing once the client is made, so that a cancelled task closes it too."""
        if self._making is not None and not self._making.done():
            await asyncio.wait([self._making])
        if self._client is not None:
            await self._client.aclose()


class _LazyService:
    def __init__(self, client: _LazyClient, name: str) -> None:
        self._client = client
        self._name = name

    def __getattr__(self, method: str) -> Any:
        async def request(*given: Any, **named: Any) -> Any:
            service = getattr(await self._client.made(), self._name)
            return await getattr(service, method)(*given, **named)

        return request


class LiveKit:
    """Every method raises LiveKitError, LiveKitUnreachableError or LiveKitUnclearError."""

    def __init__(self, client: api.LiveKitAPI) -> None:
        self._client = client

    async def create_room(self, name: str, room_metadata: str, agent_name: str, agent_metadata: str) -> str:
        """Makes the room with its agent dispatched. Returns the room's sid.

        Safe to repeat; an existing room keeps its agents (LiveKit ignores `agents` then).
        """
        with _livekit_errors():
            room = await self._client.room.create_room(
                api.CreateRoomRequest(
                    name=name,
                    metadata=room_metadata,
                    agents=[api.RoomAgentDispatch(agent_name=agent_name, metadata=agent_metadata)],
                )
            )
        return room.sid

    async def delete_lost_dispatches(self, room: str) -> bool:
        """Deletes the dispatches that no agent worker has taken, so that a new one cannot result in two agents.

        LiveKit does not repeat a dispatch. Returns False and deletes nothing while one has a job: its agent is
        late.
        """
        with _livekit_errors():
            dispatches = await self._client.agent_dispatch.list_dispatch(room)
        if any(_may_come(job) for dispatch in dispatches for job in dispatch.state.jobs):
            return False
        for dispatch in dispatches:
            with _absent_is_fine(), _livekit_errors():
                await self._client.agent_dispatch.delete_dispatch(dispatch.id, room)
        return True

    async def dispatch_agent(self, room: str, agent_name: str, agent_metadata: str) -> None:
        """Dispatches one more agent into the room."""
        with _livekit_errors():
            await self._client.agent_dispatch.create_dispatch(
                api.CreateAgentDispatchRequest(agent_name=agent_name, room=room, metadata=agent_metadata)
            )

    async def delete_room(self, name: str) -> None:
        """Deletes the room with its participants; an absent room is no error. Raises OrphanRoomError."""
        with _absent_is_fine(), _livekit_errors():
            await self._client.room.delete_room(api.DeleteRoomRequest(room=name))

    async def remove_orphan(self, name: str) -> None:
        """Removes a room whose server has crashed: created again it can be deleted (measured on livekit-server
        1.13).

        LiveKit dispatches the room's agent once more, which may recreate the room: it must be deleted again then.
        """
        with _absent_is_fine(), _livekit_errors():
            await self._client.room.create_room(api.CreateRoomRequest(name=name))
            await self._client.room.delete_room(api.DeleteRoomRequest(room=name))

    async def remove_participant(self, room: str, identity: str) -> bool:
        """Removes the phone from the room: CANCEL while it rings, BYE when answered. False: it is absent.

        LiveKit answers `unavailable` when the server that hosted the participant is gone.
        """
        try:
            with _livekit_errors():
                await self._client.room.remove_participant(
                    api.RoomParticipantIdentity(room=room, identity=identity)
                )
        except LiveKitError as exc:
            if exc.code not in ("not_found", "unavailable"):
                raise
            return False
        return True

    async def view_room(self, room: str, identity: str) -> RoomView:
        """The room's current participants; an absent room has none."""
        participants: Iterable[ParticipantInfo] = ()
        with _absent_is_fine(), _livekit_errors():
            answer = await self._client.room.list_participants(api.ListParticipantsRequest(room=room))
            participants = answer.participants
        view = RoomView(None, agent_present=False)
        for participant in participants:
            active = participant.state == ParticipantInfo.State.ACTIVE
            if participant.state == ParticipantInfo.State.DISCONNECTED:
                continue
            if participant.identity == identity:
                view = dataclasses.replace(
                    view,
                    call_status=participant.attributes.get(CALL_STATUS, "dialing"),
                    joined_at_ms=participant.joined_at_ms or to_ms(participant.joined_at),
                )
            elif active and participant.kind == ParticipantInfo.Kind.AGENT:
                view = dataclasses.replace(view, agent_present=True)
            elif active and participant.kind != ParticipantInfo.Kind.EGRESS:
                view = dataclasses.replace(view, other_present=True)
        return view

    async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
        """The presence in each of these rooms (at most ROOMS_PER_REQUEST), by one request.

        LiveKit counts agents among the publishers but not among the participants (livekit/livekit
        pkg/rtc/room.go `updateProto`): one participant and two publishers are a phone and an agent.
        """
        with _livekit_errors():
            answer = await self._client.room.list_rooms(api.ListRoomsRequest(names=names))
        present: dict[str, Presence] = dict.fromkeys(names, "absent")
        for room in answer.rooms:
            present[room.name] = "both" if room.num_participants >= 1 and room.num_publishers >= 2 else "some"
        return present

    async def dial(
        self,
        *,
        room: str,
        identity: str,
        trunk_id: str,
        to: str,
        from_number: str | None,
        ring_seconds: float,
        longest_seconds: float,
        timeout: float,
        dtmf: str = "",
    ) -> None:
        """Rings the phone and returns when it has answered. Not idempotent: each call of this rings once more.

        dtmf: sent after the answer; `w` waits for half a second.

        In seconds: ring: the ring time; longest: of the whole call from the room join, ringing included; timeout:
        of the HTTP request (the client raises it to ring + 2 s if it is less).
        """
        request = api.CreateSIPParticipantRequest(
            sip_trunk_id=trunk_id,
            sip_call_to=to,
            sip_number=from_number or "",
            room_name=room,
            participant_identity=identity,
            ringing_timeout=_duration(ring_seconds),
            max_call_duration=_duration(longest_seconds),
            wait_until_answered=True,
            dtmf=dtmf,
        )
        with _livekit_errors():
            await self._client.sip.create_sip_participant(request, timeout=timeout)


def _may_come(job: Job) -> bool:
    """Whether the agent of this job is in the room or on its way."""
    if job.state.status == JobStatus.JS_RUNNING:
        return True
    waits = (JobStateReason.JSR_UNSPECIFIED, JobStateReason.JSR_RETRYING)
    return job.state.status == JobStatus.JS_PENDING and job.state.reason in waits


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _error_of(exc: api.ServerError) -> LiveKitError:
    """The error for a response other than 200. Its JSON may come from a proxy: any part may be of any type."""
    code = exc.code if isinstance(exc.code, str) and exc.code in TWIRP_CODES else "unknown"
    if code == "unknown" and _ORPHAN in str(exc.message):
        return OrphanRoomError(code, exc.status)
    if code == "unknown" and exc.status == 401:
        # Plain text: LiveKit's response to an invalid token (livekit/livekit pkg/service/auth.go).
        return LiveKitError("unauthenticated", exc.status)
    if code == "unknown":
        # Not Twirp JSON: a proxy in front of LiveKit answered, LiveKit may have got the request.
        return LiveKitUnclearError(exc.status)
    sip = str(exc.metadata.get("sip_status_code")) if isinstance(exc.metadata, dict) else ""
    return LiveKitError(code, exc.status, int(sip) if re.fullmatch("[3-6][0-9]{2}", sip) else None)


@contextmanager
def _livekit_errors() -> Iterator[None]:
    try:
        yield
    except api.ServerError as exc:
        raise _error_of(exc) from exc
    except aiohttp.ClientConnectorError as exc:
        raise LiveKitUnreachableError from exc
    except (TimeoutError, aiohttp.ClientError, DecodeError, AttributeError, TypeError) as exc:
        # The last two: the response's JSON is not Twirp's (a proxy's again).
        raise LiveKitUnclearError from exc


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except LiveKitError as exc:
        if exc.code != "not_found":
            raise
