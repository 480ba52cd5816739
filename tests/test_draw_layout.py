"""The layout behind the diagrams, by itself: boxes of any size, graphs of any shape."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gradstack._draw._order import crossings, isotonic_medians, reorder, weighted_median
from gradstack._draw.layout import CHANNEL, GAP, Layout, Node, arrange


def random_nodes(seed: int, count: int) -> list[Node]:
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []
    for i in range(count):
        fan = 0 if i == 0 else int(rng.integers(0, min(i, 5) + 1))
        sources = [f"n{int(rng.integers(max(0, i - 12), i))}" for _ in range(fan)]
        ports = np.linspace(-10, 10, len(sources)) if len(sources) > 1 else np.zeros(len(sources))
        above, below = rng.uniform(12, 60, 2)
        nodes.append(Node(f"n{i}", rng.uniform(20, 200), above, below, sources, list(ports)))
    return nodes


def boxes(nodes: list[Node], layout: Layout) -> dict[str, tuple[float, float, float, float]]:
    found = {}
    for node in nodes:
        x, y = layout.at[node.key]
        found[node.key] = (x, y - node.above, x + node.width, y + node.below)
    return found


@pytest.mark.parametrize("width", [300.0, 1000.0, 1e9])
@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_apart_and_wires_go_around_them(seed: int, width: float) -> None:
    nodes = random_nodes(seed, int(np.random.default_rng(seed).integers(1, 40)))
    layout = arrange(nodes, width)
    found = boxes(nodes, layout)
    for a, b in itertools.combinations(found.values(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for x0, y0, x1, y1 in found.values():
        assert min(x0, y0) >= -1e-9
        assert x1 <= layout.width + 1e-9
        assert y1 <= layout.height + 1e-9
    for wire in layout.wires:
        for (ax, ay), (bx, by) in itertools.pairwise(wire.points):
            for t in np.linspace(0, 1, 20):
                # A curve between two heights stays between its ends, in the channel.
                x, y = ax + t * (bx - ax), ay + t * (by - ay)
                for x0, y0, x1, y1 in found.values():
                    assert not (x0 + 1 < x < x1 - 1 and y0 + 1 < y < y1 - 1)


@pytest.mark.parametrize("seed", range(10))
def test_wires_end_at_the_ports(seed: int) -> None:
    nodes = random_nodes(seed, 20)
    layout = arrange(nodes, 600)
    by_key = {node.key: node for node in nodes}
    arrived = set()
    for wire in layout.wires:
        if wire.target is None:
            continue
        node = by_key[wire.target]
        assert node.sources[wire.slot] == wire.source
        x, y = layout.at[wire.target]
        port = node.ports[layout.port_order[wire.target].index(wire.slot)]
        assert wire.points[-1] == pytest.approx((x, y + port))
        arrived.add((wire.target, wire.slot))
    assert arrived == {(n.key, i) for n in nodes for i in range(len(n.sources))}


@pytest.mark.parametrize("seed", range(10))
def test_time_goes_right_or_down(seed: int) -> None:
    nodes = random_nodes(seed, 30)
    layout = arrange(nodes, 700)
    found = boxes(nodes, layout)
    for node in nodes:
        for source in node.sources:
            after = found[node.key][0] >= found[source][2]
            below = found[node.key][1] >= found[source][3]
            assert after or below


def test_a_chain_stays_at_one_height_and_fills_its_rows() -> None:
    nodes = [Node(f"n{i}", 90, 20, 20, [f"n{i - 1}"] if i else [], [0.0]) for i in range(30)]
    layout = arrange(nodes, 1000)
    rows = sorted({y for _, y in layout.at.values()})
    assert len(rows) == int(np.ceil(30 * (90 + CHANNEL) / 1000))
    assert all(len([p for p in layout.at.values() if p[1] == y]) >= 7 for y in rows)


@pytest.mark.parametrize("seed", range(40))
def test_no_room_is_wasted(seed: int) -> None:
    """A row is not much higher than its fullest layer."""
    nodes = random_nodes(seed, 3 + seed % 30)
    layout = arrange(nodes, 1e9)
    columns: dict[float, float] = {}
    for node in nodes:
        x = layout.at[node.key][0]
        columns[x] = columns.get(x, 0.0) + node.above + node.below + GAP
    for lanes in layout.lanes.values():
        for (x, _), _ in lanes:
            columns[x] = columns.get(x, 0.0) + GAP
    assert layout.height < 2 * max(columns.values())


def test_a_skip_does_not_bend_the_chain() -> None:
    names = "abcdef"
    nodes = [Node(n, 60, 20, 30, [names[i - 1]] if i else [], [0.0]) for i, n in enumerate(names)]
    nodes.append(Node("+", 40, 20, 20, ["b", "f"], [-8.0, 8.0]))
    layout = arrange(nodes, 1e9)
    heights = {round(layout.at[n][1], 6) for n in names}
    assert len(heights) == 1
    assert layout.at["+"][1] == pytest.approx(heights.pop() - 8)


def test_one_node_wider_than_the_row() -> None:
    assert arrange([Node("a", 50, 10, 10)], 20).at.keys() == {"a"}


# The optimisations --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_crossings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(int(a), int(b)) for a, b in rng.integers(0, 6, (9, 2))]
    expected = sum(
        (a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(pairs, 2)
    )  # fmt: skip
    assert crossings(pairs) == expected


@pytest.mark.parametrize("seed", range(30))
def test_isotonic_medians_are_optimal(seed: int) -> None:
    """No non-decreasing sequence of the given values is nearer."""
    rng = np.random.default_rng(seed)
    values = [(float(v), float(w)) for v, w in rng.integers(1, 7, (5, 2))]

    def distance(levels: tuple[float, ...] | list[float]) -> float:
        return sum(w * abs(v - y) for (v, w), y in zip(values, levels, strict=True))

    got = isotonic_medians(values)
    assert all(a <= b for a, b in itertools.pairwise(got))
    candidates = sorted({v for v, _ in values})
    best = min(
        distance(levels) for levels in itertools.combinations_with_replacement(candidates, 5)
    )
    assert distance(got) == pytest.approx(best)


def test_weighted_median() -> None:
    assert weighted_median([(3.0, 1.0), (1.0, 5.0), (9.0, 1.0)]) == (1.0, 1.0)
    assert weighted_median([(0.0, 2.0), (10.0, 2.0)]) == (0.0, 10.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_scrambled_ladder_is_untangled(seed: int) -> None:
    """Layers that can be drawn without a crossing are."""
    rng = np.random.default_rng(seed)
    sizes = [5] * 6
    places = [rng.permutation(5) for _ in sizes]
    links = [[(int(a[i]), int(b[i])) for i in range(5)] for a, b in itertools.pairwise(places)]
    order = reorder(sizes, links)
    for i, pairs in enumerate(links):
        heights = [(order[i].index(a), order[i + 1].index(b)) for a, b in pairs]
        assert crossings(heights) == 0
