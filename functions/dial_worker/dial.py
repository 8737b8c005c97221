"""One call's way from a message to a ringing phone, in steps that are each safe to die after.

    wait     paused, trunk busy, no slot, no record yet: acknowledge, send a fresh message with a delay
    lease    one process works on the call, for longer than it can live
    slot     the workspace's limit of calls at the same time
    room     made with its agent dispatched; nothing rings before the agent is there
    pacing   the trunk's next free moment; then the switch once more
    fence    queued → dialing: from here on nobody dials this call again
    dial     CreateSIPParticipant, once
    outcome  answered, ended, un-fenced (nothing rang), or not known: then look, never dial again

A process that dies before the fence leaves a lease that ends; behind the fence the reconciler finds out what
became of the call. A process that was stopped and wakes up after its lease writes and deletes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import secrets
from collections.abc import Callable
from typing import Any

from dial_worker.livekit_sip import LiveKit
from dial_worker.outcomes import (
    ANSWERED,
    Verdict,
    answered_outcome,
    left_outcome,
    unanswered_outcome,
    verdict,
)
from shared.call import Call, Outcome, compact, json_object
from shared.call_store import ROOM_CLOSED, CallStore
from shared.destination import in_allowed_country
from shared.durations import Durations
from shared.ending import clear, end_call
from shared.errors import LiveKitError, LiveKitUnreachable
from shared.queues import Queue
from shared.telemetry import count, logger, measure
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore

MAXIMUM_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Dialling:
    """What dialling needs. clock: epoch ms. remaining: seconds this process still has."""

    calls: CallStore
    workspaces: WorkspaceStore
    workspace_cache: WorkspaceCache
    dial_queue: Queue
    livekit: LiveKit
    durations: Durations
    public_api_url: str
    clock: Callable[[], int]
    remaining: Callable[[], float]


@dataclasses.dataclass(frozen=True, slots=True)
class DialMessage:
    """A hint that a call may be dialled. since: epoch ms of the first message, for a record that is missing."""

    call_id: str
    workspace_id: str
    since: int

    def body(self) -> dict[str, Any]:
        return {"callId": self.call_id, "workspaceId": self.workspace_id, "since": self.since}


async def dial_call(parts: Dialling, message: DialMessage) -> None:
    """Does whatever the message's call needs now. Returning acknowledges the message.

    Raises StoreError or QueueError when AWS fails: the message comes back after its visibility timeout.
    """
    call = await _find(parts, message)
    if call is None:
        await _wait_for_record(parts, message)
        return
    now = parts.clock()
    if call.status != "queued" or call.leaseUntil >= now or call.waitUntil > now:
        # Ended, fenced, leased, or with a message of its own under way: this one has nothing to do.
        logger.info("nothing to do", extra={"call_id": call.callId, "status": call.status})
        return
    # Before the deadline: paused time does not count against it.
    if await asyncio.to_thread(parts.workspaces.paused):
        await _wait(parts, call, parts.durations.paused_wait, paused=True)
        return
    if now >= call.queueDeadline:
        await _end(parts, call, Outcome("expired", "expired", retryable=True))
        return
    workspace = await asyncio.to_thread(parts.workspace_cache.get, call.workspaceId)
    if workspace is None or workspace.disabled or not in_allowed_country(call.to, workspace.allowedCallingCodes):
        await _end(parts, call, Outcome("failed", "not_allowed"))
        return
    trunk_free_in = await asyncio.to_thread(parts.workspaces.next_free, workspace.sipTrunkId) - now
    if trunk_free_in > parts.durations.pacing_hold * 1000:
        await _wait(parts, call, trunk_free_in / 1000)
        return
    lease = secrets.token_hex(8)
    until = now + int((parts.remaining() + parts.durations.lease_margin) * 1000)
    leased = await asyncio.to_thread(parts.calls.take_lease, call.callId, lease, until, now)
    if leased.won and leased.call is not None:
        await _dial_leased(parts, workspace, leased.call, waited=call.waitUntil > 0)


async def _dial_leased(parts: Dialling, workspace: Workspace, call: Call, *, waited: bool) -> None:
    """`call` carries this process's lease. Before the fence LiveKit's failures put it back in line."""
    if _lease_over(parts, call) or not await _take_slot(parts, workspace, call, waited):
        return
    if _lease_over(parts, call):
        await _slot_came_late(parts, call)
        return
    try:
        room_sid = await _prepare_room(parts, workspace, call)
    except LiveKitError as exc:
        await _try_again(parts, call, exc)
        return
    if _lease_over(parts, call):
        return
    if room_sid is None:
        await _end(parts, call, Outcome("failed", "agent_unavailable", retryable=True))
        return
    ring = call.ringTimeoutSeconds * parts.durations.scale
    # The client raises its own time-out to ring + 2 s where that is more.
    timeout = max(ring + parts.durations.answer_margin, ring + 2)
    free_at = await _reserve_trunk(parts, workspace, timeout)
    if free_at is None:
        free_in = await asyncio.to_thread(parts.workspaces.next_free, workspace.sipTrunkId) - parts.clock()
        await _step_back(parts, call, max(free_in / 1000, parts.durations.orphan_step))
        return
    await asyncio.sleep(max(0.0, (free_at - parts.clock()) / 1000))
    if await asyncio.to_thread(parts.workspaces.paused):
        # The last moment at which the switch can still stop this call: the agent and the trunk took their time.
        await _step_back(parts, call, parts.durations.paused_wait, paused=True)
        return
    from_number = call.fromNumber or next(iter(workspace.fromNumbers), None)
    fenced = await asyncio.to_thread(
        parts.calls.fence, call.callId, _lease_of(call), room_sid, from_number, parts.clock()
    )
    if fenced.won and fenced.call is not None:
        count("CallsDialed")
        # From the POST until LiveKit is asked, waiting for a slot, a trunk or the switch included.
        measure("DialDelay", fenced.call.events[-1]["at"] - fenced.call.events[0]["at"])
        await _dial_fenced(parts, workspace, fenced.call, from_number, ring, timeout)
    elif fenced.call is not None and fenced.call.ended and not _lease_over(parts, call):
        # Canceled meanwhile; the room and the slot were this process's.
        await _clear(parts, fenced.call)


async def _take_slot(parts: Dialling, workspace: Workspace, call: Call, waited: bool) -> bool:
    """Whether the call may be one of those under way; if not, it waits. waited: it has waited before.

    A call that comes for the first time leaves what is free to those that wait, and the closer a waiting call is
    to its deadline, the more often it asks: nobody is overtaken for ever.
    """
    now = parts.clock()
    if await asyncio.to_thread(
        parts.workspaces.take_slot,
        call.workspaceId,
        call.callId,
        workspace.maxConcurrentCalls,
        waited=waited,
        now=now,
    ):
        return True
    since = call.events[0]["at"]
    time_left = max(0.2, (call.queueDeadline - now) / max(1, call.queueDeadline - since))
    delay = parts.durations.slot_wait * time_left * random.uniform(0.5, 1)
    # A message's delay is in whole seconds.
    asks_until = now + int((math.ceil(delay) + parts.durations.orphan_step) * 1000)
    await asyncio.to_thread(parts.workspaces.note_waiting, call.workspaceId, asks_until)
    await _wait(parts, call, delay, uncount=True)
    return False


async def _slot_came_late(parts: Dialling, call: Call) -> None:
    """Taken after the lease: whoever ended the call meanwhile may have freed its slot before it was taken."""
    seen = await asyncio.to_thread(parts.calls.get, call.callId)
    if seen is None or seen.ended:
        await asyncio.to_thread(parts.workspaces.free_slot, call.workspaceId, call.callId)


async def _reserve_trunk(parts: Dialling, workspace: Workspace, timeout: float) -> int | None:
    """The trunk's next free moment, epoch ms; None when a dial begun then could not finish in this process."""
    now = parts.clock()
    latest = now + int((parts.remaining() - timeout - parts.durations.fence_margin) * 1000)
    if latest < now:
        return None
    gap_ms = int(1000 * parts.durations.scale / workspace.callsPerSecond)
    return await asyncio.to_thread(parts.workspaces.reserve_trunk, workspace.sipTrunkId, gap_ms, now, latest)


