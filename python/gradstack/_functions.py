"""One function per row of the op table: ``gs.relu``, ``gs.gelu``, ...

The stub file beside this one is written by ``python tests/stubs.py``.
"""

from gradstack._pointwise import OPS, make_function

_functions = {op.name: make_function(op) for op in OPS.values() if op.module}
globals().update(_functions)
__all__ = tuple(_functions)
