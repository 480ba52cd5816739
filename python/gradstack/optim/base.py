"""`Optimizer`: what all optimisers share, and those whose rule the core runs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gradstack import _core
from gradstack._arrays import as_flag, as_number, as_vector
from gradstack._compiled import core_for, known_shapes
from gradstack._flat import clock
from gradstack.optim.schedules import Lr

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class RuleRow(NamedTuple):
    """A row of the table of update rules."""

    name: str
    cls: str
    lr: float
    hyper: tuple[tuple[str, float], ...]
    states: tuple[str, ...]


RULES = {
    row["cls"]: RuleRow(
        row["name"],
        row["cls"],
        row["lr"],
        tuple((n, v) for n, v in row["hyper"]),
        tuple(row["states"]),
    )
    for row in _core.rules()
}


class Problem(Protocol):
    """One batch, as an optimiser written in Python sees it."""

    def value_and_grad(self, w: Array) -> tuple[float, Array]:
        """Loss at w and its gradient, zero for frozen parameters."""


class Optimizer:
    """Base class of the optimisers. An optimiser owns its state, for one net.

    A second ``gs.fit`` of the same net with the same object continues where the first one ended.
    Not made by itself: the subclasses say what their arguments mean.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a function of the step, which starts at 0.
    clip_norm : float, optional
        The gradient is multiplied by clip_norm / (norm + 1e-6) where that is below 1, as by
        PyTorch's ``clip_grad_norm_``.
    clip_value : float, optional
        Before that, every entry of the gradient is clamped to [-clip_value, clip_value].
    decay_bias : bool
        False keeps weight decay off the biases.
    arguments : dict
        The subclass's own arguments, by name.

    Attributes
    ----------
    lr : float or callable
        Learning rate, or a function of the step (from 0); may be changed between steps.
    t : int
        Number of steps made.
    """

    _arguments: dict[str, Any]
    _owner: weakref.ref[Module] | None

    def __init__(
        self,
        lr: Lr,
        clip_norm: float | None,
        clip_value: float | None,
        decay_bias: bool,
        arguments: dict[str, Any],
    ) -> None:
        shared = {
            "clip_norm": None if clip_norm is None else positive(clip_norm, "clip_norm"),
            "clip_value": None if clip_value is None else positive(clip_value, "clip_value"),
            "decay_bias": as_flag(decay_bias, "decay_bias"),
        }
        self.__dict__.update(_arguments={**arguments, **shared}, _owner=None)
        self.lr = lr

    def __getattr__(self, name: str) -> Any:
        arguments = self.__dict__.get("_arguments")
        if arguments is not None and name in arguments:
            return arguments[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._arguments:
            raise AttributeError(
                f"[{type(self).__name__}] {name} is fixed at construction; only lr may change"
            )
        if name == "lr" and not callable(value):
            value = as_number(value, "lr", low=0.0)
        object.__setattr__(self, name, value)

    @property
    def t(self) -> int:
        """Number of steps made."""
        raise NotImplementedError

    def lr_at(self, step: int) -> float:
        """The learning rate of one step, counted from 0.

        Raises
        ------
        ValueError
            A callable `lr` returned a negative number, NaN or infinity.
        """
        lr = self.lr
        return as_number(lr(step), f"lr({step})", low=0.0) if callable(lr) else float(lr)

    def lrs(self, start: int, n: int) -> npt.NDArray[np.float64]:
        """The learning rates of the steps start, ..., start + n - 1."""
        if not callable(self.lr):
            return np.full(n, float(self.lr))
        return np.array([self.lr_at(start + i) for i in range(n)], np.float64)

    def update(self, net: Module, dw: Any) -> None:
        """Make one step with a gradient that was computed elsewhere.

        So nets are trained whose cost is another net: chain `gradstack.vjp` through both.

        Parameters
        ----------
        net : Module
            Its parameters move; masked and frozen ones stay.
        dw : array_like, (P,)
            Derivative of what is to fall.

        Raises
        ------
        FloatingPointError
            dw holds NaN or infinity; the net is unchanged.
        TypeError
            The optimiser looks at the batch itself (`LBFGS`, `GaussNewton`, `KFAC`, ...).

        Examples
        --------
        >>> import gradstack as gs
        >>> net = gs.nn.Linear(2, 1)
        >>> _, pullback = gs.vjp(net, [1.0, 2.0])
        >>> gs.optim.SGD(lr=0.1).update(net, pullback([1.0])[1])
        """
        raise TypeError(
            f"[{type(self).__name__}] steps need the batch, not only a gradient: train by fit or "
            "Trainer"
        )

    def _claim(self, net: Module) -> None:
        """Take `net` as the one whose state this is."""
        owner = None if self._owner is None else self._owner()
        if self._owner is not None and owner is not net:
            raise ValueError(
                f"[{type(self).__name__}] this optimiser holds the state of another net: make a "
                "new one, or call its reset()"
            )
        object.__setattr__(self, "_owner", weakref.ref(net))

    def reset(self) -> None:
        """Forget all state; the optimiser may then serve another net."""
        object.__setattr__(self, "_owner", None)

    def export_state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The state as arrays and plain numbers, for checkpoints."""
        raise NotImplementedError

    def import_state(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Take over what `export_state` gave."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Copies of the state: arrays and numbers by name."""
        arrays, numbers = self.export_state()
        return {**{k: np.array(v) for k, v in arrays.items()}, **numbers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        arrays = {k: v for k, v in state_dict.items() if isinstance(v, np.ndarray)}
        numbers = {k: v for k, v in state_dict.items() if k not in arrays}
        self.import_state(arrays, numbers)

    def config(self) -> dict[str, Any]:
        """The arguments as plain values (a callable lr as text)."""
        lr = self.lr
        shown = _callable_name(lr) if callable(lr) else lr
        return {"name": type(self).__name__, "lr": shown, **self._arguments}

    def __getstate__(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "arguments": self._arguments,
            "state": self.export_state(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(_arguments=state["arguments"], _owner=None, lr=state["lr"])
        self._start()
        self.import_state(*state["state"])

    def _start(self) -> None:
        """Set up empty state."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "name")
        return f"{type(self).__name__}({arguments})"


def _callable_name(lr: Any) -> str:
    from gradstack.optim.schedules import Schedule

    if isinstance(lr, Schedule):
        return repr(lr)
    name = f"{getattr(lr, '__module__', '')}.{getattr(lr, '__qualname__', type(lr).__qualname__)}"
    code = getattr(lr, "__code__", None)
    if code is None:
        return name
    # Constants tell two lambdas apart; what prints with an address would differ in each process.
    constants = [c for c in code.co_consts if isinstance(c, (int, float, str))]
    return f"{name} with constants {constants}"


def positive(value: Any, name: str) -> float:
    """`value` as a finite float above 0."""
    number = as_number(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {number:g}")
    return number


class RuleOptimizer(Optimizer):
    """An optimiser whose update rule is a row of the core's table."""

    row: ClassVar[RuleRow]

    def __init__(
        self,
        lr: Lr,
        hyper: dict[str, Any],
        clip_norm: float | None,
        clip_value: float | None,
        decay_bias: bool,
    ) -> None:
        super().__init__(lr, clip_norm, clip_value, decay_bias, hyper)
        self._start()

    def _start(self) -> None:
        self.__dict__.update(_core=None, _pending=None, _updater=None)

    def _hyper_values(self) -> list[float]:
        values = dict(self._arguments)
        if "betas" in values:
            values["beta1"], values["beta2"] = values["betas"]
        return [float(values[name]) for name, _ in self.row.hyper]

    def core_optimizer(self, net: Module) -> Any:
        """The state in the core, made on first use for `net`."""
        w = net.w
        core = core_for(w.dtype)
        current = self._core
        if current is not None:
            self._claim(net)
            if not isinstance(current, core.Optimizer) or current.state.shape[-1] != w.size:
                raise ValueError(
                    f"[{type(self).__name__}] its state is for {current.state.shape[-1]} "
                    f"parameters, the net now has {w.size} of {w.dtype}; call reset()"
                )
            return current
        made = core.Optimizer(
            self.row.name,
            self._hyper_values(),
            w.size,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            decay_bias=self.decay_bias,
        )
        if self._pending is not None:
            self._fill(made, *self._pending)
        self._claim(net)
        self.__dict__.update(_core=made, _pending=None)
        return made

    def update(self, net: Module, dw: Any) -> None:
        """Make one step with a gradient that was computed elsewhere; see `Optimizer.update`."""
        core, w = self.core_optimizer(net), net.w
        held = self._updater
        if held is None or held[0] != clock.now or held[1] is not core:
            held = self.__dict__["_updater"] = self._make_updater(net, core)
        lr = self.lr
        held[2].step(
            w, as_vector(dw, w.size, w.dtype, "dw"), self.lr_at(self.t) if callable(lr) else lr
        )

    @staticmethod
    def _make_updater(net: Module, core: Any) -> tuple[int, Any, Any]:
        from gradstack._data import training_graph
        from gradstack._engine import frozen_names

        shapes = known_shapes(net)
        if shapes is None:
            raise ValueError(
                f"[{type(net).__name__}] its sample shape is not known yet: call it first, or "
                "net.trace(sample_shape)"
            )
        graph = training_graph(net, shapes).graph
        updater = core_for(net.w.dtype).Updater(graph, core, frozen=frozen_names(net))
        return clock.now, core, updater

    def _fill(self, core: Any, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        owner = type(self).__name__
        for i, name in enumerate(self.row.states):
            if name not in arrays:
                raise ValueError(f"[{owner}] the state lacks {name!r}")
            if arrays[name].shape != core.state[i].shape:
                raise ValueError(
                    f"[{owner}] state {name!r} has shape {arrays[name].shape}, expected "
                    f"{core.state[i].shape}"
                )
        for i, name in enumerate(self.row.states):
            core.state[i][...] = arrays[name]
        scalars = numbers["scalars"]
        core.scalars[...] = scalars
        core.t = int(numbers["t"])

    @property
    def t(self) -> int:
        """Number of steps made."""
        if self._core is not None:
            return int(self._core.t)
        return 0 if self._pending is None else int(self._pending[1]["t"])

    @property
    def state(self) -> dict[str, Array]:
        """The state vectors by name, each (P,), as views; empty before the first use."""
        if self._core is None:
            return {}
        return dict(zip(self.row.states, self._core.state, strict=False))

    def reset(self) -> None:
        """Forget all state; the optimiser may then serve another net."""
        super().reset()
        self._start()

    def export_state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The state as arrays and plain numbers."""
        if self._core is None:
            return self._pending if self._pending is not None else ({}, {"t": 0, "scalars": []})
        arrays = {name: np.array(v) for name, v in self.state.items()}
        return arrays, {"t": self.t, "scalars": [float(s) for s in self._core.scalars]}

    def import_state(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Take over what `export_state` gave."""
        if int(numbers["t"]) == 0 and not arrays:
            self.__dict__.update(_core=None, _pending=None)
        elif self._core is not None:
            self._fill(self._core, arrays, numbers)
        else:
            self.__dict__["_pending"] = (dict(arrays), dict(numbers))
