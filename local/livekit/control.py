"""The control API under `/_standin/`: shows what happened and injects faults. JSON; no token needed."""

from __future__ import annotations

import json
from typing import Any, Self, TypeVar

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from pydantic import TypeAdapter, ValidationError, model_validator

from local.livekit.faults import Model, Seconds
from local.livekit.state import LiveKit

LIVEKIT = web.AppKey("livekit", LiveKit)
routes = web.RouteTableDef()
Body = TypeVar("Body", bound=Model)
_ADDRESSES = TypeAdapter(list[str])


class Outage(Model):
    """Seconds for which every request is cut."""

    down_seconds: Seconds = 0


class Restart(Outage):
    phone_rejoin_seconds: Seconds | None = None
    agent_rejoin_seconds: Seconds | None = None


class Chosen(Model):
    """Selects the calls of one room, number or participant; all calls when none is named."""

    room_name: str | None = None
    number: str | None = None
    identity: str | None = None

    @model_validator(mode="after")
    def _chooses_once(self) -> Self:
        if sum(one is not None for one in (self.room_name, self.number, self.identity)) > 1:
            raise ValueError("name only one of roomName, number and identity")
        return self

    def room_names(self, livekit: LiveKit) -> set[str]:
        if self.room_name is not None:
            return {self.room_name}
        if self.number is None and self.identity is None:
            return set(livekit.rooms)
        found = (call for call in livekit.calls if call.number == self.number or call.identity == self.identity)
        return {call.room_name for call in found}


class AgentDeath(Chosen):
    at_once: bool = False


@routes.get("/_standin/calls")
async def calls(request: web.Request) -> web.Response:
    """Every INVITE sent, with its outcome; `?number=` filters. A `+` in the query is decoded as a space."""
    number = _number(request.query.get("number", ""))
    placed = request.app[LIVEKIT].calls
    return web.json_response({"calls": [call.as_json() for call in placed if number in ("", call.number)]})


@routes.get("/_standin/rooms")
async def rooms(request: web.Request) -> web.Response:
    """The rooms that exist, each with its participants, and whether its server has crashed (`orphan`)."""
    return web.json_response(
        {
            "rooms": [
                MessageToDict(request.app[LIVEKIT].shown(room))
                | {"participants": [MessageToDict(member.info) for member in room.members.values()]}
                | {"orphan": room.orphan}
                for room in request.app[LIVEKIT].rooms.values()
            ]
        }
    )


@routes.get("/_standin/dispatches")
async def dispatches(request: web.Request) -> web.Response:
    """Every dispatch of an agent with its metadata, also of rooms that no longer exist."""
    return web.json_response({"dispatches": request.app[LIVEKIT].dispatches})


@routes.get("/_standin/events")
async def events(request: web.Request) -> web.Response:
    """The log's events with a sequence above `?after=` (default 0)."""
    after = request.query.get("after", "0")
    if not after.isdecimal():
        return _refuse({"after": "must be a number"})
    return web.json_response({"events": request.app[LIVEKIT].events[int(after) :]})


@routes.get("/_standin/requests")
async def requests(request: web.Request) -> web.Response:
    """The number of requests by method, and their User-Agents. Each request's time is in the log (kind
    `request`)."""
    livekit = request.app[LIVEKIT]
    return web.json_response({"counts": livekit.requests, "userAgents": sorted(livekit.user_agents)})


@routes.get("/_standin/faults")
async def faults(request: web.Request) -> web.Response:
    return web.json_response(request.app[LIVEKIT].faults.model_dump(by_alias=True))


@routes.put("/_standin/faults")
async def set_faults(request: web.Request) -> web.Response:
    """Replaces the faults in the body and keeps the others; null resets one. 400 names each wrong field."""
    livekit = request.app[LIVEKIT]
    try:
        livekit.set_faults(livekit.faults.changed_by(await _read_object(request)))
    except ValidationError as error:
        return _refuse(_named(error))
    return web.json_response(livekit.faults.model_dump(by_alias=True))


@routes.put("/_standin/webhook-urls")
async def set_webhook_urls(request: web.Request) -> web.Response:
    """`{"urls": [...]}`: replaces the addresses that events are sent to."""
    livekit = request.app[LIVEKIT]
    try:
        livekit.webhook_urls = tuple(_ADDRESSES.validate_python((await _read_object(request)).get("urls")))
    except ValidationError:
        return _refuse({"urls": "must be a list of addresses"})
    return web.json_response({"urls": livekit.webhook_urls})


