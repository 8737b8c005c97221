"""LiveKit and the phones of the simulation, in memory: rooms, agents that come, phones that ring and are answered.

It tells its events to `tell`. A dial may fail before anything rings, and an answer may be lost while the phone
rings on. What its phones do is told to the ledger, which knows nothing of the product.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.livekit.client import LiveKit, Presence, RoomView
from simulate import invocation
from simulate.ledger import Ledger

T = TypeVar("T")

# What callees do, how often, and the SIP code that their carrier answers with.
ANSWERS: dict[str, tuple[float, int]] = {
    "answers": (56, 200),
    "does not answer": (22, 480),
    "busy": (11, 486),
    "declines": (5, 603),
    "number does not exist": (3, 404),
    "carrier fails": (3, 503),
}

LONGEST_TALK = 280.0


@dataclasses.dataclass
class Phone:
    """A phone's participant. status: LiveKit's `sip.callStatus`."""

    call_id: str
    status: str = "dialing"
    joined_at: int = 0
    hung_up: str | None = None


@dataclasses.dataclass
class LiveRoom:
    """agent_at: epoch ms from which the agent is in it; None: its dispatch is lost."""

    name: str
    sid: str
    metadata: str
    agent_at: int | None
    phone: Phone | None = None
    woken: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class SimulatedLiveKit(LiveKit):
    """tell: called with each event. talks: called with the id of a call that is answered. share: of requests that
    fail. down: nothing is reachable.
    """

    def __init__(
        self,
        dice: random.Random,
        ledger: Ledger,
        clock: Callable[[], int],
        tell: Callable[[WebhookEvent], None],
        talks: Callable[[str], None],
        share: float,
    ) -> None:
        self.rooms: dict[str, LiveRoom] = {}
        self.down = False
        self.faults: collections.Counter[str] = collections.Counter()
        self.share = share
        self._dice, self._ledger, self._clock, self._tell, self._talks = dice, ledger, clock, tell, talks
        self._sids = 0
        # The phones go on when the process that dialled them dies.
        self._outside = contextvars.copy_context()
        self._phones: set[asyncio.Task[None]] = set()

    # ── requests ────────────────────────────────────────────────────────────────────────────────────

    async def _request(self, work: Callable[[], Awaitable[T]], *, at_once: bool = False) -> T:
        sender = invocation.current.get()
        assert sender is not None

        async def send() -> T:
            if self.down:
                raise LiveKitUnreachableError
            return await work()

        return await sender.call(send, at_once=at_once)

    async def _quick(self, work: Callable[[], T]) -> T:
        """A request other than a dial: some fail, before or after they are carried out."""

        async def answer() -> T:
            if self._dice.random() >= self.share:
                return work()
            self.faults["LiveKit's error"] += 1
            if self._dice.random() < 0.5:
                work()
                raise LiveKitUnclearError(502)
            raise LiveKitError("unavailable", 503)

        return await self._request(answer)

    async def create_room(self, name: str, room_metadata: str, agent_name: str, agent_metadata: str) -> str:
        def create() -> str:
            if name not in self.rooms:
                self._sids += 1
                comes = self._dice.random() >= self.share
                self.faults["agent does not come"] += not comes
                at = self._clock() + round(1000 * self._dice.uniform(0.3, 3)) if comes else None
                self.rooms[name] = LiveRoom(name, f"RM_{self._sids}", room_metadata, at)
            return self.rooms[name].sid

        return await self._quick(create)

    async def delete_lost_dispatches(self, room: str) -> bool:
        return await self._quick(lambda: room in self.rooms and self.rooms[room].agent_at is None)

    async def dispatch_agent(self, room: str, agent_name: str, agent_metadata: str) -> None:
        def dispatch() -> None:
            if room in self.rooms:
                self.rooms[room].agent_at = self._clock() + 800

        await self._quick(dispatch)

    async def delete_room(self, name: str) -> None:
        await self._quick(lambda: self._close(name, "ROOM_DELETED"))

    async def remove_orphan(self, name: str) -> None:
        await self.delete_room(name)

    async def remove_participant(self, room: str, identity: str) -> bool:
        def remove() -> bool:
            there = self.rooms.get(room)
            if there is None or there.phone is None:
                return False
            there.phone.hung_up = "PARTICIPANT_REMOVED"
            there.woken.set()
            return True

        return await self._quick(remove)

    async def view_room(self, room: str, identity: str) -> RoomView:
        return await self._quick(lambda: self._view(room))

    async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
        return await self._quick(lambda: {name: self._presence(name) for name in names})

    def _view(self, name: str) -> RoomView:
        room = self.rooms.get(name)
        if room is None:
            return RoomView(None, agent_present=False)
        agent = room.agent_at is not None and room.agent_at <= self._clock()
        if room.phone is None:
            return RoomView(None, agent)
        return RoomView(room.phone.status, agent, joined_at_ms=room.phone.joined_at)

    def _presence(self, name: str) -> Presence:
        if name not in self.rooms:
            return "absent"
        view = self._view(name)
        return "both" if view.call_status is not None and view.agent_present else "some"

    # ── dials ───────────────────────────────────────────────────────────────────────────────────────

    async def dial(
        self,
        *,
        room: str,
        identity: str,
        trunk_id: str,
        to: str,
        from_number: str | None,
        ring_seconds: float,
        longest_seconds: float,
        timeout: float,
        dtmf: str = "",
    ) -> None:
        async def invite() -> None:
            dice = self._dice.random()
            if dice < self.share:
                self.faults["LiveKit unavailable for a dial"] += 1
                raise LiveKitError("unavailable", 503)
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # The error of a dial that no process waits for is seen by none.
            answered.add_done_callback(lambda future: future.cancelled() or future.exception())
            self._outside.copy().run(self._ring, room, identity.removeprefix("call-"), to, ring_seconds, answered)
            if dice < 2 * self.share:
                self.faults["answer of a dial lost"] += 1
                await asyncio.sleep(self._dice.uniform(0, timeout))
                raise LiveKitUnclearError(502)
            async with asyncio.timeout(timeout):
                await asyncio.shield(answered)

        await self._request(invite, at_once=True)

    def _ring(self, name: str, call_id: str, to: str, seconds: float, answered: asyncio.Future[None]) -> None:
        """Begins the life of a phone. A dial makes the room again if it is gone."""
        if name not in self.rooms:
            self._sids += 1
            self.rooms[name] = LiveRoom(name, f"RM_{self._sids}", json.dumps({"callId": call_id}), None)
        room = self.rooms[name]
        room.phone = phone = Phone(call_id, joined_at=self._clock())
        room.woken.clear()
        self._ledger.rings(call_id, to)
        self._event(room, "participant_joined")
        task = asyncio.get_running_loop().create_task(self._live(room, phone, seconds, answered))
        self._phones.add(task)
        task.add_done_callback(self._phones.discard)

    async def _live(self, room: LiveRoom, phone: Phone, seconds: float, answered: asyncio.Future[None]) -> None:
        [does] = self._dice.choices(list(ANSWERS), [share for share, _ in ANSWERS.values()])
        phone.status = "ringing"
        wait = {"answers": self._dice.uniform(2, 0.9 * seconds), "does not answer": seconds}.get(
            does, self._dice.uniform(0.5, 4)
        )
        hung_up = await self._hung_up(room, wait)
        self._ledger.rang(phone.call_id)
        if does != "answers" or hung_up:
            unavailable = does in ("does not answer", "carrier fails")
            self._leave(room, phone, hung_up or ("USER_UNAVAILABLE" if unavailable else "USER_REJECTED"))
            _fail(answered, LiveKitError("canceled", 408) if hung_up else LiveKitError("x", 500, ANSWERS[does][1]))
            return
        phone.status = "active"
        if not answered.done():
            answered.set_result(None)
        self._talks(phone.call_id)
        if not await self._hung_up(room, min(LONGEST_TALK, self._dice.expovariate(1 / 40))):
            phone.status = "hangup"
            self._leave(room, phone, "CLIENT_INITIATED")
            await asyncio.sleep(1)
            self._close(room.name, "ROOM_DELETED", room)
        else:
            self._leave(room, phone, phone.hung_up or "ROOM_DELETED")

    async def _hung_up(self, room: LiveRoom, seconds: float) -> str | None:
        """Waits; why the phone is removed if it is before that."""
        try:
            async with asyncio.timeout(seconds):
                await room.woken.wait()
        except TimeoutError:
            return None
        return (room.phone.hung_up if room.phone is not None else None) or "ROOM_DELETED"

    def _leave(self, room: LiveRoom, phone: Phone, reason: str) -> None:
        if room.phone is phone:
            room.phone = None
        self._event(room, "participant_left", phone, reason)

    def _close(self, name: str, reason: str, only: LiveRoom | None = None) -> None:
        room = self.rooms.get(name)
        if room is None or (only is not None and room is not only):
            return
        del self.rooms[name]
        if room.phone is not None:
            room.phone.hung_up = reason
        room.woken.set()
        self._event(room, "room_finished")

    def _event(
        self,
        room: LiveRoom,
        kind: Literal["participant_joined", "participant_left", "room_finished"],
        phone: Phone | None = None,
        reason: str = "",
    ) -> None:
        phone = phone or room.phone
        event = WebhookEvent(
            event=kind,
            room=Room(name=room.name, sid=room.sid, metadata=room.metadata),
            created_at=self._clock() // 1000,
        )
        if phone is not None:
            event.participant.identity = f"call-{phone.call_id}"
            event.participant.kind = ParticipantInfo.Kind.SIP
            event.participant.attributes["sip.callStatus"] = phone.status
            if reason:
                event.participant.disconnect_reason = getattr(DisconnectReason, reason)
        self._tell(event)


def _fail(answered: asyncio.Future[Any], error: LiveKitError) -> None:
    if not answered.done():
        answered.set_exception(error)
