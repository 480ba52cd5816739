"""Fixtures and settings shared by all tests."""

import importlib.util
import os
import pathlib
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as cores: one thread for each, unless a test asks for more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

ORACLES = [
    "torch",
    "jax",
    "sklearn",
    "scipy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "pandas",
    "polars",
    "pyarrow",
    "matplotlib",
    "cma",
]

ABOUT_PACKAGES = {"test_coexistence.py", "test_package.py"}

# A shell's background jobs ignore Ctrl-C, and so would searches and fits that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("quick", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without the oracles where they are required: skipping would hide failures."""
    if os.environ.get("GRADSTACK_REQUIRE_ORACLES"):
        missing = [name for name in ORACLES if importlib.util.find_spec(name) is None]
        if missing:
            pytest.exit(f"required oracles are not installed: {', '.join(missing)}", returncode=3)


@pytest.fixture(autouse=True)
def _same_parameters_in_every_run() -> None:
    import gradstack

    gradstack.seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what passes in the file GRADSTACK_NOTE_PASSED, so that a later run may leave it out."""
    path = os.environ.get("GRADSTACK_NOTE_PASSED")
    # With xdist this is called by the workers and by the process that collects their reports.
    if path and report.when == "call" and report.passed and "PYTEST_XDIST_WORKER" not in os.environ:
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the file GRADSTACK_LEAVE_OUT names, but for tests of what is installed."""
    path = os.environ.get("GRADSTACK_LEAVE_OUT")
    if path:
        passed = set(pathlib.Path(path).read_text("utf-8").splitlines())
        wanted, done = [], []
        for item in items:
            again = item.nodeid not in passed or item.path.name in ABOUT_PACKAGES
            (wanted if again else done).append(item)
        items[:] = wanted
        config.hook.pytest_deselected(items=done)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Initialise every test's networks alike, whatever ran before it."""
    import gradstack as gs

    gs.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator of the test's own."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def cuda() -> str:
    """The name of the device; skips where there is none, saying what is missing."""
    from gradstack import _device

    try:
        _device.open_device("cuda")
    except _device.DeviceMissingError as error:
        pytest.skip(str(error))
    return "cuda"
