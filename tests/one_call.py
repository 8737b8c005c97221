"""One call between a table, LiveKit and queues in memory, on a clock that the test moves: milliseconds a test.

The stores are the real ones. What other processes do in between is put before or after any request
(`OneCall.before`, `OneCall.after`).
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from dial_worker.dial import Dialler
from reconcile_calls.reconcile import Reconciler
from shared import telemetry
from shared.call import Call, Outcome, event, iso
from shared.call_store import CallStore
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import LiveKitError
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.client import LiveKit, OrphanRoomError, Presence, RoomView
from shared.messages import DialMessage
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore
from simulate.dynamodb_in_memory import DynamoDBInMemory

NOW = 1_800_000_060_000
CALL_ID = "a" * 24
WORKSPACE = Workspace(
    workspace_id="demo",
    name="Demo",
    agent_name="agent",
    sip_trunk_id="ST_1",
    from_numbers=("+12025550100", "+12025550101"),
    allowed_calling_codes=frozenset({"+1"}),
    max_concurrent_calls=2,
    calls_per_second=2,
)
CALL = Call(
    call_id=CALL_ID,
    workspace_id="demo",
    call_agent_id="agent-1",
    to="+12025550123",
    room_name="agent-1-room",
    job_id="job",
    created_at=iso(NOW),
    status="queued",
    events=(event("call.queued", NOW),),
    ring_timeout_seconds=40,
    max_duration_seconds=1800,
    queue_deadline_ms=NOW + 3_600_000,
    check_at_ms=NOW,
)


async def _at_once(request: Callable[..., Any], *given: Any, **named: Any) -> Any:
    return request(*given, **named)


class ScriptedLiveKit(LiveKit):
    """LiveKit with answers given by the test.

    views: what looks into the room find, one after the other; the last is repeated. fail: what requests of a
    method raise. presence: of each room that is listed. orphan: the room was left over by a crashed server.
    """

    def __init__(self) -> None:
        self.views: list[RoomView | LiveKitError] = []
        self.fail: dict[str, LiveKitError] = {}
        self.presence: dict[str, Presence] = {}
        self.orphan = False
        self.dispatches_lost = False
        self.phone_in_room = True
        self.asked: list[str] = []
        self.arguments: dict[str, Any] = {}

    def _request(self, method: str, **arguments: Any) -> None:
        self.asked.append(method)
        self.arguments[method] = arguments
        if method in self.fail:
            raise self.fail[method]

    async def create_room(self, name: str, room_metadata: str, agent_name: str, agent_metadata: str) -> str:
        self._request("create_room", name=name, room=room_metadata, agent=agent_name, metadata=agent_metadata)
        return "RM_1"

    async def delete_lost_dispatches(self, room: str) -> bool:
        self._request("delete_lost_dispatches", room=room)
        return self.dispatches_lost

    async def dispatch_agent(self, room: str, agent_name: str, agent_metadata: str) -> None:
        self._request("dispatch_agent", room=room, agent=agent_name, metadata=agent_metadata)

    async def delete_room(self, name: str) -> None:
        self._request("delete_room", name=name)
        if self.orphan:
            raise OrphanRoomError("unknown", 500)

    async def remove_orphan(self, name: str) -> None:
        self._request("remove_orphan", name=name)

    async def remove_participant(self, room: str, identity: str) -> bool:
        self._request("remove_participant", room=room, identity=identity)
        return self.phone_in_room

    async def view_room(self, room: str, identity: str) -> RoomView:
        self._request("view_room", room=room, identity=identity)
        view = self.views.pop(0) if len(self.views) > 1 else self.views[0]
        if isinstance(view, LiveKitError):
            raise view
        return view

    async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
        self._request("rooms_present", names=names)
        return {name: self.presence.get(name, "absent") for name in names}

    async def dial(self, **request: Any) -> None:
        self._request("dial", **request)


class SentMessages(Queue):
    """What was sent: body, group and delay in seconds. unconfirmed: places of a batch that are not sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], str | None, float]] = []
        self.unconfirmed: set[int] = set()

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        self.sent.append((body, group, delay_seconds))
        return "message"

    def send_batch(
        self, messages: Sequence[tuple[dict[str, Any], str]], delays_seconds: Sequence[float] = ()
    ) -> set[int]:
        delays = delays_seconds or [0] * len(messages)
        self.sent += [
            (body, group, delays[n]) for n, (body, group) in enumerate(messages) if n not in self.unconfirmed
        ]
        return self.unconfirmed


