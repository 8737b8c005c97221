"""The whole product in one process and in virtual time, with everything around it that can go wrong.

The functions' handlers are the real ones, loaded a second time with three things of their surroundings replaced:
the clock, the AWS clients (`aws.py`: moto without HTTP), and the TCP socket to LiveKit, which is a UNIX socket.
LiveKit is the stand-in with its whole wire protocol. What AWS does by itself (queues, stream, the rule that starts
the reconciler every minute) happens in `run`; a schedule may do any of it at any other time too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import dataclasses
import datetime
import functools
import hashlib
import importlib.util
import json
import math
import os
import pkgutil
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import aiohttp
import httpx
from aiohttp import web
from botocore.exceptions import ClientError
from livekit.api.twirp_client import ServerError, TwirpClient
from livekit.protocol.webhook import WebhookEvent
from moto.dynamodb.models.table import Table
from standardwebhooks import Webhook

import shared.canceling
import webhook_dispatch.fan_out
from initiate_call.rate_limit import RateLimit
from local.livekit import Faults as StandinFaults
from local.livekit import Settings as StandinSettings
from local.livekit import create_app as create_standin
from local.livekit.control import LIVEKIT
from local.livekit.rooms import Call as PlacedCall
from local.livekit.state import LiveKit
from local.livekit.webhooks import Notifier
from shared.call import ENDED, Call, event_id, iso
from shared.callback_url import Policy
from shared.dynamo import from_wire
from shared.limits import LimitStore, Standing
from shared.line import Line
from shared.livekit.secret import LiveKitSecretCache
from shared.numbers import ALL, MARKER, NumberStore, ensure_marker
from shared.policies import DEFAULT
from shared.policies import Policy as RingPolicy
from shared.slots import slots_of_key
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore
from simulate import invocation, virtual_time
from simulate.invocation import Faults, Invocation
from tests.fault_schedules import aws
from tests.fault_schedules.line_index import LineIndex
from tests.fault_schedules.line_promises import LinePromises
from tests.fault_schedules.number_promises import FOREVER, Move, NumberPromises, OptOut, Release, Wanted
from tests.mocked_aws import mock_aws
from tests.system import (
    API_KEY,
    LIVEKIT_KEY,
    LIVEKIT_SECRET,
    TEMPLATE,
    WEBHOOK_SECRET,
    demo_workspace,
    forget,
    http_event,
    table_definition,
)

T = TypeVar("T")

START_MS = 1_800_000_000_000
# The slots of each workspace.
TENANTS: Mapping[str, int] = {"demo": 2}
# Of each call, seconds.
MAX_DURATION = 300
# A call has ended so many seconds after its phone's last sign, as published for a lost event or a dead worker.
LAST_SIGN = 480
DIAL, WEBHOOK, DEAD_WEBHOOK = "dial", "webhook", "dead-webhook"
READ_EXPRESSION = "moto.dynamodb.parsing.expressions.UpdateExpressionParser.make"
CALLBACK_URL = "https://receiver.example/hook"
HANDLERS = {
    "initiate_call": "initiate_call.handler",
    "dial_worker": "dial_worker.handler",
    "livekit_events": "livekit_events.handler",
    "fan_out": "webhook_dispatch.fan_out_handler",
    "reconcile_calls": "reconcile_calls.handler",
    "calls_api": "calls_api.handler",
    "deliver": "webhook_dispatch.deliver_handler",
}
RESOURCES = {
    "initiate_call": "InitiateCall",
    "dial_worker": "DialWorker",
    "livekit_events": "LivekitEvents",
    "fan_out": "FanOut",
    "reconcile_calls": "ReconcileCalls",
    "calls_api": "CallsApi",
    "deliver": "Deliver",
}


# The modules of the product that sleep in a thread, and what they have of the module `time`.
SLEEPING = ("shared.dynamo", "shared.call_store", "shared.numbers", "calls_api.rescheduling")
IN_VIRTUAL_TIME = SimpleNamespace(sleep=virtual_time.sleep)


def copied_but_for_tables(given: T) -> T:
    return given if isinstance(given, Table) else copy.deepcopy(given)


class Environment:
    """What all schedules share: moto's tables, the loaded handlers, and the account they belong to at present."""

    def __init__(self) -> None:
        self.account: Account
        self.dynamodb = aws.DynamoDB(self.now_ms)
        self.sqs = aws.SQS(self.now_ms)
        self.folder = tempfile.TemporaryDirectory()
        self.socket = str(Path(self.folder.name) / "livekit")
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(mock_aws())
        for name in ("CallsTable", "WorkspacesTable", "NumbersTable"):
            # Other tests of this process may have made them.
            if name not in self.dynamodb.list_tables()["TableNames"]:
                self.dynamodb.create_table(TableName=name, **table_definition(name))
        session = aiohttp.ClientSession
        twirp_request = TwirpClient.request

        def unix_session(**given: Any) -> aiohttp.ClientSession:
            return session(**given | {"connector": aiohttp.UnixConnector(self.socket)})

        async def observed_request(
            client: TwirpClient, service: str, method: str, data: Any, *given: Any, **named: Any
        ) -> Any:
            sender = invocation.current.get()
            assert sender is not None

            async def send() -> Any:
                try:
                    answer = await twirp_request(client, service, method, data, *given, **named)
                except ServerError as exc:
                    self.account.refused(method, data, exc.code)
                    raise
                self.account.answered(sender, method, data, answer)
                return answer

            # A worker's dial, and its deletion of a room, follow its look at its lease at once: no process makes
            # sure of more.
            of_lease = method == "DeleteRoom" and sender.name == "dial_worker"
            return await sender.call(send, at_once=service == "SIP" or of_lease)

        sign = Notifier._sign

        def sign_in_virtual_time(notifier: Notifier, event: WebhookEvent) -> Any:
            event.created_at = self.now_ms() // 1000
            return sign(notifier, event)

        for target, replaced in (
            ("aiohttp.ClientSession", unix_session),
            ("livekit.api.twirp_client.TwirpClient.request", observed_request),
            ("local.livekit.state.now_ms", self.now_ms),
            ("local.livekit.webhooks.Notifier._sign", sign_in_virtual_time),
            # A metric takes longer than the request it counts, and is not read here.
            ("shared.telemetry._point", mock.MagicMock()),
            # moto reads an expression for longer than it takes to carry it out, and copies what it has read.
            (READ_EXPRESSION, functools.cache(pkgutil.resolve_name(READ_EXPRESSION))),
            # A transaction's conditions are checked before it (aws.py): nothing is to be undone.
            ("moto.dynamodb.models.copy", SimpleNamespace(deepcopy=copied_but_for_tables)),
            *((f"{module}.time", IN_VIRTUAL_TIME) for module in SLEEPING),
        ):
            self._undo.enter_context(mock.patch(target, replaced))
        in_thread = SimpleNamespace(run=virtual_time.wait_for, sleep=asyncio.sleep, to_thread=asyncio.to_thread)
        self._undo.enter_context(mock.patch.object(shared.canceling, "asyncio", in_thread))
        # Its rows one after the other: threads of its own would run outside the virtual time.
        one_by_one = SimpleNamespace(map=map)
        self._undo.enter_context(mock.patch.object(webhook_dispatch.fan_out, "pool", one_by_one))
        self._undo.enter_context(mock.patch.object(Line, "fill", self._fill_checked(Line.fill)))
        with self._surroundings():
            self.modules = {name: _load(module) for name, module in HANDLERS.items()}

    def now_ms(self) -> int:
        return self.account.now_ms()

    def _fill_checked(self, fill: Callable[..., int]) -> Callable[..., int]:
        def checked(line: Line, workspace: Workspace, standing: Standing) -> int:
            return self.account.fill_line(fill, line, workspace, standing)

        return checked

    def close(self) -> None:
        deliver = self.modules["deliver"]
        deliver.runner.run(deliver.deliverer.client.aclose())
        for module in self.modules.values():
            if hasattr(module, "runner"):
                module.runner.close()
        self._undo.close()
        self.folder.cleanup()

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        clients = {"dynamodb": self.dynamodb, "sqs": self.sqs, "secretsmanager": aws.SecretsManager()}
        variables = {
            "CALLS_TABLE": "CallsTable",
            "NUMBERS_TABLE": "NumbersTable",
            "WORKSPACES_TABLE": "WorkspacesTable",
            "LIVEKIT_SECRET_NAME": "ringonce/livekit",
            "PUBLIC_API_URL": "https://api.example",
            "TIME_SCALE": "1",
            "DIAL_QUEUE_URL": DIAL,
            "WEBHOOK_QUEUE_URL": WEBHOOK,
            "WEBHOOK_DEAD_LETTER_QUEUE_URL": DEAD_WEBHOOK,
        }
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch("shared.aws.client", clients.__getitem__),
            mock.patch("shared.clock.now_ms", self.now_ms),
        ):
            yield


