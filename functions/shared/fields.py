"""What a JSON object may hold: a rule for each field, and everything that is wrong with it at once.

A rule takes a field's value and returns what is used of it, or raises Wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.errors import FieldError

Rule = Callable[[Any], Any]

# A field's name goes back to the client in the error, no longer than this.
_NAME_CHARACTERS = 128


class Wrong(ValueError):
    """What a client is told of a field. code: that of the answer, when nothing else is wrong. parts: what is wrong
    with the field's own parts, by their paths below it; then that is told instead.
    """

    def __init__(self, message: str, code: str = "invalid_request", parts: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.parts = parts


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The fields of an object. unknown: what is said of one that has no rule; None: it is the client's own."""

    rules: Mapping[str, Rule]
    required: frozenset[str] = frozenset()
    unknown: str | None = None

    def check(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldError]]:
        """The fields that are right, and what is wrong with the others. `null` in an optional one means absent."""
        values: dict[str, Any] = {}
        errors: list[FieldError] = []
        for name, rule in self.rules.items():
            if name in self.required and name not in given:
                errors.append(FieldError(name, "is required"))
            elif name in self.required or given.get(name) is not None:
                try:
                    values[name] = rule(given[name])
                except Wrong as exc:
                    errors += below(name, exc.parts) or [FieldError(name, str(exc), exc.code)]
        if self.unknown is not None:
            errors += [
                FieldError(name[:_NAME_CHARACTERS], self.unknown) for name in given if name not in self.rules
            ]
        return values, errors


def below(name: str, errors: Sequence[FieldError]) -> list[FieldError]:
    """The errors of what `name` holds, named from outside: `data.turns.0.text`."""
    return [dataclasses.replace(error, field=f"{name}.{error.field}"[:_NAME_CHARACTERS]) for error in errors]


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong("must be a string")
    return value


def text(value: Any) -> str:
    if not string(value):
        raise Wrong("must not be empty")
    return string(value)


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("must be true or false")
    return value


def json_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong("must be an object")
    return value


def one_of(*words: str) -> Rule:
    def rule(value: Any) -> str:
        if value not in words:
            raise Wrong(f"must be one of {', '.join(words)}")
        return string(value)

    return rule


def whole_number(least: int, most: int) -> Rule:
    def rule(value: Any) -> int:
        # JSON has one kind of number: 40.0 is 40, and some languages write it so.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most or value != int(value):
            raise Wrong(f"must be a whole number from {least} to {most}")
        return int(value)

    return rule


def objects(fields: Fields) -> Rule:
    """A list of at least one object with these fields."""

    def rule(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise Wrong("must be a list")
        if not value:
            raise Wrong("must not be empty")
        errors: list[FieldError] = []
        for place, entry in enumerate(value):
            if isinstance(entry, dict):
                errors += below(str(place), fields.check(entry)[1])
            else:
                errors.append(FieldError(str(place), "must be an object"))
        if errors:
            raise Wrong("has wrong entries", parts=errors)
        return value

    return rule
