"""From the stream's records to rows and messages: exact, idempotent, and never blocked."""

from __future__ import annotations

import copy
import dataclasses
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.stream_poller import Settings
from shared.errors import QueueError, StoreError, StoreUnclearError
from shared.queues import Queue
from shared.table_keys import RETENTION_SECONDS
from tests.in_memory import DeliveriesInMemory, QueueInMemory
from tests.mortal_process import Death, MortalProcess
from tests.simulation import Simulation, stream_record
from webhook_dispatch.fan_out import ROWS_AT_ONCE, FanOut, new_events

A, B, C = ("a" * 24, "b" * 24, "c" * 24)
MAPPING = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text())["Resources"]["FanOutFromStream"]


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()


def sent(simulation: Simulation) -> list[tuple[str, int]]:
    return [(body["callId"], body["sequence"]) for body in simulation.webhook_queue.bodies()]


# ── what a record means ─────────────────────────────────────────────────────────────────────────────


def test_each_event_gets_one_row_and_one_message(simulation: Simulation) -> None:
    assert simulation.fan_out(simulation.call_with_events(A) + simulation.call_with_events(B, events=2)) is None
    assert sorted(simulation.tables.rows) == [(A, 1), (A, 2), (A, 3), (A, 4), (B, 1), (B, 2)]
    assert sent(simulation) == [(A, 1), (A, 2), (A, 3), (A, 4), (B, 1), (B, 2)]
    row = simulation.tables.rows[A, 1]
    assert (row.state, row.next_attempt_at_ms, row.check_at_ms) == (
        "pending",
        simulation.clock(),
        simulation.clock() + 60_000,
    )


def test_only_the_events_that_a_change_appended_count() -> None:
    events = [{"type": f"agent.{n}"} for n in range(5)]
    change = stream_record(A, events, 5)["dynamodb"]
    assert new_events(change) == (A, "demo", range(5, 6))
    change["OldImage"]["events"]["L"] = change["OldImage"]["events"]["L"][:2]
    assert new_events(change)[2] == range(3, 6)
    change["OldImage"] = change["NewImage"]
    assert not new_events(change)[2]
    del change["OldImage"]
    assert new_events(change)[2] == range(1, 6)


def test_a_change_without_an_event_makes_nothing(simulation: Simulation) -> None:
    [_, second] = simulation.call_with_events(A, events=2)
    second["dynamodb"]["OldImage"] = second["dynamodb"]["NewImage"]
    assert simulation.fan_out([second]) is None
    assert (simulation.tables.rows, sent(simulation)) == ({}, [])


def test_repeating_records_changes_no_row_and_sends_the_hints_again(simulation: Simulation) -> None:
    records = simulation.call_with_events(A, events=2)
    simulation.fan_out(records)
    before = dict(simulation.tables.rows)
    simulation.clock.advance(5)
    assert simulation.fan_out(records) is None
    assert simulation.tables.rows == before
    assert sent(simulation) == [(A, 1), (A, 2)] * 2


def test_messages_go_in_batches(simulation: Simulation) -> None:
    class Sqs:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
            self.sizes.append(len(Entries))
            assert {entry["MessageGroupId"] for entry in Entries} == {"demo"}
            return {"Successful": [{"Id": entry["Id"]} for entry in Entries]}

    sqs = Sqs()
    fan_out = FanOut(simulation.deliveries, Queue(cast(Any, sqs), "url"), simulation.durations, simulation.clock)
    assert fan_out.process(simulation.dead_letters, simulation.call_with_events(A, events=25)) is None
    assert sqs.sizes == [10, 10, 5]


# ── side by side ────────────────────────────────────────────────────────────────────────────────────

# Seconds to wait for what must not happen.
DEADLINE_SECONDS = 60


def test_rows_are_written_side_by_side_and_so_many_at_most(simulation: Simulation) -> None:
    together = threading.Barrier(ROWS_AT_ONCE)
    lock, under_way, most = threading.Lock(), 0, 0

    class Meeting(DeliveriesInMemory):
        def create(self, *given: Any) -> None:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            # Broken when the others do not come.
            together.wait(DEADLINE_SECONDS)
            super().create(*given)
            with lock:
                under_way -= 1

    assert (
        fan_out_with(
            simulation, Meeting(simulation.tables), simulation.call_with_events(A, events=2 * ROWS_AT_ONCE)
        )
        is None
    )
    assert most == ROWS_AT_ONCE
    assert sent(simulation) == [(A, n) for n in range(1, 2 * ROWS_AT_ONCE + 1)]


