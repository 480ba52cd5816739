"""The lecture's notation: circles for variables, rounded blocks for functions, squares for costs.

A figure knows how much room it takes (its `node`, for the layout) and how to paint itself with the
left end of its axis at a given point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gradstack._draw.layout import Layout, Node, Wire
from gradstack._draw.model import Block
from gradstack._draw.scene import INK, MUTED, WIRE, Point, Scene, rounded
from gradstack._draw.text import count_text, shape_text, text_width

MARGIN = 18.0
HEADER = 44.0
COST_SIDE = 36.0

_FILLS = {
    "linear": ("#e4effc", "#2b6cb0"),
    "nearest": ("#e4effc", "#2b6cb0"),
    "pointwise": ("#fff4d9", "#b7791f"),
    "softmax": ("#e5f6ec", "#2f855a"),
    "log_softmax": ("#e5f6ec", "#2f855a"),
    "dropout": ("#ffffff", "#8795a6"),
    "opaque": ("#f2e9fc", "#7447a8"),
    "net": ("#e4effc", "#2b6cb0"),
}
_PLAIN = ("#f0f2f5", "#66727f")
COST_COLOR = "#c53030"
OBSERVED = "#cfd6de"
_ORDERED = ("sub", "div", "concat")  # blocks whose inputs cannot change places
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Figure(Protocol):
    """Something that stands in a diagram."""

    node: Node

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw it; `order` says which of its inputs arrives at each port, from the top."""


def spread(count: int, step: float) -> list[float]:
    """Heights of `count` ports around the axis."""
    return [step * (i - (count - 1) / 2) for i in range(count)]


class FunctionFigure:
    """A deterministic function: flat where inputs arrive, rounded where the output leaves.

    Computing it from left to right is easy; the other way round it is not.
    """

    _TITLE, _SMALL = 12.5, 10.0

    def __init__(self, block: Block, label: str) -> None:
        self.block = block
        self.label = label
        ports = len(block.sources)
        self.lettered = ports > 1 and block.kind in _ORDERED
        self.title = block.title
        if self.lettered and block.kind != "concat":
            self.title = f"a {block.title} b"
        self.height = max(44.0 if block.subtitle else 36.0, 16.0 * ports + 10.0)
        self.curve = min(self.height / 2, 20.0)
        texts = [
            text_width(self.title, self._TITLE, bold=True),
            text_width(block.subtitle, self._SMALL),
        ]
        self.hints = [block.weights, count_text(block.count, "parameter")] if block.weights else []
        hint = max((18.0 + text_width(h, self._SMALL) for h in self.hints), default=0.0)
        body = max(texts) + 20.0 + self.curve / 2 + (10.0 if self.lettered else 0.0)
        self.width = max(44.0, body)
        self.stub = text_width(label, self._SMALL) + 12.0 if label else 0.0
        room = max(self.width + self.stub, hint)
        below = self.height / 2 + (6.0 + 13.0 * len(self.hints) if self.hints else 0.0)
        self.node = Node(
            block.name, room, self.height / 2, below, block.sources, spread(ports, 16.0)
        )

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw the block with its left side at `at`."""
        x, y = at
        block, half = self.block, self.height / 2
        scene.open("block", block.tooltip, name=block.name, kind=block.kind)
        if self.node.width > self.width:
            scene.line((x + self.width, y), (x + self.node.width, y), stroke=WIRE, stroke_width=1.5)
        paint_function(scene, at, (self.width, self.height), self.curve, block.kind)
        middle = x + (self.width - self.curve / 3 + (8.0 if self.lettered else 0.0)) / 2
        base = y + (0.0 if block.subtitle else 4.5)
        scene.text(middle, base, self.title, self._TITLE, font_weight="bold")
        if block.subtitle:
            scene.text(middle, y + 14.0, block.subtitle, self._SMALL, fill=MUTED)
        if self.lettered:
            for port, slot in zip(self.node.ports, order, strict=True):
                scene.text(x + 4.0, y + port + 3.0, _LETTERS[slot % 26], 9.0, "start", MUTED)
        if self.label:
            scene.text(x + self.width + 5.0, y - 5.0, self.label, self._SMALL, "start", MUTED)
        if self.hints:
            self._paint_hint(scene, x, y + half)
        scene.close()

    def _paint_hint(self, scene: Scene, x: float, bottom: float) -> None:
        """The parameters, an implicit input: a small circle below the block."""
        center = (x + 9.0, bottom + 11.0)
        scene.line((center[0], bottom), center, stroke=WIRE)
        fill = OBSERVED if self.block.frozen else "white"
        scene.circle(*center, 4.0, fill=fill, stroke=INK, stroke_width=1.2)
        for i, hint in enumerate(self.hints):
            scene.text(x + 18.0, bottom + 15.0 + 13.0 * i, hint, self._SMALL, "start", MUTED)


def paint_function(
    scene: Scene, at: Point, size: tuple[float, float], curve: float, kind: str
) -> None:
    """The outline of a function, its left side centred at `at`."""
    (x, y), (width, height) = at, size
    fill, stroke = _FILLS.get(kind, _PLAIN)
    top, bottom, end = y - height / 2, y + height / 2, x + width - curve
    arc: list[str | float] = ["A", curve, height / 2, 0, 0, 1, end, bottom]
    scene.path(
        *("M", x, top, "L", end, top),
        *arc,
        *("L", x, bottom, "Z"),
        fill=fill,
        stroke=stroke,
        stroke_width=1.5,
        stroke_dasharray="4 3" if kind == "dropout" else None,
    )


class VariableFigure:
    """A circle: shaded when the variable is observed, double when it is discrete."""

    SIZE, _SMALL, _RADIUS = 13.0, 10.0, 17.0

    def __init__(
        self,
        key: str,
        symbol: str,
        sources: Sequence[str] = (),
        shape: tuple[int, ...] | None = None,
        observed: bool = False,
        discrete: bool = False,
        tooltip: str = "",
    ) -> None:
        self.symbol = symbol
        self.observed = observed
        self.discrete = discrete
        self.tooltip = tooltip or symbol
        self.label = "" if shape is None else shape_text(shape)
        width = text_width(symbol, self.SIZE)
        self.inside = width <= 2 * self._RADIUS - 9.0
        stub = text_width(self.label, self._SMALL) + 12.0 if self.label else 0.0
        room = 2 * self._RADIUS + stub
        below = self._RADIUS
        if not self.inside:
            room = max(room, width)
            below += 17.0
        self.node = Node(key, room, self._RADIUS, below, sources, [0.0] * len(sources))

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw the circle with its left end at `at`."""
        x, y = at
        r = self._RADIUS
        kind = "observed variable" if self.observed else "variable"
        scene.open(kind, self.tooltip, name=self.node.key)
        if self.label:
            end = (x + self.node.width, y)
            scene.line((x + 2 * r, y), end, stroke=WIRE, stroke_width=1.5)
            scene.text(x + 2 * r + 5.0, y - 5.0, self.label, self._SMALL, "start", MUTED)
        fill = OBSERVED if self.observed else "white"
        scene.circle(x + r, y, r, fill=fill, stroke=INK, stroke_width=1.5)
        if self.discrete:
            scene.circle(x + r, y, r - 3.5, fill="none", stroke=INK, stroke_width=1.2)
        if self.inside:
            scene.text(x + r, y + 4.5, self.symbol, self.SIZE, font_style="italic")
        else:
            low = y + r + 13.0
            scene.text(x, low, self.symbol, self.SIZE, "start", font_style="italic")
        scene.close()


