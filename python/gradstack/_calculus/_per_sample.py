"""Quantities of the gradients g_b = dL(x_b, y_b, w)/dw of single samples.

None of these is divided by B. For a linear block g_b is the outer product of ds_b and z_b, so norms
and products with vectors need no gradients (Goodfellow 2015, "Efficient per-example gradient
computations").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_number, as_vector, threads_of
from gradstack._calculus._point import check_out, cost_point, require_samples
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


def per_sample_grad(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    out: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Gradient of every sample's own loss with respect to the parameters.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode.
    cost : Cost
    x : array_like, or a tuple of them
        One sample or a batch.
    y : array_like or None
        Targets or class labels.
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    out : numpy.ndarray, (B, P), optional
        Where to put the result: the net's dtype, C-contiguous. It is returned.
    num_threads : int, optional
        None: as many as pay. The result has the same bits for any number.

    Returns
    -------
    numpy.ndarray, (B, P)
        (P,) for a single sample. The mean over samples is the gradient of the average loss (with
        class weights: their weighted sum divided by the weights of the labels).

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> gs.per_sample_grad(gs.nn.Linear(1, 1), gs.nn.SquaredError(), [[1.0], [2.0]], [0.0, 0.0],
    ...                    w=[1.0, 0.0])
    array([[2., 2.],
           [8., 4.]], dtype=float32)
    """
    at = cost_point(net, cost, x, y, w)
    inputs = at.inputs
    shape = (at.w.size,) if inputs.single else (inputs.count, at.w.size)
    if out is not None:
        check_out(out, shape, inputs.dtype, inputs)
    if inputs.count == 0:
        return np.empty(shape, inputs.dtype) if out is None else out
    rows = None if out is None else out.reshape(inputs.count, at.w.size)
    made: Array = at.core("per_sample").gradients(
        at.w, inputs.xs, at.target, rows, threads_of(num_threads)
    )
    return made.reshape(shape) if out is None else out


def per_sample_grad_norm(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """L2 norm of every sample's gradient, without forming the gradients.

    Parameters
    ----------
    net, cost, x, y, w, num_threads
        As for `per_sample_grad`.

    Returns
    -------
    numpy.ndarray, (B,)
        A 0-d array for a single sample.

    Notes
    -----
    A net that uses one parameter in several blocks needs its gradients after all, in scratch memory
    for 128 samples at a time.
    """
    at = cost_point(net, cost, x, y, w)
    inputs = at.inputs
    if inputs.count == 0:
        return np.empty(0, inputs.dtype)
    norms: Array = at.core("per_sample").norms(at.w, inputs.xs, at.target, threads_of(num_threads))
    return norms.reshape(()) if inputs.single else norms


def clip_per_sample(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any,
    max_norm: float,
    w: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Mean of the samples' gradients, each scaled down to an L2 norm of at most `max_norm`.

    The gradient of differentially private training before noise is added (Abadi et al. 2016, "Deep
    learning with differential privacy").

    Parameters
    ----------
    net, cost, x, y, w, num_threads
        As for `per_sample_grad`.
    max_norm : float
        Above 0.

    Returns
    -------
    numpy.ndarray, (P,)
        (1/B) sum_b g_b min(1, max_norm / ||g_b||).
    """
    at = cost_point(net, cost, x, y, w)
    limit = as_number(max_norm, "max_norm")
    if limit <= 0:
        raise ValueError(f"max_norm must be positive, got {limit:g}")
    require_samples(at.inputs)
    mean: Array = at.core("per_sample").clipped(
        at.w, at.inputs.xs, at.target, limit, threads_of(num_threads)
    )
    return mean


def fisher_diag(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Diagonal of the empirical Fisher matrix (1/B) sum_b g_b g_b^T.

    Parameters
    ----------
    net, cost, x, y, w, num_threads
        As for `per_sample_grad`.

    Returns
    -------
    numpy.ndarray, (P,)
        The mean of the squared gradients.
    """
    at = cost_point(net, cost, x, y, w)
    require_samples(at.inputs)
    diagonal: Array = at.core("per_sample").fisher_diagonal(
        at.w, at.inputs.xs, at.target, threads_of(num_threads)
    )
    return diagonal


def fishervp(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any,
    v: Any,
    w: Any = None,
    *,
    num_threads: int | None = None,
) -> Array:
    """Product of the empirical Fisher matrix (1/B) sum_b g_b g_b^T with a vector.

    Parameters
    ----------
    net, cost, x, y, w, num_threads
        As for `per_sample_grad`.
    v : array_like, (P,)

    Returns
    -------
    numpy.ndarray, (P,)
        (1/B) sum_b g_b (g_b v).
    """
    at = cost_point(net, cost, x, y, w)
    direction = as_vector(v, at.w.size, at.inputs.dtype, "v")
    require_samples(at.inputs)
    product: Array = at.core("per_sample").fisher_product(
        at.w, at.inputs.xs, at.target, direction, threads_of(num_threads)
    )
    return product
