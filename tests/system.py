"""The whole system in one process, for integration tests: the real handlers, DynamoDB and SQS faked by moto
(tables and queues made from template.yaml), LiveKit's stand-in and a webhook receiver over real HTTP.

Nothing moves by itself: a test pumps the queues and the stream, so it decides what happens between two steps.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import httpx
from aiohttp import web
from botocore.config import Config
from moto.core.botocore_stubber import BotocoreStubber
from moto.core.models import botocore_stubber
from samtranslator.yaml_helper import yaml_parse

from infra.public_models import WebhookEvent
from local.livekit import Faults
from local.livekit import Settings as StandinSettings
from local.livekit import create_app as create_standin
from local.receiver import create_app as create_receiver
from shared.callback_url import Policy
from shared.clock import now_ms
from shared.durations import Durations
from shared.dynamo import from_wire
from shared.limits import LimitStore
from shared.numbers import NumberStore, ensure_marker
from shared.table_keys import call_key
from shared.workspaces import Workspace, WorkspaceStore
from tests.clock import MINUTE, Clock
from tests.mocked_aws import mock_aws
from webhook_dispatch.transport import GuardedTransport, webhook_client

TEMPLATE = yaml_parse((Path(__file__).parent.parent / "template.yaml").read_text())
TIME_SCALE = 0.05
# Durations that are waited for are scaled. Time limits are not: production's must hold on the slowest machine. A
# test in which one of these is to run out sets it itself, or what it has written.
BOUNDS = (
    "workspace_cache",
    "name_lookup",
    "orphan_drop",
    "agent_wait",
    "answer_margin",
    "crowded",
    "decision_valid",
    "early_message",
    "fence_patience",
    "left_wait",
    "livekit_request",
    "livekit_look",
    "trunk_stop",
    "trunk_stop_longest",
    "webhook_connect",
    "webhook_attempt",
    "webhook_lease",
    "webhook_order",
)
# Longer than anything takes, on any machine.
DEADLINE_SECONDS = 120.0
API_KEY = "rk_test_key"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
REPORT = "POST /v1/api/call/{callId}/events"
LIVEKIT_KEY, LIVEKIT_SECRET = "devkey", "secret-of-at-least-thirty-two-characters"
EXAMPLE: dict[str, Any] = {
    "to": "+1234567890",
    "call_agent_id": "a1b2c3d4e5f6a7b8c9d0e1f2",
    "dynamic_variables": {"firstName": "Ada", "Zipcode": "94105"},
    "metadata": {"orderId": "o-1", "big": 12345678901234567890123, "one": 1.0},
}


class Context:
    """Lambda's context, as far as the handlers read it. seconds: what the process still has.

    It has them for as long as a test wants: how slow this machine is changes nothing.
    """

    aws_request_id = "request"
    function_name = "function"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:function"

    def __init__(self, seconds: float) -> None:
        self.remaining(seconds)

    def remaining(self, seconds: float) -> None:
        """Sets the remaining seconds, counted from now."""
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds * 1000)


class Servers:
    """Stand-in, receiver and the routes that LiveKit and the agent call, on a loop and thread of their own."""

    def __init__(self, handle: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
        # A function's answer to a request; a test may replace it.
        self.handle = handle
        self._at_work: set[asyncio.Future[dict[str, Any]]] = set()
        # A test that takes LiveKit's events for itself gets each body here.
        self.taken_by: Callable[[bytes], None] | None = None
        self._loop = asyncio.new_event_loop()
        self._runners: list[web.AppRunner] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.api_url = self._run(self._serve(self._api_app()))
        self.events_url = f"{self.api_url}/v1/livekit/events"
        standin = create_standin(
            StandinSettings(
                api_key=LIVEKIT_KEY,
                api_secret=LIVEKIT_SECRET,
                webhook_urls=(self.events_url,),
                faults=Faults(agent_join_seconds=0.02, ring_seconds=0.05, talk_seconds=0.2),
            )
        )
        self.livekit_url = self._run(self._serve(standin))
        self.receiver_url = self._run(self._serve(create_receiver((WEBHOOK_SECRET,))))

    def stop(self) -> None:
        for runner in self._runners:
            self._run(runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_until_idle(self) -> None:
        """Returns when no function works on a request any more."""

        async def idle() -> None:
            while self._at_work:
                await asyncio.wait(self._at_work)

        self._run(idle())

    async def _handled(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        work = asyncio.ensure_future(asyncio.to_thread(self.handle, function, event))
        self._at_work.add(work)
        work.add_done_callback(self._at_work.discard)
        return await work

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_SECONDS)

    async def _serve(self, app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        return f"http://127.0.0.1:{port}"

    def _api_app(self) -> web.Application:
        async def post_livekit_event(request: web.Request) -> web.Response:
            body = await request.read()
            if self.taken_by is not None:
                self.taken_by(body)
                return web.Response()
            event = http_event("POST /v1/livekit/events", body, dict(request.headers), in_base64=True)
            answer = await self._handled("livekit_events", event)
            return web.Response(status=answer["statusCode"], text=answer["body"])

        async def post_report(request: web.Request) -> web.Response:
            event = http_event(REPORT, await request.read(), dict(request.headers), path=dict(request.match_info))
            answer = await self._handled("calls_api", event)
            return web.Response(status=answer["statusCode"], text=answer["body"], headers=answer["headers"])

        app = web.Application()
        app.router.add_post("/v1/livekit/events", post_livekit_event)
        app.router.add_post("/v1/api/call/{callId}/events", post_report)
        return app


def http_event(
    route: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    path: dict[str, str] | None = None,
    query: dict[str, str] | None = None,
    in_base64: bool = False,
) -> dict[str, Any]:
    """An event of API Gateway's HTTP API, payload format 2.0."""
    return {
        "version": "2.0",
        "routeKey": route,
        "headers": {name.lower(): value for name, value in (headers or {}).items()},
        "pathParameters": path or {},
        "queryStringParameters": query or {},
        "requestContext": {"requestId": "request-1", "http": {"method": route.split()[0]}},
        "body": base64.b64encode(body).decode() if in_base64 else body.decode(),
        "isBase64Encoded": in_base64,
    }


