"""device="cuda" against the CPU, case by case.

The cases run on a GPU where there is one, or on the emulated device of a build with
GRADSTACK_CUDA_EMULATED; elsewhere they are skipped with the reason.
"""

from __future__ import annotations

import copy
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from device_cases import COSTS, OPTIMISERS, close, compare, fits, on, problem, target
from gradstack import _compiled, _core, _device, nn, optim
from oracle_nets import BOUNDED, KINKED, SMOOTH
from random_nets import random_net

Array = np.ndarray


@pytest.mark.parametrize("name", [*SMOOTH, *KINKED, *BOUNDED])
def test_every_op(cuda: str, rng: np.random.Generator, name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Any) -> Any:
            def h(s: Any) -> Any:
                return (
                    gs.gelu(s, approximate="tanh") if name == "gelu_tanh" else getattr(gs, name)(s)
                )

            return h(h(self.b(h(self.a(x)))))  # fused, and by itself

    compare(cuda, Net(), (rng.normal(size=(33, 5)).astype(np.float32),), rng)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(cuda: str, rng: np.random.Generator, seed: int) -> None:
    net = random_net(seed, tame=True)
    xs = tuple(rng.normal(size=(37, 8)).astype(np.float32) for _ in range(net.count))
    compare(cuda, net, xs, rng)


def test_one_sample_an_empty_batch_and_out(cuda: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Softmax(), nn.Linear(6, 2), nn.LogSoftmax())
    compare(cuda, net, (rng.normal(size=4).astype(np.float32),), rng)
    other = on(cuda, net)
    assert other(np.zeros((0, 4))).shape == (0, 2)
    out = np.empty((3, 2), np.float32)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    assert other(x, out=out) is out
    close(out, net(x))


def test_batches_that_do_not_fill_a_block(cuda: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 1))
    for count in (1, 2, 31, 33, 257, 5000):
        compare(cuda, net, (rng.normal(size=(count, 3)).astype(np.float32),), rng)


def test_sparse_layers_and_masks(cuda: str, rng: np.random.Generator) -> None:
    mask = rng.random((6, 5)) < 0.5
    edges = [(i, j) for i in range(4) for j in range(6) if (i + j) % 3]
    net = nn.Sequential(nn.Linear(5, 6, mask=mask), nn.Tanh(), nn.SparseLinear(6, 4, edges))
    compare(cuda, net, (rng.normal(size=(40, 5)).astype(np.float32),), rng)


def test_nearest_neighbour(cuda: str, rng: np.random.Generator) -> None:
    net = nn.NearestNeighbour(3, 5)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    assert np.array_equal(on(cuda, net)(x), net(x))
    fits(cuda, net, x, None, nn.SquaredError(), optim.SGD(lr=0.05))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", COSTS)
def test_every_kind_of_cost(cuda: str, rng: np.random.Generator, name: str, weighted: bool) -> None:
    cost, kind = COSTS[name]
    net = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    x = rng.normal(size=(45, 6)).astype(np.float32)
    y = target(kind, 45, rng)
    weight = rng.random(45) if weighted else None
    loss, dw = gs.value_and_grad(net, cost, x, y, sample_weight=weight)
    loss2, dw2 = gs.value_and_grad(on(cuda, net), cost, x, y, sample_weight=weight)
    assert loss2 == pytest.approx(loss, rel=1e-4)
    close(dw2, dw, 1 + np.abs(dw).max())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_with_every_rule(cuda: str, rng: np.random.Generator, name: str) -> None:
    net, x, y = problem(rng)
    # The signs and quotients of tiny gradients magnify rounding.
    scale = 50.0 if name in ("lion", "adadelta", "rmsprop", "adam", "nadam", "adamw") else 1.0
    fits(cuda, net, x, y, nn.CrossEntropyLoss(), copy.deepcopy(OPTIMISERS[name]), scale)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": None},
        {"batch_size": 1, "epochs": 1},
        {"shuffle": False},
        {"batch_size": 75},
        {"batch_size": 20, "seed": 3},
    ],
)
def test_batches_and_orders(cuda: str, rng: np.random.Generator, options: dict[str, Any]) -> None:
    net, x, y = problem(rng)
    fits(cuda, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.05, momentum=0.9), **options)


def test_weights_of_samples_and_classes(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)
    cost = nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0, 0.25])
    weight = rng.random(75)
    weight[:9] = 0
    validation = (x[:30], y[:30], weight[:30])
    _, history = fits(
        cuda, net, x, y, cost, optim.SGD(lr=0.1), sample_weight=weight, validation=validation
    )
    assert len(history.val_loss) == 3


