"""Swing a pole up with a network as the model: exact Jacobians inside an MPC loop.

Lecture: "Backprop through a multi-stage graph". A trajectory is a stack of stages,
z[k+1] = z[k] + G(z[k], u[k], w). Every stage has one Jacobian with respect to its state and one
with respect to its input; those of the whole horizon come from one call.

A cart on rails carries a hanging pole; only the cart is pushed. A network learns one time step from
random transitions of a simulator. Model predictive control then plans on the network alone: Newton
steps on the pushes of the next two seconds, with Gauss's approximation of the Hessian (one backward
sweep of small linear systems), apply the first push to the simulator, plan again.

Run it: ``python examples/surrogate_mpc.py [--quick] [--out FOLDER]``.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save
from matplotlib.figure import Figure

import gradstack as gs
from gradstack import nn, optim
from gradstack.optim import schedules

DT, HORIZON = 0.04, 50  # s, steps
FORCE = 12.0  # N, the strongest push; a control u of +-1
STATE_WEIGHT = np.diag([0.5, 1.0, 0.01, 0.02])  # position, angle from upright, velocities
END_WEIGHT = 20 * STATE_WEIGHT
CONTROL_WEIGHT = 0.02


def simulate(z: Array, u: Array) -> Array:
    """One true step from the states z (B, 4) with the pushes u (B,), by Runge and Kutta."""

    def rate(z: Array) -> Array:
        cart, pole, half, gravity = 1.0, 0.2, 0.5, 9.81
        sine, cosine, spin = np.sin(z[:, 1]), np.cos(z[:, 1]), z[:, 3]
        push = (FORCE * u + pole * half * spin**2 * sine) / (cart + pole)
        bend = gravity * sine - cosine * push
        angular = bend / (half * (4 / 3 - pole * cosine**2 / (cart + pole)))
        linear = push - pole * half * angular * cosine / (cart + pole)
        return np.stack([z[:, 2], spin, linear, angular], axis=1)

    k1 = rate(z)
    k2 = rate(z + DT / 2 * k1)
    k3 = rate(z + DT / 2 * k2)
    return z + DT / 6 * (k1 + 2 * k2 + 2 * k3 + rate(z + DT * k3))


class Surrogate(nn.Module):
    """Change of the state in one step, from (position, angle, velocities, control)."""

    def __init__(self) -> None:
        super().__init__()
        self.m0, self.m1, self.m2 = nn.Linear(5, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x):
        """Angles enter by sine and cosine; where the cart is does not matter."""
        angle, velocities, control = x[1:2], x[2:4], x[4:5]
        z = gs.concat([gs.sine(angle), gs.sine(angle + np.pi / 2), velocities / 5, control])
        return self.m2(gs.tanh(self.m1(gs.tanh(self.m0(z)))))


def learn(rng: np.random.Generator, quick: bool) -> tuple[nn.Module, float]:
    """Train on random transitions; return the net and its error relative to the changes."""
    count, epochs, batch = (20000, 15, 128) if quick else (80000, 60, 128)
    highest = np.array([2.5, np.pi, 6.0, 12.0, 1.0])
    x = rng.uniform(-highest, highest, (count + 2000, 5))
    change = simulate(x[:, :4], x[:, 4]) - x[:, :4]
    scale = change.std(axis=0)
    net = Surrogate()
    lr = schedules.cosine(4e-3, epochs * (count // batch))
    data = {"cost": nn.SquaredError(), "batch_size": batch, "epochs": epochs}
    gs.fit(net, x[:count], change[:count] / scale, optimizer=optim.Adam(lr=lr), **data)
    error = np.sqrt(np.mean((net(x[count:]) - change[count:] / scale) ** 2))
    net.m2.weight *= scale[:, None]  # back to the units of the state
    net.m2.bias *= scale
    return net, float(error)


def roll(
    net: nn.Module, z: Array, u: Array, gains: Array | None = None, around: Array | None = None
) -> tuple[Array, Array, Array, float]:
    """Follow the model from z; with gains, correct the controls u by the distance to a path."""
    x = np.empty((HORIZON, 5), np.float32)
    zs = np.empty((HORIZON + 1, 4))
    zs[0], u = z, u.copy()
    for k in range(HORIZON):
        if gains is not None:
            u[k] += gains[k] @ (zs[k] - around[k])
        u[k] = min(max(u[k], -1.0), 1.0)
        x[k, :4], x[k, 4] = zs[k], u[k]
        zs[k + 1] = zs[k] + net(x[k])
    price = np.einsum("ki,ij,kj", zs[:-1], STATE_WEIGHT, zs[:-1]) + zs[-1] @ END_WEIGHT @ zs[-1]
    return x, zs, u, float(price + CONTROL_WEIGHT * u @ u)


def plan(net: nn.Module, z: Array, u: Array, rounds: int) -> tuple[Array, Array]:
    """Improve the controls of the horizon by Gauss-Newton steps; return them and their path."""
    x, zs, u, price = roll(net, z, u)
    for _ in range(rounds):
        jacobians = gs.jacobian(net, x).astype(float)  # (HORIZON, 4, 5)
        step, gains = np.zeros(HORIZON), np.zeros((HORIZON, 4))
        dz, hessian = END_WEIGHT @ zs[-1], END_WEIGHT  # of half the price still to come
        for k in reversed(range(HORIZON)):
            a, b = np.eye(4) + jacobians[k, :, :4], jacobians[k, :, 4]
            du = b @ dz + CONTROL_WEIGHT * u[k]
            duu = b @ hessian @ b + CONTROL_WEIGHT
            duz = b @ hessian @ a
            wanted = u[k] - du / duu
            step[k] = min(max(wanted, -1.0), 1.0) - u[k]
            if abs(wanted) < 1:  # at its limit a control does not react to the state
                gains[k] = -duz / duu
            dz = STATE_WEIGHT @ zs[k] + a.T @ dz + gains[k] * (du + duu * step[k]) + duz * step[k]
            hessian = STATE_WEIGHT + a.T @ hessian @ a - duu * np.outer(gains[k], gains[k])
        for part in (1.0, 0.5, 0.2, 0.05):
            trial = roll(net, z, u + part * step, gains, zs)
            if trial[3] < price:
                x, zs, u, price = trial
                break
        else:
            break  # no step is downhill any more
    return u, zs


def draw(path: Array, planned: Array, controls: Array) -> Figure:
    """Draw the swing-up as poses and over time."""
    figure = plt.figure(figsize=(7.6, 5.0), layout="constrained")
    top, left, right = figure.subplot_mosaic("AA;BC").values()
    for k in range(0, 60, 3):
        color, (x, angle) = plt.get_cmap("viridis")(k / 60), path[k, :2]
        top.plot((x, x + np.sin(angle)), (0, np.cos(angle)), color=color)
        top.plot(x, 0, "s", color=color, markersize=5)
    top.set(xlabel="position (m)", ylabel="height (m)", aspect="equal", xlim=(-3.4, 3.4))
    top.set_title(f"poses every {3 * DT:.2f} s, from dark (hanging) to light (upright)")
    seconds = DT * np.arange(len(path))
    left.plot(seconds, path[:, 1], label="angle (rad), 0 is upright")
    left.plot(seconds, path[:, 0], label="position (m)")
    left.plot(seconds[: len(planned)], planned[:, :2], "k--", lw=1, label="first plan, on the network")
    left.set(xlabel="time (s)", title="closed loop on the simulator")
    left.legend()
    right.step(seconds[:-1], FORCE * controls, where="post", color="C2")
    right.set(xlabel="time (s)", ylabel="force on the cart (N)", title="control")
    return figure


def main() -> None:
    """Learn the model, then control the simulator with it."""
    options = arguments(__doc__)
    gs.seed(0)
    rng = np.random.default_rng(0)
    net, error = learn(rng, options.quick)
    print(f"error of the model on new transitions {error:.4f} of their spread")
    path, controls, seconds = [np.array([0.0, np.pi, 0.0, 0.0])], [], []
    u, planned = plan(net, path[0], 0.3 * rng.standard_normal(HORIZON), rounds=100)
    for _ in range(100):
        start = time.perf_counter()
        u, _ = plan(net, path[-1], u, rounds=2)
        seconds.append(time.perf_counter() - start)
        controls.append(u[0])
        path.append(simulate(path[-1][None], u[0])[0])
        u = np.append(u[1:], u[-1])
    print(f"planning takes {1e3 * np.median(seconds):.1f} ms of every {1e3 * DT:.0f} ms")
    angles = np.abs(np.array(path)[:, 1])
    print(f"upright after {DT * (np.flatnonzero(angles > 0.2)[-1] + 1):.2f} s")
    print(f"angle in the last second at most {angles[-25:].max():.4f} rad")
    figure = draw(np.array(path), planned, np.array(controls))
    save(figure, options.out, "surrogate_mpc.png")


if __name__ == "__main__":
    main()
