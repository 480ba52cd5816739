"""precision="fp16": the loss is scaled so that small gradients survive, steps that overflow are
skipped, and the scale adapts on the device."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

Array = np.ndarray
FIRST = 65536.0


def half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def line(rng: np.random.Generator, size: float, n: int = 64) -> tuple[nn.Module, Array, Array]:
    """A regression whose first gradients are of that size."""
    net = nn.Linear(2, 1)
    x = rng.uniform(0.5, 1, size=(n, 2)).astype(np.float32)
    return net, x, np.full((n, 1), size, np.float32)


def test_an_overflow_halves_the_scale_and_skips_the_step(
    cuda: str, rng: np.random.Generator
) -> None:
    # One sample, ds = 2 (ybar - y): about 40 times the scale must stay below 65504.
    net, x, y = line(rng, 20.0, 1)
    before = net.w.copy()
    optimizer = optim.SGD(lr=1e-3, momentum=0.9)
    trainer = gs.Trainer(net, nn.SquaredError(), optimizer, device=cuda, precision="fp16")
    assert trainer.loss_scale is None
    scale, loss = FIRST, 0.0
    while np.isinf(half(scale * 2 * (20 - before[:2] @ x[0] - before[2]))):
        loss = trainer.step(x, y)
        scale /= 2
        assert trainer.loss_scale == scale
        assert np.array_equal(net.w, before)
        assert (optimizer.t, optimizer.state["momentum_buffer"].any()) == (0, False)
    assert scale < FIRST
    assert trainer.step(x, y) == loss  # of the same weights
    assert (optimizer.t, trainer.loss_scale) == (1, scale)
    assert not np.array_equal(net.w, before)
    exact = nn.Linear(2, 1)
    exact.w[...] = before
    gs.Trainer(exact, nn.SquaredError(), optim.SGD(lr=1e-3, momentum=0.9)).step(x, y)
    np.testing.assert_allclose(net.w - before, exact.w - before, rtol=4e-3)


def test_other_precisions_have_no_scale(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = line(rng, 1.0)
    trainer = gs.Trainer(net, nn.SquaredError(), optim.SGD(), device=cuda, precision="bf16")
    trainer.step(x, y)
    assert trainer.loss_scale is None


@pytest.mark.parametrize("rule", [optim.SGD(lr=1e-3), optim.Adam(lr=0.01), optim.NAdam(lr=0.01)])
def test_a_fit_skips_what_single_steps_skip(
    cuda: str, rng: np.random.Generator, rule: optim.Optimizer
) -> None:
    """And goes on like them: neither the rule's step nor its learning rate counts a skipped one."""

    def make() -> optim.Optimizer:
        arguments = {**rule._arguments, "lr": lambda step: rule.lr / (1 + 0.1 * step)}
        return type(rule)(**arguments)

    start, x, y = line(rng, 300.0)
    results = []
    for single in (False, True):
        net, optimizer = start.copy(), make()
        if single:
            trainer = gs.Trainer(net, nn.MSELoss(), optimizer, device=cuda, precision="fp16")
            losses = [trainer.step(x[i : i + 8], y[i : i + 8]) for i in list(range(0, 64, 8)) * 2]
            lrs = [optimizer.lr_at(optimizer.t - 1)]
            results.append((net.w.tobytes(), optimizer.t, np.mean(losses[8:])))
        else:
            history = gs.fit(
                net, x, y, cost=nn.MSELoss(), optimizer=optimizer, batch_size=8, epochs=2,
                shuffle=False, device=cuda, precision="fp16",
            )  # fmt: skip
            lrs = [history.lr[-1]]
            results.append((net.w.tobytes(), optimizer.t, history.loss[-1]))
        assert 8 < optimizer.t < 16  # some were skipped, most were not
        assert lrs[0] == optimizer.lr_at(optimizer.t - 1)
    assert results[0][:2] == results[1][:2]
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-12)


def test_good_steps_double_the_scale(cuda: str, rng: np.random.Generator) -> None:
    net, x, _ = line(rng, 1.0, 2)
    y = net(x) + 0.1  # ds is about 0.1 of the scale
    trainer = gs.Trainer(net, nn.MSELoss(), optim.SGD(lr=1e-4), device=cuda, precision="fp16")
    for _ in range(1999):
        trainer.step(x, y)
    assert trainer.loss_scale == FIRST
    trainer.step(x, y)
    assert trainer.loss_scale == 2 * FIRST
    nn.Linear(1, 1).freeze()  # whatever makes the trainer look at the net anew
    trainer.step(x, y)
    assert trainer.loss_scale == 2 * FIRST


