"""The loss of a net as a function of its parameters, evaluated for whole populations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_dtype, threads_of
from gradstack._compiled import compiled_for, core_for
from gradstack._data import read_data, settle_shapes
from gradstack._problem import held_entries
from gradstack.functional import require_cost, require_net
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Objective:
    """The average loss of a net on fixed data, as a function of the flat parameter vector.

    Everything is checked once, here. The members of a population are evaluated by parallel threads
    of the core, each on its own parameters, with the same bits for any number of threads. A cost or
    block written in Python is called by one thread.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode; never changed. Its parameters are where a search starts; frozen
        parameters and masked weights stay where they are.
    cost : Cost
        Any cost: of one written in Python only ``value`` is needed, and `nn.ZeroOneLoss` is the
        share of samples classified wrongly.
    X : array_like, or a tuple of them
        Samples, in the form that `fit` takes. They are not copied: leave them as they are.
    y : array_like or None
        Targets or class labels.
    sample_weight : array_like, (B,), optional
        Weights of the average.
    num_threads : int, optional
        None: as many as pay.

    Attributes
    ----------
    x0 : numpy.ndarray, (P,)
        The net's parameters when the objective was made, in its dtype.
    free : numpy.ndarray of bool, (P,)
        False where a parameter never moves.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> X = np.array([[-1.0], [2.0], [3.0]])
    >>> f = gs.blackbox.Objective(nn.Linear(1, 2), nn.ZeroOneLoss(), X, [0, 1, 1])
    >>> f(np.array([-1.0, 1.0, 0.0, 0.0]))
    0.0
    >>> f(np.array([[-1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])).round(3)
    array([0.   , 0.667])
    """

    def __init__(
        self,
        net: Module,
        cost: Cost,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        num_threads: int | None = None,
    ) -> None:
        net = require_net(net)
        require_cost(cost)
        compiled = compiled_for(net, settle_shapes(net, X))
        data = read_data(net, compiled, cost, X, y, sample_weight)
        self.x0: Array = net.w.copy()
        self.free: Array = np.ones(self.x0.size, np.bool_)
        self.free[held_entries(net, compiled)] = False
        self._threads = threads_of(num_threads)
        self._population = core_for(self.x0.dtype).Population(
            compiled.graph, cost._core_cost(self.x0.dtype), data.xs, data.y, data.weight
        )

    def __call__(self, w: Any) -> Any:
        """The loss at w.

        Parameters
        ----------
        w : array_like, (P,) or (M, P)
            One vector of parameters or a population of M, in the layout of ``net.w``.

        Returns
        -------
        float, or numpy.ndarray of float64, (M,)
        """
        rows = as_dtype(w, self.x0.dtype, "w")
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.x0.size:
            raise ValueError(
                f"w has shape {rows.shape}, expected ({self.x0.size},) or (members, {self.x0.size})"
            )
        losses = self._population.evaluate(np.atleast_2d(rows), self._threads)
        return float(losses[0]) if rows.ndim == 1 else losses
