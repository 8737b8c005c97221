"""Listing a call's deliveries and replaying one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from calls_api.deliveries import deliveries_view, replay
from shared.call import Call, iso
from shared.errors import RequestRefusedError
from shared.table_keys import RETENTION_SECONDS
from tests.one_call import CALL_ID, NOW, OneCall

EVENTS = (
    {"type": "call.queued", "at": NOW},
    {"type": "call.ended", "at": NOW, "status": "failed", "reason": "outcome_unknown", "restored": True},
)
ENDED: dict[str, Any] = {"status": "failed", "ended_at_ms": NOW, "events": EVENTS, "callback_url": "https://x"}


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    return OneCall(monkeypatch)


def place(one: OneCall, **fields: Any) -> Call:
    """An ended call that expires in ten days, with a delivery of its first event."""
    call = one.place(**ENDED | fields)
    one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]["expiresAt"] = NOW // 1000 + 864_000
    one.deliveries.create(CALL_ID, "demo", 1, NOW + 5, NOW + 60_000)
    return call


def expires(one: OneCall) -> int:
    found: int = one.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]["expiresAt"]
    return found


def again(one: OneCall, call: Call, sequence: str) -> None:
    replay(one.calls, one.deliveries, one.webhook_queue, call, sequence, one.durations, NOW)


def listed(one: OneCall, call: Call) -> list[dict[str, Any]]:
    view = json.loads(deliveries_view(one.deliveries, call))
    assert (view["status"], view["callId"]) == ("success", CALL_ID)
    deliveries: list[dict[str, Any]] = view["deliveries"]
    return deliveries


def test_every_event_is_listed_with_what_became_of_it(one: OneCall) -> None:
    call = place(one)
    view = {"attempts": [], "state": "pending"}
    assert listed(one, call) == [
        view | {"id": f"evt_{CALL_ID}_1", "sequence": 1, "type": "call.queued", "nextAttemptAt": iso(NOW + 5)},
        view | {"id": f"evt_{CALL_ID}_2r", "sequence": 2, "type": "call.ended", "nextAttemptAt": None},
    ]


@pytest.mark.parametrize(("state", "next_at"), [("pending", iso(NOW + 9)), ("delivered", None), ("dead", None)])
def test_attempts_are_shown_with_what_was_heard(one: OneCall, state: Any, next_at: str | None) -> None:
    call = place(one)
    taken = one.deliveries.take(CALL_ID, 1, "lease", NOW + 5, NOW + 45_000)
    assert taken is not None
    heard = {"at": NOW, "ms": 12, "status": 302, "answer": "moved", "location": "https://y"}
    one.deliveries.finish(
        dataclasses.replace(taken, attempts=(heard,)),
        {"at": NOW + 1, "ms": 3, "error": "e"},
        state,
        NOW + 9,
        NOW + 9,
    )
    first = listed(one, call)[0]
    assert (first["state"], first["nextAttemptAt"]) == (state, next_at)
    assert first["attempts"] == [
        {
            "at": iso(NOW),
            "milliseconds": 12,
            "status": 302,
            "error": None,
            "answer": "moved",
            "location": "https://y",
        },
        {"at": iso(NOW + 1), "milliseconds": 3, "status": None, "error": "e", "answer": None, "location": None},
    ]


def test_a_call_without_a_callback_has_no_deliveries(one: OneCall) -> None:
    assert listed(one, place(one, callback_url=None)) == []


@pytest.mark.parametrize("sequence", ["1", "2", "02", "000002"])
def test_an_event_is_sent_again_from_the_beginning(one: OneCall, sequence: str) -> None:
    call = place(one)
    again(one, call, sequence)
    number = int(sequence)
    row = one.deliveries.get(CALL_ID, number)
    assert row is not None
    assert (row.state, row.attempt, row.next_attempt_at_ms, row.replayed) == ("pending", 0, NOW, True)
    assert row.check_at_ms == NOW + 60_000
    assert one.webhook_queue.sent == [({"callId": CALL_ID, "sequence": number}, "demo", 0)]
    assert expires(one) == NOW // 1000 + RETENTION_SECONDS


@pytest.mark.parametrize("sequence", ["0", "3", "-1", "", "x", "1.0", "0000001", "1000000", "٢", "1\n"])
def test_an_event_that_there_is_not_is_not_sent(one: OneCall, sequence: str) -> None:
    call = place(one)
    with pytest.raises(RequestRefusedError) as refused:
        again(one, call, sequence)
    assert (refused.value.status, refused.value.code) == (404, "delivery_not_found")
    assert (one.webhook_queue.sent, expires(one)) == ([], NOW // 1000 + 864_000)


def test_a_call_without_a_callback_sends_nothing_again(one: OneCall) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        again(one, place(one, callback_url=None), "1")
    assert refused.value.code == "delivery_not_found"


def test_a_call_that_has_expired_meanwhile_is_not_made_anew(one: OneCall) -> None:
    call = place(one)
    one.dynamodb.table("calls").clear()
    with pytest.raises(RequestRefusedError) as refused:
        again(one, call, "1")
    assert (refused.value.status, refused.value.code) == (404, "call_not_found")
    assert (one.dynamodb.table("calls"), one.webhook_queue.sent) == ({}, [])


def test_an_attempt_under_way_is_not_overtaken(one: OneCall) -> None:
    call = place(one)
    one.deliveries.take(CALL_ID, 1, "lease", NOW + 5, NOW + 45_000)
    with pytest.raises(RequestRefusedError) as refused:
        again(one, call, "1")
    assert (refused.value.status, refused.value.code) == (409, "attempt_under_way")
    assert one.webhook_queue.sent == []
