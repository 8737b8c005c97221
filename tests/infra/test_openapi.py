"""infra/openapi.yaml and the code agree, in both directions."""

from __future__ import annotations

import ast
import base64
import datetime
import hashlib
import inspect
import json
import re
import time
from collections.abc import Iterator
from typing import Any, Union, get_args

import jwt
import pytest
import schemathesis
from botocore.exceptions import ConnectTimeoutError
from pydantic import TypeAdapter

from calls_api.reports import MAXIMUM_REPORT_BYTES, MAXIMUM_TOKEN_SECONDS, WELL_KNOWN
from calls_api.rescheduling import MAXIMUM_PATCH_BYTES
from calls_api.suppression import MAXIMUM_IMPORT_BYTES, MAXIMUM_IMPORTED, MAXIMUM_SUPPRESSION_BYTES
from examples.agent.ringonce_agent import signed
from infra import public_models
from initiate_call.request import MAXIMUM_BODY_BYTES, MAXIMUM_CONTEXT_BYTES
from shared.call import ENDED, EndReason, Outcome, Status, WaitingFor
from shared.call_store import MAXIMUM_REPORTS, MAXIMUM_REPORTS_BYTES
from shared.delivery_store import State
from shared.durations import Durations
from shared.policies import Cap, Policy, Window
from shared.raw_json import MAXIMUM_DIGITS
from tests.bad_requests import BAD_QUERIES, BAD_REQUESTS, PREFIXED, BadQuery, BadRequest
from tests.interleaving import change, change_durations
from tests.openapi_page import PAGE, ROOT, at, examples, media_types, operations, resolved, validator
from tests.system import (
    API_KEY,
    LIVEKIT_KEY,
    LIVEKIT_SECRET,
    REPORT,
    TEMPLATE,
    WEBHOOK_SECRET,
    Context,
    System,
    demo_workspace,
    http_event,
)
from webhook_dispatch.attempt import METADATA_HEADER_BYTES, signed_headers


@pytest.fixture
def system(whole_system: System) -> System:
    whole_system.reset()
    return whole_system


# ── the page by itself ──────────────────────────────────────────────────────────────────────────


def test_the_page_is_openapi_3_1() -> None:
    schemathesis.openapi.from_dict(PAGE).validate()


def test_every_reference_leads_somewhere() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert at(value["$ref"].removeprefix("#")) is not None
            for entry in value.values():
                check(entry)
        elif isinstance(value, list):
            for entry in value:
                check(entry)

    check(PAGE)


def test_every_part_is_used() -> None:
    text = (ROOT / "infra" / "openapi.yaml").read_text()
    for kind, parts in PAGE["components"].items():
        for name in parts:
            used = f"#/components/{kind}/{name}" in text or f"- {name}: []" in text
            assert used, f"{kind}/{name}"


@pytest.mark.parametrize("media_type", sorted(set(media_types())))
def test_every_example_is_valid(media_type: str) -> None:
    assert examples(media_type)
    for value in examples(media_type).values():
        validator(f"{media_type}/schema").validate(value)


def test_every_example_in_the_text_is_json() -> None:
    blocks = re.findall(r"```json\n(.*?)```", PAGE["info"]["description"], re.DOTALL)
    assert blocks
    for block in blocks:
        validator("/components/schemas/Error").validate(json.loads(block))


# ── routes, codes, words ────────────────────────────────────────────────────────────────────────


def test_the_page_has_the_routes_of_the_template() -> None:
    routes = {
        f"{event['Properties']['Method']} {event['Properties']['Path']}"
        for resource in TEMPLATE["Resources"].values()
        for event in resource.get("Properties", {}).get("Events", {}).values()
        if event["Type"] == "HttpApi"
    }
    assert routes == set(operations())


def sources() -> Iterator[ast.AST]:
    for path in sorted((ROOT / "functions").rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text(), str(path)))


def calls_of(name: str) -> Iterator[ast.Call]:
    for node in sources():
        if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("self.") == name:
            yield node


