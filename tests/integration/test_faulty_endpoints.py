"""Deliver's real HTTP stack against endpoints that fail in every way, on a simulated clock: each attempt's result,
no lost event, and no endpoint that delays another's deliveries."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Iterator, Mapping

import httpx
import pytest

from shared.delivery_store import Delivery
from shared.durations import Durations
from tests.faulty_endpoints import KINDS, Endpoints, endpoints
from tests.loop_time import time_passes
from tests.simulation import Simulation, run
from webhook_dispatch.attempt import post
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.transport import webhook_client

# The beginning of production's schedule, on the simulated clock. An attempt's time limit is production's too, and
# is not waited for: `only_what_hangs_runs_out_of_time`.
ATTEMPTS = 5
DURATIONS = dataclasses.replace(Durations(), webhook_schedule=Durations().webhook_schedule[:ATTEMPTS])

# The expected result of each: the state, and the status or error of each attempt.
FAILURES = {
    "refuses": "ConnectError",
    "resets": "Error",
    "hangs": "no answer in time",
    "drips its headers": "no answer in time",
    "speaks no HTTP": "RemoteProtocolError",
    "has another name's certificate": "CERTIFICATE_VERIFY_FAILED",
    "has a certificate of its own making": "CERTIFICATE_VERIFY_FAILED",
    "answers TLS with plain HTTP": "ConnectError",
    "hangs at TLS": "ConnectTimeout",
    "answers 500": 500,
    "answers 429": 429,
    "redirects to loopback": 301,
}


class OneAtATime(httpx.AsyncBaseTransport):
    """Another transport, and how many POSTs of one id it carries at a time, from the look-up to the last byte.

    answered: whose status has come.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.under_way: collections.Counter[str] = collections.Counter()
        self.most = 0
        self.posts: collections.Counter[str] = collections.Counter()
        self.answered: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        message_id = request.headers["webhook-id"]
        self.posts[message_id] += 1
        self.under_way[message_id] += 1
        self.most = max(self.most, self.under_way[message_id])
        try:
            answer = await self._inner.handle_async_request(request)
        except BaseException:
            self.under_way[message_id] -= 1
            raise
        self.answered.add(message_id)
        close = answer.stream.aclose  # type: ignore[union-attr]

        async def closed() -> None:
            self.under_way[message_id] -= 1
            await close()

        answer.stream.aclose = closed  # type: ignore[union-attr, method-assign]
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


async def only_what_hangs_runs_out_of_time(
    found: Endpoints, transport: OneAtATime, kinds: Mapping[str, str]
) -> None:
    """An attempt's time is over as soon as nothing is under way but what hangs, and hangs already.

    So no endpoint that answers runs out of it, however slow this machine is. kinds: by message id.
    """

    def hangs(message_id: str) -> bool:
        match kind := kinds[message_id]:
            case "hangs" | "drips its headers":
                return len(found.posts[kind]) == transport.posts[message_id]
            case "hangs at TLS":
                return found.connections[kind] == transport.posts[message_id]
            case "drips its answer":
                return message_id in transport.answered
        return False

    while True:
        await asyncio.sleep(0.005)
        under_way = [message_id for message_id, number in transport.under_way.items() if number]
        if under_way and all(map(hangs, under_way)):
            at_tls = any(kinds[message_id] == "hangs at TLS" for message_id in under_way)
            time_passes(DURATIONS.webhook_connect if at_tls else DURATIONS.webhook_attempt)


def call_ids() -> Iterator[str]:
    return (f"{n:024x}"[::-1] for n in range(10**6))


