"""The safetensors file format, read and written with NumPy alone.

A file is eight bytes (the header's length, little-endian), a JSON header and the tensors' bytes.
The header maps each name to its dtype, shape and byte range; ``__metadata__`` maps strings to
strings. The ranges cover the data exactly once, so nothing hides between or behind them.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack._files import atomic_file

_Array = npt.NDArray[Any]

# The format's own limit: a longer header is refused before it is read.
_MAX_HEADER = 100_000_000
# NumPy before 2.0 stops at 32 axes.
_MAX_AXES = 32
_METADATA = "__metadata__"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16: read as its bits, then widened to float32
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, _Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to a safetensors file, atomically.

    Parameters
    ----------
    path : path-like
        The file; an existing one is replaced once the new one is complete on the disk.
    tensors : mapping of str to array
        float16/32/64, signed and unsigned integers, bool; any strides and byte order.
    metadata : mapping of str to str, optional
        Kept in the header.

    Raises
    ------
    TypeError
        A name or a metadata entry is not a string, or a dtype has no place in the format.
    ValueError
        A tensor is called ``__metadata__``, or the header grows past the format's 100 MB.
    """
    arrays = {}
    for name, value in tensors.items():
        _check_name(name, "tensor name")
        array = np.asarray(value, order="C")
        if array.dtype.newbyteorder("<") not in _NAMES:
            raise TypeError(f"tensor {name!r} has dtype {array.dtype}, which safetensors lacks")
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), copy=False)
    header: dict[str, Any] = {}
    if metadata:
        for key, text in metadata.items():
            _check_text(key, "metadata key")
            _check_text(text, f"metadata {key!r}")
        header[_METADATA] = dict(metadata)
    # Widest items first keeps every tensor aligned for readers that map the file.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    begin = 0
    for name in order:
        array = arrays[name]
        end = begin + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > _MAX_HEADER:
        raise ValueError(f"the header has {len(head)} bytes, the format allows {_MAX_HEADER}")
    with atomic_file(path) as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in order:
            if arrays[name].size:
                file.write(arrays[name].reshape(-1).view(np.uint8).data)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, _Array], dict[str, str]]:
    """Read a safetensors file.

    Everything the header claims is checked against the file's length before any array is made, so
    a damaged or hostile file costs an error, not memory.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    tensors : dict of str to array
        In the order of their bytes in the file; each is its own writable array. bfloat16 comes as
        float32, every other dtype as it is.
    metadata : dict of str to str

    Raises
    ------
    ValueError
        The file is not a safetensors file, is damaged, or holds a dtype NumPy cannot represent.
    OSError
        The file cannot be opened or read.
    """
    with open(os.fspath(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            entries, metadata = _read_header(file, size)
            tensors = {entry.name: _read_tensor(file, entry) for entry in entries}
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    return tensors, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read only the metadata of a safetensors file; raises as `read` does."""
    with open(os.fspath(path), "rb") as file:
        try:
            return _read_header(file, os.fstat(file.fileno()).st_size)[1]
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}: {error}") from None


def _read_header(file: BinaryIO, size: int) -> tuple[list[_Entry], dict[str, str]]:
    """Parse and check the header of a file of `size` bytes; leaves `file` at the data."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("not a safetensors file: the header's length does not fit the file")
    text = file.read(length)
    if len(text) != length or not text.startswith(b"{"):
        raise ValueError("not a safetensors file: the header is not a JSON object")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("damaged header: nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("damaged header: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged header: {error}") from None
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict):
        raise ValueError("damaged header: __metadata__ is not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ValueError(f"damaged header: metadata {key!r} is not a string")
        _check_encodable(key, "metadata key")
        _check_encodable(value, f"metadata {key!r}")
    entries = sorted(
        (_parse_entry(name, entry) for name, entry in header.items()),
        key=lambda entry: (entry.begin, entry.end),
    )
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise ValueError(
                f"tensor {entry.name!r} starts at byte {entry.begin} of the data, "
                f"expected {position}: tensors overlap or leave a hole"
            )
        position = entry.end
    if position != size - 8 - length:
        raise ValueError(
            f"the tensors need {position} bytes of data, the file has {size - 8 - length}"
        )
    return entries, metadata


def _parse_entry(name: str, entry: object) -> _Entry:
    _check_encodable(name, "tensor name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {dtype!r}, expected one of {list(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_AXES:
        raise ValueError(f"tensor {name!r}: shape is not a list of at most {_MAX_AXES} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r}: data_offsets is not a pair of byte positions")
    itemsize = np.dtype(_DTYPES[dtype]).itemsize
    # Axes beside an empty one still have to be addressable for NumPy to accept the shape.
    if math.prod(max(extent, 1) for extent in shape) * itemsize >= 2**63:
        raise ValueError(f"tensor {name!r}: shape {shape} is larger than any memory")
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise ValueError(
            f"tensor {name!r} of shape {shape} and dtype {dtype} needs "
            f"{math.prod(shape) * itemsize} bytes, its data_offsets span {end - begin}"
        )
    return _Entry(name, dtype, tuple(shape), begin, end)


def _read_tensor(file: BinaryIO, entry: _Entry) -> _Array:
    array: _Array = np.empty(entry.shape, _DTYPES[entry.dtype])
    if array.size:
        data = array.reshape(-1).view(np.uint8).data
        while data:
            count = file.readinto(data)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"tensor {entry.name!r}: the file ended early")
            data = data[count:]
    if entry.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if entry.dtype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise ValueError(f"tensor {entry.name!r}: a bool that is neither 0 nor 1")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("damaged header: a name occurs twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"damaged header: {text} is not JSON")


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected str, got {type(value).__name__}")
    _check_encodable(value, what)


def _check_name(value: object, what: str) -> None:
    _check_text(value, what)
    if value == _METADATA:
        raise ValueError(f"{what}: {_METADATA!r} is reserved by the format")


def _check_encodable(value: str, what: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} is not valid Unicode") from None
