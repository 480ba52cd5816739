"""Optimisers written in Python on a device, against the CPU: `LBFGS`, `KFAC`, ...

Like tests/test_cuda.py, on a GPU or on the emulated device, else skipped with the reason.
"""

from __future__ import annotations

import copy
import gc
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from device_cases import COSTS, Wired, close, problem, target
from dlpack_producer import Producer
from gradstack import _device, _device_problem, nn, optim

Array = np.ndarray

EPS = float(np.finfo(np.float32).eps)
P = 6 * 20 + 20 + 20 * 4 + 4  # parameters of `problem`


def symmetric(n: int, seed: int) -> Array:
    root = np.random.default_rng(seed).normal(size=(n, n)) / np.sqrt(n)
    return 0.05 * root @ root.T


MADE: dict[str, Callable[[], optim.Optimizer]] = {
    "lbfgs": lambda: optim.LBFGS(lr=0.05, max_iter=4),
    "lbfgs wolfe": lambda: optim.LBFGS(max_iter=4, line_search_fn="strong_wolfe"),
    "lbfgs clipped": lambda: optim.LBFGS(lr=0.05, max_iter=3, clip_norm=0.5),
    "kfac": lambda: optim.KFAC(lr=0.1, damping=0.1, update_every=2, weight_decay=0.01),
    "kfac sampled": lambda: optim.KFAC(lr=0.1, damping=0.1, samples=3, kl_clip=None),
    "gauss newton": lambda: optim.GaussNewton(damping=0.1),
    "gauss newton cg": lambda: optim.GaussNewton(damping=0.1, solver="cg", clip_value=0.1),
    "levenberg": lambda: optim.LevenbergMarquardt(damping=0.1),
    "levenberg cg": lambda: optim.LevenbergMarquardt(damping=0.1, solver="cg", cg_tol=1e-6),
    "vector": lambda: optim.Preconditioned(np.linspace(0.0, 0.1, P), clip_value=0.2),
    "matrix": lambda: optim.Preconditioned(symmetric(P, 1)),
    "pairs": lambda: optim.Preconditioned(
        [(symmetric(20, 2), symmetric(7, 3)), (symmetric(4, 4), symmetric(20, 5))], lr=40.0
    ),
}
UNSEARCHED = ("lbfgs", "lbfgs clipped")  # for full batches alone
SECOND_ORDER = ("kfac", "gauss newton", "gauss newton cg", "levenberg", "levenberg cg")


def both(
    device: str,
    net: nn.Module,
    x: Any,
    y: Any,
    cost: nn.Cost,
    make: Any,
    scale: float = 1.0,
    **more: Any,
) -> nn.Module:
    """Train copies of a net here and there; they must agree. Returns what the device made."""
    options = {"batch_size": None, "epochs": 3, **more}
    here, there = make(), make()
    other = net.copy()
    expected = gs.fit(net, x, y, cost=cost, optimizer=here, **options)
    history = gs.fit(other, x, y, cost=cost, optimizer=there, device=device, **options)
    close(history.loss, expected.loss, scale)
    close(history.val_loss, expected.val_loss, scale)
    close(other.w, net.w, scale)
    assert there.t == here.t > 0
    (arrays, numbers), (others, _) = here.export_state(), there.export_state()
    assert arrays.keys() == others.keys()
    if "iterations" not in numbers:  # the pairs of L-BFGS are small differences
        for name, value in arrays.items():
            close(others[name], value, scale * (1 + np.abs(value).max()))
    return other


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("name", MADE)
def test_runs_are_the_cpus(
    cuda: str, rng: np.random.Generator, name: str, batch_size: int | None
) -> None:
    if name in UNSEARCHED:
        batch_size = None
    net, x, y = problem(rng)
    weight = rng.random(75)
    weight[:9] = 0
    both(
        cuda, net, x, y, nn.CrossEntropyLoss(label_smoothing=0.1), MADE[name], 5.0,
        batch_size=batch_size, sample_weight=weight, validation=(x[:30], y[:30], weight[:30]),
    )  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", COSTS)
