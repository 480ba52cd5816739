"""Random networks against PyTorch: forward, pullbacks, gradients, and every stage in between."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, nn

torch = pytest.importorskip("torch", reason="the oracle is not installed")

# Spinning threads of two libraries on a few cores wait for each other.
torch.set_num_threads(1)

WIDTHS = [1, 3, 17, 33, 65, 127]
BATCHES = [1, 3, 17, 33, 65, 127]
SMOOTH = ["Tanh", "Sigmoid", "SiLU", "GELU", "Softplus", "Mish", "Softsign", "LogSigmoid", "CELU"]
KINKED = ["ReLU", "LeakyReLU", "ELU", "SELU", "Hardtanh", "ReLU6", "Hardsigmoid", "Hardswish"]
# (cost, whether the target is labels)
COSTS = [("MSELoss", False), ("CrossEntropyLoss", True), ("HuberLoss", False)]


class Recipe(NamedTuple):
    """A network as a list of instructions on numbered values, the same for both libraries."""

    d_in: int
    d_out: int
    linears: list[tuple[int, int, bool, Any]]  # (in, out, bias, mask or None)
    program: list[tuple[Any, ...]]


def make_recipe(seed: int) -> Recipe:
    """Draw a graph: chains, residual sums, products, concatenations, slices, masks, reuse."""
    rng = np.random.default_rng(seed)
    linears: list[tuple[int, int, bool, Any]] = []
    program: list[tuple[Any, ...]] = []
    widths = [int(rng.choice(WIDTHS))]  # of the values so far; 0 is the input

    def push(width: int, *instruction: Any) -> int:
        program.append(instruction)
        widths.append(width)
        return len(widths) - 1

    def linear(source: int, width: int) -> int:
        mask = None
        if rng.random() < 0.25:
            mask = rng.random((width, widths[source])) < 0.6
        linears.append((widths[source], width, bool(rng.random() < 0.8), mask))
        return push(width, "linear", source, len(linears) - 1)

    def act(source: int) -> int:
        return push(widths[source], "act", source, str(rng.choice(SMOOTH + KINKED)))

    def width() -> int:
        return int(rng.choice(WIDTHS))

    last = 0
    for _ in range(int(rng.integers(2, 6))):
        kind = rng.choice(["layer", "residual", "concat", "slice", "product", "numbers", "again"])
        if kind == "layer":
            last = act(linear(last, width()))
        elif kind == "residual":
            last = push(widths[last], "add", last, act(linear(last, widths[last])))
        elif kind == "concat":
            other = int(rng.integers(0, len(widths)))
            last = push(widths[last] + widths[other], "concat", last, other)
        elif kind == "slice" and widths[last] > 2:
            begin = int(rng.integers(0, widths[last] - 1))
            end = int(rng.integers(begin + 1, widths[last] + 1))
            last = push(end - begin, "slice", last, begin, end)
        elif kind == "product":
            last = push(widths[last], "mul", last, act(linear(last, widths[last])))
        elif kind == "numbers":
            last = push(widths[last], "affine", last, -0.5, 0.25)
        else:
            # One value used by two blocks, joined by a difference and a quotient that is no pole.
            a, b = act(linear(last, 33)), push(33, "sigmoid", linear(last, 33))
            last = push(33, "div", push(33, "sub", a, b), push(33, "affine", b, 1.0, 1.0))
    last = linear(last, width())
    return Recipe(widths[0], widths[last], linears, program)


def interpret(recipe: Recipe, layers: Any, x: Any, library: Any) -> Any:
    values = [x]
    for kind, source, *rest in recipe.program:
        z = values[source]
        if kind == "linear":
            z = layers[rest[0]](z)
        elif kind == "act":
            z = library.act(rest[0], z)
        elif kind == "sigmoid":
            z = library.act("Sigmoid", z)
        elif kind == "add":
            z = z + values[rest[0]]
        elif kind == "sub":
            z = z - values[rest[0]]
        elif kind == "mul":
            z = z * values[rest[0]]
        elif kind == "div":
            z = z / values[rest[0]]
        elif kind == "affine":
            z = rest[0] * z + rest[1]
        elif kind == "concat":
            z = library.concat(z, values[rest[0]])
        elif kind == "slice":
            z = library.slice(z, rest[0], rest[1])
        values.append(z)
    return values[-1]


class Own:
    """The pieces of a recipe in gradstack: variables are samples."""

    @staticmethod
    def act(name: str, z: Any) -> Any:
        return getattr(nn, name)()(z)

    @staticmethod
    def concat(a: Any, b: Any) -> Any:
        return gs.concat([a, b])

    @staticmethod
    def slice(z: Any, begin: int, end: int) -> Any:
        return z[begin:end]


class Hardsigmoid(torch.nn.Module):
    """PyTorch's formula; its own derivative is a float32 1/6."""

    def forward(self, s: Any) -> Any:
        return torch.nn.functional.hardtanh(s, -3, 3) / 6 + 0.5


