"""One batch as a function of w: what an optimiser written in Python sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack._calculus._curvature import cost_hessian
from gradstack._calculus._jacobian import parameter_jacobian
from gradstack._calculus._point import cost_core, keep
from gradstack._compiled import Compiled, core_for
from gradstack._flat import frozen_entries
from gradstack.nn.cost import Cost

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]

_CHUNK = 1 << 22  # values of a Jacobian that are in memory at once
_DOUBLE = np.dtype(np.float64)
_NO_DIRECTION = 1e-12  # an eigenvalue of a cost's Hessian below this times the largest is none


class LayerSlot(NamedTuple):
    """Where the parameters of a layer lie in w, and which blocks use them."""

    weight: slice
    bias: slice | None
    shape: tuple[int, int]  # of the weight: (out, in)
    mask: Array | None  # (out, in), False where a weight contributes nothing
    blocks: tuple[str, ...]  # the linear blocks, in topological order; none for prototypes


def layer_slots(compiled: Compiled) -> list[LayerSlot]:
    """The layers of a net that have weights, in the order of w."""
    slots: list[LayerSlot] = keep(compiled, "slots", lambda: _find_layers(compiled))
    return slots


def dense_slots(compiled: Compiled, owner: str) -> list[LayerSlot]:
    """`layer_slots` for a method that knows dense layers only; others are refused."""
    for row in compiled.graph.stages():
        if row["kind"] == "sparse_linear":
            raise ValueError(
                f"[{owner}] block {row['name']!r} is a SparseLinear, whose weights are no matrix: "
                "use Linear(mask=...), or another optimiser"
            )
    return layer_slots(compiled)


def _find_layers(compiled: Compiled) -> list[LayerSlot]:
    places = {p["name"]: (p["offset"], tuple(p["shape"])) for p in compiled.graph.parameters()}
    found: dict[str, dict[str, Any]] = {}
    for row in compiled.graph.stages():
        if row["kind"] not in ("linear", "nearest"):
            continue
        slot = found.setdefault(row["weight"], {"biases": set(), "masks": [], "blocks": []})
        if row["kind"] == "linear":
            slot["biases"].add(row["bias"])
            slot["masks"].append(row["mask"])
            slot["blocks"].append(row["name"])
    slots = []
    for name, slot in found.items():
        offset, (out, n) = places[name]
        masks = slot["masks"]
        # Tied weights are held only where no block uses them.
        used = any(mask is None for mask in masks) or not masks
        mask = None if used else np.logical_or.reduce(masks).reshape(out, n)
        biases = slot["biases"] - {None}
        start = places[next(iter(biases))][0] if len(biases) == 1 else None
        bias = None if start is None else slice(start, start + out)
        weight = slice(offset, offset + out * n)
        slots.append(LayerSlot(weight, bias, (out, n), mask, tuple(slot["blocks"])))
    return sorted(slots, key=lambda slot: slot.weight.start)


def held_entries(net: Module, compiled: Compiled) -> Array:
    """Indices into w that never move: frozen parameters and masked weights."""
    parts = [frozen_entries(net)]
    for slot in layer_slots(compiled):
        if slot.mask is not None:
            parts.append(slot.weight.start + np.flatnonzero(~slot.mask.reshape(-1)))
    return np.unique(np.concatenate(parts))


class BatchProblem:
    """One batch as a function of w, evaluated by the CPU; `DeviceProblem` has a device do it.

    Parameters
    ----------
    net : Module
    compiled : Compiled
        The trace of `net` in training mode.
    cost : Cost
    batch : tuple
        Inputs (rows per input), targets or None, sample weights or None, as the core takes them.
    options : dict
        How the core runs: train, seed, step, threads.
    """

    _device: Any = None  # that evaluates it, None for the CPU

    def __init__(
        self,
        net: Module,
        compiled: Compiled,
        cost: Cost,
        batch: tuple[list[Array], Any, Any],
        options: dict[str, Any],
    ) -> None:
        self.net = net
        self.compiled = compiled
        self.cost = cost
        self.batch = batch
        self.options = options
        self.dtype = net.w.dtype
        self._wide: tuple[list[Array], Any, Any] | None = None
        self._held: Array | None = None

    @property
    def count(self) -> int:
        """Samples in the batch."""
        return len(self.batch[0][0])

    @property
    def held(self) -> Array:
        """Indices into w that never move: frozen parameters and masked weights."""
        if self._held is None:
            self._held = held_entries(self.net, self.compiled)
        return self._held

    def rank_tolerance(self, size: int) -> float:
        """Singular values below this times the largest are rounding.

        Of Jacobians at a w in float64, `size` their longer side.
        """
        return float(np.finfo(np.float64).eps) * size

    def value_and_grad(self, w: Array) -> tuple[float, Array]:
        """Loss at w and its gradient, zero for frozen parameters; in the dtype of w."""
        xs, y, weight = self._rows(w.dtype)
        core = self.cost._core_cost(w.dtype)
        loss, g = self._program(w.dtype).value_and_grad(w, xs, y, core, weight, **self.options)
        frozen = frozen_entries(self.net)
        if frozen.size:
            g[frozen] = 0
        return float(loss), g

    def value(self, w: Array) -> float:
        """Loss at w without dropout, in the dtype of w."""
        xs, y, weight = self._rows(w.dtype)
        loss = core_for(w.dtype).evaluate(
            self.compiled.program(w.dtype),
            w,
            xs,
            y,
            self.cost._core_cost(w.dtype),
            weight,
            threads=self.options["threads"],
        )
        return float(loss)

    def ggn_product(self, w: Array, v: Array) -> Array:
        """Generalised Gauss-Newton matrix of the loss at w, times v; in the dtype of w."""
        xs, y, weight = self._rows(w.dtype)
        core = cost_core(self.compiled, self.cost, "ggn", w.dtype, self._device)
        product: Array = core.product(w, xs, y, v, weight, self.options["threads"])
        return product

    def outputs(self, w: Array) -> Array:
        """ybar at w without dropout, (B, d)."""
        xs, _, _ = self._rows(w.dtype)
        ybar: Array = self._program(w.dtype).forward(w, xs, threads=self.options["threads"])[0]
        return ybar

    def curvature(self, w: Array, ybar: Array) -> CostCurvature:
        """Gradient and curvature of the average loss in ybar."""
        y, weight = self._target(w.dtype)
        core = self.cost._core_cost(w.dtype)
        return CostCurvature(
            float(core.value(ybar, y, weight)),
            core.gradient(ybar, y, weight),
            _cost_root(core, ybar, y, weight),
        )

    def jacobian_chunks(self, w: Array) -> Iterator[tuple[slice, Array]]:
        """(samples, dybar/dw of shape (samples, d, P)), a few samples at a time."""
        xs, _, _ = self._rows(w.dtype)
        core = parameter_jacobian(self.compiled, w.dtype)
        for part in self._parts(w.size):
            yield part, core.evaluate(w, [x[part] for x in xs], None, self.options["threads"])

    def _parts(self, columns: int) -> list[slice]:
        step = max(1, _CHUNK // max(1, self.compiled.out_sizes[0] * columns))
        return [slice(begin, begin + step) for begin in range(0, self.count, step)]

    def layer_moments(
        self, w: Array, slots: list[LayerSlot], dybars: Iterable[Array]
    ) -> list[LayerMoments]:
        """Second moments of every layer's inputs and of the gradients at its output.

        The gradients are those started from dC/dybar = dybar, (B, d), for each of the `dybars`.
        """
        found: list[LayerMoments] = []
        for dybar in dybars:
            stages = self._backprop(w, dybar)
            if not found:
                found = [
                    LayerMoments(_input_moment(slot, stages), np.zeros((slot.shape[0],) * 2))
                    for slot in slots
                ]
            for slot, moments in zip(slots, found, strict=True):
                for name in slot.blocks:
                    ds = stages[name]["dout"].astype(np.float64)
                    moments.ds[...] += ds.T @ ds
        return found

    def _backprop(self, w: Array, dybar: Array) -> dict[str, Any]:
        xs, _, _ = self._rows(w.dtype)
        core = core_for(w.dtype).PyCost(_GivenGradient(dybar))
        result = self.compiled.program(w.dtype).backprop(w, xs, None, core, per_sample=False)
        return {row["name"]: row for row in result["stages"]}

    def _program(self, dtype: np.dtype[Any]) -> Any:
        return self.compiled.program(dtype)

    def _target(self, dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Targets and sample weights on the host."""
        return self._rows(dtype)[1:]

    def _rows(self, dtype: np.dtype[Any]) -> tuple[list[Array], Any, Any]:
        if dtype == self.dtype:
            return self.batch
        if self._wide is None:
            xs, y, weight = self.batch
            dense = y is not None and y.dtype.kind == "f"
            self._wide = (
                [x.astype(_DOUBLE) for x in xs],
                y.astype(_DOUBLE) if dense else y,
                None if weight is None else weight.astype(_DOUBLE),
            )
        return self._wide


