"""Where the nodes of a diagram stand and how its wires run; knows nothing of what is drawn.

Layers from left to right (Sugiyama's method): a node stands one layer after the last of its
sources, wires that pass a layer get a lane of their own in it, the order inside the layers is
improved by barycentre sweeps, and heights are settled by isotonic medians, so that a chain stays
straight. Long diagrams continue in rows below; the wires between rows run in the margins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gradstack._draw._order import isotonic_medians, reorder, weighted_median
from gradstack._draw.scene import Point

GAP = 16.0  # between neighbours in a layer
CHANNEL = 34.0  # between layers, at least
TRACK = 10.0  # between wires that run side by side in a margin
ROW_GAP = 26.0
_SWEEPS = 24


@dataclass
class Node:
    """What the layout has to know of a node.

    The axis is the height at which its output leaves and around which its inputs arrive.
    """

    key: str
    width: float  # of everything that belongs to it, labels included
    above: float  # from the axis to the top
    below: float
    sources: Sequence[str] = ()
    ports: Sequence[float] = ()  # heights of the inputs relative to the axis, from top to bottom
    lane: float = 0.0  # height of its lane where its wire passes a layer


@dataclass
class Wire:
    """A piece of wire: from a node or lane to the next layer."""

    source: str
    target: str | None  # None: it goes on, as a lane
    slot: int  # which of the target's inputs
    points: list[Point]
    smooth: bool  # a curve from points[1] to points[2], otherwise a polyline


@dataclass
class Layout:
    """Positions: the left end of the axis of each node, and all wires."""

    width: float
    height: float
    at: dict[str, Point] = field(default_factory=dict)
    port_order: dict[str, list[int]] = field(default_factory=dict)  # slots from top to bottom
    wires: list[Wire] = field(default_factory=list)
    lanes: dict[str, list[tuple[Point, Point]]] = field(default_factory=dict)  # by source

    def move(self, dx: float, dy: float) -> None:
        """Shift everything."""
        self.at = {key: (x + dx, y + dy) for key, (x, y) in self.at.items()}
        for wire in self.wires:
            wire.points = [(x + dx, y + dy) for x, y in wire.points]
        for key, ends in self.lanes.items():
            self.lanes[key] = [((a + dx, b + dy), (c + dx, d + dy)) for (a, b), (c, d) in ends]

    def lanes_between(self, source: str, target: str) -> list[Point]:
        """Both ends of each lane on the way from one node to another."""
        end = self.at[target][0]
        return [p for lane in self.lanes.get(source, []) if lane[0][0] < end for p in lane]


@dataclass(eq=False)
class _Cell:
    """A node, or the lane of a wire, in its layer."""

    node: Node
    rank: int
    lane: bool
    into: list[_Cell] = field(default_factory=list)  # cells of the layer before, by slot
    out: list[tuple[_Cell, int]] = field(default_factory=list)
    y: float = 0.0
    x: float = 0.0

    @property
    def above(self) -> float:
        return self.node.lane / 2 if self.lane else self.node.above

    @property
    def below(self) -> float:
        return self.node.lane / 2 if self.lane else self.node.below


def arrange(nodes: Sequence[Node], width: float) -> Layout:
    """Lay out an acyclic graph, its nodes given in topological order.

    Parameters
    ----------
    nodes : sequence of Node
    width : float
        Where to begin a new row; a single wide node may exceed it.
    """
    return _Arrangement(nodes, width).run()


class _Arrangement:
    def __init__(self, nodes: Sequence[Node], width: float) -> None:
        self.nodes = nodes
        self.width = width
        self.layers: list[list[_Cell]] = []
        self.home: dict[str, _Cell] = {}
        self.port_order: dict[str, list[int]] = {}

    def run(self) -> Layout:
        self._rank()
        self._add_lanes()
        self._order()
        rows = self._rows()
        for row in rows:
            self._settle_heights(row)
        return self._place(rows)

    # Layers -----------------------------------------------------------------------------------

    def _rank(self) -> None:
        ranks: dict[str, int] = {}
        for node in self.nodes:
            ranks[node.key] = max((ranks[s] + 1 for s in node.sources), default=0)
        # What comes from outside stands right before its first use.
        first_use: dict[str, int] = {}
        for node in self.nodes:
            for source in node.sources:
                use = ranks[node.key]
                first_use[source] = min(first_use.get(source, use), use)
        for node in self.nodes:
            if not node.sources and node.key in first_use:
                ranks[node.key] = first_use[node.key] - 1
        self.layers = [[] for _ in range(1 + max(ranks.values(), default=0))]
        for node in self.nodes:
            self.home[node.key] = _Cell(node, ranks[node.key], False)

    def _add_lanes(self) -> None:
        """Connect cells layer by layer; lanes of a layer come before its nodes."""
        last: dict[str, int] = {}
        for node in self.nodes:
            for source in node.sources:
                last[source] = max(last.get(source, 0), self.home[node.key].rank)
        hops: dict[tuple[str, int], _Cell] = {}
        for node in self.nodes:
            cell = hops[node.key, self.home[node.key].rank] = self.home[node.key]
            for rank in range(cell.rank + 1, last.get(node.key, 0)):
                lane = _Cell(node, rank, True)
                before = hops[node.key, rank - 1]
                lane.into.append(before)
                before.out.append((lane, 0))
                hops[node.key, rank] = lane
                self.layers[rank].append(lane)
        for node in self.nodes:
            cell = self.home[node.key]
            self.layers[cell.rank].append(cell)
            for slot, source in enumerate(node.sources):
                before = hops[source, cell.rank - 1]
                cell.into.append(before)
                before.out.append((cell, slot))

    def _order(self) -> None:
        links = [
            [(i, after.index(c)) for i, cell in enumerate(before) for c, _ in cell.out]
            for before, after in zip(self.layers, self.layers[1:], strict=False)
        ]
        order = reorder([len(layer) for layer in self.layers], links)
        self.layers = [
            [layer[i] for i in ids] for layer, ids in zip(self.layers, order, strict=True)
        ]
        for layer, before in zip(self.layers[1:], self.layers, strict=False):
            where = {id(cell): i for i, cell in enumerate(before)}
            for cell in layer:
                if not cell.lane:
                    slots = sorted(range(len(cell.into)), key=lambda s: where[id(cell.into[s])])
                    self.port_order[cell.node.key] = slots

    # Rows -------------------------------------------------------------------------------------

    def _rows(self) -> list[range]:
        """Break the layers into rows: full ones, cut where few wires run."""
        widths = [
            max((c.node.width for c in layer if not c.lane), default=0) for layer in self.layers
        ]
        n = len(widths)
        cut = [0.0] * (n + 1)
        for i, layer in enumerate(self.layers[:-1]):
            cut[i + 1] = sum(bool(cell.out) for cell in layer)
        best: list[tuple[float, int]] = [(0.0, 0)]
        for end in range(1, n + 1):
            choices = []
            total = 0.0
            for begin in range(end - 1, -1, -1):
                total += widths[begin] + (CHANNEL if begin < end - 1 else 0)
                if total > self.width and begin < end - 1:
                    break
                slack = max(0.0, 1 - total / self.width)
                # Rows cost most, then wires between them, then unequal lengths.
                cost = 1 + 0.8 * max(0.0, cut[begin] - 1) + 0.5 * slack * slack
                choices.append((best[begin][0] + cost, begin))
            best.append(min(choices))
        rows = []
        end = n
        while end:
            begin = best[end][1]
            rows.append(range(begin, end))
            end = begin
        return rows[::-1]

    # Heights ----------------------------------------------------------------------------------

    def _port(self, cell: _Cell, slot: int) -> float:
        if cell.lane or not cell.node.ports:
            return 0.0
        return cell.node.ports[self.port_order[cell.node.key].index(slot)]

    def _wish(self, cell: _Cell, row: range, forward: bool, both: bool) -> tuple[float, float]:
        """The height at which its wires would be straightest, with its weight.

        Only the wires of the side that the sweep comes from count, or those of `both` sides.
        """
        sides = []
        if cell.rank - 1 in row and cell.into:
            sides.append(
                [(s.y - self._port(cell, i), _weight(s, cell)) for i, s in enumerate(cell.into)]
            )
        if cell.rank + 1 in row and cell.out:
            sides.append([(t.y + self._port(t, i), _weight(cell, t)) for t, i in cell.out])
        if not sides:
            return cell.y, 0.1
        first = sides[0] if forward else sides[-1]
        weight = sum(w for side in sides for _, w in side)
        low, high = weighted_median(first)
        middle = (low + high) / 2
        if both:
            # Where all of an interval is as good, the side that the sweep comes from decides.
            low, high = weighted_median([wish for side in sides for wish in side])
            middle = min(max(middle, low), high)
        return middle, weight

    def _settle_heights(self, row: range) -> None:
        for rank in row:
            y = 0.0
            for cell in self.layers[rank]:
                y += cell.above
                cell.y = y
                y += cell.below + GAP
            middle = (y - GAP) / 2
            for cell in self.layers[rank]:
                cell.y -= middle
        for sweep in range(_SWEEPS):
            forward = sweep % 2 == 1  # the last sweep goes from left to right
            for rank in row if forward else reversed(row):
                self._settle_layer(rank, row, forward, sweep >= _SWEEPS // 3)
        self._close_gaps(row)

    def _close_gaps(self, row: range) -> None:
        """Take out horizontal bands in which nothing stands, where parts have drifted apart."""
        cells = sorted((c for rank in row for c in self.layers[rank]), key=lambda c: c.y - c.above)
        end, shift = -math.inf, 0.0
        for cell in cells:
            if end > -math.inf:
                shift += max(0.0, cell.y - cell.above - end - GAP)
            end = max(end, cell.y + cell.below)
            cell.y -= shift

    def _settle_layer(self, rank: int, row: range, forward: bool, both: bool) -> None:
        layer = self.layers[rank]
        wishes, offsets = [], []
        offset = 0.0
        for i, cell in enumerate(layer):
            if i:
                offset += layer[i - 1].below + GAP + cell.above
            offsets.append(offset)
            height, weight = self._wish(cell, row, forward, both)
            wishes.append((height - offset, weight))
        for cell, y, o in zip(layer, isotonic_medians(wishes), offsets, strict=True):
            cell.y = y + o

    # Positions --------------------------------------------------------------------------------

    def _channel(self, rank: int) -> float:
        """Room between a layer and the next, more where wires are steep."""
        rise = 0.0
        for cell in self.layers[rank]:
            for target, slot in cell.out:
                rise = max(rise, abs(target.y + self._port(target, slot) - cell.y))
        return CHANNEL + min(70.0, 0.25 * rise)

    def _place(self, rows: list[range]) -> Layout:
        passing = [
            [cell for cell in self.layers[row[-1]] if cell.out] for row in rows[:-1]
        ]  # the cells whose wires go on in the next row, from top to bottom
        margin = 12.0 + TRACK * max(map(len, passing)) if passing else 0.0
        layout = Layout(0.0, 0.0, port_order=self.port_order)
        channels = [self._channel(rank) for rank in range(len(self.layers))]
        y, right = 0.0, 0.0
        ends: dict[int, float] = {}  # right end of each layer
        bottoms = []
        for number, row in enumerate(rows):
            top = max(c.above - c.y for rank in row for c in self.layers[rank])
            bottom = max(c.below + c.y for rank in row for c in self.layers[rank])
            x = margin
            for rank in row:
                width = max((c.node.width for c in self.layers[rank] if not c.lane), default=0.0)
                for cell in self.layers[rank]:
                    cell.x, cell.y = x, cell.y + y + top
                    if not cell.lane:
                        layout.at[cell.node.key] = (cell.x, cell.y)
                ends[rank] = x + width
                x += width + (channels[rank] if rank + 1 in row else 0.0)
            right = max(right, x)
            y += top + bottom
            bottoms.append(y)
            if number < len(rows) - 1:
                y += ROW_GAP + TRACK * len(passing[number])
        for row, below in zip(rows, [*bottoms[:-1], None], strict=True):
            for rank in row:
                inside = rank + 1 in row
                for cell in self.layers[rank]:
                    if cell.lane:
                        lane = ((cell.x, cell.y), (ends[rank], cell.y))
                        layout.lanes.setdefault(cell.node.key, []).append(lane)
                    if inside:
                        self._connect(layout, cell, ends[rank], self.layers[rank + 1])
                if not inside and below is not None:
                    self._wrap(layout, passing[rows.index(row)], ends[rank], below, margin)
        layout.width = right + margin
        layout.height = y
        return layout

    def _start(self, cell: _Cell) -> Point:
        return (cell.x if cell.lane else cell.x + cell.node.width, cell.y)

    def _connect(self, layout: Layout, cell: _Cell, end: float, after: list[_Cell]) -> None:
        start = self._start(cell)
        for target, slot in cell.out:
            tip = (target.x, target.y + self._port(target, slot))
            points = [start, (end, cell.y), tip]
            start = points[1]  # what wires share is drawn once
            key = None if target.lane else target.node.key
            layout.wires.append(Wire(cell.node.key, key, slot, points, True))

    def _wrap(
        self, layout: Layout, cells: list[_Cell], end: float, below: float, margin: float
    ) -> None:
        """Lead wires to the next row: around the right margin, back, and down the left one.

        The first wire from the top takes the outer tracks on the right and the inner ones on the
        left, so that wires do not cross while they turn.
        """
        n = len(cells)
        for i, cell in enumerate(cells):
            out = end + 12.0 + TRACK * (n - 1 - i)
            back = below + ROW_GAP / 2 + TRACK * (n - 1 - i)
            left = margin - 12.0 - TRACK * i
            trunk = [self._start(cell), (out, cell.y), (out, back), (left, back)]
            for target, slot in cell.out:
                tip = (target.x, target.y + self._port(target, slot))
                points = [*trunk, (left, tip[1]), tip]
                trunk = [(left, back + 8.0)]  # what wires share is drawn once
                key = None if target.lane else target.node.key
                layout.wires.append(Wire(cell.node.key, key, slot, points, False))


def _weight(a: _Cell, b: _Cell) -> float:
    """How much a piece of wire wants to be straight: the main chain most."""
    if a.lane or b.lane:
        return 4.0 if a.lane and b.lane else 1.0
    return 8.0 if a.into else 6.0
