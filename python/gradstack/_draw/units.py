"""Small nets unit by unit: units are circles, weights coloured lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._draw.diagram import Diagram
from gradstack._draw.figures import HEADER, MARGIN, OBSERVED, output_symbols, paint_all
from gradstack._draw.heat import color_of
from gradstack._draw.layout import Layout, Node, arrange
from gradstack._draw.model import Block, Model
from gradstack._draw.scene import INK, MUTED, WIRE, Point, Scene
from gradstack._draw.text import number_text, shape_text, text_width
from gradstack.nn.module import Module

MOST_UNITS = 40  # of one variable
MOST_LINES = 4000
_RADIUS = 9.0
_PITCH = 25.0
_COLUMN = 64.0
_LINE = 13.0
_STRAND = 3.0  # between the lines of a bundle that passes a layer
_SMALL = 10.0
_ONE_TO_ONE = ("pointwise", "add", "sub", "mul", "div", "reshape", "dropout")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Links:
    """How the units of one variable feed those of another: (out, in) weights.

    Weights are of a linear block, or None for wires that only hand values on.
    """

    source: str
    pairs: Array  # (n, 2): unit of the target, unit of the source
    weights: Array | None


class UnitsFigure:
    """One variable: a column of units. Its label stands below all columns, where no line runs."""

    def __init__(
        self,
        key: str,
        size: int,
        label: Sequence[str],
        links: Sequence[Links],
        observed: bool,
        tooltip: str,
    ) -> None:
        self.size = size
        self.label = label
        self.links = links
        self.observed = observed
        self.tooltip = tooltip
        tall = _PITCH * (size - 1) / 2 + _RADIUS
        room = max(_COLUMN, *(text_width(t, _SMALL) for t in label))
        self.node = Node(
            key,
            room,
            tall,
            tall,
            [link.source for link in links],
            [0.0] * len(links),
            lane=_STRAND * (size - 1) + 6.0,
        )

    def unit(self, at: Point, i: int) -> Point:
        """Centre of a unit, for a column whose left end is at `at`."""
        return at[0] + _RADIUS, at[1] + _PITCH * (i - (self.size - 1) / 2)

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw the column with its left end at `at`."""
        scene.open("units", self.tooltip, name=self.node.key)
        fill = OBSERVED if self.observed else "white"
        for i in range(self.size):
            x, y = self.unit(at, i)
            scene.circle(x, y, _RADIUS, fill=fill, stroke=INK, stroke_width=1.3)
        scene.close()


def draw_units(net: Module, model: Model) -> Diagram:
    """Every unit and every weight of a small net.

    Raises
    ------
    ValueError
        A variable has more than `MOST_UNITS` units, or there are more than `MOST_LINES` lines.
    """
    for name, shape in model.shapes.items():
        if math.prod(shape) > MOST_UNITS:
            raise ValueError(
                f"view='units' shows up to {MOST_UNITS} units a variable, {name!r} has "
                f"{math.prod(shape)}: use view='blocks'"
            )
    figures = _figures(net, model)
    lines = sum(len(link.pairs) for figure in figures for link in figure.links)
    if lines > MOST_LINES:
        raise ValueError(
            f"view='units' shows up to {MOST_LINES} lines, this net has {lines}: use view='blocks'"
        )
    weights = [link.weights for f in figures for link in f.links if link.weights is not None]
    largest = max((float(np.abs(w).max(initial=0)) for w in weights), default=0.0)
    summary = model.summary
    if largest:
        summary += f"; weights from {number_text(-largest)} (red) to {number_text(largest)} (blue)"

    layout = arrange([f.node for f in figures], math.inf)  # bundles do not turn around corners
    columns: dict[float, list[UnitsFigure]] = {}
    for figure in sorted(figures, key=lambda f: layout.at[f.node.key][1]):
        columns.setdefault(layout.at[figure.node.key][0], []).append(figure)
    bottom = layout.height + 20.0
    layout.height += 8.0 + _LINE * max(sum(len(f.label) for f in c) for c in columns.values())

    def paint_wires(scene: Scene) -> None:
        _paint_links(scene, layout, figures, largest)
        for x, column in columns.items():
            texts = [(text, k) for figure in column for k, text in enumerate(figure.label)]
            for line, (text, k) in enumerate(texts):
                y = MARGIN + HEADER + bottom + _LINE * line
                scene.text(MARGIN + x, y, text, _SMALL, "start", MUTED if k else INK)

    svg, w, h = paint_all(figures, layout, model.name, summary, paint_wires)
    return Diagram(svg, w, h)


