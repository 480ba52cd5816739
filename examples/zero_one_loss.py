"""Training on the share of errors itself, which has no gradient.

Lecture: "Gradient-based learning": the cost must be differentiable, or nearly everywhere so; where
it has holes, stairs or plateaus, zeroth-order methods remain. The 0-1 loss is all stairs: constant
wherever it is differentiable. Usually a smooth surrogate, the cross-entropy, is minimised in its
place. The two agree on clean data. Here some labels are wrong, far from the boundary, and the
surrogate pays for each of them by its distance: it turns the boundary of a linear classifier. An
evolution strategy minimises the errors, populations of classifiers evaluated in parallel threads.

Run it: ``python examples/zero_one_loss.py [--quick] [--out FOLDER]``.
"""

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim


def make_data(seed: int, count: int) -> tuple[Array, Array, Array]:
    """Two classes of points; some of them, far away, with the wrong label. Also which those are."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = rng.normal(size=(count, 2)) * [0.8, 1.6] + np.where(y, 1.2, -1.2)[:, None] * [1, 0]
    wrong = rng.random(count) < 0.1
    far = rng.normal(size=(count, 2)) * 0.5 + [7.0, 5.0]
    x[wrong] = np.where(y[wrong, None] == 1, -far[wrong], far[wrong])
    return x, y, wrong


def smooth(x: Array, y: Array) -> nn.Module:
    """The classifier with the least cross-entropy."""
    net = nn.Linear(2, 2, dtype=np.float64)
    optimizer = optim.LBFGS()
    gs.fit(net, x, y, cost=nn.CrossEntropyLoss(), optimizer=optimizer, batch_size=None, epochs=50)
    return net


def errors(x: Array, y: Array, evaluations: int, seed: int) -> tuple[nn.Module, list[Array]]:
    """A classifier with few errors, and (evaluations, error) as the search went on."""
    net = nn.Linear(2, 2, dtype=np.float64)
    objective = gs.blackbox.Objective(net, nn.ZeroOneLoss(), x, y)
    path: list[Array] = []
    result = gs.blackbox.minimize(
        objective,
        maxfev=evaluations,
        population=32,
        seed=seed,
        callback=lambda found: path.append(np.array([found.nfev, found.fun])),
    )
    net.w = result.x
    return net, [*path, np.array([result.nfev, result.fun])]


def main() -> None:
    """Compare on three draws of the data; draw the first."""
    options = arguments(__doc__)
    evaluations = 4_000 if options.quick else 40_000
    shown = None
    for seed in range(3):
        gs.seed(seed)
        x, y, wrong = make_data(seed, 400)
        surrogate = smooth(x, y)
        direct, path = errors(x, y, evaluations, seed)
        rates = [float(np.mean(net(x).argmax(1) != y)) for net in (surrogate, direct)]
        clean = [
            float(np.mean(net(x[~wrong]).argmax(1) != y[~wrong])) for net in (surrogate, direct)
        ]
        print(
            f"data {seed}: errors of the surrogate {rates[0]:.4f}, of the search {rates[1]:.4f}; "
            f"among right labels {clean[0]:.4f} and {clean[1]:.4f}"
        )
        if shown is None:
            shown = (x, y, surrogate, direct, path)
    draw(*shown)
    save(plt.gcf(), options.out, "zero_one_loss.png")


def draw(x: Array, y: Array, surrogate: nn.Module, direct: nn.Module, path: list[Array]) -> None:
    """Draw the data with both boundaries, both costs between the two nets, and the search."""
    _, (plane, line, course) = plt.subplots(
        1, 3, figsize=(10, 3.1), width_ratios=[1.25, 1, 1], layout="constrained"
    )
    for label, color in ((0, "tab:orange"), (1, "tab:blue")):
        plane.plot(*x[y == label].T, ".", color=color, ms=3.5, alpha=0.7, label=f"class {label}")
    side = np.linspace(-10, 10, 300)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    for net, style, name in ((surrogate, "--", "cross-entropy"), (direct, "-", "0-1 loss")):
        margin = np.subtract(*net(grid).T).reshape(300, 300)
        plane.contour(side, side, margin, [0], colors="k", linestyles=style, linewidths=1.4)
        plane.plot([], [], style, color="k", lw=1.4, label=name)
    plane.set(title="data, and the boundaries found", xlim=(-10, 10), ylim=(-8, 8))
    plane.legend(loc="lower right", fontsize=7)

    # Each net scaled to the same length: the 0-1 loss does not see the scale.
    start, end = (net.w / np.linalg.norm(net.w) for net in (surrogate, direct))
    t = np.linspace(-0.3, 1.3, 400)
    between = start + t[:, None] * (end - start)
    for cost, name in ((nn.CrossEntropyLoss(), "cross-entropy"), (nn.ZeroOneLoss(), "0-1 loss")):
        losses = gs.blackbox.Objective(direct, cost, x, y)(between)
        line.plot(t, losses, label=name)
    line.set(title="the costs from one to the other", xticks=[0, 1])
    line.set_xticklabels(["least\ncross-entropy", "fewest\nerrors"])
    line.legend(fontsize=7)

    evaluations, error = np.array(path).T
    course.step(evaluations, error, where="post", label="evolution strategy")
    level = float(np.mean(surrogate(x).argmax(1) != y))
    course.axhline(level, color="k", ls="--", lw=1.2, label="least cross-entropy")
    course.set(title="errors", xlabel="evaluations", xscale="log", ylim=(0, None))
    course.legend(fontsize=7)


if __name__ == "__main__":
    main()
