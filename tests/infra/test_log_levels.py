"""At every LogLevel the metrics and the errors reach CloudWatch, and no library's own lines do.

The rule is AWS's (Lambda's guide, "Log-level filtering"): with the log format JSON, Lambda drops lines below
ApplicationLogLevel (INFO unless set); a line whose `level` is missing or unknown, or whose `timestamp` is no
RFC 3339 time, counts as INFO. With the format Text nothing is dropped. With JSON the runtime is given the level
too (AWS_LAMBDA_LOG_LEVEL): the root logger gets it, and Powertools takes it in place of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.template_for_emulator import translate

ROOT = Path(__file__).parents[2]
LEVELS: list[str] = yaml_parse((ROOT / "template.yaml").read_text())["Parameters"]["LogLevel"]["AllowedValues"]
AWS_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")

# A function's process: the root logger as the runtime sets it up (awslambdaric, `_setup_logging`), then its own.
PROCESS = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")
if os.environ.get("AWS_LAMBDA_LOG_LEVEL"):
    logging.getLogger().setLevel({"TRACE": "DEBUG", "WARN": "WARNING", "FATAL": "CRITICAL"}.get(
        os.environ["AWS_LAMBDA_LOG_LEVEL"], os.environ["AWS_LAMBDA_LOG_LEVEL"]))
from shared.telemetry import count, logger, measure
logging.getLogger("botocore.endpoint").debug("a library's line: the request with its secret")
logging.getLogger("httpx").info("a library's line: POST https://callback")
for level in ("debug", "info", "warning", "error"):
    getattr(logger, level)(level)
try:
    raise ValueError("why")
except ValueError:
    logger.exception("trace")
count("CallsEnded", status="busy")
measure("DialDelay", 74)
"""
# What the runtime writes of an error that no handler caught: with the format Text, and older ones with JSON.
UNCAUGHT = ("[ERROR] ValueError: why", '{"log_level": "ERROR", "errorMessage": "why", "errorType": "ValueError"}')


def kept(line: str, logging: dict[str, str]) -> bool:
    """Whether Lambda passes the line on to CloudWatch."""
    if logging["LogFormat"] == "Text":
        return True
    try:
        entry = json.loads(line)
    except ValueError:
        entry = {}
    level = {"WARNING": "WARN", "CRITICAL": "FATAL"}.get(str(entry.get("level")), str(entry.get("level")).upper())
    if level not in AWS_LEVELS or not RFC_3339.fullmatch(str(entry.get("timestamp"))):
        level = "INFO"
    return AWS_LEVELS.index(level) >= AWS_LEVELS.index(logging.get("ApplicationLogLevel", "INFO"))


def with_level(value: Any, level: str) -> Any:
    return json.loads(json.dumps(value).replace(json.dumps({"Ref": "LogLevel"}), json.dumps(level)))


@pytest.fixture(scope="module")
def configurations() -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        resources = translate(ROOT / "template.yaml", "s3://bucket/key")["Resources"]
    return [r["Properties"] for r in resources.values() if r["Type"] == "AWS::Lambda::Function"]


def lines_of(configuration: dict[str, Any]) -> list[str]:
    """Of a function's process under this configuration, the lines that reach CloudWatch."""
    logging, variables = configuration["LoggingConfig"], configuration["Environment"]["Variables"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "functions"),
        "POWERTOOLS_METRICS_NAMESPACE": "Ringonce/test",
        "POWERTOOLS_SERVICE_NAME": variables["POWERTOOLS_SERVICE_NAME"],
        "POWERTOOLS_LOG_LEVEL": variables["POWERTOOLS_LOG_LEVEL"],
    }
    if logging["LogFormat"] == "JSON":
        environment["AWS_LAMBDA_LOG_LEVEL"] = logging.get("ApplicationLogLevel", "INFO")
    process = [sys.executable, "-W", "ignore", "-c", PROCESS]
    done = subprocess.run(process, env=environment, capture_output=True, text=True, check=True)
    return [line for line in [*done.stdout.splitlines(), *UNCAUGHT] if kept(line, logging)]


@pytest.fixture(scope="module", params=LEVELS)
def lines(request: pytest.FixtureRequest, configurations: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """A LogLevel, and the lines of a function at it. All functions are configured alike."""
    level: str = request.param
    configured = [with_level(configuration, level) for configuration in configurations]
    alike = [
        ({**one["LoggingConfig"], "LogGroup": ""}, one["Environment"]["Variables"]["POWERTOOLS_LOG_LEVEL"])
        for one in configured
    ]
    assert all(one == alike[0] for one in alike)
    return level, lines_of(configured[0])


def test_every_metric_is_passed_on(lines: tuple[str, list[str]]) -> None:
    found = [json.loads(line) for line in lines[1] if '"_aws"' in line]
    assert [entry.get("CallsEnded") or entry.get("DialDelay") for entry in found] == [[1], [74]]


def test_every_error_is_passed_on(lines: tuple[str, list[str]]) -> None:
    text = "\n".join(lines[1])
    assert '"message":"error"' in text
    assert '"message":"trace"' in text
    assert text.count("why") >= 3
    for line in UNCAUGHT:
        assert line in lines[1]


def test_the_functions_own_lines_are_those_of_the_level_and_above(lines: tuple[str, list[str]]) -> None:
    level, written = lines
    own = [json.loads(line)["message"] for line in written if line.startswith('{"level":')]
    every = ["debug", "info", "warning", "error", "trace"]
    assert own == every[LEVELS.index(level) :]
    assert LEVELS == ["DEBUG", "INFO", "WARN", "ERROR"]


def test_no_librarys_line_is_written_at_any_level(lines: tuple[str, list[str]]) -> None:
    """They show what is sent: numbers, keys, LiveKit's secret."""
    assert [line for line in lines[1] if "a library's line" in line] == []


def test_the_time_of_a_line_is_one_that_aws_reads(lines: tuple[str, list[str]]) -> None:
    times = [json.loads(line)["timestamp"] for line in lines[1] if line.startswith('{"level":')]
    assert times
    assert all(RFC_3339.fullmatch(time) for time in times), times


def test_every_value_is_one_that_lambda_takes_for_a_level() -> None:
    assert set(LEVELS) <= set(AWS_LEVELS)
