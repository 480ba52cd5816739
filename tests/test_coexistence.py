"""gradstack's threads beside those of others, after fork, and within what a process may use.

Each case is a process of its own, because an OpenMP runtime is what the first import made it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

TIMEOUT = 240  # seconds; a deadlock would take for ever

# A net whose steps are enough work for several threads.
TRAIN = """
import hashlib, os
import numpy as np
import gradstack as gs
from gradstack import nn, optim

def train(num_threads=None):
    gs.seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 200)), rng.integers(0, 10, 600)
    net = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 10))
    gs.fit(net, x, y, cost=nn.CrossEntropyLoss(), optimizer=optim.Adam(), batch_size=200,
           epochs=2, num_threads=num_threads)
    return hashlib.sha256(net.w.tobytes()).hexdigest()

def running():
    return len(os.listdir("/proc/self/task"))
"""


def run(
    code: str,
    *,
    environment: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> list[str]:
    """Words printed by `code` in an interpreter of its own."""
    done = subprocess.run(
        [*before, sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "2", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def alone() -> str:
    """The bits of the trained parameters with nothing else loaded."""
    return run(TRAIN + "print(train())")[0]


@pytest.mark.parametrize("other", ["torch", "sklearn.neural_network"])
@pytest.mark.parametrize("order", ["before", "after", "between"])
def test_bits_beside_another_library(alone: str, other: str, order: str) -> None:
    if importlib.util.find_spec(other.partition(".")[0]) is None:
        pytest.skip(f"{other} is not installed")
    use = {
        "torch": "import torch; a = torch.ones(300, 300); assert (a @ a).sum() == 300**3\n",
        "sklearn.neural_network": (
            "from sklearn.neural_network import MLPRegressor\n"
            "from sklearn.cluster import KMeans\n"
            "KMeans(3, n_init=1).fit([[i, i * i] for i in range(99)])\n"
            "MLPRegressor(hidden_layer_sizes=(9,), max_iter=2).fit([[0], [1], [2]], [0, 1, 4])\n"
        ),
    }[other]
    code = {
        "before": use + TRAIN + "print(train())\n",
        "after": TRAIN + use + "print(train())\n",
        "between": TRAIN + "print(train())\n" + use + "print(train())\n" + use,
    }[order]
    assert set(run(code)) == {alone}


def test_threadpoolctl_sees_and_limits_the_threads() -> None:
    pytest.importorskip("threadpoolctl")
    words = run(
        "import gradstack as gs, threadpoolctl\n"
        "apis = {pool['user_api'] for pool in threadpoolctl.threadpool_info()}\n"
        "print('openmp' in apis)\n"
        "with threadpoolctl.threadpool_limits(1, 'openmp'):\n"
        "    print(gs.show_config()['max_threads'])\n"
        "print(gs.show_config()['max_threads'])\n"
    )
    assert words == ["True", "1", str(min(2, len(os.sched_getaffinity(0))))]


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_omp_num_threads_is_respected(count: int) -> None:
    words = run(
        "import gradstack as gs; print(gs.show_config()['max_threads'])",
        environment={"OMP_NUM_THREADS": str(count)},
    )
    assert int(words[0]) == min(count, len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_num_threads_is_respected(alone: str) -> None:
    """One thread means that none is started; more are started only as asked for."""
    code = TRAIN + "n = running(); print(train({0}), running() - n)"
    assert run(code.format(1)) == [alone, "0"]
    assert run(code.format(3)) == [alone, "2"]
    serial = run(code.format("None"), environment={"OMP_NUM_THREADS": "1"})
    assert serial == [alone, "0"]


def test_affinity_is_respected(alone: str) -> None:
    core = min(os.sched_getaffinity(0))
    words = run(
        f"import os; os.sched_setaffinity(0, {{{core}}})\n"
        + TRAIN
        + "print(gs.show_config()['max_threads'], train())"
    )
    assert words == ["1", alone]


def test_cgroup_quota_is_respected() -> None:
    """In a mount namespace in which the quota of the cgroup is one core and a half, or none."""
    quota = Path("/sys/fs/cgroup/cpu.max")
    unshare = [shutil.which("unshare") or "", "--user", "--map-root-user", "--mount"]
    allowed = bool(unshare[0]) and quota.parent.is_dir()
    if allowed:
        done = subprocess.run(
            [*unshare, "mount", "-t", "tmpfs", "none", str(quota.parent)],
            capture_output=True,
            check=False,
        )
        allowed = done.returncode == 0
    if not allowed:
        pytest.skip("mount namespaces are not allowed here")
    code = "import gradstack as gs; print(gs.show_config()['max_threads'])"
    expected = {"50000 100000": 1, "150000 100000": 2, "max 100000": 3, "400000 100000": 3}
    cores = len(os.sched_getaffinity(0))
    for text, count in expected.items():
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "run"
            script.write_text(
                f"mount -t tmpfs none {quota.parent} && echo '{text}' > {quota} && exec \"$@\"\n"
            )
            words = run(
                code,
                environment={"OMP_NUM_THREADS": "3"},
                before=[*unshare, "sh", str(script)],
            )
        assert int(words[0]) == min(count, cores), text


def test_a_forked_child_trains_serially(alone: str) -> None:
    """It has none of its parent's threads, and must not wait for them."""
    words = run(
        TRAIN
        + """
print(train(), flush=True)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    before = running()
    bits = train()
    forced = train(num_threads=3)
    text = f"{bits} {forced} {gs.show_config()['max_threads']} {running() - before}"
    os.write(writer, text.encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(os.read(reader, 1000).decode(), train())
"""
    )
    assert words == [alone, alone, alone, "1", "0", alone]


def test_a_pool_of_forked_processes_trains(alone: str) -> None:
    words = run(
        TRAIN
        + """
import multiprocessing
train()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(train, [None, 1, 2]))
"""
    )
    assert words == [alone] * 3
