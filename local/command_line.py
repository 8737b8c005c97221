"""What the commands `python -m local.*` have in common: errors of one line, and the types of their options."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn
from urllib.parse import urlsplit


class CommandLine(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def port(text: str) -> int:
    """A TCP port, or 0 for any free one. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A duration in seconds. Raises ArgumentTypeError when it is negative or no number."""
    number = _finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, as {text} is")
    return number


def positive(text: str) -> float:
    """A number above zero. Raises ArgumentTypeError."""
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def http_url(text: str) -> str:
    """An address of http or https with a host. Raises ArgumentTypeError."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"must be an address such as http://127.0.0.1:9000, not {text!r}")
    return text


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return number
