"""The file that `admin suppression import` reads: CSV or JSON lines, and what each line asks for.

CSV: the first line names the columns, of which `number` is required, `scope`, `reason` and `expires_at` are known,
and others are ignored; separated by commas, semicolons or tabs. A file of one column needs no name. JSON lines: an
object in each line, with the same names. UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from admin.terminal import AdminError
from shared import phone_number
from shared.clock import now_ms
from shared.numbers import ALL, MAXIMUM_REASON
from shared.phone_number import canonical
from shared.policies import NAME
from shared.timestamps import rfc3339_ms

NUMBER, SCOPE, REASON, EXPIRES_AT = "number", "scope", "reason", "expires_at"
KNOWN = (NUMBER, SCOPE, REASON, EXPIRES_AT)
DELIMITERS = ",;\t"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What stands in the file, before it is understood. line: where it begins. wrong: why it cannot be read."""

    line: int
    values: dict[str, str]
    wrong: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """An entry that is understood. number: canonical. until_ms: None for ever."""

    entry: Entry
    number: str
    scope: str
    reason: str
    until_ms: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where an entry says nothing. country: whose national spelling numbers without a plus have."""

    scope: str
    reason: str
    country: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells one file from another. lines: as an editor counts them."""

    size: int
    sha256: str
    lines: int


def fingerprint(path: Path) -> Fingerprint:
    """Raises AdminError when the file cannot be read."""
    digest, size, lines, last = hashlib.sha256(), 0, 0, b"\n"
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
                lines += block.count(b"\n")
                last = block[-1:]
    except OSError as exc:
        raise AdminError(f"{path} cannot be read: {exc.strerror}") from exc
    return Fingerprint(size, digest.hexdigest(), lines + (last != b"\n"))


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────


def entries(path: Path) -> tuple[Iterator[Entry], list[str]]:
    """The entries in their order, and the names of ignored columns. Both raise AdminError."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as stream:
        first = next((line for line in stream if line.strip()), "")
    if first.lstrip().startswith("["):
        raise AdminError(f"{path} is a JSON array; needed is an object in each line (`jq -c '.[]'` makes them)")
    if first.lstrip().startswith("{"):
        return _json_lines(path), []
    if not first:
        raise AdminError(f"{path} is empty")
    delimiter, header = _header(first)
    names = _names(header)
    filled = [name for name in names if name]
    if len(filled) == 1:
        # A word above the numbers is a name, whichever.
        named = not any(character.isdigit() for character in filled[0])
        return _csv_lines(path, delimiter, [NUMBER if name else "" for name in names], skip_header=named), []
    if names.count(NUMBER) != 1 or len(set(filled)) != len(filled):
        raise AdminError(
            f"the first line of {path} must name the columns, each once, one of them {NUMBER}; it has: "
            + ", ".join(repr(name.strip()) for name in header)
        )
    return _csv_lines(path, delimiter, names, skip_header=True), [name for name in filled if name not in KNOWN]


def _header(line: str) -> tuple[str, list[str]]:
    """The delimiter, and the cells of the first line: with the one that makes a column `number`, or else the most
    frequent.
    """
    # The end of the line is no delimiter: a tab or a semicolon there would make a second, empty column.
    often = sorted(DELIMITERS, key=line.strip().count, reverse=True)
    cells = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in often}
    best = next((delimiter for delimiter in often if NUMBER in _names(cells[delimiter])), often[0])
    return best, cells[best]


def _names(header: list[str]) -> list[str]:
    names = ["_".join(name.strip().lower().replace("-", " ").split()) for name in header]
    return [EXPIRES_AT if name == "expiresat" else name for name in names]


def _csv_lines(path: Path, delimiter: str, names: list[str], *, skip_header: bool) -> Iterator[Entry]:
    with reading(path), path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        begins = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                raise AdminError(f"line {begins} of {path} cannot be read as CSV: {exc}") from exc
            line, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if skip_header:
                skip_header = False
                continue
            values = {name: cell for name, cell in zip(names, cells, strict=False) if name in KNOWN}
            wrong = None
            if any(cell.strip() for cell in cells[len(names) :]):
                wrong = f"has {len(cells)} cells, the first line {len(names)}"
            elif reader.line_num > line:
                wrong = "a cell goes over several lines: is a quotation mark not closed?"
            yield Entry(line, values, wrong)


def _json_lines(path: Path) -> Iterator[Entry]:
    with reading(path), path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if text.strip():
                yield _json_entry(line, text)


def _json_entry(line: int, text: str) -> Entry:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return Entry(line, {NUMBER: text.strip()}, "is not a JSON object")
    named = {EXPIRES_AT if name.lower() == "expiresat" else name.lower(): value for name, value in found.items()}
    values, wrong = {}, None
    for name in KNOWN:
        value = named.get(name)
        if value is not None and not isinstance(value, str):
            wrong = f"{name} must be text, in quotation marks"
        values[name] = "" if value is None else str(value)
    return Entry(line, values, wrong)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into an AdminError."""
    try:
        yield
    except UnicodeDecodeError as exc:
        raise AdminError(f"{path} is not UTF-8: save it in this encoding (CSV UTF-8)") from exc
    except OSError as exc:
        raise AdminError(f"{path} cannot be read: {exc.strerror}") from exc


