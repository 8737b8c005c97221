"""Every minute: everything that is due is looked at, what has ended is ended, what was lost is sent again.

The index of what is due may be stale, so each decision rests on a consistent read of the item, and each write
repeats what was read as its condition. A run is bounded: pages of every shard side by side, until the index is
empty or its time or its LiveKit requests are spent; what is left is the oldest of the next run.

    queued       past its time in the queue: `expired`; else a message again
    dialing      its worker is dead once the lease is over: answered, still ringing, or absent on two looks
    in_progress  too long: hung up; absent on two looks: ended; without an agent on two looks: hung up
    ended        its room and slot cleared, out of the index
    deliveries   a message again
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import math
import random
from collections.abc import Awaitable, Callable, Iterator

from dial_worker.hang_up import HANG_UP_REQUESTS, delete_room, hang_up_call, hang_up_phone
from dial_worker.livekit_sip import ROOMS_PER_REQUEST, LiveKit, Presence, RoomView
from dial_worker.outcomes import ANSWERED, answered_outcome, left_outcome
from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.delivery_store import Delivery, DeliveryStore
from shared.durations import Durations
from shared.ending import clear, clear_with_room, end_call
from shared.errors import LiveKitError, RingonceError
from shared.queues import Queue
from shared.table_keys import SHARDS
from shared.telemetry import count, logger, measure
from shared.workspaces import WorkspaceStore

# A round that has begun is finished: it must fit into what remains of the run.
ROUND_SECONDS = 30

# LiveKit Cloud allows 1,000 requests a minute; the dial workers need theirs.
LIVEKIT_REQUESTS = 500


class RequestsSpent(RingonceError):
    """This run has asked LiveKit often enough; the rest stays due."""


@dataclasses.dataclass(slots=True)
class Reconciling:
    """What a run needs. clock: epoch ms. time_left: whether another round may begin."""

    calls: CallStore
    deliveries: DeliveryStore
    workspaces: WorkspaceStore
    dial_queue: Queue
    webhook_queue: Queue
    livekit: LiveKit
    durations: Durations
    clock: Callable[[], int]
    time_left: Callable[[], bool]
    requests_left: int = LIVEKIT_REQUESTS
    # ms by which the latest item of this run was late
    lateness: int = 0
    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def spend_request(self) -> None:
        """Raises RequestsSpent when this run may not ask LiveKit again."""
        if self.requests_left <= 0:
            raise RequestsSpent
        self.requests_left -= 1


async def reconcile(parts: Reconciling) -> collections.Counter[str]:
    """One run. Returns how often it did what."""
    paused = await asyncio.to_thread(parts.workspaces.paused)
    now = parts.clock()
    pages = [parts.calls.due(shard, now) for shard in range(SHARDS)]
    while pages and parts.time_left():
        keys = await asyncio.gather(*(asyncio.to_thread(_next_page, shard) for shard in pages))
        pages = [shard for shard, page in zip(pages, keys, strict=True) if page is not None]
        await _round(parts, [key for page in keys if page for key in page], paused)
    if now % int(parts.durations.slot_repair * 1000) < int(60_000 * parts.durations.scale):
        # About every fifth run: runs are a minute apart.
        await asyncio.to_thread(repair_slots, parts)
    logger.info("reconciled", extra={"done": dict(parts.done), "requests_left": parts.requests_left})
    measure("DueLateness", parts.lateness)
    return parts.done


def _next_page(pages: Iterator[list[tuple[str, str]]]) -> list[tuple[str, str]] | None:
    return next(pages, None)


async def _round(parts: Reconciling, keys: list[tuple[str, str]], paused: bool) -> None:
    calls, deliveries = await asyncio.to_thread(parts.calls.get_many, keys)
    now = parts.clock()
    due = [call for call in calls if call.checkAt is not None and call.checkAt <= now]
    # In another order each time: when LiveKit's requests are spent, it is not always the same calls that wait.
    random.shuffle(due)
    rows = [row for row in deliveries if row.checkAt is not None and row.checkAt <= now]
    since = [call.checkAt or now for call in due] + [row.checkAt or now for row in rows]
    parts.lateness = max(parts.lateness, now - min(since, default=now))
    rooms = await _rooms(parts, due)
    work = [_guarded(parts, call, _call(parts, call, rooms.get(call.roomName), paused)) for call in due]
    work += [_delivery(parts, row) for row in rows]
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            logger.error("not reconciled", exc_info=result)
            count("ReconcileErrors")


async def _rooms(parts: Reconciling, calls: list[Call]) -> dict[str, Presence]:
    """What is in the rooms of these calls: few requests for many calls, side by side.

    A room whose request failed is left out: it is asked about by itself.
    """
    names = [call.roomName for call in calls if call.status == "in_progress" or call.ended]

    async def listed(some: list[str]) -> dict[str, Presence]:
        try:
            parts.spend_request()
            return await parts.livekit.rooms_present(some)
        except (LiveKitError, RequestsSpent) as exc:
            logger.warning("rooms not listed", extra={"livekit": str(exc)})
            return {}

    starts = range(0, len(names), ROOMS_PER_REQUEST)
    answers = await asyncio.gather(*(listed(names[start : start + ROOMS_PER_REQUEST]) for start in starts))
    return {name: presence for answer in answers for name, presence in answer.items()}


async def _guarded(parts: Reconciling, call: Call, work: Awaitable[str]) -> None:
    """LiveKit's failure moves a call behind those that need nothing of it."""
    try:
        parts.done[await work] += 1
    except (LiveKitError, RequestsSpent) as exc:
        logger.warning("LiveKit not asked", extra={"call_id": call.callId, "livekit": str(exc)})
        await _postpone(parts, call, parts.durations.second_look)
        parts.done["postponed"] += 1


