"""`gs.simplify`: the same function to rounding, with the blocks and units it is there to remove."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import gradstack as gs
import oracle_nets
from gradstack import nn
from random_nets import random_net

F64 = "float64"


def kinds(net: nn.Module) -> list[str]:
    return [s["kind"] for s in net.trace().stages() if s["kind"] != "input"]


def linear(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


def close(a: Any, b: Any, tol: float = 1e-12) -> bool:
    """Equal relative to the largest magnitude of an output."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
    return all(np.abs(p - q).max() <= tol * max(1.0, np.abs(p).max()) for p, q in pairs)


def samples(net: nn.Module, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((64, *s)) for s in net.trace().input_shapes)


def thin_out(net: nn.Module, seed: int) -> None:
    """Zero some rows and columns of the weights."""
    rng = np.random.default_rng(seed)
    for layer in linear(net):
        layer.weight[rng.random(layer.out_features) < 0.4] = 0
        layer.weight[:, rng.random(layer.in_features) < 0.3] = 0


# Equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_equal_on_random_recipes(seed: int) -> None:
    """Chains, residuals, diamonds, masks, shared layers, slices and heads."""
    recipe = oracle_nets.make_recipe(seed, oracle_nets.SMOOTH + oracle_nets.KINKED)
    net = oracle_nets.Net(recipe)
    net.trace((recipe.d_in,))
    if seed % 2:
        thin_out(net, seed)
    before = net.w.copy()
    made = gs.simplify(net)
    (x,) = samples(net)
    assert close(net(x), made(x))
    assert np.array_equal(net.w, before)
    assert not np.shares_memory(made.w, net.w)


@pytest.mark.parametrize("seed", range(60))
def test_equal_on_random_graphs(seed: int) -> None:
    """Several inputs and outputs, long skips, concatenations of slices, views, scaling."""
    net = random_net(seed, F64, tame=True)
    if seed % 2:
        thin_out(net, seed)
    made = gs.simplify(net)
    xs = samples(net)
    assert close(net(*xs), made(*xs))
    assert len(kinds(made)) <= len(kinds(net))
    # What was simplified cannot be simplified further.
    again = gs.simplify(made)
    assert sorted(kinds(again)) == sorted(kinds(made))
    assert again.w.size == made.w.size


def test_equal_to_torch() -> None:
    torch = pytest.importorskip("torch")
    for seed in range(10):
        recipe = oracle_nets.make_recipe(seed)
        net = oracle_nets.Net(recipe)
        net.trace((recipe.d_in,))
        made = gs.simplify(net)
        (x,) = samples(net)
        function = oracle_nets.torch_function(recipe)
        w = torch.tensor(np.asarray(net.w))
        expected = torch.stack([function(w, row) for row in torch.tensor(x)]).numpy()
        assert close(expected, made(x), 1e-11)


# Linear blocks ------------------------------------------------------------------------------------


def test_linear_blocks_in_a_row_become_one() -> None:
    net = nn.Sequential(*[nn.Linear(5, 5, bias=i != 1, dtype=F64) for i in range(4)], nn.Tanh())
    made = gs.simplify(net)
    assert kinds(made) == ["linear", "pointwise"]
    weight, bias = np.eye(5), np.zeros(5)
    for layer in linear(net):
        weight = np.asarray(layer.weight) @ weight
        bias = np.asarray(layer.weight) @ bias
        bias += 0 if layer.bias is None else np.asarray(layer.bias)
    (one,) = linear(made)
    np.testing.assert_allclose(one.weight, weight, rtol=0, atol=1e-14)
    np.testing.assert_allclose(one.bias, bias, rtol=0, atol=1e-14)


def test_a_nonlinearity_keeps_them_apart() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    made = gs.simplify(net)
    assert isinstance(made, nn.Sequential)
    assert kinds(made) == kinds(net)
    assert np.array_equal(made.w, net.w)


def test_residuals_sums_and_branches_of_linear_blocks() -> None:
    def layer() -> nn.Linear:
        return nn.Linear(6, 6, dtype=F64)

    net = nn.Sequential(
        nn.Residual(layer(), layer()),
        nn.Add(layer(), layer(), layer()),
        nn.Concat(layer(), layer()),
    )
    made = gs.simplify(net)
    assert kinds(made) == ["linear"]
    assert linear(made)[0].weight.shape == (12, 6)


def test_identities_go() -> None:
    net = nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.Linear(6, 4, dtype=F64), nn.Dropout(0.9), nn.Identity(),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2, dtype=F64),
    )  # fmt: skip
    net.trace((6,))
    net.train()  # what dropout draws is no part of the function
    made = gs.simplify(net)
    assert kinds(made) == ["linear", "pointwise", "linear"]
    x = np.random.default_rng(0).standard_normal((7, 6))
    assert np.array_equal(made(x), net.eval()(x))


