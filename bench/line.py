"""The line: what waiting costs, how soon a freed slot is used, whether others notice, and a trunk that is down.

    cost       requests and write units of a call that waited, beside one that did not: computed, in virtual time
    slot       from the end of a call that frees a slot to the next INVITE, with a backlog
    neighbour  from POST to INVITE in one workspace while another has a backlog, and while it has none, in turns
    slots      calls of one workspace under way at the same time
    trunk      a trunk that refuses its credentials for a while, and calls in its line

`python -m bench line` runs all of them, `python -m bench line.slot` one. All but the first run on the local stack:
real processes, LiveKit's stand-in. `slot`, `neighbour` and `slots` run in real time (TIME_SCALE 1), so no figure
needs conversion. `trunk` runs ten times faster. The backlog is written into the table as the dial workers leave
calls in the line; all other calls are placed with a POST. Agents join at once, and calls have no callback URL: the
machine's few processors are left to what is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.table import Figure, report
from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

if TYPE_CHECKING:
    from bench.line_cost import Spent

SLOTS = 10
RATIO, NEIGHBOURS_RATIO = 1.3, 1.2
# Of `cost`: calls that wait, and calls that end while it is counted.
WAITING, ENDED = (10, 500, 5_000), 100
# Of `slot`.
BACKLOG = int(os.environ.get("BENCH_BACKLOG", "1000"))
FREED = int(os.environ.get("BENCH_FREED", "200"))
MEDIAN_MS, NEARLY_ALL_MS = 1_000, 3_000
TALK_SECONDS = 4.0
# Of `neighbour`.
NEIGHBOURS_BACKLOG = int(os.environ.get("BENCH_NEIGHBOURS_BACKLOG", "5000"))
# Calls of the neighbour beside the backlog; as many, half before and half after, while none waits.
SINGLE_CALLS = int(os.environ.get("BENCH_SINGLE_CALLS", "60"))
BUSY_TALK_SECONDS = 30.0
# Of `slots`.
AT_A_TIME = int(os.environ.get("BENCH_SLOTS", "500"))
LEAST_AT_A_TIME = 400
# Calls that are hung up together.
PORTION = 10
# Of `trunk`: what is told of a wrong password, half of the calls each (a SIP code, or LiveKit's own error).
REFUSALS = {"sip_403": 0.5, "trunk_auth": 0.5}
IN_LINE, MOST_FAILED = int(os.environ.get("BENCH_IN_LINE", "200")), 10
TRUNK_SCALE = 0.1
# For what never comes.
SECONDS = 600.0


def main() -> None:
    cost()
    with real_time() as client:
        for section in (_slot, _neighbour, _slots):
            section(client)
    trunk()


# ── cost ────────────────────────────────────────────────────────────────────────────────────────────


def cost() -> None:
    os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "bench")
    os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Ringonce")
    logging.disable(logging.CRITICAL)
    try:
        # The functions print their metrics.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            figures = [*_costs(webhooks=True), *_costs(webhooks=False)]
    finally:
        logging.disable(logging.NOTSET)
    report("line: cost", figures)


def _costs(*, webhooks: bool) -> Iterator[Figure]:
    from bench.line_cost import traffic

    # Without webhooks a call costs half as much, and waiting costs the same: no ratio is aimed at.
    aim = RATIO if webhooks else None
    kind = "" if webhooks else ", no webhooks"
    idle = traffic(0, webhooks=webhooks)
    alone, look = idle.spend(ENDED), idle.look()
    yield Figure(f"requests of a call that does not wait{kind}", alone.requests(), "")
    yield Figure(f"write units of a call that does not wait{kind}", alone.write_units(), "")
    if webhooks:
        yield from _of_a_minute(look)
    for waiting in WAITING:
        line = traffic(waiting, webhooks=webhooks)
        seen, look = line.spend(ENDED), line.look()
        if seen.waiting != waiting:
            raise SystemExit(f"{seen.waiting} calls wait, not {waiting}")
        requests, units = seen.requests(), seen.write_units()
        yield Figure(f"requests of a call, {waiting:,} waiting{kind}", requests, "")
        yield Figure("... of one that does not wait", requests / alone.requests(), "x", aim)
        yield Figure(f"write units of a call, {waiting:,} waiting{kind}", units, "")
        yield Figure("... of one that does not wait", units / alone.write_units(), "x", aim)
        if webhooks:
            yield from _of_a_minute(look)


def _of_a_minute(look: Spent) -> Iterator[Figure]:
    """What the reconciler asks in a minute in which nothing is due."""
    yield Figure("... reconciler: requests a minute", look.requests(reconciler=True), "")
    yield Figure("... reconciler: write units a minute", look.write_units(reconciler=True), "")


# ── the local stack ─────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def real_time() -> Iterator[Client]:
    with _stack(1) as client:
        yield client


@contextlib.contextmanager
def _stack(scale: float) -> Iterator[Client]:
    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state", {"TIME_SCALE": str(scale)}) as running,
        Client(running.info()) as client,
    ):
        yield client


@dataclasses.dataclass(frozen=True, slots=True)
class Tenant:
    """A workspace with a trunk of its own. number: where its calls go, if nothing else is said."""

    client: Client
    workspace_id: str
    number: str

    @property
    def trunk(self) -> str:
        return f"ST_{self.workspace_id}"

    def placed(self) -> list[dict[str, Any]]:
        """Its INVITEs, as the stand-in counts them, in their order."""
        calls = self.client.livekit.get("/_standin/calls").json()["calls"]
        return sorted((one for one in calls if one["trunkId"] == self.trunk), key=lambda one: one["atMs"])

    def place(self, numbers: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(4) as threads:
            return list(threads.map(lambda number: self.client.place(number, callback_url=None), numbers))

    def hang_up(self, number: str | None = None) -> None:
        self.client.livekit.post("/_standin/hangup", json={"number": number or self.number})

    def slots_in_use(self) -> list[int]:
        """The number of ids in each of its slots items."""
        store, workspace = self._stores()
        return [len(item.call_ids) for item in store.slots(self.workspace_id, workspace.slots_items)]

    def _stores(self) -> Any:
        from shared.limits import LimitStore
        from shared.workspaces import WorkspaceStore

        dynamodb, table = self.client.aws("dynamodb"), self.client.info["resources"]["WorkspacesTable"]
        return LimitStore(dynamodb, table), WorkspaceStore(dynamodb, table).get(self.workspace_id)

    def calls(self) -> Any:
        from shared.call_store import CallStore

        return CallStore(self.client.aws("dynamodb"), self.client.info["resources"]["CallsTable"])

    def waiting(self) -> list[str]:
        """The ids of the calls in its line."""
        from shared.line import line_of

        return [call_id for call_id, _ in self.calls().line(line_of(self.workspace_id), 10**13 - 2, 100_000)]

    def fill_line(self, count: int) -> None:
        """Writes calls as they are in the line."""
        from shared.call import Call, event, iso
        from shared.clock import now_ms
        from shared.dynamo import to_wire
        from shared.line import line_of, turn_of
        from shared.table_keys import call_key, due_shard

        def item(_: int) -> dict[str, Any]:
            call_id, now = secrets.token_hex(12), now_ms()
            call = Call(
                call_id=call_id,
                workspace_id=self.workspace_id,
                call_agent_id="agent-1",
                to=self.number,
                room_name=f"agent-1-{call_id}",
                job_id=call_id,
                created_at=iso(now),
                status="queued",
                events=(event("call.queued", now),),
                ring_timeout_seconds=40,
                max_duration_seconds=1800,
                queue_deadline_ms=now + 3_600_000,
                check_at_ms=now + 3_600_000,
                line_of=line_of(self.workspace_id),
                waiting_for="slot",
            )
            stored = dataclasses.replace(call, turn=turn_of(call), due_shard=due_shard(call_id))
            return {"PutRequest": {"Item": call_key(call_id) | to_wire(stored.to_item())}}

        self._write([item(n) for n in range(count)])

    def crowd(self) -> None:
        """Says that calls wait, as a worker does that has found no slot."""
        from shared.clock import now_ms

        store, workspace = self._stores()
        for item in range(workspace.slots_items):
            store.note_crowded(self.workspace_id, item, now_ms() + 60_000, now_ms() + 30_000)

    def empty_line(self) -> None:
        """Ends the calls under way, and removes those that wait.

        Its trunk is stopped first: nothing is dialled any more, and no worker has a call whose record goes.
        """
        from shared.clock import now_ms
        from shared.line import admitted_of, line_of
        from shared.table_keys import call_key
        from shared.trunk import FAULTS_TO_STOP

        hour_ms, (store, _) = 3_600_000, self._stores()

        def over() -> bool:
            # A dial that succeeds puts the trunk into use again.
            if store.trunk(self.trunk).state(now_ms()) != "stopped":
                for number in range(FAULTS_TO_STOP):
                    store.note_trunk_fault(self.trunk, f"{number}", "bench", hour_ms, hour_ms, now_ms())
            self.hang_up()
            time.sleep(0.2)
            admitted = self.calls().line(admitted_of(line_of(self.workspace_id)), 10**13 - 2, 1)
            return not any(self.slots_in_use()) and not admitted

        eventually(over, f"{self.workspace_id} has no call under way", SECONDS)
        self._write([{"DeleteRequest": {"Key": call_key(call_id)}} for call_id in self.waiting()])

    def _write(self, requests: Sequence[dict[str, Any]]) -> None:
        dynamodb, table = self.client.aws("dynamodb"), self.client.info["resources"]["CallsTable"]
        for start in range(0, len(requests), 25):
            dynamodb.batch_write_item(RequestItems={table: list(requests[start : start + 25])})


def tenant(client: Client, workspace_id: str, number: str, *, slots: int, pace: int) -> Tenant:
    """pace: INVITEs that its trunk takes per second."""
    from shared.workspaces import WorkspaceStore

    store = WorkspaceStore(client.aws("dynamodb"), client.info["resources"]["WorkspacesTable"])
    demo = store.get(client.info["workspaceId"])
    assert demo is not None
    made = Tenant(Client(client.info | {"workspaceId": workspace_id}), workspace_id, number)
    store.put(
        dataclasses.replace(
            demo,
            workspace_id=workspace_id,
            sip_trunk_id=made.trunk,
            max_concurrent_calls=slots,
            calls_per_second=pace,
        )
    )
    return made


def _phones(client: Client, **faults: Any) -> None:
    """Phones that are answered at once, and agents that join at once."""
    given = {"agentJoinSeconds": 0.0, "ringSeconds": 0.05, "rates": {}, "numbers": {}} | faults
    client.livekit.put("/_standin/faults", json=given).raise_for_status()


def _occupy(busy: Tenant, waiting: int) -> None:
    """All slots are in use and `waiting` calls wait for one, each call that ends admits the next."""
    already = len(busy.placed())
    busy.fill_line(waiting)
    busy.crowd()
    # Each of these goes to the end of the line, and the first is admitted in its place.
    busy.place([busy.number] * SLOTS)
    eventually(lambda: len(busy.placed()) - already >= SLOTS, "the slots are in use", SECONDS)


# ── slot ────────────────────────────────────────────────────────────────────────────────────────────


def slot() -> None:
    with real_time() as client:
        _slot(client)


def _slot(client: Client) -> None:
    """The slots are freed one after the other; the n-th that is freed is used by the n-th INVITE after it."""
    _phones(client, talkSeconds=TALK_SECONDS)
    busy = tenant(client, "slot", "+15550600001", slots=SLOTS, pace=100)
    already = len(busy.placed())
    # Some of them are admitted and not dialled yet at the end.
    _occupy(busy, BACKLOG + FREED + 2 * SLOTS)
    eventually(lambda: len(busy.placed()) - already >= SLOTS + FREED, "calls are admitted", SECONDS)
    placed = busy.placed()[already:][: SLOTS + FREED]
    left = len(busy.waiting())
    calls = busy.calls().get_many([one["participantIdentity"].removeprefix("call-") for one in placed])
    freed = sorted(call.ended_at_ms for call in calls if call.ended_at_ms)
    after = [one["atMs"] for one in placed[SLOTS:]]
    taken = [invited - ended for ended, invited in zip(freed, after, strict=False)]
    busy.empty_line()
    elapsed = (after[-1] - after[0]) / 1000
    report(
        "line: slot",
        [
            Figure("slot freed to the next INVITE, median", statistics.median(taken), "ms", MEDIAN_MS),
            Figure(
                "... 99th percentile",
                statistics.quantiles(taken, n=100, method="inclusive")[98],
                "ms",
                NEARLY_ALL_MS,
            ),
            Figure("... longest", max(taken), "ms"),
            Figure("calls that wait at the end", left, "", least=BACKLOG),
            Figure("slots freed and used", len(taken), ""),
            Figure("... a second", len(taken) / elapsed, "/s"),
        ],
    )


# ── neighbour ───────────────────────────────────────────────────────────────────────────────────────


def neighbour() -> None:
    with real_time() as client:
        _neighbour(client)


def _neighbour(client: Client) -> None:
    _phones(client, talkSeconds=BUSY_TALK_SECONDS)
    busy = tenant(client, "busy", "+15550600002", slots=SLOTS, pace=100)
    single = tenant(client, "single", "", slots=SLOTS, pace=100)
    taken: dict[bool, list[float]] = {False: [], True: []}
    # The first calls find processes that have not served one yet.
    _single_calls(single, 3)
    for crowded in (False, True, False):
        if crowded:
            _occupy(busy, NEIGHBOURS_BACKLOG)
        _settle(client)
        taken[crowded] += _single_calls(single, SINGLE_CALLS if crowded else SINGLE_CALLS // 2)
        if crowded:
            busy.empty_line()
    idle, beside = (statistics.median(taken[crowded]) for crowded in (False, True))
    report(
        "line: neighbour",
        [
            Figure("POST to INVITE, nothing waits, median", idle, "ms"),
            Figure(f"POST to INVITE beside {NEIGHBOURS_BACKLOG:,} that wait, median", beside, "ms"),
            Figure("... of that when nothing waits", beside / idle, "x", NEIGHBOURS_RATIO),
            Figure("... 90th percentiles", _percentile(taken[True], 90) / _percentile(taken[False], 90), "x"),
        ],
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _settle(client: Client) -> None:
    """Waits until the stream's records of what was just written are read: the machine is at rest."""
    before = -1.0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        now = _processor_seconds(client)
        if before >= 0 and now - before < 0.25:
            return
        before = now
        time.sleep(1)


