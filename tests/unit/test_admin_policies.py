"""`admin policy`: what a file may say, what is shown and asked, and what two commands at once do."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import ReadTimeoutError

from admin.policy_input import parsed, written
from admin.terminal import AdminError
from shared.dynamo import to_wire
from shared.policies import MAXIMUM_POLICIES, RECIPIENT, Cap, Policy, Window
from shared.workspaces import Workspace, WorkspaceStore
from tests import admin_account
from tests.admin_account import Account, Admin, Said, account_of, admin_of

EVERY_DAY = frozenset(range(7))
# As many as a policy may have.
DATES = [f"{year}-{month:02}-01" for year in range(2026, 2066) for month in range(1, 11)]
RULES: dict[str, Any] = {
    "description": "Verkauf an Geschäfte",
    "source": "§ 7 UWG",
    "checked_at": "2026-11-28",
    "zone": "Europe/Berlin",
    "windows": [{"days": "mon-fri", "start": "09:00", "end": "20:00"}],
    "holidays": ["2026-12-25", "2026-12-26"],
    "caps": [{"count": 2, "seconds": 86_400}],
    "min_gap_seconds": 3600,
    "consent_required": True,
}
SALES = Policy(
    name="sales",
    version=1,
    windows=(Window(frozenset(range(5)), 540, 1200),),
    zone="Europe/Berlin",
    holidays=frozenset({"2026-12-25", "2026-12-26"}),
    caps=(Cap(2, 86_400),),
    min_gap_seconds=3600,
    consent_required=True,
    description="Verkauf an Geschäfte",
    source="§ 7 UWG",
    checked_at="2026-11-28",
)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    with account_of(monkeypatch) as account:
        yield account


@pytest.fixture
def admin(account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a policy's file: RULES with these changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "rules.json"
        path.write_text(json.dumps(RULES | changes), encoding="utf-8")
        return path

    return write


def there(account: Account, workspace_id: str = "acme") -> Workspace:
    workspace = account.workspaces.get(workspace_id)
    assert workspace is not None
    return workspace


def put(account: Account, *policies: Policy) -> None:
    by_name = {policy.name: policy for policy in policies}
    account.workspaces.update("acme", lambda seen: dataclasses.replace(seen, policies=seen.policies | by_name))


def refusal(**fields: Any) -> str:
    """What is said of a file with these fields."""
    with pytest.raises(AdminError) as refused:
        parsed(json.dumps(fields).encode(), "f.json")
    return str(refused.value).removeprefix("f.json: ")


def window(**changes: Any) -> dict[str, Any]:
    return {"days": "mon-fri", "start": "08:00", "end": "21:00"} | changes


def of_window(**changes: Any) -> tuple[int, int]:
    [found] = parsed(json.dumps({"windows": [window(**changes)]}).encode(), "f.json").policy("p", 1).windows
    return found.start, found.end


# ── the file ────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_becomes_a_policy_and_a_policy_the_file() -> None:
    body = json.dumps(RULES).encode()
    assert parsed(body, "f.json").policy("sales", 1) == SALES
    assert written(SALES) == RULES
    # Through the table too.
    assert Policy.from_item("sales", SALES.to_item()) == SALES


def test_a_file_without_fields_restricts_nothing() -> None:
    assert parsed(b"{}", "f.json").policy("p", 3) == Policy("p", 3)
    assert parsed(json.dumps(written(Policy("p"))).encode(), "f.json").policy("p", 1) == Policy("p")


@pytest.mark.parametrize(
    ("days", "found"),
    [
        ("mon-sun", EVERY_DAY),
        ("mon", {0}),
        (["mon"], {0}),
        (["mon", "thu-sat"], {0, 3, 4, 5}),
        ("sat-mon", {5, 6, 0}),
        (["sun", "sun"], {6}),
        ("sun-sun", {6}),
    ],
)
def test_days_are_names_and_ranges(days: Any, found: set[int]) -> None:
    fields = {"windows": [window(days=days)]}
    policy = parsed(json.dumps(fields).encode(), "f.json").policy("p", 1)
    assert policy.windows[0].days == found
    assert parsed(json.dumps(written(policy)).encode(), "f.json").policy("p", 1) == policy


@pytest.mark.parametrize("days", ["", [], "monday", "Mon", "mon-", "mon-tue-wed", "mon, tue", [1], 1, None, {}])
def test_what_is_no_day_is_refused(days: Any) -> None:
    assert refusal(windows=[window(days=days)]) == (
        'windows.0.days must be days or ranges of days: ["mon", "thu-sat"] or "mon-fri"'
    )


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        ("00:00", "24:00", (0, 1440)),
        ("08:00", "00:00", (480, 1440)),
        ("22:00", "06:00", (1320, 360)),
        ("23:58", "24:00", (1438, 1440)),
        ("23:59", "00:01", (1439, 1)),
        ("08:01", "08:00", (481, 480)),
    ],
)
def test_a_window_may_end_at_midnight_or_on_the_next_day(start: str, end: str, found: tuple[int, int]) -> None:
    assert of_window(start=start, end=end) == found


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    "text",
    [
        "8:00",
        "08:60",
        "24:01",
        "25:00",
        "08:00:00",
        "0800",
        "08.00",
        "-8:00",
        " 08:00",
        "\u0660\u0668:00",
        8,
        None,
    ],
)
def test_what_is_no_time_is_refused(name: str, text: Any) -> None:
    assert refusal(windows=[window(**{name: text})]) == f"windows.0.{name} must be a time like 08:00"


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        ("24:00", "08:00", "windows.0.start must be a time from 00:00 to 23:59"),
        ("08:00", "08:00", "windows.0.end must not equal start"),
        ("00:00", "00:00", "windows.0.end must not equal start"),
        ("08:00", "08:01", "windows.0.end must be at least 2 minutes after start"),
        ("23:59", "24:00", "windows.0.end must be at least 2 minutes after start"),
        ("23:59", "00:00", "windows.0.end must be at least 2 minutes after start"),
    ],
)
def test_a_window_in_which_no_phone_can_ring_out_is_refused(start: str, end: str, said: str) -> None:
    assert refusal(windows=[window(start=start, end=end)]).startswith(said)


@pytest.mark.parametrize(
    "text", ["2026-02-29", "2026-13-01", "2026-00-10", "20261225", "2026-W52-5", "25.12.2026", "", 20261225, None]
)
def test_a_date_that_does_not_exist_is_refused(text: Any) -> None:
    said = "must be a date that exists, like 2026-12-25"
    assert refusal(holidays=["2028-02-29", text]) == f"holidays.1 {said}"
    assert refusal(checked_at=text) == f"checked_at {said}"


@pytest.mark.parametrize(
    "zone", ["Europe/Bonn", "europe/berlin", "+01:00", "", "Factory", "../etc/passwd", 1, None]
)
def test_a_zone_that_does_not_exist_is_refused(zone: Any) -> None:
    assert refusal(zone=zone).startswith("zone must be recipient (the callee's zone) or an IANA zone")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        *(
            ({"caps": [{"count": count, "seconds": 60}]}, "caps.0.count must be a whole number from 1 to 99")
            for count in (0, 100, -1, 1.5, 1.0, "1", True, None)
        ),
        *(
            (
                {"caps": [{"count": 1, "seconds": seconds}]},
                "caps.0.seconds must be a whole number from 60 to 2592000 (30 days)",
            )
            for seconds in (0, 59, 2_592_001, 86_400.0, "86400", True, 10**400)
        ),
        *(
            (
                {"min_gap_seconds": gap},
                "min_gap_seconds must be a whole number from 0 (no gap) to 2592000 (30 days)",
            )
            for gap in (-1, 2_592_001, "60", False, None)
        ),
        *(({"consent_required": given}, "consent_required must be true or false") for given in (1, "yes", None)),
        (
            {"caps": [{"count": 3, "hours": 24}]},
            "caps.0.seconds is required; caps.0.hours is not a field of a policy",
        ),
        ({"windows": [{}]}, "windows.0.days is required; windows.0.start is required; windows.0.end is required"),
        ({"windows": {}}, "windows must be a list"),
        ({"windows": [[]]}, "windows.0 must be an object"),
        ({"holidays": "2026-12-25"}, "holidays must be a list"),
        ({"caps": None}, "caps must be a list"),
        ({"minGapSeconds": 60}, "minGapSeconds is not a field of a policy"),
        ({"name": "sales"}, "name is not a field of a policy"),
        ({"a\x1b[2J": 1}, "a\\x1b[2J is not a field of a policy"),
        ({"windows": [window()] * 15}, "windows must have at most 14 entries"),
        ({"holidays": ["2026-12-25"] * 401}, "holidays must have at most 400 entries"),
        ({"caps": [{"count": 1, "seconds": 60}] * 11}, "caps must have at most 10 entries"),
        *(
            (
                {field: text},
                f"{field} must be a string of at most 1,000 printable characters, without line breaks",
            )
            for field in ("description", "source")
            for text in ("a" * 1001, "a\nb", "\x1b[2J", "\u202e", 1, None)
        ),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], said: str) -> None:
    assert refusal(**fields) == said


def test_the_largest_values_are_taken() -> None:
    fields = {
        "windows": [window()] * 14,
        "holidays": DATES,
        "caps": [{"count": 99, "seconds": 2_592_000}] * 9 + [{"count": 1, "seconds": 60}],
        "min_gap_seconds": 2_592_000,
        "description": "a" * 1000,
    }
    policy = parsed(json.dumps(fields).encode(), "f.json").policy("p", 1)
    assert written(policy)["caps"] == fields["caps"]
    assert policy.min_gap_seconds == 2_592_000


def test_everything_wrong_is_said_at_once() -> None:
    said = refusal(zone="x", windows=[window(start="8"), window(end="9")], caps=[{"count": 0, "seconds": 0}], a=1)
    assert [part.split()[0] for part in said.split("; ")] == [
        *("zone", "windows.0.start", "windows.1.end", "caps.0.count", "caps.0.seconds", "a"),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected an object"),
        (b"[]", "expected an object"),
        (b'{"caps": [], "caps": []}', 'duplicate key "caps"'),
        (b'{"zone": "recipient",}', "expected a key"),
        (b'{"min_gap_seconds": NaN}', "NaN is not JSON"),
        (b'{"description": "\xff"}', "it is not UTF-8"),
        (b'{"description": "\\ud800"}', "lone surrogate"),
        (b'{"caps": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "more than 32 levels"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(AdminError, match=r"^f\.json: it is not a valid JSON object") as refused:
        parsed(body, "f.json")
    assert said in str(refused.value)


def test_the_largest_policies_of_a_workspace_fit_into_its_item() -> None:
    """DynamoDB's largest item has 400 KB."""
    largest = Policy(
        name="p" * 64,
        windows=(Window(EVERY_DAY, 1439, 1438),) * 14,
        zone="America/Argentina/ComodRivadavia",
        holidays=frozenset(DATES),
        caps=(Cap(99, 2_592_000),) * 10,
        description="\U0001f600" * 1000,
        source="\U0001f600" * 1000,
    )
    policies = {f"{number:064}": largest for number in range(MAXIMUM_POLICIES)}
    workspace = Workspace("acme", "acme", "outbound", "ST_1", ("+12025550100",), policies=policies)
    # With the names of types the JSON is longer than what DynamoDB counts.
    wire = json.dumps(to_wire(workspace.to_item()), ensure_ascii=False).encode()
    assert len(wire) < 400 * 1024


