"""Traced nets: the graph of a module for a sample shape, its programs, and calls on arrays.

Also the rule that tells one sample from a batch. Sample shapes come from, in this order: what was
learned (``net.trace``, ``gs.fit``, the first call), what the net knows (its first Linear), or
trying ``x.shape`` and then ``x.shape[1:]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack import _core, _random
from gradstack._arrays import LentArray, as_dtype, as_real, as_vector
from gradstack._device import open_device, place, require_float32
from gradstack._flat import FLOATS, clock
from gradstack._trace import Shape, ShapeError, TraceError, forward_parameters, input_names, trace

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]
Signature = list[tuple["Module", int, bool]]

_MOST_ARRAYS = 8  # inputs or outputs of a short call


def core_for(dtype: np.dtype[Any]) -> Any:
    """The half of the compiled core that works in `dtype`."""
    return _core.f64 if dtype == FLOATS[1] else _core.f32


class Compiled:
    """The graph of a net for one sample shape and mode, with a program per dtype."""

    def __init__(self, root: Module, shapes: Sequence[Shape]) -> None:
        tracer, outputs, self.single_output, self.in_names = trace(root, shapes)
        self.graph = tracer.graph
        self.blocks = tracer.blocks
        self.kinds = tracer.kinds
        self.has_dropout = tracer.has_dropout
        self.in_shapes = tuple(tuple(s) for s in shapes)
        self.out_shapes = tuple(y.shape for y in outputs)
        self.out_names = [y._name for y in outputs]
        # The index of the nearest prototype is the one output that is not a real number.
        self.discrete = [tracer.kinds[y._name] == "nearest" for y in outputs]
        self.in_sizes = [math.prod(s) for s in self.in_shapes]
        self.out_sizes = [math.prod(s) for s in self.out_shapes]
        self.signature = signature(root)
        self.clock = clock.now
        self._programs: dict[np.dtype[Any], Any] = {}
        self._device_programs: dict[tuple[str, str], Any] = {}

    def program(self, dtype: np.dtype[Any]) -> Any:
        """The program that runs the graph in `dtype`."""
        program = self._programs.get(dtype)
        if program is None:
            program = self._programs[dtype] = core_for(dtype).Program(self.graph)
        return program


def program_on(
    compiled: Compiled, dtype: np.dtype[Any], device: str, owner: str, precision: str = "float32"
) -> Any:
    """The program that runs a graph on a device."""
    if device == "cpu":
        return compiled.program(dtype)
    require_float32(device, dtype, owner)
    key = device, precision
    program = compiled._device_programs.get(key)
    if program is None:
        program = _core.device.DeviceProgram(compiled.graph, open_device(device), precision)
        compiled._device_programs[key] = program
    return program


def program_for(net: Module, inputs: Inputs) -> Any:
    """The program of a call, on the device that the net is on."""
    if net._device == "cpu":
        return inputs.program
    owner = type(net).__name__
    return program_on(inputs.compiled, inputs.dtype, net._device, owner, net._precision)


def signature(root: Module) -> Signature:
    """Everything that a trace of `root` may depend on."""
    return [(m, m._stamp, m.training) for m in root.modules()]


def _same(a: Signature, b: Signature) -> bool:
    return len(a) == len(b) and all(
        x[0] is y[0] and x[1] == y[1] and x[2] == y[2] for x, y in zip(a, b, strict=True)
    )


def compiled_for(net: Module, shapes: tuple[Shape, ...]) -> Compiled:
    """The trace of `net` for these sample shapes, from the cache while nothing has changed."""
    net._bind()
    traces = net._traces
    if traces is None:
        traces = net.__dict__["_traces"] = {}
    key = (net.training, shapes)
    found = traces.get(key)
    if found is not None:
        if found.clock == clock.now:
            return found
        if _same(found.signature, signature(net)):
            found.clock = clock.now
            return found
    made = Compiled(net, shapes)
    # A forward that sets attributes advanced the clock; the parameters did not move.
    net._bind()
    made.clock = clock.now
    traces[key] = made
    return made


def known_shapes(net: Module) -> tuple[Shape, ...] | None:
    """The sample shapes as far as they are known without an input."""
    if net._learned is not None:
        return net._learned
    hint = net._sample_hint()
    return None if hint is None else (hint.shape,)


def trace_net(net: Module, shapes: tuple[Shape, ...] | None) -> Compiled:
    """Trace for given or known sample shapes and remember them."""
    if shapes is None:
        shapes = known_shapes(net)
        if shapes is None:
            raise ValueError(
                f"[{type(net).__name__}] its sample shape is not known yet: pass it, as in "
                "net.trace((784,))"
            )
    compiled = compiled_for(net, shapes)
    net.__dict__["_learned"] = shapes
    return compiled


class Inputs:
    """What a call was given: batches for the core, and how to shape the answer."""

    __slots__ = (
        "compiled",
        "count",
        "device",
        "dtype",
        "lent",
        "program",
        "shapes",
        "single",
        "xs",
    )

    def __init__(
        self, net: Module, compiled: Compiled, arrays: Sequence[Array], single: bool
    ) -> None:
        self.compiled = compiled
        self.device = "cpu"  # where arguments may lie, apart from the host
        self.single = single
        self.shapes = [a.shape for a in arrays]
        self.count = 1 if single else arrays[0].shape[0]
        self.dtype = working_dtype(net, arrays)
        self.program = compiled.program(self.dtype)
        self.xs = [
            as_dtype(a, self.dtype, name).reshape(self.count, size)
            for a, name, size in zip(arrays, compiled.in_names, compiled.in_sizes, strict=True)
        ]
        # An input lies on the device: results will, too.
        self.lent = any(isinstance(x, LentArray) for x in self.xs)

    def device_rows(self, sizes: Sequence[int]) -> list[Any]:
        """New rows on the device, one array per number of features."""
        device = open_device(self.device)
        return [_core.device.empty(device, (self.count, n)) for n in sizes]

    def outputs(self, ys: Sequence[Any]) -> Any:
        """Rows of the core as the user's outputs."""
        compiled = self.compiled
        result = []
        for y, shape, discrete in zip(ys, compiled.out_shapes, compiled.discrete, strict=True):
            rows = y.numpy() if discrete and self.lent else y
            shaped = rows.reshape(shape if self.single else (self.count, *shape))
            result.append(shaped.astype(np.int64) if discrete else shaped)
        return result[0] if compiled.single_output else tuple(result)

    def inputs(self, dxs: Sequence[Array]) -> Any:
        """Rows of the core in the shapes of the inputs."""
        result = [dx.reshape(shape) for dx, shape in zip(dxs, self.shapes, strict=True)]
        return result[0] if len(result) == 1 else tuple(result)

    def output_rows(self, value: Any, name: str) -> list[Array | None]:
        """The user's `value`, shaped as the outputs, as rows for the core (None stays None)."""
        compiled = self.compiled
        values = (value,) if compiled.single_output else value
        if not isinstance(values, (tuple, list)) or len(values) != len(compiled.out_shapes):
            raise ValueError(f"{name} must be a tuple of {len(compiled.out_shapes)} arrays")
        rows: list[Array | None] = []
        for v, shape, size in zip(values, compiled.out_shapes, compiled.out_sizes, strict=True):
            rows.append(None if v is None else self._rows(v, shape, size, name))
        return rows

    def input_rows(self, value: Any, name: str) -> list[Array | None]:
        """The user's `value`, shaped as the inputs, as rows for the core (None stays None)."""
        values = (value,) if len(self.shapes) == 1 else value
        if values is None:
            return [None] * len(self.shapes)
        if not isinstance(values, (tuple, list)) or len(values) != len(self.shapes):
            raise ValueError(f"{name} must be a tuple of {len(self.shapes)} arrays")
        rows: list[Array | None] = []
        for v, shape, size in zip(values, self.shapes, self.compiled.in_sizes, strict=True):
            sample = shape if self.single else shape[1:]
            rows.append(None if v is None else self._rows(v, sample, size, name))
        return rows

    def _rows(self, value: Any, sample: Shape, size: int, name: str) -> Array:
        array = as_dtype(place(value, self.device, name), self.dtype, name)
        expected = sample if self.single else (self.count, *sample)
        if array.shape != expected:
            raise ValueError(f"{name} has shape {array.shape}, expected {expected}")
        return array.reshape(self.count, size)


