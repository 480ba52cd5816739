"""`polyak`: slowly following copies of nets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstack._arrays import as_number
from gradstack.functional import require_net

if TYPE_CHECKING:
    from gradstack.nn.module import Module


def polyak(target: Module, source: Module, tau: float) -> None:
    """Move the parameters of `target` towards those of `source`: w <- (1 - tau) w + tau w_source.

    Target networks of critics (Lillicrap et al., 2016) and averages of iterates (Polyak & Juditsky,
    1992) are kept this way.

    Parameters
    ----------
    target : Module
        Changed in place; usually made by ``source.copy()``.
    source : Module
        With as many parameters, of the same dtype.
    tau : float
        In [0, 1]; 1 copies.

    Examples
    --------
    >>> import gradstack as gs
    >>> net = gs.nn.Linear(2, 1)
    >>> slow = net.copy()
    >>> net.w += 1.0
    >>> gs.polyak(slow, net, 0.25)
    >>> bool(abs(net.w - slow.w - 0.75).max() < 1e-6)
    True
    """
    w, other = require_net(target).w, require_net(source).w
    if w.shape != other.shape or w.dtype != other.dtype:
        raise ValueError(
            f"source has {other.size} parameters of {other.dtype}, expected as target {w.size} of "
            f"{w.dtype}"
        )
    share = as_number(tau, "tau", low=0.0, high=1.0)
    w *= w.dtype.type(1.0 - share)
    w += w.dtype.type(share) * other
