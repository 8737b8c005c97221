"""The built artifact, and a Python that runs it."""

from __future__ import annotations

import sys
from pathlib import Path

from infra.finish_build import find_runtime_python, is_of_this_machine

ROOT = Path(__file__).parents[1]
BUILDS = ("build-x86_64", "build")


def built_artifact() -> tuple[str, Path] | None:
    """The runtime's Python and the artifact's folder; None, with a message, when one of them does not run here."""
    python = find_runtime_python()
    if python is None:
        print("No Python of the runtime's version here: cold starts cannot be measured.", file=sys.stderr)
        return None
    folder = artifact_folder()
    if folder is not None and not is_of_this_machine(folder):
        print(f"{folder} is not for this machine's processor: run `make build ARCH=...`.", file=sys.stderr)
        return None
    return None if folder is None else (python, folder)


def artifact_folder() -> Path | None:
    """The folder of the functions' last build; None, with a message, without one."""
    for build in BUILDS:
        for requirements in sorted((ROOT / ".aws-sam" / build).glob("*/requirements.txt")):
            return requirements.parent
    print("Nothing is built: run `make build ARCH=x86_64` (or arm64) first.", file=sys.stderr)
    return None
