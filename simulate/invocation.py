"""An invocation on AWS Lambda that dies, stalls, or is failed by AWS at any of its outside calls.

Every request to DynamoDB, SQS, LiveKit or a customer's endpoint is one outside call, counted from 0.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeVar

from botocore.exceptions import ClientError, ReadTimeoutError


class Death(BaseException):
    """The process is dead: raised at the point of death, and at every operation that it would still make."""


T = TypeVar("T")

# throttled: AWS refuses. answer_lost: done, but the process hears of a time-out. sent_twice: the SDK heard nothing
# and sent it again. sent_late: the same, but the other copy is carried out at a later step of the schedule.
# comes_late: the process hears of a time-out, and all of it is carried out later. conflict: another process's
# transaction on the same item is under way. conflict_late: the same, and an earlier copy of the request is carried
# out at a later step. in_progress: DynamoDB still works on an earlier copy of this transaction, and is done later.
# All from `throttled` on only happen to requests to AWS, the last three to writes of what transactions write:
# LiveKit's stand-in and the receiver have faults of their own.
Fault = Literal[
    "dies_before",
    "dies_after",
    "stalls_before",
    "stalls_after",
    "throttled",
    "answer_lost",
    "sent_twice",
    "sent_late",
    "comes_late",
    "conflict",
    "conflict_late",
    "in_progress",
]
Faults = Mapping[int, Fault]

# What an outside call takes before it is carried out, seconds: what others do falls between any two.
LATENCY = 0.005

# How often each fault struck.
struck: collections.Counter[Fault] = collections.Counter()

current: contextvars.ContextVar[Invocation | None] = contextvars.ContextVar("invocation", default=None)


def refused(fault: Fault | None, operation: str, conflicts: bool) -> ClientError | None:
    """How AWS refuses a request that this fault strikes; None when it does not. conflicts: it writes what
    transactions write."""
    transaction = operation == "transact_write_items"
    if fault == "throttled":
        code, reason = "ThrottlingException", "ThrottlingError"
    elif fault in ("conflict", "conflict_late") and conflicts:
        code, reason = "TransactionConflictException", "TransactionConflict"
    elif fault == "in_progress" and transaction:
        code, reason = "TransactionInProgressException", ""
    else:
        return None
    told: dict[str, Any] = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    if transaction and reason:
        told["Error"]["Code"] = "TransactionCanceledException"
        told["CancellationReasons"] = [{"Code": "None"}, {"Code": reason}]
    return ClientError(told, operation)  # type: ignore[arg-type]


class Invocation:
    """A process at one event. `lives`: seconds until AWS ends it; one that stalls is forgotten, and outlives it.
    `late`: gets the requests to AWS that are still to be carried out, their answers heard by no process. `began`:
    seconds of the loop's time."""

    def __init__(self, name: str, faults: Faults, lives: float, late: list[Callable[[], Any]]) -> None:
        self.name = name
        self._late = late
        self.calls = 0
        self.dead = False
        self.stalled = False
        self.ever_stalled = False
        self.answer: Any = None
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._faults = dict(faults)
        self._awake = asyncio.Event()
        self._awake.set()
        self.began = self._loop.time()
        self._deadline = self.began + lives
        self._end: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self, work: Callable[[], Awaitable[Any]], over: Callable[[], None]) -> None:
        context = contextvars.copy_context()
        context.run(current.set, self)
        self._end = self._loop.call_at(self._deadline, self.kill)
        self.task = self._loop.create_task(self._live(work), context=context)
        self.task.add_done_callback(lambda task: over())

    async def _live(self, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            answer = await work()
        except Death:
            return
        except Exception as exc:
            self.error = exc
        else:
            # The output of a process that dies meanwhile is discarded.
            self.answer = None if self.dead else answer
        finally:
            if self._end is not None:
                self._end.cancel()

    def seconds_left(self) -> float:
        return max(0.0, self._deadline - self._loop.time())

    def kill(self) -> None:
        self.dead = True
        self._awake.set()
        if self.task is not None:
            self.task.cancel()

    def wake(self) -> None:
        self.stalled = False
        self._awake.set()

    def _stall(self) -> None:
        self.stalled = self.ever_stalled = True
        self._awake.clear()
        if self._end is not None:
            self._end.cancel()

    def _die(self) -> None:
        self.kill()
        raise Death

    async def _go_on(self) -> None:
        await self._awake.wait()
        if self.dead:
            raise Death

    async def aws(self, operation: str, request: Callable[[], T], *, conflicts: bool = False) -> T:
        """One request to AWS. conflicts: another process's transaction may be under way on what it writes."""
        fault = await self._before()
        refusal = refused(fault, operation, conflicts)
        if fault == "sent_twice":
            with contextlib.suppress(ClientError):
                request()
        if fault in ("sent_late", "comes_late") or (refusal and fault in ("conflict_late", "in_progress")):
            self._late.append(request)
        if refusal:
            raise refusal
        if fault == "comes_late":
            raise ReadTimeoutError(endpoint_url=operation)
        result = request()
        if fault == "answer_lost":
            raise ReadTimeoutError(endpoint_url=operation)
        await self._after(fault)
        return result

    async def call(self, request: Callable[[], Awaitable[T]], *, at_once: bool = False) -> T:
        """One request to LiveKit or to a customer's endpoint. at_once: it cannot stall before this one."""
        fault = await self._before(at_once)
        try:
            return await request()
        finally:
            await self._after(fault)

    async def _before(self, at_once: bool = False) -> Fault | None:
        fault = self._faults.get(self.calls)
        self.calls += 1
        if fault == "stalls_before" and not at_once:
            self._stall()
        await self._go_on()
        await asyncio.sleep(LATENCY)
        await self._go_on()
        if fault is not None:
            struck[fault] += 1
        if fault == "dies_before":
            self._die()
        return fault

    async def _after(self, fault: Fault | None) -> None:
        if fault == "dies_after":
            self._die()
        if fault == "stalls_after":
            self._stall()
        await self._go_on()
