"""Learn to imitate a distribution: a game of two networks on mixtures in the plane.

Lecture: "Nash equilibria between two functions: generative adversarial networks". The generator
turns noise into points; the discriminator tells them from real ones and is the generator's cost. At
the equilibrium the points cannot be told apart. Two mixtures of Gaussians are imitated, a ring of
eight and a grid of 9; missing one of their modes is how this game usually goes wrong.

Run it: ``python examples/gan_mixture.py [--quick] [--out FOLDER]``.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from gan_common import Gan, train
from rl_common import mlp

import gradstack as gs
from gradstack import nn, optim

SPREAD, BATCH = 0.15, 128
TURNS = np.linspace(0, 2 * np.pi, 8, endpoint=False)
LINE = np.linspace(-2.5, 2.5, 3)
MIXTURES = {
    "ring of 8": 3 * np.stack([np.cos(TURNS), np.sin(TURNS)], axis=1),
    "grid of 9": np.stack(np.meshgrid(LINE, LINE), axis=-1).reshape(-1, 2),
}


def draw(modes: Array, count: int, rng: np.random.Generator) -> Array:
    points = modes[rng.integers(len(modes), size=count)]
    return (points + SPREAD * rng.standard_normal(points.shape)).astype(np.float32)


def judge(points: Array, modes: Array) -> tuple[int, float]:
    """Modes that get a third of their share or more; share of the points near one (3 sigma)."""
    distance = np.linalg.norm(points[:, None] - modes, axis=2)
    near = distance.min(axis=1) < 3 * SPREAD
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=len(modes))
    return int((counts > len(points) / len(modes) / 3).sum()), float(near.mean())


def main() -> None:
    options = arguments(__doc__)
    figure, panels = plt.subplots(2, 4, figsize=(8.6, 4.4), layout="constrained")
    steps = 1500 if options.quick else 7000
    for row, (name, modes) in zip(panels, MIXTURES.items(), strict=True):
        sample = draw(modes, 2000, np.random.default_rng(0))
        row[0].plot(sample[:, 0], sample[:, 1], ".", markersize=1, color="C0")
        row[0].set(title=f"{name}: real")
        for seed in (0,) if options.quick else (0, 1, 2):
            start = time.perf_counter()
            gs.seed(seed)
            rng = np.random.default_rng(seed)
            generator = mlp(8, 96, 96, 2, hidden=nn.ReLU)
            discriminator = mlp(2, 96, 96, 1, hidden=nn.ReLU)
            lr = optim.schedules.linear(2e-3, steps, final=2e-4)
            gan = Gan(generator, discriminator, optim.games.Alternating, lr, rng, r1=0.1)
            train(gan, lambda modes=modes, rng=rng: draw(modes, BATCH, rng), steps)
            points = generator(gan.noise(5000))
            found, near = judge(points, modes)
            print(f"{name}, seed {seed}: {found} of {len(modes)} modes,", end=" ")
            print(f"{near:.3f} of the points near one, {time.perf_counter() - start:.0f} s")
            axes = row[seed + 1]
            axes.plot(points[:2000, 0], points[:2000, 1], ".", markersize=1, color="C1")
            axes.set(title=f"generated, seed {seed}")
    for axes in panels.flat:
        axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=(), yticks=())
        axes.axis("on" if axes.lines else "off")
    save(figure, options.out, "gan_mixture.png")


if __name__ == "__main__":
    main()
