"""Metrics are lines that CloudWatch reads: each whole, however many threads write."""

from __future__ import annotations

import io
import json
import sys

import pytest

from shared.telemetry import count, measure


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
