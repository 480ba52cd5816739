"""Numbers as colours: red below zero, white at zero, blue above."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._draw.scene import MUTED, Scene

Array = npt.NDArray[Any]

_NEGATIVE = (197, 48, 48)
_POSITIVE = (33, 102, 172)
_NOT_A_NUMBER = "#1f2933"
_LEVELS = 10  # shades on each side of zero


def color_of(value: float) -> str:
    """The colour of a value in [-1, 1]."""
    if not np.isfinite(value):
        return _NOT_A_NUMBER
    share = min(1.0, abs(value))
    end = _POSITIVE if value > 0 else _NEGATIVE
    return "#" + "".join(f"{round(255 + share * (c - 255)):02x}" for c in end)


def _shade(value: float) -> str:
    return color_of(round(_LEVELS * value) / _LEVELS if np.isfinite(value) else value)


def coarsen(values: Array, rows: int, columns: int) -> Array:
    """A matrix in at most so many cells, each the entry of largest magnitude of its part."""
    for axis, limit in ((0, rows), (1, columns)):
        n = values.shape[axis]
        if n > limit:
            parts = np.array_split(values, limit, axis)
            values = np.stack([_strongest(part, axis) for part in parts], axis)
    return values


def _strongest(values: Array, axis: int) -> Array:
    index = np.expand_dims(np.argmax(np.abs(values), axis), axis)
    return np.take_along_axis(values, index, axis).squeeze(axis)


def strength(*parts: Array | None) -> float:
    """The largest finite magnitude, which gets the full colour; 1 when there is none."""
    largest = 0.0
    for part in parts:
        if part is not None:
            finite = np.abs(part[np.isfinite(part)])
            largest = max(largest, float(finite.max(initial=0)))
    return largest or 1.0


def paint_heat(
    scene: Scene,
    x: float,
    y: float,
    width: float,
    height: float,
    values: Array,
    largest: float,
) -> None:
    """A matrix as a map of coloured cells, `largest` in full colour."""
    rows, columns = values.shape
    cells: dict[str, list[str]] = {}
    for i in range(rows):
        begin = 0
        colors = [_shade(float(v) / largest) for v in values[i]]
        for j in range(1, columns + 1):
            if j == columns or colors[j] != colors[begin]:
                n = j - begin
                cells.setdefault(colors[begin], []).append(f"M{begin} {i}h{n}v1h-{n}z")
                begin = j
    # One path per colour, in units of cells: a tenth of the size of a rectangle per cell.
    scene.open("heat", transform=(x, y, width / columns, height / rows))
    for color, runs in cells.items():
        scene.path("".join(runs), fill=color, shape_rendering="crispEdges")
    scene.close()
    scene.rect(x, y, width, height, fill="none", stroke=MUTED, stroke_width=0.6)
