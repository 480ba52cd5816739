"""gs.save and gs.load: nets come back whole, files of others load strictly, damage is an error."""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, _safetensors, nn

POINTWISE = [row["module"] for row in _core.ops() if row["module"]]


class Branching(nn.Module):
    """Everything a graph can hold, with parameters in an order that is not that of their use."""

    def __init__(self, dtype: Any = np.float32) -> None:
        super().__init__()
        self.late = nn.Linear(12, 3, dtype=dtype)
        self.body = nn.Sequential(
            OrderedDict(first=nn.Linear(5, 8, dtype=dtype), act=nn.ELU(alpha=0.5))
        )
        self.gate = nn.Linear(5, 8, mask=np.tri(8, 5), dtype=dtype)
        self.same = nn.Linear(8, 8, dtype=dtype)
        self.drop = nn.Dropout(0.25)
        self.unused = nn.Linear(2, 2, dtype=dtype)

    def forward(self, x: Any, u: Any) -> Any:
        z = self.drop(self.body(x)) * gs.sigmoid(self.gate(x.view(-1)))
        z = self.same(self.same(z)) - z / 2.0 + 1.0
        z = gs.concat([gs.leaky_relu(z, 0.1), u])
        pair = gs.softmax(z[2:6]) + 1.0 / (gs.softplus(z[0:4], beta=2.0) + 0.5)
        return self.late(z), -pair.view(2, 2)


def sequential() -> Any:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def shared() -> Any:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


def tied() -> Any:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False))
    net[2].weight = net[0].weight
    return net


def nested() -> Any:
    residual = nn.Residual(nn.Linear(7, 7), nn.GELU(approximate="tanh"))
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Flatten(), nn.Linear(12, 7)),
            wide=nn.Concat(residual, nn.Add(nn.Linear(7, 4), nn.Linear(7, 4))),
            head=nn.Sequential(nn.Linear(11, 3, bias=False), nn.LogSoftmax()),
        )
    )


def masked() -> Any:
    mask = np.random.default_rng(0).random((9, 5)) < 0.5
    return nn.Sequential(nn.Linear(5, 9, mask=mask), nn.Hardtanh(-0.5, 2.0), nn.Linear(9, 2))


SEQUENTIALS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "plain": (sequential, (5,)),
    "shared layer": (shared, (6,)),
    "tied weights": (tied, (6,)),
    "nested": (nested, (3, 4)),
    "mask": (masked, (5,)),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax()), (4,)),
    "nearest": (lambda: nn.Sequential(nn.Tanh(), nn.NearestNeighbour(4, 6)), (4,)),
    "float64": (lambda: nn.Sequential(nn.Linear(4, 3, dtype=np.float64), nn.Mish()), (4,)),
    "no parameters": (lambda: nn.Sequential(nn.ReLU(), nn.Sine()), (4,)),
}


@pytest.mark.parametrize("name", SEQUENTIALS)
def test_sequential_comes_back(name: str, tmp_path: Path) -> None:
    make, shape = SEQUENTIALS[name]
    net = make()
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype(net.w.dtype)
    gs.save(net, tmp_path / "a.safetensors")
    back = gs.load(tmp_path / "a.safetensors")
    assert type(back) is nn.Sequential
    assert repr(back) == repr(net)
    assert type(back[0]) is type(net[0])
    assert back.w.dtype == net.w.dtype
    assert back.w.tobytes() == net.w.tobytes()
    assert list(back.state_dict()) == list(net.state_dict())
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in net.named_parameters()]
    np.testing.assert_array_equal(back(x), net(x))
    assert not np.shares_memory(back.w, net.w)


@pytest.mark.parametrize("name", POINTWISE)
def test_every_activation_comes_back(name: str, tmp_path: Path) -> None:
    # Parameters away from their defaults, so that a lost one shows.
    row = next(row for row in _core.ops() if row["module"] == name)
    arguments = {key: value + 0.25 for key, value in row["params"]}
    net = nn.Sequential(nn.Linear(3, 4), getattr(nn, name)(**arguments))
    gs.save(net, tmp_path / "a")
    back = gs.load(tmp_path / "a")
    assert repr(back) == repr(net)
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32) * 5
    np.testing.assert_array_equal(back(x), net(x))


def test_every_module_of_the_library_can_be_written_down() -> None:
    from gradstack._architecture import _CONTAINERS, _LEAVES

    classes = {name: getattr(nn, name) for name in nn.__all__}
    modules = {n for n, c in classes.items() if isinstance(c, type) and issubclass(c, nn.Module)}
    # A base class, a list without a forward, and Python functions.
    assert modules - set(_LEAVES) - set(_CONTAINERS) == {"Module", "ModuleList", "Pointwise"}


