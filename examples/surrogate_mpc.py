"""Swing a pole up with a network as the model: exact Jacobians inside an MPC loop.

Lecture: "Backprop through a multi-stage graph". A trajectory is a stack of stages,
z[k+1] = z[k] + G(z[k], u[k], w). Every stage has one Jacobian with respect to its state and one
with respect to its input; those of the whole horizon come from one call.

A cart carries a hanging pole; only the cart is pushed. A network learns one time step from random
transitions of a simulator. Model predictive control plans two seconds on the network alone, by
Gauss-Newton steps on all controls, applies the first control to the simulator, and plans again.

Run it: ``python examples/surrogate_mpc.py [--quick] [--out FOLDER]``.
"""

import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim

DT, HORIZON = 0.04, 50  # s, steps
FORCE = 12.0  # N, the strongest push; a control u of +-1
STATE_WEIGHT = np.diag([0.5, 1.0, 0.01, 0.02])  # position, angle from upright, velocities
END_WEIGHT, CONTROL_WEIGHT = 20 * STATE_WEIGHT, 0.02


def simulate(z: Array, u: Array) -> Array:
    """One true step from the states z (B, 4) with the controls u (B,): four of Euler's."""
    cart, pole, half, gravity = 1.0, 0.2, 0.5, 9.81  # kg, kg, m, m/s²
    for _ in range(4):
        sine, cosine = np.sin(z[:, 1]), np.cos(z[:, 1])
        push = (FORCE * u + pole * half * z[:, 3] ** 2 * sine) / (cart + pole)
        slack = half * (4 / 3 - pole * cosine**2 / (cart + pole))
        angular = (gravity * sine - cosine * push) / slack
        linear = push - pole * half * angular * cosine / (cart + pole)
        rates = z[:, 2:] + DT / 4 * np.stack([linear, angular], axis=1)
        z = np.hstack([z[:, :2] + DT / 4 * rates, rates])
    return z


