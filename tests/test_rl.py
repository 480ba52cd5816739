"""gs.rl against plain loops, distributions and environments with known transitions; gs.polyak."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim, rl

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def test_returns_are_discounted_sums(rng: np.random.Generator) -> None:
    rewards = rng.normal(size=30)
    expected = [
        sum(0.9 ** (k - t) * rewards[k] for k in range(t, len(rewards)))
        for t in range(len(rewards))
    ]
    np.testing.assert_allclose(rl.returns(rewards, 0.9), expected, rtol=1e-12)
    both = np.stack([rewards, rewards[::-1]], axis=1)
    np.testing.assert_array_equal(rl.returns(both, 0.9)[:, 0], rl.returns(rewards, 0.9))
    np.testing.assert_array_equal(rl.returns([1, 2, 3], 0.0), [1, 2, 3])
    np.testing.assert_array_equal(rl.returns([1, 2, 3], 1.0), [6, 5, 3])


def plain_gae(r: Any, v: Any, after: Any, ended: Any, cut: Any, gamma: float, lam: float) -> Any:
    """Sums over the episode's remaining temporal differences, written out."""
    advantages = np.zeros(r.shape)
    for n in range(r.shape[1]):
        for t in range(len(r)):
            weight = 1.0
            for k in range(t, len(r)):
                bootstrap = 0.0 if ended[k, n] else after[k, n]
                advantages[t, n] += weight * (r[k, n] + gamma * bootstrap - v[k, n])
                if ended[k, n] or cut[k, n]:
                    break
                weight *= gamma * lam
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0)])
def test_gae(rng: np.random.Generator, gamma: float, lam: float) -> None:
    r, v, after = rng.normal(size=(3, 40, 5))
    ended, cut = rng.random((2, 40, 5)) < 0.1
    expected = plain_gae(r, v, after, ended, cut, gamma, lam)
    got = rl.gae(r, v, after, ended, cut, gamma=gamma, lam=lam)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    one = rl.gae(r[:, 0], v[:, 0], after[:, 0], ended[:, 0], cut[:, 0], gamma=gamma, lam=lam)
    np.testing.assert_array_equal(one, got[:, 0])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \(1, 1, 1\)"):
        rl.returns([[[1.0]]])
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        rl.returns([1.0], gamma=1.5)
    with pytest.raises(ValueError, match=r"values has shape \(2,\), expected that of rewards"):
        rl.gae([1.0], [1.0, 2.0], [1.0], [False], [False])
    with pytest.raises(ValueError, match="the buffer is empty"):
        rl.ReplayBuffer(3, 1, 1, np.random.default_rng(0)).sample(1)


def test_categorical_draws_with_the_softmax(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    logits = np.array([1.0, -2.0, 0.0, -np.inf, 3.0], np.float32)
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64), 0).numpy()
    count = 20000
    spread = np.sqrt(p * (1 - p) / count)
    batch = rl.Categorical.sample(np.tile(logits, (count, 1)), rng)
    single = [rl.Categorical.sample(logits, rng) for _ in range(count)]
    for draws in (batch, single):
        share = np.bincount(draws, minlength=5) / count
        assert (np.abs(share - p) <= 4.5 * spread).all()
    assert batch.dtype == np.int64
    actions = rng.choice([0, 1, 2, 4], 7)
    ybar = np.tile(logits, (7, 1))
    pi = torch.distributions.Categorical(logits=torch.tensor(ybar))
    expected = pi.log_prob(torch.tensor(actions)).numpy()
    np.testing.assert_allclose(rl.Categorical.log_prob(ybar, actions), expected, rtol=1e-5)
    assert rl.Categorical.mode(logits) == 4


def test_one_state_and_a_batch_draw_alike() -> None:
    ybar = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    batch = rl.Categorical.sample(ybar, np.random.default_rng(2))
    rng = np.random.default_rng(2)
    assert [rl.Categorical.sample(row, rng) for row in ybar] == batch.tolist()


