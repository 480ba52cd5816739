"""Short calls: settled by a first call, begun in the core by the next ones.

What they give must be what the general path gives, and what they do not take must reach it. Which
of the two a call took is seen by counting the general path's.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import _compiled, nn
from short_calls import Array, Count, Critic, mlp, sample


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> Count:
    """The general path of calls of nets."""
    count = Count(_compiled.call)
    monkeypatch.setattr(_compiled, "call", count)
    return count


def by_hand(net: nn.Sequential, x: Array) -> Array:
    """The same net in NumPy, in float64."""
    p = {k: np.asarray(v, np.float64) for k, v in net.state_dict().items()}
    z = np.tanh(np.asarray(x, np.float64) @ p["0.weight"].T + p["0.bias"])
    return z @ p["2.weight"].T + p["2.bias"]


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (5, 4), (300, 4)])
def test_values(general: Count, dtype: Any, shape: tuple[int, ...]) -> None:
    net = mlp(dtype)
    x = sample(*shape, dtype=dtype)
    first = net(x)
    assert general.calls == 1
    second = net(x)
    out = np.empty_like(first)
    assert net(x, out=out) is out
    assert general.calls == 1
    assert type(second) is np.ndarray
    assert second.dtype == dtype
    assert second.shape == first.shape
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(out, first)
    np.testing.assert_allclose(second, by_hand(net, x), rtol=1e-5, atol=1e-6)


def test_samples_and_batches_share_the_short_call(general: Count) -> None:
    net = mlp()
    net(sample(4))
    for shape in [(7, 4), (4,), (2, 4), (1000, 4)]:
        x = sample(*shape)
        np.testing.assert_allclose(net(x), by_hand(net, x), rtol=1e-5, atol=1e-6)
    assert general.calls == 1


def test_results_do_not_share_memory() -> None:
    net, x = mlp(), sample(4)
    net(x)
    a, b = net(x), net(x)
    assert not np.shares_memory(a, b)
    assert a.flags.owndata
    assert a.flags.writeable


def others_run_during(call: Callable[[], Any]) -> bool:
    """Whether a thread that is ready gets the GIL in the course of a call."""
    ready, go = threading.Event(), threading.Event()
    ran = []

    def other() -> None:
        ready.set()
        go.wait()
        ran.append(True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the interpreter itself takes the GIL from nobody
    thread = threading.Thread(target=other)
    try:
        thread.start()
        ready.wait()
        go.set()
        for _ in range(20):
            call()
        return bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_large_batches_release_the_gil_and_small_ones_keep_it() -> None:
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
    large, small = sample(4000, 64), sample(2, 64)
    net(large)
    assert others_run_during(lambda: net(large))
    assert not others_run_during(lambda: net(small))


# What is converted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["f8", "f2", "i8", "i4", "u1", "u2", "?", "i2", "u8", ">f4"], ids=str
)
@pytest.mark.parametrize("shape", [(4,), (6, 4)])
def test_other_dtypes(general: Count, dtype: str, shape: tuple[int, ...]) -> None:
    net = mlp()
    x = (3 * sample(*shape)).astype(np.dtype(dtype)) if dtype[0] != "u" else sample(*shape) > 0
    x = x.astype(np.dtype(dtype))
    net(sample(*shape))
    y = net(x)
    assert general.calls == 1 + (dtype[0] == ">")
    np.testing.assert_array_equal(y, net(x.astype(np.float32)))
    out = np.empty_like(y)
    assert net(x, out=out) is out
    np.testing.assert_array_equal(out, y)


def test_float32_into_a_float64_net(general: Count) -> None:
    net, x = mlp(np.float64), sample(4)
    net(x.astype(np.float64))
    y = net(x)
    assert general.calls == 1
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, by_hand(net, x), rtol=1e-12)


def test_any_strides(general: Count) -> None:
    net, x = mlp(), sample(9, 8)
    net(x[0, :4].copy())
    for view in [x[:, ::2], x[::-1, :4], x[2, ::-2], x.T[:4].T, x[::3, 4:], x[:, 5:1:-1]]:
        expected = net(view.copy())
        np.testing.assert_array_equal(net(view), expected)
        np.testing.assert_allclose(expected, by_hand(net, view), rtol=1e-5, atol=1e-6)
    assert general.calls == 1


def test_unaligned_and_read_only(general: Count) -> None:
    net = mlp()
    raw = np.zeros(17, np.uint8)
    x = raw[1:].view(np.float32)
    x[...] = sample(4)
    assert not x.flags.aligned
    locked = x.copy()
    locked.flags.writeable = False
    expected = net(locked)
    np.testing.assert_array_equal(net(x), expected)
    np.testing.assert_array_equal(net(locked), expected)
    same = np.broadcast_to(locked, (3, 4))
    np.testing.assert_array_equal(net(same), net(same.copy()))
    assert general.calls == 1


def test_unpickled_arrays_are_taken(general: Count) -> None:
    net, x = mlp(), sample(4)
    expected = net(x)
    np.testing.assert_array_equal(net(pickle.loads(pickle.dumps(x))), expected)
    assert general.calls == 1


def test_too_large_for_the_net_raises() -> None:
    net = mlp()
    net(sample(4))
    with pytest.raises(ValueError, match=r"x\[2\] = 1e\+300 is too large for float32"):
        net(np.array([0, 0, 1e300, 0]))
    # An infinity of the caller's own is no overflow.
    assert np.isfinite(net(np.array([0, 0, np.inf, 0]))).all()
    assert np.isnan(net(np.array([0, 0, np.nan, 0]))).all()


# What goes to the general path ----------------------------------------------------------------


class Subclass(np.ndarray[Any, Any]):
    pass


def test_general_inputs(general: Count) -> None:
    torch = pytest.importorskip("torch")
    pandas = pytest.importorskip("pandas")
    net, x = mlp(), sample(3, 4)
    expected = net(x)
    others = [
        x.tolist(),
        x.view(Subclass),
        torch.tensor(x),
        torch.tensor(x, requires_grad=True),
        pandas.DataFrame(x),
        np.ma.masked_array(x),
        x.astype(np.longdouble),
    ]
    for i, other in enumerate(others):
        y = net(other)
        assert general.calls == 2 + i
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)


def test_empty_batch() -> None:
    net = mlp()
    net(sample(4))
    assert net(np.empty((0, 4), np.float32)).shape == (0, 2)


def test_errors_stay_themselves() -> None:
    net = mlp()
    x = sample(4)

    def errors() -> Iterator[tuple[type, str]]:
        for args, kwargs in [
            ((sample(5),), {}),
            ((sample(2, 3, 4),), {}),
            ((x + 1j,), {}),
            ((["a"] * 4,), {}),
            ((None,), {}),
            ((), {}),
            ((x, x), {}),
            ((x,), {"out": np.empty(3, np.float32)}),
            ((x,), {"out": np.empty(2, np.float64)}),
            ((x,), {"out": [0, 0]}),
            ((x,), {"out": np.empty(4, np.float32)[::2]}),
            ((x,), {"into": x}),
        ]:
            with pytest.raises((ValueError, TypeError)) as raised:
                net(*args, **kwargs)
            yield raised.type, str(raised.value)

    before = list(errors())  # nothing is settled yet
    net(x)
    assert list(errors()) == before
    locked = np.zeros(2, np.float32)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        net(x, out=locked)
    assert not locked.any()


def test_out_may_be_the_input(general: Count) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = sample(6, 4)
    expected = net(x)
    assert net(x, out=x) is x
    np.testing.assert_array_equal(x, expected)
    buffer = sample(7, 4)
    expected = net(buffer[:6].copy())
    net(buffer[:6], out=buffer[1:])
    np.testing.assert_array_equal(buffer[1:], expected)
    assert general.calls == 3


def test_out_none_is_no_out(general: Count) -> None:
    net, x = mlp(), sample(4)
    np.testing.assert_array_equal(net(x), net(x, out=None))
    assert general.calls == 1


# Several inputs and outputs -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (5,)])
def test_several_inputs_and_outputs(general: Count, batch: tuple[int, ...]) -> None:
    net, s, u = Critic(), sample(*batch, 3), sample(*batch, 2, seed=1)
    first = net(s, u)
    second = net(s, u)
    outs = tuple(np.empty_like(y) for y in first)
    assert net(s, u, out=outs) is outs
    assert general.calls == 1
    assert type(second) is tuple
    for a, b, c in zip(first, second, outs, strict=True):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_array_equal(c, a)
    np.testing.assert_array_equal(second[1], 2 * second[0])
    a, b = (np.asarray(m.weight, np.float64) for m in (net.a, net.b))
    expected = np.tanh(s @ a.T + net.a.bias + u @ b.T + net.b.bias)
    np.testing.assert_allclose(second[0], expected, rtol=1e-5, atol=1e-6)


def test_mixed_samples_and_batches_raise() -> None:
    net = Critic()
    net(sample(3), sample(2))
    with pytest.raises(ValueError, match="all be single samples or all batches"):
        net(sample(3), sample(1, 2))
    with pytest.raises(ValueError, match="samples"):
        net(sample(4, 3), sample(5, 2))


# Changes --------------------------------------------------------------------------------------


def test_weights_are_read_at_every_call(general: Count) -> None:
    net, x = mlp(), sample(4)
    net(x)
    net.w[...] *= 2
    np.testing.assert_allclose(net(x), by_hand(net, x), rtol=1e-5, atol=1e-6)
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})
    np.testing.assert_allclose(net(x), by_hand(net, x), rtol=1e-5, atol=1e-6)
    assert general.calls == 1


def test_structure_changes_are_noticed() -> None:
    net, x = mlp(), sample(4)
    y = net(x)
    net[1] = nn.ReLU()
    z = net(x)
    assert not np.array_equal(y, z)
    net[1] = nn.Tanh()
    np.testing.assert_array_equal(net(x), y)
    net.append(nn.Sine())
    np.testing.assert_allclose(net(x), np.sin(y), rtol=1e-5, atol=1e-6)


def test_a_part_that_joins_a_larger_net_moves() -> None:
    part, x = mlp(), sample(4)
    y = part(x)
    whole = nn.Sequential(nn.Linear(3, 4), part)
    np.testing.assert_array_equal(part(x), y)
    whole.w[...] = 0
    assert not part(x).any()


def test_dropout_is_active_in_training_only() -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    x = sample(4)
    y = net(x)
    np.testing.assert_array_equal(net(x), y)
    net.train()
    assert len({net(x).tobytes() for _ in range(8)}) > 1
    net.eval()
    np.testing.assert_array_equal(net(x), y)
    np.testing.assert_array_equal(net(x), y)


def test_frozen_nets_run(general: Count) -> None:
    net, x = mlp().freeze(), sample(4)
    np.testing.assert_array_equal(net(x), net(x))
    assert general.calls == 1
    net.unfreeze()
    net(x)
    assert general.calls == 2  # settled anew


def test_explicit_parameters_do_not_settle() -> None:
    net, x = mlp(), sample(4)
    y = net(x)
    assert not gs.apply(net, np.zeros_like(net.w), x).any()
    np.testing.assert_array_equal(net(x), y)


# Classes --------------------------------------------------------------------------------------


def test_own_call_is_called(general: Count) -> None:
    class Doubled(nn.Sequential):
        def __call__(self, *xs: Any, out: Any = None) -> Any:
            return 2 * super().__call__(*xs, out=out)

    net = Doubled(nn.Linear(4, 2))
    x = sample(4)
    expected = 2 * (net[0].weight @ x + net[0].bias)
    for _ in range(3):
        np.testing.assert_allclose(net(x), expected, rtol=1e-5)


def test_call_assigned_later_is_called() -> None:
    class Net(nn.Sequential):
        pass

    class Below(Net):
        pass

    nets, x = [Net(nn.Linear(4, 2)), Below(nn.Linear(4, 2))], sample(4)
    expected = [net(x) for net in nets]
    assert [np.array_equal(net(x), y) for net, y in zip(nets, expected, strict=True)] == [True] * 2
    Net.__call__ = lambda self, *xs, out=None: "mine"  # type: ignore[method-assign,assignment]
    assert [net(x) for net in nets] == ["mine", "mine"]
    del Net.__call__
    for net, y in zip(nets, expected, strict=True):
        np.testing.assert_array_equal(net(x), y)
        np.testing.assert_array_equal(net(x), y)


def test_copies_and_pickles_are_their_own(general: Count) -> None:
    net, x = mlp(), sample(4)
    y = net(x)
    others = [copy.deepcopy(net), copy.copy(net)]
    others += [pickle.loads(pickle.dumps(net, k)) for k in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in others:
        np.testing.assert_array_equal(other(x), y)
        other.w[...] = 0
        assert not other(x).any()
    np.testing.assert_array_equal(net(x), y)


def test_inside_a_forward_nets_are_traced() -> None:
    inner, x = mlp(), sample(4)
    inner(x)
    outer = nn.Sequential(inner, nn.Linear(2, 1))
    inner(x)
    assert outer(x).shape == (1,)

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = inner

        def forward(self, x: Any) -> Any:
            return self.m(x, out=np.empty(2, np.float32))

    bad = Bad()
    with pytest.raises(TypeError, match="out="):
        bad(x)


def test_modules_look_as_before() -> None:
    net = mlp()
    net(sample(4))
    assert isinstance(net, nn.Module)
    assert callable(net)
    assert list(inspect.signature(net).parameters) == ["xs", "out"]
    assert "one sample or a batch" in (nn.Module.__call__.__doc__ or "")
    assert not any("short" in name for name in net.__getstate__())
    with pytest.raises(TypeError, match="ShortCall"):
        net._settle(3)  # type: ignore[arg-type]


def test_subclass_with_other_bases() -> None:
    class Named:
        name = "n"

    class Net(Named, nn.Sequential):
        __slots__ = ("extra",)

    net = Net(nn.Linear(4, 2))
    net(sample(4))
    assert net(sample(4)).shape == (2,)
    assert net.name == "n"