class CostFigure:
    """A square; its scalar output is implicit."""

    def __init__(self, key: str, name: str, sources: Sequence[str], tooltip: str) -> None:
        self.name = name
        self.tooltip = tooltip
        room = max(COST_SIDE, text_width(name, 10.0))
        half = COST_SIDE / 2
        self.node = Node(key, room, half, half + 17.0, sources, spread(len(sources), 18.0))

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw the square with its left side centred at `at`."""
        scene.open("cost", self.tooltip, name=self.node.key)
        paint_cost(scene, at, self.name)
        scene.close()


def paint_cost(scene: Scene, at: Point, name: str) -> None:
    """The square of a cost, its left side centred at `at`, and its name below."""
    x, y = at
    half = COST_SIDE / 2
    scene.rect(
        x, y - half, COST_SIDE, COST_SIDE, fill="#fde8e6", stroke=COST_COLOR, stroke_width=1.5
    )
    scene.text(x + half, y + 5.0, "C", 14.0, font_style="italic")
    scene.text(x, y + half + 13.0, name, 10.0, "start", MUTED)


def output_symbols(count: int) -> list[str]:
    """Names of the outputs: ȳ, or ȳ₁, ȳ₂, ..."""
    if count == 1:
        return ["ȳ"]
    digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return [f"ȳ{str(i + 1).translate(digits)}" for i in range(count)]


def paint_wire(scene: Scene, wire: Wire) -> None:
    """A wire, with an arrowhead where it arrives at a node."""
    points = list(wire.points)
    tip = points[-1]
    arrives = wire.target is not None
    if arrives:
        points[-1] = (tip[0] - 5.0, tip[1])
    scene.open("wire", source=wire.source, target=wire.target or "")
    style = {"fill": "none", "stroke": WIRE, "stroke_width": 1.5, "stroke_linecap": "round"}
    if wire.smooth:
        start, a, b = points
        middle = (a[0] + b[0]) / 2
        bend = () if a[1] == b[1] else ("C", middle, a[1], middle, b[1])
        scene.path("M", *start, "L", *a, *(bend or ("L",)), *b, **style)
    else:
        scene.path(*rounded(points, 8.0), **style)
    if arrives:
        scene.arrow(tip)
    scene.close()


def paint_all(
    figures: Sequence[Figure],
    layout: Layout,
    title: str,
    summary: str,
    wires: Callable[[Scene], None] | None = None,
) -> tuple[str, float, float]:
    """Paint figures where the layout puts them: (SVG, width, height).

    `wires` paints what connects them, by default wires with arrowheads.
    """
    scene = Scene()
    total = max(
        layout.width + 2 * MARGIN,
        2 * MARGIN + max(text_width(title, 14.0, bold=True), text_width(summary, 10.5)),
    )
    height = layout.height + HEADER + 2 * MARGIN
    scene.open("header")
    scene.text(MARGIN, MARGIN + 12.0, title, 14.0, "start", font_weight="bold")
    scene.text(MARGIN, MARGIN + 28.0, summary, 10.5, "start", MUTED)
    scene.close()
    layout.move(MARGIN, MARGIN + HEADER)
    if wires is not None:
        wires(scene)
    else:
        for wire in layout.wires:
            paint_wire(scene, wire)
    for figure in figures:
        key = figure.node.key
        figure.paint(scene, layout.at[key], layout.port_order.get(key, []))
    return scene.svg(total, height, f"{title}: {summary}"), total, height
