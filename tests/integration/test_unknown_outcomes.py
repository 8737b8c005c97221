"""A dial's outcome is unknown: look, wait while it rings, end with what is known. Never dial again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.call_store import CallStore
from shared.errors import LiveKitUnclearError
from shared.limits import LimitStore
from shared.livekit.client import LiveKit
from tests.interleaving import change, change_durations, once, other_worker, requests
from tests.system import Context, System

ANSWERS, BUSY, RINGS, TALKS_ON = "+15550000000", "+15550000001", "+15550000002", "+15550000012"
# "hang": no answer within the client's own time.
NOT_LIVEKITS_WORD = ("cut", "hang", "html502", "text503", "json503", "list503", "deadline_exceeded", "unknown")


def end_of(system: System, call_id: str) -> tuple[str, str]:
    item = system.item(call_id)
    assert [entry["type"] for entry in item["events"]].count("call.ended") == 1
    return item["status"], item["events"][-1]["reason"]


def asked_once(system: System) -> None:
    """LiveKit was asked to ring once, regardless of the outcome."""
    assert requests(system)["CreateSIPParticipant"] == 1


def test_a_dial_without_livekits_own_word_is_looked_after_and_never_repeated(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch: the answers that are not LiveKit's, after the phone was answered and before it was rung.

    Those that reached LiveKit are found answered. The others, which cannot be distinguished from them, end unknown
    after two looks; they are not repeated.
    """
    change_durations(monkeypatch, system, "dial_worker", answer_margin=0)
    answered = {fail: f"+1555040{n:04}" for n, fail in enumerate(NOT_LIVEKITS_WORD)}
    unsent = {fail: f"+1555041{n:04}" for n, fail in enumerate(NOT_LIVEKITS_WORD[:2])}
    knobs = {number: {"outcome": "talks_on", "fail": fail, "after": True} for fail, number in answered.items()}
    knobs |= {number: {"fail": fail} for fail, number in unsent.items()}
    system.faults(numbers=knobs)
    calls = {number: system.place(number, ring_timeout_seconds=10) for number in knobs}
    started = time.monotonic()
    assert system.dial() == len(knobs)
    assert time.monotonic() - started >= system.durations.second_look, "absent on two looks, so far apart"
    for fail, number in unsent.items():
        assert end_of(system, calls[number]) == ("failed", "outcome_unknown"), fail
        assert system.item(calls[number])["events"][-1]["retryable"] is False
        assert system.calls_placed(number) == []
    for fail, number in answered.items():
        assert system.item(calls[number])["status"] == "in_progress", fail
        hang_up = system.http.post(f"{system.servers.livekit_url}/_standin/hangup", json={"number": number})
        assert hang_up.json() == {"hungUp": 1}
    system.run_until(lambda: all(map(system.ended, calls.values())))
    for fail, number in answered.items():
        assert end_of(system, calls[number]) == ("completed", "hangup"), fail
        assert "call.answered" in system.events(calls[number])
        assert len(system.calls_placed(number)) == 1
    assert requests(system)["CreateSIPParticipant"] == len(knobs)


def test_a_phone_that_still_rings_is_waited_for(system: System) -> None:
    system.faults(numbers={ANSWERS: {"outcome": "cut_while_ringing", "ringSeconds": 1.5}})
    call_id = system.place(ANSWERS)
    system.dial()
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("completed", "hangup")
    asked_once(system)


def test_a_phone_that_rings_out_after_the_connection_was_cut_was_not_answered(system: System) -> None:
    system.faults(createSIPParticipant={"fail": "cut", "after": True})
    call_id = system.place(RINGS, ring_timeout_seconds=10)
    system.dial()
    assert end_of(system, call_id) == ("no_answer", "no_answer")
    assert len(system.calls_placed()) == 1
    asked_once(system)


