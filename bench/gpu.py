"""Training and derivatives on a GPU against PyTorch and JAX: builds, checks, times.

`python -m bench.gpu --help`.

Needs nvcc, CMake, pybind11 and PyTorch with CUDA; JAX takes part where it is installed with CUDA.
Offline, under ten minutes. Every net is trained by everyone from the same weights on the same
resident data, shuffled on the device once per epoch, in float32 without tf32 unless a row says so.
Before it is timed, the gradient of each net is compared with float64 on the CPU, in every precision
that is timed; what tensor cores reach in a large product is measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from bench import gpu_calculus, gpu_check
from bench.gpu_loads import LOADS, LR, PRECISIONS, SMOKE, Task
from bench.timing import interleave

ROOT = pathlib.Path(__file__).parent.parent
MINUTES = 9.0


FUSED = "gradstack fused, bf16"


def build() -> None:
    """Build the core and the CUDA module for the GPU of this machine, into the source tree."""
    import torch

    folder = ROOT / "build" / "gpu"
    architecture = "{}{}-real".format(*torch.cuda.get_device_capability())
    cmake_dir = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), *generator]
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DGRADSTACK_PYTHON=ON", "-DGRADSTACK_CUDA=ON"]
    configure += [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    found = {**os.environ, "PATH": gpu_check.search_path()}
    subprocess.run([*configure, f"-Dpybind11_DIR={cmake_dir}"], env=found, check=True)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(
        ["cmake", "--build", str(folder), "-j", jobs, "--target", "_core", "_cuda"],
        env=found,
        check=True,
    )
    for module in (*folder.glob("_core*.so"), *folder.glob("_cuda*.so")):
        shutil.copy2(module, ROOT / "python" / "gradstack")


def case_list() -> str:
    """Run the tests of the device."""
    if importlib.util.find_spec("pytest") is None:
        return "not run: pytest is not installed"
    tests = sorted(map(str, ROOT.glob("tests/test_cuda*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "GRADSTACK_REQUIRE_CUDA": "1", "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return "\n".join(lines[-20:] if done.returncode else lines[-1:])


@contextlib.contextmanager
def asked(fused: str, epilogues: bool) -> Iterator[None]:
    """What is planned meanwhile may use the fused MLP in these halves, and epilogues."""
    wanted = {"GRADSTACK_CUDA_FUSED": fused, "GRADSTACK_CUDA_EPILOGUES": str(int(epilogues))}
    before = {name: os.environ.get(name, "") for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.update(before)


def gradient_error(
    task: Task, precision: str = "float32", fused: str = "", epilogues: bool = False
) -> float:
    """Largest error of the device's gradient against float64, relative to the largest entry."""
    import gradstack as gs

    count = min(task.load.batch, 4096)
    x, y = task.x[:count], task.y[:count]
    _, expected = gs.value_and_grad(task.net(np.float64), task.cost(), x, y)
    net = task.net().to("cuda", precision=precision)
    with asked(fused, epilogues):
        _, dw = gs.value_and_grad(net, task.cost(), x, y)
    return float(np.abs(dw - expected).max() / np.abs(expected).max())


def limits(smoke: bool) -> tuple[float, dict[str, float]]:
    """What PyTorch reaches here: bytes per second of a copy, operations of a large product."""
    import torch

    device, size = ("cpu", 256) if smoke else ("cuda", 8192)
    source = torch.empty(8 * size * size, device=device)
    target = torch.empty_like(source)

    def seconds(work: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(10):
            began = time.perf_counter()
            for _ in range(4):
                work()
            if not smoke:
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - began) / 4)
        return best

    rates = {}
    for precision in PRECISIONS:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a = torch.randn(size, size, device=device, dtype=dtype)
        b, c = torch.randn_like(a), torch.empty_like(a)
        rates[precision] = 2.0 * size**3 / seconds(functools.partial(torch.mm, a, b, out=c))
    torch.backends.cuda.matmul.allow_tf32 = False
    copied = 2.0 * source.numel() * source.element_size()
    return copied / seconds(lambda: target.copy_(source)), rates


