"""Suppression by a client's requests: what is acknowledged lets nothing ring, and every change is in the log."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from admin.suppression import OPERATOR
from calls_api.suppression import IMPORT_SECONDS, MAXIMUM_IMPORT_BYTES, MAXIMUM_IMPORTED
from infra.public_models import NumberSuppressions, SuppressionList
from shared.numbers import MAXIMUM_REASON, Suppression
from shared.policies import Policy
from shared.workspaces import key_hash
from tests.interleaving import just_before
from tests.system import API_KEY, System, demo_workspace

ONE = "/v1/api/suppression/{number}"
GET, PUT, DELETE = f"GET {ONE}", f"PUT {ONE}", f"DELETE {ONE}"
LIST, IMPORT = "GET /v1/api/suppression", "POST /v1/api/suppression/import"
NUMBER = "+15550000012"
KEY_ID = key_hash(API_KEY)[:8]


@pytest.fixture(autouse=True)
def _policies(system: System) -> None:
    notes = {key_hash(API_KEY): {"label": "crm"}}
    system.workspaces.put(demo_workspace(policies={"sales": Policy("sales")}, key_notes=notes))


def put(system: System, number: str = NUMBER, **body: Any) -> dict[str, Any]:
    return system.api(PUT, path={"number": number}, body=body)


def shown(system: System, number: str = NUMBER) -> list[dict[str, Any]]:
    answer = system.api(GET, path={"number": number})
    assert answer["statusCode"] == 200, answer
    found = answer["json"]["suppressions"]
    assert isinstance(found, list)
    return found


def scopes(system: System, number: str = NUMBER) -> list[str]:
    return [suppression["scope"] for suppression in shown(system, number)]


def changes(logged: io.StringIO) -> list[dict[str, Any]]:
    """The log's lines of changes, without what every line has."""
    # Each is written for the functions' own logger and for the root's.
    written = dict.fromkeys(line for line in logged.getvalue().splitlines() if line.startswith("{"))
    lines = [json.loads(line) for line in written]
    names = ("workspace_id", "number", "scope", "action", "reason", "expires_at", "by")
    return [{name: line.get(name) for name in names} for line in lines if line["message"] == "suppression changed"]


# ── one number ──────────────────────────────────────────────────────────────────────────────────────


def test_a_suppression_is_written_shown_and_removed(system: System, logged: io.StringIO) -> None:
    assert shown(system) == []
    answer = put(system, reason="Asked by letter", expires_at="2099-01-01T01:00:00+01:00")
    assert answer["statusCode"] == 200
    assert answer["json"]["number"] == NUMBER
    [suppression] = shown(system)
    assert answer["json"]["suppressions"] == [suppression]
    assert suppression == {
        "scope": "all",
        "reason": "Asked by letter",
        "at": suppression["at"],
        "expiresAt": "2099-01-01T00:00:00.000Z",
        "by": {"keyId": KEY_ID, "label": "crm", "callId": None, "operator": None},
    }
    assert put(system, scope="sales")["json"]["suppressions"][1]["reason"] is None
    assert scopes(system) == ["all", "sales"]
    gone = system.api(DELETE, path={"number": NUMBER}, query={"scope": "all"})
    assert [left["scope"] for left in gone["json"]["suppressions"]] == scopes(system) == ["sales"]
    again = system.api(DELETE, path={"number": NUMBER}, query={"scope": "all"})
    assert (again["statusCode"], again["json"]["code"]) == (404, "not_suppressed")
    put(system)
    assert system.api(DELETE, path={"number": NUMBER})["json"]["suppressions"] == shown(system) == []
    assert system.api(DELETE, path={"number": NUMBER})["statusCode"] == 404
    by = {"key": KEY_ID, "label": "crm"}
    told = {"workspace_id": "demo", "number": NUMBER, "by": by}
    letter = {"scope": "all", "reason": "Asked by letter", "expires_at": "2099-01-01T00:00:00.000Z"}
    sales = {"scope": "sales", "reason": "", "expires_at": None}
    assert changes(logged) == [
        told | letter | {"action": "suppressed"},
        told | sales | {"action": "suppressed"},
        told | letter | {"action": "released"},
        told | sales | {"scope": "all", "action": "suppressed"},
        told | sales | {"scope": "all", "action": "released"},
        told | sales | {"action": "released"},
    ]


