"""`.venv/bin/admin`, which `make setup` installs, `python -m admin` and `python admin`: all the same."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Started as a folder, this folder itself is in the first place, where its modules could hide others.
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
