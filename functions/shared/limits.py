"""Limits: calls of a workspace at a time and in a minute, INVITEs of a trunk, and the switch that stops all calls.

Their items are described in workspaces_table.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, store_errors
from shared.workspaces_table import WorkspacesTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SWITCH = "#switch"


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

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._table = WorkspacesTable(client, table)

    # ── slots ───────────────────────────────────────────────────────────────────────────────────

    def take_slot(
        self, workspace_id: str, call_id: str, limit: int, *, waited: bool = True, now_ms: int = 0
    ) -> bool:
        """Adds the call to the active calls, if fewer than `limit` are active. Idempotent.

        waited: False for a call that has not waited yet: it gets no slot while others wait. now: epoch ms, used
        then.
        """
        room = "(attribute_not_exists(activeCalls) OR size(activeCalls) < :limit)"
        values: dict[str, Any] = {":ids": {call_id}, ":id": call_id, ":limit": limit}
        if not waited:
            room += " AND (attribute_not_exists(waitingUntil) OR waitingUntil < :now)"
            values[":now"] = now_ms
        return self._table.update_item(
            f"{workspace_id}#slots", "ADD activeCalls :ids", f"contains(activeCalls, :id) OR {room}", values
        )

    def note_waiting(self, workspace_id: str, until: int) -> None:
        """Stores that a call found no slot and asks again by `until` (epoch ms)."""
        self._table.update_item(
            f"{workspace_id}#slots",
            "SET waitingUntil = :until",
            "attribute_not_exists(waitingUntil) OR waitingUntil < :until",
            {":until": until},
        )

    def free_slot(self, workspace_id: str, call_id: str) -> None:
        """Idempotent; removes this call's id only."""
        self._table.update_item(f"{workspace_id}#slots", "DELETE activeCalls :ids", None, {":ids": {call_id}})

    def active_calls(self, workspace_id: str) -> frozenset[str]:
        item = self._table.read(f"{workspace_id}#slots")
        return frozenset((item or {}).get("activeCalls", ()))

    def slots(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Workspace id and active call ids of each workspace that has any. Scans the whole table, eventually
        consistent.
        """
        request: dict[str, Any] = {
            "TableName": self._table.name,
            "FilterExpression": "attribute_exists(activeCalls)",
            "ProjectionExpression": "workspaceId, activeCalls",
            # Explicit, as the role's policy requires it (template.yaml).
            "Select": "SPECIFIC_ATTRIBUTES",
        }
        while True:
            with store_errors():
                page = self._table.client.scan(**request)
            for found in page["Items"]:
                item = from_wire(found)
                yield item["workspaceId"].removesuffix("#slots"), frozenset(item["activeCalls"])
            if "LastEvaluatedKey" not in page:
                return
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

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

    # ── pacing ──────────────────────────────────────────────────────────────────────────────────

    def next_free(self, trunk_id: str) -> int:
        """Epoch ms from which the trunk may get its next INVITE; 0 if it never had one."""
        return int((self._table.read(f"trunk#{trunk_id}") or {}).get("nextFreeAt", 0))

    def reserve_trunk(self, trunk_id: str, gap_ms: int, now_ms: int, latest_ms: int) -> int | None:
        """Takes the trunk's next free moment for one INVITE. Returns it, epoch ms (`now` or later).

        Returns None and takes nothing when that is after `latest`: the caller could not use the moment.
        """
        key = f"trunk#{trunk_id}"
        while True:
            if self._table.update_item(
                key,
                "SET nextFreeAt = :next",
                "attribute_not_exists(nextFreeAt) OR nextFreeAt <= :now",
                {":next": now_ms + gap_ms, ":now": now_ms},
            ):
                return now_ms
            free_at_ms = self.next_free(trunk_id)
            if free_at_ms > latest_ms:
                return None
            if self._table.update_item(
                key,
                "SET nextFreeAt = :next",
                "nextFreeAt = :seen",
                {":next": free_at_ms + gap_ms, ":seen": free_at_ms},
            ):
                return max(free_at_ms, now_ms)

    # ── the switch ──────────────────────────────────────────────────────────────────────────────

    def paused(self) -> bool:
        """Whether an operator has stopped all dialling."""
        return self.paused_at_ms() is not None

    def paused_at_ms(self) -> int | None:
        """Epoch ms since when dialling is stopped; None when it is not."""
        paused_at_ms: int | None = (self._table.read(SWITCH) or {}).get("pausedAt")
        return paused_at_ms

    def pause(self, now_ms: int) -> None:
        """Stops all dialling. Idempotent: the first time is kept."""
        self._table.update_item(SWITCH, "SET pausedAt = if_not_exists(pausedAt, :now)", None, {":now": now_ms})

    def resume(self) -> None:
        self._table.update_item(SWITCH, "REMOVE pausedAt", None, {})