class OneCall:
    """now: epoch ms. seconds: what a dial worker has left at `NOW`. slept: each wait, in seconds. counted: the
    metrics' values. requests: what a test's last dial asked of the tables.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.seconds = 180.0
        self.durations = Durations()
        self.dynamodb = DynamoDBInMemory()
        client = cast(Any, self.dynamodb)
        self.calls = CallStore(client, "calls")
        self.deliveries = DeliveryStore(client, "calls")
        self.limits = LimitStore(client, "workspaces", "numbers")
        self.numbers = NumberStore(client, "numbers")
        self.workspaces = WorkspaceStore(client, "workspaces")
        self.livekit = ScriptedLiveKit()
        self.dial_queue, self.webhook_queue = SentMessages(), SentMessages()
        self.slept: list[float] = []
        self.requests: list[str] = []
        self.counted: collections.Counter[str] = collections.Counter()
        self.workspaces.put(WORKSPACE)
        self.numbers.mark(NOW)
        monkeypatch.setattr("asyncio.sleep", self._sleep)
        # A thread takes ten times as long as the request.
        monkeypatch.setattr("asyncio.to_thread", _at_once)
        monkeypatch.setattr("random.shuffle", lambda values: None)
        monkeypatch.setattr("random.randrange", lambda number: 0)
        monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
        monkeypatch.setattr(telemetry, "_point", self._point)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1000)

    def _point(self, metric: str, unit: Any, value: int, dimensions: dict[str, str]) -> None:
        self.counted[metric] += value

    # ── what is there ───────────────────────────────────────────────────────────────────────────────

    def place(self, **fields: Any) -> Call:
        self.calls.create(dataclasses.replace(CALL, **fields))
        return self.call

    @property
    def call(self) -> Call:
        call = self.calls.get(CALL_ID)
        assert call is not None
        return call

    @property
    def end(self) -> tuple[str, str] | None:
        """Status and reason of the call's end."""
        end = self.call.end_event
        return (end["status"], end["reason"]) if end else None

    @property
    def cleared(self) -> bool:
        """Whether the call has neither a slot nor an entry in the index of what is due."""
        return CALL_ID not in self.limits.active_calls("demo") and self.call.due_shard is None

    # ── what other processes do in between ──────────────────────────────────────────────────────────

    def before(self, part: object, method: str, action: Callable[[], Any], *, at: int = 1) -> None:
        """Has `action` done before the `at`-th request of this method."""
        self._wrap(part, method, at, action, lambda: None)

    def after(self, part: object, method: str, action: Callable[[], Any], *, at: int = 1) -> None:
        self._wrap(part, method, at, lambda: None, action)

    def _wrap(
        self, part: object, method: str, at: int, before: Callable[[], Any], after: Callable[[], Any]
    ) -> None:
        requests = 0
        original = getattr(part, method)

        def begin() -> bool:
            nonlocal requests
            requests += 1
            if requests == at:
                before()
            return requests == at

        def request(*given: Any, **named: Any) -> Any:
            its_turn = begin()
            answer = original(*given, **named)
            if its_turn:
                after()
            return answer

        async def async_request(*given: Any, **named: Any) -> Any:
            its_turn = begin()
            try:
                return await original(*given, **named)
            finally:
                if its_turn:
                    after()

        setattr(part, method, async_request if inspect.iscoroutinefunction(original) else request)

    def pass_to(self, now: int) -> Callable[[], None]:
        """An action: the clock shows `now`."""
        return lambda: setattr(self, "now", now)

    def cancel(self) -> None:
        """Another process ends the call or, once it is fenced, asks to hang it up."""
        if self.call.status == "queued":
            assert self.calls.end(self.call, Outcome("canceled", "canceled_by_api"), self.now, self.now).won
        else:
            assert self.calls.ask_to_hang_up(self.call, "canceled_by_api", self.now).won

    def cancel_call(self, call_id: str) -> None:
        """Another process ends another call, which is queued."""
        call = self.calls.get(call_id)
        assert call is not None
        assert self.calls.end(call, Outcome("canceled", "canceled_by_api"), self.now, self.now).won

    # ── the product's processes ─────────────────────────────────────────────────────────────────────

    @property
    def line(self) -> Line:
        return Line(self.calls, self.limits, self.dial_queue, self.durations, lambda: self.now)

    def dialler(self) -> Dialler:
        return Dialler(
            calls=self.calls,
            limits=self.limits,
            numbers=self.numbers,
            line=self.line,
            workspace_cache=WorkspaceCache(self.workspaces, 0),
            dial_queue=self.dial_queue,
            livekit=self.livekit,
            durations=self.durations,
            public_api_url="https://api.example",
            clock=lambda: self.now,
            remaining=lambda: self.seconds - (self.now - NOW) / 1000,
        )

    def message(self, since: int = NOW, slots_item: int | None = None) -> DialMessage:
        return DialMessage(CALL_ID, "demo", since, slots_item)

    def reconciler(self, **changes: Any) -> Reconciler:
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
            clock=lambda: self.now,
            time_left=lambda: True,
        )
        return dataclasses.replace(reconciler, **changes)