def net_and_batch(rng: np.random.Generator) -> tuple[nn.Module, Array]:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return net, rng.normal(size=(256, 4)).astype(np.float32)


def test_small_gradients_survive(cuda: str, rng: np.random.Generator) -> None:
    # The gradient of this cost is its quantile everywhere: hidden ones lie below fp16's smallest.
    net, x = net_and_batch(rng)
    cost, y = nn.QuantileLoss(2e-8, reduction="sum"), np.full((256, 2), 9.0)
    hidden = gs.backprop(net, cost, x, y).stages[1].dz
    assert 0 < np.abs(hidden).max() < 2.0**-25
    assert not half(hidden).any()
    _, expected = gs.value_and_grad(net, cost, x, y)
    _, dw = gs.value_and_grad(net.copy().to(cuda, precision="fp16"), cost, x, y)
    layer = slice(0, 4 * 8 + 8)
    most = np.abs(expected[layer]).max()
    assert np.abs(dw - expected)[layer].max() < 8 * 2.0**-11 * most
    # The same in training: a step moves the first layer as it should.
    before = net.w.copy()
    gs.Trainer(net, cost, optim.SGD(lr=1e4), device=cuda, precision="fp16").step(x, y)
    moved = (before - net.w)[layer] / 1e4
    assert np.abs(moved - expected[layer]).max() < 0.02 * most


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_cotangents_of_any_size(cuda: str, rng: np.random.Generator, size: float) -> None:
    net, x = net_and_batch(rng)
    y, pullback = gs.vjp(net, x)
    _, reduced = gs.vjp(net.copy().to(cuda, precision="fp16"), x)
    dy = (size * rng.normal(size=y.shape)).astype(np.float32)
    for got, expected in zip(reduced(dy), pullback(dy), strict=True):
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=8 * 2.0**-11 * np.abs(expected).max()
        )


def test_a_gradient_that_no_scale_saves(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = line(rng, 1e15, 1)
    before = net.w.copy()
    options: dict[str, Any] = {
        "cost": nn.SquaredError(), "device": cuda, "precision": "fp16", "epochs": 60,
    }  # fmt: skip
    with pytest.raises(FloatingPointError, match="overflows fp16 at every loss scale at epoch 40"):
        gs.fit(net, x, y, optimizer=optim.SGD(lr=1e-3), **options)
    optimizer = optim.SGD(lr=1e-3)
    gs.fit(net, x, y, optimizer=optimizer, errors="ignore", **options)  # carries on
    assert optimizer.t == 0
    assert np.array_equal(net.w, before)


def test_an_activation_that_overflows_is_a_loss_that_is_not_finite(
    cuda: str, rng: np.random.Generator
) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    net.w[...] = 400
    x = np.full((4, 2), 400, np.float32)
    before = net.w.copy()
    trainer = gs.Trainer(net, nn.MSELoss(), optim.SGD(), device=cuda, precision="fp16")
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        trainer.step(x, np.zeros((4, 1)))
    assert np.array_equal(net.w, before)


def test_a_resumed_run_has_the_scale(
    cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    start, x, y = line(rng, 300.0)
    options: dict[str, Any] = {
        "cost": nn.MSELoss(), "batch_size": 8, "device": cuda, "precision": "fp16",
    }  # fmt: skip
    whole, parts = start.copy(), start.copy()
    optimizer = optim.Adam(lr=0.01)
    gs.fit(whole, x, y, optimizer=optimizer, epochs=3, **options)
    assert optimizer.t < 24  # some were skipped
    for epochs in (1, 3):
        checkpoint = gs.Checkpoint(tmp_path / "run")
        again = optim.Adam(lr=0.01)
        gs.fit(parts, x, y, optimizer=again, epochs=epochs, checkpoint=checkpoint, **options)
    assert again.t == optimizer.t
    assert np.array_equal(parts.w, whole.w)


def test_clipping_sees_the_gradient_without_its_scale(cuda: str, rng: np.random.Generator) -> None:
    for clip in ({"clip_norm": 0.05}, {"clip_value": 0.02}):
        net, x, y = line(rng, 1.0)
        other = net.copy()
        gs.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1, **clip)).step(x, y)
        gs.Trainer(
            other, nn.MSELoss(), optim.SGD(lr=0.1, **clip), device=cuda, precision="fp16"
        ).step(x, y)
        np.testing.assert_allclose(other.w, net.w, rtol=0, atol=1e-5)
