"""The line: where the calls of a workspace wait that cannot ring yet, at no cost while they wait.

A call enters it by one write that says why, and then nothing but its deadline looks at it. The index `line` keeps
the calls in their turn:

    lineOf  <workspace>#single             calls that wait
            <workspace>#single#admitted    calls that were admitted, until a worker leases them
    turn    <earliest ring, epoch ms, 13 digits>#<created, epoch ms>#<callId>

Admission is a claim: one conditional write takes the call out of those that wait, for the one process that then
sends its message. The end of a call frees its slot and admits the first call. A process that dies in between, a
stale index and a lost message leave a free slot beside a waiting call: once a minute the reconciler fills the free
slots of every line. An admission that fails does not fail its caller.
"""

from __future__ import annotations

import dataclasses
import random

from shared.call import Call, iso
from shared.call_store import CallStore
from shared.clock import Clock, to_ms, to_seconds
from shared.durations import Durations
from shared.limits import LimitStore, Standing
from shared.messages import admitted_message
from shared.queues import Queue
from shared.slots import SlotsItem, choose_item
from shared.telemetry import count, logger
from shared.workspaces import Workspace

# Entries that are read to admit one call: others that admit at the same time take some of them.
FIRST_ENTRIES = 25

# Entries that are read and claimed at a time when several slots are free.
FILL_ENTRIES = 100


def line_of(workspace_id: str) -> str:
    return f"{workspace_id}#single"


def admitted_of(line: str) -> str:
    return f"{line}#admitted"


def turn_of(call: Call, earliest_ms: int | None = None) -> str:
    """The call's place in the line. earliest: epoch ms before which it may not ring; None: it may at any time from
    its `scheduled_at` on.
    """
    created_ms = call.created_at_ms
    first_ms = max(created_ms, call.scheduled_at_ms or 0) if earliest_ms is None else earliest_ms
    return f"{first_ms:013}#{created_ms}#{call.call_id}"


def earliest_ms(turn: str) -> int:
    """Epoch ms from which the call of this place in the line may ring."""
    return int(turn.partition("#")[0])


