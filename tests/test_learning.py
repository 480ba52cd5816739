"""What the examples of reinforcement learning and of games claim, at three seeds.

Full runs of a minute or two each.
"""

from __future__ import annotations

import pathlib
import re

import pytest

from test_examples import run

pytestmark = pytest.mark.slow

SEEDS = 3


def results(pattern: str, output: str) -> list[float]:
    """The number that follows `pattern`, one per seed."""
    found = [float(x) for x in re.findall(pattern + r" (-?\d+\.?\d*)", output)]
    assert len(found) == SEEDS, output
    return found


@pytest.fixture
def need_gymnasium() -> None:
    pytest.importorskip("gymnasium", reason="the example acts in its environments")
    pytest.importorskip("matplotlib", reason="the example draws")


@pytest.mark.usefixtures("need_gymnasium")
def test_reinforce(tmp_path: pathlib.Path) -> None:
    output = run("reinforce.py", "--out", str(tmp_path))
    assert min(results("average of 100 episodes", output)) >= 475


@pytest.mark.usefixtures("need_gymnasium")
def test_actor_critic(tmp_path: pathlib.Path) -> None:
    output = run("actor_critic.py", "--out", str(tmp_path))
    for name, aim in (("CartPole-v1", 475), ("Pendulum-v1", -200)):
        assert min(results(rf"{name}, seed \d: average of 100 episodes", output)) >= aim


@pytest.mark.usefixtures("need_gymnasium")
def test_td3(tmp_path: pathlib.Path) -> None:
    output = run("td3.py", "--out", str(tmp_path))
    for name, aim in (("Pendulum-v1", -200), ("MountainCarContinuous-v0", 90)):
        assert min(results(rf"{name}, seed \d: average of 100 episodes", output)) >= aim


@pytest.mark.usefixtures("need_gymnasium")
def test_bicycle(tmp_path: pathlib.Path) -> None:
    output = run("bicycle.py", "--out", str(tmp_path))
    for learner in ("zeroth order", "actor-critic"):
        assert min(results(rf"{learner}, seed \d: after \d+ steps", output)) > 19


def test_gan_mixture(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="the example draws")
    output = run("gan_mixture.py", "--out", str(tmp_path))
    for name, modes in (("ring of 8", 8), ("grid of 9", 9)):
        assert results(rf"{name}, seed \d:", output) == [modes] * SEEDS
        assert min(results(f"of {modes} modes,", output)) > 0.85


def test_gan_digits(tmp_path: pathlib.Path) -> None:
    """Samples on which a classifier of at least 97 % is confident, all ten classes among them."""
    for package in ("matplotlib", "sklearn"):
        pytest.importorskip(package, reason="the example needs it")
    output = run("gan_digits.py", "--out", str(tmp_path))
    judge = re.search(r"it has not seen (\d\.\d+)", output)
    assert judge
    assert float(judge[1]) >= 0.97
    assert min(results(r"seed \d: confident on", output)) >= 0.5
    assert results("generated digits,", output) == [10] * SEEDS
