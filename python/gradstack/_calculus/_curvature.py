"""Second derivatives of the average loss with respect to the parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_vector, threads_of
from gradstack._calculus._jacobian import parameter_jacobian
from gradstack._calculus._point import CostPoint, cost_point, require_samples
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

Array = npt.NDArray[Any]

_CHUNK = 1 << 22  # values of a Jacobian that are in memory at once


def hvp(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any,
    v: Any,
    w: Any = None,
    sample_weight: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Product of the Hessian of the average loss with a vector, exact (forward over reverse).

    Parameters
    ----------
    net : Module
        Run as in evaluation mode.
    cost : Cost
        One written in Python defines ``hvp(ybar, y, v)``.
    x : array_like, or a tuple of them
        One sample or a batch.
    y : array_like or None
        Targets or class labels.
    v : array_like, (P,)
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    sample_weight : array_like, (B,), optional
        Weights of the average.
    num_threads : int, optional
        None: as many as pay. The result has the same bits for any number.

    Returns
    -------
    numpy.ndarray, (P,)
        (d2L/dw2) v.

    Raises
    ------
    ValueError
        The net has a block written in Python: those have first derivatives only.

    Examples
    --------
    >>> import gradstack as gs
    >>> gs.hvp(gs.nn.Linear(1, 1), gs.nn.SquaredError(), [3.0], [0.0], v=[1.0, 0.0])
    array([18.,  6.], dtype=float32)
    """
    return _product("hessian", cost_point(net, cost, x, y, w, sample_weight), v, num_threads)


def ggnvp(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any,
    v: Any,
    w: Any = None,
    sample_weight: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Product of the generalised Gauss-Newton matrix of the average loss with a vector.

    G = (1/B) sum_b J_b^T (d2L_b/dybar2) J_b with J_b = dybar_b/dw (Schraudolph 2002, "Fast
    curvature matrix-vector products for second-order gradient descent").

    Parameters
    ----------
    net, cost, x, y, v, w, sample_weight, num_threads
        As for `hvp`.

    Returns
    -------
    numpy.ndarray, (P,)
        G v.

    Raises
    ------
    ValueError
        A block written in Python without ``jvp``, or a cost without ``hvp``.
    """
    return _product("ggn", cost_point(net, cost, x, y, w, sample_weight), v, num_threads)


def _product(kind: str, at: CostPoint, v: Any, num_threads: int | None) -> Array:
    direction = as_vector(v, at.w.size, at.inputs.dtype, "v")
    require_samples(at.inputs)
    product: Array = at.core(kind).product(
        at.w, at.inputs.xs, at.target, direction, at.weight, threads_of(num_threads)
    )
    return product


def hessian(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    sample_weight: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Hessian of the average loss, for small nets: P products with `hvp`.

    Parameters
    ----------
    net, cost, x, y, w, sample_weight, num_threads
        As for `hvp`.

    Returns
    -------
    numpy.ndarray, (P, P)
        d2L/dw2, symmetric.
    """
    at = cost_point(net, cost, x, y, w, sample_weight)
    require_samples(at.inputs)
    core, threads = at.core("hessian"), threads_of(num_threads)
    result = np.empty((at.w.size, at.w.size), at.inputs.dtype)
    unit = np.zeros_like(at.w)
    for i, row in enumerate(result):
        unit[i] = 1
        row[...] = core.product(at.w, at.inputs.xs, at.target, unit, at.weight, threads)
        unit[i] = 0
    return _symmetric(result)


def ggn(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    sample_weight: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Generalised Gauss-Newton matrix of the average loss, for small nets, from Jacobians.

    Parameters
    ----------
    net, cost, x, y, w, sample_weight, num_threads
        As for `hvp`.

    Returns
    -------
    numpy.ndarray, (P, P)
        (1/B) sum_b J_b^T (d2L_b/dybar2) J_b, symmetric; positive semi-definite for a convex cost.
    """
    at = cost_point(net, cost, x, y, w, sample_weight)
    inputs, threads = at.inputs, threads_of(num_threads)
    require_samples(inputs)
    ybar = inputs.program.forward(at.w, inputs.xs, threads=threads)[0]
    d, n = ybar.shape[1], at.w.size
    curvature = cost_hessian(at.cost._core_cost(inputs.dtype), ybar, at.target, at.weight)
    core = parameter_jacobian(inputs.compiled, inputs.dtype)
    result = np.zeros((n, n), inputs.dtype)
    step = max(1, _CHUNK // max(1, d * n))
    for begin in range(0, inputs.count, step):
        part = slice(begin, begin + step)
        rows = core.evaluate(at.w, [x[part] for x in inputs.xs], None, threads)
        bent = np.matmul(curvature[part], rows)
        result += rows.reshape(-1, n).T @ bent.reshape(-1, n)
    return _symmetric(result)


def cost_hessian(cost: Any, ybar: Array, y: Array | None, weight: Array | None) -> Array:
    """Second derivative of the average loss in each sample's ybar, (B, d, d), of a core cost."""
    count, d = ybar.shape
    result = np.empty((count, d, d), ybar.dtype)
    unit = np.zeros_like(ybar)
    for i in range(d):
        unit[:, i] = 1
        result[:, :, i] = cost.curvature(ybar, y, unit, weight)
        unit[:, i] = 0
    return result


def _symmetric(matrix: Array) -> Array:
    half: Array = (matrix + matrix.T) * matrix.dtype.type(0.5)
    return half