def strings(node: ast.AST | None) -> set[str]:
    """Every string that an expression can evaluate to; names of variables and attributes do not count."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return strings(node.body) | strings(node.orelse)
    if isinstance(node, ast.BoolOp):
        return set().union(*map(strings, node.values))
    return set()


def codes_of_the_code() -> set[str]:
    found = {"invalid_request"}  # FieldError's default.
    for call in calls_of("RequestRefusedError"):
        found |= strings(call.args[1])
    for call in calls_of("FieldError"):
        found |= strings(call.args[2]) if len(call.args) > 2 else set()
    for call in calls_of("PydanticCustomError"):
        found |= strings(call.args[0])
    return found


def codes_of_the_page() -> dict[str, dict[str, set[str]]]:
    """Route → status → codes."""
    return {
        route: {
            status: set(at(resolved(f"{operation}/responses/{status}")).get("x-error-codes", ()))
            for status in at(operation)["responses"]
            if status != "200"
        }
        for route, operation in operations().items()
    }


def test_every_error_code_of_the_code_is_on_the_page_and_no_other() -> None:
    page = {code for route in codes_of_the_page().values() for codes in route.values() for code in codes}
    assert page == codes_of_the_code()
    assert page == set(PAGE["components"]["schemas"]["ErrorCode"]["enum"])


def test_the_text_names_every_code_of_its_answer() -> None:
    for route, operation in operations().items():
        for status, codes in codes_of_the_page()[route].items():
            text = at(resolved(f"{operation}/responses/{status}"))["description"]
            assert not {code for code in codes if f"`{code}`" not in text}, (route, status)


def test_statuses_and_reasons_are_those_of_the_code() -> None:
    schemas = PAGE["components"]["schemas"]
    assert schemas["Status"]["enum"] == list(get_args(Status))
    assert schemas["EndReason"]["enum"] == list(get_args(EndReason))
    assert schemas["WaitingFor"]["enum"] == list(get_args(WaitingFor))
    assert schemas["DeliveryState"]["enum"] == list(get_args(State))
    assert set(schemas["EndStatus"]["enum"]) == ENDED


def test_the_table_of_reasons_is_that_of_the_code() -> None:
    """Status and reason of every end that the code can write; hanging up an answered call completes it."""
    rows = re.findall(r"^\| `(\w+)` \| ([`\w, ]+) \|", PAGE["info"]["description"], re.MULTILINE)
    page = {(status, reason) for reason, cell in rows[1:] for status in re.findall(r"\w+", cell)}
    code = {
        (status, reason)
        for call in calls_of("Outcome")
        for status in strings(call.args[0])
        for reason in strings(call.args[1])
    }
    hung_up = {reason for call in calls_of("_hang_up") for reason in strings(call.args[-1])} | {"canceled_by_api"}
    # What the gates refuse (functions/shared/gates.py).
    refused = {reason for call in calls_of("refuse") for reason in strings(call.args[1])}
    assert refused == {"not_allowed", "suppressed"}
    assert page == code | {("completed", reason) for reason in hung_up} | {
        ("failed", reason) for reason in refused
    }
    assert {reason for _, reason in page} == set(get_args(EndReason))


def test_event_types_are_those_of_the_webhooks() -> None:
    assert [*PAGE["components"]["schemas"]["CallEventType"]["enum"], "agent.*"] == list(PAGE["webhooks"])
    written = {kind for call in calls_of("event") for kind in strings(call.args[0])}
    assert written == set(PAGE["webhooks"]) - {"agent.*"}


def test_reports_that_are_well_known_to_the_page_are_so_to_the_code() -> None:
    schemas = PAGE["components"]["schemas"]
    parts = [at(part["$ref"].removeprefix("#"))["properties"]["type"] for part in schemas["Report"]["anyOf"]]
    assert [part["const"] for part in parts[:-1]] == list(WELL_KNOWN)
    assert parts[-1]["not"]["enum"] == list(WELL_KNOWN)


def test_the_numbers_of_the_text_are_those_of_the_code() -> None:
    assert PAGE["x-webhook-attempts-after-seconds"] == list(Durations().webhook_schedule)
    assert PAGE["x-maximum-body-bytes"] == MAXIMUM_BODY_BYTES
    assert PAGE["x-maximum-context-bytes"] == MAXIMUM_CONTEXT_BYTES
    assert PAGE["x-maximum-metadata-header-bytes"] == METADATA_HEADER_BYTES
    assert PAGE["x-maximum-report-bytes"] == MAXIMUM_REPORT_BYTES
    assert PAGE["x-maximum-digits"] == MAXIMUM_DIGITS
    assert PAGE["x-maximum-reports"] == MAXIMUM_REPORTS
    assert PAGE["x-maximum-suppression-bytes"] == MAXIMUM_SUPPRESSION_BYTES == MAXIMUM_PATCH_BYTES
    assert PAGE["x-maximum-import-bytes"] == MAXIMUM_IMPORT_BYTES
    assert PAGE["x-maximum-imported"] == MAXIMUM_IMPORTED
    assert PAGE["x-maximum-reports-bytes"] == MAXIMUM_REPORTS_BYTES
    assert Durations().report_grace == 300
    assert MAXIMUM_TOKEN_SECONDS == 600
    text = " ".join(PAGE["info"]["description"].split())
    assert "at once, then after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h" in text
    assert f"Answer 2xx within {Durations().webhook_attempt} seconds" in text
    assert Durations().queue_ttl == 3600


# ── what the page refuses, the code refuses ─────────────────────────────────────────────────────

CALL_REQUEST = "/components/schemas/CallRequest"

# Rules that JSON Schema cannot express; the descriptions have them.
_SIZES = re.compile("over 32 KiB|too large a context|a long |to its own ")
_RESERVED = re.compile(r"https://\S*(localhost|\.local|\.internal|\.lan|\.home|\.arpa|\.localdomain)[./]")


def in_words_only(bad: BadRequest) -> bool:
    body = json.loads(bad.body, parse_int=float)
    url = body.get("callback_url") or ""
    if {body.get("to"), body.get("from")} & set(PREFIXED):
        return True
    too_long = len(url.partition("://")[2].partition("/")[0]) > 253
    return bool(too_long or _SIZES.search(bad.name) or _RESERVED.search(url.lower()))


FIELD_CASES = [bad for bad in BAD_REQUESTS if bad.status == 400 and bad.fields]


@pytest.mark.parametrize("bad", FIELD_CASES, ids=lambda bad: bad.name)
def test_the_page_refuses_what_the_code_refuses(bad: BadRequest) -> None:
    # Python parses no longer integers.
    body = json.loads(bad.body, parse_int=lambda text: int(text) if len(text) < 4000 else float(text))
    assert list(validator(CALL_REQUEST).iter_errors(body)) or in_words_only(bad)


@pytest.mark.parametrize("bad", BAD_QUERIES, ids=lambda bad: bad.name)
def test_the_page_refuses_the_queries_that_the_code_refuses(bad: BadQuery) -> None:
    place = f"{operations()['GET /v1/api/call']}/parameters"
    parameters = {entry["name"]: f"{place}/{n}/schema" for n, entry in enumerate(at(place))}
    for name, text in bad.query.items():
        if name[:128] not in bad.fields:
            continue
        if name not in parameters:
            continue
        value: Any = int(text) if name == "limit" and re.fullmatch("-?[0-9]{1,9}", text) else text
        if list(validator(parameters[name]).iter_errors(value)):
            continue
        # Nonexistent times and invalid cursors match the patterns too.
        assert name in ("cursor", "created_after", "created_before"), (name, text)


@pytest.mark.parametrize(
    ("field", "least", "most", "default"),
    [
        (name, schema["minimum"], schema["maximum"], re.findall(r"Defaults to (\d+)\.", schema["description"]))
        for name, schema in PAGE["components"]["schemas"]["CallRequest"]["properties"].items()
        if "minimum" in schema
    ],
)
def test_the_bounds_of_numbers_are_those_of_the_code(
    system: System, field: str, least: int, most: int, default: list[str]
) -> None:
    small = {"to": "+12025550123", "call_agent_id": "a"}
    for value, status in ((least, 200), (most, 200), (least - 1, 400), (most + 1, 400)):
        assert system.post(small | {field: value})["statusCode"] == status
    stored = {"ring_timeout_seconds": "ringTimeoutSeconds", "max_duration_seconds": "maxDurationSeconds"}[field]
    call_id = json.loads(system.post(small)["body"])["callId"]
    assert [str(system.item(call_id)[stored])] == default


# ── what the code answers, the page allows ──────────────────────────────────────────────────────


class Answers:
    """Checks real answers against the page, and records which were seen, and by which tests."""

    def __init__(self) -> None:
        self.tests: set[str] = set()
        self.seen: set[tuple[str, str]] = set()
        self.codes: set[tuple[str, str, str]] = set()

    def check(self, route: str, answer: dict[str, Any], status: int) -> dict[str, Any]:
        assert answer["statusCode"] == status, answer
        body = json.loads(answer["body"])
        response = resolved(f"{operations()[route]}/responses/{status}")
        place = f"{response}/content/application~1json/schema"
        validator(place).validate(body)
        model_of(at(place)).validate_json(answer["body"])
        check_headers(response, answer["headers"])
        self.seen.add((route, str(status)))
        if "code" in body:
            self.codes.add((route, str(status), body["code"]))
        assert isinstance(body, dict)
        return body


def model_of(schema: dict[str, Any]) -> TypeAdapter[Any]:
    """The public model of an answer's schema, or one of several."""
    names = [part["$ref"].rpartition("/")[2] for part in schema.get("anyOf", [schema])]
    return TypeAdapter(Union[*(getattr(public_models, name) for name in names)])


