"""LiveKit's Twirp routes. Source: livekit/protocol `livekit/*.twirp.go`, livekit/livekit `pkg/service`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError, Message
from livekit.protocol import agent_dispatch, models, room, sip

from local.livekit import control, phone
from local.livekit.failures import LONG_IDENTITY, NO_NODE
from local.livekit.faults import TRANSPORT_FAILURES
from local.livekit.rooms import Settings
from local.livekit.state import DIAL_LIMIT, LiveKit
from local.livekit.wire import (
    BadTokenError,
    Failure,
    TwirpError,
    json_response,
    read_token,
    require_grant,
    rpc_error,
    twirp_error,
)

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_NAME_BYTES, MAX_DISPLAY_NAME_BYTES, MAX_METADATA_BYTES = 256, 128, 512 * 1024
BAD_GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
# Answers that do not come from Twirp: LiveKit's check of tokens, gateways in front of it.
OTHER_ANSWERS = {
    "text401": (401, "text/plain", "invalid API key"),
    "text503": (503, "text/plain", "upstream connect error or disconnect/reset before headers"),
    "json503": (503, "application/json", '{"code":"ServiceUnavailable","message":"Service Unavailable"}'),
    "list503": (503, "application/json", '["Service Unavailable"]'),
}


class TransportError(Exception):
    """The request fails below Twirp, in one of the ways of `faults.TRANSPORT_FAILURES`."""


def create_app(settings: Settings) -> web.Application:
    """The stand-in as an aiohttp application. Its shutdown ends every call and delivery."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)

    async def lifetime(app: web.Application) -> Any:
        app[control.LIVEKIT] = LiveKit(settings)
        yield
        await app[control.LIVEKIT].notifier.close()

    async def stop(app: web.Application) -> None:
        await app[control.LIVEKIT].reset()

    app.cleanup_ctx.append(lifetime)
    app.on_shutdown.append(stop)
    app.router.add_get("/", health)
    app.router.add_route("*", "/twirp/livekit.{method:.*}", twirp)
    app.add_routes(control.routes)
    return app


async def health(request: web.Request) -> web.Response:
    return web.Response(text="OK")


async def create_room(livekit: LiveKit, asked: room.CreateRoomRequest, _: web.Request) -> models.Room:
    _check_lengths(asked.name, asked.metadata, *(wanted.metadata for wanted in asked.agents))
    return livekit.shown(livekit.get_or_create_room(asked))


async def list_rooms(livekit: LiveKit, asked: room.ListRoomsRequest, _: web.Request) -> room.ListRoomsResponse:
    found = [livekit.shown(one) for name, one in livekit.rooms.items() if not asked.names or name in asked.names]
    return room.ListRoomsResponse(rooms=found)


async def delete_room(livekit: LiveKit, asked: room.DeleteRoomRequest, _: web.Request) -> Message:
    found = livekit.find_room(asked.room)
    if found.orphan:
        raise twirp_error("unknown", "could not find object")
    livekit.close_room(found, models.DisconnectReason.ROOM_DELETED)
    return room.DeleteRoomResponse()


async def list_participants(livekit: LiveKit, asked: room.ListParticipantsRequest, _: web.Request) -> Message:
    found = livekit.rooms.get(asked.room)
    inside = [member.info for member in found.members.values()] if found else []
    return room.ListParticipantsResponse(participants=inside)


async def get_participant(livekit: LiveKit, asked: room.RoomParticipantIdentity, _: web.Request) -> Message:
    return livekit.find_member(asked.room, asked.identity).info


async def remove_participant(livekit: LiveKit, asked: room.RoomParticipantIdentity, _: web.Request) -> Message:
    member = livekit.find_member(asked.room, asked.identity)
    if not member.connected:
        raise TwirpError(NO_NODE)
    livekit.leave(member, models.DisconnectReason.PARTICIPANT_REMOVED)
    return room.RemoveParticipantResponse()


async def create_dispatch(
    livekit: LiveKit, asked: agent_dispatch.CreateAgentDispatchRequest, _: web.Request
) -> agent_dispatch.AgentDispatch:
    _check_lengths(asked.room, asked.metadata)
    into = livekit.get_or_create_room(room.CreateRoomRequest(name=asked.room))
    return livekit.dispatch_agent(into, asked.agent_name, asked.metadata)


async def list_dispatch(
    livekit: LiveKit, asked: agent_dispatch.ListAgentDispatchRequest, _: web.Request
) -> agent_dispatch.ListAgentDispatchResponse:
    kept = livekit.find_served_room(asked.room).dispatches.values()
    return agent_dispatch.ListAgentDispatchResponse(
        agent_dispatches=[one for one in kept if asked.dispatch_id in ("", one.id)]
    )


