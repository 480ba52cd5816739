"""`fit`: the epoch loop and everything that may hang on it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from gradstack import _core
from gradstack._arrays import as_count, as_flag, threads_of
from gradstack._callbacks import Callbacks, EarlyStopping, FitState, StopWatch
from gradstack._checkpoint import Checkpoint, Keeper, fingerprint
from gradstack._compiled import compiled_for, core_for, program_on
from gradstack._data import Data, read_data, settle_shapes, training_graph
from gradstack._device import check_precision, open_device, place, place_all, place_on_host
from gradstack._engine import Engine, Epoch, Options, make_engine
from gradstack._history import History
from gradstack._progress import Progress, make_progress
from gradstack.functional import require_cost, require_net
from gradstack.optim.base import Optimizer

if TYPE_CHECKING:
    from gradstack.nn.cost import Cost
    from gradstack.nn.module import Module

# Steps handed to the core at once: few enough that their learning rates take little memory, and
# fewer when a Python function computes them.
_MAX_STEPS = 1 << 16
_MAX_COMPUTED_STEPS = 1 << 12
_PROGRESS_PERIOD = 0.2  # seconds between updates of a bar


def fit(
    net: Module,
    X: Any,
    y: Any = None,
    *,
    cost: Cost,
    optimizer: Optimizer,
    batch_size: int | None = 32,
    epochs: int = 10,
    shuffle: bool = True,
    seed: int = 0,
    sample_weight: Any = None,
    validation: Any = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Any = (),
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    num_threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    errors: str = "raise",
) -> History:
    """Train a net.

    Parameters
    ----------
    net : Module
        Trained in place, with dropout active; its mode (train/eval) is left as it is.
    X : array_like, (N, ...), or a tuple of them
        Samples; any real dtype and strides, memory maps included. Not copied as a whole.
    y : array_like or None
        Targets (N, ...) or class labels (N,).
    cost : Cost
    optimizer : Optimizer
        Owns its state: a second fit of the same net with the same object continues it.
    batch_size : int or None
        Samples per step; None: all of them. The last batch of an epoch may be smaller.
    epochs : int
        Passes over the data.
    shuffle : bool
        Visit the samples of every epoch in a new order.
    seed : int
        Seeds shuffling and dropout. The result has the same bits for any number of threads.
    sample_weight : array_like, (N,), optional
        Weights of the average loss.
    validation : tuple (X, y) or (X, y, sample_weight), optional
        Data for ``History.val_loss``, evaluated after every epoch.
    early_stopping : EarlyStopping, optional
    callbacks : callable, object, or a sequence of them
        Called with a state (net, epoch, step, loss, val_loss, metrics, ...): a callable after each
        epoch, an object by its ``on_batch_end`` and ``on_epoch_end``. Returning ``gs.STOP`` ends
        the fit.
    checkpoint : Checkpoint, optional
        Saves the run and resumes it when its file exists.
    progress : bool
        Show a progress bar (tqdm when installed, else lines) on the standard error stream.
    num_threads : int or None
        None: as many as pay.
    device : str
        "cpu", or "cuda" ("cuda:N") to train on a GPU: the data set is copied there, in chunks if
        it does not fit, or may lie there already (anything with ``__dlpack__``). The samples come
        in the same order and dropout has the same masks as on the CPU, so results agree to
        float32's rounding.
        Optimisers that are no update rules (`LBFGS`, `KFAC`, ...) copy one batch
        after the other, which has to fit, and evaluate it there.
    precision : str
        Of a GPU. "float32": exact. "tf32": matrix products round their operands to 10 bits of
        mantissa. "bf16", "fp16": activations and their gradients are stored in that type, products
        take them and a copy of the weights in it; sums, costs, ``net.w``, its gradient and the
        optimiser stay float32. "fp16" scales the loss: a step whose gradient overflows is skipped
        and does not count for the optimiser. Validation is computed in the same precision. Other
        optimisers than update rules take "float32" alone.
    errors : str
        "raise": stop when a loss is NaN or infinite; "ignore": carry on.

    Returns
    -------
    History
        ``.loss``, ``.val_loss``, ``.lr``, one entry per epoch.

    Raises
    ------
    ValueError
        Shapes, labels or arguments that do not fit; NaN or infinity in the data, naming the row.
    FloatingPointError
        The loss became NaN or infinite; names epoch and step, the net has the weights before it.
    KeyboardInterrupt
        Ctrl-C, within a fraction of a second; the net stays usable.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> gs.seed(0)
    >>> X = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    >>> history = gs.fit(net, X, X[:, 0] * X[:, 1], cost=nn.MSELoss(), epochs=100,
    ...                  optimizer=optim.Adam(lr=0.01))
    >>> history.epochs, history.loss[-1] < 0.01
    (100, True)
    """
    net = require_net(net)
    cost = require_cost(cost)
    if isinstance(optimizer, type) or not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an instance such as optim.Adam(), got {optimizer!r}")
    epochs = as_count(epochs, "epochs", low=0)
    check_precision(precision, device)
    open_device(device)
    if errors not in ("raise", "ignore"):
        raise ValueError(f"errors must be 'raise' or 'ignore', got {errors!r}")
    options = Options(
        batch_size=0 if batch_size is None else as_count(batch_size, "batch_size"),
        shuffle=as_flag(shuffle, "shuffle"),
        seed=as_count(seed, "seed", low=0),
        threads=threads_of(num_threads),
        allow_non_finite=errors == "ignore",
        device=device,
        precision=precision,
    )
    if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
        raise TypeError(f"early_stopping must be a gs.EarlyStopping, got {early_stopping!r}")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint must be a gs.Checkpoint, got {checkpoint!r}")
    if early_stopping is not None and early_stopping.monitor == "val_loss" and validation is None:
        raise ValueError("early stopping monitors 'val_loss', which needs validation=(X, y)")
    if not net.w.size:
        raise ValueError(f"[{type(net).__name__}] has no parameters to train")
    X, y, sample_weight = _placed(device, X, y, sample_weight)
    shapes = settle_shapes(net, X)
    compiled = training_graph(net, shapes)
    data = read_data(net, compiled, cost, X, y, sample_weight)
    held_out = (
        None if validation is None else _read_validation(net, shapes, cost, validation, device)
    )
    engine = make_engine(net, compiled, cost, optimizer, data, options)
    watch = None if early_stopping is None else StopWatch(early_stopping)
    keeper = None
    if checkpoint is not None:
        marks = fingerprint(net, compiled, cost, optimizer, data, options)
        keeper = Keeper(checkpoint, net, optimizer, engine, watch, marks)
    loop = _Loop(
        net, cost, optimizer, engine, epochs, Callbacks(callbacks), watch, keeper, held_out
    )
    return loop.run(as_flag(progress, "progress"), options)


def _placed(device: str, X: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
    """A data set for a device, whose memory some of it may lie in."""
    return (
        place_all(X, device, "X"),
        place(y, device, "y"),
        place_on_host(weight, device, "sample_weight"),
    )


def _read_validation(
    net: Module, shapes: tuple[tuple[int, ...], ...], cost: Cost, validation: Any, device: str
) -> Data:
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
        raise TypeError("validation must be (X, y) or (X, y, sample_weight)")
    X, y, weight = (*validation, None)[:3]
    try:
        X, y, weight = _placed(device, X, y, weight)
        settle_shapes(net, X)
        return read_data(net, compiled_for(net, shapes), cost, X, y, weight)
    except (TypeError, ValueError) as error:
        error.args = (f"validation {error}",)
        raise


class _Loop:
    """One fit: steps, and between them whatever the user asked for."""

    def __init__(
        self,
        net: Module,
        cost: Cost,
        optimizer: Optimizer,
        engine: Engine,
        epochs: int,
        callbacks: Callbacks,
        watch: StopWatch | None,
        keeper: Keeper | None,
        held_out: Data | None,
    ) -> None:
        self.net = net
        self.cost = cost
        self.optimizer = optimizer
        self.engine = engine
        self.epochs = epochs
        self.callbacks = callbacks
        self.watch = watch
        self.keeper = keeper
        self.held_out = held_out
        self.progress: Progress | None = None
        self.stride = 1  # steps between updates of the progress bar

    def run(self, progress: bool, options: Options) -> History:
        """Train until the last epoch, or until something stops it."""
        self.options = options
        history = self.keeper.resume() if self.keeper else None
        resumed = history is not None
        self.history = history = history or History()
        if resumed and history.epochs > self.epochs:
            raise ValueError(
                f"the checkpoint has finished {history.epochs} epochs, more than epochs="
                f"{self.epochs}"
            )
        self.state = FitState(self.net, self.optimizer, history)
        engine = self.engine
        if history.stopped is None and engine.epoch < self.epochs:
            self.progress = make_progress(
                progress, self.epochs, engine.steps_per_epoch, engine.step
            )
            try:
                self._train()
            finally:
                if self.progress is not None:
                    self.progress.close()
        if self.keeper is not None and not (resumed and self.keeper.saved_step == engine.step):
            # With the weights to continue from; the best ones are in the file as well.
            self.keeper.save(history)
        if self.watch is not None:
            history.best_epoch = self.watch.best_epoch
            self.watch.restore(self.net)
        return history

    def _train(self) -> None:
        engine = self.engine
        while engine.epoch < self.epochs and self.history.stopped is None:
            steps = self._steps()
            started = time.monotonic()
            finished = engine.advance(steps)
            if self.progress is not None:
                self._pace(steps, time.monotonic() - started)
            if self.callbacks.batch:
                self._after_batch(bool(finished))
            for epoch in finished:
                self._after_epoch(epoch)
            if self.keeper is not None and self.keeper.due(bool(finished)):
                self.keeper.save(self.history)

    def _steps(self) -> int:
        """How many steps may be made before somebody wants to look."""
        engine = self.engine
        if self.callbacks.batch:
            return 1
        to_epoch_end = engine.steps_per_epoch - engine.step_in_epoch
        steps = self.epochs * engine.steps_per_epoch - engine.step
        if self.callbacks.epoch or self.watch or self.keeper or self.held_out or self.progress:
            steps = to_epoch_end
        if self.progress is not None:
            steps = min(steps, self.stride)
        to_save = self.keeper.steps_to_save() if self.keeper else None
        if to_save is not None:
            steps = min(steps, to_save)
        limit = _MAX_COMPUTED_STEPS if callable(self.optimizer.lr) else _MAX_STEPS
        return min(steps, limit)

    def _pace(self, steps: int, seconds: float) -> None:
        assert self.progress is not None
        self.progress.advance(steps)
        if seconds < _PROGRESS_PERIOD / 2:
            self.stride = min(2 * self.stride, _MAX_STEPS)
        elif seconds > 2 * _PROGRESS_PERIOD:
            self.stride = max(1, self.stride // 2)

    def _after_batch(self, epoch_ended: bool) -> None:
        state, engine = self.state, self.engine
        state.epoch = engine.epoch - epoch_ended
        state.step = engine.step
        state.loss = engine.last_loss
        state.val_loss = None
        if Callbacks.run(self.callbacks.batch, state):
            self.history.stopped = "callback"
        engine.refresh()

    def _after_epoch(self, epoch: Epoch) -> None:
        state, history = self.state, self.history
        state.epoch = history.epochs
        state.step = self.engine.step
        state.loss = epoch.loss
        state.metrics = {}
        history.loss.append(epoch.loss)
        history.lr.append(epoch.lr)
        if self.held_out is not None:
            state.val_loss = self._validate(self.held_out)
            history.val_loss.append(state.val_loss)
        if self.callbacks.epoch:
            if Callbacks.run(self.callbacks.epoch, state):
                history.stopped = "callback"
            for name, value in state.metrics.items():
                history.metrics.setdefault(name, []).append(float(value))
            self.engine.refresh()
        if self.watch is not None and self.watch.update(state) and history.stopped is None:
            history.stopped = "early stopping"
        if self.progress is not None:
            self.progress.epoch(state)

    def _validate(self, data: Data) -> float:
        net = self.net
        w = net.w
        # Without dropout, whatever the mode of the net.
        device = self.options.device
        compiled = compiled_for(net, self._shapes())
        program = program_on(compiled, w.dtype, device, type(net).__name__, self.options.precision)
        core = core_for(w.dtype) if device == "cpu" else _core.device
        loss = core.evaluate(
            program,
            w,
            data.xs,
            data.y,
            self.cost._core_cost(w.dtype),
            data.weight,
            threads=self.options.threads,
        )
        if data.unchecked and not math.isfinite(loss):
            data.require_finite("validation ")
        return float(loss)

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        from gradstack._compiled import known_shapes

        shapes = known_shapes(self.net)
        assert shapes is not None
        return shapes
