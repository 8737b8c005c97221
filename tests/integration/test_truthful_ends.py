"""An end states only what is known: which side hung up, and the time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interleaving import change, change_durations
from tests.system import System

TALKS_ON, NO_RTP, SILENT_TRUNK = "+15550000012", "+15550000025", "+15550430001"


def view(system: System, call_id: str) -> dict[str, Any]:
    found = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert isinstance(found, dict)
    return found


def test_a_phone_that_sends_no_sound_is_disconnected_and_did_not_hang_up(system: System) -> None:
    system.faults(mediaTimeoutSeconds=0.5)
    call_id = system.place(NO_RTP)
    system.run_until(lambda: system.ended(call_id))
    assert (view(system, call_id)["status"], view(system, call_id)["endReason"]) == ("completed", "disconnected")
    assert view(system, call_id)["durationSeconds"] is not None


def test_a_trunk_that_never_answers_is_at_fault_when_the_ring_time_is_over_first(system: System) -> None:
    """SIP gives an INVITE up after 32 s; a ring time of less is over before."""
    system.faults(numbers={SILENT_TRUNK: {"outcome": "trunk_silent", "ringSeconds": 600}})
    call_id = system.place(SILENT_TRUNK, ring_timeout_seconds=10)
    system.run_until(lambda: system.ended(call_id))
    left = system.calls_placed(SILENT_TRUNK)[0]
    assert (left["callStatus"], left["disconnectReason"]) == ("dialing", "USER_UNAVAILABLE")
    seen = view(system, call_id)
    assert (seen["status"], seen["endReason"], seen["retryable"]) == ("failed", "trunk_error", True)


def test_an_end_that_no_event_told_of_claims_no_duration(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    change_durations(monkeypatch, system, "reconcile_calls", second_look=0)
    system.faults(webhooks={"drop": 1})
    call_id = system.place("+15550000000")
    system.dial()

    def noticed() -> bool:
        change(system, call_id, check_at_ms=1)
        system.reconcile()
        return system.ended(call_id)

    system.wait_until(noticed)
    seen = view(system, call_id)
    assert (seen["status"], seen["endReason"]) == ("completed", "disconnected")
    assert seen["answeredAt"] is not None
    assert seen["endedAt"] is not None
    assert seen["durationSeconds"] is None


def test_a_call_hung_up_at_its_longest_was_on_until_then(system: System) -> None:
    call_id = system.place(TALKS_ON, max_duration_seconds=30)
    system.dial()
    change(system, call_id, answered_at_ms=system.item(call_id)["answeredAt"] - 1501, check_at_ms=1)
    system.reconcile()
    seen = view(system, call_id)
    assert (seen["status"], seen["endReason"]) == ("completed", "max_duration")
    assert seen["durationSeconds"] is not None
