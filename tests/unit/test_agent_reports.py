"""An agent's report: whose it is, what it may hold, and what becomes of a repeat."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any, cast

import jwt
import pytest

from calls_api.reports import MAXIMUM_REPORT_BYTES, MAXIMUM_TOKEN_SECONDS, ReportReceiver, parse_report
from calls_api.suppression import Suppressor
from shared.errors import RequestRefusedError
from shared.livekit.secret import LiveKitSecret, LiveKitSecretCache
from shared.livekit.signature import LEEWAY_SECONDS
from shared.numbers import NumberStore
from tests.one_call import CALL, CALL_ID, NOW, OneCall

SECRET = LiveKitSecret("wss://you.livekit.cloud", "API1", "s" * 48)
TALKING: dict[str, Any] = {"status": "in_progress", "answered_at_ms": NOW, "attempts": 1}
ENDED = TALKING | {"status": "completed", "ended_at_ms": NOW}


class Secret:
    def get(self) -> LiveKitSecret:
        return SECRET


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> OneCall:
    one = OneCall(monkeypatch)
    # A token's times are compared with the machine's clock.
    one.now = int(time.time() * 1000)
    return one


def token(body: bytes, seconds: float = 300, room: Any = CALL.room_name) -> str:
    claims = {
        "iss": SECRET.api_key,
        "exp": int(time.time() + seconds),
        "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
        "video": {"room": room},
    }
    return jwt.encode(claims, SECRET.api_secret, "HS256")


def report(one: OneCall, body: Any, key: str | None = None, call_id: str = CALL_ID, **claims: Any) -> Any:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    secret = cast(LiveKitSecretCache, Secret())
    receiver = ReportReceiver(
        one.calls, Suppressor(one.numbers, lambda: one.now), secret, one.durations, lambda: one.now
    )
    return receiver.receive(call_id, token(text, **claims), key, text)


def refused(one: OneCall, *given: Any, **named: Any) -> tuple[int, str]:
    with pytest.raises(RequestRefusedError) as caught:
        report(one, *given, **named)
    return caught.value.status, caught.value.code


NOTE = {"type": "agent.note", "data": {"a": 1}}


def test_a_report_is_the_next_event_of_its_call(one: OneCall) -> None:
    one.place(**TALKING)
    reported = report(one, b'{"type": "agent.note", "data": {"a":  1.50}}')
    assert (reported.kind, reported.sequence, reported.replayed) == ("agent.note", 2, False)
    assert reported.body() == {
        "status": "success",
        "message": "The report is an event of the call",
        "callId": CALL_ID,
        "eventId": f"evt_{CALL_ID}_2",
        "sequence": 2,
    }
    entry = dict(one.call.events[1])
    assert entry.pop("reportId").startswith("body-")
    assert entry == {"type": "agent.note", "at": one.now, "data": '{"a":  1.50}'}
    assert one.call.status == "in_progress"


def test_a_repeat_is_the_same_event(one: OneCall) -> None:
    one.place(**TALKING)
    for key in (None, "k"):
        first = report(one, NOTE, key)
        assert not first.replayed
        report(one, {"type": "agent.other"}, key and "other")
        again = report(one, NOTE, key)
        assert (again.sequence, again.replayed, again.kind) == (first.sequence, True, "agent.note")
    assert len(one.call.events) == 5


def test_without_a_key_every_byte_makes_a_report_another_one(one: OneCall) -> None:
    one.place(**TALKING)
    assert report(one, b'{"type":"agent.note"}').sequence == 2
    assert report(one, b'{"type": "agent.note"}').sequence == 3


@pytest.mark.parametrize("other", [{"type": "agent.other", "data": {"a": 1}}, {"type": "agent.note"}])
def test_a_key_that_comes_with_another_report_is_refused(one: OneCall, other: dict[str, Any]) -> None:
    one.place(**TALKING)
    report(one, NOTE, "k")
    assert refused(one, other, "k") == (422, "idempotency_key_reused")
    assert report(one, other, "k2").sequence == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "\n"])
def test_an_invalid_key_is_refused(one: OneCall, key: str) -> None:
    one.place(**TALKING)
    assert refused(one, NOTE, key) == (400, "invalid_idempotency_key")


# ── whose it is ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", [None, "", 7, []])
def test_a_token_that_names_no_room_is_refused(one: OneCall, room: Any) -> None:
    one.place(**TALKING)
    assert refused(one, NOTE, room=room) == (401, "invalid_signature")


def test_a_token_without_grants_is_refused(one: OneCall) -> None:
    text = json.dumps(NOTE).encode()
    suppressor = Suppressor(one.numbers, lambda: one.now)
    secret = cast(LiveKitSecretCache, Secret())
    receiver = ReportReceiver(one.calls, suppressor, secret, one.durations, lambda: one.now)
    claims = jwt.decode(token(text), options={"verify_signature": False})
    for video in ("room", None):
        given = jwt.encode(claims | {"video": video}, SECRET.api_secret, "HS256")
        with pytest.raises(RequestRefusedError, match="names no room"):
            receiver.receive(CALL_ID, given, None, text)


def test_the_longest_life_of_a_token(one: OneCall) -> None:
    one.place(**TALKING)
    longest = MAXIMUM_TOKEN_SECONDS + LEEWAY_SECONDS
    exp = int(time.time()) + 600
    for now, taken in ((exp - longest, True), (exp - longest - 0.001, False)):
        one.now = round(now * 1000)
        if taken:
            assert report(one, NOTE, f"k{now}", seconds=exp - time.time() + 0.5).sequence == 2
        else:
            assert refused(one, NOTE, seconds=exp - time.time() + 0.5) == (401, "invalid_signature")
    assert (MAXIMUM_TOKEN_SECONDS, LEEWAY_SECONDS) == (600, 60)


@pytest.mark.parametrize(
    ("call_id", "room"), [(CALL_ID, "other"), ("b" * 24, CALL.room_name), ("x", CALL.room_name)]
)
def test_who_may_speak_for_a_room_learns_nothing_of_other_calls(one: OneCall, call_id: str, room: str) -> None:
    one.place(**TALKING)
    assert refused(one, NOTE, call_id=call_id, room=room) == (404, "call_not_found")
    assert len(one.call.events) == 1


# ── when and how much ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("late", "taken"), [(0, True), (300_000, True), (300_001, False)])
def test_an_agent_may_report_for_five_minutes_after_the_end(one: OneCall, late: int, taken: bool) -> None:
    one.place(**ENDED | {"ended_at_ms": one.now - late})
    if taken:
        assert report(one, NOTE).sequence == 2
    else:
        assert refused(one, NOTE) == (409, "call_ended")


def test_a_repeat_is_answered_long_after_the_end(one: OneCall) -> None:
    one.place(**ENDED | {"ended_at_ms": one.now})
    report(one, NOTE)
    one.now += 301_000
    assert report(one, NOTE, seconds=300).replayed


@pytest.mark.parametrize("late", [None, 0, 300_000])
def test_the_fifty_first_report_is_refused(one: OneCall, late: int | None) -> None:
    one.place(**TALKING if late is None else ENDED | {"ended_at_ms": one.now - late})
    for n in range(50):
        report(one, NOTE, f"k{n}")
    assert refused(one, NOTE, "k50") == (409, "reports_full")


@pytest.mark.parametrize(("size", "status"), [(MAXIMUM_REPORT_BYTES, None), (MAXIMUM_REPORT_BYTES + 1, 413)])
def test_the_largest_report(one: OneCall, size: int, status: int | None) -> None:
    assert MAXIMUM_REPORT_BYTES == 32_768
    one.place(**TALKING)
    body = b'{"type":"agent.note"}'.ljust(size)
    if status is None:
        assert report(one, body).sequence == 2
    else:
        assert refused(one, body) == (413, "too_large")


def test_five_of_the_largest_reports_are_too_many(one: OneCall) -> None:
    one.place(**TALKING)
    for n in range(4):
        assert report(one, b'{"type":"agent.note"}'.ljust(MAXIMUM_REPORT_BYTES), f"k{n}").sequence == 2 + n
    assert refused(one, NOTE) == (409, "reports_full")


# ── what it may hold ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("agent.a", {}),
        ("agent." + "a" * 64, {}),
        ("agent.a_1", {"any": ["thing", None]}),
        ("agent.ringing", {"more": 1}),
        ("agent.voicemail", {}),
        ("agent.voicemail", {"messageLeft": False}),
        ("agent.voicemail", {"messageLeft": None}),
        ("agent.transcript", {"turns": [{"speaker": "agent", "text": "x"}, {"speaker": "callee", "text": "y"}]}),
        ("agent.transcript", {"turns": [{"speaker": "agent", "text": "x", "more": 1}]}),
        ("agent.summary", {"text": "x"}),
        ("agent.opt_out", {}),
        ("agent.opt_out", {"said": "no"}),
        ("agent.transfer", {"to": "x"}),
        ("agent.transfer", {"to": "x", "status": "failed"}),
    ],
)
def test_a_valid_report(kind: str, data: dict[str, Any]) -> None:
    parsed = parse_report(json.dumps({"type": kind, "data": data}).encode())
    assert (parsed.kind, json.loads(parsed.data)) == (kind, data)


@pytest.mark.parametrize("body", [b'{"type":"agent.note"}', b'{"type":"agent.note","data":null}'])
def test_a_report_without_data_has_an_empty_object(body: bytes) -> None:
    assert parse_report(body).data == "{}"


LONG = "1" * 5_000


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["type"]),
        ({"type": 7}, ["type"]),
        ({"type": "agent."}, ["type"]),
        ({"type": "agent." + "a" * 65}, ["type"]),
        ({"type": "agent.1"}, ["type"]),
        ({"type": "agent.A"}, ["type"]),
        ({"type": "call.ended"}, ["type"]),
        ({"type": "agent.a\n"}, ["type"]),
        ({"type": "agent.a", "data": []}, ["data"]),
        ({"type": "agent.a", "more": 1}, ["more"]),
        ({"type": "x", "more": 1}, ["type", "more"]),
        ({"type": "agent.voicemail", "data": {"messageLeft": 1}}, ["data.messageLeft"]),
        ({"type": "agent.transcript"}, ["data.turns"]),
        ({"type": "agent.transcript", "data": {"turns": []}}, ["data.turns"]),
        (
            {"type": "agent.transcript", "data": {"turns": [{"speaker": "bot", "text": ""}]}},
            ["data.turns.0.speaker", "data.turns.0.text"],
        ),
        ({"type": "agent.summary", "data": {"text": ""}}, ["data.text"]),
        ({"type": "agent.summary", "data": {}}, ["data.text"]),
        ({"type": "agent.opt_out", "data": {"said": 7}}, ["data.said"]),
        ({"type": "agent.transfer", "data": {"to": "x", "status": "y"}}, ["data.status"]),
        ({"type": "agent.transfer", "data": {"to": ""}}, ["data.to"]),
    ],
)
def test_every_wrong_field_of_a_report_is_named(body: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parse_report(json.dumps(body).encode())
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert [error.field for error in caught.value.errors] == fields
    assert caught.value.message.startswith(f"{fields[0]} ")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (f'{{"type":"agent.a","data":{{"n":{LONG}}}}}', ["data"]),
        (f'{{"type":"agent.summary","data":{{"n":{LONG}}}}}', ["data.text", "data"]),
        (f'{{"type":"x","data":{{"n":{LONG}}}}}', ["type", "data"]),
        (f'{{"type":"agent.a","data":{LONG}}}', ["data"]),
    ],
)
def test_a_number_that_is_too_long_is_refused(body: str, fields: list[str]) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        parse_report(body.encode())
    assert [error.field for error in caught.value.errors] == fields


def test_only_too_many_scopes_make_an_opt_out_one_of_every_call(
    one: OneCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another error of a value is a fault of the program, and nothing is suppressed by it."""
    asked: list[str] = []

    def suppress(_store: NumberStore, _workspace: str, _number: str, wanted: Any, *_: Any, **__: Any) -> None:
        asked.append(wanted.scope)
        raise ValueError("a fault")

    monkeypatch.setattr(NumberStore, "suppress", suppress)
    with pytest.raises(ValueError, match="a fault"):
        Suppressor(one.numbers, lambda: one.now).opt_out(CALL, "sales", "no", one.now)
    assert asked == ["sales"]
