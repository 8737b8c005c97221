"""The console's routes. The page is static files in `page/`; its data arrives as server-sent events.

The page sends its requests to this server, and this server sends them to the API with the key. A page of another
site in the developer's browser must neither act nor read the key: a request must name this address as its host
(against DNS rebinding) and as its origin, if it names any; no CORS header is ever sent, and nothing may frame or
embed what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict
from yarl import URL

from local.console import fault_injection, timeline
from local.console.event_sources import EventSources, Stack, Watcher, now_ms

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 256 * 1024
# Longer than any answer of the API, which has a time-out of two minutes here (`ANSWER_SECONDS` of
# `local.processes`).
TIMEOUT_SECONDS = 130.0
HEARTBEAT_SECONDS = 15.0
LOG_BYTES_SHOWN = 64 * 1024

SOURCES = web.AppKey("sources", EventSources)
CLIENT = web.AppKey("client", aiohttp.ClientSession)
STOPPED = web.AppKey("stopped", asyncio.Event)
routes = web.RouteTableDef()


class Placement(TypedDict):
    request: str
    fault: str


class Trunk(TypedDict):
    refuses: bool


_PLACEMENT = TypeAdapter(Placement)
_TRUNK = TypeAdapter(Trunk)

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app(stack: Stack) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[guard])

    async def lifetime(app: web.Application) -> AsyncIterator[None]:
        app[STOPPED] = asyncio.Event()
        app[SOURCES] = EventSources(stack)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as client:
            app[CLIENT] = client
            asking = asyncio.create_task(app[SOURCES].run(client))
            yield
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking

    async def stop(app: web.Application) -> None:
        app[STOPPED].set()
        for watcher in app[SOURCES].watchers:
            watcher.news.set()

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)

    app.cleanup_ctx.append(lifetime)
    app.on_shutdown.append(stop)
    app.on_response_prepare.append(add_headers)
    app.add_routes(routes)
    app.router.add_static("/page/", PAGE)
    return app


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that a page of another origin could have sent."""
    transport = request.transport
    port = transport.get_extra_info("sockname")[1] if transport else 0
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    origin = request.headers.get("Origin")
    if request.host not in hosts or (origin is not None and origin.removeprefix("http://") not in hosts):
        return _refuse(403, "Only the console's own page may ask, at http://127.0.0.1")
    # Browsers send this header also with requests without an origin, such as those of a script tag.
    if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and request.path != "/":
        return _refuse(403, "The request comes from another site")
    if request.method not in ("GET", "HEAD") and request.content_type != "application/json":
        return _refuse(415, "Send application/json")
    return await handler(request)


def _refuse(status: int, text: str) -> web.Response:
    return web.json_response({"status": "error", "message": text}, status=status)


@routes.get("/")
async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE / "index.html")


@routes.get("/setup")
async def setup(request: web.Request) -> web.Response:
    """What does not change while the stack runs. The API key and the webhook secret are those of the local stack,
    and this is the only answer that contains them."""
    stack = request.app[SOURCES].stack
    return web.json_response(
        {
            "apiUrl": stack.api_url,
            "docsUrl": f"{stack.api_url}/docs",
            "workspaceId": stack.workspace_id,
            "apiKey": stack.api_key,
            "webhookSecret": stack.webhook_secret,
            "callbackUrl": f"{stack.receiver_url}/hook",
            "standIn": stack.stand_in,
            "timeScale": stack.time_scale,
            "numbers": fault_injection.numbers() if stack.stand_in else [],
            "faults": fault_injection.choices(stack.stand_in),
            "logs": sorted(path.stem for path in stack.logs.glob("*.log")),
        }
    )


@routes.get("/policies")
async def policies(request: web.Request) -> web.Response:
    """The names of the workspace's policies."""
    names = await asyncio.to_thread(request.app[SOURCES].policies)
    return web.json_response({"policies": names})


# ── the feed ───────────────────────────────────────────────────────────────────────────────────


