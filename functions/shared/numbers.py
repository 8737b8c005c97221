"""NumbersTable: what a workspace knows of a phone number: who may not be called, and when a phone rang.

Items by `id`:
    <workspace>#<number>  suppressed: by scope (`all` or a purpose) the suppression {reason, at, until, by}; rings:
                          by call id the epoch ms of its fence, at most 100; version: random, changed by each
                          write; workspaceId, number; suppressedIn: the workspace's id while there is a
                          suppression, the key of the index `suppressed`; expiresAt: DynamoDB's TTL, epoch seconds,
                          none while a suppression has no end
    #numbers              a marker: while it is missing, nothing rings. A table that was lost must not read as if
                          there were no suppressions.

The fence of a call (CallStore.fence) is one transaction with its number's item, at the `version` that was read: a
suppression that was written before it lets nothing ring. Items are updated, never put: a write of one attribute
keeps the others.
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, read_items, store_errors, to_wire, write
from shared.errors import StoreError, StoreUnclearError, TooManyScopesError
from shared.phone_number import canonical
from shared.policies import LARGEST_CAP, LONGEST_CAP_SECONDS

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from shared.limits import LimitStore

MARKER = "#numbers"

# The scope of a suppression of every call, whatever its purpose.
ALL = "all"
MAXIMUM_SCOPES = 20

# Characters of a suppression's reason.
MAXIMUM_REASON = 256

# How many writes of one item are tried when others write it too.
_TRIES = 20
# How long an item without a suppression is kept after what counts last.
_KEPT_MS = (LONGEST_CAP_SECONDS + 24 * 3600) * 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Suppression:
    """Who may not be called. scope: `all` or a purpose. at_ms: since when. until_ms: None for ever. by: what made
    it, such as {"key": id, "label"}, {"call": id} or {"operator": True}.
    """

    scope: str
    reason: str
    at_ms: int
    until_ms: int | None = None
    by: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def holds(self, now_ms: int) -> bool:
        return self.until_ms is None or now_ms < self.until_ms

    def outlasts(self, other: Suppression) -> bool:
        """Whether it ends no sooner than the other."""
        return self.until_ms is None or (other.until_ms is not None and self.until_ms >= other.until_ms)

    @classmethod
    def from_item(cls, scope: str, item: dict[str, Any]) -> Suppression:
        until = item.get("until")
        return cls(
            scope, item["reason"], int(item["at"]), None if until is None else int(until), item.get("by", {})
        )

    def to_item(self) -> dict[str, Any]:
        item = {"reason": self.reason, "at": self.at_ms, "until": self.until_ms, "by": self.by}
        return {name: value for name, value in item.items() if value is not None}


@dataclasses.dataclass(frozen=True, slots=True)
class NumberRecord:
    """What is stored of a number. version: None when nothing is. rings: epoch ms by call id."""

    workspace_id: str
    number: str
    suppressions: tuple[Suppression, ...] = ()
    rings: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)
    version: str | None = None

    @classmethod
    def from_item(cls, workspace_id: str, number: str, item: dict[str, Any] | None) -> NumberRecord:
        """Raises StoreError when the item cannot be read: nothing rings then."""
        item = item or {}
        try:
            suppressions = tuple(
                Suppression.from_item(scope, stored)
                for scope, stored in sorted(item.get("suppressed", {}).items())
            )
            rings = {call_id: int(at_ms) for call_id, at_ms in item.get("rings", {}).items()}
            return cls(workspace_id, number, suppressions, rings, item.get("version"))
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise StoreError("the record of a number cannot be read") from exc

    def holding(self, now_ms: int) -> tuple[Suppression, ...]:
        """The suppressions that have not ended at `now`."""
        return tuple(suppression for suppression in self.suppressions if suppression.holds(now_ms))

    def of_scope(self, scope: str, now_ms: int) -> Suppression | None:
        """The one of this very scope that has not ended at `now`."""
        return next((found for found in self.holding(now_ms) if found.scope == scope), None)

    def suppressing(
        self, wanted: Suppression, now_ms: int, *, keep_longer: bool = False
    ) -> tuple[Suppression, ...]:
        """The suppressions with one more, which replaces that of its scope. One with the same reason and end stays
        as it is, and with `keep_longer` one that ends no sooner: a list of numbers must not end an opt-out.

        Raises TooManyScopesError when the number has MAXIMUM_SCOPES others; `all` is never refused.
        """
        there = self.of_scope(wanted.scope, now_ms)
        if there is not None:
            same = (there.reason, there.until_ms) == (wanted.reason, wanted.until_ms)
            if same or (keep_longer and there.outlasts(wanted)):
                return self.suppressions
        others = tuple(other for other in self.holding(now_ms) if other.scope != wanted.scope)
        if there is None and wanted.scope != ALL and len(others) >= MAXIMUM_SCOPES:
            raise TooManyScopesError(f"a number may have suppressions of at most {MAXIMUM_SCOPES} scopes")
        return (*others, wanted)

    def suppression(self, purpose: str, now_ms: int) -> Suppression | None:
        """The one that keeps a call of this purpose from ringing at `now`."""
        return next((found for found in self.holding(now_ms) if found.scope in (ALL, purpose)), None)


def number_key(workspace_id: str, number: str) -> str:
    """The key of a number's item; number: E.164."""
    return f"{workspace_id}#{canonical(number)}"


