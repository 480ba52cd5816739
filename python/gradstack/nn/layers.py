"""Layers: linear blocks, reshaping, dropout, softmax, nearest neighbour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradstack import _random
from gradstack._arrays import as_count, as_flag, as_number, as_real
from gradstack._flat import FLOATS, Parameter
from gradstack._trace import ShapeError, Tracer, Var
from gradstack.nn.layer import Layer, require_features, require_variable
from gradstack.nn.module import Array, SampleHint


def net_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of a layer's parameters."""
    if dtype is None:
        return FLOATS[0]
    # A torch dtype prints as "torch.float64".
    name = str(dtype).removeprefix("torch.") if "torch." in str(dtype) else dtype
    try:
        resolved = np.dtype(name)
    except TypeError as error:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}") from error
    if resolved not in FLOATS:
        raise TypeError(f"dtype must be float32 or float64, got {resolved}")
    return FLOATS[FLOATS.index(resolved)]


class Linear(Layer):
    """Linear block s = W z + b.

    Parameters
    ----------
    in_features, out_features : int
        Length of z and of s.
    bias : bool
        Whether there is a b.
    mask : array_like of bool, shape (out_features, in_features), optional
        Connectivity: ``mask[i, j]`` says that j is in UP(i). Weights of missing connections
        contribute nothing, have gradient 0 and never move.
    dtype : dtype, optional
        float32 (default) or float64.
    generator : numpy.random.Generator, optional
        Source of the initial values; by default the one of ``gs.seed``.

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
    bias : Parameter, shape (out_features,), or None

    Notes
    -----
    Initial values are uniform on [-1/sqrt(in_features), 1/sqrt(in_features)], PyTorch's default.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> layer = nn.Linear(3, 2)
    >>> layer(np.ones((5, 3))).shape
    (5, 2)
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        mask: Any = None,
        *,
        dtype: Any = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = as_count(in_features, "in_features")
        self.out_features = as_count(out_features, "out_features")
        kind = net_dtype(dtype)
        rng = _random.resolve(generator)
        bound = 1.0 / math.sqrt(self.in_features)
        shape = (self.out_features, self.in_features)
        self.weight = Parameter(rng.uniform(-bound, bound, shape).astype(kind))
        self.register_parameter(
            "bias",
            Parameter(rng.uniform(-bound, bound, self.out_features).astype(kind))
            if as_flag(bias, "bias")
            else None,
        )
        self.mask = None if mask is None else read_mask(mask, shape)

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        name = tracer.name_of(self)
        require_features(self, x, self.in_features, name)
        bias = self.bias
        return tracer.add(
            "linear",
            name,
            [x],
            (self.out_features,),
            block=self,
            weight=tracer.parameter_name(self, self.weight),
            bias=None if bias is None else tracer.parameter_name(self, bias),
            mask=self.mask,
        )

    def _sample_hint(self) -> SampleHint:
        return SampleHint((self.in_features,), type(self).__name__)

    def extra_repr(self) -> str:
        """The arguments, as text."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        text += f", bias={self.bias is not None}"
        if self.mask is not None:
            text += f", mask={int(self.mask.sum())} of {self.mask.size} connections"
        return text


def read_mask(mask: Any, shape: tuple[int, int] | None = None) -> Array:
    """A connectivity as a read-only array of bool."""
    array = as_real(mask, "mask")
    if array.ndim != 2 or 0 in array.shape or shape not in (None, array.shape):
        raise ValueError(
            f"mask has shape {array.shape}, expected {shape or '(out_features, in_features)'}"
        )
    if not np.isin(array, (0, 1)).all():
        raise ValueError("mask must hold only 0 and 1 (False and True)")
    result = array.astype(bool)
    # A trace keeps the connectivity, so it must not change behind its back.
    result.flags.writeable = False
    return result


