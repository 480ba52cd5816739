"""The learning rate as a matrix: every positive semi-definite one goes downhill.

Lecture: "Gradient descent": w <- w - eta dL/dw, where eta is a number or a positive semi-definite
matrix. To first order a step changes the loss by -g eta g', which is never positive; only a number
moves along the steepest descent, and the steepest descent is seldom the shortest way down.

Left: an ill-conditioned quadratic, the average cost of a linear model. Right: a small network whose
inputs have different scales; eta is taken from the curvature of its loss, anew in every step.
A step that is too long for the first order is halved until it goes downhill, as some length must.

Run it: ``python examples/learning_rate_matrix.py [--quick] [--seed N] [--out FOLDER]``.
"""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from matplotlib.axes import Axes

import gradstack as gs
from gradstack import nn, optim

COST = nn.SquaredError()
COLORS = {"number": "0.45", "diagonal": "C0", "Kronecker": "C2", "full": "C1", "any": "C4"}
Run = tuple[Array, Array, Array]  # losses, angles in degrees, points


def descend(net: nn.Module, x: Array, y: Array, eta: Callable[[], Any], steps: int) -> Run:
    """Full-batch steps from the net's point, where it is put back."""
    start, losses, angles = net.w.copy(), [COST(net(x), y)], []
    points, lr = [start], 0.5
    for _ in range(steps):
        optimizer = optim.Preconditioned(eta(), lr=min(2 * lr, 1.0))
        trainer = gs.Trainer(net, COST, optimizer)
        trainer.step(x, y)
        while COST(net(x), y) > losses[-1]:
            net.w = points[-1]
            optimizer.lr /= 2
            trainer.step(x, y)
        lr = optimizer.lr
        losses.append(COST(net(x), y))
        angles.append(np.degrees(optimizer.angle))
        points.append(net.w.copy())
    net.w = start
    return np.array(losses), np.array(angles), np.array(points)


def report(name: str, run: Run) -> None:
    """Print one line."""
    losses, angles, _ = run
    print(f"  {name}: loss {losses[-1]:.2e} from {losses[0]:.3f}", end=", ")
    print(f"{np.sum(np.diff(losses) > 0)} steps uphill", end=", ")
    print(f"angle to the steepest descent {angles.min():.1f} to {angles.max():.1f} degrees")


def quadratic(rng: np.random.Generator, axis: Axes) -> None:
    """Two weights, curvatures in the ratio 1 to 30, the valley at an angle."""
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    x = rng.standard_normal((400, 2)) * [1.0, 30**-0.5] @ turn
    y = x @ [[1.0], [-0.5]]
    net = nn.Linear(2, 1, bias=False, dtype="float64")
    hessian = gs.hessian(net, COST, x, y)
    net.w = np.array([-0.2, 2.6])
    root = np.array([[0.6, 0.0], [-0.45, 0.12]])
    etas = {
        "number": np.full(2, 1.5 / np.linalg.eigvalsh(hessian)[-1]),
        "diagonal": 0.75 / np.diag(hessian),
        "any": root @ root.T,
        "full": 0.5 * np.linalg.inv(hessian),
    }
    sides = np.linspace(-1.1, 3.3, 200), np.linspace(-2.3, 3.0, 200)
    offset = np.stack(np.meshgrid(*sides), -1) - [1.0, -0.5]
    bowl = 0.5 * np.einsum("...i,ij,...j", offset, hessian, offset)
    axis.contour(*sides, bowl, np.geomspace(0.05, 30, 9), colors="0.8", linewidths=0.8)
    print("quadratic, 15 steps")
    for name, eta in etas.items():
        run = descend(net, x, y, lambda eta=eta: eta, 15)
        report(name, run)
        label = {"any": "some other PSD matrix", "full": "half the inverse Hessian"}.get(name, name)
        axis.plot(*run[2].T, "o-", color=COLORS[name], ms=3, lw=1.3, label=label)
    axis.plot(1.0, -0.5, "k*", ms=9)
    axis.set(xlabel="$w_1$", ylabel="$w_2$", title="A quadratic: four ways down", aspect="equal")
    axis.legend(loc="lower left", frameon=True, edgecolor="none", framealpha=0.85)


def network(rng: np.random.Generator, steps: int, axes: tuple[Axes, Axes]) -> None:
    """Matrices from the curvature of a small network's loss."""
    u = rng.standard_normal((300, 4))
    x, y = u * [1.0, 0.5, 0.2, 0.1], np.tanh(u[:, :1] - u[:, 1:2]) + np.sin(u[:, 2:3] + u[:, 3:])
    layers = [nn.Linear(4, 10, dtype="float64"), nn.Tanh(), nn.Linear(10, 1, dtype="float64")]
    net = nn.Sequential(*layers)

    def damped(matrix: Array, by: float = 1e-4) -> Array:
        return matrix + by * np.linalg.eigvalsh(matrix)[-1] * np.eye(len(matrix))

    def pairs() -> list[tuple[Array, Array]]:
        """(A, S) per layer: second moments of its input, with a 1, and of dC/ds."""
        z = gs.backprop(net, COST, x, y)
        inputs = [np.column_stack([z[name].z, np.ones(len(x))]) for name in ("0", "2")]
        slopes = [gs.jacobian(net, x, "1")[:, 0], np.ones((len(x), 1))]  # of ybar by s
        moments = [[v.T @ v / len(x) for v in pair] for pair in zip(slopes, inputs, strict=True)]
        return [
            (np.linalg.inv(damped(s, 1e-2)), np.linalg.inv(damped(a, 1e-2))) for s, a in moments
        ]

    etas: dict[str, Callable[[], Any]] = {
        "number": lambda: np.ones(net.w.size),
        "diagonal": lambda: 1 / np.diag(damped(gs.ggn(net, COST, x, y))),
        "Kronecker": pairs,
        "full": lambda: np.linalg.inv(damped(gs.ggn(net, COST, x, y))),
    }
    print(f"network of {net.w.size} parameters, {steps} steps")
    for name, eta in etas.items():
        run = descend(net, x, y, eta, steps)
        report(name, run)
        axes[0].semilogy(run[0], color=COLORS[name], label=name)
        axes[1].plot(run[1], color=COLORS[name])
    axes[0].set(ylabel="average loss", title="A network: η from the curvature")
    axes[0].legend(ncols=2)
    axes[1].axhline(90, color="k", lw=0.8, ls=":")
    axes[1].set(
        xlabel="step", ylabel="angle to steepest (°)", ylim=(-3, 95), yticks=[0, 30, 60, 90]
    )


def main() -> None:
    """Descend, refuse, draw."""
    options = arguments(__doc__)
    figure = plt.figure(figsize=(9.4, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1.6, 1], width_ratios=[1, 1.3])
    rng = np.random.default_rng(options.seed)
    gs.seed(options.seed)
    quadratic(rng, figure.add_subplot(grid[:, 0]))
    above = figure.add_subplot(grid[0, 1])
    below = figure.add_subplot(grid[1, 1], sharex=above)
    network(rng, 60 if options.quick else 300, (above, below))
    try:
        optim.Preconditioned([[1.0, 0.0], [0.0, -0.2]])
    except ValueError as error:
        print(f"refused: {error}")
    save(figure, options.out, "learning_rate_matrix.png")


if __name__ == "__main__":
    main()
