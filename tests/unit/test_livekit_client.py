"""What LiveKit is asked, and what is made of its answers: with the client's own messages, without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from google.protobuf.message import DecodeError
from livekit import api
from livekit.protocol.agent import Job, JobState, JobStateReason, JobStatus
from livekit.protocol.agent_dispatch import AgentDispatch, AgentDispatchState
from livekit.protocol.models import ParticipantInfo, Room

from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.livekit.client import TWIRP_CODES, LiveKit, OrphanRoomError, RoomView

STATE, KIND = ParticipantInfo.State, ParticipantInfo.Kind
IDENTITY = "call-1"


class Service:
    """One of the client's services: answers each method with what it is given, or raises it."""

    def __init__(self, requests: list[tuple[str, Any]], answers: dict[str, Any]) -> None:
        self._requests = requests
        self._answers = answers

    def __getattr__(self, method: str) -> Any:
        async def asked(*given: Any, **named: Any) -> Any:
            self._requests.append((method, given[0] if len(given) == 1 and not named else (*given, named)))
            answer = self._answers[method]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return asked


def livekit(**answers: Any) -> tuple[LiveKit, list[tuple[str, Any]]]:
    """LiveKit with these answers, and the list of what it is asked."""
    requests: list[tuple[str, Any]] = []
    service = Service(requests, answers)
    client = SimpleNamespace(room=service, sip=service, agent_dispatch=service)
    return LiveKit(cast(api.LiveKitAPI, client)), requests


def refused(code: Any, status: int = 400, message: Any = "", metadata: Any = None) -> api.ServerError:
    return api.ServerError(code, message, status=status, metadata=metadata)


