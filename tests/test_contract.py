"""Modules, tracing and state: what DESIGN promises of nets."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim, relu

RNG = np.random.default_rng(1)


class mynet(nn.Module):  # noqa: N801  the lecture's listing, unchanged
    def __init__(self, d0, d1, d2, d3):  # type: ignore[no-untyped-def]
        super().__init__()
        self.m0 = nn.Linear(d0, d1)
        self.m1 = nn.Linear(d1, d2)
        self.m2 = nn.Linear(d2, d3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        z0 = x.view(-1)  # flatten input tensor
        s1 = self.m0(z0)
        z1 = relu(s1)
        s2 = self.m1(z1)
        z2 = relu(s2)
        s3 = self.m2(z2)
        return s3


def test_the_lectures_listing() -> None:
    net = mynet(64, 60, 40, 10)
    image = RNG.standard_normal((8, 8)).astype(np.float32)
    one = net(image)
    assert one.shape == (10,)
    assert one.dtype == np.float32
    batch = net(np.stack([image, image]))
    assert batch.shape == (2, 10)
    np.testing.assert_allclose(batch[1], one, rtol=1e-5)
    assert list(net.state_dict()) == [f"m{i}.{p}" for i in range(3) for p in ("weight", "bias")]
    w = {k: np.asarray(v, np.float64) for k, v in net.state_dict().items()}
    z = image.ravel().astype(np.float64)
    for i in range(3):
        z = w[f"m{i}.weight"] @ z + w[f"m{i}.bias"]
        z = np.maximum(z, 0) if i < 2 else z
    np.testing.assert_allclose(one, z, rtol=1e-5, atol=1e-6)


def test_all_parameters_are_views_of_one_vector() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2, bias=False)))
    assert net.w.shape == (3 * 4 + 4 + 8,)
    at = 0
    for _, p in net.named_parameters():
        values = np.asarray(p)
        assert np.shares_memory(values, net.w)
        np.testing.assert_array_equal(values.ravel(), net.w[at : at + values.size])
        at += values.size
    assert np.shares_memory(net[2].w, net.w)
    net.w[:] = 0
    assert not net(np.ones(3)).any()
    net[2].w[:] = 1
    assert net.w[-8:].tolist() == [1] * 8


def test_a_layer_used_twice_appears_once_and_its_gradients_add() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, dtype=np.float64)

        def forward(self, x: Any) -> Any:
            return self.a(gs.tanh(self.a(x)))

    net = Twice()
    assert net.w.size == 20
    x, y = RNG.standard_normal((5, 4)), RNG.standard_normal((5, 4))
    _, dw = gs.value_and_grad(net, nn.MSELoss(), x, y)
    for i in range(20):
        values = []
        for step in (1e-6, -1e-6):
            w = net.w.copy()
            w[i] += step
            values.append(nn.MSELoss()(gs.apply(net, w, x), y))
        assert dw[i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_copy_and_pickle() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    x = RNG.standard_normal((7, 3))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_array_equal(other(x), net(x))
        other.w[:] += 1
        assert not np.array_equal(other(x), net(x))


def test_state_dict_of_torch_and_failures_that_change_nothing() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    theirs = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    assert list(net.state_dict()) == list(theirs.state_dict())
    net.load_state_dict(theirs.state_dict())
    x = RNG.standard_normal((6, 5)).astype(np.float32)
    np.testing.assert_allclose(
        net(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    before = net.w.copy()
    good = {k: np.asarray(v) + 1 for k, v in net.state_dict().items()}
    for key, bad in (
        ("2.bias", {k: v for k, v in good.items() if k != "2.bias"}),
        ("extra", good | {"extra": np.zeros(3)}),
        ("2.weight", good | {"2.weight": np.zeros((3, 5))}),
    ):
        with pytest.raises((ValueError, KeyError), match=key):
            net.load_state_dict(bad)
        np.testing.assert_array_equal(net.w, before)


def test_default_initialisation_is_torchs_distribution() -> None:
    gs.seed(0)
    layer = nn.Linear(50, 4000)
    for values in (np.asarray(layer.weight), np.asarray(layer.bias)):
        bound = 1 / np.sqrt(50)
        assert abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    gs.seed(0)
    np.testing.assert_array_equal(nn.Linear(50, 4000).w, layer.w)


@pytest.mark.parametrize(
    ("build", "x", "error", "match"),
    [
        (lambda: nn.Linear(64, 2), np.zeros((3, 63)), ValueError, r"\[Linear\].*63.*64"),
        (lambda: nn.Linear(2, 2), np.zeros((3, 4, 2)), ValueError, "axes|shape"),
        (lambda: nn.Linear(2, 2), np.zeros(2, complex), TypeError, "complex"),
        (lambda: nn.Linear(2, 2), np.array(["a", "b"]), TypeError, "str|dtype|<U"),
        (lambda: nn.Linear(2, 2), np.array([1e300, 0]), ValueError, "float32"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=np.float64)),
            np.zeros(2),
            (ValueError, TypeError),
            "float64|dtype",
        ),
    ],
    ids=["features", "axes", "complex", "strings", "overflow", "dtypes"],
)
def test_bad_input_is_named(build: Any, x: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        build()(x)


def test_control_flow_on_data_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            y = self.a(x)
            return y if y[0:1] > 0 else -y

    with pytest.raises(TypeError, match="control flow"):
        Branches()(np.zeros(2))


def test_operators_several_inputs_and_outputs() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 3, dtype=np.float64)

        def forward(self, x: Any, u: Any) -> Any:
            h = self.a(gs.concat([x, u]))
            return (2 * h - 1) / (h * h + 1), -h[0:2] + u

    net = Critic()
    x, u = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 2))
    q, v = net(x, u)
    h = np.concatenate([x, u], 1) @ np.asarray(net.a.weight).T + np.asarray(net.a.bias)
    np.testing.assert_allclose(q, (2 * h - 1) / (h * h + 1), rtol=1e-12)
    np.testing.assert_allclose(v, u - h[:, :2], rtol=1e-12)
    (y1, y2), pullback = gs.vjp(net, (x, u))
    (dx, du), dw = pullback((np.ones_like(y1), np.ones_like(y2)))
    assert (dx.shape, du.shape, dw.shape) == ((4, 3), (4, 2), (18,))


def test_python_blocks_and_costs_join_in() -> None:
    class Cube(nn.Module):
        def forward(self, x: Any) -> Any:
            return x**3

        def vjp(self, x: Any, dy: Any) -> Any:
            return 3 * x**2 * dy

    class Quartic(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return ((ybar - y) ** 4).sum(1)

        def gradient(self, ybar: Any, y: Any) -> Any:
            return 4 * (ybar - y) ** 3

    gs.seed(2)
    net = nn.Sequential(
        nn.Linear(3, 4, dtype=np.float64),
        Cube(),
        nn.Pointwise(np.sin, np.cos),
        nn.Linear(4, 2, dtype=np.float64),
    )
    x, y = RNG.standard_normal((9, 3)), RNG.standard_normal((9, 2))
    loss, dw = gs.value_and_grad(net, Quartic(), x, y)
    w = net.w.copy()
    for i in (0, 5, 13, 20):
        ends = []
        for step in (1e-6, -1e-6):
            moved = w.copy()
            moved[i] += step
            ends.append(float((((gs.apply(net, moved, x) - y) ** 4).sum(1)).mean()))
        assert dw[i] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)
    history = gs.fit(net, x, y, cost=Quartic(), optimizer=optim.Adam(lr=1e-2), epochs=30)
    assert history.loss[-1] < loss


def test_targets_never_broadcast() -> None:
    cost = nn.MSELoss()
    ybar, y = RNG.standard_normal((5, 1)), RNG.standard_normal(5)
    assert cost(ybar, y) == pytest.approx(((ybar[:, 0] - y) ** 2).mean())
    with pytest.raises(ValueError, match=r"y|ybar"):
        cost(RNG.standard_normal((5, 2)), y)
    with pytest.raises(ValueError, match=r"label|class"):
        nn.CrossEntropyLoss()(RNG.standard_normal((5, 3)), np.array([0, 1, 2, 3, 0]))


def test_backprop_stages_multiply_to_the_gradient() -> None:
    gs.seed(5)
    net = nn.Sequential(
        nn.Linear(4, 5, dtype=np.float64), nn.Tanh(), nn.Linear(5, 3, dtype=np.float64)
    )
    x, y = RNG.standard_normal(4), RNG.standard_normal(3)
    trace = gs.backprop(net, nn.SquaredError(), x, y, jacobians=True)
    assert [s.name for s in trace.stages] == ["0", "1", "2"]
    row = 2 * (trace.ybar - y)
    np.testing.assert_allclose(trace.dybar, row, rtol=1e-12)
    for stage in reversed(trace.stages):
        if stage.w.size:
            np.testing.assert_allclose(stage.dw, row @ stage.jacobian_w(), rtol=1e-10, atol=1e-12)
        row = row @ stage.jacobian_z()
        np.testing.assert_allclose(stage.dz, row, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        np.concatenate([s.dw for s in trace.stages]),
        gs.value_and_grad(net, nn.SquaredError(), x, y)[1],
        rtol=1e-12,
    )


def test_prototypes_may_be_given() -> None:
    values = RNG.standard_normal((5, 3))
    for given in (values, values.tolist()):
        net = nn.NearestNeighbour(3, given, dtype=np.float64)
        np.testing.assert_array_equal(net.weight, values)
        x = RNG.standard_normal((50, 3))
        distances = ((x[:, None] - values) ** 2).sum(-1)
        np.testing.assert_array_equal(net(x), distances.argmin(1))
    assert nn.NearestNeighbour(3, np.int64(4)).prototypes == 4
    for bad in (values[:, :2], values[:0], values[0]):
        with pytest.raises(ValueError, match="prototypes have shape"):
            nn.NearestNeighbour(3, bad)


def test_help_shows_the_arguments_of_a_module() -> None:
    class Net(nn.Linear):
        pass

    for cls in (nn.Linear, Net):
        parameters = inspect.signature(cls).parameters
        assert list(parameters)[:4] == ["in_features", "out_features", "bias", "mask"]
        assert parameters["bias"].default is True
    assert list(inspect.signature(nn.GELU).parameters) == ["approximate", "inplace"]
    assert list(inspect.signature(mynet).parameters) == ["d0", "d1", "d2", "d3"]
    assert sum(p.numel() for p in nn.Linear(3, 2).parameters()) == 8


@pytest.mark.parametrize(
    "share", [lambda n: nn.Sequential(n[0], nn.Linear(4, 2)), lambda n: n[::2]]
)
def test_a_write_to_a_vector_that_was_left_raises(share: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    held, middle = net.w, net[1]
    other = share(net)
    with pytest.raises(ValueError, match="read-only"):
        held[:] = 0  # other has some of the parameters, and would not see it
    middle.w[:] = 2
    other.w[:] = 1
    np.testing.assert_array_equal(net[0].w, 1)
    np.testing.assert_array_equal(net.w[16:36], 2)
    held[:] = 3  # net has them all again
    np.testing.assert_array_equal(net.w, 3)
    np.testing.assert_array_equal(other.w[:16], 3)
    with pytest.raises(ValueError, match="read-only"):
        held[:] = 0
    np.testing.assert_array_equal(middle.w, 3)


def test_a_layers_own_vector_is_writable_after_it_came_back() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    held = net[0].w
    other = nn.Sequential(net[0], nn.Linear(4, 2))
    with pytest.raises(ValueError, match="read-only"):
        held[:] = 0
    net.w[:] = 2
    assert net[0].w is held
    held[:] = 3
    np.testing.assert_array_equal(other.w[:16], 3)


def test_a_state_made_of_the_nets_own_arrays() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = net.state_dict()
    own = dict(net.named_parameters())
    net.load_state_dict({name: own[f"{1 - int(name[0])}{name[1:]}"] for name in own})
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[f"{1 - int(name[0])}{name[1:]}"])