def gradstack_run(
    task: Task, precision: str = "float32", fused: str = "", epilogues: bool = False
) -> Callable[[int], None]:
    """`fit` with the data resident; one call makes all epochs. `fused`: the fused MLP's halves."""
    import gradstack as gs
    from gradstack import optim
    from gradstack._data import read_data, settle_shapes, training_graph
    from gradstack._engine import CoreEngine, Options

    net, cost = task.net(), task.cost()
    optimizer = optim.SGD(lr=LR, momentum=task.load.momentum)
    compiled = training_graph(net, settle_shapes(net, task.x))
    data = read_data(net, compiled, cost, task.x, task.y, None)
    options = Options(task.load.batch, True, 0, 0, False, "cuda", precision)
    engine = CoreEngine(net, compiled, cost, optimizer, data, options)
    assert gs  # the package is loaded before anything is timed

    def run(epochs: int) -> None:
        with asked(fused, epilogues):  # read when the first step is planned
            engine.advance(epochs * task.load.steps)

    return run


def in_chunks(make: Callable[[], Any]) -> Any:
    """What `make` makes, with the data in chunks of 16 MiB instead of resident."""
    os.environ["GRADSTACK_STREAM_BYTES"] = str(1 << 24)
    try:
        return make()
    finally:
        del os.environ["GRADSTACK_STREAM_BYTES"]


def torch_run(task: Task, how: str, device: str) -> Callable[[int], None]:
    """PyTorch: "eager", "graph" (a whole step captured), or "compile"."""
    import torch

    from bench.peers.torch_ import sequential

    load = task.load
    bf16, tf32 = "bf16" in how, "tf32" in how
    torch.backends.cuda.matmul.allow_tf32 = tf32  # when a graph is captured, too
    net = sequential(task.layers, "relu").to(device)
    cost = torch.nn.CrossEntropyLoss() if load.cost == "cross_entropy" else torch.nn.MSELoss()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=LR, momentum=load.momentum, fused=device != "cpu"
    )
    x, y = torch.from_numpy(task.x).to(device), torch.from_numpy(task.y).to(device)
    index = torch.zeros(load.batch, dtype=torch.int64, device=device)

    def loss_of(xb: Any, yb: Any) -> Any:
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=bf16):
            return cost(net(xb), yb)

    forward = torch.compile(loss_of, mode="reduce-overhead") if "compile" in how else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        forward(x[index], y[index]).backward()
        optimizer.step()

    make: Callable[[], Any] = step
    if "graph" in how:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        make = graph.replay

    def run(epochs: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for _ in range(epochs):
            order = torch.randperm(load.samples, device=device)
            for batch in order.split(load.batch):
                index.copy_(batch)
                make()
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def jax_run(task: Task, precision: str = "float32") -> Callable[[int], None]:
    """JAX: an epoch is one jitted scan; in bf16 activations and factors of products are."""
    import jax
    import jax.numpy as jnp

    load, bf16 = task.load, precision == "bf16"
    products = "tensorfloat32" if precision == "tf32" else "highest"
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)

    def loss(layers: Any, xb: Any, yb: Any) -> Any:
        if bf16:
            xb, layers = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (xb, layers))
        for weight, bias in layers[:-1]:
            xb = jax.nn.relu(xb @ weight.T + bias)
        out = (xb @ layers[-1][0].T + layers[-1][1]).astype(jnp.float32)
        if load.cost == "mse":
            return jnp.mean((out - yb) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), yb[:, None], 1))

    def step(state: Any, index: Any) -> Any:
        layers, velocity = state
        grad = jax.grad(loss)(layers, x[index], y[index])
        velocity = jax.tree.map(lambda v, g: load.momentum * v + g, velocity, grad)
        return (jax.tree.map(lambda w, v: w - LR * v, layers, velocity), velocity), None

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, load.samples).reshape(load.steps, load.batch)
        return jax.lax.scan(step, state, order)[0]

    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in task.layers]
    kept = [(layers, jax.tree.map(jnp.zeros_like, layers)), jax.random.key(0)]

    def run(epochs: int) -> None:
        with jax.default_matmul_precision(products):  # read when an epoch is compiled
            for _ in range(epochs):
                kept[1], key = jax.random.split(kept[1])
                kept[0] = epoch(kept[0], key)
        jax.block_until_ready(kept[0])

    return run


