"""`MLPClassifier`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
    unique_labels,
)
from sklearn.utils.validation import check_is_fitted, column_or_1d

from gradstack.sklearn._base import BaseMLP
from gradstack.sklearn._heads import Head, classifier_head

Array = npt.NDArray[Any]


class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multi-layer perceptron for two classes, several classes, or several labels per sample.

    scikit-learn's estimator of this name, trained by gradstack: its constructor, attributes and
    behaviour, and keyword arguments beyond them, from `cost` on.

    Parameters
    ----------
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
        Any suitable cost in the place of the cross-entropy. Those that take no logits
        (`SquaredError`, `HuberLoss`, costs in Python, ...) compare probabilities with rows of 0
        and 1.
    dropout : float, or a sequence with one for each hidden layer
        Probability that an output of a hidden layer is 0 while training. Not for 'lbfgs'.
    class_weight : dict, 'balanced', a list of dicts for several labels, or None
        Weights of the classes in the average loss, as everywhere in scikit-learn.
    validation : tuple (X, y) or (X, y, sample_weight), optional
        A validation set of one's own: early stopping with it in the place of a fraction.
    n_threads : int or None
        Threads of training with 'sgd' and 'adam'; None: as many as pay. Does not change results.
    dtype : float32, float64 or None
        Of the net; None: that of X (float64 unless X is float32).

    Attributes
    ----------
    classes_ : numpy.ndarray, (n_classes,)
        Class labels.
    coefs_, intercepts_ : list of numpy.ndarray
        Weights (inputs, outputs) and biases (outputs,) of the layers: views of the net's, which
        can be written to and assigned.
    loss_, best_loss_ : float
        Loss of the last epoch and the smallest one (None with early stopping), penalty included.
    loss_curve_ : list of float
        Loss of every epoch; not with 'lbfgs'.
    validation_scores_, best_validation_score_ : list of float, float
        Accuracy after every epoch, and the best; None without early stopping.
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
    MLPRegressor

    Notes
    -----
    What differs from scikit-learn is listed in docs/scikit-learn.md.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from gradstack.sklearn import MLPClassifier
    >>> X, y = make_classification(n_samples=200, random_state=1)
    >>> clf = MLPClassifier(random_state=1, max_iter=300, learning_rate_init=0.01).fit(X, y)
    >>> clf.predict_proba(X).shape, bool(clf.score(X, y) > 0.95)
    ((200, 2), True)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseMLP._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    class_weight: Any
    classes_: Array
    _label_binarizer: Any

    def __init__(
        self,
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
        class_weight: Any = None,
        validation: Any = None,
        n_threads: int | None = None,
        dtype: Any = None,
    ) -> None:
        self._keep(locals())

    def _learn_classes(self, y: Any) -> None:
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    @property
    def _multilabel(self) -> bool:
        return str(self._label_binarizer.y_type_).startswith("multilabel")

    def _read_y(self, y: Any, incremental: bool) -> Any:
        check_classification_targets(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._learn_classes(y)
            return y
        classes = unique_labels(y)
        if self.warm_start and not incremental and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {classes}"
            )
        if len(np.setdiff1d(classes, self.classes_)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {classes}."
            )
        return y

    def _make_head(self, y: Any, sample_weight: Array | None) -> Head:
        return classifier_head(self.cost, len(self.classes_), self._multilabel)

    def _targets(self, y: Any, dtype: np.dtype[Any]) -> Array:
        if self._head.labels:
            index: Array = np.searchsorted(self.classes_, y)
            return index
        return np.asarray(self._label_binarizer.transform(y), dtype)

    def _sample_weight(self, y: Any, sample_weight: Array | None) -> Array | None:
        if self.class_weight is None:
            return sample_weight
        own = np.ones(len(y)) if sample_weight is None else sample_weight
        if self._multilabel or isinstance(self.class_weight, dict):
            return np.asarray(own * compute_sample_weight(self.class_weight, y))
        # Classes are balanced by their weight, so that a sample of weight 2 is as good as two.
        index = np.searchsorted(self.classes_, y)
        totals = np.bincount(index, weights=own)
        of_class = np.maximum(totals, np.finfo(float).tiny)[index]  # nothing weighs 0 / 0
        return np.asarray(own / of_class * totals.sum() / np.count_nonzero(totals))

    def _stratify(self, y: Any) -> Any:
        return None if self._multilabel else y

    def _decode(self, probabilities: Array) -> Array:
        """Classes, (B,), or labels, (B, K), of probabilities (B, K)."""
        if self._multilabel:
            labels: Array = (probabilities > 0.5).astype(self.classes_.dtype)
            return labels
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def _probabilities(self, raw: Array) -> Array:
        if len(self.classes_) == 1 and not self._multilabel:
            return np.ones((len(raw), 1), raw.dtype)
        if self._multilabel or self._head.units > 1:
            return self._head.output(raw)
        if self._head.tail is None:  # 1 - p would round what is small
            return self._head.output(np.hstack([-raw, raw]))
        return np.hstack([1 - raw, raw])

    def _score_raw(self, raw: Array, y: Any, sample_weight: Array | None) -> float:
        if not np.isfinite(raw).all():
            return float("nan")
        predicted = self._decode(self._probabilities(raw))
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPClassifier:
        """Train.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)
        y : array_like, (n_samples,) or (n_samples, n_labels)
            Classes, or rows of 0 and 1.
        sample_weight : array_like, (n_samples,), optional
            Weights of the average loss.

        Returns
        -------
        MLPClassifier
            Itself.
        """
        self._fit(X, y, sample_weight, incremental=False)
        return self

    @available_if(lambda self: self._can_partial_fit())
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """One epoch, from the weights and the optimiser of the call before.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)
        y : array_like, (n_samples,) or (n_samples, n_labels)
        sample_weight : array_like, (n_samples,), optional
        classes : array_like, (n_classes,)
            All classes; needed in the first call.

        Returns
        -------
        MLPClassifier
            Itself.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all samples at once: give partial_fit a dict"
            )
        if _check_partial_fit_first_call(self, classes):
            self._learn_classes(y if type_of_target(y).startswith("multilabel") else classes)
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)

        Returns
        -------
        numpy.ndarray, (n_samples, n_classes)
            In the order of ``classes_``; with several labels that of each.
        """
        return self._probabilities(self._raw(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`; -inf where a probability is 0 after rounding.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)

        Returns
        -------
        numpy.ndarray, (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.predict_proba(X))
        return logs

    def predict(self, X: Any) -> Array:
        """The most probable classes.

        Parameters
        ----------
        X : array_like, (n_samples, n_features)

        Returns
        -------
        numpy.ndarray, (n_samples,) or (n_samples, n_labels)
        """
        check_is_fitted(self)
        return self._decode(self.predict_proba(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, Any]:  # before scikit-learn 1.6
        return {"multilabel": True}
