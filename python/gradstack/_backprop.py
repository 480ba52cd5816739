"""`backprop`: every stage of a net with its variables, gradients and Jacobians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from gradstack import _jacobians
from gradstack._arrays import as_flag
from gradstack._compiled import Compiled, Inputs, parameters_for, read, split_inputs
from gradstack.functional import read_target, require_cost, require_net
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

if TYPE_CHECKING:
    from gradstack._draw.diagram import Diagram

Array = npt.NDArray[Any]


class Stage:
    """One block z_{k+1} = f_k(z_k, w_k) of a net, at one point.

    Arrays have a leading B for batches only. With several inputs, `z`, `dz` and the Jacobians with
    respect to z are tuples.

    Attributes
    ----------
    name : str
        Path of the module, or the name of the function.
    block : Module or str
        The module, or the name of the function or operator.
    kind : str
        Kind of block in the graph.
    inputs : tuple of str
        The stages (or inputs of the net) whose outputs are z.
    z, out : numpy.ndarray
        Input z_k and output z_{k+1}.
    dz : numpy.ndarray
        dC/dz_k.
    w, dw : numpy.ndarray, (p,)
        The stage's own parameters, flat, and dC/dw_k; empty without parameters. dw is (B, p) when
        per sample.
    """

    __slots__ = (
        *("_context", "block", "dw", "dz", "inputs", "jac_w"),
        *("jac_z", "kind", "name", "out", "w", "z"),
    )

    name: str
    block: Any
    kind: str
    inputs: tuple[str, ...]
    z: Any
    dz: Any
    w: Array
    dw: Array
    out: Array
    jac_z: Any
    jac_w: Array

    def __init__(self, context: _jacobians.Context, single: bool, dw: Array | None) -> None:
        row = context.row
        self._context = context
        self.name = row["name"]
        self.kind = row["kind"]
        self.inputs = tuple(row["inputs"])
        self.out = context.out_as(single)
        zs = context.inputs_as(row["z"], single)
        dzs = context.inputs_as(row["dz"], single)
        one = len(zs) == 1
        self.z = zs[0] if one else tuple(zs)
        self.dz = dzs[0] if one else tuple(dzs)
        self.w = context.w
        self.dw = np.empty((*context.lead_dw, 0), context.w.dtype) if dw is None else dw

    def jacobian_z(self) -> Any:
        """dz_{k+1}/dz_k, dense: (B, out, in), each variable flattened."""
        jacobians = [self._context.drop_batch(j) for j in self._context.jacobians_z()]
        return jacobians[0] if len(jacobians) == 1 else tuple(jacobians)

    def jacobian_w(self) -> Array:
        """dz_{k+1}/dw_k, dense: (B, out, p)."""
        return self._context.drop_batch(self._context.jacobian_w())

    def __repr__(self) -> str:
        return f"Stage({self.name!r}, {self.kind}, out={self.out.shape}, parameters={self.w.size})"


class StageList(Sequence[Stage]):
    """Stages from input to output; also found by name."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages
        self._by_name = {s.name: s for s in stages}

    def __len__(self) -> int:
        return len(self._stages)

    @overload
    def __getitem__(self, index: int | str) -> Stage: ...
    @overload
    def __getitem__(self, index: slice) -> StageList: ...
    def __getitem__(self, index: int | str | slice) -> Stage | StageList:
        if isinstance(index, str):
            try:
                return self._by_name[index]
            except KeyError:
                names = ", ".join(self._by_name)
                raise KeyError(f"no stage {index!r}; there are {names}") from None
        if isinstance(index, slice):
            return StageList(self._stages[index])
        return self._stages[index]

    def __repr__(self) -> str:
        return f"[{', '.join(map(repr, self._stages))}]"


class Origin(NamedTuple):
    """What a run belongs to, for its diagram."""

    net: Module
    compiled: Compiled
    cost: Cost
    target: Array | None
    single: bool
    per_sample: bool


