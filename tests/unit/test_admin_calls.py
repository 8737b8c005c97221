"""`admin call`: how a call is found, what is shown of it, and how it is canceled in each of its states."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from shared.call import Call, Outcome, compact, event, iso
from shared.call_store import CallStore
from shared.errors import LiveKitUnclearError
from shared.gates import decide
from shared.numbers import NumberRecord
from shared.policies import Cap, Policy, Window
from shared.table_keys import call_key
from shared.workspaces import Workspace
from tests.admin_account import CALLS, HOUR, Account, Admin, Keyboard, account_of, admin_of

JOB = "059f36b4-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
UNKNOWN = "f" * 24
TO = "+15550000000"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.delenv("LIVEKIT_SECRET_NAME", raising=False)
    with account_of(monkeypatch) as account:
        yield account


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


def there(account: Account, call_id: str) -> Call:
    call = account.calls.get(call_id)
    assert call is not None
    return call


def events(account: Account, *kinds: str) -> tuple[dict[str, Any], ...]:
    return tuple(event(f"call.{kind}", account.now - HOUR) for kind in kinds)


# ── list ────────────────────────────────────────────────────────────────────────────────────────────


def test_list_is_a_table_the_newest_first_of_all_workspaces(account: Account, admin: Admin) -> None:
    for number, (hours, workspace_id) in enumerate([(3, "acme"), (2, "other"), (1, "acme")], start=1):
        account.call(number, hours, workspace_id)
    account.call(4, 30)
    said = admin("call list")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].split() == ["CREATED", "CALL", "WORKSPACE", "TO", "AGENT", "STATUS", "REASON"]
    assert [line.split()[1:] for line in lines[1:4]] == [
        [f"{number:024x}", workspace_id, "+15*******00", "agent-1", "dialing", "-"]
        for number, workspace_id in ((3, "acme"), (2, "other"), (1, "acme"))
    ]
    assert lines[4:5] == [""]
    assert "--since 30d looks further back" in lines[5]
    assert TO not in said.out
    assert account.sent[CALLS, "Scan"] == 0


def test_list_for_scripts_is_one_value_and_masks_numbers_too(account: Account, admin: Admin) -> None:
    account.call(1, 1, status="queued", events=events(account, "queued"))
    said = admin("call list --json")
    (one,) = json.loads(said.out)
    assert (one["callId"], one["status"], one["jobId"]) == (f"{1:024x}", "queued", "job")
    assert one["to"] == "+15*******00"
    assert "further back" in said.err


def test_list_takes_each_filter(account: Account, admin: Admin) -> None:
    account.call(1, 5)
    account.call(2, 4, to="+15550000001")
    account.call(3, 3, call_agent_id="sales", room_name="sales-0123456789")
    account.call(4, 2, "other", job_id=JOB)
    account.call(5, 1, status="in_progress")
    for number in range(100, 260):
        account.call(number, 6)

    def listed(words: str) -> list[int]:
        said = admin(f"call list --json {words}")
        assert said.code == 0, said.err
        return [int(one["callId"], 16) for one in json.loads(said.out)]

    assert listed("--to +15550000001") == [2]
    assert listed("--to '+1 (555) 000-0001'") == [2]
    assert listed("--agent sales") == [3]
    assert listed("--room sales-0123456789") == [3]
    assert listed(f"--job {JOB}") == [4]
    assert listed("--status in_progress") == [5]
    assert listed("--workspace other") == [4]
    assert listed("--workspace acme --limit 2") == [5, 3]
    assert listed("--since 210m --until 90m") == [4, 3]
    assert listed("--agent sales --status completed") == []
    assert len(listed("--since 7h --limit 1000")) == 165


def test_list_says_where_to_go_on(account: Account, admin: Admin) -> None:
    for number in (1, 2, 3):
        account.call(number, number)
    said = admin("call list --limit 2")
    second = there(account, f"{2:024x}").created_at
    assert f"There may be more: --limit, or --until {second}" in said.out
    assert [one["callId"] for one in json.loads(admin(f"call list --json --until {second}").out)] == [
        f"{2:024x}",
        f"{3:024x}",
    ]


def test_list_of_nothing_says_so(account: Account, admin: Admin) -> None:
    said = admin("call list --to +15550009999")
    assert said.code == 0
    assert said.out.startswith("No such call was placed between 2")
    assert json.loads(admin("call list --json").out) == []


def test_progress_is_shown_where_a_person_watches(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.call(1, 1)
    watched = Keyboard()
    monkeypatch.setattr(sys, "stderr", watched)
    assert admin("call list --workspace acme").code == 0
    assert "1 pages read, back to 2" in watched.getvalue()
    assert watched.getvalue().endswith("] 1 of 1 pages read\n")


def test_a_record_that_cannot_be_read_is_told_of_and_holds_up_no_other(account: Account, admin: Admin) -> None:
    account.call(1, 1)
    damaged = account.call(2, 2)
    account.calls._client.update_item(
        TableName=CALLS, Key=call_key(damaged), UpdateExpression="REMOVE jobId, roomName"
    )
    said = admin("call list --json")
    assert [one["callId"] for one in json.loads(said.out)] == [f"{1:024x}"]
    assert "unreadable item" in said.err
    assert damaged in said.err
    shown = admin(f"call show {damaged}")
    assert (shown.code, shown.out) == (1, "")
    assert "Unreadable items" in shown.err


# ── show ────────────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_a_person_what_became_of_a_call(account: Account, admin: Admin) -> None:
    call_id = account.call(
        1,
        2,
        callback_url="https://hooks.example.com/in?token=secret",
        metadata='{"name":"private"}',
        dynamic_variables='{"name":"private"}',
    )
    account.delivery(call_id, 1, "delivered")
    account.delivery(call_id, 2, "dead")
    said = admin(f"call show {call_id}")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for line in (
        f"Call         {call_id}",
        "Workspace    acme",
        "Status       dialing",
        f"To           {TO}",
        "Room         agent-1-x7k2m9p4q1",
        "Webhooks to  https://hooks.example.com/in?...",
    ):
        assert line in lines
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    assert table[0] == ["#", "EVENT", "AT", "EVENT", "WEBHOOK", "ATTEMPTS"]
    assert [[row[0], *row[2:]] for row in table[1:]] == [
        ["1", "call.queued", "delivered", "1"],
        ["2", "call.dialing", "dead", "1"],
        ["3", "call.answered", "-", "0"],
    ]
    for private in ("secret", "private"):
        assert private not in said.out


def test_show_for_scripts(account: Account, admin: Admin) -> None:
    call_id = account.call(1, 2, metadata='{"name":"private"}')
    account.calls.ask_to_hang_up(there(account, call_id), "canceled_by_api", account.now)
    said = admin(f"call show {call_id} --json")
    value = json.loads(said.out)
    assert (value["callId"], value["to"], value["workspaceId"]) == (call_id, TO, "acme")
    assert value["hangUp"] == {"reason": "canceled_by_api", "askedAt": iso(account.now)}
    assert value["nextLookAt"] == iso(account.now)
    assert [(one["sequence"], one["type"], one["delivery"]) for one in value["events"]] == [
        (1, "call.queued", None),
        (2, "call.dialing", None),
        (3, "call.answered", None),
    ]
    assert "private" not in said.out
    assert said.err == ""


@pytest.mark.parametrize("by", ["id", "job", "room", "number", "written"])
def test_show_finds_a_call_by_what_is_known_of_it(account: Account, admin: Admin, by: str) -> None:
    account.call(1, 1)
    account.call(2, 3, "other", to="+493012345678", room_name="a_b-c-0123456789", job_id=JOB)
    account.call(3, 2, to="+493012345679")
    named = {
        "id": f"{2:024x}",
        "job": JOB,
        "room": "a_b-c-0123456789",
        "number": "+493012345678",
        "written": "+4903012345678",
    }
    said = admin(f"call show {named[by]} --json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["callId"] == f"{2:024x}"
    assert account.sent[CALLS, "Scan"] == 0


def test_show_by_number_shows_the_newest_and_says_how_to_find_the_others(account: Account, admin: Admin) -> None:
    for number, hours in ((1, 3), (2, 1), (3, 2)):
        account.call(number, hours)
    said = admin(f"call show {TO}")
    assert f"Call         {2:024x}" in said.out.splitlines()
    assert f"call list --to {TO}" in said.out


def test_show_looks_back_a_day_unless_told_otherwise(account: Account, admin: Admin) -> None:
    account.call(1, 30)
    said = admin(f"call show {TO}")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"admin: no call to the number {TO} was placed between 2")
    assert "--since 30d" in said.err
    assert admin(f"call show {TO} --since 2d").code == 0
    assert admin(f"call show {TO} --since 2d --workspace other").code == 1
    # An id needs no time.
    assert admin(f"call show {1:024x}").code == 0


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (f"call show {UNKNOWN}", 1, f"no call {UNKNOWN} in table Workspaces"),
        (f"call show {JOB}", 1, f"no call with the job {JOB}"),
        ("call show agent-1-aaaaaaaaaa", 1, "no call in the room agent-1-aaaaaaaaaa"),
        ("call show", 2, "CALL"),
        ("call show xyz", 2, "neither a call's id"),
        ("call show 15550000000", 2, "neither a call's id"),
        ("call show +0", 2, "must be a phone number"),
        ("call show +11876555012", 2, "must not have a 0 or 1 after +1"),
        (f"call show {TO} --since 1h --until 2h", 2, "--until is before --since"),
        (f"call show {TO} --workspace unknown", 1, "no workspace unknown"),
        ("call list --workspace unknown", 1, "no workspace unknown"),
        ("call list --status ringing", 2, "invalid choice"),
        ("call list --to 15550000000", 2, "must be a phone number"),
        ("call list --room a/b", 2, "is not a room's name"),
        ("call list --job 1", 2, "is not a job's id"),
        ("call list --agent 'a b'", 2, "is not an agent id"),
        ("call list --limit 1001", 2, "is not a whole number"),
        ("call list --since yesterday", 2, "is not a time"),
        ("call list --since 1h --until 2h", 2, "--until is before --since"),
        ("call cancel", 2, "CALL_ID"),
        ("call cancel xyz", 2, "is not a call's id"),
        (f"call cancel {TO}", 2, "is not a call's id"),
        ("call", 2, "COMMAND"),
    ],
)
def test_what_is_not_there_or_makes_no_sense_is_one_line(
    account: Account, admin: Admin, line: str, code: int, told: str
) -> None:
    said = admin(line)
    assert (said.code, said.out) == (code, "")
    assert told in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    "line", ["call list", f"call show {UNKNOWN}", f"call show {TO}", f"call cancel {UNKNOWN}"]
)
def test_without_the_calls_table_it_says_how_to_name_it(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.delenv("CALLS_TABLE")
    said = admin(line)
    assert (said.code, said.out) == (2, "")
    assert "name it with CALLS_TABLE" in said.err


@pytest.mark.parametrize("line", ["call list --workspace acme", f"call show {UNKNOWN}", f"call cancel {UNKNOWN}"])
def test_a_calls_table_that_is_not_there_is_named(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("CALLS_TABLE", "Elsewhere")
    said = admin(line)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(
        "admin: there is no table Workspaces in eu-west-1 in the account of these credentials"
    )
    assert said.err.endswith(", or no table Elsewhere beside it\n")


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class LiveKit:
    """What is asked of LiveKit. fails: it does not answer."""

    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    fails: bool = False

    async def remove_participant(self, room: str, identity: str) -> bool:
        return self._ask("remove", room)

    async def delete_room(self, room: str) -> None:
        self._ask("delete", room)

    def _ask(self, what: str, room: str) -> bool:
        if self.fails:
            raise LiveKitUnclearError
        self.asked.append((what, room))
        return True


@pytest.fixture
def livekit(account: Account, monkeypatch: pytest.MonkeyPatch) -> LiveKit:
    livekit = LiveKit()

    @asynccontextmanager
    async def connect(read_secret: Any, request_timeout: float) -> AsyncIterator[LiveKit]:
        assert read_secret().api_key == "API1"
        yield livekit

    monkeypatch.setattr("shared.livekit.client.connect", connect)
    monkeypatch.setenv("LIVEKIT_SECRET_NAME", "ringonce/livekit")
    boto3.client("secretsmanager").create_secret(
        Name="ringonce/livekit",
        SecretString=json.dumps({"url": "wss://x.livekit.cloud", "apiKey": "API1", "apiSecret": "s"}),
    )
    return livekit


def placed(account: Account, number: int, state: str) -> str:
    """A call in this state, with its slot unless it has never been tried."""
    kinds = {"queued": ("queued",), "dialing": ("queued", "dialing")}
    fields: dict[str, Any] = {
        "status": state,
        "room_name": f"agent-{number:010d}",
        "events": events(account, *kinds.get(state, ("queued", "dialing", "answered"))),
        "answered_at_ms": None if state in kinds else account.now - HOUR,
        "check_at_ms": account.now + HOUR,
    }
    if state == "ended":
        fields["status"] = "in_progress"
    call_id = account.call(number, 1, **fields)
    if state == "ended":
        assert account.calls.end(
            there(account, call_id), Outcome("completed", "hangup"), account.now, account.now
        ).won
    elif state != "queued":
        account.limits.take_slot("acme", call_id, 10)
    return call_id


def test_a_queued_call_is_ended_at_once_and_never_rings(account: Account, admin: Admin, livekit: LiveKit) -> None:
    call_id = placed(account, 1, "queued")
    said = admin(f"call cancel {call_id}")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1].split() == [call_id, "acme", "queued", "canceled,", "canceled_by_api"]
    call = there(account, call_id)
    assert (call.status, call.end_event["reason"], call.due_shard) == ("canceled", "canceled_by_api", None)
    assert livekit.asked == []


@pytest.mark.parametrize(("state", "asked"), [("dialing", "remove"), ("in_progress", "delete")])
def test_a_call_under_way_is_asked_to_hang_up_and_hung_up_at_once(
    account: Account, admin: Admin, livekit: LiveKit, state: str, asked: str
) -> None:
    call_id = placed(account, 1, state)
    said = admin(f"call cancel {call_id}")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[1].split() == [call_id, "acme", state, "being", "hung", "up"]
    call = there(account, call_id)
    assert (call.status, (call.hangup or {})["reason"]) == (state, "canceled_by_api")
    # Due at once: the reconciler repeats it until the phone is gone, and frees the slot.
    assert call.due_shard is not None
    assert account.now <= (call.check_at_ms or 0) < account.now + HOUR
    assert account.limits.active_calls("acme") == {call_id}
    assert livekit.asked == [(asked, "agent-0000000001")]


def test_a_call_that_has_ended_says_so_and_stays_as_it_is(
    account: Account, admin: Admin, livekit: LiveKit
) -> None:
    call_id = placed(account, 1, "ended")
    before = there(account, call_id)
    said = admin(f"call cancel {call_id}")
    assert said.code == 0
    assert said.out.splitlines()[1].endswith("completed  had ended: completed, hangup")
    assert there(account, call_id) == before
    assert livekit.asked == []


@pytest.mark.parametrize("state", ["queued", "dialing", "in_progress", "ended"])
def test_a_repeated_cancel_writes_nothing_more(
    account: Account, admin: Admin, livekit: LiveKit, state: str
) -> None:
    call_id = placed(account, 1, state)
    first = json.loads(admin(f"call cancel {call_id} --json").out)
    after = there(account, call_id)
    said = admin(f"call cancel {call_id} --json")
    assert said.code == 0
    (second,) = json.loads(said.out)
    assert there(account, call_id) == after
    over = state in ("queued", "ended")
    assert second["result"] == ("hadEnded" if over else "hangingUp")
    assert (second["status"], second["endReason"]) == (first[0]["status"], first[0]["endReason"])


def test_cancel_for_scripts(account: Account, admin: Admin, livekit: LiveKit) -> None:
    queued, answered, over = (
        placed(account, n, state) for n, state in enumerate(["queued", "in_progress", "ended"])
    )
    said = admin(f"call cancel {queued} {answered} {over} {queued} {UNKNOWN} --json --yes")
    assert said.code == 1
    assert said.err.endswith("admin: 1 of 4 could not be canceled\n")

    def one(call_id: str, was: str, result: str, status: str, reason: str | None) -> dict[str, Any]:
        known = {"callId": call_id, "workspaceId": "acme", "was": was}
        return known | {"result": result, "status": status, "endReason": reason}

    assert json.loads(said.out) == [
        one(queued, "queued", "canceled", "canceled", "canceled_by_api"),
        one(answered, "in_progress", "hangingUp", "in_progress", None),
        one(over, "completed", "hadEnded", "completed", "hangup"),
        {"callId": UNKNOWN} | dict.fromkeys(("workspaceId", "was", "status", "endReason")) | {"result": "unknown"},
    ]


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), (None, 1)])
def test_it_asks_before_it_cancels_more_than_one(
    account: Account, admin: Admin, livekit: LiveKit, typed: str | None, code: int
) -> None:
    first, second = placed(account, 1, "queued"), placed(account, 2, "dialing")
    said = admin(f"call cancel {first} {second}", typed)
    assert said.code == code
    assert "2 calls end: 1 that wait will not ring, 1 that ring or are talked on are hung up." in said.err
    canceled = code == 0
    assert (there(account, first).status == "canceled") == canceled
    assert (there(account, second).hangup is not None) == canceled
    assert bool(livekit.asked) == canceled


def test_it_does_not_ask_when_only_one_of_them_goes_on(account: Account, admin: Admin, livekit: LiveKit) -> None:
    over, going = placed(account, 1, "ended"), placed(account, 2, "queued")
    assert admin(f"call cancel {over} {going}").code == 0
    assert there(account, going).status == "canceled"


def test_an_unknown_call_is_named_and_the_others_are_canceled(
    account: Account, admin: Admin, livekit: LiveKit
) -> None:
    call_id = placed(account, 1, "queued")
    said = admin(f"call cancel {UNKNOWN} {call_id}")
    assert said.code == 1
    assert [line.split() for line in said.out.splitlines()[1:2]] == [[UNKNOWN, "-", "-", "no", "such", "call"]]
    assert said.err == "admin: 1 of 2 could not be canceled\n"
    assert there(account, call_id).status == "canceled"


def test_a_record_that_cannot_be_read_does_not_hold_up_the_others(
    account: Account, admin: Admin, livekit: LiveKit
) -> None:
    damaged, call_id = placed(account, 1, "queued"), placed(account, 2, "queued")
    account.calls._client.update_item(TableName=CALLS, Key=call_key(damaged), UpdateExpression="REMOVE jobId")
    said = admin(f"call cancel {damaged} {call_id} --json")
    assert said.code == 1
    assert [one["result"] for one in json.loads(said.out)] == ["failed", "canceled"]


def test_a_call_that_ends_meanwhile_had_ended(
    account: Account, admin: Admin, livekit: LiveKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = placed(account, 1, "in_progress")
    ask = CallStore.ask_to_hang_up

    def late(self: CallStore, seen: Call, reason: str, now: int) -> Any:
        self.end(seen, Outcome("completed", "hangup"), now, now)
        return ask(self, seen, reason, now)

    monkeypatch.setattr(CallStore, "ask_to_hang_up", late)
    said = admin(f"call cancel {call_id} --json")
    assert said.code == 0
    (one,) = json.loads(said.out)
    assert (one["was"], one["result"], one["endReason"]) == ("in_progress", "hadEnded", "hangup")


def test_what_livekit_does_not_do_now_the_reconciler_does(
    account: Account, admin: Admin, livekit: LiveKit
) -> None:
    livekit.fails = True
    call_id = placed(account, 1, "in_progress")
    said = admin(f"call cancel {call_id}")
    # The warning is for the functions' log.
    assert (said.code, said.err) == (0, "")
    assert "being hung up" in said.out
    assert there(account, call_id).hangup is not None


@pytest.mark.parametrize("named", [False, True], ids=["no secret is named", "the secret cannot be read"])
def test_without_livekits_secret_the_reconciler_hangs_up(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    if named:
        monkeypatch.setenv("LIVEKIT_SECRET_NAME", "absent")
    call_id = placed(account, 1, "in_progress")
    said = admin(f"call cancel {call_id} --json")
    assert said.code == 0
    assert json.loads(said.out)[0]["result"] == "hangingUp"
    assert ("the reconciler hangs up, within a minute" in said.err) == named
    assert there(account, call_id).hangup is not None


def test_nothing_of_the_functions_logs_and_metrics_is_in_the_result(
    account: Account, admin: Admin, livekit: LiveKit
) -> None:
    """A call that is ended writes a log line and a metric: with them --json were no JSON."""
    call_id = placed(account, 1, "queued")
    said = admin(f"call cancel {call_id} --json")
    assert json.loads(said.out)[0]["result"] == "canceled"
    assert "CallsEnded" not in said.err


# ── what the credentials need ───────────────────────────────────────────────────────────────────────

# The row of what three commands do beside the change that they make.
AT_ONCE = "to admit waiting calls at once"
PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def told(command: str) -> tuple[set[str], set[str]]:
    """The actions on the workspaces' table and on the calls' that the page lists for a command."""
    named = AT_ONCE if command == AT_ONCE else f"`{command}`"
    (row,) = re.findall(rf"^\|(?=[^|]*{named}).*", PAGE, re.MULTILINE)
    of_workspaces, of_calls = (set(re.findall(r"`([A-Z]\w+)`", cell)) for cell in row.split("|")[2:4])
    return of_workspaces, of_calls | ({"GetItem", "BatchGetItem", "Query"} if "as `call list`" in row else set())


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("call list", ["call list", "call list --workspace acme", "call show {1}", f"call show {TO}"]),
        ("deliveries list", ["deliveries list", "deliveries list --call {1} --workspace acme"]),
        ("call cancel", ["call cancel {1} {2}"]),
        ("line show", ["line show acme"]),
        ("trunk list", ["trunk list"]),
        ("trunk reset", ["trunk reset ST_1"]),
        ("switch", ["switch pause", "switch status", "switch resume"]),
        (
            "workspace",
            [
                "workspace create new --agent-name a --trunk ST_1",
                *(
                    "workspace list",
                    "workspace show new",
                    "workspace update new --allow +1",
                    "key create new",
                    "webhook-secret rotate new",
                ),
            ],
        ),
        (
            "deliveries redrive",
            ["deliveries redrive --since 3h", "deliveries redrive --since 3h --workspace acme"],
        ),
        ("restore seal", ["restore seal Restored"]),
    ],
)
def test_the_page_tells_what_a_command_asks_of_each_table(
    account: Account,
    admin: Admin,
    livekit: LiveKit,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    lines: list[str],
) -> None:
    # Without it no command admits waiting calls, which has a row of its own.
    monkeypatch.delenv("DIAL_QUEUE_URL")
    calls = placed(account, 1, "queued"), placed(account, 2, "in_progress")
    account.delivery(calls[0], 1, "dead")
    account.waiting(3)
    if command == "restore seal":
        account.limits.pause(account.now)
        account.copy_calls("Restored")
        account.calls._client.delete_item(TableName=CALLS, Key=call_key(calls[1]))
        account.limits.take_slot("acme", UNKNOWN, 10)
    account.sent.clear()
    for line in lines:
        said = admin(line.format(None, *calls) + " --yes")
        assert said.code == 0, said.err
    of_workspaces = {action for table, action in account.sent if table == "Workspaces"}
    # What a command asks of the numbers has a table of its own (test_admin_suppression.py).
    of_calls = {action for table, action in account.sent if table not in ("Workspaces", "Numbers", "")}
    assert of_workspaces <= told(command)[0]
    assert of_calls <= told(command)[1]
    # What is asked for and never used would be a right too many.
    assert told(command)[0] - {"GetItem"} <= of_workspaces
    assert told(command)[1] - {"GetItem"} <= of_calls


def test_the_page_tells_what_it_takes_to_admit_waiting_calls_at_once(account: Account, admin: Admin) -> None:
    for number in range(1, 13):
        account.waiting(number)
    # At one call a second their messages would be delayed.
    account.workspaces.update("acme", lambda acme: dataclasses.replace(acme, calls_per_second=100))
    account.sent.clear()
    assert admin("switch resume").code == 0
    assert len(account.admitted()) == 10
    # The second finds calls that are admitted already.
    assert admin("switch resume").code == 0
    of_switch = told("switch")
    of_workspaces = {action for table, action in account.sent if table == "Workspaces"}
    assert of_workspaces - of_switch[0] <= told(AT_ONCE)[0] <= of_workspaces
    assert {action for table, action in account.sent if table == CALLS} == told(AT_ONCE)[1]
    assert {action for table, action in account.sent if table == "" and action.startswith("Send")} == {
        "SendMessageBatch"
    }


# ── when and why a phone may ring ───────────────────────────────────────────────────────────────────


def receipt(account: Account) -> str:
    """What the gates say of a call of a policy with hours and a cap."""
    monday = Window(frozenset(range(7)), 0, 1440)
    policy = Policy("sales", 3, windows=(monday,), caps=(Cap(3, 86_400),), consent_required=True)
    workspace = dataclasses.replace(
        existing(account), policies={"sales": policy}, allowed_calling_codes=frozenset({"+1"})
    )
    call = dataclasses.replace(
        there(account, account.call(9, 1, to="+12125550123")),
        purpose="sales",
        consent={"basis": "form\x1b[2J", "obtained_at": "2026-11-01T09:00:00Z", "reference": "crm-7"},
        time_zone="America/New_York",
        scheduled_at_ms=account.now - HOUR,
    )
    number = NumberRecord("acme", call.to, rings={"f" * 24: account.now - HOUR})
    decision = decide(call, workspace, number, account.now, 40_000)
    assert decision.passed
    return compact(decision.receipt())


def existing(account: Account) -> Workspace:
    workspace = account.workspaces.get("acme")
    assert workspace is not None
    return workspace


def ruled(account: Account) -> str:
    """A call that says when it may ring and under which rules, and has rung."""
    dialing = event("call.dialing", account.now - HOUR, gates=receipt(account))
    return account.call(
        1,
        2,
        events=(event("call.queued", account.now - 2 * HOUR), dialing),
        scheduled_at_ms=account.now - HOUR,
        expires_at_ms=account.now + HOUR,
        purpose="sales",
        time_zone="America/New_York",
        consent={"basis": "form\x1b[2J", "reference": "crm-7"},
    )


def test_show_tells_when_and_why_a_phone_was_let_ring(account: Account, admin: Admin) -> None:
    said = admin(f"call show {ruled(account)}")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    for line in (
        "Purpose       sales",
        f"Scheduled at  {iso(account.now - HOUR)}",
        f"Expires at    {iso(account.now + HOUR)}",
        "Time zone     America/New_York",
        "Consent       basis form [2J, reference crm-7",
    ):
        assert line in lines
    assert "What let event 2 ring:" in lines
    gates = {line.split()[0]: line for line in lines[lines.index("What let event 2 ring:") + 3 :]}
    assert list(gates) == [
        *("workspace", "destination", "policy", "consent", "suppression", "scheduled_at", "calling_window"),
        "frequency",
    ]
    assert gates["policy"].split(maxsplit=1)[1] == "purpose sales, version 3"
    assert "zonesFrom" in gates["calling_window"]
    assert "windows days 0 1 2 3 4 5 6, start 00:00, end 24:00" in gates["calling_window"]
    assert "localTime America/New_York 2" in gates["calling_window"]
    assert "caps count 3, seconds 86400, rings 1" in gates["frequency"]
    assert "\x1b" not in said.out


def test_show_for_scripts_has_the_receipt_with_its_event(account: Account, admin: Admin) -> None:
    value = admin(f"call show {ruled(account)} --json").value
    assert (value["purpose"], value["timeZone"]) == ("sales", "America/New_York")
    assert (value["scheduledAt"], value["expiresAt"]) == (iso(account.now - HOUR), iso(account.now + HOUR))
    assert value["consent"]["reference"] == "crm-7"
    queued, dialing = value["events"]
    assert "gates" not in queued
    assert [gate["name"] for gate in dialing["gates"]][:3] == ["workspace", "destination", "policy"]
    assert dialing["gates"][2]["detail"] == {"purpose": "sales", "version": 3}


@pytest.mark.parametrize("gates", ["", "not JSON", "[1]", '{"a": 1}', '[{"name": "policy"}]', '[{"detail": []}]'])
def test_show_shows_a_call_whose_receipt_cannot_be_read(account: Account, admin: Admin, gates: str) -> None:
    call_id = account.call(1, 1, events=(event("call.dialing", account.now, gates=gates),))
    said = admin(f"call show {call_id}")
    assert (said.code, said.err) == (0, "")
    assert "What let" not in said.out
    assert admin(f"call show {call_id} --json").value["events"][0]["gates"] is None
