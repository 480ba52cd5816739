"""Zeroth-order methods: on stairs and holes, within their budget, over nets, and their errors."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

OWN = ("es", "spsa", "random")
PACKAGES = {"cma": "cma"}

every_method = pytest.mark.parametrize("method", gs.blackbox.methods)
own_methods = pytest.mark.parametrize("method", OWN)
# Each evaluation of COBYLA takes a thousand times what the function does.
long_searches = pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=pytest.mark.slow) if m == "cobyla" else m for m in gs.blackbox.methods],
)
# The other seeds are for .ci/full.
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)


def require(method: str) -> None:
    if method not in OWN:
        pytest.importorskip(PACKAGES.get(method, "scipy"))


# Ten variables, gradient zero wherever there is one.
_OFFSET = np.linspace(-4, 4, 10)
STAIRS = {
    "unit": (lambda x: np.floor(np.abs(x)).sum(), np.full(10, 5.0)),
    "fine": (lambda x: np.floor(100 * np.abs(x)).sum() / 100, np.full(10, 0.3)),
    "coarse": (lambda x: np.floor(np.abs(x) / 100).sum(), np.full(10, 900.0)),
    "squares": (lambda x: np.floor(x**2).sum(), np.full(10, -3.0)),
    "away from zero": (lambda x: np.floor(np.abs(x - 3)).sum(), np.zeros(10)),
    "different": (lambda x: np.floor(2 * np.abs(x - _OFFSET)).sum(), np.linspace(5, -6, 10)),
}
stairs = pytest.mark.parametrize("name", STAIRS)


@long_searches
@seeds
@stairs
def test_stairs(method: str, seed: int, name: str) -> None:
    require(method)
    f, x0 = STAIRS[name]
    if method == "cobyla" and seed > 0:
        return  # it takes no chances: one seed is all seeds
    result = gs.blackbox.minimize(f, x0, method=method, maxfev=5000, seed=seed)
    assert result.fun < 0.3 * f(x0)
    assert result.fun == f(result.x)


@seeds
@stairs
@pytest.mark.parametrize("maxfev", [1000, 10_000])
def test_the_default_on_stairs(seed: int, name: str, maxfev: int) -> None:
    f, x0 = STAIRS[name]
    result = gs.blackbox.minimize(f, x0, maxfev=maxfev, seed=seed)
    assert result.fun < 0.1 * f(x0)
    assert result.success


@every_method
@pytest.mark.parametrize("maxfev", [1, 2, 7, 50, 333])
def test_the_budget_is_never_exceeded(method: str, maxfev: int) -> None:
    require(method)
    calls: list[np.ndarray] = []

    def f(x: np.ndarray) -> float:
        calls.append(x.copy())
        return float(np.sum(x**2))

    result = gs.blackbox.minimize(f, np.full(3, 2.0), method=method, maxfev=maxfev)
    assert result.nfev == len(calls) <= maxfev
    if maxfev <= 50:
        assert result.nfev > 0.8 * maxfev - 8  # what is allowed is used
    np.testing.assert_array_equal(calls[0], np.full(3, 2.0))
    values = [float(np.sum(x**2)) for x in calls]
    assert result.fun == min(values)
    np.testing.assert_array_equal(result.x, calls[int(np.argmin(values))])


@long_searches
def test_smooth_functions(method: str) -> None:
    require(method)
    target = np.array([1.0, -2.0, 0.5])
    result = gs.blackbox.minimize(
        lambda x: np.sum((x - target) ** 2), np.zeros(3), method=method, maxfev=3000
    )
    assert result.fun < 1e-2


@every_method
def test_the_same_seed_gives_the_same_search(method: str) -> None:
    require(method)
    f, x0 = STAIRS["different"]
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(4)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first = gs.blackbox.minimize(f, x0, method=method, maxfev=300, seed=3)
    again = gs.blackbox.minimize(f, x0, method=method, maxfev=300, seed=3)
    np.testing.assert_array_equal(first.x, again.x)
    assert first.nfev == again.nfev
    # NumPy's global generator is the user's.
    np.testing.assert_array_equal(np.random.random(4), expected)  # noqa: NPY002


@every_method
def test_holes(method: str) -> None:
    """NaN and infinity are worse than any number, and never the result."""
    require(method)

    def f(x: np.ndarray) -> float:
        if x[0] > 4.5:
            return float("nan")
        return float("inf") if x[1] < -0.5 else float(np.floor(np.abs(x)).sum())

    result = gs.blackbox.minimize(f, np.full(4, 4.0), method=method, maxfev=3000)
    assert result.success
    assert result.fun < 0.3 * 16


@every_method
def test_nothing_but_holes(method: str) -> None:
    require(method)
    result = gs.blackbox.minimize(lambda x: np.nan, np.ones(3), method=method, maxfev=200)
    assert not result.success
    assert result.fun == np.inf
    np.testing.assert_array_equal(result.x, np.ones(3))


@every_method
def test_target_and_callback(method: str) -> None:
    require(method)
    f, x0 = STAIRS["unit"]
    seen: list[gs.blackbox.Progress] = []
    result = gs.blackbox.minimize(
        f, x0, method=method, maxfev=5000, target=10, callback=seen.append
    )
    assert result.success
    assert result.fun <= 10
    assert result.nfev < 5000
    assert [p.fun for p in seen] == sorted({p.fun for p in seen}, reverse=True)
    assert seen[-1].fun == result.fun
    stopped = gs.blackbox.minimize(f, x0, method=method, callback=lambda p: p.fun < 40)
    assert stopped.nfev < 10_000
    assert "callback" in stopped.message
    missed = gs.blackbox.minimize(f, x0, method=method, maxfev=20, target=-1)
    assert not missed.success


@every_method
def test_errors_of_f_come_out_unchanged(method: str) -> None:
    require(method)

    class BrokenError(RuntimeError):
        pass

    def f(x: np.ndarray) -> float:
        if len(calls) == 25:
            raise BrokenError("here")
        calls.append(x)
        return float(np.sum(x**2))

    calls: list[np.ndarray] = []
    with pytest.raises(BrokenError, match="here"):
        gs.blackbox.minimize(f, np.ones(4), method=method)


def test_arguments_are_checked() -> None:
    f = STAIRS["unit"][0]
    minimize: Any = gs.blackbox.minimize
    with pytest.raises(ValueError, match=r"method must be one of es, .*'hope'"):
        minimize(f, [1.0], method="hope")
    with pytest.raises(TypeError, match="f must be callable, got float"):
        minimize(1.0, [1.0])
    with pytest.raises(TypeError, match="x0 is None"):
        minimize(f)
    with pytest.raises(ValueError, match=r"x0 has shape \(1, 2\)"):
        minimize(f, [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"x0 has nan in row 1"):
        minimize(f, [1.0, np.nan])
    with pytest.raises(ValueError, match="maxfev must be at least 1, got 0"):
        minimize(f, [1.0], maxfev=0)
    with pytest.raises(TypeError, match="maxfev must be an integer"):
        minimize(f, [1.0], maxfev=1e4)
    with pytest.raises(ValueError, match="step must be positive"):
        minimize(f, [1.0, 2.0], step=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"step has shape \(3,\)"):
        minimize(f, [1.0, 2.0], step=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="seed must be at least 0"):
        minimize(f, [1.0], seed=-1)
    with pytest.raises(ValueError, match="population is an option of es, spsa, random"):
        minimize(f, [1.0], method="powell", population=10)
    for bad in (None, "low", np.ones(2), 1j):
        with pytest.raises(TypeError, match="f returned"):
            minimize(lambda x, bad=bad: bad, [1.0, 2.0])
    assert minimize(lambda x: np.array([[3.0]]), [1.0], maxfev=3).fun == 3.0


@pytest.mark.parametrize("method", ["cma", "nelder-mead"])
def test_a_missing_package_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES.get(method, "scipy")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install gradstack\[blackbox\]"):
        gs.blackbox.minimize(lambda x: 0.0, [1.0], method=method)


# Nets.


def moons(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    X = np.stack([np.cos(angle), np.sin(angle)], 1)
    X[y == 1] = [1.0, 0.5] - X[y == 1]
    return X + rng.normal(scale=0.1, size=X.shape), y


def small_net(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8, **options), nn.Tanh(), nn.Linear(8, 2, **options))


def losses_of(net: Any, cost: Any, X: Any, y: Any, W: np.ndarray, weight: Any = None) -> np.ndarray:
    return np.array([cost(gs.apply(net, w, X), y, weight) for w in W])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 5, 128, 700])
@pytest.mark.parametrize(
    "cost", [nn.CrossEntropyLoss(), nn.ZeroOneLoss(), nn.CrossEntropyLoss(reduction="sum")], ids=str
)
def test_an_objective_is_the_loss_of_every_member(dtype: Any, count: int, cost: Any) -> None:
    X, y = moons(count)
    net = small_net(dtype=dtype)
    rng = np.random.default_rng(1)
    W = (net.w + rng.normal(scale=0.3, size=(9, net.w.size))).astype(dtype)
    weight = rng.uniform(0.1, 1, count)
    for sample_weight in (None, weight):
        f = gs.blackbox.Objective(net, cost, X, y, sample_weight=sample_weight)
        expected = losses_of(net, cost, X.astype(dtype), y, W, sample_weight)
        np.testing.assert_allclose(f(W), expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
        assert isinstance(f(W[0]), float)
        assert f(W[0]) == f(W)[0]
        for threads in (1, 2, 3):
            many = gs.blackbox.Objective(
                net, cost, X, y, sample_weight=sample_weight, num_threads=threads
            )
            np.testing.assert_array_equal(many(W), f(W))


def test_the_zero_one_loss_counts_errors() -> None:
    rng = np.random.default_rng(0)
    ybar, y = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    wrong = ybar.argmax(axis=1) != y
    assert nn.ZeroOneLoss()(ybar, y) == pytest.approx(wrong.mean())
    np.testing.assert_array_equal(nn.ZeroOneLoss().per_sample(ybar, y), wrong)
    weight = np.array([1.0, 2.0, 0.5, 3.0])
    expected = (wrong * weight[y]).sum() / weight[y].sum()
    assert nn.ZeroOneLoss(weight)(ybar, y) == pytest.approx(expected)


def test_training_on_the_zero_one_loss_is_refused() -> None:
    X, y = moons(20)
    net, cost = small_net(), nn.ZeroOneLoss()
    w = net.w.copy()
    calls = [
        lambda: gs.fit(net, X, y, cost=cost, optimizer=optim.SGD(lr=0.1)),
        lambda: gs.Trainer(net, cost, optim.SGD(lr=0.1)).step(X, y),
        lambda: gs.value_and_grad(net, cost, X, y),
        lambda: gs.backprop(net, cost, X, y),
        lambda: gs.per_sample_grad(net, cost, X, y),
        lambda: gs.hvp(net, cost, X, y, w),
        lambda: cost.gradient(net(X), y),
        lambda: gs.fit(net, X, y, cost=cost, optimizer=optim.LBFGS()),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"\[ZeroOneLoss\] has no gradient.*gs.blackbox"):
            call()
    np.testing.assert_array_equal(net.w, w)


@own_methods
@seeds
def test_a_net_learns_without_gradient(method: str, seed: int) -> None:
    X, y = moons()
    gs.seed(seed)
    net = small_net()
    f = gs.blackbox.Objective(net, nn.ZeroOneLoss(), X, y)
    result = gs.blackbox.minimize(f, method=method, maxfev=6000, seed=seed)
    assert result.nfev <= 6000
    assert result.x.dtype == np.float32
    assert result.fun == f(result.x)
    assert result.fun < 0.5 * f(f.x0)
    net.w = result.x
    assert np.mean(net(X).argmax(axis=1) != y) == pytest.approx(result.fun)


@own_methods
def test_a_search_has_the_same_bits_for_any_number_of_threads(method: str) -> None:
    X, y = moons()
    net = small_net()
    results = [
        gs.blackbox.minimize(
            gs.blackbox.Objective(net, nn.CrossEntropyLoss(), X, y, num_threads=threads),
            method=method,
            maxfev=500,
            population=20,
        )
        for threads in (1, 2, 5)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.x, results[0].x)


@every_method
def test_frozen_and_masked_weights_stay(method: str) -> None:
    require(method)
    X, y = moons(50)
    mask = np.array([[True, False], [True, True], [False, True]])
    net = nn.Sequential(nn.Linear(2, 3, mask=mask), nn.Tanh(), nn.Linear(3, 2))
    net[2].bias.requires_grad = False
    f = gs.blackbox.Objective(net, nn.ZeroOneLoss(), X, y)
    held = np.zeros(net.w.size, bool)
    held[[1, 4]] = True  # the masked entries of the first weight
    held[-2:] = True  # the frozen bias
    np.testing.assert_array_equal(f.free, ~held)
    start = net.w.copy()
    result = gs.blackbox.minimize(f, method=method, maxfev=150)
    np.testing.assert_array_equal(result.x[held], start[held])
    np.testing.assert_array_equal(net.w, start)


class Rounded(nn.Cost):
    """A cost with a value and no gradient; where its calls come from is noted."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def value(self, ybar: np.ndarray, y: Any) -> np.ndarray:
        self.threads.add(threading.get_ident())
        return np.floor(3 * np.abs(ybar - y)).sum(axis=1)


