"""Nets, data and counters of the tests of short calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradstack as gs
from gradstack import nn

Array = np.ndarray[Any, np.dtype[Any]]


class Count:
    """Calls of a function that goes on as it was."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


def mlp(dtype: Any = np.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 2, dtype=dtype))


def sample(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class Critic(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 5)
        self.b = nn.Linear(2, 5)

    def forward(self, s: Any, u: Any) -> Any:
        z = gs.tanh(self.a(s) + self.b(u))
        return z, z * 2.0