def _processor_seconds(client: Client) -> float:
    """Of the emulated AWS and the stack, which polls the stream."""
    total = 0
    for name in ("aws", "stack"):
        stat = Path(f"/proc/{client.info['pids'][name]}/stat").read_text().rpartition(")")[2].split()
        total += int(stat[11]) + int(stat[12])
    return total / os.sysconf("SC_CLK_TCK")


def _single_calls(single: Tenant, count: int) -> list[float]:
    """Milliseconds from each POST to its INVITE."""
    taken = []
    for _ in range(count):
        number = f"+1555031{secrets.randbelow(10_000):04d}"
        started, seen = time.time() * 1000, len(single.placed())
        call_id = single.client.place(number, callback_url=None)
        eventually(lambda seen=seen: len(single.placed()) > seen, "the phone rings", SECONDS)  # type: ignore[misc]
        taken.append(single.placed()[-1]["atMs"] - started)
        single.client.api.post(f"/v1/api/call/{call_id}/cancel").raise_for_status()
        eventually(lambda: not any(single.slots_in_use()), "its slot is free", SECONDS)
    return taken


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def slots() -> None:
    with real_time() as client:
        _slots(client)


def _slots(client: Client) -> None:
    # They talk until they are hung up.
    _phones(client, rates={"talks_on": 1})
    many = tenant(client, "many", "", slots=1000, pace=100)
    numbers = [f"+155506{n // PORTION:05d}" for n in range(AT_A_TIME)]
    began = time.monotonic()
    call_ids = many.place(numbers)
    most = 0

    def all_under_way() -> bool:
        nonlocal most
        time.sleep(0.5)
        most = max(most, sum(many.slots_in_use()))
        return len(many.placed()) >= AT_A_TIME and most >= AT_A_TIME

    eventually(all_under_way, "all calls are under way", SECONDS)
    under_way = time.monotonic() - began
    items = sum(1 for used in many.slots_in_use() if used)
    began = time.monotonic()
    left = AT_A_TIME
    for number in dict.fromkeys(numbers):
        many.hang_up(number)
        left -= PORTION
        # The machine has few processors: a thousand ends at once would be a thousand processes of the functions.
        eventually(lambda left=left: sum(many.slots_in_use()) <= left + PORTION, "slots are freed", SECONDS)  # type: ignore[misc]
    eventually(lambda: not any(many.slots_in_use()), "every slot is free", SECONDS)
    ended_within = time.monotonic() - began
    eventually(lambda: all(one.ended for one in many.calls().get_many(call_ids)), "all calls end", SECONDS)
    report(
        "line: slots",
        [
            Figure("slots of one workspace in use at the same time", most, "", least=LEAST_AT_A_TIME),
            Figure("... in so many items", items, ""),
            Figure("... after", under_way, "s"),
            Figure("ids in its slots items after the last end", sum(many.slots_in_use()), "", 0),
            Figure("... all free within", ended_within, "s"),
            Figure("rings of a call, most", _most_rings(many), "", 1),
        ],
    )