def test_dropout_has_the_masks_of_the_cpu(cuda: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Dropout(0.4), nn.Linear(40, 4))
    _, x, y = problem(rng)
    fits(cuda, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.1), seed=7)
    other = on(cuda, net)
    for each in (net, other):
        each.train()
    gs.seed(5)
    expected = net(x)
    gs.seed(5)
    close(other(x), expected)


def test_frozen_masked_and_shared_parameters(cuda: str, rng: np.random.Generator) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 8, mask=np.arange(48).reshape(8, 6) % 3 > 0)
            self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
            self.b.freeze()

        def forward(self, x: Any) -> Any:
            z = gs.tanh(self.b(gs.tanh(self.a(x))))
            return self.d(gs.tanh(self.c(gs.tanh(self.c(z)) + z)))

    net = Net()
    _, x, y = problem(rng)
    before = net.w.copy()
    other, _ = fits(
        cuda, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.5, weight_decay=0.1)
    )
    frozen = slice(56, 56 + 72)
    assert np.array_equal(other.w[frozen], before[frozen])
    held = np.flatnonzero(np.arange(48) % 3 == 0)
    assert np.array_equal(other.w[held], before[held])


def test_several_inputs(cuda: str, rng: np.random.Generator) -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 9), nn.Linear(9, 1)

        def forward(self, s: Any, u: Any) -> Any:
            return self.b(gs.relu(self.a(gs.concat([s, u]))))

    s, u = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    fits(cuda, Critic(), (s, u), s[:, :1] * u[:, :1], nn.MSELoss(), optim.SGD(lr=0.05))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8])
def test_data_of_any_dtype_and_stride(cuda: str, rng: np.random.Generator, dtype: Any) -> None:
    net, x, y = problem(rng)
    wide = np.zeros((150, 12), dtype)
    wide[::2, ::2] = (4 * x).astype(dtype)
    fits(cuda, net, wide[::2, ::2], y.astype(np.uint8), nn.CrossEntropyLoss(), optim.SGD(lr=0.01))


def test_bits_repeat(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng, 500)
    found = []
    for _ in range(2):
        other = net.copy()
        history = gs.fit(
            other, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.Adam(), batch_size=64,
            epochs=4, device=cuda,
        )  # fmt: skip
        found.append((other.w.tobytes(), history.loss))
    assert found[0] == found[1]


def test_trainer_steps(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)
    other = net.copy()
    trainer = gs.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9))
    device = gs.Trainer(other, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9), device=cuda)
    for i in range(6):
        rows = slice(0, 40) if i % 3 else slice(40, 75)
        assert device.step(x[rows], y[rows]) == pytest.approx(
            trainer.step(x[rows], y[rows]), rel=1e-4
        )
        close(other.w, net.w)
    other.w[...] = net.w[...] = 0.01  # what the user writes counts
    assert device.step(x, y) == pytest.approx(trainer.step(x, y), rel=1e-4)


def test_callbacks_may_move_weights_and_stop(cuda: str, rng: np.random.Generator) -> None:
    net, x, y = problem(rng)

    def shrink(state: Any) -> Any:
        state.net.w[...] *= 0.5
        return gs.STOP if state.epoch == 1 else None

    _, history = fits(cuda, net, x, y, nn.CrossEntropyLoss(), optim.SGD(lr=0.1), callbacks=shrink)
    assert history.epochs == 2


def test_a_run_resumes(cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    net, x, y = problem(rng)
    whole, parts = net.copy(), net.copy()
    options: dict[str, Any] = {"cost": nn.CrossEntropyLoss(), "batch_size": 16, "device": cuda}
    gs.fit(whole, x, y, optimizer=optim.Adam(), epochs=4, **options)
    for epochs in (2, 4):
        checkpoint = gs.Checkpoint(tmp_path / "run", every_epochs=1)
        gs.fit(parts, x, y, optimizer=optim.Adam(), epochs=epochs, checkpoint=checkpoint, **options)
    assert np.array_equal(parts.w, whole.w)


def test_a_loss_that_is_not_finite_stops_before_the_update(
    cuda: str, rng: np.random.Generator
) -> None:
    net, x, y = problem(rng)
    found = []
    for device in ("cpu", cuda):
        other, optimizer = net.copy(), optim.SGD(lr=1e18)
        with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+") as error:
            gs.fit(
                other, x, y, cost=nn.CrossEntropyLoss(), optimizer=optimizer, batch_size=16,
                device=device,
            )  # fmt: skip
        assert np.isfinite(other.w).all()
        found.append((str(error.value).split(" at ")[1], optimizer.t))
    assert found[0] == found[1]
    gs.fit(
        net, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=1e18), epochs=1, device=cuda,
        errors="ignore",
    )  # fmt: skip


