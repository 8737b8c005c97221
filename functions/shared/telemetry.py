"""Log lines and metrics: one of each per outcome, JSON, `call_id` on every line, phone numbers masked."""

from __future__ import annotations

import json
import sys

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import AmazonCloudWatchEMFProvider

# RFC 3339, which is what AWS reads as the time of a line.
logger = Logger(utc=True, use_rfc3339=True)


def count(metric: str, value: int = 1, **dimensions: str) -> None:
    """One data point of a CloudWatch metric (embedded metric format: a log line, no request).

    Every combination of dimensions is a metric that costs money: pass few, with few values.
    `infra/monitoring.yaml` shows every metric or alarms on it.
    """
    _point(metric, MetricUnit.Count, value, dimensions)


def measure(metric: str, milliseconds: int) -> None:
    """One duration, as `count` does; CloudWatch makes percentiles of them."""
    _point(metric, MetricUnit.Milliseconds, milliseconds, {})


def _point(metric: str, unit: MetricUnit, value: int, dimensions: dict[str, str]) -> None:
    # Without `service=""` each function would have a metric of its own of the same name, each paid for.
    point = AmazonCloudWatchEMFProvider(service="")
    point.add_metric(metric, unit, value)
    for name, text in dimensions.items():
        point.add_dimension(name, text)
    # With its end in one write: `print` makes two, and two threads' lines would become one that nobody can read.
    sys.stdout.write(json.dumps(point.serialize_metric_set(), separators=(",", ":")) + "\n")


def masked(number: str) -> str:
    """`+12025550123` as `+12*******23`: enough to recognise, not enough to call."""
    return number[:3] + "*" * (len(number) - 5) + number[-2:]
