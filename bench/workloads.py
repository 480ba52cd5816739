"""The workloads and what is aimed at: one row each. A new one is a new row."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.aims import Aim, faster, reach

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """A dense float32 network and how it is trained or called.

    `mode` is ``"fit"`` (the library owns the loop over minibatches), ``"step"`` (the caller owns it
    and hands over one batch at a time) or ``"forward"`` (one call predicts a batch).
    """

    sizes: tuple[int, ...]
    activation: str  # relu | tanh
    cost: str  # cross_entropy | mse
    optimizer: str  # sgd | momentum | adam
    lr: float
    batch: int
    mode: str
    samples: int  # an epoch
    aims: tuple[Aim, ...] = ()
    shuffle: bool = False  # a new order in every timed epoch
    epochs: int = 1  # of one call of fit
    checked: int = 0  # samples whose epoch is checked; 0: all
    data: str = ""  # digits; otherwise made up
    title: str = ""  # of a row that shows the time of the whole call instead of a step's

    @property
    def name(self) -> str:
        """The row's title in every table."""
        if self.title:
            return self.title
        rule = "" if self.mode == "forward" else f" {self.optimizer}"
        return f"{'-'.join(map(str, self.sizes))}{rule} b{self.batch} {self.mode}"

    @property
    def steps(self) -> int:
        """Minibatches of an epoch, the last of which may be smaller."""
        return -(-self.samples // self.batch)

    @property
    def unit(self) -> int:
        """Steps of the smallest run that can be timed."""
        return self.steps * self.epochs if self.mode == "fit" else 1

    @property
    def shown(self) -> int:
        """Steps whose time is shown."""
        return self.unit if self.title else 1

    @property
    def flops(self) -> float:
        """Useful operations of a step: three products a layer, but no dC/dx for the first."""
        pairs = list(itertools.pairwise(self.sizes))
        products = sum(n * m for n, m in pairs)
        if self.mode != "forward":
            products = 3 * products - pairs[0][0] * pairs[0][1]
        return 2 * products * self.samples / self.steps


SMALL = functools.partial(Workload, (600, 60, 40, 10), "relu", "cross_entropy", "sgd", 0.05)
IMAGES = functools.partial(Workload, (784, 256, 128, 10), "relu", "cross_entropy", "momentum", 0.02)
CONTROL = functools.partial(Workload, (4, 64, 64, 2), "tanh", "mse", "adam", 1e-3)
WIDE = functools.partial(Workload, (1024, 1024, 1024, 1024), "relu", "mse", "sgd", 0.05)
FIELD = functools.partial(Workload, (64, 64, 64, 64, 3), "relu", "mse", "adam", 1e-3)

EAGER = ("PyTorch eager",)
SKLEARN = ("scikit-learn",)
CALLS = ("NumPy by hand", "onnxruntime")
OUT = "gradstack, out="


def _seconds_at_reference(seconds: float) -> tuple[Aim, ...]:
    return (Aim(1, reference_seconds=seconds),)


def _call(ratio: float, seconds: float) -> tuple[Aim, ...]:
    """Aims of a call with `out=`: how many times as fast as others, and how long."""
    return (*faster(ratio, ratio, than=CALLS, of=OUT), Aim(seconds=seconds, of=OUT))


# Epochs are long enough that a call per epoch weighs nothing, and short enough to check.
WORKLOADS = [
    SMALL(1, "fit", 1024, (*faster(2.0), *_seconds_at_reference(6e-6))),
    SMALL(32, "fit", 4096, (*faster(2.4), *reach(0.70))),
    SMALL(128, "fit", 8192, (*faster(2.0, 2.4), *reach(0.70))),
    IMAGES(32, "fit", 2048, (*faster(1.6, 2.2), *reach(0.68, 0.60))),
    IMAGES(128, "fit", 4096, (*faster(1.4, 1.7), *reach(0.80, 0.75))),
    IMAGES(512, "fit", 8192, (*faster(1.25, 1.8), *reach(0.80, 0.75))),
    CONTROL(1, "fit", 1024, (*faster(1.7, 1.7), *_seconds_at_reference(4.5e-6))),
    CONTROL(64, "fit", 8192, (*faster(2.3, 2.3), *_seconds_at_reference(20e-6))),
    CONTROL(256, "fit", 16384, (*faster(2.1, 3.0), *_seconds_at_reference(70e-6))),
    WIDE(128, "fit", 1024, (*faster(1.5, 1.5), *reach(0.80, 0.78))),
    WIDE(512, "fit", 2048, (*faster(1.1, 1.15), *reach(0.80, 0.78))),
    # On two threads 1.9 times the speed of one.
    FIELD(65536, "fit", 131072, (*faster(1.9, 2.6), *reach(0.68, 0.95 * 0.68))),
    Workload(
        (64, 100, 10),
        *("relu", "cross_entropy", "adam", 1e-3, 200, "fit", 1797),
        (*faster(4.0, 4.0), *faster(15, 15, than=SKLEARN)),
        shuffle=True,
        epochs=100,
        data="digits",
        title="digits, 64-100-10 adam b200, 100 epochs",
    ),
    Workload(
        (784, 256, 10),
        *("relu", "cross_entropy", "adam", 1e-3, 128, "fit", 60000),
        (*faster(1.6, 1.6), *faster(5, 5, than=SKLEARN)),
        shuffle=True,
        checked=2500,  # in hundreds of steps Adam and ReLU turn rounding into percents
        title="60000x784, 784-256-10 adam b128, an epoch",
    ),
    SMALL(1, "step", 1024, faster(60, 60, than=EAGER)),
    CONTROL(1, "step", 1024, faster(100, 100, than=EAGER)),
    CONTROL(32, "step", 4096, faster(12, 12, than=EAGER)),
    CONTROL(
        *(1, "forward", 1),
        (*faster(16, 16, than=CALLS), Aim(seconds=0.6e-6), *_call(25, 0.4e-6)),
    ),
    SMALL(1, "forward", 1, _call(6, 1.91e-6)),
    IMAGES(1, "forward", 1, _call(3.5, 10.7e-6)),
    IMAGES(1024, "forward", 1024, faster(1.2, 1.2, than=("onnxruntime",))),
]


class DataMissingError(Exception):
    """The workload's data comes with a package that is not installed."""


@dataclass(frozen=True)
class Task:
    """A workload with its data and initial parameters, the same for every peer."""

    workload: Workload
    layers: list[tuple[Array, Array]]  # (weight (out, in), bias (out,))
    x: Array
    y: npt.NDArray[np.generic]  # labels (int64) or targets (float32)
    threads: int


def checked_task(task: Task) -> Task:
    """Return the part of a task that is checked."""
    count = task.workload.checked
    if not count:
        return task
    workload = dataclasses.replace(task.workload, samples=count)
    return Task(workload, task.layers, task.x[:count], task.y[:count], task.threads)


def make_task(workload: Workload, threads: int, seed: int = 0) -> Task:
    """Draw data with something to learn in it, and an initialisation."""
    rng = np.random.default_rng(seed)
    sizes = workload.sizes
    layers = []
    for n, m in itertools.pairwise(sizes):
        bound = n**-0.5
        layers.append(
            (
                rng.uniform(-bound, bound, (m, n)).astype(np.float32),
                rng.uniform(-bound, bound, m).astype(np.float32),
            )
        )
    if workload.data == "digits":
        return Task(workload, layers, *_digits(), threads)
    x = rng.standard_normal((workload.samples, sizes[0]), np.float32)
    teacher = (rng.standard_normal((sizes[0], sizes[-1])) / np.sqrt(sizes[0])).astype(np.float32)
    answers = np.tanh(x @ teacher)
    y = answers.argmax(1) if workload.cost == "cross_entropy" else answers
    return Task(workload, layers, x, y, threads)


def _digits() -> tuple[Array, npt.NDArray[np.generic]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataMissingError("the digits come with scikit-learn") from None
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)
