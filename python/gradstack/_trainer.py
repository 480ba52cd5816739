"""`Trainer`: single steps, for those who own the loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gradstack._arrays import as_count, threads_of
from gradstack._compiled import read, split_inputs
from gradstack._data import training_graph
from gradstack._device import check_precision, open_device, place_on_host
from gradstack._device_problem import check_on, problem_on
from gradstack._engine import core_trainer
from gradstack._flat import clock
from gradstack.functional import read_target, require_cost, require_net
from gradstack.nn.cost import has_plain_targets, read_sample_weight
from gradstack.optim.base import Optimizer, RuleOptimizer
from gradstack.optim.python import PythonOptimizer

if TYPE_CHECKING:
    from gradstack._compiled import Compiled
    from gradstack.nn.cost import Cost
    from gradstack.nn.module import Module


class Trainer:
    """Makes single training steps on batches that the caller chooses.

    Parameters
    ----------
    net : Module
    cost : Cost
    optimizer : Optimizer
    num_threads : int or None
        None: as many as pay.
    seed : int
        Seeds dropout.
    device : str
        "cpu", or "cuda" ("cuda:N"): every step copies the batch, ``net.w`` and the optimiser's
        state to the GPU and back; `gradstack.fit` copies them once an epoch.
    precision : str
        Of a GPU: "float32", "tf32", "bf16" or "fp16", as in `gradstack.fit`.

    Attributes
    ----------
    precision : str
    loss_scale : float or None

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> net = nn.Linear(2, 1)
    >>> trainer = gs.Trainer(net, nn.SquaredError(), optim.SGD(lr=0.1))
    >>> x, y = np.array([[1.0, 2.0]]), np.array([3.0])
    >>> trainer.step(x, y) > trainer.step(x, y)
    True
    """

    def __init__(
        self,
        net: Module,
        cost: Cost,
        optimizer: Optimizer,
        *,
        num_threads: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        self.precision = check_precision(precision, device)
        open_device(device)
        self.net = require_net(net)
        self.cost = require_cost(cost)
        if not isinstance(optimizer, (RuleOptimizer, PythonOptimizer)):
            raise TypeError(
                f"optimizer must be an instance such as optim.Adam(), got {optimizer!r}"
            )
        if not net.w.size:
            raise ValueError(f"[{type(net).__name__}] has no parameters to train")
        if isinstance(optimizer, PythonOptimizer):
            optimizer.require_precision(self.precision)
        self.optimizer = optimizer
        self._device = device
        self._threads = threads_of(num_threads)
        self._seed = as_count(seed, "seed", low=0)
        self._forget()

    def _forget(self) -> None:
        """Begin anew, as if no step had been made yet."""
        self._compiled: Compiled | None = None
        self._core: Any = None
        self._built = -1  # when the core trainer was made
        self._state: Any = None  # of the optimiser, as the core trainer knows it
        self._short: Any = None  # takes batches like those before without reading them

    # A copy has copies of the net and the optimiser, and goes on as the original would.
    def __getstate__(self) -> dict[str, Any]:
        kept = ("precision", "net", "cost", "optimizer", "_device", "_threads", "_seed")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __copy__(self) -> Trainer:
        import copy

        return copy.deepcopy(self)

    def __repr__(self) -> str:
        net = type(self.net).__name__
        return f"Trainer({net} of {self.net.w.size} parameters, {self.cost!r}, {self.optimizer!r})"

    @property
    def loss_scale(self) -> float | None:
        """What fp16 multiplies the loss with; None before the first step, and if not fp16.

        It starts at 2^16. A step whose gradient overflows halves it, changes nothing else and does
        not count as a step of the optimiser; 2000 good steps double it.
        """
        if self.precision != "fp16" or self._core is None:
            return None
        return float(self._core.loss_scaling[0])

    def step(self, x: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Make one step on a batch (or one sample).

        Parameters
        ----------
        x : array_like, or a tuple of them
        y : array_like or None
            Targets or class labels.
        sample_weight : array_like, (B,), optional

        Returns
        -------
        float
            The loss before the step.

        Raises
        ------
        FloatingPointError
            The loss is NaN or infinite; the net is unchanged.
        """
        optimizer = self.optimizer
        # reset() gives an optimiser a new state.
        if self._short is not None and self._state is optimizer._core:
            lr = optimizer.lr
            if callable(lr):
                lr = optimizer.lr_at(optimizer.t)
            loss: float | None = self._short(x, y, sample_weight, lr)
            if loss is not None:
                return loss
        return self._general_step(x, y, sample_weight)

    def _general_step(self, x: Any, y: Any, sample_weight: Any) -> float:
        net, cost = self.net, self.cost
        inputs = read(net, split_inputs(net, x), self._device)
        target = read_target(net, cost, inputs, y)
        sample_weight = place_on_host(sample_weight, self._device, "sample_weight")
        weight = read_sample_weight(sample_weight, inputs.count, inputs.dtype, cost.reduction)
        if inputs.count == 0:
            raise ValueError("x has no samples, the average loss is undefined")
        compiled = training_graph(net, inputs.compiled.in_shapes)
        optimizer = self.optimizer
        lr = optimizer.lr_at(optimizer.t)
        w = net.w
        if isinstance(optimizer, PythonOptimizer):
            return self._python_step(optimizer, compiled, (inputs.xs, target, weight), lr)
        assert isinstance(optimizer, RuleOptimizer)
        state = optimizer.core_optimizer(net)
        if (self._compiled, self._built, self._state) != (compiled, clock.now, state):
            before = self._core
            self._core = core_trainer(net, compiled, cost, optimizer, self._device, self.precision)
            if self.precision == "fp16" and before is not None:
                self._core.loss_scaling = before.loss_scaling
            self._compiled, self._built, self._state = compiled, clock.now, state
            self._short = None
        loss = self._core.step(w, inputs.xs, target, weight, lr, self._threads, True, self._seed)
        if self._device == "cpu" and has_plain_targets(cost):
            self._short = self._core.short_call(w, target, self._threads, self._seed)
        return float(loss)

    def _python_step(
        self, optimizer: PythonOptimizer, compiled: Compiled, batch: tuple[Any, Any, Any], lr: float
    ) -> float:
        net = self.net
        check_on(self._device, net, compiled, self.cost)
        optimizer._claim(net)
        w = net.w
        run = {
            "train": True,
            "seed": self._seed,
            "step": optimizer.t,
            "threads": self._threads,
        }
        problem = problem_on(self._device, net, compiled, self.cost, batch, run)
        moved = w.copy()
        loss = optimizer.step(problem, moved, lr)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}; the weights are those before the step")
        w[...] = moved
        return loss
