"""Data sets that come to the device in chunks: the bits of those that are there as a whole.

The emulated device runs copies as late as they may run, or as early: a wait that is missing shows
in one of the two.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _device, nn, optim

Array = np.ndarray
SAMPLE = 6 * 4 + 8  # bytes: six features and a label


@pytest.fixture(params=["late", "early"])
def copies(request: pytest.FixtureRequest, cuda: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device of its own for the test, whose copies run late or early if it is emulated."""
    monkeypatch.setenv("GRADSTACK_EMULATED_COPIES", request.param)
    monkeypatch.setattr(_device, "_opened", {})
    return cuda


def problem(rng: np.random.Generator, n: int = 150) -> tuple[nn.Module, Array, Array]:
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    return net, rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 4, n)


def trained(
    net: nn.Module,
    x: Any,
    y: Any,
    device: str,
    cost: nn.Cost | None = None,
    **options: Any,
) -> tuple[bytes, list[float], bytes]:
    """What a fit leaves: weights, losses, state."""
    net, optimizer = net.copy(), optim.SGD(lr=0.05, momentum=0.9)
    options = {"batch_size": 16, "epochs": 3, **options}
    history = gs.fit(
        net, x, y, cost=cost or nn.CrossEntropyLoss(), optimizer=optimizer, device=device, **options
    )
    return net.w.tobytes(), history.loss, optimizer.state["momentum_buffer"].tobytes()


def both(monkeypatch: pytest.MonkeyPatch, chunk: int, *arguments: Any, **options: Any) -> None:
    """As a whole, then in chunks of so many bytes: the same bits."""
    monkeypatch.delenv("GRADSTACK_STREAM_BYTES", raising=False)
    whole = trained(*arguments, **options)
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", str(chunk))
    assert trained(*arguments, **options) == whole


