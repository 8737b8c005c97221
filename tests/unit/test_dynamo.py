"""Items to DynamoDB's format and back, and what its errors mean for a write."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

from shared.dynamo import from_wire, store_errors, to_wire
from shared.errors import StoreError, StoreUnclearError
from shared.table_keys import RETENTION_SECONDS, SHARDS, call_key, due_shard


def test_what_goes_to_the_wire_comes_back_with_integers() -> None:
    item: dict[str, Any] = {
        "text": "Zoë",
        "number": 1_800_000_000_000,
        "yes": True,
        "no": None,
        "ids": {"a", "b"},
        "list": [1, {"deep": [2]}],
    }
    wire = to_wire(item)
    assert wire["number"] == {"N": "1800000000000"}
    assert wire["ids"]["SS"]
    assert from_wire(wire) == item
    assert type(from_wire(wire)["number"]) is int
    assert type(from_wire(wire)["list"][1]["deep"][0]) is int


def failed(code: str, **metadata: int) -> ClientError:
    answer: Any = {"Error": {"Code": code}}
    if metadata:
        answer["ResponseMetadata"] = metadata
    return ClientError(answer, "UpdateItem")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failed("ValidationException", HTTPStatusCode=400), StoreError),
        (failed("ProvisionedThroughputExceededException", HTTPStatusCode=400), StoreError),
        (failed("Odd", HTTPStatusCode=499), StoreError),
        (failed("InternalServerError", HTTPStatusCode=500), StoreUnclearError),
        (failed("ServiceUnavailable", HTTPStatusCode=503), StoreUnclearError),
        # Without a status nothing is known.
        (failed("NoStatus"), StoreUnclearError),
        (failed("NoStatus", RetryAttempts=1), StoreUnclearError),
        (ReadTimeoutError(endpoint_url="https://dynamodb"), StoreUnclearError),
        (ConnectTimeoutError(endpoint_url="https://dynamodb"), StoreUnclearError),
    ],
)
def test_an_error_says_whether_anything_can_have_been_written(
    error: ClientError | BotoCoreError, told: type[StoreError]
) -> None:
    with pytest.raises(StoreError) as raised, store_errors():
        raise error
    assert type(raised.value) is told
    assert raised.value.__cause__ is error
    name = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
    assert str(raised.value) == name


def test_a_condition_that_failed_is_no_error_of_the_store() -> None:
    error = failed("ConditionalCheckFailedException", HTTPStatusCode=400)
    with pytest.raises(ClientError) as raised, store_errors():
        raise error
    assert raised.value is error


def test_a_call_and_its_deliveries_stand_together_and_calls_are_spread_over_all_shards() -> None:
    assert call_key("c1") == {"pk": {"S": "CALL#c1"}, "sk": {"S": "CALL"}}
    assert call_key("c1", "DELIVERY#1") == {"pk": {"S": "CALL#c1"}, "sk": {"S": "DELIVERY#1"}}
    assert [due_shard(f"{digit:x}{'0' * 23}") for digit in range(16)] == list(range(16))
    assert SHARDS == 16
    assert RETENTION_SECONDS == 2_592_000