def test_messages_keep_the_order_of_the_records_whichever_row_is_first(simulation: Simulation) -> None:
    last_is_there = threading.Event()

    class Backwards(DeliveriesInMemory):
        def create(self, call_id: str, workspace_id: str, sequence: int, now: int, check_at: int) -> None:
            if sequence == 1:
                assert last_is_there.wait(DEADLINE_SECONDS)
            super().create(call_id, workspace_id, sequence, now, check_at)
            if sequence == 4:
                last_is_there.set()

    assert fan_out_with(simulation, Backwards(simulation.tables), simulation.call_with_events(A)) is None
    assert list(simulation.tables.rows) != sorted(simulation.tables.rows)
    assert sent(simulation) == [(A, 1), (A, 2), (A, 3), (A, 4)]


def test_of_two_failed_rows_the_first_record_is_named_though_it_fails_later(simulation: Simulation) -> None:
    later_has_failed = threading.Event()

    class FailsTwice(DeliveriesInMemory):
        def create(self, call_id: str, workspace_id: str, sequence: int, now: int, check_at: int) -> None:
            if sequence == 2:
                assert later_has_failed.wait(DEADLINE_SECONDS)
                raise StoreError("throttled")
            if sequence == 4:
                later_has_failed.set()
                raise StoreError("throttled")
            super().create(call_id, workspace_id, sequence, now, check_at)

    assert fan_out_with(simulation, FailsTwice(simulation.tables), simulation.call_with_events(A)) == 1
    assert sent(simulation) == [(A, 1)], "what comes again is told of then"


# ── partial failures ────────────────────────────────────────────────────────────────────────────────


class Failing(DeliveriesInMemory):
    """A table that fails on one row."""

    def __init__(self, simulation: Simulation, key: tuple[str, int], error: Exception) -> None:
        super().__init__(simulation.tables)
        self._key = key
        self._error = error

    def create(self, call_id: str, workspace_id: str, sequence: int, now: int, check_at: int) -> None:
        if (call_id, sequence) == self._key:
            raise self._error
        super().create(call_id, workspace_id, sequence, now, check_at)


def fan_out_with(
    simulation: Simulation, deliveries: DeliveriesInMemory, records: list[dict[str, Any]]
) -> int | None:
    fan_out = FanOut(deliveries, simulation.webhook_queue, simulation.durations, simulation.clock)
    return fan_out.process(simulation.dead_letters, records)


@pytest.mark.parametrize("error", [StoreError("throttled"), StoreUnclearError("time-out")])
def test_a_failed_row_names_its_record_and_those_before_it_are_done(
    simulation: Simulation, error: Exception
) -> None:
    records = simulation.call_with_events(A) + simulation.call_with_events(B)
    assert fan_out_with(simulation, Failing(simulation, (A, 3), error), records) == 2
    assert sent(simulation) == [(A, 1), (A, 2)]
    # As AWS continues: from the record that failed.
    assert simulation.fan_out(records[2:]) is None
    assert len(simulation.tables.rows) == 8
    assert sorted(sent(simulation)) == sorted(simulation.tables.rows)


@pytest.mark.parametrize(("refused", "place"), [({0}, 0), ({5}, 5), ({7, 3}, 3)])
def test_a_message_that_was_not_taken_names_its_record(
    simulation: Simulation, refused: set[int], place: int
) -> None:
    simulation.webhook_queue.refuse = refused
    records = simulation.call_with_events(A) + simulation.call_with_events(B)
    assert fan_out_with(simulation, DeliveriesInMemory(simulation.tables), records) == place
    assert len(simulation.tables.rows) == 8


def test_the_earlier_of_a_failed_row_and_a_lost_message_is_named(simulation: Simulation) -> None:
    simulation.webhook_queue.refuse = {1}
    records = simulation.call_with_events(A)
    assert fan_out_with(simulation, Failing(simulation, (A, 4), StoreError("down")), records) == 1


# ── poison ──────────────────────────────────────────────────────────────────────────────────────────


def poisoned(record: dict[str, Any], how: str) -> dict[str, Any]:
    bad: dict[str, Any] = copy.deepcopy(record)
    image = bad["dynamodb"].get("NewImage", {})
    match how:
        case "no image":
            del bad["dynamodb"]["NewImage"]
        case "no events":
            del image["events"]
        case "events are a text":
            image["events"] = {"S": "nonsense"}
        case "no workspace":
            del image["workspaceId"]
        case "the old image is broken":
            bad["dynamodb"]["OldImage"] = {"events": None}
        case "the call's id is not one":
            image["callId"] = {"S": "not-hex"}
        case "the call's id is empty":
            image["callId"] = {"S": ""}
        case "no keys":
            del bad["dynamodb"]["Keys"]
            del image["callId"]
        case "nothing":
            del bad["dynamodb"]
    return bad


