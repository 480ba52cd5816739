"""Layers, nets and costs, with PyTorch's names and conventions."""

from __future__ import annotations

from gradstack._flat import Parameter
from gradstack.nn import activations as _activations
from gradstack.nn import costs as _costs
from gradstack.nn.activations import *  # noqa: F403
from gradstack.nn.containers import Add, Concat, ModuleList, Residual, Sequential
from gradstack.nn.cost import Cost
from gradstack.nn.costs import *  # noqa: F403
from gradstack.nn.layers import Dropout, Flatten, Linear, LogSoftmax, NearestNeighbour, Softmax
from gradstack.nn.module import Module
from gradstack.nn.python import Pointwise
from gradstack.nn.sparse import SparseLinear

__all__ = [
    "Add",
    "Concat",
    "Cost",
    "Dropout",
    "Flatten",
    "Linear",
    "LogSoftmax",
    "Module",
    "ModuleList",
    "NearestNeighbour",
    "Parameter",
    "Pointwise",
    "Residual",
    "Sequential",
    "Softmax",
    "SparseLinear",
]
__all__ += _activations.__all__
__all__ += _costs.__all__
