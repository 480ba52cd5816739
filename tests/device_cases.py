"""What tests of devices share: tolerances, copies on a device, costs with their targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstack import nn

Array = np.ndarray

# Agreement with the CPU: float32 sums in another order.
RTOL, ATOL = 2e-4, 2e-5


def close(got: Any, expected: Any, scale: float = 1.0) -> None:
    np.testing.assert_allclose(got, expected, rtol=RTOL * scale, atol=ATOL * scale)


def close_to_exact(got: Any, expected: Any, tolerance: float = 2e-4) -> None:
    """Agreement of float32 with float64, relative to the largest entry."""
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    size = float(np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * size + 1e-6)


def on(device: str, net: nn.Module) -> nn.Module:
    return net.copy().to(device)


COSTS = {
    "squared": (nn.SquaredError(), "dense"),
    "mse sum": (nn.MSELoss(reduction="sum"), "dense"),
    "l1": (nn.L1Loss(), "dense"),
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), "dense"),
    "huber": (nn.HuberLoss(delta=0.3), "dense"),
    "cross entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), "label"),
    "weighted": (nn.CrossEntropyLoss(weight=[0.5, 2.0, 1.0, 0.25]), "label"),
    "cross entropy of probabilities": (nn.CrossEntropyLoss(), "probability"),
    "nll": (nn.NLLLoss(weight=[0.5, 2.0, 1.0, 0.25]), "label"),
    "bce": (nn.BCEWithLogitsLoss(), "unit"),
    "poisson": (nn.PoissonNLLLoss(full=True), "unit"),
    "gaussian": (nn.GaussianNLLLoss(), "half"),
    "kl": (nn.KLDivLoss(), "probability"),
    "hinge": (nn.HingeEmbeddingLoss(), "sign"),
    "quantile": (nn.QuantileLoss(0.3), "dense"),
}


def target(kind: str, n: int, rng: np.random.Generator) -> Array:
    dense = rng.normal(size=(n, 4)).astype(np.float32)
    if kind == "label":
        return rng.integers(0, 4, n)
    if kind == "unit":
        return rng.random((n, 4)).astype(np.float32)
    if kind == "probability":
        e = np.exp(dense)
        return e / e.sum(axis=1, keepdims=True)
    if kind == "half":
        return dense[:, :2]
    return np.sign(dense) if kind == "sign" else dense
