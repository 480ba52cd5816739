"""How exact Gauss-Newton steps and Kronecker factors made on a device are: NumPy in float64.

Like tests/test_cuda.py, on a GPU or on the emulated device, else skipped with the reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradstack as gs
from device_cases import Wired, close_to_exact
from gradstack import _compiled, _core, _device, nn, optim

Array = np.ndarray

EPS = float(np.finfo(np.float32).eps)


def exact_copy(net: nn.Sequential) -> nn.Sequential:
    layers = [
        nn.Linear(m.in_features, m.out_features, dtype=np.float64)
        if isinstance(m, nn.Linear)
        else nn.Tanh()
        for m in net
    ]
    other = nn.Sequential(*layers)
    other.w[...] = net.w
    return other


@pytest.mark.parametrize("solver", ["exact", "cg"])
@pytest.mark.parametrize("damping", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("count", [5, 200])  # fewer residuals than parameters, and more
@pytest.mark.parametrize("kind", ["squared", "cross entropy"])
def test_a_damped_step_is_as_exact_as_its_condition_allows(
    cuda: str, rng: np.random.Generator, kind: str, count: int, damping: float, solver: str
) -> None:
    """|d - exact| <= |(G + damping)^-1| (|error of G| |d| + |error of g|), to first order.

    Every entry of a Jacobian and every output is off by at most u of what it sums up. From tanh
    layers of width 6 and float32 sums of up to 7 terms, u = 16 eps is ample.
    """
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    exact = exact_copy(net)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    cost, y = (
        (nn.SquaredError(), rng.normal(size=(count, 3)).astype(np.float32))
        if kind == "squared"
        else (nn.CrossEntropyLoss(), rng.integers(0, 3, count))
    )
    curved, g = gs.ggn(exact, cost, x, y), gs.value_and_grad(exact, cost, x, y)[1]
    damped = curved + damping * np.eye(len(g))
    expected = -np.linalg.solve(damped, g)
    # What g and G sum up, without cancellation.
    j = np.abs(gs.jacobian(exact, x, "w"))
    at = exact(x)
    slope = np.abs(
        2 * (at - y)
        if kind == "squared"
        else np.exp(at) / np.exp(at).sum(1)[:, None] - np.eye(3)[y]
    )
    bend = 2.0 if kind == "squared" else 0.5
    u = 16 * EPS
    terms = np.einsum("bip,bi->p", j, slope + bend * np.abs(at).sum(1)[:, None]) / count
    of_g = np.linalg.norm(terms)
    of_curved = 2 * bend * np.linalg.norm(j, axis=(0, 1)) @ np.linalg.norm(j, axis=(0, 1)) / count
    size = np.linalg.norm(expected)
    bound = u * (of_curved * size + of_g) / np.linalg.eigvalsh(damped)[0]
    if solver == "cg":
        bound += 1e-5 * np.linalg.cond(damped) * size  # where it stops
    before = net.w.astype(np.float64)
    gs.fit(
        net, x, y, cost=cost, batch_size=None, epochs=1, device=cuda,
        optimizer=optim.GaussNewton(damping=damping, solver=solver, cg_tol=1e-5),
    )  # fmt: skip
    rounding = EPS * np.linalg.norm(net.w)
    assert np.linalg.norm(net.w - before - expected) <= bound + rounding


@pytest.mark.parametrize("shape", [(50, 1, 1), (200, 7, 3), (10, 20, 1), (8, 8, 3)], ids=str)
def test_one_step_solves_least_squares(cuda: str, rng: np.random.Generator, shape: Any) -> None:
    n, d, out = shape
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = rng.normal(size=(n, out)).astype(np.float32)
    net = nn.Linear(d, out)
    net.w[:] = 0  # the outputs and the Jacobian of this net have no rounding
    gs.fit(
        net, x, y, cost=nn.SquaredError(), optimizer=optim.GaussNewton(), batch_size=None,
        epochs=1, device=cuda,
    )  # fmt: skip
    columns = np.column_stack([x, np.ones(n)]).astype(np.float64)
    expected = np.linalg.lstsq(columns, y.astype(np.float64), rcond=None)[0].T
    got = np.column_stack([net.weight, net.bias])
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * EPS * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["squared", "cross entropy"])
@pytest.mark.parametrize("count", [8, 100])
def test_rounding_is_no_direction_to_step_along(
    cuda: str, rng: np.random.Generator, kind: str, count: int
) -> None:
    """A unit twice over: what its copies differ by changes nothing, and is not divided by."""
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    for layer in (net[0].weight, net[0].bias):
        layer[3:] = layer[:3]
    net[2].weight[:, 3:] = 0.5 * net[2].weight[:, :3]
    x = rng.normal(size=(count, 3)).astype(np.float32)
    y = net(x) + 0.01 * rng.normal(size=(count, 3)).astype(np.float32)
    cost: nn.Cost = nn.SquaredError()
    if kind != "squared":
        cost, y = nn.CrossEntropyLoss(), np.exp(y) / np.exp(y).sum(1, keepdims=True)
    exact, before = exact_copy(net), net.w.astype(np.float64)
    for each, device in ((net, cuda), (exact, "cpu")):
        gs.fit(
            each, x, y, cost=cost, optimizer=optim.GaussNewton(), batch_size=None, epochs=1,
            device=device,
        )  # fmt: skip
    step = np.linalg.norm(exact.w - before)
    assert np.linalg.norm(net.w - exact.w) <= 0.05 * step
    assert cost(net(x), y) == pytest.approx(cost(exact(x), y), rel=1e-3)


def test_levenberg_gets_down_to_the_rounding_of_outputs(
    cuda: str, rng: np.random.Generator
) -> None:
    x = np.linspace(-2, 2, 100, dtype=np.float32)[:, None]
    teacher = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    y = teacher(x)
    net = teacher.copy()
    net.w[...] += 0.05 * rng.normal(size=net.w.size).astype(np.float32)
    history = gs.fit(
        net, x, y, cost=nn.MSELoss(), optimizer=optim.LevenbergMarquardt(), batch_size=None,
        epochs=60, device=cuda,
    )  # fmt: skip
    assert history.loss[0] > 1e-5
    assert history.loss[-1] <= (8 * EPS * np.abs(y).max()) ** 2
    assert (np.diff(history.loss) <= 0).all()


@pytest.mark.parametrize("part", [None, 2000])  # the batch as a whole, and in many parts
@pytest.mark.parametrize("directions", [1, 3])
def test_moments_of_layers(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, part: Any, directions: int
) -> None:
    if part:
        monkeypatch.setenv("GRADSTACK_EMULATED_PART", str(part))
        monkeypatch.setattr(_device, "_opened", {})
    net = Wired()
    x = rng.normal(size=(50, 6)).astype(np.float32)
    dy = rng.normal(size=(50, directions, 4)).astype(np.float32)
    net(x)
    compiled = _compiled.compiled_for(net, ((6,),))
    names = ["a", "b", "c", "c_1", "d"]
    core = _core.device.DeviceMoments(compiled.graph, _device.open_device(cuda), names)
    found = core.evaluate(net.w, [x], dy.reshape(-1, 4), directions)
    again = core.evaluate(net.w, [x], dy.reshape(-1, 4), directions)
    for a, b in zip(found, again, strict=True):
        assert all(np.array_equal(c, d) for c, d in zip(a, b, strict=True))

    # By hand, in float64.
    w = {name: np.asarray(p, np.float64) for name, p in net.named_parameters()}
    w["a.weight"] = w["a.weight"] * (np.arange(48).reshape(8, 6) % 3 > 0)
    z0 = x.astype(np.float64)
    z1 = np.tanh(z0 @ w["a.weight"].T + w["a.bias"])
    z2 = np.tanh(z1 @ w["b.weight"].T + w["b.bias"])
    z3 = np.tanh(z2 @ w["c.weight"].T)
    z4 = np.tanh((z3 + z2) @ w["c.weight"].T)
    inputs = [z0, z1, z2, z3 + z2, z4]
    moments = [np.zeros((n, n)) for n in (8, 8, 8, 8, 4)]
    for k in range(directions):
        s5 = dy[:, k].astype(np.float64)
        s4 = (s5 @ w["d.weight"]) * (1 - z4**2)
        back = s4 @ w["c.weight"]
        s3 = back * (1 - z3**2)
        s2 = (back + s3 @ w["c.weight"]) * (1 - z2**2)
        s1 = (s2 @ w["b.weight"]) * (1 - z1**2)
        for moment, s in zip(moments, (s1, s2, s3, s4, s5), strict=True):
            moment[...] += s.T @ s
    for name, (z, ds), each, expected in zip(names, found, inputs, moments, strict=True):
        one = each if name.startswith("c") else np.column_stack([each, np.ones(50)])
        close_to_exact(z.astype(np.float32), one.T @ one, 32 * EPS)
        close_to_exact(ds.astype(np.float32), expected, 64 * EPS)