def check_headers(response: str, headers: dict[str, str]) -> None:
    assert headers["content-type"] == "application/json"
    described = {name: resolved(f"{response}/headers/{name}") for name in at(response).get("headers", {})}
    assert set(headers) - {"content-type"} <= set(described)
    for name, place in described.items():
        if name in headers:
            validator(f"{place}/schema").validate(headers[name])
        else:
            assert not at(place).get("required"), name


@pytest.fixture(scope="module")
def answers_of_all(request: pytest.FixtureRequest) -> Iterator[Answers]:
    """When all tests that use it have run, in any order, they have seen every answer of the page."""
    answers = Answers()
    yield answers
    using = {
        name
        for name, test in vars(request.module).items()
        if name.startswith("test_") and "answers" in inspect.signature(test).parameters
    }
    if answers.tests == using:
        check_that_every_answer_was_seen(answers)


@pytest.fixture
def answers(answers_of_all: Answers, request: pytest.FixtureRequest) -> Answers:
    answers_of_all.tests.add(request.function.__name__)
    return answers_of_all


def check_that_every_answer_was_seen(answers: Answers) -> None:
    page = {
        (route, status)
        for route, operation in operations().items()
        for status in at(operation)["responses"]
        # Without codes it is API Gateway's own: no function can be made to answer so.
        if status == "200" or codes_of_the_page()[route][status]
    }
    assert answers.seen == page
    codes = {
        (route, status, code)
        for route, statuses in codes_of_the_page().items()
        for status, found in statuses.items()
        for code in found
    }
    assert answers.codes == codes


