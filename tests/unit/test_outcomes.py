"""The table from LiveKit's answer to a call's end."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from shared.call import ENDED, TRANSITIONS, EndReason, Outcome
from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.livekit.outcomes import (
    SIP_CODES,
    answered_outcome,
    is_configuration_fault,
    left_outcome,
    sip_outcome,
    uncoded_outcome,
    verdict,
)

TWIRP_CODES = [
    "canceled",
    "unknown",
    "invalid_argument",
    "malformed",
    "deadline_exceeded",
    "not_found",
    "bad_route",
    "already_exists",
    "permission_denied",
    "unauthenticated",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
]


@pytest.mark.parametrize("code", range(300, 700))
def test_every_sip_code_ends_the_call_and_is_kept(code: int) -> None:
    for twirp in ("resource_exhausted", "unavailable", "failed_precondition"):
        judged = verdict(LiveKitError(twirp, 429, code))
        assert judged.kind == "end"
        assert judged.outcome is not None
        assert judged.outcome.sip_status_code == code
        assert judged.outcome.status in TRANSITIONS["dialing"]
        assert judged.outcome.reason in get_args(EndReason)


def test_a_carriers_own_5xx_ends_the_call_and_may_be_tried_anew_by_the_client() -> None:
    assert sip_outcome(503) == Outcome("failed", "carrier_error", True, 503)


REASONS = {
    "busy": {486, 600},
    "no_answer": {408, 480, 487},
    "rejected": {433, 470, 603, 607, 608},
    "invalid_number": {301, 302, 404, 410, 416, 484, 485, 604},
    "trunk_error": {401, 402, 403, 407, 494},
}


@pytest.mark.parametrize("code", range(300, 700))
def test_a_sip_code_has_the_reason_that_rfc_3261_gives_it(code: int) -> None:
    reason = next((reason for reason, codes in REASONS.items() if code in codes), "carrier_error")
    assert sip_outcome(code).reason == reason
    worth_repeating = 500 <= code < 600 or code in {429, 440, 491} | REASONS["busy"] | REASONS["no_answer"]
    assert sip_outcome(code).retryable == worth_repeating


@pytest.mark.parametrize("reason", ["USER_UNAVAILABLE", "USER_REJECTED", "CLIENT_INITIATED", "ROOM_DELETED"])
def test_a_phone_that_left_for_a_passing_reason_may_be_called_again(reason: str) -> None:
    assert left_outcome({"reason": reason, "callStatus": "ringing"}).retryable
    assert uncoded_outcome("canceled", {"reason": reason, "callStatus": "ringing"}).retryable


@pytest.mark.parametrize("code", TWIRP_CODES)
def test_only_an_answer_that_comes_before_the_invite_may_be_tried_again(code: str) -> None:
    assert (verdict(LiveKitError(code, 500)).kind == "unsent") == (code == "unavailable")


@pytest.mark.parametrize("code", TWIRP_CODES)
def test_no_error_without_a_sip_code_ends_a_call_unseen(code: str) -> None:
    assert verdict(LiveKitError(code, 400)).kind in ("over", "look", "unsent")


def test_a_request_that_was_never_sent_may_be_tried_again_one_that_may_have_been_is_looked_after() -> None:
    assert verdict(LiveKitUnreachableError()).kind == "unsent"
    assert verdict(LiveKitUnclearError()).kind == "look"
    assert verdict(LiveKitUnclearError(429)).kind == "look"
    assert verdict(LiveKitUnclearError(502)).kind == "look"
    for code in ("deadline_exceeded", "resource_exhausted", "unknown", "aborted", "data_loss"):
        assert verdict(LiveKitError(code, 408)).kind == "look"


def left(reason: str, call_status: str = "ringing") -> dict[str, Any]:
    return {"reason": reason, "callStatus": call_status}


@pytest.mark.parametrize(
    ("code", "told", "status", "reason"),
    [
        # The carrier's code is missing: LiveKit's event shows that the phone was in the room.
        ("resource_exhausted", left("USER_REJECTED"), "busy", "busy"),
        ("resource_exhausted", left("USER_UNAVAILABLE"), "no_answer", "no_answer"),
        ("resource_exhausted", None, "failed", "outcome_unknown"),
        ("permission_denied", left("USER_REJECTED"), "rejected", "rejected"),
        ("not_found", left("USER_UNAVAILABLE"), "failed", "invalid_number"),
        ("not_found", left("USER_REJECTED"), "failed", "invalid_number"),
        ("out_of_range", left("USER_REJECTED"), "failed", "invalid_number"),
        ("invalid_argument", left("USER_REJECTED"), "failed", "carrier_error"),
        ("deadline_exceeded", left("USER_UNAVAILABLE"), "no_answer", "no_answer"),
        # Nothing joined the room, or only to find that the trunk is wrong.
        ("not_found", None, "failed", "trunk_error"),
        ("invalid_argument", left("CLIENT_INITIATED", "dialing"), "failed", "trunk_error"),
        ("failed_precondition", None, "failed", "trunk_error"),
        ("failed_precondition", left("USER_REJECTED", "dialing"), "failed", "trunk_error"),
        ("unauthenticated", left("USER_REJECTED", "dialing"), "failed", "trunk_error"),
        ("unauthenticated", None, "failed", "livekit_error"),
        ("permission_denied", None, "failed", "livekit_error"),
        ("internal", None, "failed", "livekit_error"),
        # The phone was answered, regardless of the error.
        ("failed_precondition", left("CLIENT_INITIATED", "hangup"), "completed", "hangup"),
        ("internal", left("CLIENT_INITIATED", "active"), "completed", "disconnected"),
    ],
)
def test_a_dial_without_its_sip_code_ends_by_livekits_event(
    code: str, told: dict[str, Any] | None, status: str, reason: str
) -> None:
    outcome = uncoded_outcome(code, told)
    assert (outcome.status, outcome.reason) == (status, reason)


@pytest.mark.parametrize("code", TWIRP_CODES)
@pytest.mark.parametrize("told", [None, left("USER_REJECTED"), left("CLIENT_INITIATED", "dialing"), left("X")])
def test_every_error_without_a_sip_code_has_an_end(code: str, told: dict[str, Any] | None) -> None:
    outcome = uncoded_outcome(code, told)
    assert outcome.status in TRANSITIONS["dialing"] & ENDED
    assert outcome.reason in get_args(EndReason)


@pytest.mark.parametrize("code", ["invalid_argument", "failed_precondition", "not_found", "unauthenticated"])
def test_a_fault_of_the_trunk_is_told_apart_from_the_callee(code: str) -> None:
    assert is_configuration_fault(uncoded_outcome(code, None))
    assert is_configuration_fault(sip_outcome(403))
    assert not is_configuration_fault(sip_outcome(486))
    assert not is_configuration_fault(uncoded_outcome("internal", None))
    assert not is_configuration_fault(uncoded_outcome("canceled", left("USER_UNAVAILABLE", "dialing")))


@pytest.mark.parametrize(
    ("told", "rang_out", "reason"),
    [
        (None, True, "no_answer"),
        (left("USER_UNAVAILABLE"), True, "no_answer"),
        # The trunk does not respond: SIP gives up after 32 s, LiveKit after the ring time if that is shorter.
        (left("USER_UNAVAILABLE", "dialing"), True, "trunk_error"),
        (left("USER_UNAVAILABLE", "dialing"), False, "trunk_error"),
        (left("PARTICIPANT_REMOVED"), False, "removed"),
        (left("ROOM_DELETED"), False, "removed"),
        (None, False, "carrier_error"),
    ],
)
def test_a_canceled_dial_ends_by_how_long_it_rang(
    told: dict[str, Any] | None, rang_out: bool, reason: str
) -> None:
    assert uncoded_outcome("canceled", told, rang_out=rang_out).reason == reason


@pytest.mark.parametrize(
    ("reason", "call_status", "status"),
    [
        ("USER_UNAVAILABLE", "ringing", "no_answer"),
        ("USER_REJECTED", "ringing", "rejected"),
        ("CLIENT_INITIATED", "dialing", "failed"),
        ("CLIENT_INITIATED", "hangup", "completed"),
        ("CLIENT_INITIATED", "active", "completed"),
        ("ROOM_DELETED", "active", "completed"),
        ("PARTICIPANT_REMOVED", "ringing", "failed"),
        ("SERVER_SHUTDOWN", "ringing", "failed"),
        ("ROOM_CLOSED", "dialing", "failed"),
    ],
)
def test_livekits_reason_decides_where_the_dials_own_answer_was_lost(
    reason: str, call_status: str, status: str
) -> None:
    assert left_outcome({"reason": reason, "callStatus": call_status}).status == status


@pytest.mark.parametrize("left", [None, {"reason": "ROOM_CLOSED", "callStatus": "dialing"}])
def test_without_a_word_on_the_phone_the_outcome_is_unknown_and_never_retryable(
    left: dict[str, Any] | None,
) -> None:
    assert left_outcome(left) == Outcome("failed", "outcome_unknown", retryable=False)


@pytest.mark.parametrize(
    ("told", "reason", "inferred"),
    [
        (left("CLIENT_INITIATED", "hangup"), "hangup", False),
        # LiveKit's service gave up: no RTP for 30 s, or it stopped.
        (left("CLIENT_INITIATED", "active"), "disconnected", False),
        (left("CLIENT_INITIATED", "automation"), "disconnected", False),
        # A server that restarted during the call has reset the status.
        (left("CLIENT_INITIATED", "dialing"), "hangup", False),
        (left("ROOM_DELETED", "active"), "agent_hangup", False),
        (left("PARTICIPANT_REMOVED", "active"), "agent_hangup", False),
        (left("CONNECTION_TIMEOUT", "active"), "disconnected", False),
        ({"reason": "ROOM_CLOSED", "callStatus": "dialing"}, "agent_hangup", True),
        (None, "disconnected", True),
    ],
)
def test_an_answered_call_is_always_completed(told: dict[str, Any] | None, reason: str, inferred: bool) -> None:
    outcome = answered_outcome(told)
    assert (outcome.status, outcome.reason, outcome.inferred) == ("completed", reason, inferred)


def test_every_outcome_of_the_table_is_an_end() -> None:
    assert {outcome.status for outcome in SIP_CODES.values()} <= ENDED