class LayerMoments(NamedTuple):
    """Sums over a batch, and over the blocks that share a layer, in float64."""

    z: Array  # of z^T z, (in, in); with a bias of [z 1]^T [z 1]
    ds: Array  # of ds^T ds, (out, out)


def _input_moment(slot: LayerSlot, stages: dict[str, Any]) -> Array:
    size = slot.shape[1] + (slot.bias is not None)
    total = np.zeros((size, size))
    for name in slot.blocks:
        z = stages[name]["z"][0].astype(np.float64)
        if slot.bias is not None:
            z = np.column_stack([z, np.ones(len(z))])
        total += z.T @ z
    return total


class _GivenGradient:
    """A cost whose gradient is what we say."""

    reduction = "sum"

    def __init__(self, dybar: Array) -> None:
        self._dybar = dybar

    def value(self, ybar: Array, y: Any) -> Array:
        return np.zeros(len(ybar), ybar.dtype)

    def gradient(self, ybar: Array, y: Any) -> Array:
        return self._dybar


class CostRoot(NamedTuple):
    """S with S^T S = d2L/dybar2 of each sample: (B, d) when it is diagonal, else (B, d, d)."""

    s: Array

    def rows(self, jacobian: Array, part: slice) -> Array:
        """S J for some of the samples, (samples * d, P)."""
        s = self.s[part]
        bent = s[:, :, None] * jacobian if s.ndim == 2 else np.matmul(s, jacobian)
        return bent.reshape(-1, jacobian.shape[-1])

    def transposed(self, v: Array) -> Array:
        """S^T v for every sample, (B, d)."""
        return self.s * v if self.s.ndim == 2 else np.einsum("bki,bk->bi", self.s, v)

    def residual(self, gradient: Array) -> Array | None:
        """r with S^T r = `gradient`, (B, d); None when there is none."""
        norms = self.s * self.s if self.s.ndim == 2 else np.sum(self.s * self.s, axis=2)
        bent = gradient * self.s if self.s.ndim == 2 else np.einsum("bki,bi->bk", self.s, gradient)
        # The rows of S are orthogonal, and zero where there is no curvature.
        r = np.divide(bent, norms, out=np.zeros_like(bent), where=norms > 0)
        missing = np.abs(self.transposed(r) - gradient)
        return r if missing.max() <= 1e-12 * np.abs(gradient).max() else None


