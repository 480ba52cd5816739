"""``python -m bench.docs``: write the committed results into docs/performance.md.

The page has two generated parts, between lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``:
the newest results of ``python -m bench --save``, and of ``python -m bench.sweep --save``. Their
charts are drawn into docs/images.
"""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

from bench.chart import draw_ratios, draw_sweep
from bench.report import time_text
from bench.results import newest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.md"


def replace_part(page: pathlib.Path, name: str, text: str) -> None:
    """Put `text` between the marks of a generated part."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n{text.strip()}\n{end}", old)
    if count != 1:
        raise ValueError(f"{page} has {count} parts called {name!r}, expected one")
    page.write_text(new, encoding="utf-8")
    print(f"written: {name} in {page}")


def where(results: dict[str, Any]) -> str:
    """Say on which machine, when and against what."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{results['machine']}, {results['isa']} kernels, {results['date']}; {versions}."


def results_table(results: dict[str, Any]) -> str:
    """Return a table of all trainings and calls, a row per workload and number of threads."""
    rows = [row for row in results["results"] if row["kind"] != "case"]
    peaks: dict[int, float] = {}
    for row in rows:
        if row["peak_gflops"]:
            threads = row["threads"]
            peaks[threads] = max(peaks.get(threads, 0.0), row["peak_gflops"])
    lines = [
        where(results)
        + "".join(
            f" FMA peak with {t} thread{'s' * (t > 1)}: {p:.0f} GFLOP/s." for t, p in peaks.items()
        ),
        "",
        "| workload | threads | gradstack | of peak | best of the others | times as fast | aims |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [result_line(row) for row in rows]
    return "\n".join(lines)


def result_line(row: dict[str, Any]) -> str:
    """Return one row; times are the best of all rounds, with the median's ratio beside."""
    seconds = row["seconds_per_step"]
    own = seconds["gradstack"]
    time = time_text(row["steps_shown"] * own["best"])
    if "gradstack, out=" in seconds:
        time += f" (`out=`: {time_text(seconds['gradstack, out=']['best'])})"
    share = ""
    if row["peak_gflops"] and row["kind"] != "forward":
        share = f"{row['flops'] / own['best'] / row['peak_gflops'] / 1e9:.0%}"
    others = {n: t for n, t in seconds.items() if not n.startswith("gradstack")}
    rival, ratio = "", ""
    if others:
        name = min(others, key=lambda n: others[n]["best"])
        rival = f"{name}, {time_text(row['steps_shown'] * others[name]['best'])}"
        median = min(t["median"] for t in others.values()) / own["median"]
        ratio = f"{others[name]['best'] / own['best']:.3g} (median {median:.3g})"
    met = sum(aim["met"] for aim in row["aims"])
    aims = f"{met} of {len(row['aims'])}" if row["aims"] else ""
    cells = [row["workload"], str(row["threads"]), time, share, rival, ratio, aims]
    return f"| {' | '.join(cells)} |"


def missed_list(results: dict[str, Any]) -> str:
    """Return what was aimed at and not reached."""
    lines = [
        f"- {row['workload']}, {row['threads']} thread{'s' * (row['threads'] > 1)}: aim "
        f"{aim['aim']}; reached {aim['reached']}"
        for row in results["results"]
        for aim in row["aims"]
        if not aim["met"]
    ]
    return "\n".join(["Aims not reached in this run:", "", *lines]) if lines else ""


def main() -> int:
    """Write both parts."""
    results, sweep = newest(), newest("sweep")
    missing = "None are committed yet: `{}` keeps them, `python -m bench.docs` puts them here."
    if results is None:
        replace_part(PAGE, "results", missing.format("python -m bench --save"))
    else:
        picture = DOCS / "images" / "performance.png"
        draw_ratios(results, picture)
        parts = [
            "![Times of all libraries, as multiples of gradstack's](images/performance.png)",
            results_table(results),
            missed_list(results),
        ]
        replace_part(PAGE, "results", "\n\n".join(part for part in parts if part))
    if sweep is None:
        replace_part(PAGE, "sweep", missing.format("python -m bench.sweep --peers scan --save"))
    else:
        picture = DOCS / "images" / "performance_sweep.png"
        draw_sweep(sweep, picture)
        offenders = [f"- {line}" for line in sweep["offenders"]] or ["Nowhere."]
        parts = [
            "![Times over widths and batches](images/performance_sweep.png)",
            where(sweep),
            "Where more threads cost more than 5 %:",
            "\n".join(offenders),
        ]
        replace_part(PAGE, "sweep", "\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
