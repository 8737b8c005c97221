"""The commands of docs/operations.md, checked against AWS's own models of its services."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name
from botocore.exceptions import UnknownServiceError

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
# Of the command line itself, for every service.
OF_ALL = {"query", "output", "region"}
# Commands that the AWS CLI makes of several requests: their options, from its reference.
OWN = {
    ("cloudformation", "deploy"): {"template-file", "stack-name", "capabilities", "parameter-overrides"},
    ("logs", "tail"): {"follow", "since", "filter-pattern"},
}


def commands(page: str) -> Iterator[list[str]]:
    """Every `aws ...`, in words: in blocks and between backquotes, with continued lines joined."""
    pieces = re.findall(r"^ *```sh\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    pieces += [
        " ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"(?s)```.*?```", "", page))
    ]
    for piece in pieces:
        for line in piece.replace("\\\n", " ").splitlines():
            for found in re.finditer(r"(?:^|[\s(])(aws [a-z0-9]+ [a-z].*)", line):
                words = shlex.split(
                    re.split(r" \| | \|\| | && |; ?done", found[1])[0].replace("$(", "").rstrip(")")
                )
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
