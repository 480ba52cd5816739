"""L-BFGS: a quasi-Newton method with limited memory, as PyTorch runs it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradstack._arrays import as_count, as_number
from gradstack.optim.base import Array, Problem
from gradstack.optim.python import PythonOptimizer
from gradstack.optim.schedules import Lr

# Along a search direction, from the step length: loss, gradient, slope.
_SUFFICIENT_DECREASE = 1e-4
_CURVATURE = 0.9
_MAX_SEARCH = 25
_SMALLEST_BRACKET = 1e-9


class LBFGS(PythonOptimizer):
    """L-BFGS (Nocedal, 1980), meant for the full batch (``batch_size=None``).

    One step of training makes up to `max_iter` iterations on its batch.

    Parameters
    ----------
    lr : float or callable
        Step length, the first trial of the line search.
    max_iter : int
        Iterations per step.
    max_eval : int, optional
        Evaluations of the loss per step, by default 5/4 of `max_iter`.
    tolerance_grad : float
        Stop when no entry of the gradient is larger.
    tolerance_change : float
        Stop when neither the loss nor any parameter changes by more.
    history_size : int
        Pairs of steps and gradient differences kept.
    line_search_fn : str, optional
        "strong_wolfe", or None for steps of length `lr`.
    clip_norm, clip_value : float, optional
        Limits of every gradient; the line search then sees another slope than the loss has.
    decay_bias : bool
        Without effect: nothing decays.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> net = nn.Linear(1, 1)
    >>> history = gs.fit(net, X, 3 * X - 1, cost=nn.MSELoss(), batch_size=None, epochs=2,
    ...                  optimizer=optim.LBFGS(line_search_fn="strong_wolfe"))
    >>> np.round(net.w, 3)
    array([ 3., -1.], dtype=float32)
    """

    def __init__(
        self,
        lr: Lr = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        if line_search_fn not in (None, "strong_wolfe"):
            raise ValueError(
                f"line_search_fn must be None or 'strong_wolfe', got {line_search_fn!r}"
            )
        iterations = as_count(max_iter, "max_iter")
        arguments = {
            "max_iter": iterations,
            "max_eval": iterations * 5 // 4 if max_eval is None else as_count(max_eval, "max_eval"),
            "tolerance_grad": as_number(tolerance_grad, "tolerance_grad", low=0.0),
            "tolerance_change": as_number(tolerance_change, "tolerance_change", low=0.0),
            "history_size": as_count(history_size, "history_size"),
            "line_search_fn": line_search_fn,
        }
        super().__init__(lr, clip_norm, clip_value, decay_bias, arguments)

    def _start(self) -> None:
        super()._start()
        self.__dict__["_memory"] = _Memory()

    def _step(self, problem: Problem, w: Array, lr: float) -> float:
        memory: _Memory = self._memory
        loss, g = problem.value_and_grad(w)
        first_loss = loss
        evaluations = 1
        if _largest(g) <= self.tolerance_grad or not math.isfinite(loss):
            return first_loss
        for iteration in range(1, self.max_iter + 1):
            direction = memory.direction(g, self.history_size)
            previous_loss, memory.g = loss, g
            length = lr
            if memory.iterations == 1:
                length *= min(1.0, 1.0 / float(np.abs(g).sum()))
            slope = float(g @ direction)
            memory.d, memory.t = direction, length
            if slope > -self.tolerance_change:
                break
            if self.line_search_fn is not None:
                start = _Trial(0.0, loss, g, slope)
                found, count = _search(_along(problem, w, direction), start, length, direction)
                loss, g, memory.t = found.f, found.g, found.t
                w += w.dtype.type(found.t) * direction
                evaluations += count
            else:
                w += w.dtype.type(length) * direction
                # The last iteration's gradient would never be used.
                if iteration < self.max_iter:
                    loss, g = problem.value_and_grad(w)
                    evaluations += 1
            if (
                iteration == self.max_iter
                or evaluations >= self.max_eval
                or _largest(g) <= self.tolerance_grad
                or _largest(direction * w.dtype.type(memory.t)) <= self.tolerance_change
                or abs(loss - previous_loss) < self.tolerance_change
            ):
                break
        return first_loss

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        memory: _Memory = self._memory
        if memory.g is None or memory.d is None:
            return {}, {}
        arrays = {"g": memory.g, "d": memory.d}
        for i, (s, y, _) in enumerate(memory.pairs):
            arrays[f"s{i}"], arrays[f"y{i}"] = s, y
        numbers = {
            "step_length": memory.t,
            "scale": memory.scale,
            "iterations": memory.iterations,
            "rho": [rho for _, _, rho in memory.pairs],
        }
        return arrays, numbers

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        memory = _Memory()
        if arrays:
            memory.g, memory.d = np.array(arrays["g"]), np.array(arrays["d"])
            memory.t, memory.scale = numbers["step_length"], numbers["scale"]
            memory.iterations = numbers["iterations"]
            for i, rho in enumerate(numbers["rho"]):
                memory.pairs.append((np.array(arrays[f"s{i}"]), np.array(arrays[f"y{i}"]), rho))
        self.__dict__["_memory"] = memory


class _Memory:
    """The pairs (s, y) of recent steps: an approximate inverse Hessian."""

    def __init__(self) -> None:
        self.pairs: deque[tuple[Array, Array, float]] = deque()  # s, y, 1 / (y s)
        self.scale = 1.0  # of the initial inverse Hessian
        self.g: Array | None = None  # gradient before the last step
        self.d: Array | None = None  # direction and length of the last step
        self.t = 0.0
        self.iterations = 0

    def direction(self, g: Array, size: int) -> Array:
        """Minus the approximate inverse Hessian times g, after taking in the last step."""
        self.iterations += 1
        if self.g is None or self.d is None:
            return -g
        y = g - self.g
        s = self.d * g.dtype.type(self.t)
        ys = float(y @ s)
        if ys > 1e-10:
            while len(self.pairs) >= size:
                self.pairs.popleft()
            self.pairs.append((s, y, 1.0 / ys))
            self.scale = ys / float(y @ y)
        real = g.dtype.type
        q = -g
        alphas = []
        for s_i, y_i, rho in reversed(self.pairs):
            alpha = float(s_i @ q) * rho
            q -= real(alpha) * y_i
            alphas.append(alpha)
        q *= real(self.scale)
        for (s_i, y_i, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            beta = float(y_i @ q) * rho
            q += real(alpha - beta) * s_i
        return q


def _largest(v: Array) -> float:
    return float(np.abs(v).max())


class _Trial(NamedTuple):
    """A point along the search direction."""

    t: float
    f: float
    g: Array
    slope: float


def _along(problem: Problem, w: Array, direction: Array) -> Callable[[float], _Trial]:
    origin = w.copy()

    def evaluate(t: float) -> _Trial:
        f, g = problem.value_and_grad(origin + origin.dtype.type(t) * direction)
        return _Trial(t, f, g, float(g @ direction))

    return evaluate


def _search(
    evaluate: Callable[[float], _Trial], start: _Trial, length: float, direction: Array
) -> tuple[_Trial, int]:
    """A step length that satisfies the strong Wolfe conditions, and the evaluations it took."""

    def too_high(trial: _Trial) -> bool:
        return trial.f > start.f + _SUFFICIENT_DECREASE * trial.t * start.slope

    def flat_enough(trial: _Trial) -> bool:
        return abs(trial.slope) <= -_CURVATURE * start.slope

    # Step out until an interval surely holds a good point.
    previous, trial = start, evaluate(length)
    count, rounds = 1, 0
    bracket: list[_Trial] | None = None
    while rounds < _MAX_SEARCH:
        if too_high(trial) or (rounds > 1 and trial.f >= previous.f):
            bracket = [previous, trial]
            break
        if flat_enough(trial):
            return trial, count
        if trial.slope >= 0:
            bracket = [previous, trial]
            break
        reach = (trial.t + 0.01 * (trial.t - previous.t), trial.t * 10)
        t = _interpolate(previous, trial, *reach)
        previous, trial = trial, evaluate(t)
        count += 1
        rounds += 1
    if bracket is None:
        bracket = [start, trial]

    # Shrink it; bracket[low] is the better end.
    low, high = _order(bracket)
    width = _largest(direction)
    stalled = False
    while rounds < _MAX_SEARCH:
        left, right = sorted((bracket[0].t, bracket[1].t))
        if (right - left) * width < _SMALLEST_BRACKET:
            break
        t = _interpolate(bracket[0], bracket[1], left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            # Close to an end twice in a row, or outside: move inwards.
            if stalled or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stalled = False
            else:
                stalled = True
        else:
            stalled = False
        trial = evaluate(t)
        count += 1
        rounds += 1
        if too_high(trial) or trial.f >= bracket[low].f:
            bracket[high] = trial
            low, high = _order(bracket)
            continue
        done = flat_enough(trial)
        if not done and trial.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = trial
        if done:
            break
    return bracket[low], count


def _order(bracket: list[_Trial]) -> tuple[int, int]:
    return (0, 1) if bracket[0].f <= bracket[1].f else (1, 0)


def _interpolate(a: _Trial, b: _Trial, lowest: float, highest: float) -> float:
    """Minimum of the cubic through two points with these slopes, within bounds.

    Nocedal and Wright, Numerical Optimization, 2nd edition, equation 3.59.
    """
    if a.t > b.t:
        a, b = b, a
    if a.t == b.t:
        return (lowest + highest) / 2.0
    d1 = a.slope + b.slope - 3.0 * (a.f - b.f) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return (lowest + highest) / 2.0
    d2 = math.sqrt(square)
    divisor = b.slope - a.slope + 2.0 * d2
    if divisor == 0.0:
        return (lowest + highest) / 2.0
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / divisor)
    return min(max(t, lowest), highest)
