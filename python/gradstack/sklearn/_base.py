"""What both estimators share: arguments, data, the net, weights as attributes."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from gradstack import nn
from gradstack.nn.layers import net_dtype
from gradstack.sklearn._heads import Head
from gradstack.sklearn._net import (
    activation_names,
    build_net,
    dropout_rates,
    hidden_sizes,
    linears,
)
from gradstack.sklearn._train import HeldOut, TrainingSet, train_lbfgs, train_stochastic

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6 a method

    def validate_data(estimator: Any, /, X: Any, y: Any = "no_validation", **options: Any) -> Any:
        """Check data as an estimator's input."""
        return estimator._validate_data(X, y, **options)


Array = npt.NDArray[Any]

_STOCHASTIC = ("sgd", "adam")
_FLOATS = (np.float64, np.float32)


class BaseMLP(BaseEstimator):
    """Base class of `MLPClassifier` and `MLPRegressor`."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [str, "array-like"],
        "solver": [StrOptions({"lbfgs", "sgd", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "cost": [nn.Cost, None],
        "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
        "validation": [tuple, None],
        "n_threads": [Interval(Integral, 1, None, closed="left"), None],
        "dtype": "no_validation",
    }

    hidden_layer_sizes: Any
    activation: Any
    solver: str
    alpha: float
    batch_size: Any
    learning_rate: str
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    random_state: Any
    tol: float
    verbose: Any
    warm_start: bool
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: float
    max_fun: int
    cost: Any
    dropout: Any
    validation: Any
    n_threads: int | None
    dtype: Any

    n_iter_: int
    t_: int
    loss_: float
    best_loss_: Any
    loss_curve_: list[float]
    validation_scores_: Any
    best_validation_score_: Any
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    _net: nn.Sequential
    _head: Head
    _built_shape: tuple[list[int], list[str], list[float]]
    _optimizer: Any
    _no_improvement_count: int

    def _keep(self, arguments: dict[str, Any]) -> None:
        """Store the constructor's arguments, unchanged, as scikit-learn wants them."""
        for name, value in arguments.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    # What the kind of estimator decides.

    def _read_y(self, y: Any, incremental: bool) -> Any:
        """Check targets, learn classes."""
        raise NotImplementedError

    def _make_head(self, y: Any, sample_weight: Array | None) -> Head:
        raise NotImplementedError

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        """Targets as the cost takes them."""
        raise NotImplementedError

    def _sample_weight(self, y: Any, sample_weight: Array | None) -> Array | None:
        """Weights of the samples, with those of their classes."""
        return sample_weight

    def _stratify(self, y: Any) -> Any:
        return None

    def _score_raw(self, raw: Array, y: Any, sample_weight: Array | None) -> float:
        """The score of outputs of the net."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        self._validate_params()
        held_out_wanted = self.early_stopping or self.validation is not None
        if incremental and held_out_wanted:
            raise ValueError("partial_fit does not support early_stopping=True or validation")
        self._check_solver_options()
        first = not hasattr(self, "_net") or not (self.warm_start or incremental)
        dtypes = _FLOATS if self.dtype is None else net_dtype(self.dtype)
        X, y = validate_data(
            self,
            X,
            y,
            multi_output=True,
            y_numeric=self._y_numeric,
            dtype=dtypes,
            order="C",
            reset=first,
        )
        weight: Array | None = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, **_NOT_NEGATIVE)
        y = self._read_y(y, incremental)
        weight = self._sample_weight(y, weight)
        if weight is not None:  # a batch of nothing but zero weights has no average
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
            if not len(X):
                raise ValueError("sample_weight is 0 for every sample, nothing is left to fit")
        random_state = check_random_state(self.random_state)
        head = self._make_head(y, weight)
        shape = self._shape()
        if first:
            self._net = build_net(X.shape[1], *shape, head, X.dtype, random_state)
            self.n_layers_ = len(shape[0]) + 2
            self.n_outputs_ = head.units
            self.n_iter_ = self.t_ = 0
            self._optimizer = None
        elif (shape, head.units, head.tail) != (
            self._built_shape,
            self._head.units,
            self._head.tail,
        ):
            raise ValueError(
                "the hidden layers, their activations and dropout, the outputs and the kind of "
                "cost must be those of the fit that this one continues"
            )
        self._built_shape = shape
        self._head = head
        self.out_activation_ = head.activation
        dtype = self._net.w.dtype
        X = X.astype(dtype, copy=False)
        if self.solver == "lbfgs":
            train_lbfgs(self, TrainingSet(X, self._targets(y, dtype), weight))
            return self
        self._open_records(first, held_out_wanted)
        held_out = None
        if held_out_wanted:
            X, y, weight, held_out = self._hold_out(X, y, weight, random_state)
        data = TrainingSet(X, self._targets(y, dtype), weight)
        train_stochastic(self, data, held_out, incremental, random_state)
        return self

    _y_numeric: ClassVar[bool] = False

    def _check_solver_options(self) -> None:
        if self.solver == "lbfgs":
            if np.any(np.asarray(self.dropout, float) > 0):
                raise ValueError("dropout needs solver='sgd' or 'adam': lbfgs has no random losses")
            if self.validation is not None:
                raise ValueError("validation needs solver='sgd' or 'adam': lbfgs has no epochs")

    def _shape(self) -> tuple[list[int], list[str], list[float]]:
        """Sizes, activations and dropout of the hidden layers."""
        sizes = hidden_sizes(self.hidden_layer_sizes)
        names = activation_names(self.activation, len(sizes))
        return sizes, names, dropout_rates(self.dropout, len(sizes))

    def _open_records(self, first: bool, watched: bool) -> None:
        """Empty records for a new net, or when another kind is kept from now on."""
        kept = hasattr(self, "loss_curve_")
        if first or not kept or (self.validation_scores_ is not None) != watched:
            self.loss_curve_ = []
            self._no_improvement_count = 0
            self.validation_scores_ = [] if watched else None
            self.best_validation_score_ = -np.inf if watched else None
            self.best_loss_ = None if watched else np.inf

    def _hold_out(
        self, X: Array, y: Any, weight: Array | None, random_state: np.random.RandomState
    ) -> tuple[Array, Any, Array | None, HeldOut]:
        """Data to train on and to validate with."""
        if self.validation is not None:
            return X, y, weight, self._read_validation(X.dtype)
        arrays = [X, y] if weight is None else [X, y, weight]
        split = train_test_split(
            *arrays,
            random_state=random_state,
            test_size=self.validation_fraction,
            stratify=self._stratify(y),
        )
        train, held = split[::2], split[1::2]
        if len(held[0]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return *train[:2], (train[2] if weight is not None else None), HeldOut(*(*held, None)[:3])

    def _read_validation(self, dtype: np.dtype[Any]) -> HeldOut:
        if len(self.validation) not in (2, 3):
            raise ValueError(
                f"validation must be (X, y) or (X, y, sample_weight), got {len(self.validation)} "
                "items"
            )
        X, y, weight = (*self.validation, None)[:3]
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=self._y_numeric, dtype=dtype, reset=False
        )
        if weight is not None:
            weight = _check_sample_weight(weight, X)
        return HeldOut(X, self._read_y(y, True), weight)

    def _can_partial_fit(self) -> bool:
        if self.solver not in _STOCHASTIC:
            raise AttributeError(
                "partial_fit is only available for stochastic optimizers. "
                f"{self.solver} is not stochastic."
            )
        return True

    def _raw(self, X: Any) -> Array:
        """Outputs of the net for new data."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        return np.asarray(self._net(X))

    @property
    def coefs_(self) -> list[Array]:
        """Weights of the layers, each (inputs, outputs): views of the net's."""
        return [np.asarray(layer.weight).T for layer in self._layers("coefs_")]

    @coefs_.setter
    def coefs_(self, values: Any) -> None:
        self._write("coefs_", self.coefs_, values)

    @property
    def intercepts_(self) -> list[Array]:
        """Biases of the layers, each (outputs,): views of the net's."""
        return [np.asarray(layer.bias) for layer in self._layers("intercepts_")]

    @intercepts_.setter
    def intercepts_(self, values: Any) -> None:
        self._write("intercepts_", self.intercepts_, values)

    def _layers(self, name: str) -> list[nn.Linear]:
        if "_net" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name} before it is fitted")
        return linears(self._net)

    @staticmethod
    def _write(name: str, own: list[Array], values: Any) -> None:
        values = [np.asarray(value) for value in values]
        shapes = [a.shape for a in own]
        if [value.shape for value in values] != shapes:
            raise ValueError(
                f"{name} have shapes {[value.shape for value in values]}, expected {shapes}"
            )
        for target, value in zip(own, values, strict=True):
            target[...] = value

    @property
    def net_(self) -> nn.Sequential:
        """The trained net, for everything else that gradstack does with nets."""
        check_is_fitted(self)
        return self._net


def _options_of_weight_check() -> dict[str, Any]:
    """scikit-learn 1.8 renamed the argument that refuses negative weights."""
    import inspect

    names = inspect.signature(_check_sample_weight).parameters
    for name in ("ensure_non_negative", "only_non_negative"):
        if name in names:
            return {name: True}
    return {}


_NOT_NEGATIVE = _options_of_weight_check()
