"""Every call of the calculus in every form it takes: stages, explicit w, single samples, `out=`,
several inputs and outputs, and ⟨u, Jv⟩ = ⟨Jᵀu, v⟩."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn
from oracle_nets import BOUNDED, KINKED, SMOOTH, Net, Recipe, make_recipe, run

Array = np.ndarray
COST = nn.SquaredError()
BATCH = 4


def close(got: Any, expected: Any, rtol: float = 1e-10) -> None:
    expected = np.asarray(expected)
    assert np.shape(got) == expected.shape
    size = float(np.abs(expected).max(initial=1e-300))
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * size)


def make_net(seed: int, dtype: Any = np.float64) -> tuple[Net, Array, Array]:
    recipe = make_recipe(seed)
    rng = np.random.default_rng(500 + seed)
    net = Net(recipe, dtype)
    net.trace((recipe.d_in,))
    net.w = 0.6 * rng.standard_normal(recipe.size)
    x, y = (rng.standard_normal((BATCH, d)) for d in (recipe.d_in, recipe.d_out))
    return net, x, y


def pulled(net: Net, x: Array, **w: Any) -> Array:
    d = gs.derivatives(net, x, 2, **w)
    pair = d.diag.shape[-2:]
    weights = np.cos(np.arange(np.prod(pair))).reshape(pair)
    dx, _ = d.pullback(ddiag=np.broadcast_to(weights, d.diag.shape))
    return dx


# name: (the call, whether a batch gives one entry per sample)
CALLS: dict[str, tuple[Callable[..., Any], bool]] = {
    "apply": (lambda net, x, y, v, **w: gs.apply(net, w.get("w", net.w), x), True),
    "value_and_grad": (lambda net, x, y, v, **w: gs.value_and_grad(net, COST, x, y, **w)[1], False),
    "vjp": (lambda net, x, y, v, **w: gs.vjp(net, x, **w)[1](y)[0], True),
    "vjp, dw": (lambda net, x, y, v, **w: gs.vjp(net, x, **w)[1](y)[1], False),
    "jvp": (lambda net, x, y, v, **w: gs.jvp(net, x, dx=x, dw=v, **w)[1], True),
    "linearize": (lambda net, x, y, v, **w: gs.linearize(net, x, **w)[1](x, v), True),
    "jacobian": (lambda net, x, y, v, **w: gs.jacobian(net, x, **w), True),
    "jacobian, w": (lambda net, x, y, v, **w: gs.jacobian(net, x, "w", **w), True),
    "per_sample_grad": (lambda net, x, y, v, **w: gs.per_sample_grad(net, COST, x, y, **w), True),
    "per_sample_grad_norm": (
        lambda net, x, y, v, **w: gs.per_sample_grad_norm(net, COST, x, y, **w),
        True,
    ),
    "clip_per_sample": (
        lambda net, x, y, v, **w: gs.clip_per_sample(net, COST, x, y, 0.5, **w),
        False,
    ),
    "fisher_diag": (lambda net, x, y, v, **w: gs.fisher_diag(net, COST, x, y, **w), False),
    "fishervp": (lambda net, x, y, v, **w: gs.fishervp(net, COST, x, y, v, **w), False),
    "hvp": (lambda net, x, y, v, **w: gs.hvp(net, COST, x, y, v, **w), False),
    "ggnvp": (lambda net, x, y, v, **w: gs.ggnvp(net, COST, x, y, v, **w), False),
    "hessian": (lambda net, x, y, v, **w: gs.hessian(net, COST, x, y, **w), False),
    "ggn": (lambda net, x, y, v, **w: gs.ggn(net, COST, x, y, **w), False),
    "derivatives": (lambda net, x, y, v, **w: gs.derivatives(net, x, 2, **w).diag, True),
    "pullback of derivatives": (lambda net, x, y, v, **w: pulled(net, x, **w), True),
    "laplacian": (lambda net, x, y, v, **w: gs.laplacian(net, x, **w), True),
    "hessian_x": (lambda net, x, y, v, **w: gs.hessian_x(net, x, **w), True),
    "backprop": (
        lambda net, x, y, v, **w: gs.backprop(net, COST, x, y, per_sample=True, **w)[0].dz,
        True,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_explicit_parameters_and_single_samples(name: str) -> None:
    call, per_sample = CALLS[name]
    for seed in range(4):
        net, x, y = make_net(seed)
        v = np.random.default_rng(seed).standard_normal(net.w.size)
        w = net.w.copy()
        batch = call(net, x, y, v)
        single = [call(net, x[i], y[i], v) for i in range(BATCH)]
        if per_sample:
            close(np.stack(single), batch, 1e-12)
        elif name == "vjp, dw":
            close(np.sum(single, axis=0), batch, 1e-12)
        else:
            close(np.mean(single, axis=0), batch, 1e-12)
        net.w[:] = 0.1
        np.testing.assert_array_equal(call(net, x, y, v, w=w), batch)
        assert np.all(net.w == 0.1)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_reverse_mode_are_adjoint(seed: int, dtype: str) -> None:
    recipe = make_recipe(seed, SMOOTH + KINKED + BOUNDED)
    rng = np.random.default_rng(seed)
    net = Net(recipe, dtype)
    x, dx = rng.standard_normal((2, 7, recipe.d_in))
    net.trace((recipe.d_in,))
    v, u = rng.standard_normal(net.w.size), rng.standard_normal((7, recipe.d_out))
    ybar, pullback = gs.vjp(net, x)
    dx_back, dw_back = (a.astype(np.float64) for a in pullback(u))
    forward, dy = gs.jvp(net, x, dx=dx, dw=v)
    np.testing.assert_array_equal(forward, ybar)
    terms = [u * dy.astype(np.float64), -dx * dx_back, -v * dw_back]
    size = sum(float(np.abs(t).sum()) for t in terms)
    rounding = 20 * float(np.finfo(dtype).eps)
    assert abs(sum(float(t.sum()) for t in terms)) <= rounding * size


# Stages ----------------------------------------------------------------------------------------


class Values:
    """The pieces of a recipe in PyTorch that note every value."""

    def __init__(self, recipe: Recipe, w: Any) -> None:
        from oracle_nets import Pieces, torch_acts

        torch = pytest.importorskip("torch", reason="the oracle is not installed")
        self.recipe = recipe
        self.pieces = Pieces(recipe, w, torch_acts(), torch.cat)

    def all(self, x: Any) -> list[Any]:
        values = [x]
        for i in range(len(self.recipe.program)):
            part = self.recipe._replace(program=self.recipe.program[: i + 1])
            values.append(run(part, x, self.pieces))
        return values

    def after(self, k: int, values: list[Any], z: Any) -> Any:
        """The output when value k is z, those before it held fixed."""
        known = [*values[:k], z]
        for kind, source, *rest in self.recipe.program[k:]:
            # One instruction as a recipe of its own: operands are value 0 and 1.
            operand = known[source]
            if kind in ("add", "sub", "mul", "div", "concat"):
                other = known[rest[0]]
                made = {
                    "add": lambda a, b: a + b,
                    "sub": lambda a, b: a - b,
                    "mul": lambda a, b: a * b,
                    "div": lambda a, b: a / b,
                    "concat": self.pieces.concat,
                }[kind](operand, other)
            else:
                alone = self.recipe._replace(program=[(kind, 0, *rest)])
                made = run(alone, operand, self.pieces)
            known.append(made)
        return known[-1]


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_jacobians_with_respect_to_stages(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    net, x, y = make_net(seed)
    recipe = net.recipe
    values = Values(recipe, torch.tensor(net.w.copy()))
    known = values.all(torch.tensor(x[0]))
    trace = gs.backprop(net, COST, x[0], y[0])
    variables = {"x": x[0], **{stage.name: stage.out for stage in trace.stages}}
    checked = 0
    for stage in trace.stages:
        zs = stage.z if isinstance(stage.z, tuple) else (stage.z,)
        jacobians = gs.jacobian(net, x[0], stage.name)
        jacobians = jacobians if isinstance(jacobians, tuple) else (jacobians,)
        dzs = stage.dz if isinstance(stage.dz, tuple) else (stage.dz,)
        for z, dz, jacobian in zip(zs, dzs, jacobians, strict=True):
            assert jacobian.shape == (recipe.d_out, z.size)
            close(trace.dybar @ jacobian, dz, 1e-9)
            found = [k for k, v in enumerate(known) if same(z, v)]
            # Values that are equal (1.0 * z and z) cannot be told apart here.
            if len(found) == 1 and sum(same(z, v) for v in variables.values()) == 1:
                k = found[0]
                oracle = torch.func.jacrev(lambda z, k=k: values.after(k, known, z))(known[k])
                close(jacobian, oracle.numpy())
                checked += 1
    assert checked >= 4
    batch = gs.jacobian(net, x, trace.stages[-1].name)
    first = batch[0] if isinstance(batch, tuple) else batch
    assert first.shape[:2] == (BATCH, recipe.d_out)
    close(first[0], jacobians[0], 1e-12)


def test_unknown_stages_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    with pytest.raises(ValueError, match=r"wrt='2' is not 'x', 'w' or the name of a stage.*0, 1"):
        gs.jacobian(net, np.zeros(2), "2")
    with pytest.raises(TypeError, match="wrt must be"):
        gs.jacobian(net, np.zeros(2), 1)  # type: ignore[arg-type]


# out= ------------------------------------------------------------------------------------------

INTO: dict[str, Callable[..., Any]] = {
    "jacobian": lambda net, x, y, **out: gs.jacobian(net, x, **out),
    "jacobian, w": lambda net, x, y, **out: gs.jacobian(net, x, "w", **out),
    "jacobian, stage": lambda net, x, y, **out: gs.jacobian(net, x, "1", **out),
    "per_sample_grad": lambda net, x, y, **out: gs.per_sample_grad(net, COST, x, y, **out),
}


@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("rows", [None, 1, 3, 70])
def test_out(name: str, rows: int | None, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    lead = () if rows is None else (rows,)
    x = rng.standard_normal((*lead, 5)).astype(np.float32)
    y = rng.standard_normal((*lead, 3))
    call = INTO[name]
    expected = call(net, x, y)
    out = np.full_like(expected, np.nan)
    assert call(net, x, y, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert call(net, x, y, out=out) is out  # also the second time
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", INTO)
def test_what_out_cannot_be(name: str) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    call, x, y = INTO[name], np.zeros((2, 5)), np.zeros((2, 3))
    shape = call(net, x, y).shape
    fixed = np.empty(shape, np.float32)
    fixed.flags.writeable = False
    for out, error, match in (
        (np.empty((*shape[:-1], shape[-1] + 1), np.float32), ValueError, "out has shape"),
        (np.empty(shape), ValueError, "float64, expected"),
        (np.empty((*shape[:-1], 2 * shape[-1]), np.float32)[..., ::2], ValueError, "C-contiguous"),
        (fixed, ValueError, "writeable"),
        ([0.0], TypeError, "out must be a NumPy array"),
    ):
        with pytest.raises(error, match=match):
            call(net, x, y, out=out)


def test_out_may_share_the_memory_of_x(rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    memory = rng.standard_normal((2, 4, 4)).astype(np.float32)
    x = memory[:, 0]
    expected = gs.jacobian(net, x.copy())
    np.testing.assert_array_equal(gs.jacobian(net, x, out=memory), expected)


# Several inputs and outputs --------------------------------------------------------------------


class Critic(nn.Module):
    """q(x, u) and v(x, u), or both joined."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.a = nn.Linear(5, 4, dtype="float64")
        self.b = nn.Linear(4, 2, dtype="float64")

    def forward(self, x: Any, u: Any) -> Any:
        h = gs.tanh(self.a(gs.concat([x, u])))
        q, v = self.b(h), h[0:2] * u
        return gs.concat([q, v]) if self.joined else (q, v)


