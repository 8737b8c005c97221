"""The file that agents copy: reading the dispatch, and sending each report once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time

import jwt
import pytest

import ringonce_agent
from ringonce_agent import ReportFailedError, ReportRefusedError, read_dispatch, report
from tests.fakes import CALL_ID, IDENTITY, KEY, ROOM, SECRET, Ringonce, dispatch_metadata


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringonce_agent, "WAITS", (0.0, 0.0))


def test_the_dispatch_keeps_context_and_metadata_apart() -> None:
    dispatch = read_dispatch(dispatch_metadata("https://api.example/events"))
    assert (dispatch.call_id, dispatch.identity, dispatch.to) == (CALL_ID, IDENTITY, "+12025550123")
    assert dispatch.dynamic_variables == {"firstName": "Zoë", "open": 2, "member": True, "nickname": None}
    assert dispatch.metadata["orderId"] == "SECRET-ORDER"
    assert dispatch.events_url == "https://api.example/events"


@pytest.mark.parametrize(
    "metadata",
    ["", "{", "[]", "null", "{}", dispatch_metadata(metadata=[]), dispatch_metadata(dynamicVariables="a")],
)
def test_a_job_that_ringonce_did_not_dispatch_is_refused_without_showing_it(metadata: str) -> None:
    with pytest.raises(ValueError, match="not dispatched by Ringonce") as refused:
        read_dispatch(metadata)
    assert "SECRET" not in str(refused.value)
    assert refused.value.__cause__ is None


def send(*answers: int, kind: str = "agent.note", key: str | None = None) -> tuple[Ringonce, int | None]:
    async def run() -> tuple[Ringonce, int | None]:
        async with Ringonce(*answers) as ringonce:
            dispatch = read_dispatch(dispatch_metadata(ringonce.url))
            return ringonce, await report(dispatch, ROOM, kind, {"name": "Zoë"}, key=key)

    return asyncio.run(run())


def test_a_report_is_signed_for_its_room_its_body_and_a_few_minutes() -> None:
    ringonce, sequence = send(key="summary-1")
    assert sequence == 1
    [(headers, body)] = ringonce.requests
    assert json.loads(body) == {"type": "agent.note", "data": {"name": "Zoë"}}
    assert headers["idempotency-key"] == "summary-1"
    claims = jwt.decode(headers["authorization"].removeprefix("Bearer "), SECRET, algorithms=["HS256"], issuer=KEY)
    assert claims["video"]["room"] == ROOM
    assert claims["sha256"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
    assert 0 < claims["exp"] - time.time() <= 600
    assert not claims["video"].get("roomJoin")
    assert not claims["video"].get("roomAdmin")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_report_is_repeated_under_the_same_key_until_it_is_accepted(status: int) -> None:
    ringonce, sequence = send(status, status)
    assert sequence == 3
    assert len({(headers["idempotency-key"], body) for headers, body in ringonce.requests}) == 1


def test_two_reports_of_the_same_words_are_two() -> None:
    keys = {send()[0].requests[0][0]["idempotency-key"] for _ in range(2)}
    assert len(keys) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 302])
def test_a_refused_report_is_not_repeated(status: int) -> None:
    async def run() -> None:
        async with Ringonce(status) as ringonce:
            with pytest.raises(ReportRefusedError, match="a_code") as refused:
                await report(read_dispatch(dispatch_metadata(ringonce.url)), ROOM, "agent.note")
            assert (refused.value.status, len(ringonce.requests)) == (status, 1)

    asyncio.run(run())


def test_a_report_that_never_gets_through_fails_in_the_end() -> None:
    async def run() -> None:
        async with Ringonce(500, 502, 503, 504) as ringonce:
            with pytest.raises(ReportFailedError, match="503"):
                await report(read_dispatch(dispatch_metadata(ringonce.url)), ROOM, "agent.note")
            assert len(ringonce.requests) == 3
        with pytest.raises(ReportFailedError, match="Connect"):
            await report(read_dispatch(dispatch_metadata(ringonce.url)), ROOM, "agent.note")

    asyncio.run(run())
