"""Training data: what `fit` is given, checked against the net and the cost, not copied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import (
    LentArray,
    as_dtype,
    as_real,
    is_memory_map,
    require_finite,
    rows_of,
)
from gradstack._compiled import Compiled, compiled_for, known_shapes
from gradstack._trace import ShapeError, input_names
from gradstack.nn.cost import Cost, read_sample_weight

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Data:
    """Rows of a data set as the core reads them.

    Attributes
    ----------
    xs : list of numpy.ndarray, (N, d)
        One per input of the net; views of the user's arrays wherever strides allow. They, and dense
        targets, may lie in a device's memory.
    y : numpy.ndarray or None
        Dense targets (N, dy), integer labels (N,), or None.
    weight : numpy.ndarray or None
        Sample weights (N,).
    count : int
        N.
    unchecked : bool
        Some of it is a memory map, whose rows are looked at when they are gathered.
    """

    def __init__(
        self, xs: list[Array], y: Array | None, weight: Array | None, unchecked: bool
    ) -> None:
        self.xs = xs
        self.y = y
        self.weight = weight
        self.count = len(xs[0])
        self.unchecked = unchecked

    def require_finite(self, prefix: str = "") -> None:
        """Refuse NaN and infinity in what was not looked at yet."""
        for array in self.xs:
            require_finite(array, f"{prefix}X")
        if self.y is not None:
            require_finite(self.y, f"{prefix}y")

    def rows(self, index: Array, dtype: np.dtype[Any]) -> tuple[list[Array], Any, Any]:
        """Some of the samples, converted: inputs, targets, weights; each where the data lie."""

        def taken(rows: Array) -> Array:
            if isinstance(rows, LentArray):
                made: Array = _core.device.gather(rows, index)
                return made
            return np.ascontiguousarray(rows[index], dtype)

        y = self.y
        if y is not None:
            y = y[index].astype(np.int64) if y.ndim == 1 else taken(y)
        return [taken(x) for x in self.xs], y, None if self.weight is None else self.weight[index]


def training_graph(net: Module, shapes: tuple[tuple[int, ...], ...]) -> Compiled:
    """The trace of `net` with all its modules in training mode."""
    modes = [(m, m.training) for m in net.modules()]
    try:
        for module, _ in modes:
            module.__dict__["training"] = True
        return compiled_for(net, shapes)
    finally:
        for module, mode in modes:
            module.__dict__["training"] = mode


def settle_shapes(net: Module, X: Any) -> tuple[tuple[int, ...], ...]:
    """The sample shapes of a net that trains on X, learned from X when they are not known."""
    arrays = _inputs(X)
    samples = tuple(a.shape[1:] for a in arrays)
    shapes = known_shapes(net)
    if shapes is None:
        training_graph(net, samples)
        net.__dict__["_learned"] = samples
        return samples
    if len(shapes) != len(samples):
        raise ValueError(
            f"[{type(net).__name__}] X holds {len(samples)} inputs, expected {len(shapes)}"
        )
    names = ["X"] if len(samples) == 1 else input_names(net, len(samples))
    hint = net._sample_hint() if net._learned is None else None
    owner = type(net).__name__ if hint is None else hint.owner
    for name, got, expected in zip(names, samples, shapes, strict=True):
        if got == expected or (hint and hint.flattens and math.prod(got) == expected[0]):
            continue
        if len(got) == len(expected) == 1:
            raise ShapeError(
                f"[{owner}] {name} has {got[0]} features per sample, expected {expected[0]}"
            )
        raise ShapeError(f"[{owner}] {name} has samples of shape {got}, expected {expected}")
    return shapes


def _inputs(X: Any) -> list[Array]:
    parts = X if isinstance(X, tuple) else (X,)
    arrays = [as_real(x, "X" if len(parts) == 1 else f"X[{i}]") for i, x in enumerate(parts)]
    for i, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError("X must have a leading axis of samples")
        if len(array) != len(arrays[0]):
            raise ValueError(f"X[{i}] has {len(array)} samples, X[0] has {len(arrays[0])}")
    if not arrays:
        raise ValueError("X is an empty tuple")
    if not len(arrays[0]):
        raise ValueError("X has no samples")
    return arrays


def read_data(
    net: Module,
    compiled: Compiled,
    cost: Cost,
    X: Any,
    y: Any,
    sample_weight: Any,
) -> Data:
    """Check a data set.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN or infinity (naming the row), labels out of range.
    """
    dtype = net.w.dtype
    arrays = _inputs(X)
    memory_maps = False
    xs = []
    for array in arrays:
        rows = _readable(rows_of(array))
        if is_memory_map(rows):
            memory_maps = True
        elif isinstance(rows, LentArray):
            rows = as_dtype(rows, dtype, "X")  # NaN there shows in the loss
        else:
            require_finite(rows, "X", dtype)
        xs.append(rows)
    count = len(xs[0])
    if len(compiled.out_shapes) != 1:
        raise ValueError(
            f"[{type(net).__name__}] has {len(compiled.out_shapes)} outputs, a cost takes one: "
            "join them with gs.concat"
        )
    target = None
    if compiled.discrete[0]:
        if y is not None:
            raise ValueError(f"[{type(net).__name__}] NearestNeighbour trains without y, pass None")
    else:
        target = cost.match_target(y, count, compiled.out_shapes[0])
    if target is not None:
        if len(target) != count:
            raise ValueError(f"y has {len(target)} samples, X has {count}")
        target = _readable(target)
        if is_memory_map(target) and target.ndim == 2:
            memory_maps = True
        elif isinstance(target, LentArray):
            target = as_dtype(target, dtype, "y")
        else:
            require_finite(target, "y", dtype)
    weight = read_sample_weight(sample_weight, count, dtype, cost.reduction)
    return Data(xs, target, weight, memory_maps)


def _readable(array: Array) -> Array:
    """`array` in a dtype that the core reads while it gathers rows."""
    if array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array
