"""Calls under the rules of their workspace, hours and days of them, on a clock that the test moves.

The real stores on moto, the real POST, workers and reconciler; LiveKit and the queues are in memory.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest import mock

from calls_api.queries import call_view
from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from shared.call import Outcome, iso
from shared.callback_url import Policy as CallbackPolicy
from shared.clock import to_ms
from shared.durations import Durations
from shared.ending import clear, end_call
from shared.errors import RequestRefusedError
from shared.line import earliest_ms
from shared.numbers import ALL, Suppression
from shared.policies import Policy, Window
from shared.workspaces import WorkspaceCache
from tests.clock import MINUTE, Clock
from tests.in_memory import Message, RoomsInMemory
from tests.simulation import Simulation
from tests.system import API_KEY, System, demo_workspace

HOUR = 60 * MINUTE
EVERY_DAY = frozenset(range(7))
# By libphonenumber in one zone, and in two that are an hour apart.
NEW_YORK = "+12025550123"
IDAHO = "+12085550123"


class Phones(RoomsInMemory):
    """LiveKit that keeps which phones rang, and when: epoch ms by number. Each answers."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.rang: list[tuple[str, int]] = []

    async def dial(self, *, room: str, **request: Any) -> None:
        self.rang.append((request["to"], self.clock()))
        await super().dial(room=room, **request)


