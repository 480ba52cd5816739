"""Trajectories of every optimiser against torch.optim (Lion: its paper's formula in NumPy)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradstack as gs
from gradstack import _core, nn, optim

torch = pytest.importorskip("torch", reason="the oracle is not installed")

# Spinning threads of two libraries on a few cores wait for each other.
torch.set_num_threads(1)

STEPS = 30
TABLE = {row["cls"]: row for row in _core.rules()}


class Case(NamedTuple):
    """An optimiser of both libraries with the same arguments."""

    name: str
    arguments: dict[str, Any]


# Per rule: argument sets that between them use every argument and the combinations that interact.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.05},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
    ],
    "Adam": [
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.05},
        {"lr": 0.01, "amsgrad": True},
        {"lr": 0.01, "amsgrad": True, "weight_decay": 0.05, "betas": (0.5, 0.7)},
    ],
    "AdamW": [
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.5},
        {"lr": 0.01, "amsgrad": True, "weight_decay": 0.5, "betas": (0.5, 0.7)},
    ],
    "RMSprop": [
        {},
        {"lr": 0.005, "alpha": 0.9, "eps": 1e-3},
        {"lr": 0.005, "momentum": 0.9},
        {"lr": 0.005, "centered": True},
        {"lr": 0.005, "centered": True, "momentum": 0.9, "weight_decay": 0.05, "alpha": 0.8},
    ],
    "Adagrad": [
        {},
        {"lr": 0.05, "lr_decay": 0.1, "eps": 1e-3},
        {"lr": 0.05, "initial_accumulator_value": 0.3, "weight_decay": 0.05},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.7, "eps": 1e-3}, {"weight_decay": 0.05}],
    "NAdam": [
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "momentum_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.05},
        {"lr": 0.01, "weight_decay": 0.5, "decoupled_weight_decay": True},
    ],
    "Lion": [{}, {"lr": 0.003, "betas": (0.7, 0.8)}, {"lr": 0.003, "weight_decay": 0.5}],
}
CASES = [Case(name, arguments) for name, sets in ARGUMENTS.items() for arguments in sets]
_IDS = [f"{c.name}-{','.join(f'{k}={v}' for k, v in c.arguments.items())}" for c in CASES]
cases = pytest.mark.parametrize("case", CASES, ids=_IDS)


def test_every_rule_and_argument_has_an_oracle() -> None:
    assert set(ARGUMENTS) == set(TABLE)
    for name, row in TABLE.items():
        used = {key for arguments in ARGUMENTS[name] for key in arguments}
        if "betas" in used:
            used = (used - {"betas"}) | {"beta1", "beta2"}
        assert {key for key, _ in row["hyper"]} <= used, name


class Lion(torch.optim.Optimizer):
    """Chen et al., Symbolic Discovery of Optimization Algorithms (2023), Algorithm 2."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = beta1 * m + (1 - beta1) * p.grad
                p.sub_(group["lr"] * (torch.sign(c) + group["weight_decay"] * p))
                m.copy_(beta2 * m + (1 - beta2) * p.grad)


def torch_optimizer(name: str, params: Any, arguments: dict[str, Any]) -> Any:
    if name == "Lion":
        return Lion(params, **arguments)
    return getattr(torch.optim, name)(params, **arguments)


WIDTHS = (5, 17, 3)


def torch_net(dtype: Any) -> Any:
    torch.manual_seed(0)
    # Made in float32, so that both dtypes start from the same weights.
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTHS[0], WIDTHS[1], dtype=torch.float32),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDTHS[1], WIDTHS[2], dtype=torch.float32),
    ).to(dtype)


def own_net(source: Any, dtype: type) -> Any:
    net = nn.Sequential(
        nn.Linear(WIDTHS[0], WIDTHS[1], dtype=dtype),
        nn.Tanh(),
        nn.Linear(WIDTHS[1], WIDTHS[2], dtype=dtype),
    )
    net.load_state_dict(source.state_dict())
    return net


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One batch per step, of varying sizes, with an unused input: its weights get gradient 0."""
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        x = rng.normal(size=(1 + 3 * (step % 4), WIDTHS[0]))
        x[:, 2] = 0
        yield x, rng.normal(size=(len(x), WIDTHS[2]))


def torch_trajectory(
    case: Case,
    dtype: Any,
    groups: Callable[[Any], Any] = lambda net: net.parameters(),
    before_step: Callable[[int, Any, Any], None] = lambda step, net, optimizer: None,
) -> np.ndarray:
    """Weights after every step, (STEPS, P), in float64."""
    default = torch.get_default_dtype()
    # NAdam keeps a product of scalars in the default dtype, whatever its parameters have.
    torch.set_default_dtype(dtype)
    try:
        return _torch_trajectory(case, dtype, groups, before_step)
    finally:
        torch.set_default_dtype(default)


def _torch_trajectory(
    case: Case,
    dtype: Any,
    groups: Callable[[Any], Any],
    before_step: Callable[[int, Any, Any], None],
) -> np.ndarray:
    net = torch_net(dtype)
    optimizer = torch_optimizer(case.name, groups(net), case.arguments)
    rows = []
    for step, (x, y) in enumerate(batches()):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(
            net(torch.tensor(x, dtype=dtype)), torch.tensor(y, dtype=dtype)
        )
        loss.backward()
        before_step(step, net, optimizer)
        optimizer.step()
        rows.append(np.concatenate([p.detach().numpy().ravel() for p in net.parameters()]))
    return np.array(rows, np.float64)


def own_trajectory(case: Case, dtype: type, **extra: Any) -> np.ndarray:
    kind = torch.float64 if dtype is np.float64 else torch.float32
    net = own_net(torch_net(kind), dtype)
    optimizer = getattr(optim, case.name)(**{**case.arguments, **extra})
    trainer = gs.Trainer(net, nn.MSELoss(), optimizer)
    rows = []
    for x, y in batches():
        trainer.step(x, y)
        rows.append(net.w.copy())
    return np.array(rows, np.float64)


def assert_same_trajectory(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max()
    # The step taken has to be seen at this tolerance, or the test could not fail.
    assert np.abs(expected[-1] - expected[0]).max() > 1e-5 * np.abs(expected).max()


@cases
def test_float64(case: Case) -> None:
    assert_same_trajectory(own_trajectory(case, np.float64), torch_trajectory(case, torch.float64))


@cases
def test_float32_to_rounding(case: Case) -> None:
    """As close to the float64 trajectory as PyTorch's own float32 one, within a factor."""
    exact = torch_trajectory(case, torch.float64)
    rounding = np.abs(torch_trajectory(case, torch.float32) - exact).max()
    error = np.abs(own_trajectory(case, np.float32) - exact).max()
    eps = np.finfo(np.float32).eps * np.abs(exact).max()
    if case.name == "Lion":
        # sign(c) of a c that rounding moves across 0 moves a weight by 2 lr.
        assert error <= 2 * rounding + 2 * case.arguments.get("lr", 1e-4) + 8 * eps
    else:
        assert error <= 4 * rounding + 8 * eps