def dialled(answer: Any, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The request and the options of a dial that is answered so."""
    parts, requests = livekit(create_sip_participant=answer)
    given: dict[str, Any] = {
        "room": "r",
        "identity": IDENTITY,
        "trunk_id": "ST_1",
        "to": "+15550000001",
        "from_number": None,
        "ring_seconds": 40,
        "longest_seconds": 1800,
        "timeout": 50,
    }
    asyncio.run(parts.dial(**given | changes))
    [(_, (request, options))] = requests
    return request, options


def test_a_dial_asks_for_what_it_was_given_and_waits_for_the_answer() -> None:
    request, options = dialled(None, ring_seconds=0.25, longest_seconds=61.5)
    assert (request.ringing_timeout.seconds, request.ringing_timeout.nanos) == (0, 250_000_000)
    assert (request.max_call_duration.seconds, request.max_call_duration.nanos) == (61, 500_000_000)
    assert (request.sip_trunk_id, request.sip_call_to, request.sip_number) == ("ST_1", "+15550000001", "")
    assert (request.room_name, request.participant_identity, request.wait_until_answered) == ("r", IDENTITY, True)
    assert options == {"timeout": 50}
    assert dialled(None, from_number="+15550000009")[0].sip_number == "+15550000009"


def error_of(answer: Exception) -> LiveKitError:
    with pytest.raises(LiveKitError) as raised:
        dialled(answer)
    return raised.value


@pytest.mark.parametrize("code", sorted(TWIRP_CODES - {"unknown"}))
def test_a_twirp_code_is_livekits_word_with_the_carriers_code_if_it_has_one(code: str) -> None:
    for sip, told in [
        ("300", 300),
        ("486", 486),
        ("699", 699),
        ("299", None),
        ("700", None),
        ("4860", None),
        (" 486", None),
        ("x", None),
        (486, 486),
        (None, None),
        (["486"], None),
    ]:
        error = error_of(refused(code, 418, metadata={"sip_status_code": sip}))
        assert type(error) is LiveKitError
        assert (error.code, error.http_status, error.sip_status_code) == (code, 418, told)
    for metadata in ({}, {"other": "486"}, "486", ["sip_status_code"]):
        assert error_of(refused(code, metadata=metadata)).sip_status_code is None


@pytest.mark.parametrize("code", ["unknown", "", "Unavailable", "not_livekit", None, 7, ["unavailable"], {}])
def test_any_other_code_is_a_proxys_and_says_nothing_of_the_request(code: Any) -> None:
    for status in (200, 400, 403, 404, 500, 502, 503):
        error = error_of(refused(code, status, metadata={"sip_status_code": "486"}))
        assert type(error) is LiveKitUnclearError
        assert (error.http_status, error.sip_status_code) == (status, None)
    wrong_token = error_of(refused(code, 401))
    assert (type(wrong_token), wrong_token.code, wrong_token.http_status) == (LiveKitError, "unauthenticated", 401)


@pytest.mark.parametrize(
    "fault",
    [
        TimeoutError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        DecodeError(),
        TypeError(),
        AttributeError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_request_without_an_answer_that_is_one_is_unclear(fault: Exception) -> None:
    assert type(error_of(fault)) is LiveKitUnclearError


def test_a_connection_that_is_refused_sent_nothing() -> None:
    fault = aiohttp.ClientConnectorError(
        cast(Any, SimpleNamespace(host="h", port=1, ssl=False)), OSError("refused")
    )
    assert type(error_of(fault)) is LiveKitUnreachableError


# ── rooms ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_room_that_is_not_there_is_deleted_and_any_other_error_is_told() -> None:
    for answer in (None, refused("not_found", 404)):
        parts, requests = livekit(delete_room=answer)
        asyncio.run(parts.delete_room("r"))
        assert requests == [("delete_room", api.DeleteRoomRequest(room="r"))]
    for code in ("unavailable", "internal"):
        with pytest.raises(LiveKitError, match=code):
            asyncio.run(livekit(delete_room=refused(code, 503))[0].delete_room("r"))
    with pytest.raises(OrphanRoomError):
        asyncio.run(livekit(delete_room=refused("unknown", 500, "could not find object"))[0].delete_room("r"))
    with pytest.raises(LiveKitError) as raised:
        asyncio.run(livekit(delete_room=refused("internal", 500, "could not find object"))[0].delete_room("r"))
    assert type(raised.value) is LiveKitError, "of a code of its own it is no orphan"


def test_an_orphan_is_made_again_before_it_is_deleted() -> None:
    parts, requests = livekit(create_room=Room(sid="RM_2"), delete_room=None)
    asyncio.run(parts.remove_orphan("r"))
    assert requests == [
        ("create_room", api.CreateRoomRequest(name="r")),
        ("delete_room", api.DeleteRoomRequest(room="r")),
    ]


@pytest.mark.parametrize(("answer", "was_there"), [(None, True), ("not_found", False), ("unavailable", False)])
def test_a_phone_that_is_not_there_cannot_be_taken_out(answer: str | None, was_there: bool) -> None:
    parts, requests = livekit(remove_participant=None if answer is None else refused(answer, 404))
    assert asyncio.run(parts.remove_participant("r", IDENTITY)) is was_there
    assert requests == [("remove_participant", api.RoomParticipantIdentity(room="r", identity=IDENTITY))]


def test_a_phone_that_may_be_there_still_is_no_phone_that_is_gone() -> None:
    for answer in (refused("internal", 500), refused("unknown", 502), TimeoutError()):
        with pytest.raises(LiveKitError):
            asyncio.run(livekit(remove_participant=answer)[0].remove_participant("r", IDENTITY))


def participant(identity: str = IDENTITY, state: Any = STATE.ACTIVE, kind: Any = KIND.SIP, **more: Any) -> Any:
    return ParticipantInfo(identity=identity, state=state, kind=kind, **more)


AGENT = participant("agent", kind=KIND.AGENT)


@pytest.mark.parametrize(
    ("participants", "view"),
    [
        ([], RoomView(None, False)),
        ([participant(joined_at=7)], RoomView("dialing", False, joined_at_ms=7_000)),
        ([participant(joined_at=7, joined_at_ms=7_123)], RoomView("dialing", False, joined_at_ms=7_123)),
        # The phone is there from before it joins to the moment at which it is disconnected.
        ([participant(state=STATE.JOINING)], RoomView("dialing", False)),
        ([participant(state=STATE.JOINED)], RoomView("dialing", False)),
        ([participant(state=STATE.DISCONNECTED)], RoomView(None, False)),
        ([participant(attributes={"sip.callStatus": "active"})], RoomView("active", False)),
        ([participant(attributes={"sip.callStatus": "ringing"}), AGENT], RoomView("ringing", True)),
        ([AGENT, participant()], RoomView("dialing", True)),
        # Who has left hides no one behind them.
        ([participant("gone", STATE.DISCONNECTED), participant(), AGENT], RoomView("dialing", True)),
        # Only who is in the room can speak.
        *(([participant("agent", state, KIND.AGENT)], RoomView(None, False)) for state in (0, 1, 3)),
        ([participant("+15550000002")], RoomView(None, False, other_present=True)),
        ([participant("person", kind=KIND.STANDARD)], RoomView(None, False, other_present=True)),
        ([participant("person", STATE.JOINED, KIND.STANDARD)], RoomView(None, False)),
        # An egress participant records the call and cannot talk to the callee.
        ([participant("recorder", kind=KIND.EGRESS)], RoomView(None, False)),
    ],
)
def test_a_view_tells_who_is_in_the_room(participants: list[Any], view: RoomView) -> None:
    parts, requests = livekit(list_participants=SimpleNamespace(participants=participants))
    assert asyncio.run(parts.view_room("r", IDENTITY)) == view
    assert requests == [("list_participants", api.ListParticipantsRequest(room="r"))]


@pytest.mark.parametrize(
    ("view", "accompanied"),
    [
        (RoomView("active", agent_present=False), False),
        (RoomView("active", agent_present=True), True),
        (RoomView("active", agent_present=False, other_present=True), True),
    ],
)
def test_a_phone_with_an_agent_or_another_person_is_not_alone(view: RoomView, accompanied: bool) -> None:
    assert view.accompanied is accompanied


def test_a_room_that_is_not_there_has_no_one_in_it_and_one_that_cannot_be_seen_is_an_error() -> None:
    absent = livekit(list_participants=refused("not_found", 404))[0]
    assert asyncio.run(absent.view_room("r", IDENTITY)) == RoomView(None, False)
    for answer in (refused("unavailable", 503), refused("unknown", 404), TimeoutError()):
        with pytest.raises(LiveKitError):
            asyncio.run(livekit(list_participants=answer)[0].view_room("r", IDENTITY))


def test_a_phone_and_an_agent_are_one_participant_and_two_publishers() -> None:
    counted = {"none": (0, 0), "phone": (1, 1), "agent": (0, 1), "both": (1, 2), "three": (2, 3), "agents": (0, 2)}
    rooms = [Room(name=name, num_participants=p, num_publishers=q) for name, (p, q) in counted.items()]
    parts, requests = livekit(list_rooms=SimpleNamespace(rooms=rooms))
    names = [*counted, "gone"]
    assert asyncio.run(parts.rooms_present(names)) == {
        "none": "some",
        "phone": "some",
        "agent": "some",
        "both": "both",
        "three": "both",
        "agents": "some",
        "gone": "absent",
    }
    assert requests == [("list_rooms", api.ListRoomsRequest(names=names))]


# ── the agent's dispatch ────────────────────────────────────────────────────────────────────────────


def dispatch(*jobs: tuple[Any, Any], name: str = "AD_1") -> AgentDispatch:
    state = [Job(state=JobState(status=status, reason=reason)) for status, reason in jobs]
    return AgentDispatch(id=name, room="r", state=AgentDispatchState(jobs=state))


NO_REASON = JobStateReason.JSR_UNSPECIFIED


@pytest.mark.parametrize(
    "job",
    [
        (JobStatus.JS_RUNNING, NO_REASON),
        (JobStatus.JS_RUNNING, JobStateReason.JSR_NO_CAPACITY),
        (JobStatus.JS_PENDING, NO_REASON),
        (JobStatus.JS_PENDING, JobStateReason.JSR_RETRYING),
    ],
)
def test_an_agent_that_is_late_is_not_taken_for_lost(job: tuple[Any, Any]) -> None:
    parts, requests = livekit(list_dispatch=[dispatch(), dispatch(job, name="AD_2")], delete_dispatch=None)
    assert asyncio.run(parts.delete_lost_dispatches("r")) is False
    assert [method for method, _ in requests] == ["list_dispatch"]


@pytest.mark.parametrize(
    "jobs",
    [
        [],
        [(JobStatus.JS_PENDING, JobStateReason.JSR_NO_CAPACITY)],
        [(JobStatus.JS_FAILED, NO_REASON), (JobStatus.JS_SUCCESS, NO_REASON)],
        [(JobStatus.JS_CANCELLED, NO_REASON)],
    ],
)
@pytest.mark.parametrize("answer", [None, refused("not_found", 404)])
def test_a_dispatch_without_an_agent_to_come_is_deleted(jobs: list[tuple[Any, Any]], answer: Any) -> None:
    lost = [dispatch(*jobs), dispatch(*jobs, name="AD_2")]
    parts, requests = livekit(list_dispatch=lost, delete_dispatch=answer)
    assert asyncio.run(parts.delete_lost_dispatches("r")) is True
    assert requests[1:] == [("delete_dispatch", ("AD_1", "r", {})), ("delete_dispatch", ("AD_2", "r", {}))]


def test_a_room_is_made_with_its_agent() -> None:
    parts, requests = livekit(create_room=Room(sid="RM_1"), create_dispatch=None)
    assert asyncio.run(parts.create_room("r", "{}", "outbound", "m")) == "RM_1"
    asyncio.run(parts.dispatch_agent("r", "outbound", "m"))
    made = api.CreateRoomRequest(
        name="r", metadata="{}", agents=[api.RoomAgentDispatch(agent_name="outbound", metadata="m")]
    )
    assert requests == [
        ("create_room", made),
        ("create_dispatch", api.CreateAgentDispatchRequest(agent_name="outbound", room="r", metadata="m")),
    ]
