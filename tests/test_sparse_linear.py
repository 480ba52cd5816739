"""Sparse linear blocks: everything a dense one with the same connections gives, from the edges."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

RNG = np.random.default_rng(0)


def random_edges(out: int, n: int, share: float, seed: int = 0) -> np.ndarray:
    """A random unit graph in random order, with a unit without edges on either side."""
    rng = np.random.default_rng(seed)
    mask = rng.random((out, n)) < share
    mask[0] = mask[:, -1] = False
    mask[1, 0] = True
    edges = np.argwhere(mask)
    return rng.permutation(edges)


def sparse_net(dtype: Any = np.float64, *, hidden: int = 9, seed: int = 0) -> nn.Sequential:
    gs.seed(seed)
    return nn.Sequential(
        nn.SparseLinear(7, hidden, random_edges(hidden, 7, 0.4, seed), dtype=dtype),
        nn.Tanh(),
        nn.SparseLinear(
            hidden, hidden, random_edges(hidden, hidden, 0.3, seed + 1), False, dtype=dtype
        ),
        nn.SiLU(),
        nn.SparseLinear(hidden, 3, random_edges(3, hidden, 0.6, seed + 2), dtype=dtype),
    )


def dense_twin(net: nn.Sequential) -> tuple[nn.Sequential, np.ndarray]:
    """The same net of masked dense layers, and where its parameters are those of `net`."""
    layers: list[Any] = []
    for layer in net:
        if not isinstance(layer, nn.SparseLinear):
            layers.append(layer)
            continue
        mask = np.zeros((layer.out_features, layer.in_features), bool)
        mask[tuple(layer.edges.T)] = True
        dense = nn.Linear(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            mask=mask,
            dtype=layer.weight.dtype,
        )
        dense.weight[...] = layer.dense()
        if layer.bias is not None:
            dense.bias[...] = layer.bias
        layers.append(dense)
    twin = nn.Sequential(*layers)
    place, offset = [], 0
    for layer in net:
        if isinstance(layer, nn.SparseLinear):
            out, n = layer.edges.T
            place.append(offset + out.astype(np.int64) * layer.in_features + n)
            offset += layer.in_features * layer.out_features
            if layer.bias is not None:
                place.append(offset + np.arange(layer.out_features))
                offset += layer.out_features
    index = np.concatenate(place)
    np.testing.assert_array_equal(twin.w[index], net.w)
    return twin, index


def torch_twin(net: nn.Sequential) -> tuple[Any, list[Any]]:
    """The net in PyTorch on dense matrices filled from edge weights; its forward and its leaves."""
    torch = pytest.importorskip("torch")
    leaves, layers = [], []
    for layer in net:
        if not isinstance(layer, nn.SparseLinear):
            layers.append(
                {"Tanh": torch.tanh, "SiLU": torch.nn.functional.silu}[type(layer).__name__]
            )
            continue
        weight = torch.tensor(np.array(layer.weight), requires_grad=True)
        bias = (
            None if layer.bias is None else torch.tensor(np.array(layer.bias), requires_grad=True)
        )
        leaves += [weight] if bias is None else [weight, bias]
        edges = torch.tensor(np.array(layer.edges, np.int64))
        shape = (layer.out_features, layer.in_features)

        def linear(z: Any, w: Any = weight, b: Any = bias, e: Any = edges, s: Any = shape) -> Any:
            matrix = torch.zeros(s, dtype=w.dtype).index_put((e[:, 0], e[:, 1]), w)
            return z @ matrix.T if b is None else z @ matrix.T + b

        layers.append(linear)

    def forward(x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    return forward, leaves


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
def test_values_and_gradients_are_those_of_pytorch(dtype: Any, count: int) -> None:
    torch = pytest.importorskip("torch")
    net = sparse_net(dtype)
    forward, leaves = torch_twin(net)
    X = RNG.normal(size=(count, 7)).astype(dtype)
    y = RNG.normal(size=(count, 3)).astype(dtype)
    x = torch.tensor(X, requires_grad=True)
    ybar = forward(x)
    loss = torch.nn.functional.mse_loss(ybar, torch.tensor(y))
    loss.backward()
    want = np.concatenate([leaf.grad.numpy() for leaf in leaves])
    rtol = 1e-4 if dtype == np.float32 else 1e-11
    atol = rtol * np.abs(want).max()
    np.testing.assert_allclose(net(X), ybar.detach().numpy(), rtol=rtol, atol=atol)
    value, dw = gs.value_and_grad(net, nn.MSELoss(), X, y)
    assert value == pytest.approx(loss.item(), rel=rtol)
    np.testing.assert_allclose(dw, want, rtol=rtol, atol=atol)
    out, pullback = gs.vjp(net, X)
    dx, dw = pullback(2 * (out - y) / y.size)
    np.testing.assert_allclose(dw, want, rtol=rtol, atol=atol)
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_derivative_is_that_of_the_masked_dense_net(count: int) -> None:
    net = sparse_net()
    twin, index = dense_twin(net)
    cost = nn.MSELoss()
    X, y = RNG.normal(size=(count, 7)), RNG.normal(size=(count, 3))
    v = RNG.normal(size=net.w.size)
    wide = np.zeros(twin.w.size)
    wide[index] = v
    dx = RNG.normal(size=X.shape)

    def same(got: Any, want: Any) -> None:
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)

    for got, want in zip(gs.jvp(net, X, dx, v), gs.jvp(twin, X, dx, wide), strict=True):
        same(got, want)
    same(gs.jacobian(net, X, wrt="w"), gs.jacobian(twin, X, wrt="w")[..., index])
    same(gs.jacobian(net, X, wrt="x"), gs.jacobian(twin, X, wrt="x"))
    same(gs.per_sample_grad(net, cost, X, y), gs.per_sample_grad(twin, cost, X, y)[:, index])
    same(gs.per_sample_grad_norm(net, cost, X, y), gs.per_sample_grad_norm(twin, cost, X, y))
    same(gs.clip_per_sample(net, cost, X, y, 0.3), gs.clip_per_sample(twin, cost, X, y, 0.3)[index])
    same(gs.fisher_diag(net, cost, X, y), gs.fisher_diag(twin, cost, X, y)[index])
    same(gs.fishervp(net, cost, X, y, v), gs.fishervp(twin, cost, X, y, wide)[index])
    same(gs.hvp(net, cost, X, y, v), gs.hvp(twin, cost, X, y, wide)[index])
    same(gs.ggnvp(net, cost, X, y, v), gs.ggnvp(twin, cost, X, y, wide)[index])
    same(gs.hessian(net, cost, X, y), gs.hessian(twin, cost, X, y)[np.ix_(index, index)])
    same(gs.laplacian(net, X), gs.laplacian(twin, X))
    same(gs.hessian_x(net, X), gs.hessian_x(twin, X))
    ours, theirs = (gs.derivatives(n, X, order=2) for n in (net, twin))
    for name in ("y", "jac", "diag"):
        same(getattr(ours, name), getattr(theirs, name))
    cotangents = [RNG.normal(size=getattr(ours, name).shape) for name in ("y", "jac", "diag")]
    (dx1, dw1), (dx2, dw2) = ours.pullback(*cotangents), theirs.pullback(*cotangents)
    same(dx1, dx2)
    same(dw1, dw2[index])


@pytest.mark.parametrize("single", [True, False])
def test_backprop_shows_every_stage(single: bool) -> None:
    net = sparse_net()
    twin, _ = dense_twin(net)
    X, y = RNG.normal(size=(6, 7)), RNG.normal(size=(6, 3))
    if single:
        X, y = X[0], y[0]
    ours, theirs = (gs.backprop(n, nn.MSELoss(), X, y, jacobians=True) for n in (net, twin))
    for layer, a, b in zip(net, ours.stages, theirs.stages, strict=True):
        np.testing.assert_allclose(a.dz, b.dz, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(a.jac_z, b.jac_z, rtol=1e-11, atol=1e-13)
        if isinstance(layer, nn.SparseLinear):
            out, n = layer.edges.T
            place = out.astype(np.int64) * layer.in_features + n
            if layer.bias is not None:
                place = np.append(
                    place, layer.in_features * layer.out_features + np.arange(layer.out_features)
                )
            np.testing.assert_allclose(a.dw, b.dw[place], rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(a.jac_w, b.jac_w[..., place], rtol=1e-11, atol=1e-13)
    assert gs.gradcheck(net, nn.MSELoss(), X, y)


@pytest.mark.parametrize("batch_size", [1, 32, None])
def test_training_follows_the_masked_dense_net(batch_size: int | None) -> None:
    net = sparse_net()
    twin, index = dense_twin(net)
    X, y = RNG.normal(size=(200, 7)), RNG.normal(size=(200, 3))
    for n in (net, twin):
        gs.fit(
            n,
            X,
            y,
            cost=nn.MSELoss(),
            optimizer=optim.Adam(lr=0.01, weight_decay=0.1),
            batch_size=batch_size,
            epochs=3,
            seed=1,
        )
    np.testing.assert_allclose(net.w, twin.w[index], rtol=1e-9, atol=1e-11)


def test_decay_leaves_biases_alone_when_told_so() -> None:
    """A weight vector has one axis, and is no bias."""
    X, y = np.zeros((4, 7)), np.zeros((4, 3))
    net = nn.SparseLinear(7, 3, random_edges(3, 7, 0.6), dtype=np.float64)
    before, bias = np.array(net.weight), np.array(net.bias)
    cost = nn.MSELoss(reduction="sum")
    rule = optim.SGD(lr=1.0, weight_decay=0.5, decay_bias=False)
    gs.Trainer(net, cost, rule).step(X, bias * np.ones((4, 1)))
    np.testing.assert_allclose(net.weight, 0.5 * before)
    np.testing.assert_allclose(net.bias, bias)
    assert y.shape == (4, 3)


def test_the_same_bits_for_any_number_of_threads() -> None:
    edges = random_edges(300, 300, 0.05)
    X, y = RNG.normal(size=(500, 300)).astype(np.float32), RNG.integers(0, 300, 500)
    trained = []
    for threads in (1, 2, 3):
        gs.seed(0)
        net = nn.Sequential(
            nn.SparseLinear(300, 300, edges), nn.ReLU(), nn.SparseLinear(300, 300, edges)
        )
        gs.fit(
            net,
            X,
            y,
            cost=nn.CrossEntropyLoss(),
            optimizer=optim.SGD(lr=0.1, momentum=0.9),
            batch_size=100,
            epochs=2,
            num_threads=threads,
        )
        trained.append(net.w.copy())
    np.testing.assert_array_equal(trained[0], trained[1])
    np.testing.assert_array_equal(trained[0], trained[2])


def test_shared_and_frozen_parameters() -> None:
    edges = random_edges(5, 5, 0.5)
    layer = nn.SparseLinear(5, 5, edges, dtype=np.float64)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    twin, index = dense_twin(nn.Sequential(layer))
    dense = nn.Sequential(twin[0], nn.Tanh(), twin[0])
    X, y = RNG.normal(size=(9, 5)), RNG.normal(size=(9, 5))
    for got, want in (
        (
            gs.value_and_grad(net, nn.MSELoss(), X, y)[1],
            gs.value_and_grad(dense, nn.MSELoss(), X, y)[1],
        ),
        (
            gs.per_sample_grad(net, nn.MSELoss(), X, y).T,
            gs.per_sample_grad(dense, nn.MSELoss(), X, y).T,
        ),
    ):
        np.testing.assert_allclose(got, want[index], rtol=1e-11, atol=1e-13)
    frozen = sparse_net()
    frozen[0].freeze()
    before = frozen.w.copy()
    gs.fit(
        frozen,
        RNG.normal(size=(20, 7)),
        RNG.normal(size=(20, 3)),
        cost=nn.MSELoss(),
        optimizer=optim.SGD(lr=0.1),
        epochs=1,
    )
    held = frozen[0].w.size
    np.testing.assert_array_equal(frozen.w[:held], before[:held])
    assert (frozen.w[held:] != before[held:]).any()


def test_other_optimisers() -> None:
    X, y = RNG.normal(size=(60, 7)), RNG.normal(size=(60, 3))
    for optimizer in (optim.LBFGS(), optim.LevenbergMarquardt(), optim.AdamW(lr=0.01)):
        net = sparse_net()
        history = gs.fit(
            net, X, y, cost=nn.MSELoss(), optimizer=optimizer, batch_size=None, epochs=10
        )
        assert history.loss[-1] < history.loss[0]
    with pytest.raises(ValueError, match="SparseLinear"):
        gs.fit(sparse_net(), X, y, cost=nn.MSELoss(), optimizer=optim.KFAC(), batch_size=None)


def test_save_load_copy_pickle(tmp_path: Path) -> None:
    net = sparse_net(np.float32)
    X = RNG.normal(size=(4, 7)).astype(np.float32)
    want = net(X)
    gs.save(net, tmp_path / "net.safetensors")
    loaded = gs.load(tmp_path / "net.safetensors")
    copies = [loaded, net.copy(), copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    for other in copies:
        np.testing.assert_array_equal(other(X), want)
        np.testing.assert_array_equal(other[0].edges, net[0].edges)
        assert other[2].bias is None
    state = net.state_dict()
    assert state["0.weight"].shape == (len(net[0].edges),)
    fresh = sparse_net(np.float32)
    fresh.w[:] = 0
    fresh.load_state_dict(state)
    np.testing.assert_array_equal(fresh(X), want)


class Branches(nn.Module):
    """A net that is saved as its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.SparseLinear(4, 6, [(i, i % 4) for i in range(6)])
        self.b = nn.SparseLinear(6, 2, [(0, 5), (1, 0)])

    def forward(self, x: Any) -> Any:
        h = self.a(x)
        return self.b(gs.relu(h) + h)