def test_gaussian_draws_with_mean_and_standard_deviation(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is not installed")
    ybar = np.array([1.0, -2.0, np.log(0.5), np.log(3.0)], np.float32)
    count = 20000
    draws = rl.Gaussian.sample(np.tile(ybar, (count, 1)), rng)
    assert draws.shape == (count, 2)
    assert draws.dtype == np.float32
    std = np.array([0.5, 3.0])
    assert (np.abs(draws.mean(axis=0) - ybar[:2]) < 4.5 * std / np.sqrt(count)).all()
    assert (np.abs(draws.std(axis=0) / std - 1) < 4.5 / np.sqrt(2 * count)).all()
    assert rl.Gaussian.sample(ybar, rng).shape == (2,)
    pi = torch.distributions.Normal(torch.tensor(ybar[:2]), torch.tensor(std))
    expected = pi.log_prob(torch.tensor(draws[:9])).sum(1).numpy()
    got = rl.Gaussian.log_prob(np.tile(ybar, (9, 1)), draws[:9])
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.fixture
def counters() -> Any:
    """Three environments that count up to 3, 4 and 5; the second is cut off, not ended."""
    gymnasium = pytest.importorskip("gymnasium", reason="environments are Gymnasium's")

    class Counter(gymnasium.Env):  # type: ignore[misc]
        observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,))
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

        def __init__(self, length: int, truncates: bool) -> None:
            self.length, self.truncates = length, truncates

        def state(self) -> Any:
            return np.array([self.t, self.length], np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.t = 0
            return self.state(), {}

        def step(self, action: Any) -> Any:
            assert np.abs(action) <= 1  # clipped on the way
            self.t += 1
            over = self.t == self.length
            ended = over and not self.truncates
            return self.state(), float(self.t), ended, over and self.truncates, {}

    kinds = [(3, False), (4, True), (5, False)]
    return gymnasium.vector.SyncVectorEnv([lambda k=k: Counter(*k) for k in kinds])


def test_rollout(counters: Any) -> None:
    rollout = rl.Rollout(counters, 11, seed=0)
    rollout.collect(lambda obs: 5.0 * np.ones((3, 1)))
    for n, length in enumerate((3, 4, 5)):
        # Steps of an episode, then one in which the environment starts anew.
        cycle = np.arange(11) % (length + 1)
        real = cycle < length
        np.testing.assert_array_equal(rollout.valid[:, n], real)
        np.testing.assert_array_equal(rollout.obs[real, n, 0], cycle[real])
        np.testing.assert_array_equal(rollout.next_obs[real, n, 0], cycle[real] + 1)
        np.testing.assert_array_equal(rollout.rewards[real, n], cycle[real] + 1)
        over = cycle == length - 1
        np.testing.assert_array_equal(rollout.truncated[:, n], over & (n == 1))
        np.testing.assert_array_equal(rollout.terminated[:, n], over & (n != 1))
    assert rollout.actions.shape == (11, 3, 1)
    assert (rollout.actions == 5).all()  # as the policy gave them
    assert sorted(rollout.episodes) == [6, 6, 6, 10, 10, 15, 15]
    (rows,) = rollout.rows(rollout.obs)
    assert rows.shape == (rollout.valid.sum(), 2)
    # The next collection goes on where this one ended.
    state = rollout.next_obs[-1].copy()
    rollout.collect(lambda obs: np.zeros((3, 1)))
    np.testing.assert_array_equal(rollout.obs[0], state)


def test_rollout_refuses_other_ways_to_start_anew() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="environments are Gymnasium's")
    same = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    envs = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync", vector_kwargs=same)
    with pytest.raises(ValueError, match="NEXT_STEP"):
        rl.Rollout(envs, 2, seed=0)


def test_replay_keeps_the_last_transitions() -> None:
    buffer = rl.ReplayBuffer(4, 2, 1, np.random.default_rng(0))
    for k in range(7):
        buffer.add([k, -k], [10 * k], 100 * k, [k + 1, 0], k % 2 == 0)
    assert len(buffer) == 4
    s, a, r, after, terminated = buffer.sample(200)
    assert set(s[:, 0]) == {3, 4, 5, 6}
    np.testing.assert_array_equal(s[:, 1], -s[:, 0])
    np.testing.assert_array_equal(a[:, 0], 10 * s[:, 0])
    np.testing.assert_array_equal(r, 100 * s[:, 0])
    np.testing.assert_array_equal(after, np.stack([s[:, 0] + 1, 0 * s[:, 0]], axis=1))
    np.testing.assert_array_equal(terminated, s[:, 0] % 2 == 0)


