"""PyTorch, eager mode."""

import itertools

import numpy as np
import numpy.typing as npt
import torch

from bench.workloads import Task


class Peer:
    """The loop every PyTorch tutorial has, with tensors and batches prepared in advance."""

    name = "PyTorch eager"

    def __init__(self, task: Task) -> None:
        load = task.workload
        torch.set_num_threads(task.threads)
        modules: list[torch.nn.Module] = []
        for weight, bias in task.layers:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
            modules += [layer, torch.nn.ReLU() if load.activation == "relu" else torch.nn.Tanh()]
        self.net = torch.nn.Sequential(*modules[:-1])
        self.cost = (
            torch.nn.CrossEntropyLoss() if load.cost == "cross_entropy" else torch.nn.MSELoss()
        )
        parameters = self.net.parameters()
        self.optimizer: torch.optim.Optimizer
        if load.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=load.lr)
        else:
            momentum = 0.9 if load.optimizer == "momentum" else 0.0
            self.optimizer = torch.optim.SGD(parameters, lr=load.lr, momentum=momentum)
        xs = torch.from_numpy(task.x).split(load.batch)
        ys = torch.from_numpy(task.y).split(load.batch)
        self.batches = itertools.cycle(list(zip(xs, ys, strict=True)))

    def run(self, steps: int) -> None:
        """Train."""
        for xb, yb in itertools.islice(self.batches, steps):
            self.optimizer.zero_grad()
            self.cost(self.net(xb), yb).backward()
            self.optimizer.step()

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [p.detach().numpy().copy() for p in self.net.parameters() if p.ndim > 1]