class Backprop:
    """What `gs.backprop` returns; printing it shows a table, notebooks show its diagram.

    Attributes
    ----------
    loss : float
        Average loss.
    ybar : numpy.ndarray
        Output of the net.
    dybar : numpy.ndarray
        dC/dybar.
    stages : StageList
        Every block from input to output, by position or name.
    """

    __slots__ = ("_origin", "dybar", "loss", "stages", "ybar")

    def __init__(
        self, loss: float, ybar: Array, dybar: Array, stages: StageList, origin: Origin
    ) -> None:
        self.loss = loss
        self.ybar = ybar
        self.dybar = dybar
        self.stages = stages
        self._origin = origin

    def __getitem__(self, name: str) -> Stage:
        return self.stages[name]

    def draw(self, *, width: float = 1100) -> Diagram:
        """The block diagram with its values.

        Below every variable its z and dC/dz, below every block with parameters its w and dC/dw:
        numbers when there are few, otherwise a map of coloured cells (samples are rows; a map with
        more cells than fit shows the entry of largest magnitude of each part) with the Euclidean
        norm and the range of all values.

        Parameters
        ----------
        width : float
            Pixels after which the diagram goes on in a row below.

        Returns
        -------
        Diagram
            Shown by notebooks; ``.save(path)`` writes an SVG file.
        """
        from gradstack._draw import read_width
        from gradstack._draw.trace import draw_trace

        return draw_trace(self, read_width(width))

    def _repr_svg_(self) -> str:
        return self.draw().svg

    def __repr__(self) -> str:
        header = ("stage", "block", "from", "z", "out", "|dC/dz|", "parameters", "|dC/dw|")
        rows = [header, *(_table_row(s) for s in self.stages)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        right = (5, 6, 7)
        lines = [
            "  ".join(
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([f"loss {self.loss:.6g}", *lines])


def _table_row(stage: Stage) -> tuple[str, ...]:
    zs = stage.z if isinstance(stage.z, tuple) else (stage.z,)
    dzs = stage.dz if isinstance(stage.dz, tuple) else (stage.dz,)
    block = stage.block if isinstance(stage.block, str) else type(stage.block).__name__
    return (
        stage.name,
        block,
        ", ".join(stage.inputs),
        " ".join(_shape(z) for z in zs),
        _shape(stage.out),
        f"{math.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in dzs)):.3g}",
        str(stage.w.size) if stage.w.size else "",
        f"{np.linalg.norm(stage.dw):.3g}" if stage.w.size else "",
    )


def _shape(array: Array) -> str:
    return "x".join(map(str, array.shape)) or "()"


def backprop(
    net: Module,
    cost: Cost,
    x: Any,
    y: Any = None,
    jacobians: bool = False,
    per_sample: bool = False,
    w: Any = None,
) -> Backprop:
    """Values and gradients of every stage of a net.

    Parameters
    ----------
    net : Module
        Run as in evaluation mode.
    cost : Cost
    x : array_like, or a tuple of them
        One sample or a batch.
    y : array_like or None
        Targets or class labels.
    jacobians : bool
        Also compute both Jacobians of every stage, as ``stage.jac_z`` and ``stage.jac_w``.
    per_sample : bool
        False: gradients are of the average loss, so they contain 1/B. True: every dz and dw has a
        leading B and belongs to the loss of its own sample.
    w : array_like, (P,), optional
        Parameters instead of the net's own.

    Returns
    -------
    Backprop
        ``.loss``, ``.ybar``, ``.dybar`` and ``.stages``.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> trace = gs.backprop(net, nn.SquaredError(), [1.0, 2.0], [0.5])
    >>> [stage.name for stage in trace.stages]
    ['0', '1', '2']
    >>> trace["0"].jacobian_z().shape
    (2, 2)
    """
    net = require_net(net)
    inputs = read(net, split_inputs(net, x))
    target = read_target(net, require_cost(cost), inputs, y)
    jacobians, per_sample = as_flag(jacobians, "jacobians"), as_flag(per_sample, "per_sample")
    if inputs.count == 0:
        raise ValueError("x has no samples, the average loss is undefined")
    vector = parameters_for(net, inputs, w)
    result = inputs.program.backprop(
        vector, inputs.xs, target, cost._core_cost(inputs.dtype), per_sample=per_sample
    )
    graph = {row["name"]: row for row in inputs.compiled.graph.stages()}
    stages = [_make_stage(inputs, graph, row, vector, per_sample) for row in result["stages"]]
    if jacobians:
        for stage in stages:
            stage.jac_z = stage.jacobian_z()
            stage.jac_w = stage.jacobian_w()
    shape = inputs.compiled.out_shapes[0]
    lead = () if inputs.single else (inputs.count,)
    return Backprop(
        float(result["loss"]),
        result["ybars"][0].reshape(lead + shape),
        result["dybars"][0].reshape(lead + shape),
        StageList(stages),
        Origin(net, inputs.compiled, cost, target, inputs.single, per_sample),
    )


def _make_stage(
    inputs: Inputs, graph: dict[str, Any], row: dict[str, Any], vector: Array, per_sample: bool
) -> Stage:
    description = graph[row["name"]]
    context = _jacobians.Context(
        row,
        description,
        [graph[name]["shape"] for name in description["inputs"]],
        vector,
        inputs.single,
        per_sample,
    )
    dw = row["dw"]
    if dw is not None and inputs.single:
        dw = dw.reshape(-1)
    stage = Stage(context, inputs.single, dw)
    stage.block = inputs.compiled.blocks[stage.name]
    return stage
