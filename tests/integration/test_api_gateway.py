"""The API's address in front of a scripted emulator behaves like API Gateway."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from local import api_gateway
from local.docs_page import DOCUMENT, html_page

Talk = Callable[[aiohttp.ClientSession, str], Awaitable[None]]
ALL_BYTES = bytes(range(256)) * 4


def through_the_front(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], talk: Talk) -> None:
    """Runs `talk` with a client and its address; `handler` is the emulator behind it."""

    async def run() -> None:
        emulator = web.Application(client_max_size=api_gateway.MAX_BODY_BYTES * 2)
        emulator.router.add_route("*", "/stage{path:.*}", handler)
        async with TestServer(emulator, host="127.0.0.1") as behind:
            app = api_gateway.create_app(f"http://127.0.0.1:{behind.port}/stage")
            async with (
                TestServer(app, host="127.0.0.1") as before,
                aiohttp.ClientSession(auto_decompress=False) as client,
            ):
                await talk(client, f"http://127.0.0.1:{before.port}")

    asyncio.run(run())


def test_a_request_arrives_byte_for_byte_and_so_does_its_answer() -> None:
    seen: dict[str, Any] = {}

    async def emulator(request: web.Request) -> web.Response:
        seen.update(
            path=request.raw_path, method=request.method, headers=request.headers, body=await request.read()
        )
        return web.Response(status=207, body=ALL_BYTES[::-1], headers={"X-Own": "1", "Content-Encoding": "gzip"})

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        headers = {"content-type": "application/webhook+json", "authorization": "token"}
        path = "/v1/a%2Fb/c?x=1&x=%20&empty="
        target = URL(url + path, encoded=True)
        async with client.put(target, data=ALL_BYTES, headers=headers) as answer:
            assert (answer.status, await answer.read()) == (207, ALL_BYTES[::-1])
            assert answer.headers["X-Own"] == "1"
        assert seen["path"] == "/stage" + path
        assert (seen["method"], seen["body"]) == ("PUT", ALL_BYTES)
        assert seen["headers"]["content-type"] == "application/webhook+json"
        assert seen["headers"]["authorization"] == "token"
        assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"

    through_the_front(emulator, talk)


def test_no_header_is_added_and_repeated_ones_are_joined() -> None:
    seen: dict[str, list[str]] = {}

    async def emulator(request: web.Request) -> web.Response:
        for name in request.headers:
            seen[name.lower()] = request.headers.getall(name)
        return web.Response()

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        skipped = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        async with client.post(url, headers=[("X-A", "1"), ("X-A", "2")], skip_auto_headers=skipped) as answer:
            assert answer.status == 200
        assert seen["x-a"] == ["1,2"]
        assert not seen.keys() & {name.lower() for name in skipped}

    through_the_front(emulator, talk)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (502, {"errorMessage": "KeyError: 'x'", "errorType": "Runtime.HandlerError"}, 500),
        (502, {"status": "error", "message": "what a function itself answered"}, 502),
        (404, {"message": "Not Found"}, 404),
    ],
)
def test_only_a_functions_failure_becomes_api_gateways_answer(status: int, body: object, expected: int) -> None:
    async def emulator(request: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        async with client.get(url) as answer:
            assert answer.status == expected
            if expected == 500:
                assert await answer.read() == b'{"message":"Internal Server Error"}'
            else:
                assert await answer.json() == body

    through_the_front(emulator, talk)


def test_options_without_cors_is_an_unknown_route() -> None:
    async def emulator(request: web.Request) -> web.Response:
        return web.json_response({"message": "CORS not configured"}, status=403)

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        async with client.options(url) as answer:
            assert (answer.status, await answer.read()) == (404, b'{"message":"Not Found"}')

    through_the_front(emulator, talk)


def test_too_large_a_body_is_refused_without_asking_a_function() -> None:
    asked = []

    async def emulator(request: web.Request) -> web.Response:
        asked.append(await request.read())
        return web.Response()

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        async with client.post(url, data=io.BytesIO(b"x" * (api_gateway.MAX_BODY_BYTES + 1))) as answer:
            assert answer.status == 413
            assert await answer.read() == b'{"message":"Request Entity Too Large"}'
        assert not asked

    through_the_front(emulator, talk)


def test_no_answer_in_time_is_service_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_gateway, "TIMEOUT_SECONDS", 0.1)
    finished = asyncio.Event()

    async def emulator(request: web.Request) -> web.Response:
        await finished.wait()
        return web.Response()

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        async with client.get(url) as answer:
            assert answer.status == 503
            assert await answer.read() == b'{"message":"Service Unavailable"}'
        finished.set()

    through_the_front(emulator, talk)


def test_the_apis_description_is_a_page_and_a_file_and_its_routes_stay_the_apis_own() -> None:
    async def emulator(request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"{request.method} {request.path}")

    async def talk(client: aiohttp.ClientSession, url: str) -> None:
        async with client.get(f"{url}/docs") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            page = await answer.text()
            assert page == html_page(address=url)
            assert f"curl {url}/v1/api/call" in page
        async with client.get(f"{url}/openapi.yaml") as answer:
            assert (answer.status, answer.content_type) == (200, "application/yaml")
            assert await answer.read() == DOCUMENT.read_bytes()
        for method, path in (("POST", "/docs"), ("GET", "/docs/x"), ("DELETE", "/openapi.yaml")):
            async with client.request(method, url + path) as answer:
                assert (answer.status, await answer.text()) == (404, f"{method} /stage{path}")

    through_the_front(emulator, talk)