async def delete_dispatch(
    livekit: LiveKit, asked: agent_dispatch.DeleteAgentDispatchRequest, _: web.Request
) -> agent_dispatch.AgentDispatch:
    deleted = livekit.delete_dispatch(livekit.find_served_room(asked.room), asked.dispatch_id)
    if not deleted:
        raise rpc_error("not_found", "dispatch ID not found")
    return deleted


async def create_sip_participant(
    livekit: LiveKit, asked: sip.CreateSIPParticipantRequest, request: web.Request
) -> sip.SIPParticipantInfo:
    """Places a call. Every request that reaches this point rings the phone: there is no deduplication."""
    if not asked.sip_trunk_id and not asked.HasField("trunk") and not asked.sip_number:
        raise twirp_error("invalid_argument", "missing sip trunk id and sip number")
    if not asked.sip_call_to:
        raise twirp_error("invalid_argument", "missing sip callee number")
    if "@" in asked.sip_call_to:
        what = "SipCallTo should be a phone number or SIP user, not a full SIP URI"
        raise twirp_error("invalid_argument", what)
    if not asked.room_name:
        raise twirp_error("invalid_argument", "missing room name")
    if len(asked.display_name.encode()) > MAX_DISPLAY_NAME_BYTES:
        what = f"DisplayName too long (max {MAX_DISPLAY_NAME_BYTES} characters)"
        raise twirp_error("invalid_argument", what)
    _check_lengths(asked.room_name, asked.participant_metadata)
    if len(asked.participant_identity.encode()) > MAX_NAME_BYTES:
        raise TwirpError(LONG_IDENTITY)

    number = livekit.faults.numbers.get(asked.sip_call_to)
    if number and number.fail and not (number.after or number.while_ringing):
        raise _failure(number.fail)
    script = phone.choose_script(livekit, asked.sip_call_to)
    if script.refused:
        refusal = (script.outcome, asked.sip_call_to, asked.room_name)
        if not (script.first_time_only and refusal in livekit.refused_once):
            livekit.refused_once.add(refusal)
            raise TwirpError(script.refused)

    # A header of the server's Go client; the Python client never sends it.
    timeout = request.headers.get("X-Twirp-Timeout-Ms", "")
    limit = int(timeout) / 1000 if timeout.isdecimal() else livekit.scaled(DIAL_LIMIT)
    call = await phone.dial(livekit, asked, script, limit if asked.wait_until_answered else float("inf"))
    if number and number.fail and number.while_ringing:
        await call.rang.wait()
        raise _failure(number.fail)
    if script.reply == "never":
        raise TransportError("hang")
    if script.reply in ("cut while ringing", "502 while ringing"):
        await call.rang.wait()
        raise TransportError("cut" if script.reply == "cut while ringing" else "html502")
    if asked.wait_until_answered:
        failure = await asyncio.shield(call.answered)
        if number and number.fail:
            raise _failure(number.fail)
        if failure:
            raise TwirpError(replace(failure, meta={}) if number and number.without_meta else failure)
        if script.reply == "cut when answered":
            raise TransportError("cut")
    return sip.SIPParticipantInfo(
        participant_id=call.participant_id,
        participant_identity=call.identity,
        room_name=call.room_name,
        sip_call_id=call.sip_call_id,
    )


