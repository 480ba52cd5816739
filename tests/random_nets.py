"""Random graphs of blocks, and single ones, for tests of what reads a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

import gradstack as gs
from gradstack import nn


class OneOp(nn.Module):
    """A row of the op table on its own."""

    def __init__(self, op: str, params: list[float], dtype: Any) -> None:
        super().__init__()
        self.op, self.params = op, params
        self.scale = nn.Linear(1, 1, bias=False, dtype=dtype)
        self.scale.weight[...] = 1

    def forward(self, x: Any) -> Any:
        return x._tracer.pointwise(self.op, self.params, self.scale(x), self.op)


class RandomNet(nn.Module):
    """A random graph with several inputs and outputs, fans, diamonds, long skips and names."""

    def __init__(self, seed: int, size: int, dtype: Any = None, tame: bool = False) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.size = size
        self.seed = seed
        self.tame = tame  # no quotients, whose values have no bound
        self.count = int(rng.integers(1, 4))
        for i in range(size):
            name = "a_layer_with_quite_a_long_name" if i == 3 else f"layer{i}"
            mask = rng.random((8, 8)) < 0.5 if i % 5 == 4 else None
            self.add_module(name, nn.Linear(8, 8, bias=bool(i % 3), mask=mask, dtype=dtype))

    def forward(self, *xs: Any) -> Any:
        rng = np.random.default_rng(self.seed)
        values = list(xs)
        layers = list(self.children())

        def pick() -> Any:
            near = rng.random() < 0.7
            return values[-1] if near else values[int(rng.integers(len(values)))]

        for i in range(self.size):
            a, b = pick(), pick()
            kind = rng.integers(9)
            if kind < 3:
                value = layers[i](a)
            elif kind == 3:
                value = gs.tanh(a) if i % 2 else gs.leaky_relu(a, 0.125)
            elif kind == 4:
                pair = [a + b, a - b, a * b] + ([] if self.tame else [a / b])
                value = pair[int(rng.integers(len(pair)))]
            elif kind == 5:
                value = gs.softmax(a)
            elif kind == 6:
                value = -1.5 * a + 2
            elif kind == 7:
                parts = [pick()[2 * k : 2 * k + 2] for k in range(4)]
                value = gs.concat(parts)
            else:
                value = a.view(2, 4).view(-1)
            values.append(value)
        if rng.random() < 0.5:
            return values[-1]
        return tuple(values[-2:])


def random_net(seed: int, dtype: Any = None, tame: bool = False) -> RandomNet:
    rng = np.random.default_rng(seed)
    net = RandomNet(seed, int(rng.integers(1, 31)), dtype, tame)
    net.trace(*[(8,)] * net.count)
    return net
