"""A conversation from the first ring to the last report.

The customer's `metadata` is not used here: the model gets only the dynamic variables, as a filled script.
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
# A callee who is silent for this long after the answer is greeted.
NO_SPEECH_SECONDS = 4.0
SUMMARY_PROMPT = "Summarise this phone call in two sentences, for the person who asked for it."


Callee = Literal["no_answer", "machine", "person"]


class Caller(Agent):
    """Speaks the script. Its tools end the call and report that the callee wants no more calls."""

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
    """Waits for the answer, detects whether a person or a machine gave it, and speaks: the greeting to a person,
    the whole message to a machine.

    The detection starts before the answer, so that it hears the first word. It waits for the status `active`
    itself; without that status it would never return, so it is not used after an answer that was detected by
    speech."""
    async with AMD(
        session,
        participant_identity=identity,
        suppress_compatibility_warning=True,
        detection_options={"no_speech_threshold": NO_SPEECH_SECONDS},
    ) as detector:
        answer = await answered(room, identity, reports)
        if answer is None:
            return "no_answer"
        callee = (await detector.execute()).category if answer == "status" else AMDCategory.UNCERTAIN
    logger.info("answered by %s", callee.value)
    if callee not in (AMDCategory.MACHINE_VM, AMDCategory.MACHINE_UNAVAILABLE):
        # A person, a menu that the session listens to, or a silent callee.
        session.say(script.greeting)
        return "person"
    leaves_message = callee is AMDCategory.MACHINE_VM and bool(script.voicemail)
    if leaves_message:
        await session.say(script.voicemail, allow_interruptions=False)
    reports.tell("agent.voicemail", {"messageLeft": leaves_message})
    return "machine"


def turns_of(history: llm.ChatContext) -> list[tuple[str, str]]:
    """Speaker and text of each spoken turn."""
    speakers = {"assistant": "agent", "user": "callee"}
    return [
        (speakers[item.role], item.text_content)
        for item in history.items
        if isinstance(item, llm.ChatMessage) and item.role in speakers and item.text_content
    ]


async def tell_what_was_said(history: llm.ChatContext, model: Any, reports: Reports) -> None:
    """Reports the transcript and a summary; nothing when nothing was said."""
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
        # The summary is sent also when the model's provider fails.
        logger.warning("no summary from the model: %s", type(exc).__name__)
        text = ""
    return text or f"{len(turns)} turns were spoken; the last, by the {turns[-1][0]}: {turns[-1][1][:500]}"