def test_what_hands_an_input_through_stays() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(3, 2, dtype=F64), nn.Dropout(0.5)

        def forward(self, x: Any) -> Any:
            return self.drop(x), self.layer(x), 1.0 * x, x

    net = Pair()
    net.trace((3,))
    made = gs.simplify(net)
    x = np.random.default_rng(0).standard_normal((4, 3))
    for a, b in zip(net(x), made(x), strict=True):
        assert np.array_equal(a, b)


def test_a_bottleneck_is_kept_on_request() -> None:
    net = nn.Sequential(nn.Linear(50, 2), nn.Linear(2, 50))
    assert kinds(gs.simplify(net)) == ["linear"]
    assert kinds(gs.simplify(net, low_rank=True)) == ["linear", "linear"]


def test_shared_and_masked_layers_that_stay_are_kept_so() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, mask=np.eye(4), dtype=F64)

        def forward(self, x: Any) -> Any:
            return gs.tanh(self.layer(gs.tanh(self.layer(x))))

    net = Shared()
    net.trace((4,))
    made = gs.simplify(net)
    (layer,) = linear(made)
    assert made.w.size == net.w.size
    assert np.array_equal(layer.mask, np.eye(4))


# Units --------------------------------------------------------------------------------------------


def test_dead_units_go() -> None:
    net = nn.Sequential(
        nn.Linear(4, 9, dtype=F64), nn.Tanh(), nn.Linear(9, 8, dtype=F64), nn.ReLU(),
        nn.Linear(8, 3, dtype=F64),
    )  # fmt: skip
    net[2].weight[:, [0, 5, 7]] = 0  # nothing listens to these three
    net[4].weight[:, 2] = 0
    made = gs.simplify(net)
    assert [m.weight.shape for m in linear(made)] == [(6, 4), (7, 6), (3, 7)]


@pytest.mark.parametrize("op", [op["name"] for op in gs._core.ops() if op["module"]])
def test_constant_units_move_into_the_next_bias(op: str) -> None:
    module = next(o["module"] for o in gs._core.ops() if o["name"] == op)
    name = "GELU" if op == "gelu_tanh" else module
    h = nn.GELU("tanh") if op == "gelu_tanh" else getattr(nn, name)()
    if op == "identity":
        return
    net = nn.Sequential(
        nn.Linear(3, 5, dtype=F64), h, nn.Linear(5, 2, bias=False, dtype=F64)
    )  # fmt: skip
    net[0].weight[[1, 4]] = 0
    net[0].bias[...] = [0.1, 0.7, -0.2, 0.3, -1.3]
    made = gs.simplify(net)
    first, second = linear(made)
    assert (first.weight.shape, second.weight.shape) == ((3, 3), (2, 3))
    constants = h(np.array([0.7, -1.3]))
    np.testing.assert_allclose(second.bias, net[2].weight[:, [1, 4]] @ constants, atol=1e-14)


def test_a_net_that_ignores_its_input() -> None:
    net = nn.Sequential(nn.Linear(3, 5, dtype=F64), nn.Tanh(), nn.Linear(5, 2, dtype=F64))
    net[0].weight[...] = 0
    made = gs.simplify(net)
    x = np.random.default_rng(0).standard_normal((9, 3))
    assert close(net(x), made(x))
    assert linear(made)[0].out_features == 1  # no variable is empty


