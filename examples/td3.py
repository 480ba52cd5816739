"""A critic as a differentiable cost: the actor is trained by backpropagation through Q(s, a).

Lecture: "Actor-critic: a trainable module stands in for the unknown cost". The environment says how
good an action was, not in which direction it would have been better. A network Q(s, a) learns to
predict the return; its gradient with respect to the action, one `gs.vjp`, trains the actor.

This is TD3 (Fujimoto et al., 2018): two critics of which the lower counts, targets from slowly
following copies (`gs.polyak`) and slightly blurred actions. Gymnasium publishes the threshold 90
for MountainCarContinuous-v0 and none for Pendulum-v1, for which an average of -200 is taken.

Run it: ``python examples/td3.py [--quick] [--out FOLDER]`` (needs gymnasium).
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

BATCH, TAU = 64, 0.01


class Task(NamedTuple):
    """An environment and how it is learned."""

    name: str
    units: tuple[float, ...]  # of the state, so that its components are of order 1
    bound: float  # of the action
    scale: float  # of rewards
    gamma: float
    steps: int
    noise: float  # of the first actions
    memory: float  # of the noise: 0 white, towards 1 slow enough to gather momentum
    solved: float


PENDULUM = Task("Pendulum-v1", (1.0, 1.0, 4.0), 2.0, 0.1, 0.97, 10000, 1.0, 0.5, -200)
CAR = Task("MountainCarContinuous-v0", (0.5, 0.04), 1.0, 0.1, 0.99, 25000, 3.0, 0.95, 90)
QUICK = {"Pendulum-v1": 4000, "MountainCarContinuous-v0": 0}


class Critic(nn.Module):
    """Q(s, a), a network of two inputs."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.q = mlp(states + actions, 64, 64, 1, hidden=nn.ReLU)

    def forward(self, s: Any, a: Any) -> Any:
        """Predicted return of the action a in the state s."""
        return self.q(gs.concat([s, a]))


class TD3:
    """Actor and two critics with their slow copies; actions are within [-1, 1]."""

    def __init__(
        self, states: int, actions: int, gamma: float, steps: int, rng: np.random.Generator
    ) -> None:
        self.gamma, self.rng = gamma, rng
        self.actor = nn.Sequential(mlp(states, 64, 64, actions, hidden=nn.ReLU), nn.Tanh())
        self.critics = [Critic(states, actions) for _ in range(2)]
        self.slow_actor, self.slow_critics = self.actor.copy(), [c.copy() for c in self.critics]
        lr = optim.schedules.linear(1e-3, steps, final=1e-4)
        self.trainers = [gs.Trainer(c, nn.MSELoss(), optim.Adam(lr=lr)) for c in self.critics]
        self.adam = optim.Adam(lr=optim.schedules.linear(1e-3, steps // 2, final=1e-4))

    def learn(self, batch: tuple[Array, ...], step: int) -> None:
        """One step of the critics, and every other time one of the actor."""
        s, a, r, after, terminated = batch
        blur = np.clip(0.2 * self.rng.standard_normal(a.shape), -0.5, 0.5)
        then = np.clip(self.slow_actor(after) + blur, -1, 1).astype(np.float32)
        worth = np.minimum(*(critic(after, then)[:, 0] for critic in self.slow_critics))
        target = (r + self.gamma * (1 - terminated) * worth)[:, None]
        for trainer in self.trainers:
            trainer.step((s, a), target)
        if step % 2:
            return
        chosen, pull_actor = gs.vjp(self.actor, s)
        worth, pull_critic = gs.vjp(self.critics[0], (s, chosen))
        (_, da), _ = pull_critic(np.full_like(worth, -1 / len(s)))  # the actor's cost is -mean Q
        _, dw = pull_actor(da)
        self.adam.update(self.actor, dw)
        gs.polyak(self.slow_actor, self.actor, TAU)
        for slow, critic in zip(self.slow_critics, self.critics, strict=True):
            gs.polyak(slow, critic, TAU)


def learn(task: Task, seed: int, steps: int) -> tuple[nn.Module, list[tuple[int, float]]]:
    """Train; the actor, and the returns of the episodes on the way."""
    gs.seed(seed)
    rng, env = np.random.default_rng(seed), gymnasium.make(task.name)
    units = np.array(task.units, np.float32)
    agent = TD3(len(units), 1, task.gamma, steps, rng)
    buffer = rl.ReplayBuffer(steps, len(units), 1, rng)
    state, score, curve = env.reset(seed=seed)[0] / units, 0.0, []
    noise, fade = np.zeros(1), np.sqrt(1 - task.memory**2)
    for step in range(steps):
        noise = task.memory * noise + fade * rng.standard_normal(1)
        part = max(0.1, task.noise * (1 - 2 * step / steps))  # explore less and less
        action = np.clip(agent.actor(state) * (step > 1000) + part * noise, -1, 1)
        after, reward, terminated, truncated, _ = env.step(task.bound * action)
        after = after / units
        buffer.add(state, action, task.scale * float(reward), after, terminated)
        state, score = after, score + float(reward)
        if terminated or truncated:
            curve.append((step + 1, score))
            state, score = env.reset()[0] / units, 0.0
        if step >= 1000:
            agent.learn(buffer.sample(BATCH), step)
        if step % 5000 == 4999:
            recent = np.mean([score for _, score in curve[-5:]])
            print(f"{task.name}, seed {seed}: step {step + 1:5d}, return {recent:7.1f}")
    return agent.actor, curve


def main() -> None:
    options = arguments(__doc__)
    tasks = [task for task in (PENDULUM, CAR) if not options.quick or QUICK[task.name]]
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    for axes, task in zip(panels, tasks, strict=False):
        for seed in (0,) if options.quick else (0, 1, 2):
            start = time.perf_counter()
            actor, curve = learn(task, seed, QUICK[task.name] if options.quick else task.steps)
            units = np.array(task.units, np.float32)
            scores = rl.episode_returns(
                gymnasium.make(task.name),
                lambda x, net=actor, t=task, u=units: t.bound * net(x / u),
                100,
                seed=1000 + seed,
            )
            print(f"{task.name}, seed {seed}: average of 100 episodes {scores.mean():.1f}", end=" ")
            print(f"(aim {task.solved}), {time.perf_counter() - start:.0f} s")
            draw_curve(axes, curve, seed, window=5)
        draw_aim(axes, task.solved, "solved")
        axes.set(title=f"TD3 on {task.name}")
        axes.legend(loc="lower right")
    save(figure, options.out, "td3.png")


if __name__ == "__main__":
    main()