@routes.get("/feed")
async def feed(request: web.Request) -> web.StreamResponse:
    """Server-sent events. `calls`: summaries, first of all calls (`"all": true`), then of those that changed.
    `chosen`: all data of the call `?call=`, or null while there is no such call. `lines`: the workspaces' lines,
    when one has changed. `trouble`: why the sources cannot be read, or null."""
    sources = request.app[SOURCES]
    chosen = request.query.get("call")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    watcher = sources.listen()
    trouble: str | None = None
    lines: list[timeline.Json] | None = None
    try:
        while True:
            try:
                await asyncio.wait_for(watcher.news.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                await response.write(b": still here\n\n")
            if request.app[STOPPED].is_set():
                break
            watcher.news.clear()
            if sources.trouble != trouble:
                trouble = sources.trouble
                await _send(response, "trouble", trouble)
            await _tell(response, sources, watcher, chosen)
            if (now := timeline.lines(sources.histories.values(), sources.limits, now_ms())) != lines:
                lines = now
                await _send(response, "lines", lines)
    except ConnectionError:
        pass
    finally:
        sources.leave(watcher)
    return response


async def _tell(response: web.StreamResponse, sources: EventSources, watcher: Watcher, chosen: str | None) -> None:
    """Sends the changes that this page has not been sent."""
    everything = watcher.changed is None
    ids = set(sources.histories) if watcher.changed is None else watcher.changed
    if sources.trouble and everything:
        return
    watcher.changed = set()
    summaries = [timeline.summary(one, now_ms()) for call_id in ids if (one := sources.known(call_id)) is not None]
    if summaries or everything:
        await _send(response, "calls", {"all": everything, "calls": summaries})
    if chosen is not None and (everything or chosen in ids):
        known = sources.known(chosen)
        stand_in = sources.stack.stand_in
        await _send(response, "chosen", timeline.detail(known, stand_in, now_ms()) if known else None)


async def _send(response: web.StreamResponse, kind: str, data: Any) -> None:
    await response.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())


@routes.get("/logs/{name}")
async def log(request: web.Request) -> web.Response:
    """The end of a log, as text."""
    path = request.app[SOURCES].stack.logs / f"{request.match_info['name']}.log"
    if path not in set(path.parent.glob("*.log")):
        return _refuse(404, "There is no such log")
    return web.Response(text=await asyncio.to_thread(_end_of, path))


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES_SHOWN))
        return file.read().decode(errors="replace")


# ── the page's requests ─────────────────────────────────────────────────────────────────────────


