"""What LiveKit's answer to a dial means for the call.

The facts are LiveKit's own mapping of SIP to Twirp (livekit/protocol livekit/sip.go, livekit/sip pkg/sip) and
RFC 3261, section 21. One rule stands above the table: no error proves by itself that nothing rang. With a SIP code
the carrier had the INVITE, so the call ends; without one LiveKit's event and a look at the room decide.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from shared.call import Outcome
from shared.errors import LiveKitError, LiveKitUnreachable

_BUSY = Outcome("busy", "busy", retryable=True)
_NO_ANSWER = Outcome("no_answer", "no_answer", retryable=True)
_REJECTED = Outcome("rejected", "rejected")
_INVALID = Outcome("failed", "invalid_number")
_TRUNK = Outcome("failed", "trunk_error")
_CARRIER = Outcome("failed", "carrier_error")
_CARRIER_RETRY = Outcome("failed", "carrier_error", retryable=True)

# SIP code → outcome. What is not listed: 5xx a carrier's passing fault, else its refusal.
SIP_CODES: dict[int, Outcome] = {
    301: _INVALID, 302: _INVALID,  # moved: the number is somewhere else, LiveKit does not follow
    401: _TRUNK, 402: _TRUNK, 403: _TRUNK, 407: _TRUNK, 494: _TRUNK,  # credentials, payment, permission
    404: _INVALID, 410: _INVALID, 416: _INVALID, 484: _INVALID, 485: _INVALID, 604: _INVALID,
    408: _NO_ANSWER, 480: _NO_ANSWER, 487: _NO_ANSWER,
    433: _REJECTED, 470: _REJECTED, 603: _REJECTED, 607: _REJECTED, 608: _REJECTED,
    486: _BUSY, 600: _BUSY,
    429: _CARRIER_RETRY, 440: _CARRIER_RETRY, 491: _CARRIER_RETRY,
}  # fmt: skip


# With these codes LiveKit, or a proxy before it, does not say that the dial is over.
_TELLS_NOTHING = frozenset(
    {"unclear", "unknown", "deadline_exceeded", "resource_exhausted", "aborted", "data_loss", "dataloss"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What LiveKit's error for a dial proves.

    end: the carrier answered the INVITE; the call ends with `outcome`. over: LiveKit gave the dial up without a
    SIP code, which may be after an answer: its event and one look come first. unsent: an answer that comes before
    the INVITE only; un-fenced once two looks confirm it. look: nothing is known of the phone.
    """

    kind: Literal["end", "over", "unsent", "look"]
    outcome: Outcome | None = None


def sip_outcome(code: int) -> Outcome:
    """The end a carrier's final response gives a call. code: 300 to 699."""
    default = _CARRIER_RETRY if 500 <= code < 600 else _CARRIER
    return dataclasses.replace(SIP_CODES.get(code, default), sip_status_code=code)


def verdict(error: LiveKitError) -> Verdict:
    """Reads LiveKit's answer to CreateSIPParticipant.

    `unavailable` is sent before the INVITE only from livekit-sip 1.7.0 on. `resource_exhausted` is LiveKit's word
    for SIP 440, 480, 486 and 600 too: without the SIP code it does not tell a refused request from a busy phone.
    """
    if error.sip_status_code is not None:
        return Verdict("end", sip_outcome(error.sip_status_code))
    if isinstance(error, LiveKitUnreachable):
        return Verdict("unsent")
    if error.code == "unavailable":
        return Verdict("unsent")
    return Verdict("look" if error.code in _TELLS_NOTHING else "over")


