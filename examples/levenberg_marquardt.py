"""Levenberg-Marquardt against Adam on a small regression, by the clock.

Lecture: "Gradient descent": w <- w - eta dL/dw, where the learning rate eta may be a positive
semi-definite matrix. For a sum of squares the Jacobian J of the residuals with respect to w gives a
very good one: eta = (J'J + damping)^-1. That is Levenberg-Marquardt.

400 points of a bumpy surface, a network of 205 parameters, the same start for all. Adam runs with
several learning rates that fall along a cosine, on the full batch and on minibatches; its best run
counts.

Run it: ``python examples/levenberg_marquardt.py [--quick] [--out FOLDER]``. NumPy's linear algebra
gains nothing from threads at this size: OPENBLAS_NUM_THREADS=1 keeps it from waiting for them.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim

COST = nn.MSELoss()


def surface(x: Array) -> Array:
    """A hill, a hollow, a ridge and a wave, (B, 1), at the points x (B, 2)."""
    a, b = x[:, :1], x[:, 1:]
    hills = np.exp(-8 * ((a - 0.4) ** 2 + b**2)) - 0.7 * np.exp(-6 * (a**2 + (b + 0.5) ** 2))
    return hills + 0.3 * np.tanh(6 * (a + b)) + 0.2 * np.sin(5 * a) * b


def race(
    optimizer: optim.Optimizer, x: Array, y: Array, batch: int | None, epochs: int, budget: float
) -> tuple[nn.Module, Array]:
    """Train for `budget` seconds; return the net and (seconds, loss), the loss off the clock."""
    gs.seed(1)
    kind = {"dtype": "float64"}
    layers = [nn.Linear(2, 12, **kind), nn.Tanh(), nn.Linear(12, 12, **kind), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(12, 1, **kind))
    history, seconds, highest = [(0.0, COST(net(x), y))], 0.0, optimizer.lr
    while seconds < budget:
        if isinstance(optimizer, optim.Adam):
            optimizer.lr = highest * 0.5 * (1 + np.cos(np.pi * seconds / budget))
        start = time.perf_counter()
        gs.fit(net, x, y, cost=COST, optimizer=optimizer, batch_size=batch, epochs=epochs)
        seconds += time.perf_counter() - start
        history.append((seconds, COST(net(x), y)))
    return net, np.array(history)


def main() -> None:
    """Race, compare, draw."""
    options = arguments(__doc__)
    rng = np.random.default_rng(0)
    x, x_new = rng.uniform(-1, 1, (400, 2)), rng.uniform(-1, 1, (2000, 2))
    y, y_new = surface(x), surface(x_new)
    budget = 1.0 if options.quick else 10.0

    net, lm = race(optim.LevenbergMarquardt(), x, y, None, 1, budget)
    rivals = {}
    for batch, epochs in ((None, 100), (40, 10)):
        for lr in (1e-3, 3e-3, 1e-2, 3e-2):
            name = f"Adam, lr {lr:g}, {'full batch' if batch is None else f'batches of {batch}'}"
            rivals[name] = race(optim.Adam(lr=lr), x, y, batch, epochs, budget)
    best = min(rivals, key=lambda name: rivals[name][1][-1, 1])
    rival, adam = rivals[best]
    reached = adam[-1, 1]
    passed = lm[np.argmax(lm[:, 1] <= reached), 0] if lm[-1, 1] <= reached else np.inf
    print(f"best of {len(rivals)}: {best}")
    print(f"Adam: loss {reached:.2e}, on new points {COST(rival(x_new), y_new):.2e}")
    print(f"Levenberg-Marquardt: loss {lm[-1, 1]:.2e}, on new points {COST(net(x_new), y_new):.2e}")
    print(
        f"it passed that of Adam after {passed:.2f} s of {budget:g} s: {budget / passed:.1f} times"
    )

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, (_, history) in rivals.items():
        color, width = ("C1", 1.8) if name == best else ("0.75", 0.9)
        so_far = np.minimum.accumulate(history[1:, 1])
        axis.loglog(
            history[1:, 0], so_far, color=color, lw=width, label=name if name == best else None
        )
    axis.plot([], [], color="0.75", label=f"the {len(rivals) - 1} other runs of Adam")
    axis.loglog(*lm[1:].T, "C0", lw=1.8, label="Levenberg-Marquardt")
    axis.set(xlabel="training time (s)", ylabel="lowest loss so far (mean squared error)")
    axis.legend(loc="lower left")
    save(figure, options.out, "levenberg_marquardt.png")


if __name__ == "__main__":
    main()
