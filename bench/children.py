"""A process for each number of threads: most libraries read their thread count once."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any


def thread_counts(text: str) -> list[int]:
    """Read ``1,2,4`` or ``1-16``."""
    counts: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        counts |= set(range(int(first), int(last or first) + 1))
    return sorted(counts)


def measurable(counts: Sequence[int]) -> Iterator[int]:
    """Leave out what has no core for each thread, and say so."""
    cores = len(os.sched_getaffinity(0))
    left_out = [count for count in counts if count > cores]
    if left_out:
        print(f"\n({', '.join(map(str, left_out))} threads: this process may use {cores} cores)")
    yield from (count for count in counts if count <= cores)


def pin(threads: int) -> None:
    """Let this process use that many cores only."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def run_child(module: str, arguments: Sequence[str], threads: int) -> Any:
    """Run ``python -m module arguments --child FILE --threads N``; return what it wrote as JSON."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "results.json"
        command = [sys.executable, "-m", module, *arguments]
        command += ["--child", str(out), "--threads", str(threads)]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            sys.exit(code)
        return json.loads(out.read_text(encoding="utf-8"))
