"""The memory that one run of the reconciler takes when everything that is due is as large as it may be.

The real reconcile, stores and boto3. The table is a process of its own, so that its memory does not count; LiveKit
finds every call well. A run that finds nothing, then one that finds the largest items: calls with full context and
reports, deliveries with as many attempts as an older version kept. The figures are of the process that reconciles,
imports included.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.table import Figure, report

ROOT = Path(__file__).parents[1]
# As many items as one round of the reconciler's once read at a time: half of them calls, half deliveries.
ITEMS = 1600
# As template.yaml gives the function.
MEMORY_MB = 512
ANSWER = "\U0001f600" * 500


def main() -> None:
    figures = []
    for items in (0, ITEMS):
        found = _measured(items)
        name = f"{items:,} of the largest items"
        figures += [
            Figure(f"peak memory of the process, {name}", found["resident"], "MB", MEMORY_MB / 2),
            Figure(f"... by Python (tracemalloc), {name}", found["allocated"], "MB"),
        ]
        if items:
            figures += [
                Figure("first write after", found["first_write"], "s"),
                Figure("all written after", found["all_written"], "s"),
            ]
    report("reconcile", figures)


def _measured(items: int) -> dict[str, float]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'functions'}:{ROOT}",
        "POWERTOOLS_SERVICE_NAME": "reconcile_calls",
        "POWERTOOLS_METRICS_NAMESPACE": "Ringonce",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    found: dict[str, float] = {}
    # tracemalloc takes memory and time itself: a process for each.
    for how in ("resident", "allocated"):
        with subprocess.Popen(
            [sys.executable, "-m", "bench.reconcile", "table", str(items)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
        ) as table:
            try:
                assert table.stdout
                url = table.stdout.readline().decode().strip()
                measured = subprocess.run(
                    [sys.executable, "-m", "bench.reconcile", how, str(items)],
                    cwd=ROOT,
                    env=environment | {"AWS_ENDPOINT_URL": url},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                )
            finally:
                table.terminate()
        if measured.returncode:
            raise SystemExit(measured.stderr)
        found |= json.loads(measured.stderr.splitlines()[-1])
    return found


# ── the table ───────────────────────────────────────────────────────────────────────────────────────


def _items(number: int) -> list[dict[str, Any]]:
    """On the wire, as large as they may be, all due."""
    from shared.call import event
    from shared.call_store import MAXIMUM_REPORTS, MAXIMUM_REPORTS_BYTES
    from shared.clock import now_ms
    from shared.delivery_store import sort_key
    from shared.dynamo import to_wire
    from shared.table_keys import call_key, due_shard
    from tests.calls import answered_record

    now = now_ms()
    # One character outside the basic plane: Python then keeps four bytes for each.
    text = json.dumps("x" * (MAXIMUM_REPORTS_BYTES // MAXIMUM_REPORTS - 20) + "\U0001f600", ensure_ascii=False)
    reports = [event("agent.note", now, data=text, reportId="0" * 64) for _ in range(MAXIMUM_REPORTS)]
    calls_own = [event(f"call.{kind}", now) for kind in ("queued", "dialing", "answered")]
    context = json.dumps({"text": "y" * (32 * 1024 - 20) + "\U0001f600"}, ensure_ascii=False)
    attempts = [{"at": now, "ms": 12, "status": 500, "answer": ANSWER} for _ in range(100)]
    made = []
    for n in range(number):
        call_id = f"{n % 16:x}{n:023x}"
        due = {"dueShard": due_shard(call_id), "checkAt": now - number + n}
        if n % 32 < 16:
            call = answered_record(
                now,
                call_id=call_id,
                room_name=f"room-{n}",
                events=(*calls_own, *reports),
                dynamic_variables=context,
                metadata='{"n": 1}',
            )
            made.append(call_key(call_id) | to_wire(call.to_item() | due))
        else:
            row = {
                "callId": call_id,
                "workspaceId": "demo",
                "sequence": 1,
                "state": "pending",
                "attempt": 3,
                "nextAttemptAt": now,
                "attempts": attempts,
                **due,
            }
            made.append(call_key(call_id, sort_key(1)) | to_wire(row))
    return made


class _Table:
    """As much of DynamoDB as the reconciler asks for."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = {(item["pk"]["S"], item["sk"]["S"]): item for item in items}

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "Query":
                return self._due(request)
            case "BatchGetItem":
                [(table, wanted)] = request["RequestItems"].items()
                found = [self.items[key["pk"]["S"], key["sk"]["S"]] for key in wanted["Keys"]]
                if "ProjectionExpression" in wanted:
                    names = wanted["ExpressionAttributeNames"]
                    kept = {names[name.strip()] for name in wanted["ProjectionExpression"].split(",")}
                    found = [{name: value for name, value in item.items() if name in kept} for item in found]
                return {"Responses": {table: found}, "UnprocessedKeys": {}}
            case "UpdateItem":
                key = request["Key"]
                item = self.items[key["pk"]["S"], key["sk"]["S"]]
                item["checkAt"] = request["ExpressionAttributeValues"][":check"]
                return {"Attributes": item} if request.get("ReturnValues") == "ALL_NEW" else {}
        raise ValueError(operation)

    def _due(self, request: dict[str, Any]) -> dict[str, Any]:
        shard, until = (request["ExpressionAttributeValues"][name]["N"] for name in (":shard", ":now"))
        start = request.get("ExclusiveStartKey", {"checkAt": {"N": "0"}, "pk": {"S": ""}})
        after = (int(start["checkAt"]["N"]), start["pk"]["S"])
        names = ("pk", "sk", "dueShard", "checkAt")
        found = sorted(
            (
                {name: item[name] for name in names}
                for item in list(self.items.values())
                if item["dueShard"]["N"] == shard and int(item["checkAt"]["N"]) <= int(until)
            ),
            key=lambda item: (int(item["checkAt"]["N"]), item["pk"]["S"]),
        )
        later = [item for item in found if (int(item["checkAt"]["N"]), item["pk"]["S"]) > after]
        page = later[: request["Limit"]]
        return {"Items": page} | ({"LastEvaluatedKey": page[-1]} if len(later) > len(page) else {})


