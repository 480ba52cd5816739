"""Tables of results, for people and as JSON."""

from __future__ import annotations

from typing import Protocol

from bench.machine import Peak
from bench.timing import Timing
from bench.workloads import Workload


class Named(Protocol):
    """A workload, or a case of one of the other benchmarks."""

    @property
    def name(self) -> str:
        """Its title."""


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def print_table(what: Named, threads: int, timings: dict[str, Timing], peak: Peak | None) -> None:
    """Print one workload or case: times per step, ratios to gradstack, share of the FMA peak."""
    own = timings.get("gradstack")
    flops = what.flops if isinstance(what, Workload) and peak else None
    left = max(map(len, timings), default=0)
    print(f"\n{what.name}, {threads} thread{'s' * (threads > 1)}")
    header = f"  {'':{left}} {'best':>10} {'median':>10} {'x best':>8} {'x median':>8}"
    print(header + (f" {'of peak':>8}" if flops else ""))
    for name, timing in timings.items():
        ratios = (
            f"{timing.best / own.best:8.2f} {timing.median / own.median:8.2f}" if own else " " * 17
        )
        share = f"{flops / timing.best / peak.gflops / 1e9:8.1%}" if flops and peak else ""
        print(
            f"  {name:{left}} {_time(timing.best):>10} {_time(timing.median):>10} {ratios} {share}"
        )


def as_json(
    what: Named, threads: int, timings: dict[str, Timing], peak: Peak | None
) -> dict[str, object]:
    """Return the same as plain values."""
    return {
        "workload": what.name,
        "threads": threads,
        "flops": what.flops if isinstance(what, Workload) else None,
        "peak_gflops": peak.gflops if peak else None,
        "clock_ghz": peak.clock if peak else None,
        "seconds_per_step": {
            name: {"best": t.best, "median": t.median, "error": t.error}
            for name, t in timings.items()
        },
    }
