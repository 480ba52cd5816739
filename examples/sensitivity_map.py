"""Which pixels decide? The Jacobian of a digits classifier with respect to its input.

Lecture: "Backpropagation through a module": the Jacobian of a stage with respect to its input. Here
the stage is the whole network, from the 64 pixels to the 10 scores.

The row of the Jacobian for the margin (score of the answer minus score of the runner-up) says how
much each pixel speaks for the answer. If it tells the truth, a small step against it changes the
answer, and a step of the same length in a random direction does not. Both are measured here.

Run it: ``python examples/sensitivity_map.py [--quick] [--out FOLDER]``. Needs scikit-learn.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradstack as gs
from gradstack import nn, optim


def train(quick: bool) -> tuple[nn.Module, Array, Array]:
    """Train a classifier; return it with the held-out images (pixels 0 to 1) and labels."""
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        images / 16, labels, test_size=0.3, stratify=labels, random_state=0
    )
    layers = [nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10)]
    net = nn.Sequential(*layers)
    gs.fit(
        net,
        x,
        y,
        cost=nn.CrossEntropyLoss(label_smoothing=0.05),
        optimizer=optim.AdamW(lr=2e-3, weight_decay=0.5),
        batch_size=64,
        epochs=20 if quick else 60,
    )
    return net, x_test.astype(np.float32), y_test


def margins(scores: Array, answer: Array, rival: Array) -> Array:
    """Score of the answer minus score of the rival, (B,)."""
    rows = np.arange(len(scores))
    return scores[rows, answer] - scores[rows, rival]


def main() -> None:
    """Train, differentiate, test what the derivatives claim, draw."""
    options = arguments(__doc__)
    gs.seed(0)
    rng = np.random.default_rng(0)
    net, x, y = train(options.quick)
    scores = net(x)
    rival, answer = np.argsort(scores, axis=1)[:, -2:].T
    rows = np.arange(len(x))

    start = time.perf_counter()
    jacobian = gs.jacobian(net, x)  # (B, 10, 64)
    seconds = time.perf_counter() - start
    row = jacobian[rows, answer] - jacobian[rows, rival]  # d margin / d x, (B, 64)

    # To first order the margin is 0 after a step of length margin / |row| against the row.
    margin = margins(scores, answer, rival)
    length = 1.2 * margin / np.linalg.norm(row, axis=1)
    against = -row / np.linalg.norm(row, axis=1, keepdims=True)
    anywhere = rng.standard_normal(x.shape)
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    moved = x + length[:, None] * against
    flipped = np.mean(net(moved).argmax(1) != answer)
    by_chance = np.mean(net(x + length[:, None] * anywhere).argmax(1) != answer)
    small = 0.1 * length[:, None]
    foretold = margin + np.sum(row * small * against, axis=1)
    off = np.abs(margins(net(x + small * against), answer, rival) - foretold) / margin

    print(f"accuracy {np.mean(answer == y):.4f}")
    print(f"jacobians of {len(x)} images, {jacobian.shape}, in {1e3 * seconds:.1f} ms")
    print(f"margin after a tenth of the step foretold within {np.median(off):.4f} of it (median)")
    print(f"answers changed by the step {flipped:.4f}, by a random one as long {by_chance:.4f}")

    shown = [np.flatnonzero(answer == digit)[1] for digit in (0, 3, 4, 7, 8, 9)]
    draw(x, row, moved, answer, rival, length, shown)
    save(plt.gcf(), options.out, "sensitivity_map.png")


def draw(
    x: Array,
    row: Array,
    moved: Array,
    answer: Array,
    rival: Array,
    length: Array,
    shown: list[int],
) -> None:
    """Draw one column per image: the image, its sensitivity, the image after the step."""
    figure, axes = plt.subplots(3, len(shown), figsize=(7.6, 4.3), layout="constrained")
    largest = np.abs(row[shown]).max()
    figure.suptitle("Blue: ink here speaks for the answer. Red: for the runner-up.", fontsize=9)
    for column, i in zip(axes.T, shown, strict=True):
        gray = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
        column[0].imshow(x[i].reshape(8, 8), **gray)
        column[0].set_title(f"a {answer[i]}")
        map_ = column[1].imshow(row[i].reshape(8, 8), cmap="RdBu", vmin=-largest, vmax=largest)
        column[1].set_title(f"{answer[i]} rather than {rival[i]}")
        column[2].imshow(moved[i].reshape(8, 8), **gray)
        column[2].set_title(f"now a {rival[i]}")
        column[2].set_xlabel(f"|Δx| = {length[i]:.2f}")
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            axis.spines[:].set_visible(True)
    labels = ("image x", "∂ margin / ∂x", "x after the step")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    figure.colorbar(map_, ax=axes[1], label="margin per unit of ink", shrink=0.9)


if __name__ == "__main__":
    main()
