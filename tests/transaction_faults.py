"""What DynamoDB answers when several processes write the same items. moto never does: it takes one at a time.

The answers are on the wire, so botocore and the stores parse them as they parse AWS's.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError
from moto.core.botocore_stubber import MockRawResponse
from moto.core.models import botocore_stubber

# Those whose items are in transactions.
TABLES = ("CallsTable", "NumbersTable")

_SPACE = "com.amazonaws.dynamodb.v20120810#"
_CONFLICT = "Transaction is ongoing for the item"


class TransactionFaults:
    """Faults of one client's requests, each with its share of them. counted: how many there were of each.

    cancelled: a transaction meets another on one of its items. lost: it is executed; neither its answer arrives
    nor that of botocore's own repeat. in_progress: the same request is being executed. refused: a plain update
    of an item that transactions write meets one.
    """

    def __init__(
        self,
        seed: int,
        *,
        cancelled: float = 0,
        lost: float = 0,
        in_progress: float = 0,
        throttled: float = 0,
        refused: float = 0,
    ) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._lost: set[str] = set()
        # Requests that are answered here and not executed.
        self._answered: dict[int, bool] = {}
        self.shares = {
            "cancelled": cancelled,
            "lost": lost,
            "in_progress": in_progress,
            "throttled": throttled,
        }
        self.refused = refused
        self.counted: dict[str, int] = dict.fromkeys([*self.shares, "refused"], 0)

    @contextmanager
    def on(self, client: Any) -> Iterator[TransactionFaults]:
        events = client.meta.events
        hooks = (
            ("before-send.dynamodb.TransactWriteItems", self._transaction),
            ("before-send.dynamodb.UpdateItem", self._update),
        )
        execute = botocore_stubber.process_request

        def unless_answered(request: Any) -> Any:
            # botocore asks all that listen to this event, and takes the first answer.
            return None if self._answered.pop(id(request), False) else execute(request)

        botocore_stubber.process_request = unless_answered  # type: ignore[method-assign]
        for name, hook in hooks:
            events.register_first(name, hook)
        try:
            yield self
        finally:
            for name, hook in hooks:
                events.unregister(name, hook)
            botocore_stubber.process_request = execute  # type: ignore[method-assign]

    def _transaction(self, request: Any, **_: Any) -> AWSResponse | None:
        token = json.loads(request.body)["ClientRequestToken"]
        match self._fault(token):
            case "cancelled":
                # One item of the two, or both.
                reasons = self._random.choice([(0,), (1,), (0, 1)])
                return self._answer(
                    request,
                    "TransactionCanceledException",
                    "Transaction cancelled, please refer cancellation reasons for specific reasons",
                    CancellationReasons=[
                        {"Code": "TransactionConflict", "Message": _CONFLICT} if n in reasons else {"Code": "None"}
                        for n in range(2)
                    ],
                )
            case "throttled":
                return self._answer(
                    request,
                    "TransactionCanceledException",
                    "Transaction cancelled, please refer cancellation reasons for specific reasons",
                    CancellationReasons=[
                        {"Code": "None"},
                        {"Code": "ThrottlingError", "Message": "Throughput exceeds the current capacity"},
                    ],
                )
            case "in_progress":
                return self._answer(request, "TransactionInProgressException", "The transaction is in progress")
            case "lost":
                # moto executes it, and its answer is thrown away.
                botocore_stubber.process_request(request)
                raise ReadTimeoutError(endpoint_url="https://dynamodb")
        return None

    def _fault(self, token: str) -> str | None:
        with self._lock:
            if token in self._lost:
                # botocore's own repeat; the next is the store's.
                self._lost.remove(token)
                return "lost"
            drawn = self._random.random()
            for name, share in self.shares.items():
                if drawn < share:
                    self.counted[name] += 1
                    if name == "lost":
                        self._lost.add(token)
                    return name
                drawn -= share
        return None

    def _update(self, request: Any, **_: Any) -> AWSResponse | None:
        if json.loads(request.body)["TableName"] not in TABLES:
            return None
        with self._lock:
            if self._random.random() >= self.refused:
                return None
            self.counted["refused"] += 1
        return self._answer(request, "TransactionConflictException", _CONFLICT)

    def _answer(self, request: Any, error: str, message: str, **more: Any) -> AWSResponse:
        self._answered[id(request)] = True
        body = json.dumps({"__type": _SPACE + error, "message": message, "Message": message} | more)
        headers: Any = {"content-type": "application/x-amz-json-1.0"}
        return AWSResponse(request.url, 400, headers, MockRawResponse(body))
