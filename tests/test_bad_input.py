"""What users get wrong: the message names the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

RNG = np.random.default_rng(3)
X = RNG.standard_normal((20, 3)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(int)


def fit(**changes: Any) -> gs.History:
    arguments: dict[str, Any] = {
        "X": X,
        "y": LABELS,
        "cost": nn.CrossEntropyLoss(),
        "optimizer": optim.SGD(lr=0.1),
        "epochs": 1,
    }
    return gs.fit(nn.Linear(3, 2), **{**arguments, **changes})


class Watch:
    def on_epoch_end(self, state: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"batch_size": 2**70}, ValueError, r"^batch_size must be less than 2\*\*63"),
        ({"seed": 2**64}, ValueError, r"^seed must be less than 2\*\*63"),
        ({"shuffle": "no"}, TypeError, "^shuffle must be True or False, got 'no'"),
        ({"callbacks": 3}, TypeError, "^callbacks must be a callable, .* got 3"),
        ({"callbacks": [Watch]}, TypeError, r"instance: Watch\(\), not Watch"),
        ({"callbacks": Watch}, TypeError, r"instance: Watch\(\), not Watch"),
        ({"y": LABELS[:, None]}, ValueError, r"\(20, 1\), expected class labels \(20,\) or"),
        ({"validation": (X, LABELS[:3])}, ValueError, "^validation .*y has shape"),
        ({"validation": (X, LABELS + 9)}, ValueError, "^validation .*class labels are in"),
        ({"validation": (X[:, :2], LABELS)}, ValueError, "^validation .*X has 2 features"),
        ({"validation": (X, LABELS, [1])}, ValueError, "^validation sample_weight has shape"),
        ({"validation": (X * np.nan, LABELS)}, ValueError, "^validation X has nan in row 0"),
    ],
)
def test_fit(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fit(**changes)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU), TypeError, r"class ReLU: write ReLU\("),
        (lambda: nn.Residual(nn.ReLU), TypeError, r"\[Residual\] .* class ReLU"),
        (lambda: nn.Concat(nn.ReLU), TypeError, r"\[Concat\] .* class ReLU"),
        (lambda: nn.Sequential([nn.ReLU()]), TypeError, r"got list: .* \(\*modules\)"),
        (lambda: nn.Sequential(nn.ReLU())["0"], TypeError, "integer"),
        (lambda: nn.Linear(3, 2, np.eye(3)), TypeError, "^bias must be True or False"),
        (lambda: nn.Dropout(1.0), ValueError, "^p must be less than 1"),
        (lambda: optim.SGD(nesterov="yes"), TypeError, "^nesterov must be True or False"),
        (lambda: gs.EarlyStopping(restore_best="no"), TypeError, "^restore_best must be True"),
        (lambda: nn.PoissonNLLLoss(log_input="no"), TypeError, "^log_input must be True or False"),
        (lambda: nn.GaussianNLLLoss(full="no"), TypeError, "^full must be True or False"),
        (lambda: nn.KLDivLoss(log_target="no"), TypeError, "^log_target must be True or False"),
        (lambda: nn.ReLU().train("no"), TypeError, "^mode must be True or False"),
        (
            lambda: gs.backprop(nn.Linear(1, 1), nn.MSELoss(), [1.0], [1.0], per_sample="no"),
            TypeError,
            "^per_sample must be True or False",
        ),
        (lambda: gs.seed(-1), ValueError, "^n must be at least 0"),
        (lambda: gs.seed("a"), TypeError, "^n must be an integer, got 'a'"),
    ],
)
def test_construction(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("forward", "symbol"),
    [
        (lambda x: x**2, r"^\*\*"),
        (lambda x: 2**x, r"^\*\*"),
        (lambda x: x @ x, "^@"),
        (lambda x: x % 2, "^%"),
        (lambda x: x // 2, "^//"),
        (abs, r"^abs\(\)"),
    ],
)
def test_operators_that_a_graph_lacks(forward: Callable[[Any], Any], symbol: str) -> None:
    net = type("Net", (nn.Module,), {"forward": lambda self, x: forward(x)})()
    with pytest.raises(TypeError, match=symbol + " cannot be recorded"):
        net(X)


def test_frames() -> None:
    pandas = pytest.importorskip("pandas")
    net = nn.Linear(3, 2)
    numbers = pandas.DataFrame(X, columns=list("abc")).astype("Float32")
    np.testing.assert_array_equal(net(numbers), net(X))
    with pytest.raises(TypeError, match=r"^x .*misses values"):
        net(numbers.mask(numbers > 1))
    with pytest.raises(TypeError, match=r"^y .*real numbers"):
        fit(y=pandas.Series(np.where(LABELS, "yes", "no")))


def test_sparse_matrices() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^x .*sparse csr_array: use its toarray\(\)"):
        nn.Linear(3, 2)(sparse.csr_array(X))


@pytest.mark.parametrize("losses", [["a"] * 20, [1j] * 20, [None] * 20])
def test_a_python_cost_that_returns_no_real_numbers(losses: list[Any]) -> None:
    class Odd(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return losses

        def gradient(self, ybar: Any, y: Any) -> Any:
            return ybar

    with pytest.raises(TypeError, match=r"^\[Odd\] what value returned has dtype"):
        fit(y=X[:, :2], cost=Odd())


def test_more_threads_than_a_system_starts() -> None:
    weights = []
    for num_threads in (1, 100_000, 2**40):
        gs.seed(0)
        net = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 2))
        gs.fit(
            net,
            X,
            LABELS,
            cost=nn.CrossEntropyLoss(),
            optimizer=optim.SGD(lr=0.1),
            epochs=1,
            num_threads=num_threads,
        )
        weights.append(net.w.copy())
    assert np.array_equal(weights[0], weights[1])
    assert np.array_equal(weights[0], weights[2])


def test_a_python_cost_that_overflows_is_a_loss_that_is_not_finite() -> None:
    class Steep(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return np.full(len(ybar), 1e300)

        def gradient(self, ybar: Any, y: Any) -> Any:
            return ybar

    with pytest.raises(FloatingPointError, match="epoch 0, step 0"):
        fit(y=X[:, :2], cost=Steep())


def test_files_of_no_net_and_no_path() -> None:
    with pytest.raises(TypeError, match=r"^net must be an instance: Linear\(\.\.\.\), not Linear"):
        gs.save(nn.Linear, "net.safetensors")
    with pytest.raises(TypeError, match="int"):
        gs.load(0)  # a file descriptor, to open()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_policies_whose_outputs_are_not_finite(bad: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^ybar holds NaN or infinity: "):
        gs.rl.Categorical.sample(np.array([0.0, bad]), rng)
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=r"^ybar holds NaN or infinity in row 1"),
    ):
        gs.rl.Categorical.sample(np.array([[0.0, 0.0], [0.0, bad]]), rng)
    assert gs.rl.Categorical.sample(np.array([0.0, -np.inf]), rng) == 0
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2 m,\)"):
        gs.rl.Gaussian.sample(np.zeros(3), rng)
