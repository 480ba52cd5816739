"""Dense Jacobians of single blocks, from their structure.

Every function works on batches: (B, out, in), variables flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack import _pointwise

Array = npt.NDArray[Any]


class Context:
    """One stage of a backprop run: what its Jacobians are computed from."""

    def __init__(
        self,
        row: dict[str, Any],
        description: dict[str, Any],
        input_shapes: Sequence[tuple[int, ...]],
        vector: Array,
        single: bool,
        per_sample: bool,
    ) -> None:
        self.row = row
        self.description = description
        self.input_shapes = input_shapes
        self.single = single
        self.zs: list[Array] = list(row["z"])
        self.out: Array = row["out"]
        self.w = _gather(vector, row["params"])
        self.lead_dw = (len(self.out),) if per_sample and not single else ()

    def inputs_as(self, rows: Sequence[Array], single: bool) -> list[Array]:
        """Rows of the inputs in the shapes of the variables."""
        return [
            r.reshape(tuple(shape) if single else (len(r), *shape))
            for r, shape in zip(rows, self.input_shapes, strict=True)
        ]

    def out_as(self, single: bool) -> Array:
        """The output in the shape of its variable."""
        shape = tuple(self.description["shape"])
        return self.out.reshape(shape if single else (len(self.out), *shape))

    def drop_batch(self, jacobian: Array) -> Array:
        """Without the batch axis for a single sample."""
        return jacobian[0] if self.single else jacobian

    def jacobians_z(self) -> list[Array]:
        """One Jacobian per input."""
        return _RULES[self.row["kind"]](self)

    def jacobian_w(self) -> Array:
        """Jacobian with respect to the stage's own parameters, (B, out, p)."""
        batch, out = self.out.shape
        result = np.zeros((batch, out, self.w.size), self.out.dtype)
        z = self.zs[0]
        if self.row["kind"] == "sparse_linear":
            edges = self.description["edges"].edges
            units = np.arange(out)
            result[:, edges[:, 0], np.arange(len(edges))] = z[:, edges[:, 1]]
            if self.w.size > len(edges):
                result[:, units, len(edges) + units] = 1
            return result
        if self.row["kind"] != "linear":
            return result
        n = z.shape[1]
        mask = _mask(self.description, out, n)
        # s[i] = sum_j w[i, j] z[j] + b[i]: z (x) I for the weights, I for the biases.
        for i in range(out):
            result[:, i, i * n : (i + 1) * n] = z if mask is None else z * mask[i]
        if self.w.size > out * n:
            result[:, :, out * n :] = np.eye(out, dtype=z.dtype)
        return result


def _gather(vector: Array, ranges: Sequence[tuple[int, int]]) -> Array:
    """The stage's parameters: a view when they lie side by side in w."""
    if not ranges:
        return vector[:0]
    begin = ranges[0][0]
    end = begin
    for offset, size in ranges:
        if offset != end:
            return np.concatenate([vector[o : o + s] for o, s in ranges])
        end += size
    return vector[begin:end]


def _mask(description: dict[str, Any], out: int, n: int) -> Array | None:
    mask = description.get("mask")
    return None if mask is None else np.asarray(mask).reshape(out, n)


def _diagonal(d: Array) -> Array:
    batch, n = d.shape
    result = np.zeros((batch, n, n), d.dtype)
    result[:, np.arange(n), np.arange(n)] = d
    return result


def _constant(c: Context, matrix: Array) -> Array:
    return np.repeat(matrix[None].astype(c.out.dtype), len(c.out), axis=0)


def _identity(c: Context, factor: float = 1.0) -> Array:
    return _constant(c, factor * np.eye(c.out.shape[1]))


def _linear(c: Context) -> list[Array]:
    out, n = c.out.shape[1], c.zs[0].shape[1]
    w = c.w[: out * n].reshape(out, n)
    mask = _mask(c.description, out, n)
    return [_constant(c, w if mask is None else w * mask)]


def _sparse_linear(c: Context) -> list[Array]:
    edges = c.description["edges"].edges
    matrix = np.zeros((c.out.shape[1], c.zs[0].shape[1]), c.out.dtype)
    matrix[edges[:, 0], edges[:, 1]] = c.w[: len(edges)]
    return [_constant(c, matrix)]


def _pointwise_rule(c: Context) -> list[Array]:
    params = tuple(c.description["params"])
    return [_diagonal(_pointwise.derivative(c.description["op"], params, c.zs[0]))]


def _mul(c: Context) -> list[Array]:
    a, b = c.zs
    return [_diagonal(b), _diagonal(a)]


def _div(c: Context) -> list[Array]:
    a, b = c.zs
    return [_diagonal(1 / b), _diagonal(-a / (b * b))]


def _concat(c: Context) -> list[Array]:
    eye = np.eye(c.out.shape[1])
    widths = [z.shape[1] for z in c.zs]
    starts = np.concatenate([[0], np.cumsum(widths)])
    return [_constant(c, eye[:, s : s + n]) for s, n in zip(starts, widths, strict=False)]


def _slice(c: Context) -> list[Array]:
    eye = np.eye(c.zs[0].shape[1])
    return [_constant(c, eye[c.description["begin"] : c.description["end"]])]


def _softmax(c: Context) -> list[Array]:
    return [_diagonal(c.out) - c.out[:, :, None] * c.out[:, None, :]]


def _log_softmax(c: Context) -> list[Array]:
    return [_identity(c) - np.exp(c.out)[:, None, :]]


def _nearest(c: Context) -> list[Array]:
    return [np.zeros((len(c.out), 1, c.zs[0].shape[1]), c.out.dtype)]


def _opaque(c: Context) -> list[Array]:
    """Row by row, by the block's own vjp."""
    block, z = c.description["impl"], c.zs[0]
    batch, out = c.out.shape
    result = np.empty((batch, out, z.shape[1]), c.out.dtype)
    for i in range(out):
        dy = np.zeros_like(c.out)
        dy[:, i] = 1
        result[:, i] = block.vjp(z, dy)
    return [result]


_RULES: dict[str, Callable[[Context], list[Array]]] = {
    "linear": _linear,
    "sparse_linear": _sparse_linear,
    "pointwise": _pointwise_rule,
    "add": lambda c: [_identity(c), _identity(c)],
    "sub": lambda c: [_identity(c), _identity(c, -1.0)],
    "mul": _mul,
    "div": _div,
    "concat": _concat,
    "slice": _slice,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "dropout": lambda c: [_identity(c)],  # backprop runs in evaluation mode
    "nearest": _nearest,
    "opaque": _opaque,
}
