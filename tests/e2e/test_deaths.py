"""Processes that die at every step, on the local stack: what the user sees of it.

Each row places one call and lets one process die at one point of it, hard. Whatever the point, the phone rings at
most once, the call ends once, every event is delivered, and nothing is left of it.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

ANSWERS, BUSY, UNAVAILABLE_ONCE = "answer", "busy", "unavailable_once"
HUNG_UP = ("completed", "hangup")
# How long a call may take to end when its worker died: the lease, two looks, at the stack's time scale.
END_SECONDS = 90.0


@dataclass(frozen=True)
class Death:
    """after: how the step is called. ends: the outcomes that are true of such a call. rings: how often.

    fate: what the stand-in does with the number.
    """

    after: str
    function: str
    point: str
    when: str
    fate: str = ANSWERS
    rings: tuple[int, ...] = (1,)
    ends: tuple[tuple[str, str], ...] = (HUNG_UP,)
    answered: tuple[int, ...] = (200,)


UNKNOWN = ("failed", "outcome_unknown")
WAS_BUSY = ("busy", "busy")
DEATHS = [
    Death("the message is sent, no record", "InitiateCall", "Queue.send", "after", answered=(500, 502, 503)),
    Death("the record is written", "InitiateCall", "CallStore.create", "after", answered=(500, 502, 503)),
    Death("nothing, before the lease", "DialWorker", "CallStore.take_lease", "before"),
    Death("1 lease", "DialWorker", "CallStore.take_lease", "after"),
    Death("2 slot", "DialWorker", "WorkspaceStore.take_slot", "after"),
    Death("3 room", "DialWorker", "LiveKit.create_room", "after"),
    Death("4 agent and pacing", "DialWorker", "CallStore.fence", "before"),
    Death("5 fence", "DialWorker", "CallStore.fence", "after", rings=(0,), ends=(UNKNOWN,)),
    Death("6 dial sent, ringing", "DialWorker", "LiveKit.dial", "during"),
    Death("6 answered, not written", "DialWorker", "CallStore.answered", "before"),
    Death("7 answered", "DialWorker", "CallStore.answered", "after"),
    Death("6 busy, not written", "DialWorker", "CallStore.end", "before", BUSY, ends=(("rejected", "rejected"),)),
    Death("8 end, room and slot not cleared", "DialWorker", "CallStore.end", "after", BUSY, ends=(WAS_BUSY,)),
    Death("8 slot not free", "DialWorker", "WorkspaceStore.free_slot", "before", BUSY, ends=(WAS_BUSY,)),
    Death("8 slot free, still due", "DialWorker", "CallStore.leave_due", "before", BUSY, ends=(WAS_BUSY,)),
    Death("refused, not un-fenced", "DialWorker", "CallStore.unfence", "before", UNAVAILABLE_ONCE,
          rings=(0,), ends=(UNKNOWN,)),
    Death("un-fenced, no message", "DialWorker", "CallStore.unfence", "after", UNAVAILABLE_ONCE),
    Death("the event says it left, not written", "LivekitEvents", "CallStore.end", "before"),
    Death("the event ended it, slot not free", "LivekitEvents", "CallStore.end", "after"),
    Death("the delivery's row, no message", "FanOut", "DeliveryStore.create", "after"),
    Death("the delivery is taken", "Deliver", "DeliveryStore.take", "after"),
    Death("posted, not noted", "Deliver", "GuardedTransport.handle_async_request", "after"),
    Death("the attempt is noted", "Deliver", "DeliveryStore.finish", "after"),
]  # fmt: skip


@dataclass
class Seen:
    """What became of a row's call."""

    death: Death
    number: str
    call_id: str
    died_at: float = 0.0
    call: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack whose workers take one message at a time, so that a death is one call's alone."""
    with launched(tmp_path_factory.mktemp("deaths") / "state") as running, Client(running.info()) as client:
        lambdas = client.aws("lambda")
        for mapping in lambdas.list_event_source_mappings()["EventSourceMappings"]:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)
        fates = {number_of(n): {"outcome": death.fate} for n, death in enumerate(DEATHS)}
        faults = {"numbers": fates, "talkSeconds": 1.0, "ringSeconds": 0.8, "agentJoinSeconds": 0.1}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        client.place("+15550990000")  # The first processes start slowly.
        yield client


@pytest.fixture(scope="module")
def seen(client: Client) -> list[Seen]:
    """All rows at work side by side, a few at a time: most of it is waiting for leases to end."""
    rows = [place(client, n, death) for n, death in enumerate(DEATHS)]
    deadline = time.monotonic() + END_SECONDS + len(DEATHS) * 2
    open_rows = list(rows)
    while open_rows:
        assert time.monotonic() < deadline, [(row.death.after, client.call(row.call_id)) for row in open_rows]
        for row in list(open_rows):
            row.call = client.call(row.call_id)
            if row.call.get("endedAt"):
                open_rows.remove(row)
        time.sleep(0.1)
    return rows


def number_of(n: int) -> str:
    return f"+1555010{n:04d}"


def place(client: Client, n: int, death: Death) -> Seen:
    number, key = number_of(n), f"death-{n}"
    row = Seen(death, number, client.call_id_of(key))
    asked = Path(client.info["deaths"]) / f"{n}.json"
    wish = {"function": death.function, "point": death.point, "when": death.when, "call": row.call_id}
    asked.with_suffix(".new").write_text(json.dumps(wish))
    asked.with_suffix(".new").rename(asked)
    answer = client.post(number, key)
    assert answer.status_code in death.answered, (death.after, answer.status_code, answer.text)
    if answer.status_code != 200:
        # A client repeats what got no answer, with the same key.
        row.died_at = time.time()
        answer = client.post(number, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["callId"] == row.call_id
    died = asked.with_suffix(".done")
    eventually(died.exists, f"a process dies after: {death.after}; {client.call(row.call_id)}", 30)
    row.died_at = row.died_at or time.time()
    return row


@pytest.mark.parametrize("n", range(len(DEATHS)), ids=[death.after for death in DEATHS])
def test_whatever_dies_it_rings_at_most_once_and_ends_once(client: Client, seen: list[Seen], n: int) -> None:
    row = seen[n]
    assert client.rings(row.number) in row.death.rings
    assert (row.call["status"], row.call["endReason"]) in row.death.ends
    types = [event["type"] for event in row.call["events"]]
    assert types.count("call.ended") == 1
    assert types[-1] == "call.ended"

    def all_delivered() -> bool:
        return {e["sequence"] for e in client.received(row.call_id)} == set(range(1, len(types) + 1))

    eventually(all_delivered, "every event is delivered", 30)
    received = client.received(row.call_id)
    assert all(event["verified"] for event in received)
    assert {event["headers"]["webhook-id"] for event in received} == {
        f"evt_{row.call_id}_{sequence}" for sequence in range(1, len(types) + 1)
    }


def test_nothing_is_left_of_any_of_them(
    client: Client, seen: list[Seen], report_table: list[tuple[str, ...]]
) -> None:
    eventually(lambda: not client.active_calls(), "every slot is free", 30)
    eventually(lambda: client.due() == 0, "nothing is due", 30)
    report_table.append(("the process dies after", "rings", "end", "endReason", "seconds to the end"))
    for row in seen:
        end = datetime.datetime.fromisoformat(row.call["endedAt"]).timestamp()
        seconds = f"{max(0.0, end - row.died_at):.1f}"
        ended = (row.call["status"], row.call["endReason"])
        report_table.append((row.death.after, str(client.rings(row.number)), *ended, seconds))