# ── policy apply ────────────────────────────────────────────────────────────────────────────────────


def test_apply_makes_a_policy_after_a_question(account: Account, admin: Admin, file: Callable[..., Path]) -> None:
    asked = admin(f"policy apply acme sales {file()}", "n\n")
    assert (asked.code, asked.out) == (1, "")
    assert '+  "source": "§ 7 UWG",' in asked.err
    assert "every call of acme with the purpose sales is held to version 1 of sales" in asked.err
    assert "Make it? [y/N] admin: nothing was changed" in asked.err
    assert there(account).policies == {}

    said = admin(f"policy apply acme sales {file()}", "y\n")
    assert said.code == 0, said.err
    assert said.out == "sales of acme is version 1; it holds within a minute.\n"
    assert there(account).policies == {"sales": SALES}
    # Of this workspace alone.
    assert there(account, "other").policies == {}


def test_apply_shows_what_changes_and_raises_the_version(
    account: Account, admin: Admin, file: Callable[..., Path]
) -> None:
    put(account, SALES, Policy("default", 7))
    said = admin(f"policy apply acme sales {file(min_gap_seconds=7200, holidays=['2026-12-25'])}", "y\n")
    assert said.code == 0, said.err
    lines = said.err.splitlines()
    assert lines[:2] == ["--- sales, version 1", "+++ sales, version 2"]
    changed = [line for line in lines[2:] if line.startswith(("+", "-"))]
    assert changed == [
        *('-    "2026-12-25",', '-    "2026-12-26"', '+    "2026-12-25"'),
        *('-  "min_gap_seconds": 3600,', '+  "min_gap_seconds": 7200,'),
    ]
    assert "Replace it? [y/N]" in said.err
    expected = dataclasses.replace(SALES, version=2, min_gap_seconds=7200, holidays=frozenset({"2026-12-25"}))
    assert there(account).policies == {"sales": expected, "default": Policy("default", 7)}


