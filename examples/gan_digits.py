"""Draw digits that a classifier takes for real ones: a game of two networks on 8x8 images.

Lecture: "Nash equilibria between two functions: generative adversarial networks". Neither network
is told what a digit is. The generator turns 16 random numbers into an image, the discriminator is
its cost, and their equilibrium is a generator whose images pass for those of the data set.

The judge is a third network, which classifies the data set and took no part in the game: generated
images on which it is confident (probability above 0.8), of all ten classes.

Run it: ``python examples/gan_digits.py [--quick] [--out FOLDER]`` (needs scikit-learn's digits).
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from gan_common import Gan, train
from rl_common import mlp
from sklearn.datasets import load_digits

import gradstack as gs
from gradstack import nn, optim

BATCH = 64


def judge_of(images: Array, labels: Array) -> nn.Module:
    """Train a classifier on most of the images and print its accuracy on the rest."""
    gs.seed(0)
    order = np.random.default_rng(0).permutation(len(images))
    seen, unseen = order[:1400], order[1400:]
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    how = {"optimizer": optim.Adam(lr=2e-3, weight_decay=1e-4), "batch_size": 64, "epochs": 60}
    gs.fit(net, images[seen], labels[seen], cost=nn.CrossEntropyLoss(), **how)
    right = np.mean(net(images[unseen]).argmax(axis=1) == labels[unseen])
    print(f"accuracy of the judge on {len(unseen)} digits it has not seen {right:.4f}")
    return net


def play(images: Array, seed: int, steps: int) -> Gan:
    """Train a generator and its discriminator."""
    gs.seed(seed)
    rng = np.random.default_rng(seed)
    generator = nn.Sequential(*mlp(16, 128, 128, 64, hidden=nn.ReLU), nn.Tanh())
    discriminator = mlp(64, 128, 128, 1, hidden=nn.LeakyReLU)
    lr = optim.schedules.linear(1e-3, steps, final=1e-4)
    gan = Gan(generator, discriminator, optim.games.Alternating, lr, rng)
    train(gan, lambda: images[rng.integers(len(images), size=BATCH)], steps, blur=0.3)
    return gan


def main() -> None:
    options = arguments(__doc__)
    data, labels = load_digits(return_X_y=True)
    images = (data / 8 - 1).astype(np.float32)
    judge = judge_of(images, labels)
    sheets = [images[:60]]
    for seed in (0,) if options.quick else (0, 1, 2):
        start = time.perf_counter()
        gan = play(images, seed, 1000 if options.quick else 6000)
        made = gan.generator(gan.noise(2000))
        belief = gs.softmax(judge(made))
        sure = belief.max(axis=1) > 0.8
        counts = np.bincount(belief.argmax(axis=1)[sure], minlength=10)
        print(f"seed {seed}: confident on {sure.mean():.3f} of 2000 generated digits,", end=" ")
        print(f"{np.sum(counts > 0)} classes, at least {counts.min()} of each,", end=" ")
        print(f"{time.perf_counter() - start:.0f} s")
        sheets.append(made[:60])

    titles = ["real", *(f"generated, seed {seed}" for seed in range(len(sheets) - 1))]
    figure, panels = plt.subplots(1, len(sheets), figsize=(2.2 * len(sheets), 3.7))
    for axes, sheet, title in zip(panels, sheets, titles, strict=True):
        tiles = np.full((10, 6, 9, 9), 1.0)  # a light line between the images
        tiles[:, :, :8, :8] = -sheet.reshape(10, 6, 8, 8)
        axes.imshow(tiles.transpose(0, 2, 1, 3).reshape(90, 54), cmap="gray", vmin=-1, vmax=1)
        axes.set(title=title)
        axes.axis("off")
    figure.tight_layout()
    save(figure, options.out, "gan_digits.png")


if __name__ == "__main__":
    main()
