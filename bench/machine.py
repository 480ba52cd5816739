"""The machine: its name, and what it can do at the moment of the run."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Measured by probe.c: float32 GFLOP/s of all threads, clock of one in GHz."""

    gflops: float
    clock: float


def machine_name() -> str:
    """Processor and core count."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


class Probe:
    """The compiled probe; without a C compiler there are no peak figures."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._binary = pathlib.Path(self._folder.name) / "probe"
        compiler = shutil.which("gcc") or shutil.which("cc")
        self.available = compiler is not None
        if compiler is not None:
            source = pathlib.Path(__file__).parent / "probe.c"
            flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp"]
            subprocess.run([compiler, *flags, str(source), "-o", str(self._binary)], check=True)

    def measure(self, threads: int) -> Peak | None:
        """Peak of `threads` threads now; about a tenth of a second."""
        if not self.available:
            return None
        done = subprocess.run(
            [str(self._binary), str(threads)], capture_output=True, text=True, check=True
        )
        gflops, clock = map(float, done.stdout.split())
        return Peak(gflops, clock)
