"""One contiguous vector for all parameters of a net.

A `Parameter` is an array that knows where it lives. A module that is asked for its vector collects
its parameters; when they already lie side by side in one vector (its own, or that of a larger net),
the answer is a view of it, otherwise they are moved into a vector of their own.

Moving replaces the `Parameter` objects. An array that somebody still holds from before is made
read-only, so that a write which no net would see raises instead of being lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gradstack import _core

if TYPE_CHECKING:
    from gradstack.nn.module import Module

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_ALIGNMENT = 64  # bytes: one cache line, one AVX-512 vector


# Counts changes of structure anywhere: what was cached at the same time is still right. The core
# looks at it in every short call.
clock = _core.clock


class Parameter(np.ndarray[Any, np.dtype[Any]]):
    """A trainable array; assigning one to an attribute of a module registers it.

    Parameters
    ----------
    data : array_like
        Initial values, copied. float32 and float64 keep their dtype, everything else real becomes
        float32.
    requires_grad : bool
        False keeps the values fixed in training.

    Notes
    -----
    The array of a registered parameter is a view into the net's vector ``net.w``. Arithmetic gives
    plain arrays. Assigning the same Parameter to two modules ties them.
    """

    # Class-level defaults are what views and copies of a parameter see: they are plain data.
    _leaf = False
    _requires_grad = True
    _vector: npt.NDArray[Any] | None = None
    _offset = 0

    def __new__(cls, data: Any, requires_grad: bool = True) -> Parameter:
        from gradstack._arrays import as_real

        array = as_real(data, "data")
        dtype = array.dtype if array.dtype in FLOATS else FLOATS[0]
        return cls._wrap(np.array(array, dtype=dtype, order="C"), requires_grad)

    @classmethod
    def _wrap(cls, array: npt.NDArray[Any], requires_grad: bool) -> Parameter:
        self = array.view(cls)
        self._leaf = True
        self._requires_grad = bool(requires_grad)
        return self

    def numel(self) -> int:
        """Number of values, as PyTorch calls it."""
        return self.size

    @property
    def requires_grad(self) -> bool:
        """Whether training changes the values."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if bool(value) != self._requires_grad:
            self._requires_grad = bool(value)
            clock.now += 1

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any
    ) -> Any:
        inputs = tuple(np.asarray(i) if isinstance(i, Parameter) else i for i in inputs)
        if out is not None:
            kwargs["out"] = tuple(np.asarray(o) if isinstance(o, Parameter) else o for o in out)
        return getattr(ufunc, method)(*inputs, **kwargs)

    def __reduce__(self) -> Any:
        plain = np.array(self)
        return (_restore, (plain, self._requires_grad)) if self._leaf else plain.__reduce__()

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Any:
        copied: Any = np.array(self)
        if self._leaf:
            copied = Parameter._wrap(copied, self._requires_grad)
        if memo is not None:
            memo[id(self)] = copied
        return copied


def _restore(array: npt.NDArray[Any], requires_grad: bool) -> Parameter:
    # An unpickled array may not own writable memory.
    return Parameter._wrap(np.array(array), requires_grad)


def aligned_empty(n: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An uninitialised vector that starts on a cache line."""
    raw = np.empty(n * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + n * dtype.itemsize].view(dtype)


def common_dtype(named: Sequence[tuple[str, Parameter]], owner: str) -> np.dtype[Any] | None:
    """The dtype of all parameters, None when there are none."""
    if not named:
        return None
    first_name, first = named[0]
    for name, parameter in named:
        if parameter.dtype != first.dtype:
            raise ValueError(
                f"[{owner}] {first_name!r} is {first.dtype} and {name!r} is {parameter.dtype}: "
                "all parameters of a net have one dtype; pass the same dtype= to every layer"
            )
    return first.dtype


def side_by_side(named: Sequence[tuple[str, Parameter]]) -> npt.NDArray[Any] | None:
    """The part of a vector that holds exactly these parameters in this order, if there is one."""
    vector = named[0][1]._vector
    if vector is None or not vector.flags.writeable:  # see move_into
        return None
    begin = end = named[0][1]._offset
    for _, parameter in named:
        if parameter._vector is not vector or parameter._offset != end:
            return None
        end += parameter.size
    return vector if end - begin == vector.size else vector[begin:end]


def same_memory(a: npt.NDArray[Any] | None, b: npt.NDArray[Any]) -> bool:
    """Whether two vectors are the same values in the same place."""
    return (
        a is not None
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def move_into(
    vector: npt.NDArray[Any], modules: Sequence[Module], named: Sequence[tuple[str, Parameter]]
) -> None:
    """Copy all parameters into `vector` and make the modules refer to views of it."""
    # Values first: an old place may overlap a new one.
    values = np.concatenate([np.asarray(p).reshape(-1) for _, p in named])
    vector.flags.writeable = True
    vector[...] = values
    left: dict[int, npt.NDArray[Any]] = {}
    replacement: dict[int, Parameter] = {}
    offset = 0
    for _, old in named:
        new = Parameter._wrap(
            vector[offset : offset + old.size].reshape(old.shape), old._requires_grad
        )
        new._vector, new._offset = vector, offset
        offset += old.size
        replacement[id(old)] = new
        source = old._vector
        if source is not None and source is not vector:
            left[id(source)] = source
    for module in modules:
        slots = module._parameters
        for key, parameter in slots.items():
            if parameter is not None:
                slots[key] = replacement[id(parameter)]
    for _, old in named:
        old.flags.writeable = False
    # A vector that lost a parameter is no net's any more: what is still in it moves out when asked.
    for source in left.values():
        source.flags.writeable = False
    for module in modules:
        held = module._w
        if held is not None and not np.may_share_memory(held, vector):
            held.flags.writeable = False
    clock.now += 1


def frozen_entries(net: Module) -> npt.NDArray[np.int64]:
    """Indices into w of the parameters that training leaves alone."""
    ranges = []
    offset = 0
    for parameter in net.parameters():
        if not parameter.requires_grad:
            ranges.append(np.arange(offset, offset + parameter.size))
        offset += parameter.size
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)
