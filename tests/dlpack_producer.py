"""A library that lends arrays through DLPack, written from the specification with ctypes."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from typing import Any

import numpy as np

CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


class DLDevice(c.Structure):
    _fields_ = [("device_type", c.c_int32), ("device_id", c.c_int32)]


class DLDataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class DLTensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device", DLDevice),
        ("ndim", c.c_int32),
        ("dtype", DLDataType),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


DELETER = c.CFUNCTYPE(None, c.c_void_p)


class DLManagedTensor(c.Structure):
    _fields_ = [
        ("dl_tensor", DLTensor),
        ("manager_ctx", c.c_void_p),
        ("deleter", DELETER),
    ]


class DLManagedTensorVersioned(c.Structure):
    _fields_ = [
        ("major", c.c_uint32),
        ("minor", c.c_uint32),
        ("manager_ctx", c.c_void_p),
        ("deleter", DELETER),
        ("flags", c.c_uint64),
        ("dl_tensor", DLTensor),
    ]


_api = c.pythonapi
_api.PyCapsule_New.restype = c.py_object
_api.PyCapsule_New.argtypes = [c.c_void_p, c.c_char_p, c.c_void_p]
_api.PyCapsule_GetName.restype = c.c_char_p
_api.PyCapsule_GetName.argtypes = [c.py_object]
_api.PyCapsule_GetPointer.restype = c.c_void_p
_api.PyCapsule_GetPointer.argtypes = [c.py_object, c.c_char_p]
_api.PyCapsule_SetName.argtypes = [c.py_object, c.c_char_p]


def capsule_name(capsule: Any) -> str:
    return _api.PyCapsule_GetName(capsule).decode()


class Producer:
    """Lends `array` as memory of a device."""

    def __init__(
        self,
        array: Any,
        device: tuple[int, int] = (12, 0),
        *,
        version: int | None = 1,
        read_only: bool = False,
        offset: int = 0,
        explicit_strides: bool = True,
        dtype: tuple[int, int, int] | None = None,
        when_asked: Callable[[], None] = lambda: None,
    ) -> None:
        self.array = array
        self.device = device
        self.version = version  # None: from before 1.0, knows no max_version
        self.read_only = read_only
        self.offset = offset
        self.explicit_strides = explicit_strides
        self.dtype = dtype
        self.when_asked = when_asked
        self.streams: list[Any] = []
        self.capsules: list[Any] = []
        self.deleted = 0
        self._kept: list[Any] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self.version is None and options:
            raise TypeError(f"unexpected arguments {options}")
        self.streams.append(stream)
        self.when_asked()
        a = self.array
        code, bits, lanes = self.dtype or (CODES[a.dtype.kind], 8 * a.itemsize, 1)
        shape = (c.c_int64 * a.ndim)(*a.shape)
        strides = (c.c_int64 * a.ndim)(*(s // a.itemsize for s in a.strides))
        tensor = DLTensor(
            a.ctypes.data - self.offset,
            DLDevice(*self.device),
            a.ndim,
            DLDataType(code, bits, lanes),
            shape,
            strides if self.explicit_strides else None,
            self.offset,
        )

        def delete(_: int) -> None:
            self.deleted += 1

        deleter = DELETER(delete)
        if self.version is None:
            managed: Any = DLManagedTensor(tensor, None, deleter)
            name = b"dltensor"
        else:
            managed = DLManagedTensorVersioned(
                self.version, 0, None, deleter, int(self.read_only), tensor
            )
            name = b"dltensor_versioned"
        self._kept += [shape, strides, deleter, managed, name]
        capsule = _api.PyCapsule_New(c.addressof(managed), name, None)
        self.capsules.append(capsule)
        return capsule


def taken(capsule: Any, *, versioned: bool) -> tuple[np.ndarray, Any, Callable[[], None]]:
    """What a consumer does: a view of the memory, the tensor, and how to give it back."""
    name = b"dltensor_versioned" if versioned else b"dltensor"
    kind = DLManagedTensorVersioned if versioned else DLManagedTensor
    address = _api.PyCapsule_GetPointer(capsule, name)
    managed = c.cast(address, c.POINTER(kind)).contents
    used = b"used_" + name
    _api.PyCapsule_SetName(capsule, used)
    tensor = managed.dl_tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    size = int(np.prod(shape))
    view = np.ctypeslib.as_array(
        c.cast(tensor.data + tensor.byte_offset, c.POINTER(c.c_float)), (size,)
    )

    def give_back(kept: Any = used) -> None:
        managed.deleter(address)

    return view.reshape(shape), managed, give_back