def test_sharing_survives(tmp_path: Path) -> None:
    gs.save(shared(), tmp_path / "a")
    back = gs.load(tmp_path / "a")
    assert back[0] is back[2]
    assert back.w.size == 42
    gs.save(tied(), tmp_path / "b")
    back = gs.load(tmp_path / "b")
    back[0].weight[0, 0] = 7
    assert back[2].weight[0, 0] == 7
    assert back.w.size == 42


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_net_comes_back_as_its_graph(dtype: type, tmp_path: Path) -> None:
    net = Branching(dtype)
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(7, 5)).astype(dtype), rng.normal(size=(7, 4)).astype(dtype)
    expected = net(x, u)
    gs.save(net, tmp_path / "a")
    back = gs.load(tmp_path / "a")
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert back.w.tobytes() == net.w.tobytes()
    for got, value in zip(back(x, u), expected, strict=True):
        np.testing.assert_array_equal(got, value)
    for got, value in zip(back(x[0], u[0]), expected, strict=True):
        np.testing.assert_allclose(got, value[0], rtol=1e-5)
    np.testing.assert_array_equal(back.gate.mask, net.gate.mask)
    assert isinstance(back.body.act, nn.ELU)
    assert back.drop.p == 0.25
    names = [(s["name"], s["kind"]) for s in net.trace().stages()]
    assert [(s["name"], s["kind"]) for s in back.trace().stages()] == names


def test_a_loaded_graph_trains_copies_and_saves_again(tmp_path: Path) -> None:
    import copy
    import pickle

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m0, self.m1 = nn.Linear(6, 9), nn.Linear(9, 2)

        def forward(self, x: Any) -> Any:
            return self.m1(gs.relu(self.m0(x.view(-1))))

    net = Net()
    net.trace((2, 3))
    gs.save(net, tmp_path / "a")
    back = gs.load(tmp_path / "a")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2, 3)), rng.integers(0, 2, 50)
    for each in (net, back):
        optimizer = gs.optim.Adam(lr=0.01)
        gs.fit(each, x, y, cost=nn.CrossEntropyLoss(), optimizer=optimizer, epochs=3)
    assert back.w.tobytes() == net.w.tobytes()
    for twin in (copy.deepcopy(back), pickle.loads(pickle.dumps(back))):
        np.testing.assert_array_equal(twin(x), net(x))
    gs.save(back, tmp_path / "b")
    np.testing.assert_array_equal(gs.load(tmp_path / "b")(x), net(x))


def test_frozen_parameters_stay_frozen(tmp_path: Path) -> None:
    net = sequential()
    net[0].freeze()
    gs.save(net, tmp_path / "a")
    back = gs.load(tmp_path / "a")
    frozen = {name for name, p in back.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "0.bias"}


def test_metadata(tmp_path: Path) -> None:
    gs.save(sequential(), tmp_path / "a", metadata={"note": "trained on Tuesday", "k": ""})
    assert gs.io.read_metadata(tmp_path / "a") == {"note": "trained on Tuesday", "k": ""}
    with pytest.raises(ValueError, match="'gradstack' is taken"):
        gs.save(sequential(), tmp_path / "a", metadata={"gradstack": "x"})
    with pytest.raises(TypeError, match="expected str, got int"):
        gs.save(sequential(), tmp_path / "a", metadata={"n": 1})  # type: ignore[dict-item]


