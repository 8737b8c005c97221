"""moto without its slow look-up of attribute names, half of its time; and an empty table of calls."""

from __future__ import annotations

import uuid
from typing import Any

from moto import mock_aws
from moto.core.serialize import ResponseSerializer

__all__ = ["calls_table", "mock_aws"]

_any_name = ResponseSerializer.get_value


def _by_its_name(self: Any, value: Any, key: str, shape: Any) -> Any:
    """moto looks for each attribute of an answer under five names. DynamoDB's items and records have one."""
    if type(value) is dict and self.operation_model.service_model.service_name.startswith("dynamodb"):
        return value.get(key)
    return _any_name(self, value, key, shape)


ResponseSerializer.get_value = _by_its_name  # type: ignore[method-assign]


def calls_table(client: Any) -> str:
    """Makes an empty table of calls. Its name is its own: moto is one account for all tests of a process."""
    name = f"calls-{uuid.uuid4()}"
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    )
    return name
