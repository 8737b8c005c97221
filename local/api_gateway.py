"""The API's own address in front of the emulator: `python -m local.api_gateway --port 0 --target URL`.

The emulator serves an HTTP API below /_aws/execute-api/. This server forwards every request there, byte for byte,
and answers as API Gateway does where the emulator does not
(https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html and
.../limits.html):

- an error in a function: 500 {"message":"Internal Server Error"}; the emulator sends the error's text, with 502
- no answer within 30 s: 503 {"message":"Service Unavailable"}; the local stack waits longer, because functions
  start slowly on a busy machine
- a body of more than 10 MB: 413 {"message":"Request Entity Too Large"}
- OPTIONS without CORS and without a route for it: 404, as for any unknown route
- repeated headers are joined with commas

Two paths are its own: /docs, the API's description as a page, and /openapi.yaml, the same as a file.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterable

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from local.command_line import CommandLine, http_url, port, positive
from local.docs_page import DOCUMENT, html_page
from local.http_server import serve

MAX_BODY_BYTES = 10 * 1024 * 1024
TIMEOUT_SECONDS = 30.0

# Headers of one connection only (RFC 9110, section 7.6.1), or set again for the next one.
_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
}
# Headers that the emulator adds to every answer and API Gateway does not.
_EMULATORS = {"server", "date", "access-control-expose-headers", "x-amz-request-id", "x-amz-id-2"}

TARGET = web.AppKey("target", str)
CLIENT = web.AppKey("client", aiohttp.ClientSession)


def create_app(target: str, timeout_seconds: float | None = None) -> web.Application:
    """target: the URL of the API's stage in the emulator, without a trailing slash. timeout_seconds: how long an
    answer may take; None: API Gateway's TIMEOUT_SECONDS."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app[TARGET] = target

    async def open_client(app: web.Application) -> None:
        app[CLIENT] = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close_client(app: web.Application) -> None:
        await app[CLIENT].close()

    app.on_startup.append(open_client)
    app.on_cleanup.append(close_client)
    app.router.add_get("/docs", docs)
    app.router.add_get("/openapi.yaml", document)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


async def docs(request: web.Request) -> web.Response:
    # In a thread: the first rendering would block requests for seconds.
    page = await asyncio.to_thread(html_page, DOCUMENT, str(request.url.origin()))
    return web.Response(text=page, content_type="text/html", charset="utf-8")


async def document(request: web.Request) -> web.FileResponse:
    return web.FileResponse(DOCUMENT, headers={"Content-Type": "application/yaml"})


def message(status: int, text: str) -> web.Response:
    """An answer of API Gateway itself."""
    return web.json_response({"message": text}, status=status, dumps=_compact)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def joined(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers of a request as an HTTP API passes them on: one value for each name."""
    values: CIMultiDict[list[str]] = CIMultiDict()
    for name, value in headers:
        values.setdefault(name, []).append(value)
    return {name: ",".join(found) for name, found in values.items() if name.lower() not in _HOP}


async def forward(request: web.Request) -> web.Response:
    started = time.monotonic()
    answer = await _forward(request)
    elapsed = (time.monotonic() - started) * 1000
    print(f"{request.method} {request.raw_path} {answer.status} {elapsed:.0f} ms", flush=True)
    return answer


async def _forward(request: web.Request) -> web.Response:
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        return message(413, "Request Entity Too Large")
    headers = joined(request.headers.items())
    headers["X-Forwarded-For"] = request.remote or "127.0.0.1"
    headers["X-Forwarded-Proto"] = "http"
    headers["X-Forwarded-Port"] = str(request.url.port)
    try:
        async with request.app[CLIENT].request(
            request.method,
            URL(request.app[TARGET] + request.raw_path, encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
    except (aiohttp.ClientError, TimeoutError) as exc:
        print(f"no answer from the emulator: {type(exc).__name__} {exc}", flush=True)
        return message(503, "Service Unavailable")
    if answer.status == 502 and _is_function_error(content):
        print(f"function error: {content.decode(errors='replace')}", flush=True)
        return message(500, "Internal Server Error")
    if request.method == "OPTIONS" and answer.status == 403 and b"CORS not configured" in content:
        return message(404, "Not Found")
    kept: CIMultiDict[str] = CIMultiDict(
        (name, value)
        for name, value in answer.headers.items()
        if name.lower() not in _HOP and name.lower() not in _EMULATORS
    )
    return web.Response(status=answer.status, headers=kept, body=content)


def _is_function_error(content: bytes) -> bool:
    """Whether this is Lambda's answer to a failed invocation, not the answer of a function."""
    try:
        decoded = json.loads(content)
    except ValueError:
        return False
    return isinstance(decoded, dict) and {"errorMessage", "errorType"} <= decoded.keys()


def main() -> None:
    command = CommandLine(prog="python -m local.api_gateway", description="The API's plain address.")
    command.add_argument("--port", type=port, default=0, help="0: any free port (default)")
    command.add_argument("--target", type=http_url, required=True, help="URL of the API's stage in the emulator")
    command.add_argument("--timeout", type=positive, help="seconds an answer may take (default: 30)")
    given = command.parse_args()
    serve(command, create_app(given.target.rstrip("/"), given.timeout), given.port)


if __name__ == "__main__":
    main()
