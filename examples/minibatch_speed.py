"""How many samples a second: minibatches use the hardware better.

Lecture: "Gradient descent", full batch, stochastic and minibatch. One sample at a time is the best
use of data, but a processor multiplies matrices much faster than vectors, and only a batch can be
shared among threads. So one trains on the smallest batches that keep the hardware busy.

Training steps of a 64-128-128-10 network, for several sizes of the batch and one and two threads;
the results of both are the same to the last bit.

Run it: ``python examples/minibatch_speed.py [--quick] [--out FOLDER]``.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from common import Array, arguments, save

import gradstack as gs
from gradstack import nn, optim


def network() -> nn.Module:
    """Build the network, every time the same."""
    gs.seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def rate(batch: int, threads: int, seconds: float) -> tuple[float, Array]:
    """Samples per second of the fastest of many short runs, and the weights after the first."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((max(2048, 8 * batch), 64)).astype(np.float32)
    labels = rng.integers(0, 10, len(x))
    net, optimizer = network(), optim.SGD(lr=0.01)
    best, first = 0.0, None
    end = time.perf_counter() + seconds
    while first is None or time.perf_counter() < end:
        start = time.perf_counter()
        gs.fit(net, x, labels, cost=nn.CrossEntropyLoss(), optimizer=optimizer, batch_size=batch,
               epochs=1, num_threads=threads)  # fmt: skip
        best = max(best, len(x) / (time.perf_counter() - start))
        first = net.w.copy() if first is None else first
    return best, first


def main() -> None:
    """Measure, compare, draw."""
    options = arguments(__doc__)
    sizes = [1, 8, 64, 512] if options.quick else [2**i for i in range(12)]
    seconds = 0.1 if options.quick else 3.0
    rates: dict[int, list[float]] = {1: [], 2: []}
    for batch in sizes:
        weights = []
        for threads, measured in rates.items():
            samples, w = rate(batch, threads, seconds)
            measured.append(samples)
            weights.append(w)
        same = "the same" if np.array_equal(*weights) else "different"
        print(
            f"batch {batch}: {rates[1][-1]:.3g} samples/s with one thread, {rates[2][-1]:.3g} with "
            f"two, {same} weights",
            flush=True,
        )
    gain = max(rates[1]) / rates[1][0]
    print(f"one thread gains {gain:.1f} times, two {max(rates[2]) / rates[1][0]:.1f} times")

    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for threads, color in ((1, "C0"), (2, "C1")):
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        axis.loglog(sizes, rates[threads], "o-", color=color, ms=4, label=label, base=2)
    axis.set_yscale("log", base=10)
    axis.set(xlabel="samples in a batch", ylabel="training samples per second")
    axis.set_title("64-128-128-10, ReLU, SGD, float32")
    axis.legend()
    save(figure, options.out, "minibatch_speed.png")


if __name__ == "__main__":
    main()