# ── the fence's part ────────────────────────────────────────────────────────────────────────────────────


def ring_write(table: str, seen: NumberRecord, call_id: str, *, counted: bool, now_ms: int) -> dict[str, Any]:
    """The part of the fence's transaction that is about the number, whose item must still be as it was read.

    counted: whether the ring is stored (Workspace.counts_rings).
    """
    key = {"TableName": table, "Key": to_wire({"id": number_key(seen.workspace_id, seen.number)})}
    condition = "attribute_not_exists(version)" if seen.version is None else "version = :seen"
    values: dict[str, Any] = {} if seen.version is None else {":seen": seen.version}
    if not counted:
        check = key | {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "NONE"}
        return {"ConditionCheck": check | ({"ExpressionAttributeValues": to_wire(values)} if values else {})}
    # Of the longest period that a policy may have: one with a longer period than today's must find them.
    since_ms = now_ms - LONGEST_CAP_SECONDS * 1000
    earlier = sorted((at, ring) for ring, at in seen.rings.items() if at > since_ms and ring != call_id)
    values[":rings"] = {ring: at for at, ring in earlier[-LARGEST_CAP:]} | {call_id: now_ms}
    return {"Update": key | _update(seen, seen.suppressions, now_ms, "rings = :rings", condition, values)}


def _update(
    seen: NumberRecord,
    suppressions: Iterable[Suppression],
    now_ms: int,
    assignment: str,
    condition: str,
    values: dict[str, Any],
) -> dict[str, Any]:
    """The expressions of an update after which the number has these suppressions."""
    # One spelling, as in the key: the fence has read the number as its call spells it.
    number = canonical(seen.number)
    values = values | {":new": secrets.token_hex(8), ":workspace": seen.workspace_id, ":number": number}
    update = f"SET {assignment}, version = :new, workspaceId = :workspace, #number = :number"
    ends = [suppression.until_ms for suppression in suppressions]
    remove = []
    if None in ends:
        remove.append("expiresAt")
    else:
        values[":expires"] = (max([now_ms, *(end for end in ends if end is not None)]) + _KEPT_MS) // 1000
        update += ", expiresAt = :expires"
    if ends:
        update += ", suppressedIn = :workspace"
    else:
        remove.append("suppressedIn")
    return {
        "UpdateExpression": update + (f" REMOVE {', '.join(remove)}" if remove else ""),
        "ConditionExpression": condition,
        "ExpressionAttributeNames": {"#number": "number"},
        "ExpressionAttributeValues": to_wire(values),
    }


def ensure_marker(limits: LimitStore, numbers: NumberStore, now_ms: int) -> bool:
    """Writes the marker of a deployment that has never had one. Whether the table has it then.

    Once it is noted in WorkspacesTable that there was one, its absence means that the table was lost.
    """
    if numbers.marked():
        if not limits.numbers_noted():
            limits.note_numbers(now_ms)
        return True
    if limits.numbers_noted():
        return False
    numbers.mark(now_ms)
    limits.note_numbers(now_ms)
    return True