async def _call(parts: Reconciling, call: Call, room: Presence | None, paused: bool) -> str:
    """room: None when it is not known."""
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
        {"callId": call.callId, "workspaceId": call.workspaceId},
        group=call.workspaceId,
    )
    count("DialMessagesRepeated")
    return "sent_again"


async def _dialing(parts: Reconciling, call: Call) -> str:
    """A dial whose worker is alive is left to it, but for a request to hang up."""
    now = parts.clock()
    if call.leaseUntil >= now:
        if call.hangup is None:
            return await _postpone_to(parts, call, call.leaseUntil)
        parts.spend_request()
        await hang_up_phone(parts.calls, parts.livekit, call, answered=False)
        return await _postpone(parts, call, parts.durations.second_look)
    longest = (call.ringTimeoutSeconds + call.maxDurationSeconds) * parts.durations.scale
    if now >= (call.dialedAt or 0) + int((longest + parts.durations.end_margin) * 1000):
        # LiveKit could not be asked for so long that no call of its can be left.
        return await _end(parts, call, left_outcome(call.left))
    parts.spend_request()
    view = await parts.livekit.view_room(call.roomName, call.identity)
    status = _credible_status(parts, call, view)
    if status is not None and call.hangup is not None:
        parts.spend_request()
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
            # It was over before this was written.
            return await _end(parts, write.call, answered_outcome(write.call.left))
        return "answered"
    # It still rings; LiveKit gives up by itself.
    return await _note(parts, call, parts.durations.second_look, missingSince=None)


