"""The bicycle environment against the published benchmark and SciPy."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="environments are Gymnasium's")

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@pytest.fixture
def bicycle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("bicycle_env")


def test_gymnasium_accepts_it(bicycle: Any) -> None:
    import gymnasium
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make("Bicycle-v0").unwrapped)


def growth(bicycle: Any, speed: float) -> np.ndarray:
    return np.linalg.eigvals(bicycle.dynamics(speed)[0])


def test_stability_changes_at_the_published_speeds(bicycle: Any) -> None:
    """Meijaard et al. (2007), table 2: weave speed 4.292 m/s, capsize speed 6.024 m/s."""
    weave, capsize = 4.29238253634111, 6.02426201538837
    critical = growth(bicycle, weave)
    pair = critical[np.abs(critical.imag) > 1]
    assert np.abs(pair.real).max() < 1e-9
    assert np.abs(growth(bicycle, capsize)).min() < 1e-9
    for speed, stable in ((3.0, False), (4.2, False), (4.4, True), (5.9, True), (6.2, False)):
        assert (growth(bicycle, speed).real.max() < 0) == stable


def test_steps_are_the_exact_solution(bicycle: Any) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg", reason="the oracle is not installed")
    a, b = bicycle.dynamics(3.0)
    got_a, got_b = bicycle.discrete(a, b, 0.02)
    generator = np.zeros((6, 6))
    generator[:4, :4], generator[:4, 4:] = a, b
    expected = scipy_linalg.expm(0.02 * generator)
    np.testing.assert_allclose(got_a, expected[:4, :4], atol=1e-12)
    np.testing.assert_allclose(got_b, expected[:4, 4:], atol=1e-12)


def test_without_steering_it_falls_and_with_feedback_it_does_not(bicycle: Any) -> None:
    scipy_linalg = pytest.importorskip("scipy.linalg", reason="the oracle is not installed")
    from gradstack import rl

    env = bicycle.Bicycle()
    alone = rl.episode_returns(env, lambda x: np.zeros(1), 50, seed=0)
    assert alone.max() < 4
    a, b = bicycle.discrete(*bicycle.dynamics(env.SPEED), env.DT)
    steer = b[:, 1:]
    cost = scipy_linalg.solve_discrete_are(a, steer, np.eye(4), 0.01 * np.eye(1))
    gain = np.linalg.solve(steer.T @ cost @ steer + 0.01, steer.T @ cost @ a)
    ridden = rl.episode_returns(env, lambda x: -(gain @ x) / env.TORQUE, 5, seed=0)
    np.testing.assert_allclose(ridden, env.LIMIT)
