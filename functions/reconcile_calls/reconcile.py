"""Every minute: looks at everything that is due, ends calls that are over, repeats lost messages.

The index of what is due may be stale, so each decision is based on a consistent read of the item, and each write
has the values read as its condition. A run has some of the index's shards; other runs have the rest at the same
time. A run is bounded: it takes small portions of its shards, few of them at a time, until the index is empty or
its time or its LiveKit requests are spent; what is left is the oldest of the next run. An item that fails or
cannot be parsed does not hold up the others: it is postponed by its key.

    queued       past its queue deadline: `expired`; else its message is repeated
    dialing      once the lease is over its worker is dead: answered, still ringing, or absent on two looks
    in_progress  too long: hung up; absent on two looks: ended; without an agent on two looks: hung up
    ended        room and slot are cleared, then it leaves the index
    deliveries   the message is repeated
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.delivery_store import Delivery, DeliveryStore, sort_key
from shared.durations import Durations
from shared.ending import clear, clear_with_room, end_call
from shared.errors import LiveKitError, RingonceError
from shared.hang_up import HANG_UP_REQUESTS, delete_room, hang_up_call, hang_up_phone
from shared.limits import LimitStore
from shared.livekit.client import ROOMS_PER_REQUEST, LiveKit, Presence, RoomView
from shared.livekit.outcomes import ANSWERED, answered_outcome, left_outcome
from shared.messages import delivery_message, dial_message
from shared.queues import Queue
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

# The run that has this shard repairs the slots of all workspaces.
FIRST_SHARD = 0

# Requests to LiveKit of all runs of a minute together. LiveKit Cloud allows 1,000; the dial workers need the rest.
LIVEKIT_REQUESTS = 500


class RequestsSpent(RingonceError):
    """This run has used up its requests to LiveKit, or its time for them; the rest stays due."""


@dataclasses.dataclass(slots=True)
class Reconciling:
    """A run's dependencies and state. clock: epoch ms. time_left: whether another portion may begin.
    answers_in_time: whether this many sequential requests to LiveKit finish before the run must end. shards: the
    run's part of the index.
    """

    calls: CallStore
    deliveries: DeliveryStore
    limits: LimitStore
    dial_queue: Queue
    webhook_queue: Queue
    livekit: LiveKit
    durations: Durations
    clock: Callable[[], int]
    time_left: Callable[[], bool]
    answers_in_time: Callable[[int], bool] = lambda requests: True
    shards: Sequence[int] = range(SHARDS)
    requests_left: int = LIVEKIT_REQUESTS
    # The most milliseconds by which an item of this run was late.
    lateness: int = 0
    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def spend_requests(self, number: int = 1) -> None:
        """Counts requests to LiveKit. Raises RequestsSpent when too few, or too little time, remain."""
        if self.requests_left < number or not self.answers_in_time(number):
            raise RequestsSpent
        self.requests_left -= number


def requests_of(shards: Sequence[int]) -> int:
    """The share of LIVEKIT_REQUESTS for a run with these shards."""
    return LIVEKIT_REQUESTS * len(shards) // SHARDS


async def reconcile(parts: Reconciling) -> collections.Counter[str]:
    """One run. Returns the number of times of each action."""
    paused = await _paused(parts)
    due = _DueKeys(parts)

    async def work() -> None:
        while parts.time_left() and (keys := await due.portion()):
            await _round(parts, keys, paused)

    await asyncio.gather(*(work() for _ in range(PORTIONS)))
    repairs = parts.clock() % int(parts.durations.slot_repair * 1000) < int(60_000 * parts.durations.scale)
    if repairs and FIRST_SHARD in parts.shards:
        # About every fifth minute, in one of the minute's runs.
        await asyncio.to_thread(repair_slots, parts)
    logger.info("reconciled", extra={"done": dict(parts.done), "requests_left": parts.requests_left})
    measure("DueLateness", parts.lateness)
    return parts.done


async def _paused(parts: Reconciling) -> bool:
    """Whether dialling is stopped. A switch that cannot be read counts as set, so that no call expires by
    mistake.
    """
    try:
        return await asyncio.to_thread(parts.limits.paused)
    except Exception:
        _count_error("the switch cannot be read")
        return True


class _DueKeys:
    """Keys of due items, in portions: the oldest of each of the run's shards first, page by page."""

    def __init__(self, parts: Reconciling) -> None:
        now = parts.clock()
        self._pages = [parts.calls.due(shard, now) for shard in parts.shards]
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