def _load(name: str) -> Any:
    """A second instance of the module for this environment: other importers keep theirs, with its own clients."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass
class Request:
    """What a client sends, and the answers it got."""

    key: str
    number: str
    callback: bool
    call_id: str
    workspace_id: str = "demo"
    # What else is in its body.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    accepted: bool = False

    def body(self, **changes: Any) -> bytes:
        body: dict[str, Any] = {
            "to": self.number,
            "call_agent_id": "agent-1",
            "max_duration_seconds": MAX_DURATION,
            "metadata": {"key": self.key},
        }
        if self.callback:
            body["callback_url"] = CALLBACK_URL
        return json.dumps(body | dict(self.fields) | changes).encode()


class Late(list[Callable[[], Any]]):
    """Requests to AWS that are still to be carried out. news: called when there is one more."""

    def __init__(self, news: Callable[[], None]) -> None:
        super().__init__()
        self._news = news

    def append(self, request: Callable[[], Any]) -> None:
        super().append(request)
        self._news()


class Context:
    """Lambda's context, as far as the handlers read it."""

    aws_request_id = "request"

    def __init__(self, of: Invocation) -> None:
        self._of = of

    def get_remaining_time_in_millis(self) -> int:
        return int(self._of.seconds_left() * 1000)


class PermitsOfEachProcess:
    """In place of one process's RateLimit: every invocation here is a process of its own, as those that run side
    by side are on AWS. It has no permits of another's and does not wait, stalled or dead, for another's lock."""

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._limits: weakref.WeakKeyDictionary[Invocation, RateLimit] = weakref.WeakKeyDictionary()

    def _own(self) -> RateLimit:
        running = invocation.current.get()
        assert running is not None
        return self._limits.setdefault(running, RateLimit(self._store))

    def spend(self, workspace: Workspace, now: int) -> int:
        return self._own().spend(workspace, now)

    def give_back(self, workspace: Workspace, minute: int) -> None:
        self._own().give_back(workspace, minute)


