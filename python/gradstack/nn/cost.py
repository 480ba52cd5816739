"""`Cost`: what all costs share, and how their targets are read."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import as_dtype, as_real, cast, on_host, rows_of
from gradstack._compiled import core_for
from gradstack._flat import FLOATS

Array = npt.NDArray[Any]


class CostRow(NamedTuple):
    """A row of the cost table."""

    name: str
    params: tuple[tuple[str, float], ...]
    target: str  # "dense", "label", "label_or_dense", "none"
    ybar_per_y: int  # features of ybar for each component of y; 0: any number
    y_extra: int  # columns of y that stand for no component of ybar
    class_weights: bool


COSTS = {
    row["name"]: CostRow(
        row["name"],
        tuple((n, v) for n, v in row["params"]),
        row["target"],
        row["ybar_per_y"],
        row["y_extra"],
        row["class_weights"],
    )
    for row in _core.costs()
}


class Cost:
    """Base class of all costs C(y, ybar); subclass it to write one in Python.

    A subclass defines ``value(ybar, y)``, the loss of every sample, (B,), and
    ``gradient(ybar, y)``, its derivative with respect to ``ybar``, (B, d). Both get batches:
    ybar (B, d); y (B, dy) of the same dtype, or int64 labels (B,) when the user passed integers
    that are no column of numbers for d = 1, or None. With ``hvp(ybar, y, v)``, the product of every
    sample's second derivative with v, (B, d), it takes part in second-order quantities too.

    Attributes
    ----------
    reduction : str
        "mean" (default): the loss of a batch is the (weighted) average over its samples;
        "sum": their sum.
    target : str or None
        "dense" or "label" says how y is to be read; None goes by its dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> class Quartic(nn.Cost):
    ...     def value(self, ybar, y):
    ...         return ((ybar - y) ** 4).sum(axis=1)
    ...     def gradient(self, ybar, y):
    ...         return 4 * (ybar - y) ** 3
    >>> Quartic()(np.array([[2.0], [1.0]]), np.array([0.0, 1.0]))
    8.0
    """

    reduction: str = "mean"
    target: str | None = None

    def value(self, ybar: Array, y: Any) -> Array:
        """Loss of every sample, (B,)."""
        raise TypeError(f"[{type(self).__name__}] defines no value(ybar, y)")

    def gradient(self, ybar: Array, y: Any) -> Array:
        """Derivative of every sample's loss with respect to its ybar, (B, d)."""
        raise TypeError(f"[{type(self).__name__}] defines no gradient(ybar, y)")

    def __call__(self, ybar: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The loss of a batch, or of one sample.

        Parameters
        ----------
        ybar : array_like, (B, d) or (d,)
            Outputs of a net.
        y : array_like or None
            Targets in the shape of ybar (for d = 1 also (B,)), or class labels (B,).
        sample_weight : array_like, (B,), optional
            Weights of the average.

        Returns
        -------
        float
            The average over the samples, or their sum with ``reduction="sum"``.
        """
        rows, target, _ = self._read(ybar, y)
        weight = read_sample_weight(sample_weight, len(rows), rows.dtype, self.reduction)
        if not len(rows):
            raise ValueError("the average over an empty batch is undefined")
        return float(self._core_cost(rows.dtype).value(rows, target, weight))

    def per_sample(self, ybar: Any, y: Any = None) -> Any:
        """L(x, y, w) of every sample, (B,); a 0-d array for one sample."""
        rows, target, single = self._read(ybar, y)
        if not len(rows):
            return np.empty(0, rows.dtype)
        losses = np.asarray(self._core_cost(rows.dtype).per_sample(rows, target))
        return losses.reshape(()) if single else losses

    def _read(self, ybar: Any, y: Any) -> tuple[Array, Any, bool]:
        array = as_real(ybar, "ybar")
        narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
        dtype = FLOATS[0] if narrow else FLOATS[1]
        single = array.ndim <= 1
        shape = array.shape if single else array.shape[1:]
        count = 1 if single else array.shape[0]
        rows = as_dtype(array, dtype, "ybar").reshape(count, math.prod(shape))
        self._check_outputs(rows)
        return rows, self._read_target(y, count, shape, dtype, single), single

    def _check_outputs(self, ybar: Array) -> None:
        """Refuse outputs outside the domain of the cost."""

    def _core_cost(self, dtype: np.dtype[Any]) -> Any:
        """The cost as the core takes it."""
        return core_for(dtype).PyCost(_CheckedCost(self))

    def _read_target(
        self, y: Any, count: int, shape: tuple[int, ...], dtype: np.dtype[Any], single: bool
    ) -> Array | None:
        """y as the core takes it, converted: (B, dy) of `dtype`, int64 labels (B,), or None."""
        target = self.match_target(y, count, shape, single)
        if target is None:
            return None
        if target.ndim == 1:
            return np.ascontiguousarray(target, np.int64)
        return as_dtype(target, dtype, "y")

    def match_target(
        self, y: Any, count: int, shape: tuple[int, ...], single: bool = False
    ) -> Array | None:
        """Check y against outputs of `shape`; (B, dy) rows, integer labels (B,), or None.

        Nothing is converted or copied that does not have to be: y may be a large memory map.
        """
        if y is None:
            return None
        array = as_real(y, "y")
        if single:
            array = array.reshape(1, *array.shape)
        if self.target == "label" or (
            self.target is None and self._looks_like_labels(array, shape)
        ):
            return self._labels(array, count, None)
        if array.ndim == 1:
            array = array.reshape(len(array), 1)
        if len(array) != count:
            raise ValueError(f"y has {len(array)} samples, x has {count}")
        return rows_of(array)

    @staticmethod
    def _looks_like_labels(y: Array, shape: tuple[int, ...]) -> bool:
        return y.ndim == 1 and y.dtype.kind in "iub" and math.prod(shape) != 1

    def _labels(self, y: Array, count: int, classes: int | None) -> Array:
        owner = type(self).__name__
        y = on_host(y)
        if y.shape != (count,):
            raise ValueError(f"[{owner}] y has shape {y.shape}, expected class labels ({count},)")
        if y.dtype.kind == "f":
            whole = np.isfinite(y) & (y == np.rint(y))
            if not whole.all():
                row = int(np.argmin(whole))
                raise ValueError(f"[{owner}] y[{row}] = {y[row]}, class labels are integers")
            y = y.astype(np.int64)
        if classes is not None and count:
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= classes:
                row = int(np.argmax((y < 0) | (y >= classes)))
                raise ValueError(
                    f"[{owner}] y[{row}] = {y[row]}, class labels are in 0..{classes - 1} (the net "
                    f"has {classes} outputs)"
                )
        return y

    def config(self) -> dict[str, Any]:
        """What defines the cost, as plain values."""
        return {"name": type(self).__qualname__, "reduction": self.reduction}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _CheckedCost:
    """A Python cost as the core calls it.

    What it returns is checked, so that a wrong shape is an error naming the cost.
    """

    def __init__(self, cost: Cost) -> None:
        if cost.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {cost.reduction!r}")
        self.cost = cost
        self.reduction = cost.reduction

    def value(self, ybar: Array, y: Any) -> Array:
        return self._checked(self.cost.value(ybar, y), ybar, (len(ybar),), "value")

    def gradient(self, ybar: Array, y: Any) -> Array:
        return self._checked(self.cost.gradient(ybar, y), ybar, ybar.shape, "gradient")

    def hvp(self, ybar: Array, y: Any, v: Array) -> Array:
        cost: Any = self.cost
        if not callable(getattr(cost, "hvp", None)):
            raise ValueError(
                f"[{type(cost).__name__}] has no second derivative: define hvp(ybar, y, v), its "
                "product with v, (B, d)"
            )
        return self._checked(cost.hvp(ybar, y, v), ybar, ybar.shape, "hvp")

    def _checked(self, value: Any, ybar: Array, shape: tuple[int, ...], method: str) -> Array:
        owner = f"[{type(self.cost).__name__}]"
        array = as_real(value, f"{owner} what {method} returned")
        if array.shape != shape:
            raise ValueError(f"{owner} {method} returned shape {array.shape}, expected {shape}")
        with np.errstate(over="ignore"):  # an infinite loss is reported as such
            return np.ascontiguousarray(array, ybar.dtype)


def read_sample_weight(
    sample_weight: Any, count: int, dtype: np.dtype[Any], reduction: str
) -> Array | None:
    """Sample weights as the core takes them: (B,) of `dtype`, finite, averaging weights >= 0."""
    if sample_weight is None:
        return None
    array = as_real(sample_weight, "sample_weight")
    if array.ndim == 0 and count == 1:
        array = array.reshape(1)
    if array.shape != (count,):
        raise ValueError(f"sample_weight has shape {array.shape}, expected ({count},)")
    array = np.ascontiguousarray(cast(array, dtype, "sample_weight"))
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"sample_weight[{row}] = {array[row]} is not finite")
    if reduction == "mean" and count:
        if (array < 0).any():
            row = int(np.argmax(array < 0))
            raise ValueError(f"sample_weight[{row}] = {array[row]} is negative")
        if not array.any():
            raise ValueError("sample_weight is zero everywhere")
    return array


class TableCost(Cost):
    """A cost that the core evaluates; the class attribute `row` says which."""

    row: ClassVar[CostRow]

    def __init__(self, reduction: str, weight: Any = None, **params: float) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction
        self.weight = None if weight is None else _read_class_weight(weight)
        self._params = params
        self._cached: dict[np.dtype[Any], Any] = {}

    def __getattr__(self, name: str) -> Any:
        params = self.__dict__.get("_params")
        if params is not None and name in params:
            return params[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _core_cost(self, dtype: np.dtype[Any]) -> Any:
        cost = self._cached.get(dtype)
        if cost is None:
            cost = self._cached[dtype] = self._make(dtype, self.reduction)
        return cost

    def _make(self, dtype: np.dtype[Any], reduction: str) -> Any:
        values = [float(self._params[name]) for name, _ in self.row.params]
        weight = None if self.weight is None else cast(self.weight, dtype, "weight")
        return core_for(dtype).Cost(self.row.name, values, weight, reduction)

    def value(self, ybar: Array, y: Any) -> Array:
        """Loss of every sample, (B,)."""
        losses: Array = self.per_sample(ybar, y)
        return losses

    def gradient(self, ybar: Array, y: Any = None) -> Array:
        """Derivative of every sample's loss with respect to its ybar, (B, d)."""
        rows, target, _ = self._read(ybar, y)
        if not len(rows):
            return rows
        averaged: Array = self._make(rows.dtype, "mean").gradient(rows, target)
        averaged *= averaged.dtype.type(self._normaliser(len(rows), target))
        return averaged.reshape(np.shape(ybar))

    def hvp(self, ybar: Array, y: Any, v: Array) -> Array:
        """Second derivative of every sample's loss with respect to its ybar, times v, (B, d)."""
        rows, target, _ = self._read(ybar, y)
        if not len(rows):
            return rows
        direction = as_dtype(v, rows.dtype, "v").reshape(rows.shape)
        product: Array = self._make(rows.dtype, "mean").curvature(rows, target, direction)
        product *= product.dtype.type(self._normaliser(len(rows), target))
        return product.reshape(np.shape(ybar))

    def _normaliser(self, count: int, target: Array | None) -> float:
        """What the average of so many samples divides by."""
        if self.weight is None or target is None or target.ndim != 1:
            return count
        return float(self.weight[target].sum())

    def match_target(
        self, y: Any, count: int, shape: tuple[int, ...], single: bool = False
    ) -> Array | None:
        """Check y against outputs of `shape`, as the table wants it."""
        owner = type(self).__name__
        kind = self.row.target
        if y is None:
            if kind != "none":
                raise ValueError(f"[{owner}] needs a target y, got None")
            return None
        if kind == "none":
            raise ValueError(f"[{owner}] takes no target, y must be None")
        array = as_real(y, "y")
        if single:
            array = array.reshape(1, *array.shape)
        if kind == "label" or (kind == "label_or_dense" and array.ndim <= 1):
            return self._labels(array, count, math.prod(shape))
        features = math.prod(shape)
        per_y = self.row.ybar_per_y
        if per_y != 1:
            if per_y and features % per_y:
                raise ValueError(
                    f"[{owner}] ybar has {features} features, expected an even number: the means, "
                    "then the variances or standard deviations"
                )
            features = (features // per_y if per_y else 0) + self.row.y_extra
            shape = (features,)
        if array.shape == (count, *shape):
            return rows_of(array)
        if features == 1 and array.shape in ((count,), (count, 1)):
            return array.reshape(count, 1)
        expected = f"{shape if single else (count, *shape)}"
        if kind == "label_or_dense":
            expected = f"class {'a label ()' if single else f'labels ({count},)'} or {expected}"
        got = array.shape[1:] if single else array.shape
        raise ValueError(f"[{owner}] y has shape {got}, expected {expected}")

    def config(self) -> dict[str, Any]:
        """What defines the cost, as plain values."""
        weight = None if self.weight is None else self.weight.tolist()
        return {**super().config(), **self._params, "weight": weight}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        shown = [
            f"{name}={self._params[name]!r}"
            for name, default in self.row.params
            if float(self._params[name]) != default
        ]
        if self.weight is not None:
            shown.insert(0, f"weight={self.weight.tolist()}")
        if self.reduction != "mean":
            shown.append(f"reduction={self.reduction!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def has_plain_targets(cost: Cost) -> bool:
    """Whether targets of the right dtype and shape, and labels in range, are all that it asks."""
    return type(cost).match_target in (Cost.match_target, TableCost.match_target)


def _read_class_weight(weight: Any) -> Array:
    array = as_real(weight, "weight").astype(np.float64)
    if array.ndim != 1:
        raise ValueError(f"weight has shape {array.shape}, expected one weight per class (C,)")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("weight must hold finite class weights of at least 0")
    return array
