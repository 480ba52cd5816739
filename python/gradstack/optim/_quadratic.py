"""The local model of a loss, L(w + d) ~ L + g d + d G d / 2, and its damped minimum.

G is the generalised Gauss-Newton matrix of the batch. Small problems are solved exactly, in float64
whatever the net's dtype; large ones by conjugate gradients with products G v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from gradstack._arrays import as_count, as_number
from gradstack._problem import BatchProblem
from gradstack.optim.base import Array

SOLVERS = ("auto", "exact", "cg")
_EXACT_SIZE = 3000  # unknowns or residuals, whichever are fewer
_EXACT_VALUES = 1 << 26  # of a wide Jacobian, which is kept whole, or of the cost's Hessians

_GRAM_ROUNDING = 1e-15  # an eigenvalue of A^T A below this times the largest is none
_BLOCK = 64  # unknowns that a triangular solve takes at once


class Step(NamedTuple):
    """A step and what the model says of it."""

    d: Array  # (P,), float64
    decrease: float  # of the model, positive


class Model(Protocol):
    """A loss around one point."""

    loss: float
    g: Array  # (P,), float64, clipped

    @property
    def scale(self) -> float:
        """Largest diagonal entry of G, or an estimate of its size."""

    def solve(self, damping: float) -> Step:
        """The minimum of the model plus damping ||d||^2 / 2."""


class CG(NamedTuple):
    """When conjugate gradients stop."""

    tol: float  # residual relative to the gradient
    max_iter: int


def solver_arguments(solver: Any, cg_tol: Any, cg_max_iter: Any) -> dict[str, Any]:
    """Check the arguments that say how models are solved."""
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    tol = as_number(cg_tol, "cg_tol")
    if not 0 < tol < 1:
        raise ValueError(f"cg_tol must be in (0, 1), got {tol:g}")
    return {"solver": solver, "cg_tol": tol, "cg_max_iter": as_count(cg_max_iter, "cg_max_iter")}


def make_model(
    problem: BatchProblem,
    w: Array,
    solver: str,
    cg: CG,
    clip: Callable[[Array], Array] | None,
    *,
    refine: bool,
) -> Model:
    """The model of a batch's loss at w.

    `clip` changes the gradient, None leaves it. `refine` asks for undamped minima as accurate as
    the Jacobian allows, at the price of a QR factorisation.
    """
    if problem.compiled.has_dropout:
        raise ValueError(
            "Gauss-Newton methods see the net without dropout: remove the Dropout blocks"
        )
    if any(problem.compiled.discrete):
        raise ValueError("the output of NearestNeighbour is discrete and has no Jacobian")
    free = np.setdiff1d(np.arange(w.size), problem.held)
    if solver == "exact" or (solver == "auto" and _is_small(problem, free.size)):
        return _Exact(problem, w.astype(np.float64), free, clip, refine)
    return _Iterative(problem, w, free, clip, cg)


def _is_small(problem: BatchProblem, unknowns: int) -> bool:
    d = problem.compiled.out_sizes[0]
    residuals = problem.count * d
    if residuals * d > _EXACT_VALUES:
        return False
    if residuals <= unknowns:
        return residuals <= _EXACT_SIZE and residuals * unknowns <= _EXACT_VALUES
    return unknowns <= _EXACT_SIZE


class _Exact:
    """The model from Jacobians, G = A^T A.

    With more residuals than unknowns `_gram` is G, added up from chunks of samples; `refine` goes
    by way of the triangle R with R^T R = G. Otherwise A is kept (`_rows`), and `_gram` is A A^T.
    """

    def __init__(
        self,
        problem: BatchProblem,
        w: Array,
        free: Array,
        clip: Callable[[Array], Array] | None,
        refine: bool,
    ) -> None:
        self._free = free
        self._size = w.size
        self._tolerance = problem.rank_tolerance
        ybar = problem.outputs(w)
        cost = problem.curvature(w, ybar)
        self.loss = cost.loss
        residual = cost.root.residual(cost.gradient)
        n = free.size
        self._wide = ybar.size <= n
        self._rows = np.empty((ybar.size, n)) if self._wide else np.empty((0, n))
        self._r = None if residual is None else residual.reshape(-1)
        self._gram = np.empty((0, 0)) if self._wide else np.zeros((n, n))
        reduce = refine and not self._wide and residual is not None
        triangle: Array = np.empty((0, n + 1))  # [R | Q^T r]
        g = np.zeros(n)
        d = ybar.shape[1]
        for part, whole in problem.jacobian_chunks(w):
            jacobian = whole if n == w.size else whole[:, :, free]
            g += jacobian.reshape(-1, n).T @ cost.gradient[part].reshape(-1)
            rows = cost.root.rows(jacobian, part)
            if self._wide:
                self._rows[part.start * d : part.start * d + len(rows)] = rows
            elif reduce and self._r is not None:
                r = self._r[part.start * d : part.start * d + len(rows)]
                below = np.column_stack([rows, r])
                triangle = _triangle(np.concatenate([triangle, below]))
            else:
                self._gram += rows.T @ rows
        if reduce:
            self._gram = triangle[:, :-1].T @ triangle[:, :-1]
        elif self._wide:
            self._gram = self._rows @ self._rows.T
        self._triangle = triangle if reduce else None
        self._g = g
        if clip is not None:
            self._g = clip(g.copy())
            if not np.array_equal(self._g, g):
                # The clipped gradient need not be A^T times anything.
                self._r = self._triangle = None
        self.g = self._expand(self._g)

    @property
    def scale(self) -> float:
        if self._wide:
            return float(np.einsum("ij,ij->j", self._rows, self._rows).max(initial=0.0))
        return float(np.diagonal(self._gram).max(initial=0.0))

    def solve(self, damping: float) -> Step:
        d = self._damped(damping) if damping > 0 else self._undamped()
        # G d = -g - damping d at the minimum.
        decrease = 0.5 * (damping * float(d @ d) - float(self._g @ d))
        return Step(self._expand(d), decrease)

    def _damped(self, damping: float) -> Array:
        if not self._wide:
            return _solve_positive(self._gram, damping, -self._g)
        if self._r is not None:
            return -self._rows.T @ _solve_positive(self._gram, damping, self._r)
        inner = _solve_positive(self._gram, damping, self._rows @ self._g)
        return (self._rows.T @ inner - self._g) / damping

    def _undamped(self) -> Array:
        """The shortest of the minima."""
        if self._wide and self._r is not None:
            return self._shortest(self._rows, -self._r)
        if self._triangle is not None:
            return self._shortest(self._triangle[:, :-1], -self._triangle[:, -1])
        gram = self._rows.T @ self._rows if self._wide else self._gram
        # Its eigenvalues are squares of the Jacobian's singular values.
        least = max(_GRAM_ROUNDING, self._tolerance(len(gram)) ** 2)
        return -np.linalg.pinv(gram, least, hermitian=True) @ self._g

    def _shortest(self, matrix: Array, right: Array) -> Array:
        return np.linalg.lstsq(matrix, right, rcond=self._tolerance(max(matrix.shape)))[0]

    def _expand(self, v: Array) -> Array:
        full = np.zeros(self._size)
        full[self._free] = v
        return full


def _triangle(matrix: Array) -> Array:
    """R of the QR factorisation."""
    r: Any = np.linalg.qr(matrix, mode="r")
    return np.asarray(r)


def _solve_positive(matrix: Array, damping: float, right: Array) -> Array:
    """(matrix + damping I)^-1 right, for a positive semi-definite matrix."""
    damped = matrix.copy()
    damped.flat[:: len(matrix) + 1] += damping
    try:
        lower = np.linalg.cholesky(damped)
    except np.linalg.LinAlgError:
        # Damping below rounding does not make a singular matrix regular.
        return np.linalg.lstsq(damped, right, rcond=None)[0]
    half = _solve_lower(lower, right)
    # L^T, with rows and columns reversed, is lower triangular again.
    return _solve_lower(lower.T[::-1, ::-1], half[::-1])[::-1]


def _solve_lower(lower: Array, right: Array) -> Array:
    """Forward substitution, block by block: NumPy has no triangular solver."""
    solution = right.copy()
    for begin in range(0, len(right), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        solution[part] -= lower[part, :begin] @ solution[:begin]
        solution[part] = np.linalg.solve(lower[part, part], solution[part])
    return solution


class _Iterative:
    """The model from products, in the net's dtype, with vectors in float64."""

    def __init__(
        self,
        problem: BatchProblem,
        w: Array,
        free: Array,
        clip: Callable[[Array], Array] | None,
        cg: CG,
    ) -> None:
        self._problem = problem
        self._w = w
        self._held = np.ones(w.size, bool)
        self._held[free] = False
        self._cg = cg
        # In float64 like every loss that it is compared with.
        self.loss = problem.value(w.astype(np.float64))
        g = problem.value_and_grad(w)[1]
        if clip is not None:
            g = clip(g)
        self.g = g.astype(np.float64)
        self.g[self._held] = 0

    @property
    def scale(self) -> float:
        norm = float(np.linalg.norm(self.g))
        if norm == 0:
            return 0.0
        direction = self.g / norm
        return float(direction @ self._product(direction))

    def _product(self, v: Array) -> Array:
        # Normalised, so that nothing under- or overflows in float32.
        norm = float(np.linalg.norm(v))
        if norm == 0:
            return np.zeros_like(v)
        product = self._problem.ggn_product(self._w, (v / norm).astype(self._w.dtype))
        result = product.astype(np.float64) * norm
        result[self._held] = 0
        return result

    def solve(self, damping: float) -> Step:
        d = np.zeros_like(self.g)
        residual = -self.g  # of (G + damping) d = -g
        direction = residual.copy()
        square = float(residual @ residual)
        stop = (self._cg.tol**2) * square
        for _ in range(self._cg.max_iter):
            if square <= stop or square == 0:
                break
            bent = self._product(direction) + damping * direction
            curvature = float(direction @ bent)
            if curvature <= np.finfo(self._w.dtype).eps * damping * float(direction @ direction):
                break  # flat to rounding: nothing is gained along it
            length = square / curvature
            d += length * direction
            residual -= length * bent
            previous, square = square, float(residual @ residual)
            direction = residual + (square / previous) * direction
        decrease = 0.5 * (damping * float(d @ d) - float(self.g @ d) + float(residual @ d))
        return Step(d, decrease)
