"""Nets in safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradstack import _safetensors

if TYPE_CHECKING:
    from gradstack.nn import Module

__all__ = ["load", "read_metadata", "save"]

_KEY = "gradstack"


def save(
    net: Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Save a net: its parameters and, when it has one that can be written down, its architecture.

    The file is written atomically and is a plain safetensors file with the names of
    ``net.named_parameters()``; others read the tensors, `load` also rebuilds the net. A net with
    blocks written in Python is saved without an architecture and needs ``load(path, net=...)``.

    Parameters
    ----------
    net : Module
        Any net. One that is neither a Sequential nor a layer has to know its sample shape: call,
        train or trace it first.
    path : path-like
        The file, usually ``*.safetensors``; an existing one is replaced.
    metadata : mapping of str to str, optional
        Kept in the file's header, see `read_metadata`. The key ``"gradstack"`` is taken.

    Raises
    ------
    ValueError
        The sample shape is not known, or a metadata key is taken.
    TypeError
        A metadata key or value is not a string.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gs.save(net, "net.safetensors")  # doctest: +SKIP
    >>> gs.load("net.safetensors")[0]  # doctest: +SKIP
    Linear(in_features=4, out_features=8, bias=True)
    """
    from gradstack._architecture import OpaqueError, describe
    from gradstack.functional import require_net

    require_net(net)
    extra = dict(metadata or {})
    if _KEY in extra:
        raise ValueError(f"metadata key {_KEY!r} is taken by the architecture")
    try:
        architecture = describe(net)
    except OpaqueError as error:
        architecture = {"missing": str(error)}
    header = {_KEY: json.dumps(architecture, separators=(",", ":")), **extra}
    tensors = {name: np.asarray(array) for name, array in net.named_parameters()}
    _safetensors.write(path, tensors, header)


def load(path: str | os.PathLike[str], net: Module | None = None) -> Module:
    """Load a net.

    Parameters
    ----------
    path : path-like
        A safetensors file: one written by `save`, or with `net` given any other.
    net : Module, optional
        The net to load into, strictly: the file has exactly its parameters, by name and shape
        (also under the names of ``state_dict()`` where parameters are shared). Values are cast to
        the net's dtype.

    Returns
    -------
    Module
        `net` itself, or the net that was saved: a Sequential comes back as a Sequential, a subclass
        as a `GraphModule` with the same parameter names. Modules are in evaluation mode.

    Raises
    ------
    ValueError
        The file is damaged, holds no architecture (and no `net` is given), or a parameter is
        missing, unexpected or of another shape; `net` is left as it was.
    FileNotFoundError
        There is no such file.
    """
    tensors, metadata = _safetensors.read(path)
    try:
        if net is None:
            net = _build(metadata, tensors)
        _fill(net, tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
    return net


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return what was given to `save` as metadata, without reading the tensors.

    Parameters
    ----------
    path : path-like
        A safetensors file, by whomever.

    Returns
    -------
    dict of str to str

    Raises
    ------
    ValueError
        The file is not a safetensors file or is damaged.
    """
    metadata = _safetensors.read_metadata(path)
    metadata.pop(_KEY, None)
    return metadata


def _build(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> Module:
    from gradstack._architecture import build

    if _KEY not in metadata:
        raise ValueError(
            "holds tensors but no architecture: build the net and use gs.load(path, net=net)"
        )
    try:
        architecture = json.loads(metadata[_KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"damaged architecture: {error}") from None
    if isinstance(architecture, dict) and "missing" in architecture:
        raise ValueError(
            f"holds no architecture, because {architecture['missing']}: build the net and use "
            "gs.load(path, net=net)"
        )
    return build(architecture, {name: array.shape for name, array in tensors.items()})


def _fill(net: Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy all tensors or none; shared parameters may come under one of their names or all."""
    from gradstack.nn.state import state_slots

    state = dict(tensors)
    first: dict[int, str] = {}
    for name, parameter in state_slots(net):
        canonical = first.setdefault(id(parameter), name)
        if name not in state and canonical in state:
            state[name] = state[canonical]
    net.load_state_dict(state, strict=True)
