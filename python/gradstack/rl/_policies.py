"""Actions from the outputs of a policy."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack.nn import CategoricalPolicyLoss, GaussianPolicyLoss

Array = npt.NDArray[Any]


class Categorical:
    """A policy over n actions: ybar are logits, (n,) for one state or (B, n).

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> logits = np.log([[0.5, 0.25, 0.25]])
    >>> np.exp(gs.rl.Categorical.log_prob(logits, [1]))
    array([0.25])
    >>> draws = gs.rl.Categorical.sample(np.repeat(logits, 4, axis=0), np.random.default_rng(0))
    >>> draws.shape, draws.dtype
    ((4,), dtype('int64'))
    """

    @staticmethod
    def sample(ybar: Array, rng: np.random.Generator) -> Any:
        """Draw actions: an int for one state, int64 (B,) for a batch."""
        if ybar.ndim == 1:
            # Plain Python is several times as fast as NumPy on a handful of numbers.
            logits = ybar.tolist()
            peak = max(logits)
            steps = list(accumulate([exp(x - peak) for x in logits]))
            if not steps[-1] >= 1.0:  # the peak alone gives 1
                raise ValueError(f"ybar holds NaN or infinity: {logits}")
            return bisect_left(steps, steps[-1] * (1.0 - rng.random()))
        mass = np.exp(np.subtract(ybar, ybar.max(axis=1, keepdims=True), dtype=np.float64))
        sums = np.cumsum(mass, axis=1)
        good = sums[:, -1] >= 1.0
        if not good.all():
            raise ValueError(f"ybar holds NaN or infinity in row {good.argmin()}")
        # The threshold lies in (0, sum]: an action of probability 0 is never its first upper bound.
        threshold = sums[:, -1] * (1.0 - rng.random(len(sums)))
        return np.sum(sums < threshold[:, None], axis=1)

    @staticmethod
    def log_prob(ybar: Array, actions: Any) -> Array:
        """The logarithm of pi(a | s), (B,) in the dtype of ybar."""
        y = np.column_stack([actions, np.ones(len(ybar))])
        return -np.asarray(CategoricalPolicyLoss().per_sample(ybar, y))

    @staticmethod
    def mode(ybar: Array) -> Any:
        """The likeliest actions, without chance."""
        return ybar.argmax(axis=-1)


class Gaussian:
    """A policy over m real numbers: ybar holds means and log standard deviations, (2 m,), (B, 2 m).

    Examples
    --------
    >>> import numpy as np
    >>> import gradstack as gs
    >>> gs.rl.Gaussian.mode(np.array([1.0, 2.0, 0.0, 0.0]))
    array([1., 2.])
    """

    @staticmethod
    def sample(ybar: Array, rng: np.random.Generator) -> Array:
        """Draw actions, (m,) for one state, (B, m) for a batch, in the dtype of ybar."""
        m, odd = divmod(ybar.shape[-1], 2)
        if odd:
            raise ValueError(f"ybar has shape {ybar.shape}, expected (2 m,) or (B, 2 m)")
        noise = rng.standard_normal((*ybar.shape[:-1], m), dtype=ybar.dtype)
        noise *= np.exp(ybar[..., m:])
        noise += ybar[..., :m]
        return noise

    @staticmethod
    def log_prob(ybar: Array, actions: Any) -> Array:
        """The logarithm of the density of the actions (B, m), (B,) in the dtype of ybar."""
        y = np.column_stack([actions, np.ones(len(ybar))])
        return -np.asarray(GaussianPolicyLoss().per_sample(ybar, y))

    @staticmethod
    def mode(ybar: Array) -> Array:
        """The means, without chance."""
        return ybar[..., : ybar.shape[-1] // 2]
