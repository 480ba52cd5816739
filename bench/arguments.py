"""The options that `python -m bench` and `python -m bench.sweep` share."""

from __future__ import annotations

import argparse
import pathlib


def parser(
    prog: str, description: str | None, *, repeats: int, budget: float, saved: str, chart: str
) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark that times rounds of turns."""
    made = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--threads", default="1,2", help="counts, as in 1,2 or 1-16 (default: 1,2)")
    add("--repeats", type=int, default=repeats, help=f"rounds (default: {repeats})")
    add("--budget", type=float, default=budget, help=f"seconds a turn (default: {budget})")
    add("--peers", default="", help="parts of peer names, as in scan,eager")
    add("--out", type=pathlib.Path, help="write the results to this JSON file")
    add("--save", action="store_true", help=f"the same, to bench/results/{saved}")
    add("--chart", type=pathlib.Path, help=f"draw the {chart} (PNG, SVG or PDF)")
    add("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    return made
