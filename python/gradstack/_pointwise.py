"""The pointwise family, generated from the op table of the core.

A row of the table becomes a function (``gs.relu``) for arrays and traced variables, and a module
(``nn.ReLU``). What the table cannot say is here: formulas for the documentation, limits of
parameters, and arguments that are not numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import as_number, as_real, cast
from gradstack._flat import FLOATS
from gradstack._trace import Var

Array = npt.NDArray[Any]

# z = h(s), as the documentation shows it.
FORMULAS = {
    "identity": "s",
    "relu": "max(0, s)",
    "leaky_relu": "s for s > 0, else negative_slope * s",
    "elu": "s for s > 0, else alpha * (exp(s) - 1)",
    "selu": "1.0507 * (s for s > 0, else 1.6733 * (exp(s) - 1))",
    "celu": "max(0, s) + min(0, alpha * (exp(s / alpha) - 1))",
    "gelu": "s * Phi(s) with the normal distribution function Phi; approximate='tanh': "
    "s / 2 * (1 + tanh(sqrt(2 / pi) * (s + 0.044715 * s**3)))",
    "silu": "s / (1 + exp(-s))",
    "mish": "s * tanh(log(1 + exp(s)))",
    "softplus": "log(1 + exp(beta * s)) / beta, s itself where beta * s > threshold",
    "softsign": "s / (1 + |s|)",
    "sigmoid": "1 / (1 + exp(-s))",
    "log_sigmoid": "-log(1 + exp(-s))",
    "tanh": "tanh(s)",
    "tanhshrink": "s - tanh(s)",
    "hardtanh": "min(max(s, min_val), max_val)",
    "relu6": "min(max(s, 0), 6)",
    "hardsigmoid": "min(max(s + 3, 0), 6) / 6",
    "hardswish": "s * min(max(s + 3, 0), 6) / 6",
    "sine": "sin(s)",
}


class Op(NamedTuple):
    """A row of the op table."""

    name: str
    module: str  # class name; "" for operations that only operators and arguments reach
    params: tuple[tuple[str, float], ...]


OPS = {
    row["name"]: Op(row["name"], row["module"], tuple((n, v) for n, v in row["params"]))
    for row in _core.ops()
}


def check_params(op: str, values: Sequence[Any]) -> tuple[float, ...]:
    """The parameters of an op as floats, within its limits."""
    names = [name for name, _ in OPS[op].params]
    numbers = tuple(as_number(v, n) for n, v in zip(names, values, strict=True))
    given = dict(zip(names, numbers, strict=True))
    if op == "hardtanh" and not given["min_val"] < given["max_val"]:
        raise ValueError(
            f"min_val must be less than max_val, got {given['min_val']:g} and {given['max_val']:g}"
        )
    if op == "softplus" and given["beta"] <= 0:
        raise ValueError(f"beta must be positive, got {given['beta']:g}")
    if op == "celu" and given["alpha"] == 0:
        raise ValueError("alpha must not be 0")
    return numbers


def resolve(op: str, arguments: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """The row and parameters that a function's arguments select."""
    if op == "gelu":
        approximate = arguments["approximate"]
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        op = "gelu" if approximate == "none" else "gelu_tanh"
    return op, check_params(op, [arguments[name] for name, _ in OPS[op].params])


