"""What users pass becomes an array here, and nowhere else.

Accepted is anything real that NumPy can view: arrays, sequences, torch CPU tensors and other DLPack
exporters, pandas and Polars objects, memory maps. Nothing is copied that already has the wanted
dtype and layout.
"""

from __future__ import annotations

import math
from typing import Any
from typing import cast as cast_type

import numpy as np
import numpy.typing as npt

from gradstack import _core

Array = npt.NDArray[Any]

# An argument in a device's memory, as `_device.place` makes them for calls on that device.
LentArray = _core.device.LentArray

_CHUNK = 1 << 18  # values per piece of a scan: stays in cache, needs no memory worth speaking of


def as_real(value: Any, name: str) -> Array:
    """View `value` as a real array of any shape; no copy when NumPy needs none.

    Raises
    ------
    TypeError
        `value` is complex, text, of objects, or nothing that NumPy understands.
    ValueError
        `value` is ragged or has masked entries.
    """
    array = value if type(value) is np.ndarray else _to_numpy(value, name)
    if array.dtype.kind == "O" and hasattr(value, "dtypes") and not _hint(value):
        array = _numbers_of(value, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers{_hint(value)}")
    return array


def _numbers_of(frame: Any, name: str) -> Array:
    """A frame of several numeric column types, or a series of numbers that may be missing."""
    try:
        return np.asarray(frame, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} holds something else than real numbers, or misses values: {error}"
        ) from error


def _to_numpy(value: Any, name: str) -> Array:
    if value is None:
        raise TypeError(f"{name} is None, expected an array")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries: fill them or drop those samples")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, LentArray):
        return cast_type(Array, value)  # has what is asked of an array before the core reads it
    if isinstance(value, _core.device.DeviceArray):
        raise TypeError(
            f"{name} lies on {value.device}, this call takes arrays of the host: pass "
            f"{name}.numpy(); net(x), vjp and value_and_grad of a net on that device take it"
        )
    # A torch tensor that requires gradients refuses every view of itself.
    detach = getattr(value, "detach", None)
    if detach is not None and hasattr(value, "__dlpack__"):
        value = detach()
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (TypeError, BufferError, RuntimeError) as error:
        raise TypeError(
            f"{name}: cannot view a {type(value).__name__} as a NumPy array: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} is not a regular array: {error}") from error


def _hint(value: Any) -> str:
    """Which column of a data frame is to blame."""
    if hasattr(value, "toarray"):
        return f" (a sparse {type(value).__name__}: use its toarray())"
    dtypes = getattr(value, "dtypes", None)
    columns = getattr(value, "columns", None)
    if dtypes is None or columns is None:
        return ""
    for column, dtype in zip(columns, dtypes, strict=False):
        text = str(dtype).lower()
        if not text.startswith(("float", "int", "uint", "bool")):
            return f" (column {column!r} has dtype {dtype})"
    return ""