class System:
    """One account's worth of Ringonce. `reset` makes it as new."""

    _iterator: str
    modules: dict[str, Any]

    def __init__(self) -> None:
        self._mock = mock_aws()
        self._mock.start()
        _one_request_at_a_time()
        os.environ |= {
            "AWS_DEFAULT_REGION": "us-east-1",
            "POWERTOOLS_METRICS_NAMESPACE": "Ringonce",
            "POWERTOOLS_SERVICE_NAME": "test",
            "CALLS_TABLE": "CallsTable",
            "WORKSPACES_TABLE": "WorkspacesTable",
            "NUMBERS_TABLE": "NumbersTable",
            "LIVEKIT_SECRET_NAME": "ringonce/livekit",
        }
        self.dynamodb = boto3.client("dynamodb")
        # moto knows only the regional endpoint, not the one with the account id.
        self.streams = boto3.client("dynamodbstreams", config=Config(account_id_endpoint_mode="disabled"))
        self.sqs = boto3.client("sqs")
        self.secrets = boto3.client("secretsmanager")
        production = Durations()
        bounds: dict[str, Any] = {name: getattr(production, name) for name in BOUNDS}
        # LiveKit's event: production gives it two seconds, and every test here sends it.
        bounds["left_wait"] = 20
        self.durations = dataclasses.replace(production.scaled(TIME_SCALE), **bounds)
        self.workspaces = WorkspaceStore(self.dynamodb, "WorkspacesTable")
        self.limits = LimitStore(self.dynamodb, "WorkspacesTable", "NumbersTable")
        self.numbers = NumberStore(self.dynamodb, "NumbersTable")
        self.servers = Servers(lambda handler, event: self.handlers[handler](event, Context(20)))
        os.environ["PUBLIC_API_URL"] = self.servers.api_url
        self._make_resources()
        self.handlers = self._import_handlers()
        self.http = httpx.Client(timeout=DEADLINE_SECONDS)

    def close(self) -> None:
        self.http.close()
        deliver = self.modules["deliver"]
        deliver.runner.run(deliver.deliverer.client.aclose())
        deliver.runner.close()
        self.modules["dial_worker"].runner.close()
        self.modules["reconcile_calls"].runner.close()
        self.servers.stop()
        self._mock.stop()

    def reset(self) -> None:
        self.http.post(f"{self.servers.livekit_url}/_standin/reset").raise_for_status()
        # Work that the previous test left under way must not write or log into this one.
        self.servers.wait_until_idle()
        self.http.post(f"{self.servers.receiver_url}/_receiver/reset").raise_for_status()
        self._mock.reset()
        self._make_resources()
        self.forget_workspaces()

    def forget_workspaces(self) -> None:
        """As a minute later: every function reads the workspace anew."""
        for module in self.modules.values():
            for name in ("workspace_cache", "livekit_secret"):
                if hasattr(module, name):
                    forget(getattr(module, name))
        for holder, name in (("initiate_call", "acceptor"), ("deliver", "deliverer")):
            held = getattr(self.modules[holder], name)
            for cache in (held.workspaces, getattr(held, "rate_limit", None)):
                if cache is not None:
                    forget(cache)

    # ── what a client does ──────────────────────────────────────────────────────────────────────

    def post(self, body: Any, headers: dict[str, str] | None = None, **event: Any) -> dict[str, Any]:
        """POST /v1/api/call. body: bytes as they are, anything else as JSON."""
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"x-workspace-id": "demo", "x-api-key": API_KEY} | (headers or {})
        sent = http_event("POST /v1/api/call", given, all_headers, **event)
        return self.handlers["initiate_call"](sent, Context(10))

    def api(
        self,
        route: str,
        call_id: str | None = None,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        path: dict[str, str] | None = None,
        body: Any = b"",
    ) -> dict[str, Any]:
        """Any other route of a client's; the answer with its body parsed under `json`. body: bytes as they are,
        anything else as JSON.
        """
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"x-workspace-id": "demo", "x-api-key": API_KEY} | (headers or {})
        parameters = ({"callId": call_id} if call_id else {}) | (path or {})
        answer = self.handlers["calls_api"](
            http_event(route, given, all_headers, path=parameters, query=query), Context(20)
        )
        return answer | {"json": json.loads(answer["body"])}

    def report(
        self, call_id: str, body: bytes, token: str, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """POST of an agent's report; the answer with its body parsed under `json`."""
        all_headers = {"authorization": f"Bearer {token}"} | (headers or {})
        event = http_event(REPORT, body, all_headers, path={"callId": call_id}, in_base64=True)
        answer = self.handlers["calls_api"](event, Context(20))
        return answer | {"json": json.loads(answer["body"])}

    def place(self, to: str = "+15550000000", *, headers: dict[str, str] | None = None, **fields: Any) -> str:
        """An accepted call's id."""
        body = {
            "to": to,
            "call_agent_id": "agent-1",
            "callback_url": f"{self.servers.receiver_url}/hook",
            "metadata": {"n": 1},
        }
        answer = self.post(body | fields, headers)
        assert answer["statusCode"] == 200, answer
        call_id = json.loads(answer["body"])["callId"]
        assert isinstance(call_id, str)
        return call_id

    @contextmanager
    def stopped_clock(self) -> Iterator[Clock]:
        """Stops the clock of the route that places calls."""
        # From the beginning of this minute.
        module, clock = self.modules["initiate_call"], Clock(now_ms() // MINUTE * MINUTE)
        before, module.acceptor = module.acceptor, dataclasses.replace(module.acceptor, clock=clock)
        try:
            yield clock
        finally:
            module.acceptor = before

    # ── what AWS does ───────────────────────────────────────────────────────────────────────────

    def receive(self, queue: str) -> list[dict[str, Any]]:
        """Up to ten visible messages, as Lambda passes them."""
        answer = self.sqs.receive_message(
            QueueUrl=self.queue_urls[queue], MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"]
        )
        return [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
            }
            for message in answer.get("Messages", [])
        ]

    def pump_queue(self, queue: str, handler: str, seconds: float = 120) -> int:
        """One batch, acknowledged as the handler says. Returns how many messages there were."""
        records = self.receive(queue)
        if not records:
            return 0
        answer = self.handlers[handler]({"Records": records}, Context(seconds))
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for record in records:
            if record["messageId"] not in failed:
                self.sqs.delete_message(QueueUrl=self.queue_urls[queue], ReceiptHandle=record["receiptHandle"])
        return len(records)

    def dial(self, seconds: float = 120) -> int:
        return self.pump_queue("DialQueue", "dial_worker", seconds)

    def reconcile(self) -> dict[str, Any]:
        """One run of what AWS starts every minute."""
        return self.handlers["reconcile_calls"]({}, Context(55))

    def deliver(self) -> int:
        """Stream to fan_out, then one batch of webhooks."""
        self.pump_stream()
        return self.pump_queue("WebhookQueue", "deliver")

    def pump_stream(self) -> int:
        """All stream records not yet handed out that pass the template's filter, in one batch."""
        answer = self.streams.get_records(ShardIterator=self._iterator)
        self._iterator = answer["NextShardIterator"]
        records = [
            record
            for record in answer["Records"]
            if record["dynamodb"]["Keys"]["sk"]["S"] == "CALL"
            and "callbackUrl" in record["dynamodb"].get("NewImage", {})
        ]
        if records:
            assert self.handlers["fan_out"]({"Records": records}, Context(30)) == {"batchItemFailures": []}
        return len(records)

    def run_until(self, done: Callable[[], bool], seconds: float = DEADLINE_SECONDS, *, dial: bool = True) -> None:
        """Pumps everything until `done`, or fails after `seconds`. dial: not the dial queue, if False."""
        looked = time.monotonic()
        deadline = looked + seconds
        while not done():
            assert time.monotonic() < deadline, f"not done: {self.calls_placed()}"
            if (self.dial() if dial else 0) + self.deliver():
                looked = time.monotonic()
            else:
                _pause(looked)

    def wait_until(self, done: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
        """Looks until `done`, or fails after `seconds`; pumps nothing."""
        began = time.monotonic()
        while not done():
            assert time.monotonic() < began + seconds, f"not done: {self.calls_placed()}"
            _pause(began)

    # ── what a test sees ────────────────────────────────────────────────────────────────────────

    def item(self, call_id: str) -> dict[str, Any]:
        answer = self.dynamodb.get_item(TableName="CallsTable", Key=call_key(call_id), ConsistentRead=True)
        return from_wire(answer["Item"]) if "Item" in answer else {}

    def messages(self, queue: str) -> int:
        """How many messages a queue holds, visible, delayed or being worked on."""
        names: list[Any] = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesDelayed",
            "ApproximateNumberOfMessagesNotVisible",
        ]
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue_urls[queue], AttributeNames=names)
        return sum(int(value) for value in answer["Attributes"].values())

    def ended(self, call_id: str) -> bool:
        return "endedAt" in self.item(call_id)

    def events(self, call_id: str) -> list[str]:
        return [entry["type"] for entry in self.item(call_id)["events"]]

    def received(self, call_id: str) -> list[dict[str, Any]]:
        """The webhooks of a call; each body is one that the public models describe."""
        answer = self.http.get(f"{self.servers.receiver_url}/_receiver/events", params={"callId": call_id})
        events = answer.json()["events"]
        assert isinstance(events, list)
        for event in events:
            WebhookEvent.model_validate_json(event["body"])
        return events

    def calls_placed(self, number: str | None = None) -> list[dict[str, Any]]:
        """Every time a phone rang (or was about to), by the stand-in's own count."""
        params = {"number": number} if number else {}
        calls = self.http.get(f"{self.servers.livekit_url}/_standin/calls", params=params).json()["calls"]
        assert isinstance(calls, list)
        return calls

    def faults(self, **knobs: Any) -> None:
        self.http.put(f"{self.servers.livekit_url}/_standin/faults", json=knobs).raise_for_status()

    def sent_by_accepting(self) -> AbstractContextManager[list[str]]:
        """The names of the AWS operations that the route that places calls requests meanwhile."""
        acceptor = self.modules["initiate_call"].acceptor
        # All its stores have one client of DynamoDB.
        return aws_requests(acceptor.calls._client, acceptor.dial_queue._client)

    # ── how it is made ──────────────────────────────────────────────────────────────────────────

    def _make_resources(self) -> None:
        resources = TEMPLATE["Resources"]
        for name in ("CallsTable", "WorkspacesTable", "NumbersTable"):
            self.make_table(name)
        self.queue_urls: dict[str, str] = {}
        for name, resource in resources.items():
            if resource["Type"] == "AWS::SQS::Queue":
                visibility = str(resource["Properties"].get("VisibilityTimeout", 30))
                url = self.sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": visibility})
                self.queue_urls[name] = url["QueueUrl"]
        os.environ |= {
            "DIAL_QUEUE_URL": self.queue_urls["DialQueue"],
            "WEBHOOK_QUEUE_URL": self.queue_urls["WebhookQueue"],
            "WEBHOOK_DEAD_LETTER_QUEUE_URL": self.queue_urls["WebhookDeadLetterQueue"],
        }
        secret = {"url": self.servers.livekit_url, "apiKey": LIVEKIT_KEY, "apiSecret": LIVEKIT_SECRET}
        self.secrets.create_secret(Name="ringonce/livekit", SecretString=json.dumps(secret))
        self.workspaces.put(demo_workspace())
        ensure_marker(self.limits, self.numbers, now_ms())

    def make_table(self, name: str) -> None:
        """An empty table of the template; fan out follows its stream from then on."""
        self.dynamodb.create_table(TableName=name, **table_definition(name))
        if name != "CallsTable":
            return
        stream = self.streams.list_streams(TableName="CallsTable")["Streams"][0]["StreamArn"]
        shard = self.streams.describe_stream(StreamArn=stream)["StreamDescription"]["Shards"][0]
        self._iterator = self.streams.get_shard_iterator(
            StreamArn=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]

    def _import_handlers(self) -> dict[str, Callable[[dict[str, Any], Context], dict[str, Any]]]:
        with mock.patch.object(Durations, "from_environment", return_value=self.durations):
            self.modules = {
                "initiate_call": importlib.import_module("initiate_call.handler"),
                "dial_worker": importlib.import_module("dial_worker.handler"),
                "livekit_events": importlib.import_module("livekit_events.handler"),
                "fan_out": importlib.import_module("webhook_dispatch.fan_out_handler"),
                "reconcile_calls": importlib.import_module("reconcile_calls.handler"),
                "calls_api": importlib.import_module("calls_api.handler"),
                "deliver": importlib.import_module("webhook_dispatch.deliver_handler"),
            }
        # The receiver is on loopback, which the environment allows only beside an emulated AWS.
        policy = Policy(loopback=True)
        accepting, delivering = self.modules["initiate_call"], self.modules["deliver"]
        accepting.acceptor = dataclasses.replace(
            accepting.acceptor, callback_policy=policy, look_up=lambda host, port: []
        )
        delivering.runner.run(delivering.deliverer.client.aclose())
        client = webhook_client(GuardedTransport(policy), self.durations)
        delivering.deliverer = dataclasses.replace(delivering.deliverer, client=client)
        return {name: module.lambda_handler for name, module in self.modules.items()}


