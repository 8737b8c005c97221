"""Canceling a ringing or answered call hangs it up; repeating it is harmless."""

from __future__ import annotations

import threading
import time

import pytest

from tests.interleaving import change, change_durations
from tests.system import DEADLINE_SECONDS, System

CANCEL = "POST /v1/api/call/{callId}/cancel"


@pytest.mark.parametrize(("number", "where"), [("+15550000002", "dialing"), ("+15550000012", "in_progress")])
def test_canceling_hangs_up_and_a_repeat_gets_the_same_answer(
    system: System, monkeypatch: pytest.MonkeyPatch, number: str, where: str
) -> None:
    # It rings for a minute: longer than the slowest machine takes to cancel it.
    change_durations(monkeypatch, system, "dial_worker", scale=1)
    call_id = system.place(number, ring_timeout_seconds=60)
    worker = threading.Thread(target=system.dial)
    worker.start()
    try:
        system.wait_until(lambda: system.item(call_id)["status"] == where and len(system.calls_placed()) == 1)
        answers = [system.api(CANCEL, call_id) for _ in range(3)]
    finally:
        worker.join(DEADLINE_SECONDS)
    system.run_until(lambda: system.ended(call_id))
    answers.append(system.api(CANCEL, call_id))
    assert {(answer["statusCode"], answer["body"]) for answer in answers} == {(200, answers[0]["body"])}
    item = system.item(call_id)
    assert item["status"] == ("canceled" if where == "dialing" else "completed")
    assert item["events"][-1]["reason"] == "canceled_by_api"
    assert system.events(call_id).count("call.ended") == 1
    assert len(system.calls_placed()) == 1


def test_a_call_that_a_worker_holds_stays_due_with_its_slot_until_the_lease_is_over(system: System) -> None:
    """The worker is about to create the room: after clearing now, room and slot would stay for ever."""
    call_id = system.place()
    until = int(time.time() * 1000) + 600_000
    change(system, call_id, lease_id="other", lease_until_ms=until, attempts=1)
    system.limits.take_slot("demo", call_id, 10)
    for _ in range(2):
        assert system.api(CANCEL, call_id)["statusCode"] == 200
    item = system.item(call_id)
    assert (item["status"], item["checkAt"]) == ("canceled", until)
    assert "dueShard" in item
    assert system.limits.active_calls("demo") == {call_id}


@pytest.mark.parametrize(
    ("number", "end"),
    [("+15550000000", "completed"), ("+15550000002", "no_answer"), ("+15550000004", "failed")],
)
def test_a_call_that_has_ended_is_a_409_that_says_how(system: System, number: str, end: str) -> None:
    call_id = system.place(number, ring_timeout_seconds=10)
    system.run_until(lambda: system.ended(call_id))
    before = system.item(call_id)
    for _ in range(2):
        answer = system.api(CANCEL, call_id)
        assert (answer["statusCode"], answer["json"]["code"]) == (409, "call_ended")
        assert end in answer["json"]["message"]
    assert system.item(call_id) == before
