"""Agents' reports: signed with the LiveKit key, events of the call, counted once, without effect on its end."""

from __future__ import annotations

import base64
import calendar
import dataclasses
import hashlib
import json
import secrets
import time
from typing import Any

import jwt
import pytest
from botocore.exceptions import ConnectTimeoutError

from calls_api.reports import MAXIMUM_REPORT_BYTES, WELL_KNOWN
from examples.agent.ringonce_agent import signed
from shared.call import Outcome
from shared.call_store import MAXIMUM_REPORTS, MAXIMUM_REPORTS_BYTES
from shared.policies import Policy
from shared.table_keys import call_key
from tests.interleaving import change, just_before
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET, TIME_SCALE, System, demo_workspace

ANSWERED = "+15550000012"


def room_of(system: System, call_id: str) -> str:
    name = system.item(call_id)["roomName"]
    assert isinstance(name, str)
    return name


def body_of(kind: str = "agent.note", **data: Any) -> bytes:
    return json.dumps({"type": kind, "data": data}).encode()


def report(
    system: System, call_id: str, body: bytes, *, key: str | None = None, room: str | None = None
) -> dict[str, Any]:
    token = signed(body, room or room_of(system, call_id), LIVEKIT_KEY, LIVEKIT_SECRET)
    return system.report(call_id, body, token, {"idempotency-key": key} if key is not None else {})


def reports(system: System, call_id: str) -> list[str]:
    return [kind for kind in system.events(call_id) if kind.startswith("agent.")]


# ── the whole way ───────────────────────────────────────────────────────────────────────────────


def test_what_the_agent_reports_reaches_the_callback_signed_in_its_place_with_the_metadata(system: System) -> None:
    """The stand-in's agent reads its dispatch and reports with the file that agents copy, over real HTTP."""
    metadata = {"orderId": "o-1", "one": 1.0}
    call_id = system.place("+15550000019", metadata=metadata, dynamic_variables={"firstName": "Zoë"})
    system.run_until(lambda: len(system.received(call_id)) == 7)
    assert not [entry for entry in standin_log(system) if entry["kind"] == "report_failed"]
    kinds = system.events(call_id)
    assert [kind for kind in kinds if kind.startswith("call.")] == [
        "call.queued",
        "call.dialing",
        "call.answered",
        "call.ended",
    ]
    assert reports(system, call_id) == ["agent.ringing", "agent.transcript", "agent.summary"]
    assert kinds.index("agent.ringing") > kinds.index("call.dialing")

    received = {event["sequence"]: event for event in system.received(call_id)}
    assert sorted(received) == [1, 2, 3, 4, 5, 6, 7]
    assert all(event["verified"] for event in received.values())
    bodies = [json.loads(received[sequence]["body"]) for sequence in sorted(received)]
    assert [body["type"] for body in bodies] == kinds
    assert all(body["metadata"] == metadata for body in bodies)
    told = {body["type"]: body["data"].get("report") for body in bodies}
    assert told["agent.ringing"] == {}
    assert told["agent.transcript"]["turns"][0] == {"speaker": "agent", "text": "Hello Zoë"}
    assert told["agent.summary"] == {"text": "Zoë said hello"}
    assert told["call.ended"] is None


def standin_log(system: System) -> list[dict[str, Any]]:
    events = system.http.get(f"{system.servers.livekit_url}/_standin/events").json()["events"]
    assert isinstance(events, list)
    return events


def test_a_report_is_kept_to_the_byte_and_changes_nothing_else(system: System) -> None:
    call_id = system.place()
    before = system.item(call_id)
    data = '{"score": 1.0, "big":12345678901234567890123, "z":1, "a":"\\u00e9 é" }'
    answer = report(system, call_id, f'{{"type":"agent.note" , "data": {data} }}'.encode())
    assert answer["statusCode"] == 200
    assert answer["json"] == {
        "status": "success",
        "message": "The report is an event of the call",
        "callId": call_id,
        "eventId": f"evt_{call_id}_2",
        "sequence": 2,
    }
    after = system.item(call_id)
    new = {"events", "reportIds", "reportBytes"}
    assert {name: value for name, value in after.items() if name not in new} == {
        name: value for name, value in before.items() if name != "events"
    }
    assert after["events"][:1] == before["events"]
    view = system.api("GET /v1/api/call/{callId}", call_id)
    assert view["json"]["status"] == "queued"
    assert f'"report":{data}' in view["body"]
    system.run_until(lambda: len(system.received(call_id)) >= 2)
    [webhook] = [event["body"] for event in system.received(call_id) if event["sequence"] == 2]
    assert f'"report":{data}' in webhook


