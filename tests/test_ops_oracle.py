"""Every row of the op table against PyTorch: value and derivative, at kinks and far out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradstack import _core

torch = pytest.importorskip("torch", reason="the oracle is not installed")
functional = torch.nn.functional


def celu(s: Any, alpha: float) -> Any:
    """PyTorch's formula; its own derivative is computed with a float32 alpha."""
    return torch.where(s > 0, s, alpha * torch.expm1(s.clamp(max=0) / alpha))


# Torch functions under the table's names, taking the table's parameters; and the kinks.
ORACLES: dict[str, Callable[..., Any]] = {
    "identity": lambda s: s * 1,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": celu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda s: functional.gelu(s, approximate="tanh"),
    "silu": functional.silu,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": functional.logsigmoid,
    "tanh": torch.tanh,
    "tanhshrink": functional.tanhshrink,
    "hardtanh": functional.hardtanh,
    "relu6": functional.relu6,
    # torch.hardsigmoid's derivative is a float32 1/6.
    "hardsigmoid": lambda s: functional.hardtanh(s, -3, 3) / 6 + 0.5,
    "hardswish": functional.hardswish,
    "sine": torch.sin,
    "affine": lambda s, a, b: a * s + b,
    "reciprocal": lambda s, c: c / s,
}
KINKS: dict[str, list[float]] = {
    "relu6": [6.0],
    "hardtanh": [-1.0, 1.0],
    "hardsigmoid": [-3.0, 3.0],
    "hardswish": [-3.0, 3.0],
    "softplus": [20.0],
}
# Zero is exactly zero here: dead units stay dead.
PIECEWISE = {"relu", "leaky_relu", "hardtanh", "relu6", "hardsigmoid", "hardswish"}
# Parameters beside the defaults, and the kinks that come with them.
VARIANTS: dict[str, list[tuple[list[float], list[float]]]] = {
    "leaky_relu": [([0.3], []), ([-0.2], []), ([0.0], [])],
    "elu": [([1.7], []), ([0.3], [])],
    "celu": [([2.5], []), ([0.3], [])],
    "softplus": [([2.0, 5.0], [2.5]), ([0.5, 30.0], [60.0])],
    "hardtanh": [([-0.5, 2.0], [-0.5, 2.0]), ([0.0, 6.0], [6.0])],
    "affine": [([-1.5, 0.25], []), ([0.0, 3.0], []), ([-1.0, 0.0], [])],
    "reciprocal": [([-2.5], [])],
}
TABLE = {row["name"]: [value for _, value in row["params"]] for row in _core.ops()}
CASES = [
    (name, params, KINKS.get(name, []) if i == 0 else kinks)
    for name, defaults in TABLE.items()
    for i, (params, kinks) in enumerate([(defaults, []), *VARIANTS.get(name, [])])
]
_IDS = [f"{name}-{','.join(f'{p:g}' for p in params)}" for name, params, _ in CASES]


def test_every_op_has_an_oracle() -> None:
    assert set(ORACLES) == set(TABLE)
    assert set(VARIANTS) == {name for name, params in TABLE.items() if params}


def run(name: str, params: list[float], s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative at s from the library, one stage with one feature."""
    graph = _core.Graph()
    graph.add("input", "s", [], shape=(1,))
    graph.add("pointwise", "z", ["s"], op=name, params=params)
    graph.finish(["z"])
    core = _core.f64 if s.dtype == np.float64 else _core.f32
    pullback = core.Program(graph).vjp(np.empty(0, s.dtype), [s[:, None]])
    dxs, _ = pullback.pull([np.ones((s.size, 1), s.dtype)], want_dx=True, want_dw=False)
    return np.array(pullback.outputs[0])[:, 0], np.array(dxs[0])[:, 0]


def oracle(name: str, params: list[float], s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative at s from PyTorch, in float64."""
    x = torch.tensor(s.astype(np.float64), requires_grad=True)
    z = ORACLES[name](x, *params)
    (dx,) = torch.autograd.grad(z.sum(), x)
    return z.detach().numpy(), dx.numpy()


def moderate(name: str, kinks: list[float], dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    points = [rng.normal(size=400) * 3, np.linspace(-12, 12, 401)]
    tiny = [1e-3, 1e-6, 1e-10, 1e-20, 1e-30]
    exact = [0.0, -0.0, *tiny, *(-t for t in tiny)]
    for kink in kinks:
        exact += [kink, np.nextafter(dtype(kink), dtype(-99)), np.nextafter(dtype(kink), dtype(99))]
    s = np.concatenate([*points, exact]).astype(dtype)
    return s[np.abs(s) > 1e-4] if name == "reciprocal" else s


def far(dtype: type) -> np.ndarray:
    s = np.array([13, 20, 30, 50, 88, 89, 103, 104, 300, 709, 745, 1e3, 1e4, 1e6, 1e10, 1e18])
    if dtype is np.float64:
        s = np.concatenate([s, [1e100, 1e154, 1e155, 1e300]])
    return np.concatenate([s, -s]).astype(dtype)


def assert_close(got: np.ndarray, expected: np.ndarray, s: np.ndarray, rtol: float) -> None:
    """Relative to each entry, but never finer than rtol near 1."""
    error = np.abs(got - expected) / np.maximum(np.abs(expected), 1)
    worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
    assert error[worst] <= rtol, f"s = {s[worst]!r}: {got[worst]!r}, torch {expected[worst]!r}"


@pytest.mark.parametrize(("name", "params", "kinks"), CASES, ids=_IDS)
def test_float64(name: str, params: list[float], kinks: list[float]) -> None:
    s = moderate(name, kinks, np.float64)
    for got, expected in zip(run(name, params, s), oracle(name, params, s), strict=True):
        assert got.dtype == np.float64
        assert_close(got, expected, s, 1e-10)
        if name in PIECEWISE:
            np.testing.assert_array_equal(got[expected == 0], 0)


@pytest.mark.parametrize(("name", "params", "kinks"), CASES, ids=_IDS)
def test_float32_to_rounding(name: str, params: list[float], kinks: list[float]) -> None:
    s = moderate(name, kinks, np.float32)
    for got, expected in zip(run(name, params, s), oracle(name, params, s), strict=True):
        assert got.dtype == np.float32
        # A function of s is known no better than s itself: |s h'| eps, and a few roundings more.
        assert_close(got, expected, s, 16 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "params", "kinks"), CASES, ids=_IDS)
def test_far_out(name: str, params: list[float], kinks: list[float], dtype: type) -> None:
    s = far(dtype)
    rtol = 1e-10 if dtype is np.float64 else 16 * np.finfo(np.float32).eps
    for got, expected in zip(run(name, params, s), oracle(name, params, s), strict=True):
        assert np.isfinite(got).all()
        # PyTorch's own formulas overflow in places, where the true value is known to be finite.
        known = np.isfinite(expected)
        assert known.mean() > 0.7
        assert_close(got[known], expected[known], s[known], rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "params", "kinks"), CASES, ids=_IDS)
def test_nan_stays_nan(name: str, params: list[float], kinks: list[float], dtype: type) -> None:
    value, _ = run(name, params, np.array([np.nan, 1.0, np.nan], dtype))
    np.testing.assert_array_equal(np.isnan(value), [True, False, True])