def _pause(since: float) -> None:
    """Seconds until the next look: a tenth of the time waited for, as each look costs CPU time."""
    time.sleep(min(0.2, 0.01 + (time.monotonic() - since) / 10))


def _one_request_at_a_time() -> None:
    """DynamoDB makes a write at one moment; moto reads, changes and writes back, whatever other threads do."""
    lock, process = threading.Lock(), BotocoreStubber.process_request

    def process_alone(request: Any) -> Any:
        with lock:
            return process(botocore_stubber, request)

    botocore_stubber.process_request = process_alone  # type: ignore[method-assign]


def table_definition(name: str) -> Any:
    """What CreateTable needs of a table of template.yaml."""
    properties = TEMPLATE["Resources"][name]["Properties"]
    wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
    definition = {key: properties[key] for key in wanted if key in properties}
    if "StreamSpecification" in properties:
        definition["StreamSpecification"] = {"StreamEnabled": True} | properties["StreamSpecification"]
    return definition


def demo_workspace(**changes: Any) -> Workspace:
    workspace = Workspace(
        workspace_id="demo",
        name="Demo",
        agent_name="outbound",
        sip_trunk_id="ST_demo",
        from_numbers=("+15550009999",),
        api_key_hashes=frozenset({hashlib.sha256(API_KEY.encode()).hexdigest()}),
        allowed_calling_codes=frozenset({"+1"}),
        calls_per_minute=3000,
        calls_per_second=50,
        webhook_secrets=(WEBHOOK_SECRET,),
    )
    return dataclasses.replace(workspace, **changes)


@contextmanager
def aws_requests(*clients: Any) -> Iterator[list[str]]:
    """Every HTTP request that these clients send meanwhile, in order, by the operation's name."""
    sent: list[str] = []

    def note(request: Any, **_: Any) -> None:
        target = request.headers["X-Amz-Target"]
        sent.append((target.decode() if isinstance(target, bytes) else target).rpartition(".")[2])

    for client in clients:
        # Before the fake AWS, which answers at the same event and so ends it.
        client.meta.events.register_first("before-send", note)
    try:
        yield sent
    finally:
        for client in clients:
            client.meta.events.unregister("before-send", note)


def forget(cache: Any) -> None:
    """Makes a cache read again at the next use."""
    if hasattr(cache, "_entries"):
        cache._entries.clear()
    if hasattr(cache, "_held"):
        cache._held.clear()
    if hasattr(cache, "_secret"):
        cache._secret = cache._failure = None
