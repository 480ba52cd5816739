"""How long ``import gradstack`` takes beyond ``import numpy``: fresh interpreters, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS = 25


def seconds(code: str) -> float:
    """Time of an interpreter that runs `code`, from its start to its end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    times: dict[str, list[float]] = {"import numpy": [], "import gradstack": []}
    for code in list(times) * 2:  # files into the cache
        seconds(code)
    for _ in range(REPEATS):
        for code, taken in times.items():
            taken.append(seconds(code))
    for name, of in (("best", min), ("median", statistics.median)):
        base, whole = (1e3 * of(taken) for taken in times.values())
        print(
            f"{name:6}  numpy {base:6.1f} ms  gradstack {whole:6.1f} ms  {whole - base:5.1f} more"
        )


if __name__ == "__main__":
    main()
