"""How the benches show and keep what they measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure. aim: the most it should be. least: the least it should be."""

    what: str
    value: float
    unit: str
    aim: float | None = None
    least: float | None = None

    @property
    def met(self) -> bool:
        return (self.aim is None or self.value <= self.aim) and (self.least is None or self.value >= self.least)

    def row(self) -> tuple[str, str, str]:
        bounds = [
            f"{sign} {bound:g}" for sign, bound in (("<=", self.aim), (">=", self.least)) if bound is not None
        ]
        aim = " ".join([*bounds, "PASS" if self.met else "FAIL"]) if bounds else ""
        return self.what, f"{self.value:.{2 if self.value < 10 else 1}f} {self.unit}".rstrip(), aim


def report(bench: str, figures: Sequence[Figure]) -> None:
    """Prints the figures as a table, and puts them in place of the bench's last ones in `results.json`."""
    rows = [(bench, "measured", "aim"), *(figure.row() for figure in figures)]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    for what, value, aim in rows:
        print(f"{what:<{widths[0]}}  {value:>{widths[1]}}  {aim:>{widths[2]}}".rstrip())
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[bench] = {figure.what: {"value": round(figure.value, 3), "unit": figure.unit} for figure in figures}
    RESULTS.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
