"""A fit that is stopped from outside: Ctrl-C, and SIGKILL with resumption from a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

FIT = """
    import sys, time
    import numpy as np
    import gradstack as gs
    from gradstack import nn, optim

    rng = np.random.default_rng(0)
    X = rng.standard_normal((700, 20)).astype(np.float32)
    y = rng.integers(0, 4, 700)
    gs.seed(1)
    net = nn.Sequential(
        nn.Linear(20, 48), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 4),
    )
    optimizer = optim.Adam(lr=optim.schedules.cosine(3e-3, 4000), clip_norm=1.0)
    checkpoint = None if sys.argv[1] == "-" else gs.Checkpoint(sys.argv[1], every_steps=3)

    def slow(state):
        if checkpoint is not None:
            print("epoch", flush=True)
            time.sleep(0.01)

    history = gs.fit(
        net, X, y, cost=nn.CrossEntropyLoss(), optimizer=optimizer, batch_size=32, epochs=40,
        seed=7, checkpoint=checkpoint, callbacks=[slow], validation=(X[:50], y[:50]),
    )
    np.savez(sys.argv[2], w=net.w, loss=history.loss, val_loss=history.val_loss)
"""


def run(script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_fit_resumes_with_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(FIT))
    with run(script, "-", str(tmp_path / "whole.npz")) as whole_fit:
        assert whole_fit.wait(60) == 0
    checkpoint = str(tmp_path / "run.checkpoint")
    rng = np.random.default_rng(5)
    kills = 0
    for _ in range(4):
        with run(script, checkpoint, str(tmp_path / "resumed.npz")) as fit:
            assert fit.stdout is not None
            for _ in range(int(rng.integers(1, 8))):
                fit.stdout.readline()
            time.sleep(float(rng.uniform(0, 0.02)))
            fit.kill()
            kills += fit.wait(60) == -signal.SIGKILL
    assert kills >= 3, "the fit was over before it could be killed"
    with run(script, checkpoint, str(tmp_path / "resumed.npz")) as last:
        last.communicate(timeout=60)
        assert last.returncode == 0
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "resumed.npz") as resumed:
        for name in ("w", "loss", "val_loss"):
            assert np.array_equal(whole[name], resumed[name]), name


CTRL_C = """
    import os, signal, sys, threading, time
    import numpy as np
    import gradstack as gs
    from gradstack import nn, optim

    width, samples = int(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, width)).astype(np.float32)
    net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    start = net.w.copy()
    # The time of the thread that trains: another program on its core is not to be counted.
    clock = time.pthread_getcpuclockid(threading.main_thread().ident)
    sent = []

    def interrupt():
        time.sleep(0.3)
        sent.append(time.clock_gettime(clock))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        gs.fit(net, X, X, cost=nn.MSELoss(), optimizer=optim.SGD(lr=1e-3), batch_size=None,
               epochs=10**7)
    except KeyboardInterrupt:
        late = time.clock_gettime(clock) - sent[0]
    assert late < 0.5, f"noticed after {late:.2f} s"
    assert np.isfinite(net.w).all() and np.isfinite(net(X[:3])).all()
    whole = net.w.copy()
    gs.fit(net, X[:64], X[:64], cost=nn.MSELoss(), optimizer=optim.SGD(lr=1e-3), epochs=1)
    assert not np.array_equal(whole, net.w)  # usable
    print("ok")
"""


@pytest.mark.parametrize(("width", "samples"), [(8, 64), (512, 16384)], ids=["short", "long"])
def test_ctrl_c_is_noticed_within_half_a_second(tmp_path: Path, width: int, samples: int) -> None:
    script = tmp_path / "fit.py"
    script.write_text(textwrap.dedent(CTRL_C))
    with run(script, str(width), str(samples)) as fit:
        out, _ = fit.communicate(timeout=120)
    assert fit.returncode == 0
    assert out.strip() == "ok"
