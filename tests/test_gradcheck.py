"""`gs.gradcheck` lets right derivatives pass and names the block and entry of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn
from oracle_nets import BOUNDED, KINKED, SMOOTH, Net, make_recipe

Array = np.ndarray
DOUBLE = "float64"


class Cube(nn.Module):
    """x^3 in NumPy; a subclass plants an error."""

    def forward(self, x: Array) -> Array:
        return x**3

    def vjp(self, x: Array, dy: Array) -> Array:
        return 3 * x**2 * dy

    def jvp(self, x: Array, dx: Array) -> Array:
        return 3 * x**2 * dx


class WrongVjp(Cube):
    def __init__(self, feature: int, factor: float) -> None:
        super().__init__()
        self.feature, self.factor = feature, factor

    def vjp(self, x: Array, dy: Array) -> Array:
        dx = super().vjp(x, dy)
        dx[:, self.feature] *= self.factor
        return dx


class WrongJvp(Cube):
    def jvp(self, x: Array, dx: Array) -> Array:
        dy = super().jvp(x, dx)
        dy[:, 2] = 0
        return dy


class Quartic(nn.Cost):
    """The sum of fourth powers; a subclass plants an error."""

    def value(self, ybar: Array, y: Array) -> Array:
        return ((ybar - y) ** 4).sum(axis=1)

    def gradient(self, ybar: Array, y: Array) -> Array:
        return 4 * (ybar - y) ** 3

    def hvp(self, ybar: Array, y: Array, v: Array) -> Array:
        return 12 * (ybar - y) ** 2 * v


class WrongGradient(Quartic):
    def gradient(self, ybar: Array, y: Array) -> Array:
        g = super().gradient(ybar, y)
        g[:, 1] *= 1.001
        return g


class WrongHvp(Quartic):
    def hvp(self, ybar: Array, y: Array, v: Array) -> Array:
        return 11 * (ybar - y) ** 2 * v


def net_with(*blocks: nn.Module, dtype: str = DOUBLE) -> nn.Sequential:
    """Blocks of width 4 between linear ones: 3 features in, 2 out."""
    return nn.Sequential(nn.Linear(3, 4, dtype=dtype), *blocks, nn.Linear(4, 2, dtype=dtype))


def data(rng: np.random.Generator, n: int = 5) -> tuple[Array, Array]:
    return rng.standard_normal((n, 3)), rng.standard_normal((n, 2))


class TwoInputs(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4, dtype=DOUBLE)
        self.block = block

    def forward(self, x: Any, u: Any) -> Any:
        return gs.concat([gs.tanh(self.a(x)) * self.block(u), 2 * u])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("activations", [SMOOTH, KINKED + BOUNDED], ids=["smooth", "kinked"])
def test_random_graphs_pass(seed: int, activations: list[str]) -> None:
    recipe = make_recipe(seed, activations)
    rng = np.random.default_rng(seed)
    net = Net(recipe)
    x, y = rng.standard_normal((4, recipe.d_in)), rng.standard_normal((4, recipe.d_out))
    check = gs.gradcheck(net, nn.SquaredError(), x, y)
    assert check, check
    assert {entry.block for entry in check.checks} >= {"net", "cost", "layers.0"}


PASSING: dict[str, tuple[Any, Callable[[np.random.Generator], Any]]] = {
    "SquaredError": (nn.SquaredError(), lambda rng: rng.standard_normal((6, 2))),
    "SquaredError, sum": (
        nn.SquaredError(reduction="sum"),
        lambda rng: rng.standard_normal((6, 2)),
    ),
    "L1Loss": (nn.L1Loss(), lambda rng: rng.standard_normal((6, 2))),
    "HuberLoss": (nn.HuberLoss(0.5), lambda rng: rng.standard_normal((6, 2))),
    "QuantileLoss": (nn.QuantileLoss(0.3), lambda rng: rng.standard_normal((6, 2))),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), lambda rng: rng.integers(0, 2, 6)),
    "CrossEntropyLoss, weights": (
        nn.CrossEntropyLoss(weight=[1.0, 5.0], label_smoothing=0.1),
        lambda rng: rng.integers(0, 2, 6),
    ),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), lambda rng: rng.uniform(size=(6, 2))),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), lambda rng: rng.uniform(size=(6, 2))),
    "Quartic": (Quartic(), lambda rng: rng.standard_normal((6, 2))),
}


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_costs_pass(name: str, dtype: str, rng: np.random.Generator) -> None:
    cost, target = PASSING[name]
    net = net_with(nn.Softplus(), dtype=dtype)
    check = gs.gradcheck(net, cost, rng.standard_normal((6, 3)), target(rng))
    assert check, check
    assert "hvp" in [entry.what for entry in check.checks]


def test_nets_with_masks_python_blocks_and_frozen_layers_pass(rng: np.random.Generator) -> None:
    arctan = nn.Pointwise(np.arctan, lambda s: 1 / (1 + s * s))
    masked = nn.Linear(4, 4, mask=rng.random((4, 4)) < 0.5, dtype=DOUBLE)
    net = net_with(Cube(), masked, arctan, nn.Dropout(0.5))
    net[0].freeze()
    check = gs.gradcheck(net, Quartic(), *data(rng))
    assert check, check
    # A frozen layer has derivatives like any other.
    assert ("0", "dw") in [(entry.block, entry.what) for entry in check.checks]


def test_the_nearest_neighbour_model_passes(rng: np.random.Generator) -> None:
    net = nn.NearestNeighbour(3, 4, dtype=DOUBLE)
    x = rng.standard_normal((30, 3))
    net.w = x[:4].ravel() + 0.1
    check = gs.gradcheck(net, nn.SquaredError(), x)
    assert check, check
    assert [entry.what for entry in check.checks] == ["dw"]


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("feature", [0, 3])
@pytest.mark.parametrize("factor", [0.0, -1.0, 0.999, 1.00001, np.nan])
def test_a_wrong_vjp_is_named(
    position: int, feature: int, factor: float, rng: np.random.Generator
) -> None:
    blocks: list[nn.Module] = [nn.Tanh(), nn.Linear(4, 4, dtype=DOUBLE)]
    blocks.insert(position - 1, WrongVjp(feature, factor))
    check = gs.gradcheck(net_with(*blocks), nn.SquaredError(), *data(rng))
    assert not check
    assert (check.worst.block, check.worst.what) == (str(position), "dz")
    assert check.worst.index[1] == feature
    if np.isfinite(factor):
        assert check.worst.analytic == pytest.approx(factor * check.worst.numeric, rel=1e-6)
    right = {entry.block for entry in check.checks if entry.error <= 1}
    assert right >= {"0", "4", "cost"}


def test_a_wrong_jvp_is_named(rng: np.random.Generator) -> None:
    check = gs.gradcheck(net_with(nn.Tanh(), WrongJvp()), nn.SquaredError(), *data(rng))
    assert not check
    assert (check.worst.block, check.worst.what, check.worst.index[1]) == ("2", "jvp", 2)
    wrong = [(e.block, e.what) for e in check.checks if e.error > 1]
    assert wrong == [("2", "jvp")]


def test_a_wrong_pointwise_derivative_is_named(rng: np.random.Generator) -> None:
    wrong = nn.Pointwise(np.sin, lambda s: np.where(s > 0, np.cos(s), 1.0))
    x, y = data(rng)
    net = net_with(nn.Tanh(), wrong)
    check = gs.gradcheck(net, nn.SquaredError(), x, y)
    assert not check
    assert (check.worst.block, check.worst.what) == ("2", "dz")
    s = gs.backprop(net, nn.SquaredError(), x, y)["2"].z
    assert s[check.worst.index] < 0  # where the derivative is wrong
    net.w = np.abs(net.w)
    assert gs.gradcheck(net, nn.SquaredError(), np.abs(x), y)  # every s is above 0


def test_a_wrong_cost_is_named(rng: np.random.Generator) -> None:
    x, y = data(rng)
    check = gs.gradcheck(net_with(nn.Tanh()), WrongGradient(), x, y)
    assert not check
    assert (check.worst.block, check.worst.what, check.worst.index[1]) == ("cost", "dybar", 1)
    check = gs.gradcheck(net_with(nn.Tanh()), WrongHvp(), x, y)
    assert not check
    assert (check.worst.block, check.worst.what) == ("cost", "hvp")
    assert check.worst.analytic == pytest.approx(check.worst.numeric * 11 / 12, rel=1e-6)


def test_wrong_blocks_in_float32_nets_are_named_and_the_net_stays(
    rng: np.random.Generator,
) -> None:
    net = net_with(WrongVjp(1, 1.0001), dtype="float32")
    before = net.w.copy()
    x, y = data(rng)
    check = gs.gradcheck(net, nn.SquaredError(), x.astype(np.float32), y)
    assert not check
    assert (check.worst.block, check.worst.index[1]) == ("1", 1)
    np.testing.assert_array_equal(net.w, before)
    assert net.w.dtype == np.float32


def test_several_inputs(rng: np.random.Generator) -> None:
    x, u = data(rng)[0], rng.standard_normal((5, 4))
    y = rng.standard_normal((5, 8))
    check = gs.gradcheck(TwoInputs(Cube()), nn.SquaredError(), (x, u), y)
    assert check, check
    found = {(entry.block, entry.what) for entry in check.checks}
    assert found >= {("net", "dx[0]"), ("net", "dx[1]"), ("mul", "dz[0]"), ("mul", "dz[1]")}
    check = gs.gradcheck(TwoInputs(WrongVjp(2, 0.5)), nn.SquaredError(), (x, u), y)
    assert not check
    assert (check.worst.block, check.worst.what, check.worst.index[1]) == ("block", "dz", 2)


def absolute(at_zero: float) -> nn.Pointwise:
    return nn.Pointwise(np.abs, lambda s: np.where(s == 0, at_zero, np.sign(s)))


@pytest.mark.parametrize(
    ("block", "right"),
    [
        (nn.ReLU(), True),
        (nn.LeakyReLU(0.2), True),
        (nn.Hardtanh(0.0, 2.0), True),
        (absolute(0.0), True),
        (absolute(-1.0), True),
        (absolute(0.3), True),  # any slope between those of the two sides
        (absolute(1.1), False),
        (absolute(-2.0), False),
    ],
)
def test_kinks(block: nn.Module, right: bool, rng: np.random.Generator) -> None:
    net = net_with(block)
    net[0].w[:] = 0  # every s is exactly 0
    check = gs.gradcheck(net, nn.SquaredError(), *data(rng))
    parts = [entry for entry in check.checks if entry.block == "1"]
    assert all(entry.error <= 1 for entry in parts) == right, check
    if not right:
        assert not check
        assert check.worst.block == "1"


def test_a_single_sample_has_no_sample_in_its_indices(rng: np.random.Generator) -> None:
    x, y = data(rng)
    check = gs.gradcheck(net_with(WrongVjp(3, 2.0)), nn.SquaredError(), x[0], y[0])
    assert not check
    assert check.worst.index == (3,)


def test_explicit_parameters(rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(3, 2, dtype=DOUBLE), absolute(1.5))
    x, y = data(rng)
    assert gs.gradcheck(net, nn.SquaredError(), x, y)  # no s is 0 here
    assert not gs.gradcheck(net, nn.SquaredError(), x, y, w=np.zeros(8))


def test_large_nets_are_sampled(rng: np.random.Generator) -> None:
    net = nn.Sequential(
        nn.Linear(300, 200, dtype=DOUBLE), nn.Tanh(), nn.Linear(200, 1, dtype=DOUBLE)
    )
    calls = 0

    class Counting(nn.SquaredError):
        def value(self, ybar: Array, y: Any) -> Array:
            nonlocal calls
            calls += 1
            return super().value(ybar, y)

    x, y = rng.standard_normal((2, 300)), np.ones((2, 1))
    first = gs.gradcheck(net, Counting(), x, y, max_entries=5)
    assert first, first
    assert calls < 5 * 6
    again = gs.gradcheck(net, nn.SquaredError(), x, y, max_entries=5)
    other = gs.gradcheck(net, nn.SquaredError(), x, y, max_entries=5, seed=1)
    assert repr(first) == repr(again)
    assert repr(first) != repr(other)


def test_printing_shows_a_table_and_the_verdict(rng: np.random.Generator) -> None:
    x, y = data(rng)
    lines = repr(gs.gradcheck(net_with(Cube()), nn.SquaredError(), x, y)).splitlines()
    assert lines[0] == "gradcheck: right"
    assert lines[1].split() == [
        "block",
        "derivative",
        "worst",
        "entry",
        "computed",
        "differences",
        "error",
    ]
    rows = [line.split()[:2] for line in lines[2:]]
    assert rows == [
        *(["0", what] for what in ("dz", "dw", "jvp")),
        *(["1", what] for what in ("dz", "jvp")),
        *(["2", what] for what in ("dz", "dw", "jvp")),
        *(["cost", what] for what in ("dybar", "hvp")),
        *(["net", what] for what in ("dx", "dw")),
    ]
    assert "!" not in "".join(lines)
    check = gs.gradcheck(net_with(WrongVjp(3, 2.0)), nn.SquaredError(), x, y)
    lines = repr(check).splitlines()
    assert lines[0] == f"gradcheck: wrong: block '1', dz[{check.worst.index[0]}, 3]"
    marked = [line.split()[:2] for line in lines if line.endswith("!")]
    assert ["1", "dz"] in marked
    assert ["1", "jvp"] not in marked


def test_errors_of_users_code_come_out_unchanged(rng: np.random.Generator) -> None:
    class Broken(Cube):
        def vjp(self, x: Array, dy: Array) -> Array:
            raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"):
        gs.gradcheck(net_with(Broken()), nn.SquaredError(), *data(rng))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"net": np.zeros(3)}, TypeError, "net must be an nn.Module"),
        ({"cost": nn.SquaredError}, TypeError, "must be an instance"),
        ({"x": np.zeros((0, 3)), "y": np.zeros((0, 2))}, ValueError, "no samples"),
        ({"x": np.zeros((5, 4))}, ValueError, "4 features per sample, expected 3"),
        ({"y": np.zeros((5, 3))}, ValueError, "y has shape"),
        ({"w": np.zeros(3)}, ValueError, "w has"),
        ({"rtol": -1.0}, ValueError, "rtol"),
        ({"step": 0.0}, ValueError, "step"),
        ({"step": np.nan}, ValueError, "step"),
        ({"max_entries": 0}, ValueError, "max_entries"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_are_named(
    change: dict[str, Any], error: type[Exception], match: str, rng: np.random.Generator
) -> None:
    x, y = data(rng)
    arguments = {"net": net_with(Cube()), "cost": nn.SquaredError(), "x": x, "y": y, **change}
    with pytest.raises(error, match=match):
        gs.gradcheck(**arguments)
