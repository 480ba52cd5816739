"""Fixtures and settings shared by all tests."""

import importlib.util
import os

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
