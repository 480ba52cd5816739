"""``python -m bench``: gradstack against every installed peer, interleaved in one process.

Each number of threads has a process of its own, pinned to as many cores, because most libraries
read their thread count once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def main() -> int:
    """Parse the command line; run one process per thread count; write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--threads", default="1,2", help="counts to measure (default: 1,2)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds a turn (default: 0.1)")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--peers", default="", help="comma-separated parts of peer names")
    parser.add_argument("--out", type=pathlib.Path, help="write the results to this JSON file")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return measure(arguments)

    from bench.machine import machine_name

    print(f"{machine_name()}, {datetime.date.today()}")
    available = sorted(os.sched_getaffinity(0))
    results = []
    for threads in map(int, arguments.threads.split(",")):
        cores = available[:threads]
        if len(cores) < threads:
            print(f"\n({threads} threads: this process may use {len(available)} cores only)")
            continue
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "results.json"
            command = [sys.executable, "-m", "bench", *sys.argv[1:], "--child", str(out)]
            command += ["--threads", str(threads)]
            code = subprocess.run(command, env=environment, check=False).returncode
            if code:
                return code
            results += json.loads(out.read_text(encoding="utf-8"))
    if arguments.out:
        document = {
            "machine": machine_name(),
            "date": str(datetime.date.today()),
            "results": results,
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Measure all workloads with one number of threads, in this process."""
    threads = int(arguments.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    from bench import blackbox, calculus, rl, sparse
    from bench.compare import compare
    from bench.machine import Probe
    from bench.report import as_json, print_table
    from bench.timing import Timing
    from bench.workloads import WORKLOADS

    probe = Probe()
    results = []
    only = [word for word in arguments.peers.split(",") if word]
    for workload in WORKLOADS:
        if arguments.only not in workload.name:
            continue
        peak = probe.measure(threads)
        if peak:
            print(f"\n[FMA peak {peak.gflops:.1f} GFLOP/s, clock {peak.clock:.2f} GHz]", end="")
        timings = compare(workload, threads, arguments.repeats, arguments.budget, only)
        print_table(workload, threads, timings, peak)
        results.append(as_json(workload, threads, timings, peak))
    cases: list[tuple[Any, Callable[..., tuple[dict[str, Timing], str]]]] = [
        *((case, calculus.measure) for case in [*calculus.CASES, *blackbox.CASES]),
        *((case, sparse.measure) for case in sparse.CASES),
    ]
    if threads == 1:  # one environment at a time, small batches: nothing for a second thread
        cases += [(case, rl.measure) for case in rl.CASES]
    for case, measure_case in cases:
        if arguments.only not in case.name:
            continue
        peak = probe.measure(threads)
        timings, verdict = measure_case(case, arguments.repeats, arguments.budget, only)
        print_table(case, threads, timings, peak)
        if verdict:
            print(f"  {verdict}")
        results.append(as_json(case, threads, timings, peak))
    arguments.child.write_text(json.dumps(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
