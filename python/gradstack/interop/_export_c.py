"""Export of a net to C: one header that depends on nothing."""

from __future__ import annotations

import os
import pathlib
import re
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstack._arrays import as_flag
from gradstack._compiled import trace_net
from gradstack._files import atomic_file
from gradstack.functional import require_net
from gradstack.interop._c_blocks import KINDS, Writer, copy
from gradstack.interop._c_places import WORKSPACE, Buffer, Place, plan_places
from gradstack.interop._c_text import WIDTH, Names, Real, argument, comment, wrapped

if TYPE_CHECKING:
    from gradstack.nn import Module

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)


def export_c(
    net: Module,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    simplify: bool = False,
) -> None:
    """Write a net as a C header for inference, C99 and C++, that needs <math.h> alone.

    The header has the parameters as constants and the function
    ``NAME_predict(const float x[NAME_INPUTS], float y[NAME_OUTPUTS])``, which computes ``net(x)``
    of one sample, in evaluation mode. It allocates nothing and keeps no state. Intermediate values
    are on its stack; ``NAME_predict_with(x, y, work)`` takes their memory from the caller,
    ``NAME_WORKSPACE`` numbers. A net with several inputs or outputs has one argument for each, in
    the order of a call, inputs first, with sizes ``NAME_INPUTS_X`` (the argument's name) and
    ``NAME_OUTPUTS_0``. Arrays are flat, in C order. An index of `nn.NearestNeighbour` is an
    ``int32_t``. A float64 net has ``double`` in the place of ``float``. Masks are folded into the
    weights (of a sparse mask only the connections are stored), dropout is left out. The file is
    written atomically; the same net gives the same bytes.

    Parameters
    ----------
    net : Module
        A net that knows its sample shape: a Sequential, or any other once it has been called,
        trained or traced (``net.trace(sample_shape)``).
    path : path-like
        The file, usually ``*.h``.
    name : str, optional
        What all identifiers of the header begin with, so that several nets fit into one program; by
        default the file's name without its suffix.
    simplify : bool
        Export ``gs.simplify(net)``: the same function with fewer blocks, compared with the net
        before it is written.

    Raises
    ------
    ValueError
        The net has a block written in Python, a parameter that is NaN, or has not been traced;
        or the name is not a C identifier.
    TypeError
        An argument has the wrong type.
    OSError
        The file cannot be written.

    Notes
    -----
    Results differ from ``net(x)`` by rounding: sums have another order, and functions are those of
    the C library. Compile without ``-ffast-math`` where inputs may be infinite or NaN.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gs.export_c(net, "net.h")  # doctest: +SKIP
    """
    require_net(net)
    name = _name_for(path, name)
    if as_flag(simplify, "simplify"):
        from gradstack._simplify import simplify as simplify_net

        net = simplify_net(net)
    text = header(net, name)
    with atomic_file(path) as file:
        file.write(text.encode("ascii"))


def _name_for(path: str | os.PathLike[str], name: str | None) -> str:
    if name is None:
        stem = pathlib.Path(os.fsdecode(path)).stem
        name = re.sub(r"[-. ]", "_", stem)
        if not _IDENTIFIER.fullmatch(name):
            raise ValueError(
                f"the file name {stem!r} is no C identifier (a letter, then letters, digits and "
                "_): pass name="
            )
    elif not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    elif not _IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"name {name!r} is no C identifier: expected a letter, then letters, digits and _"
        )
    return name


def header(net: Module, name: str) -> str:
    """Return the text of the header of a net; see `export_c`."""
    compiled = trace_net(net.copy().eval() if net.training else net, None)
    real = Real(net.w.dtype)
    parameters = {key: np.asarray(value) for key, value in net.named_parameters()}
    for key, value in parameters.items():
        if np.isnan(value).any():
            raise ValueError(f"parameter {key!r} holds NaN")
    stages, out_names = _own_indices(compiled.graph.stages(), compiled.out_names)
    api = _Api(name, real, compiled, out_names)
    places, size = plan_places(stages, api.inputs, api.outputs)
    writer = Writer(f"{name}_", real, api.taken, api.discrete)
    used = set()
    for stage in stages:
        if stage["kind"] == "input":
            continue
        emit = KINDS.get(stage["kind"])
        if emit is None:
            block = stage["name"]
            raise ValueError(f"block {block!r} is written in Python and cannot be exported to C")
        inputs, to = [places[source] for source in stage["inputs"]], places[stage["name"]]
        emit(writer, stage, inputs, to, parameters)
        used |= {place.buffer.base for place in (*inputs, to)}
    for stage_name, array in api.outputs.items():
        place = places[stage_name]
        if place.buffer.base != array:
            writer.begin({"name": stage_name}, "output")
            copy(writer, place, Place(Buffer(array, place.size), 0, place.size))
    for array in (*api.inputs.values(), WORKSPACE):
        if array not in used:
            writer.statements.append(f"    (void){array};")
    return api.text(type(net).__name__, stages, writer, max(size, 1))


