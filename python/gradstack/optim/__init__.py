"""Optimisers and learning-rate schedules, with PyTorch's formulas and names."""

from __future__ import annotations

from gradstack.optim import games, schedules
from gradstack.optim import rules as _rules
from gradstack.optim.base import Optimizer
from gradstack.optim.kfac import KFAC
from gradstack.optim.lbfgs import LBFGS
from gradstack.optim.least_squares import GaussNewton, LevenbergMarquardt
from gradstack.optim.preconditioned import Preconditioned
from gradstack.optim.rules import *  # noqa: F403

__all__ = [
    "KFAC",
    "LBFGS",
    "GaussNewton",
    "LevenbergMarquardt",
    "Optimizer",
    "Preconditioned",
    "games",
    "schedules",
]
__all__ += _rules.__all__
