"""The dashboard of infra/monitoring.yaml without AWS: `python -m local.dashboard [PAGE.html]`.

Draws the same widgets from the metrics in the local stack's logs (`logs/*.log` of the state folder; a function
prints a metric as a line of JSON, in CloudWatch's embedded metric format) into one HTML page. The metrics of AWS
itself (Lambda, SQS, API Gateway, DynamoDB) do not exist here: their lines are marked as such.
"""

from __future__ import annotations

import ast
import html
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samtranslator.yaml_helper import yaml_parse

from local.command_line import CommandLine
from local.paths import ROOT
from local.state_folder import state_folder

# The number of points of a line, for logs of seconds and of hours.
POINTS = 60
# An en dash, as CloudWatch shows it.
NO_VALUE = "\N{EN DASH}"
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")


@dataclass(frozen=True, slots=True)
class Metric:
    """One line or number of a widget. expression: computed from others, by their ids; name is then empty."""

    namespace: str = ""
    name: str = ""
    dimensions: tuple[tuple[str, str], ...] = ()
    expression: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return str(self.options.get("label", self.name))


@dataclass(frozen=True, slots=True)
class Point:
    """at: epoch ms."""

    at: int
    name: str
    value: float
    dimensions: tuple[tuple[str, str], ...]


def dashboard_body() -> dict[str, Any]:
    """The dashboard's body in the template, with its `${...}` not replaced."""
    template = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())
    body = json.loads(template["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])
    assert isinstance(body, dict)
    return body


def metrics_of(widget: Mapping[str, Any]) -> list[Metric]:
    """CloudWatch's rows: [namespace, name, dimension, value, ..., options] or [{"expression": ...}]."""
    found = []
    for row in widget["properties"].get("metrics", []):
        *words, options = row
        if "expression" in options:
            found.append(Metric(expression=options["expression"], options=options))
        else:
            namespace, name, *pairs = words
            dimensions = tuple(zip(pairs[::2], pairs[1::2], strict=True))
            found.append(Metric(namespace, name, dimensions, options=options))
    return found


# ── the functions' metrics ──────────────────────────────────────────────────────────────────────────


def points_in(logs: Path) -> Iterator[Point]:
    """Every data point of every function's log in the folder, unordered.

    Only logs named by logical ids are read: the emulator's own log repeats some of their lines.
    """
    for log in sorted(logs.glob("[A-Z]*.log")):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"_aws"' in line:
                yield from points_of(line)


def points_of(line: str) -> Iterator[Point]:
    """The data points of one line; none when it is not a metric or is incomplete."""
    try:
        entry = json.loads(line)
        at = int(entry["_aws"]["Timestamp"])
        for group in entry["_aws"]["CloudWatchMetrics"]:
            names = sorted(group["Dimensions"][0])
            dimensions = tuple((name, str(entry[name])) for name in names)
            for metric in group["Metrics"]:
                values = entry[metric["Name"]]
                for value in values if isinstance(values, list) else [values]:
                    yield Point(at, metric["Name"], float(value), dimensions)
    except (ValueError, LookupError, TypeError):
        # Two processes wrote at the same time, or the line is incomplete.
        return


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────


def statistic(values: Sequence[float], stat: str) -> float | None:
    """One of CloudWatch's statistics that the dashboard uses. None: no data. Raises ValueError on any other."""
    if not values:
        return None
    if stat.startswith("p"):
        ordered = sorted(values)
        return ordered[max(0, math.ceil(len(ordered) * float(stat[1:]) / 100) - 1)]
    match stat:
        case "Sum":
            return sum(values)
        case "Maximum":
            return max(values)
        case "Average":
            return sum(values) / len(values)
    raise ValueError(f"the statistic {stat} is not known")


_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(expression: str, known: Mapping[str, float | None]) -> float | None:
    """A metric math expression of `+ - * /` and FILL(id, number). None when one of its metrics has no data.

    Raises ValueError on any other expression.
    """

    def value(node: ast.AST) -> float | None:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name) if name in known:
                return known[name]
            case ast.Call(func=ast.Name(id="FILL"), args=[inner, filling]):
                found = value(inner)
                return value(filling) if found is None else found
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                a, b = value(left), value(right)
                return None if a is None or b is None else _OPERATORS[type(op)](a, b)
        raise ValueError(f"{expression!r} is not understood at {ast.dump(node)}")

    return value(ast.parse(expression, mode="eval"))


def values_of(metrics: Sequence[Metric], points: Sequence[Point]) -> list[float | None]:
    """Each metric's value over all of `points`."""
    known: dict[str, float | None] = {}
    found = []
    for metric in metrics:
        if metric.expression:
            value = evaluate(metric.expression, known)
        else:
            wanted = (metric.name, tuple(sorted(metric.dimensions)))
            values = [point.value for point in points if (point.name, point.dimensions) == wanted]
            value = statistic(values, metric.options["stat"])
        if "id" in metric.options:
            known[metric.options["id"]] = value
        found.append(value)
    return found


# ── the page ────────────────────────────────────────────────────────────────────────────────────────

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ margin: 0; padding: 12px; background: #f2f3f3; font: 13px/1.4 system-ui, sans-serif; color: #16191f }}
main {{ display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: 46px; gap: 10px }}
section {{ background: #fff; border: 1px solid #d5dbdb; border-radius: 4px; padding: 8px 12px; overflow: hidden;
  display: flex; flex-direction: column; min-height: 0 }}
h1 {{ font-size: 18px; margin: 0 }} h2 {{ font-size: 14px; margin: 0 0 4px }} p {{ margin: 2px 0; color: #545b64 }}
.numbers {{ display: flex; flex-wrap: wrap; gap: 4px 34px; align-items: center; flex: 1 }}
.numbers b {{ display: block; font-size: 30px; font-weight: 500; line-height: 1.1 }}
.alarms {{ display: flex; flex-wrap: wrap; gap: 5px; align-content: start }}
.alarms span {{ border: 1px solid #aab7b8; border-radius: 3px; padding: 0 7px; color: #545b64 }}
svg {{ flex: 1 1 0; height: 0; min-height: 0; width: 100% }} small {{ color: #545b64 }}
.key {{ display: flex; flex-wrap: wrap; gap: 0 14px }}
.key i {{ display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px }}
.none {{ color: #879596; font-style: italic }}
</style><main>{widgets}</main></html>
"""


def page(body: Mapping[str, Any], points: Sequence[Point], title: str) -> str:
    """The dashboard as HTML."""
    widgets = "".join(
        f'<section style="grid-area: {w["y"] + 1} / {w["x"] + 1} / span {w["height"]} / span {w["width"]}">'
        f"{_widget(w, points)}</section>"
        for w in body["widgets"]
    )
    return _PAGE.format(title=html.escape(title), widgets=widgets)


def _widget(widget: Mapping[str, Any], points: Sequence[Point]) -> str:
    properties = widget["properties"]
    if widget["type"] == "text":
        first, *rest = properties["markdown"].splitlines()
        lines = "".join(f"<p>{html.escape(line.replace('`', ''))}</p>" for line in rest)
        return f"<h1>{html.escape(first.lstrip('# '))}</h1>{lines}"
    heading = f"<h2>{html.escape(properties['title'])}</h2>"
    if widget["type"] == "alarm":
        names = [arn.removeprefix("${").removesuffix("Alarm.Arn}") for arn in properties["alarms"]]
        return heading + f'<div class="alarms">{"".join(f"<span>{html.escape(n)}</span>" for n in names)}</div>'
    metrics = metrics_of(widget)
    here = [metric for metric in metrics if not metric.namespace.startswith("AWS/")]
    if properties["view"] == "singleValue":
        return heading + _numbers(metrics, points)
    foreign = [metric.label for metric in metrics if metric not in here]
    note = f'<p class="none">only on AWS: {html.escape(", ".join(foreign))}</p>' if foreign else ""
    return heading + (_chart(here, points, properties) if here else "") + note


def _numbers(metrics: Sequence[Metric], points: Sequence[Point]) -> str:
    shown = [
        f"<div>{html.escape(metric.label)}<b>{NO_VALUE if value is None else f'{value:,.0f}'}</b></div>"
        for metric, value in zip(metrics, values_of(metrics, points), strict=True)
        if metric.options.get("visible", True)
    ]
    return f'<div class="numbers">{"".join(shown)}</div>'


def _chart(metrics: Sequence[Metric], points: Sequence[Point], properties: Mapping[str, Any]) -> str:
    begin = min((point.at for point in points), default=0)
    step = max(1, (max((point.at for point in points), default=0) - begin) // POINTS + 1)
    columns: list[list[Point]] = [[] for _ in range(POINTS)]
    for point in points:
        columns[min(POINTS - 1, (point.at - begin) // step)].append(point)
    table = [values_of(metrics, column) for column in columns]
    lines = [[row[n] for row in table] for n in range(len(metrics))]
    colours = [m.options.get("color", COLOURS[n % len(COLOURS)]) for n, m in enumerate(metrics)]
    if properties["stacked"]:
        highest = max((sum(value or 0 for value in row) for row in table), default=0)
    else:
        highest = max((value for line in lines for value in line if value is not None), default=0)
    drawn = (_bars if properties["stacked"] else _lines)(lines, colours, highest or 1)
    unit = properties.get("yAxis", {}).get("left", {}).get("label", "")
    svg = f'<svg viewBox="0 0 600 170" preserveAspectRatio="none">{_GRID}{drawn}</svg>'
    label = f"<small>{highest:,.0f} {html.escape(unit)}</small>"
    key = "".join(
        f'<span class="{"" if any(v is not None for v in line) else "none"}">'
        f'<i style="background: {colour}"></i>{html.escape(metric.label)}</span>'
        for metric, line, colour in zip(metrics, lines, colours, strict=True)
    )
    return f'{label}{svg}<div class="key">{key}</div>'


_GRID = "".join(f'<path d="M0 {y}H600" stroke="#eaeded"/>' for y in (1, 57, 113, 169))


def _height(value: float, highest: float) -> float:
    return 168 * value / highest


def _bars(lines: Iterable[Sequence[float | None]], colours: Sequence[str], highest: float) -> str:
    tops = [169.0] * POINTS
    drawn = []
    for line, colour in zip(lines, colours, strict=True):
        for column, value in enumerate(line):
            if value:
                height = _height(value, highest)
                tops[column] -= height
                drawn.append(
                    f'<rect x="{column * 10 + 1}" y="{tops[column]:.1f}" width="8" height="{height:.1f}" '
                    f'fill="{colour}"/>'
                )
    return "".join(drawn)


def _lines(lines: Iterable[Sequence[float | None]], colours: Sequence[str], highest: float) -> str:
    drawn = []
    for line, colour in zip(lines, colours, strict=True):
        places = [
            f"{column * 10 + 5},{169 - _height(value, highest):.1f}"
            for column, value in enumerate(line)
            if value is not None
        ]
        drawn.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2" '
            'vector-effect="non-scaling-stroke"/>'
        )
        # A single point makes no line.
        drawn += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2" fill="{colour}"/>' for p in places]
    return "".join(drawn)


def main(arguments: Sequence[str]) -> int:
    state = state_folder()
    command = CommandLine(prog="python -m local.dashboard", description="The dashboard as one HTML page.")
    command.add_argument(
        "page", nargs="?", type=Path, default=state / "dashboard.html", help="where it is written"
    )
    output: Path = command.parse_args(arguments).page
    points = sorted(points_in(state / "logs"), key=lambda point: point.at)
    if not points:
        print(f"no metrics in {state / 'logs'}: start `make run` and place a call", file=sys.stderr)
        return 1
    drawn = page(dashboard_body(), points, "Ringonce, local stack")
    try:
        output.write_text(drawn)
    except OSError as exc:
        command.error(f"argument page: {output}: {exc.strerror}")
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
