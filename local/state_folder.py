"""The folder of a local stack: its logs, its lock and its addresses and keys (`stack.json`).

The operator's command reads it too (`admin --local`), on any system: this module needs no POSIX.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local.paths import ROOT


def state_folder(default: str = ".local") -> Path:
    """The folder in RINGONCE_LOCAL_DIR, else `default`; relative to the checkout."""
    return (ROOT / os.environ.get("RINGONCE_LOCAL_DIR", default)).resolve()


def write_info(state: Path, info: Mapping[str, Any]) -> None:
    """Writes `stack.json` in one step: other programs read it as soon as it exists."""
    (state / "stack.json.new").write_text(json.dumps(info))
    (state / "stack.json.new").replace(state / "stack.json")


def read_info(state: Path) -> dict[str, Any]:
    """The content of `stack.json`. Raises FileNotFoundError when no stack runs, OSError or ValueError when the
    file cannot be read."""
    info: dict[str, Any] = json.loads((state / "stack.json").read_text())
    return info


def clear(state: Path) -> None:
    """Removes the files of a stack except its logs, which the next stack removes. The caller holds the lock."""
    for folder in state.glob("tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("stack.json", "stack.json.new", "sam-env.json", "sam-template.yaml"):
        (state / name).unlink(missing_ok=True)


def temporary_folder(state: Path) -> Path:
    """The temporary folder of this process's stack. Each stack has its own, because the emulator of a killed stack
    removes its folder late."""
    return state / f"tmp-{os.getpid()}"
