"""The LiveKit stand-in, tested with the real `livekit-api` client over HTTP."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol.models import DisconnectReason, ParticipantInfo, RoomEndReason
from livekit.protocol.sip import CreateSIPParticipantRequest

from local.livekit.scripts import OUTCOMES, SCRIPTS, script_of
from local.livekit.wire import SIP_CODES
from tests.livekit_bench import DEADLINE_SECONDS, KEY, LONG, SECRET, Bench, bearer, bench, run, token, until
from tests.loop_time import time_passes

ROOT = Path(__file__).parents[2]


# The wire


@pytest.mark.parametrize(
    ("authorization", "content_type", "text"),
    [
        ({}, "application/json", '{"code":"unauthenticated","msg":"permissions denied"}'),
        ({"Authorization": "Basic x"}, "text/plain", "Must start with Bearer"),
        (bearer("nonsense"), "text/plain", "invalid authorization token"),
        (bearer(token(key="other")), "text/plain", "invalid API key"),
        (bearer(token(secret=SECRET + "!")), "text/plain", "invalid authorization token"),
        (bearer(token(ttl=-70)), "text/plain", "invalid authorization token"),
        (bearer(jwt.encode({"iss": KEY}, SECRET)), "text/plain", "invalid authorization token"),
        (bearer(token()), "application/json", "permissions denied"),
        (bearer(token(video={"roomList": True})), "application/json", "permissions denied"),
    ],
)
def test_a_token_that_does_not_allow_the_request_is_refused(
    authorization: dict[str, str], content_type: str, text: str
) -> None:
    async def check() -> None:
        async with bench() as b:
            headers = {"Content-Type": "application/protobuf", **authorization}
            answer = await b.raw("POST", "/twirp/livekit.RoomService/CreateRoom", b"", **headers)
            assert answer[:2] == (401, content_type)
            assert text in answer[2]

    run(check())


def test_a_token_that_expired_within_the_leeway_is_accepted_and_room_admin_is_for_one_room() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.create_room("a")
            for room, status in (("a", 200), ("b", 401)):
                grant = token(ttl=-30, video={"roomAdmin": True, "room": "a"})
                answer = await b.raw(
                    "POST",
                    "/twirp/livekit.RoomService/ListParticipants",
                    api.ListParticipantsRequest(room=room).SerializeToString(),
                    **{"Content-Type": "application/protobuf", "Authorization": f"Bearer {grant}"},
                )
                assert answer[0] == status

    run(check())


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body", "code"),
    [
        ("POST", "RoomService/Nothing", "application/protobuf", b"", "bad_route"),
        ("GET", "RoomService/CreateRoom", "application/protobuf", b"", "bad_route"),
        ("POST", "RoomService/CreateRoom", "text/plain", b"", "bad_route"),
        ("POST", "RoomService/CreateRoom", "application/protobuf", b"\xff\xff", "malformed"),
        ("POST", "RoomService/CreateRoom", "application/json", b"{", "malformed"),
    ],
)
def test_a_request_that_is_not_twirp_gets_a_twirp_error(
    method: str, path: str, content_type: str, body: bytes, code: str
) -> None:
    async def check() -> None:
        async with bench() as b:
            bearer = f"Bearer {token(video={'roomCreate': True})}"
            status, kind, text = await b.raw(
                method, f"/twirp/livekit.{path}", body, Authorization=bearer, **{"Content-Type": content_type}
            )
            assert (status, kind) == (404 if code == "bad_route" else 400, "application/json")
            assert json.loads(text)["code"] == code

    run(check())


def test_a_path_of_another_service_is_not_found() -> None:
    async def check() -> None:
        async with bench() as b:
            answer = await b.raw("POST", "/twirp/livekit.Nope/CreateRoom", b"")
            assert answer == (404, "text/plain", "404 page not found\n")

    run(check())


def test_an_older_livekit_shows_the_refused_token() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"serverVersion": "1.13.5"})
            for bad, told in (
                (token(key="other"), "invalid API key: other"),
                (forged := token(secret="x" * 40), forged),
            ):
                answer = await b.raw("POST", "/twirp/livekit.RoomService/ListRooms", b"", **bearer(bad))
                assert answer[:2] == (401, "text/plain")
                assert told in answer[2]
            refused = await b.control("PUT", "faults", {"serverVersion": "2"}, status=400)
            assert "serverVersion" in str(refused)

    run(check())


def test_json_bodies_are_understood_too() -> None:
    async def check() -> None:
        async with bench() as b:
            headers = {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {token(video={'roomCreate': True})}",
            }
            answer = await b.raw("POST", "/twirp/livekit.RoomService/CreateRoom", b'{"name": "r"}', **headers)
            assert json.loads(answer[2])["name"] == "r"

    run(check())


def test_a_client_with_the_wrong_secret_sees_an_unknown_error_with_status_401() -> None:
    async def check() -> None:
        async with bench() as b, api.LiveKitAPI(b.url, KEY, SECRET[::-1], failover=False) as stranger:
            with pytest.raises(api.ServerError) as caught:
                await stranger.room.create_room(api.CreateRoomRequest(name="r"))
            assert (caught.value.status, caught.value.code, caught.value.message) == (401, "unknown", "")

    run(check())


# Rooms and agents


def test_a_repeated_create_room_returns_the_room_and_adds_no_agent() -> None:
    async def check() -> None:
        async with bench() as b:
            first = await b.create_room("r", '{"to": "+15550000000"}', metadata="m")
            again = await b.create_room("r", "other", metadata="n")
            assert (again.sid, again.metadata, first.sid[:3]) == (first.sid, "m", "RM_")

            async def agent_is_there() -> bool:
                return len(await b.participants()) == 1

            await until(agent_is_there)
            (agent,) = await b.participants()
            assert (agent.kind, agent.state) == (ParticipantInfo.AGENT, ParticipantInfo.ACTIVE)
            assert agent.identity.startswith("agent-AJ_")
            (dispatch,) = (await b.control("GET", "dispatches"))["dispatches"]
            assert dispatch["agentName"] == "caller"
            assert dispatch["metadata"] == '{"to": "+15550000000"}'
            (listed,) = await b.livekit.agent_dispatch.list_dispatch("r")
            assert listed.state.jobs[0].state.participant_identity == agent.identity

    run(check())


def test_every_create_dispatch_adds_an_agent() -> None:
    async def check() -> None:
        async with bench() as b:
            asked = api.CreateAgentDispatchRequest(agent_name="caller", room="made-by-dispatch", metadata="x")
            ids = {(await b.livekit.agent_dispatch.create_dispatch(asked)).id for _ in range(2)}
            assert len(ids) == 2

            async def both_are_there() -> bool:
                return len(await b.participants("made-by-dispatch")) == 2

            await until(both_are_there)
            listed = await b.livekit.agent_dispatch.list_dispatch("made-by-dispatch")
            assert {one.id for one in listed} == ids
            deleted = await b.livekit.agent_dispatch.delete_dispatch(listed[0].id, "made-by-dispatch")
            assert deleted.id == listed[0].id
            assert len(await b.livekit.agent_dispatch.list_dispatch("made-by-dispatch")) == 1

    run(check())


def test_an_absent_room_is_not_found_but_its_participants_are_an_empty_list() -> None:
    async def check() -> None:
        async with bench() as b:
            assert await b.participants("none") == []
            nobody = api.RoomParticipantIdentity(room="none", identity="x")
            for attempt in (
                b.livekit.room.delete_room(api.DeleteRoomRequest(room="none")),
                b.livekit.room.get_participant(nobody),
                b.livekit.room.remove_participant(nobody),
            ):
                with pytest.raises(api.ServerError) as caught:
                    await attempt
                assert (caught.value.code, caught.value.status) == ("not_found", 404)
            unserved: tuple[Awaitable[Any], ...] = (
                b.livekit.agent_dispatch.list_dispatch("none"),
                b.livekit.agent_dispatch.delete_dispatch("AD_x", "none"),
            )
            for asked in unserved:
                with pytest.raises(api.ServerError) as caught:
                    await asked
                assert (caught.value.code, caught.value.status) == ("unavailable", 503)

    run(check())


def test_rooms_are_listed_by_name_and_a_recreated_room_has_another_sid() -> None:
    async def check() -> None:
        async with bench() as b:
            old = await b.create_room("a")
            await b.create_room("b", "agents do not count")
            await b.dial("0012", room="b")
            await b.time_passes(5)
            listed = (await b.livekit.room.list_rooms(api.ListRoomsRequest(names=["b", "c"]))).rooms
            assert [(room.name, room.num_participants) for room in listed] == [("b", 1)]
            assert len((await b.livekit.room.list_rooms(api.ListRoomsRequest())).rooms) == 2
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="a"))
            assert (await b.create_room("a")).sid != old.sid
            shown = {room["name"]: room for room in (await b.control("GET", "rooms"))["rooms"]}
            assert shown["b"]["participants"]

    run(check())


def test_a_room_that_only_an_agent_joins_closes_after_its_empty_timeout() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.create_room("r", "", empty_timeout=200)
            await until(lambda: bool(b.hook.named("participant_joined")))
            await b.time_passes(200)
            await until(lambda: bool(b.hook.named("room_finished")))
            assert b.hook.names("r") == [
                "room_started",
                "participant_joined",
                "participant_left",
                "room_finished",
            ]
            (left,) = b.hook.named("participant_left")
            assert left.participant.disconnect_reason == DisconnectReason.ROOM_CLOSED

    run(check())


def test_a_name_beyond_livekits_limit_is_refused() -> None:
    async def check() -> None:
        async with bench() as b:
            with pytest.raises(api.ServerError) as caught:
                await b.create_room("x" * 257)
            assert caught.value.code == "invalid_argument"

    run(check())


# Calls


def test_an_answered_call_is_reported_in_livekits_order_and_its_room_closes_by_itself() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.create_room("r", "{}")
            await until(lambda: bool(b.hook.named("participant_joined")))
            info = await b.dial("+1234567890", participant_attributes={"own": "1"}, participant_metadata="pm")
            assert (info.participant_identity, info.room_name, info.sip_call_id[:4]) == (
                "call-1",
                "r",
                "SCL_",
            )
            await until(lambda: bool(b.hook.named("participant_left", "call-1")))
            await b.time_passes(20)
            await until(lambda: bool(b.hook.named("room_finished")))
            gone = ["track_unpublished", "participant_left"]
            assert b.hook.names("r", without_tracks=False) == [
                "room_started",
                "participant_joined",
                "participant_joined",
                "track_published",
                "track_published",
                *gone,
                *gone,
                "room_finished",
            ]
            (agent,) = {e.participant.identity for e in b.hook.events} - {"", "call-1"}
            assert [e.participant.identity for e in b.hook.named("track_published")] == ["call-1", agent]
            (finished,) = b.hook.named("room_finished")
            assert finished.room_end_reason == RoomEndReason.ROOM_END_IDLE_TIMEOUT
            (sip_joined,) = b.hook.named("participant_joined", "call-1")
            assert sip_joined.participant.kind == ParticipantInfo.SIP
            assert sip_joined.participant.state == ParticipantInfo.ACTIVE
            assert sip_joined.participant.metadata == "pm"
            assert dict(sip_joined.participant.attributes) == {
                "own": "1",
                "sip.callID": info.sip_call_id,
                "sip.trunkID": "ST_1",
                "sip.callStatus": "dialing",
                "sip.phoneNumber": "+1234567890",
                "sip.hostname": "sip.example.com",
                "sip.trunkPhoneNumber": "+15550009999",
            }
            (sip_left,) = b.hook.named("participant_left", "call-1")
            assert sip_left.participant.disconnect_reason == DisconnectReason.CLIENT_INITIATED
            assert sip_left.participant.attributes["sip.callStatus"] == "hangup"
            assert sip_left.participant.attributes["sip.callIDFull"]
            (call,) = await b.calls("+1234567890")
            assert (call["outcome"], call["callStatus"], call["sipCallId"]) == (
                "completed",
                "hangup",
                info.sip_call_id,
            )
            assert call["atMs"] <= call["answeredAtMs"] <= call["endedAtMs"]
            assert datetime.datetime.fromisoformat(call["at"]).timestamp() * 1000 == pytest.approx(call["atMs"])

    run(check())


def test_get_participant_shows_dialing_then_ringing_then_active() -> None:
    async def check() -> None:
        async with bench(ring=LONG) as b:
            await b.dial("0012", wait_until_answered=False)
            me = api.RoomParticipantIdentity(room="r", identity="call-1")

            async def status() -> str:
                return (await b.livekit.room.get_participant(me)).attributes["sip.callStatus"]

            async def changed() -> bool:
                return await status() != seen[-1]

            seen = [await status()]
            for part in (0.2, 0.8):
                await b.time_passes(part * LONG)
                await until(changed)
                seen.append(await status())
            assert seen == ["dialing", "ringing", "active"]

    run(check())


REFUSALS = [
    # digits, Twirp code, HTTP, SIP code, disconnect reason, last callStatus, outcome
    ("0001", "resource_exhausted", 429, 486, "USER_REJECTED", "dialing", "busy"),
    ("0003", "permission_denied", 403, 603, "USER_REJECTED", "ringing", "rejected"),
    ("0004", "not_found", 404, 404, "USER_UNAVAILABLE", "dialing", "invalid_number"),
    ("0005", "failed_precondition", 412, 503, "CLIENT_INITIATED", "dialing", "carrier_error"),
    ("0013", "resource_exhausted", 429, 480, "USER_UNAVAILABLE", "ringing", "temporarily_unavailable"),
    ("0014", "failed_precondition", 412, None, "USER_REJECTED", "dialing", "trunk_auth"),
    ("0016", "failed_precondition", 412, 503, "USER_REJECTED", "dialing", "cps_limit"),
    ("0300", "invalid_argument", 400, 300, "CLIENT_INITIATED", "dialing", "sip_300"),
    ("0401", "failed_precondition", 412, None, "USER_REJECTED", "dialing", "sip_401"),
    ("0403", "permission_denied", 403, 403, "USER_REJECTED", "dialing", "sip_403"),
    ("0407", "failed_precondition", 412, None, "USER_REJECTED", "dialing", "sip_407"),
    ("0408", "deadline_exceeded", 408, 408, "USER_UNAVAILABLE", "ringing", "sip_408"),
    ("0416", "out_of_range", 400, 416, "USER_REJECTED", "dialing", "sip_416"),
    ("0484", "invalid_argument", 400, 484, "USER_REJECTED", "dialing", "sip_484"),
    ("0487", "aborted", 409, 487, "USER_REJECTED", "ringing", "sip_487"),
    ("0499", "invalid_argument", 400, 499, "USER_REJECTED", "dialing", "sip_499"),
    ("0504", "deadline_exceeded", 408, 504, "CLIENT_INITIATED", "dialing", "sip_504"),
    ("0599", "failed_precondition", 412, 599, "CLIENT_INITIATED", "dialing", "sip_599"),
    ("0604", "not_found", 404, 604, "USER_REJECTED", "dialing", "sip_604"),
    ("0699", "invalid_argument", 400, 699, "USER_REJECTED", "dialing", "sip_699"),
]


def test_every_refusal_of_the_carrier_has_livekits_code_and_the_participant_has_left_before_it() -> None:
    async def check(row: tuple[str, str, int, int | None, str, str, str], b: Bench) -> None:
        digits, code, status, sip_code, reason, call_status, outcome = row
        with pytest.raises(api.ServerError) as caught:
            await b.dial(digits, room=digits, identity=digits)
        error = caught.value
        assert await b.participants(digits) == []
        assert (error.code, error.status) == (code, status)
        assert isinstance(error, api.SipCallError) is (sip_code is not None)
        if isinstance(error, api.SipCallError):
            assert error.sip_status_code == sip_code
            assert error.sip_status
            assert f"sip status: {sip_code}" in error.message
        else:
            assert error.metadata == {}
        (call,) = await b.calls(f"+1555000{digits}")
        assert (call["outcome"], call["disconnectReason"], call["callStatus"]) == (
            outcome,
            reason,
            call_status,
        )
        await until(lambda: bool(b.hook.named("participant_left", digits)))
        (left,) = b.hook.named("participant_left", digits)
        assert DisconnectReason.Name(left.participant.disconnect_reason) == reason
        assert left.participant.attributes["sip.callStatus"] == call_status

    async def check_all() -> None:
        async with bench() as b:
            await asyncio.gather(*(check(row, b) for row in REFUSALS))

    run(check_all())


@pytest.mark.parametrize(("version", "prefix"), [("1.13.5", "twirp error unknown: "), ("1.13.11", "")])
def test_the_wording_of_a_refusal_is_livekits(version: str, prefix: str) -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"serverVersion": version})
            for digits, message in (
                ("0001", f"{prefix}INVITE failed: sip status: 486: Busy Here"),
                (
                    "0016",
                    f"{prefix}unexpected status from INVITE response: sip status: 503: Trunk CPS limit exceeded",
                ),
            ):
                with pytest.raises(api.SipCallError) as caught:
                    await b.dial(digits)
                assert caught.value.message == message
                assert set(caught.value.metadata) == {"sip_status_code", "sip_status", "error_details"}

    run(check())


def test_no_answer_within_the_ringing_timeout_is_canceled_without_metadata() -> None:
    async def check() -> None:
        async with bench() as b:
            with pytest.raises(api.ServerError) as caught:
                await b.dial("0002", ringing_timeout=Duration(nanos=100_000_000))
            assert not isinstance(caught.value, api.SipCallError)
            assert (caught.value.code, caught.value.status, caught.value.metadata) == ("canceled", 408, {})
            assert caught.value.message.endswith("sip request timed out")
            call = await b.one_call_is(outcome="no_answer", callStatus="ringing")
            assert call["disconnectReason"] == "USER_UNAVAILABLE"
            assert call["ringingTimeoutSeconds"] == pytest.approx(0.1)

    run(check())


@pytest.mark.parametrize("how", ["remove", "delete", "duplicate"])
def test_a_call_removed_while_it_rings_is_canceled(how: str) -> None:
    async def check() -> None:
        async with bench() as b:
            dial = asyncio.create_task(b.dial("0002"))
            await until(lambda: bool(b.hook.named("participant_joined", "call-1")))
            if how == "remove":
                gone = api.RoomParticipantIdentity(room="r", identity="call-1")
                await b.livekit.room.remove_participant(gone)
            elif how == "delete":
                await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            else:
                await b.dial("0012")
            with pytest.raises(api.ServerError) as caught:
                await dial
            assert (caught.value.code, caught.value.status, caught.value.metadata) == ("canceled", 408, {})
            (call,) = await b.calls("+15550000002")
            reason = {
                "remove": "PARTICIPANT_REMOVED",
                "delete": "ROOM_DELETED",
                "duplicate": "DUPLICATE_IDENTITY",
            }
            assert (call["outcome"], call["disconnectReason"]) == ("canceled", reason[how])

    run(check())


def test_the_same_dial_twice_rings_twice() -> None:
    async def check() -> None:
        async with bench() as b:
            first = await b.dial("0012")
            second = await b.dial("0012")
            assert first.sip_call_id != second.sip_call_id
            old, new = await b.calls("+15550000012")
            assert (old["disconnectReason"], old["outcome"]) == ("DUPLICATE_IDENTITY", "completed")
            assert (new["outcome"], new["callStatus"]) == (None, "active")
            assert len(await b.log("invite")) == 2
            assert [one.sid for one in await b.participants()] == [second.participant_id]

    run(check())


def test_a_client_that_goes_away_does_not_stop_the_call() -> None:
    async def check() -> None:
        async with bench(ring=LONG) as b:
            dial = asyncio.create_task(b.dial("0000"))
            await until(lambda: bool(b.hook.named("participant_joined", "call-1")))
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial
            await b.time_passes(LONG)
            await b.one_call_is(outcome="completed", callStatus="hangup")

    run(check())


def test_the_servers_own_limit_ends_a_waiting_dial() -> None:
    async def check() -> None:
        async with bench(scale=0.002) as b:
            with pytest.raises(api.ServerError) as caught:
                await b.dial("0002")
            assert (caught.value.code, caught.value.status) == ("deadline_exceeded", 408)
            assert caught.value.message == "request timed out"
            assert await b.participants() == []
            assert (await b.calls())[0]["disconnectReason"] == "USER_UNAVAILABLE"

    run(check())


def test_a_dial_that_does_not_wait_returns_at_once_and_fails_only_in_the_room() -> None:
    async def check() -> None:
        async with bench(scale=0.002, ring=LONG) as b:
            await b.dial("0001", wait_until_answered=False)
            assert (await b.calls())[0]["outcome"] is None
            await b.time_passes(LONG)
            await b.one_call_is(outcome="busy", disconnectReason="USER_REJECTED")

    run(check())


@pytest.mark.parametrize("how", ["max_duration", "callee", "remove", "delete"])
def test_an_answered_call_ends(how: str) -> None:
    async def check() -> None:
        async with bench() as b:
            limit: dict[str, Any] = (
                {"max_call_duration": Duration(nanos=200_000_000)} if how == "max_duration" else {}
            )
            await b.dial("0012", **limit)
            if how == "callee":
                assert await b.control("POST", "hangup", {"identity": "call-1"}) == {"hungUp": 1}
            elif how == "remove":
                gone = api.RoomParticipantIdentity(room="r", identity="call-1")
                await b.livekit.room.remove_participant(gone)
            elif how == "delete":
                await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            reason, status = {
                "max_duration": ("CLIENT_INITIATED", "hangup"),
                "callee": ("CLIENT_INITIATED", "hangup"),
                "remove": ("PARTICIPANT_REMOVED", "active"),
                "delete": ("ROOM_DELETED", "active"),
            }[how]
            await b.one_call_is(outcome="completed", disconnectReason=reason, callStatus=status)

    run(check())


def test_a_callee_that_hangs_up_while_it_rings_declines() -> None:
    async def check() -> None:
        async with bench() as b:
            dial = asyncio.create_task(b.dial("0002"))
            await until(lambda: bool(b.hook.named("participant_joined", "call-1")))
            await b.control("POST", "hangup", {"number": "+15550000002"})
            with pytest.raises(api.SipCallError) as caught:
                await dial
            assert caught.value.sip_status_code == 603
            await b.control("POST", "hangup", {"number": "+15550000002"}, status=404)
            await b.control("POST", "hangup", {}, status=400)

    run(check())


def test_the_agent_of_number_0006_never_joins_and_others_do() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.create_room("without", '{"to": "+15550000006"}')
            await b.create_room("with", '{"to": "+15550000000"}')
            await until(lambda: "participant_joined" in b.hook.names("with"))
            assert await b.participants("without") == []
            assert len((await b.control("GET", "dispatches"))["dispatches"]) == 2

    run(check())


@pytest.mark.parametrize(
    ("digits", "error"),
    [("0007", aiohttp.ClientError), ("0008", aiohttp.ClientError), ("0011", api.ServerError)],
)
def test_a_call_continues_when_the_answer_to_its_request_is_lost(digits: str, error: type[Exception]) -> None:
    async def check() -> None:
        async with bench(ring=LONG, talk=LONG) as b:
            dial = asyncio.create_task(b.dial(digits))
            await b.placed()
            await b.time_passes(LONG if digits == "0007" else 0.2 * LONG)
            with pytest.raises(error) as caught:
                await dial
            (call,) = await b.calls()
            assert call["callStatus"] == ("active" if digits == "0007" else "ringing")
            if isinstance(caught.value, api.ServerError):
                assert (caught.value.code, caught.value.status) == ("unknown", 502)
            if digits != "0007":
                await b.time_passes(LONG)
                await b.one_call_is(callStatus="active")
            await b.time_passes(LONG)
            await b.one_call_is(outcome="completed", callStatus="hangup")

    run(check())


def test_the_dial_of_number_0018_is_never_answered_and_rings_out() -> None:
    async def check() -> None:
        async with bench() as b:
            dial = asyncio.create_task(b.dial("0018", ringing_timeout=Duration(nanos=1)))
            await b.one_call_is(outcome="no_answer", disconnectReason="USER_UNAVAILABLE")
            assert not dial.done()
            dial.cancel()
            await asyncio.gather(dial, return_exceptions=True)

    run(check())


@pytest.mark.parametrize(
    ("digits", "code", "status", "once"),
    [
        ("0009", "unavailable", 503, True),
        ("0010", "unavailable", 503, False),
        ("0015", "not_found", 404, False),
        ("0017", "resource_exhausted", 429, True),
    ],
)
def test_a_dial_refused_beforehand_rings_nothing(digits: str, code: str, status: int, once: bool) -> None:
    async def check() -> None:
        async with bench() as b:
            for room in ("a", "b"):
                with pytest.raises(api.ServerError) as caught:
                    await b.dial(digits, room=room)
                assert not isinstance(caught.value, api.SipCallError)
                assert (caught.value.code, caught.value.status) == (code, status)
            assert await b.calls() == []
            assert await b.participants("a") == []
            if once:
                await b.dial(digits, room="a")
            else:
                with pytest.raises(api.ServerError):
                    await b.dial(digits, room="a")
            assert len(await b.calls()) == once

    run(check())


def test_an_identity_or_a_display_name_beyond_livekits_limit_is_refused() -> None:
    async def check() -> None:
        async with bench() as b:
            for wrong, code in (
                ({"identity": "x" * 257}, "internal"),
                ({"display_name": "x" * 129}, "invalid_argument"),
            ):
                with pytest.raises(api.ServerError) as caught:
                    await b.dial(**wrong)
                assert caught.value.code == code
            await b.dial(identity="x" * 256, display_name="x" * 128)
            assert len(await b.calls()) == 1

    run(check())


@pytest.mark.parametrize(
    "wrong", [{"sip_trunk_id": ""}, {"sip_call_to": ""}, {"sip_call_to": "a@b"}, {"room_name": ""}]
)
def test_an_invalid_dial_is_refused(wrong: dict[str, str]) -> None:
    async def check() -> None:
        async with bench() as b:
            right: dict[str, Any] = {"sip_trunk_id": "ST_1", "sip_call_to": "+15550000000", "room_name": "r"}
            with pytest.raises(api.ServerError) as caught:
                await b.livekit.sip.create_sip_participant(CreateSIPParticipantRequest(**(right | wrong)))
            assert caught.value.code == "invalid_argument"
            assert await b.calls() == []

    run(check())


def test_what_a_dial_leaves_out_has_livekits_defaults() -> None:
    async def check() -> None:
        async with bench(scale=0.05) as b:
            asked = CreateSIPParticipantRequest(
                sip_trunk_id="ST_1", sip_call_to="+15550000012", room_name="r", hide_phone_number=True
            )
            assert (await b.livekit.sip.create_sip_participant(asked)).participant_identity == "sip_+15550000012"
            (call,) = await b.calls()
            assert call["ringingTimeoutSeconds"] == pytest.approx(180 * 0.05)
            assert call["maxCallDurationSeconds"] == pytest.approx(24 * 3600 * 0.05)
            assert "sip.phoneNumber" not in (await b.participants())[0].attributes

    run(check())


def test_the_table_of_numbers_is_complete_and_unambiguous() -> None:
    assert [script.digits for script in SCRIPTS] == [f"{number:04}" for number in range(len(SCRIPTS))]
    assert len({script.outcome for script in SCRIPTS}) == len(SCRIPTS)
    assert all(script_of(f"+1555000{script.digits}") is script for script in SCRIPTS)
    assert script_of("+15550000486") is OUTCOMES["sip_486"]
    for ordinary in (
        "+15550000100",
        "+15550000299",
        "+15550000700",
        "+15550009999",
        "+1234567890",
        "+4930123456",
    ):
        assert script_of(ordinary) is OUTCOMES["answer"]
    listed = [status for statuses in SIP_CODES.values() for status in statuses]
    assert len(listed) == len(set(listed))


# Faults


def test_a_number_can_be_given_any_outcome() -> None:
    async def check() -> None:
        async with bench() as b:
            numbers = {
                "+491": {"outcome": "busy"},
                "+492": {"outcome": "sip_603"},
                "+493": {"ringSeconds": 0, "talkSeconds": 0},
            }
            await b.control("PUT", "faults", {"numbers": numbers})
            for number, sip_code in (("+491", 486), ("+492", 603)):
                with pytest.raises(api.SipCallError) as caught:
                    await b.dial(number, room=number)
                assert caught.value.sip_status_code == sip_code
            await b.dial("+493")

    run(check())


def test_random_outcomes_follow_the_seed() -> None:
    async def outcomes(b: Bench) -> list[str]:
        await b.control("POST", "reset")
        await b.control("PUT", "faults", {"rates": {"busy": 0.3, "rejected": 0.3}, "seed": 7})
        for number in range(20):
            await b.dial("+4930", room=f"r{number}", wait_until_answered=False)

        async def all_ended() -> bool:
            return all(call["outcome"] for call in await b.calls())

        await until(all_ended)
        return [call["outcome"] for call in await b.calls()]

    async def check() -> None:
        async with bench() as b:
            first = await outcomes(b)
            assert set(first) == {"busy", "rejected", "completed"}
            assert await outcomes(b) == first

    run(check())


def test_a_rate_of_agents_that_never_join() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"rates": {"agent_never_joins": 1}})
            await b.create_room("without", "{}")
            await b.control("PUT", "faults", {"rates": None})
            await b.create_room("with", "{}")
            await until(lambda: "participant_joined" in b.hook.names("with"))
            assert await b.participants("without") == []

    run(check())


def test_a_method_fails_before_or_after_its_effect_as_often_as_set() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"createRoom": {"fail": "unavailable", "times": 1}})
            with pytest.raises(api.ServerError) as caught:
                await b.create_room()
            assert (caught.value.code, caught.value.status) == ("unavailable", 503)
            assert (await b.control("GET", "rooms"))["rooms"] == []
            await b.create_room()

            await b.control("PUT", "faults", {"deleteRoom": {"fail": "cut", "after": True}})
            with pytest.raises(aiohttp.ClientError):
                await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            assert (await b.control("GET", "rooms"))["rooms"] == []

            for fail, status in (("html502", 502), ("text401", 401)):
                await b.control("PUT", "faults", {"listParticipants": {"fail": fail, "delaySeconds": 0.01}})
                with pytest.raises(api.ServerError) as caught:
                    await b.participants()
                assert (caught.value.code, caught.value.status) == ("unknown", status)
            await b.control("PUT", "faults", {"createSIPParticipant": {"fail": "internal", "probability": 1}})
            with pytest.raises(api.ServerError):
                await b.dial()
            assert await b.calls() == []

    run(check())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ringSecond": 1}, "ringSecond"),
        ({"ringSecond": None}, "ringSecond"),
        ({"webhooks": {"drop": 2}}, "webhooks.drop"),
        ({"webhooks": {"lose": 1}}, "webhooks.lose"),
        ({"numbers": {"+1": {"outcome": "nothing"}}}, "numbers.+1.outcome"),
        ({"createRoom": {"fail": "nothing"}}, "createRoom.fail"),
        ({"rates": {"busy": 0.6, "rejected": 0.6}}, "more than 1"),
    ],
)
def test_an_unknown_or_wrong_fault_is_named(changes: dict[str, Any], named: str) -> None:
    async def check() -> None:
        async with bench() as b:
            before = await b.control("GET", "faults")
            assert named in str(await b.control("PUT", "faults", changes, status=400))
            assert await b.control("GET", "faults") == before

    run(check())


def test_faults_that_are_not_named_stay_and_a_reset_restores_all() -> None:
    async def check() -> None:
        async with bench() as b:
            start = await b.control("GET", "faults")
            await b.control("PUT", "faults", {"ringSeconds": 9})
            changed = await b.control("PUT", "faults", {"webhooks": {"duplicate": 0.5}})
            assert (changed["ringSeconds"], changed["webhooks"]["duplicate"]) == (9, 0.5)
            waiting = asyncio.create_task(b.dial("0002"))
            await until(lambda: bool(b.hook.bodies))
            await b.control("PUT", "webhook-urls", {"urls": []})
            await b.control("POST", "reset")
            with pytest.raises(api.ServerError):
                await waiting
            assert await b.control("GET", "faults") == start
            assert (await b.control("GET", "rooms"), await b.calls()) == ({"rooms": []}, [])
            seen = len(b.hook.events)
            await b.create_room("after")
            await until(lambda: len(b.hook.events) > seen)

    run(check())


def test_requests_and_user_agents_are_counted() -> None:
    async def check() -> None:
        async with bench() as b:
            for _ in range(3):
                await b.participants()
            seen = await b.control("GET", "requests")
            assert seen["counts"] == {"ListParticipants": 3}
            assert any(agent.startswith("livekit-server-sdk-python/") for agent in seen["userAgents"])
            events = (await b.control("GET", "events?after=1"))["events"]
            assert [event["sequence"] for event in events] == [2, 3]

    run(check())


# Webhooks


def test_a_webhook_is_signed_compact_and_sent_to_every_address() -> None:
    async def check() -> None:
        async with bench(hooks=2) as b:
            await b.create_room("r", metadata="m")
            await until(lambda: bool(b.hook.events and b.second_hook.events))
            (event,) = b.hook.events
            assert (event.event, event.room.metadata, event.id[:3]) == ("room_started", "m", "EV_")
            assert b.hook.content_types == ["application/webhook+json"]
            assert b.hook.user_agents == ["LiveKit"]
            assert ": " not in b.hook.bodies[0]
            assert isinstance(json.loads(b.hook.bodies[0])["createdAt"], str)
            assert jwt.get_unverified_header(b.hook.tokens[0]) == {"alg": "HS256", "typ": "JWT"}
            assert b.second_hook.bodies == b.hook.bodies

    run(check())


def test_a_failed_webhook_is_sent_again_unchanged_and_holds_back_its_room() -> None:
    async def check() -> None:
        async with bench() as b:
            b.hook.answers = [500, 503, 429]
            await b.create_room("slow")
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="slow"))
            for failed, wait in enumerate((1, 2, 4), start=1):
                await b.log_has("webhook_failed", failed)
                time_passes(wait)
            await until(lambda: len(b.hook.events) == 2)
            assert b.hook.names("slow") == ["room_started", "room_finished"]
            assert len(set(b.hook.bodies[:4])) == 1
            assert len(set(b.hook.tokens[:4])) == 1

    run(check())


def test_webhooks_of_another_room_pass_one_that_is_tried_again() -> None:
    async def check() -> None:
        async with bench(scale=LONG) as b:
            b.hook.answers = [500]
            await b.create_room("slow")
            await b.log_has("webhook_failed", 1)
            await b.create_room("quick")
            await until(lambda: len(b.hook.events) == 1)
            time_passes(LONG)
            await until(lambda: len(b.hook.events) == 2)
            assert [event.room.name for event in b.hook.events] == ["quick", "slow"]

    run(check())


def test_any_other_status_counts_as_delivered_and_five_attempts_are_all() -> None:
    async def check() -> None:
        async with bench() as b:
            b.hook.answers = [400, 501, 500, 500, 500, 500, 500]
            for name in ("refused", "unimplemented", "failing"):
                seen = len(b.hook.bodies)
                await b.create_room(name)
                await until(lambda seen=seen: len(b.hook.bodies) > seen)  # type: ignore[misc]

            for failed, wait in enumerate((1, 2, 4, 8, 0), start=1):
                await b.log_has("webhook_failed", failed)
                time_passes(wait)
            assert [event["attempt"] for event in await b.log("webhook_failed")] == [1, 2, 3, 4, 5]
            assert len(b.hook.bodies) == 7
            assert [event["status"] for event in await b.log("webhook_delivered")] == [400, 501]

    run(check())


def test_a_webhook_address_that_cannot_be_reached_is_tried_again_and_old_events_are_dropped() -> None:
    async def check() -> None:
        async with bench() as b:
            b.hook.headers, b.hook.answers = {"Retry-After": "100"}, [503]
            await b.create_room("r")
            await b.log_has("webhook_failed", 1)
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            time_passes(100)

            async def dropped() -> bool:
                return [event["why"] for event in await b.log("webhook_lost")] == ["too old"]

            await until(dropped)
            assert b.hook.names("r") == ["room_started"]
            await b.control("PUT", "webhook-urls", {"urls": ["http://127.0.0.1:1/"]})
            await b.create_room("r")

            for failed, wait in enumerate((1, 2, 4, 8, 0), start=2):
                await b.log_has("webhook_failed", failed)
                time_passes(wait)
            assert [event["status"] for event in await b.log("webhook_failed")][1:] == [None] * 5
            await b.control("PUT", "webhook-urls", {"urls": "x"}, status=400)

    run(check())


def test_webhooks_can_be_lost_duplicated_late_and_out_of_order() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"webhooks": {"drop": 1, "only": ["room_finished"]}})
            await b.create_room("lost")
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="lost"))
            assert [event["event"] for event in await b.log("webhook_lost")] == ["room_finished"]
            await until(lambda: b.hook.names("lost") == ["room_started"])

            await b.control("PUT", "faults", {"webhooks": {"duplicate": 1, "delaySeconds": 0.01}})
            await b.create_room("doubled")
            await until(lambda: b.hook.names("doubled") == ["room_started"] * 2)
            first, second = (event for event in b.hook.events if event.room.name == "doubled")
            assert first.id == second.id

            only_start = {"reorder": 1, "reorderSeconds": LONG, "only": ["room_started"]}
            await b.control("PUT", "faults", {"webhooks": only_start})
            await b.create_room("reordered")
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="reordered"))
            await until(lambda: b.hook.names("reordered") == ["room_finished"])
            time_passes(LONG)
            await until(lambda: b.hook.names("reordered") == ["room_finished", "room_started"])

    run(check())


# As a process


def test_the_process_prints_its_address_and_ends_on_a_signal() -> None:
    command = [sys.executable, "-m", "local.livekit", "--port", "0", "--api-key", KEY, "--api-secret", SECRET]
    with subprocess.Popen(
        [*command, "--time-scale", "0.05", "--ring-seconds", "0.01"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as process:
        try:
            assert process.stdout
            word, _, ready = process.stdout.readline().partition(" ")
            assert word == "READY"

            async def check() -> None:
                async with api.LiveKitAPI(json.loads(ready)["url"], KEY, SECRET, failover=False) as livekit:
                    assert (await livekit.room.create_room(api.CreateRoomRequest(name="r"))).sid

            run(check())
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()
