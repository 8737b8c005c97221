"""The product's own code with a world around it that a test drives: processes that die or stall between any two
steps, messages and events that come late, twice, in any order or not at all, a clock that jumps.

DynamoDB is moto's, LiveKit is the stand-in over real HTTP, everything of functions/ is real. Queues are lists: a
message may be handed out at any time, whatever its delay, which is unkinder than SQS.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from google.protobuf.json_format import Parse
from livekit.protocol.webhook import WebhookEvent

from calls_api.cancel import Cancelling, cancel
from dial_worker.dial import Dialling, DialMessage, dial_call
from dial_worker.livekit_sip import LiveKit, connect
from initiate_call.accept import Accepting, accept
from livekit_events.settle import Settling, settle
from reconcile_calls.reconcile import Reconciling, reconcile
from shared.call_store import CallStore
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import RequestRefused
from shared.livekit_secret import LiveKitSecret
from shared.queues import Queue
from shared.workspaces import WorkspaceCache, WorkspaceStore
from tests.system import API_KEY, LIVEKIT_KEY, LIVEKIT_SECRET, System
from webhook_dispatch.address_guard import Policy

SCALE = 0.01
# What a Lambda of dial_worker has to live, at this scale.
PROCESS_SECONDS = 120 * SCALE


class Dead(BaseException):
    """The process is gone: raised at the point of death and at everything it would do after it."""


class Life:
    """One process. It dies, or stalls until it is woken, after so many steps; None: it lives."""

    def __init__(self, dies_after: int | None = None, stalls_after: int | None = None) -> None:
        self.steps = 0
        self._dies_after = dies_after
        self._stalls_after = stalls_after
        self.stalled = threading.Event()
        self.woken = threading.Event()

    def step(self) -> None:
        if self._dies_after is not None and self.steps >= self._dies_after:
            raise Dead
        if self._stalls_after is not None and self.steps == self._stalls_after:
            self.stalled.set()
            self.woken.wait(30)
        self.steps += 1


T = TypeVar("T")


def mortal(target: T, life: Life) -> T:
    """The same object, each of whose public methods is a step: the process may end before it and after it."""
    return cast(T, _Mortal(target, life))


class _Mortal:
    def __init__(self, target: object, life: Life) -> None:
        self._target = target
        self._life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        @functools.wraps(method)
        def plain(*given: Any, **named: Any) -> Any:
            self._life.step()
            result = method(*given, **named)
            self._life.step()
            return result

        @functools.wraps(method)
        async def awaited(*given: Any, **named: Any) -> Any:
            self._life.step()
            try:
                return await method(*given, **named)
            finally:
                self._life.step()

        return awaited if inspect.iscoroutinefunction(method) else plain


class Messages:
    """A queue of the test's: what was sent, to be handed out when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, Any]] = []
        self._ids = itertools.count(1)

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        self.waiting.append(body)
        return f"job-{next(self._ids)}"


