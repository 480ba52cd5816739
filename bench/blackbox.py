"""Losses of whole populations of one network, the work of every zeroth-order method."""

from __future__ import annotations

import numpy as np

from bench.calculus import Array, Case, Problem

MEMBERS = 256

# What evolution strategies do all day: at least five times as fast as vmap of a functional call.
CASES = [
    Case(
        "population",
        (4, 64, 64, 2),
        "tanh",
        128,
        peer_ratio=5,
        against="torch.func, vmap(functional_call)",
    )
]


def population(problem: Problem) -> Array:
    """(MEMBERS, P): the parameters of the problem's network, each with noise of its own."""
    w = np.concatenate([part.ravel() for layer in problem.layers for part in layer])
    noise = np.random.default_rng(1).standard_normal((MEMBERS, w.size))
    return (w + 0.05 * noise).astype(np.float32)


def unpack(problem: Problem, rows: Array) -> list[tuple[Array, Array]]:
    """The (weight, bias) of every layer with the members as the leading axis."""
    layers, at = [], 0
    for weight, bias in problem.layers:
        parts = []
        for part in (weight, bias):
            parts.append(rows[:, at : at + part.size].reshape(len(rows), *part.shape))
            at += part.size
        layers.append((parts[0], parts[1]))
    return layers
