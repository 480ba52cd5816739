"""A net as blocks that can be rewritten, with weights in float64; from a trace, and back to a net.

Kinds are those of the core's graph, and "scale": z = a * x + b element by element with arrays.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack import nn
from gradstack._compiled import Compiled
from gradstack._graph_module import GraphModule
from gradstack._pointwise import OPS
from gradstack.nn.module import Module

Array = npt.NDArray[Any]

# What the rules know; a block of another kind is kept as the module that it is.
_KINDS = frozenset(
    {"input", "linear", "pointwise", "add", "sub", "mul", "div", "concat", "slice", "reshape"}
    | {"softmax", "log_softmax", "dropout", "nearest"}
)


@dataclass(eq=False)
class Node:
    """One block."""

    name: str
    kind: str
    inputs: list[str]
    shape: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    weight: Array | None = None  # linear: (out, in), masked weights are zero; scale: a
    bias: Array | None = None  # linear: (out,) or None; scale: b
    mask: Array | None = None
    block: Any = None  # the module, for blocks that are kept as they are
    origin: Any = None  # blocks with the same one share their parameters; None once changed

    @property
    def size(self) -> int:
        """Number of values of one sample."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> Array:
        """The weight of a linear block, or a of a scale."""
        assert self.weight is not None
        return self.weight

    @property
    def offset(self) -> Array:
        """The bias, zeros where there is none."""
        assert self.weight is not None
        return np.zeros(len(self.weight)) if self.bias is None else self.bias

    def set_linear(self, weight: Array, bias: Array | None) -> None:
        """Make this block s = W z + b."""
        self.kind, self.weight, self.bias = "linear", weight, bias
        self.shape = (len(weight),)
        self.mask = self.origin = None


class Blocks:
    """Blocks in topological order, by name."""

    def __init__(self, nodes: list[Node], outputs: list[str]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.outputs = outputs

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self.nodes.values()))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def users(self, name: str) -> int:
        """How many inputs of blocks, and outputs of the net, take the result of a block."""
        taken = sum(node.inputs.count(name) for node in self.nodes.values())
        return taken + self.outputs.count(name)

    def only_feeds(self, name: str, user: Node) -> bool:
        """Whether nothing but `user` takes the result of a block."""
        return self.users(name) == user.inputs.count(name)

    def replace(self, old: str, new: str) -> None:
        """Let everything that took `old` take `new`."""
        for node in self.nodes.values():
            node.inputs = [new if name == old else name for name in node.inputs]
        self.outputs = [new if name == old else name for name in self.outputs]

    def insert_after(self, place: str, node: Node) -> None:
        """Put a new block behind another one in the order."""
        items: dict[str, Node] = {}
        for name, other in self.nodes.items():
            items[name] = other
            if name == place:
                items[node.name] = node
        self.nodes = items

    def fresh(self, base: str) -> str:
        """A name that is not taken."""
        name, n = base, 0
        while name in self.nodes:
            n += 1
            name = f"{base}_{n}"
        return name

    def sweep(self) -> None:
        """Drop the blocks that no output depends on; inputs stay."""
        alive = set(self.outputs)
        for node in reversed(list(self)):
            if node.name in alive:
                alive.update(node.inputs)
        self.nodes = {n.name: n for n in self if n.name in alive or n.kind == "input"}


def read_blocks(net: Module, compiled: Compiled) -> Blocks:
    """The blocks of a traced net."""
    values = {name: np.array(p, np.float64) for name, p in net.named_parameters()}
    nodes = []
    for stage in compiled.graph.stages():
        node = Node(stage["name"], stage["kind"], list(stage["inputs"]), tuple(stage["shape"]))
        node.attrs = {key: stage[key] for key in ("op", "params", "begin", "end") if key in stage}
        node.block = compiled.blocks[node.name]
        if node.kind not in _KINDS:
            node.kind = "opaque"
        if node.kind in ("linear", "nearest"):
            node.weight = values[stage["weight"]]
            node.origin = (stage["weight"], stage.get("bias"), id(node.block))
        if node.kind == "linear":
            if stage["bias"] is not None:
                node.bias = values[stage["bias"]]
            if stage["mask"] is not None:
                node.mask = np.reshape(stage["mask"], node.matrix.shape)
                node.weight = np.where(node.mask, node.matrix, 0.0)
        nodes.append(node)
    return Blocks(nodes, list(compiled.out_names))


