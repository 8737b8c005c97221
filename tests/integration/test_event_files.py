"""`events/*.json`, for `sam local invoke`, are events that the handlers take."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.system import API_KEY, LIVEKIT_KEY, LIVEKIT_SECRET, TEMPLATE, Context, System

EVENTS = Path(__file__).parent.parent.parent / "events"


def event_file(name: str) -> dict[str, Any]:
    event = json.loads((EVENTS / f"{name}.json").read_text())
    assert isinstance(event, dict)
    return event


def test_there_is_one_for_every_function() -> None:
    functions = {
        entry["Properties"]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
        for entry in TEMPLATE["Resources"].values()
        if entry["Type"] == "AWS::Serverless::Function"
    }
    assert {path.stem for path in EVENTS.glob("*.json")} == functions


@pytest.mark.parametrize("name", ["dial_worker", "deliver", "fan_out"])
def test_a_batch_is_taken_without_a_failure(system: System, name: str) -> None:
    assert system.handlers[name](event_file(name), Context(6)) == {"batchItemFailures": []}


def test_the_request_is_accepted(system: System) -> None:
    event = event_file("initiate_call")
    event["headers"]["x-api-key"] = API_KEY
    answer = system.handlers["initiate_call"](event, Context(10))
    assert answer["statusCode"] == 200, answer


def test_the_reading_request_is_understood(system: System) -> None:
    event = event_file("calls_api")
    event["headers"]["x-api-key"] = API_KEY
    answer = system.handlers["calls_api"](event, Context(10))
    assert json.loads(answer["body"])["code"] == "call_not_found"


def test_livekits_event_is_taken_once_it_is_signed(system: System) -> None:
    event = event_file("livekit_events")
    body = base64.b64decode(event["body"])
    now = int(time.time())
    claims = {
        "iss": LIVEKIT_KEY,
        "nbf": now,
        "exp": now + 300,
        "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
    }
    assert system.handlers["livekit_events"](event, Context(10))["statusCode"] == 401
    event["headers"]["authorization"] = jwt.encode(claims, LIVEKIT_SECRET, algorithm="HS256")
    assert system.handlers["livekit_events"](event, Context(10))["statusCode"] == 200


def test_the_schedule_is_taken(system: System) -> None:
    assert system.handlers["reconcile_calls"](event_file("reconcile_calls"), Context(55)) == {}