def timely(body: dict[str, Any]) -> dict[str, Any]:
    """The example with its times ahead of now, as those of the page are when it is read."""
    now = datetime.datetime.now(datetime.UTC)
    days = {"scheduled_at": 10, "expires_at": 11}
    ahead = {name: (now + datetime.timedelta(days=n)).isoformat() for name, n in days.items() if body.get(name)}
    return body | ahead


POST_CALL, LIST, GET_CALL = "POST /v1/api/call", "GET /v1/api/call", "GET /v1/api/call/{callId}"
CANCEL = "POST /v1/api/call/{callId}/cancel"
DELIVERIES = "GET /v1/api/call/{callId}/deliveries"
REPLAY = "POST /v1/api/call/{callId}/deliveries/{sequence}/replay"
LIVEKIT = "POST /v1/livekit/events"
PREVIEW, MOVE = "POST /v1/api/call/preview", "PATCH /v1/api/call/{callId}"
NUMBERS, IMPORT = "GET /v1/api/suppression", "POST /v1/api/suppression/import"
SUPPRESSIONS, SUPPRESS, RELEASE = (
    f"{method} /v1/api/suppression/{{number}}" for method in ("GET", "PUT", "DELETE")
)


@pytest.mark.parametrize(
    "name", examples(f"{operations()[POST_CALL]}/requestBody/content/application~1json"), ids=str
)
def test_every_example_of_a_call_is_accepted(system: System, answers: Answers, name: str) -> None:
    body = timely(examples(f"{operations()[POST_CALL]}/requestBody/content/application~1json")[name])
    answer = system.post(body, {"idempotency-key": "a"})
    told = answers.check(POST_CALL, answer, 200)
    example = examples(f"{operations()[POST_CALL]}/responses/200/content/application~1json")["accepted"]
    assert list(told) == list(example)
    answers.check(POST_CALL, system.post(body, {"idempotency-key": "a"}), 200)
    view = answers.check(GET_CALL, system.api(GET_CALL, told["callId"]), 200)
    assert view["metadata"] == body.get("metadata")


def test_the_example_of_curl_is_accepted(system: System) -> None:
    [body] = re.findall(r"-d '([^']+)'", PAGE["info"]["description"])
    assert system.post(body.encode(), {"content-type": "application/x-www-form-urlencoded"})["statusCode"] == 200


NO_AGENT = "+15550000006"
ENDS = {
    "+15550000000": "completed",
    "+15550000001": "busy",
    "+15550000002": "no_answer",
    "+15550000003": "rejected",
    "+15550000004": "failed",
    NO_AGENT: "failed",
    "+15550000009": "completed",  # Dialled again: a second call.queued.
}


