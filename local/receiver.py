"""A customer's webhook endpoint: takes webhooks on any path, verifies them with `standardwebhooks`, and keeps all
of them. Requests to `/_receiver/` list them and set faults. `python -m local.receiver` runs it as a process."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from standardwebhooks import Webhook, WebhookVerificationError

from local.command_line import CommandLine, port
from local.http_server import serve

MAX_BODY_BYTES = 1024 * 1024
DRIP_SECONDS = 0.2
ANY_PATH = "*"


class Behaviour(BaseModel):
    """How a path answers its first `times` requests (None: all). `hang`: never. `drip`: one byte at a time,
    without end. `big_body`: the number of bytes of the body."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, validate_by_name=True, frozen=True)
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    retry_after: int | str | None = None
    redirect_to: str | None = None
    hang: bool = False
    drip: bool = False
    big_body: int | None = None
    times: int | None = None


@dataclass
class Receiver:
    """The received webhooks and the behaviour of each path. show: print each webhook when it arrives."""

    secrets: tuple[str, ...]
    show: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def next_behaviour(self, path: str) -> Behaviour:
        """How to answer this request: the behaviour of its path, else that of any path, unless it is used up."""
        for key in (path, ANY_PATH):
            behaviour = self.behaviours.get(key)
            used = self.uses.get(key, 0)
            if behaviour and (behaviour.times is None or used < behaviour.times):
                self.uses[key] = used + 1
                return behaviour
        return Behaviour()


RECEIVER = web.AppKey("receiver", Receiver)
routes = web.RouteTableDef()
_BEHAVIOURS = TypeAdapter(dict[str, Behaviour | None])
_SECRETS = TypeAdapter(list[str])


def create_app(secrets: Sequence[str] = (), show: bool = False) -> web.Application:
    """The receiver as an aiohttp application. A webhook is verified if it is signed with one of `secrets`
    (`whsec_...`). show: print each webhook when it arrives."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)

    async def set_up(app: web.Application) -> None:
        app[RECEIVER] = Receiver(tuple(secrets), show)

    async def stop(app: web.Application) -> None:
        app[RECEIVER].stopped.set()

    app.on_startup.append(set_up)
    app.on_shutdown.append(stop)
    app.add_routes(routes)
    app.router.add_post("/{path:.*}", receive)
    return app


def webhook_secret(text: str) -> str:
    """A secret in Standard Webhooks' format: `whsec_` and 24 to 64 bytes in base64. Raises ArgumentTypeError."""
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        secret = b""
    if not text.startswith("whsec_") or not 24 <= len(secret) <= 64:
        raise argparse.ArgumentTypeError("must be whsec_ and 24 to 64 bytes in base64")
    return text


def verify(secrets: Sequence[str], body: bytes, headers: Mapping[str, str]) -> str | None:
    """Why a webhook's signature is not valid; None when it is valid."""
    error = "no secret is set"
    for secret in secrets:
        try:
            Webhook(secret).verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError) as raised:
            error = str(raised)
        else:
            return None
    return error


async def receive(request: web.Request) -> web.StreamResponse:
    """Takes a webhook: answers 204 or as the behaviour of its path says. An unverified one is kept and marked."""
    receiver = request.app[RECEIVER]
    body = await request.read()
    error = verify(receiver.secrets, body, request.headers)
    event = _decode(body)
    behaviour = receiver.next_behaviour(request.path)
    receiver.events.append(
        {
            "number": len(receiver.events) + 1,
            "receivedAtMs": time.time_ns() // 1_000_000,
            "path": request.path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": body.decode(errors="replace"),
            "verified": error is None,
            "error": error,
            "id": request.headers.get("webhook-id"),
            "type": event.get("type"),
            "sequence": event.get("sequence"),
            "callId": _call_id(event),
            "behaviour": behaviour.model_dump(by_alias=True, exclude_defaults=True),
        }
    )
    if receiver.show:
        print(shown(receiver.events[-1]), flush=True)
    return await _answer(receiver, request, behaviour)


def shown(event: Mapping[str, Any]) -> str:
    """A received webhook as text: a line with its time, path, type and id, and its body."""
    at = time.strftime("%H:%M:%S", time.localtime(event["receivedAtMs"] / 1000))
    genuine = "verified" if event["verified"] else f"NOT VERIFIED: {event['error']}"
    title = f"{at}  {event['path']}  {event['type']} {event['sequence']}  {event['id']}  {genuine}"
    decoded = _decode(event["body"].encode())
    body = json.dumps(decoded, indent=2, ensure_ascii=False) if decoded else event["body"]
    # A body may contain control characters, which must not reach the terminal.
    return "".join(char if char.isprintable() or char == "\n" else " " for char in f"{title}\n{body}")


