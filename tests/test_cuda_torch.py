"""Derivatives on a device against PyTorch in float64, over random graphs.

Like tests/test_cuda.py, on a GPU or on the emulated device, else skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from device_cases import close_to_exact as close
from gradstack import nn
from oracle_nets import BOUNDED, KINKED, SMOOTH, Net, make_recipe, torch_function

torch = pytest.importorskip("torch", reason="the oracle is not installed")
func = torch.func

# Spinning threads of two libraries on a few cores wait for each other.
torch.set_num_threads(1)

# torch.func compiles some of its own rules with a function that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Array = np.ndarray
BATCH = 7


class Case(NamedTuple):
    """A recipe on the device, and as a function of (w, one sample) in PyTorch."""

    net: nn.Module
    f: Callable[[Any, Any], Any]
    w: Any
    x: Any
    y: Any

    @property
    def numbers(self) -> tuple[Array, Array, Array]:
        return self.w.numpy(), self.x.numpy(), self.y.numpy()

    def losses(self, w: Any, x: Any, y: Any) -> Any:
        return ((self.f(w, x) - y) ** 2).sum()


def make_case(device: str, seed: int, activations: list[str] | None = None) -> Case:
    recipe = make_recipe(seed, activations)
    rng = np.random.default_rng(1000 + seed)
    shapes = [(recipe.size,), (BATCH, recipe.d_in), (BATCH, recipe.d_out)]
    # Numbers that float32 holds exactly, so that both sides work on the same.
    numbers = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    w, x, y = (torch.tensor(a.astype(np.float64)) for a in numbers)
    net = Net(recipe, dtype=np.float32)
    net.trace((recipe.d_in,))
    net.w = 0.5 * numbers[0]
    return Case(net.to(device), torch_function(recipe), 0.5 * w, x, y)


seeds = pytest.mark.parametrize("seed", range(16))
both_kinds = pytest.mark.parametrize(
    "activations", [SMOOTH, KINKED + BOUNDED], ids=["smooth", "kinked"]
)


@seeds
@both_kinds
def test_products_against_torch(cuda: str, seed: int, activations: list[str]) -> None:
    case = make_case(cuda, seed, activations)
    w, x, _ = case.numbers
    rng = np.random.default_rng(seed)
    v, u = (rng.normal(size=a.shape).astype(np.float32) for a in (w, x))

    def batched(w: Any, x: Any) -> Any:
        return func.vmap(case.f, (None, 0))(w, x)

    def tangent(dw: Array, dx: Array) -> Any:
        pair = (torch.tensor(dw.astype(np.float64)), torch.tensor(dx.astype(np.float64)))
        return func.jvp(batched, (case.w, case.x), pair)[1]

    y, dy = gs.jvp(case.net, x, dx=u, dw=v)
    close(y, batched(case.w, case.x))
    close(dy, tangent(v, u))
    close(gs.jvp(case.net, x, dx=u)[1], tangent(0 * v, u))
    close(gs.jvp(case.net, x, dw=v)[1], tangent(v, 0 * u))
    close(gs.jvp(case.net, x)[1], 0 * batched(case.w, case.x))
    y, push = gs.linearize(case.net, x)
    for _ in range(2):  # both products can be had again, in any order
        close(push(dx=u, dw=v), tangent(v, u))
        dx, dw = push.pullback(case.numbers[2])
        expected_dw, expected_dx = func.vjp(batched, case.w, case.x)[1](case.y)
        close(dx, expected_dx)
        close(dw, expected_dw)


@seeds
@both_kinds
def test_jacobians_against_torch(cuda: str, seed: int, activations: list[str]) -> None:
    case = make_case(cuda, seed, activations)
    w, x, _ = case.numbers
    in_x = func.vmap(func.jacrev(case.f, 1), (None, 0))(case.w, case.x)
    in_w = func.vmap(func.jacrev(case.f, 0), (None, 0))(case.w, case.x)
    close(gs.jacobian(case.net, x), in_x)
    close(gs.jacobian(case.net, x, "w"), in_w)
    close(gs.jacobian(case.net, x[2]), in_x[2])
    close(gs.jacobian(case.net, x[2], "w"), in_w[2])
    out = np.empty((BATCH, *in_w.shape[1:]), np.float32)
    case.net.w = 0 * w
    assert gs.jacobian(case.net, x, "w", w=w, out=out) is out
    close(out, in_w)


@seeds
def test_gradients_of_samples_against_torch(cuda: str, seed: int) -> None:
    case = make_case(cuda, seed)
    w, x, y = case.numbers
    cost = nn.SquaredError()
    g = func.vmap(func.grad(case.losses), (None, 0, 0))(case.w, case.x, case.y)
    norms = g.norm(dim=1)
    close(gs.per_sample_grad(case.net, cost, x, y), g)
    close(gs.per_sample_grad(case.net, cost, x[0], y[0]), g[0])
    close(gs.per_sample_grad_norm(case.net, cost, x, y), norms)
    close(gs.per_sample_grad_norm(case.net, cost, x[0], y[0]), norms[0])
    limit = float(norms.median())
    clipped = (g * torch.clamp(limit / norms, max=1)[:, None]).mean(0)
    close(gs.clip_per_sample(case.net, cost, x, y, limit), clipped)
    close(gs.fisher_diag(case.net, cost, x, y), (g**2).mean(0))
    v = np.random.default_rng(seed).normal(size=w.shape).astype(np.float32)
    product = g.T @ (g @ torch.tensor(v.astype(np.float64))) / BATCH
    close(gs.fishervp(case.net, cost, x, y, v), product)


@seeds
def test_gauss_newton_against_torch(cuda: str, seed: int) -> None:
    case = make_case(cuda, seed)
    w, x, y = case.numbers
    v = np.random.default_rng(seed).normal(size=w.shape).astype(np.float32)

    def batched(w: Any) -> Any:
        return func.vmap(case.f, (None, 0))(w, case.x)

    moved = func.jvp(batched, (case.w,), (torch.tensor(v.astype(np.float64)),))[1]
    expected = func.vjp(batched, case.w)[1](2 * moved / BATCH)[0]
    close(gs.ggnvp(case.net, nn.SquaredError(), x, y, v), expected)