def test_calls_in_every_state_are_as_the_page_says(
    system: System, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for number, end in ENDS.items():
        call_id = system.place(number, ring_timeout_seconds=10)
        view = answers.check(GET_CALL, system.api(GET_CALL, call_id), 200)
        seen.add(view["status"])
        with monkeypatch.context() as patch:
            if number == NO_AGENT:
                change_durations(patch, system, "dial_worker", agent_wait=0.1)
            system.run_until(lambda call_id=call_id: system.ended(call_id))  # type: ignore[misc]
        view = answers.check(GET_CALL, system.api(GET_CALL, call_id), 200)
        assert view["status"] == end
        seen.add(end)
    talking = system.place("+15550000012")
    system.run_until(lambda: system.item(talking)["status"] == "in_progress")
    seen.add(answers.check(GET_CALL, system.api(GET_CALL, talking), 200)["status"])
    answers.check(CANCEL, system.api(CANCEL, talking), 200)
    system.run_until(lambda: system.ended(talking))
    answers.check(GET_CALL, system.api(GET_CALL, talking), 200)
    waiting = system.place()
    answers.check(CANCEL, system.api(CANCEL, waiting), 200)
    seen.add(answers.check(GET_CALL, system.api(GET_CALL, waiting), 200)["status"])
    assert seen >= {"queued", "in_progress", "completed", "busy", "no_answer", "rejected", "failed", "canceled"}
    example = examples(f"{operations()[GET_CALL]}/responses/200/content/application~1json")["ended"]
    assert list(answers.check(GET_CALL, system.api(GET_CALL, waiting), 200)) == list(example)

    page = answers.check(LIST, system.api(LIST, query={"limit": "2"}), 200)
    assert page["cursor"] is not None
    query = {"cursor": page["cursor"], "status": "busy", "to": "+15550000001", "agent": "agent-1"}
    answers.check(LIST, system.api(LIST, query=query), 200)
    assert list(page["calls"][0]) == list(
        examples(f"{operations()[LIST]}/responses/200/content/application~1json")["page"]["calls"][0]
    )


def test_webhooks_are_as_the_page_says(system: System) -> None:
    metadata = {"orderId": "order-7", "name": "Zoë"}
    kinds: set[str] = set()
    for number, count in (("+15550000001", 3), ("+15550000009", 6), ("+15550000019", 7)):
        call_id = system.place(number, metadata=metadata)
        system.run_until(lambda call_id=call_id, count=count: len(system.received(call_id)) == count)  # type: ignore[misc]
        for event in system.received(call_id):
            kinds.add(check_webhook(event["body"], event["headers"]))
    assert kinds == set(PAGE["webhooks"])
    bare = system.place("+15550000001", metadata=None)
    system.run_until(lambda: len(system.received(bare)) == 3)
    assert all("metadata" not in event["headers"] for event in system.received(bare))
    for event in system.received(bare):
        check_webhook(event["body"], event["headers"])


def check_webhook(text: str, headers: dict[str, str]) -> str:
    """Checks one webhook; returns its type."""
    body = json.loads(text)
    kind = "agent.*" if body["type"].startswith("agent.") else body["type"]
    operation = f"/webhooks/{kind}/post"
    media_type = f"{operation}/requestBody/content/application~1json"
    validator(f"{media_type}/schema").validate(body)
    public_models.WebhookEvent.model_validate_json(text)
    example = next(iter(examples(media_type).values()))
    assert list(body) == list(example)
    assert list(body["data"]) == list(example["data"])
    described = set()
    for n in range(len(at(operation)["parameters"])):
        place = resolved(f"{operation}/parameters/{n}")
        name = at(place)["name"]
        described.add(name)
        if at(place).get("required") or name in headers:
            validator(f"{place}/schema").validate(headers[name])
    assert body["id"] == headers["webhook-id"]
    transport = {"accept-encoding", "content-length", "content-type", "host", "user-agent", "connection", "accept"}
    assert set(headers) - transport <= described
    assert headers["content-type"] == "application/json"
    assert isinstance(kind, str)
    return kind


def test_two_signatures_are_as_the_page_says() -> None:
    at_ = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
    headers = signed_headers((WEBHOOK_SECRET, WEBHOOK_SECRET), f"evt_{'0' * 24}_1", at_, "{}", "{}")
    validator("/components/parameters/WebhookSignature/schema").validate(headers["webhook-signature"])
    assert len(headers["webhook-signature"].split()) == 2


def test_deliveries_are_as_the_page_says(system: System, answers: Answers) -> None:
    call_id = system.place("+15550000001")
    bare = system.place("+15550000001", callback_url=None)
    assert answers.check(DELIVERIES, system.api(DELIVERIES, bare), 200)["deliveries"] == []
    [pending] = answers.check(DELIVERIES, system.api(DELIVERIES, call_id), 200)["deliveries"]
    assert (pending["state"], pending["attempts"]) == ("pending", [])
    behaviour = {"/hook": {"status": 500, "times": 1}}
    system.http.put(f"{system.servers.receiver_url}/_receiver/behaviour", json=behaviour).raise_for_status()
    system.run_until(lambda: len(system.received(call_id)) >= 3)
    shown = answers.check(DELIVERIES, system.api(DELIVERIES, call_id), 200)["deliveries"]
    assert [delivery["sequence"] for delivery in shown] == [1, 2, 3]
    example = examples(f"{operations()[DELIVERIES]}/responses/200/content/application~1json")["deliveries"]
    assert list(shown[0]) == list(example["deliveries"][0])
    assert list(shown[0]["attempts"][0]) == list(example["deliveries"][0]["attempts"][0])

    path = {"callId": call_id, "sequence": "1"}
    answers.check(REPLAY, system.api(REPLAY, path=path), 200)
    answers.check(REPLAY, system.api(REPLAY, path=path | {"sequence": "99"}), 404)
    taken = system.modules["calls_api"].deliveries.take(call_id, 1, "lease", 2**42, 2**42 + 60_000)
    assert taken is not None
    answers.check(REPLAY, system.api(REPLAY, path=path), 409)


def livekit_event(body: bytes, key: str = LIVEKIT_KEY) -> dict[str, Any]:
    claims = {
        "iss": key,
        "exp": int(time.time()) + 60,
        "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
    }
    token = jwt.encode(claims, LIVEKIT_SECRET, algorithm="HS256")
    return http_event(LIVEKIT, body, {"authorization": token}, in_base64=True)


def test_livekits_events_are_as_the_page_says(system: System, answers: Answers) -> None:
    handler = system.handlers["livekit_events"]
    media_type = f"{operations()[LIVEKIT]}/requestBody/content/application~1webhook+json"
    for example in examples(media_type).values():
        answers.check(LIVEKIT, handler(livekit_event(json.dumps(example).encode()), Context(10)), 200)
    for body in (b"nonsense", b"[]"):
        answers.check(LIVEKIT, handler(livekit_event(body), Context(10)), 200)
    answers.check(LIVEKIT, handler(livekit_event(b"{}", "another"), Context(10)), 401)
    event = livekit_event(b"{}")
    answers.check(LIVEKIT, handler(event | {"body": "not base64!"}, Context(10)), 400)
    for name, value, status in (("authorization", "a,b", 400), ("content-encoding", "gzip", 415)):
        changed = event | {"headers": event["headers"] | {name: value}}
        answers.check(LIVEKIT, handler(changed, Context(10)), status)


def test_reports_are_as_the_page_says(system: System, answers: Answers) -> None:
    call_id = system.place("+15550000001")
    room = system.item(call_id)["roomName"]

    def told(
        body: bytes, status: int, *, call: str = call_id, room: str = room, key: str | None = None, **sent: str
    ) -> None:
        token = signed(body, room, LIVEKIT_KEY, LIVEKIT_SECRET)
        headers = sent | ({"idempotency-key": key} if key is not None else {})
        answers.check(REPORT, system.report(call, body, token, headers), status)

    given = examples(f"{operations()[REPORT]}/requestBody/content/application~1json")
    for example in given.values():
        told(json.dumps(example).encode(), 200)
    view = answers.check(GET_CALL, system.api(GET_CALL, call_id), 200)
    assert [entry["type"] for entry in view["events"][1:]] == [example["type"] for example in given.values()]
    assert view["events"][-1]["report"] == given["own"]["data"]

    note = b'{"type":"agent.note"}'
    told(note, 200, key="a")
    told(note, 200, key="a")
    told(b'{"type":"agent.other"}', 422, key="a")
    told(note, 400, key="")
    told(note, 400, key="a,b")
    told(note, 415, **{"content-encoding": "gzip"})
    told(b"{", 400)
    told(b'{"type":"agent.summary"}', 400)
    told(note, 404, room="another")
    told(note, 404, call="0" * 24)
    told(b" " * (MAXIMUM_REPORT_BYTES + 1), 413)
    answers.check(REPORT, system.report(call_id, note, "none"), 401)
    broken = http_event(REPORT, path={"callId": call_id}) | {"body": "not base64!", "isBase64Encoded": True}
    answers.check(REPORT, system.handlers["calls_api"](broken, Context(10)), 400)
    large = json.dumps({"type": "agent.note", "data": {"a": "x" * (MAXIMUM_REPORT_BYTES - 60)}}).encode()
    for n in range(4):
        told(large, 200 if n < 3 else 409, key=str(n))
    opt_out = json.dumps({"type": "agent.opt_out", "data": {"said": "x" * (MAXIMUM_REPORT_BYTES - 60)}}).encode()
    told(opt_out, 200)
    calls = system.modules["calls_api"].calls
    assert calls.end(calls.get(call_id), Outcome("failed", "not_allowed"), 2**42, 1).won
    told(b'{"type":"agent.late"}', 409)


# The day after the next two: nothing rings before the hour that a call waits.
LATER = frozenset({(datetime.datetime.now(datetime.UTC).weekday() + 3) % 7})
POLICIES = {
    "consent": Policy("consent", consent_required=True),
    "hours": Policy("hours", windows=(Window(frozenset(range(7)), 0, 1440),)),
    "later": Policy("later", windows=(Window(LATER, 600, 900),)),
    "caps": Policy("caps", caps=(Cap(1, 3600),)),
}


def preview(system: System, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"x-workspace-id": "demo", "x-api-key": API_KEY} | (headers or {})
    return system.handlers["initiate_call"](http_event(PREVIEW, given, sent), Context(10))


def test_previews_are_as_the_page_says(system: System, answers: Answers) -> None:
    system.workspaces.put(demo_workspace(policies=POLICIES))
    good = {"to": "+12025550123", "call_agent_id": "agent-1"}
    given = examples(f"{operations()[PREVIEW]}/requestBody/content/application~1json")
    for body in given.values():
        assert answers.check(PREVIEW, preview(system, timely(body)), 200)["decision"] == "wait"
    for purpose in (None, "hours", "caps"):
        shown = answers.check(PREVIEW, preview(system, good | {"purpose": purpose}), 200)
        assert (shown["decision"], shown["waitingFor"], shown["earliestRingAt"]) == ("ring", None, None)
        assert all(gate["passed"] for gate in shown["gates"])
    system.limits.pause(1)
    assert answers.check(PREVIEW, preview(system, good), 200)["waitingFor"] == "paused"
    assert system.messages("DialQueue") == 0


def test_suppressions_are_as_the_page_says(system: System, answers: Answers) -> None:
    path = {"number": "+12025550123"}
    for body in examples(f"{operations()[SUPPRESS]}/requestBody/content/application~1json").values():
        answers.check(SUPPRESS, system.api(SUPPRESS, path=path, body=body), 200)
    answers.check(SUPPRESSIONS, system.api(SUPPRESSIONS, path=path), 200)
    for body in examples(f"{operations()[IMPORT]}/requestBody/content/application~1json").values():
        answers.check(IMPORT, system.api(IMPORT, body=body), 200)
    answers.check(IMPORT, system.api(IMPORT, body={"suppressions": [{}]}), 200)
    page = answers.check(NUMBERS, system.api(NUMBERS, query={"limit": "1"}), 200)
    answers.check(NUMBERS, system.api(NUMBERS, query={"cursor": page["cursor"]}), 200)
    answers.check(RELEASE, system.api(RELEASE, path=path, query={"scope": "default"}), 200)
    answers.check(RELEASE, system.api(RELEASE, path=path), 200)
    answers.check(RELEASE, system.api(RELEASE, path=path), 404)

    answers.check(NUMBERS, system.api(NUMBERS, query={"limit": "0"}), 400)
    for query in ({"scope": "-"}, {"x": "1"}):
        for route in (SUPPRESSIONS, RELEASE):
            if route == RELEASE or "x" in query:
                answers.check(route, system.api(route, path=path, query=query), 400)
    for route in (SUPPRESSIONS, SUPPRESS, RELEASE):
        answers.check(route, system.api(route, path={"number": "1"}, body={}), 400)
    answers.check(SUPPRESS, system.api(SUPPRESS, path=path, body={"reason": 1}), 400)
    answers.check(SUPPRESS, system.api(SUPPRESS, path=path, body={"scope": "x"}), 400)
    answers.check(IMPORT, system.api(IMPORT, body={}), 400)
    for route, largest in ((SUPPRESS, MAXIMUM_SUPPRESSION_BYTES), (IMPORT, MAXIMUM_IMPORT_BYTES)):
        refuse_bodies(system, answers, route, path, largest)
    for route in (NUMBERS, IMPORT, SUPPRESSIONS, SUPPRESS, RELEASE):
        refuse_strangers(system, answers, route, path)


def refuse_bodies(system: System, answers: Answers, route: str, path: dict[str, str], largest: int) -> None:
    answers.check(route, system.api(route, path=path, body=b"{"), 400)
    answers.check(route, system.api(route, path=path, body=b" " * (largest + 1)), 413)
    packed = system.api(route, path=path, body={}, headers={"content-encoding": "gzip"})
    answers.check(route, packed, 415)
    event = http_event(route, headers={"x-workspace-id": "demo", "x-api-key": API_KEY}, path=path)
    broken = event | {"body": "not base64!", "isBase64Encoded": True}
    answers.check(route, system.handlers["calls_api"](broken, Context(10)), 400)


def refuse_strangers(system: System, answers: Answers, route: str, path: dict[str, str]) -> None:
    for headers, status in (
        ({"x-workspace-id": ""}, 400),
        ({"x-workspace-id": "a,b"}, 400),
        ({"x-api-key": ""}, 401),
        ({"x-workspace-id": "x"}, 403),
    ):
        answers.check(route, system.api(route, path=path, headers=headers), status)


def test_moves_are_as_the_page_says(system: System, answers: Answers) -> None:
    policies = {name: Policy(name) for name in ("consent", "gone", "hours", "later")}
    system.workspaces.put(demo_workspace(policies=policies))
    call_id = system.place("+15550000001", **timely({"scheduled_at": "later"}))
    given = examples(f"{operations()[MOVE]}/requestBody/content/application~1json")
    bodies = [timely(body) for body in given.values()]
    for body in bodies:
        answers.check(MOVE, system.api(MOVE, call_id, body=body), 200)
    answers.check(MOVE, system.api(MOVE, call_id, body={}), 400)
    answers.check(MOVE, system.api(MOVE, "0" * 24, body=bodies[1]), 404)
    refuse_bodies(system, answers, MOVE, {"callId": call_id}, MAXIMUM_PATCH_BYTES)
    refuse_strangers(system, answers, MOVE, {"callId": call_id})
    codes = {
        "consent": "consent_required",
        "gone": "unknown_purpose",
        "hours": "time_zone_required",
        "later": "cannot_ring_in_time",
    }
    placed = {}
    for name in codes:
        to = "+15550000001" if name == "hours" else "+12025550123"
        placed[name] = system.place(to, purpose=name, **timely({"scheduled_at": "later"}))
    system.workspaces.put(demo_workspace(policies=POLICIES))
    system.forget_workspaces()
    for name, code in codes.items():
        assert answers.check(MOVE, system.api(MOVE, placed[name], body=bodies[1]), 400)["code"] == code
    system.workspaces.put(demo_workspace(allowed_calling_codes=frozenset({"+44"})))
    system.forget_workspaces()
    assert answers.check(MOVE, system.api(MOVE, call_id, body=bodies[1]), 403)["code"] == "number_not_allowed"
    system.workspaces.put(demo_workspace())
    system.forget_workspaces()
    system.api(SUPPRESS, path={"number": "+15550000001"}, body={})
    assert answers.check(MOVE, system.api(MOVE, call_id, body=bodies[1]), 403)["code"] == "number_suppressed"
    system.api(RELEASE, path={"number": "+15550000001"})
    change(system, call_id, status="dialing", lease_id="lease", lease_until_ms=2**42)
    assert answers.check(MOVE, system.api(MOVE, call_id, body=bodies[1]), 409)["code"] == "call_dialed"
    change(system, call_id, status="queued", lease_id=None, lease_until_ms=None)
    system.api(CANCEL, call_id)
    assert answers.check(MOVE, system.api(MOVE, call_id, body=bodies[1]), 409)["code"] == "call_ended"


def test_refusals_are_as_the_page_says(system: System, answers: Answers) -> None:
    system.workspaces.put(demo_workspace(agents=frozenset({"agent-1"}), policies=POLICIES))
    good = {"to": "+12025550123", "call_agent_id": "agent-1"}
    wanted: dict[str, tuple[Any, dict[str, str], int]] = {
        "invalid_json": (b"{", {}, 400),
        "invalid_request": ({}, {}, 400),
        "invalid_number": (good | {"to": "1"}, {}, 400),
        "invalid_url": (good | {"callback_url": "ftp://example.com"}, {}, 400),
        "invalid_variables": (good | {"dynamic_variables": {"a": {}}}, {}, 400),
        "missing_workspace": (good, {"x-workspace-id": ""}, 400),
        "conflicting_header": (good, {"idempotency-key": "a,b"}, 400),
        "invalid_idempotency_key": (good, {"idempotency-key": ""}, 400),
        "invalid_api_key": (good, {"x-api-key": "x"}, 401),
        "workspace_not_allowed": (good, {"x-workspace-id": "x"}, 403),
        "number_not_allowed": (good | {"to": "+19005550123"}, {}, 403),
        "agent_not_allowed": (good | {"call_agent_id": "agent-2"}, {}, 403),
        "from_not_allowed": (good | {"from": "+12025550199"}, {}, 403),
        "too_large": (b" " * (MAXIMUM_BODY_BYTES + 1), {}, 413),
        "unsupported_encoding": (good, {"content-encoding": "gzip"}, 415),
        "invalid_time_zone": (good | {"time_zone": "Mars"}, {}, 400),
        "unknown_purpose": (good | {"purpose": "x"}, {}, 400),
        "consent_required": (good | {"purpose": "consent"}, {}, 400),
        "time_zone_required": (good | {"to": "+15550000001", "purpose": "hours"}, {}, 400),
        "cannot_ring_in_time": (good | {"purpose": "later"}, {}, 400),
        "number_suppressed": (good | {"to": "+12025550124"}, {}, 403),
    }
    suppressed = system.api(SUPPRESS, path={"number": "+12025550124"}, body={})
    assert suppressed["statusCode"] == 200
    for code, (body, headers, status) in wanted.items():
        assert answers.check(POST_CALL, system.post(body, headers), status)["code"] == code
        if code not in ("invalid_idempotency_key", "conflicting_header"):
            assert answers.check(PREVIEW, preview(system, body, headers), status)["code"] == code
    conflict = preview(system, good, {"x-workspace-id": "a,b"})
    assert answers.check(PREVIEW, conflict, 400)["code"] == "conflicting_header"
    key = {"idempotency-key": "a"}
    system.post(good, key)
    answers.check(POST_CALL, system.post(good | {"metadata": {}}, key), 422)
    system.workspaces.put(demo_workspace(workspace_id="slow", calls_per_minute=0))
    answers.check(POST_CALL, system.post(good, {"x-workspace-id": "slow"}), 429)
    event = http_event(POST_CALL, headers={"x-workspace-id": "demo", "x-api-key": API_KEY})
    broken = event | {"body": "not base64!", "isBase64Encoded": True}
    for route in (POST_CALL, PREVIEW):
        answers.check(route, system.handlers["initiate_call"](broken | {"routeKey": route}, Context(10)), 400)

    answers.check(LIST, system.api(LIST, query={"limit": "0"}), 400)
    ended = system.place("+15550000001")
    system.run_until(lambda: system.ended(ended))
    answers.check(CANCEL, system.api(CANCEL, ended), 409)
    for route in (LIST, GET_CALL, CANCEL, DELIVERIES, REPLAY):
        path = {"callId": "0" * 24, "sequence": "1"}
        for workspace in ("", "a,b"):
            answers.check(route, system.api(route, path=path, headers={"x-workspace-id": workspace}), 400)
        answers.check(route, system.api(route, path=path, headers={"x-api-key": ""}), 401)
        answers.check(route, system.api(route, path=path, headers={"x-workspace-id": "x"}), 403)
        if route != LIST:
            answers.check(route, system.api(route, path=path), 404)


def test_failures_are_as_the_page_says(system: System, answers: Answers) -> None:
    """Every AWS request that is not answered becomes a 503 with Retry-After."""
    call_id = system.place()
    system.api(GET_CALL, call_id)

    def lose(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://aws")

    clients = [
        system.modules["initiate_call"].dynamodb,
        system.modules["calls_api"].dynamodb,
        system.modules["livekit_events"].livekit_secret._client,
    ]
    room = system.item(call_id)["roomName"]
    system.modules["livekit_events"].livekit_secret._secret = None
    for client in clients:
        client.meta.events.register_first("before-send", lose)
    try:
        answers.check(POST_CALL, system.post({"to": "+12025550123", "call_agent_id": "a"}), 503)
        answers.check(PREVIEW, preview(system, {"to": "+12025550123", "call_agent_id": "a"}), 503)
        for route in (LIST, GET_CALL, CANCEL, DELIVERIES, REPLAY, NUMBERS, SUPPRESSIONS, RELEASE):
            path = {"callId": call_id, "sequence": "1", "number": "+12025550123"}
            answers.check(route, system.api(route, path=path), 503)
        for route, body in (
            (SUPPRESS, {}),
            (IMPORT, {"suppressions": [{"number": "+12025550123"}]}),
            (MOVE, {"scheduled_at": None}),
        ):
            path = {"callId": call_id, "number": "+12025550123"}
            answers.check(route, system.api(route, path=path, body=body), 503)
        note = b'{"type":"agent.note"}'
        token = signed(note, room, LIVEKIT_KEY, LIVEKIT_SECRET)
        answers.check(REPORT, system.report(call_id, note, token), 503)
        answer = system.handlers["livekit_events"](livekit_event(b"{}"), Context(10))
        answers.check(LIVEKIT, answer, 503)
    finally:
        for client in clients:
            client.meta.events.unregister("before-send", lose)
