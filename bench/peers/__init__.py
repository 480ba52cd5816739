"""The libraries compared, a module each.

A module has `TRAINERS`, classes behind the same three methods, which train a `Task` from the task's
own initial parameters; and `forward`, the ways to predict a batch.
"""

from __future__ import annotations

import importlib
import importlib.util
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
        self.starts = range(0, load.samples, load.batch)
        self.size = load.batch
        self.in_order = [(x[i : i + self.size], y[i : i + self.size]) for i in self.starts]
        self.next = 0
        self.rng = np.random.default_rng(0)

    def take(self, steps: int, shuffle: bool) -> Iterator[tuple[Any, Any]]:
        """Yield the next ones."""
        order = None
        for _ in range(steps):
            if not shuffle:
                yield self.in_order[self.next]
            else:
                if order is None or self.next == 0:
                    order = self.as_index(self.rng.permutation(len(self.x)))
                start = self.starts[self.next]
                rows = order[start : start + self.size]
                yield self.x[rows], self.y[rows]
            self.next = (self.next + 1) % len(self.in_order)


class UnsupportedError(Exception):
    """The library has no such workload."""
