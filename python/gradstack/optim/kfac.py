"""K-FAC: natural gradient with a Kronecker-factored curvature matrix per layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradstack._arrays import as_count, as_number
from gradstack._problem import BatchProblem, LayerSlot, dense_slots
from gradstack.optim.base import Array, positive
from gradstack.optim.python import PythonOptimizer
from gradstack.optim.schedules import Lr

_EXACT_OUTPUTS = 32  # so many backward passes per update of the factors are still worth it


class KFAC(PythonOptimizer):
    """K-FAC: natural gradient with Kronecker factors (Martens and Grosse 2015).

    The generalised Gauss-Newton matrix of each linear layer is taken as A (x) S, where A = E[z z^T]
    is the second moment of its inputs (with a 1 for the bias) and S = E[ds ds^T] that of the
    gradients at its outputs under the model's own distribution. Both are running averages. The step
    is -lr (A (x) S + damping I)^-1 g, with momentum.

    Parameters
    ----------
    lr : float or callable
        Learning rate.
    momentum : float
        In [0, 1): part of the last step that is repeated.
    damping : float
        Added to every eigenvalue of A (x) S.
    decay : float
        In [0, 1): weight of the past in the running averages (less at the start).
    update_every : int
        Steps between updates of the factors.
    samples : int, optional
        Random gradients per sample that S is estimated from. None: exact, by one backward pass per
        output of the net, up to 32 outputs; else 1.
    kl_clip : float, optional
        The step is shortened so that lr^2 g d (about twice the Kullback-Leibler divergence from the
        model before it) is at most this. None: never.
    weight_decay : float
        weight_decay * w is added to the gradient.
    seed : int
        Seeds `samples`.
    clip_norm, clip_value : float, optional
        Limits of the gradient.
    decay_bias : bool
        False keeps weight decay off the biases.

    Notes
    -----
    Source: "Optimizing neural networks with Kronecker-factored approximate curvature"; the damping
    is added to the eigenvalues of the product. Factors see the net without dropout. A weight used
    by several blocks has one pair of factors for all of them. Parameters outside of linear layers
    move along the plain gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> from gradstack import nn, optim
    >>> gs.seed(0)
    >>> X = np.random.default_rng(0).standard_normal((200, 2))
    >>> y = (X[:, 0] * X[:, 1] > 0).astype(int)
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> history = gs.fit(net, X, y, cost=nn.CrossEntropyLoss(), optimizer=optim.KFAC(), epochs=20)
    >>> history.loss[-1] < 0.2
    True
    """

    def __init__(
        self,
        lr: Lr = 0.03,
        momentum: float = 0.9,
        damping: float = 1e-2,
        decay: float = 0.95,
        update_every: int = 10,
        samples: int | None = None,
        kl_clip: float | None = 1e-4,
        weight_decay: float = 0.0,
        seed: int = 0,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        decay_bias: bool = True,
    ) -> None:
        arguments = {
            "momentum": _below_one(momentum, "momentum"),
            "damping": positive(damping, "damping"),
            "decay": _below_one(decay, "decay"),
            "update_every": as_count(update_every, "update_every"),
            "samples": None if samples is None else as_count(samples, "samples"),
            "kl_clip": None if kl_clip is None else positive(kl_clip, "kl_clip"),
            "weight_decay": as_number(weight_decay, "weight_decay", low=0.0),
            "seed": as_count(seed, "seed", low=0),
        }
        super().__init__(lr, clip_norm, clip_value, decay_bias, arguments)

    def _start(self) -> None:
        super()._start()
        self._factors: list[Factors] = []
        self._spectra: list[Spectrum] = []
        self._updates = 0
        self._velocity: Array | None = None

    def step(self, problem: Any, w: Array, lr: float) -> float:
        """One step on a batch, changing w in place; the loss before it."""
        loss, gradient = problem.value_and_grad(w)
        if not math.isfinite(loss):
            return float(loss)
        slots = [slot for slot in dense_slots(problem.compiled, "KFAC") if slot.blocks]
        g = self._clip(gradient).astype(np.float64)
        if self.weight_decay:
            g += self._decayed(problem, w)
            g[problem.held] = 0
        if self._t % self.update_every == 0 or not self._spectra:
            self._update(problem, w, slots)
        direction = g.copy()
        for slot, spectrum in zip(slots, self._spectra, strict=True):
            _scatter(slot, direction, spectrum.solve(_gather(slot, g), self.damping))
        direction[problem.held] = 0
        slope = float(g @ direction)
        if self.kl_clip is not None and lr > 0 and slope > 0:
            direction *= min(1.0, math.sqrt(self.kl_clip / (lr * lr * slope)))
        if self._velocity is None:
            self._velocity = np.zeros_like(direction)
        self._velocity *= self.momentum
        self._velocity += direction
        w -= (lr * self._velocity).astype(w.dtype)
        self.__dict__["_t"] += 1
        return float(loss)

    def _decayed(self, problem: BatchProblem, w: Array) -> Array:
        decay: Array = self.weight_decay * w.astype(np.float64)
        if not self.decay_bias:
            for parameter in problem.compiled.graph.parameters():
                if len(parameter["shape"]) == 1:
                    begin = parameter["offset"]
                    decay[begin : begin + parameter["shape"][0]] = 0
        return decay

    def _update(self, problem: BatchProblem, w: Array, slots: list[LayerSlot]) -> None:
        fresh = kronecker_factors(problem, w, slots, self.samples, [self.seed, self._t])
        self._updates += 1
        old = min(1.0 - 1.0 / self._updates, self.decay)
        if old > 0:
            fresh = [
                Factors(old * f.a + (1 - old) * new.a, old * f.s + (1 - old) * new.s)
                for f, new in zip(self._factors, fresh, strict=True)
            ]
        self._factors = fresh
        self._spectra = [Spectrum.of(f) for f in fresh]

    def _export(self) -> tuple[dict[str, Array], dict[str, Any]]:
        arrays = {} if self._velocity is None else {"velocity": self._velocity}
        for i, factors in enumerate(self._factors):
            arrays[f"a{i}"], arrays[f"s{i}"] = factors.a, factors.s
        return arrays, {"updates": self._updates, "layers": len(self._factors)}

    def _import(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        self._velocity = np.array(arrays["velocity"]) if "velocity" in arrays else None
        self._updates = int(numbers["updates"])
        self._factors = [
            Factors(np.array(arrays[f"a{i}"]), np.array(arrays[f"s{i}"]))
            for i in range(numbers["layers"])
        ]
        self._spectra = [Spectrum.of(f) for f in self._factors]


class Factors(NamedTuple):
    """Second moments of a layer: of its inputs, (in [+ 1]) squared, and of ds, (out, out)."""

    a: Array
    s: Array


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of both factors."""

    a: Array
    a_vectors: Array
    s: Array
    s_vectors: Array

    @classmethod
    def of(cls, factors: Factors) -> Spectrum:
        """Decompose both factors."""
        a, a_vectors = np.linalg.eigh(factors.a)
        s, s_vectors = np.linalg.eigh(factors.s)
        return cls(np.maximum(a, 0), a_vectors, np.maximum(s, 0), s_vectors)

    def solve(self, dw: Array, damping: float) -> Array:
        """(A (x) S + damping I)^-1 applied to dw, (out, in [+ 1])."""
        turned = self.s_vectors.T @ dw @ self.a_vectors
        turned /= np.outer(self.s, self.a) + damping
        back: Array = self.s_vectors @ turned @ self.a_vectors.T
        return back


