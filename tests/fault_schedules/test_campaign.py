"""A small campaign of the simulation (`make simulate`): it keeps every promise, and with a fault planted in the
product it ends with an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import simulate.__main__ as command
from shared.call_store import CallStore, Fence
from shared.numbers import ring_write
from simulate.campaign import CHECKS, LEFT, UNDELIVERED, UNENDED
from simulate.campaign import simulate as campaign
from simulate.world import Shares
from webhook_dispatch.fan_out import new_events

# Many workers stall right before the fence, and many callees opt out then.
SHARES = Shares(aimed=0.4, processes=0.05)


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, calls: int) -> tuple[int, str]:
    """Exit code and report."""
    monkeypatch.setattr(command, "simulate", functools.partial(campaign, shares=SHARES))
    code = command.main(["--calls", str(calls), "--days", "0.6", "--seed", "7", "--workers", "1"])
    return code, capsys.readouterr().out


def test_a_campaign_keeps_every_promise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, report = run(capsys, monkeypatch, 120)
    assert code == 0, report
    assert report.endswith("All holds.\n")
    assert "120 = 120" in report
    assert max(map(len, report.splitlines())) <= 80


def fence_without_version(*given: Any, **named: Any) -> dict[str, Any]:
    """The fence does not look whether the number was written."""
    written = ring_write(*given, **named)
    for part in written.values():
        part["ConditionExpression"] = "attribute_not_exists(nothing)"
    return written


def fence_of_nothing(calls: CallStore, seen: Any, *given: Any, **named: Any) -> Fence:
    """The fence is taken for written."""
    return Fence(won=True, call=seen)


def without_the_end(change: dict[str, Any]) -> tuple[str, str, range]:
    call_id, workspace_id, sequences = new_events(change)
    return call_id, workspace_id, sequences[:-1] if sequences.stop > 3 else sequences


@pytest.mark.parametrize(
    ("place", "planted", "found"),
    [
        ("dial_worker.dial.ring_write", fence_without_version, "rings fenced after an acknowledged opt-out"),
        ("shared.gates._Hours.of", lambda call, policy: None, "rings outside the callee's calling window"),
        ("shared.gates._frequency_until", lambda policy, rings, at, scale: at, "rings over a cap"),
        ("shared.call_store.CallStore.fence", fence_of_nothing, "calls that rang twice"),
        ("webhook_dispatch.fan_out.new_events", without_the_end, UNDELIVERED),
    ],
)
def test_a_fault_in_the_product_is_found(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    planted: Callable[..., Any],
    found: str,
) -> None:
    assert found in (*CHECKS, UNENDED, UNDELIVERED, LEFT)
    monkeypatch.setattr(place, planted)
    code, report = run(capsys, monkeypatch, 40)
    assert code == 1
    assert found in report.splitlines()[-1], report
