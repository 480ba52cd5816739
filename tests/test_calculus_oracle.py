"""The calculus against torch.func and JAX, in float64, over random graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, nn
from oracle_nets import (
    BOUNDED,
    KINKED,
    SMOOTH,
    Net,
    Recipe,
    jax_function,
    make_recipe,
    torch_acts,
    torch_function,
)

torch = pytest.importorskip("torch", reason="the oracle is not installed")
func = torch.func

# Spinning threads of two libraries on a few cores wait for each other.
torch.set_num_threads(1)

# torch.func compiles some of its own rules with a function that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SEEDS = range(16)
BATCH = 5
RTOL = 1e-10


class Case(NamedTuple):
    recipe: Recipe
    net: Net
    f: Callable[[Any, Any], Any]
    w: Any
    x: Any
    y: Any

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.w.numpy(), self.x.numpy(), self.y.numpy()

    def losses(self, w: Any, x: Any, y: Any) -> Any:
        return ((self.f(w, x) - y) ** 2).sum()

    def average(self, w: Any) -> Any:
        return func.vmap(self.losses, (None, 0, 0))(w, self.x, self.y).mean()


def make_case(seed: int, activations: list[str] | None = None) -> Case:
    recipe = make_recipe(seed, activations)
    rng = np.random.default_rng(1000 + seed)
    w = torch.tensor(rng.normal(size=recipe.size) * 0.6)
    x = torch.tensor(rng.normal(size=(BATCH, recipe.d_in)))
    y = torch.tensor(rng.normal(size=(BATCH, recipe.d_out)))
    net = Net(recipe)
    net.trace((recipe.d_in,))
    net.w = w.numpy()
    return Case(recipe, net, torch_function(recipe), w, x, y)


def close(got: Any, expected: Any, scale: float = 0.0) -> None:
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert got.shape == expected.shape
    size = max(float(np.abs(expected).max(initial=0)), scale)
    np.testing.assert_allclose(got, expected, rtol=0, atol=RTOL * size)


cases = pytest.mark.parametrize("seed", SEEDS)


def test_recipes_cover_every_kind() -> None:
    kinds = {i[0] for seed in SEEDS for i in make_recipe(seed).program}
    assert kinds >= {"linear", "act", "add", "sub", "mul", "div", "concat", "slice", "affine"}
    assert kinds >= {"softmax", "log_softmax", "reshape"}
    linears = [make_recipe(seed).linears for seed in SEEDS]
    assert any(mask is not None for recipe in linears for *_, mask in recipe)
    used = [[i[2] for i in make_recipe(s).program if i[0] == "linear"] for s in SEEDS]
    assert any(len(set(layers)) < len(layers) for layers in used)  # shared


def test_every_op_is_used() -> None:
    reachable = {row["name"] for row in _core.ops() if row["module"]} - {"identity"}
    assert reachable <= {*SMOOTH, *KINKED, *BOUNDED}


@cases
@pytest.mark.parametrize("activations", [SMOOTH, KINKED + BOUNDED], ids=["smooth", "kinked"])
def test_jacobians(seed: int, activations: list[str]) -> None:
    case = make_case(seed, activations)
    w, x, _ = case.numbers
    in_x = func.vmap(func.jacrev(case.f, 1), (None, 0))(case.w, case.x)
    close(gs.jacobian(case.net, x), in_x)
    close(in_x.numpy(), func.vmap(func.jacfwd(case.f, 1), (None, 0))(case.w, case.x))
    in_w = func.vmap(func.jacrev(case.f, 0), (None, 0))(case.w, case.x)
    close(gs.jacobian(case.net, x, "w"), in_w)
    close(gs.jacobian(case.net, x[2], "w"), in_w[2])
    case.net.w = np.zeros_like(w)
    close(gs.jacobian(case.net, x, w=w), in_x)


@cases
def test_products_with_jacobians(seed: int) -> None:
    case = make_case(seed)
    w, x, y = case.numbers
    rng = np.random.default_rng(seed)
    v, dx = rng.normal(size=w.shape), rng.normal(size=x.shape)

    def batched(w: Any, x: Any) -> Any:
        return func.vmap(case.f, (None, 0))(w, x)

    ybar, pull = func.vjp(batched, case.w, case.x)
    dw_oracle, dx_oracle = pull(case.y)
    value, pullback = gs.vjp(case.net, x)
    close(value, ybar)
    for got, expected in zip(pullback(y), (dx_oracle, dw_oracle), strict=True):
        close(got, expected)
    tangents = (torch.tensor(v), torch.tensor(dx))
    _, dy_oracle = func.jvp(batched, (case.w, case.x), tangents)
    close(gs.jvp(case.net, x, dx=dx, dw=v)[1], dy_oracle)
    value, push = gs.linearize(case.net, x)
    close(value, ybar)
    close(push(dx=dx, dw=v), dy_oracle)
    close(push.pullback(y)[1], dw_oracle)
    dy_x, dy_w = push(dx=dx), push(dw=v)
    close(dy_x + dy_w, dy_oracle)


@cases
def test_per_sample_quantities(seed: int) -> None:
    case = make_case(seed)
    w, x, y = case.numbers
    cost = nn.SquaredError()
    gradient = func.grad(case.losses)
    g = func.vmap(gradient, (None, 0, 0))(case.w, case.x, case.y)
    norms = g.norm(dim=1)
    close(gs.per_sample_grad(case.net, cost, x, y), g)
    close(gs.per_sample_grad(case.net, cost, x[0], y[0]), g[0])
    close(gs.per_sample_grad_norm(case.net, cost, x, y), norms)
    limit = float(norms.median())
    clipped = (g * torch.clamp(limit / norms, max=1)[:, None]).mean(0)
    close(gs.clip_per_sample(case.net, cost, x, y, limit), clipped)
    close(gs.fisher_diag(case.net, cost, x, y), (g * g).mean(0))
    v = np.random.default_rng(seed).normal(size=w.shape)
    product = (g * (g @ torch.tensor(v))[:, None]).mean(0)
    close(gs.fishervp(case.net, cost, x, y, v), product)


@cases
def test_curvature(seed: int) -> None:
    case = make_case(seed)
    w, x, y = case.numbers
    cost = nn.SquaredError()
    h = func.hessian(case.average)(case.w)
    v = np.random.default_rng(seed).normal(size=w.shape)
    close(gs.hessian(case.net, cost, x, y), h)
    close(gs.hvp(case.net, cost, x, y, v), h @ torch.tensor(v))
    jacobian = func.vmap(func.jacrev(case.f, 0), (None, 0))(case.w, case.x)
    g = 2 * torch.einsum("bop,boq->pq", jacobian, jacobian) / BATCH
    close(gs.ggn(case.net, cost, x, y), g)
    close(gs.ggnvp(case.net, cost, x, y, v), g @ torch.tensor(v))
    weight = np.random.default_rng(seed).uniform(0.1, 2, BATCH)
    share = torch.tensor(weight / weight.sum())

    def weighted(w: Any) -> Any:
        return (func.vmap(case.losses, (None, 0, 0))(w, case.x, case.y) * share).sum()

    h = func.hessian(weighted)(case.w)
    close(gs.hessian(case.net, cost, x, y, sample_weight=weight), h)
    close(gs.hvp(case.net, cost, x, y, v, sample_weight=weight), h @ torch.tensor(v))
    g = 2 * torch.einsum("b,bop,boq->pq", share, jacobian, jacobian)
    close(gs.ggn(case.net, cost, x, y, sample_weight=weight), g)


@cases
def test_input_derivatives(seed: int) -> None:
    case = make_case(seed)
    _, x, _ = case.numbers
    h = func.vmap(func.hessian(case.f, 1), (None, 0))(case.w, case.x)
    diagonal = torch.diagonal(h, dim1=2, dim2=3)
    d = gs.derivatives(case.net, x, order=2)
    close(d.y, func.vmap(case.f, (None, 0))(case.w, case.x))
    close(d.jac, func.vmap(func.jacrev(case.f, 1), (None, 0))(case.w, case.x))
    close(d.diag, diagonal)
    close(gs.laplacian(case.net, x), diagonal.sum(-1))
    close(gs.hessian_x(case.net, x), h)
    close(gs.hessian_x(case.net, x[1]), h[1])


@cases
def test_pullback_of_input_derivatives(seed: int) -> None:
    case = make_case(seed)
    _, x, _ = case.numbers
    rng = np.random.default_rng(seed)
    dy = rng.normal(size=(BATCH, case.recipe.d_out))
    djac, ddiag = (rng.normal(size=(*dy.shape, case.recipe.d_in)) for _ in range(2))

    def inner(w: Any, x: Any) -> tuple[Any, Any, Any]:
        h = func.hessian(case.f, 1)(w, x)
        return case.f(w, x), func.jacrev(case.f, 1)(w, x), torch.diagonal(h, dim1=1, dim2=2)

    def product(w: Any, x: Any) -> Any:
        parts = func.vmap(inner, (None, 0))(w, x)
        pairs = zip(parts, (dy, djac, ddiag), strict=True)
        return sum((part * torch.tensor(weight)).sum() for part, weight in pairs)

    dw_oracle, dx_oracle = func.grad(product, (0, 1))(case.w, case.x)
    dx, dw = gs.derivatives(case.net, x, order=2).pullback(dy, djac, ddiag)
    close(dx, dx_oracle)
    close(dw, dw_oracle)

    def first(w: Any, x: Any) -> Any:
        return (func.vmap(func.jacrev(case.f, 1), (None, 0))(w, x) * torch.tensor(djac)).sum()

    dw_oracle, dx_oracle = func.grad(first, (0, 1))(case.w, case.x)
    dx, dw = gs.derivatives(case.net, x).pullback(djac=djac)
    close(dx, dx_oracle)
    close(dw, dw_oracle)


# Where PyTorch's convention decides, and points beside.
POINTS = [0.0, -0.0, -1.0, 1.0, -3.0, 3.0, 6.0, 20.0, 0.3, -0.7, 2.5, -5.0, 25.0]


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_activations_at_kinks(name: str) -> None:
    h = torch_acts()[name]
    x = np.array(POINTS)
    net = activation(name)
    t = torch.tensor(x)
    close(gs.jacobian(net, x[:, None])[:, 0, 0], torch.diagonal(func.jacrev(h)(t)))
    u = np.ones((len(x), 1))
    close(gs.jvp(net, x[:, None], dx=u)[1][:, 0], func.jvp(h, (t,), (torch.ones_like(t),))[1])


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_second_derivatives_at_kinks(name: str) -> None:
    h = torch.nn.functional.celu if name == "celu" else torch_acts()[name]
    x = np.array(POINTS)
    second = func.vmap(func.grad(func.grad(h)))(torch.tensor(x))
    net = activation(name)
    close(gs.derivatives(net, x[:, None], order=2).diag[:, 0, 0], second, scale=1)
    close(gs.hessian_x(net, x[:, None])[:, 0, 0, 0], second, scale=1)


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_higher_derivatives_of_activations(name: str) -> None:
    h = torch_acts()[name]
    x = np.array([0.3, -0.7, 0.9, 2.5, -2.2, 4.5, -5.0])[:, None]  # beside the kinks
    net = activation(name)

    def derivatives(t: Any) -> list[Any]:
        """h', h'', h''' of scalars."""
        found = [func.grad(h)]
        for _ in range(2):
            found.append(func.grad(found[-1]))
        return [func.vmap(f)(t[:, 0]) for f in found]

    first, second, third = derivatives(torch.tensor(x))
    d = gs.derivatives(net, x, order=2)
    close(d.jac[:, 0, 0], first)
    close(d.diag[:, 0, 0], second, scale=1)
    close(gs.hessian_x(net, x)[:, 0, 0, 0], second, scale=1)
    close(d.pullback(ddiag=np.ones((len(x), 1, 1)))[0][:, 0], third, scale=1)


def activation(name: str) -> Any:
    """A net of one number in, one number out."""
    if name == "gelu_tanh":
        net: Any = nn.GELU(approximate="tanh")
    else:
        net = getattr(nn, next(row["module"] for row in _core.ops() if row["name"] == name))()
    net.trace((1,))
    return net


WEIGHT = np.array([0.5, 1.5, 1.0])
# name: (our cost, torch's loss of one sample as a function of (ybar, y), kind of target)
COSTS: dict[str, tuple[Any, Callable[[Any, Any], Any], str]] = {
    "SquaredError": (nn.SquaredError(), lambda a, y: ((a - y) ** 2).sum(), "real"),
    "MSELoss": (nn.MSELoss(), torch.nn.functional.mse_loss, "real"),
    "HuberLoss": (nn.HuberLoss(0.4), lambda a, y: torch.nn.functional.huber_loss(a, y, delta=0.4),
                  "real"),
    "SmoothL1Loss": (nn.SmoothL1Loss(), torch.nn.functional.smooth_l1_loss, "real"),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy, "label"),
    "CrossEntropyLoss, smooth": (
        nn.CrossEntropyLoss(label_smoothing=0.2),
        lambda a, y: torch.nn.functional.cross_entropy(a, y, label_smoothing=0.2),
        "label",
    ),
    "CrossEntropyLoss, probabilities": (
        nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy, "probability"),
    "BCEWithLogitsLoss": (
        nn.BCEWithLogitsLoss(), torch.nn.functional.binary_cross_entropy_with_logits, "unit"),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), torch.nn.functional.poisson_nll_loss, "unit"),
}  # fmt: skip


def target(kind: str, rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    if kind == "label":
        return rng.integers(0, d, n)
    if kind == "real":
        return rng.normal(size=(n, d))
    y = rng.uniform(0.1, 1, (n, d))
    return y / y.sum(axis=1, keepdims=True) if kind == "probability" else y


@pytest.mark.parametrize("name", COSTS)
def test_curvature_of_costs(name: str) -> None:
    cost, loss, kind = COSTS[name]
    rng = np.random.default_rng(0)
    net = nn.Sequential(
        nn.Linear(4, 5, dtype=np.float64), nn.Tanh(), nn.Linear(5, 3, dtype=np.float64)
    )
    x, y = rng.normal(size=(40, 4)), target(kind, rng, 40, 3)
    tx, ty, w = torch.tensor(x), torch.tensor(y), torch.tensor(net.w.copy())

    def f(w: Any, x: Any) -> Any:
        hidden = torch.tanh(w[:20].reshape(5, 4) @ x + w[20:25])
        return w[25:40].reshape(3, 5) @ hidden + w[40:]

    def losses(w: Any, x: Any, y: Any) -> Any:
        return loss(f(w, x), y)

    def average(w: Any) -> Any:
        return func.vmap(losses, (None, 0, 0))(w, tx, ty).mean()

    h = func.hessian(average)(w)
    close(gs.hessian(net, cost, x, y), h)
    outputs = func.vmap(f, (None, 0))(w, tx)
    jacobian = func.vmap(func.jacrev(f), (None, 0))(w, tx)
    bent = func.vmap(func.hessian(loss))(outputs, ty)
    g = torch.einsum("bop,boc,bcq->pq", jacobian, bent, jacobian) / len(x)
    close(gs.ggn(net, cost, x, y), g)
    v = rng.normal(size=net.w.size)
    close(gs.ggnvp(net, cost, x, y, v), g @ torch.tensor(v))
    close(
        gs.per_sample_grad(net, cost, x, y), func.vmap(func.grad(losses), (None, 0, 0))(w, tx, ty)
    )


def test_class_weights_divide_by_their_sum() -> None:
    cost = nn.CrossEntropyLoss(weight=WEIGHT)
    rng = np.random.default_rng(0)
    net = nn.Linear(4, 3, dtype=np.float64)
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    tx, ty, tw = torch.tensor(x), torch.tensor(y), torch.tensor(WEIGHT)

    def average(w: Any) -> Any:
        ybar = tx @ w[:12].reshape(3, 4).T + w[12:]
        return torch.nn.functional.cross_entropy(ybar, ty, weight=tw)

    h = func.hessian(average)(torch.tensor(net.w.copy()))
    close(gs.hessian(net, cost, x, y), h)
    close(gs.ggn(net, cost, x, y), h)  # the net is linear
    g = gs.per_sample_grad(net, cost, x, y)
    close(g.sum(axis=0) / WEIGHT[y].sum(), func.grad(average)(torch.tensor(net.w.copy())))


# PyTorch says the same above, for more networks; JAX takes many seconds to compile each of these.
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3, 4, 5))]
)
def test_against_jax(seed: int) -> None:
    jax = pytest.importorskip("jax", reason="the oracle is not installed")
    jax.config.update("jax_enable_x64", True)
    case = make_case(seed)
    w, x, y = case.numbers
    f = jax_function(case.recipe)

    def losses(w: Any, x: Any, y: Any) -> Any:
        return ((f(w, x) - y) ** 2).sum()

    def average(w: Any) -> Any:
        return jax.vmap(losses, (None, 0, 0))(w, x, y).mean()

    cost = nn.SquaredError()
    v = np.random.default_rng(seed).normal(size=w.shape)
    close(gs.jacobian(case.net, x), jax.vmap(jax.jacrev(f, 1), (None, 0))(w, x))
    close(gs.jacobian(case.net, x, "w"), jax.vmap(jax.jacfwd(f, 0), (None, 0))(w, x))
    gradients = jax.vmap(jax.grad(losses), (None, 0, 0))(w, x, y)
    close(gs.per_sample_grad(case.net, cost, x, y), gradients)
    close(gs.hvp(case.net, cost, x, y, v), jax.jvp(jax.grad(average), (w,), (v,))[1])
    h = jax.vmap(jax.hessian(f, 1), (None, 0))(w, x)
    close(gs.hessian_x(case.net, x), h)
