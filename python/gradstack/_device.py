"""Devices: the CPU, and GPUs by way of the extension ``gradstack._cuda``, loaded on first use."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstack import _core
from gradstack._arrays import on_host

if TYPE_CHECKING:
    from types import ModuleType

DeviceArray = _core.device.DeviceArray
_HOST = (1, 3, 11, 13)  # DLPack's kinds of memory that NumPy reads
_FLOAT32 = np.dtype(np.float32)
_PRECISIONS = ("float32", "tf32", "bf16", "fp16")
_opened: dict[int, Any] = {}


class DeviceMissingError(RuntimeError):
    """A device was asked for that this installation or this machine does not have."""


def device_index(device: Any) -> int | None:
    """The number of a GPU, or None for the CPU.

    Raises
    ------
    ValueError
        `device` is neither "cpu", "cuda" nor "cuda:N".
    """
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if found is None:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    return int(found[1] or 0)


def _load() -> ModuleType:
    try:
        cuda = importlib.import_module("gradstack._cuda")
    except ModuleNotFoundError:
        raise DeviceMissingError(
            "device 'cuda': this installation of gradstack has no CUDA module; build it with "
            "pip install . -C cmake.define.GRADSTACK_CUDA=ON (needs nvcc)"
        ) from None
    except ImportError as error:
        raise DeviceMissingError(
            f"device 'cuda': the CUDA module does not load ({error}); its libraries come with "
            "pip install 'gradstack[cuda]'"
        ) from error
    if cuda.__version__ != _core.__version__:
        raise DeviceMissingError(
            f"device 'cuda': the CUDA module is of version {cuda.__version__}, gradstack of "
            f"{_core.__version__}; build both together"
        )
    return cuda


def open_device(device: str) -> Any:
    """The device of that name as the core takes it; None for the CPU.

    Raises
    ------
    DeviceMissingError
        The CUDA module, the driver, or the device is missing; the message says which.
    """
    index = device_index(device)
    if index is None:
        return None
    if index not in _opened:
        cuda = _load()
        count, driver, reason = cuda.devices()
        if not driver:
            raise DeviceMissingError(
                "device 'cuda': there is no NVIDIA driver on this machine, or it is not visible "
                "here (containers need --gpus)"
            )
        if not count:
            raise DeviceMissingError(
                f"device 'cuda': the driver (CUDA {driver // 1000}.{driver % 1000 // 10}) offers "
                f"no device: {reason}"
            )
        if index >= count:
            raise DeviceMissingError(
                f"device {device!r}: there is no such device, this machine has {count}"
            )
        _opened[index] = _core.device.Device(cuda.open(index))
    return _opened[index]


def check_precision(precision: Any, device: str) -> str:
    """A precision that the device offers.

    Raises
    ------
    ValueError
        `precision` is none of "float32", "tf32", "bf16" and "fp16", or it is not "float32" and the
        device is the CPU.
    """
    if not isinstance(precision, str) or precision not in _PRECISIONS:
        raise ValueError(
            f"precision must be 'float32', 'tf32', 'bf16' or 'fp16', got {precision!r}"
        )
    if device_index(device) is None and precision != "float32":
        raise ValueError(
            f"precision {precision!r} is for device='cuda'; the CPU computes in the net's dtype "
            "(precision='float32')"
        )
    return precision


def require_float32(device: str, dtype: np.dtype[Any], owner: str) -> None:
    """Refuse dtypes that devices do not compute in."""
    if device != "cpu" and dtype != _FLOAT32:
        raise ValueError(f"[{owner}] device {device!r} computes in float32, the net is of {dtype}")


def place(value: Any, device: str, name: str, *, writable: bool = False) -> Any:
    """An argument for a call on `device`: arrays in its memory are lent, others are as they are.

    Takes whatever has DLPack's protocol (CuPy arrays, CUDA tensors of PyTorch, `DeviceArray`), on
    the stream of our queue: the producer makes it wait for what is still being computed.

    Raises
    ------
    ValueError
        The array lies on another device, is not contiguous, or is read-only and to be written to.
    TypeError
        Its dtype is not float32 (int64 for class labels).
    """
    if type(value) is np.ndarray or device == "cpu":
        return value
    where = getattr(value, "__dlpack_device__", None)
    if where is None or int(where()[0]) in _HOST:
        return value
    # A torch tensor that requires gradients is not lent.
    detach = getattr(value, "detach", None)
    return _core.device.lend(
        open_device(device), value if detach is None else detach(), name, writable
    )


def place_all(value: Any, device: str, name: str) -> Any:
    """`place` for one array or a tuple of them."""
    if not isinstance(value, tuple):
        return place(value, device, name)
    return tuple(place(v, device, f"{name}[{i}]") for i, v in enumerate(value))


def place_on_host(value: Any, device: str, name: str) -> Any:
    """The same for what the host looks at: a copy of what lies on the device."""
    return on_host(place(value, device, name))