class Surrogate(nn.Module):
    """Change of the state in one step; angles enter by sine and cosine, the position not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.m0, self.m1, self.m2 = nn.Linear(5, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Any) -> Any:
        """From (position, angle, velocities, control)."""
        angle, velocities, control = x[1:2], x[2:4], x[4:5]
        z = gs.concat([gs.sine(angle), gs.sine(angle + np.pi / 2), velocities / 5, control])
        return self.m2(gs.tanh(self.m1(gs.tanh(self.m0(z)))))


def learn(rng: np.random.Generator, quick: bool) -> nn.Module:
    """Train a model of the simulator on random transitions."""
    count, epochs, batch = (40000, 30, 128) if quick else (80000, 60, 128)
    x = rng.uniform(-1, 1, (count + 2000, 5)) * (2.5, np.pi, 6.0, 12.0, 1.0)
    change = simulate(x[:, :4], x[:, 4]) - x[:, :4]
    scale = change.std(axis=0)
    net, lr = Surrogate(), optim.schedules.cosine(4e-3, epochs * (count // batch))
    how = {"optimizer": optim.Adam(lr=lr), "batch_size": batch, "epochs": epochs}
    gs.fit(net, x[:count], change[:count] / scale, cost=nn.SquaredError(), **how)
    off = net(x[count:]) - change[count:] / scale
    print(f"error of the model on new transitions {np.sqrt(np.mean(off**2)):.4f} of their spread")
    net.m2.weight *= scale[:, None]  # back to the units of the state
    net.m2.bias *= scale
    return net


def roll(net: nn.Module, z: Array, u: Array, gains: Array, around: Array) -> tuple[Any, ...]:
    """Follow the model from z; gains correct the controls u by the distance to another path."""
    x, zs, u = np.empty((HORIZON, 5), np.float32), np.empty((HORIZON + 1, 4)), u.copy()
    zs[0] = z
    for k in range(HORIZON):
        u[k] = min(max(u[k] + gains[k] @ (zs[k] - around[k]), -1.0), 1.0)
        x[k, :4], x[k, 4] = zs[k], u[k]
        zs[k + 1] = zs[k] + net(x[k])
    price = np.einsum("ki,ij,kj", zs[:-1], STATE_WEIGHT, zs[:-1]) + zs[-1] @ END_WEIGHT @ zs[-1]
    return x, zs, u, price + CONTROL_WEIGHT * u @ u


def plan(net: nn.Module, z: Array, u: Array, rounds: int) -> Array:
    """Improve the controls of the horizon by Gauss-Newton steps."""
    step, gains = np.zeros(HORIZON), np.zeros((HORIZON, 4))  # no feedback yet
    x, zs, u, price = roll(net, z, u, gains, gains)
    for _ in range(rounds):
        jacobians = gs.jacobian(net, x).astype(float)  # (HORIZON, 4, 5)
        dz, hessian = END_WEIGHT @ zs[-1], END_WEIGHT  # of half the price still to come
        for k in reversed(range(HORIZON)):
            a, b = np.eye(4) + jacobians[k, :, :4], jacobians[k, :, 4]
            du = b @ dz + CONTROL_WEIGHT * u[k]
            duu, duz = b @ hessian @ b + CONTROL_WEIGHT, b @ hessian @ a
            wanted = u[k] - du / duu
            step[k] = min(max(wanted, -1.0), 1.0) - u[k]
            gains[k] = -duz / duu * (abs(wanted) < 1)  # a control at its limit cannot react
            dz = STATE_WEIGHT @ zs[k] + a.T @ dz + gains[k] * (du + duu * step[k]) + duz * step[k]
            hessian = STATE_WEIGHT + a.T @ hessian @ a - duu * np.outer(gains[k], gains[k])
        for part in (1.0, 0.5, 0.2, 0.05):
            trial = roll(net, z, u + part * step, gains, zs)
            if trial[3] < price:
                break
        else:
            return u  # no step is downhill any more
        x, zs, u, price = trial
    return u


def draw(path: Array, controls: Array) -> Any:
    figure = plt.figure(figsize=(7.6, 5.0), layout="constrained")
    top, left, right = figure.subplot_mosaic("AA;BC").values()
    for k in range(0, 60, 3):
        color, (x, angle) = plt.get_cmap("viridis")(k / 60), path[k, :2]
        top.plot((x, x + np.sin(angle)), (0, np.cos(angle)), color=color)
        top.plot(x, 0, "s", color=color, markersize=5)
    top.set(xlabel="position (m)", ylabel="height (m)", aspect="equal", xlim=(-2.6, 2.6))
    top.set_title("poses every 0.12 s, from dark (hanging) to light (upright)")
    seconds = DT * np.arange(len(path))
    left.plot(seconds, path[:, :2], label=("position (m)", "angle (rad), 0 is upright"))
    left.set(xlabel="time (s)", title="closed loop on the simulator")
    left.legend()
    right.step(seconds[:-1], FORCE * controls, where="post", color="C2")
    right.set(xlabel="time (s)", ylabel="force on the cart (N)", title="control")
    return figure


def main() -> None:
    options = arguments(__doc__)
    gs.seed(0)
    net = learn(np.random.default_rng(0), options.quick)
    path, controls = np.zeros((101, 4)), np.zeros(100)
    path[0, 1] = np.pi  # hanging
    u = plan(net, path[0], np.zeros(HORIZON), rounds=100)
    start = time.perf_counter()
    for k in range(100):
        u = plan(net, path[k], u, rounds=2)
        controls[k], path[k + 1] = u[0], simulate(path[k : k + 1], u[0])[0]
        u = np.append(u[1:], u[-1])
    print(f"planning takes {10 * (time.perf_counter() - start):.1f} ms of every {1e3 * DT:.0f} ms")
    angles = np.abs(path[:, 1])
    print(f"upright after {DT * (np.flatnonzero(angles > 0.2)[-1] + 1):.2f} s")
    print(f"angle in the last second at most {angles[-25:].max():.4f} rad")
    save(draw(path, controls), options.out, "surrogate_mpc.png")


if __name__ == "__main__":
    main()