@pytest.mark.parametrize("rows", [1, 16, 33, 48, 64, 144, 150, 10_000])
def test_chunks_of_any_size(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    net, x, y = problem(rng)
    both(monkeypatch, rows * SAMPLE, net, x, y, copies)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"batch_size": 1, "epochs": 1},
        {"batch_size": 50},
        {"batch_size": None},
        {"epochs": 7, "seed": 3},
        {"sample_weight": np.arange(150) % 5},
        {"progress": False, "callbacks": lambda state: None},
        {"validation": (np.ones((9, 6)), np.ones(9, np.int64))},
    ],
)
def test_batches_orders_and_weights(
    copies: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    net, x, y = problem(rng)
    both(monkeypatch, 40 * SAMPLE, net, x, y, copies, **options)


def test_looks_after_every_step(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch:
        def on_batch_end(self, state: Any) -> None:
            state.net.w[...] *= 0.99  # weights that moved are copied

    net, x, y = problem(rng)
    both(monkeypatch, 40 * SAMPLE, net, x, y, copies, callbacks=[Watch()])


def test_several_inputs_dense_targets_and_dtypes(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 9), nn.Linear(9, 2)

        def forward(self, s: Any, u: Any) -> Any:
            return self.b(gs.tanh(self.a(gs.concat([s, u]))))

    s = rng.normal(size=(130, 6))[:, ::2]
    s[7, 1] = 1e-42  # denormal in float32
    u = rng.integers(-9, 9, (260, 2)).astype(np.int8)[::2]
    y = rng.normal(size=(130, 2)).astype(np.float16)
    both(monkeypatch, 1500, Critic(), (s, u), y, copies, nn.MSELoss())


def test_large_pieces_of_a_chunk(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of several MiB: gathered in pieces, some of them by several threads.
    net = nn.Sequential(nn.Linear(500, 2), nn.Tanh(), nn.Linear(2, 2))
    x = rng.normal(size=(4000, 500)).astype(np.float32)
    both(monkeypatch, 3 << 20, net, x, (x[:, 0] > 0).astype(int), copies, batch_size=128, epochs=2)


def test_agrees_with_the_cpu(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", str(40 * SAMPLE))
    net, x, y = problem(rng)
    expected = np.frombuffer(trained(net, x, y, "cpu")[0], np.float32)
    got = np.frombuffer(trained(net, x, y, copies)[0], np.float32)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_a_run_resumes_within_an_epoch(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", str(40 * SAMPLE))
    net, x, y = problem(rng)
    options: dict[str, Any] = {"cost": nn.CrossEntropyLoss(), "batch_size": 16, "device": copies}
    whole, parts = net.copy(), net.copy()
    gs.fit(whole, x, y, optimizer=optim.Adam(), epochs=3, **options)

    class Stop:
        def on_batch_end(self, state: Any) -> Any:
            if state.step == 13:
                raise KeyboardInterrupt
            return None

    checkpoint = gs.Checkpoint(tmp_path / "run", every_steps=4)
    with pytest.raises(KeyboardInterrupt):
        gs.fit(
            parts, x, y, optimizer=optim.Adam(), epochs=3, checkpoint=checkpoint,
            callbacks=[Stop()], **options,
        )  # fmt: skip
    gs.fit(parts, x, y, optimizer=optim.Adam(), epochs=3, checkpoint=checkpoint, **options)
    assert np.array_equal(parts.w, whole.w)


@pytest.mark.parametrize("where", ["x", "y"])
def test_bad_rows_of_a_memory_map_stop_before_their_step(
    copies: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    where: str,
) -> None:
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", "1600")
    net = nn.Linear(6, 2)
    arrays = {"x": rng.normal(size=(150, 6)), "y": rng.normal(size=(150, 2))}
    arrays[where][117, 1] = np.inf
    for name, array in arrays.items():
        np.save(tmp_path / name, array.astype(np.float32))
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    found = []
    for device in ("cpu", copies):
        other, optimizer = net.copy(), optim.SGD(lr=0.05)
        with pytest.raises(ValueError, match="row 117"):
            gs.fit(
                other, x, y, cost=nn.MSELoss(), optimizer=optimizer, batch_size=16, seed=1,
                device=device,
            )  # fmt: skip
        found.append((other.w, optimizer.t))
    assert found[0][1] == found[1][1] > 0
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-4, atol=2e-5)


def test_a_loss_that_is_not_finite(
    copies: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", str(40 * SAMPLE))
    _, x, y = problem(rng)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    messages = []
    for device in ("cpu", copies):
        other = net.copy()
        with pytest.raises(FloatingPointError, match=r"epoch \d+, step \d+") as error:
            gs.fit(
                other, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=1e18),
                batch_size=16, device=device,
            )  # fmt: skip
        assert np.isfinite(other.w).all()
        messages.append(str(error.value).split(" at ")[1])
    assert messages[0] == messages[1]


LARGER = """
import sys
import numpy as np, gradstack as gs
from gradstack import nn, optim
x = np.load(sys.argv[1], mmap_mode="r")
net = nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 64))
net.w[...] = np.linspace(-1, 1, net.w.size)
gs.fit(net, x, x, cost=nn.MSELoss(), optimizer=optim.SGD(lr=0.1), epochs=2, batch_size=512,
       device="cuda", validation=(x, x))
print(net.w.tobytes().hex())
"""


def test_a_data_set_that_does_not_fit_comes_in_chunks(cuda: str, tmp_path: pathlib.Path) -> None:
    if not _device._load().emulated:
        pytest.skip("only the emulated device can be made small")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(12_000, 64)).astype(np.float32))  # 3 MiB
    found = []
    for memory in (1 << 25, 1 << 22):  # x and y are 6 MiB
        done = subprocess.run(
            [sys.executable, "-c", LARGER, str(tmp_path / "x.npy")],
            env={**os.environ, "GRADSTACK_EMULATED_MEMORY": str(memory)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1] != ""
