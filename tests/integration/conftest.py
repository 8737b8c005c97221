"""One system for all integration tests; as new for each."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest

from shared.telemetry import logger
from tests.system import System

E164 = re.compile(r"\+\d{7,15}")


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the functions and their libraries have logged in this test, as CloudWatch would get it.

    None of it has a whole phone number, whatever the test is about, but for changes of suppressions: the table is
    rebuilt from these.
    """
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logger.registered_formatter)
    loggers = (logging.getLogger(logger.name), logging.getLogger())
    for each in loggers:
        each.addHandler(handler)
    yield written
    for each in loggers:
        each.removeHandler(handler)
    lines = [line for line in written.getvalue().splitlines() if '"message":"suppression changed"' not in line]
    assert E164.findall("\n".join(lines)) == []


@pytest.fixture
def system(whole_system: System, logged: io.StringIO) -> System:
    whole_system.reset()
    return whole_system
