"""Processes that die at every step, on the local stack, and the effect for the user.

Each row places one call and lets one process die at one point of it, hard. Whatever the point, the phone rings at
most once, the call ends once, every event is delivered, and nothing is left of it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shared.clock import now_ms
from shared.limits import LimitStore
from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

ANSWERS, BUSY, UNAVAILABLE_ONCE, TALKS_ON = "answer", "busy", "unavailable_once", "talks_on"
HUNG_UP = ("completed", "hangup")
# The reconciler may find no phone twice before a busy machine has delivered LiveKit's event.
LOST_ITS_EVENT = ("completed", "disconnected")
# How often a call is placed again when its second death did not happen.
TURNS = 8
# For a call that never ends: as many leases as there may be turns, and a slow machine.
SECONDS = 900.0


@dataclass(frozen=True)
class Death:
    """after: how the step is called. ends: the outcomes that are true of such a call. rings: how often.

    fate: what the stand-in does with the number. then: another death of the same call, later. paused: dialling is
    paused when the call is placed, until the process has died. cancel: the client cancels it while it rings, or
    talks. It talks on until it is canceled or, once its record says that it was answered, the callee hangs up.
    """

    after: str
    function: str
    point: str
    when: str
    fate: str = ANSWERS
    rings: int = 1
    ends: tuple[tuple[str, str], ...] = (HUNG_UP, LOST_ITS_EVENT)
    answered: tuple[int, ...] = (200,)
    then: tuple[str, str, str] | None = None
    paused: bool = False
    cancel: bool = False


UNKNOWN = ("failed", "outcome_unknown")
WAS_BUSY = ("busy", "busy")
# Of a busy phone too, where the dial's own answer was lost: LiveKit gives one reason for both.
REJECTED = ("rejected", "rejected")
LEASED = ("DialWorker", "CallStore.take_lease", "after")
CAME_BACK = ("DialWorker", "LiveKit.dial", "after")
FENCED = ("DialWorker", "CallStore.fence", "after")
REFUSED = (500, 502, 503)
# Every row of the table of steps in docs/architecture.md, and what every other process does with a call.
DEATHS = [
    Death("the message is sent, no record", "InitiateCall", "Queue.send", "after", answered=REFUSED),
    Death("the record is written", "InitiateCall", "CallStore.create", "after", answered=REFUSED),
    Death("paused, not in the line yet", "DialWorker", "CallStore.enter_line", "before", paused=True),
    Death("paused, in the line", "DialWorker", "CallStore.enter_line", "after", paused=True),
    Death("nothing, before the lease", "DialWorker", "CallStore.take_lease", "before"),
    Death("1 lease", *LEASED),
    Death("2 slot", "DialWorker", "LimitStore.take_slot", "after"),
    Death("3 nothing, before the room", "DialWorker", "LiveKit.create_room", "before"),
    Death("3 room", "DialWorker", "LiveKit.create_room", "after"),
    Death("3 agent looked for", "DialWorker", "LiveKit.view_room", "after"),
    Death("4 pacing, before the fence", "DialWorker", "CallStore.fence", "before"),
    Death("5 fence", *FENCED, rings=0, ends=(UNKNOWN,)),
    Death("5 fence, before the dial", "DialWorker", "LiveKit.dial", "before", rings=0, ends=(UNKNOWN,)),
    Death("6 dial sent, ringing", "DialWorker", "LiveKit.dial", "during"),
    Death("6 dial came back answered", "DialWorker", "LiveKit.dial", "after"),
    Death("6 answered, not written", "DialWorker", "CallStore.answered", "before"),
    Death("7 answered", "DialWorker", "CallStore.answered", "after"),
    Death("6 busy, not written", "DialWorker", "CallStore.end", "before", BUSY, ends=(REJECTED,)),
    Death("8 end, room and slot not cleared", "DialWorker", "CallStore.end", "after", BUSY, ends=(WAS_BUSY,)),
    Death("8 slot not free", "DialWorker", "LimitStore.free_slot", "before", BUSY, ends=(WAS_BUSY,)),
    Death("8 slot free, still due", "DialWorker", "CallStore.leave_due", "before", BUSY, ends=(WAS_BUSY,)),
    Death("refused, not un-fenced", "DialWorker", "CallStore.unfence", "before", UNAVAILABLE_ONCE,
          rings=0, ends=(UNKNOWN,)),
    Death("un-fenced, no message", "DialWorker", "CallStore.unfence", "after", UNAVAILABLE_ONCE),
    Death("un-fenced, its message is sent", "DialWorker", "Queue.send", "after", UNAVAILABLE_ONCE),
    Death("a cancel is written, not hung up", "CallsApi", "CallStore.ask_to_hang_up", "after", TALKS_ON,
          ends=(("canceled", "canceled_by_api"), ("completed", "canceled_by_api")), cancel=True),
    Death("6 busy; event: saw it leave", *CAME_BACK, BUSY, ends=(REJECTED,),
          then=("LivekitEvents", "CallStore.note_left", "before")),
    Death("6 busy; event: noted that it left", *CAME_BACK, BUSY, ends=(REJECTED,),
          then=("LivekitEvents", "CallStore.note_left", "after")),
    Death("the event says it left, not written", "LivekitEvents", "CallStore.end", "before"),
    Death("the event ended it, slot not free", "LivekitEvents", "CallStore.end", "after"),
    Death("1 lease; reconciler: no message yet", *LEASED, then=("ReconcileCalls", "CallStore.postpone", "after")),
    Death("1 lease; reconciler: message sent", *LEASED, then=("ReconcileCalls", "Queue.send", "after")),
    Death("5 fence; reconciler: looked", *FENCED, rings=0, ends=(UNKNOWN,),
          then=("ReconcileCalls", "LiveKit.view_room", "after")),
    Death("5 fence; reconciler: absence noted", *FENCED, rings=0, ends=(UNKNOWN,),
          then=("ReconcileCalls", "CallStore.note_missing", "after")),
    Death("5 fence; reconciler: before the end", *FENCED, rings=0, ends=(UNKNOWN,),
          then=("ReconcileCalls", "CallStore.end", "before")),
    Death("5 fence; reconciler: end, not cleared", *FENCED, rings=0, ends=(UNKNOWN,),
          then=("ReconcileCalls", "CallStore.end", "after")),
    Death("6 ringing; reconciler: answered", "DialWorker", "LiveKit.dial", "during", TALKS_ON,
          then=("ReconcileCalls", "CallStore.answered", "after")),
    Death("the delivery's row, no message", "FanOut", "DeliveryStore.create", "after"),
    Death("the delivery is taken", "Deliver", "DeliveryStore.take", "after"),
    Death("posted, not noted", "Deliver", "GuardedTransport.handle_async_request", "after"),
    Death("the attempt is noted", "Deliver", "DeliveryStore.finish", "after"),
]  # a row for each death  # fmt: skip


@dataclass
class Seen:
    """The outcome of a row's call."""

    death: Death
    number: str
    call_id: str
    turn: int
    died_at: float = 0.0
    call: dict[str, Any] = field(default_factory=dict)
    # The files of its deaths, as they are called when those have happened.
    asked: list[Path] = field(default_factory=list)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack whose workers take one message at a time, so that a death is one call's alone."""
    with launched(tmp_path_factory.mktemp("deaths") / "state") as running, Client(running.info()) as client:
        lambdas = client.aws("lambda")
        for mapping in lambdas.list_event_source_mappings()["EventSourceMappings"]:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)
        client.make_room()
        fates = {
            number_of(n, turn): {"outcome": death.fate} for n, death in enumerate(DEATHS) for turn in range(TURNS)
        }
        faults = {"numbers": fates, "talkSeconds": 1.0, "ringSeconds": 0.8, "agentJoinSeconds": 0.1}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        client.place("+15550990000")  # The first processes start slowly.
        yield client


