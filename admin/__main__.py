"""`.venv/bin/admin`, `python -m admin` and `python admin`: all the same.

`make setup` installs this checkout into .venv: its folder and functions/ are on that Python's import path
(`dev-mode-dirs` in pyproject.toml).
"""

from __future__ import annotations

import sys


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