async def _prepare_room(parts: Dialling, workspace: Workspace, call: Call) -> str | None:
    """The room with its agent in it: the room's sid, or None when no agent came."""
    if call.attempts > 1:
        # CreateRoom ignores the agents of a room that exists, and those of the last attempt are spent.
        await parts.livekit.delete_room(call.roomName)
    sid = await parts.livekit.create_room(
        call.roomName,
        compact({"callId": call.callId}),
        workspace.agentName,
        json_object(
            {
                "callId": compact(call.callId),
                "workspaceId": compact(call.workspaceId),
                "callAgentId": compact(call.callAgentId),
                "to": compact(call.to),
                "dynamicVariables": call.dynamicVariables or "{}",
                "metadata": call.metadata or "{}",
                "eventsUrl": compact(f"{parts.public_api_url}/v1/api/call/{call.callId}/events"),
            }
        ),
    )
    give_up = parts.clock() + parts.durations.agent_wait * 1000
    step = parts.durations.agent_step
    while True:
        if (await parts.livekit.view_room(call.roomName, call.identity)).agent_present:
            return sid
        if parts.clock() >= give_up:
            return None
        await asyncio.sleep(step)
        # LiveKit Cloud counts requests: an agent that is late is looked for less often.
        step = min(1.5 * step, 4 * parts.durations.agent_step)


