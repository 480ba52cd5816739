"""The net of an estimator: from scikit-learn's arguments to modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from gradstack import nn
from gradstack._arrays import as_number
from gradstack._pointwise import OPS
from gradstack.sklearn._heads import Head

_NAMES = {op.name: op.module for op in OPS.values() if op.module} | {"logistic": "Sigmoid"}


def hidden_sizes(value: Any) -> list[int]:
    """`hidden_layer_sizes` as a list."""
    sizes = list(value) if np.iterable(value) else [value]
    for size in sizes:
        if not isinstance(size, Integral):
            raise TypeError(f"hidden_layer_sizes must be integers, got {value!r}")
        if size <= 0:
            raise ValueError(f"hidden_layer_sizes must be > 0, got {value!r}")
    return [int(size) for size in sizes]


def activation_names(value: Any, layers: int) -> list[str]:
    """`activation` as one name per hidden layer."""
    names = [value] * layers if isinstance(value, str) else list(value)
    if len(names) != layers:
        raise ValueError(f"activation has {len(names)} entries for {layers} hidden layers")
    for name in [value] if isinstance(value, str) else names:
        if name not in _NAMES:
            raise ValueError(f"activation must be of {sorted(_NAMES)}, got {name!r}")
    return names


def dropout_rates(value: Any, layers: int) -> list[float]:
    """`dropout` as one probability per hidden layer."""
    rates = list(value) if np.iterable(value) else [value] * layers
    if len(rates) != layers:
        raise ValueError(f"dropout has {len(rates)} entries for {layers} hidden layers")
    numbers = [as_number(rate, "dropout", low=0.0) for rate in rates]
    if any(rate >= 1.0 for rate in numbers):
        raise ValueError(f"dropout must be in [0, 1), got {value!r}")
    return numbers


def build_net(
    n_features: int,
    sizes: Sequence[int],
    activations: Sequence[str],
    rates: Sequence[float],
    head: Head,
    dtype: np.dtype[Any],
    random_state: np.random.RandomState,
) -> nn.Sequential:
    """A new net with scikit-learn's initial weights, drawn as scikit-learn draws them."""
    modules: list[nn.Module] = []
    width = n_features
    for size, name, rate in zip(sizes, activations, rates, strict=True):
        modules += [nn.Linear(width, size, dtype=dtype), getattr(nn, _NAMES[name])()]
        if rate > 0.0:
            modules.append(nn.Dropout(rate))
        width = size
    modules.append(nn.Linear(width, head.units, dtype=dtype))
    tail = head.tail_module()
    net = nn.Sequential(*modules, *([] if tail is None else [tail]))
    net.eval()
    names = [*activations, activations[-1] if activations else "identity"]
    for layer, name in zip(linears(net), names, strict=True):
        fans = layer.in_features + layer.out_features
        # Glorot's bound, which scikit-learn narrows for the logistic function.
        bound = math.sqrt((2.0 if _NAMES[name] == "Sigmoid" else 6.0) / fans)
        shape = (layer.in_features, layer.out_features)
        layer.weight[...] = random_state.uniform(-bound, bound, shape).T
        assert layer.bias is not None
        layer.bias[...] = random_state.uniform(-bound, bound, layer.out_features)
    return net


def linears(net: nn.Sequential) -> list[nn.Linear]:
    """The linear blocks of a net, from input to output."""
    return [module for module in net if isinstance(module, nn.Linear)]