@pytest.mark.parametrize("written", ["+15550000012", "%2B15550000012", " 15550000012", "+1 (555) 000-0012"])
def test_a_number_is_one_however_it_is_written(system: System, written: str) -> None:
    put(system, written)
    assert scopes(system) == ["all"]
    assert scopes(system, written) == ["all"]
    assert system.api(DELETE, path={"number": written})["statusCode"] == 200
    assert shown(system) == []


@pytest.mark.parametrize(
    ("one", "other"), [("+5215512345678", "+525512345678"), ("+5491123456789", "+541123456789")]
)
def test_both_spellings_of_a_mobile_number_are_one(system: System, one: str, other: str) -> None:
    assert put(system, one)["json"]["number"] == other
    assert scopes(system, other) == scopes(system, one) == ["all"]


def test_the_same_again_is_written_and_logged_again(system: System, logged: io.StringIO) -> None:
    """A client that got no answer repeats it: the line of the first try may be missing, and a removal that was
    asked for before and comes late must find another version.
    """
    first = put(system, reason="a")["json"]
    version = system.numbers.get("demo", NUMBER).version
    assert put(system, reason="a")["json"] == first
    assert system.numbers.get("demo", NUMBER).version != version
    assert len(changes(logged)) == 2
    assert put(system, reason="b")["json"]["suppressions"][0]["reason"] == "b"


def test_what_has_ended_is_as_if_it_were_not_there(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    put(system, scope="sales", expires_at="2098-01-01T00:00:00Z")
    put(system, scope="all", expires_at="2099-01-01T00:00:00Z")
    module = system.modules["calls_api"]
    monkeypatch.setattr(
        module, "suppressor", module.suppressor.__class__(module.numbers, lambda: 4_050_000_000_000)
    )
    assert scopes(system) == ["all"]
    assert system.api(DELETE, path={"number": NUMBER}, query={"scope": "sales"})["statusCode"] == 404
    [entry] = system.api(LIST)["json"]["numbers"]
    assert [suppression["scope"] for suppression in entry["suppressions"]] == ["all"]
    monkeypatch.setattr(
        module, "suppressor", module.suppressor.__class__(module.numbers, lambda: 4_080_000_000_000)
    )
    assert shown(system) == system.api(LIST)["json"]["numbers"] == []
    assert system.api(DELETE, path={"number": NUMBER})["statusCode"] == 404


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"scope": "other"}, {"scope"}),
        ({"scope": "Sales"}, {"scope"}),
        ({"scope": 1}, {"scope"}),
        ({"reason": "x" * (MAXIMUM_REASON + 1)}, {"reason"}),
        ({"reason": "a\u0000"}, {"reason"}),
        ({"reason": 1}, {"reason"}),
        ({"expires_at": "2020-01-01T00:00:00Z"}, {"expires_at"}),
        ({"expires_at": "tomorrow"}, {"expires_at"}),
        ({"expires_at": 1}, {"expires_at"}),
        ({"until": "2099-01-01T00:00:00Z"}, {"until"}),
        ({"number": NUMBER}, {"number"}),
        ({"scope": "-", "reason": 1, "expires_at": "x", "a": 1}, {"scope", "reason", "expires_at", "a"}),
    ],
)
def test_every_wrong_field_is_named_and_nothing_is_written(
    system: System, body: dict[str, Any], fields: set[str]
) -> None:
    answer = system.api(PUT, path={"number": NUMBER}, body=body)
    assert answer["statusCode"] == 400
    assert {error["field"] for error in answer["json"]["errors"]} == fields
    assert shown(system) == []


def test_null_is_absent(system: System) -> None:
    assert put(system, scope=None, reason=None, expires_at=None)["statusCode"] == 200
    assert [(one["scope"], one["reason"], one["expiresAt"]) for one in shown(system)] == [("all", None, None)]


@pytest.mark.parametrize("number", ["15550000012", "+", "import", "%2B1", "+0123456789", "+1 155 500 0001", "é"])
def test_a_number_that_is_none_is_refused(system: System, number: str) -> None:
    for route in (GET, PUT, DELETE):
        answer = system.api(route, path={"number": number}, body={} if route == PUT else b"")
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_number")
        assert [error["field"] for error in answer["json"]["errors"]] == ["number"]


