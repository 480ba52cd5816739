"""The costs, with PyTorch's names, formulas and arguments.

L is the loss of one sample; the loss of a batch is its average (``reduction="mean"``) or sum. An
entry of the core's table that is not written out here gets a class with just its parameters.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from gradstack._arrays import as_flag, as_number, on_host
from gradstack.nn.cost import COSTS, Array, CostRow, TableCost

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CategoricalPPOLoss",
    "CategoricalPolicyLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "GaussianPPOLoss",
    "GaussianPolicyLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "QuantileLoss",
    "SmoothL1Loss",
    "SquaredError",
    "ZeroOneLoss",
]


class SquaredError(TableCost):
    """Squared distance, L = sum_i (y[i] - ybar[i])^2: summed over components, no factor 1/2.

    Without target (y=None) it trains ``nn.NearestNeighbour``: L = ||x - w_k||^2 for the nearest k.

    Parameters
    ----------
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)


class MSELoss(TableCost):
    """Mean squared error, L = mean_i (ybar[i] - y[i])^2.

    Parameters
    ----------
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)


class L1Loss(TableCost):
    """Mean absolute error, L = mean_i |ybar[i] - y[i]|.

    Parameters
    ----------
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)


class SmoothL1Loss(TableCost):
    """L = mean_i of e^2 / (2 beta) where |e| < beta, else |e| - beta / 2; e = ybar[i] - y[i].

    Parameters
    ----------
    beta : float
        Where the parabola ends; 0 is `L1Loss`.
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, beta: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction, beta=as_number(beta, "beta", low=0.0))


class HuberLoss(TableCost):
    """L = mean_i of e^2 / 2 where |e| < delta, else delta (|e| - delta / 2); e = ybar[i] - y[i].

    Parameters
    ----------
    delta : float
        Above 0: where the parabola ends, and the slope beyond.
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, delta: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction, delta=_positive(delta, "delta"))


class CrossEntropyLoss(TableCost):
    """Cross entropy between softmax(ybar) and the target.

    L = -w[y] log softmax(ybar)[y] for class labels y, or -sum_c w[c] y[c] log softmax(ybar)[c] for
    class probabilities.

    Parameters
    ----------
    weight : array_like, (C,), optional
        Class weights w; the average over labelled samples divides by the sum of their w[y].
    label_smoothing : float
        In [0, 1]: the target is mixed with the uniform distribution by this much.
    reduction : str
        "mean" or "sum".

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> round(nn.CrossEntropyLoss()(np.zeros((2, 4)), np.array([0, 3])), 4)
    1.3863
    """

    def __init__(
        self, weight: Any = None, *, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        smoothing = as_number(label_smoothing, "label_smoothing", low=0.0, high=1.0)
        super().__init__(reduction, weight, label_smoothing=smoothing)


class NLLLoss(TableCost):
    """Negative log-likelihood, L = -w[y] ybar[y], where ybar are log-probabilities.

    Parameters
    ----------
    weight : array_like, (C,), optional
        Class weights w; the average divides by the sum of the w[y].
    reduction : str
        "mean" or "sum".
    """

    def __init__(self, weight: Any = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction, weight)


class BCELoss(TableCost):
    """Binary cross entropy of probabilities, L = -mean_i (y log ybar + (1 - y) log(1 - ybar)).

    Logarithms are bounded below by -100, as PyTorch's.

    Parameters
    ----------
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)

    def _check_outputs(self, ybar: Array) -> None:
        if ((ybar < 0) | (ybar > 1)).any():
            raise ValueError(
                "[BCELoss] ybar must hold probabilities in [0, 1]; for logits use BCEWithLogitsLoss"
            )


class BCEWithLogitsLoss(TableCost):
    """Binary cross entropy of logits, L = mean_i (log(1 + exp(ybar)) - y ybar).

    Parameters
    ----------
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__(reduction)


class PoissonNLLLoss(TableCost):
    """Poisson likelihood, L = mean_i (exp(ybar) - y ybar), or mean_i (ybar - y log(ybar + eps)).

    Parameters
    ----------
    log_input : bool
        ybar is the logarithm of the rate (True), or the rate itself.
    full : bool
        Add Stirling's approximation of log y! for y > 1.
    eps : float
        Keeps the logarithm finite when ``log_input=False``.
    reduction : str
        "mean" or "sum".
    """

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        *,
        eps: float = 1e-8,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            reduction,
            log_input=as_flag(log_input, "log_input"),
            full=as_flag(full, "full"),
            eps=_positive(eps, "eps"),
        )


