"""What LiveKit's answer to a dial means for the call.

The facts are LiveKit's own mapping of SIP to Twirp (livekit/protocol livekit/sip.go, livekit/sip pkg/sip) and
RFC 3261, section 21. One rule stands above the table: once a SIP code came, the carrier had the INVITE and the
phone may have rung, so the call ends; only what certainly rang nowhere is tried again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from shared.call import Outcome
from shared.errors import LiveKitError, LiveKitUnclear, LiveKitUnreachable

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


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What to do after a dial that did not answer.

    end: with `outcome`. retry: nothing rang, un-fence. look: nobody knows, ask LiveKit. unanswered: it is over
    without a SIP code; why depends on how long it rang and on what LiveKit's events say.
    """

    kind: Literal["end", "retry", "look", "unanswered"]
    outcome: Outcome | None = None
    configuration_fault: bool = False


def sip_outcome(code: int) -> Outcome:
    """The end a carrier's final response gives a call. code: 300 to 699; 0 when it could not be read."""
    default = _CARRIER_RETRY if 500 <= code < 600 else _CARRIER
    return dataclasses.replace(SIP_CODES.get(code, default), sip_status_code=code or None)


def verdict(error: LiveKitError) -> Verdict:
    """Reads LiveKit's answer to CreateSIPParticipant."""
    if error.sip_status_code is not None:
        outcome = sip_outcome(error.sip_status_code)
        return Verdict("end", outcome, outcome.reason == "trunk_error")
    if isinstance(error, LiveKitUnreachable):
        return Verdict("retry")
    if isinstance(error, LiveKitUnclear):
        return Verdict("look")
    match error.code:
        case "unavailable" | "resource_exhausted":
            # No SIP node took the request, or LiveKit's own rate limit refused it.
            return Verdict("retry")
        case "canceled":
            return Verdict("unanswered")
        case "deadline_exceeded" | "unknown" | "aborted" | "data_loss" | "dataloss":
            return Verdict("look")
        case "invalid_argument" | "failed_precondition" | "not_found" | "out_of_range":
            # Trunk unknown, without numbers, wrong DNS name, refused connection or credentials, codecs.
            return Verdict("end", Outcome("failed", "trunk_error"), configuration_fault=True)
        case "unauthenticated" | "permission_denied":
            return Verdict("end", Outcome("failed", "livekit_error"), configuration_fault=True)
        case _:
            # internal: the room could not be joined, SIP is not set up. The INVITE was never sent.
            return Verdict("end", Outcome("failed", "livekit_error", retryable=True))


def unanswered_outcome(left: dict[str, Any] | None, rang_out: bool) -> Outcome:
    """A dial that ended without a SIP code. rang_out: it had lasted its ring time."""
    if rang_out:
        return _NO_ANSWER
    match left:
        case {"reason": "ROOM_DELETED" | "PARTICIPANT_REMOVED" | "ROOM_CLOSED"}:
            return Outcome("failed", "removed", retryable=True)
        case {"callStatus": "dialing"}:
            # The INVITE transaction died: the trunk never said a word.
            return Outcome("failed", "trunk_error", retryable=True)
    return _CARRIER_RETRY


ANSWERED = frozenset({"active", "automation", "hangup"})


def left_outcome(left: dict[str, Any] | None) -> Outcome:
    """The end of a fenced call by what LiveKit said when its participant left; None: it said nothing.

    Without the carrier's code this is less than the dial's own answer would tell.
    """
    if left is None:
        return Outcome("failed", "outcome_unknown")
    reason = left["reason"]
    if left.get("callStatus") in ANSWERED:
        return answered_outcome(reason)
    match reason:
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


def answered_outcome(reason: str | None) -> Outcome:
    """The end of an answered call by LiveKit's disconnect reason; None: it is gone, nobody said why."""
    match reason:
        case "CLIENT_INITIATED":
            return Outcome("completed", "hangup")
        case "ROOM_DELETED" | "PARTICIPANT_REMOVED" | "ROOM_CLOSED":
            return Outcome("completed", "agent_hangup")
    return Outcome("completed", "disconnected")


# Not ends: LiveKit moves the participant, or another connection of the same identity took its place.
NOT_AN_END = frozenset({"MIGRATION", "DUPLICATE_IDENTITY", "STATE_MISMATCH"})