class Flatten(Layer):
    """Put all values of a sample in one axis.

    Parameters
    ----------
    start_dim, end_dim : int
        PyTorch's defaults only, 1 and -1, counting the batch axis.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        if (start_dim, end_dim) != (1, -1):
            raise ValueError(
                "Flatten flattens whole samples: start_dim=1 and end_dim=-1, got "
                f"start_dim={start_dim} and end_dim={end_dim}"
            )

    def __call__(self, *xs: Any, out: Any = None) -> Any:
        """Flatten a batch (B, ...), or a traced variable."""
        if len(xs) == 1 and not isinstance(xs[0], Var):
            # Arrays come in batches here, as in PyTorch: a lone Flatten knows no sample shape.
            array = as_real(xs[0], "x")
            rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array
            if out is None:
                return rows
            out[...] = rows
            return out
        return super().__call__(*xs, out=out)

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        return require_variable(self, xs)._reshape((-1,), tracer.name_of(self))


class Dropout(Layer):
    """Drop values with probability `p` in training and scale the others by 1 / (1 - p).

    The pattern depends on the seed, the step and the sample alone, never on threads. In evaluation
    mode the block is the identity.

    Parameters
    ----------
    p : float
        In [0, 1): with 1 nothing would be left to scale.
    inplace : bool
        Accepted as PyTorch's; without effect.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = as_number(p, "p", low=0.0, high=1.0)
        if self.p == 1:
            raise ValueError("p must be less than 1")

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        return record_dropout(x, self.p, tracer.name_of(self), self)

    def extra_repr(self) -> str:
        """The arguments, as text."""
        return f"p={self.p:g}"


def record_dropout(x: Var, p: float, name: str, block: Any = None) -> Var:
    """Record dropout of a variable."""
    x._tracer.has_dropout = True
    return x._tracer.add("dropout", name, [x], x.shape, block=block, p=p)


class _OverFeatures(Layer):
    """Softmax and its logarithm, over the one axis of a sample."""

    _kind = ""

    def __init__(self, dim: int | None = -1) -> None:
        super().__init__()
        if dim not in (-1, 1, None):
            raise ValueError(f"{type(self).__name__} works over the features: dim=-1, got {dim}")
        self.dim = -1

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        return over_features(self._kind, x, tracer.name_of(self), self)

    def extra_repr(self) -> str:
        """The arguments, as text."""
        return "dim=-1"


def over_features(kind: str, x: Var, name: str, block: Any) -> Var:
    """Record softmax or log_softmax of a variable."""
    if len(x.shape) != 1:
        raise ShapeError(
            f"[{kind}] x has shape {x.shape} per sample, expected one axis: flatten it first"
        )
    return x._tracer.add(kind, name, [x], x.shape, block=block)


class Softmax(_OverFeatures):
    """z[i] = exp(s[i]) / sum_j exp(s[j]).

    Parameters
    ----------
    dim : int or None
        The features, which are all there is in a sample: -1, 1 or None.
    """

    _kind = "softmax"


class LogSoftmax(_OverFeatures):
    """z[i] = s[i] - log sum_j exp(s[j]).

    Parameters
    ----------
    dim : int or None
        The features, which are all there is in a sample: -1, 1 or None.
    """

    _kind = "log_softmax"


class NearestNeighbour(Layer):
    """Index of the nearest prototype, argmin_k ||x - w_k||^2; the first one of several.

    Parameters
    ----------
    in_features : int
        Length d of x and of each prototype.
    prototypes : int or array_like of shape (K, d)
        How many prototypes, drawn from a standard normal distribution, or their values.
    dtype : dtype, optional
        float32 (default) or float64.
    generator : numpy.random.Generator, optional
        Source of the initial values; by default the one of ``gs.seed``.

    Attributes
    ----------
    weight : Parameter, shape (K, d)

    Notes
    -----
    The output is discrete (int64), so no derivative passes. The prototypes train by
    ``gs.fit(net, X, None, cost=nn.SquaredError(), ...)``: the loss of a sample is its squared
    distance to the nearest prototype.
    """

    weight: Parameter

    def __init__(
        self,
        in_features: int,
        prototypes: Any,
        *,
        dtype: Any = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features = as_count(in_features, "in_features")
        kind = net_dtype(dtype)
        if np.ndim(prototypes) == 0:
            shape = (as_count(prototypes, "prototypes"), self.in_features)
            values = _random.resolve(generator).standard_normal(shape)
        else:
            values = as_real(prototypes, "prototypes")
            if values.ndim != 2 or values.shape[1] != self.in_features or not len(values):
                raise ValueError(
                    f"prototypes have shape {values.shape}, expected (K, {self.in_features})"
                )
        self.prototypes = len(values)
        self.weight = Parameter(values.astype(kind))

    def _enter(self, tracer: Tracer, *xs: Any) -> Var:
        x = require_variable(self, xs)
        name = tracer.name_of(self)
        require_features(self, x, self.in_features, name)
        weight = tracer.parameter_name(self, self.weight)
        return tracer.add("nearest", name, [x], (), block=self, weight=weight)

    def _sample_hint(self) -> SampleHint:
        return SampleHint((self.in_features,), type(self).__name__)

    def extra_repr(self) -> str:
        """The arguments, as text."""
        return f"in_features={self.in_features}, prototypes={self.prototypes}"
