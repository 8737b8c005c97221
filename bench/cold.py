"""The cost of a process before its first request, compared with boto3's own (the floor).

Each handler is imported, with its clients made, in a new process of the runtime's own Python out of the built
artifact; so are boto3 and the same clients without anything else. They take turns, as the machine may be busy with
other things. CPU time is what is compared: a neighbour's load changes it least.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.artifact import built_artifact
from bench.table import Figure, report
from infra.finish_build import HANDLERS_ENVIRONMENT

ROUNDS = 11

# Module and clients of each function, and the most it should take of its floor.
HANDLERS: dict[str, tuple[str, tuple[str, ...], float | None]] = {
    "initiate_call": ("initiate_call.handler", ("dynamodb", "sqs"), 1.6),
    "dial_worker": ("dial_worker.handler", ("dynamodb", "sqs", "secretsmanager"), 1.6),
    "livekit_events": ("livekit_events.handler", ("dynamodb", "secretsmanager"), 1.3),
    "fan_out": ("webhook_dispatch.fan_out_handler", ("dynamodb", "sqs"), 1.2),
    "deliver": ("webhook_dispatch.deliver_handler", ("dynamodb", "sqs"), None),
    "reconcile_calls": ("reconcile_calls.handler", ("dynamodb", "sqs", "secretsmanager"), None),
    "calls_api": ("calls_api.handler", ("dynamodb", "sqs", "secretsmanager"), 1.6),
}
MEMORY_MB = 110

# The process's own peak: a child's ru_maxrss begins with that of its parent.
PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def main() -> None:
    built = built_artifact()
    if built is None:
        return
    python, artifact = built
    floors = {clients: _floor(clients) for _, clients, _ in HANDLERS.values()}
    programs = {"python alone": "pass"} | {f"boto3: {', '.join(names)}": code for names, code in floors.items()}
    programs |= {name: f"import {module}" for name, (module, _, _) in HANDLERS.items()}
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, code in programs.items():
            runs[name].append(_run(python, artifact, code))
    cpu, wall, peak = (
        {name: statistics.median(run[n] for run in done) for name, done in runs.items()} for n in range(3)
    )
    figures = []
    for name in programs:
        figures += [Figure(f"{name}: CPU", cpu[name], "ms"), Figure(f"{name}: elapsed", wall[name], "ms")]
    for name, (_, clients, aim) in HANDLERS.items():
        floor = f"boto3: {', '.join(clients)}"
        # In alternation, so that other load on the machine affects both alike.
        ratio = statistics.median(own[0] / other[0] for own, other in zip(runs[name], runs[floor], strict=True))
        figures += [
            Figure(f"{name}: CPU of its floor's", ratio, "x", aim),
            Figure(f"{name}: elapsed of its floor's", wall[name] / wall[floor], "x"),
            Figure(f"{name}: peak memory", peak[name], "MB", MEMORY_MB),
        ]
    report("cold start", figures)


def _floor(clients: tuple[str, ...]) -> str:
    made = "; ".join(f"boto3.client({name!r}, config=config)" for name in clients)
    return f"import boto3; from botocore.config import Config; config = Config(connect_timeout=2); {made}"


def _run(python: str, artifact: Path, code: str) -> tuple[float, float, float]:
    """CPU and elapsed milliseconds of one process, and its peak in MB."""
    began = time.perf_counter()
    with subprocess.Popen(
        [python, "-c", f"{code}\n{PEAK}"],
        env={"PYTHONPATH": str(artifact), "PATH": os.environ["PATH"], **HANDLERS_ENVIRONMENT},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        peak = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    elapsed = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{code!r} ended with {process.returncode}")
    return 1000 * (usage.ru_utime + usage.ru_stime), 1000 * elapsed, int(peak) / 1024
