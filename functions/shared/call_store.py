"""Every read and write of calls in CallsTable.

Every change of status is one conditional UpdateItem that sets the status and appends the matching event: a state
without its event cannot exist. A failed condition is a result, not an error: each write returns `Write(won, call)`
with the call's current state. When the SDK sends a request twice (the first response was lost), the second fails
its condition on an item that already carries this writer's token: that counts as won.
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from shared.call import CALL_ATTRIBUTES, TRANSITIONS, Call, Outcome, Status, WaitingFor, compact, event
from shared.delivery_store import DELIVERY_ATTRIBUTES, Delivery, sort_key
from shared.dynamo import from_wire, read_items, store_errors, to_wire, write
from shared.errors import StoreError, StoreUnclearError
from shared.table_keys import call_key, due_shard, expires_at
from shared.telemetry import count, logger

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Conditions of writes; `:now` is the caller's clock, epoch milliseconds.
QUEUED = "#status = :queued"
NO_LIVE_LEASE = "(attribute_not_exists(leaseUntil) OR leaseUntil < :now)"
NOT_WAITING = "(attribute_not_exists(waitUntil) OR waitUntil <= :now)"
# An admitted call stays in the index, in another partition, until its lease (line.py).
NOT_IN_LINE = "(attribute_not_exists(lineOf) OR attribute_exists(admittedAt))"
NOT_ADMITTED = "attribute_not_exists(admittedAt)"
NO_LEASE = "attribute_not_exists(leaseId)"
LEASE_MINE = "leaseId = :lease"
NO_HANGUP = "attribute_not_exists(hangup)"

# DynamoDB refused a request for its rate: nothing was written.
THROTTLED = ("ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded")

# Limits of an agent's reports per call: with 32 KiB of context the item stays far below DynamoDB's 400 KB.
MAXIMUM_REPORTS = 50
MAXIMUM_REPORTS_BYTES = 128 * 1024

# Keys of one shard that are read per request: small, so that work on the first ones begins soon.
DUE_PAGE = 25

# Due items are read without the attributes that no decision needs and whose size clients, agents and receivers
# determine: a few hundred large items of one tenant would fill the reconciler's memory.
_KEY = ("pk", "sk")
_NOT_OF_A_DUE_CALL = frozenset({"events", "dynamicVariables", "metadata", "callbackUrl", "requestHash"})
_OF_A_DUE_CALL = (*_KEY, *(name for name in CALL_ATTRIBUTES.values() if name not in _NOT_OF_A_DUE_CALL))
_OF_A_DUE_DELIVERY = (*_KEY, *(name for name in DELIVERY_ATTRIBUTES.values() if name != "attempts"))

# The reason stored when a room finished without an event about the phone itself.
ROOM_CLOSED = "ROOM_CLOSED"


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """won: the write was made. call: its current state; None when there is no such call, and after a won write
    that does not return the item (`postpone`, `note_missing`, `leave_due`)."""

    won: bool
    call: Call | None


@dataclasses.dataclass(frozen=True, slots=True)
class Fence:
    """won: the call is fenced for this lease. again: nothing was written, as another process wrote the number or
    the call at the same time: decide anew. call: its current state."""

    won: bool
    call: Call | None
    again: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """The current state of due items, without large attributes: calls lack events, context and metadata,
    deliveries lack attempts. unreadable: keys of items that cannot be parsed."""

    calls: list[Call]
    deliveries: list[Delivery]
    unreadable: list[tuple[str, str]]


class CallStore:
    """The calls of one table. Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def create(self, call: Call) -> Write:
        """Writes a new call. Lost when a call with that id exists, which is returned."""
        item = call_key(call.call_id) | to_wire(call.to_item() | {"dueShard": due_shard(call.call_id)})
        try:
            write(
                self._client.put_item,
                TableName=self._table,
                Item=item,
                ConditionExpression="attribute_not_exists(pk)",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as exc:
            there = _call(exc.response.get("Item"))
            return Write(there is not None and there.job_id == call.job_id, there)
        return Write(True, call)

    def get(self, call_id: str) -> Call | None:
        """The call's current state (a consistent read)."""
        with store_errors():
            answer = self._client.get_item(TableName=self._table, Key=call_key(call_id), ConsistentRead=True)
        return _call(answer.get("Item"))

    def get_beside(
        self, call_id: str, table: str, key: dict[str, Any]
    ) -> tuple[Call | None, dict[str, Any] | None]:
        """A call and an item of another table: one consistent read."""
        mine = {"pk": f"CALL#{call_id}", "sk": "CALL"}
        found = read_items(self._client, {self._table: [mine], table: [key]})
        calls, others = found[self._table], found[table]
        return Call.from_item(calls[0]) if calls else None, others[0] if others else None

    def page_of_workspace(
        self,
        workspace_id: str,
        *,
        limit: int,
        agent: str | None = None,
        to: str | None = None,
        room: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        start: tuple[str, str] | None = None,
    ) -> tuple[list[Call], tuple[str, str] | None]:
        """Calls of one workspace, newest first, and where the next page starts (createdAt, partition key).

        `limit` index entries are read; filters may leave fewer. Times are ISO 8601 with milliseconds, both
        bounds included.
        """
        values = {":workspace": workspace_id, ":from": created_after or "0", ":until": created_before or "9"}
        names, filters = {}, []
        for name, value in (("callAgentId", agent), ("to", to), ("roomName", room)):
            if value is not None:
                filters.append(f"#{name} = :{name}")
                names[f"#{name}"] = name
                values[f":{name}"] = value
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": "byWorkspace",
            "KeyConditionExpression": "workspaceId = :workspace AND createdAt BETWEEN :from AND :until",
            "ExpressionAttributeValues": to_wire(values),
            "ScanIndexForward": False,
            "Limit": limit,
        }
        if filters:
            request |= {"FilterExpression": " AND ".join(filters), "ExpressionAttributeNames": names}
        if start is not None:
            request["ExclusiveStartKey"] = to_wire(
                {"workspaceId": workspace_id, "createdAt": start[0], "pk": start[1], "sk": "CALL"}
            )
        with store_errors():
            answer = self._client.query(**request)
        call_ids = [item["pk"]["S"].removeprefix("CALL#") for item in answer["Items"]]
        found = {call.call_id: call for call in self.get_many(call_ids)}
        last = answer.get("LastEvaluatedKey")
        return (
            [found[call_id] for call_id in call_ids if call_id in found],
            (last["createdAt"]["S"], last["pk"]["S"]) if last else None,
        )

    # ── a queued call ───────────────────────────────────────────────────────────────────────────

    def take_lease(self, call_id: str, lease: str, until_ms: int, now_ms: int, slots_item: int = 0) -> Write:
        """Claims a queued call for one process. Status stays `queued`: nothing has rung.

        slots_item: the one in which the process takes the call's slot next. Lost while the call waits, so that a
        duplicate message does not start a second chain of messages, and does not overtake the line.
        """
        return self._update(
            call_id,
            "SET leaseId = :lease, leaseUntil = :until, checkAt = :until, slotsItem = :item, "
            "attempts = if_not_exists(attempts, :zero) + :one REMOVE waitUntil, waitingFor, lineOf",
            f"{QUEUED} AND {NO_LIVE_LEASE} AND {NOT_WAITING} AND {NOT_IN_LINE}",
            {":lease": lease, ":until": until_ms, ":now": now_ms, ":item": slots_item, ":zero": 0, ":one": 1},
            mine=lambda call: call.lease_id == lease,
        )

    def note_slots_item(self, call_id: str, lease: str, slots_item: int) -> Write:
        """Stores, before it is tried, that a leased call's slot is taken from another item."""
        return self._update(
            call_id,
            "SET slotsItem = :item",
            f"{QUEUED} AND {LEASE_MINE}",
            {":item": slots_item, ":lease": lease},
            mine=lambda call: call.slots_item == slots_item and call.lease_id == lease,
        )

    def wait(
        self,
        call_id: str,
        waiting_for: WaitingFor,
        wait_until_ms: int,
        check_at_ms: int,
        now_ms: int,
        *,
        lease: str | None = None,
    ) -> Write:
        """Makes a queued call wait for a delayed message until `wait_until` (epoch ms) and releases its lease. It
        keeps its slot.

        lease: the caller's; None when the call has no live lease, then the first writer wins, so that a duplicate
        message does not start a second chain of messages.
        """
        values: dict[str, Any] = {":why": waiting_for, ":wait": wait_until_ms, ":check": check_at_ms}
        if lease is None:
            values[":now"] = now_ms
        else:
            values[":lease"] = lease
        return self._update(
            call_id,
            "SET waitUntil = :wait, waitingFor = :why, checkAt = :check REMOVE leaseId, leaseUntil",
            f"{QUEUED} AND "
            + (f"{NO_LIVE_LEASE} AND {NOT_WAITING} AND {NOT_IN_LINE}" if lease is None else LEASE_MINE),
            values,
            mine=lambda call: call.wait_until_ms == wait_until_ms and call.lease_id is None,
        )

    # ── the line ────────────────────────────────────────────────────────────────────────────────

    def enter_line(
        self,
        call_id: str,
        line_of: str,
        turn: str,
        waiting_for: WaitingFor,
        check_at_ms: int,
        now_ms: int,
        *,
        lease: str | None = None,
        uncount: bool = False,
        seen: Call | None = None,
    ) -> Write:
        """Puts a queued call into the line and releases its lease. It holds no slot: a process that may have taken
        one frees it first, under the lease.

        seen: the call as it was read; lost when it has been given other times since (`reschedule`).

        lease: the caller's; None when no process has leased the call since it last held no slot, then the first
        writer wins. uncount: take back the attempt that the lease counted, as it did not reach LiveKit. check_at:
        the call's deadline; nothing looks at it before.
        """
        values: dict[str, Any] = {":line": line_of, ":turn": turn, ":why": waiting_for, ":check": check_at_ms}
        counted = ""
        if lease is None:
            values[":now"] = now_ms
        else:
            values[":lease"] = lease
        if uncount:
            counted = ", attempts = attempts - :one"
            values[":one"] = 1
        schedule, times = _schedule_as(seen) if seen is not None else ("", {})
        return self._update(
            call_id,
            f"SET lineOf = :line, turn = :turn, waitingFor = :why, checkAt = :check{counted} "
            "REMOVE leaseId, leaseUntil, waitUntil, admittedAt, admission, slotsItem",
            f"{QUEUED} AND "
            + (
                f"{NO_LEASE} AND {NOT_WAITING} AND {NOT_IN_LINE} AND attribute_not_exists(slotsItem)"
                if lease is None
                else LEASE_MINE
            )
            + (f" AND {schedule}" if schedule else ""),
            values | times,
            mine=lambda call: call.in_line and call.turn == turn and call.lease_id is None,
        )

    def admit(self, call_id: str, line_of: str, turn: str, admitted: str, check_at_ms: int, now_ms: int) -> Write:
        """Claims a call of the line, for the one process that then sends its message: it leaves the partition of
        those that wait for that of those that are admitted (`admitted`).

        line_of, turn: as the index gave them. Lost when the call has left that place, or is leased: the caller
        goes on to the next.
        """
        # Two processes may claim it in the same millisecond.
        token = secrets.token_hex(8)
        return self._update(
            call_id,
            "SET lineOf = :admitted, admittedAt = :now, admission = :token, checkAt = :check "
            "REMOVE leaseId, leaseUntil",
            f"{QUEUED} AND {NO_LIVE_LEASE} AND lineOf = :line AND turn = :turn",
            {
                ":line": line_of,
                ":turn": turn,
                ":admitted": admitted,
                ":token": token,
                ":check": check_at_ms,
                ":now": now_ms,
            },
            mine=lambda call: call.admission == token,
        )

    def leave_line(self, call_id: str, line_of: str) -> Write:
        """Removes the entry of a call that is not queued any more: an earlier version's writes leave it there."""
        return self._update(
            call_id,
            "REMOVE lineOf",
            "#status <> :queued AND lineOf = :line",
            {":line": line_of},
            mine=lambda call: call.line_of is None,
        )

    def reschedule(self, seen: Call, placed: Call, now_ms: int) -> Write:
        """Gives a queued call that has neither a live lease nor a slot other times, and the place in which it
        waits for them (scheduling.place).

        seen: as it was read. Lost when a process has leased, admitted or placed it since.
        """
        schedule, values = _schedule_as(seen)
        where, place = _as_read(
            ("lineOf", ":line", seen.line_of),
            ("turn", ":turn", seen.turn),
            ("admittedAt", ":admitted", seen.admitted_at_ms),
        )
        stored = {
            "waitUntil": placed.wait_until_ms or None,
            "waitingFor": placed.waiting_for,
            "lineOf": placed.line_of,
            "turn": placed.turn,
            "checkAt": placed.check_at_ms,
        }
        gone = ("admittedAt", "admission", "leaseId", "leaseUntil")
        update, new = _assignments(_times(placed, now_ms) | stored | dict.fromkeys(gone))
        return self._update(
            seen.call_id,
            update,
            f"{QUEUED} AND {NO_LIVE_LEASE} AND attribute_not_exists(slotsItem) AND {schedule} AND {where}",
            {":now": now_ms} | values | place | new,
            mine=lambda call: (
                (call.scheduled_at_ms, call.expires_at_ms, call.wait_until_ms, call.turn, call.check_at_ms)
                == (
                    placed.scheduled_at_ms,
                    placed.expires_at_ms,
                    placed.wait_until_ms,
                    placed.turn,
                    placed.check_at_ms,
                )
                and call.lease_id is None
            ),
        )

    def change_times(self, seen: Call, changed: Call, now_ms: int) -> Write:
        """Gives a queued call other times while a process holds its lease, or it holds a slot: that process finds
        them changed before it fences (`fence`), and so does the call's next message.

        seen: as it was read. Lost when a process has leased it or put it into the line since: its turn would stay.
        """
        schedule, values = _schedule_as(seen)
        held, holder = _as_read(
            ("leaseId", ":lease", seen.lease_id),
            ("lineOf", ":line", seen.line_of),
            ("slotsItem", ":item", seen.slots_item),
        )
        update, new = _assignments(_times(changed, now_ms))
        return self._update(
            seen.call_id,
            update,
            f"{QUEUED} AND {schedule} AND {held}",
            values | holder | new,
            mine=lambda call: (
                call.status == "queued"
                and (call.lease_id, call.line_of, call.slots_item)
                == (seen.lease_id, seen.line_of, seen.slots_item)
                and (call.scheduled_at_ms, call.expires_at_ms, call.queue_deadline_ms)
                == (changed.scheduled_at_ms, changed.expires_at_ms, changed.queue_deadline_ms)
            ),
        )

    def hold(self, seen: Call, lease: str, until_ms: int, now_ms: int) -> Write:
        """Leases a call that waits in the line without admitting it, so that no worker takes a slot for it while a
        slot that it should not hold is freed. `enter_line` with this lease puts it back.
        """
        return self._update(
            seen.call_id,
            "SET leaseId = :lease, leaseUntil = :until, checkAt = :until",
            f"{QUEUED} AND {NO_LIVE_LEASE} AND lineOf = :line AND turn = :turn AND {NOT_ADMITTED}",
            {":lease": lease, ":until": until_ms, ":now": now_ms, ":line": seen.line_of, ":turn": seen.turn},
            mine=lambda call: call.lease_id == lease,
        )

    def line(self, line_of: str, until_ms: int, limit: int, from_ms: int = 0) -> list[tuple[str, str]]:
        """The first entries (call id, turn) of a partition of the index `line` whose turn comes from `from` to
        `until` (epoch ms), at most `limit`. Eventually consistent.
        """
        if until_ms < from_ms:
            return []
        with store_errors():
            answer = self._client.query(
                TableName=self._table,
                IndexName="line",
                KeyConditionExpression="lineOf = :line AND turn BETWEEN :start AND :end",
                ExpressionAttributeValues=to_wire(
                    {":line": line_of, ":start": f"{from_ms:013}", ":end": f"{until_ms + 1:013}"}
                ),
                Limit=limit,
            )
        return [(item["pk"]["S"].removeprefix("CALL#"), item["turn"]["S"]) for item in answer["Items"]]

    def count_line(self, line_of: str, pages: int) -> tuple[int, bool]:
        """The number of entries of a partition of the index `line`, and whether there are more: at most so many
        pages of a megabyte (about 8,000 entries) are counted. Eventually consistent.
        """
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": "line",
            "KeyConditionExpression": "lineOf = :line",
            "ExpressionAttributeValues": to_wire({":line": line_of}),
            "Select": "COUNT",
        }
        counted = 0
        for _ in range(pages):
            with store_errors():
                answer = self._client.query(**request)
            counted += answer["Count"]
            if "LastEvaluatedKey" not in answer:
                return counted, False
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        return counted, True

    def fence(
        self,
        seen: Call,
        room_sid: str,
        from_number: str | None,
        receipt: list[dict[str, Any]],
        number_write: dict[str, Any],
        token: str,
        now_ms: int,
        give_up: Callable[[], bool],
    ) -> Fence:
        """`queued` → `dialing`, in one transaction with the number's item (numbers.ring_write). From here on no
        process dials this call again.

        seen: with the caller's lease. receipt: what let it ring. token: DynamoDB's ClientRequestToken, of this
        decision alone: the same request is repeated with it while its outcome is unknown, until `give_up` returns
        True. Raises StoreUnclearError then: the reconciler finds out.
        """
        lease = seen.lease_id
        schedule, times = _schedule_as(seen)
        entry = event("call.dialing", now_ms, **{"from": from_number}, gates=compact(receipt))
        update = self._transition_request(
            seen.call_id,
            "queued",
            "dialing",
            entry,
            "dialedAt = :now, roomSid = :room",
            f"{LEASE_MINE} AND leaseUntil > :now AND {NO_HANGUP} AND {schedule}",
            {":lease": lease, ":room": room_sid, ":now": now_ms} | times,
        )
        items: Any = [{"Update": update | {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}}, number_write]
        fenced = dataclasses.replace(
            seen, status="dialing", events=(*seen.events, entry), dialed_at_ms=now_ms, room_sid=room_sid
        )
        while True:
            try:
                with store_errors():
                    self._client.transact_write_items(TransactItems=items, ClientRequestToken=token)
            except ClientError as exc:
                of_call, *_ = exc.response.get("CancellationReasons") or [{}]
                if of_call.get("Code") != "ConditionalCheckFailed":
                    # The number was changed, another transaction is under way, or DynamoDB is busy.
                    return Fence(won=False, call=seen, again=True)
                there = _call(of_call.get("Item"))
                # A copy of an earlier request may have been executed late.
                mine = there is not None and there.status == "dialing" and there.lease_id == lease
                return Fence(won=mine, call=there)
            except StoreError as exc:
                unclear = isinstance(exc, StoreUnclearError) or str(exc) == "TransactionInProgressException"
                if not unclear:
                    if str(exc) in THROTTLED:
                        return Fence(won=False, call=seen, again=True)
                    raise
                if give_up():
                    raise StoreUnclearError(str(exc)) from exc
                time.sleep(random.uniform(0.02, 0.1))
            else:
                return Fence(won=True, call=fenced)

    # ── a fenced call ───────────────────────────────────────────────────────────────────────────

    def unfence(
        self,
        call_id: str,
        lease: str,
        waiting_for: WaitingFor,
        wait_until_ms: int,
        check_at_ms: int,
        now_ms: int,
    ) -> Write:
        """`dialing` → `queued`, allowed only while no event of LiveKit's has shown a phone: nothing has rung."""
        return self._transition(
            call_id,
            "dialing",
            "queued",
            event("call.queued", now_ms),
            "waitUntil = :wait, waitingFor = :why, checkAt = :check",
            f"{LEASE_MINE} AND {NO_HANGUP} AND attribute_not_exists(#left) AND attribute_not_exists(phoneSeenAt)",
            {":lease": lease, ":wait": wait_until_ms, ":why": waiting_for, ":check": check_at_ms},
            remove="leaseId, leaseUntil, roomSid, dialedAt",
            mine=lambda call: call.status == "queued" and call.wait_until_ms == wait_until_ms,
        )

    def answered(
        self, call_id: str, lease: str, check_at_ms: int, now_ms: int, *, inferred: bool = False
    ) -> Write:
        """`dialing` → `in_progress`, unless a hang-up was asked for. lease: as held, or as read. inferred: the
        phone was answered at an unknown time before `now`.
        """
        return self._transition(
            call_id,
            "dialing",
            "in_progress",
            event("call.answered", now_ms, inferred=inferred or None),
            "answeredAt = :now, checkAt = :check",
            f"{LEASE_MINE} AND {NO_HANGUP}",
            {":lease": lease, ":now": now_ms, ":check": check_at_ms},
            remove="missingSince",
            mine=lambda call: call.status == "in_progress" and call.answered_at_ms == now_ms,
        )

    def note_joined(self, seen: Call, at: int) -> Write:
        """Stores when LiveKit reported the phone in the room (epoch ms): the dial cannot be un-fenced any more.

        Lost when it is stored already, or when the call has been fenced anew since it was read.
        """
        return self._update(
            seen.call_id,
            "SET phoneSeenAt = :at",
            "#status = :dialing AND roomSid = :room AND attribute_not_exists(phoneSeenAt)",
            {":at": at, ":dialing": "dialing", ":room": seen.room_sid},
            mine=lambda call: call.phone_seen_at_ms == at,
        )

    def note_agent_left(self, seen: Call, now_ms: int) -> Write:
        """Stores since when (epoch ms) the agent of a fenced call is absent; an earlier value is kept."""
        return self._update(
            seen.call_id,
            "SET agentMissingSince = if_not_exists(agentMissingSince, :now)",
            "#status = :seen AND roomSid = :room",
            {":now": now_ms, ":seen": seen.status, ":room": seen.room_sid},
        )

    def note_left(self, seen: Call, left: dict[str, Any]) -> Write:
        """Stores the first event that says why the phone's participant left while the dial is under way.

        ROOM_CLOSED says nothing of the phone: a later event replaces it. Lost when the call has been fenced anew
        since it was read: the event belongs to another room.
        """
        return self._update(
            seen.call_id,
            "SET #left = :left",
            "#status = :dialing AND roomSid = :room AND (attribute_not_exists(#left) OR #left.reason = :closed)",
            {":left": left, ":dialing": "dialing", ":room": seen.room_sid, ":closed": ROOM_CLOSED},
            mine=lambda call: call.phone_left == left,
        )

    def note_missing(self, seen: Call, check_at_ms: int, **since: int | None) -> Write:
        """Stores what was absent at LiveKit: `phone_missing_since_ms`, `agent_missing_since_ms`; None removes it.

        Lost when another process has moved `checkAt` since: a request to hang up makes the call due at once, and
        that must not be overwritten.
        """
        stored = {CALL_ATTRIBUTES[field]: value for field, value in since.items()}
        assigned = {name: value for name, value in stored.items() if value is not None}
        removed = [name for name, value in stored.items() if value is None]
        return self._update(
            seen.call_id,
            f"SET checkAt = :check{''.join(f', {name} = :{name}' for name in assigned)}"
            + (f" REMOVE {', '.join(removed)}" if removed else ""),
            "#status = :seen AND checkAt = :was",
            {
                ":check": check_at_ms,
                ":seen": seen.status,
                ":was": seen.check_at_ms,
                **{f":{name}": value for name, value in assigned.items()},
            },
            item_back=False,
        )

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def end(self, seen: Call, outcome: Outcome, check_at_ms: int, now_ms: int) -> Write:
        """Ends a call whose status, lease and presence of a request to hang up are still those of `seen`, and its
        times if it ends as expired.

        A lost write returns the current call, so that the caller can decide again. The record expires 30 days
        later; it stays due until room and slot are cleared. Raises ValueError when TRANSITIONS lacks this end.
        """
        condition = f"attribute_{'not_' if seen.hangup is None else ''}exists(hangup)"
        values: dict[str, Any] = {
            ":ended": now_ms,
            ":check": check_at_ms,
            ":expires": expires_at(now_ms),
        }
        if seen.lease_id is None:
            condition += f" AND {NO_LEASE}"
        else:
            condition += f" AND {LEASE_MINE}"
            values[":lease"] = seen.lease_id
        if outcome.status == "expired":
            # Its times may have been moved since it was read.
            schedule, times = _schedule_as(seen)
            condition += f" AND {schedule} AND queueDeadline = :deadline"
            values |= times | {":deadline": seen.queue_deadline_ms}
        return self._transition(
            seen.call_id,
            seen.status,
            outcome.status,
            event(
                "call.ended",
                now_ms,
                status=outcome.status,
                reason=outcome.reason,
                retryable=outcome.retryable,
                sipStatusCode=outcome.sip_status_code,
                inferred=outcome.inferred or None,
                restored=seen.restored_at_ms is not None or None,
            ),
            "endedAt = :ended, checkAt = :check, expiresAt = :expires",
            condition,
            values,
            remove="waitUntil, waitingFor, lineOf, missingSince, agentMissingSince",
            mine=lambda call: call.ended_at_ms == now_ms and call.end_event.get("reason") == outcome.reason,
        )

    def ask_to_hang_up(self, seen: Call, reason: str, now_ms: int) -> Write:
        """Stores a request to hang up a fenced call, unless there is one; the reconciler repeats it until it is
        done.
        """
        return self._update(
            seen.call_id,
            "SET hangup = :hangup, checkAt = :now",
            f"#status = :seen AND {NO_HANGUP}",
            {":hangup": {"reason": reason, "at": now_ms}, ":seen": seen.status, ":now": now_ms},
            mine=lambda call: call.hangup == {"reason": reason, "at": now_ms},
        )

    def note_orphan(self, call_id: str) -> Write:
        """Stores that the room was an orphan: its agent may recreate it after it closed."""
        return self._update(call_id, "SET orphanRoom = :yes", "attribute_exists(pk)", {":yes": True})

    def leave_due(self, call_id: str) -> Write:
        """Takes an ended call, whose room and slot are cleared, out of the index of what is due."""
        return self._update(
            call_id,
            "REMOVE dueShard, checkAt",
            "attribute_exists(endedAt)",
            {},
            mine=lambda call: call.ended and call.due_shard is None,
            item_back=False,
        )

    def postpone(self, seen: Call, check_at_ms: int) -> Write:
        """Sets `checkAt`, unless another process has changed it since the call was read."""
        return self._update(
            seen.call_id,
            "SET checkAt = :check",
            "#status = :seen AND checkAt = :was",
            {":check": check_at_ms, ":seen": seen.status, ":was": seen.check_at_ms},
            mine=lambda call: call.check_at_ms == check_at_ms,
            item_back=False,
        )

    def stop_webhooks(self, call_id: str, now_ms: int) -> None:
        """Stores that the receiver wants no more webhooks of this call; an earlier time is kept."""
        self._update(
            call_id,
            "SET webhooksStoppedAt = if_not_exists(webhooksStoppedAt, :now)",
            "attribute_exists(pk)",
            {":now": now_ms},
        )

    # ── what the agent reports ──────────────────────────────────────────────────────────────────

    def append_report(
        self, call_id: str, room: str, report_id: str, report: dict[str, Any], size: int, *, ended_since_ms: int
    ) -> Write:
        """Appends an agent's event to a call of this room that has not ended before `ended_since` (epoch ms).

        size: bytes that count against the call's limit. Also lost when the report exists already or a limit is
        reached. Only this write checks the limits, so they never refuse a `call.*` event.
        """
        return self._update(
            call_id,
            "SET events = list_append(events, :event), reportBytes = if_not_exists(reportBytes, :zero) + :size "
            "ADD reportIds :ids",
            "roomName = :room AND (attribute_not_exists(endedAt) OR endedAt >= :since)"
            " AND (attribute_not_exists(reportIds)"
            " OR (size(reportIds) < :most AND NOT contains(reportIds, :id)))"
            " AND (attribute_not_exists(reportBytes) OR reportBytes <= :left)",
            {
                ":event": [report | {"reportId": report_id}],
                ":zero": 0,
                ":size": size,
                ":ids": {report_id},
                ":room": room,
                ":since": ended_since_ms,
                ":most": MAXIMUM_REPORTS,
                ":id": report_id,
                ":left": MAXIMUM_REPORTS_BYTES - size,
            },
        )

    # ── what is due ─────────────────────────────────────────────────────────────────────────────

    def due(self, shard: int, now_ms: int) -> Iterator[list[tuple[str, str]]]:
        """Pages of (call id, sort key) of one shard that were due by `now`, oldest first.

        The index may be stale: decide on a consistent read of the item.
        """
        request: dict[str, Any] = {
            "TableName": self._table,
            "IndexName": "due",
            "KeyConditionExpression": "dueShard = :shard AND checkAt <= :now",
            "ExpressionAttributeValues": to_wire({":shard": shard, ":now": now_ms}),
            "Limit": DUE_PAGE,
        }
        while True:
            with store_errors():
                answer = self._client.query(**request)
            yield [(item["pk"]["S"].removeprefix("CALL#"), item["sk"]["S"]) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def read_due(self, keys: list[tuple[str, str]]) -> Due:
        """The items with these keys: consistent reads, without large attributes."""
        due = Due([], [], [])
        calls = [key for key in keys if key[1] == "CALL"]
        others = [key for key in keys if key[1] != "CALL"]
        # Two requests: both kinds have `attempts`, a number in a call and a large list in a delivery.
        for found in self._items(calls, _OF_A_DUE_CALL):
            try:
                due.calls.append(_due_call(from_wire(found)))
            except _UNREADABLE:
                due.unreadable.append(_unreadable(found))
        for found in self._items(others, _OF_A_DUE_DELIVERY):
            try:
                due.deliveries.append(_due_delivery(from_wire(found)))
            except _UNREADABLE:
                due.unreadable.append(_unreadable(found))
        return due

    def put_off(self, key: tuple[str, str], check_at_ms: int, now_ms: int) -> None:
        """Sets `checkAt` of an item that is due by `now`, without reading any other attribute of it."""
        self._update(
            key[0],
            "SET checkAt = :check",
            "checkAt <= :now",
            {":check": check_at_ms, ":now": now_ms},
            mine=None,
            item_back=False,
            sort_key=key[1],
        )

    def get_many(self, call_ids: Iterable[str]) -> list[Call]:
        """The current state of these calls, all attributes: consistent reads."""
        calls: list[Call] = []
        for found in self._items([(call_id, "CALL") for call_id in call_ids]):
            try:
                calls.append(Call.from_item(from_wire(found)))
            except _UNREADABLE:
                _unreadable(found)
        return calls

    def _items(self, keys: list[tuple[str, str]], attributes: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        """The items with these keys (call id, sort key) in DynamoDB's format; attributes: only these, if given."""
        how: dict[str, Any] = {"ConsistentRead": True}
        if attributes:
            # Aliases throughout: `status`, `to`, `left` and others are reserved words.
            how["ProjectionExpression"] = ", ".join(f"#{name}" for name in attributes)
            how["ExpressionAttributeNames"] = {f"#{name}": name for name in attributes}
        wanted = [call_key(*key) for key in keys]
        while wanted:
            some, wanted = wanted[:100], wanted[100:]
            with store_errors():
                wanted_here: Any = {self._table: {"Keys": some, **how}}
                answer: Any = self._client.batch_get_item(RequestItems=wanted_here)
            # DynamoDB reads at most 16 MB at a time.
            left = answer["UnprocessedKeys"].get(self._table, {}).get("Keys", [])
            if len(left) == len(some):
                raise StoreError("BatchGetItem read nothing")
            wanted += left
            yield from answer["Responses"].get(self._table, [])

    # ── how long it lives ───────────────────────────────────────────────────────────────────────

    def keep(self, call_id: str, until_seconds: int) -> bool:
        """Extends a call's expiry to `until_seconds` (epoch) if it is earlier. False: there is no such call.

        A call that has not ended has no expiry and gets none.
        """
        write = self._update(
            call_id, "SET expiresAt = :until", "expiresAt < :until", {":until": until_seconds}, item_back=False
        )
        return write.won or write.call is not None

    # ── one conditional UpdateItem ──────────────────────────────────────────────────────────────

    def _transition(
        self,
        call_id: str,
        source: Status,
        to: Status,
        entry: dict[str, Any],
        assignments: str,
        condition: str,
        values: dict[str, Any],
        mine: Callable[[Call], bool],
        remove: str = "",
    ) -> Write:
        """Changes the status and appends its event. Raises ValueError when TRANSITIONS lacks the change."""
        request = self._transition_request(call_id, source, to, entry, assignments, condition, values, remove)
        return self._send(request, mine)

    def _transition_request(
        self,
        call_id: str,
        source: Status,
        to: Status,
        entry: dict[str, Any],
        assignments: str,
        condition: str,
        values: dict[str, Any],
        remove: str = "",
    ) -> dict[str, Any]:
        if to not in TRANSITIONS[source]:
            raise ValueError(f"a call cannot go from {source} to {to}")
        return self._request(
            call_id,
            f"SET #status = :to, events = list_append(events, :event), {assignments}"
            + (f" REMOVE {remove}" if remove else ""),
            f"#status = :source AND {condition}",
            {":source": source, ":to": to, ":event": [entry], **values},
        )

    def _update(
        self,
        call_id: str,
        update: str,
        condition: str,
        values: dict[str, Any],
        mine: Callable[[Call], bool] | None = lambda call: False,
        *,
        item_back: bool = True,
        sort_key: str = "CALL",
    ) -> Write:
        return self._send(self._request(call_id, update, condition, values, sort_key), mine, item_back=item_back)

    def _request(
        self, call_id: str, update: str, condition: str, values: dict[str, Any], sort_key: str = "CALL"
    ) -> dict[str, Any]:
        if ":queued" in condition:
            values = values | {":queued": "queued"}
        text = update + condition
        names = {f"#{name}": name for name in ("status", "left") if f"#{name}" in text}
        request: dict[str, Any] = {
            "TableName": self._table,
            "Key": call_key(call_id, sort_key),
            "UpdateExpression": update,
            "ConditionExpression": condition,
        }
        if names:
            request["ExpressionAttributeNames"] = names
        if values:
            request["ExpressionAttributeValues"] = to_wire(values)
        return request

    def _send(
        self, request: dict[str, Any], mine: Callable[[Call], bool] | None, *, item_back: bool = True
    ) -> Write:
        """mine: whether the item on which the condition failed shows that this write was made by an earlier try of
        the SDK; None: DynamoDB does not return that item. item_back: whether it returns the written item."""
        try:
            answer = write(
                self._client.update_item,
                **request,
                ReturnValues="ALL_NEW" if item_back else "NONE",
                ReturnValuesOnConditionCheckFailure="ALL_OLD" if mine else "NONE",
            )
        except ClientError as exc:
            there = _call(exc.response.get("Item"))
            return Write(there is not None and mine is not None and mine(there), there)
        return Write(True, _call(answer["Attributes"]) if item_back else None)


def _schedule_as(seen: Call) -> tuple[str, dict[str, Any]]:
    """The condition, and its values, that `scheduled_at` and `expires_at` are as they were read."""
    return _as_read(
        ("scheduledAt", ":scheduled", seen.scheduled_at_ms), ("callExpiresAt", ":until", seen.expires_at_ms)
    )


def _as_read(*attributes: tuple[str, str, Any]) -> tuple[str, dict[str, Any]]:
    """The condition, and its values, that attributes (name, placeholder, value) are as they were read; None means
    absent.
    """
    conditions, values = [], {}
    for attribute, name, value in attributes:
        if value is None:
            conditions.append(f"attribute_not_exists({attribute})")
        else:
            conditions.append(f"{attribute} = {name}")
            values[name] = value
    return " AND ".join(conditions), values


def _times(call: Call, now_ms: int) -> dict[str, Any]:
    """The attributes that say when a call may ring, of one whose times are given anew at `now`: time that was
    paused before does not move its deadline.
    """
    return {
        "scheduledAt": call.scheduled_at_ms,
        "callExpiresAt": call.expires_at_ms,
        "queueDeadline": call.queue_deadline_ms,
        "pausedUntil": now_ms,
    }


def _assignments(attributes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The update, and its values, that stores these attributes; None removes one."""
    assigned = {name: value for name, value in attributes.items() if value is not None}
    removed = [name for name in attributes if name not in assigned]
    update = "SET " + ", ".join(f"{name} = :new_{name}" for name in assigned)
    return (
        update + (f" REMOVE {', '.join(removed)}" if removed else ""),
        {f":new_{name}": value for name, value in assigned.items()},
    )


def _call(item: Any) -> Call | None:
    return Call.from_item(from_wire(item)) if item else None


# What parsing a malformed item raises. One such item must not hold up the others.
_UNREADABLE = (KeyError, TypeError, ValueError)


def _due_call(item: dict[str, Any]) -> Call:
    """Raises KeyError, TypeError or ValueError when the item is not a valid call."""
    call = Call.from_item(item | {"events": ()})
    if call.status not in TRANSITIONS or item["pk"] != f"CALL#{call.call_id}":
        raise ValueError("not a call")
    return call


def _due_delivery(item: dict[str, Any]) -> Delivery:
    """Raises KeyError, TypeError or ValueError when the item is not a valid delivery."""
    row = Delivery.from_item(item)
    over = row.check_at_ms is not None and row.state != "pending"
    if over or (item["pk"], item["sk"]) != (f"CALL#{row.call_id}", sort_key(row.sequence)):
        raise ValueError("not a delivery")
    return row


def _unreadable(found: dict[str, Any]) -> tuple[str, str]:
    """Logs and counts an item that cannot be parsed; called in the exception's handler. Returns its key."""
    key = found["pk"]["S"].removeprefix("CALL#"), found["sk"]["S"]
    logger.exception("unreadable item", extra={"key": [found["pk"]["S"], key[1]]})
    count("UnreadableItems")
    return key
