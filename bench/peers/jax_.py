"""JAX: a jitted step, and whole epochs in `lax.scan`."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bench.peers import Call, Minibatches, UnsupportedError
from bench.workloads import Task, Workload


def _parameters(task: Task) -> list[Any]:
    return [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers]


def net(load: Workload, parameters: Any, x: Any) -> Any:
    """Return the outputs."""
    h = jax.nn.relu if load.activation == "relu" else jnp.tanh
    for w, b in parameters[:-1]:
        x = h(x @ w.T + b)
    w, b = parameters[-1]
    return x @ w.T + b


class Jit:
    """One step compiled by XLA, called from Python; compilation is not timed."""

    name: ClassVar[str] = "JAX jit"

    def __init__(self, task: Task) -> None:
        self.load = task.workload
        parameters = _parameters(task)
        # Two trees of zeros: the buffers are donated, so none may stand in the state twice.
        m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        self.state: Any = (parameters, m, v, jnp.zeros(()))
        self._prepare(jnp.asarray(task.x), jnp.asarray(task.y))

    def _prepare(self, x: Any, y: Any) -> None:
        self.minibatches = Minibatches(self.load, x, y)
        self.step = jax.jit(self._step, donate_argnums=0)

    def _cost(self, parameters: Any, x: Any, y: Any) -> Any:
        z = net(self.load, parameters, x)
        if self.load.cost == "cross_entropy":
            return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).mean()
        return ((z - y) ** 2).mean()

    def _step(self, state: Any, x: Any, y: Any) -> Any:
        parameters, m, v, t = state
        gradient = jax.grad(self._cost)(parameters, x, y)
        t = t + 1
        lr = self.load.lr
        if self.load.optimizer == "adam":
            m = jax.tree.map(lambda a, g: a + 0.1 * (g - a), m, gradient)
            v = jax.tree.map(lambda a, g: a + 0.001 * (g * g - a), v, gradient)
            parameters = jax.tree.map(
                lambda p, a, c: p - lr / (1 - 0.9**t) * a / (jnp.sqrt(c / (1 - 0.999**t)) + 1e-8),
                parameters,
                m,
                v,
            )
        elif self.load.optimizer == "momentum":
            m = jax.tree.map(lambda a, g: 0.9 * a + g, m, gradient)
            parameters = jax.tree.map(lambda p, a: p - lr * a, parameters, m)
        else:
            parameters = jax.tree.map(lambda p, g: p - lr * g, parameters, gradient)
        return parameters, m, v, t

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        for xb, yb in self.minibatches.take(steps, shuffle):
            self.state = self.step(self.state, xb, yb)
        jax.block_until_ready(self.state)

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [np.array(w) for w, _ in self.state[0]]


class Scan(Jit):
    """All epochs, shuffling included, in one compiled call."""

    name: ClassVar[str] = "JAX scan"

    def _prepare(self, x: Any, y: Any) -> None:
        if self.load.mode != "fit":
            raise UnsupportedError("lax.scan owns the loop")
        self.x, self.y, self.key = x, y, jax.random.key(0)
        self.train = jax.jit(self._train, static_argnums=2, donate_argnums=0)

    def _epoch(self, state: Any, x: Any, y: Any, order: Any) -> Any:
        size = self.load.batch
        whole = self.load.samples // size

        def step(state: Any, i: Any) -> Any:
            if order is None:
                xb, yb = (jax.lax.dynamic_slice_in_dim(a, i * size, size) for a in (x, y))
            else:
                rows = jax.lax.dynamic_slice_in_dim(order, i * size, size)
                xb, yb = x[rows], y[rows]
            return self._step(state, xb, yb), None

        state = jax.lax.scan(step, state, jnp.arange(whole))[0]
        if whole < self.load.steps:
            rows = slice(whole * size, None)
            rest = (x[rows], y[rows]) if order is None else (x[order[rows]], y[order[rows]])
            state = self._step(state, *rest)
        return state

    def _train(self, state: Any, key: Any, shuffle: bool, x: Any, y: Any, epochs: Any) -> Any:
        def epoch(_: Any, carry: Any) -> Any:
            state, key = carry
            order = None
            if shuffle:
                key, now = jax.random.split(key)
                order = jax.random.permutation(now, len(x))
            return self._epoch(state, x, y, order), key

        return jax.lax.fori_loop(0, epochs, epoch, (state, key))

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        epochs = steps // self.load.steps
        self.state, self.key = self.train(self.state, self.key, shuffle, self.x, self.y, epochs)
        jax.block_until_ready(self.state)


TRAINERS = [Jit, Scan]


def forward(task: Task) -> dict[str, Call]:
    """From a JAX array to a JAX array that is ready."""
    parameters = _parameters(task)
    function = jax.jit(lambda x: net(task.workload, parameters, x))
    x = jnp.asarray(task.x if len(task.x) > 1 else task.x[0])
    return {"JAX jit": Call("f(x).block_until_ready()", {"f": function, "x": x})}
