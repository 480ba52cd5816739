"""What tests of devices share: tolerances, comparisons with the CPU, costs with their targets."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

import gradstack as gs
from gradstack import nn, optim

Array = np.ndarray

# Agreement with the CPU: float32 sums in another order.
RTOL, ATOL = 2e-4, 2e-5


def close(got: Any, expected: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(got, expected, rtol=RTOL * scale, atol=ATOL * scale)


def close_to_exact(got: Any, expected: Any, tolerance: float = 2e-4) -> None:
    """Agreement of float32 with float64, relative to the largest entry."""
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    size = float(np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * size + 1e-6)


def on(device: str, net: nn.Module) -> nn.Module:
    return net.copy().to(device)


COSTS = {
    "squared": (nn.SquaredError(), "dense"),
    "mse sum": (nn.MSELoss(reduction="sum"), "dense"),
    "l1": (nn.L1Loss(), "dense"),
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), "dense"),
    "huber": (nn.HuberLoss(delta=0.3), "dense"),
    "cross entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), "label"),
    "weighted": (nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0, 0.25]), "label"),
    "cross entropy of probabilities": (nn.CrossEntropyLoss(), "probability"),
    "nll": (nn.NLLLoss(weight=[0.5, 2.0, 1.0, 0.25]), "label"),
    "bce": (nn.BCEWithLogitsLoss(), "unit"),
    "poisson": (nn.PoissonNLLLoss(full=True), "unit"),
    "gaussian": (nn.GaussianNLLLoss(), "half"),
    "kl": (nn.KLDivLoss(), "probability"),
    "hinge": (nn.HingeEmbeddingLoss(), "sign"),
    "quantile": (nn.QuantileLoss(0.3), "dense"),
}


def target(kind: str, n: int, rng: np.random.Generator) -> Array:
    dense = rng.normal(size=(n, 4)).astype(np.float32)
    if kind == "label":
        return rng.integers(0, 4, n)
    if kind == "unit":
        return rng.random((n, 4)).astype(np.float32)
    if kind == "probability":
        e = np.exp(dense)
        return e / e.sum(axis=1, keepdims=True)
    if kind == "half":
        return dense[:, :2]
    return np.sign(dense) if kind == "sign" else dense


def compare(device: str, net: nn.Module, xs: tuple[Array, ...], rng: np.random.Generator) -> None:
    """Values and reverse-mode derivatives of a net on both devices."""
    other = on(device, net)
    x = xs if len(xs) > 1 else xs[0]
    y, pullback = gs.vjp(net, x)
    z, other_pullback = gs.vjp(other, x)
    several = isinstance(y, tuple)
    for a, b in zip(y if several else (y,), z if several else (z,), strict=True):
        close(b, a)
    call, other_call = net(*xs), other(*xs)
    for a, b in zip(*((c if several else (c,)) for c in (call, other_call)), strict=True):
        close(b, a)
    dy = [rng.normal(size=a.shape).astype(np.float32) for a in (y if several else (y,))]
    for _ in range(2):  # a pullback can be called again
        dx, dw = pullback(tuple(dy) if several else dy[0])
        dx2, dw2 = other_pullback(tuple(dy) if several else dy[0])
        many = isinstance(dx, tuple)
        for a, b in zip(dx if many else (dx,), dx2 if many else (dx2,), strict=True):
            close(b, a, 1 + np.abs(a).max())
        close(dw2, dw, 1 + np.abs(dw).max(initial=0))


def fits(
    device: str,
    net: nn.Module,
    x: Any,
    y: Any,
    cost: nn.Cost,
    optimizer: optim.Optimizer,
    scale: float = 1.0,
    **options: Any,
) -> tuple[nn.Module, gs.History]:
    """Train copies of a net on both devices; they must agree. Returns what the device made."""
    options = {"batch_size": 16, "epochs": 3, **options}
    other, other_optimizer = net.copy(), copy.deepcopy(optimizer)
    expected = gs.fit(net, x, y, cost=cost, optimizer=optimizer, **options)
    history = gs.fit(other, x, y, cost=cost, optimizer=other_optimizer, device=device, **options)
    close(history.loss, expected.loss, scale)
    close(other.w, net.w, scale)
    assert other_optimizer.t == optimizer.t
    for name, state in optimizer.state.items():
        close(other_optimizer.state[name], state, scale)
    return other, history


class Wired(nn.Module):
    """A masked layer, a frozen one, one used twice, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8, mask=np.arange(48).reshape(8, 6) % 3 > 0)
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.d = nn.Linear(8, 4)
        self.b.freeze()

    def forward(self, x: Any) -> Any:
        z = gs.tanh(self.b(gs.tanh(self.a(x))))
        return self.d(gs.tanh(self.c(gs.tanh(self.c(z)) + z)))


def problem(rng: np.random.Generator, n: int = 75) -> tuple[nn.Module, Array, Array]:
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return net, x, rng.integers(0, 4, n)


OPTIMISERS = {
    "sgd": optim.SGD(lr=0.05),
    "momentum": optim.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "clip norm": optim.SGD(lr=0.05, momentum=0.9, clip_norm=0.1),
    "clip value": optim.SGD(lr=0.05, clip_value=0.01),
    "no decay of biases": optim.SGD(lr=0.05, weight_decay=0.5, decay_bias=False),
    "adam": optim.Adam(lr=0.01, amsgrad=True),
    "adamw": optim.AdamW(lr=0.01),
    "rmsprop": optim.RMSprop(lr=0.01, momentum=0.5, centered=True),
    "adagrad": optim.Adagrad(lr=0.05),
    "adadelta": optim.Adadelta(),
    "nadam": optim.NAdam(lr=0.01),
    "lion": optim.Lion(lr=1e-3),
    "schedule": optim.SGD(lr=lambda step: 0.1 / (1 + step)),
}
