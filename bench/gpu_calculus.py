"""Derivatives on a GPU against torch.func on the same GPU; rows of bench.gpu.

gradstack's results are NumPy arrays, so its figures contain the copy to the host. PyTorch is timed
with its results left on the device, and with the same copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import interleave

Array = npt.NDArray[Any]

CHECKED = 16  # samples compared with float64
TOLERANCE = 1e-4  # relative to the largest entry
MAX_NORM = 1.0


@dataclass(frozen=True)
class Row:
    """What is computed, for a ReLU net and a batch."""

    call: str
    widths: tuple[int, ...]
    batch: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.call}, {'-'.join(map(str, self.widths))}, batch {self.batch}"


ROWS = (
    Row("jacobian x", (64, 256, 256, 10), 8192),
    Row("jacobian w", (16, 64, 64, 4), 1024),
    Row("per_sample_grad", (64, 64, 64, 8), 4096),
    Row("per_sample_grad_norm", (784, 256, 128, 10), 4096),
    Row("clip_per_sample", (784, 256, 128, 10), 4096),
)
SMOKE = tuple(Row(row.call, (6, 9, 4), 33) for row in ROWS)


class Problem:
    """A row with its data and weights."""

    def __init__(self, row: Row) -> None:
        rng = np.random.default_rng(0)
        self.row = row
        self.x = rng.normal(size=(row.batch, row.widths[0])).astype(np.float32)
        self.y = rng.integers(0, row.widths[-1], row.batch)
        self.layers = [
            (
                rng.normal(size=(o, i), scale=(2 / i) ** 0.5).astype(np.float32),
                rng.normal(size=o, scale=0.1).astype(np.float32),
            )
            for i, o in zip(row.widths, row.widths[1:], strict=False)
        ]

    def ours(self, dtype: Any, device: str) -> Callable[[slice], Array]:
        """The call of gradstack, for some of the samples."""
        import gradstack as gs
        from gradstack import nn

        blocks: list[Any] = []
        for weight, bias in self.layers:
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            layer.weight, layer.bias = weight, bias
            blocks += [layer, nn.ReLU()]
        net, cost = nn.Sequential(*blocks[:-1]).to(device), nn.CrossEntropyLoss()
        calls: dict[str, Callable[[Any, Any], Array]] = {
            "jacobian x": lambda x, y: gs.jacobian(net, x),
            "jacobian w": lambda x, y: gs.jacobian(net, x, "w"),
            "per_sample_grad": lambda x, y: gs.per_sample_grad(net, cost, x, y),
            "per_sample_grad_norm": lambda x, y: gs.per_sample_grad_norm(net, cost, x, y),
            "clip_per_sample": lambda x, y: gs.clip_per_sample(net, cost, x, y, MAX_NORM),
        }
        return lambda part: calls[self.row.call](self.x[part], self.y[part])

    def torch(self, device: str) -> Callable[[slice], Any]:
        """The same by torch.func, a tensor on the device; parameters in the order of net.w."""
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        func = torch.func
        w = [torch.from_numpy(a).to(device) for layer in self.layers for a in layer]
        x, y = torch.from_numpy(self.x).to(device), torch.from_numpy(self.y).to(device)

        def net(w: Any, x: Any) -> Any:
            for i in range(0, len(w) - 2, 2):
                x = torch.relu(torch.nn.functional.linear(x, w[i], w[i + 1]))
            return torch.nn.functional.linear(x, w[-2], w[-1])

        def loss(w: Any, x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(net(w, x), y)

        def flat(parts: Any, lead: int) -> Any:
            return torch.cat([p.flatten(lead) for p in parts], -1)

        gradients = func.vmap(func.grad(loss), (None, 0, 0))

        def norms(parts: Any) -> Any:
            return sum(p.flatten(1).square().sum(1) for p in parts).sqrt()

        def clipped(x: Any, y: Any) -> Any:
            parts = gradients(w, x, y)
            factor = torch.clamp(MAX_NORM / norms(parts), max=1) / len(x)
            return flat([torch.tensordot(factor, p, 1) for p in parts], 0)

        jacobian_w = func.vmap(func.jacrev(net), (None, 0))
        calls: dict[str, Callable[[Any, Any], Any]] = {
            "jacobian x": lambda x, y: func.vmap(func.jacrev(net, 1), (None, 0))(w, x),
            "jacobian w": lambda x, y: flat(jacobian_w(w, x), 2),
            "per_sample_grad": lambda x, y: flat(gradients(w, x, y), 1),
            "per_sample_grad_norm": lambda x, y: norms(gradients(w, x, y)),
            "clip_per_sample": clipped,
        }
        return lambda part: calls[self.row.call](x[part], y[part])


def error(got: Array, expected: Array) -> float:
    """Largest error relative to the largest entry."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def measure(row: Row, device: str, repeats: int, shortest: float) -> dict[str, Any]:
    """Errors against float64 on the CPU, then seconds of a call for whoever is right."""
    problem = Problem(row)
    some, whole = slice(0, CHECKED), slice(0, row.batch)
    expected = problem.ours(np.float64, "cpu")(some)
    result: dict[str, Any] = {**asdict(row), "name": row.name}
    runs: dict[str, Callable[[int], None]] = {}
    errors: dict[str, float] = {}

    def enter(name: str, call: Callable[[slice], Any], to_host: Callable[[Any], Array]) -> None:
        errors[name] = error(to_host(call(some)), expected)
        if not errors[name] < TOLERANCE:
            result[name] = f"failed: error {errors[name]:.1e} against float64"
            return

        def run(times: int) -> None:
            for _ in range(times):
                call(whole)

        run(1)
        runs[name] = run

    enter("gradstack", problem.ours(np.float32, "cuda"), np.asarray)
    # A peer that cannot run here must not cost us our figures.
    try:
        import torch

        peer = problem.torch(device)

        def finished(part: slice) -> Any:
            made = peer(part)
            if device != "cpu":
                torch.cuda.synchronize()
            return made

        enter("torch.func", finished, lambda made: made.cpu().numpy())
        enter("torch.func, to the host", lambda part: peer(part).cpu().numpy(), np.asarray)
    except Exception as failure:
        result["torch.func"] = f"failed: {type(failure).__name__}: {failure}"[:300]
    for name, timing in interleave(runs, errors, repeats, shortest).items():
        result[name] = {"best": timing.best, "median": timing.median, "error": timing.error}
    return result


def show(result: dict[str, Any]) -> None:
    """Print a table of one row."""
    print(f"\n{result['name']}")
    for name, timing in result.items():
        if isinstance(timing, dict):
            print(
                f"  {name:28s} {timing['best'] * 1e3:9.3f} ms"
                f" (median {timing['median'] * 1e3:9.3f})"
                f", error against float64 {timing['error']:.1e}"
            )
        elif isinstance(timing, str) and timing.startswith("failed"):
            print(f"  {name:28s} {timing}")
