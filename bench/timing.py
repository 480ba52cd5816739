"""Interleaved timing: all take turns in one process, so what disturbs the machine disturbs all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per step, and how far its checked result was from the expected one."""

    best: float
    median: float
    error: float


def _seconds(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def interleave(
    runs: Mapping[str, Callable[[int], None]],
    errors: Mapping[str, float],
    repeats: int,
    budget: float,
    unit: int = 1,
) -> dict[str, Timing]:
    """Time functions that make a number of steps, a multiple of `unit`.

    There are `repeats` rounds; in each, every function has a turn of about `budget` seconds.
    """
    steps = {}
    for name, run in runs.items():
        per_unit = _seconds(run, unit * 2) / 2
        steps[name] = unit * max(1, round(budget / per_unit))

    samples: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, run in runs.items():
                samples[name].append(_seconds(run, steps[name]) / steps[name])
    finally:
        gc.enable()
    return {
        name: Timing(min(times), statistics.median(times), errors[name])
        for name, times in samples.items()
    }