def test_a_cost_written_in_python_needs_a_value_only() -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(300, 2))
    y = X @ [2.0, -1.0] + 3
    net, cost = nn.Linear(2, 1), Rounded()
    f = gs.blackbox.Objective(net, cost, X, y, num_threads=4)
    W = np.random.default_rng(1).normal(size=(6, 3))
    expected = [np.floor(3 * np.abs(X @ w[:2] + w[2] - y)).mean() for w in W]
    np.testing.assert_allclose(f(W), expected, rtol=1e-2)  # a sample at an edge may fall off
    result = gs.blackbox.minimize(f, maxfev=2000)
    assert result.fun == 0.0
    assert cost.threads == {threading.get_ident()}


def test_errors_of_a_python_cost_come_out_unchanged() -> None:
    class Broken(nn.Cost):
        def value(self, ybar: np.ndarray, y: Any) -> np.ndarray:
            raise KeyError("mine")

    f = gs.blackbox.Objective(nn.Linear(1, 1), Broken(), np.ones((3, 1)), np.ones(3))
    with pytest.raises(KeyError, match="mine"):
        f(np.zeros((4, 2)))
    with pytest.raises(KeyError, match="mine"):
        gs.blackbox.minimize(f)


def test_nearest_neighbours_and_dropout() -> None:
    """Prototypes are a net like any other; dropout is off."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(40, 2)) - 4, rng.normal(size=(40, 2)) + 4])
    net = nn.NearestNeighbour(2, 2)
    f = gs.blackbox.Objective(net, nn.SquaredError(), X)
    W = rng.normal(scale=4, size=(5, 4)).astype(np.float32)
    distance = ((X[None, :, None] - W.reshape(5, 1, 2, 2)) ** 2).sum(-1)
    np.testing.assert_allclose(f(W), distance.min(axis=2).mean(axis=1), rtol=1e-4)
    assert gs.blackbox.minimize(f, maxfev=1000).fun < 3
    dropping = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    g = gs.blackbox.Objective(dropping, nn.CrossEntropyLoss(), X, np.arange(80) % 2)
    assert g(dropping.w) == g(dropping.w)
    dropping.eval()
    assert g(dropping.w) == pytest.approx(nn.CrossEntropyLoss()(dropping(X), np.arange(80) % 2))


def test_an_objective_checks_once_what_it_is_given() -> None:
    X, y = moons(10)
    net = small_net()
    objective: Any = gs.blackbox.Objective
    with pytest.raises(ValueError, match=r"\[ZeroOneLoss\].*class labels are in 0..1"):
        objective(net, nn.ZeroOneLoss(), X, y + 1)
    with pytest.raises(ValueError, match="nan"):
        objective(net, nn.ZeroOneLoss(), np.full_like(X, np.nan), y)
    with pytest.raises(ValueError, match="features per sample"):
        objective(net, nn.ZeroOneLoss(), X[:, :1], y)
    with pytest.raises(ValueError, match=r"w has shape \(3,\), expected \(42,\) or"):
        objective(net, nn.ZeroOneLoss(), X, y)(np.zeros(3))
    with pytest.raises(TypeError, match="cost"):
        objective(net, "0-1", X, y)
    for p in net.parameters():
        p.requires_grad = False
    frozen = objective(net, nn.ZeroOneLoss(), X, y)
    assert gs.blackbox.minimize(frozen, maxfev=50).nfev == 1


def test_ctrl_c_stops_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(20_000, 2))
    f = gs.blackbox.Objective(small_net(), nn.ZeroOneLoss(), X, np.arange(20_000) % 2)
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    begin = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            gs.blackbox.minimize(f, maxfev=10**9, population=10**6)
    finally:
        timer.join()
    assert time.monotonic() - begin < 20  # far below the hours it would take
