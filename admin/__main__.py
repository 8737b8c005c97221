"""Entry point of `.venv/bin/admin` (installed by `make setup`), `python -m admin` and `python admin`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# `python admin` puts this folder itself first in the path, where its modules could shadow others.
sys.path[:] = [str(ROOT), str(ROOT / "functions"), *(path for path in sys.path if path != str(ROOT / "admin"))]


def run() -> int:
    try:
        from admin.command import main
    except ModuleNotFoundError as exc:
        print(
            f"admin: the package {exc.name} is missing: run `make setup`, then .venv/bin/admin",
            file=sys.stderr,
        )
        return 1
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
