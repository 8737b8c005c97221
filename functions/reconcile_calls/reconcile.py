"""Every minute: looks at everything that is due, ends calls that are over, repeats lost messages.

The index of what is due may be stale, so each decision is based on a consistent read of the item, and each write
has the values read as its condition. A run has some of the index's shards; other runs have the rest at the same
time. A run is bounded: it takes small portions of its shards, few of them at a time, until the index is empty or
its time or its LiveKit requests are spent; what is left is the oldest of the next run. An item that fails or
cannot be parsed does not hold up the others: it is postponed by its key.

    queued       past its deadline: `expired`; in the line: due at its deadline; else its message is repeated
    dialing      once the lease is over its worker is dead: answered, still ringing, or absent on two looks
    in_progress  too long: hung up; absent on two looks: ended; without an agent on two looks: hung up
    ended        room and slot are cleared, then it leaves the index
    deliveries   the message is repeated
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import math
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.clock import Clock, to_ms, to_seconds
from shared.delivery_store import Delivery, DeliveryStore, sort_key
from shared.durations import Durations
from shared.ending import clear, clear_with_room, end_call
from shared.errors import LiveKitError, RingonceError
from shared.hang_up import HANG_UP_REQUESTS, delete_room, hang_up_call, hang_up_phone
from shared.limits import Everything, LimitStore
from shared.line import Line, turn_of
from shared.livekit.client import ROOMS_PER_REQUEST, LiveKit, Presence, RoomView
from shared.livekit.outcomes import ANSWERED, answered_outcome, left_outcome
from shared.messages import admitted_message, delivery_message, dial_message
from shared.numbers import NumberStore, ensure_marker
from shared.queues import Queue
from shared.switch import Switch
from shared.table_keys import SHARDS
from shared.telemetry import count, logger, measure

# Seconds that must remain of a run for another portion: it is read (at most 3 s), its rooms are listed
# (`livekit_look`), it is written (3 s). Further LiveKit requests for a call are made only if time remains for
# them.
ROUND_SECONDS = 15
# Seconds that must remain after LiveKit's response, for the write that follows.
WRITE_SECONDS = 5

# The items that are read and processed together, and how many such portions concurrently: they bound a run's
# memory, as ending a call returns its whole record of up to 400 KB.
PORTION = ROOMS_PER_REQUEST
PORTIONS = 4

# The run that has this shard fills the lines and repairs the slots of all workspaces.
FIRST_SHARD = 0

# Calls that a run expires per second and shard, after everything else: 200 a second of all shards. A backlog that
# expires at once must not delay calls under way.
EXPIRED_PER_SECOND = 12.5
# The most that a run finds of them, as its time is limited too. The rest stays due.
EXPIRED_AT_MOST = 60 * EXPIRED_PER_SECOND

# Requests to LiveKit of all runs of a minute together. LiveKit Cloud allows 1,000; the dial workers need the rest.
LIVEKIT_REQUESTS = 500


class RequestsSpentError(RingonceError):
    """This run has used up its requests to LiveKit, or its time for them; the rest stays due."""


@dataclasses.dataclass(slots=True)
class Reconciler:
    """One run of the reconciler. clock: epoch ms. time_left: whether another portion may begin.
    answers_in_time: whether this many sequential requests to LiveKit finish before the run must end. shards: the
    run's part of the index.
    """

    calls: CallStore
    deliveries: DeliveryStore
    limits: LimitStore
    numbers: NumberStore
    line: Line
    dial_queue: Queue
    webhook_queue: Queue
    livekit: LiveKit
    durations: Durations
    clock: Clock
    time_left: Callable[[], bool]
    answers_in_time: Callable[[int], bool] = lambda requests: True
    shards: Sequence[int] = range(SHARDS)
    requests_left: int = LIVEKIT_REQUESTS
    # None when it cannot be read: then no call expires.
    switch: Switch | None = None
    expired: list[Call] = dataclasses.field(default_factory=list)
    # The most milliseconds by which an item of this run was late.
    lateness_ms: int = 0
    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def spend_requests(self, number: int = 1) -> None:
        """Counts requests to LiveKit. Raises RequestsSpentError when too few, or too little time, remain."""
        if self.requests_left < number or not self.answers_in_time(number):
            raise RequestsSpentError
        self.requests_left -= number

    async def run(self) -> collections.Counter[str]:
        """One run. Returns the number of times of each action."""
        self.switch = await self._switch()
        due = _DueKeys(self)

        async def work() -> None:
            while self.time_left() and (keys := await due.portion()):
                await self._reconcile_portion(keys)

        lines = [self._lines()] if FIRST_SHARD in self.shards else []
        await asyncio.gather(*(work() for _ in range(PORTIONS)), *lines)
        await self._expire()
        logger.info("reconciled", extra={"done": dict(self.done), "requests_left": self.requests_left})
        measure("DueLateness", self.lateness_ms)
        return self.done

    async def _lines(self) -> None:
        """Fills the lines, unless nothing may ring: what would be admitted came back at once."""
        if await self._mark_numbers():
            await self._fill_lines()

    async def _mark_numbers(self) -> bool:
        """Writes the marker of a new deployment's table of numbers. Whether there is one: while that of an older
        one is missing, nothing rings.
        """
        try:
            if await asyncio.to_thread(ensure_marker, self.limits, self.numbers, self.clock()):
                return True
            logger.error("the table of numbers has no marker: nothing is dialled (docs/operations.md)")
        except Exception:
            _count_error("the marker of the numbers cannot be read")
        count("NumbersMarkerMissing")
        return False

    async def _switch(self) -> Switch | None:
        try:
            return await asyncio.to_thread(self.limits.switch)
        except Exception:
            _count_error("the switch cannot be read")
            return None

    async def _reconcile_portion(self, keys: list[tuple[str, str]]) -> None:
        """Reads the items with these keys and processes them concurrently."""
        try:
            found = await asyncio.to_thread(self.calls.read_due, keys)
        except Exception:
            # Not postponed: nothing is known of the items, and the next run reads them again.
            _count_error("a portion cannot be read")
            return
        now_ms = self.clock()
        calls = [call for call in found.calls if call.check_at_ms is not None and call.check_at_ms <= now_ms]
        rows = [row for row in found.deliveries if row.check_at_ms is not None and row.check_at_ms <= now_ms]
        since = [call.check_at_ms or now_ms for call in calls] + [row.check_at_ms or now_ms for row in rows]
        self.lateness_ms = max(self.lateness_ms, now_ms - min(since, default=now_ms))
        rooms = asyncio.create_task(self._rooms(calls))

        async def looked_at(call: Call) -> str:
            # Items that need no room do not wait for LiveKit's response.
            room = (await rooms).get(call.room_name) if _in_room(call) else None
            return await self._process_call(call, room)

        work = [self._reconcile_call(call, looked_at(call)) for call in calls]
        due: list[Delivery] = []
        work += [
            self._isolated((row.call_id, sort_key(row.sequence)), self._reconcile_delivery(row, due))
            for row in rows
        ]
        work += [self._put_off(key, self.durations.live_check) for key in found.unreadable]
        await asyncio.gather(rooms, *work)
        await self._send_again(due)

    async def _rooms(self, calls: list[Call]) -> dict[str, Presence]:
        """The presence in these calls' rooms: few concurrent requests for many calls.

        Rooms whose request failed are omitted and looked at one by one.
        """
        names = [call.room_name for call in calls if _in_room(call)]

        async def listed(some: list[str]) -> dict[str, Presence]:
            try:
                self.spend_requests()
                return await self.livekit.rooms_present(some)
            except (LiveKitError, RequestsSpentError) as exc:
                logger.warning("rooms not listed", extra={"livekit": str(exc)})
            except Exception:
                _count_error("rooms cannot be listed")
            return {}

        starts = range(0, len(names), ROOMS_PER_REQUEST)
        answers = await asyncio.gather(*(listed(names[start : start + ROOMS_PER_REQUEST]) for start in starts))
        return {name: presence for answer in answers for name, presence in answer.items()}

    async def _reconcile_call(self, call: Call, work: Coroutine[Any, Any, str]) -> None:
        """Processes a call; one that fails for lack of LiveKit is postponed, behind those that do not need
        LiveKit.
        """

        async def guarded() -> None:
            try:
                self.done[await work] += 1
            except (LiveKitError, RequestsSpentError) as exc:
                logger.warning("LiveKit not asked", extra={"call_id": call.call_id, "livekit": str(exc)})
                await self._postpone(call, self.durations.second_look)
                self.done["postponed"] += 1

        await self._isolated((call.call_id, "CALL"), guarded())

    async def _isolated(self, key: tuple[str, str], work: Awaitable[None]) -> None:
        """Processes one item; any exception is logged and postpones this item only."""
        try:
            await work
        except Exception:
            _count_error("not reconciled", key)
            await self._put_off(key, self.durations.second_look)

    async def _put_off(self, key: tuple[str, str], seconds: float) -> None:
        """Postpones an item by its key, without relying on its content."""
        now_ms = self.clock()
        try:
            await asyncio.to_thread(self.calls.put_off, key, now_ms + to_ms(seconds), now_ms)
        except Exception:
            _count_error("not put off", key)

    async def _process_call(self, call: Call, room: Presence | None) -> str:
        """Processes a due call. room: None when its presence is unknown."""
        match call.status:
            case "queued":
                return await self._queued(call)
            case "dialing":
                return await self._dialing(call)
            case "in_progress":
                return await self._in_progress(call, room)
            case _:
                return await self._ended(call, room)

    async def _queued(self, call: Call) -> str:
        now_ms = self.clock()
        if call.lease_until_ms >= now_ms:
            return await self._postpone_to(call, call.lease_until_ms)
        deadline_ms = (self.switch or Switch()).deadline_ms(call, now_ms)
        # A pause moves the queue's deadline, not one that the client has set.
        fixed = call.expires_at_ms is not None or (self.switch is not None and self.switch.paused_at_ms is None)
        if now_ms >= deadline_ms and fixed:
            if len(self.expired) < EXPIRED_AT_MOST * len(self.shards):
                self.expired.append(call)
            return "expires"
        if call.in_line:
            # Nothing else than its deadline; while that is not known, or dialling is paused, a look a minute.
            return await self._postpone_to(call, max(deadline_ms, now_ms + to_ms(self.durations.queued_check)))
        if await self._postpone(call, self.durations.queued_check) == "lost":
            return "lost"
        message = dial_message(call.call_id, call.workspace_id)
        if call.admitted_at_ms is not None:
            message = admitted_message(call.call_id, call.workspace_id, call.held_slots_item or 0)
        await asyncio.to_thread(self.dial_queue.send, message, group=call.workspace_id)
        count("DialMessagesRepeated")
        return "sent_again"

    async def _expire(self) -> None:
        """Ends the calls that were found expired, a limited number per second, while this run's time lasts."""
        together = max(1, round(EXPIRED_PER_SECOND * len(self.shards) / 5))
        while self.expired and self.time_left():
            some, self.expired = self.expired[:together], self.expired[together:]
            outcome = Outcome("expired", "expired", retryable=True)
            await asyncio.gather(
                asyncio.sleep(0.2 if self.expired else 0),
                *(self._reconcile_call(call, self._end(call, outcome)) for call in some),
            )

    async def _dialing(self, call: Call) -> str:
        """While its worker may be alive only a request to hang up is carried out; after the lease the dial is
        settled.
        """
        now_ms = self.clock()
        if call.lease_until_ms >= now_ms:
            if call.hangup is None:
                return await self._postpone_to(call, call.lease_until_ms)
            self.spend_requests()
            await hang_up_phone(self.calls, self.livekit, call, answered=False)
            return await self._postpone(call, self.durations.second_look)
        longest = (call.ring_timeout_seconds + call.max_duration_seconds) * self.durations.scale
        if now_ms >= (call.dialed_at_ms or 0) + to_ms(longest + self.durations.end_margin):
            # LiveKit was unreachable for longer than any call lasts.
            return await self._end(call, left_outcome(call.phone_left))
        self.spend_requests()
        view = await self.livekit.view_room(call.room_name, call.identity)
        status = self._credible_status(call, view)
        if status is not None and call.hangup is not None:
            self.spend_requests()
            if await hang_up_phone(self.calls, self.livekit, call, answered=status in ANSWERED):
                return await self._postpone(call, self.durations.second_look)
            status = None
        if status is None:
            if call.phone_left is not None or self._missing_long_enough(call.phone_missing_since_ms):
                return await self._end(call, left_outcome(call.phone_left))
            return await self._missing(call)
        if status in ANSWERED and call.lease_id is not None:
            check_at_ms = now_ms + to_ms(self.durations.second_look)
            write = await asyncio.to_thread(
                self.calls.answered, call.call_id, call.lease_id, check_at_ms, now_ms, inferred=True
            )
            if not write.won or write.call is None:
                return "lost"
            count("CallsAnswered")
            if write.call.phone_left is not None:
                # The phone left before the answer was written.
                return await self._end(write.call, answered_outcome(write.call.phone_left))
            return "answered"
        # It still rings; LiveKit ends that after the ring time.
        return await self._note(call, self.durations.second_look, phone_missing_since_ms=None)

    def _credible_status(self, call: Call, view: RoomView) -> str | None:
        """The phone's `sip.callStatus`, corrected for crashed and restarted servers; None when there is no phone.

        LiveKit gives up a dial within `dial_limit` of its ring time. A phone that is `dialing` or `ringing` after
        that is a stale entry of a crashed server; unless it has joined again since: then a server restarted during
        the call, which reset the status, and the phone counts as `active`."""
        dialed_at_ms = call.dialed_at_ms or 0
        ring = call.ring_timeout_seconds * self.durations.scale
        if view.call_status is None or view.call_status in ANSWERED:
            return view.call_status
        if self.clock() < dialed_at_ms + to_ms(ring + self.durations.dial_limit):
            return view.call_status
        first_joined = min(call.phone_seen_at_ms or math.inf, dialed_at_ms + to_ms(self.durations.second_look))
        # LiveKit's event has a resolution of one second.
        return "active" if view.joined_at_ms // 1000 > first_joined // 1000 else None

    async def _in_progress(self, call: Call, room: Presence | None) -> str:
        now_ms = self.clock()
        limit = (call.answered_at_ms or 0) + to_ms(call.max_duration_seconds * self.durations.scale)
        if now_ms >= limit + to_ms(self.durations.end_margin):
            # The published bound holds independent of LiveKit.
            return await self._end(call, Outcome("failed", "outcome_unknown", inferred=True))
        if call.hangup is not None:
            return await self._hang_up(call, call.hangup["reason"])
        if now_ms >= limit:
            return await self._hang_up(call, "max_duration")
        if room == "both":
            return await self._alive(call, limit)
        if room != "absent":
            self.spend_requests()
            view = await self.livekit.view_room(call.room_name, call.identity)
            if view.call_status is not None and view.accompanied:
                return await self._alive(call, limit)
            if view.call_status is not None:
                if self._missing_long_enough(call.agent_missing_since_ms):
                    return await self._hang_up(call, "agent_left")
                return await self._note(
                    call,
                    self.durations.second_look,
                    phone_missing_since_ms=None,
                    agent_missing_since_ms=call.agent_missing_since_ms or now_ms,
                )
        if self._missing_long_enough(call.phone_missing_since_ms):
            return await self._end(call, answered_outcome(None))
        return await self._missing(call)

    async def _alive(self, call: Call, limit: int) -> str:
        seconds = min(self.durations.live_check, max(0.0, to_seconds(limit - self.clock())))
        await self._note(call, seconds, phone_missing_since_ms=None, agent_missing_since_ms=None)
        return "alive"

    async def _hang_up(self, call: Call, reason: str) -> str:
        self.spend_requests(HANG_UP_REQUESTS)
        hung_up = await hang_up_call(self.calls, self.livekit, call, reason, self.clock)
        if hung_up is None:
            return await self._postpone(call, self.durations.second_look)
        return await self._end(*hung_up)

    async def _ended(self, call: Call, room: Presence | None) -> str:
        if call.dialed_at_ms is None and call.lease_until_ms >= self.clock():
            # Its worker may still create the room.
            return await self._postpone_to(call, call.lease_until_ms)
        if room == "absent":
            await asyncio.to_thread(clear, self.line, call)
            return "cleared"
        return await self._clear(call)

    async def _reconcile_delivery(self, row: Delivery, due: list[Delivery]) -> None:
        """Postpones a delivery that is still due and adds it to `due`, whose messages are repeated."""
        check_at_ms = self.clock() + to_ms(self.durations.webhook_grace)
        if await asyncio.to_thread(self.deliveries.postpone, row, check_at_ms):
            due.append(row)

    async def _send_again(self, rows: list[Delivery]) -> None:
        """Sends the deliveries' messages in batches. An unconfirmed one is repeated when its row is due again."""
        messages = [(delivery_message(row.call_id, row.sequence), row.workspace_id) for row in rows]
        lost = await asyncio.to_thread(self.webhook_queue.send_batch, messages)
        for place in lost:
            logger.error(
                "not sent again", extra={"call_id": rows[place].call_id, "sequence": rows[place].sequence}
            )
            count("ReconcileErrors")
        if sent := len(rows) - len(lost):
            self.done["deliveries_sent_again"] += sent

    # ── lines and slots ─────────────────────────────────────────────────────────────────────────────────

    async def _fill_lines(self) -> None:
        """Admits calls to the free slots of every workspace, and about every fifth minute repairs the slots."""
        try:
            everything = await asyncio.to_thread(self.limits.everything)
        except Exception:
            # Repeated in the next minute; the rest of this run is done.
            _count_error("the workspaces cannot be read")
            return
        now_ms = self.clock()
        stopped = [trunk for trunk in everything.trunks.values() if trunk.state(now_ms) != "in_use"]
        for trunk in stopped:
            logger.warning("trunk is stopped", extra={"trunk_id": trunk.trunk_id, "stops": trunk.stops})
        if stopped:
            count("TrunksStopped", len(stopped))
        workspaces = list(everything.workspaces.values())
        random.shuffle(workspaces)

        async def work() -> None:
            while workspaces and self.time_left():
                workspace = workspaces.pop()
                try:
                    standing = everything.standing(workspace)
                    if admitted := await asyncio.to_thread(self.line.fill, workspace, standing):
                        self.done["admitted"] += admitted
                except Exception:
                    _count_error(f"the line of {workspace.workspace_id} is not filled")

        await asyncio.gather(*(work() for _ in range(PORTIONS)))
        if now_ms % to_ms(self.durations.slot_repair) < to_ms(60 * self.durations.scale):
            await asyncio.to_thread(self.repair_slots, everything)

    def repair_slots(self, everything: Everything) -> None:
        """Frees the slots of calls that have ended, have no record, or wait in the line.

        The end of a call frees its slot, and so does its way into the line; but the request that took it may be
        executed again later (the SDK repeats it when the first response is lost), or by a worker that stalled past
        its lease. In random order, while time is left: what is not reached is at the next repair.
        """
        items = [(workspace_id, item) for workspace_id, of_it in everything.slots.items() for item in of_it]
        random.shuffle(items)
        for workspace_id, item in items:
            if not self.time_left():
                return
            try:
                found = self.calls.read_due([(call_id, "CALL") for call_id in item.call_ids])
                unreadable = {call_id for call_id, _ in found.unreadable}
                calls = {call.call_id: call for call in found.calls}
                for call_id in item.call_ids - unreadable:
                    self._repair_slot(workspace_id, call_id, item.number, calls.get(call_id))
            except Exception:
                # Repeated at the next repair; the other items are not held up.
                _count_error("slots not repaired")

    def _repair_slot(self, workspace_id: str, call_id: str, item: int, call: Call | None) -> None:
        waits = call is not None and call.in_line
        if call is not None and waits:
            # A worker must not take the slot while it is freed.
            now_ms = self.clock()
            lease, until_ms = secrets.token_hex(8), now_ms + to_ms(self.durations.lease_margin)
            held = self.calls.hold(call, lease, until_ms, now_ms)
            if not held.won:
                return
        elif call is not None and not call.ended:
            return
        self.limits.free_slot(workspace_id, call_id, item)
        if call is not None and waits:
            self.calls.enter_line(
                call_id,
                call.line_of or "",
                call.turn or turn_of(call),
                call.waiting_for or "slot",
                call.check_at_ms or call.queue_deadline_ms,
                now_ms,
                lease=lease,
            )
        logger.warning("slot freed that no call holds", extra={"call_id": call_id})
        count("SlotsRepaired")

    # ── what several of them do ─────────────────────────────────────────────────────────────────────────

    async def _end(self, call: Call, outcome: Outcome) -> str:
        ended = await asyncio.to_thread(end_call, self.calls, call, outcome, self.durations, self.clock)
        if ended is None:
            return "lost"
        if ended.hangup is None:
            # Without a request to hang up this means that a process died or an event was lost.
            count("CallsEndedByReconciler")
        await self._clear(ended)
        return "ended"

    async def _clear(self, call: Call) -> str:
        """Clears an ended call. With an orphan room it stays due: the removal dispatched the agent once more."""
        if await clear_with_room(self.line, call, self._delete_room):
            return "cleared"
        return await self._postpone(call, self.durations.second_look)

    async def _delete_room(self, call: Call) -> bool:
        self.spend_requests()
        return await delete_room(self.calls, self.livekit, call)

    def _missing_long_enough(self, since: int | None) -> bool:
        return since is not None and self.clock() - since >= to_ms(self.durations.second_look)

    async def _missing(self, call: Call) -> str:
        return await self._note(
            call,
            self.durations.second_look,
            phone_missing_since_ms=call.phone_missing_since_ms or self.clock(),
        )

    async def _note(self, call: Call, seconds: float, **since: int | None) -> str:
        check_at_ms = self.clock() + to_ms(seconds)
        write = await asyncio.to_thread(self.calls.note_missing, call, check_at_ms, **since)
        return "noted" if write.won else "lost"

    async def _postpone(self, call: Call, seconds: float) -> str:
        return await self._postpone_to(call, self.clock() + to_ms(seconds))

    async def _postpone_to(self, call: Call, check_at_ms: int) -> str:
        write = await asyncio.to_thread(self.calls.postpone, call, check_at_ms)
        return "postponed" if write.won else "lost"