def _credible_status(parts: Reconciling, call: Call, view: RoomView) -> str | None:
    """The phone's `sip.callStatus`, as far as it can be believed; None when no phone is there.

    LiveKit gives up a dial within `dial_limit` of its ring time. A phone that is `dialing` or `ringing` after that
    is what a crashed server left listed; unless it has joined anew since: then a server restarted in the call and
    began the status again while the phone talks.
    """
    dialed_at = call.dialedAt or 0
    ring = call.ringTimeoutSeconds * parts.durations.scale
    if view.call_status is None or view.call_status in ANSWERED:
        return view.call_status
    if parts.clock() < dialed_at + int((ring + parts.durations.dial_limit) * 1000):
        return view.call_status
    first_joined = min(call.phoneSeenAt or math.inf, dialed_at + parts.durations.second_look * 1000)
    # LiveKit's event has whole seconds.
    return "active" if view.joined_at // 1000 > first_joined // 1000 else None


async def _in_progress(parts: Reconciling, call: Call, room: Presence | None) -> str:
    now = parts.clock()
    limit = (call.answeredAt or 0) + int(call.maxDurationSeconds * parts.durations.scale * 1000)
    if now >= limit + int(parts.durations.end_margin * 1000):
        # The published bound: whatever LiveKit says or does not say.
        return await _end(parts, call, Outcome("failed", "outcome_unknown", inferred=True))
    if call.hangup is not None:
        return await _hang_up(parts, call, call.hangup["reason"])
    if now >= limit:
        return await _hang_up(parts, call, "max_duration")
    if room == "both":
        return await _alive(parts, call, limit)
    if room != "absent":
        parts.spend_request()
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
    for _ in range(HANG_UP_REQUESTS):
        parts.spend_request()
    hung_up = await hang_up_call(parts.calls, parts.livekit, call, reason, parts.clock)
    if hung_up is None:
        return await _postpone(parts, call, parts.durations.second_look)
    return await _end(parts, *hung_up)


async def _ended(parts: Reconciling, call: Call, room: Presence | None) -> str:
    if call.dialedAt is None and call.leaseUntil >= parts.clock():
        # Its worker may still make the room.
        return await _postpone_to(parts, call, call.leaseUntil)
    if room == "absent":
        await asyncio.to_thread(clear, parts.calls, parts.workspaces, call)
        return "cleared"
    return await _clear(parts, call)


async def _delivery(parts: Reconciling, row: Delivery) -> None:
    check_at = parts.clock() + int(parts.durations.webhook_grace * 1000)
    if not await asyncio.to_thread(parts.deliveries.postpone, row, check_at):
        return
    await asyncio.to_thread(
        parts.webhook_queue.send, {"callId": row.callId, "sequence": row.sequence}, group=row.workspaceId
    )
    parts.done["deliveries_sent_again"] += 1


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def repair_slots(parts: Reconciling) -> None:
    """Frees the slots of calls that have ended, or have no record any more.

    The end of a call frees its slot; but the request that took it may be carried out a second time, later (the SDK
    sends it again when the first answer is lost), or by a worker that stalled past its lease.
    """
    for workspace_id, call_ids in parts.workspaces.slots():
        for call_id in call_ids - parts.calls.not_ended(call_ids):
            parts.workspaces.free_slot(workspace_id, call_id)
            logger.warning("slot of an ended call freed", extra={"call_id": call_id})
            count("SlotsRepaired")


# ── what several of them do ─────────────────────────────────────────────────────────────────────────


async def _end(parts: Reconciling, call: Call, outcome: Outcome) -> str:
    ended = await asyncio.to_thread(end_call, parts.calls, call, outcome, parts.durations, parts.clock)
    if ended is None:
        return "lost"
    if ended.hangup is None:
        # Not one that somebody asked to hang up: a process died, or an event was lost.
        count("CallsEndedByReconciler")
    await _clear(parts, ended)
    return "ended"


async def _clear(parts: Reconciling, call: Call) -> str:
    """An orphan room stays due: its agent was dispatched once more when it was removed."""
    if await clear_with_room(parts.calls, parts.workspaces, call, functools.partial(_delete_room, parts)):
        return "cleared"
    return await _postpone(parts, call, parts.durations.second_look)


async def _delete_room(parts: Reconciling, call: Call) -> bool:
    parts.spend_request()
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