async def _round(parts: Reconciling, keys: list[tuple[str, str]], paused: bool) -> None:
    """Reads the items with these keys and processes them concurrently."""
    try:
        found = await asyncio.to_thread(parts.calls.read_due, keys)
    except Exception:
        # Not postponed: nothing is known of the items, and the next run reads them again.
        _count_error("a portion cannot be read")
        return
    now = parts.clock()
    calls = [call for call in found.calls if call.checkAt is not None and call.checkAt <= now]
    rows = [row for row in found.deliveries if row.checkAt is not None and row.checkAt <= now]
    since = [call.checkAt or now for call in calls] + [row.checkAt or now for row in rows]
    parts.lateness = max(parts.lateness, now - min(since, default=now))
    rooms = asyncio.create_task(_rooms(parts, calls))

    async def looked_at(call: Call) -> str:
        # Items that need no room do not wait for LiveKit's response.
        room = (await rooms).get(call.roomName) if _in_room(call) else None
        return await _call(parts, call, room, paused)

    work = [_guarded(parts, call, looked_at(call)) for call in calls]
    due: list[Delivery] = []
    work += [_apart(parts, (row.callId, sort_key(row.sequence)), _delivery(parts, row, due)) for row in rows]
    work += [_put_off(parts, key, parts.durations.live_check) for key in found.unreadable]
    await asyncio.gather(rooms, *work)
    await _send_again(parts, due)


def _in_room(call: Call) -> bool:
    return call.status == "in_progress" or call.ended


async def _rooms(parts: Reconciling, calls: list[Call]) -> dict[str, Presence]:
    """The presence in these calls' rooms: few concurrent requests for many calls.

    Rooms whose request failed are omitted and looked at one by one.
    """
    names = [call.roomName for call in calls if _in_room(call)]

    async def listed(some: list[str]) -> dict[str, Presence]:
        try:
            parts.spend_requests()
            return await parts.livekit.rooms_present(some)
        except (LiveKitError, RequestsSpent) as exc:
            logger.warning("rooms not listed", extra={"livekit": str(exc)})
        except Exception:
            _count_error("rooms cannot be listed")
        return {}

    starts = range(0, len(names), ROOMS_PER_REQUEST)
    answers = await asyncio.gather(*(listed(names[start : start + ROOMS_PER_REQUEST]) for start in starts))
    return {name: presence for answer in answers for name, presence in answer.items()}


async def _guarded(parts: Reconciling, call: Call, work: Coroutine[Any, Any, str]) -> None:
    """Processes a call; one that fails for lack of LiveKit is postponed, behind those that do not need LiveKit."""

    async def guarded() -> None:
        try:
            parts.done[await work] += 1
        except (LiveKitError, RequestsSpent) as exc:
            logger.warning("LiveKit not asked", extra={"call_id": call.callId, "livekit": str(exc)})
            await _postpone(parts, call, parts.durations.second_look)
            parts.done["postponed"] += 1

    await _apart(parts, (call.callId, "CALL"), guarded())


async def _apart(parts: Reconciling, key: tuple[str, str], work: Awaitable[None]) -> None:
    """Processes one item; any exception is logged and postpones this item only."""
    try:
        await work
    except Exception:
        _count_error("not reconciled", key)
        await _put_off(parts, key, parts.durations.second_look)


async def _put_off(parts: Reconciling, key: tuple[str, str], seconds: float) -> None:
    """Postpones an item by its key, without relying on its content."""
    now = parts.clock()
    try:
        await asyncio.to_thread(parts.calls.put_off, key, now + int(seconds * 1000), now)
    except Exception:
        _count_error("not put off", key)


def _count_error(message: str, key: tuple[str, str] | None = None) -> None:
    """Logs and counts an exception; called in its handler."""
    logger.exception(message, extra={"call_id": key[0], "sort_key": key[1]} if key else None)
    count("ReconcileErrors")


async def _call(parts: Reconciling, call: Call, room: Presence | None, paused: bool) -> str:
    """Processes a due call. room: None when its presence is unknown."""
    match call.status:
        case "queued":
            return await _queued(parts, call, paused)
        case "dialing":
            return await _dialing(parts, call)
        case "in_progress":
            return await _in_progress(parts, call, room)
        case _:
            return await _ended(parts, call, room)


async def _queued(parts: Reconciling, call: Call, paused: bool) -> str:
    now = parts.clock()
    if call.leaseUntil >= now:
        return await _postpone_to(parts, call, call.leaseUntil)
    if now >= call.queueDeadline and not paused:
        return await _end(parts, call, Outcome("expired", "expired", retryable=True))
    if await _postpone(parts, call, parts.durations.queued_check) == "lost":
        return "lost"
    await asyncio.to_thread(
        parts.dial_queue.send,
        dial_message(call.callId, call.workspaceId),
        group=call.workspaceId,
    )
    count("DialMessagesRepeated")
    return "sent_again"


