"""precision="tf32", "bf16", "fp16": the formats themselves, and nets against float64.

The bounds are derived. With unit roundoff u (2^-8 for bfloat16, 2^-11 for half; 2^-10 for tf32,
whose hardware may truncate) a stored number is x (1 + d), |d| <= u, or off by half the smallest
number of the format; sums are made in float32. `Analysis` carries these errors through a net.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from device_cases import OPTIMISERS, problem
from dlpack_producer import Producer
from gradstack import _device, nn, optim
from oracle_nets import BOUNDED, KINKED, SMOOTH
from random_nets import random_net

Array = np.ndarray
HALVES = ["bf16", "fp16"]
REDUCED = ["tf32", *HALVES]
UNIT = {"float32": 2.0**-24, "tf32": 2.0**-10, "bf16": 2.0**-8, "fp16": 2.0**-11}
LEAST = {"float32": 0.0, "tf32": 0.0, "bf16": 2.0**-134, "fp16": 2.0**-25}


def on(device: str, net: nn.Module, precision: str) -> nn.Module:
    return net.copy().to(device, precision=precision)


# The formats. ------------------------------------------------------------------------------------


def half_bits(values: Array, precision: str) -> Array:
    """What NumPy and PyTorch make of float32 values in 16 bits."""
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def half_values(bits: Array, precision: str) -> Array:
    if precision == "fp16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("precision", HALVES)
def test_every_half_comes_and_goes(cuda: str, precision: str) -> None:
    device = _device.open_device(cuda)
    bits = np.arange(65536, dtype=np.uint16)
    values = device.from_half(bits, precision)
    expected = half_values(bits, precision)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(values), nan)
    assert np.array_equal(values[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    back = device.to_half(values, precision)
    assert np.array_equal(back[~nan], bits[~nan])
    assert np.isnan(half_values(back[nan], precision)).all()


@pytest.mark.parametrize("precision", HALVES)
def test_floats_are_rounded_to_the_nearest_half(
    cuda: str, rng: np.random.Generator, precision: str
) -> None:
    every = half_values(np.arange(65536, dtype=np.uint16), precision)
    every = np.sort(every[np.isfinite(every)])
    ties = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(v, np.float32(to)) for v in (every, ties) for to in (-np.inf, np.inf)]
    wild = rng.integers(0, 1 << 32, 300_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = [65504, 65519.996, 65520, 65536, 3.3895314e38, 3.3961776e38, 3.4028235e38, 1e-45, 2e-8,
             np.inf, np.nan]  # fmt: skip
    edge = np.array(edges, np.float32)
    values = np.concatenate([every, ties, *around, wild, edge, -edge])
    got = _device.open_device(cuda).to_half(values, precision)
    expected = half_bits(values, precision)
    nan = np.isnan(values)
    assert np.array_equal(got[~nan], expected[~nan])
    assert np.isnan(half_values(got[nan], precision)).all()


def test_tf32_keeps_ten_bits(cuda: str, rng: np.random.Generator) -> None:
    x = (rng.normal(size=20_000) * 2.0 ** rng.integers(-40, 40, 20_000)).astype(np.float32)
    x[:4] = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-23, 2 - 2.0**-12]  # ties
    net = nn.Linear(1, 1, bias=False)
    net.w[...] = 1
    y = on(cuda, net, "tf32")(x[:, None])[:, 0]
    mantissa, exponent = np.frexp(x.astype(np.float64))
    nearest = np.ldexp(np.rint(np.ldexp(mantissa, 11)), exponent - 11)
    if importlib.import_module("gradstack._cuda").emulated:
        assert np.array_equal(y, nearest)
    else:  # tensor cores may drop the bits
        assert (np.abs(y - x) <= UNIT["tf32"] * np.abs(x)).all()


# Nets against float64. ---------------------------------------------------------------------------


class Bound(NamedTuple):
    """A value and how far off it may be."""

    value: Array
    error: Array

    def rounded(self, unit: float, least: float = 0.0) -> Bound:
        """Rounded to a format of that unit roundoff."""
        size = np.abs(self.value) + self.error
        return Bound(self.value, self.error + unit * size + least)


def times(a: Bound, b: Bound) -> Bound:
    """A matrix product summed in float32."""
    x, y = np.abs(a.value), np.abs(b.value)
    error = x @ b.error + a.error @ y + a.error @ b.error
    sums = (a.value.shape[1] + 2) * UNIT["float32"]
    return Bound(a.value @ b.value, error + sums * ((x + a.error) @ (y + b.error)))


class Analysis:
    """Tanh nets in float64, every number with the error that a precision may make."""

    def __init__(self, layers: list[tuple[Array, Array]], precision: str) -> None:
        self.layers = layers
        self.unit, self.least = UNIT[precision], LEAST[precision]
        self.stores = precision in HALVES

    def stored(self, x: Bound) -> Bound:
        return x.rounded(self.unit, self.least) if self.stores else x.rounded(UNIT["float32"])

    def operand(self, x: Bound) -> Bound:
        """What a product takes of what was stored."""
        return x if self.stores else x.rounded(self.unit)

    def exact(self, x: Array) -> Bound:
        return self.stored(Bound(x.astype(np.float64), np.zeros(x.shape)))

    def forward(self, x: Array) -> Bound:
        z = self.exact(x)
        self.inputs, self.outputs = [], []
        for i, (weight, bias) in enumerate(self.layers):
            self.inputs.append(z)
            s = times(self.operand(z), self.operand(self.exact(weight.T)))
            if i + 1 == len(self.layers):  # stays float32, and so does its bias
                return Bound(s.value + bias, s.error).rounded(2 * UNIT["float32"])
            b = self.exact(bias)
            s = self.stored(s)
            s = self.stored(Bound(s.value + b.value, s.error + b.error))
            z = self.stored(Bound(np.tanh(s.value), s.error))  # |tanh'| <= 1
            z = z.rounded(4 * UNIT["float32"])  # of tanh itself
            self.outputs.append(z)
        raise AssertionError

    def backward(self, dy: Array) -> tuple[Bound, list[Bound]]:
        dz, dws = self.exact(dy), []
        for i in reversed(range(len(self.layers))):
            if i + 1 < len(self.layers):
                z = self.outputs[i]
                slope = Bound(1 - z.value**2, 2 * np.abs(z.value) * z.error + z.error**2)
                slope = slope.rounded(4 * UNIT["float32"])
                size = np.abs(dz.value) + dz.error
                error = dz.error * np.abs(slope.value) + size * slope.error
                dz = self.stored(Bound(dz.value * slope.value, error))
            turned = Bound(dz.value.T, dz.error.T)
            ones = Bound(np.ones((len(dy), 1)), np.zeros((len(dy), 1)))
            dws += [times(turned, ones), times(self.operand(turned), self.operand(self.inputs[i]))]
            weight = self.operand(self.exact(self.layers[i][0]))
            dz = self.stored(times(self.operand(dz), weight))
        return dz, dws[::-1]


def flat(parts: list[Array]) -> Array:
    return np.concatenate([p.ravel() for p in parts])


SHAPES = {
    "even": (16, 32, 32, 8),
    "odd": (7, 13, 31, 3),
    "ones": (1, 1, 1),
    "deep": (9, 17, 17, 17, 17, 5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("precision", ["float32", *REDUCED])
def test_values_and_gradients_within_the_bounds_of_the_format(
    cuda: str, rng: np.random.Generator, precision: str, count: int, shape: str
) -> None:
    widths = SHAPES[shape]
    blocks: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        blocks += [nn.Linear(a, b), nn.Tanh()]
    net = nn.Sequential(*blocks[:-1])
    layers = [(m.weight, m.bias) for m in blocks if isinstance(m, nn.Linear)]
    x = rng.normal(size=(count, widths[0])).astype(np.float32)
    dy = rng.normal(size=(count, widths[-1])).astype(np.float32)
    analysis = Analysis(
        [(w.astype(np.float64), b.astype(np.float64)) for w, b in layers], precision
    )
    y_bound = analysis.forward(x)
    dx_bound, dw_bounds = analysis.backward(dy)
    y, pullback = gs.vjp(on(cuda, net, precision), x)
    dx, dw = pullback(dy)
    bounds = [y_bound, dx_bound]
    expected_dw, error_dw = (flat([getattr(b, k) for b in dw_bounds]) for k in Bound._fields)
    bounds.append(Bound(expected_dw, error_dw))
    off = 0.0
    for got, bound in zip((y, dx, dw), bounds, strict=True):
        assert got.dtype == np.float32
        error = np.abs(got - bound.value)
        assert (error <= bound.error).all()
        off = max(off, float(error.max() / np.abs(bound.value).max()))
    assert off < 6 * UNIT[precision]  # errors of both signs: far from the worst case
    if widths[0] > 1:  # not float32 under another name, nor far better than it can be
        assert off > UNIT[precision] / 16


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_every_op_rounds_once(
    cuda: str, rng: np.random.Generator, name: str, precision: str
) -> None:
    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            if name == "gelu_tanh":
                return gs.gelu(x, approximate="tanh")
            return getattr(gs, name)(x)

    unit, least = UNIT[precision], LEAST[precision]
    x = half_values(
        half_bits(2 * rng.normal(size=(40, 9)).astype(np.float32), precision), precision
    )
    dy = np.ones_like(x)
    y, pullback = gs.vjp(on(cuda, Net(), precision), x)
    z, expected = gs.vjp(Net(), x)
    assert (np.abs(y - z) <= (unit + 1e-6) * np.abs(z) + least).all()
    (dx, _), (slope, _) = pullback(dy), expected(dy)
    # A derivative that is had from z has its rounding too.
    assert (
        np.abs(dx - slope) <= unit * (np.abs(slope) + 2 * np.abs(z) * (1 + np.abs(z))) + 1e-6
    ).all()


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(cuda: str, rng: np.random.Generator, seed: int, precision: str) -> None:
    net = random_net(seed, tame=True)
    xs = tuple(rng.normal(size=(23, 8)).astype(np.float32) for _ in range(net.count))
    x = xs if len(xs) > 1 else xs[0]
    y, pullback = gs.vjp(net, x)
    z, reduced = gs.vjp(on(cuda, net, precision), x)
    ys, zs = ((v if isinstance(v, tuple) else (v,)) for v in (y, z))
    dy = tuple(rng.normal(size=a.shape).astype(np.float32) for a in ys)
    dxs, dw = pullback(dy if len(dy) > 1 else dy[0])
    for _ in range(2):
        other, other_dw = reduced(dy if len(dy) > 1 else dy[0])
        pairs = [*zip(zs, ys, strict=True), (other_dw, dw)]
        pairs += zip(*(d if isinstance(d, tuple) else (d,) for d in (other, dxs)), strict=True)
        for got, expected in pairs:
            # Up to 30 blocks, each of which rounds; a softmax of values up to 30 magnifies.
            scale = 1 + np.abs(expected).max(initial=0)
            np.testing.assert_allclose(got, expected, rtol=0, atol=20 * UNIT[precision] * scale)


@pytest.mark.parametrize("precision", REDUCED)
def test_the_other_blocks(cuda: str, rng: np.random.Generator, precision: str) -> None:
    mask = rng.random((6, 5)) < 0.5
    edges = [(i, j) for i in range(4) for j in range(6) if (i + j) % 3]
    net = nn.Sequential(
        nn.Linear(5, 6, mask=mask), nn.Tanh(), nn.SparseLinear(6, 4, edges), nn.Dropout(0.4),
        nn.Softmax(), nn.Linear(4, 3), nn.LogSoftmax(),
    )  # fmt: skip
    x = rng.normal(size=(40, 5)).astype(np.float32)
    other = on(cuda, net, precision)
    y, pullback = gs.vjp(net, x)
    z, other_pullback = gs.vjp(other, x)
    unit = UNIT[precision]
    np.testing.assert_allclose(z, y, rtol=8 * unit, atol=8 * unit)
    dy = rng.normal(size=y.shape)
    for got, expected in zip(other_pullback(dy), pullback(dy), strict=True):
        atol = 16 * unit * np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)
    held = np.flatnonzero(~mask)
    assert (other_pullback(dy)[1][held] == 0).all()
    for each in (net, other):  # dropout drops the same
        each.train()
        gs.seed(3)
        y, z = (z, each(x)) if each is other else (y, each(x))
    np.testing.assert_allclose(z, y, rtol=8 * unit, atol=8 * unit)


def test_what_16_bits_do_not_hold(cuda: str, rng: np.random.Generator) -> None:
    net = nn.NearestNeighbour(3, 5)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    assert np.array_equal(on(cuda, net, "tf32")(x), net(x))
    for precision in HALVES:
        with pytest.raises(ValueError, match=r"precision: block '.*' gives the index"):
            on(cuda, net, precision)(x)
        with pytest.raises(ValueError, match="precision: block"):
            gs.fit(
                net, x, None, cost=nn.SquaredError(), optimizer=optim.SGD(), device=cuda,
                precision=precision,
            )  # fmt: skip


# Training. ---------------------------------------------------------------------------------------


def trained(
    cuda: str, net: nn.Module, x: Any, y: Any, precision: str, optimizer: Any, **options: Any
) -> tuple[nn.Module, gs.History]:
    other = net.copy()
    options = {"batch_size": 16, "epochs": 3, "cost": nn.CrossEntropyLoss(), **options}
    history = gs.fit(
        other, x, y, optimizer=copy.deepcopy(optimizer), device=cuda, precision=precision, **options
    )
    return other, history


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_update_renews_the_copy_of_the_weights(
    cuda: str, rng: np.random.Generator, name: str, precision: str
) -> None:
    """A fit has the bits of single steps, whose copies are made anew every time."""
    net, x, y = problem(rng)
    options = {"shuffle": False, "epochs": 2}
    fitted, _ = trained(cuda, net, x, y, precision, OPTIMISERS[name], **options)
    assert not np.array_equal(fitted.w, net.w)
    optimizer = copy.deepcopy(OPTIMISERS[name])
    trainer = gs.Trainer(net, nn.CrossEntropyLoss(), optimizer, device=cuda, precision=precision)
    assert trainer.precision == precision
    for _ in range(2):
        for first in range(0, 75, 16):
            trainer.step(x[first : first + 16], y[first : first + 16])
    assert np.array_equal(fitted.w, net.w)


@pytest.mark.parametrize("precision", REDUCED)
def test_training_reaches_the_loss_of_float32(
    cuda: str, rng: np.random.Generator, precision: str
) -> None:
    x = rng.uniform(-1, 1, size=(400, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2))
    options = {"epochs": 30, "batch_size": 32, "validation": (x, y)}
    losses = {}
    for each in ("float32", precision):
        _, history = trained(cuda, net, x, y, each, optim.Adam(lr=0.01), **options)
        losses[each] = history.val_loss[-1]
    assert losses["float32"] < 0.1
    assert losses[precision] < 1.1 * losses["float32"] + 0.01


@pytest.mark.parametrize("precision", REDUCED)
def test_bits_repeat(cuda: str, rng: np.random.Generator, precision: str) -> None:
    net, x, y = problem(rng, 200)
    found = [trained(cuda, net, x, y, precision, optim.Adam(lr=0.01)) for _ in range(2)]
    assert found[0][0].w.tobytes() == found[1][0].w.tobytes()
    assert found[0][1].loss == found[1][1].loss


@pytest.mark.parametrize("precision", REDUCED)
def test_validation_is_of_the_same_precision(
    cuda: str, rng: np.random.Generator, precision: str
) -> None:
    net, x, y = problem(rng)
    other, history = trained(
        cuda, net, x, y, precision, optim.SGD(lr=0.1), epochs=1, validation=(x, y)
    )
    loss, _ = gs.value_and_grad(other.to(cuda, precision=precision), nn.CrossEntropyLoss(), x, y)
    assert history.val_loss[0] == pytest.approx(loss, rel=1e-6)
    exact, _ = gs.value_and_grad(other.to(cuda), nn.CrossEntropyLoss(), x, y)
    assert abs(history.val_loss[0] - loss) < 0.1 * abs(history.val_loss[0] - exact)


def test_a_checkpoint_belongs_to_a_precision(
    cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    net, x, y = problem(rng)
    whole, _ = trained(cuda, net, x, y, "bf16", optim.Adam(lr=0.01), epochs=4)
    parts = net.copy()
    options: dict[str, Any] = {
        "cost": nn.CrossEntropyLoss(), "batch_size": 16, "device": cuda,
        "checkpoint": gs.Checkpoint(tmp_path / "run"),
    }  # fmt: skip
    for epochs in (2, 4):
        optimizer = optim.Adam(lr=0.01)
        gs.fit(parts, x, y, optimizer=optimizer, precision="bf16", epochs=epochs, **options)
    assert np.array_equal(parts.w, whole.w)
    with pytest.raises(ValueError, match="precision: bf16 there, float32 here"):
        gs.fit(net, x, y, optimizer=optim.Adam(lr=0.01), epochs=4, **options)


@pytest.mark.parametrize("precision", HALVES)
def test_data_in_chunks_have_the_same_bits(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    net, x, y = problem(rng)
    whole, history = trained(cuda, net, 100 * x, y, precision, optim.SGD(lr=0.01))
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", "1600")
    parts, again = trained(cuda, net, 100 * x, y, precision, optim.SGD(lr=0.01))
    assert np.array_equal(parts.w, whole.w)
    assert history.loss == again.loss


@pytest.mark.parametrize("precision", REDUCED)
def test_tangents_stay_exact(cuda: str, rng: np.random.Generator, precision: str) -> None:
    net, x, _ = problem(rng)
    dx = rng.normal(size=x.shape).astype(np.float32)
    for got, expected in zip(
        gs.jvp(on(cuda, net, precision), x, dx), gs.jvp(net, x, dx), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    jacobian = gs.jacobian(on(cuda, net, precision), x)
    np.testing.assert_allclose(jacobian, gs.jacobian(net, x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("precision", HALVES)
def test_arrays_of_the_device(cuda: str, rng: np.random.Generator, precision: str) -> None:
    if not importlib.import_module("gradstack._cuda").emulated:
        pytest.skip("only the emulated device takes the host's memory for its own")
    net, x, y = problem(rng)
    other = on(cuda, net, precision)
    dy = 1000 * rng.normal(size=(75, 4)).astype(np.float32)
    results = []
    for lend in (np.asarray, Producer):
        z, pullback = gs.vjp(other, lend(x))
        results.append(
            [z, *pullback(lend(dy)), gs.value_and_grad(other, nn.CrossEntropyLoss(), lend(x), y)[1]]
        )
    for here, there in zip(*results, strict=True):
        assert np.array_equal(here, there.numpy() if hasattr(there, "numpy") else there)


@pytest.mark.parametrize("precision", HALVES)
def test_the_fused_mlp_rounds_for_itself(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    net, x, y = problem(rng)
    monkeypatch.setenv("GRADSTACK_CUDA_FUSED", precision)
    plain, reduced = (
        trained(cuda, net, x, y, each, optim.SGD(lr=0.1))[0] for each in ("float32", precision)
    )
    np.testing.assert_allclose(reduced.w, plain.w, rtol=0, atol=2 * UNIT[precision])


# Arguments; these run everywhere. ----------------------------------------------------------------


@pytest.mark.parametrize("precision", REDUCED)
def test_the_cpu_has_one_precision(precision: str) -> None:
    net, x = nn.Linear(2, 1), np.zeros((4, 2))
    for call in (
        lambda: gs.fit(
            net, x, x[:, :1], cost=nn.MSELoss(), optimizer=optim.SGD(), precision=precision
        ),
        lambda: gs.Trainer(net, nn.MSELoss(), optim.SGD(), precision=precision),
        lambda: net.to("cpu", precision=precision),
    ):
        with pytest.raises(ValueError, match=f"'{precision}' is for device='cuda'; the CPU"):
            call()
    assert gs.Trainer(net, nn.MSELoss(), optim.SGD()).precision == "float32"


@pytest.mark.parametrize("precision", ["float64", "bfloat16", "", None, 16, "TF32"])
def test_unknown_precisions(precision: Any) -> None:
    with pytest.raises(ValueError, match="precision must be 'float32', 'tf32', 'bf16' or 'fp16'"):
        nn.Linear(2, 1).to("cuda", precision=precision)
