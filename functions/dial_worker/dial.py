"""Dials one call, from its message to LiveKit's answer. The process may die after any of these steps:

    wait     paused, trunk busy, no slot, no record yet: acknowledge, send a new message with a delay
    lease    one process works on the call; the lease outlives the process
    slot     the workspace's limit of concurrent calls
    room     created with its agent dispatched; nothing rings before the agent is present
    pacing   the trunk's next free moment; then the switch is checked again
    fence    queued → dialing: from here on no process dials this call again
    dial     CreateSIPParticipant, once
    outcome  answered, ended, un-fenced (two looks show that nothing rang), or unknown: look, never dial again

If a process dies before the fence, its lease expires and the call is dialled by another; after the fence the
reconciler determines the outcome. A process that resumes after its lease has expired writes and deletes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import random
import secrets
from collections.abc import Callable
from typing import Literal

from shared.agent_left import send_agent_left
from shared.call import Call, Outcome, compact, json_object
from shared.call_store import ROOM_CLOSED, CallStore
from shared.durations import Durations
from shared.ending import clear_with_room, end_call
from shared.errors import LiveKitError, LiveKitUnreachable
from shared.hang_up import delete_room, hang_up_phone
from shared.limits import LimitStore
from shared.livekit.client import LiveKit, RoomView
from shared.livekit.outcomes import (
    ANSWERED,
    Verdict,
    answered_outcome,
    is_configuration_fault,
    left_outcome,
    uncoded_outcome,
    verdict,
)
from shared.messages import DialMessage, dial_message
from shared.number_policy import in_allowed_country
from shared.queues import Queue
from shared.telemetry import count, logger, measure
from shared.workspaces import Workspace, WorkspaceCache

MAXIMUM_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Dialling:
    """The dependencies of dialling. clock: epoch ms. remaining: seconds until this process's time-out."""

    calls: CallStore
    limits: LimitStore
    workspace_cache: WorkspaceCache
    dial_queue: Queue
    livekit: LiveKit
    durations: Durations
    public_api_url: str
    clock: Callable[[], int]
    remaining: Callable[[], float]


async def dial_call(parts: Dialling, message: DialMessage) -> None:
    """Takes the steps that the message's call needs now. Returning acknowledges the message.

    Raises StoreError or QueueError when AWS fails: SQS redelivers the message after its visibility timeout.
    """
    call = await _find(parts, message)
    if call is None:
        await _wait_for_record(parts, message)
        return
    now = parts.clock()
    if call.status != "queued" or call.leaseUntil >= now or call.waitUntil > now:
        # Ended, fenced, leased, or waiting for another message: this one has nothing to do.
        logger.info("nothing to do", extra={"call_id": call.callId, "status": call.status})
        return
    # Checked before the deadline, as paused time does not count against it.
    if await asyncio.to_thread(parts.limits.paused):
        await _wait(parts, call, parts.durations.paused_wait, paused=True)
        return
    if now >= call.queueDeadline:
        await _end(parts, call, Outcome("expired", "expired", retryable=True))
        return
    workspace = await asyncio.to_thread(parts.workspace_cache.get, call.workspaceId)
    if workspace is None or workspace.disabled or not in_allowed_country(call.to, workspace.allowedCallingCodes):
        await _end(parts, call, Outcome("failed", "not_allowed"))
        return
    trunk_free_in = await asyncio.to_thread(parts.limits.next_free, workspace.sipTrunkId) - now
    if trunk_free_in > parts.durations.pacing_hold * 1000:
        await _wait(parts, call, trunk_free_in / 1000)
        return
    lease = secrets.token_hex(8)
    until = now + int((parts.remaining() + parts.durations.lease_margin) * 1000)
    leased = await asyncio.to_thread(parts.calls.take_lease, call.callId, lease, until, now)
    if leased.won and leased.call is not None:
        await _dial_leased(parts, workspace, leased.call, waited=call.waitUntil > 0)


