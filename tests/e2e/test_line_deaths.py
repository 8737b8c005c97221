"""Processes that die at every step of the line, on the local stack.

Each row has a workspace of its own with one slot. A first call holds it, a second waits in the line, a third
behind it. Wherever a process dies, each rings once and ends once: the reconciler's next runs give the slot to the
next. No other call of the workspace comes that could.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.clock import now_ms
from shared.limits import LimitStore
from shared.table_keys import call_key
from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

# A row is repeated when the death did not happen: its call was elsewhere.
TURNS = 5
SECONDS = 600.0
FIRST, SECOND, WORKSPACE = "first", "second", "workspace"
REFUSED = (500, 502, 503)
ENDED_WELL = (("completed", "hangup"), ("completed", "disconnected"))
CANCELED = (("canceled", "canceled_by_api"),)

# Function, point of `local/process_hooks/kill_points.py`, when, and whose call, or whether it is the workspace's.
Kill = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class LineDeath:
    """after: how the step is called. kills: one after the other.

    how: what brings the second call to the step. "waits": it enters the line. "next": the first call is hung up.
    "newcomer": a slot is free although calls wait; the worker that puts the call into the line admits it. "back":
    it goes back into the line with a slot, because dialling is paused. "repair": its id is in the slots although
    it waits. "cancel": it is canceled.
    """

    after: str
    how: str
    kills: tuple[Kill, ...]


NO_ADMISSION = ("LivekitEvents", "LimitStore.free_slot", "after", FIRST)
UNFENCED = ("DialWorker", "CallStore.unfence", "after", SECOND)
DEATHS = [
    LineDeath("worker: crowd noted", "waits", (("DialWorker", "LimitStore.note_crowded", "after", WORKSPACE),)),
    LineDeath("worker: not in the line yet", "waits", (("DialWorker", "CallStore.enter_line", "before", SECOND),)),
    LineDeath("worker: in the line", "waits", (("DialWorker", "CallStore.enter_line", "after", SECOND),)),
    LineDeath(
        "worker: slot freed, not in the line",
        "back",
        (UNFENCED, ("DialWorker", "LimitStore.free_slot", "after", SECOND)),
    ),
    LineDeath("worker: claimed, no message", "newcomer", (("DialWorker", "CallStore.admit", "after", SECOND),)),
    LineDeath("worker: admission sent", "newcomer", (("DialWorker", "Queue.send_batch", "after", SECOND),)),
    LineDeath("event: ended, no call admitted", "next", (NO_ADMISSION,)),
    LineDeath("event: claimed, no message", "next", (("LivekitEvents", "CallStore.admit", "after", SECOND),)),
    LineDeath("event: admission sent", "next", (("LivekitEvents", "Queue.send_batch", "after", SECOND),)),
    LineDeath(
        "reconciler: filled, no message",
        "next",
        (NO_ADMISSION, ("ReconcileCalls", "CallStore.admit", "after", SECOND)),
    ),
    LineDeath(
        "reconciler: filled, message sent",
        "next",
        (NO_ADMISSION, ("ReconcileCalls", "Queue.send_batch", "after", SECOND)),
    ),
    LineDeath("repair: held", "repair", (("ReconcileCalls", "CallStore.hold", "after", SECOND),)),
    LineDeath("repair: slot freed", "repair", (("ReconcileCalls", "LimitStore.free_slot", "after", SECOND),)),
    LineDeath(
        "repair: back in the line", "repair", (("ReconcileCalls", "CallStore.enter_line", "after", SECOND),)
    ),
    LineDeath("canceled in the line", "cancel", (("CallsApi", "CallStore.end", "after", SECOND),)),
]


class Row:
    """The calls of one death, and the files that are there when it has happened."""

    def __init__(self, client: Client, of: Client, n: int, turn: int) -> None:
        """of: the client of its workspace."""
        self.client, self.of, self.death = client, of, DEATHS[n]
        self.numbers = [f"+155503{turn}{n:02d}{place:02d}" for place in range(3)]
        self.keys = [f"line-death-{n}-{turn}-{place}" for place in range(3)]
        self.call_ids = [self.of.call_id_of(key) for key in self.keys]
        self.done: list[Path] = []
        self._done = [f"{n}-{turn}-{place}" for place in range(2)]

    def fates(self) -> dict[str, Any]:
        first = {"outcome": "talks_on"}
        second = {"outcome": "unavailable_once" if self.death.how == "back" else "answer"}
        return dict(zip(self.numbers, (first, second, {"outcome": "answer"}), strict=True))

    def place(self, place: int) -> None:
        """Again if a busy machine does not answer in time, as a client does."""

        def accepted() -> bool:
            answer = self.of.post(self.numbers[place], self.keys[place], max_duration_seconds=14_400)
            return answer.status_code == 200

        eventually(accepted, f"{self.death.after}: call {place} is accepted")
        # On a busy machine the rows take longer than a call may wait.
        self.client.aws("dynamodb").update_item(
            TableName=self.client.info["resources"]["CallsTable"],
            Key=call_key(self.call_ids[place]),
            UpdateExpression="SET queueDeadline = :never",
            ExpressionAttributeValues={":never": {"N": str(now_ms() + 3_600_000)}},
        )

    def waits(self, place: int) -> bool:
        record = self.of.stored(self.call_ids[place])
        return ("lineOf" in record and "admittedAt" not in record) or self.has_left_the_queue(place)

    def has_left_the_queue(self, place: int) -> bool:
        return self.of.stored(self.call_ids[place]).get("status") not in (None, "queued")

    def held(self, place: int) -> bool:
        return self.call_ids[place] in self.of.active_calls() or self.has_left_the_queue(place)

    def ask(self) -> None:
        """Asks for the deaths."""
        whose = {FIRST: self.call_ids[0], SECOND: self.call_ids[1], WORKSPACE: self.of.info["workspaceId"]}
        for name, (function, point, when, of) in zip(self._done, self.death.kills, strict=False):
            asked = Path(self.client.info["deaths"]) / f"line-{name}.json"
            wish = {"function": function, "point": point, "when": when, "call": whose[of]}
            asked.with_suffix(".new").write_text(json.dumps(wish))
            asked.with_suffix(".new").rename(asked)
            self.done.append(asked.with_suffix(".done"))

    def happened(self) -> bool:
        return all(path.exists() for path in self.done)

    def records(self) -> list[dict[str, Any]]:
        return [self.of.stored(call_id) for call_id in self.call_ids]

    def ended(self) -> bool:
        return all("endedAt" in record for record in self.records())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack whose workers take one message at a time, so that a death is one call's alone."""
    with launched(tmp_path_factory.mktemp("line-deaths") / "state") as running, Client(running.info()) as client:
        lambdas = client.aws("lambda")
        for mapping in lambdas.list_event_source_mappings()["EventSourceMappings"]:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)
        client.make_room()
        yield client


