"""The last layer and the cost of an estimator, and how its losses relate to scikit-learn's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import gradstack as gs
from gradstack import nn

Array = npt.NDArray[Any]


class Head(NamedTuple):
    """How a net ends, what it is trained for, and how its output is read.

    The cost is `scale` times scikit-learn's, so that learning rate, epsilon and alpha keep their
    meaning. scikit-learn's reported loss is `loss_scale` times the cost plus `loss_offset`; with
    several outputs it reports a mean over outputs while it descends along the gradient of the sum.
    """

    cost: nn.Cost
    units: int
    activation: str  # out_activation_: from the last linear block to what is predicted
    tail: str | None = None  # block within the net, for costs that want no logits
    labels: bool = False  # targets are indices of classes
    scale: float = 1.0
    loss_scale: float = 1.0
    loss_offset: float = 0.0

    def tail_module(self) -> nn.Module | None:
        """The block after the last linear one."""
        if self.tail is None:
            return None
        module: nn.Module = getattr(nn, _TAILS[self.tail])()
        return module

    def output(self, raw: Array) -> Array:
        """Predictions (probabilities, values) from outputs of the net."""
        if self.tail == "log_softmax":
            return np.exp(raw)
        if self.tail is not None or self.activation == "identity":
            return raw
        return np.asarray(_LINKS[self.activation](raw))


_TAILS = {"softmax": "Softmax", "logistic": "Sigmoid", "log_softmax": "LogSoftmax"}
_LINKS: dict[str, Any] = {"softmax": gs.softmax, "logistic": gs.sigmoid, "exp": np.exp}

# What a classifier's cost is given: labels, or rows of 0 and 1; logits, or (log) probabilities.
_OF_LABELS = {"CrossEntropyLoss": None, "NLLLoss": "log_softmax"}
_OF_PROBABILITIES = {
    "BCELoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "QuantileLoss",
    "SmoothL1Loss",
    "SquaredError",
}
_OF_VALUES = _OF_PROBABILITIES - {"BCELoss"}


def _check_cost(cost: Any) -> str:
    """The name of a cost of the user's; "" for one written in Python."""
    if isinstance(cost, type) or not isinstance(cost, nn.Cost):
        raise TypeError(f"cost must be an instance such as nn.HuberLoss(), got {cost!r}")
    if cost.reduction != "mean":
        raise ValueError(
            f"cost must have reduction='mean', got {cost!r}: alpha and the learning rate are those "
            "of an average"
        )
    name = type(cost).__name__
    return name if name in nn.costs.__all__ and type(cost) is getattr(nn, name) else ""


def classifier_head(cost: Any, n_classes: int, multilabel: bool) -> Head:
    """The head of a classifier; `n_classes` are labels if `multilabel`."""
    one_unit = n_classes <= 2 and not multilabel
    if cost is None:
        if multilabel or one_unit:
            k = n_classes if multilabel else 1
            return Head(nn.BCEWithLogitsLoss(), k, "logistic", scale=1.0 / k, loss_scale=float(k))
        return Head(nn.CrossEntropyLoss(), n_classes, "softmax", labels=True)
    name = _check_cost(cost)
    if name in _OF_LABELS:
        if multilabel:
            raise ValueError(f"cost {cost!r} takes one label per sample, y has several")
        units = max(2, n_classes)
        return Head(cost, units, "softmax", _OF_LABELS[name], labels=True)
    activation = "logistic" if multilabel or one_unit else "softmax"
    units = 1 if one_unit else n_classes
    if name == "BCEWithLogitsLoss":
        if activation == "softmax":
            raise ValueError(
                f"cost {cost!r} is for two classes or several labels, y has {n_classes} classes"
            )
        return Head(cost, units, "logistic")
    if name == "KLDivLoss":
        if activation == "logistic" or cost.log_target:
            raise ValueError(f"cost {cost!r} needs more than two classes and log_target=False")
        return Head(cost, units, "softmax", "log_softmax")
    if name and name not in _OF_PROBABILITIES:
        raise ValueError(f"cost {cost!r} is not one of a classifier")
    return Head(cost, units, activation, activation)


def regressor_head(cost: Any, loss: str, y: Array, sample_weight: Array | None) -> Head:
    """The head of a regressor for targets y, (N, K)."""
    k = y.shape[1]
    if cost is None:
        if loss == "squared_error":
            return Head(nn.SquaredError(), k, "identity", scale=2.0, loss_scale=0.5 / k)
        if y.min() < 0:
            raise ValueError("y has negative values, which loss='poisson' does not allow")
        logs = np.log(y, out=np.zeros_like(y), where=y > 0)
        offset = np.average(y * logs - y, weights=sample_weight, axis=0).sum()
        return Head(
            nn.PoissonNLLLoss(), k, "exp", scale=1.0 / k, loss_scale=k, loss_offset=float(offset)
        )
    if loss != "squared_error":
        raise ValueError(f"give either loss or cost, got loss={loss!r} and cost={cost!r}")
    name = _check_cost(cost)
    if name == "GaussianNLLLoss":  # means, then variances, which must be positive
        raise ValueError(
            f"cost {cost!r} trains means and variances, for which a regressor has no outputs: use "
            "gs.fit"
        )
    if name == "PoissonNLLLoss":
        return Head(cost, k, "exp" if cost.log_input else "identity")
    if name == "BCEWithLogitsLoss":
        return Head(cost, k, "logistic")
    if name and name not in _OF_VALUES:
        raise ValueError(f"cost {cost!r} is not one of a regressor")
    return Head(cost, k, "identity")
