"""What one phone does, from the dial to the end of its call.

Sources for what LiveKit answers: livekit/sip `pkg/sip/outbound.go`, `pkg/sip/errors.go`.
"""

from __future__ import annotations

import asyncio
import math

from livekit.protocol import sip
from livekit.protocol.models import DisconnectReason

from local.livekit.failures import CANCELED, DEADLINE
from local.livekit.rooms import Call
from local.livekit.scripts import OUTCOMES, Script, script_of
from local.livekit.state import LiveKit
from local.livekit.wire import Failure, sip_failure, sip_reason

# Seconds, scaled, that the SIP service waits for sound from a phone that has answered (sip `media_port.go`).
MEDIA_TIMEOUT = 30
# The part of `ringSeconds` that passes before the carrier says that the phone rings.
DIALING_SHARE = 0.2


def choose_script(livekit: LiveKit, number: str) -> Script:
    """The script of one dial: the number's override, else a random outcome by `rates`, else the one of its
    digits."""
    if fault := livekit.faults.numbers.get(number):
        return OUTCOMES[fault.outcome]
    script = script_of(number)
    dice = livekit.dice("dial")
    for outcome, rate in livekit.faults.rates.items():
        dice -= rate if outcome != "agent_never_joins" else 0
        if dice < 0:
            return OUTCOMES[outcome]
    return script


async def dial(livekit: LiveKit, request: sip.CreateSIPParticipantRequest, script: Script, limit: float) -> Call:
    """Sends the INVITE. The call then continues on its own, also when the request's connection is cut.
    `limit`: seconds until the server gives up.

    Raises TwirpError, without ringing, when the participant is removed before its audio is published."""
    call = await livekit.invite(request, script.outcome)
    livekit.spawn(live(livekit, call, script, limit))
    return call


async def live(livekit: LiveKit, call: Call, script: Script, limit: float) -> None:
    """One call from its INVITE to its end. `limit`: seconds the server waits for the answer. Sets `call.answered`
    to None or to the failure, after the participant has left.

    When the process that holds the call dies, the phone gets no more audio and the participant stays; a pending
    dial is answered at the server's limit."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    ring_seconds, talk_seconds = livekit.faults.durations(call.number)
    patience = min(call.ringing_timeout, call.max_call_duration, limit)
    final = ring_seconds if script.picks_up else math.inf

    if script.rings and not await call.ends_within(min(DIALING_SHARE * ring_seconds, patience)):
        livekit.set_status(call, "ringing")
    refusal: tuple[str, Failure, DisconnectReason] | None = None
    if await call.ends_within(started + min(final, patience) - loop.time()):
        if call.end.result() in ("crashed", "lost"):
            livekit.call_over(call, "cut", None)
            if limit < math.inf:
                await asyncio.sleep(started + limit - loop.time())
                livekit.tell(call, DEADLINE)
            return
        if call.end.result() == "callee":
            refusal = ("rejected", sip_failure(603, sip_reason(603)), DisconnectReason.USER_REJECTED)
        else:  # removed from the room: it has left already, with that reason
            refusal = ("canceled", CANCELED, DisconnectReason.UNKNOWN_REASON)
    elif final > patience:
        failure = DEADLINE if limit <= patience else CANCELED
        refusal = ("no_answer", failure, DisconnectReason.USER_UNAVAILABLE)
    elif script.failure:
        refusal = (script.outcome, script.failure, script.leaves_as)
    if refusal:
        outcome, failure, leaves_as = refusal
        livekit.leave(call.member, leaves_as)
        livekit.call_over(call, outcome, failure)
        livekit.tell(call, failure)
        return

    livekit.answer(call)
    talk = talk_seconds if script.hangs_up else math.inf
    own = livekit.faults.media_timeout_seconds
    silence = (livekit.scaled(MEDIA_TIMEOUT) if own is None else own) if script.silent else math.inf
    rest = min(talk, silence, started + call.max_call_duration - loop.time())
    ended = await call.ends_within(rest)
    if ended and call.end.result() in ("crashed", "lost"):
        livekit.call_over(call, "cut", None)
        return
    if not ended or call.end.result() == "callee":
        if ended or rest < silence:
            livekit.set_status(call, "hangup")
        livekit.leave(call.member, DisconnectReason.CLIENT_INITIATED)
    livekit.call_over(call, "completed", None)