async def _dial_fenced(
    parts: Dialling, workspace: Workspace, call: Call, from_number: str | None, ring: float, timeout: float
) -> None:
    """The one place that makes a phone ring, and what follows from LiveKit's answer."""
    if _lease_over(parts, call):
        # The fence's answer took so long that the reconciler may have ended the call: it must not ring after that.
        return
    started = parts.clock()
    try:
        await parts.livekit.dial(
            room=call.roomName,
            identity=call.identity,
            trunk_id=workspace.sipTrunkId,
            to=call.to,
            from_number=from_number,
            ring=ring,
            # LiveKit counts from the room join, ringing included; the reconciler holds the exact limit.
            longest=timeout + call.maxDurationSeconds * parts.durations.scale,
            timeout=timeout,
        )
    except LiveKitError as exc:
        if _lease_over(parts, call):
            return
        # LiveKit's own timer starts after this one; a twentieth covers the difference of clocks.
        rang_out = parts.clock() - started >= ring * 950
        await _not_answered(parts, call, exc, verdict(exc), rang_out)
    else:
        await _answered(parts, call)


async def _answered(parts: Dialling, call: Call) -> None:
    if _lease_over(parts, call):
        return
    now = parts.clock()
    # The first look comes soon: the agent may have gone while the phone rang.
    check_at = now + int(min(parts.durations.second_look, _longest(parts, call)) * 1000)
    answered = await asyncio.to_thread(parts.calls.answered, call.callId, _lease_of(call), check_at, now)
    if answered.won and answered.call is not None:
        if answered.call.left is None:
            logger.info("answered", extra={"call_id": call.callId})
            count("CallsAnswered")
        else:
            # It was over before this answer came back.
            await _end(parts, answered.call, answered_outcome(answered.call.left["reason"]))
    elif (
        answered.call is not None
        and _still_mine(answered.call, call)
        and answered.call.hangup
        # Asked to hang up while it rang, and answered all the same. A phone that is still on has not ended: then
        # the reconciler goes on hanging it up.
        and await _delete_room(parts, call)
    ):
        await _end(parts, answered.call, Outcome("failed", "outcome_unknown"))


async def _not_answered(parts: Dialling, call: Call, error: LiveKitError, judged: Verdict, rang_out: bool) -> None:
    if judged.configuration_fault:
        logger.error("configuration fault", extra={"call_id": call.callId, "livekit": str(error)})
        count("ConfigurationFaults")
    match judged:
        case Verdict(kind="end", outcome=Outcome() as outcome):
            await _end(parts, call, outcome)
        case Verdict(kind="retry"):
            await _un_fence(parts, call, error)
        case Verdict(kind="unanswered"):
            seen = await _told(parts, call, 0 if rang_out else parts.durations.left_wait)
            if seen is not None and _still_mine(seen, call):
                await _end(parts, seen, unanswered_outcome(seen.left, rang_out))
        case _:
            await _find_out(parts, call)


