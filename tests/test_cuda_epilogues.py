"""Functions and their derivatives as part of products (GRADSTACK_CUDA_EPILOGUES), against the CPU.

The emulated device stands for libraries that have all epilogues, some, or wrong ones: whatever it
is, results are those of the op table.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from device_cases import ATOL, RTOL, close, compare, fits, on, problem
from gradstack import _device, nn, optim

Array = np.ndarray

# What the library is like, and what is used of it in float32 for ReLU and for GELU with tanh.
LIBRARIES = {
    "all": ("forward bits backward sums", "forward backward sums"),
    "none": ("", ""),
    "forward": ("forward bits", "forward"),
    "no sums": ("forward bits backward", "forward backward"),
    "eights": ("forward bits backward sums", "forward backward sums"),  # of multiples of 8
    "nan": ("backward sums", "backward sums"),  # functions that make 0 of NaN
    "kink": ("forward backward sums", "forward backward sums"),  # bits that say 1 at 0
    "order": ("forward bits", "forward backward sums"),  # of the bits in a byte
}


def opened(library: str, cuda: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of its own for the test, with that library if it is emulated."""
    if library != "all" and not _device._load().emulated:
        pytest.skip("the library of a GPU is what it is")
    monkeypatch.setenv("GRADSTACK_EMULATED_EPILOGUES", library)
    monkeypatch.setattr(_device, "_opened", {})
    return cuda