async def _dial_leased(parts: Dialling, workspace: Workspace, call: Call, *, waited: bool) -> None:
    """Dials a call that carries this process's lease. After a LiveKit failure before the fence the call waits
    again.
    """
    if _lease_over(parts, call) or not await _take_slot(parts, workspace, call, waited):
        return
    if _lease_over(parts, call):
        # The slot was taken after the lease's end; the reconciler frees it if the call has ended meanwhile.
        return
    try:
        room_sid = await _prepare_room(parts, workspace, call)
        agent = await _await_agent(parts, workspace, call)
    except LiveKitError as exc:
        await _try_again(parts, call, exc)
        return
    if _lease_over(parts, call):
        return
    if agent == "missing":
        await _end(parts, call, Outcome("failed", "agent_unavailable", retryable=True))
        return
    if agent == "not needed":
        await _clear(parts, call)
        return
    ring = call.ringTimeoutSeconds * parts.durations.scale
    # The client raises a shorter time-out to ring + 2 s.
    timeout = max(ring + parts.durations.answer_margin, ring + 2)
    free_at = await _reserve_trunk(parts, workspace, timeout)
    if free_at is None:
        free_in = await asyncio.to_thread(parts.limits.next_free, workspace.sipTrunkId) - parts.clock()
        await _step_back(parts, call, max(free_in / 1000, parts.durations.orphan_step))
        return
    await asyncio.sleep(max(0.0, (free_at - parts.clock()) / 1000))
    if await asyncio.to_thread(parts.limits.paused):
        # Checked again just before the fence: waiting for the agent and the trunk takes time.
        await _step_back(parts, call, parts.durations.paused_wait, paused=True)
        return
    from_number = call.fromNumber or next(iter(workspace.fromNumbers), None)
    fenced = await asyncio.to_thread(
        parts.calls.fence, call.callId, _lease_of(call), room_sid, from_number, parts.clock()
    )
    if fenced.won and fenced.call is not None:
        count("CallsDialed")
        # From the POST until the dial, including waits for a slot, a trunk or the switch.
        measure("DialDelay", fenced.call.events[-1]["at"] - fenced.call.events[0]["at"])
        await _dial_fenced(parts, workspace, fenced.call, from_number, ring, timeout)
    elif fenced.call is not None and fenced.call.ended and not _lease_over(parts, call):
        # Canceled meanwhile; this process made the room and took the slot.
        await _clear(parts, fenced.call)


async def _take_slot(parts: Dialling, workspace: Workspace, call: Call, waited: bool) -> bool:
    """Whether the call got a slot; if not, it waits. waited: it has waited before.

    A new call gets no slot while others wait, and the closer a waiting call is to its deadline, the more often it
    asks: no call starves.
    """
    now = parts.clock()
    if await asyncio.to_thread(
        parts.limits.take_slot,
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
    await asyncio.to_thread(parts.limits.note_waiting, call.workspaceId, asks_until)
    await _wait(parts, call, delay, uncount=True)
    return False


async def _reserve_trunk(parts: Dialling, workspace: Workspace, timeout: float) -> int | None:
    """The trunk's next free moment, epoch ms; None when a dial at that time would outlast this process."""
    now = parts.clock()
    latest = now + int((parts.remaining() - timeout - parts.durations.fence_margin) * 1000)
    if latest < now:
        return None
    gap_ms = int(1000 * parts.durations.scale / workspace.callsPerSecond)
    return await asyncio.to_thread(parts.limits.reserve_trunk, workspace.sipTrunkId, gap_ms, now, latest)


async def _prepare_room(parts: Dialling, workspace: Workspace, call: Call) -> str:
    """Creates the room with its agent dispatched. Returns the room's sid."""
    if call.attempts > 1:
        # CreateRoom ignores `agents` for an existing room, and the last attempt's dispatch is used up.
        await delete_room(parts.calls, parts.livekit, call)
    return await parts.livekit.create_room(
        call.roomName, compact({"callId": call.callId}), workspace.agentName, _agent_metadata(parts, call)
    )


def _agent_metadata(parts: Dialling, call: Call) -> str:
    return json_object(
        {
            "callId": compact(call.callId),
            "workspaceId": compact(call.workspaceId),
            "callAgentId": compact(call.callAgentId),
            "to": compact(call.to),
            "dynamicVariables": call.dynamicVariables or "{}",
            "metadata": call.metadata or "{}",
            "eventsUrl": compact(f"{parts.public_api_url}/v1/api/call/{call.callId}/events"),
        }
    )


async def _await_agent(
    parts: Dialling, workspace: Workspace, call: Call
) -> Literal["there", "missing", "not needed"]:
    """Waits until the agent is in the room; dispatches it again if LiveKit found no worker for it.

    `not needed`: the call was canceled meanwhile.
    """
    durations = parts.durations
    now = parts.clock()
    give_up, redispatch_at = now + durations.agent_wait * 1000, now + durations.agent_redispatch * 1000
    step = durations.agent_step
    while not (await parts.livekit.view_room(call.roomName, call.identity)).agent_present:
        now = parts.clock()
        if now >= give_up:
            return "missing"
        if now >= redispatch_at:
            redispatch_at = now + durations.agent_redispatch * 1000
            lost = await parts.livekit.delete_lost_dispatches(call.roomName)
            if _lease_over(parts, call):
                return "missing"
            if lost:
                await parts.livekit.dispatch_agent(
                    call.roomName, workspace.agentName, _agent_metadata(parts, call)
                )
                logger.warning("agent dispatched again", extra={"call_id": call.callId})
                count("AgentsDispatchedAgain")
        await asyncio.sleep(step)
        # LiveKit Cloud limits requests: the interval grows while the agent is late.
        step = min(1.5 * step, 4 * durations.agent_step)
        seen = await asyncio.to_thread(parts.calls.get, call.callId)
        if seen is not None and seen.ended:
            return "not needed"
    return "there"


async def _dial_fenced(
    parts: Dialling, workspace: Workspace, call: Call, from_number: str | None, ring: float, timeout: float
) -> None:
    """Rings the phone (the only place that does) and handles LiveKit's answer."""
    if _lease_over(parts, call):
        # The fence's response took so long that the reconciler may have ended the call: it must not ring then.
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
            # LiveKit counts from the room join, ringing included; the reconciler enforces the exact limit.
            longest=timeout + call.maxDurationSeconds * parts.durations.scale,
            timeout=timeout,
        )
    except LiveKitError as exc:
        if _lease_over(parts, call):
            return
        # LiveKit's timer starts after this one; a twentieth covers the difference of clocks.
        rang_out = parts.clock() - started >= ring * 950
        await _not_answered(parts, call, exc, rang_out)
    else:
        await _answered(parts, call)


