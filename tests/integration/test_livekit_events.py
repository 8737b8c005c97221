"""What LiveKit's route makes of bodies that LiveKit signed: 2xx for what it will never understand, counted and
logged, and 5xx only for what a repeat can mend.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_metrics import said, values
from tests.interleaving import change, phone_left, room_finished, tell, tell_bytes
from tests.system import System, aws_requests

ANSWERED = "+15550000012"
CALL_ID = "f9e8d7c6b5a4f3e2d1c0b9a8"


@pytest.fixture(scope="module")
def quiet_system(whole_system: System) -> System:
    """One serves all the made-up bodies: none of them is of a call."""
    whole_system.reset()
    return whole_system


@pytest.mark.parametrize("reason", [17, 99, 2**31 - 1, -1, "A_NEW_REASON"])
@pytest.mark.parametrize("status", ["dialing", "in_progress"])
def test_a_reason_that_has_no_name_yet_ends_the_call_all_the_same(
    system: System, capsys: pytest.CaptureFixture[str], reason: Any, status: str
) -> None:
    call_id = system.place(ANSWERED)
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    left = phone_left(system, call_id, reason, "active")
    if status == "dialing":
        change(system, call_id, status="dialing")
    said(capsys)
    assert tell(system, left) == 200
    item = system.item(call_id)
    if status == "dialing":
        assert item["left"] | {"at": 0} == {"reason": "UNKNOWN_REASON", "callStatus": "active", "at": 0}
    else:
        assert (item["status"], item["events"][-1]["reason"]) == ("completed", "disconnected")
    counted = values(said(capsys), "LiveKitEventsNotUnderstood")
    assert counted == ([1] if isinstance(reason, int) else [])


def test_an_attribute_as_long_as_livekit_lets_it_be_is_kept_short(system: System) -> None:
    call_id = system.place(ANSWERED)
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    left = phone_left(system, call_id, "CLIENT_INITIATED", "x" * 500_000)
    change(system, call_id, status="dialing")
    assert tell(system, left) == 200
    assert system.item(call_id)["left"]["reason"] == "CLIENT_INITIATED"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"[{}]",
        b"null",
        b"5",
        b'"event"',
        b" [] ",
        b"\xff\xfe",
        b"{",
        b'{"event":5}',
        b'{"event":[]}',
        b'{"event":"room_finished","event":"room_finished"}',
        b'{"createdAt":' + b"9" * 5000 + b"}",
        b'{"createdAt":"x"}',
        b'{"createdAt":1e400}',
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"participant":{"disconnectReason":99999999999}}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_signed_body_that_is_no_event_is_answered_once_and_counted(
    quiet_system: System, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    assert tell_bytes(quiet_system, body) == 200
    assert values(said(capsys), "LiveKitEventsNotUnderstood") == [1]
    assert [record.getMessage() for record in caplog.records] == ["livekit event not understood"]


@pytest.mark.parametrize(
    "call_id",
    [
        "",
        "x",
        "x" * 3000,
        "f" * 23,
        "f" * 25,
        "F" * 24,
        "é" * 24,
        "#",
        "\u0000",
        f"{CALL_ID}\n",
        f"call-{CALL_ID}",
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_an_id_that_is_none_is_asked_of_no_table(quiet_system: System, call_id: str) -> None:
    """DynamoDB refuses a key of over 2 KB, and LiveKit would send the event again for ever."""
    participant = {"identity": f"call-{call_id}", "disconnectReason": "CLIENT_INITIATED"}
    metadata = json.dumps({"callId": call_id})
    with aws_requests(quiet_system.modules["livekit_events"].dynamodb) as asked:
        assert tell(quiet_system, {"event": "participant_left", "participant": participant}) == 200
        assert tell(quiet_system, {"event": "room_finished", "room": {"metadata": metadata}}) == 200
    assert asked == []


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "nonsense",
        "[" * 200_000,
        "[" * 200_000 + "]" * 200_000,
        '{"callId":' * 100_000 + "1" + "}" * 100_000,
        '{"callId":' + "9" * 5000 + "}",
        '{"callId":["' + CALL_ID + '"]}',
        '{"callId":{}}',
        '{"callId":null}',
        '{"callId":NaN}',
        '["callId"]',
        '"callId"',
        "5",
        "null",
        '{"callId":"\\ud800"}',
    ],
    ids=lambda text: text[:30],
)
def test_metadata_of_a_room_that_is_not_ours_means_nothing(quiet_system: System, metadata: str) -> None:
    assert tell(quiet_system, {"event": "room_finished", "room": {"metadata": metadata}}) == 200


def test_a_table_that_is_down_is_still_a_503(system: System) -> None:
    call_id = system.place(ANSWERED)
    event = room_finished(system, call_id)

    def lose(**_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url="https://dynamodb")

    client = system.modules["livekit_events"].dynamodb
    client.meta.events.register_first("before-send.dynamodb", lose)
    try:
        assert tell(system, event) == 503
    finally:
        client.meta.events.unregister("before-send.dynamodb", lose)


TEXTS = st.text(max_size=40) | st.sampled_from([CALL_ID, f"call-{CALL_ID}", "x" * 5000])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["participant_left", "room_finished", "room_started"]) | TEXTS},
    optional={
        "id": TEXTS | JSON,
        "createdAt": st.integers() | TEXTS | JSON,
        "room": JSON
        | st.fixed_dictionaries(
            {}, optional={"name": TEXTS, "sid": TEXTS, "metadata": TEXTS | JSON.map(json.dumps), "x": JSON}
        ),
        "participant": JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "identity": TEXTS.map("call-{}".format) | TEXTS | JSON,
                "disconnectReason": st.integers() | TEXTS | JSON,
                "attributes": st.dictionaries(TEXTS, TEXTS) | JSON,
            },
        ),
    },
)


@given(
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | EVENTS.map(lambda value: json.dumps(value).encode())
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
def test_whatever_is_signed_is_answered_2xx(quiet_system: System, body: bytes) -> None:
    assert tell_bytes(quiet_system, body) == 200


@given(event=EVENTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
def test_whatever_is_signed_of_a_call_is_answered_2xx(talking: tuple[System, str], event: dict[str, Any]) -> None:
    system, call_id = talking
    for kind, ours in (
        ("participant_left", phone_left(system, call_id, "CLIENT_INITIATED", "active")),
        ("room_finished", room_finished(system, call_id)),
    ):
        mixed = event | {"event": kind, "room": ours["room"]}
        if kind == "participant_left":
            theirs = event.get("participant")
            mixed["participant"] = (theirs if isinstance(theirs, dict) else {}) | {"identity": f"call-{call_id}"}
        assert tell(system, mixed) == 200


@pytest.fixture(scope="module")
def talking(quiet_system: System) -> tuple[System, str]:
    call_id = quiet_system.place(ANSWERED)
    quiet_system.run_until(lambda: quiet_system.item(call_id)["status"] == "in_progress")
    return quiet_system, call_id
