"""Who must not be rung, on the local stack: processes that die at the steps that keep a phone from ringing, and
callees who opt out while they are called.

Each death has a workspace of its own, and a process dies as in a crash. After each, no number is rung that must
not be, and every call ends once. The deaths before and after the fence itself are among those of `test_deaths.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.agent.ringonce_agent import signed
from shared.clock import now_ms
from shared.dynamo import to_wire
from shared.limits import NUMBERS, LimitStore
from shared.numbers import MARKER, NumberStore
from shared.policies import Cap, Policy
from shared.table_keys import call_key
from shared.workspaces import WorkspaceStore
from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS, eventually, launched
from tests.e2e.opt_outs import opt_out_at_random

REFUSED = (500, 502, 503)
# Of the local stack's time.
CAP_SECONDS = 200


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack whose workers take one message at a time, so that a death is one call's alone."""
    with launched(tmp_path_factory.mktemp("gate-deaths") / "state") as running, Client(running.info()) as client:
        lambdas = client.aws("lambda")
        for mapping in lambdas.list_event_source_mappings()["EventSourceMappings"]:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)
        client.make_room()
        yield client


class Row:
    """One row's workspace of one slot, which lets a number ring once in CAP_SECONDS, its numbers and its deaths.

    talks: who is called first and holds the slot.
    """

    def __init__(self, client: Client, n: int) -> None:
        self.name = f"gate-{n}"
        self.number, self.talks = f"+15550400{n:03d}", f"+15550401{n:03d}"
        self.client = client
        self.of = client.add_workspace(self.name, slots=1)
        table = client.info["resources"]["WorkspacesTable"]
        capped = {"default": Policy("default", caps=(Cap(1, CAP_SECONDS),))}
        WorkspaceStore(client.aws("dynamodb"), table).update(
            self.name, lambda seen: dataclasses.replace(seen, policies=capped)
        )

    def place(self, key: str, number: str | None = None, **fields: Any) -> str:
        """Again if there is no answer, as a client does."""

        def accepted() -> bool:
            answer = self.of.post(number or self.number, key, **fields)
            assert answer.status_code == 200 or answer.status_code in REFUSED, answer.text
            return answer.status_code == 200

        eventually(accepted, f"{self.name}: call {key} is accepted")
        return self.of.call_id_of(key)

    def talk(self, number: str) -> str:
        """A call that is answered, and keeps the slot until the callee hangs up."""
        call_id = self.place("talks", number, max_duration_seconds=14_400)
        eventually(lambda: self.of.call(call_id)["status"] == "in_progress", f"{self.name}: it is answered")
        return call_id

    def hang_up(self, number: str) -> None:
        self.client.livekit.post("/_standin/hangup", json={"number": number}).raise_for_status()

    def dies(self, function: str, point: str, when: str, whose: str) -> Path:
        """Asks for a death. The file that is there when it has happened."""
        asked = Path(self.client.info["deaths"]) / f"{self.name}.json"
        wish = {"function": function, "point": point, "when": when, "call": whose}
        asked.with_suffix(".new").write_text(json.dumps(wish))
        asked.with_suffix(".new").rename(asked)
        return asked.with_suffix(".done")

    def ended(self, call_id: str) -> dict[str, Any]:
        """The call once it has ended, which it does once."""
        eventually(lambda: self.of.call(call_id).get("endedAt"), f"{self.name}: the call ends")
        call = self.of.call(call_id)
        assert [event["type"] for event in call["events"]].count("call.ended") == 1
        return call

    def ends_suppressed(self, call_id: str) -> None:
        assert self.ended(call_id)["endReason"] == "suppressed"
        assert self.client.rings(self.number) == 0

    def ends_well(self, call_id: str, rings: int = 1) -> None:
        assert self.ended(call_id)["status"] == "completed"
        assert self.client.rings(self.number) == rings

    def suppress(self) -> int:
        return self.of.api.put(f"/v1/api/suppression/{self.number}", json={"reason": "asked"}).status_code

    def asked_until(self, ask: Callable[[], int], died: Path) -> None:
        """Asks until a process has died of it; no answer is a success."""

        def has_died() -> bool:
            assert died.exists() or ask() in REFUSED
            return died.exists()

        eventually(has_died, f"{self.name}: a process dies")

    def suppressions(self) -> list[dict[str, Any]]:
        listed = self.of.read(f"/v1/api/suppression/{self.number}")["suppressions"]
        assert isinstance(listed, list)
        return listed


