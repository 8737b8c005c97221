"""What the preview says of a call is what then becomes of it, unless something changes in between."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from shared.call import Call, iso
from shared.callback_url import Policy as Callbacks
from shared.errors import RequestRefusedError
from shared.line import waiting_view
from shared.livekit.client import RoomView
from shared.messages import DialMessage
from shared.numbers import Suppression, ring_write
from shared.policies import Cap, Policy, Window
from shared.timestamps import rfc3339_ms
from shared.workspaces import WorkspaceCache, key_hash
from tests.one_call import CALL, NOW, WORKSPACE, OneCall

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TENANT = dataclasses.replace(WORKSPACE, api_key_hashes=frozenset({key_hash("key")}))


class Placed(OneCall):
    """A workspace in which a call is previewed, placed and dialled, on one clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.seconds = 1e9
        self.livekit.views = [RoomView(None, agent_present=True)]
        self.acceptor = Acceptor(
            calls=self.calls,
            numbers=self.numbers,
            limits=self.limits,
            workspaces=WorkspaceCache(self.workspaces, 0),
            rate_limit=RateLimit(self.limits),
            dial_queue=self.dial_queue,
            durations=self.durations,
            callback_policy=Callbacks(),
            look_up=lambda host, port: [],
            clock=lambda: self.now,
        )

    def stand(self, policy: Policy, rings: list[int], suppressed: str | None, stop: str | None) -> None:
        """stop: what else keeps calls from ringing."""
        self.workspaces.put(dataclasses.replace(TENANT, policies={policy.name: policy}))
        for n, at in enumerate(sorted(rings)):
            write = ring_write("numbers", self.numbers.get("demo", CALL.to), f"{n}", counted=True, now_ms=at)
            self.dynamodb.transact_write_items(TransactItems=[write], ClientRequestToken=f"ring-{n}")
        if suppressed is not None:
            self.numbers.suppress("demo", CALL.to, Suppression(suppressed, "asked", NOW), NOW)
        if stop == "paused":
            self.limits.pause(NOW)
        elif stop == "full":
            for call_id in ("b" * 24, "c" * 24):
                self.limits.take_slot("demo", call_id, 2)

    def preview(self, body: bytes) -> dict[str, Any]:
        return self.acceptor.preview("demo", "key", body)

    def post(self, body: bytes) -> Call:
        return self.acceptor.accept("demo", "key", None, body).call

    def receive(self, call_id: str, at: int, slots_item: int | None = None) -> Call:
        """A worker receives the call's message then. The call as it is after that."""
        self.now = at
        asyncio.run(self.dialler().dial(DialMessage(call_id, "demo", at, slots_item)))
        call = self.calls.get(call_id)
        assert call is not None
        return call


def answer(one: Placed, body: bytes) -> dict[str, Any] | RequestRefusedError:
    """The preview's."""
    try:
        return one.preview(body)
    except RequestRefusedError as refused:
        return refused


POLICIES = st.builds(
    Policy,
    name=st.just("default"),
    windows=st.lists(
        st.builds(
            Window,
            days=st.frozensets(st.integers(3, 6), min_size=1),
            start=st.integers(0, 1439),
            end=st.integers(1, 1440),
        ).filter(lambda window: window.start != window.end),
        max_size=2,
    ).map(tuple)
    | st.just(()),
    zone=st.sampled_from(["recipient", "Etc/UTC", "Asia/Tokyo"]),
    holidays=st.frozensets(st.dates(datetime.date(2027, 1, 15), datetime.date(2027, 1, 17)).map(str), max_size=1),
    caps=st.lists(st.builds(Cap, st.integers(1, 3), st.integers(60, 86_400)), max_size=2).map(tuple),
    min_gap_seconds=st.sampled_from([0, 0, 60, 7_200]),
    consent_required=st.sampled_from([False, False, False, True]),
)


