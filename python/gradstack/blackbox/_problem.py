"""A function with its budget: every evaluation of a search goes through here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack.blackbox._objective import Objective
from gradstack.blackbox._result import Progress

Array = npt.NDArray[Any]


class SearchEndError(Exception):
    """The search must not make another evaluation; the message says why."""


class Problem:
    """Counts evaluations and remembers the best.

    Attributes
    ----------
    x0 : numpy.ndarray, (n,)
        The start, in the dtype of the function's arguments.
    free : numpy.ndarray of bool, (n,)
        False where a coordinate never moves.
    scale : numpy.ndarray, (n,)
        The initial step of every coordinate.
    x, fun, nfev
        The best point, its value, and the number of evaluations.
    """

    def __init__(
        self,
        f: Any,
        x0: Array,
        scale: Array,
        maxfev: int,
        target: float | None,
        callback: Callable[[Progress], Any] | None,
    ) -> None:
        self.f = f
        self.x0 = x0
        self.free: Array = f.free if isinstance(f, Objective) else np.ones(x0.size, np.bool_)
        self.scale = scale
        self.maxfev = maxfev
        self._target = target
        self._callback = callback
        self.x = x0
        self.fun = math.inf
        self.nfev = 0
        self._worst = -math.inf  # of the finite values

    def value(self, x: Array) -> float:
        """f(x), counted; NaN comes out as infinity."""
        if self.nfev >= self.maxfev:
            raise SearchEndError("maxfev evaluations were made")
        value = as_value(self.f(x))
        self.nfev += 1
        if math.isfinite(value):
            self._worst = max(self._worst, value)
        if value < self.fun:
            self._improved(x.copy(), value)
        self._check_target()
        return value

    def advance(self, search: Any) -> bool:
        """One generation of a search of the core; False when the budget has no room for one."""
        if isinstance(self.f, Objective):
            left = self.maxfev - self.nfev
            made: int = self.f._population.generation(search, left, self.f._threads)
            self.nfev += made
            if search.best_value < self.fun:
                self._improved(search.best, float(search.best_value))
            self._check_target()
            return made > 0
        points = search.ask(self.maxfev - self.nfev)
        if len(points):
            search.tell(np.array([self.value(x) for x in points]))
        return len(points) > 0

    def best_free(self) -> Array:
        """The free coordinates of the best point."""
        return self.x[self.free].astype(np.float64)

    def from_start(self, start: Array) -> Callable[[Array], float]:
        """The function of the free coordinates, measured from `start` in units of the scale.

        Where it has no value it is a little higher than anywhere else: other packages do
        arithmetic with what they get.
        """
        scale = self.scale[self.free]

        def f(u: Array) -> float:
            x = self.x0.copy()
            x[self.free] = start + scale * u
            value = self.value(x)
            if math.isfinite(value):
                return value
            return 2 * self._worst - self.fun + 1 if math.isfinite(self._worst) else 1.0

        return f

    def _improved(self, x: Array, value: float) -> None:
        self.x, self.fun = x, value
        if self._callback is not None and self._callback(Progress(x, value, self.nfev)):
            raise SearchEndError("the callback stopped the search")

    def _check_target(self) -> None:
        if self._target is not None and self.fun <= self._target:
            raise SearchEndError("the target was reached")


def as_value(value: Any) -> float:
    """What the user's function returned, as a float; NaN counts as infinity."""
    if type(value) is not float:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "fiub":
            raise TypeError(f"f returned {value!r}, expected a real number")
        value = float(array.reshape(()))
    return math.inf if math.isnan(value) else value
