"""A deployment in one process and in virtual time, and all that happens to it in a campaign.

The product's classes are the real ones: they accept, dial, reconcile, apply LiveKit's events, fan out and deliver.
DynamoDB, SQS, LiveKit and the receivers are in memory. Each piece of work is an invocation that may die or stall
at any of its outside calls. No process sleeps in real time.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import gc
import json
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
from livekit.protocol.webhook import WebhookEvent

import shared.dynamo
import webhook_dispatch.fan_out
from dial_worker.agent_left import look_for_agent
from dial_worker.dial import Dialler
from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from livekit_events.apply_event import EventApplier
from reconcile_calls.reconcile import Reconciler
from shared.call import ENDED, event_id, iso
from shared.call_store import CallStore
from shared.callback_url import Policy as CallbackPolicy
from shared.canceling import Canceler
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import QueueError, RequestRefusedError, StoreError
from shared.limits import LimitStore
from shared.line import Line
from shared.messages import read_dial_message
from shared.numbers import MARKER, NumberStore, Suppression, ensure_marker
from shared.policies import Policy
from shared.queues import Queue
from shared.telemetry import logger
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore
from simulate import invocation, virtual_time
from simulate.dynamodb import Key, SimulatedDynamoDB, Stored, Wire, value_of
from simulate.ledger import Ledger
from simulate.livekit import SimulatedLiveKit
from simulate.plan import DAY, MINUTE, POLICIES, START, WORKSPACES, OptOut, Plan, Planned, Planner
from simulate.process import SQS, Process, Processes
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.fan_out import FanOut
from webhook_dispatch.transport import webhook_client

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
DIAL, WEBHOOK, DEAD = "dial", "webhook", "dead-webhook"
CALLS_PER_SECOND = 5


@dataclasses.dataclass(frozen=True)
class Shares:
    """How often each kind of fault happens, of 1: of processes, of LiveKit's requests, of messages, of writes, ...
    aimed: of the fences that stall right before their write, half of them while the number's callee opts out.
    """

    processes: float = 0.02
    livekit: float = 0.005
    messages: float = 0.01
    conflicts: float = 0.004
    stale: float = 0.01
    events: float = 0.02
    stream: float = 0.01
    receivers: float = 0.05
    aimed: float = 0.02
    says_stop: float = 0.02
    skipped_minutes: float = 0.02


class World:
    """See the module's docstring. problems: exceptions of the simulation's own."""

    def __init__(self, calls: int, days: float, seed: str, shares: Shares | None = None) -> None:
        self.dice = random.Random(seed)
        self.shares = shares or Shares()
        self._planner = Planner(calls, days, random.Random(f"{seed}-plan"))
        self.plan: Plan = self._planner.plan()
        self.loop = virtual_time.VirtualTimeLoop()
        self.ledger = Ledger(self.now_ms)
        self.faults: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._stream: list[dict[str, Any]] = []
        self._fan_out_runs = False
        # Calls with their last state, and deliveries that are pending.
        self.open_calls: set[str] = set()
        self.pending_rows: set[Key] = set()
        self._clients = 0
        self._placed = len(self.plan.calls)

    def now_ms(self) -> int:
        return START + int(self.loop.time() * 1000)

    # ── the run ─────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        with self._surroundings():
            try:
                self.loop.run_until_complete(self._run())
            finally:
                self.loop.run_until_complete(self._close())
                self.loop.close()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Time, randomness and threads are the simulation's; what the product logs is of no interest."""
        tokens = random.Random(self.dice.random())
        state, level = random.getstate(), logger.log_level
        random.seed(self.dice.random())
        thresholds = gc.get_threshold()
        with contextlib.ExitStack() as stack:
            for owner, name, replaced in (
                (secrets, "token_hex", lambda size: tokens.randbytes(size).hex()),
                (secrets, "choice", tokens.choice),
                (asyncio, "to_thread", virtual_time.to_thread),
                (time, "sleep", _sleep_in_thread(time.sleep)),
                (shared.dynamo, "_serialize", Wire),
                (shared.dynamo, "_deserialize", value_of),
                # Its rows one after the other: threads of its own would run outside the virtual time.
                (webhook_dispatch.fan_out, "pool", SimpleNamespace(map=map)),
            ):
                stack.enter_context(mock.patch.object(owner, name, replaced))
            # A metric takes longer than the request it counts.
            stack.enter_context(mock.patch("shared.telemetry._point"))
            logger.setLevel("CRITICAL")
            invocation.struck.clear()
            gc.freeze()
            gc.set_threshold(50_000, 50, 50)
            try:
                yield
            finally:
                gc.set_threshold(*thresholds)
                gc.unfreeze()
                logger.setLevel(level)
                random.setstate(state)

    async def _run(self) -> None:
        self._build()
        self.loop.set_exception_handler(self._note_problem)
        for planned in self.plan.calls:
            self._at(planned.at, self._client(planned))
        for opt_out in self.plan.opt_outs:
            self._at(opt_out.at, self.opt_out(opt_out))
        for begin, end, spans in (
            *((*span, (self._pause, self._resume)) for span in self.plan.pauses),
            *((*span, (self._lose_marker, self._restore_marker)) for span in self.plan.lost_markers),
            *((*span, (self._livekit_falls, self._livekit_stands)) for span in self.plan.outages),
            *((*span, (self._receiver_closes, self._receiver_opens)) for span in self.plan.closed),
        ):
            self.loop.call_at((begin - START) / 1000, spans[0])
            self.loop.call_at((end - START) / 1000, spans[1])
        for at, workspace, policy in self.plan.policies:
            self.loop.call_at((at - START) / 1000, self._change_policy, workspace, policy)
        minute = 0
        while not self._is_over():
            minute += 1
            await asyncio.sleep(max(0.0, 60.0 * minute - self.loop.time()))
            if self.loop.time() > (self.plan.end + 4 * DAY - START) / 1000:
                return
            self._reconcile_if_needed(minute)

    def _note_problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception of the simulation's own: what was simulated is not to be trusted."""
        self.problems.append(f"{context['message']}: {context.get('exception')!r}")

    async def _close(self) -> None:
        await self._client_of_webhooks.aclose()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _at(self, at: int, work: Awaitable[None]) -> None:
        """Does work of a client's or a callee's at a time."""
        self._clients += 1

        async def later() -> None:
            await work
            self._clients -= 1

        self.loop.call_at(max(0, at - START) / 1000, lambda: self.loop.create_task(later()))

    def _is_over(self) -> bool:
        """Nothing is left to do for any process."""
        return not any(self._unfinished().values()) and (
            all(self.dynamodb.indexes["due"].first(shard) is None for shard in range(16))
        )

    # ── the deployment ──────────────────────────────────────────────────────────────────────────────

    def _build(self) -> None:
        self.durations = Durations()
        self.dynamodb = SimulatedDynamoDB(
            random.Random(self.dice.random()), conflicts=self.shares.conflicts, stale=self.shares.stale
        )
        self.processes = Processes(random.Random(self.dice.random()), self.shares.processes)
        self.sqs = SQS(random.Random(self.dice.random()), self.processes, self.now_ms)
        self.sqs.lost = self.sqs.twice = self.shares.messages / 2
        client: Any = self.dynamodb
        self.calls, self.deliveries = CallStore(client, "calls"), DeliveryStore(client, "calls")
        self.limits, self.numbers = LimitStore(client, "workspaces", "numbers"), NumberStore(client, "numbers")
        self.workspaces = WorkspaceStore(client, "workspaces")
        # As warm processes have it; each has one of its own.
        self._cache = WorkspaceCache(self.workspaces, self.durations.workspace_cache, self.loop.time)
        queues: Any = self.sqs
        self.dial_queue, self.webhook_queue = Queue(queues, DIAL), Queue(queues, WEBHOOK)
        self.dead_letters = Queue(queues, DEAD)
        self.line = Line(self.calls, self.limits, self.dial_queue, self.durations, self.now_ms)
        self.livekit = SimulatedLiveKit(
            random.Random(self.dice.random()),
            self.ledger,
            self.now_ms,
            self._event,
            self._talks,
            self.shares.livekit,
        )
        self._client_of_webhooks = webhook_client(_Receivers(self), self.durations)
        ensure_marker(self.limits, self.numbers, START)
        for workspace_id, slots in WORKSPACES.items():
            self.workspaces.put(
                Workspace(
                    workspace_id,
                    workspace_id.capitalize(),
                    "agent",
                    f"ST_{workspace_id}",
                    ("+13035550100",),
                    open=True,
                    allowed_calling_codes=frozenset({"+1", "+44", "+49", "+81", "+61"}),
                    max_concurrent_calls=slots,
                    # Each process here takes permits of its own.
                    calls_per_minute=10**9,
                    calls_per_second=CALLS_PER_SECOND,
                    webhook_secrets=(SECRET,),
                    policies=POLICIES,
                )
            )
            for policy in POLICIES.values():
                self.ledger.policy_is(workspace_id, policy)
        self.sqs.consumers = {
            DIAL: ("dial_worker", 720, self._dial),
            WEBHOOK: ("deliver", 180, self._deliver),
        }
        self.dynamodb.wrote = self._wrote

    # ── functions ───────────────────────────────────────────────────────────────────────────────────

    async def _dial(self, process: Process, records: list[dict[str, Any]]) -> set[str]:
        dialler = Dialler(
            calls=_StallingFences(self, process),
            limits=self.limits,
            numbers=self.numbers,
            line=self.line,
            workspace_cache=self._cache,
            dial_queue=self.dial_queue,
            livekit=self.livekit,
            durations=self.durations,
            public_api_url="https://api.example",
            clock=self.now_ms,
            remaining=process.seconds_left,
        )

        async def dial(record: dict[str, Any]) -> None:
            message = read_dial_message(record)
            if message.agent_left:
                await look_for_agent(dialler, message.call_id)
            elif not message.hold:
                await dialler.dial(message)

        results = await asyncio.gather(*map(dial, records), return_exceptions=True)
        return _failed(records, results)

    async def _deliver(self, process: Process, records: list[dict[str, Any]]) -> set[str]:
        deliverer = Deliverer(
            calls=self.calls,
            deliveries=self.deliveries,
            workspaces=self._cache,
            webhook_queue=self.webhook_queue,
            client=self._client_of_webhooks,
            durations=self.durations,
            clock=self.now_ms,
        )
        answer = await deliver_batch(deliverer, records)
        return {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}

    def _reconcile_if_needed(self, minute: int) -> None:
        """The rule that starts the reconciler; runs that would find nothing to do are left out."""
        now = self.now_ms()
        due = [self.dynamodb.indexes["due"].first(shard) for shard in range(16)]
        line = self.dynamodb.indexes["line"]
        turns = [line.first(f"{workspace}#single") for workspace in WORKSPACES]
        ahead = f"{now + 120_000:013}"
        needed = (
            any(at is not None and at <= now for at in due)
            or any(turn is not None and turn < ahead for turn in turns)
            or (minute % 5 == 0 and any(self.limits.active_calls(each, 2) for each in WORKSPACES))
            or not self.numbers.marked()
        )
        if not needed:
            return
        if self.dice.random() < self.shares.skipped_minutes:
            self.faults["reconciler does not run"] += 1
            return

        async def work(process: Process) -> None:
            reconciler = Reconciler(
                calls=self.calls,
                deliveries=self.deliveries,
                limits=self.limits,
                numbers=self.numbers,
                line=self.line,
                dial_queue=self.dial_queue,
                webhook_queue=self.webhook_queue,
                livekit=self.livekit,
                durations=self.durations,
                clock=self.now_ms,
                time_left=lambda: process.seconds_left() > 15,
            )
            await reconciler.run()

        self.processes.start("reconcile_calls", work)

    # ── clients, callees, operators ─────────────────────────────────────────────────────────────────

    async def _in_process(self, function: str, work: Callable[[], Any]) -> Process:
        """Work of a function without a loop of its own, to its end."""
        return await self.processes.outcome(
            self.processes.start(function, lambda process: asyncio.to_thread(work))
        )

    async def _client(self, planned: Planned) -> None:
        """Places the call, and repeats the request with its key until it is answered."""
        body = {
            "to": planned.number,
            "call_agent_id": "agent-1",
            "callback_url": "https://receiver.example/hook",
            "ring_timeout_seconds": planned.ring_seconds,
            "max_duration_seconds": 300,
            "expires_at": iso(planned.expires_at),
            "metadata": {"row": planned.key},
        }
        given = {"purpose": planned.purpose, "time_zone": planned.time_zone}
        body |= {name: value for name, value in given.items() if value is not None}
        if planned.scheduled_at is not None:
            body["scheduled_at"] = iso(planned.scheduled_at)
        text = json.dumps(body).encode()
        for _ in range(100):
            acceptor = Acceptor(
                calls=self.calls,
                numbers=self.numbers,
                limits=self.limits,
                workspaces=self._cache,
                rate_limit=RateLimit(self.limits),
                dial_queue=self.dial_queue,
                durations=self.durations,
                callback_policy=CallbackPolicy(),
                look_up=lambda host, port: [],
                clock=self.now_ms,
            )
            asked = await self._in_process(
                "initiate_call",
                functools.partial(acceptor.accept, planned.workspace, None, planned.key, text),
            )
            if asked.answer is not None:
                self.ledger.accepted(asked.answer.call.call_id, planned)
                if planned.cancel_at is not None:
                    self._at(planned.cancel_at, self._cancel(asked.answer.call.call_id))
                return
            if isinstance(asked.error, RequestRefusedError):
                self.ledger.refused[asked.error.code] += 1
                self._place_another()
                return
            if asked.error is not None and not isinstance(asked.error, StoreError | QueueError):
                raise asked.error
            await asyncio.sleep(self.dice.uniform(1, 5))
        raise AssertionError(f"never answered: {planned}")

    def _place_another(self) -> None:
        """Instead of a call that was refused, so that as many are accepted as were asked for: to a number that has
        not opted out, while the campaign lasts.
        """
        at = self.now_ms() + round(self.dice.uniform(1, 20) * MINUTE)
        if at < self.plan.end:
            self._placed += 1
            willing = [each for each in self._planner.numbers if each[:2] not in self.ledger.opt_outs]
            self._at(at, self._client(self._planner.call(self._placed, at, willing)))

    async def _cancel(self, call_id: str) -> None:
        canceler = Canceler(self.calls, None, self.durations, self.now_ms)

        def cancel() -> None:
            call = self.calls.get(call_id)
            if call is not None:
                with contextlib.suppress(RequestRefusedError):
                    canceler.cancel(call)

        await self._until_done(cancel)

    async def opt_out(self, opt_out: OptOut) -> None:
        """The callee's wish reaches the API, which acknowledges it."""
        suppression = Suppression(opt_out.scope, "said so", self.now_ms())

        def suppress() -> None:
            self.numbers.suppress(opt_out.workspace, opt_out.number, suppression, self.now_ms())

        await self._until_done(suppress)
        self.ledger.opted_out(opt_out.workspace, opt_out.number, opt_out.scope)

    def _talks(self, call_id: str) -> None:
        """Some who answer want no more calls, and their agent says so."""
        planned = self.ledger.planned.get(call_id)
        if planned is not None and self.dice.random() < self.shares.says_stop:
            at = self.now_ms() + round(self.dice.uniform(1, 30) * 1000)
            self._at(at, self.opt_out(OptOut(at, planned.workspace, planned.number, "all")))

    async def _until_done(self, work: Callable[[], None]) -> None:
        """A request to the API, repeated until it is answered."""
        done: list[bool] = []

        def do() -> None:
            work()
            done.append(True)

        while True:
            await self._in_process("calls_api", do)
            if done:
                return
            await asyncio.sleep(self.dice.uniform(1, 5))

    def _pause(self) -> None:
        self.faults["dialling paused by an operator"] += 1
        self.limits.pause(self.now_ms())
        self.ledger.begins(self.ledger.paused)

    def _resume(self) -> None:
        self.ledger.ends(self.ledger.paused)
        self.limits.resume(self.now_ms())

    def _lose_marker(self) -> None:
        self.faults["marker of the numbers lost"] += 1
        self.dynamodb.delete_item(TableName="numbers", Key={"id": {"S": MARKER}})
        self.ledger.begins(self.ledger.unmarked)

    def _restore_marker(self) -> None:
        self.ledger.ends(self.ledger.unmarked)
        self.numbers.mark(self.now_ms())

    def _livekit_falls(self) -> None:
        self.faults["LiveKit not reachable"] += 1
        self.livekit.down = True

    def _livekit_stands(self) -> None:
        self.livekit.down = False

    def _receiver_closes(self) -> None:
        self.faults["receiver down"] += 1
        self.receiver_closed = True

    def _receiver_opens(self) -> None:
        self.receiver_closed = False

    receiver_closed = False

    def _change_policy(self, workspace: str, policy: Policy) -> None:
        self.faults["policy changed"] += 1

        def change(seen: Workspace) -> Workspace:
            version = seen.policies[policy.name].version + 1
            changed = dataclasses.replace(policy, version=version)
            return dataclasses.replace(seen, policies={**seen.policies, policy.name: changed})

        self.workspaces.update(workspace, change)
        self.ledger.policy_is(workspace, policy)

    # ── LiveKit's events, the stream ────────────────────────────────────────────────────────────────

    def _event(self, event: WebhookEvent) -> None:
        """Some are lost, late, or come twice; one that is not answered is sent again."""
        dice = self.dice.random()
        seconds = self.dice.uniform(0.02, 0.3)
        times = 1
        if dice < self.shares.events / 3:
            self.faults["event of LiveKit's lost"] += 1
            return
        if dice < 2 * self.shares.events / 3:
            self.faults["event of LiveKit's late"] += 1
            seconds = self.dice.uniform(1, 120)
        elif dice < self.shares.events:
            self.faults["event of LiveKit's twice"] += 1
            times = 2
        for _ in range(times):
            self._at(self.now_ms() + round(seconds * 1000), self._apply(event))

    async def _apply(self, event: WebhookEvent) -> None:
        applier = EventApplier(
            calls=self.calls,
            line=self.line,
            dial_queue=self.dial_queue,
            durations=self.durations,
            clock=self.now_ms,
        )
        for _ in range(3):
            applied = await self._in_process("livekit_events", lambda: applier.apply(event))
            if applied.answer is not None:
                return
            await asyncio.sleep(1)

    def _wrote(self, table: str, key: Key, before: Stored | None, after: Stored) -> None:
        if table != "calls":
            return
        if key[1] != "CALL":
            (self.pending_rows.add if after["state"] == "pending" else self.pending_rows.discard)(key)
            return
        call_id = after["callId"]
        status = after["status"]
        if status == "dialing" and (before is None or before["status"] != "dialing"):
            self.ledger.is_fenced(call_id)
        (self.open_calls.discard if status in ENDED else self.open_calls.add)(call_id)
        why = after.get("waitingFor")
        if why is not None and (before is None or before.get("waitingFor") != why):
            self.ledger.waited[call_id].append(why)
        if before is None or len(after["events"]) > len(before["events"]):
            image = {"NewImage": after.wire} | ({"OldImage": before.wire} if before is not None else {})
            number = f"{len(after['events'])}"
            change = {"Keys": {"pk": after.wire["pk"]}, "SequenceNumber": f"{call_id}-{number}"} | image
            self._stream.append({"eventID": f"{call_id}-{number}", "dynamodb": change})
            if not self._fan_out_runs:
                self._fan_out_runs = True
                self.loop.call_later(0.2, lambda: self.loop.create_task(self._fan_out()))

    async def _fan_out(self) -> None:
        """The stream's records to fan_out, batch after batch; from the first that failed again."""
        try:
            while self._stream:
                records = self._stream[:25]
                if self.dice.random() < self.shares.stream:
                    self.faults["stream late"] += 1
                    await asyncio.sleep(self.dice.uniform(1, 300))
                fan_out = FanOut(self.deliveries, self.webhook_queue, self.durations, self.now_ms)
                done: list[int | None] = []

                def work(fan_out: FanOut = fan_out, records: Any = records, done: Any = done) -> None:
                    done.append(fan_out.process(self.dead_letters, records))

                process = await self._in_process("fan_out", work)
                if not done or process.dead:
                    await asyncio.sleep(1)
                    continue
                failed = done[0]
                if failed is None and self.dice.random() < self.shares.stream:
                    self.faults["stream's records twice"] += 1
                    continue
                del self._stream[: len(records) if failed is None else failed]
        finally:
            self._fan_out_runs = False

    # ── what is left at the end ─────────────────────────────────────────────────────────────────────

    def unended(self) -> list[str]:
        """Accepted calls without exactly one end, and calls that no client was told of."""
        found = []
        for call_id, planned in self.ledger.planned.items():
            item = self.dynamodb.table("calls").get((f"CALL#{call_id}", "CALL"))
            ends = [] if item is None else [one for one in item["events"] if one["type"] == "call.ended"]
            if item is None or len(ends) != 1 or item["status"] not in ENDED:
                found.append(f"{call_id} ({planned.key}) has {len(ends)} ends")
        return found

    def events(self) -> set[str]:
        return {
            event_id(item["callId"], sequence)
            for key, item in self.dynamodb.table("calls").items()
            if key[1] == "CALL"
            for sequence in range(1, len(item["events"]) + 1)
        }

    def dead_rows(self) -> set[str]:
        """Events whose delivery was given up."""
        return {
            event_id(item["callId"], item["sequence"])
            for key, item in self.dynamodb.table("calls").items()
            if key[1] != "CALL" and item["state"] == "dead"
        }

    def left(self) -> list[str]:
        """What should be gone once all calls have ended, and what went wrong in the simulation itself."""
        found = [*self.problems]
        if not self._is_over():
            found.append(f"not over after {self.loop.time() / 3600:.0f} hours: {self._unfinished()}")
        if not self.ledger.rung:
            found.append("no phone rang")
        for item in self.dynamodb.table("workspaces").values():
            found += [f"{call_id} holds a slot" for call_id in item.get("activeCalls", ())]
        found += [f"dead letter: {message.body}" for messages in self.sqs.dead.values() for message in messages]
        for name, index in self.dynamodb.indexes.items():
            found += [f"{key} is in {name}" for entries in index.partitions.values() for _, key in entries]
        return found

    def _unfinished(self) -> dict[str, int]:
        return {
            "clients": self._clients,
            "calls": len(self.open_calls),
            "deliveries": len(self.pending_rows),
            "stream": len(self._stream),
            "processes": self.processes.running,
            "messages": self.sqs.under_way,
        }

    def ends(self) -> collections.Counter[str]:
        """Ends by reason."""
        items = (self.dynamodb.table("calls")[f"CALL#{call_id}", "CALL"] for call_id in self.ledger.planned)
        return collections.Counter(
            event["reason"] for item in items for event in item["events"] if event["type"] == "call.ended"
        )


