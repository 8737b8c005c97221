"""`admin suppression`: one number, a file of them, and what is done after the table was lost."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from admin import suppression_import
from admin.suppression_file import number_of
from shared.call import event, iso
from shared.errors import StoreError
from shared.numbers import ALL, NumberStore, Suppression
from shared.policies import Cap, Policy
from shared.telemetry import logger
from tests.admin_account import HOUR, NUMBERS, Account, Admin, Keyboard, account_of, admin_of

ONE, TWO, THREE = "+12125550101", "+12125550102", "+12125550103"
BY = {"operator": True}
NEXT_YEAR = "2099-01-01T00:00:00Z"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with account_of(monkeypatch) as account:
        yield account


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scopes(account: Account, number: str, workspace_id: str = "acme") -> dict[str, Suppression]:
    return {one.scope: one for one in account.numbers.get(workspace_id, number).suppressions}


def said_of(account: Account, number: str) -> dict[str, tuple[str, str | None]]:
    """Reason and end, by scope."""
    return {
        scope: (one.reason, None if one.until_ms is None else iso(one.until_ms))
        for scope, one in scopes(account, number).items()
    }


# ── one number ──────────────────────────────────────────────────────────────────────────────────────


def test_add_show_and_remove(account: Account, admin: Admin) -> None:
    said = admin(f"suppression add acme '+1 (212) 555-0101' --reason letter --expires-at {NEXT_YEAR}")
    assert (said.code, said.err) == (0, "")
    assert f"{ONE} is not called by acme, for any purpose, until 2099-01-01" in said.out
    one = scopes(account, ONE)[ALL]
    assert (one.reason, one.by, one.until_ms) == ("letter", BY, 4_070_908_800_000)
    shown = admin(f"suppression show acme {ONE}")
    assert "Suppressed  yes" in shown.out
    assert "operator" in shown.out
    value = admin(f"suppression show acme {ONE} --json").value
    [only] = value["suppressions"]
    assert (value["suppressed"], only["scope"], only["reason"], only["by"]) == (True, ALL, "letter", BY)
    refused = admin(f"suppression remove acme {ONE}", typed="n\n")
    assert (refused.code, list(scopes(account, ONE))) == (1, [ALL])
    done = admin(f"suppression remove acme {ONE} --json --yes --reason mistake").value
    assert [(one["number"], one["scope"], one["action"], one["reason"]) for one in done] == [
        (ONE, ALL, "delete", "mistake")
    ]
    assert scopes(account, ONE) == {}
    assert "Suppressed  no" in admin(f"suppression show acme {ONE}").out
    assert admin(f"suppression remove acme {ONE} --yes").err == f"admin: {ONE} is not suppressed in acme\n"


def test_a_number_has_one_spelling(account: Account, admin: Admin) -> None:
    assert admin("suppression add acme +5215512345678").code == 0
    assert admin("suppression show acme +525512345678 --json").value["suppressed"] is True


def test_a_printed_change_has_the_fields_of_the_functions_log(account: Account, admin: Admin) -> None:
    value = admin(f"suppression add acme {ONE} --reason r --json").value
    assert value["at"] >= account.now
    assert value | {"at": 0} == {
        "message": "suppression changed",
        "workspace_id": "acme",
        "number": ONE,
        "scope": ALL,
        "action": "put",
        "reason": "r",
        "until": None,
        "at": 0,
        "by": BY,
    }


def test_what_would_end_sooner_than_today_is_asked_for(account: Account, admin: Admin) -> None:
    admin(f"suppression add acme {ONE}")
    weaker = f"suppression add acme {ONE} --expires-at {NEXT_YEAR}"
    assert "ends sooner" in admin(weaker).err
    assert scopes(account, ONE)[ALL].until_ms is None
    assert admin(weaker, typed="y\n").code == 0
    assert scopes(account, ONE)[ALL].until_ms is not None
    # Another scope takes nothing away, and what lasts longer neither.
    assert admin(f"suppression add acme {ONE} --scope sales --expires-at {NEXT_YEAR}").code == 0
    assert admin(f"suppression add acme {ONE}").code == 0
    assert {scope: one.until_ms for scope, one in scopes(account, ONE).items()}[ALL] is None


def test_a_scope_that_no_policy_has_is_told(account: Account, admin: Admin) -> None:
    acme = account.workspaces.get("acme")
    assert acme is not None
    account.workspaces.put(dataclasses.replace(acme, workspace_id="rules", policies={"sales": Policy("sales")}))
    assert "no policy slaes" in admin(f"suppression add rules {ONE} --scope slaes").out
    assert "no policy" not in admin(f"suppression add rules {ONE} --scope sales").out


@pytest.mark.parametrize(
    "line",
    [
        "suppression add acme 12125550101",
        f"suppression add acme {ONE} --scope ALL",
        f"suppression add acme {ONE} --expires-at 2099-01-01",
        f"suppression add acme {ONE} --expires-at 2020-01-01T00:00:00Z",
        f"suppression add acme {ONE} --reason 'a\nb'",
        f"suppression add acme {ONE} --reason {'x' * 257}",
        f"suppression add {ONE}",
        "suppression import acme x.csv --country Germany",
        "suppression export acme --json",
        "suppression export acme x --format xml",
        "suppression rebuild",
        "suppression rebuild acme --all",
    ],
)
def test_what_makes_no_sense_is_refused(account: Account, admin: Admin, line: str) -> None:
    said = admin(line)
    assert (said.code, said.out) == (2, "")


def test_without_the_table_it_says_how_to_name_it(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBERS_TABLE")
    said = admin(f"suppression show acme {ONE}")
    assert said.code == 2
    assert "NUMBERS_TABLE" in said.err


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────


def test_list_shows_what_holds_by_number(account: Account, admin: Admin) -> None:
    assert admin("suppression list acme").out == "No number is suppressed in acme.\n"
    now = account.now
    account.numbers.suppress("acme", TWO, Suppression(ALL, "asked\x1b[2J", now, None, {"call": "c" * 24}), now)
    account.numbers.suppress(
        "acme", ONE, Suppression("sales", "", now, now + HOUR, {"key": "1a", "label": "x"}), now
    )
    account.numbers.suppress("acme", THREE, Suppression(ALL, "", now - HOUR, now - 1, BY), now - HOUR)
    account.numbers.suppress("other", ONE, Suppression(ALL, "", now, None, BY), now)
    lines = admin("suppression list acme").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["NUMBER", "SCOPE"], [ONE, "sales"], [TWO, ALL]]
    assert "key 1a (x)" in lines[1]
    assert "\x1b" not in lines[2]
    limited = admin("suppression list acme --limit 1 --json")
    assert [one["number"] for one in limited.value] == [ONE]
    assert "There are more" in limited.err
    assert len(admin("suppression list acme --limit 1 --all --json").value) == 2


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_is_exported_can_be_imported(account: Account, admin: Admin, folder: Path, form: str) -> None:
    admin(f"suppression add acme {ONE} --reason 'a, \"b\"; c' --expires-at {NEXT_YEAR}")
    admin(f"suppression add acme {ONE} --scope sales")
    admin(f"suppression add acme {TWO} --reason ü")
    said = admin(f"suppression export acme out.txt --format {form} --json")
    assert said.value == {"file": "out.txt", "suppressions": 3}
    assert admin(f"suppression export acme --format {form}").out == (folder / "out.txt").read_text()
    assert admin("suppression import other out.txt").code == 0
    for number in (ONE, TWO):
        there = scopes(account, number, "other")
        assert {scope: (one.reason, one.until_ms) for scope, one in there.items()} == {
            scope: (one.reason, one.until_ms) for scope, one in scopes(account, number).items()
        }
    # An existing file is not replaced without a question, and nothing is left beside it.
    assert "exists" in admin("suppression export acme out.txt").err
    assert [path.name for path in folder.iterdir()] == ["out.txt"]


# ── import ──────────────────────────────────────────────────────────────────────────────────────────

FILES = {
    "commas": f"number,scope,reason,expires_at\n{ONE},,,\n{TWO},sales,why,{NEXT_YEAR}\n".encode(),
    "semicolons, a byte order mark, capitals, CRLF": (
        f"Reason;Number;Expires At;SCOPE\r\n;{ONE};;\r\nwhy;{TWO};{NEXT_YEAR};sales\r\n".encode("utf-8-sig")
    ),
    "tabs, other columns": (
        f"name\tnumber\tscope\treason\texpiresAt\nx,y\t{ONE}\t\t\t\n\t{TWO}\tsales\twhy\t{NEXT_YEAR}"
    ).encode(),
    "quoted, a comma in a name": (
        f'"Last, first";"number";scope;reason;expires_at\n;{ONE}\n"a;b";"{TWO}";sales;why;{NEXT_YEAR}\n'
    ).encode(),
    "JSON lines": (
        json.dumps({"Number": ONE, "more": 1})
        + "\n\n"
        + json.dumps({"number": TWO, "scope": "sales", "reason": "why", "expiresAt": NEXT_YEAR})
    ).encode("utf-8-sig"),
}


@pytest.mark.parametrize("form", FILES)
def test_import_reads(account: Account, admin: Admin, folder: Path, form: str) -> None:
    (folder / "list").write_bytes(FILES[form])
    said = admin("suppression import acme list --reason default --json")
    assert said.code == 0, said.err
    assert said.value == {
        "entries": 2,
        "added": 2,
        "extended": 0,
        "unchanged": 0,
        "refused": 0,
        "refusedFile": None,
    }
    assert said_of(account, ONE) == {ALL: ("default", None)}
    assert said_of(account, TWO) == {"sales": ("why", "2099-01-01T00:00:00.000Z")}
    assert scopes(account, ONE)[ALL].by == BY
    assert [path.name for path in folder.iterdir()] == ["list"]


@pytest.mark.parametrize("text", [f"{ONE}\n{TWO}\n", f"Phone\n{ONE}\n\n{TWO}", f'"{ONE}"\n"{TWO}"\n'])
def test_import_reads_a_file_of_numbers_alone(account: Account, admin: Admin, folder: Path, text: str) -> None:
    (folder / "list").write_text(text)
    assert admin("suppression import acme list --scope sales --json").value["added"] == 2
    assert scopes(account, ONE).keys() == scopes(account, TWO).keys() == {"sales"}


@pytest.mark.parametrize(
    ("text", "country", "number"),
    [
        ("030 12345678", "DE", "+493012345678"),
        ("0049 30 12345678", "DE", "+493012345678"),
        ("+49 (0) 30 12345678", "US", "+493012345678"),
        ("(212) 555-0101", "US", ONE),
        ("1 212 555 0101", "US", ONE),
        ("06 1234 5678", "IT", "+390612345678"),
        ("55 1234 5678", "MX", "+525512345678"),
        ("+5215512345678", None, "+525512345678"),
    ],
)
def test_a_number_is_read_as_it_is_dialled_in_a_country(text: str, country: str | None, number: str) -> None:
    assert number_of(text, country) == number


@pytest.mark.parametrize(
    ("text", "country"),
    [
        *(("", None), ("12125550101", None), ("+1", None), ("212", "US"), ("anonymous", "US"), ("+49 123", "DE")),
        ("030 12345678 ext. 5", "DE"),
        ("2.1255E+09", "US"),
    ],
)
def test_what_is_no_number_is_refused_by_its_column(text: str, country: str | None) -> None:
    with pytest.raises(ValueError, match=r"^number "):
        number_of(text, country)


def test_refused_lines_are_kept_with_their_reason_and_can_be_repaired(
    account: Account, admin: Admin, folder: Path
) -> None:
    (folder / "list.csv").write_text(
        f"number,scope,reason,expires_at\n{ONE},,,\n555,,why,\n\n{TWO},Sales,,\n{THREE},,,2020-01-01T00:00:00Z\n"
        f"{THREE},,,2099-01-01\n{THREE},,\n{THREE},,,,extra\n"
    )
    said = admin("suppression import acme list.csv")
    assert said.code == 1
    assert "5 of 7 entries were refused: list.csv.refused.csv" in said.err
    refused = (folder / "list.csv.refused.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in refused] == [
        ["line", "number"],
        ["3", "555"],
        ["5", TWO],
        ["6", THREE],
        ["7", THREE],
        ["9", THREE],
    ]
    for line, why in zip(refused[1:], ("number ", "scope ", "has passed", "expires_at ", "5 cells"), strict=True):
        assert why in line
    assert scopes(account, TWO) == {}
    assert said_of(account, THREE) == {ALL: ("", None)}
    (folder / "list.csv.refused.csv").write_text(
        "line,number,scope,reason,expires_at,refused\n3,+12125550555,,why,,x\n"
    )
    assert admin("suppression import acme list.csv.refused.csv").code == 0
    assert said_of(account, "+12125550555") == {ALL: ("why", None)}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"phone,name\n+12125550101,x\n", "must name the columns"),
        (b"number,number\n+12125550101,x\n", "must name the columns"),
        (b"[{}]", "JSON array"),
        ("number\n+12125550101\n".encode("utf-16"), "not UTF-8"),
        (b"number,reason\n+12125550101,\xff\n", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    account: Account, admin: Admin, folder: Path, content: bytes | None, why: str
) -> None:
    if content is not None:
        (folder / "list").write_bytes(content)
    said = admin("suppression import acme list")
    assert (said.code, said.err.count("Traceback")) == (1, 0)
    assert why in said.err.splitlines()[-1]
    assert account.sent[NUMBERS, "UpdateItem"] == 0


def test_a_quotation_mark_that_is_not_closed_swallows_no_line_silently(
    account: Account, admin: Admin, folder: Path
) -> None:
    (folder / "list").write_text(f'number,reason\n{ONE},"why\n{TWO},\n{THREE},\n')
    said = admin("suppression import acme list")
    assert said.code == 1
    assert "quotation mark" in (folder / "list.refused.csv").read_text()


def test_what_holds_longer_is_kept_in_whatever_order(account: Account, admin: Admin, folder: Path) -> None:
    now = account.now
    account.numbers.suppress("acme", ONE, Suppression(ALL, "asked", now, None, {"call": "c" * 24}), now)
    account.numbers.suppress("acme", TWO, Suppression(ALL, "old", now, now + HOUR, {"call": "c" * 24}), now)
    (folder / "list").write_text(
        f"number,reason,expires_at\n{ONE},import,{NEXT_YEAR}\n{TWO},import,{NEXT_YEAR}\n"
        f"{THREE},short,2098-01-01T00:00:00Z\n{THREE},long,\n{THREE},short,{NEXT_YEAR}\n"
    )
    value = admin("suppression import acme list --json").value
    assert (value["added"], value["extended"], value["unchanged"]) == (1, 2, 2)
    assert said_of(account, ONE) == {ALL: ("asked", None)}
    assert said_of(account, TWO) == {ALL: ("import", "2099-01-01T00:00:00.000Z")}
    assert said_of(account, THREE) == {ALL: ("long", None)}
    before = account.sent[NUMBERS, "UpdateItem"]
    assert admin("suppression import acme list --json").value["unchanged"] == 5
    assert account.sent[NUMBERS, "UpdateItem"] == before


def test_an_import_keeps_the_rings_of_a_number(account: Account, admin: Admin, folder: Path) -> None:
    account.numbers.add_rings("acme", ONE, {"c" * 24: account.now}, account.now)
    (folder / "list").write_text(ONE)
    assert admin("suppression import acme list").code == 0
    assert account.numbers.get("acme", ONE).rings == {"c" * 24: account.now}


NUMBERS_OF = [f"+1212555{n:04}" for n in range(100, 130)]


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt(), StoreError("AccessDeniedException")])
def test_an_interrupted_import_goes_on_where_it_stopped(
    account: Account, admin: Admin, folder: Path, monkeypatch: pytest.MonkeyPatch, stopped_by: BaseException
) -> None:
    (folder / "list").write_text("number\n" + "\n".join([*NUMBERS_OF[:5], "wrong", *NUMBERS_OF[5:]]))
    monkeypatch.setattr(suppression_import, "PORTION", 10)
    get_many, reads = NumberStore.get_many, []

    def third_fails(self: NumberStore, workspace_id: str, numbers: Any) -> Any:
        reads.append(numbers)
        if len(reads) == 3:
            raise stopped_by from aws_denied
        return get_many(self, workspace_id, numbers)

    aws_denied = denied()
    monkeypatch.setattr(NumberStore, "get_many", third_fails)
    said = admin("suppression import acme list")
    assert said.code == (130 if isinstance(stopped_by, KeyboardInterrupt) else 1)
    assert "Stopped after line 21 of 32; the same command goes on from there." in said.out
    assert (folder / "list.ringonce-progress").exists()
    assert [bool(scopes(account, number)) for number in NUMBERS_OF] == [True] * 19 + [False] * 11
    # What was refused after the progress was noted is not told twice.
    with (folder / "list.refused.csv").open("a") as stream:
        stream.write("22,half a li")
    said = admin("suppression import acme list --json")
    assert said.code == 1
    assert "Goes on after line 21 of 32" in said.err
    assert (said.value["entries"], said.value["added"], said.value["refused"]) == (31, 30, 1)
    assert len((folder / "list.refused.csv").read_text().splitlines()) == 2
    assert all(scopes(account, number) for number in NUMBERS_OF)
    assert len(reads) == 5
    assert not (folder / "list.ringonce-progress").exists()


def denied() -> Exception:
    from tests.admin_account import aws_error

    return aws_error("AccessDeniedException")


@pytest.mark.parametrize("other", ["file", "workspace", "scope", "damaged"])
def test_another_import_does_not_go_on_from_there(
    account: Account, admin: Admin, folder: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    (folder / "list").write_text("\n".join(NUMBERS_OF))
    monkeypatch.setattr(suppression_import, "PORTION", 10)
    with monkeypatch.context() as failing:
        failing.setattr(
            suppression_import.Progress, "remove", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert admin("suppression import acme list").code == 130
    assert (folder / "list.ringonce-progress").exists()
    if other == "file":
        (folder / "list").write_text("\n".join(["+12125550199", *NUMBERS_OF[1:]]))
    if other == "damaged":
        (folder / "list.ringonce-progress").write_text('{"about":')
    workspace_id = "other" if other == "workspace" else "acme"
    said = admin(f"suppression import {workspace_id} list --json" + (" --scope sales" if other == "scope" else ""))
    assert said.code == 0
    assert "Goes on" not in said.err
    assert said.value["entries"] == 30


def test_progress_is_shown_where_a_person_watches(
    account: Account, admin: Admin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "list").write_text("\n".join(NUMBERS_OF))
    monkeypatch.setattr(suppression_import, "PORTION", 10)
    monkeypatch.setattr(suppression_import, "SAID_EVERY", 10)
    assert admin("suppression import acme list").err.splitlines() == [f"{n} of 30 lines" for n in (10, 20, 30)]
    watched = Keyboard()
    monkeypatch.setattr(sys, "stderr", watched)
    assert admin("suppression import acme list").code == 0
    assert "] 10 of 30 lines" in watched.getvalue()
    assert watched.getvalue().endswith("] 30 of 30 lines\n")


def test_what_dynamodb_throttles_is_repeated(
    account: Account, admin: Admin, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "list").write_text(f"{ONE}\n{TWO}")
    monkeypatch.setattr("admin.suppression_import.time.sleep", lambda seconds: None)
    change, failures = NumberStore.change, iter(range(3))

    def throttled(self: NumberStore, *arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise StoreError("ProvisionedThroughputExceededException") from denied()
        return change(self, *arguments)

    monkeypatch.setattr(NumberStore, "change", throttled)
    assert admin("suppression import acme list --json").value["added"] == 2


# ── the marker ──────────────────────────────────────────────────────────────────────────────────────

CREATE = "workspace create new --agent-name outbound --trunk ST_1 --allow +1"


def test_the_first_workspace_brings_the_marker(account: Account, admin: Admin) -> None:
    account.lose_numbers()
    boto3.client("dynamodb").delete_item(TableName="Workspaces", Key={"workspaceId": {"S": "#numbers"}})
    assert admin("switch status --json").value["numbersMarked"] is False
    assert admin(CREATE).code == 0
    assert account.numbers.marked()
    assert account.limits.numbers_noted()
    assert admin("switch status --json").value["numbersMarked"] is True


def test_a_marker_that_was_lost_is_written_by_mark_alone(account: Account, admin: Admin) -> None:
    account.lose_numbers()
    said = admin(CREATE)
    assert said.code == 0
    assert "has lost its marker: nothing is dialled" in said.out
    assert not account.numbers.marked()
    assert "has no marker: nothing is dialled" in admin("switch status").out
    assert admin("suppression mark", typed="n\n").code == 1
    assert "no terminal" in admin("suppression mark").err
    assert not account.numbers.marked()
    assert admin("suppression mark --json", typed="y\n").value == {"marked": True, "written": True}
    assert account.numbers.marked()
    assert "already" in admin("suppression mark").out


def test_a_pause_does_not_fail_when_the_marker_cannot_be_read(
    account: Account, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBERS_TABLE", "absent")
    said = admin("switch pause --json")
    assert said.code == 0
    assert (said.value["paused"], said.value["numbersMarked"]) == (True, None)
    created = admin(CREATE)
    assert created.code == 0
    assert "the reconciler does within a minute" in created.out


# ── rebuild ─────────────────────────────────────────────────────────────────────────────────────────


def opted_out(account: Account, number: int, to: str, hours_ago: float = 1, **data: Any) -> str:
    """A call whose agent reported an opt-out, so long ago."""
    at = account.now - round(hours_ago * HOUR)
    report = event("agent.opt_out", at, data=json.dumps(data), reportId="key-1")
    return account.call(
        number, hours_ago + 1, to=to, events=(event("call.queued", at - 1), report), purpose="sales"
    )


def line(account: Account, number: str, action: str, hours_ago: float, scope: str = ALL, **more: Any) -> str:
    """A line of the functions' log."""
    return json.dumps(
        {
            "level": "INFO",
            "message": "suppression changed",
            "service": "calls_api",
            "workspace_id": "acme",
            "number": number,
            "scope": scope,
            "action": action,
            "reason": "by API",
            "until": None,
            "at": account.now - round(hours_ago * HOUR),
            "by": {"key": "1a2b3c4d", "label": "crm"},
        }
        | more
    )


