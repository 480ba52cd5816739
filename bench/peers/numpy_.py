"""NumPy by hand: what one writes without a library. In float64 it is also the common reference."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bench.peers import Call, Minibatches
from bench.workloads import Task

Array = npt.NDArray[np.floating]


class Trainer:
    """Forward, backward and update written out."""

    name: ClassVar[str] = "NumPy by hand"

    def __init__(self, task: Task, dtype: type[np.floating] = np.float32) -> None:
        self.load = task.workload
        self.parameters: list[Array] = [p.astype(dtype) for layer in task.layers for p in layer]
        self.m = [np.zeros_like(p) for p in self.parameters]
        self.v = [np.zeros_like(p) for p in self.parameters]
        self.t = 0
        y = task.y if task.y.dtype.kind == "i" else task.y.astype(dtype)
        self.minibatches = Minibatches(self.load, task.x.astype(dtype), y)

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        for xb, yb in self.minibatches.take(steps, shuffle):
            self.update(self.gradient(xb, yb))

    def gradient(self, x: Array, y: npt.NDArray[np.generic]) -> list[Array]:
        """Gradient of the average cost of a batch."""
        weights, biases = self.parameters[::2], self.parameters[1::2]
        zs = [x]
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            s = zs[-1] @ w.T + b
            if i + 1 < len(weights):
                s = np.maximum(s, 0) if self.load.activation == "relu" else np.tanh(s)
            zs.append(s)
        if self.load.cost == "cross_entropy":
            e = np.exp(zs[-1] - zs[-1].max(1, keepdims=True))
            ds = e / e.sum(1, keepdims=True)
            ds[np.arange(len(y)), y] -= 1
            ds /= len(y)
        else:
            ds = 2 * (zs[-1] - y) / zs[-1].size
        gradients: list[Array] = []
        for i in reversed(range(len(weights))):
            gradients += [ds.sum(0), ds.T @ zs[i]]
            if i:
                z = zs[i]
                ds = (ds @ weights[i]) * (z > 0 if self.load.activation == "relu" else 1 - z * z)
        return gradients[::-1]

    def update(self, gradients: list[Array]) -> None:
        """SGD with momentum, or Adam, by PyTorch's formulas, in place."""
        self.t += 1
        lr = self.load.lr
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            if self.load.optimizer == "adam":
                m[...] += 0.1 * (g - m)
                v[...] += 0.001 * (g * g - v)
                denominator = np.sqrt(v / (1 - 0.999**self.t)) + 1e-8
                p[...] -= lr / (1 - 0.9**self.t) * m / denominator
            elif self.load.optimizer == "momentum":
                m[...] = 0.9 * m + g
                p[...] -= lr * m
            else:
                p[...] -= lr * g

    def weights(self) -> list[Array]:
        """Weight matrices."""
        return [p.copy() for p in self.parameters[::2]]


TRAINERS = [Trainer]


def predict(task: Task, dtype: type[np.floating]) -> Array:
    """Return what the net gives for all rows."""
    z = task.x.astype(dtype)
    for i, (w, b) in enumerate(task.layers):
        z = z @ w.astype(dtype).T + b.astype(dtype)
        if i + 1 < len(task.layers):
            z = np.maximum(z, 0) if task.workload.activation == "relu" else np.tanh(z)
    return z


def forward(task: Task) -> dict[str, Call]:
    """In one expression, from weights transposed in advance."""
    names = {"x": task.x if len(task.x) > 1 else task.x[0], "maximum": np.maximum, "tanh": np.tanh}
    expression = "x"
    for i, (w, b) in enumerate(task.layers):
        names[f"w{i}"], names[f"b{i}"] = np.ascontiguousarray(w.T), b
        expression = f"{expression} @ w{i} + b{i}"
        if i + 1 < len(task.layers):
            relu = task.workload.activation == "relu"
            expression = f"maximum({expression}, 0)" if relu else f"tanh({expression})"
    return {"NumPy by hand": Call(expression, names)}
