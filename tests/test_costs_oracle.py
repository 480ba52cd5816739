"""Every cost against PyTorch (QuantileLoss and SquaredError: their formulas in NumPy)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from gradstack import _core, nn

torch = pytest.importorskip("torch", reason="the oracle is not installed")

# PyTorch announces that KLDivLoss's "mean" will change.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")

TABLE = {row["name"]: row for row in _core.costs() if row["gradient"]}
SHAPES = [(1, 1), (7, 1), (5, 3), (33, 17), (2, 65)]


class Case(NamedTuple):
    """One cost with its arguments, how to draw its data, and PyTorch's version of it."""

    name: str
    arguments: dict[str, Any]
    ybar: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    y: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
    oracle: Callable[..., Any]  # (ybar, y, reduction) -> torch tensor


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=shape) * 2


def probability(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.uniform(0.01, 0.99, size=shape)


def distribution(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.dirichlet(np.ones(shape[1]), size=shape[0])


def log_distribution(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.log(distribution(rng, shape) + 1e-3)


def label(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.integers(0, shape[1], size=shape[0])


def count(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.poisson(3, size=shape).astype(float)


def sign(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.choice([-1.0, 1.0], size=shape)


def mean_and_variance(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    variance = rng.uniform(0.1, 3, size=shape)
    variance[0, 0] = 1e-9  # below eps
    return np.concatenate([rng.normal(size=shape), variance], axis=1)


def pick_class_weights(classes: int) -> np.ndarray:
    weights = np.linspace(0.5, 2, classes)
    weights[-1] *= 3
    return weights


def plain(cls: str, **options: Any) -> Callable[..., Any]:
    return lambda ybar, y, reduction: getattr(torch.nn, cls)(reduction=reduction, **options)(
        ybar, y
    )


def weighted(cls: str, **options: Any) -> Callable[..., Any]:
    def oracle(ybar: Any, y: Any, reduction: str) -> Any:
        weight = torch.tensor(pick_class_weights(ybar.shape[1]), dtype=ybar.dtype)
        return getattr(torch.nn, cls)(weight=weight, reduction=reduction, **options)(ybar, y)

    return oracle


def gaussian(**options: Any) -> Callable[..., Any]:
    def oracle(ybar: Any, y: Any, reduction: str) -> Any:
        mean, variance = ybar.tensor_split(2, dim=1)
        return torch.nn.GaussianNLLLoss(reduction=reduction, **options)(mean, y, variance)

    return oracle


def formula(elementwise: Callable[..., Any], summed: bool) -> Callable[..., Any]:
    """A cost PyTorch lacks, from its formula; summed or averaged over the components."""

    def oracle(ybar: Any, y: Any, reduction: str) -> Any:
        elements = elementwise(y - ybar)
        if reduction == "none":
            return elements * elements.shape[1] if summed else elements
        if reduction == "sum":
            return elements.sum()
        per_sample = elements.sum(1) if summed else elements.mean(1)
        return per_sample.mean()

    return oracle


def actions(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.column_stack([label(rng, shape), rng.normal(size=(shape[0], 1))])


def actions_and_log_pi(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    old = -np.log(shape[1]) + rng.normal(size=shape[0])
    return np.column_stack([actions(rng, shape), old])


def mean_and_log_std(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=(shape[0], 2 * shape[1])) / 2


def moves(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=(shape[0], shape[1] + 1)) / 2


def moves_and_log_pi(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    # Near log pi of the draws above, so that ratios fall on both sides of the clip.
    old = -1.3 * shape[1] + rng.normal(size=(shape[0], 1)) * np.sqrt(shape[1]) / 2
    return np.column_stack([moves(rng, shape), old])


def policy(family: str, entropy: float = 0.0, clip: float | None = None) -> Callable[..., Any]:
    """-f(log pi) - entropy * H with torch.distributions."""

    def oracle(ybar: Any, y: Any, reduction: str) -> Any:
        extra = 1 if clip is None else 2
        if family == "categorical":
            pi = torch.distributions.Categorical(logits=ybar)
            log_pi, h = pi.log_prob(y[:, 0]), pi.entropy()
        else:
            mean, log_std = ybar.tensor_split(2, dim=1)
            pi = torch.distributions.Normal(mean, log_std.exp())
            log_pi, h = pi.log_prob(y[:, :-extra]).sum(1), pi.entropy().sum(1)
        f = log_pi * y[:, -extra]
        if clip is not None:
            ratio = (log_pi - y[:, -1]).exp()
            f = torch.minimum(ratio * y[:, -2], ratio.clamp(1 - clip, 1 + clip) * y[:, -2])
        losses = -f - entropy * h
        return losses if reduction == "none" else getattr(losses, reduction)()

    return oracle


def pinball(q: float) -> Callable[..., Any]:
    return formula(lambda e: torch.maximum(q * e, (q - 1) * e), summed=False)


CASES = [
    Case("SquaredError", {}, normal, normal, formula(lambda e: e**2, summed=True)),
    Case("MSELoss", {}, normal, normal, plain("MSELoss")),
    Case("L1Loss", {}, normal, normal, plain("L1Loss")),
    Case("SmoothL1Loss", {}, normal, normal, plain("SmoothL1Loss")),
    Case("SmoothL1Loss", {"beta": 0.3}, normal, normal, plain("SmoothL1Loss", beta=0.3)),
    Case("SmoothL1Loss", {"beta": 0.0}, normal, normal, plain("SmoothL1Loss", beta=0.0)),
    Case("HuberLoss", {}, normal, normal, plain("HuberLoss")),
    Case("HuberLoss", {"delta": 2.5}, normal, normal, plain("HuberLoss", delta=2.5)),
    Case("CrossEntropyLoss", {}, normal, label, plain("CrossEntropyLoss")),
    Case("CrossEntropyLoss", {}, normal, distribution, plain("CrossEntropyLoss")),
    Case("CrossEntropyLoss", {"weight": "classes"}, normal, label, weighted("CrossEntropyLoss")),
    Case(
        "CrossEntropyLoss",
        {"weight": "classes"},
        normal,
        distribution,
        weighted("CrossEntropyLoss"),
    ),
    *(
        Case(
            "CrossEntropyLoss",
            {"label_smoothing": 0.15, **extra},
            normal,
            y,
            make("CrossEntropyLoss", label_smoothing=0.15),
        )
        for y in (label, distribution)
        for extra, make in (({}, plain), ({"weight": "classes"}, weighted))
    ),
    Case("NLLLoss", {}, log_distribution, label, plain("NLLLoss")),
    Case("NLLLoss", {"weight": "classes"}, log_distribution, label, weighted("NLLLoss")),
    Case("BCELoss", {}, probability, probability, plain("BCELoss")),
    Case("BCEWithLogitsLoss", {}, normal, probability, plain("BCEWithLogitsLoss")),
    *(
        Case(
            "PoissonNLLLoss",
            {"log_input": log_input, "full": full},
            normal if log_input else probability,
            count,
            plain("PoissonNLLLoss", log_input=log_input, full=full),
        )
        for log_input in (True, False)
        for full in (True, False)
    ),
    *(
        Case("GaussianNLLLoss", options, mean_and_variance, normal, gaussian(**options))
        for options in ({}, {"full": True}, {"eps": 0.5})
    ),
    Case("KLDivLoss", {}, log_distribution, distribution, plain("KLDivLoss")),
    Case(
        "KLDivLoss",
        {"log_target": True},
        log_distribution,
        log_distribution,
        plain("KLDivLoss", log_target=True),
    ),
    Case("HingeEmbeddingLoss", {}, normal, sign, plain("HingeEmbeddingLoss")),
    Case(
        "HingeEmbeddingLoss",
        {"margin": 2.5},
        normal,
        sign,
        plain("HingeEmbeddingLoss", margin=2.5),
    ),
    Case("QuantileLoss", {}, normal, normal, pinball(0.5)),
    Case("QuantileLoss", {"q": 0.9}, normal, normal, pinball(0.9)),
    *(
        Case(f"{family}PolicyLoss", options, ybar, y, policy(family.lower(), **options))
        for family, ybar, y in (
            ("Categorical", normal, actions),
            ("Gaussian", mean_and_log_std, moves),
        )
        for options in ({}, {"entropy": 0.3})
    ),
    *(
        Case(
            f"{family}PPOLoss", options, ybar, y, policy(family.lower(), **{"clip": 0.2, **options})
        )
        for family, ybar, y in (
            ("Categorical", normal, actions_and_log_pi),
            ("Gaussian", mean_and_log_std, moves_and_log_pi),
        )
        for options in ({}, {"clip": 0.5, "entropy": 0.3})
    ),
]
_IDS = [
    f"{c.name}-{c.y.__name__}-{','.join(f'{k}={v}' for k, v in c.arguments.items())}" for c in CASES
]
cases = pytest.mark.parametrize("case", CASES, ids=_IDS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def test_every_cost_and_argument_has_an_oracle() -> None:
    assert {case.name for case in CASES} == set(TABLE)
    for name, row in TABLE.items():
        covered = {key for case in CASES if case.name == name for key in case.arguments}
        wanted = {key for key, _ in row["params"]} | ({"weight"} if row["class_weights"] else set())
        # PoissonNLLLoss's eps has a test of its own below.
        assert wanted - {"eps"} <= covered, name


def make(case: Case, shape: tuple[int, int], reduction: str = "mean") -> Any:
    arguments = dict(case.arguments)
    if "weight" in arguments:
        arguments["weight"] = pick_class_weights(shape[1])
    return getattr(nn, case.name)(reduction=reduction, **arguments)


def draw(case: Case, shape: tuple[int, int], dtype: type = np.float64) -> tuple[Any, Any]:
    rng = np.random.default_rng(shape[0] * 100 + shape[1])
    ybar, y = case.ybar(rng, shape).astype(dtype), case.y(rng, shape)
    return ybar, y if y.dtype.kind == "i" else y.astype(dtype)


def gradient(cost: Any, ybar: np.ndarray, y: Any, sample_weight: Any = None) -> np.ndarray:
    """Gradient of the average with respect to ybar."""
    rows, target, _ = cost._read(ybar, y)
    if sample_weight is not None:
        sample_weight = sample_weight.astype(rows.dtype)
    result = cost._core_cost(rows.dtype).gradient(rows, target, sample_weight)
    return np.asarray(result)


def torch_gradient(case: Case, ybar: np.ndarray, y: Any, reduction: str) -> tuple[float, Any]:
    x = torch.tensor(ybar.astype(np.float64), requires_grad=True)
    target = torch.tensor(y if y.dtype.kind == "i" else y.astype(np.float64))
    loss = case.oracle(x, target, reduction)
    loss.backward()
    return loss.item(), x.grad.numpy()


def assert_close(got: Any, expected: Any, rtol: float) -> None:
    """Relative to the largest entry."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    scale = np.abs(expected).max(initial=0)
    assert np.abs(got - expected).max(initial=0) <= rtol * max(scale, 1e-3)


@cases
@shapes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_gradient_float64(case: Case, shape: tuple[int, int], reduction: str) -> None:
    cost = make(case, shape, reduction)
    ybar, y = draw(case, shape)
    loss, dybar = torch_gradient(case, ybar, y, reduction)
    assert cost(ybar, y) == pytest.approx(loss, rel=1e-10, abs=1e-13)
    assert_close(gradient(cost, ybar, y), dybar, 1e-10)


@cases
@shapes
def test_value_and_gradient_float32(case: Case, shape: tuple[int, int]) -> None:
    cost = make(case, shape)
    ybar, y = draw(case, shape, np.float32)
    loss, dybar = torch_gradient(case, ybar, y, "mean")
    tolerance = 32 * float(np.finfo(np.float32).eps)
    assert cost(ybar, y) == pytest.approx(loss, rel=tolerance, abs=tolerance)
    assert gradient(cost, ybar, y).dtype == np.float32
    # 1/v and log v of a variance near eps carry its rounding, magnified.
    assert_close(gradient(cost, ybar, y), dybar, tolerance)


@cases
@shapes
def test_per_sample(case: Case, shape: tuple[int, int]) -> None:
    cost = make(case, shape)
    ybar, y = draw(case, shape)
    target = torch.tensor(y)
    losses = case.oracle(torch.tensor(ybar), target, "none").numpy()
    if losses.ndim == 2:
        losses = losses.mean(axis=1)
    got = cost.per_sample(ybar, y)
    assert got.shape == (shape[0],)
    assert_close(got, losses, 1e-10)
    single = cost.per_sample(ybar[0], y[0])
    assert np.ndim(single) == 0
    assert float(single) == pytest.approx(float(got[0]), rel=1e-14)


@cases
def test_gradient_of_every_sample(case: Case) -> None:
    shape = (7, 5)
    cost = make(case, shape)
    ybar, y = draw(case, shape)
    x = torch.tensor(ybar, requires_grad=True)
    losses = case.oracle(x, torch.tensor(y), "none")
    (losses.mean(1) if losses.ndim == 2 else losses).sum().backward()
    assert_close(cost.gradient(ybar, y), x.grad.numpy(), 1e-10)


@cases
def test_sample_weights_give_the_weighted_average(case: Case) -> None:
    shape = (9, 5)
    cost = make(case, shape)
    ybar, y = draw(case, shape)
    weight = np.random.default_rng(1).uniform(0, 2, 9)
    weight[3] = 0
    x = torch.tensor(ybar, requires_grad=True)
    losses = case.oracle(x, torch.tensor(y), "none")
    losses = losses.mean(1) if losses.ndim == 2 else losses
    # Class weights of labelled samples count in the average's denominator, as in PyTorch.
    share = weight.copy()
    if "weight" in case.arguments and y.dtype.kind == "i":
        share *= pick_class_weights(5)[y]
    loss = (losses * torch.tensor(weight)).sum() / share.sum()
    loss.backward()
    assert cost(ybar, y, weight) == pytest.approx(loss.item(), rel=1e-10)
    assert_close(gradient(cost, ybar, y, weight), x.grad.numpy(), 1e-10)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCEWithLogitsLoss"])
@pytest.mark.parametrize("scale", [30.0, 100.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits(name: str, scale: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    ybar = (rng.choice([-1.0, 0.5, 1.0], size=(50, 4)) * scale).astype(dtype)
    y = label(rng, (50, 4)) if name == "CrossEntropyLoss" else sign(rng, (50, 4)) / 2 + 0.5
    y = y if y.dtype.kind == "i" else y.astype(dtype)
    case = Case(name, {}, normal, label, plain(name))
    loss, dybar = torch_gradient(case, ybar, y, "mean")
    cost = getattr(nn, name)()
    rtol = 1e-10 if dtype is np.float64 else 1e-5
    assert cost(ybar, y) == pytest.approx(loss, rel=rtol)
    assert_close(gradient(cost, ybar, y), dybar, rtol)


def test_bce_at_the_ends_is_clamped_as_in_pytorch() -> None:
    ybar, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([[1.0], [0.0], [0.0], [1.0]])
    expected = torch.nn.BCELoss(reduction="none")(torch.tensor(ybar), torch.tensor(y)).numpy()
    np.testing.assert_allclose(nn.BCELoss().per_sample(ybar, y), expected[:, 0], rtol=1e-12)
    case = Case("BCELoss", {}, probability, probability, plain("BCELoss"))
    _, dybar = torch_gradient(case, ybar, y, "mean")
    # PyTorch divides by p (1 - p) or 1e-12, the latter as a float32.
    assert_close(gradient(nn.BCELoss(), ybar, y), dybar, 1e-8)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_poisson_eps(eps: float) -> None:
    ybar, y = np.array([[0.0, 1e-6, 2.0]]), np.array([[1.0, 2.0, 3.0]])
    oracle = plain("PoissonNLLLoss", log_input=False, eps=eps)
    case = Case("PoissonNLLLoss", {}, normal, count, oracle)
    cost = nn.PoissonNLLLoss(log_input=False, eps=eps)
    loss, dybar = torch_gradient(case, ybar, y, "mean")
    assert cost(ybar, y) == pytest.approx(loss, rel=1e-10)
    assert_close(gradient(cost, ybar, y), dybar, 1e-10)


def test_second_derivatives_of_policies() -> None:
    for case in CASES:
        if not case.name.endswith(("PolicyLoss", "PPOLoss")):
            continue
        ybar, y = draw(case, (6, 3))
        v = np.random.default_rng(3).normal(size=ybar.shape)
        target = torch.tensor(y)
        expected = torch.autograd.functional.hvp(
            lambda x, case=case, target=target: case.oracle(x, target, "sum"),
            torch.tensor(ybar),
            torch.tensor(v),
        )[1]
        assert_close(make(case, (6, 3)).hvp(ybar, y, v), expected.numpy(), 1e-10)


def test_actions_are_checked() -> None:
    cost = nn.CategoricalPolicyLoss()
    for action in (-1.0, 3.0, 0.5, np.nan):
        with pytest.raises(ValueError, match=r"y\[1, 0\] = .*expected an action in 0..2"):
            cost(np.zeros((2, 3)), np.array([[0.0, 1.0], [action, 1.0]]))
    with pytest.raises(ValueError, match=r"y has shape \(2, 3\), expected \(2, 2\)"):
        cost(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="expected an even number"):
        nn.GaussianPolicyLoss()(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"clip must be strictly between 0 and 1"):
        nn.GaussianPPOLoss(clip=1.0)


def test_kinks_follow_pytorch() -> None:
    """Where |e| is exactly 0, beta, delta or the margin."""
    edge = np.array([[0.0, 1.0, -1.0, 0.5, -0.5, 2.0]])
    zero = np.zeros_like(edge)
    for case in CASES:
        if case.name in ("L1Loss", "SmoothL1Loss", "HuberLoss"):
            _, dybar = torch_gradient(case, edge, zero, "mean")
            assert_close(gradient(make(case, edge.shape), edge, zero), dybar, 1e-12)
        if case.name == "HingeEmbeddingLoss":
            for target in (np.ones_like(edge), -np.ones_like(edge)):
                margin = np.append(edge[0, :-1], case.arguments.get("margin", 1.0))[None]
                _, dybar = torch_gradient(case, margin, target, "mean")
                assert_close(gradient(make(case, margin.shape), margin, target), dybar, 1e-12)
