"""Interleaved timing: all take turns in one process, so what disturbs the machine disturbs all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Threads that a library leaves spinning after its turn go to sleep before the next one's: OpenBLAS'
# take 0.11 s.
REST = 0.15
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per step, and how far its checked result was from the expected one."""

    best: float
    median: float
    error: float


def _seconds(run: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


def _steps(run: Callable[[int], object], unit: int, budget: float) -> int:
    """Return how many steps take about `budget` seconds, a multiple of `unit`."""
    count, taken = unit, _seconds(run, unit)
    while taken < 0.2 * budget:
        count *= max(2, min(10, int(0.5 * budget / max(taken, 1e-9))))
        taken = _seconds(run, count)
    return unit * max(1, round(budget / taken * count / unit))


def interleave(
    runs: Mapping[str, Callable[[int], object]],
    errors: Mapping[str, float],
    repeats: int,
    budget: float,
    unit: int = 1,
) -> dict[str, Timing]:
    """Time functions that make a number of steps, a multiple of `unit`.

    There are `repeats` rounds; in each, every function has a turn of about `budget` seconds. One
    whose turns take longer misses rounds, but is timed in three at least.
    """
    steps = {name: _steps(run, unit, budget) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    gc.collect()
    gc.disable()
    try:
        for i in range(repeats):
            for name, run in runs.items():
                must = FEWEST_ROUNDS - len(samples[name]) >= repeats - i
                if not must and spent[name] > 1.5 * i * budget:
                    continue
                time.sleep(REST)
                taken = _seconds(run, steps[name])
                spent[name] += taken
                samples[name].append(taken / steps[name])
    finally:
        gc.enable()
    return {
        name: Timing(min(times), statistics.median(times), errors[name])
        for name, times in samples.items()
    }