def later(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(time.time() + seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds")


def un_fenced(row: Row, point: str) -> None:
    """LiveKit refuses the first dial before anything rings. A ring that is still counted is the call's own."""
    died = row.dies("DialWorker", point, "after", row.of.call_id_of("one"))
    call_id = row.place("one")
    eventually(died.exists, f"{row.name}: {point}")
    row.ends_well(call_id)


def a_ring_is_not_forgotten(row: Row) -> None:
    un_fenced(row, "CallStore.unfence")


def a_ring_is_forgotten_no_message(row: Row) -> None:
    un_fenced(row, "NumberStore.forget_ring")


def suppression_is_read_not_written(row: Row) -> None:
    """The client repeats what got no answer."""
    row.talk(row.talks)
    call_id = row.place("one")
    row.asked_until(row.suppress, row.dies("CallsApi", "NumberStore.get", "after", row.number))
    eventually(lambda: row.suppress() == 200, "the number is suppressed")
    row.hang_up(row.talks)
    row.ends_suppressed(call_id)


def suppression_is_written_not_answered(row: Row) -> None:
    row.talk(row.talks)
    call_id = row.place("one")
    row.asked_until(row.suppress, row.dies("CallsApi", "NumberStore.suppress", "after", row.number))
    assert len(row.suppressions()) == 1
    row.hang_up(row.talks)
    row.ends_suppressed(call_id)


def opt_out_suppresses_no_report(row: Row) -> None:
    """The agent repeats its report: it is one event, and the callee is not called again."""
    first = row.talk(row.number)
    second = row.place("one")
    info = row.client.info
    body = json.dumps({"type": "agent.opt_out", "data": {"said": "never again"}}).encode()
    token = signed(body, row.of.call(first)["roomName"], info["liveKitApiKey"], info["liveKitApiSecret"])

    def report() -> int:
        url = f"{info['apiUrl']}/v1/api/call/{first}/events"
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(url, content=body, headers=headers, timeout=END_SECONDS).status_code

    row.asked_until(report, row.dies("CallsApi", "NumberStore.suppress", "after", row.number))
    assert len(row.suppressions()) == 1
    eventually(lambda: report() == 200, "the report is taken")
    assert [event["type"] for event in row.of.call(first)["events"]].count("agent.opt_out") == 1
    row.hang_up(row.number)
    row.ends_well(first)
    assert row.ended(second)["endReason"] == "suppressed"
    assert row.client.rings(row.number) == 1


def moved_no_message(row: Row) -> None:
    """The call may ring at once now: the reconciler sends its message."""
    call_id = row.place("one", scheduled_at=later(800))

    def move() -> int:
        return row.of.api.patch(f"/v1/api/call/{call_id}", json={"scheduled_at": None}).status_code

    row.asked_until(move, row.dies("CallsApi", "CallStore.reschedule", "after", call_id))
    row.ends_well(call_id)


def scheduled_message_no_record(row: Row) -> None:
    """The client repeats its request: the call has two messages, and rings once, not before its time."""
    at, call_id = later(12), row.of.call_id_of("one")
    died = row.dies("InitiateCall", "Queue.send", "after", call_id)
    row.asked_until(lambda: row.of.post(row.number, "one", scheduled_at=at).status_code, died)
    row.place("one", scheduled_at=at)
    row.ends_well(call_id)
    [ring] = row.client.livekit.get("/_standin/calls", params={"number": row.number}).json()["calls"]
    assert ring["atMs"] >= datetime.datetime.fromisoformat(at).timestamp() * 1000


def admitted_ahead_no_message(row: Row) -> None:
    """A call that waits in the line for a time some seconds ahead. Only the reconciler can admit it."""
    call_id = row.place("one", scheduled_at=later(1000))
    died = row.dies("ReconcileCalls", "CallStore.admit", "after", call_id)
    at_ms = now_ms() + 5000
    turn = row.of.stored(call_id)["turn"].partition("#")[2]
    row.client.aws("dynamodb").update_item(
        TableName=row.client.info["resources"]["CallsTable"],
        Key=call_key(call_id),
        UpdateExpression="SET turn = :turn, scheduledAt = :at",
        ExpressionAttributeValues=to_wire({":turn": f"{at_ms:013}#{turn}", ":at": at_ms}),
    )
    row.ends_well(call_id)
    assert died.exists()
    [ring] = row.client.livekit.get("/_standin/calls", params={"number": row.number}).json()["calls"]
    assert ring["atMs"] >= at_ms


ROWS: dict[str, Callable[[Row], None]] = {
    row.__name__: row
    for row in (
        a_ring_is_not_forgotten,
        a_ring_is_forgotten_no_message,
        suppression_is_read_not_written,
        suppression_is_written_not_answered,
        opt_out_suppresses_no_report,
        moved_no_message,
        scheduled_message_no_record,
        admitted_ahead_no_message,
    )
}


@pytest.fixture(scope="module")
def played(client: Client) -> Iterator[dict[str, Future[None]]]:
    """All rows side by side."""
    rows = {name: Row(client, n) for n, name in enumerate(ROWS)}
    fates = {row.number: {"outcome": "answer"} for row in rows.values()}
    fates |= {row.talks: {"outcome": "talks_on"} for row in rows.values()}
    for name in ("a_ring_is_not_forgotten", "a_ring_is_forgotten_no_message"):
        fates[rows[name].number] = {"outcome": "unavailable_once"}
    fates[rows["opt_out_suppresses_no_report"].number] = {"outcome": "talks_on"}
    faults = {"numbers": fates, "talkSeconds": 0.5, "ringSeconds": 0.3, "agentJoinSeconds": 0.1}
    client.livekit.put("/_standin/faults", json=faults).raise_for_status()
    with contextlib.ExitStack() as clients, ThreadPoolExecutor(len(rows)) as threads:
        for row in rows.values():
            clients.enter_context(row.of)
        yield {name: threads.submit(ROWS[name], row) for name, row in rows.items()}


@pytest.mark.parametrize("name", ROWS)
def test_whatever_dies_only_those_are_rung_who_may_be(played: dict[str, Future[None]], name: str) -> None:
    played[name].result()


def test_a_marker_that_is_written_and_not_noted_is_noted_by_the_next_run(
    client: Client, played: dict[str, Future[None]]
) -> None:
    """A deployment's first marker. Until it is there nothing rings."""
    for row in played.values():
        row.exception()
    resources, dynamodb = client.info["resources"], client.aws("dynamodb")
    died = Path(client.info["deaths"]) / "marker.done"
    asked = died.with_suffix(".new")
    asked.write_text(
        json.dumps({"function": "ReconcileCalls", "point": "NumberStore.mark", "when": "after", "call": ""})
    )
    asked.rename(died.with_suffix(".json"))
    dynamodb.delete_item(TableName=resources["WorkspacesTable"], Key={"workspaceId": {"S": NUMBERS}})
    dynamodb.delete_item(TableName=resources["NumbersTable"], Key={"id": {"S": MARKER}})
    limits = LimitStore(dynamodb, resources["WorkspacesTable"])
    eventually(died.exists, "the reconciler dies when it has written the marker")
    assert NumberStore(dynamodb, resources["NumbersTable"]).marked()
    eventually(limits.numbers_noted, "the next run notes it")
    call_id = client.call_id_of("marked")
    eventually(lambda: client.post("+15550400099", "marked").status_code == 200, "a call is accepted")
    eventually(lambda: client.call(call_id)["status"] == "completed", "calls ring")


def test_a_phone_that_rings_after_an_opt_out_was_fenced_before_it(
    client: Client, played: dict[str, Future[None]], report_table: list[tuple[str, ...]]
) -> None:
    """`python -m bench optouts` does the same with 2,000 calls."""
    for row in played.values():
        row.exception()
    with client.add_workspace("opt-outs", slots=40) as of:
        of.make_room()
        seen = opt_out_at_random(of, calls=100, opt_outs=20, seed=1)
    report_table.append(("100 calls, opt-outs", str(seen.opt_outs)))
    report_table.append(("rang before, suppressed", f"{seen.early}, {seen.suppressed}"))
    report_table += [("rang after", str(one)) for one in seen.rung]
    assert not any(seen.wrong().values()), seen


def test_nothing_is_left_of_any_of_them(client: Client, played: dict[str, Future[None]]) -> None:
    for row in played.values():
        row.exception()
    eventually(lambda: client.due() == 0, "nothing is due")