def _check_lengths(name: str, *metadata: str) -> None:
    """LiveKit's limits (livekit `pkg/config/config.go` `LimitConfig`)."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise rpc_error("invalid_argument", f"room name length exceeds limits: max length {MAX_NAME_BYTES}")
    if any(len(text.encode()) > MAX_METADATA_BYTES for text in metadata):
        what = "metadata size exceeds limits"
        raise TwirpError(Failure("invalid_argument", f"{what} {MAX_METADATA_BYTES}", {"argument": what}))


@dataclass(frozen=True)
class Method:
    """An RPC: the type of its request, the grant it needs, and its handler."""

    takes: type[Message]
    grant: str
    does: Callable[[LiveKit, Any, web.Request], Awaitable[Message]]


METHODS = {
    "RoomService/CreateRoom": Method(room.CreateRoomRequest, "video.roomCreate", create_room),
    "RoomService/ListRooms": Method(room.ListRoomsRequest, "video.roomList", list_rooms),
    "RoomService/DeleteRoom": Method(room.DeleteRoomRequest, "video.roomCreate", delete_room),
    "RoomService/ListParticipants": Method(room.ListParticipantsRequest, "video.roomAdmin", list_participants),
    "RoomService/GetParticipant": Method(room.RoomParticipantIdentity, "video.roomAdmin", get_participant),
    "RoomService/RemoveParticipant": Method(room.RoomParticipantIdentity, "video.roomAdmin", remove_participant),
    "AgentDispatchService/CreateDispatch": Method(
        agent_dispatch.CreateAgentDispatchRequest, "video.roomAdmin", create_dispatch
    ),
    "AgentDispatchService/ListDispatch": Method(
        agent_dispatch.ListAgentDispatchRequest, "video.roomAdmin", list_dispatch
    ),
    "AgentDispatchService/DeleteDispatch": Method(
        agent_dispatch.DeleteAgentDispatchRequest, "video.roomAdmin", delete_dispatch
    ),
    "SIP/CreateSIPParticipant": Method(sip.CreateSIPParticipantRequest, "sip.call", create_sip_participant),
}


SERVICES = {path.partition("/")[0] for path in METHODS}


async def twirp(request: web.Request) -> web.Response:
    """Handles one RPC. The connection is cut when the server is down or crashes meanwhile."""
    livekit, connection = request.app[control.LIVEKIT], request.transport
    assert connection
    if livekit.is_down():
        return await _fail_below_twirp(livekit, request, "cut")
    livekit.connections[connection] += 1
    try:
        return await _answer(livekit, request)
    finally:
        livekit.connections.subtract((connection,))
        if not livekit.connections[connection]:
            del livekit.connections[connection]


async def _answer(livekit: LiveKit, request: web.Request) -> web.Response:
    """An RPC's answer: a message, a Twirp error in JSON, or a failure below Twirp."""
    path = request.match_info["method"]
    name = path.partition("/")[2]
    version = livekit.faults.server_version
    livekit.requests[name] += 1
    livekit.user_agents.add(request.headers.get("User-Agent", ""))
    livekit.note("request", method=name, requestId=request.headers.get("X-Livekit-Request-Id", ""))
    try:
        header = request.headers.get("Authorization")
        claims = read_token(header, livekit.settings.api_key, livekit.settings.api_secret, version)
        if path.partition("/")[0] not in SERVICES:
            return web.Response(status=404, text="404 page not found\n")
        if request.method != "POST":
            raise _bad_route(request, f"unsupported method {_quoted(request.method)} (only POST is allowed)")
        if not (method := METHODS.get(path)):
            raise _bad_route(request, f"no handler for path {_quoted(request.path)}")
        if request.content_type not in _CONTENT_TYPES:
            given = request.headers.get("Content-Type", "")
            raise _bad_route(request, f"unexpected Content-Type: {_quoted(given)}")
        message = _parse(method.takes(), await request.read(), request.content_type)
        require_grant(claims, method.grant, getattr(message, "room", ""))
        failure = await _failure_of_method(livekit, name, after=False)
        if failure:
            raise failure
        answer = await method.does(livekit, message, request)
        if failure := await _failure_of_method(livekit, name, after=True):
            raise failure
    except BadTokenError as error:
        return web.Response(status=401, text=str(error))
    except TwirpError as error:
        return error.failure.response(version)
    except TransportError as error:
        return await _fail_below_twirp(livekit, request, str(error))
    if request.content_type == "application/json":
        told = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        return json_response(told)
    return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")


def _bad_route(request: web.Request, what: str) -> TwirpError:
    return TwirpError(Failure("bad_route", what, {"twirp_invalid_route": f"{request.method} {request.path}"}))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_CONTENT_TYPES = ("application/protobuf", "application/json")


def _parse(message: Message, body: bytes, content_type: str) -> Message:
    try:
        if content_type == "application/json":
            Parse(body, message)
        else:
            message.ParseFromString(body)
    except (DecodeError, ParseError) as error:
        kind = content_type.removeprefix("application/")
        raise twirp_error("malformed", f"the {kind} request could not be decoded") from error
    return message


async def _failure_of_method(livekit: LiveKit, name: str, after: bool) -> Exception | None:
    """Applies the faults of the method to this request, before or after the method has taken effect."""
    faults = livekit.faults.of_method(name)
    if not faults:
        return None
    if faults.delay_seconds and not after:
        await asyncio.sleep(faults.delay_seconds)
    spent = faults.times is not None and livekit.method_failures[name] >= faults.times
    if not faults.fail or faults.after != after or spent or livekit.dice(name) >= faults.probability:
        return None
    livekit.method_failures[name] += 1
    return _failure(faults.fail)


def _failure(kind: str) -> Exception:
    if kind in TRANSPORT_FAILURES:
        return TransportError(kind)
    return TwirpError(Failure(kind, "fault of the stand-in"))


async def _fail_below_twirp(livekit: LiveKit, request: web.Request, how: str) -> web.Response:
    if how == "hang":
        await livekit.stopped.wait()
    if how in ("hang", "cut") and request.transport:
        request.transport.abort()
    if how in OTHER_ANSWERS:
        status, content_type, text = OTHER_ANSWERS[how]
        return web.Response(status=status, text=text, content_type=content_type)
    return web.Response(status=502, text=BAD_GATEWAY_PAGE, content_type="text/html")
