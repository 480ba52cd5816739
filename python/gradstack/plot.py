"""Pictures with matplotlib (``pip install 'gradstack[plot]'``), imported when one is drawn.

`landscape` shows a loss over a plane of the parameters and how training moved on it; `Trajectory`
records the way. Block diagrams need no matplotlib, see ``gs.draw``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count, as_real, as_vector, threads_of
from gradstack._compiled import core_for, read, split_inputs
from gradstack.functional import read_target, require_cost, require_net
from gradstack.nn.cost import Cost, read_sample_weight
from gradstack.nn.module import Module

if TYPE_CHECKING:
    from gradstack._callbacks import FitState

__all__ = ["Trajectory", "landscape"]

Array = npt.NDArray[Any]

_MARGIN = 0.2  # around the trajectories, in parts of their extent
_COLORS = ("#c05621", "#1a365d", "#276749", "#702459")


class Trajectory:
    """Records the parameters while a net trains: a callback of ``gs.fit``.

    Parameters
    ----------
    net : Module
        Its parameters now are the first point.
    every : int
        Steps from one point to the next.

    Attributes
    ----------
    w : numpy.ndarray, (T, P)
        All points so far.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> net, X = nn.Linear(1, 1), np.linspace(-1, 1, 8)[:, None]
    >>> path = gs.plot.Trajectory(net)
    >>> _ = gs.fit(net, X, 2 * X, cost=nn.MSELoss(), optimizer=optim.SGD(lr=0.1), batch_size=4,
    ...            epochs=5, callbacks=[path])
    >>> path.w.shape
    (11, 2)
    """

    def __init__(self, net: Module, every: int = 1) -> None:
        self.every = as_count(every, "every")
        self._points = [require_net(net).w.copy()]

    @property
    def w(self) -> Array:
        """All points so far, (T, P)."""
        return np.stack(self._points)

    def on_batch_end(self, state: FitState) -> None:
        """Take the parameters after a step."""
        if state.step % self.every == 0:
            self._points.append(state.net.w.copy())


class _Plane:
    """w = origin + a * directions[0] + b * directions[1]."""

    def __init__(self, origin: Array, directions: Array, labels: Sequence[str]) -> None:
        self.origin = origin
        self.directions = directions
        self.labels = labels
        self._inverse = np.linalg.pinv(directions)

    def project(self, w: Array) -> Array:
        """Coordinates (T, 2) of the points of the plane nearest to w (T, P)."""
        projected: Array = (w - self.origin) @ self._inverse
        return projected

    def points(self, a: Array, b: Array) -> Array:
        """w at coordinates (N,), (N,): (N, P)."""
        lifted: Array = self.origin + np.stack([a, b], axis=1) @ self.directions
        return lifted


def landscape(
    net: Module,
    cost: Cost,
    X: Any,
    y: Any = None,
    *,
    trajectory: Any = None,
    directions: Any = None,
    extent: Sequence[float] | None = None,
    resolution: int = 61,
    sample_weight: Any = None,
    num_threads: int | None = None,
    ax: Any = None,
) -> Any:
    """Contours of the average loss over a plane of the parameters, with the ways down on it.

    For a net of two parameters the plane is all there is, and the axes are the parameters. For
    others it goes through the last point of the (first) trajectory along the two directions in
    which the trajectories extend most (principal components), or along given ones from ``net.w``;
    trajectories are projected onto it.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode; not changed.
    cost : Cost
    X : array_like, or a tuple of them
        The data of the loss.
    y : array_like or None
        Targets or class labels.
    trajectory : array_like (T, P), Trajectory, or mapping of labels to these, optional
        Successive values of ``net.w``.
    directions : array_like, (2, P), optional
        Spans the plane; need not be orthogonal or of unit length, coordinates are multiples.
    extent : (float, float, float, float), optional
        Least and largest coordinate along the first axis, then along the second; by default what
        the trajectories need and a margin.
    resolution : int
        Points along each axis, at least 2.
    sample_weight : array_like, (B,), optional
        Weights of the average.
    num_threads : int or None
        None: as many as pay.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        A shape does not fit, or a net of more than two parameters comes without a trajectory and
        without directions.
    """
    paths = _read_paths(trajectory, require_net(net).w.size)
    plane = _make_plane(net, paths, directions)
    ways = {label: plane.project(path) for label, path in paths.items()}
    box = _read_extent(extent, ways, plane)
    n = as_count(resolution, "resolution", low=2)
    a, b = np.linspace(box[0], box[1], n), np.linspace(box[2], box[3], n)
    grid = np.meshgrid(a, b)
    points = plane.points(grid[0].ravel(), grid[1].ravel())
    losses = _losses(net, cost, X, y, points, sample_weight, num_threads).reshape(n, n)
    return _draw(a, b, losses, ways, plane.labels, ax)


# The plane ----------------------------------------------------------------------------------------


def _read_paths(trajectory: Any, size: int) -> dict[str, Array]:
    """Trajectories by label, in float64."""
    if trajectory is None:
        return {}
    named = trajectory if isinstance(trajectory, Mapping) else {"": trajectory}
    paths = {}
    for label, path in named.items():
        array = as_real(path.w if isinstance(path, Trajectory) else path, "trajectory")
        if array.ndim != 2 or array.shape[1] != size or not len(array):
            raise ValueError(f"trajectory has shape {array.shape}, expected (T, {size})")
        paths[str(label)] = array.astype(np.float64)
    return paths


def _make_plane(net: Module, paths: dict[str, Array], directions: Any) -> _Plane:
    w = net.w.astype(np.float64)
    if directions is not None:
        array = as_real(directions, "directions").astype(np.float64)
        if array.shape != (2, w.size):
            raise ValueError(f"directions have shape {array.shape}, expected (2, {w.size})")
        if np.linalg.matrix_rank(array) < 2:
            raise ValueError("directions are parallel, or one of them is zero")
        return _Plane(w, array, ("first direction", "second direction"))
    if w.size == 2:
        return _Plane(np.zeros(2), np.eye(2), _entry_names(net))
    if not paths:
        raise ValueError(
            f"[{type(net).__name__}] has {w.size} parameters: the plane needs a trajectory or "
            "directions"
        )
    origin = next(iter(paths.values()))[-1]
    moved = np.concatenate([path - origin for path in paths.values()])
    _, strength, axes = np.linalg.svd(np.concatenate([moved, np.zeros((2, w.size))]), False)
    total = float((strength**2).sum()) or 1.0
    shares = [f"{100 * float(s) ** 2 / total:.0f} %" for s in strength[:2]]
    names = [f"principal direction {i + 1} ({share} of the way)" for i, share in enumerate(shares)]
    return _Plane(origin, axes[:2], names)


def _entry_names(net: Module) -> list[str]:
    names = []
    for name, parameter in net.named_parameters():
        one = parameter.size == 1
        names += [name if one else f"{name}[{i}]" for i in range(parameter.size)]
    return names


def _read_extent(
    extent: Sequence[float] | None, ways: dict[str, Array], plane: _Plane
) -> list[float]:
    if extent is not None:
        box: list[float] = as_vector(extent, 4, np.dtype(np.float64), "extent").tolist()
        if not (box[0] < box[1] and box[2] < box[3]):
            raise ValueError(f"extent must be (a0, a1, b0, b1) with a0 < a1 and b0 < b1, got {box}")
        return box
    seen = np.concatenate(list(ways.values())) if ways else np.zeros((1, 2))
    low, high = seen.min(axis=0), seen.max(axis=0)
    size = np.where(high > low, high - low, 0.0)
    # A way along one axis still needs some room across it.
    reach = float(size.max()) or max(1.0, math.sqrt(float((plane.origin**2).mean())))
    size = np.maximum(size, 0.25 * reach)
    middle = (low + high) / 2
    half = (0.5 + _MARGIN) * size
    return [middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]]


def _losses(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any,
    points: Array,
    sample_weight: Any,
    num_threads: int | None,
) -> Array:
    """The average loss at each of the points (N, P)."""
    inputs = read(net, split_inputs(net, x))
    target = read_target(net, require_cost(cost), inputs, y)
    weight = read_sample_weight(sample_weight, inputs.count, inputs.dtype, cost.reduction)
    if inputs.count == 0:
        raise ValueError("X has no samples, the average loss is undefined")
    threads = threads_of(num_threads)
    core, evaluate = cost._core_cost(inputs.dtype), core_for(inputs.dtype).evaluate
    rows = np.ascontiguousarray(points, inputs.dtype)
    values = [
        evaluate(inputs.program, w, inputs.xs, target, core, weight, threads=threads) for w in rows
    ]
    return np.array(values, np.float64)


# The picture --------------------------------------------------------------------------------------


def _draw(
    a: Array, b: Array, losses: Array, ways: dict[str, Array], labels: Sequence[str], ax: Any
) -> Any:
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("landscape needs matplotlib: pip install matplotlib") from error
        _, ax = plt.subplots()
    finite = np.isfinite(losses)
    if not finite.any():
        raise ValueError("the loss is not finite anywhere on the plane")
    shown = np.ma.masked_array(losses, ~finite)
    low, high = float(shown.min()), float(np.quantile(losses[finite], 0.97))
    if high <= low:
        high = low + max(1.0, abs(low)) * 1e-6
    # Squares: around a minimum contours are then at equal distances.
    levels = low + (high - low) * np.linspace(0, 1, 25) ** 2
    filled = ax.contourf(a, b, shown, levels, cmap="Blues", alpha=0.5, extend="max")
    ax.contour(a, b, shown, levels[::2], colors="#1f2933", linewidths=0.4, alpha=0.6)
    ax.figure.colorbar(filled, ax=ax, label="loss", format="%.3g")
    for i, (label, way) in enumerate(ways.items()):
        color = _COLORS[i % len(_COLORS)]
        dots = "." if len(way) <= 100 else None
        ax.plot(*way.T, color=color, lw=1.3, marker=dots, ms=3.5, label=label or None)
        ax.plot(*way[0], "o", mfc="white", mec=color, mew=1.5, ms=6)
        ax.plot(*way[-1], "*", color=color, mec="white", mew=0.6, ms=12)
    if any(ways):
        ax.legend(loc="best", framealpha=0.9, frameon=True)
    ax.set(xlabel=labels[0], ylabel=labels[1], xlim=(a[0], a[-1]), ylim=(b[0], b[-1]))
    ax.grid(False)
    return ax
