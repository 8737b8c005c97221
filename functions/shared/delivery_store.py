"""Every read and write of deliveries: the state and the attempts of one webhook.

The row decides; a message `{"callId", "sequence"}` is only a hint that it may be due. Before a POST the row is
taken under a lease, so that no delivery is posted twice at the same time, however many messages there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError

from shared.dynamo import from_wire, store_errors, to_wire
from shared.table_keys import call_key, due_shard, expires_at

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# pending: attempts go on. delivered: the receiver answered 2xx. dead: the last attempt failed. stopped: the
# receiver answered 410, to this event or to an earlier one of the call.
State = Literal["pending", "delivered", "dead", "stopped"]

# How many attempts of one delivery are kept: two whole schedules, each attempt with up to 3 KB of the receiver's
# answer. The row stays small however often it is replayed.
ATTEMPTS_LISTED = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """One event's delivery. Times are epoch ms; attempts hold at, status or error, ms, answer, location.

    attempt: attempts with an outcome on the current schedule, which a replay restarts. begun: attempts begun since
    the last outcome; under a live lease the last of them is under way, the process of every other one died.
    replayed: a client asked for it, so it is sent even if the call's webhooks were stopped.
    """

    call_id: str
    workspace_id: str
    sequence: int
    state: State
    attempt: int
    next_attempt_at_ms: int
    attempts: tuple[dict[str, Any], ...] = ()
    begun: int = 0
    replayed: bool = False
    lease_id: str | None = None
    lease_until_ms: int = 0
    check_at_ms: int | None = None

    @classmethod
    def from_item(cls, item: dict[str, Any]) -> Delivery:
        """Ignores unknown attributes. Raises KeyError or TypeError when a required one is missing."""
        known = {field: item[name] for field, name in DELIVERY_ATTRIBUTES.items() if name in item}
        known["attempts"] = tuple(item.get("attempts", ())[-ATTEMPTS_LISTED:])
        return cls(**known)


# The stored attribute of each field.
DELIVERY_ATTRIBUTES = {
    "call_id": "callId",
    "workspace_id": "workspaceId",
    "sequence": "sequence",
    "state": "state",
    "attempt": "attempt",
    "next_attempt_at_ms": "nextAttemptAt",
    "attempts": "attempts",
    "begun": "begun",
    "replayed": "replayed",
    "lease_id": "leaseId",
    "lease_until_ms": "leaseUntil",
    "check_at_ms": "checkAt",
}


def sort_key(sequence: int) -> str:
    """Padded, so that a query lists deliveries in the order of their events."""
    return f"DELIVERY#{sequence:04d}"


class DeliveryStore:
    """The deliveries in CallsTable. Every method raises StoreError or StoreUnclearError when DynamoDB fails."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    def create(self, call_id: str, workspace_id: str, sequence: int, now_ms: int, check_at_ms: int) -> None:
        """Creates the delivery of one event, due at once. An existing one is not changed."""
        row = {
            "callId": call_id,
            "workspaceId": workspace_id,
            "sequence": sequence,
            "state": "pending",
            "attempt": 0,
            "nextAttemptAt": now_ms,
            "attempts": [],
            "dueShard": due_shard(call_id),
            "checkAt": check_at_ms,
        }
        try:
            with store_errors():
                self._client.put_item(
                    TableName=self._table,
                    Item=call_key(call_id, sort_key(sequence)) | to_wire(row),
                    ConditionExpression="attribute_not_exists(pk)",
                )
        except ClientError:
            return

    def get(self, call_id: str, sequence: int) -> Delivery | None:
        with store_errors():
            answer = self._client.get_item(
                TableName=self._table, Key=call_key(call_id, sort_key(sequence)), ConsistentRead=True
            )
        return Delivery.from_item(from_wire(answer["Item"])) if "Item" in answer else None

    def take(self, call_id: str, sequence: int, lease: str, now_ms: int, until_ms: int) -> Delivery | None:
        """Claims a delivery that is due for one attempt, which counts as begun. None: not due, or taken."""
        return self._update(
            call_id,
            sequence,
            "SET leaseId = :lease, leaseUntil = :until, checkAt = :until, "
            "begun = if_not_exists(begun, :zero) + :one",
            "#state = :pending AND nextAttemptAt <= :now AND "
            "(attribute_not_exists(leaseUntil) OR leaseUntil < :now)",
            {":lease": lease, ":until": until_ms, ":now": now_ms, ":zero": 0, ":one": 1, ":pending": "pending"},
            mine=lambda there: there.lease_id == lease,
        )

    def release(self, delivery: Delivery) -> None:
        """Gives back a delivery that was taken and not posted; the attempt does not count as begun.

        It stays due, and the reconciler looks at it when the lease would have ended. Without the lease nothing
        changes.
        """
        self._update(
            delivery.call_id,
            delivery.sequence,
            "SET begun = begun - :one REMOVE leaseId, leaseUntil",
            "leaseId = :lease",
            {":lease": delivery.lease_id, ":one": 1},
        )

    def finish(
        self, delivery: Delivery, attempt: dict[str, Any], state: State, next_attempt_at_ms: int, check_at_ms: int
    ) -> Delivery | None:
        """Stores an attempt and the next state. None: the lease was lost, another process has taken over.

        The whole list of attempts is written, so that it can be truncated; only the lease's holder writes it.
        """
        values: dict[str, Any] = {
            ":lease": delivery.lease_id,
            ":state": state,
            ":count": delivery.attempt + 1,
            ":attempts": [*delivery.attempts, attempt][-ATTEMPTS_LISTED:],
            ":next": next_attempt_at_ms,
        }
        assignments = "#state = :state, attempt = :count, attempts = :attempts, nextAttemptAt = :next"
        removed = "leaseId, leaseUntil, begun"
        if state == "pending":
            assignments += ", checkAt = :check"
            values[":check"] = check_at_ms
        else:
            assignments += ", expiresAt = :expires"
            values[":expires"] = expires_at(attempt["at"])
            removed += ", dueShard, checkAt"
        return self._update(
            delivery.call_id,
            delivery.sequence,
            f"SET {assignments} REMOVE {removed}",
            "leaseId = :lease",
            values,
            mine=lambda there: there.state == state and there.attempts[-1:] == (attempt,),
        )

    def replay(
        self, call_id: str, workspace_id: str, sequence: int, now_ms: int, check_at_ms: int
    ) -> Delivery | None:
        """Makes a delivery due again from the beginning of its schedule; earlier attempts stay listed. A delivery
        that does not exist is created. None: an attempt is under way.
        """
        return self._update(
            call_id,
            sequence,
            "SET #state = :pending, attempt = :zero, nextAttemptAt = :now, checkAt = :check, "
            "dueShard = :shard, replayed = :yes, callId = :call, workspaceId = :workspace, "
            "#sequence = :sequence, attempts = if_not_exists(attempts, :none) "
            "REMOVE expiresAt, leaseId, leaseUntil, begun",
            "attribute_not_exists(leaseUntil) OR leaseUntil < :now",
            {
                ":call": call_id,
                ":workspace": workspace_id,
                ":sequence": sequence,
                ":none": [],
                ":pending": "pending",
                ":zero": 0,
                ":now": now_ms,
                ":check": check_at_ms,
                ":shard": due_shard(call_id),
                ":yes": True,
            },
        )

    def make_due(self, seen: Delivery, now_ms: int) -> bool:
        """Makes a failed delivery due now, from the beginning of its schedule; the reconciler sends its message.
        Earlier attempts stay listed. For an operator, after an outage: the receiver's 410 stays in force.

        False: it changed since it was read, or an attempt is under way.
        """
        made = self._update(
            seen.call_id,
            seen.sequence,
            "SET #state = :pending, attempt = :zero, nextAttemptAt = :now, checkAt = :now, dueShard = :shard "
            "REMOVE expiresAt, leaseId, leaseUntil, begun",
            "#state = :seen AND attempt = :attempts AND (attribute_not_exists(leaseUntil) OR leaseUntil < :now)",
            {
                ":pending": "pending",
                ":zero": 0,
                ":now": now_ms,
                ":shard": due_shard(seen.call_id),
                ":seen": seen.state,
                ":attempts": seen.attempt,
            },
            mine=lambda there: (there.state, there.attempt, there.next_attempt_at_ms) == ("pending", 0, now_ms),
        )
        return made is not None

    def of_call(self, call_id: str) -> list[Delivery]:
        """All deliveries of a call, in the order of its events."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND begins_with(sk, :prefix)",
            "ExpressionAttributeValues": to_wire({":pk": f"CALL#{call_id}", ":prefix": "DELIVERY#"}),
            "ConsistentRead": True,
        }
        found: list[Delivery] = []
        while True:
            with store_errors():
                answer = self._client.query(**request)
            found += [Delivery.from_item(from_wire(item)) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                return found
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def postpone(self, seen: Delivery, check_at_ms: int) -> bool:
        """Sets a pending delivery's `checkAt`, unless another process has changed it since it was read."""
        moved = self._update(
            seen.call_id,
            seen.sequence,
            "SET checkAt = :check",
            "#state = :pending AND checkAt = :was",
            {":check": check_at_ms, ":was": seen.check_at_ms, ":pending": "pending"},
            mine=None,
            instead=seen,
        )
        return moved is not None

    def _update(
        self,
        call_id: str,
        sequence: int,
        update: str,
        condition: str,
        values: dict[str, Any],
        mine: Callable[[Delivery], bool] | None = lambda there: False,
        instead: Delivery | None = None,
    ) -> Delivery | None:
        """The row as written, or None if the condition failed. mine: whether the row on which it failed shows that
        this write was made by an earlier try of the SDK; None: DynamoDB does not return that row. instead:
        returned after a successful write, then DynamoDB does not return the written row either.
        """
        try:
            with store_errors():
                answer = self._client.update_item(
                    TableName=self._table,
                    Key=call_key(call_id, sort_key(sequence)),
                    UpdateExpression=update,
                    ConditionExpression=condition,
                    ExpressionAttributeNames={
                        name: name[1:] for name in ("#state", "#sequence") if name in update + condition
                    },
                    ExpressionAttributeValues=to_wire(values),
                    ReturnValues="NONE" if instead else "ALL_NEW",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD" if mine else "NONE",
                )
        except ClientError as exc:
            item: Any = exc.response.get("Item")
            there = Delivery.from_item(from_wire(item)) if item else None
            # The SDK may have sent the request twice: then the first try made the write.
            return there if there is not None and mine is not None and mine(there) else None
        return instead or Delivery.from_item(from_wire(answer["Attributes"]))
