"""Actor and critic on two tasks: a pole to balance, and a pendulum to swing up.

Lecture: "Gradient estimation in reinforcement learning; actor-critic". The critic, a trainable
network, predicts what a state is worth; the actor makes actions likelier that turned out better
than that. PPO (Schulman et al., 2017) clips the actor's cost, so that every batch can be used for
several epochs: its update is `gs.fit`, whose loop never leaves C++.

CartPole-v1 has two actions (a categorical policy), Pendulum-v1 a torque (a Gaussian one).
Gymnasium publishes the threshold 475 for the first and none for the second; an average of -200 is
taken here: the pendulum is swung up and held from almost every start.

Run it: ``python examples/actor_critic.py [--quick] [--out FOLDER]`` (needs gymnasium).
"""

import time
from typing import Any, NamedTuple

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from rl_common import draw_aim, draw_curve, mlp

import gradstack as gs
from gradstack import nn, optim, rl


class Task(NamedTuple):
    """An environment, how it is learned, and what counts as solved."""

    name: str
    pi: Any  # kind of policy
    cost: nn.Cost
    scale: float  # of rewards, so that values are of order 1
    gamma: float
    lam: float
    steps: int  # per environment and batch
    batches: int
    solved: float


CARTPOLE = Task(
    "CartPole-v1",
    rl.Categorical,
    nn.CategoricalPPOLoss(entropy=0.01),
    0.05,
    0.98,
    0.9,
    128,
    80,
    475,
)
PENDULUM = Task("Pendulum-v1", rl.Gaussian, nn.GaussianPPOLoss(), 0.1, 0.95, 0.95, 200, 60, -200)
QUICK = {"CartPole-v1": 40, "Pendulum-v1": 12}
ENVIRONMENTS = 8


class GaussianPolicy(nn.Module):
    """Mean of a torque from the state; its standard deviation is one trainable number."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = mlp(3, 64, 64, 1)
        self.log_std = nn.Linear(3, 1, mask=np.zeros((1, 3)))  # without weights a bias remains
        self.log_std.bias[...] = 0.0

    def forward(self, x: Any) -> Any:
        """Mean and logarithm of the standard deviation."""
        return gs.concat([self.mean(x), self.log_std(x)])


def learn(task: Task, seed: int, batches: int) -> tuple[nn.Module, list[tuple[int, float]]]:
    """Train; the policy, and the returns of the episodes on the way."""
    gs.seed(seed)
    rng = np.random.default_rng(seed)
    mode = None if task.name == "CartPole-v1" else "sync"
    envs = gymnasium.make_vec(task.name, ENVIRONMENTS, vectorization_mode=mode)
    rollout = rl.Rollout(envs, task.steps, seed)
    size = rollout.obs.shape[2]
    actor = mlp(size, 64, 64, 2) if task.pi is rl.Categorical else GaussianPolicy()
    critic = mlp(size, 64, 64, 1)
    epochs, batch = 10, 64
    lr = optim.schedules.linear(1e-3, batches * epochs * task.steps * ENVIRONMENTS // batch)
    adams = [optim.Adam(lr=lr, clip_norm=0.5), optim.Adam(lr=lr, clip_norm=0.5)]
    curve = []
    for k in range(batches):
        rollout.collect(lambda obs: task.pi.sample(actor(obs), rng))
        values, after = (critic(x)[..., 0] for x in flat(rollout.obs, rollout.next_obs))
        advantage = rl.gae(
            task.scale * rollout.rewards,
            values.reshape(rollout.valid.shape),
            after.reshape(rollout.valid.shape),
            rollout.terminated,
            rollout.truncated,
            gamma=task.gamma,
            lam=task.lam,
        )
        worth = advantage + values.reshape(advantage.shape)
        x, a, advantage, worth = rollout.rows(rollout.obs, rollout.actions, advantage, worth)
        advantage = (advantage - advantage.mean()) / advantage.std()
        y = np.column_stack([a, advantage, task.pi.log_prob(actor(x), a)])
        how = {"batch_size": batch, "epochs": epochs, "seed": k}
        gs.fit(actor, x, y, cost=task.cost, optimizer=adams[0], **how)
        gs.fit(critic, x, worth[:, None], cost=nn.MSELoss(), optimizer=adams[1], **how)
        taken = (k + 1) * task.steps * ENVIRONMENTS
        curve += [(taken, score) for score in rollout.episodes]
        if k % 20 == 19:
            recent = np.mean([score for _, score in curve[-20:]])
            print(f"{task.name}, seed {seed}: step {taken:6d}, return {recent:7.1f}")
    return actor, curve


def flat(*arrays: Array) -> list[Array]:
    return [a.reshape(-1, a.shape[-1]) for a in arrays]


def main() -> None:
    options = arguments(__doc__)
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for axes, task in zip(panels, (CARTPOLE, PENDULUM), strict=True):
        for seed in (0,) if options.quick else (0, 1, 2):
            start = time.perf_counter()
            batches = QUICK[task.name] if options.quick else task.batches
            actor, curve = learn(task, seed, batches)
            env, likeliest = (
                gymnasium.make(task.name),
                lambda x, net=actor, t=task: t.pi.mode(net(x)),
            )
            scores = rl.episode_returns(env, likeliest, 100, seed=1000 + seed)
            print(f"{task.name}, seed {seed}: average of 100 episodes {scores.mean():.1f}", end=" ")
            print(f"(aim {task.solved}), {time.perf_counter() - start:.0f} s")
            draw_curve(axes, curve, seed)
        draw_aim(axes, task.solved, "solved")
        axes.set(title=f"PPO on {task.name}")
        axes.legend(loc="lower right")
    save(figure, options.out, "actor_critic.png")


if __name__ == "__main__":
    main()
