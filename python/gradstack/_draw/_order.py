"""The two small optimisations behind a layered drawing: few crossings, straight wires."""

from __future__ import annotations

from collections.abc import Sequence

Links = Sequence[tuple[int, int]]  # (position in a layer, position in the next)

_ROUNDS = 16


def crossings(pairs: Sequence[tuple[float, float]]) -> int:
    """How many of the lines between two columns cross, given their heights at both ends."""
    count = 0
    ordered = sorted(pairs)
    for i, (a, b) in enumerate(ordered):
        count += sum(c > a and d < b for c, d in ordered[i + 1 :])
    return count


def reorder(sizes: Sequence[int], links: Sequence[Links]) -> list[list[int]]:
    """Order the members of layers so that few of the links between neighbours cross.

    Parameters
    ----------
    sizes : sequence of int
        Number of members of each layer.
    links : sequence of (sequence of (int, int))
        Between each layer and the next; members are numbered from 0 in each.

    Returns
    -------
    list of list of int
        For each layer the numbers of its members from top to bottom.
    """
    order = [list(range(n)) for n in sizes]
    best, fewest = [list(o) for o in order], _count(order, links)
    for round_ in range(_ROUNDS):
        if fewest == 0:
            break
        forward = round_ % 2 == 0
        for i in range(1, len(sizes)) if forward else range(len(sizes) - 2, -1, -1):
            pairs = links[i - 1] if forward else [(b, a) for a, b in links[i]]
            _sort_layer(order, i, i - 1 if forward else i + 1, pairs)
        _exchange(order, links)
        count = _count(order, links)
        if count < fewest:
            best, fewest = [list(o) for o in order], count
    return best


def _sort_layer(order: list[list[int]], layer: int, fixed: int, pairs: Links) -> None:
    """Sort a layer by the mean position of each member's partners in the fixed one."""
    place = {member: i for i, member in enumerate(order[fixed])}
    partners: dict[int, list[int]] = {}
    for other, member in pairs:
        partners.setdefault(member, []).append(place[other])
    means = {
        m: sum(partners[m]) / len(partners[m]) if m in partners else float(i)
        for i, m in enumerate(order[layer])
    }
    order[layer].sort(key=means.__getitem__)


def _exchange(order: list[list[int]], links: Sequence[Links]) -> None:
    """Swap neighbours as long as that removes crossings."""
    for i, layer in enumerate(order):
        near = [j for j in (i - 1, i) if 0 <= j < len(links)]
        for k in range(len(layer) - 1):
            before = sum(_count_between(order, links, j) for j in near)
            layer[k], layer[k + 1] = layer[k + 1], layer[k]
            if sum(_count_between(order, links, j) for j in near) >= before:
                layer[k], layer[k + 1] = layer[k + 1], layer[k]


def _count_between(order: list[list[int]], links: Sequence[Links], i: int) -> int:
    a = {member: k for k, member in enumerate(order[i])}
    b = {member: k for k, member in enumerate(order[i + 1])}
    return crossings([(a[u], b[v]) for u, v in links[i]])


def _count(order: list[list[int]], links: Sequence[Links]) -> int:
    return sum(_count_between(order, links, i) for i in range(len(links)))


def weighted_median(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The medians of (value, weight): all that lies between the two numbers returned."""
    ordered = sorted(values)
    half = sum(w for _, w in ordered) / 2
    total = 0.0
    for i, (value, weight) in enumerate(ordered):
        total += weight
        if abs(total - half) < 1e-9 and i + 1 < len(ordered):
            return value, ordered[i + 1][0]
        if total > half:
            return value, value
    return ordered[-1][0], ordered[-1][0]


def isotonic_medians(values: Sequence[tuple[float, float]]) -> list[float]:
    """The non-decreasing sequence nearest to (value, weight), by the weighted sum of distances.

    Pool adjacent violators: groups in the wrong order are joined and take their median.
    """
    groups: list[tuple[float, list[tuple[float, float]]]] = []
    for pair in values:
        members = [pair]
        level = pair[0]
        while groups and groups[-1][0] > level:
            members = groups.pop()[1] + members
            level = sum(weighted_median(members)) / 2
        groups.append((level, members))
    return [level for level, members in groups for _ in members]
