"""Derivatives beyond the training gradient."""

from __future__ import annotations

from gradstack._calculus._curvature import ggn, ggnvp, hessian, hvp
from gradstack._calculus._input import Derivatives, derivatives, hessian_x, laplacian
from gradstack._calculus._jacobian import jacobian
from gradstack._calculus._linearize import Linearized, linearize
from gradstack._calculus._per_sample import (
    clip_per_sample,
    fisher_diag,
    fishervp,
    per_sample_grad,
    per_sample_grad_norm,
)
from gradstack._calculus._scipy import as_scipy

__all__ = [
    "Derivatives",
    "Linearized",
    "as_scipy",
    "clip_per_sample",
    "derivatives",
    "fisher_diag",
    "fishervp",
    "ggn",
    "ggnvp",
    "hessian",
    "hessian_x",
    "hvp",
    "jacobian",
    "laplacian",
    "linearize",
    "per_sample_grad",
    "per_sample_grad_norm",
]
