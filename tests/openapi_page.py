"""infra/openapi.yaml for tests: its operations, and validators for what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parent.parent
PAGE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "openapi.yaml").read_text())
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_REGISTRY: Registry[Any] = Registry().with_resource("urn:page", DRAFT202012.create_resource(PAGE))


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    # In JSON Schema `$` is the end of the text; in Python also the place before a last line break.
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


@cache
def validator(pointer: str) -> Draft202012Validator:
    """For the schema at a JSON pointer of the page, `/components/schemas/Call`."""
    found: Draft202012Validator = _Validator({"$ref": f"urn:page#{pointer}"}, registry=_REGISTRY)
    return found


def operations() -> dict[str, str]:
    """`GET /v1/api/call` → the JSON pointer of its operation."""
    return {
        f"{method.upper()} {path}": f"/paths/{escaped(path)}/{method}"
        for path, item in PAGE["paths"].items()
        for method in item
        if method in METHODS
    }


def escaped(part: str) -> str:
    """One part of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def at(pointer: str) -> Any:
    """The value at a JSON pointer of the page."""
    found: Any = PAGE
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def resolved(pointer: str) -> str:
    """The pointer, or the one that a $ref there leads to."""
    found = at(pointer)
    return found["$ref"].removeprefix("#") if isinstance(found, dict) and "$ref" in found else pointer


def media_types() -> Iterator[str]:
    """The pointers of everything that has a schema and examples: bodies of requests, responses and webhooks."""
    places = [*operations().values(), *(f"/webhooks/{name}/post" for name in PAGE["webhooks"])]
    for operation in places:
        holders = [f"{operation}/requestBody"] if "requestBody" in at(operation) else []
        holders += [resolved(f"{operation}/responses/{status}") for status in at(operation)["responses"]]
        for holder in holders:
            for kind in at(holder).get("content", {}):
                yield f"{holder}/content/{escaped(kind)}"


def examples(media_type: str) -> dict[str, Any]:
    """The examples at the pointer of a media type, by name."""
    return {name: example["value"] for name, example in at(media_type).get("examples", {}).items()}
