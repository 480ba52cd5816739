"""Reinforcement learning: estimating gradients of a cost that is known by its values alone.

What several learners share: `Rollout` and `ReplayBuffer` hold what environments returned, `returns`
and `gae` turn rewards into advantages, `Categorical` and `Gaussian` draw actions from the outputs
of a policy. The costs that train one are ``nn.CategoricalPolicyLoss``, ``nn.GaussianPolicyLoss``
and their PPO versions. Environments are Gymnasium's (``pip install gradstack[rl]``).
"""

from __future__ import annotations

from gradstack.rl._advantages import gae, returns
from gradstack.rl._episodes import episode_returns
from gradstack.rl._policies import Categorical, Gaussian
from gradstack.rl._replay import ReplayBuffer
from gradstack.rl._rollout import Rollout

__all__ = [
    "Categorical",
    "Gaussian",
    "ReplayBuffer",
    "Rollout",
    "episode_returns",
    "gae",
    "returns",
]
