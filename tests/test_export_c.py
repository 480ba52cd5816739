"""gs.export_c: compilers accept the header, and it computes what independent libraries compute."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import pathlib
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from c_headers import (
    C_COMPILERS,
    CXX_COMPILERS,
    STRICT,
    compile_c,
    compile_nets,
    dtypes,
    needs_compiler,
    traced,
    workspace,
)
from gradstack import nn
from gradstack.interop._c_blocks import KINDS

pytestmark = needs_compiler

INF = math.inf


@dtypes
def test_random_graphs(dtype: Any, tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    from oracle_nets import BOUNDED, KINKED, SMOOTH, Net, make_recipe, torch_function

    acts = [*SMOOTH, *KINKED, *BOUNDED]
    recipes = {f"net{seed}": make_recipe(seed, acts) for seed in range(24)}
    nets = {name: traced(Net(r, dtype), (r.d_in,)) for name, r in recipes.items()}
    run = compile_nets(tmp_path, nets)
    rng = np.random.default_rng(0)
    for name, recipe in recipes.items():
        x = rng.normal(size=(5, recipe.d_in)).astype(dtype)
        w = torch.tensor(np.asarray(nets[name].w, np.float64))
        function = torch_function(recipe)
        expected = np.stack([function(w, torch.tensor(v, dtype=torch.float64)) for v in x])
        assert_close(run[name](x), expected, 64 * np.finfo(dtype).eps)


def test_random_graphs_with_several_inputs_and_outputs(tmp_path: pathlib.Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the oracle is not installed")
    from random_nets import random_net

    nets = {f"net{seed}": random_net(seed, np.float64, tame=True) for seed in range(24)}
    run = compile_nets(tmp_path, nets)
    rng = np.random.default_rng(0)
    several = 0
    for name, net in nets.items():
        xs = [rng.normal(size=(4, 8)) for _ in range(net.count)]
        path = tmp_path / "net.onnx"
        gs.export_onnx(net, path)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {i.name: x for i, x in zip(session.get_inputs(), xs, strict=True)}
        expected = session.run(None, feeds)
        got = run[name](*xs)
        several += len(expected) > 1 and len(xs) > 1
        for a, b in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
            assert_close(a, b.reshape(a.shape), 1e-12)
    assert several > 5


def assert_close(got: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    """To rounding, relative to the largest entry."""
    assert got.shape == expected.shape
    error = np.abs(got - expected).max() / max(1, np.abs(expected).max())
    assert error <= rtol, error


SIZES = [1, 3, 4, 7, 33]


@dtypes
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_layers_of_every_width(dtype: Any, level: str, tmp_path: pathlib.Path) -> None:
    nets: dict[str, nn.Module] = {}
    for n in SIZES:
        for out in SIZES:
            bias = (n + out) % 3 > 0
            nets[f"net_{n}_{out}"] = nn.Sequential(nn.Linear(n, out, bias=bias, dtype=dtype))
    run = compile_nets(tmp_path, nets, level)
    rng = np.random.default_rng(0)
    for name, net in nets.items():
        weight = np.asarray(net[0].weight, np.float64)
        x = rng.normal(size=(3, weight.shape[1])).astype(dtype)
        bias = 0 if net[0].bias is None else np.asarray(net[0].bias, np.float64)
        assert_close(run[name](x), x.astype(np.float64) @ weight.T + bias, 8 * np.finfo(dtype).eps)


class Everything(nn.Module):
    """Every kind of block; names that C and C++ keep for themselves; two inputs, three outputs."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.mask = rng.random((17, 17)) < 0.9
        self.few = rng.random((20, 20)) < 0.1
        self.edges = [(7, 1), *((i, 3 * i % 8) for i in range(6)), (7, 0)]
        self.a = nn.Linear(6, 17, dtype=dtype)
        self.b = nn.Linear(17, 17, mask=self.mask, bias=False, dtype=dtype)
        self.c = nn.Linear(20, 20, mask=self.few, dtype=dtype)
        self.tanh = nn.Linear(20, 8, dtype=dtype)
        self.d = nn.SparseLinear(8, 8, self.edges, dtype=dtype)
        self.near = nn.NearestNeighbour(8, 9, dtype=dtype)
        self.drop = nn.Dropout(0.4)

    def forward(self, int: Any, y1: Any) -> Any:
        z = gs.tanh(self.a(int.view(-1)))
        z = z + gs.relu(self.b(z))
        z = self.drop(z * gs.sigmoid(self.b(z)) - 0.5 * z)
        s = self.tanh(self.c(gs.concat([z, y1])))
        p = gs.softmax(s[0:4]) / (1.0 + gs.softplus(s[4:8]))
        k = self.near(s)
        return self.drop(gs.concat([p, gs.log_softmax(self.d(s))])).view(2, 6), k, 2.0 * k - 1.0

    def by_hand(self, x: Any, u: Any) -> Any:
        """The same in NumPy, for one sample."""
        w = {name: np.asarray(value, np.float64) for name, value in self.named_parameters()}
        sparse = np.zeros((8, 8))
        for value, (i, j) in zip(w["d.weight"], self.edges, strict=True):
            sparse[i, j] = value
        masked = w["b.weight"] * self.mask
        z = np.tanh(w["a.weight"] @ x.ravel() + w["a.bias"])
        z = z + np.maximum(masked @ z, 0)
        z = z / (1 + np.exp(-masked @ z)) - 0.5 * z
        s = (w["c.weight"] * self.few) @ np.concatenate([z, u]) + w["c.bias"]
        s = w["tanh.weight"] @ s + w["tanh.bias"]
        p = np.exp(s[:4]) / np.exp(s[:4]).sum() / (1 + np.log1p(np.exp(s[4:])))
        t = sparse @ s + w["d.bias"]
        k = ((w["near.weight"] - s) ** 2).sum(1).argmin()
        return np.concatenate([p, t - np.log(np.exp(t).sum())]), k, 2 * k - 1