class GaussianNLLLoss(TableCost):
    """Gaussian likelihood, L = mean_i (log v[i] + (m[i] - y[i])^2 / v[i]) / 2.

    ybar holds the means m and then the variances v, side by side: (B, 2 dy) for y (B, dy).

    Parameters
    ----------
    full : bool
        Add log(2 pi) / 2.
    eps : float
        Variances are raised to at least this.
    reduction : str
        "mean" or "sum".
    """

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction, full=as_flag(full, "full"), eps=_positive(eps, "eps"))


class KLDivLoss(TableCost):
    """Kullback-Leibler divergence, L = mean_i y (log y - ybar), where ybar are log-probabilities.

    Parameters
    ----------
    log_target : bool
        y holds log-probabilities too.
    reduction : str
        "mean" (over samples and components, as PyTorch's) or "sum".
    """

    def __init__(self, *, log_target: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction, log_target=as_flag(log_target, "log_target"))


class HingeEmbeddingLoss(TableCost):
    """L = mean_i of ybar where y = 1, and max(0, margin - ybar) where y = -1.

    Parameters
    ----------
    margin : float
        Distance beyond which a pair with y = -1 costs nothing.
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, margin: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction, margin=as_number(margin, "margin"))


class ZeroOneLoss(TableCost):
    """Share of samples classified wrongly: L = w[y] where argmax ybar is not y, else 0.

    It is constant wherever it is differentiable, so training on it raises; `gs.blackbox` minimises
    it by its values. The first of several equal outputs counts as the largest, and a NaN is wrong.

    Parameters
    ----------
    weight : array_like, (C,), optional
        Class weights w; the average divides by the sum of their w[y]. With w inversely proportional
        to the classes' frequencies the loss is 1 - balanced accuracy.
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, weight: Any = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction, weight)


class QuantileLoss(TableCost):
    """Pinball loss, L = mean_i max(q e, (q - 1) e) with e = y[i] - ybar[i].

    Parameters
    ----------
    q : float
        In (0, 1): the quantile that has the lowest loss.
    reduction : str
        "mean" (over samples) or "sum".
    """

    def __init__(self, q: float = 0.5, *, reduction: str = "mean") -> None:
        number = as_number(q, "q", low=0.0, high=1.0)
        if number in (0.0, 1.0):
            raise ValueError(f"q must be strictly between 0 and 1, got {number:g}")
        super().__init__(reduction, q=number)


class _CategoricalCost(TableCost):
    """A policy over a finite set of actions: the first column of y is an index of ybar."""

    def match_target(
        self, y: Any, count: int, shape: tuple[int, ...], single: bool = False
    ) -> Array | None:
        """Check y against outputs of `shape`, and its actions against their number."""
        rows = super().match_target(on_host(y), count, shape, single)
        assert rows is not None
        action, n = rows[:, 0], math.prod(shape)
        valid = (action >= 0) & (action < n) & (action == np.rint(action))
        if not valid.all():
            row = int(np.argmin(valid))
            raise ValueError(
                f"[{type(self).__name__}] y[{row}, 0] = {action[row]:g}, expected an action in "
                f"0..{n - 1} (the net has {n} outputs)"
            )
        return rows


