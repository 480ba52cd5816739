"""fit, Trainer, callbacks, checkpoints: what DESIGN promises of training."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _device, nn, optim

RNG = np.random.default_rng(0)
X = RNG.standard_normal((150, 6)).astype(np.float32)
Y = (X @ RNG.standard_normal((6, 2)) + 0.1 * RNG.standard_normal((150, 2))).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def make(out: int = 2, dtype: Any = None, dropout: float = 0.0) -> nn.Sequential:
    gs.seed(3)
    return nn.Sequential(
        nn.Linear(6, 16, dtype=dtype),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(16, out, dtype=dtype),
    )


def fit(net: nn.Module, **options: Any) -> gs.History:
    defaults: dict[str, Any] = {
        "cost": nn.MSELoss(),
        "optimizer": optim.SGD(lr=0.05, momentum=0.9),
        "epochs": 3,
        "seed": 4,
    }
    return gs.fit(net, options.pop("X", X), options.pop("y", Y), **(defaults | options))


def test_history_is_the_average_loss_of_the_samples_as_visited() -> None:
    net, own = make(), make()
    history = fit(net, batch_size=40, shuffle=False)
    trainer = gs.Trainer(own, nn.MSELoss(), optim.SGD(lr=0.05, momentum=0.9))
    for epoch in range(3):
        total = 0.0
        for first in range(0, 150, 40):
            xb, yb = X[first : first + 40], Y[first : first + 40]
            total += trainer.step(xb, yb) * len(xb)
        assert history.loss[epoch] == pytest.approx(total / 150, rel=1e-6)
    np.testing.assert_allclose(net.w, own.w, rtol=1e-5, atol=1e-7)


def test_full_batch_is_one_step_an_epoch() -> None:
    optimizer = optim.SGD(lr=0.05)
    net = make()
    w, _ = net.w.copy(), fit(net, optimizer=optimizer, batch_size=None, epochs=1)
    start = make()
    _, dw = gs.value_and_grad(start, nn.MSELoss(), X, Y)
    np.testing.assert_allclose(net.w, w - 0.05 * dw, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.astype(np.float64),
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.repeat(a, 3, axis=1)[:, ::3],
        lambda a: a[::-1][::-1],
    ],
    ids=["float64", "fortran", "row-stride", "column-stride", "reversed"],
)
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_any_view_of_the_data_trains_alike(view: Any, batch_size: int, shuffle: bool) -> None:
    plain, strided = make(), make()
    options = {"batch_size": batch_size, "shuffle": shuffle}
    fit(plain, **options)
    fit(strided, X=view(X), y=view(Y), **options)
    np.testing.assert_array_equal(plain.w, strided.w)


def test_integers_and_memory_maps(tmp_path: Path) -> None:
    data = RNG.integers(0, 255, (90, 6)).astype(np.uint8)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=data.shape)
    mapped[:] = data
    nets = [make(3) for _ in range(3)]
    for net, x in zip(nets, (data, mapped, data.astype(np.float32)), strict=True):
        fit(net, X=x, y=LABELS[:90], cost=nn.CrossEntropyLoss(), optimizer=optim.Adam(lr=1e-3))
    np.testing.assert_array_equal(nets[0].w, nets[1].w)
    np.testing.assert_array_equal(nets[0].w, nets[2].w)


def test_a_row_of_a_memory_map_that_is_not_finite_stops_before_its_step(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    mapped[97, 2] = np.nan
    net = make()
    with pytest.raises(ValueError, match="97"):
        fit(net, X=mapped)
    assert np.isfinite(net.w).all()


def test_a_memory_map_to_validate_on_that_is_not_finite(tmp_path: Path) -> None:
    held_out = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=X.shape)
    held_out[...] = X
    held_out[17, 2] = np.nan
    with pytest.raises(ValueError, match=r"^validation X has nan in row 17, column 2"):
        fit(make(), validation=(held_out, Y))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused(bad: float) -> None:
    net = make()
    before = net.w.copy()
    for name in ("X", "y"):
        data = {"X": X.copy(), "y": Y.copy()}
        data[name][7, 1] = bad
        with pytest.raises(ValueError, match=name):
            fit(net, **data)
    np.testing.assert_array_equal(net.w, before)


@pytest.mark.parametrize("lr", [1e12, 1e30])
def test_divergence_names_epoch_and_step_and_leaves_finite_weights(lr: float) -> None:
    net = make()
    with pytest.raises(FloatingPointError, match=r"^the loss is (nan|inf) at epoch \d+, step \d+"):
        fit(net, optimizer=optim.SGD(lr=lr), epochs=50)
    assert np.isfinite(net.w).all()


def test_sample_weights_are_copies_of_samples() -> None:
    weight = np.arange(150) % 3
    weighted, repeated = make(), make()
    options = {"batch_size": None, "epochs": 5}
    fit(weighted, sample_weight=weight.astype(np.float32), **options)
    fit(repeated, X=np.repeat(X, weight, axis=0), y=np.repeat(Y, weight, axis=0), **options)
    np.testing.assert_allclose(weighted.w, repeated.w, rtol=1e-4, atol=1e-6)


def test_schedules_and_callables_get_the_step_from_0() -> None:
    seen: list[int] = []

    def rate(step: int) -> float:
        seen.append(step)
        return 0.05

    called, constant = make(), make()
    fit(called, optimizer=optim.SGD(lr=rate), batch_size=50)
    fit(constant, optimizer=optim.SGD(lr=0.05), batch_size=50)
    assert seen == list(range(9))
    np.testing.assert_array_equal(called.w, constant.w)


def test_an_error_of_a_schedule_or_callback_comes_out_unchanged() -> None:
    class MineError(Exception):
        pass

    def broken(_: Any) -> float:
        raise MineError("mine")

    for options in ({"optimizer": optim.SGD(lr=broken)}, {"callbacks": [broken]}):
        with pytest.raises(MineError, match="mine"):
            fit(make(), **options)


def test_callbacks_see_the_net_and_can_stop() -> None:
    class Watch:
        def __init__(self) -> None:
            self.batches: list[float] = []
            self.epochs: list[tuple[int, float | None]] = []

        def on_batch_end(self, state: Any) -> None:
            assert state.net.w.shape == (146,)
            self.batches.append(state.loss)

        def on_epoch_end(self, state: Any) -> Any:
            self.epochs.append((state.epoch, state.val_loss))
            return gs.STOP if len(self.epochs) == 2 else None

    watch, watched, plain = Watch(), make(), make()
    history = fit(watched, epochs=9, batch_size=50, callbacks=[watch], validation=(X[:9], Y[:9]))
    fit(plain, epochs=2, batch_size=50)
    assert len(history.loss) == 2
    assert len(watch.batches) == 6
    assert [v for _, v in watch.epochs] == pytest.approx(history.val_loss)
    np.testing.assert_array_equal(watched.w, plain.w)


def test_early_stopping_restores_the_best_weights() -> None:
    kept: list[np.ndarray[Any, Any]] = []
    net = make()
    history = fit(
        net,
        epochs=40,
        validation=(X[:20], -Y[:20]),
        callbacks=[lambda s: kept.append(s.net.w.copy())],
        early_stopping=gs.EarlyStopping(patience=3),
    )
    best = int(np.argmin(history.val_loss))
    assert len(history.loss) == best + 4 < 40
    np.testing.assert_array_equal(net.w, kept[best])


def test_a_second_fit_continues_and_the_state_pickles() -> None:
    whole, halves = make(), make()
    fit(whole, optimizer=optim.Adam(lr=1e-2), epochs=2, shuffle=False)
    optimizer = optim.Adam(lr=1e-2)
    fit(halves, optimizer=optimizer, epochs=1, shuffle=False)
    net, optimizer = pickle.loads(pickle.dumps((halves, optimizer)))
    fit(net, optimizer=optimizer, epochs=1, shuffle=False)
    np.testing.assert_array_equal(whole.w, net.w)


def test_frozen_and_masked_weights_never_move() -> None:
    mask = RNG.random((16, 6)) < 0.5
    gs.seed(1)
    net = nn.Sequential(nn.Linear(6, 16, mask=mask), nn.Tanh(), nn.Linear(16, 2))
    net[2].freeze()
    weight, last = net[0].weight.copy(), net[2].w.copy()
    fit(net, optimizer=optim.AdamW(lr=1e-2, weight_decay=0.1))
    np.testing.assert_array_equal(net[2].w, last)
    np.testing.assert_array_equal(np.asarray(net[0].weight)[~mask], weight[~mask])
    assert not np.array_equal(np.asarray(net[0].weight)[mask], weight[mask])


def test_biases_need_not_decay() -> None:
    for decay_bias in (True, False):
        net = nn.Linear(6, 2)
        bias = net.bias.copy()
        weight = np.zeros(150, np.float32)
        weight[0] = 1e-30
        fit(
            net,
            sample_weight=weight,
            optimizer=optim.SGD(lr=0.1, weight_decay=0.5, decay_bias=decay_bias, clip_value=1e-20),
            epochs=1,
            batch_size=None,
        )
        assert np.array_equal(net.bias, bias) is (not decay_bias)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = fit(make(), checkpoint=gs.Checkpoint(path))
    again = make()
    assert fit(again, checkpoint=gs.Checkpoint(path)).loss == first.loss  # finished: at once
    for options in ({"seed": 5}, {"batch_size": 7}, {"cost": nn.L1Loss()}, {"X": X + 1}):
        with pytest.raises(ValueError, match=r"checkpoint|run"):
            fit(make(), checkpoint=gs.Checkpoint(path), **options)
    whole = make()
    fit(whole, epochs=5)
    fit(again, epochs=5, checkpoint=gs.Checkpoint(path))
    np.testing.assert_array_equal(whole.w, again.w)


def test_a_checkpoint_in_no_directory_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.file': there is no directory"):
        gs.Checkpoint(tmp_path / "none" / "file")


def test_dropout_is_active_in_training_only() -> None:
    net = make(dropout=0.5)
    np.testing.assert_array_equal(net(X), net(X))
    plain = make()
    fit(net)
    fit(plain)
    assert not np.array_equal(net.w, plain.w)


def test_nearest_neighbour_is_online_k_means() -> None:
    gs.seed(0)
    centres = np.array([[0, 0], [5, 5], [-5, 5]], np.float32)
    data = np.repeat(centres, 100, axis=0) + RNG.normal(0, 0.3, (300, 2)).astype(np.float32)
    net = nn.NearestNeighbour(2, 3)
    net.w = data[[0, 100, 200]].ravel()
    history = gs.fit(
        net, data, None, cost=nn.SquaredError(), optimizer=optim.SGD(lr=0.02), epochs=20
    )
    assert history.loss[-1] < 0.25
    assert net(data).dtype == np.int64
    assert net(data[0]).shape == ()
    assert len(set(net(data[::100]).tolist())) == 3


def test_device_cuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "_opened", {})
    monkeypatch.setitem(sys.modules, "gradstack._cuda", None)  # as if it were not there
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)cuda"):
        fit(make(), device="cuda")


@pytest.mark.parametrize("optimizer", [optim.Adam(lr=0.01), optim.LevenbergMarquardt()])
def test_a_copied_trainer_goes_on_by_itself(optimizer: optim.Optimizer) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = RNG.standard_normal((10, 3)).astype(np.float32)
    y = np.sin(x[:, 0])
    trainer = gs.Trainer(net, nn.MSELoss(), optimizer, num_threads=1)
    trainer.step(x, y)
    copies = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer)), copy.copy(trainer)]
    losses = [trainer.step(x, y) for _ in range(3)]
    for other in copies:
        assert other.net is not net
        assert [other.step(x, y) for _ in range(3)] == losses
        np.testing.assert_array_equal(other.net.w, net.w)
    assert repr(trainer).startswith("Trainer(Sequential of 41 parameters, MSELoss(), ")
