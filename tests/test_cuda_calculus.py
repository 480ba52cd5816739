"""Derivatives on a device against the CPU in float64, case by case.

Like tests/test_cuda.py, on a GPU or on the emulated device, else skipped with the reason.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from device_cases import COSTS, on, target
from device_cases import close_to_exact as close
from gradstack import _core, _device, nn
from oracle_nets import BOUNDED, KINKED, SMOOTH
from random_nets import RandomNet, random_net

Array = np.ndarray

BATCH = 7


def tuples(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class Pair(NamedTuple):
    """A net on the device in float32 and the same on the CPU in float64."""

    net: nn.Module
    exact: nn.Module


def pair(device: str, make: Callable[[Any], nn.Module]) -> Pair:
    gs.seed(1)
    exact = make(np.float64)
    gs.seed(1)
    net = make(np.float32)
    exact.w = net.w.astype(np.float64)
    return Pair(net.to(device), exact)


class Every(nn.Module):
    """Every kind of block, a layer used three times, masks, branches, two inputs and outputs."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.a = nn.Linear(5, 9, mask=rng.random((9, 5)) < 0.6, dtype=dtype)
        self.b = nn.Linear(9, 9, dtype=dtype)
        edges = [(i, j) for i in range(6) for j in range(9) if (i + j) % 3]
        self.sparse = nn.SparseLinear(9, 6, edges, dtype=dtype)
        self.wide = nn.Linear(6, 9, bias=False, mask=rng.random((9, 6)) < 0.7, dtype=dtype)
        self.c = nn.Linear(11, 3, dtype=dtype)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Any, u: Any) -> Any:
        z = gs.tanh(self.b(gs.silu(self.a(x))))
        z = self.drop(gs.tanh(self.b(z)) * z + gs.softmax(self.b(z)))
        s = gs.leaky_relu(self.sparse(z), 0.1)
        r = self.wide(gs.softplus(self.sparse(z - self.wide(s)))).view(3, 3).view(-1)
        y = self.c(gs.concat([r / (2 + gs.sigmoid(z)), u]))
        return gs.log_softmax(y), s[1:5]


def every_inputs(rng: np.random.Generator, n: int = BATCH) -> tuple[Array, Array]:
    return rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)


def check_everything(net: nn.Module, exact: nn.Module, x: Any, rng: np.random.Generator) -> None:
    """Both products and their adjointness, and all Jacobians, with several inputs and outputs."""

    def draw(like: Any) -> Any:
        made = tuple(rng.normal(size=a.shape).astype(np.float32) for a in tuples(like))
        return made if isinstance(like, tuple) else made[0]

    dx, dw = draw(x), draw(net.w)
    y, dy = gs.jvp(net, x, dx=dx, dw=dw)
    for got, expected in zip(
        (*tuples(y), *tuples(dy)),
        [a for part in gs.jvp(exact, x, dx=dx, dw=dw) for a in tuples(part)],
        strict=True,
    ):
        close(got, expected)
    _, push = gs.linearize(net, x)
    u = draw(y)
    pushed = push(dx=dx, dw=dw)
    pulled_x, pulled_w = push.pullback(u)
    left = sum(np.vdot(a.astype(float), b) for a, b in zip(tuples(u), tuples(pushed), strict=True))
    right = np.vdot(pulled_w.astype(float), dw) + sum(
        np.vdot(a.astype(float), b) for a, b in zip(tuples(pulled_x), tuples(dx), strict=True)
    )
    size = sum(np.linalg.norm(a) for a in tuples(u)) * sum(
        np.linalg.norm(a) for a in tuples(pushed)
    )
    assert abs(left - right) <= 1e-5 * size + 1e-6
    for wrt in ("x", "w", *stage_names(exact)):
        check_jacobian(net, exact, x, wrt)


