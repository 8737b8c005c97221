"""DynamoDB's wire format: items to Python and back; botocore's errors to the project's own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import StoreError, StoreUnclearError


class _IntegerDeserializer(TypeDeserializer):
    """Every number stored here is an integer; the library would return Decimals."""

    def _deserialize_n(self, value: str) -> int:
        return int(value)


# How often a write is sent that meets another process's transaction on its item: each lasts some milliseconds.
_CONFLICTS = 10

_CONDITION_FAILED = ("ConditionalCheckFailedException", "TransactionCanceledException")

_serialize = TypeSerializer().serialize
_deserialize = _IntegerDeserializer().deserialize


def to_wire(item: dict[str, Any]) -> dict[str, Any]:
    return {name: _serialize(value) for name, value in item.items()}


def from_wire(item: dict[str, Any]) -> dict[str, Any]:
    return {name: _deserialize(value) for name, value in item.items()}


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns botocore's errors into StoreError or StoreUnclearError. A failed condition passes through, and so does
    a canceled transaction.
    """
    try:
        yield
    except ClientError as exc:
        if exc.response["Error"]["Code"] in _CONDITION_FAILED:
            raise
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        kind = StoreUnclearError if status >= 500 else StoreError
        raise kind(exc.response["Error"]["Code"]) from exc
    except BotoCoreError as exc:
        # Even a refused connection may be the second try of a request whose first reached DynamoDB.
        raise StoreUnclearError(type(exc).__name__) from exc


def write(send: Callable[..., Any], **request: Any) -> Any:
    """Sends a write. One that meets a transaction on its item is sent again: nothing was written.

    A failed condition passes through as botocore's ClientError.
    """
    for n in range(_CONFLICTS):
        try:
            with store_errors():
                return send(**request)
        except StoreError as exc:
            if str(exc) != "TransactionConflictException" or n == _CONFLICTS - 1:
                raise
            time.sleep(random.uniform(0.005, 0.02) * (n + 1))
    raise AssertionError


def read_items(client: Any, keys: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The items with these keys, by table, at most 100 together: one consistent BatchGetItem, unless DynamoDB
    leaves some unread. Raises StoreError unless all are read.
    """
    found: dict[str, list[dict[str, Any]]] = {table: [] for table in keys}
    wanted: Any = {
        table: {"Keys": [to_wire(key) for key in some], "ConsistentRead": True} for table, some in keys.items()
    }
    for _ in range(5):
        with store_errors():
            answer = client.batch_get_item(RequestItems=wanted)
        for table, items in answer["Responses"].items():
            found[table] += map(from_wire, items)
        wanted = answer.get("UnprocessedKeys")
        if not wanted:
            return found
    raise StoreError("BatchGetItem did not read every item")
