"""gradstack: `fit`, `Trainer.step`, and calls of a net."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

import gradstack as gs
from bench.peers import Call, Minibatches
from bench.workloads import Task
from gradstack import nn, optim

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
COSTS = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


def build(task: Task) -> nn.Sequential:
    """Return the task's net."""
    modules: list[nn.Module] = []
    for weight, bias in task.layers:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        modules += [layer, ACTIVATIONS[task.workload.activation]()]
    return nn.Sequential(*modules[:-1])


class Trainer:
    """The library itself, which chooses how many of the allowed threads it uses."""

    name: ClassVar[str] = "gradstack"

    def __init__(self, task: Task) -> None:
        load = task.workload
        self.net = build(task)
        self.cost = COSTS[load.cost]()
        if load.optimizer == "adam":
            self.optimizer: optim.Optimizer = optim.Adam(lr=load.lr)
        else:
            self.optimizer = optim.SGD(lr=load.lr, momentum=0.9 * (load.optimizer == "momentum"))
        self.task = task
        if load.mode == "step":
            self.trainer = gs.Trainer(self.net, self.cost, self.optimizer)
            self.minibatches = Minibatches(load, task.x, task.y)

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        load = self.task.workload
        if load.mode == "step":
            step = self.trainer.step
            for xb, yb in self.minibatches.take(steps, shuffle):
                step(xb, yb)
        else:
            gs.fit(
                self.net,
                self.task.x,
                self.task.y,
                cost=self.cost,
                optimizer=self.optimizer,
                batch_size=load.batch,
                epochs=steps // load.steps,
                shuffle=shuffle,
            )

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [w for name, w in self.net.state_dict().items() if name.endswith("weight")]


TRAINERS = [Trainer]


def forward(task: Task) -> dict[str, Call]:
    """With and without `out=`."""
    net, x = build(task), task.x
    out = np.empty((len(x), task.workload.sizes[-1]), np.float32)
    if len(x) == 1:
        x, out = x[0], out[0]
    return {
        "gradstack": Call("net(x)", {"net": net, "x": x}),
        "gradstack, out=": Call("net(x, out=out)", {"net": net, "x": x, "out": out}),
    }
