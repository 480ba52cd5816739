"""Headers of gs.export_c compiled with the system's compilers."""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from gradstack import nn
from gradstack._compiled import trace_net

C_COMPILERS = [found for name in ("gcc", "clang", "clang-14") if (found := shutil.which(name))]
CXX_COMPILERS = [
    found for name in ("g++", "clang++", "clang++-14") if (found := shutil.which(name))
]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
needs_compiler = pytest.mark.skipif(not C_COMPILERS, reason="no C compiler is installed")
_WARNINGS = "all extra pedantic conversion sign-conversion double-promotion shadow cast-qual undef"
STRICT = [*(f"-W{name}" for name in _WARNINGS.split()), "-Werror"]

_MARGIN = 64  # numbers behind every array that nothing may touch

Runner = Callable[..., Any]


def traced(net: nn.Module, *shapes: Any) -> nn.Module:
    """A net that knows its sample shapes."""
    net.trace(*shapes)
    return net


def compile_c(
    source: pathlib.Path, out: pathlib.Path, *flags: str, compiler: str | None = None
) -> None:
    """Compile one file; what the compiler says is the failure's message."""
    command = [compiler or C_COMPILERS[0], *flags, str(source), "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"


def compile_nets(
    folder: pathlib.Path, nets: Mapping[str, nn.Module], *flags: str, compiler: str | None = None
) -> dict[str, Runner]:
    """Export nets to one program; each becomes a function of batches, as the net is."""
    includes, functions = [], []
    for name, net in nets.items():
        gs.export_c(net, folder / f"{name}.h")
        includes.append(f'#include "{name}.h"')
        functions.append(_batch_function(name, net))
    source, library = folder / "nets.c", folder / "nets.so"
    source.write_text("\n".join([*includes, *functions]))
    compile_c(source, library, "-std=c99", "-shared", "-fPIC", *STRICT, *(flags or ["-O1"]),
              compiler=compiler)  # fmt: skip
    loaded = ctypes.CDLL(str(library))
    return {
        name: _runner(getattr(loaded, f"run_{name}"), net, workspace(folder / f"{name}.h"))
        for name, net in nets.items()
    }


def _signature(net: nn.Module) -> tuple[list[int], list[int], list[bool]]:
    compiled = trace_net(net, None)
    return compiled.in_sizes, compiled.out_sizes, compiled.discrete


def _batch_function(name: str, net: nn.Module) -> str:
    real = "float" if net.w.dtype == np.float32 else "double"
    ins, outs, discrete = _signature(net)
    arguments = [f"const {real} *x{k}" for k in range(len(ins))]
    arguments += [f"{'int32_t' if d else real} *y{k}" for k, d in enumerate(discrete)]
    given = [f"x{k} + n * {size}" for k, size in enumerate(ins)]
    given += [f"y{k} + n * {size}" for k, size in enumerate(outs)]
    given_list = ", ".join(given)
    return (
        f"void run_{name}(long count, {', '.join(arguments)}, {real} *work);\n"
        f"void run_{name}(long count, {', '.join(arguments)}, {real} *work)\n{{\n"
        "    for (long n = 0; n < count; ++n)\n"
        f"        if (n % 2) {name}_predict({given_list});\n"
        f"        else {name}_predict_with({given_list}, work);\n}}\n"
    )


def workspace(header: pathlib.Path) -> int:
    """How many numbers predict works in."""
    (found,) = re.findall(r"^#define \w+_WORKSPACE (\d+)", header.read_text(), re.MULTILINE)
    return int(found)


def _runner(function: Any, net: nn.Module, work_size: int) -> Runner:
    ins, outs, discrete = _signature(net)
    dtype = net.w.dtype

    def run(*xs: Any) -> Any:
        count = len(xs[0])
        inputs = [
            np.ascontiguousarray(x, dtype).reshape(count, n) for x, n in zip(xs, ins, strict=True)
        ]
        kinds = [np.int32 if d else dtype for d in discrete]
        sizes = [*(count * n for n in outs), work_size]
        written = [
            np.full(size + _MARGIN, 77, kind)
            for size, kind in zip(sizes, [*kinds, dtype], strict=True)
        ]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*inputs, *written)]
        function(ctypes.c_long(count), *pointers)
        for array in written:
            assert (array[-_MARGIN:] == 77).all(), "written behind the end of an array"
        *flat, _ = written
        ys = [y[:-_MARGIN].reshape(count, n) for y, n in zip(flat, outs, strict=True)]
        return ys[0] if len(ys) == 1 else tuple(ys)

    return run
