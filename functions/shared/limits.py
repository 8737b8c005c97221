"""Limits: calls of a workspace at a time and in a minute, its trunk, and the switch that stops all calls.

Their items are described in workspaces_table.py.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, read_items, store_errors
from shared.errors import StoreError
from shared.numbers import MARKER, NumberRecord, number_key
from shared.slots import SlotsItem, free_slots, slots_key, slots_of_key
from shared.switch import Switch
from shared.telemetry import count, logger
from shared.trunk import FAULTS_TO_STOP, Trunk
from shared.workspaces import Workspace
from shared.workspaces_table import WorkspacesTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SWITCH = "#switch"
NUMBERS = "#numbers"
TRUNK = "trunk#"

# What the reconciler reads of all items: no keys, no secrets. template.yaml restricts its role to these
# attributes.
SCANNED = (
    "workspaceId",
    "name",
    "agentName",
    "sipTrunkId",
    "disabled",
    "maxConcurrentCalls",
    "callsPerSecond",
    "slotsItems",
    "activeCalls",
    "crowdedUntil",
    "faults",
    "stops",
    "stoppedAt",
    "stoppedUntil",
    "probeUntil",
    "fault",
    "pausedAt",
    "pauses",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether a call of a workspace may be dialled now. workspace: None when there is none.

    number: the callee's record, None when none was asked for. marked: whether the table of numbers has its marker.
    """

    workspace: Workspace | None
    switch: Switch
    trunk: Trunk
    slots: tuple[SlotsItem, ...]
    number: NumberRecord | None = None
    marked: bool = True

    @property
    def paused(self) -> bool:
        """Whether nothing may be dialled: dialling is paused, or the table of numbers has no marker."""
        return self.switch.paused_at_ms is not None or not self.marked

    def crowded(self, now_ms: int) -> bool:
        """Whether calls wait for a slot: only those that are admitted from the line take one."""
        return any(item.crowded_until_ms >= now_ms for item in self.slots)

    def free(self, limit: int) -> list[int]:
        """The number of free slots of each item."""
        return free_slots(limit, self.slots)

    def item_of(self, call_id: str) -> int | None:
        """The number of the item in which the call holds a slot."""
        return next((item.number for item in self.slots if call_id in item.call_ids), None)


@dataclasses.dataclass(slots=True)
class Everything:
    """WorkspacesTable as one scan shows it; slots items are not sorted, and those without ids may be missing."""

    workspaces: dict[str, Workspace] = dataclasses.field(default_factory=dict)
    slots: dict[str, list[SlotsItem]] = dataclasses.field(default_factory=dict)
    trunks: dict[str, Trunk] = dataclasses.field(default_factory=dict)
    switch: Switch = dataclasses.field(default_factory=Switch)

    def standing(self, workspace: Workspace) -> Standing:
        there = {item.number: item for item in self.slots.get(workspace.workspace_id, ())}
        numbers = range(max([workspace.slots_items, *(number + 1 for number in there)]))
        trunk = self.trunks.get(workspace.sip_trunk_id, Trunk(workspace.sip_trunk_id))
        slots = tuple(there.get(number, SlotsItem(number)) for number in numbers)
        return Standing(workspace, self.switch, trunk, slots)


@dataclasses.dataclass(frozen=True, slots=True)
class Permits:
    """Permits of one process to accept calls. minute: epoch minutes. taken: by all processes, as last read. left:
    of this process.
    """

    minute: int
    taken: int
    left: int = 0