@given(
    policy=POLICIES,
    rings=st.lists(st.integers(NOW - DAY, NOW), max_size=3),
    suppressed=st.sampled_from([None, None, None, None, "all", "default", "sales"]),
    stop=st.sampled_from([None, None, "paused", "full"]),
    ahead=st.one_of(st.none(), st.integers(-60_000, 20 * MINUTE), st.integers(0, 3 * DAY)),
    consent=st.booleans(),
    early=st.floats(0, 1, exclude_max=True),
)
def test_what_a_preview_says_becomes_of_the_call(
    policy: Policy,
    rings: list[int],
    suppressed: str | None,
    stop: str | None,
    ahead: int | None,
    consent: bool,
    early: float,
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        one = Placed(monkeypatch)
        one.stand(policy, rings, suppressed, stop)
        fields: dict[str, Any] = {"to": CALL.to, "call_agent_id": "agent-1", "expires_at": iso(NOW + 20 * DAY)}
        if ahead is not None:
            fields["scheduled_at"] = iso(NOW + ahead)
        if consent:
            fields["consent"] = {"basis": "contract", "obtained_at": iso(NOW - DAY)}
        body = json.dumps(fields).encode()
        said = answer(one, body)
        if isinstance(said, RequestRefusedError):
            event(f"refused: {said.code}")
            with pytest.raises(RequestRefusedError) as placed:
                one.post(body)
            assert (placed.value.status, placed.value.errors) == (said.status, said.errors)
            return
        event(f"{said['decision']}: {said['waitingFor']}")
        call = one.post(body)
        assert said["decision"] == ("ring" if said["waitingFor"] is None else "wait")
        if said["earliestRingAt"] is None:
            after = one.receive(call.call_id, NOW)
            if said["decision"] == "ring":
                assert after.status == "in_progress"
                assert after.dialed_at_ms == NOW
                assert [gate["name"] for gate in json.loads(after.events[1]["gates"])] == [
                    gate["name"] for gate in said["gates"][:-3]
                ]
            else:
                # A slot or an operator decides.
                assert (after.status, after.waiting_for) == ("queued", said["waitingFor"])
                assert "dial" not in one.livekit.asked
            return
        earliest = rfc3339_ms(said["earliestRingAt"])
        assert waiting_view(call, NOW) == {
            "waitingFor": said["waitingFor"],
            "earliestRingAt": said["earliestRingAt"],
        }
        if call.in_line:
            assert one.calls.line("demo#single", earliest, 9) == [(call.call_id, call.turn)]
            assert one.calls.line("demo#single", earliest - 1, 9) == []
        # A message that comes before is too early, and may wait for at most 5 s.
        too_early = NOW + int(early * (earliest - NOW))
        before = one.receive(call.call_id, too_early)
        if before.dialed_at_ms is not None:
            assert earliest - too_early <= 5_000
            assert before.dialed_at_ms == earliest
            return
        assert "dial" not in one.livekit.asked
        if stop is not None:
            return
        one.now = earliest
        if before.in_line:
            assert before.turn is not None
            assert one.line.admit_one("demo", 0)
        after = one.receive(call.call_id, earliest, 0)
        assert (after.status, after.dialed_at_ms) == ("in_progress", earliest)


CHANGES: dict[str, Any] = {
    "opt-out": lambda one: one.numbers.suppress("demo", CALL.to, Suppression("all", "asked", NOW), NOW),
    "pause": lambda one: one.limits.pause(NOW),
    "policy": lambda one: one.workspaces.put(
        dataclasses.replace(
            TENANT, policies={"default": Policy("default", zone="Etc/UTC", holidays=frozenset({"2027-01-15"}))}
        )
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_after_a_preview_decides(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    one = Placed(monkeypatch)
    one.stand(Policy("default"), [], None, None)
    body = json.dumps({"to": CALL.to, "call_agent_id": "agent-1"}).encode()
    assert one.preview(body)["decision"] == "ring"
    call = one.post(body)
    CHANGES[change](one)
    one.receive(call.call_id, NOW)
    assert "dial" not in one.livekit.asked
