"""The request schemas of infra/openapi.yaml are those of the models that read the requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calls_api.reports import WELL_KNOWN, ReportBody
from initiate_call.request import CallRequest
from tests.openapi_page import PAGE

SCHEMAS = PAGE["components"]["schemas"]
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
    silent: dict[str, Any] = {"properties": {}, "required": [], "additionalProperties": True, "default": None}
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
    return {"anyOf": sorted(flat, key=lambda part: json.dumps(part, sort_keys=True))}


def of_page(name: str) -> Any:
    return normal(SCHEMAS[name], SCHEMAS)


def of_model(schema: dict[str, Any]) -> Any:
    return normal(schema, schema.get("$defs", {}))


def report_schema(kind: str) -> dict[str, Any]:
    """The schema of a well-known report: that of every report, with its own type and its own data."""
    body = ReportBody.model_json_schema()
    data = WELL_KNOWN[kind].model_json_schema()
    definitions = data.pop("$defs", {})
    required = ["type", "data"] if data.get("required") else ["type"]
    body["properties"] = {
        "type": {"const": kind},
        "data": data if data.get("required") else {"anyOf": [data, {"type": "null"}]},
    }
    return body | {"required": required, "$defs": definitions}


def test_the_call_request_of_the_page_is_that_of_the_model() -> None:
    assert of_page("CallRequest") == of_model(CallRequest.model_json_schema())
    assert list(SCHEMAS["CallRequest"]["properties"]) == list(CallRequest.model_json_schema()["properties"])


@pytest.mark.parametrize("kind", WELL_KNOWN)
def test_a_well_known_report_of_the_page_is_that_of_the_models(kind: str) -> None:
    parts = [part["$ref"].rpartition("/")[2] for part in SCHEMAS["Report"]["oneOf"]]
    [name] = [part for part in parts if SCHEMAS[part]["properties"]["type"].get("const") == kind]
    assert of_page(name) == of_model(report_schema(kind))


def test_an_agents_own_report_of_the_page_is_that_of_the_model() -> None:
    own = of_page("OwnReport")
    assert own["properties"]["type"].pop("not") == {"enum": list(WELL_KNOWN)}
    assert own == of_model(ReportBody.model_json_schema())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "string"}, {"type": "string", "minLength": 1}),
        ({"type": "string"}, {"type": ["string", "null"]}),
        ({"type": "integer", "default": 1}, {"type": "integer", "default": 2}),
        ({"type": "object"}, {"type": "object", "additionalProperties": False}),
        ({"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "string"}}}),
        ({"properties": {"a": {"enum": ["x"]}}}, {"properties": {"a": {"enum": ["x", None]}}}),
        ({"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "integer"}}),
        ({"anyOf": [{"const": ""}, {"type": "null"}]}, {"anyOf": [{"const": "a"}, {"type": "null"}]}),
    ],
)
def test_the_common_form_keeps_schemas_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The other tests would pass as well if it dropped what differs."""
    assert normal(one, {}) != normal(other, {})
