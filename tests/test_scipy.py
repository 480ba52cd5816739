"""The flat vector in SciPy's hands: `gs.as_scipy`, and `optim.LBFGS` beside SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

optimize = pytest.importorskip("scipy.optimize", reason="the oracle is not installed")

Array = np.ndarray


def logistic(rng: np.random.Generator, dtype: str = "float64") -> tuple[nn.Linear, Array, Array]:
    """A convex problem with one minimum: regularised by noise in the labels."""
    x = rng.standard_normal((200, 4))
    y = (x @ [1.0, -2.0, 0.5, 0.0] + rng.logistic(size=200) > 0).astype(float)[:, None]
    return nn.Linear(4, 1, dtype=dtype), x, y


def loss_of(w: Array, x: Array, y: Array, weight: Array | None = None) -> float:
    """The logistic loss in NumPy."""
    s = x @ w[:4] + w[4]
    return float(np.average(np.logaddexp(0, s) - y[:, 0] * s, weights=weight))


def minimum(x: Array, y: Array, weight: Array | None = None) -> Array:
    done = optimize.minimize(
        loss_of, np.zeros(5), (x, y, weight), method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 10_000, "maxfev": 10_000},
    )  # fmt: skip
    assert done.success
    return np.asarray(done.x)


def test_value_and_gradient(rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    fun, x0 = gs.as_scipy(net, nn.BCEWithLogitsLoss(), x, y)
    np.testing.assert_array_equal(x0, net.w)
    assert not np.shares_memory(x0, net.w)
    w = rng.standard_normal(5)
    loss, g = fun(w)
    assert isinstance(loss, float)
    assert loss == pytest.approx(loss_of(w, x, y), rel=1e-12)
    error = optimize.check_grad(lambda w: loss_of(w, x, y), lambda w: fun(w)[1], w)
    assert error < 1e-6
    assert g.dtype == np.float64


@pytest.mark.parametrize("method", ["L-BFGS-B", "BFGS", "CG", "TNC", "SLSQP", "Newton-CG"])
def test_methods_of_scipy_find_the_minimum(method: str, rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    cost = nn.BCEWithLogitsLoss()
    fun, x0 = gs.as_scipy(net, cost, x, y)
    more: dict[str, Any] = {"tol": 1e-12}
    if method == "Newton-CG":
        more = {"tol": 1e-10, "hessp": lambda w, v: gs.hvp(net, cost, x, y, v, w=w)}
    if method == "BFGS":
        more = {"options": {"gtol": 1e-9}}
    found = optimize.minimize(fun, x0, jac=True, method=method, **more)
    np.testing.assert_allclose(found.x, minimum(x, y), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(net.w, x0)  # the net is not touched


def test_nonlinear_net_of_float32_works_in_float64(rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    x = rng.uniform(-1, 1, (60, 2))
    y = (x[:, :1] * x[:, 1:]).astype(np.float32)
    fun, x0 = gs.as_scipy(net, nn.MSELoss(), x, y)
    assert x0.dtype == np.float64
    numeric = optimize.approx_fprime(x0, lambda w: fun(w)[0], 1e-7)
    np.testing.assert_allclose(fun(x0)[1], numeric, rtol=0, atol=1e-6)
    found = optimize.minimize(fun, x0, jac=True, method="BFGS", options={"maxiter": 3000})
    assert found.fun < 1e-5
    net.w = found.x
    assert nn.MSELoss()(net(x), y) == pytest.approx(found.fun, rel=1e-2)


def test_sample_weights_and_frozen_parameters(rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    weight = rng.uniform(0, 2, 200)
    fun, x0 = gs.as_scipy(net, nn.BCEWithLogitsLoss(), x, y, sample_weight=weight)
    found = optimize.minimize(fun, x0, jac=True, method="L-BFGS-B", tol=1e-14)
    np.testing.assert_allclose(found.x, minimum(x, y, weight), rtol=0, atol=1e-5)
    net.bias.requires_grad = False
    fun, x0 = gs.as_scipy(net, nn.BCEWithLogitsLoss(), x, y)
    assert fun(x0)[1][4] == 0
    found = optimize.minimize(fun, x0, jac=True, method="L-BFGS-B", tol=1e-14)
    assert found.x[4] == x0[4]


def test_the_function_keeps_its_own_copy_of_the_data(rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    fun, x0 = gs.as_scipy(net, nn.BCEWithLogitsLoss(), x, y)
    before = fun(x0)
    x[:], y[:] = 0, 0
    net.w[:] = 0
    after = fun(x0)
    assert after[0] == before[0]
    np.testing.assert_array_equal(after[1], before[1])


def test_bad_arguments_are_named(rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    fun, _ = gs.as_scipy(net, nn.BCEWithLogitsLoss(), x, y)
    with pytest.raises(ValueError, match="w has"):
        fun(np.zeros(4))
    with pytest.raises(ValueError, match="no samples"):
        gs.as_scipy(net, nn.BCEWithLogitsLoss(), x[:0], y[:0])
    with pytest.raises(TypeError, match="net must be"):
        gs.as_scipy(x, nn.BCEWithLogitsLoss(), x, y)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum_too(search: str | None, rng: np.random.Generator) -> None:
    net, x, y = logistic(rng)
    optimizer = optim.LBFGS(
        max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn=search
    )
    trainer = gs.Trainer(net, nn.BCEWithLogitsLoss(), optimizer)
    for _ in range(3):
        trainer.step(x, y)
    np.testing.assert_allclose(net.w, minimum(x, y), rtol=0, atol=1e-5)


def test_lbfgs_needs_about_as_many_evaluations_as_scipys(rng: np.random.Generator) -> None:
    w_true = rng.standard_normal(61)
    x = rng.standard_normal((400, 20)) * np.geomspace(1, 0.05, 20)
    net = nn.Sequential(
        nn.Linear(20, 5, dtype="float64"), nn.Softplus(), nn.Linear(5, 1, dtype="float64")
    )
    y = np.sin(x @ w_true[:20])[:, None]
    cost = nn.MSELoss()
    fun, x0 = gs.as_scipy(net, cost, x, y)
    theirs = optimize.minimize(
        fun, x0, jac=True, method="L-BFGS-B", options={"maxcor": 10, "maxiter": 300, "maxfun": 400}
    )
    calls = 0

    class Counting(nn.Cost):
        def value(self, ybar: Array, y: Any) -> Array:
            return ((ybar - y) ** 2).mean(axis=1)

        def gradient(self, ybar: Array, y: Any) -> Array:
            nonlocal calls
            calls += 1
            return 2 * (ybar - y) / ybar.shape[1]

    optimizer = optim.LBFGS(max_iter=300, max_eval=theirs.nfev, history_size=10,
                            line_search_fn="strong_wolfe")  # fmt: skip
    gs.Trainer(net, Counting(), optimizer).step(x, y)
    assert calls <= theirs.nfev + 25  # one line search may overrun
    assert cost(net(x), y) < 2 * theirs.fun + 1e-3 * fun(x0)[0]
