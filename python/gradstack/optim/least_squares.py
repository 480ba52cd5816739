"""Gauss-Newton and Levenberg-Marquardt: steps to the minimum of a local quadratic model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstack._arrays import as_count, as_number
from gradstack._problem import BatchProblem
from gradstack.optim._quadratic import CG, Model, make_model, solver_arguments
from gradstack.optim.base import Array, positive
from gradstack.optim.python import PythonOptimizer
from gradstack.optim.schedules import Lr

_SMALLEST, _LARGEST = 1e-16, 1e16  # damping; beyond, steps vanish in rounding


class _ModelOptimizer(PythonOptimizer):
    """Base class of optimisers that minimise a model of the loss."""

    _refine = False

    def step(self, problem: Any, w: Array, lr: float) -> float:
        """One step on a batch, changing w in place; the loss before it."""
        loss = self._step(problem, w, lr)
        self.__dict__["_t"] += 1
        return loss

    def _model(self, problem: BatchProblem, w: Array) -> Model:
        clips = self.clip_norm is not None or self.clip_value is not None
        cg = CG(self.cg_tol, self.cg_max_iter)
        clip = self._clip if clips else None
        return make_model(problem, w, self.solver, cg, clip, refine=self._refine)


class GaussNewton(_ModelOptimizer):
    """Gauss-Newton: w <- w - lr (G + damping I)^-1 g, with G the generalised Gauss-Newton matrix.

    Meant for the full batch (``batch_size=None``). One step solves a linear least-squares problem.
    A net that is far from linear wants `LevenbergMarquardt`, which checks its steps.

    Parameters
    ----------
    lr : float or callable
        Part of the step to take.
    damping : float
        Added to the diagonal of G. With 0 the shortest of all minimising steps is taken.
    solver : str
        "exact": factorisation in float64, from the Jacobian (in float64; of a GPU in float32).
        "cg": conjugate gradients with products G v. "auto": exact up to 3000 parameters or
        residuals, whichever are fewer.
    cg_tol : float
        Conjugate gradients stop when the residual is this much smaller than the gradient.
    cg_max_iter : int
        Most products per step.
    clip_norm, clip_value : float, optional
        Limits of the gradient, applied before the system is solved.
    decay_bias : bool
        Without effect: nothing decays.

    Raises
    ------
    ValueError
        While training: the cost has no curvature (``L1Loss``), the net has dropout.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = nn.Linear(1, 1)
    >>> history = gs.fit(net, X, 3 * X - 1, cost=nn.MSELoss(), optimizer=optim.GaussNewton(),
    ...                  batch_size=None, epochs=1)
    >>> np.round(net.w, 6)
    array([ 3., -1.], dtype=float32)
    """

    _refine = True

    def __init__(
        self,
        lr: Lr = 1.0,
        damping: float = 0.0,
        solver: str = "auto",
        cg_tol: float = 1e-6,
        cg_max_iter: int = 500,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        arguments = {
            "damping": as_number(damping, "damping", low=0.0),
            **solver_arguments(solver, cg_tol, cg_max_iter),
        }
        super().__init__(lr, clip_norm, clip_value, decay_bias, arguments)

    def _step(self, problem: Any, w: Array, lr: float) -> float:
        model = self._model(problem, w)
        if not math.isfinite(model.loss) or not model.g.any():
            return model.loss
        if self.damping == 0 and model.scale == 0:
            raise ValueError(
                f"[GaussNewton] {problem.cost!r} has no curvature here: use LevenbergMarquardt, "
                "damping=, or a first-order method"
            )
        step = model.solve(self.damping)
        w += (lr * step.d).astype(w.dtype)
        return model.loss

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return {}, {}

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """There is no state."""


class LevenbergMarquardt(_ModelOptimizer):
    """Levenberg-Marquardt: Gauss-Newton steps, damped until they lower the loss.

    w <- w - (G + damping I)^-1 g. A step that would raise the loss is not made; it is tried again
    with more damping. How well the model predicted an accepted step sets the damping of the next
    one (Nielsen 1999, "Damping parameter in Marquardt's method"). Meant for the full batch
    (``batch_size=None``), and for nets of up to a few thousand parameters.

    Parameters
    ----------
    lr : float or callable
        Part of the step to try; 1 is the minimum of the model.
    damping : float
        Initial damping, relative to the largest diagonal entry of G.
    max_trials : int
        Solutions tried per step; when none lowers the loss, w stays and the damping has grown.
    solver, cg_tol, cg_max_iter
        As for `GaussNewton`.
    clip_norm, clip_value : float, optional
        Limits of the gradient, applied before the system is solved.
    decay_bias : bool
        Without effect: nothing decays.

    Attributes
    ----------
    current_damping : float
        Damping of the next trial, absolute; NaN before the first step.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> gs.seed(0)
    >>> X = np.linspace(-2, 2, 100)[:, None]
    >>> net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> history = gs.fit(net, X, np.sin(3 * X), cost=nn.MSELoss(), batch_size=None, epochs=50,
    ...                  optimizer=optim.LevenbergMarquardt())
    >>> history.loss[-1] < 1e-5
    True
    """

    def __init__(
        self,
        lr: Lr = 1.0,
        damping: float = 1e-3,
        max_trials: int = 12,
        solver: str = "auto",
        cg_tol: float = 1e-4,
        cg_max_iter: int = 200,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        arguments = {
            "damping": positive(damping, "damping"),
            "max_trials": as_count(max_trials, "max_trials"),
            **solver_arguments(solver, cg_tol, cg_max_iter),
        }
        super().__init__(lr, clip_norm, clip_value, decay_bias, arguments)

    def _start(self) -> None:
        super()._start()
        self._current = math.nan
        self._growth = 2.0

    @property
    def current_damping(self) -> float:
        """Damping of the next trial."""
        return self._current

    def _step(self, problem: Any, w: Array, lr: float) -> float:
        model = self._model(problem, w)
        if not math.isfinite(model.loss) or not model.g.any() or lr == 0:
            return model.loss
        if math.isnan(self._current):
            # Without any curvature the gradient's own size gives the scale.
            self._current = self.damping * (model.scale or float(np.linalg.norm(model.g)))
        # float32 losses would drown small improvements in rounding.
        exact = w.astype(np.float64)
        for _ in range(self.max_trials):
            step = model.solve(self._current)
            moved = (exact + lr * step.d).astype(w.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                loss = problem.value(moved.astype(np.float64))
            if loss < model.loss and math.isfinite(loss):
                w[...] = moved
                # Along a part of the step the model falls by lr (2 - lr) of the whole decrease.
                predicted = step.decrease * lr * (2.0 - lr) if lr < 1 else step.decrease
                self._accept((model.loss - loss) / predicted if predicted > 0 else 0.0)
                break
            self._reject()
            if not self._current < _LARGEST:
                break
        return model.loss

    def _accept(self, gain: float) -> None:
        factor = max(1.0 / 3.0, 1.0 - (2.0 * min(gain, 2.0) - 1.0) ** 3)
        self._current = max(self._current * factor, _SMALLEST)
        self._growth = 2.0

    def _reject(self) -> None:
        self._current = min(self._current * self._growth, _LARGEST)
        self._growth = min(2.0 * self._growth, 1e6)

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        # JSON has no NaN.
        current = None if math.isnan(self._current) else self._current
        return {}, {"current_damping": current, "growth": self._growth}

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        current = numbers["current_damping"]
        self._current = math.nan if current is None else float(current)
        self._growth = float(numbers["growth"])
