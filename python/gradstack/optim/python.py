"""Optimisers whose steps are written in Python, over the flat parameter vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstack.optim.base import Array, Optimizer, Problem
from gradstack.optim.schedules import Lr


class PythonOptimizer(Optimizer):
    """Base class of optimisers that see a batch as a function of w.

    A subclass defines `_step`, which changes w in place, and `_export` and `_import` for its state.
    """

    def __init__(
        self,
        lr: Lr,
        clip_norm: float | None,
        clip_value: float | None,
        decay_bias: bool,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__(lr, clip_norm, clip_value, decay_bias, arguments)
        self._start()

    def _start(self) -> None:
        self.__dict__["_t"] = 0

    @property
    def t(self) -> int:
        """Number of steps made."""
        return int(self._t)

    def reset(self) -> None:
        """Forget all state; the optimiser may then serve another net."""
        super().reset()
        self._start()

    def require_precision(self, precision: str) -> None:
        """Refuse to train a net in less than float32: models and line searches need its digits."""
        if precision != "float32":
            raise ValueError(
                f"[{type(self).__name__}] precision must be 'float32', got {precision!r}: it is "
                "for the update rules (SGD, Adam, ...)"
            )

    def step(self, problem: Problem, w: Array, lr: float) -> float:
        """One step on a batch, changing w in place; the loss before it."""
        loss = self._step(_Clipped(problem, self), w, lr)
        self.__dict__["_t"] += 1
        return loss

    def _clip(self, g: Array) -> Array:
        """Clip a gradient in place: first by value, then by norm."""
        if self.clip_value is not None:
            np.clip(g, -self.clip_value, self.clip_value, out=g)
        if self.clip_norm is not None:
            scale = self.clip_norm / (float(np.linalg.norm(g.astype(np.float64))) + 1e-6)
            if scale < 1:
                g *= g.dtype.type(scale)
        return g

    def _step(self, problem: Problem, w: Array, lr: float) -> float:
        raise NotImplementedError

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        raise NotImplementedError

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def export_state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The state as arrays and plain numbers."""
        arrays, numbers = self._export()
        return arrays, {**numbers, "t": self._t}

    def import_state(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Take over what `export_state` gave."""
        self._import(arrays, numbers)
        self.__dict__["_t"] = int(numbers["t"])


class _Clipped:
    """A problem whose gradients are clipped."""

    def __init__(self, problem: Problem, optimizer: PythonOptimizer) -> None:
        self._problem = problem
        self._optimizer = optimizer

    def value_and_grad(self, w: Array) -> tuple[float, Array]:
        loss, g = self._problem.value_and_grad(w)
        return loss, self._optimizer._clip(g)
