"""Where a derivative is taken, and the core's objects that take it, kept between calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._compiled import Compiled, Inputs, core_for, parameters_for, read, split_inputs
from gradstack._device import open_device, require_float32
from gradstack.functional import read_target, require_cost, require_net
from gradstack.nn.cost import Cost, TableCost, read_sample_weight
from gradstack.nn.module import Module

Array = npt.NDArray[Any]

# The core's objects hold plans, whose memory is worth reusing: by trace, then by what they compute.
_kept: WeakKeyDictionary[Compiled, dict[Hashable, Any]] = WeakKeyDictionary()
_MAX_KEPT = 64


def keep(compiled: Compiled, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` gave for this trace and key, made on first use."""
    objects = _kept.setdefault(compiled, {})
    found = objects.get(key)
    if found is None:
        if len(objects) >= _MAX_KEPT:
            objects.clear()
        found = objects[key] = make()
    return found


class Point(NamedTuple):
    """Inputs and parameters of a net."""

    inputs: Inputs
    w: Array


class CostPoint(NamedTuple):
    """Inputs, parameters and targets of a net and its cost."""

    inputs: Inputs
    w: Array
    target: Array | None
    weight: Array | None
    cost: Cost
    device: Any  # see `device_for`

    def core(self, kind: str) -> Any:
        """The core's object for this net and cost, see `cost_core`."""
        return cost_core(self.inputs.compiled, self.cost, kind, self.inputs.dtype, self.device)


def device_for(net: Module, inputs: Inputs) -> Any:
    """The device that computes the derivatives of `net`, None for the CPU."""
    # Derivatives of the nearest neighbour's prototypes are the CPU's everywhere.
    if net._device == "cpu" or any(inputs.compiled.discrete):
        return None
    require_float32(net._device, inputs.dtype, type(net).__name__)
    return open_device(net._device)


def cost_core(
    compiled: Compiled, cost: Cost, kind: str, dtype: np.dtype[Any], device: Any = None
) -> Any:
    """The core's ``PerSample`` ("per_sample") or ``Curvature`` ("hessian", "ggn")."""
    core, given = core_for(dtype), cost._core_cost(dtype)

    def make() -> Any:
        if device is not None and kind == "per_sample":
            return _core.device.DevicePerSample(compiled.graph, device, given)
        if device is not None and kind == "ggn":
            return _core.device.DeviceGaussNewton(compiled.graph, device, given)
        if kind == "per_sample":
            return core.PerSample(compiled.graph, given)
        return core.Curvature(compiled.graph, given, kind)

    # A cost written in Python reaches the core as a new object each time.
    return keep(compiled, (kind, given, device), make) if isinstance(cost, TableCost) else make()


def point(net: Module, x: Any, w: Any) -> Point:
    """Read the arguments of a call without a cost."""
    net = require_net(net)
    inputs = read(net, split_inputs(net, x))
    return Point(inputs, parameters_for(net, inputs, w))


def cost_point(
    net: Module, cost: Cost, x: Any, y: Any, w: Any, sample_weight: Any = None
) -> CostPoint:
    """Read the arguments of a call with a cost."""
    inputs, vector = point(net, x, w)
    target = read_target(net, require_cost(cost), inputs, y)
    weight = read_sample_weight(sample_weight, inputs.count, inputs.dtype, cost.reduction)
    return CostPoint(inputs, vector, target, weight, cost, device_for(net, inputs))


def require_samples(inputs: Inputs) -> None:
    """Refuse an empty batch where an average is asked for."""
    if inputs.count == 0:
        raise ValueError("x has no samples, the average loss is undefined")


def refuse_discrete(net: Module, compiled: Compiled) -> None:
    """Refuse outputs that are indices."""
    if any(compiled.discrete):
        raise ValueError(
            f"[{type(net).__name__}] the output of NearestNeighbour is discrete and has no "
            "derivative"
        )


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: Inputs) -> None:
    """Refuse an `out` that cannot take the result; inputs that share its memory are copied."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, expected {shape} and {dtype}"
        )
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writeable")
    inputs.xs = [x.copy() if np.may_share_memory(out, x) else x for x in inputs.xs]
