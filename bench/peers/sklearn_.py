"""scikit-learn's MLPClassifier and MLPRegressor."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier, MLPRegressor

from bench.peers import Call, Minibatches
from bench.workloads import Task

NEVER = 10**9  # epochs without improvement before it stops by itself


class Trainer:
    """`fit` of all epochs, or `partial_fit` on single batches where the caller owns the loop."""

    name: ClassVar[str] = "scikit-learn"

    def __init__(self, task: Task) -> None:
        load = task.workload
        # Its squared error is halved and summed over the outputs: the gradient is that of the mean
        # times this.
        scale = load.sizes[-1] / 2 if load.cost == "mse" else 1.0
        # It adds Adam's epsilon before the correction of the bias instead of after it: equal in the
        # middle of the checked steps.
        uncorrected = (1 - 0.999 ** (load.steps / 2)) ** 0.5
        adam = load.optimizer == "adam"
        model = MLPClassifier if load.cost == "cross_entropy" else MLPRegressor
        self.net = model(
            hidden_layer_sizes=load.sizes[1:-1],
            activation=load.activation,
            solver="adam" if adam else "sgd",
            alpha=0.0,
            batch_size=load.batch,
            learning_rate_init=load.lr if adam else load.lr / scale,
            epsilon=1e-8 * scale * uncorrected,
            shuffle=False,
            momentum=0.9 if load.optimizer == "momentum" else 0.0,
            nesterovs_momentum=False,
            n_iter_no_change=NEVER,
        )
        self.task = task
        first = {"classes": np.arange(load.sizes[-1])} if load.cost == "cross_entropy" else {}
        y: Any = task.y if load.cost == "cross_entropy" else self._target(task.y)
        self.y = y
        self.net.partial_fit(task.x[: load.batch], y[: load.batch], **first)
        self._restart()
        self.net.set_params(warm_start=load.mode == "fit")
        self.minibatches = Minibatches(load, task.x, y)

    @staticmethod
    def _target(y: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return y[:, 0] if y.shape[1] == 1 else y

    def _restart(self) -> None:
        """Go to the task's initial parameters; the estimator insists on drawing its own first."""
        for (weight, bias), w, b in zip(
            self.task.layers, self.net.coefs_, self.net.intercepts_, strict=True
        ):
            w[...] = weight.T
            b[...] = bias
        optimizer = self.net._optimizer
        for name in ("velocities", "ms", "vs"):
            for state in getattr(optimizer, name, []):
                state[...] = 0
        if hasattr(optimizer, "t"):
            optimizer.t = 0

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        load = self.task.workload
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if load.mode == "step":
                for xb, yb in self.minibatches.take(steps, shuffle):
                    self.net.partial_fit(xb, yb)
            else:
                self.net.set_params(max_iter=steps // load.steps, shuffle=shuffle)
                self.net.fit(self.task.x, self.y)

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [w.T.copy() for w in self.net.coefs_]


TRAINERS = [Trainer]


def forward(task: Task) -> dict[str, Call]:
    """Outputs of a regressor, whatever the net is for: a classifier gives probabilities."""
    load = task.workload
    net = MLPRegressor(
        hidden_layer_sizes=load.sizes[1:-1], activation=load.activation, batch_size=1
    )
    net.partial_fit(task.x[:1], np.zeros((1, load.sizes[-1]), np.float32))
    for (weight, bias), w, b in zip(task.layers, net.coefs_, net.intercepts_, strict=True):
        w[...], b[...] = weight.T, bias
    return {"scikit-learn": Call("predict(x)", {"predict": net.predict, "x": task.x})}
