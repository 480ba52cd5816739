"""One module per row of the op table: ``nn.ReLU``, ``nn.GELU``, ...

The stub file beside this one is written by ``python tests/stubs.py``.
"""

from gradstack._pointwise import OPS
from gradstack.nn.pointwise import make_class

_classes = {op.module: make_class(op) for op in OPS.values() if op.module}
globals().update(_classes)
__all__ = tuple(_classes)
