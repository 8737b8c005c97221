"""The functions' roles as the local stack enforces them: each touches its own items of WorkspacesTable alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from shared.limits import SCANNED
from tests.e2e.client import Client

OPERATIONS = ("get_item", "update_item", "put_item", "delete_item")
# Keys of no existing workspace. The switch itself is only read: all calls of the stack would wait.
KEYS = ("absent", "absent#slots", "absent#slots#1", "absent#rate", "trunk#absent", "#switch-of-absent")
SLOTS = ("absent#slots", "absent#slots#1")
READS = {("get_item", key) for key in KEYS}
WRITES_SLOTS = {("update_item", key) for key in SLOTS}
MAY = {
    "InitiateCall": READS | {("update_item", "absent#rate")},
    "DialWorker": READS | WRITES_SLOTS | {("update_item", "trunk#absent")},
    "LivekitEvents": WRITES_SLOTS,
    "FanOut": set(),
    "Deliver": READS,
    "ReconcileCalls": {("get_item", "#switch")} | {("get_item", key) for key in SLOTS} | WRITES_SLOTS,
    "CallsApi": READS,
}


@contextlib.contextmanager
def as_role_of(client: Client, function: str) -> Iterator[Any]:
    """A DynamoDB client with the deployed policies of a function's role."""
    iam = client.aws("iam")
    role = client.info["resources"][f"{function}Role"].rpartition("/")[2]
    user = f"as-{function}"
    iam.create_user(UserName=user)
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        iam.put_user_policy(UserName=user, PolicyName=name, PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    yield boto3.client(
        "dynamodb",
        endpoint_url=client.info["awsEndpointUrl"],
        region_name="us-east-1",
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )


def allowed(request: Any, **arguments: Any) -> bool:
    try:
        request(**arguments)
    except ClientError as exc:
        if exc.response["Error"]["Code"] != "AccessDeniedException":
            raise
        return False
    return True


@pytest.mark.parametrize("function", MAY)
def test_a_function_touches_only_its_items_of_workspaces(stack: dict[str, Any], function: str) -> None:
    with Client(stack) as client, as_role_of(client, function) as dynamodb:
        table = client.info["resources"]["WorkspacesTable"].rpartition("/")[2]

        def may(operation: str, key: str) -> bool:
            named = {"workspaceId": {"S": key}}
            item = {"Item": named} if operation == "put_item" else {"Key": named}
            return allowed(getattr(dynamodb, operation), TableName=table, **item)

        tried = {(operation, key) for operation in OPERATIONS for key in KEYS} | {("get_item", "#switch")}
        reads_switch = {("get_item", "#switch")} if MAY[function] >= READS else set()
        assert {each for each in tried if may(*each)} == MAY[function] | reads_switch

        def may_batch(*keys: str) -> bool:
            batch = {table: {"Keys": [{"workspaceId": {"S": key}} for key in keys]}}
            return allowed(dynamodb.batch_get_item, RequestItems=batch)

        # Rows of which one is another's: the whole request is refused. The preview reads all that decides.
        assert may_batch("absent#slots#1", "absent") == (function in ("DialWorker", "InitiateCall"))
        assert may_batch("#switch", *SLOTS) == (function in ("DialWorker", "InitiateCall", "ReconcileCalls"))
        assert not allowed(dynamodb.scan, TableName=table)

        def may_scan(*attributes: str) -> bool:
            named = {
                "ProjectionExpression": ", ".join(f"#{name}" for name in attributes),
                "ExpressionAttributeNames": {f"#{name}": name for name in attributes},
            }
            return allowed(dynamodb.scan, TableName=table, Select="SPECIFIC_ATTRIBUTES", **named)

        assert may_scan(*SCANNED) == (function == "ReconcileCalls")
        for secret in ("webhookSecrets", "apiKeyHashes"):
            assert not may_scan("workspaceId", secret)
        calls = client.info["resources"]["CallsTable"].rpartition("/")[2]
        in_line = {
            "IndexName": "line",
            "KeyConditionExpression": "lineOf = :line",
            "ExpressionAttributeValues": {":line": {"S": "absent#single"}},
        }
        assert allowed(dynamodb.query, TableName=calls, **in_line) == (
            function in ("DialWorker", "LivekitEvents", "ReconcileCalls")
        )