def uncoded_outcome(code: str, left: dict[str, Any] | None, *, rang_out: bool = False) -> Outcome:
    """The end of a dial that LiveKit gave up with this Twirp code and without a SIP code.

    left: what LiveKit's event says of the phone's leaving, None without one. rang_out: the dial lasted its ring
    time. The phone joins the room before the INVITE, so a code of SIP's with a `left` is the carrier's answer, its
    number lost on the way (livekit/protocol livekit/sip.go `sipCodeToGRPCCode`); without one LiveKit refused.
    """
    if left is not None and left.get("callStatus") in ANSWERED:
        return answered_outcome(left)
    reason = left["reason"] if left is not None else None
    match code, reason:
        case "canceled", _:
            return _unanswered_outcome(left, rang_out)
        case "resource_exhausted", "USER_REJECTED":
            return _BUSY
        case "permission_denied", "USER_REJECTED":
            return _REJECTED
        case ("not_found" | "out_of_range", "USER_REJECTED") | ("not_found", "USER_UNAVAILABLE"):
            return _INVALID
        case "invalid_argument", "USER_REJECTED":
            return _CARRIER
        case "unauthenticated" | "permission_denied", None:
            return Outcome("failed", "livekit_error")
        case (
            "invalid_argument" | "failed_precondition" | "not_found" | "out_of_range" | "unauthenticated"
            | "permission_denied",
            _,
        ):  # fmt: skip
            # Trunk unknown, without numbers, wrong DNS name, refused connection or credentials, codecs.
            return _TRUNK
    if code in _TELLS_NOTHING:
        return left_outcome(left)
    # internal: the room could not be joined, SIP is not set up. The INVITE was never sent.
    return Outcome("failed", "livekit_error", retryable=True)


def is_configuration_fault(outcome: Outcome) -> bool:
    """Whether an operator must act: LiveKit's keys, the trunk or its credentials are wrong."""
    return outcome.reason in ("trunk_error", "livekit_error") and not outcome.retryable


def _unanswered_outcome(left: dict[str, Any] | None, rang_out: bool) -> Outcome:
    match left:
        case {"reason": "ROOM_DELETED" | "PARTICIPANT_REMOVED" | "ROOM_CLOSED"}:
            return Outcome("failed", "removed", retryable=True)
        case {"callStatus": "dialing"}:
            # The trunk never said that the phone rings: the INVITE was not answered at all. SIP gives up after
            # 32 s (RFC 3261, timer B), LiveKit after the ring time if that is shorter.
            return Outcome("failed", "trunk_error", retryable=True)
    return _NO_ANSWER if rang_out else _CARRIER_RETRY


ANSWERED = frozenset({"active", "automation", "hangup"})


def left_outcome(left: dict[str, Any] | None) -> Outcome:
    """The end of a fenced call by what LiveKit said when its participant left; None: it said nothing.

    Without the carrier's code this is less than the dial's own answer would tell.
    """
    if left is None:
        return Outcome("failed", "outcome_unknown")
    if left.get("callStatus") in ANSWERED:
        return answered_outcome(left)
    match left["reason"]:
        case "USER_UNAVAILABLE":
            return _NO_ANSWER
        case "USER_REJECTED":
            # LiveKit gives the same reason for busy and declined.
            return Outcome("rejected", "rejected", retryable=True)
        case "CLIENT_INITIATED" | "SIP_TRUNK_FAILURE":
            return _CARRIER_RETRY
        case "ROOM_DELETED" | "PARTICIPANT_REMOVED":
            return Outcome("failed", "removed", retryable=True)
    # ROOM_CLOSED, of a room that finished without a word about the phone, tells nothing of it.
    return Outcome("failed", "outcome_unknown")


def answered_outcome(left: dict[str, Any] | None) -> Outcome:
    """The end of an answered call by LiveKit's event of the phone's leaving.

    None: the phone is gone and no event says since when, so the end is inferred.
    """
    match left:
        case None:
            return Outcome("completed", "disconnected", inferred=True)
        case {"reason": "CLIENT_INITIATED", "callStatus": "active" | "automation"}:
            # A callee who hangs up leaves with `hangup`: no RTP for 30 s, or the SIP service stopped.
            return Outcome("completed", "disconnected")
        case {"reason": "CLIENT_INITIATED"}:
            return Outcome("completed", "hangup")
        case {"reason": "ROOM_DELETED" | "PARTICIPANT_REMOVED"}:
            return Outcome("completed", "agent_hangup")
        case {"reason": "ROOM_CLOSED"}:
            # Of the room, not of the phone, which left up to the room's departure time-out (20 s) before.
            return Outcome("completed", "agent_hangup", inferred=True)
    return Outcome("completed", "disconnected")


# Not ends: LiveKit moves the participant, or another connection of the same identity took its place.
NOT_AN_END = frozenset({"MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"})
