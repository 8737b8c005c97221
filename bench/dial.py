"""How long it takes from a warm POST until LiveKit is asked to ring, on the local stack."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

CALLS = 50


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        launched(Path(folder) / "state") as running,
        Client(running.info()) as client,
    ):
        client.livekit.put("/_standin/faults", json={"agentJoinSeconds": 0.0}).raise_for_status()
        taken = []
        for n in range(CALLS + 3):
            number = f"+1555030{n:04d}"
            started = time.time() * 1000
            call_id = client.place(number)
            eventually(lambda number=number: client.rings(number), "the phone rings", 30)  # type: ignore[misc]
            [placed] = client.livekit.get("/_standin/calls", params={"number": number}).json()["calls"]
            taken.append(placed["atMs"] - started)
            client.api.post(f"/v1/api/call/{call_id}/cancel").raise_for_status()
        # The first ones find processes that have not served a call yet.
        print(f"POST to CreateSIPParticipant, median of {CALLS}: {statistics.median(taken[3:]):.0f} ms")
