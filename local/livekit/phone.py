"""What a dialled number does.

A number `+1555000xxxx` is a magic number: its last four digits choose a script from `SCRIPTS`. Every other
number is answered and hung up like `+15550000000`. The control API can give any number another script by
its outcome's name, and choose outcomes at random for a load test.

Sources for what LiveKit answers: livekit/sip `pkg/sip/outbound.go`, `pkg/sip/errors.go`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from livekit.protocol.models import DisconnectReason

from local.livekit.wire import Failure, rpc_failure, sip_failure, sip_reason

if TYPE_CHECKING:
    from local.livekit.state import Call, LiveKit

# What happens to the HTTP request that placed the call; the call itself goes on.
Reply = Literal["normal", "cut while ringing", "502 while ringing", "cut when answered", "never"]
# Seconds, scaled, that the SIP service waits for sound from a phone that has answered (sip `media_port.go`).
MEDIA_TIMEOUT = 30
# The part of `ringSeconds` that passes before the carrier says that the phone rings.
DIALING_SHARE = 0.2

CANCELED = rpc_failure("canceled", "sip request timed out")
DEADLINE = rpc_failure("deadline_exceeded", "request timed out")
NOT_PUBLISHED = rpc_failure("internal", "update room failed: timed out publishing track")
NO_NODE = rpc_failure("unavailable", "no response from servers")
RATE_LIMITED = Failure("resource_exhausted", "rate limit exceeded")
NO_TRUNK = Failure("not_found", "requested sip trunk does not exist")
NO_JOIN = rpc_failure("internal", "update room failed: could not join")
LONG_IDENTITY = rpc_failure(
    "internal", "update room failed: participant identity length exceeds limits: max length 256"
)
TRUNK_DNS = rpc_failure(
    "invalid_argument",
    'fail to resolve target for "sip.example.com": '
    "lookup _sip._udp.sip.example.com on 192.0.2.53:53: no such host",
)
TRUNK_REFUSED = rpc_failure(
    "failed_precondition", "transport<TCP> dial err=dial tcp :0->127.0.0.1:5060: connect: connection refused"
)
TRUNK_SILENT = rpc_failure("canceled", "transaction failed to complete (0 intermediate responses)")
NO_CODEC = rpc_failure("failed_precondition", "common audio codec not found")
TRUNK_AUTH = rpc_failure(
    "failed_precondition", "sip server required auth, but no username or password was provided"
)


@dataclass(frozen=True)
class Script:
    """One kind of call. `refused` is an answer given before anything is dialled; `failure` the answer after
    the carrier refused the INVITE, with `leaves_as` as the participant's disconnect reason."""

    digits: str
    outcome: str
    does: str
    rings: bool = True
    picks_up: bool = True
    hangs_up: bool = True
    failure: Failure | None = None
    leaves_as: DisconnectReason = DisconnectReason.CLIENT_INITIATED
    refused: Failure | None = None
    first_time_only: bool = False
    agent_joins: bool = True
    agent_reports: bool = False
    silent: bool = False
    reply: Reply = "normal"


def sip_script(status: int, digits: str = "", outcome: str = "", does: str = "", reason: str = "") -> Script:
    """A call that the carrier refuses with a SIP status code (300-699)."""
    if status in {404, 408, 480}:
        leaves_as = DisconnectReason.USER_UNAVAILABLE
    elif status < 400 or 500 <= status < 600:
        leaves_as = DisconnectReason.CLIENT_INITIATED
    else:
        leaves_as = DisconnectReason.USER_REJECTED
    return Script(
        digits or f"{status:04}",
        outcome or f"sip_{status}",
        does or f"the carrier answers with SIP {status}",
        rings=status in {408, 480, 487, 603},
        failure=TRUNK_AUTH if status in {401, 407} else sip_failure(status, reason or sip_reason(status)),
        leaves_as=leaves_as,
    )


