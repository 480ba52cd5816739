"""PyTorch modules with a forward of their own: traced by torch.fx, translated node by node.

PyTorch code sees the batch axis, a gradstack graph does not: sizes of axis 0 are tracked as the
symbol `BATCH`, and whatever would mix samples is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradstack import _core
from gradstack._graph_module import GraphModule
from gradstack.interop._from_torch import Layers

if TYPE_CHECKING:
    import torch
    from torch.fx import Node


class _Batch:
    """The number of samples, as ``x.shape[0]`` gives it."""


BATCH = _Batch()


class _Value(str):
    """A per-sample variable: the name of the step that makes it."""


class _Shape:
    """``x.shape``, of which only the batch is known."""


def convert_graph(module: torch.nn.Module, layers: Layers) -> GraphModule:
    """Convert a module by tracing its forward."""
    return _Converter(module, layers).convert()


class _Converter:
    def __init__(self, module: torch.nn.Module, layers: Layers) -> None:
        self._module = module
        self._layers = layers
        self._owner = type(module).__name__
        self._steps: list[dict[str, Any]] = []
        self._inputs: list[str] = []
        self._called: set[str] = set()
        self._functions = _functions()
        self._methods = _methods()

    def convert(self) -> GraphModule:
        nodes, always_on = self._trace()
        self._always_on = always_on
        env: dict[Any, Any] = {}
        outputs: Any = None
        for node in nodes:
            if node.op == "output":
                outputs = _load(node.args[0], env)
            else:
                env[node] = self._node(node, env)
        single = not isinstance(outputs, tuple | list)
        results = (outputs,) if single else tuple(outputs)
        for result in results:
            if not isinstance(result, _Value):
                raise ValueError(f"[{self._owner}] forward returns {result!r}, expected tensors")
        net = GraphModule(self._inputs, self._steps, results, single)
        # In PyTorch's order, so that the flat vector has it too.
        for path, part in self._module.named_modules():
            if path in self._called:
                net.register(path, self._layers.convert(part, path))
            elif (
                path and part._parameters and any(p is not None for p in part._parameters.values())
            ):
                raise ValueError(
                    f"[{self._owner}] block {path!r} ({type(part).__name__}) has parameters of its "
                    "own or is never called, which cannot be converted"
                )
        if any(p is not None for p in self._module._parameters.values()):
            names = ", ".join(self._module._parameters)
            raise ValueError(f"[{self._owner}] parameters outside of layers: {names}")
        return net

    def _trace(self) -> tuple[list[Node], set[str]]:
        """Trace in both modes, which must agree but for dropout; also name dropout left on."""
        mode = {part: part.training for part in self._module.modules()}
        attributes = set(self._module.__dict__)
        try:
            traced = []
            for training in (True, False):
                self._module.train(training)
                traced.append(list(self._symbolic().nodes))
        finally:
            for part, training in mode.items():
                part.training = training
            # torch.fx leaves the constants that it meets on the module.
            for name in set(self._module.__dict__) - attributes:
                delattr(self._module, name)
        in_training, resting = traced
        if [_key(n) for n in in_training] != [_key(n) for n in resting]:
            raise ValueError(f"[{self._owner}] forward does different things in train() and eval()")
        always_on = {
            node.name for node in resting if "dropout" in node.name and _dropout_is_on(node)
        }
        return in_training, always_on

    def _symbolic(self) -> Any:
        import torch
        from torch import fx

        class Tracer(fx.Tracer):
            def is_leaf_module(self, m: torch.nn.Module, path: str) -> bool:
                return type(m).__module__.startswith("torch.nn.") and not isinstance(
                    m, torch.nn.Sequential
                )

        try:
            return Tracer().trace(self._module)
        except Exception as error:
            raise ValueError(
                f"[{self._owner}] torch.fx cannot trace forward (Python control flow that depends "
                f"on the data?): {error}"
            ) from error

    def _node(self, node: Node, env: dict[Any, Any]) -> Any:
        if node.op == "placeholder":
            self._inputs.append(node.name)
            return _Value(node.name)
        if node.op == "get_attr":
            raise self._refuse(node, f"uses {node.target!r} outside of a layer")
        args = _load(tuple(node.args), env)
        kwargs = {key: _load(value, env) for key, value in node.kwargs.items()}
        if node.op == "call_module":
            path = str(node.target)
            (x,) = self._values(node, args)
            # Refuses here, where the block's name is known, what has no counterpart.
            self._layers.convert(self._module.get_submodule(path), path)
            self._called.add(path)
            return self._step(node, "module", [x], path=path)
        table: dict[Any, Any] = self._functions if node.op == "call_function" else self._methods
        translate = table.get(node.target)
        if translate is None:
            raise self._refuse(node, f"calls {_target(node)}, which has no counterpart")
        try:
            return translate(self, node, *args, **kwargs)
        except TypeError as error:
            what = f"calls {_target(node)} in a way not understood: {error}"
            raise self._refuse(node, what) from None

    def _step(self, node: Node, kind: str, inputs: list[_Value], **entries: Any) -> _Value:
        self._steps.append(
            {"kind": kind, "name": node.name, "inputs": [str(x) for x in inputs], **entries}
        )
        return _Value(node.name)

    def _refuse(self, node: Node, what: str) -> ValueError:
        return ValueError(f"[{self._owner}] block {node.name!r} {what}")

    def _values(self, node: Node, args: Any) -> list[_Value]:
        for arg in args:
            if not isinstance(arg, _Value):
                raise self._refuse(node, f"gets {arg!r}, expected a tensor")
        return list(args)

    # Translations: self, node, then the arguments of the PyTorch function ----------------------

    def pointwise(self, node: Node, x: Any, op: str, params: list[float]) -> _Value:
        return self._step(node, "pointwise", self._values(node, [x]), op=op, params=params)

    def arithmetic(self, node: Node, kind: str, a: Any, b: Any) -> _Value:
        """Two tensors, or a tensor and a number, which becomes an affine block."""
        if isinstance(a, _Value) and isinstance(b, _Value):
            return self._step(node, kind, [a, b])
        if isinstance(a, _Value) and _is_number(b):
            b = float(b)
            affine = {"add": [1.0, b], "sub": [1.0, -b], "mul": [b, 0.0]}
            if kind == "div":
                if b == 0:
                    raise self._refuse(node, "divides by zero")
                affine["div"] = [1 / b, 0.0]
            return self.pointwise(node, a, "affine", affine[kind])
        if isinstance(b, _Value) and _is_number(a):
            a = float(a)
            if kind == "div":
                return self.pointwise(node, b, "reciprocal", [a])
            affine = {"add": [1.0, a], "sub": [-1.0, a], "mul": [a, 0.0]}
            return self.pointwise(node, b, "affine", affine[kind])
        raise self._refuse(node, f"combines {a!r} and {b!r}")

    def concat(self, node: Node, tensors: Any, dim: int = 0, **kwargs: Any) -> _Value:
        dim = kwargs.pop("axis", dim)
        if dim not in (1, -1) or kwargs:
            raise self._refuse(node, f"joins along dim={dim}, expected 1 or -1, the features")
        return self._step(node, "concat", self._values(node, tensors))

    def reshape(self, node: Node, x: Any, *shape: Any) -> _Value:
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        # The first axis must stay the batch; -1 there says the same when no later entry is open.
        first, rest = (shape[0], list(shape[1:])) if shape else (None, [])
        whole = first is BATCH or (first == -1 and all(n != -1 for n in rest))
        if not whole or not all(type(n) is int for n in rest):
            raise self._refuse(node, f"reshapes to {shape}, which does not keep the batch axis")
        return self._step(node, "reshape", self._values(node, [x]), shape=rest)

    def squeeze(self, node: Node, x: Any, dim: int | None = None) -> _Value:
        if dim not in (1, -1):
            raise self._refuse(node, f"squeezes dim={dim}, expected 1 or -1, the one feature")
        return self._step(node, "reshape", self._values(node, [x]), shape=[])

    def flatten(self, node: Node, x: Any, start_dim: int = 0, end_dim: int = -1) -> _Value:
        if (start_dim, end_dim) != (1, -1):
            raise self._refuse(node, "flattens the batch axis too; start_dim=1 leaves it alone")
        return self._step(node, "reshape", self._values(node, [x]), shape=[-1])

    def getitem(self, node: Node, x: Any, key: Any) -> Any:
        if isinstance(x, _Shape):
            if key == 0:
                return BATCH
            raise self._refuse(node, "uses the number of features; write it as a number")
        whole = slice(None)
        if isinstance(key, tuple) and len(key) == 2 and key[0] in (Ellipsis, whole):
            part = key[1]
            if isinstance(part, slice) and part.step in (None, 1):
                bounds = {"begin": part.start, "end": part.stop}
                if all(n is None or type(n) is int for n in bounds.values()):
                    return self._step(node, "slice", self._values(node, [x]), **bounds)
        raise self._refuse(node, f"takes [{key}], expected features as in x[:, a:b]")

    def size(self, node: Node, x: Any, dim: int | None = None) -> Any:
        return _Shape() if dim is None else self.getitem(node, _Shape(), dim)

    def attribute(self, node: Node, x: Any, name: str) -> Any:
        if name == "shape":
            return _Shape()
        raise self._refuse(node, f"uses .{name}")

    def over_features(self, node: Node, x: Any, kind: str, dim: Any) -> _Value:
        if dim not in (1, -1):
            raise self._refuse(node, f"has dim={dim}, expected 1 or -1, the features")
        return self._step(node, kind, self._values(node, [x]))

    def dropout(self, node: Node, x: Any, p: float, training: bool) -> _Value:
        if node.name in self._always_on:
            raise self._refuse(node, "drops in eval() as well; use training=self.training")
        if not training:
            return self.pointwise(node, x, "identity", [])
        return self._step(node, "dropout", self._values(node, [x]), p=p)


def _load(value: Any, env: dict[Any, Any]) -> Any:
    """Replace fx nodes by what they were translated to."""
    if isinstance(value, tuple | list):
        return type(value)(_load(item, env) for item in value)
    if isinstance(value, slice):
        return slice(*(_load(n, env) for n in (value.start, value.stop, value.step)))
    return env.get(value, value) if value.__class__.__name__ == "Node" else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Tables -------------------------------------------------------------------------------------------

_Translate = Callable[..., Any]


def _functions() -> dict[Any, _Translate]:
    """List translations of functions; their signatures are those of PyTorch."""
    import torch
    from torch.nn import functional

    table: dict[Any, _Translate] = {
        getattr: _Converter.attribute,
        operator.getitem: _Converter.getitem,
        operator.neg: _neg,
        torch.neg: _neg,
        torch.flatten: _Converter.flatten,
        torch.reshape: _Converter.reshape,
        torch.squeeze: _Converter.squeeze,
        functional.gelu: _gelu,
        functional.dropout: _dropout,
    }
    for cat in (torch.cat, torch.concat, torch.concatenate):
        table[cat] = _Converter.concat
    for kind, name in (("add", "add"), ("sub", "sub"), ("mul", "mul"), ("div", "truediv")):
        for function in (getattr(operator, name), getattr(torch, kind)):
            table[function] = _binary(kind)
        table[getattr(operator, f"i{name}")] = _binary(kind)
    for kind in ("softmax", "log_softmax"):
        for module in (torch, functional):
            table[getattr(module, kind)] = _over_features(kind)
    for name, translate in _pointwise_by_name().items():
        for module in (torch, functional):
            if hasattr(module, name):
                table[getattr(module, name)] = translate
    return table


def _methods() -> dict[str, _Translate]:
    """List translations of tensor methods."""
    table: dict[str, _Translate] = {
        "view": _Converter.reshape,
        "reshape": _Converter.reshape,
        "flatten": _Converter.flatten,
        "squeeze": _Converter.squeeze,
        "size": _Converter.size,
        "neg": _neg,
        "contiguous": lambda converter, node, x: x,
        "softmax": _over_features("softmax"),
        "log_softmax": _over_features("log_softmax"),
        "relu_": _pointwise_by_name()["relu"],
    }
    table.update({kind: _binary(kind) for kind in ("add", "sub", "mul", "div")})
    for name in ("relu", "sigmoid", "tanh", "sin"):
        table[name] = _pointwise_by_name()[name]
    return table


def _pointwise_by_name() -> dict[str, _Translate]:
    """List the op table under the names of torch and torch.nn.functional."""
    names = {"log_sigmoid": "logsigmoid", "sine": "sin"}
    skip = {"gelu", "gelu_tanh", "affine", "reciprocal", "identity"}
    return {
        names.get(op["name"], op["name"]): _pointwise(op["name"], op["params"])
        for op in _core.ops()
        if op["name"] not in skip
    }


def _pointwise(op: str, parameters: list[tuple[str, float]]) -> _Translate:
    names = [name for name, _ in parameters]

    def translate(
        converter: _Converter, node: Node, x: Any, *args: Any, inplace: bool = False, **kwargs: Any
    ) -> _Value:
        given = dict(parameters)
        given.update(zip(names, args, strict=False))
        # Positional arguments beyond the op's own: PyTorch's inplace, which changes no value.
        unknown = [key for key in kwargs if key not in given]
        if unknown or len(args) > len(names) + 1:
            raise TypeError(f"arguments {unknown or args}")
        given.update(kwargs)
        return converter.pointwise(node, x, op, [float(given[name]) for name in names])

    return translate


def _binary(kind: str) -> _Translate:
    def translate(converter: _Converter, node: Node, a: Any, b: Any) -> _Value:
        return converter.arithmetic(node, kind, a, b)

    return translate


def _over_features(kind: str) -> _Translate:
    def translate(
        converter: _Converter,
        node: Node,
        x: Any,
        dim: Any = None,
        _stacklevel: int = 3,
        dtype: None = None,
    ) -> _Value:
        if dtype is not None:
            raise TypeError(f"dtype={dtype}")
        return converter.over_features(node, x, kind, dim)

    return translate


def _neg(converter: _Converter, node: Node, x: Any) -> _Value:
    return converter.pointwise(node, x, "affine", [-1.0, 0.0])


def _gelu(converter: _Converter, node: Node, x: Any, approximate: str = "none") -> _Value:
    return converter.pointwise(node, x, "gelu" if approximate == "none" else "gelu_tanh", [])


def _dropout(converter: _Converter, node: Node, x: Any, *args: Any, **kwargs: Any) -> _Value:
    given = {"p": 0.5, "training": True, **dict(zip(("p", "training"), args, strict=False))}
    given.update(kwargs)
    given.pop("inplace", None)
    return converter.dropout(node, x, **given)


def _key(node: Node) -> tuple[Any, ...]:
    """Return what two traces of the same code have in common: constants are named anew."""
    return (node.op, None if node.op == "get_attr" else node.target)


def _dropout_is_on(node: Node) -> bool:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return node.op == "call_function" and bool(training)


def _target(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return f".{name}()" if node.op == "call_method" else name
