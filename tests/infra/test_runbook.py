"""The commands of docs/operations.md: AWS's checked against its own models of its services, the operator's against
their real parser, and the shell's variables against what the page defines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from botocore.exceptions import UnknownServiceError
from samtranslator.yaml_helper import yaml_parse

from admin.command import parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
OUTPUTS = yaml_parse((ROOT / "template.yaml").read_text())["Outputs"]
# Of the command line itself, for every service.
OF_ALL = {"query", "output", "region"}
# Commands that the AWS CLI makes of several requests: their options, from its reference.
OWN = {
    ("cloudformation", "deploy"): {"template-file", "stack-name", "capabilities", "parameter-overrides"},
    ("logs", "tail"): {"follow", "since", "filter-pattern"},
}


def pieces_of(page: str) -> list[str]:
    """What a shell is to read, in the order of the page: blocks, and what is between backquotes, in one line each;
    continued lines are joined.
    """
    found = re.finditer(r"(?s)^ *```(\w*)\n(.*?)^ *```|(?<!`)`([^`]+)`(?!`)", page, re.MULTILINE)
    pieces = [
        match[2] if match[2] is not None else " ".join(match[3].split())
        for match in found
        if match[2] is None or match[1] == "sh"
    ]
    return [re.sub(r"\\\n\s*", "", piece) for piece in pieces]


def commands(page: str) -> Iterator[list[str]]:
    """Every `aws ...`, in words."""
    for piece in pieces_of(page):
        for line in piece.splitlines():
            for found in re.finditer(r"(?:^|[\s(])(aws [a-z0-9]+ [a-z].*)", line):
                # What a command within the command says is one word.
                whole = re.sub(r"\$\(output (\w+)\)", r"$\1", found[1])
                words = shlex.split(re.split(r" \| | \|\| | && |; ?done", whole)[0].replace("$(", "").rstrip(")"))
                yield words


COMMANDS = list(commands(PAGE))


def fault(words: list[str]) -> str | None:
    """What AWS's models do not know of a command; None when they know all of it."""
    _, service, operation, *rest = words
    options = {word.removeprefix("--").partition("=")[0] for word in rest if word.startswith("--")} - OF_ALL
    if (service, operation) in OWN:
        return str(options - OWN[service, operation]) if options - OWN[service, operation] else None
    session = botocore.session.get_session()
    try:
        model = session.get_service_model(service)
    except UnknownServiceError:
        return f"no service {service}"
    if operation == "wait":
        waiters = session.get_waiter_model(service)
        names = {xform_name(name, "-"): name for name in waiters.waiter_names}
        if rest[0] not in names:
            return f"no waiter {rest[0]}"
        operation = xform_name(waiters.get_waiter(names[rest[0]]).operation, "-")
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    if operation not in operations:
        return f"no operation {operation}"
    shape = model.operation_model(operations[operation]).input_shape
    members = shape.members if shape else {}
    known = {xform_name(name, "-"): member for name, member in members.items()}
    known |= {f"no-{name}": member for name, member in known.items() if member.type_name == "boolean"}
    required = {xform_name(name, "-") for name in (shape.required_members if shape else ())}
    if unknown := options - known.keys():
        return f"no option {unknown}"
    # In running text a command may be named without all of its options.
    return f"lacks {required - options}" if options and required - options else None


def test_the_page_has_commands() -> None:
    said = {(words[1], words[2]) for words in COMMANDS}
    assert said >= {
        ("cloudformation", "create-change-set"),
        ("cloudformation", "delete-stack"),
        ("dynamodb", "list-backups"),
        ("dynamodb", "restore-table-from-backup"),
        ("dynamodb", "restore-table-to-point-in-time"),
        ("dynamodb", "update-table"),
        ("secretsmanager", "create-secret"),
    }


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words[1:3]) for words in COMMANDS])
def test_a_command_is_one_that_aws_has(words: list[str]) -> None:
    assert fault(words) is None, shlex.join(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "aws dynamodb restore-table --target-table-name t",
        "aws dynamodb restore-table-from-backup --target-table-name t --backup-name b",
        "aws dynamodb restore-table-from-backup --target-table-name t",
        "aws cloudformation wait stack-gone --stack-name s",
        "aws cloudform delete-stack --stack-name s",
    ],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    assert fault(wrong.split()) is not None


# ── what a shell needs ──────────────────────────────────────────────────────────────────────────────

# Options that name a thing of AWS's. A value in capitals would be a name that the reader has to think of.
NAMES = r"--(?:[a-z-]+-)?(?:table-name|queue-url|stack-name|function-name|secret-id|arn|name-prefix)[ =]+(\S+)"


