"""Metrics are lines that CloudWatch parses: concurrent threads do not mix them."""

from __future__ import annotations

import io
import json
import sys

import pytest

from shared.telemetry import count, masked, measure


class Writes(io.StringIO):
    """A process's output, write by write: another thread's may come between any two."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[str] = []

    def write(self, text: str) -> int:
        self.each.append(text)
        return len(text)


def test_a_metric_is_written_at_once_and_with_the_end_of_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Writes()
    monkeypatch.setattr(sys, "stdout", output)
    count("CallsEnded", status="busy")
    measure("DialDelay", 74)
    ended, delay = output.each
    assert (json.loads(ended)["CallsEnded"], json.loads(ended)["status"]) == ([1], "busy")
    assert json.loads(delay)["DialDelay"] == [74]
    assert all(text.endswith("}\n") and text.count("\n") == 1 for text in output.each)


def test_a_point_is_of_one_metric_with_its_unit_and_only_the_dimensions_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Writes()
    monkeypatch.setattr(sys, "stdout", output)
    count("CallsAccepted")
    count("WebhookAttempts", 3, result="2xx")
    measure("DialDelay", 74)
    told = []
    for text in output.each:
        [metrics] = json.loads(text)["_aws"]["CloudWatchMetrics"]
        [metric] = metrics["Metrics"]
        told.append((metric["Name"], metric["Unit"], json.loads(text)[metric["Name"]], metrics["Dimensions"]))
    assert told == [
        ("CallsAccepted", "Count", [1], [[]]),
        ("WebhookAttempts", "Count", [3], [["result"]]),
        ("DialDelay", "Milliseconds", [74], [[]]),
    ]


@pytest.mark.parametrize(
    ("number", "shown"),
    [("+12025550123", "+12*******23"), ("+442071838750", "+44********50"), ("+123456", "+12**56")],
)
def test_a_number_can_be_recognised_and_not_called(number: str, shown: str) -> None:
    assert masked(number) == shown
