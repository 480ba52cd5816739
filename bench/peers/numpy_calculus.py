"""NumPy in float64, written out: what every library must agree with."""

from __future__ import annotations

import numpy as np

from bench import blackbox
from bench.calculus import Array, Problem

Layers = list[tuple[Array, Array]]


def _double(problem: Problem) -> Layers:
    return [(w.astype(np.float64), b.astype(np.float64)) for w, b in problem.layers]


def _states(problem: Problem, layers: Layers) -> tuple[list[Array], list[Array]]:
    """Inputs of the linear blocks and the output; slopes of the pointwise blocks between."""
    zs, slopes = [problem.x.astype(np.float64)], []
    for i, (w, b) in enumerate(layers):
        s = zs[-1] @ w.T + b
        if i + 1 < len(layers):
            if problem.activation == "relu":
                slopes.append((s > 0).astype(np.float64))
                s = np.maximum(s, 0)
            else:
                s = np.tanh(s)
                slopes.append(1 - s * s)
        zs.append(s)
    return zs, slopes


def jacobian(problem: Problem) -> Array:
    """(B, out, in): the Jacobians of the blocks multiplied from the output down."""
    layers = _double(problem)
    _, slopes = _states(problem, layers)
    product = np.repeat(layers[-1][0][None], len(problem.x), axis=0)
    for (w, _), slope in zip(layers[-2::-1], slopes[::-1], strict=True):
        product = (product * slope[:, None, :]) @ w
    return product


def per_sample_grad(problem: Problem, layers: Layers | None = None) -> Array:
    """(B, P): gradients of each sample's cross entropy."""
    layers = _double(problem) if layers is None else layers
    zs, slopes = _states(problem, layers)
    e = np.exp(zs[-1] - zs[-1].max(1, keepdims=True))
    ds = e / e.sum(1, keepdims=True)
    ds[np.arange(len(ds)), problem.labels] -= 1
    parts: list[Array] = []
    for i in reversed(range(len(layers))):
        parts = [np.einsum("bi,bj->bij", ds, zs[i]).reshape(len(ds), -1), ds, *parts]
        if i:
            ds = (ds @ layers[i][0]) * slopes[i - 1]
    return np.concatenate(parts, axis=1)


def per_sample_grad_norm(problem: Problem) -> Array:
    """(B,): their L2 norms."""
    return np.linalg.norm(per_sample_grad(problem), axis=1)


def hvp(problem: Problem) -> Array:
    """(P,): Hessian of the average times the direction, by a central difference of gradients."""
    v, step = problem.direction.astype(np.float64), 1e-7
    ends = []
    for sign in (1, -1):
        at, moved = 0, []
        for w, b in _double(problem):
            dw, db = np.split(v[at : at + w.size + b.size], [w.size])
            moved.append((w + sign * step * dw.reshape(w.shape), b + sign * step * db))
            at += w.size + b.size
        ends.append(per_sample_grad(problem, moved).mean(axis=0))
    return (ends[0] - ends[1]) / (2 * step)


def population(problem: Problem) -> Array:
    """(members,): the average cross entropy of each."""
    rows = blackbox.population(problem).astype(np.float64)
    layers, samples = blackbox.unpack(problem, rows), np.arange(len(problem.x))
    losses = []
    for member in range(len(rows)):
        zs, _ = _states(problem, [(w[member], b[member]) for w, b in layers])
        losses.append(np.log(np.exp(zs[-1]).sum(axis=1)) - zs[-1][samples, problem.labels])
    return np.mean(losses, axis=1)
