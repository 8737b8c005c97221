"""A call from the agent's side: silent until it is answered, context and metadata kept apart, the end reported."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from typing import Any, ClassVar, cast

import pytest
from livekit import rtc
from livekit.agents import AMD, AgentSession, JobContext
from livekit.agents.voice.amd import AMDCategory
from livekit.agents.voice.room_io import RoomIO, RoomOptions

import agent
import conversation
import tone
from providers import Providers, read_providers
from tests.fakes import CALL_ID, IDENTITY, FakeContext, FakeLLM, Phone, Ringonce, dispatch_metadata, until


@pytest.fixture(autouse=True)
def phones_are_participants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library accepts only participants that a server created."""
    monkeypatch.setattr(rtc, "RemoteParticipant", Phone)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []

    async def play(participant: Any, length: float) -> None:
        seconds.append(length)

    monkeypatch.setattr(tone, "play", play)
    return seconds


def job(ctx: FakeContext) -> asyncio.Future[None]:
    return asyncio.ensure_future(agent.take_call(cast(JobContext, ctx)))


def test_without_a_provider_it_waits_for_the_answer_plays_a_tone_reports_and_ends_the_room(
    played: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx = FakeContext(dispatch_metadata(ringonce.url))
            running = job(ctx)
            await until(lambda: ctx.room.waited_for() == 2)
            assert played == []
            ctx.room.status("ringing")
            await until(lambda: ("agent.ringing", {}) in ringonce.reports)
            assert (played, ctx.done) == ([], ["connect"])
            ctx.room.status("active")
            await running
            assert played == [agent.TONE_SECONDS]
            assert ctx.done == ["connect", "delete_room", "shutdown: hung up"]
            await ctx.finish()
            assert [kind for kind, _ in ringonce.reports] == ["agent.ringing", "agent.summary"]

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    [warning] = [record.getMessage() for record in caplog.records if CALL_ID in record.getMessage()]
    assert warning == f"call {CALL_ID} has no Zipcode, address, lastName"
    assert "SECRET" not in caplog.text


def test_a_call_that_is_not_answered_hears_nothing_and_keeps_its_room(played: list[float]) -> None:
    """Ringonce has the carrier's reason, and deletes the room itself."""

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx = FakeContext(dispatch_metadata(ringonce.url))
            running = job(ctx)
            await until(lambda: ctx.room.waited_for() == 2)
            ctx.room.leave()
            ctx.room.close()
            await running
            await ctx.finish()
            assert (played, ctx.done, ringonce.reports) == ([], ["connect", "shutdown: not answered"], [])

    asyncio.run(run())


# The part of the session's room handling that concerns its participant.
NO_MEDIA = RoomOptions(text_input=False, audio_input=False, audio_output=False, text_output=False)


class Session(AgentSession[Any]):
    """The real session without a room's audio."""

    made: ClassVar[list[Session]] = []

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.made.append(self)

    async def start(self, *args: Any, room: Any = None, room_options: Any = None, **rest: Any) -> Any:
        return await super().start(*args, **rest)


class Detector:
    """Replaces AMD; its decision is set by a test."""

    category = AMDCategory.HUMAN

    def __init__(self, session: Any, **_: Any) -> None:
        pass

    async def __aenter__(self) -> Detector:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self) -> Any:
        return type("Heard", (), {"category": self.category})()


@pytest.fixture
def voice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STT", "LLM", "TTS"):
        monkeypatch.setenv(f"AGENT_{name}", f"tests.fakes:Fake{name}")
    monkeypatch.setattr(agent, "AgentSession", Session)
    monkeypatch.setattr(conversation, "AMD", Detector)
    monkeypatch.setattr(FakeLLM, "asked", [])
    monkeypatch.setattr(Session, "made", [])


async def greeted(ringonce: Ringonce) -> tuple[FakeContext, Session]:
    """An answered call whose agent has spoken."""
    ctx = FakeContext(dispatch_metadata(ringonce.url))
    ctx.room.status("active")
    await job(ctx)
    [session] = Session.made
    await until(lambda: bool(conversation.turns_of(session.history)))
    return ctx, session


@pytest.mark.usefixtures("voice")
def test_no_value_of_the_metadata_reaches_the_model_or_what_is_said() -> None:
    """Runs the whole agent from its dispatch, and checks every prompt of the model and every report."""

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx, session = await greeted(ringonce)
            await session.run(user_input="Hello, who is there?")
            await session.aclose()
            await ctx.finish()
            assert "shutdown: the session closed" in ctx.done
            everything = json.dumps([FakeLLM.asked, ringonce.reports])
            assert "Zo\\u00eb" in everything
            assert "remind them of their appointment" in everything
            assert "SECRET" not in everything
            sent = dict(ringonce.reports)
            assert [turn["speaker"] for turn in sent["agent.transcript"]["turns"]] == ["agent", "callee", "agent"]
            assert sent["agent.transcript"]["turns"][0]["text"].startswith("Hello Zoë, this is")
            assert sent["agent.summary"] == {"text": "Good to hear"}

    asyncio.run(run())
    # A turn of the conversation, and the summary.
    assert len(FakeLLM.asked) == 2


