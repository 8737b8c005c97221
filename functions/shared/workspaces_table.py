"""WorkspacesTable: its items, and reading and changing one of them.

Items by `workspaceId` (a workspace's own id has no `#`):
    <id>            the workspace, written by the operator (workspaces.py)
    <id>#slots      activeCalls: the set of the ids of calls that hold a slot, up to 40 (slots.py); crowdedUntil:
                    epoch ms until which calls wait in the line for a slot (limits.py, as all that follow)
    <id>#slots#<n>  the same of item n, from 1, of a workspace with more than 40 slots
    <id>#rate       epochMinute: the minute that is counted; taken: its permits that processes have taken
    trunk#<id>      nextFreeAt: the next moment at which this trunk may be given an INVITE; of its breaker
                    (trunk.py): faults, stops, stoppedAt, stoppedUntil, probeUntil, probeCall, fault
    #switch         pausedAt: dialling is paused, calls wait; pauses: earlier ones, of 30 days (switch.py)
    #numbers        since: epoch ms since when this deployment has a NumbersTable with a marker (numbers.py)
template.yaml restricts each function's access to some of these keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, read_items, store_errors, to_wire

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class WorkspacesTable:
    """Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, name: str) -> None:
        self.client = client
        self.name = name

    def read(self, key: str) -> dict[str, Any] | None:
        with store_errors():
            answer = self.client.get_item(
                TableName=self.name, Key=to_wire({"workspaceId": key}), ConsistentRead=True
            )
        return from_wire(answer["Item"]) if "Item" in answer else None

    def read_many(self, keys: list[str]) -> dict[str, dict[str, Any]]:
        """The items with these keys, at most 100, that exist: consistent reads.

        Raises StoreError unless all are read.
        """
        found = read_items(self.client, {self.name: [{"workspaceId": key} for key in keys]})
        return {item["workspaceId"]: item for item in found[self.name]}

    def update_item(
        self,
        key: str,
        update: str,
        condition: str | None,
        values: dict[str, Any],
        names: dict[str, str] | None = None,
    ) -> bool:
        """Whether it was written; False when the condition did not hold."""
        try:
            with store_errors():
                self.client.update_item(**self.update_request(key, update, condition, values, names))
        except ClientError:
            return False
        return True

    def update_request(
        self,
        key: str,
        update: str,
        condition: str | None,
        values: dict[str, Any],
        names: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "TableName": self.name,
            "Key": to_wire({"workspaceId": key}),
            "UpdateExpression": update,
        }
        if condition:
            request["ConditionExpression"] = condition
        if values:
            request["ExpressionAttributeValues"] = to_wire(values)
        if names:
            request["ExpressionAttributeNames"] = names
        return request