@pytest.fixture(scope="module")
def seen(client: Client, report_table: list[tuple[str, ...]]) -> list[Seen]:
    """All rows at work side by side: most of it is waiting for leases to end. What was seen is printed."""
    # First those that die twice: they take longest.
    order = sorted(range(len(DEATHS)), key=lambda n: DEATHS[n].then is None)
    placed = {n: place(client, n, DEATHS[n]) for n in order}
    deadline = time.monotonic() + SECONDS
    still_open = set(placed)
    while still_open:
        assert time.monotonic() < deadline, [(placed[n].death.after, placed[n].call) for n in still_open]
        for n in list(still_open):
            row = placed[n]
            row.call = client.call(row.call_id)
            if row.death.fate == TALKS_ON and not row.death.cancel and row.call.get("status") == "in_progress":
                client.livekit.post("/_standin/hangup", json={"number": row.number})
            if row.call.get("endedAt"):
                if row.turn + 1 < TURNS and not all(death.exists() for death in row.asked):
                    # One process works on many calls: another's death has taken this one's second.
                    placed[n] = place(client, n, row.death, row.turn + 1)
                else:
                    still_open.remove(n)
        time.sleep(0.1)
    rows = [placed[n] for n in range(len(DEATHS))]
    report_table.append(("the process dies after", "rings", "end", "endReason", "seconds to the end"))
    for row in rows:
        end = datetime.datetime.fromisoformat(row.call["endedAt"]).timestamp()
        seconds = f"{max(0.0, end - row.died_at):.1f}"
        ended = (row.call["status"], row.call["endReason"])
        report_table.append((row.death.after, str(client.rings(row.number)), *ended, seconds))
    return rows