def test_every_kind_of_cost(cuda: str, rng: np.random.Generator, name: str, weighted: bool) -> None:
    cost, kind = COSTS[name]
    net = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    net[2].bias[...] = 1.0  # variances are well above 0
    net[2].weight[...] *= 0.2
    if name in ("kl", "nll"):  # without it they have no minimum
        net = nn.Sequential(*net, nn.LogSoftmax())
    x = rng.normal(size=(45, 6)).astype(np.float32)
    y = target(kind, 45, rng)
    weight = rng.random(45) if weighted else None
    for make in (
        lambda: optim.LBFGS(lr=0.05, max_iter=3),
        lambda: optim.LevenbergMarquardt(damping=1.0),
        lambda: optim.LevenbergMarquardt(damping=1.0, solver="cg"),
        lambda: optim.KFAC(damping=0.1),
    ):
        found = []
        for device in ("cpu", cuda):
            other = net.copy()
            history = gs.fit(
                other, x, y, cost=cost, optimizer=make(), batch_size=None, epochs=2, device=device,
                sample_weight=weight,
            )  # fmt: skip
            found.append((other.w - net.w, history.loss))
        (moved, loss), (got, got_loss) = found
        assert np.linalg.norm(got - moved) <= 5e-4 * np.linalg.norm(moved)
        close(got_loss, loss)


def test_bits_repeat(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)
    for name, make in MADE.items():
        found = []
        for _ in range(2):
            other = net.copy()
            history = gs.fit(
                other, x, y, cost=nn.CrossEntropyLoss(), optimizer=make(), batch_size=40,
                epochs=2, device=cuda,
            )  # fmt: skip
            found.append((other.w.tobytes(), history.loss))
        assert found[0] == found[1], name


@pytest.mark.parametrize("name", ["lbfgs wolfe", *SECOND_ORDER])
def test_frozen_masked_and_shared_parameters(
    cuda: str, rng: np.random.Generator, name: str
) -> None:
    net = Wired()
    _, x, y = problem(rng)
    before = net.w.copy()
    other = both(cuda, net, x, y, nn.CrossEntropyLoss(), MADE[name], 5.0)
    held = [*np.flatnonzero(np.arange(48) % 3 == 0), *range(56, 56 + 72)]
    assert np.array_equal(other.w[held], before[held])
    assert (np.delete(other.w, held) != np.delete(before, held)).mean() > 0.9


def test_several_inputs_and_sparse_layers(cuda: str, rng: np.random.Generator) -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            edges = [(i, j) for i in range(9) for j in range(5) if (i + j) % 3]
            self.a, self.b = nn.SparseLinear(5, 9, edges), nn.Linear(9, 1)

        def forward(self, s: Any, u: Any) -> Any:
            return self.b(gs.tanh(self.a(gs.concat([s, u]))))

    s, u = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    for name in ("lbfgs wolfe", "gauss newton", "levenberg cg"):
        both(cuda, Critic(), (s, u), s[:, :1] * u[:, :1], nn.MSELoss(), MADE[name], 5.0)
    with pytest.raises(ValueError, match="SparseLinear"):
        both(cuda, Critic(), (s, u), s[:, :1], nn.MSELoss(), optim.KFAC)


def test_dropout_has_the_masks_of_the_cpu(cuda: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Dropout(0.4), nn.Linear(40, 4))
    _, x, y = problem(rng)
    for name in ("lbfgs", "kfac"):
        both(cuda, net.copy(), x, y, nn.CrossEntropyLoss(), MADE[name], 5.0, batch_size=32, seed=7)
    with pytest.raises(ValueError, match="remove the Dropout"):
        both(cuda, net, x, y, nn.CrossEntropyLoss(), optim.GaussNewton)


def test_prototypes(cuda: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 3)).astype(np.float32)
    both(cuda, nn.NearestNeighbour(3, 5), x, None, nn.SquaredError(), MADE["lbfgs"])


# Data and loops --------------------------------------------------------------------------------


@pytest.fixture
def emulated(cuda: str) -> str:
    """Where the memory of a device is the host's, a producer can be written in Python."""
    if not _device._load().emulated:
        pytest.skip("only the emulated device takes the host's memory for its own")
    return cuda


