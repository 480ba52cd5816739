"""Short calls lose no error and no memory, and threads may share a net: see test_fast_calls.py."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim
from short_calls import Array, Critic, mlp, sample


class Identity(nn.Module):
    """In NumPy; does something on its way."""

    def __init__(self, on_call: Callable[[], None]) -> None:
        super().__init__()
        self.on_call = on_call

    def forward(self, x: Array) -> Array:
        self.on_call()
        return x

    def vjp(self, x: Array, dy: Array) -> Array:
        return dy


def test_errors_of_user_code_come_through() -> None:
    fails = False

    def fail() -> None:
        if fails:
            raise LookupError("mine")

    net = nn.Sequential(nn.Linear(4, 4), Identity(fail))
    x = sample(4)
    net(x)
    fails = True
    with pytest.raises(LookupError, match="mine"):
        net(x)
    with pytest.raises(LookupError, match="mine"):
        net(sample(50, 4), out=np.empty((50, 4), np.float32))
    fails = False
    np.testing.assert_allclose(net(x), net[0].weight @ x + net[0].bias, rtol=1e-5)


def test_user_code_may_call_the_net_itself() -> None:
    depth, go, seen = 0, False, []

    def call_again() -> None:
        nonlocal depth
        if go and depth < 3:
            depth += 1
            seen.append(net(np.zeros(4, np.float32)))

    net = nn.Sequential(nn.Linear(4, 4), Identity(call_again))
    x = sample(4)
    net(x)
    go = True
    np.testing.assert_allclose(net(x), net[0].weight @ x + net[0].bias, rtol=1e-5)
    assert len(seen) == 3
    for y in seen:
        np.testing.assert_allclose(y, net[0].bias, rtol=1e-6)


def test_references_stay_balanced() -> None:
    net, critic = mlp(), Critic()
    x, x64, out = sample(4), sample(4, dtype=np.float64), np.empty(2, np.float32)
    s, u = sample(3), sample(2)
    trainer = gs.Trainer(mlp(), nn.MSELoss(), optim.SGD(lr=0.0))
    batch, y = sample(2, 4), sample(2, 2)

    def calls() -> None:
        net(x)
        net(x, out=out)
        net(x64)
        critic(s, u)
        gs.jacobian(net, x)
        gs.value_and_grad(net, trainer.cost, x, out)
        trainer.step(batch, y)
        with pytest.raises(ValueError, match="features"):
            net(batch[:, :3])

    watched = [x, x64, out, s, u, batch, y, net.w, None, x.dtype, x64.dtype, net, trainer]
    for _ in range(20):
        calls()
    gc.collect()
    before = [sys.getrefcount(o) for o in watched]
    tracemalloc.start()
    size = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        calls()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - size
    tracemalloc.stop()
    after = [sys.getrefcount(o) for o in watched]
    # None is everyone's: only a leak by the call would show.
    assert all(abs(b - a) < 100 for a, b in zip(before, after, strict=True)), (before, after)
    assert grown < 100_000


def test_nets_are_freed() -> None:
    net, x = mlp(), sample(4)
    net(x)
    net(x)
    gs.jacobian(net, x)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2000, 4)])
def test_threads_share_a_net(shape: tuple[int, ...]) -> None:
    net = mlp()
    inputs = [sample(*shape, seed=i) for i in range(4)]
    expected = [net(x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        out = np.empty_like(expected[i])
        for _ in range(200):
            if not np.array_equal(net(inputs[i]), expected[i]):
                wrong.append(i)
            if not np.array_equal(net(inputs[i], out=out), expected[i]):
                wrong.append(i)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
