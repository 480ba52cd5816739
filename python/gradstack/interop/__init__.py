"""Bring nets from elsewhere, take them elsewhere.

The packages concerned (torch, onnx) are imported when a function is called.
"""

from gradstack.interop._export_c import export_c
from gradstack.interop._from_torch import from_torch
from gradstack.interop._onnx import export_onnx

__all__ = ["export_c", "export_onnx", "from_torch"]
