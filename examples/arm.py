"""Learn how an arm moves, then steer it: gradients through a trained network to its input.

A planar arm with two joints. A network learns the position of the hand from random poses; to reach
a target, gradient descent changes the joint angles, not the weights.

Run it: ``python examples/arm.py``.
"""

import numpy as np

import gradstack as gs
from gradstack import nn, optim
from gradstack.optim import schedules

LENGTHS = (1.0, 0.7)


def hand(angles: np.ndarray) -> np.ndarray:
    """Return the true position of the hand, (B, 2), for joint angles (B, 2)."""
    first, both = angles[:, 0], angles[:, 0] + angles[:, 1]
    return np.stack(
        [
            LENGTHS[0] * np.cos(first) + LENGTHS[1] * np.cos(both),
            LENGTHS[0] * np.sin(first) + LENGTHS[1] * np.sin(both),
        ],
        axis=1,
    )


def learn(rng: np.random.Generator) -> nn.Module:
    """Train a model of the arm on poses drawn at random."""
    angles = rng.uniform([-1.5, 0.2], [1.5, 2.8], (20000, 2))
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    epochs, batch = 40, 100
    gs.fit(
        net,
        angles,
        hand(angles),
        cost=nn.SquaredError(),
        optimizer=optim.Adam(lr=schedules.cosine(0.01, epochs * len(angles) // batch)),
        batch_size=batch,
        epochs=epochs,
    )
    return net


def reach(net: nn.Module, targets: np.ndarray) -> np.ndarray:
    """Find joint angles whose predicted hand positions are at the targets, all at once."""
    angles = np.tile([0.0, 1.5], (len(targets), 1))
    for _ in range(300):
        positions, pullback = gs.vjp(net, angles)
        gradient, _ = pullback(positions - targets)
        angles -= 0.3 * gradient
    return angles


def main() -> None:
    """Train, reach, and measure with the true arm where the hand ended up."""
    gs.seed(0)
    rng = np.random.default_rng(0)
    net = learn(rng)
    targets = hand(rng.uniform([-1.2, 0.5], [1.2, 2.4], (200, 2)))
    misses = np.linalg.norm(hand(reach(net, targets)) - targets, axis=1)
    print(f"median miss {np.median(misses):.4f}, worst {misses.max():.4f} (arm length 1.7)")


if __name__ == "__main__":
    main()
