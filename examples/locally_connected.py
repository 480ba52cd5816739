"""Units that see a patch of the image: a layer given by its list of edges.

Lecture: "Linear blocks": s[i] = Σ w[i, j] z[j] over j in UP(i), the units that unit i is connected
to. Here every unit of the first layer looks at a 3 x 3 patch of an 8 x 8 image of a digit: the list
of edges comes from the neighbourhoods of pixels. A dense layer of as many units is trained beside
it, at seven times the parameters.

Run it: ``python examples/locally_connected.py [--quick] [--out FOLDER]``. Needs scikit-learn.
"""

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gradstack as gs
from gradstack import nn, optim

SIDE, PATCH, MAPS = 8, 3, 4
PLACES = SIDE - PATCH + 1


def patches() -> Array:
    """Edges (unit, pixel) of MAPS units at every place of the patch."""
    corner = np.add.outer(SIDE * np.arange(PLACES), np.arange(PLACES)).reshape(-1)
    inside = np.add.outer(SIDE * np.arange(PATCH), np.arange(PATCH)).reshape(-1)
    pixels = np.tile(np.add.outer(corner, inside), (MAPS, 1))  # (units, 9)
    units = np.repeat(np.arange(len(pixels)), pixels.shape[1])
    return np.stack([units, pixels.reshape(-1)], axis=1)


def train(first: nn.Module, data: tuple[Array, ...], epochs: int) -> tuple[nn.Module, list[float]]:
    """Train a net on top of `first`; return it with its accuracy on unseen images, by epoch."""
    x, x_test, y, y_test = data
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(first.out_features, 10))
    accuracy: list[float] = []
    gs.fit(
        net,
        x,
        y,
        cost=nn.CrossEntropyLoss(),
        optimizer=optim.Adam(lr=5e-3),
        batch_size=32,
        epochs=epochs,
        callbacks=[lambda state: accuracy.append(float(np.mean(net(x_test).argmax(1) == y_test)))],
    )
    return net, accuracy


def main() -> None:
    """Train both nets from three seeds; draw the last."""
    options = arguments(__doc__)
    images, labels = load_digits(return_X_y=True)
    edges = patches()
    units = MAPS * PLACES**2
    curves: dict[str, list[list[float]]] = {}
    for seed in range(3):
        data = train_test_split(images / 16, labels, test_size=0.4, random_state=seed)
        gs.seed(seed)
        layers = {
            "patches": nn.SparseLinear(SIDE**2, units, edges),
            "dense": nn.Linear(SIDE**2, units),
        }
        for name, layer in layers.items():
            net, accuracy = train(layer, data, 15 if options.quick else 60)
            curves.setdefault(name, []).append(accuracy)
            print(f"seed {seed}: {name} of {layer.w.size} parameters: accuracy {accuracy[-1]:.4f}")
            if name == "patches":
                local = net
    print(f"connections present {len(edges) / (units * SIDE**2):.4f} of all")
    draw(local[0], curves)
    save(plt.gcf(), options.out, "locally_connected.png")


def draw(layer: nn.SparseLinear, curves: dict[str, list[list[float]]]) -> None:
    """Draw the weights of every unit where it stands, and the accuracies."""
    figure = plt.figure(figsize=(10, 3.3), layout="constrained")
    axes = figure.subplots(
        1, MAPS + 1, width_ratios=[1] * MAPS + [1.6], gridspec_kw={"wspace": 0.1}
    )
    weights = layer.weight.reshape(MAPS, PLACES, PLACES, PATCH, PATCH)
    largest = np.abs(weights).max()
    gap = PATCH + 1  # a blank pixel between neighbours
    for number, (axis, tiles) in enumerate(zip(axes, weights, strict=False)):
        canvas = np.full((gap * PLACES - 1, gap * PLACES - 1), np.nan)
        for i in range(PLACES):
            for j in range(PLACES):
                canvas[gap * i : gap * i + PATCH, gap * j : gap * j + PATCH] = tiles[i, j]
        shown = axis.imshow(canvas, cmap="RdBu", vmin=-largest, vmax=largest)
        axis.set(title=f"map {number + 1}", xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    figure.colorbar(
        shown, ax=list(axes[:MAPS]), location="bottom", shrink=0.5, aspect=40
    ).set_label(
        "weights of the units, each a 3 x 3 patch, in the order of their places on the image"
    )
    for (name, runs), color in zip(curves.items(), ("tab:blue", "tab:gray"), strict=True):
        for i, run in enumerate(runs):
            label = {"patches": "patches, 1 440 parameters", "dense": "dense, 9 360 parameters"}
            epochs = np.arange(1, len(run) + 1)
            axes[-1].plot(epochs, run, color=color, lw=1, label=label[name] if i == 0 else None)
    axes[-1].set(title="accuracy on unseen digits, three seeds", xlabel="epoch", ylim=(0.85, 1))
    axes[-1].legend(loc="lower right", fontsize=7)


if __name__ == "__main__":
    main()