class World:
    """One account. `clock` is real time plus what the test has jumped."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.durations = Durations().scaled(SCALE)
        self.jumped_ms = 0
        self.dial_queue = Messages()
        self.events: list[WebhookEvent] = []
        self.calls: dict[str, str] = {}  # call id → number
        self.rung_when_ended: dict[str, int] = {}
        self.threads: list[tuple[threading.Thread, Life]] = []
        system.servers.taken_by = self._on_event
        self.store = CallStore(system.dynamodb, "CallsTable")
        self.workspaces = WorkspaceStore(system.dynamodb, "WorkspacesTable")

    def clock(self) -> int:
        return time.time_ns() // 1_000_000 + self.jumped_ms

    def jump(self, seconds: float) -> None:
        """seconds: at the scale of production."""
        self.jumped_ms += int(seconds * SCALE * 1000)

    def _on_event(self, body: bytes) -> None:
        self.events.append(Parse(body, WebhookEvent(), ignore_unknown_fields=True))

    # ── processes ───────────────────────────────────────────────────────────────────────────────

    def request(self, number: str, key: str, life: Life) -> None:
        """A client's request, which it repeats until it is answered: the second time nothing dies."""
        for attempt in (life, Life()):
            parts = Accepting(
                calls=mortal(self.store, attempt),
                workspaces=WorkspaceCache(self.workspaces, 0),
                dial_queue=mortal(cast(Queue, self.dial_queue), attempt),
                durations=self.durations,
                callback_policy=Policy(),
                look_up=lambda host, port: [],
                clock=self.clock,
            )
            body = f'{{"to": "{number}", "call_agent_id": "agent-1", "max_duration_seconds": 30}}'.encode()
            try:
                call = accept(parts, "demo", API_KEY, key, body).call
            except Dead:
                continue
            self.calls[call.callId] = number
            return

    def dial(self, body: dict[str, Any], life: Life, process_seconds: float = PROCESS_SECONDS) -> bool:
        """One message to one worker. Returns whether it was acknowledged."""
        deadline = self.clock() + process_seconds * 1000

        async def run() -> None:
            async with self._livekit(life) as livekit:
                parts = Dialling(
                    calls=mortal(self.store, life),
                    workspaces=mortal(self.workspaces, life),
                    workspace_cache=WorkspaceCache(self.workspaces, 0),
                    dial_queue=mortal(cast(Queue, self.dial_queue), life),
                    livekit=livekit,
                    durations=self.durations,
                    public_api_url="https://api.example",
                    clock=self.clock,
                    remaining=lambda: max(0.0, (deadline - self.clock()) / 1000),
                )
                since = body.get("since", self.clock())
                await dial_call(parts, DialMessage(body["callId"], body["workspaceId"], since))

        return self._run(run)

    def stall(self, body: dict[str, Any], after: int) -> None:
        """A worker that stops after so many steps, until `wake`."""
        life = Life(stalls_after=after)
        thread = threading.Thread(target=self.dial, args=(body, life), daemon=True)
        thread.start()
        while thread.is_alive() and not life.stalled.wait(0.005):
            pass
        self.threads.append((thread, life))

    def wake(self) -> None:
        for thread, life in self.threads:
            life.woken.set()
            thread.join(30)
            assert not thread.is_alive()
        self.threads.clear()

    def reconcile(self, life: Life) -> None:
        async def run() -> None:
            async with self._livekit(life) as livekit:
                parts = Reconciling(
                    calls=mortal(self.store, life),
                    deliveries=DeliveryStore(self.system.dynamodb, "CallsTable"),
                    workspaces=mortal(self.workspaces, life),
                    dial_queue=mortal(cast(Queue, self.dial_queue), life),
                    webhook_queue=cast(Queue, Messages()),
                    livekit=livekit,
                    durations=self.durations,
                    clock=self.clock,
                    time_left=lambda: True,
                )
                await reconcile(parts)

        self._run(run)

    def settle(self, event: WebhookEvent, life: Life) -> None:
        parts = Settling(
            calls=mortal(self.store, life),
            workspaces=mortal(self.workspaces, life),
            durations=self.durations,
            clock=self.clock,
        )
        try:
            settle(parts, event)
        except Dead:
            self.events.append(event)  # LiveKit got no answer: it sends the event again.

    def cancel(self, call_id: str, life: Life) -> None:
        call = self.store.get(call_id)
        assert call is not None

        class Secret:
            def get(_) -> LiveKitSecret:
                return self._secret()

        parts = Cancelling(
            calls=mortal(self.store, life),
            workspaces=mortal(self.workspaces, life),
            livekit_secret=cast(Any, Secret()),
            durations=self.durations,
            clock=self.clock,
        )
        try:
            cancel(parts, call)
        except (Dead, RequestRefused):
            return

    # ── what must always hold, and what must hold in the end ────────────────────────────────────

    def rings(self, number: str) -> int:
        return len(self.system.calls_placed(number))

    def check(self) -> None:
        """At most one ring, no ring after the end, at most one end."""
        for call_id, number in self.calls.items():
            call = self.store.get(call_id)
            assert call is not None
            rings = self.rings(number)
            assert rings <= 1, (call_id, rings, call.events)
            types = [entry["type"] for entry in call.events]
            assert types.count("call.ended") == (1 if call.ended else 0), call.events
            if call.ended:
                assert types[-1] == "call.ended"
                assert rings == self.rung_when_ended.setdefault(call_id, rings), (call_id, call.events)

    def finish(self) -> None:
        """Faults stop: messages are delivered, the reconciler runs; everything ends and nothing is left."""
        self.wake()
        for _ in range(60):
            while self.dial_queue.waiting:
                self.dial(self.dial_queue.waiting.pop(0), Life())
            self.check()
            calls = [self.store.get(call_id) for call_id in self.calls]
            if all(call is not None and call.ended and call.dueShard is None for call in calls):
                break
            self.jump(120)
            self.reconcile(Life())
        else:
            raise AssertionError([call for call in calls if call is None or not call.ended])
        assert self.workspaces.active_calls("demo") == frozenset()

    # ── how it is done ──────────────────────────────────────────────────────────────────────────

    def _secret(self) -> LiveKitSecret:
        return LiveKitSecret(self.system.servers.livekit_url, LIVEKIT_KEY, LIVEKIT_SECRET)

    @asynccontextmanager
    async def _livekit(self, life: Life) -> AsyncIterator[LiveKit]:
        async with connect(self._secret(), self.durations.livekit_request * 10) as livekit:
            yield mortal(livekit, life)

    def _run(self, function: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        try:
            asyncio.run(function())
        except Dead:
            return False
        return True
