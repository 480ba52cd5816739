"""What the examples of reinforcement learning share: small nets and learning curves."""

import itertools
from typing import Any

import numpy as np

from gradstack import nn


def mlp(*sizes: int, hidden: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of these sizes with `hidden` between them."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), hidden()]
    return nn.Sequential(*layers[:-1])


def draw_curve(axes: Any, episodes: Any, seed: int, window: int = 20) -> None:
    """Draw returns of training episodes, rows (step at the end, return), and their running mean."""
    steps, returns = np.transpose(episodes)
    smooth = np.convolve(returns, np.ones(window) / window, mode="valid")
    axes.plot(steps / 1e3, returns, ".", color=f"C{seed}", markersize=2, alpha=0.3)
    axes.plot(steps[window - 1 :] / 1e3, smooth, color=f"C{seed}", label=f"seed {seed}")


def draw_aim(axes: Any, value: float, text: str) -> None:
    """Draw a horizontal line with its meaning at the right edge."""
    axes.axhline(value, color="0.3", linestyle="--", linewidth=1, zorder=1)
    where = axes.get_yaxis_transform()
    axes.text(1.01, value, text, color="0.3", va="center", fontsize=8, transform=where)
    axes.set(xlabel="thousand steps of the environment", ylabel="return of an episode")