def everything(account: Account) -> dict[str, dict[str, str]]:
    return {
        record.number: {one.scope: one.reason for one in record.suppressions}
        for record in account.numbers.everything()
        if record.suppressions
    }


def test_rebuild_asks_for_a_pause_first(account: Account, admin: Admin) -> None:
    said = admin("suppression rebuild --all")
    assert (said.code, "switch pause" in said.err) == (1, True)


def test_rebuild_takes_the_later_of_what_backup_reports_and_log_say(
    account: Account, admin: Admin, folder: Path
) -> None:
    now = account.now
    backup = {"+12125550201": "kept", "+12125550202": "released", "+12125550203": "newer in the log"}
    for number, reason in backup.items():
        account.numbers.suppress("acme", number, Suppression(ALL, reason, now - 10 * HOUR, None, BY), now)
    account.numbers.add_rings("acme", ONE, {"d" * 24: now - HOUR}, now)
    account.copy_numbers("Restored")
    account.lose_numbers()
    # Written since, by a client that goes on.
    newest = Suppression(ALL, "newest", now, None, BY)
    account.numbers.suppress("acme", "+12125550204", newest, now)
    account.limits.pause(now)
    opted_out(account, 1, TWO, said="no more")
    opted_out(account, 2, THREE, scope="purpose")
    opted_out(account, 3, "+12125550205", hours_ago=3)
    opted_out(account, 4, "+12125550206", hours_ago=9)
    (folder / "log").write_text(
        "\n".join(
            [
                "START RequestId: 1",
                json.dumps({"message": "report", "call_id": "1"}),
                line(account, "+12125550202", "delete", 4),
                line(account, "+12125550203", "put", 4, until=now + HOUR),
                line(account, "+12125550204", "delete", 4),
                line(account, "+12125550205", "delete", 2),
                line(account, "+12125550205", "put", 4, "sales"),
                line(account, "+12125550207", "put", 9),
                json.dumps({"@message": line(account, "+12125550208", "put", 1, workspace_id="other")}),
            ]
        )
    )
    words = f"suppression rebuild acme --restored Restored --log-file log --since {iso(now - 8 * HOUR)} --json"
    said = admin(words)
    assert said.code == 0, said.err
    expected = {
        "+12125550201": {ALL: "kept"},
        "+12125550203": {ALL: "by API"},
        "+12125550204": {ALL: "newest"},
        "+12125550205": {"sales": "by API"},
        TWO: {ALL: "no more"},
        THREE: {"sales": ""},
    }
    assert everything(account) == expected
    assert scopes(account, TWO)[ALL].by == {"call": f"{1:024x}"}
    assert scopes(account, "+12125550203")[ALL].until_ms == now + HOUR
    assert account.numbers.get("acme", ONE).rings == {"d" * 24: now - HOUR}
    assert said.value["logLines"] == 7
    assert not account.numbers.marked()
    # Repeated it changes nothing.
    assert admin(words).code == 0
    assert everything(account) == expected


