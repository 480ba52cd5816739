"""gradstack: `fit` and `Trainer.step`."""

import itertools

import numpy as np
import numpy.typing as npt

import gradstack as gs
from bench.workloads import Task
from gradstack import nn, optim

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
COSTS = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


class Peer:
    """The library itself."""

    name = "gradstack"

    def __init__(self, task: Task) -> None:
        load = task.workload
        modules: list[nn.Module] = []
        for weight, bias in task.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            modules += [layer, ACTIVATIONS[load.activation]()]
        self.net = nn.Sequential(*modules[:-1])
        self.cost = COSTS[load.cost]()
        if load.optimizer == "adam":
            self.optimizer: optim.Optimizer = optim.Adam(lr=load.lr)
        else:
            self.optimizer = optim.SGD(lr=load.lr, momentum=0.9 * (load.optimizer == "momentum"))
        self.task = task
        if load.mode == "step":
            self.trainer = gs.Trainer(self.net, self.cost, self.optimizer)
            xs = np.split(task.x, load.batches)
            ys = np.split(task.y, load.batches)
            self.batches = itertools.cycle(list(zip(xs, ys, strict=True)))

    def run(self, steps: int) -> None:
        """Train."""
        load = self.task.workload
        if load.mode == "step":
            step = self.trainer.step
            for xb, yb in itertools.islice(self.batches, steps):
                step(xb, yb)
        else:
            gs.fit(
                self.net,
                self.task.x,
                self.task.y,
                cost=self.cost,
                optimizer=self.optimizer,
                batch_size=load.batch,
                epochs=steps // load.batches,
                shuffle=False,
                num_threads=self.task.threads,
            )

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [w for name, w in self.net.state_dict().items() if name.endswith("weight")]