def test_whatever_an_endpoint_does_nothing_is_lost_and_nothing_is_posted_twice_at_a_time(
    report_table: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Attempts of one moment are one batch, so that those that hang do it side by side.
    monkeypatch.setattr("random.uniform", lambda least, most: least)
    rows: dict[str, Delivery] = {}

    async def everything() -> None:
        async with endpoints() as found:
            transport = OneAtATime(found.transport())
            simulation = Simulation(DURATIONS, transport=transport)
            calls = dict(zip(KINDS, call_ids(), strict=False))
            for kind, call_id in calls.items():
                assert (
                    simulation.fan_out(simulation.call_with_events(call_id, events=1, url=found.url[kind])) is None
                )
            kinds = {f"evt_{call_id}_1": kind for kind, call_id in calls.items()}
            hurry = asyncio.create_task(only_what_hangs_runs_out_of_time(found, transport, kinds))
            await simulation.run(simulation.settled)
            hurry.cancel()
            for kind, call_id in calls.items():
                rows[kind] = simulation.tables.rows[call_id, 1]
            check(found, transport, calls)
            await transport.aclose()

    def check(found: Endpoints, transport: OneAtATime, calls: dict[str, str]) -> None:
        assert transport.most == 1
        assert not transport.under_way.total()
        assert found.forbidden == []
        for kind, call_id in calls.items():
            assert transport.posts[f"evt_{call_id}_1"] == (ATTEMPTS if kind in FAILURES else 1), kind
            # What came through an endpoint's TLS and HTTP came under the one id of its event.
            assert set(found.posts[kind]) <= {f"evt_{call_id}_1"}

    run(everything())
    report_table.append(("the endpoint", "attempts", "each attempt says", "at (hours)", "in the end"))
    for kind, row in rows.items():
        said = FAILURES.get(kind)
        assert (row.state, len(row.attempts)) == (("dead", ATTEMPTS) if said else ("delivered", 1)), (kind, row)
        if isinstance(said, str):
            assert all("status" not in one and said in one["error"] for one in row.attempts), row.attempts
        elif said:
            assert [one["status"] for one in row.attempts] == [said] * ATTEMPTS
        hours = " ".join(f"{(one['at'] - row.attempts[0]['at']) / 3_600_000:.3g}" for one in row.attempts)
        last = row.attempts[-1]
        told = str(last.get("status") or last["error"])[:52]
        report_table.append((kind, str(len(row.attempts)), told, hours, row.state))


def test_a_connection_is_used_again_and_tls_is_spoken_to_the_name() -> None:
    async def twenty() -> None:
        async with endpoints() as found:
            simulation = Simulation(DURATIONS)
            client = webhook_client(found.transport(), DURATIONS)
            deliverer = simulation.deliverer(client=client)
            ids = call_ids()
            for _ in range(20):
                call_id = next(ids)
                simulation.fan_out(simulation.call_with_events(call_id, events=1, url=found.url["good"]))
                record = {"messageId": "m", "body": json.dumps({"callId": call_id, "sequence": 1})}
                assert await deliver_batch(deliverer, [record]) == {"batchItemFailures": []}
            await client.aclose()
            assert len(found.posts["good"]) == 20
            assert found.connections["good"] == 1

    run(twenty())


def test_an_answer_that_was_not_read_to_its_end_costs_its_connection_and_no_more() -> None:
    async def two() -> None:
        async with endpoints() as found:
            client = webhook_client(found.transport(), DURATIONS)
            for _ in range(2):
                attempted = await post(client, found.url["answers 10 MB"], "{}", {"webhook-id": "x"}, 60, _now)
                assert (attempted.status, attempted.answer) == (200, "x" * 500)
            assert found.connections["answers 10 MB"] == 2
            await client.aclose()

    run(two())


def test_a_connection_that_the_receiver_closed_is_not_used_again() -> None:
    async def two() -> None:
        async with endpoints() as found:
            client = webhook_client(found.transport(), DURATIONS)
            for connections in (1, 2, 3):
                attempted = await post(client, found.url["good"], "{}", {"webhook-id": "x"}, 60, _now)
                assert (attempted.status, found.connections["good"]) == (200, connections)
                for task in list(found.serving):
                    task.cancel()
                await asyncio.gather(*found.serving, return_exceptions=True)
            await client.aclose()

    run(two())


def test_a_tls_handshake_that_is_called_off_closes_its_connection() -> None:
    """If it did not, a warning of the unclosed socket would fail this test."""

    async def off() -> None:
        async with endpoints() as found:
            client = webhook_client(found.transport(), dataclasses.replace(DURATIONS, webhook_connect=30))
            attempted = await post(client, found.url["hangs at TLS"], "{}", {"webhook-id": "x"}, 0.2, _now)
            assert attempted.error == "no answer in time"
            deadline = time.monotonic() + 60
            while found.serving:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await client.aclose()

    run(off())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_deliveries_that_hang_hold_up_none_of_their_batch(report_table: list[tuple[str, ...]]) -> None:
    """200 that hang beside 200 good ones, mixed in batches of ten as they come from the queue."""
    durations = dataclasses.replace(DURATIONS, webhook_attempt=40.0, webhook_connect=40.0)

    async def mixed(kinds: list[str]) -> list[float]:
        """Milliseconds from the start of a batch until all its good ones were noted."""
        async with endpoints(plain=True) as found:
            simulation = Simulation(durations)
            ids = call_ids()
            keys = [(next(ids), kind) for kind in kinds]
            for call_id, kind in keys:
                simulation.fan_out(simulation.call_with_events(call_id, events=1, url=found.url[kind]))
            client = webhook_client(found.transport(), durations)
            deliverer = simulation.deliverer(client=client)
            taken: list[float] = []
            for batch in (keys[n : n + 10] for n in range(0, len(keys), 10)):
                records = [
                    {"messageId": call_id, "body": json.dumps({"callId": call_id, "sequence": 1})}
                    for call_id, _ in batch
                ]
                good = [call_id for call_id, kind in batch if kind == "good"]
                found.let_go.clear()
                began = time.perf_counter()
                task = asyncio.create_task(deliver_batch(deliverer, records))
                while any(simulation.tables.rows[call_id, 1].state != "delivered" for call_id in good):
                    assert time.perf_counter() - began < 30, "the good ones wait for those that hang"
                    await asyncio.sleep(0.001)
                taken.append((time.perf_counter() - began) * 1000)
                # All of the good ones are through while each of the others still hangs.
                assert all(
                    simulation.tables.rows[call_id, 1].lease_id for call_id, kind in batch if kind == "hangs"
                )
                found.let_go.set()
                assert await task == {"batchItemFailures": []}
            await client.aclose()
            states = collections.Counter(
                (kind, simulation.tables.rows[call_id, 1].state) for call_id, kind in keys
            )
            assert states["good", "delivered"] == 200
            assert states["hangs", "pending"] == len(kinds) - 200
            return sorted(taken)

    report_table.append(("ms until a batch's good ones are delivered", "median", "p95", "most"))
    for name, kinds in (
        ("200 good ones by themselves", ["good"] * 200),
        ("200 good ones beside 200 that hang", ["hangs", "good"] * 200),
    ):
        taken = run(mixed(kinds))
        figures = (statistics.median(taken), taken[int(len(taken) * 0.95)], taken[-1])
        report_table.append((name, *(f"{figure:.0f}" for figure in figures)))
