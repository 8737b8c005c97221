"""No module of the local stack imports itself through others."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def modules(folder: str) -> dict[str, Path]:
    """The modules below a folder of the checkout, by name."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str) -> Iterator[str]:
    """The names that a module imports anywhere in it: in functions and for types alone, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def graph(known: dict[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others. known: sources by name."""
    edges: dict[str, set[str]] = {}
    for name, source in known.items():
        wanted = {full if full in known else full.rpartition(".")[0] for full in imported(source)}
        edges[name] = wanted & known.keys()
    return edges


def test_no_module_of_the_local_stack_imports_itself_through_others() -> None:
    known = {name: path.read_text() for name, path in modules("local").items()}
    assert {"local.stack", "local.livekit.state"} <= known.keys()
    graphlib.TopologicalSorter(graph(known)).prepare()


def test_a_cycle_is_found_at_any_place_of_the_import() -> None:
    """Without this test the other one could pass because it finds no import at all."""
    known = {
        "p.a": "def f():\n    from p import b",
        "p.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.c import C",
        "p.c": "import p.a",
    }
    with pytest.raises(graphlib.CycleError) as caught:
        graphlib.TopologicalSorter(graph(known)).prepare()
    assert set(caught.value.args[1]) == known.keys()
