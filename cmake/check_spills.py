"""Compiles the CUDA kernels and fails if one of them spills registers.

Usage: check_spills.py NVCC SOURCE INCLUDE... -- ARCH...

The report is ptxas's own (-Xptxas -v). A spill means that a kernel keeps what it computes with in
memory: correct, and many times slower than its author thinks. So does a large stack frame: an array
that was meant to be registers.
"""

import re
import subprocess
import sys
import tempfile

SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
FRAME = 64  # bytes: sin and cos of large arguments have an array of seven words
KERNEL = re.compile(r"Function properties for (\S+)")


def report(nvcc: str, source: str, includes: list[str], arch: str) -> str:
    """What ptxas says of every kernel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", "-O3", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
        command += [f"-I{include}" for include in includes]
        command += [source, "-o", f"{folder}/kernels.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout + done.stderr


def spilling(text: str) -> tuple[int, list[str]]:
    """The number of kernels in a report, and a line for each that spills."""
    kernel, kernels, bad = "", 0, []
    for line in text.splitlines():
        if found := KERNEL.search(line):
            kernel = found[1]
        elif found := SPILLS.search(line):
            kernels += 1
            if int(found[1]) > FRAME or int(found[2]) or int(found[3]):
                bad.append(f"{kernel}: {found[0]}")
    return kernels, bad


def main() -> None:
    """Check every architecture."""
    split = sys.argv.index("--")
    nvcc, source, *includes = sys.argv[1:split]
    for arch in sys.argv[split + 1 :]:
        kernels, bad = spilling(report(nvcc, source, includes, arch))
        if not kernels:
            sys.exit(f"sm_{arch}: the report names no kernel")
        if bad:
            sys.exit("\n".join([f"sm_{arch}: {len(bad)} kernels spill registers:", *bad]))
        print(f"sm_{arch}: {kernels} kernels, no spills")


if __name__ == "__main__":
    main()