def torch_critic(w: Any, x: Any, u: Any) -> tuple[Any, Any]:
    import torch

    h = torch.tanh(w[:20].reshape(4, 5) @ torch.cat([x, u]) + w[20:24])
    return w[24:32].reshape(2, 4) @ h + w[32:], h[:2] * u


@pytest.fixture
def critic_data(rng: np.random.Generator) -> tuple[Array, Array]:
    return rng.standard_normal((BATCH, 3)), rng.standard_normal((BATCH, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_several_outputs(critic_data: tuple[Array, Array], rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    func = torch.func
    x, u = critic_data
    net = Critic(joined=False)
    net(x, u)
    w = torch.tensor(net.w.copy())
    tx, tu = torch.tensor(x), torch.tensor(u)

    def batched(w: Any, x: Any, u: Any) -> Any:
        return func.vmap(torch_critic, (None, 0, 0))(w, x, u)

    dy, dx, du = rng.standard_normal((3, BATCH, 2))
    dx = rng.standard_normal((BATCH, 3))
    dw = rng.standard_normal(34)
    ys, pull = func.vjp(batched, w, tx, tu)
    oracle = pull((torch.tensor(dy), torch.tensor(du)))
    (q, v), pullback = gs.vjp(net, (x, u))
    close(q, ys[0])
    close(v, ys[1])
    (gx, gu), gw = pullback((dy, du))
    for got, expected in zip((gw, gx, gu), oracle, strict=True):
        close(got, expected)
    tangents = tuple(torch.tensor(t) for t in (dw, dx, du))
    _, pushed = func.jvp(batched, (w, tx, tu), tangents)
    linear = gs.linearize(net, (x, u))[1]
    for got in (gs.jvp(net, (x, u), (dx, du), dw)[1], linear((dx, du), dw)):
        for one, expected in zip(got, pushed, strict=True):
            close(one, expected)
    each = func.vmap(func.jacrev(torch_critic, (0, 1, 2)), (None, 0, 0))(w, tx, tu)
    in_inputs, in_w = gs.jacobian(net, (x, u)), gs.jacobian(net, (x, u), "w")
    in_x, in_u = gs.jacobian(net, (x, u), "x"), gs.jacobian(net, (x, u), "u")
    assert isinstance(in_inputs, tuple)
    assert isinstance(in_inputs[0], tuple)
    for i in range(2):
        close(in_w[i], each[i][0])
        close(in_inputs[i][0], each[i][1])
        close(in_inputs[i][1], each[i][2])
        close(in_u[i], each[i][2])
        np.testing.assert_array_equal(in_x[i][0], in_inputs[i][0])
    one = gs.jacobian(net, (x[1], u[1]), "w")
    close(one[1], in_w[1][1], 1e-12)
    with pytest.raises(ValueError, match="2 outputs, a cost takes one"):
        gs.value_and_grad(net, COST, (x, u), (q, v))
    with pytest.raises(ValueError, match="out= takes one array"):
        gs.jacobian(net, (x, u), out=np.empty((BATCH, 2, 3)))


class Chained(nn.Module):
    """Two inputs; the second output depends on the first, which does not depend on u."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4, dtype=np.float64)
        self.b = nn.Linear(4, 5, dtype=np.float64)

    def forward(self, x: Any, u: Any) -> Any:
        z = gs.tanh(self.a(x))
        return z, gs.concat([gs.sine(self.b(z)), z[1:3], u])


@pytest.mark.parametrize("wrt", ["x", "u", "w", "b", "sine"])
def test_an_output_that_another_depends_on(
    critic_data: tuple[Array, Array], rng: np.random.Generator, wrt: str
) -> None:
    x, u = critic_data
    net = Chained()
    got = gs.jacobian(net, (x, u), "x" if wrt == "u" else wrt)
    got = [g[1] if wrt == "u" else g[0] if wrt == "x" else g for g in got]
    # Columns by forward mode, or by the formula.
    zero = (np.zeros_like(x), np.zeros_like(u))
    for k in range(got[0].shape[2]):
        if wrt == "w":
            expected = gs.jvp(net, (x, u), dw=np.eye(net.w.size)[k])[1]
        elif wrt == "b":
            z = net(x, u)[0]
            slope = np.cos(z @ net.b.weight.T + net.b.bias) * net.b.weight[:, k]
            unit = np.tile(np.eye(4)[k], (BATCH, 1))
            expected = unit, np.hstack([slope, unit[:, 1:3], zero[1]])
        elif wrt == "sine":  # its input, on which z does not depend
            z = net(x, u)[0]
            slope = np.cos(z @ net.b.weight.T + net.b.bias) * np.eye(5)[k]
            expected = 0 * z, np.hstack([slope, np.zeros((BATCH, 4))])
        else:
            dx = [v.copy() for v in zero]
            dx["xu".index(wrt)][:, k] = 1
            expected = gs.jvp(net, (x, u), dx=tuple(dx))[1]
        for one, column in zip(got, expected, strict=True):
            close(one[:, :, k], column)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_several_inputs_and_a_cost(
    critic_data: tuple[Array, Array], rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    func = torch.func
    net = Critic(joined=True)
    net(*critic_data)
    y, v = rng.standard_normal((BATCH, 4)), rng.standard_normal(34)
    w = torch.tensor(net.w.copy())
    tx, tu, ty = (torch.tensor(a) for a in (*critic_data, y))

    def losses(w: Any, x: Any, u: Any, y: Any) -> Any:
        return ((torch.cat(torch_critic(w, x, u)) - y) ** 2).sum()

    def average(w: Any) -> Any:
        return func.vmap(losses, (None, 0, 0, 0))(w, tx, tu, ty).mean()

    each = func.vmap(func.grad(losses), (None, 0, 0, 0))(w, tx, tu, ty).numpy()
    arguments = (net, COST, critic_data, y)
    close(gs.per_sample_grad(*arguments), each)
    norms = np.linalg.norm(each, axis=1)
    close(gs.per_sample_grad_norm(*arguments), norms)
    close(gs.clip_per_sample(*arguments, 1.0), (each * np.minimum(1, 1 / norms)[:, None]).mean(0))
    close(gs.fisher_diag(*arguments), (each**2).mean(0))
    close(gs.fishervp(*arguments, v), (each * (each @ v)[:, None]).mean(0))
    h = func.hessian(average)(w).numpy()
    close(gs.hessian(*arguments), h)
    close(gs.hvp(*arguments, v), h @ v)
    jacobian = func.vmap(func.jacrev(torch_critic), (None, 0, 0))(w, tx, tu)
    j = torch.cat(jacobian, 1).numpy()
    g = 2 * np.einsum("bop,boq->pq", j, j) / BATCH
    close(gs.ggn(*arguments), g)
    close(gs.ggnvp(*arguments, v), g @ v)
    close(gs.jacobian(net, critic_data, "w"), j)
    fun, x0 = gs.as_scipy(*arguments)
    close(fun(x0)[1], each.mean(0))
    trace = gs.backprop(*arguments, per_sample=True)
    close(np.concatenate([trace["a"].dw, trace["b"].dw], 1), each)
    for call in (gs.laplacian, gs.hessian_x, gs.derivatives):
        with pytest.raises(ValueError, match=r"2 inputs and 1 outputs.*one of each"):
            call(net, critic_data)


def test_empty_batches() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = np.zeros((0, 3)), np.zeros((0, 2))
    assert gs.jacobian(net, x).shape == (0, 2, 3)
    assert gs.jacobian(net, x, "w").shape == (0, 2, 26)
    assert gs.hessian_x(net, x).shape == (0, 2, 3, 3)
    assert gs.laplacian(net, x).shape == (0, 2)
    assert gs.per_sample_grad(net, COST, x, y).shape == (0, 26)
    assert gs.per_sample_grad_norm(net, COST, x, y).shape == (0,)
    assert gs.jvp(net, x, dw=np.zeros(26))[1].shape == (0, 2)
    assert not gs.vjp(net, x)[1](y)[1].any()
    for call in (gs.hvp, gs.ggnvp, gs.fishervp):
        with pytest.raises(ValueError, match="no samples"):
            call(net, COST, x, y, np.zeros(26))
    for matrix in (gs.hessian, gs.ggn, gs.fisher_diag, gs.backprop, gs.value_and_grad):
        with pytest.raises(ValueError, match="no samples"):
            matrix(net, COST, x, y)
