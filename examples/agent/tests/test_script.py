"""Filling a script with a call's variables: no braces are left in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from script import Script, fill, load

VARIABLES = {"firstName": "Zoë", "open": 2, "price": 12.5, "member": True, "guest": False, "nickname": None}


@pytest.mark.parametrize(
    ("text", "said", "missing"),
    [
        ("Hello {firstName}, hello.", "Hello Zoë, hello.", set()),
        ("Hello { firstName }.", "Hello Zoë.", set()),
        ("{open} of {price}: {member} {guest}", "2 of 12.5: yes no", set()),
        ("Hello {lastName}, hello.", "Hello, hello.", {"lastName"}),
        ("{lastName}, hello.", "hello.", {"lastName"}),
        ("Hello {nickname} {x y}!", "Hello!", {"nickname", "x y"}),
        ("...is {firstName} there?", "...is Zoë there?", set()),
        ("", "", set()),
    ],
)
def test_names_are_filled_and_missing_ones_left_out(text: str, said: str, missing: set[str]) -> None:
    for field in ("instructions", "greeting", "voicemail"):
        filled, lacking = fill(Script(**{"instructions": "", "greeting": "", field: text}), VARIABLES)
        assert (getattr(filled, field), lacking) == (said, missing)
        assert "{" not in getattr(filled, field)


def test_a_value_is_never_read_as_a_script() -> None:
    filled, missing = fill(Script("", "Hello {a}"), {"a": "{b}", "b": "x"})
    assert (filled.greeting, missing) == ("Hello {b}", set())


def test_the_example_script_works_without_variables() -> None:
    script, missing = fill(load(Path(__file__).parent.parent / "script.toml"), {})
    assert missing == {"firstName", "lastName", "address", "Zipcode"}
    assert "{" not in script.instructions + script.greeting + script.voicemail
    assert script.greeting.startswith("Hello, this is")


def test_a_script_with_an_unknown_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "script.toml").write_text('instructions = ""\ngreeting = ""\nfarewell = ""\n')
    with pytest.raises(TypeError, match="farewell"):
        load(tmp_path / "script.toml")
