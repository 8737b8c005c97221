"""Views of the record: snapshots, webhook bodies, JSON as text."""

from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest

from shared.call import Call, Outcome, Status, event, event_id_of, snapshot, webhook_body
from shared.errors import RequestRefusedError
from shared.raw_json import ascii_compact, members
from tests.calls import call_record

CALL = call_record(
    status="completed",
    events=(
        event("call.queued", 1_000),
        event("call.dialing", 2_000, **{"from": "+15550001111"}),
        event("call.answered", 5_000),
        event("agent.summary", 6_000, data='{"text": "fine",  "score": 1.0}'),
        event("call.ended", 65_400, status="completed", reason="hangup", retryable=False),
    ),
    metadata='{"big": 12345678901234567890123, "one": 1.0, "z": 1, "a": "\\u00e9"}',
)


def test_a_snapshot_is_the_call_as_it_was_after_that_event() -> None:
    seen = [(s["status"], s["from"], s["answeredAt"]) for s in (snapshot(CALL, n) for n in range(1, 6))]
    answered = "1970-01-01T00:00:05.000Z"
    assert seen == [
        ("queued", None, None),
        ("dialing", "+15550001111", None),
        ("in_progress", "+15550001111", answered),
        ("in_progress", "+15550001111", answered),
        ("completed", "+15550001111", answered),
    ]
    assert snapshot(CALL, 5)["durationSeconds"] == 60


@pytest.mark.parametrize("noticed", ["call.answered", "call.ended"])
def test_a_duration_is_not_invented_where_the_answer_or_the_end_was_only_noticed(noticed: str) -> None:
    events = tuple(entry | {"inferred": True} if entry["type"] == noticed else entry for entry in CALL.events)
    view = snapshot(dataclasses.replace(CALL, events=events), 5)
    assert view["durationSeconds"] is None
    assert view["answeredAt"] is not None
    assert view["endedAt"] is not None


def test_a_body_never_changes_whatever_happens_to_the_call_later() -> None:
    before = [webhook_body(dataclasses.replace(CALL, events=CALL.events[:n]), n) for n in range(1, 6)]
    later = dataclasses.replace(CALL, status="failed", lease_id="x", phone_left={"reason": "X"}, check_at_ms=1)
    assert [webhook_body(later, n) for n in range(1, 6)] == before


def test_a_body_carries_metadata_and_reports_as_they_were_written() -> None:
    body = webhook_body(CALL, 4)
    assert body.endswith(f'"metadata":{CALL.metadata}}}')
    assert '"report":{"text": "fine",  "score": 1.0}' in body
    parsed = json.loads(body)
    assert (parsed["id"], parsed["sequence"]) == (f"evt_{'0' * 24}_4", 4)


def test_an_event_that_does_not_exist_has_no_body() -> None:
    with pytest.raises(IndexError):
        webhook_body(CALL, 6)


def test_the_members_text_is_kept_as_written() -> None:
    body = '{ "a" : {"x": 1.0, "y":[1e400, 12345678901234567890]} , "b":"\\u00e9 é \\n" }'
    assert {key: text for key, (_, text) in members(body.encode()).items()} == {
        "a": '{"x": 1.0, "y":[1e400, 12345678901234567890]}',
        "b": '"\\u00e9 é \\n"',
    }


@pytest.mark.parametrize("text", ["", " ", "[]", "null", '{"a":1', '{"a":1}}', "{'a':1}", '{"a":NaN}', '{"a":1,}'])
def test_what_is_not_one_object_is_refused(text: str) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        members(text.encode())
    assert refused.value.status == 400


def test_a_header_gets_the_same_json_in_ascii() -> None:
    text = '{ "a b" : "é \\" 😀 \\u00e9",\n "n" : [1.0, 2] }'
    compacted = ascii_compact(text)
    assert compacted.isascii()
    assert compacted == '{"a b":"\\u00e9 \\" \\ud83d\\ude00 \\u00e9","n":[1.0,2]}'
    assert json.loads(compacted) == json.loads(text)


def test_a_record_survives_its_way_to_the_table_and_back() -> None:
    from shared.dynamo import from_wire, to_wire

    assert Call.from_item(from_wire(to_wire(CALL.to_item()))) == CALL


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(0, 0), (499, 0), (501, 1), (999_600, 1_000), (3_600_000, 3_600), (-2_000, 0)]
)
def test_the_duration_is_that_of_the_conversation_and_never_negative(milliseconds: int, seconds: int) -> None:
    """Less than nothing: two clocks that differ."""
    events = (*CALL.events[:-1], CALL.events[-1] | {"at": 5_000 + milliseconds})
    assert snapshot(dataclasses.replace(CALL, events=events), 5)["durationSeconds"] == seconds


def test_the_end_is_found_before_and_behind_a_report() -> None:
    queued, dialing, answered, summary, ended = CALL.events
    for events in (CALL.events, (queued, dialing, answered, ended, summary)):
        assert dataclasses.replace(CALL, events=events).end_event == ended
    assert dataclasses.replace(CALL, events=(queued, dialing, answered, summary)).end_event == {}


def test_only_the_event_that_a_restore_wrote_has_an_id_of_its_own() -> None:
    events = (*CALL.events[:-1], CALL.events[-1] | {"restored": True})
    restored = dataclasses.replace(CALL, events=(*events, event("agent.summary", 70_000, data="{}")))
    ids = [event_id_of(restored, n) for n in range(1, 7)]
    assert ids == [f"evt_{CALL.call_id}_{n}" + ("r" if n == 5 else "") for n in range(1, 7)]


def test_an_outcome_is_neither_retryable_nor_inferred_unless_it_says_so() -> None:
    outcome = Outcome("completed", "hangup")
    assert (outcome.retryable, outcome.inferred, outcome.sip_status_code) == (False, False, None)


def test_a_record_holds_what_is_set_and_no_more() -> None:
    """What an index or a condition sees as there is there: an unset attribute is absent, a 1 is kept."""
    assert CALL.to_item().keys() == {
        "callId",
        "workspaceId",
        "callAgentId",
        "to",
        "roomName",
        "jobId",
        "createdAt",
        "status",
        "events",
        "ringTimeoutSeconds",
        "maxDurationSeconds",
        "queueDeadline",
        "metadata",
    }
    tried = dataclasses.replace(CALL, attempts=1, lease_id="l", lease_until_ms=1, orphan_room=True, due_shard=1)
    assert tried.to_item().items() >= {"attempts": 1, "leaseUntil": 1, "orphanRoom": True, "dueShard": 1}.items()
    assert Call.from_item(tried.to_item()) == tried


@pytest.mark.parametrize("status", get_args(Status))
def test_a_call_has_ended_in_every_status_but_three(status: Status) -> None:
    call = dataclasses.replace(CALL, status=status)
    assert call.ended is (status not in ("queued", "dialing", "in_progress"))
    assert call.identity == f"call-{CALL.call_id}"