async def _answer(receiver: Receiver, request: web.Request, behaviour: Behaviour) -> web.StreamResponse:
    headers = {}
    if behaviour.retry_after is not None:
        headers["Retry-After"] = str(behaviour.retry_after)
    if behaviour.redirect_to:
        headers["Location"] = behaviour.redirect_to
        return web.Response(status=behaviour.status or 302, headers=headers)
    if behaviour.hang:
        await receiver.stopped.wait()
    if behaviour.drip:
        return await _drip(receiver, request, web.StreamResponse(status=behaviour.status or 200, headers=headers))
    if behaviour.big_body is not None:
        return web.Response(status=behaviour.status or 200, headers=headers, body=b"x" * behaviour.big_body)
    return web.Response(status=behaviour.status or 204, headers=headers)


async def _drip(receiver: Receiver, request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """Sends one byte at a time until the client disconnects."""
    await answer.prepare(request)
    try:
        while not receiver.stopped.is_set():
            await answer.write(b".")
            await asyncio.sleep(DRIP_SECONDS)
    except ConnectionError:
        pass
    return answer


def _decode(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _call_id(event: Mapping[str, Any]) -> Any:
    data = event.get("data")
    return data.get("callId") if isinstance(data, dict) else None


@routes.get("/_receiver/events")
async def events(request: web.Request) -> web.Response:
    """All received webhooks, in order. `?callId=`, `?path=` and `?after=` (a `number`) filter."""
    query = request.query
    after = query.get("after", "0")
    found = [
        event
        for event in request.app[RECEIVER].events[int(after) if after.isdecimal() else 0 :]
        if query.get("callId", event["callId"]) == event["callId"]
        and query.get("path", event["path"]) == event["path"]
    ]
    return web.json_response({"events": found})


@routes.post("/_receiver/reset")
async def reset(request: web.Request) -> web.Response:
    """Removes events and behaviours and ends the requests that hang. Secrets stay."""
    receiver = request.app[RECEIVER]
    receiver.stopped.set()
    receiver.events.clear()
    receiver.behaviours.clear()
    receiver.uses.clear()
    receiver.stopped = asyncio.Event()
    return web.json_response({})


@routes.put("/_receiver/behaviour")
async def set_behaviour(request: web.Request) -> web.Response:
    """`{path: {"status", "retryAfter", "redirectTo", "hang", "drip", "bigBody", "times"}}` sets the behaviour of
    these paths and keeps that of others. The path `*` is any other path; null removes a behaviour."""
    receiver = request.app[RECEIVER]
    try:
        behaviours = _BEHAVIOURS.validate_json(await request.read())
    except ValidationError as error:
        problems = {".".join(map(str, found["loc"])): found["msg"] for found in error.errors()}
        return web.json_response({"errors": problems}, status=400)
    for path, behaviour in behaviours.items():
        receiver.uses.pop(path, None)
        receiver.behaviours.pop(path, None)
        if behaviour:
            receiver.behaviours[path] = behaviour
    in_force = {
        path: one.model_dump(by_alias=True, exclude_defaults=True) for path, one in receiver.behaviours.items()
    }
    return web.json_response(in_force)


@routes.put("/_receiver/secrets")
async def set_secrets(request: web.Request) -> web.Response:
    """A list of `whsec_...`: replaces the secrets that webhooks are verified with."""
    try:
        secrets = [webhook_secret(secret) for secret in _SECRETS.validate_json(await request.read())]
    except (argparse.ArgumentTypeError, ValueError) as error:
        return web.json_response({"errors": {"body": str(error)}}, status=400)
    request.app[RECEIVER].secrets = tuple(secrets)
    return web.json_response({"secrets": len(secrets)})


def main() -> None:
    command = CommandLine(prog="python -m local.receiver", description="A webhook receiver.")
    command.add_argument("--port", type=port, default=0, help="0: any free port (default)")
    command.add_argument(
        "--secret", type=webhook_secret, action="append", default=[], help="whsec_...; may be given twice"
    )
    command.add_argument("--certificate", help="a PEM file: serve https")
    command.add_argument("--key", help="the PEM file of the certificate's key, if it is not in the same file")
    command.add_argument("--show", action="store_true", help="print each webhook as it comes")
    given = command.parse_args()
    if given.key and not given.certificate:
        command.error("argument --key: needs --certificate")
    tls = None
    if given.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # A key with a passphrase is refused: the default would ask for it on the terminal.
            tls.load_cert_chain(given.certificate, given.key, password="")
        except OSError as exc:
            problem = "not a certificate and its key" if isinstance(exc, ssl.SSLError) else exc.strerror
            named = " and ".join(filter(None, (given.certificate, given.key)))
            command.error(f"argument --certificate: {named}: {problem}")
    serve(command, create_app(given.secret, given.show), given.port, tls)


if __name__ == "__main__":
    main()