class Ruled(Simulation):
    """See the module's docstring."""

    livekit: Phones

    def __init__(self, system: System, durations: Durations | None = None) -> None:
        super().__init__(durations, dynamodb=system.dynamodb)
        self.system = system
        self.livekit = Phones(self.clock)
        self.accepted: list[str] = []
        self.set_policies()

    # ── what an operator and a client do ────────────────────────────────────────────────────────

    def set_policies(self, *policies: Policy, **workspace: Any) -> None:
        """The workspace has these policies alone, and whatever else is given."""
        given = {"policies": {policy.name: policy for policy in policies}} | workspace
        self.system.workspaces.put(demo_workspace(max_concurrent_calls=100, **given))

    def suppress(self, to: str, scope: str = ALL) -> None:
        """Returns once the opt-out is acknowledged."""
        self.numbers.suppress("demo", to, Suppression(scope, "opted_out", self.clock()), self.clock())

    def acceptor(self) -> Acceptor:
        return Acceptor(
            calls=self.calls,
            numbers=self.numbers,
            limits=self.limits,
            workspaces=WorkspaceCache(self.workspaces, 0),
            rate_limit=RateLimit(self.limits),
            dial_queue=self.dial_queue,
            durations=self.durations,
            callback_policy=CallbackPolicy(),
            look_up=lambda host, port: [],
            clock=self.clock,
        )

    def accept(self, to: str = NEW_YORK, **fields: Any) -> str:
        """POST of a call; its id."""
        body = json.dumps({"to": to, "call_agent_id": "agent-1"} | fields).encode()
        self.accepted.append(self.acceptor().accept("demo", API_KEY, None, body).call.call_id)
        return self.accepted[-1]

    def refused(self, to: str = NEW_YORK, **fields: Any) -> tuple[int, str]:
        """The status and code with which a POST is refused."""
        try:
            self.accept(to, **fields)
        except RequestRefusedError as exc:
            return exc.status, exc.code
        raise AssertionError("accepted")

    def view(self, call_id: str) -> dict[str, Any]:
        """GET of a call."""
        seen: dict[str, Any] = json.loads(call_view(self.call(call_id), self.clock()))
        return seen

    def waits(self, call_id: str) -> tuple[str | None, str | None]:
        """Why a call that is queued waits, and until when, as the API says."""
        view = self.view(call_id)
        assert view["status"] == "queued", view
        return view["waitingFor"], view["earliestRingAt"]

    # ── what goes on ────────────────────────────────────────────────────────────────────────────

    def dial(self, seconds: float = 120) -> int:
        """As a worker's process does with every message that is due: one that fails is received again."""
        due = self.dial_queue.visible()
        for message in due:
            if self.work_on(message, seconds):
                self.dial_queue.delete(message)
            else:
                message.visible_at = self.clock() + 12 * MINUTE
        return len(due)

    def work_on(self, message: Message, seconds: float = 120) -> bool:
        """One message. Whether it is acknowledged."""
        record = {
            "messageId": str(message.number),
            "body": message.body,
            "attributes": {"SentTimestamp": str(self.clock())},
        }

        async def work() -> bool:
            work = self.system.modules["dial_worker"].dial_record(self.dialler(seconds), record)
            return not isinstance((await asyncio.gather(work, return_exceptions=True))[0], BaseException)

        with mock.patch("asyncio.sleep", self._passes):
            return asyncio.run(work())

    def step(self) -> None:
        """What is due now: messages, and once a minute the reconciler."""
        while self.dial():
            pass
        if self.clock() % MINUTE == 0:
            self.reconcile()
            while self.dial():
                pass

    def run_to(self, until_ms: int) -> None:
        """Time goes on until then: to each message that gets visible, and to each minute at which the reconciler
        has something to do.
        """
        while True:
            self.step()
            now = self.clock()
            if now >= until_ms:
                return
            coming = [one.visible_at for one in self.dial_queue.messages if one.visible_at > now]
            coming += [_minute(at_ms, now) for call_id in self.accepted for at_ms in self._looked_at(call_id)]
            self.clock.now = min([until_ms, *coming])

    def _looked_at(self, call_id: str) -> list[int]:
        """When the reconciler has something to do for a call, as far as is known."""
        call = self.call(call_id)
        if call.status != "queued":
            return []
        ahead_ms = to_ms(self.durations.admit_ahead)
        return [
            call.check_at_ms or 0,
            *([earliest_ms(call.turn) - ahead_ms] if call.in_line and call.turn else []),
        ]

    def hang_up(self, call_id: str) -> None:
        """The callee hangs up, if the call was answered; its slot is free then, for the next."""
        call = self.call(call_id)
        if call.status == "in_progress":
            ended = end_call(self.calls, call, Outcome("completed", "hangup"), self.durations, self.clock)
            assert ended is not None
            self.livekit.rooms.pop(call.room_name)
            clear(self.line, ended)

    # ── what a test sees ────────────────────────────────────────────────────────────────────────

    def rang(self, to: str = NEW_YORK) -> list[str]:
        """When the phone rang, ISO 8601."""
        return [iso(at) for number, at in self.livekit.rang if number == to]

    def rings_stored(self, to: str = NEW_YORK) -> dict[str, int]:
        return self.numbers.get("demo", to).rings

    def receipt(self, call_id: str) -> dict[str, dict[str, Any]]:
        """What let the call ring last: the details of each gate, by name, as stored."""
        entry = [entry for entry in self.call(call_id).events if entry["type"] == "call.dialing"][-1]
        gates = json.loads(entry["gates"])
        assert all(gate["passed"] is True for gate in gates), gates
        return {gate["name"]: gate["detail"] for gate in gates}

    def end(self, call_id: str) -> tuple[str, str]:
        """The status and reason with which the call has ended, once."""
        call = self.call(call_id)
        ends = [entry for entry in call.events if entry["type"] == "call.ended"]
        assert len(ends) == 1, call
        return call.status, ends[0]["reason"]

    def assert_nothing_left(self, call_id: str) -> None:
        """Of a call that has ended: no room, no slot, no entry in the line."""
        call = self.call(call_id)
        assert call.room_name not in self.livekit.rooms
        assert call_id not in self.system.limits.active_calls("demo", 3)
        assert call.line_of is None


def hours(start: int, end: int, name: str = "default", **fields: Any) -> Policy:
    """A policy under which phones may ring every day between two full hours of the callee's clock."""
    return Policy(name, windows=(Window(EVERY_DAY, start * 60, end * 60),), **fields)


def _minute(at_ms: int, now_ms: int) -> int:
    """The first full minute after now that is not before then."""
    return max(-(-at_ms // MINUTE), now_ms // MINUTE + 1) * MINUTE
