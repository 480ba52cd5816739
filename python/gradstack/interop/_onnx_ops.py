"""How each row of the op table is written in ONNX.

ONNX keeps node attributes in float32 and ONNX Runtime has single-node activations for float32 only,
so float64 nets are written with elementary operators and float64 constants throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Operators of this version run on every ONNX Runtime since 1.12 (2022).
OPSET = 17

# Klambauer et al., Self-Normalizing Neural Networks (2017).
_SELU_ALPHA = 1.6732632423543772848
_SELU_SCALE = 1.0507009873554804934


class Builder:
    """Collects nodes and constants; values are known by name.

    The stages' outputs carry the stages' names; everything in between gets names of its own.
    """

    def __init__(self, dtype: np.dtype[Any], stages: Iterable[str]) -> None:
        import onnx

        self._onnx = onnx
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._stored: dict[str, str] = {}
        self._taken = set(stages)

    @property
    def single(self) -> bool:
        """Whether the net computes in float32."""
        return self.dtype == np.float32

    def tensor(self, base: str, array: npt.NDArray[Any]) -> str:
        """Return a stored tensor; asking for the same `base` again gives the same one."""
        if base not in self._stored:
            name = self._stored[base] = self._fresh(base)
            self.initializers.append(
                self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            )
        return self._stored[base]

    def number(self, value: float) -> str:
        """Return a scalar constant of the net's dtype."""
        return self.tensor(f"constant {value!r}", np.array(value, self.dtype))

    def node(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name, the stage's if `name` is one."""
        output = self._fresh(kind.lower()) if name is None else name
        self.nodes.append(
            self._onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        )
        return output

    def name_last(self, name: str) -> str:
        """Give the output of the last node a stage's name."""
        self.nodes[-1].output[0] = self.nodes[-1].name = name
        return name

    def _fresh(self, base: str) -> str:
        name, n = base, 0
        while name in self._taken:
            n += 1
            name = f"{base}.{n}"
        self._taken.add(name)
        return name


_Emit = Callable[[Builder, str, Sequence[float]], str]


def _one(kind: str) -> _Emit:
    return lambda b, s, p: b.node(kind, s)


def _clip(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Clip", s, b.number(p[0]), b.number(p[1]))


def _leaky_relu(b: Builder, s: str, p: Sequence[float]) -> str:
    if b.single:
        return b.node("LeakyRelu", s, alpha=p[0])
    return _where_positive(b, s, s, b.node("Mul", s, b.number(p[0])))


def _where_positive(b: Builder, s: str, then: str, otherwise: str) -> str:
    return b.node("Where", b.node("Greater", s, b.number(0)), then, otherwise)


def _exponential(b: Builder, s: str, alpha: float, scale: float, rate: float) -> str:
    """Scale * (s if s > 0 else alpha (exp(rate s) - 1))."""
    # The branch not taken must not overflow: an infinity would be fine, a NaN later would not.
    below = b.node("Min", s, b.number(0))
    if rate != 1:
        below = b.node("Mul", below, b.number(rate))
    below = b.node("Sub", b.node("Exp", below), b.number(1))
    below = b.node("Mul", below, b.number(alpha * scale))
    above = s if scale == 1 else b.node("Mul", s, b.number(scale))
    return _where_positive(b, s, above, below)


def _elu(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Elu", s, alpha=p[0]) if b.single else _exponential(b, s, p[0], 1, 1)


def _selu(b: Builder, s: str, p: Sequence[float]) -> str:
    if b.single:
        return b.node("Selu", s)
    return _exponential(b, s, _SELU_ALPHA, _SELU_SCALE, 1)


def _celu(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Celu", s, alpha=p[0]) if b.single else _exponential(b, s, p[0], 1, 1 / p[0])


def _gelu(b: Builder, s: str, p: Sequence[float]) -> str:
    erf = b.node("Erf", b.node("Mul", s, b.number(math.sqrt(0.5))))
    return b.node("Mul", b.node("Mul", s, b.number(0.5)), b.node("Add", erf, b.number(1)))


def _gelu_tanh(b: Builder, s: str, p: Sequence[float]) -> str:
    cube = b.node("Mul", b.node("Mul", s, s), s)
    inner = b.node("Add", s, b.node("Mul", cube, b.number(0.044715)))
    tanh = b.node("Tanh", b.node("Mul", inner, b.number(math.sqrt(2 / math.pi))))
    return b.node("Mul", b.node("Mul", s, b.number(0.5)), b.node("Add", tanh, b.number(1)))


def _log1p_exp(b: Builder, u: str) -> str:
    """log(1 + exp(u)) without overflow."""
    if b.single:
        return b.node("Softplus", u)
    tail = b.node("Log", b.node("Add", b.node("Exp", b.node("Neg", b.node("Abs", u))), b.number(1)))
    return b.node("Add", b.node("Max", u, b.number(0)), tail)


def _softplus(b: Builder, s: str, p: Sequence[float]) -> str:
    beta, threshold = p
    u = s if beta == 1 else b.node("Mul", s, b.number(beta))
    soft = _log1p_exp(b, u)
    if beta != 1:
        soft = b.node("Div", soft, b.number(beta))
    return b.node("Where", b.node("Greater", u, b.number(threshold)), s, soft)


def _mish(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Mul", s, b.node("Tanh", _log1p_exp(b, s)))


def _softsign(b: Builder, s: str, p: Sequence[float]) -> str:
    if b.single:
        return b.node("Softsign", s)
    return b.node("Div", s, b.node("Add", b.node("Abs", s), b.number(1)))


def _log_sigmoid(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Neg", _log1p_exp(b, b.node("Neg", s)))


def _hardsigmoid(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("Div", _clip(b, b.node("Add", s, b.number(3)), (0, 6)), b.number(6))


def _hardswish(b: Builder, s: str, p: Sequence[float]) -> str:
    return b.node("HardSwish", s) if b.single else b.node("Mul", s, _hardsigmoid(b, s, p))


def _affine(b: Builder, s: str, p: Sequence[float]) -> str:
    scaled = s if p[0] == 1 else b.node("Mul", s, b.number(p[0]))
    return b.node("Add", scaled, b.number(p[1])) if p[1] or scaled == s else scaled


EMIT: dict[str, _Emit] = {
    "identity": _one("Identity"),
    "relu": _one("Relu"),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda b, s, p: b.node("Mul", s, b.node("Sigmoid", s)),
    "mish": _mish,
    "softplus": _softplus,
    "softsign": _softsign,
    "sigmoid": _one("Sigmoid"),
    "log_sigmoid": _log_sigmoid,
    "tanh": _one("Tanh"),
    "tanhshrink": lambda b, s, p: b.node("Sub", s, b.node("Tanh", s)),
    "hardtanh": _clip,
    "relu6": lambda b, s, p: _clip(b, s, (0, 6)),
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "sine": _one("Sin"),
    "affine": _affine,
    "reciprocal": lambda b, s, p: b.node("Div", b.number(p[0]), s),
}
