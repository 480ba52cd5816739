"""The linear block of an arbitrary unit graph, given by its edges."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstack import _core, _random
from gradstack._arrays import as_count, as_flag, as_real
from gradstack._flat import Parameter
from gradstack._trace import Tracer, Var
from gradstack.nn.layer import Layer, require_features, require_variable
from gradstack.nn.layers import net_dtype, read_mask
from gradstack.nn.module import Array, SampleHint


class SparseLinear(Layer):
    """Linear block with the connections of a list of edges, s[i] = sum_{j in UP(i)} w[i, j] z[j].

    Memory and time of everything (forward, all derivatives, updates) are proportional to the number
    of edges: faster than `Linear` where fewer than about 10 % of the connections are present. With
    many more, ``Linear(mask=...)`` is the better choice.

    Parameters
    ----------
    in_features, out_features : int
        Length of z and of s.
    edges : array_like of int, shape (E, 2)
        Rows (i, j): unit j of z goes into unit i of s. Any order, each pair once. A unit without
        edges has s[i] = b[i].
    bias : bool
        Whether there is a b.
    dtype : dtype, optional
        float32 (default) or float64.
    generator : numpy.random.Generator, optional
        Source of the initial values; by default the one of ``gs.seed``.

    Attributes
    ----------
    weight : Parameter, shape (E,)
        In the order of `edges`.
    bias : Parameter, shape (out_features,), or None
    edges : numpy.ndarray of int32, (E, 2)
        Read-only.

    Notes
    -----
    Initial values are uniform on [-1/sqrt(n), 1/sqrt(n)], n the number of edges into the unit (its
    fan-in, at least 1): what `Linear` has for a fully connected one.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> chain = nn.SparseLinear(4, 3, [(i, i + k) for i in range(3) for k in (0, 1)])
    >>> chain.weight[:] = [-1, 1] * 3
    >>> chain.bias[:] = 0
    >>> chain(np.array([1.0, 4.0, 9.0, 16.0]))
    array([3., 5., 7.], dtype=float32)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        edges: Any,
        bias: bool = True,
        *,
        dtype: Any = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = as_count(in_features, "in_features")
        self.out_features = as_count(out_features, "out_features")
        pairs = _read_edges(edges)
        self._connectivity = _connect(self.out_features, self.in_features, pairs)
        kind = net_dtype(dtype)
        rng = _random.resolve(generator)
        fan_in = np.bincount(pairs[:, 0], minlength=self.out_features)
        bound = 1.0 / np.sqrt(np.maximum(fan_in, 1))
        weight = rng.uniform(-1.0, 1.0, len(pairs)) * bound[pairs[:, 0]]
        self.weight = Parameter(weight.astype(kind))
        self.register_parameter(
            "bias",
            Parameter((rng.uniform(-1.0, 1.0, self.out_features) * bound).astype(kind))
            if as_flag(bias, "bias")
            else None,
        )

    @classmethod
    def from_mask(
        cls,
        mask: Any,
        bias: bool = True,
        *,
        dtype: Any = None,
        generator: np.random.Generator | None = None,
    ) -> SparseLinear:
        """Connect what a mask connects.

        Parameters
        ----------
        mask : array_like of bool, shape (out_features, in_features)
            ``mask[i, j]`` says that j is in UP(i), as in `Linear`. The edges are in the order of
            its rows.
        bias, dtype, generator
            As for the class.
        """
        array = read_mask(mask)
        out, n = array.shape
        return cls(n, out, np.argwhere(array), bias, dtype=dtype, generator=generator)

    @property
    def edges(self) -> Array:
        """The connections, (E, 2), rows (out unit, in unit)."""
        edges: Array = self._connectivity.edges
        edges.flags.writeable = False
        return edges

    def dense(self) -> Array:
        """The weights as a matrix with zeros, (out_features, in_features)."""
        matrix = np.zeros((self.out_features, self.in_features), self.weight.dtype)
        out, n = self.edges.T
        matrix[out, n] = self.weight
        return matrix

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        name = tracer.name_of(self)
        require_features(self, x, self.in_features, name)
        bias = self.bias
        return tracer.add(
            "sparse_linear",
            name,
            [x],
            (self.out_features,),
            block=self,
            weight=tracer.parameter_name(self, self.weight),
            bias=None if bias is None else tracer.parameter_name(self, bias),
            edges=self._connectivity,
        )

    def _sample_hint(self) -> SampleHint:
        return SampleHint((self.in_features,), type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_connectivity": self.edges}

    def __setstate__(self, state: dict[str, Any]) -> None:
        edges = np.ascontiguousarray(state["_connectivity"], np.int32)
        made = _core.Connectivity(state["out_features"], state["in_features"], edges)
        super().__setstate__({**state, "_connectivity": made})

    def extra_repr(self) -> str:
        """The arguments, as text."""
        count, size = len(self.weight), self.in_features * self.out_features
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return text + f", edges={count} ({count / size:.2%}), bias={self.bias is not None}"


def _read_edges(edges: Any) -> Array:
    array = as_real(edges, "edges")
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(
            f"edges has shape {array.shape}, expected (E, 2): rows (out unit, in unit)"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(f"edges has dtype {array.dtype}, expected integers: pairs of units")
    return array


def _connect(out: int, n: int, pairs: Array) -> Any:
    limit = np.iinfo(np.int32).max
    if max(out, n, len(pairs)) > limit:
        raise ValueError(f"a sparse layer has at most {limit} units and edges")
    outside = (pairs < 0) | (pairs >= (out, n))
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        i, j = pairs[row]
        raise ValueError(
            f"edges[{row}] is ({i}, {j}), expected out units in 0..{out - 1} and in units in "
            f"0..{n - 1}"
        )
    return _core.Connectivity(out, n, np.ascontiguousarray(pairs, np.int32))
