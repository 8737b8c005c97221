"""What a warm initiate_call adds to the two AWS requests that it cannot do without.

The handler, and bare boto3 calls that send the same message and write the same item by the same clients: both in
one process, to one emulated AWS, in turns. CPU time is of that process alone; what the emulator takes is in both
elapsed times.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.dial import dialling_stopped
from bench.table import Figure, report
from infra.finish_build import HANDLERS_ENVIRONMENT
from tests.e2e.client import Client
from tests.e2e.launch import ROOT, launched

ROUNDS = 15
PER_ROUND = 40
OF_BARE = 1.15
CPU_MS = 3

BODY = {
    "to": "+12025550123",
    "call_agent_id": "a1b2c3d4e5f6a7b8c9d0e1f2",
    "dynamic_variables": {"firstName": "Ada", "Zipcode": "94105"},
    "metadata": {"orderId": "o-1"},
}


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state", {"TIME_SCALE": "1"}) as running,
        Client(running.info()) as client,
        dialling_stopped(client),
    ):
        measured = subprocess.run(
            [sys.executable, "-m", "bench.warm", client.info["workspaceId"], client.info["apiKey"]],
            cwd=ROOT,
            env=_environment(client.info),
            # The handler's output is discarded; the figures are on stderr.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if measured.returncode:
        raise SystemExit(measured.stderr)
    figures: dict[str, float] = json.loads(measured.stderr)
    report(
        "warm initiate_call",
        [
            Figure("CPU", figures["cpu"], "ms", CPU_MS),
            Figure("CPU of two bare boto3 calls", figures["bare cpu"], "ms"),
            Figure("CPU beside theirs", figures["cpu ratio"], "x"),
            Figure("elapsed", figures["elapsed"], "ms"),
            Figure("elapsed of two bare boto3 calls", figures["bare elapsed"], "ms"),
            Figure("elapsed beside theirs", figures["elapsed ratio"], "x", OF_BARE),
        ],
    )


def _environment(info: dict[str, Any]) -> dict[str, str]:
    return {
        **HANDLERS_ENVIRONMENT,
        # The only credentials that the emulator takes for the account's root.
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": info["awsEndpointUrl"],
        "CALLS_TABLE": info["resources"]["CallsTable"],
        "WORKSPACES_TABLE": info["resources"]["WorkspacesTable"],
        "NUMBERS_TABLE": info["resources"]["NumbersTable"],
        "DIAL_QUEUE_URL": info["resources"]["DialQueue"],
        "PYTHONPATH": os.pathsep.join([str(ROOT / "functions"), str(ROOT)]),
    }


# ── the process that is measured ────────────────────────────────────────────────────────────────────


def _measure(workspace_id: str, api_key: str) -> dict[str, float]:
    from initiate_call import handler

    event = {
        "headers": {"x-workspace-id": workspace_id, "x-api-key": api_key},
        "requestContext": {"requestId": "bench"},
        "body": json.dumps(BODY),
    }
    dynamodb, sqs = handler.dynamodb, handler.acceptor.dial_queue._client

    def place() -> None:
        answered = handler.lambda_handler(event, None)
        assert answered["statusCode"] == 200, answered

    sent = _parameters_of(place, dynamodb, sqs)
    message, item = sent["SendMessage"], sent["PutItem"]

    def bare() -> None:
        sqs.send_message(**message)
        key = {"pk": {"S": f"CALL#{secrets.token_hex(12)}"}}
        dynamodb.put_item(**item | {"Item": item["Item"] | key})

    placed, alone = [], []
    # The first round finds what is made at the first request.
    for _ in range(1 + ROUNDS):
        placed.append(_timed(place))
        alone.append(_timed(bare))
    figures = {}
    for n, what in enumerate(("cpu", "elapsed")):
        ours, theirs = [one[n] for one in placed[1:]], [one[n] for one in alone[1:]]
        figures[what] = statistics.median(ours)
        figures[f"bare {what}"] = statistics.median(theirs)
        figures[f"{what} ratio"] = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return figures


def _parameters_of(work: Callable[[], None], *clients: Any) -> dict[str, dict[str, Any]]:
    """What `work` asks of AWS: operation → parameters."""
    noted: dict[str, dict[str, Any]] = {}

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        noted[model.name] = copy.deepcopy(params)

    for client in clients:
        client.meta.events.register("provide-client-params", note)
    work()
    for client in clients:
        client.meta.events.unregister("provide-client-params", note)
    return noted


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    """CPU and elapsed milliseconds of one among many."""
    cpu, elapsed = time.process_time(), time.perf_counter()
    for _ in range(PER_ROUND):
        work()
    return (time.process_time() - cpu) * 1000 / PER_ROUND, (time.perf_counter() - elapsed) * 1000 / PER_ROUND


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2])), file=sys.stderr)
