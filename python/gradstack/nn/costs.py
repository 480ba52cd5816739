"""The costs, with PyTorch's names, formulas and arguments.

L is the loss of one sample; the loss of a batch is its average (``reduction="mean"``) or sum. An
entry of the core's table that is not written out here gets a class with just its parameters.
"""

from __future__ import annotations

import inspect
from typing import Any

from gradstack._arrays import as_number
from gradstack.nn.cost import COSTS, Array, CostRow, TableCost

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
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
            reduction, log_input=bool(log_input), full=bool(full), eps=_positive(eps, "eps")
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
        super().__init__(reduction, full=bool(full), eps=_positive(eps, "eps"))


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
        super().__init__(reduction, log_target=bool(log_target))


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
