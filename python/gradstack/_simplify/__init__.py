"""`simplify`: the same function with fewer blocks and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_flag, as_number, as_real
from gradstack._compiled import Compiled, trace_net
from gradstack.nn.module import Module

__all__ = ["simplify"]

Array = npt.NDArray[Any]

_PROBES = 256  # random samples of the proof when no data are given


def simplify(
    net: Module,
    x: Any = None,
    tol: float | None = None,
    *,
    standardise: Any = None,
    low_rank: bool = False,
) -> Module:
    """A net that computes the same function with fewer blocks and units.

    Linear blocks with nothing between them become one: W2 (W1 z + b1) + b2 is linear in z, which is
    why nets need nonlinearities. So do sums, differences, concatenations and slices of linear
    blocks of one variable, and a residual around a linear block. Dropout (which does nothing in
    evaluation), identities and views that change nothing go; scaling by numbers goes into the
    linear block before or behind it. Units whose outgoing weights are all zero go, and units whose
    value is constant, because their incoming weights are zero: their contribution goes into the
    next biases. The result is compared with the net on data.

    Parameters
    ----------
    net : Module
        A net that knows its sample shape; it is left as it is.
    x : array_like, or a tuple of them, optional
        A batch of inputs on which both nets are compared; by default 256 samples of standard normal
        numbers (times std plus mean with `standardise`).
    tol : float, optional
        Largest difference that is accepted, relative to the largest magnitude of an output and at
        least 1; by default 4096 times the rounding of the net's dtype (9e-13 in float64, 5e-4 in
        float32).
    standardise : (mean, std), or a tuple with such a pair or None per input, optional
        What the net's inputs were standardised with, scalars or arrays in the shape of one sample:
        the result takes raw inputs, simplify(net)(x) = net((x - mean) / std), the scaling being
        folded into the first layers.
    low_rank : bool
        Keep two linear blocks whose product has more weights than both, as after a bottleneck.

    Returns
    -------
    Module
        A Sequential when the blocks form a chain of layers, otherwise a `GraphModule` whose blocks
        keep their names. Its parameters are copies, in the net's dtype; parameters that blocks
        share stay shared where the blocks are not changed. In evaluation mode.

    Raises
    ------
    ValueError
        The two nets differ on x by more than `tol`, the sample shape is not known, or an argument
        does not fit.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Softmax())
    >>> gs.simplify(net)
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Softmax(dim=-1)
    )
    """
    from gradstack.functional import require_net

    require_net(net)
    pairs = _read_standardise(standardise, trace_net(net, None))
    limit = None if tol is None else as_number(tol, "tol", low=0.0)
    made = simplified(net, pairs, as_flag(low_rank, "low_rank"), chain=True)
    _prove(net, made, x, limit, pairs)
    return made


def simplified(
    net: Module,
    pairs: Sequence[tuple[Array, Array] | None] = (),
    low_rank: bool = False,
    *,
    chain: bool,
) -> Module:
    """The simplified net without the proof; with `chain` a Sequential where that is possible."""
    from gradstack._simplify.graph import build_net, read_blocks
    from gradstack._simplify.rules import simplify_blocks
    from gradstack._simplify.units import drop_units

    compiled = trace_net(net, None)
    blocks = read_blocks(net, compiled)
    _standardise(blocks, compiled, pairs)
    simplify_blocks(blocks, low_rank)
    while drop_units(blocks):
        simplify_blocks(blocks, low_rank)
    made = build_net(blocks, compiled.single_output, net.w.dtype, chain)
    made.trace(*compiled.in_shapes)
    return made


def _read_standardise(value: Any, compiled: Compiled) -> list[tuple[Array, Array] | None]:
    """One pair (mean, std) or None per input, in the shapes of the samples."""
    shapes = compiled.in_shapes
    if value is None:
        return [None] * len(shapes)
    pairs = (value,) if len(shapes) == 1 else value
    if not isinstance(pairs, (tuple, list)) or len(pairs) != len(shapes):
        raise ValueError(
            f"standardise must hold a pair (mean, std) or None for {len(shapes)} inputs"
        )
    read: list[tuple[Array, Array] | None] = []
    for pair, shape in zip(pairs, shapes, strict=True):
        if pair is None:
            read.append(None)
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError("standardise must be a pair (mean, std)")
        arrays = []
        for name, item in zip(("mean", "std"), pair, strict=True):
            array = as_real(item, name).astype(np.float64)
            if array.shape not in ((), shape):
                raise ValueError(f"{name} has shape {array.shape}, expected {shape} or a number")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite")
            arrays.append(np.broadcast_to(array, shape))
        if not (arrays[1] > 0).all():
            raise ValueError("std must be positive")
        read.append((arrays[0], arrays[1]))
    return read


def _standardise(
    blocks: Any, compiled: Compiled, pairs: Sequence[tuple[Array, Array] | None]
) -> None:
    from gradstack._simplify.graph import Node

    for name, pair in zip(compiled.in_names, pairs, strict=False):
        if pair is None:
            continue
        mean, std = pair
        node = Node(blocks.fresh("standardise"), "scale", [], mean.shape)
        node.weight, node.bias = 1 / std, -mean / std
        blocks.replace(name, node.name)
        node.inputs = [name]
        blocks.insert_after(name, node)


def _prove(
    net: Module,
    made: Module,
    x: Any,
    tol: float | None,
    pairs: Sequence[tuple[Array, Array] | None],
) -> None:
    """Compare both nets on data."""
    from gradstack._compiled import split_inputs

    compiled = trace_net(net, None)
    dtype = net.w.dtype
    if x is None:
        rng = np.random.default_rng(0)
        raw = [rng.standard_normal((_PROBES, *shape)) for shape in compiled.in_shapes]
        raw = [v if p is None else v * p[1] + p[0] for v, p in zip(raw, pairs, strict=True)]
    else:
        raw = [np.asarray(v) for v in split_inputs(net, x)]
    prepared = [v if p is None else (v - p[0]) / p[1] for v, p in zip(raw, pairs, strict=True)]
    expected = net.copy().eval()(*prepared)
    got = made(*raw)
    single = compiled.single_output
    bound = 4096 * float(np.finfo(dtype).eps) if tol is None else tol
    for i, (a, b) in enumerate(
        zip(*(((v,) if single else v) for v in (expected, got)), strict=True)
    ):
        scale = max(
            1.0, float(np.abs(a, where=np.isfinite(a), out=np.zeros(a.shape)).max(initial=0))
        )
        with np.errstate(invalid="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            error = np.where(same, 0.0, np.abs(a.astype(np.float64) - b))
        worst = float(np.nan_to_num(error, nan=np.inf).max(initial=0)) / scale
        if worst > bound:
            raise ValueError(
                f"the simplified net differs from the net: output {i} by {worst:.3g} of its "
                f"magnitude, tol is {bound:.3g}"
            )
