"""`minimize`: one call for all zeroth-order methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count, as_dtype, as_number, as_vector, require_finite
from gradstack.blackbox._methods import OWN, methods, run_own, run_restarted
from gradstack.blackbox._objective import Objective
from gradstack.blackbox._problem import Problem, SearchEndError
from gradstack.blackbox._result import Progress, Result

Array = npt.NDArray[Any]


def minimize(
    f: Callable[[Array], Any],
    x0: Any = None,
    *,
    method: str | None = None,
    maxfev: int = 10_000,
    seed: int | None = 0,
    step: Any = None,
    population: int | None = None,
    target: float | None = None,
    callback: Callable[[Progress], Any] | None = None,
) -> Result:
    """Minimise a function by its values alone.

    Parameters
    ----------
    f : callable, or Objective
        ``f(x)`` of a float64 vector (n,) is a number. NaN and infinity count as worse than any
        number. The populations of an `Objective` are evaluated in parallel by the core.
    x0 : array_like, (n,)
        Where to start; an `Objective` starts at its net's parameters unless told otherwise.
    method : str, optional
        One of `methods`. None is "es", in any dimension: of all methods it depends least on
        heights and widths of stairs, on scales and on noise. For a smooth function of few variables
        that are strongly coupled, "cma" needs fewer evaluations.

        - "es": evolution strategy with antithetic samples, rank shaping, adapted step and scales;
          starts again from the best point, wider or narrower, after 40 generations without a better
          one;
        - "spsa": simultaneous perturbation stochastic approximation;
        - "random": local random search;
        - "cma": CMA-ES, of the package cma;
        - "nelder-mead", "powell", "cobyla", "differential-evolution": of SciPy.

        Those of other packages (``pip install gradstack[blackbox]``) work in units of `step`, and
        are started again from the best point, wider or narrower, while evaluations are left.
    maxfev : int
        Evaluations of f that may be made, the one at x0 included. Never exceeded.
    seed : int or None
        The same seed gives the same search; None takes fresh entropy.
    step : float or array_like, (n,), optional
        Initial step, positive: about how far the minimum may be, or how wide stairs are; searches
        on a plateau widen it themselves. None: half the root mean square of x0, or 1 if that is 0.
    population : int, optional
        Points of a generation of "es" (default 4 + 3 log n), "spsa" (8) and "random" (8).
    target : float, optional
        Stop when a value is as low as this.
    callback : callable, optional
        ``callback(progress)`` is called whenever a lower value has been found (at the end of a
        generation for an `Objective`), with ``.x``, ``.fun``, ``.nfev``. If it returns something
        true, the search ends.

    Returns
    -------
    Result
        With ``.x``, ``.fun``, ``.nfev``, ``.success``, ``.message``; x is in the net's dtype for an
        `Objective`, in float64 otherwise. The net of an Objective is left alone: ``net.w =
        result.x`` takes the result.

    Raises
    ------
    ImportError
        The method is one of a package that is not installed.

    Notes
    -----
    Exceptions of f come out unchanged.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> stairs = lambda x: np.floor(np.abs(x - 3)).sum()
    >>> gs.blackbox.minimize(stairs, np.zeros(5), maxfev=2000).fun
    0.0
    """
    if not callable(f):
        raise TypeError(f"f must be callable, got {type(f).__name__}")
    if method is not None and method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
    name = method or "es"
    start = _read_x0(f, x0)
    count = as_count(maxfev, "maxfev")
    size = 0 if population is None else as_count(population, "population", low=2)
    number = _read_seed(seed)
    aim = None if target is None else as_number(target, "target")
    problem = Problem(f, start, np.ones(start.size), count, aim, callback)
    problem.scale = _read_step(step, start, problem.free)
    try:
        if name in OWN:
            message = run_own(problem, name, size, number)
        elif size:
            raise ValueError(f"population is an option of {', '.join(OWN)}, not of {name}")
        elif not problem.free.any():
            raise ValueError("f: all parameters of the net are frozen")
        else:
            message = run_restarted(problem, name, number)
    except SearchEndError as end:
        message = str(end)
    reached = aim is None or problem.fun <= aim
    return Result(
        problem.x.copy(),
        problem.fun,
        problem.nfev,
        math.isfinite(problem.fun) and reached,
        message,
        name,
    )


def _read_x0(f: Any, x0: Any) -> Array:
    if x0 is None:
        if not isinstance(f, Objective):
            raise TypeError("x0 is None, expected an array")
        return f.x0.copy()
    if isinstance(f, Objective):
        start = as_vector(x0, f.x0.size, f.x0.dtype, "x0").copy()
    else:
        start = np.atleast_1d(as_dtype(x0, np.dtype(np.float64), "x0")).copy()
        if start.ndim != 1 or not start.size:
            raise ValueError(f"x0 has shape {start.shape}, expected a vector (n,)")
    require_finite(start, "x0")
    return start


def _read_step(step: Any, x0: Array, free: Array) -> Array:
    if step is None:
        size = float(np.sqrt(np.mean(np.square(x0[free], dtype=np.float64)))) if free.any() else 0
        return np.full(x0.size, 0.5 * size if size > 0 else 1.0)
    scale = as_dtype(step, np.dtype(np.float64), "step")
    if scale.ndim and scale.shape != x0.shape:
        raise ValueError(f"step has shape {scale.shape}, expected a number or {x0.shape}")
    require_finite(np.atleast_1d(scale), "step")
    if not (scale > 0).all():
        raise ValueError(f"step must be positive, got {scale.min():g}")
    return np.broadcast_to(scale, x0.shape).copy()


def _read_seed(seed: Any) -> int:
    if seed is None:
        return int(np.random.default_rng().integers(0, 2**63))
    return as_count(seed, "seed", low=0) % 2**64
