"""What a call costs and what gives way first: `python -m bench.capacity`; with `--write` into docs/capacity.md.

A calculation, not a measurement: from the counts of bench/one_call.toml, which a test takes, and from the prices,
quotas and assumptions of docs/prices.toml, which a reader may edit.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "capacity.md"
RATES = (1, 100, 1_000, 10_000)
DUE_SHARDS = 16
MINUTES_A_MONTH = 30 * 24 * 60
BEGIN, END = "<!-- computed by bench/capacity.py -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a bill. amount: how many of what AWS counts. dollars: for all of them."""

    service: str
    what: str
    amount: float
    dollars: float


@dataclass(frozen=True, slots=True)
class Limit:
    """demand: what one call a second takes of it. rate: calls a second at which it is used up."""

    name: str
    what: str
    limit: float
    demand: float
    raise_by: str

    @property
    def rate(self) -> float:
        return self.limit / self.demand


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    """The counts, and the prices with quotas and assumptions."""
    counts = tomllib.loads((ROOT / "bench" / "one_call.toml").read_text())
    return counts, tomllib.loads((ROOT / "docs" / "prices.toml").read_text())


def gb_seconds(counts: Mapping[str, Any], assumed: Mapping[str, float]) -> float:
    """Of one call's invocations."""
    dialling: float = assumed["dial_seconds"] / assumed["phones_per_process"]
    return assumed["memory_gb"] * (short_seconds(counts, assumed) + dialling)


def short_seconds(counts: Mapping[str, Any], assumed: Mapping[str, float]) -> float:
    """Of one call's processes but the one that dials."""
    invocations: Mapping[str, int] = counts["invocations"]
    return sum(
        times * assumed[f"{function}_ms"] / 1000
        for function, times in invocations.items()
        if function != "dial_worker"
    )


def call_bill(counts: Mapping[str, Any], table: Mapping[str, Any]) -> list[Line]:
    """One call: accepted, answered, ended, with its webhooks."""
    price, assumed = table["price"], table["assumed"]
    invocations = sum(counts["invocations"].values())
    api = 1 + counts["invocations"]["livekit_events"]
    sends = sum(
        times
        for operations in counts["requests"].values()
        for name, times in operations.items()
        if name.startswith("SendMessage")
    )
    # Each message is received and deleted by Lambda, one at a time when calls are rare.
    messages = counts["invocations"]["dial_worker"] + counts["invocations"]["deliver"]
    sqs = sends + 2 * messages
    writes = sum(counts["write_units"].values())
    logged = counts["logged_kilobytes"] * 1000 + invocations * assumed["lambda_log_bytes"]
    out = counts["webhooks"] * assumed["webhook_bytes"]
    seconds = gb_seconds(counts, assumed)
    return [
        Line("API Gateway", "requests: the POST, LiveKit's events", api, api * price["api_request"]),
        Line("Lambda", "invocations", invocations, invocations * price["lambda_request"]),
        Line("Lambda", "GB-seconds, nearly all of them ringing", seconds, seconds * price["lambda_gb_second"]),
        Line("DynamoDB", "write units", writes, writes * price["write_unit"]),
        Line("DynamoDB", "read units", counts["read_units"], counts["read_units"] * price["read_unit"]),
        Line("SQS", "requests", sqs, sqs * (price["sqs_request"] + price["sqs_fair_surcharge"])),
        Line("CloudWatch", "kilobytes of logs", logged / 1000, logged / 1e9 * price["log_gb"]),
        Line("X-Ray", "traces", invocations * assumed["traced"], invocations * assumed["traced"] * price["trace"]),
        Line("Data out", "kilobytes of webhooks", out / 1000, out / 1e9 * price["out_gb"]),
    ]


def idle_bill(table: Mapping[str, Any]) -> list[Line]:
    """A month without a call."""
    price, assumed = table["price"], table["assumed"]
    alarms = _alarm_metrics()
    runs = MINUTES_A_MONTH
    polls = 2 * assumed["polls_per_queue_minute"] * MINUTES_A_MONTH
    # Each shard's empty page, and the switch.
    reads = runs * (DUE_SHARDS * 0.5 + 1)
    seconds = runs * assumed["reconcile_calls_ms"] / 1000 * assumed["memory_gb"]
    logged = runs * (assumed["lambda_log_bytes"] + 500)
    return [
        Line("CloudWatch", "metrics of alarms", alarms, alarms * price["alarm_metric_month"]),
        Line("CloudWatch", "custom metrics that an idle stack sends", 1, price["metric_month"]),
        Line("CloudWatch", "megabytes of logs", logged / 1e6, logged / 1e9 * price["log_gb"]),
        Line("SQS", "requests of Lambda's pollers", polls, polls * price["sqs_request"]),
        Line("Secrets Manager", "secret", 1, price["secret_month"]),
        Line("Lambda", "GB-seconds of the reconciler", seconds, seconds * price["lambda_gb_second"]),
        Line("Lambda", "invocations of the reconciler", runs, runs * price["lambda_request"]),
        Line("X-Ray", "traces of the reconciler", runs, runs * price["trace"]),
        Line("DynamoDB", "read units of the reconciler", reads, reads * price["read_unit"]),
    ]