async def _answered(parts: Dialling, call: Call) -> None:
    if _lease_over(parts, call):
        return
    now = parts.clock()
    # The first look is early: the agent may have left while the phone rang.
    check_at = now + int(min(parts.durations.second_look, _longest(parts, call)) * 1000)
    answered = await asyncio.to_thread(parts.calls.answered, call.callId, _lease_of(call), check_at, now)
    if answered.won and answered.call is not None:
        if answered.call.left is not None:
            # The phone left before the dial's answer arrived.
            await _end(parts, answered.call, answered_outcome(answered.call.left))
            return
        logger.info("answered", extra={"call_id": call.callId})
        count("CallsAnswered")
        if answered.call.agentMissingSince is not None:
            # The agent left while the phone rang; livekit_events sends this message only for an answered call.
            await asyncio.to_thread(send_agent_left, parts.dial_queue, answered.call, parts.durations)
    elif (
        answered.call is not None
        and _still_mine(answered.call, call)
        and answered.call.hangup
        # Answered despite a request to hang up. If the room cannot be deleted, the call has not ended, and the
        # reconciler repeats the hang-up.
        and await _delete_room(parts, call)
    ):
        await _end(parts, answered.call, Outcome("failed", "outcome_unknown"))


async def _not_answered(parts: Dialling, call: Call, error: LiveKitError, rang_out: bool) -> None:
    """Handles LiveKit's error for the dial. Only one with the carrier's code is decisive without a look at the
    room.
    """
    judged = verdict(error)
    match judged:
        case Verdict(kind="end", outcome=Outcome() as outcome):
            await _end_dial(parts, call, outcome, error)
        case Verdict(kind="over"):
            view = await _view(parts, call)
            if view is None or view.call_status is not None:
                await _find_out(parts, call, error)
                return
            seen = await _told(parts, call, error)
            if seen is not None and _still_mine(seen, call):
                await _end_dial(parts, seen, uncoded_outcome(error.code, seen.left, rang_out=rang_out), error)
        case _:
            await _find_out(parts, call, error, unsent=judged.kind == "unsent")


async def _told(parts: Dialling, call: Call, error: LiveKitError) -> Call | None:
    """The call once it has LiveKit's event of the phone's leaving or a request to hang up, or after `left_wait`.

    If LiveKit reported no phone in the room, the event is not waited for, except after `canceled`, which implies
    one.
    """
    give_up = parts.clock() + parts.durations.left_wait * 1000
    while True:
        seen = await asyncio.to_thread(parts.calls.get, call.callId)
        if seen is None or seen.left or seen.hangup or not _still_mine(seen, call) or parts.clock() >= give_up:
            return seen
        if seen.phoneSeenAt is None and error.code != "canceled":
            return seen
        await asyncio.sleep(parts.durations.orphan_read / 5)


