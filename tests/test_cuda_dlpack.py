"""Arrays in a device's memory, in and out through DLPack."""

from __future__ import annotations

import gc
import pathlib
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from dlpack_producer import Producer, capsule_name, taken
from gradstack import _device, nn, optim
from gradstack._device import DeviceArray

Array = np.ndarray


@pytest.fixture(scope="module")
def emulated(cuda: str) -> str:
    """Where the memory of a device is the host's, a producer can be written in Python."""
    if not _device._load().emulated:
        pytest.skip("only the emulated device takes the host's memory for its own")
    return cuda


def net_of(device: str) -> tuple[nn.Module, nn.Module]:
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    return net, net.copy().to(device)


def rows(rng: np.random.Generator, n: int = 30, d: int = 6) -> Array:
    return rng.normal(size=(n, d)).astype(np.float32)


def close(got: Any, expected: Any, scale: float = 1.0) -> None:
    assert isinstance(got, DeviceArray)
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-4 * scale, atol=2e-5 * scale)


@pytest.mark.parametrize("version", [None, 1])
def test_calls(emulated: str, rng: np.random.Generator, version: int | None) -> None:
    here, there = net_of(emulated)
    x = rows(rng)
    lent = Producer(x, version=version)
    y = there(lent)
    assert y.shape == (30, 4)
    assert (y.ndim, y.size, len(y), y.nbytes) == (2, 120, 30, 480)
    assert y.dtype == np.float32
    assert y.device == "cuda:0"
    close(y, here(x))
    used = "used_dltensor" if version is None else "used_dltensor_versioned"
    assert [capsule_name(c) for c in lent.capsules] == [used]
    assert lent.deleted == 1
    again = there(y.reshape(20, 6))  # a result is an argument
    close(again, here(y.numpy().reshape(20, 6)))
    close(there(Producer(x[3])), here(x[3]))
    assert there(Producer(x[:0])).shape == (0, 4)
    assert isinstance(there(x), np.ndarray)


