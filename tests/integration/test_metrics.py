"""The metrics of the alarms and the dashboard: each is counted where its event happens."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from local.dashboard import Point, points_of
from tests.interleaving import change
from tests.system import System


def said(capsys: pytest.CaptureFixture[str]) -> list[Point]:
    return [point for line in capsys.readouterr().out.splitlines() for point in points_of(line)]


def values(points: list[Point], name: str) -> list[float]:
    return [point.value for point in points if point.name == name]


def test_a_call_is_counted_once_at_each_step_and_timed_twice(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    call_id = system.place("+15550000000")
    system.run_until(lambda: len(system.received(call_id)) == 4)
    points = said(capsys)
    for name in ("CallsAccepted", "CallsDialed", "CallsAnswered", "CallsEnded"):
        assert values(points, name) == [1], name
    assert [p.dimensions for p in points if p.name == "CallsEnded"] == [(("status", "completed"),)]
    events = system.item(call_id)["events"]
    assert values(points, "DialDelay") == [events[1]["at"] - events[0]["at"]]
    assert len(values(points, "WebhookDelay")) == 4
    assert all(value >= 0 for value in values(points, "WebhookDelay"))


def test_no_metric_is_split_by_function(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    """Each combination of dimensions is paid for."""
    system.place()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "CallsAccepted" in line]
    assert json.loads(line)["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [[]]


def test_a_replayed_webhook_is_no_late_one(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    call_id = system.place("+15550000001")
    system.run_until(lambda: len(system.received(call_id)) == 3)
    said(capsys)
    answer = system.api("POST /v1/api/call/{callId}/deliveries/{sequence}/replay", call_id, path={"sequence": "1"})
    assert answer["statusCode"] == 200
    system.run_until(lambda: len(system.received(call_id)) == 4)
    points = said(capsys)
    assert values(points, "WebhookAttempts") == [1]
    assert values(points, "WebhookDelay") == []


def test_the_reconciler_tells_how_late_it_was(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    system.reconcile()
    assert values(said(capsys), "DueLateness") == [0]
    call_id = system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    change(system, call_id, check_at_ms=int(time.time() * 1000) - 700_000)
    system.reconcile()
    [late] = values(said(capsys), "DueLateness")
    assert 700_000 <= late < 760_000


def test_an_end_that_somebody_asked_for_is_not_the_reconcilers_healing(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hanging up at `max_duration_seconds` is its everyday work; the alarm is about crashes and lost events."""
    asked, died = (system.place(f"+1555012000{n}") for n in range(2))
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    now = int(time.time() * 1000)
    fenced: dict[str, Any] = {
        "status": "dialing",
        "lease_id": "dead",
        "lease_until_ms": 1,
        "dialed_at_ms": now,
        "check_at_ms": 1,
    }
    left = {"reason": "USER_REJECTED", "callStatus": "ringing", "at": 1}
    change(system, asked, **fenced, hangup={"reason": "canceled_by_api", "at": 1})
    change(system, died, **fenced, phone_left=left)
    system.run_until(lambda: bool(system.reconcile()) and system.ended(asked) and system.ended(died))
    points = said(capsys)
    assert sum(values(points, "CallsEnded")) == 2
    assert values(points, "CallsEndedByReconciler") == [1]


def test_a_phone_that_nobody_was_allowed_to_dial_raises_the_alarm(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    call_id = system.place("+15550000012")
    # Its record says that it was never dialled, and its phone rings all the same.
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    system.dynamodb.update_item(
        TableName="CallsTable",
        Key={"pk": {"S": f"CALL#{call_id}"}, "sk": {"S": "CALL"}},
        UpdateExpression="SET #s = :queued REMOVE dialedAt, roomSid, leaseId, leaseUntil",
        ExpressionAttributeNames={"#s": "status"},
        ExpressionAttributeValues={":queued": {"S": "queued"}},
    )
    told: list[Point] = []

    def alarmed() -> bool:
        told.extend(said(capsys))
        return values(told, "RingsWithoutFence") == [1]

    system.http.post(
        f"{system.servers.livekit_url}/_standin/hangup", json={"number": "+15550000012"}
    ).raise_for_status()
    system.run_until(alarmed)
