"""`optim.KFAC` against a dense computation of its Kronecker factors and steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

torch = pytest.importorskip("torch", reason="the oracle is not installed")
func = torch.func
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Array = np.ndarray
SIZES = ((5, 4), (4, 3))  # in, out of the two layers
COSTS: dict[str, tuple[Any, Any]] = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy),
    "SquaredError": (nn.SquaredError(), lambda a, y: ((a - y) ** 2).sum()),
}


def make_net(dtype: str = "float64") -> nn.Sequential:
    a, b = (nn.Linear(*size, dtype=dtype) for size in SIZES)
    return nn.Sequential(a, nn.Tanh(), b)


def data(name: str, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    labels = name == "CrossEntropyLoss"
    return rng.standard_normal((n, 5)), (
        rng.integers(0, 3, n) if labels else rng.standard_normal((n, 3))
    )


class Dense:
    """K-FAC of the net above, written out: explicit Jacobians, Kronecker products, solves."""

    def __init__(
        self, w: Array, loss: Any, lr: float, momentum: float, damping: float, decay: float
    ) -> None:
        self.w, self.loss = w.copy(), loss
        self.lr, self.momentum, self.damping, self.decay = lr, momentum, damping, decay
        self.factors: list[tuple[Array, Array]] = []
        self.updates = 0
        self.velocity = np.zeros_like(w)

    def layers(self, w: Any) -> list[Any]:
        """[weight | bias] of both layers."""
        found, at = [], 0
        for d, out in SIZES:
            weight = w[at : at + d * out].reshape(out, d)
            found.append(torch.cat([weight, w[at + d * out : at + d * out + out, None]], 1))
            at += d * out + out
        return found

    def forward(self, w: Any, x: Any) -> tuple[Any, Any, Any]:
        a, b = self.layers(w)
        s0 = a[:, :-1] @ x + a[:, -1]
        z1 = torch.tanh(s0)
        return s0, z1, b[:, :-1] @ z1 + b[:, -1]

    def fresh_factors(self, x: Any, y: Any) -> list[tuple[Array, Array]]:
        """Second moments of the inputs, and of the gradients under the model's own distribution.

        The gradients' moment is E[J^T H J], with H the Hessian of the cost in ybar.
        """
        w = torch.tensor(self.w)
        count = len(x)
        b = self.layers(w)[1]
        moments = [np.zeros((d + 1, d + 1)) for d, _ in SIZES]
        outers = [np.zeros((out, out)) for _, out in SIZES]
        for i in range(count):
            s0, z1, ybar = self.forward(w, x[i])
            bent = func.hessian(self.loss)(ybar, y[i]).numpy()
            tail = func.jacrev(lambda s: b[:, :-1] @ torch.tanh(s) + b[:, -1])(s0).numpy()
            for k, (z, jacobian) in enumerate(((x[i], tail), (z1, np.eye(3)))):
                with_one = np.append(z.numpy(), 1.0)
                moments[k] += np.outer(with_one, with_one) / count
                outers[k] += jacobian.T @ bent @ jacobian / count
        return list(zip(moments, outers, strict=True))

    def step(self, x: Array, y: Array, update: bool = True, kl_clip: float | None = None) -> None:
        tx, ty, w = torch.tensor(x), torch.tensor(y), torch.tensor(self.w)
        each = func.vmap(lambda w, x, y: self.loss(self.forward(w, x)[2], y), (None, 0, 0))
        g = func.grad(lambda w: each(w, tx, ty).mean())(w).numpy()
        if update:
            self.updates += 1
            old = min(1 - 1 / self.updates, self.decay)
            fresh = self.fresh_factors(tx, ty)
            if self.factors:
                fresh = [
                    (old * a0 + (1 - old) * a, old * s0 + (1 - old) * s)
                    for (a0, s0), (a, s) in zip(self.factors, fresh, strict=True)
                ]
            self.factors = fresh
        direction, at = [], 0
        for (d, out), (a, s) in zip(SIZES, self.factors, strict=True):
            weight, bias = g[at : at + d * out], g[at + d * out : at + d * out + out]
            at += d * out + out
            both = np.column_stack([weight.reshape(out, d), bias]).ravel()
            # The flat order has the output slowest: S (x) A.
            curvature = np.kron(s, a) + self.damping * np.eye(both.size)
            both = np.linalg.solve(curvature, both).reshape(out, d + 1)
            direction += [both[:, :d].ravel(), both[:, d]]
        step = np.concatenate(direction)
        if kl_clip is not None:
            step *= min(1.0, math.sqrt(kl_clip / (self.lr**2 * (g @ step))))
        self.velocity = self.momentum * self.velocity + step
        self.w -= self.lr * self.velocity


SETTINGS: dict[str, float] = {"lr": 0.1, "momentum": 0.5, "damping": 0.03, "decay": 0.4}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("update_every", [1, 3])
@pytest.mark.parametrize("kl_clip", [None, 1e-4])
def test_steps(name: str, update_every: int, kl_clip: float | None) -> None:
    rng = np.random.default_rng(0)
    cost, loss = COSTS[name]
    net = make_net()
    dense = Dense(net.w, loss, **SETTINGS)
    optimizer = optim.KFAC(update_every=update_every, kl_clip=kl_clip, **SETTINGS)
    trainer = gs.Trainer(net, cost, optimizer)
    for t in range(5):
        x, y = data(name, rng, 12)
        dense.step(x, y, t % update_every == 0, kl_clip)
        trainer.step(x, y)
        np.testing.assert_allclose(net.w, dense.w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", COSTS)
def test_for_one_sample_the_factors_are_the_gauss_newton_blocks(name: str) -> None:
    rng = np.random.default_rng(1)
    cost, loss = COSTS[name]
    net = make_net()
    x, y = data(name, rng, 1)
    g = gs.value_and_grad(net, cost, x, y)[1]
    dense = Dense(net.w, loss, **SETTINGS)
    w = torch.tensor(net.w.copy())
    jacobian = func.jacrev(lambda w: dense.forward(w, torch.tensor(x[0]))[2])(w).numpy()
    bent = func.hessian(loss)(dense.forward(w, torch.tensor(x[0]))[2], torch.tensor(y)[0]).numpy()
    ggn = jacobian.T @ bent @ jacobian
    cut = SIZES[0][0] * SIZES[0][1] + SIZES[0][1]
    ggn[:cut, cut:] = ggn[cut:, :cut] = 0  # blocks of the layers
    expected = net.w - np.linalg.solve(ggn + 0.1 * np.eye(len(g)), g)
    optimizer = optim.KFAC(lr=1.0, momentum=0, damping=0.1, kl_clip=None)
    gs.Trainer(net, cost, optimizer).step(x, y)
    np.testing.assert_allclose(net.w, expected, rtol=0, atol=1e-10)


def test_random_gradients_estimate_the_exact_factors() -> None:
    rng = np.random.default_rng(2)
    x, y = data("CrossEntropyLoss", rng, 20)
    moves = {}
    for samples in (None, 1, 2000):
        gs.seed(0)
        net = make_net()
        before = net.w.copy()
        optimizer = optim.KFAC(lr=1.0, momentum=0, damping=0.1, kl_clip=None, samples=samples)
        gs.Trainer(net, nn.CrossEntropyLoss(), optimizer).step(x, y)
        moves[samples] = net.w - before
    size = np.linalg.norm(moves[None])
    assert np.linalg.norm(moves[2000] - moves[None]) < 0.02 * size
    assert np.linalg.norm(moves[1] - moves[None]) > 0.02 * size


def test_weight_decay_masks_and_frozen_parameters() -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((4, 5)) < 0.6
    x, y = data("SquaredError", rng, 15)
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0, "damping": 0.5, "kl_clip": None}
    nets = []
    for decay_bias in (True, False):
        gs.seed(0)
        net = nn.Sequential(
            nn.Linear(5, 4, mask=mask, dtype="float64"), nn.Linear(4, 3, dtype="float64")
        )
        net[1].bias.requires_grad = False
        before = net.w.copy()
        optimizer = optim.KFAC(weight_decay=0.3, decay_bias=decay_bias, **settings)
        gs.Trainer(net, nn.SquaredError(), optimizer).step(x, y)
        still = np.concatenate([~mask.ravel(), np.zeros(16, bool), np.ones(3, bool)])
        np.testing.assert_array_equal(net.w[still], before[still])
        assert np.all(net.w[~still] != before[~still])
        nets.append(net.w.copy())
    assert not np.array_equal(nets[0], nets[1])


def test_state_continues_with_the_same_bits() -> None:
    rng = np.random.default_rng(4)
    batches = [data("CrossEntropyLoss", rng, 12) for _ in range(8)]
    net = make_net("float32")
    optimizer = optim.KFAC(update_every=3, samples=2)
    trainer = gs.Trainer(net, nn.CrossEntropyLoss(), optimizer)
    for batch in batches[:4]:
        trainer.step(*batch)
    middle, state = net.w.copy(), optimizer.state_dict()
    for batch in batches[4:]:
        trainer.step(*batch)
    end = net.w.copy()
    net.w = middle
    again = optim.KFAC(update_every=3, samples=2)
    again.load_state_dict(state)
    trainer = gs.Trainer(net, nn.CrossEntropyLoss(), again)
    for batch in batches[4:]:
        trainer.step(*batch)
    np.testing.assert_array_equal(net.w, end)


def test_it_needs_fewer_steps_than_adam() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((500, 10)) * np.geomspace(1, 0.01, 10)  # ill-conditioned
    y = np.tanh(x / np.geomspace(1, 0.01, 10)).sum(axis=1, keepdims=True)
    final = {}
    for name, optimizer in (
        ("kfac", optim.KFAC(lr=0.3, momentum=0.5, kl_clip=1e-2, update_every=1)),
        *((f"adam {lr}", optim.Adam(lr=lr)) for lr in (1e-3, 1e-2, 1e-1)),
    ):
        gs.seed(0)
        net = nn.Sequential(
            nn.Linear(10, 20, dtype="float64"), nn.Tanh(), nn.Linear(20, 1, dtype="float64")
        )
        gs.fit(net, x, y, cost=nn.MSELoss(), optimizer=optimizer, batch_size=100, epochs=30)
        final[name] = nn.MSELoss()(net(x), y)
    assert min(final, key=final.__getitem__) == "kfac", final


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"momentum": 1.0}, "momentum must be in"),
        ({"damping": 0}, "damping must be positive"),
        ({"decay": -0.1}, "decay"),
        ({"update_every": 0}, "update_every"),
        ({"samples": 0}, "samples"),
        ({"kl_clip": 0}, "kl_clip must be positive"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        optim.KFAC(**arguments)
