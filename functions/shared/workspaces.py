"""Workspaces (tenants): API keys, trunk and numbers, allowed destinations, limits, webhook secrets."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, store_errors, to_wire
from shared.errors import StoreError, StoreUnclearError
from shared.policies import Policy
from shared.slots import items_of
from shared.workspaces_table import WorkspacesTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@dataclasses.dataclass(frozen=True, slots=True)
class Workspace:
    """One tenant.

    api_key_hashes: `key_hash` of the valid keys; if empty, every request is refused unless `open`. open: without
    keys, a request needs only the workspace's id. agents: the agent ids it may dispatch; empty means any.
    allowed_calling_codes: `+1`, `+44`, ...; if empty, no number may be called. calls_per_second: INVITEs its trunk
    takes. webhook_secrets: one, or two during a rotation, the newest first. version: incremented by each update.
    key_notes: by the hash of a key, what people recognise it by (admin/keys.py); no request depends on them, and
    keys of older versions have none. policies: by name.
    """

    workspace_id: str
    name: str
    agent_name: str
    sip_trunk_id: str
    from_numbers: tuple[str, ...]
    api_key_hashes: frozenset[str] = frozenset()
    open: bool = False
    agents: frozenset[str] = frozenset()
    allowed_calling_codes: frozenset[str] = frozenset()
    allow_special_numbers: bool = False
    max_concurrent_calls: int = 10
    calls_per_minute: int = 60
    calls_per_second: int = 1
    webhook_secrets: tuple[str, ...] = ()
    disabled: bool = False
    created_at: str = ""
    version: int = 0
    # The slots items that an earlier, higher limit has needed: they may still contain ids.
    slots_items_used: int = 0
    key_notes: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict, hash=False)
    policies: dict[str, Policy] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def counts_rings(self) -> bool:
        """Whether a policy has rules on how often a number rings: each ring is stored then (numbers.py)."""
        return any(policy.periods_seconds for policy in self.policies.values())

    @property
    def slots_items(self) -> int:
        """The number of items in which ids of its calls may be (slots.py)."""
        return max(self.slots_items_used, items_of(self.max_concurrent_calls))

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Workspace:
        """Ignores unknown attributes. Raises StoreError when a required one is missing."""
        missing = [name for name in ("name", "agentName", "sipTrunkId") if name not in item]
        if missing:
            raise StoreError(f"workspace {item['workspaceId']} has no {', '.join(missing)}")
        known = {field: item[name] for field, name in WORKSPACE_ATTRIBUTES.items() if name in item}
        for field in ("from_numbers", "webhook_secrets"):
            known[field] = tuple(known.get(field, ()))
        for field in ("api_key_hashes", "agents", "allowed_calling_codes"):
            known[field] = frozenset(known.get(field, ()))
        try:
            policies = {name: Policy.from_item(name, policy) for name, policy in item.get("policies", {}).items()}
        except (KeyError, TypeError) as exc:
            raise StoreError(f"workspace {item['workspaceId']} has a policy that cannot be read") from exc
        known["policies"] = policies
        return cls(**known)

    def to_item(self) -> dict[str, Any]:
        """The stored item. DynamoDB has no empty set, so an empty one is omitted; so are notes of no key."""
        item: dict[str, Any] = {}
        for field, name in WORKSPACE_ATTRIBUTES.items():
            value = getattr(self, field)
            if isinstance(value, frozenset | dict) and not value:
                continue
            if isinstance(value, frozenset):
                item[name] = set(value)
            elif field == "policies":
                item[name] = {policy.name: policy.to_item() for policy in value.values()}
            else:
                item[name] = list(value) if isinstance(value, tuple) else value
        return item


# The stored attribute of each field.
WORKSPACE_ATTRIBUTES = {
    "workspace_id": "workspaceId",
    "name": "name",
    "agent_name": "agentName",
    "sip_trunk_id": "sipTrunkId",
    "from_numbers": "fromNumbers",
    "api_key_hashes": "apiKeyHashes",
    "open": "open",
    "agents": "agents",
    "allowed_calling_codes": "allowedCallingCodes",
    "allow_special_numbers": "allowSpecialNumbers",
    "max_concurrent_calls": "maxConcurrentCalls",
    "calls_per_minute": "callsPerMinute",
    "calls_per_second": "callsPerSecond",
    "webhook_secrets": "webhookSecrets",
    "disabled": "disabled",
    "created_at": "createdAt",
    "version": "version",
    "slots_items_used": "slotsItems",
    "key_notes": "apiKeys",
    "policies": "policies",
}


def key_hash(api_key: str) -> str:
    """The stored hash of an API key. A key has 256 random bits, so one round of SHA-256 cannot be reversed."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


