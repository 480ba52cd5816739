"""Writes the stub files of what Python generates from the op table: `python tests/stubs.py`."""

from __future__ import annotations

import json
from pathlib import Path

from gradstack._pointwise import OPS, parameters_of

PACKAGE = Path(__file__).parents[1] / "python" / "gradstack"
HEADER = "# Written by tests/stubs.py from the op table.\n"


def _arguments(op: str) -> list[str]:
    return [f"{p.name}: {p.annotation} = {json.dumps(p.default)}" for p in parameters_of(op)]


def functions() -> str:
    """The stub of gradstack/_functions.py."""
    lines = [HEADER, "from typing import Any\n", "__all__: tuple[str, ...]\n"]
    for op in OPS.values():
        if op.module:
            lines.append(
                f"def {op.name}({', '.join(['x: Any', *_arguments(op.name)])}) -> Any: ..."
            )
    return "\n".join(lines) + "\n"


def activations() -> str:
    """The stub of gradstack/nn/activations.py."""
    lines = [
        HEADER,
        "from gradstack.nn.pointwise import PointwiseModule\n",
        "__all__: tuple[str, ...]\n",
    ]
    for op in OPS.values():
        if op.module:
            arguments = [*_arguments(op.name), "inplace: bool = False"]
            lines.append(f"class {op.module}(PointwiseModule):")
            lines.append(f"    def __init__(self, {', '.join(arguments)}) -> None: ...\n")
            names = [f"    {p.name}: {p.annotation}" for p in parameters_of(op.name)]
            lines[-1:-1] = names
    return "\n".join(lines)


FILES = {PACKAGE / "_functions.pyi": functions, PACKAGE / "nn" / "activations.pyi": activations}

if __name__ == "__main__":
    for path, make in FILES.items():
        path.write_text(make())
