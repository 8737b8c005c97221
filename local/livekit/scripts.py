"""The script of each number: what its phone does.

The last four digits of a number `+1555000xxxx` select a script from `SCRIPTS`. Every other number is answered and
hung up like `+15550000000`. The control API overrides the script of any number by its outcome's name, and selects
outcomes at random for a load test.

Sources for what LiveKit answers: livekit/sip `pkg/sip/outbound.go`, `pkg/sip/errors.go`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from livekit.protocol.models import DisconnectReason

from local.livekit.failures import (
    NO_CODEC,
    NO_JOIN,
    NO_NODE,
    NO_TRUNK,
    RATE_LIMITED,
    TRUNK_AUTH,
    TRUNK_DNS,
    TRUNK_REFUSED,
    TRUNK_SILENT,
)
from local.livekit.wire import Failure, sip_failure, sip_reason

# What happens to the HTTP request that placed the call; the call itself goes on.
Reply = Literal["normal", "cut while ringing", "502 while ringing", "cut when answered", "never"]


@dataclass(frozen=True)
class Script:
    """One kind of call. `refused`: the answer before anything is dialled. `failure`: the answer after the carrier
    refused the INVITE, with `leaves_as` as the participant's disconnect reason."""

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
    # The number is "to" in the JSON metadata of the agent's dispatch. The phone itself answers.
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
        "0022", "trunk_silent", "the trunk never answers (408 `canceled`, no SIP code)",
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
)  # a table: digits, name, what it does  # fmt: skip
SIP_SCRIPTS = {status: sip_script(status) for status in range(300, 700)}
BY_DIGITS = {f"{status:04}": script for status, script in SIP_SCRIPTS.items()} | {s.digits: s for s in SCRIPTS}
OUTCOMES = {script.outcome: script for script in (*SCRIPTS, *SIP_SCRIPTS.values())}
ANSWER = OUTCOMES["answer"]


def script_of(number: str) -> Script:
    """The script that the digits of a number select."""
    magic = re.fullmatch(r"\+?1555000(\d{4})", number)
    return BY_DIGITS.get(magic[1], ANSWER) if magic else ANSWER
