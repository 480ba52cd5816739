"""NumPy by hand: what one writes without a library. In float64 it is also the common reference."""

import itertools

import numpy as np
import numpy.typing as npt

from bench.workloads import Task

Array = npt.NDArray[np.floating]


class Peer:
    """Forward, backward and update written out."""

    name = "NumPy by hand"

    def __init__(self, task: Task, dtype: type[np.floating] = np.float32) -> None:
        self.load = task.workload
        self.parameters: list[Array] = [p.astype(dtype) for layer in task.layers for p in layer]
        self.m = [np.zeros_like(p) for p in self.parameters]
        self.v = [np.zeros_like(p) for p in self.parameters]
        self.t = 0
        xs = np.split(task.x.astype(dtype), self.load.batches)
        y = task.y if task.y.dtype.kind == "i" else task.y.astype(dtype)
        ys = np.split(y, self.load.batches)
        self.batches = itertools.cycle(list(zip(xs, ys, strict=True)))

    def run(self, steps: int) -> None:
        """Train."""
        for xb, yb in itertools.islice(self.batches, steps):
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
            else:
                m[...] = (0.9 if self.load.optimizer == "momentum" else 0.0) * m + g
                p[...] -= lr * m

    def weights(self) -> list[Array]:
        """Weight matrices."""
        return [p.copy() for p in self.parameters[::2]]