def test_memory_is_given_back_after_it_was_read(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    x = rows(rng)
    expected = here(x)
    lent = Producer(x)
    y = there(lent)
    assert lent.deleted == 1
    x[...] = np.nan  # the producer does with it what it likes
    close(y, expected)


def test_the_producer_makes_our_stream_wait(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    x, memory = rows(rng), np.full((30, 6), np.nan, np.float32)
    lent = Producer(memory, when_asked=lambda: memory.__setitem__(..., x))
    close(there(lent), here(x))
    assert lent.streams == [3]  # the emulated queue's


@pytest.mark.parametrize("versioned", [False, True])
def test_results_are_handed_over(emulated: str, rng: np.random.Generator, versioned: bool) -> None:
    here, there = net_of(emulated)
    x = rows(rng)
    y = there(Producer(x))
    assert y.__dlpack_device__() == (12, 0)
    capsule = y.__dlpack__(stream=None, max_version=(1, 0) if versioned else None)
    view, managed, give_back = taken(capsule, versioned=versioned)
    if versioned:
        assert (managed.major, managed.minor, managed.flags) == (1, 0, 0)
    tensor = managed.dl_tensor
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (2, 32, 1)
    assert tuple(tensor.strides[:2]) == (4, 1)
    del y, capsule  # the memory belongs to whoever took it
    gc.collect()
    np.testing.assert_allclose(view, here(x), rtol=2e-4, atol=2e-5)
    give_back()


def test_only_a_stream_that_is_named_waits(emulated: str, rng: np.random.Generator) -> None:
    _, there = net_of(emulated)
    y = there(Producer(rows(rng)))
    early, _, first = taken(y.__dlpack__(stream=-1), versioned=False)
    assert not early.any()  # still on its way
    late, _, second = taken(y.__dlpack__(stream=7), versioned=False)
    assert late.any()
    assert early.any()  # the same memory
    first()
    second()


def test_capsules_nobody_took(emulated: str, rng: np.random.Generator) -> None:
    _, there = net_of(emulated)
    y = there(Producer(rows(rng)))
    for version in (None, (1, 0), (2, 3), (0, 8)):
        assert capsule_name(y.__dlpack__(max_version=version)) == (
            "dltensor" if version in (None, (0, 8)) else "dltensor_versioned"
        )
    gc.collect()
    assert y.numpy().any()


def test_what_is_not_handed_over(emulated: str, rng: np.random.Generator) -> None:
    _, there = net_of(emulated)
    y = there(Producer(rows(rng)))
    with pytest.raises(BufferError, match=r"numpy\(\)"):
        y.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="copy"):
        y.__dlpack__(copy=True)
    for stream in (0, -2):
        with pytest.raises(ValueError, match=f"stream.*got {stream}"):
            y.__dlpack__(stream=stream)
    with pytest.raises(ValueError, match="reshape"):
        y.reshape(7, 7)
    assert y.__dlpack__(dl_device=(12, 0), copy=False) is not None


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "other device": ({"device": (12, 1)}, ValueError, r"lies on .*\(12, 1\), the net on"),
    "a GPU": ({"device": (2, 3)}, ValueError, r"lies on cuda:3, the net on"),
    "newer": ({"version": 2}, BufferError, "version 2"),
    "int32": ({"dtype": (0, 32, 1)}, TypeError, "has dtype int32 .*expected float32"),
    "bfloat16": ({"dtype": (4, 16, 1)}, TypeError, "has dtype bfloat16"),
    "float64": ({"dtype": (2, 64, 1)}, TypeError, "has dtype float64"),
    "vectors": ({"dtype": (2, 32, 2)}, TypeError, "has dtype float32x2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(emulated: str, rng: np.random.Generator, name: str) -> None:
    options, error, message = REFUSED[name]
    _, there = net_of(emulated)
    lent = Producer(rows(rng), **options)
    with pytest.raises(error, match=f"x: .*{message}"):
        there(lent)
    assert lent.deleted == 0  # the capsule was not taken: it is still the producer's
    for capsule in lent.capsules:
        assert not capsule_name(capsule).startswith("used")


def test_memory_with_gaps(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    wide = rows(rng, 30, 12)
    for x in (wide[:, ::2], wide[:, :6], rows(rng, 6, 30).T):
        with pytest.raises(ValueError, match=r"x: has strides .* expected contiguous"):
            there(Producer(x))
    # Axes of length one have no stride to speak of, and none at all means no gaps.
    close(there(Producer(wide[3:4, 6:])), here(wide[3:4, 6:]))
    x = rows(rng)
    close(there(Producer(x, explicit_strides=False, offset=4096)), here(x))


def test_the_name_of_the_argument(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    bad, x = Producer(rows(rng)[:, ::-1]), Producer(rows(rng))
    _, pullback = gs.vjp(there, x)
    with pytest.raises(ValueError, match=r"^dy: has strides"):
        pullback(bad)
    with pytest.raises(ValueError, match=r"^y: has strides"):
        gs.value_and_grad(there, nn.MSELoss(), x, bad)
    with pytest.raises(ValueError, match=r"^X: has strides"):
        gs.fit(here, bad, rows(rng, 30, 4), cost=nn.MSELoss(), optimizer=optim.SGD(), device="cuda")
    with pytest.raises(ValueError, match=r"^validation y: has strides"):
        gs.fit(
            here, x, rows(rng, 30, 4), cost=nn.MSELoss(), optimizer=optim.SGD(), device="cuda",
            validation=(x, bad),
        )  # fmt: skip
    with pytest.raises(ValueError, match="5 features per sample, expected 6"):
        there(Producer(rows(rng, 3, 5)))


def test_a_net_on_the_cpu_takes_none(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    y = there(Producer(rows(rng, 9, 6)))
    for value in (y.reshape(6, 6), Producer(rows(rng))):
        for call in (
            here,
            lambda v: gs.vjp(here, v),
            lambda v: gs.hvp(there, nn.MSELoss(), rows(rng), rows(rng, 30, 4), v),
            lambda v: gs.value_and_grad(here, nn.MSELoss(), rows(rng), v),
            lambda v: nn.MSELoss()(rows(rng, 9, 4), v),
            lambda v: gs.fit(here, v, v, cost=nn.MSELoss(), optimizer=optim.SGD()),
            lambda v: gs.fit(here, rows(rng), v, cost=nn.MSELoss(), optimizer=optim.SGD()),
        ):
            with pytest.raises(TypeError, match=r"lies on cuda:0|cannot view a Producer"):
                call(value)


def test_vjp(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    x, dy = rows(rng), rows(rng, 30, 4)
    y, pullback = gs.vjp(here, x)
    dx, dw = pullback(dy)
    lent = Producer(x.copy())
    y2, pullback2 = gs.vjp(there, lent)
    assert lent.deleted == 1
    lent.array[...] = np.nan  # the point has a copy of its own
    close(y2, y)
    for cotangent in (Producer(dy), dy):
        dx2, dw2 = pullback2(cotangent)
        close(dx2, dx)
        close(dw2, dw, 10)
    lent = Producer(dy.copy())
    dx2, _ = pullback2(lent)
    assert lent.deleted == 1
    lent.array[...] = np.nan  # it has been read
    close(dx2, dx)
    # A point of the host's, a cotangent of the device's.
    dx3, dw3 = gs.vjp(there, x)[1](Producer(dy))
    close(dx3, dx)
    close(dw3, dw, 10)
    assert isinstance(gs.vjp(there, x)[1](dy)[0], np.ndarray)
    shape, zero = gs.vjp(there, Producer(x[:0]))[1](np.zeros((0, 4)))
    assert shape.shape == (0, 6)
    assert not zero.numpy().any()


def test_several_inputs_and_outputs(emulated: str, rng: np.random.Generator) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 2)

        def forward(self, s: Any, u: Any) -> Any:
            z = gs.concat([s, u])
            return gs.tanh(self.a(z)), self.b(z)

    here = Net()
    s, u = rows(rng, 20, 3), rows(rng, 20, 2)
    expected, pullback = gs.vjp(here, (s, u))
    there = here.copy().to(emulated)
    got, pullback2 = gs.vjp(there, (Producer(s), u))  # one here, one there
    for a, b in zip(got, expected, strict=True):
        close(a, b)
    dys = (rows(rng, 20, 4), rows(rng, 20, 2))
    dxs, dw = pullback(dys)
    dxs2, dw2 = pullback2((Producer(dys[0]), dys[1]))
    for a, b in zip(dxs2, dxs, strict=True):
        close(a, b)
    close(dw2, dw, 10)


def test_value_and_grad(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    x, y, labels = rows(rng), rows(rng, 30, 4), rng.integers(0, 4, 30)
    weight = rng.random(30).astype(np.float32)
    for cost, target in ((nn.MSELoss(), y), (nn.CrossEntropyLoss(), labels)):
        loss, dw = gs.value_and_grad(here, cost, x, target, sample_weight=weight)
        for lent in (target, Producer(target)):
            loss2, dw2 = gs.value_and_grad(
                there, cost, Producer(x), lent, sample_weight=Producer(weight)
            )
            assert loss2 == pytest.approx(loss, rel=1e-4)
            close(dw2, dw, 10)
        _, dw3 = gs.value_and_grad(there, cost, x, Producer(target), sample_weight=weight)
        np.testing.assert_allclose(dw3, dw, rtol=2e-3, atol=2e-4)
    loss, dw = gs.value_and_grad(here, nn.MSELoss(), x[0], y[0])
    loss2, dw2 = gs.value_and_grad(there, nn.MSELoss(), Producer(x[0]), Producer(y[0]))
    assert loss2 == pytest.approx(loss, rel=1e-4)
    close(dw2, dw, 10)
    with pytest.raises(ValueError, match=r"y\[2\] = 9, class labels are in 0\.\.3"):
        gs.value_and_grad(
            there, nn.CrossEntropyLoss(), Producer(x[:3]), Producer(np.array([0, 1, 9]))
        )


def test_fit_reads_the_data_where_they_lie(
    emulated: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    x, y, labels = rows(rng, 90), rows(rng, 90, 4), rng.integers(0, 4, 90)
    monkeypatch.setenv("GRADSTACK_STREAM_BYTES", "1000")  # of no concern to what is there
    for cost, target in ((nn.MSELoss(), y), (nn.CrossEntropyLoss(), labels)):
        found = []
        for lend in (lambda a: a, Producer):
            other, optimizer = net.copy(), optim.Adam()
            lent = (lend(x), lend(target))
            weight = lend(np.arange(90, dtype=np.float32) % 3)
            history = gs.fit(
                other, *lent, cost=cost, optimizer=optimizer, batch_size=16, epochs=3,
                device=emulated, sample_weight=weight, validation=(lend(x[:40]), lend(target[:40])),
                checkpoint=gs.Checkpoint(tmp_path / f"{type(cost).__name__}{len(found)}"),
            )  # fmt: skip
            found.append((other.w.tobytes(), history.loss, history.val_loss))
            if lend is Producer:
                gc.collect()
                assert [p.deleted for p in (*lent, weight)] == [1, 1, 1]
        assert found[0] == found[1]


def test_a_loss_shows_what_nobody_looked_at(emulated: str, rng: np.random.Generator) -> None:
    net, x = nn.Linear(6, 2), rows(rng)
    x[7, 1] = np.nan
    with pytest.raises(FloatingPointError, match="epoch 0"):
        gs.fit(
            net, Producer(x), rows(rng, 30, 2), cost=nn.MSELoss(), optimizer=optim.SGD(),
            device=emulated,
        )  # fmt: skip
    assert np.isfinite(net.w).all()


def test_trainer_steps(emulated: str, rng: np.random.Generator) -> None:
    net, _ = net_of(emulated)
    other = net.copy()
    x, y = rows(rng), rows(rng, 30, 4)
    here = gs.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.1))
    there = gs.Trainer(other, nn.MSELoss(), optim.SGD(lr=0.1), device=emulated)
    for _ in range(3):
        lent = Producer(x)
        assert there.step(lent, Producer(y)) == pytest.approx(here.step(x, y), rel=1e-4)
        assert lent.deleted == 1
    np.testing.assert_allclose(other.w, net.w, rtol=2e-4, atol=2e-5)


def test_out(emulated: str, rng: np.random.Generator) -> None:
    here, there = net_of(emulated)
    x, memory = rows(rng), np.zeros((30, 4), np.float32)
    out = Producer(memory)
    assert there(Producer(x), out=out) is out
    np.testing.assert_allclose(memory, here(x), rtol=2e-4, atol=2e-5)  # it is there
    memory[...] = 0
    there(x, out=Producer(memory))
    np.testing.assert_allclose(memory, here(x), rtol=2e-4, atol=2e-5)
    host = np.zeros((30, 4), np.float32)
    there(Producer(x), out=host)
    np.testing.assert_allclose(host, here(x), rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="out: the memory on the device is read-only"):
        there(Producer(x), out=Producer(memory, read_only=True))
    with pytest.raises(ValueError, match="out has shape"):
        there(Producer(x), out=Producer(memory[:3]))
    close(there(Producer(x, read_only=True)), here(x))  # to be read it may be


def test_discrete_outputs_come_to_the_host(emulated: str, rng: np.random.Generator) -> None:
    net = nn.NearestNeighbour(3, 5)
    x = rows(rng, 20, 3)
    expected = net(x)
    got = net.copy().to(emulated)(Producer(x))
    assert np.array_equal(got, expected)
    assert got.dtype == np.int64


def test_other_protocols_stay_numpy(cuda: str, rng: np.random.Generator) -> None:
    # Whatever lies in the host's memory is an array like any other.
    class Host:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    here, there = net_of(cuda)
    x = rows(rng)
    assert isinstance(there(Host(x)), np.ndarray)
    np.testing.assert_allclose(there(Host(x)), here(x), rtol=2e-4, atol=2e-5)


def test_tensors_of_pytorch(cuda: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    here, there = net_of(cuda)
    x = rows(rng)
    host = torch.from_numpy(x.copy()).requires_grad_()
    assert isinstance(there(host), np.ndarray)
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU here")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensor = host.detach().to("cuda", non_blocking=True) * 2 / 2
        y = torch.from_dlpack(there(tensor)) + 0
        tensor.zero_()
    np.testing.assert_allclose(y.cpu().numpy(), here(x), rtol=2e-4, atol=2e-5)
    _, pullback = gs.vjp(there, torch.from_numpy(x).cuda())
    dx, dw = pullback(torch.ones(30, 4, device="cuda"))
    expected = gs.vjp(here, x)[1](np.ones((30, 4)))
    np.testing.assert_allclose(torch.from_dlpack(dx).cpu(), expected[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(torch.from_dlpack(dw).cpu(), expected[1], rtol=2e-3, atol=2e-4)
