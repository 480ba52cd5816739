"""Units that nothing depends on, and units that are constant, leave the net."""

from __future__ import annotations

import math

import numpy as np

from gradstack import _pointwise
from gradstack._simplify.graph import Array, Blocks, Node

_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def drop_units(blocks: Blocks) -> bool:
    """Remove dead and constant units; returns whether there were any.

    A unit is one component of a variable. Units that element-wise blocks, slices and
    concatenations hand on belong together: all of them go, or none. They can go when every one
    comes from a row of a linear block and nothing needs its value, where a linear block needs no
    value that it multiplies by zero, and none that is constant: that goes into its bias.
    """
    constants = _constants(blocks)
    classes = _Classes(blocks)
    needed = _needed(blocks, classes, constants)
    keep = {node.name: np.flatnonzero(needed[classes.of[node.name]]) for node in blocks}
    if all(len(keep[node.name]) == node.size for node in blocks):
        return False
    for node in blocks:
        _shrink(blocks, node, keep, constants)
    for node in blocks:
        if node.shape:
            node.shape = (len(keep[node.name]),) if len(node.shape) == 1 else node.shape
    return True


def _constants(blocks: Blocks) -> dict[str, Array]:
    """For each variable the values of its constant units, NaN for the others."""
    known: dict[str, Array] = {}
    for node in blocks:
        xs = [known[name] for name in node.inputs]
        value = np.full(node.size, math.nan)
        with np.errstate(all="ignore"):
            if node.kind == "linear":
                # What is multiplied by zero does not count, known or not.
                products = np.where(node.matrix == 0, 0.0, node.matrix * xs[0])
                value = products.sum(axis=1) + node.offset
            elif node.kind == "pointwise":
                value = _pointwise.evaluate(node.attrs["op"], tuple(node.attrs["params"]), xs[0])
            elif node.kind == "scale":
                value = node.matrix.ravel() * xs[0] + node.offset.ravel()
            elif node.kind in _BINARY:
                value = _BINARY[node.kind](*xs)
            elif node.kind == "concat":
                value = np.concatenate(xs)
            elif node.kind == "slice":
                value = xs[0][node.attrs["begin"] : node.attrs["end"]]
            elif node.kind == "reshape":
                value = xs[0]
        known[node.name] = np.where(np.isfinite(value), value, math.nan)
    return known


class _Classes:
    """Which units belong together (union-find), and which classes cannot be removed."""

    def __init__(self, blocks: Blocks) -> None:
        starts = np.cumsum([0, *(node.size for node in blocks)])
        self._parent = np.arange(starts[-1])
        units = {
            node.name: np.arange(start, start + node.size)
            for node, start in zip(blocks, starts, strict=False)
        }
        for node in blocks:
            at = 0
            for name in node.inputs:
                source = units[name]
                if node.kind in (*_BINARY, "pointwise", "scale", "reshape"):
                    self._join(units[node.name], source)
                elif node.kind == "concat":
                    self._join(units[node.name][at : at + len(source)], source)
                    at += len(source)
                elif node.kind == "slice":
                    self._join(units[node.name], source[node.attrs["begin"] : node.attrs["end"]])
        self.of = {name: np.array([self._find(u) for u in ids], int) for name, ids in units.items()}
        self.fixed = np.zeros(starts[-1], bool)
        for node in blocks:
            # Only rows of linear blocks can be left out, and only of variables with one axis.
            free = (*_BINARY, "linear", "pointwise", "scale", "concat", "slice", "reshape")
            if node.kind not in free or len(node.shape) != 1:
                self.fixed[self.of[node.name]] = True
        for name in blocks.outputs:
            self.fixed[self.of[name]] = True

    def _find(self, unit: int) -> int:
        parent = self._parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return int(unit)

    def _join(self, a: Array, b: Array) -> None:
        for u, v in zip(a, b, strict=True):
            self._parent[self._find(u)] = self._find(v)


def _needed(blocks: Blocks, classes: _Classes, constants: dict[str, Array]) -> Array:
    """For each class whether it has to stay."""
    needed = classes.fixed.copy()
    order = list(blocks)[::-1]
    while True:
        before = int(needed.sum())
        for node in order:
            if node.kind == "linear":
                source = node.inputs[0]
                rows = needed[classes.of[node.name]]
                used = (node.matrix[rows] != 0).any(axis=0) & np.isnan(constants[source])
                needed[classes.of[source][used]] = True
            elif node.kind in ("softmax", "log_softmax", "nearest", "opaque"):
                needed[classes.of[node.inputs[0]]] = True
        for node in order:
            # A variable without any unit is no variable.
            if not needed[classes.of[node.name]].any():
                needed[classes.of[node.name][:1]] = True
        if int(needed.sum()) == before:
            return needed


def _shrink(
    blocks: Blocks, node: Node, keep: dict[str, Array], constants: dict[str, Array]
) -> None:
    """Rewrite one block for the units that its inputs keep; shapes still are the old ones."""
    kept = keep[node.name]
    if node.kind == "linear":
        source = node.inputs[0]
        gone = np.setdiff1d(np.arange(node.matrix.shape[1]), keep[source])
        weight = node.matrix[kept]
        bias = None if node.bias is None else node.bias[kept]
        values = np.nan_to_num(constants[source][gone])
        if len(gone) and values.any() and weight[:, gone].any():
            bias = (np.zeros(len(weight)) if bias is None else bias) + weight[:, gone] @ values
        if len(gone) or len(kept) < len(node.matrix):
            mask = None if node.mask is None else node.mask[np.ix_(kept, keep[source])]
            node.set_linear(weight[:, keep[source]], bias)
            node.mask = mask
    elif node.kind == "scale":
        if len(node.shape) == 1:
            node.weight, node.bias = node.matrix[kept], node.offset[kept]
    elif node.kind == "slice":
        begin, end = node.attrs["begin"], node.attrs["end"]
        left = int(np.searchsorted(keep[node.inputs[0]], begin))
        right = int(np.searchsorted(keep[node.inputs[0]], end))
        node.attrs = {"begin": left, "end": right}
