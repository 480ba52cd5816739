"""`linearize`: the forward- and reverse-mode derivative at one point."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_vector
from gradstack._calculus._point import point
from gradstack._compiled import Inputs, program_for, run_options
from gradstack.functional import Pullback
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Linearized:
    """The derivative of a net at one point; keeps its own copy of x and w.

    ``dy = push(dx, dw)`` is the Jacobian-vector product, ``dx, dw = push.pullback(dy)`` the
    vector-Jacobian product. Both can be called as often as wanted.
    """

    __slots__ = ("_at", "_inputs", "_n_params", "pullback")

    def __init__(self, inputs: Inputs, at: Any, n_params: int) -> None:
        self._inputs = inputs
        self._at = at
        self._n_params = n_params
        self.pullback = Pullback(inputs, at, n_params)

    def __call__(self, dx: Any = None, dw: Any = None) -> Any:
        """The perturbation of the output; None: zero."""
        inputs = self._inputs
        dxs = inputs.input_rows(dx, "dx")
        direction = None if dw is None else as_vector(dw, self._n_params, inputs.dtype, "dw")
        if inputs.count == 0:
            return inputs.outputs([np.empty((0, n), inputs.dtype) for n in _out_sizes(inputs)])
        return inputs.outputs(self._at.push(dxs, direction))


def _out_sizes(inputs: Inputs) -> list[int]:
    return inputs.compiled.out_sizes


def linearize(net: Module, x: Any, w: Any = None) -> tuple[Any, Linearized]:
    """Value and derivative of a net, for many products at one point.

    Parameters
    ----------
    net : Module
    x : array_like, or a tuple of them
        One sample or a batch.
    w : array_like, (P,), optional
        Parameters instead of the net's own.

    Returns
    -------
    y : numpy.ndarray, or a tuple of them
        The output.
    push : Linearized
        ``dy = push(dx=None, dw=None)``, and ``dx, dw = push.pullback(dy)``.

    Raises
    ------
    ValueError
        A push through a block written in Python that defines no ``jvp``.

    Examples
    --------
    >>> import gradstack as gs
    >>> y, push = gs.linearize(gs.nn.Linear(2, 1), [10.0, 100.0], w=[1.0, 2.0, 3.0])
    >>> push(dx=[1.0, 0.0]), push(dw=[0.0, 0.0, 1.0])
    (array([1.], dtype=float32), array([1.], dtype=float32))
    """
    inputs, vector = point(net, x, w)
    if inputs.count == 0:
        ys = [np.empty((0, n), inputs.dtype) for n in _out_sizes(inputs)]
        return inputs.outputs(ys), Linearized(inputs, None, vector.size)
    program = program_for(net, inputs)
    at = program.linearize(vector, inputs.xs, **run_options(net, inputs.compiled))
    return inputs.outputs(at.outputs), Linearized(inputs, at, vector.size)
