"""The average loss L(S, w) = 1/P Σ L(x[p], y[p], w): one function and one w for all samples."""

from __future__ import annotations

from gradstack._draw.blocks import takes_labels, takes_target
from gradstack._draw.diagram import Diagram
from gradstack._draw.figures import (
    COST_SIDE,
    HEADER,
    MARGIN,
    OBSERVED,
    VariableFigure,
    paint_cost,
    paint_function,
)
from gradstack._draw.model import Model
from gradstack._draw.scene import INK, MUTED, WIRE, Point, Scene, rounded
from gradstack._draw.text import count_text, shape_text, text_width
from gradstack.nn.cost import Cost

_SAMPLES = ("1", "2", "P")
_PITCH = 104.0  # from sample to sample, for a net of one input
_RADIUS = 17.0
_SMALL = 10.0


def draw_average(model: Model, cost: Cost) -> Diagram:
    """Three samples of many, each through the same net and cost, and the average."""
    return _Average(model, cost).draw()


class _Average:
    def __init__(self, model: Model, cost: Cost) -> None:
        self.model = model
        self.cost = cost
        self.scene = Scene()
        labels = [f"{name}[P]  {shape_text(shape)}" for name, shape in model.inputs]
        self.indent = max(2 * _RADIUS, *(text_width(t, _SMALL) for t in labels))
        self.bus = MARGIN + self.indent + 22.0  # where the shared w runs down
        self.net_x = self.bus + 26.0
        self.net_width = max(84.0, text_width(model.name, 12.5, bold=True) + 36.0)
        self.net_height = 22.0 * (len(model.inputs) + 1) + 14.0
        self.ybar_x = self.net_x + self.net_width + 40.0
        self.cost_x = self.ybar_x + 2 * _RADIUS + 44.0
        self.mean_x = self.cost_x + 150.0
        pitch = max(_PITCH, 52.0 * len(model.inputs) + 30.0, self.net_height + 36.0)
        top = MARGIN + HEADER + 36.0
        middle = top + pitch / 2
        self.rows = [middle, middle + pitch, middle + 2.5 * pitch]
        self.height = self.rows[-1] + pitch / 2 + 24.0 + MARGIN

    def draw(self) -> Diagram:
        """Paint everything."""
        scene, model = self.scene, self.model
        title = f"{model.name}, average loss"
        formula = "L(S, w) = 1/P Σ C(y[p], G(x[p], w)), the same w for every sample p"
        if not takes_target(model, self.cost):
            formula = "L(S, w) = 1/P Σ C(G(x[p], w)), the same w for every sample p"
        scene.open("header")
        scene.text(MARGIN, MARGIN + 12.0, title, 14.0, "start", font_weight="bold")
        scene.text(MARGIN, MARGIN + 28.0, formula, 10.5, "start", MUTED)
        scene.close()
        self._shared()
        for y, sample in zip(self.rows, _SAMPLES, strict=True):
            self._sample(y, sample)
        self._dots()
        end = self._mean()
        width = max(end + MARGIN, 2 * MARGIN + text_width(formula, 10.5))
        return Diagram(scene.svg(width, self.height, f"{title}: {formula}"), width, self.height)

    def _port(self, y: float, index: int) -> float:
        """Height of an input of the net; the last one is w's."""
        return y + 22.0 * (index - len(self.model.inputs) / 2)

    def _shared(self) -> None:
        """The one w, led to every copy of the net."""
        scene, n = self.scene, len(self.model.inputs)
        y = MARGIN + HEADER + 17.0
        last = self._port(self.rows[-1], n)
        scene.open("wire", source="w", target="net")
        for i, row in enumerate(self.rows):
            port = self._port(row, n)
            start: Point = (self.bus, y + _RADIUS if i == 0 else port - 8.0)
            points = [start, (self.bus, port), (self.net_x - 5.0, port)]
            scene.path(*rounded(points, 8.0), fill="none", stroke=WIRE, stroke_dasharray="5 3")
            scene.arrow((self.net_x, port))
        scene.line(
            (self.bus, self._port(self.rows[0], n)), (self.bus, last), stroke=WIRE,
            stroke_dasharray="5 3",
        )  # fmt: skip
        scene.close()
        scene.open("variable", "w, the parameters: shared by all samples", name="w")
        scene.circle(self.bus, y, _RADIUS, fill="white", stroke=INK, stroke_width=1.5)
        scene.text(self.bus, y + 4.5, "w", 13.0, font_style="italic")
        count = count_text(self.model.n_params, "parameter")
        scene.text(self.bus + _RADIUS + 6.0, y + 4.0, count, _SMALL, "start", MUTED)
        scene.close()

    def _sample(self, y: float, sample: str) -> None:
        scene, model = self.scene, self.model
        n = len(model.inputs)
        for i, (name, shape) in enumerate(model.inputs):
            port = self._port(y, i)
            center = port if n == 1 else y - 8.0 + 52.0 * (i - (n - 1) / 2)
            self._wire((MARGIN + 2 * _RADIUS, center), (self.net_x, port))
            text = f"{name}[{sample}]  {shape_text(shape)}"
            self._circle(MARGIN, center, name[0], text, observed=True)
        half = self.net_width
        scene.open("block", f"{model.name}: {model.summary}", name=f"G {sample}", kind="net")
        paint_function(scene, (self.net_x, y), (half, self.net_height), 20.0, "net")
        scene.text(self.net_x + half / 2 - 4.0, y, model.name, 12.5, font_weight="bold")
        scene.text(self.net_x + half / 2 - 4.0, y + 15.0, "G(x, w)", _SMALL, fill=MUTED)
        scene.close()
        self._wire((self.net_x + half, y), (self.ybar_x, y))
        discrete = bool(model.discrete)
        self._circle(self.ybar_x, y, "ȳ", "", discrete=discrete)
        target = takes_target(model, self.cost)
        port = y - 8.0 if target else y
        self._wire((self.ybar_x + 2 * _RADIUS, y), (self.cost_x, port))
        if target:
            low = y + 46.0
            self._wire((self.ybar_x + 2 * _RADIUS, low), (self.cost_x, y + 10.0))
            self._circle(
                self.ybar_x, low, "y", f"y[{sample}]", observed=True,
                discrete=takes_labels(self.cost), side=True,
            )  # fmt: skip
        scene.open("cost", repr(self.cost), name=f"C {sample}")
        paint_cost(scene, (self.cost_x, y), type(self.cost).__name__)
        scene.close()

    def _dots(self) -> None:
        y = (self.rows[1] + self.rows[2]) / 2 + 10.0
        for x in (MARGIN + _RADIUS, self.net_x + self.net_width / 2, self.cost_x + 18.0):
            self.scene.text(x, y, "⋮", 18.0, fill=MUTED)

    def _mean(self) -> float:
        """The average of the costs, and L; returns the right end."""
        scene = self.scene
        y = self.rows[1]
        label = "1/P Σ"
        width = text_width(label, 13.0, bold=True) + 36.0
        ports = (-16.0, 0.0, 16.0)
        name_end = self.cost_x + text_width(type(self.cost).__name__, _SMALL) + 8.0
        x = max(self.mean_x, name_end + 40.0)
        for row, port in zip(self.rows, ports, strict=True):
            self._wire((self.cost_x + COST_SIDE, row), (x, y + port), name_end)
        scene.open("block", "the average over the samples", name="average", kind="average")
        paint_function(scene, (x, y), (width, 60.0), 20.0, "average")
        scene.text(x + width / 2 - 4.0, y + 4.5, label, 13.0, font_weight="bold")
        scene.close()
        end = x + width + 40.0
        self._wire((x + width, y), (end, y))
        self._circle(end, y, "L", "L(S, w)")
        return end + max(2 * _RADIUS, text_width("L(S, w)", _SMALL))

    def _wire(self, start: Point, end: Point, begin: float | None = None) -> None:
        """A wire that leaves its height at x = `begin`, right behind its start by default."""
        scene = self.scene
        scene.open("wire")
        (x0, y0), (x1, y1) = start, (end[0] - 5.0, end[1])
        first = x0 if begin is None else begin
        turn = min(x1, first + 70.0)
        middle = (first + turn) / 2
        bend = ("L", first, y0, "C", middle, y0, middle, y1, turn, y1) if y0 != y1 else ()
        scene.path("M", x0, y0, *bend, "L", x1, y1, fill="none", stroke=WIRE, stroke_width=1.5)
        scene.arrow(end)
        scene.close()

    def _circle(
        self,
        x: float,
        y: float,
        symbol: str,
        text: str,
        observed: bool = False,
        discrete: bool = False,
        side: bool = False,
    ) -> None:
        """A circle, its text below or at its left side."""
        scene = self.scene
        scene.open("observed variable" if observed else "variable", name=text or symbol)
        fill = OBSERVED if observed else "white"
        center = (x + _RADIUS, y)
        scene.circle(*center, _RADIUS, fill=fill, stroke=INK, stroke_width=1.5)
        if discrete:
            scene.circle(*center, _RADIUS - 3.5, fill="none", stroke=INK, stroke_width=1.2)
        scene.text(center[0], y + 4.5, symbol, VariableFigure.SIZE, font_style="italic")
        if side:
            scene.text(x - 6.0, y + 3.5, text, _SMALL, "end", MUTED)
        elif text:
            scene.text(x, y + _RADIUS + 13.0, text, _SMALL, "start", MUTED)
        scene.close()