ONE_EACH = [Case(name, sets[-1]) for name, sets in ARGUMENTS.items()]
each_rule = pytest.mark.parametrize("case", ONE_EACH, ids=[c.name for c in ONE_EACH])


@each_rule
def test_clip_norm(case: Case) -> None:
    def clip(step: int, net: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)

    expected = torch_trajectory(case, torch.float64, before_step=clip)
    got = own_trajectory(case, np.float64, clip_norm=0.3)
    assert_same_trajectory(got, expected)
    assert np.abs(own_trajectory(case, np.float64) - got).max() > 1e-3 * np.abs(expected).max()


@each_rule
def test_clip_value(case: Case) -> None:
    def clip(step: int, net: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_value_(net.parameters(), 0.02)

    expected = torch_trajectory(case, torch.float64, before_step=clip)
    assert_same_trajectory(own_trajectory(case, np.float64, clip_value=0.02), expected)


@each_rule
def test_clip_value_then_norm(case: Case) -> None:
    def clip(step: int, net: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_value_(net.parameters(), 0.05)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.2)

    expected = torch_trajectory(case, torch.float64, before_step=clip)
    assert_same_trajectory(
        own_trajectory(case, np.float64, clip_value=0.05, clip_norm=0.2), expected
    )


@pytest.mark.parametrize(
    "case",
    [c for c in ONE_EACH if "weight_decay" in c.arguments],
    ids=lambda c: c.name,
)
def test_decay_bias_off(case: Case) -> None:
    def groups(net: Any) -> Any:
        named = list(net.named_parameters())
        return [
            {"params": [p for n, p in named if n.endswith("weight")]},
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
        ]

    expected = torch_trajectory(case, torch.float64, groups=groups)
    got = own_trajectory(case, np.float64, decay_bias=False)
    assert_same_trajectory(got, expected)
    assert np.abs(own_trajectory(case, np.float64) - got).max() > 1e-6


@each_rule
def test_lr_of_the_step(case: Case) -> None:
    """A callable lr gets the step, counted from 0."""

    def schedule(step: int) -> float:
        return 0.002 / (1 + step)

    def set_lr(step: int, net: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)

    expected = torch_trajectory(case, torch.float64, before_step=set_lr)
    got = own_trajectory(case, np.float64, lr=schedule)
    assert np.abs(got - expected).max() <= 1e-9 * np.abs(expected).max()


# L-BFGS ----------------------------------------------------------------------------------------

LBFGS_ARGUMENTS: list[dict[str, Any]] = [
    {"lr": 0.1, "max_iter": 4},
    {"lr": 1.0, "max_iter": 5, "line_search_fn": "strong_wolfe"},
    {"lr": 0.5, "max_iter": 20, "history_size": 3, "line_search_fn": "strong_wolfe"},
    {"lr": 0.2, "max_iter": 10, "max_eval": 6, "history_size": 2},
    {"lr": 1.0, "tolerance_grad": 1e-2, "line_search_fn": "strong_wolfe"},
    {"lr": 1.0, "tolerance_change": 1e-3, "line_search_fn": "strong_wolfe"},
]


@pytest.mark.parametrize("arguments", LBFGS_ARGUMENTS, ids=str)
def test_lbfgs(arguments: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, WIDTHS[0])), rng.normal(size=(40, WIDTHS[2]))
    tx, ty = torch.tensor(x), torch.tensor(y)
    reference = torch_net(torch.float64)
    net = own_net(reference, np.float64)
    theirs = torch.optim.LBFGS(reference.parameters(), **arguments)
    trainer = gs.Trainer(net, nn.MSELoss(), optim.LBFGS(**arguments))

    def closure() -> Any:
        theirs.zero_grad()
        loss = torch.nn.functional.mse_loss(reference(tx), ty)
        loss.backward()
        return loss

    for _ in range(6):
        loss = theirs.step(closure).item()
        assert trainer.step(x, y) == pytest.approx(loss, rel=1e-9)
        w = np.concatenate([p.detach().numpy().ravel() for p in reference.parameters()])
        # Each iteration multiplies rounding differences by about the condition of the problem.
        assert np.abs(net.w - w).max() <= 1e-8 * np.abs(w).max()
