"""The operator's command line: what it prints, asks, writes and refuses."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSOTokenLoadError,
    UnauthorizedSSOTokenError,
)
from botocore.loaders import create_loader

from admin.command import parser
from shared.limits import LimitStore
from shared.workspaces import Workspace, WorkspaceStore, key_hash
from tests.admin_account import Admin, Keyboard, Said, admin_of, aws_error, stack_of
from tests.mocked_aws import mock_aws

TABLE = "Workspaces"
ROOT = Path(__file__).resolve().parents[2]
LOADER = create_loader()
CREATE = "workspace create acme --agent-name outbound --trunk ST_1 --from +12025550100 --allow +1"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, region, profile or table from the machine that the tests run on."""
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "RINGONCE_STACK", "WORKSPACES_TABLE"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ROLE_ARN"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("RINGONCE_LOCAL_DIR", str(tmp_path))
    # Each command makes a session of its own; reading AWS's service descriptions once is enough.
    monkeypatch.setattr("botocore.session.create_loader", lambda paths: LOADER)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Admin:
    return admin_of(monkeypatch, capsys)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceStore]:
    """An account with one workspaces' table."""
    with mock_aws():
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        client = boto3.client("dynamodb")
        client.create_table(
            TableName=TABLE,
            AttributeDefinitions=[{"AttributeName": "workspaceId", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "workspaceId", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield WorkspaceStore(client, TABLE)


@pytest.fixture
def limits(store: WorkspaceStore) -> LimitStore:
    return LimitStore(boto3.client("dynamodb"), TABLE)


@pytest.fixture
def admin(run: Admin, store: WorkspaceStore, monkeypatch: pytest.MonkeyPatch) -> Admin:
    monkeypatch.setenv("WORKSPACES_TABLE", TABLE)
    return run


@pytest.fixture
def key(admin: Admin) -> str:
    """The key of the workspace `acme`."""
    said = admin(CREATE + " --json")
    assert said.code == 0, said.err
    found = said.value["apiKey"]
    assert isinstance(found, str)
    return found


def there(store: WorkspaceStore, workspace_id: str = "acme") -> Workspace:
    workspace = store.get(workspace_id)
    assert workspace is not None
    return workspace


def made_at(store: WorkspaceStore, key: str) -> str:
    return there(store).key_notes[key_hash(key)]["createdAt"]


def known_of(store: WorkspaceStore, key: str, label: str | None = None) -> dict[str, Any]:
    known = {"label": label, "createdAt": made_at(store, key), "last4": key[-4:]}
    return {"id": key_hash(key)[:8]} | known


def one_line(said: Said) -> str:
    """The one line on stderr of a command that failed, without a traceback and with nothing on stdout."""
    assert (said.code, said.out) == (1, ""), said
    assert said.err.startswith("admin: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    return said.err


# ── workspace create ────────────────────────────────────────────────────────────────────────────────


def test_create_tells_a_person_the_key_the_secret_and_the_next_step(admin: Admin, store: WorkspaceStore) -> None:
    said = admin(CREATE + " --name 'Acme Corp'")
    assert said.code == 0
    keys = set(re.findall(r"rk_[A-Za-z0-9_-]{43}\b", said.out))
    secrets = re.findall(r"whsec_[A-Za-z0-9+/=]{44}", said.out)
    assert len(keys) == len(secrets) == 1
    workspace = there(store)
    assert workspace.api_key_hashes == {key_hash(keys.pop())}
    assert workspace.webhook_secrets == tuple(secrets)
    assert "Name             Acme Corp\n" in said.out
    assert "curl https://YOUR_API/v1/api/call" in said.out
    assert "-H 'x-workspace-id: acme'" in said.out
    assert "-H 'x-api-key: rk_" in said.out
    # A line that is copied unchanged rings no phone.
    assert '"to": "NUMBER"' in said.out
    assert "neither is shown again" in said.out
    assert said.err == ""


def test_create_writes_what_it_was_told(admin: Admin, store: WorkspaceStore) -> None:
    line = (
        "workspace create acme --name Acme --agent-name outbound --trunk ST_1 "
        "--from +12025550100 --from +12025550101 --allow +1 --allow +44 --agent sales --agent support "
        "--allow-special-numbers --max-concurrent-calls 1000 --calls-per-minute 60000 --calls-per-second 100 "
        "--json"
    )
    value = admin(line).value
    workspace = there(store)
    assert workspace == Workspace(
        workspace_id="acme",
        name="Acme",
        agent_name="outbound",
        sip_trunk_id="ST_1",
        from_numbers=("+12025550100", "+12025550101"),
        api_key_hashes=frozenset({key_hash(value["apiKey"])}),
        agents=frozenset({"sales", "support"}),
        allowed_calling_codes=frozenset({"+1", "+44"}),
        allow_special_numbers=True,
        max_concurrent_calls=1000,
        calls_per_minute=60000,
        calls_per_second=100,
        webhook_secrets=(value["webhookSecret"],),
        created_at=workspace.created_at,
        version=1,
        key_notes=workspace.key_notes,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", workspace.created_at)
    assert len(base64.b64decode(value["webhookSecret"].removeprefix("whsec_"))) == 32


def test_a_number_of_the_trunk_is_kept_in_the_form_that_requests_are_compared_in(
    admin: Admin, store: WorkspaceStore
) -> None:
    admin("workspace create acme --agent-name outbound --trunk ST_1 --from +4903012345678")
    assert there(store).from_numbers == ("+493012345678",)
    refused = admin("workspace update acme --from +11876555012")
    assert refused.code == 2
    assert "must not have a 0 or 1 after +1" in refused.err


def test_create_for_scripts_prints_one_json_value_and_talks_on_stderr(admin: Admin) -> None:
    said = admin(CREATE + " --json")
    assert set(said.value) == {"workspace", "apiKey", "webhookSecret"}
    assert said.value["workspace"]["apiKeyIds"] == [key_hash(said.value["apiKey"])[:8]]
    assert "curl" in said.err


def test_create_never_overwrites(admin: Admin, key: str, store: WorkspaceStore) -> None:
    before = there(store)
    assert "exists already" in one_line(admin(CREATE + " --yes"))
    assert there(store) == before


def test_create_without_countries_says_that_it_may_call_no_number(admin: Admin, store: WorkspaceStore) -> None:
    said = admin("workspace create acme --agent-name outbound --trunk ST_1")
    assert "may call no number until countries are named" in said.out
    assert there(store).allowed_calling_codes == frozenset()
    assert not there(store).allow_special_numbers


def test_create_without_a_key_says_in_plain_words_that_it_is_open(admin: Admin, store: WorkspaceStore) -> None:
    said = admin(CREATE + " --no-key")
    assert "OPEN. Anyone who knows the id acme can place calls: no key is required." in said.out
    assert "IAM or in a private network" in said.out
    assert "rk_" not in said.out
    assert there(store).open
    assert there(store).api_key_hashes == frozenset()


def test_create_without_a_key_says_so_to_scripts_too(admin: Admin) -> None:
    said = admin(CREATE + " --no-key --json")
    assert said.value["apiKey"] is None
    assert said.value["workspace"]["open"]
    assert "OPEN. Anyone who knows the id" in said.err


@pytest.mark.parametrize(
    "words",
    [
        "workspace create bad/id --agent-name a --trunk ST_1",
        "workspace create acme#slots --agent-name a --trunk ST_1",
        f"workspace create {'w' * 65} --agent-name a --trunk ST_1",
        "workspace create acme --trunk ST_1",
        "workspace create acme --agent-name a",
        "workspace create acme --agent-name a --trunk TR_1",
        "workspace create acme --agent-name '' --trunk ST_1",
        "workspace create acme --agent-name 'a\tb' --trunk ST_1",
        f"{CREATE} --allow 1",
        f"{CREATE} --allow +0",
        f"{CREATE} --allow +12345678",
        f"{CREATE} --allow +",
        f"{CREATE} --allow +\u0661",
        f"{CREATE} --from 12025550100",
        f"{CREATE} --from '+1 202 555 0100'",
        f"{CREATE} --from +123456",
        f"{CREATE} --from +1234567890123456",
        f"{CREATE} --agent 'a b'",
        f"{CREATE} --agent {'a' * 129}",
        f"{CREATE} --max-concurrent-calls 0",
        f"{CREATE} --max-concurrent-calls 1001",
        f"{CREATE} --calls-per-minute 0",
        f"{CREATE} --calls-per-minute 60001",
        f"{CREATE} --calls-per-second 0",
        f"{CREATE} --calls-per-second 101",
        f"{CREATE} --calls-per-second 1.5",
        f"{CREATE} --calls-per-second \u00b2",
        f"{CREATE} --name 'two\nlines'",
        f"{CREATE} --max 5",
        "workspace update acme",
        "workspace update acme --any-agent --agent a",
        "workspace show",
        "workspace list acme",
        "workspace",
        "key revoke acme",
        "key revoke acme XYZ",
        "switch off",
        "",
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    run: Admin, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    failing(monkeypatch, aws_error("Sent"))
    said = run(f"--table {TABLE} --region eu-west-1 {words}")
    assert (said.code, said.out) == (2, "")
    assert "usage: admin" in said.err


# ── workspace show, list ────────────────────────────────────────────────────────────────────────────


def test_show_tells_everything_but_the_secrets(
    admin: Admin, key: str, store: WorkspaceStore, limits: LimitStore
) -> None:
    limits.take_slot("acme", "call-1", 10)
    said = admin("workspace show acme")
    for line in (
        "Workspace        acme",
        "State            active",
        "Access           1 key",
        f"API keys         {key_hash(key)[:8]}, made {made_at(store, key)}, ends in {key[-4:]}",
        "May call         +1",
        "Special numbers  refused",
        "From             +12025550100",
        "Agents           any",
        "Policies         none: only suppression restricts its calls",
        "Webhook secrets  1",
        "Calls under way  1 of 10",
    ):
        assert line in said.out.splitlines()
    for hidden in (key, key_hash(key), *there(store).webhook_secrets):
        assert hidden not in said.out


def test_show_for_scripts(admin: Admin, key: str, store: WorkspaceStore, limits: LimitStore) -> None:
    limits.take_slot("acme", "call-1", 10)
    said = admin("workspace show acme --json")
    assert said.value == {
        "workspaceId": "acme",
        "name": "acme",
        "agentName": "outbound",
        "sipTrunkId": "ST_1",
        "fromNumbers": ["+12025550100"],
        "open": False,
        "agents": [],
        "allowedCallingCodes": ["+1"],
        "allowSpecialNumbers": False,
        "maxConcurrentCalls": 10,
        "callsPerMinute": 60,
        "callsPerSecond": 1,
        "disabled": False,
        "createdAt": there(store).created_at,
        "version": 1,
        "apiKeyIds": [key_hash(key)[:8]],
        "apiKeys": [known_of(store, key)],
        "webhookSecretCount": 1,
        "policies": [],
        "activeCalls": ["call-1"],
    }
    assert said.err == ""


def test_list_is_a_table_for_people(admin: Admin, key: str, store: WorkspaceStore, limits: LimitStore) -> None:
    admin("workspace create zoo --name 'A longer name' --agent-name a --trunk ST_2 --no-key")
    admin("workspace disable zoo --yes")
    limits.pause(1)
    assert admin("workspace list").out == (
        "WORKSPACE  NAME           STATE     ACCESS                 MAY CALL  AT A TIME  A MINUTE\n"
        "acme       acme           active    1 key                  +1        10         60\n"
        "zoo        A longer name  disabled  open: no key required  none      10         60\n"
    )


def test_list_for_scripts(admin: Admin, key: str) -> None:
    value = admin("workspace list --json").value
    assert [workspace["workspaceId"] for workspace in value] == ["acme"]


def test_list_of_an_empty_table(admin: Admin) -> None:
    assert admin("workspace list").out == f"No workspaces yet: table {TABLE} in eu-west-1.\n"
    assert admin("workspace list --json").value == []


@pytest.mark.parametrize(
    "line",
    [
        *("workspace show", "workspace update --allow +44", "workspace disable", "workspace enable"),
        *("key create", "key list", "key revoke 01234567", "webhook-secret rotate", "webhook-secret drop-old"),
    ],
)
def test_an_unknown_workspace_is_named(admin: Admin, store: WorkspaceStore, line: str) -> None:
    group, verb, *rest = line.split()
    said = admin(" ".join([group, verb, "unknown", *rest]) + " --yes")
    assert f"no workspace unknown in table {TABLE} in eu-west-1" in one_line(said)
    assert store.all() == []


# ── workspace update, disable, enable ───────────────────────────────────────────────────────────────


def test_update_changes_what_is_named_and_leaves_the_rest(admin: Admin, key: str, store: WorkspaceStore) -> None:
    before = there(store)
    line = (
        "workspace update acme --name New --agent-name other --trunk ST_2 --from +12025550199 --allow +44 "
        "--disallow +1 --agent sales --allow-special-numbers --max-concurrent-calls 20 --calls-per-minute 90 "
        "--calls-per-second 5"
    )
    said = admin(line)
    assert said.code == 0
    assert "May call         +44" in said.out.splitlines()
    assert there(store) == dataclasses.replace(
        before,
        name="New",
        agent_name="other",
        sip_trunk_id="ST_2",
        from_numbers=("+12025550100", "+12025550199"),
        allowed_calling_codes=frozenset({"+44"}),
        agents=frozenset({"sales"}),
        allow_special_numbers=True,
        max_concurrent_calls=20,
        calls_per_minute=90,
        calls_per_second=5,
        version=2,
    )


def test_update_takes_back_what_was_allowed(admin: Admin, key: str, store: WorkspaceStore) -> None:
    admin("workspace update acme --allow-special-numbers --from +12025550101")
    said = admin("workspace update acme --no-allow-special-numbers --remove-from +12025550100 --json")
    assert said.value["allowSpecialNumbers"] is False
    assert said.value["fromNumbers"] == ["+12025550101"]


def test_update_that_takes_the_last_country_says_so(admin: Admin, key: str) -> None:
    assert "may call no number" in admin("workspace update acme --disallow +1").out


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--disallow +4", "+4 is no allowed calling code of this workspace; it has +1"),
        ("--remove-from +12025550101", "+12025550101 is no number of this workspace; it has +12025550100"),
        ("--remove-agent sales", "sales is no agent id of this workspace; it has none"),
    ],
)
def test_update_cannot_take_away_what_is_not_there(
    admin: Admin, key: str, store: WorkspaceStore, option: str, what: str
) -> None:
    before = there(store)
    assert what in one_line(admin(f"workspace update acme --name New {option}"))
    assert there(store) == before


def test_update_does_not_lift_the_limit_to_agents_by_accident(
    admin: Admin, key: str, store: WorkspaceStore
) -> None:
    admin("workspace update acme --agent sales")
    assert "--any-agent" in one_line(admin("workspace update acme --remove-agent sales --yes"))
    assert there(store).agents == {"sales"}
    assert "nothing was changed" in admin("workspace update acme --any-agent", typed="n\n").err
    assert there(store).agents == {"sales"}
    assert admin("workspace update acme --any-agent", typed="y\n").code == 0
    assert there(store).agents == frozenset()


def test_two_updates_at_the_same_time_both_hold(
    admin: Admin, key: str, store: WorkspaceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = WorkspaceStore(boto3.client("dynamodb"), TABLE)
    change_item = WorkspaceStore._change
    turns = 0

    def overtaken(self: WorkspaceStore, seen: Workspace, changed: Workspace) -> bool:
        nonlocal turns
        turns += 1
        if turns == 1:
            # Between this command's read and its write another operator's command completes.
            others.update("acme", lambda there: dataclasses.replace(there, name="Theirs"))
        return change_item(self, seen, changed)

    monkeypatch.setattr(WorkspaceStore, "_change", overtaken)
    assert admin("workspace update acme --allow +44").code == 0
    assert there(store).name == "Theirs"
    assert there(store).allowed_calling_codes == {"+1", "+44"}
    assert there(store).version == 3


def test_disable_asks_and_enable_does_not(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin("workspace disable acme", typed="y\n")
    assert (said.code, said.out) == (0, "acme is disabled.\n")
    assert "its waiting calls fail" in said.err
    assert said.err.endswith("Disable it? [y/N] ")
    assert there(store).disabled
    assert admin("workspace enable acme").out == "acme is enabled.\n"
    assert not there(store).disabled


# ── questions ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("typed", ["n\n", "\n", "no\n", "yess\n", ""])
def test_whatever_is_not_yes_changes_nothing(admin: Admin, key: str, store: WorkspaceStore, typed: str) -> None:
    before = there(store)
    said = admin("workspace disable acme", typed=typed)
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("admin: nothing was changed\n")
    assert there(store) == before


@pytest.mark.parametrize("typed", ["y\n", "Y\n", "yes\n", " YES \n"])
def test_yes_is_yes(admin: Admin, key: str, store: WorkspaceStore, typed: str) -> None:
    assert admin("workspace disable acme", typed=typed).code == 0
    assert there(store).disabled


def test_without_a_terminal_nothing_is_destroyed_unless_yes_is_said(
    admin: Admin, key: str, store: WorkspaceStore
) -> None:
    before = there(store)
    assert "repeat with --yes" in one_line(admin("workspace disable acme"))
    assert there(store) == before
    said = admin("workspace disable acme --yes")
    assert (said.code, said.err) == (0, "")
    assert there(store).disabled


def test_a_question_stays_out_of_the_json(admin: Admin, key: str) -> None:
    said = admin("workspace disable acme --json", typed="y\n")
    assert said.value["disabled"]
    assert "[y/N]" in said.err


def test_an_interrupt_at_the_question_changes_nothing(
    admin: Admin, key: str, store: WorkspaceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Keyboard) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Keyboard, "readline", interrupted)
    assert admin("workspace disable acme", typed="").code == 130
    assert not there(store).disabled


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_live_side_by_side_and_are_stored_as_hashes(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin("key create acme")
    second, _, rest = said.out.partition("\n")
    assert re.fullmatch(r"rk_[A-Za-z0-9_-]{43}", second)
    assert f"Key {key_hash(second)[:8]} of acme, one of 2." in rest
    third = admin("key create acme --json").value["apiKey"]
    assert there(store).api_key_hashes == {key_hash(key), key_hash(second), key_hash(third)}


def test_key_create_for_scripts_prints_the_key_and_its_id(admin: Admin, key: str) -> None:
    said = admin("key create acme --json")
    made = key_hash(said.value["apiKey"])[:8]
    assert said.value["keyId"] == made
    assert said.value["apiKeyIds"] == sorted([key_hash(key)[:8], made])


def test_key_list_shows_ids_and_no_key(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin("key list acme")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines == [
        ["KEY", "LABEL", "CREATED", "ENDS", "IN", "SHA-256"],
        [key_hash(key)[:8], "-", made_at(store, key), key[-4:], key_hash(key)],
    ]
    assert key not in said.out
    assert admin("key list acme --json").value == {
        "workspaceId": "acme",
        "apiKeyIds": [key_hash(key)[:8]],
        "apiKeys": [known_of(store, key)],
        "open": False,
    }


def test_a_key_has_a_label_a_time_and_its_end(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin("key create acme --label 'billing, blue' --json")
    second = said.value["apiKey"]
    assert said.value["label"] == "billing, blue"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made_at(store, second))
    listed = admin("key list acme --json").value["apiKeys"]
    both = [known_of(store, key), known_of(store, second, "billing, blue")]
    assert listed == sorted(both, key=lambda known: str(known["id"]))
    (line,) = [line for line in admin("key list acme").out.splitlines() if "billing, blue" in line]
    assert line.split() == [
        *(key_hash(second)[:8], "billing,", "blue", made_at(store, second), second[-4:], key_hash(second)),
    ]
    shown = admin("workspace show acme").out
    assert f"{key_hash(second)[:8]} (billing, blue), made {made_at(store, second)}, ends in {second[-4:]}" in shown
    # Of the key itself no more than its end is kept.
    item = boto3.client("dynamodb").get_item(TableName=TABLE, Key={"workspaceId": {"S": "acme"}})["Item"]
    assert second[-5:] not in json.dumps(item, default=sorted)


@pytest.mark.parametrize("label", ["''", "' a'", "'a\tb'", "x" * 129])
def test_a_label_that_is_none_is_refused(admin: Admin, key: str, store: WorkspaceStore, label: str) -> None:
    before = there(store)
    assert admin(f"key create acme --label {label}").code == 2
    assert there(store) == before


def test_a_key_of_an_older_version_is_shown_without_what_is_not_known(
    admin: Admin, key: str, store: WorkspaceStore
) -> None:
    """The hashes are where they were, so requests with it go on, here and after going back to that version."""
    boto3.client("dynamodb").update_item(
        TableName=TABLE, Key={"workspaceId": {"S": "acme"}}, UpdateExpression="REMOVE apiKeys"
    )
    assert admin("key list acme").out.splitlines()[1].split() == [key_hash(key)[:8], *"---", key_hash(key)]
    assert f"API keys         {key_hash(key)[:8]}" in admin("workspace show acme").out.splitlines()
    assert admin("key list acme --json").value["apiKeys"] == [
        {"id": key_hash(key)[:8], "label": None, "createdAt": None, "last4": None}
    ]
    second = admin("key create acme --label new --json").value["apiKey"]
    assert there(store).api_key_hashes == {key_hash(key), key_hash(second)}
    assert set(there(store).key_notes) == {key_hash(second)}


def test_a_revoked_keys_note_goes_with_it(admin: Admin, key: str, store: WorkspaceStore) -> None:
    second = admin("key create acme --label second --json").value["apiKey"]
    # As an older version leaves it, which revokes a key and knows nothing of its note.
    store.update("acme", lambda seen: dataclasses.replace(seen, api_key_hashes=frozenset({key_hash(second)})))
    assert admin("key list acme --json").value["apiKeys"] == [known_of(store, second, "second")]
    third = admin("key create acme --json").value["apiKey"]
    assert set(there(store).key_notes) == {key_hash(second), key_hash(third)}
    admin(f"key revoke acme {key_hash(second)[:8]} --yes")
    assert set(there(store).key_notes) == {key_hash(third)}
    admin(f"key revoke acme {key_hash(third)[:8]} --yes")
    item = boto3.client("dynamodb").get_item(TableName=TABLE, Key={"workspaceId": {"S": "acme"}})["Item"]
    assert "apiKeys" not in item
    assert "apiKeyHashes" not in item


def test_a_revoked_key_is_gone_and_the_other_stays(admin: Admin, key: str, store: WorkspaceStore) -> None:
    second = admin("key create acme --json").value
    said = admin(f"key revoke acme {key_hash(key)[:8]}", typed="y\n")
    assert said.out == f"Revoked {key_hash(key)[:8]}. Keys of acme now: {second['keyId']}.\n"
    assert there(store).api_key_hashes == {key_hash(second["apiKey"])}


def test_revoke_that_is_not_confirmed_leaves_the_key(admin: Admin, key: str, store: WorkspaceStore) -> None:
    assert admin(f"key revoke acme {key_hash(key)[:8]}", typed="n\n").code == 1
    assert there(store).api_key_hashes == {key_hash(key)}


def test_revoking_the_last_key_does_not_open_the_workspace(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin(f"key revoke acme {key_hash(key)[:8]}", typed="y\n")
    assert said.code == 0
    assert "is the last key" in said.err
    assert "every request of acme is refused" in said.err
    assert "none, all is refused" in said.out
    assert (there(store).api_key_hashes, there(store).open) == (frozenset(), False)
    assert "every request is refused" in admin("key list acme").out
    assert "closed: no key" in admin("workspace list").out


def test_revoking_the_last_key_opens_only_when_asked_and_confirmed(
    admin: Admin, key: str, store: WorkspaceStore
) -> None:
    line = f"key revoke acme {key_hash(key)[:8]} --open"
    assert admin(line, typed="n\n").code == 1
    assert there(store).api_key_hashes == {key_hash(key)}
    said = admin(line, typed="y\n")
    assert "Anyone who knows the id acme can place calls" in said.err
    assert (there(store).api_key_hashes, there(store).open) == (frozenset(), True)
    assert "open: a request needs only its id" in admin("key list acme").out


def test_revoke_opens_nothing_while_other_keys_remain(admin: Admin, key: str, store: WorkspaceStore) -> None:
    admin("key create acme")
    said = admin(f"key revoke acme {key_hash(key)[:8]} --open --yes")
    assert "--open goes with the last key only, and acme has 1 more" in one_line(said)
    assert len(there(store).api_key_hashes) == 2


def test_revoke_of_an_unknown_key(admin: Admin, key: str, store: WorkspaceStore) -> None:
    unknown = "0" * 8 if not key_hash(key).startswith("0" * 8) else "1" * 8
    assert f"acme has no key {unknown}" in one_line(admin(f"key revoke acme {unknown} --yes"))
    assert there(store).api_key_hashes == {key_hash(key)}


def test_revoke_by_an_id_of_two_keys_asks_for_more_of_it(admin: Admin, key: str, store: WorkspaceStore) -> None:
    twins = frozenset({"0123456789" + "a" * 54, "0123456789" + "b" * 54})
    store.update("acme", lambda seen: dataclasses.replace(seen, api_key_hashes=twins))
    assert "2 keys begin with 01234567" in one_line(admin("key revoke acme 01234567 --yes"))
    assert admin("key revoke acme 0123456789a --yes").code == 0
    assert there(store).api_key_hashes == {"0123456789" + "b" * 54}


def test_a_key_that_became_the_last_meanwhile_is_not_revoked_as_one_of_two(
    admin: Admin, key: str, store: WorkspaceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin("key create acme")

    def typed_late(self: Keyboard) -> str:
        store.update("acme", lambda seen: dataclasses.replace(seen, api_key_hashes=frozenset({key_hash(key)})))
        return "y\n"

    monkeypatch.setattr(Keyboard, "readline", typed_late)
    said = admin(f"key revoke acme {key_hash(key)[:8]}", typed="")
    assert said.code == 1
    assert "acme was changed by another command meanwhile" in said.err
    assert there(store).api_key_hashes == {key_hash(key)}


def test_the_first_key_of_an_open_workspace_closes_it_after_a_question(
    admin: Admin, store: WorkspaceStore
) -> None:
    admin(CREATE + " --no-key")
    assert "repeat with --yes" in one_line(admin("key create acme"))
    assert there(store).open
    said = admin("key create acme", typed="y\n")
    assert "requests without one are refused" in said.err
    assert not there(store).open
    assert len(there(store).api_key_hashes) == 1


def test_update_opens_only_a_workspace_without_keys(admin: Admin, key: str, store: WorkspaceStore) -> None:
    assert "acme has 1 key" in one_line(admin("workspace update acme --open --yes"))
    admin(f"key revoke acme {key_hash(key)[:8]} --yes")
    assert admin("workspace update acme --open", typed="n\n").code == 1
    assert not there(store).open
    said = admin("workspace update acme --open", typed="y\n")
    assert "OPEN. Anyone who knows the id acme" in said.out
    assert there(store).open
    assert "It has no key, so every request is refused" in admin("workspace update acme --no-open").out
    assert not there(store).open


# ── webhook secrets ─────────────────────────────────────────────────────────────────────────────────


def test_rotate_signs_with_the_new_and_the_old_secret(admin: Admin, key: str, store: WorkspaceStore) -> None:
    (old,) = there(store).webhook_secrets
    said = admin("webhook-secret rotate acme")
    new, _, rest = said.out.partition("\n")
    assert there(store).webhook_secrets == (new, old)
    assert new != old
    assert len(base64.b64decode(new.removeprefix("whsec_"), validate=True)) == 32
    assert "webhook-secret drop-old acme" in rest
    assert old not in said.out
    assert "2, a rotation is under way" in admin("workspace show acme").out


def test_rotate_for_scripts(admin: Admin, key: str, store: WorkspaceStore) -> None:
    said = admin("webhook-secret rotate acme --json")
    assert said.value == {
        "workspaceId": "acme",
        "webhookSecret": there(store).webhook_secrets[0],
        "webhookSecretCount": 2,
    }


def test_a_second_rotation_keeps_the_newest_and_asks_before_it_drops_the_oldest(
    admin: Admin, key: str, store: WorkspaceStore
) -> None:
    admin("webhook-secret rotate acme")
    newest, oldest = there(store).webhook_secrets
    assert "1 secret of acme will no longer sign" in admin("webhook-secret rotate acme", typed="n\n").err
    assert there(store).webhook_secrets == (newest, oldest)
    third = admin("webhook-secret rotate acme --yes --json").value["webhookSecret"]
    assert there(store).webhook_secrets == (third, newest)


def test_rotate_can_drop_all_old_secrets_at_once(admin: Admin, key: str, store: WorkspaceStore) -> None:
    assert "repeat with --yes" in one_line(admin("webhook-secret rotate acme --drop-old"))
    new = admin("webhook-secret rotate acme --drop-old", typed="y\n").out.partition("\n")[0]
    assert there(store).webhook_secrets == (new,)


def test_drop_old_ends_a_rotation(admin: Admin, key: str, store: WorkspaceStore) -> None:
    new = admin("webhook-secret rotate acme --json").value["webhookSecret"]
    assert admin("webhook-secret drop-old acme", typed="n\n").code == 1
    assert len(there(store).webhook_secrets) == 2
    assert admin("webhook-secret drop-old acme", typed="y\n").out == "1 secret dropped; acme signs with 1.\n"
    assert there(store).webhook_secrets == (new,)
    # Nothing is lost, so nothing is asked.
    assert admin("webhook-secret drop-old acme --json").value == {"workspaceId": "acme", "webhookSecretCount": 1}


def test_of_two_rotations_at_the_same_time_one_is_refused(
    admin: Admin, key: str, store: WorkspaceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = WorkspaceStore.update
    theirs: list[str] = []

    def overtaken(self: WorkspaceStore, workspace_id: str, change: Callable[[Workspace], Workspace]) -> Any:
        if not theirs:
            theirs.append("whsec_theirs")
            update(store, "acme", lambda seen: dataclasses.replace(seen, webhook_secrets=("whsec_theirs",)))
        return update(self, workspace_id, change)

    monkeypatch.setattr(WorkspaceStore, "update", overtaken)
    assert "acme was changed by another command meanwhile" in one_line(admin("webhook-secret rotate acme"))
    # The secret that the other operator was shown still signs.
    assert there(store).webhook_secrets == ("whsec_theirs",)


# ── the switch ──────────────────────────────────────────────────────────────────────────────────────


def test_the_switch_pauses_and_resumes_without_a_question(admin: Admin, limits: LimitStore) -> None:
    assert admin("switch status").out == "Dialling is on.\n"
    said = admin("switch pause")
    assert said.code == 0
    assert said.out.startswith("Dialling is paused since 2")
    assert limits.switch().paused_at_ms is not None
    paused = admin("switch status --json").value
    assert paused["paused"] is True
    assert admin("switch pause --json").value == paused
    assert admin("switch resume --json").value == {"paused": False, "pausedAt": None, "numbersMarked": None}
    assert limits.switch().paused_at_ms is None


# ── which table ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("store")
def test_a_stack_names_its_table_and_its_api(run: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_of(monkeypatch, "ringonce", {"WorkspacesTableName": TABLE, "ApiUrl": "https://api.example"})
    said = run(f"--stack ringonce {CREATE}")
    assert "curl https://api.example/v1/api/call" in said.out


@pytest.mark.usefixtures("store")
def test_options_stand_before_or_after_the_command(run: Admin) -> None:
    before, after = run(f"--table {TABLE} --json workspace list"), run(f"workspace list --table {TABLE} --json")
    assert before == after == Said(0, "[]\n", "")


@pytest.mark.usefixtures("store")
def test_the_environment_names_the_place_when_no_option_does(run: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_of(monkeypatch, "ringonce", {"WorkspacesTableName": TABLE})
    monkeypatch.setenv("RINGONCE_STACK", "ringonce")
    assert run("workspace list --json").value == []
    monkeypatch.setenv("WORKSPACES_TABLE", "Elsewhere")
    assert "there is no table Elsewhere" in one_line(run("workspace list"))
    assert run(f"workspace list --table {TABLE} --json").value == []
    assert run("workspace list --stack ringonce --json").value == []


def test_without_any_place_it_says_what_it_needs(run: Admin) -> None:
    said = run("workspace list")
    assert said.code == 2
    for needed in ("--stack NAME", "--table NAME", "--local", "RINGONCE_STACK", "WORKSPACES_TABLE"):
        assert needed in said.err.splitlines()[-1]


def test_two_places_are_one_too_many(run: Admin) -> None:
    said = run("--table a workspace list --local")
    assert said.code == 2
    assert "name one of --table, --stack and --local" in said.err


def test_the_local_stack_has_no_region(run: Admin) -> None:
    assert run("--local --region eu-west-1 workspace list").code == 2


@pytest.mark.parametrize(
    ("line", "done"),
    [
        (CREATE.replace(" --allow +1", ""), "workspace update acme --allow +1 --allow +44"),
        (CREATE + " --no-key", None),
        ("webhook-secret rotate acme", "webhook-secret drop-old acme"),
        ("switch pause", "switch resume"),
    ],
)
def test_what_is_to_be_typed_next_can_be_copied(
    run: Admin, store: WorkspaceStore, line: str, done: str | None
) -> None:
    place = f"--table {TABLE} --region eu-west-1"
    if not line.startswith("workspace create"):
        assert run(f"{place} {CREATE}").code == 0
    told = re.findall(r"\.venv/bin/(admin [^`\n]*)", run(f"{place} {line}").out)
    assert told == ([f"admin {place} {done}"] if done else [])
    for command in told:
        said = run(command.removeprefix("admin ") + " --yes")
        assert said.code == 0, said.err


@pytest.mark.usefixtures("store")
def test_a_stack_that_is_not_there(run: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_of(monkeypatch, "other", {})
    assert "no stack ringonce in eu-west-1" in one_line(run("--stack ringonce workspace list"))


@pytest.mark.usefixtures("store")
def test_a_stack_of_something_else(run: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    stack_of(monkeypatch, "other", {"Anything": "else"})
    assert "has no output WorkspacesTableName" in one_line(run("--stack other workspace list"))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("line", ["workspace list", "workspace show acme", CREATE, "switch pause"])
def test_a_table_that_is_not_there(run: Admin, line: str) -> None:
    said = run(f"--table Elsewhere {line}")
    assert "there is no table Elsewhere in eu-west-1 in the account of these credentials" in one_line(said)


@pytest.mark.usefixtures("store")
def test_the_region_may_be_given(run: Admin) -> None:
    said = run(f"--table {TABLE} --region us-west-2 workspace list")
    assert f"there is no table {TABLE} in us-west-2" in one_line(said)


# ── the local stack ─────────────────────────────────────────────────────────────────────────────────


def test_local_without_a_stack_says_how_to_start_one(run: Admin) -> None:
    assert "no local stack is running: start it with `make run`" in one_line(run("--local workspace list"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"awsEndpointUrl": "x", "resources": 5}'])
def test_local_with_a_file_that_says_nothing(run: Admin, tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    assert "stack.json cannot be read" in one_line(run("--local workspace list"))


def test_local_works_on_the_stack_that_is_running(
    run: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {
        "awsEndpointUrl": "http://127.0.0.1:4566",
        "apiUrl": "http://127.0.0.1:8000",
        "resources": {"WorkspacesTable": TABLE},
    }
    (tmp_path / "stack.json").write_text(json.dumps(info))
    sent: list[tuple[str, str, Any, str]] = []

    def answer(self: BaseClient, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        credentials = self._request_signer._credentials  # type: ignore[attr-defined]
        sent.append((operation, parameters["TableName"], self.meta.endpoint_url, credentials.access_key))
        return {}

    monkeypatch.setattr(BaseClient, "_make_api_call", answer)
    said = run(f"--local {CREATE}")
    assert sent == [("PutItem", TABLE, "http://127.0.0.1:4566", "test")]
    assert "curl http://127.0.0.1:8000/v1/api/call" in said.out
    # A number of the stand-in's, so that the line works unchanged.
    assert '"to": "+15550000000"' in said.out


def test_local_with_a_stack_that_has_died(run: Admin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"awsEndpointUrl": "http://127.0.0.1:4566", "resources": {"WorkspacesTable": TABLE}}
    (tmp_path / "stack.json").write_text(json.dumps(info))
    failing(monkeypatch, EndpointConnectionError(endpoint_url="http://127.0.0.1:4566"))
    assert "in the local stack at http://127.0.0.1:4566" in one_line(run("--local workspace list"))


# ── errors of AWS ───────────────────────────────────────────────────────────────────────────────────


def failing(monkeypatch: pytest.MonkeyPatch, error: ClientError | BotoCoreError) -> None:
    """Every request to AWS ends like this."""

    def fail(self: BaseClient, operation: str, parameters: dict[str, Any]) -> None:
        raise error

    monkeypatch.setattr(BaseClient, "_make_api_call", fail)


LINES = (
    *("workspace list", "workspace show acme", CREATE, "key create acme", "switch status", "switch pause"),
    *("webhook-secret rotate acme", "workspace update acme --allow +44", "workspace list --stack ringonce"),
)


def with_place(line: str) -> str:
    return line if "--stack" in line else f"{line} --table {TABLE}"


@pytest.mark.parametrize("line", LINES)
def test_without_credentials_it_says_what_it_needs(run: Admin, line: str) -> None:
    said = one_line(run(with_place(line) + " --region eu-west-1"))
    assert "no AWS credentials" in said
    assert "AWS_PROFILE" in said
    # Nothing was sent, so nothing can have been written.
    assert "before you repeat" not in said


@pytest.mark.parametrize("line", LINES)
def test_without_a_region_it_says_what_it_needs(run: Admin, line: str) -> None:
    said = one_line(run(with_place(line)))
    assert "no AWS region: pass --region" in said


def test_an_unknown_profile_is_named(run: Admin) -> None:
    said = one_line(run(f"--table {TABLE} --profile absent workspace list"))
    assert "absent" in said


@pytest.mark.parametrize("line", LINES)
def test_access_denied_says_what_is_needed(run: Admin, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    failing(
        monkeypatch, aws_error("AccessDeniedException", "User: x is not authorized\nto perform: dynamodb:GetItem")
    )
    said = one_line(run(with_place(line) + " --region eu-west-1"))
    assert "GetItem, PutItem, UpdateItem and Scan on the table" in said
    assert "User: x is not authorized to perform: dynamodb:GetItem" in said


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException", "ExpiredToken"])
def test_credentials_that_aws_does_not_accept(run: Admin, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    failing(monkeypatch, aws_error(code))
    said = one_line(run(f"--table {TABLE} --region eu-west-1 workspace list"))
    assert f"AWS does not accept these credentials ({code})" in said


@pytest.mark.parametrize("error", [SSOTokenLoadError(error_msg="no token"), UnauthorizedSSOTokenError()])
def test_a_login_that_has_ended(run: Admin, monkeypatch: pytest.MonkeyPatch, error: BotoCoreError) -> None:
    failing(monkeypatch, error)
    assert "aws sso login" in one_line(run(f"--table {TABLE} --region eu-west-1 workspace list"))


def test_any_other_refusal_is_one_line_too(run: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, aws_error("ProvisionedThroughputExceededException", "Too fast"))
    said = one_line(run(f"--table {TABLE} --region eu-west-1 workspace list"))
    assert "ProvisionedThroughputExceededException. Too fast" in said


@pytest.mark.parametrize(
    "error", [ReadTimeoutError(endpoint_url="https://dynamodb"), aws_error("InternalServerError", "", 500)]
)
def test_a_change_whose_outcome_is_unknown_says_so(
    run: Admin, monkeypatch: pytest.MonkeyPatch, error: ClientError | BotoCoreError
) -> None:
    failing(monkeypatch, error)
    said = one_line(run(f"--table {TABLE} --region eu-west-1 switch pause"))
    assert "look whether it was made before you repeat it" in said


def test_an_item_that_is_damaged_is_one_line_too(admin: Admin, store: WorkspaceStore) -> None:
    boto3.client("dynamodb").put_item(TableName=TABLE, Item={"workspaceId": {"S": "half"}})
    assert "workspace half has no name, agentName, sipTrunkId" in one_line(admin("workspace show half"))


# ── what it says of itself ──────────────────────────────────────────────────────────────────────────


def commands_of(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, ...]]:
    """Every command of the parser, in words."""
    groups = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words
    for choices in groups:
        for word, made in choices.items():
            yield from commands_of(made, *words, word)


@pytest.mark.parametrize("words", list(commands_of(parser())), ids=" ".join)
def test_help_has_plain_headings(run: Admin, words: tuple[str, ...]) -> None:
    said = run(" ".join(words) + " --help")
    assert said.code == 0
    headings = [line for line in said.out.splitlines() if re.fullmatch(r"\S.*:", line) and line.islower()]
    known = ["what it acts on:", "how it is done:", "which stack or table:", "how it answers and asks:"]
    assert headings == [line for line in known if line in headings]
    assert headings[-3:] == known[1:]


# ── how it is started ───────────────────────────────────────────────────────────────────────────────


INSTALLED = str(Path(sys.executable).with_name("admin"))


@pytest.mark.parametrize(
    "start", [(INSTALLED,), (sys.executable, "-m", "admin"), (sys.executable, str(ROOT / "admin"))]
)
def test_it_starts_as_a_command_a_module_and_a_folder_from_anywhere(start: Sequence[str], tmp_path: Path) -> None:
    done = subprocess.run([*start, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: admin ")


def test_without_its_packages_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "admin", "workspace", "list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "is missing: run `make setup`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_can_be_imported_where_posix_is_absent() -> None:
    """As on Windows. Python's own modules and the packages choose by the platform, and are imported before."""
    code = """
import importlib, os, pathlib, signal, sys
names = [f"admin.{path.stem}" for path in pathlib.Path("admin").glob("*.py")]
for name in names:
    importlib.import_module(name)
for name, module in list(sys.modules.items()):
    if (getattr(module, "__file__", None) or "").startswith(os.getcwd() + os.sep):
        del sys.modules[name]
for name in ("fcntl", "grp", "pwd", "resource", "syslog", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "kill", "killpg", "setsid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGQUIT"):
    delattr(signal, name)
for name in names:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.startswith("local.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "functions")])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "local.stack" not in done.stdout.split()