def test_apply_of_what_is_so_already_asks_and_changes_nothing(
    account: Account, admin: Admin, file: Callable[..., Path]
) -> None:
    put(account, dataclasses.replace(SALES, version=4))
    before = there(account)
    said = admin(f"policy apply acme sales {file()} --json")
    assert (said.code, said.err) == (0, "")
    assert (said.value["version"], said.value["changed"]) == (4, False)
    assert there(account) == before


def test_apply_for_scripts(account: Account, admin: Admin, file: Callable[..., Path]) -> None:
    refused = admin(f"policy apply acme sales {file()} --json")
    assert (refused.code, refused.out) == (1, "")
    assert "There is no terminal to ask on: repeat with --yes" in refused.err
    assert there(account).policies == {}
    said = admin(f"policy apply acme sales {file()} --json --yes")
    assert said.value == {
        "workspaceId": "acme",
        "name": "sales",
        "version": 1,
        "policy": RULES,
        "changed": True,
    }


def test_apply_of_a_template(account: Account, admin: Admin) -> None:
    said = admin("policy apply acme default us-telemarketing --yes")
    assert said.code == 0, said.err
    policy = there(account).policies["default"]
    assert policy.windows == (Window(EVERY_DAY, 480, 1260),)
    assert (policy.zone, policy.caps, policy.consent_required) == (RECIPIENT, (Cap(3, 86_400),), True)


