"""Blocks written in Python: opaque modules and `Pointwise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradstack._trace import ShapeError, TraceError, Tracer, Var
from gradstack.nn.layer import Layer, require_variable
from gradstack.nn.module import Array, Module


class OpaqueBlock:
    """What the core calls for a module that it cannot see into.

    Checks what the user's methods return, so that a wrong shape is an error naming the module.
    """

    def __init__(self, module: Module, d_in: int, d_out: int | None) -> None:
        self.module = module
        self.d_in = d_in
        self.d_out = d_out

    def forward(self, x: Array) -> Array:
        """Rows (B, d_in) to rows (B, d_out)."""
        return self._checked(self.module.forward(x), x, self.d_out, "forward")

    def vjp(self, x: Array, dy: Array) -> Array:
        """Gradient with respect to x, (B, d_in)."""
        module: Any = self.module
        return self._checked(module.vjp(x, dy), x, self.d_in, "vjp")

    def jvp(self, x: Array, dx: Array) -> Array:
        """Perturbation of the output, (B, d_out)."""
        module: Any = self.module
        if not callable(getattr(module, "jvp", None)):
            raise ValueError(
                f"[{type(module).__name__}] defines no jvp(x, dx), which forward-mode derivatives "
                "need"
            )
        return self._checked(module.jvp(x, dx), x, self.d_out, "jvp")

    def _checked(self, value: Any, x: Array, d: int | None, method: str) -> Array:
        array = np.asarray(value)
        expected = (len(x), array.shape[-1] if d is None and array.ndim == 2 else d)
        if array.shape != expected:
            raise ValueError(
                f"[{type(self.module).__name__}] {method} returned shape {array.shape} for "
                f"{len(x)} samples, expected ({len(x)}, {'d' if d is None else d})"
            )
        if array.dtype.kind not in "fiub":
            raise TypeError(f"[{type(self.module).__name__}] {method} returned dtype {array.dtype}")
        return np.ascontiguousarray(array, x.dtype)


def enter_opaque(module: Module, tracer: Tracer, *xs: Any) -> Var:
    """Record a module that defines ``forward`` and ``vjp`` on batches."""
    x = require_variable(module, xs)
    owner = type(module).__name__
    if len(x.shape) != 1:
        raise ShapeError(
            f"[{owner}] works on batches (B, d), but x has shape {x.shape} per sample: flatten it "
            "first"
        )
    if any(p.requires_grad for p in module.parameters()):
        raise TraceError(
            f"[{owner}] defines vjp, which gives no gradient for parameters, but it has trainable "
            "ones; freeze it, or build it from layers"
        )
    d_in = x.shape[0]
    d_out = getattr(module, "out_features", None)
    if d_out is None:
        # How many features come out is only known to forward itself.
        with np.errstate(all="ignore"):
            probe = OpaqueBlock(module, d_in, None).forward(np.zeros((1, d_in), module.dtype))
        d_out = probe.shape[1]
    block = OpaqueBlock(module, d_in, int(d_out))
    shape = (int(d_out),)
    return tracer.add(
        "opaque", tracer.name_of(module), [x], shape, block=module, shape_attr=shape, impl=block
    )


class _PointwiseBlock:
    """A `Pointwise` module as the core calls it."""

    def __init__(self, module: Pointwise) -> None:
        self.module = module

    def forward(self, x: Array) -> Array:
        """Values of h."""
        return self._checked(self.module.h(x), x, "h")

    def vjp(self, x: Array, dy: Array) -> Array:
        """Gradient with respect to x."""
        return dy * self._checked(self.module.dh(x), x, "dh")

    jvp = vjp  # a diagonal Jacobian is its own transpose

    def _checked(self, value: Any, x: Array, what: str) -> Array:
        array = np.asarray(value)
        if array.ndim == 0:
            array = np.full(x.shape, array)
        if array.shape != x.shape or array.dtype.kind not in "fiub":
            raise ValueError(
                f"[Pointwise] {what} returned shape {array.shape} and dtype {array.dtype} for an "
                f"array of shape {x.shape}"
            )
        return np.ascontiguousarray(array, x.dtype)


class Pointwise(Layer):
    """A pointwise block z = h(s) from two NumPy functions.

    Parameters
    ----------
    h : callable
        Value, array to array of the same shape.
    dh : callable
        Derivative: ``dh(s)`` is h'(s).

    Notes
    -----
    Slower than the built-in functions, but it works everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Pointwise(np.arctan, lambda s: 1 / (1 + s**2)))
    >>> net(np.zeros((4, 2))).shape
    (4, 3)
    """

    def __init__(self, h: Callable[[Array], Any], dh: Callable[[Array], Any]) -> None:
        super().__init__()
        for name, function in (("h", h), ("dh", dh)):
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        self.h = h
        self.dh = dh

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        return tracer.add(
            "opaque",
            tracer.name_of(self),
            [x],
            x.shape,
            block=self,
            shape_attr=x.shape,
            impl=_PointwiseBlock(self),
        )

    def extra_repr(self) -> str:
        """The function, as text."""
        return f"h={getattr(self.h, '__name__', self.h)}"
