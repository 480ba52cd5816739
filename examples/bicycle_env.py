"""The lecture's robot on a bicycle: a Gymnasium environment whose objective is time upright.

The Whipple bicycle: two knife-edge wheels, a frame with its rigid rider, and a front fork, rolling
without slip at a constant speed. The linearised equations of motion and the numbers of the
benchmark bicycle are those of Meijaard, Papadopoulos, Ruina & Schwab, "Linearized dynamics
equations for the balance and steer of a bicycle: a benchmark and review", Proc. R. Soc. A 463
(2007) 1955-1982:

    M q'' + v C1 q' + (g K0 + v^2 K2) q = f,   q = (lean, steer), f = (roll torque, steer torque).

At 3 m/s it weaves and falls in a second or two. The rider can only turn the handlebar, and must
steer towards the side it falls to; gusts push it sideways.
"""

import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

GRAVITY = 9.81  # m/s^2
MASS = np.array([[80.81722, 2.31941332208709], [2.31941332208709, 0.29784188199686]])
K0 = np.array([[-80.95, -2.59951685249872], [-2.59951685249872, -0.80329488458618]])
K2 = np.array([[0.0, 76.59734589573222], [0.0, 2.65431523794604]])
C1 = np.array([[0.0, 33.86641391492494], [-0.85035641456978, 1.68540397397560]])
WHEEL_BASE, TRAIL, TILT = 1.02, 0.08, np.pi / 10  # m, m, rad: the geometry of the ground track


def dynamics(speed: float) -> tuple[Array, Array]:
    """A and B of x' = A x + B f with x = (lean, steer, lean rate, steer rate)."""
    a, b = np.zeros((4, 4)), np.zeros((4, 2))
    a[:2, 2:] = np.eye(2)
    a[2:, :2] = -np.linalg.solve(MASS, GRAVITY * K0 + speed**2 * K2)
    a[2:, 2:] = -np.linalg.solve(MASS, speed * C1)
    b[2:] = np.linalg.inv(MASS)
    return a, b


def discrete(a: Array, b: Array, dt: float) -> tuple[Array, Array]:
    """The exact step over dt while f is constant, by squaring the exponential of a short one."""
    n = len(a)
    generator = np.zeros((n + b.shape[1],) * 2)
    generator[:n, :n], generator[:n, n:] = a * dt / 1024, b * dt / 1024
    step, term = np.eye(len(generator)), np.eye(len(generator))
    for k in range(1, 10):
        term = term @ generator / k
        step = step + term
    step = np.linalg.matrix_power(step, 1024)
    return step[:n, :n], step[:n, n:]


class Bicycle(gymnasium.Env[Array, Array]):
    """Keep a bicycle upright by turning its handlebar.

    Observation (4,): lean and steer (rad), lean rate and steer rate (rad/s). Action (1,): steer
    torque in units of `TORQUE`. Every step of `DT` seconds is worth `DT`: the return of an episode
    is the time upright. It ends where the lean passes 12 or the steer 45 degrees, and by
    truncation after `LIMIT` seconds. ``info["track"]`` is the rear contact point and heading.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)
    DT, LIMIT, SPEED = 0.02, 20.0, 3.0  # s, s, m/s
    TORQUE, GUST = 10.0, 30.0  # N m: largest steer torque, spread of the roll torque of gusts
    LEAN, STEER = np.radians(12.0), np.radians(45.0)  # rad: as far as linear equations go

    def __init__(self) -> None:
        high = np.array([np.pi, np.pi, 20.0, 60.0], np.float32)  # beyond what an episode reaches
        self.observation_space = gymnasium.spaces.Box(-high, high)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._a, self._b = discrete(*dynamics(self.SPEED), self.DT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start rolling, almost upright."""
        super().reset(seed=seed)
        self._x = self.np_random.normal(0.0, 0.03, 4)
        self._track, self._steps = (0.0, 0.0, 0.0), 0
        return self._x.astype(np.float32), {"track": self._track}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Hold a steer torque for `DT` seconds."""
        torque = self.TORQUE * min(max(float(action[0]), -1.0), 1.0)
        gust = self.GUST * self.np_random.standard_normal()
        self._x = self._a @ self._x + self._b @ np.array([gust, torque])
        self._steps += 1
        self._roll()
        fallen = bool(abs(self._x[0]) > self.LEAN or abs(self._x[1]) > self.STEER)
        over = not fallen and self._steps >= self.LIMIT / self.DT
        info = {"track": self._track}
        return self._x.astype(np.float32), self.DT, fallen, over, info

    def _roll(self) -> None:
        """Move the track on; the heading turns with the steer (the paper's appendix B)."""
        _, steer, _, rate = self._x.tolist()
        x, y, heading = self._track
        heading += self.DT * math.cos(TILT) * (self.SPEED * steer + TRAIL * rate) / WHEEL_BASE
        ahead = self.SPEED * self.DT
        self._track = (x + ahead * math.cos(heading), y + ahead * math.sin(heading), heading)


gymnasium.register("Bicycle-v0", "bicycle_env:Bicycle")
