"""Many workers, one number: no cap is passed, whatever DynamoDB answers to their transactions."""

from __future__ import annotations

import asyncio
import datetime
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.call import iso
from shared.call_store import CallStore
from shared.clock import now_ms, to_ms
from shared.policies import Cap, Policy
from tests.interleaving import change_durations, requests, rooms
from tests.ruled import Ruled
from tests.system import Context, System, demo_workspace
from tests.transaction_faults import TransactionFaults

NUMBER, OTHER = "+15550400001", "+15550400002"
WORKERS = 20
DAY_SECONDS = 24 * 3600


def capped(system: System, *caps: Cap, min_gap_seconds: int = 0) -> None:
    policy = Policy("default", caps=caps, min_gap_seconds=min_gap_seconds)
    system.workspaces.put(
        demo_workspace(policies={"default": policy}, max_concurrent_calls=WORKERS, calls_per_second=100)
    )


def work_together(system: System) -> None:
    """Twenty workers, each a thread with a loop of its own, until the queue is empty."""
    records = []
    while more := system.receive("DialQueue"):
        records += more
    batch = system.modules["dial_worker"].dial_batch

    def work(record: dict[str, Any]) -> None:
        answer = asyncio.run(batch([record], Context(120)))
        if not answer["batchItemFailures"]:
            system.sqs.delete_message(
                QueueUrl=system.queue_urls["DialQueue"], ReceiptHandle=record["receiptHandle"]
            )

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(work, records))