def requests_of(shards: Sequence[int]) -> int:
    """The share of LIVEKIT_REQUESTS for a run with these shards."""
    return LIVEKIT_REQUESTS * len(shards) // SHARDS


class _DueKeys:
    """Keys of due items, in portions: the oldest of each of the run's shards first, page by page."""

    def __init__(self, reconciler: Reconciler) -> None:
        now_ms = reconciler.clock()
        self._pages = [reconciler.calls.due(shard, now_ms) for shard in reconciler.shards]
        self._keys: list[tuple[str, str]] = []
        self._reading = asyncio.Lock()

    async def portion(self) -> list[tuple[str, str]]:
        """The next keys, at most PORTION; empty when there are no more."""
        async with self._reading:
            while self._pages and len(self._keys) < PORTION:
                read = await asyncio.gather(*(asyncio.to_thread(_next_page, shard) for shard in self._pages))
                self._pages = [shard for shard, page in zip(self._pages, read, strict=True) if page is not None]
                keys = [key for page in read if page for key in page]
                # In random order, so that not always the same items are left when time or requests are spent.
                random.shuffle(keys)
                self._keys += keys
            some, self._keys = self._keys[:PORTION], self._keys[PORTION:]
            return some


def _next_page(pages: Iterator[list[tuple[str, str]]]) -> list[tuple[str, str]] | None:
    """The shard's next page; None when there is no more, or when it cannot be read: the next run reads it
    again.
    """
    try:
        return next(pages, None)
    except Exception:
        _count_error("a shard cannot be read")
        return None


def _in_room(call: Call) -> bool:
    return call.status == "in_progress" or call.ended


def _count_error(message: str, key: tuple[str, str] | None = None) -> None:
    """Logs and counts an exception; called in its handler."""
    logger.exception(message, extra={"call_id": key[0], "sort_key": key[1]} if key else None)
    count("ReconcileErrors")
