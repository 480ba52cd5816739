"""The block diagram of a net, with or without its cost."""

from __future__ import annotations

from dataclasses import replace

from gradstack._draw.diagram import Diagram
from gradstack._draw.figures import (
    CostFigure,
    Figure,
    FunctionFigure,
    VariableFigure,
    output_symbols,
    paint_all,
)
from gradstack._draw.layout import arrange
from gradstack._draw.model import Model
from gradstack._draw.text import shape_text
from gradstack.nn.cost import Cost, TableCost

COST, TARGET = "cost C", "target y"  # blanks keep them apart from the stages' names


def draw_blocks(model: Model, cost: Cost | None, variables: bool, width: float) -> Diagram:
    """Blocks and wires; with `variables` every z between blocks is a circle too."""
    figures = block_figures(model, variables)
    if cost is not None:
        figures += cost_figures(model, cost)
    layout = arrange([f.node for f in figures], width)
    svg, w, h = paint_all(figures, layout, model.name, model.summary)
    return Diagram(svg, w, h)


def block_figures(model: Model, variables: bool) -> list[Figure]:
    """Inputs, blocks and outputs in topological order."""
    shapes, discrete = model.shapes, model.discrete
    figures: list[Figure] = [
        VariableFigure(name, name, shape=shape, observed=True, tooltip=_tip(name, shape))
        for name, shape in model.inputs
    ]
    used = {source for block in model.blocks for source in block.sources}
    carrier: dict[str, str] = {}  # stage -> the circle that stands for its output
    count = 0
    for block in model.blocks:
        sources = tuple(carrier.get(s, s) for s in block.sources)
        inner = variables and block.name in used
        label = "" if inner else shape_text(block.shape)
        figures.append(FunctionFigure(replace(block, sources=sources), label))
        if inner:
            count += 1
            key = carrier[block.name] = f"variable {block.name}"
            figures.append(
                VariableFigure(key, f"z{subscript(count)}", [block.name], block.shape, tooltip=key)
            )
    for name, symbol in zip(model.outputs, output_symbols(len(model.outputs)), strict=True):
        figures.append(
            VariableFigure(
                output_key(name),
                symbol,
                [carrier.get(name, name)],
                discrete=name in discrete,
                tooltip=_tip(f"{symbol}, output of {name}", shapes[name]),
            )
        )
    return figures


def cost_figures(model: Model, cost: Cost) -> list[Figure]:
    """The square and, where the cost takes one, the observed target."""
    sources = [output_key(model.outputs[0])]
    figures: list[Figure] = []
    if takes_target(model, cost):
        sources.append(TARGET)
        figures.append(
            VariableFigure(
                TARGET,
                "y",
                observed=True,
                discrete=takes_labels(cost),
                tooltip="y, class labels" if takes_labels(cost) else "y, targets",
            )
        )
    tooltip = f"{cost!r}: a scalar, its output is implicit"
    figures.append(CostFigure(COST, type(cost).__name__, sources, tooltip))
    return figures


def output_key(stage: str) -> str:
    """Key of the circle of an output."""
    return f"output {stage}"


def takes_target(model: Model, cost: Cost) -> bool:
    """Whether the cost compares with a y."""
    if model.outputs[0] in model.discrete:
        return False
    return not (isinstance(cost, TableCost) and cost.row.target == "none")


def takes_labels(cost: Cost) -> bool:
    """Whether y is a class."""
    if isinstance(cost, TableCost):
        return cost.row.target in ("label", "label_or_dense")
    return cost.target == "label"


def subscript(number: int) -> str:
    """A number in small low digits."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _tip(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}: {shape_text(shape)}"