def test_rebuild_without_a_backup_takes_every_report_of_every_workspace_and_the_rings(
    account: Account, admin: Admin
) -> None:
    now = account.now
    account.lose_numbers()
    account.limits.pause(now)
    acme = account.workspaces.get("acme")
    assert acme is not None
    account.workspaces.put(
        dataclasses.replace(acme, workspace_id="rules", policies={"x": Policy("x", caps=(Cap(3, 60),))})
    )
    opted_out(account, 1, TWO, hours_ago=600)
    rang = account.call(2, 2, "rules", to=ONE, dialed_at_ms=now - 2 * HOUR)
    account.call(3, 24 * 60, "rules", to=ONE, dialed_at_ms=now - 24 * 60 * HOUR)
    account.call(4, 2, "other", to=ONE, dialed_at_ms=now - 2 * HOUR)
    said = admin("suppression rebuild --all")
    assert said.code == 0, said.err
    assert "Without --log-file" in said.out
    assert everything(account) == {TWO: {ALL: ""}}
    assert account.numbers.get("rules", ONE).rings == {rang: now - 2 * HOUR}
    assert account.numbers.get("other", ONE).rings == {}


def test_a_line_is_read_as_the_functions_logger_writes_it(account: Account, admin: Admin, folder: Path) -> None:
    account.limits.pause(account.now)
    lines = []
    for number, action, until in (
        (ONE, "suppressed", NEXT_YEAR),
        (TWO, "suppressed", None),
        (TWO, "released", None),
    ):
        fields = {
            "workspace_id": "acme",
            "number": number,
            "scope": ALL,
            "reason": "r",
            "expires_at": until,
            "by": BY,
        }
        record = logging.LogRecord("x", logging.INFO, "", 0, "suppression changed", None, None)
        record.__dict__.update(fields, action=action)
        lines.append(logger.registered_formatter.format(record))
    (folder / "log").write_text("\n".join(lines))
    said = admin("suppression rebuild acme --log-file log --json")
    assert (said.code, said.value["logLines"]) == (0, 3), said.err
    assert said_of(account, ONE) == {ALL: ("r", "2099-01-01T00:00:00.000Z")}


def test_a_line_of_the_log_that_cannot_be_read_is_told(account: Account, admin: Admin, folder: Path) -> None:
    account.limits.pause(account.now)
    wrong = [
        line(account, "+12*******01", "put", 1),
        line(account, ONE, "drop", 1),
        line(account, ONE, "put", 1, at="yesterday"),
        line(account, ONE, "put", 1, "Sales"),
        '{"message": "suppression changed"}',
        'half a line, "suppression changed"',
    ]
    (folder / "log").write_text("\n".join([*wrong, line(account, TWO, "put", 1)]))
    said = admin("suppression rebuild acme --log-file log")
    assert said.code == 1
    assert "6 lines of the log could not be read" in said.err
    for n in range(1, 7):
        assert f"line {n} of log cannot be read" in said.out
    assert everything(account) == {TWO: {ALL: "by API"}}


def test_the_stacks_own_table_is_no_backup_of_itself(account: Account, admin: Admin) -> None:
    account.limits.pause(account.now)
    assert "own table" in admin(f"suppression rebuild acme --restored {NUMBERS}").err