def passed_on(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """Answers 502 with the reason when a part of the stack does not answer."""

    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (aiohttp.ClientError, TimeoutError) as exc:
            return _refuse(502, f"The stack does not answer: {type(exc).__name__} {exc}")

    return guarded


@routes.post("/calls")
@passed_on
async def place(request: web.Request) -> web.Response:
    """`{"request": the body of POST /v1/api/call as text, "fault": a name or ""}`. Answers with the API's status
    and body."""
    try:
        asked = _PLACEMENT.validate_json(await request.read())
    except ValidationError:
        return _refuse(400, 'Send {"request": a text, "fault": a name}')
    try:
        answer = await fault_injection.place(
            request.app[CLIENT], request.app[SOURCES], asked["request"], asked["fault"]
        )
        return web.json_response(answer)
    except fault_injection.FaultRefusedError as exc:
        return _refuse(400, str(exc))


@routes.post("/calls/preview")
@passed_on
async def preview(request: web.Request) -> web.Response:
    return await _api(request, "/v1/api/call/preview")


@routes.get("/calls/{call_id:[0-9a-f]+}")
@passed_on
async def call(request: web.Request) -> web.Response:
    return await _call_api(request, "")


@routes.patch("/calls/{call_id:[0-9a-f]+}")
@passed_on
async def move(request: web.Request) -> web.Response:
    return await _call_api(request, "", "other times")


@routes.post("/calls/{call_id:[0-9a-f]+}/cancel")
@passed_on
async def cancel(request: web.Request) -> web.Response:
    return await _call_api(request, "/cancel", "cancel")


@routes.post("/calls/{call_id:[0-9a-f]+}/deliveries/{sequence:[0-9]+}/replay")
@passed_on
async def replay(request: web.Request) -> web.Response:
    sequence = request.match_info["sequence"]
    return await _call_api(request, f"/deliveries/{sequence}/replay", f"replay of event {sequence}")


@routes.get("/suppression/{number}")
@routes.put("/suppression/{number}")
@routes.delete("/suppression/{number}")
@passed_on
async def suppression(request: web.Request) -> web.Response:
    return await _api(request, f"/v1/api/suppression/{quote(request.match_info['number'], safe='')}")


async def _call_api(request: web.Request, path: str, noted: str | None = None) -> web.Response:
    """Sends a request about a call to the API. noted: what the timeline says of it."""
    sources, call_id = request.app[SOURCES], request.match_info["call_id"]
    started = now_ms()
    answer = await _api(request, f"/v1/api/call/{call_id}{path}")
    if noted and (known := sources.known(call_id)) is not None:
        asked = {"at": started, "what": request.method, "detail": noted}
        # Not the first request of a call that was placed elsewhere: `placed_at` takes the earlier time.
        known.requests.append(asked | {"status": answer.status, "ms": now_ms() - started})
    return answer


async def _api(request: web.Request, path: str) -> web.Response:
    """Sends the page's request to the public API, with the key: the same method, query and body. Returns the API's
    answer unchanged."""
    stack = request.app[SOURCES].stack
    headers = fault_injection.credentials(stack) | {"content-type": "application/json"}
    query = f"?{request.query_string}" if request.query_string else ""
    url = URL(f"{stack.api_url}{path}{query}", encoded=True)
    async with request.app[CLIENT].request(
        request.method, url, headers=headers, data=await request.read()
    ) as answer:
        return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")


@routes.post("/calls/{call_id:[0-9a-f]+}/hangup")
@passed_on
async def hang_up(request: web.Request) -> web.Response:
    """Makes the callee hang up, or decline while it rings."""
    stack = request.app[SOURCES].stack
    if not stack.stand_in:
        return _refuse(404, "LiveKit is real: hang up the phone")
    url, wanted = f"{stack.livekit_url}/_standin/hangup", {"identity": f"call-{request.match_info['call_id']}"}
    async with request.app[CLIENT].post(url, json=wanted) as answer:
        return web.json_response(await answer.json(), status=answer.status)


@routes.get("/trunk")
@passed_on
async def trunk(request: web.Request) -> web.Response:
    """Whether the stand-in's trunk refuses every number's call for a wrong password."""
    stack = request.app[SOURCES].stack
    refuses = stack.stand_in and await fault_injection.trunk_refuses(request.app[CLIENT], stack)
    return web.json_response({"refuses": refuses})


@routes.put("/trunk")
@passed_on
async def set_trunk(request: web.Request) -> web.Response:
    """`{"refuses": whether}`."""
    stack = request.app[SOURCES].stack
    try:
        asked = _TRUNK.validate_json(await request.read())
    except ValidationError:
        return _refuse(400, 'Send {"refuses": true or false}')
    if not stack.stand_in:
        return _refuse(404, "LiveKit is real: change its trunk's password")
    await fault_injection.set_trunk(request.app[CLIENT], stack, refuses=asked["refuses"])
    return web.json_response(asked)


@routes.get("/numbers")
@passed_on
async def numbers(request: web.Request) -> web.Response:
    """The stand-in's overrides: outcome by number."""
    stack = request.app[SOURCES].stack
    found = await fault_injection.numbers_in_force(request.app[CLIENT], stack) if stack.stand_in else {}
    return web.json_response({number: fault["outcome"] for number, fault in found.items()})


@routes.delete("/numbers/{number}")
@passed_on
async def forget_number(request: web.Request) -> web.Response:
    stack = request.app[SOURCES].stack
    if stack.stand_in:
        await fault_injection.set_number(request.app[CLIENT], stack, request.match_info["number"], None)
    return web.json_response({})