@pytest.fixture
def patient(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker gives up while twenty others write the same number on a slow machine."""
    change_durations(monkeypatch, system, "dial_worker", fence_patience=60.0, decision_valid=60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"cancelled": 0.3, "lost": 0.2, "in_progress": 0.1, "throttled": 0.1, "refused": 0.1},
    ],
    ids=["as moto answers", "with conflicts and lost answers"],
)
def test_of_200_calls_to_one_number_as_many_ring_as_its_cap_says(
    system: System, faults: dict[str, float], report_table: list[tuple[str, ...]]
) -> None:
    capped(system, Cap(3, DAY_SECONDS))
    calls = [system.place(NUMBER) for _ in range(200)]
    client = system.modules["dial_worker"].dynamodb
    with TransactionFaults(1, **faults).on(client) as injected:
        work_together(system)
    system.run_until(lambda: sum(map(system.ended, calls)) == 3, dial=False)
    rang = [call_id for call_id in calls if "call.dialing" in system.events(call_id)]
    assert len(rang) == len(system.calls_placed(NUMBER)) == 3
    assert requests(system)["CreateSIPParticipant"] == 3
    stored = system.numbers.get("demo", NUMBER).rings
    assert stored == {call_id: system.item(call_id)["dialedAt"] for call_id in rang}
    # Each waits for the day after the first ring.
    cap_ms = to_ms(DAY_SECONDS * system.durations.scale)
    earliest = iso(min(stored.values()) + cap_ms)
    waiting = [
        system.api("GET /v1/api/call/{callId}", call_id)["json"] for call_id in calls if call_id not in rang
    ]
    assert [(view["status"], view["waitingFor"], view["earliestRingAt"]) for view in waiting] == [
        ("queued", "frequency", earliest)
    ] * 197
    # Those that wait hold nothing. The rooms of the three close a moment after their ends.
    assert system.limits.active_calls("demo") == frozenset()
    system.wait_until(lambda: rooms(system) == [])
    assert all(injected.counted[name] for name in faults)
    report_table.append(("200 calls, 20 workers, cap 3", f"3 rings, {injected.counted}"))


@pytest.mark.parametrize("fault", ["cancelled", "lost", "in_progress", "throttled", "refused"])
@pytest.mark.parametrize("counted", [False, True], ids=["checked", "counted"])
def test_a_call_alone_rings_once_whatever_its_transactions_meet(
    system: System, monkeypatch: pytest.MonkeyPatch, fault: str, counted: bool
) -> None:
    """Three transactions in four, or six in ten of the plain updates, meet it."""
    change_durations(monkeypatch, system, "dial_worker", fence_patience=60.0, decision_valid=60.0)
    if counted:
        capped(system, Cap(50, 3600))
    calls = [system.place(number) for number in (NUMBER, OTHER)]
    client = system.modules["dial_worker"].dynamodb
    shares = {fault: 0.6 if fault == "refused" else 0.75}
    with TransactionFaults(1, **shares).on(client) as injected:
        system.run_until(lambda: all(map(system.ended, calls)))
        assert injected.counted[fault]
    for number, call_id in zip((NUMBER, OTHER), calls, strict=True):
        assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]
        assert len(system.calls_placed(number)) == 1
        assert list(system.numbers.get("demo", number).rings) == ([call_id] if counted else [])


def test_a_number_that_others_write_again_and_again_lets_the_call_wait(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `fence_patience` it goes back into the line, its room deleted and its slot free."""
    change_durations(monkeypatch, system, "dial_worker", fence_patience=0.2)
    capped(system, Cap(50, 3600))
    call_id = system.place(NUMBER)
    client = system.modules["dial_worker"].dynamodb
    with TransactionFaults(3, cancelled=1).on(client):
        system.dial()
    item = system.item(call_id)
    assert (item["status"], item["waitingFor"], item["lineOf"]) == ("queued", "retry", "demo#single")
    assert (rooms(system), system.limits.active_calls("demo"), system.calls_placed()) == ([], frozenset(), [])
    system.reconcile()
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1


def test_a_fence_whose_answer_never_comes_is_not_dialled_by_and_ends(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written. No process knows whether its phone rang, so none rings it again."""
    change_durations(monkeypatch, system, "dial_worker", fence_patience=0.2)
    call_id = system.place(NUMBER)
    client = system.modules["dial_worker"].dynamodb
    with TransactionFaults(4, lost=1).on(client):
        system.dial()
    assert (system.item(call_id)["status"], system.calls_placed()) == ("dialing", [])
    # Its message is received again, and does nothing.
    system.dial()
    assert system.calls_placed() == []


@pytest.mark.usefixtures("patient")
def test_an_opt_out_while_the_fence_is_repeated_lets_nothing_ring(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first transaction meets another; the number is suppressed before the second."""
    call_id = system.place(NUMBER)
    fences: list[None] = []
    fence = CallStore.fence

    def fence_and_suppress(*given: Any) -> Any:
        fenced = fence(*given)
        if not fences:
            Ruled(system).suppress(NUMBER)
            faults.shares["cancelled"] = 0
        fences.append(None)
        return fenced

    monkeypatch.setattr(CallStore, "fence", fence_and_suppress)
    faults = TransactionFaults(5, cancelled=1)
    with faults.on(system.modules["dial_worker"].dynamodb):
        system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["reason"]) == ("failed", "suppressed")
    assert system.calls_placed() == []


def test_a_ring_that_did_not_happen_is_not_counted(system: System) -> None:
    """LiveKit says that it dialled nothing: the call is un-fenced and rings once, which is counted once."""
    capped(system, Cap(1, 3600))
    system.faults(createSIPParticipant={"fail": "unavailable", "times": 1})
    first = system.place(NUMBER)
    system.run_until(lambda: system.ended(first))
    assert system.events(first).count("call.dialing") == 2
    assert list(system.numbers.get("demo", NUMBER).rings) == [first]
    second = system.place(NUMBER)
    system.run_until(lambda: "waitingFor" in system.item(second))
    view = system.api("GET /v1/api/call/{callId}", second)["json"]
    assert view["waitingFor"] == "frequency"
    opens = datetime.datetime.fromisoformat(view["earliestRingAt"]).timestamp()
    assert opens * 1000 > now_ms()


def test_two_numbers_that_are_one_phone_share_their_cap(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mexico with and without the 1 that is no longer dialled."""
    capped(system, Cap(1, 3600))
    system.workspaces.put(
        demo_workspace(
            policies={"default": Policy("default", caps=(Cap(1, 3600),))}, allowed_calling_codes=frozenset({"+52"})
        )
    )
    first = system.place("+525512345678")
    system.run_until(lambda: system.ended(first))
    second = system.place("+5215512345678")
    system.run_until(lambda: "waitingFor" in system.item(second))
    assert system.item(second)["waitingFor"] == "frequency"
    assert len(system.calls_placed()) == 1