class NumberStore:
    """The numbers of one table. Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self.table = table

    def get(self, workspace_id: str, number: str) -> NumberRecord:
        """What is stored of a number (E.164, any spelling of it): a consistent read."""
        number = canonical(number)
        with store_errors():
            answer = self._client.get_item(
                TableName=self.table, Key=to_wire({"id": number_key(workspace_id, number)}), ConsistentRead=True
            )
        item = answer.get("Item")
        return NumberRecord.from_item(workspace_id, number, from_wire(item) if item else None)

    def other(self, table: str) -> NumberStore:
        """The numbers of another table, such as one into which a backup was restored."""
        return NumberStore(self._client, table)

    def everything(self) -> Iterator[NumberRecord]:
        """Every number of every workspace: a scan, for the operator alone. Consistent."""
        request: dict[str, Any] = {"TableName": self.table, "ConsistentRead": True}
        while True:
            with store_errors():
                page = self._client.scan(**request)
            for item in map(from_wire, page["Items"]):
                if item["id"] != MARKER:
                    yield NumberRecord.from_item(item["workspaceId"], item["number"], item)
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    # ── suppressions ────────────────────────────────────────────────────────────────────────────

    def suppress(
        self,
        workspace_id: str,
        number: str,
        suppression: Suppression,
        now_ms: int,
        seen: NumberRecord | None = None,
        *,
        keep_longer: bool = False,
    ) -> NumberRecord:
        """Adds a suppression, or replaces the one of the same scope, as NumberRecord.suppressing, which also tells
        what it raises. Returns the number as it is then. seen: as read just now.
        """

        def change(seen: NumberRecord) -> tuple[Suppression, ...]:
            return seen.suppressing(suppression, now_ms, keep_longer=keep_longer)

        # Written even if it is there already: a removal that was asked for before and comes late fails then.
        return self.change(workspace_id, number, change, now_ms, seen, always=True)[1]

    def release(
        self, workspace_id: str, number: str, scope: str | None, now_ms: int
    ) -> tuple[NumberRecord, NumberRecord]:
        """Removes the suppression of a scope, or every one (None). Returns the number before and after."""

        def change(seen: NumberRecord) -> tuple[Suppression, ...]:
            return tuple(other for other in seen.holding(now_ms) if scope is not None and other.scope != scope)

        return self.change(workspace_id, number, change, now_ms)

    def change(
        self,
        workspace_id: str,
        number: str,
        change: Callable[[NumberRecord], tuple[Suppression, ...]],
        now_ms: int,
        seen: NumberRecord | None = None,
        *,
        always: bool = False,
    ) -> tuple[NumberRecord, NumberRecord]:
        """Gives a number the suppressions that `change` makes of those it has. Returns it before and after.

        change: called again when another process wrote meanwhile. seen: the number as read just now. always: it is
        written, and gets a new version, even if nothing changes.
        """
        first: NumberRecord | None = None
        for _ in range(_TRIES):
            seen = self.get(workspace_id, number) if seen is None else seen
            # Of the first try: a write whose answer was lost may have been made.
            first = first or seen
            suppressions = change(seen)
            if suppressions == seen.suppressions and not always:
                return first, seen
            stored = {suppression.scope: suppression.to_item() for suppression in suppressions}
            condition = "attribute_not_exists(version)" if seen.version is None else "version = :seen"
            values = {":suppressed": stored} | ({} if seen.version is None else {":seen": seen.version})
            try:
                write(
                    self._client.update_item,
                    TableName=self.table,
                    Key=to_wire({"id": number_key(workspace_id, seen.number)}),
                    **_update(seen, suppressions, now_ms, "suppressed = :suppressed", condition, values),
                )
            except (ClientError, StoreUnclearError):
                # Another process wrote it, or the answer was lost: the next read shows.
                time.sleep(random.uniform(0.01, 0.05))
                seen = None
                continue
            return first, dataclasses.replace(seen, suppressions=suppressions)
        raise StoreError("the number's record is changed by others again and again")

    def suppressed(
        self, workspace_id: str, limit: int, after: str | None = None
    ) -> tuple[list[NumberRecord], str | None]:
        """Numbers with suppressions, also such that have ended, by number, and where the next page starts.
        Eventually consistent.
        """
        request: dict[str, Any] = {
            "TableName": self.table,
            "IndexName": "suppressed",
            "KeyConditionExpression": "suppressedIn = :workspace",
            "ExpressionAttributeValues": to_wire({":workspace": workspace_id}),
            "Limit": limit,
        }
        if after is not None:
            request["ExclusiveStartKey"] = to_wire(
                {"suppressedIn": workspace_id, "number": after, "id": number_key(workspace_id, after)}
            )
        with store_errors():
            answer = self._client.query(**request)
        found = [from_wire(item) for item in answer["Items"]]
        last = answer.get("LastEvaluatedKey")
        return (
            [NumberRecord.from_item(workspace_id, item["number"], item) for item in found],
            from_wire(last)["number"] if last else None,
        )

    # ── rings ───────────────────────────────────────────────────────────────────────────────────

    def forget_ring(self, workspace_id: str, number: str, call_id: str, at_ms: int) -> None:
        """Removes the ring of a call that was un-fenced: nothing rang. Not one that it has had since."""
        try:
            write(
                self._client.update_item,
                TableName=self.table,
                Key=to_wire({"id": number_key(workspace_id, number)}),
                UpdateExpression="REMOVE rings.#call SET version = :new",
                ConditionExpression="rings.#call = :at",
                ExpressionAttributeNames={"#call": call_id},
                ExpressionAttributeValues=to_wire({":at": at_ms, ":new": secrets.token_hex(8)}),
            )
        except ClientError:
            return

    def add_rings(self, workspace_id: str, number: str, rings: Mapping[str, int], now_ms: int) -> bool:
        """Adds rings (epoch ms by call id) that the record of a number has lost. Whether it lacked one."""
        for _ in range(_TRIES):
            seen = self.get(workspace_id, number)
            newest = sorted((at, call_id) for call_id, at in (dict(rings) | seen.rings).items())[-LARGEST_CAP:]
            wanted = {call_id: at for at, call_id in newest}
            if wanted.keys() <= seen.rings.keys():
                return False
            condition = "attribute_not_exists(version)" if seen.version is None else "version = :seen"
            values: dict[str, Any] = {":rings": wanted} | ({} if seen.version is None else {":seen": seen.version})
            try:
                write(
                    self._client.update_item,
                    TableName=self.table,
                    Key=to_wire({"id": number_key(workspace_id, seen.number)}),
                    **_update(seen, seen.suppressions, now_ms, "rings = :rings", condition, values),
                )
            except (ClientError, StoreUnclearError):
                # As in `change`.
                time.sleep(random.uniform(0.01, 0.05))
                continue
            return True
        raise StoreError("the number's record is changed by others again and again")

    # ── the marker ──────────────────────────────────────────────────────────────────────────────

    def mark(self, now_ms: int) -> None:
        """Writes the marker if it is missing: from here on the table is taken for complete."""
        write(
            self._client.update_item,
            TableName=self.table,
            Key=to_wire({"id": MARKER}),
            UpdateExpression="SET since = if_not_exists(since, :now)",
            ExpressionAttributeValues=to_wire({":now": now_ms}),
        )

    def marked(self) -> bool:
        with store_errors():
            answer = self._client.get_item(TableName=self.table, Key=to_wire({"id": MARKER}), ConsistentRead=True)
        return "Item" in answer

    def get_many(self, workspace_id: str, numbers: Iterable[str]) -> dict[str, NumberRecord]:
        """What is stored of these numbers, by canonical number: consistent reads, at most 100."""
        wanted = {canonical(number) for number in numbers}
        found = read_items(
            self._client, {self.table: [{"id": number_key(workspace_id, number)} for number in wanted]}
        )
        items = {item["number"]: item for item in found[self.table]}
        return {number: NumberRecord.from_item(workspace_id, number, items.get(number)) for number in wanted}
