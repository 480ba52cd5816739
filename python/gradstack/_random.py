"""The random numbers of initialisation and of calls in training mode."""

from __future__ import annotations

import numpy as np

from gradstack._arrays import as_count

_current: dict[str, np.random.Generator] = {}  # "generator", once there is one


def seed(n: int | None) -> None:
    """Seed the generator that initialises layers created without ``generator=``.

    Parameters
    ----------
    n : int or None
        A non-negative integer below 2**63; None takes fresh entropy from the operating system.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> gs.seed(1)
    >>> a = nn.Linear(3, 2)
    >>> gs.seed(1)
    >>> bool((a.weight == nn.Linear(3, 2).weight).all())
    True
    """
    _current["generator"] = np.random.default_rng(None if n is None else as_count(n, "n", low=0))


def resolve(generator: np.random.Generator | None) -> np.random.Generator:
    """`generator` itself, or the library's own."""
    if generator is not None:
        if not isinstance(generator, np.random.Generator):
            raise TypeError(
                f"generator must be a numpy.random.Generator, got {type(generator).__name__}"
            )
        return generator
    if "generator" not in _current:
        seed(None)
    return _current["generator"]


def draw_seed() -> int:
    """A seed for one call in training mode (dropout)."""
    return int(resolve(None).integers(0, 2**63))
