"""Derivatives beyond the training gradient: what is measured, and what is aimed at.

A case is one quantity of one network on one batch. `bench.peers.<library>_calculus` has a function
for each quantity that the library has; it returns the ways to compute it. All of them must agree
with NumPy in float64 before any is timed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.aims import Verdict
from bench.timing import Timing, interleave

Array = npt.NDArray[np.floating]
Candidates = dict[str, Callable[[], Any]]

# Relative to the largest entry: float32 rounds off 1e-6, another quantity is off by about 1.
TOLERANCE = 1e-3

LIBRARIES = ["gradstack", "torch", "jax"]
PEER_NAMES = ("torch.func", "JAX")  # how the names of their ways begin
GRADIENT = "a gradient"


@dataclass(frozen=True)
class Problem:
    """A network with (weight, bias) for each layer, and a batch for it."""

    layers: list[tuple[Array, Array]]
    activation: str  # relu | tanh
    x: Array
    labels: npt.NDArray[np.int64]
    direction: Array  # (P,), for products with matrices

    @property
    def outputs(self) -> int:
        """Length of the network's output."""
        return len(self.layers[-1][1])


@dataclass(frozen=True)
class Case:
    """One quantity of one network."""

    quantity: str  # name of the function of every library
    sizes: tuple[int, ...]
    activation: str
    batch: int
    # What to reach: at least `peer_ratio` times as fast as the best peer, at most `cost` times the
    # time of a gradient, at most `seconds`.
    peer_ratio: float | None = None
    cost: float | None = None
    seconds: float | None = None
    against: str = ""  # the peer meant, where it is one of them

    @property
    def name(self) -> str:
        """The case's title."""
        return f"{self.quantity} {'-'.join(map(str, self.sizes))} {self.activation} b{self.batch}"


CASES = [
    Case("jacobian", (600, 60, 40, 10), "relu", 128, peer_ratio=1.5),
    Case("jacobian", (600, 60, 40, 10), "tanh", 128, peer_ratio=1.5),
    Case("jacobian", (4, 64, 64, 2), "tanh", 1, seconds=5e-6),
    Case("per_sample_grad", (784, 256, 128, 10), "relu", 128, peer_ratio=4),
    Case("per_sample_grad_norm", (784, 256, 128, 10), "relu", 128, cost=1.3),
    Case("hvp", (784, 256, 128, 10), "relu", 128, cost=3),
]


def make_problem(case: Case) -> Problem:
    """Draw parameters, a batch and a direction."""
    rng = np.random.default_rng(0)
    layers = []
    for n, m in itertools.pairwise(case.sizes):
        bound = n**-0.5
        weight, bias = rng.uniform(-bound, bound, (m, n)), rng.uniform(-bound, bound, m)
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
    x = rng.standard_normal((case.batch, case.sizes[0])).astype(np.float32)
    labels = rng.integers(0, case.sizes[-1], case.batch)
    count = sum(w.size + b.size for w, b in layers)
    direction = rng.standard_normal(count).astype(np.float32)
    return Problem(layers, case.activation, x, labels, direction)


def ways(case: Case, problem: Problem) -> Candidates:
    """Every way of every installed library to compute the case's quantity."""
    found: Candidates = {}
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            print(f"({library} is not installed)")
            continue
        module = importlib.import_module(f"bench.peers.{library}_calculus")
        if hasattr(module, case.quantity):
            found |= getattr(module, case.quantity)(problem)
    return found


def flat(value: Any, count: int) -> Array:
    """Any nesting of arrays with a leading axis of `count` as (count, n)."""
    if hasattr(value, "shape"):
        return np.asarray(value, np.float64).reshape(count, -1)
    parts = value.values() if isinstance(value, dict) else value
    return np.concatenate([flat(part, count) for part in parts], axis=1)


def check(case: Case, problem: Problem, way: Callable[[], Any], expected: Array) -> float:
    """Return how far one way is from `expected`, relative to its largest entry."""
    computed = flat(way(), len(expected))
    return float(np.abs(computed - expected.reshape(computed.shape)).max() / np.abs(expected).max())


def measure(
    case: Case, repeats: int, budget: float, only: list[str]
) -> tuple[dict[str, Timing], list[Verdict]]:
    """Check, then time all ways in turns; return the timings and how the aim was met.

    Where the aim is a multiple of it, a plain ``gs.value_and_grad`` is timed along.
    """
    from bench.peers import gradstack_calculus, numpy_calculus

    problem = make_problem(case)
    expected = getattr(numpy_calculus, case.quantity)(problem)
    timed, errors = {}, {}
    for name, way in ways(case, problem).items():
        if only and not any(word.lower() in name.lower() for word in only):
            continue
        try:
            errors[name] = check(case, problem, way, expected)
        except Exception as reason:
            if name.startswith("gradstack"):
                raise
            print(f"({name}: {type(reason).__name__}: {str(reason).splitlines()[0]})")
            continue
        if not errors[name] <= TOLERANCE:
            raise AssertionError(
                f"{name} computed something else as {case.name}: off by {errors[name]:.1e} of the "
                "largest entry"
            )
        timed[name] = way
    if case.cost is not None:
        timed[GRADIENT] = gradstack_calculus.gradient(problem)
        errors[GRADIENT] = 0.0
    runs = {name: functools.partial(_repeat, way) for name, way in timed.items()}
    timings = interleave(runs, errors, repeats, budget)
    return timings, verdict(case, timings)


def _repeat(way: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        way()


def verdict(case: Case, timings: dict[str, Timing]) -> list[Verdict]:
    """Judge the aim, if there is one."""
    own = timings.get("gradstack")
    if own is None:
        return []
    peers = {name: t for name, t in timings.items() if name.partition(",")[0] in PEER_NAMES}
    if case.against:
        peers = {name: t for name, t in peers.items() if name == case.against}
    if case.peer_ratio is not None and peers:
        best = min(t.best for t in peers.values()) / own.best
        median = min(t.median for t in peers.values()) / own.median
        found = Verdict(
            f"at least {case.peer_ratio:g}x {case.against or 'the best peer'}",
            f"{best:.2f}x best, {median:.2f}x median",
            min(best, median) >= case.peer_ratio,
        )
        return [found]
    if case.cost is not None:
        gradient = timings[GRADIENT]
        best, median = own.best / gradient.best, own.median / gradient.median
        found = Verdict(
            f"at most {case.cost:g}x a gradient",
            f"{best:.2f}x best, {median:.2f}x median",
            max(best, median) <= case.cost,
        )
        return [found]
    if case.seconds is not None:
        found = Verdict(
            f"at most {1e6 * case.seconds:g} µs",
            f"{1e6 * own.best:.2f} µs best, {1e6 * own.median:.2f} µs median",
            own.median <= case.seconds,
        )
        return [found]
    return []
