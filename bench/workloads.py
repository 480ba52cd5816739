"""The workloads: one row each. A new one is a new row."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """A dense float32 network and how it is trained.

    `mode` is ``"fit"`` (the library owns the loop over minibatches) or ``"step"`` (the caller owns
    it and hands over one batch at a time).
    """

    sizes: tuple[int, ...]
    activation: str  # relu | tanh
    cost: str  # cross_entropy | mse
    optimizer: str  # sgd | momentum | adam
    batch: int
    mode: str
    lr: float
    batches: int = 64  # distinct minibatches; an epoch

    @property
    def name(self) -> str:
        """The row's title in every table."""
        return f"{'-'.join(map(str, self.sizes))} {self.optimizer} b{self.batch} {self.mode}"

    @property
    def flops(self) -> int:
        """Useful operations of a step: three products a layer, but no dC/dx for the first."""
        pairs = list(itertools.pairwise(self.sizes))
        products = 3 * sum(n * m for n, m in pairs) - pairs[0][0] * pairs[0][1]
        return 2 * self.batch * products


WORKLOADS = [
    Workload((784, 256, 128, 10), "relu", "cross_entropy", "momentum", 128, "fit", 0.05),
    Workload((4, 64, 64, 2), "tanh", "mse", "adam", 1, "step", 1e-3),
]


@dataclass(frozen=True)
class Task:
    """A workload with its data and initial parameters, the same for every peer."""

    workload: Workload
    layers: list[tuple[Array, Array]]  # (weight (out, in), bias (out,))
    x: Array
    y: npt.NDArray[np.generic]  # labels (int64) or targets (float32)
    threads: int


def make_task(workload: Workload, threads: int, seed: int = 0) -> Task:
    """Draw data with something to learn in it, and an initialisation."""
    rng = np.random.default_rng(seed)
    sizes, count = workload.sizes, workload.batch * workload.batches
    layers = []
    for n, m in itertools.pairwise(sizes):
        bound = n**-0.5
        layers.append(
            (
                rng.uniform(-bound, bound, (m, n)).astype(np.float32),
                rng.uniform(-bound, bound, m).astype(np.float32),
            )
        )
    x = rng.standard_normal((count, sizes[0])).astype(np.float32)
    teacher = rng.standard_normal((sizes[0], sizes[-1])) / np.sqrt(sizes[0])
    answers = np.tanh(x @ teacher)
    y = answers.argmax(1) if workload.cost == "cross_entropy" else answers.astype(np.float32)
    return Task(workload, layers, x, y, threads)