def test_the_question_for_default_names_the_calls_without_a_purpose(admin: Admin) -> None:
    said = admin("policy apply acme default own-customers", "n\n")
    assert "every call of acme without a purpose is held to version 1 of default" in said.err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent", "there is no file absent, and the templates are own-customers, us-telemarketing"),
        (".", ". cannot be read: Is a directory"),
        ("/dev/zero", "/dev/zero is larger than 256 KiB: it is no policy"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(account: Account, admin: Admin, path: str, said: str) -> None:
    refused = admin(f"policy apply acme sales {path} --yes")
    assert (refused.code, refused.out, refused.err) == (1, "", f"admin: {said}\n")
    assert there(account).policies == {}


def test_a_file_with_faults_is_refused_before_anything_is_asked_of_the_table(
    account: Account, admin: Admin, file: Callable[..., Path]
) -> None:
    account.sent.clear()
    path = file(zone="Mars", caps=[{"count": 0, "seconds": 86_400}])
    refused = admin(f"policy apply acme sales {path} --yes")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"admin: {path}: zone must be recipient")
    assert refused.err.endswith("; caps.0.count must be a whole number from 1 to 99\n")
    assert not account.sent


@pytest.mark.parametrize("name", ["all", "Sales", "1st", "-a", "_a", "a b", "a.b", "", "ä", "a\n", "a" * 65])
@pytest.mark.parametrize(
    "command", ["show acme {}", "apply acme {} own-customers", "edit acme {}", "remove acme {}"]
)
def test_a_name_that_no_purpose_can_have_is_refused(
    account: Account, admin: Admin, command: str, name: str
) -> None:
    refused = admin(f"policy {command.format(shlex.quote(name))} --yes")
    assert (refused.code, refused.out) == (2, "")
    assert ("scope of a suppression" if name == "all" else "usage: admin") in refused.err
    assert there(account).policies == {}


def test_a_workspace_has_at_most_twenty_policies(
    account: Account, admin: Admin, file: Callable[..., Path]
) -> None:
    put(account, *(Policy(f"p{number}") for number in range(MAXIMUM_POLICIES)))
    refused = admin(f"policy apply acme sales {file()}", "y\n")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "admin: acme has 20 policies and may have 20: remove one first\n"
    # One that is there can be replaced.
    assert admin(f"policy apply acme p3 {file()} --yes").code == 0
    assert there(account).policies["p3"].version == 2
    assert len(there(account).policies) == MAXIMUM_POLICIES


