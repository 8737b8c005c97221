"""Processes on Lambda that die, stall and lose answers at random, and the queues that start them."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Any

from botocore.exceptions import ClientError

from simulate import invocation, virtual_time
from simulate.invocation import Fault, Faults, Invocation

# Seconds of each function's time-out (template.yaml).
LIVES = {
    "initiate_call": 10,
    "dial_worker": 120,
    "livekit_events": 10,
    "fan_out": 30,
    "deliver": 30,
    "reconcile_calls": 55,
    "calls_api": 20,
}

# How often each fault is planned, and what it is called in the report.
FAULTS: dict[Fault, tuple[float, str]] = {
    "dies_before": (2, "process dies"),
    "dies_after": (2, "process dies"),
    "stalls_before": (2, "process stalls"),
    "stalls_after": (1, "process stalls"),
    "throttled": (1, "AWS throttles"),
    "answer_lost": (2, "AWS's answer is lost"),
    "sent_twice": (1, "request made twice"),
    "sent_late": (1, "request made twice, once late"),
    "comes_late": (1, "request made late"),
}
# The outside calls among which a fault is planned: those of a dial.
STEPS = 30
# The share of the requests to AWS that take no time: between the others, what other processes do falls.
AT_ONCE = 0.7

# Of a message, before it becomes a dead letter (template.yaml).
MAXIMUM_RECEIVES = 5


class Process(Invocation):
    """An invocation whose stalls end by themselves. stall_seconds: how long the next one lasts."""

    def __init__(self, *given: Any, stall_seconds: Callable[[], float]) -> None:
        super().__init__(*given)
        self._stall_seconds = stall_seconds

    def _stall(self) -> None:
        super()._stall()
        self._loop.call_later(self._stall_seconds(), self.wake)

    def at_once(self) -> bool:
        """Whether the next request to AWS is carried out without passing the turn to others; it counts then."""
        if self.dead or self.stalled or self.calls in self._faults or random.random() >= AT_ONCE:
            return False
        self.calls += 1
        return True

    async def pause(self) -> None:
        """Stalls at this moment."""
        self._stall()
        await self._go_on()


class Processes:
    """Starts invocations. share: of them that have a fault. late: requests to AWS that are carried out later."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self.share = share
        self.running = 0
        self._dice = dice

    def stall_seconds(self) -> float:
        """From a fifth of a second to three hours, any order of magnitude as likely as another."""
        return float(0.2 * 54_000 ** self._dice.random())

    def start(self, function: str, work: Callable[[Process], Awaitable[Any]]) -> Process:
        process = Process(
            function, self._faults(), LIVES[function], _Late(self._dice), stall_seconds=self.stall_seconds
        )
        self.running += 1
        process.start(lambda: work(process), over=self._over)
        return process

    def _over(self) -> None:
        self.running -= 1

    def _faults(self) -> Faults:
        if self._dice.random() >= self.share:
            return {}
        kinds = list(FAULTS)
        [kind] = self._dice.choices(kinds, [FAULTS[kind][0] for kind in kinds])
        # Most processes make few outside calls.
        return {int(STEPS * self._dice.random() ** 2): kind}

    async def outcome(self, process: Process) -> Process:
        """Once the process has ended."""
        assert process.task is not None
        await asyncio.wait([process.task])
        return process


