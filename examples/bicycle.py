"""A robot learns to ride a bicycle: twice, by trial and error and with a critic.

Lecture: "A robot on a bicycle: the cost is the time until it falls". Nothing tells the rider how
to steer; only the time upright is known. A zeroth-order search (`gs.blackbox`) changes the policy's
parameters and keeps what stays up longer. The actor-critic of ``td3.py`` also looks at what
happened in between: a critic learns what a state and an action are worth, and its gradient teaches
the actor.

The bicycle is the benchmark of Meijaard et al. (2007), see ``bicycle_env.py``: at 3 m/s it weaves
and falls within two seconds, pushed by gusts; 20 seconds without a fall are perfect.

Run it: ``python examples/bicycle.py [--quick] [--out FOLDER]`` (needs gymnasium).
"""

import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import td3
from bicycle_env import Bicycle
from common import Array, arguments, save
from rl_common import mlp

import gradstack as gs
from gradstack import nn, rl

UNITS = (0.1, 0.2, 0.5, 2.0)  # of the state: rad, rad, rad/s, rad/s
TASK = td3.Task("Bicycle-v0", UNITS, 1.0, 1.0, 0.99, 8000, 1.0, 0.5, Bicycle.LIMIT)
Curve = list[tuple[int, float]]


def search(seed: int, trials: int) -> tuple[nn.Module, Curve]:
    """Zeroth order: the policy, and the best time upright so far over steps made."""
    gs.seed(seed)
    env, curve, taken = Bicycle(), [(0, 0.0)], 0
    policy = nn.Sequential(mlp(4, 8, 1), nn.Tanh())

    def falls(w: Array) -> float:
        nonlocal taken
        policy.w = w
        upright = rl.episode_returns(env, lambda x: policy(x / units), 10, seed=seed).mean()
        taken += round(10 * upright / env.DT)
        curve.append((taken, max(float(upright), curve[-1][1])))
        return -float(upright)

    units = np.array(UNITS, np.float32)
    limits = {"maxfev": trials, "seed": seed, "target": -env.LIMIT + 1e-6}
    policy.w = gs.blackbox.minimize(falls, policy.w.copy(), **limits).x
    return policy, curve


def ride(policy: nn.Module | None, seed: int) -> tuple[Array, Array]:
    """One episode: states (T, 4) and the track (T, 3)."""
    env, units = Bicycle(), np.array(UNITS, np.float32)
    state, info = env.reset(seed=seed)
    states, track, ended = [state], [info["track"]], False
    while not ended:
        action = np.zeros(1) if policy is None else policy(state / units)
        state, _, terminated, truncated, info = env.step(action)
        states.append(state)
        track.append(info["track"])
        ended = terminated or truncated
    return np.array(states), np.array(track)


def draw_poses(axes: Any, states: Array, title: str) -> None:
    """The rider seen from behind, one pose every 0.2 s."""
    for k in range(0, min(len(states), 250), 10):
        lean = states[k, 0]
        x, tip = 0.1 * k, 1.6 * np.array([np.sin(3 * lean), np.cos(3 * lean)])
        color = "C3" if k + 10 >= len(states) else "C0"
        axes.plot([x, x + tip[0]], [0, tip[1]], color=color, linewidth=2.5)
        axes.plot(x + tip[0], tip[1], "o", color=color, markersize=5)
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set(title=title, xlim=(-1, 26), ylim=(-0.1, 2.0), aspect="equal", yticks=[])
    axes.set_xticks(5 * np.arange(6), [f"{k} s" for k in range(6)])
    axes.grid(visible=False)


def draw(policies: dict[str, nn.Module], curves: dict[str, list[Curve]]) -> Any:
    figure = plt.figure(figsize=(8.6, 6.4), layout="constrained")
    panels = figure.subplot_mosaic("AB;CC;DD;EF", height_ratios=[3, 1.3, 1.3, 2.4])
    for axes, (name, runs) in zip((panels["A"], panels["B"]), curves.items(), strict=True):
        for seed, run in enumerate(runs):
            steps, times = np.transpose(run)
            axes.plot(steps / 1e3, times, color=f"C{seed}", label=f"seed {seed}")
        axes.set(title=name, xlabel="thousand steps of the environment", ylabel="time upright (s)")
        axes.legend(loc="lower right")
    states, track = ride(policies["actor-critic"], seed=7)
    draw_poses(
        panels["C"],
        ride(None, seed=7)[0],
        "nobody steers: seen from behind, lean three times enlarged",
    )
    draw_poses(panels["D"], states, "learned by actor-critic, the same gusts")
    seconds = Bicycle.DT * np.arange(len(states))
    panels["E"].plot(seconds, np.degrees(states[:, 1]), label="steer", color="C1", linewidth=0.8)
    panels["E"].plot(seconds, np.degrees(states[:, 0]), label="lean", color="C0")
    panels["E"].set(xlabel="time (s)", ylabel="angle (degrees)", title="the same episode")
    panels["E"].legend(ncols=2)
    panels["F"].plot(track[:, 0], track[:, 1], color="C2")
    panels["F"].set(xlabel="x (m)", ylabel="y (m)", title="its track, seen from above")
    panels["F"].axis("equal")
    return figure


def main() -> None:
    options = arguments(__doc__)
    methods = {
        "zeroth order": lambda seed: search(seed, 60 if options.quick else 1500),
        "actor-critic": lambda seed: td3.learn(TASK, seed, 6000 if options.quick else TASK.steps),
    }
    curves: dict[str, list[Curve]] = {name: [] for name in methods}
    policies, units = {}, np.array(UNITS, np.float32)
    for name, learn in methods.items():
        for seed in (0,) if options.quick else (0, 1, 2):
            start = time.perf_counter()
            policies[name], curve = learn(seed)
            curves[name].append(curve)
            act = policies[name]
            upright = rl.episode_returns(Bicycle(), lambda x, act=act: act(x / units), 100, seed=99)
            print(
                f"{name}, seed {seed}: after {curve[-1][0]} steps {upright.mean():.2f} s", end=" "
            )
            print(f"upright in 100 new episodes (perfect: 20), {time.perf_counter() - start:.0f} s")
    save(draw(policies, curves), options.out, "bicycle.png")


if __name__ == "__main__":
    main()