async def _find_out(parts: Dialling, call: Call, error: LiveKitError, *, unsent: bool = False) -> None:
    """Determines the outcome of a dial from looks at the room and from the events of LiveKit's on the record.

    The phone is gone once an event says so or two looks, `second_look` apart, do not find it. Then the call ends;
    or it is un-fenced, if the error came before the INVITE (unsent) and neither a look nor an event showed a
    phone. If this process's time is too short, the reconciler determines the outcome.
    """
    missing_since: int | None = None
    in_room = False
    while parts.remaining() > parts.durations.fence_margin and not _lease_over(parts, call):
        view = await _view(parts, call)
        if view is not None and view.call_status in ANSWERED:
            await _answered(parts, call)
            return
        seen = await asyncio.to_thread(parts.calls.get, call.callId)
        if seen is None or not _still_mine(seen, call):
            return
        absent = view is not None and view.call_status is None
        if view is not None and not absent:
            in_room = True
            absent = seen.hangup is not None and not await _hung_up(parts, call)
        if not absent:
            missing_since = None
        else:
            missing_since = missing_since or parts.clock()
            # ROOM_CLOSED proves nothing: a dial that joins after it recreates the room and rings.
            left = seen.left is not None and seen.left["reason"] != ROOM_CLOSED
            if left or parts.clock() - missing_since >= parts.durations.second_look * 1000:
                if unsent and not in_room and (seen.left or seen.phoneSeenAt or seen.hangup) is None:
                    await _un_fence(parts, call, error)
                elif unsent or in_room:
                    # A phone was in the room, so the error does not describe the dial's outcome.
                    await _end(parts, seen, left_outcome(seen.left))
                else:
                    await _end_dial(parts, seen, uncoded_outcome(error.code, seen.left), error)
                return
        await asyncio.sleep(parts.durations.orphan_step)
    logger.warning("outcome not known yet", extra={"call_id": call.callId})


async def _view(parts: Dialling, call: Call) -> RoomView | None:
    """The participants of the call's room; None when LiveKit cannot be asked."""
    try:
        return await parts.livekit.view_room(call.roomName, call.identity)
    except LiveKitError:
        return None


async def _hung_up(parts: Dialling, call: Call) -> bool:
    """Hangs up a ringing phone. False: it is not in the room, although LiveKit listed it."""
    try:
        return await hang_up_phone(parts.calls, parts.livekit, call, answered=False)
    except LiveKitError:
        return True


async def _un_fence(parts: Dialling, call: Call, error: LiveKitError) -> None:
    """Puts the call back to `queued`, as nothing has rung; ends it after MAXIMUM_ATTEMPTS."""
    if call.attempts >= MAXIMUM_ATTEMPTS:
        await _end(parts, call, Outcome("failed", "livekit_unavailable", retryable=True))
        return
    delay = _backoff(parts, call)
    now = parts.clock()
    wait_until, check_at = _wait_times(parts, now, delay)
    undone = await asyncio.to_thread(parts.calls.unfence, call.callId, _lease_of(call), wait_until, check_at, now)
    if undone.won:
        logger.warning("nothing rang, trying again", extra={"call_id": call.callId, "livekit": str(error)})
        count("DialsUnfenced")
        await _send(parts, call, delay)
    elif undone.call is not None and _still_mine(undone.call, call):
        await _end(parts, undone.call, left_outcome(undone.call.left))


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────


async def _end_dial(parts: Dialling, seen: Call, outcome: Outcome, error: LiveKitError) -> None:
    if is_configuration_fault(outcome):
        logger.error("configuration fault", extra={"call_id": seen.callId, "livekit": str(error)})
        count("ConfigurationFaults")
    await _end(parts, seen, outcome)


async def _end(parts: Dialling, seen: Call, outcome: Outcome) -> None:
    """Ends the call; clears room and slot only if this process ended it."""
    ended = await asyncio.to_thread(end_call, parts.calls, seen, outcome, parts.durations, parts.clock)
    if ended is not None:
        await _clear(parts, ended)


async def _clear(parts: Dialling, call: Call) -> None:
    """Clears room and slot. After a failure the call stays due, and the reconciler repeats it."""
    await clear_with_room(parts.calls, parts.limits, call, functools.partial(_delete_room, parts))


async def _delete_room(parts: Dialling, call: Call) -> bool:
    """False: the room could not be deleted, or was an orphan, whose agent may come back."""
    try:
        return await delete_room(parts.calls, parts.livekit, call)
    except LiveKitError as exc:
        logger.warning("room not deleted", extra={"call_id": call.callId, "livekit": str(exc)})
        return False


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────


