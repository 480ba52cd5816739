"""`ReplayBuffer`: the last transitions, to be drawn from at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count

Array = npt.NDArray[Any]


class ReplayBuffer:
    """The last transitions (s, a, r, s', terminated) of one environment; old ones are overwritten.

    Parameters
    ----------
    capacity : int
        Transitions that are kept.
    obs_size, action_size : int
        Lengths of the vectors s and a.
    rng : numpy.random.Generator
        Draws the batches.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> buffer = gs.rl.ReplayBuffer(1000, 3, 1, np.random.default_rng(0))
    >>> buffer.add([0.0, 0.0, 0.0], [1.0], -1.0, [0.1, 0.0, 0.0], False)
    >>> s, a, r, after, terminated = buffer.sample(2)
    >>> s.shape, a.shape, r.shape
    ((2, 3), (2, 1), (2,))
    """

    def __init__(
        self, capacity: int, obs_size: int, action_size: int, rng: np.random.Generator
    ) -> None:
        self._capacity = as_count(capacity, "capacity")
        self._sizes = (obs_size, action_size, 1, obs_size, 1)
        self._ends = np.cumsum(self._sizes)
        # One row per transition: a batch is one gather.
        self._rows = np.zeros((self._capacity, int(self._ends[-1])), np.float32)
        self._rng = rng
        self._count = 0

    def __len__(self) -> int:
        """Transitions held."""
        return min(self._count, self._capacity)

    def add(self, s: Any, a: Any, r: float, after: Any, terminated: bool) -> None:
        """Take one transition."""
        row = self._rows[self._count % self._capacity]
        one, two, three, four, _ = self._ends
        row[:one], row[one:two], row[two] = s, a, r
        row[three:four], row[four] = after, terminated
        self._count += 1

    def sample(self, count: int) -> tuple[Array, Array, Array, Array, Array]:
        """Draw transitions with replacement: s, a, r, s', terminated, float32.

        Their shapes are (count, obs_size), (count, action_size), (count,), (count, obs_size) and
        (count,).
        """
        if not self._count:
            raise ValueError("the buffer is empty")
        rows = self._rows[self._rng.integers(len(self), size=count)]
        one, two, three, four, _ = self._ends
        return (
            np.ascontiguousarray(rows[:, :one]),
            np.ascontiguousarray(rows[:, one:two]),
            rows[:, two].copy(),
            np.ascontiguousarray(rows[:, three:four]),
            rows[:, four].copy(),
        )
