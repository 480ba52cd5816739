"""A GAN of two networks that are coupled by `gs.vjp`; shared by the examples that train one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import gradstack as gs
from gradstack import nn, optim

Array = npt.NDArray[np.floating[Any]]


class Gan:
    """Generator and discriminator, each with a cost of its own.

    The discriminator D tells real samples from generated ones (binary cross entropy). The generator
    G has no cost but the discriminator: -log D(G(z)), whose gradient comes through D to its input
    and from there through G to its parameters.

    A penalty on the slope of D at the real samples, r1 / 2 ||dD/dx||^2 with its exact gradient by
    `gs.derivatives`, lets the game settle instead of turning (Mescheder et al., 2018).
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        game: type[optim.games.Game],
        lr: Any,
        rng: np.random.Generator,
        r1: float = 0.0,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.rng, self.r1 = rng, r1
        adams = [optim.Adam(lr=lr, betas=(0.5, 0.99)) for _ in range(2)]
        self.game = game([discriminator, generator], adams)
        self.cost = nn.BCEWithLogitsLoss()

    def noise(self, count: int) -> Array:
        """Inputs of the generator, (count, d)."""
        size = self.generator[0].in_features
        return self.rng.standard_normal((count, size), dtype=np.float32)

    def step(self, real: Array, blur: float = 0.0) -> None:
        """Both players move; `blur` is the spread of noise on what the discriminator sees."""
        count = len(real)
        z = self.noise(count)
        fog = blur * self.rng.standard_normal((2 * count, real.shape[1]), dtype=np.float32)
        labels = np.repeat([[1.0], [0.0]], count, axis=0)

        def discriminator_gradient() -> Array:
            x = np.concatenate([real, self.generator(z)]) + fog
            _, dw = gs.value_and_grad(self.discriminator, self.cost, x, labels)
            if self.r1:
                slope = gs.derivatives(self.discriminator, x[:count])
                dw += slope.pullback(djac=self.r1 / count * slope.jac)[1]
            return dw

        def generator_gradient() -> Array:
            x, pull_generator = gs.vjp(self.generator, z)
            score, pull_discriminator = gs.vjp(self.discriminator, x + fog[count:])
            dx, _ = pull_discriminator(self.cost.gradient(score, labels[:count]) / count)
            return pull_generator(dx)[1]

        self.game.step([discriminator_gradient, generator_gradient])


def train(gan: Gan, draw: Callable[[], Array], steps: int, blur: float = 0.0) -> None:
    """Play, with a blur that fades to 0."""
    for step in range(steps):
        gan.step(draw(), blur * max(0.0, 1 - 1.25 * step / steps))
        if step % 2000 == 1999:
            print(f"step {step + 1} of {steps}", flush=True)
