"""Modules made from rows of the op table."""

from __future__ import annotations

import inspect
from types import new_class
from typing import Any

from gradstack import _pointwise
from gradstack._pointwise import Op
from gradstack._trace import Tracer, Var, find_var
from gradstack.nn.layer import Layer, require_variable


class PointwiseModule(Layer):
    """Base class of the pointwise modules; called on arrays, they take any shape."""

    _op: str  # name of the function
    _init_signature: inspect.Signature

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        try:
            bound = self._init_signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}() {error}") from None
        bound.apply_defaults()
        arguments = {k: v for k, v in bound.arguments.items() if k != "inplace"}
        for name, value in arguments.items():
            setattr(self, name, value)
        self._resolve()

    def _resolve(self) -> tuple[str, tuple[float, ...]]:
        """The row of the table and its parameters, from the attributes as they are now."""
        names = [p.name for p in _pointwise.parameters_of(self._op)]
        return _pointwise.resolve(self._op, {name: getattr(self, name) for name in names})

    def __call__(self, *xs: Any, out: Any = None) -> Any:
        """Apply the function to an array of any shape, or to a traced variable."""
        if len(xs) == 1 and find_var(xs) is None:
            z = _pointwise.evaluate(*self._resolve(), xs[0])
            if out is None:
                return z
            out[...] = z
            return out
        return super().__call__(*xs, out=out)

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        return tracer.pointwise(*self._resolve(), x, tracer.name_of(self), self)

    def extra_repr(self) -> str:
        """The arguments, as text."""
        names = [p.name for p in _pointwise.parameters_of(self._op)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def make_class(op: Op) -> type[PointwiseModule]:
    """The module class of a row of the op table."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    inplace = inspect.Parameter("inplace", kind, default=False, annotation="bool")
    signature = inspect.Signature([*_pointwise.parameters_of(op.name), inplace])
    extra = "".join(
        f"{p.name} : {p.annotation}, default {p.default!r}\n"
        for p in _pointwise.parameters_of(op.name)
    )
    doc = (
        f"Pointwise block z = {_pointwise.formula_of(op.name)}.\n\n"
        f"Parameters\n----------\n{extra}"
        "inplace : bool\n    Accepted for code written for PyTorch; has no effect.\n"
    )
    namespace = {
        "__doc__": doc,
        "__module__": "gradstack.nn",
        "__signature__": signature,
        "_op": op.name,
        "_init_signature": signature,
    }
    made: type[PointwiseModule] = new_class(
        op.module, (PointwiseModule,), exec_body=lambda body: body.update(namespace)
    )
    return made
