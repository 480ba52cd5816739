"""PyTorch, eager mode: several ways to sample and to step, of which the quickest counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.rl import Batch, Layers
from gradstack import rl

NAME = "PyTorch eager"


def _net(layers: Layers) -> torch.nn.Sequential:
    modules: list[torch.nn.Module] = []
    for weight, bias in layers:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        modules += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*modules[:-1])


def choosers(layers: Layers) -> dict[str, Callable[[Any], int]]:
    """By torch.distributions, by multinomial, and with gradstack's sampler and random numbers."""
    torch.set_num_threads(1)
    net, rng, sample = _net(layers), np.random.default_rng(7), rl.Categorical.sample

    @torch.inference_mode()
    def distribution(x: Any) -> int:
        return torch.distributions.Categorical(logits=net(torch.from_numpy(x))).sample().item()

    @torch.inference_mode()
    def multinomial(x: Any) -> int:
        return torch.multinomial(torch.softmax(net(torch.from_numpy(x)), 0), 1).item()

    @torch.inference_mode()
    def same_numbers(x: Any) -> int:
        return sample(net(torch.from_numpy(x)).numpy(), rng)

    return {
        f"{NAME}, distributions": distribution,
        f"{NAME}, multinomial": multinomial,
        f"{NAME}, same numbers": same_numbers,
    }


class Learner:
    """One backward pass and one Adam for both nets, the graphs of which have nothing in common."""

    def __init__(
        self,
        policy: Layers,
        critic: Layers,
        batch: Batch,
        lr: float,
        entropy: float,
        **adam: Any,
    ) -> None:
        torch.set_num_threads(1)
        self.policy, self.critic, self.entropy = _net(policy), _net(critic), entropy
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=lr, **adam)
        self.x = torch.from_numpy(batch.states)
        self.actions = torch.from_numpy(batch.actions)[:, None]
        self.advantages = torch.from_numpy(batch.advantages)
        self.worth = torch.from_numpy(batch.worth)[:, None]

    def run(self, steps: int) -> None:
        """Learn."""
        for _ in range(steps):
            log_pi = torch.log_softmax(self.policy(self.x), dim=1)
            taken = log_pi.gather(1, self.actions)[:, 0]
            entropy = -(log_pi.exp() * log_pi).sum(1)
            loss = -(self.advantages * taken + self.entropy * entropy).mean()
            loss = loss + torch.nn.functional.mse_loss(self.critic(self.x), self.worth)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def weights(self) -> list[Any]:
        """Weight matrices of both nets."""
        nets = (self.policy, self.critic)
        return [p.detach().numpy().copy() for n in nets for p in n.parameters() if p.ndim > 1]


def learners(*arguments: Any) -> dict[str, Learner]:
    """With Adam as it is by default, and fused."""
    return {
        f"{NAME}, Adam": Learner(*arguments),
        f"{NAME}, fused Adam": Learner(*arguments, fused=True),
    }