def number_of(n: int, turn: int) -> str:
    return f"+1555010{turn}{n:03d}"


def place(client: Client, n: int, death: Death, turn: int = 0) -> Seen:
    number, key = number_of(n, turn), f"death-{n}-{turn}"
    row = Seen(death, number, client.call_id_of(key), turn)
    row.asked.append(ask(client, row, key, (death.function, death.point, death.when)))
    if death.then:
        row.asked.append(ask(client, row, f"{key}-then", death.then))
    with paused(client) if death.paused else contextlib.nullcontext():
        answer = client.post(number, key, max_duration_seconds=14_400)
        assert answer.status_code in death.answered, (death.after, answer.status_code, answer.text)
        if answer.status_code != 200:
            # A client repeats what got no answer, with the same key.
            row.died_at = time.time()
            answer = client.post(number, key, max_duration_seconds=14_400)
            assert answer.status_code == 200, answer.text
            assert answer.json()["callId"] == row.call_id
        if death.cancel:
            eventually(lambda: client.rings(number), "it rings")
            assert client.api.post(f"/v1/api/call/{row.call_id}/cancel").status_code in REFUSED
        died = row.asked[0]
        eventually(died.exists, f"a process dies after: {death.after} ({row.call_id})")
    row.died_at = row.died_at or time.time()
    return row


def ask(client: Client, row: Seen, name: str, death: tuple[str, str, str]) -> Path:
    """Asks for a death. The file that is there when it has happened."""
    wish = dict(zip(("function", "point", "when"), death, strict=True)) | {"call": row.call_id}
    asked = Path(client.info["deaths"]) / f"{name}.json"
    asked.with_suffix(".new").write_text(json.dumps(wish))
    asked.with_suffix(".new").rename(asked)
    return asked.with_suffix(".done")


@contextlib.contextmanager
def paused(client: Client) -> Iterator[None]:
    limits = LimitStore(client.aws("dynamodb"), client.info["resources"]["WorkspacesTable"])
    limits.pause(now_ms())
    yield
    limits.resume(now_ms())


@pytest.mark.parametrize("n", range(len(DEATHS)), ids=[death.after for death in DEATHS])
def test_whatever_dies_it_rings_at_most_once_and_ends_once(client: Client, seen: list[Seen], n: int) -> None:
    row = seen[n]
    assert all(death.exists() for death in row.asked), "every process died that was to die"
    assert client.rings(row.number) == row.death.rings
    assert (row.call["status"], row.call["endReason"]) in row.death.ends
    types = [event["type"] for event in row.call["events"]]
    assert types.count("call.ended") == 1
    assert types[-1] == "call.ended"

    def all_delivered() -> bool:
        return {e["sequence"] for e in client.received(row.call_id)} == set(range(1, len(types) + 1))

    eventually(all_delivered, "every event is delivered")
    received = client.received(row.call_id)
    assert all(event["verified"] for event in received)
    assert {event["headers"]["webhook-id"] for event in received} == {
        f"evt_{row.call_id}_{sequence}" for sequence in range(1, len(types) + 1)
    }


def test_nothing_is_left_of_any_of_them(client: Client, seen: list[Seen]) -> None:
    eventually(lambda: not client.active_calls(), "every slot is free")
    eventually(lambda: client.due() == 0, "nothing is due")
