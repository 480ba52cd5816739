"""One batch as a function of w, evaluated by a device: what `BatchProblem` is on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import LentArray, on_host
from gradstack._calculus._jacobian import parameter_jacobian
from gradstack._calculus._point import keep
from gradstack._compiled import Compiled, program_on
from gradstack._data import Data
from gradstack._device import open_device
from gradstack._problem import BatchProblem, LayerMoments, LayerSlot
from gradstack.nn.cost import Cost, TableCost

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]

_FLOAT32 = np.dtype(np.float32)
# Entries of a Jacobian are off by a unit of the last place or two; so is the whole in norm, however
# large it is, since the errors of different entries have nothing to do with each other.
_ROUNDING = 8 * float(np.finfo(np.float32).eps)


def problem_on(
    device: str,
    net: Module,
    compiled: Compiled,
    cost: Cost,
    batch: tuple[list[Any], Any, Any],
    options: dict[str, Any],
) -> BatchProblem:
    """A batch as a function of w on a device; see `BatchProblem` for what it takes."""
    if device == "cpu":
        return BatchProblem(net, compiled, cost, batch, options)
    return DeviceProblem(device, net, compiled, cost, batch, options)


def check_on(device: str, net: Module, compiled: Compiled, cost: Cost) -> None:
    """Refuse what only the CPU runs: other dtypes than float32, blocks and costs in Python."""
    if device == "cpu":
        return
    program_on(compiled, net.w.dtype, device, type(net).__name__)
    if not isinstance(cost, TableCost):
        raise ValueError("cost: a cost written in Python runs on the CPU only")


def upload(device: str, values: Any) -> Any:
    """Rows of float32 in the memory of a device; what is there already stays."""
    if isinstance(values, LentArray):
        return values
    return _core.device.upload(open_device(device), values)


def is_dense(y: Any) -> bool:
    """Whether targets are rows of numbers; labels stay on the host, which looks at them."""
    return y is not None and len(y.shape) == 2


def settle_on(device: str, data: Data) -> Data:
    """A data set in the memory of a device, for steps that see all of it.

    Memory maps stay where they are: their rows are looked at when they are gathered.
    """
    if device == "cpu" or data.unchecked:
        return data
    y = upload(device, data.y) if is_dense(data.y) else data.y
    return Data([upload(device, x) for x in data.xs], y, data.weight, unchecked=False)


class DeviceProblem(BatchProblem):
    """One batch as a function of w, in the memory of a device.

    The device computes in float32: outputs, Jacobians, gradients and products. What is made of few
    numbers per sample is the host's, in the dtype of w: losses of given outputs and their
    curvature. At a w in float64 results have float32's accuracy.

    Parameters
    ----------
    device : str
    net, compiled, cost, batch, options
        As for `BatchProblem`. Inputs and dense targets may lie on the device already; others are
        copied there, once.
    """

    def __init__(
        self,
        device: str,
        net: Module,
        compiled: Compiled,
        cost: Cost,
        batch: tuple[list[Any], Any, Any],
        options: dict[str, Any],
    ) -> None:
        xs, y, weight = batch
        there = [upload(device, x) for x in xs], upload(device, y) if is_dense(y) else y, weight
        super().__init__(net, compiled, cost, there, options)
        self._name = device
        self._device = open_device(device)
        self._targets: dict[np.dtype[Any], tuple[Any, Any]] = {}

    def rank_tolerance(self, size: int) -> float:
        """Singular values below this times the largest are rounding, of Jacobians of any size."""
        return _ROUNDING

    def value(self, w: Array) -> float:
        """Loss at w without dropout: of outputs in float32, by a cost in the dtype of w."""
        y, weight = self._target(w.dtype)
        return float(self.cost._core_cost(w.dtype).value(self.outputs(w), y, weight))

    def outputs(self, w: Array) -> Array:
        """ybar at w without dropout, (B, d)."""
        return super().outputs(w.astype(_FLOAT32)).astype(w.dtype)

    def jacobian_chunks(self, w: Array) -> Iterator[tuple[slice, Array]]:
        """(samples, dybar/dw of shape (samples, d, P)), a few samples at a time."""
        narrow = w.astype(_FLOAT32)
        core = parameter_jacobian(self.compiled, _FLOAT32, self._device)
        for part in self._parts(w.size):
            index = np.arange(self.count)[part]
            xs = [_core.device.gather(x, index) for x in self.batch[0]]
            yield part, core.evaluate(narrow, xs).astype(w.dtype)

    def layer_moments(
        self, w: Array, slots: list[LayerSlot], dybars: Iterable[Array]
    ) -> list[LayerMoments]:
        """Second moments of every layer's inputs and of the gradients at its output."""
        if not slots:
            return []
        blocks = [name for slot in slots for name in slot.blocks]
        core = keep(
            self.compiled,
            ("moments", self._device, *blocks),
            lambda: _core.device.DeviceMoments(self.compiled.graph, self._device, blocks),
        )
        seeds = np.stack(list(dybars), axis=1)
        made = iter(
            core.evaluate(w, self.batch[0], seeds.reshape(-1, seeds.shape[2]), seeds.shape[1])
        )
        found = []
        for slot in slots:
            z, ds = next(made)
            for _ in slot.blocks[1:]:
                more = next(made)
                z, ds = z + more[0], ds + more[1]
            found.append(LayerMoments(z, ds))
        return found

    def _rows(self, dtype: np.dtype[Any]) -> tuple[list[Any], Any, Any]:
        return self.batch

    def _program(self, dtype: np.dtype[Any]) -> Any:
        return program_on(self.compiled, _FLOAT32, self._name, type(self.net).__name__)

    def _target(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Targets and sample weights on the host."""
        found = self._targets.get(dtype)
        if found is None:
            _, y, weight = self.batch
            found = self._targets[dtype] = (
                on_host(y).astype(dtype) if is_dense(y) else y,
                None if weight is None else weight.astype(dtype),
            )
        return found