def kronecker_factors(
    problem: BatchProblem, w: Array, slots: list[LayerSlot], samples: int | None, seed: list[int]
) -> list[Factors]:
    """The factors of every layer on one batch.

    Their Kronecker product approximates the layer's block of the generalised Gauss-Newton matrix of
    the average loss; for one sample it equals it.
    """
    ybar = problem.outputs(w)
    root = problem.curvature(w, ybar).root
    d = ybar.shape[1]
    exact = samples is None and d <= _EXACT_OUTPUTS
    passes = d if exact else samples or 1
    rng = np.random.default_rng(seed)

    def gradients() -> Iterator[Array]:
        for k in range(passes):
            if exact:
                draw = np.zeros_like(ybar)
                draw[:, k] = 1
            else:
                draw = rng.standard_normal(ybar.shape).astype(ybar.dtype)
                draw *= draw.dtype.type(1 / math.sqrt(passes))
            yield root.transposed(draw).astype(ybar.dtype)

    moments = problem.layer_moments(w, slots, gradients())
    return [
        Factors(m.z / (problem.count * len(slot.blocks)), m.ds)
        for slot, m in zip(slots, moments, strict=True)
    ]


def _gather(slot: LayerSlot, g: Array) -> Array:
    dw: Array = g[slot.weight].reshape(slot.shape)
    return dw if slot.bias is None else np.column_stack([dw, g[slot.bias]])


def _scatter(slot: LayerSlot, to: Array, dw: Array) -> None:
    n = slot.shape[1]
    to[slot.weight] = dw[:, :n].reshape(-1)
    if slot.bias is not None:
        to[slot.bias] = dw[:, n]


def _below_one(value: Any, name: str) -> float:
    number = as_number(value, name, low=0.0)
    if number >= 1:
        raise ValueError(f"{name} must be in [0, 1), got {number:g}")
    return number
