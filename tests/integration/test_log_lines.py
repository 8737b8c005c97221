"""No log line, metric or error contains a whole phone number or a value of the secret."""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from examples.agent.ringonce_agent import signed
from shared.errors import RingonceError, StoreError
from shared.livekit.secret import LiveKitSecretCache
from shared.telemetry import masked
from tests.integration.conftest import E164
from tests.interleaving import change, phone_left, tell
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET, System

# Answered and hung up; busy; a trunk that cannot be used; answered and talked to until it is cancelled; LiveKit's
# answer lost; refused before it is dialled.
NUMBERS = {
    "whole": "+15550000000",
    "busy": "+15550000001",
    "trunk": "+15551230403",
    "canceled": "+15550000012",
    "unclear": "+15551230502",
    "dead worker": "+15551230001",
    "not allowed": "+442071838750",
}
CALLER = "+15550009999"


@pytest.fixture
def lines(
    logged: io.StringIO, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """All that has been written so far, metrics and the records of the libraries included."""
    return lambda: logged.getvalue() + caplog.text + capsys.readouterr().out


def test_no_log_line_and_no_metric_has_a_whole_number(system: System, lines: Callable[[], str]) -> None:
    caller: dict[str, Any] = {"from": CALLER}
    ids = {name: system.place(NUMBERS[name], **caller) for name in ("whole", "busy")}
    system.run_until(lambda: all(map(system.ended, ids.values())))
    system.run_until(lambda: len(system.received(ids["whole"])) == 4)
    # Its message once more.
    repeat = {"callId": ids["whole"], "workspaceId": "demo"}
    system.sqs.send_message(QueueUrl=system.queue_urls["DialQueue"], MessageBody=json.dumps(repeat))
    system.dial()
    system.faults(numbers={NUMBERS["trunk"]: {"outcome": "sip_403"}})
    ids["trunk"] = system.place(NUMBERS["trunk"], **caller)
    ids["canceled"] = system.place(NUMBERS["canceled"])
    system.run_until(lambda: system.item(ids["canceled"])["status"] == "in_progress")
    room = system.item(ids["canceled"])["roomName"]
    body = json.dumps({"type": "agent.note", "data": {"said": NUMBERS["canceled"]}}).encode()
    assert (
        system.report(ids["canceled"], body, signed(body, room, LIVEKIT_KEY, LIVEKIT_SECRET))["statusCode"] == 200
    )
    assert system.api("POST /v1/api/call/{callId}/cancel", ids["canceled"])["statusCode"] == 200
    system.run_until(lambda: system.ended(ids["canceled"]) and system.ended(ids["trunk"]))

    system.faults(createSIPParticipant={"fail": "html502", "times": 1})
    ids["unclear"] = system.place(NUMBERS["unclear"])
    system.dial()
    ids["dead worker"] = system.place(NUMBERS["dead worker"])
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    change(
        system,
        ids["dead worker"],
        status="dialing",
        lease_id="dead",
        lease_until_ms=1,
        dialed_at_ms=1,
        check_at_ms=1,
        phone_left={"reason": "USER_REJECTED", "callStatus": "ringing", "at": 1},
    )
    system.run_until(lambda: bool(system.reconcile()) and system.ended(ids["dead worker"]))
    tell(system, phone_left(system, ids["busy"], "CLIENT_INITIATED", "active"))

    # Refused requests: an invalid number, a country that is not allowed, an invalid caller's number.
    refused = [{"to": "+15550"}, {"to": NUMBERS["not allowed"]}, {"to": NUMBERS["busy"], "from": "+1555000000099"}]
    for fields in refused:
        assert system.post({"call_agent_id": "agent-1"} | fields)["statusCode"] >= 400
    for route in ("GET /v1/api/call/{callId}", "GET /v1/api/call/{callId}/deliveries"):
        for call_id in ids.values():
            assert system.api(route, call_id)["statusCode"] == 200
    assert system.api("GET /v1/api/call")["statusCode"] == 200

    text = lines()
    # The lines are not empty: the masked numbers are in them, and metrics too.
    assert masked(NUMBERS["whole"]) in text
    assert masked(NUMBERS["dead worker"]) in text
    assert '"CallsEnded":' in text
    assert E164.findall(text) == []
    for number in (*NUMBERS.values(), CALLER):
        assert number.removeprefix("+") not in text


VALUES = {"url": "wss://url-in-the-secret.example", "apiKey": "APIkey0secret", "apiSecret": "s3cret" * 8}
MALFORMED = {
    "no JSON": "\n".join(VALUES.values()),
    "JSON that ends too early": json.dumps(VALUES)[:-2],
    "single quotes": str(VALUES),
    "two objects": json.dumps(VALUES) * 2,
    "a list": json.dumps(list(VALUES.values())),
    "a list of objects": json.dumps([VALUES]),
    "a string": json.dumps(json.dumps(VALUES)),
    "only the key": json.dumps(VALUES["apiSecret"]),
    "null": "null",
    "a number": "12345678",
    "under another name": json.dumps({"LIVEKIT_URL": VALUES["url"], VALUES["apiKey"]: VALUES["apiSecret"]}),
    "nested": json.dumps({"livekit": VALUES}),
} | {
    f"without {name}": json.dumps({key: value for key, value in VALUES.items() if key != name}) for name in VALUES
}


def shown(error: BaseException) -> str:
    return "\n".join([str(error), repr(error), *traceback.format_exception(error)])


def assert_shows_nothing(text: str) -> None:
    for value in VALUES.values():
        assert value not in text
        assert value[:12] not in text


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_secret_is_named_and_not_shown(text: str) -> None:
    client: Any = type("Client", (), {"get_secret_value": lambda self, SecretId: {"SecretString": text}})()
    cache = LiveKitSecretCache(client, "ringonce/livekit", 60)
    for _ in range(2):
        with pytest.raises(StoreError, match="secret ringonce/livekit must be JSON with url") as raised:
            cache.get()
        assert_shows_nothing(shown(raised.value))


def test_a_secret_that_is_right_shows_only_what_is_none() -> None:
    client: Any = type(
        "Client", (), {"get_secret_value": lambda self, SecretId: {"SecretString": json.dumps(VALUES)}}
    )()
    secret = LiveKitSecretCache(client, "ringonce/livekit", 60).get()
    assert (secret.url, secret.api_key, secret.api_secret) == tuple(VALUES.values())
    assert VALUES["apiSecret"] not in f"{secret} {secret!r}"


@pytest.mark.parametrize("text", [MALFORMED["no JSON"], MALFORMED["a list"], MALFORMED["without apiSecret"]])
def test_no_function_shows_a_malformed_secret(system: System, lines: Callable[[], str], text: str) -> None:
    fenced, queued = system.place(), system.place()
    event = phone_left(system, fenced, "CLIENT_INITIATED", "active")
    body = b'{"type":"agent.note","data":{}}'
    token = signed(body, system.item(fenced)["roomName"], LIVEKIT_KEY, LIVEKIT_SECRET)
    system.secrets.put_secret_value(SecretId="ringonce/livekit", SecretString=text)
    system.forget_workspaces()
    answers: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            answers.append(str(work()))
        except (ValueError, RingonceError) as exc:
            # As Lambda's runtime writes it into the log.
            answers.append(shown(exc))

    attempt(system.dial)
    change(
        system,
        fenced,
        status="in_progress",
        lease_id="x",
        lease_until_ms=1,
        dialed_at_ms=1,
        answered_at_ms=1,
        check_at_ms=1,
    )
    attempt(system.reconcile)
    attempt(lambda: tell(system, event))
    attempt(lambda: system.report(fenced, body, token))
    attempt(lambda: system.api("POST /v1/api/call/{callId}/cancel", fenced))
    attempt(lambda: system.api("POST /v1/api/call/{callId}/cancel", queued))
    assert len(answers) == 6
    written = lines()
    assert "must be JSON with url, apiKey and apiSecret" in written + "".join(answers)
    assert_shows_nothing(written + "".join(answers))