class _Late(list[Callable[[], Any]]):
    """Requests that are carried out up to a minute later; no process hears their answers."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice

    def append(self, request: Callable[[], Any]) -> None:
        def carry_out() -> None:
            try:
                request()
            except ClientError:
                return

        asyncio.get_running_loop().call_later(0.05 * 1200 ** self._dice.random(), carry_out)


@dataclasses.dataclass
class Message:
    """received: how often it was handed out."""

    id: str
    body: str
    sent_at: int
    received: int = 0

    def record(self) -> dict[str, Any]:
        """As Lambda hands it over."""
        return {"messageId": self.id, "body": self.body, "attributes": {"SentTimestamp": str(self.sent_at)}}


class SQS:
    """A boto3 client and its queues, by URL. consumers: what is done with a batch: given the process and the
    records, it returns the ids of those that failed. Some messages are lost, some come twice.
    """

    def __init__(self, dice: random.Random, processes: Processes, clock: Callable[[], int]) -> None:
        self.consumers: dict[
            str, tuple[str, float, Callable[[Process, list[dict[str, Any]]], Awaitable[set[str]]]]
        ] = {}
        self.faults: collections.Counter[str] = collections.Counter()
        self.dead: dict[str, list[Message]] = collections.defaultdict(list)
        self.lost, self.twice = 0.0, 0.0
        # How many messages are on their way or being worked on.
        self.under_way = 0
        self._visible: dict[str, list[Message]] = collections.defaultdict(list)
        self._ids = itertools.count(1)
        self._dice, self._processes, self._clock = dice, processes, clock

    def send_message(self, **request: Any) -> dict[str, str]:
        answer: dict[str, str] = self._request("SendMessage", lambda: self._send(request["QueueUrl"], request))
        return answer

    def send_message_batch(self, **request: Any) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            return {"Successful": [self._send(request["QueueUrl"], entry) for entry in request["Entries"]]}

        answer: dict[str, Any] = self._request("SendMessageBatch", send)
        return answer

    @staticmethod
    def _request(operation: str, work: Callable[[], Any]) -> Any:
        sender: Any = invocation.current.get()
        if sender is None or not virtual_time.in_thread() or sender.at_once():
            return work()
        return virtual_time.wait_for(sender.aws(operation, work))

    def _send(self, url: str, entry: dict[str, Any]) -> dict[str, str]:
        message = Message(f"message-{next(self._ids)}", entry["MessageBody"], self._clock())
        copies = 1
        if self._dice.random() < self.lost:
            self.faults["message lost"] += 1
            copies = 0
        elif self._dice.random() < self.twice:
            self.faults["message comes twice"] += 1
            copies = 2
        for _ in range(copies):
            self._comes(
                url, dataclasses.replace(message), entry.get("DelaySeconds", 0) + self._dice.uniform(0, 0.05)
            )
        return {"MessageId": message.id}

    def _comes(self, url: str, message: Message, seconds: float) -> None:
        self.under_way += 1
        asyncio.get_running_loop().call_later(seconds, self._is_visible, url, message)

    def _is_visible(self, url: str, message: Message) -> None:
        if url not in self.consumers:
            self.under_way -= 1
            self.dead[url].append(message)
            return
        self._visible[url].append(message)
        if len(self._visible[url]) == 1:
            asyncio.get_running_loop().call_soon(self._hand_out, url)

    def _hand_out(self, url: str) -> None:
        visible, self._visible[url] = self._visible[url], []
        for start in range(0, len(visible), 10):
            self._start(url, visible[start : start + 10])

    def _start(self, url: str, batch: list[Message]) -> None:
        function, visibility, consume = self.consumers[url]
        for message in batch:
            message.received += 1
        acknowledged: set[str] = set()
        returned: set[str] = set()

        async def work(process: Process) -> None:
            failed = await consume(process, [message.record() for message in batch])
            if not process.dead:
                acknowledged.update({message.id for message in batch} - failed)

        process = self._processes.start(function, work)
        asyncio.get_running_loop().call_later(visibility, self._come_back, url, batch, acknowledged, returned)
        assert process.task is not None

        def over(task: asyncio.Task[None]) -> None:
            self.under_way -= len(acknowledged - returned)

        process.task.add_done_callback(over)

    def _come_back(self, url: str, batch: list[Message], acknowledged: set[str], returned: set[str]) -> None:
        """After the visibility timeout: what no process has acknowledged; five times at most."""
        for message in batch:
            if message.id in acknowledged:
                continue
            returned.add(message.id)
            self.under_way -= 1
            if message.received >= MAXIMUM_RECEIVES:
                self.faults["message becomes a dead letter"] += 1
            else:
                self._comes(url, message, 0)