async def _dialing(parts: Reconciling, call: Call) -> str:
    """While its worker may be alive only a request to hang up is carried out; after the lease the dial is
    settled.
    """
    now = parts.clock()
    if call.leaseUntil >= now:
        if call.hangup is None:
            return await _postpone_to(parts, call, call.leaseUntil)
        parts.spend_requests()
        await hang_up_phone(parts.calls, parts.livekit, call, answered=False)
        return await _postpone(parts, call, parts.durations.second_look)
    longest = (call.ringTimeoutSeconds + call.maxDurationSeconds) * parts.durations.scale
    if now >= (call.dialedAt or 0) + int((longest + parts.durations.end_margin) * 1000):
        # LiveKit was unreachable for longer than any call lasts.
        return await _end(parts, call, left_outcome(call.left))
    parts.spend_requests()
    view = await parts.livekit.view_room(call.roomName, call.identity)
    status = _credible_status(parts, call, view)
    if status is not None and call.hangup is not None:
        parts.spend_requests()
        if await hang_up_phone(parts.calls, parts.livekit, call, answered=status in ANSWERED):
            return await _postpone(parts, call, parts.durations.second_look)
        status = None
    if status is None:
        if call.left is not None or _missing_long_enough(parts, call.missingSince):
            return await _end(parts, call, left_outcome(call.left))
        return await _missing(parts, call)
    if status in ANSWERED and call.leaseId is not None:
        check_at = now + int(parts.durations.second_look * 1000)
        write = await asyncio.to_thread(
            parts.calls.answered, call.callId, call.leaseId, check_at, now, inferred=True
        )
        if not write.won or write.call is None:
            return "lost"
        count("CallsAnswered")
        if write.call.left is not None:
            # The phone left before the answer was written.
            return await _end(parts, write.call, answered_outcome(write.call.left))
        return "answered"
    # It still rings; LiveKit ends that after the ring time.
    return await _note(parts, call, parts.durations.second_look, missingSince=None)


def _credible_status(parts: Reconciling, call: Call, view: RoomView) -> str | None:
    """The phone's `sip.callStatus`, corrected for crashed and restarted servers; None when there is no phone.

    LiveKit gives up a dial within `dial_limit` of its ring time. A phone that is `dialing` or `ringing` after that
    is a stale entry of a crashed server; unless it has joined again since: then a server restarted during the
    call, which reset the status, and the phone counts as `active`.
    """
    dialed_at = call.dialedAt or 0
    ring = call.ringTimeoutSeconds * parts.durations.scale
    if view.call_status is None or view.call_status in ANSWERED:
        return view.call_status
    if parts.clock() < dialed_at + int((ring + parts.durations.dial_limit) * 1000):
        return view.call_status
    first_joined = min(call.phoneSeenAt or math.inf, dialed_at + parts.durations.second_look * 1000)
    # LiveKit's event has a resolution of one second.
    return "active" if view.joined_at // 1000 > first_joined // 1000 else None


async def _in_progress(parts: Reconciling, call: Call, room: Presence | None) -> str:
    now = parts.clock()
    limit = (call.answeredAt or 0) + int(call.maxDurationSeconds * parts.durations.scale * 1000)
    if now >= limit + int(parts.durations.end_margin * 1000):
        # The published bound holds independent of LiveKit.
        return await _end(parts, call, Outcome("failed", "outcome_unknown", inferred=True))
    if call.hangup is not None:
        return await _hang_up(parts, call, call.hangup["reason"])
    if now >= limit:
        return await _hang_up(parts, call, "max_duration")
    if room == "both":
        return await _alive(parts, call, limit)
    if room != "absent":
        parts.spend_requests()
        view = await parts.livekit.view_room(call.roomName, call.identity)
        if view.call_status is not None and view.accompanied:
            return await _alive(parts, call, limit)
        if view.call_status is not None:
            if _missing_long_enough(parts, call.agentMissingSince):
                return await _hang_up(parts, call, "agent_left")
            return await _note(
                parts,
                call,
                parts.durations.second_look,
                missingSince=None,
                agentMissingSince=call.agentMissingSince or now,
            )
    if _missing_long_enough(parts, call.missingSince):
        return await _end(parts, call, answered_outcome(None))
    return await _missing(parts, call)