def _serve(items: int) -> None:
    table = _Table(_items(items))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            text = json.dumps(table.answer(self.headers["x-amz-target"].split(".")[1], json.loads(body))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/x-amz-json-1.0")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Discards metrics and log lines."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


# ── what is measured ────────────────────────────────────────────────────────────────────────────────


def _measure(how: str, items: int) -> None:
    if how == "allocated":
        tracemalloc.start()
    from reconcile_calls.reconcile import Reconciler
    from shared import aws
    from shared.call_store import CallStore
    from shared.clock import now_ms
    from shared.delivery_store import DeliveryStore
    from shared.durations import Durations
    from shared.limits import Everything, LimitStore
    from shared.line import Line
    from shared.livekit.client import LiveKit, Presence
    from shared.numbers import NumberStore
    from shared.queues import Queue
    from shared.switch import Switch

    class AllWell(LiveKit):
        def __init__(self) -> None:
            """Without a client."""

        async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
            return dict.fromkeys(names, "both")

    class NotPaused(LimitStore):
        def switch(self) -> Switch:
            return Switch()

        def everything(self) -> Everything:
            return Everything()

        def numbers_noted(self) -> bool:
            return True

    class Marked(NumberStore):
        def marked(self) -> bool:
            return True

    class Nowhere(Queue):
        def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
            return "message"

        def send_batch(
            self, messages: Sequence[tuple[dict[str, Any], str]], delays_seconds: Sequence[float] = ()
        ) -> set[int]:
            return set()

    dynamodb = aws.client("dynamodb")
    writes: list[float] = []

    def note_write(**_: Any) -> None:
        writes.append(time.perf_counter())

    dynamodb.meta.events.register("before-call.dynamodb.UpdateItem", note_write)
    queue = Nowhere(aws.client("sqs"), "")
    calls, limits = CallStore(dynamodb, "CallsTable"), NotPaused(dynamodb, "WorkspacesTable")
    reconciler = Reconciler(
        calls=calls,
        deliveries=DeliveryStore(dynamodb, "CallsTable"),
        limits=limits,
        numbers=Marked(dynamodb, "NumbersTable"),
        line=Line(calls, limits, queue, Durations(), now_ms),
        dial_queue=queue,
        webhook_queue=queue,
        livekit=AllWell(),
        durations=Durations(),
        clock=now_ms,
        time_left=lambda: True,
    )
    began = time.perf_counter()
    done = asyncio.run(reconciler.run())
    assert sum(done.values()) == items, done
    found = {"first_write": writes[0] - began, "all_written": time.perf_counter() - began} if writes else {}
    if how == "allocated":
        found = {"allocated": tracemalloc.get_traced_memory()[1] / 1024**2}
    else:
        found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found), file=sys.stderr)


if __name__ == "__main__":
    _serve(int(sys.argv[2])) if sys.argv[1] == "table" else _measure(sys.argv[1], int(sys.argv[2]))
