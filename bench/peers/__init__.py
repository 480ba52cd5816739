"""The libraries compared, a module each.

A module has `TRAINERS`, classes behind the same three methods, which train a `Task` from the task's
own initial parameters; and `forward`, the ways to predict a batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from bench.workloads import Task, Workload

LIBRARIES = {
    "gradstack_": "gradstack",
    "torch_": "torch",
    "jax_": "jax",
    "sklearn_": "sklearn",
    "onnxruntime_": "onnxruntime",
    "numpy_": "numpy",
}


class Trainer(Protocol):
    """One library at work on one task."""

    name: ClassVar[str]

    def __init__(self, task: Task) -> None: ...

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Make whole epochs' worth of steps (mode "fit") or any number (mode "step")."""

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Return the weight matrices (out, in) as they are now."""


@dataclass(frozen=True)
class Call:
    """A prediction as one writes it: an expression and its names."""

    expression: str
    names: dict[str, Any]

    def __call__(self) -> Any:
        """Evaluate it."""
        return eval(self.expression, dict(self.names))


def installed() -> Iterator[ModuleType]:
    """Yield the modules of all libraries that are installed, gradstack's first."""
    for module, requirement in LIBRARIES.items():
        if importlib.util.find_spec(requirement) is None:
            print(f"({requirement} is not installed)")
        else:
            yield importlib.import_module(f"bench.peers.{module}")


class Minibatches:
    """Cycles through the minibatches of an epoch, in order or in a new order every time."""

    def __init__(
        self, load: Workload, x: Any, y: Any, as_index: Callable[[Any], Any] = np.asarray
    ) -> None:
        self.x, self.y, self.as_index = x, y, as_index
        self.batches = [slice(i, i + load.batch) for i in range(0, load.samples, load.batch)]
        self.in_order = itertools.cycle([(x[batch], y[batch]) for batch in self.batches])
        self.rng = np.random.default_rng(0)

    def take(self, steps: int, shuffle: bool) -> Iterator[tuple[Any, Any]]:
        """Return the next ones; whole epochs of shuffled ones."""
        if not shuffle:
            return itertools.islice(self.in_order, steps)
        return self._shuffled(steps // len(self.batches))

    def _shuffled(self, epochs: int) -> Iterator[tuple[Any, Any]]:
        for _ in range(epochs):
            order = self.as_index(self.rng.permutation(len(self.x)))
            for batch in self.batches:
                rows = order[batch]
                yield self.x[rows], self.y[rows]


class UnsupportedError(Exception):
    """The library has no such workload."""
