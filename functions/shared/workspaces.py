"""Workspaces: who may call whom, from which trunk, how many at a time; and the switch that stops it all.

Items of WorkspacesTable, by `workspaceId` (a workspace's own id has no `#`):
    <id>            the workspace, written by the operator
    <id>#slots      activeCalls: the set of the ids of calls that hold a slot
    trunk#<id>      nextFreeAt: the next moment at which this trunk may be given an INVITE
    #switch         pausedAt: dialling is paused, calls wait
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, store_errors, to_wire

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SWITCH = "#switch"


@dataclasses.dataclass(frozen=True, slots=True)
class Workspace:
    """One tenant.

    apiKeyHashes: SHA-256 (hex) of the keys in force; empty means open to whoever knows the id.
    agents: the agent ids it may dispatch; empty means any. allowedCallingCodes: `+1`, `+44`, ...; empty means
    nobody. callsPerSecond: INVITEs its trunk takes. webhookSecrets: one, or two during a rotation.
    """

    workspaceId: str
    name: str
    agentName: str
    sipTrunkId: str
    fromNumbers: tuple[str, ...]
    apiKeyHashes: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()
    allowedCallingCodes: frozenset[str] = frozenset()
    allowSpecialNumbers: bool = False
    maxConcurrentCalls: int = 10
    callsPerMinute: int = 60
    callsPerSecond: int = 1
    webhookSecrets: tuple[str, ...] = ()
    disabled: bool = False
    createdAt: str = ""

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Workspace:
        known = {name: item[name] for name in cls.__slots__ if name in item}
        for name in ("fromNumbers", "webhookSecrets"):
            known[name] = tuple(known.get(name, ()))
        for name in ("apiKeyHashes", "agents", "allowedCallingCodes"):
            known[name] = frozenset(known.get(name, ()))
        return cls(**known)

    def to_item(self) -> dict[str, Any]:
        """As stored; DynamoDB has no empty set, so an empty one is absent."""
        item: dict[str, Any] = {}
        for name in type(self).__slots__:
            value = getattr(self, name)
            if isinstance(value, frozenset):
                if value:
                    item[name] = set(value)
            else:
                item[name] = list(value) if isinstance(value, tuple) else value
        return item


class WorkspaceStore:
    """The workspaces of one table. Every method raises StoreError or StoreUnclear when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def get(self, workspace_id: str) -> Workspace | None:
        item = self._get(workspace_id)
        return Workspace.from_item(item) if item else None

    def put(self, workspace: Workspace) -> None:
        """Writes the workspace whole, whatever was there."""
        with store_errors():
            self._client.put_item(TableName=self._table, Item=to_wire(workspace.to_item()))

    # ── slots ───────────────────────────────────────────────────────────────────────────────────

    def take_slot(self, workspace_id: str, call_id: str, limit: int) -> bool:
        """Adds the call to those under way, if there is room. Repeating it changes nothing."""
        return self._update(
            f"{workspace_id}#slots",
            "ADD activeCalls :ids",
            "attribute_not_exists(activeCalls) OR size(activeCalls) < :limit OR contains(activeCalls, :id)",
            {":ids": {call_id}, ":id": call_id, ":limit": limit},
        )

    def free_slot(self, workspace_id: str, call_id: str) -> None:
        """Repeating it changes nothing; other calls' slots cannot be touched."""
        self._update(f"{workspace_id}#slots", "DELETE activeCalls :ids", None, {":ids": {call_id}})

    def active_calls(self, workspace_id: str) -> frozenset[str]:
        item = self._get(f"{workspace_id}#slots")
        return frozenset((item or {}).get("activeCalls", ()))

    # ── pacing ──────────────────────────────────────────────────────────────────────────────────

    def next_free(self, trunk_id: str) -> int:
        """Epoch ms from which the trunk may be given its next INVITE; 0 when it never had one."""
        return int((self._get(f"trunk#{trunk_id}") or {}).get("nextFreeAt", 0))

    def reserve_trunk(self, trunk_id: str, gap_ms: int, now: int) -> int:
        """Takes the trunk's next free moment for one INVITE. Returns it, epoch ms (`now` or later)."""
        key = f"trunk#{trunk_id}"
        while True:
            if self._update(
                key,
                "SET nextFreeAt = :next",
                "attribute_not_exists(nextFreeAt) OR nextFreeAt <= :now",
                {":next": now + gap_ms, ":now": now},
            ):
                return now
            free_at = self.next_free(trunk_id)
            if self._update(
                key,
                "SET nextFreeAt = :next",
                "nextFreeAt = :seen",
                {":next": free_at + gap_ms, ":seen": free_at},
            ):
                return max(free_at, now)

    # ── the switch ──────────────────────────────────────────────────────────────────────────────

    def paused(self) -> bool:
        """Whether an operator has stopped all dialling."""
        return "pausedAt" in (self._get(SWITCH) or {})

    def pause(self, now: int) -> None:
        self._update(SWITCH, "SET pausedAt = :now", None, {":now": now})

    def resume(self) -> None:
        self._update(SWITCH, "REMOVE pausedAt", None, {})

    def _get(self, key: str) -> dict[str, Any] | None:
        with store_errors():
            answer = self._client.get_item(
                TableName=self._table, Key=to_wire({"workspaceId": key}), ConsistentRead=True
            )
        return from_wire(answer["Item"]) if "Item" in answer else None

    def _update(self, key: str, update: str, condition: str | None, values: dict[str, Any]) -> bool:
        request: dict[str, Any] = {
            "TableName": self._table,
            "Key": to_wire({"workspaceId": key}),
            "UpdateExpression": update,
        }
        if condition:
            request["ConditionExpression"] = condition
        if values:
            request["ExpressionAttributeValues"] = to_wire(values)
        try:
            with store_errors():
                self._client.update_item(**request)
        except ClientError:
            return False
        return True


class WorkspaceCache:
    """Workspaces as read at most `seconds` ago: a warm request reads nothing, a change is seen in time."""

    def __init__(self, store: WorkspaceStore, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[str, tuple[float, Workspace | None]] = {}

    def get(self, workspace_id: str) -> Workspace | None:
        entry = self._entries.get(workspace_id)
        if entry is None or entry[0] <= self._clock():
            # Unknown ids are remembered too, but a flood of invented ones must not fill the process.
            if len(self._entries) > 1000:
                self._entries.clear()
            entry = (self._clock() + self._seconds, self._store.get(workspace_id))
            self._entries[workspace_id] = entry
        return entry[1]