def parameters_of(op: str) -> list[inspect.Parameter]:
    """The arguments of an op's function after x, and of its module."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if op == "gelu":
        return [inspect.Parameter("approximate", kind, default="none", annotation="str")]
    return [
        inspect.Parameter(name, kind, default=value, annotation="float")
        for name, value in OPS[op].params
    ]


_programs: dict[tuple[str, tuple[float, ...], np.dtype[Any]], Any] = {}
_MAX_PROGRAMS = 256


def _program(op: str, params: tuple[float, ...], dtype: np.dtype[Any]) -> Any:
    """A program of one block with one feature: the elements of an array are its samples."""
    key = (op, params, dtype)
    program = _programs.get(key)
    if program is None:
        from gradstack._compiled import core_for

        graph = _core.Graph()
        graph.add("input", "x", [], shape=(1,))
        graph.add("pointwise", "z", ["x"], op=op, params=list(params))
        graph.finish(["z"])
        if len(_programs) >= _MAX_PROGRAMS:
            _programs.clear()
        program = _programs[key] = core_for(dtype).Program(graph)
    return program


def _elements(x: Any) -> Array:
    array = as_real(x, "x")
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    dtype = FLOATS[0] if narrow else FLOATS[1]
    return np.ascontiguousarray(cast(array, dtype, "x")).reshape(array.shape)


def evaluate(op: str, params: tuple[float, ...], x: Any) -> Array:
    """h of every element of an array."""
    array = _elements(x)
    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    no_w = np.empty(0, array.dtype)
    rows = array.reshape(-1, 1)
    z: Array = _program(op, params, array.dtype).forward(no_w, [rows])[0]
    return z.reshape(array.shape)


def derivative(op: str, params: tuple[float, ...], x: Any) -> Array:
    """h' of every element of an array."""
    array = _elements(x)
    if array.size == 0:
        return np.empty(array.shape, array.dtype)
    rows = array.reshape(-1, 1)
    no_w = np.empty(0, array.dtype)
    pullback = _program(op, params, array.dtype).vjp(no_w, [rows])
    dxs, _ = pullback.pull([np.ones_like(rows)], want_dx=True, want_dw=False)
    dh: Array = dxs[0].reshape(array.shape)
    return dh


def make_function(op: Op) -> Callable[..., Any]:
    """The function of a row of the op table, for arrays and traced variables."""
    x = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([x, *parameters_of(op.name)])
    plain = resolve(op.name, {p.name: p.default for p in parameters_of(op.name)})

    def function(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            value, (row, params) = args[0], plain
        else:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{op.name}() {error}") from None
            bound.apply_defaults()
            value = bound.arguments.pop("x")
            row, params = resolve(op.name, bound.arguments)
        if isinstance(value, Var):
            return value._tracer.pointwise(row, params, value, op.name)
        return evaluate(row, params, value)

    function.__name__ = function.__qualname__ = op.name
    function.__module__ = "gradstack"
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__doc__ = _function_doc(op)
    return function


def formula_of(op: str) -> str:
    """How the documentation writes z = h(s)."""
    return FORMULAS.get(op, f"{op}(s)")


def _function_doc(op: Op) -> str:
    extra = "".join(
        f"{p.name} : {p.annotation}, default {p.default!r}\n" for p in parameters_of(op.name)
    )
    return (
        f"Pointwise function z = {formula_of(op.name)}.\n\n"
        "Parameters\n----------\n"
        "x : array_like, or a variable inside a traced ``forward``\n"
        "    Integers are taken as float64.\n"
        f"{extra}\n"
        "Returns\n-------\n"
        "numpy.ndarray or variable\n"
        "    Same shape as x, float32 or float64.\n"
    )


def _over_features(kind: str, x: Any, dim: int) -> Any:
    from gradstack.nn import layers

    if isinstance(x, Var):
        return layers.over_features(kind, x, kind, None)
    module = layers.Softmax(dim) if kind == "softmax" else layers.LogSoftmax(dim)
    array = as_real(x, "x")
    if array.ndim == 0:
        raise ValueError("x must have at least one axis")
    if array.size == 0:
        return _elements(array)
    return module(array.reshape(-1, array.shape[-1])).reshape(array.shape)


def softmax(x: Any, dim: int = -1) -> Any:
    """exp(x) / sum exp(x) over the last axis.

    Parameters
    ----------
    x : array_like, or a variable inside a traced ``forward``
    dim : int
        Only the last axis, -1.

    Returns
    -------
    numpy.ndarray or variable
        Same shape as x, float32 or float64.
    """
    return _over_features("softmax", x, dim)


def log_softmax(x: Any, dim: int = -1) -> Any:
    """x - log sum exp(x) over the last axis.

    Parameters
    ----------
    x : array_like, or a variable inside a traced ``forward``
    dim : int
        Only the last axis, -1.

    Returns
    -------
    numpy.ndarray or variable
        Same shape as x, float32 or float64.
    """
    return _over_features("log_softmax", x, dim)
