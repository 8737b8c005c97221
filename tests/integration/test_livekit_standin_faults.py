"""What the LiveKit stand-in makes go wrong on demand: errors that lie about the phone, processes that die."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit import api

from tests.livekit_bench import LONG, bench, run
from tests.loop_time import time_passes

# Errors that say nothing of the phone


@pytest.mark.parametrize("fail", ["failed_precondition", "unavailable", "internal"])
def test_a_dial_can_be_answered_an_error_though_the_phone_has_answered_and_talks(fail: str) -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control(
                "PUT", "faults", {"numbers": {"+491": {"outcome": "talks_on", "fail": fail, "after": True}}}
            )
            with pytest.raises(api.ServerError) as caught:
                await b.dial("+491")
            assert (caught.value.code, caught.value.metadata) == (fail, {})
            await b.one_call_is(callStatus="active", outcome=None)
            assert [one.attributes["sip.callStatus"] for one in await b.participants()] == ["active"]

    run(check())


def test_a_dial_can_be_answered_an_error_while_the_phone_rings_on() -> None:
    async def check() -> None:
        async with bench(ring=LONG) as b:
            knobs = {"outcome": "talks_on", "fail": "unavailable", "whileRinging": True}
            await b.control("PUT", "faults", {"numbers": {"+491": knobs}})
            dial = asyncio.create_task(b.dial("+491"))
            await b.placed()
            time_passes(0.2 * LONG)
            with pytest.raises(api.ServerError) as caught:
                await dial
            assert caught.value.code == "unavailable"
            await b.one_call_is(callStatus="ringing")
            time_passes(LONG)
            await b.one_call_is(callStatus="active", outcome=None)

    run(check())


def test_a_refusal_of_the_carrier_can_lack_its_sip_code() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"numbers": {"+491": {"outcome": "busy", "withoutMeta": True}}})
            with pytest.raises(api.ServerError) as caught:
                await b.dial("+491")
            assert not isinstance(caught.value, api.SipCallError)
            assert (caught.value.code, caught.value.metadata) == ("resource_exhausted", {})
            assert (await b.calls())[0]["outcome"] == "busy"

    run(check())


@pytest.mark.parametrize(
    "knobs", [{"fail": "internal", "after": True, "whileRinging": True}, {"after": True}, {"whileRinging": True}]
)
def test_a_failure_of_a_number_comes_at_one_time(knobs: dict[str, Any]) -> None:
    async def check() -> None:
        async with bench() as b:
            told = await b.control("PUT", "faults", {"numbers": {"+491": knobs}}, status=400)
            assert "whileRinging" in str(told)

    run(check())
