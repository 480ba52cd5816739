"""Boxes and curves of an SVG picture, measured from its text with a real font's widths."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]


class Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float
    what: str
    group: int

    def overlaps(self, other: Box, slack: float = 0.0) -> bool:
        return (
            self.x0 + slack < other.x1
            and other.x0 + slack < self.x1
            and self.y0 + slack < other.y1
            and other.y0 + slack < self.y1
        )

    def inside(self, other: Box, slack: float = 0.5) -> bool:
        return (
            self.x0 >= other.x0 - slack
            and self.x1 <= other.x1 + slack
            and self.y0 >= other.y0 - slack
            and self.y1 <= other.y1 + slack
        )

    def holds(self, point: Point, margin: float = 1.0) -> bool:
        x, y = point
        return self.x0 + margin < x < self.x1 - margin and self.y0 + margin < y < self.y1 - margin


@dataclass
class Wire:
    source: str
    target: str
    points: list[Point]


@dataclass
class Picture:
    width: float
    height: float
    texts: list[Box] = field(default_factory=list)
    shapes: list[Box] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    groups: list[ET.Element] = field(default_factory=list)

    def named(self, name: str) -> ET.Element:
        (group,) = [
            g for g in self.groups if g.get("data-name") == name and g.get("class") != "values"
        ]
        return group

    def of_class(self, name: str) -> list[ET.Element]:
        return [g for g in self.groups if name in (g.get("class") or "").split()]


def _fonts() -> tuple[Any, Any]:
    """DejaVu Sans, regular and bold, as matplotlib brings it: wider than most."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    return tuple(  # type: ignore[return-value]
        FT2Font(font_manager.findfont(name)) for name in ("DejaVu Sans", "DejaVu Sans:bold")
    )


_loaded: list[Any] = []


def text_length(text: str, size: float, bold: bool) -> float:
    if not _loaded:
        _loaded.extend(_fonts())
    font = _loaded[bold]
    font.set_size(1000, 72)
    return sum(font.load_char(ord(c)).linearHoriAdvance for c in text) / 65536 / 1000 * size


def read(svg: str) -> Picture:
    root = ET.fromstring(svg)
    picture = Picture(float(root.get("width", "")), float(root.get("height", "")))
    for group in root.iter(f"{SVG}g"):
        picture.groups.append(group)
        number = len(picture.groups)
        kind = group.get("class", "")
        if kind == "heat":
            continue
        if kind == "wire":
            _read_wire(picture, group)
            continue
        for element in group:
            _read_element(picture, element, number)
    return picture


def _read_wire(picture: Picture, group: ET.Element) -> None:
    source, target = group.get("data-source", ""), group.get("data-target", "")
    for element in group.iter(f"{SVG}path"):
        if element.get("fill") == "none":
            picture.wires.append(Wire(source, target, sample(element.get("d", ""))))


def _read_element(picture: Picture, element: ET.Element, group: int) -> None:
    tag = element.tag.removeprefix(SVG)

    def get(name: str) -> float:
        return float(element.get(name, "0"))

    if tag == "circle":
        x, y, r = get("cx"), get("cy"), get("r")
        picture.shapes.append(Box(x - r, y - r, x + r, y + r, "circle", group))
    elif tag == "rect":
        x, y = get("x"), get("y")
        picture.shapes.append(Box(x, y, x + get("width"), y + get("height"), "rect", group))
    elif tag == "path":
        points = sample(element.get("d", ""))
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        picture.shapes.append(Box(min(xs), min(ys), max(xs), max(ys), "path", group))
    elif tag == "text":
        size, text = get("font-size"), element.text or ""
        length = text_length(text, size, element.get("font-weight") == "bold")
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")]
        left, base = get("x") - shift * length, get("y")
        box = Box(left, base - 0.74 * size, left + length, base + 0.2 * size, text, group)
        picture.texts.append(box)


def sample(d: str, steps: int = 24) -> list[Point]:
    """Points along a path of M, L, C, Q, A (half an ellipse bulging right) and Z."""
    tokens = re.findall(r"[A-Za-z]|-?\d+\.?\d*(?:e-?\d+)?", d)
    points: list[Point] = []
    at = 0
    command = ""
    while at < len(tokens):
        if tokens[at].isalpha():
            command = tokens[at]
            at += 1
            if command == "Z":
                continue
        count = {"M": 2, "L": 2, "C": 6, "Q": 4, "A": 7}[command]
        numbers = [float(t) for t in tokens[at : at + count]]
        at += count
        if command == "M":
            points.append((numbers[0], numbers[1]))
            continue
        start = points[-1]
        if command == "A":
            rx, _, _, _, _, x, y = numbers
            points += [(start[0] + rx, (start[1] + y) / 2), (x, y)]
            continue
        controls = [start, *zip(numbers[::2], numbers[1::2], strict=True)]
        points += [_bezier(controls, i / steps) for i in range(1, steps + 1)]
    return points


def _bezier(controls: list[Point], t: float) -> Point:
    while len(controls) > 1:
        controls = [
            (a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]))
            for a, b in itertools.pairwise(controls)
        ]
    return controls[0]


def problems(picture: Picture) -> list[str]:
    """Everything that overlaps, leaves the canvas, or runs through what it does not belong to."""
    found = []
    everything = [*picture.texts, *picture.shapes]
    canvas = Box(0, 0, picture.width, picture.height, "canvas", 0)
    found += [f"{b} leaves the canvas" for b in everything if not b.inside(canvas)]
    for i, a in enumerate(picture.texts):
        found += [f"texts {a} and {b}" for b in picture.texts[i + 1 :] if a.overlaps(b)]
        for shape in picture.shapes:
            own = a.group == shape.group and a.inside(shape)
            if a.overlaps(shape) and not own:
                found.append(f"text {a} and shape {shape}")
    for i, a in enumerate(picture.shapes):
        for b in picture.shapes[i + 1 :]:
            nested = a.group == b.group and (a.inside(b) or b.inside(a))
            if a.overlaps(b) and not nested:
                found.append(f"shapes {a} and {b}")
    for wire in picture.wires:
        for point in wire.points:
            found += [
                f"wire {wire.source}->{wire.target} at {point} in {box}"
                for box in everything
                if box.holds(point)
            ]
            if not (0 <= point[0] <= picture.width and 0 <= point[1] <= picture.height):
                found.append(f"wire {wire.source}->{wire.target} leaves the canvas")
    return found
