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
    # Threads that spin while they wait multiply the time on a busy machine.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern + r" ?(\d+\.?\d*(?:e[+-]?\d+)?)", text)
    assert found, text
    return float(found[1])


def run_with_picture(name: str, folder: pathlib.Path, *arguments: str) -> str:
    """Run an example in quick mode and check that it left its picture."""
    pytest.importorskip("matplotlib", reason="the example draws")
    output = run(f"{name}.py", "--quick", "--out", str(folder / "new"), *arguments)
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
    assert own < 0.5 * adam
    # One of its passes does the work of some forty of Adam's (G of 205 parameters, factorised).
    assert 40 * number("passed that of Adam in pass", output) < number("Adam took", output)


def test_poisson_pinn(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("poisson_pinn", tmp_path)
    assert number("relative residual", output) < 5e-3
    assert number("relative error of the solution", output) < 1e-3


# What the examples show is no matter of luck; each run takes seconds, so most are left to .ci/full.
seeds = pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)


@seeds
def test_parametrised_models(tmp_path: pathlib.Path, seed: int) -> None:
    pytest.importorskip("sklearn", reason="the example compares with its k-means")
    output = run_with_picture("parametrised_models", tmp_path, "--seed", str(seed))
    assert number("off the least-squares solution by", output) < 1e-6
    assert number("ratio", output) < 1.02
    assert number("after training", output) < 0.8 * number("mean squared distance", output)


@seeds
def test_learning_rate_matrix(tmp_path: pathlib.Path, seed: int) -> None:
    output = run_with_picture("learning_rate_matrix", tmp_path, "--seed", str(seed))
    line = r"(\w+): loss (\S+) from (\S+), (\d+) steps uphill, .* (\S+) to (\S+) degrees"
    found = re.findall(line, output)
    assert [row[0] for row in found] == [
        *("number", "diagonal", "any", "full"),  # the quadratic
        *("number", "diagonal", "Kronecker", "full"),  # the network
    ]
    finals = []
    for name, last, first, uphill, least, most in found:
        assert float(last) < float(first)
        assert int(uphill) == 0
        assert float(most) < 90
        assert (float(most) < 0.1) == (name == "number")  # the one way that is the steepest
        assert 0 <= float(least) <= float(most)
        finals.append(float(last))
    assert finals[3] < 1e-6 < min(finals[:3])
    number_, diagonal, kronecker, full = finals[4:]
    assert full < 0.5 * kronecker < 0.5 * diagonal < 0.5 * number_
    assert "refused: eta must be positive semi-definite" in output


@seeds
def test_stochastic_descent(tmp_path: pathlib.Path, seed: int) -> None:
    output = run_with_picture("stochastic_descent", tmp_path, "--seed", str(seed))
    # The full batch goes down in every step, one sample does not; but it is there after one pass.
    assert number("full batch, 30 passes: uphill in", output) == 0
    assert number("one sample at a time, 1 pass: uphill in", output) > 25
    after_one = number("after one pass the full batch has a loss of", output)
    stochastic = number(r"uphill in [\d.]+ % of the steps, loss", output.split("one sample")[1])
    assert after_one > 10 * stochastic
    # Data that occur k times save it k passes of k.
    for k in (1, 4, 16):
        assert number(f"k = {k}:", output) == pytest.approx(k, rel=0.1)


def test_minibatch_speed(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("minibatch_speed", tmp_path)
    assert number("batch 512:", output) > 0
    assert "the weights of one and two threads are the same" in output


def test_reinforce(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("gymnasium", reason="the example acts in its environments")
    output = run_with_picture("reinforce", tmp_path)
    assert number("seed 0: average of 100 episodes", output) > 150  # 20 by chance


def test_actor_critic(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("gymnasium", reason="the example acts in its environments")
    output = run_with_picture("actor_critic", tmp_path)
    assert number("CartPole-v1, seed 0: average of 100 episodes", output) > 300
    assert number("Pendulum-v1, seed 0: average of 100 episodes -", output) < 900  # 1200 by chance


def test_td3(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("gymnasium", reason="the example acts in its environments")
    output = run_with_picture("td3", tmp_path)
    assert number("Pendulum-v1, seed 0: average of 100 episodes -", output) < 500


def test_bicycle(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("gymnasium", reason="the example acts in its environment")
    output = run_with_picture("bicycle", tmp_path)
    for learner in ("zeroth order", "actor-critic"):
        assert number(rf"{learner}, seed 0: after \d+ steps", output) > 2  # 1.4 without steering


def test_bilinear_game(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("bilinear_game", tmp_path)
    assert number("simultaneous: distance 1.118 at first,", output) > 1000
    for name in ("extragradient", "optimistic"):
        assert number(f"{name}: distance 1.118 at first,", output) < 1e-3


def test_gan_mixture(tmp_path: pathlib.Path) -> None:
    output = run_with_picture("gan_mixture", tmp_path)
    assert number("ring of 8, seed 0:", output) >= 6
    assert number("of 8 modes,", output) > 0.5


def test_gan_digits(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn", reason="the example imitates its digits")
    output = run_with_picture("gan_digits", tmp_path)
    assert number("digits it has not seen", output) >= 0.97
    assert number("seed 0: confident on", output) > 0.3


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