@pytest.mark.parametrize("batch_size", [None, 32])
@pytest.mark.parametrize("name", ["lbfgs wolfe", *SECOND_ORDER])
def test_data_on_the_device(
    emulated: str, rng: np.random.Generator, name: str, batch_size: int | None
) -> None:
    net, x, labels = problem(rng)
    y = rng.normal(size=(75, 4)).astype(np.float32)
    weight = rng.random(75).astype(np.float32)
    for cost, given in ((nn.MSELoss(), y), (nn.CrossEntropyLoss(), labels)):
        found = []
        for lend in (lambda a: a, Producer):
            other = net.copy()
            lent = [lend(x), lend(given), lend(weight)]
            history = gs.fit(
                other, lent[0], lent[1], sample_weight=lent[2], cost=cost, optimizer=MADE[name](),
                batch_size=batch_size, epochs=2, device=emulated,
            )  # fmt: skip
            trainer = gs.Trainer(other, cost, MADE[name](), device=emulated)
            loss = trainer.step(lend(x), lend(given), lend(weight))
            found.append((other.w.tobytes(), history.loss, loss))
        assert found[0] == found[1]
        del trainer
        gc.collect()
        assert [p.deleted for p in lent] == [1, 1, 1]


def test_what_is_on_the_device_is_checked(emulated: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)
    options: dict[str, Any] = {
        "cost": nn.CrossEntropyLoss(), "optimizer": optim.LBFGS(), "device": emulated
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"^X: has strides"):
        gs.fit(net, Producer(x[:, ::-1]), y, **options)
    with pytest.raises(TypeError, match=r"^X: has dtype float64"):
        gs.fit(net, Producer(x, dtype=(2, 64, 1)), y, **options)
    x[7, 1] = np.nan
    before = net.w.copy()
    with pytest.raises(FloatingPointError, match="epoch 0"):
        gs.fit(net, Producer(x), y, batch_size=None, **options)
    assert np.array_equal(net.w, before)