def working_dtype(net: Module, arrays: Sequence[Array]) -> np.dtype[Any]:
    """The net's dtype; without parameters float32 unless an input asks for float64."""
    w = net.w
    if w.size:
        return w.dtype
    narrow = all(a.dtype.kind == "f" and a.dtype.itemsize <= 4 for a in arrays)
    return FLOATS[0] if narrow else FLOATS[1]


def split_inputs(net: Module, x: Any) -> tuple[Any, ...]:
    """The inputs in the `x` of a functional call: a tuple means several."""
    if not isinstance(x, tuple):
        return (x,)
    if len(x) != 1:
        kinds = [p.kind for p in forward_parameters(net)]
        if len(kinds) == 1 and kinds[0].name != "VAR_POSITIONAL":
            return (x,)  # one input, given as a tuple of numbers
    return x


def read(net: Module, xs: Sequence[Any], device: str = "cpu") -> Inputs:
    """Check and convert the inputs of a call on a device; they may lie in its memory."""
    if not xs:
        raise TypeError(f"[{type(net).__name__}] called without an input")
    if device != "cpu":
        names = ["x"] if len(xs) == 1 else input_names(net, len(xs))
        inputs = read(net, [place(x, device, name) for x, name in zip(xs, names, strict=True)])
        inputs.device = device
        return inputs
    names = ["x"] if len(xs) == 1 else input_names(net, len(xs))
    arrays = [as_real(x, name) for x, name in zip(xs, names, strict=True)]
    learned = net._learned
    if learned is None:
        hint = net._sample_hint()
        if hint is None:
            return _infer(net, arrays, names)
        learned = (hint.shape,)
        if hint.flattens and len(arrays) == 1:
            arrays = [_flatten_samples(arrays[0], hint.shape[0])]
            inputs = _match(net, learned, arrays, names, hint.owner)
            inputs.shapes = [np.shape(xs[0])]
            return inputs
        return _match(net, learned, arrays, names, hint.owner)
    try:
        return _match(net, learned, arrays, names, type(net).__name__)
    except ValueError:
        if not _changed_since_learning(net):
            raise
    net.__dict__["_learned"] = None
    return read(net, xs)


