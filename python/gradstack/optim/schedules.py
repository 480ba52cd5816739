"""Learning-rate schedules: callables of the step, which starts at 0.

Steps count updates, not epochs. Any other callable of an int serves as well; these can be compared,
printed and pickled, so that a checkpoint knows them again.

Examples
--------
>>> from gradstack.optim import schedules
>>> lr = schedules.cosine(0.1, total_steps=100)
>>> lr(0), lr(50), lr(100)
(0.1, 0.05, 0.0)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from gradstack._arrays import as_count, as_number

Lr = float | Callable[[int], float]


class Schedule:
    """A learning rate as a function of the step, defined by a formula's name and arguments.

    Made by the functions of this module; ``schedule(step)`` is the rate. Two are equal when both
    name and arguments are.

    Parameters
    ----------
    name : str
        One of this module's functions.
    **arguments
        What it was called with.
    """

    __slots__ = ("arguments", "name")

    def __init__(self, name: str, **arguments: Any) -> None:
        self.name = name
        self.arguments = arguments

    def __call__(self, step: int) -> float:
        """The rate at `step`."""
        return float(_FORMULAS[self.name](step, **self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and (self.name, self.arguments) == (
            other.name,
            other.arguments,
        )

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        return f"{self.name}({arguments})"


def _rate(value: Any, name: str = "lr") -> float:
    return as_number(value, name, low=0.0)


def constant(lr: float) -> Schedule:
    """The same rate at every step.

    Parameters
    ----------
    lr : float

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule("constant", lr=_rate(lr))


def step(lr: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """lr * gamma ** (step // step_size).

    Parameters
    ----------
    lr : float
        The rate at step 0.
    step_size : int
        Steps between drops.
    gamma : float
        Factor of each.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule(
        "step",
        lr=_rate(lr),
        step_size=as_count(step_size, "step_size"),
        gamma=_rate(gamma, "gamma"),
    )


def multistep(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """lr * gamma ** (number of milestones reached).

    Parameters
    ----------
    lr : float
        The rate at step 0.
    milestones : sequence of int
        Steps at which the rate drops.
    gamma : float
        Factor of each.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    marks = tuple(sorted(as_count(m, "milestones", low=0) for m in milestones))
    return Schedule("multistep", lr=_rate(lr), milestones=marks, gamma=_rate(gamma, "gamma"))


def exponential(lr: float, gamma: float) -> Schedule:
    """lr * gamma ** step.

    Parameters
    ----------
    lr : float
        The rate at step 0.
    gamma : float
        Factor of each step.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule("exponential", lr=_rate(lr), gamma=_rate(gamma, "gamma"))


def linear(lr: float, total_steps: int, final: float = 0.0) -> Schedule:
    """A straight line from lr to `final`, reached at `total_steps` and kept.

    Parameters
    ----------
    lr : float
        The rate at step 0.
    total_steps : int
        Steps until `final` is reached.
    final : float
        The last rate, kept from then on.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule(
        "linear",
        lr=_rate(lr),
        total_steps=as_count(total_steps, "total_steps"),
        final=_rate(final, "final"),
    )


def polynomial(lr: float, total_steps: int, power: float = 1.0, final: float = 0.0) -> Schedule:
    """final + (lr - final) * (1 - step / total_steps) ** power, then `final`.

    Parameters
    ----------
    lr : float
        The rate at step 0.
    total_steps : int
        Steps until `final` is reached.
    power : float
        1 is a straight line.
    final : float
        The last rate, kept from then on.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule(
        "polynomial",
        lr=_rate(lr),
        total_steps=as_count(total_steps, "total_steps"),
        power=_rate(power, "power"),
        final=_rate(final, "final"),
    )


def cosine(lr: float, total_steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from lr to `final`, reached at `total_steps` and kept.

    Parameters
    ----------
    lr : float
        The rate at step 0.
    total_steps : int
        Steps until `final` is reached.
    final : float
        The last rate, kept from then on.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule(
        "cosine",
        lr=_rate(lr),
        total_steps=as_count(total_steps, "total_steps"),
        final=_rate(final, "final"),
    )


def warmup(lr: Lr, steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` to the first rate of `lr` during `steps`, then `lr`.

    Parameters
    ----------
    lr : float or callable
        A number, or another schedule, whose step 0 is the end of the warm-up.
    steps : int
        Length of the warm-up.
    start : float
        The rate at step 0.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    inner: Lr = lr if callable(lr) else _rate(lr)
    return Schedule("warmup", lr=inner, steps=as_count(steps, "steps"), start=_rate(start, "start"))


def one_cycle(
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Cosines from max_lr / div_factor up to max_lr, and down to the start over final_div_factor.

    Smith and Topin, 2018.

    Parameters
    ----------
    max_lr : float
        The peak.
    total_steps : int
        At least 2.
    pct_start : float
        In [0, 1]: the fraction of the steps before the peak.
    div_factor : float
        The rate starts at max_lr / div_factor.
    final_div_factor : float
        It ends at the start's rate over final_div_factor.

    Returns
    -------
    Schedule
        The rate as a function of the step.
    """
    return Schedule(
        "one_cycle",
        max_lr=_rate(max_lr, "max_lr"),
        total_steps=as_count(total_steps, "total_steps", low=2),
        pct_start=as_number(pct_start, "pct_start", low=0.0, high=1.0),
        div_factor=as_number(div_factor, "div_factor", low=1.0),
        final_div_factor=as_number(final_div_factor, "final_div_factor", low=1.0),
    )


def _half_cosine(begin: float, end: float, fraction: float) -> float:
    return end + (begin - end) * (1.0 + math.cos(math.pi * fraction)) / 2.0


def _one_cycle(
    step: int,
    max_lr: float,
    total_steps: int,
    pct_start: float,
    div_factor: float,
    final_div_factor: float,
) -> float:
    start = max_lr / div_factor
    final = start / final_div_factor
    peak = pct_start * total_steps - 1.0
    last = total_steps - 1.0
    if step <= peak and peak > 0:
        return _half_cosine(start, max_lr, step / peak)
    begin = max(peak, 0.0)
    fraction = 1.0 if last <= begin else (step - begin) / (last - begin)
    return _half_cosine(max_lr, final, min(fraction, 1.0))


def _warmup(step: int, lr: Lr, steps: int, start: float) -> float:
    target = lr(max(0, step - steps)) if callable(lr) else lr
    return target if step >= steps else start + (target - start) * step / steps


def _cosine(step: int, lr: float, total_steps: int, final: float) -> float:
    fraction = min(step / total_steps, 1.0)
    return final if fraction == 1.0 else _half_cosine(lr, final, fraction)


def _polynomial(step: int, lr: float, total_steps: int, power: float, final: float) -> float:
    return float(final + (lr - final) * (1.0 - min(step / total_steps, 1.0)) ** power)


_FORMULAS: dict[str, Callable[..., float]] = {
    "constant": lambda step, lr: lr,
    "step": lambda step, lr, step_size, gamma: lr * gamma ** (step // step_size),
    "multistep": lambda step, lr, milestones, gamma: lr * gamma ** bisect_right(milestones, step),
    "exponential": lambda step, lr, gamma: lr * gamma**step,
    "linear": lambda step, lr, total_steps, final: lr + (final - lr) * min(step / total_steps, 1.0),
    "polynomial": _polynomial,
    "cosine": _cosine,
    "warmup": _warmup,
    "one_cycle": _one_cycle,
}