def _most_rings(of: Tenant) -> int:
    rings = [one["participantIdentity"] for one in of.placed()]
    return max(rings.count(one) for one in set(rings))


# ── trunk ───────────────────────────────────────────────────────────────────────────────────────────


def trunk() -> None:
    with _stack(TRUNK_SCALE) as client:
        _trunk(client)


def _trunk(client: Client) -> None:
    _phones(client, talkSeconds=0.3, rates=REFUSALS)
    # One INVITE in a tenth of a second, which is one a second, scaled: as at ten a second in real time.
    tried = tenant(client, "trunk", "+15550600004", slots=SLOTS, pace=1)
    call_ids = tried.place([tried.number] * IN_LINE)

    def all_wait() -> bool:
        calls = tried.calls().get_many(call_ids)
        time.sleep(0.2)
        return all(call.ended or call.in_line for call in calls) and any(call.in_line for call in calls)

    eventually(all_wait, "the calls wait for the trunk", SECONDS)
    at_first = _failed(tried, call_ids)
    # Two of the breaker's stops later.
    wrong = time.monotonic()
    eventually(lambda: _stops(tried) >= 3 and all_wait(), "the trunk is stopped again", SECONDS)
    wrong = time.monotonic() - wrong
    waiting = len(tried.waiting())
    _phones(client, talkSeconds=0.3)
    righted = time.time() * 1000
    eventually(lambda: all(call.ended for call in tried.calls().get_many(call_ids)), "all calls end", SECONDS)
    ends = tried.calls().get_many(call_ids)
    rang = [one["atMs"] - righted for one in tried.placed() if one["atMs"] > righted]
    report(
        "line: trunk",
        [
            Figure("calls that fail while the password is wrong", _failed(tried, call_ids), "", MOST_FAILED),
            Figure("... before the trunk is stopped", at_first, ""),
            Figure("... that wait then", waiting, "", least=IN_LINE - MOST_FAILED),
            Figure("password wrong for, in the product's time", wrong / TRUNK_SCALE, "s"),
            Figure("calls that ring once it is right", len(rang), "", least=waiting),
            Figure("... the first after, in the product's time", min(rang) / 1000 / TRUNK_SCALE, "s"),
            Figure("... all within", max(rang) / 1000, "s"),
            Figure("calls that end otherwise", _ended_otherwise(ends), "", 0),
            Figure("rings of a call, most", _most_rings(tried), "", 1),
        ],
    )


def _failed(tried: Tenant, call_ids: Sequence[str]) -> int:
    return sum(call.end_event.get("reason") == "trunk_error" for call in tried.calls().get_many(call_ids))


def _ended_otherwise(calls: Sequence[Any]) -> int:
    return sum(call.end_event.get("reason") not in ("trunk_error", "hangup") for call in calls)


def _stops(tried: Tenant) -> int:
    return int(tried._stores()[0].trunk(tried.trunk).stops)


SECTIONS: dict[str, Callable[[], None]] = {
    "cost": cost,
    "slot": slot,
    "neighbour": neighbour,
    "slots": slots,
    "trunk": trunk,
}
