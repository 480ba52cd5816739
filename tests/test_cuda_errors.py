"""What a device says when something goes wrong, and what still works afterwards.

Each case is a process of its own with an emulated device that is small, or on which a kernel fails.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from gradstack import _device

ROOT = pathlib.Path(__file__).parent.parent

BEGIN = """
import numpy as np, gradstack as gs
from gradstack import nn, optim
rng = np.random.default_rng(0)
net = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Softmax(), nn.Linear(40, 4))
cost = nn.MSELoss()
x = rng.normal(size=(2000, 6)).astype(np.float32)
y = rng.normal(size=(2000, 4)).astype(np.float32)
before = net.w.copy()

def fit(epochs=2, batch=100, **options):
    return gs.fit(net, x, y, cost=cost, optimizer=optim.SGD(), device="cuda", epochs=epochs,
                  batch_size=batch, **options)

def said(call):
    try:
        call()
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return True
    return False

"""


@pytest.fixture(scope="module")
def emulated() -> None:
    try:
        cuda = _device._load()
    except _device.DeviceMissingError as error:
        pytest.skip(str(error))
    if not cuda.emulated:
        pytest.skip("only the emulated device fails on demand")


def run(code: str, **variables: object) -> str:
    """What a process prints that gets through."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code],
        env={**os.environ, **{f"GRADSTACK_{name}": str(v) for name, v in variables.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_goes_on_after_too_large_a_batch(emulated: None) -> None:
    said = run(
        """
assert said(lambda: fit(batch=None))
assert np.array_equal(net.w, before)
history = fit()
assert history.loss[1] < history.loss[0]
""",
        EMULATED_MEMORY=1_300_000,
    )
    assert said.startswith("DeviceOutOfMemory: out of device memory: ")
    assert " wanted for " in said
    assert "of 2 MiB are free on emulated device" in said


def test_a_call_goes_on_after_too_large_a_batch(emulated: None) -> None:
    said = run(
        """
net.to("cuda")
assert said(lambda: gs.value_and_grad(net, cost, np.tile(x, (4, 1)), np.tile(y, (4, 1))))
loss, dw = gs.value_and_grad(net, cost, x[:300], y[:300])
expected = gs.value_and_grad(net.to("cpu"), cost, x[:300], y[:300])
assert abs(loss - expected[0]) < 1e-4 and np.abs(dw - expected[1]).max() < 1e-4
net.to("cuda")
assert said(lambda: gs.vjp(net, np.tile(x, (4, 1))))
y1, pullback = gs.vjp(net, x[:300])
assert np.abs(pullback(np.ones_like(y1))[1]).max() > 0
assert net(np.tile(x, (40, 1))).shape == (80000, 4)  # in pieces
""",
        EMULATED_MEMORY=2_000_000,
    )
    assert said.count("DeviceOutOfMemory: out of device memory: ") == 2
    assert "wanted for activations" in said or "wanted for gradients of activations" in said


def test_a_step_after_one_that_did_not_fit(emulated: None) -> None:
    run(
        """
optimizer = optim.SGD(lr=0.1, momentum=0.9)
trainer = gs.Trainer(net, cost, optimizer, device="cuda")
first = trainer.step(x[:50], y[:50])
t, w = optimizer.t, net.w.copy()
assert said(lambda: trainer.step(np.tile(x, (4, 1)), np.tile(y, (4, 1))))
assert optimizer.t == t and np.array_equal(net.w, w)
assert trainer.step(x[:50], y[:50]) < first
""",
        EMULATED_MEMORY=1_500_000,
    )


@pytest.mark.parametrize("kernel", ["softmax", "a matrix product", "softmax_backward", "sgd"])
def test_an_error_names_the_kernel(emulated: None, kernel: str) -> None:
    code = """
assert said(fit)
assert np.array_equal(net.w, before)
assert said(fit)  # as on a GPU, where such errors are for the rest of the process
net.to("cuda")
assert said(lambda: net(x))
net.to("cpu")
assert np.isfinite(net(x)).all()
"""
    first = run(code, EMULATED_FAIL=f"{kernel}:5").splitlines()[0]
    assert first.startswith("DeviceError: copy to the host, in kernel '")
    assert "or one before it (GRADSTACK_CUDA_SYNC=1 names it): " in first
    first = run(code, EMULATED_FAIL=f"{kernel}:5", CUDA_SYNC=1).splitlines()[0]
    assert first == f"DeviceError: {kernel}: injected failure"


def test_waiting_for_each_kernel_changes_no_bit(emulated: None) -> None:
    code = "fit()\nprint(net.w.tobytes().hex())\n"
    assert run("net.w[...] = 0.1\n" + code) == run("net.w[...] = 0.1\n" + code, CUDA_SYNC=1)


FORKED = """
import os, sys
%s
sys.stdout.flush()
child = os.fork()
if child == 0:
    try:
        fit()
        print("worked")
    except RuntimeError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
fit()  # the parent goes on
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_after_use(emulated: None) -> None:
    said = run(FORKED % "fit()")
    assert "was in use when this process was forked" in said
    assert "spawn" in said
    assert run(FORKED % "") == "worked\n"


def test_the_checks_for_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    # The list names tests that exist, and what failed or was not run is not said to have passed.
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "bench" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    gpu_check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu_check)
    found = gpu_check.collected([sys.executable, "-m", "pytest"])
    assert {name.partition("::")[2] for name in found} == set(gpu_check.REDUCED)

    def command(text: str, code: int) -> list[str]:
        return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]

    verdicts = [
        gpu_check.outcome("a", command(text, code), r"SUMMARY: 0 errors").verdict
        for text, code in (("SUMMARY: 0 errors", 0), ("SUMMARY: 0 errors", 1), ("", 0))
    ]
    assert verdicts == ["passed", "failed", "failed"]
    for made, code in ((["passed"], 0), (["passed", "not run"], 2), (["not run", "failed"], 1)):
        outcomes = [gpu_check.Outcome(v, v, 1.0, f"it {v}") for v in made]
        monkeypatch.setattr(gpu_check, "checks", lambda outcomes=outcomes: outcomes)
        assert gpu_check.check("a GPU", tmp_path / "seen.txt") == code
        text = (tmp_path / "seen.txt").read_text("utf-8")
        assert "device: a GPU" in text
        assert all(f"it {v}" in text for v in made)
