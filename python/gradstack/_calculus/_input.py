"""Derivatives of a net with respect to its input, and their exact pullback."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_dtype, threads_of
from gradstack._calculus._point import Point, point, refuse_discrete
from gradstack._compiled import core_for
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Derivatives:
    """The output of a net and its derivatives with respect to x, at one point.

    Arrays have a leading B for batches only; `jac` and `diag` count variables as flattened.
    """

    __slots__ = ("_at", "_core", "_directional", "_lead", "_order", "_out_shape", "_y")

    def __init__(self, at: Point, order: int, threads: int) -> None:
        inputs = at.inputs
        self._at = at
        self._order = order
        self._lead = () if inputs.single else (inputs.count,)
        self._out_shape = inputs.compiled.out_shapes[0]
        self._y: Array | None = None
        self._directional: tuple[Array, Array | None] | None = None
        self._core: Any = None
        if inputs.count:
            self._core = core_for(inputs.dtype).InputDerivatives(
                inputs.compiled.graph, at.w, inputs.xs[0], order, threads
            )

    @property
    def _in(self) -> int:
        return self._at.inputs.compiled.in_sizes[0]

    @property
    def _out(self) -> int:
        return self._at.inputs.compiled.out_sizes[0]

    @property
    def y(self) -> Array:
        """The output, (B, out)."""
        if self._y is None:
            rows = self._empty(self._out) if self._core is None else self._core.values()
            self._y = rows.reshape(self._lead + self._out_shape)
        return self._y

    @property
    def jac(self) -> Array:
        """dy_i/dx_j, (B, out, in)."""
        return self._both()[0]

    @property
    def diag(self) -> Array:
        """d2y_i/dx_j2, (B, out, in)."""
        diagonal = self._both()[1]
        if diagonal is None:
            raise ValueError("second derivatives were not asked for: gs.derivatives(..., order=2)")
        return diagonal

    def pullback(self, dy: Any = None, djac: Any = None, ddiag: Any = None) -> tuple[Array, Array]:
        """Gradient of <dy, y> + <djac, jac> + <ddiag, diag>, exact: it uses h'''.

        Parameters
        ----------
        dy, djac, ddiag : array_like, in the shapes of `y`, `jac` and `diag`, optional
            None: zero.

        Returns
        -------
        dx : numpy.ndarray
            In the shape of x.
        dw : numpy.ndarray, (P,)
            Summed over the batch.
        """
        if ddiag is not None and self._order < 2:
            raise ValueError("ddiag: second derivatives were not asked for (order=1)")
        inputs = self._at.inputs
        pair = (self._out, self._in)
        rows = [
            self._rows(dy, self._out_shape, "dy"),
            self._rows(djac, pair, "djac"),
            self._rows(ddiag, pair, "ddiag"),
        ]
        if self._core is None:
            return inputs.inputs([self._empty(self._in)]), np.zeros_like(self._at.w)
        dx, dw = self._core.pullback(*rows)
        return inputs.inputs([dx]), dw

    def _both(self) -> tuple[Array, Array | None]:
        if self._directional is None:
            shape = (*self._lead, self._out, self._in)
            if self._core is None:
                empty = np.empty(shape, self._at.inputs.dtype)
                self._directional = empty, empty.copy() if self._order > 1 else None
            else:
                jac, diag = self._core.directional()
                self._directional = (
                    jac.reshape(shape),
                    None if diag is None else diag.reshape(shape),
                )
        return self._directional

    def _rows(self, value: Any, sample: tuple[int, ...], name: str) -> Array | None:
        if value is None:
            return None
        array = as_dtype(value, self._at.inputs.dtype, name)
        if array.shape != self._lead + sample:
            raise ValueError(f"{name} has shape {array.shape}, expected {self._lead + sample}")
        return array.reshape(self._at.inputs.count, -1)

    def _empty(self, n: int) -> Array:
        return np.empty((0, n), self._at.inputs.dtype)

    def __repr__(self) -> str:
        return f"Derivatives(order={self._order}, y={self._lead + self._out_shape}, in={self._in})"


def derivatives(
    net: Module, x: Any, order: int = 1, w: Any = None, *, num_threads: int | None = None
) -> Derivatives:
    """Output, Jacobian and second derivatives with respect to the input, differentiable again.

    Value, first and second derivative travel through the net together along each input direction
    (Taylor mode). The pullback makes costs of derivatives trainable: Sobolev training, gradient
    penalties, differential equations.

    Parameters
    ----------
    net : Module
        With one input and one output; run as in evaluation mode.
    x : array_like
        One sample or a batch.
    order : int
        1: `y` and `jac`. 2: `diag` too.
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    num_threads : int, optional
        None: as many as pay. The result has the same bits for any number.

    Returns
    -------
    Derivatives
        ``.y`` (B, out), ``.jac`` (B, out, in), ``.diag`` (B, out, in) = d2y_i/dx_j2, and
        ``dx, dw = .pullback(dy=None, djac=None, ddiag=None)``.

    Raises
    ------
    ValueError
        Several inputs or outputs; a block written in Python where second derivatives are needed.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(1, 1, dtype=float), nn.Sine())
    >>> d = gs.derivatives(net, [0.5], order=2, w=[2.0, 0.0])
    >>> print(d.y, d.jac, d.diag)
    [0.84147098] [[1.08060461]] [[-3.36588394]]
    >>> dx, dw = d.pullback(ddiag=[[1.0]])
    """
    return Derivatives(_single_point(net, x, w), _order(order), threads_of(num_threads))


def laplacian(net: Module, x: Any, w: Any = None, *, num_threads: int | None = None) -> Array:
    """Laplacian of every output, sum_j d2y_i/dx_j2.

    Parameters
    ----------
    net, x, w, num_threads
        As for `derivatives`, whose `pullback` differentiates it.

    Returns
    -------
    numpy.ndarray, (B, out)
        (out,) for a single sample.
    """
    total: Array = derivatives(net, x, 2, w, num_threads=num_threads).diag.sum(axis=-1)
    return total


def hessian_x(net: Module, x: Any, w: Any = None, *, num_threads: int | None = None) -> Array:
    """Hessian of every output with respect to the input.

    Parameters
    ----------
    net, x, w, num_threads
        As for `derivatives`.

    Returns
    -------
    numpy.ndarray, (B, out, in, in)
        d2y_i / dx_j dx_k; (out, in, in) for a single sample.
    """
    at = _single_point(net, x, w)
    inputs = at.inputs
    size, out = inputs.compiled.in_sizes[0], inputs.compiled.out_sizes[0]
    shape = (out, size, size) if inputs.single else (inputs.count, out, size, size)
    if inputs.count == 0:
        return np.empty(shape, inputs.dtype)
    core = core_for(inputs.dtype).InputDerivatives(
        inputs.compiled.graph, at.w, inputs.xs[0], 1, threads_of(num_threads)
    )
    result: Array = core.hessian().reshape(shape)
    return result


def _single_point(net: Module, x: Any, w: Any) -> Point:
    at = point(net, x, w)
    compiled = at.inputs.compiled
    refuse_discrete(net, compiled)
    if len(compiled.in_shapes) != 1 or not compiled.single_output:
        raise ValueError(
            f"[{type(net).__name__}] has {len(compiled.in_shapes)} inputs and "
            f"{len(compiled.out_shapes)} outputs; derivatives with respect to the input take a net "
            "with one of each: slice one input, join outputs with gs.concat"
        )
    return at


def _order(order: Any) -> int:
    if order not in (1, 2) or isinstance(order, bool):
        raise ValueError(f"order must be 1 or 2, got {order!r}")
    return int(order)
