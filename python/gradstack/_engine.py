"""What makes the steps of a fit: the core, or an optimiser written in Python.

Both engines go through the epochs of a data set from a position that can be saved and restored
exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import LentArray
from gradstack._compiled import Compiled, core_for
from gradstack._data import Data, training_graph
from gradstack._device import open_device, require_float32
from gradstack._device_problem import check_on, problem_on, settle_on
from gradstack._flat import clock
from gradstack.nn.cost import Cost
from gradstack.optim.base import Optimizer, RuleOptimizer
from gradstack.optim.python import PythonOptimizer

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class Options(NamedTuple):
    """How a fit goes through its data."""

    batch_size: int  # 0: all samples
    shuffle: bool
    seed: int
    threads: int  # 0: automatic
    allow_non_finite: bool
    device: str = "cpu"
    precision: str = "float32"


class Epoch(NamedTuple):
    """A finished epoch."""

    loss: float
    lr: float  # of its last step


class Engine(Protocol):
    """Makes the steps of one fit."""

    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Finished epochs."""

    @property
    def step_in_epoch(self) -> int:
        """Steps made in the current epoch."""

    @property
    def step(self) -> int:
        """Steps made in all."""

    @property
    def last_loss(self) -> float:
        """Loss of the last batch before its step."""

    def advance(self, steps: int) -> list[Epoch]:
        """Make so many steps; the epochs that ended."""

    def refresh(self) -> None:
        """Take notice of what callbacks may have changed: frozen parameters, moved weights."""

    def position(self) -> dict[str, Any]:
        """Where it is."""

    def seek(self, position: dict[str, Any]) -> None:
        """Continue from there."""


def frozen_names(net: Module) -> list[str]:
    """Names of the parameters that training leaves alone."""
    return [name for name, p in net.named_parameters() if not p.requires_grad]


def make_engine(
    net: Module,
    compiled: Compiled,
    cost: Cost,
    optimizer: Optimizer,
    data: Data,
    options: Options,
) -> Engine:
    """The engine that suits the optimiser."""
    if isinstance(optimizer, RuleOptimizer):
        return CoreEngine(net, compiled, cost, optimizer, data, options)
    if isinstance(optimizer, PythonOptimizer):
        optimizer.require_precision(options.precision)
        return PythonEngine(net, compiled, cost, optimizer, data, options)
    raise TypeError(f"optimizer must be one of gradstack.optim, got {type(optimizer).__name__}")


def core_trainer(
    net: Module,
    compiled: Compiled,
    cost: Cost,
    optimizer: RuleOptimizer,
    device: str,
    precision: str,
) -> Any:
    """The core's trainer of a net on a device."""
    dtype = net.w.dtype
    frozen = frozen_names(net)
    if device == "cpu":
        return core_for(dtype).Trainer(
            compiled.graph, cost._core_cost(dtype), optimizer.core_optimizer(net), frozen=frozen
        )
    require_float32(device, dtype, type(net).__name__)
    opened = open_device(device)
    return _core.device.DeviceTrainer(
        compiled.graph,
        cost._core_cost(dtype),
        optimizer.core_optimizer(net),
        opened,
        frozen=frozen,
        precision=precision,
    )


class CoreEngine:
    """Steps made by the core, without the interpreter lock."""

    def __init__(
        self,
        net: Module,
        compiled: Compiled,
        cost: Cost,
        optimizer: RuleOptimizer,
        data: Data,
        options: Options,
    ) -> None:
        self._net = net
        self._shapes = compiled.in_shapes
        self._cost = cost
        self._optimizer = optimizer
        self._data = data
        self._options = options
        self._open(compiled)
        self.steps_per_epoch = int(self._trainer.steps_per_epoch)

    def _open(self, compiled: Compiled) -> None:
        net, options = self._net, self._options
        w = net.w
        self._trainer = core_trainer(
            net, compiled, self._cost, self._optimizer, options.device, options.precision
        )
        self._trainer.begin(
            w,
            self._data.xs,
            self._data.y,
            self._data.weight,
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            seed=options.seed,
            threads=options.threads,
            check_finite=self._data.unchecked,
            allow_nonfinite_loss=options.allow_non_finite,
        )
        self._clock = clock.now

    @property
    def epoch(self) -> int:
        return int(self._trainer.epoch)

    @property
    def step_in_epoch(self) -> int:
        return int(self._trainer.step_in_epoch)

    @property
    def step(self) -> int:
        return int(self._trainer.global_step)

    @property
    def last_loss(self) -> float:
        return float(self._trainer.last_loss)

    def advance(self, steps: int) -> list[Epoch]:
        first = self.steps_per_epoch - self.step_in_epoch - 1  # last step of the current epoch
        lrs = self._optimizer.lrs(self._optimizer.t, steps)
        losses = self._trainer.run(lrs)
        last = [first + i * self.steps_per_epoch for i in range(len(losses))]
        if self._options.precision == "fp16":  # skipped steps take no learning rate
            last = [max(n - 1, 0) for n in self._trainer.updates]
        return [Epoch(loss, float(lrs[i])) for i, loss in zip(last, losses, strict=True)]

    def refresh(self) -> None:
        if self._clock == clock.now:
            return
        position = self.position()
        self._open(training_graph(self._net, self._shapes))
        self.seek(position)

    def position(self) -> dict[str, Any]:
        return dict(self._trainer.position)

    def seek(self, position: dict[str, Any]) -> None:
        self._trainer.seek(position)


