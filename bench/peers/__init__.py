"""The libraries compared, each behind the same four methods.

A peer trains a `Task` from the task's own initial parameters, on its minibatches in their order.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.workloads import Task


class Peer(Protocol):
    """One library at work on one task."""

    name: str

    def __init__(self, task: Task) -> None: ...

    def run(self, steps: int) -> None:
        """Make whole epochs' worth of steps (mode "fit") or any number (mode "step")."""

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Return the weight matrices (out, in) as they are now."""


def installed_peers() -> list[type[Peer]]:
    """Return the classes of all peers that are installed, gradstack first."""
    found: list[type[Peer]] = []
    for module, requirement in [
        ("gradstack_", "gradstack"),
        ("torch_", "torch"),
        ("jax_", "jax"),
        ("sklearn_", "sklearn"),
        ("numpy_", "numpy"),
    ]:
        try:
            importlib.import_module(requirement)
        except ImportError:
            print(f"({requirement} is not installed)")
            continue
        found.append(importlib.import_module(f"bench.peers.{module}").Peer)
    return found


class UnsupportedError(Exception):
    """The library has no such workload."""