@pytest.mark.parametrize(
    "verb", ["list absent", "show absent a", "apply absent a own-customers", "remove absent a"]
)
def test_a_workspace_that_is_not_there_is_named(admin: Admin, verb: str) -> None:
    refused = admin(f"policy {verb} --yes")
    assert (refused.code, refused.out) == (1, "")
    assert "no workspace absent" in refused.err


# ── at the same time ────────────────────────────────────────────────────────────────────────────────


def meanwhile(monkeypatch: pytest.MonkeyPatch, account: Account, *changes: Callable[[], None]) -> None:
    """Another command changes the workspace after this one has asked, right before it writes."""
    original, left = WorkspaceStore._change, list(changes)

    def change(store: WorkspaceStore, seen: Workspace, changed: Workspace) -> bool:
        if left:
            left.pop(0)()
        return original(store, seen, changed)

    monkeypatch.setattr(WorkspaceStore, "_change", change)


def test_a_change_of_the_same_policy_meanwhile_is_not_overwritten(
    account: Account, admin: Admin, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, SALES)
    others = dataclasses.replace(SALES, version=2, caps=())
    for command in (f"policy apply acme sales {file(min_gap_seconds=60)}", "policy remove acme sales"):
        put(account, SALES)
        with monkeypatch.context() as patched:
            meanwhile(patched, account, lambda: put(account, others))
            refused = admin(f"{command} --yes")
        assert (refused.code, refused.out) == (1, "")
        assert "acme was changed by another command meanwhile; nothing was changed" in refused.err
        assert there(account).policies == {"sales": others}


def test_a_policy_removed_meanwhile_does_not_come_back(
    account: Account, admin: Admin, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, SALES)

    def remove() -> None:
        account.workspaces.update("acme", lambda seen: dataclasses.replace(seen, policies={}))

    meanwhile(monkeypatch, account, remove)
    refused = admin(f"policy apply acme sales {file(min_gap_seconds=60)} --yes")
    assert "changed by another command meanwhile" in refused.err
    assert there(account).policies == {}


def test_changes_of_two_policies_at_once_are_both_made(
    account: Account, admin: Admin, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, SALES)
    meanwhile(monkeypatch, account, lambda: put(account, Policy("default", 5)))
    said = admin(f"policy apply acme sales {file(min_gap_seconds=60)} --yes")
    assert said.code == 0, said.err
    assert {name: policy.version for name, policy in there(account).policies.items()} == {"sales": 2, "default": 5}


def test_the_limit_of_twenty_holds_for_two_at_once(
    account: Account, admin: Admin, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, *(Policy(f"p{number}") for number in range(MAXIMUM_POLICIES - 1)))
    meanwhile(monkeypatch, account, lambda: put(account, Policy("other")))
    refused = admin(f"policy apply acme sales {file()} --yes")
    assert "may have 20" in refused.err
    assert "sales" not in there(account).policies