def everything(dtype: Any) -> Everything:
    net = Everything(dtype)
    net.trace((2, 3), (3,))
    return net


@dtypes
def test_every_kind_of_block(dtype: Any, tmp_path: pathlib.Path) -> None:
    net = everything(dtype)
    kinds = {stage["kind"] for stage in net.trace().stages()}
    assert kinds == {*KINDS, "input"}
    run = compile_nets(tmp_path, {"net": net}, "-O2")["net"]
    rng = np.random.default_rng(0)
    x, u = (9 * rng.normal(size=(40, *shape)).astype(dtype) for shape in [(2, 3), (3,)])
    y, k, twice = run(x, u)
    assert k.dtype == np.int32
    assert len(np.unique(k)) > 2
    by_hand = [net.by_hand(*sample) for sample in zip(x, u, strict=True)]
    expected = [np.stack(values) for values in zip(*by_hand, strict=True)]
    assert_close(y, expected[0], 64 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(k[:, 0], expected[1])
    np.testing.assert_array_equal(twice[:, 0], expected[2])


class Parts(nn.Module):
    """Outputs that are parts of others, and outputs that others are computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8, dtype=np.float64)
        self.b = nn.Linear(8, 8, dtype=np.float64)

    def forward(self, x: Any) -> Any:
        z = gs.tanh(self.a(x))
        y = self.b(z)
        t = gs.sigmoid(y)
        return z[1:4], gs.softmax(self.b(t)[2:6]), y, gs.relu6(t), self.b(y).view(2, 4), t[7], x[:2]


def test_outputs_that_share_values(tmp_path: pathlib.Path) -> None:
    net = traced(Parts(), (3,))
    x = np.random.default_rng(0).normal(size=(4, 3))
    got = compile_nets(tmp_path, {"net": net})["net"](x)
    w = {name: np.asarray(value) for name, value in net.named_parameters()}
    z = np.tanh(x @ w["a.weight"].T + w["a.bias"])
    y = z @ w["b.weight"].T + w["b.bias"]
    t = 1 / (1 + np.exp(-y))
    p = np.exp(t @ w["b.weight"].T + w["b.bias"])[:, 2:6]
    last = y @ w["b.weight"].T + w["b.bias"]
    expected = [z[:, 1:4], p / p.sum(1, keepdims=True), y, t, last, t[:, 7:], x[:, :2]]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@dtypes
def test_nearest_takes_the_first_of_equals(dtype: Any, tmp_path: pathlib.Path) -> None:
    points = np.array([[4, 4], [1, 1], [-1, 1], [1, 1]], dtype)
    net = nn.Sequential(nn.NearestNeighbour(2, points, dtype=dtype))
    run = compile_nets(tmp_path, {"net": net})["net"]
    x = np.array([[1, 1], [0, 1], [9, 9], [-3, 0], [math.nan, 1]], dtype)
    np.testing.assert_array_equal(run(x)[:, 0], [1, 1, 0, 2, 0])


def test_softmax_of_large_and_infinite_values(tmp_path: pathlib.Path) -> None:
    nets = {
        name: traced(nn.Sequential(nn.Identity(), module), (3,))
        for name, module in [("p", nn.Softmax()), ("log_p", nn.LogSoftmax())]
    }
    run = compile_nets(tmp_path, nets)
    x = [[1000, 1000, -1000], [-INF, 0, 0], [3e38, -3e38, 0], [math.nan, 0, 1], [0, 1, math.nan]]
    nan = [math.nan] * 3
    p = [[0.5, 0.5, 0], [0, 0.5, 0.5], [1, 0, 0], nan, nan]
    np.testing.assert_allclose(run["p"](x), p, rtol=1e-6)
    half = math.log(2)
    log_p = [[-half, -half, -2000 - half], [-INF, -half, -half], [0, -INF, -3e38], nan, nan]
    np.testing.assert_allclose(run["log_p"](x), log_p, rtol=1e-6)


@dtypes
@pytest.mark.parametrize("compiler", C_COMPILERS, ids=os.path.basename)
def test_parameters_keep_their_bits(dtype: Any, compiler: str, tmp_path: pathlib.Path) -> None:
    limits = np.finfo(dtype)
    special = [
        0.0,
        -0.0,
        limits.max,
        -limits.max,
        limits.tiny,
        limits.smallest_subnormal,
        INF,
        -INF,
    ]
    odd = np.random.default_rng(0).integers(0, 2**31 - 2**23, 2000, np.int32)
    bits = odd.view(np.float32) if dtype is np.float32 else np.ldexp(odd / 3.0, odd % 1900 - 950)
    values = np.concatenate([np.array(special), bits, 10.0 ** np.arange(-37, 38)]).astype(dtype)
    net = nn.Sequential(nn.Linear(1, values.size, bias=False, dtype=dtype))
    net[0].weight[...] = values[:, None]
    gs.export_c(net, tmp_path / "net.h")
    source = tmp_path / "net.c"
    source.write_text(
        '#include "net.h"\nconst void *weights(void);\n'
        "const void *weights(void) { return net_0_weight; }\n"
    )
    compile_c(source, tmp_path / "net.so", "-std=c99", "-shared", "-fPIC", *STRICT,
              compiler=compiler)  # fmt: skip
    function = ctypes.CDLL(str(tmp_path / "net.so")).weights
    function.restype = ctypes.c_void_p
    stored = ctypes.string_at(function(), values.nbytes)
    assert stored == values.tobytes()


@dtypes
@pytest.mark.parametrize(
    ("compiler", "standard"),
    [(c, s) for c in C_COMPILERS for s in ("c99", "c11")]
    + [(c, s) for c in CXX_COMPILERS for s in ("c++11", "c++17")],
    ids=os.path.basename,
)
def test_no_compiler_warns(
    compiler: str, standard: str, dtype: Any, tmp_path: pathlib.Path
) -> None:
    gs.export_c(everything(dtype), tmp_path / "first.h")
    gs.export_c(nn.Sequential(nn.Linear(3, 2, dtype=dtype), nn.Mish()), tmp_path / "second.h")
    # The first is not used: that must be no warning either.
    code = '#include "first.h"\n#include "first.h"\n#include "second.h"\n'
    real = "float" if dtype is np.float32 else "double"
    code += f"int main(void) {{ {real} x[3] = {{1, 2, 3}}, y[SECOND_OUTPUTS]; "
    code += "second_predict(x, y); return y[0] > 100; }\n"
    language = "c++" if "++" in standard else "c"
    source = tmp_path / "main.c"
    source.write_text(code)
    flags = [f"-std={standard}", "-x", language, *STRICT, "-O2"]
    compile_c(source, tmp_path / "main", *flags, compiler=compiler)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_symbols(level: str, tmp_path: pathlib.Path) -> None:
    gs.export_c(everything(np.float32), tmp_path / "net.h")
    source = tmp_path / "net.c"
    source.write_text(
        '#include "net.h"\nfloat use(const float *a, const float *b);\n'
        "float use(const float *a, const float *b)\n"
        "{ float p[12], t[1]; int32_t k[1]; net_predict(a, b, p, k, t); return p[0] + t[0]; }\n"
    )
    compile_c(source, tmp_path / "net.o", "-std=c99", "-c", level)
    listing = subprocess.run(["nm", tmp_path / "net.o"], capture_output=True, text=True, check=True)
    symbols = [line.split()[-2:] for line in listing.stdout.splitlines()]
    defined = {name for kind, name in symbols if kind not in "Utrb"}
    assert defined == {"use"}
    of_the_file = {name for kind, name in symbols if kind in "trb" and not name.startswith(".")}
    assert all(name.startswith("net_") for name in of_the_file), of_the_file
    from_elsewhere = {name for kind, name in symbols if kind == "U"}
    mathematics = {"expf", "logf", "log1pf", "tanhf"}
    by_the_compiler = {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    assert mathematics <= from_elsewhere <= mathematics | by_the_compiler


def test_two_files_of_a_program(tmp_path: pathlib.Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    gs.export_c(net, tmp_path / "net.h")
    (tmp_path / "other.h").write_text("float other(float a, float b);\n")
    (tmp_path / "other.c").write_text(
        '#include "net.h"\n#include "other.h"\nfloat other(float a, float b)\n'
        "{ const float x[2] = {a, b}; float y[1]; net_predict(x, y); return y[0]; }\n"
    )
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "net.h"\n#include "other.h"\nint main(void)\n'
        "{ const float x[2] = {1, -2}; float y[1]; static float work[NET_WORKSPACE];\n"
        "  net_predict_with(x, y, work);\n"
        '  printf("%a %a\\n", (double)y[0], (double)other(1, -2)); return 0; }\n'
    )
    program = tmp_path / "main"
    compile_c(tmp_path / "main.c", program, "-std=c99", str(tmp_path / "other.c"), *STRICT)
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    w = {name: np.asarray(value, np.float64) for name, value in net.named_parameters()}
    z = np.tanh(w["0.weight"] @ [1, -2] + w["0.bias"])
    expected = (w["2.weight"] @ z + w["2.bias"])[0]
    assert out[0] == out[1]
    assert float.fromhex(out[0]) == pytest.approx(expected, rel=1e-5)


def test_the_program_of_the_documentation(tmp_path: pathlib.Path) -> None:
    page = pathlib.Path(__file__).parent.parent / "docs" / "files.md"
    (code,) = re.findall(r"^```c\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    gs.export_c(net, tmp_path / "pump.h")
    (tmp_path / "main.c").write_text(code)
    compile_c(tmp_path / "main.c", tmp_path / "main", "-std=c99", *STRICT)
    out = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    w = {name: np.asarray(value, np.float64) for name, value in net.named_parameters()}
    z = np.maximum(w["0.weight"] @ [0.1, 0.2, 0.3, 0.4] + w["0.bias"], 0)
    expected = w["2.weight"] @ z + w["2.bias"]
    np.testing.assert_allclose([float(v) for v in out.split()], expected, rtol=1e-4)


def test_memory_is_used_again(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.h"
    widths = [784, 50, 100, 200, 90, 10]
    layers: list[nn.Module] = []
    for n, out in itertools.pairwise(widths):
        layers += [nn.Linear(n, out), nn.Dropout(0.1), nn.SELU()]
    gs.export_c(nn.Sequential(*layers, nn.Softmax()), path)
    assert workspace(path) == 300  # the two largest neighbours
    gs.export_c(nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Softmax()), path)
    assert workspace(path) == 1  # everything happens in y


def test_sparse_masks_store_their_edges(tmp_path: pathlib.Path) -> None:
    half = nn.Sequential(nn.Linear(64, 64, mask=np.tri(64)))
    band = nn.Sequential(nn.Linear(64, 64, mask=np.tri(64) - np.tri(64, k=-3)))
    empty = nn.Sequential(nn.Linear(64, 64, mask=np.zeros((64, 64))))
    for name, net in {"half": half, "band": band, "empty": empty}.items():
        gs.export_c(net, tmp_path / f"{name}.h")
    assert "half_0_weight[4096]" in (tmp_path / "half.h").read_text()
    assert "band_0_weight[189]" in (tmp_path / "band.h").read_text()
    run = compile_nets(tmp_path, {"half": half, "band": band, "empty": empty})
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    for name, net in {"half": half, "band": band, "empty": empty}.items():
        weight = np.asarray(net[0].weight, np.float64) * np.asarray(net[0].mask)
        assert_close(run[name](x), x @ weight.T + np.asarray(net[0].bias), 1e-6)


def test_wide_indices(tmp_path: pathlib.Path) -> None:
    """More inputs than 16 bits count."""
    net = nn.Sequential(nn.SparseLinear(70_000, 2, [(0, 69_999), (0, 3), (1, 65_536)]))
    net[0].weight[...] = [2, 3, 5]
    net[0].bias[...] = 0
    x = np.arange(70_000, dtype=np.float32)
    got = compile_nets(tmp_path, {"net": net})["net"](x[None])
    np.testing.assert_array_equal(got, [[2 * 69_999 + 9, 5 * 65_536]])


def test_a_shared_weight_is_stored_once(tmp_path: pathlib.Path) -> None:
    layer = nn.Linear(6, 6)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer)
    gs.export_c(net, tmp_path / "net.h")
    assert (tmp_path / "net.h").read_text().count("static const") == 2
    gs.export_c(everything(np.float32), tmp_path / "masked.h", name="net")
    assert len(re.findall(r"net_b_weight\w*\[", (tmp_path / "masked.h").read_text())) == 1


def test_names(tmp_path: pathlib.Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    gs.export_c(net, tmp_path / "my-net v1.2.h")
    assert "my_net_v1_2_predict(" in (tmp_path / "my-net v1.2.h").read_text()
    gs.export_c(net, str(tmp_path / "1.h"), name="pump")
    text = (tmp_path / "1.h").read_text()
    assert "#define PUMP_INPUTS 2" in text
    assert set(re.findall(r"^static .*?(\w+)[\[(]", text, re.MULTILINE)) == {
        "pump_0_weight", "pump_0_bias", "pump_linear", "pump_predict", "pump_predict_with"
    }  # fmt: skip


def test_a_name_is_no_way_into_the_code(tmp_path: pathlib.Path) -> None:
    net = traced(nn.Sequential(), (2,))
    net.add_module('*/ #error "no" /*\n#error', nn.Linear(2, 2))
    compile_nets(tmp_path, {"net": traced(net, (2,))})


def test_the_same_net_gives_the_same_bytes(tmp_path: pathlib.Path) -> None:
    net = everything(np.float32)
    gs.export_c(net, tmp_path / "a.h", name="net")
    net.train()
    gs.export_c(net, tmp_path / "b.h", name="net")
    assert net.training
    text = (tmp_path / "a.h").read_bytes()
    assert text == (tmp_path / "b.h").read_bytes()
    assert max(map(len, text.splitlines())) <= 100
    assert str(tmp_path) not in text.decode("ascii")


def test_simplified(tmp_path: pathlib.Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Softmax())
    gs.export_c(net, tmp_path / "net.h", simplify=True)
    text = (tmp_path / "net.h").read_text()
    assert "net_0_weight[12]" in text
    assert "net_2_weight" not in text


def test_refusals(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.h"
    opaque = nn.Sequential(nn.Linear(3, 3), nn.Pointwise(np.cos, lambda s: -np.sin(s)))
    with pytest.raises(ValueError, match="block '1' is written in Python"):
        gs.export_c(opaque, path)
    with pytest.raises(ValueError, match="sample shape is not known"):
        gs.export_c(Everything(np.float32), path)
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"an nn\.Module, got str"):
        gs.export_c("net", path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="file name '3' is no C identifier"):
        gs.export_c(net, tmp_path / "3.h")
    for name in ("", "a-b", "2nd", "_net", "größe", "a b"):
        with pytest.raises(ValueError, match="is no C identifier"):
            gs.export_c(net, path, name=name)
    with pytest.raises(TypeError, match="name must be a str, got int"):
        gs.export_c(net, path, name=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="simplify must be True or False, got 'no'"):
        gs.export_c(net, path, simplify="no")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        gs.export_c(net, tmp_path / "missing" / "net.h")
    net[0].bias[1] = math.nan
    with pytest.raises(ValueError, match=r"parameter '0.bias' holds NaN"):
        gs.export_c(net, path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "net.h"
    net = nn.Sequential(nn.Linear(3, 3))
    gs.export_c(net, path)
    before = path.read_bytes()
    net[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        gs.export_c(net, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