def test_polyak() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    before = net.w.copy()
    gs.polyak(net, other, 0.25)
    np.testing.assert_allclose(net.w, 0.75 * before + 0.25 * other.w, rtol=1e-6)
    gs.polyak(net, other, 1.0)
    np.testing.assert_array_equal(net.w, other.w)
    with pytest.raises(
        ValueError, match="source has 4 parameters of float32, expected as target 8"
    ):
        gs.polyak(net, nn.Linear(3, 1), 0.5)
    with pytest.raises(ValueError, match="tau must be in"):
        gs.polyak(net, other, 1.5)


def test_update_makes_the_steps_of_a_trainer(rng: np.random.Generator) -> None:
    """With the gradient of the same cost, masks, frozen parameters and clipping included."""
    mask = rng.random((16, 3)) < 0.7
    net = nn.Sequential(nn.Linear(3, 16, mask=mask), nn.Tanh(), nn.Linear(16, 2))
    net[2].bias.requires_grad = False
    twin, cost = net.copy(), nn.MSELoss()
    made = [optim.AdamW(lr=0.05, clip_norm=0.1, decay_bias=False) for _ in range(2)]
    trainer = gs.Trainer(twin, cost, made[0])
    start = net.w.copy()
    for _ in range(10):
        x = rng.normal(size=(5, 3)).astype(np.float32)
        y = rng.normal(size=(5, 2)).astype(np.float32)
        _, dw = gs.value_and_grad(net, cost, x, y)
        dw[-2:] = 0  # the trainer's clipping does not count frozen parameters
        trainer.step(x, y)
        made[1].update(net, dw)
    np.testing.assert_allclose(net.w, twin.w, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(net.w[-2:], start[-2:])
    held = np.flatnonzero(~mask.reshape(-1))
    np.testing.assert_array_equal(net.w[held], start[held])
    with pytest.raises(FloatingPointError, match="dw holds NaN"):
        made[1].update(net, np.full(net.w.size, np.nan))
    with pytest.raises(ValueError, match="dw has shape"):
        made[1].update(net, np.zeros(3))
    with pytest.raises(TypeError, match=r"\[LBFGS\]"):
        optim.LBFGS().update(net, dw)


LEARN = """
import hashlib
import numpy as np
import actor_critic, gan_common, reinforce, td3
from gradstack import nn, optim
from rl_common import mlp

def tell(name, curve, net):
    print(name, hashlib.sha256(np.array(curve).tobytes() + net.w.tobytes()).hexdigest())

policy, curve = reinforce.learn(3, 3)
tell("reinforce", curve, policy)
for task in (actor_critic.CARTPOLE, actor_critic.PENDULUM):
    actor, curve = actor_critic.learn(task, 3, 2)
    tell(task.name, curve, actor)
actor, curve = td3.learn(td3.PENDULUM, 3, 1300)
tell("td3", curve, actor)
rng = np.random.default_rng(0)
nets = mlp(8, 96, 96, 2, hidden=nn.ReLU), mlp(2, 96, 96, 1, hidden=nn.ReLU)
gan = gan_common.Gan(*nets, optim.games.Extragradient, 1e-3, rng, r1=0.1)
for _ in range(20):
    gan.step(rng.standard_normal((512, 2), dtype=np.float32))
tell("gan", [], gan.generator)
"""


def test_same_curves_for_any_number_of_threads() -> None:
    pytest.importorskip("gymnasium", reason="environments are Gymnasium's")
    pytest.importorskip("matplotlib", reason="the examples draw")
    outputs = []
    for threads in (1, 2, 4):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", "-c", LEARN]
        done = subprocess.run(
            command, env=environment, cwd=EXAMPLES, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert len([line for line in outputs[0].splitlines() if len(line.split()) == 2]) == 5
    assert outputs[1:] == outputs[:1] * 2
