"""torch.func, eager and compiled; its threads are those of OMP_NUM_THREADS."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from bench import blackbox
from bench.calculus import Candidates, Problem

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
Layers = list[tuple[torch.Tensor, torch.Tensor]]


def _parts(problem: Problem) -> tuple[Callable[..., Any], Layers, torch.Tensor, torch.Tensor]:
    """Return the network as a function of (layers, x), the layers, x and the labels."""
    h = ACTIVATIONS[problem.activation]

    def net(layers: Layers, x: torch.Tensor) -> torch.Tensor:
        for w, b in layers[:-1]:
            x = h(torch.nn.functional.linear(x, w, b))
        return torch.nn.functional.linear(x, *layers[-1])

    layers = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in problem.layers]
    return net, layers, torch.from_numpy(problem.x), torch.from_numpy(problem.labels)


def _both(name: str, function: Callable[..., Any], *arguments: Any) -> Candidates:
    """Eager and compiled."""
    warnings.filterwarnings("ignore", module=r"torch\.")
    compiled = torch.compile(function)
    return {
        f"torch.func, {name}": lambda: function(*arguments),
        f"torch.func, {name} compiled": lambda: compiled(*arguments),
    }


def jacobian(problem: Problem) -> Candidates:
    """With respect to x, in both modes."""
    net, layers, x, _ = _parts(problem)
    found: Candidates = {}
    for mode in (jacrev, jacfwd):
        found |= _both(mode.__name__, vmap(mode(net, 1), (None, 0)), layers, x)
    return found


def _loss(net: Callable[..., Any]) -> Callable[..., Any]:
    return lambda layers, x, y: torch.nn.functional.cross_entropy(net(layers, x), y)


def per_sample_grad(problem: Problem) -> Candidates:
    """Of the cross entropy."""
    net, layers, x, y = _parts(problem)
    return _both("vmap(grad)", vmap(grad(_loss(net)), (None, 0, 0)), layers, x, y)


def per_sample_grad_norm(problem: Problem) -> Candidates:
    """From the gradients."""
    net, layers, x, y = _parts(problem)
    gradients = vmap(grad(_loss(net)), (None, 0, 0))

    def norms(layers: Layers, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts = [p for layer in gradients(layers, x, y) for p in layer]
        return torch.sqrt(sum((p * p).flatten(1).sum(1) for p in parts))

    return _both("vmap(grad)", norms, layers, x, y)


def hvp(problem: Problem) -> Candidates:
    """Forward over reverse."""
    net, layers, x, y = _parts(problem)
    v = torch.from_numpy(problem.direction).split([p.numel() for layer in layers for p in layer])
    tangents = [(a.view_as(w), c) for (w, _), a, c in zip(layers, v[::2], v[1::2], strict=True)]
    gradient = grad(lambda layers: _loss(net)(layers, x, y))

    def product() -> list[torch.Tensor]:
        _, rows = jvp(gradient, (layers,), (tangents,))
        return torch.cat([p.flatten() for layer in rows for p in layer])[:, None]

    return {"torch.func, jvp(grad)": product}


def population(problem: Problem) -> Candidates:
    """Average cross entropy of every member."""
    _, _, x, y = _parts(problem)
    modules: list[torch.nn.Module] = []
    for w, _ in problem.layers:
        modules += [torch.nn.Linear(w.shape[1], w.shape[0]), torch.nn.Tanh()]
    net = torch.nn.Sequential(*modules[:-1])
    stacked = blackbox.unpack(problem, blackbox.population(problem))
    parts = [torch.from_numpy(part.copy()) for layer in stacked for part in layer]
    members = dict(zip((name for name, _ in net.named_parameters()), parts, strict=True))

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(net, parameters, (x,)), y)

    def losses(members: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return vmap(loss)(members)

    return _both("vmap(functional_call)", losses, members)