def test_an_untraced_subclass_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample shape is not known"):
        gs.save(Branching(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_python_blocks_are_saved_without_architecture(tmp_path: Path) -> None:
    def build() -> Any:
        return nn.Sequential(nn.Linear(3, 4), nn.Pointwise(np.cos, lambda s: -np.sin(s)))

    net = build()
    gs.save(net, tmp_path / "a")
    with pytest.raises(ValueError, match=r"block '1' is written in Python.*net=net"):
        gs.load(tmp_path / "a")
    back = gs.load(tmp_path / "a", net=build())
    np.testing.assert_array_equal(back(np.ones(3)), net(np.ones(3)))


# Files of others ----------------------------------------------------------------------------------


def test_loading_into_a_net_from_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    pytest.importorskip("safetensors", reason="the oracle is not installed")
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
    save_file(theirs.state_dict(), tmp_path / "theirs")
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    assert gs.load(tmp_path / "theirs", net=net) is net
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(net(x), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    with pytest.raises(ValueError, match=r"no architecture.*net=net"):
        gs.load(tmp_path / "theirs")
    # And back: PyTorch reads what gradstack writes.
    net.w *= 2
    gs.save(net, tmp_path / "ours")
    theirs.load_state_dict(load_file(tmp_path / "ours"))
    np.testing.assert_allclose(net(x), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("3.bias"), "missing key '3.bias'"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), "unexpected key 'extra'"),
        (lambda t: t.update({"0.weight": np.zeros((5, 8), np.float32)}), "'0.weight' has shape"),
        (lambda t: t.update({"0.weight": np.full((8, 5), 1e300)}), "too large for float32"),
    ],
)
def test_strict(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    tensors = sequential().state_dict()
    change(tensors)
    _safetensors.write(tmp_path / "a", tensors)
    net = sequential()
    before = net.w.copy()
    with pytest.raises(ValueError, match=message):
        gs.load(tmp_path / "a", net=net)
    np.testing.assert_array_equal(net.w, before)


def test_other_dtypes_are_cast(tmp_path: Path) -> None:
    state = {name: array.astype(np.float64) for name, array in sequential().state_dict().items()}
    _safetensors.write(tmp_path / "a", state)
    net = gs.load(tmp_path / "a", net=sequential())
    assert net.w.dtype == np.float32
    np.testing.assert_array_equal(net.state_dict()["0.weight"], state["0.weight"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gs.load(tmp_path / "none")


# Damage -------------------------------------------------------------------------------------------


def rewrite(path: Path, edit: Callable[[Any], None]) -> None:
    tensors, metadata = _safetensors.read(path)
    config = json.loads(metadata["gradstack"])
    edit(config)
    _safetensors.write(path, tensors, {"gradstack": json.dumps(config)})


DAMAGE: dict[str, Callable[[Any], None]] = {
    "format": lambda c: c.update(format=99),
    "no format": lambda c: c.pop("format"),
    "dtype": lambda c: c.update(dtype="complex64"),
    "class": lambda c: c["tree"]["children"][1][1].update({"class": "os.system"}),
    "no class": lambda c: c["tree"]["children"][1][1].pop("class"),
    "larger": lambda c: c["tree"]["children"][0][1].update(out_features=10**9),
    "float size": lambda c: c["tree"]["children"][0][1].update(out_features=8.0),
    "text size": lambda c: c["tree"]["children"][0][1].update(out_features="8"),
    "tree": lambda c: c.update(tree=[1, 2]),
    "children": lambda c: c["tree"].update(children=3),
    "loop": lambda c: c["tree"]["children"][0].__setitem__(1, {"same_as": ""}),
    "frozen": lambda c: c.update(frozen=["nobody"]),
    "tied": lambda c: c.update(tied=[["0.weight", "nobody"]]),
    "shape": lambda c: c.update(sample_shapes=[[7]]),
    "shapes": lambda c: c.update(sample_shapes="x"),
    "nothing": lambda c: c.clear(),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_architecture(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    net = sequential()
    net(np.zeros(5))
    gs.save(net, path)
    rewrite(path, DAMAGE[case])
    with pytest.raises(ValueError, match="a'"):
        gs.load(path)


GRAPH_DAMAGE: dict[str, Callable[[Any], None]] = {
    "kind": lambda g: g["steps"][0].update(kind="eval"),
    "no input": lambda g: g["steps"][0].update(inputs=[]),
    "one of two inputs": lambda g: next(s for s in g["steps"] if s["kind"] == "mul")[
        "inputs"
    ].pop(),
    "dangling": lambda g: g["steps"][2].update(inputs=["nobody"]),
    "path": lambda g: g["steps"][0].update(kind="module", path="nobody"),
    "op": lambda g: next(s for s in g["steps"] if s["kind"] == "pointwise").update(op="exec"),
    "params": lambda g: next(s for s in g["steps"] if s["kind"] == "pointwise").update(params="x"),
    "output": lambda g: g.update(outputs=["nobody"]),
    "missing": lambda g: g.pop("steps"),
    "modules": lambda g: g["modules"].pop(),
}


@pytest.mark.parametrize("case", GRAPH_DAMAGE)
def test_damaged_graph(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    net = Branching()
    net.trace(5, 4)
    gs.save(net, path)
    rewrite(path, lambda config: GRAPH_DAMAGE[case](config["graph"]))
    with pytest.raises(ValueError, match="a'"):
        gs.load(path)


def test_architecture_that_is_no_json(tmp_path: Path) -> None:
    for text in ("", "{", "[1]", '"x"', "null", "[" * 100_000):
        _safetensors.write(tmp_path / "a", {}, {"gradstack": text})
        with pytest.raises(ValueError, match="damaged architecture"):
            gs.load(tmp_path / "a")


def test_mutated_architectures_never_crash(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    path = tmp_path / "a"
    net = nested()
    net(np.zeros((3, 4)))
    gs.save(net, path)
    tensors, metadata = _safetensors.read(path)
    text = metadata["gradstack"]
    pieces = ["[]", "{}", "null", "-1", "0", "1e9", '"x"', "true", ","]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(text) - 1), st.integers(0, 12), st.sampled_from(pieces))
    def mutate(position: int, length: int, piece: str) -> None:
        changed = text[:position] + piece + text[position + length :]
        _safetensors.write(path, tensors, {"gradstack": changed})
        with contextlib.suppress(ValueError):
            gs.load(path)

    mutate()