@routes.post("/_standin/hangup")
async def hang_up(request: web.Request) -> web.Response:
    """`{"number"}` or `{"identity"}`: the callee hangs up, or declines while it rings. 404: no such call."""
    livekit, wanted = request.app[LIVEKIT], await _read_object(request)
    if set(wanted) not in ({"number"}, {"identity"}):
        return _refuse({"body": "must hold either number or identity"})
    number, identity = wanted.get("number"), wanted.get("identity")
    count = livekit.hang_up(call for call in livekit.calls if call.number == number or call.identity == identity)
    return web.json_response({"hungUp": count}, status=200 if count else 404)


@routes.post("/_standin/crash")
async def crash(request: web.Request) -> web.Response:
    """`{"downSeconds": 0}`: LiveKit, its SIP service and the agents crash while redis lives. Every phone is cut
    off; ListRooms still shows every room, in which nothing happens any more. DeleteRoom does not find it;
    RemoveParticipant, ListDispatch and DeleteDispatch are `unavailable`. CreateRoom opens it again and dispatches
    its agents once more; DeleteRoom removes it then."""
    given = await _read(request, Outage)
    request.app[LIVEKIT].crash(given.down_seconds)
    return web.json_response({})


@routes.post("/_standin/restart")
async def restart(request: web.Request) -> web.Response:
    """`{"downSeconds": 0, "phoneRejoinSeconds": null, "agentRejoinSeconds": null}`: LiveKit alone restarts; calls
    continue. Phones and agents join again after these seconds (null: 9 and 7 s, scaled), a phone with the
    `sip.callStatus` `dialing`. Until then their rooms are as after a crash."""
    given = await _read(request, Restart)
    request.app[LIVEKIT].restart(given.down_seconds, given.phone_rejoin_seconds, given.agent_rejoin_seconds)
    return web.json_response({})


@routes.post("/_standin/agent-death")
async def agent_death(request: web.Request) -> web.Response:
    """`{"atOnce": false}`, with `roomName`, `number` or `identity` for that call's agents only: the agents'
    processes die. They leave as CONNECTION_TIMEOUT after 22 s (scaled), with `atOnce` immediately as
    CLIENT_INITIATED. 404: no agent."""
    livekit, given = request.app[LIVEKIT], await _read(request, AgentDeath)
    names = given.room_names(livekit)
    dying = [one for name in names if name in livekit.rooms for one in livekit.rooms[name].working_agents()]
    count = livekit.agents_die(dying, given.at_once)
    return web.json_response({"died": count}, status=200 if count else 404)


@routes.post("/_standin/sip-death")
async def sip_death(request: web.Request) -> web.Response:
    """`{}`, or `roomName`, `number` or `identity` for that call only: the SIP service dies. The phones get no more
    audio, their participants leave as CONNECTION_TIMEOUT after 22 s (scaled), and a pending dial is answered
    `deadline_exceeded` at LiveKit's limit of 80 s (scaled). 404: no call is active."""
    livekit, given = request.app[LIVEKIT], await _read(request, Chosen)
    names = given.room_names(livekit)
    count = livekit.sip_dies(call for call in livekit.calls if call.room_name in names)
    return web.json_response({"died": count}, status=200 if count else 404)


@routes.post("/_standin/reset")
async def reset(request: web.Request) -> web.Response:
    await request.app[LIVEKIT].reset()
    return web.json_response({})


async def _read(request: web.Request, body: type[Body]) -> Body:
    """The validated body. Raises HTTPBadRequest, which names each unknown or wrong field."""
    try:
        return body.model_validate(await _read_object(request))
    except ValidationError as error:
        message = json.dumps({"errors": _named(error)})
        raise web.HTTPBadRequest(text=message, content_type="application/json") from error


def _named(error: ValidationError) -> dict[str, str]:
    return {".".join(map(str, found["loc"])) or "body": found["msg"] for found in error.errors()}


async def _read_object(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        message = json.dumps({"errors": {"body": "must be a JSON object"}})
        raise web.HTTPBadRequest(text=message, content_type="application/json")
    return body


def _number(text: str) -> str:
    return "+" + text[1:] if text.startswith(" ") else text


def _refuse(errors: dict[str, str]) -> web.Response:
    return web.json_response({"errors": errors}, status=400)