def check_jacobian(net: nn.Module, exact: nn.Module, x: Any, wrt: str) -> None:
    got, expected = gs.jacobian(net, x, wrt), gs.jacobian(exact, x, wrt)
    for a, b in zip(tuples(got), tuples(expected), strict=True):
        for c, d in zip(tuples(a), tuples(b), strict=True):
            close(c, d)


def stage_names(net: nn.Module) -> list[str]:
    assert net._traces is not None
    rows = next(iter(net._traces.values())).graph.stages()
    return [row["name"] for row in rows if row["kind"] not in ("input", "reshape")]


@pytest.mark.parametrize("count", [1, BATCH, 40])
def test_every_kind_of_block(cuda: str, rng: np.random.Generator, count: int) -> None:
    both = pair(cuda, Every)
    for net in both:
        net.eval()
    x = every_inputs(rng, count)
    check_everything(*both, x, rng)
    check_everything(*both, tuple(a[0] for a in x), rng)
    check_jacobian(*both, x, "u")


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(cuda: str, rng: np.random.Generator, seed: int) -> None:
    def make(dtype: Any) -> RandomNet:
        return random_net(seed, dtype, tame=True)

    both = pair(cuda, make)
    x = tuple(rng.normal(size=(BATCH, 8)).astype(np.float32) for _ in range(both.exact.count))
    check_everything(*both, x if len(x) > 1 else x[0], rng)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_every_op(cuda: str, rng: np.random.Generator, name: str) -> None:
    class Ops(nn.Module):
        def __init__(self, dtype: Any) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 7, dtype=dtype), nn.Linear(7, 5, dtype=dtype)

        def forward(self, x: Any) -> Any:
            def h(s: Any) -> Any:
                if name == "gelu_tanh":
                    return gs.gelu(s, approximate="tanh")
                return getattr(gs, name)(s)

            return h(h(self.b(h(self.a(x)))))  # fused, and by itself

    both = pair(cuda, Ops)
    x = rng.normal(size=(33, 3)).astype(np.float32)
    check_everything(*both, x, rng)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch, cuda: str) -> Callable[[int], None]:
    if not importlib.import_module("gradstack._cuda").emulated:
        pytest.skip("parts of a real device are hundreds of MiB")

    def set_size(size: int) -> None:
        monkeypatch.setenv("GRADSTACK_EMULATED_PART", str(size))
        monkeypatch.setattr(_device, "_opened", {})

    return set_size


# A part of one row, of some directions of one sample, of some samples.
@pytest.mark.parametrize("size", [4, 3000, 12_000, 40_000])
def test_batches_in_parts(
    cuda: str, rng: np.random.Generator, small_parts: Callable[[int], None], size: int
) -> None:
    small_parts(size)
    both = pair(cuda, Every)
    for net in both:
        net.eval()
    x = every_inputs(rng, 23)
    check_everything(*both, x, rng)

    class Expand(nn.Sequential):  # more outputs than inputs: forward mode
        def __init__(self, dtype: Any) -> None:
            super().__init__(
                nn.Linear(5, 11, dtype=dtype), nn.Tanh(), nn.Linear(11, 13, dtype=dtype),
                nn.LogSoftmax(), nn.Linear(13, 4, dtype=dtype),
            )  # fmt: skip

    both = pair(cuda, Expand)
    x0, y = x[0], target("dense", 23, rng)
    check_everything(*both, x0, rng)
    check_samples(*both, nn.SquaredError(), x0, y, rng)


