"""`admin line` and `admin trunk`, and which commands admit waiting calls at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient

from admin import lines
from shared.call import Call, iso
from shared.line import line_of
from shared.table_keys import call_key
from tests.admin_account import CALLS, HOUR, Account, Admin, account_of, admin_of, aws_error, stack_of

MINUTE = 60_000


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with account_of(monkeypatch) as account:
        yield account


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


def there(account: Account, call_id: str) -> Call:
    call = account.calls.get(call_id)
    assert call is not None
    return call


def change(account: Account, workspace_id: str = "acme", **changes: Any) -> None:
    assert account.workspaces.update(workspace_id, lambda seen: dataclasses.replace(seen, **changes)) is not None


def stop_trunk(account: Account, trunk_id: str = "ST_1", fault: str = "SIP 403") -> None:
    """Three faults in a row, just now."""
    for number in range(3):
        account.limits.note_trunk_fault(trunk_id, f"call-{number}", fault, MINUTE, HOUR, account.now)


def use_slots(account: Account, number: int, item: int = 0) -> None:
    for n in range(number):
        assert account.limits.take_slot("acme", f"{item}-{n}", 40, item=item)


# ── line show ───────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_who_waits_for_what_and_since_when(account: Account, admin: Admin) -> None:
    change(account, max_concurrent_calls=50)
    use_slots(account, 40)
    use_slots(account, 3, item=1)
    second = account.waiting(1, 1)
    first = account.waiting(2, 2, waiting_for="trunk")
    later = account.waiting(3, 3, earliest_ms=account.now + HOUR)
    account.waiting(4, 5, "other")
    said = admin("line show acme --json")
    assert said.code == 0, said.err
    value = said.value
    assert (value["workspaceId"], value["waiting"], value["moreWait"], value["admitted"]) == ("acme", 3, False, 0)
    assert value["waitingFor"] == {"slot": 2, "trunk": 1}
    assert value["waitingSince"] == there(account, later).created_at
    assert [(one["place"], one["callId"], one["waitingFor"]) for one in value["head"]] == [
        (1, first, "trunk"),
        (2, second, "slot"),
        (3, later, "slot"),
    ]
    assert {one["to"] for one in value["head"]} == {"+15*******00"}
    assert [one["since"] for one in value["head"]] == [
        there(account, call_id).created_at for call_id in (first, second, later)
    ]
    assert [one["turn"] for one in value["head"]] == [
        there(account, first).created_at,
        there(account, second).created_at,
        iso(account.now + HOUR),
    ]
    assert value["slots"] == {
        "inUse": 43,
        "limit": 50,
        "items": [{"item": 0, "inUse": 40, "limit": 40}, {"item": 1, "inUse": 3, "limit": 10}],
        "newcomersWaitUntil": None,
    }
    assert (value["trunk"]["trunkId"], value["trunk"]["state"], value["pausedAt"]) == ("ST_1", "in_use", None)
    assert said.err == ""
    assert account.sent[CALLS, "Scan"] == 0


def test_show_for_people(account: Account, admin: Admin) -> None:
    change(account, max_concurrent_calls=50)
    use_slots(account, 2)
    call_ids = [account.waiting(number, 3 - number) for number in (1, 2)]
    account.limits.note_crowded("acme", 0, account.now + MINUTE, account.now)
    account.limits.pause(account.now)
    stop_trunk(account)
    said = admin("line show acme")
    rows = said.out.splitlines()
    for row in (
        "Workspace      acme",
        "Wait           2",
        "               of the first 2: 2 for slot",
        f"Longest since  {there(account, call_ids[0]).created_at}",
        "Admitted       0, not taken by a worker yet",
        "Slots in use   2 of 50",
        "of each item   2 of 40, 0 of 10",
        f"Newcomers      behind the line until {iso(account.now + MINUTE)}",
        f"Trunk          ST_1, stopped from {iso(account.now)} until {iso(account.now + MINUTE)}: SIP 403",
        f"Dialling       paused since {iso(account.now)}",
    ):
        assert row in rows, said.out
    table = [row.split() for row in rows[rows.index("") + 1 :]]
    assert table[0] == ["#", "CALL", "TO", "WAITS", "FOR", "SINCE", "TURN"]
    assert [row[:4] for row in table[1:]] == [
        [str(place), call_id, "+15*******00", "slot"] for place, call_id in enumerate(call_ids, start=1)
    ]


def test_show_of_an_empty_line(account: Account, admin: Admin) -> None:
    said = admin("line show acme")
    assert (said.code, said.err) == (0, "")
    assert "Wait          0\n" in said.out
    assert "Dialling      on" in said.out
    assert "CALL" not in said.out
    value = admin("line show acme --json").value
    assert (value["waiting"], value["waitingFor"], value["waitingSince"], value["head"]) == (0, {}, None, [])


def test_show_says_of_how_many_it_tells_the_details(account: Account, admin: Admin) -> None:
    call_ids = [account.waiting(number, 5 - number) for number in range(1, 5)]
    said = admin("line show acme --limit 2 --json")
    assert (said.value["waiting"], [one["callId"] for one in said.value["head"]]) == (4, call_ids[:2])
    assert said.value["waitingFor"] == {"slot": 2}
    assert "those of the first 2" in said.err
    assert admin("line show acme --limit 4 --json").err == ""


def test_show_counts_page_by_page_and_gives_up_at_a_bound(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index answers a megabyte at a time; here two entries."""
    for number in range(1, 8):
        account.waiting(number)
    pages = []
    original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]

    def in_small_pages(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "Query" and arguments.get("Select") == "COUNT":
            pages.append(arguments["IndexName"])
            arguments = arguments | {"Limit": 2}
        return original(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", in_small_pages)
    value = admin("line show acme --json").value
    assert (value["waiting"], value["moreWait"]) == (7, False)
    # Four for those that wait, one for those that are admitted.
    assert pages == ["line"] * 5
    monkeypatch.setattr(lines, "COUNTED_PAGES", 2)
    pages.clear()
    said = admin("line show acme")
    assert "Wait           more than 4\n" in said.out
    assert len(pages) == 3
    assert admin("line show acme --json").value["moreWait"] is True


def test_show_reads_records_of_the_first_calls_alone(account: Account, admin: Admin) -> None:
    for number in range(1, 31):
        account.waiting(number)
    account.sent.clear()
    assert admin("line show acme --limit 10").code == 0
    assert account.sent[CALLS, "BatchGetItem"] == 1
    assert account.sent[CALLS, "GetItem"] == 0


def test_show_counts_what_is_admitted_until_a_worker_takes_it(account: Account, admin: Admin) -> None:
    admitted, waits, taken = (account.waiting(number, 5 - number) for number in (1, 2, 3))
    for call_id in (admitted, taken):
        call = there(account, call_id)
        assert call.turn is not None
        line = line_of("acme")
        assert account.calls.admit(call_id, line, call.turn, f"{line}#admitted", account.now, account.now).won
    assert account.calls.take_lease(taken, "lease", account.now + MINUTE, account.now).won
    value = admin("line show acme --json").value
    assert (value["waiting"], value["admitted"]) == (1, 1)
    assert [one["callId"] for one in value["head"]] == [waits]


def test_show_leaves_out_what_only_the_index_still_has(account: Account, admin: Admin) -> None:
    """An earlier version's end of a call does not know the line; the record may be gone too."""
    ended, waits, gone = (account.waiting(number, 5 - number) for number in (1, 2, 3))
    account.calls._client.update_item(
        TableName=CALLS,
        Key=call_key(ended),
        UpdateExpression="SET #status = :canceled",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={":canceled": {"S": "canceled"}},
    )
    entries = account.calls.line(line_of("acme"), lines.EVER_MS, 10)
    account.calls._client.delete_item(TableName=CALLS, Key=call_key(gone))
    assert [call_id for call_id, _ in entries] == [ended, waits, gone]
    assert [one["callId"] for one in admin("line show acme --json").value["head"]] == [waits]


def test_show_of_a_lowered_limit_names_items_that_have_calls_yet(account: Account, admin: Admin) -> None:
    change(account, max_concurrent_calls=100)
    use_slots(account, 2, item=0)
    use_slots(account, 5, item=2)
    change(account, max_concurrent_calls=3)
    slots = admin("line show acme --json").value["slots"]
    assert (slots["inUse"], slots["limit"]) == (7, 3)
    assert [(item["item"], item["inUse"]) for item in slots["items"]] == [(0, 2), (2, 5)]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("line show absent", 1, "no workspace absent"),
        ("line show acme --limit 0", 2, "--limit"),
        ("line show acme --limit 1001", 2, "1 to 1000"),
        ("line show", 2, "WORKSPACE"),
        ("trunk reset ST_absent", 1, "no trunk ST_absent"),
        ("trunk reset absent", 2, "ST_..."),
    ],
)
def test_what_is_not_there_is_named(account: Account, admin: Admin, line: str, code: int, said: str) -> None:
    done = admin(line)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_show_needs_the_calls_table(account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CALLS_TABLE")
    done = admin("line show acme")
    assert done.code == 2
    assert "CALLS_TABLE" in done.err


# ── trunks ──────────────────────────────────────────────────────────────────────────────────────────


def test_list_of_trunks_tells_state_faults_and_who_uses_them(account: Account, admin: Admin) -> None:
    change(account, "other", sip_trunk_id="ST_2")
    stop_trunk(account)
    account.limits.note_trunk_fault("ST_old", "call-9", "no such host", MINUTE, HOUR, account.now)
    said = admin("trunk list --json")
    assert said.code == 0, said.err
    assert said.value == [
        {
            "trunkId": "ST_1",
            "state": "stopped",
            "faults": ["call-0", "call-1", "call-2"],
            "stops": 1,
            "stoppedAt": iso(account.now),
            "stoppedUntil": iso(account.now + MINUTE),
            "fault": "SIP 403",
            "workspaces": ["acme"],
        },
        {
            "trunkId": "ST_2",
            "state": "in_use",
            "faults": [],
            "stops": 0,
            "stoppedAt": None,
            "stoppedUntil": None,
            "fault": None,
            "workspaces": ["other"],
        },
        {
            "trunkId": "ST_old",
            "state": "in_use",
            "faults": ["call-9"],
            "stops": 0,
            "stoppedAt": None,
            "stoppedUntil": None,
            "fault": None,
            "workspaces": [],
        },
    ]
    rows = [row.split() for row in admin("trunk list").out.splitlines()]
    assert rows[0] == ["TRUNK", "STATE", "FAULTS", "STOPS", "SINCE", "UNTIL", "WORKSPACES", "FAULT"]
    assert rows[1] == [
        "ST_1",
        "stopped",
        "3",
        "1",
        iso(account.now),
        iso(account.now + MINUTE),
        "acme",
        "SIP",
        "403",
    ]
    assert rows[2] == ["ST_2", "in", "use", "0", "0", "-", "-", "other", "-"]
    assert account.sent[CALLS, "Query"] == 0


@pytest.mark.parametrize("state", ["to_probe", "probing"])
def test_list_tells_a_trunk_that_is_tried(account: Account, admin: Admin, state: str) -> None:
    for number in range(3):
        account.limits.note_trunk_fault("ST_1", f"call-{number}", "f", MINUTE, HOUR, account.now - 2 * MINUTE)
    if state == "probing":
        seen = account.limits.trunk("ST_1")
        assert account.limits.claim_probe(seen, "call-3", account.now + MINUTE, account.now)
    (trunk,) = admin("trunk list --json").value
    assert (trunk["state"], trunk["workspaces"]) == (state, ["acme", "other"])
    assert {"to_probe": "the next call tries it", "probing": "one call tries it"}[state] in admin("trunk list").out


def test_reset_uses_the_trunk_at_once_and_fills_the_lines_of_its_workspaces(
    account: Account, admin: Admin
) -> None:
    change(account, "other", sip_trunk_id="ST_2")
    account.workspaces.put(dataclasses.replace(account.workspaces.get("acme") or _fail(), workspace_id="third"))
    stop_trunk(account)
    stop_trunk(account, "ST_2")
    calls = [account.waiting(1), account.waiting(2, 1, "third")]
    account.waiting(3, 1, "other")
    said = admin("trunk reset ST_1 --json")
    assert said.code == 0, said.err
    assert (said.value["state"], said.value["stops"], said.value["workspaces"]) == ("in_use", 0, ["acme", "third"])
    assert sorted(account.admitted()) == calls
    assert "2 calls that waited are admitted" in said.err
    assert account.limits.trunk("ST_2").state(account.now) == "stopped"


def test_reset_of_a_trunk_without_faults_changes_nothing(account: Account, admin: Admin) -> None:
    said = admin("trunk reset ST_1")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == ["Trunk       ST_1", "State       in use", "Workspaces  acme, other"]


def _fail() -> Any:
    raise AssertionError("no such workspace")


# ── what admits waiting calls at once ───────────────────────────────────────────────────────────────


def test_resume_admits_what_has_a_slot_in_every_workspace(account: Account, admin: Admin) -> None:
    account.limits.pause(account.now)
    change(account, max_concurrent_calls=3)
    use_slots(account, 1)
    calls = [account.waiting(number, 20 - number) for number in range(1, 6)]
    other = account.waiting(9, 1, "other")
    said = admin("switch resume --json")
    assert said.code == 0, said.err
    assert said.value == {"paused": False, "pausedAt": None, "numbersMarked": True}
    assert "3 calls that waited are admitted" in said.err
    assert sorted(account.admitted()) == [*calls[:2], other]
    assert there(account, calls[0]).admitted_at_ms is not None
    assert there(account, calls[2]).in_line


def test_one_admitted_call_is_told_as_one(account: Account, admin: Admin) -> None:
    account.waiting(1)
    assert "\n1 call that waited is admitted.\n" in admin("switch resume").out


@pytest.mark.parametrize(
    ("words", "admits"),
    [
        ("--max-concurrent-calls 4", 3),
        ("--max-concurrent-calls 1000", 5),
        ("--trunk ST_2", 1),
        ("--max-concurrent-calls 2", 0),
        ("--max-concurrent-calls 1", 0),
        ("--calls-per-minute 100", 0),
    ],
)
def test_a_raised_limit_and_another_trunk_admit_at_once(
    account: Account, admin: Admin, words: str, admits: int
) -> None:
    # At one call a second their messages would be delayed.
    change(account, max_concurrent_calls=2, calls_per_second=100)
    use_slots(account, 1)
    stop_trunk(account) if "--trunk" in words else None
    calls = [account.waiting(number, 20 - number) for number in range(1, 6)]
    said = admin(f"workspace update acme {words}")
    assert said.code == 0, said.err
    assert sorted(account.admitted()) == calls[:admits]
    assert ("admitted" in said.out) == (admits > 0)


def test_a_lowered_limit_holds_at_the_next_dial(account: Account, admin: Admin) -> None:
    """The worker reads the workspace with its slots: no slot is free beyond the new limit."""
    change(account, max_concurrent_calls=100)
    use_slots(account, 3)
    workspace = account.workspaces.get("acme")
    assert workspace is not None
    assert admin("workspace update acme --max-concurrent-calls 2").code == 0
    standing = account.limits.standing(workspace)
    assert standing.workspace is not None
    assert sum(standing.free(standing.workspace.max_concurrent_calls)) == 0


@pytest.mark.parametrize(
    "line", ["switch resume", "trunk reset ST_1", "workspace update acme --max-concurrent-calls 20"]
)
@pytest.mark.parametrize("unknown", ["DIAL_QUEUE_URL", "CALLS_TABLE"])
def test_without_the_queue_or_the_calls_the_reconciler_admits(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, line: str, unknown: str
) -> None:
    monkeypatch.delenv(unknown)
    waits = account.waiting(1)
    said = admin(line)
    assert (said.code, said.err) == (0, "")
    assert "admitted by the reconciler, within a minute" in said.out
    assert there(account, waits).in_line


@pytest.mark.parametrize("output", ["DialQueueUrl", None])
def test_a_stack_names_the_queue_and_an_older_one_does_not(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, output: str | None
) -> None:
    """What a stack lacks is not taken from the environment, which may be of another."""
    waits = account.waiting(1)
    outputs = {"WorkspacesTableName": "Workspaces", "CallsTableName": CALLS}
    if output:
        outputs[output] = account.queue_url
    stack_of(monkeypatch, "ringonce", outputs)
    said = admin("switch resume --stack ringonce")
    assert (said.code, said.err) == (0, "")
    assert account.admitted() == ([waits] if output else [])
    assert ("within a minute" in said.out) == (output is None)


@pytest.mark.parametrize("known", [True, False])
def test_the_local_stack_names_its_queue(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
) -> None:
    resources = {"WorkspacesTable": "Workspaces", "CallsTable": CALLS}
    if known:
        resources["DialQueue"] = account.queue_url
    (tmp_path / "stack.json").write_text(
        json.dumps({"awsEndpointUrl": "https://eu-west-1.example", "resources": resources})
    )
    monkeypatch.setenv("RINGONCE_LOCAL_DIR", str(tmp_path))
    asked: list[tuple[str, str]] = []

    def client(service: Any, endpoint: str, config: Any = None) -> Any:
        asked.append((service, endpoint))
        return boto3.client(service)

    monkeypatch.setattr("admin.target.aws_client", client)
    waits = account.waiting(1)
    said = admin("switch resume --local")
    assert (said.code, said.err) == (0, "")
    assert account.admitted() == ([waits] if known else [])
    assert (("sqs", "https://eu-west-1.example") in asked) == known


@pytest.mark.parametrize("denied", [("Workspaces", "Scan"), ("Workspaces", "BatchGetItem"), (CALLS, "Query")])
def test_a_role_that_may_not_admit_resumes_all_the_same(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch, denied: tuple[str, str]
) -> None:
    account.limits.pause(account.now)
    account.waiting(1)
    original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]

    def narrow(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        tables = [*arguments.get("RequestItems", ()), arguments.get("TableName", "")]
        if operation == denied[1] and denied[0] in tables:
            raise aws_error("AccessDeniedException")
        return original(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", narrow)
    said = admin("switch resume --json")
    assert (said.code, said.value["paused"]) == (0, False)
    assert "(AccessDeniedException): the reconciler admits them, within a minute" in said.err
    assert account.limits.switch().paused_at_ms is None


def test_a_message_that_is_not_sent_is_repeated_by_the_reconciler(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIAL_QUEUE_URL", boto3.client("sqs").create_queue(QueueName="gone")["QueueUrl"])
    boto3.client("sqs").delete_queue(QueueUrl=boto3.client("sqs").get_queue_url(QueueName="gone")["QueueUrl"])
    call_id = account.waiting(1)
    said = admin("switch resume --json")
    assert said.code == 0
    assert json.loads(said.out) == {"paused": False, "pausedAt": None, "numbersMarked": True}
    assert "admission not sent" in said.err
    call = there(account, call_id)
    assert call.admitted_at_ms is not None
    assert call.check_at_ms is not None
    assert call.check_at_ms <= account.now + 2 * MINUTE
