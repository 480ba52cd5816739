"""Progress of a fit: a bar when tqdm is installed, else a line per epoch."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from gradstack._callbacks import FitState

_LINE_PERIOD = 0.5  # seconds between lines: many short epochs do not flood the terminal


class Progress(Protocol):
    """What `fit` tells about its progress."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""

    def epoch(self, state: FitState) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """The fit has ended."""


class _Lines:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.last = -_LINE_PERIOD
        self.pending: str | None = None

    def advance(self, steps: int) -> None:
        pass

    def epoch(self, state: FitState) -> None:
        self.pending = f"epoch {state.epoch + 1}/{self.epochs}  {_losses(state)}"
        now = time.monotonic()
        if now - self.last >= _LINE_PERIOD:
            self.last = now
            self.close()

    def close(self) -> None:
        if self.pending is not None:
            print(self.pending, file=sys.stderr, flush=True)
            self.pending = None


class _Bar:
    def __init__(self, tqdm: Any, total: int, done: int) -> None:
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def advance(self, steps: int) -> None:
        self.bar.update(steps)

    def epoch(self, state: FitState) -> None:
        self.bar.set_postfix_str(f"epoch {state.epoch + 1}, {_losses(state)}", refresh=False)

    def close(self) -> None:
        self.bar.close()


def _losses(state: FitState) -> str:
    text = f"loss {state.loss:.4g}"
    if state.val_loss is not None:
        text += f", val_loss {state.val_loss:.4g}"
    return text


def make_progress(wanted: bool, epochs: int, steps_per_epoch: int, done: int) -> Progress | None:
    """A bar, lines, or None when no progress is wanted."""
    if not wanted:
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return _Lines(epochs)
    return _Bar(tqdm, epochs * steps_per_epoch, done)
