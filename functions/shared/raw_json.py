"""JSON as text: read strictly, kept as it was written.

What a client sends as `metadata` must come back the same, big integers, 1.0 against 1, key order, emoji and
all. So the text of each top-level member is kept and put into every answer as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from shared.errors import RequestRefused

MAXIMUM_DEPTH = 32
# Python reads no integer of more digits: taken here, it would crash the agent and the receivers that read it.
# It bounds every row of digits, also that of a fraction and of an exponent.
MAXIMUM_DIGITS = 4300
LONG_NUMBER = f"must not hold a number of more than {MAXIMUM_DIGITS:,} digits"

# The members of a JSON object: key → (value, its text as written).
Members = dict[str, tuple[Any, str]]

_SPACE = re.compile(r"[ \t\n\r]*")
# Possessive, and the closing quote is not required: a text of 64 KiB is read once, whatever it holds.
_STRING = r'"(?:[^"\\]++|\\.)*+"?'
_STRINGS = re.compile(_STRING, re.DOTALL)
_DIGITS = re.compile(r"[0-9]++")
_STRING_OR_SPACE = re.compile(_STRING + r"|[ \t\n\r]+", re.DOTALL)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice([key for key, _ in pairs])
    return dict(pairs)


def _refuse_twice(keys: list[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {json.dumps(key[:128])} stands twice in one object")
        seen.add(key)


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int | float:
    # Too long for Python or not: no rule asks more of such a number than that it is too large.
    return int(text) if len(text) < 400 else float(text)


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)


def members(body: bytes) -> Members:
    """The members of the JSON object that the body is.

    Raises RequestRefused (400, `invalid_json`) for anything but one JSON object in UTF-8: duplicate keys, NaN,
    lone surrogates, more than 32 levels, text behind the end.
    """
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        pairs = list(_scan(text))
        _refuse_twice([key for key, _, _ in pairs])
        # An escaped lone surrogate (\ud800) is the only thing that decodes but cannot be encoded.
        for key, value, _ in pairs:
            json.dumps([key, value], ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise RequestRefused(400, "invalid_json", f"The body is not a valid JSON object: {_said(exc)}") from exc
    return {key: (value, written) for key, value, written in pairs}


def json_text(fields: Members, name: str) -> str | None:
    """A member's text as written; None when it is absent or null."""
    value, text = fields.get(name, (None, ""))
    return None if value is None else text


def holds_long_number(text: str) -> bool:
    """Whether the JSON text holds, at any depth, a number that not every reader reads."""
    return any(len(digits) > MAXIMUM_DIGITS for digits in _DIGITS.findall(_STRINGS.sub("", text)))


def ascii_compact(text: str) -> str:
    """The same JSON without white space between tokens and in ASCII only, as an HTTP header needs it."""

    def replace(match: re.Match[str]) -> str:
        token = match.group()
        if not token.startswith('"'):
            return ""
        return "".join(_escaped(char) for char in token)

    return _STRING_OR_SPACE.sub(replace, text)


def _escaped(char: str) -> str:
    # JSON allows a plain DEL, HTTP headers do not (RFC 9110, section 5.5), and json.dumps leaves it.
    return "\\u007f" if char == "\x7f" else char if char.isascii() else json.dumps(char)[1:-1]


def _scan(text: str) -> Iterator[tuple[str, Any, str]]:
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError("expected an object")
    at = _skip(text, at + 1)
    if text[at : at + 1] != "}":
        while True:
            if text[at : at + 1] != '"':
                raise ValueError(f"expected a key at character {at}")
            key, at = _decoder.raw_decode(text, at)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise ValueError(f"expected a colon at character {at}")
            start = _skip(text, at + 1)
            try:
                value, at = _decoder.raw_decode(text, start)
            except StopIteration as exc:
                raise ValueError(f"expected a value at character {start}") from exc
            yield key, value, text[start:at]
            at = _skip(text, at)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
    if text[at : at + 1] != "}":
        raise ValueError(f"expected a comma or a closing brace at character {at}")
    if _skip(text, at + 1) != len(text):
        raise ValueError("something stands behind the end of the object")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _check_depth(text: str) -> None:
    depth = 0
    for char in _STRINGS.sub("", text):
        if char in "{[":
            depth += 1
            if depth > MAXIMUM_DEPTH:
                raise ValueError(f"more than {MAXIMUM_DEPTH} levels")
        elif char in "}]":
            depth -= 1


def _said(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(exc, UnicodeEncodeError):
        return "a string holds half of a surrogate pair"
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg.removesuffix(' at').rstrip(': ')} at character {exc.pos}"
    return str(exc)
