"""One workload, every peer: the same results first, then interleaved timings."""

from __future__ import annotations

import numpy as np

from bench.peers import Peer, UnsupportedError, installed_peers
from bench.peers.numpy_ import Peer as NumpyPeer
from bench.timing import Timing, interleave
from bench.workloads import Workload, make_task

# Weights after the checked steps, in units of how far they have moved. Rounding of float32 grows
# with the steps; a different formula, data order or initialisation is off by tens of percent.
TOLERANCE = 0.02


def _movement_error(peer: Peer, expected: list[np.ndarray], start: list[np.ndarray]) -> float:
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(peer.weights(), expected, strict=True))
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, start, strict=True))
    return float(np.sqrt(off / moved))


def compare(
    workload: Workload, threads: int, repeats: int, budget: float, only: list[str]
) -> dict[str, Timing]:
    """Check and time every installed peer on `workload`.

    Every peer makes one epoch first, whose weights must agree with NumPy in float64. Then all take
    turns, `repeats` rounds of about `budget` seconds each per peer.
    """
    task = make_task(workload, threads)
    reference = NumpyPeer(task, np.float64)
    start = reference.weights()
    reference.run(workload.batches)
    expected = reference.weights()

    peers: list[Peer] = []
    errors: dict[str, float] = {}
    for kind in installed_peers():
        if only and not any(word.lower() in kind.name.lower() for word in only):
            continue
        try:
            peer = kind(task)
        except UnsupportedError as reason:
            print(f"({kind.name}: {reason})")
            continue
        peer.run(workload.batches)
        errors[peer.name] = _movement_error(peer, expected, start)
        if not errors[peer.name] <= TOLERANCE:
            raise AssertionError(
                f"{peer.name} computed something else on {workload.name}: weights are off by "
                f"{errors[peer.name]:.1%} of their movement"
            )
        peers.append(peer)

    unit = workload.batches if workload.mode == "fit" else 1
    return interleave({peer.name: peer.run for peer in peers}, errors, repeats, budget, unit)
