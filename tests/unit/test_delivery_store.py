"""A delivery's row: taking it, and what an attempt stores. Every test runs against DynamoDB (moto) and against the
in-memory table that other tests use instead."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError

from shared.delivery_store import ATTEMPTS_LISTED, Delivery, DeliveryStore
from shared.dynamo import from_wire, to_wire
from shared.errors import StoreUnclearError
from shared.table_keys import RETENTION_SECONDS, call_key
from simulate.dynamodb_in_memory import DynamoDBInMemory
from tests.in_memory import DeliveriesInMemory, Tables
from tests.mocked_aws import calls_table, mock_aws
from webhook_dispatch.attempt import ANSWER_CHARACTERS, LOCATION_CHARACTERS

CALL = "a" * 24
NOW = 1_800_000_000_000
ATTEMPT = {"at": NOW, "ms": 12, "status": 500, "answer": "no"}


class Losing:
    """A client that loses the answers of its next `lose` writes, after the write, and then repeats them once, as
    botocore does. lose_repeat: the repeat's answer is lost too."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.lose = 0
        self.lose_repeat = False
        # moto looks at a condition and writes in two steps, DynamoDB in one.
        self._one_at_a_time = threading.Lock()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def request(**arguments: Any) -> Any:
            with self._one_at_a_time:
                return perform(**arguments)

        def perform(**arguments: Any) -> Any:
            answer = getattr(self._client, operation)
            if self.lose and operation in ("put_item", "update_item"):
                self.lose -= 1
                answer(**arguments)
                if self.lose_repeat:
                    raise ReadTimeoutError(endpoint_url="https://dynamodb")
            return answer(**arguments)

        return request


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("dynamodb", region_name="us-east-1")


@pytest.fixture
def table(dynamodb: Any) -> Iterator[str]:
    name = calls_table(dynamodb)
    yield name
    dynamodb.delete_table(TableName=name)


@pytest.fixture
def losing(dynamodb: Any) -> Losing:
    return Losing(dynamodb)


@pytest.fixture
def real(losing: Losing, table: str) -> DeliveryStore:
    return DeliveryStore(cast(Any, losing), table)


@pytest.fixture(params=["dynamodb", "dynamodb in memory", "memory"])
def store(request: pytest.FixtureRequest) -> DeliveryStore:
    """Of moto's DynamoDB and of that in memory; the third is what the simulations use."""
    if request.param == "memory":
        return DeliveriesInMemory(Tables())
    if request.param == "dynamodb in memory":
        return DeliveryStore(cast(Any, DynamoDBInMemory()), "calls")
    real: DeliveryStore = request.getfixturevalue("real")
    return real


def made(store: DeliveryStore, sequence: int = 1) -> Delivery:
    store.create(CALL, "demo", sequence, NOW, NOW + 60_000)
    row = store.get(CALL, sequence)
    assert row is not None
    return row


def taken(store: DeliveryStore, now: int = NOW, lease: str = "lease-1") -> Delivery:
    row = store.take(CALL, 1, lease, now, now + 45_000)
    assert row is not None
    return row


def test_a_new_delivery_is_due_at_once_and_looked_at_later(store: DeliveryStore) -> None:
    row = made(store)
    assert row == Delivery(CALL, "demo", 1, "pending", 0, NOW, check_at_ms=NOW + 60_000)


def test_making_it_again_changes_nothing(store: DeliveryStore) -> None:
    made(store)
    before = taken(store)
    store.create(CALL, "demo", 1, NOW + 5, NOW + 99_000)
    assert store.get(CALL, 1) == before


def test_a_taken_delivery_counts_as_begun_and_comes_back_when_the_lease_is_over(store: DeliveryStore) -> None:
    row = made(store)
    assert taken(store) == dataclasses.replace(
        row, begun=1, lease_id="lease-1", lease_until_ms=NOW + 45_000, check_at_ms=NOW + 45_000
    )


