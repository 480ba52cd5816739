"""`gradstack.sklearn`: scikit-learn's own checks, its MLP as the oracle, and what is added."""

import doctest
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators are scikit-learn's kind")

from sklearn import neural_network as oracle
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import gradstack as gs
from gradstack import nn
from gradstack.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore::sklearn.exceptions.SkipTestWarning",
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 5))
THREE = np.digitize(X[:, 0] + 0.5 * X[:, 1], [-0.5, 0.5])
TWO = np.where(THREE > 0, "yes", "no")
LABELS = np.stack([THREE > 0, THREE < 2, X[:, 2] > 0], axis=1).astype(int)
VALUE = 2 * X[:, 0] + np.sin(X[:, 1])
VALUES = np.stack([VALUE, np.cos(X[:, 2])], axis=1)

PROBLEMS = {
    "binary": (MLPClassifier, TWO, {}),
    "multiclass": (MLPClassifier, THREE, {}),
    "multilabel": (MLPClassifier, LABELS, {}),
    "regression": (MLPRegressor, VALUE, {}),
    "several outputs": (MLPRegressor, VALUES, {}),
}
FEW = {"hidden_layer_sizes": (8, 6), "batch_size": 30, "shuffle": False, "tol": 0.0}


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        MLPClassifier(solver="lbfgs", max_iter=100),
        MLPRegressor(solver="lbfgs", max_iter=100),
        MLPClassifier(cost=nn.SquaredError(), max_iter=100),
        MLPRegressor(cost=nn.HuberLoss(), activation=["gelu"], max_iter=100),
    ]
)
def test_checks_of_scikit_learn_with_other_solvers_and_costs(estimator, check):
    check(estimator)


def both(kind, y, **arguments):
    """Estimators of scikit-learn and of gradstack, fitted alike."""
    peer = getattr(oracle, kind.__name__)(random_state=3, **arguments).fit(X, y)
    return peer, kind(random_state=3, **arguments).fit(X, y)


