"""`Rollout`: what a policy met in vectorised environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count

Array = npt.NDArray[Any]


class Rollout:
    """A number of steps in N environments at once, collected again and again with a policy.

    Parameters
    ----------
    envs : gymnasium.vector.VectorEnv
        As ``gymnasium.make_vec`` makes it: environments that ended start anew with their next step.
        Observations have one axis; actions are integers, or vectors, which are clipped to the
        bounds of the space on their way to the environments.
    steps : int
        T, steps per environment and collection.
    seed : int
        Seeds the environments.

    Attributes
    ----------
    obs, next_obs : numpy.ndarray, (T, N, d), float32
        The state before and after each step; after the last step of an episode its last state.
    actions : numpy.ndarray, (T, N) int64 or (T, N, m) float32
        As the policy gave them.
    rewards : numpy.ndarray, (T, N), float32
    terminated, truncated : numpy.ndarray, (T, N), bool
    valid : numpy.ndarray, (T, N), bool
        False where an environment only started anew: no step of the policy.
    episodes : list of float
        Returns (not discounted) of the episodes that ended during the last collection.
    """

    def __init__(self, envs: Any, steps: int, seed: int) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if getattr(mode, "name", "NEXT_STEP") != "NEXT_STEP":
            raise ValueError(f"envs has {mode}, expected AutoresetMode.NEXT_STEP")
        n, t = envs.num_envs, as_count(steps, "steps")
        space, action = envs.single_observation_space, envs.single_action_space
        if len(space.shape) != 1:
            raise ValueError(f"envs has observations of shape {space.shape}, expected one axis")
        self.envs = envs
        self.obs = np.zeros((t, n, *space.shape), np.float32)
        self.next_obs = np.zeros_like(self.obs)
        self._bounds = (action.low, action.high) if action.shape else None
        self.actions = np.zeros((t, n, *action.shape), np.float32 if action.shape else np.int64)
        self.rewards = np.zeros((t, n), np.float32)
        self.terminated, self.truncated = np.zeros((t, n), bool), np.zeros((t, n), bool)
        self.valid = np.zeros((t, n), bool)
        self.episodes: list[float] = []
        self._sums = np.zeros(n)
        self._starts = np.zeros(n, bool)
        self._now = envs.reset(seed=seed)[0].astype(np.float32)

    def collect(self, act: Callable[[Array], Any]) -> None:
        """Make T steps.

        Parameters
        ----------
        act : callable
            From the states, (N, d) float32, to the actions, (N,) or (N, m).
        """
        self.episodes = []
        for t in range(len(self.obs)):
            actions = act(self._now)
            self.obs[t], self.actions[t], self.valid[t] = self._now, actions, ~self._starts
            if self._bounds is not None:
                actions = np.clip(actions, *self._bounds)
            after, rewards, terminated, truncated, _ = self.envs.step(actions)
            self.next_obs[t], self.rewards[t] = after, rewards
            self.terminated[t], self.truncated[t] = terminated, truncated
            self._sums += rewards
            self._now = self.next_obs[t].copy()
            self._starts = terminated | truncated
            if self._starts.any():
                self.episodes += self._sums[self._starts].tolist()
                self._sums[self._starts] = 0.0

    def rows(self, *arrays: Array) -> tuple[Array, ...]:
        """The valid steps of arrays (T, N, ...) as rows (K, ...)."""
        return tuple(a[self.valid] for a in arrays)
