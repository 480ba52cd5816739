"""`MLPRegressor`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d

from gradstack.sklearn._base import BaseMLP
from gradstack.sklearn._heads import Head, regressor_head

Array = npt.NDArray[Any]


class MLPRegressor(RegressorMixin, BaseMLP):
    """Multi-layer perceptron for one or several real targets.

    scikit-learn's estimator of this name, trained by gradstack: its constructor, attributes and
    behaviour, and keyword arguments beyond them, from `cost` on.

    Parameters
    ----------
    loss : {'squared_error', 'poisson'}
        Half the squared error, or half the Poisson deviance with exp as the last function.
    hidden_layer_sizes : int or sequence of int
        Units of each hidden layer; () is a linear model.
    activation : str, or a sequence with one for each hidden layer
        'identity', 'logistic', 'tanh', 'relu', or any pointwise function of gradstack by its name
        ('gelu', 'silu', 'mish', ...).
    solver : {'adam', 'sgd', 'lbfgs'}
        `optim.Adam`, `optim.SGD`, or SciPy's L-BFGS-B on the whole data.
    alpha : float
        L2 penalty of the weights (not of the biases), divided by the samples of a batch.
    batch_size : int or 'auto'
        'auto': min(200, n_samples).
    learning_rate : {'constant', 'invscaling', 'adaptive'}
        Of 'sgd'. 'invscaling': learning_rate_init / t ** power_t with t the samples seen, renewed
        after each epoch. 'adaptive': divided by 5 where training would end for lack of improvement.
    learning_rate_init : float
        Learning rate of 'sgd' and 'adam'.
    power_t : float
        Exponent of 'invscaling'.
    max_iter : int
        Epochs; iterations of 'lbfgs'.
    shuffle : bool
        Visit the samples of each epoch in a new order.
    random_state : int, RandomState or None
        Source of initial weights (the same as scikit-learn's), of the split, of order and dropout.
    tol : float
        Less is no improvement; the largest entry of the gradient where 'lbfgs' ends.
    verbose : bool or int
        Print the loss of each epoch.
    warm_start : bool
        `fit` goes on from the weights of the fit before.
    momentum, nesterovs_momentum : float, bool
        Of 'sgd'.
    early_stopping : bool
        Set `validation_fraction` of the data aside, score it after each epoch, end when its score
        has not improved by `tol` for `n_iter_no_change` epochs, and keep the best weights. Of 'sgd'
        and 'adam'.
    validation_fraction : float
        In (0, 1).
    beta_1, beta_2, epsilon : float
        Of 'adam'.
    n_iter_no_change : int or inf
        Epochs without improvement that are waited for.
    max_fun : int
        Evaluations of 'lbfgs'.
    cost : Cost, optional
        Any suitable cost in the place of `loss`.
    dropout : float, or a sequence with one for each hidden layer
        Probability that an output of a hidden layer is 0 while training. Not for 'lbfgs'.
    validation : tuple (X, y) or (X, y, sample_weight), optional
        A validation set of one's own: early stopping with it in the place of a fraction.
    n_threads : int or None
        Threads of training with 'sgd' and 'adam'; None: as many as pay. Does not change results.
    dtype : float32, float64 or None
        Of the net; None: that of X (float64 unless X is float32).

    Attributes
    ----------
    coefs_, intercepts_ : list of numpy.ndarray
        Weights (inputs, outputs) and biases (outputs,) of the layers: views of the net's, which
        can be written to and assigned.
    loss_, best_loss_ : float
        Loss of the last epoch and the smallest one (None with early stopping), penalty included.
    loss_curve_ : list of float
        Loss of every epoch; not with 'lbfgs'.
    validation_scores_, best_validation_score_ : list of float, float
        R2 after every epoch, and the best; None without early stopping.
    n_iter_, t_ : int
        Epochs (iterations) of the last fit, training samples seen.
    n_layers_, n_outputs_ : int
        Layers with input and output, units of the output.
    out_activation_ : str
        From the last linear block to predictions.
    n_features_in_, feature_names_in_ : int, numpy.ndarray
        Features of X, and their names if it has any.
    net_ : Sequential
        The trained net.

    See Also
    --------
    MLPClassifier

    Notes
    -----
    What differs from scikit-learn is listed in docs/scikit-learn.md.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from gradstack.sklearn import MLPRegressor
    >>> X, y = make_regression(n_samples=200, n_features=5, random_state=1)
    >>> reg = MLPRegressor(random_state=1, solver="lbfgs", max_iter=1000).fit(X, y)
    >>> bool(reg.score(X, y) > 0.99)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }
    _y_numeric: ClassVar[bool] = True

    loss: str

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        cost: Any = None,
        dropout: Any = 0.0,
        validation: Any = None,
        n_threads: int | None = None,
        dtype: Any = None,
    ) -> None:
        self._keep(locals())

    def _read_y(self, y: Any, incremental: bool) -> Any:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return y

    def _make_head(self, y: Any, sample_weight: Array | None) -> Head:
        return regressor_head(self.cost, self.loss, _columns(y), sample_weight)

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        return _columns(y).astype(dtype, copy=False)

    def _values(self, raw: Array) -> Array:
        y = self._head.output(raw)
        return y[:, 0] if y.shape[1] == 1 else y

    def _score_raw(self, raw: Array, y: Any, sample_weight: Array | None) -> float:
        predicted = self._values(raw)
        if not np.isfinite(predicted).all():
            return float("nan")
        return float(r2_score(y, predicted, sample_weight=sample_weight))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)
        y : array_like, (n_samples,) or (n_samples, n_outputs)
        sample_weight : array_like, (n_samples,), optional
            Weights of the average loss.

        Returns
        -------
        MLPRegressor
            Itself.
        """
        self._fit(X, y, sample_weight, incremental=False)
        return self

    @available_if(lambda self: self._can_partial_fit())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """One epoch, from the weights and the optimiser of the call before.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)
        y : array_like, (n_samples,) or (n_samples, n_outputs)
        sample_weight : array_like, (n_samples,), optional

        Returns
        -------
        MLPRegressor
            Itself.
        """
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def predict(self, X: Any) -> Array:
        """Values of the targets.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)

        Returns
        -------
        numpy.ndarray, (n_samples,) or (n_samples, n_outputs)
        """
        return self._values(self._raw(X))


def _columns(y: Array) -> Array:
    return y.reshape(len(y), -1)