@pytest.mark.parametrize("status", ["queued", "dialing", "in_progress", "ended"])
def test_an_agent_may_report_at_any_time_until_shortly_after_the_end(system: System, status: str) -> None:
    """It is in the room before the phone rings, and often knows what was said only when it is over."""
    if status == "queued":
        call_id = system.place()
    elif status == "dialing":
        call_id = system.place()
        change(system, call_id, status="dialing", lease_id="lease", lease_until_ms=2**42)
    else:
        call_id = system.place(ANSWERED if status == "in_progress" else "+15550000001")
        system.run_until(lambda: system.item(call_id)["status"] == "in_progress" or system.ended(call_id))
    before = system.item(call_id)["status"]
    assert report(system, call_id, body_of())["statusCode"] == 200
    assert system.item(call_id)["status"] == before
    assert reports(system, call_id) == ["agent.note"]


# ── who may ─────────────────────────────────────────────────────────────────────────────────────


def token(body: bytes, room: str, secret: str = LIVEKIT_SECRET, **claims: Any) -> str:
    """As LiveKit's signer makes it, but for the claims given; None takes one out."""
    now = int(time.time())
    usual = {
        "iss": LIVEKIT_KEY,
        "sub": "",
        "nbf": now,
        "exp": now + 300,
        "video": {"room": room},
        "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
    }
    given = {name: value for name, value in (usual | claims).items() if value is not None}
    return jwt.encode(given, secret, algorithm="HS256")


FORGED: dict[str, tuple[dict[str, Any], int]] = {
    "another secret": ({"secret": "another-secret-of-at-least-thirty-two-characters"}, 401),
    "another key": ({"iss": "another"}, 401),
    "no issuer": ({"iss": None}, 401),
    "expired": ({"exp": int(time.time()) - 61}, 401),
    "no expiry": ({"exp": None}, 401),
    "valid for too long": ({"exp": int(time.time()) + 3600}, 401),
    "not yet valid": ({"nbf": int(time.time()) + 3600}, 401),
    "another body": ({"sha256": base64.b64encode(bytes(32)).decode()}, 401),
    "no hash": ({"sha256": None}, 401),
    "no room": ({"video": None}, 401),
    "an empty room": ({"video": {"room": ""}}, 401),
    "a room that is none": ({"video": {"room": ["a"]}}, 401),
    "grants that are none": ({"video": "room"}, 401),
    "another room": ({"video": {"room": "agent-1-0000000000"}}, 404),
}


def test_a_report_that_is_not_from_this_calls_agent_leaves_nothing_behind(system: System) -> None:
    call_id = system.place()
    before, body = system.item(call_id), body_of()
    for name, (claims, status) in FORGED.items():
        answer = system.report(call_id, body, token(body, room_of(system, call_id), **claims))
        code = "invalid_signature" if status == 401 else "call_not_found"
        assert (answer["statusCode"], answer["json"]["code"]) == (status, code), name
        assert system.item(call_id) == before, name


def test_tokens_of_livekit_for_other_ends_are_none(system: System) -> None:
    """Those that open a room to a participant, those of its webhooks, and one that is not signed at all."""
    from livekit.api.access_token import AccessToken, VideoGrants

    call_id = system.place()
    before, room, body = system.item(call_id), room_of(system, call_id), body_of()
    join = AccessToken(LIVEKIT_KEY, LIVEKIT_SECRET).with_identity("a")
    for forged in (
        join.with_grants(VideoGrants(room_join=True, room=room)).to_jwt(),
        token(body, room, video=None),
        jwt.encode({"iss": LIVEKIT_KEY, "exp": 2**40}, "", algorithm="none"),
        "",
    ):
        assert system.report(call_id, body, forged)["statusCode"] == 401
    for header in ("", "Basic YTpi", token(body, room)):
        event_headers = {"authorization": header}
        assert system.report(call_id, body, "", event_headers)["statusCode"] == 401
    assert system.item(call_id) == before


