"""`optim.Preconditioned`: steps and angles against NumPy, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

Array = np.ndarray
COST = nn.SquaredError()


def make_net(dtype: str = "float64", bias: bool = True) -> nn.Sequential:
    kind: dict[str, Any] = {"dtype": dtype, "bias": bias}
    return nn.Sequential(nn.Linear(3, 4, **kind), nn.Tanh(), nn.Linear(4, 2, **kind))


def psd(n: int, rng: np.random.Generator) -> Array:
    root = rng.standard_normal((n, n))
    return root @ root.T / n


def data(rng: np.random.Generator) -> tuple[Array, Array]:
    return rng.standard_normal((20, 3)), rng.standard_normal((20, 2))


def gradient(net: nn.Module, x: Array, y: Array) -> Array:
    """dL/dw of `make_net`, by NumPy."""
    w = [np.asarray(p, np.float64) for p in net.parameters()]
    w0, b0, w1, b1 = w if len(w) == 4 else (w[0], np.zeros(4), w[1], np.zeros(2))
    z = np.tanh(x @ w0.T + b0)
    ds1 = 2 * (z @ w1.T + b1 - y) / len(x)
    ds0 = ds1 @ w1 * (1 - z**2)
    parts = [ds0.T @ x, ds0.sum(0), ds1.T @ z, ds1.sum(0)]
    if len(w) == 2:
        parts = parts[::2]
    return np.concatenate([p.ravel() for p in parts])


def angle(a: Array, b: Array) -> float:
    return math.acos(min(1.0, float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))))


def step(net: nn.Module, eta: Any, x: Array, y: Array, **arguments: Any) -> optim.Preconditioned:
    optimizer = optim.Preconditioned(eta, **arguments)
    before = COST(net(x), y)
    loss = gs.Trainer(net, COST, optimizer).step(x, y)
    assert loss == pytest.approx(before, rel=1e-6)
    return optimizer


@pytest.mark.parametrize("kind", ["vector", "matrix", "singular"])
def test_dense_steps(kind: str, rng: np.random.Generator) -> None:
    net, (x, y) = make_net(), data(rng)
    n = net.w.size
    eta = {
        "vector": rng.uniform(0, 0.2, n),
        "matrix": 0.1 * psd(n, rng),
        "singular": 0.1 * np.outer(v := rng.standard_normal(n), v),
    }[kind]
    before, g = net.w.copy(), gradient(net, x, y)
    direction = (np.diag(eta) if eta.ndim == 1 else eta) @ g
    optimizer = step(net, eta, x, y, lr=0.5)
    np.testing.assert_allclose(net.w, before - 0.5 * direction, rtol=0, atol=1e-12)
    assert optimizer.angle == pytest.approx(angle(g, direction), abs=1e-7)
    assert optimizer.angle < math.pi / 2
    assert optimizer.t == 1


def test_a_scalar_matrix_is_gradient_descent(rng: np.random.Generator) -> None:
    x, y = data(rng)
    ours, theirs = make_net(), make_net()
    theirs.w = ours.w
    n = ours.w.size
    for eta in (np.full(n, 0.1), 0.1 * np.eye(n)):
        optimizer = step(ours, eta, x, y)
        assert optimizer.angle == pytest.approx(0, abs=1e-7)
        gs.Trainer(theirs, COST, optim.SGD(lr=0.1)).step(x, y)
        np.testing.assert_allclose(ours.w, theirs.w, rtol=0, atol=1e-14)


@pytest.mark.parametrize("with_bias", [False, True])
def test_kronecker_pairs(with_bias: bool, rng: np.random.Generator) -> None:
    net, (x, y) = make_net(), data(rng)
    pairs = [(psd(out, rng), psd(n + with_bias, rng)) for n, out in ((3, 4), (4, 2))]
    before, g = net.w.copy(), gradient(net, x, y)
    direction, at = [], 0
    for (a, b), (n, out) in zip(pairs, ((3, 4), (4, 2)), strict=True):
        weight, bias = g[at : at + out * n], g[at + out * n : at + out * n + out]
        at += out * n + out
        if with_bias:
            both = np.column_stack([weight.reshape(out, n), bias]).ravel()
            both = (np.kron(a, b) @ both).reshape(out, n + 1)
            direction += [both[:, :n].ravel(), both[:, n]]
        else:
            direction += [np.kron(a, b) @ weight, a @ bias]
    expected = np.concatenate(direction)
    optimizer = step(net, pairs, x, y, lr=0.1)
    np.testing.assert_allclose(net.w, before - 0.1 * expected, rtol=0, atol=1e-12)
    assert optimizer.angle == pytest.approx(angle(g, expected), abs=1e-7)


def test_pairs_of_layers_without_bias(rng: np.random.Generator) -> None:
    net, (x, y) = make_net(bias=False), data(rng)
    pairs = [(psd(4, rng), psd(3, rng)), (psd(2, rng), psd(4, rng))]
    before, g = net.w.copy(), gradient(net, x, y)
    step(net, pairs, x, y, lr=0.1)
    whole = np.concatenate([np.kron(*pairs[0]) @ g[:12], np.kron(*pairs[1]) @ g[12:]])
    np.testing.assert_allclose(net.w, before - 0.1 * whole, rtol=0, atol=1e-12)


def test_float32_nets(rng: np.random.Generator) -> None:
    net, (x, y) = make_net("float32"), data(rng)
    x, y = x.astype(np.float32), y.astype(np.float32)
    eta = 0.1 * psd(net.w.size, rng)
    before, g = net.w.copy(), gradient(net, x, y)
    step(net, eta, x, y)
    np.testing.assert_allclose(net.w, before - eta @ g, rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_first(rng: np.random.Generator) -> None:
    net, (x, y) = make_net(), data(rng)
    eta = psd(net.w.size, rng)
    before, g = net.w.copy(), gradient(net, x, y)
    clipped = np.clip(g, -0.2, 0.2)
    clipped *= min(1.0, 0.3 / (np.linalg.norm(clipped) + 1e-6))
    step(net, eta, x, y, clip_value=0.2, clip_norm=0.3)
    np.testing.assert_allclose(net.w, before - eta @ clipped, rtol=0, atol=1e-12)


def test_masked_and_frozen_parameters_stay(rng: np.random.Generator) -> None:
    mask = rng.random((4, 3)) < 0.5
    net = nn.Sequential(
        nn.Linear(3, 4, mask=mask, dtype="float64"), nn.Linear(4, 2, dtype="float64")
    )
    net[1].bias.requires_grad = False
    held = np.concatenate([~mask.ravel(), np.zeros(4 + 8, bool), np.ones(2, bool)])
    before = net.w.copy()
    x, y = data(rng)
    eta = psd(net.w.size, rng)
    g = np.where(held, 0, gs.value_and_grad(net, COST, x, y)[1])
    expected = np.where(held, 0, eta @ g)
    optimizer = step(net, eta, x, y, lr=0.01)
    np.testing.assert_allclose(net.w, before - 0.01 * expected, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(net.w[held], before[held])
    assert optimizer.angle == pytest.approx(angle(g, expected), abs=1e-7)


def test_every_step_is_downhill_and_the_loss_falls(rng: np.random.Generator) -> None:
    net, (x, y) = make_net(), data(rng)
    optimizer = optim.Preconditioned(psd(net.w.size, rng), lr=lambda t: 0.02 / (1 + 0.1 * t))
    assert math.isnan(optimizer.angle)
    trainer = gs.Trainer(net, COST, optimizer)
    losses = []
    for _ in range(50):
        losses.append(trainer.step(x, y))
        assert 0 <= optimizer.angle <= math.pi / 2
    assert np.all(np.diff(losses) < 0)


def test_directions_of_zero_rate_do_not_move(rng: np.random.Generator) -> None:
    net, (x, y) = make_net(), data(rng)
    before = net.w.copy()
    optimizer = step(net, np.zeros(net.w.size), x, y)
    np.testing.assert_array_equal(net.w, before)
    assert optimizer.angle == 0
    # A gradient that lies where eta is zero, to rounding.
    g = gradient(net, x, y)
    g /= np.linalg.norm(g)
    optimizer = step(net, np.eye(g.size) - np.outer(g, g), x, y)
    np.testing.assert_allclose(net.w, before, rtol=0, atol=1e-12)
    assert optimizer.angle <= math.pi / 2


def test_rounding_in_eta_is_accepted() -> None:
    eta = np.diag([1.0, 0.5, -1e-12])
    eta[0, 1] = 1e-12
    assert optim.Preconditioned(eta).config()["eta"].startswith("matrix of 3")


NAN = math.nan


@pytest.mark.parametrize(
    ("eta", "match"),
    [
        ([0.1, -0.2, 0.3], r"eta must not be negative, eta\[1\] = -0.2"),
        ([0.1, NAN], "eta must be finite"),
        ([0.1, math.inf], "eta must be finite"),
        ([[1.0, NAN], [NAN, 1.0]], "eta must be finite"),
        ([[1.0, 0.1], [0.2, 1.0]], r"eta must be symmetric, eta\[0, 1\] = 0.1"),
        ([[1.0, 0.0], [0.0, -1.0]], "positive semi-definite, it has the eigenvalue -1"),
        (np.diag([1.0, -1e-9]), "positive semi-definite"),
        ([[-1.0]], "positive semi-definite"),
        (np.ones((2, 3)), r"square matrix.*got shape \(2, 3\)"),
        (np.ones((2, 2, 2)), r"got shape \(2, 2, 2\)"),
        (0.1, r"got shape \(\)"),
        ([(np.eye(2), np.diag([1.0, -1.0]))], r"eta\[0\]\[1\] must be positive semi-definite"),
        ([(np.eye(2), np.eye(3)), (np.triu(np.ones((2, 2))), np.eye(1))],
         r"eta\[1\]\[0\] must be symmetric"),
        ([(np.eye(2), np.full((2, 2), NAN))], r"eta\[0\]\[1\] must be finite"),
        ([(np.eye(2), np.ones((2, 3)))], r"eta\[0\]\[1\] must be"),
    ],
)  # fmt: skip
def test_what_is_no_learning_rate_is_refused(eta: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        optim.Preconditioned(eta)


@pytest.mark.parametrize("eta", [[1j, 0], ["a", "b"], None, {"a": 1}])
def test_what_is_no_number_is_refused(eta: Any) -> None:
    with pytest.raises(TypeError, match="eta"):
        optim.Preconditioned(eta)


@pytest.mark.parametrize(
    ("eta", "match"),
    [
        (np.ones(5), "eta is for 5 parameters, the net has 26"),
        (np.eye(25), "eta is for 25 parameters, the net has 26"),
        ([(np.eye(4), np.eye(3))], "eta has 1 pairs, the net has 2 layers"),
        ([(np.eye(4), np.eye(3)), (np.eye(2), np.eye(3))],
         r"eta\[1\] holds matrices of size 2 and 3, expected \(2, 2\) and \(4, 4\) or \(5, 5\)"),
        ([(np.eye(3), np.eye(4)), (np.eye(2), np.eye(4))],
         r"eta\[0\] holds matrices of size 3 and 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_net_is_refused(
    eta: Any, match: str, rng: np.random.Generator
) -> None:
    net = make_net()
    before = net.w.copy()
    trainer = gs.Trainer(net, COST, optim.Preconditioned(eta))
    with pytest.raises(ValueError, match=match):
        trainer.step(*data(rng))
    np.testing.assert_array_equal(net.w, before)
