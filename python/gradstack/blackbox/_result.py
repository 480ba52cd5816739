"""What a search found, and what it has found so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Progress(NamedTuple):
    """The state of a search, as its callback sees it."""

    x: Array
    fun: float
    nfev: int


@dataclass(frozen=True, eq=False)
class Result:
    """The result of `minimize`; the names are those of SciPy's OptimizeResult.

    Attributes
    ----------
    x : numpy.ndarray
        The best of the points evaluated, x0 included.
    fun : float
        Its value.
    nfev : int
        Evaluations made, never more than ``maxfev``.
    success : bool
        A finite value was found, and it is not above ``target`` where one was given.
    message : str
        Why the search ended.
    method : str
        The method used.
    """

    x: Array
    fun: float
    nfev: int
    success: bool
    message: str
    method: str

    def __repr__(self) -> str:
        x = np.array2string(self.x, threshold=8, precision=6)
        rows = [("message", self.message), ("success", self.success), ("fun", self.fun)]
        rows += [("x", x), ("nfev", self.nfev), ("method", self.method)]
        return "\n".join(f"{name:>8}: {value}" for name, value in rows)