def waiting_view(call: Call, now_ms: int) -> dict[str, str | None]:
    """Why a queued call waits and from when on it may ring, as the API shows it; null while it does not wait: no
    process has decided on it yet, or one is about to dial it.

    The time is null too when it has passed or is unknown (only a slot, the trunk or an operator decides then), or
    is never: such a call waits until its deadline.
    """
    ring_ms = max(earliest_ms(call.turn) if call.turn else 0, call.wait_until_ms)
    deadline_ms = call.expires_at_ms or call.queue_deadline_ms
    waits = (
        call.status == "queued"
        and call.waiting_for is not None
        and call.lease_until_ms < now_ms
        and (call.in_line or ring_ms > now_ms)
    )
    return {
        "waitingFor": call.waiting_for if waits else None,
        "earliestRingAt": iso(ring_ms) if waits and now_ms < ring_ms != deadline_ms else None,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """Admits calls from the line. clock: epoch milliseconds."""

    calls: CallStore
    limits: LimitStore
    dial_queue: Queue
    durations: Durations
    clock: Clock

    def free_slot(self, call: Call) -> None:
        """Frees the slot of an ended call and admits the first that waits for one. Idempotent: a slot that was
        free already admits no call.
        """
        item = call.held_slots_item
        if item is None:
            return
        before = self.limits.free_slot(call.workspace_id, call.call_id, item)
        if before is not None and before.crowded_until_ms >= self.clock():
            self.admit_one(call.workspace_id, item, before.crowded_until_ms)

    def admit_one(self, workspace_id: str, slots_item: int, crowded_until_ms: int = 0) -> bool:
        """Admits the first call that waits, for a slot that is free in this item. Whether one was admitted.

        crowded_until: the item's, as last read. Never raises: the reconciler fills the slot at the latest.
        """
        try:
            return self._admit_one(workspace_id, slots_item, crowded_until_ms)
        except Exception:
            logger.exception("not admitted", extra={"workspace_id": workspace_id})
            count("AdmissionErrors")
            return False

    def _admit_one(self, workspace_id: str, slots_item: int, crowded_until_ms: int = 0) -> bool:
        line = line_of(workspace_id)
        entries = self.calls.line(line, self.clock(), FIRST_ENTRIES)
        others = len(entries) > 1
        # The first is the one whose turn it is. When many slots become free at once, the processes that lose it go
        # on at a random place among the next two, four, ...: in order if there are few, and not all at the same.
        among = 1
        while entries:
            call_id, turn = entries.pop(random.randrange(min(among, len(entries))))
            if self._claim(line, call_id, turn, self.clock()):
                self._send([(call_id, turn, self.clock())], workspace_id, [slots_item])
                if others and crowded_until_ms < self.clock() + to_ms(self.durations.crowded / 2):
                    self._keep_crowded(workspace_id, slots_item)
                return True
            among *= 2
        return False

    def admit_behind(self, entered: Call, free: list[int]) -> None:
        """After a call has entered the line although slots are free: admits the first, or the call itself if the
        index does not show any yet. Not for a slot that another call was admitted for just now. Never raises.

        free: the number of free slots of each item.
        """
        line = line_of(entered.workspace_id)
        try:
            soon_ms = self.clock() + to_ms(self.durations.early_message)
            if len(self.calls.line(admitted_of(line), soon_ms, sum(free))) >= sum(free):
                return
            item = choose_item(free) or 0
            if self._admit_one(entered.workspace_id, item) or entered.turn is None:
                return
            now_ms = self.clock()
            # Not one that waits for a time yet to come.
            if earliest_ms(entered.turn) <= now_ms and self._claim(line, entered.call_id, entered.turn, now_ms):
                self._send([(entered.call_id, entered.turn, now_ms)], entered.workspace_id, [item])
        except Exception:
            logger.exception("not admitted", extra={"call_id": entered.call_id})
            count("AdmissionErrors")

    def fill(self, workspace: Workspace, standing: Standing) -> int:
        """Admits calls whose turn has come until no slot is free, less those admitted that no worker has leased
        yet; and those whose turn comes within `admit_ahead`, with delayed messages. Returns their number.

        A stopped trunk admits none, one that is to be probed admits one. Raises StoreError; what was claimed by
        then is sent.
        """
        now_ms = self.clock()
        state = standing.trunk.state(now_ms)
        if standing.switch.paused_at_ms is not None or state in ("stopped", "probing"):
            return 0
        line = line_of(workspace.workspace_id)
        ahead_ms = now_ms + to_ms(self.durations.admit_ahead)
        first = self.calls.line(line, ahead_ms, 1)
        if not first:
            return 0
        # Read now: `standing` may be the reconciler's scan, some time ago.
        slots = self.limits.slots(workspace.workspace_id, len(standing.slots))
        standing = dataclasses.replace(standing, slots=slots)
        free = standing.free(workspace.max_concurrent_calls)
        # More than the trunk takes until the next time would come back, one after the other.
        most = max(1, round(60 * workspace.calls_per_second))
        probes = 1 if state == "to_probe" else most
        soon_ms = now_ms + to_ms(self.durations.early_message)
        admitted = 0
        if earliest_ms(first[0][1]) <= now_ms:
            wanted = min(sum(free), most, probes) - self._outstanding(line, 0, soon_ms, min(sum(free), most))
            admitted, waits = self._fill(workspace, line, 0, now_ms, wanted, free)
            if waits:
                # Newcomers stay behind them, and each freed slot admits one, until after the next run.
                for item in standing.slots[: workspace.slots_items]:
                    self._keep_crowded(workspace.workspace_id, item.number, times=2)
        # Those to come take no slot until their turn. One more than there are slots: the one that gets none then
        # makes each freed slot admit the next.
        coming = min(workspace.max_concurrent_calls + 1, most, probes)
        coming -= self._outstanding(line, soon_ms + 1, ahead_ms, coming)
        return admitted + self._fill(workspace, line, now_ms + 1, ahead_ms, coming, [])[0]

    def _fill(
        self, workspace: Workspace, line: str, from_ms: int, until_ms: int, wanted: int, free: list[int]
    ) -> tuple[int, bool]:
        """Admits up to `wanted` calls whose turn is between two times. Returns their number, and whether others
        with such a turn wait.

        free: the free slots of each item. The messages keep the trunk's pace: those of calls whose turn has come
        are delayed one after the other.
        """
        gap_ms = to_ms(self.durations.scale / workspace.calls_per_second)
        admitted = seen = 0
        while admitted < wanted:
            limit = min(FILL_ENTRIES, wanted - admitted + FIRST_ENTRIES)
            entries = self.calls.line(line, until_ms, limit, from_ms)
            claimed: list[tuple[str, str, int]] = []
            try:
                for call_id, turn in entries:
                    if admitted + len(claimed) >= wanted:
                        break
                    at_ms = max(earliest_ms(turn), self.clock() + (admitted + len(claimed)) * gap_ms)
                    if self._claim(line, call_id, turn, at_ms):
                        claimed.append((call_id, turn, at_ms))
            finally:
                # The index shows what was just claimed for a moment longer.
                self._send(claimed, workspace.workspace_id, _spread(free, len(claimed)))
            admitted, seen = admitted + len(claimed), seen + len(entries)
            if not claimed:
                break
        return admitted, wanted <= 0 or seen > admitted

    def crowd(self, workspace: Workspace, standing: Standing) -> Standing:
        """Stores that a call of the workspace waits for a slot, in every item that does not say so for another
        while.

        Returns the standing with the items that were written as they are now: a slot that was freed since it was
        read has admitted no call.
        """
        now_ms = self.clock()
        slots = list(standing.slots)
        for place, item in enumerate(slots):
            if item.crowded_until_ms < now_ms + to_ms(self.durations.crowded / 2):
                slots[place] = self._keep_crowded(workspace.workspace_id, item.number) or item
        return dataclasses.replace(standing, slots=tuple(slots))

    def _keep_crowded(self, workspace_id: str, item: int, *, times: int = 1) -> SlotsItem | None:
        """Stores that calls wait, for `times` the duration `crowded`; not if all but half a `crowded` of that is
        stored already.
        """
        now_ms = self.clock()
        crowded_ms = to_ms(self.durations.crowded)
        until_ms = now_ms + times * crowded_ms
        return self.limits.note_crowded(workspace_id, item, until_ms, until_ms - crowded_ms // 2)

    def _claim(self, line: str, call_id: str, turn: str, at_ms: int) -> bool:
        """Whether this process has admitted the call. An entry whose call is no longer queued is removed.

        at_ms: when its message arrives, epoch ms; the reconciler repeats the message some time after that.
        """
        now_ms = self.clock()
        check_at_ms = max(now_ms, at_ms) + to_ms(self.durations.queued_check)
        write = self.calls.admit(call_id, line, turn, admitted_of(line), check_at_ms, now_ms)
        if not write.won and write.call is not None and write.call.status != "queued":
            self.calls.leave_line(call_id, line)
        return write.won

    def _outstanding(self, line: str, from_ms: int, until_ms: int, most: int) -> int:
        """How many calls whose turn is between two times are admitted and not leased yet, at most `most`. Removes
        entries of older versions.
        """
        entries = self.calls.line(admitted_of(line), until_ms, max(1, most), from_ms)
        found = {
            call.call_id: call for call in self.calls.read_due([(entry[0], "CALL") for entry in entries]).calls
        }
        waiting = 0
        for call_id, _ in entries:
            call = found.get(call_id)
            if call is not None and call.status == "queued":
                waiting += call.lease_until_ms < self.clock()
            elif call is not None:
                self.calls.leave_line(call_id, admitted_of(line))
        return waiting

    def _send(self, admitted: list[tuple[str, str, int]], workspace_id: str, slots_items: list[int]) -> None:
        """Sends the admitted calls' messages (call id, turn, epoch ms at which it may arrive), rounded down to
        whole seconds. The reconciler repeats one that is lost.
        """
        if not admitted:
            return
        now_ms = self.clock()
        messages = [
            (admitted_message(call_id, workspace_id, item), workspace_id)
            for (call_id, _, _), item in zip(admitted, slots_items, strict=True)
        ]
        delays = [to_seconds(max(0, at_ms - now_ms) // 1000 * 1000) for _, _, at_ms in admitted]
        lost = self.dial_queue.send_batch(messages, delays)
        count("CallsAdmitted", len(admitted))
        for place in lost:
            logger.error("admission not sent", extra={"call_id": admitted[place][0]})
            count("AdmissionErrors")


def _spread(free: list[int], number: int) -> list[int]:
    """`number` item numbers, from items with free slots, as many of each as it has."""
    places = [item for item, slots in enumerate(free) for _ in range(slots)]
    return [places[n % len(places)] if places else 0 for n in range(number)]