@pytest.mark.parametrize("command", ["apply acme sales {}", "remove acme sales"])
def test_a_lost_answer_is_no_change_of_another_command(
    account: Account, admin: Admin, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    put(account, SALES)
    original: Any = BaseClient._make_api_call  # type: ignore[attr-defined]
    lost: list[str] = []

    def lossy(self: Any, operation: str, arguments: dict[str, Any]) -> Any:
        answer = original(self, operation, arguments)
        if operation == "UpdateItem" and not lost:
            lost.append(operation)
            raise ReadTimeoutError(endpoint_url="https://dynamodb")
        return answer

    monkeypatch.setattr(BaseClient, "_make_api_call", lossy)
    said = admin(f"policy {command.format(file(min_gap_seconds=60))} --yes")
    assert said.code == 0, said.err
    assert lost
    found = there(account).policies
    assert [policy.version for policy in found.values()] == ([2] if "apply" in command else [])


# ── policy list, show ───────────────────────────────────────────────────────────────────────────────


def test_what_show_prints_can_be_applied(account: Account, admin: Admin, tmp_path: Path) -> None:
    put(account, dataclasses.replace(SALES, version=6))
    said = admin("policy show acme sales")
    assert (said.code, said.err) == (0, "")
    assert "§ 7 UWG" in said.out
    assert said.value == RULES == admin("policy show acme sales --json").value
    path = tmp_path / "shown.json"
    path.write_text(said.out, encoding="utf-8")
    assert "it stays version 6" in admin(f"policy apply acme sales {path}").out
    assert admin(f"policy apply other copied {path} --yes").code == 0
    assert there(account, "other").policies == {"copied": dataclasses.replace(SALES, name="copied")}


def test_show_of_a_policy_that_is_not_there(account: Account, admin: Admin) -> None:
    said = admin("policy show acme sales")
    assert (said.code, said.out) == (1, "")
    assert said.err == "admin: acme has no policy sales; `policy list` shows them\n"


def test_list_is_a_table_for_people(account: Account, admin: Admin) -> None:
    nights = Policy("nights", windows=(Window(frozenset({0, 2}), 1320, 360), Window(frozenset({6}), 0, 1440)))
    capped = Policy("capped", caps=(Cap(1, 90), Cap(3, 86_400), Cap(9, 604_800)), min_gap_seconds=1800)
    put(account, dataclasses.replace(SALES, version=12), nights, capped)
    said = admin("policy list acme")
    lines = [re.split(r" {2,}", line) for line in said.out.splitlines()]
    assert lines == [
        ["POLICY", "VERSION", "ZONE", "WINDOWS", "HOLIDAYS", "CAPS", "GAP", "CONSENT", "CHECKED"],
        *(["capped", "1", "recipient", "any time", "0", "1 in 90 s, 3 in 24 h, 9 in 7 d", "30 min", "-", "-"],),
        *(["nights", "1", "recipient", "mon,wed 22:00-06:00; sun 00:00-24:00", "0", "-", "-", "-", "-"],),
        [
            *("sales", "12", "Europe/Berlin", "mon-fri 09:00-20:00", "2", "2 in 24 h", "1 h", "required"),
            "2026-11-28",
        ],
        [""],
        ["There is no policy `default`: only suppression restricts calls without a purpose."],
    ]


def test_list_for_scripts(account: Account, admin: Admin) -> None:
    put(account, SALES, Policy("default", 3))
    said = admin("policy list acme --json")
    assert [(one["name"], one["version"]) for one in said.value] == [("default", 3), ("sales", 1)]
    assert said.value[1] == {"workspaceId": "acme", "name": "sales", "version": 1, "policy": RULES}
    assert said.err == ""


def test_list_of_a_workspace_without_policies(admin: Admin) -> None:
    assert admin("policy list acme").out == "acme has no policies: only suppression restricts its calls.\n"
    assert admin("policy list acme --json").value == []


def test_the_workspace_shows_the_names_of_its_policies(account: Account, admin: Admin) -> None:
    put(account, SALES, Policy("default"))
    assert "Policies         default, sales\n" in admin("workspace show acme").out
    for command in ("workspace show acme", "workspace update acme --name Acme"):
        assert admin(f"{command} --json").value["policies"] == ["default", "sales"]
    # Other changes keep them.
    assert there(account).policies == {"sales": SALES, "default": Policy("default")}


# ── policy remove ───────────────────────────────────────────────────────────────────────────────────


def test_remove_asks_and_says_what_becomes_of_calls(account: Account, admin: Admin) -> None:
    put(account, SALES, Policy("default"))
    asked = admin("policy remove acme sales", "n\n")
    assert asked.code == 1
    assert "calls of acme with the purpose sales are refused, and those that wait end as not_allowed" in asked.err
    assert set(there(account).policies) == {"sales", "default"}
    said = admin("policy remove acme sales", "y\n")
    assert said.out == "Removed sales. Policies of acme now: default.\n"
    assert there(account).policies == {"default": Policy("default")}

    asked = admin("policy remove acme default", "n\n")
    assert "only suppression restricts calls of acme without a purpose" in asked.err
    said = admin("policy remove acme default --yes --json")
    assert said.value == {"workspaceId": "acme", "removed": "default", "policies": []}
    assert there(account).policies == {}
    assert "has no policy default" in admin("policy remove acme default --yes").err


# ── policy edit ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """$EDITOR is a program that replaces `old` by `new` in the file, and ends with this code."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("VISUAL", raising=False)

    def set_editor(old: str = "", new: str = "", code: int = 0) -> None:
        program = tmp_path / "an editor.py"
        program.write_text(
            "import pathlib, sys\n"
            "path = pathlib.Path(sys.argv[1])\n"
            f"path.write_text(path.read_text(encoding='utf-8').replace({old!r}, {new!r}), encoding='utf-8')\n"
            f"sys.exit({code})\n"
        )
        monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(program)]))

    return set_editor