def test_units_of_concatenations_and_residuals() -> None:
    """A unit that a residual hands on is dead only when both of its sources are."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6, dtype=F64), nn.Linear(6, 6, dtype=F64)
            self.c = nn.Linear(9, 2, dtype=F64)

        def forward(self, x: Any) -> Any:
            h = gs.tanh(self.a(x))
            return self.c(gs.concat([h + gs.tanh(self.b(h)), x]))

    net = Net()
    net.trace((3,))
    net.c.weight[:, [1, 4]] = 0
    net.b.weight[:, [1, 2]] = 0
    made = gs.simplify(net)
    # Unit 1: nobody reads it. Unit 2: b does not, c does. Unit 4: c does not, b does.
    assert sorted(m.weight.shape for m in linear(made)) == [(2, 8), (5, 3), (5, 5)]


# Standardisation ----------------------------------------------------------------------------------


def test_standardisation_folds_into_the_first_layer() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(50, 90, (200, 4)) * [1, 10, 0.1, 1]
    mean, std = x.mean(axis=0), x.std(axis=0)
    net = nn.Sequential(nn.Linear(4, 6, dtype=F64), nn.Tanh(), nn.Linear(6, 1, dtype=F64))
    made = gs.simplify(net, x, standardise=(mean, std))
    assert close(net((x - mean) / std), made(x), 1e-11)
    assert kinds(made) == kinds(net)
    np.testing.assert_allclose(linear(made)[0].weight, net[0].weight / std, rtol=1e-14)


def test_standardisation_passes_views() -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (50, 3, 4))
    mean, std = images.mean(axis=0), images.std(axis=0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, dtype=F64), nn.ReLU())
    net.trace((3, 4))
    made = gs.simplify(net, images, standardise=(mean, std))
    assert kinds(made) == kinds(net)
    np.testing.assert_allclose(linear(made)[0].weight, net[1].weight / std.ravel(), rtol=1e-14)


def test_numbers_inside_forward_fold_too() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3, dtype=F64)

        def forward(self, x: Any) -> Any:
            return 2 * self.layer(((x - 127.5) / 255).view(-1)) - 1

    net = Images()
    net.trace((3, 4))
    made = gs.simplify(net)
    assert kinds(made) == ["reshape", "linear"]
    assert isinstance(made, nn.Sequential)
    np.testing.assert_allclose(linear(made)[0].weight, 2 * net.layer.weight / 255, rtol=1e-14)


def test_standardisation_that_no_layer_can_take() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, dtype=F64)

        def forward(self, x: Any, u: Any) -> Any:
            return gs.tanh(x) * u.view(-1) + self.layer(x), gs.relu(u)

    net = Two()
    net.trace((3,), (3, 1))
    rng = np.random.default_rng(0)
    x, u = rng.uniform(2, 9, (30, 3)), rng.uniform(-4, 7, (30, 3, 1))
    made = gs.simplify(net, (x, u), standardise=((5.0, 2.0), (u.mean(axis=0), u.std(axis=0))))
    expected = net((x - 5) / 2, (u - u.mean(axis=0)) / u.std(axis=0))
    assert close(expected, made(x, u))


# The proof, and the rest --------------------------------------------------------------------------


def test_it_raises_when_the_nets_differ() -> None:
    net = nn.Sequential(*[nn.Linear(30, 30, dtype=F64) for _ in range(3)])
    with pytest.raises(ValueError, match="differs from the net: output 0 by"):
        gs.simplify(net, tol=0.0)
    gs.simplify(net, np.random.default_rng(0).standard_normal((10, 30)), 1e-12)


def test_a_wrong_rule_does_not_get_through(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradstack._simplify import rules

    right = rules.element_wise

    def without_shift(node: Any) -> Any:
        ab = right(node)
        return None if ab is None else (ab[0], 0 * ab[1])

    monkeypatch.setattr(rules, "element_wise", without_shift)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            return self.layer(x * 0.5 + 3)

    net = Shifted()
    net.trace((3,))
    with pytest.raises(ValueError, match="differs"):
        gs.simplify(net)


def test_float32() -> None:
    net = nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)], nn.ReLU(), nn.Linear(64, 3))
    made = gs.simplify(net)
    assert made.w.dtype == np.float32
    x = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    assert close(net(x), made(x), 1e-5)


def test_python_blocks_and_prototypes_stay() -> None:
    net = nn.Sequential(
        nn.Linear(3, 4, dtype=F64),
        nn.Identity(),
        nn.Pointwise(np.arctan, lambda s: 1 / (1 + s * s)),
        nn.Linear(4, 4, dtype=F64),
        nn.Linear(4, 2, dtype=F64),
        nn.NearestNeighbour(2, np.eye(6)[:, :2], dtype=F64),
    )
    made = gs.simplify(net)
    assert kinds(made) == ["linear", "opaque", "linear", "nearest"]
    x = np.random.default_rng(1).standard_normal((40, 3))
    assert np.array_equal(net(x), made(x))


def test_the_result_is_a_net_like_any_other(tmp_path: pathlib.Path) -> None:
    net = random_net(11, F64, tame=True)
    made = gs.simplify(net)
    gs.save(made, tmp_path / "net.safetensors")
    xs = samples(net)
    loaded = gs.load(tmp_path / "net.safetensors")
    assert close(made(*xs), loaded(*xs), 0.0)
    gs.draw(made)


def test_bad_arguments() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="net must be"):
        gs.simplify("net")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol must be at least 0"):
        gs.simplify(net, tol=-1)
    with pytest.raises(ValueError, match="a pair"):
        gs.simplify(net, standardise=(1, 2, 3))
    with pytest.raises(ValueError, match=r"mean has shape \(2,\), expected \(3,\)"):
        gs.simplify(net, standardise=([1, 2], 1))
    with pytest.raises(ValueError, match="std must be positive"):
        gs.simplify(net, standardise=(0, [1, 0, 1]))
    with pytest.raises(ValueError, match="sample shape is not known"):
        gs.simplify(nn.Sequential(nn.ReLU()))


def test_export_to_onnx(tmp_path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    net = nn.Sequential(
        nn.Linear(6, 8), nn.Linear(8, 8), nn.Dropout(), nn.Residual(nn.Linear(8, 8)), nn.Tanh(),
        nn.Linear(8, 2),
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    gs.export_onnx(net, path, simplify=True)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes == ["Gemm", "Tanh", "Gemm"]
    x = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    (y,) = runtime.InferenceSession(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(y, net(x), atol=1e-5)