class LimitStore:
    """The limits of one table. Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str, numbers_table: str | None = None) -> None:
        """numbers_table: for `standing` with a number."""
        self._table = WorkspacesTable(client, table)
        self._numbers_table = numbers_table

    # ── what a dial depends on ──────────────────────────────────────────────────────────────────

    def standing(self, workspace: Workspace, number: str | None = None, *, slots: bool = True) -> Standing:
        """The workspace, the switch, its trunk, its slots and a number's record: one consistent read.

        workspace: as last read, which tells the trunk and the number of slots items. number: the callee's (E.164).
        slots: whether they are read.
        """
        for _ in range(3):
            numbers = range(workspace.slots_items if slots else 0)
            keys = {
                self._table.name: [
                    {"workspaceId": key}
                    for key in (
                        workspace.workspace_id,
                        SWITCH,
                        _trunk_key(workspace.sip_trunk_id),
                        *(slots_key(workspace.workspace_id, item) for item in numbers),
                    )
                ]
            }
            if number is not None and self._numbers_table is not None:
                record = number_key(workspace.workspace_id, number)
                keys[self._numbers_table] = [{"id": record}, {"id": MARKER}]
            read = read_items(self._table.client, keys)
            found = {item["workspaceId"]: item for item in read[self._table.name]}
            item = found.get(workspace.workspace_id)
            current = Workspace.from_item(item) if item else None
            standing = Standing(
                current,
                Switch.from_item(found.get(SWITCH)),
                Trunk.from_item(workspace.sip_trunk_id, found.get(_trunk_key(workspace.sip_trunk_id))),
                tuple(_slots_item(n, found.get(slots_key(workspace.workspace_id, n))) for n in numbers),
            )
            if number is not None and self._numbers_table is not None:
                records = {item["id"]: item for item in read[self._numbers_table]}
                standing = dataclasses.replace(
                    standing,
                    number=NumberRecord.from_item(workspace.workspace_id, number, records.get(record)),
                    marked=MARKER in records,
                )
            if current is None or (
                current.sip_trunk_id == workspace.sip_trunk_id and current.slots_items <= workspace.slots_items
            ):
                return standing
            workspace = current
        raise StoreError(f"workspace {workspace.workspace_id} is changed again and again")

    def everything(self) -> Everything:
        """All workspaces with their slots, all trunks and the switch. Scans the whole table, eventually
        consistent.

        The workspaces lack their keys and secrets, which the reconciler may not read (template.yaml).
        """
        request: dict[str, Any] = {
            "TableName": self._table.name,
            "ProjectionExpression": ", ".join(f"#{name}" for name in SCANNED),
            "ExpressionAttributeNames": {f"#{name}": name for name in SCANNED},
            # Explicit, as the role's policy requires it (template.yaml).
            "Select": "SPECIFIC_ATTRIBUTES",
        }
        found = Everything()
        while True:
            with store_errors():
                page = self._table.client.scan(**request)
            for wire in page["Items"]:
                try:
                    _add(found, from_wire(wire))
                except (StoreError, KeyError, TypeError, ValueError):
                    # Only what it is about is left out: no other workspace's line waits for it.
                    logger.exception("unreadable item", extra={"workspace_id": wire["workspaceId"]["S"]})
                    count("UnreadableItems")
            if "LastEvaluatedKey" not in page:
                return found
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    # ── slots ───────────────────────────────────────────────────────────────────────────────────

    def take_slot(
        self,
        workspace_id: str,
        call_id: str,
        capacity: int,
        *,
        item: int = 0,
        admitted: bool = True,
        now_ms: int = 0,
    ) -> bool:
        """Adds the call to the ids of a slots item, if that has fewer than `capacity`. Idempotent.

        admitted: False for a call that was not admitted from the line: it gets no slot while others wait. now:
        epoch ms, used then.
        """
        room = "(attribute_not_exists(activeCalls) OR size(activeCalls) < :capacity)"
        values: dict[str, Any] = {":ids": {call_id}, ":id": call_id, ":capacity": capacity}
        if not admitted:
            room += " AND (attribute_not_exists(crowdedUntil) OR crowdedUntil < :now)"
            values[":now"] = now_ms
        return self._table.update_item(
            slots_key(workspace_id, item), "ADD activeCalls :ids", f"contains(activeCalls, :id) OR {room}", values
        )

    def note_crowded(self, workspace_id: str, item: int, until_ms: int, unless_ms: int) -> SlotsItem | None:
        """Stores that calls wait for a slot until `until` (epoch ms), unless it is stored until `unless` already.

        Returns the item as it is then; None when it was stored already.
        """
        request = self._table.update_request(
            slots_key(workspace_id, item),
            "SET crowdedUntil = :until",
            "attribute_not_exists(crowdedUntil) OR crowdedUntil < :unless",
            {":until": until_ms, ":unless": unless_ms},
        )
        try:
            with store_errors():
                answer = self._table.client.update_item(**request, ReturnValues="ALL_NEW")
        except ClientError:
            return None
        return _slots_item(item, from_wire(answer["Attributes"]))

    def free_slot(self, workspace_id: str, call_id: str, item: int = 0) -> SlotsItem | None:
        """Removes this call's id only. Idempotent. Returns the item as it was, None when the id was not in it."""
        request = self._table.update_request(
            slots_key(workspace_id, item), "DELETE activeCalls :ids", None, {":ids": {call_id}}
        )
        with store_errors():
            answer = self._table.client.update_item(**request, ReturnValues="ALL_OLD")
        before = _slots_item(item, from_wire(answer.get("Attributes", {})))
        return before if call_id in before.call_ids else None

    def slots(self, workspace_id: str, items: int) -> tuple[SlotsItem, ...]:
        """A workspace's slots items, consistent."""
        keys = [slots_key(workspace_id, number) for number in range(items)]
        found = self._table.read_many(keys)
        return tuple(_slots_item(number, found.get(key)) for number, key in enumerate(keys))

    def active_calls(self, workspace_id: str, items: int = 1) -> frozenset[str]:
        """The ids of the calls that hold a slot in one of the first `items` slots items."""
        return frozenset(call_id for item in self.slots(workspace_id, items) for call_id in item.call_ids)

    # ── the rate ────────────────────────────────────────────────────────────────────────────────

    def take_permits(self, workspace_id: str, minute: int, limit: int, before: Permits | None) -> Permits:
        """Takes a tenth of a minute's remaining permits, at least one; `left` is 0 when none remain.

        before: the same process's last result, so that a known minute costs one write. If a process whose clock is
        ahead has opened a later minute than `minute`, permits of that one are taken: the item's minute never goes
        back, so no minute ever yields more than `limit`. A write that is made twice, or whose response is lost,
        takes permits that stay unused.
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
            request = self._table.update_request(f"{workspace_id}#rate", update, condition, values)
            try:
                with store_errors():
                    answer = self._table.client.update_item(
                        **request, ReturnValues="ALL_NEW", ReturnValuesOnConditionCheckFailure="ALL_OLD"
                    )
            except ClientError as exc:
                # Another process took permits or opened the minute first: continue from its state.
                there: Any = exc.response.get("Item")
                item = from_wire(there or {})
                seen = Permits(item["epochMinute"], item["taken"]) if item else None
            else:
                return Permits(values[":minute"], from_wire(answer["Attributes"])["taken"], count)

    # ── trunks ──────────────────────────────────────────────────────────────────────────────────

    def trunk(self, trunk_id: str) -> Trunk:
        return Trunk.from_item(trunk_id, self._table.read(_trunk_key(trunk_id)))

    def reserve_trunk(self, trunk_id: str, gap_ms: int, now_ms: int, latest_ms: int) -> int | None:
        """Takes the trunk's next free moment for one INVITE. Returns it, epoch ms (`now` or later).

        Returns None and takes nothing when that is after `latest`: the caller could not use the moment.
        """
        key = _trunk_key(trunk_id)
        while True:
            if self._table.update_item(
                key,
                "SET nextFreeAt = :next",
                "attribute_not_exists(nextFreeAt) OR nextFreeAt <= :now",
                {":next": now_ms + gap_ms, ":now": now_ms},
            ):
                return now_ms
            free_at_ms = self.trunk(trunk_id).next_free_ms
            if free_at_ms > latest_ms:
                return None
            if self._table.update_item(
                key,
                "SET nextFreeAt = :next",
                "nextFreeAt = :seen",
                {":next": free_at_ms + gap_ms, ":seen": free_at_ms},
            ):
                return max(free_at_ms, now_ms)

    def note_trunk_fault(
        self, trunk_id: str, call_id: str, fault: str, first_stop_ms: int, longest_stop_ms: int, now_ms: int
    ) -> Trunk | None:
        """Counts a call that failed by the trunk's fault. Returns the trunk if that stopped it, else None.

        Idempotent for each call. A stopped trunk is not stopped again: those under way fail after it.
        """
        key = _trunk_key(trunk_id)
        self._table.update_item(
            key,
            "ADD faults :ids",
            "attribute_not_exists(faults) OR size(faults) < :most",
            {":ids": {call_id}, ":most": FAULTS_TO_STOP},
        )
        seen = self.trunk(trunk_id)
        if len(seen.faults) < FAULTS_TO_STOP or now_ms < seen.stopped_until_ms:
            return None
        until_ms = now_ms + min(first_stop_ms << min(seen.stops, 20), longest_stop_ms)
        stopped = self._table.update_item(
            key,
            "SET stops = :stops, stoppedAt = :now, stoppedUntil = :until, fault = :fault "
            "REMOVE probeUntil, probeCall",
            "attribute_not_exists(stoppedUntil) OR stoppedUntil = :seen",
            {
                ":stops": seen.stops + 1,
                ":now": now_ms,
                ":until": until_ms,
                ":fault": fault[:200],
                ":seen": seen.stopped_until_ms,
            },
        )
        return self.trunk(trunk_id) if stopped else None

    def claim_probe(self, seen: Trunk, call_id: str, until_ms: int, now_ms: int) -> bool:
        """Claims a trunk whose stop is over for the call that tries it, until `until` (epoch ms). Idempotent."""
        return self._table.update_item(
            _trunk_key(seen.trunk_id),
            "SET probeUntil = :until, probeCall = :id",
            "stoppedUntil = :seen AND (attribute_not_exists(probeUntil) OR probeUntil <= :now OR probeCall = :id)",
            {":until": until_ms, ":id": call_id, ":seen": seen.stopped_until_ms, ":now": now_ms},
        )

    def reset_trunk(self, trunk_id: str, seen: Trunk | None = None) -> bool:
        """Forgets the trunk's faults: it is in use again. False when there were none.

        seen: as read before the dial that succeeded. A stop since then is kept: the dial was made before it.
        """
        condition, values = "(attribute_exists(faults) OR attribute_exists(stops))", {}
        if seen is not None and seen.stopped_until_ms:
            condition += " AND stoppedUntil = :seen"
            values[":seen"] = seen.stopped_until_ms
        elif seen is not None:
            condition += " AND attribute_not_exists(stoppedUntil)"
        return self._table.update_item(
            _trunk_key(trunk_id),
            "REMOVE faults, stops, stoppedAt, stoppedUntil, probeUntil, probeCall, fault",
            condition,
            values,
        )

    # ── the table of numbers ────────────────────────────────────────────────────────────────────

    def numbers_noted(self) -> bool:
        """Whether this deployment's table of numbers has had its marker: it is never written again by itself."""
        return self._table.read(NUMBERS) is not None

    def note_numbers(self, now_ms: int) -> None:
        self._table.update_item(NUMBERS, "SET since = if_not_exists(since, :now)", None, {":now": now_ms})

    # ── the switch ──────────────────────────────────────────────────────────────────────────────

    def switch(self) -> Switch:
        return Switch.from_item(self._table.read(SWITCH))

    def pause(self, now_ms: int) -> None:
        """Stops all dialling. Idempotent: the first time is kept."""
        self._table.update_item(SWITCH, "SET pausedAt = if_not_exists(pausedAt, :now)", None, {":now": now_ms})

    def resume(self, now_ms: int) -> None:
        """Ends a pause and keeps its interval, which does not count against the calls' queue deadlines."""
        for _ in range(20):
            seen = self.switch()
            if seen.paused_at_ms is None:
                return
            if self._table.update_item(
                SWITCH,
                "SET pauses = :pauses REMOVE pausedAt",
                "pausedAt = :seen",
                {":pauses": seen.resumed(now_ms).pauses_item(), ":seen": seen.paused_at_ms},
            ):
                return
        raise StoreError("the switch is changed by others again and again")


def _trunk_key(trunk_id: str) -> str:
    return f"{TRUNK}{trunk_id}"


def _slots_item(number: int, item: dict[str, Any] | None) -> SlotsItem:
    item = item or {}
    return SlotsItem(number, frozenset(item.get("activeCalls", ())), item.get("crowdedUntil", 0))


def _add(found: Everything, item: dict[str, Any]) -> None:
    """Raises StoreError, KeyError, TypeError or ValueError when the item cannot be parsed."""
    key = item["workspaceId"]
    slots = slots_of_key(key)
    if slots is not None:
        found.slots.setdefault(slots[0], []).append(_slots_item(slots[1], item))
    elif key.startswith(TRUNK):
        trunk_id = key.removeprefix(TRUNK)
        found.trunks[trunk_id] = Trunk.from_item(trunk_id, item)
    elif key == SWITCH:
        found.switch = Switch.from_item(item)
    elif "#" not in key:
        found.workspaces[key] = Workspace.from_item(item)