def _changed_since_learning(net: Module) -> bool:
    """Whether layers were exchanged after a call had settled the sample shape."""
    assert net._learned is not None
    now = signature(net)
    traces = net._traces or {}
    return not any(
        shapes == net._learned and _same(compiled.signature, now)
        for (_, shapes), compiled in traces.items()
    )


def _flatten_samples(x: Array, size: int) -> Array:
    """(B, ...) or (...) with `size` values per sample as (B, size) or (size,)."""
    if x.ndim > 1 and math.prod(x.shape[1:]) == size:
        return x.reshape(x.shape[0], size)
    if x.ndim > 1 and x.size == size:
        return x.reshape(size)
    return x


def _match(
    net: Module,
    shapes: tuple[Shape, ...],
    arrays: Sequence[Array],
    names: Sequence[str],
    owner: str,
) -> Inputs:
    """Read inputs whose sample shapes are known."""
    if len(arrays) != len(shapes):
        raise ValueError(f"[{type(net).__name__}] got {len(arrays)} inputs, expected {len(shapes)}")
    single: bool | None = None
    for array, shape, name in zip(arrays, shapes, names, strict=True):
        if array.shape == shape:
            one = True
        elif array.ndim == len(shape) + 1 and array.shape[1:] == shape:
            one = False
        else:
            raise ValueError(_mismatch(owner, name, array.shape, shape))
        if single is not None and one != single:
            raise ValueError(
                f"[{owner}] {names[0]} and {name} must all be single samples or all batches, got "
                f"shapes {[a.shape for a in arrays]}"
            )
        single = one
    _same_count(owner, arrays, names, bool(single))
    return Inputs(net, compiled_for(net, shapes), arrays, bool(single))


def _mismatch(owner: str, name: str, got: Shape, expected: Shape) -> str:
    if len(expected) == 1 and len(got) in (1, 2):
        return f"[{owner}] {name} has {got[-1]} features per sample, expected {expected[0]}"
    inner = ", ".join(map(str, expected))
    return (
        f"[{owner}] {name} has shape {got}, expected {expected} for one sample or "
        f"(B, {inner}) for a batch"
    )


def _same_count(owner: str, arrays: Sequence[Array], names: Sequence[str], single: bool) -> None:
    if single:
        return
    for array, name in zip(arrays, names, strict=True):
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(
                f"[{owner}] {name} has {array.shape[0]} samples, {names[0]} has "
                f"{arrays[0].shape[0]}"
            )


def _infer(net: Module, arrays: Sequence[Array], names: Sequence[str]) -> Inputs:
    """Read inputs of a net that has not learned its sample shape: one sample if that fits."""
    full = tuple(a.shape for a in arrays)
    can_be_batch = all(a.ndim >= 1 for a in arrays)
    try:
        if any(0 in shape for shape in full):
            raise ShapeError(f"[{type(net).__name__}] a sample of shape {full[0]} is empty")
        compiled, single = compiled_for(net, full), True
    except TraceError:
        raise
    except Exception as error:
        # The user's own code may object to a batch as well: it is asked about one sample too.
        if not can_be_batch:
            raise
        compiled, single = _as_batch(net, full, error), False
    _same_count(type(net).__name__, arrays, names, single)
    inputs = Inputs(net, compiled, arrays, single)
    if net.w.size:
        net.__dict__["_learned"] = compiled.in_shapes
    return inputs


def _as_batch(net: Module, full: tuple[Shape, ...], error: Exception) -> Compiled:
    try:
        return compiled_for(net, tuple(s[1:] for s in full))
    except ShapeError as second:
        if isinstance(error, ShapeError):
            if len(full[0]) == 1:
                raise error from None
            raise ShapeError(f"{second}; as one sample: {error}") from None
        raise error from None
    except Exception:
        if isinstance(error, ShapeError):
            raise
        raise error from None