async def _told(parts: Dialling, call: Call, patience: float) -> Call | None:
    """The call, as soon as LiveKit's event or a request to hang up says more; or after `patience` seconds."""
    give_up = parts.clock() + patience * 1000
    while True:
        seen = await asyncio.to_thread(parts.calls.get, call.callId)
        if seen is None or seen.left or seen.hangup or not _still_mine(seen, call) or parts.clock() >= give_up:
            return seen
        await asyncio.sleep(parts.durations.orphan_read / 5)


async def _un_fence(parts: Dialling, call: Call, error: LiveKitError) -> None:
    """Back to `queued`, only when nothing can have rung: the phone's participant joins before the INVITE."""
    try:
        view = await parts.livekit.view_room(call.roomName, call.identity)
    except LiveKitError:
        # Cannot be made sure of now; the reconciler looks after the lease.
        return
    if view.call_status is not None:
        await _find_out(parts, call)
    elif call.attempts >= MAXIMUM_ATTEMPTS:
        await _end(parts, call, Outcome("failed", "livekit_unavailable", retryable=True))
    else:
        delay = _backoff(parts, call)
        now = parts.clock()
        wait_until, check_at = _wait_times(parts, now, delay)
        undone = await asyncio.to_thread(
            parts.calls.unfence, call.callId, _lease_of(call), wait_until, check_at, now
        )
        if undone.won:
            logger.warning("nothing rang, trying again", extra={"call_id": call.callId, "livekit": str(error)})
            count("DialsUnfenced")
            await _send(parts, call, delay)
        elif undone.call is not None and _still_mine(undone.call, call):
            await _end(parts, undone.call, left_outcome(undone.call.left))


async def _find_out(parts: Dialling, call: Call) -> None:
    """The dial's outcome is not known: look at the room and at what LiveKit's events left on the record.

    Ends the call when it is known, or absent on two looks `second_look` apart. What this process cannot
    find out in its time the reconciler does.
    """
    missing_since: int | None = None
    while parts.remaining() > parts.durations.fence_margin and not _lease_over(parts, call):
        try:
            view = await parts.livekit.view_room(call.roomName, call.identity)
        except LiveKitError:
            view = None
        if view is not None and view.call_status in ANSWERED:
            await _answered(parts, call)
            return
        if view is not None and view.call_status is None:
            seen = await asyncio.to_thread(parts.calls.get, call.callId)
            if seen is None or not _still_mine(seen, call):
                return
            missing_since = missing_since or parts.clock()
            # A room may close while the dial is on its way to it, which then makes it again and rings.
            left = seen.left is not None and seen.left["reason"] != ROOM_CLOSED
            if left or parts.clock() - missing_since >= parts.durations.second_look * 1000:
                await _end(parts, seen, left_outcome(seen.left))
                return
        else:
            missing_since = None
        await asyncio.sleep(parts.durations.orphan_step)
    logger.warning("outcome not known yet", extra={"call_id": call.callId})


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────


async def _end(parts: Dialling, seen: Call, outcome: Outcome) -> None:
    """Writes the end; only its winner clears the room and the slot. Somebody else's end stays."""
    ended = await asyncio.to_thread(end_call, parts.calls, seen, outcome, parts.durations, parts.clock)
    if ended is not None:
        await _clear(parts, ended)


async def _clear(parts: Dialling, call: Call) -> None:
    # Without an attempt there never was a room; those who wait may be thousands, and LiveKit's requests are few.
    # A room that could not be deleted leaves the call due: the reconciler clears it.
    if not call.attempts or await _delete_room(parts, call):
        await asyncio.to_thread(clear, parts.calls, parts.workspaces, call)


async def _delete_room(parts: Dialling, call: Call) -> bool:
    try:
        await parts.livekit.delete_room(call.roomName)
    except LiveKitError as exc:
        logger.warning("room not deleted", extra={"call_id": call.callId, "livekit": str(exc)})
        return False
    return True


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────


async def _find(parts: Dialling, message: DialMessage) -> Call | None:
    """The record; for a moment it may be younger than its message."""
    give_up = parts.clock() + parts.durations.orphan_read * 1000
    while True:
        call = await asyncio.to_thread(parts.calls.get, message.call_id)
        if call is not None or parts.clock() >= give_up:
            return call
        await asyncio.sleep(parts.durations.orphan_read / 5)


