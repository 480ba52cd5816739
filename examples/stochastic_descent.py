"""One sample at a time against the full batch: noisier, and faster the more the data repeat.

Lecture: "Gradient descent", full batch, stochastic and minibatch. The gradient of one sample is a
noisy estimate of the gradient of the average loss, so the way down is noisy too. But it costs one
sample instead of all. When every sample occurs k times, the full batch does everything k times to
learn the same; stochastic gradient descent learns k times as much in a pass.

Left: both on the contours of a linear model with two parameters. Right: a network on 64 points that
are duplicated k times, with the same progress per gradient: 64 steps of size eta / 64 for one of
size eta. Both start at the same weights.

Run it: ``python examples/stochastic_descent.py [--quick] [--out FOLDER] [--seed N]``.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from matplotlib.axes import Axes

import gradstack as gs
from gradstack import nn, optim, plot

POINTS, ETA = 64, 0.2
COST = nn.MSELoss()


def descend(batch: int | None, lr: float, passes: int, x: Array, y: Array) -> Array:
    """Train a line from a fixed start; return all its (weight, bias)."""
    line = nn.Linear(1, 1, dtype="float64")
    line.w[...] = -1.5, 2.0
    path = plot.Trajectory(line)
    optimizer = optim.SGD(lr=lr)
    gs.fit(line, x, y, cost=COST, optimizer=optimizer, batch_size=batch, epochs=passes,
           callbacks=[path])  # fmt: skip
    return path.w


def contours(ax: Axes, seed: int) -> None:
    """Draw both ways down, and measure how noisy they are."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((100, 1))
    y = 2 * x - 1 + 0.7 * rng.standard_normal((100, 1))
    paths = {
        "full batch, 30 passes": descend(None, 0.1, 30, x, y),
        "one sample at a time, 1 pass": descend(1, 0.1, 1, x, y),
    }
    line = nn.Linear(1, 1, dtype="float64")
    plot.landscape(line, COST, x, y, trajectory=paths, ax=ax)
    ax.set_title("the loss of a line over its two parameters")
    best = np.mean((y - np.polyval(np.polyfit(x[:, 0], y[:, 0], 1), x[:, 0])[:, None]) ** 2)
    for name, path in paths.items():
        losses = np.array([COST(gs.apply(line, w, x), y) for w in path])
        uphill = 100 * np.mean(np.diff(losses) > 0)
        ratio = losses[-1] / best
        print(f"{name}: uphill in {uphill:.1f} % of the steps, loss {ratio:.3f} of the least")
        if name.startswith("full"):
            print(
                f"after one pass the full batch has a loss of {losses[1] / best:.1f} of the least"
            )


def network(seed: int) -> nn.Module:
    """Build the network that both methods start from."""
    gs.seed(seed)
    kind = {"dtype": "float64"}
    return nn.Sequential(nn.Linear(2, 16, **kind), nn.Tanh(), nn.Linear(16, 1, **kind))


class Losses:
    """Records the loss on `x`, `y` after every POINTS steps: a callback."""

    def __init__(self, net: nn.Module, x: Array, y: Array) -> None:
        self.values = [COST(net(x), y)]
        self.x, self.y = x, y

    def on_batch_end(self, state: Any) -> None:
        """Measure now and then."""
        if state.step % POINTS == 0:
            self.values.append(COST(state.net(self.x), self.y))


def losses_of(seed: int, copies: int, stochastic: bool, gradients: int) -> tuple[Array, Array]:
    """Loss after each POINTS gradients (or each full one), and the passes over the data so far."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (POINTS, 2))
    y = np.sin(3 * x[:, :1]) * x[:, 1:]
    net = network(seed)
    many_x, many_y = np.tile(x, (copies, 1)), np.tile(y, (copies, 1))
    if not stochastic:
        trainer = gs.Trainer(net, COST, optim.SGD(lr=ETA))
        losses = [trainer.step(many_x, many_y) for _ in range(gradients + 1)]
        return np.array(losses), np.arange(gradients + 1.0)
    watch = Losses(net, x, y)
    gs.fit(net, many_x, many_y, cost=COST, optimizer=optim.SGD(lr=ETA / POINTS), batch_size=1,
           epochs=max(1, gradients // copies), seed=seed, callbacks=[watch])  # fmt: skip
    return np.array(watch.values), np.arange(len(watch.values)) / copies


def redundancy(ax: Axes, seed: int, copies: list[int], gradients: int) -> None:
    """Draw loss over passes, and compare the passes to a given loss."""
    full, passes = losses_of(seed, 1, False, gradients)
    duplicated, _ = losses_of(seed, 4, False, 50)
    assert np.allclose(duplicated, full[:51], rtol=1e-9)  # duplicates teach the full batch nothing
    goal = full[int(0.8 * gradients)]
    needed = passes[np.argmax(full <= goal)]
    ax.loglog(passes[1:], full[1:], color="k", lw=2.4, label="full batch, any k")
    for i, k in enumerate(copies):
        loss, passes = losses_of(seed, k, True, gradients)
        reached = passes[np.argmax(loss <= goal)] if loss.min() <= goal else np.inf
        print(f"k = {k}: {needed / reached:.2f} times fewer passes than the full batch")
        color = plt.get_cmap("viridis")(0.15 + 0.75 * i / len(copies))
        ax.loglog(passes[1:], loss[1:], color=color, label=f"one sample, k = {k}")
    ax.axhline(goal, color="0.6", ls=":", lw=1)
    ax.set(xlabel="passes over the data", ylabel="loss (mean squared error)")
    ax.set_title(f"{POINTS} points, each k times in the data")
    ax.legend(loc="lower left", frameon=True, framealpha=1, edgecolor="none")


def main() -> None:
    """Measure and draw both."""
    options = arguments(__doc__)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")
    contours(axes[0], options.seed)
    copies, gradients = ([1, 4, 16], 640) if options.quick else ([1, 2, 4, 8, 16, 32], 6400)
    redundancy(axes[1], options.seed, copies, gradients)
    save(figure, options.out, "stochastic_descent.png")


if __name__ == "__main__":
    main()
