"""Gauss-Newton and Levenberg-Marquardt against NumPy, SciPy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

Array = np.ndarray
DOUBLE = np.float64


def one_step(
    net: nn.Module, x: Array, y: Any, optimizer: Any, cost: Any = None, **more: Any
) -> Any:
    """One step on the full batch; the history."""
    cost = nn.SquaredError() if cost is None else cost
    return gs.fit(
        net, x, y, cost=cost, optimizer=optimizer, batch_size=None, epochs=1, shuffle=False, **more
    )


def solution(x: Array, y: Array, weight: Array | None = None) -> Array:
    """Weight and bias of the linear model, (out, in + 1), by NumPy; the shortest where many fit."""
    root = np.sqrt(np.ones(len(x)) if weight is None else weight)[:, None]
    columns = np.column_stack([x, np.ones(len(x))])
    return np.linalg.lstsq(root * columns, root * y, rcond=None)[0].T


def linear_net(d: int, out: int, dtype: Any = DOUBLE) -> nn.Linear:
    net = nn.Linear(d, out, dtype=dtype)
    net.w[:] = 0
    return net


def as_matrix(net: nn.Linear) -> Array:
    return np.column_stack([net.weight, net.bias]).astype(DOUBLE)


# Gauss-Newton ----------------------------------------------------------------------------------

SHAPES = [(50, 1, 1), (200, 7, 3), (1000, 30, 2), (10, 20, 1), (8, 8, 3), (5, 40, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "cost", [nn.SquaredError(), nn.MSELoss(), nn.SquaredError(reduction="sum")]
)
def test_one_step_solves_least_squares(shape: Any, cost: Any, rng: np.random.Generator) -> None:
    n, d, out = shape
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, out))
    net = linear_net(d, out)
    history = one_step(net, x, y, optim.GaussNewton(), cost)
    assert history.loss == [pytest.approx(cost.per_sample(np.zeros((n, out)), y).mean(), rel=1e-12)]
    np.testing.assert_allclose(as_matrix(net), solution(x, y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("condition", [1e3, 1e6])
def test_one_step_on_ill_conditioned_data(condition: float, rng: np.random.Generator) -> None:
    scales = np.geomspace(1, 1 / condition, 6)
    x, y = rng.standard_normal((100, 6)) * scales, rng.standard_normal((100, 2))
    net = linear_net(6, 2)
    one_step(net, x, y, optim.GaussNewton())
    expected = solution(x, y)
    residual = y - x @ expected[:, :-1].T - expected[:, -1]
    np.testing.assert_allclose(y - net(x), residual, rtol=0, atol=1e-9)
    # Errors of the weights grow with the condition, 1e-16 x 1e6, not with its square.
    assert np.abs(as_matrix(net) - expected).max() < 1e-8 * np.abs(expected).max()


def test_columns_that_depend_on_each_other_get_the_shortest_solution(
    rng: np.random.Generator,
) -> None:
    x = rng.standard_normal((60, 3))
    x, y = np.column_stack([x, x[:, 0] + x[:, 1], np.zeros(60)]), rng.standard_normal((60, 2))
    net = linear_net(5, 2)
    one_step(net, x, y, optim.GaussNewton())
    np.testing.assert_allclose(as_matrix(net), solution(x, y), rtol=0, atol=1e-9)


def test_float32_nets_are_solved_in_float64(rng: np.random.Generator) -> None:
    x = rng.standard_normal((300, 8)).astype(np.float32)
    y = (x @ rng.standard_normal((8, 2)) + 1).astype(np.float32)
    net = linear_net(8, 2, np.float32)
    one_step(net, x, y, optim.GaussNewton())
    np.testing.assert_allclose(as_matrix(net), solution(x, y), rtol=0, atol=1e-6)


def test_sample_weights(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((80, 4)), rng.standard_normal((80, 2))
    weight = rng.uniform(0, 3, 80)
    weight[:5] = 0
    net = linear_net(4, 2)
    one_step(net, x, y, optim.GaussNewton(), sample_weight=weight)
    np.testing.assert_allclose(as_matrix(net), solution(x, y, weight), rtol=0, atol=1e-9)


def test_masked_and_frozen_parameters_stay(rng: np.random.Generator) -> None:
    mask = rng.random((3, 6)) < 0.6
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 3))
    net = nn.Linear(6, 3, mask=mask, dtype=DOUBLE)
    net.bias.requires_grad = False
    before = as_matrix(net)
    one_step(net, x, y, optim.GaussNewton())
    after = as_matrix(net)
    np.testing.assert_array_equal(after[:, :-1][~mask], before[:, :-1][~mask])
    np.testing.assert_array_equal(after[:, -1], before[:, -1])
    for i, row in enumerate(mask):
        best = np.linalg.lstsq(x[:, row], y[:, i] - before[i, -1], rcond=None)[0]
        np.testing.assert_allclose(after[i, :-1][row], best, rtol=0, atol=1e-9)


WIDTHS = (4, 5, 3)
COSTS: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
    "SquaredError": (nn.SquaredError(), lambda a, y: ((a - y) ** 2).sum()),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), lambda a, y: _torch_f().cross_entropy(a, y)),
    "HuberLoss": (nn.HuberLoss(), lambda a, y: _torch_f().huber_loss(a, y)),
}


def _torch_f() -> Any:
    import torch

    return torch.nn.functional


def torch_ggn(net: nn.Sequential, x: Array, y: Array, loss: Any) -> tuple[Array, Array]:
    """Gradient and generalised Gauss-Newton matrix of a tanh net, by PyTorch."""
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    a, b, c = WIDTHS

    def f(w: Any, x: Any) -> Any:
        hidden = torch.tanh(w[: b * a].reshape(b, a) @ x + w[b * a : b * a + b])
        rest = w[b * a + b :]
        return rest[: c * b].reshape(c, b) @ hidden + rest[c * b :]

    w, tx, ty = (torch.tensor(np.array(v)) for v in (net.w, x, y))
    func = torch.func
    each = func.vmap(lambda w, x, y: loss(f(w, x), y), (None, 0, 0))
    g = func.grad(lambda w: each(w, tx, ty).mean())(w)
    jacobian = func.vmap(func.jacrev(f), (None, 0))(w, tx)
    bent = func.vmap(func.hessian(loss))(func.vmap(f, (None, 0))(w, tx), ty)
    ggn = torch.einsum("bop,boc,bcq->pq", jacobian, bent, jacobian) / len(x)
    return g.numpy(), ggn.numpy()


def tanh_net() -> nn.Sequential:
    a, b, c = WIDTHS
    return nn.Sequential(nn.Linear(a, b, dtype=DOUBLE), nn.Tanh(), nn.Linear(b, c, dtype=DOUBLE))


def data(name: str, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    x = rng.standard_normal((n, WIDTHS[0]))
    labels = name == "CrossEntropyLoss"
    return x, rng.integers(0, 3, n) if labels else rng.standard_normal((n, WIDTHS[-1]))


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("n", [60, 9])  # more and fewer residuals than parameters
@pytest.mark.parametrize("solver", ["exact", "cg"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_damped_step_is_that_of_the_dense_system(
    name: str, n: int, solver: str, rng: np.random.Generator
) -> None:
    cost, loss = COSTS[name]
    x, y = data(name, rng, n)
    net = tanh_net()
    g, ggn = torch_ggn(net, x, y, loss)
    expected = net.w - 0.7 * np.linalg.solve(ggn + 0.05 * np.eye(len(g)), g)
    settings = {"cg_tol": 1e-13, "cg_max_iter": 1000} if solver == "cg" else {}
    one_step(net, x, y, optim.GaussNewton(0.7, 0.05, solver=solver, **settings), cost)
    np.testing.assert_allclose(net.w, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["exact", "cg"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_gradient_is_clipped_before_the_system_is_solved(
    solver: str, rng: np.random.Generator
) -> None:
    x, y = data("SquaredError", rng, 60)
    net = tanh_net()
    g, ggn = torch_ggn(net, x, y, COSTS["SquaredError"][1])
    limit = 0.5 * np.linalg.norm(g)
    clipped = g * limit / (np.linalg.norm(g) + 1e-6)
    expected = net.w - np.linalg.solve(ggn + 0.1 * np.eye(len(g)), clipped)
    optimizer = optim.GaussNewton(
        damping=0.1, solver=solver, cg_tol=1e-13, cg_max_iter=1000, clip_norm=limit
    )
    one_step(net, x, y, optimizer)
    np.testing.assert_allclose(net.w, expected, rtol=0, atol=1e-9)


# Levenberg-Marquardt ---------------------------------------------------------------------------


def near_a_minimum(seed: int) -> tuple[nn.Sequential, Array, Array]:
    """A net started near the one that made the noisy data: the minimum is not far."""
    rng = np.random.default_rng(seed)
    net = tanh_net()
    net.w = rng.standard_normal(net.w.size)
    x = rng.standard_normal((200, WIDTHS[0]))
    y = net(x) + 0.02 * rng.standard_normal((200, WIDTHS[-1]))
    net.w += 0.05 * rng.standard_normal(net.w.size)
    return net, x, y


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_levenberg_marquardt_ends_where_scipy_does(seed: int, solver: str) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="the oracle is not installed")
    net, x, y = near_a_minimum(seed)
    a, b, c = WIDTHS

    def residuals(w: Array) -> Array:
        hidden = np.tanh(x @ w[: b * a].reshape(b, a).T + w[b * a : b * a + b])
        rest = w[b * a + b :]
        return (hidden @ rest[: c * b].reshape(c, b).T + rest[c * b :] - y).ravel()

    tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
    theirs = optimize.least_squares(residuals, net.w.copy(), method="lm", jac="2-point", **tight)
    optimizer = optim.LevenbergMarquardt(solver=solver, cg_tol=1e-8)
    history = gs.fit(
        net, x, y, cost=nn.SquaredError(), optimizer=optimizer, batch_size=None, epochs=60
    )
    assert np.all(np.diff(history.loss) <= 1e-15)  # rounding, at the minimum
    final = nn.SquaredError()(net(x), y)
    assert final == pytest.approx(2 * theirs.cost / len(x), rel=1e-9)
    np.testing.assert_allclose(net.w, theirs.x, rtol=0, atol=1e-5 * np.abs(theirs.x).max())


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("n", [60, 9])
def test_conjugate_gradients_make_the_steps_of_the_exact_solver(
    name: str, n: int, rng: np.random.Generator
) -> None:
    cost, _ = COSTS[name]
    x, y = data(name, rng, n)
    nets, histories = [], []
    for solver in ("exact", "cg"):
        gs.seed(3)
        net = tanh_net()
        optimizer = optim.LevenbergMarquardt(solver=solver, cg_tol=1e-12, cg_max_iter=2000)
        # The largest diagonal entry of G, which sets the scale, is only estimated without G.
        optimizer.load_state_dict({"current_damping": 0.03, "growth": 2.0, "t": 0})
        histories.append(
            gs.fit(net, x, y, cost=cost, optimizer=optimizer, batch_size=None, epochs=5).loss
        )
        nets.append(net)
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-7)
    np.testing.assert_allclose(nets[0].w, nets[1].w, rtol=0, atol=1e-7)
    assert histories[0][-1] < histories[0][0]


def test_a_step_that_cannot_help_is_not_made(rng: np.random.Generator) -> None:
    class Uphill(nn.SquaredError):
        """A gradient that points the wrong way: no damping makes such a step good."""

        def _core_cost(self, dtype: Any) -> Any:
            return nn.Cost._core_cost(self, dtype)

        def gradient(self, ybar: Array, y: Any = None) -> Array:
            return -2 * (ybar - y)

        def hvp(self, ybar: Array, y: Any, v: Array) -> Array:
            return 2 * v

        def value(self, ybar: Array, y: Any) -> Array:
            return ((ybar - y) ** 2).sum(axis=1)

    x, y = rng.standard_normal((30, 4)), rng.standard_normal((30, 3))
    net = tanh_net()
    before = net.w.copy()
    optimizer = optim.LevenbergMarquardt(max_trials=6)
    trainer = gs.Trainer(net, Uphill(), optimizer)
    trainer.step(x, y)
    np.testing.assert_array_equal(net.w, before)
    damping = optimizer.current_damping
    trainer.step(x, y)
    assert optimizer.current_damping > damping
    assert optimizer.t == 2


def test_state_continues_with_the_same_bits() -> None:
    net, x, y = near_a_minimum(0)
    start = net.w.copy()
    optimizer = optim.LevenbergMarquardt()
    trainer = gs.Trainer(net, nn.SquaredError(), optimizer)
    for _ in range(3):
        trainer.step(x, y)
    middle, state = net.w.copy(), optimizer.state_dict()
    for _ in range(3):
        trainer.step(x, y)
    end = net.w.copy()
    assert not np.array_equal(middle, end)
    net.w = middle
    again = optim.LevenbergMarquardt()
    again.load_state_dict(state)
    trainer = gs.Trainer(net, nn.SquaredError(), again)
    for _ in range(3):
        trainer.step(x, y)
    np.testing.assert_array_equal(net.w, end)
    assert not np.array_equal(start, middle)


# Refusals --------------------------------------------------------------------------------------


class Step(nn.Module):
    """No jvp: Jacobians in reverse mode only."""

    def forward(self, x: Array) -> Array:
        return x**3 + x

    def vjp(self, x: Array, dy: Array) -> Array:
        return (3 * x**2 + 1) * dy


def test_python_blocks_take_part_where_their_parts_allow_it(rng: np.random.Generator) -> None:
    x, y = data("SquaredError", rng, 40)
    net = nn.Sequential(nn.Linear(4, 3, dtype=DOUBLE), Step())
    history = gs.fit(
        net, x, y, cost=nn.SquaredError(), optimizer=optim.LevenbergMarquardt(), batch_size=None,
        epochs=20,
    )  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    with pytest.raises(ValueError, match=r"\[Step\] defines no jvp"):
        one_step(net, x, y, optim.LevenbergMarquardt(solver="cg"))


@pytest.mark.parametrize("kind", [optim.GaussNewton, optim.LevenbergMarquardt])
@pytest.mark.parametrize(
    ("net", "cost", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), nn.SquaredError(), "Dropout"),
        (lambda: nn.NearestNeighbour(4, 3), nn.SquaredError(), "NearestNeighbour"),
    ],
    ids=["dropout", "discrete"],
)
def test_nets_without_a_jacobian_are_refused(
    kind: Any, net: Any, cost: Any, match: str, rng: np.random.Generator
) -> None:
    model = net()
    x = rng.standard_normal((10, 4))
    y = None if isinstance(model, nn.NearestNeighbour) else rng.standard_normal((10, 3))
    with pytest.raises(ValueError, match=match):
        one_step(model, x, y, kind(), cost)


def test_a_cost_without_curvature(rng: np.random.Generator) -> None:
    x, y = data("SquaredError", rng, 20)
    with pytest.raises(ValueError, match=r"L1Loss.*has no curvature here"):
        one_step(tanh_net(), x, y, optim.GaussNewton(), nn.L1Loss())
    # Levenberg-Marquardt falls back to small steps along the gradient.
    net = tanh_net()
    before = nn.L1Loss()(net(x), y)
    one_step(net, x, y, optim.LevenbergMarquardt(), nn.L1Loss())
    assert nn.L1Loss()(net(x), y) < before


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: optim.GaussNewton(damping=-1), "damping"),
        (lambda: optim.LevenbergMarquardt(damping=0), "damping must be positive"),
        (lambda: optim.LevenbergMarquardt(max_trials=0), "max_trials"),
        (lambda: optim.GaussNewton(solver="qr"), "solver must be one of"),
        (lambda: optim.GaussNewton(cg_tol=1.0), "cg_tol must be in"),
        (lambda: optim.GaussNewton(cg_max_iter=0), "cg_max_iter"),
        (lambda: optim.GaussNewton(lr=-0.1), "lr"),
        (lambda: optim.GaussNewton(clip_norm=0), "clip_norm must be positive"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_outputs_that_are_not_finite(rng: np.random.Generator) -> None:
    net = nn.Linear(3, 4)
    net.w[2] = np.inf
    for optimizer in (optim.GaussNewton(), optim.LevenbergMarquardt()):
        with pytest.raises(FloatingPointError, match="the loss is nan at epoch 0, step 0"):
            one_step(
                net, rng.standard_normal((9, 3)), np.arange(9) % 4, optimizer, nn.CrossEntropyLoss()
            )
