"""Whole episodes in one environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count

Array = npt.NDArray[Any]


def episode_returns(
    env: Any, act: Callable[[Array], Any], episodes: int, seed: int | None = None
) -> Array:
    """Let a policy act for whole episodes, and return what each of them was worth.

    Parameters
    ----------
    env : gymnasium.Env
    act : callable
        From a state (d,) float32 to an action of the environment.
    episodes : int
    seed : int, optional
        Seeds the environment's first episode, and through it all.

    Returns
    -------
    numpy.ndarray, (episodes,), float64
        Sums of the rewards, not discounted.
    """
    sums = np.zeros(as_count(episodes, "episodes"))
    for i in range(len(sums)):
        obs, _ = env.reset(seed=seed if i == 0 else None)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(np.asarray(obs, np.float32)))
            sums[i] += reward
            ended = terminated or truncated
    return sums
