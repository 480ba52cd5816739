"""A layer with few of its connections: from its edges, as a dense layer, and as SciPy's CSR."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradstack as gs
from bench.aims import Verdict
from bench.timing import Timing, interleave
from gradstack import nn

TOLERANCE = 1e-4  # of the largest entry


@dataclass(frozen=True)
class SparseCase:
    """One product of a layer with a share of its connections."""

    quantity: str  # forward | vjp
    share: float
    units: int = 1000
    batch: int = 128

    @property
    def name(self) -> str:
        """The case's title."""
        return f"sparse {self.quantity} {self.units}x{self.units} {self.share:.0%} b{self.batch}"


CASES = [SparseCase(what, share) for what in ("forward", "vjp") for share in (0.02, 0.05, 0.10)]


def measure(
    case: SparseCase, repeats: int, budget: float, peers: list[str]
) -> tuple[dict[str, Timing], list[Verdict]]:
    """Check all ways against a dense product in float64, then time them in turns."""
    rng = np.random.default_rng(0)
    n = case.units
    chosen = rng.choice(n * n, int(case.share * n * n), replace=False)
    sparse = nn.SparseLinear(n, n, np.stack(np.divmod(chosen, n), axis=1))
    x, dy = rng.standard_normal((2, case.batch, n)).astype(np.float32)
    matrix = sparse.dense()
    dense = nn.Linear(n, n)
    dense.weight[...], dense.bias[...] = matrix, sparse.bias
    wide = matrix.astype(np.float64)
    if case.quantity == "forward":
        expected = [x @ wide.T + sparse.bias]
        ways = {
            "gradstack": lambda: (sparse(x),),
            "gradstack, dense": lambda: (dense(x),),
            **scipy_forward(matrix, np.array(sparse.bias), x),
        }
    else:  # dC/dx; dC/dw of a dense layer has other entries
        expected = [dy @ wide]
        pull, pull_dense = gs.vjp(sparse, x)[1], gs.vjp(dense, x)[1]
        ways = {
            "gradstack": lambda: pull(dy),
            "gradstack, dense": lambda: pull_dense(dy),
            **scipy_vjp(matrix, x, dy, sparse.edges),
        }
    errors = {}
    for name, way in ways.items():
        errors[name] = float(np.abs(way()[0] - expected[0]).max() / np.abs(expected[0]).max())
        if not errors[name] <= TOLERANCE:
            raise AssertionError(f"{name} computed something else as {case.name}")
    runs = {
        name: functools.partial(_repeat, way)
        for name, way in ways.items()
        if name.startswith("gradstack") or not peers or any(peer in name for peer in peers)
    }
    return interleave(runs, errors, repeats, budget), []


def scipy_forward(matrix: Any, bias: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """The product with a CSR matrix."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return {}
    csr = csr_array(matrix)
    return {"scipy.sparse": lambda: ((csr @ x.T).T + bias,)}


def scipy_vjp(matrix: Any, x: Any, dy: Any, edges: Any) -> dict[str, Callable[[], Any]]:
    """The product with the transposed matrix, and the entries of dy^T x at the edges."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return {}
    transposed = csr_array(matrix.T)
    out, n = edges.T

    def way() -> Any:
        dx = (transposed @ dy.T).T
        return dx, np.einsum("be,be->e", dy[:, out], x[:, n]), dy.sum(axis=0)

    return {"scipy.sparse": way}


def _repeat(way: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        way()
