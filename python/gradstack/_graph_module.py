"""A module given by the stages of a graph instead of a ``forward`` method.

It is what a net without its Python class becomes: loaded from a file, or brought from PyTorch.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from gradstack._trace import Var, concat
from gradstack.nn.layers import over_features, record_dropout
from gradstack.nn.module import Module

# One block: "kind", "name", "inputs" (names of steps or of inputs) and the kind's own entries, all
# of them plain JSON values:
#   module     path              the submodule at `path` is called
#   pointwise  op, params        a row of the op table
#   add sub mul div concat       -
#   slice      begin, end        features; None is the end they have
#   reshape    shape             of one sample, one entry may be -1
#   dropout    p                 probability of dropping
#   softmax log_softmax          -
Step = Mapping[str, Any]

_BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
_KINDS = frozenset(
    {*_BINARY, "module", "pointwise", "concat", "slice", "reshape", "dropout"}
    | {"softmax", "log_softmax"}
)


class GraphModule(Module):
    """A net that replays recorded blocks.

    Parameters
    ----------
    inputs : sequence of str
        Names of the inputs, in the order of the call's arguments.
    steps : sequence of mapping
        The blocks in an order in which every block follows its inputs.
    outputs : sequence of str
        Names of the steps whose results are returned.
    single_output : bool
        Whether a call returns the one output itself instead of a tuple.

    Notes
    -----
    Submodules that the steps call are registered afterwards, by assignment or `register`.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        steps: Sequence[Step],
        outputs: Sequence[str],
        single_output: bool,
    ) -> None:
        super().__init__()
        known = set(inputs)
        for step in steps:
            if step["kind"] not in _KINDS:
                raise ValueError(f"block {step['name']!r} has unknown kind {step['kind']!r}")
            if len(step["inputs"]) < (2 if step["kind"] in _BINARY else 1):
                raise ValueError(f"block {step['name']!r} lacks an input")
            for name in step["inputs"]:
                if name not in known:
                    raise ValueError(f"block {step['name']!r} reads {name!r}, which is not there")
            known.add(step["name"])
        for name in outputs:
            if name not in known:
                raise ValueError(f"output {name!r} is not the name of a block")
        self._input_names = tuple(inputs)
        self._steps = tuple(dict(step) for step in steps)
        self._output_names = tuple(outputs)
        self._single_output = single_output

    def register(self, path: str, module: Module) -> None:
        """Put a submodule at a dotted path, with plain modules as the containers on the way."""
        parent: Module = self
        *containers, name = path.split(".")
        for container in containers:
            child = parent._modules.get(container)
            if child is None:
                child = Module()
                setattr(parent, container, child)
            parent = child
        setattr(parent, name, module)

    def forward(self, *xs: Any) -> Any:
        """Record every step."""
        if len(xs) != len(self._input_names):
            raise TypeError(
                f"[{type(self).__name__}] got {len(xs)} inputs, expected "
                f"{len(self._input_names)}: {', '.join(self._input_names)}"
            )
        values: dict[str, Var] = dict(zip(self._input_names, xs, strict=True))
        for step in self._steps:
            values[step["name"]] = self._run(step, [values[name] for name in step["inputs"]])
        outputs = tuple(values[name] for name in self._output_names)
        return outputs[0] if self._single_output else outputs

    def _run(self, step: Step, xs: list[Var]) -> Any:
        kind = step["kind"]
        x = xs[0]
        if kind == "module":
            return self.get_submodule(step["path"])(*xs)
        if kind == "pointwise":
            return x._tracer.pointwise(step["op"], step["params"], x, step["name"])
        if kind == "concat":
            return concat(xs)
        if kind == "slice":
            return x[step["begin"] : step["end"]]
        if kind == "reshape":
            return x.view(*step["shape"])
        if kind == "dropout":
            return record_dropout(x, step["p"], step["name"])
        if kind in ("softmax", "log_softmax"):
            return over_features(kind, x, step["name"], None)
        return _BINARY[kind](x, xs[1])
