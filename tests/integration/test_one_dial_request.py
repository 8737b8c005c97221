"""LiveKit Cloud's client repeats what failed, in up to three regions: a dial must leave it once all the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ThreadedResolver, connector, web
from livekit import api

from shared.errors import LiveKitError, LiveKitUnclearError
from shared.livekit.client import connect
from shared.livekit.secret import LiveKitSecret
from tests.loop_time import time_passes
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET

CREATE_ROOM = "/twirp/livekit.RoomService/CreateRoom"
DIAL = "/twirp/livekit.SIP/CreateSIPParticipant"
# Under 5 s the client repeats nothing by itself.
SECONDS = 60.0


class LocalNames(ThreadedResolver):
    """Every name is this machine's."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        return await super().resolve("127.0.0.1", port, family)


class Cloud:
    """LiveKit Cloud with two regions: `dialled` happens to a dial. asked: host and path of every request."""

    def __init__(self, dialled: Callable[[web.Request], Awaitable[web.Response]]) -> None:
        self.asked: list[tuple[str, str]] = []
        self._dialled = dialled

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield f"http://project.livekit.cloud:{self.port}"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.url.host or "", request.path))
        if request.path == DIAL:
            return await self._dialled(request)
        if request.path == CREATE_ROOM:
            return web.Response(body=api.Room(sid="RM_1").SerializeToString(), content_type="application/protobuf")
        names = ("project", "first.region", "second.region")
        urls = [f"http://{name}.livekit.cloud:{self.port}" for name in names]
        return web.json_response({"regions": [{"region": url, "url": url, "distance": "1"} for url in urls]})


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(request: web.Request) -> web.Response:
    time_passes(2 * SECONDS)
    await asyncio.Event().wait()
    return web.Response()


def status(code: int, body: str = "<html>Bad gateway</html>", kind: str = "text/html") -> Any:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=code, text=body, content_type=kind)

    return answer


UNAVAILABLE = '{"code":"unavailable","msg":"no response from servers"}'


@pytest.mark.parametrize(
    ("dialled", "error"),
    [
        pytest.param(cut, LiveKitUnclearError, id="cut"),
        pytest.param(hang, LiveKitUnclearError, id="no answer"),
        pytest.param(status(502), LiveKitUnclearError, id="502"),
        pytest.param(status(503), LiveKitUnclearError, id="503"),
        pytest.param(status(503, UNAVAILABLE, "application/json"), LiveKitError, id="503 of LiveKit's own"),
    ],
)
def test_a_dial_to_livekit_cloud_that_fails_was_sent_once(
    monkeypatch: pytest.MonkeyPatch, dialled: Any, error: type[LiveKitError]
) -> None:
    """The real client over real HTTP, on a connection that was used before, as the worker's is."""
    monkeypatch.setattr(connector, "DefaultResolver", LocalNames)
    cloud = Cloud(dialled)

    async def dial() -> None:
        async with cloud.serving() as url:
            secret = LiveKitSecret(url=url, api_key=LIVEKIT_KEY, api_secret=LIVEKIT_SECRET)
            async with connect(lambda: secret, 10) as livekit:
                assert await livekit.create_room("room", "{}", "outbound", "{}") == "RM_1"
                await livekit.dial(
                    room="room",
                    identity="call-x",
                    trunk_id="ST_1",
                    to="+15550000000",
                    from_number=None,
                    ring_seconds=30,
                    longest_seconds=1830,
                    timeout=SECONDS,
                )

    with pytest.raises(error):
        asyncio.run(dial())
    assert cloud.asked == [("project.livekit.cloud", CREATE_ROOM), ("project.livekit.cloud", DIAL)]
