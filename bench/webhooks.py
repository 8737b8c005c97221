"""How many webhooks a second one `deliver` process delivers, beside a bare httpx loop that posts the same bytes.

The real deliver_batch, client, guard, signing, log lines and metrics; the table and the queue are in memory, so
that the HTTP side is measured and not an emulated DynamoDB. The receiver is a process of its own that answers
204 and does nothing else. Both loops post ten at a time and wait for all ten, as a batch from the queue does; they
take turns, and the medians are compared.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from bench.table import Figure, report
from shared.call import webhook_body
from shared.callback_url import Policy
from shared.clock import now_ms
from shared.delivery_store import Delivery
from tests.in_memory import DeliveriesInMemory
from tests.simulation import Simulation
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.transport import GuardedTransport, webhook_client

ROOT = Path(__file__).parents[1]
ROUNDS = 9
PER_ROUND = 1000
BATCH = 10
# Deliveries after which the process's memory is looked at.
LOOKS = (5_000, 10_000, 20_000)


def main() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.webhooks", "receiver"], cwd=ROOT, env=_environment(), stdout=subprocess.PIPE
    ) as receiver:
        try:
            assert receiver.stdout
            url = receiver.stdout.readline().decode().strip()
            # deliver's output is discarded; its figures are on stderr.
            measured = subprocess.run(
                [sys.executable, "-m", "bench.webhooks", url],
                cwd=ROOT,
                env=_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            receiver.terminate()
    if measured.returncode:
        raise SystemExit(measured.stderr)
    found = json.loads(measured.stderr)
    report(
        "webhooks",
        [
            Figure("webhooks a second by one deliver process", found["deliver"], "/s"),
            Figure("... by a bare httpx loop", found["bare"], "/s"),
            Figure("bare, of deliver's (its share of 0.7 is 1.43)", found["bare"] / found["deliver"], "x", 1.43),
            *(Figure(f"memory after {count} deliveries", size, "MB") for count, size in found["memory"].items()),
        ],
    )


def _environment() -> dict[str, str]:
    return {
        "PYTHONPATH": f"{ROOT / 'functions'}:{ROOT}",
        "POWERTOOLS_SERVICE_NAME": "deliver",
        "POWERTOOLS_METRICS_NAMESPACE": "Ringonce",
    }


# ── the receiver ────────────────────────────────────────────────────────────────────────────────────


class _Receiver(asyncio.Protocol):
    """HTTP/1.1, as much as it takes: a head with a Content-Length, a body, 204."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            [length] = [
                int(line.split(b":")[1])
                for line in self._read[:end].split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            if len(self._read) < end + 4 + length:
                return
            self._read = self._read[end + 4 + length :]
            self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def _receive() -> None:
    server = await asyncio.get_running_loop().create_server(_Receiver, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", flush=True)
    await server.serve_forever()


# ── what is measured ────────────────────────────────────────────────────────────────────────────────


class _Forgetting(DeliveriesInMemory):
    """A table that keeps no finished delivery: it is not its memory that is looked at."""

    def finish(self, delivery: Delivery, *given: Any) -> Delivery | None:
        finished = super().finish(delivery, *given)
        assert finished is not None
        assert finished.state == "delivered", finished
        del self._rows[delivery.call_id, delivery.sequence]
        return finished


async def _measure(url: str) -> None:
    simulation = Simulation(transport=GuardedTransport(Policy(loopback=True)))
    client = webhook_client(simulation.deliverer().client._transport, simulation.durations)
    deliverer = dataclasses.replace(
        simulation.deliverer(client=client), deliveries=_Forgetting(simulation.tables), clock=now_ms
    )
    # Each delivery is one of a call of its own, so that none waits for the one before it.
    call_ids = [f"{n:024x}" for n in range(PER_ROUND)]
    for call_id in call_ids:
        simulation.call_with_events(call_id, events=4, url=url)
    body = webhook_body(simulation.tables.calls[call_ids[0]], 4).encode()
    async with httpx.AsyncClient() as bare:

        async def post_bare() -> None:
            for _ in range(0, PER_ROUND, BATCH):
                answers = await asyncio.gather(*(bare.post(url, content=body) for _ in range(BATCH)))
                assert all(answer.status_code == 204 for answer in answers)

        await _round(deliverer, call_ids)
        await post_bare()
        rates: dict[str, list[float]] = {"deliver": [], "bare": []}
        memory = {}
        delivered = PER_ROUND
        while delivered < max(LOOKS) or len(rates["bare"]) < ROUNDS:
            rates["deliver"].append(await _rate(lambda: _round(deliverer, call_ids)))
            delivered += PER_ROUND
            if delivered in LOOKS:
                memory[delivered] = _resident_mb()
            if len(rates["bare"]) < ROUNDS:
                rates["bare"].append(await _rate(post_bare))
    await client.aclose()
    ours, bares = (statistics.median(rates[name][:ROUNDS]) for name in ("deliver", "bare"))
    print(json.dumps({"deliver": ours, "bare": bares, "memory": memory}), file=sys.stderr)


async def _round(deliverer: Deliverer, call_ids: list[str]) -> None:
    for start in range(0, len(call_ids), BATCH):
        records = []
        for call_id in call_ids[start : start + BATCH]:
            now = now_ms()
            deliverer.deliveries.create(call_id, "demo", 4, now, now)
            records.append({"messageId": call_id, "body": json.dumps({"callId": call_id, "sequence": 4})})
        assert await deliver_batch(deliverer, records) == {"batchItemFailures": []}


async def _rate(work: Callable[[], Awaitable[None]]) -> float:
    """Webhooks per second."""
    began = time.perf_counter()
    await work()
    return PER_ROUND / (time.perf_counter() - began)


def _resident_mb() -> float:
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    asyncio.run(_receive() if sys.argv[1] == "receiver" else _measure(sys.argv[1]))