def check_samples(
    net: nn.Module, exact: nn.Module, cost: nn.Cost, x: Any, y: Any, rng: np.random.Generator
) -> None:
    """Quantities of the gradients of samples, and products with curvature."""
    g = gs.per_sample_grad(exact, cost, x, y)
    norms = np.linalg.norm(g, axis=1)
    close(gs.per_sample_grad(net, cost, x, y), g)
    close(gs.per_sample_grad_norm(net, cost, x, y), norms)
    limit = float(np.median(norms)) + 1e-3
    close(
        gs.clip_per_sample(net, cost, x, y, limit),
        (g * np.minimum(1, limit / np.maximum(norms, 1e-30))[:, None]).mean(0),
    )
    close(gs.fisher_diag(net, cost, x, y), (g**2).mean(0))
    v = rng.normal(size=net.w.size).astype(np.float32)
    close(gs.fishervp(net, cost, x, y, v), g.T @ (g @ v) / len(g))
    for weight in (None, rng.random(len(g))):
        if weight is not None and cost.reduction != "mean":
            continue
        got = gs.ggnvp(net, cost, x, y, v, sample_weight=weight)
        close(got, gs.ggnvp(exact, cost, x, y, v, sample_weight=weight))


@pytest.mark.parametrize("name", COSTS)
def test_every_kind_of_cost(cuda: str, rng: np.random.Generator, name: str) -> None:
    cost, kind = COSTS[name]

    def make(dtype: Any) -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 8, dtype=dtype), nn.SiLU(), nn.Linear(8, 4, dtype=dtype), nn.Tanh()
        )

    x = rng.normal(size=(45, 6)).astype(np.float32)
    check_samples(*pair(cuda, make), cost, x, target(kind, 45, rng), rng)


