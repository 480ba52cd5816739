"""The fused MLP of device="cuda" (GRADSTACK_CUDA_FUSED) through the Python API.

Kernels are compared with exact references in tests/cpp/test_fused_mlp.cpp; here: who gets them, and
that calls, derivatives and training with them agree with float64 up to the rounding of halves.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _device, nn, optim

Array = np.ndarray

ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}


@pytest.fixture(scope="module")
def cuda() -> str:
    try:
        _device.open_device("cuda")
    except _device.DeviceMissingError as error:
        pytest.skip(str(error))
    return "cuda"


@pytest.fixture(params=["bf16", "fp16"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRADSTACK_CUDA_FUSED", request.param)
    return str(request.param)


def chain(
    *widths: int, op: type[nn.Module] = nn.Tanh, last: bool = False, dtype: Any = np.float32
) -> nn.Module:
    gs.seed(0)
    blocks: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        blocks += [nn.Linear(i, o, dtype=dtype), op()]
    return nn.Sequential(*(blocks if last else blocks[:-1]))


def distance(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# Smooth, so that roundings stay what they are. Widths, whether an op comes last.
NETS = [
    ((5, 16, 3), False),
    ((1, 17, 48, 1), False),
    ((64, 64, 64, 64, 64), True),
    ((784, 128, 96, 10), False),
    ((100, 24, 32, 16, 20, 33, 128), True),
]


@pytest.mark.parametrize(("widths", "last"), NETS)
@pytest.mark.parametrize("op", [nn.Tanh, nn.GELU])
def test_calls_and_derivatives(
    cuda: str, half: str, rng: np.random.Generator, widths: Any, last: bool, op: type[nn.Module]
) -> None:
    exact = chain(*widths, op=op, last=last, dtype=np.float64)
    net = chain(*widths, op=op, last=last)
    exact.w[...] = net.w
    net.to(cuda)
    x = rng.normal(size=(150, widths[0])).astype(np.float32)
    dy = rng.normal(size=(150, widths[-1])).astype(np.float32)
    y, pullback = gs.vjp(net, x)
    want, exact_pullback = gs.vjp(exact, x.astype(np.float64))
    most = 2 * (len(widths) - 1) * ROUNDOFF[half]
    assert 0 < distance(y, want) < most
    assert np.array_equal(net(x), y)
    assert np.array_equal(net(x[:1]), y[:1])  # a sample does not depend on its neighbours
    for _ in range(2):  # a pullback can be called again
        for got, wanted in zip(pullback(dy), exact_pullback(dy.astype(np.float64)), strict=True):
            assert 0 < distance(got, wanted) < most


def test_large_batches_with_small_gradients(cuda: str, half: str, rng: np.random.Generator) -> None:
    exact, net = chain(6, 16, 2, dtype=np.float64), chain(6, 16, 2)
    exact.w[...] = net.w
    x, y = rng.normal(size=(40_000, 6)), rng.normal(size=(40_000, 2))
    cost = nn.MSELoss()
    loss, dw = gs.value_and_grad(net.to(cuda), cost, x, y)
    want, exact_dw = gs.value_and_grad(exact, cost, x, y)
    assert loss == pytest.approx(want, rel=ROUNDOFF[half])
    assert distance(dw, exact_dw) < 4 * ROUNDOFF[half]


def fit(device: str, net: nn.Module, x: Array, y: Array, **options: Any) -> gs.History:
    options = {"batch_size": 48, "epochs": 4, **options}
    return gs.fit(
        net, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=0.1, momentum=0.9),
        device=device, **options,
    )  # fmt: skip


def test_training(cuda: str, half: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(400, 20)).astype(np.float32)
    y = (x @ rng.normal(size=(20, 4))).argmax(axis=1)
    start = chain(20, 64, 32, 4)
    runs = []
    for device in ("cpu", cuda, cuda):
        net = start.copy()
        history = fit(device, net, x, y, validation=(x[:100], y[:100]))
        runs.append((net.w.copy(), history.loss, history.val_loss))
    (w, loss, val_loss), (fused_w, fused_loss, fused_val_loss), again = runs
    assert np.array_equal(fused_w, again[0])  # the same bits when repeated
    assert fused_loss == again[1]
    moved = float(np.linalg.norm(w - start.w))
    assert 0 < np.linalg.norm(fused_w - w) < 30 * ROUNDOFF[half] * moved
    np.testing.assert_allclose(fused_loss, loss, rtol=4 * ROUNDOFF[half])
    np.testing.assert_allclose(fused_val_loss, val_loss, rtol=8 * ROUNDOFF[half])


def test_frozen_layers_stay(cuda: str, half: str, rng: np.random.Generator) -> None:
    net = chain(20, 32, 32, 4)
    net[2].freeze()
    before = net.w.copy()
    x = rng.normal(size=(100, 20)).astype(np.float32)
    fit(cuda, net, x, rng.integers(0, 4, 100))
    frozen = slice(20 * 32 + 32, 20 * 32 + 32 + 32 * 32 + 32)
    assert np.array_equal(net.w[frozen], before[frozen])
    assert (net.w != before).sum() > 600


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 20)

    def forward(self, x: Any) -> Any:
        z = gs.tanh(self.a(x))
        return self.b(z) + z


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 20)

    def forward(self, x: Any) -> Any:
        return self.a(gs.tanh(self.a(x)))


OTHERS = {
    "too wide": (nn.Sequential(nn.Linear(6, 129), nn.Tanh(), nn.Linear(129, 2)), 6),
    "too narrow": (nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 2)), 6),
    "masked": (nn.Sequential(nn.Linear(6, 16, mask=np.eye(16, 6)), nn.Tanh()), 6),
    "softmax": (nn.Sequential(nn.Linear(6, 16), nn.Softmax()), 6),
    "two ops": (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Sigmoid()), 6),
    "op first": (nn.Sequential(nn.Tanh(), nn.Linear(6, 16)), 6),
    "branches": (Branches(), 6),
    "shared": (Shared(), 20),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_graphs_run_as_ever(
    cuda: str, half: str, rng: np.random.Generator, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, width = OTHERS[name]
    x = rng.normal(size=(30, width)).astype(np.float32)
    found = [net.copy().to(cuda)(x)]
    monkeypatch.delenv("GRADSTACK_CUDA_FUSED")
    found.append(net.copy().to(cuda)(x))
    assert np.array_equal(*found)


def test_nothing_is_fused_unless_asked(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADSTACK_CUDA_FUSED", raising=False)
    net, x = chain(8, 32, 2), rng.normal(size=(20, 8)).astype(np.float32)
    assert distance(net.copy().to(cuda)(x), net(x)) < 1e-6
    monkeypatch.setenv("GRADSTACK_CUDA_FUSED", "fp8")
    with pytest.raises(ValueError, match="'fp8', expected bf16 or fp16"):
        net.to(cuda)(x)