def test_what_the_worker_cannot_find_out_in_its_time_the_reconciler_does(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function's own deadline is near when the connection is cut, and LiveKit cannot be asked."""
    system.faults(createSIPParticipant={"fail": "cut", "after": True})
    call_id = system.place(TALKS_ON)
    [record] = system.receive("DialQueue")
    context = Context(120)
    dial, view_room = LiveKit.dial, LiveKit.view_room

    async def last_thing(livekit: LiveKit, **request: Any) -> None:
        try:
            await dial(livekit, **request)
        finally:
            monkeypatch.setattr(LiveKit, "view_room", down)

    async def down(livekit: LiveKit, room: str, identity: str) -> Any:
        context.remaining(system.durations.fence_margin)
        raise LiveKitUnclearError(502)

    monkeypatch.setattr(LiveKit, "dial", last_thing)
    assert other_worker(system, [record], context) == {"batchItemFailures": []}
    assert system.item(call_id)["status"] == "dialing"
    monkeypatch.setattr(LiveKit, "view_room", view_room)
    change(system, call_id, lease_until_ms=1, check_at_ms=1)
    system.reconcile()
    assert system.item(call_id)["status"] == "in_progress"
    asked_once(system)


def test_a_dial_that_cannot_finish_in_time_is_not_begun(system: System) -> None:
    call_id = system.place(ANSWERS, ring_timeout_seconds=60)
    assert system.dial(seconds=3) == 1
    assert (system.item(call_id)["status"], system.calls_placed()) == ("queued", [])
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("completed", "hangup")


# ── a process that was stopped for longer than its lease ────────────────────────────────────────────


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (LimitStore, "take_slot"),
        (LiveKit, "create_room"),
        (LiveKit, "view_room"),
        (LimitStore, "reserve_trunk"),
        (CallStore, "fence"),
        (LiveKit, "dial"),
        (CallStore, "answered"),
    ],
)
def test_a_worker_that_wakes_up_after_its_lease_writes_and_deletes_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    """It stalls right after a step. Its lease ends; another process continues with the call, which is answered."""
    call_id = system.place(TALKS_ON)
    [record] = system.receive("DialQueue")
    module = system.modules["dial_worker"]
    now_ms, stopped_for = module.now_ms, [0]
    seen: list[Any] = []

    def stand_still() -> None:
        change(system, call_id, lease_until_ms=1)
        monkeypatch.setattr(module, "now_ms", now_ms)
        if system.item(call_id)["status"] == "queued":
            other_worker(system, [record])
        elif system.item(call_id)["status"] == "dialing":
            change(system, call_id, check_at_ms=1)
            system.reconcile()
        assert system.item(call_id)["status"] == "in_progress"
        seen.extend([system.item(call_id), requests(system).get("DeleteRoom", 0)])
        stopped_for[0] = 10 * 60 * 1000

    monkeypatch.setattr(module, "now_ms", lambda: now_ms() + stopped_for[0])
    hooks: dict[str, Any] = {"before" if method == "answered" else "after": stand_still}
    if method == "fence":
        hooks = {"before": stand_still}
    once(monkeypatch, owner, method, **hooks)
    assert other_worker(system, [record]) == {"batchItemFailures": []}
    assert [system.item(call_id), requests(system).get("DeleteRoom", 0)] == seen
    assert len(system.calls_placed()) == 1
    assert call_id in system.limits.active_calls("demo")


def test_a_worker_that_wakes_up_leaves_a_canceled_call_to_the_one_who_holds_it(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canceled while another worker holds the lease: it may still take the slot, so nothing is cleared yet."""
    system.limits.take_slot("demo", "another-call", 1)
    call_id = system.place(TALKS_ON)
    [record] = system.receive("DialQueue")
    module = system.modules["dial_worker"]
    now_ms, stopped_for = module.now_ms, [0]

    def stand_still() -> None:
        monkeypatch.setattr(module, "now_ms", now_ms)
        change(system, call_id, lease_id="another", lease_until_ms=now_ms() + 60_000)
        assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
        stopped_for[0] = 10 * 60 * 1000

    monkeypatch.setattr(module, "now_ms", lambda: now_ms() + stopped_for[0])
    system.faults(createRoom={"fail": "unavailable"})
    once(monkeypatch, CallStore, "wait", before=stand_still)
    other_worker(system, [record])
    assert system.item(call_id)["status"] == "canceled"
    assert "dueShard" in system.item(call_id), "it stays due until that lease is over"