def test_nobody_takes_a_delivery_under_a_live_lease(store: DeliveryStore) -> None:
    made(store)
    taken(store)
    for now in (NOW, NOW + 44_999, NOW + 45_000):
        assert store.take(CALL, 1, "lease-2", now, now + 45_000) is None
    again = store.take(CALL, 1, "lease-2", NOW + 45_001, NOW + 90_001)
    assert again is not None
    assert (again.attempt, again.begun, again.lease_id) == (0, 2, "lease-2")


def test_of_many_who_take_it_at_once_one_wins(store: DeliveryStore) -> None:
    made(store)
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: store.take(CALL, 1, f"lease-{n}", NOW, NOW + 45_000), range(8)))
    assert sum(row is not None for row in won) == 1


def test_nobody_takes_one_before_its_time_or_one_that_is_not_there(store: DeliveryStore) -> None:
    made(store)
    assert store.take(CALL, 1, "early", NOW - 1, NOW + 45_000) is None
    assert store.take(CALL, 2, "none", NOW, NOW + 45_000) is None
    assert store.get(CALL, 2) is None


def test_a_failed_attempt_is_listed_and_the_next_one_waits(store: DeliveryStore) -> None:
    made(store)
    finished = store.finish(taken(store), ATTEMPT, "pending", NOW + 5000, NOW + 65_000)
    assert finished == Delivery(CALL, "demo", 1, "pending", 1, NOW + 5000, (ATTEMPT,), check_at_ms=NOW + 65_000)
    assert store.take(CALL, 1, "early", NOW + 4999, NOW + 50_000) is None
    assert store.take(CALL, 1, "due", NOW + 5000, NOW + 50_000) is not None


@pytest.mark.parametrize("state", ["delivered", "dead", "stopped"])
def test_a_delivery_that_is_over_is_never_due_again(store: DeliveryStore, state: Any) -> None:
    made(store)
    finished = store.finish(taken(store), ATTEMPT, state, NOW, NOW)
    assert finished is not None
    assert (finished.state, finished.check_at_ms, finished.attempts) == (state, None, (ATTEMPT,))
    assert store.take(CALL, 1, "again", NOW + 10**9, NOW + 10**9 + 45_000) is None
    assert not store.postpone(finished, NOW + 10**9)


def test_who_lost_the_lease_can_note_nothing(store: DeliveryStore) -> None:
    made(store)
    first = taken(store)
    second = taken(store, NOW + 45_001, "lease-2")
    assert store.finish(first, ATTEMPT, "delivered", NOW, NOW) is None
    assert store.get(CALL, 1) == second


@pytest.mark.parametrize("state", ["pending", "delivered", "dead", "stopped"])
def test_a_replay_begins_the_schedule_anew_and_keeps_what_was_attempted(store: DeliveryStore, state: Any) -> None:
    made(store)
    store.finish(taken(store), ATTEMPT, state, NOW + 10**7, NOW + 10**7)
    row = store.replay(CALL, "demo", 1, NOW + 100, NOW + 60_100)
    assert row == Delivery(
        CALL, "demo", 1, "pending", 0, NOW + 100, (ATTEMPT,), replayed=True, check_at_ms=NOW + 60_100
    )
    assert store.take(CALL, 1, "due", NOW + 100, NOW + 45_100) is not None


def test_an_event_that_was_never_fanned_out_can_be_replayed(store: DeliveryStore) -> None:
    row = store.replay(CALL, "demo", 3, NOW, NOW + 60_000)
    assert row == Delivery(CALL, "demo", 3, "pending", 0, NOW, replayed=True, check_at_ms=NOW + 60_000)
    store.create(CALL, "demo", 3, NOW + 5, NOW + 99_000)
    assert store.get(CALL, 3) == row


