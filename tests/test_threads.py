"""``fit`` gives the same bits for every number of threads, and again when repeated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

THREADS = [1, 2, 3, 5, 8]


class Scenario(NamedTuple):
    """A fit; each takes a way through the trainer of its own."""

    widths: tuple[int, ...]
    samples: int
    batch_size: int | None
    epochs: int
    activation: str = "ReLU"
    dropout: float = 0.0
    labels: bool = True
    optimizer: Callable[[], Any] = lambda: optim.SGD(lr=0.05, momentum=0.9)
    weighted: bool = False
    build: Callable[..., Any] | None = None


def residual(dtype: type) -> Any:
    body = nn.Residual(nn.Linear(33, 33, dtype=dtype), nn.GELU())
    return nn.Sequential(nn.Linear(20, 33, dtype=dtype), body, nn.Linear(33, 5, dtype=dtype))


def masked(dtype: type) -> Any:
    mask = np.random.default_rng(0).random((64, 20)) < 0.5
    first = nn.Linear(20, 64, mask=mask, dtype=dtype)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(64, 5, dtype=dtype))


SCENARIOS = {
    "wide": Scenario((256, 300, 280, 10), 300, 128, 2),
    "wide, momentum, digits": Scenario((784, 256, 128, 10), 400, 128, 1),
    "wide, one sample": Scenario((300, 257, 10), 20, 1, 1),
    "wide, three samples": Scenario((300, 600, 10), 19, 3, 1),
    "wide, four samples, adam": Scenario(
        (300, 600, 10), 21, 4, 1, optimizer=lambda: optim.Adam(lr=0.01)
    ),
    "narrow, large batch": Scenario((16, 64, 64, 3), 6000, 2048, 2),
    "narrow, whole set": Scenario((16, 33, 3), 3001, None, 3),
    "narrow, small batch": Scenario((4, 64, 64, 2), 200, 16, 3, "Tanh"),
    "odd": Scenario((17, 65, 127, 3), 211, 33, 3, "SiLU"),
    "dropout": Scenario((64, 128, 128, 10), 500, 100, 2, dropout=0.3),
    "adam, clip": Scenario(
        (64, 200, 10), 500, 100, 2, optimizer=lambda: optim.Adam(lr=0.01, clip_norm=0.1)
    ),
    "adam, clip, narrow": Scenario(
        (8, 32, 4), 4000, 1024, 2, optimizer=lambda: optim.Adam(lr=0.01, clip_norm=0.1)
    ),
    "weighted": Scenario((40, 90, 5), 700, 64, 2, weighted=True),
    "regression": Scenario((30, 128, 7), 600, 100, 2, "Softplus", labels=False),
    "residual": Scenario((20, 5), 500, 64, 2, build=residual),
    "mask": Scenario((20, 5), 500, 64, 2, build=masked),
}


def build(scenario: Scenario, dtype: type) -> Any:
    gs.seed(0)
    if scenario.build is not None:
        return scenario.build(dtype)
    layers: list[Any] = []
    for d_in, d_out in itertools.pairwise(scenario.widths):
        layers += [nn.Linear(d_in, d_out, dtype=dtype), getattr(nn, scenario.activation)()]
        if scenario.dropout:
            layers.append(nn.Dropout(scenario.dropout))
    while not isinstance(layers[-1], nn.Linear):
        layers.pop()
    return nn.Sequential(*layers)


def train(scenario: Scenario, dtype: type, threads: int) -> tuple[bytes, list[float]]:
    rng = np.random.default_rng(1)
    n, d_in, d_out = scenario.samples, scenario.widths[0], scenario.widths[-1]
    x = rng.normal(size=(n, d_in)).astype(dtype)
    y: Any = rng.integers(0, d_out, n) if scenario.labels else rng.normal(size=(n, d_out))
    net = build(scenario, dtype)
    history = gs.fit(
        net,
        x,
        y,
        cost=nn.CrossEntropyLoss() if scenario.labels else nn.MSELoss(),
        optimizer=scenario.optimizer(),
        batch_size=scenario.batch_size,
        epochs=scenario.epochs,
        seed=3,
        sample_weight=rng.uniform(0.1, 2, n) if scenario.weighted else None,
        num_threads=threads,
    )
    return net.w.tobytes(), list(history.loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_bits_do_not_depend_on_threads(name: str, dtype: type) -> None:
    scenario = SCENARIOS[name]
    first = train(scenario, dtype, THREADS[0])
    assert np.isfinite(first[1]).all()
    untrained = build(scenario, dtype).w.tobytes()
    assert first[0] != untrained
    for threads in THREADS[1:]:
        assert train(scenario, dtype, threads) == first, f"{threads} threads"
    assert train(scenario, dtype, 2) == first, "repeated"


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_calls_do_not_depend_on_threads(dtype: type) -> None:
    """Predictions, pullbacks and gradients, whose thread counts the library chooses itself."""
    net = build(SCENARIOS["wide, momentum, digits"], dtype)
    x = np.random.default_rng(0).normal(size=(3000, 784)).astype(dtype)
    whole = net(x)
    loss, dw = gs.value_and_grad(net, nn.CrossEntropyLoss(), x, np.arange(3000) % 10)
    for _ in range(3):
        assert net(x).tobytes() == whole.tobytes()
        again, dw_again = gs.value_and_grad(net, nn.CrossEntropyLoss(), x, np.arange(3000) % 10)
        assert again == loss
        assert dw_again.tobytes() == dw.tobytes()
