"""A LiveKit stand-in of its own, a client of it and the addresses of its webhooks, for the tests of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol.models import ParticipantInfo
from livekit.protocol.sip import CreateSIPParticipantRequest, SIPParticipantInfo
from livekit.protocol.webhook import WebhookEvent

from local.livekit import Faults, Settings, create_app
from local.livekit.control import LIVEKIT
from tests.loop_time import time_passes

KEY, SECRET = "devkey", "a secret that is long enough for HS256 to accept"
DEADLINE_SECONDS = 60.0
# Seconds that no test waits for: `time_passes` when they are to be over. Less than LiveKit gives a dial.
LONG = 60.0


@dataclass
class Hook:
    """A webhook address that checks every event with LiveKit's own receiver. `answers`: statuses to give,
    204 when they are used up."""

    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    bodies: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    content_types: list[str] = field(default_factory=list)
    user_agents: list[str] = field(default_factory=list)
    events: list[WebhookEvent] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        body, token = await request.text(), request.headers["Authorization"]
        self.bodies.append(body)
        self.tokens.append(token)
        self.content_types.append(request.headers["Content-Type"])
        self.user_agents.append(request.headers["User-Agent"])
        event = api.WebhookReceiver(api.TokenVerifier(KEY, SECRET)).receive(body, token)
        status = self.answers.pop(0) if self.answers else 204
        if status == 204:
            self.events.append(event)
        return web.Response(status=status, headers=self.headers)

    def names(self, room: str, without_tracks: bool = True) -> list[str]:
        return [
            event.event
            for event in self.events
            if event.room.name == room and not (without_tracks and event.event.startswith("track_"))
        ]

    def named(self, name: str, identity: str = "") -> list[WebhookEvent]:
        return [e for e in self.events if e.event == name and identity in ("", e.participant.identity)]


@dataclass
class Bench:
    """A stand-in, a client of it, and two webhook addresses."""

    url: str
    livekit: api.LiveKitAPI
    http: aiohttp.ClientSession
    hook: Hook
    second_hook: Hook
    app: web.Application

    async def time_passes(self, seconds: float) -> None:
        """Advances the clock when every event queued so far is told: an event that waits for more than 30 s is
        lost, as with LiveKit."""
        await until(lambda: not self.app[LIVEKIT].notifier.is_sending)
        time_passes(seconds)

    async def control(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.http.request(method, f"{self.url}/_standin/{path}", json=body) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def calls(self, number: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.control("GET", f"calls?number={number}"))["calls"]
        return found

    async def log(self, kind: str) -> list[dict[str, Any]]:
        events = (await self.control("GET", "events"))["events"]
        return [event for event in events if event["kind"] == kind]

    async def one_call_is(self, **expected: Any) -> dict[str, Any]:
        """Waits until the only call placed is in this state."""

        async def as_expected() -> bool:
            calls = await self.calls()
            return bool(calls) and expected.items() <= calls[0].items()

        await until(as_expected)
        (call,) = await self.calls()
        return call

    async def dial(
        self, digits: str = "0000", room: str = "r", identity: str = "call-1", *, trunk: str = "ST_1", **more: Any
    ) -> SIPParticipantInfo:
        """`digits`: the last ones of a script's number, or a whole number, or ""."""
        more.setdefault("ringing_timeout", Duration(seconds=1000))
        more.setdefault("wait_until_answered", True)
        number = digits if digits.startswith("+") or not digits else f"+1555000{digits}"
        return await self.livekit.sip.create_sip_participant(
            CreateSIPParticipantRequest(
                sip_trunk_id=trunk, sip_call_to=number, room_name=room, participant_identity=identity, **more
            ),
            timeout=2000,
        )

    async def placed(self) -> None:
        """Waits until a call is placed: its script has begun."""

        async def one() -> bool:
            return bool(await self.calls())

        await until(one)

    async def log_has(self, kind: str, count: int) -> None:
        """Waits until there are so many entries of a kind in the log."""

        async def so_many() -> bool:
            return len(await self.log(kind)) >= count

        await until(so_many)

    async def participants(self, room: str = "r") -> list[ParticipantInfo]:
        return list(
            (await self.livekit.room.list_participants(api.ListParticipantsRequest(room=room))).participants
        )

    async def create_room(self, name: str = "r", *agents: str, **more: Any) -> api.Room:
        wanted = [api.RoomAgentDispatch(agent_name="caller", metadata=metadata) for metadata in agents]
        return await self.livekit.room.create_room(api.CreateRoomRequest(name=name, agents=wanted, **more))

    async def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str, str]:
        async with self.http.request(method, self.url + path, data=body, headers=headers) as answer:
            return answer.status, answer.content_type, await answer.text()


@asynccontextmanager
async def bench(
    *, scale: float = 1, ring: float = 0.02, talk: float = 0.02, hooks: int = 1
) -> AsyncIterator[Bench]:
    hook, second_hook = Hook(), Hook()
    receiver = web.Application()
    receiver.router.add_post("/one", hook.receive)
    receiver.router.add_post("/two", second_hook.receive)
    async with TestServer(receiver) as hook_server:
        urls = tuple(str(hook_server.make_url(path)) for path in ("/one", "/two")[:hooks])
        faults = Faults(agent_join_seconds=0, ring_seconds=ring, talk_seconds=talk)
        settings = Settings(KEY, SECRET, urls, scale, faults)
        app = create_app(settings)
        async with TestServer(app) as server, aiohttp.ClientSession() as http:
            url = str(server.make_url("")).rstrip("/")
            async with api.LiveKitAPI(url, KEY, SECRET, failover=False) as livekit:
                yield Bench(url, livekit, http, hook, second_hook, app)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for a condition; fails when it does not come about in time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < deadline, "the condition did not come about"
        await asyncio.sleep(0.005)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def token(ttl: float = 3600, secret: str = SECRET, key: str = KEY, **claims: Any) -> str:
    """Lives for an hour: the tables of tests are made long before the last of them runs."""
    return jwt.encode({"iss": key, "exp": int(time.time() + ttl), **claims}, secret, algorithm="HS256")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}