def test_an_unknown_parameter_is_refused(system: System) -> None:
    put(system)
    for query in ({"scopes": "all"}, {"scope": "All"}):
        answer = system.api(DELETE, path={"number": NUMBER}, query=query)
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_request")
    assert scopes(system) == ["all"]


def test_a_workspace_has_suppressions_of_its_own(system: System) -> None:
    system.workspaces.put(demo_workspace(workspace_id="other"))
    put(system)
    answer = system.api(GET, path={"number": NUMBER}, headers={"x-workspace-id": "other"})
    assert answer["json"]["suppressions"] == []
    assert system.api(LIST, headers={"x-workspace-id": "other"})["json"]["numbers"] == []
    for route in (GET, PUT, DELETE, LIST, IMPORT):
        refused = system.api(route, path={"number": NUMBER}, headers={"x-api-key": "wrong"}, body={})
        assert refused["statusCode"] == 401


def test_a_workspace_without_keys_leaves_no_key(system: System, logged: io.StringIO) -> None:
    system.workspaces.put(demo_workspace(api_key_hashes=frozenset(), open=True))
    system.forget_workspaces()
    put(system)
    assert shown(system)[0]["by"] == {"keyId": None, "label": None, "callId": None, "operator": None}
    assert changes(logged)[0]["by"] == {}


# ── what rings ──────────────────────────────────────────────────────────────────────────────────────


def test_a_suppressed_number_is_refused_and_a_waiting_call_to_it_does_not_ring(system: System) -> None:
    waiting = system.place(NUMBER)
    put(system)
    answer = system.post({"to": NUMBER, "call_agent_id": "agent-1"})
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (403, "number_suppressed")
    system.run_until(lambda: system.ended(waiting))
    assert system.item(waiting)["events"][-1]["reason"] == "suppressed"
    assert system.calls_placed() == []
    system.api(DELETE, path={"number": NUMBER})
    system.place(NUMBER)
    system.run_until(lambda: len(system.calls_placed()) == 1)


def test_a_suppression_of_a_purpose_keeps_only_its_calls_from_ringing(system: System) -> None:
    put(system, scope="sales")
    assert system.post({"to": NUMBER, "call_agent_id": "a", "purpose": "sales"})["statusCode"] == 403
    assert system.post({"to": NUMBER, "call_agent_id": "a"})["statusCode"] == 200


def test_a_change_by_another_process_in_between_is_kept(system: System) -> None:
    def other() -> None:
        put(system, scope="sales")

    with just_before(system, "calls_api", other):
        assert put(system)["statusCode"] == 200
    assert scopes(system) == ["all", "sales"]


def test_a_removal_whose_answer_was_lost_is_told_as_one(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    put(system)
    client = system.modules["calls_api"].dynamodb
    send = client.update_item
    lost: list[Any] = []

    def lose_the_first(**request: Any) -> Any:
        answer = send(**request)
        if not lost:
            lost.append(request)
            unknown: Any = {"Error": {"Code": "InternalServerError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
            raise ClientError(unknown, "UpdateItem")
        return answer

    monkeypatch.setattr(client, "update_item", lose_the_first)
    assert system.api(DELETE, path={"number": NUMBER})["statusCode"] == 200
    assert lost
    assert shown(system) == []


# ── all of them ─────────────────────────────────────────────────────────────────────────────────────


def test_every_suppressed_number_is_on_one_page(system: System) -> None:
    numbers = [f"+1555000{n:04}" for n in range(25)]
    for number in numbers:
        put(system, number)
    put(system, numbers[3], scope="sales")
    found: list[dict[str, Any]] = []
    query: dict[str, str] = {"limit": "10"}
    for _ in range(3):
        page = system.api(LIST, query=query)["json"]
        found += page["numbers"]
        assert len(page["numbers"]) <= 10
        query["cursor"] = page["cursor"] or ""
    assert page["cursor"] is None
    assert [entry["number"] for entry in found] == numbers
    assert [len(entry["suppressions"]) for entry in found] == [1, 1, 1, 2, *[1] * 21]
    assert len(system.api(LIST)["json"]["numbers"]) == 20


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "101"}, {"cursor": "x"}, {"cursor": "WzFd"}, {"to": "1"}]
)
def test_a_page_that_cannot_be_is_refused(system: System, query: dict[str, str]) -> None:
    answer = system.api(LIST, query=query)
    assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_request")
    assert [error["field"] for error in answer["json"]["errors"]] == list(query)


