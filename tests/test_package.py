"""What is installed: contents, size, dependencies, imports, exported symbols."""

import importlib.metadata
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import gradstack as gs
from gradstack import _core

ROOT = pathlib.Path(__file__).parent.parent
try:
    DISTRIBUTION = importlib.metadata.distribution("gradstack")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("gradstack is on the path but not installed", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(code: str) -> str:
    """Output of `code` in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_version_is_written_once() -> None:
    assert gs.__version__ == _core.__version__ == DISTRIBUTION.version == PROJECT["version"]


def test_numpy_is_the_only_dependency() -> None:
    base = [line for line in DISTRIBUTION.requires or [] if "extra ==" not in line]
    assert [re.split(r"[^a-z]", line)[0] for line in base] == ["numpy"]


def test_import_brings_numpy_alone() -> None:
    loaded = run(
        "import sys, numpy; before = set(sys.modules); import gradstack\n"
        "from gradstack import nn, optim\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    assert loaded.split() in (["gradstack"], ["gradstack", "numpy"])


def test_import_leaves_out_what_few_need() -> None:
    # bench/import_time.py measures the time; here is what it depends on.
    loaded = run("import sys, gradstack; print(*sys.modules)").split()
    rare = {"cli", "interop", "io", "plot", "blackbox", "rl", "_draw", "_simplify", "_gradcheck"}
    assert not {f"gradstack.{name}" for name in rare} & set(loaded)
    assert not {"argparse", "multiprocessing", "asyncio", "unittest", "sqlite3"} & set(loaded)


def test_extras() -> None:
    wanted = {"cli", "plot", "sklearn", "test", "oracles", "all"}
    assert wanted <= set(DISTRIBUTION.metadata.get_all("Provides-Extra") or [])
    everything = PROJECT["optional-dependencies"]["all"]
    assert not any("torch" in line for line in everything)


def installed_files() -> dict[str, pathlib.Path]:
    files = {str(f): pathlib.Path(str(f.locate())) for f in DISTRIBUTION.files or []}
    own = {name: path for name, path in files.items() if name.startswith("gradstack/")}
    if not any("_core" in name for name in own):
        pytest.skip("an editable install has no files of its own")
    return {name: path for name, path in own.items() if not name.endswith(".pyc")}


def test_wheel_holds_what_runs() -> None:
    suffixes = {pathlib.PurePath(name).suffix for name in installed_files()}
    assert suffixes <= {".py", ".pyi", ".so", ".typed"}
    assert sum(name.endswith(".so") for name in installed_files()) == 1
    assert "gradstack/py.typed" in installed_files()
    assert "gradstack/_core.pyi" in installed_files()


def test_wheel_is_small() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, path in installed_files().items():
            wheel.write(path, name)
    size = archive.tell() / 2**20
    assert size < 5, f"{size:.1f} MB"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_extension_exports_its_init_function_alone() -> None:
    # Anything else, an inlined std:: function in particular, could be bound by another extension.
    done = subprocess.run(
        ["nm", "-D", "--defined-only", _core.__file__], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["PyInit__core"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_extension_needs_the_system_alone() -> None:
    done = subprocess.run(
        ["readelf", "-d", _core.__file__], capture_output=True, text=True, check=True
    )
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\.so", done.stdout))
    assert needed <= {
        "libstdc++",
        "libm",
        "libgomp",
        "libgcc_s",
        "libc",
        "libpthread",
        "ld-linux-x86-64",
    }
    assert not re.search(r"\((RPATH|RUNPATH)\)", done.stdout)
