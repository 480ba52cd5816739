"""Reinforcement learning on CartPole: acting, one environment at a time, and learning.

Both cases have the policy 4-64-64-2 with tanh. Every way to do it is checked before it is timed:
actions must be drawn with the probabilities that NumPy computes in float64, and all learners must
move the parameters alike.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.aims import Verdict
from bench.timing import Timing, interleave

Array = npt.NDArray[Any]
Layers = list[tuple[Array, Array]]

SIZES = (4, 64, 64, 2)
BATCH = 64
CHECKED_STEPS = 100  # of learning
DRAWS = 4000  # of actions, at each checked state
TOLERANCE = 0.02  # of how far the weights have moved; a different formula is off by far more


@dataclass(frozen=True)
class Case:
    """What is timed, and how many times as fast as eager PyTorch it should be."""

    name: str
    ratio: float


ACT = Case("CartPole, acting", 2)
LEARN = Case(f"actor-critic step b{BATCH}", 10)
CASES = [ACT, LEARN]


@dataclass(frozen=True)
class Batch:
    """What an actor-critic learns from."""

    states: Array  # (B, 4)
    actions: Array  # (B,)
    advantages: Array  # (B,)
    worth: Array  # (B,), targets of the critic


def make_layers(outputs: int, seed: int) -> Layers:
    """Draw the parameters of a net: (weight, bias) per layer."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, m in zip(SIZES, (*SIZES[1:-1], outputs), strict=False):
        bound = n**-0.5
        weight, bias = rng.uniform(-bound, bound, (m, n)), rng.uniform(-bound, bound, m)
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    return layers


def make_batch() -> Batch:
    """Draw a batch."""
    rng = np.random.default_rng(5)
    return Batch(
        rng.standard_normal((BATCH, 4)).astype(np.float32),
        rng.integers(0, 2, BATCH),
        rng.standard_normal(BATCH).astype(np.float32),
        rng.standard_normal(BATCH).astype(np.float32),
    )


class Actor:
    """CartPole under a policy that chooses actions at random, one state after the other."""

    def __init__(self, choose: Callable[[Array], int]) -> None:
        import gymnasium

        self.env = gymnasium.make("CartPole-v1")
        self.state = self.env.reset(seed=0)[0]
        self.choose = choose

    def run(self, steps: int) -> None:
        """Make steps, starting anew whenever the pole has fallen."""
        env, choose, state = self.env, self.choose, self.state
        for _ in range(steps):
            state, _, terminated, truncated, _ = env.step(choose(state))
            if terminated or truncated:
                state, _ = env.reset()
        self.state = state


def probabilities(layers: Layers, x: Array) -> Array:
    """What the policy should choose at x, in float64."""
    z = x.astype(np.float64)
    for weight, bias in layers[:-1]:
        z = np.tanh(weight.astype(np.float64) @ z + bias)
    mass = np.exp(layers[-1][0].astype(np.float64) @ z + layers[-1][1])
    return mass / mass.sum()


def check_choice(name: str, choose: Callable[[Array], int], layers: Layers) -> float:
    """Compare the shares of drawn actions with the policy's, at three states."""
    worst = 0.0
    for scale in (0.0, 1.0, 3.0):
        x = np.array([0.5, -1.0, 0.25, 2.0], np.float32) * np.float32(scale)
        p = probabilities(layers, x)[1]
        share = np.mean([choose(x) for _ in range(DRAWS)])
        error = abs(share - p) / np.sqrt(p * (1 - p) / DRAWS)
        if error > 4.5:  # standard deviations of an honest sampler
            raise AssertionError(f"{name} draws action 1 with {share:.3f}, expected {p:.3f}")
        worst = max(worst, float(abs(share - p)))
    return worst


def _libraries() -> list[Any]:
    modules = []
    for library in ("gradstack", "torch"):
        if importlib.util.find_spec(library) is None:
            print(f"({library} is not installed)")
            continue
        modules.append(importlib.import_module(f"bench.peers.{library}_rl"))
    return modules


def _actors() -> tuple[dict[str, Callable[[int], None]], dict[str, float]]:
    layers = make_layers(2, seed=1)
    runs, errors = {}, {}
    for module in _libraries():
        for name, choose in module.choosers(layers).items():
            errors[name] = check_choice(name, choose, layers)
            runs[name] = Actor(choose).run
    return runs, errors


def _learners() -> tuple[dict[str, Callable[[int], None]], dict[str, float]]:
    """All move the parameters alike, up to rounding."""
    arguments = (make_layers(2, seed=1), make_layers(1, seed=2), make_batch(), 1e-3, 0.01)
    start = [w for layers in arguments[:2] for w, _ in layers]
    learners, weights = {}, {}
    for module in _libraries():
        for name, learner in module.learners(*arguments).items():
            learner.run(CHECKED_STEPS)
            learners[name], weights[name] = learner.run, learner.weights()
    expected = weights.get("PyTorch eager, Adam", weights["gradstack"])
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, start, strict=True))
    errors = {}
    for name, own in weights.items():
        off = sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, own, strict=True))
        errors[name] = (off / moved) ** 0.5
        if errors[name] > TOLERANCE:
            raise AssertionError(f"{name} learned something else: off by {errors[name]:.1e}")
    return learners, errors


def measure(
    case: Case, repeats: int, budget: float, only: list[str]
) -> tuple[dict[str, Timing], list[Verdict]]:
    """Check, then time all ways in turns; return the timings and how the aim was met."""
    runs, errors = _actors() if case is ACT else _learners()
    if only:
        runs = {k: run for k, run in runs.items() if any(o.lower() in k.lower() for o in only)}
    timings = interleave(runs, errors, repeats, budget)
    peers = [t for name, t in timings.items() if name != "gradstack"]
    if "gradstack" not in timings or not peers:
        return timings, []
    own = timings["gradstack"]
    best = min(t.best for t in peers) / own.best
    median = min(t.median for t in peers) / own.median
    found = Verdict(
        f"at least {case.ratio:g}x the quickest eager PyTorch",
        f"{best:.2f}x best, {median:.2f}x median",
        min(best, median) >= case.ratio,
    )
    return timings, [found]
