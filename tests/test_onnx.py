"""gs.export_onnx: onnx.checker accepts the file, and runtimes compute what the net computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, nn
from random_nets import OneOp

onnx = pytest.importorskip("onnx", reason="the oracle is not installed")
ort = pytest.importorskip("onnxruntime", reason="the oracle is not installed")

OPS = {row["name"]: [value for _, value in row["params"]] for row in _core.ops()}
# Parameters away from the defaults.
OTHER = {
    "leaky_relu": [0.3],
    "elu": [1.7],
    "celu": [0.6],
    "softplus": [2.0, 5.0],
    "hardtanh": [-0.5, 2.0],
    "affine": [-1.5, 0.25],
    "reciprocal": [-2.5],
}
CASES = [*OPS.items(), *OTHER.items()]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def test_other_parameters_are_complete() -> None:
    assert set(OTHER) == {name for name, params in OPS.items() if params}


def run(path: Path, *xs: np.ndarray, reference: bool = False) -> Any:
    """Outputs of an exported model; one output comes without a list."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    names = [value.name for value in model.graph.input]
    feeds = dict(zip(names, xs, strict=True))
    if reference:
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(model, new_ops=[exact_erf()]).run(None, feeds)
    else:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, feeds)
    return outputs[0] if len(outputs) == 1 else outputs


def exact_erf() -> Any:
    """Erf in float64: ONNX Runtime has none, and onnx.reference computes it in float32."""
    from onnx.reference.op_run import OpRun
    from scipy.special import erf

    class Erf(OpRun):
        def _run(self, x: Any) -> Any:
            return (erf(x),)

    return Erf


def assert_close(got: Any, expected: Any) -> None:
    """To rounding, relative to the largest entry."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    eps = np.finfo(expected.dtype).eps
    assert np.abs(got - expected).max() <= 32 * eps * max(1, np.abs(expected).max())


@dtypes
@pytest.mark.parametrize(("op", "params"), CASES, ids=str)
def test_every_op(op: str, params: list[float], dtype: type, tmp_path: Path) -> None:
    net = OneOp(op, params, dtype)
    x = np.concatenate([np.linspace(-30, 30, 241), [0.125, 1e-3, -1e-3, 95, -95, 400, -400]])
    x = x[x != 0] if op == "reciprocal" else x
    x = x.astype(dtype)[:, None]
    expected = net(x)
    path = tmp_path / "op.onnx"
    gs.export_onnx(net, path)
    reference = op == "gelu" and dtype is np.float64
    assert_close(run(path, x, reference=reference), expected)


class Everything(nn.Module):
    """Every kind of stage, two inputs, two outputs."""

    def __init__(self, dtype: type) -> None:
        super().__init__()
        self.a = nn.Linear(6, 17, dtype=dtype)
        self.b = nn.Linear(17, 17, mask=np.tri(17), bias=False, dtype=dtype)
        self.c = nn.Linear(20, 8, dtype=dtype)
        self.d = nn.SparseLinear(8, 8, [(i, 3 * i % 8) for i in range(6)], dtype=dtype)
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Any, u: Any) -> Any:
        z = gs.tanh(self.a(x.view(-1)))
        z = z + gs.relu(self.b(z))
        z = self.drop(z * gs.sigmoid(self.b(z)) - 0.5 * z)
        s = self.c(gs.concat([z, u]))
        p = gs.softmax(s[0:4]) / (1.0 + gs.softplus(s[4:8]))
        return p, gs.log_softmax(self.d(s)).view(2, 4)


@dtypes
def test_every_kind_of_stage(dtype: type, tmp_path: Path) -> None:
    net = Everything(dtype)
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(5, 2, 3)).astype(dtype), rng.normal(size=(5, 3)).astype(dtype)
    expected = net(x, u)
    path = tmp_path / "net.onnx"
    gs.export_onnx(net, path)
    for got, value in zip(run(path, x, u), expected, strict=True):
        assert_close(got, value)
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["x", "u"]
    kinds = {stage["kind"] for stage in net.trace().stages()}
    others = {"nearest", "opaque"}
    assert kinds == {*_kinds_exported()} - others | {"input"}


def _kinds_exported() -> set[str]:
    from gradstack.interop._onnx import _KINDS

    return set(_KINDS)


@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_any_batch_size(batch: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.SiLU(), nn.Linear(7, 3))
    x = np.random.default_rng(0).normal(size=(batch, 3, 4)).astype(np.float32)
    expected = net(x)
    gs.export_onnx(net, tmp_path / "net.onnx")
    assert_close(run(tmp_path / "net.onnx", x.reshape(batch, 12)), expected)


def test_samples_of_several_axes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.SiLU(), nn.Linear(7, 3))
    net.trace((3, 4))
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    gs.export_onnx(net, tmp_path / "net.onnx")
    assert_close(run(tmp_path / "net.onnx", x), net(x))


@dtypes
def test_nearest_neighbour(dtype: type, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.NearestNeighbour(4, 9, dtype=dtype))
    net[1].weight[7] = net[1].weight[2]
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(dtype) * 3
    gs.export_onnx(net, tmp_path / "net.onnx")
    got, expected = run(tmp_path / "net.onnx", x), net(x)
    assert got.dtype == expected.dtype == np.int64
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(got, expected)


def test_masks_are_folded(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 5, mask=np.tri(5, 4)))
    net[0].weight[...] = 3
    gs.export_onnx(net, tmp_path / "net.onnx")
    (weight,) = [t for t in onnx.load(tmp_path / "net.onnx").graph.initializer if t.dims == [5, 4]]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), 3 * np.tri(5, 4))


def test_dropout_at_the_end_and_in_training_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5))
    x = np.ones((3, 4), np.float32)
    expected = net(x)
    net.train()
    gs.export_onnx(net, tmp_path / "net.onnx")
    assert_close(run(tmp_path / "net.onnx", x), expected)


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    layer = nn.Linear(6, 6)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer)
    gs.export_onnx(net, tmp_path / "net.onnx")
    assert len(onnx.load(tmp_path / "net.onnx").graph.initializer) == 2
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    assert_close(run(tmp_path / "net.onnx", x), net(x))


def test_stage_names_may_look_like_anything(tmp_path: Path) -> None:
    """Names that the exporter itself would like to give."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mul = nn.Linear(3, 3)
            self.greater = nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return gs.softplus(gs.mish(self.greater(gs.gelu(self.mul(x) * 2.0))), beta=3.0)

    net = Net()
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = net(x)
    gs.export_onnx(net, tmp_path / "net.onnx")
    assert_close(run(tmp_path / "net.onnx", x), expected)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    opaque = nn.Sequential(nn.Linear(3, 3), nn.Pointwise(np.cos, lambda s: -np.sin(s)))
    with pytest.raises(ValueError, match="block '1' is written in Python"):
        gs.export_onnx(opaque, path)
    with pytest.raises(ValueError, match="sample shape is not known"):
        gs.export_onnx(Everything(np.float32), path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    net = nn.Sequential(nn.Linear(3, 3))
    gs.export_onnx(net, path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise onnx.checker.ValidationError("no")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(onnx.checker.ValidationError):
        gs.export_onnx(nn.Sequential(nn.Linear(3, 4)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
