"""The outcome of a call from LiveKit's answer to a dial.

Sources: LiveKit's mapping of SIP to Twirp (livekit/protocol livekit/sip.go, livekit/sip pkg/sip) and RFC 3261,
section 21. One rule precedes the table: no error proves by itself that nothing rang. With a SIP code the carrier
got the INVITE, so the call ends; without one LiveKit's event and a look at the room decide.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from shared.call import Outcome
from shared.errors import LiveKitError, LiveKitUnreachableError

_BUSY = Outcome("busy", "busy", retryable=True)
_NO_ANSWER = Outcome("no_answer", "no_answer", retryable=True)
_REJECTED = Outcome("rejected", "rejected")
_INVALID = Outcome("failed", "invalid_number")
_TRUNK = Outcome("failed", "trunk_error")
_CARRIER = Outcome("failed", "carrier_error")
_CARRIER_RETRY = Outcome("failed", "carrier_error", retryable=True)

# SIP code → outcome. Not listed: 5xx, a temporary fault of the carrier; all others, its refusal.
SIP_CODES: dict[int, Outcome] = {
    301: _INVALID, 302: _INVALID,  # moved; LiveKit does not follow
    401: _TRUNK, 402: _TRUNK, 403: _TRUNK, 407: _TRUNK, 494: _TRUNK,  # credentials, payment, permission
    404: _INVALID, 410: _INVALID, 416: _INVALID, 484: _INVALID, 485: _INVALID, 604: _INVALID,
    408: _NO_ANSWER, 480: _NO_ANSWER, 487: _NO_ANSWER,
    433: _REJECTED, 470: _REJECTED, 603: _REJECTED, 607: _REJECTED, 608: _REJECTED,
    486: _BUSY, 600: _BUSY,
    429: _CARRIER_RETRY, 440: _CARRIER_RETRY, 491: _CARRIER_RETRY,
}  # a row for each outcome  # fmt: skip


# With these codes of LiveKit, or of a proxy before it, the dial may still go on.
_TELLS_NOTHING = frozenset(
    {"unclear", "unknown", "deadline_exceeded", "resource_exhausted", "aborted", "data_loss", "dataloss"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What LiveKit's error for a dial proves.

    end: the carrier answered the INVITE; the call ends with `outcome`. over: LiveKit gave up the dial without a
    SIP code, possibly after the phone was answered: its event and one look are needed. unsent: an error that
    occurs only before the INVITE; un-fenced once two looks confirm it. look: nothing is known of the phone.
    """

    kind: Literal["end", "over", "unsent", "look"]
    outcome: Outcome | None = None


def sip_outcome(code: int) -> Outcome:
    """The end a carrier's final response gives a call. code: 300 to 699."""
    default = _CARRIER_RETRY if 500 <= code < 600 else _CARRIER
    return dataclasses.replace(SIP_CODES.get(code, default), sip_status_code=code)


def verdict(error: LiveKitError) -> Verdict:
    """Reads LiveKit's answer to CreateSIPParticipant.

    From livekit-sip 1.7.0 on `unavailable` occurs only before the INVITE. `resource_exhausted` also stands for SIP
    440, 480, 486 and 600: without the SIP code it does not distinguish a refused request from a busy phone.
    """
    if error.sip_status_code is not None:
        return Verdict("end", sip_outcome(error.sip_status_code))
    if isinstance(error, LiveKitUnreachableError):
        return Verdict("unsent")
    if error.code == "unavailable":
        return Verdict("unsent")
    return Verdict("look" if error.code in _TELLS_NOTHING else "over")


def uncoded_outcome(code: str, left: dict[str, Any] | None, *, rang_out: bool = False) -> Outcome:
    """The outcome of a dial that LiveKit gave up with this Twirp code and without a SIP code.

    left: LiveKit's event of the phone's leaving, None without one. rang_out: the dial lasted its ring time. The
    phone joins the room before the INVITE, so a code that LiveKit derives from SIP, together with `left`, is the
    carrier's answer without its number (livekit/protocol livekit/sip.go `sipCodeToGRPCCode`); without `left`
    LiveKit itself refused.
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
            "invalid_argument"
            | "failed_precondition"
            | "not_found"
            | "out_of_range"
            | "unauthenticated"
            | "permission_denied",
            _,
        ):
            # Trunk unknown, without numbers, wrong DNS name, refused connection or credentials, codecs.
            return _TRUNK
    if code in _TELLS_NOTHING:
        return left_outcome(left)
    # internal: the room could not be joined, SIP is not set up. The INVITE was never sent.
    return Outcome("failed", "livekit_error", retryable=True)


def is_configuration_fault(outcome: Outcome) -> bool:
    """Whether an operator must act: LiveKit's keys, the trunk or its credentials are wrong."""
    return outcome.reason in ("trunk_error", "livekit_error") and not outcome.retryable


def is_trunk_fault(outcome: Outcome) -> bool:
    """Whether the trunk itself refused the dial (credentials, DNS name, connection), so that the next one will
    fail too.
    """
    return outcome.reason == "trunk_error" and not outcome.retryable


def _unanswered_outcome(left: dict[str, Any] | None, rang_out: bool) -> Outcome:
    match left:
        case {"reason": "ROOM_DELETED" | "PARTICIPANT_REMOVED" | "ROOM_CLOSED"}:
            return Outcome("failed", "removed", retryable=True)
        case {"callStatus": "dialing"}:
            # No ringing was reported: the INVITE was not answered at all. SIP gives up after 32 s (RFC 3261,
            # timer B), LiveKit after the ring time if that is shorter.
            return Outcome("failed", "trunk_error", retryable=True)
    return _NO_ANSWER if rang_out else _CARRIER_RETRY


ANSWERED = frozenset({"active", "automation", "hangup"})


def left_outcome(left: dict[str, Any] | None) -> Outcome:
    """The outcome of a fenced call from LiveKit's event of the phone's leaving; None: there was no event.

    It lacks the carrier's code, so it is less precise than the dial's own answer.
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
    # ROOM_CLOSED: the room finished without an event about the phone, whose outcome stays unknown.
    return Outcome("failed", "outcome_unknown")


def answered_outcome(left: dict[str, Any] | None) -> Outcome:
    """The outcome of an answered call from LiveKit's event of the phone's leaving.

    None: the phone is absent and no event gives the time, so the end is inferred.
    """
    match left:
        case None:
            return Outcome("completed", "disconnected", inferred=True)
        case {"reason": "CLIENT_INITIATED", "callStatus": "active" | "automation"}:
            # Not a callee who hangs up, which sets `hangup`: no RTP for 30 s, or the SIP service stopped.
            return Outcome("completed", "disconnected")
        case {"reason": "CLIENT_INITIATED"}:
            return Outcome("completed", "hangup")
        case {"reason": "ROOM_DELETED" | "PARTICIPANT_REMOVED"}:
            return Outcome("completed", "agent_hangup")
        case {"reason": "ROOM_CLOSED"}:
            # The time is the room's; the phone left up to the room's departure time-out (20 s) earlier.
            return Outcome("completed", "agent_hangup", inferred=True)
    return Outcome("completed", "disconnected")


# Not ends: LiveKit moves the participant, or another connection of the same identity replaced it.
NOT_AN_END = frozenset({"MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"})