# ── the import ──────────────────────────────────────────────────────────────────────────────────────


def imported(system: System, *rows: Any) -> dict[str, Any]:
    answer = system.api(IMPORT, body={"suppressions": rows})
    assert answer["statusCode"] == 200, answer
    told = answer["json"]
    assert isinstance(told, dict)
    return told


def test_a_thousand_numbers_are_imported_with_a_result_for_each(system: System, logged: io.StringIO) -> None:
    rows = [{"number": f"+1 555 {n:07}", "reason": "list"} for n in range(MAXIMUM_IMPORTED)]
    told = imported(system, *rows)
    # What this machine did not write in time is told, and written by the next request.
    again = [row for row, result in zip(rows, told["results"], strict=True) if result["result"] == "retry"]
    assert told["accepted"] + len(again) == MAXIMUM_IMPORTED
    while again:
        results = imported(system, *again)["results"]
        assert {result["result"] for result in results} <= {"accepted", "retry"}
        again = [row for row, result in zip(again, results, strict=True) if result["result"] == "retry"]
    assert [result["number"] for result in told["results"]] == [f"+1555{n:07}" for n in range(MAXIMUM_IMPORTED)]
    assert scopes(system, "+15550000999") == scopes(system, "+15550000000") == ["all"]
    assert len({change["number"] for change in changes(logged)}) == MAXIMUM_IMPORTED


def test_a_wrong_row_does_not_keep_the_others_from_being_written(system: System) -> None:
    told = imported(
        system,
        {"number": NUMBER},
        {"number": "1"},
        {"scope": "other", "reason": 1, "x": 2},
        3,
        {"number": "+5215512345678", "scope": "sales", "expires_at": "2099-01-01T00:00:00Z"},
        {"number": NUMBER, "scope": "nope"},
    )
    assert (told["accepted"], told["invalid"], told["retry"]) == (2, 4, 0)
    assert [result["result"] for result in told["results"]] == [
        "accepted",
        *["invalid"] * 3,
        "accepted",
        "invalid",
    ]
    fields = [{error["field"] for error in result.get("errors", ())} for result in told["results"]]
    assert fields == [
        set(),
        {"suppressions.1.number"},
        {"suppressions.2.number", "suppressions.2.reason", "suppressions.2.x"},
        {"suppressions.3"},
        set(),
        {"suppressions.5.scope"},
    ]
    assert (scopes(system), scopes(system, "+525512345678")) == (["all"], ["sales"])