def their_activation(name: str) -> Any:
    return Hardsigmoid() if name == "Hardsigmoid" else getattr(torch.nn, name)()


class Theirs:
    """The pieces of a recipe in PyTorch: variables are batches."""

    @staticmethod
    def act(name: str, z: Any) -> Any:
        return their_activation(name)(z)

    @staticmethod
    def concat(a: Any, b: Any) -> Any:
        return torch.cat([a, b], dim=1)

    @staticmethod
    def slice(z: Any, begin: int, end: int) -> Any:
        return z[:, begin:end]


class OwnNet(nn.Module):
    def __init__(self, recipe: Recipe, dtype: type) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList(
            [nn.Linear(i, o, bias=b, mask=m, dtype=dtype) for i, o, b, m in recipe.linears]
        )

    def forward(self, x: Any) -> Any:
        return interpret(self.recipe, self.layers, x, Own)


class MaskedLinear(torch.nn.Linear):
    mask: Any

    def forward(self, x: Any) -> Any:
        weight = self.weight if self.mask is None else self.weight * self.mask
        return torch.nn.functional.linear(x, weight, self.bias)


class TheirNet(torch.nn.Module):
    def __init__(self, recipe: Recipe, dtype: Any = torch.float64) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = torch.nn.ModuleList()
        for i, o, b, m in recipe.linears:
            layer = MaskedLinear(i, o, bias=b)
            layer.mask = None if m is None else torch.tensor(m)
            self.layers.append(layer)
        self.to(dtype)

    def forward(self, x: Any) -> Any:
        return interpret(self.recipe, self.layers, x, Theirs)


def pair(seed: int, dtype: type) -> tuple[OwnNet, TheirNet, Recipe]:
    recipe = make_recipe(seed)
    torch.manual_seed(seed)
    # float32 weights in both, so that both compute the same function exactly.
    theirs = TheirNet(recipe, torch.float32).double()
    net = OwnNet(recipe, dtype)
    net.load_state_dict(theirs.state_dict())
    return net, theirs, recipe


def flat_gradient(net: Any) -> np.ndarray:
    return np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])


