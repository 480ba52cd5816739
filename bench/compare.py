"""One workload, every peer: the same results first, then interleaved timings."""

from __future__ import annotations

import functools
import timeit
from collections.abc import Callable

import numpy as np

from bench.peers import Trainer, UnsupportedError, installed
from bench.peers import numpy_ as by_hand
from bench.timing import Timing, interleave
from bench.workloads import Task, Workload, checked_task, make_task

# Weights after the checked steps, in units of how far they have moved. Rounding of float32 grows
# with the steps; a different formula, data order or initialisation is off by tens of percent.
TOLERANCE = 0.02
# Predictions, relative to the largest.
FORWARD_TOLERANCE = 1e-4

Runs = dict[str, Callable[[int], None]]


def compare(
    workload: Workload, threads: int, repeats: int, budget: float, only: list[str]
) -> dict[str, Timing]:
    """Check and time every installed peer on `workload`.

    Before anything is timed all must agree with NumPy in float64: on the weights after the first
    epoch, or on the predictions. Then all take turns, `repeats` rounds of about `budget` seconds
    each per peer.
    """
    task = make_task(workload, threads)
    prepare = _calls if workload.mode == "forward" else _trainers
    runs, errors = prepare(task, only)
    return interleave(runs, errors, repeats, budget, workload.unit)


def wanted(name: str, only: list[str]) -> bool:
    """Whether a peer was asked for."""
    return not only or any(word.lower() in name.lower() for word in only)


Weights = list[np.ndarray]


def _reference(task: Task) -> tuple[Weights, Weights]:
    """Return the weights before and after an epoch, by NumPy in float64."""
    reference = by_hand.Trainer(task, np.float64)
    start = reference.weights()
    reference.run(task.workload.steps)
    return start, reference.weights()


def _check(peer: Trainer, task: Task, start: Weights, expected: Weights) -> float:
    """Return how far a trained peer is off, in units of the movement."""
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(peer.weights(), expected, strict=True))
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, start, strict=True))
    error = float(np.sqrt(off / moved))
    if not error <= TOLERANCE:
        raise AssertionError(
            f"{peer.name} computed something else on {task.workload.name}: weights are off by "
            f"{error:.1%} of their movement"
        )
    return error


def check_epoch(peer: Trainer, task: Task) -> float:
    """Compare a peer that has trained for an epoch with NumPy; return its error."""
    return _check(peer, task, *_reference(task))


def _trainers(task: Task, only: list[str]) -> tuple[Runs, dict[str, float]]:
    workload, part = task.workload, checked_task(task)
    start, expected = _reference(part)
    runs: Runs = {}
    errors: dict[str, float] = {}
    for module in installed():
        for kind in module.TRAINERS:
            if not wanted(kind.name, only):
                continue
            try:
                peer: Trainer = kind(part)
            except UnsupportedError:
                continue  # said by its absence
            peer.run(part.workload.steps)
            errors[kind.name] = _check(peer, part, start, expected)
            if part is not task:
                peer = kind(task)
            runs[kind.name] = functools.partial(peer.run, shuffle=workload.shuffle)
    return runs, errors


def _calls(task: Task, only: list[str]) -> tuple[Runs, dict[str, float]]:
    expected = by_hand.predict(task, np.float64)
    runs: Runs = {}
    errors: dict[str, float] = {}
    for module in installed():
        try:
            calls = module.forward(task)
        except UnsupportedError as reason:
            print(f"({reason})")
            continue
        for name, call in calls.items():
            if not wanted(name, only):
                continue
            computed = np.asarray(call(), np.float64).reshape(expected.shape)
            errors[name] = float(np.abs(computed - expected).max() / np.abs(expected).max())
            if not errors[name] <= FORWARD_TOLERANCE:
                raise AssertionError(f"{name} predicts something else on {task.workload.name}")
            timer = timeit.Timer(call.expression, globals=dict(call.names))
            runs[name] = timer.timeit
    return runs, errors
