"""Short calls of `gs.jacobian`, `gs.value_and_grad` and `Trainer.step`: see test_fast_calls.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import functional, nn, optim
from gradstack._calculus import _jacobian
from short_calls import Count, mlp, sample


class Joined(nn.Module):
    """Two inputs and one output."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Linear(5, 1)

    def forward(self, s: Any, u: Any) -> Any:
        return self.m(gs.concat([s, u]))


# Jacobians ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4,), (6, 4)])
@pytest.mark.parametrize("wrt", ["x", "w"])
def test_jacobian(
    monkeypatch: pytest.MonkeyPatch, wrt: str, shape: tuple[int, ...], dtype: Any
) -> None:
    count = Count(_jacobian.point)
    monkeypatch.setattr(_jacobian, "point", count)
    net, x = mlp(dtype), sample(*shape, dtype=dtype)
    first = gs.jacobian(net, x, wrt)
    second = gs.jacobian(net, x, wrt)
    out = np.empty_like(first)
    assert gs.jacobian(net, x, wrt, out=out) is out
    assert count.calls == 1
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(out, first)
    explicit = gs.jacobian(net, x, wrt, w=net.w)
    assert count.calls == 2
    np.testing.assert_array_equal(explicit, first)
    with pytest.raises(ValueError, match="out has shape"):
        gs.jacobian(net, x, wrt, out=out[..., :1])
    other = "w" if wrt == "x" else "x"
    assert gs.jacobian(net, x, other).shape != first.shape
    net.append(nn.Tanh())
    assert not np.array_equal(gs.jacobian(net, x, wrt), first)


def test_jacobian_takes_nets_only() -> None:
    with pytest.raises(TypeError, match=r"net must be an nn\.Module, got int"):
        gs.jacobian(3, sample(4))  # type: ignore[arg-type]


# Steps and gradients --------------------------------------------------------------------------


def reference_step(make: Callable[[], tuple[nn.Module, nn.Cost]], batches: Any) -> tuple[Any, Any]:
    """Losses and weights where every step goes the general way."""
    net, cost = make()
    optimizer = optim.Adam(lr=0.05)
    losses = []
    for batch in batches:
        trainer = gs.Trainer(net, cost, optimizer)  # a new one has settled nothing
        losses.append(trainer.step(*batch))
    return losses, net.w.copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["dense", "column", "labels", "weights", "several", "single"])