async def _alive(parts: Reconciling, call: Call, limit: int) -> str:
    seconds = min(parts.durations.live_check, max(0.0, (limit - parts.clock()) / 1000))
    await _note(parts, call, seconds, missingSince=None, agentMissingSince=None)
    return "alive"


async def _hang_up(parts: Reconciling, call: Call, reason: str) -> str:
    parts.spend_requests(HANG_UP_REQUESTS)
    hung_up = await hang_up_call(parts.calls, parts.livekit, call, reason, parts.clock)
    if hung_up is None:
        return await _postpone(parts, call, parts.durations.second_look)
    return await _end(parts, *hung_up)


async def _ended(parts: Reconciling, call: Call, room: Presence | None) -> str:
    if call.dialedAt is None and call.leaseUntil >= parts.clock():
        # Its worker may still create the room.
        return await _postpone_to(parts, call, call.leaseUntil)
    if room == "absent":
        await asyncio.to_thread(clear, parts.calls, parts.limits, call)
        return "cleared"
    return await _clear(parts, call)


async def _delivery(parts: Reconciling, row: Delivery, due: list[Delivery]) -> None:
    """Postpones a delivery that is still due and adds it to `due`, whose messages are repeated."""
    check_at = parts.clock() + int(parts.durations.webhook_grace * 1000)
    if await asyncio.to_thread(parts.deliveries.postpone, row, check_at):
        due.append(row)


async def _send_again(parts: Reconciling, rows: list[Delivery]) -> None:
    """Sends the deliveries' messages in batches. An unconfirmed one is repeated when its row is due again."""
    messages = [(delivery_message(row.callId, row.sequence), row.workspaceId) for row in rows]
    lost = await asyncio.to_thread(parts.webhook_queue.send_batch, messages)
    for place in lost:
        logger.error("not sent again", extra={"call_id": rows[place].callId, "sequence": rows[place].sequence})
        count("ReconcileErrors")
    if sent := len(rows) - len(lost):
        parts.done["deliveries_sent_again"] += sent


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def repair_slots(parts: Reconciling) -> None:
    """Frees the slots of calls that have ended or have no record.

    The end of a call frees its slot; but the request that took it may be executed again later (the SDK repeats it
    when the first response is lost), or by a worker that stalled past its lease.
    """
    try:
        for workspace_id, call_ids in parts.limits.slots():
            for call_id in call_ids - parts.calls.not_ended(call_ids):
                parts.limits.free_slot(workspace_id, call_id)
                logger.warning("slot of an ended call freed", extra={"call_id": call_id})
                count("SlotsRepaired")
    except Exception:
        # Repeated at the next repair; the rest of this run is done.
        _count_error("slots not repaired")


# ── what several of them do ─────────────────────────────────────────────────────────────────────────


async def _end(parts: Reconciling, call: Call, outcome: Outcome) -> str:
    ended = await asyncio.to_thread(end_call, parts.calls, call, outcome, parts.durations, parts.clock)
    if ended is None:
        return "lost"
    if ended.hangup is None:
        # Without a request to hang up this means that a process died or an event was lost.
        count("CallsEndedByReconciler")
    await _clear(parts, ended)
    return "ended"


async def _clear(parts: Reconciling, call: Call) -> str:
    """Clears an ended call. With an orphan room it stays due: the removal has dispatched the agent once more."""
    if await clear_with_room(parts.calls, parts.limits, call, functools.partial(_delete_room, parts)):
        return "cleared"
    return await _postpone(parts, call, parts.durations.second_look)


async def _delete_room(parts: Reconciling, call: Call) -> bool:
    parts.spend_requests()
    return await delete_room(parts.calls, parts.livekit, call)


def _missing_long_enough(parts: Reconciling, since: int | None) -> bool:
    return since is not None and parts.clock() - since >= parts.durations.second_look * 1000


async def _missing(parts: Reconciling, call: Call) -> str:
    return await _note(parts, call, parts.durations.second_look, missingSince=call.missingSince or parts.clock())


async def _note(parts: Reconciling, call: Call, seconds: float, **since: int | None) -> str:
    check_at = parts.clock() + int(seconds * 1000)
    write = await asyncio.to_thread(parts.calls.note_missing, call, check_at, **since)
    return "noted" if write.won else "lost"


async def _postpone(parts: Reconciling, call: Call, seconds: float) -> str:
    return await _postpone_to(parts, call, parts.clock() + int(seconds * 1000))


async def _postpone_to(parts: Reconciling, call: Call, check_at: int) -> str:
    write = await asyncio.to_thread(parts.calls.postpone, call, check_at)
    return "postponed" if write.won else "lost"
