"""DynamoDB's wire format: items to Python and back; botocore's errors to the project's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import StoreError, StoreUnclearError


class _IntegerDeserializer(TypeDeserializer):
    """Every number stored here is an integer; the library would return Decimals."""

    def _deserialize_n(self, value: str) -> int:
        return int(value)


_serialize = TypeSerializer().serialize
_deserialize = _IntegerDeserializer().deserialize


def to_wire(item: dict[str, Any]) -> dict[str, Any]:
    return {name: _serialize(value) for name, value in item.items()}


def from_wire(item: dict[str, Any]) -> dict[str, Any]:
    return {name: _deserialize(value) for name, value in item.items()}


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns botocore's errors into StoreError or StoreUnclearError. A failed condition passes through."""
    try:
        yield
    except ClientError as exc:
        if exc.response["Error"]["Code"] == "ConditionalCheckFailedException":
            raise
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        kind = StoreUnclearError if status >= 500 else StoreError
        raise kind(exc.response["Error"]["Code"]) from exc
    except BotoCoreError as exc:
        # Even a refused connection may be the second try of a request whose first reached DynamoDB.
        raise StoreUnclearError(type(exc).__name__) from exc
