"""The webhook receiver of the local stack."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from standardwebhooks import Webhook

from local.receiver import create_app

SECRET, OTHER_SECRET = ("whsec_" + base64.b64encode(bytes([fill]) * 32).decode() for fill in (1, 2))
ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
EVENT = {"id": "evt_c1_2", "type": "call.dialing", "sequence": 2, "data": {"callId": "c1"}, "metadata": {}}


@dataclass
class Bench:
    url: str
    http: aiohttp.ClientSession

    async def control(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.http.request(method, f"{self.url}/_receiver/{path}", json=body) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json()

    async def events(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.control("GET", f"events{query}"))["events"]
        return found

    async def post(
        self, path: str = "/hook", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        data = json.dumps(EVENT).encode() if body is None else body
        async with self.http.post(
            self.url + path, data=data, headers=headers or signed(data), allow_redirects=False
        ) as answer:
            return answer.status, dict(answer.headers), await answer.read()


def signed(body: bytes, *secrets: str, at: datetime | None = None) -> dict[str, str]:
    at = at or datetime.now(UTC)
    signatures = (Webhook(secret).sign("evt_c1_2", at, body.decode()) for secret in secrets or (SECRET,))
    return {
        "webhook-id": "evt_c1_2",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


@asynccontextmanager
async def bench(*secrets: str) -> AsyncIterator[Bench]:
    async with TestServer(create_app(secrets or (SECRET,))) as server, aiohttp.ClientSession() as http:
        yield Bench(str(server.make_url("")).rstrip("/"), http)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_signed_webhook_is_kept_and_verified_on_any_path() -> None:
    async def check() -> None:
        async with bench() as b:
            before = time.time_ns() // 1_000_000
            for path in ("/hook", "/hook/abc"):
                status, _, body = await b.post(path)
                assert (status, body) == (204, b"")
            first, second = await b.events()
            assert (first["path"], second["path"]) == ("/hook", "/hook/abc")
            assert (first["verified"], first["error"]) == (True, None)
            assert (first["id"], first["type"], first["sequence"], first["callId"]) == (
                "evt_c1_2",
                "call.dialing",
                2,
                "c1",
            )
            assert json.loads(first["body"]) == EVENT
            assert first["headers"]["webhook-id"] == "evt_c1_2"
            assert first["receivedAtMs"] >= before

    run(check())


def test_either_of_two_secrets_verifies_and_they_can_be_changed() -> None:
    async def check() -> None:
        body = json.dumps(EVENT).encode()
        async with bench(SECRET, OTHER_SECRET) as b:
            await b.post(body=body, **signed(body, OTHER_SECRET))
            await b.control("PUT", "secrets", [SECRET])
            await b.post(body=body, **signed(body, OTHER_SECRET))
            await b.post(body=body, **signed(body, OTHER_SECRET, SECRET))
            assert [event["verified"] for event in await b.events()] == [True, False, True]
            await b.control("PUT", "secrets", ["whsec_"], status=400)
            await b.control("PUT", "secrets", {}, status=400)

    run(check())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"webhook-signature": "v1,AAAA"}, "No matching signature"),
        ({"webhook-signature": "nonsense"}, ""),
        ({"webhook-id": "evt_other"}, "No matching signature"),
        ({"webhook-id": ""}, "Missing required headers"),
    ],
)
def test_a_forged_webhook_is_kept_and_marked(change: dict[str, str], error: str) -> None:
    async def check() -> None:
        body = json.dumps(EVENT).encode()
        async with bench() as b:
            assert (await b.post(body=body, **(signed(body) | change)))[0] == 204
            (event,) = await b.events()
            assert event["verified"] is False
            assert event["error"] is not None
            assert error in event["error"]

    run(check())


def test_a_changed_body_an_old_timestamp_and_a_body_that_is_not_json_are_not_verified() -> None:
    async def check() -> None:
        body = json.dumps(EVENT).encode()
        async with bench() as b:
            await b.post(body=body + b" ", **signed(body))
            await b.post(body=body, **signed(body, at=datetime.now(UTC) - timedelta(minutes=6)))
            await b.post(body=b"\xff", **signed(body))
            events = await b.events()
            assert [event["verified"] for event in events] == [False] * 3
            assert events[2]["type"] is None

    run(check())


def test_events_are_listed_by_call_path_and_number() -> None:
    async def check() -> None:
        async with bench() as b:
            for call, path in (("c1", "/a"), ("c2", "/a"), ("c1", "/b")):
                await b.post(path, json.dumps({"data": {"callId": call}}).encode())
            assert [event["number"] for event in await b.events("?callId=c1")] == [1, 3]
            assert [event["number"] for event in await b.events("?path=/a")] == [1, 2]
            assert [event["number"] for event in await b.events("?after=2")] == [3]
            await b.control("POST", "reset")
            assert await b.events() == []

    run(check())


def test_a_path_refuses_as_often_as_set_and_others_do_not() -> None:
    async def check() -> None:
        async with bench() as b:
            told = {"/bad": {"status": 503, "retryAfter": 7, "times": 2}, "*": {"status": 200}}
            assert await b.control("PUT", "behaviour", told) == told
            answers = [await b.post("/bad") for _ in range(3)]
            assert [answer[0] for answer in answers] == [503, 503, 200]
            assert answers[0][1]["Retry-After"] == "7"
            assert (await b.post("/good"))[0] == 200
            await b.control("PUT", "behaviour", {"*": None})
            assert (await b.post("/good"))[0] == 204
            assert (await b.events())[0]["behaviour"] == told["/bad"]

    run(check())


def test_a_path_redirects_or_answers_too_much() -> None:
    async def check() -> None:
        async with bench() as b:
            elsewhere = f"{b.url}/elsewhere"
            await b.control(
                "PUT", "behaviour", {"/moved": {"redirectTo": elsewhere}, "/big": {"bigBody": 100_000}}
            )
            status, headers, _ = await b.post("/moved")
            assert (status, headers["Location"]) == (302, elsewhere)
            status, _, body = await b.post("/big")
            assert (status, len(body)) == (200, 100_000)

    run(check())


def test_a_path_hangs_or_drips_until_the_client_gives_up() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "behaviour", {"/hang": {"hang": True}, "/drip": {"drip": True}})
            hung = asyncio.create_task(b.post("/hang"))
            async with b.http.post(b.url + "/drip", data=b"{}") as answer:
                assert await answer.content.readexactly(2) == b".."
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(await b.events()) < 2:
                assert time.monotonic() < deadline
            assert not hung.done()
            await b.control("POST", "reset")
            assert (await hung)[0] == 204

    run(check())


@pytest.mark.parametrize("behaviour", [{"stauts": 500}, {"status": 99}, 7])
def test_an_unknown_behaviour_is_refused_by_name(behaviour: Any) -> None:
    async def check() -> None:
        async with bench() as b:
            refused = await b.control("PUT", "behaviour", {"/hook": behaviour}, status=400)
            assert all(name.startswith("/hook") for name in refused["errors"])

    run(check())


def test_show_prints_each_webhook(capsys: pytest.CaptureFixture[str]) -> None:
    async def check() -> None:
        app = create_app((SECRET,), show=True)
        async with TestServer(app) as server, aiohttp.ClientSession() as http:
            b = Bench(str(server.make_url("")).rstrip("/"), http)
            await b.post("/hook")
            await b.post("/hook", b"\x1b[2Jnot JSON")

    run(check())
    said = capsys.readouterr().out
    assert "/hook  call.dialing 2  evt_c1_2  verified\n{\n" in said
    assert '"callId": "c1"' in said
    assert "NOT VERIFIED" not in said.splitlines()[0]
    assert " [2Jnot JSON" in said
    assert "\x1b" not in said


def test_the_process_prints_its_address_and_ends_on_a_signal() -> None:
    command = [sys.executable, "-m", "local.receiver", "--port", "0", "--secret", SECRET]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            word, _, ready = process.stdout.readline().partition(" ")
            assert word == "READY"

            async def check() -> None:
                async with aiohttp.ClientSession() as http:
                    b = Bench(json.loads(ready)["url"], http)
                    assert (await b.post())[0] == 204
                    assert (await b.events())[0]["verified"]

            run(check())
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            process.kill()