def _own_indices(
    stages: list[dict[str, Any]], out_names: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Stages in which no block reads an index that is also an output: it is computed twice.

    To the caller an index is an integer, to a block it is a real number.
    """
    read = {source for stage in stages for source in stage["inputs"]}
    names = Names(*(stage["name"] for stage in stages))
    extra = []
    outputs = list(out_names)
    for stage in stages:
        if stage["kind"] == "nearest" and stage["name"] in read and stage["name"] in outputs:
            extra.append({**stage, "name": names.fresh(stage["name"])})
            outputs[outputs.index(stage["name"])] = extra[-1]["name"]
    return stages + extra, outputs


class _Api:
    """What a user of the header sees."""

    def __init__(self, name: str, real: Real, compiled: Any, out_names: list[str]) -> None:
        self.name = name
        self.real = real
        names = Names("i", WORKSPACE)
        n = len(out_names)
        arrays = ["y"] if n == 1 else [f"y{k}" for k in range(n)]
        arrays = [names.fresh(array) for array in arrays]
        self.outputs = dict(zip(out_names, arrays, strict=True))
        self.discrete = {a for a, d in zip(arrays, compiled.discrete, strict=True) if d}
        if len(compiled.in_names) == 1:
            self.inputs = {compiled.in_names[0]: "x"}
        else:
            self.inputs = {stage: argument(names, stage) for stage in compiled.in_names}
        macro = name.upper()
        self.sizes: dict[str, tuple[str, int]] = {}  # of arrays: macro and value
        for array, size in zip(self.inputs.values(), compiled.in_sizes, strict=True):
            one = len(self.inputs) == 1
            self.sizes[array] = (macro + ("_INPUTS" if one else f"_INPUTS_{array.upper()}"), size)
        for k, (array, size) in enumerate(zip(arrays, compiled.out_sizes, strict=True)):
            self.sizes[array] = (macro + ("_OUTPUTS" if n == 1 else f"_OUTPUTS_{k}"), size)
        self.workspace = f"{macro}_WORKSPACE"
        macros = [self.workspace, *(size for size, _ in self.sizes.values())]
        self.taken = ["predict", "predict_with", *(m[len(name) + 1 :] for m in macros)]

    def text(self, net: str, stages: list[dict[str, Any]], writer: Writer, work: int) -> str:
        """The file."""
        guard = f"GRADSTACK_{self.name}_H"
        macros = [(m, n, f"numbers in {a}") for a, (m, n) in self.sizes.items()]
        macros.append((self.workspace, work, "numbers of intermediate values"))
        defines = "\n".join(f"#define {m} {n} /* {text} */" for m, n, text in macros)
        parts = [
            self._about(net, stages, writer, work),
            f"#ifndef {guard}\n#define {guard}\n",
            "#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n",
            defines + "\n",
            *writer.arrays,
            *writer.functions,
            self._predict(writer),
            f"#endif /* {guard} */\n",
        ]
        return "\n".join(parts)

    def _arguments(self) -> list[str]:
        result = [f"const {self.real.name} {a}[{self.sizes[a][0]}]" for a in self.inputs.values()]
        for array in self.outputs.values():
            kind = "int32_t" if array in self.discrete else self.real.name
            result.append(f"{kind} {array}[{self.sizes[array][0]}]")
        return result

    def _predict(self, writer: Writer) -> str:
        real, name = self.real.name, self.name
        arguments = self._arguments()
        given = [*self.inputs.values(), *self.outputs.values()]
        work = f"{real} {WORKSPACE}[{self.workspace}]"
        body = "\n".join(writer.statements)
        with_begin = f"static inline void {name}_predict_with("
        begin = f"static inline void {name}_predict("
        call = wrapped(f"    {name}_predict_with(", [*given, WORKSPACE], ");")
        return (
            "/* As predict, with memory of the caller for intermediate values: "
            f"{WORKSPACE} has {self.workspace} numbers. */\n"
            f"{wrapped(with_begin, [*arguments, work], ')')}\n{{\n{body}\n}}\n\n"
            "/* One sample; arrays must not overlap. "
            f"{self.workspace} numbers are on the stack. */\n"
            f"{wrapped(begin, arguments, ')')}\n{{\n    {work};\n{call}\n}}\n"
        )

    def _about(self, net: str, stages: list[dict[str, Any]], writer: Writer, work: int) -> str:
        """The comment at the top."""
        import gradstack

        itemsize = self.real.dtype.itemsize
        lines = [
            f"{self.name}: a neural network for inference, {comment(net)}.",
            f"Written by gradstack {gradstack.__version__}, gs.export_c.",
            "",
        ]
        for array, (macro, _) in self.sizes.items():
            kind = "int32_t" if array in self.discrete else self.real.name
            lines.append(f"    {kind} {array}[{macro}];")
        given = ", ".join([*self.inputs.values(), *self.outputs.values()])
        text = (
            f"Constants: {writer.bytes:,} bytes. Intermediate values: {work * itemsize:,} bytes "
            f"on the stack, or of the caller's with {self.name}_predict_with. Nothing is allocated "
            "and no state is kept: calls may run at the same time. Every source file that "
            "includes this one and calls it gets the constants once more."
        )
        lines += [f"    {self.name}_predict({given});", "", *textwrap.wrap(text, WIDTH - 3)]
        lines += ["", "Blocks and the sizes of their outputs:"]
        for stage in stages:
            shape = " x ".join(map(str, stage["shape"])) or "1"
            what = stage["op"] if stage["kind"] == "pointwise" else stage["kind"]
            lines.append(f"    {comment(stage['name'])}: {what}, {shape}")
        return "/* " + "\n".join(f" * {line}".rstrip() for line in lines)[3:] + "\n */\n"