def test_relu_keeps_nan(cuda: str) -> None:
    net = on(cuda, nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    assert np.isnan(net(np.array([[np.nan, 1.0], [0.0, 1.0]]))).sum(axis=1).tolist() == [3, 0]


def test_bad_rows_of_a_memory_map(
    cuda: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    net, x, y = problem(rng)
    x[17, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(ValueError, match="row 17"):
        gs.fit(net, mapped, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(), device=cuda)


def test_what_only_the_cpu_runs(cuda: str, rng: np.random.Generator) -> None:
    _, x, _ = problem(rng)
    with pytest.raises(ValueError, match="float32"):
        nn.Linear(2, 1, dtype=np.float64).to(cuda)

    class Own(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            return (ybar**2).sum(axis=1)

        def gradient(self, ybar: Any, y: Any) -> Any:
            return 2 * ybar

    with pytest.raises(ValueError, match="written in Python"):
        gs.fit(nn.Linear(6, 4), x, None, cost=Own(), optimizer=optim.SGD(), device=cuda)
    own = nn.Sequential(nn.Linear(6, 4), nn.Pointwise(np.tanh, lambda s: 1 - np.tanh(s) ** 2))
    with pytest.raises(ValueError, match="written in Python"):
        own.to(cuda)(x)


FULL_DEVICE = """
import numpy as np, gradstack as gs
from gradstack import nn, optim
net, cost = nn.Linear(6, 4), nn.MSELoss()
x, y = np.ones((60_000, 6), np.float32), np.ones((60_000, 4), np.float32)
before = net.w.copy()
try:
    gs.fit(net, x, y, cost=cost, optimizer=optim.NAME(), batch_size=None, device="cuda")
except MemoryError as error:
    print(error)
assert np.array_equal(net.w, before)
gs.fit(net, x, y, cost=cost, optimizer=optim.NAME(), epochs=1, batch_size=1000, device="cuda")
assert not np.array_equal(net.w, before)
"""


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        ("SGD", "3 MiB wanted for two chunks of the data set"),
        ("LBFGS", "2 MiB wanted for the data"),
    ],
)
def test_a_full_device_says_what_was_wanted_and_works_on(
    cuda: str, optimizer: str, wanted: str
) -> None:
    if not _device._load().emulated:
        pytest.skip("only the emulated device can be made small")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DEVICE.replace("NAME", optimizer)],
        env={**os.environ, "GRADSTACK_EMULATED_MEMORY": "2000000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(rf"out of device memory: {wanted}.*, \d MiB of 2 MiB", done.stdout)


def test_copies_are_on_the_cpu(cuda: str) -> None:
    net = nn.Linear(2, 1).to(cuda)
    assert (net.device, net.copy().device, net.to("cpu").device) == (cuda, "cpu", "cpu")


def test_short_calls_stay_with_the_cpu(
    cuda: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a net has settled on the CPU must not answer for it on a device, nor the reverse.
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    cost, x = nn.SquaredError(), rng.normal(size=(16, 4)).astype(np.float32)
    y = np.zeros((16, 2), np.float32)
    runs: list[str] = []
    general = _compiled.program_on

    def program_on(compiled: Any, dtype: Any, device: str, *rest: Any) -> Any:
        runs.append(device)
        return general(compiled, dtype, device, *rest)

    monkeypatch.setattr(_compiled, "program_on", program_on)
    for _ in range(2):  # the CPU settles, the device has to take over, and hand back
        expected = [net(x), gs.value_and_grad(net, cost, x, y)[1], gs.jacobian(net, x)]
        for _ in range(2):
            net(x), gs.value_and_grad(net, cost, x, y), gs.jacobian(net, x)
        assert runs == []
        net.to(cuda)
        for _ in range(3):
            close(net(x), expected[0])
            close(gs.value_and_grad(net, cost, x, y)[1], expected[1], 10)
            close(gs.jacobian(net, x), expected[2])
        assert runs == [cuda] * 6
        net.to("cpu")
        runs.clear()


def test_a_trainer_on_a_device_settles_no_step(cuda: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = rng.normal(size=(16, 4)).astype(np.float32), np.zeros((16, 2), np.float32)
    here = gs.Trainer(net.copy(), nn.SquaredError(), optim.SGD(lr=0.01))
    there = gs.Trainer(net.copy(), nn.SquaredError(), optim.SGD(lr=0.01), device=cuda)
    for _ in range(4):
        close(there.step(x, y), here.step(x, y))
        assert type(there._core) is _core.device.DeviceTrainer
        assert there._short is None
        assert here._short is not None
    close(there.net.w, here.net.w)
