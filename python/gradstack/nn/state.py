"""State dictionaries: a net's parameters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_real, cast
from gradstack._flat import Parameter

if TYPE_CHECKING:
    from gradstack.nn.module import Module

Array = npt.NDArray[Any]


class LoadResult(NamedTuple):
    """What a non-strict `load_state_dict` left out."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def state_slots(module: Module, prefix: str = "") -> list[tuple[str, Parameter]]:
    """Every (name, parameter), those of shared modules under each of their names."""
    slots = [(prefix + n, p) for n, p in module._parameters.items() if p is not None]
    for name, child in module._modules.items():
        if child is not None:
            slots += state_slots(child, f"{prefix}{name}.")
    return slots


def load_state(module: Module, state_dict: Any, strict: bool) -> LoadResult:
    """Check all of `state_dict` against the module, then copy it in."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    module._bind()
    slots = dict(state_slots(module))
    missing = [name for name in slots if name not in state_dict]
    unexpected = [str(name) for name in state_dict if name not in slots]
    owner = type(module).__name__
    if strict and (missing or unexpected):
        problems = [f"missing key {n!r}" for n in missing]
        problems += [f"unexpected key {n!r}" for n in unexpected]
        raise ValueError(f"[{owner}] load_state_dict: {', '.join(problems)}")
    loaded: list[tuple[Parameter, Array]] = []
    first: dict[int, tuple[str, Array]] = {}
    for name, parameter in slots.items():
        if name not in state_dict:
            continue
        array = cast(as_real(state_dict[name], repr(name)), parameter.dtype, repr(name))
        if array.shape != parameter.shape:
            raise ValueError(
                f"[{owner}] load_state_dict: {name!r} has shape {array.shape}, expected "
                f"{parameter.shape}"
            )
        other = first.setdefault(id(parameter), (name, array))
        if not np.array_equal(other[1], array, equal_nan=True):
            raise ValueError(
                f"[{owner}] load_state_dict: {other[0]!r} and {name!r} are one parameter but "
                "have different values"
            )
        # What lies in the net itself may be overwritten before its turn comes.
        inside = np.may_share_memory(array, module.w)
        loaded.append((parameter, array.copy() if inside else array))
    for parameter, array in loaded:
        parameter[...] = array
    return LoadResult(missing, unexpected)
