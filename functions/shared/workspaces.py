"""Workspaces: who may call whom, from which trunk, how many at a time; and the switch that stops it all.

Items of WorkspacesTable, by `workspaceId` (a workspace's own id has no `#`):
    <id>            the workspace, written by the operator
    <id>#slots      activeCalls: the set of the ids of calls that hold a slot; waitingUntil: until when (epoch ms)
                    a call that found no slot will ask again
    <id>#rate       epochMinute: the minute that is counted; taken: the permits that processes have taken of it
    trunk#<id>      nextFreeAt: the next moment at which this trunk may be given an INVITE
    #switch         pausedAt: dialling is paused, calls wait
What each function may read and write here is narrowed by these keys, in template.yaml.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, store_errors, to_wire
from shared.errors import StoreError, StoreUnclear

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SWITCH = "#switch"


@dataclasses.dataclass(frozen=True, slots=True)
class Workspace:
    """One tenant.

    apiKeyHashes: `key_hash` of the keys in force; empty means nobody, unless `open`. open: without keys, whoever
    knows the id may act for it.
    agents: the agent ids it may dispatch; empty means any. allowedCallingCodes: `+1`, `+44`, ...; empty means
    nobody. callsPerSecond: INVITEs its trunk takes. webhookSecrets: one, or two during a rotation, the newest
    first. version: goes up with each update.
    """

    workspaceId: str
    name: str
    agentName: str
    sipTrunkId: str
    fromNumbers: tuple[str, ...]
    apiKeyHashes: frozenset[str] = frozenset()
    open: bool = False
    agents: frozenset[str] = frozenset()
    allowedCallingCodes: frozenset[str] = frozenset()
    allowSpecialNumbers: bool = False
    maxConcurrentCalls: int = 10
    callsPerMinute: int = 60
    callsPerSecond: int = 1
    webhookSecrets: tuple[str, ...] = ()
    disabled: bool = False
    createdAt: str = ""
    version: int = 0

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Workspace:
        """Skips attributes it does not know. Raises StoreError when one it cannot do without is missing."""
        missing = [name for name in ("name", "agentName", "sipTrunkId") if name not in item]
        if missing:
            raise StoreError(f"workspace {item['workspaceId']} has no {', '.join(missing)}")
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


@dataclasses.dataclass(frozen=True, slots=True)
class Permits:
    """Calls that one process may accept in a minute. minute: epoch minutes. taken: of all processes, when seen."""

    minute: int
    taken: int
    left: int = 0


def key_hash(api_key: str) -> str:
    """What is stored of an API key. It has 256 random bits, so one round of SHA-256 cannot be turned back."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


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

    # ── what the operator does ──────────────────────────────────────────────────────────────────

    def create(self, workspace: Workspace) -> bool:
        """Writes a new workspace; False, and nothing written, when the id is taken."""
        try:
            with store_errors():
                self._client.put_item(
                    TableName=self._table,
                    Item=to_wire(workspace.to_item()),
                    ConditionExpression="attribute_not_exists(workspaceId)",
                )
        except (ClientError, StoreUnclear) as exc:
            # A repeat by the client library loses against its own first try: what is there tells whose it is.
            there = self.get(workspace.workspaceId)
            if there is None and isinstance(exc, StoreUnclear):
                raise
            return there == workspace
        return True

    def update(self, workspace_id: str, change: Callable[[Workspace], Workspace]) -> Workspace | None:
        """Applies `change` to the workspace as it is; None when there is none.

        Two updates at the same time both hold: the later one's `change` is called again, on what the other
        left. So it must be one that may be repeated. What it raises ends the update, with nothing written.
        Only what changed is written; attributes that this code does not know stay.
        """
        for _ in range(20):
            seen = self.get(workspace_id)
            if seen is None:
                return None
            changed = change(seen)
            if changed == seen:
                return seen
            changed = dataclasses.replace(changed, version=seen.version + 1)
            try:
                if self._change(seen, changed):
                    return changed
            except StoreUnclear:
                # Written or not? The next turn sees.
                continue
        raise StoreError(f"workspace {workspace_id} is changed by others again and again")

    def all(self) -> list[Workspace]:
        """Every workspace, by id. Reads the whole table."""
        request: dict[str, Any] = {"TableName": self._table, "ConsistentRead": True}
        found: list[Workspace] = []
        while True:
            with store_errors():
                page = self._client.scan(**request)
            items = [from_wire(item) for item in page["Items"]]
            found += [Workspace.from_item(item) for item in items if "#" not in item["workspaceId"]]
            if "LastEvaluatedKey" not in page:
                return sorted(found, key=lambda workspace: workspace.workspaceId)
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _change(self, seen: Workspace, changed: Workspace) -> bool:
        """Writes the attributes in which the two differ, unless the item has changed since it was seen."""
        before, after = seen.to_item(), changed.to_item()
        differing = [name for name in before | after if before.get(name) != after.get(name)]
        # Aliases throughout: `name`, `open` and others are reserved words.
        sets = [f"#{name} = :{name}" for name in differing if name in after]
        removes = [f"#{name}" for name in differing if name not in after]
        unchanged = "#version = :seen" if seen.version else "(#version = :seen OR attribute_not_exists(#version))"
        return self._update(
            seen.workspaceId,
            f"SET {', '.join(sets)}" + (f" REMOVE {', '.join(removes)}" if removes else ""),
            f"attribute_exists(workspaceId) AND {unchanged}",
            {f":{name}": after[name] for name in differing if name in after} | {":seen": seen.version},
            {f"#{name}": name for name in differing},
        )

    # ── slots ───────────────────────────────────────────────────────────────────────────────────

    def take_slot(self, workspace_id: str, call_id: str, limit: int, *, waited: bool = True, now: int = 0) -> bool:
        """Adds the call to those under way, if there is room. Repeating it changes nothing.

        waited: False for a call that has not waited yet: it takes none while others wait (epoch ms `now`).
        """
        room = "(attribute_not_exists(activeCalls) OR size(activeCalls) < :limit)"
        values: dict[str, Any] = {":ids": {call_id}, ":id": call_id, ":limit": limit}
        if not waited:
            room += " AND (attribute_not_exists(waitingUntil) OR waitingUntil < :now)"
            values[":now"] = now
        return self._update(
            f"{workspace_id}#slots", "ADD activeCalls :ids", f"contains(activeCalls, :id) OR {room}", values
        )

    def note_waiting(self, workspace_id: str, until: int) -> None:
        """A call found no slot and will have asked again by `until` (epoch ms)."""
        self._update(
            f"{workspace_id}#slots",
            "SET waitingUntil = :until",
            "attribute_not_exists(waitingUntil) OR waitingUntil < :until",
            {":until": until},
        )

    def free_slot(self, workspace_id: str, call_id: str) -> None:
        """Repeating it changes nothing; other calls' slots cannot be touched."""
        self._update(f"{workspace_id}#slots", "DELETE activeCalls :ids", None, {":ids": {call_id}})

    def active_calls(self, workspace_id: str) -> frozenset[str]:
        item = self._get(f"{workspace_id}#slots")
        return frozenset((item or {}).get("activeCalls", ()))

    def slots(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Each workspace's id and the ids of the calls that hold its slots, of those that have any. Reads the
        whole table, eventually consistent.
        """
        request: dict[str, Any] = {
            "TableName": self._table,
            "FilterExpression": "attribute_exists(activeCalls)",
            "ProjectionExpression": "workspaceId, activeCalls",
            # Said, though it follows from the line above: its role may scan for nothing else (template.yaml).
            "Select": "SPECIFIC_ATTRIBUTES",
        }
        while True:
            with store_errors():
                page = self._client.scan(**request)
            for found in page["Items"]:
                item = from_wire(found)
                yield item["workspaceId"].removesuffix("#slots"), frozenset(item["activeCalls"])
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    # ── the rate ────────────────────────────────────────────────────────────────────────────────

    def take_permits(self, workspace_id: str, minute: int, limit: int, before: Permits | None) -> Permits:
        """A tenth of the permits that a minute has left, at least one; `left` is 0 when it has none.

        before: what the same process got last, so that a minute it knows costs one write. A minute later than
        `minute`, opened by a process whose clock is ahead, is taken from: the item's minute never goes back, so
        of no minute more than `limit` are ever taken. A write that is made twice, or whose answer is lost, takes
        permits that nobody spends.
        """
        seen = before if before is not None and before.minute >= minute else None
        while True:
            left = limit - (seen.taken if seen else 0)
            if left <= 0:
                return Permits(seen.minute if seen else minute, limit - left)
            count = max(1, left // 10)
            if seen is None:
                update = "SET epochMinute = :minute, taken = :count"
                condition = "attribute_not_exists(epochMinute) OR epochMinute < :minute"
                values = {":minute": minute, ":count": count}
            else:
                update = "ADD taken :count"
                condition = "epochMinute = :minute AND taken <= :most"
                values = {":minute": seen.minute, ":count": count, ":most": limit - count}
            request = self._update_request(f"{workspace_id}#rate", update, condition, values)
            try:
                with store_errors():
                    answer = self._client.update_item(
                        **request, ReturnValues="ALL_NEW", ReturnValuesOnConditionCheckFailure="ALL_OLD"
                    )
            except ClientError as exc:
                # Others were quicker, or opened the minute: go on from where they left it.
                there: Any = exc.response.get("Item")
                item = from_wire(there or {})
                seen = Permits(item["epochMinute"], item["taken"]) if item else None
            else:
                return Permits(values[":minute"], from_wire(answer["Attributes"])["taken"], count)

    # ── pacing ──────────────────────────────────────────────────────────────────────────────────

    def next_free(self, trunk_id: str) -> int:
        """Epoch ms from which the trunk may be given its next INVITE; 0 when it never had one."""
        return int((self._get(f"trunk#{trunk_id}") or {}).get("nextFreeAt", 0))

    def reserve_trunk(self, trunk_id: str, gap_ms: int, now: int, latest: int) -> int | None:
        """Takes the trunk's next free moment for one INVITE. Returns it, epoch ms (`now` or later).

        None, and nothing taken, when that is after `latest`: a moment that nobody can use would stay empty.
        """
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
            if free_at > latest:
                return None
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
        return self.paused_at() is not None

    def paused_at(self) -> int | None:
        """Since when dialling is stopped, epoch ms; None when it is not."""
        paused_at: int | None = (self._get(SWITCH) or {}).get("pausedAt")
        return paused_at

    def pause(self, now: int) -> None:
        """Stops all dialling. Repeating it changes nothing."""
        self._update(SWITCH, "SET pausedAt = if_not_exists(pausedAt, :now)", None, {":now": now})

    def resume(self) -> None:
        self._update(SWITCH, "REMOVE pausedAt", None, {})

    def _get(self, key: str) -> dict[str, Any] | None:
        with store_errors():
            answer = self._client.get_item(
                TableName=self._table, Key=to_wire({"workspaceId": key}), ConsistentRead=True
            )
        return from_wire(answer["Item"]) if "Item" in answer else None

    def _update(
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
                self._client.update_item(**self._update_request(key, update, condition, values, names))
        except ClientError:
            return False
        return True

    def _update_request(
        self,
        key: str,
        update: str,
        condition: str | None,
        values: dict[str, Any],
        names: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "TableName": self._table,
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
