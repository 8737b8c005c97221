"""Dials one call, from its message to LiveKit's answer. The process may die after any of these steps:

    gates    refused: ends; not now, paused, trunk stopped, no slot: into the line, acknowledge (gates.py, line.py)
    wait     trunk busy, no record yet: acknowledge, send a new message with a delay
    lease    one process works on the call; the lease outlives the process
    slot     the workspace's limit of concurrent calls
    room     created with its agent dispatched; nothing rings before the agent is present
    pacing   the trunk's next free moment; then the gates are asked again
    fence    queued → dialing, in one transaction with the number's record: from here on no process dials it again
    dial     CreateSIPParticipant, once
    outcome  answered, ended, un-fenced (two looks show that nothing rang), or unknown: look, never dial again

If a process dies before the fence, its lease expires and the call is dialled by another; after the fence the
reconciler determines the outcome. A process that resumes after its lease has expired writes and deletes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import secrets
from collections.abc import Callable
from typing import Literal

from shared.agent_left import send_agent_left
from shared.call import Call, Outcome, WaitingFor, compact, iso, json_object
from shared.call_store import ROOM_CLOSED, CallStore
from shared.clock import Clock, to_ms, to_seconds
from shared.durations import Durations
from shared.ending import clear_with_room, end_call
from shared.errors import LiveKitError, LiveKitUnreachableError, QueueError, StoreError
from shared.gates import Decision, decide
from shared.hang_up import delete_room, hang_up_phone
from shared.limits import LimitStore, Standing
from shared.line import Line, earliest_ms, line_of, turn_of
from shared.livekit.client import LiveKit, RoomView
from shared.livekit.outcomes import (
    ANSWERED,
    Verdict,
    answered_outcome,
    is_configuration_fault,
    is_trunk_fault,
    left_outcome,
    uncoded_outcome,
    verdict,
)
from shared.messages import DialMessage, dial_message
from shared.numbers import NumberStore, ring_write
from shared.queues import Queue
from shared.slots import SlotsItem, capacities, choose_item
from shared.switch import Switch
from shared.telemetry import count, logger, measure
from shared.trunk import Trunk
from shared.workspaces import Workspace, WorkspaceCache

MAXIMUM_ATTEMPTS = 5

# What keeps one call from ringing, and not all others of its workspace.
_ITS_OWN: frozenset[WaitingFor] = frozenset({"scheduled_at", "calling_window", "frequency", "retry"})


@dataclasses.dataclass(frozen=True, slots=True)
class Dialler:
    """Dials calls. clock: epoch ms. remaining: seconds until this process's time-out."""

    calls: CallStore
    limits: LimitStore
    numbers: NumberStore
    line: Line
    workspace_cache: WorkspaceCache
    dial_queue: Queue
    livekit: LiveKit
    durations: Durations
    public_api_url: str
    clock: Clock
    remaining: Callable[[], float]

    async def dial(self, message: DialMessage) -> None:
        """Takes the steps that the message's call needs now. Returning acknowledges the message.

        Raises StoreError or QueueError when AWS fails: SQS redelivers the message after its visibility timeout.
        """
        call = await self._find(message)
        if call is None:
            await self._wait_for_record(message)
            return
        if call.ended and message.slots_item is not None and call.slots_item is None:
            # Admitted and then canceled: the slot is for the next. One that was leased has had a slot, and its
            # freeing admits the next: a message that comes twice must not admit another.
            await asyncio.to_thread(self.line.admit_one, call.workspace_id, message.slots_item)
            return
        now_ms = self.clock()
        if (
            call.status != "queued"
            or call.lease_until_ms >= now_ms
            or call.in_line
            or not await self._until_its_turn(call)
        ):
            # Ended, fenced, leased, or waiting for another message: this one has nothing to do.
            logger.info("nothing to do", extra={"call_id": call.call_id, "status": call.status})
            return
        standing = await self._standing(call)
        rules = self._decide(call, standing)
        if standing is None or rules.refused is not None:
            await self._end_unrung(call, message, standing, _refusal(rules))
            return
        now_ms = self.clock()
        if self._expired(call, standing):
            await self._end_unrung(call, message, standing, Outcome("expired", "expired", retryable=True))
            return
        if rules.waiting_for is not None:
            await self._wait_for_rules(call, message, rules, standing)
            return
        if standing.paused:
            await self._enter_line(call, "paused", standing.switch)
            return
        if standing.trunk.holds(call.call_id, now_ms):
            await self._enter_line(call, "trunk", standing.switch)
            return
        trunk_free_in_ms = standing.trunk.next_free_ms - now_ms
        if trunk_free_in_ms > to_ms(self.durations.pacing_hold):
            await self._wait(call, "trunk", to_seconds(trunk_free_in_ms))
            return
        item = self._slots_item(standing, call, message)
        if item is None:
            await self._wait_for_slot(standing, call)
            return
        if not await self._may_try_trunk(standing.trunk, call):
            await self._enter_line(call, "trunk", standing.switch)
            return
        leased = await self._lease(call, item)
        if leased is not None and standing.workspace is not None:
            await self._dial_leased(standing, standing.workspace, leased)

    async def _until_its_turn(self, call: Call) -> bool:
        """Waits for the call's time, which its message's delay in whole seconds may precede. Returns False if that
        is longer than `early_message`: an admitted call is back in the line then, any other has another message.
        """
        turn_ms = earliest_ms(call.turn) if call.turn else 0
        early_ms = max(turn_ms, call.wait_until_ms) - self.clock()
        if early_ms > to_ms(self.durations.early_message):
            if call.wait_until_ms <= self.clock():
                await self._enter_line(call, call.waiting_for or "scheduled_at", Switch())
            return False
        if early_ms > 0:
            await asyncio.sleep(to_seconds(early_ms))
        return True

    def _decide(self, call: Call, standing: Standing | None) -> Decision:
        """What the rules of the workspace say now. Raises StoreError when nothing was read of the number."""
        if standing is None or standing.workspace is None:
            return Decision((), refused="not_allowed")
        if standing.number is None:
            raise StoreError("the number was not read")
        ring_ms = self.durations.ring_ms(call.ring_timeout_seconds)
        return decide(call, standing.workspace, standing.number, self.clock(), ring_ms, self.durations.scale)

    def _expired(self, call: Call, standing: Standing) -> bool:
        """Whether the call's time is over. Without its own end that is not known while dialling is paused."""
        now_ms = self.clock()
        known = call.expires_at_ms is not None or not standing.paused
        return known and now_ms >= standing.switch.deadline_ms(call, now_ms)

    def _until_ms(self, call: Call, rules: Decision, switch: Switch) -> int:
        """When a call that waits for the rules may ring, epoch ms; its deadline when that is never."""
        return rules.until_ms or switch.deadline_ms(call, self.clock())

    async def _wait_for_rules(self, call: Call, message: DialMessage, rules: Decision, standing: Standing) -> None:
        """Puts a call into the line that the rules do not let ring yet, at the turn of the time at which they may.
        If it was admitted for a free slot, the next call is admitted for it.
        """
        holds_slot = standing.item_of(call.call_id) is not None
        until_ms = self._until_ms(call, rules, standing.switch)
        entered = await self._enter_line(call, rules.waiting_for or "retry", standing.switch, until_ms=until_ms)
        if entered is not None and message.slots_item is not None and not holds_slot:
            await asyncio.to_thread(self.line.admit_one, call.workspace_id, message.slots_item)

    async def _standing(self, call: Call) -> Standing | None:
        """What decides whether the call may be dialled now; None when its workspace does not exist."""
        workspace = await asyncio.to_thread(self.workspace_cache.get, call.workspace_id)
        if workspace is None:
            return None
        standing = await asyncio.to_thread(self.limits.standing, workspace, call.to)
        self.workspace_cache.put(call.workspace_id, standing.workspace)
        return standing

    async def _lease(self, call: Call, slots_item: int) -> Call | None:
        """The call with this process's lease; None when another process was faster."""
        now_ms = self.clock()
        lease = secrets.token_hex(8)
        until_ms = now_ms + to_ms(self.remaining() + self.durations.lease_margin)
        leased = await asyncio.to_thread(self.calls.take_lease, call.call_id, lease, until_ms, now_ms, slots_item)
        return leased.call if leased.won else None

    async def _dial_leased(self, standing: Standing, workspace: Workspace, call: Call) -> None:
        """Dials a call that carries this process's lease. After a LiveKit failure before the fence the call waits
        again.
        """
        if self._lease_over(call):
            return
        in_slot = await self._take_slot(standing, workspace, call)
        if in_slot is None:
            return
        call = in_slot
        if self._lease_over(call):
            # The slot was taken after the lease's end; the reconciler frees it if the call has ended meanwhile.
            return
        try:
            room_sid = await self._prepare_room(workspace, call)
            agent = await self._await_agent(workspace, call)
        except LiveKitError as exc:
            await self._try_again(call, exc)
            return
        if self._lease_over(call):
            return
        if agent == "missing":
            await self._end(call, Outcome("failed", "agent_unavailable", retryable=True))
            return
        if agent == "not needed":
            await self._clear(call)
            return
        ring_seconds = call.ring_timeout_seconds * self.durations.scale
        # The client raises a shorter time-out to ring + 2 s.
        timeout = max(ring_seconds + self.durations.answer_margin, ring_seconds + 2)
        free_at_ms = await self._reserve_trunk(workspace, timeout)
        if free_at_ms is None:
            trunk = await asyncio.to_thread(self.limits.trunk, workspace.sip_trunk_id)
            free_in_seconds = max(to_seconds(trunk.next_free_ms - self.clock()), self.durations.orphan_step)
            if await self._leave_room(call):
                await self._wait(call, "trunk", free_in_seconds)
            return
        await asyncio.sleep(max(0.0, to_seconds(free_at_ms - self.clock())))
        await self._fence_and_dial(workspace, call, room_sid, ring_seconds, timeout)

    async def _fence_and_dial(
        self, workspace: Workspace, call: Call, room_sid: str, ring_seconds: float, timeout: float
    ) -> None:
        """Reads what decides, asks the gates, fences and dials. If the number or the call is written meanwhile,
        the decision is made anew, for `fence_patience` seconds.

        Each decision has a token of its own: a new request must not be taken for a repeat of an earlier one.
        """
        give_up_ms = self.clock() + to_ms(self.durations.fence_patience)
        for decision in itertools.count(1):
            # Read just before the fence: waiting for the agent and the trunk takes time.
            read_ms = self.clock()
            now = await asyncio.to_thread(self.limits.standing, workspace, call.to, slots=False)
            rules = self._decide(call, now)
            now_ms = self.clock()
            if (
                not await self._may_fence(workspace, call, now, rules, last=decision > 1 and now_ms >= give_up_ms)
                or now.workspace is None
                or now.number is None
            ):
                if decision > 1:
                    await self._undo_late_fence(call)
                return
            if self.clock() - read_ms >= to_ms(self.durations.fence_patience):
                # The process has stalled, and what it has read is old.
                continue
            from_number = call.from_number or next(iter(workspace.from_numbers), None)
            fence = await asyncio.to_thread(
                self.calls.fence,
                call,
                room_sid,
                from_number,
                rules.receipt(),
                ring_write(
                    self.numbers.table,
                    now.number,
                    call.call_id,
                    counted=now.workspace.counts_rings,
                    now_ms=now_ms,
                ),
                f"{call.lease_id}-fence-{decision}",
                now_ms,
                lambda: self.clock() >= give_up_ms,
            )
            if fence.won and fence.call is not None:
                count("CallsDialed")
                # From the POST until the dial, including waits for a slot, a trunk or the switch.
                measure("DialDelay", now_ms - fence.call.events[0]["at"])
                # Of the fence that was written, which an earlier copy of the request may be.
                valid_ms = (fence.call.dialed_at_ms or now_ms) + to_ms(self.durations.decision_valid)
                limits_ms = (valid_ms, rules.ring_before_ms, call.expires_at_ms)
                dial_before_ms = min(at_ms for at_ms in limits_ms if at_ms is not None)
                await self._dial_fenced(
                    workspace, now.trunk, fence.call, from_number, ring_seconds, timeout, dial_before_ms
                )
                return
            if fence.call is None or fence.call.lease_id != call.lease_id or self._lease_over(call):
                return
            if fence.call.ended:
                # Canceled meanwhile; this process made the room and took the slot.
                await self._clear(fence.call)
                return
            if fence.call.status != "queued":
                return
            # Its number was written, or its time was moved: decided anew.
            call = fence.call
            await asyncio.sleep(random.uniform(0.5, 1.5) * self.durations.fence_step)

    async def _may_fence(
        self, workspace: Workspace, call: Call, now: Standing, rules: Decision, *, last: bool
    ) -> bool:
        """Whether the call may be fenced now; if not, it is ended or waits, its room deleted.

        last: others have written the same number again and again: it waits.
        """
        outcome = _refusal(rules) if rules.refused is not None and now.workspace is not None else None
        if outcome is None and self._expired(call, now):
            outcome = Outcome("expired", "expired", retryable=True)
        if outcome is not None:
            if not self._lease_over(call):
                # The clearing deletes the room.
                await self._end(call, outcome)
            return False
        if now.workspace is None or now.trunk.trunk_id != workspace.sip_trunk_id:
            # Its workspace has been changed meanwhile: decided anew.
            if await self._leave_room(call):
                await self._wait(call, "trunk", self.durations.orphan_step)
            return False
        why = rules.waiting_for or ("paused" if now.paused else None)
        until_ms = None if rules.waiting_for is None else self._until_ms(call, rules, now.switch)
        if why is None and not await self._may_try_trunk(now.trunk, call):
            why = "trunk"
        if why is None and last:
            # Not at once: it would be the first of the line, and meet the same others.
            why, until_ms = "retry", self.clock() + to_ms(self._backoff(call))
        if why is None:
            return True
        if await self._leave_room(call):
            await self._enter_line(call, why, now.switch, mine=True, until_ms=until_ms)
        return False

    async def _undo_late_fence(self, call: Call) -> None:
        """After this process has sent a fence and decided otherwise: a copy of that request may have been executed
        before the later write. Nothing rings then, so the call is put back.
        """
        seen = await asyncio.to_thread(self.calls.get, call.call_id)
        if (
            seen is not None
            and seen.status == "dialing"
            and _still_mine(seen, call)
            and not self._lease_over(seen)
        ):
            await self._put_back(seen, "retry", self.durations.orphan_step)

    # ── the slot ────────────────────────────────────────────────────────────────────────────────────────

    def _slots_item(self, standing: Standing, call: Call, message: DialMessage) -> int | None:
        """The number of the slots item to take the call's slot from, or in which it has one; None when it must
        wait: no slot is free, or other calls wait and this one was not admitted.
        """
        held = standing.item_of(call.call_id)
        if held is not None or standing.workspace is None:
            return held
        if call.admitted_at_ms is None and standing.crowded(self.clock()):
            return None
        return choose_item(standing.free(standing.workspace.max_concurrent_calls), message.slots_item)

    async def _take_slot(self, standing: Standing, workspace: Workspace, call: Call) -> Call | None:
        """The call with its slot, whose item may be another than its lease says; None when it got none and waits
        in the line.
        """
        sizes = capacities(workspace.max_concurrent_calls, standing.slots)
        free = standing.free(workspace.max_concurrent_calls)
        item = call.slots_item or 0
        tried = set()
        while not await asyncio.to_thread(
            self.limits.take_slot,
            call.workspace_id,
            call.call_id,
            sizes[item],
            item=item,
            admitted=call.admitted_at_ms is not None,
            now_ms=self.clock(),
        ):
            free[item] = 0
            tried.add(item)
            other = choose_item(free)
            if other is None:
                await self._wait_for_slot(standing, call, frozenset(tried))
                return None
            # First, so that the process that ends the call frees it there.
            noted = await asyncio.to_thread(self.calls.note_slots_item, call.call_id, _lease_of(call), other)
            if not noted.won or noted.call is None:
                return None
            call, item = noted.call, other
        return call

    async def _wait_for_slot(self, standing: Standing, call: Call, tried: frozenset[int] = frozenset()) -> None:
        """Puts the call into the line. Should a slot be free now (calls wait although it is, or one was freed
        since it was read), the first of the line is admitted; the call itself if the index does not show it yet.

        tried: the items in which this process, under the call's lease, found no free slot.
        """
        workspace = standing.workspace
        if workspace is None:
            return
        crowded = standing
        if tried or not any(standing.free(workspace.max_concurrent_calls)):
            # Not while slots are free: newcomers alone would keep the line crowded with no call in it.
            crowded = await asyncio.to_thread(self.line.crowd, workspace, standing)
        free = crowded.free(workspace.max_concurrent_calls)
        for item in tried:
            if crowded.slots[item] is standing.slots[item]:
                free[item] = 0
        entered = await self._enter_line(call, "slot", standing.switch, mine=bool(tried), holds_slot=False)
        # An admitted call that finds no slot admits no other: admissions would multiply.
        if entered is not None and call.admitted_at_ms is None and any(free):
            await asyncio.to_thread(self.line.admit_behind, entered, free)

    async def _reserve_trunk(self, workspace: Workspace, timeout: float) -> int | None:
        """The trunk's next free moment, epoch ms; None when a dial at that time would outlast this process."""
        now_ms = self.clock()
        latest_ms = now_ms + to_ms(self.remaining() - timeout - self.durations.fence_margin)
        if latest_ms < now_ms:
            return None
        gap_ms = to_ms(self.durations.scale / workspace.calls_per_second)
        return await asyncio.to_thread(
            self.limits.reserve_trunk, workspace.sip_trunk_id, gap_ms, now_ms, latest_ms
        )

    async def _prepare_room(self, workspace: Workspace, call: Call) -> str:
        """Creates the room with its agent dispatched. Returns the room's sid."""
        if call.attempts > 1:
            # CreateRoom ignores `agents` for an existing room, and the last attempt's dispatch is used up.
            await delete_room(self.calls, self.livekit, call)
        return await self.livekit.create_room(
            call.room_name, compact({"callId": call.call_id}), workspace.agent_name, self._agent_metadata(call)
        )

    def _agent_metadata(self, call: Call) -> str:
        return json_object(
            {
                "callId": compact(call.call_id),
                "workspaceId": compact(call.workspace_id),
                "callAgentId": compact(call.call_agent_id),
                "to": compact(call.to),
                "dynamicVariables": call.dynamic_variables or "{}",
                "metadata": call.metadata or "{}",
                "eventsUrl": compact(f"{self.public_api_url}/v1/api/call/{call.call_id}/events"),
            }
        )

    async def _await_agent(self, workspace: Workspace, call: Call) -> Literal["there", "missing", "not needed"]:
        """Waits until the agent is in the room; dispatches it again if LiveKit found no worker for it.

        `not needed`: the call was canceled meanwhile.
        """
        durations = self.durations
        now_ms = self.clock()
        give_up_at_ms, redispatch_at_ms = (
            now_ms + to_ms(durations.agent_wait),
            now_ms + to_ms(durations.agent_redispatch),
        )
        step = durations.agent_step
        while not (await self.livekit.view_room(call.room_name, call.identity)).agent_present:
            now_ms = self.clock()
            if now_ms >= give_up_at_ms:
                return "missing"
            if now_ms >= redispatch_at_ms:
                redispatch_at_ms = now_ms + to_ms(durations.agent_redispatch)
                lost = await self.livekit.delete_lost_dispatches(call.room_name)
                if self._lease_over(call):
                    return "missing"
                if lost:
                    await self.livekit.dispatch_agent(
                        call.room_name, workspace.agent_name, self._agent_metadata(call)
                    )
                    logger.warning("agent dispatched again", extra={"call_id": call.call_id})
                    count("AgentsDispatchedAgain")
            await asyncio.sleep(step)
            # LiveKit Cloud limits requests: the interval grows while the agent is late.
            step = min(1.5 * step, 4 * durations.agent_step)
            seen = await asyncio.to_thread(self.calls.get, call.call_id)
            if seen is not None and seen.ended:
                return "not needed"
        return "there"

    async def _dial_fenced(
        self,
        workspace: Workspace,
        trunk: Trunk,
        call: Call,
        from_number: str | None,
        ring_seconds: float,
        timeout: float,
        dial_before_ms: int,
    ) -> None:
        """Rings the phone (the only place that does) and handles LiveKit's answer."""
        if self._lease_over(call):
            # The fence's response took so long that the reconciler may have ended the call: it must not ring then.
            return
        if self.clock() > dial_before_ms:
            await self._un_fence_late(call)
            return
        started_ms = self.clock()
        try:
            await self.livekit.dial(
                room=call.room_name,
                identity=call.identity,
                trunk_id=workspace.sip_trunk_id,
                to=call.to,
                from_number=from_number,
                ring_seconds=ring_seconds,
                # LiveKit counts from the room join, ringing included; the reconciler enforces the exact limit.
                longest_seconds=timeout + call.max_duration_seconds * self.durations.scale,
                timeout=timeout,
                dtmf=call.dtmf or "",
            )
        except LiveKitError as exc:
            if self._lease_over(call):
                return
            # LiveKit's timer starts after this one; a twentieth covers the difference of clocks.
            rang_out = self.clock() - started_ms >= to_ms(0.95 * ring_seconds)
            await self._handle_error(call, trunk, exc, rang_out)
        else:
            await self._handle_answer(call)
            await self._trunk_works(trunk, call)

    async def _handle_answer(self, call: Call) -> None:
        if self._lease_over(call):
            return
        now_ms = self.clock()
        # The first look is early: the agent may have left while the phone rang.
        check_at_ms = now_ms + to_ms(min(self.durations.second_look, self._longest(call)))
        answered = await asyncio.to_thread(self.calls.answered, call.call_id, _lease_of(call), check_at_ms, now_ms)
        if answered.won and answered.call is not None:
            if answered.call.phone_left is not None:
                # The phone left before the dial's answer arrived.
                await self._end(answered.call, answered_outcome(answered.call.phone_left))
                return
            logger.info("answered", extra={"call_id": call.call_id})
            count("CallsAnswered")
            if answered.call.agent_missing_since_ms is not None:
                # The agent left while the phone rang; livekit_events sends this message only for an answered call.
                await asyncio.to_thread(send_agent_left, self.dial_queue, answered.call, self.durations)
        elif (
            answered.call is not None
            and _still_mine(answered.call, call)
            and answered.call.hangup
            # Answered despite a request to hang up. If the room cannot be deleted, the call has not ended, and the
            # reconciler repeats the hang-up.
            and await self._delete_room(call)
        ):
            await self._end(answered.call, Outcome("failed", "outcome_unknown"))

    async def _handle_error(self, call: Call, trunk: Trunk, error: LiveKitError, rang_out: bool) -> None:
        """Handles LiveKit's error for the dial. Only one with the carrier's code is decisive without a look at the
        room.
        """
        judged = verdict(error)
        match judged:
            case Verdict(kind="end", outcome=Outcome() as outcome):
                await self._end_dial(call, trunk, outcome, error)
            case Verdict(kind="over"):
                view = await self._view(call)
                if view is None or view.call_status is not None:
                    await self._determine_outcome(call, trunk, error)
                    return
                seen = await self._await_left_event(call, error)
                if seen is not None and _still_mine(seen, call):
                    await self._end_dial(
                        seen, trunk, uncoded_outcome(error.code, seen.phone_left, rang_out=rang_out), error
                    )
            case _:
                await self._determine_outcome(call, trunk, error, unsent=judged.kind == "unsent")

    async def _await_left_event(self, call: Call, error: LiveKitError) -> Call | None:
        """The call once it has LiveKit's event of the phone's leaving or a request to hang up, or after
        `left_wait`.

        If LiveKit reported no phone in the room, the event is not waited for, except after `canceled`, which
        implies one."""
        give_up_at_ms = self.clock() + to_ms(self.durations.left_wait)
        while True:
            seen = await asyncio.to_thread(self.calls.get, call.call_id)
            if (
                seen is None
                or seen.phone_left
                or seen.hangup
                or not _still_mine(seen, call)
                or self.clock() >= give_up_at_ms
            ):
                return seen
            if seen.phone_seen_at_ms is None and error.code != "canceled":
                return seen
            await asyncio.sleep(self.durations.orphan_read / 5)

    async def _determine_outcome(
        self, call: Call, trunk: Trunk, error: LiveKitError, *, unsent: bool = False
    ) -> None:
        """Determines the outcome of a dial from looks at the room and from the events of LiveKit's on the record.

        The phone is gone once an event says so or two looks, `second_look` apart, do not find it. Then the call
        ends; or it is un-fenced, if the error came before the INVITE (unsent) and neither a look nor an event
        showed a phone. If this process's time is too short, the reconciler determines the outcome."""
        missing_since_ms: int | None = None
        in_room = False
        while self.remaining() > self.durations.fence_margin and not self._lease_over(call):
            view = await self._view(call)
            if view is not None and view.call_status in ANSWERED:
                await self._handle_answer(call)
                await self._trunk_works(trunk, call)
                return
            seen = await asyncio.to_thread(self.calls.get, call.call_id)
            if seen is None or not _still_mine(seen, call):
                return
            absent = view is not None and view.call_status is None
            if view is not None and not absent:
                in_room = True
                absent = seen.hangup is not None and not await self._hang_up_ringing(call)
            if not absent:
                missing_since_ms = None
            else:
                missing_since_ms = missing_since_ms or self.clock()
                # ROOM_CLOSED proves nothing: a dial that joins after it recreates the room and rings.
                left = seen.phone_left is not None and seen.phone_left["reason"] != ROOM_CLOSED
                if left or self.clock() - missing_since_ms >= to_ms(self.durations.second_look):
                    if (
                        unsent
                        and not in_room
                        and (seen.phone_left or seen.phone_seen_at_ms or seen.hangup) is None
                    ):
                        await self._un_fence(call, error)
                    elif unsent or in_room:
                        # A phone was in the room, so the error does not describe the dial's outcome.
                        await self._end(seen, left_outcome(seen.phone_left))
                    else:
                        await self._end_dial(seen, trunk, uncoded_outcome(error.code, seen.phone_left), error)
                    return
            await asyncio.sleep(self.durations.orphan_step)
        logger.warning("outcome not known yet", extra={"call_id": call.call_id})

    async def _view(self, call: Call) -> RoomView | None:
        """The participants of the call's room; None when LiveKit cannot be asked."""
        try:
            return await self.livekit.view_room(call.room_name, call.identity)
        except LiveKitError:
            return None

    async def _hang_up_ringing(self, call: Call) -> bool:
        """Hangs up a ringing phone. False: it is not in the room, although LiveKit listed it."""
        try:
            return await hang_up_phone(self.calls, self.livekit, call, answered=False)
        except LiveKitError:
            return True

    async def _un_fence(self, call: Call, error: LiveKitError) -> None:
        """Puts the call back to `queued`, as nothing has rung; ends it after MAXIMUM_ATTEMPTS."""
        if call.attempts >= MAXIMUM_ATTEMPTS:
            await self._end(call, Outcome("failed", "livekit_unavailable", retryable=True))
            return
        if await self._put_back(call, "retry", self._backoff(call)):
            logger.warning("nothing rang, trying again", extra={"call_id": call.call_id, "livekit": str(error)})

    async def _un_fence_late(self, call: Call) -> None:
        """Puts a call back whose decision is too old to dial by: its calling window is about to close, or this
        process has stalled. Nothing has rung.
        """
        if call.attempts >= MAXIMUM_ATTEMPTS:
            # Each return adds to the call's events.
            await self._end(call, Outcome("failed", "livekit_unavailable", retryable=True))
            return
        await self._delete_room(call)
        if await self._put_back(call, "retry", self.durations.orphan_step):
            logger.warning("too late to dial", extra={"call_id": call.call_id})

    async def _put_back(self, call: Call, waiting_for: WaitingFor, delay_seconds: float) -> bool:
        """`dialing` → `queued`, as nothing has rung, with a delayed message. Its ring does not count. If the call
        is being hung up or a phone was seen, it is ended.
        """
        now_ms = self.clock()
        wait_until_ms, check_at_ms = self._wait_times(now_ms, delay_seconds)
        undone = await asyncio.to_thread(
            self.calls.unfence, call.call_id, _lease_of(call), waiting_for, wait_until_ms, check_at_ms, now_ms
        )
        if undone.won:
            count("DialsUnfenced")
            if call.dialed_at_ms is not None:
                try:
                    await asyncio.to_thread(
                        self.numbers.forget_ring, call.workspace_id, call.to, call.call_id, call.dialed_at_ms
                    )
                except StoreError:
                    # It counts against other calls to the number; this one must not wait for the reconciler.
                    logger.exception("ring not forgotten", extra={"call_id": call.call_id})
            await self._send(call, delay_seconds)
        elif undone.call is not None and _still_mine(undone.call, call):
            await self._end(undone.call, left_outcome(undone.call.phone_left))
        return undone.won

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────

    async def _end_dial(self, seen: Call, trunk: Trunk, outcome: Outcome, error: LiveKitError) -> None:
        if is_configuration_fault(outcome):
            logger.error("configuration fault", extra={"call_id": seen.call_id, "livekit": str(error)})
            count("ConfigurationFaults")
        # Before the end, which frees the slot for a call that must find the trunk stopped.
        if is_trunk_fault(outcome):
            await self._trunk_failed(trunk, seen, error)
        await self._end(seen, outcome)
        if not is_trunk_fault(outcome) and (
            outcome.sip_status_code is not None or outcome.status in ("no_answer", "busy", "rejected")
        ):
            # The carrier has answered the INVITE.
            await self._trunk_works(trunk, seen)

    async def _end_unrung(
        self, call: Call, message: DialMessage, standing: Standing | None, outcome: Outcome
    ) -> None:
        """Ends a call that may not ring. If it was admitted for a free slot, the next call is admitted for it; a
        slot that it holds admits one as it is freed.
        """
        await self._end(call, outcome)
        holds_slot = standing is not None and standing.item_of(call.call_id) is not None
        if message.slots_item is not None and not holds_slot:
            await asyncio.to_thread(self.line.admit_one, call.workspace_id, message.slots_item)

    # ── the trunk's breaker ─────────────────────────────────────────────────────────────────────────────

    async def _may_try_trunk(self, trunk: Trunk, call: Call) -> bool:
        """Whether the call may be dialled over this trunk. One whose stop is over is claimed for this call, for as
        long as this process lives.
        """
        now_ms = self.clock()
        if trunk.holds(call.call_id, now_ms):
            return False
        if trunk.state(now_ms) != "to_probe":
            return True
        until_ms = now_ms + to_ms(self.remaining())
        return await asyncio.to_thread(self.limits.claim_probe, trunk, call.call_id, until_ms, now_ms)

    async def _trunk_failed(self, trunk: Trunk, call: Call, error: LiveKitError) -> None:
        """Counts the trunk's fault; after several in a row the trunk is stopped. A failure of this does not keep
        the call from ending.
        """
        try:
            stopped = await asyncio.to_thread(
                self.limits.note_trunk_fault,
                trunk.trunk_id,
                call.call_id,
                str(error),
                to_ms(self.durations.trunk_stop),
                to_ms(self.durations.trunk_stop_longest),
                self.clock(),
            )
        except StoreError:
            logger.exception("trunk fault not counted", extra={"trunk_id": trunk.trunk_id})
            return
        if stopped is not None:
            logger.error(
                "trunk stopped",
                extra={
                    "trunk_id": trunk.trunk_id,
                    "until": iso(stopped.stopped_until_ms),
                    "stops": stopped.stops,
                    "livekit": str(error),
                },
            )
            count("TrunkStops")

    async def _trunk_works(self, trunk: Trunk, call: Call) -> None:
        """Ends the count of faults of a trunk that had some before this dial; what waits for it is admitted."""
        if not trunk.faulty:
            return
        try:
            if await asyncio.to_thread(self.limits.reset_trunk, trunk.trunk_id, trunk) and trunk.stops:
                logger.info("trunk in use again", extra={"trunk_id": trunk.trunk_id})
                standing = await self._standing(call)
                if standing is not None and standing.workspace is not None:
                    await asyncio.to_thread(self.line.fill, standing.workspace, standing)
        except (StoreError, QueueError):
            # The reconciler fills the line; the next success resets the trunk.
            logger.exception("trunk not reset", extra={"trunk_id": trunk.trunk_id})

    async def _end(self, seen: Call, outcome: Outcome) -> None:
        """Ends the call; clears room and slot only if this process ended it."""
        ended = await asyncio.to_thread(end_call, self.calls, seen, outcome, self.durations, self.clock)
        if ended is not None:
            await self._clear(ended)

    async def _clear(self, call: Call) -> None:
        """Clears room and slot. After a failure the call stays due, and the reconciler repeats it."""
        await clear_with_room(self.line, call, self._delete_room)

    async def _delete_room(self, call: Call) -> bool:
        """False: the room could not be deleted, or was an orphan, whose agent may come back."""
        try:
            return await delete_room(self.calls, self.livekit, call)
        except LiveKitError as exc:
            logger.warning("room not deleted", extra={"call_id": call.call_id, "livekit": str(exc)})
            return False

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────

    async def _find(self, message: DialMessage) -> Call | None:
        """The message's call; reads for `orphan_read`, as the record is written after the message is sent."""
        give_up_at_ms = self.clock() + to_ms(self.durations.orphan_read)
        while True:
            call = await asyncio.to_thread(self.calls.get, message.call_id)
            if call is not None or self.clock() >= give_up_at_ms:
                return call
            await asyncio.sleep(self.durations.orphan_read / 5)

    async def _wait_for_record(self, message: DialMessage) -> None:
        """Repeats a message without a record for `orphan_drop`: its request has not written it yet, or died
        before.
        """
        if self.clock() - message.since_ms >= to_ms(self.durations.orphan_drop):
            logger.warning("message without a record dropped", extra={"call_id": message.call_id})
            count("OrphanMessages")
            return
        await asyncio.to_thread(
            self.dial_queue.send,
            dial_message(message.call_id, message.workspace_id, since_ms=message.since_ms),
            group=message.workspace_id,
            delay_seconds=self.durations.orphan_step,
        )

    async def _try_again(self, call: Call, error: LiveKitError) -> None:
        """Makes the call wait after a LiveKit failure before the fence (nothing rang); ends it after
        MAXIMUM_ATTEMPTS.
        """
        logger.warning("LiveKit failed before the dial", extra={"call_id": call.call_id, "livekit": str(error)})
        if error.http_status in (401, 403) or isinstance(error, LiveKitUnreachableError):
            # LiveKit's keys or its address are wrong.
            count("ConfigurationFaults")
        if call.attempts >= MAXIMUM_ATTEMPTS:
            await self._end(call, Outcome("failed", "livekit_unavailable", retryable=True))
        else:
            await self._wait(call, "retry", self._backoff(call))

    async def _wait(self, call: Call, waiting_for: WaitingFor, delay_seconds: float) -> None:
        """Makes the call wait for `delay` seconds and sends its next message. A duplicate message loses the write,
        so it starts no second chain.
        """
        now_ms = self.clock()
        wait_until_ms, check_at_ms = self._wait_times(now_ms, delay_seconds)
        waiting = await asyncio.to_thread(
            self.calls.wait,
            call.call_id,
            waiting_for,
            wait_until_ms,
            check_at_ms,
            now_ms,
            lease=call.lease_id,
        )
        if waiting.won:
            await self._send(call, delay_seconds)
        else:
            await self._clear_if_canceled(call, waiting.call)

    async def _clear_if_canceled(self, call: Call, seen: Call | None) -> None:
        """Clears a call that was canceled while this process held its lease. With another process's lease the
        clearing waits for that lease's end: the process may take the slot yet.
        """
        if seen is not None and seen.ended and call.lease_id is not None and seen.lease_id == call.lease_id:
            await self._clear(seen)

    async def _enter_line(
        self,
        call: Call,
        waiting_for: WaitingFor,
        switch: Switch,
        *,
        mine: bool = False,
        holds_slot: bool = True,
        until_ms: int | None = None,
    ) -> Call | None:
        """Puts the call into the line, its slot freed before. Returns it, None when another process was faster.

        until_ms: before which it may not ring, which gives it another turn. mine: this process holds its lease.
        holds_slot: False when it is known that it has none.
        """
        uncount = mine and not holds_slot
        freed: SlotsItem | None = None
        if not mine and (call.lease_id is not None or call.held_slots_item is not None):
            # A slot is freed under a lease only: another process might have taken it just now.
            leased = await self._lease(call, call.held_slots_item or 0)
            if leased is None:
                return None
            call, mine, uncount, holds_slot = leased, True, True, True
        if mine and holds_slot:
            if self._lease_over(call):
                return None
            freed = await asyncio.to_thread(
                self.limits.free_slot, call.workspace_id, call.call_id, call.held_slots_item or 0
            )
        now_ms = self.clock()
        write = await asyncio.to_thread(
            self.calls.enter_line,
            call.call_id,
            line_of(call.workspace_id),
            (call.turn if until_ms is None else None) or turn_of(call, until_ms),
            waiting_for,
            switch.deadline_ms(call, now_ms),
            now_ms,
            lease=call.lease_id if mine else None,
            uncount=uncount,
            seen=call,
        )
        if write.won:
            logger.info("waits in the line", extra={"call_id": call.call_id, "waiting_for": waiting_for})
            if freed is not None and freed.crowded_until_ms >= now_ms and waiting_for in _ITS_OWN:
                # Others wait for the slot that it had.
                await asyncio.to_thread(
                    self.line.admit_one, call.workspace_id, freed.number, freed.crowded_until_ms
                )
            return write.call
        seen = write.call
        if mine and seen is not None and seen.status == "queued" and seen.lease_id == call.lease_id:
            # Its times were changed: decided anew.
            await self._wait(call, "retry", self.durations.orphan_step)
        await self._clear_if_canceled(call, seen)
        return None

    async def _leave_room(self, call: Call) -> bool:
        """Deletes the room, as its agent must not wait with the call. False: the lease is over."""
        if self._lease_over(call):
            return False
        await self._delete_room(call)
        return True

    async def _send(self, call: Call, delay_seconds: float) -> None:
        message = dial_message(call.call_id, call.workspace_id)
        await asyncio.to_thread(
            self.dial_queue.send, message, group=call.workspace_id, delay_seconds=delay_seconds
        )

    def _wait_times(self, now_ms: int, delay_seconds: float) -> tuple[int, int]:
        wait_until_ms = now_ms + to_ms(delay_seconds)
        return wait_until_ms, wait_until_ms + to_ms(self.durations.wait_grace)

    def _backoff(self, call: Call) -> float:
        """Seconds before the next attempt: doubled each time, with jitter over the upper half."""
        doubled = min(call.attempts, MAXIMUM_ATTEMPTS) - 1
        return self.durations.backoff * 2.0**doubled * random.uniform(0.5, 1)

    def _lease_over(self, call: Call) -> bool:
        """Whether the lease has expired: another process may work on the call, so this one must not change it."""
        return self.clock() >= call.lease_until_ms

    def _longest(self, call: Call) -> float:
        return call.max_duration_seconds * self.durations.scale


# ── what this process may still do ──────────────────────────────────────────────────────────────────


def _lease_of(call: Call) -> str:
    if call.lease_id is None:
        raise ValueError(f"call {call.call_id} carries no lease")
    return call.lease_id


def _refusal(rules: Decision) -> Outcome:
    """The end of a call that the rules do not let ring."""
    return Outcome("failed", rules.refused or "not_allowed")


def _still_mine(seen: Call, mine: Call) -> bool:
    return not seen.ended and seen.lease_id == mine.lease_id
