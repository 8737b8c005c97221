"""How many rows a second the reconciler looks at, and how many of the stream's records fan_out works on.

The handlers and boto3 against the emulated AWS. What the emulator takes is most of the time that passes, so two
figures are given: the processor's time of the function's process, which is what bounds it on Lambda, and the time
that passes. `BENCH_BEFORE=FOLDER` measures another version's `functions` too, in turns with this one's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.emulated import Emulated, emulated_aws
from bench.table import Figure, report

ROOT = Path(__file__).parents[1]
THIS = ROOT / "functions"
ROUNDS = 3
ROWS = 400
# As many of the stream's records as template.yaml gives one invocation, and how many invocations.
BATCH, BATCHES = 25, 16
# As many as the handlers have.
THREADS = 20
# Each request waits for so long more: what DynamoDB and SQS usually take, and the emulator beside us does not.
AWAY_SECONDS = 0.005


def main() -> None:
    versions = {"": THIS}
    if before := os.environ.get("BENCH_BEFORE"):
        versions = {"before: ": Path(before), **versions}
    seen: dict[tuple[str, str], list[float]] = {}
    with emulated_aws() as aws:
        for _ in range(ROUNDS):
            for version, folder in versions.items():
                for what, prepare in (("calls", _live_calls), ("deliveries", _pending), ("records", _nothing)):
                    aws.empty("CallsTable")
                    prepare(aws)
                    for figure, value in _measured(aws, folder, what).items():
                        seen.setdefault((version, f"{what} {figure}"), []).append(value)
    figures = []
    for (version, name), values in seen.items():
        what, figure = name.split()
        text = f"{version}{TOLD[what]}, {'processor' if figure == 'cpu' else 'elapsed'}"
        figures.append(Figure(text, statistics.median(values), "ms each"))
        figures.append(Figure("... a second", 1000 / statistics.median(values), "/s"))
    report("throughput", figures)


TOLD = {
    "calls": "reconciler, a live call looked at",
    "deliveries": "reconciler, a delivery sent again",
    "records": "fan_out, a record of the stream",
}


def _measured(aws: Emulated, folder: Path, what: str) -> dict[str, float]:
    measured = subprocess.run(
        [sys.executable, "-m", "bench.throughput", what],
        cwd=ROOT,
        env=aws.environment(folder),
        # The handler's output is discarded; the figures are on stderr.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if measured.returncode:
        raise SystemExit(measured.stderr)
    found: dict[str, float] = json.loads(measured.stderr.splitlines()[-1])
    return found


# ── what is due ─────────────────────────────────────────────────────────────────────────────────────


def _nothing(aws: Emulated) -> None:
    """fan_out brings its records along."""


def _live_calls(aws: Emulated) -> None:
    from shared.clock import now_ms
    from shared.dynamo import to_wire
    from shared.table_keys import call_key, due_shard

    now = now_ms()
    calls = (call_item(f"{n % 16:x}{n:023x}", now) for n in range(ROWS))
    _put(
        aws,
        [
            call_key(one["callId"]) | to_wire(one | {"dueShard": due_shard(one["callId"]), "checkAt": now - 1000})
            for one in calls
        ],
    )


def _pending(aws: Emulated) -> None:
    from shared.clock import now_ms
    from shared.delivery_store import DeliveryStore

    store, now = DeliveryStore(aws.client("dynamodb"), "CallsTable"), now_ms()
    for n in range(ROWS):
        store.create(f"{n % 16:x}{n:023x}", "demo", 1, now, now - 1000)


def _put(aws: Emulated, items: Sequence[dict[str, Any]]) -> None:
    dynamodb = aws.client("dynamodb")
    for start in range(0, len(items), 25):
        requests = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
        dynamodb.batch_write_item(RequestItems={"CallsTable": requests})


def call_item(call_id: str, now: int, events: int = 3) -> dict[str, Any]:
    """A call that talks, as the table has it."""
    from shared.call import event
    from tests.calls import answered_record

    kinds = ("call.queued", "call.dialing", "call.answered", "call.ended")
    call = answered_record(
        now,
        call_id=call_id,
        room_name=f"room-{call_id}",
        events=tuple(event(kind, now) for kind in kinds[:events]),
        dynamic_variables='{"firstName":"Ada"}',
        metadata="{}",
    )
    return call.to_item()


# ── the process that is measured ────────────────────────────────────────────────────────────────────


def _timed(work: Callable[[], int]) -> dict[str, float]:
    """Milliseconds for each of what `work` says it has done: of this process's processor time, and elapsed."""
    cpu, elapsed = time.process_time(), time.perf_counter()
    done = work()
    return {
        "cpu": (time.process_time() - cpu) * 1000 / done,
        "elapsed": (time.perf_counter() - elapsed) * 1000 / done,
    }


