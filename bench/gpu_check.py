"""Whether device="cuda" is right on this GPU: `python -m bench.gpu --check`. Offline.

The tests of the device, then compute-sanitizer over a few of them: memcheck (addresses, leaks of
nothing but what libraries keep, API errors) and racecheck (shared memory). Writes what was seen to
a file, with the device's name; exits with 1 if anything failed and 2 if something could not be run.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent

# One case of every kind of kernel: sanitizers are ten to a hundred times slower.
REDUCED = (
    "test_every_op[tanh]",
    "test_every_op[relu]",
    "test_random_graphs[3]",
    "test_batches_that_do_not_fill_a_block",
    "test_sparse_layers_and_masks",
    "test_nearest_neighbour",
    "test_every_kind_of_cost[weighted-True]",
    "test_every_kind_of_cost[gaussian-False]",
    "test_training_with_every_rule[clip norm]",
    "test_training_with_every_rule[adam]",
    "test_dropout_has_the_masks_of_the_cpu",
    "test_trainer_steps",
    "test_chunks_of_any_size[late-33]",
    "test_tensors_of_pytorch",
    "test_chains[all-True-relu]",
    "test_chains[all-True-gelu_tanh]",
)
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


class Outcome(NamedTuple):
    """Of one check."""

    name: str
    verdict: str
    seconds: float
    said: str


def search_path() -> str:
    """Where programs of the toolkit may be: the path, then its usual homes."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(pathlib.Path(home) / "bin") for home in homes if home]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])


def sanitizer() -> str | None:
    """The program, on the path or in the toolkit."""
    return shutil.which("compute-sanitizer", path=search_path())


def test_files() -> list[str]:
    """The tests of the device."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/test_cuda*.py"))


def collected(prefix: list[str]) -> list[str]:
    """The reduced list as the names that pytest knows."""
    done = subprocess.run(
        [*prefix, "--collect-only", "-q", *test_files()],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.partition("::")[2] in REDUCED]
    missing = set(REDUCED) - {line.partition("::")[2] for line in found}
    if missing:
        raise LookupError(f"there are no tests called {sorted(missing)}\n{done.stdout[-2000:]}")
    return found


def environment() -> dict[str, str]:
    """A device is required: a skipped test is a test that was not made."""
    found = {**os.environ, "GRADSTACK_REQUIRE_CUDA": "1"}
    if any((ROOT / "python" / "gradstack").glob("_core*.so")):  # built here by bench.gpu
        found["PYTHONPATH"] = str(ROOT / "python")
    return found


def outcome(name: str, command: list[str], clean: str) -> Outcome:
    """Run a command; it passed if it ends with 0 and says that it is clean."""
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    good = done.returncode == 0 and re.search(clean, done.stdout) is not None
    lines = done.stdout.strip().splitlines()
    kept = "\n".join(lines[-4:] if good else lines[-60:])
    return Outcome(name, PASSED if good else FAILED, time.monotonic() - began, kept)


def checks() -> list[Outcome]:
    """All of them, one after the other."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("pytest") is None:
        return [Outcome("tests", NOT_RUN, 0.0, "pytest is not installed")]
    made = [outcome("tests", [*pytest, "-rs", *test_files()], r"\d+ passed")]
    program = sanitizer()
    for tool, clean in (
        ("memcheck", r"ERROR SUMMARY: 0 errors"),
        ("racecheck", r"RACECHECK SUMMARY: 0 hazards"),
    ):
        if program is None:
            made.append(Outcome(tool, NOT_RUN, 0.0, "compute-sanitizer was not found"))
            continue
        options = ["--tool", tool, "--error-exitcode", "1"]
        made.append(outcome(tool, [program, *options, *pytest, *collected(pytest)], clean))
    return made


def check(device: str, path: pathlib.Path) -> int:
    """Make the checks on a device of that name and write what was seen; the exit code."""
    made = checks()
    text = [f"device: {device}", f"python: {sys.version.split()[0]}", ""]
    text += [f"{o.name:10s} {o.verdict:8s} {o.seconds:7.1f} s" for o in made]
    for o in made:
        text += ["", f"--- {o.name} ---", o.said]
    path.write_text("\n".join(text) + "\n", "utf-8")
    print("\n".join(text[: 3 + len(made)]))
    print(f"written to {path}")
    verdicts = {o.verdict for o in made}
    return 1 if FAILED in verdicts else 2 if NOT_RUN in verdicts else 0
