"""`make simulate`, `python -m simulate`: a campaign in virtual time. Exit code 1 when a promise is broken."""

from __future__ import annotations

import argparse
import os
import sys
import time

from simulate.campaign import simulate
from simulate.report import report

# The order of sets must not differ between two runs of a seed.
HASH_SEED = "PYTHONHASHSEED"


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulate", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--days", type=float, default=3)
    parser.add_argument("--seed", default="1", help="draws the same campaign and the same faults again")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, at most one a deployment"
    )
    options = parser.parse_args(arguments)
    if options.calls < 1 or options.workers < 1 or not 0 < options.days <= 30:
        parser.error("--calls and --workers must be at least 1, --days more than 0 and at most 30")
    return options


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    began = time.monotonic()
    result = simulate(options.calls, options.days, options.seed, options.workers)
    print(report(result, options.days, options.seed, time.monotonic() - began))
    return 0 if result.holds else 1


if __name__ == "__main__":
    os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "simulate")
    if os.environ.get(HASH_SEED) != "0":
        os.environ[HASH_SEED] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulate", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