def _warm(calls: Any) -> None:
    """What is made at a process's first requests, and its connections, are not a row's."""
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(calls.get, ["f" * 24] * 2 * THREADS))


def _from_afar(*clients: Any) -> None:
    for client in clients:
        client.meta.events.register_first("before-send", lambda **_: time.sleep(AWAY_SECONDS))


def _reconcile() -> dict[str, float]:
    from reconcile_calls import handler
    from reconcile_calls.reconcile import Reconciler
    from shared.livekit.client import LiveKit, Presence

    class AllWell(LiveKit):
        def __init__(self) -> None:
            """Without a client."""

        async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
            return dict.fromkeys(names, "both")

    _from_afar(handler.dynamodb, handler.sqs)
    durations = handler.settings.durations
    reconciler = Reconciler(
        calls=handler.calls,
        deliveries=handler.deliveries,
        limits=handler.limits,
        numbers=handler.numbers,
        line=handler.line,
        dial_queue=handler.dial_queue,
        webhook_queue=handler.webhook_queue,
        livekit=AllWell(),
        durations=durations,
        clock=lambda: int(time.time() * 1000),
        time_left=lambda: True,
    )

    _warm(handler.calls)

    def run() -> int:
        done = handler.runner.run(reconciler.run())
        assert done.total() == ROWS, done
        return ROWS

    return _timed(run)


def _fan_out() -> dict[str, float]:
    """The records of calls as they come: of each seven, of which four have a new event."""
    from shared.call_store import CallStore
    from shared.clock import now_ms
    from shared.dynamo import to_wire
    from shared.table_keys import call_key
    from webhook_dispatch import fan_out_handler

    _warm(CallStore(fan_out_handler.fan_out.deliveries._client, "CallsTable"))
    _from_afar(fan_out_handler.fan_out.deliveries._client, fan_out_handler.sqs)
    now = now_ms()
    records = []
    for n in range(BATCHES * BATCH // 7 + 1):
        call_id = f"{n % 16:x}{now:015x}{n:08x}"
        before: dict[str, Any] | None = None
        for place, events in enumerate((1, 1, 2, 2, 3, 4, 4)):
            image = to_wire(call_item(call_id, now, events))
            keys = call_key(call_id)
            change = {"Keys": keys, "NewImage": keys | image, "SequenceNumber": f"{n}{place}"}
            records.append(
                {"eventID": f"{n}-{place}", "dynamodb": change | ({"OldImage": before} if before else {})}
            )
            before = keys | image
    batches = [records[start : start + BATCH] for start in range(0, BATCHES * BATCH, BATCH)]

    def run() -> int:
        for batch in batches:
            assert fan_out_handler.lambda_handler({"Records": batch}, None) == {"batchItemFailures": []}
        return BATCHES * BATCH

    return _timed(run)


if __name__ == "__main__":
    print(json.dumps(_fan_out() if sys.argv[1] == "records" else _reconcile()), file=sys.stderr)
