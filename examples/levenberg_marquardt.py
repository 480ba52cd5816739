"""Levenberg-Marquardt against Adam on a small regression.

Lecture: "Gradient descent": w <- w - eta dL/dw, where the learning rate eta may be a positive
semi-definite matrix. For a sum of squares the Jacobian J of the residuals with respect to w gives a
very good one: eta = (J'J + damping)^-1. That is Levenberg-Marquardt.

400 points of a bumpy surface, a network of 205 parameters, the same start for all. Adam makes a
hundred times more passes over the data, which takes about twice as long: with several learning
rates that fall along a cosine, on the full batch and on minibatches; its best run counts.

Run it: ``python examples/levenberg_marquardt.py [--quick] [--out FOLDER]``. NumPy's linear algebra
gains nothing from threads at this size: OPENBLAS_NUM_THREADS=1 keeps it from waiting for them.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim
from gradstack.optim import schedules

COST = nn.MSELoss()


def surface(x: Array) -> Array:
    """A hill, a hollow, a ridge and a wave, (B, 1), at the points x (B, 2)."""
    a, b = x[:, :1], x[:, 1:]
    hills = np.exp(-8 * ((a - 0.4) ** 2 + b**2)) - 0.7 * np.exp(-6 * (a**2 + (b + 0.5) ** 2))
    return hills + 0.3 * np.tanh(6 * (a + b)) + 0.2 * np.sin(5 * a) * b


def race(
    optimizer: optim.Optimizer, x: Array, y: Array, batch: int | None, passes: int
) -> tuple[nn.Module, Array]:
    """Train for so many passes over the data; return the net and rows of (pass, seconds, loss)."""
    gs.seed(1)
    kind = {"dtype": "float64"}
    layers = [nn.Linear(2, 12, **kind), nn.Tanh(), nn.Linear(12, 12, **kind), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(12, 1, **kind))
    history, seconds = [(0, 0.0, COST(net(x), y))], 0.0
    few = max(1, passes // 100)
    while history[-1][0] < passes:
        start = time.perf_counter()
        gs.fit(net, x, y, cost=COST, optimizer=optimizer, batch_size=batch, epochs=few)
        seconds += time.perf_counter() - start  # the loss below is off the clock
        history.append((history[-1][0] + few, seconds, COST(net(x), y)))
    return net, np.array(history)


def main() -> None:
    """Race, compare, draw."""
    options = arguments(__doc__)
    rng = np.random.default_rng(0)
    x, x_new = rng.uniform(-1, 1, (400, 2)), rng.uniform(-1, 1, (2000, 2))
    y, y_new = surface(x), surface(x_new)
    passes = 6000 if options.quick else 60_000

    net, lm = race(optim.LevenbergMarquardt(), x, y, None, passes // 100)
    rivals = {}
    for batch in (None, 40):
        steps = passes * (1 if batch is None else len(x) // batch)
        for lr in (1e-3, 3e-3, 1e-2, 3e-2):
            name = f"Adam, lr {lr:g}, {'full batch' if batch is None else f'batches of {batch}'}"
            adam = optim.Adam(lr=schedules.cosine(lr, steps))
            rivals[name] = race(adam, x, y, batch, passes)
    best = min(rivals, key=lambda name: rivals[name][1][-1, 2])
    rival, adam = rivals[best]
    reached = adam[-1, 2]
    print(f"best of {len(rivals)}: {best}")
    print(f"Adam: loss {reached:.2e}, on new points {COST(rival(x_new), y_new):.2e}")
    print(f"Levenberg-Marquardt: loss {lm[-1, 2]:.2e}, on new points {COST(net(x_new), y_new):.2e}")
    if lm[-1, 2] <= reached:
        step, seconds, _ = lm[np.argmax(lm[:, 2] <= reached)]
        print(f"it passed that of Adam in pass {step:.0f} of the data, Adam took {passes}")
        print(f"that is {seconds:.2f} s against {adam[-1, 1]:.2f} s")

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for name, (_, history) in rivals.items():
        color, width = ("C1", 1.8) if name == best else ("0.75", 0.9)
        so_far = np.minimum.accumulate(history[1:, 2])
        label = name if name == best else None
        axis.loglog(history[1:, 1], so_far, color=color, lw=width, label=label)
    axis.plot([], [], color="0.75", label=f"the {len(rivals) - 1} other runs of Adam")
    axis.loglog(*lm[1:, 1:].T, "C0", lw=1.8, label="Levenberg-Marquardt")
    axis.set(xlabel="training time (s)", ylabel="lowest loss so far (mean squared error)")
    axis.legend(loc="lower left")
    save(figure, options.out, "levenberg_marquardt.png")


if __name__ == "__main__":
    main()
