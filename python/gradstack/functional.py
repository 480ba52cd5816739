"""Functional calls: values, products with Jacobians, losses and gradients.

They take a net and arrays, leave both as they are, and accept an explicit parameter vector `w` in
place of the net's own. With several inputs or outputs, x, dx, y and dy are tuples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import LentArray, as_vector
from gradstack._compiled import (
    Inputs,
    call,
    parameters_for,
    program_for,
    read,
    run_options,
    split_inputs,
)
from gradstack._device import open_device, place, place_on_host
from gradstack.nn.cost import Cost, has_plain_targets, read_sample_weight
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


def require_net(net: Any) -> Module:
    """Check that `net` is a module, and an instance."""
    if isinstance(net, type) and issubclass(net, Module):
        raise TypeError(f"net must be an instance: {net.__name__}(...), not {net.__name__}")
    if not isinstance(net, Module):
        raise TypeError(f"net must be an nn.Module, got {type(net).__name__}")
    return net


def require_cost(cost: Any) -> Cost:
    """Check that `cost` is a cost, and an instance."""
    if isinstance(cost, type) and issubclass(cost, Cost):
        raise TypeError(f"cost must be an instance: {cost.__name__}(), not {cost.__name__}")
    if not isinstance(cost, Cost):
        raise TypeError(f"cost must be an nn.Cost, got {type(cost).__name__}")
    return cost


def apply(net: Module, w: Any, x: Any, *, out: Any = None) -> Any:
    """Run a net with explicit parameters, y = G(x, w).

    Parameters
    ----------
    net : Module
    w : array_like, (P,)
        Parameters in the order of ``net.w``.
    x : array_like, or a tuple of them
        One sample or a batch.
    out : numpy.ndarray, optional
        Where to put the result.

    Returns
    -------
    numpy.ndarray, or a tuple of them
        The same as ``net(x)`` after ``net.w = w``.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> net = gs.nn.Linear(2, 1)
    >>> gs.apply(net, [1.0, 2.0, 3.0], [10.0, 100.0])
    array([213.], dtype=float32)
    """
    net = require_net(net)
    return call(net, split_inputs(net, x), w=np.asarray(w) if w is None else w, out=out)


class Pullback:
    """The reverse-mode derivative at one point; keeps its own copy of x and w.

    ``dx, dw = pullback(dy)`` is the vector-Jacobian product of `dy`: dx has the shape of x, dw (P,)
    is summed over the batch. It can be called as often as wanted.
    """

    __slots__ = ("_at", "_inputs", "_n_params")

    def __init__(self, inputs: Inputs, at: Any, n_params: int) -> None:
        self._inputs = inputs
        self._at = at
        self._n_params = n_params

    def __call__(self, dy: Any) -> tuple[Any, Array]:
        """Multiply with the transposed Jacobians: (dx, dw)."""
        inputs = self._inputs
        rows = inputs.output_rows(dy, "dy")
        if inputs.lent or any(isinstance(row, LentArray) for row in rows):
            dxs = inputs.device_rows(inputs.compiled.in_sizes)
            dw = _core.device.empty(open_device(inputs.device), (self._n_params,))
            if inputs.count:
                _core.device.pull_into(self._at, rows, dxs, dw)
            return inputs.inputs(dxs), dw
        if inputs.count == 0:
            dxs = [np.zeros((0, n), inputs.dtype) for n in inputs.compiled.in_sizes]
            return inputs.inputs(dxs), np.zeros(self._n_params, inputs.dtype)
        dxs, dw = self._at.pull(rows)
        return inputs.inputs(dxs), dw


def vjp(net: Module, x: Any, w: Any = None) -> tuple[Any, Pullback]:
    """Value and reverse-mode derivative (vector-Jacobian product).

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
    pullback : callable
        ``dx, dw = pullback(dy)``.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> y, pullback = gs.vjp(gs.nn.Linear(2, 1), [10.0, 100.0], w=[1.0, 2.0, 3.0])
    >>> pullback([1.0])
    (array([1., 2.], dtype=float32), array([ 10., 100.,   1.], dtype=float32))
    """
    net = require_net(net)
    inputs = read(net, split_inputs(net, x), net._device)
    vector = parameters_for(net, inputs, w)
    sizes = inputs.compiled.out_sizes
    outs = inputs.device_rows(sizes) if inputs.lent else None
    if inputs.count == 0:
        ys = outs or [np.empty((0, n), inputs.dtype) for n in sizes]
        return inputs.outputs(ys), Pullback(inputs, None, vector.size)
    at = program_for(net, inputs).vjp(vector, inputs.xs, **run_options(net, inputs.compiled))
    if outs is not None:
        inputs.xs = []  # what was lent is not kept
        _core.device.outputs_into(at, outs)
        return inputs.outputs(outs), Pullback(inputs, at, vector.size)
    return inputs.outputs(at.outputs), Pullback(inputs, at, vector.size)


def jvp(net: Module, x: Any, dx: Any = None, dw: Any = None, w: Any = None) -> tuple[Any, Any]:
    """Value and forward-mode derivative (Jacobian-vector product).

    Parameters
    ----------
    net : Module
    x : array_like, or a tuple of them
        One sample or a batch.
    dx : array_like of the shape of x, optional
        Perturbation of x; None: zero.
    dw : array_like, (P,), optional
        Perturbation of w; None: zero.
    w : array_like, (P,), optional
        Parameters instead of the net's own.

    Returns
    -------
    y, dy : numpy.ndarray, or tuples of them
        The output and its perturbation.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> gs.jvp(gs.nn.Linear(2, 1), [10.0, 100.0], dx=[1.0, 0.0], w=[1.0, 2.0, 3.0])
    (array([213.], dtype=float32), array([1.], dtype=float32))
    """
    net = require_net(net)
    inputs = read(net, split_inputs(net, x))
    vector = parameters_for(net, inputs, w)
    dxs = inputs.input_rows(dx, "dx")
    direction = None if dw is None else as_vector(dw, vector.size, inputs.dtype, "dw")
    if inputs.count == 0:
        ys = [np.empty((0, n), inputs.dtype) for n in inputs.compiled.out_sizes]
        return inputs.outputs(ys), inputs.outputs(ys)
    ys, dys = program_for(net, inputs).jvp(vector, inputs.xs, dxs, direction)
    return inputs.outputs(ys), inputs.outputs(dys)


def read_target(net: Module, cost: Cost, inputs: Inputs, y: Any) -> Array | None:
    """y for the outputs of a call, converted for the core."""
    compiled = inputs.compiled
    if len(compiled.out_shapes) != 1:
        raise ValueError(
            f"[{type(net).__name__}] has {len(compiled.out_shapes)} outputs, a cost takes one: "
            "join them with gs.concat"
        )
    if compiled.discrete[0]:
        if y is not None:
            raise ValueError(f"[{type(net).__name__}] NearestNeighbour trains without y, pass None")
        return None
    y = place(y, inputs.device, "y")
    return cost._read_target(y, inputs.count, compiled.out_shapes[0], inputs.dtype, inputs.single)


def value_and_grad(
    net: Module, cost: Cost, x: Any, y: Any = None, w: Any = None, sample_weight: Any = None
) -> tuple[float, Array]:
    """Loss of a batch and its gradient with respect to the parameters.

    Parameters
    ----------
    net : Module
    cost : Cost
    x : array_like, or a tuple of them
        One sample or a batch.
    y : array_like or None
        Targets or class labels.
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    sample_weight : array_like, (B,), optional
        Weights of the average.

    Returns
    -------
    loss : float
        The (weighted) average over the samples.
    dw : numpy.ndarray, (P,)
        Its gradient, frozen parameters included.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> net, cost = gs.nn.Linear(2, 1), gs.nn.SquaredError()
    >>> gs.value_and_grad(net, cost, [1.0, 2.0], [3.0], w=[1.0, 0.0, 0.0])
    (4.0, array([-4., -8., -4.], dtype=float32))
    """
    short = getattr(net, "_short_gradient", None)
    if short is not None and short[0] is cost and w is None:
        result: tuple[float, Array] | None = short[1](x, y, sample_weight)
        if result is not None:
            return result
    net = require_net(net)
    inputs = read(net, split_inputs(net, x), net._device)
    target = read_target(net, require_cost(cost), inputs, y)
    sample_weight = place_on_host(sample_weight, net._device, "sample_weight")
    weight = read_sample_weight(sample_weight, inputs.count, inputs.dtype, cost.reduction)
    if inputs.count == 0:
        raise ValueError("x has no samples, the average loss is undefined")
    vector = parameters_for(net, inputs, w)
    core_cost = cost._core_cost(inputs.dtype)
    options = run_options(net, inputs.compiled)
    if inputs.lent:
        dw = _core.device.empty(open_device(inputs.device), (vector.size,))
        loss = _core.device.value_and_grad_into(
            program_for(net, inputs), vector, inputs.xs, target, core_cost, weight, dw, **options
        )
        return float(loss), dw
    loss, dw = program_for(net, inputs).value_and_grad(
        vector, inputs.xs, target, core_cost, weight, **options
    )
    plain = w is None and not options and vector.size and has_plain_targets(cost)
    if plain and net._device == "cpu":
        call = inputs.program.short_gradient(vector, core_cost, target)
        net.__dict__["_short_gradient"] = (cost, call)
    return float(loss), dw