def assert_same(own, peer, tolerance=1e-6):
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(own, name) == getattr(peer, name), name
    for a, b in zip(own.coefs_ + own.intercepts_, peer.coefs_ + peer.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    assert own.loss_ == pytest.approx(peer.loss_, rel=0, abs=tolerance)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize(
    "solver",
    [
        {"solver": "sgd", "learning_rate_init": 0.02},
        {"solver": "sgd", "learning_rate_init": 0.02, "momentum": 0.0},
        {"solver": "sgd", "learning_rate_init": 0.02, "nesterovs_momentum": False},
        {"solver": "sgd", "learning_rate_init": 0.1, "learning_rate": "invscaling"},
        # PyTorch adds epsilon after the correction, scikit-learn before: here it is nothing.
        {"solver": "adam", "learning_rate_init": 0.01, "epsilon": 1e-30},
    ],
    ids=["nesterov", "plain", "momentum", "invscaling", "adam"],
)
def test_same_training_as_scikit_learn(problem, activation, solver):
    kind, y, more = PROBLEMS[problem]
    arguments = {**FEW, **solver, **more}
    peer, own = both(kind, y, activation=activation, max_iter=5, **arguments)
    assert_same(own, peer)
    np.testing.assert_allclose(own.loss_curve_, peer.loss_curve_, rtol=0, atol=1e-6)
    assert own.best_loss_ == pytest.approx(peer.best_loss_, abs=1e-6)
    np.testing.assert_allclose(own.predict(X) == y, peer.predict(X) == y)
    if kind is MLPClassifier:
        np.testing.assert_allclose(own.predict_proba(X), peer.predict_proba(X), atol=1e-6)
        np.testing.assert_allclose(own.predict_log_proba(X), peer.predict_log_proba(X), atol=1e-5)
        np.testing.assert_array_equal(own.classes_, peer.classes_)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_alpha_is_scikit_learns(problem, solver):
    kind, y, _ = PROBLEMS[problem]
    arguments = {"alpha": 3.0, "solver": solver, "epsilon": 1e-30, "max_iter": 4, **FEW}
    peer, own = both(kind, y, **arguments)
    for a, b in zip(own.coefs_, peer.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
    # Between the ends of an epoch its penalty is taken as a line, which one step has no need of.
    peer, own = both(kind, y, **{**arguments, "batch_size": 120})
    np.testing.assert_allclose(own.loss_curve_, peer.loss_curve_, rtol=0, atol=1e-9)


def test_alpha_of_a_smaller_last_batch_is_that_of_the_others():
    arguments = {**FEW, "batch_size": 50, "solver": "sgd", "max_iter": 3, "random_state": 3}
    own, peer = (kind(alpha=1e-2, **arguments) for kind in (MLPRegressor, oracle.MLPRegressor))
    own.fit(X, VALUE), peer.fit(X, VALUE)
    difference = max(np.abs(a - b).max() for a, b in zip(own.coefs_, peer.coefs_, strict=True))
    assert 0 < difference < 1e-5


@pytest.mark.parametrize("problem", ["binary", "multiclass", "multilabel", "regression"])
def test_lbfgs_is_scikit_learns(problem):
    kind, y, _ = PROBLEMS[problem]
    peer, own = both(
        kind, y, solver="lbfgs", activation="tanh", hidden_layer_sizes=(4,), max_iter=8
    )
    assert_same(own, peer)


def test_poisson_loss():
    if "loss" not in oracle.MLPRegressor().get_params():
        pytest.skip("scikit-learn before 1.7 has no Poisson loss")
    peer, own = both(MLPRegressor, np.abs(VALUE), loss="poisson", solver="sgd", max_iter=5, **FEW)
    assert_same(own, peer)
    assert (own.predict(X) > 0).all()
    with pytest.raises(ValueError, match="negative"):
        MLPRegressor(loss="poisson").fit(X, VALUE)


def test_sample_weight_is_scikit_learns():
    weight = np.repeat([1.0, 3.0], 60)
    arguments = {**FEW, "batch_size": 120, "solver": "sgd", "max_iter": 4, "random_state": 3}
    own = MLPClassifier(**arguments).fit(X, THREE, sample_weight=weight)
    try:
        peer = oracle.MLPClassifier(**arguments).fit(X, THREE, sample_weight=weight)
    except TypeError:
        pytest.skip("scikit-learn before 1.7 has no sample_weight")
    assert_same(own, peer)


def test_adaptive_rate_and_stopping_are_scikit_learns():
    arguments = {
        **FEW,
        "solver": "sgd",
        "learning_rate": "adaptive",
        "learning_rate_init": 0.1,
        "tol": 0.01,
        "n_iter_no_change": 2,
        "max_iter": 300,
    }
    peer, own = both(MLPClassifier, THREE, **arguments)
    assert own.n_iter_ < 300
    assert_same(own, peer)


def test_early_stopping_is_scikit_learns():
    arguments = {
        **FEW,
        "solver": "sgd",
        "learning_rate_init": 0.02,
        "early_stopping": True,
        "validation_fraction": 0.25,
        "n_iter_no_change": 3,
        "tol": 1e-3,
    }
    peer, own = both(MLPRegressor, VALUE, **arguments)
    np.testing.assert_allclose(own.validation_scores_, peer.validation_scores_, atol=1e-9)
    assert own.best_validation_score_ == max(own.validation_scores_)
    assert own.best_loss_ is None
    assert_same(own, peer)


def test_partial_fit_is_scikit_learns():
    arguments = {**FEW, "solver": "adam", "epsilon": 1e-30, "random_state": 3}
    peer, own = oracle.MLPClassifier(**arguments), MLPClassifier(**arguments)
    for rows in (slice(0, 60), slice(60, 120), slice(0, 20)):  # the last one is one small batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            peer.partial_fit(X[rows], TWO[rows], classes=["no", "yes"])
            own.partial_fit(X[rows], TWO[rows], classes=["no", "yes"])
    assert_same(own, peer)
    with pytest.raises(ValueError, match="classes"):
        own.partial_fit(X, THREE)
    with pytest.raises(ValueError, match="early_stopping"):
        MLPRegressor(early_stopping=True).partial_fit(X, VALUE)
    assert not hasattr(MLPRegressor(solver="lbfgs"), "partial_fit")


def test_warm_start_is_scikit_learns():
    arguments = {**FEW, "solver": "sgd", "warm_start": True, "max_iter": 2}
    peer, own = both(MLPRegressor, VALUE, **arguments)
    peer.fit(X, VALUE), own.fit(X, VALUE)
    assert_same(own, peer)
    assert len(own.loss_curve_) == 4
    with pytest.raises(ValueError, match="hidden layers"):
        own.set_params(hidden_layer_sizes=(3,)).fit(X, VALUE)
    own = MLPClassifier(warm_start=True, solver="lbfgs", max_iter=5).fit(X, TWO)
    assert own.set_params(solver="adam").fit(X, TWO).n_iter_ == 5


def test_signature_is_scikit_learns():
    for kind in (MLPClassifier, MLPRegressor):
        own = kind().get_params()
        for name, value in getattr(oracle, kind.__name__)().get_params().items():
            assert own[name] == value, name


def test_activations_of_layers():
    own = MLPClassifier((6, 5), ["gelu", "logistic"], max_iter=3).fit(X, TWO)
    assert [type(m).__name__ for m in own.net_] == ["Linear", "GELU", "Linear", "Sigmoid", "Linear"]
    z = gs.sigmoid(
        gs.gelu(X @ own.coefs_[0] + own.intercepts_[0]) @ own.coefs_[1] + own.intercepts_[1]
    )
    p = gs.sigmoid(z @ own.coefs_[2] + own.intercepts_[2])
    np.testing.assert_allclose(own.predict_proba(X)[:, 1:], p, atol=1e-12)
    with pytest.raises(ValueError, match="2 entries for 1"):
        MLPClassifier((3,), ["relu", "tanh"]).fit(X, TWO)
    with pytest.raises(ValueError, match="'swish'"):
        MLPClassifier(activation="swish").fit(X, TWO)


@pytest.mark.parametrize(
    "cost",
    [nn.SquaredError(), nn.HuberLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss(),
     nn.KLDivLoss(), nn.L1Loss()],
    ids=lambda cost: type(cost).__name__,
)  # fmt: skip
def test_costs_of_a_classifier(cost):
    own = MLPClassifier((16,), cost=cost, learning_rate_init=0.02, random_state=0).fit(X, THREE)
    p = own.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(own.predict_log_proba(X), np.log(p), atol=1e-9)
    assert own.score(X, THREE) > 0.9


def test_costs_of_two_classes_and_of_labels():
    for cost in (nn.BCELoss(), nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss(), nn.MSELoss()):
        own = MLPClassifier(cost=cost, learning_rate_init=0.01, random_state=0).fit(X, TWO)
        assert own.score(X, TWO) > 0.95
        np.testing.assert_allclose(own.predict_proba(X).sum(axis=1), 1)
    for cost in (nn.BCELoss(), nn.SquaredError()):
        own = MLPClassifier(cost=cost, learning_rate_init=0.01, random_state=0).fit(X, LABELS)
        assert own.score(X, LABELS) > 0.9


def test_costs_of_a_regressor():
    noisy = VALUE.copy()
    noisy[::10] += 50.0  # which the absolute error does not mind
    arguments = {"learning_rate_init": 0.02, "random_state": 0, "max_iter": 300}
    robust = MLPRegressor(cost=nn.L1Loss(), **arguments).fit(X, noisy)
    assert np.median(np.abs(robust.predict(X) - VALUE)) < 0.3

    class Quartic(nn.Cost):
        def value(self, ybar, y):
            return ((ybar - y) ** 4).sum(axis=1)

        def gradient(self, ybar, y):
            return 4 * (ybar - y) ** 3

    own = MLPRegressor(cost=Quartic(), alpha=0.0, **arguments).fit(X, VALUE)
    assert own.score(X, VALUE) > 0.95
    high = MLPRegressor(cost=nn.QuantileLoss(0.9), **arguments).fit(X[:, :1], VALUE)
    assert 0.8 < np.mean(high.predict(X[:, :1]) >= VALUE) < 0.97
    counts = np.round(np.exp(X[:, 0]))
    own = MLPRegressor(cost=nn.PoissonNLLLoss(), **arguments).fit(X, counts)
    assert own.out_activation_ == "exp"
    assert own.score(X, counts) > 0.9


@pytest.mark.parametrize(
    ("estimator", "y", "message"),
    [
        (MLPClassifier(cost=nn.BCEWithLogitsLoss()), THREE, "two classes"),
        (MLPClassifier(cost=nn.CrossEntropyLoss()), LABELS, "one label"),
        (MLPClassifier(cost=nn.GaussianNLLLoss()), THREE, "not one of a classifier"),
        (MLPClassifier(cost=nn.MSELoss(reduction="sum")), THREE, "reduction"),
        (MLPClassifier(cost="mse"), THREE, "cost"),
        (MLPRegressor(cost=nn.CrossEntropyLoss()), VALUE, "not one of a regressor"),
        (MLPRegressor(cost=nn.GaussianNLLLoss()), VALUE, "variances"),
        (MLPRegressor("poisson", cost=nn.MSELoss()), np.abs(VALUE), "either loss or cost"),
        (MLPRegressor(hidden_layer_sizes=(3, 3), dropout=[0.1]), VALUE, "dropout has 1 entries"),
        (MLPRegressor(dropout=[1.0]), VALUE, "dropout"),
        (MLPRegressor(dropout=0.5, solver="lbfgs"), VALUE, "dropout needs"),
        (MLPRegressor(validation=(X, VALUE), solver="lbfgs"), VALUE, "validation needs"),
        (MLPRegressor(validation=(X,)), VALUE, "validation must be"),
        (MLPRegressor(validation=(X[:, :2], VALUE)), VALUE, "2 features"),
        (MLPRegressor(early_stopping=True, validation_fraction=0.008), VALUE, "too small"),
        (MLPRegressor(hidden_layer_sizes=(3, 0)), VALUE, "hidden_layer_sizes"),
        (MLPRegressor(n_threads=0), VALUE, "n_threads"),
        (MLPRegressor(solver="rmsprop"), VALUE, "solver"),
        (MLPRegressor(solver="sgd", learning_rate_init=1e9), VALUE, "non-finite"),
    ],
)
def test_refused(estimator, y, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(X, y)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        MLPRegressor(dtype="int8").fit(X, VALUE)
    with pytest.raises(TypeError, match="integers"):
        MLPRegressor(hidden_layer_sizes=(2.5,)).fit(X, VALUE)
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        MLPRegressor().fit(sparse.csr_matrix(X), VALUE)


def test_dropout_is_active_in_training_alone():
    arguments = {"hidden_layer_sizes": (30,), "random_state": 0, "max_iter": 5, "shuffle": False}
    plain = MLPRegressor(**arguments).fit(X, VALUE)
    dropped = MLPRegressor(dropout=0.5, **arguments).fit(X, VALUE)
    assert [type(m).__name__ for m in dropped.net_] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert dropped.loss_ != plain.loss_
    np.testing.assert_array_equal(dropped.predict(X), dropped.predict(X))
    again = MLPRegressor(dropout=[0.5], **arguments).fit(X, VALUE)
    np.testing.assert_array_equal(again.predict(X), dropped.predict(X))


def test_class_weight_is_a_sample_weight():
    arguments = {**FEW, "random_state": 0, "max_iter": 5}
    given = MLPClassifier(class_weight={"no": 4.0, "yes": 1.0}, **arguments).fit(X, TWO)
    weight = np.where(TWO == "no", 4.0, 1.0)
    same = MLPClassifier(**arguments).fit(X, TWO, sample_weight=weight)
    for a, b in zip(given.coefs_, same.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    rare = (X[:, 0] > 1.3) & (X[:, 1] > -1)
    noise = X[:, 1:]
    arguments = {"hidden_layer_sizes": (), "solver": "lbfgs", "random_state": 0}
    plain = MLPClassifier(**arguments).fit(noise, rare)
    balanced = MLPClassifier(class_weight="balanced", **arguments).fit(noise, rare)
    assert balanced.predict(noise).mean() > plain.predict(noise).mean() + 0.2


def test_balanced_classes():
    weight = np.tile([0.0, 1.0, 2.0], 40)
    count = weight.astype(int)
    arguments = {**FEW, "batch_size": "auto", "class_weight": "balanced", "random_state": 0}
    weighted = MLPClassifier(max_iter=5, **arguments).fit(X, THREE, sample_weight=weight)
    repeated = MLPClassifier(max_iter=5, **arguments).fit(
        X.repeat(count, axis=0), THREE.repeat(count)
    )
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-9)
    with pytest.raises(ValueError, match="balanced"):
        MLPClassifier(class_weight="balanced").partial_fit(X, TWO, classes=["no", "yes"])


def test_samples_of_weight_zero_are_no_samples():
    weight = np.repeat([1.0, 0.0], 60)
    arguments = {**FEW, "random_state": 0, "max_iter": 5}
    own = MLPRegressor(**arguments).fit(X, VALUE, sample_weight=weight)
    half = MLPRegressor(**arguments).fit(X[:60], VALUE[:60])
    np.testing.assert_allclose(own.predict(X), half.predict(X), atol=1e-12)
    with pytest.raises(ValueError, match=r"0 for every sample|at least one non-zero"):
        own.fit(X, VALUE, sample_weight=np.zeros(120))


@pytest.mark.parametrize(("kind", "y"), [(MLPClassifier, TWO), (MLPRegressor, VALUE)])
def test_own_validation_set_gives_the_best_weights(kind, y):
    held = (X[80:], y[80:])
    own = kind(
        validation=held, learning_rate_init=0.03, max_iter=60, n_iter_no_change=5, random_state=0
    ).fit(X[:80], y[:80])
    metric = accuracy_score if kind is MLPClassifier else r2_score
    best = max(own.validation_scores_)
    assert own.best_validation_score_ == best
    assert metric(y[80:], own.predict(X[80:])) == pytest.approx(best, abs=1e-12)
    assert len(own.validation_scores_) == own.n_iter_


def test_dtype_and_threads():
    assert MLPRegressor(max_iter=2).fit(X.astype(np.float32), VALUE).net_.w.dtype == np.float32
    assert MLPRegressor(max_iter=2).fit(X, VALUE).predict(X).dtype == np.float64
    own = MLPRegressor(max_iter=2, dtype="float32").fit(X, VALUE)
    assert own.predict(X).dtype == own.coefs_[0].dtype == np.float32
    one, two = (MLPRegressor(n_threads=n, max_iter=5, random_state=0).fit(X, VALUE) for n in (1, 2))
    np.testing.assert_array_equal(one.net_.w, two.net_.w)


def test_weights_are_views_and_can_be_assigned():
    own = MLPRegressor(hidden_layer_sizes=(4,), max_iter=2).fit(X, VALUE)
    own.intercepts_[1][...] = 7.0
    own.coefs_ = [np.zeros((5, 4)), np.zeros((4, 1))]
    np.testing.assert_array_equal(own.predict(X), 7.0)
    with pytest.raises(ValueError, match="coefs_ have shapes"):
        own.coefs_ = [np.zeros((4, 5)), np.zeros((4, 1))]
    with pytest.raises(AttributeError, match="before it is fitted"):
        _ = MLPRegressor().coefs_


def test_pickle_clone_search_pipeline():
    own = MLPClassifier((5,), cost=nn.SquaredError(), dropout=0.1, random_state=0)
    own.partial_fit(X, TWO, classes=["no", "yes"])
    copy = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(copy.predict_proba(X), own.predict_proba(X))
    copy.partial_fit(X, TWO), own.partial_fit(X, TWO)  # the optimiser's state came along
    np.testing.assert_array_equal(copy.predict_proba(X), own.predict_proba(X))
    assert not hasattr(clone(own), "coefs_")
    pipeline = make_pipeline(StandardScaler(), MLPRegressor(random_state=0, solver="lbfgs"))
    grid = {"mlpregressor__hidden_layer_sizes": [(), (10,)], "mlpregressor__alpha": [0.001, 0.1]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, VALUE)
    assert search.best_params_["mlpregressor__hidden_layer_sizes"] == (10,)
    assert search.best_score_ > 0.9


def test_names_of_features():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcde"))
    own = MLPRegressor(max_iter=2).fit(frame, VALUE)
    assert list(own.feature_names_in_) == list("abcde")
    with pytest.raises(ValueError, match="feature names"):
        own.predict(frame[list("edcba")])


def test_verbose_and_warnings(capsys):
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
        MLPRegressor(max_iter=2, verbose=True).fit(X, VALUE)
    assert capsys.readouterr().out.splitlines()[1].startswith("Iteration 2, loss = ")
    with pytest.warns(UserWarning, match="clipped"):
        MLPRegressor(max_iter=2, batch_size=500).fit(X, VALUE)


def test_import_without_scikit_learn():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import gradstack\n"
        "try: import gradstack.sklearn\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install gradstack[sklearn]" in done.stdout


def test_import_of_gradstack_leaves_scikit_learn_out():
    code = "import sys, gradstack; print('sklearn' in sys.modules, gradstack.sklearn.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "gradstack.sklearn"]


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_docstrings_name_every_argument_and_run(kind):
    text = kind.__doc__.partition("Attributes\n")[0]
    assert not [name for name in kind().get_params() if name not in text]
    finder = doctest.DocTestFinder(recurse=False)
    (examples,) = finder.find(kind, globs={})
    result = doctest.DocTestRunner().run(examples)
    assert result.attempted > 2
    assert result.failed == 0