def kept(said: Said) -> str:
    """The edited file that a refused edit leaves behind."""
    [line] = [line for line in said.err.splitlines() if "The edited policy is kept in" in line]
    return Path(line.rpartition(" kept in ")[2].removesuffix(".")).read_text(encoding="utf-8")


def test_edit_opens_the_file_and_applies_it(
    account: Account, admin: Admin, editor: Callable[..., None], tmp_path: Path
) -> None:
    put(account, SALES)
    editor('"09:00"', '"10:00"')
    said = admin("policy edit acme sales", "y\n")
    assert said.code == 0, said.err
    assert '-      "start": "09:00",' in said.err
    policy = there(account).policies["sales"]
    assert (policy.version, policy.windows[0].start, policy.source) == (2, 600, "§ 7 UWG")
    assert not list(tmp_path.glob("sales-*"))


def test_edit_without_a_change_changes_nothing(
    account: Account, admin: Admin, editor: Callable[..., None], tmp_path: Path
) -> None:
    put(account, SALES)
    editor()
    assert "it stays version 1" in admin("policy edit acme sales", "").out
    assert not list(tmp_path.glob("sales-*"))


@pytest.mark.parametrize(
    ("old", "new", "typed", "said"),
    [
        ('"09:00"', '"9"', "y\n", "windows.0.start must be a time like 08:00"),
        ("{", "", "y\n", "it is not a valid JSON object"),
        ('"09:00"', '"10:00"', "n\n", "nothing was changed"),
    ],
)
def test_an_edit_that_is_not_applied_is_kept(
    account: Account, admin: Admin, editor: Callable[..., None], old: str, new: str, typed: str, said: str
) -> None:
    put(account, SALES)
    editor(old, new)
    refused = admin("policy edit acme sales", typed)
    assert (refused.code, refused.out) == (1, "")
    assert said in refused.err
    assert kept(refused) == json.dumps(RULES, indent=2, ensure_ascii=False).replace(old, new) + "\n"
    assert there(account).policies == {"sales": SALES}


def test_a_change_during_an_edit_is_not_overwritten(
    account: Account, admin: Admin, editor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, SALES)
    editor('"09:00"', '"10:00"')
    others = dataclasses.replace(SALES, version=2, caps=())
    original = admin_account.Keyboard.isatty

    def isatty(self: Any) -> bool:
        # The editor is about to open: the policy was read already.
        put(account, others)
        return original(self)

    monkeypatch.setattr(admin_account.Keyboard, "isatty", isatty)
    refused = admin("policy edit acme sales", "y\n")
    assert "changed by another command meanwhile" in refused.err
    assert '"10:00"' in kept(refused)
    assert there(account).policies == {"sales": others}


def test_an_editor_that_fails_changes_nothing(
    account: Account, admin: Admin, editor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(account, SALES)
    editor('"09:00"', '"10:00"', code=3)
    assert "ended with 3: nothing was changed" in admin("policy edit acme sales", "y\n").err
    monkeypatch.setenv("VISUAL", "/absent/editor")
    assert "the editor '/absent/editor' does not start" in admin("policy edit acme sales", "y\n").err
    monkeypatch.setenv("VISUAL", "vi '")
    assert "does not start" in admin("policy edit acme sales", "y\n").err
    assert there(account).policies == {"sales": SALES}


def test_edit_needs_a_terminal_and_a_policy(
    account: Account, admin: Admin, editor: Callable[..., None], tmp_path: Path
) -> None:
    editor('"09:00"', '"10:00"')
    assert "acme has no policy sales" in admin("policy edit acme sales", "y\n").err
    put(account, SALES)
    refused = admin("policy edit acme sales --yes")
    assert (refused.code, refused.out) == (1, "")
    assert "there is no terminal for an editor" in refused.err
    assert there(account).policies == {"sales": SALES}
    assert not list(tmp_path.glob("sales-*"))
