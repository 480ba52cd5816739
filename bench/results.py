"""Files of results: bench/results/<date>-<machine>.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import re
from typing import Any

from bench.machine import machine_name

FOLDER = pathlib.Path(__file__).parent / "results"
PACKAGES = ["numpy", "torch", "jax", "scikit-learn", "onnxruntime"]


def document() -> dict[str, Any]:
    """Return a document without results: when, where, and against which versions."""
    import gradstack as gs

    versions = {"gradstack": gs.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": machine_name(),
        "isa": gs.show_config()["isa"],
        "date": str(datetime.date.today()),
        "versions": versions,
        "results": [],
    }


def result_path(kind: str = "") -> pathlib.Path:
    """Return where the results of today on this machine are kept."""
    machine = re.sub(r"[^a-z0-9]+", "-", machine_name().lower()).strip("-")
    return FOLDER / f"{datetime.date.today()}-{machine}{kind and '-' + kind}.json"


def write(results: dict[str, Any], path: pathlib.Path) -> None:
    """Write beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
    print(f"written: {path}")


def newest(kind: str = "") -> dict[str, Any] | None:
    """Return the newest committed results of a kind ("" or "sweep")."""
    found = sorted(
        path for path in FOLDER.glob("*.json") if path.stem.endswith("-sweep") == (kind == "sweep")
    )
    if not found:
        return None
    document: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return document
