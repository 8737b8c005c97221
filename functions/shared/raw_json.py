"""Strict JSON parsing that keeps the text of each top-level member.

A client's `metadata` must come back unchanged (big integers, 1.0 and 1, key order, emoji), so its text is inserted
into every answer as it was received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from shared.errors import RequestRefusedError

MAXIMUM_DEPTH = 32
# Python parses no integer of more digits: agents and receivers in Python would fail on a longer one. The limit
# applies to every run of digits, also in a fraction or an exponent.
MAXIMUM_DIGITS = 4300
LONG_NUMBER = f"must not hold a number of more than {MAXIMUM_DIGITS:,} digits"

# The members of a JSON object: key → (value, its text as written).
Members = dict[str, tuple[Any, str]]

_SPACE = re.compile(r"[ \t\n\r]*")
# Possessive and with an optional closing quote: linear time for any text.
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
            raise ValueError(f"duplicate key {json.dumps(key[:128])}")
        seen.add(key)


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int | float:
    # Such a long number is out of range in every rule, so its exact value is not needed.
    return int(text) if len(text) < 400 else float(text)


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)


def body_members(body: bytes, maximum_bytes: int) -> Members:
    """The members of the JSON object that a request's body is. maximum_bytes: whole KiB.

    Raises RequestRefusedError: 413 when it is too large, 400 when it is none.
    """
    if len(body) > maximum_bytes:
        raise RequestRefusedError(413, "too_large", f"The body may have at most {maximum_bytes // 1024:,} KiB")
    if not body.strip():
        raise RequestRefusedError(400, "invalid_json", "The body is empty; a JSON object is expected")
    return members(body)


def members(body: bytes) -> Members:
    """Parses a body that is one JSON object.

    Raises RequestRefusedError (400, `invalid_json`) for anything but one JSON object in UTF-8: duplicate keys,
    NaN, lone surrogates, more than 32 levels, data after the object."""
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        pairs = list(_scan(text))
        _refuse_twice([key for key, _, _ in pairs])
        # An escaped lone surrogate (\ud800) is the only thing that decodes but cannot be encoded.
        for key, value, _ in pairs:
            json.dumps([key, value], ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise RequestRefusedError(
            400, "invalid_json", f"The body is not a valid JSON object: {_said(exc)}"
        ) from exc
    return {key: (value, written) for key, value, written in pairs}


def json_text(fields: Members, name: str) -> str | None:
    """A member's text as written; None when it is absent or null."""
    value, text = fields.get(name, (None, ""))
    return None if value is None else text


def holds_long_number(text: str) -> bool:
    """Whether the JSON text contains, at any depth, a number of more than MAXIMUM_DIGITS digits."""
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
    # JSON allows an unescaped DEL, HTTP headers do not (RFC 9110, section 5.5), and json.dumps keeps it.
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
        raise ValueError("unexpected data after the object")


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
        return "a string contains a lone surrogate"
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg.removesuffix(' at').rstrip(': ')} at character {exc.pos}"
    return str(exc)