class CostCurvature(NamedTuple):
    """A cost at ybar."""

    loss: float
    gradient: Array  # (B, d), of the average loss
    root: CostRoot


def _cost_root(cost: Any, ybar: Array, y: Any, weight: Any) -> CostRoot:
    """The convex part of the average loss's curvature in each ybar."""
    diagonal = _diagonal_curvature(cost, ybar, y, weight)
    if diagonal is not None:
        return CostRoot(np.sqrt(np.maximum(diagonal, 0)))
    hessian = cost_hessian(cost, ybar, y, weight)
    if not np.isfinite(hessian).all():  # the loss says so; eigh would raise
        return CostRoot(np.full_like(ybar, np.nan))
    values, vectors = np.linalg.eigh(hessian)
    floor = _NO_DIRECTION * np.abs(values).max(axis=1, keepdims=True)
    roots = np.sqrt(np.where(values > floor, values, 0))
    return CostRoot(roots[:, :, None] * vectors.transpose(0, 2, 1))


def _diagonal_curvature(cost: Any, ybar: Array, y: Any, weight: Any) -> Array | None:
    """d2L/dybar_i2 if no two components of ybar are coupled, (B, d).

    Flipping the signs of some components then flips the products with them, bit for bit. The signs
    follow the binary digits of i, so that any two components differ in one of the patterns.
    """
    d = ybar.shape[1]
    first: Array = cost.curvature(ybar, y, np.ones_like(ybar), weight)
    index = np.arange(d)
    for bit in range((d - 1).bit_length()):
        signs = np.where(index >> bit & 1, -1.0, 1.0).astype(ybar.dtype)
        flipped = cost.curvature(ybar, y, np.tile(signs, (len(ybar), 1)), weight)
        if not np.array_equal(flipped * signs, first):
            return None
    return first
