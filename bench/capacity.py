"""A call's cost and the first limits reached: `python -m bench.capacity`; with `--write` into docs/capacity.md.

A calculation: from the counts of bench/one_call.toml and bench/waiting.toml, which tests take, from template.yaml,
and from the prices, quotas, assumptions and measured figures of docs/prices.toml, which a reader may edit.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "capacity.md"
RATES = (1, 100, 1_000, 10_000)
# Calls per second at which each phone has its own process, and at which ten phones share one.
RARE, FULL = 0.01, 1_000
DUE_SHARDS = 16
# Calls that wait in the example of a backlog.
BACKLOG = 100_000
MINUTES_A_MONTH = 30 * 24 * 60
# Megabytes at which Lambda gives a function one whole processor; below, proportionally less.
MB_OF_A_PROCESSOR = 1769
# Lambda starts to poll a standard queue with so many concurrent batches, and adds so many per minute.
FIRST_BATCHES, BATCHES_A_MINUTE = 5, 300
# A new on-demand table accepts 4,000 write units per second, 1,000 per partition, each with its own stream shard.
SHARDS_OF_A_NEW_TABLE = 4
TEMPLATE = yaml_parse((ROOT / "template.yaml").read_text())
MONITORING: dict[str, dict[str, Any]] = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())["Resources"]
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
    """demand: what one call per second uses of the limit. rate: calls per second at which the limit is reached.
    source: where the limit comes from."""

    name: str
    what: str
    limit: float
    demand: float
    raise_by: str
    source: str

    @property
    def rate(self) -> float:
        return self.limit / self.demand


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    """The counts, with those of a call that waits under `waiting`; and the prices with quotas and assumptions."""
    counts = tomllib.loads((ROOT / "bench" / "one_call.toml").read_text())
    counts["waiting"] = tomllib.loads((ROOT / "bench" / "waiting.toml").read_text())
    return counts, tomllib.loads((ROOT / "docs" / "prices.toml").read_text())


# ── dialling ────────────────────────────────────────────────────────────────────────────────────────


def share_over(table: Mapping[str, Any], seconds: float) -> float:
    """The share of the dials that occupy a process for longer than `seconds`."""
    ringing = seconds - table["assumed"]["dial_setup_seconds"]
    over = 0.0
    for outcome in table["outcome"]:
        least, most = outcome["rings"]
        if ringing < least:
            over += outcome["share"]
        elif ringing < most:
            over += outcome["share"] * (most - ringing) / (most - least)
    return over


def batch_seconds(table: Mapping[str, Any], phones: int) -> float:
    """The average seconds that a batch of `phones` phones lasts: as long as the phone that rings longest."""
    step = 0.05
    steps = int((table["assumed"]["dial_setup_seconds"] + max(one["rings"][1] for one in table["outcome"])) / step)
    return sum(1 - (1 - share_over(table, (n + 0.5) * step)) ** phones for n in range(steps + 1)) * step


def dial_process_seconds(table: Mapping[str, Any], rate: float) -> float:
    """The process seconds that one dial costs at `rate` calls per second.

    While fewer batches run than the limit allows, each message gets its own batch at once. Above that, messages
    wait and batches fill: all processes are busy and share the dials. At rates that full batches cannot handle,
    `MaximumDialBatches` is assumed to be raised as far as necessary.
    """
    most: float = max(table["quota"]["dial-batches"]["limit"], rate * batch_seconds(table, 10) / 10)
    return min(batch_seconds(table, 1), most / rate)


def talking(table: Mapping[str, Any]) -> float:
    """Share of the dials that become a conversation."""
    return float(sum(one["share"] for one in table["outcome"] if one.get("talks")))


def short_seconds(counts: Mapping[str, Any], assumed: Mapping[str, float]) -> float:
    """The process seconds of one call, without the process that dials."""
    invocations: Mapping[str, int] = counts["invocations"]
    return sum(
        times * assumed[f"{function}_ms"] / 1000
        for function, times in invocations.items()
        if function != "dial_worker"
    )


def call_bill(counts: Mapping[str, Any], table: Mapping[str, Any], rate: float) -> list[Line]:
    """One call: accepted, answered and ended, with its webhooks, at `rate` calls per second."""
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
    seconds = assumed["memory_gb"] * (short_seconds(counts, assumed) + dial_process_seconds(table, rate))
    # All of it is kept for the 30 days after the call's end.
    kept = counts["stored_kilobytes"] / 1e6
    return [
        Line("API Gateway", "requests: the POST and LiveKit's events", api, api * price["api_request"]),
        Line("Lambda", "invocations", invocations, invocations * price["lambda_request"]),
        Line(
            "Lambda",
            "GB-seconds, almost all while phones ring",
            seconds,
            seconds * price["lambda_gb_second"],
        ),
        Line("DynamoDB", "write units", writes, writes * price["write_unit"]),
        Line("DynamoDB", "read units", counts["read_units"], counts["read_units"] * price["read_unit"]),
        Line("DynamoDB", "gigabyte-months of storage", kept, kept * price["storage_gb_month"]),
        Line("DynamoDB", "gigabyte-months of point-in-time backups", kept, kept * price["backup_gb_month"]),
        Line("SQS", "requests", sqs, sqs * (price["sqs_request"] + price["sqs_fair_surcharge"])),
        Line("CloudWatch", "kilobytes of logs", logged / 1000, logged / 1e9 * price["log_gb"]),
        Line("X-Ray", "traces", invocations * assumed["traced"], invocations * assumed["traced"] * price["trace"]),
        Line("Data out", "kilobytes of webhooks", out / 1000, out / 1e9 * price["out_gb"]),
    ]


def waiting_dollars(counts: Mapping[str, Any], table: Mapping[str, Any]) -> float:
    """What a call costs on top when it waits in the line, however long, without its storage meanwhile."""
    price, assumed, more = table["price"], table["assumed"], counts["waiting"]
    invocations: Mapping[str, int] = more["invocations"]
    seconds = sum(
        times * assumed["queue_ms" if name == "dial_worker" else f"{name}_ms"] / 1000
        for name, times in invocations.items()
    )
    started = sum(invocations.values())
    # One message: sent, received, deleted.
    return float(
        sum(more["write_units"].values()) * price["write_unit"]
        + more["read_units"] * price["read_unit"]
        + started * (price["lambda_request"] + assumed["traced"] * price["trace"])
        + seconds * assumed["memory_gb"] * price["lambda_gb_second"]
        + 3 * (price["sqs_request"] + price["sqs_fair_surcharge"])
        + started * assumed["lambda_log_bytes"] / 1e9 * price["log_gb"]
    )


def hour_of_storage(counts: Mapping[str, Any], table: Mapping[str, Any], calls: int) -> float:
    """Dollars for so many calls that are in the line for one hour."""
    price = table["price"]
    gigabytes = calls * counts["waiting"]["stored_kilobytes"] / 1e6
    return float(gigabytes * (price["storage_gb_month"] + price["backup_gb_month"]) * 60 / MINUTES_A_MONTH)


def idle_bill(table: Mapping[str, Any]) -> list[Line]:
    """A month without a call."""
    price, assumed = table["price"], table["assumed"]
    alarms = len(_alarmed())
    ranges = _ranges()
    runs = MINUTES_A_MONTH * ranges
    polls = 2 * assumed["polls_per_queue_minute"] * MINUTES_A_MONTH
    # Each shard's empty page, the switch by each range's run; the workspaces, and the empty line of one.
    reads = MINUTES_A_MONTH * (DUE_SHARDS * 0.5 + ranges + 0.5 + 0.5)
    memory = _function("ReconcileCalls")["MemorySize"] / 1024
    seconds = runs * assumed["reconcile_calls_ms"] / 1000 * memory
    # Of the reconciler alone, for both tables.
    kms = 2 * assumed["kms_requests_hour"] * MINUTES_A_MONTH / 60
    logged = runs * (assumed["lambda_log_bytes"] + 500)
    return [
        Line("CloudWatch", "alarm metrics", alarms, alarms * price["alarm_metric_month"]),
        Line("CloudWatch", "custom metrics of an idle stack", 1, price["metric_month"]),
        Line("CloudWatch", "dashboard", 1, price["dashboard_month"]),
        Line("KMS", "requests for the tables' keys", kms, kms * price["kms_request"]),
        Line("CloudWatch", "megabytes of logs", logged / 1e6, logged / 1e9 * price["log_gb"]),
        Line("SQS", "requests by Lambda's pollers", polls, polls * price["sqs_request"]),
        Line("Secrets Manager", "secret", 1, price["secret_month"]),
        Line("Lambda", "GB-seconds of the reconciler", seconds, seconds * price["lambda_gb_second"]),
        Line("Lambda", "invocations of the reconciler", runs, runs * price["lambda_request"]),
        Line("X-Ray", "traces of the reconciler", runs, runs * price["trace"]),
        Line("DynamoDB", "read units of the reconciler", reads, reads * price["read_unit"]),
    ]


def use_bill(table: Mapping[str, Any]) -> list[Line]:
    """The maximum cost of a month with calls, in addition to the cost of each call."""
    price, assumed = table["price"], table["assumed"]
    metrics = custom_metrics() - 1
    functions = sum(resource["Type"] == "AWS::Serverless::Function" for resource in TEMPLATE["Resources"].values())
    kms = 2 * (functions - 1) * assumed["kms_requests_hour"] * MINUTES_A_MONTH / 60
    return [
        Line(
            "CloudWatch",
            "custom metrics, if all are sent all the time",
            metrics,
            metrics * price["metric_month"],
        ),
        Line("KMS", "requests for the tables' keys", kms, kms * price["kms_request"]),
    ]


def custom_metrics() -> int:
    """Metrics of the functions' own, on the dashboard or in alarms: each once for each value of its dimension."""
    [board] = [r["Properties"] for r in MONITORING.values() if r["Type"] == "AWS::CloudWatch::Dashboard"]
    shown = {
        tuple(part for part in metric[1:] if isinstance(part, str))
        for widget in json.loads(board["DashboardBody"]["Fn::Sub"])["widgets"]
        for metric in widget["properties"].get("metrics", ())
        if metric[0] == "${Namespace}"
    }
    alarmed = {
        (
            metric["MetricName"],
            *(word for one in metric.get("Dimensions", ()) for word in (one["Name"], one["Value"])),
        )
        for metric in _alarmed()
        if metric["Namespace"] == {"Ref": "Namespace"}
    }
    return len(shown | alarmed)