def test_export_to_onnx_and_graphs(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    for net, n in ((sparse_net(np.float32), 7), (Branches(), 4)):
        X = RNG.normal(size=(5, n)).astype(np.float32)
        want = net(X)
        gs.export_onnx(net, tmp_path / "net.onnx")
        session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: X})[0]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        gs.save(net, tmp_path / "net.safetensors")
        np.testing.assert_array_equal(gs.load(tmp_path / "net.safetensors")(X), want)


def test_initial_values_follow_the_fan_in() -> None:
    gs.seed(3)
    edges = [(0, j) for j in range(400)] + [(1, 3)]
    layer = nn.SparseLinear(400, 3, edges)
    assert np.abs(layer.weight[:400]).max() <= 0.05
    assert np.abs(layer.weight[:400]).max() > 0.045
    assert np.abs(layer.bias[0]) <= 0.05
    gs.seed(3)
    np.testing.assert_array_equal(nn.SparseLinear(400, 3, edges).weight, layer.weight)
    mask = RNG.random((6, 5)) < 0.5
    made = nn.SparseLinear.from_mask(mask)
    np.testing.assert_array_equal(made.edges, np.argwhere(mask))
    np.testing.assert_array_equal(made.dense() != 0, mask)
    assert "edges=" in repr(made)