# ── what they ask for ───────────────────────────────────────────────────────────────────────────────


def understood(entry: Entry, defaults: Defaults) -> Wish:
    """Raises ValueError with what is wrong, by the column's name."""
    if entry.wrong is not None:
        raise ValueError(entry.wrong)
    given = {name: entry.values.get(name, "").strip() for name in KNOWN}
    scope, reason, until_ms = given[SCOPE] or defaults.scope, given[REASON] or defaults.reason, None
    number = number_of(given[NUMBER], defaults.country)
    check_scope(scope)
    check_reason(reason)
    if given[EXPIRES_AT]:
        try:
            until_ms = rfc3339_ms(given[EXPIRES_AT])
        except ValueError as exc:
            raise ValueError(f"{EXPIRES_AT} {exc}") from exc
        if until_ms <= now_ms():
            raise ValueError(f"{EXPIRES_AT} has passed already")
    return Wish(entry, number, scope, reason, until_ms)


def check_scope(scope: str) -> str:
    if scope != ALL and not NAME.fullmatch(scope):
        raise ValueError(
            f"{SCOPE} must be {ALL} or the name of a policy: 1 to 64 of a-z, 0-9, _ and -, first a letter"
        )
    return scope


def check_reason(reason: str) -> str:
    if len(reason) > MAXIMUM_REASON or _CONTROL.search(reason):
        raise ValueError(f"{REASON} must be at most {MAXIMUM_REASON} characters, none of them a control character")
    return reason


def number_of(text: str, country: str | None) -> str:
    """The canonical number, from E.164 or, with a country, from its national spelling. Raises ValueError."""
    if not text:
        raise ValueError(f"{NUMBER} is missing")
    if country is None or text.startswith("+"):
        hint = "" if country or text.startswith("+") else " (--country DE reads Germany's national spelling)"
        try:
            return canonical(phone_number.e164(text))
        except ValueError as exc:
            raise ValueError(f"{NUMBER} {exc}{hint}") from exc
    from phonenumbers import NumberParseException, PhoneNumberFormat, format_number, is_possible_number, parse

    try:
        parsed = parse(text, country)
        if parsed.extension:
            raise ValueError("has an extension: a suppression is of a whole number")
        if not is_possible_number(parsed):
            raise ValueError(f"has too few or too many digits for a phone number of {country}")
        return canonical(phone_number.e164(format_number(parsed, PhoneNumberFormat.E164)))
    except NumberParseException as exc:
        raise ValueError(f"{NUMBER} is no phone number of {country}") from exc
    except ValueError as exc:
        raise ValueError(f"{NUMBER} {exc}") from exc


def portions(found: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    while portion := list(itertools.islice(found, size)):
        yield portion
