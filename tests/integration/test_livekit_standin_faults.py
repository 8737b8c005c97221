"""The LiveKit stand-in's faults on demand: errors that contradict the phone's state, and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol import agent
from livekit.protocol.models import DisconnectReason, ParticipantInfo

from tests.livekit_bench import LONG, Bench, bench, run, until

AGENT = ParticipantInfo.AGENT
ME = api.RoomParticipantIdentity(room="r", identity="call-1")

# Errors that do not show the state of the phone


@pytest.mark.parametrize("fail", ["failed_precondition", "unavailable", "internal"])
def test_a_dial_can_fail_although_the_phone_has_answered(fail: str) -> None:
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


def test_a_dial_can_fail_while_the_phone_rings() -> None:
    async def check() -> None:
        async with bench(ring=LONG) as b:
            changes = {"outcome": "talks_on", "fail": "unavailable", "whileRinging": True}
            await b.control("PUT", "faults", {"numbers": {"+491": changes}})
            dial = asyncio.create_task(b.dial("+491"))
            await b.placed()
            await b.time_passes(0.2 * LONG)
            with pytest.raises(api.ServerError) as caught:
                await dial
            assert caught.value.code == "unavailable"
            await b.one_call_is(callStatus="ringing")
            await b.time_passes(LONG)
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
    "changes", [{"fail": "internal", "after": True, "whileRinging": True}, {"after": True}, {"whileRinging": True}]
)
def test_a_failure_of_a_number_has_one_time(changes: dict[str, Any]) -> None:
    async def check() -> None:
        async with bench() as b:
            told = await b.control("PUT", "faults", {"numbers": {"+491": changes}}, status=400)
            assert "whileRinging" in str(told)

    run(check())


# A server that crashes while redis lives


async def with_agent(b: Bench, room: str = "r", to: str = "+15550000012") -> None:
    await b.create_room(room, f'{{"to": "{to}"}}')

    async def there() -> bool:
        return any(one.kind == ParticipantInfo.AGENT for one in await b.participants(room))

    await until(there)


async def refused(attempt: Awaitable[Any]) -> tuple[str, int, str]:
    with pytest.raises(api.ServerError) as caught:
        await attempt
    return caught.value.code, caught.value.status, caught.value.message


@pytest.mark.parametrize(("digits", "status"), [("0002", "ringing"), ("0012", "active")])
def test_after_a_crash_rooms_keep_their_state_and_nothing_happens_in_them(digits: str, status: str) -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            dial = asyncio.create_task(b.dial(digits, max_call_duration=Duration(seconds=300)))
            await b.placed()
            await b.one_call_is(callStatus=status)
            await asyncio.sleep(0)
            if status == "active":
                await dial
            (sid,) = [room["sid"] for room in (await b.control("GET", "rooms"))["rooms"]]
            assert await b.control("POST", "crash", {}) == {}
            if status == "ringing":
                with pytest.raises(aiohttp.ClientError):
                    await dial
            seen = len(b.hook.events)
            await b.time_passes(4000)
            await b.one_call_is(outcome="cut", callStatus=status)
            assert [room["orphan"] for room in (await b.control("GET", "rooms"))["rooms"]] == [True]
            (listed,) = (await b.livekit.room.list_rooms(api.ListRoomsRequest(names=["r"]))).rooms
            assert listed.sid == sid
            kinds = {one.kind: (one.state, one.attributes.get("sip.callStatus")) for one in await b.participants()}
            assert kinds == {
                ParticipantInfo.AGENT: (ParticipantInfo.ACTIVE, None),
                ParticipantInfo.SIP: (ParticipantInfo.ACTIVE, status),
            }
            assert (await b.livekit.room.get_participant(ME)).state == ParticipantInfo.ACTIVE
            await b.control("POST", "hangup", {"number": f"+1555000{digits}"}, status=404)
            assert await refused(b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))) == (
                "unknown",
                500,
                "could not find object",
            )
            for attempt in (
                b.livekit.room.remove_participant(ME),
                b.livekit.agent_dispatch.list_dispatch("r"),
            ):
                assert await refused(attempt) == ("unavailable", 503, "no response from servers")
            assert len(b.hook.events) == seen

    run(check())


def test_an_orphan_room_is_removed_by_creating_and_deleting_it_and_its_agent_is_dispatched_once_more() -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            await b.dial("0012")
            (before,) = (await b.livekit.room.list_rooms(api.ListRoomsRequest(names=["r"]))).rooms
            await b.control("POST", "crash", {})
            await b.control("PUT", "faults", {"agentJoinSeconds": LONG})
            assert (await b.create_room("r", "other")).sid == before.sid
            assert len(await b.participants()) == 2
            assert await refused(b.livekit.room.remove_participant(ME)) == (
                "unavailable",
                503,
                "no response from servers",
            )
            seen = b.hook.names("r").count("participant_left")
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            assert (await b.control("GET", "rooms"))["rooms"] == []
            await until(lambda: b.hook.names("r")[-2:] == ["room_started", "room_finished"])
            assert b.hook.names("r").count("participant_left") == seen
            assert [one["metadata"] for one in (await b.control("GET", "dispatches"))["dispatches"]] == [
                '{"to": "+15550000012"}'
            ] * 2
            await b.time_passes(LONG)
            await until(lambda: b.hook.names("r")[-2:] == ["room_started", "participant_joined"])
            (agent,) = await b.participants()
            assert agent.kind == ParticipantInfo.AGENT
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            assert (await b.control("GET", "rooms"))["rooms"] == []

    run(check())


def test_a_server_that_is_down_cuts_every_request_and_its_queued_events_are_lost() -> None:
    async def check() -> None:
        async with bench() as b:
            b.hook.answers = [500]
            await b.create_room()
            await b.log_has("webhook_failed", 1)
            await b.create_room("r2")
            await b.control("PUT", "faults", {"webhooks": {"delaySeconds": LONG}})
            await b.create_room("held")
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            await b.control("POST", "crash", {"downSeconds": LONG})
            with pytest.raises(aiohttp.ClientError):
                await b.participants()
            await b.time_passes(LONG)
            assert await b.participants() == []
            lost = [(one["event"], one["why"]) for one in await b.log("webhook_lost")]
            assert lost == [("room_started", "the server died"), ("room_finished", "the server died")]

    run(check())


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("crash", {"down": 1}, "down"),
        ("crash", {"downSeconds": -1}, "downSeconds"),
        ("restart", {"rejoin": 1}, "rejoin"),
        ("agent-death", {"room": "r"}, "room"),
        ("agent-death", {"number": "+1", "roomName": "r"}, "only one of"),
        ("sip-death", {"atOnce": True}, "atOnce"),
    ],
)
def test_a_wrong_field_of_a_control_call_is_named(path: str, body: dict[str, Any], named: str) -> None:
    async def check() -> None:
        async with bench() as b:
            assert named in str(await b.control("POST", path, body, status=400))

    run(check())


# A server that restarts during a call


def test_after_a_restart_participants_rejoin_and_an_answered_phone_is_dialing() -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            info = await b.dial("0012")
            before = {one.identity for one in await b.participants()}
            await until(lambda: len(b.hook.named("track_published")) == 2)
            await b.control("POST", "restart", {})
            assert (await b.livekit.room.get_participant(ME)).attributes["sip.callStatus"] == "active"
            assert (await refused(b.livekit.room.remove_participant(ME)))[1] == 503
            seen = len(b.hook.events)
            await b.time_passes(7)
            await until(lambda: len(b.hook.events) == seen + 3)
            await b.time_passes(2)
            await until(lambda: len(b.hook.events) == seen + 5)
            again = [(e.event, e.participant.kind, e.room.sid) for e in b.hook.events[seen:]]
            sid = b.hook.events[0].room.sid
            assert again == [
                ("room_started", 0, sid),
                ("participant_joined", ParticipantInfo.AGENT, sid),
                ("track_published", 0, sid),
                ("participant_joined", ParticipantInfo.SIP, sid),
                ("track_published", 0, sid),
            ]
            assert {one.identity for one in await b.participants()} == before
            me = await b.livekit.room.get_participant(ME)
            assert (me.attributes["sip.callStatus"], me.sid != info.participant_id) == ("dialing", True)
            await b.one_call_is(callStatus="active", outcome=None)
            await b.control("POST", "hangup", {"identity": "call-1"})
            await until(lambda: bool(b.hook.named("participant_left")))
            (left,) = b.hook.named("participant_left")
            assert left.participant.attributes["sip.callStatus"] == "hangup"
            assert left.participant.disconnect_reason == DisconnectReason.CLIENT_INITIATED

    run(check())


def test_a_phone_keeps_ringing_during_a_restart_and_its_room_can_be_deleted_afterwards() -> None:
    async def check() -> None:
        async with bench(ring=LONG) as b:
            dial = asyncio.create_task(b.dial("0012"))
            await b.placed()
            await b.time_passes(0.2 * LONG)
            await b.one_call_is(callStatus="ringing")
            await b.control("POST", "restart", {"phoneRejoinSeconds": 0})
            with pytest.raises(aiohttp.ClientError):
                await dial
            await until(lambda: len(b.hook.named("participant_joined", "call-1")) == 2)
            assert (await b.livekit.room.get_participant(ME)).attributes["sip.callStatus"] == "dialing"
            await b.time_passes(LONG)
            await b.one_call_is(callStatus="active")
            assert (await b.livekit.room.get_participant(ME)).attributes["sip.callStatus"] == "active"
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            await b.one_call_is(outcome="completed", disconnectReason="ROOM_DELETED")

    run(check())


def test_a_call_that_ends_before_its_server_is_back_leaves_an_orphan() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.dial("0012")
            await b.control("POST", "restart", {"phoneRejoinSeconds": LONG})
            await b.control("POST", "hangup", {"identity": "call-1"})
            await b.one_call_is(outcome="completed", callStatus="hangup")
            await b.time_passes(LONG)
            (me,) = await b.participants()
            assert (me.state, me.attributes["sip.callStatus"]) == (ParticipantInfo.ACTIVE, "active")
            assert (await refused(b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))))[0] == "unknown"

    run(check())


# Other processes that die


@pytest.mark.parametrize("at_once", [False, True])
def test_a_call_continues_when_its_agent_dies(at_once: bool) -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            await with_agent(b, "other")
            await b.dial("0012")
            chosen = {"number": "+15550000012", "atOnce": at_once}
            assert await b.control("POST", "agent-death", chosen) == {"died": 1}
            await b.control("POST", "agent-death", chosen, status=404)
            if not at_once:
                assert len(await b.participants()) == 2
                await b.time_passes(22)
            await until(lambda: bool(b.hook.named("participant_left")))
            (left,) = b.hook.named("participant_left")
            assert (left.participant.kind, DisconnectReason.Name(left.participant.disconnect_reason)) == (
                ParticipantInfo.AGENT,
                "CLIENT_INITIATED" if at_once else "CONNECTION_TIMEOUT",
            )
            await b.one_call_is(callStatus="active", outcome=None)
            assert len(await b.participants("other")) == 1

    run(check())


@pytest.mark.parametrize(("digits", "status"), [("0002", "ringing"), ("0012", "active")])
def test_the_participant_of_a_dead_sip_service_is_removed_after_the_connection_timeout(
    digits: str, status: str
) -> None:
    async def check() -> None:
        async with bench() as b:
            dial = asyncio.create_task(b.dial(digits))
            await b.placed()
            await b.one_call_is(callStatus=status)
            if status == "active":
                await dial
            assert await b.control("POST", "sip-death", {"roomName": "r"}) == {"died": 1}
            await b.one_call_is(outcome="cut", callStatus=status)
            assert len(await b.participants()) == 1
            await b.time_passes(22)
            await until(lambda: bool(b.hook.named("participant_left")))
            (left,) = b.hook.named("participant_left")
            assert left.participant.disconnect_reason == DisconnectReason.CONNECTION_TIMEOUT
            assert left.participant.attributes["sip.callStatus"] == status
            if status == "ringing":
                assert not dial.done()
                await b.time_passes(80)
                assert (await refused(dial))[:2] == ("deadline_exceeded", 408)
            await b.control("POST", "sip-death", {}, status=404)

    run(check())


def test_a_phone_without_audio_is_removed_while_it_is_active() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.dial("0025", max_call_duration=Duration(seconds=300))
            await b.time_passes(30)
            await until(lambda: bool(b.hook.named("participant_left", "call-1")))
            (left,) = b.hook.named("participant_left", "call-1")
            assert left.participant.disconnect_reason == DisconnectReason.CLIENT_INITIATED
            assert left.participant.attributes["sip.callStatus"] == "active"
            await b.one_call_is(outcome="completed", callStatus="active")

    run(check())


def test_a_draining_server_creates_no_room_and_continues_its_calls() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.create_room()
            await b.control("PUT", "faults", {"draining": True})
            assert (await refused(b.create_room("new")))[1] == 500
            assert (await refused(b.dial("0012", room="new")))[1] == 500
            await b.create_room()
            await b.dial("0012")
            await b.control("PUT", "faults", {"draining": False})
            await b.create_room("new")

    run(check())


# Agents that do not join


async def jobs(b: Bench, room: str) -> list[tuple[int, int, str]]:
    found = await b.livekit.agent_dispatch.list_dispatch(room)
    return [
        (job.state.status, job.state.reason, job.state.participant_identity)
        for dispatch in found
        for job in dispatch.state.jobs
    ]


def test_a_job_distinguishes_a_late_agent_from_a_lost_dispatch() -> None:
    async def check() -> None:
        async with bench() as b:
            numbers = {"+491": {"agentJoinSeconds": LONG}, "+492": {"lostDispatches": 1}}
            await b.control("PUT", "faults", {"numbers": numbers})
            await b.create_room("late", '{"to": "+491"}')
            await b.create_room("lost", '{"to": "+492"}')
            await b.create_room("none", '{"to": "+15550000006"}')
            ((status, reason, identity),) = await jobs(b, "late")
            assert (status, reason, identity[:9]) == (agent.JS_PENDING, agent.JSR_UNSPECIFIED, "agent-AJ_")
            assert await jobs(b, "lost") == []
            assert await jobs(b, "none") == []

            (lost,) = await b.livekit.agent_dispatch.list_dispatch("lost")
            await b.livekit.agent_dispatch.delete_dispatch(lost.id, "lost")
            again = api.CreateAgentDispatchRequest(agent_name="caller", room="lost", metadata='{"to": "+492"}')
            await b.livekit.agent_dispatch.create_dispatch(again)
            await until(lambda: "participant_joined" in b.hook.names("lost"))
            ((status, _, _),) = await jobs(b, "lost")
            assert status == agent.JS_RUNNING

            assert await b.participants("late") == []
            await b.time_passes(LONG)
            await until(lambda: "participant_joined" in b.hook.names("late"))
            assert [one.identity for one in await b.participants("late")] == [identity]

    run(check())


def test_the_first_dispatches_are_lost_and_may_show_a_reason() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"dispatches": {"lose": 1, "times": 1, "reason": "NO_CAPACITY"}})
            for room in ("first", "second"):
                await b.create_room(room, "{}")
            await until(lambda: "participant_joined" in b.hook.names("second"))
            assert await b.participants("first") == []
            assert await jobs(b, "first") == [(agent.JS_FAILED, agent.JSR_NO_CAPACITY, "")]
            await b.control("PUT", "faults", {"dispatches": {"lose": 1, "reason": "RETRYING"}})
            await b.create_room("third", "{}")
            assert await jobs(b, "third") == [(agent.JS_PENDING, agent.JSR_RETRYING, "")]
            changes = {"dispatches": {"reason": "FULL"}}
            assert "dispatches.reason" in str(await b.control("PUT", "faults", changes, status=400))

    run(check())


def test_workers_at_their_limit_take_no_more_agents_until_one_leaves() -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"agentCapacity": 1})
            await with_agent(b, "first")
            await b.create_room("second", "{}")
            assert await jobs(b, "second") == [(agent.JS_FAILED, agent.JSR_NO_CAPACITY, "")]
            await b.livekit.room.delete_room(api.DeleteRoomRequest(room="first"))
            await with_agent(b, "third")
            assert await b.participants("second") == []

    run(check())


def test_deleting_a_dispatch_removes_its_agent() -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            (dispatch,) = await b.livekit.agent_dispatch.list_dispatch("r")
            await b.livekit.agent_dispatch.delete_dispatch(dispatch.id, "r")
            assert await b.participants() == []

    run(check())


@pytest.mark.parametrize("digits", ["0001", "0002", "0013"])
def test_an_agent_leaves_when_its_callee_has_left_unanswered(digits: str) -> None:
    async def check() -> None:
        async with bench() as b:
            await with_agent(b)
            await refused(b.dial(digits, ringing_timeout=Duration(nanos=100_000_000)))
            await until(lambda: len(b.hook.named("participant_left")) == 2)
            left = b.hook.named("participant_left")[1].participant
            assert (left.kind, left.disconnect_reason) == (AGENT, DisconnectReason.CLIENT_INITIATED)
            assert b.hook.named("track_published", left.identity) == []

    run(check())


# Counts, and removals during a dial


def test_the_counts_of_a_room_lag_behind() -> None:
    async def check() -> None:
        async def counts() -> tuple[int, int]:
            (room,) = (await b.livekit.room.list_rooms(api.ListRoomsRequest())).rooms
            return room.num_participants, room.num_publishers

        async with bench() as b:
            await with_agent(b)
            await b.dial("0012")
            assert await counts() == (0, 0)
            await b.time_passes(5)
            assert await counts() == (1, 2)
            await b.control("PUT", "faults", {"roomCountSeconds": 0})
            await b.control("POST", "hangup", {"identity": "call-1"})
            await b.one_call_is(outcome="completed")
            assert await counts() == (0, 1)

    run(check())


@pytest.mark.parametrize("how", ["remove", "delete"])
def test_a_phone_removed_before_its_audio_is_published_is_not_dialled(how: str) -> None:
    async def check() -> None:
        async with bench() as b:
            await b.control("PUT", "faults", {"publishSeconds": LONG})
            dial = asyncio.create_task(b.dial("0012"))
            await until(lambda: bool(b.hook.named("participant_joined", "call-1")))
            assert b.hook.named("track_published") == []
            if how == "remove":
                await b.livekit.room.remove_participant(ME)
            else:
                await b.livekit.room.delete_room(api.DeleteRoomRequest(room="r"))
            await until(lambda: bool(b.hook.named("participant_left", "call-1")))
            await b.time_passes(10)
            assert (await refused(dial))[:2] == ("internal", 500)
            assert await b.calls() == []

    run(check())


def test_track_events_can_come_after_the_participant_has_left() -> None:
    async def check() -> None:
        async with bench() as b:
            late = {"reorder": 1, "reorderSeconds": LONG, "only": ["track_published", "track_unpublished"]}
            await b.control("PUT", "faults", {"webhooks": late})
            await b.dial("0000")
            await until(lambda: bool(b.hook.named("participant_left", "call-1")))
            assert b.hook.named("track_published") == []
            await b.time_passes(LONG)
            await until(lambda: {"track_published", "track_unpublished"} <= {e.event for e in b.hook.events})

    run(check())
