"""Tracing: a module's ``forward`` runs once on variables that record what is done to them.

A `Var` stands for one per-sample variable of the graph. It has the shape of one sample (the batch
axis is implicit), and no values: Python code that would need values raises.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from gradstack import _core
from gradstack._arrays import as_shape

if TYPE_CHECKING:
    from gradstack._flat import Parameter
    from gradstack.nn.module import Module

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """A shape that does not fit a block; another reading of the input may still fit."""


class TraceError(TypeError):
    """Something that cannot be recorded in a graph."""


def _needs_values(what: str) -> Callable[..., NoReturn]:
    def refuse(self: Var, *_: Any, **__: Any) -> NoReturn:
        raise TraceError(
            f"{what} of a traced variable has no value: forward is recorded once and then runs for "
            "every sample, so Python control flow cannot depend on the data. Use pointwise "
            "functions (gs.relu, gs.hardtanh, ...), or define forward and vjp on NumPy batches to "
            "make the module opaque"
        )

    return refuse


def _no_operator(symbol: str) -> Callable[..., NoReturn]:
    def refuse(self: Var, *_: Any) -> NoReturn:
        raise TraceError(
            f"{symbol} cannot be recorded in a graph: variables have + - * / and unary minus "
            "(x * x for a square), layers (nn.Linear) and pointwise functions (gs.relu, ...)"
        )

    return refuse


def is_number(value: Any) -> bool:
    """Whether `value` is a real scalar that an operator may combine with a variable."""
    if isinstance(value, (int, float, np.integer, np.floating)):
        return True
    return isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiub"


class Var:
    """A per-sample variable inside a traced ``forward``.

    Supports ``+ - * /`` and unary minus with variables of the same shape and with numbers, slices
    of one-dimensional variables, `view`/`reshape`/`flatten`, and the functions of the package
    (``gs.relu(x)``, ``gs.concat([x, u])``). Shapes have no batch axis.
    """

    __slots__ = ("_name", "_shape", "_tracer")

    def __init__(self, tracer: Tracer, name: str, shape: Shape) -> None:
        self._tracer = tracer
        self._name = name
        self._shape = shape

    @property
    def shape(self) -> Shape:
        """Shape of one sample."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of axes of one sample."""
        return len(self._shape)

    def dim(self) -> int:
        """Number of axes of one sample."""
        return len(self._shape)

    def size(self, dim: int | None = None) -> Any:
        """Shape of one sample, or its length along one axis."""
        return self._shape if dim is None else self._shape[dim]

    def numel(self) -> int:
        """Number of values of one sample."""
        return math.prod(self._shape)

    nelement = numel

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of a variable with no axis")
        return self._shape[0]

    def __repr__(self) -> str:
        return f"Var({self._name!r}, shape={self._shape})"

    # Shape ------------------------------------------------------------------------------------

    def view(self, *shape: int | Sequence[int]) -> Var:
        """The same values in another shape; one entry may be -1."""
        dims = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
        return self._reshape(dims, "view")  # type: ignore[arg-type]

    def reshape(self, *shape: int | Sequence[int]) -> Var:
        """The same values in another shape; one entry may be -1."""
        return self.view(*shape)

    def flatten(self) -> Var:
        """All values in one axis."""
        return self._reshape((-1,), "flatten")

    def _reshape(self, dims: Sequence[int], base: str) -> Var:
        shape = _resolve_shape([int(n) for n in dims], self._shape)
        if shape == self._shape:
            return self
        return self._tracer.add("reshape", base, [self], shape, shape_attr=shape)

    def __getitem__(self, key: Any) -> Var:
        if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis:
            key = key[1]
        if isinstance(key, tuple):
            raise TraceError(
                f"x[{', '.join(map(repr, key))}]: a traced variable is one sample and has no batch "
                "axis; slice its features, x[a:b]"
            )
        if len(self._shape) != 1:
            raise ShapeError(
                f"slicing needs a variable with one axis, this one has shape {self._shape}; "
                "flatten it first"
            )
        n = self._shape[0]
        if isinstance(key, slice):
            begin, end, step = key.indices(n)
            if step != 1:
                raise TraceError(f"a slice of features has step 1, got {step}")
            if end <= begin:
                raise ShapeError(f"the slice {begin}:{end} of {n} features is empty")
            if end - begin == n:
                return self
            return self._tracer.add("slice", "slice", [self], (end - begin,), begin=begin, end=end)
        if hasattr(key, "__index__") and not isinstance(key, bool):
            i = key.__index__()
            if not -n <= i < n:
                raise IndexError(f"feature {i} of a variable with {n}")
            return self[i % n : i % n + 1]._reshape((), "view")
        raise TraceError(f"features are selected by slices and integers, got {key!r}")

    def __iter__(self) -> NoReturn:
        raise TraceError("a traced variable cannot be iterated over; slice its features, x[a:b]")

    # Arithmetic -------------------------------------------------------------------------------

    def __neg__(self) -> Var:
        return self._affine(-1.0, 0.0, "neg")

    def __pos__(self) -> Var:
        return self

    def __add__(self, other: Any) -> Var:
        if is_number(other):
            return self._affine(1.0, float(other), "add")
        return self._pair("add", self, other)

    def __radd__(self, other: Any) -> Var:
        return self.__add__(other)

    def __sub__(self, other: Any) -> Var:
        if is_number(other):
            return self._affine(1.0, -float(other), "sub")
        return self._pair("sub", self, other)

    def __rsub__(self, other: Any) -> Var:
        if is_number(other):
            return self._affine(-1.0, float(other), "sub")
        return self._pair("sub", other, self)

    def __mul__(self, other: Any) -> Var:
        if is_number(other):
            return self._affine(float(other), 0.0, "mul")
        return self._pair("mul", self, other)

    def __rmul__(self, other: Any) -> Var:
        return self.__mul__(other)

    def __truediv__(self, other: Any) -> Var:
        if is_number(other):
            if float(other) == 0.0:
                raise ZeroDivisionError("division of a traced variable by zero")
            return self._affine(1.0 / float(other), 0.0, "div")
        return self._pair("div", self, other)

    def __rtruediv__(self, other: Any) -> Var:
        if is_number(other):
            return self._tracer.pointwise("reciprocal", (float(other),), self, "div")
        return self._pair("div", other, self)

    def _affine(self, a: float, b: float, base: str) -> Var:
        return self._tracer.pointwise("affine", (a, b), self, base)

    def _pair(self, kind: str, left: Any, right: Any) -> Var:
        for side in (left, right):
            if not isinstance(side, Var):
                raise TraceError(
                    f"{kind}: a traced variable combines with variables and numbers, not with "
                    f"{type(side).__name__}; trainable arrays enter through layers (nn.Linear)"
                )
        if left.shape != right.shape:
            raise ShapeError(f"{kind}: shapes {left.shape} and {right.shape} differ")
        return self._tracer.add(kind, kind, [left, right], left.shape)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy scalars on the left of an operator, and the NumPy names of some functions."""
        operator = _UFUNCS.get(ufunc.__name__) if method == "__call__" and not kwargs else None
        if operator is None:
            raise TraceError(
                f"np.{ufunc.__name__} cannot be recorded in a graph; use the functions of the "
                "package (gs.relu, gs.tanh, ...)"
            )
        return operator(*inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        raise TraceError(
            f"np.{func.__name__} cannot be recorded in a graph; gs.concat joins variables, and "
            "x.view and x[a:b] reshape and slice them"
        )

    __pow__ = __rpow__ = _no_operator("**")
    __matmul__ = __rmatmul__ = _no_operator("@")
    __mod__ = __rmod__ = _no_operator("%")
    __floordiv__ = __rfloordiv__ = _no_operator("//")
    __abs__ = _no_operator("abs()")

    __array__ = _needs_values("the array")
    __bool__ = _needs_values("the truth")
    __float__ = _needs_values("the number")
    __int__ = _needs_values("the number")
    __index__ = _needs_values("the number")
    __lt__ = _needs_values("a comparison")
    __le__ = _needs_values("a comparison")
    __gt__ = _needs_values("a comparison")
    __ge__ = _needs_values("a comparison")
    __eq__ = _needs_values("a comparison")
    __ne__ = _needs_values("a comparison")
    __hash__ = object.__hash__


def _binary(dunder: str, reflected: str) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        return getattr(a, dunder)(b) if isinstance(a, Var) else getattr(b, reflected)(a)

    return apply


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": _binary("__add__", "__radd__"),
    "subtract": _binary("__sub__", "__rsub__"),
    "multiply": _binary("__mul__", "__rmul__"),
    "divide": _binary("__truediv__", "__rtruediv__"),
    "negative": lambda a: -a,
    "tanh": lambda a: a._tracer.pointwise("tanh", (), a, "tanh"),
    "sin": lambda a: a._tracer.pointwise("sine", (), a, "sine"),
}


def _resolve_shape(dims: list[int], old: Shape) -> Shape:
    size = math.prod(old)
    known = math.prod(n for n in dims if n != -1)
    if dims.count(-1) > 1 or any(n < -1 or n == 0 for n in dims):
        raise ShapeError(f"cannot view {old} as {tuple(dims)}: entries are positive, one may be -1")
    if -1 in dims and size % known == 0:
        dims = [size // known if n == -1 else n for n in dims]
    if math.prod(dims) != size:
        raise ShapeError(
            f"cannot view a sample of shape {old} as {tuple(dims)} (shapes have no batch axis)"
        )
    return tuple(dims)


class Tracer:
    """Builds the graph of one module."""

    def __init__(self, root: Module) -> None:
        self.graph = _core.Graph()
        self.blocks: dict[str, Any] = {}  # stage name -> module, or name of the function
        self.kinds: dict[str, str] = {}
        self.has_dropout = False
        self._names: set[str] = set()
        self._paths = {id(m): path for path, m in root.named_modules()}
        self._parameters: dict[int, str] = {}
        for name, parameter in root.named_parameters():
            self.graph.parameter(name, parameter.shape)
            self._parameters[id(parameter)] = name

    def input(self, name: str, shape: Shape) -> Var:
        """A new input of the graph."""
        return self.add("input", name, [], shape, shape_attr=shape)

    def name_of(self, module: Module) -> str:
        """The stage name of a module: its path from the root."""
        return self._paths.get(id(module)) or type(module).__name__.lower()

    def parameter_name(self, module: Module, parameter: Parameter) -> str:
        """The name of a parameter used by `module`."""
        try:
            return self._parameters[id(parameter)]
        except KeyError:
            raise TraceError(
                f"[{type(module).__name__}] used in forward, but it is not registered in the net: "
                "assign it to an attribute in __init__ (lists of modules: nn.ModuleList)"
            ) from None

    def pointwise(
        self, op: str, params: Sequence[float], x: Var, base: str, block: Any = None
    ) -> Var:
        """Record z = op(x)."""
        return self.add(
            "pointwise", base, [x], x.shape, block=block, op=op, params=[float(p) for p in params]
        )

    def add(
        self,
        kind: str,
        base: str,
        inputs: Sequence[Var],
        shape: Shape,
        *,
        block: Any = None,
        shape_attr: Shape | None = None,
        **attrs: Any,
    ) -> Var:
        """Record one stage named after `base`; returns its output."""
        for x in inputs:
            if x._tracer is not self:
                raise TraceError(f"{base}: {x!r} belongs to another trace; do not keep variables")
        name, n = base, 0
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        if shape_attr is not None:
            attrs["shape"] = shape_attr
        self.graph.add(kind, name, [x._name for x in inputs], **attrs)
        self.blocks[name] = base if block is None else block
        self.kinds[name] = kind
        return Var(self, name, shape)

    def finish(self, root: Module, result: Any) -> tuple[tuple[Var, ...], bool]:
        """Close the graph with what forward returned; (outputs, whether there is just one)."""
        single = not isinstance(result, (tuple, list))
        outputs = (result,) if single else tuple(result)
        for y in outputs:
            if not isinstance(y, Var):
                raise TraceError(
                    f"[{type(root).__name__}] forward returned {type(y).__name__}, expected a "
                    "variable computed from its arguments, or a tuple of them"
                )
        if not outputs:
            raise TraceError(f"[{type(root).__name__}] forward returned an empty tuple")
        seen: set[str] = set()
        final = []
        for y in outputs:
            # Every output is the work of a stage of its own: an input handed through is copied.
            shared = y._name in seen or self.kinds[y._name] == "input"
            final.append(self.pointwise("identity", (), y, "identity") if shared else y)
            seen.add(y._name)
        self.graph.finish([y._name for y in final])
        return tuple(final), single


@functools.lru_cache(maxsize=256)
def _signature(forward: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(forward).parameters.values())


def forward_parameters(root: Module) -> tuple[inspect.Parameter, ...]:
    """The parameters of ``root.forward``, without self; looked up once per function."""
    bound = getattr(root.forward, "__func__", None)
    if bound is None:
        return _signature(root.forward)
    found = _signature(bound)
    return found if found and found[0].kind is inspect.Parameter.VAR_POSITIONAL else found[1:]


def input_names(root: Module, n: int) -> list[str]:
    """Names of the inputs: those of forward's arguments."""
    # A net rebuilt from its graph takes any arguments, and knows what they were called.
    declared: tuple[str, ...] = getattr(root, "_input_names", ())
    if len(declared) == n:
        return list(declared)
    names = [
        p.name
        for p in forward_parameters(root)
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ][:n]
    return names if len(names) == n else ["x", *(f"x{i}" for i in range(1, n))]