@contextlib.contextmanager
def paused(client: Client) -> Iterator[None]:
    limits = LimitStore(client.aws("dynamodb"), client.info["resources"]["WorkspacesTable"])
    limits.pause(now_ms())
    yield
    limits.resume(now_ms())


@pytest.fixture(scope="module")
def rows(client: Client, report_table: list[tuple[str, ...]]) -> Iterator[list[Row]]:
    """All rows side by side, and those again whose death did not happen."""
    rows: dict[int, Row] = {}
    with contextlib.ExitStack() as clients:
        for turn in range(TURNS):
            again = [n for n in range(len(DEATHS)) if n not in rows or not rows[n].happened()]
            if not again:
                break
            fresh = {}
            for n in again:
                of = clients.enter_context(client.add_workspace(f"line-{n}-{turn}", slots=1))
                fresh[n] = Row(client, of, n, turn)
            play(client, list(fresh.values()))
            rows |= fresh
        for row in rows.values():
            turn = row.of.info["workspaceId"].rpartition("-")[2]
            report_table.append((row.death.after, "died" if row.happened() else "did not die", f"turn {turn}"))
        yield [rows[n] for n in range(len(DEATHS))]


def play(client: Client, rows: list[Row]) -> None:
    fates = {number: fate for row in rows for number, fate in row.fates().items()}
    faults = {"numbers": fates, "talkSeconds": 1.0, "ringSeconds": 0.5, "agentJoinSeconds": 0.1}
    client.livekit.put("/_standin/faults", json=faults).raise_for_status()
    with_first = [row for row in rows if row.death.how not in ("back", "newcomer")]
    for row in with_first:
        row.place(0)
    for row in with_first:
        eventually(lambda row=row: row.held(0), f"{row.death.after}: the first has the slot")  # type: ignore[misc]
    for row in with_first:
        row.ask()
        row.place(1)
    for row in with_first:
        eventually(lambda row=row: row.waits(1), f"{row.death.after}: the second waits")  # type: ignore[misc]
        row.place(2)
    for row in with_first:
        eventually(lambda row=row: row.waits(2), f"{row.death.after}: the third waits")  # type: ignore[misc]
    limits = LimitStore(client.aws("dynamodb"), client.info["resources"]["WorkspacesTable"])
    for row in rows:
        if row.death.how == "newcomer":
            row.ask()
            limits.note_crowded(row.of.info["workspaceId"], 0, now_ms() + 600_000, now_ms())
            for place in (1, 0, 2):
                row.place(place)
    go_back(client, [row for row in rows if row.death.how == "back"])
    for row in rows:
        if row.death.how == "repair":
            limits.take_slot(row.of.info["workspaceId"], row.call_ids[1], 2)
        if row.death.how == "cancel":
            answer = row.of.api.post(f"/v1/api/call/{row.call_ids[1]}/cancel")
            assert answer.status_code in REFUSED
    for row in rows:
        if row.death.how == "repair":
            eventually(lambda row=row: row.happened() or row.has_left_the_queue(1), row.death.after)  # type: ignore[misc]

    def all_ended() -> bool:
        for row in rows:
            if row.of.stored(row.call_ids[0]).get("status") == "in_progress":
                client.livekit.post("/_standin/hangup", json={"number": row.numbers[0]})
        time.sleep(0.2)
        return all(row.ended() for row in rows)

    eventually(all_ended, "every call ends", SECONDS)