def test_targets_of_a_memory_map_for_samples_on_the_device(
    emulated: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    net, x, _ = problem(rng)
    y = rng.normal(size=(75, 4))
    y[30, 1] = np.inf
    np.save(tmp_path / "y.npy", y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    for batch_size in (None, 16):
        with pytest.raises(ValueError, match="row 30"):
            gs.fit(
                net, Producer(x), mapped, cost=nn.MSELoss(), optimizer=MADE["levenberg"](),
                batch_size=batch_size, device=emulated,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8])
def test_data_of_any_dtype_and_stride(cuda: str, rng: np.random.Generator, dtype: Any) -> None:
    net, x, y = problem(rng)
    wide = np.zeros((150, 12), dtype)
    wide[::2, ::2] = (4 * x).astype(dtype)
    for batch_size in (None, 40):
        both(
            cuda, net.copy(), wide[::2, ::2], y.astype(np.uint8), nn.CrossEntropyLoss(),
            MADE["levenberg"], 5.0, batch_size=batch_size,
        )  # fmt: skip


@pytest.mark.parametrize(("batch_size", "copies"), [(None, 2), (30, 2 * 3 * 3)])
def test_what_is_copied_to_the_device(
    cuda: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int | None,
    copies: int,
) -> None:
    """A batch goes there once a step, all samples once a fit."""
    net, x, _ = problem(rng)
    y = rng.normal(size=(75, 4))
    sizes: list[int] = []
    general = gs._core.device.upload

    def upload(device: Any, values: Array) -> Any:
        sizes.append(values.size)
        return general(device, values)

    monkeypatch.setattr(_device_problem._core.device, "upload", upload)
    gs.fit(
        net, x, y, cost=nn.MSELoss(), optimizer=MADE["lbfgs wolfe"](), batch_size=batch_size,
        epochs=3, device=cuda,
    )  # fmt: skip
    assert len(sizes) == copies
    assert sum(sizes) == 75 * (6 + 4) * (1 if batch_size is None else 3)


def test_a_run_resumes(cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    net, x, y = problem(rng)
    for name in ("lbfgs wolfe", "kfac", "levenberg"):
        whole, parts = net.copy(), net.copy()
        options: dict[str, Any] = {"cost": nn.CrossEntropyLoss(), "batch_size": 40, "device": cuda}
        gs.fit(whole, x, y, optimizer=MADE[name](), epochs=4, **options)
        for epochs in (2, 4):
            checkpoint = gs.Checkpoint(tmp_path / name, every_epochs=1)
            gs.fit(
                parts, x, y, optimizer=MADE[name](), epochs=epochs, checkpoint=checkpoint, **options
            )
        assert np.array_equal(parts.w, whole.w)


def test_trainer_steps(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)
    for name, make in MADE.items():
        here = gs.Trainer(net.copy(), nn.CrossEntropyLoss(), make())
        there = gs.Trainer(net.copy(), nn.CrossEntropyLoss(), make(), device=cuda)
        for i in range(4):
            rows = slice(0, 40) if i % 3 or name in UNSEARCHED else slice(40, 75)
            loss = here.step(x[rows], y[rows])
            assert there.step(x[rows], y[rows]) == pytest.approx(loss, rel=1e-3), name
            close(there.net.w, here.net.w, 5)
        there.net.w[...] = here.net.w[...] = 0.01  # what the user writes counts
        loss = nn.CrossEntropyLoss()(here.net(x), y)
        assert there.step(x, y) == pytest.approx(loss, rel=1e-4)


def test_callbacks_may_move_weights_freeze_and_stop(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)

    def shrink(state: Any) -> Any:
        state.net.w[...] *= 0.5
        state.net[0].freeze()
        return gs.STOP if state.epoch == 2 else None

    for name in ("lbfgs", "levenberg"):
        other = both(
            cuda, net.copy(), x, y, nn.CrossEntropyLoss(), MADE[name], epochs=9, callbacks=shrink
        )
        assert not other[0].weight.requires_grad


# What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_losses_that_are_not_finite(cuda: str, rng: np.random.Generator, name: str) -> None:
    net, x, y = problem(rng)
    net.w[3] = np.inf
    before = net.w.copy()
    with pytest.raises(FloatingPointError, match=r"nan at epoch 0, step 0"):
        gs.fit(
            net, x, y, cost=nn.CrossEntropyLoss(), optimizer=MADE[name](), device=cuda
        )  # fmt: skip
    assert np.array_equal(net.w, before)


def test_bad_rows_of_a_memory_map(
    cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    net, x, y = problem(rng)
    np.save(tmp_path / "good.npy", x)
    x[17, 2] = np.nan
    np.save(tmp_path / "bad.npy", x)
    for batch_size in (None, 16):
        options: dict[str, Any] = {
            "cost": nn.CrossEntropyLoss(), "batch_size": batch_size, "device": cuda
        }  # fmt: skip
        gs.fit(
            net, np.load(tmp_path / "good.npy", mmap_mode="r"), y, optimizer=MADE["lbfgs"](),
            **options,
        )  # fmt: skip
        with pytest.raises(ValueError, match="row 17"):
            gs.fit(
                net, np.load(tmp_path / "bad.npy", mmap_mode="r"), y, optimizer=MADE["lbfgs"](),
                **options,
            )  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_only_the_cpu_runs(cuda: str, rng: np.random.Generator, name: str) -> None:
    class Own(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return (ybar**2).sum(axis=1)

        def gradient(self, ybar: Any, y: Any) -> Any:
            return 2 * ybar

    net, x, y = problem(rng)
    optimizer = MADE[name]()
    python = nn.Sequential(nn.Linear(6, 4), nn.Pointwise(np.tanh, lambda s: 1 - np.tanh(s) ** 2))
    wide = nn.Linear(6, 4, dtype=np.float64)
    entropy = nn.CrossEntropyLoss()
    cases = [
        (net, Own(), None, "a cost written in Python runs on the CPU only"),
        (python, entropy, y, "written in Python and runs on the CPU only"),
        (wide, entropy, y, "computes in float32, the net is of float64"),
    ]
    for each, cost, given, message in cases:
        before = each.w.copy()
        with pytest.raises(ValueError, match=message):
            gs.fit(each, x, given, cost=cost, optimizer=copy.deepcopy(optimizer), device=cuda)
        with pytest.raises(ValueError, match=message):
            gs.Trainer(each, cost, copy.deepcopy(optimizer), device=cuda).step(x, given)
        assert np.array_equal(each.w, before)
    for precision in ("tf32", "bf16", "fp16"):
        message = rf"\[{type(optimizer).__name__}\] precision must be 'float32', got '{precision}'"
        with pytest.raises(ValueError, match=message):
            gs.fit(
                net, x, y, cost=entropy, optimizer=optimizer, device=cuda, precision=precision
            )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gs.Trainer(net, entropy, optimizer, device=cuda, precision=precision)
