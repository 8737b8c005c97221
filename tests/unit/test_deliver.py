"""Attempts at webhooks on a clock that the test moves: when each is made, what ends them, and that no fault (lost
and repeated messages, dead processes, an emptied dead-letter queue) leads to two at a time, or none."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import json
import random
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from calls_api.deliveries import deliveries_view, replay
from shared.delivery_store import Delivery
from shared.durations import Durations
from shared.errors import QueueError, RequestRefusedError, StoreError
from shared.workspaces import Workspace, WorkspaceCache
from tests.clock import START
from tests.in_memory import DeliveriesInMemory, QueueInMemory, WorkspacesInMemory
from tests.loop_time import time_passes
from tests.mortal_process import Death, MortalProcess
from tests.simulation import SECRET, Simulation, over_the_wire, run
from webhook_dispatch.attempt import (
    ANSWER_BYTES,
    ANSWER_CHARACTERS,
    LOCATION_CHARACTERS,
    Attempted,
    retry_after_seconds,
)
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import DEATHS_FORGIVEN, REFUSED_ATTEMPTS, WORTH_REPEATING, what_follows

A, B = "a" * 24, "b" * 24
D = Durations()
SCHEDULE = D.webhook_schedule
# From the moment a delivery is due: SQS counts whole seconds, the reconciler comes every minute.
LATE_SECONDS = 61
OTHER_SECRET = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()


def answering(simulation: Simulation, *statuses: int, headers: dict[str, str] | None = None) -> None:
    """The n-th attempt at an event is answered with the n-th status, later ones with the last."""
    simulation.receivers.answer = lambda request, times: httpx.Response(
        statuses[min(times, len(statuses) - 1)], headers=headers
    )


def delivered(simulation: Simulation, call_id: str = A, events: int = 1, days: float = 12) -> list[Delivery]:
    """The rows of a call with so many events, when all are over."""
    simulation.fan_out(simulation.call_with_events(call_id, events))
    run(simulation.run(simulation.settled, days))
    simulation.check_never_two_at_a_time()
    return [row for key, row in sorted(simulation.tables.rows.items()) if key[0] == call_id]


def attempts_at(row: Delivery) -> list[float]:
    """Seconds from the first attempt at an event to each."""
    return [(attempt["at"] - row.attempts[0]["at"]) / 1000 for attempt in row.attempts]


def statuses(row: Delivery) -> list[int | None]:
    return [attempt.get("status") for attempt in row.attempts]


# ── the schedule ────────────────────────────────────────────────────────────────────────────────────


def test_ten_attempts_are_made_over_three_days_and_then_it_is_dead_and_listed(
    simulation: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(simulation, 503)
    [row] = delivered(simulation)
    assert (row.state, statuses(row), row.check_at_ms) == ("dead", [503] * 10, None)
    at = attempts_at(row)
    for planned, before, this in zip(SCHEDULE[1:], at, at[1:], strict=False):
        assert planned <= this - before <= planned * 1.1 + LATE_SECONDS
    assert row.attempts[0]["at"] == START
    assert 3 * 86400 <= at[-1] <= 4 * 86400
    view = json.loads(deliveries_view(simulation.deliveries, simulation.tables.calls[A]))
    assert [one["state"] for one in view["deliveries"]] == ["dead"]
    assert [one["status"] for one in view["deliveries"][0]["attempts"]] == [503] * 10
    assert counted(capsys)["WebhooksDead"] == 1
    # Nothing brings it back by itself.
    simulation.clock.advance(30 * 86400)
    simulation.reconcile()
    assert (simulation.webhook_queue.messages, len(simulation.receivers.posted)) == ([], 10)


def counted(capsys: pytest.CaptureFixture[str]) -> collections.Counter[str]:
    """Metrics printed since it was last looked."""
    found: collections.Counter[str] = collections.Counter()
    for line in capsys.readouterr().out.splitlines():
        if line.startswith('{"_aws"'):
            point = json.loads(line)
            for metric in point["_aws"]["CloudWatchMetrics"][0]["Metrics"]:
                found[metric["Name"]] += round(sum(point[metric["Name"]]))
    return found


def test_each_wait_has_its_own_jitter_of_up_to_a_tenth() -> None:
    for attempts in range(1, len(SCHEDULE)):
        waits = [what_follows(Attempted(500), attempts, [500] * (attempts - 1), D)[1] or 0 for _ in range(200)]
        assert SCHEDULE[attempts] <= min(waits) < max(waits) <= SCHEDULE[attempts] * 1.1
        assert len(set(waits)) > 150


@pytest.mark.parametrize("after", range(1, 10))
def test_an_endpoint_that_comes_back_gets_the_event_at_the_next_attempt(
    simulation: Simulation, after: int
) -> None:
    answering(simulation, *[500] * after, 200)
    [row] = delivered(simulation)
    assert (row.state, statuses(row)) == ("delivered", [500] * after + [200])


def test_an_event_that_is_received_is_posted_once(simulation: Simulation) -> None:
    rows = delivered(simulation, events=60)
    assert [(row.state, statuses(row)) for row in rows] == [("delivered", [204])] * 60
    assert sorted(one.id for one in simulation.receivers.posted) == sorted(f"evt_{A}_{n}" for n in range(1, 61))
    assert simulation.webhook_queue.messages == []


# ── what an answer means ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 226, 299])
def test_every_2xx_is_success(status: int) -> None:
    assert what_follows(Attempted(status), 1, [], D) == ("delivered", None)


@pytest.mark.parametrize(
    "status", [300, 301, 302, 303, 304, 307, 308, 408, 409, 425, 429, 500, 502, 503, 504, 520, 599, None]
)
def test_what_another_try_may_change_is_tried_to_the_end(status: int | None) -> None:
    earlier: list[int | None] = []
    for attempts in range(1, len(SCHEDULE)):
        assert what_follows(Attempted(status), attempts, earlier, D)[0] == "pending"
        earlier.append(status)
    assert what_follows(Attempted(status), len(SCHEDULE), earlier, D) == ("dead", None)


@pytest.mark.parametrize("status", sorted(set(range(400, 500)) - WORTH_REPEATING - {410}))
def test_a_refusal_is_heard_three_times(status: int) -> None:
    for attempts in range(1, REFUSED_ATTEMPTS):
        assert what_follows(Attempted(status), attempts, [status] * (attempts - 1), D)[0] == "pending"
    assert what_follows(Attempted(status), REFUSED_ATTEMPTS, [status] * (REFUSED_ATTEMPTS - 1), D)[0] == "dead"


def test_refusals_are_counted_between_other_failures(simulation: Simulation) -> None:
    answering(simulation, 404, 500, 404, 429, 404, 200)
    [row] = delivered(simulation)
    assert (row.state, statuses(row)) == ("dead", [404, 500, 404, 429, 404])


def test_a_replay_hears_three_refusals_anew(simulation: Simulation) -> None:
    answering(simulation, 404)
    delivered(simulation)
    replayed(simulation)
    run(simulation.run(simulation.settled))
    assert statuses(simulation.tables.rows[A, 1]) == [404] * 6


def test_a_redirect_is_not_followed(simulation: Simulation) -> None:
    asked = []

    def answer(request: httpx.Request, times: int) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(301, headers={"location": "http://127.0.0.1/admin"})

    simulation.receivers.answer = answer
    [row] = delivered(simulation)
    assert (row.state, statuses(row)) == ("dead", [301] * 10)
    assert {attempt["location"] for attempt in row.attempts} == {"http://127.0.0.1/admin"}
    assert set(asked) == {"https://hooks.example/in"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"https://hooks.example/in/", "https://hooks.example/in/"),
        (b"/in/?a=1&b=%20", "/in/?a=1&b=%20"),
        ("/gr\u00fc\u00df".encode(), "/gr%C3%BC%C3%9F"),
        (b"/a\x1b[31mred\x07 b\tc", "/a%1B[31mred%07%20b%09c"),
        (b"https://x/" + b"a" * 10_000, "https://x/" + "a" * (LOCATION_CHARACTERS - 10)),
        (b"http://[", "http://["),
        (b"https://x:99999/", "https://x:99999/"),
        (b"", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("status", [301, 308])
def test_where_a_redirect_points_to_is_kept_bounded_and_printable(
    simulation: Simulation, given: bytes | None, kept: str | None, status: int
) -> None:
    headers = [(b"location", given)] if given is not None else []
    simulation.receivers.answer = lambda request, times: httpx.Response(
        status if times == 0 else 200, headers=headers
    )
    [row] = delivered(simulation)
    assert statuses(row) == [status, 200]
    assert row.attempts[0].get("location") == kept
    assert "location" not in row.attempts[1], "an answer that is no redirect points nowhere"


def test_410_stops_the_calls_other_webhooks_and_no_other_calls(simulation: Simulation) -> None:
    answering(simulation, 410)
    rows = delivered(simulation, events=4)
    assert [row.state for row in rows] == ["stopped"] * 4
    assert [statuses(row) for row in rows] == [[410], [None], [None], [None]]
    assert "410" in rows[1].attempts[0]["error"]
    assert [one.id for one in simulation.receivers.posted] == [f"evt_{A}_1"]
    answering(simulation, 200)
    assert [row.state for row in delivered(simulation, B)] == ["delivered"]


def test_410_stops_events_that_were_waiting_for_their_next_attempt_and_those_that_are_still_to_come(
    simulation: Simulation,
) -> None:
    answers = {f"evt_{A}_1": 500, f"evt_{A}_2": 410}
    simulation.receivers.answer = lambda request, times: httpx.Response(answers[request.headers["webhook-id"]])
    records = simulation.call_with_events(A, events=4)
    simulation.fan_out(records[:2])
    run(simulation.run(lambda: len(simulation.receivers.posted) == 2))
    simulation.fan_out(records[2:])
    run(simulation.run(simulation.settled))
    assert [row.state for _, row in sorted(simulation.tables.rows.items())] == ["stopped"] * 4
    assert len(simulation.receivers.posted) == 2


def test_a_client_may_replay_what_410_stopped(simulation: Simulation) -> None:
    answering(simulation, 410)
    delivered(simulation, events=2)
    answering(simulation, 200)
    replayed(simulation, 2)
    run(simulation.run(simulation.settled))
    assert simulation.states() == {(A, 1): "stopped", (A, 2): "delivered"}


# ── Retry-After ─────────────────────────────────────────────────────────────────────────────────────

NOW = datetime.datetime.fromtimestamp(START / 1000, datetime.UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("999999999999999999999", 999999999),
        (format_datetime(NOW + datetime.timedelta(minutes=5), usegmt=True), 300),
        (format_datetime(NOW - datetime.timedelta(minutes=5), usegmt=True), 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("\u0661\u0662", None),
        ("Mon, 99 Foo 2026 25:61:61 GMT", None),
        ("Fri, 31 Dec 99999 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@pytest.mark.parametrize(
    ("asked", "least"),
    [
        ("1", 5),  # never sooner than planned
        ("45", 45),
        ("3600", 3600),
        (format_datetime(NOW + datetime.timedelta(hours=1), usegmt=True), 3600),
        ("9999999", 86400),  # never later than the longest wait
        (format_datetime(NOW + datetime.timedelta(days=400), usegmt=True), 86400),
    ],
)
def test_the_receivers_retry_after_is_kept_within_bounds(simulation: Simulation, asked: str, least: float) -> None:
    simulation.receivers.answer = lambda request, times: httpx.Response(
        429 if times == 0 else 200, headers={"retry-after": asked}
    )
    [row] = delivered(simulation)
    assert (row.state, statuses(row)) == ("delivered", [429, 200])
    assert least <= attempts_at(row)[1] <= least * 1.1 + LATE_SECONDS


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────


def replayed(simulation: Simulation, sequence: int | str = 1, call_id: str = A) -> None:
    call = simulation.tables.calls[call_id]
    replay(
        simulation.calls,
        simulation.deliveries,
        simulation.webhook_queue,
        call,
        str(sequence),
        simulation.durations,
        simulation.clock(),
    )


@pytest.mark.parametrize(
    "sequence", ["0", "4", "-1", "+1", "1.0", " 1", "x", "", "\u0661", "0000001", "0000011", "1" * 5000]
)
def test_a_number_of_no_event_replays_none(simulation: Simulation, sequence: str) -> None:
    delivered(simulation, events=3)
    with pytest.raises(RequestRefusedError) as refused:
        replayed(simulation, sequence)
    assert (refused.value.status, refused.value.code) == (404, "delivery_not_found")
    assert simulation.webhook_queue.bodies() == []


def test_every_attempt_and_replay_carries_the_same_id_and_bytes_and_its_own_signature(
    simulation: Simulation,
) -> None:
    answering(simulation, 500, 500, 200)
    delivered(simulation)
    answering(simulation, 200)
    simulation.clock.advance(86400)
    replayed(simulation)
    run(simulation.run(simulation.settled))
    posted = simulation.receivers.posted
    assert len(posted) == 4
    assert {one.id for one in posted} == {f"evt_{A}_1"}
    assert len({one.body for one in posted}) == 1
    assert json.loads(posted[0].body)["id"] == f"evt_{A}_1"
    assert len({one.headers["webhook-signature"] for one in posted}) == 4
    for one in posted:
        assert abs(int(one.headers["webhook-timestamp"]) - one.at / 1000) <= 1
        assert one.headers["metadata"] == '{"n":1.0}'
        assert '"metadata":{"n": 1.0}' in one.body.decode()


def verifies(secret: str, posted: Any) -> bool:
    """By the reference library, at the time of the POST: the simulation's clock is not the machine's."""
    at = datetime.datetime.fromtimestamp(int(posted.headers["webhook-timestamp"]), datetime.UTC)
    try:
        expected = Webhook(secret).sign(posted.id, at, posted.body.decode())
    except WebhookVerificationError:
        return False
    return expected in posted.headers["webhook-signature"].split()


def test_a_rotation_is_signed_with_both_secrets_within_a_minute(simulation: Simulation) -> None:
    """One process, as it stays: what it knows of the workspace is at most a minute old."""
    deliverer = simulation.deliverer()
    times = iter(range(1, 100))

    def post_one() -> Any:
        sequence = next(times)
        simulation.deliveries.create(A, "demo", sequence, simulation.clock(), simulation.clock())
        record = {"messageId": "m", "body": json.dumps({"callId": A, "sequence": sequence})}
        assert run(deliver_batch(deliverer, [record])) == {"batchItemFailures": []}
        return simulation.receivers.posted[-1]

    simulation.call_with_events(A, events=20)
    assert [verifies(secret, post_one()) for secret in (SECRET, OTHER_SECRET)] == [True, False]
    workspace = simulation.tables.workspaces["demo"]
    simulation.tables.workspaces["demo"] = dataclasses.replace(workspace, webhook_secrets=(OTHER_SECRET, SECRET))
    simulation.clock.advance(59)
    assert not verifies(OTHER_SECRET, post_one())
    simulation.clock.advance(1)
    both = post_one()
    assert verifies(SECRET, both)
    assert verifies(OTHER_SECRET, both)
    simulation.tables.workspaces["demo"] = dataclasses.replace(workspace, webhook_secrets=(OTHER_SECRET,))
    simulation.clock.advance(60)
    assert [verifies(secret, post_one()) for secret in (SECRET, OTHER_SECRET)] == [False, True]
    assert simulation.tables.workspace_reads == 3


@pytest.mark.parametrize(
    ("secrets", "said"),
    [((), "has no webhook secret"), (("whsec_",), "is not valid"), (("whsec_!",), "is not valid")],
)
def test_without_a_secret_nothing_is_posted_and_the_attempt_says_so(
    simulation: Simulation, secrets: tuple[str, ...], said: str
) -> None:
    workspace = simulation.tables.workspaces["demo"]
    simulation.tables.workspaces["demo"] = dataclasses.replace(workspace, webhook_secrets=secrets)
    simulation.fan_out(simulation.call_with_events(A, events=1))
    run(simulation.run(lambda: len(simulation.tables.rows[A, 1].attempts) == 2))
    assert said in simulation.tables.rows[A, 1].attempts[0]["error"]
    simulation.tables.workspaces["demo"] = workspace
    run(simulation.run(simulation.settled))
    assert simulation.states() == {(A, 1): "delivered"}


def test_metadata_that_is_too_long_for_a_header_stands_in_the_body_only(simulation: Simulation) -> None:
    simulation.call_with_events(A, events=1)
    text = json.dumps({"k": "v" * 5000})
    simulation.tables.calls[A] = dataclasses.replace(simulation.tables.calls[A], metadata=text)
    replayed(simulation)
    run(simulation.run(simulation.settled))
    [posted] = simulation.receivers.posted
    assert "metadata" not in posted.headers
    assert text in posted.body.decode()


def test_the_beginning_of_the_answer_is_kept_for_people(simulation: Simulation) -> None:
    read = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            nonlocal read
            while True:
                read += 1000
                yield "ü".encode() * 500

    simulation.receivers.answer = lambda request, times: httpx.Response(
        500 if times == 0 else 200, stream=Endless()
    )
    [row] = delivered(simulation)
    assert row.attempts[0]["answer"] == "ü" * ANSWER_CHARACTERS
    assert read <= 2 * (ANSWER_BYTES + 1000)


@pytest.mark.parametrize(("status", "state"), [(200, "delivered"), (410, "stopped")])
def test_the_status_decides_though_the_answers_body_never_ends(status: int, state: str) -> None:
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            yield b"ok, but "
            time_passes(D.webhook_attempt)
            await asyncio.sleep(3600)

    simulation = Simulation()
    simulation.receivers.answer = lambda request, times: httpx.Response(status, stream=Drip())
    [row] = delivered(simulation)
    assert (row.state, len(row.attempts), row.attempts[0]["answer"]) == (state, 1, "ok, but ")


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("no HTTP"),
        OSError("no route"),
        RuntimeError("of a library"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_whatever_goes_wrong_at_a_post_is_an_attempt_that_failed(
    simulation: Simulation, failure: Exception
) -> None:
    def answer(request: httpx.Request, times: int) -> httpx.Response:
        if times == 0:
            raise failure
        return httpx.Response(200)

    simulation.receivers.answer = answer
    [row] = delivered(simulation)
    assert (row.state, statuses(row)) == ("delivered", [None, 200])
    assert type(failure).__name__ in row.attempts[0]["error"]


# ── one batch ───────────────────────────────────────────────────────────────────────────────────────


def records_of(*keys: tuple[str, int]) -> list[dict[str, Any]]:
    return [
        {"messageId": f"{call_id[0]}{sequence}", "body": json.dumps({"callId": call_id, "sequence": sequence})}
        for call_id, sequence in keys
    ]


class Overlapping(httpx.AsyncBaseTransport):
    """Endpoints that take their time. most: how many POSTs of one id there were at a time.

    wait_for: no POST is answered before so many are under way.
    """

    def __init__(self, wait_for: int = 0) -> None:
        self._wait_for = wait_for
        self._enough = asyncio.Event()
        self.under_way: collections.Counter[str] = collections.Counter()
        self.most = 0
        self.began: list[str] = []
        self.hang: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        message_id = request.headers["webhook-id"]
        self.began.append(message_id)
        self.under_way[message_id] += 1
        self.most = max(self.most, self.under_way[message_id])
        if self.under_way.total() >= self._wait_for:
            self._enough.set()
        try:
            await self._enough.wait()
            if message_id in self.hang:
                await asyncio.sleep(3600)
            await asyncio.sleep(0.01)
        finally:
            self.under_way[message_id] -= 1
        return over_the_wire(httpx.Response(200))


@pytest.mark.parametrize("seed", range(5))
def test_one_calls_first_attempts_leave_in_the_order_of_its_events(seed: int) -> None:
    endpoint = Overlapping()
    simulation = Simulation(transport=endpoint)
    for call_id in (A, B):
        simulation.fan_out(simulation.call_with_events(call_id, events=5))
    keys = [(call_id, n) for call_id in (A, B) for n in range(1, 6)]
    random.Random(seed).shuffle(keys)
    run(deliver_batch(simulation.deliverer(), records_of(*keys)))
    for call_id in (A, B):
        assert [one for one in endpoint.began if call_id in one] == [f"evt_{call_id}_{n}" for n in range(1, 6)]


def test_ten_calls_are_posted_side_by_side() -> None:
    endpoint = Overlapping(wait_for=10)
    simulation = Simulation(transport=endpoint)
    keys = [(f"{n:x}" * 24, 1) for n in range(10)]
    for call_id, _ in keys:
        simulation.fan_out(simulation.call_with_events(call_id, events=1))
    run(deliver_batch(simulation.deliverer(), records_of(*keys)))
    assert set(simulation.states().values()) == {"delivered"}


def test_an_endpoint_that_hangs_holds_up_neither_its_own_next_event_nor_anybody_elses() -> None:
    endpoint = Overlapping()
    endpoint.hang = {f"evt_{A}_1"}
    simulation = Simulation(transport=endpoint)
    simulation.fan_out(simulation.call_with_events(A, events=3))
    simulation.fan_out(simulation.call_with_events(B, events=3))
    deliverer = simulation.deliverer()
    keys = [(call_id, n) for call_id in (A, B) for n in (1, 2, 3)]

    async def batch() -> None:
        async def delivered_are(number: int) -> None:
            while collections.Counter(simulation.states().values())["delivered"] < number:
                assert not task.done()
                await asyncio.sleep(0.005)

        task = asyncio.create_task(deliver_batch(deliverer, records_of(*keys)))
        await delivered_are(3)
        time_passes(D.webhook_order)
        await delivered_are(5)
        # All others are delivered while it still hangs.
        assert endpoint.under_way.total() == 1
        time_passes(D.webhook_attempt)
        assert await task == {"batchItemFailures": []}

    run(batch())
    row = simulation.tables.rows[A, 1]
    assert (row.state, row.attempts[0]["error"]) == ("pending", "no answer in time")
    assert [one for one in endpoint.began if A in one] == [f"evt_{A}_{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "7", '"x"', "{}", '{"sequence": 1}', '{"callId": 7}', '{"callId": null}', "null"]
)
def test_a_message_that_is_not_ours_is_reported_and_the_others_are_delivered(
    simulation: Simulation, body: str
) -> None:
    simulation.fan_out(simulation.call_with_events(A, events=2))
    records = [{"messageId": "bad", "body": body}, *records_of((A, 1), (A, 2))]
    answer = run(deliver_batch(simulation.deliverer(), records))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
    assert set(simulation.states().values()) == {"delivered"}


def test_a_message_about_nothing_is_acknowledged(simulation: Simulation) -> None:
    assert run(deliver_batch(simulation.deliverer(), records_of((A, 1)))) == {"batchItemFailures": []}
    assert simulation.receivers.posted == []


def test_a_row_without_its_record_ends_dead_and_says_why(simulation: Simulation) -> None:
    simulation.deliveries.create(A, "demo", 1, simulation.clock(), simulation.clock())
    run(simulation.run(lambda: simulation.states() == {(A, 1): "dead"}))
    assert "record is gone" in simulation.tables.rows[A, 1].attempts[0]["error"]


# ── at the same time, or not at all ─────────────────────────────────────────────────────────────────


def test_many_processes_with_the_same_messages_post_once() -> None:
    endpoint = Overlapping()
    simulation = Simulation(transport=endpoint)
    simulation.fan_out(simulation.call_with_events(A, events=3))
    records = records_of((A, 1), (A, 2), (A, 3))

    async def at_once() -> None:
        await asyncio.gather(*(deliver_batch(simulation.deliverer(), records) for _ in range(6)))

    run(at_once())
    assert (endpoint.most, sorted(endpoint.began)) == (1, [f"evt_{A}_{n}" for n in (1, 2, 3)])


def test_a_death_in_fan_out_or_deliver_at_any_step_loses_nothing_and_posts_nothing_twice_at_a_time(
    report_table: list[tuple[str, ...]],
) -> None:
    report_table.append(("a process dies in", "its last step", "at each of", "delivered", "POSTs of one event"))
    for name in ("fan_out", "deliver"):
        for after in (False, True):
            step = 0
            often: set[int] = set()
            while True:
                step += 1
                simulation = Simulation()
                # The first answer of each event is lost to the receiver's own trouble: a second message follows.
                answering(simulation, 500, 200)
                records = simulation.call_with_events(A, events=3)
                process = MortalProcess(step, after=after)
                if name == "fan_out":
                    try:
                        simulation.fan_out(records, process)
                    except Death:
                        # AWS hands the same records over again.
                        simulation.fan_out(records)
                else:
                    simulation.fan_out(records)
                    run(simulation.deliver(process))
                if not process.dead:
                    break
                run(simulation.run(simulation.settled))
                simulation.check_never_two_at_a_time()
                assert set(simulation.states().values()) == {"delivered"}, (name, step)
                posts = collections.Counter(one.id for one in simulation.receivers.posted)
                assert set(posts) == {f"evt_{A}_{n}" for n in (1, 2, 3)}
                assert len({(one.id, one.body) for one in simulation.receivers.posted}) == 3
                often |= set(posts.values())
            assert step > 3
            moment = "done, its answer not seen" if after else "not done"
            times = f"{min(often)} to {max(often)} (500, then 200)"
            report_table.append((name, moment, f"{step - 1} steps", "3 of 3", times))


def test_messages_that_are_lost_are_sent_again(simulation: Simulation) -> None:
    simulation.fan_out(simulation.call_with_events(A, events=4))
    answering(simulation, 500, 200)

    async def lossy() -> None:
        # Every third message is lost, and the dead-letter queue is emptied.
        chance = random.Random(1)
        while not simulation.settled():
            for message in list(simulation.webhook_queue.messages):
                if chance.random() < 0.34:
                    simulation.webhook_queue.delete(message)
            simulation.dead_letters.messages.clear()
            await simulation.deliver()
            simulation.clock.advance(61)
            await simulation.reconciler().run()

    run(lossy())
    simulation.check_never_two_at_a_time()
    assert set(simulation.states().values()) == {"delivered"}


def test_a_queue_that_loses_everything_delays_and_loses_no_event(simulation: Simulation) -> None:
    simulation.fan_out(simulation.call_with_events(A, events=4))
    simulation.webhook_queue.messages.clear()
    run(simulation.run(simulation.settled, days=0.01))
    assert [row.attempts[0]["at"] - START <= 120_000 for row in simulation.tables.rows.values()] == [True] * 4


@pytest.mark.parametrize("at", ["the record", "the POST"])
def test_an_event_that_always_kills_its_process_is_given_up_at_last_and_says_so(at: str) -> None:
    """Without an end it would come back for ever."""
    process = MortalProcess()

    def die() -> None:
        process.dead = True
        raise Death

    class Deadly(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            die()
            raise AssertionError

    class DeadlyRecords(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            die()

    simulation = Simulation(transport=Deadly())
    simulation.fan_out(simulation.call_with_events(A, events=1))
    if at == "the record":
        simulation.tables.calls = DeadlyRecords()
    deaths = 0

    async def deadly() -> None:
        nonlocal process, deaths
        while simulation.states()[A, 1] == "pending":
            process = MortalProcess()
            await simulation.deliver(process)
            deaths += process.dead
            simulation.clock.advance(61)
            await simulation.reconciler().run()

    run(deadly())
    row = simulation.tables.rows[A, 1]
    assert (row.state, deaths) == ("dead", DEATHS_FORGIVEN)
    assert "died" in row.attempts[-1]["error"]


def test_deaths_of_the_sender_take_nothing_from_the_receivers_schedule(simulation: Simulation) -> None:
    """Nine deaths and one 503 were once the ten attempts of three days, after seven minutes."""
    answering(simulation, 503)
    simulation.fan_out(simulation.call_with_events(A, events=1))

    async def nine_deaths_each_time() -> None:
        while not simulation.settled():
            if all(row.next_attempt_at_ms <= simulation.clock() for row in simulation.tables.rows.values()):
                for _ in range(9):
                    await die_at_the_post(simulation)
                    simulation.clock.advance(61)
                    await simulation.reconciler().run()
            await simulation.deliver()
            simulation.clock.advance(max(61, min(wait(row) for row in simulation.tables.rows.values()) - 61))
            await simulation.reconciler().run()

    def wait(row: Delivery) -> float:
        """Seconds until its next attempt."""
        return (row.next_attempt_at_ms - simulation.clock()) / 1000

    run(nine_deaths_each_time())
    [row] = simulation.tables.rows.values()
    assert (row.state, statuses(row)) == ("dead", [503] * len(SCHEDULE))
    assert row.attempts[-1]["at"] - row.attempts[0]["at"] >= sum(SCHEDULE) * 1000


async def die_at_the_post(simulation: Simulation) -> None:
    """The process dies when it sends, at every due delivery."""
    process = MortalProcess()

    class Deadly(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            process.dead = True
            raise Death

    transport, simulation.transport = simulation.transport, Deadly()
    try:
        await simulation.deliver(process)
    finally:
        simulation.transport = transport
    assert process.dead


def test_a_table_that_cannot_be_read_for_long_kills_no_delivery(simulation: Simulation) -> None:
    """The process lives: it gives back the delivery that it could not post."""
    simulation.fan_out(simulation.call_with_events(A, events=1))

    class Down(WorkspacesInMemory):
        def get(self, workspace_id: str) -> Workspace | None:
            raise StoreError("down")

    down = dataclasses.replace(simulation.deliverer(), workspaces=WorkspaceCache(Down(simulation.tables), 0))

    async def outage() -> None:
        for _ in range(DEATHS_FORGIVEN + 10):
            answer = await deliver_batch(down, records_of((A, 1)))
            assert answer["batchItemFailures"]
            simulation.clock.advance(61)

    run(outage())
    assert simulation.tables.rows[A, 1].state == "pending"
    run(simulation.run(simulation.settled))
    assert statuses(simulation.tables.rows[A, 1]) == [204]


def test_a_process_that_was_slow_at_aws_does_not_begin_a_post_that_outlives_its_lease() -> None:
    simulation = Simulation()
    simulation.fan_out(simulation.call_with_events(A, events=1))
    deliverer = simulation.deliverer()

    class Slow(DeliveriesInMemory):
        def take(self, *given: Any, **named: Any) -> Delivery | None:
            taken = super().take(*given, **named)
            simulation.clock.advance(D.webhook_lease - D.webhook_attempt)
            return taken

    slow = dataclasses.replace(deliverer, deliveries=Slow(simulation.tables))
    answer = run(deliver_batch(slow, records_of((A, 1))))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "a1"}]}
    assert simulation.receivers.posted == []
    run(simulation.run(simulation.settled))
    assert len(simulation.receivers.posted) == 1


def test_who_lost_its_lease_changes_nothing_of_what_the_other_noted(simulation: Simulation) -> None:
    """A process that was frozen at its POST for longer than its lease."""
    simulation.fan_out(simulation.call_with_events(A, events=1))
    simulation.webhook_queue.messages.clear()
    thawed = False

    def answer(request: httpx.Request, times: int) -> httpx.Response:
        if times == 0:
            simulation.clock.advance(D.webhook_lease + 1)
            return httpx.Response(500)
        return httpx.Response(200)

    simulation.receivers.answer = answer
    deliverer = simulation.deliverer()

    class Frozen(DeliveriesInMemory):
        def finish(self, *given: Any, **named: Any) -> Delivery | None:
            nonlocal thawed
            if not thawed:
                thawed = True
                run(deliver_batch(deliverer, records_of((A, 1))))
            return super().finish(*given, **named)

    frozen = dataclasses.replace(deliverer, deliveries=Frozen(simulation.tables))
    assert run(deliver_batch(frozen, records_of((A, 1)))) == {"batchItemFailures": []}
    row = simulation.tables.rows[A, 1]
    assert (row.state, statuses(row)) == ("delivered", [200])
    assert simulation.webhook_queue.messages == []


def test_a_retry_whose_message_is_not_taken_is_brought_back(simulation: Simulation) -> None:
    simulation.fan_out(simulation.call_with_events(A, events=1))
    answering(simulation, 500, 200)
    process = MortalProcess()
    deliverer = simulation.deliverer(process)

    class Down(QueueInMemory):
        def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
            raise QueueError("down")

    down = dataclasses.replace(deliverer, webhook_queue=Down(simulation.clock))
    simulation.webhook_queue.messages.clear()
    answer = run(deliver_batch(down, records_of((A, 1))))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "a1"}]}
    run(simulation.run(simulation.settled, days=0.01))
    assert statuses(simulation.tables.rows[A, 1]) == [500, 200]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_lost_repeated_or_killed_every_event_arrives_and_none_twice_at_a_time(seed: int) -> None:
    chance = random.Random(seed)
    simulation = Simulation()
    simulation.receivers.answer = lambda request, times: httpx.Response(
        chance.choice([200, 200, 404, 429, 500, 301])
    )
    records = simulation.call_with_events(A, events=4) + simulation.call_with_events(B, events=2)

    async def unkind() -> None:
        place = 0
        for _ in range(40):
            match chance.randrange(8):
                case 0 | 1 if place < len(records):
                    try:
                        simulation.fan_out(
                            records[place : place + 3], MortalProcess(chance.choice([None, 1, 2, 4]))
                        )
                        place += 3
                    except Death:
                        pass
                case 2 | 3:
                    await simulation.deliver(
                        MortalProcess(chance.choice([None, *range(1, 20)]), after=chance.random() < 0.5)
                    )
                case 4 if simulation.webhook_queue.messages:
                    simulation.webhook_queue.delete(chance.choice(simulation.webhook_queue.messages))
                case 5 if simulation.webhook_queue.messages:
                    again = chance.choice(simulation.webhook_queue.messages)
                    simulation.webhook_queue.messages.append(
                        dataclasses.replace(again, number=again.number + 10_000)
                    )
                case 6:
                    await simulation.reconciler().run()
                case _:
                    simulation.clock.advance(chance.choice([1, 10, 44, 46, 61, 400]))
        simulation.fan_out(records[place:])
        simulation.dead_letters.messages.clear()
        await simulation.run(simulation.settled)

    run(unkind())
    simulation.check_never_two_at_a_time()
    assert all(row.attempts for row in simulation.tables.rows.values())
    got = {one.id for one in simulation.receivers.posted}
    wanted = {f"evt_{row.call_id}_{row.sequence}" for row in simulation.tables.rows.values()}
    assert got == wanted


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_replay_is_refused_while_an_attempt_is_under_way_and_possible_right_after(
    simulation: Simulation,
) -> None:
    refused = []

    def answer(request: httpx.Request, times: int) -> httpx.Response:
        if times == 0:
            try:
                replayed(simulation)
            except RequestRefusedError as exc:
                refused.append((exc.status, exc.code))
        return httpx.Response(200)

    simulation.receivers.answer = answer
    delivered(simulation)
    assert refused == [(409, "attempt_under_way")]
    replayed(simulation)
    run(simulation.run(simulation.settled))
    assert [one.id for one in simulation.receivers.posted] == [f"evt_{A}_1"] * 2
    assert len({one.body for one in simulation.receivers.posted}) == 1


def test_a_replay_begins_the_whole_schedule_anew(simulation: Simulation) -> None:
    answering(simulation, 500)
    delivered(simulation)
    replayed(simulation)
    run(simulation.run(simulation.settled))
    row = simulation.tables.rows[A, 1]
    assert (row.state, statuses(row)) == ("dead", [500] * 20)


@pytest.mark.parametrize("sequence", ["0", "2", "-1", "1.0", "x", "", "\u0661", "99999999999999999999"])
def test_an_event_that_there_is_not_cannot_be_replayed(simulation: Simulation, sequence: str) -> None:
    simulation.call_with_events(A, events=1)
    with pytest.raises(RequestRefusedError, match="no such delivery"):
        replayed(simulation, sequence)
    assert (simulation.tables.rows, simulation.webhook_queue.messages) == ({}, [])
