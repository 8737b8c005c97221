"""The folder in which a local stack keeps its logs, its lock and what it says of itself (`stack.json`).

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
    """The folder that RINGONCE_LOCAL_DIR names, from the checkout; `default` without it."""
    return (ROOT / os.environ.get("RINGONCE_LOCAL_DIR", default)).resolve()


def write_info(state: Path, info: Mapping[str, Any]) -> None:
    """Writes what users are told of a running stack. Whole or not at all: it is read as soon as it is there."""
    (state / "stack.json.new").write_text(json.dumps(info))
    (state / "stack.json.new").replace(state / "stack.json")


def read_info(state: Path) -> dict[str, Any]:
    """What the running stack wrote. Raises FileNotFoundError when none runs, OSError or ValueError when the file
    cannot be read."""
    info: dict[str, Any] = json.loads((state / "stack.json").read_text())
    return info


def clear(state: Path) -> None:
    """Removes what a stack leaves for itself; the logs stay until the next one starts. For who holds the lock."""
    for folder in state.glob("tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("stack.json", "stack.json.new", "sam-env.json", "sam-template.yaml"):
        (state / name).unlink(missing_ok=True)


def temporary_folder(state: Path) -> Path:
    """This stack's own: the emulator of one that was killed removes its folder when it comes to notice."""
    return state / f"tmp-{os.getpid()}"
