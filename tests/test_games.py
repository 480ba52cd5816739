"""optim.games on bilinear games, where the theory is exact, and with nets as players."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim
from gradstack.optim import games

WAYS = [games.Simultaneous, games.Alternating, games.Extragradient, games.Optimistic]


def play(
    way: type[games.Game], a: np.ndarray, lr: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """min_u max_v u^T A v from a fixed start: all places of u and v, (steps + 1, n)."""
    n = len(a)
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, n))
    game = way([u, v], lr)
    path = [(u.copy(), v.copy())]
    for _ in range(steps):
        game.step([lambda: a @ v, lambda: -a.T @ u])
        path.append((u.copy(), v.copy()))
    us, vs = zip(*path, strict=True)
    return np.array(us), np.array(vs)


def radius(us: np.ndarray, vs: np.ndarray) -> np.ndarray:
    return np.hypot(np.linalg.norm(us, axis=1), np.linalg.norm(vs, axis=1))


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9])
def test_simultaneous_circles_outward_as_theory_says(lr: float) -> None:
    r = radius(*play(games.Simultaneous, np.eye(3), lr, 50))
    np.testing.assert_allclose(r, r[0] * (1 + lr**2) ** (np.arange(51) / 2), rtol=1e-10)


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9])
def test_extragradient_converges_as_theory_says(lr: float) -> None:
    r = radius(*play(games.Extragradient, np.eye(3), lr, 50))
    factor = 1 - lr**2 + lr**4
    np.testing.assert_allclose(r, r[0] * factor ** (np.arange(51) / 2), rtol=1e-9)


@pytest.mark.parametrize("lr", [0.1, 0.5, 1.5])
def test_alternating_stays_on_an_ellipse_and_its_average_converges(lr: float) -> None:
    us, vs = play(games.Alternating, np.eye(1), lr, 3000)
    u, v = us[:, 0], vs[:, 0]
    # With u moved before v, u^2 + v^2 - lr u v is conserved.
    energy = u**2 + v**2 - lr * u * v
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)
    assert (
        radius(us.mean(0, keepdims=True), vs.mean(0, keepdims=True))[0] < 0.01 * radius(us, vs)[0]
    )


@pytest.mark.parametrize(
    ("lr", "converges"), [(0.1, True), (0.5, True), (0.57, True), (0.6, False)]
)
def test_optimistic_converges_up_to_its_bound(lr: float, converges: bool) -> None:
    """The bound is 1 / sqrt(3) = 0.577."""
    us, vs = play(games.Optimistic, np.eye(2), lr, 3000)
    r = radius(us, vs)
    assert (r[-1] < 1e-3 * r[0]) == converges
    # Steps written out: w <- w - 2 lr g + lr g_before.
    for t in range(1, 20):
        np.testing.assert_allclose(us[t + 1], us[t] - lr * (2 * vs[t] - vs[t - 1]), rtol=1e-9)


def test_the_others_converge_with_a_matrix(rng: np.random.Generator) -> None:
    a = rng.normal(size=(5, 5))
    lr = 0.5 / np.linalg.norm(a, 2)
    for way in (games.Extragradient, games.Optimistic):
        r = radius(*play(way, a, lr, 20000))
        assert r[-1] < 1e-3 * r[0]
    assert radius(*play(games.Simultaneous, a, lr, 2000))[-1] > 10


def nets() -> tuple[list[nn.Module], list[Callable[[], Any]]]:
    """Two nets; each descends a cost that depends on both."""
    gs.seed(1)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 3)).astype(np.float32)
    y = rng.normal(size=(8, 2)).astype(np.float32)
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    cost = nn.SquaredError()
    return [one, two], [
        lambda: gs.value_and_grad(one, cost, x, y + two(x))[1],
        lambda: gs.value_and_grad(two, cost, x, y - one(x))[1],
    ]


@pytest.mark.parametrize("way", WAYS)
def test_nets_move_as_their_vectors_do(way: type[games.Game]) -> None:
    players, gradients = nets()
    game = way(players, [optim.SGD(lr=0.05), 0.03])
    for _ in range(10):
        game.step(gradients)
    twins, theirs = nets()
    game = way([twin.w for twin in twins], [0.05, 0.03])
    for _ in range(10):
        game.step(theirs)
    for player, twin in zip(players, twins, strict=True):
        np.testing.assert_allclose(player.w, twin.w, rtol=1e-5, atol=1e-6)


def test_looking_ahead_leaves_no_trace_in_the_optimiser() -> None:
    """Extragradient with Adam: the state after a step is that of one update from the old one."""
    players, gradients = nets()
    adams = [optim.Adam(lr=0.05), optim.Adam(lr=0.05)]
    game = games.Extragradient(players, adams)
    seen: list[Any] = []
    recording = [lambda g=g: (seen.append(g()), seen[-1])[1] for g in gradients]
    for _ in range(3):
        game.step(recording)
    assert [adam.t for adam in adams] == [3, 3]
    # What was found ahead is what moved: the last two of every four gradients.
    twin, adam = nets()[0][0], optim.Adam(lr=0.05)
    twin.trace(3)
    for k in (2, 6, 10):
        adam.update(twin, seen[k])
    np.testing.assert_allclose(players[0].w, twin.w, rtol=1e-6)


def test_bad_players_are_named() -> None:
    u = np.zeros(2)
    with pytest.raises(ValueError, match="one entry per player"):
        games.Alternating([u, u], [0.1])
    with pytest.raises(ValueError, match="one entry per player"):
        games.Alternating([u, u], optim.SGD(lr=0.1))
    with pytest.raises(TypeError, match="a vector takes a learning rate"):
        games.Alternating([u, u], [optim.SGD(lr=0.1), 0.1])
    with pytest.raises(TypeError, match="players must be modules or float vectors"):
        games.Alternating([u, [1.0]], 0.1)
    with pytest.raises(ValueError, match="gradients has 1 entries, expected 2"):
        games.Alternating([u, u.copy()], 0.1).step([lambda: u])