async def _find(parts: Dialling, message: DialMessage) -> Call | None:
    """The message's call; reads for `orphan_read`, as the record is written after the message is sent."""
    give_up = parts.clock() + parts.durations.orphan_read * 1000
    while True:
        call = await asyncio.to_thread(parts.calls.get, message.call_id)
        if call is not None or parts.clock() >= give_up:
            return call
        await asyncio.sleep(parts.durations.orphan_read / 5)


async def _wait_for_record(parts: Dialling, message: DialMessage) -> None:
    """Repeats a message without a record for `orphan_drop`: its request has not written it yet, or died before."""
    if parts.clock() - message.since >= parts.durations.orphan_drop * 1000:
        logger.warning("message without a record dropped", extra={"call_id": message.call_id})
        count("OrphanMessages")
        return
    await asyncio.to_thread(
        parts.dial_queue.send,
        dial_message(message.call_id, message.workspace_id, since=message.since),
        group=message.workspace_id,
        delay_seconds=parts.durations.orphan_step,
    )


async def _try_again(parts: Dialling, call: Call, error: LiveKitError) -> None:
    """Makes the call wait after a LiveKit failure before the fence (nothing rang); ends it after
    MAXIMUM_ATTEMPTS.
    """
    logger.warning("LiveKit failed before the dial", extra={"call_id": call.callId, "livekit": str(error)})
    if error.http_status in (401, 403) or isinstance(error, LiveKitUnreachable):
        # LiveKit's keys or its address are wrong.
        count("ConfigurationFaults")
    if call.attempts >= MAXIMUM_ATTEMPTS:
        await _end(parts, call, Outcome("failed", "livekit_unavailable", retryable=True))
    else:
        await _wait(parts, call, _backoff(parts, call))


async def _wait(parts: Dialling, call: Call, delay: float, *, uncount: bool = False, paused: bool = False) -> None:
    """Makes the call wait for `delay` seconds and sends its next message. A duplicate message loses the write, so
    it starts no second chain.
    """
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
        # With another process's lease the clearing waits for that lease's end: the process may take the slot yet.
        and waiting.call.leaseId == call.leaseId
    ):
        await _clear(parts, waiting.call)


async def _paused_time(parts: Dialling, call: Call, until: int) -> int:
    """Milliseconds up to `until` (epoch ms) that the call is paused by an operator and no earlier wait has
    counted.

    They extend the queue deadline, independent of how often and how late the call's messages arrive.
    """
    paused_at = await asyncio.to_thread(parts.limits.paused_at)
    if paused_at is None:
        return 0
    created_at: int = call.events[0]["at"]
    return max(0, until - max(paused_at, created_at, call.pausedUntil))


async def _step_back(parts: Dialling, call: Call, delay: float, *, paused: bool = False) -> None:
    """Deletes the room, as its agent must not wait with the call, and makes the call wait."""
    if not _lease_over(parts, call):
        await _delete_room(parts, call)
        await _wait(parts, call, delay, paused=paused)


async def _send(parts: Dialling, call: Call, delay: float) -> None:
    message = dial_message(call.callId, call.workspaceId)
    await asyncio.to_thread(parts.dial_queue.send, message, group=call.workspaceId, delay_seconds=delay)


def _wait_times(parts: Dialling, now: int, delay: float) -> tuple[int, int]:
    wait_until = now + int(delay * 1000)
    return wait_until, wait_until + int(parts.durations.wait_grace * 1000)


def _backoff(parts: Dialling, call: Call) -> float:
    """Seconds before the next attempt: doubled each time, with jitter over the upper half."""
    return parts.durations.backoff * 2.0 ** (call.attempts - 1) * random.uniform(0.5, 1)


# ── what this process may still do ──────────────────────────────────────────────────────────────────


def _lease_of(call: Call) -> str:
    if call.leaseId is None:
        raise ValueError(f"call {call.callId} carries no lease")
    return call.leaseId


def _lease_over(parts: Dialling, call: Call) -> bool:
    """Whether the lease has expired: another process may work on the call, so this one must not change it."""
    return parts.clock() >= call.leaseUntil


def _still_mine(seen: Call, mine: Call) -> bool:
    return not seen.ended and seen.leaseId == mine.leaseId


def _longest(parts: Dialling, call: Call) -> float:
    return call.maxDurationSeconds * parts.durations.scale
