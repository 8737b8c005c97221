"""moto without its slow look-up of attribute names, half of its time; with transactions as DynamoDB makes them;
an empty table of calls.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from moto import mock_aws
from moto.core.responses import ActionResult
from moto.core.serialize import ResponseSerializer
from moto.dynamodb.comparisons import get_filter_expression
from moto.dynamodb.exceptions import DynamodbException, TransactionCanceledException
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.responses import DynamoHandler

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


# ── transactions ────────────────────────────────────────────────────────────────────────────────────


def _transact(self: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
    """moto copies every table of a transaction, with its stream, in order to put it back after a failed condition:
    a second for some thousand records. Here all conditions are looked at first, so nothing is put back.
    """
    if any(op.keys() - {"Update", "ConditionCheck"} for op in transact_items):
        _with_a_copy(self, transact_items)
        return
    reasons: list[Any] = []
    for item in transact_items:
        [op] = item.values()
        current = self.get_item(op["TableName"], op["Key"])
        holds = op.get("ConditionExpression") is None or get_filter_expression(
            op["ConditionExpression"], op.get("ExpressionAttributeNames"), op.get("ExpressionAttributeValues")
        ).expr(current)
        old = None
        if not holds and current is not None and op.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
            old = current.to_json()["Attributes"]
        message = "The conditional request failed"
        reasons.append((None, None, None) if holds else ("ConditionalCheckFailed", message, old))
    if any(code is not None for code, *_ in reasons):
        raise TransactionCanceledException(reasons)
    for item in transact_items:
        if (op := item.get("Update")) is not None:
            self.update_item(
                op["TableName"],
                op["Key"],
                update_expression=op["UpdateExpression"],
                expression_attribute_names=op.get("ExpressionAttributeNames"),
                expression_attribute_values=op.get("ExpressionAttributeValues"),
            )


def _once_per_token(self: DynamoHandler) -> Any:
    """moto does not know ClientRequestToken. For DynamoDB a request that repeats the token of one that succeeded
    has succeeded, and does nothing; with other contents it is refused.
    """
    backend, token = self.dynamodb_backend, self.body.get("ClientRequestToken")
    done: dict[str, str] = backend.__dict__.setdefault("done_by_token", {})
    contents = json.dumps(self.body["TransactItems"], sort_keys=True)
    if token in done:
        if done[token] != contents:
            raise DynamodbException(
                "com.amazonaws.dynamodb.v20120810#IdempotentParameterMismatchException", "another request"
            )
        return ActionResult({})
    answer = _transact_write_items(self)
    if token is not None:
        done[token] = contents
    return answer


_with_a_copy = DynamoDBBackend.transact_write_items
_transact_write_items = DynamoHandler.transact_write_items
DynamoDBBackend.transact_write_items = _transact  # type: ignore[method-assign]
DynamoHandler.transact_write_items = _once_per_token  # type: ignore[method-assign]
