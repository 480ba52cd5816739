"""`jacobian`: dense Jacobians of a net with respect to its input, parameters or any stage."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import threads_of
from gradstack._calculus._point import (
    check_out,
    device_for,
    keep,
    point,
    refuse_discrete,
)
from gradstack._compiled import Compiled, core_for
from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Variable(NamedTuple):
    """What to differentiate by."""

    key: Any  # as the core's Jacobian takes it
    size: int  # values of one sample, or parameters


class Variables(NamedTuple):
    """What one value of `wrt` means."""

    members: list[Variable]
    single: bool  # whether the result is the one Jacobian, not a tuple


def jacobian(
    net: Module,
    x: Any,
    wrt: str = "x",
    w: Any = None,
    out: Any = None,
    *,
    num_threads: int | None = None,
) -> Any:
    """Jacobian of the output, J_ij = d out_i / d in_j, for each sample.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode.
    x : array_like, or a tuple of them
        One sample or a batch.
    wrt : str
        "x": the input. "w": the parameters. Else the name of an input of a net with several, or
        of a stage, meaning its input z_k, everything before it held fixed.
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    out : numpy.ndarray, optional
        Where to put a result that is one array: its exact shape, the net's dtype, C-contiguous. It
        is returned.
    num_threads : int, optional
        None: as many as pay. The result has the same bits for any number.

    Returns
    -------
    numpy.ndarray, or a tuple of them
        (B, out, in) or (B, out, P), variables flattened; no B for a single sample. A tuple over
        the outputs of a net with several; over the inputs of a net (wrt="x") or stage with several,
        within that.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> net = gs.nn.Linear(2, 1)
    >>> gs.jacobian(net, [10.0, 100.0], w=[1.0, 2.0, 3.0])
    array([[1., 2.]], dtype=float32)
    >>> gs.jacobian(net, [10.0, 100.0], wrt="w")
    array([[ 10., 100.,   1.]], dtype=float32)
    """
    if w is None and num_threads is None:
        short = getattr(net, "_short_jacobian", None)  # whether it is a net is checked below
        if short is not None and short[0] == wrt:
            result = short[1](x, out=out)
            if result is not None:
                return result
    inputs, vector = point(net, x, w)
    compiled = inputs.compiled
    refuse_discrete(net, compiled)
    variables = _variables(net, compiled, wrt)
    threads = threads_of(num_threads)
    device = device_for(net, inputs)
    lead = () if inputs.single else (inputs.count,)
    results = []
    one = variables.single and compiled.single_output
    if out is not None and not one:
        raise ValueError("out= takes one array, and this Jacobian is a tuple of them")
    for i, rows in enumerate(compiled.out_sizes):
        row = []
        for variable in variables.members:
            shape = (*lead, rows, variable.size)
            if out is not None:
                check_out(out, shape, inputs.dtype, inputs)
            if inputs.count == 0:
                row.append(np.empty(shape, inputs.dtype) if out is None else out)
                continue
            core = _jacobian(compiled, inputs.dtype, variable, i, device)
            to = None if out is None else out.reshape(inputs.count, rows, variable.size)
            made = core.evaluate(vector, inputs.xs, to, threads)
            row.append(made.reshape(shape) if out is None else out)
        results.append(row[0] if variables.single else tuple(row))
    settled = one and w is None and inputs.count and len(inputs.xs) == 1 and net.w.size
    if settled and net._device == "cpu":
        core = _jacobian(compiled, inputs.dtype, variables.members[0], 0)
        net.__dict__["_short_jacobian"] = (wrt, core.short_call(net.w))
    return results[0] if compiled.single_output else tuple(results)


def _jacobian(
    compiled: Compiled, dtype: np.dtype[Any], variable: Variable, output: int, device: Any = None
) -> Any:
    def make() -> Any:
        if device is not None:
            return _core.device.DeviceJacobian(compiled.graph, device, variable.key, output)
        return core_for(dtype).Jacobian(compiled.graph, variable.key, output)

    return keep(compiled, ("jacobian", dtype, variable.key, output, device), make)


def parameter_jacobian(compiled: Compiled, dtype: np.dtype[Any], device: Any = None) -> Any:
    """The core's Jacobian of the first output with respect to w."""
    return _jacobian(compiled, dtype, Variable("w", compiled.graph.n_params), 0, device)


def _variables(net: Module, compiled: Compiled, wrt: Any) -> Variables:
    if not isinstance(wrt, str):
        raise TypeError(f"wrt must be 'x', 'w' or the name of a stage, got {wrt!r}")
    return keep(compiled, ("wrt", wrt), lambda: _find_variables(net, compiled, wrt))  # type: ignore[no-any-return]


def _find_variables(net: Module, compiled: Compiled, wrt: str) -> Variables:
    inputs = [Variable(i, size) for i, size in enumerate(compiled.in_sizes)]
    if wrt == "x":
        return Variables(inputs, len(inputs) == 1)
    if wrt == "w":
        return Variables([Variable("w", compiled.graph.n_params)], True)
    if wrt in compiled.in_names:
        return Variables([inputs[compiled.in_names.index(wrt)]], True)
    stages = {row["name"]: row for row in compiled.graph.stages()}
    if wrt not in stages:
        known = [name for name, row in stages.items() if row["kind"] not in ("input", "reshape")]
        raise ValueError(
            f"[{type(net).__name__}] wrt={wrt!r} is not 'x', 'w' or the name of a stage; there "
            f"are {', '.join(known)}"
        )
    sizes = [math.prod(stages[name]["shape"]) for name in stages[wrt]["inputs"]]
    return Variables(
        [Variable((wrt, i), size) for i, size in enumerate(sizes)],
        len(sizes) == 1,
    )
