"""First-order optimisers, with PyTorch's formulas, names and defaults.

All take ``clip_value``, which clamps every entry of the gradient to [-clip_value, clip_value], and
then ``clip_norm``, which multiplies it by clip_norm / (norm + 1e-6) where that is below 1; the norm
is the L2 norm over all parameters that are trained. ``decay_bias=False`` keeps weight decay off the
biases. An entry of the core's table that is not written out here gets a class with just its
parameters.
"""

from __future__ import annotations

import inspect
from typing import Any

from gradstack._arrays import as_flag, as_number
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
    g + momentum * v.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    momentum : float
        Part of the last v that is kept.
    dampening : float
        Part of the gradient that does not enter v.
    weight_decay : float
        weight_decay * w is added to the gradient.
    nesterov : bool
        Needs a momentum and no dampening.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.

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
            "nesterov": as_flag(nesterov, "nesterov"),
        }
        if nesterov and (hyper["momentum"] == 0.0 or hyper["dampening"] != 0.0):
            raise ValueError("nesterov needs a momentum and zero dampening")
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


def _adam_hyper(betas: Any, eps: Any, weight_decay: Any, amsgrad: Any) -> dict[str, Any]:
    return {
        "betas": _betas(betas),
        "eps": _not_negative(eps, "eps"),
        "weight_decay": _not_negative(weight_decay, "weight_decay"),
        "amsgrad": as_flag(amsgrad, "amsgrad"),
    }


class Adam(RuleOptimizer):
    """Adam (Kingma and Ba, 2014).

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    betas : tuple of two floats in [0, 1)
        Weights of the past in the running averages of the gradient and of its square.
    eps : float
        Added to the root of the averaged square.
    weight_decay : float
        weight_decay * w is added to the gradient.
    amsgrad : bool
        Divide by the largest average so far (Reddi et al., 2018).
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
        hyper = _adam_hyper(betas, eps, weight_decay, amsgrad)
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class AdamW(RuleOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017).

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    betas : tuple of two floats in [0, 1)
        Weights of the past in the running averages of the gradient and of its square.
    eps : float
        Added to the root of the averaged square.
    weight_decay : float
        w shrinks by lr * weight_decay * w in each step, beside the gradient's step.
    amsgrad : bool
        Divide by the largest average so far (Reddi et al., 2018).
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
        hyper = _adam_hyper(betas, eps, weight_decay, amsgrad)
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class RMSprop(RuleOptimizer):
    """RMSprop (Hinton, 2012): the gradient over the root of its running mean square.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    alpha : float
        Weight of the past in the running average of the square.
    eps : float
        Added to the root of the averaged square.
    weight_decay : float
        weight_decay * w is added to the gradient.
    momentum : float
        Part of the last step that is repeated.
    centered : bool
        Divide by the running variance instead of the mean square.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
            "centered": as_flag(centered, "centered"),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Adagrad(RuleOptimizer):
    """Adagrad (Duchi, Hazan and Singer, 2011): the gradient over the root of the sum of squares.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    lr_decay : float
        The rate of step t is lr / (1 + t * lr_decay).
    weight_decay : float
        weight_decay * w is added to the gradient.
    initial_accumulator_value : float
        Where the sum of squares starts.
    eps : float
        Added to the root of the sum.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
    """Adadelta (Zeiler, 2012): steps in the units of w, from running mean squares of steps and g.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    rho : float
        In [0, 1]: weight of the past in the running averages.
    eps : float
        Added to both averages before their roots.
    weight_decay : float
        weight_decay * w is added to the gradient.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
    """Adam with Nesterov momentum (Dozat, 2016).

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    betas : tuple of two floats in [0, 1)
        Weights of the past in the running averages of the gradient and of its square.
    eps : float
        Added to the root of the averaged square.
    weight_decay : float
        weight_decay * w is added to the gradient, or taken as in `AdamW` if decoupled.
    momentum_decay : float
        How fast the momentum approaches betas[0].
    decoupled_weight_decay : bool
        Let w shrink by lr * weight_decay * w beside the gradient's step.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
            "decoupled_weight_decay": as_flag(decoupled_weight_decay, "decoupled_weight_decay"),
        }
        super().__init__(lr, hyper, clip_norm, clip_value, decay_bias)


class Lion(RuleOptimizer):
    """Lion (Chen et al., 2023): steps of size lr along the sign of a momentum.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    betas : tuple of two floats in [0, 1)
        Weights of the momentum in the direction, and of the past in the momentum.
    weight_decay : float
        w shrinks by lr * weight_decay * w in each step, beside the gradient's step.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.
    """

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
