"""The request schemas of infra/openapi.yaml are those of the models that read the requests."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from calls_api.reports import WELL_KNOWN, ReportBody, parse_report
from calls_api.rescheduling import ReschedulingRequest
from calls_api.suppression import ImportedSuppression, ImportRequest, SuppressionRequest
from initiate_call.request import CallRequest, parse_request, read_body
from shared.callback_url import Policy
from shared.errors import RequestRefusedError
from shared.request_model import RequestModel
from tests.json_schemas import normal
from tests.openapi_page import PAGE, validator

SCHEMAS = PAGE["components"]["schemas"]


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
    schema = CallRequest.model_json_schema()
    for name, field in schema["properties"].items():
        # In words: a field with `default` is required in generated types, and always sent by generated clients.
        if (default := field.pop("default", None)) is not None:
            assert f"Defaults to {default}." in SCHEMAS["CallRequest"]["properties"][name]["description"]
    assert of_page("CallRequest") == of_model(schema)
    assert list(SCHEMAS["CallRequest"]["properties"]) == list(CallRequest.model_json_schema()["properties"])


@pytest.mark.parametrize("model", [SuppressionRequest, ImportedSuppression, ReschedulingRequest])
def test_a_request_of_the_page_is_that_of_the_model(model: type[RequestModel]) -> None:
    schema = model.model_json_schema()
    name = model.__name__
    if (default := schema["properties"].get("scope", {}).pop("default", None)) is not None:
        assert f"Defaults to {default}." in SCHEMAS[name]["properties"]["scope"]["description"]
    assert of_page(name) == of_model(schema)
    assert list(SCHEMAS[name]["properties"]) == list(schema["properties"])


def test_an_import_of_the_page_is_that_of_the_model() -> None:
    """The model reads each suppression by itself."""
    page = of_page("ImportRequest")
    assert page["properties"]["suppressions"].pop("items") == of_page("ImportedSuppression")
    model = of_model(ImportRequest.model_json_schema())
    assert model["properties"]["suppressions"].pop("items") == {}
    assert page == model


@pytest.mark.parametrize("kind", WELL_KNOWN)
def test_a_well_known_report_of_the_page_is_that_of_the_models(kind: str) -> None:
    parts = [part["$ref"].rpartition("/")[2] for part in SCHEMAS["Report"]["anyOf"]]
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
        ({"type": "object"}, {"type": "object", "additionalProperties": True}),
        ({"properties": {"a": {"type": "string"}}}, {"properties": {"b": {"type": "string"}}}),
        ({"properties": {"a": {"enum": ["x"]}}}, {"properties": {"a": {"enum": ["x", None]}}}),
        ({"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "integer"}}),
        ({"anyOf": [{"const": ""}, {"type": "null"}]}, {"anyOf": [{"const": "a"}, {"type": "null"}]}),
    ],
)
def test_the_common_form_keeps_schemas_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The other tests would pass as well if it dropped what differs."""
    assert normal(one, {}) != normal(other, {})


# ── what the models take is what the page takes ─────────────────────────────────────────────────