def run_options(net: Module, compiled: Compiled) -> dict[str, Any]:
    """Keyword arguments of a run that depend on the mode of the net."""
    if net.training and compiled.has_dropout:
        return {"train": True, "seed": _random.draw_seed()}
    return {}


def parameters_for(net: Module, inputs: Inputs, w: Any) -> Array:
    """An explicit `w`, or the net's own."""
    own = net.w
    if w is None:
        return own if own.size or own.dtype == inputs.dtype else own.astype(inputs.dtype)
    dtype = own.dtype if own.size else inputs.dtype
    return as_vector(w, own.size, dtype, "w")


def call(net: Module, xs: Sequence[Any], *, w: Any = None, out: Any = None) -> Any:
    """Run a net on arrays."""
    inputs = read(net, xs, net._device)
    compiled = inputs.compiled
    lent = inputs.lent
    outs = None if out is None else _check_out(inputs, out)
    if inputs.count == 0:
        sizes = compiled.out_sizes
        ys = inputs.device_rows(sizes) if lent else [np.empty((0, n), inputs.dtype) for n in sizes]
        return inputs.outputs(ys) if out is None else out
    if outs is not None and any(_overlap(o, x) for o in outs for x in inputs.xs):
        inputs.xs = [x.copy() for x in inputs.xs]
    if outs is None and lent:
        outs = inputs.device_rows(compiled.out_sizes)
        program_for(net, inputs).forward(
            parameters_for(net, inputs, w), inputs.xs, outs=outs, **run_options(net, compiled)
        )
        return inputs.outputs(outs)
    vector = parameters_for(net, inputs, w)
    options = run_options(net, compiled)
    program = program_for(net, inputs)
    if outs is None or any(compiled.discrete):
        result = inputs.outputs(program.forward(vector, inputs.xs, **options))
        if out is None:
            if w is None and not options:
                _offer_short_call(net, inputs)
            return result
        targets = (out,) if compiled.single_output else out
        values = (result,) if compiled.single_output else result
        for target, value in zip(targets, values, strict=True):
            target[...] = value
        return out
    program.forward(vector, inputs.xs, outs=outs, **options)
    if any(isinstance(o, LentArray) for o in outs):
        _core.device.synchronize(open_device(net._device))  # nobody's stream waits for ours
    if w is None and not options:
        _offer_short_call(net, inputs)
    return out


def _overlap(out: Any, x: Any) -> bool:
    """Whether writing to `out` changes `x`; what a device is lent it reads before it writes."""
    return (
        not isinstance(out, LentArray)
        and not isinstance(x, LentArray)
        and (np.may_share_memory(out, x))
    )


def _check_out(inputs: Inputs, out: Any) -> list[Array]:
    compiled = inputs.compiled
    outs = (out,) if compiled.single_output else out
    if not isinstance(outs, (tuple, list)) or len(outs) != len(compiled.out_shapes):
        raise ValueError(f"out must be a tuple of {len(compiled.out_shapes)} arrays")
    rows = []
    for given, shape, size, discrete in zip(
        outs, compiled.out_shapes, compiled.out_sizes, compiled.discrete, strict=True
    ):
        o = place(given, inputs.device, "out", writable=True)
        if not isinstance(o, (np.ndarray, LentArray)):
            raise TypeError(f"out must be a NumPy array, got {type(o).__name__}")
        expected = shape if inputs.single else (inputs.count, *shape)
        dtype = np.dtype(np.int64) if discrete else inputs.dtype
        if o.shape != expected or o.dtype != dtype:
            raise ValueError(
                f"out has shape {o.shape} and dtype {o.dtype}, expected {expected} and {dtype}"
            )
        if isinstance(o, LentArray):
            if any(compiled.discrete):
                raise TypeError("out must be a NumPy array: the output is computed by the host")
        elif not (o.flags.c_contiguous and o.flags.writeable):
            raise ValueError("out must be C-contiguous and writeable")
        rows.append(o.reshape(inputs.count, size))
    return rows


def _offer_short_call(net: Module, inputs: Inputs) -> None:
    """Let the next calls of `net` on arrays like these begin in the core, see NetBase."""
    from gradstack.nn.module import Module

    compiled = inputs.compiled
    if not net.w.size or any(compiled.discrete) or type(net).__call__ is not Module.__call__:
        return
    if net._device != "cpu":
        return
    if len(compiled.in_shapes) <= _MOST_ARRAYS and len(compiled.out_shapes) <= _MOST_ARRAYS:
        net._settle(inputs.program.short_call(net.w, not compiled.single_output))