def test_arguments_are_checked() -> None:
    make: Any = nn.SparseLinear
    with pytest.raises(ValueError, match=r"edges\[1\] is \(3, 0\), expected out units in 0..2"):
        make(4, 3, [(0, 0), (3, 0)])
    with pytest.raises(ValueError, match=r"edges\[0\] is \(0, -1\)"):
        make(4, 3, [(0, -1)])
    with pytest.raises(ValueError, match=r"edges\[2\] is \(1, 2\), which occurs before"):
        make(4, 3, [(1, 2), (0, 2), (1, 2)])
    with pytest.raises(ValueError, match=r"edges has shape \(2,\), expected \(E, 2\)"):
        make(4, 3, [0, 1])
    with pytest.raises(ValueError, match=r"edges has shape \(0, 2\)"):
        make(4, 3, np.zeros((0, 2), int))
    with pytest.raises(TypeError, match="edges has dtype float64, expected integers"):
        make(4, 3, [(0.0, 1.0)])
    with pytest.raises(ValueError, match="out_features"):
        make(4, 0, [(0, 0)])
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        make.from_mask([[0, 2]])
    layer = make(4, 3, [(0, 0)])
    with pytest.raises(
        ValueError, match=r"\[SparseLinear\] x has 5 features per sample, expected 4"
    ):
        layer(np.ones(5))
    with pytest.raises(ValueError, match="read-only"):
        layer.edges[0] = 1
