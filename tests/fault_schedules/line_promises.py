"""What holds of the line and of the slots at every write, and within which time it is mended after a fault.

Two faults may break the limit, because no condition can prevent them: a slot is freed or taken by a request that
is carried out late, or by a process that stalled. The calls that this has happened to are excused.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import TypeVar

from shared.call import Call
from shared.line import admitted_of, earliest_ms, line_of, turn_of
from shared.trunk import Trunk
from shared.workspaces import Workspace
from simulate import invocation
from tests.fault_schedules.line_index import LineIndex

T = TypeVar("T")

# Seconds after the faults stop within which a slot that is free beside a waiting call is filled, and within which
# the id of a call that has ended, or waits, is removed: two and six runs of the reconciler, and their time.
FILLED = 125
REPAIRED = 375
# So many later calls of a line may get a slot before one that waits and that the index shows: processes that admit
# at the same time and lose the first place to each other go on at random.
OVERTAKEN = 25
# An index entry that is younger than this may not show yet, milliseconds.
UNSEEN_MS = 5_000


# Why a call goes back whose admission its rules do not let ring.
RULES = ("scheduled_at", "calling_window", "frequency")


@dataclasses.dataclass(frozen=True, slots=True)
class BeforeFill:
    """What there was before `Line.fill`: the free slots, less those freed before; the calls that were admitted, as
    the index shows them; the number of all admissions."""

    at_ms: int
    free: int
    admitted: list[str]
    admissions: int


class LinePromises:
    """Watches the writes of one account. calls: their state by id, which the account keeps."""

    def __init__(self, clock: Callable[[], int], calls: dict[str, Call], index: LineIndex) -> None:
        self._clock = clock
        self._calls = calls
        self._index = index
        # By workspace: (since, limit), oldest first.
        self.limits: dict[str, list[tuple[int, int]]] = {}
        self.slots: dict[tuple[str, int], frozenset[str]] = {}
        self.waiting: dict[str, dict[str, tuple[str, int]]] = collections.defaultdict(dict)
        self.excused: set[str] = set()
        self.overtaken: collections.Counter[str] = collections.Counter()
        self.counted: collections.Counter[str] = collections.Counter()
        # By workspace.
        self.trunks: dict[str, Trunk] = {}
        self._struck_before = invocation.struck.total()
        # The turns of all that were admitted, epoch ms.
        self._admissions: list[int] = []
        self._calm = False
        self.paused = False
        self._free_since: dict[str, int] = {}
        self._stale_since: dict[tuple[str, str], int] = {}

    def limit_is(self, workspace_id: str, limit: int) -> None:
        self.limits.setdefault(workspace_id, []).append((self._clock(), limit))
        self.trunks.setdefault(workspace_id, Trunk(""))

    def ids(self, workspace_id: str) -> frozenset[str]:
        """The calls that hold a slot."""
        return frozenset(
            call_id for (owner, _), held in self.slots.items() if owner == workspace_id for call_id in held
        )

    def taken(self, workspace_id: str) -> int:
        return sum(len(held) for (owner, _), held in self.slots.items() if owner == workspace_id)

    # ── writes ──────────────────────────────────────────────────────────────────────────────────

    def slots_written(self, workspace_id: str, number: int, held: frozenset[str], since_ms: int) -> None:
        """since: of the oldest limit that a process may have read."""
        before = self.slots.get((workspace_id, number), frozenset())
        self.slots[workspace_id, number] = held
        limits = self.limits[workspace_id]
        in_force = [limits[-1][1]] + [
            limit for place, (_, limit) in enumerate(limits[:-1]) if limits[place + 1][0] >= since_ms
        ]
        if held - before:
            assert self.taken(workspace_id) <= max(in_force), (self.ids(workspace_id), limits)
        for call_id in held - before:
            if _cannot_be_prevented():
                self.excused.add(call_id)
            elif call_id in self._calls:
                self._overtakes(self._calls[call_id])
        self.counted["slots freed"] += len(before - held)
        for call_id in before - held:
            call = self._calls.get(call_id)
            if _cannot_be_prevented():
                self.excused.add(call_id)
            elif call is not None and call.status in ("dialing", "in_progress") and call_id not in self.excused:
                raise AssertionError(f"a call under way loses its slot: {call}")
        self.look()

    def _overtakes(self, call: Call) -> None:
        """A call has taken a slot."""
        turn, now_ms = call.turn or turn_of(call), self._clock()
        for other, (its_turn, since_ms) in self.waiting[call.workspace_id].items():
            seen = since_ms + UNSEEN_MS < now_ms and earliest_ms(its_turn) <= now_ms
            if its_turn < turn and seen and self._calls[other].lease_until_ms < now_ms:
                self.overtaken[other] += 1
                assert self.overtaken[other] <= OVERTAKEN, (self._calls[other], call)

    def call_written(self, before: Call | None, now: Call) -> None:
        self._index.note(now.call_id, (now.line_of, now.turn) if now.line_of and now.turn else None)
        waiting = self.waiting[now.workspace_id]
        if not now.in_line:
            waiting.pop(now.call_id, None)
        elif now.call_id not in waiting:
            waiting[now.call_id] = (now.turn or "", self._clock())
        assert now.status == "queued" or (now.line_of, now.waiting_for) == (None, None), now
        if before is None:
            return
        if now.in_line and not before.in_line:
            self.counted["entered the line"] += 1
            self.counted["newcomers" if before.admitted_at_ms is None else "came back"] += 1
            # It may not ring yet, and leaves its free slot to the next.
            self.counted["came back by the rules"] += (
                before.admitted_at_ms is not None and now.waiting_for in RULES
            )
            held = now.call_id in self.ids(now.workspace_id)
            assert not held or now.call_id in self.excused or _cannot_be_prevented(), ("waits with a slot", now)
        if now.admission not in (None, before.admission):
            self.counted["admitted"] += 1
            self._admissions.append(earliest_ms(before.turn or "0"))
            assert before.in_line, ("a call is admitted that does not wait", before, now)
            assert before.lease_until_ms < self._clock(), ("a call is admitted that is leased", before, now)
        if now.attempts > before.attempts:
            assert not before.in_line, ("a call is dialled that was not admitted", before, now)
        if now.ended and before.line_of and not before.in_line:
            self.counted["gone after they were admitted"] += 1
        if now.status == "dialing" and before.status == "queued":
            held = now.call_id in self.ids(now.workspace_id)
            assert held or now.call_id in self.excused, ("a call is fenced without a slot", now)
        self.look()

    # ── what it all comes to ────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """At most one message for each admission, and one admission for each slot that was freed, filled or found
        free by a newcomer, and for each message of a call that was gone.
        """
        counted = self.counted
        assert counted["admissions sent"] <= counted["admitted"], counted
        causes = (
            "slots freed",
            "filled",
            "newcomers",
            "gone after they were admitted",
            "came back by the rules",
            "messages repeated",
            "messages again",
        )
        faults = invocation.struck.total() - self._struck_before
        assert counted["admitted"] <= sum(counted[cause] for cause in causes) + faults, counted

    def before_fill(self, workspace: Workspace) -> BeforeFill:
        workspace_id = workspace.workspace_id
        return BeforeFill(
            at_ms=self._clock(),
            free=workspace.max_concurrent_calls - self.taken(workspace_id) - self.counted["slots freed"],
            admitted=[call_id for call_id, _ in self._index.entries(admitted_of(line_of(workspace_id)))],
            admissions=len(self._admissions),
        )

    def filled(self, workspace: Workspace, before: BeforeFill, admitted: int) -> None:
        """After `Line.fill`: it admits no more calls whose turn has come than are free, less those admitted before
        that no worker has leased yet; and one more of those whose turn is to come than there are slots.
        """
        self.counted["filled"] += admitted
        ahead = sum(turn_ms > before.at_ms for turn_ms in self._admissions[before.admissions :])
        self.counted["admitted ahead"] += ahead
        assert ahead <= workspace.max_concurrent_calls + 1, ("ahead", admitted, ahead)
        free = before.free + self.counted["slots freed"]
        outstanding = sum(self._outstanding(self._calls[call_id], before.at_ms) for call_id in before.admitted)
        assert admitted - ahead <= max(0, free - outstanding), ("filled", admitted - ahead, free, outstanding)

    def _outstanding(self, call: Call, now_ms: int) -> bool:
        """Whether it was admitted, its turn has come, and it has not been leased."""
        admitted = call.status == "queued" and call.line_of is not None and not call.in_line
        come = earliest_ms(call.turn or "0") <= now_ms
        return admitted and come and call.lease_until_ms < self._clock()

    # ── what is mended ──────────────────────────────────────────────────────────────────────────

    def calm(self) -> None:
        """The faults stop."""
        self._calm = True

    def look(self) -> None:
        """At every moment after the faults have stopped."""
        if not self._calm:
            return
        free = {workspace_id for workspace_id in self.limits if self._is_free_beside_a_waiting_call(workspace_id)}
        stale = {(owner, call_id) for owner in self.limits for call_id in self.stale_ids(owner)}
        self._no_longer_than(FILLED, free, self._free_since)
        self._no_longer_than(REPAIRED, stale, self._stale_since)

    def _no_longer_than(self, bound: float, found: set[T], since: dict[T, int]) -> None:
        """bound: seconds. since: when each was first found, epoch ms."""
        for place in since.keys() - found:
            del since[place]
        for place in found:
            seconds = (self._clock() - since.setdefault(place, self._clock())) / 1000
            assert seconds <= bound, (place, seconds, self.slots, self.waiting)

    def stale_ids(self, workspace_id: str) -> set[str]:
        """The ids in its slots of calls that need none."""
        return {call_id for call_id in self.ids(workspace_id) if self._needs_no_slot(self._calls.get(call_id))}

    def _needs_no_slot(self, call: Call | None) -> bool:
        return call is None or call.ended or (call.in_line and call.lease_until_ms < self._clock())

    def _is_free_beside_a_waiting_call(self, workspace_id: str) -> bool:
        now_ms = self._clock()
        stopped = self.paused or self.trunks[workspace_id].state(now_ms) != "in_use"
        if stopped or not any(earliest_ms(turn) <= now_ms for turn, _ in self.waiting[workspace_id].values()):
            return False
        held = self.ids(workspace_id)
        on_the_way = sum(
            call.workspace_id == workspace_id
            and call.status == "queued"
            and not call.in_line
            and call.call_id not in held
            and (call.line_of is not None or call.lease_until_ms >= now_ms)
            for call in self._calls.values()
        )
        return self.limits[workspace_id][-1][1] > self.taken(workspace_id) + on_the_way


def _cannot_be_prevented() -> bool:
    """Whether what happens now is done by a request that is carried out late or by a process that stalled."""
    by = invocation.current.get()
    return by is None or by.ever_stalled
