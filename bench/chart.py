"""``python -m bench.chart RESULTS.json PICTURE``: draw the results of a run or of a sweep."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from typing import Any

# Colours that remain apart for the colour-blind (Okabe and Ito), one per peer, always the same.
COLOURS = {
    "PyTorch eager": "#E69F00",
    "PyTorch eager, fused": "#B8860B",
    "PyTorch compiled": "#D55E00",
    "JAX jit": "#56B4E9",
    "JAX scan": "#0072B2",
    "scikit-learn": "#009E73",
    "onnxruntime": "#CC79A7",
    "NumPy by hand": "#7F7F7F",
}
LIMIT = 2.0  # of log2 of the ratios, where the colours of the maps end
INK, FAINT = "#222222", "#DDDDDD"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "text.color": INK,
            "svg.fonttype": "none",
            "svg.hashsalt": "gradstack",
        }
    )
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white")
    print(f"written: {path}")


def _ratios(row: dict[str, Any]) -> dict[str, float]:
    """Times as long as gradstack, per peer; of several ways to call gradstack the best."""
    seconds = row["seconds_per_step"]
    own = min(t["best"] for name, t in seconds.items() if name.startswith("gradstack"))
    return {n: t["best"] / own for n, t in seconds.items() if not n.startswith("gradstack")}


def draw_ratios(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draw how many times as long as gradstack each peer takes, a row per workload.

    The bar ends at the best peer and says which; the dots are the others.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = [
        row
        for row in results["results"]
        if row["kind"] != "case"
        and any(name.startswith("gradstack") for name in row["seconds_per_step"])
        and _ratios(row)
    ]
    counts = sorted({row["threads"] for row in rows})
    if not counts:
        print("nothing to draw: no training or call was timed beside a peer")
        return
    names = list(dict.fromkeys(row["workload"] for row in rows))
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        1,
        len(counts),
        figsize=(3.2 + 4.4 * len(counts), 1.5 + 0.3 * len(names)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    seen: set[str] = set()
    for axis, threads in zip(axes[0], counts, strict=True):
        for row in rows:
            if row["threads"] == threads:
                seen |= _draw_row(axis, names.index(row["workload"]), _ratios(row))
        axis.set_xscale("log")
        axis.axvline(1, color=INK, linewidth=1.2, zorder=3)
        axis.set_title(f"{threads} thread{'s' * (threads > 1)}", fontsize=10, loc="left")
        axis.set_xlabel("time of a peer / time of gradstack")
        axis.xaxis.set_major_locator(LogLocator(10, (1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color=FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    handles = [
        pyplot.Line2D([], [], marker="o", linestyle="", color=colour, label=name)
        for name, colour in COLOURS.items()
        if name in seen
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False
    )
    where = f"{results['machine']}, {results['isa']} kernels, {results['date']}"
    figure.suptitle(
        f"How many times as long as gradstack the others take ({where})\n"
        "bar and number: the best of the others; dots: the rest",
        fontsize=10,
    )
    _save(figure, path)
    pyplot.close(figure)


def _draw_row(axis: Any, y: int, ratios: dict[str, float]) -> set[str]:
    best = min(ratios, key=lambda name: ratios[name])
    x = ratios[best]
    axis.barh(y, x - 1, left=1, height=0.62, color=COLOURS[best], alpha=0.85, zorder=2)
    for name, ratio in ratios.items():
        if name != best:
            axis.plot(
                ratio,
                y,
                "o",
                markersize=4.5,
                color=COLOURS[name],
                markeredgecolor="white",
                markeredgewidth=0.4,
                zorder=4,
            )
    axis.annotate(
        f"{x:.2f}" if x < 10 else f"{x:.3g}",
        (1.0, y),
        xytext=(4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        fontweight="bold",
        color=INK if x > 1 else "#C00000",
    )
    return set(ratios)


def draw_sweep(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draw time per sample over the batch, and what threads (and peers) change, per cell."""
    rows = results["results"]
    counts = sorted({row["threads"] for row in rows})
    widths = sorted({row["width"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    best = {
        (row["width"], row["batch"], row["threads"]): row["seconds_per_step"]["gradstack"]["best"]
        for row in rows
    }
    maps = [
        (
            f"{threads} threads: times as fast as {counts[0]}",
            {(w, b): best[w, b, counts[0]] / best[w, b, threads] for w in widths for b in batches},
        )
        for threads in counts[1:]
    ]
    for threads in counts:
        cells = {}
        for row in results["peers"]:
            if row["threads"] == threads:
                cells[row["width"], row["batch"]] = min(_ratios(row).values())
        if cells:
            plural = f"thread{'s' * (threads > 1)}"
            maps.append((f"times as fast as the best peer, {threads} {plural}", cells))

    pyplot = _pyplot()
    panels = 1 + len(maps)
    columns = min(2, panels)
    lines = -(-panels // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(6.4 * columns, 4.1 * lines), squeeze=False, layout="constrained"
    )
    flat = list(itertools.chain.from_iterable(axes))
    _draw_lines(flat[0], best, widths, batches, counts)
    for axis, (title, cells) in zip(flat[1:], maps, strict=False):
        _draw_map(axis, title, cells, widths, batches)
    for axis in flat[panels:]:
        axis.set_axis_off()
    figure.suptitle(
        "Training step of width-width-width-width, ReLU, SGD "
        f"({results['machine']}, {results['isa']} kernels, {results['date']})",
        fontsize=10,
    )
    _save(figure, path)
    pyplot.close(figure)


def _draw_lines(axis: Any, best: Any, widths: list[int], batches: list[int], counts: Any) -> None:
    from matplotlib import colormaps

    ends = [counts[0]] if len(counts) == 1 else [counts[0], counts[-1]]
    for i, width in enumerate(widths):
        colour = colormaps["viridis"](0.9 * i / max(1, len(widths) - 1))
        for threads, style in zip(ends, ("-", "--"), strict=False):
            times = [1e6 * best[width, batch, threads] / batch for batch in batches]
            axis.plot(batches, times, style, color=colour, linewidth=1.4)
        last = 1e6 * best[width, batches[-1], counts[0]] / batches[-1]
        axis.annotate(
            f"{width}",
            (batches[-1], last),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("batch")
    axis.set_ylabel("µs per sample")
    title = f"time per sample by width; solid: {ends[0]} thread{'s' * (ends[0] > 1)}"
    if len(ends) > 1:
        title += f", dashed: {ends[1]} threads"
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.grid(color=FAINT, linewidth=0.6)


def _draw_map(axis: Any, title: str, cells: Any, widths: list[int], batches: list[int]) -> None:
    import numpy as np

    values = np.array([[cells[width, batch] for batch in batches] for width in widths])
    logs = np.clip(np.log2(values), -LIMIT, LIMIT)
    axis.imshow(logs, cmap="RdBu", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
        ink = "white" if abs(logs[i, j]) > 0.65 * LIMIT else INK
        axis.text(j, i, text, ha="center", va="center", fontsize=7.5, color=ink)
    axis.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axis.set_yticks(range(len(widths)), [str(width) for width in widths])
    axis.set_xlabel("batch")
    axis.set_ylabel("width")
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.chart", description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    draw = draw_sweep if "offenders" in results else draw_ratios
    draw(results, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
