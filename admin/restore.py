"""`admin restore seal`: restores calls from a backup and ends the open ones, so that none rings again.

A restored record lacks what happened since the backup (that its phone rang, was answered, or that the call ended).
So every call that is restored open ends `outcome_unknown`, by the same write as any other end: its event is in the
record and is delivered through the stream. Dialling must be paused meanwhile. A call accepted after the pause has
never been dialled: it is restored unchanged, and dialled when dialling is resumed.

Three consequences of a loss are handled:
- the index of what is due: a sealed call stays in it until the reconciler has hung up its room and freed its slot;
- the slots: those of calls without a record, or with a cleared one, are freed;
- the events: the receiver may have seen another event with the sequence of the end, so the end has a distinct id
  (`shared.call.event_id_of`).

If the command is interrupted at any point, repeating it does the rest.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from admin.target import CallsTable, Target
from admin.terminal import AdminError, Terminal
from shared.call import Call, Outcome, iso
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.durations import Durations
from shared.dynamo import from_wire, store_errors, to_wire
from shared.ending import end_call
from shared.table_keys import SHARDS

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Epoch ms later than every `checkAt`.
FOR_EVER = 2**53
WRITERS = 16


def seal(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, table = target.calls, target.calls_table
    if calls is None or table is None:
        raise AdminError("this needs the table of calls too: name the stack with --stack, or use --local")
    if arguments.restored == table.name:
        raise AdminError("that is the stack's own table: name the one into which the backup was restored")
    paused_at = target.limits.switch().paused_at_ms
    if paused_at is None:
        raise AdminError("dialling is not paused: `switch pause`, wait three minutes, then repeat this")
    terminal.confirm(
        f"Items missing from {table.name} are restored from {arguments.restored}. Calls accepted before "
        f"{iso(paused_at)} that are restored open end as outcome_unknown; calls still in progress are hung up.",
        "Go on?",
    )
    brought = bring_back(table, arguments.restored, paused_at)
    sealed = sum(_end(calls, call) for call in restored_and_open(calls))
    freed = free_lost_slots(target, calls)
    terminal.give(
        {"broughtBack": brought, "sealed": sealed, "slotsFreed": freed},
        f"{brought} items restored, {sealed} calls ended as outcome_unknown, {freed} slots of lost calls "
        "freed. `switch resume` resumes dialling.",
    )


def restored_and_open(calls: CallStore) -> Iterator[Call]:
    """The current records of restored calls that have not ended; all of them are in the index of what is due."""
    for shard in range(SHARDS):
        for page in calls.due(shard, FOR_EVER):
            found = calls.get_many(call_id for call_id, sort_key in page if sort_key == "CALL")
            yield from (call for call in found if call.restored_at_ms is not None and not call.ended)


def _end(calls: CallStore, call: Call) -> bool:
    """Whether this ended the call. The reconciler or an event of LiveKit's may end it first, with its outcome."""
    seen: Call | None = call
    while seen is not None and not seen.ended:
        outcome = Outcome("failed", "outcome_unknown", inferred=True)
        if end_call(calls, seen, outcome, Durations(), now_ms, report=_say_nothing) is not None:
            return True
        seen = calls.get(call.call_id)
    return False


def _say_nothing(call: Call) -> None:
    """Writes neither log line nor metric: stdout is for the command's result."""


def free_lost_slots(target: Target, calls: CallStore) -> int:
    """Frees the slots of calls without a record, or with one that is cleared already. Returns their number."""
    freed = 0
    for workspace in target.store.all():
        for item in target.limits.slots(workspace.workspace_id, workspace.slots_items):
            for call_id in sorted(item.call_ids):
                call = calls.get(call_id)
                if call is None or (call.ended and call.due_shard is None):
                    target.limits.free_slot(workspace.workspace_id, call_id, item.number)
                    freed += 1
    return freed


# ── what was lost ───────────────────────────────────────────────────────────────────────────────────


def bring_back(table: CallsTable, restored: str, paused_at: int) -> int:
    """Copies the items that the stack's own table lacks. Returns their number.

    Deliveries before calls: copying a call triggers the stream, which makes the missing deliveries.
    """
    copied = 0
    with ThreadPoolExecutor(WRITERS) as pool:
        for are_calls in (False, True):
            items = (_marked(item, paused_at) for item in _items(table.client, restored, calls=are_calls))
            # In portions, so that a large table is not read into memory.
            while portion := list(islice(items, 1000)):
                copied += sum(pool.map(functools.partial(_put_back, table), portion))
    return copied


def _items(client: DynamoDBClient, restored: str, *, calls: bool) -> Iterator[dict[str, Any]]:
    """The unexpired items of the restored table in DynamoDB's format: calls, or the rest. Raises StoreError."""
    request: dict[str, Any] = {
        "TableName": restored,
        "ConsistentRead": True,
        "FilterExpression": f"sk {'=' if calls else '<>'} :call "
        "AND (attribute_not_exists(expiresAt) OR expiresAt > :now)",
        "ExpressionAttributeValues": to_wire({":call": "CALL", ":now": now_ms() // 1000}),
    }
    while True:
        with store_errors():
            page = client.scan(**request)
        yield from page["Items"]
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def _put_back(table: CallsTable, item: dict[str, Any]) -> bool:
    """Writes an item unless its key exists: the existing item is newer. Returns whether it did. Raises
    StoreError.
    """
    try:
        with store_errors():
            table.client.put_item(TableName=table.name, Item=item, ConditionExpression="attribute_not_exists(pk)")
    except ClientError:
        return False
    return True


def _marked(item: dict[str, Any], paused_at: int) -> dict[str, Any]:
    """The item, with `restoredAt` if it is an open call that may have been dialled since the backup."""
    if item["sk"] != {"S": "CALL"}:
        return item
    call = Call.from_item(from_wire(item))
    if call.ended or call.created_at >= iso(paused_at):
        return item
    return item | to_wire({"restoredAt": now_ms()})
