"""One worker, ten messages: their phones ring concurrently, and a fault of one does not affect the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from shared.call import Call
from shared.call_store import CallStore
from shared.errors import StoreUnclearError
from shared.livekit.client import LiveKit
from tests.interleaving import other_worker
from tests.system import DEADLINE_SECONDS, TIME_SCALE, System

NUMBERS = [f"+1555050{n:04}" for n in range(10)]
BUSY = {number: {"outcome": "busy"} for number in NUMBERS}


def until(found: Callable[[], bool]) -> None:
    """Waits, in a thread, for a condition; raises when it does not come true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ten_phones_ring_at_the_same_time(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.faults(numbers=BUSY)
    calls = [system.place(number) for number in NUMBERS]
    dialling: set[str] = set()
    all_ten = asyncio.Event()
    dial = LiveKit.dial

    async def together(livekit: LiveKit, **request: Any) -> None:
        """No dial goes on before all ten have begun."""
        dialling.add(request["to"])
        if len(dialling) == 10:
            all_ten.set()
        await asyncio.wait_for(all_ten.wait(), DEADLINE_SECONDS)
        await dial(livekit, **request)

    monkeypatch.setattr(LiveKit, "dial", together)
    assert system.dial() == 10
    assert {system.item(call_id)["status"] for call_id in calls} == {"busy"}
    assert system.messages("DialQueue") == 0


def test_one_that_hangs_holds_up_no_other(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.faults(numbers=BUSY)
    calls = {number: system.place(number) for number in NUMBERS}
    others = [call_id for number, call_id in calls.items() if number != NUMBERS[3]]
    ended_meanwhile: list[bool] = []
    dial = LiveKit.dial

    async def hangs(livekit: LiveKit, **request: Any) -> None:
        if request["to"] == NUMBERS[3]:
            await asyncio.to_thread(until, lambda: all(map(system.ended, others)))
            ended_meanwhile.append(True)
        await dial(livekit, **request)

    monkeypatch.setattr(LiveKit, "dial", hangs)
    system.dial()
    assert ended_meanwhile == [True]
    assert {system.item(call_id)["status"] for call_id in calls.values()} == {"busy"}


def test_those_that_fail_are_reported_and_no_other(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails for one, an unforeseen error for another, two messages that are not dial messages."""
    system.faults(numbers=BUSY)
    calls = [system.place(number) for number in NUMBERS[:8]]
    records: list[dict[str, Any]] = []
    while len(records) < 8:
        records += system.receive("DialQueue")
    by_call = {call_id: record for record in records for call_id in calls if call_id in record["body"]}
    strange = [records[0] | {"messageId": f"strange-{n}", "body": body} for n, body in enumerate(("{", "{}"))]
    take_lease, create_room = CallStore.take_lease, LiveKit.create_room

    def unclear(store: CallStore, call_id: str, *given: Any) -> Any:
        if call_id == calls[1]:
            raise StoreUnclearError("ReadTimeoutError")
        return take_lease(store, call_id, *given)

    async def breaks(livekit: LiveKit, name: str, *given: Any) -> str:
        if name == system.item(calls[5])["roomName"]:
            raise ZeroDivisionError
        return await create_room(livekit, name, *given)

    monkeypatch.setattr(CallStore, "take_lease", unclear)
    monkeypatch.setattr(LiveKit, "create_room", breaks)
    answer = other_worker(system, records + strange)
    failed = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
    assert sorted(failed) == sorted(
        [by_call[calls[1]]["messageId"], by_call[calls[5]]["messageId"], "strange-0", "strange-1"]
    )
    for n, call_id in enumerate(calls):
        assert system.item(call_id)["status"] == ("queued" if n in (1, 5) else "busy")
    assert len(system.calls_placed()) == 6


def test_a_failed_one_is_dialled_when_it_comes_back(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    call_id = system.place()
    [record] = system.receive("DialQueue")
    get = CallStore.get
    failures = [StoreUnclearError("one"), StoreUnclearError("two")]

    def fails(store: CallStore, wanted: str) -> Call | None:
        if failures:
            raise failures.pop()
        return get(store, wanted)

    monkeypatch.setattr(CallStore, "get", fails)
    for _ in range(2):
        assert other_worker(system, [record]) == {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
    assert other_worker(system, [record]) == {"batchItemFailures": []}
    assert len(system.calls_placed()) == 1
    system.run_until(lambda: system.ended(call_id))


def test_what_remains_of_the_functions_time_decides_for_each_call(system: System) -> None:
    """A short ring still fits, a long one does not; the long one is dialled by a process with more time."""
    system.faults(numbers=BUSY)
    short, long = (system.place(NUMBERS[n], ring_timeout_seconds=ring) for n, ring in enumerate((10, 60)))
    needed = 10 * TIME_SCALE + system.durations.answer_margin + system.durations.fence_margin
    assert system.dial(seconds=needed + 0.9) == 2
    assert system.item(short)["status"] == "busy"
    assert (system.item(long)["status"], len(system.calls_placed())) == ("queued", 1)
    system.run_until(lambda: system.ended(long))
    assert len(system.calls_placed()) == 2