def test_a_wrong_room_learns_nothing_of_other_calls(system: System) -> None:
    mine, other = system.place(), system.place()
    body = body_of()
    answers = [
        report(system, call_id, body, room=room_of(system, mine))
        for call_id in (other, "0" * 24, "no id", "a" * 3000)
    ]
    assert len({answer["body"] for answer in answers}) == 1
    assert answers[0]["statusCode"] == 404
    assert reports(system, other) == []


def test_ten_minutes_ahead_is_accepted_with_a_minute_for_the_clocks(system: System) -> None:
    call_id = system.place()
    room, body = room_of(system, call_id), body_of()
    now = calendar.timegm(time.gmtime())
    late = token(body, room, nbf=now + 50, exp=now + 655)
    assert system.report(call_id, body, late)["statusCode"] == 200
    early = token(body_of(n=1), room, nbf=now - 400, exp=now - 30)
    assert system.report(call_id, body_of(n=1), early)["statusCode"] == 200


# ── what may be said ────────────────────────────────────────────────────────────────────────────

GOOD: dict[str, dict[str, Any]] = {
    "agent.ringing": {},
    "agent.voicemail": {"messageLeft": True},
    "agent.transcript": {"turns": [{"speaker": "callee", "text": "Hello"}]},
    "agent.summary": {"text": "Will come on Friday"},
    "agent.opt_out": {"said": "Do not call me again"},
    "agent.transfer": {"to": "+12025550123", "status": "started"},
}


def test_every_well_known_report_is_taken_with_more_in_it_than_is_known(system: System) -> None:
    assert set(GOOD) == set(WELL_KNOWN)
    call_id = system.place()
    for kind, data in GOOD.items():
        assert report(system, call_id, body_of(kind, **data, ownField={"a": [1]}))["statusCode"] == 200, kind
    assert reports(system, call_id) == list(GOOD)


BAD: list[tuple[Any, list[str]]] = [
    ({}, ["type"]),
    ({"type": "call.ended"}, ["type"]),
    ({"type": "agent."}, ["type"]),
    ({"type": "agent.A"}, ["type"]),
    ({"type": "agent.a\n"}, ["type"]),
    ({"type": "agent." + "a" * 65}, ["type"]),
    ({"type": 1, "data": [], "more": 1}, ["type", "data", "more"]),
    ({"type": "agent.note", "data": "text"}, ["data"]),
    ({"type": "agent.summary"}, ["data.text"]),
    ({"type": "agent.summary", "data": {"text": ""}}, ["data.text"]),
    ({"type": "agent.voicemail", "data": {"messageLeft": "yes"}}, ["data.messageLeft"]),
    ({"type": "agent.transcript", "data": {"turns": []}}, ["data.turns"]),
    (
        {"type": "agent.transcript", "data": {"turns": [{"speaker": "dog", "text": 1}, 2]}},
        ["data.turns.0.speaker", "data.turns.0.text", "data.turns.1"],
    ),
    ({"type": "agent.transfer", "data": {"status": "gone"}}, ["data.to", "data.status"]),
    ({"type": "agent.opt_out", "data": {"said": 1}}, ["data.said"]),
]


def test_every_wrong_field_is_named_and_nothing_is_kept(system: System) -> None:
    call_id = system.place()
    before = system.item(call_id)
    for body, fields in BAD:
        answer = report(system, call_id, json.dumps(body).encode())
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_request"), body
        assert sorted(error["field"] for error in answer["json"]["errors"]) == sorted(fields)
        assert system.item(call_id) == before, body