class Shared(nn.Module):
    """Layers used twice and three times, sparse and masked ones among them, and one never."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        self.first = nn.Linear(6, 5, dtype=dtype)
        self.often = nn.Linear(5, 5, dtype=dtype)
        self.masked = nn.Linear(5, 5, mask=rng.random((5, 5)) < 0.5, dtype=dtype)
        edges = [(i, j) for i in range(5) for j in range(5) if (i * j) % 2 == 0]
        self.sparse = nn.SparseLinear(5, 5, edges, dtype=dtype)
        self.unused = nn.Linear(2, 3, dtype=dtype)
        self.last = nn.Linear(5, 4, bias=False, dtype=dtype)

    def forward(self, x: Any) -> Any:
        z = gs.tanh(self.often(gs.tanh(self.often(gs.tanh(self.first(x))))))
        z = self.masked(gs.tanh(self.masked(z)) + z)
        z = self.sparse(gs.sigmoid(self.sparse(z)) * self.often(z))
        return self.last(z)


def test_shared_layers(cuda: str, rng: np.random.Generator) -> None:
    both = pair(cuda, Shared)
    x = rng.normal(size=(19, 6)).astype(np.float32)
    check_everything(*both, x, rng)
    check_samples(*both, nn.SquaredError(), x, target("dense", 19, rng), rng)
    check_samples(*both, nn.CrossEntropyLoss(), x, target("label", 19, rng), rng)


def test_wide_rows(cuda: str, rng: np.random.Generator) -> None:
    # Sums of rows are made by more threads beyond a width, and strides are odd.
    def make(dtype: Any) -> nn.Module:
        mask = np.random.default_rng(0).random((37, 1031)) < 0.5
        return nn.Sequential(
            nn.Linear(1031, 37, mask=mask, dtype=dtype), nn.ReLU(), nn.Linear(37, 601, dtype=dtype),
            nn.Tanh(), nn.Linear(601, 4, dtype=dtype),
        )  # fmt: skip

    both = pair(cuda, make)
    x = rng.normal(size=(5, 1031)).astype(np.float32)
    check_everything(*both, x, rng)
    check_samples(*both, nn.SquaredError(), x, target("dense", 5, rng), rng)


def test_dropout_has_the_masks_of_the_cpu(cuda: str, rng: np.random.Generator) -> None:
    net = Every(np.float32)
    other = on(cuda, net)
    x = every_inputs(rng, 50)
    dx = tuple(rng.normal(size=a.shape) for a in x)
    for each in (net, other):
        each.train()
    found = []
    for each in (net, other):
        gs.seed(9)
        y, push = gs.linearize(each, x)
        found.append((*y, *push(dx=dx, dw=np.ones(net.w.size)), *push.pullback(y)[0]))
    for expected, got in zip(*found, strict=True):
        close(got, expected)
    assert any(
        not np.allclose(a, b) for a, b in zip(found[1][:2], gs.jvp(other, x)[0], strict=True)
    )


def test_bits_repeat(cuda: str, rng: np.random.Generator) -> None:
    net = on(cuda, Shared(np.float32))
    x, y = rng.normal(size=(300, 6)).astype(np.float32), rng.normal(size=(300, 4))
    cost, v = nn.SquaredError(), rng.normal(size=net.w.size)
    found = [
        [
            gs.jvp(net, x, dw=v)[1].tobytes(),
            gs.jacobian(net, x, "w").tobytes(),
            gs.per_sample_grad_norm(net, cost, x, y).tobytes(),
            gs.clip_per_sample(net, cost, x, y, 0.1).tobytes(),
            gs.ggnvp(net, cost, x, y, v).tobytes(),
        ]
        for _ in range(2)
    ]
    assert found[0] == found[1]


def test_the_device_computes_them(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(cuda)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    cost, v = nn.SquaredError(), np.ones(net.w.size)

    def refused(*_: Any) -> Any:
        raise AssertionError("computed by the CPU")

    for name in ("Jacobian", "PerSample", "Curvature"):
        monkeypatch.setattr(_core.f32, name, refused)
    for wrt in ("x", "w", "2"):
        gs.jacobian(net, x, wrt)
    gs.per_sample_grad(net, cost, x, y), gs.per_sample_grad_norm(net, cost, x, y)
    gs.clip_per_sample(net, cost, x, y, 1.0), gs.fisher_diag(net, cost, x, y)
    gs.fishervp(net, cost, x, y, v), gs.ggnvp(net, cost, x, y, v)
    assert type(gs.linearize(net, x)[1]._at) is _core.device.DeviceLinearization
    with pytest.raises(AssertionError, match="by the CPU"):
        gs.hvp(net, cost, x, y, v)
    with pytest.raises(AssertionError, match="by the CPU"):
        gs.jacobian(net.to("cpu"), x)


def test_the_nearest_neighbour_stays_with_the_cpu(cuda: str, rng: np.random.Generator) -> None:
    net = nn.NearestNeighbour(3, 5)
    x, cost = rng.normal(size=(20, 3)).astype(np.float32), nn.SquaredError()
    other = on(cuda, net)
    assert np.array_equal(gs.per_sample_grad(other, cost, x), gs.per_sample_grad(net, cost, x))
    with pytest.raises(ValueError, match="discrete"):
        gs.jacobian(other, x)


def test_empty_batches_and_nets_without_parameters(cuda: str, rng: np.random.Generator) -> None:
    net = on(cuda, nn.Sequential(nn.Linear(4, 6), nn.Softmax(), nn.Linear(6, 2)))
    empty, cost = np.zeros((0, 4), np.float32), nn.SquaredError()
    assert gs.jacobian(net, empty).shape == (0, 2, 4)
    assert gs.jvp(net, empty, dx=empty)[1].shape == (0, 2)
    assert gs.per_sample_grad(net, cost, empty, np.zeros((0, 2))).shape == (0, net.w.size)
    bare = nn.Sequential(nn.Tanh(), nn.Softmax())
    bare.trace((4,))
    x = rng.normal(size=(3, 4)).astype(np.float32)
    there = on(cuda, bare)
    close(gs.jacobian(there, x), gs.jacobian(bare, x))
    assert gs.jacobian(there, x, "w").shape == (3, 4, 0)
    assert gs.per_sample_grad(there, cost, x, x).shape == (3, 0)
    close(gs.per_sample_grad_norm(there, cost, x, x), np.zeros(3))
    with pytest.raises(ValueError, match="float32"):
        gs.jacobian(there, x.astype(np.float64))


BAD_CALLS: dict[str, Callable[[nn.Module, Array, Array], Any]] = {
    "x": lambda net, x, y: gs.jacobian(net, x[:, 1:]),
    "wrt": lambda net, x, y: gs.jacobian(net, x, "3"),
    "out": lambda net, x, y: gs.jacobian(net, x, out=np.empty((1, 1))),
    "w": lambda net, x, y: gs.jacobian(net, x, w=[1.0]),
    "dx": lambda net, x, y: gs.jvp(net, x, dx=x[:, 1:]),
    "dw": lambda net, x, y: gs.jvp(net, x, dw=[1.0]),
    "y": lambda net, x, y: gs.per_sample_grad(net, nn.SquaredError(), x, y[:, 1:]),
    "labels": lambda net, x, y: gs.per_sample_grad(net, nn.CrossEntropyLoss(), x, [0, 1, 2, 9]),
    "max_norm": lambda net, x, y: gs.clip_per_sample(net, nn.SquaredError(), x, y, 0.0),
    "v": lambda net, x, y: gs.ggnvp(net, nn.SquaredError(), x, y, [1.0]),
    "no gradient": lambda net, x, y: gs.per_sample_grad(net, nn.ZeroOneLoss(), x, [0, 1, 2, 3]),
    "no samples": lambda net, x, y: gs.fisher_diag(net, nn.SquaredError(), x[:0], y[:0]),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_those_of_the_cpu(cuda: str, rng: np.random.Generator, name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 5))
    said = []
    for each in (net, on(cuda, net)):
        with pytest.raises((ValueError, TypeError)) as error:
            BAD_CALLS[name](each, x, y)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_what_is_written_in_python_is_refused(cuda: str, rng: np.random.Generator) -> None:
    own = nn.Sequential(nn.Linear(6, 4), nn.Pointwise(np.tanh, lambda s: 1 - np.tanh(s) ** 2))
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 4))
    own(x)
    own.to(cuda)
    for call in (
        lambda: gs.jacobian(own, x),
        lambda: gs.jvp(own, x, dx=x),
        lambda: gs.per_sample_grad(own, nn.SquaredError(), x, y),
        lambda: gs.ggnvp(own, nn.SquaredError(), x, y, own.w),
    ):
        with pytest.raises(ValueError, match="written in Python"):
            call()

    class Own(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return (ybar**2).sum(axis=1)

        def gradient(self, ybar: Any, y: Any) -> Any:
            return 2 * ybar

    with pytest.raises(ValueError, match="cost written in Python"):
        gs.per_sample_grad(nn.Linear(6, 4).to(cuda), Own(), x, None)


FULL_DEVICE = """
import numpy as np, gradstack as gs
from gradstack import nn
net, cost = nn.Sequential(nn.Linear(60, 40), nn.Tanh(), nn.Linear(40, 30)), nn.SquaredError()
x, y = np.ones((300, 60), np.float32), np.ones((300, 30), np.float32)
expected = [gs.jacobian(net, x[:2], "w"), gs.per_sample_grad(net, cost, x[:2], y[:2])]
net.to("cuda")
for big in (lambda: gs.jacobian(net, x, "w"), lambda: gs.per_sample_grad(net, cost, x, y)):
    try:
        big()
        raise SystemExit("no error")
    except MemoryError as error:
        print(error)
got = [gs.jacobian(net, x[:2], "w"), gs.per_sample_grad(net, cost, x[:2], y[:2])]
for a, b in zip(got, expected):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""


def test_a_full_device_says_what_was_wanted_and_works_on(cuda: str) -> None:
    if not importlib.import_module("gradstack._cuda").emulated:
        pytest.skip("only the emulated device can be made small")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DEVICE],
        env={
            **os.environ,
            "GRADSTACK_EMULATED_MEMORY": "4200000",
            "GRADSTACK_EMULATED_PART": str(
                1 << 23
            ),  # results come in larger parts than there is room
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("out of device memory") == 2
    assert "gradients of the samples" in done.stdout
