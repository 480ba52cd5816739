"""A backprop run as the block diagram with its values: z, dC/dz, w and dC/dw of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack._draw.blocks import COST, TARGET, subscript, takes_labels
from gradstack._draw.diagram import Diagram
from gradstack._draw.figures import (
    COST_COLOR,
    CostFigure,
    Figure,
    FunctionFigure,
    VariableFigure,
    paint_all,
)
from gradstack._draw.heat import coarsen, paint_heat, strength
from gradstack._draw.layout import arrange
from gradstack._draw.model import Block, Model, read_model
from gradstack._draw.scene import INK, MUTED, WIRE, Point, Scene
from gradstack._draw.text import count_text, number_text, text_width

if TYPE_CHECKING:
    from gradstack._backprop import Backprop, Stage

Array = npt.NDArray[Any]

_FEW = 4  # so many values are written as numbers
_LABEL, _MAP = 46.0, 92.0  # widths of a panel's two columns
_MOST_LABELS = 8
_SMALL = 9.5
_ROWS, _COLUMNS = 14, 28  # most cells of a map


@dataclass(frozen=True)
class Entry:
    """One line of a panel: a name and the values of a variable, samples as rows."""

    name: str
    values: Array  # (rows, columns)
    extra: Array | None = None  # one more column, apart: the biases
    gradient: bool = False
    labels: bool = False  # classes have no magnitude: written, never coloured

    @property
    def few(self) -> bool:
        """Whether numbers say it better than a map."""
        return self.labels or (self.values.size <= _FEW and self.extra is None)

    @property
    def map_height(self) -> float:
        """Height of the map."""
        return min(44.0, max(9.0, 4.0 * min(len(self.values), _ROWS)))

    @property
    def height(self) -> float:
        """Height of the map and its caption, or of the numbers."""
        return 15.0 if self.few else self.map_height + 17.0

    @property
    def caption(self) -> str:
        """The numbers, where they are few, otherwise norm and range of all of them."""
        if self.few:
            flat = self.values.ravel()
            shown = [number_text(float(v)) for v in flat[:_MOST_LABELS]]
            return ", ".join(shown) + (", …" if len(flat) > _MOST_LABELS else "")
        both = self.values.ravel()
        if self.extra is not None:
            both = np.concatenate([both, self.extra.ravel()])
        wide = both.astype(np.float64)
        low, high = number_text(float(wide.min())), number_text(float(wide.max()))
        return f"‖·‖ {number_text(float(np.linalg.norm(wide)))}, {low}…{high}"

    def paint(self, scene: Scene, x: float, y: float) -> None:
        """Draw it with the upper left corner at (x, y)."""
        color = COST_COLOR if self.gradient else INK
        scene.text(x, y + 9.0, self.name, _SMALL, "start", color, font_style="italic")
        left = x + _LABEL
        if self.few:
            scene.text(left, y + 9.0, self.caption, _SMALL, "start")
            return
        largest = strength(self.values, self.extra)
        width = _MAP if self.extra is None else _MAP - 10.0
        height = self.map_height
        paint_heat(scene, left, y, width, height, coarsen(self.values, _ROWS, _COLUMNS), largest)
        if self.extra is not None:
            column = coarsen(self.extra, _ROWS, 1)
            paint_heat(scene, left + width + 3.0, y, 7.0, height, column, largest)
        scene.text(left, y + height + 11.0, self.caption, _SMALL, "start", MUTED)


class Panel:
    """A figure of the plain diagram with values below it."""

    def __init__(self, figure: Figure, entries: Sequence[Entry]) -> None:
        self.figure = figure
        self.entries = entries
        inner = figure.node
        room = max((_LABEL + text_width(e.caption, _SMALL) for e in entries), default=0.0)
        if not all(e.few for e in entries):
            room = max(room, _LABEL + _MAP)
        self.node = replace(
            inner,
            width=max(inner.width, room),
            below=inner.below + sum(e.height for e in entries) + (8.0 if entries else 0.0),
        )

    def paint(self, scene: Scene, at: Point, order: Sequence[int]) -> None:
        """Draw the figure and its values with the left end of the axis at `at`."""
        x, y = at
        end = x + self.figure.node.width
        if self.node.width > self.figure.node.width and not isinstance(self.figure, CostFigure):
            scene.line((end, y), (x + self.node.width, y), stroke=WIRE, stroke_width=1.5)
        self.figure.paint(scene, at, order)
        low = y + self.figure.node.below + 8.0
        scene.open("values", name=self.node.key)
        for entry in self.entries:
            entry.paint(scene, x, low)
            low += entry.height
        scene.close()


def draw_trace(trace: Backprop, width: float) -> Diagram:
    """The diagram of a backprop run."""
    origin = trace._origin
    model = read_model(origin.net, origin.compiled)
    batch = 1 if origin.single else len(trace.ybar)
    figures = _figures(trace, model, batch)
    layout = arrange([f.node for f in figures], width)
    title = f"{model.name}, backpropagation"
    samples = "one sample" if origin.single else f"average over {count_text(batch, 'sample')}"
    if origin.per_sample:
        samples = f"{count_text(batch, 'sample')}, gradients of each"
    summary = f"loss {number_text(trace.loss)}, {samples}; values blue above zero, red below"
    svg, w, h = paint_all(figures, layout, title, summary)
    return Diagram(svg, w, h)


def _figures(trace: Backprop, model: Model, batch: int) -> list[Figure]:
    blocks = {block.name: block for block in model.blocks}
    gradients: dict[str, Array] = {}
    values: dict[str, Array] = {}
    for stage in trace.stages:
        zs = stage.z if isinstance(stage.z, tuple) else (stage.z,)
        dzs = stage.dz if isinstance(stage.dz, tuple) else (stage.dz,)
        for name, z, dz in zip(stage.inputs, zs, dzs, strict=True):
            values[name], gradients[name] = z.reshape(batch, -1), dz.reshape(batch, -1)
    figures: list[Figure] = []
    for name, shape in model.inputs:
        circle = VariableFigure(name, name, shape=shape, observed=True)
        figures.append(Panel(circle, _variable(name, name, values, gradients)))
    carrier: dict[str, str] = {}
    last = trace.stages[-1].name
    for count, stage in enumerate(trace.stages, 1):
        block = replace(
            blocks[stage.name],
            sources=tuple(carrier.get(s, s) for s in stage.inputs),
            weights="",
        )
        figures.append(Panel(FunctionFigure(block, ""), _parameters(stage, blocks[stage.name])))
        key = carrier[stage.name] = f"variable {stage.name}"
        final = stage.name == last
        symbol = "ȳ" if final else f"z{subscript(count)}"
        values[stage.name] = stage.out.reshape(batch, -1)
        if final:
            gradients[stage.name] = trace.dybar.reshape(batch, -1)
        label = None if final else block.shape
        circle = VariableFigure(key, symbol, [stage.name], label, tooltip=f"out of {stage.name}")
        figures.append(Panel(circle, _variable(symbol, stage.name, values, gradients)))
    return figures + _cost(trace, carrier[last])


def _variable(
    symbol: str, name: str, values: dict[str, Array], gradients: dict[str, Array]
) -> list[Entry]:
    if name not in values:  # an input that nothing depends on
        return []
    if text_width(f"dC/d{symbol}", _SMALL) > _LABEL:
        symbol = "z"
    return [
        Entry(symbol, values[name]),
        Entry(f"dC/d{symbol}", gradients[name], gradient=True),
    ]


def _parameters(stage: Stage, block: Block) -> list[Entry]:
    """w and dC/dw, the weight as a matrix with the biases as a column beside it."""
    if not stage.w.size:
        return []
    entries = []
    for name, flat in (("w", stage.w), ("dC/dw", stage.dw)):
        gradient = name != "w"
        if flat.ndim == 2 or block.kind != "linear":  # per sample: one row each
            entries.append(Entry(name, np.atleast_2d(flat), gradient=gradient))
            continue
        out = block.shape[0]
        inputs = (flat.size - out * block.biased) // out
        weight, bias = flat[: out * inputs].reshape(out, inputs), flat[out * inputs :]
        extra = bias.reshape(out, 1) if bias.size else None
        entries.append(Entry(name, weight, extra, gradient=gradient))
    return entries


def _cost(trace: Backprop, output: str) -> list[Figure]:
    cost, target = trace._origin.cost, trace._origin.target
    figures: list[Figure] = []
    sources = [output]
    if target is not None:
        sources.append(TARGET)
        rows = target.reshape(len(target), -1)
        labels = target.ndim == 1
        circle = VariableFigure(
            TARGET, "y", observed=True, discrete=labels and takes_labels(cost), tooltip="y"
        )
        figures.append(Panel(circle, [Entry("y", rows, labels=labels)]))
    square = CostFigure(COST, type(cost).__name__, sources, repr(cost))
    figures.append(Panel(square, [Entry("C", np.array([[trace.loss]]))]))
    return figures
