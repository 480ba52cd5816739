"""Held-out scores, by their textbook formulas."""

from __future__ import annotations

import numpy as np

from gradstack.cli._encode import Target
from gradstack.cli._table import Array


def answers(outputs: Array, target: Target) -> Array:
    """Turn a net's outputs into probabilities (N, classes), or numbers (N,) in the target's unit.

    Parameters
    ----------
    outputs : (N, classes) array
        Logits, or (N, 1) standardised numbers.
    """
    outputs = outputs.astype(np.float64)
    if not target.classes:
        numbers: Array = outputs[:, 0] * target.scale + target.mean
        return numbers
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    probabilities: Array = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def score(answer: Array, truth: Array, target: Target) -> dict[str, float]:
    """Score answers against the encoded truth.

    Returns
    -------
    dict
        Classification: accuracy and log_loss (natural logarithm). Regression: r2 (NaN when the
        truth is constant), rmse and mae in the target's unit. The first entry is the main one.
    """
    if target.classes:
        given = answer[np.arange(len(truth)), truth]
        # A probability that underflowed must not turn the average into infinity.
        tiny = np.finfo(np.float64).tiny
        return {
            "accuracy": float(np.mean(answer.argmax(axis=1) == truth)),
            "log_loss": float(-np.mean(np.log(np.maximum(given, tiny)))),
        }
    error = answer - truth
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return {
        "r2": 1 - float(np.sum(error**2)) / spread if spread > 0 else float("nan"),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
    }
