"""A net's architecture as JSON values, and back.

Trees of the library's own modules are kept as they are (a Sequential stays one); any other net is
kept as its traced graph and comes back as a `GraphModule` with the same parameter names.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack import _core, nn
from gradstack._compiled import trace_net
from gradstack._graph_module import GraphModule
from gradstack.nn.module import Module

Array = npt.NDArray[Any]
Config = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

FORMAT = 1


class OpaqueError(ValueError):
    """A net with a block written in Python, which cannot be written down."""


def describe(net: Module) -> Config:
    """Return the architecture of a net.

    Raises
    ------
    OpaqueError
        The net has a block written in Python.
    ValueError
        The net is not a tree of the library's modules and has not been traced.
    """
    config: Config = {"format": FORMAT, "dtype": net.w.dtype.name}
    if net._learned is not None:
        config["sample_shapes"] = [list(shape) for shape in net._learned]
    config["frozen"] = [name for name, p in net.named_parameters() if not p.requires_grad]
    tree = _tree(net)
    if tree is not None:
        config["tree"] = tree
    else:
        config["graph"] = _graph(net)
    config["tied"] = _ties(net)
    return config


def build(config: Config, shapes: Shapes) -> Module:
    """Build a net from what `describe` gave; its parameters hold no meaningful values yet.

    Parameters
    ----------
    config : dict
        The architecture; may come from an untrusted file.
    shapes : mapping of str to tuple
        The shapes of the stored tensors: layers are only made in sizes that are really there.

    Raises
    ------
    ValueError
        The architecture is damaged or does not belong to the tensors.
    """
    try:
        if config["format"] != FORMAT:
            raise ValueError(f"architecture format {config['format']!r}, expected {FORMAT}")
        dtype = np.dtype({"float32": np.float32, "float64": np.float64}[config["dtype"]])
        net: Module
        if "tree" in config:
            net = _build_tree(config["tree"], "", shapes, dtype, {})
        else:
            net = _build_graph(config["graph"], shapes, dtype)
        for slot, canonical in config["tied"]:
            path, _, name = slot.rpartition(".")
            setattr(net.get_submodule(path), name, net.get_parameter(canonical))
        names = dict(net.named_parameters())
        for name in config["frozen"]:
            names[name].requires_grad = False
        if "sample_shapes" in config:
            net.trace(*[tuple(shape) for shape in config["sample_shapes"]])
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"damaged architecture: {error!r}") from None
    return net


# Trees of standard modules ------------------------------------------------------------------------

_CONTAINERS: dict[str, Any] = {
    "Sequential": nn.Sequential,
    "Add": nn.Add,
    "Concat": nn.Concat,
    "Residual": nn.Residual,
}


def _tree(module: Module, path: str = "", seen: dict[int, str] | None = None) -> Config | None:
    """Describe a module and its children; None when one of them is not the library's own."""
    seen = {} if seen is None else seen
    if id(module) in seen:
        return {"same_as": seen[id(module)]}
    seen[id(module)] = path
    if type(module) not in _CONTAINERS.values():
        return _leaf(module)
    children = []
    for name, child in module._modules.items():
        if child is None:
            return None
        config = _tree(child, f"{path}.{name}" if path else name, seen)
        if config is None:
            return None
        children.append([name, config])
    return {"class": type(module).__name__, "children": children}


def _build_tree(
    config: Config,
    path: str,
    shapes: Shapes,
    dtype: np.dtype[Any],
    seen: dict[str, Module],
) -> Module:
    if "same_as" in config:
        return seen[config["same_as"]]
    name = config["class"]
    if name not in _CONTAINERS:
        seen[path] = _build_leaf(config, path, shapes, dtype)
        return seen[path]
    children = {
        key: _build_tree(child, f"{path}.{key}" if path else key, shapes, dtype, seen)
        for key, child in config["children"]
    }
    net: Module = (
        nn.Sequential(children) if name == "Sequential" else _CONTAINERS[name](*children.values())
    )
    seen[path] = net
    return net


# Graphs -------------------------------------------------------------------------------------------


def _graph(net: Module) -> Config:
    compiled = trace_net(net, None)
    paths = {id(module): path for path, module in net.named_modules()}
    steps = []
    for stage in compiled.graph.stages():
        if stage["kind"] == "input":
            continue
        name, kind = stage["name"], stage["kind"]
        if kind == "opaque":
            raise OpaqueError(f"block {name!r} is written in Python")
        step: Config = {"kind": kind, "name": name, "inputs": list(stage["inputs"])}
        block = compiled.blocks[name]
        path = paths.get(id(block)) if isinstance(block, Module) else None
        if path and kind != "reshape" and _leaf(block) is not None:
            step.update(kind="module", path=path)
        elif kind == "reshape":
            step["shape"] = list(stage["shape"])
        elif kind in ("pointwise", "slice"):
            keys = ("op", "params") if kind == "pointwise" else ("begin", "end")
            step.update({key: stage[key] for key in keys})
        steps.append(step)
    return {
        "inputs": list(compiled.in_names),
        "steps": steps,
        "outputs": list(compiled.out_names),
        "single_output": compiled.single_output,
        "modules": list(_containers(net, {step.get("path") for step in steps})),
    }


def _containers(net: Module, used: set[Any]) -> Iterator[list[Any]]:
    """Yield [path, config] of every module that matters, in the order of the parameters."""
    for path, module in net.named_modules():
        if not path and not module._parameters:
            continue
        config = _leaf(module) if path in used else None
        if config is None and module._parameters:
            # Parameters that no standard layer owns keep their places in the flat vector.
            config = {"class": "Module", "parameters": list(module._parameters)}
        if config is not None:
            yield [path, config]


