"""The fence: one transaction of a call and its callee's number, and what each of its outcomes means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from shared.call import Call
from shared.call_store import Fence
from shared.errors import StoreError, StoreUnclearError
from shared.numbers import NumberRecord, Suppression, ring_write
from tests.one_call import CALL, CALL_ID, NOW, OneCall

TOKEN = "0123456789abcdef-fence-1"
RECEIPT = [{"name": "suppression", "passed": True, "detail": {"readAt": "now"}}]
OPTED_OUT = Suppression("all", "asked", NOW)


class Transactions:
    """What is sent of transactions, and what DynamoDB does with each.

    before, lost: for each of the requests, in order, an error instead of its execution, and one after it.
    """

    def __init__(self, one: OneCall) -> None:
        self._send = one.dynamodb.transact_write_items
        one.dynamodb.__dict__["transact_write_items"] = self._request
        self.sent: list[dict[str, Any]] = []
        self.before: list[Exception | None] = []
        self.lost: list[Exception | None] = []

    def _request(self, **request: Any) -> Any:
        self.sent.append(json.loads(json.dumps(request)))
        if self.before and (error := self.before.pop(0)) is not None:
            raise error
        answer = self._send(**request)
        if self.lost and (error := self.lost.pop(0)) is not None:
            raise error
        return answer


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    one = OneCall(monkeypatch)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    one.place(lease_id="mine", lease_until_ms=NOW + 9_000, attempts=1)
    return one


@pytest.fixture
def transactions(one: OneCall) -> Transactions:
    return Transactions(one)


def number(one: OneCall) -> NumberRecord:
    return one.numbers.get("demo", CALL.to)


def fence(
    one: OneCall,
    *,
    seen: Call | None = None,
    record: NumberRecord | None = None,
    token: str = TOKEN,
    now: int = NOW,
    counted: bool = True,
    give_up: Callable[[], bool] = lambda: True,
) -> Fence:
    """seen, record: as the process read them, if that is not what is there."""
    write = ring_write("numbers", record or number(one), CALL_ID, counted=counted, now_ms=now)
    return one.calls.fence(seen or one.call, "RM_1", "+12025550100", RECEIPT, write, token, now, give_up)


def canceled(*codes: str) -> ClientError:
    answer: Any = {
        "Error": {"Code": "TransactionCanceledException"},
        "CancellationReasons": [{"Code": code} for code in codes],
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    return ClientError(answer, "TransactWriteItems")


def refused(code: str, status: int = 400) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "TransactWriteItems")


IN_PROGRESS = refused("TransactionInProgressException")
NO_ANSWER = ReadTimeoutError(endpoint_url="https://dynamodb")


@pytest.mark.parametrize("counted", [True, False])
def test_a_fence_changes_the_call_and_its_number_together(one: OneCall, counted: bool) -> None:
    before = number(one)
    won = fence(one, counted=counted)
    call = one.call
    assert won == Fence(won=True, call=call)
    assert (call.status, call.room_sid, call.dialed_at_ms) == ("dialing", "RM_1", NOW)
    entry = call.events[-1]
    assert json.loads(entry.pop("gates")) == RECEIPT
    assert entry == {"type": "call.dialing", "at": NOW, "from": "+12025550100"}
    after = number(one)
    assert after.rings == ({CALL_ID: NOW} if counted else {})
    assert (after.version != before.version) is counted


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["a number with a record", "a number without"])
def test_a_number_that_was_suppressed_since_it_was_read_lets_nothing_ring(
    one: OneCall, known: bool, counted: bool
) -> None:
    if known:
        one.numbers.suppress("demo", CALL.to, dataclasses.replace(OPTED_OUT, scope="sales"), NOW)
    read, seen = number(one), one.call
    one.numbers.suppress("demo", CALL.to, OPTED_OUT, NOW)
    assert fence(one, record=read, counted=counted) == Fence(won=False, call=seen, again=True)
    assert one.call == seen
    assert number(one).rings == {}


def test_two_calls_that_read_one_number_do_not_both_ring_under_a_cap(one: OneCall) -> None:
    read = number(one)
    other = dataclasses.replace(one.call, call_id="b" * 24)
    one.calls.create(other)
    write = ring_write("numbers", read, other.call_id, counted=True, now_ms=NOW)
    assert one.calls.fence(other, "RM_2", None, [], write, "other-fence-1", NOW, lambda: True).won
    assert fence(one, record=read).again
    assert one.call.status == "queued"
    assert number(one).rings == {"b" * 24: NOW}


LOSES: dict[str, dict[str, Any]] = {
    "another's lease": {"lease_id": "other"},
    "lease over": {"lease_until_ms": NOW},
    "canceled": {"status": "canceled"},
    "fenced by another": {"status": "dialing", "lease_id": "other"},
    "in progress": {"status": "in_progress"},
    "hang-up": {"hangup": {"reason": "canceled_by_api", "at": NOW}},
    "scheduled": {"scheduled_at_ms": NOW + 1},
    "given a deadline": {"expires_at_ms": NOW + 1},
}


@pytest.mark.parametrize("why", LOSES)
def test_a_call_that_is_not_as_it_was_read_is_not_fenced(
    one: OneCall, transactions: Transactions, why: str
) -> None:
    seen = one.call
    one.dynamodb.table("calls").clear()
    one.place(**{"lease_id": "mine", "lease_until_ms": NOW + 9_000, "attempts": 1} | LOSES[why])
    there = one.call
    assert fence(one, seen=seen) == Fence(won=False, call=there)
    assert (one.call, number(one).rings, len(transactions.sent)) == (there, {}, 1)


@pytest.mark.parametrize(("before", "after"), [(5, None), (5, 6), (None, 6)])
@pytest.mark.parametrize("field", ["scheduled_at_ms", "expires_at_ms"])
def test_times_that_were_moved_since_the_decision_are_decided_anew(
    one: OneCall, field: str, before: int | None, after: int | None
) -> None:
    read: dict[str, Any] = {field: before}
    seen = dataclasses.replace(one.call, **read)
    one.dynamodb.table("calls").clear()
    one.place(**{"lease_id": "mine", "lease_until_ms": NOW + 9_000, field: after})
    lost = fence(one, seen=seen)
    assert (lost.won, lost.again, lost.call) == (False, False, one.call)
    assert fence(one, token="another-fence-2").won


def test_a_fence_that_an_earlier_copy_of_its_request_has_made_is_won(one: OneCall) -> None:
    """The copy had another token: DynamoDB does not take the two for one request."""
    seen, read = one.call, number(one)
    assert fence(one, seen=seen, record=read, token="mine-fence-1").won
    again = fence(one, seen=seen, record=read, token="mine-fence-2", now=NOW + 5)
    assert again == Fence(won=True, call=one.call)
    assert one.call.dialed_at_ms == NOW
    assert [entry["type"] for entry in one.call.events] == ["call.queued", "call.dialing"]


@pytest.mark.parametrize(
    "codes",
    [
        ("None", "ConditionalCheckFailed"),
        ("TransactionConflict", "None"),
        ("None", "TransactionConflict"),
        ("None", "ThrottlingError"),
        ("ProvisionedThroughputExceeded", "None"),
        (),
    ],
)
def test_a_canceled_transaction_is_decided_anew(
    one: OneCall, transactions: Transactions, codes: tuple[str, ...]
) -> None:
    seen = one.call
    transactions.before = [canceled(*codes)]
    assert fence(one) == Fence(won=False, call=seen, again=True)
    assert len(transactions.sent) == 1, "the same decision is not sent again"


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("error", [NO_ANSWER, refused("InternalServerError", 500), IN_PROGRESS])
def test_a_fence_without_a_known_outcome_is_sent_again_as_it_was(
    one: OneCall, transactions: Transactions, error: Exception, executed: bool
) -> None:
    if executed:
        transactions.lost = [error, error, None]
    else:
        transactions.before = [error, error, None]
    assert fence(one, give_up=lambda: False).won
    first, second, third = transactions.sent
    assert first == second == third
    assert first["ClientRequestToken"] == TOKEN
    assert (one.call.status, number(one).rings) == ("dialing", {CALL_ID: NOW})


@pytest.mark.parametrize("error", [NO_ANSWER, IN_PROGRESS], ids=["lost", "in progress"])
def test_a_fence_whose_outcome_stays_unknown_is_given_up(
    one: OneCall, transactions: Transactions, error: Exception
) -> None:
    """It may be executed yet: the reconciler finds out."""
    transactions.before = [error] * 9
    tries = iter([False, False, True])
    with pytest.raises(StoreUnclearError):
        fence(one, give_up=lambda: next(tries))
    assert len(transactions.sent) == 3
    assert one.call.status == "queued"


def test_what_dynamodb_refuses_is_not_sent_again(one: OneCall, transactions: Transactions) -> None:
    transactions.before = [refused("ValidationException")]
    with pytest.raises(StoreError, match="ValidationException"):
        fence(one, give_up=lambda: False)
    assert len(transactions.sent) == 1
