"""JSON schemas in one form, so that two spellings of the same can be compared."""

from __future__ import annotations

import json
from typing import Any

_FOR_PEOPLE = ("description", "title", "examples", "$defs")


def normal(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema in the one form that two spellings of it share: references resolved, texts for people gone, every
    type of a list and `null` a part of `anyOf` in a fixed order, and nothing that says no more than its absence.
    """
    if isinstance(schema, bool):
        return schema
    schema = dict(schema)
    if reference := schema.pop("$ref", None):
        schema = definitions[reference.rpartition("/")[2]] | schema
    schema = {name: value for name, value in schema.items() if name not in _FOR_PEOPLE}
    if "properties" in schema:
        schema["properties"] = {
            name: normal(part, definitions) for name, part in sorted(schema["properties"].items())
        }
    for name in ("items", "propertyNames", "additionalProperties", "not"):
        if name in schema:
            schema[name] = normal(schema[name], definitions)
    if "required" in schema:
        schema["required"] = sorted(schema["required"])
    silent: dict[str, Any] = {"properties": {}, "required": [], "default": None}
    schema = {name: value for name, value in schema.items() if name not in silent or value != silent[name]}
    if "enum" in schema or "const" in schema:
        schema.pop("type", None)
    if "default" in schema:
        default = schema.pop("default")
        return {"default": default, "schema": normal(schema, definitions)}
    parts = [normal(part, definitions) for part in schema.pop("anyOf", ())]
    if None in schema.get("enum", ()):
        schema["enum"] = [word for word in schema["enum"] if word is not None]
        parts.append({"type": "null"})
    if isinstance(schema.get("type"), list):
        # The other words of a schema say nothing of null.
        parts += [schema | {"type": kind} if kind != "null" else {"type": kind} for kind in schema.pop("type")]
    elif parts and schema:
        parts.append(schema)
    if not parts:
        return schema
    flat = [inner for part in parts for inner in (part["anyOf"] if list(part) == ["anyOf"] else [part])]
    flat.sort(key=lambda part: json.dumps(part, sort_keys=True))
    return flat[0] if len(flat) == 1 else {"anyOf": flat}
