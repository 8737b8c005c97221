"""`admin deliveries`: what a redrive finds, asks, makes due and leaves alone after an outage; what is listed."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shared.call import event
from shared.clock import now_ms
from shared.delivery_store import Delivery
from shared.dynamo import to_wire
from shared.table_keys import RETENTION_SECONDS, call_key, due_shard
from tests.admin_account import CALLS, HOUR, Account, Admin, Keyboard, account_of, admin_of


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with account_of(monkeypatch) as account:
        yield account


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


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


# ── list ────────────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_what_did_not_arrive_and_counts_the_rest(account: Account, admin: Admin) -> None:
    dead, waiting = account.call(1, 2), account.call(2, 3)
    account.delivery(dead, 1, "delivered")
    account.delivery(dead, 2, "dead")
    account.delivery(waiting, 1, "waiting")
    before = {call_id: account.rows(call_id) for call_id in (dead, waiting)}
    said = admin("deliveries list")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split()[:6] == ["CALL", "WORKSPACE", "#", "EVENT", "WEBHOOK", "ATTEMPTS"]
    listed = [line.split()[:6] for line in lines[1 : lines.index("")]]
    assert listed == [
        [dead, "acme", "2", "call.dialing", "dead", "1"],
        [dead, "acme", "3", "call.answered", "neverMade", "0"],
        [waiting, "acme", "1", "call.queued", "waiting", "1"],
        [waiting, "acme", "2", "call.dialing", "neverMade", "0"],
        [waiting, "acme", "3", "call.answered", "neverMade", "0"],
    ]
    assert lines[1].split()[7] == "503"
    assert "Delivered                    1" in said.out
    assert {call_id: account.rows(call_id) for call_id in before} == before
    assert account.sent[CALLS, "Scan"] == 0


def test_list_for_scripts(account: Account, admin: Admin) -> None:
    dead = account.call(1, 2, events=(event("call.queued", account.now),))
    account.delivery(dead, 1, "dead")
    value = json.loads(admin("deliveries list --json --workspace acme --state dead").out)
    assert value["workspaces"] == ["acme"]
    assert value["found"] == {"calls": 1, "dead": 1}
    (one,) = value["deliveries"]
    assert one.pop("lastAttemptAt").startswith("2")
    assert one == {
        **{"callId": dead, "workspaceId": "acme", "sequence": 1, "type": "call.queued", "state": "dead"},
        **{"attempts": 1, "lastStatus": 503, "lastError": None, "nextAttemptAt": None},
    }


def test_list_of_a_call_shows_all_of_it(account: Account, admin: Admin) -> None:
    old = account.call(1, 500)
    account.delivery(old, 1, "delivered")
    account.delivery(old, 2, "stopped")
    other = account.call(2, 1)
    account.delivery(other, 1, "dead")
    value = json.loads(admin(f"deliveries list --call {old} --json").out)
    assert value["callId"] == old
    assert [one["state"] for one in value["deliveries"]] == ["delivered", "stopped", "neverMade"]
    assert {one["callId"] for one in value["deliveries"]} == {old}
    without = account.call(3, 1, callback_url=None)
    assert json.loads(admin(f"deliveries list --call {without} --json").out)["deliveries"] == []
    said = admin(f"deliveries list --call {without}")
    assert said.out.startswith("There is none.\n")
    assert "Calls with webhooks          0" in said.out.splitlines()


def test_list_says_when_there_is_more_than_it_shows(account: Account, admin: Admin) -> None:
    account.call(1, 1)
    said = admin("deliveries list --limit 2")
    assert "These are 2 of 3: --limit shows more." in said.out
    assert "These are" not in admin("deliveries list --limit 3").out


def test_list_is_of_one_time_and_one_workspace(account: Account, admin: Admin) -> None:
    for number, (hours, workspace_id) in enumerate([(30, "acme"), (2, "acme"), (2, "other")], start=1):
        account.call(number, hours, workspace_id)

    def listed(words: str) -> set[int]:
        value = json.loads(admin(f"deliveries list --json {words}").out)
        return {int(one["callId"], 16) for one in value["deliveries"]}

    assert listed("") == {2, 3}
    assert listed("--workspace other") == {3}
    assert listed("--since 3d") == {1, 2, 3}
    assert listed("--since 3d --until 5h") == {1}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (f"--call {'0' * 24}", 1, f"no call {'0' * 24}"),
        ("--call xyz", 2, "is not a call's id"),
        ("--state lost", 2, "invalid choice"),
        ("--since 1h --until 2h", 2, "--until is before --since"),
        ("--limit 0", 2, "is not a whole number"),
        ("--workspace unknown", 1, "no workspace unknown"),
    ],
)
def test_list_of_what_is_not_there_is_refused(
    account: Account, admin: Admin, words: str, code: int, told: str
) -> None:
    said = admin(f"deliveries list {words}")
    assert (said.code, said.out) == (code, "")
    assert told in said.err
