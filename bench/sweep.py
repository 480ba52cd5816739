"""``python -m bench.sweep``: time per training step over widths, batches and numbers of threads.

The net is width-width-width-width with ReLU, trained by SGD on squared errors. All numbers of
threads take turns in one process, where gradstack chooses how many of the allowed ones it uses; the
weights must have the same bits for all of them, and agree with NumPy in float64. It prints the time
per step, the speed-up by threads, from which batch on they help, and where they hurt: a cell that
looks slower with more threads is measured again, longer, before it is listed.

With --peers, each number of threads has a process of its own afterwards, in which those libraries
and gradstack take turns; it prints how many times as fast as the best of them gradstack is, and
where it is not.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

from bench.arguments import parser as arguments_parser
from bench.children import measurable, pin, run_child, thread_counts
from bench.report import time_text
from bench.results import document, result_path, write
from bench.timing import Timing, interleave
from bench.workloads import Workload, make_task

HURTS = 1.05  # times one thread's time
EPOCH_FLOPS = 1e8  # about; an epoch has 4 to 1024 steps
Cell = tuple[int, int]  # width, batch


def cell_workload(width: int, batch: int) -> Workload:
    """Return the workload of one cell."""
    steps = int(max(4, min(1024, EPOCH_FLOPS / (18 * width * width * batch))))
    return Workload((width,) * 4, "relu", "mse", "sgd", 0.02, batch, "fit", steps * batch)


def openmp_setter() -> Callable[[int], None]:
    """Return what sets the number of threads of the OpenMP runtime that gradstack has loaded."""
    from gradstack import _core

    library = ctypes.CDLL(_core.__file__)  # finds the runtime among its dependencies
    return functools.partial(_set_threads, library.omp_set_num_threads)


def _set_threads(function: Any, threads: int) -> None:
    function(ctypes.c_int(threads))


class OwnSweep:
    """gradstack with every number of threads in turn, in this process."""

    def __init__(self, counts: list[int], repeats: int, budget: float) -> None:
        self.counts, self.repeats, self.budget = counts, repeats, budget
        self.set_threads = openmp_setter()

    def measure(self, cell: Cell, longer: int = 1) -> dict[int, Timing]:
        """Check and time one cell."""
        from bench.compare import check_epoch
        from bench.peers.gradstack_ import Trainer

        workload = cell_workload(*cell)
        task = make_task(workload, max(self.counts))
        trainers, bits = {}, {}
        for threads in self.counts:
            self.set_threads(threads)
            trainer = Trainer(task)
            trainer.run(workload.steps)
            bits[threads] = trainer.net.w.tobytes()
            trainers[str(threads)] = functools.partial(self._run, threads, trainer)
        if len(set(bits.values())) > 1:
            raise AssertionError(f"{workload.name}: other bits with another number of threads")
        errors = dict.fromkeys(trainers, check_epoch(trainer, task))
        timings = interleave(trainers, errors, longer * self.repeats, self.budget, workload.unit)
        return {int(threads): timing for threads, timing in timings.items()}

    def _run(self, threads: int, trainer: Any, steps: int) -> None:
        self.set_threads(threads)
        trainer.run(steps)


def hurt(timings: dict[int, Timing]) -> dict[int, float]:
    """Return the numbers of threads that cost time, by best and by median, and how much."""
    one = timings[min(timings)]
    ratios = {t: min(x.best / one.best, x.median / one.median) for t, x in timings.items()}
    return {threads: ratio for threads, ratio in ratios.items() if ratio > HURTS}


def table(title: str, widths: list[int], batches: list[int], text: Callable[[Cell], str]) -> None:
    """Print one row per width, one column per batch."""
    print(f"\n{title}\n  width " + "".join(f"{f'b{batch}':>10}" for batch in batches))
    for width in widths:
        print(f"  {width:5} " + "".join(f"{text((width, batch)):>10}" for batch in batches))


def print_own(
    cells: dict[Cell, dict[int, Timing]], widths: list[int], batches: list[int]
) -> list[str]:
    """Print times, speed-ups, crossovers and offenders; return the offenders."""
    counts = sorted(next(iter(cells.values())))
    first = counts[0]
    plural = f"thread{'s' * (first > 1)}"
    table(
        f"time per step, {first} {plural} (best)",
        widths,
        batches,
        lambda cell: time_text(cells[cell][first].best),
    )
    for threads in counts[1:]:
        table(
            f"speed-up by {threads} threads (best)",
            widths,
            batches,
            functools.partial(_speed_up, cells, first, threads),
        )
        print(f"  {threads} threads gain a tenth from:")
        for width in widths:
            gains = [
                batch
                for batch in batches
                if cells[width, batch][first].best > 1.1 * cells[width, batch][threads].best
            ]
            print(f"    width {width:5}: {f'batch {gains[0]}' if gains else 'nowhere'}")
    offenders = [
        f"width {width}, batch {batch}: {threads} threads take {ratio:.2f} times as long"
        for (width, batch), timings in cells.items()
        for threads, ratio in hurt(timings).items()
    ]
    print(f"\nwhere more threads cost more than {HURTS - 1:.0%}: {'' if offenders else 'nowhere'}")
    for offender in offenders:
        print(f"  {offender}")
    return offenders


def _speed_up(cells: dict[Cell, dict[int, Timing]], first: int, threads: int, cell: Cell) -> str:
    return f"{cells[cell][first].best / cells[cell][threads].best:.2f}"


def print_peers(
    rows: list[dict[str, Any]], threads: int, widths: list[int], batches: list[int]
) -> None:
    """Print how many times as fast as the best peer, and who is ahead where."""
    seconds = {(row["width"], row["batch"]): row["seconds_per_step"] for row in rows}

    def rival(cell: Cell) -> tuple[str, float]:
        own = seconds[cell]["gradstack"]["best"]
        others = {n: t["best"] / own for n, t in seconds[cell].items() if n != "gradstack"}
        name = min(others, key=lambda n: others[n])
        return name, others[name]

    plural = f"thread{'s' * (threads > 1)}"
    table(
        f"times as fast as the best peer, {threads} {plural} (best)",
        widths,
        batches,
        lambda cell: f"{rival(cell)[1]:.2f}",
    )
    ahead = [(cell, *rival(cell)) for cell in seconds if rival(cell)[1] < 1]
    print(f"  peers that are ahead: {'' if ahead else 'none, anywhere'}")
    for (width, batch), name, ratio in ahead:
        print(f"    width {width}, batch {batch}: {name}, {1 / ratio:.2f} times as fast")


def progress(text: str) -> None:
    """Show how far it is, to those who watch."""
    if sys.stdout.isatty():
        print(f"\r{text} ", end="", flush=True)


def main() -> int:
    """Sweep."""
    parser = arguments_parser(
        "python -m bench.sweep",
        __doc__,
        repeats=9,
        budget=0.01,
        saved="<date>-<machine>-sweep.json",
        chart="sweep",
    )
    powers = ",".join(str(2**i) for i in range(11))
    parser.add_argument("--widths", default="8,16,32,64,128,256,512", help="default: 8 to 512")
    parser.add_argument("--batches", default=powers, help="default: 1 to 1024")
    arguments = parser.parse_args()
    widths, batches = (
        [int(v) for v in a.split(",")] for a in (arguments.widths, arguments.batches)
    )
    if arguments.child:
        return measure_peers(arguments, list(itertools.product(widths, batches)))

    results = document()
    print(f"{results['machine']}, {results['date']}")
    counts = list(measurable(thread_counts(arguments.threads)))
    pin(max(counts))
    sweep = OwnSweep(counts, arguments.repeats, arguments.budget)
    cells: dict[Cell, dict[int, Timing]] = {}
    for cell in itertools.product(widths, batches):
        timings = sweep.measure(cell)
        if hurt(timings):
            timings = sweep.measure(cell, longer=4)
        cells[cell] = timings
        progress(f"{len(cells)} of {len(widths) * len(batches)} cells")
    offenders = print_own(cells, widths, batches)
    results |= {"offenders": offenders, "peers": []}
    results["results"] = [
        {
            "width": width,
            "batch": batch,
            "threads": threads,
            "flops": cell_workload(width, batch).flops,
            "seconds_per_step": {"gradstack": {"best": timing.best, "median": timing.median}},
        }
        for (width, batch), timings in cells.items()
        for threads, timing in timings.items()
    ]
    if arguments.peers:
        for threads in counts:
            rows = run_child("bench.sweep", sys.argv[1:], threads)
            print_peers(rows, threads, widths, batches)
            results["peers"] += rows
    out = arguments.out or (result_path("sweep") if arguments.save else None)
    if out:
        write(results, out)
    if arguments.chart:
        from bench.chart import draw_sweep

        draw_sweep(results, arguments.chart)
    return 0


def measure_peers(arguments: argparse.Namespace, cells: list[Cell]) -> int:
    """Measure the chosen peers beside gradstack with one number of threads, in this process."""
    from bench.compare import compare

    threads = int(arguments.threads)
    pin(threads)
    only = ["gradstack", *(word for word in arguments.peers.split(",") if word)]
    rows = []
    for width, batch in cells:
        workload = cell_workload(width, batch)
        timings = compare(workload, threads, arguments.repeats, arguments.budget, only)
        seconds = {n: {"best": t.best, "median": t.median} for n, t in timings.items()}
        rows.append(
            {"width": width, "batch": batch, "threads": threads, "seconds_per_step": seconds}
        )
        progress(f"{threads} threads: {len(rows)} of {len(cells)} cells")
    arguments.child.write_text(json.dumps(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
