"""The folders and programs of this checkout that the local stack uses."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = ROOT / "functions"
# The functions' third-party packages, installed by `make setup`.
PACKAGES = ROOT / ".local" / "packages"
# On the PYTHONPATH of every process of the stack: Python imports its `sitecustomize.py` at their start.
PROCESS_HOOKS = ROOT / "local" / "process_hooks"
AWS_PYTHON = ROOT / ".venv-aws" / "bin" / "python"
