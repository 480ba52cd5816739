"""`Layer`: what the built-in blocks share."""

from __future__ import annotations

from typing import Any

from gradstack._trace import ShapeError, TraceError, Tracer, Var
from gradstack.nn.module import Module


class Layer(Module):
    """Base class of the built-in blocks, which enter a graph as one stage."""

    def forward(self, x: Any) -> Any:
        """Apply the block; the same as calling it."""
        return self(x)

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        raise NotImplementedError


def require_variable(module: Module, xs: tuple[Any, ...]) -> Var:
    """The one variable that a built-in layer takes."""
    if len(xs) != 1 or not isinstance(xs[0], Var):
        got = ", ".join(type(x).__name__ for x in xs)
        raise TraceError(f"[{type(module).__name__}] takes one variable, got ({got})")
    return xs[0]


def require_features(module: Module, x: Var, expected: int, block: str) -> None:
    """Check that `x` has one axis of `expected` features."""
    owner = type(module).__name__
    where = "" if block == owner.lower() else f" (block {block!r})"
    if len(x.shape) != 1:
        raise ShapeError(
            f"[{owner}] x has shape {x.shape} per sample, expected ({expected},): flatten it "
            f"first{where}"
        )
    if x.shape[0] != expected:
        raise ShapeError(
            f"[{owner}] x has {x.shape[0]} features per sample, expected {expected}{where}"
        )
