"""First-order optimisers, with PyTorch's formulas, names and defaults.

All take ``clip_norm`` and ``clip_value`` (the gradient is scaled to at most this L2 norm, or
clamped entry by entry; value first), and ``decay_bias=False`` keeps weight decay off the biases. An
entry of the core's table that is not written out here gets a class with just its parameters.
"""

from __future__ import annotations

import inspect
from typing import Any

from gradstack._arrays import as_number
from gradstack.optim.base import RULES, RuleOptimizer, RuleRow
from gradstack.optim.schedules import Lr

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "RMSprop",
]


def _betas(betas: Any) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError) as error:
        raise ValueError(f"betas must be two numbers, got {betas!r}") from error
    return _below_one(first, "betas[0]"), _below_one(second, "betas[1]")


def _below_one(value: Any, name: str) -> float:
    number = as_number(value, name)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {number:g}")
    return number


def _not_negative(value: Any, name: str) -> float:
    return as_number(value, name, low=0.0)


class SGD(RuleOptimizer):
    """Gradient descent: w <- w - lr * v, with v the gradient or its momentum.

    v <- momentum * v + (1 - dampening) * g (the first v is g); Nesterov's variant moves along
    g + momentum * v. ``weight_decay * w`` is added to g.

    Examples
    --------
    >>> from gradstack import optim
    >>> optim.SGD(lr=0.1, momentum=0.9).momentum
    0.9
    """

    def __init__(
        self,
        lr: Lr = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "momentum": _not_negative(momentum, "momentum"),
            "dampening": as_number(dampening, "dampening"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "nesterov": bool(nesterov),
        }
        if nesterov and (hyper["momentum"] == 0.0 or hyper["dampening"] != 0.0):
            raise ValueError("nesterov needs a momentum and zero dampening")
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Adam(RuleOptimizer):
    """Adam (Kingma and Ba, 2014); ``weight_decay * w`` is added to the gradient."""

    def __init__(
        self,
        lr: Lr = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "betas": _betas(betas),
            "eps": _not_negative(eps, "eps"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "amsgrad": bool(amsgrad),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class AdamW(RuleOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017)."""

    def __init__(
        self,
        lr: Lr = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "betas": _betas(betas),
            "eps": _not_negative(eps, "eps"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "amsgrad": bool(amsgrad),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class RMSprop(RuleOptimizer):
    """RMSprop (Hinton, 2012), optionally centered and with momentum."""

    def __init__(
        self,
        lr: Lr = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "alpha": _not_negative(alpha, "alpha"),
            "eps": _not_negative(eps, "eps"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "momentum": _not_negative(momentum, "momentum"),
            "centered": bool(centered),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Adagrad(RuleOptimizer):
    """Adagrad (Duchi, Hazan and Singer, 2011)."""

    def __init__(
        self,
        lr: Lr = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "lr_decay": _not_negative(lr_decay, "lr_decay"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "initial_accumulator_value": _not_negative(
                initial_accumulator_value, "initial_accumulator_value"
            ),
            "eps": _not_negative(eps, "eps"),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Adadelta(RuleOptimizer):
    """Adadelta (Zeiler, 2012)."""

    def __init__(
        self,
        lr: Lr = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "rho": as_number(rho, "rho", low=0.0, high=1.0),
            "eps": _not_negative(eps, "eps"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class NAdam(RuleOptimizer):
    """Adam with Nesterov momentum (Dozat, 2016)."""

    def __init__(
        self,
        lr: Lr = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "betas": _betas(betas),
            "eps": _not_negative(eps, "eps"),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
            "momentum_decay": _not_negative(momentum_decay, "momentum_decay"),
            "decoupled_weight_decay": bool(decoupled_weight_decay),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Lion(RuleOptimizer):
    """Lion (Chen et al., 2023): steps of size lr along the sign of a momentum; decoupled decay."""

    def __init__(
        self,
        lr: Lr = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        hyper = {
            "betas": _betas(betas),
            "weight_decay": _not_negative(weight_decay, "weight_decay"),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


def _generic_class(row: RuleRow) -> type[RuleOptimizer]:
    anywhere, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    shared = {"clip_norm": None, "clip_value": None, "decay_bias": True}
    signature = inspect.Signature(
        [
            *(inspect.Parameter(n, anywhere, default=v) for n, v in [("lr", row.lr), *row.hyper]),
            *(inspect.Parameter(n, keyword, default=v) for n, v in shared.items()),
        ]
    )

    def init(self: RuleOptimizer, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        hyper = {n: as_number(values[n], n) for n, _ in row.hyper}
        RuleOptimizer.__init__(self, values["lr"], hyper, *(values[n] for n in shared))

    namespace = {
        "__doc__": f"The update rule {row.name} of the core's table.",
        "__module__": "gradstack.optim",
        "__signature__": signature,
        "__init__": init,
    }
    return type(row.cls, (RuleOptimizer,), namespace)


for _name, _row in RULES.items():
    if _name not in globals():
        globals()[_name] = _generic_class(_row)
        __all__.append(_name)
    globals()[_name].row = _row
