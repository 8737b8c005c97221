"""A call from its first ring to its last report.

The customer's `metadata` is nowhere in here: what the model may know of a call are its dynamic variables, and they
come as a script that is filled already.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from livekit import rtc
from livekit.agents import AMD, Agent, AgentSession, RunContext, function_tool, llm
from livekit.agents.beta.tools import EndCallTool
from livekit.agents.voice.amd import AMDCategory

from answer import answered
from reports import Reports, transcripts
from script import Script

logger = logging.getLogger("ringonce.agent")

SUMMARY_SECONDS = 10
# A callee who answers and is silent for this long is greeted.
NO_SPEECH_SECONDS = 4.0
SUMMARY_PROMPT = "Summarise this phone call in two sentences, for the person who asked for it."


Callee = Literal["nobody", "machine", "somebody"]


class Caller(Agent):
    """Speaks the script. Its tools: ending the call, and noting that the callee wants no more calls."""

    def __init__(self, script: Script, reports: Reports) -> None:
        super().__init__(instructions=script.instructions, tools=[EndCallTool(), self._opt_out_tool(reports)])

    @staticmethod
    def _opt_out_tool(reports: Reports) -> llm.Tool:
        async def note_opt_out(context: RunContext[Any], said: str) -> str:
            """Notes that this person does not want to be called again.

            Args:
                said: In which words they said so.
            """
            reports.tell("agent.opt_out", {"said": said})
            return "It is noted. Apologise and end the call."

        return function_tool(note_opt_out)


async def begin(
    session: AgentSession[Any], script: Script, room: rtc.Room, identity: str, reports: Reports
) -> Callee:
    """Waits for an answer, finds out whose it is, and says the first words; to a machine all there is to say.

    The detection listens from before the answer on, so that it misses no word of the greeting. It waits for
    `active` itself: where LiveKit does not tell of the answer, it would wait for ever, and the callee is greeted.
    """
    async with AMD(
        session,
        participant_identity=identity,
        suppress_compatibility_warning=True,
        detection_options={"no_speech_threshold": NO_SPEECH_SECONDS},
    ) as detector:
        answer = await answered(room, identity, reports)
        if answer is None:
            return "nobody"
        callee = (await detector.execute()).category if answer == "told" else AMDCategory.UNCERTAIN
    logger.info("answered by %s", callee.value)
    if callee not in (AMDCategory.MACHINE_VM, AMDCategory.MACHINE_UNAVAILABLE):
        # A person; or a menu, which the detection has made the session listen to; or a silent callee.
        session.say(script.greeting)
        return "somebody"
    leaves_message = callee is AMDCategory.MACHINE_VM and bool(script.voicemail)
    if leaves_message:
        await session.say(script.voicemail, allow_interruptions=False)
    reports.tell("agent.voicemail", {"messageLeft": leaves_message})
    return "machine"


def turns_of(history: llm.ChatContext) -> list[tuple[str, str]]:
    """Who said what, of what was said aloud."""
    speakers = {"assistant": "agent", "user": "callee"}
    return [
        (speakers[item.role], item.text_content)
        for item in history.items
        if isinstance(item, llm.ChatMessage) and item.role in speakers and item.text_content
    ]


async def tell_what_was_said(history: llm.ChatContext, model: Any, reports: Reports) -> None:
    """The transcript and a summary; nothing when nothing was said."""
    turns = turns_of(history)
    if not turns:
        return
    for transcript in transcripts(turns):
        reports.tell("agent.transcript", transcript)
    reports.tell("agent.summary", {"text": await _summary(turns, model)})


async def _summary(turns: list[tuple[str, str]], model: Any) -> str:
    context = llm.ChatContext.empty()
    context.add_message(role="system", content=SUMMARY_PROMPT)
    context.add_message(role="user", content="\n".join(f"{speaker}: {text}" for speaker, text in turns))
    try:
        async with asyncio.timeout(SUMMARY_SECONDS):
            text = (await model.chat(chat_ctx=context).collect()).text
    except Exception as exc:
        # Whatever the model's provider does, the call's report goes out.
        logger.warning("no summary from the model: %s", type(exc).__name__)
        text = ""
    return text or f"{len(turns)} turns were spoken; the last, by the {turns[-1][0]}: {turns[-1][1][:500]}"