@pytest.mark.parametrize(
    "how",
    [
        "no image",
        "no events",
        "events are a text",
        "no workspace",
        "the old image is broken",
        "the call's id is not one",
        "the call's id is empty",
        "no keys",
        "nothing",
    ],
)
def test_a_record_that_cannot_be_read_is_kept_and_the_shard_goes_on(
    simulation: Simulation, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = simulation.call_with_events(A) + simulation.call_with_events(B)
    records[1] = poisoned(records[1], how)
    assert simulation.fan_out(records) is None
    assert sent(simulation) == [(A, 1), (A, 3), (A, 4), (B, 1), (B, 2), (B, 3), (B, 4)]
    [letter] = simulation.dead_letters.bodies()
    assert letter["callId"] == (None if how in ("no keys", "nothing") else A)
    assert letter["eventId"] == f"{A}-2"
    assert '"PoisonRecords"' in capsys.readouterr().out


def test_a_poison_record_waits_while_its_queue_is_down(simulation: Simulation) -> None:
    class Down(QueueInMemory):
        def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
            raise QueueError("down")

    records = simulation.call_with_events(A)
    records[1] = poisoned(records[1], "no events")
    fan_out = FanOut(simulation.deliveries, simulation.webhook_queue, simulation.durations, simulation.clock)
    assert fan_out.process(Down(simulation.clock), records) == 1
    assert sent(simulation) == [(A, 1)]


@pytest.mark.parametrize("there", [(), (1,), (4,), (2, 3), (1, 2, 3, 4)])
@pytest.mark.parametrize("over", [False, True])
def test_a_redrive_makes_what_is_missing_and_hints_at_what_is_pending(
    simulation: Simulation, there: tuple[int, ...], over: bool
) -> None:
    """there: the events that have a delivery. over: those have been delivered."""
    records = simulation.call_with_events(A)
    for sequence in there:
        simulation.fan_out([records[sequence - 1]])
        if over:
            row = simulation.tables.rows[A, sequence]
            simulation.tables.rows[A, sequence] = dataclasses.replace(row, state="delivered")
    simulation.webhook_queue.messages.clear()
    delivering = simulation.deliverer()
    fan_out = FanOut(delivering.deliveries, simulation.webhook_queue, simulation.durations, simulation.clock)
    fan_out.deliver_all(delivering.calls, A)
    assert simulation.tables.kept == {A: simulation.clock() // 1000 + RETENTION_SECONDS}
    assert sorted(simulation.tables.rows) == [(A, n) for n in (1, 2, 3, 4)]
    assert sorted(sent(simulation)) == [(A, n) for n in (1, 2, 3, 4) if not (over and n in there)]


@pytest.mark.parametrize("there", [True, False])
def test_a_redrive_of_a_call_without_webhooks_or_record_does_nothing(simulation: Simulation, there: bool) -> None:
    if there:
        simulation.call_with_events(A)
        simulation.tables.calls[A] = dataclasses.replace(simulation.tables.calls[A], callback_url=None)
    delivering = simulation.deliverer()
    FanOut(delivering.deliveries, simulation.webhook_queue, simulation.durations, simulation.clock).deliver_all(
        delivering.calls, A
    )
    assert (simulation.tables.rows, sent(simulation)) == ({}, [])


# ── death, and the filter ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_step_leaves_rows_or_records_that_are_found_again(after: bool) -> None:
    step = 0
    while True:
        step += 1
        simulation = Simulation()
        records = simulation.call_with_events(A) + simulation.call_with_events(B)
        process = MortalProcess(step, after=after)
        try:
            simulation.fan_out(records, process)
        except Death:
            # Whatever has a message has a row.
            assert set(sent(simulation)) <= simulation.tables.rows.keys()
        else:
            break
        simulation.fan_out(records)
        assert len(simulation.tables.rows) == 8
        assert set(sent(simulation)) == simulation.tables.rows.keys()
    # Eight rows and one batch of messages.
    assert step == 10


def test_the_filter_lets_only_calls_with_a_callback_url_in() -> None:
    wants = Settings.from_properties(MAPPING["Properties"]).wants
    call = stream_record(A, [{"type": "call.queued"}], 1)
    assert wants(call)
    without = copy.deepcopy(call)
    del without["dynamodb"]["NewImage"]["callbackUrl"]
    assert not wants(without)
    delivery = copy.deepcopy(call)
    delivery["dynamodb"]["Keys"]["sk"]["S"] = "DELIVERY#0001"
    assert not wants(delivery)
    expired = copy.deepcopy(call)
    expired["dynamodb"]["OldImage"] = expired["dynamodb"].pop("NewImage")
    assert not wants(expired)
