"""Solve the Poisson equation with a network: second derivatives of the output, trained exactly.

Lecture: "Parametrised models" and "Gradient descent". The model ubar = G(x, w) is the solution
itself, and the cost is not a distance to known answers but how badly the equation is violated:

    L(w) = average over points x of (Laplacian of G at x, plus f(x))^2

on the unit square, with u = 0 on its boundary, which the network satisfies by construction. The
Laplacian comes from ``gs.derivatives``; its pullback gives the exact gradient of L with respect to
w (third derivatives of the network in all), here for L-BFGS.

Run it: ``python examples/poisson_pinn.py [--quick] [--out FOLDER]``.
"""

import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim

PI = np.pi


def solution(x: Array) -> Array:
    """The exact u at the points x (B, 2)."""
    return np.exp(x[:, 0]) * np.sin(2 * PI * x[:, 0]) * np.sin(PI * x[:, 1])


def source(x: Array) -> Array:
    """f = minus the Laplacian of that u."""
    wave = (5 * PI**2 - 1) * np.sin(2 * PI * x[:, 0]) - 4 * PI * np.cos(2 * PI * x[:, 0])
    return np.exp(x[:, 0]) * wave * np.sin(PI * x[:, 1])


class Field(nn.Module):
    """A scalar field on the unit square that is 0 on the boundary."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.m0 = nn.Linear(2, width, dtype="float64")
        self.m1 = nn.Linear(width, width, dtype="float64")
        self.m2 = nn.Linear(width, 1, dtype="float64")

    def forward(self, x: Any) -> Any:
        """u at one point."""
        z = gs.tanh(self.m1(gs.tanh(self.m0(2 * x - 1))))
        edge = x * (1 - x)
        return 16 * edge[0:1] * edge[1:2] * self.m2(z)


class Residual:
    """How badly the equation is violated, as an optimiser sees it."""

    def __init__(self, net: nn.Module, x: Array) -> None:
        self.net, self.x, self.f = net, x, source(x)

    def value_and_grad(self, w: Array) -> tuple[float, Array]:
        """L(w) and its gradient."""
        d = gs.derivatives(self.net, self.x, order=2, w=w)
        r = d.diag.sum(axis=(1, 2)) + self.f
        dlaplacian = (2 / len(r) * r)[:, None, None]
        _, dw = d.pullback(ddiag=np.broadcast_to(dlaplacian, d.diag.shape))
        return float(np.mean(r**2)), dw


def lattice(n: int) -> Array:
    """Corners of n x n squares, (B, 2)."""
    steps = np.linspace(0, 1, n + 1)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


def draw(u: Array, exact: Array, x: Array, history: Array) -> Any:
    """Draw the solution, its error, and the way there."""
    figure, axes = plt.subplots(
        1, 3, figsize=(10, 2.9), layout="constrained", width_ratios=(1, 1, 1.1)
    )
    n = int(len(u) ** 0.5)
    side = np.linspace(0, 1, n)
    off = u - exact
    most = np.abs(off).max()
    shown = (
        (u, "viridis", np.linspace(u.min(), u.max(), 20), "solution u, and training points"),
        (off, "RdBu", np.linspace(-most, most, 20), "u minus the exact solution"),
    )
    for axis, (values, colors, levels, label) in zip(axes, shown, strict=False):
        filled = axis.contourf(side, side, values.reshape(n, n).T, levels, cmap=colors)
        axis.set(xlabel="x", ylabel="y", title=label, aspect="equal")
        axis.grid(False)
        ends = np.linspace(levels[0], levels[-1], 5)
        figure.colorbar(filled, ax=axis, ticks=ends, format="%.2g")
    axes[0].plot(*x.T, ".", color="white", markersize=1.5)
    axes[2].semilogy(history[:, 0], history[:, 1], label="residual of the equation")
    axes[2].semilogy(history[:, 0], history[:, 2], label="error of the solution")
    axes[2].set(xlabel="time (s)", title="relative, over training", ylim=(None, 20))
    axes[2].legend()
    return figure


def main() -> None:
    """Train, compare with the exact solution, draw."""
    options = arguments(__doc__)
    gs.seed(0)
    rng = np.random.default_rng(0)
    net = Field(24)
    n, steps = (16, 8) if options.quick else (20, 48)
    corners = lattice(n - 1) * (n - 1) / n
    x = corners + rng.random(corners.shape) / n  # one point in each of n x n cells
    residual = Residual(net, x)
    lbfgs = optim.LBFGS(
        max_iter=25, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )
    grid = lattice(100)
    exact = solution(grid)
    history, seconds = [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        loss = lbfgs.step(residual, net.w, 1.0)
        seconds += time.perf_counter() - start
        error = np.linalg.norm(net(grid)[:, 0] - exact) / np.linalg.norm(exact)
        history.append((seconds, np.sqrt(loss / np.mean(residual.f**2)), error))
    print(f"{net.w.size} parameters, {len(x)} points, {25 * steps} iterations, {seconds:.1f} s")
    print(f"relative residual {history[-1][1]:.2e}")
    print(f"relative error of the solution {error:.2e}")
    save(draw(net(grid)[:, 0], exact, x, np.array(history)), options.out, "poisson_pinn.png")


if __name__ == "__main__":
    main()