def test_nothing_is_replayed_while_an_attempt_is_under_way(store: DeliveryStore) -> None:
    made(store)
    row = taken(store)
    assert store.replay(CALL, "demo", 1, NOW + 45_000, NOW + 99_000) is None
    assert store.get(CALL, 1) == row
    assert store.replay(CALL, "demo", 1, NOW + 45_001, NOW + 99_000) is not None
    # The attempt that was presumed dead cannot finish the new one.
    assert store.finish(row, ATTEMPT, "delivered", NOW, NOW) is None


def test_only_an_outcome_counts_as_an_attempt_and_forgets_the_deaths(store: DeliveryStore) -> None:
    made(store)
    for death in range(3):
        taken(store, NOW + death * 45_001, f"dead-{death}")
    row = taken(store, NOW + 3 * 45_001)
    assert (row.attempt, row.begun) == (0, 4)
    finished = store.finish(row, ATTEMPT, "pending", NOW + 10**6, NOW + 10**6)
    assert finished is not None
    assert (finished.attempt, finished.begun) == (1, 0)


def test_what_is_given_back_is_due_as_before_and_counts_as_nothing(store: DeliveryStore) -> None:
    made(store)
    row = taken(store)
    store.release(row)
    after = store.get(CALL, 1)
    assert after is not None
    assert (after.begun, after.lease_id, after.lease_until_ms, after.check_at_ms) == (0, None, 0, NOW + 45_000)
    again = taken(store, lease="lease-2")
    store.release(row)
    assert store.get(CALL, 1) == again, "it is another's by now"


def test_however_often_it_is_replayed_the_last_attempts_are_kept(store: DeliveryStore) -> None:
    made(store)
    for number in range(ATTEMPTS_LISTED + 10):
        assert store.replay(CALL, "demo", 1, NOW, NOW) is not None
        row = taken(store, lease=f"lease-{number}")
        assert store.finish(row, ATTEMPT | {"ms": number}, "dead", NOW, NOW) is not None
    after = store.get(CALL, 1)
    assert after is not None
    assert [one["ms"] for one in after.attempts] == list(range(10, ATTEMPTS_LISTED + 10))
    assert after.attempt == 1


@pytest.mark.parametrize("write", ["replay", "make_due"])
def test_a_new_schedule_forgets_the_deaths(store: DeliveryStore, write: str) -> None:
    made(store)
    dead = taken(store)
    later = NOW + 45_001
    if write == "replay":
        store.replay(CALL, "demo", 1, later, later)
    else:
        assert store.make_due(dead, later)
    assert taken(store, later).begun == 1


@pytest.mark.parametrize("state", ["pending", "dead"])
def test_what_did_not_arrive_is_made_due_from_the_beginning(store: DeliveryStore, state: Any) -> None:
    made(store)
    seen = store.finish(taken(store), ATTEMPT, state, NOW + 10**7, NOW + 10**7)
    assert seen is not None
    assert store.make_due(seen, NOW + 100)
    row = store.get(CALL, 1)
    assert row == Delivery(CALL, "demo", 1, "pending", 0, NOW + 100, (ATTEMPT,), check_at_ms=NOW + 100)
    assert store.take(CALL, 1, "due", NOW + 100, NOW + 45_100) is not None


def test_what_changed_meanwhile_or_is_under_way_is_not_made_due(store: DeliveryStore) -> None:
    seen = made(store)
    row = taken(store)
    assert not store.make_due(seen, NOW + 45_000)
    assert not store.make_due(row, NOW + 45_000)
    assert store.get(CALL, 1) == row
    store.finish(row, ATTEMPT, "delivered", NOW, NOW)
    assert not store.make_due(row, NOW + 50_000)
    after = store.get(CALL, 1)
    assert after is not None
    assert after.state == "delivered"


def test_a_look_is_postponed_by_one_of_those_who_saw_it(store: DeliveryStore) -> None:
    seen = made(store)
    assert store.postpone(seen, NOW + 120_000)
    assert not store.postpone(seen, NOW + 180_000)
    row = store.get(CALL, 1)
    assert row is not None
    assert row.check_at_ms == NOW + 120_000


