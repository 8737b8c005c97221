"""infra/openapi.yaml says of answers and events what the public models say, and leaves open what may be added."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from infra import public_models
from infra.public_models import Call, Error, PublicModel, WebhookEvent
from tests.json_schemas import normal
from tests.openapi_page import CLOSED, PAGE, at, closed, examples, media_types, operations, validator

MODELS: dict[str, type[PublicModel]] = {
    name: model
    for name, model in vars(public_models).items()
    if isinstance(model, type) and issubclass(model, PublicModel) and name not in ("PublicModel", "_CallFields")
}
SCHEMAS = PAGE["components"]["schemas"]
GET_CALL = "/paths/~1v1~1api~1call~1{callId}/get/responses/200/content/application~1json"


def reachable(value: Any) -> Iterator[str]:
    """The names of all schemas that this part of the page leads to."""
    todo, seen = [value], set()
    while todo:
        match todo.pop():
            case {"$ref": str(reference)} as part:
                todo += [entry for name, entry in part.items() if name != "$ref"]
                if reference not in seen:
                    seen.add(reference)
                    todo.append(at(reference.removeprefix("#")))
            case dict() as part:
                todo += part.values()
            case list() as part:
                todo += part
    for reference in sorted(seen):
        if reference.startswith("#/components/schemas/"):
            yield reference.rpartition("/")[2]


# What a client reads: every response, and every webhook.
READ = set(reachable([PAGE["webhooks"], *(at(operation)["responses"] for operation in operations().values())]))


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_of_the_page_is_that_of_the_model(name: str) -> None:
    schema = MODELS[name].model_json_schema()
    closed_schemas = CLOSED["components"]["schemas"]
    assert normal(closed_schemas[name], closed_schemas) == normal(schema, schema.get("$defs", {}))
    assert list(SCHEMAS[name]["properties"]) == list(schema["properties"])


def test_every_object_that_a_client_reads_has_a_model() -> None:
    objects = {name for name in READ if "properties" in SCHEMAS[name]}
    assert objects == set(MODELS)


@pytest.mark.parametrize("name", ["CallEventType", "Decision", "ErrorCode", "GateName", "ImportOutcome"])
def test_the_words_of_the_page_are_those_of_the_models(name: str) -> None:
    assert SCHEMAS[name]["enum"] == TypeAdapter(getattr(public_models, name)).json_schema()["enum"]


# ── open as published ───────────────────────────────────────────────────────────────────────────────


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for entry in schema.values():
            yield from parts(entry)
    elif isinstance(schema, list):
        for entry in schema:
            yield from parts(entry)


@pytest.mark.parametrize("name", sorted(READ))
def test_what_is_read_may_have_more_fields(name: str) -> None:
    for part in parts(SCHEMAS[name]):
        assert part.get("additionalProperties", True) is not False
        assert "unevaluatedProperties" not in part


def test_types_reasons_and_codes_may_be_added() -> None:
    growing = {
        f"#/components/schemas/{words}"
        for words in ("CallEventType", "EndReason", "ErrorCode", "GateName", "WaitingFor")
    }
    found = 0
    for name in READ:
        for part in parts(SCHEMAS[name]):
            choice = part.get("anyOf", ())
            grows = [entry for entry in choice if entry.get("$ref") in growing]
            assert bool(grows) == ({"type": "string"} in choice), name
            assert not grows or "may be added" in part["description"]
            found += len(grows)
    # Each is named nowhere else.
    text = json.dumps([SCHEMAS[name] for name in READ])
    assert found == sum(text.count(f'"{reference}"') for reference in growing)
    assert found == 9


def test_free_objects_say_that_they_take_any_member() -> None:
    """Without the word, openapi-typescript makes a type of them that takes none."""
    for name, schema in SCHEMAS.items():
        for part in parts(schema):
            kinds = part.get("type", ())
            if (kinds == "object" or (isinstance(kinds, list) and "object" in kinds)) and "properties" not in part:
                assert "additionalProperties" in part, name


def test_no_field_of_a_body_and_no_parameter_has_a_default() -> None:
    schemas = [SCHEMAS, PAGE["components"]["parameters"], *map(at, operations().values())]
    places = [part for part in parts(schemas) if "type" in part or "anyOf" in part]
    assert places
    assert not [part for part in places if "default" in part]


# ── closed in the tests ─────────────────────────────────────────────────────────────────────────────


def variants(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The value with one more field, in each of its objects but the client's, the agent's and a gate's own."""

    def places(part: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if isinstance(part, dict):
            yield path
        entries: Any = (
            part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        )
        for name, entry in entries:
            if name not in ("metadata", "dynamicVariables", "report", "detail"):
                yield from places(entry, (*path, name))

    for path in places(value, ()):
        changed: Any = copy.deepcopy(value)
        holder = changed
        for name in path:
            holder = holder[name]
        holder["another"] = 1
        yield changed


ANSWERS = [
    (media_type, name)
    for media_type in sorted(set(media_types()))
    if "/requestBody/" not in media_type or media_type.startswith("/webhooks")
    for name in examples(media_type)
]


@pytest.mark.parametrize(("media_type", "name"), ANSWERS)
def test_another_field_is_refused_by_the_tests_and_allowed_by_the_page(media_type: str, name: str) -> None:
    value = examples(media_type)[name]
    published = validator(f"{media_type}/schema", published=True)
    for changed in variants(value):
        assert not validator(f"{media_type}/schema").is_valid(changed)
        published.validate(changed)


def test_other_words_are_refused_by_the_tests_and_allowed_by_the_page() -> None:
    call = copy.deepcopy(examples(GET_CALL)["ended"])
    for path, word in ((("endReason",), "moved"), (("events", 0, "type"), "call.ringing")):
        changed = copy.deepcopy(call)
        holder = changed
        for name in path[:-1]:
            holder = holder[name]
        holder[path[-1]] = word
        assert not validator("/components/schemas/Call").is_valid(changed)
        validator("/components/schemas/Call", published=True).validate(changed)
        with pytest.raises(ValidationError):
            Call.model_validate_json(json.dumps(changed))
    error = {"status": "error", "message": "No", "code": "call_ended"}
    response = "/paths/~1v1~1api~1call~1{callId}~1cancel/post/responses/409/content/application~1json/schema"
    for code, listed in (("call_ended", True), ("rate_limited", False), ("another", False)):
        assert validator(response).is_valid(error | {"code": code}) == listed
        validator(response, published=True).validate(error | {"code": code})


def test_closing_changes_nothing_of_what_clients_send() -> None:
    sent = set(reachable([at(operation).get("requestBody", {}) for operation in operations().values()]))
    assert sent
    for name in sent - READ:
        assert closed(PAGE)["components"]["schemas"][name] == SCHEMAS[name]


def test_reports_and_nothing_else_have_a_report() -> None:
    summary = examples("/webhooks/agent.*/post/requestBody/content/application~1json")["summary"]
    queued = examples("/webhooks/call.queued/post/requestBody/content/application~1json")["queued"]
    for value in (summary, queued):
        WebhookEvent.model_validate_json(json.dumps(value))
    for value, data in ((summary, queued["data"]), (queued, summary["data"])):
        with pytest.raises(ValidationError, match="report is of"):
            WebhookEvent.model_validate_json(json.dumps(value | {"data": data}))


def test_dialing_and_nothing_else_has_gates() -> None:
    dialing = examples("/webhooks/call.dialing/post/requestBody/content/application~1json")["dialing"]
    queued = examples("/webhooks/call.queued/post/requestBody/content/application~1json")["queued"]
    gates = dialing["data"]["gates"]
    without = {name: value for name, value in dialing["data"].items() if name != "gates"}
    for value in (dialing, dialing | {"data": without}):
        WebhookEvent.model_validate_json(json.dumps(value))
    with pytest.raises(ValidationError, match="gates is of"):
        WebhookEvent.model_validate_json(json.dumps(queued | {"data": queued["data"] | {"gates": gates}}))


def test_the_models_take_no_other_type() -> None:
    good = {"status": "error", "message": "No", "code": "call_ended", "errors": [{"field": "to", "message": "No"}]}
    assert isinstance(Error.model_validate_json(json.dumps(good)), BaseModel)
    wrong: dict[str, Any]
    for wrong in ({"errors": []}, {"message": 1}, {"message": ""}, {"errors": None}, {"status": "success"}):
        with pytest.raises(ValidationError):
            Error.model_validate_json(json.dumps(good | wrong))