def cast(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """`array` as `dtype`, itself when it is that already.

    Raises
    ------
    ValueError
        A finite value is too large for `dtype`.
    """
    if array.dtype == dtype and array.dtype.isnative:
        return array
    if not _may_overflow(array.dtype, dtype):
        return array.astype(dtype)
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if not np.isfinite(result).all():
        lost = np.isinf(result) & np.isfinite(array)
        if lost.any():
            index = np.unravel_index(int(lost.argmax()), lost.shape)
            where = f"[{', '.join(map(str, index))}]" if index else ""
            raise ValueError(
                f"{name}{where} = {array[index]} is too large for {dtype}; "
                "use a net with dtype=np.float64 or scale the data"
            )
    return result


def _may_overflow(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    return source.kind == "f" and source.itemsize > target.itemsize


def as_dtype(value: Any, dtype: np.dtype[Any], name: str) -> Array:
    """`value` as a C-contiguous array of `dtype`; no copy when it is one."""
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.c_contiguous:
        return value
    if isinstance(value, LentArray):
        if value.dtype != dtype:
            raise TypeError(f"{name} has dtype {value.dtype} on the device, expected {dtype}")
        return cast_type(Array, value)
    array = cast(as_real(value, name), dtype, name)
    # ascontiguousarray alone would turn a scalar into a vector.
    return np.ascontiguousarray(array).reshape(array.shape)


def as_vector(value: Any, n: int, dtype: np.dtype[Any], name: str) -> Array:
    """`value` as a contiguous vector of `n` values of `dtype`."""
    array = as_dtype(value, dtype, name)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({n},)")
    return array


def as_number(
    value: Any, name: str, *, low: float | None = None, high: float | None = None
) -> float:
    """`value` as a finite float within [low, high].

    Raises
    ------
    TypeError
        `value` is not a real number.
    ValueError
        `value` is NaN, infinite or outside the bounds.
    """
    if isinstance(value, (str, bytes, complex)) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a real number, got {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if (low is not None and number < low) or (high is not None and number > high):
        bounds = f"at least {low:g}" if high is None else f"in [{low or 0:g}, {high:g}]"
        raise ValueError(f"{name} must be {bounds}, got {number:g}")
    return number


def as_count(value: Any, name: str, *, low: int = 1) -> int:
    """`value` as an int of at least `low` that fits in 64 bits with a sign."""
    try:
        count = value.__index__()
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{name} must be an integer, got {value!r}") from error
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if count < low:
        raise ValueError(f"{name} must be at least {low}, got {count}")
    if count >= 1 << 63:
        raise ValueError(f"{name} must be less than 2**63, got {count}")
    return int(count)


def as_flag(value: Any, name: str) -> bool:
    """`value` as a bool; text such as "no" would count as true."""
    if isinstance(value, (bool, np.bool_)) or (
        isinstance(value, (int, np.integer)) and value in (0, 1)
    ):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def threads_of(num_threads: int | None) -> int:
    """`num_threads` as the core takes it: 0 is automatic. It starts no more than make sense."""
    return 0 if num_threads is None else min(as_count(num_threads, "num_threads"), 1 << 16)


def as_shape(value: Any, name: str) -> tuple[int, ...]:
    """`value` (an int or a sequence of ints) as a shape."""
    if hasattr(value, "__index__"):
        return (as_count(value, name),)
    try:
        return tuple(as_count(n, name) for n in value)
    except TypeError as error:
        raise TypeError(f"{name} must be a shape such as (784,), got {value!r}") from error


def on_host(value: Any) -> Any:
    """A copy of what lies in a device's memory; anything else as it is."""
    return value.numpy() if isinstance(value, LentArray) else value


def first_non_finite(array: Array, dtype: np.dtype[Any] | None = None) -> int | None:
    """The first row that holds NaN or infinity (or, given `dtype`, a value too large for it)."""
    if array.dtype.kind != "f" or array.size == 0:
        return None
    largest = (
        np.finfo(dtype).max if dtype is not None and _may_overflow(array.dtype, dtype) else None
    )
    rows = array.shape[0]
    step = max(1, _CHUNK // max(1, array.size // rows))
    for begin in range(0, rows, step):
        piece = array[begin : begin + step]
        good = np.isfinite(piece)
        if largest is not None:
            good &= np.abs(piece) <= largest
        if not good.all():
            return begin + int(np.argmin(good.reshape(good.shape[0], -1).all(axis=1)))
    return None


def require_finite(array: Array, name: str, dtype: np.dtype[Any] | None = None) -> None:
    """Refuse NaN and infinity, naming the row."""
    row = first_non_finite(array, dtype)
    if row is None:
        return
    values = np.asarray(array[row], np.float64).reshape(-1)
    limit = np.finfo(dtype).max if dtype is not None else np.inf
    column = int(np.argmin(np.isfinite(values) & (np.abs(values) <= limit)))
    where = f"row {row}" if array.ndim == 1 else f"row {row}, column {column}"
    bad = values[column]
    what = "not finite" if not np.isfinite(bad) else f"too large for {dtype}"
    raise ValueError(f"{name} has {bad} in {where}: {what}")


def is_memory_map(array: Any) -> bool:
    """Whether `array` is a memory map or a view of one: scanning it would read the whole file."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    import mmap

    return isinstance(array, mmap.mmap)


def rows_of(array: Array) -> Array:
    """`array` of shape (N, ...) as (N, d): a view whenever strides allow."""
    if array.ndim == 2:
        return array
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))