async def _wait_for_record(parts: Dialling, message: DialMessage) -> None:
    """A message without a record: its request died between send and write, or has not written yet."""
    if parts.clock() - message.since >= parts.durations.orphan_drop * 1000:
        logger.warning("message without a record dropped", extra={"call_id": message.call_id})
        count("OrphanMessages")
        return
    await asyncio.to_thread(
        parts.dial_queue.send,
        message.body(),
        group=message.workspace_id,
        delay_seconds=parts.durations.orphan_step,
    )


async def _try_again(parts: Dialling, call: Call, error: LiveKitError) -> None:
    """LiveKit failed before the fence: nothing rang."""
    logger.warning("LiveKit failed before the dial", extra={"call_id": call.callId, "livekit": str(error)})
    if error.code in ("unauthenticated", "permission_denied") or isinstance(error, LiveKitUnreachable):
        # LiveKit's keys, or its address.
        count("ConfigurationFaults")
    if call.attempts >= MAXIMUM_ATTEMPTS:
        await _end(parts, call, Outcome("failed", "livekit_unavailable", retryable=True))
    else:
        await _wait(parts, call, _backoff(parts, call))


async def _wait(parts: Dialling, call: Call, delay: float, *, uncount: bool = False, paused: bool = False) -> None:
    """Back in line for `delay` seconds. A duplicate's attempt to start a second chain is lost here."""
    now = parts.clock()
    wait_until, check_at = _wait_times(parts, now, delay)
    waiting = await asyncio.to_thread(
        parts.calls.wait,
        call.callId,
        wait_until,
        check_at,
        now,
        lease=call.leaseId,
        uncount=uncount,
        extend_ms=await _paused_time(parts, call, wait_until) if paused else 0,
    )
    if waiting.won:
        await _send(parts, call, delay)
    elif (
        waiting.call is not None
        and waiting.call.ended
        and call.leaseId is not None
        # Another process's lease: it may be about to take the slot, so the clearing waits for that lease's end.
        and waiting.call.leaseId == call.leaseId
    ):
        await _clear(parts, waiting.call)


async def _paused_time(parts: Dialling, call: Call, until: int) -> int:
    """Milliseconds up to `until` that the call spends paused by an operator, if no wait before counted them.

    They do not count against the queue's limit, however late or seldom the call's messages come.
    """
    paused_at = await asyncio.to_thread(parts.workspaces.paused_at)
    if paused_at is None:
        return 0
    created_at: int = call.events[0]["at"]
    return max(0, until - max(paused_at, created_at, call.pausedUntil))


async def _step_back(parts: Dialling, call: Call, delay: float, *, paused: bool = False) -> None:
    """Back in line with the room already made: its agent does not wait with the call."""
    if not _lease_over(parts, call):
        await _delete_room(parts, call)
        await _wait(parts, call, delay, paused=paused)


async def _send(parts: Dialling, call: Call, delay: float) -> None:
    body = {"callId": call.callId, "workspaceId": call.workspaceId}
    await asyncio.to_thread(parts.dial_queue.send, body, group=call.workspaceId, delay_seconds=delay)


def _wait_times(parts: Dialling, now: int, delay: float) -> tuple[int, int]:
    wait_until = now + int(delay * 1000)
    return wait_until, wait_until + int(parts.durations.wait_grace * 1000)


def _backoff(parts: Dialling, call: Call) -> float:
    """Seconds before the next attempt: doubled each time, with full jitter in its upper half."""
    return parts.durations.backoff * 2.0 ** (call.attempts - 1) * random.uniform(0.5, 1)


# ── what this process may still do ──────────────────────────────────────────────────────────────────


def _lease_of(call: Call) -> str:
    if call.leaseId is None:
        raise ValueError(f"call {call.callId} carries no lease")
    return call.leaseId


def _lease_over(parts: Dialling, call: Call) -> bool:
    """A process that was stopped for so long has been replaced: it must not touch the call any more."""
    return parts.clock() >= call.leaseUntil


def _still_mine(seen: Call, mine: Call) -> bool:
    return not seen.ended and seen.leaseId == mine.leaseId


def _longest(parts: Dialling, call: Call) -> float:
    return call.maxDurationSeconds * parts.durations.scale
