"""What is aimed at, and whether a run reached it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.machine import Peak
from bench.timing import Timing

OWN = "gradstack"

# Aims in seconds per training step were set on a machine with this FMA peak (GFLOP/s on one core,
# AVX-512 at 2.4 GHz); elsewhere they are the same share of the peak that is measured there.
REFERENCE_PEAK = 152.0


@dataclass(frozen=True)
class Aim:
    """One figure to reach: a ratio to peers, a share of the FMA peak, or a time.

    Of a time or ratio the worse of best and median counts where peers run along, the median where
    only the clock does; of a share the best, which is what the hardware can do.
    """

    threads: int | None = None  # None: on any number
    ratio: float | None = None  # this many times as fast as the best of `against`
    against: tuple[str, ...] = ()  # how the names of the peers meant begin; empty: all
    share: float | None = None  # of the FMA peak
    reference_seconds: float | None = None  # a share, as seconds on the reference machine
    seconds: float | None = None
    of: str = OWN  # the way of calling gradstack that is meant


@dataclass(frozen=True)
class Verdict:
    """An aim, what was reached, and whether that is enough."""

    aim: str
    reached: str
    met: bool

    def __str__(self) -> str:
        return f"aim: {self.aim}; reached: {self.reached}{'' if self.met else '  MISSED'}"

    def as_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def faster(
    one: float | None = None,
    two: float | None = None,
    *,
    than: tuple[str, ...] = (),
    of: str = OWN,
) -> tuple[Aim, ...]:
    """Return aims as a multiple of the best peer's speed, on one and on two threads."""
    pairs = [(1, one), (2, two)]
    return tuple(Aim(t, ratio=r, against=than, of=of) for t, r in pairs if r is not None)


def reach(one: float | None = None, two: float | None = None) -> tuple[Aim, ...]:
    """Return aims as shares of the FMA peak, on one and on two threads."""
    return tuple(Aim(t, share=s) for t, s in [(1, one), (2, two)] if s is not None)


def verdicts(
    aims: tuple[Aim, ...],
    threads: int,
    timings: dict[str, Timing],
    flops: float,
    peak: Peak | None,
) -> list[Verdict]:
    """Judge all aims for this number of threads."""
    found = []
    for aim in aims:
        if aim.of not in timings or aim.threads not in (None, threads):
            continue
        own = timings[aim.of]
        way = aim.of.removeprefix(OWN).strip(", ")
        prefix = f"{way}: " if way else ""
        if aim.ratio is not None:
            verdict = _ratio(aim, own, timings)
        elif aim.seconds is not None:
            verdict = Verdict(
                f"at most {1e6 * aim.seconds:g} µs",
                f"{1e6 * own.best:.3g} µs best, {1e6 * own.median:.3g} µs median",
                own.median <= aim.seconds,
            )
        else:
            verdict = _share(aim, own, flops, peak)
        if verdict:
            found.append(Verdict(prefix + verdict.aim, verdict.reached, verdict.met))
    return found


def _ratio(aim: Aim, own: Timing, timings: dict[str, Timing]) -> Verdict | None:
    assert aim.ratio is not None
    rivals = {
        name: timing
        for name, timing in timings.items()
        if not name.startswith(OWN)
        and (not aim.against or any(name.startswith(start) for start in aim.against))
    }
    if not rivals:
        return None
    name = min(rivals, key=lambda rival: rivals[rival].best)
    best = rivals[name].best / own.best
    median = min(t.median for t in rivals.values()) / own.median
    whom = " and ".join(aim.against) or "the best peer"
    return Verdict(
        f"{aim.ratio:g}x {whom}",
        f"{best:.2f}x best, {median:.2f}x median" + (f" ({name})" if len(rivals) > 1 else ""),
        min(best, median) >= aim.ratio,
    )


def _share(aim: Aim, own: Timing, flops: float, peak: Peak | None) -> Verdict | None:
    share = aim.share
    if aim.reference_seconds is not None:
        share = flops / aim.reference_seconds / (1e9 * REFERENCE_PEAK)
    if share is None or peak is None:
        return None
    best, median = (flops / t / (1e9 * peak.gflops) for t in (own.best, own.median))
    return Verdict(
        f"{share:.1%} of the FMA peak", f"{best:.1%} best, {median:.1%} median", best >= share
    )
