"""Log lines and metrics: one of each per outcome, JSON, `call_id` on every line, phone numbers masked."""

from __future__ import annotations

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import MetricUnit, single_metric

logger = Logger(utc=True)


def count(metric: str, value: int = 1, **dimensions: str) -> None:
    """One data point of a CloudWatch metric (embedded metric format: a log line, no request).

    Every combination of dimensions is a metric that costs money: pass few, with few values.
    """
    with single_metric(name=metric, unit=MetricUnit.Count, value=value) as point:
        for name, text in dimensions.items():
            point.add_dimension(name=name, value=text)


def masked(number: str) -> str:
    """`+12025550123` as `+12*******23`: enough to recognise, not enough to call."""
    return number[:3] + "*" * (len(number) - 5) + number[-2:]
