"""Pictures drawn with matplotlib: `History.plot`, `gs.plot.landscape`, `gs.plot.Trajectory`."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn, optim

mpl = pytest.importorskip("matplotlib")
mpl.use("Agg")

F64 = "float64"


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def line_data(n: int = 40) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 1))
    return x, 2 * x - 1 + 0.3 * rng.standard_normal((n, 1))


def drawn(*args: Any, **options: Any) -> tuple[Any, Any, Any, mock.MagicMock]:
    """What landscape gave to contourf: coordinates and losses; and the recording axes."""
    ax = mock.MagicMock()
    assert gs.plot.landscape(*args, **options, ax=ax) is ax
    a, b, losses, _ = ax.contourf.call_args.args
    return a, b, np.ma.filled(losses, np.nan), ax


# History ------------------------------------------------------------------------------------------


def test_history_plot_shows_both_losses() -> None:
    x, y = line_data()
    net = nn.Linear(1, 1)
    history = gs.fit(net, x, y, cost=nn.MSELoss(), optimizer=optim.SGD(lr=0.1), epochs=4,
                     validation=(x, y))  # fmt: skip
    ax = history.plot()
    training, validation = ax.get_lines()
    assert list(training.get_xdata()) == [1, 2, 3, 4]
    assert list(training.get_ydata()) == history.loss
    assert list(validation.get_ydata()) == history.val_loss
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["training", "validation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_history_plot_on_given_axes_without_validation() -> None:
    import matplotlib.pyplot as plt

    history = gs.History()
    history.loss = [3.0, 2.0]
    _, ax = plt.subplots()
    assert history.plot(ax) is ax
    assert len(ax.get_lines()) == 1
    assert ax.get_legend() is None


def test_pictures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        gs.History().plot()
    x, y = line_data()
    with pytest.raises(ImportError, match="pip install matplotlib"):
        gs.plot.landscape(nn.Linear(1, 1), nn.MSELoss(), x, y)


# Trajectory ---------------------------------------------------------------------------------------


def test_trajectory_is_what_a_loop_of_steps_passes_through() -> None:
    x, y = line_data()
    net, other = nn.Linear(1, 1, dtype=F64), nn.Linear(1, 1, dtype=F64)
    other.w[...] = net.w
    path = gs.plot.Trajectory(net, every=2)
    gs.fit(net, x, y, cost=nn.MSELoss(), optimizer=optim.SGD(lr=0.1), batch_size=8, epochs=2,
           shuffle=False, callbacks=[path])  # fmt: skip
    trainer = gs.Trainer(other, nn.MSELoss(), optim.SGD(lr=0.1))
    expected = [other.w.copy()]
    for step in range(10):
        rows = slice(8 * (step % 5), 8 * (step % 5) + 8)
        trainer.step(x[rows], y[rows])
        if step % 2:
            expected.append(other.w.copy())
    np.testing.assert_allclose(path.w, expected, rtol=1e-12)


# Landscape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", F64])
def test_two_parameters_are_the_axes(dtype: str) -> None:
    x, y = line_data()
    net = nn.Linear(1, 1, dtype=dtype)
    before = net.w.copy()
    extent = (-1.0, 3.0, -2.0, 2.0)
    a, b, losses, ax = drawn(net, nn.MSELoss(), x, y, extent=extent, resolution=9)
    assert (a[0], a[-1], b[0], b[-1]) == extent
    for i, j in ((0, 0), (3, 7), (8, 2)):
        loss = np.mean((a[j] * x + b[i] - y) ** 2)
        assert losses[i, j] == pytest.approx(loss, rel=1e-5 if dtype == "float32" else 1e-12)
    assert ax.set.call_args.kwargs["xlabel"] == "weight"
    assert ax.set.call_args.kwargs["ylabel"] == "bias"
    assert np.array_equal(net.w, before)


def test_sample_weights_count() -> None:
    x, y = line_data()
    weight = np.arange(40.0)
    a, b, losses, _ = drawn(
        nn.Linear(1, 1, dtype=F64), nn.MSELoss(), x, y, resolution=3, sample_weight=weight
    )
    loss = np.average(((a[2] * x + b[0] - y) ** 2)[:, 0], weights=weight)
    assert losses[0, 2] == pytest.approx(loss, rel=1e-12)


def test_a_trajectory_in_a_plane_is_shown_exactly() -> None:
    """Principal directions of a planar path keep its distances, and losses on it are its own."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(2, 5, dtype=F64), nn.Tanh(), nn.Linear(5, 1, dtype=F64))
    u, v = np.linalg.qr(rng.standard_normal((net.w.size, 2)))[0].T
    t = np.linspace(0, 1, 7)[:, None]
    path = net.w + 3 * (1 - t) * u + np.sin(3 * t) * v
    x, y = rng.standard_normal((20, 2)), rng.standard_normal((20, 1))
    a, b, losses, ax = drawn(net, nn.MSELoss(), x, y, trajectory=path, resolution=81)
    way = np.array(ax.plot.call_args_list[0].args).T
    np.testing.assert_allclose(
        np.linalg.norm(way - way[0], axis=1), np.linalg.norm(path - path[0], axis=1), atol=1e-12
    )
    assert np.allclose(way[-1], 0)  # the plane goes through the last point
    for point, w in zip(way, path, strict=True):
        i, j = np.abs(b - point[1]).argmin(), np.abs(a - point[0]).argmin()
        assert losses[i, j] == pytest.approx(nn.MSELoss()(gs.apply(net, w, x), y), rel=0.15)
    label = ax.set.call_args.kwargs["xlabel"]
    assert label.startswith("principal direction 1")


