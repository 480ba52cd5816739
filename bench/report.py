"""Tables of results, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bench.aims import Verdict
from bench.machine import Peak
from bench.timing import Timing
from bench.workloads import Workload


class Named(Protocol):
    """A workload, or a case of one of the other benchmarks."""

    @property
    def name(self) -> str:
        """Its title."""


def time_text(seconds: float) -> str:
    """Three or four digits and a unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit:
            return f"{seconds / unit:.{2 if seconds < 100 * unit else 1}f} {name}"
    return f"{1e9 * seconds:.0f} ns"


def print_table(
    what: Named,
    threads: int,
    timings: dict[str, Timing],
    peak: Peak | None,
    verdicts: Sequence[Verdict] = (),
) -> None:
    """Print one workload or case: times, ratios to gradstack, share of the FMA peak, aims."""
    own = timings.get("gradstack")
    flops = what.flops if isinstance(what, Workload) and peak else None
    shown = what.shown if isinstance(what, Workload) else 1
    left = max(map(len, timings), default=0)
    print(f"\n{what.name}, {threads} thread{'s' * (threads > 1)}")
    header = f"  {'':{left}} {'best':>10} {'median':>10} {'x best':>8} {'x median':>8}"
    print(header + (f" {'of peak':>8}" if flops else ""))
    for name, timing in timings.items():
        ratios = (
            f"{timing.best / own.best:8.2f} {timing.median / own.median:8.2f}" if own else " " * 17
        )
        share = f"{flops / timing.best / peak.gflops / 1e9:8.1%}" if flops and peak else ""
        best, median = time_text(shown * timing.best), time_text(shown * timing.median)
        print(f"  {name:{left}} {best:>10} {median:>10} {ratios} {share}")
    for verdict in verdicts:
        print(f"  {verdict}")


def as_json(
    what: Named,
    threads: int,
    timings: dict[str, Timing],
    peak: Peak | None,
    verdicts: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """Return the same as plain values."""
    workload = what if isinstance(what, Workload) else None
    return {
        "workload": what.name,
        "kind": workload.mode if workload else "case",
        "threads": threads,
        "flops": workload.flops if workload else None,
        "steps_shown": workload.shown if workload else 1,
        "peak_gflops": peak.gflops if peak else None,
        "clock_ghz": peak.clock if peak else None,
        "seconds_per_step": {
            name: {"best": t.best, "median": t.median, "error": t.error}
            for name, t in timings.items()
        },
        "aims": [verdict.as_json() for verdict in verdicts],
    }
