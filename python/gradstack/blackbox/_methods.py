"""The methods by name: our own, and those of SciPy and cma in units of the initial step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack._compiled import core_for

if TYPE_CHECKING:
    from gradstack.blackbox._problem import Problem

Array = npt.NDArray[Any]
Function = Callable[[Array], float]

OWN = ("es", "spsa", "random")


def run_own(problem: Problem, method: str, population: int, seed: int) -> str:
    """Run a method of the core until the budget is used."""
    core = core_for(problem.x0.dtype)
    scale = np.where(problem.free, problem.scale, 0).astype(problem.x0.dtype)
    search = core.Search(method, problem.x0, scale, population, problem.maxfev, seed)
    while problem.advance(search):
        pass
    return "the evaluations left are too few for another generation"


def _nelder_mead(f: Function, n: int, width: float, rng: np.random.Generator) -> None:
    from scipy.optimize import minimize

    # Each start has axes of its own: on stairs the one that did not help must not come again.
    axes, _ = np.linalg.qr(rng.standard_normal((n, n)))
    simplex = np.vstack([np.zeros(n), width * np.sqrt(n) * axes])
    options = {
        "initial_simplex": simplex,
        "adaptive": n > 4,
        "xatol": 1e-2 * width,
        "fatol": np.inf,
        **_without_limits(),
    }
    minimize(f, np.zeros(n), method="Nelder-Mead", options=options)


def _powell(f: Function, n: int, width: float, rng: np.random.Generator) -> None:
    from scipy.optimize import minimize

    options = {"direc": width * np.eye(n), **_without_limits()}
    minimize(f, np.zeros(n), method="Powell", options=options)


def _cobyla(f: Function, n: int, width: float, rng: np.random.Generator) -> None:
    from scipy.optimize import minimize

    options = {"rhobeg": width, "tol": 1e-4 * width, "maxiter": _UNLIMITED}
    minimize(f, np.zeros(n), method="COBYLA", options=options)


def _differential_evolution(f: Function, n: int, width: float, rng: np.random.Generator) -> None:
    from scipy.optimize import differential_evolution

    # Its name for the generator changed in SciPy 1.15.
    known = inspect.signature(differential_evolution).parameters
    options: dict[str, Any] = {"rng" if "rng" in known else "seed": rng}
    reach = 8 * width
    differential_evolution(
        f,
        [(-reach, reach)] * n,
        x0=np.zeros(n),
        popsize=max(1, 40 // n),
        maxiter=_UNLIMITED,
        polish=False,
        **options,
    )


def _cma(f: Function, n: int, width: float, rng: np.random.Generator) -> None:
    import cma

    # Not seeding keeps NumPy's global generator, which is the user's, as it is.
    options = {"verbose": -9, "seed": np.nan, "randn": lambda *shape: rng.standard_normal(shape)}
    strategy = cma.CMAEvolutionStrategy(np.zeros(n), width, options)
    while not strategy.stop():
        points = strategy.ask()
        strategy.tell(points, [f(x) for x in points])


_UNLIMITED = 1_000_000_000  # the budget ends the search


def _without_limits() -> dict[str, Any]:
    return {"maxiter": _UNLIMITED, "maxfev": _UNLIMITED}


LOCAL: dict[str, tuple[str, Callable[[Function, int, float, np.random.Generator], None]]] = {
    "cma": ("cma", _cma),
    "nelder-mead": ("scipy", _nelder_mead),
    "powell": ("scipy", _powell),
    "cobyla": ("scipy", _cobyla),
    "differential-evolution": ("scipy", _differential_evolution),
}

methods = (*OWN, *LOCAL)


def _widths() -> Iterator[float]:
    """Widths of restarts that bring nothing new: wider and narrower in turn."""
    for exponent in (1, 2, -1, 3, -2, 4, -3, 5):
        yield 4.0**exponent


def run_restarted(problem: Problem, method: str, seed: int) -> str:
    """Run a method of another package, again and again from the best point."""
    package, run = LOCAL[method]
    try:
        __import__(package)
    except ImportError:
        raise ImportError(
            f"method {method!r} needs the package {package}: pip install gradstack[blackbox]"
        ) from None
    rng = np.random.default_rng(seed)
    problem.value(problem.x0)
    base = width = 1.0
    widths = _widths()
    while True:
        before = problem.fun
        start = problem.best_free()
        run(problem.from_start(start), start.size, width, rng)
        if problem.fun < before:
            base, widths = width, _widths()
        else:
            width = base * next(widths, 0.0)
            if width == 0.0:
                return "restarts with wider and narrower steps found nothing better"