def test_given_directions() -> None:
    rng = np.random.default_rng(0)
    net = nn.Linear(3, 1, dtype=F64)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 1))
    directions = np.array([[1.0, 0, 0, 0], [0, 2.0, 0, 1.0]])
    a, b, losses, _ = drawn(
        net, nn.MSELoss(), x, y, directions=directions, extent=(-1, 1, -1, 1), resolution=5
    )
    w = net.w + a[4] * directions[0] + b[1] * directions[1]
    assert losses[1, 4] == pytest.approx(np.mean((x @ w[:3] + w[3] - y[:, 0]) ** 2), rel=1e-12)


def test_several_trajectories_fit_into_the_picture() -> None:
    x, y = line_data()
    rng = np.random.default_rng(0)
    paths = {"one": rng.uniform(-4, 0, (5, 2)), "two": rng.uniform(1, 9, (200, 2))}
    ax = gs.plot.landscape(nn.Linear(1, 1), nn.MSELoss(), x, y, trajectory=paths)
    low, high = ax.get_xlim()
    every = np.concatenate(list(paths.values()))
    assert low < every[:, 0].min() < every[:, 0].max() < high
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]


def test_a_trajectory_along_a_line_and_one_point() -> None:
    x, y = line_data()
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    path = np.linspace(0, 1, 5)[:, None] * np.ones(net.w.size)
    for way in (path, path[:1]):
        ax = gs.plot.landscape(net, nn.MSELoss(), x, y, trajectory=way, resolution=5)
        low, high = ax.get_ylim()
        assert low < high


def test_infinite_losses_are_left_out() -> None:
    x = np.array([[1.0], [2.0]])
    extent = (-1000.0, 100.0, -1.0, 1.0)

    class Exponential(nn.Cost):
        def value(self, ybar: Any, y: Any) -> Any:
            with np.errstate(over="ignore"):
                return np.exp(-ybar[:, 0])

        def gradient(self, ybar: Any, y: Any) -> Any:
            return -np.exp(-ybar)

    net = nn.Linear(1, 1, dtype=F64)
    _, _, losses, _ = drawn(net, Exponential(), x, extent=extent, resolution=5)
    assert np.isnan(losses[:, 0]).all()
    assert np.isfinite(losses[:, -1]).all()


def test_bad_arguments() -> None:
    x, y = line_data()
    net = nn.Linear(1, 1)
    large = nn.Linear(1, 2)
    cost = nn.MSELoss()
    with pytest.raises(ValueError, match="needs a trajectory or directions"):
        gs.plot.landscape(large, cost, x, np.tile(y, 2))
    with pytest.raises(ValueError, match=r"trajectory has shape \(3, 4\), expected \(T, 2\)"):
        gs.plot.landscape(net, cost, x, y, trajectory=np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        gs.plot.landscape(net, cost, x, y, directions=np.zeros(2))
    with pytest.raises(ValueError, match="parallel"):
        gs.plot.landscape(net, cost, x, y, directions=[[1, 2], [2, 4]])
    with pytest.raises(ValueError, match="a0 < a1"):
        gs.plot.landscape(net, cost, x, y, extent=(1, 0, 0, 1))
    with pytest.raises(ValueError, match="resolution must be at least 2"):
        gs.plot.landscape(net, cost, x, y, resolution=1)
    with pytest.raises(ValueError, match="no samples"):
        gs.plot.landscape(net, cost, x[:0], y[:0])
    with pytest.raises(TypeError, match="net must be"):
        gs.plot.Trajectory("net")  # type: ignore[arg-type]


def test_importing_gradstack_does_not_import_matplotlib() -> None:
    import subprocess

    code = "import sys, gradstack; gradstack.plot.landscape; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