def test_what_is_not_one_json_object_is_refused(system: System) -> None:
    call_id = system.place()
    for body in (b"", b"[]", b'{"type":"agent.a","type":"agent.b"}', b'{"type":"agent.a","data":{"a":NaN}}'):
        answer = report(system, call_id, body)
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_json"), body
    assert reports(system, call_id) == []


@pytest.mark.parametrize("number", ["9" * 4301, "-" + "9" * 20_000, "1." + "9" * 4301, "1e" + "9" * 4301])
def test_a_number_that_not_every_reader_reads_is_refused_at_any_depth(system: System, number: str) -> None:
    call_id = system.place()
    for data in ('{"n":%s}', '{"a":[{"b":[1,%s]}]}'):
        body = b'{"type":"agent.note","data":%s}' % (data % number).encode()
        answer = report(system, call_id, body)
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "invalid_request")
        assert [error["field"] for error in answer["json"]["errors"]] == ["data"]
    answer = report(system, call_id, f'{{"type":"agent.note","data":{number}}}'.encode())
    assert [error["field"] for error in answer["json"]["errors"]] == ["data"]
    assert reports(system, call_id) == []
    longest = f'{{"a":[{{"{"9" * 5000}":{"9" * 4300}}},"{"9" * 5000}"]}}'
    assert report(system, call_id, f'{{"type":"agent.note","data":{longest}}}'.encode())["statusCode"] == 200
    assert system.api("GET /v1/api/call/{callId}", call_id)["json"]["events"][-1]["report"] == json.loads(longest)


