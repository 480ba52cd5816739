"""gradstack: dense networks from NumPy, trained, run and differentiated by a compiled core.

See ``gradstack.nn`` for layers and costs, ``gradstack.optim`` for optimisers, `fit` and `Trainer`
for training, and `vjp`, `jvp`, `jacobian`, `hvp`, `backprop` and their relatives for derivatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstack import _core, _functions, nn, optim
from gradstack._backprop import Backprop, Stage, backprop
from gradstack._calculus import (
    as_scipy,
    clip_per_sample,
    derivatives,
    fisher_diag,
    fishervp,
    ggn,
    ggnvp,
    hessian,
    hessian_x,
    hvp,
    jacobian,
    laplacian,
    linearize,
    per_sample_grad,
    per_sample_grad_norm,
)
from gradstack._callbacks import STOP, EarlyStopping
from gradstack._checkpoint import Checkpoint
from gradstack._device import DeviceArray
from gradstack._fit import fit
from gradstack._functions import *  # noqa: F403
from gradstack._history import History
from gradstack._pointwise import log_softmax, softmax
from gradstack._polyak import polyak
from gradstack._random import seed
from gradstack._trace import concat
from gradstack._trainer import Trainer
from gradstack.functional import apply, jvp, value_and_grad, vjp

if TYPE_CHECKING:
    from gradstack import blackbox, plot, rl
    from gradstack._draw import draw
    from gradstack._gradcheck import gradcheck
    from gradstack._simplify import simplify
    from gradstack.interop import export_c, export_onnx, from_torch
    from gradstack.io import load, save

__version__: str = _core.__version__


def show_config() -> dict[str, Any]:
    """Say what is in use, and why.

    Returns
    -------
    dict
        ``backend`` and ``isa`` in use, the ``reason`` for them, what else is ``available``,
        ``max_threads`` and ``version``.
    """
    config: dict[str, Any] = _core.show_config()
    return config


# Needed only by those who save, load, convert, check or draw: not worth everybody's import time.
_LAZY = {
    "save": "gradstack.io",
    "load": "gradstack.io",
    "from_torch": "gradstack.interop",
    "gradcheck": "gradstack._gradcheck",
    "export_c": "gradstack.interop",
    "export_onnx": "gradstack.interop",
    "draw": "gradstack._draw",
    "simplify": "gradstack._simplify",
}
_LAZY_MODULES = ("blackbox", "plot", "rl", "sklearn")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY_MODULES:
        return importlib.import_module(f"gradstack.{name}")
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradstack' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_LAZY_MODULES})


__all__ = [
    "STOP",
    "Backprop",
    "Checkpoint",
    "DeviceArray",
    "EarlyStopping",
    "History",
    "Stage",
    "Trainer",
    "apply",
    "as_scipy",
    "backprop",
    "blackbox",
    "clip_per_sample",
    "concat",
    "derivatives",
    "draw",
    "export_c",
    "export_onnx",
    "fisher_diag",
    "fishervp",
    "fit",
    "from_torch",
    "ggn",
    "ggnvp",
    "gradcheck",
    "hessian",
    "hessian_x",
    "hvp",
    "jacobian",
    "jvp",
    "laplacian",
    "linearize",
    "load",
    "log_softmax",
    "nn",
    "optim",
    "per_sample_grad",
    "per_sample_grad_norm",
    "plot",
    "polyak",
    "rl",
    "save",
    "seed",
    "show_config",
    "simplify",
    "softmax",
    "value_and_grad",
    "vjp",
]
__all__ += _functions.__all__
