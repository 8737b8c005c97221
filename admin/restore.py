"""`admin restore seal`: brings calls back from a backup and ends the open ones, so that none rings again.

What a restored record does not know (that its phone rang, that it was answered, that it is over) lies in what was
lost. So every call that comes back open ends `outcome_unknown`, by the same write as any other end: its event is
in the record and goes out by the stream. Dialling must be paused meanwhile. A call accepted after the pause has
never been dialled: it comes back as it was, and is dialled when dialling goes on.

Three things follow from a loss, and are seen to:
- the index of what is due: a sealed call stays in it until the reconciler has hung up its room and freed its slot;
- the slots: ids of calls that have no record any more, or a cleared one, are taken out, as nobody else would;
- the events: the end may fall on a sequence that the receiver has seen with another event in it, so its id is
  another (`shared.call.event_id`).

Dying at any point leaves a state in which the same command, repeated, does the rest.
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

# Later than anything that is due.
FOR_EVER = 2**53
WRITERS = 16


def seal(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    calls, table = target.calls, target.calls_table
    if calls is None or table is None:
        raise AdminError("this needs the table of calls too: name the stack with --stack, or use --local")
    if arguments.restored == table.name:
        raise AdminError("that is the stack's own table: name the one into which the backup was restored")
    paused_at = target.limits.paused_at()
    if paused_at is None:
        raise AdminError("dialling is not paused: `switch pause`, wait three minutes, then repeat this")
    terminal.confirm(
        f"What {table.name} has lost comes back from {arguments.restored}. Calls accepted before "
        f"{iso(paused_at)} that come back open end as outcome_unknown; phones that still talk are hung up.",
        "Go on?",
    )
    brought = bring_back(table, arguments.restored, paused_at)
    sealed = sum(_end(calls, call) for call in restored_and_open(calls))
    freed = free_lost_slots(target, calls)
    terminal.give(
        {"broughtBack": brought, "sealed": sealed, "slotsFreed": freed},
        f"{brought} items brought back, {sealed} calls ended as outcome_unknown, {freed} slots of lost calls "
        "freed. `switch resume` dials again.",
    )


def restored_and_open(calls: CallStore) -> Iterator[Call]:
    """As they stand. Every call that has not ended is in the index of what is due."""
    for shard in range(SHARDS):
        for page in calls.due(shard, FOR_EVER):
            found = calls.get_many(call_id for call_id, sort_key in page if sort_key == "CALL")
            yield from (call for call in found if call.restoredAt is not None and not call.ended)


def _end(calls: CallStore, call: Call) -> bool:
    """Whether this ended it. The reconciler or an event of LiveKit's may know better, and come first."""
    seen: Call | None = call
    while seen is not None and not seen.ended:
        outcome = Outcome("failed", "outcome_unknown", inferred=True)
        if end_call(calls, seen, outcome, Durations(), now_ms, report=_say_nothing) is not None:
            return True
        seen = calls.get(call.callId)
    return False


def _say_nothing(call: Call) -> None:
    """Log lines and metrics are of the functions; stdout is the command's."""


def free_lost_slots(target: Target, calls: CallStore) -> int:
    """Frees the slots that nobody else will: their calls have no record, or one that is cleared already."""
    freed = 0
    for workspace in target.store.all():
        for call_id in sorted(target.limits.active_calls(workspace.workspaceId)):
            call = calls.get(call_id)
            if call is None or (call.ended and call.dueShard is None):
                target.limits.free_slot(workspace.workspaceId, call_id)
                freed += 1
    return freed


# ── what was lost ───────────────────────────────────────────────────────────────────────────────────


def bring_back(table: CallsTable, restored: str, paused_at: int) -> int:
    """Copies what the stack's own table does not have. Returns how many items.

    Deliveries before calls: the copy of a call goes through the stream, which makes the deliveries it lacks.
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
    """Of the restored table what has not expired, as on the wire: calls, or the rest. Raises StoreError."""
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
    """Writes an item as it is, unless there is one of its key: that is newer, and stays. Raises StoreError."""
    try:
        with store_errors():
            table.client.put_item(TableName=table.name, Item=item, ConditionExpression="attribute_not_exists(pk)")
    except ClientError:
        return False
    return True


def _marked(item: dict[str, Any], paused_at: int) -> dict[str, Any]:
    """An open call that may have been dialled carries from its first moment that it was restored."""
    if item["sk"] != {"S": "CALL"}:
        return item
    call = Call.from_item(from_wire(item))
    if call.ended or call.createdAt >= iso(paused_at):
        return item
    return item | to_wire({"restoredAt": now_ms()})
