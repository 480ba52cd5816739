"""What `bench.gpu` trains: nets, their data and first weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Load:
    """A net, its data and how it is trained."""

    name: str
    widths: tuple[int, ...]
    samples: int
    batch: int
    cost: str  # "cross_entropy" or "mse"
    momentum: float

    @property
    def steps(self) -> int:
        """Steps of an epoch; all loads divide evenly so that nobody records two shapes."""
        return self.samples // self.batch

    def flops(self) -> float:
        """Useful operations of an epoch: 6 per weight and sample, less the first layer's dC/dx."""
        sizes = [a * b for a, b in zip(self.widths, self.widths[1:], strict=False)]
        return self.samples * (6.0 * sum(sizes) - 2.0 * sizes[0])

    def fused_bytes(self) -> float:
        """What the fused MLP moves to and from memory in an epoch, at least.

        A sample's x is gathered (read, written) and read forward and backward; y is gathered and
        read by the cost, which reads ybar and writes its gradient, each written or read once more
        by the MLP; hidden layers are written and read as halves.
        """
        x, y, hidden = 4.0 * self.widths[0], 4.0 * self.widths[-1], 2.0 * sum(self.widths[1:-1])
        return self.samples * (4 * x + 7 * y + 2 * hidden)


LOADS = (
    Load("mnist", (784, 256, 128, 10), 60_032, 128, "cross_entropy", 0.9),
    Load("wide", (1024, 1024, 1024, 1024), 1 << 15, 4096, "mse", 0.0),
    Load("narrow", (64, 64, 64, 64, 64), 1 << 20, 1 << 18, "mse", 0.0),
)
SMOKE = (Load("smoke", (8, 16, 4), 256, 32, "cross_entropy", 0.9),)
LR = 0.01
PRECISIONS = ("float32", "tf32", "bf16")


class Task:
    """A load with its data and first weights."""

    def __init__(self, load: Load) -> None:
        rng = np.random.default_rng(0)
        self.load = load
        self.x = rng.normal(size=(load.samples, load.widths[0])).astype(np.float32)
        out = load.widths[-1]
        self.y: npt.NDArray[Any] = (
            rng.integers(0, out, load.samples)
            if load.cost == "cross_entropy"
            else rng.normal(size=(load.samples, out)).astype(np.float32)
        )
        self.layers = [
            (
                rng.normal(size=(o, i), scale=i**-0.5).astype(np.float32),
                np.zeros(o, np.float32),
            )
            for i, o in zip(load.widths, load.widths[1:], strict=False)
        ]

    def net(self, dtype: Any = np.float32) -> Any:
        """The net in gradstack."""
        from gradstack import nn

        blocks: list[Any] = []
        for weight, bias in self.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            layer.weight, layer.bias = weight, bias
            blocks += [layer, nn.ReLU()]
        return nn.Sequential(*blocks[:-1])

    def cost(self) -> Any:
        """The cost in gradstack."""
        from gradstack import nn

        return nn.CrossEntropyLoss() if self.load.cost == "cross_entropy" else nn.MSELoss()
