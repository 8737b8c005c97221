"""`admin deliveries redrive` after an outage: what it finds, asks, makes due and leaves alone."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from samtranslator.yaml_helper import yaml_parse

from admin.command import main
from shared.call import event
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import Delivery, DeliveryStore
from shared.dynamo import to_wire
from shared.table_keys import RETENTION_SECONDS, call_key, due_shard
from shared.workspaces import Workspace, WorkspaceStore
from tests.calls import call_record
from tests.mocked_aws import mock_aws

CALLS = "Calls"
TEMPLATE = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text())["Resources"]
HOUR = 3_600_000
EVENTS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """Two tables. sent: the operations sent to DynamoDB, by table."""

    calls: CallStore
    deliveries: DeliveryStore
    sent: collections.Counter[tuple[str, str]]
    now: int

    def call(self, number: int, hours_ago: float, workspace_id: str = "acme", **changes: Any) -> str:
        """A call with so many events, placed so long ago, whose deliveries do not exist yet."""
        placed = self.now - round(hours_ago * HOUR)
        given: dict[str, Any] = {
            "status": "dialing",
            "events": tuple(event(kind, placed) for kind in ("call.queued", "call.dialing", "call.answered")),
            "callback_url": "https://hooks.example.com/in",
        }
        call = call_record(placed, call_id=f"{number:024x}", workspace_id=workspace_id, **given | changes)
        self.calls.create(call)
        return call.call_id

    def delivery(self, call_id: str, sequence: int, state: str, **left: Any) -> None:
        """One attempt was made, an hour ago, with this result."""
        then = self.now - HOUR
        self.deliveries.create(call_id, "acme", sequence, then, then)
        row = self.deliveries.take(call_id, sequence, "lease", then, left.get("lease_until", then + 45_000))
        assert row is not None
        if state != "under way":
            attempt = {"at": then, "ms": 5, "status": 503}
            kind: Any = "pending" if state == "waiting" else state
            self.deliveries.finish(row, attempt, kind, self.now + 5 * HOUR, self.now + 5 * HOUR)

    def rows(self, call_id: str) -> dict[int, Delivery]:
        return {row.sequence: row for row in self.deliveries.of_call(call_id)}

    def expires_at(self, call_id: str) -> int:
        """0: never."""
        item = self.calls._client.get_item(TableName=CALLS, Key=call_key(call_id))["Item"]
        return int(item.get("expiresAt", {"N": "0"})["N"])

    def due(self) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for shard in range(16):
            for page in self.calls.due(shard, now_ms()):
                found |= {key for key in page if key[1] != "CALL"}
        return found


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    for name in ("RINGONCE_STACK", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("WORKSPACES_TABLE", "Workspaces")
    monkeypatch.setenv("CALLS_TABLE", CALLS)
    with mock_aws():
        client = boto3.client("dynamodb")
        for name, resource in (("Workspaces", "WorkspacesTable"), (CALLS, "CallsTable")):
            properties = TEMPLATE[resource]["Properties"]
            wanted = ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes", "BillingMode")
            client.create_table(TableName=name, **{key: properties[key] for key in wanted if key in properties})
        workspaces = WorkspaceStore(client, "Workspaces")
        for workspace_id in ("acme", "other"):
            workspaces.put(Workspace(workspace_id, workspace_id, "outbound", "ST_1", ("+12025550100",)))
        sent: collections.Counter[tuple[str, str]] = collections.Counter()
        original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]

        def counted(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
            sent[arguments.get("TableName", ""), operation] += 1
            return original(self, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", counted)
        yield Account(CallStore(client, CALLS), DeliveryStore(client, CALLS), sent, now_ms())


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(line: str, typed: str | None = None) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Keyboard(typed))
        try:
            code = main(line.split())
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def test_what_did_not_arrive_is_made_due_and_nothing_else(account: Account, admin: Any) -> None:
    dead, waiting, fine = (account.call(n, 2) for n in (1, 2, 3))
    for sequence in (1, 2, 3):
        account.delivery(fine, sequence, "delivered")
    account.delivery(dead, 1, "delivered")
    account.delivery(dead, 2, "dead")
    account.delivery(waiting, 1, "waiting")
    account.delivery(waiting, 2, "stopped")
    account.delivery(waiting, 3, "under way", lease_until=account.now + HOUR)
    before = {call_id: account.rows(call_id) for call_id in (dead, waiting, fine)}
    said = admin("deliveries redrive --since 3h --yes --json")
    assert said.code == 0, said.err
    assert '"redriven": 3' in said.out
    # The third event of `dead` was never made.
    assert account.due() == {(dead, "DELIVERY#0002"), (dead, "DELIVERY#0003"), (waiting, "DELIVERY#0001")}
    for call_id, sequence in ((dead, 2), (dead, 3), (waiting, 1)):
        row = account.rows(call_id)[sequence]
        assert (row.state, row.attempt, row.replayed) == ("pending", 0, False)
        assert account.now <= row.next_attempt_at_ms <= now_ms()
    assert account.rows(dead)[2].attempts == before[dead][2].attempts
    assert account.rows(dead)[1] == before[dead][1]
    assert {n: account.rows(waiting)[n] for n in (2, 3)} == {n: before[waiting][n] for n in (2, 3)}
    assert account.rows(fine) == before[fine]


def test_the_call_of_what_is_made_due_lives_until_it_is_over(account: Account, admin: Any) -> None:
    soon, late = account.now // 1000 + 3600, account.now // 1000 + 10 * RETENTION_SECONDS
    short, long, open_call = (account.call(n, 2) for n in (1, 2, 3))
    for call_id, expires_at in ((short, soon), (long, late)):
        account.calls._client.update_item(
            TableName=CALLS,
            Key=call_key(call_id),
            UpdateExpression="SET expiresAt = :at",
            ExpressionAttributeValues={":at": {"N": str(expires_at)}},
        )
    account.delivery(short, 1, "dead")
    assert "9 events made due." in admin("deliveries redrive --since 3h --yes").out
    assert account.expires_at(short) >= account.now // 1000 + RETENTION_SECONDS
    assert account.expires_at(long) == late
    assert account.expires_at(open_call) == 0


def test_of_a_call_that_is_gone_by_then_nothing_is_made_due(
    account: Account, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = account.call(1, 2)
    account.delivery(call_id, 1, "dead")
    ask = sys.modules["admin.terminal"].Terminal.confirm

    def meanwhile(*given: Any) -> None:
        account.calls._client.delete_item(TableName=CALLS, Key=call_key(call_id))
        ask(*given)

    monkeypatch.setattr("admin.terminal.Terminal.confirm", meanwhile)
    assert "0 events made due. 3 events changed meanwhile" in admin("deliveries redrive --since 3h --yes").out
    assert {n: row.state for n, row in account.rows(call_id).items()} == {1: "dead"}


def test_it_may_be_repeated_and_finds_nothing_then(account: Account, admin: Any) -> None:
    call_id = account.call(1, 2)
    account.delivery(call_id, 1, "dead")
    assert "3 events made due." in admin("deliveries redrive --since 3h --yes").out
    rows = account.rows(call_id)
    said = admin("deliveries redrive --since 3h --yes")
    assert "There is nothing to redrive." in said.out
    assert "Due already                  3" in said.out
    assert account.rows(call_id) == rows


def test_only_calls_of_that_time_and_workspace_count_and_no_table_of_calls_is_scanned(
    account: Account, admin: Any
) -> None:
    for number, (hours, workspace_id) in enumerate([(5, "acme"), (3, "acme"), (1, "acme"), (3, "other")], start=1):
        account.call(number, hours, workspace_id)
    # More than a page, without webhooks: they count for nothing.
    for number in range(100, 230):
        account.call(number, 3, callback_url=None)

    def at(hours: float) -> str:
        then = datetime.datetime.fromtimestamp((account.now - round(hours * HOUR)) / 1000, datetime.UTC)
        return then.isoformat()

    between = f"--since {at(4)} --until {at(2)} --yes"
    assert "3 events made due." in admin(f"deliveries redrive {between} --workspace acme").out
    assert {call_id for call_id, _ in account.due()} == {f"{2:024x}"}
    assert "3 events made due." in admin(f"deliveries redrive {between}").out
    assert {call_id for call_id, _ in account.due()} == {f"{2:024x}", f"{4:024x}"}
    assert account.sent[CALLS, "Query"] > 0
    assert account.sent[CALLS, "Scan"] == 0


def test_a_dry_run_says_what_it_would_do_and_does_nothing(account: Account, admin: Any) -> None:
    call_id = account.call(1, 2)
    account.delivery(call_id, 1, "dead")
    before = account.rows(call_id)
    said = admin("deliveries redrive --since 3h --dry-run")
    assert said.code == 0
    assert "3 events would be made due. Nothing was changed." in said.out
    assert "Dead                         1" in said.out
    assert "Never made                   2" in said.out
    assert (account.rows(call_id), account.due()) == (before, set())


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), (None, 1)])
def test_it_asks_first(account: Account, admin: Any, typed: str | None, code: int) -> None:
    account.call(1, 2)
    said = admin("deliveries redrive --since 3h", typed)
    assert said.code == code
    assert "3 events will be sent to their receivers" in said.err
    assert len(account.due()) == (3 if code == 0 else 0)


def test_a_call_whose_receiver_answered_410_is_left_alone(account: Account, admin: Any) -> None:
    call_id = account.call(1, 2, webhooks_stopped_at_ms=account.now)
    account.delivery(call_id, 1, "dead")
    said = admin("deliveries redrive --since 3h --yes")
    assert "Stopped by 410               3" in said.out
    assert account.due() == set()


def test_what_changes_between_the_look_and_the_write_stays_as_it_is(
    account: Account, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = account.call(1, 2, events=(event("call.queued", account.now),))
    account.delivery(call_id, 1, "dead")
    ask = sys.modules["admin.terminal"].Terminal.confirm

    def meanwhile(*given: Any) -> None:
        # A client replays it, and it arrives.
        account.deliveries.replay(call_id, "acme", 1, now_ms(), now_ms())
        row = account.deliveries.take(call_id, 1, "lease-2", now_ms(), now_ms() + 45_000)
        assert row is not None
        account.deliveries.finish(row, {"at": now_ms(), "ms": 1, "status": 200}, "delivered", 0, 0)
        ask(*given)

    monkeypatch.setattr("admin.terminal.Terminal.confirm", meanwhile)
    said = admin("deliveries redrive --since 3h --yes")
    assert "0 events made due. 1 event changed meanwhile and stayed as they were." in said.out
    assert account.rows(call_id)[1].state == "delivered"


def test_progress_is_shown_where_somebody_watches(
    account: Account, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.call(1, 2)
    watched = Keyboard()
    monkeypatch.setattr(sys, "stderr", watched)
    assert admin("deliveries redrive --since 3h --yes").code == 0
    assert "1 calls looked at" in watched.getvalue()
    assert f"[{'#' * 30}] 3 of 3 made due\n" in watched.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--since yesterday",
        "--since 2026-11-25",
        "--since 2026-11-25T09:00",
        "--since -2h",
        "--since 2h --until 3h",
        "--since 2h --workspace a/b",
        "--since \u0662h",
    ],
)
def test_what_makes_no_sense_is_refused(account: Account, admin: Any, words: str) -> None:
    said = admin(f"deliveries redrive {words}")
    assert (said.code, said.out) == (2, "")
    assert account.due() == set()


def test_without_the_calls_table_it_says_how_to_name_it(
    account: Account, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALLS_TABLE")
    said = admin("deliveries redrive --since 2h")
    assert said.code == 2
    assert "name it with CALLS_TABLE" in said.err


def test_an_unknown_workspace_is_named(account: Account, admin: Any) -> None:
    said = admin("deliveries redrive --since 2h --workspace unknown")
    assert (said.code, said.out) == (1, "")
    assert "no workspace unknown" in said.err


def test_the_rows_it_makes_are_those_that_fan_out_makes(account: Account, admin: Any) -> None:
    call_id = account.call(1, 2, events=(event("call.queued", account.now),))
    admin("deliveries redrive --since 3h --yes")
    row = account.rows(call_id)[1]
    assert row == Delivery(
        call_id, "acme", 1, "pending", 0, row.next_attempt_at_ms, check_at_ms=row.next_attempt_at_ms
    )
    assert to_wire({"shard": due_shard(call_id)}) == {"shard": {"N": "0"}}
