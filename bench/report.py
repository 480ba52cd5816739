"""Tables of results, for people and as JSON."""

from __future__ import annotations

from bench.compare import Timing
from bench.machine import Peak
from bench.workloads import Workload


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def print_table(
    workload: Workload, threads: int, timings: dict[str, Timing], peak: Peak | None
) -> None:
    """Print one workload: times per step, ratios to gradstack, and the share of the FMA peak."""
    own = timings.get("gradstack")
    print(f"\n{workload.name}, {threads} thread{'s' * (threads > 1)}")
    print(f"  {'':16} {'best':>10} {'median':>10} {'x best':>8} {'x median':>8} {'of peak':>8}")
    for name, timing in timings.items():
        ratios = (
            f"{timing.best / own.best:8.2f} {timing.median / own.median:8.2f}" if own else " " * 17
        )
        share = f"{workload.flops / timing.best / peak.gflops / 1e9:8.1%}" if peak else ""
        print(f"  {name:16} {_time(timing.best):>10} {_time(timing.median):>10} {ratios} {share}")


def as_json(
    workload: Workload, threads: int, timings: dict[str, Timing], peak: Peak | None
) -> dict[str, object]:
    """Return the same as plain values."""
    return {
        "workload": workload.name,
        "threads": threads,
        "flops": workload.flops,
        "peak_gflops": peak.gflops if peak else None,
        "clock_ghz": peak.clock if peak else None,
        "seconds_per_step": {
            name: {"best": t.best, "median": t.median, "weight_error": t.error}
            for name, t in timings.items()
        },
    }
