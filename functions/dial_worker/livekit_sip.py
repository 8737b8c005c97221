"""LiveKit as this project uses it: rooms, the agent's dispatch, the phone's participant.

The only import of the LiveKit client. Its errors become LiveKitError, LiveKitUnreachable (never sent) or
LiveKitUnclear (sent, outcome unknown).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, cast

import aiohttp
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from livekit import api
from livekit.protocol.models import ParticipantInfo

from shared.errors import LiveKitError, LiveKitSecretUnreadable, LiveKitUnclear, LiveKitUnreachable, StoreError
from shared.livekit_secret import LiveKitSecret

CALL_STATUS = "sip.callStatus"

# Any other `code` in an error's JSON is not LiveKit's (twitchtv/twirp errors.go). The client spells data_loss
# as one word.
TWIRP_CODES = frozenset(
    {
        "canceled", "unknown", "invalid_argument", "malformed", "deadline_exceeded", "not_found", "bad_route",
        "already_exists", "permission_denied", "unauthenticated", "resource_exhausted", "failed_precondition",
        "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "dataloss",
    }
)  # fmt: skip

# ListRooms takes many names; so many keep the answer small.
ROOMS_PER_REQUEST = 50

# A room: phone and agent are surely in it; it exists, with one of them or none; it does not exist.
Presence = Literal["both", "some", "absent"]


@dataclasses.dataclass(frozen=True, slots=True)
class RoomView:
    """Who is in a room. call_status: the phone's `sip.callStatus`, None when it is not there."""

    call_status: str | None
    agent_present: bool


@asynccontextmanager
async def connect(read_secret: Callable[[], LiveKitSecret], request_timeout: float) -> AsyncIterator[LiveKit]:
    """A client for one invocation (its session belongs to the running loop). request_timeout: seconds.

    read_secret is called at the first request; its StoreError fails that request as LiveKitSecretUnreadable. So a
    secret that cannot be read stops nothing that does not need LiveKit.
    """
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
        """Raises LiveKitSecretUnreadable. Requests that come meanwhile wait for the same read; the next one reads
        again.
        """
        if self._making is None:
            self._making = asyncio.create_task(self._make())
        making = self._making
        try:
            # A request that is given up takes the read away from none of the others.
            return await asyncio.shield(making)
        except Exception:
            if self._making is making:
                self._making = None
            raise

    async def _make(self) -> api.LiveKitAPI:
        try:
            secret = await asyncio.to_thread(self._read_secret)
        except StoreError as exc:
            raise LiveKitSecretUnreadable from exc
        # `failover=False`: on LiveKit Cloud the client would otherwise send CreateSIPParticipant up to three
        # times, and LiveKit does not recognise a repeated one.
        self._client = api.LiveKitAPI(
            secret.url,
            secret.apiKey,
            secret.apiSecret,
            timeout=aiohttp.ClientTimeout(total=self._request_timeout),
            failover=False,
        )
        return self._client

    async def aclose(self) -> None:
        if self._making is not None:
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
    """Every method raises LiveKitError, LiveKitUnreachable or LiveKitUnclear."""

    def __init__(self, client: api.LiveKitAPI) -> None:
        self._client = client

    async def create_room(self, name: str, room_metadata: str, agent_name: str, agent_metadata: str) -> str:
        """Makes the room with its agent dispatched. Returns the room's sid.

        Safe to repeat; a room that exists keeps the agents it has (`agents` is ignored then).
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

    async def delete_room(self, name: str) -> None:
        """Ends the room and everything in it; a room that is not there is no error."""
        with _absent_is_fine(), _livekit_errors():
            await self._client.room.delete_room(api.DeleteRoomRequest(room=name))

    async def remove_participant(self, room: str, identity: str) -> None:
        """Takes the phone out of the room: CANCEL while it rings, BYE when answered. Absent is no error."""
        with _absent_is_fine(), _livekit_errors():
            await self._client.room.remove_participant(api.RoomParticipantIdentity(room=room, identity=identity))

    async def view_room(self, room: str, identity: str) -> RoomView:
        """Who is there now. An absent room has nobody in it."""
        participants: Iterable[ParticipantInfo] = ()
        with _absent_is_fine(), _livekit_errors():
            answer = await self._client.room.list_participants(api.ListParticipantsRequest(room=room))
            participants = answer.participants
        status: str | None = None
        agent = False
        for participant in participants:
            if participant.state == ParticipantInfo.State.DISCONNECTED:
                continue
            if participant.identity == identity:
                status = participant.attributes.get(CALL_STATUS, "dialing")
            elif participant.kind == ParticipantInfo.Kind.AGENT:
                agent = agent or participant.state == ParticipantInfo.State.ACTIVE
        return RoomView(status, agent)

    async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
        """What is in each of these rooms (at most ROOMS_PER_REQUEST), by one request.

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
        self, *, room: str, identity: str, trunk_id: str, to: str, from_number: str | None, ring: float,
        longest: float, timeout: float,
    ) -> None:  # fmt: skip
        """Rings the phone and returns when it has answered. Each call of this rings once more.

        Seconds: ring, before it counts as not answered; longest, of the whole call from the room join, ringing
        included; timeout, of the HTTP request (the client raises it to ring + 2 s if it is less).
        """
        request = api.CreateSIPParticipantRequest(
            sip_trunk_id=trunk_id,
            sip_call_to=to,
            sip_number=from_number or "",
            room_name=room,
            participant_identity=identity,
            ringing_timeout=_duration(ring),
            max_call_duration=_duration(longest),
            wait_until_answered=True,
        )
        with _livekit_errors():
            await self._client.sip.create_sip_participant(request, timeout=timeout)


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


@contextmanager
def _livekit_errors() -> Iterator[None]:
    try:
        yield
    except api.ServerError as exc:
        code = exc.code if exc.code in TWIRP_CODES else "unknown"
        if code == "unknown" and exc.status >= 500:
            # Not Twirp JSON: a proxy in front of LiveKit answered, LiveKit may have got the request.
            raise LiveKitUnclear(exc.status) from exc
        if code == "unknown":
            code = {401: "unauthenticated", 403: "permission_denied", 429: "resource_exhausted"}.get(
                exc.status, code
            )
        # A SIP answer whose code cannot be read is a SIP answer all the same: 0.
        sip = (exc.sip_status_code or 0) if isinstance(exc, api.SipCallError) else None
        raise LiveKitError(code, exc.status, sip) from exc
    except aiohttp.ClientConnectorError as exc:
        raise LiveKitUnreachable from exc
    except (TimeoutError, aiohttp.ClientError, DecodeError, AttributeError) as exc:
        # AttributeError: the client found JSON that is not an object (a proxy's again).
        raise LiveKitUnclear from exc


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except LiveKitError as exc:
        if exc.code != "not_found":
            raise
