"""The examples with pictures run in quick mode and reach what they are there to show."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
LARGEST_PICTURE = 150_000  # bytes


def run(name: str, *arguments: str) -> str:
    # OpenBLAS's threads spin while they wait, which multiplies its time on a busy machine.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern + r" (\d+\.?\d*(?:e[+-]?\d+)?)", text)
    assert found, text
    return float(found[1])


def run_with_picture(name: str, folder: pathlib.Path) -> str:
    """Run an example in quick mode and check that it left its picture."""
    pytest.importorskip("matplotlib", reason="the example draws")
    output = run(f"{name}.py", "--quick", "--out", str(folder / "new"))
    picture = (folder / "new" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert 10_000 < len(picture) < LARGEST_PICTURE
    return output


def test_every_example_with_a_picture_is_tested_and_shown() -> None:
    names = {p.stem for p in EXAMPLES.glob("*.py") if "from common import" in p.read_text("utf-8")}
    assert len(names) >= 4
    images = EXAMPLES.parent / "docs" / "images"
    gallery = (images.parent / "gallery.md").read_text("utf-8")
    for name in names:
        assert f"test_{name}" in globals()
        assert (images / f"{name}.png").stat().st_size < LARGEST_PICTURE
        assert f"images/{name}.png" in gallery


def test_sensitivity_map(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn", reason="the example trains on its digits")
    output = run_with_picture("sensitivity_map", tmp_path)
    assert number("accuracy", output) > 0.95
    # What the Jacobian says happens; what it does not say does not.
    assert number("foretold within", output) < 0.02
    assert number("changed by the step", output) > 0.95
    assert number("by a random one as long", output) < 0.05


def test_surrogate_mpc(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("surrogate_mpc", tmp_path)
    assert number("new transitions", output) < 0.05
    assert number("upright after", output) < 3
    assert number("in the last second at most", output) < 0.1


def test_levenberg_marquardt(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("levenberg_marquardt", tmp_path)
    adam, own = (number(f"{name}: loss", output) for name in ("Adam", "Levenberg-Marquardt"))
    assert own < adam
    assert number("passed that of Adam after", output) < 1.0


def test_poisson_pinn(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("poisson_pinn", tmp_path)
    assert number("relative residual", output) < 5e-3
    assert number("relative error of the solution", output) < 1e-3


def test_zero_one_loss(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("zero_one_loss", tmp_path)
    for seed in range(3):
        line = next(row for row in output.splitlines() if row.startswith(f"data {seed}"))
        surrogate, search = number("the surrogate", line), number("the search", line)
        assert search < 0.6 * surrogate
        # What it has in view is the labels that are right.
        assert number(r"among right labels \d.\d+ and", line) < 0.08


def test_locally_connected(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn", reason="the example trains on its digits")
    output = run_with_picture("locally_connected", tmp_path)
    for seed in range(3):
        accuracy = {
            kind: number(rf"seed {seed}: {kind} of \d+ parameters: accuracy", output)
            for kind in ("patches", "dense")
        }
        assert accuracy["patches"] > 0.93
        assert accuracy["patches"] > accuracy["dense"] - 0.03
    assert number("connections present", output) < 0.15
