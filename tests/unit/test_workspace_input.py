"""The model of what an operator says of a workspace, and the refusals of the command line, which name the flag."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from pydantic import ValidationError

from admin.command import parser
from admin.workspace_input import WorkspaceInput

CREATE = "workspace create acme --agent-name outbound --trunk ST_1"
# Flag, field, whether it may be repeated, a value that is refused, and the refusal.
REFUSED: list[tuple[str, str, bool, str, str]] = [
    ("--name", "name", False, "two\nlines", "must be 1 to 128 printable characters, without space around them"),
    ("--name", "name", False, "", "must be 1 to 128 printable characters, without space around them"),
    (
        "--agent-name",
        "agent_name",
        False,
        " a",
        "must be 1 to 128 printable characters, without space around them",
    ),
    ("--trunk", "trunk", False, "ST_{a}", "'ST_{a}' is not the id of a LiveKit SIP trunk: ST_..."),
    ("--trunk", "trunk", False, "ST_a\n", "'ST_a\\n' is not the id of a LiveKit SIP trunk: ST_..."),
    (
        *("--from", "from_numbers", True, "12025550100"),
        "'12025550100' is not a phone number in E.164: + and 7 to 15 digits, the first not 0",
    ),
    (
        *("--from", "from_numbers", True, "+10123456789"),
        "'+10123456789': must not have a 0 or 1 after +1: no area code begins so, "
        "and carriers take it for a prefix",
    ),
    (
        *("--allow", "allow", True, "+\u0661"),
        "'+\u0661' is not a calling code: + and 1 to 7 digits, the first not 0",
    ),
    ("--agent", "agents", True, "a b", "'a b' is not an agent id: 1 to 128 of A-Z, a-z, 0-9, _ and -"),
    *(
        (f"--{name}", name.replace("-", "_"), False, text, f"{text!r} is not a whole number from 1 to {most}")
        for name, most in (("max-concurrent-calls", 1000), ("calls-per-minute", 60000), ("calls-per-second", 100))
        for text in ("0", str(most + 1), "-1", "1.0", " 1", "1_0", "\u00b2", "9" * 5000, "")
    ),
]


def given(**changes: Any) -> dict[str, Any]:
    """The arguments of a command, as argparse hands them over."""
    namespace = vars(parser().parse_args(shlex.split(CREATE)))
    return {name: namespace[name] for name in WorkspaceInput.model_fields} | changes


@pytest.mark.parametrize(("flag", "field", "repeated", "text", "refusal"), REFUSED)
def test_a_refusal_names_the_flag(
    capsys: pytest.CaptureFixture[str], flag: str, field: str, repeated: bool, text: str, refusal: str
) -> None:
    for command in (CREATE, "workspace update acme"):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*shlex.split(command), f"{flag}={text}"])
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(f": error: argument {flag}: {refusal}\n")


@pytest.mark.parametrize(("flag", "field", "repeated", "text", "refusal"), REFUSED)
def test_the_model_refuses_the_same_and_names_the_field(
    flag: str, field: str, repeated: bool, text: str, refusal: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        WorkspaceInput.model_validate(given(**{field: [text] if repeated else text}))
    [error] = refused.value.errors()
    assert error["loc"] == ((field, 0) if repeated else (field,))
    assert error["msg"] == f"Value error, {refusal}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 1),
        ("trunk", b"ST_1"),
        ("allow", "+1"),
        ("agents", None),
        ("allow_special_numbers", "yes"),
        ("allow_special_numbers", 1),
        ("calls_per_minute", True),
        ("calls_per_minute", 5.0),
        ("calls_per_minute", 0),
        ("workspace", None),
    ],
)
def test_no_other_type_is_taken_for_a_value(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        WorkspaceInput.model_validate(given(**{field: value}))
    assert {error["loc"][0] for error in refused.value.errors()} == {field}


def test_what_is_given_arrives() -> None:
    words = f"{CREATE} --from +440201234567 --allow +1 --agent a --calls-per-minute 007 --allow-special-numbers"
    wanted = WorkspaceInput.model_validate(parser().parse_args(shlex.split(words)))
    # A trunk prefix is removed, as it is from a request's `from`.
    assert wanted.from_numbers == ["+44201234567"]
    assert (wanted.allow, wanted.agents) == (["+1"], ["a"])
    assert (wanted.calls_per_minute, wanted.calls_per_second) == (7, None)
    assert wanted.allow_special_numbers is True
    assert WorkspaceInput.model_validate(wanted.model_dump()) == wanted
