"""Balance a pole from rewards alone: the gradient of an unknown cost is estimated.

Lecture: "When the cost is a black box: gradient estimation and reinforcement learning". The
environment returns numbers and no gradient. REINFORCE draws actions at random and makes those more
likely that were followed by more than what a baseline, a second network, expected.

Run it: ``python examples/reinforce.py [--quick] [--out FOLDER]`` (needs gymnasium).
"""

import time
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from rl_common import draw_aim, draw_curve, mlp

import gradstack as gs
from gradstack import nn, optim, rl

STEPS, GAMMA = 2000, 0.99  # steps of the environment per update, discount


def episode(env: Any, policy: nn.Module, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Act at random as the policy says until the pole has fallen: states, actions, rewards."""
    states, actions, rewards = [], [], []
    state, ended = env.reset()[0], False
    while not ended:
        action = rl.Categorical.sample(policy(state), rng)
        states.append(state)
        actions.append(action)
        state, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        ended = terminated or truncated
    return np.array(states), np.array(actions), np.array(rewards)


def learn(seed: int, updates: int) -> tuple[nn.Module, Array]:
    """Train; the policy, and the return of every episode on the way with the step it ended at."""
    gs.seed(seed)
    rng, env = np.random.default_rng(seed), gymnasium.make("CartPole-v1")
    env.reset(seed=seed)
    policy, baseline = mlp(4, 64, 64, 2), mlp(4, 64, 64, 1)
    lr = optim.schedules.linear(1e-2, updates, final=1e-3)
    actor = gs.Trainer(policy, nn.CategoricalPolicyLoss(entropy=0.01), optim.Adam(lr=lr))
    critic = gs.Trainer(baseline, nn.MSELoss(), optim.Adam(lr=1e-2))
    curve, taken = [], 0
    for update in range(updates):
        batch = []
        while sum(len(rewards) for _, _, rewards in batch) < STEPS:
            batch.append(episode(env, policy, rng))
            taken += len(batch[-1][2])
            curve.append((taken, batch[-1][2].sum()))
        states, actions, _ = (np.concatenate(parts) for parts in zip(*batch, strict=True))
        worth = np.concatenate([rl.returns(rewards, GAMMA) for _, _, rewards in batch]) / 100
        advantage = worth - baseline(states)[:, 0]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        actor.step(states, np.column_stack([actions, advantage]))
        for _ in range(10):
            critic.step(states, worth[:, None])
        if update % 20 == 19:
            recent = np.mean([r for _, r in curve[-len(batch) :]])
            print(f"seed {seed}: step {taken:6d}, return of an episode {recent:5.1f}")
    return policy, np.array(curve)


def main() -> None:
    options = arguments(__doc__)
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for seed in (0,) if options.quick else (0, 1, 2):
        start = time.perf_counter()
        policy, curve = learn(seed, updates=40 if options.quick else 120)
        env = gymnasium.make("CartPole-v1")
        scores = rl.episode_returns(
            env, lambda x, net=policy: int(net(x).argmax()), episodes=100, seed=1000 + seed
        )
        print(f"seed {seed}: average of 100 episodes {scores.mean():.1f}", end=" ")
        print(f"(at least 475 solves it), {time.perf_counter() - start:.0f} s")
        draw_curve(axes, curve, seed)
    draw_aim(axes, 475, "solved")
    axes.set(title="REINFORCE with a baseline on CartPole-v1", ylim=(0, 515))
    axes.legend(loc="lower right")
    save(figure, options.out, "reinforce.png")


if __name__ == "__main__":
    main()
