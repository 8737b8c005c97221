"""JSON is parsed strictly and its text kept, in linear time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import RequestRefusedError
from shared.raw_json import MAXIMUM_DEPTH, MAXIMUM_DIGITS, ascii_compact, holds_long_number, members

FUNCTIONS = Path(__file__).parents[2] / "functions"

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


SPACES = st.sampled_from(["", " ", "\n\t", "\r\n  "])


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1, "\t"]), SPACES, SPACES)
def test_every_member_is_kept_as_it_was_written(
    value: dict[str, Any], escaped: bool, indent: Any, before: str, behind: str
) -> None:
    separators = (f"{before},{behind}", f"{before}:{behind}")
    text = json.dumps(value, ensure_ascii=escaped, indent=indent, separators=separators)
    found = members(f"{before}{text}{behind}".encode())
    assert {key: member for key, (member, _) in found.items()} == value
    assert list(found) == list(value)
    for key, (_, written) in found.items():
        assert written in text
        assert json.loads(written) == value[key]


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_a_header_of_json_holds_the_same_in_printable_ascii(
    value: dict[str, Any], escaped: bool, indent: Any
) -> None:
    header = ascii_compact(json.dumps(value, ensure_ascii=escaped, indent=indent))
    assert json.loads(header) == value
    assert header.isascii()
    assert header.isprintable()


@given(st.binary() | TEXTS.map(str.encode) | OBJECTS.map(lambda value: json.dumps(value).encode()[:-1]))
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    try:
        found = members(body)
    except RequestRefusedError as exc:
        refused = exc
    else:
        assert json.loads(body) == {key: value for key, (value, _) in found.items()}
        return
    assert (refused.status, refused.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        """b'{"a":"' + b'\\\\"' * 500_000""",
        """b'{' + b'"\\\\' * 500_000""",
        """b'{"a":' + b'"' * 1_000_000""",
        """b'{"a":' + b'[' * 1_000_000""",
        """b'{' + b','.join(b'"%d":1' % n for n in range(100_000)) + b',"99999":1}'""",
        """b'{' + b' ' * 1_000_000""",
    ],
)
def test_a_megabyte_made_to_be_slow_is_refused_at_once(body: str) -> None:
    """In a process of its own, as a regular expression that backtracks cannot be interrupted."""
    code = (
        "from shared.raw_json import members\nfrom shared.errors import RequestRefusedError\n"
        f"try:\n    members({body})\nexcept RequestRefusedError as refused:\n    print(refused.code)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=FUNCTIONS, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "invalid_json\n"


@pytest.mark.parametrize(
    "written",
    ["{digits}", "-{digits}", "[1, [{digits}]]", '{{"a": {{"b": {digits}}}}}', "0.{digits}", "1e{digits}"],
)
def test_a_number_has_as_many_digits_as_every_reader_reads(written: str) -> None:
    assert not holds_long_number(written.format(digits="1" * MAXIMUM_DIGITS))
    assert holds_long_number(written.format(digits="1" * (MAXIMUM_DIGITS + 1)))
    assert sys.int_info.default_max_str_digits == MAXIMUM_DIGITS, "what Python reads unless it is told otherwise"
    assert not holds_long_number('"' + "1" * (MAXIMUM_DIGITS + 1) + '"'), "a string of digits is no number"


def test_an_object_has_as_many_levels_as_are_allowed() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert list(members(nested(MAXIMUM_DEPTH))) == ["a"]
    with pytest.raises(RequestRefusedError, match="more than 32 levels"):
        members(nested(MAXIMUM_DEPTH + 1))


@pytest.mark.parametrize("written", ['"\\ud800"', '"\\udc00\\ud800"', '{"k": ["\\ud83d"]}', '{"\\udfff": 1}'])
def test_half_of_a_surrogate_pair_is_refused_in_a_value_and_in_a_key(written: str) -> None:
    """It could be stored and sent nowhere."""
    with pytest.raises(RequestRefusedError, match="a lone surrogate"):
        members(f'{{"a": {written}}}'.encode())
    with pytest.raises(RequestRefusedError, match="a lone surrogate"):
        members(b'{"\\ud800": 1}')
    assert members(b'{"a": "\\ud83d\\ude00"}')["a"][0] == "\U0001f600"