# Only values on which JSON Schema has the whole rule: no numbering plans, no names of reserved hosts, no sizes.
TEXTS = ("", " ", "a", "agent-1", "a\n", "a b", "é", "📞", "\x00", "x" * 129, "agent", "callee", "started", "40")
ANY_VALUES: tuple[Any, ...] = (
    *TEXTS,
    *(None, True, False, 0, 1, -1, 9, 10, 10.0, 10.5, 30, 60, 60.0, 61, 1e400, 14_400, 14_401, 10**30),
    *(
        [],
        [1],
        ["a"],
        {},
        {"a": 1},
        {"a": None, "b": "c", "d": 1.5, "e": False},
        {"a": []},
        {"": 1},
        {"a": "\x1b"},
    ),
)
NAMES = (
    "to",
    "from",
    "from_number",
    "type",
    "data",
    "x",
    "",
    "callAgentId",
    "x\n",
    "{x}",
    "turns",
    "text",
    "more",
)
CALL_VALUES: dict[str, tuple[Any, ...]] = {
    "to": ("+12025550123", " +1 (202) 555-0123", "12025550123", "+1", "+12025550123\n", "+1202555012a"),
    "call_agent_id": ("agent-1", "a" * 128, "agent.1"),
    "callback_url": (
        "https://example.com/a?b",
        "HTTPS://example.com:443",
        "http://example.com",
        "https://1.2.3.4/",
    ),
    "dynamic_variables": ({f"k{n}": n for n in range(100)}, {f"k{n}": n for n in range(101)}, {"k" * 129: 1}),
    "metadata": ({"a": {"b": [None]}},),
    "from": ("+12025550199", "+0123456789"),
    "ring_timeout_seconds": (10, 60, 40.0, "40"),
    "max_duration_seconds": (30, 14_400, 1800.0),
    "scheduled_at": ("2099-01-01T00:00:00Z", "2099-01-01t00:00:00.5+14:00", "2099-01-01", "2099-01-01T00:00:00"),
    "expires_at": ("2099-01-01T00:00:00z", "2099-01-01 00:00:00Z"),
    "purpose": ("sales", "Sales", "a" * 65),
    "time_zone": ("America/Phoenix",),
    "consent": (
        {"basis": "written", "obtained_at": "2026-01-01T00:00:00Z", "reference": None},
        {"basis": "", "obtained_at": "2026-01-01T00:00:00Z"},
        {"basis": "a", "obtained_at": "then"},
        {"obtained_at": "2026-01-01T00:00:00Z"},
        {"basis": "a", "obtained_at": "2026-01-01T00:00:00Z", "more": 1},
        {"basis": "a" * 129, "obtained_at": "2026-01-01T00:00:00Z", "reference": "x" * 513},
    ),
    "dtmf": ("ww1*#D", "1 2", "1" * 65),
}
REPORT_VALUES: dict[str, tuple[Any, ...]] = {
    "turns": ([{"speaker": "agent", "text": "a"}], [{"speaker": "agent"}], [{"speaker": "x", "text": "a"}, 1]),
    "text": ("a",),
    "to": ("sip:a@example.com",),
    "status": ("started", "done"),
    "said": ("no",),
    "scope": ("all", "purpose", "sales"),
    "messageLeft": (True, False),
}


def some_fields(choose: random.Random, values: dict[str, tuple[Any, ...]], strange: float) -> dict[str, Any]:
    """Most of these fields, in any order: the first of its values or one of the others. strange: in what part of
    the cases it is any value at all, and another field comes along.
    """
    fields = {}
    for name, known in values.items():
        if choose.random() < 0.8:
            pool = ANY_VALUES if choose.random() < strange else known if choose.random() < 0.2 else known[:1]
            fields[name] = choose.choice(pool)
    fields |= {choose.choice(NAMES): choose.choice(ANY_VALUES) for _ in range(2) if choose.random() < strange}
    return dict(choose.sample(list(fields.items()), len(fields)))


def fields_of_page(body: dict[str, Any]) -> set[str]:
    """The fields of a call's request that are wrong by the page's schema."""
    wrong: set[str] = set()
    for error in validator("/components/schemas/CallRequest").iter_errors(body):
        if error.absolute_path:
            wrong.add(str(error.absolute_path[0]))
        elif error.validator == "required":
            wrong |= set(error.validator_value) - set(body)
        else:
            wrong |= set(body) - set(SCHEMAS["CallRequest"]["properties"])
    return wrong


def test_random_call_requests_have_the_wrong_fields_that_the_page_says() -> None:
    choose = random.Random(15)
    accepted = 0
    for _ in range(2_000):
        body = some_fields(choose, CALL_VALUES, choose.choice((0, 0.1, 0.5)))
        text = json.dumps(body).replace("Infinity", "1e400").encode()
        wrong: set[str] = set()
        try:
            request = parse_request(read_body(text), Policy())
        except RequestRefusedError as refused:
            wrong = {error.field.partition(".")[0] for error in refused.errors}
        else:
            assert request.ring_timeout_seconds == (body.get("ring_timeout_seconds") or 40)
            accepted += 1
        if isinstance(body.get("time_zone"), str):
            # The page does not list the zones.
            wrong -= {"time_zone"}
        assert wrong == fields_of_page(body), text
    assert 100 < accepted < 1_900


def test_random_reports_are_taken_if_the_page_takes_them() -> None:
    choose = random.Random(15)
    page = validator("/components/schemas/Report")
    accepted = 0
    kinds = (*WELL_KNOWN, "agent.note", "agent.Note", "agent.1", "agent.", "note", 1, None)
    for _ in range(2_000):
        strange = choose.choice((0, 0.1, 0.5))
        body = {"type": choose.choice(kinds)} | some_fields(
            choose, {"data": (None, {})}, 1 if choose.random() < 0.2 else 0
        )
        if choose.random() < 0.8:
            body["data"] = some_fields(choose, REPORT_VALUES, strange)
        text = json.dumps(body).replace("Infinity", "1e400").encode()
        try:
            report = parse_report(text)
        except RequestRefusedError:
            assert not page.is_valid(body), text
        else:
            assert page.is_valid(body), text
            assert json.loads(report.data) == (body.get("data") or {})
            accepted += 1
    assert 200 < accepted < 1_800