class PythonEngine:
    """Steps made by an optimiser written in Python, batch by batch."""

    def __init__(
        self,
        net: Module,
        compiled: Compiled,
        cost: Cost,
        optimizer: PythonOptimizer,
        data: Data,
        options: Options,
    ) -> None:
        check_on(options.device, net, compiled, cost)
        optimizer._claim(net)
        self._net = net
        self._compiled = compiled
        self._cost = cost
        self._optimizer = optimizer
        self._options = options
        self._batch_size = options.batch_size or data.count
        self.steps_per_epoch = math.ceil(data.count / self._batch_size)
        whole = self.steps_per_epoch == 1  # every step sees all samples: they are copied once
        self._data = settle_on(options.device, data) if whole else data
        self._state = {
            "epoch": 0,
            "step_in_epoch": 0,
            "step": 0,
            "loss_sum": 0.0,
            "weight_sum": 0.0,
        }
        self._order: tuple[int, Array] | None = None
        self.last_loss = math.nan

    @property
    def epoch(self) -> int:
        return int(self._state["epoch"])

    @property
    def step_in_epoch(self) -> int:
        return int(self._state["step_in_epoch"])

    @property
    def step(self) -> int:
        return int(self._state["step"])

    def _index(self) -> Array:
        """Samples of the next batch."""
        if self._order is None or self._order[0] != self.epoch:
            order = np.arange(self._data.count)
            if self._options.shuffle:
                np.random.default_rng([self._options.seed, self.epoch]).shuffle(order)
            self._order = (self.epoch, order)
        begin = self.step_in_epoch * self._batch_size
        return self._order[1][begin : begin + self._batch_size]

    def advance(self, steps: int) -> list[Epoch]:
        finished = []
        for _ in range(steps):
            lr = self._optimizer.lr_at(self._optimizer.t)
            self._one_step(lr)
            if self.step_in_epoch == self.steps_per_epoch:
                state = self._state
                finished.append(Epoch(state["loss_sum"] / state["weight_sum"], lr))
                state.update(epoch=self.epoch + 1, step_in_epoch=0, loss_sum=0.0, weight_sum=0.0)
        return finished

    def _one_step(self, lr: float) -> None:
        net, options = self._net, self._options
        w = net.w
        index = self._index()
        batch = self._data.rows(index, w.dtype)
        if self._data.unchecked:
            self._check_rows(index, batch)
        run = {
            "train": True,
            "seed": options.seed,
            "step": self._optimizer.t,
            "threads": options.threads,
        }
        problem = problem_on(options.device, net, self._compiled, self._cost, batch, run)
        # The optimiser works on a copy, so that an interrupted step leaves the net as it was.
        moved = w.copy()
        loss = self._optimizer.step(problem, moved, lr)
        if not math.isfinite(loss) and not options.allow_non_finite:
            raise FloatingPointError(
                f"the loss is {loss} at epoch {self.epoch}, step {self.step_in_epoch} (step "
                f"{self.step} in all); the weights are those before that step"
            )
        w[...] = moved
        weight = float(len(index)) if batch[2] is None else float(batch[2].sum())
        state = self._state
        averaged = self._cost.reduction == "mean"
        state["loss_sum"] += loss * weight if averaged else loss
        state["weight_sum"] += weight
        state["step_in_epoch"] += 1
        state["step"] += 1
        self.last_loss = loss

    @staticmethod
    def _check_rows(index: Array, batch: tuple[list[Array], Any, Any]) -> None:
        xs, y, _ = batch
        for array in [*xs, *([y] if y is not None and y.ndim == 2 else [])]:
            if isinstance(array, LentArray):
                continue  # NaN there shows in the loss
            good = np.isfinite(array).all(axis=1)
            if not good.all():
                row = int(index[int(np.argmin(good))])
                raise ValueError(f"X or y: row {row} holds NaN or infinity, expected finite values")

    def refresh(self) -> None:
        self._compiled = training_graph(self._net, self._compiled.in_shapes)

    def position(self) -> dict[str, Any]:
        return dict(self._state)

    def seek(self, position: dict[str, Any]) -> None:
        self._state.update(position)
