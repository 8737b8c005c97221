"""Callees who opt out at random moments while they are being called: 2,000 calls on the local stack.

After an opt-out has been answered, no call to that number is fenced; a phone may ring after the answer only if its
call was fenced before it. BENCH_CALLS sets another number of calls.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bench.table import Figure, report

CALLS = int(os.environ.get("BENCH_CALLS", "2000"))
OPT_OUTS = CALLS * 3 // 20


def main() -> None:
    from tests.e2e.client import Client
    from tests.e2e.launch import launched
    from tests.e2e.opt_outs import opt_out_at_random

    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state") as running,
        Client(running.info()) as client,
    ):
        client.make_room()
        faults = {"talkSeconds": 0.5, "ringSeconds": 0.3, "agentJoinSeconds": 0.1}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        seen = opt_out_at_random(client, CALLS, OPT_OUTS, seed=1)
    for one in sorted(seen.rung, key=lambda one: one.rung_ms - one.answered_ms):
        print(one)
    figures = [
        Figure("calls", seen.calls, ""),
        Figure("opt-outs", seen.opt_outs, ""),
        Figure("rang before the opt-out's answer", seen.early, ""),
        Figure("ended as suppressed", seen.suppressed, ""),
        Figure("rang after the answer, fenced before it", len(seen.rung) - len(seen.fenced_after), ""),
        Figure("... longest after it", max((one.rung_ms - one.answered_ms for one in seen.rung), default=0), "ms"),
        *(Figure(what, number, "", aim=0) for what, number in seen.wrong().items()),
    ]
    report("optouts", figures)