def assert_close(
    got: Any, expected: Any, dtype: type, floor: float = 0.0, rounded: Any = None
) -> None:
    """Relative to the largest entry; in float32 also by what PyTorch's float32, `rounded`, loses.

    Products and quotients cancel in some of the random graphs, where float32 keeps few digits.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert got.dtype == dtype
    assert np.isfinite(got).all()
    scale = max(np.abs(expected).max(initial=0), floor)
    bound = (1e-10 if dtype is np.float64 else 1e-5) * scale + 1e-300
    if dtype is np.float32 and rounded is not None:
        bound = max(bound, 4 * np.abs(rounded - expected).max(initial=0))
    assert np.abs(got - expected).max(initial=0) <= bound


def their_pullback(net: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """Output, dx and dw in the precision of `net`."""
    dtype = next(net.parameters()).dtype
    tx = torch.tensor(x, dtype=dtype, requires_grad=True)
    net.zero_grad()
    y = net(tx)
    y.backward(torch.tensor(dy, dtype=dtype))
    return y.detach().numpy(), tx.grad.numpy(), flat_gradient(net)


SEEDS = list(range(24))
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
seeds = pytest.mark.parametrize("seed", SEEDS)


@dtypes
@seeds
def test_forward_and_pullback(seed: int, dtype: type) -> None:
    net, theirs, recipe = pair(seed, dtype)
    rng = np.random.default_rng(seed)
    batch = BATCHES[seed % len(BATCHES)]
    x = rng.normal(size=(batch, recipe.d_in)).astype(np.float32)
    dy = rng.normal(size=(batch, recipe.d_out)).astype(np.float32)
    exact = their_pullback(theirs, x, dy)
    rounded = their_pullback(theirs.float(), x, dy)

    y, pullback = gs.vjp(net, x)
    assert_close(net(x), exact[0], dtype, rounded=rounded[0])
    for _ in range(2):
        for got, expected, loose in zip((y, *pullback(dy)), exact, rounded, strict=True):
            assert_close(got, expected, dtype, rounded=loose)


@dtypes
@seeds
def test_one_sample_is_a_batch_of_one(seed: int, dtype: type) -> None:
    net, theirs, recipe = pair(seed, dtype)
    x = np.random.default_rng(seed).normal(size=(5, recipe.d_in)).astype(np.float32)
    expected = theirs(torch.tensor(x, dtype=torch.float64)).detach().numpy()
    net.trace(recipe.d_in)
    floor = np.abs(expected).max()
    for sample, row in zip(x, expected, strict=True):
        assert_close(net(sample), row, dtype, floor)
        y, pullback = gs.vjp(net, sample)
        assert y.shape == (recipe.d_out,)
        dx, dw = pullback(np.ones(recipe.d_out))
        assert dx.shape == (recipe.d_in,)
        assert dw.shape == net.w.shape


@dtypes
@seeds
def test_value_and_grad(seed: int, dtype: type) -> None:
    net, theirs, recipe = pair(seed, dtype)
    name, labels = COSTS[seed % len(COSTS)]
    rng = np.random.default_rng(seed)
    batch = BATCHES[-1 - seed % len(BATCHES)]
    x = rng.normal(size=(batch, recipe.d_in)).astype(np.float32)
    if labels:
        y: Any = rng.integers(0, recipe.d_out, batch)
        ty = torch.tensor(y)
    else:
        y = rng.normal(size=(batch, recipe.d_out)).astype(np.float32)
        ty = torch.tensor(y, dtype=torch.float64)
    losses, gradients = [], []
    for kind in (torch.float64, torch.float32):
        theirs = theirs.to(kind)
        theirs.zero_grad()
        target = ty if labels else ty.to(kind)
        loss = getattr(torch.nn, name)()(theirs(torch.tensor(x, dtype=kind)), target)
        loss.backward()
        losses.append(loss.item())
        gradients.append(flat_gradient(theirs))
    cost = getattr(nn, name)()
    rtol = 1e-10 if dtype is np.float64 else 1e-5
    expected, rounded = gradients
    # An exact zero of one library may be a rounding error of the other (softmax of one class).
    floor = 1e-6 if np.abs(expected).max() < 1e-12 else 0.0

    value, dw = gs.value_and_grad(net, cost, x, y)
    assert value == pytest.approx(losses[0], rel=rtol, abs=1e-6 * rtol)
    assert_close(dw, expected, dtype, floor, rounded)

    result = gs.backprop(net, cost, x, y)
    assert result.loss == pytest.approx(losses[0], rel=rtol, abs=1e-6 * rtol)
    by_name = {stage.name: stage.dw for stage in result.stages if stage.dw.size}
    assert set(by_name) == {f"layers.{i}" for i in range(len(recipe.linears))}
    joined = np.concatenate([by_name[f"layers.{i}"] for i in range(len(recipe.linears))])
    assert_close(joined, expected, dtype, floor, rounded)


@dtypes
@pytest.mark.parametrize("activation", SMOOTH + KINKED)
def test_every_stage_of_a_chain(activation: str, dtype: type) -> None:
    widths = [3, 65, 17, 33, 4]
    layers: list[Any] = []
    their_layers: list[Any] = []
    torch.manual_seed(1)
    for d_in, d_out in itertools.pairwise(widths):
        layers += [nn.Linear(d_in, d_out, dtype=dtype), getattr(nn, activation)()]
        their_layers += [torch.nn.Linear(d_in, d_out), their_activation(activation)]
    net, theirs = nn.Sequential(*layers), torch.nn.Sequential(*their_layers).double()
    net.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(33, 3)).astype(np.float32)
    y = rng.integers(0, 4, 33)

    z = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    inputs = []
    for layer in theirs:
        z.retain_grad()
        inputs.append(z)
        z = layer(z)
    z.retain_grad()
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(y))
    loss.backward()

    result = gs.backprop(net, nn.CrossEntropyLoss(), x, y)
    assert [stage.name for stage in result.stages] == [str(i) for i in range(len(layers))]
    assert_close(result.ybar, z.detach().numpy(), dtype)
    assert_close(result.dybar, z.grad.numpy(), dtype)
    for stage, value, layer in zip(result.stages, inputs, theirs, strict=True):
        assert_close(stage.z, value.detach().numpy(), dtype)
        assert_close(stage.dz, value.grad.numpy(), dtype)
        parameters = list(layer.parameters())
        if parameters:
            assert_close(stage.dw, flat_gradient(layer), dtype)
        else:
            assert stage.dw.size == 0


@dtypes
def test_several_inputs_and_outputs(dtype: type) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 17, dtype=dtype)
            self.b = nn.Linear(3, 17, dtype=dtype)
            self.c = nn.Linear(20, 2, dtype=dtype)

        def forward(self, x: Any, u: Any) -> Any:
            z = gs.tanh(self.a(x) + self.b(u))
            return self.c(gs.concat([z, u])), z

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(5, 17)
            self.b = torch.nn.Linear(3, 17)
            self.c = torch.nn.Linear(20, 2)

        def forward(self, x: Any, u: Any) -> Any:
            z = torch.tanh(self.a(x) + self.b(u))
            return self.c(torch.cat([z, u], 1)), z

    torch.manual_seed(0)
    net, theirs = Own(), Theirs().double()
    net.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x, u = (rng.normal(size=(9, d)).astype(np.float32) for d in (5, 3))
    tx, tu = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, u))
    dys = [rng.normal(size=(9, d)).astype(np.float32) for d in (2, 17)]
    outputs = theirs(tx, tu)
    torch.autograd.backward(outputs, [torch.tensor(dy, dtype=torch.float64) for dy in dys])

    y, pullback = gs.vjp(net, (x, u))
    for got, called, expected in zip(y, net(x, u), outputs, strict=True):
        assert_close(got, expected.detach().numpy(), dtype)
        assert_close(called, expected.detach().numpy(), dtype)
    dxs, dw = pullback(tuple(dys))
    assert_close(dxs[0], tx.grad.numpy(), dtype)
    assert_close(dxs[1], tu.grad.numpy(), dtype)
    assert_close(dw, flat_gradient(theirs), dtype)


def other_backends() -> list[dict[str, str]]:
    """Settings that force everything built into this wheel that this machine can run."""
    config = _core.show_config()
    settings = [{"GRADSTACK_BACKEND": "reference"}]
    for isa in config.get("available", []):
        if isa not in ("reference", config["isa"]):
            settings.append({"GRADSTACK_BACKEND": "cpu", "GRADSTACK_ISA": isa})
    return settings


@pytest.mark.parametrize("setting", other_backends(), ids=lambda s: "-".join(s.values()))
def test_other_backends(setting: dict[str, str]) -> None:
    """The same oracles hold for every backend; its choice is made at import."""
    if "GRADSTACK_BACKEND" in os.environ or "GRADSTACK_ISA" in os.environ:
        pytest.skip("already running a forced backend")
    here = os.path.dirname(__file__)
    files = [os.path.join(here, f"test_{name}_oracle.py") for name in ("nets", "ops", "costs")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command,
        env={**os.environ, **setting, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
