"""Checkpoints: a fit that was killed resumes and ends with the same bits."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import LentArray, as_count
from gradstack._files import require_directory
from gradstack._history import History

if TYPE_CHECKING:
    from gradstack._callbacks import StopWatch
    from gradstack._compiled import Compiled
    from gradstack._data import Data
    from gradstack._engine import Engine, Options
    from gradstack.nn.cost import Cost
    from gradstack.nn.module import Module
    from gradstack.optim.base import Optimizer

Array = npt.NDArray[Any]

_KEY = "gradstack_checkpoint"
_VERSION = 1
_SAMPLED_ROWS = 64


class Checkpoint:
    """Save a fit to a file as it goes, and resume from that file when it exists.

    Parameters
    ----------
    path : path-like
        A safetensors file, replaced atomically at every save.
    every_epochs : int or None
        Save after every so many epochs, and at the end.
    every_steps : int, optional
        Also save after every so many steps.

    Notes
    -----
    The file belongs to one run: same graph, dtype, precision, cost, optimiser arguments, batch
    size, seed, shuffling and data. `epochs` may grow from one call to the next; a finished run
    returns at once.
    The state of callbacks is not saved.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every_epochs: int | None = 1,
        every_steps: int | None = None,
    ) -> None:
        self.path = os.fspath(path)
        require_directory(self.path)
        self.every_epochs = None if every_epochs is None else as_count(every_epochs, "every_epochs")
        self.every_steps = None if every_steps is None else as_count(every_steps, "every_steps")

    def __repr__(self) -> str:
        return (
            f"Checkpoint({self.path!r}, every_epochs={self.every_epochs}, "
            f"every_steps={self.every_steps})"
        )


class Keeper:
    """Saves and restores one fit."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        net: Module,
        optimizer: Optimizer,
        engine: Engine,
        watch: StopWatch | None,
        fingerprint: dict[str, str],
    ) -> None:
        self.checkpoint = checkpoint
        self.net = net
        self.optimizer = optimizer
        self.engine = engine
        self.watch = watch
        self.fingerprint = fingerprint
        self.saved_step = -1

    def steps_to_save(self) -> int | None:
        """Steps until the next save that the number of steps asks for."""
        every = self.checkpoint.every_steps
        return None if every is None else every - self.engine.step % every

    def due(self, epoch_ended: bool) -> bool:
        """Whether to save now."""
        every_steps, every_epochs = self.checkpoint.every_steps, self.checkpoint.every_epochs
        if every_steps is not None and self.engine.step % every_steps == 0:
            return True
        return epoch_ended and every_epochs is not None and self.engine.epoch % every_epochs == 0

    def save(self, history: History) -> None:
        """Write the file."""
        if self.saved_step == self.engine.step and history.stopped is None:
            return
        from gradstack import _safetensors

        arrays, numbers = self.optimizer.export_state()
        tensors = {"w": np.asarray(self.net.w)}
        tensors.update({f"optimizer.{name}": array for name, array in arrays.items()})
        watch = self.watch
        if watch is not None and watch.best_w is not None:
            tensors["best_w"] = watch.best_w
        record = {
            "version": _VERSION,
            "fingerprint": self.fingerprint,
            "position": self.engine.position(),
            "optimizer": numbers,
            "history": history.to_dict(),
            "watch": None if watch is None else watch.numbers(),
        }
        _safetensors.write(self.checkpoint.path, tensors, {_KEY: json.dumps(record)})
        self.saved_step = self.engine.step

    def resume(self) -> History | None:
        """Continue from the file when there is one; its history.

        Raises
        ------
        ValueError
            The file is no checkpoint, or belongs to another run; it says what differs.
        """
        path = self.checkpoint.path
        if not os.path.exists(path):
            return None
        from gradstack import _safetensors

        tensors, metadata = _safetensors.read(path)
        record = _parse(path, metadata)
        _compare(path, record["fingerprint"], self.fingerprint)
        w = self.net.w
        if tensors["w"].shape != w.shape:
            raise ValueError(f"checkpoint {path!r} is damaged: w has shape {tensors['w'].shape}")
        prefix = "optimizer."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        self.optimizer.import_state(state, record["optimizer"])
        self.engine.seek(record["position"])
        w[...] = tensors["w"]
        if self.watch is not None and record["watch"] is not None:
            self.watch.__dict__.update(record["watch"], best_w=tensors.get("best_w"))
        self.saved_step = self.engine.step
        return History.from_dict(record["history"])


def _parse(path: str, metadata: dict[str, str]) -> dict[str, Any]:
    if _KEY not in metadata:
        raise ValueError(
            f"checkpoint {path!r}: the file exists but is not a checkpoint; it is left alone"
        )
    record: dict[str, Any] = json.loads(metadata[_KEY])
    if record.get("version") != _VERSION:
        raise ValueError(f"checkpoint {path!r} has version {record.get('version')}, not {_VERSION}")
    return record


def _compare(path: str, there: dict[str, str], here: dict[str, str]) -> None:
    there = {"precision": "float32", **there}  # what files that do not say were written with
    different = [key for key in here if there.get(key) != here[key]]
    if not different:
        return
    details = "; ".join(
        f"{key}: {_shorten(there.get(key))} there, {_shorten(here[key])} here" for key in different
    )
    raise ValueError(f"checkpoint {path!r} belongs to another run, they differ in {details}")


def _shorten(text: str | None) -> str:
    return str(text) if text is None or len(text) <= 200 else text[:197] + "..."


def fingerprint(
    net: Module, compiled: Compiled, cost: Cost, optimizer: Optimizer, data: Data, options: Options
) -> dict[str, str]:
    """What two calls have in common when they are the same run."""
    return {
        "graph": _digest_graph(net, compiled),
        "dtype": str(net.w.dtype),
        "precision": options.precision,
        "cost": _text(cost.config()),
        "optimizer": _text(optimizer.config()),
        "batch_size": str(options.batch_size or None),
        "seed": str(options.seed),
        "shuffle": str(options.shuffle),
        "data shape": _text(
            [x.shape for x in data.xs] + [None if data.y is None else data.y.shape]
        ),
        "data": _digest_data(data),
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _digest_graph(net: Module, compiled: Compiled) -> str:
    import hashlib

    digest = hashlib.sha256()
    for row in compiled.graph.stages():
        for key, value in sorted(row.items()):
            text = repr(value)
            if isinstance(value, np.ndarray):
                text = value.tobytes().hex()
            elif key == "impl":
                text = type(compiled.blocks[row["name"]]).__qualname__
            digest.update(f"{key}={text};".encode())
    for name, parameter in net.named_parameters():
        digest.update(f"{name}{parameter.shape}{parameter.requires_grad};".encode())
    return digest.hexdigest()[:16]


def _digest_data(data: Data) -> str:
    """A hash of rows spread over the data: changed data is noticed without reading all of it."""
    import hashlib

    rows = np.unique(np.linspace(0, data.count - 1, _SAMPLED_ROWS).astype(np.int64))
    digest = hashlib.sha256()
    for array in (*data.xs, data.y, data.weight):
        if array is not None:
            digest.update(str(array.dtype).encode())
            sample = array.take(rows) if isinstance(array, LentArray) else array[rows]
            digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()[:16]
