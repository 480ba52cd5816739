"""JAX: a jitted step, and the whole epoch in one `lax.scan` where the library owns the loop."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bench.workloads import Task


class Peer:
    """Compiled by XLA; compilation is not timed."""

    name = "JAX"

    def __init__(self, task: Task) -> None:
        load = task.workload
        self.load = load
        parameters = [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers]
        # Two trees of zeros: the buffers are donated, so none may stand in the state twice.
        m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
        self.state: Any = (parameters, m, v, jnp.zeros(()))
        self.xs = jnp.asarray(task.x).reshape(load.batches, load.batch, -1)
        self.ys = jnp.asarray(task.y).reshape(load.batches, load.batch, *task.y.shape[1:])
        self.batches = itertools.cycle(list(zip(self.xs, self.ys, strict=True)))
        self.step = jax.jit(self._step, donate_argnums=0)
        self.epoch = jax.jit(
            lambda state, xs, ys: jax.lax.scan(
                lambda s, batch: (self._step(s, *batch), None), state, (xs, ys)
            )[0],
            donate_argnums=0,
        )

    def _cost(self, parameters: Any, x: Any, y: Any) -> Any:
        z = x
        for i, (w, b) in enumerate(parameters):
            z = z @ w.T + b
            if i + 1 < len(parameters):
                z = jax.nn.relu(z) if self.load.activation == "relu" else jnp.tanh(z)
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
        else:
            momentum = 0.9 if self.load.optimizer == "momentum" else 0.0
            m = jax.tree.map(lambda a, g: momentum * a + g, m, gradient)
            parameters = jax.tree.map(lambda p, a: p - lr * a, parameters, m)
        return parameters, m, v, t

    def run(self, steps: int) -> None:
        """Train."""
        if self.load.mode == "step":
            for xb, yb in itertools.islice(self.batches, steps):
                self.state = self.step(self.state, xb, yb)
        else:
            for _ in range(steps // self.load.batches):
                self.state = self.epoch(self.state, self.xs, self.ys)
        jax.block_until_ready(self.state)

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [np.array(w) for w, _ in self.state[0]]