class Account:
    """One account from its first day to the end of a schedule. Every assertion about a promise is made here."""

    def __init__(self, environment: Environment, tenants: Mapping[str, int] = TENANTS) -> None:
        """tenants: the number of slots of each workspace."""
        self.environment = environment
        environment.account = self
        self.loop = virtual_time.VirtualTimeLoop()
        # A write, a message, or the end of a process: there may be something to do.
        self._news = asyncio.Event()
        environment.sqs.queues.clear()
        aws.empty("CallsTable")
        aws.empty("WorkspacesTable")
        aws.empty("NumbersTable")
        self.workspaces = WorkspaceStore(environment.dynamodb, "WorkspacesTable")  # type: ignore[arg-type]
        dynamodb: Any = environment.dynamodb
        self.limits = LimitStore(dynamodb, "WorkspacesTable", "NumbersTable")
        self.numbers = NumberStore(dynamodb, "NumbersTable")
        ensure_marker(self.limits, self.numbers, START_MS)
        self.marked = True
        environment.dynamodb.wrote = lambda parameters: None
        environment.dynamodb.tokens.clear()
        self.calls: dict[str, Call] = {}
        self.line_index = environment.dynamodb.line_index = LineIndex(self.now_ms)
        self.line = LinePromises(self.now_ms, self.calls, self.line_index)
        for workspace_id, limit in tenants.items():
            self.workspaces.put(
                demo_workspace(
                    workspace_id=workspace_id,
                    sip_trunk_id=f"ST_{workspace_id}",
                    max_concurrent_calls=limit,
                    calls_per_second=2,
                )
            )
            self.line.limit_is(workspace_id, limit)
        environment.dynamodb.wrote = self._wrote
        self.sqs = environment.sqs
        self.sqs.sent = self._sent
        self.requests: dict[str, Request] = {}
        self.processes: list[Invocation] = []
        self.received: dict[str, set[bytes]] = {}
        self.receiver_does = "ok"
        self.event_faults: list[Faults] = []
        self.rings_at_end: dict[str, int] = {}
        # Requests to AWS that are still to be carried out.
        self.late = Late(self._news.set)
        # By call: dials that LiveKit called `unavailable` without a trace of the phone that they rang.
        self.untraceable: collections.Counter[str] = collections.Counter()
        self.gates = NumberPromises(self.now_ms, self.calls, self.untraceable)
        # By room whose dial was `unavailable`: when its worker looked since, epoch ms, and whether it saw a phone.
        self._looks: dict[str, list[tuple[int, bool]]] = {}
        self._broken: list[AssertionError] = []
        # When what is in the index of what is due is due.
        self._due: dict[tuple[str, str], int] = {}
        self._stream_at = 0
        self._fan_out: Invocation | None = None
        self._reconciler: Invocation | None = None
        self._next_minute = 60.0
        self._paused = False
        self._numbers: dict[str, dict[str, Any]] = {}
        self._knobs: dict[str, Any] = {}
        self._of_method: dict[str, Any] = {}
        self._of_events: dict[str, Any] = {}
        self._prepare_modules()
        Path(environment.socket).unlink(missing_ok=True)
        self._runner = self.loop.run_until_complete(self._serve())

    async def _serve(self) -> web.AppRunner:
        settings = StandinSettings(
            api_key=LIVEKIT_KEY,
            api_secret=LIVEKIT_SECRET,
            webhook_urls=("http://front/v1/livekit/events",),
            faults=StandinFaults(agent_join_seconds=2.2, ring_seconds=6, talk_seconds=15, seed=1),
        )
        app = create_standin(settings)
        app.router.add_post("/v1/livekit/events", self._on_event)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, self.environment.socket).start()
        self.livekit: LiveKit = app[LIVEKIT]
        return runner

    def close(self) -> None:
        for each in self.running():
            each.kill()
        self.loop.run_until_complete(self._end_everything())
        self.loop.close()

    async def _end_everything(self) -> None:
        await self._runner.cleanup()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _prepare_modules(self) -> None:
        """Nothing of an earlier account is remembered; caches age in virtual time; webhooks are received here."""
        modules = self.environment.modules
        found = [value for module in modules.values() for value in vars(module).values()]
        for holder in (
            modules["initiate_call"].acceptor,
            modules["deliver"].deliverer,
            modules["calls_api"].canceler,
        ):
            found += [getattr(holder, name) for name in holder.__slots__]
        for cache in found:
            if isinstance(cache, (WorkspaceCache, LiveKitSecretCache)):
                cache._clock = self.loop.time
                forget(cache)
        accepting, deliver = modules["initiate_call"], modules["deliver"]
        permits: Any = PermitsOfEachProcess(self.limits)
        accepting.acceptor = dataclasses.replace(
            accepting.acceptor, callback_policy=Policy(), look_up=lambda host, port: [], rate_limit=permits
        )
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._on_webhook), timeout=15)
        deliver.deliverer = dataclasses.replace(deliver.deliverer, client=client)

    # ── time ────────────────────────────────────────────────────────────────────────────────────

    def now_ms(self) -> int:
        return START_MS + int(self.loop.time() * 1000)

    def wait(self, seconds: float) -> None:
        """Time passes, what runs goes on; AWS starts nothing."""
        self._do(asyncio.sleep(seconds))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # ── processes ───────────────────────────────────────────────────────────────────────────────

    def _start(self, function: str, faults: Faults, work: Callable[[Context], Awaitable[Any]]) -> Invocation:
        lives = TEMPLATE["Resources"][RESOURCES[function]]["Properties"]["Timeout"]
        started = Invocation(function, faults, lives, self.late)
        started.start(lambda: work(Context(started)), over=self._news.set)
        self.processes.append(started)
        return started

    def _start_sync(self, function: str, faults: Faults, event: dict[str, Any]) -> Invocation:
        handler = self.environment.modules[function].lambda_handler
        return self._start(function, faults, lambda context: asyncio.to_thread(handler, event, context))

    async def _over(self, awaited: Invocation) -> Invocation:
        """Waits until a process has ended, or stalls."""
        assert awaited.task is not None
        while not awaited.task.done() and not awaited.stalled:
            await asyncio.wait([awaited.task], timeout=0.1)
        return awaited

    def running(self) -> list[Invocation]:
        self.processes = [each for each in self.processes if each.task is not None and not each.task.done()]
        return self.processes

    def stalls(self) -> bool:
        return any(each.stalled for each in self.running())

    async def _on_event(self, request: web.Request) -> web.Response:
        """LiveKit's webhook, as API Gateway hands it over."""
        faults = self.event_faults.pop(0) if self.event_faults else {}
        event = http_event("POST /v1/livekit/events", await request.read(), dict(request.headers), in_base64=True)
        handled = await self._over(self._start_sync("livekit_events", faults, event))
        if handled.answer is None:
            return web.Response(status=502)
        return web.Response(status=handled.answer["statusCode"], text=handled.answer["body"])

    async def _on_webhook(self, request: httpx.Request) -> httpx.Response:
        """A customer's endpoint. Verifies the signature and that an id always comes with the same bytes."""
        sender = invocation.current.get()
        assert sender is not None
        return await sender.call(lambda: self._answer_webhook(request))

    async def _answer_webhook(self, request: httpx.Request) -> httpx.Response:
        if self.receiver_does == "refuses":
            raise httpx.ConnectError("refused")
        if self.receiver_does == "hangs":
            await asyncio.sleep(1000)
        if self.receiver_does == "fails":
            return httpx.Response(500, stream=httpx.ByteStream(b""))
        body = await request.aread()
        message_id, headers = request.headers["webhook-id"], request.headers
        at = int(headers["webhook-timestamp"])
        if headers["webhook-signature"] != _signature(message_id, at, body):
            self._broken.append(AssertionError(headers))
        self.received.setdefault(message_id, set()).add(body)
        if self.receiver_does == "forgets to answer":
            raise httpx.ReadError("cut")
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    # ── what clients, operators and callees do ──────────────────────────────────────────────────

    def place(
        self, outcome: str, callback: bool, faults: Faults, workspace_id: str = "demo", **number_faults: Any
    ) -> None:
        number = f"+1555123{len(self.requests):04}"
        self._numbers[number] = {"outcome": outcome} | number_faults
        self._set_faults()
        self.place_to(number, callback, faults, workspace_id)

    def place_to(
        self,
        number: str,
        callback: bool,
        faults: Faults,
        workspace_id: str = "demo",
        *,
        scheduled_in: float | None = None,
        expires_in: float | None = None,
        purpose: str | None = None,
    ) -> None:
        """Another call to a number that has its fate. scheduled_in, expires_in: whole seconds from now."""
        key = f"key-{len(self.requests)}"
        call_id = hashlib.sha256(json.dumps([workspace_id, key]).encode()).hexdigest()[:24]
        fields: dict[str, Any] = {"purpose": purpose} if purpose else {}
        at_ms = {
            name: self._in_whole_seconds(seconds)
            for name, seconds in (("scheduled_at", scheduled_in), ("expires_at", expires_in))
            if seconds is not None
        }
        fields |= {name: iso(ms) for name, ms in at_ms.items()}
        self.requests[key] = Request(key, number, callback, call_id, workspace_id, fields)
        self.gates.wanted[call_id] = Wanted(
            purpose or DEFAULT, at_ms.get("scheduled_at", 0), at_ms.get("expires_at", FOREVER)
        )
        self.repeat(key, faults)

    def _in_whole_seconds(self, seconds: float) -> int:
        return (self.now_ms() + int(seconds * 1000)) // 1000 * 1000

    def limit(self, workspace_id: str, limit: int) -> None:
        """Calls of the workspace at a time, from now on."""
        self.line.limit_is(workspace_id, limit)
        self.workspaces.update(workspace_id, lambda seen: dataclasses.replace(seen, max_concurrent_calls=limit))

    def index_shows(self, delay_ms: Callable[[], int]) -> None:
        """delay: milliseconds until the index `line` shows a change, drawn for each."""
        self.line_index.delay_ms = delay_ms

    def repeat(self, key: str, faults: Faults) -> None:
        """The request of that key, once more. The client waits for its answer."""
        request = self.requests[key]
        of = (request.workspace_id, request.number, self.gates.wanted[request.call_id].purpose)
        held = [] if request.call_id in self.calls else self.gates.holding(*of, self.now_ms())
        answer = self._post(request, request.body(), faults)
        if answer is None or answer["statusCode"] in (429, 503):
            # 429: processes that died have taken the minute's permits with them.
            return
        if answer["statusCode"] == 403:
            assert not request.accepted, answer
            assert self.gates.may_hold(*of), answer
            return
        if answer["statusCode"] == 400:
            # Its policy is gone, its time is past, or it cannot ring before its deadline.
            assert not request.accepted, answer
            assert request.fields or self.gates.restricts(request.workspace_id), answer
            return
        assert answer["statusCode"] == 200, answer
        assert not held or held != self.gates.holding(*of, self.now_ms()), ("accepted, but suppressed", held)
        told = json.loads(answer["body"])
        assert told["callId"] == request.call_id, told
        request.accepted = True

    def reuse_key(self, key: str, faults: Faults) -> None:
        """The same key with another body: refused once the first is accepted, and never a second call."""
        request = self.requests[key]
        if request.accepted:
            answer = self._post(request, request.body(ring_timeout_seconds=11), faults)
            assert answer is None or answer["statusCode"] in (422, 503), answer

    def _post(self, request: Request, body: bytes, faults: Faults) -> dict[str, Any] | None:
        headers = {"x-workspace-id": request.workspace_id, "x-api-key": API_KEY, "idempotency-key": request.key}
        return self._asked("initiate_call", http_event("POST /v1/api/call", body, headers), faults)

    def _asked(self, function: str, event: dict[str, Any], faults: Faults) -> dict[str, Any] | None:
        async def ask() -> Invocation:
            return await self._over(self._start_sync(function, faults, event))

        asked = self._do(ask())
        assert asked.error is None, asked.error
        answer: dict[str, Any] | None = asked.answer
        return answer

    def cancel(self, key: str, faults: Faults) -> None:
        request = self.requests[key]
        event = http_event(
            "POST /v1/api/call/{callId}/cancel",
            headers={"x-workspace-id": request.workspace_id, "x-api-key": API_KEY},
            path={"callId": request.call_id},
        )
        answer = self._asked("calls_api", event, faults)
        assert answer is None or answer["statusCode"] in (200, 404, 409, 503), answer

    def switch(self, on: bool) -> None:
        if on:
            self.limits.pause(self.now_ms())
        else:
            self.limits.resume(self.now_ms())
        self._paused = on
        self._note_stops()

    def marker(self, there: bool) -> None:
        """The table of numbers is lost and made anew, empty of its marker; or an operator has restored it."""
        if there:
            self.numbers.mark(self.now_ms())
        else:
            self.environment.dynamodb.delete_item(TableName="NumbersTable", Key={"id": {"S": MARKER}})
        self.marked = there
        self._note_stops()

    def _note_stops(self) -> None:
        """Nothing may be fenced while dialling is paused, or while there is no marker."""
        stopped = self._paused or not self.marked
        if stopped and not self.line.paused:
            self.gates.stopped()
        elif self.line.paused and not stopped:
            self.gates.started()
        self.line.paused = stopped

    def rules(self, policies: dict[str, RingPolicy], workspace_id: str = "demo") -> None:
        """The workspace's policies, from now on."""
        self.workspaces.update(workspace_id, lambda seen: dataclasses.replace(seen, policies=policies))
        self.gates.rules_are(workspace_id, policies)

    def move(self, key: str, scheduled_in: float | None, faults: Faults) -> None:
        """A client moves a call. scheduled_in: whole seconds from now; None: at any time."""
        request = self.requests[key]
        at_ms = None if scheduled_in is None else self._in_whole_seconds(scheduled_in)
        asked = Move(at_ms or 0, self.now_ms())
        self.gates.moves.setdefault(request.call_id, []).append(asked)

        def answered(answer: dict[str, Any] | None) -> None:
            assert answer is None or answer["statusCode"] in (200, 400, 403, 404, 409, 503), answer
            asked.over_ms = self.now_ms()
            asked.acknowledged = answer is not None and answer["statusCode"] == 200

        event = http_event(
            "PATCH /v1/api/call/{callId}",
            json.dumps({"scheduled_at": None if at_ms is None else iso(at_ms)}).encode(),
            headers={"x-workspace-id": request.workspace_id, "x-api-key": API_KEY},
            path={"callId": request.call_id},
        )
        self._do(self._answered("calls_api", event, faults, answered))

    def opt_out(
        self,
        number: str,
        faults: Faults,
        workspace_id: str = "demo",
        *,
        scope: str = ALL,
        lasts: float | None = None,
    ) -> OptOut:
        """A client suppresses a number. lasts: whole seconds; None for ever."""
        until_ms = None if lasts is None else self._in_whole_seconds(lasts)
        asked = OptOut(workspace_id, number, scope, self.now_ms(), until_ms or FOREVER)
        self.gates.opt_outs.append(asked)
        body = {"scope": scope} | ({} if until_ms is None else {"expires_at": iso(until_ms)})

        def answered(answer: dict[str, Any] | None) -> None:
            # 400: its scope is no policy of the workspace, or its end has come before it.
            assert answer is None or answer["statusCode"] in (200, 400, 503), answer
            if answer is not None and answer["statusCode"] == 200:
                asked.acknowledged_ms = self.now_ms()

        event = self._about_number("PUT", workspace_id, number, json.dumps(body).encode())
        self._do(self._answered("calls_api", event, faults, answered))
        return asked

    def release(
        self, number: str, faults: Faults, workspace_id: str = "demo", *, scope: str | None = None
    ) -> None:
        """A client removes the suppression of a scope, or every one."""
        asked = Release(workspace_id, number, scope)
        self.gates.releases.append(asked)

        def answered(answer: dict[str, Any] | None) -> None:
            assert answer is None or answer["statusCode"] in (200, 404, 503), answer
            asked.over_ms = self.now_ms()

        event = self._about_number("DELETE", workspace_id, number, query={"scope": scope} if scope else None)
        self._do(self._answered("calls_api", event, faults, answered))

    def _about_number(
        self, method: str, workspace_id: str, number: str, body: bytes = b"", query: dict[str, str] | None = None
    ) -> dict[str, Any]:
        headers = {"x-workspace-id": workspace_id, "x-api-key": API_KEY}
        route = f"{method} /v1/api/suppression/{{number}}"
        return http_event(route, body, headers, path={"number": number}, query=query)

    async def _answered(
        self,
        function: str,
        event: dict[str, Any],
        faults: Faults,
        answered: Callable[[dict[str, Any] | None], None],
    ) -> Invocation:
        """One process is asked. answered: called with its answer once it has one, also after it has stalled, or
        with None when it dies."""
        asked = self._start_sync(function, faults, event)
        assert asked.task is not None

        def over(task: asyncio.Task[None]) -> None:
            try:
                assert asked.error is None, asked.error
                answered(asked.answer)
            except AssertionError as exc:
                self._broken.append(exc)

        asked.task.add_done_callback(over)
        return await self._over(asked)

    def callees_hang_up(self) -> None:
        """Those who talk hang up, those whose phone rings decline."""
        self._do(self._soon(lambda: self.livekit.hang_up(self.livekit.calls)))

    async def _soon(self, work: Callable[[], T]) -> T:
        return work()

    # ── what AWS does ───────────────────────────────────────────────────────────────────────────

    def hand_out(self, queue: str, which: int, faults: Faults, *, again: bool) -> None:
        """One message to a process now, whatever its delay. again: it will come another time, as a duplicate."""
        waiting = self.sqs.waiting(queue)
        message = waiting[which % len(waiting)]
        self._do(self._handed_out(queue, [message], faults))
        if again:
            waiting.append(dataclasses.replace(message, id=f"{message.id}-again", visible_at=self.now_ms()))

    async def _handed_out(self, queue: str, messages: list[aws.Message], faults: Faults) -> None:
        """A batch to one process, acknowledged as it says once it has ended."""
        function = "dial_worker" if queue == DIAL else "deliver"
        resource = TEMPLATE["Resources"]["DialQueue" if queue == DIAL else "WebhookQueue"]["Properties"]
        handed_out_before = [message for message in messages if message.received and "slotsItem" in message.body]
        self.line.counted["messages again"] += len(handed_out_before)
        records = self.sqs.receive(queue, messages, resource["VisibilityTimeout"])
        module = self.environment.modules[function]

        async def work(context: Context) -> Any:
            if queue == DIAL:
                answer = await module.dial_batch(records, context)
            else:
                answer = await module.deliver_batch(module.deliverer, records)
            self._acknowledge(queue, records, answer)
            return answer

        if records:
            self._start(function, faults, work)

    def _acknowledge(self, queue: str, records: list[dict[str, Any]], answer: dict[str, Any]) -> None:
        sender = invocation.current.get()
        if sender is not None and not sender.dead:
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            self.sqs.delete(queue, {record["messageId"] for record in records} - failed)

    def carry_out(self, which: int) -> None:
        """A late request to AWS; its answer is heard by no process."""
        with contextlib.suppress(ClientError):
            self.late.pop(which % len(self.late))()

    def lose(self, queue: str, which: int) -> None:
        waiting = self.sqs.waiting(queue)
        waiting.pop(which % len(waiting))

    def reconcile(self, faults: Faults) -> Invocation:
        """One run of the reconciler, beside any other."""

        async def start() -> Invocation:
            return self._start("reconcile_calls", faults, self.environment.modules["reconcile_calls"].run)

        return self._do(start())

    def run(self, seconds: float, faults: list[Faults], done: Callable[[], bool] = lambda: False) -> None:
        """AWS goes on by itself: queues and stream are handed out, the reconciler runs every minute. The first
        processes started meanwhile have these faults."""
        self._do(self._run(seconds, faults, done))

    async def _run(self, seconds: float, faults: list[Faults], done: Callable[[], bool]) -> None:
        end = self.loop.time() + seconds
        while end - self.loop.time() > 1e-6 and not self._broken and not done():
            for queue in (DIAL, WEBHOOK):
                if visible := self.sqs.visible(queue):
                    await self._handed_out(queue, visible[:10], faults.pop(0) if faults else {})
            self._fan_out_new(faults)
            if self.loop.time() >= self._next_minute:
                self._next_minute = 60 * (1 + self.loop.time() // 60)
                if self._is_over(self._reconciler) and self._needed_at() <= self.now_ms():
                    self._reconciler = self._start(
                        "reconcile_calls",
                        faults.pop(0) if faults else {},
                        self.environment.modules["reconcile_calls"].run,
                    )
            self.line.look()
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), max(0, min(self._next_change(), end) - self.loop.time()))

    @staticmethod
    def _is_over(each: Invocation | None) -> bool:
        return each is None or each.task is None or each.task.done() or each.stalled

    def _next_change(self) -> float:
        """The second at which AWS does something, if nothing happens before."""
        times = [60.0 * math.ceil(max(self._needed_at(), self.now_ms() + 1) / 60_000) - START_MS / 1000]
        for queue in (DIAL, WEBHOOK):
            times += [(message.visible_at - START_MS) / 1000 for message in self.sqs.waiting(queue)]
        if any(call.outcome is None for call in self.livekit.calls):
            times.append(self.loop.time() + 1)
        return min(times) + 0.001

    def _due_at(self) -> int:
        return min(self._due.values(), default=2**60)

    def _needed_at(self) -> int:
        """Epoch ms from which a run of the reconciler has something to do; the others are left out."""
        every = int(self.environment.modules["reconcile_calls"].settings.durations.slot_repair * 1000)
        now = self.now_ms()
        if any(self.line.waiting.values()):
            return now
        if not any(self.line.stale_ids(workspace_id) for workspace_id in self.line.limits):
            return self._due_at()
        return min(self._due_at(), now if now % every < 60_000 else now - now % every + every)

    def _fan_out_new(self, faults: list[Faults]) -> None:
        """The stream's next records to fan_out, one batch at a time; from the first that failed again."""
        records = aws.stream("CallsTable", self._stream_at, 25)
        wanted = [
            record
            for record in records
            if record["dynamodb"]["Keys"]["sk"]["S"] == "CALL"
            and "callbackUrl" in record["dynamodb"].get("NewImage", {})
        ]
        if not records or not self._is_over(self._fan_out):
            return
        if not wanted:
            self._stream_at += len(records)
            return
        handler = self.environment.modules["fan_out"].lambda_handler

        async def work(context: Context) -> Any:
            answer = await asyncio.to_thread(handler, {"Records": wanted}, context)
            sender = invocation.current.get()
            assert sender is not None
            failed = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
            if not sender.dead and not sender.ever_stalled:
                numbers = [record["dynamodb"]["SequenceNumber"] for record in records]
                self._stream_at += numbers.index(failed[0]) if failed else len(records)
            return answer

        self._fan_out = self._start("fan_out", faults.pop(0) if faults else {}, work)

    # ── what LiveKit and the receiver do ────────────────────────────────────────────────────────

    def livekit_dies(self, what: str, which: int, down: float, moment: float) -> bool:
        """An agent dies, a call's SIP service, or the server, a moment (seconds) after there was an agent or a
        phone for it to lose; False when there was none for 10 s."""
        livekit = self.livekit

        def dying() -> list[Any]:
            if what in ("agent leaves", "agent dies"):
                return [member for room in livekit.rooms.values() for member in room.working_agents()]
            return [call for call in livekit.calls if call.outcome is None]

        def die() -> bool:
            chosen = [each for index, each in enumerate(dying()) if index == which % len(dying())]
            match what:
                case "crash":
                    livekit.crash(down)
                case "restart":
                    livekit.restart(down, None, None)
                case "SIP service dies":
                    livekit.sip_dies(chosen)
                case _:
                    livekit.agents_die(chosen, at_once=what == "agent leaves")
            return bool(chosen)

        self.run(10, [], done=lambda: bool(dying()))
        self.run(moment, [])
        return self._do(self._soon(die))

    def livekit_is(self, **knobs: Any) -> None:
        self._knobs = knobs
        self._set_faults()

    def livekit_fails(self, method: str, **fault: Any) -> None:
        self._of_method[method] = fault
        self._set_faults()

    def livekit_events(self, **faults: Any) -> None:
        self._of_events = faults
        self._set_faults()

    def _set_faults(self) -> None:
        # All at once: the knobs' counters and dice begin anew at each change.
        knobs = {"numbers": self._numbers, "webhooks": self._of_events, **self._knobs, **self._of_method}
        self.livekit.set_faults(self.livekit.settings.faults.changed_by(knobs))

    # ── the promises ────────────────────────────────────────────────────────────────────────────

    def fill_line(self, fill: Callable[..., int], line: Line, workspace: Workspace, standing: Standing) -> int:
        """`Line.fill`, and whether it admitted no more than it may."""
        before = self.line.before_fill(workspace)
        admitted = fill(line, workspace, standing)
        try:
            self.line.filled(workspace, before, admitted)
        except AssertionError as exc:
            self._broken.append(exc)
        return admitted

    def _sent(self, body: str, in_batch: bool) -> None:
        self._news.set()
        if "slotsItem" in body:
            # The reconciler repeats one alone.
            self.line.counted["admissions sent" if in_batch else "messages repeated"] += 1

    def _wrote(self, parameters: dict[str, Any]) -> None:
        """Every state that an item is ever in."""
        self._news.set()
        try:
            self._check_write(parameters)
            self.line.look()
            self.line.check()
        except AssertionError as exc:
            # Raised here, in the middle of the product, it would be one more failure that the product survives.
            self._broken.append(exc)

    def _check_write(self, parameters: dict[str, Any]) -> None:
        written = parameters.get("Key") or parameters["Item"]
        if parameters["TableName"] == "WorkspacesTable":
            self._check_limits(written["workspaceId"]["S"])
            return
        if parameters["TableName"] == "NumbersTable":
            return
        key = {name: written[name] for name in ("pk", "sk")}
        item = from_wire(self.environment.dynamodb.get_item(TableName="CallsTable", Key=key)["Item"])
        place = (item["pk"], item["sk"])
        if "dueShard" in item:
            self._due[place] = item["checkAt"]
        else:
            self._due.pop(place, None)
        if item["sk"] == "CALL":
            self._check_step(self.calls.get(item["callId"]), Call.from_item(item))

    def _check_limits(self, key: str) -> None:
        slots = slots_of_key(key)
        wire = {"workspaceId": {"S": key}}
        if slots is not None:
            item = from_wire(self.environment.dynamodb.get_item(TableName="WorkspacesTable", Key=wire)["Item"])
            self.line.slots_written(*slots, frozenset(item.get("activeCalls", ())), self._oldest_read())
        elif key.startswith("trunk#ST_"):
            trunk = self.limits.trunk(key.removeprefix("trunk#"))
            self.line.trunks[trunk.trunk_id.removeprefix("ST_")] = trunk

    def _oldest_read(self) -> int:
        """Epoch ms from which a limit may have been read that is written by now."""
        began = min((each.began for each in self.running()), default=self.loop.time())
        return 0 if self.late else START_MS + int(began * 1000)

    def _check_step(self, before: Call | None, now: Call) -> None:
        self.calls[now.call_id] = now
        self.line.call_written(before, now)
        self.gates.call_written(before, now)
        types = [entry["type"] for entry in now.events]
        assert types.count("call.ended") == (1 if now.ended else 0), now.events
        assert not now.ended or types[-1] == "call.ended", now.events
        if before is not None:
            assert now.events[: len(before.events)] == before.events, (before, now)
            assert not before.ended or now.status == before.status, (before, now)
            if (before.status, now.status) == ("dialing", "queued") and self._untraceable(before):
                self.untraceable[now.call_id] += bool(self._placed(before))

    def _untraceable(self, call: Call) -> bool:
        """Whether its dial was `unavailable`, no event of LiveKit's reported a phone, and no look at its room
        showed one for half a minute: then no code could distinguish it from a dial that rang nothing."""
        looks = self._looks.get(call.room_name, [])
        return (
            (call.phone_seen_at_ms, call.phone_left) == (None, None)
            and bool(looks)
            and not any(seen for _, seen in looks)
            and looks[-1][0] - looks[0][0] >= 29_900
        )

    def refused(self, method: str, asked: Any, code: str) -> None:
        """A process has heard LiveKit's error."""
        if method == "CreateSIPParticipant":
            self._looks.pop(asked.room_name, None)
            if code == "unavailable":
                self._looks[asked.room_name] = []

    def answered(self, by: Invocation, method: str, asked: Any, answer: Any) -> None:
        """A process has heard LiveKit's answer."""
        if method == "ListParticipants" and by.name == "dial_worker" and asked.room in self._looks:
            seen = any(one.identity.startswith("call-") for one in answer.participants)
            self._looks[asked.room].append((self.now_ms(), seen))

    def rings(self, call_id: str) -> int:
        return sum(call.identity == f"call-{call_id}" for call in self.livekit.calls)

    def _placed(self, call: Call) -> list[PlacedCall]:
        """What rang since its fence."""
        return [
            placed
            for placed in self.livekit.calls
            if placed.identity == call.identity and placed.at_ms >= (call.dialed_at_ms or 0)
        ]

    def check(self) -> None:
        """What holds at any time."""
        for broken in self._broken:
            raise broken
        self.gates.look(self.livekit.calls)
        assert all(call.status in ENDED or call.due_shard is not None for call in self.calls.values()), self.calls
        for call_id, call in self.calls.items():
            rings = self.rings(call_id)
            assert rings <= 1 + self.untraceable[call_id], (rings, call.events)
            if call.ended:
                assert rings == self.rings_at_end.setdefault(call_id, rings), call
            for placed in self._placed(call):
                if placed.outcome is None and not call.ended and call_id not in self.line.excused:
                    assert call_id in self.line.ids(call.workspace_id), (placed.as_json(), call)
                # A phone that talks is hung up by request only, whatever its server has been through.
                removed = placed.disconnect_reason in ("ROOM_DELETED", "PARTICIPANT_REMOVED")
                assert not (removed and placed.answered_at_ms) or call.hangup, (placed.as_json(), call)
        for message_id, bodies in self.received.items():
            assert len(bodies) == 1, (message_id, bodies)
        self.line.check()

    def finish(self) -> None:
        """The faults stop: all end within the published bound, nothing is left, every event is received."""
        self._of_method, self._of_events, self.receiver_does, self.event_faults = {}, {}, "ok", []
        self.livekit_is()
        self.switch(on=False)
        self.marker(there=True)
        self.index_shows(lambda: 500)
        for each in self.running():
            each.wake()
        self.line.calm()
        self.gates.calm()
        began = self.now_ms()
        durations = self.environment.modules["dial_worker"].settings.durations
        switch = self.limits.switch()
        last_dial = max([began, *(switch.deadline_ms(call, began) for call in self.calls.values())])
        bound = (last_dial - began) / 1000 + 40 + MAX_DURATION + durations.end_margin + 300
        self.run(bound, [], done=lambda: all(call.ended for call in self.calls.values()))
        self.check()
        assert all(call.ended for call in self.calls.values()), self.calls
        for call in self.calls.values():
            last_sign = max([began, *(placed.ended_at_ms or 0 for placed in self._placed(call))])
            assert not self._placed(call) or (call.ended_at_ms or 0) <= last_sign + LAST_SIGN * 1000, call
        for request in self.requests.values():
            assert not request.accepted or request.call_id in self.calls, request
        # Now that nothing is due any more that could mend what they do.
        self.run(120, [], done=self._quiet)
        while self.late:
            self.carry_out(0)
        attempts = [at - self.now_ms() for (_, kind), at in self._due.items() if kind != "CALL"]
        self.run(1200 + max([0, *attempts]) / 1000, [], done=self._quiet)
        # Until the index shows the last end.
        self.wait(1)
        self.check()
        self.gates.finish()
        assert self._due == {}
        assert not any(self.line.slots.values()), self.line.slots
        assert self.line_index.is_empty(), [self.calls[call_id] for call_id in self.line_index.call_ids()]
        assert [call.as_json() for call in self.livekit.calls if call.outcome is None] == []
        expected = {
            event_id(call.call_id, sequence)
            for call in self.calls.values()
            for sequence in range(1, len(call.events) + 1)
            if call.callback_url is not None
        }
        assert set(self.received) == expected

    def _quiet(self) -> bool:
        """Nothing runs, is due, is on its way or talks."""
        return (
            not self.running()
            and self._needed_at() == 2**60
            and aws.stream_length("CallsTable") == self._stream_at
            and not self.sqs.waiting(DIAL)
            and not self.sqs.waiting(WEBHOOK)
            and all(call.outcome is not None for call in self.livekit.calls)
        )


def _signature(message_id: str, at: int, body: bytes) -> str:
    return Webhook(WEBHOOK_SECRET).sign(
        message_id, datetime.datetime.fromtimestamp(at, datetime.UTC), body.decode()
    )