def _alarmed() -> list[dict[str, Any]]:
    """The metrics of all alarms. AWS bills an alarm by the metrics it looks at."""
    alarms = [r["Properties"] for r in MONITORING.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    return [
        metric.get("MetricStat", {}).get("Metric", metric)
        for alarm in alarms
        for metric in alarm.get("Metrics", [alarm])
        if "Expression" not in metric
    ]


def _function(name: str) -> dict[str, Any]:
    """Its properties, with those of all functions."""
    properties: dict[str, Any] = TEMPLATE["Globals"]["Function"] | TEMPLATE["Resources"][name]["Properties"]
    return properties


def _ranges() -> int:
    """The number of reconciler runs per minute."""
    return len(_function("ReconcileCalls")["Events"])


def _processors(function: str) -> float:
    memory: float = _function(function)["MemorySize"]
    return min(1.0, memory / MB_OF_A_PROCESSOR)


def measured_limits(table: Mapping[str, Any]) -> dict[str, float]:
    """Limits that follow from what was measured and from template.yaml, by the name of the quota."""
    sys.path.insert(0, str(ROOT / "functions"))
    from reconcile_calls.reconcile import ROUND_SECONDS

    measured = table["measured"]
    reconciler = _function("ReconcileCalls")
    batches = TEMPLATE["Resources"]["FanOutFromStream"]["Properties"]["ParallelizationFactor"]
    rows = _processors("ReconcileCalls") * 1000 / measured["reconcile_row_ms"]
    records = _processors("FanOut") * 1000 / measured["fan_out_record_ms"]
    return {
        "reconciler": _ranges() * (reconciler["Timeout"] - ROUND_SECONDS) * rows,
        "fan-out": SHARDS_OF_A_NEW_TABLE * batches * records,
    }


def demands(counts: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, float]:
    """The demand of one call per second on each limit, at rates at which ten phones share a process."""
    assumed = table["assumed"]
    events = counts["invocations"]["livekit_events"]
    alone, ten = batch_seconds(table, 1), batch_seconds(table, 10)
    talks = talking(table)
    # The first look 30 s after the answer, then every five minutes.
    looks = talks * (1 + max(0, assumed["talk_seconds"] - 30) // 300) if assumed["talk_seconds"] > 30 else 0
    return {
        "calls": 1,
        "livekit": sum(counts["livekit_requests"].values()),
        "dial_batches": ten / 10,
        # A message is deleted when its whole batch is done.
        "in_flight": ten,
        "posting": counts["webhooks"] * assumed["deliver_ms"] / 1000,
        "events": events,
        "api": 1 + events,
        "processes": ten / 10 + short_seconds(counts, assumed),
        "records": counts["invocations"]["fan_out"],
        "table_writes": counts["write_units"]["CallsTable"],
        "due_writes": counts["write_units"]["due"],
        # Once when the message is taken, once more before the fence.
        "switch_reads": 2,
        # In a minute.
        "looks": 60 * looks,
        "slots": alone + talks * assumed["talk_seconds"],
        # Into the partition of the calls that wait, and out of it.
        "line_writes": 2,
    }


def limits(counts: Mapping[str, Any], table: Mapping[str, Any]) -> list[Limit]:
    """Every limit, the one that is reached first at the front."""
    takes, measured = demands(counts, table), measured_limits(table)
    found = [
        Limit(
            name.replace("-", " "),
            quota["what"],
            measured[name] if name in measured else quota["limit"],
            takes[quota["demand"]],
            quota["raise_by"],
            quota["source"],
        )
        for name, quota in table["quota"].items()
    ]
    return sorted(found, key=lambda limit: limit.rate)


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def computed(counts: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """The part of docs/capacity.md that follows from the two files."""
    call, idle, use = call_bill(counts, table, RARE), idle_bill(table), use_bill(table)
    requests = sum(sum(operations.values()) for operations in counts["requests"].values())
    total, shared = _dollars(call), _dollars(call_bill(counts, table, FULL))
    fixed = _dollars([*idle, *use])
    listed = ", ".join(f"{name} {sum(ops.values())}" for name, ops in counts["requests"].items())
    at_rates = limits(counts, table)
    return "\n\n".join(
        [
            "### One call",
            f"Accepted, answered and ended, with {counts['webhooks']} webhooks: **{requests} requests to AWS** "
            f"({listed}), {sum(counts['invocations'].values())} invocations, "
            f"{sum(counts['write_units'].values())} write units, "
            f"{sum(counts['livekit_requests'].values())} requests to LiveKit. "
            f"**${total * 1000:.2f} for 1,000 calls** if calls are rare, **${shared * 1000:.2f}** if ten phones "
            "share a process.",
            _bill(call, 1000, "1,000 calls"),
            "### A call that waits",
            *_waiting(counts, table),
            "### A month without calls",
            f"An idle stack costs **${_dollars(idle):.2f}** a month, before free tiers.",
            _bill(idle, 1, "a month"),
            f"With calls, a stack costs at most **${_dollars(use):.2f}** more, plus the cost of each call.",
            _bill(use, 1, "a month"),
            "### A batch lasts as long as its slowest phone",
            *_batches(table),
            "### Which limits are reached first",
            _table(
                ("reached at calls per second", "limit", "value", "what is limited", "source", "how to raise it"),
                [
                    (_number(one.rate), one.name, _number(one.limit), one.what, one.source, one.raise_by)
                    for one in at_rates
                ],
            ),
            _table(
                ("calls per second", "AWS cost per month", "limits to raise first"),
                [
                    (
                        f"{rate:,}",
                        f"${fixed + rate * 30 * 86400 * _dollars(call_bill(counts, table, rate)):,.0f}",
                        ", ".join(one.name for one in at_rates if one.rate <= rate) or "nothing",
                    )
                    for rate in RATES
                ],
            ),
        ]
    )


def _waiting(counts: Mapping[str, Any], table: Mapping[str, Any]) -> Iterator[str]:
    sys.path.insert(0, str(ROOT / "functions"))
    from reconcile_calls.reconcile import EXPIRED_PER_SECOND, ROUND_SECONDS
    from shared.slots import MAXIMUM_SLOTS

    price, more = table["price"], counts["waiting"]
    rows = []
    total, added = _dollars(call_bill(counts, table, RARE)), waiting_dollars(counts, table)
    hour = hour_of_storage(counts, table, 1)
    for what, alone, waits in (
        (
            "requests to AWS",
            sum(sum(operations.values()) for operations in counts["requests"].values()),
            sum(more["requests"].values()),
        ),
        ("invocations", sum(counts["invocations"].values()), sum(more["invocations"].values())),
        ("write units", sum(counts["write_units"].values()), sum(more["write_units"].values())),
    ):
        rows.append((what, f"{alone:g}", f"{alone + waits:g}", f"{(alone + waits) / alone:.2f}"))
    rows.append(
        (
            "1,000 calls, the hour's storage included",
            f"${total * 1000:.4f}",
            f"${(total + added + hour) * 1000:.4f}",
            f"{(total + added + hour) / total:.2f}",
        )
    )
    yield (
        "A call that waits in the line is written when it enters it and when it is admitted. In between nothing "
        "reads or writes it, so an hour costs as much as a minute, but for its storage "
        f"(${hour * 1e6:.4f} an hour for a million calls)."
    )
    yield _table(("one call, with its webhooks", "does not wait", "waits an hour", "ratio"), rows)
    backlog = BACKLOG
    minute = more["a_minute"]
    expired_a_minute = EXPIRED_PER_SECOND * DUE_SHARDS * (_function("ReconcileCalls")["Timeout"] - ROUND_SECONDS)
    slot_seconds = demands(counts, table)["slots"]
    looks = 60 * (minute["write_units"] * price["write_unit"] + minute["read_units"] * price["read_unit"])
    expired = more["expired"]
    yield f"A backlog of {backlog:,} calls of one workspace:"
    yield _table(
        ("what", "amount", "$"),
        [
            (
                "entering the line, and being admitted",
                f"{backlog * sum(more['write_units'].values()):,} write units",
                f"{backlog * added:.2f}",
            ),
            (
                "an hour of storage, in the table and its indexes",
                f"{backlog * more['stored_kilobytes'] / 1000:,.0f} MB",
                f"{hour_of_storage(counts, table, backlog):.4f}",
            ),
            (
                "an hour of the reconciler's looks, however many wait (40 slots)",
                f"{60 * minute['requests']:g} requests",
                f"{looks:.6f}",
            ),
            (
                f"all pass their deadline at once: at most {EXPIRED_PER_SECOND * DUE_SHARDS:g} a second, for "
                f"{_function('ReconcileCalls')['Timeout'] - ROUND_SECONDS} s of each minute",
                f"{backlog / expired_a_minute:.1f} minutes, {backlog * expired['write_units']:,} write units",
                f"{backlog * expired['write_units'] * price['write_unit']:.2f}",
            ),
            (
                f"on {MAXIMUM_SLOTS:,} slots, {slot_seconds:.0f} s each; `QueueTtlSeconds` is 1 h by default",
                f"{backlog * slot_seconds / MAXIMUM_SLOTS / 3600:.1f} hours",
                f"{backlog * total:.2f}",
            ),
        ],
    )


def _batches(table: Mapping[str, Any]) -> Iterator[str]:
    most = table["quota"]["dial-batches"]["limit"]
    mix = ", ".join(f"{one['share'] * 100:.0f} % {one['what']}" for one in table["outcome"])
    yield f"Assumed outcomes of dials: {mix}. Their ring times are in prices.toml."
    yield _table(
        (
            "phones in a batch",
            "duration of the batch",
            "process time per dial",
            f"calls per second with {most} batches",
            "calls per second with 50 batches",
        ),
        [
            (str(n), f"{lasts:.1f} s", f"{lasts / n:.1f} s", _number(most * n / lasts), _number(50 * n / lasts))
            for n, lasts in ((n, batch_seconds(table, n)) for n in (1, 2, 5, 10))
        ],
    )
    ramp = 60 * (most - FIRST_BATCHES) / BATCHES_A_MINUTE
    yield (
        f"After an idle period Lambda polls the queue with {FIRST_BATCHES} concurrent batches and adds up to "
        f"{BATCHES_A_MINUTE} per minute: {FIRST_BATCHES * 10} phones ring at once, and all {most} batches run "
        f"after {ramp:.0f} s."
    )


def _dollars(lines: Sequence[Line]) -> float:
    return sum(line.dollars for line in lines)


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
