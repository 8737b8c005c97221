"""A LiveKit agent for outbound calls placed by Ringonce: `python agent.py dev`, or `start` in production.

LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET name the server; AGENT_NAME must be the workspace's agent name.
AGENT_STT, AGENT_LLM and AGENT_TTS name the providers of speech and language (providers.py); without them it plays
a tone."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from livekit.agents import AgentServer, AgentSession, JobContext, cli, room_io

import tone
from answer import answered
from conversation import Caller, begin, tell_what_was_said
from providers import Providers, read_providers
from reports import Reports
from ringonce_agent import read_dispatch
from script import Script, fill, load

logger = logging.getLogger("ringonce.agent")

TONE_SECONDS = 2
# The last reports are sent after the call, each for up to a minute and a half when Ringonce is slow to answer.
server = AgentServer(shutdown_process_timeout=120)


@server.rtc_session(agent_name=os.environ.get("AGENT_NAME", "outbound"))
async def take_call(ctx: JobContext) -> None:
    """Handles one call. Ringonce dials when this agent is in the room, so the agent waits for the phone."""
    dispatch = read_dispatch(ctx.job.metadata)
    providers = read_providers(os.environ)
    script, missing = fill(load(_script_path()), dispatch.dynamic_variables)
    if missing:
        logger.warning("call %s has no %s", dispatch.call_id, ", ".join(sorted(missing)))
    await ctx.connect()
    reports = Reports(dispatch, ctx.room.name)
    try:
        await ctx.wait_for_participant(identity=dispatch.identity)
    except RuntimeError:
        # The room was closed before anything rang.
        await reports.close()
        ctx.shutdown("not dialled")
        return
    if providers is None:
        await play_tone(ctx, dispatch.identity, reports)
    else:
        await converse(ctx, dispatch.identity, script, providers, reports)


def _script_path() -> Path:
    return Path(os.environ.get("AGENT_SCRIPT") or Path(__file__).with_name("script.toml"))


async def play_tone(ctx: JobContext, identity: str, reports: Reports) -> None:
    """The call without providers: the callee hears a tone, then the agent hangs up."""
    ctx.add_shutdown_callback(reports.close)
    if not await answered(ctx.room, identity, reports):
        leave_unanswered(ctx)
        return
    await tone.play(ctx.room.local_participant, TONE_SECONDS)
    reports.tell("agent.summary", {"text": "A tone was played: no speech provider is configured."})
    await hang_up(ctx)


async def converse(ctx: JobContext, identity: str, script: Script, providers: Providers, reports: Reports) -> None:
    """Speaks and listens until either side hangs up; the transcript is reported after that."""
    session: AgentSession[Any] = AgentSession(**providers.make())

    async def finish() -> None:
        await tell_what_was_said(session.history, session.llm, reports)
        await reports.close()

    ctx.add_shutdown_callback(finish)
    # A callee who hangs up closes the session.
    session.on("close", lambda _: ctx.shutdown("the session closed"))
    await session.start(
        Caller(script, reports), room=ctx.room, room_options=room_io.RoomOptions(participant_identity=identity)
    )
    match await begin(session, script, ctx.room, identity, reports):
        case "no_answer":
            leave_unanswered(ctx)
        case "machine":
            await hang_up(ctx)


def leave_unanswered(ctx: JobContext) -> None:
    """Leaves without deleting the room: Ringonce has the carrier's reason, and deletes it."""
    ctx.shutdown("not answered")


async def hang_up(ctx: JobContext) -> None:
    """Deletes the room, which ends the call. If the agent only left, the callee would stay on a silent line."""
    await ctx.delete_room()
    ctx.shutdown("hung up")


if __name__ == "__main__":
    read_providers(os.environ)
    load(_script_path())
    cli.run_app(server)