class CategoricalPolicyLoss(_CategoricalCost):
    """Score-function cost of a policy over n actions, L = -A log pi(a) - entropy H(pi).

    Its gradient is the estimate of Williams (1992, REINFORCE) for the gradient of an expected
    return, with the sign of a descent: what the environment's unknown cost returns enters only as
    the number A. pi = softmax(ybar), H its entropy.

    Parameters
    ----------
    entropy : float
        Weight of the entropy bonus, which keeps the policy exploring.
    reduction : str
        "mean" or "sum".

    Notes
    -----
    ybar (B, n) are logits; y (B, 2) holds the action a in 0..n-1 and its advantage A, of any sign:
    ``np.column_stack([actions, advantages])``. With A = 1, ``-cost.per_sample(ybar, y)`` is
    log pi(a).

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> cost = nn.CategoricalPolicyLoss()
    >>> cost.gradient(np.zeros((2, 2)), np.array([[0, 3.0], [1, -1.0]]))
    array([[-1.5,  1.5],
           [-0.5,  0.5]])
    """

    def __init__(self, entropy: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction, entropy=as_number(entropy, "entropy", low=0.0))


class GaussianPolicyLoss(TableCost):
    """Score-function cost of a Gaussian policy, L = -A log pi(a) - entropy H(pi).

    The continuous sibling of `CategoricalPolicyLoss`: actions of m components are normally
    distributed, independently of each other.

    Parameters
    ----------
    entropy : float
        Weight of the entropy bonus, which keeps the policy exploring.
    reduction : str
        "mean" or "sum".

    Notes
    -----
    ybar (B, 2 m) holds the means and then the logarithms of the standard deviations; y (B, m + 1)
    the components of the action and then the advantage A.
    """

    def __init__(self, entropy: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction, entropy=as_number(entropy, "entropy", low=0.0))


class CategoricalPPOLoss(_CategoricalCost):
    """Clipped cost of PPO for a policy over n actions (Schulman et al., 2017, equation 7).

    L = -min(r A, clip(r, 1 - c, 1 + c) A) - entropy H(pi), with r = pi(a) / pi_old(a) and c the
    clip: the same batch serves several steps, which end where the policy has moved too far.

    Parameters
    ----------
    clip : float
        c, in (0, 1).
    entropy : float
        Weight of the entropy bonus.
    reduction : str
        "mean" or "sum".

    Notes
    -----
    ybar (B, n) are logits; y (B, 3) holds the action, its advantage A, and log pi_old(a), what the
    policy gave when the action was drawn.
    """

    def __init__(self, clip: float = 0.2, entropy: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(
            reduction, clip=_clip(clip), entropy=as_number(entropy, "entropy", low=0.0)
        )


class GaussianPPOLoss(TableCost):
    """Clipped cost of PPO for a Gaussian policy; see `CategoricalPPOLoss`.

    Parameters
    ----------
    clip : float
        In (0, 1).
    entropy : float
        Weight of the entropy bonus.
    reduction : str
        "mean" or "sum".

    Notes
    -----
    ybar (B, 2 m) holds the means and then the logarithms of the standard deviations; y (B, m + 2)
    the components of the action, the advantage A, and log pi_old(a).
    """

    def __init__(self, clip: float = 0.2, entropy: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(
            reduction, clip=_clip(clip), entropy=as_number(entropy, "entropy", low=0.0)
        )


def _clip(value: Any) -> float:
    number = as_number(value, "clip", low=0.0, high=1.0)
    if number in (0.0, 1.0):
        raise ValueError(f"clip must be strictly between 0 and 1, got {number:g}")
    return number


def _positive(value: Any, name: str) -> float:
    number = as_number(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {number:g}")
    return number


def _generic_class(row: CostRow) -> type[TableCost]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(n, kind, default=v) for n, v in row.params]
    if row.class_weights:
        parameters.insert(0, inspect.Parameter("weight", kind, default=None))
    only = inspect.Parameter.KEYWORD_ONLY
    parameters.append(inspect.Parameter("reduction", only, default="mean"))
    signature = inspect.Signature(parameters)

    def init(self: TableCost, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        numbers = {n: as_number(bound.arguments[n], n) for n, _ in row.params}
        TableCost.__init__(
            self, bound.arguments["reduction"], bound.arguments.get("weight"), **numbers
        )

    namespace = {
        "__doc__": f"The cost {row.name} of the core's table.",
        "__module__": "gradstack.nn",
        "__signature__": signature,
        "__init__": init,
    }
    return type(row.name, (TableCost,), namespace)


for _name, _row in COSTS.items():
    if _name not in globals():
        globals()[_name] = _generic_class(_row)
        __all__.append(_name)
    globals()[_name].row = _row
