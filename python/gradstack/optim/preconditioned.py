"""Gradient descent with a matrix for a learning rate: w <- w - eta dL/dw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradstack._arrays import as_real
from gradstack._problem import BatchProblem, LayerSlot, dense_slots
from gradstack.optim.base import Array
from gradstack.optim.python import PythonOptimizer
from gradstack.optim.schedules import Lr

_ROUNDING = 1e-10  # of the largest entry or eigenvalue: smaller defects are rounding


class Preconditioned(PythonOptimizer):
    """Gradient descent whose learning rate is a positive semi-definite matrix, w <- w - lr eta g.

    Every step goes downhill, <g, eta g> >= 0.

    Parameters
    ----------
    eta : array_like or list of pairs
        A vector (P,): one rate per parameter, a diagonal matrix. A matrix (P, P). Or a list with a
        pair of matrices (A, B) per layer in the order of ``net.w``: the weight, (out, in), moves by
        A dW B, so A is (out, out) and B (in, in); the bias moves by A db. With B (in + 1, in + 1)
        the bias is taken as the last column of the weight. In the order of the flat vector this is
        ``np.kron(A, B)``.
    lr : float or callable
        Factor of eta.
    clip_norm, clip_value : float, optional
        Limits of the gradient, applied before it is multiplied with eta.
    decay_bias : bool
        Without effect: nothing decays.

    Attributes
    ----------
    angle : float
        Angle in radians between the last step and the steepest descent, in [0, pi/2]; NaN before
        the first step.

    Raises
    ------
    ValueError
        eta holds NaN or infinity, is not symmetric, or has a negative entry (a vector) or an
        eigenvalue below -1e-10 of the largest; in training: it does not fit the net.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> net = nn.Linear(2, 1, bias=False)
    >>> net.w = [0.0, 0.0]
    >>> optimizer = optim.Preconditioned([[0.5, 0.0], [0.0, 0.1]])
    >>> gs.Trainer(net, nn.SquaredError(), optimizer).step([[1.0, 1.0]], [1.0])
    1.0
    >>> net.w, round(optimizer.angle, 3)
    (array([1. , 0.2], dtype=float32), 0.588)
    """

    def __init__(
        self,
        eta: Any,
        lr: Lr = 1.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        if _is_pairs(eta):
            factors: Any = [_Kronecker.read(pair, f"eta[{i}]") for i, pair in enumerate(eta)]
        else:
            factors = _read_dense(eta)
        super().__init__(lr, clip_norm, clip_value, decay_bias, {"eta": factors})

    def _start(self) -> None:
        super()._start()
        self._angle = math.nan

    @property
    def angle(self) -> float:
        """Angle between the last step and the steepest descent, in radians."""
        return self._angle

    def step(self, problem: Any, w: Array, lr: float) -> float:
        """One step on a batch, changing w in place; the loss before it."""
        loss, gradient = problem.value_and_grad(w)
        g = self._clip(gradient).astype(np.float64)
        g[problem.held] = 0
        direction = self._apply(problem, g)
        direction[problem.held] = 0
        slope = float(g @ direction)
        if slope <= 0:
            # Only rounding can do that: g lies where eta is zero.
            direction[:] = 0
        norms = float(np.linalg.norm(g) * np.linalg.norm(direction))
        self._angle = math.acos(min(1.0, slope / norms)) if norms > 0 else 0.0
        w -= (lr * direction).astype(w.dtype)
        self.__dict__["_t"] += 1
        return float(loss)

    def _apply(self, problem: BatchProblem, g: Array) -> Array:
        eta = self.eta
        if not isinstance(eta, list):
            if eta.size != g.size:
                raise ValueError(
                    f"[Preconditioned] eta is for {eta.size} parameters, the net has {g.size}"
                )
            product: Array = eta.times(g)
            return product
        slots = dense_slots(problem.compiled, "Preconditioned")
        if len(eta) != len(slots):
            raise ValueError(
                f"[Preconditioned] eta has {len(eta)} pairs, the net has {len(slots)} layers"
            )
        direction = np.zeros_like(g)
        for i, (pair, slot) in enumerate(zip(eta, slots, strict=True)):
            pair.times(slot, g, direction, f"eta[{i}]")
        return direction

    def config(self) -> dict[str, Any]:
        """The arguments as plain values; eta by its kind, size and a digest."""
        import hashlib

        eta = self.eta
        parts = eta if isinstance(eta, list) else [eta]
        digest = hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()[:16]
        kind = "pairs" if isinstance(eta, list) else eta.kind
        size = len(eta) if isinstance(eta, list) else eta.size
        return {**super().config(), "eta": f"{kind} of {size}, {digest}"}

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return {}, {}

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """There is no state."""

    def export_state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The state as arrays and plain numbers."""
        return {}, {"t": self.t}


