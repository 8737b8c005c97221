"""A table of workspaces, of moto or in memory, whose requests can be counted and fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.exceptions import ReadTimeoutError

from simulate.dynamodb_in_memory import DynamoDBInMemory
from tests.calls import NUMBERS
from tests.mocked_aws import mock_aws

TABLE = "Workspaces"


class OneAtATime:
    """A client whose requests happen one after the other, as DynamoDB promises for one item, and which can fail.

    lose: how many answers of the next requests that write are lost on the way, after the write.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.lose = 0
        self.requests: list[str] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def request(**arguments: Any) -> Any:
            with self._lock:
                self.requests.append(operation)
                answer = getattr(self._client, operation)(**arguments)
                if self.lose and operation in ("put_item", "update_item", "transact_write_items"):
                    self.lose -= 1
                    raise ReadTimeoutError(endpoint_url="https://dynamodb")
                return answer

        return request


def numbers_table(client: Any) -> None:
    """Makes an empty table of numbers with its index, as template.yaml has it."""
    client.create_table(
        TableName=NUMBERS,
        AttributeDefinitions=[
            {"AttributeName": name, "AttributeType": "S"} for name in ("id", "suppressedIn", "number")
        ],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "suppressed",
                "KeySchema": [
                    {"AttributeName": "suppressedIn", "KeyType": "HASH"},
                    {"AttributeName": "number", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["suppressed"]},
            }
        ],
        BillingMode="PAY_PER_REQUEST",
    )


@contextmanager
def workspaces_table(kind: str = "moto") -> Iterator[OneAtATime]:
    """A client of an empty table, and of one of numbers. What passes with both kinds, `moto` and `memory`, shows
    that they agree.
    """
    if kind == "memory":
        yield OneAtATime(DynamoDBInMemory())
        return
    with mock_aws():
        dynamodb = boto3.client("dynamodb", region_name="us-east-1")
        dynamodb.create_table(
            TableName=TABLE,
            AttributeDefinitions=[{"AttributeName": "workspaceId", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "workspaceId", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        numbers_table(dynamodb)
        yield OneAtATime(dynamodb)