def test_deliveries_are_listed_in_the_order_of_their_events(store: DeliveryStore) -> None:
    for sequence in (2, 11, 1, 10, 3):
        made(store, sequence)
    store.create("b" * 24, "demo", 1, NOW, NOW)
    assert [row.sequence for row in store.of_call(CALL)] == [1, 2, 3, 10, 11]


# ── what only the real table has ────────────────────────────────────────────────────────────────────


def test_a_pending_delivery_never_expires_and_one_that_is_over_does(
    real: DeliveryStore, dynamodb: Any, table: str
) -> None:
    def item() -> dict[str, Any]:
        return from_wire(dynamodb.get_item(TableName=table, Key=call_key(CALL, "DELIVERY#0001"))["Item"])

    made(real)
    assert item()["dueShard"] == 10
    assert "expiresAt" not in item()
    real.finish(taken(real), ATTEMPT, "dead", NOW, NOW)
    assert item()["expiresAt"] == NOW // 1000 + RETENTION_SECONDS
    assert not item().keys() & {"dueShard", "checkAt", "leaseId", "leaseUntil"}
    real.replay(CALL, "demo", 1, NOW, NOW + 60_000)
    assert item()["dueShard"] == 10
    assert "expiresAt" not in item()


def test_a_write_that_was_sent_twice_is_won_all_the_same(real: DeliveryStore, losing: Losing) -> None:
    made(real)
    losing.lose = 1
    row = real.take(CALL, 1, "mine", NOW, NOW + 45_000)
    assert row is not None
    assert row.begun == 1
    losing.lose = 1
    finished = real.finish(row, ATTEMPT, "dead", NOW, NOW)
    assert finished is not None
    assert (finished.state, finished.attempts) == ("dead", (ATTEMPT,))


def test_a_write_of_unknown_outcome_is_an_error_and_its_lease_runs_out(
    real: DeliveryStore, losing: Losing
) -> None:
    made(real)
    losing.lose, losing.lose_repeat = 1, True
    with pytest.raises(StoreUnclearError):
        real.take(CALL, 1, "mine", NOW, NOW + 45_000)
    assert real.take(CALL, 1, "other", NOW + 45_000, NOW + 90_000) is None
    assert real.take(CALL, 1, "other", NOW + 45_001, NOW + 90_001) is not None


def test_a_longer_list_of_an_older_version_is_cut_at_its_next_write(
    real: DeliveryStore, dynamodb: Any, table: str
) -> None:
    made(real)
    key = call_key(CALL, "DELIVERY#0001")
    dynamodb.update_item(
        TableName=table,
        Key=key,
        UpdateExpression="SET attempts = :old",
        ExpressionAttributeValues=to_wire({":old": [ATTEMPT | {"ms": n} for n in range(100)]}),
    )
    row = real.get(CALL, 1)
    assert row is not None
    assert [one["ms"] for one in row.attempts] == list(range(100 - ATTEMPTS_LISTED, 100))
    real.finish(taken(real), ATTEMPT, "dead", NOW, NOW)
    kept = from_wire(dynamodb.get_item(TableName=table, Key=key)["Item"])["attempts"]
    assert [one["ms"] for one in kept] == [*range(101 - ATTEMPTS_LISTED, 100), ATTEMPT["ms"]]


def test_a_row_with_all_attempts_it_may_have_is_small() -> None:
    # The longest answers there are: characters of four bytes.
    attempt = ATTEMPT | {"answer": "\U0001f600" * ANSWER_CHARACTERS, "location": "x" * LOCATION_CHARACTERS}
    text = json.dumps(to_wire({"attempts": [attempt]}), ensure_ascii=False)
    assert len(text.encode()) * ATTEMPTS_LISTED < 64 * 1024
