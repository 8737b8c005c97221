"""Fakes of LiveKit and its providers, and of Ringonce's route for reports."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any, ClassVar

from aiohttp import web
from livekit import rtc
from livekit.agents import DEFAULT_API_CONNECT_OPTIONS, llm, stt, tts

import tone

CALL_ID = "f9e8d7c6b5a4f3e2d1c0b9a8"
IDENTITY = f"call-{CALL_ID}"
ROOM = "agent-1-x7k2m9p4q1"
KEY, SECRET = "devkey", "secret-of-at-least-thirty-two-characters"


def dispatch_metadata(events_url: str = "http://127.0.0.1:9/", **changes: Any) -> str:
    """A job's metadata as Ringonce writes it."""
    fields: dict[str, Any] = {
        "callId": CALL_ID,
        "workspaceId": "demo",
        "callAgentId": "agent-1",
        "to": "+12025550123",
        "dynamicVariables": {"firstName": "Zoë", "open": 2, "member": True, "nickname": None},
        "metadata": {"orderId": "SECRET-ORDER", "SECRET-KEY": {"deep": ["SECRET-DEEP"]}},
        "eventsUrl": events_url,
    }
    return json.dumps(fields | changes)


class Phone:
    """A SIP participant as the room shows it."""

    identity, sid = IDENTITY, "PA_1"
    state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
    kind = rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    # None: it leaves because the server restarts.
    disconnect_reason: rtc.DisconnectReason.ValueType | None = None

    def __init__(self, status: str) -> None:
        self.attributes = {"sip.callStatus": status}
        self.track = Track()
        self.track_publications = {"TR_1": self.track}


class Track:
    """The phone's track that the agent subscribes to: the SDK's class, without a server."""

    sid = "TR_1"
    kind = rtc.TrackKind.KIND_AUDIO
    subscribed = True

    @functools.cached_property
    def _source(self) -> rtc.AudioSource:
        return rtc.AudioSource(tone.RATE, 1)

    @functools.cached_property
    def track(self) -> rtc.LocalAudioTrack:
        return rtc.LocalAudioTrack.create_audio_track("phone", self._source)

    async def speak(self) -> None:
        """Half a second of speech."""
        for frame in tone.tone(0.5):
            await self._source.capture_frame(frame)


class LocalParticipant:
    async def set_attributes(self, attributes: dict[str, str]) -> None:
        pass


class FakeRoom(rtc.EventEmitter[str]):
    """A room with a phone in it, whose status a test sets."""

    name = ROOM
    local_participant: Any = LocalParticipant()

    def __init__(self) -> None:
        super().__init__()
        self.phone = Phone("dialing")
        self.remote_participants: dict[str, Any] = {IDENTITY: self.phone}
        self.connected = True

    def isconnected(self) -> bool:
        return self.connected

    def waited_for(self) -> int:
        """The number of waiters for a change of the phone."""
        return len(self._events.get("participant_attributes_changed", ()))

    def status(self, status: str) -> None:
        self.phone.attributes["sip.callStatus"] = status
        # The library checks for its own class of participants, which only a server can create.
        for waiting in list(self._events.get("participant_attributes_changed", ())):
            waiting(["sip.callStatus"], self.phone)

    def arrive(self) -> None:
        self.emit("participant_connected", self.phone)

    def leave(self) -> None:
        del self.remote_participants[IDENTITY]
        self.emit("participant_disconnected", self.phone)

    def come_back(self) -> None:
        """The phone rejoins after the server's restart: with a new track, and `dialing` also when it was
        answered."""
        self.phone = Phone("dialing")
        self.remote_participants[IDENTITY] = self.phone
        self.arrive()

    def close(self) -> None:
        self.connected = False
        self.emit("connection_state_changed", rtc.ConnectionState.CONN_DISCONNECTED)


class FakeContext:
    """A job's context; `done` lists the agent's requests in order."""

    def __init__(self, metadata: str) -> None:
        self.job = type("Job", (), {"metadata": metadata})()
        self.room = FakeRoom()
        self.done: list[str] = []
        self.callbacks: list[Callable[[], Any]] = []

    async def connect(self) -> None:
        self.done.append("connect")

    async def wait_for_participant(self, *, identity: str) -> Any:
        return self.room.remote_participants[identity]

    async def delete_room(self) -> None:
        self.done.append("delete_room")

    def shutdown(self, reason: str = "") -> None:
        self.done.append(f"shutdown: {reason}")

    def add_shutdown_callback(self, callback: Callable[[], Any]) -> None:
        self.callbacks.append(callback)

    async def finish(self) -> None:
        for callback in self.callbacks:
            await callback()


class Ringonce:
    """The route that takes reports. answers: status codes for the first requests; then 200."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[dict[str, str], bytes]] = []

    @property
    def reports(self) -> list[tuple[str, Any]]:
        bodies = [json.loads(body) for _, body in self.requests]
        return [(body["type"], body["data"]) for body in bodies]

    async def __aenter__(self) -> Ringonce:
        app = web.Application()
        app.router.add_post("/events", self._post)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/events"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((headers, await request.read()))
        status = self.answers.pop(0) if self.answers else 200
        fields = {"sequence": len(self.requests), "code": "a_code", "message": "a message"}
        return web.json_response(fields, status=status)


class FakeLLM(llm.LLM[str]):
    """Records every prompt and always gives the same answer."""

    asked: ClassVar[list[Any]] = []

    def chat(self, *, chat_ctx: llm.ChatContext, tools: Any = None, conn_options: Any = None, **_: Any) -> Any:
        names = [getattr(tool, "__name__", str(tool)) for tool in tools or []]
        self.asked.append([item.model_dump(mode="json") for item in chat_ctx.items] + [names])
        options = conn_options or DEFAULT_API_CONNECT_OPTIONS
        return _Said(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=options)


class _Said(llm.LLMStream):
    async def _run(self) -> None:
        delta = llm.ChoiceDelta(role="assistant", content="Good to hear")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


class FakeSTT(stt.STT[str]):
    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))

    async def _recognize_impl(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a whole recording: the agent listens to a stream only")

    def stream(self, *, conn_options: Any = DEFAULT_API_CONNECT_OPTIONS, **_: Any) -> Any:
        return _Silence(stt=self, conn_options=conn_options)


class _Silence(stt.RecognizeStream):
    async def _run(self) -> None:
        await asyncio.Event().wait()


class FakeTTS(tts.TTS[str]):
    def __init__(self) -> None:
        super().__init__(capabilities=tts.TTSCapabilities(streaming=False), sample_rate=24_000, num_channels=1)

    def synthesize(self, text: str, **_: Any) -> Any:
        raise AssertionError("no test lets the agent be heard")


async def until(done: Callable[[], bool]) -> None:
    """Polls a condition; fails when it is not met within ten seconds."""
    for _ in range(2000):
        if done():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")
