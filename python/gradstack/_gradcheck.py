"""`gradcheck`: every derivative of a net against differences of its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import as_count, as_number
from gradstack._calculus._point import CostPoint, cost_point, require_samples
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

Array = npt.NDArray[Any]

_DOUBLE = np.dtype(np.float64)
_ROUNDINGS = 64  # roundings of the largest value involved that a difference may suffer


@dataclass(frozen=True)
class Entry:
    """One derivative, computed both ways.

    Attributes
    ----------
    block : str
        Name of the stage; "cost"; or "net", the whole from input to loss.
    what : str
        "dz" (for several inputs "dz[0]", ...), "dw", "dx", "dybar", "jvp", or "hvp" of the cost.
    index : tuple of int
        Which entry: (sample, feature), or (parameter,); without the sample for a single one.
    analytic, numeric : float
        The derivative as computed, and as the differences have it.
    error : float
        Their distance in units of the tolerance: above 1 is wrong.
    """

    block: str
    what: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    error: float


class GradCheck:
    """What `gradcheck` found; true when every derivative is right. Printing it shows a table.

    Attributes
    ----------
    ok : bool
        The verdict.
    worst : Entry
        The entry that is furthest off; its `block` says where.
    checks : list of Entry
        The worst entry of every block and kind of derivative.
    """

    __slots__ = ("checks", "worst")

    def __init__(self, checks: list[Entry]) -> None:
        self.checks = checks
        # A wrong block makes the whole wrong as well: it is the one to name.
        parts = [entry for entry in checks if entry.block != "net"]
        worst = max(parts or checks, key=lambda entry: entry.error)
        self.worst = worst if worst.error > 1 else max(checks, key=lambda entry: entry.error)

    @property
    def ok(self) -> bool:
        """Whether every derivative agrees with the differences."""
        return self.worst.error <= 1.0

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        rows = [("block", "derivative", "worst entry", "computed", "differences", "error")]
        for e in self.checks:
            error = f"{e.error:.2g}" + ("" if e.error <= 1 else " !")
            index = str(list(e.index))
            rows.append((e.block, e.what, index, f"{e.analytic:.6g}", f"{e.numeric:.6g}", error))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(c.ljust(n) for c, n in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        w = self.worst
        verdict = "right" if self.ok else f"wrong: block {w.block!r}, {w.what}{list(w.index)}"
        return "\n".join([f"gradcheck: {verdict}", *lines])


class _Settings(NamedTuple):
    rtol: float
    step: float
    max_entries: int
    rng: np.random.Generator
    single: bool


def gradcheck(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    w: Any = None,
    *,
    rtol: float = 1e-6,
    step: float = 1e-5,
    max_entries: int = 50,
    seed: int = 0,
) -> GradCheck:
    """Check every derivative of a net and its cost by central differences.

    Each block is checked by itself, at the values that it has in this net, and the net as a whole.
    All of it runs in float64 whatever the net's dtype. At a kink any value between the slopes of
    the two sides is right.

    Parameters
    ----------
    net : Module
        Checked as in evaluation mode; blocks written in Python too, ``jvp`` where they define it.
    cost : Cost
        Also one written in Python; ``hvp`` where it defines it.
    x : array_like, or a tuple of them
        One sample or a batch.
    y : array_like or None
        Targets or class labels.
    w : array_like, (P,), optional
        Parameters instead of the net's own.
    rtol : float
        Relative tolerance, beyond the error that the differences themselves are known to have.
    step : float
        Size of the differences, relative to the size of a value where that is above 1.
    max_entries : int
        Features or parameters looked at per derivative; beyond, a random choice.
    seed : int
        Seeds that choice and the directions.

    Returns
    -------
    GradCheck
        True when all is right; ``.worst`` names the block and the entry that are furthest off.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> class Cube(nn.Module):
    ...     def forward(self, x):
    ...         return x**3
    ...     def vjp(self, x, dy):
    ...         return 2 * x**2 * dy
    >>> net = nn.Sequential(nn.Linear(2, 3), Cube(), nn.Linear(3, 1))
    >>> check = gs.gradcheck(net, nn.SquaredError(), np.ones((4, 2)), np.ones(4))
    >>> bool(check), check.worst.block, check.worst.what
    (False, '1', 'dz')
    """
    at = cost_point(net, cost, x, y, w)
    require_samples(at.inputs)
    settings = _Settings(
        as_number(rtol, "rtol", low=0.0),
        as_number(step, "step", low=1e-12, high=1.0),
        as_count(max_entries, "max_entries"),
        np.random.default_rng(as_count(seed, "seed", low=0)),
        at.inputs.single,
    )
    vector = at.w.astype(_DOUBLE)
    xs = [rows.astype(_DOUBLE) for rows in at.inputs.xs]
    target = at.target
    if target is not None and target.dtype.kind == "f":
        target = target.astype(_DOUBLE)
    checks: list[Entry] = []
    if not at.inputs.compiled.discrete[0]:
        program = at.inputs.compiled.program(_DOUBLE)
        trace = program.backprop(vector, xs, target, cost._core_cost(_DOUBLE), per_sample=True)
        graph = {row["name"]: row for row in at.inputs.compiled.graph.stages()}
        shapes = {p["name"]: tuple(p["shape"]) for p in at.inputs.compiled.graph.parameters()}
        for row in trace["stages"]:
            block = _Block(row, graph, shapes, vector)
            checks += _check_block(block, settings)
        checks += _check_cost(cost, trace["ybars"][0], target, settings)
    checks += _check_net(at, vector, xs, target, settings)
    return GradCheck(checks)


class _Block:
    """One stage of a net as a program of its own."""

    def __init__(
        self,
        row: dict[str, Any],
        graph: dict[str, Any],
        shapes: dict[str, tuple[int, ...]],
        vector: Array,
    ) -> None:
        self.name: str = row["name"]
        self.zs: list[Array] = list(row["z"])
        self.w = np.concatenate([vector[:0], *(vector[o : o + n] for o, n in row["params"])])
        description = graph[self.name]
        alone = _core.Graph()
        attrs = {k: v for k, v in description.items() if k not in ("name", "kind", "inputs")}
        if description["kind"] not in ("opaque", "reshape"):
            del attrs["shape"]
        for key in ("weight", "bias"):
            if attrs.get(key) is not None:
                alone.parameter(attrs[key], shapes[attrs[key]])
        names = [f"z{i}" for i in range(len(self.zs))]
        for name, source in zip(names, description["inputs"], strict=True):
            alone.add("input", name, [], shape=graph[source]["shape"])
        alone.add(description["kind"], "block", names, **attrs)
        alone.finish(["block"])
        self.program: Any = _core.f64.Program(alone)
        # What the core takes for a Python module always has a jvp, which may refuse.
        impl = description.get("impl")
        module = getattr(impl, "module", None)
        self.has_jvp = impl is None or callable(getattr(module, "jvp", getattr(module, "dh", None)))

    def forward(self, zs: Sequence[Array], w: Array) -> Array:
        """Output rows, (B, out)."""
        out: Array = self.program.forward(w, list(zs))[0]
        return out


def _check_block(block: _Block, settings: _Settings) -> list[Entry]:
    out = block.forward(block.zs, block.w)
    u = settings.rng.standard_normal(out.shape)
    dzs, dw = block.program.vjp(block.w, block.zs).pull([u])
    checks = []
    for i, (z, dz) in enumerate(zip(block.zs, dzs, strict=True)):

        def shifted(moved: Array, i: int = i) -> Array:
            zs = [moved if k == i else other for k, other in enumerate(block.zs)]
            values: Array = np.sum(u * block.forward(zs, block.w), axis=1)
            return values

        what = "dz" if len(block.zs) == 1 else f"dz[{i}]"
        checks.append(_by_feature(block.name, what, shifted, z, dz, settings))
    if block.w.size:

        def total(w: Array) -> float:
            return float(np.sum(u * block.forward(block.zs, w)))

        checks.append(_by_parameter(block.name, total, block.w, dw, settings))
    if block.has_jvp:
        checks.append(_check_jvp(block, settings))
    return checks


def _check_jvp(block: _Block, settings: _Settings) -> Entry:
    dzs = [settings.rng.standard_normal(z.shape) for z in block.zs]
    dw = settings.rng.standard_normal(block.w.shape)
    dy = block.program.jvp(block.w, block.zs, dzs, dw)[1][0]

    def along(t: float) -> Array:
        zs = [z + t * dz for z, dz in zip(block.zs, dzs, strict=True)]
        return block.forward(zs, block.w + t * dw)

    return _by_direction(block.name, "jvp", along, dy, settings)


def _check_cost(cost: Cost, ybar: Array, target: Array | None, settings: _Settings) -> list[Entry]:
    core = cost._core_cost(_DOUBLE)

    def losses(moved: Array) -> Array:
        values: Array = core.per_sample(moved, target)
        return values

    gradient = np.asarray(cost.gradient(ybar, target), _DOUBLE)
    checks = [_by_feature("cost", "dybar", losses, ybar, gradient, settings)]
    if callable(getattr(cost, "hvp", None)):
        v = settings.rng.standard_normal(ybar.shape)

        def along(t: float) -> Array:
            values: Array = core.gradient(ybar + t * v, target)
            return values

        product = core.curvature(ybar, target, v)
        checks.append(_by_direction("cost", "hvp", along, product, settings))
    return checks


def _check_net(
    at: CostPoint, vector: Array, xs: list[Array], target: Array | None, settings: _Settings
) -> list[Entry]:
    compiled, cost = at.inputs.compiled, at.cost
    program = compiled.program(_DOUBLE)
    core = cost._core_cost(_DOUBLE)
    checks = []
    if not compiled.discrete[0]:
        pullback = program.vjp(vector, xs)
        dxs, _ = pullback.pull([np.asarray(cost.gradient(pullback.outputs[0], target), _DOUBLE)])
        for i, (x, dx) in enumerate(zip(xs, dxs, strict=True)):

            def losses(moved: Array, i: int = i) -> Array:
                inputs = [moved if k == i else other for k, other in enumerate(xs)]
                values: Array = core.per_sample(program.forward(vector, inputs)[0], target)
                return values

            what = "dx" if len(xs) == 1 else f"dx[{i}]"
            checks.append(_by_feature("net", what, losses, x, dx, settings))
    if vector.size:

        def loss(w: Array) -> float:
            return float(_core.f64.evaluate(program, w, xs, target, core))

        _, dw = program.value_and_grad(vector, xs, target, core)
        checks.append(_by_parameter("net", loss, vector, dw, settings))
    return checks


def _by_feature(
    block: str,
    what: str,
    f: Callable[[Array], Array],
    z: Array,
    dz: Array,
    settings: _Settings,
) -> Entry:
    """Compare the gradient of f(z), (B,), of which each value depends on its own row of z."""
    entries = []
    for j in _choose(z.shape[1], settings):
        h = settings.step * np.maximum(1.0, np.abs(z[:, j]))

        def moved(t: float, j: int = j, h: Array = h) -> Array:
            shifted = z.copy()
            shifted[:, j] += t * h
            return f(shifted)

        b, *numbers = _compare(moved, h, dz[:, j], settings)
        entries.append(Entry(block, what, (j,) if settings.single else (b, j), *numbers))
    return max(entries, key=lambda entry: entry.error)


def _by_parameter(
    block: str, f: Callable[[Array], float], w: Array, dw: Array, settings: _Settings
) -> Entry:
    """Compare the gradient of f(w)."""
    entries = []
    for j in _choose(w.size, settings):
        h = settings.step * np.maximum(1.0, np.abs(w[j : j + 1]))

        def moved(t: float, j: int = j, h: Array = h) -> Array:
            shifted = w.copy()
            shifted[j] += t * h[0]
            return np.array([f(shifted)])

        _, *numbers = _compare(moved, h, dw[j : j + 1], settings)
        entries.append(Entry(block, "dw", (j,), *numbers))
    return max(entries, key=lambda entry: entry.error)


def _by_direction(
    block: str, what: str, f: Callable[[float], Array], dy: Array, settings: _Settings
) -> Entry:
    """Compare df/dt at t = 0 with `dy`, (B, d)."""

    def moved(t: float) -> Array:
        return f(t * settings.step).reshape(-1)

    h = np.full(dy.size, settings.step)
    k, *numbers = _compare(moved, h, dy.reshape(-1), settings)
    b, i = divmod(k, dy.shape[1])
    return Entry(block, what, (i,) if settings.single else (b, i), *numbers)


def _choose(n: int, settings: _Settings) -> list[int]:
    if n <= settings.max_entries:
        return list(range(n))
    chosen = settings.rng.choice(n, settings.max_entries, replace=False)
    return sorted(int(i) for i in chosen)


def _compare(
    f: Callable[[float], Array], h: Array, analytic: Array, settings: _Settings
) -> tuple[int, float, float, float]:
    """Compare df/dt / h at t = 0: (entry, analytic, numeric, error) of the worst entry."""
    with np.errstate(all="ignore"):
        middle, left, right, left2, right2 = (f(t) for t in (0.0, -1.0, 1.0, -0.5, 0.5))
        coarse, fine = (right - left) / (2 * h), (right2 - left2) / h
        # The two central differences differ by 3/4 of the error of the coarse one. At a jump, where
        # nothing can be said, three times that is more than either.
        numeric = (4 * fine - coarse) / 3
        largest = np.max(np.abs([middle, left, right]), axis=0)
        rounding = _ROUNDINGS * np.finfo(_DOUBLE).eps * largest / h
        tolerance = settings.rtol * np.maximum(np.abs(analytic), np.abs(numeric))
        tolerance = tolerance + 3 * np.abs(fine - coarse) + rounding + np.finfo(_DOUBLE).tiny
        # At a kink the slopes of the two sides do not approach each other as h shrinks.
        slopes = (middle - left2) / (h / 2), (right2 - middle) / (h / 2)
        gap = np.abs(slopes[1] - slopes[0])
        wide = np.abs((right - middle) / h - (middle - left) / h)
        kink = (gap > 0.75 * wide) & (gap > 4 * rounding)
        low, high = np.minimum(*slopes), np.maximum(*slopes)
        distance = np.abs(analytic - numeric)
        beyond = np.maximum(np.maximum(low - analytic, analytic - high), 0)
        error = np.where(kink, np.minimum(beyond, distance), distance) / tolerance
        error = np.where(np.isfinite(error), error, np.inf)
    k = int(error.argmax())
    return k, float(analytic[k]), float(numeric[k]), float(error[k])