def _alarm_metrics() -> int:
    """AWS bills an alarm by the metrics it looks at."""
    template = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())
    alarms = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    return sum(len([m for m in alarm.get("Metrics", [alarm]) if "Expression" not in m]) for alarm in alarms)


def demands(counts: Mapping[str, Any], assumed: Mapping[str, float]) -> dict[str, float]:
    """What one call a second takes of each thing, once calls are so many that ten phones share a process."""
    events = counts["invocations"]["livekit_events"]
    return {
        "calls": 1,
        "livekit": sum(counts["livekit_requests"].values()),
        "ringing": assumed["dial_seconds"],
        "posting": counts["webhooks"] * assumed["deliver_ms"] / 1000,
        "events": events,
        "api": 1 + events,
        "processes": assumed["dial_seconds"] / 10 + short_seconds(counts, assumed),
        "table_writes": counts["write_units"]["CallsTable"],
        "due_writes": counts["write_units"]["due"],
        # Once when the message is taken, once more before the fence.
        "switch_reads": 2,
        "live": assumed["talk_seconds"],
        "slots": assumed["dial_seconds"] + assumed["talk_seconds"],
    }


def limits(counts: Mapping[str, Any], table: Mapping[str, Any]) -> list[Limit]:
    """Every limit, the first to give way first."""
    takes = demands(counts, table["assumed"])
    found = [
        Limit(name.replace("-", " "), quota["what"], quota["limit"], takes[quota["demand"]], quota["raise_by"])
        for name, quota in table["quota"].items()
    ]
    return sorted(found, key=lambda limit: limit.rate)


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def computed(counts: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """The part of docs/capacity.md that follows from the two files."""
    call, idle = call_bill(counts, table), idle_bill(table)
    requests = sum(sum(operations.values()) for operations in counts["requests"].values())
    total = sum(line.dollars for line in call)
    full = {**table, "assumed": {**table["assumed"], "phones_per_process": 10}}
    shared = sum(line.dollars for line in call_bill(counts, full))
    listed = ", ".join(f"{name} {sum(ops.values())}" for name, ops in counts["requests"].items())
    at_rates = limits(counts, table)
    return "\n\n".join(
        [
            "### One call",
            f"Accepted, answered and ended, with {counts['webhooks']} webhooks: **{requests} requests to AWS** "
            f"({listed}), {sum(counts['invocations'].values())} invocations, "
            f"{sum(counts['write_units'].values())} write units, "
            f"{sum(counts['livekit_requests'].values())} requests to LiveKit. "
            f"**${total * 1000:.2f} for 1,000 calls** when calls are rare, **${shared * 1000:.2f}** when ten "
            "phones ring in one process.",
            _bill(call, 1000, "1,000 calls"),
            "### A month without a call",
            f"**${sum(line.dollars for line in idle):.2f}**, before free tiers.",
            _bill(idle, 1, "a month"),
            "### What gives way first",
            _table(
                ("at calls a second", "what", "its limit", "is", "to raise it"),
                [(_number(one.rate), one.name, _number(one.limit), one.what, one.raise_by) for one in at_rates],
            ),
            _table(
                ("calls a second", "AWS, a month of it", "what has to be raised before"),
                [
                    (
                        f"{rate:,}",
                        f"${rate * 30 * 86400 * (shared if rate > 1 else total):,.0f}",
                        ", ".join(one.name for one in at_rates if one.rate < rate) or "nothing",
                    )
                    for rate in RATES
                ],
            ),
        ]
    )


def _bill(lines: Sequence[Line], times: int, heading: str) -> str:
    ordered = sorted(lines, key=lambda line: -line.dollars)
    rows = [(one.service, one.what, _number(one.amount * times), f"${one.dollars * times:.4f}") for one in ordered]
    return _table(("AWS", "what", heading, "$"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def with_computed(page: str, text: str) -> str:
    """The page with its computed part replaced. Raises ValueError when it has none."""
    before, after = page.split(BEGIN)[0], page.split(END)[1] if END in page else None
    if BEGIN not in page or after is None:
        raise ValueError(f"no part between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    text = computed(*load())
    if list(arguments) == ["--write"]:
        PAGE.write_text(with_computed(PAGE.read_text(), text))
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
