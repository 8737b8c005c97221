"""A dial is repeated only when it is proved that nothing rang: never because of an error alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from shared.errors import LiveKitError
from shared.livekit.client import LiveKit, connect
from shared.livekit.outcomes import verdict
from shared.livekit.secret import LiveKitSecret
from tests.interleaving import change_durations, requests
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET, System

NUMBER = "+15550400001"


def end_of(system: System, call_id: str) -> tuple[str, str]:
    item = system.item(call_id)
    assert [entry["type"] for entry in item["events"]].count("call.ended") == 1
    return item["status"], item["events"][-1]["reason"]


def run(system: System, **knobs: Any) -> str:
    """One call to its end."""
    system.faults(numbers={NUMBER: knobs})
    call_id = system.place(NUMBER, ring_timeout_seconds=10)
    system.run_until(lambda: system.ended(call_id))
    return call_id


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        ("busy", "busy", "busy"),
        ("sip_600", "busy", "busy"),
        ("temporarily_unavailable", "no_answer", "no_answer"),
        ("rejected", "rejected", "rejected"),
        ("invalid_number", "failed", "invalid_number"),
        ("sip_503", "failed", "trunk_error"),
    ],
)
def test_a_refusal_that_lost_its_sip_code_rings_once_and_ends_by_livekits_event(
    system: System, outcome: str, status: str, reason: str
) -> None:
    call_id = run(system, outcome=outcome, withoutMeta=True)
    assert end_of(system, call_id) == (status, reason)
    assert len(system.calls_placed(NUMBER)) == requests(system)["CreateSIPParticipant"] == 1
    assert system.events(call_id).count("call.dialing") == 1


@pytest.mark.parametrize("fail", ["resource_exhausted", "unavailable", "failed_precondition", "internal"])
@pytest.mark.parametrize("lost", [["participant_left"], ["participant_joined"]])
def test_an_error_after_the_phone_rang_is_no_proof(
    system: System, monkeypatch: pytest.MonkeyPatch, fail: str, lost: list[str]
) -> None:
    """Of LiveKit's two events of the phone one arrives, and no look finds it: it rings no second time."""
    if lost == ["participant_left"]:
        change_durations(monkeypatch, system, "dial_worker", left_wait=0.1)
    system.faults(webhooks={"drop": 1, "only": lost})
    call_id = run(system, outcome="busy", fail=fail, after=True)
    assert system.item(call_id)["status"] in ("failed", "rejected", "busy")
    assert len(system.calls_placed(NUMBER)) == requests(system)["CreateSIPParticipant"] == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.ended"]


@pytest.mark.parametrize(
    "fail", ["resource_exhausted", "unavailable", "failed_precondition", "internal", "not_found"]
)
def test_a_phone_that_talks_behind_an_error_is_found(system: System, fail: str) -> None:
    call_id = run(system, outcome="answer", fail=fail, after=True, talkSeconds=1)
    assert end_of(system, call_id) == ("completed", "hangup")
    assert "call.answered" in system.events(call_id)
    assert len(system.calls_placed(NUMBER)) == 1


@pytest.mark.parametrize("fail", ["unavailable", "failed_precondition", "permission_denied"])
def test_a_phone_that_rings_on_behind_an_error_is_waited_for(system: System, fail: str) -> None:
    call_id = run(system, outcome="answer", fail=fail, whileRinging=True, ringSeconds=0.5)
    assert end_of(system, call_id) == ("completed", "hangup")
    assert len(system.calls_placed(NUMBER)) == 1


def test_unavailable_before_the_dial_is_tried_again_after_two_looks(system: System) -> None:
    system.faults(createSIPParticipant={"fail": "unavailable", "times": 2})
    call_id = system.place(NUMBER)
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("completed", "hangup")
    assert system.events(call_id).count("call.dialing") == 3
    assert len(system.calls_placed(NUMBER)) == 1


def test_a_rate_limit_is_not_told_from_a_busy_phone_and_is_not_tried_again(system: System) -> None:
    system.faults(createSIPParticipant={"fail": "resource_exhausted", "times": 1})
    call_id = system.place(NUMBER)
    system.run_until(lambda: system.ended(call_id))
    assert end_of(system, call_id) == ("failed", "outcome_unknown")
    assert system.calls_placed(NUMBER) == []


def test_a_phone_that_joins_after_the_first_look_is_found_by_a_later_one(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit says that nothing was dialled, and the phone rings all the same, a moment later."""
    dial, lies = LiveKit.dial, [True]
    late: list[asyncio.Task[None]] = []

    async def after_all(livekit: LiveKit, **request: Any) -> None:
        await asyncio.sleep(system.durations.second_look / 3)
        await dial(livekit, **request)

    async def lying(livekit: LiveKit, **request: Any) -> None:
        if lies.pop():
            late.append(asyncio.ensure_future(after_all(livekit, **request)))
            raise LiveKitError("unavailable", 503)
        await dial(livekit, **request)

    monkeypatch.setattr(LiveKit, "dial", lying)
    call_id = run(system, outcome="answer", talkSeconds=4)
    assert end_of(system, call_id) == ("completed", "hangup")
    assert len(system.calls_placed(NUMBER)) == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]


BODIES = [
    '{"code": ["unavailable"], "msg": "x"}',
    '{"code": {"unavailable": 1}}',
    '{"code": null, "msg": null, "meta": null}',
    '{"code": 429}',
    '{"code": "UNAVAILABLE"}',
    '{"code": "resource_exhausted", "meta": 5}',
    '{"code": "resource_exhausted", "meta": "sip_status_code"}',
    '{"code": "resource_exhausted", "meta": ["sip_status_code"]}',
    '{"code": "resource_exhausted", "meta": {"sip_status_code": ["486"]}}',
    '{"code": "resource_exhausted", "meta": {"sip_status_code": "busy"}}',
    '{"code": "resource_exhausted", "meta": {"sip_status_code": "4860"}}',
    '{"message": "Too Many Requests"}',
    '["unavailable"]',
    '"unavailable"',
    "Too Many Requests",
    "",
]


@pytest.mark.parametrize("status", [403, 429, 500, 503])
@pytest.mark.parametrize("body", BODIES)
def test_no_shape_of_an_errors_body_is_believed_or_breaks_the_worker(body: str, status: int) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/json")

    async def dial() -> LiveKitError:
        app = web.Application()
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            secret = LiveKitSecret(f"http://127.0.0.1:{runner.addresses[0][1]}", LIVEKIT_KEY, LIVEKIT_SECRET)
            async with connect(lambda: secret, 10) as livekit:
                with pytest.raises(LiveKitError) as caught:
                    await livekit.dial(
                        room="r",
                        identity="call-x",
                        trunk_id="ST_1",
                        to=NUMBER,
                        from_number=None,
                        ring_seconds=1,
                        longest_seconds=60,
                        timeout=10,
                    )
            return caught.value
        finally:
            await runner.cleanup()

    error = asyncio.run(dial())
    assert verdict(error).kind == "look"