# Back to a net ------------------------------------------------------------------------------------


def build_net(blocks: Blocks, single_output: bool, dtype: Any, chain: bool) -> Module:
    """Make a net of the blocks: a Sequential when `chain` and they are one, else a GraphModule."""
    _lower_scales(blocks)
    nodes = [node for node in blocks if node.kind != "input"]
    inputs = [node.name for node in blocks if node.kind == "input"]
    if chain and single_output and len(inputs) == 1:
        made = _as_sequential(nodes, inputs[0], blocks.outputs[0], dtype)
        if made is not None:
            return made
    steps: list[dict[str, Any]] = []
    modules: dict[str, Module] = {}
    shared: dict[Any, str] = {}
    for node in nodes:
        step: dict[str, Any] = {"kind": node.kind, "name": node.name, "inputs": node.inputs}
        if node.kind in ("linear", "nearest", "opaque"):
            path = node.name if node.origin is None else shared.setdefault(node.origin, node.name)
            step.update(kind="module", path=path)
            if path not in modules:
                modules[path] = _make_module(node, dtype)
        elif node.kind == "reshape":
            step["shape"] = list(node.shape)
        else:
            step.update(node.attrs)
        steps.append(step)
    net = GraphModule(inputs, steps, blocks.outputs, single_output)
    for path, module in modules.items():
        net.register(path, module)
    return net


def _lower_scales(blocks: Blocks) -> None:
    """Write what is left of element-wise scaling as linear blocks with a diagonal weight."""
    for node in blocks:
        if node.kind != "scale":
            continue
        flat = node.inputs
        if len(node.shape) != 1:
            before = Node(blocks.fresh("flatten"), "reshape", node.inputs, (node.size,))
            after = Node(blocks.fresh("view"), "reshape", [node.name], node.shape)
            blocks.insert_after(node.inputs[0], before)
            blocks.replace(node.name, after.name)
            blocks.insert_after(node.name, after)
            flat = [before.name]
        node.inputs = flat
        bias = node.bias
        node.set_linear(np.diag(node.matrix.ravel()), None if bias is None else bias.ravel())
        node.mask = np.eye(node.size, dtype=bool)


def _as_sequential(nodes: list[Node], source: str, output: str, dtype: Any) -> Module | None:
    modules = []
    for node in nodes:
        module = _make_module(node, dtype)
        if node.inputs != [source] or module is None:
            return None
        modules.append(module)
        source = node.name
    if source != output or len({n.origin for n in nodes if n.origin}) < sum(
        n.origin is not None for n in nodes
    ):
        return None
    sized = any(node.kind in ("linear", "nearest") for node in nodes)
    return nn.Sequential(*modules) if sized else None


def _make_module(node: Node, dtype: Any) -> Any:
    """The layer of a block; None for what is written as an operator."""
    kind = node.kind
    if kind == "linear":
        out, n = node.matrix.shape
        layer = nn.Linear(n, out, bias=node.bias is not None, mask=node.mask, dtype=dtype)
        layer.weight[...] = node.matrix
        if layer.bias is not None:
            layer.bias[...] = node.offset
        return layer
    if kind == "nearest":
        return nn.NearestNeighbour(node.matrix.shape[1], node.matrix, dtype=dtype)
    if kind == "opaque":
        return copy.deepcopy(node.block)
    if kind == "reshape" and len(node.shape) == 1:
        return nn.Flatten()
    if kind in ("softmax", "log_softmax"):
        return nn.Softmax() if kind == "softmax" else nn.LogSoftmax()
    if kind != "pointwise":
        return None
    op, params = node.attrs["op"], node.attrs["params"]
    if op in ("gelu", "gelu_tanh"):  # one module for both, told apart by a word
        op, params = "gelu", ["none" if op == "gelu" else "tanh"]
    return getattr(nn, OPS[op].module)(*params) if OPS[op].module else None