def find_var(args: Sequence[Any]) -> Var | None:
    """The first traced variable among `args`."""
    for a in args:
        if isinstance(a, Var):
            return a
    return None


def concat(xs: Sequence[Any]) -> Any:
    """Join variables (inside ``forward``) or arrays along their features.

    Parameters
    ----------
    xs : sequence
        Variables with one axis each, or arrays that agree in all axes but the last.

    Returns
    -------
    Var or numpy.ndarray
        The features of all of them, side by side.
    """
    xs = list(xs)
    if not xs:
        raise ValueError("concat needs at least one variable")
    first = find_var(xs)
    if first is None:
        return np.concatenate([np.asarray(x) for x in xs], axis=-1)
    for x in xs:
        if not isinstance(x, Var):
            raise TraceError(f"concat joins traced variables, got {type(x).__name__} among them")
        if len(x.shape) != 1:
            raise ShapeError(f"concat needs variables with one axis, got shape {x.shape}")
    if len(xs) == 1:
        return first
    return first._tracer.add("concat", "concat", xs, (sum(x.shape[0] for x in xs),))


def trace(root: Module, shapes: Sequence[Shape]) -> tuple[Tracer, tuple[Var, ...], bool, list[str]]:
    """Run `root` once on fresh variables of these sample shapes."""
    tracer = Tracer(root)
    names = input_names(root, len(shapes))
    xs = [tracer.input(n, as_shape(s, n) if s else ()) for n, s in zip(names, shapes, strict=True)]
    result = root._enter(tracer, *xs)
    outputs, single = tracer.finish(root, result)
    return tracer, outputs, single, [x._name for x in xs]
