"""``python -m bench``: gradstack against every installed peer, interleaved in one process.

Each number of threads has a process of its own, pinned to as many cores, because most libraries
read their thread count once. Before anything is timed, every library's result is checked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.arguments import parser as arguments_parser
from bench.children import measurable, pin, run_child, thread_counts
from bench.machine import Probe
from bench.results import document, result_path, write


def main() -> int:
    """Parse the command line; run one process per thread count; write the results."""
    parser = arguments_parser(
        "python -m bench",
        __doc__,
        repeats=11,
        budget=0.04,
        saved="<date>-<machine>.json",
        chart="ratios",
    )
    parser.add_argument(
        "--only", default="", help="workloads whose name has one of these, as in a,b"
    )
    parser.add_argument("--no-cases", action="store_true", help="training and calls only")
    arguments = parser.parse_args()
    if arguments.child:
        return measure(arguments)

    out = arguments.out or (result_path() if arguments.save else None)
    results = document()
    print(f"{results['machine']}, {results['date']}")
    start = time.monotonic()
    for threads in measurable(thread_counts(arguments.threads)):
        results["results"] += run_child("bench", sys.argv[1:], threads)
    missed = [aim for row in results["results"] for aim in row["aims"] if not aim["met"]]
    total = sum(len(row["aims"]) for row in results["results"])
    print(f"\n{total - len(missed)} of {total} aims reached, in {time.monotonic() - start:.0f} s")
    if out:
        write(results, out)
    if arguments.chart:
        from bench.chart import draw_ratios

        draw_ratios(results, arguments.chart)
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Measure all workloads with one number of threads, in this process."""
    threads = int(arguments.threads)
    pin(threads)

    from bench.aims import verdicts
    from bench.compare import compare
    from bench.report import as_json, print_table
    from bench.workloads import WORKLOADS, DataMissingError

    probe = Probe()
    results = []
    only = [word for word in arguments.peers.split(",") if word]
    for workload in WORKLOADS:
        if not _chosen(workload.name, arguments.only):
            continue
        peak = probe.measure(threads)
        if peak:
            print(f"\n[FMA peak {peak.gflops:.1f} GFLOP/s, clock {peak.clock:.2f} GHz]", end="")
        try:
            timings = compare(workload, threads, arguments.repeats, arguments.budget, only)
        except DataMissingError as reason:
            print(f"\n{workload.name}: {reason}")
            continue
        judged = verdicts(workload.aims, threads, timings, workload.flops, peak)
        print_table(workload, threads, timings, peak, judged)
        results.append(as_json(workload, threads, timings, peak, judged))
        sys.stdout.flush()
    if not arguments.no_cases:
        results += measure_cases(arguments, threads, only, probe)
    arguments.child.write_text(json.dumps(results), encoding="utf-8")
    return 0


def measure_cases(
    arguments: argparse.Namespace, threads: int, only: list[str], probe: Probe
) -> list[dict[str, Any]]:
    """Measure everything that is neither training nor a plain call."""
    from bench import blackbox, calculus, rl, sparse
    from bench.aims import Verdict
    from bench.report import as_json, print_table
    from bench.timing import Timing

    cases: list[tuple[Any, Callable[..., tuple[dict[str, Timing], list[Verdict]]]]] = [
        *((case, calculus.measure) for case in [*calculus.CASES, *blackbox.CASES]),
        *((case, sparse.measure) for case in sparse.CASES),
    ]
    if threads == 1:  # one environment at a time, small batches: nothing for a second thread
        cases += [(case, rl.measure) for case in rl.CASES]
    results = []
    for case, measure_case in cases:
        if not _chosen(case.name, arguments.only):
            continue
        peak = probe.measure(threads)
        timings, judged = measure_case(case, arguments.repeats, arguments.budget, only)
        print_table(case, threads, timings, peak, judged)
        results.append(as_json(case, threads, timings, peak, judged))
        sys.stdout.flush()
    return results


def _chosen(name: str, only: str) -> bool:
    return any(part in name for part in only.split(","))


if __name__ == "__main__":
    sys.exit(main())
