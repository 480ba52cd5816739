"""gs.export_c of every row of the op table, against PyTorch and against the limits at infinity."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from c_headers import compile_nets, dtypes, needs_compiler, traced
from gradstack import _core
from random_nets import OneOp

pytestmark = needs_compiler

OPS = [row["name"] for row in _core.ops()]
INF = math.inf
# h(-inf) and h(inf): the limits.
LIMITS = {
    "identity": (-INF, INF),
    "relu": (0, INF),
    "leaky_relu": (-INF, INF),
    "elu": (-1, INF),
    "selu": (-1.6732632423543772848 * 1.0507009873554804934, INF),
    "celu": (-1, INF),
    "gelu": (0, INF),
    "gelu_tanh": (0, INF),
    "silu": (0, INF),
    "mish": (0, INF),
    "softplus": (0, INF),
    "softsign": (-1, 1),
    "sigmoid": (0, 1),
    "log_sigmoid": (-INF, 0),
    "tanh": (-1, 1),
    "tanhshrink": (-INF, INF),
    "hardtanh": (-1, 1),
    "relu6": (0, 6),
    "hardsigmoid": (0, 1),
    "hardswish": (0, INF),
    "sine": (math.nan, math.nan),
    "affine": (-INF, INF),
    "reciprocal": (0, 0),
}


@dtypes
def test_every_op(dtype: Any, tmp_path: pathlib.Path) -> None:
    oracles = pytest.importorskip("test_ops_oracle", reason="the oracle is not installed")
    nets = {
        f"op{k}_{name}": traced(OneOp(name, params, dtype), (1,))
        for k, (name, params, _) in enumerate(oracles.CASES)
    }
    run = compile_nets(tmp_path, nets)
    assert {name for name, *_ in oracles.CASES} == set(OPS)
    for key, (name, params, kinks) in zip(nets, oracles.CASES, strict=True):
        s = np.concatenate([oracles.moderate(name, kinks, dtype), oracles.far(dtype)])
        got = run[key](s)[:, 0]
        expected, _ = oracles.oracle(name, params, s)
        known = np.isfinite(expected)  # PyTorch's own formulas overflow in places
        assert known.mean() > 0.9
        assert np.isfinite(got).all(), name
        rtol = 16 * float(np.finfo(dtype).eps)
        oracles.assert_close(got[known], expected[known], s[known], rtol)
        if name in oracles.PIECEWISE:
            np.testing.assert_array_equal(got[expected == 0], 0)


@dtypes
def test_infinities_and_nan(dtype: Any, tmp_path: pathlib.Path) -> None:
    assert set(LIMITS) == set(OPS)
    defaults = {row["name"]: [value for _, value in row["params"]] for row in _core.ops()}
    nets = {op: traced(OneOp(op, defaults[op], dtype), (1,)) for op in OPS}
    run = compile_nets(tmp_path, nets)
    for op, limits in LIMITS.items():
        got = run[op](np.array([-INF, INF, math.nan]))[:, 0]
        np.testing.assert_allclose(got, [*limits, math.nan], rtol=1e-6, err_msg=op)
