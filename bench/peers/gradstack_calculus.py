"""gradstack's calls, with and without `out=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradstack as gs
from bench import blackbox
from bench.calculus import Candidates, Problem
from bench.peers.gradstack_ import ACTIVATIONS
from gradstack import nn


def _net(problem: Problem) -> nn.Module:
    modules: list[nn.Module] = []
    for weight, bias in problem.layers:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        modules += [layer, ACTIVATIONS[problem.activation]()]
    return nn.Sequential(*modules[:-1])


def jacobian(problem: Problem) -> Candidates:
    """With respect to x."""
    net, x = _net(problem), problem.x
    out = np.empty((len(x), problem.outputs, x.shape[1]), np.float32)
    return {
        "gradstack": lambda: gs.jacobian(net, x, out=out),
        "gradstack, new array": lambda: gs.jacobian(net, x),
    }


def per_sample_grad(problem: Problem) -> Candidates:
    """Of the cross entropy."""
    net, cost, x, y = _net(problem), nn.CrossEntropyLoss(), problem.x, problem.labels
    out = np.empty((len(x), net.w.size), np.float32)
    return {
        "gradstack": lambda: gs.per_sample_grad(net, cost, x, y, out=out),
        "gradstack, new array": lambda: gs.per_sample_grad(net, cost, x, y),
    }


def per_sample_grad_norm(problem: Problem) -> Candidates:
    """Of the cross entropy, without the gradients."""
    net, cost = _net(problem), nn.CrossEntropyLoss()
    return {"gradstack": lambda: gs.per_sample_grad_norm(net, cost, problem.x, problem.labels)}


def hvp(problem: Problem) -> Candidates:
    """Of the average cross entropy."""
    net, cost = _net(problem), nn.CrossEntropyLoss()
    x, y, v = problem.x, problem.labels, problem.direction
    return {"gradstack": lambda: gs.hvp(net, cost, x, y, v)}


def population(problem: Problem) -> Candidates:
    """Average cross entropy of every member."""
    net, rows = _net(problem), blackbox.population(problem)
    objective = gs.blackbox.Objective(net, nn.CrossEntropyLoss(), problem.x, problem.labels)
    return {"gradstack": lambda: objective(rows)}


def gradient(problem: Problem) -> Callable[[], Any]:
    """Return the plain gradient that others are measured in."""
    net, cost = _net(problem), nn.CrossEntropyLoss()
    return lambda: gs.value_and_grad(net, cost, problem.x, problem.labels)