class WorkspaceStore:
    """The workspaces of one table. Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._table = WorkspacesTable(client, table)

    def get(self, workspace_id: str) -> Workspace | None:
        item = self._table.read(workspace_id)
        return Workspace.from_item(item) if item else None

    def put(self, workspace: Workspace) -> None:
        """Writes the whole workspace, replacing an existing one."""
        with store_errors():
            self._table.client.put_item(TableName=self._table.name, Item=to_wire(workspace.to_item()))

    # ── what the operator does ──────────────────────────────────────────────────────────────────

    def create(self, workspace: Workspace) -> bool:
        """Writes a new workspace. Returns False and writes nothing when the id is taken."""
        try:
            with store_errors():
                self._table.client.put_item(
                    TableName=self._table.name,
                    Item=to_wire(workspace.to_item()),
                    ConditionExpression="attribute_not_exists(workspaceId)",
                )
        except (ClientError, StoreUnclearError) as exc:
            # A repeat by the SDK fails against its own first try: the stored item shows which one wrote it.
            there = self.get(workspace.workspace_id)
            if there is None and isinstance(exc, StoreUnclearError):
                raise
            return there == workspace
        return True

    def update(self, workspace_id: str, change: Callable[[Workspace], Workspace]) -> Workspace | None:
        """Applies `change` to the stored workspace and returns the result; None when the workspace does not exist.

        Concurrent updates are both applied: the later one's `change` is called again with the other's result, so
        it must be repeatable. An exception of `change` ends the update with nothing written. Only changed
        attributes are written; unknown attributes are kept.
        """
        for _ in range(20):
            seen = self.get(workspace_id)
            if seen is None:
                return None
            changed = change(seen)
            if changed.slots_items < seen.slots_items:
                changed = dataclasses.replace(changed, slots_items_used=seen.slots_items)
            if changed == seen:
                return seen
            changed = dataclasses.replace(changed, version=seen.version + 1)
            try:
                if self._change(seen, changed):
                    return changed
            except StoreUnclearError:
                # Whether it was written shows in the next iteration.
                continue
        raise StoreError(f"workspace {workspace_id} is changed by others again and again")

    def all(self) -> list[Workspace]:
        """Every workspace, sorted by id. Scans the whole table."""
        request: dict[str, Any] = {"TableName": self._table.name, "ConsistentRead": True}
        found: list[Workspace] = []
        while True:
            with store_errors():
                page = self._table.client.scan(**request)
            items = [from_wire(item) for item in page["Items"]]
            found += [Workspace.from_item(item) for item in items if "#" not in item["workspaceId"]]
            if "LastEvaluatedKey" not in page:
                return sorted(found, key=lambda workspace: workspace.workspace_id)
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _change(self, seen: Workspace, changed: Workspace) -> bool:
        """Writes the attributes in which the two differ, unless the item has changed since it was read."""
        before, after = seen.to_item(), changed.to_item()
        differing = [name for name in before | after if before.get(name) != after.get(name)]
        # Aliases throughout: `name`, `open` and others are reserved words.
        sets = [f"#{name} = :{name}" for name in differing if name in after]
        removes = [f"#{name}" for name in differing if name not in after]
        unchanged = "#version = :seen" if seen.version else "(#version = :seen OR attribute_not_exists(#version))"
        return self._table.update_item(
            seen.workspace_id,
            f"SET {', '.join(sets)}" + (f" REMOVE {', '.join(removes)}" if removes else ""),
            f"attribute_exists(workspaceId) AND {unchanged}",
            {f":{name}": after[name] for name in differing if name in after} | {":seen": seen.version},
            {f"#{name}": name for name in differing},
        )


class WorkspaceCache:
    """Workspaces, cached for `seconds`: a warm request reads nothing, and a change takes effect in time."""

    def __init__(self, store: WorkspaceStore, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._entries: dict[str, tuple[float, Workspace | None]] = {}

    def get(self, workspace_id: str) -> Workspace | None:
        entry = self._entries.get(workspace_id)
        if entry is None or entry[0] <= self._clock():
            return self.put(workspace_id, self._store.get(workspace_id))
        return entry[1]

    def put(self, workspace_id: str, workspace: Workspace | None) -> Workspace | None:
        """Stores what was read of a workspace elsewhere. Returns it."""
        # Unknown ids are cached too, but a flood of invented ones must not fill the memory.
        if len(self._entries) > 1000:
            self._entries.clear()
        self._entries[workspace_id] = (self._clock() + self._seconds, workspace)
        return workspace
