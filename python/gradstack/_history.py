"""`History`: what a fit reports."""

from __future__ import annotations

from typing import Any


class History:
    """Losses and rates of a fit, one entry per finished epoch.

    Attributes
    ----------
    loss : list of float
        Average loss over the samples of an epoch as they were visited.
    val_loss : list of float
        Average loss over the validation data after the epoch; empty without validation.
    lr : list of float
        Learning rate of the last step of the epoch.
    metrics : dict of str to list of float
        What callbacks put into ``state.metrics``.
    best_epoch : int or None
        With early stopping: the epoch with the best monitored value, counted from 0.
    stopped : str or None
        Why training ended before `epochs`: "early stopping", "callback", or None.
    """

    def __init__(self) -> None:
        self.loss: list[float] = []
        self.val_loss: list[float] = []
        self.lr: list[float] = []
        self.metrics: dict[str, list[float]] = {}
        self.best_epoch: int | None = None
        self.stopped: str | None = None

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.loss)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "loss": self.loss,
            "val_loss": self.val_loss,
            "lr": self.lr,
            "metrics": self.metrics,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of `to_dict`."""
        history = cls()
        history.__dict__.update(values)
        return history

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses over the epochs with matplotlib; returns the axes.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default a new figure.
        """
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError as error:
                raise ImportError(
                    "History.plot needs matplotlib: pip install matplotlib"
                ) from error
            _, ax = plt.subplots()
        epochs = range(1, self.epochs + 1)
        ax.plot(epochs, self.loss, label="training")
        if self.val_loss:
            ax.plot(epochs, self.val_loss, label="validation")
            ax.legend()
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        return ax

    def __repr__(self) -> str:
        parts = [f"epochs={self.epochs}"]
        if self.loss:
            parts.append(f"loss={self.loss[-1]:.6g}")
        if self.val_loss:
            parts.append(f"val_loss={self.val_loss[-1]:.6g}")
        if self.stopped:
            parts.append(f"stopped={self.stopped!r}")
        return f"History({', '.join(parts)})"