def test_headers_that_come_twice_count_once(system: System) -> None:
    call_id = system.place()
    body = body_of()
    bearer = f"Bearer {signed(body, room_of(system, call_id), LIVEKIT_KEY, LIVEKIT_SECRET)}"
    first = system.report(call_id, body, "", {"authorization": bearer, "idempotency-key": "a"})
    twice = {"authorization": f"{bearer},{bearer}", "idempotency-key": "a, a"}
    again = system.report(call_id, body, "", twice)
    assert (again["json"], again["headers"]["idempotency-replayed"]) == (first["json"], "true")
    assert reports(system, call_id) == ["agent.note"]
    for headers in (twice | {"idempotency-key": "a,b"}, twice | {"authorization": f"{bearer},Bearer b"}):
        answer = system.report(call_id, body, "", headers)
        assert (answer["statusCode"], answer["json"]["code"]) == (400, "conflicting_header")
    packed = system.report(call_id, body, "", twice | {"content-encoding": "gzip"})
    assert (packed["statusCode"], packed["json"]["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("body", [b'{"type":"agent.note"}', b'{"type":"agent.note","data":null}'])
def test_data_that_is_absent_is_empty(system: System, body: bytes) -> None:
    call_id = system.place()
    assert report(system, call_id, body)["statusCode"] == 200
    assert system.item(call_id)["events"][-1]["data"] == "{}"


# ── once, and not too much ──────────────────────────────────────────────────────────────────────


def test_a_replayed_report_counts_once_and_gets_the_same_answer(system: System) -> None:
    """The same request again, byte for byte, from any sender."""
    call_id = system.place()
    body = body_of("agent.summary", text="a")
    signature = token(body, room_of(system, call_id))
    first = system.report(call_id, body, signature)
    assert report(system, call_id, body_of(n=2))["statusCode"] == 200
    again = system.report(call_id, body, signature)
    assert (again["statusCode"], again["body"]) == (200, first["body"])
    assert "idempotency-replayed" not in first["headers"]
    assert again["headers"]["idempotency-replayed"] == "true"
    assert reports(system, call_id) == ["agent.summary", "agent.note"]


def test_a_key_makes_a_report_the_same_one_and_another_key_another(system: System) -> None:
    call_id = system.place()
    first = report(system, call_id, body_of(n=1), key="a")
    assert report(system, call_id, body_of(n=1), key="a")["body"] == first["body"]
    assert report(system, call_id, body_of(n=1), key="b")["json"]["sequence"] == 3
    for other in (body_of(n=2), body_of("agent.other", n=1)):
        refused = report(system, call_id, other, key="a")
        assert (refused["statusCode"], refused["json"]["code"]) == (422, "idempotency_key_reused")
    assert report(system, call_id, body_of(n=1), key="")["json"]["code"] == "invalid_idempotency_key"
    other_call = system.place()
    assert report(system, other_call, body_of(n=2), key="a")["json"]["sequence"] == 2
    assert reports(system, call_id) == ["agent.note"] * 2


def fill(system: System, call_id: str, count: int) -> None:
    """As if the agent had made so many reports more."""
    system.dynamodb.update_item(
        TableName="CallsTable",
        Key=call_key(call_id),
        UpdateExpression="ADD reportIds :ids",
        ExpressionAttributeValues={":ids": {"SS": [f"id-{n}" for n in range(count)]}},
    )


def test_a_repeat_is_answered_even_when_nothing_more_is_taken(system: System) -> None:
    call_id = system.place()
    first = report(system, call_id, body_of(n=0))
    fill(system, call_id, MAXIMUM_REPORTS - 1)
    assert report(system, call_id, body_of(n=1))["json"]["code"] == "reports_full"
    assert report(system, call_id, body_of(n=0))["body"] == first["body"]
    end_long_ago(system, call_id)
    assert report(system, call_id, body_of(n=0))["body"] == first["body"]


def test_two_reports_at_the_same_time_both_land(system: System) -> None:
    call_id = system.place()
    answers = []
    with just_before(system, "calls_api", lambda: answers.append(report(system, call_id, body_of(n=1)))):
        answers.append(report(system, call_id, body_of(n=2)))
    assert [answer["json"]["sequence"] for answer in answers] == [2, 3]
    assert [json.loads(entry["data"])["n"] for entry in system.item(call_id)["events"][1:]] == [1, 2]


def test_one_report_sent_twice_at_the_same_time_lands_once(system: System) -> None:
    call_id = system.place()
    answers = []
    with just_before(system, "calls_api", lambda: answers.append(report(system, call_id, body_of(), key="a"))):
        answers.append(report(system, call_id, body_of(), key="a"))
    assert [answer["json"]["sequence"] for answer in answers] == [2, 2]
    assert reports(system, call_id) == ["agent.note"]


@pytest.mark.parametrize(("given", "code"), [(MAXIMUM_REPORTS, "reports_full"), (MAXIMUM_REPORTS - 1, "")])
def test_the_last_place_is_given_once(system: System, given: int, code: str) -> None:
    call_id = system.place()
    fill(system, call_id, given - 1)
    with just_before(system, "calls_api", lambda: report(system, call_id, body_of(n="first"))):
        assert report(system, call_id, body_of(n="second"))["json"].get("code", "") == code
    assert len(reports(system, call_id)) == (1 if code else 2)


def test_too_large_a_report_is_refused_and_the_largest_is_taken(system: System) -> None:
    call_id = system.place()
    frame = len(body_of(a=""))
    largest = body_of(a="x" * (MAXIMUM_REPORT_BYTES - frame))
    answer = report(system, call_id, largest + b" ")
    assert (answer["statusCode"], answer["json"]["code"]) == (413, "too_large")
    assert reports(system, call_id) == []
    assert report(system, call_id, largest)["statusCode"] == 200


def test_a_call_whose_reports_are_full_by_number_takes_no_more_and_still_ends(system: System) -> None:
    call_id = system.place()
    fill(system, call_id, MAXIMUM_REPORTS - 2)
    for n in range(2):
        assert report(system, call_id, body_of(n=n))["statusCode"] == 200
    refused = report(system, call_id, body_of(n=-1))
    assert (refused["statusCode"], refused["json"]["code"]) == (409, "reports_full")
    system.run_until(lambda: system.ended(call_id))
    item = system.item(call_id)
    assert (item["status"], item["events"][-1]["type"]) == ("completed", "call.ended")
    assert len(reports(system, call_id)) == 2


def test_a_call_whose_reports_are_full_by_size_still_ends_with_the_largest_context(system: System) -> None:
    """Everything at its largest, which is below what DynamoDB takes in one item."""
    half = "x" * (16 * 1024 - len('{"m": ""}'))
    call_id = system.place(metadata={"m": half}, dynamic_variables={"v": half})
    frame = len(json.dumps({"type": "agent.note", "data": {"n": 1, "a": ""}}).encode())
    for n in range(MAXIMUM_REPORTS_BYTES // MAXIMUM_REPORT_BYTES):
        body = json.dumps(
            {"type": "agent.note", "data": {"n": n, "a": "x" * (MAXIMUM_REPORT_BYTES - frame)}}
        ).encode()
        assert len(body) == MAXIMUM_REPORT_BYTES
        assert report(system, call_id, body)["statusCode"] == 200
    assert report(system, call_id, b'{"type":"agent.a"}')["json"]["code"] == "reports_full"
    system.run_until(lambda: system.ended(call_id))
    system.run_until(lambda: len(system.received(call_id)) == 8)
    [kept] = system.dynamodb.query(
        TableName="CallsTable",
        KeyConditionExpression="pk = :pk AND sk = :sk",
        ExpressionAttributeValues={":pk": call_key(call_id)["pk"], ":sk": {"S": "CALL"}},
    )["Items"]
    assert len(json.dumps(kept, ensure_ascii=False).encode()) < 300 * 1024


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def end_long_ago(system: System, call_id: str) -> None:
    """Ends it as if five minutes and a bit had passed since."""
    calls = system.modules["calls_api"].calls
    ended_at = int(time.time() * 1000) - int(300_000 * TIME_SCALE) - 1000
    assert calls.end(calls.get(call_id), Outcome("canceled", "canceled_by_api"), 2**42, ended_at).won


def test_five_minutes_after_the_end_no_report_is_taken(system: System) -> None:
    call_id = system.place()
    end_long_ago(system, call_id)
    before = system.item(call_id)
    answer = report(system, call_id, body_of())
    assert (answer["statusCode"], answer["json"]["code"]) == (409, "call_ended")
    assert system.item(call_id) == before


def test_reports_after_the_end_leave_the_end_as_it_was(system: System) -> None:
    """One end event, the same expiry; a repeated cancel is still the same cancel."""
    call_id = system.place()
    cancel = "POST /v1/api/call/{callId}/cancel"
    assert system.api(cancel, call_id)["statusCode"] == 200
    before = system.item(call_id)
    assert report(system, call_id, body_of("agent.summary", text="late"))["statusCode"] == 200
    after = system.item(call_id)
    assert (after["status"], after["endedAt"], after["expiresAt"]) == (
        before["status"],
        before["endedAt"],
        before["expiresAt"],
    )
    assert system.api(cancel, call_id)["statusCode"] == 200
    assert system.events(call_id) == ["call.queued", "call.ended", "agent.summary"]
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert (view["status"], view["endReason"]) == ("canceled", "canceled_by_api")


def test_an_end_whose_answer_was_lost_is_won_though_a_report_came_in_between(system: System) -> None:
    """The SDK sends the end again; its condition fails on an item whose last event is the agent's."""
    call_id = system.place()
    calls = system.modules["calls_api"].calls
    seen, outcome = calls.get(call_id), Outcome("canceled", "canceled_by_api")
    now = int(time.time() * 1000)
    assert calls.end(seen, outcome, 2**42, now).won
    assert report(system, call_id, body_of())["statusCode"] == 200
    again = calls.end(seen, outcome, 2**42, now)
    assert again.won
    assert system.events(call_id).count("call.ended") == 1


def test_reports_racing_with_the_end_neither_lose_it_nor_get_lost(system: System) -> None:
    """Whichever write comes first, both are there and both are delivered."""
    cancel = "POST /v1/api/call/{callId}/cancel"
    first, second = system.place(), system.place()
    with just_before(system, "calls_api", lambda: report(system, first, body_of())):
        assert system.api(cancel, first)["statusCode"] == 200
    assert system.events(first) == ["call.queued", "agent.note", "call.ended"]
    with just_before(system, "calls_api", lambda: system.api(cancel, second)):
        assert report(system, second, body_of())["json"]["sequence"] == 3
    assert system.events(second) == ["call.queued", "call.ended", "agent.note"]
    for call_id in (first, second):
        system.run_until(lambda call_id=call_id: len(system.received(call_id)) == 3)  # type: ignore[misc]
        assert sorted(event["sequence"] for event in system.received(call_id)) == [1, 2, 3]


def test_a_report_right_before_the_fence_does_not_stop_the_dial(system: System) -> None:
    call_id = system.place()
    with just_before(system, "dial_worker", lambda: report(system, call_id, body_of())):
        system.run_until(lambda: system.ended(call_id))
    assert system.events(call_id) == ["call.queued", "agent.note", "call.dialing", "call.answered", "call.ended"]
    assert len(system.calls_placed()) == 1


def test_a_secret_that_was_rotated_is_seen(system: System) -> None:
    call_id = system.place()
    body = body_of()
    assert report(system, call_id, body)["statusCode"] == 200
    new = secrets.token_hex(32)
    cache = system.modules["calls_api"].livekit_secret
    cache._secret = dataclasses.replace(cache.get(), api_secret=new)
    room = room_of(system, call_id)
    assert system.report(call_id, body, signed(body, room, LIVEKIT_KEY, LIVEKIT_SECRET))["statusCode"] == 401
    assert system.report(call_id, body, signed(body, room, LIVEKIT_KEY, new))["statusCode"] == 200


# ── the opt-out ─────────────────────────────────────────────────────────────────────────────────────

SUPPRESSION = "/v1/api/suppression/{number}"


def suppressed(system: System, number: str = ANSWERED) -> list[dict[str, Any]]:
    """The suppressions of a number, without their times."""
    answer = system.api(f"GET {SUPPRESSION}", path={"number": number})
    return [{name: shown[name] for name in ("scope", "reason", "by")} for shown in answer["json"]["suppressions"]]


def by_call(call_id: str, scope: str = "all", reason: str | None = None) -> dict[str, Any]:
    by = {"keyId": None, "label": None, "callId": call_id, "operator": None}
    return {"scope": scope, "reason": reason, "by": by}


def test_an_opt_out_suppresses_the_callee_and_is_an_event(system: System) -> None:
    call_id = system.place(ANSWERED)
    answer = report(system, call_id, body_of("agent.opt_out", said="Do not call me again", more=1))
    assert answer["json"] == {
        "status": "success",
        "message": "The report is an event of the call",
        "callId": call_id,
        "eventId": f"evt_{call_id}_2",
        "sequence": 2,
        "suppressed": True,
    }
    assert suppressed(system) == [by_call(call_id, reason="Do not call me again")]
    view = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert view["events"][1]["report"] == {"said": "Do not call me again", "more": 1}
    answer = system.post({"to": ANSWERED, "call_agent_id": "agent-1"})
    assert json.loads(answer["body"])["code"] == "number_suppressed"
    system.run_until(lambda: system.ended(call_id))
    assert (system.item(call_id)["events"][-1]["reason"], system.calls_placed()) == ("suppressed", [])


@pytest.mark.parametrize(
    ("purpose", "data", "scope"),
    [
        (None, {"scope": "all"}, "all"),
        (None, {"scope": "purpose"}, "default"),
        ("sales", {"scope": "purpose"}, "sales"),
        ("sales", {"scope": None}, "all"),
        ("sales", {}, "all"),
    ],
)
def test_an_opt_out_may_be_of_the_calls_purpose_alone(
    system: System, purpose: str | None, data: dict[str, Any], scope: str
) -> None:
    system.workspaces.put(demo_workspace(policies={"sales": Policy("sales")}))
    fields: dict[str, Any] = {"purpose": purpose} if purpose else {}
    call_id = system.place(ANSWERED, **fields)
    assert report(system, call_id, body_of("agent.opt_out", **data))["statusCode"] == 200
    assert suppressed(system) == [by_call(call_id, scope)]


@pytest.mark.parametrize("state", ["full", "full by size", "long over", "dialing"])
def test_an_opt_out_holds_whatever_becomes_of_its_report(system: System, state: str) -> None:
    call_id = system.place(ANSWERED)
    match state:
        case "full":
            fill(system, call_id, MAXIMUM_REPORTS)
        case "full by size":
            for n in range(4):
                assert (
                    report(system, call_id, body_of(n=n, a="x" * (MAXIMUM_REPORT_BYTES - 60)))["statusCode"] == 200
                )
            assert report(system, call_id, body_of(a="x" * 2000))["statusCode"] == 409
        case "long over":
            end_long_ago(system, call_id)
        case "dialing":
            change(system, call_id, status="dialing", lease_id="lease", lease_until_ms=2**42)
    before = system.item(call_id)
    answer = report(system, call_id, body_of("agent.opt_out", said="x" * 300))
    assert answer["statusCode"] == 200
    assert answer["json"]["suppressed"] is True
    assert suppressed(system) == [by_call(call_id, reason="x" * 256)]
    if state == "dialing":
        assert answer["json"]["sequence"] == 2
    else:
        assert not {"eventId", "sequence"} & set(answer["json"])
        assert system.item(call_id) == before


def test_a_repeated_opt_out_does_not_undo_a_removal_made_since(system: System) -> None:
    """A client library repeats a request whose answer was lost, maybe after people have decided otherwise."""
    call_id = system.place(ANSWERED)
    first = report(system, call_id, body_of("agent.opt_out"), key="a")
    again = report(system, call_id, body_of("agent.opt_out"), key="a")
    assert (again["body"], again["headers"]["idempotency-replayed"]) == (first["body"], "true")
    assert suppressed(system) == [by_call(call_id)]
    system.api(f"DELETE {SUPPRESSION}", path={"number": ANSWERED})
    assert report(system, call_id, body_of("agent.opt_out"), key="a")["body"] == first["body"]
    assert suppressed(system) == []
    # Another report is another opt-out.
    assert report(system, call_id, body_of("agent.opt_out"), key="b")["statusCode"] == 200
    assert suppressed(system) == [by_call(call_id)]


def test_an_opt_out_that_an_earlier_version_took_suppresses_when_it_is_repeated(system: System) -> None:
    call_id = system.place(ANSWERED)
    report(system, call_id, body_of("agent.opt_out"))
    queued, reported = system.item(call_id)["events"]
    del reported["suppressed"]
    change(system, call_id, events=[queued, reported])
    system.api(f"DELETE {SUPPRESSION}", path={"number": ANSWERED})
    assert report(system, call_id, body_of("agent.opt_out"))["statusCode"] == 200
    assert suppressed(system) == [by_call(call_id)]


def test_an_opt_out_that_is_not_of_the_calls_agent_suppresses_nothing(system: System) -> None:
    call_id, other = system.place(ANSWERED), system.place("+15550000001")
    body = body_of("agent.opt_out")
    assert report(system, call_id, body, room=room_of(system, other))["statusCode"] == 404
    assert system.report(call_id, body, "none")["statusCode"] == 401
    wrong = report(system, call_id, body_of("agent.opt_out", scope="sales", said=1))
    assert sorted(error["field"] for error in wrong["json"]["errors"]) == ["data.said", "data.scope"]
    assert suppressed(system) == suppressed(system, "+15550000001") == []


def test_an_opt_out_that_cannot_be_written_is_no_event_yet(system: System) -> None:
    """The agent repeats it: what is told as an event has suppressed the callee."""
    call_id = system.place(ANSWERED)
    client = system.modules["calls_api"].dynamodb

    def lose(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://dynamodb")

    client.meta.events.register_first("before-send.dynamodb.UpdateItem", lose)
    try:
        assert report(system, call_id, body_of("agent.opt_out"))["statusCode"] == 503
    finally:
        client.meta.events.unregister("before-send.dynamodb.UpdateItem", lose)
    assert (reports(system, call_id), suppressed(system)) == ([], [])
    assert report(system, call_id, body_of("agent.opt_out"))["json"]["sequence"] == 2
    assert suppressed(system) == [by_call(call_id)]
