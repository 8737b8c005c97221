"""The environment of all schedules."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from shared.telemetry import logger
from tests.fault_schedules.account import Environment

os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "test")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Ringonce")


@pytest.fixture(scope="module")
def environment() -> Iterator[Environment]:
    # What processes log that are made to fail is of no interest, and takes a third of the time.
    level = logger.log_level
    logger.setLevel("CRITICAL")
    made = Environment()
    # Each schedule makes and drops a hundred thousand objects, none of them in a circle that would grow.
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    yield made
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    made.close()
    logger.setLevel(level)