def test_of_one_number_the_longest_of_a_scope_holds(system: System) -> None:
    ends = ["2098-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "2097-01-01T00:00:00Z"]
    rows = [{"number": NUMBER, "reason": end, "expires_at": end} for end in ends]
    assert imported(system, *rows, {"number": NUMBER, "scope": "sales"})["accepted"] == 4
    assert [(one["scope"], one["reason"]) for one in shown(system)] == [("all", ends[1]), ("sales", None)]


def test_an_import_does_not_make_an_opt_out_end(system: System, logged: io.StringIO) -> None:
    """Not in the table, and not in the log, from which the table is rebuilt. PUT replaces it."""
    put(system, reason="Asked by letter")
    row = {"number": NUMBER, "reason": "campaign", "expires_at": "2099-01-01T00:00:00Z"}
    assert imported(system, row)["accepted"] == 1
    assert [(one["reason"], one["expiresAt"]) for one in shown(system)] == [("Asked by letter", None)]
    assert [line["expires_at"] for line in changes(logged)] == [None, None]
    assert put(system, expires_at="2098-01-01T00:00:00Z")["statusCode"] == 200
    assert imported(system, row)["accepted"] == 1
    assert [(one["reason"], one["expiresAt"]) for one in shown(system)] == [
        ("campaign", "2099-01-01T00:00:00.000Z")
    ]


def test_a_suppression_by_the_operator_is_shown_as_such(system: System) -> None:
    now = round(time.time() * 1000)
    system.numbers.suppress("demo", NUMBER, Suppression("all", "", now, None, OPERATOR), now)
    by = {"keyId": None, "label": None, "callId": None, "operator": True}
    answer = system.api(GET, path={"number": NUMBER})
    assert [one["by"] for one in answer["json"]["suppressions"]] == [by]
    NumberSuppressions.model_validate_json(answer["body"])
    answer = system.api(LIST)
    assert [one["by"] for entry in answer["json"]["numbers"] for one in entry["suppressions"]] == [by]
    SuppressionList.model_validate_json(answer["body"])


def test_an_import_keeps_what_is_stored_of_the_number(system: System) -> None:
    put(system, scope="sales")
    call_id = system.place("+15550000001")
    system.run_until(lambda: system.ended(call_id))
    imported(system, {"number": NUMBER})
    assert scopes(system) == ["all", "sales"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"suppressions": []},
        {"suppressions": None},
        {"suppressions": [{"number": NUMBER}] * (MAXIMUM_IMPORTED + 1)},
        {"suppressions": [{"number": NUMBER}], "scope": "all"},
    ],
    ids=["nothing", "none", "null", "too many", "a field that is none"],
)
def test_what_is_no_import_is_refused_as_a_whole(system: System, body: dict[str, Any]) -> None:
    answer = system.api(IMPORT, body=body)
    assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_request")
    assert system.api(LIST)["json"]["numbers"] == []


def test_an_import_has_a_largest_body(system: System) -> None:
    rows = [{"number": f"+1555{n:07}", "reason": "é" * MAXIMUM_REASON} for n in range(MAXIMUM_IMPORTED)]
    body = json.dumps({"suppressions": rows}, ensure_ascii=False).encode()
    assert len(body) <= MAXIMUM_IMPORT_BYTES
    answer = system.api(IMPORT, body=body + b" " * (MAXIMUM_IMPORT_BYTES + 1 - len(body)))
    assert (answer["statusCode"], answer["json"]["code"]) == (413, "too_large")


def test_an_import_ends_in_time_and_tells_what_it_did_not_write(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = system.modules["calls_api"]
    now = iter(range(1_900_000_000_000, 2_000_000_000_000, IMPORT_SECONDS * 1000 // 40))
    monkeypatch.setattr(module, "suppressor", module.suppressor.__class__(module.numbers, lambda: next(now)))
    rows = [{"number": f"+1555{n:07}"} for n in range(100)]
    told = imported(system, *rows)
    assert told["accepted"] + told["retry"] == 100
    assert 0 < told["accepted"] < 50
    for result in told["results"]:
        assert scopes_stored(system, result["number"]) == (result["result"] == "accepted")


def scopes_stored(system: System, number: str) -> bool:
    return bool(system.numbers.get("demo", number).suppressions)


@contextlib.contextmanager
def failing(system: System, operation: str, after: int) -> Iterator[None]:
    """DynamoDB refuses every request of this kind after the first ones."""
    client, sent = system.modules["calls_api"].dynamodb, []

    def refuse(**_: Any) -> None:
        sent.append(operation)
        if len(sent) > after:
            refusal: Any = {"Error": {"Code": "ThrottlingException"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
            raise ClientError(refusal, operation)

    event = f"before-call.dynamodb.{operation}"
    client.meta.events.register_first(event, refuse)
    try:
        yield
    finally:
        client.meta.events.unregister(event, refuse)


def test_what_the_store_did_not_take_may_be_sent_again(system: System) -> None:
    rows = [{"number": f"+1555{n:07}"} for n in range(60)]
    with failing(system, "UpdateItem", 5):
        told = imported(system, *rows)
    assert (told["accepted"], told["retry"]) == (5, 55)
    for result in told["results"]:
        assert scopes_stored(system, result["number"]) == (result["result"] == "accepted")
    for operation in ("UpdateItem", "BatchGetItem"):
        with failing(system, operation, 0):
            answer = system.api(IMPORT, body={"suppressions": rows[10:]})
        assert (answer["statusCode"], answer["json"]["code"]) == (503, "unavailable")