class _Diagonal(NamedTuple):
    rates: Array

    @property
    def kind(self) -> str:
        return "vector"

    @property
    def size(self) -> int:
        return self.rates.size

    def times(self, g: Array) -> Array:
        return self.rates * g

    def digest(self) -> bytes:
        return self.rates.tobytes()


class _Dense(NamedTuple):
    """A positive semi-definite matrix as F F^T: g F F^T g is a square, whatever the rounding."""

    factor: Array

    @property
    def kind(self) -> str:
        return "matrix"

    @property
    def size(self) -> int:
        return len(self.factor)

    def times(self, g: Array) -> Array:
        product: Array = self.factor @ (self.factor.T @ g)
        return product

    def digest(self) -> bytes:
        return self.factor.tobytes()


class _Kronecker(NamedTuple):
    """A (x) B for one layer, both as F F^T."""

    a: _Dense
    b: _Dense

    @classmethod
    def read(cls, pair: Any, name: str) -> _Kronecker:
        a, b = pair
        return cls(_read_matrix(a, f"{name}[0]"), _read_matrix(b, f"{name}[1]"))

    def times(self, slot: LayerSlot, g: Array, direction: Array, name: str) -> None:
        """Write this layer's part of eta g into `direction`."""
        out, n = slot.shape
        with_bias = slot.bias is not None and self.b.size == n + 1
        if self.a.size != out or (self.b.size != n and not with_bias):
            extra = f" or ({n + 1}, {n + 1})" if slot.bias is not None else ""
            raise ValueError(
                f"[Preconditioned] {name} holds matrices of size {self.a.size} and {self.b.size}, "
                f"expected ({out}, {out}) and ({n}, {n}){extra}"
            )
        dw = g[slot.weight].reshape(out, n)
        if with_bias:
            assert slot.bias is not None
            both = self._both(np.column_stack([dw, g[slot.bias]]))
            direction[slot.weight] = both[:, :-1].reshape(-1)
            direction[slot.bias] = both[:, -1]
            return
        direction[slot.weight] = self._both(dw).reshape(-1)
        if slot.bias is not None:
            direction[slot.bias] = self.a.times(g[slot.bias])

    def _both(self, dw: Array) -> Array:
        left: Array = self.a.times(dw)
        return self.b.times(left.T).T

    def digest(self) -> bytes:
        return self.a.digest() + self.b.digest()


def _is_pairs(eta: Any) -> bool:
    """Whether eta is a list of pairs of matrices."""
    if not isinstance(eta, (list, tuple)) or not eta:
        return False
    return all(isinstance(p, (list, tuple)) and len(p) == 2 for p in eta) and all(
        np.ndim(m) == 2 for p in eta for m in p
    )


def _read_finite(value: Any, name: str) -> Array:
    array = as_real(value, name).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, it holds NaN or infinity")
    return array


def _read_dense(eta: Any) -> _Diagonal | _Dense:
    array = _read_finite(eta, "eta")
    if array.ndim == 1:
        if array.size and array.min() < 0:
            i = int(array.argmin())
            raise ValueError(f"eta must not be negative, eta[{i}] = {array[i]:g}")
        return _Diagonal(array)
    return _read_matrix(array, "eta")


def _read_matrix(value: Any, name: str) -> _Dense:
    """Check that a matrix is symmetric and positive semi-definite, and factor it."""
    matrix = _read_finite(value, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name} must be a vector, a square matrix or a list of pairs (A, B), got shape "
            f"{matrix.shape}"
        )
    largest = float(np.abs(matrix).max(initial=0.0))
    skew = np.abs(matrix - matrix.T)
    if skew.max(initial=0.0) > _ROUNDING * largest:
        i, j = np.unravel_index(int(skew.argmax()), skew.shape)
        raise ValueError(
            f"{name} must be symmetric, {name}[{i}, {j}] = {matrix[i, j]:g} and {name}[{j}, {i}] = "
            f"{matrix[j, i]:g}"
        )
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    top = float(np.abs(values).max(initial=0.0))
    if values.size and values[0] < -_ROUNDING * top:
        raise ValueError(
            f"{name} must be positive semi-definite, it has the eigenvalue {values[0]:g} (largest: "
            f"{values[-1]:g})"
        )
    keep = values > 0
    return _Dense(vectors[:, keep] * np.sqrt(values[keep]))
