"""CONTRIBUTING.md and SECURITY.md name files, tests and commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "SECURITY.md")
FOLDERS = "admin|bench|docs|events|examples|functions|infra|local|simulate|tests"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*", (ROOT / page).read_text())
    assert named
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_make_that_is_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"(?<![\w/])test_\w+(?!\w*\.py)", (ROOT / "CONTRIBUTING.md").read_text()))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named
    assert named <= written
