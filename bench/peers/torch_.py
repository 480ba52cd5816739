"""PyTorch: eager, eager with fused optimisers, and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bench.peers import Call, Minibatches
from bench.workloads import Task

Array = npt.NDArray[Any]
ACTIVATIONS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}


def sequential(layers: list[tuple[Array, Array]], activation: str) -> torch.nn.Sequential:
    """Return a net with these weights and biases."""
    modules: list[torch.nn.Module] = []
    for weight, bias in layers:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        modules += [layer, ACTIVATIONS[activation]()]
    return torch.nn.Sequential(*modules[:-1])


def build(task: Task) -> torch.nn.Sequential:
    """Return the task's net."""
    torch.set_num_threads(task.threads)
    return sequential(task.layers, task.workload.activation)


class Eager:
    """The loop every PyTorch tutorial has, with tensors and batches prepared in advance."""

    name: ClassVar[str] = "PyTorch eager"
    fused: ClassVar[bool] = False

    def __init__(self, task: Task) -> None:
        load = task.workload
        net = build(task)
        cost = torch.nn.CrossEntropyLoss() if load.cost == "cross_entropy" else torch.nn.MSELoss()
        self.net = net
        self.loss: Callable[..., Any] = lambda x, y: cost(net(x), y)
        parameters = net.parameters()
        options = {"fused": True} if self.fused else {}
        self.optimizer: torch.optim.Optimizer
        if load.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=load.lr, **options)
        else:
            momentum = 0.9 if load.optimizer == "momentum" else 0.0
            self.optimizer = torch.optim.SGD(parameters, lr=load.lr, momentum=momentum, **options)
        x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
        self.minibatches = Minibatches(load, x, y, torch.from_numpy)

    def run(self, steps: int, shuffle: bool = False) -> None:
        """Train."""
        loss, optimizer = self.loss, self.optimizer
        for xb, yb in self.minibatches.take(steps, shuffle):
            optimizer.zero_grad()
            loss(xb, yb).backward()
            optimizer.step()

    def weights(self) -> list[npt.NDArray[np.floating]]:
        """Weight matrices."""
        return [p.detach().numpy().copy() for p in self.net.parameters() if p.ndim > 1]


class Fused(Eager):
    """Of all parameters in one call of the optimiser."""

    name: ClassVar[str] = "PyTorch eager, fused"
    fused: ClassVar[bool] = True


class Compiled(Fused):
    """Net and cost, forward and backward, by torch.compile; compilation is not timed."""

    name: ClassVar[str] = "PyTorch compiled"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        warnings.filterwarnings("ignore", module=r"torch\.")
        torch.compiler.reset()
        self.loss = torch.compile(self.loss, dynamic=False)


TRAINERS = [Eager, Fused, Compiled]


def forward(task: Task) -> dict[str, Call]:
    """Without gradients, from a tensor to a tensor."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    net = build(task).eval().requires_grad_(False)
    x = torch.from_numpy(task.x if len(task.x) > 1 else task.x[0])
    torch.compiler.reset()
    compiled = torch.compile(net, dynamic=False)
    return {
        "PyTorch eager": Call("net(x)", {"net": net, "x": x}),
        "PyTorch compiled": Call("net(x)", {"net": compiled, "x": x}),
    }
