"""What a traced net says about its blocks: titles, shapes, parameters, colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradstack._compiled import Compiled, trace_net
from gradstack._draw.text import count_text, number_text, shape_text, shorten
from gradstack._pointwise import OPS, formula_of
from gradstack.nn.module import Module

LONGEST_TITLE = 26


@dataclass(frozen=True)
class Block:
    """One stage of the graph as a diagram shows it."""

    name: str
    kind: str
    title: str
    subtitle: str  # its name, where the title does not say it
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    weights: str  # "w 256×784 + b 256", "" without parameters
    count: int  # of parameters
    biased: bool
    frozen: bool
    tooltip: str


@dataclass(frozen=True)
class Model:
    """A net's block diagram: inputs, blocks in topological order, outputs."""

    name: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    blocks: tuple[Block, ...]
    outputs: tuple[str, ...]
    n_params: int
    dtype: str
    stages: tuple[dict[str, Any], ...]

    @property
    def summary(self) -> str:
        """One line about the net."""
        parameters = count_text(self.n_params, "parameter")
        dtype = f", {self.dtype}" if self.n_params else ""
        return f"{count_text(len(self.blocks), 'block')}, {parameters}{dtype}"

    @property
    def discrete(self) -> frozenset[str]:
        """The stages whose output is an index."""
        return frozenset(b.name for b in self.blocks if b.kind == "nearest")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the variable that each stage gives."""
        return {**dict(self.inputs), **{b.name: b.shape for b in self.blocks}}


def read_model(net: Module, compiled: Compiled | None = None) -> Model:
    """Read the graph of a net whose sample shape is known, or a given trace of it."""
    if compiled is None:
        compiled = trace_net(net, None)
    graph = compiled.graph
    stages = graph.stages()
    shapes = {p["name"]: tuple(p["shape"]) for p in graph.parameters()}
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    users: dict[str, list[str]] = {}
    for stage in stages:
        for role in ("weight", "bias"):
            if stage.get(role):
                users.setdefault(stage[role], []).append(stage["name"])
    blocks = tuple(
        _read_block(stage, compiled.blocks[stage["name"]], shapes, frozen, users)
        for stage in stages
        if stage["kind"] != "input"
    )
    inputs = tuple((s["name"], tuple(s["shape"])) for s in stages if s["kind"] == "input")
    return Model(
        type(net).__name__,
        inputs,
        blocks,
        tuple(compiled.out_names),
        graph.n_params,
        net.w.dtype.name,
        tuple(stages),
    )


def _read_block(
    stage: dict[str, Any],
    block: Any,
    shapes: Mapping[str, tuple[int, ...]],
    frozen: set[str],
    users: Mapping[str, list[str]],
) -> Block:
    name = stage["name"]
    title, says_name = _title(stage, block)
    names = [stage[role] for role in ("weight", "bias") if stage.get(role)]
    weights = " + ".join(
        f"{symbol} {shape_text(shapes[parameter])}"
        for symbol, parameter in zip("wb", names, strict=False)
    )
    mask = stage.get("mask")
    lines = [f"{name}: {title}, {shape_text(stage['shape'])} out"]
    if stage["kind"] == "pointwise":
        lines.append(f"z = {formula_of(stage['op'])}")
    lines += [f"{p}: {shape_text(shapes[p])}" for p in names]
    if mask is not None:
        lines.append(f"{int(mask.sum()):,} of {mask.size:,} connections")
        weights = f"{int(mask.sum()):,} of {weights}"
    shared = sorted({u for p in names for u in users[p]} - {name})
    if shared:
        lines.append(f"parameters shared with {', '.join(shared)}")
        weights = f"{weights}, shared"
    return Block(
        name,
        stage["kind"],
        shorten(title, LONGEST_TITLE),
        "" if says_name or name.lower() == title.lower() else shorten(name, LONGEST_TITLE),
        tuple(stage["inputs"]),
        tuple(stage["shape"]),
        weights,
        sum(math.prod(shapes[p]) for p in names),
        bool(stage.get("bias")),
        bool(names) and frozen.issuperset(names),
        "\n".join(lines),
    )


_SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}


def _title(stage: dict[str, Any], block: Any) -> tuple[str, bool]:
    """What a block is called, and whether that is all there is to say."""
    kind = stage["kind"]
    if kind in _SIGNS:
        return _SIGNS[kind], True
    if kind == "slice":
        return f"[{stage['begin']}:{stage['end']}]", True
    if kind == "concat":
        return "concat", True
    if kind == "reshape":
        flat = len(stage["shape"]) == 1
        return ("flatten" if flat else f"view {shape_text(stage['shape'])}"), True
    if kind == "dropout":
        return f"dropout {number_text(stage['p'])}", not isinstance(block, Module)
    if kind == "pointwise" and stage["op"] == "affine":
        return _affine(*stage["params"]), True
    if kind == "pointwise" and stage["op"] == "reciprocal":
        return f"{number_text(stage['params'][0])} ÷ z", True
    title = type(block).__name__ if isinstance(block, Module) else stage.get("op", kind)
    if kind == "pointwise" and (values := _unusual(stage)):
        title = f"{title}({values})"
    return title, False


def _affine(a: float, b: float) -> str:
    scaled = {1.0: "z", -1.0: "−z"}.get(a, f"{number_text(a)} z")
    if b == 0 and a != 1:
        return scaled
    return f"{scaled} {'−' if b < 0 else '+'} {number_text(abs(b))}"


def _unusual(stage: dict[str, Any]) -> str:
    """The parameters of a pointwise function, where they are not the defaults."""
    defaults = [value for _, value in OPS[stage["op"]].params]
    if list(stage["params"]) == defaults:
        return ""
    return ", ".join(map(number_text, stage["params"]))
