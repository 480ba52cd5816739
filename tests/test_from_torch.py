"""gs.from_torch: the same numbers as the PyTorch module, or a refusal that names the block."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, nn

torch = pytest.importorskip("torch", reason="the oracle is not installed")
functional = torch.nn.functional
torch.set_num_threads(1)

# Pointwise modules that both libraries have.
SHARED = [
    row["module"] for row in _core.ops() if row["module"] and hasattr(torch.nn, row["module"])
]


def assert_same(theirs: Any, *shapes: tuple[int, ...], dtype: Any = torch.float32) -> nn.Module:
    """Outputs and parameters agree; returns the converted net."""
    theirs = theirs.to(dtype).eval()
    net = gs.from_torch(theirs)
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(7, *shape, generator=generator, dtype=dtype) for shape in shapes]
    with torch.no_grad():
        expected = theirs(*xs)
    got = net(*[x.numpy() for x in xs])
    single = not isinstance(expected, tuple)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, value in zip(
        [got] if single else got, [expected] if single else expected, strict=True
    ):
        assert ours.dtype == value.numpy().dtype
        assert ours.shape == value.shape
        np.testing.assert_allclose(ours, value.numpy(), rtol=rtol, atol=rtol)
    state = theirs.state_dict()
    assert list(net.state_dict()) == list(state)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, state[name].numpy())
    # Names and shapes are PyTorch's, so its state loads.
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_sequential(dtype: Any) -> None:
    theirs = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(12, 9),
        torch.nn.ReLU(inplace=True),
        torch.nn.Dropout(0.3),
        torch.nn.Sequential(torch.nn.Linear(9, 9, bias=False), torch.nn.Tanh()),
        torch.nn.Identity(),
        torch.nn.Linear(9, 4),
        torch.nn.LogSoftmax(dim=1),
    )
    net = assert_same(theirs, (3, 4), dtype=dtype)
    assert type(net) is nn.Sequential
    assert type(net[4]) is nn.Sequential
    assert net[3].p == 0.3


@pytest.mark.parametrize("name", SHARED)
def test_every_pointwise_module(name: str) -> None:
    row = next(row for row in _core.ops() if row["module"] == name)
    arguments = {key: value + 0.25 for key, value in row["params"]}
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 50), getattr(torch.nn, name)(**arguments))
    assert_same(theirs, (3,), dtype=torch.float64)


def test_most_of_the_table_is_in_pytorch() -> None:
    mine = {row["module"] for row in _core.ops() if row["module"]}
    assert mine - set(SHARED) == {"Sine"}


def test_gelu_approximation() -> None:
    for approximate in ("none", "tanh"):
        theirs = torch.nn.Sequential(torch.nn.Linear(3, 50), torch.nn.GELU(approximate))
        assert_same(theirs, (3,), dtype=torch.float64)


def test_one_layer() -> None:
    net = assert_same(torch.nn.Linear(3, 2), (3,))
    assert type(net) is nn.Linear


class Forward(torch.nn.Module):
    """Everything a forward may do, in PyTorch's spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.late = torch.nn.Linear(14, 3)
        self.first = torch.nn.Linear(6, 8)
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU())
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, x: Any, u: Any) -> Any:
        x = x.view(x.size(0), -1)
        z = functional.relu(self.first(x))
        z = z + self.body(z)
        z = self.drop(functional.dropout(z, 0.5, training=self.training))
        z = torch.cat([z, -u, (2 - z[:, 1:3]) / 4], dim=-1)
        z = functional.leaky_relu(z, 0.2) * torch.sigmoid(z) - z.tanh() / 2.0 + 1
        y = self.late(z.reshape(-1, 14))
        p = functional.softmax(y, dim=1)
        q = torch.flatten(functional.hardtanh(y, min_val=-0.3, max_val=0.4), 1)
        return p, torch.add(q, 1.0) / (3.0 + torch.mul(y, y)), y.log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_forward(dtype: Any) -> None:
    torch.manual_seed(0)
    theirs = Forward()
    net = assert_same(theirs, (2, 3), (4,), dtype=dtype)
    assert [name for name, _ in net.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [stage["kind"] for stage in net.trace().stages()].count("dropout") == 2
    assert [stage["name"] for stage in net.trace().stages()][:2] == ["x", "u"]


def test_gradients_agree() -> None:
    torch.manual_seed(0)
    theirs = Forward().double().eval()
    net = gs.from_torch(theirs)
    x, u = torch.randn(5, 2, 3).double(), torch.randn(5, 4).double()
    dys = [torch.randn(5, 3).double() for _ in range(3)]
    torch.autograd.backward(theirs(x, u), dys)
    _, pullback = gs.vjp(net, (x.numpy(), u.numpy()))
    _, dw = pullback(tuple(dy.numpy() for dy in dys))
    expected = np.concatenate([p.grad.numpy().ravel() for p in theirs.parameters()])
    np.testing.assert_allclose(dw, expected, rtol=1e-10, atol=1e-12)


FUNCTIONS = [
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign logsigmoid tanhshrink",
    "hardtanh hardsigmoid hardswish sigmoid tanh",
]


@pytest.mark.parametrize("name", " ".join(FUNCTIONS).split())
def test_every_function(name: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = torch.nn.Linear(3, 50)

        def forward(self, x: Any) -> Any:
            return getattr(functional, name)(self.m(x))

    assert_same(Net(), (3,), dtype=torch.float64)


def test_layers_in_lists_and_used_twice() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
            self.act = torch.nn.Tanh()

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = x + self.act(layer(x))
            return self.layers[0](x)

    net = assert_same(Net(), (4,))
    assert net.w.size == 60


def test_tied_weights_stay_tied() -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    theirs[2].weight = theirs[0].weight
    net = assert_same(theirs, (4,))
    assert net.w.size == 24
    layer = torch.nn.Linear(4, 4)
    net = assert_same(torch.nn.Sequential(layer, torch.nn.ReLU(), layer), (4,))
    assert net[0] is net[2]


def test_frozen_parameters() -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    theirs[0].requires_grad_(False)
    net = gs.from_torch(theirs)
    assert [p.requires_grad for _, p in net.named_parameters()] == [False, False, True, True]


@pytest.mark.parametrize("squeeze", [lambda y: y.squeeze(-1), lambda y: y.view(-1)])
def test_one_output_without_its_axis(squeeze: Any) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = torch.nn.Linear(4, 1)

        def forward(self, x: Any) -> Any:
            return squeeze(self.m(x))

    assert_same(Net(), (4,))


def test_a_reshape_that_would_mix_samples_is_refused_in_the_call() -> None:
    net = gs.from_torch(Custom(lambda s, x: x.view(-1)))
    with pytest.raises(ValueError, match="cannot view a sample of shape"):
        net(np.ones((5, 4)))


def test_constants_do_not_stay_on_the_module() -> None:
    theirs = Custom(lambda s, x: x * torch.ones(4))
    before = set(vars(theirs))
    with pytest.raises(ValueError, match="_tensor_constant0"):
        gs.from_torch(theirs)
    assert set(vars(theirs)) == before


def test_the_source_is_left_alone() -> None:
    theirs = Forward().train()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    net = gs.from_torch(theirs)
    net.w[...] = 0
    assert all(part.training for part in theirs.modules())
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, before[name])


# Refusals -----------------------------------------------------------------------------------------


class Custom(torch.nn.Module):
    """A forward given as a function of (self, x)."""

    def __init__(self, body: Any, **modules: Any) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.body = body

    def forward(self, x: Any) -> Any:
        return self.body(self, x)


class Doubled(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def linear() -> Any:
    return torch.nn.Linear(4, 4)


def hooked() -> Any:
    layer = linear()
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return torch.nn.Sequential(layer)


REFUSED: dict[str, tuple[Any, str]] = {
    "conv": (lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)), r"block '0' \(Conv2d\)"),
    "batch norm": (
        lambda: torch.nn.Sequential(linear(), torch.nn.BatchNorm1d(4)),
        r"block '1' \(BatchNorm1d\)",
    ),
    "nested": (
        lambda: torch.nn.Sequential(torch.nn.Sequential(torch.nn.LSTM(4, 4))),
        r"block '0.0' \(LSTM\)",
    ),
    "prelu": (lambda: Custom(lambda s, x: s.p(s.m(x)), m=linear(), p=torch.nn.PReLU()), r"'p'"),
    "softmax over samples": (lambda: torch.nn.Sequential(torch.nn.Softmax(dim=0)), "dim=1 or -1"),
    "flatten": (lambda: torch.nn.Sequential(torch.nn.Flatten(0)), r"Flatten\(1, -1\)"),
    "subclass of Linear": (lambda: torch.nn.Sequential(Doubled(4, 4)), "outside of a layer"),
    "weight norm": (
        lambda: torch.nn.Sequential(torch.nn.utils.parametrizations.weight_norm(linear())),
        "ParametrizedLinear|outside of a layer",
    ),
    "hook": (hooked, "block '0' .*hooks"),
    "control flow": (lambda: Custom(lambda s, x: x if x.sum() > 0 else -x), "cannot trace"),
    "function": (lambda: Custom(lambda s, x: torch.cumsum(s.m(x), 1), m=linear()), "cumsum"),
    "method": (lambda: Custom(lambda s, x: s.m(x).abs(), m=linear()), r"\.abs\(\)"),
    "mean over samples": (lambda: Custom(lambda s, x: x - x.mean(0)), r"\.mean\(\)"),
    "concat over samples": (lambda: Custom(lambda s, x: torch.cat([x, x])), "dim=0"),
    "batch in reshape": (lambda: Custom(lambda s, x: x.view(2, -1)), "keep the batch"),
    "squeeze": (lambda: Custom(lambda s, x: x.squeeze()), "squeezes dim=None"),
    "batch slice": (lambda: Custom(lambda s, x: x[1:]), "expected features"),
    "step": (lambda: Custom(lambda s, x: x[:, ::2]), "expected features"),
    "number of features": (lambda: Custom(lambda s, x: x * x.shape[1]), "number of features"),
    "parameter": (
        lambda: Custom(lambda s, x: x * s.p, p=torch.nn.Parameter(torch.ones(4))),
        "'p' outside of a layer",
    ),
    "buffer": (
        lambda: Custom(lambda s, x: x * torch.ones(4)),
        "'_tensor_constant0' outside of a layer",
    ),
    "unused layer": (
        lambda: Custom(lambda s, x: s.m(x), m=linear(), other=linear()),
        "block 'other'",
    ),
    "training": (
        lambda: Custom(lambda s, x: s.m(x) * 2 if s.training else s.m(x), m=linear()),
        "train.. and eval",
    ),
    "dropout always on": (
        lambda: Custom(lambda s, x: functional.dropout(s.m(x), 0.5), m=linear()),
        "drops in eval",
    ),
    "not a tensor": (lambda: Custom(lambda s, x: {"y": x}), "expected tensors"),
    "dtypes": (
        lambda: torch.nn.Sequential(linear(), torch.nn.Linear(4, 4).double()),
        "several dtypes",
    ),
    "half": (lambda: torch.nn.Sequential(linear()).half(), "'0.weight' has dtype torch.float16"),
    "softmax dtype": (
        lambda: Custom(lambda s, x: functional.softmax(x, 1, dtype=torch.float64)),
        "not understood|dtype",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        gs.from_torch(make())


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        gs.from_torch(nn.Linear(2, 2))  # type: ignore[arg-type]
