"""Two players, one number: who moves when decides whether they reach the equilibrium.

Lecture: "Nash equilibria between two functions". Player u descends u v, player v ascends it. At the
equilibrium (0, 0) neither can gain alone, yet nobody's function has its minimum there: the field of
the two gradients turns in circles. Following it with finite steps leads outward; looking one step
ahead (extragradient) or extrapolating the last change (optimistic) leads in; moving in turn stays
on an ellipse, the average of which converges.

Theory, for learning rate lr: the distance is multiplied per step by sqrt(1 + lr^2) when moving at
once, and by sqrt(1 - lr^2 + lr^4) with the extragradient.

Run it: ``python examples/bilinear_game.py [--quick] [--out FOLDER]``.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

from gradstack import optim

LR = 0.2
WAYS = {
    "simultaneous": optim.games.Simultaneous,
    "alternating": optim.games.Alternating,
    "extragradient": optim.games.Extragradient,
    "optimistic": optim.games.Optimistic,
}


def play(way: type[optim.games.Game], steps: int) -> Array:
    """The places (u, v) visited, (steps + 1, 2)."""
    u, v = np.array([1.0]), np.array([0.5])
    game = way([u, v], LR)
    path = [(u[0], v[0])]
    for _ in range(steps):
        game.step([lambda: v, lambda: -u])
        path.append((u[0], v[0]))
    return np.array(path)


def draw_path(axes: Any, path: Array, name: str) -> None:
    grid = np.linspace(-2.2, 2.2, 12)
    u, v = np.meshgrid(grid, grid)
    axes.quiver(u, v, -v, u, color="0.75", scale=45, width=0.007)
    axes.plot(path[:, 0], path[:, 1], ".-", linewidth=0.8, markersize=3, color="C0")
    axes.plot(*path[0], "o", color="C1", markersize=6)
    axes.plot(0, 0, "+", color="C3", markersize=10, markeredgewidth=2)
    axes.set(title=name, xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    axes.set(xlabel="u")
    axes.grid(visible=False)


def main() -> None:
    options = arguments(__doc__)
    steps = 400
    figure = plt.figure(figsize=(8.6, 5.4), layout="constrained")
    panels = figure.subplot_mosaic("ABCD;EEEE", height_ratios=[1, 1.1])
    for axes, color, (name, way) in zip("ABCD", range(4), WAYS.items(), strict=False):
        path = play(way, steps)
        distance = np.linalg.norm(path, axis=1)
        draw_path(panels[axes], path[:90], name)
        panels["E"].semilogy(distance, color=f"C{color}", label=name)
        line = (
            f"{name}: distance {distance[0]:.3f} at first, {distance[-1]:.3e} after {steps} steps"
        )
        if name == "alternating":
            average = np.cumsum(path, axis=0) / np.arange(1, steps + 2)[:, None]
            far = np.linalg.norm(average, axis=1)
            panels["E"].semilogy(far, color=f"C{color}", linestyle=":", label=f"{name}, average")
            line += f", of the average {far[-1]:.3e}"
        print(line)
    panels["A"].set(ylabel="v")
    k = np.arange(steps + 1)
    for rate in (1 + LR**2, 1 - LR**2 + LR**4):
        theory = np.hypot(1.0, 0.5) * rate ** (k / 2)
        panels["E"].semilogy(k[::20], theory[::20], "k.", markersize=4)
    panels["E"].plot([], [], "k.", markersize=4, label="theory")
    panels["E"].set(xlabel="step", ylabel="distance to the equilibrium", ylim=(1e-4, 1e4))
    panels["E"].legend(ncols=2)
    save(figure, options.out, "bilinear_game.png")


if __name__ == "__main__":
    main()
