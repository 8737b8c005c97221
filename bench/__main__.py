"""`make bench`: the figures of docs/performance.md. `python -m bench cold webhooks` takes some of them, and
`python -m bench line.slot` a section of `line`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))


def main(names: list[str]) -> None:
    from bench import cold, dial, line, optouts, reconcile, size, throughput, warm, webhooks

    benches = {
        "size": size.main,
        "cold": cold.main,
        "warm": warm.main,
        "dial": dial.main,
        "webhooks": webhooks.main,
        "reconcile": reconcile.main,
        "throughput": throughput.main,
        "line": line.main,
        "optouts": optouts.main,
    }
    sections = {f"line.{name}": section for name, section in line.SECTIONS.items()}
    for name in names or benches:
        (benches | sections)[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
