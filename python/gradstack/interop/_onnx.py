"""Export of a net to ONNX."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstack._arrays import as_flag
from gradstack._compiled import trace_net
from gradstack._files import atomic_file
from gradstack.functional import require_net
from gradstack.interop._onnx_ops import EMIT, OPSET, Builder

if TYPE_CHECKING:
    from gradstack.nn import Module

_BATCH = "batch"
# IR version 8 belongs to opset 17; a newer one would lock out runtimes that know the opset.
_IR_VERSION = 8
# protobuf cannot hold more in one message.
_MAX_BYTES = 2**31 - 1


def export_onnx(net: Module, path: str | os.PathLike[str], *, simplify: bool = False) -> None:
    """Write a net as an ONNX model for inference.

    Inputs and outputs are named after the graph's stages and have a first axis ``batch`` of any
    length. Masks are folded into the weights, dropout is left out. The file is checked by
    ``onnx.checker`` and written atomically.

    Parameters
    ----------
    net : Module
        A net that knows its sample shape: a Sequential, or any other once it has been called,
        trained or traced (``net.trace(sample_shape)``).
    path : path-like
        The file, usually ``*.onnx``.
    simplify : bool
        Export ``gs.simplify(net)``: the same function with fewer blocks, compared with the net
        before it is written. Outputs are then named after the blocks that are left.

    Raises
    ------
    ImportError
        The package ``onnx`` is not installed (``pip install onnx``).
    ValueError
        The net has a block written in Python, has not been traced, or exceeds ONNX's 2 GB.

    Notes
    -----
    The model uses opset 17 and the net's dtype. ONNX Runtime has no float64 kernel for ``Erf``: a
    float64 net with the exact GELU is valid ONNX but needs another runtime.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gs.export_onnx(net, "net.onnx")  # doctest: +SKIP
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("export_onnx needs the package onnx: pip install onnx") from None
    require_net(net)
    if as_flag(simplify, "simplify"):
        from gradstack._simplify import simplify as simplify_net

        net = simplify_net(net)
    model = build_model(net)
    if model.ByteSize() > _MAX_BYTES:
        raise ValueError(f"the model has {model.ByteSize()} bytes, ONNX files hold {_MAX_BYTES}")
    onnx.checker.check_model(model, full_check=True)
    with atomic_file(path) as file:
        file.write(model.SerializeToString())


def build_model(net: Module) -> Any:
    """Return the ``onnx.ModelProto`` of a net; see `export_onnx`."""
    from onnx import helper

    import gradstack

    compiled = trace_net(net, None)
    stages = {stage["name"]: stage for stage in compiled.graph.stages()}
    dtype = net.w.dtype
    builder = Builder(dtype, stages)
    parameters = {name: np.asarray(array) for name, array in net.named_parameters()}
    values: dict[str, str] = {}
    for name, stage in stages.items():
        if stage["kind"] == "input":
            values[name] = name
            continue
        emit = _KINDS.get(stage["kind"])
        if emit is None:
            raise ValueError(f"block {name!r} is written in Python and cannot be exported to ONNX")
        values[name] = emit(builder, stage, [values[i] for i in stage["inputs"]], parameters)
    for name in compiled.out_names:
        if values[name] != name:  # dropout was left out
            builder.node("Identity", values[name], name=name)
    inputs = [_describe(name, dtype, stages[name]["shape"]) for name in compiled.in_names]
    index = np.dtype(np.int64)
    outputs = [
        _describe(name, index if discrete else dtype, stages[name]["shape"])
        for name, discrete in zip(compiled.out_names, compiled.discrete, strict=True)
    ]
    body = helper.make_graph(
        builder.nodes, type(net).__name__, inputs, outputs, initializer=builder.initializers
    )
    return helper.make_model(
        body,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="gradstack",
        producer_version=gradstack.__version__,
    )


def _describe(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(dtype), [_BATCH, *shape]
    )


_Stage = dict[str, Any]
_Parameters = dict[str, Any]


def _linear(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    weight = parameters[stage["weight"]]
    name = stage["weight"]
    if stage.get("mask") is not None:
        mask = np.reshape(stage["mask"], weight.shape)
        weight = np.where(mask, weight, 0).astype(weight.dtype)
        # Another block may use the same weight with another mask.
        name = f"{name} masked in {stage['name']}"
    inputs = [x[0], b.tensor(name, weight)]
    if stage.get("bias"):
        inputs.append(b.tensor(stage["bias"], parameters[stage["bias"]]))
    return b.node("Gemm", *inputs, name=stage["name"], transB=1)


def _sparse_linear(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    """A Gemm with zeros: ONNX has no product with an edge list."""
    weight = parameters[stage["weight"]]
    bias = stage.get("bias")
    graph = stage["edges"]
    matrix = np.zeros((*stage["shape"], graph.in_features), weight.dtype)
    matrix[tuple(graph.edges.T)] = weight
    inputs = [x[0], b.tensor(stage["weight"], matrix)]
    if bias:
        inputs.append(b.tensor(bias, parameters[bias]))
    return b.node("Gemm", *inputs, name=stage["name"], transB=1)


def _pointwise(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    EMIT[stage["op"]](b, x[0], stage["params"])
    return b.name_last(stage["name"])


def _nearest(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    """argmin_k ||x - w_k||^2, the first of equals as everywhere in the library."""
    weight = b.tensor(stage["weight"], parameters[stage["weight"]])
    axis, last = _index(b, 1), _index(b, 2)
    difference = b.node("Sub", b.node("Unsqueeze", x[0], axis), weight)
    distance = b.node("ReduceSum", b.node("Mul", difference, difference), last, keepdims=0)
    return b.node("ArgMin", distance, name=stage["name"], axis=1, keepdims=0, select_last_index=0)


def _slice(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    bounds = [_index(b, stage["begin"]), _index(b, stage["end"])]
    return b.node("Slice", x[0], *bounds, _index(b, 1), name=stage["name"])


def _index(b: Builder, *values: int) -> str:
    return b.tensor(f"index {values}", np.array(values, np.int64))


def _reshape(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
    # In ONNX a 0 keeps the input's extent, here the batch's.
    return b.node("Reshape", x[0], _index(b, 0, *stage["shape"]), name=stage["name"])


def _node(kind: str, **attributes: Any) -> Callable[..., str]:
    def emit(b: Builder, stage: _Stage, x: list[str], parameters: _Parameters) -> str:
        return b.node(kind, *x, name=stage["name"], **attributes)

    return emit


_KINDS: dict[str, Callable[[Builder, _Stage, list[str], _Parameters], str]] = {
    "linear": _linear,
    "sparse_linear": _sparse_linear,
    "pointwise": _pointwise,
    "nearest": _nearest,
    "slice": _slice,
    "reshape": _reshape,
    "add": _node("Add"),
    "sub": _node("Sub"),
    "mul": _node("Mul"),
    "div": _node("Div"),
    "concat": _node("Concat", axis=1),
    "softmax": _node("Softmax", axis=-1),
    "log_softmax": _node("LogSoftmax", axis=-1),
    "dropout": lambda b, stage, x, parameters: x[0],
}
