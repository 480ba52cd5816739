"""Two parametrised models: the linear model and the nearest-neighbour model.

Lecture: "Parametrised models": ybar = G(x, w), with x different for every sample and w shared by
all. The linear model ybar = w x + b has the cost C = |y - ybar|^2; the nearest-neighbour model
ybar = argmin_k |x - w_k|^2 has a discrete output, and prototypes w_k for parameters. Gradient
descent trains both: the first ends in the least-squares solution, the second is online k-means.

Run it: ``python examples/parametrised_models.py [--quick] [--seed N] [--out FOLDER]``.
"""

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from matplotlib.axes import Axes
from sklearn.cluster import KMeans

import gradstack as gs
from gradstack import nn, optim
from gradstack.optim import schedules

COST = nn.SquaredError()


def fit_line(rng: np.random.Generator, epochs: int, axis: Axes) -> None:
    """Descend with the full batch and with single samples; compare with least squares."""
    x = rng.uniform(-1, 2, (80, 1))
    y = 0.8 * x - 0.3 + 0.25 * rng.standard_normal((80, 1))
    columns = np.column_stack([x, np.ones(len(x))])
    best = np.linalg.lstsq(columns, y, rcond=None)[0].ravel()

    # L is a paraboloid in (w, b): its largest curvature bounds the learning rate.
    full = nn.Linear(1, 1, dtype="float64")
    steepest = np.linalg.eigvalsh(gs.hessian(full, COST, x, y))[-1]
    full.w = start = np.array([-1.0, 1.2])
    descent = optim.SGD(lr=1 / steepest)
    gs.fit(full, x, y, cost=COST, optimizer=descent, batch_size=None, epochs=epochs)
    print(f"linear model: off the least-squares solution by {np.abs(full.w - best).max():.1e}")

    single = nn.Linear(1, 1, dtype="float64")
    single.w = start
    path = [start]
    trainer = gs.Trainer(single, COST, optim.SGD(lr=schedules.cosine(0.15, 2 * len(x))))
    for i in np.concatenate([rng.permutation(len(x)) for _ in range(2)]):
        trainer.step(x[i], y[i])
        path.append(single.w.copy())

    axis.scatter(x, y, s=12, color="0.35", alpha=0.6, lw=0)
    ends = np.array([[-1.1], [2.1]])
    lines = [(0, "start"), (10, "10 samples"), (30, "30 samples"), (len(path) - 1, "160 samples")]
    for shade, (t, name) in zip(np.linspace(0.25, 1, len(lines)), lines, strict=True):
        color = plt.get_cmap("Blues")(shade)
        axis.plot(ends, gs.apply(single, path[t], ends), color=color, label=name)
    axis.plot(ends, ends * best[0] + best[1], "k:", lw=1.2, label="least squares")
    axis.set(xlabel="x", ylabel="y", ylim=(-2.2, 2.6), title="The linear model, one sample a step")
    axis.legend(loc="lower right", ncols=2)


def find_prototypes(rng: np.random.Generator, epochs: int, axis: Axes) -> None:
    """Train prototypes one sample at a time; compare with k-means from the same start."""
    k = 7
    centres = rng.uniform(-4, 4, (k, 2))
    x = centres[rng.integers(0, k, 3000)] + 0.7 * rng.standard_normal((3000, 2))
    start = x[rng.choice(len(x), k, replace=False)]

    net = nn.NearestNeighbour(2, k, dtype="float64")
    net.w = start.ravel()
    paths = [start]
    sgd = optim.SGD(lr=schedules.cosine(0.1, epochs * len(x)))
    parts = np.array_split(np.arange(len(x)), 5)  # noted five times in each pass
    trainer = gs.Trainer(net, COST, sgd)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for part in parts:
            for i in order[part]:
                trainer.step(x[i])
            paths.append(np.array(net.weight))

    def inertia(prototypes: Array) -> float:
        return float(((x[:, None] - prototypes) ** 2).sum(-1).min(1).mean())

    theirs = KMeans(k, init=start, n_init=1, max_iter=1000, tol=0).fit(x)
    ours, lloyd = inertia(np.asarray(net.weight)), theirs.inertia_ / len(x)
    print(f"nearest neighbour: mean squared distance {inertia(start):.4f} at the start")
    print(f"after training {ours:.4f}, by k-means {lloyd:.4f}, ratio {ours / lloyd:.4f}")

    low, high = x.min(0) - 0.5, x.max(0) + 0.5
    sides = [np.linspace(*ends, 400) for ends in zip(low, high, strict=True)]
    regions = net(np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)).reshape(400, 400)
    colors = plt.get_cmap("tab10").colors[:k]
    axis.contourf(
        *sides, regions, np.arange(k + 1) - 0.5, colors=colors, alpha=0.18, antialiased=False
    )
    axis.scatter(*x[::3].T, s=4, c=[colors[i] for i in net(x[::3])], lw=0)
    for path in np.swapaxes(paths, 0, 1):
        axis.plot(*path.T, "k", lw=0.7, alpha=0.7)
    axis.plot(*start.T, "o", color="k", ms=4.5, mfc="w", ls="", label="start")
    axis.plot(*np.asarray(net.weight).T, "ko", ms=7, mec="w", label="prototypes")
    axis.plot(*theirs.cluster_centers_.T, "wx", ms=4, mew=1.2)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set(xticks=[], yticks=[], title="The nearest-neighbour model (crosses: k-means)")
    axis.legend(loc="best", frameon=True, framealpha=0.9)


def main() -> None:
    """Train both, draw both."""
    options = arguments(__doc__)
    rng = np.random.default_rng(options.seed)
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.0), layout="constrained")
    fit_line(rng, 300, axes[0])
    find_prototypes(rng, 6 if options.quick else 20, axes[1])
    save(figure, options.out, "parametrised_models.png")


if __name__ == "__main__":
    main()