SCRIPTS = (
    Script("0000", "answer", "is answered and hangs up after talkSeconds"),
    sip_script(486, "0001", "busy", "is busy (SIP 486)"),
    Script("0002", "no_answer", "rings until the ringing timeout", picks_up=False),
    sip_script(603, "0003", "rejected", "rings, then declines the call (SIP 603)"),
    sip_script(404, "0004", "invalid_number", "does not exist (SIP 404)"),
    sip_script(503, "0005", "carrier_error", "the carrier answers with SIP 503"),
    # The number is learnt from "to" in the JSON metadata of the agent's dispatch. The phone itself answers.
    Script("0006", "agent_never_joins", "the agent never joins the room", agent_joins=False),
    Script(
        "0007", "cut_after_answer", "is answered, then the HTTP connection is cut; the call goes on",
        reply="cut when answered",
    ),
    Script(
        "0008", "cut_while_ringing", "the HTTP connection is cut while it rings; then it is answered",
        reply="cut while ringing",
    ),
    Script(
        "0009", "unavailable_once",
        "`unavailable` (503), the first time for each number and room. Then it is answered",
        refused=NO_NODE, first_time_only=True,
    ),
    Script("0010", "unavailable", "`unavailable` (503), always; nothing rings", refused=NO_NODE),
    Script(
        "0011", "bad_gateway", "HTTP 502 with an HTML page while it rings; then it is answered",
        reply="502 while ringing",
    ),
    Script("0012", "talks_on", "is answered and talks until someone else hangs up", hangs_up=False),
    sip_script(480, "0013", "temporarily_unavailable", "is switched off (SIP 480)"),
    Script(
        "0014", "trunk_auth", "the trunk refuses the credentials (412, no SIP code)",
        rings=False, failure=TRUNK_AUTH, leaves_as=DisconnectReason.USER_REJECTED,
    ),
    Script("0015", "unknown_trunk", "the trunk is unknown (404, no SIP code)", refused=NO_TRUNK),
    Script(
        "0016", "cps_limit", "the trunk's calls-per-second limit is exceeded (SIP 503 from the carrier)",
        rings=False, failure=sip_failure(503, "Trunk CPS limit exceeded"),
        leaves_as=DisconnectReason.USER_REJECTED,
    ),
    Script(
        "0017", "rate_limited_once",
        "HTTP 429 without SIP code, the first time for each number and room. Then it is answered",
        refused=RATE_LIMITED, first_time_only=True,
    ),
    Script(
        "0018", "never_responds", "the HTTP request is never answered; rings until the ringing timeout",
        picks_up=False, reply="never",
    ),
    Script(
        "0019", "agent_reports", "is answered; the agent reports ringing, a transcript and a summary",
        agent_reports=True,
    ),
    Script(
        "0020", "trunk_dns", "the trunk's DNS name is wrong (400, no SIP code)",
        rings=False, failure=TRUNK_DNS,
    ),
    Script(
        "0021", "trunk_refused", "the trunk refuses the connection (412, no SIP code)",
        rings=False, failure=TRUNK_REFUSED,
    ),
    Script(
        "0022", "trunk_silent", "the trunk never says a word (408 `canceled`, no SIP code)",
        rings=False, failure=TRUNK_SILENT, leaves_as=DisconnectReason.USER_UNAVAILABLE,
    ),
    Script(
        "0023", "codec_mismatch", "rings; the two sides have no codec in common (412, no SIP code)",
        failure=NO_CODEC, leaves_as=DisconnectReason.USER_REJECTED,
    ),
    Script("0024", "join_failed", "the room cannot be joined (500 `internal`); nothing rings", refused=NO_JOIN),
    Script(
        "0025", "no_rtp", "is answered, but sends no sound: LiveKit ends it after 30 s",
        hangs_up=False, silent=True,
    ),
)  # fmt: skip
SIP_SCRIPTS = {status: sip_script(status) for status in range(300, 700)}
BY_DIGITS = {f"{status:04}": script for status, script in SIP_SCRIPTS.items()} | {s.digits: s for s in SCRIPTS}
OUTCOMES = {script.outcome: script for script in (*SCRIPTS, *SIP_SCRIPTS.values())}
ANSWER = OUTCOMES["answer"]


def script_of(number: str) -> Script:
    """The script of a number, by its digits alone."""
    magic = re.fullmatch(r"\+?1555000(\d{4})", number)
    return BY_DIGITS.get(magic[1], ANSWER) if magic else ANSWER


def choose_script(livekit: LiveKit, number: str) -> Script:
    """The script of one dial: the number's override, else a random outcome by `rates`, else by its digits."""
    if fault := livekit.faults.numbers.get(number):
        return OUTCOMES[fault.outcome]
    script = script_of(number)
    dice = livekit.dice("dial")
    for outcome, rate in livekit.faults.rates.items():
        dice -= rate if outcome != "agent_never_joins" else 0
        if dice < 0:
            return OUTCOMES[outcome]
    return script


def lost_dispatch(livekit: LiveKit, metadata: str) -> str | None:
    """Why no worker takes the job of this dispatch, as the reason of its JobState; "": nothing tells why, because
    no job was made. None: one takes it. The number to be called is "to" in the dispatch's metadata."""
    faults, number = livekit.faults, _number_of_dispatch(metadata)
    if livekit.dispatches_lost[number] < faults.of_number(number).lost_dispatches:
        livekit.dispatches_lost[number] += 1
        return faults.dispatches.reason or ""
    spent = faults.dispatches.times is not None and livekit.dispatches_lost[""] >= faults.dispatches.times
    if not spent and livekit.dice("dispatch") < faults.dispatches.lose:
        livekit.dispatches_lost[""] += 1
        return faults.dispatches.reason or ""
    if (
        livekit.dice("agent") < faults.rates.get("agent_never_joins", 0)
        or not _script_of_dispatch(livekit, metadata).agent_joins
    ):
        return ""
    if faults.agent_capacity is not None and livekit.agents_at_work() >= faults.agent_capacity:
        return "NO_CAPACITY"
    return None


def agent_join_seconds(livekit: LiveKit, metadata: str) -> float:
    own = livekit.faults.of_number(_number_of_dispatch(metadata)).agent_join_seconds
    return livekit.faults.agent_join_seconds if own is None else own


def agent_reports(livekit: LiveKit, metadata: str) -> bool:
    """Whether the agent of a dispatch tells what happens, as `local/livekit/agent.py` does."""
    return _script_of_dispatch(livekit, metadata).agent_reports


def _number_of_dispatch(metadata: str) -> str:
    try:
        return str(json.loads(metadata)["to"])
    except (ValueError, TypeError, KeyError):
        return ""


def _script_of_dispatch(livekit: LiveKit, metadata: str) -> Script:
    number = _number_of_dispatch(metadata)
    fault = livekit.faults.numbers.get(number)
    return OUTCOMES[fault.outcome] if fault else script_of(number)


async def live(livekit: LiveKit, call: Call, script: Script, limit: float) -> None:
    """One call from its INVITE to its end. `limit`: seconds the server gives the dial, if it has to wait for
    the answer. Sets `call.answered` to None or to the failure, after the participant has left.

    When the process dies that holds the call, the phone hears nothing more and the participant stays; a dial that
    waits is told at the server's limit."""
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
