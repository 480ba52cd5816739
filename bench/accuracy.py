"""``python -m bench.accuracy``: errors of the vector functions, measured and published.

Runs build/release/bench/cpp/math_accuracy (over all 2^32 floats and many doubles: about twenty
minutes of one core) and writes the table in docs/accuracy.md; with ``--check`` it compares instead,
and fails where an error is larger than the published one.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

from bench.docs import DOCS, replace_part

BINARY = DOCS.parent / "build" / "release" / "bench" / "cpp" / "math_accuracy"
PAGE = DOCS / "accuracy.md"
WITHOUT_FMA = "v2"  # the one instruction set that rounds products and sums separately


class Column(NamedTuple):
    """A type, with or without fused multiply-adds."""

    dtype: str
    fused: bool

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.dtype}, {'FMA' if self.fused else 'no FMA'}"


class Error(NamedTuple):
    """The worst of a function."""

    ulps: float
    where: float


COLUMNS = [Column(dtype, fused) for dtype in ("float32", "float64") for fused in (True, False)]
Errors = dict[str, dict[Column, Error]]


def measure(binary: pathlib.Path, options: list[str]) -> tuple[Errors, dict[str, int]]:
    """Run the program; return the worst errors, and the points looked at per type."""
    errors: Errors = {}
    points: dict[str, int] = {}
    with subprocess.Popen([str(binary), *options], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            print(line, end="", flush=True)
            name, dtype, isa, count, ulps, where = line.split("\t")
            row = errors.setdefault(name, {})
            column = Column(dtype, isa != WITHOUT_FMA)
            error = Error(float(ulps), float(where))
            row[column] = max(row.get(column, error), error)
            points[dtype] = int(count)
    if program.returncode:
        sys.exit(f"{binary} failed")
    return errors, points


def rounded_up(ulps: float) -> str:
    """Two decimals that are not too small."""
    return f"{math.ceil(round(100 * ulps, 6)) / 100:.2f}"


def table(errors: Errors, points: dict[str, int]) -> str:
    """Return the page's table."""
    columns = [column for column in COLUMNS if any(column in row for row in errors.values())]
    lines = [
        f"| function | {' | '.join(column.title for column in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for name, row in errors.items():
        cells = [
            f"{rounded_up(row[column].ulps)} at {row[column].where:.6g}" if column in row else ""
            for column in columns
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    floats = "all 2^32" if points["float32"] == 2**32 else f"{points['float32']:,}"
    lines += ["", f"Looked at: {floats} float32 numbers, {points['float64']:,} float64 numbers."]
    return "\n".join(lines)


def published(page: str) -> dict[tuple[str, str], float]:
    """Read the errors in a page's table, by function and column title."""
    found = {}
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in page.splitlines()
        if re.match(r"\| (`|function)", line)
    ]
    for name, *cells in rows[1:]:
        for title, cell in zip(rows[0][1:], cells, strict=True):
            if cell:
                found[name.strip("`"), title] = float(cell.split(" at ")[0])
    return found


def exceeded(errors: Errors, bounds: dict[tuple[str, str], float]) -> list[str]:
    """Return what is worse than published, or missing there."""
    return [
        f"{name}, {column.title}: {error.ulps} ulps at {error.where}, published are {bound}"
        for name, row in errors.items()
        for column, error in row.items()
        if not error.ulps <= (bound := bounds.get((name, column.title), -1.0))
    ]


def main() -> int:
    """Measure, then write or compare."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--binary", type=pathlib.Path, default=BINARY, help=f"default: {BINARY}")
    parser.add_argument("--check", action="store_true", help="compare with the page instead")
    parser.add_argument(
        "options", nargs="*", help="passed on, as in -- --stride 97 --doubles 1000000"
    )
    arguments = parser.parse_args()
    errors, points = measure(arguments.binary, arguments.options)
    if not arguments.check:
        replace_part(PAGE, "accuracy", table(errors, points))
        return 0
    worse = exceeded(errors, published(PAGE.read_text(encoding="utf-8")))
    print("\n".join(worse) or "nothing is worse than published")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