def test_steps(kind: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 6
    if kind == "several" and dtype == np.float64:
        pytest.skip("the net with two inputs is float32")

    def make() -> tuple[nn.Module, nn.Cost]:
        gs.seed(3)
        if kind == "several":
            return Joined(), nn.MSELoss()
        if kind == "labels":
            return mlp(dtype), nn.CrossEntropyLoss()
        if kind == "column":
            return nn.Linear(4, 1, dtype=dtype), nn.MSELoss()
        return mlp(dtype), nn.MSELoss()

    def batch(i: int) -> tuple[Any, ...]:
        lead = () if kind == "single" else (n,)
        x = sample(*lead, 4, dtype=dtype, seed=i)
        if kind == "several":
            return (sample(n, 3, seed=i), sample(n, 2, seed=50 + i)), sample(n, 1, seed=90 + i)
        if kind == "labels":
            return x, np.arange(n) % 2
        if kind == "column":
            return x, sample(n, dtype=dtype, seed=90 + i)
        y = sample(*lead, 2, dtype=dtype, seed=90 + i)
        return (x, y, np.arange(n, dtype=dtype)) if kind == "weights" else (x, y)

    batches = [batch(i) for i in range(5)]
    expected_losses, expected_w = reference_step(make, batches)
    net, cost = make()
    trainer = gs.Trainer(net, cost, optim.Adam(lr=0.05))
    count = Count(trainer._general_step)
    monkeypatch.setattr(trainer, "_general_step", count)
    losses = [trainer.step(*b) for b in batches]
    assert count.calls == 1
    assert losses == expected_losses
    np.testing.assert_array_equal(net.w, expected_w)


def test_steps_refuse_what_they_refused() -> None:
    net = mlp()
    trainer = gs.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
    x, y = sample(3, 4), np.array([0, 1, 0])
    trainer.step(x, y)
    w = net.w.copy()
    with pytest.raises(ValueError, match="label"):
        trainer.step(x, np.array([0, 2, 0]))
    with pytest.raises(ValueError, match="label"):
        trainer.step(x, np.array([0, -1, 0]))
    for weight, message in [
        ([1, -1, 1], "negative"),
        ([1, np.nan, 1], "not finite"),
        ([0, 0, 0], "zero everywhere"),
        ([1, 1], "shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.step(x, y, np.array(weight, np.float32))
    with pytest.raises(ValueError, match=r"y has shape \(2,\), expected class labels \(3,\)"):
        trainer.step(x, y[:2])
    with pytest.raises(FloatingPointError, match="nan"):
        trainer.step(np.full_like(x, np.nan), y)
    np.testing.assert_array_equal(net.w, w)


def test_costs_with_checks_of_their_own_keep_them() -> None:
    trainer = gs.Trainer(mlp(), nn.CategoricalPolicyLoss(), optim.SGD(lr=0.1))
    x = sample(1, 4)
    for _ in range(2):
        trainer.step(x, np.array([[1, 0.5]], np.float32))
    with pytest.raises(ValueError, match="expected an action in"):
        trainer.step(x, np.array([[2, 0.5]], np.float32))


def test_reset_optimiser_starts_anew() -> None:
    net, optimizer = mlp(), optim.Adam(lr=0.1)
    trainer = gs.Trainer(net, nn.MSELoss(), optimizer)
    x, y = sample(3, 4), sample(3, 2)
    trainer.step(x, y)
    trainer.step(x, y)
    optimizer.reset()
    trainer.step(x, y)
    assert optimizer.t == 1
    trainer.step(x, y)
    assert optimizer.t == 2


def test_steps_follow_schedule_freezing_and_lr() -> None:
    net, optimizer = mlp(), optim.SGD(lr=lambda step: 0.0 if step < 3 else 0.5)
    trainer = gs.Trainer(net, nn.MSELoss(), optimizer)
    x, y, start = sample(3, 4), sample(3, 2), net.w.copy()
    for _ in range(3):
        trainer.step(x, y)
    np.testing.assert_array_equal(net.w, start)
    trainer.step(x, y)
    assert not np.array_equal(net.w, start)
    moved = net.w.copy()
    net.freeze()
    trainer.step(x, y)
    np.testing.assert_array_equal(net.w, moved)
    net.unfreeze()
    optimizer.lr = 0.0
    trainer.step(x, y)
    np.testing.assert_array_equal(net.w, moved)


@pytest.mark.parametrize("labels", [False, True])
def test_value_and_grad(monkeypatch: pytest.MonkeyPatch, labels: bool) -> None:
    count = Count(functional.read)
    monkeypatch.setattr(functional, "read", count)
    net, x = mlp(np.float64), sample(5, 4, dtype=np.float64)
    cost: nn.Cost = nn.CrossEntropyLoss() if labels else nn.MSELoss()
    y = np.arange(5) % 2 if labels else sample(5, 2, dtype=np.float64)
    first = gs.value_and_grad(net, cost, x, y)
    weight = np.arange(5.0)
    second = gs.value_and_grad(net, cost, x, y)
    weighted = gs.value_and_grad(net, cost, x, y, sample_weight=weight)
    assert count.calls == 1
    assert type(second[0]) is float
    assert second[0] == first[0]
    np.testing.assert_array_equal(second[1], first[1])
    assert not np.shares_memory(second[1], first[1])
    explicit = gs.value_and_grad(net, cost, x, y, net.w, weight)
    assert count.calls == 2
    assert explicit[0] == weighted[0]
    np.testing.assert_array_equal(explicit[1], weighted[1])
    step, w = 1e-6, net.w
    direction = sample(w.size, dtype=np.float64, seed=9)
    w += step * direction
    above = gs.value_and_grad(net, cost, x, y)[0]
    w -= 2 * step * direction
    below = gs.value_and_grad(net, cost, x, y)[0]
    assert (above - below) / (2 * step) == pytest.approx(first[1] @ direction, rel=1e-6)
    other = gs.value_and_grad(net, nn.CrossEntropyLoss() if labels else nn.L1Loss(), x, y)
    assert labels == (other[0] == below)


def test_value_and_grad_follows_dropout() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    cost, x, y = nn.MSELoss(), sample(4), sample(2)
    assert len({gs.value_and_grad(net, cost, x, y)[0] for _ in range(4)}) == 1
    net.train()
    assert len({gs.value_and_grad(net, cost, x, y)[0] for _ in range(8)}) > 1