def _build_graph(config: Config, shapes: Shapes, dtype: np.dtype[Any]) -> Module:
    net = GraphModule(
        config["inputs"], config["steps"], config["outputs"], bool(config["single_output"])
    )
    for path, item in config["modules"]:
        if item["class"] != "Module":
            net.register(path, _build_leaf(item, path, shapes, dtype))
            continue
        container: Module = net
        if path:
            container = Module()
            net.register(path, container)
        for name in item["parameters"]:
            full = f"{path}.{name}" if path else name
            if full in shapes:  # else it is tied to one that is
                setattr(container, name, nn.Parameter(np.zeros(shapes[full], dtype)))
    return net


def _ties(net: Module) -> list[list[str]]:
    """List [other name, first name] of parameters that several modules share."""
    first: dict[int, str] = {}
    ties = []
    for path, module in net.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            slot = f"{path}.{name}" if path else name
            if id(parameter) in first:
                ties.append([slot, first[id(parameter)]])
            else:
                first[id(parameter)] = slot
    return ties


# Leaves -------------------------------------------------------------------------------------------


def _leaf(module: Any) -> Config | None:
    """Describe one of the library's own layers; None for anything else."""
    entry = _LEAVES.get(type(module).__name__)
    if entry is None or type(module) is not getattr(nn, type(module).__name__):
        return None
    return {"class": type(module).__name__, **entry[0](module)}


def _build_leaf(config: Config, path: str, shapes: Shapes, dtype: np.dtype[Any]) -> Module:
    arguments = dict(config)
    name = arguments.pop("class")
    if name not in _LEAVES:
        raise ValueError(f"block {path!r} has class {name!r}, which this version does not know")
    return _LEAVES[name][1](_Place(path, shapes, dtype), arguments)


class _Place:
    """Where a layer will stand: its path, the stored shapes, the dtype."""

    def __init__(self, path: str, shapes: Shapes, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        self._shapes = shapes

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Check a parameter against the stored tensor, unless it is tied to another one."""
        full = f"{self.path}.{name}" if self.path else name
        stored = self._shapes.get(full)
        known = stored == shape if stored is not None else shape in self._shapes.values()
        if not known:
            raise ValueError(
                f"damaged architecture: {full!r} should have shape {shape}, stored is {stored}"
            )


def _describe_linear(module: Any) -> Config:
    config: Config = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
    }
    if module.mask is not None:
        bits = np.packbits(np.asarray(module.mask, bool))
        config["mask"] = base64.b64encode(bits.tobytes()).decode()
    return config


def _build_linear(place: _Place, config: Config) -> Module:
    shape = (_count(config["out_features"]), _count(config["in_features"]))
    place.expect("weight", shape)
    if config["bias"]:
        place.expect("bias", shape[:1])
    mask = None
    if "mask" in config:
        bits = np.frombuffer(base64.b64decode(config["mask"], validate=True), np.uint8)
        if bits.size != -(-math.prod(shape) // 8):
            raise ValueError(f"damaged architecture: the mask of {place.path!r} has another size")
        mask = np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)
    return nn.Linear(shape[1], shape[0], bias=bool(config["bias"]), mask=mask, dtype=place.dtype)


def _describe_sparse(module: Any) -> Config:
    edges = base64.b64encode(np.ascontiguousarray(module.edges, "<i4").tobytes()).decode()
    return {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
        "edges": edges,
    }


def _build_sparse(place: _Place, config: Config) -> Module:
    data = base64.b64decode(config["edges"], validate=True)
    if len(data) % 8:
        raise ValueError(f"damaged architecture: the edges of {place.path!r} are incomplete")
    edges = np.frombuffer(data, "<i4").reshape(-1, 2)
    out = _count(config["out_features"])
    place.expect("weight", (len(edges),))
    if config["bias"]:
        place.expect("bias", (out,))
    return nn.SparseLinear(
        _count(config["in_features"]), out, edges, bool(config["bias"]), dtype=place.dtype
    )


def _describe_nearest(module: Any) -> Config:
    prototypes, features = module.weight.shape
    return {"in_features": int(features), "prototypes": int(prototypes)}


def _build_nearest(place: _Place, config: Config) -> Module:
    shape = (_count(config["prototypes"]), _count(config["in_features"]))
    place.expect("weight", shape)
    return nn.NearestNeighbour(shape[1], shape[0], dtype=place.dtype)


def _count(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"damaged architecture: {value!r} is not a size")
    return value


_Leaf = tuple[Callable[[Any], Config], Callable[[_Place, Config], Module]]


def _plain(name: str, *attributes: str) -> _Leaf:
    """Handle a layer whose constructor takes the attributes it keeps."""

    def describe_plain(module: Any) -> Config:
        return {attribute: getattr(module, attribute) for attribute in attributes}

    def build_plain(place: _Place, config: Config) -> Module:
        layer: Module = getattr(nn, name)(**{key: config[key] for key in attributes})
        return layer

    return describe_plain, build_plain


def _leaves() -> dict[str, _Leaf]:
    leaves: dict[str, _Leaf] = {
        op["module"]: _plain(op["module"], *(name for name, _ in op["params"]))
        for op in _core.ops()
        if op["module"]
    }
    leaves["GELU"] = _plain("GELU", "approximate")
    leaves["Linear"] = (_describe_linear, _build_linear)
    leaves["SparseLinear"] = (_describe_sparse, _build_sparse)
    leaves["NearestNeighbour"] = (_describe_nearest, _build_nearest)
    leaves["Dropout"] = _plain("Dropout", "p")
    leaves["Flatten"] = _plain("Flatten")
    leaves["Softmax"] = _plain("Softmax")
    leaves["LogSoftmax"] = _plain("LogSoftmax")
    return leaves


_LEAVES = _leaves()