@pytest.fixture(params=LIBRARIES)
def fused(request: pytest.FixtureRequest, cuda: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRADSTACK_CUDA_EPILOGUES", "1")
    return opened(request.param, cuda, monkeypatch)


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_of_a_library_is_used(
    cuda: str, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    device = _device.open_device(opened(library, cuda, monkeypatch))
    for precision in ("float32", "tf32", "bf16", "fp16"):
        assert device.epilogues("tanh", precision) == device.epilogues("gelu", precision) == []
        for name, expected in zip(("relu", "gelu_tanh"), LIBRARIES[library], strict=True):
            found = device.epilogues(name, precision)
            if precision in ("bf16", "fp16"):  # whose sums would be rounded to 16 bits
                assert "sums" not in found
                found += ["sums"] * ("sums" in expected)
            if _device._load().emulated:
                assert found == expected.split()
    with pytest.raises(ValueError, match="no function 'swish'"):
        device.epilogues("swish")


def chain(*widths: int, h: Any = gs.relu, bias: bool = True) -> nn.Module:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = enumerate(itertools.pairwise(widths))
            for k, (i, o) in pairs:
                self.add_module(f"layer{k}", nn.Linear(i, o, bias=bias))

        def forward(self, x: Any) -> Any:
            first, *rest = self.children()
            z = first(x)
            for layer in rest:
                z = layer(h(z))
            return z

    return Chain()


def gelu_tanh(s: Any) -> Any:
    return gs.gelu(s, approximate="tanh")


@pytest.mark.parametrize("h", [gs.relu, gelu_tanh, gs.tanh])
@pytest.mark.parametrize("bias", [True, False])
def test_chains(fused: str, rng: np.random.Generator, h: Any, bias: bool) -> None:
    for widths, count in (((8, 16, 32, 8), 64), ((5, 7, 130, 1, 3), 33), ((3, 9, 2), 1)):
        x = rng.normal(size=(count, widths[0])).astype(np.float32)
        compare(fused, chain(*widths, h=h, bias=bias), (x,), rng)


class Taps(nn.Module):
    """Functions that somebody else reads as well, and all that may lie between two layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.drop, self.masked = (
            nn.Dropout(0.4),
            nn.Linear(8, 8, mask=np.arange(64).reshape(8, 8) % 3 > 0),
        )

    def forward(self, x: Any) -> Any:
        s = self.a(x)
        z = gs.relu(s)
        match self.kind:
            case "z is an output":
                return z, self.b(z)
            case "s is an output":
                return s, self.b(z)
            case "two consumers":
                return self.b(z) + self.c(z)
            case "a skip":
                return self.b(z) + z
            case "a view":
                return self.b(z.view(2, 4).view(-1))
            case "dropout":
                return self.b(self.drop(z))
            case "shared":
                return self.a(gs.relu(self.a(z)))
            case "masks":
                return self.c(gs.relu(self.masked(z)))
            case "twice":
                return self.b(gs.relu(z))
            case "a slice":
                return self.b(gs.concat([z[:4], z[4:]]))
        raise AssertionError


TAPS = ["z is an output", "s is an output", "two consumers", "a skip", "a view", "dropout",
        "shared", "masks", "twice", "a slice"]  # fmt: skip


@pytest.mark.parametrize("kind", TAPS)
def test_taps(fused: str, rng: np.random.Generator, kind: str) -> None:
    net = Taps(kind)
    x = rng.normal(size=(40, 8)).astype(np.float32)
    compare(fused, net, (x,), rng)
    if kind not in ("z is an output", "s is an output"):
        y = rng.integers(0, 8, 40)
        fits(fused, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.5), seed=3)


def test_frozen_layers(fused: str, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(75, 8)).astype(np.float32), rng.integers(0, 4, 75)
    for frozen in ([0], [1], [2], [0, 1], [0, 2]):
        net = chain(8, 16, 24, 4)
        for i in frozen:
            list(net.children())[i].freeze()
        before = net.w.copy()
        other, _ = fits(fused, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
        moved = other.w != before
        sizes = np.cumsum([0, 8 * 16 + 16, 16 * 24 + 24, 24 * 4 + 4])
        for i in range(3):
            assert moved[sizes[i] : sizes[i + 1]].any() == (i not in frozen)


@pytest.mark.parametrize("options", [{"batch_size": 16}, {"batch_size": 13}, {"batch_size": None}])
def test_training(fused: str, rng: np.random.Generator, options: dict[str, Any]) -> None:
    _, x, y = problem(rng)
    net = chain(6, 24, 16, 4)
    optimizer = optim.SGD(lr=0.05, momentum=0.9, weight_decay=0.01)
    fits(fused, net, x, y, nn.CrossEntropyLoss(), optimizer, **options)


def test_bits_repeat(fused: str, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(200, 6)).astype(np.float32), rng.integers(0, 4, 200)
    net, found = chain(6, 24, 16, 4), []
    for _ in range(2):
        other = net.copy()
        history = gs.fit(
            other, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.Adam(), device=fused, epochs=3
        )
        found.append((other.w.tobytes(), history.loss))
    assert found[0] == found[1]


REDUCED = {"tf32": 2.0**-10, "bf16": 2.0**-8, "fp16": 2.0**-11}


@pytest.mark.parametrize("precision", ["float32", *REDUCED])
def test_relu_of_small_integers_is_exact(
    fused: str, rng: np.random.Generator, precision: str
) -> None:
    """Values that need few bits, never 0 before ReLU: no precision rounds anything."""
    net = chain(8, 8, 8, 8)
    net.w[...] = rng.integers(-1, 2, net.w.size)
    for layer, bias in zip(net.children(), (0.5, 0.25, 0.0), strict=True):
        layer.bias[...] = bias
    x = rng.integers(-1, 2, (40, 8)).astype(np.float32)
    dy = rng.integers(-1, 2, (40, 8)).astype(np.float32)
    y, pullback = gs.vjp(net, x)
    z, reduced = gs.vjp(net.copy().to(fused, precision=precision), x)
    for got, expected in zip([z, *reduced(dy)], [y, *pullback(dy)], strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("precision", REDUCED)
def test_gelu_in_reduced_precision(fused: str, rng: np.random.Generator, precision: str) -> None:
    net, x = chain(16, 32, 24, 8, h=gelu_tanh), rng.normal(size=(40, 16)).astype(np.float32)
    dy = rng.normal(size=(40, 8)).astype(np.float32)
    y, pullback = gs.vjp(net, x)
    z, reduced = gs.vjp(net.copy().to(fused, precision=precision), x)
    for got, expected in zip([z, *reduced(dy)], [y, *pullback(dy)], strict=True):
        off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 0 < off < 4 * REDUCED[precision]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_relu_keeps_what_is_not_finite(fused: str, bad: float) -> None:
    net = chain(8, 8, 8)
    x = np.zeros((8, 8), np.float32)
    x[3, 0] = bad
    with np.errstate(invalid="ignore"):
        y, pullback = gs.vjp(net, x)
        z, other = gs.vjp(on(fused, net), x)
        np.testing.assert_array_equal(np.isfinite(z), np.isfinite(y))
        assert np.isnan(net(x)[3]).any()
        np.testing.assert_array_equal(np.isnan(on(fused, net)(x)), np.isnan(net(x)))
        good = np.ones(8, bool)
        good[3] = False
        dy = np.ones((8, 8), np.float32)
        close(other(dy)[0][good], pullback(dy)[0][good])


def test_the_derivative_at_the_kink_is_the_op_table_s(fused: str, rng: np.random.Generator) -> None:
    net = chain(8, 16, 8)
    net.w[: 8 * 16 + 16] = 0  # every s is 0
    x, dy = rng.normal(size=(16, 8)), rng.normal(size=(16, 8))
    for got, expected in zip(gs.vjp(on(fused, net), x)[1](dy), gs.vjp(net, x)[1](dy), strict=True):
        close(got, expected)
    assert not gs.vjp(on(fused, net), x)[1](dy)[0].any()


@pytest.mark.parametrize("h", [gs.relu, gelu_tanh])
def test_derivatives_of_every_kind(fused: str, rng: np.random.Generator, h: Any) -> None:
    net, cost = chain(6, 16, 24, 4, h=h), nn.CrossEntropyLoss()
    other = on(fused, net)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), rng.integers(0, 4, 40)
    dx, v = rng.normal(size=x.shape), rng.normal(size=net.w.size).astype(np.float32)
    calls = [
        lambda n: gs.jvp(n, x, dx)[1],
        lambda n: gs.jvp(n, x, dw=v)[1],
        lambda n: gs.linearize(n, x)[1](dx),
        lambda n: gs.jacobian(n, x),
        lambda n: gs.jacobian(n, x, wrt="w"),
        lambda n: gs.jacobian(n, x, wrt="layer1"),
        lambda n: gs.per_sample_grad(n, cost, x, y),
        lambda n: gs.per_sample_grad_norm(n, cost, x, y),
        lambda n: gs.clip_per_sample(n, cost, x, y, 0.1),
        lambda n: gs.fishervp(n, cost, x, y, v),
        lambda n: gs.ggnvp(n, cost, x, y, v),
        lambda n: gs.hvp(n, cost, x, y, v),
    ]
    for call in calls:
        expected = np.asarray(call(net))
        np.testing.assert_allclose(
            np.asarray(call(other)), expected, rtol=RTOL, atol=ATOL * (1 + np.abs(expected).max())
        )


def test_gradients_of_parts_add_up(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that goes through in parts: the first writes gradients, the others add."""
    monkeypatch.setenv("GRADSTACK_EMULATED_PART", "20000")
    monkeypatch.setenv("GRADSTACK_CUDA_EPILOGUES", "1")
    device = opened("all", cuda, monkeypatch)
    net, cost = chain(8, 16, 24, 4), nn.CrossEntropyLoss()
    x, y = rng.normal(size=(300, 8)), rng.integers(0, 4, 300)
    v = rng.normal(size=net.w.size)
    for f in (gs.fishervp, gs.ggnvp):
        expected = f(net, cost, x, y, v)
        close(f(on(device, net), cost, x, y, v), expected, 1 + np.abs(expected).max())


def test_data_in_chunks_have_the_same_bits(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSTACK_CUDA_EPILOGUES", "1")
    x, y = rng.normal(size=(150, 6)).astype(np.float32), rng.integers(0, 4, 150)
    net, found = chain(6, 24, 16, 4), []
    for chunk in (None, "1600"):
        if chunk:
            monkeypatch.setenv("GRADSTACK_STREAM_BYTES", chunk)
        other = net.copy()
        gs.fit(other, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(), device=cuda)
        found.append(other.w.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("call", "trials"),
    [
        ("a matrix product with a function", 2),
        ("a matrix product with a derivative", 1),
        ("a matrix product with a derivative and sums", 1),
        ("bias and bits", 2),
    ],
)
def test_which_calls_are_made(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, call: str, trials: int
) -> None:
    """Each is there with the switch (a trial aside, it fails when told to) and not without."""
    if not _device._load().emulated:
        pytest.skip("only the emulated device can be made to fail")
    library = {"bias and bits": "nan", "a matrix product with a derivative": "no sums"}
    x, y = rng.normal(size=(32, 8)), rng.integers(0, 4, 32)
    for epilogues, library_of in (("0", "all"), ("1", library.get(call, "all"))):
        monkeypatch.setenv("GRADSTACK_CUDA_EPILOGUES", epilogues)
        monkeypatch.setenv(
            "GRADSTACK_EMULATED_FAIL", f"{call}:{trials + 1 if int(epilogues) else 1}"
        )
        device = opened(library_of, cuda, monkeypatch)
        net = chain(8, 16, 24, 4)

        def train(net: nn.Module = net, device: str = device) -> None:
            gs.fit(net, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(), device=device)

        if epilogues == "0":
            train()
            continue
        with pytest.raises(RuntimeError, match="injected failure"):
            train()


def test_the_switch(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSTACK_CUDA_EPILOGUES", "yes")
    with pytest.raises(ValueError, match="GRADSTACK_CUDA_EPILOGUES is 'yes', expected 0 or 1"):
        nn.Linear(2, 1).to(cuda)(np.zeros((3, 2)))
