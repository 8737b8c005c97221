"""Calls that the reconciler ends: a process died, an event was lost, or no party hung up."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.interleaving import change
from tests.system import System


def reconcile_until_ended(system: System, call_id: str) -> None:
    def done() -> bool:
        system.reconcile()
        return system.ended(call_id)

    system.run_until(done)


def lose_livekits_events(system: System) -> None:
    system.faults(webhooks={"drop": 1.0})


def test_a_call_whose_events_livekit_dropped_ends_after_two_looks(system: System) -> None:
    lose_livekits_events(system)
    call_id = system.place()
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    system.run_until(lambda: system.calls_placed()[0]["outcome"] is not None)
    due_now(system, call_id)
    system.reconcile()
    if not system.ended(call_id):  # The room may still have been closing at the first look.
        assert "missingSince" in system.item(call_id) or system.item(call_id)["status"] == "in_progress"
    reconcile_until_ended(system, call_id)
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "disconnected")
    assert system.limits.active_calls("demo") == frozenset()


def test_a_call_that_lasts_too_long_is_hung_up(system: System) -> None:
    call_id = system.place("+15550000012", max_duration_seconds=30)
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    reconcile_until_ended(system, call_id)
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "max_duration")
    assert system.calls_placed()[0]["outcome"] is not None


def test_a_message_that_was_lost_is_sent_again(system: System) -> None:
    call_id = system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    due_now(system, call_id)
    assert system.reconcile() == {"sent_again": 1}
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_a_call_that_nobody_could_dial_expires(system: System) -> None:
    call_id = system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    change(system, call_id, queue_deadline_ms=1, check_at_ms=1)
    assert system.reconcile() == {"expires": 1, "ended": 1}
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("expired", "expired")
    assert "dueShard" not in item


@pytest.mark.parametrize("left", [None, {"reason": "USER_REJECTED", "callStatus": "ringing", "at": 1}])
def test_a_fenced_call_whose_worker_died_is_never_dialled_again(
    system: System, left: dict[str, Any] | None
) -> None:
    call_id = system.place()
    now = int(time.time() * 1000)
    changes: dict[str, Any] = {"phone_left": left} if left else {}
    change(
        system,
        call_id,
        status="dialing",
        lease_id="dead",
        lease_until_ms=now - 1,
        dialed_at_ms=now,
        check_at_ms=1,
        **changes,
    )
    reconcile_until_ended(system, call_id)
    end = system.item(call_id)["events"][-1]
    expected = ("rejected", "rejected") if left else ("failed", "outcome_unknown")
    assert (end["status"], end["reason"]) == expected
    assert system.calls_placed() == []


def test_a_delivery_whose_message_was_lost_is_sent_again(system: System) -> None:
    call_id = system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    change(system, call_id, check_at_ms=2**42)
    system.pump_stream()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["WebhookQueue"])

    def delivered() -> bool:
        system.reconcile()
        return len(system.received(call_id)) == 1

    system.run_until(delivered)


def test_cancelling_a_queued_call_never_dials(system: System) -> None:
    call_id = system.place()
    for _ in range(2):
        assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    system.dial()
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("canceled", "canceled_by_api")
    assert system.calls_placed() == []
    assert "dueShard" not in item


def test_cancelling_a_call_in_progress_hangs_up(system: System) -> None:
    call_id = system.place("+15550000012")
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("completed", "canceled_by_api")
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200


def test_cancelling_an_ended_call_is_refused_with_its_state(system: System) -> None:
    call_id = system.place("+15550000001")
    system.run_until(lambda: system.ended(call_id))
    answer = system.api("POST /v1/api/call/{callId}/cancel", call_id)
    assert (answer["statusCode"], answer["json"]["code"]) == (409, "call_ended")
    assert "busy" in answer["json"]["message"]


def due_now(system: System, call_id: str) -> None:
    change(system, call_id, check_at_ms=1)