def _figures(net: Module, model: Model) -> list[UnitsFigure]:
    parameters = {name: np.asarray(p, np.float64) for name, p in net.named_parameters()}
    stages = {stage["name"]: stage for stage in model.stages}
    shapes = model.shapes
    users: dict[str, list[Block]] = {}
    for block in model.blocks:
        for source in block.sources:
            users.setdefault(source, []).append(block)
    figures = [
        UnitsFigure(name, math.prod(shape), [name, shape_text(shape)], [], True, name)
        for name, shape in model.inputs
    ]
    merged: dict[str, str] = {}  # linear block -> the pointwise block drawn in the same column
    symbols = dict(zip(model.outputs, output_symbols(len(model.outputs)), strict=True))
    for block in model.blocks:
        follower = users.get(block.name, [])
        alone = len(follower) == 1 and block.name not in symbols
        if block.kind == "linear" and alone and follower[0].kind == "pointwise":
            merged[follower[0].name] = block.name
            continue
        first = next((b for b in model.blocks if b.name == merged.get(block.name)), block)
        titles = [b.title for b in dict.fromkeys((first, block))]
        label = [" + ".join(titles), shape_text(block.shape)]
        if block.name in symbols:
            label.insert(0, symbols[block.name])
        links = [
            _links(stages[first.name], source, slot, math.prod(shapes[source]), parameters, model)
            for slot, source in enumerate(first.sources)
        ]
        size = math.prod(block.shape)
        figures.append(UnitsFigure(block.name, size, label, links, False, block.tooltip))
    return figures


def _links(
    stage: dict[str, Any],
    source: str,
    slot: int,
    n: int,
    parameters: dict[str, Array],
    model: Model,
) -> Links:
    """The lines from one input of a stage to its output."""
    out = math.prod(stage["shape"])
    kind = stage["kind"]
    if kind == "linear":
        weight = parameters[stage["weight"]]
        mask = stage["mask"]
        there = np.ones(weight.shape, bool) if mask is None else np.reshape(mask, weight.shape)
        pairs = np.argwhere(there)
        return Links(source, pairs, weight[there])
    units = np.arange(n)
    if kind == "slice":
        units = units[stage["begin"] : stage["end"]]
        return Links(source, np.stack([np.arange(out), units], 1), None)
    if kind == "concat":
        shapes = model.shapes
        before = sum(math.prod(shapes[s]) for s in stage["inputs"][:slot])
        return Links(source, np.stack([units + before, units], 1), None)
    if kind in _ONE_TO_ONE:
        return Links(source, np.stack([units, units], 1), None)
    # Softmax, the nearest prototype, blocks in Python: every unit depends on every other one.
    return Links(source, np.argwhere(np.ones((out, n), bool)), None)


def _paint_links(
    scene: Scene, layout: Layout, figures: Sequence[UnitsFigure], largest: float
) -> None:
    by_key = {figure.node.key: figure for figure in figures}
    at = layout.at
    for figure in figures:
        key = figure.node.key
        for link in figure.links:
            route = layout.lanes_between(link.source, key)
            scene.open("wire", source=link.source, target=key)
            source = by_key[link.source]
            order: Sequence[int] = range(len(link.pairs))
            if link.weights is not None:
                # Strong weights are painted last, on top.
                order = np.argsort(np.abs(link.weights)).tolist()
            for k in order:
                i, j = link.pairs[k]
                (x0, y0), (x1, y1) = source.unit(at[link.source], j), figure.unit(at[key], i)
                # From rim to rim: a steep line must not cut the neighbours of its ends.
                start, end = (x0 + _RADIUS, y0), (x1 - _RADIUS, y1)
                offset = _STRAND * (j - (source.size - 1) / 2)
                points = [start, *((x, y + offset) for x, y in route), end]
                style = _line_style(None if link.weights is None else link.weights[k], largest)
                scene.path(*_polyline(points), fill="none", **style)
            scene.close()


def _polyline(points: Sequence[Point]) -> list[str | float]:
    commands: list[str | float] = ["M", *points[0]]
    for point in points[1:]:
        commands += ["L", *point]
    return commands


def _line_style(weight: float | None, largest: float) -> dict[str, object]:
    if weight is None:
        return {"stroke": WIRE, "stroke_width": 0.8, "stroke_opacity": 0.45}
    share = abs(weight) / largest if largest else 0.0
    return {
        "stroke": color_of(math.copysign(0.35 + 0.65 * share, weight)),
        "stroke_width": 0.4 + 2.6 * share,
        "stroke_opacity": 0.35 + 0.65 * share,
    }