@pytest.mark.usefixtures("voice")
def test_a_callee_is_greeted_when_speech_is_heard_before_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detection of machines would wait for `active` without end."""

    async def never(self: Detector) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(Detector, "execute", never)

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx = FakeContext(dispatch_metadata(ringonce.url))
            running = job(ctx)
            await ctx.room.phone.track.speak()
            await running
            [session] = Session.made
            await until(lambda: bool(conversation.turns_of(session.history)))
            assert ctx.done == ["connect"]
            await session.aclose()
            await ctx.finish()

    asyncio.run(run())


@pytest.mark.usefixtures("voice")
def test_a_restart_of_the_server_does_not_end_the_conversation() -> None:
    """Uses the session's own room handling, which closes a session when its participant leaves permanently."""

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx, session = await greeted(ringonce)
            room_io = RoomIO(session, cast(Any, ctx.room), participant=IDENTITY, options=NO_MEDIA)
            await room_io.start()
            linked: list[Any] = []
            for change in (ctx.room.arrive, ctx.room.leave, ctx.room.come_back):
                change()
                linked.append(room_io.linked_participant)
            assert [phone is not None for phone in linked] == [True, False, True]
            await session.run(user_input="Are you still there?")
            assert len(conversation.turns_of(session.history)) == 3
            assert ctx.done == ["connect"]
            ctx.room.phone.disconnect_reason = rtc.DisconnectReason.CLIENT_INITIATED
            ctx.room.leave()
            await until(lambda: "shutdown: the session closed" in ctx.done)
            await ctx.finish()

    asyncio.run(run())


@pytest.mark.usefixtures("voice")
@pytest.mark.parametrize(
    ("category", "left"), [(AMDCategory.MACHINE_VM, True), (AMDCategory.MACHINE_UNAVAILABLE, False)]
)
def test_a_machine_is_reported_and_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, category: AMDCategory, left: bool
) -> None:
    monkeypatch.setattr(Detector, "category", category)

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx = FakeContext(dispatch_metadata(ringonce.url))
            ctx.room.status("active")
            await job(ctx)
            assert ctx.done[:2] == ["connect", "delete_room"]
            await ctx.finish()
            sent = dict(ringonce.reports)
            assert sent["agent.voicemail"] == {"messageLeft": left}
            assert ("agent.transcript" in sent) is left

    asyncio.run(run())


@pytest.mark.usefixtures("voice")
def test_a_silent_callee_is_greeted_by_livekits_own_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the real detection, which hears silence."""
    monkeypatch.setattr(conversation, "AMD", AMD)
    monkeypatch.setattr(conversation, "NO_SPEECH_SECONDS", 0.1)

    async def run() -> None:
        async with Ringonce() as ringonce:
            ctx, session = await greeted(ringonce)
            assert ctx.done == ["connect"]
            await session.aclose()
            await ctx.finish()
            [turn] = dict(ringonce.reports)["agent.transcript"]["turns"]
            assert turn["text"].startswith("Hello Zoë, this is")

    asyncio.run(run())


def test_an_opt_out_is_reported_in_the_callees_words() -> None:
    sent: list[tuple[str, Any]] = []
    reports = type("Recorder", (), {"tell": lambda self, kind, data: sent.append((kind, data))})()
    tool = conversation.Caller._opt_out_tool(reports)
    asyncio.run(cast(Any, tool)(None, "Never call me again"))
    assert sent == [("agent.opt_out", {"said": "Never call me again"})]


def test_a_summary_that_the_model_does_not_give_is_made_without_it() -> None:
    class Broken:
        def chat(self, **_: Any) -> Any:
            raise OSError("no provider")

    text = asyncio.run(conversation._summary([("agent", "Hello"), ("callee", "Bye")], Broken()))
    assert text == "2 turns were spoken; the last, by the callee: Bye"


def test_half_of_the_providers_are_refused_by_name() -> None:
    assert read_providers({}) is None
    given = {"AGENT_STT": "a/b", "AGENT_LLM": "c/d", "AGENT_TTS": "e/f"}
    assert read_providers(given) == Providers("a/b", "c/d", "e/f")
    with pytest.raises(ValueError, match="not set: AGENT_LLM, AGENT_TTS"):
        read_providers({"AGENT_STT": "a/b"})


def test_a_model_is_a_name_for_livekit_or_a_plugins_class() -> None:
    made = Providers("deepgram/nova-3:en", "tests.fakes:FakeLLM", "cartesia/sonic-3").make()
    assert (made["stt"], made["tts"]) == ("deepgram/nova-3:en", "cartesia/sonic-3")
    assert isinstance(made["llm"], FakeLLM)


def test_the_tone_is_as_long_as_it_should_be_and_does_not_click() -> None:
    frames = list(tone.tone(0.5))
    samples = [sample for frame in frames for sample in frame.data]
    assert len(samples) == tone.RATE // 2
    assert samples[0] == 0
    assert abs(samples[-1]) < 100
    assert 5000 < max(samples) <= 32767 * tone.LOUDNESS + 1
    crossings = sum(a < 0 <= b for a, b in itertools.pairwise(samples))
    assert abs(crossings - tone.HERTZ // 2) <= 1


def test_the_worker_offers_itself_under_the_workspaces_agent_name() -> None:
    assert agent.server._agent_name == "outbound"
