"""`Module`: the base class of layers and nets."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gradstack import _compiled, _core, _flat
from gradstack._arrays import as_flag, as_real, as_shape, cast
from gradstack._flat import clock
from gradstack._trace import Tracer, find_var
from gradstack.nn.state import LoadResult, load_state, state_slots
from gradstack.nn.tree import ModuleTree

Array = npt.NDArray[Any]
M = TypeVar("M", bound="Module")

# What a module keeps for itself, rebuilt when needed and never copied or pickled.
_CACHES: dict[str, Any] = {
    "_own": None,  # the vector this module owns, if its parameters ever were moved into one
    "_w": None,
    "_w_clock": -1,
    "_traces": None,
    "_short_jacobian": None,  # (wrt, ShortCall)
    "_short_gradient": None,  # (cost, ShortCall)
    "_device": "cpu",
    "_precision": "float32",
}


class SampleHint(NamedTuple):
    """What a module knows about its sample shape before anything was traced."""

    shape: tuple[int, ...]
    owner: str  # the block that knows, for messages
    flattens: bool = False  # any sample with that many values will do


class _ModuleMeta(ABCMeta):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        # As soon as a net is put together its parameters are views into its vector, so an array
        # taken from it stays one.
        if "_modules" in module.__dict__:
            module._bind()
        return module

    # help() and editors would otherwise show the signature of __call__ above.
    @property
    def __signature__(cls) -> inspect.Signature:
        for base in cls.__mro__:
            if isinstance(stated := base.__dict__.get("__signature__"), inspect.Signature):
                return stated
            if "__init__" in base.__dict__:
                signature = inspect.signature(base.__dict__["__init__"])
                return signature.replace(parameters=[*signature.parameters.values()][1:])
        raise AttributeError("__signature__")

    # Short calls were settled for the __call__ before.
    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        clock.now += name == "__call__"

    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        clock.now += name == "__call__"


class Module(ModuleTree, _core.NetBase, metaclass=_ModuleMeta):
    """Base class of all layers and nets.

    Submodules and parameters are registered by assigning them to attributes. A subclass defines
    ``forward``, which is traced once for a sample shape: it sees variables without a batch axis
    and without values. A subclass that also defines ``vjp(x, dy)`` (and optionally
    ``jvp(x, dx)``) is opaque: its methods are called with NumPy batches ``(B, d)``.

    Modules are created in evaluation mode; ``gs.fit`` and ``gs.Trainer`` always train with dropout
    active. `train` makes calls and derivatives do so too.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.m0 = nn.Linear(12, 5)
    ...         self.m1 = nn.Linear(5, 2)
    ...     def forward(self, x):
    ...         return self.m1(gs.relu(self.m0(x.view(-1))))
    >>> net = Net()
    >>> net(np.zeros((3, 4))).shape, net(np.zeros((7, 3, 4))).shape
    ((2,), (7, 2))
    >>> net.w.shape
    (77,)
    """

    training: bool
    _learned: tuple[tuple[int, ...], ...] | None
    _own: Array | None
    _w: Array | None
    _w_clock: int
    _traces: dict[Any, _compiled.Compiled] | None
    _device: str
    _precision: str

    def __init__(self) -> None:
        self.__dict__.update(
            _CACHES, training=False, _parameters={}, _modules={}, _stamp=0, _learned=None
        )

    # The flat vector --------------------------------------------------------------------------

    def _bind(self) -> None:
        """Make ``_w`` the vector that holds the parameters, moving them if they are scattered."""
        state = self.__dict__
        if state["_w_clock"] == clock.now:
            return
        named = self._named_parameters()
        owner = type(self).__name__
        dtype = _flat.common_dtype(named, owner)
        if dtype is None:
            w = np.empty(0, np.float32)
        else:
            found = _flat.side_by_side(named)
            if found is None:
                size = sum(p.size for _, p in named)
                own = state["_own"]
                if own is None or own.size != size or own.dtype != dtype:
                    own = state["_own"] = _flat.aligned_empty(size, dtype)
                _flat.move_into(own, list(self.modules()), named)
                found = own
            w = found
        # The same memory keeps the same array object.
        if not _flat.same_memory(state["_w"], w):
            state["_w"] = w
        elif not state["_w"].flags.writeable:  # the parameters were elsewhere, and are back
            state["_w"].flags.writeable = True
        state["_w_clock"] = clock.now

    @property
    def w(self) -> Array:
        """All parameters as one writable vector (P,), in the order of `named_parameters`.

        A view without copy; assigning to it copies values in.
        """
        if self._w_clock != clock.now:
            self._bind()
        assert self._w is not None
        return self._w

    @w.setter
    def w(self, value: Any) -> None:
        w = self.w
        array = cast(as_real(value, "w"), w.dtype, "w")
        if array.shape != w.shape:
            raise ValueError(
                f"[{type(self).__name__}] w has shape {array.shape}, expected {w.shape}"
            )
        w[...] = array

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the parameters (float32 for a net without any)."""
        return self.w.dtype

    # Modes ------------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Switch calls and derivatives to training behaviour (dropout active)."""
        training = as_flag(mode, "mode")
        for module in self.modules():
            if module.training != training:
                module.__dict__["training"] = training
                clock.now += 1
        return self

    def eval(self: M) -> M:
        """Switch calls and derivatives to evaluation behaviour (the default)."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Let training change the parameters of this module, or keep them fixed."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def freeze(self: M) -> M:
        """Keep all parameters of this module fixed in training."""
        return self.requires_grad_(False)

    def unfreeze(self: M) -> M:
        """Let training change the parameters of this module again."""
        return self.requires_grad_(True)

    def to(self: M, device: str, precision: str = "float32") -> M:
        """Choose where calls of this net and its first derivatives are computed.

        The parameters stay in ``net.w``, in the host's memory, and go with every call. Second
        derivatives (but for `ggnvp`) and `backprop` are computed by the CPU, wherever the net is.
        Copies, and nets that were pickled, are on the CPU.

        Parameters
        ----------
        device : str
            "cpu", "cuda", or "cuda:N" for one of several GPUs.
        precision : str
            Of calls, `vjp` and `value_and_grad` on a GPU: "float32" (exact), "tf32", "bf16" or
            "fp16", as in `gradstack.fit`. Results are float32. Other derivatives stay exact.

        Returns
        -------
        Module
            The net itself.

        Raises
        ------
        ValueError
            An unknown device or precision, or one that does not go with the other; a float64 net on
            a GPU.
        RuntimeError
            The CUDA module, the driver or the device is missing; the message says which.

        Examples
        --------
        >>> from gradstack import nn
        >>> nn.Linear(2, 1).to("cpu").device
        'cpu'
        """
        from gradstack._device import check_precision, open_device, require_float32

        check_precision(precision, device)
        open_device(device)
        if self.w.size:
            require_float32(device, self.w.dtype, type(self).__name__)
        self.__dict__["_device"] = device
        self.__dict__["_precision"] = precision
        clock.now += 1
        return self

    @property
    def device(self) -> str:
        """Where calls are computed, see `to`."""
        return self._device

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters by name, under PyTorch's keys."""
        self._bind()
        return {name: np.array(parameter) for name, parameter in state_slots(self)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy parameters from a mapping of names to arrays or tensors.

        Parameters
        ----------
        state_dict : mapping
            Arrays, or anything `gradstack` accepts as one (torch tensors included).
        strict : bool
            Refuse missing and unexpected names.

        Returns
        -------
        LoadResult
            ``missing_keys`` and ``unexpected_keys``; both empty when strict.

        Raises
        ------
        ValueError
            A key is missing, unexpected, or has another shape; the net is left as it was.
        TypeError
            A value is not real.
        """
        return load_state(self, state_dict, strict)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _CACHES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, **_CACHES)
        clock.now += 1
        self._bind()

    def copy(self: M) -> M:
        """An independent copy, parameters included."""
        import copy

        return copy.deepcopy(self)

    def __copy__(self: M) -> M:
        return self.copy()

    # Calling ----------------------------------------------------------------------------------

    def forward(self, *xs: Any) -> Any:
        """Compute the output from per-sample variables; subclasses define it."""
        raise TypeError(f"[{type(self).__name__}] defines no forward")

    def __call__(self, *xs: Any, out: Any = None) -> Any:
        """Run the net on one sample or a batch.

        Parameters
        ----------
        *xs : array_like
            One array per argument of ``forward``: one sample, or a batch with one extra leading
            axis. Any real dtype; cast to the net's.
        out : numpy.ndarray or tuple of them, optional
            Where to put the result: its exact shape and dtype, C-contiguous. It is returned.

        Returns
        -------
        numpy.ndarray or tuple of them
            Without a batch axis for a single sample. `DeviceArray` where an input lies on the
            net's device.
        """
        # Calls like those before do not come here: see _offer_short_call.
        if (var := find_var(xs)) is None:
            return _compiled.call(self, xs, out=out)
        if out is not None:
            raise TypeError("out= is for calls on arrays, not inside a traced forward")
        return self._enter(var._tracer, *xs)

    def _enter(self, tracer: Tracer, *xs: Any) -> Any:
        """Record this module in a graph."""
        if callable(getattr(type(self), "vjp", None)):
            from gradstack.nn.python import enter_opaque

            return enter_opaque(self, tracer, *xs)
        return self.forward(*xs)

    def _sample_hint(self) -> SampleHint | None:
        """What is known of the sample shape without tracing."""
        return None

    def trace(self, *sample_shapes: Any) -> Any:
        """Fix the sample shape and return the traced graph.

        Parameters
        ----------
        *sample_shapes : int or tuple of int
            Shape of one sample per argument of ``forward``, without batch axis. None are needed
            when the net knows its shape already.

        Returns
        -------
        Graph
            The block diagram: ``stages()``, ``parameters()``, ``n_params``.

        Examples
        --------
        >>> from gradstack import nn
        >>> graph = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).trace()
        >>> [stage["name"] for stage in graph.stages()]
        ['x', '0', '1']
        """
        shapes = tuple(as_shape(s, "sample_shape") for s in sample_shapes)
        return _compiled.trace_net(self, shapes or None).graph

    # Text -------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The arguments shown in the module's text form."""
        return ""

    def __repr__(self) -> str:
        lines = []
        for name, child in self._modules.items():
            lines.append(f"({name}): " + repr(child).replace("\n", "\n  "))
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        body = "\n  ".join([extra, *lines] if extra else lines)
        return f"{type(self).__name__}(\n  {body}\n)"