def variables(page: str) -> Iterator[tuple[str, bool]]:
    """Each variable as it is used in the order of the page, and whether it is defined by then."""
    defined = {"1", "@"}  # Of a function.
    for line in "\n".join(pieces_of(page)).splitlines():
        defined |= set(re.findall(r"(?:^|[;\s(])([A-Za-z_]\w*)=", line))
        defined |= set(re.findall(r"\bread -r (\w+)", line))
        for name in re.findall(r"\$\{?(\w+|@)", line):
            yield name, name in defined


def undefined(page: str) -> list[str]:
    return [name for name, known in variables(page) if not known]


def test_every_variable_is_defined_above_its_use() -> None:
    assert {name for name, _ in variables(PAGE)} >= {"STACK", "CALLS_TABLE", "WORKSPACES_TABLE", "BACKUP", "item"}
    assert undefined(PAGE) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("```sh\naws sqs purge-queue --queue-url $QUEUE\n```", ["QUEUE"]),
        ("```sh\necho $A\nA=1\n```\n```sh\necho ${B}\n```\n```sh\nB=1\n```", ["A", "B"]),
        ("Say `aws s3 ls $BUCKET`.", ["BUCKET"]),
        ("```sh\nA=$B\n```", ["B"]),
        ("```yaml\na: $A\n```", []),
        ("```sh\nA=1; echo $A; x | while read -r one; do echo $one; done\n```", []),
    ],
)
def test_a_variable_that_is_not_defined_is_found(text: str, missing: list[str]) -> None:
    assert undefined(text) == missing


def test_what_is_looked_up_in_the_stacks_outputs_is_one() -> None:
    asked = set(re.findall(r"\$\(output (\w+)\)", PAGE))
    assert asked >= {"CallsTableName", "WorkspacesTableName", "DialDeadLetterQueueUrl", "ReconcileCallsName"}
    assert asked <= OUTPUTS.keys()
    assert all(output["Description"] for output in OUTPUTS.values())


def nameless(page: str) -> list[str]:
    """Names of AWS's things in capitals, which the page explains nowhere."""
    return [
        value
        for piece in pieces_of(page)
        for value in re.findall(NAMES, piece)
        if re.fullmatch(r"[A-Z_]+|\.\.\.", value.strip("'\""))
    ]


def test_no_name_is_left_to_the_reader() -> None:
    assert nameless(PAGE) == []
    assert nameless("`aws sqs receive-message --queue-url DEAD_LETTERS`") == ["DEAD_LETTERS"]
    assert nameless("`aws lambda invoke --function-name ... x`") == ["..."]


# ── the operator's command ──────────────────────────────────────────────────────────────────────────


ANY_CALL = "f9e8d7c6b5a4f3e2d1c0b9a8"


def admin_lines(page: str) -> Iterator[str]:
    """Every `admin ...`, without what other commands it is put together with. What stands for a command's words (a
    variable, a command within) is a call's id.
    """
    lines = [line for piece in pieces_of(page) for line in piece.splitlines()]
    while lines:
        line, within = lines.pop(0), []
        while inner := re.search(r"\$\(([^()]*)\)", line):
            within.append(inner[1])
            line = line.replace(inner[0], ANY_CALL)
        lines = within + lines
        for found in re.finditer(r"(?:^|\s)(?:\.venv/bin/)?admin (-?-?[a-z].*)", line):
            words = re.split(r"\s(?:\||\|\||&&|#|>)\s", found[1])[0].strip()
            # The function that the page defines passes its own words on.
            if "$@" not in words:
                yield re.sub(r"\$\w+", ANY_CALL, words)


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the parser says to a line; None when it takes it."""
    try:
        parser().parse_args(shlex.split(line))
    except SystemExit as exit:
        said = capsys.readouterr()
        return said.err if exit.code else None
    return None


@pytest.mark.parametrize("name", ["operations.md", "policies.md", "webhooks.md"])
def test_every_line_of_the_operators_is_one_that_the_command_takes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = list(admin_lines((ROOT / "docs" / name).read_text()))
    assert lines
    assert {line: said for line in lines if (said := refused(line, capsys)) is not None} == {}


def test_the_page_has_a_line_for_what_is_done_at_night() -> None:
    said = {" ".join(line.split()[:2]) for line in admin_lines(PAGE)}
    assert said >= {
        *("call show", "call list", "call cancel", "deliveries list", "deliveries redrive", "switch pause"),
        *("switch resume", "workspace show", "workspace disable", "key create", "key revoke", "restore seal"),
        *("suppression add", "suppression import", "suppression rebuild", "suppression mark"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "`admin call find +12025550123`",
        "`admin key revoke demo ID`",
        "`admin workspace\nshow`",
        "```sh\nadmin call cancel $(admin workspace show --json | jq -r x)\n```",
        "```sh\nadmin deliveries redrive --sinse 2h\n```",
        "```sh\n.venv/bin/admin --stack x call show\n```",
    ],
)
def test_a_wrong_line_is_found(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [line for line in admin_lines(wrong) if refused(line, capsys) is not None]
