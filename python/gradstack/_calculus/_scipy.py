"""`as_scipy`: the loss as a function of the flat vector, for ``scipy.optimize``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_vector
from gradstack._calculus._point import cost_point, require_samples
from gradstack._flat import frozen_entries
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


def as_scipy(
    net: Module, cost: Cost, x: Any, y: Any = None, sample_weight: Any = None
) -> tuple[Callable[[Any], tuple[float, Array]], Array]:
    """The average loss as a function of the parameters, and the net's own as a start.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode; not changed.
    cost : Cost
    x : array_like, or a tuple of them
    y : array_like or None
        Targets or class labels. x and y are read now, in the net's dtype.
    sample_weight : array_like, (B,), optional
        Weights of the average.

    Returns
    -------
    fun : callable
        ``fun(w)`` is (loss, gradient), float64 throughout, whatever the net's dtype; the gradient
        of frozen parameters is 0.
    x0 : numpy.ndarray, (P,), float64
        A copy of ``net.w``.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from scipy.optimize import minimize
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = gs.nn.Linear(1, 1)
    >>> fun, x0 = gs.as_scipy(net, gs.nn.MSELoss(), X, 3 * X - 1)
    >>> net.w = minimize(fun, x0, jac=True, method="L-BFGS-B").x
    >>> np.round(net.w, 3)
    array([ 3., -1.], dtype=float32)
    """
    at = cost_point(net, cost, x, y, None, sample_weight)
    require_samples(at.inputs)
    double = np.dtype(np.float64)
    program = at.inputs.compiled.program(double)
    # Line searches see differences of losses, which float32 would drown in rounding. The copies
    # also keep the function what it is when the caller's arrays change.
    xs = [np.array(rows, double) for rows in at.inputs.xs]
    target = None if at.target is None else np.array(at.target, _wide(at.target))
    weight = None if at.weight is None else np.array(at.weight, double)
    core = cost._core_cost(double)
    frozen = frozen_entries(net)

    def fun(w: Any) -> tuple[float, Array]:
        loss, g = program.value_and_grad(
            as_vector(w, at.w.size, double, "w"), xs, target, core, weight
        )
        g[frozen] = 0
        return float(loss), g

    return fun, net.w.astype(double)


def _wide(target: Array) -> np.dtype[Any]:
    return np.dtype(np.float64) if target.dtype.kind == "f" else target.dtype
