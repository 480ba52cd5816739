"""Returns and advantages from rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_number, as_real

Array = npt.NDArray[Any]


def returns(rewards: Any, gamma: float = 0.99) -> Array:
    """Discounted sums of the rewards from each step to the end, G[t] = r[t] + gamma G[t + 1].

    Parameters
    ----------
    rewards : array_like, (T,) or (T, N)
        The rewards of one episode, or of N that are equally long.
    gamma : float
        Discount, in [0, 1].

    Returns
    -------
    numpy.ndarray
        float64, in the shape of `rewards`.

    Examples
    --------
    >>> import gradstack as gs
    >>> gs.rl.returns([1.0, 1.0, 1.0], gamma=0.5)
    array([1.75, 1.5 , 1.  ])
    """
    r = as_real(rewards, "rewards").astype(np.float64)
    if r.ndim not in (1, 2):
        raise ValueError(f"rewards has shape {r.shape}, expected (T,) or (T, N)")
    discount = as_number(gamma, "gamma", low=0.0, high=1.0)
    for t in range(len(r) - 2, -1, -1):
        r[t] += discount * r[t + 1]
    return r


def gae(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    truncated: Any,
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> Array:
    """Generalised advantage estimates (Schulman et al., 2016, equation 16).

    A[t] = sum_k (gamma lam)^k delta[t + k] up to the end of the episode, with
    delta[t] = r[t] + gamma V(s[t + 1]) - V(s[t]). What follows a termination is worth 0; what
    follows a truncation is worth V, and the sum ends there too.

    Parameters
    ----------
    rewards, values, next_values : array_like, (T,) or (T, N)
        r[t], V(s[t]), and V of the state that step t led to (of an episode's last state, not of the
        first one of the next).
    terminated, truncated : array_like of bool, (T,) or (T, N)
        How episodes ended at step t.
    gamma : float
        Discount, in [0, 1].
    lam : float
        In [0, 1]: 0 trusts the values (least variance), 1 the rewards (no bias).

    Returns
    -------
    numpy.ndarray
        float64, in the shape of `rewards`; ``advantages + values`` are targets for the values.

    Examples
    --------
    >>> import gradstack as gs
    >>> last, never = [False, True], [False, False]
    >>> gs.rl.gae([1.0, 1.0], [0.5, 0.5], [0.5, 0.0], last, never, gamma=1.0, lam=1.0)
    array([1.5, 0.5])
    """
    r = as_real(rewards, "rewards").astype(np.float64)
    if r.ndim not in (1, 2):
        raise ValueError(f"rewards has shape {r.shape}, expected (T,) or (T, N)")
    v, after = _like(values, "values", r), _like(next_values, "next_values", r)
    ended = _like(terminated, "terminated", r).astype(bool)
    cut = ended | _like(truncated, "truncated", r).astype(bool)
    discount = as_number(gamma, "gamma", low=0.0, high=1.0)
    decay = discount * as_number(lam, "lam", low=0.0, high=1.0)
    advantages: Array = r + discount * np.where(ended, 0.0, after) - v
    keep = np.where(cut, 0.0, decay)
    for t in range(len(r) - 2, -1, -1):
        advantages[t] += keep[t] * advantages[t + 1]
    return advantages


def _like(value: Any, name: str, rewards: Array) -> Array:
    array = np.asarray(value)
    if array.shape != rewards.shape:
        raise ValueError(
            f"{name} has shape {array.shape}, expected that of rewards, {rewards.shape}"
        )
    return array
