"""The table from LiveKit's answer to a call's end."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from dial_worker.outcomes import (
    SIP_CODES,
    Verdict,
    answered_outcome,
    left_outcome,
    sip_outcome,
    unanswered_outcome,
    verdict,
)
from shared.call import ENDED, TRANSITIONS, EndReason, Outcome
from shared.errors import LiveKitError, LiveKitUnclear, LiveKitUnreachable

TWIRP_CODES = [
    "canceled", "unknown", "invalid_argument", "malformed", "deadline_exceeded", "not_found", "bad_route",
    "already_exists", "permission_denied", "unauthenticated", "resource_exhausted", "failed_precondition",
    "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss",
]  # fmt: skip


@pytest.mark.parametrize("code", range(300, 700))
def test_every_sip_code_ends_the_call_and_is_kept(code: int) -> None:
    for twirp in ("resource_exhausted", "unavailable", "failed_precondition"):
        judged = verdict(LiveKitError(twirp, 429, code))
        assert judged.kind == "end"
        assert judged.outcome is not None
        assert judged.outcome.sip_status_code == code
        assert judged.outcome.status in TRANSITIONS["dialing"]
        assert judged.outcome.reason in get_args(EndReason)


def test_an_unreadable_sip_code_is_still_a_sip_answer() -> None:
    judged = verdict(LiveKitError("unavailable", 503, 0))
    assert judged == Verdict("end", Outcome("failed", "carrier_error"))


def test_a_carriers_own_5xx_ends_the_call_and_may_be_tried_anew_by_the_client() -> None:
    assert sip_outcome(503) == Outcome("failed", "carrier_error", True, 503)


@pytest.mark.parametrize("code", TWIRP_CODES)
def test_only_what_certainly_rang_nowhere_is_tried_again(code: str) -> None:
    retried = verdict(LiveKitError(code, 500)).kind == "retry"
    assert retried == (code in {"unavailable", "resource_exhausted"})


def test_a_request_that_was_never_sent_is_tried_again_one_that_may_have_been_is_not() -> None:
    assert verdict(LiveKitUnreachable()).kind == "retry"
    assert verdict(LiveKitUnclear()).kind == "look"
    assert verdict(LiveKitUnclear(502)).kind == "look"
    assert verdict(LiveKitError("deadline_exceeded", 408)).kind == "look"


@pytest.mark.parametrize("code", ["invalid_argument", "failed_precondition", "not_found"])
def test_a_fault_of_the_trunk_is_told_apart_from_the_callee(code: str) -> None:
    judged = verdict(LiveKitError(code, 400))
    assert judged.configuration_fault
    assert judged.outcome == Outcome("failed", "trunk_error")
    assert not verdict(LiveKitError("resource_exhausted", 429, 486)).configuration_fault


@pytest.mark.parametrize(
    ("left", "rang_out", "reason"),
    [
        (None, True, "no_answer"),
        ({"reason": "USER_UNAVAILABLE", "callStatus": "dialing"}, True, "no_answer"),
        ({"reason": "USER_UNAVAILABLE", "callStatus": "dialing"}, False, "trunk_error"),
        ({"reason": "PARTICIPANT_REMOVED", "callStatus": "ringing"}, False, "removed"),
        ({"reason": "ROOM_DELETED", "callStatus": "ringing"}, False, "removed"),
        (None, False, "carrier_error"),
    ],
)
def test_a_dial_without_a_sip_code_ends_by_how_long_it_rang(
    left: dict[str, Any] | None, rang_out: bool, reason: str
) -> None:
    assert unanswered_outcome(left, rang_out).reason == reason


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


@pytest.mark.parametrize("reason", [None, "CLIENT_INITIATED", "ROOM_DELETED", "CONNECTION_TIMEOUT"])
def test_an_answered_call_is_always_completed(reason: str | None) -> None:
    assert answered_outcome(reason).status == "completed"


def test_every_outcome_of_the_table_is_an_end() -> None:
    assert {outcome.status for outcome in SIP_CODES.values()} <= ENDED
