"""gradstack: a net, its sampler, and two trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradstack as gs
from bench.rl import Batch, Layers
from gradstack import nn, optim, rl


def _net(layers: Layers) -> nn.Module:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        modules += [layer, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def choosers(layers: Layers) -> dict[str, Callable[[Any], int]]:
    """Ways to choose an action at random."""
    net, rng, sample = _net(layers), np.random.default_rng(7), rl.Categorical.sample
    return {"gradstack": lambda x: sample(net(x), rng)}


class Learner:
    """One step of the policy on its score-function cost, one of the critic on squared errors."""

    def __init__(
        self, policy: Layers, critic: Layers, batch: Batch, lr: float, entropy: float
    ) -> None:
        self.nets = [_net(policy), _net(critic)]
        costs = [nn.CategoricalPolicyLoss(entropy), nn.MSELoss()]
        self.trainers = [
            gs.Trainer(net, cost, optim.Adam(lr=lr))
            for net, cost in zip(self.nets, costs, strict=True)
        ]
        self.x = batch.states
        self.y = np.column_stack([batch.actions, batch.advantages]).astype(np.float32)
        self.worth = batch.worth[:, None]

    def run(self, steps: int) -> None:
        """Learn."""
        actor, critic = self.trainers
        for _ in range(steps):
            actor.step(self.x, self.y)
            critic.step(self.x, self.worth)

    def weights(self) -> list[Any]:
        """Weight matrices of both nets."""
        return [p.copy() for net in self.nets for p in net.parameters() if p.ndim > 1]


def learners(*arguments: Any) -> dict[str, Learner]:
    """Ways to learn."""
    return {"gradstack": Learner(*arguments)}
