"""Log lines and metrics: one of each per outcome, as JSON, `call_id` in every line, phone numbers masked."""

from __future__ import annotations

import json
import sys

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import AmazonCloudWatchEMFProvider

# RFC 3339, the format that AWS parses as a line's time.
logger = Logger(utc=True, use_rfc3339=True)


def count(metric: str, value: int = 1, **dimensions: str) -> None:
    """One data point of a CloudWatch metric (embedded metric format: a log line, no request).

    Every combination of dimensions is billed as a metric: pass few, with few values. `infra/monitoring.yaml` has a
    graph or an alarm for every metric.
    """
    _point(metric, MetricUnit.Count, value, dimensions)


def measure(metric: str, milliseconds: int) -> None:
    """One data point of a duration, written as by `count`; CloudWatch computes percentiles."""
    _point(metric, MetricUnit.Milliseconds, milliseconds, {})


def _point(metric: str, unit: MetricUnit, value: int, dimensions: dict[str, str]) -> None:
    # Without `service=""` each function would have a separately billed metric of the same name.
    point = AmazonCloudWatchEMFProvider(service="")
    point.add_metric(metric, unit, value)
    for name, text in dimensions.items():
        point.add_dimension(name, text)
    # One write with the line's end: `print` makes two, and concurrent threads' lines would mix.
    sys.stdout.write(json.dumps(point.serialize_metric_set(), separators=(",", ":")) + "\n")


def masked(number: str) -> str:
    """`+12025550123` as `+12*******23`: recognisable, but not dialable."""
    return number[:3] + "*" * (len(number) - 5) + number[-2:]
