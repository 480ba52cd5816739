"""scikit-learn's MLPClassifier and MLPRegressor."""

import itertools
import warnings

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier, MLPRegressor

from bench.peers import UnsupportedError
from bench.workloads import Task


class Peer:
    """`partial_fit` on whole epochs, or on single batches where the caller owns the loop."""

    name = "scikit-learn"

    def __init__(self, task: Task) -> None:
        load = task.workload
        if load.cost == "mse" and load.sizes[-1] != 2:
            raise UnsupportedError(
                "its squared error is halved and summed: equal at two outputs only"
            )
        model = MLPClassifier if load.cost == "cross_entropy" else MLPRegressor
        self.net = model(
            hidden_layer_sizes=load.sizes[1:-1],
            activation=load.activation,
            solver="adam" if load.optimizer == "adam" else "sgd",
            alpha=0.0,
            batch_size=load.batch,
            learning_rate_init=load.lr,
            shuffle=False,
            momentum=0.9 if load.optimizer == "momentum" else 0.0,
            nesterovs_momentum=False,
        )
        self.task = task
        self.arguments = {}
        if load.cost == "cross_entropy":
            self.arguments["classes"] = np.arange(load.sizes[-1])
        self.net.partial_fit(task.x[: load.batch], task.y[: load.batch], **self.arguments)
        self._restart()
        xs = np.split(task.x, load.batches)
        ys = np.split(task.y, load.batches)
        self.batches = itertools.cycle(list(zip(xs, ys, strict=True)))

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

    def run(self, steps: int) -> None:
        """Train."""
        load = self.task.workload
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if load.mode == "step":
                for xb, yb in itertools.islice(self.batches, steps):
                    self.net.partial_fit(xb, yb)
            else:
                for _ in range(steps // load.batches):
                    self.net.partial_fit(self.task.x, self.task.y)

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [w.T.copy() for w in self.net.coefs_]