class _StallingFences(CallStore):
    """A worker's calls. Some workers stall right before their fence, and some callees opt out meanwhile."""

    def __init__(self, world: World, process: Process) -> None:
        client: Any = world.dynamodb
        super().__init__(client, "calls")
        self._world, self._of = world, process

    def fence(self, seen: Any, *given: Any, **named: Any) -> Any:
        world = self._world
        if world.dice.random() < world.shares.aimed:
            world.faults["stalled right before the fence"] += 1
            if world.dice.random() < 0.5:
                world.faults["opted out while it stalls"] += 1
                opt_out = OptOut(world.now_ms(), seen.workspace_id, seen.to, "all")
                world._at(opt_out.at, world.opt_out(opt_out))
            virtual_time.wait_for(self._of.pause())
        return super().fence(seen, *given, **named)


class _Receivers(httpx.AsyncBaseTransport):
    """The customers' endpoints."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        sender = invocation.current.get()
        assert sender is not None
        return await sender.call(lambda: self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        world = self._world
        dice = world.dice.random() / max(world.shares.receivers, 1e-9)
        if world.receiver_closed:
            raise httpx.ConnectError("refused")
        if dice < 0.3:
            world.faults["receiver answers 500"] += 1
            return httpx.Response(500)
        if dice < 0.5:
            world.faults["receiver does not answer"] += 1
            await asyncio.sleep(1000)
        message_id = request.headers["webhook-id"]
        world.ledger.received.add(message_id)
        if dice < 0.7:
            world.faults["receiver's answer lost"] += 1
            raise httpx.ReadError("cut")
        if dice < 1:
            world.faults["receiver is slow"] += 1
            await asyncio.sleep(world.dice.uniform(1, 14))
        return httpx.Response(204)


def _failed(records: list[dict[str, Any]], results: list[Any]) -> set[str]:
    return {
        record["messageId"]
        for record, result in zip(records, results, strict=True)
        if isinstance(result, BaseException)
    }


def _sleep_in_thread(sleep: Callable[[float], None]) -> Callable[[float], None]:
    def sleep_in_thread(seconds: float) -> None:
        if virtual_time.in_thread():
            virtual_time.wait_for(asyncio.sleep(seconds))
        else:
            sleep(seconds)

    return sleep_in_thread
