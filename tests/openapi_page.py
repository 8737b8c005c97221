"""infra/openapi.yaml for tests: its operations, and validators for what they say.

The page is open: clients ignore what may be added. The tests hold the API to exactly what stands on it, so
`validator` uses the page as `closed` makes it.
"""

from __future__ import annotations

import copy
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

from infra.public_models import TIME_PATTERN

ROOT = Path(__file__).parent.parent
PAGE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "openapi.yaml").read_text())
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


def closed(page: dict[str, Any]) -> dict[str, Any]:
    """The page without what it leaves open: an answer or event with another field, another type of event, another
    reason or an error code that its response does not list is refused.
    """
    # YAML's aliases are one object in several places; in the copy each place has its own.
    page = copy.deepcopy(page)
    schemas = page["components"]["schemas"]
    page["components"]["schemas"] = schemas = {name: _closed(schema) for name, schema in schemas.items()}
    schemas["EventType"]["anyOf"].append({"$ref": "#/components/schemas/ReportType"})
    schemas["Time"]["pattern"] = TIME_PATTERN
    paths = [operation for item in page["paths"].values() for name, operation in item.items() if name in METHODS]
    for responses in (page["components"]["responses"], *(operation["responses"] for operation in paths)):
        for response in responses.values():
            for media_type in response.get("content", {}).values() if "x-error-codes" in response else ():
                code = {"properties": {"code": {"enum": response["x-error-codes"]}}}
                media_type["schema"] = {"allOf": [media_type["schema"], code]}
    return page


def _closed(part: Any) -> Any:
    if isinstance(part, list):
        return [_closed(entry) for entry in part if entry != {"type": "string"}]
    if not isinstance(part, dict):
        return part
    part = {name: _closed(entry) for name, entry in part.items()}
    return {"additionalProperties": False} | part if isinstance(part.get("properties"), dict) else part


CLOSED = closed(PAGE)
_REGISTRY: Registry[Any] = Registry().with_resources(
    [("urn:closed", DRAFT202012.create_resource(CLOSED)), ("urn:published", DRAFT202012.create_resource(PAGE))]
)


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    # In JSON Schema `$` is the end of the text; in Python also the place before a last line break.
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


@cache
def validator(pointer: str, *, published: bool = False) -> Draft202012Validator:
    """For the schema at a JSON pointer of the page, `/components/schemas/Call`, as `closed` makes it, or as it is
    published.
    """
    page = "published" if published else "closed"
    found: Draft202012Validator = _Validator({"$ref": f"urn:{page}#{pointer}"}, registry=_REGISTRY)
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