def go_back(client: Client, rows: list[Row]) -> None:
    """The dial of the second call is refused before anything rings, and dialling is paused before the next try; it
    keeps its slot until then.
    """
    for row in rows:
        row.ask()
        row.place(1)
        row.place(0)
        row.place(2)
        eventually(row.done[0].exists, f"a process dies: {row.death.after}")
        with paused(client):
            eventually(lambda row=row: row.waits(1) or row.done[1].exists(), "it goes back")  # type: ignore[misc]


@pytest.mark.parametrize("n", range(len(DEATHS)), ids=[death.after for death in DEATHS])
def test_whatever_dies_the_line_moves_on(rows: list[Row], n: int) -> None:
    row = rows[n]
    assert row.happened(), "every process died that was to die"
    canceled = row.death.how == "cancel"
    rings = [row.client.rings(number) for number in row.numbers]
    records = row.records()
    assert rings == [1, 0 if canceled else 1, 1], [record["events"][-1] for record in records]
    for place, record in enumerate(records):
        types = [event["type"] for event in record["events"]]
        assert types.count("call.ended") == 1
        end = (record["status"], record["events"][-1]["reason"])
        assert end in (CANCELED if place == 1 and canceled else ENDED_WELL)
    eventually(lambda: not row.of.active_calls(), "every slot is free")
    assert all("lineOf" not in record for record in records)


def test_nothing_is_left_of_any_of_them(client: Client, rows: list[Row]) -> None:
    eventually(lambda: client.due() == 0, "nothing is due")
