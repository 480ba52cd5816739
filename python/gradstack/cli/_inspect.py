"""``gradstack inspect``: a model's block diagram and a table of its blocks."""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

import gradstack as gs
from gradstack import nn
from gradstack._draw.model import Block, Model, read_model
from gradstack._draw.text import shape_text
from gradstack.cli._errors import InputError
from gradstack.cli._model import read_facts


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw, print and return the description."""
    path = arguments.model
    try:
        net = gs.load(path)
    except FileNotFoundError:
        raise InputError(f"there is no model {path!r}") from None
    out = arguments.out or f"{os.path.splitext(os.path.basename(path))[0]}.svg"
    cost = _cost(path) if arguments.view != "units" else None
    if arguments.view == "average" and cost is None:
        raise InputError(f"--view average: {path} does not say what cost it was trained on")
    gs.draw(net, cost, view=arguments.view).save(out)
    model = read_model(net)
    values = {name: np.asarray(p, np.float64) for name, p in net.named_parameters()}
    stages = {stage["name"]: stage for stage in model.stages}
    result = {
        "command": "inspect",
        "model": path,
        "diagram": out,
        "inputs": [{"name": name, "shape": list(shape)} for name, shape in model.inputs],
        "outputs": list(model.outputs),
        "blocks": [_describe(block, stages[block.name], values) for block in model.blocks],
        "n_parameters": model.n_params,
        "dtype": model.dtype,
        "cost": None if cost is None else type(cost).__name__,
    }
    if not arguments.json:
        _print(model, result, arguments.quiet)
    return result


def _cost(path: str) -> nn.Cost | None:
    """The cost that gradstack train used, when it wrote the file."""
    facts = read_facts(path)
    if facts is None:
        return None
    return nn.CrossEntropyLoss() if facts[0].target.classes else nn.MSELoss()


def _describe(block: Block, stage: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": block.name,
        "kind": block.kind,
        "block": block.title,
        "inputs": list(block.sources),
        "shape": list(block.shape),
        "parameters": block.count,
    }
    names = [stage[role] for role in ("weight", "bias") if stage.get(role)]
    if names:
        flat = np.concatenate([values[name].ravel() for name in names])
        row.update(
            norm=float(np.linalg.norm(flat)),
            min=float(flat.min()),
            max=float(flat.max()),
            frozen=block.frozen,
        )
    return row


def _print(model: Model, result: dict[str, Any], quiet: bool) -> None:
    if not quiet:
        header = ("name", "block", "from", "shape", "parameters", "|w|", "range of w")
        rows: list[tuple[str, ...]] = [header]
        rows += [(name, "input", "", shape_text(shape), "", "", "") for name, shape in model.inputs]
        rows += [_row(block) for block in result["blocks"]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        for row in rows:
            cells = [
                cell.rjust(width) if i in (4, 5) else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip())
    print(f"{model.name}: {model.summary}")
    print(f"diagram {result['diagram']}")


def _row(block: dict[str, Any]) -> tuple[str, ...]:
    shape = shape_text(block["shape"])
    base = (block["name"], block["block"], ", ".join(block["inputs"]), shape)
    if not block["parameters"]:
        return (*base, "", "", "")
    span = f"{block['min']:.3g} to {block['max']:.3g}"
    return (*base, f"{block['parameters']:,}", f"{block['norm']:.3g}", span)