def competitors(task: Task, smoke: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names, and what makes each one's run."""
    device = "cpu" if smoke else "cuda"
    yield "gradstack", lambda: gradstack_run(task)
    yield "gradstack, data in chunks", lambda: in_chunks(lambda: gradstack_run(task))
    yield "gradstack, tf32", lambda: gradstack_run(task, "tf32")
    yield "gradstack, bf16", lambda: gradstack_run(task, "bf16")
    for precision in PRECISIONS:
        name = f"gradstack epilogues, {precision}"
        yield name, functools.partial(gradstack_run, task, precision, epilogues=True)
    if max(task.load.widths[1:]) <= 128:
        yield FUSED, lambda: gradstack_run(task, fused="bf16")
    yield "PyTorch eager", lambda: torch_run(task, "eager", device)
    if not smoke:
        yield "PyTorch CUDA graph", lambda: torch_run(task, "graph", device)
        yield "PyTorch compile", lambda: torch_run(task, "compile", device)
        yield "PyTorch CUDA graph, tf32", lambda: torch_run(task, "graph tf32", device)
        yield "PyTorch CUDA graph, bf16", lambda: torch_run(task, "graph bf16", device)
    if importlib.util.find_spec("jax") is not None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax

        if smoke or jax.default_backend() == "gpu":
            yield "JAX jit", lambda: jax_run(task)
            yield "JAX jit, tf32", lambda: jax_run(task, "tf32")
            yield "JAX jit, bf16", lambda: jax_run(task, "bf16")


def precision_of(name: str) -> str:
    """What a competitor computes in, by its name."""
    return next((p for p in PRECISIONS if p in name), "float32")


def measure(
    task: Task, smoke: bool, repeats: int, bandwidth: float, rates: dict[str, float]
) -> dict[str, Any]:
    """Seconds of an epoch for everybody who takes part."""
    load = task.load
    result: dict[str, Any] = asdict(load)
    for epilogues, title in ((False, "gradient error"), (True, "gradient error, epilogues")):
        result[title] = {p: gradient_error(task, p, epilogues=epilogues) for p in PRECISIONS}
    runs: dict[str, Callable[[int], None]] = {}
    for name, make in competitors(task, smoke):
        # A peer that cannot run here must not cost the others their figures.
        try:
            run = make()
            run(1)
        except Exception as error:
            result[name] = f"failed: {type(error).__name__}: {error}"[:300]
            continue
        runs[name] = run
    timings = interleave(runs, dict.fromkeys(runs, 0.0), repeats, 0.02 if smoke else 0.5)
    for name, timing in timings.items():
        result[name] = {
            "best": timing.best,
            "median": timing.median,
            "Tflop/s": load.flops() / timing.best / 1e12,
            "share of a large product": load.flops() / timing.best / rates[precision_of(name)],
        }
    if FUSED in timings:
        result["fused gradient error"] = gradient_error(task, fused="bf16")
        rate = rates["bf16"]
        least = max(load.fused_bytes() / bandwidth, load.flops() / rate)
        result["fused roofline"] = {
            "GB/s": bandwidth / 1e9,
            "Tflop/s": rate / 1e12,
            "share": least / timings[FUSED].best,
        }
    return result


def show(row: dict[str, Any]) -> None:
    """Print a table of one load."""
    widths = "-".join(map(str, row["widths"]))
    print(f"\n{row['name']}: {widths}, {row['samples']} samples, batch {row['batch']}")
    for title in ("gradient error", "gradient error, epilogues"):
        errors = ", ".join(f"{e:.1e} in {p}" for p, e in row[title].items())
        print(f"  {title}, against float64: {errors}")
    for name, timing in row.items():
        if name == "fused roofline":
            print(
                f"  {FUSED}: gradient error {row['fused gradient error']:.1e}, "
                f"{timing['share']:.0%} of the roofline of {timing['GB/s']:.0f} GB/s "
                f"(a copy) and {timing['Tflop/s']:.0f} Tflop/s (a large product)"
            )
        elif isinstance(timing, dict) and "best" in timing:
            print(
                f"  {name:28s} {timing['best'] * 1e3:9.2f} ms an epoch (median "
                f"{timing['median'] * 1e3:9.2f}), {timing['Tflop/s']:7.2f} Tflop/s, "
                f"{timing['share of a large product']:4.0%} of a large product's rate"
            )
        elif isinstance(timing, str) and timing.startswith("failed"):
            print(f"  {name:28s} {timing}")


def keep(report: dict[str, Any], path: pathlib.Path | None) -> None:
    """Write the figures so far: an interrupted run keeps what it has."""
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def main() -> None:
    """Build, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    parser.add_argument("--no-build", action="store_true", help="use the modules that are there")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests of the device")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny net, peers on the CPU: checks this program"
    )
    parser.add_argument(
        "--check",
        type=pathlib.Path,
        metavar="FILE",
        nargs="?",
        const=pathlib.Path("gpu-check.txt"),
        help="instead of timing: tests and compute-sanitizer, summary in FILE (gpu-check.txt)",
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    if not arguments.no_build:
        build()
    with contextlib.suppress(ValueError):
        sys.path.remove(str(ROOT / "python"))
    sys.path.insert(0, str(ROOT / "python"))
    from gradstack._device import open_device

    if arguments.check:
        sys.exit(gpu_check.check(open_device("cuda").name, arguments.check))
    report: dict[str, Any] = {"device": open_device("cuda").name, "loads": [], "derivatives": []}
    print(f"device: {report['device']}")
    report["epilogues"] = {p: open_device("cuda").epilogues("relu", p) for p in PRECISIONS}
    for precision, found in report["epilogues"].items():
        print(f"epilogues of ReLU in {precision}: {', '.join(found) or 'none that may be used'}")
    if not arguments.no_tests:
        report["tests"] = case_list()
        print(report["tests"])
    bandwidth, rates = limits(arguments.smoke)
    report["copy GB/s"] = bandwidth / 1e9
    report["large product Tflop/s"] = {p: rate / 1e12 for p, rate in rates.items()}
    reached = ", ".join(f"{rate / 1e12:.1f} in {p}" for p, rate in rates.items())
    print(f"Tflop/s of a large product in PyTorch: {reached}")
    for load in SMOKE if arguments.smoke else LOADS:
        if time.monotonic() - began > 60 * MINUTES:
            print(f"\n{load.name}: left out, {MINUTES:g} minutes have passed")
            continue
        row = measure(Task(load), arguments.smoke, arguments.repeats, bandwidth, rates)
        report["loads"].append(row)
        show(row)
        keep(report, arguments.json)
    device, shortest = ("cpu", 0.02) if arguments.smoke else ("cuda", 0.3)
    for call in gpu_calculus.SMOKE if arguments.smoke else gpu_calculus.ROWS:
        if time.monotonic() - began > 60 * MINUTES:
            print(f"\n{call.name}: left out, {MINUTES:g} minutes have passed")
            continue
        row = gpu_calculus.measure(call, device, arguments.repeats, shortest)
        report["derivatives"].append(row)
        gpu_calculus.show(row)
        keep(report, arguments.json)


if __name__ == "__main__":
    main()
