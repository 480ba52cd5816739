"""What may look at a fit while it runs, and end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_count, as_flag, as_number

if TYPE_CHECKING:
    from gradstack._history import History
    from gradstack.nn.module import Module
    from gradstack.optim.base import Optimizer


class _Stop:
    """The type of `STOP`."""

    def __repr__(self) -> str:
        return "gs.STOP"

    def __reduce__(self) -> str:
        return "STOP"


STOP = _Stop()
"""Returned by a callback, it ends the fit."""


class FitState:
    """What callbacks see.

    Attributes
    ----------
    net : Module
        With its weights as they are now; writing to them changes the training.
    optimizer : Optimizer
        Its `lr` may be changed.
    epoch : int
        The current epoch, from 0.
    step : int
        Steps made so far in this fit.
    loss : float
        At the end of an epoch its average loss; at the end of a batch the loss of that batch.
    val_loss : float or None
        After an epoch with validation.
    metrics : dict of str to float
        What callbacks measure: recorded in the history, and available to early stopping.
    history : History
        Of the epochs finished so far.
    """

    def __init__(self, net: Module, optimizer: Optimizer, history: History) -> None:
        self.net = net
        self.optimizer = optimizer
        self.history = history
        self.epoch = 0
        self.step = 0
        self.loss = math.nan
        self.val_loss: float | None = None
        self.metrics: dict[str, float] = {}

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.optimizer.lr_at(self.optimizer.t)


class Callbacks:
    """The user's callbacks, sorted by when they run."""

    def __init__(self, callbacks: Any) -> None:
        if any(hasattr(callbacks, n) for n in ("__call__", "on_batch_end", "on_epoch_end")):
            callbacks = (callbacks,)
        self.batch: list[Callable[[FitState], Any]] = []
        self.epoch: list[Callable[[FitState], Any]] = []
        if not isinstance(callbacks, Iterable):
            raise TypeError(
                "callbacks must be a callable, an object with on_batch_end or on_epoch_end, or a "
                f"sequence of them, got {callbacks!r}"
            )
        for callback in callbacks:
            if isinstance(callback, type):
                raise TypeError(
                    f"a callback must be an instance: {callback.__name__}(), not "
                    f"{callback.__name__}"
                )
            on_batch = getattr(callback, "on_batch_end", None)
            on_epoch = getattr(callback, "on_epoch_end", None)
            if on_batch is None and on_epoch is None:
                if not callable(callback):
                    raise TypeError(
                        "a callback is callable or has on_batch_end or on_epoch_end, got "
                        f"{type(callback).__name__}"
                    )
                on_epoch = callback
            if on_batch is not None:
                self.batch.append(on_batch)
            if on_epoch is not None:
                self.epoch.append(on_epoch)

    @staticmethod
    def run(callbacks: Sequence[Callable[[FitState], Any]], state: FitState) -> bool:
        """Call all of them; whether one wants to stop."""
        stop = False
        for callback in callbacks:
            stop |= callback(state) is STOP
        return stop


class EarlyStopping:
    """End a fit when a monitored value has stopped improving.

    Parameters
    ----------
    monitor : str or callable
        "val_loss", "loss", the name of something callbacks put into ``state.metrics``, or a
        function of the state.
    patience : int
        Epochs without improvement that are waited for.
    min_delta : float
        Less than this is no improvement.
    restore_best : bool
        Leave the net with the weights of its best epoch.
    mode : str
        "min": smaller is better, "max": larger is better.

    Examples
    --------
    >>> import gradstack as gs
    >>> gs.EarlyStopping(patience=3)
    EarlyStopping(monitor='val_loss', patience=3, min_delta=0, restore_best=True, mode='min')
    """

    def __init__(
        self,
        monitor: str | Callable[[FitState], float] = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
        mode: str = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if not isinstance(monitor, str) and not callable(monitor):
            raise TypeError(f"monitor must be a name or a function, got {monitor!r}")
        self.monitor = monitor
        self.patience = as_count(patience, "patience", low=0)
        self.min_delta = as_number(min_delta, "min_delta", low=0.0)
        self.restore_best = as_flag(restore_best, "restore_best")
        self.mode = mode

    def __repr__(self) -> str:
        return (
            f"EarlyStopping(monitor={self.monitor!r}, patience={self.patience}, "
            f"min_delta={self.min_delta:g}, restore_best={self.restore_best}, mode={self.mode!r})"
        )


class StopWatch:
    """The progress of one fit under `EarlyStopping`."""

    def __init__(self, rule: EarlyStopping) -> None:
        self.rule = rule
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_w: npt.NDArray[Any] | None = None
        self.waited = 0

    def value(self, state: FitState) -> float:
        """The monitored value after an epoch."""
        monitor = self.rule.monitor
        if callable(monitor):
            return float(monitor(state))
        if monitor == "loss":
            return state.loss
        if monitor == "val_loss" and state.val_loss is not None:
            return state.val_loss
        if monitor not in state.metrics:
            raise ValueError(
                f"early stopping monitors {monitor!r}, which no callback put into state.metrics"
            )
        return float(state.metrics[monitor])

    def update(self, state: FitState) -> bool:
        """Take in one epoch; whether it is time to stop."""
        value = self.value(state)
        sign = 1.0 if self.rule.mode == "min" else -1.0
        # A NaN is never better, whatever came before.
        if not math.isnan(value) and (
            self.best is None or sign * (self.best - value) > self.rule.min_delta
        ):
            self.best, self.best_epoch, self.waited = value, state.epoch, 0
            if self.rule.restore_best:
                self.best_w = np.array(state.net.w)
            return False
        self.waited += 1
        return self.waited >= max(1, self.rule.patience)

    def restore(self, net: Module) -> None:
        """Give the net its best weights back."""
        if self.best_w is not None:
            net.w[...] = self.best_w

    def numbers(self) -> dict[str, Any]:
        """Its state without the weights, as plain values."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}
