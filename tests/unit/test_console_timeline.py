"""The console's timeline from records, steps and events: broken promises are shown, each step at its process."""

from __future__ import annotations

from typing import Any

from local.console.timeline import CallHistory, detail, next_look, promises, timeline

AT = 1_795_612_432_471


def history(*kinds: str, status: str = "completed", **fields: Any) -> CallHistory:
    """A call with these events, 100 ms apart."""
    events: list[dict[str, Any]] = [{"type": kind, "at": AT + 100 * n} for n, kind in enumerate(kinds)]
    for entry in events:
        if entry["type"] == "call.ended":
            entry |= {"status": status, "reason": "hangup"}
    item = {
        "callId": "c" * 24,
        "to": "+15550000000",
        "callAgentId": "a1",
        "createdAt": "2026-11-25T13:13:52.471Z",
        "status": status,
        "events": events,
        "callbackUrl": "https://example.com/hook",
    }
    return CallHistory("c" * 24, item | fields)


def states(told: CallHistory, simulated: bool = True) -> list[str]:
    return [promise["state"] for promise in promises(told, simulated)]


def invite(at: int) -> dict[str, Any]:
    return {"kind": "invite", "atMs": at, "number": "+15550000000"}


def delivery(sequence: int, state: str, **fields: Any) -> dict[str, Any]:
    return {"sequence": sequence, "state": state, "nextAttemptAt": AT, **fields}


def test_a_phone_that_rang_twice_is_a_broken_promise() -> None:
    told = history("call.queued", "call.dialing", "call.ended")
    told.livekit = [invite(AT), invite(AT + 50)]
    assert states(told)[0] == "broken"
    assert promises(told, simulated=True)[0]["figure"] == "rang 2 times"


def test_a_call_that_ended_twice_is_a_broken_promise() -> None:
    assert states(history("call.queued", "call.ended", "call.ended"))[1] == "broken"


def test_an_open_call_has_kept_nothing_yet() -> None:
    told = history("call.queued", "call.dialing", status="dialing")
    told.livekit = [invite(AT)]
    told.deliveries = {1: delivery(1, "delivered"), 2: delivery(2, "delivered")}
    assert states(told) == ["open", "open", "open"]


def test_an_event_that_was_given_up_is_accounted_for_and_one_without_a_row_is_not() -> None:
    told = history("call.queued", "call.ended")
    told.deliveries = {1: delivery(1, "dead")}
    assert states(told)[2] == "open"
    told.deliveries[2] = delivery(2, "delivered")
    assert promises(told, simulated=True)[2] == {
        "name": "Every event accounted for",
        "figure": "1 of 2 delivered, 1 given up and listed",
        "state": "kept",
    }


def test_a_real_livekit_is_not_said_to_have_rung_once() -> None:
    assert states(history("call.queued", "call.ended"), simulated=False)[0] == "open"


def test_whose_write_ended_the_call_is_told_by_the_step_that_won() -> None:
    told = history("call.queued", "call.ended")
    lost = {"point": "CallStore.end", "phase": "ended", "function": "DialWorker", "at": AT, "ms": 3, "won": False}
    told.steps = [lost, lost | {"function": "ReconcileCalls", "won": True}]
    assert [row.who for row in timeline(told, simulated=True) if row.what == "ended"] == ["ReconcileCalls"]
    assert [row.who for row in timeline(told, simulated=True) if row.what.startswith("end lost")] == ["DialWorker"]


def test_a_webhook_with_a_wrong_signature_is_called_not_genuine() -> None:
    told = history("call.queued")
    hook = {"id": "evt_1", "type": "call.queued", "receivedAtMs": AT, "verified": False, "error": "No matching"}
    told.hooks = [hook, hook | {"verified": True}]
    assert [(row.what, row.tone) for row in timeline(told, simulated=True) if row.who == "receiver"] == [
        ("call.queued not genuine", "bad"),
        ("call.queued came again", ""),
    ]


def test_an_attempt_without_an_answer_says_why() -> None:
    told = history("call.queued")
    told.deliveries = {1: delivery(1, "pending", attempts=[{"at": AT, "ms": 7, "error": "timeout"}])}
    (row,) = (row for row in timeline(told, simulated=True) if row.who == "Deliver")
    assert (row.at, row.what, row.tone) == (AT + 7, "call.queued → timeout", "bad")


def test_what_a_call_waits_for_is_its_lease_then_its_next_look_then_its_webhooks() -> None:
    dialing = history("call.queued", "call.dialing", status="dialing", leaseUntil=AT + 50, checkAt=AT + 90)
    assert (next_look(dialing, AT) or {})["at"] == AT + 50
    assert (next_look(dialing, AT + 60) or {})["at"] == AT + 90
    over = history("call.queued", "call.ended", checkAt=AT + 90)
    assert next_look(over, AT) is None
    over.deliveries = {2: delivery(2, "pending", leaseUntil=AT + 40)}
    assert (next_look(over, AT) or {})["at"] == AT + 40


def test_times_count_from_the_clients_request_when_it_was_made_here() -> None:
    told = history("call.queued")
    assert detail(told, True, AT)["placedAt"] == AT
    told.requests = [{"at": AT - 20, "what": "POST", "status": 200, "ms": 30}]
    assert detail(told, True, AT)["placedAt"] == AT - 20
    # A request about a call that was placed elsewhere comes later than the call.
    told.requests = [{"at": AT + 500, "what": "POST", "detail": "cancel", "status": 200, "ms": 3}]
    assert detail(told, True, AT)["placedAt"] == AT
