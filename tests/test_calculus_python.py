"""Blocks and costs written in Python, in every call of the calculus.

They say the same as blocks of the library, so that each result has to be the library's; what they
do not define is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn

Array = np.ndarray


class NoJvp(nn.Module):
    """tanh with its reverse mode alone."""

    def forward(self, x: Array) -> Array:
        return np.tanh(x)

    def vjp(self, x: Array, dy: Array) -> Array:
        return (1 - np.tanh(x) ** 2) * dy


class WithJvp(NoJvp):
    def jvp(self, x: Array, dx: Array) -> Array:
        return (1 - np.tanh(x) ** 2) * dx


def pointwise() -> nn.Module:
    return nn.Pointwise(np.tanh, lambda s: 1 - np.tanh(s) ** 2)


class First(nn.Cost):
    """The squared error without second derivative."""

    def value(self, ybar: Array, y: Array) -> Array:
        return ((ybar - y) ** 2).sum(axis=1)

    def gradient(self, ybar: Array, y: Array) -> Array:
        return 2 * (ybar - y)


class Second(First):
    def hvp(self, ybar: Array, y: Array, v: Array) -> Array:
        return 2 * v


def net_with(*blocks: nn.Module) -> nn.Sequential:
    """The same parameters whatever the blocks."""
    gs.seed(0)
    first = nn.Linear(3, 4, dtype="float64")
    return nn.Sequential(first, *blocks, nn.Linear(4, 2, dtype="float64"))


X, Y = np.random.default_rng(0).standard_normal((6, 3)), np.ones((6, 2))
V = np.random.default_rng(1).standard_normal(26)
DX = np.random.default_rng(2).standard_normal((6, 3))

DJAC = np.ones((6, 2, 3))

OF_NET: dict[str, Callable[[Any], Any]] = {
    "apply": lambda net: gs.apply(net, net.w + V, X),
    "vjp": lambda net: gs.vjp(net, X)[1](Y)[0],
    "vjp, dw": lambda net: gs.vjp(net, X)[1](Y)[1],
    "jacobian": lambda net: gs.jacobian(net, X),
    "jacobian, w": lambda net: gs.jacobian(net, X, "w"),
    "jacobian, stage": lambda net: gs.jacobian(net, X, "1"),
    "jvp": lambda net: gs.jvp(net, X, dx=DX, dw=V)[1],
    "linearize": lambda net: gs.linearize(net, X)[1](DX, V),
    "derivatives": lambda net: gs.derivatives(net, X).jac,
    "pullback of derivatives": lambda net: gs.derivatives(net, X).pullback(djac=DJAC)[1],
    "derivatives, order 2": lambda net: gs.derivatives(net, X, 2).diag,
    "laplacian": lambda net: gs.laplacian(net, X),
    "hessian_x": lambda net: gs.hessian_x(net, X),
}
OF_COST: dict[str, Callable[[Any, Any], Any]] = {
    "value_and_grad": lambda net, cost: gs.value_and_grad(net, cost, X, Y)[1],
    "backprop": lambda net, cost: gs.backprop(net, cost, X, Y, jacobians=True)[0].dw,
    "per_sample_grad": lambda net, cost: gs.per_sample_grad(net, cost, X, Y),
    "per_sample_grad_norm": lambda net, cost: gs.per_sample_grad_norm(net, cost, X, Y),
    "clip_per_sample": lambda net, cost: gs.clip_per_sample(net, cost, X, Y, 0.5),
    "fisher_diag": lambda net, cost: gs.fisher_diag(net, cost, X, Y),
    "fishervp": lambda net, cost: gs.fishervp(net, cost, X, Y, V),
    "as_scipy": lambda net, cost: gs.as_scipy(net, cost, X, Y)[0](V)[1],
    "ggn": lambda net, cost: gs.ggn(net, cost, X, Y),
    "ggnvp": lambda net, cost: gs.ggnvp(net, cost, X, Y, V),
    "hvp": lambda net, cost: gs.hvp(net, cost, X, Y, V),
    "hessian": lambda net, cost: gs.hessian(net, cost, X, Y),
}
# Forward mode needs jvp; second derivatives of the net need blocks of the library.
FORWARD = {"jvp", "linearize", "derivatives", "ggnvp"}
SECOND = {"pullback of derivatives", "derivatives, order 2", "laplacian", "hessian_x"}
SECOND_OF_COST = {"hvp", "hessian"}
CURVATURE = {"ggn", "ggnvp", "hvp", "hessian"}  # these need the cost's hvp
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "NoJvp": NoJvp,
    "WithJvp": WithJvp,
    "Pointwise": pointwise,
}


def test_every_call_is_here() -> None:
    calls = {
        name
        for name, value in vars(gs).items()
        if getattr(value, "__module__", "").startswith("gradstack._calculus") and callable(value)
    }
    calls -= {"Derivatives"}
    assert calls <= {name.partition(",")[0] for name in (*OF_NET, *OF_COST)}


@pytest.mark.parametrize("name", OF_NET)
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_in_calls_of_the_net(name: str, block: str) -> None:
    net = net_with(BLOCKS[block]())
    call = OF_NET[name]
    if block == "NoJvp" and name in FORWARD | SECOND:
        with pytest.raises(
            ValueError, match=r"\[NoJvp\] defines no jvp|block '1' is written in Py"
        ):
            call(net)
    elif name in SECOND:
        with pytest.raises(ValueError, match="block '1' is written in Python and has first"):
            call(net)
    else:
        np.testing.assert_allclose(call(net), call(net_with(nn.Tanh())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OF_COST)
@pytest.mark.parametrize("cost", [nn.SquaredError(), First(), Second()], ids=repr)
@pytest.mark.parametrize("block", [None, *BLOCKS])
def test_blocks_and_costs_in_calls_with_a_cost(name: str, cost: nn.Cost, block: str | None) -> None:
    net = net_with(nn.Tanh() if block is None else BLOCKS[block]())
    call = OF_COST[name]
    refusals = []
    if block == "NoJvp" and name in FORWARD | SECOND_OF_COST:
        refusals.append(r"\[NoJvp\] defines no jvp")
    if block is not None and name in SECOND_OF_COST:
        refusals.append("block '1' is written in Python and has first derivatives only")
    if isinstance(cost, First) and not isinstance(cost, Second) and name in CURVATURE:
        refusals.append(r"\[First\] has no second derivative: define hvp")
    if refusals:
        with pytest.raises(ValueError, match="|".join(refusals)):
            call(net, cost)
        return
    expected = OF_COST[name](net_with(nn.Tanh()), nn.SquaredError())
    np.testing.assert_allclose(call(net, cost), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [NoJvp, WithJvp])
@pytest.mark.parametrize("name", [n for n in OF_COST if n != "backprop"])
def test_a_block_before_all_parameters_needs_no_second_derivative(block: Any, name: str) -> None:
    nets = []
    for first in (block(), nn.Tanh()):
        gs.seed(0)
        layers = [nn.Linear(3, 4, dtype="float64"), nn.Sine(), nn.Linear(4, 2, dtype="float64")]
        nets.append(nn.Sequential(first, *layers))
        nets[-1].trace((3,))
    got, expected = (OF_COST[name](net, nn.SquaredError()) for net in nets)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    got, expected = (gs.jvp(net, X, dw=V)[1] for net in nets)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_blocks_in_branches() -> None:
    class Branches(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            gs.seed(0)
            self.a = nn.Linear(3, 4, dtype="float64")
            self.block = block
            self.b = nn.Linear(4, 2, dtype="float64")

        def forward(self, x: Any) -> Any:
            z = self.a(x)
            return self.b(z * self.block(z) + self.block(gs.relu(z)))

    for name in ("vjp, dw", "jvp", "jacobian, w", "derivatives"):
        got, expected = (OF_NET[name](Branches(b)) for b in (WithJvp(), nn.Tanh()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    for name in ("per_sample_grad", "per_sample_grad_norm", "ggn", "ggnvp", "fishervp"):
        got, expected = (OF_COST[name](Branches(b), Second()) for b in (WithJvp(), nn.Tanh()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_what_comes_out_of_users_code_is_checked() -> None:
    class Wide(NoJvp):
        def vjp(self, x: Array, dy: Array) -> Array:
            return np.zeros((len(x), 7))

    with pytest.raises(ValueError, match=r"\[Wide\] vjp returned shape \(6, 7\).*\(6, 4\)"):
        gs.jacobian(net_with(Wide()), X)

    class Broken(First):
        def gradient(self, ybar: Array, y: Array) -> Array:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gs.per_sample_grad(net_with(nn.Tanh()), Broken(), X, Y)
    with pytest.raises(KeyError, match="mine"):
        gs.backprop(net_with(nn.Tanh()), Broken(), X, Y)
