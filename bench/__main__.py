"""`make bench`: the figures that the README tells. `python -m bench dial` or `webhooks` takes one of them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))


def main(names: list[str]) -> None:
    from bench import dial, webhooks

    benches = {"dial": dial.main, "webhooks": webhooks.main}
    for name in names or benches:
        benches[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
