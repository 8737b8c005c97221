"""The control API under `/_standin/`: look at what happened, and make things fail. JSON; no token needed."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from pydantic import TypeAdapter, ValidationError

from local.livekit.state import LiveKit

LIVEKIT = web.AppKey("livekit", LiveKit)
routes = web.RouteTableDef()
_ADDRESSES = TypeAdapter(list[str])


@routes.get("/_standin/calls")
async def calls(request: web.Request) -> web.Response:
    """Every INVITE placed, whatever became of it; `?number=` filters. A `+` may have arrived as a space."""
    number = _number(request.query.get("number", ""))
    placed = request.app[LIVEKIT].calls
    return web.json_response({"calls": [call.as_json() for call in placed if number in ("", call.number)]})


@routes.get("/_standin/rooms")
async def rooms(request: web.Request) -> web.Response:
    """The rooms that exist now, each with its participants."""
    return web.json_response(
        {
            "rooms": [
                MessageToDict(room.info)
                | {"participants": [MessageToDict(member.info) for member in room.members.values()]}
                for room in request.app[LIVEKIT].rooms.values()
            ]
        }
    )


@routes.get("/_standin/dispatches")
async def dispatches(request: web.Request) -> web.Response:
    """Every agent that was dispatched, with its metadata, whether or not its room still exists."""
    return web.json_response({"dispatches": request.app[LIVEKIT].dispatches})


@routes.get("/_standin/events")
async def events(request: web.Request) -> web.Response:
    """The log, from after `?after=` (a sequence; default 0)."""
    after = request.query.get("after", "0")
    if not after.isdecimal():
        return _refuse({"after": "must be a number"})
    return web.json_response({"events": request.app[LIVEKIT].events[int(after) :]})


@routes.get("/_standin/requests")
async def requests(request: web.Request) -> web.Response:
    """Requests by method, and the User-Agents seen. When each came is in the log (kind `request`)."""
    livekit = request.app[LIVEKIT]
    return web.json_response({"counts": livekit.requests, "userAgents": sorted(livekit.user_agents)})


@routes.get("/_standin/faults")
async def faults(request: web.Request) -> web.Response:
    return web.json_response(request.app[LIVEKIT].faults.model_dump(by_alias=True))


@routes.put("/_standin/faults")
async def set_faults(request: web.Request) -> web.Response:
    """Replaces the knobs named; the others stay. null: back to the default. 400 names what is wrong."""
    livekit = request.app[LIVEKIT]
    try:
        livekit.set_faults(livekit.faults.changed_by(await _read_object(request)))
    except ValidationError as error:
        return _refuse({".".join(map(str, found["loc"])): found["msg"] for found in error.errors()})
    return web.json_response(livekit.faults.model_dump(by_alias=True))


@routes.put("/_standin/webhook-urls")
async def set_webhook_urls(request: web.Request) -> web.Response:
    """`{"urls": [...]}`: where events go from now on."""
    livekit = request.app[LIVEKIT]
    try:
        livekit.webhook_urls = tuple(_ADDRESSES.validate_python((await _read_object(request)).get("urls")))
    except ValidationError:
        return _refuse({"urls": "must be a list of addresses"})
    return web.json_response({"urls": livekit.webhook_urls})


@routes.post("/_standin/hangup")
async def hang_up(request: web.Request) -> web.Response:
    """`{"number"}` or `{"identity"}`: the callee hangs up now, or declines while it rings. 404: no call."""
    livekit, wanted = request.app[LIVEKIT], await _read_object(request)
    if set(wanted) not in ({"number"}, {"identity"}):
        return _refuse({"body": "must hold either number or identity"})
    number, identity = wanted.get("number"), wanted.get("identity")
    count = livekit.hang_up(call for call in livekit.calls if call.number == number or call.identity == identity)
    return web.json_response({"hungUp": count}, status=200 if count else 404)


@routes.post("/_standin/reset")
async def reset(request: web.Request) -> web.Response:
    await request.app[LIVEKIT].reset()
    return web.json_response({})


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
