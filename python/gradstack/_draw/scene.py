"""Shapes on a canvas, written as SVG.

Everything is said by attributes of the elements: no style sheet, no ids, so that several diagrams
can stand in one HTML page without touching each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]

FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
INK = "#1f2933"
MUTED = "#5f6c7b"
WIRE = "#52606d"


def _number(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attributes(values: dict[str, object]) -> str:
    parts = []
    for name, value in values.items():
        if value is not None:
            text = _number(value) if isinstance(value, (int, float)) else str(value)
            parts.append(f" {name.rstrip('_').replace('_', '-')}={quoteattr(text)}")
    return "".join(parts)


class Scene:
    """Collects elements; `svg` writes them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 1

    def open(
        self,
        cls: str,
        title: str = "",
        transform: tuple[float, float, float, float] | None = None,
        **data: str,
    ) -> None:
        """Begin a group: what belongs together, with the tooltip that viewers show for it.

        `transform` moves its content by the first two numbers and scales it by the others.
        """
        values: dict[str, object] = {"class": cls}
        values.update({f"data-{key}": value for key, value in data.items()})
        if transform is not None:
            x, y, sx, sy = transform
            values["transform"] = f"translate({x:.2f} {y:.2f}) scale({sx:.4f} {sy:.4f})"
        self._add(f"<g{_attributes(values)}>")
        self._depth += 1
        if title:
            self._add(f"<title>{escape(title)}</title>")

    def close(self) -> None:
        """End the group."""
        self._depth -= 1
        self._add("</g>")

    def circle(self, x: float, y: float, r: float, **style: object) -> None:
        """A circle around (x, y)."""
        self._add(f"<circle{_attributes({'cx': x, 'cy': y, 'r': r, **style})}/>")

    def rect(self, x: float, y: float, width: float, height: float, **style: object) -> None:
        """A rectangle with its upper left corner at (x, y)."""
        box = {"x": x, "y": y, "width": width, "height": height}
        self._add(f"<rect{_attributes({**box, **style})}/>")

    def path(self, *commands: str | float, **style: object) -> None:
        """A path given as in SVG: letters and numbers."""
        d = " ".join(c if isinstance(c, str) else _number(c) for c in commands)
        self._add(f"<path{_attributes({'d': d, **style})}/>")

    def line(self, a: Point, b: Point, **style: object) -> None:
        """A straight line."""
        ends = {"x1": a[0], "y1": a[1], "x2": b[0], "y2": b[1]}
        self._add(f"<line{_attributes({**ends, **style})}/>")

    def arrow(self, tip: Point, color: str = WIRE, size: float = 7.0) -> None:
        """An arrowhead that points right and ends at `tip`."""
        x, y = tip
        half = 0.45 * size
        self.path("M", x, y, "L", x - size, y - half, "L", x - size, y + half, "Z", fill=color)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 11.0,
        anchor: str = "middle",
        fill: str = INK,
        **style: object,
    ) -> None:
        """One line of text with its baseline at y."""
        values = {"x": x, "y": y, "font_size": size, "text_anchor": anchor, "fill": fill, **style}
        self._add(f"<text{_attributes(values)}>{escape(text)}</text>")

    def svg(self, width: float, height: float, title: str) -> str:
        """The whole picture."""
        size = {"width": width, "height": height, "viewBox": f"0 0 {width:.0f} {height:.0f}"}
        head = f'<svg xmlns="http://www.w3.org/2000/svg"{_attributes(size)} role="img"'
        return "\n".join(
            [
                f"{head}{_attributes({'font_family': FONT})}>",
                f"  <title>{escape(title)}</title>",
                f"  <rect{_attributes({'width': width, 'height': height, 'fill': 'white'})}/>",
                *self._lines,
                "</svg>\n",
            ]
        )

    def _add(self, line: str) -> None:
        self._lines.append("  " * self._depth + line)


def rounded(points: Sequence[Point], radius: float) -> list[str | float]:
    """Path commands of a polyline whose corners are rounded."""
    commands: list[str | float] = ["M", *points[0]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        entry, leave = _towards(corner, before, radius), _towards(corner, after, radius)
        commands += ["L", *entry, "Q", *corner, *leave]
    return [*commands, "L", *points[-1]]


def _towards(start: Point, end: Point, distance: float) -> Point:
    """The point `distance` from start on the way to end, at most half way."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    share = min(0.5, distance / length) if length else 0.0
    return start[0] + share * dx, start[1] + share * dy
