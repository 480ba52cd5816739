"""``gradstack info``: what a model file holds, or what is installed here."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

import numpy as np

import gradstack as gs
from gradstack import _safetensors
from gradstack.cli._errors import InputError
from gradstack.cli._model import read_facts

_PACKAGES = ("scikit-learn", "tqdm", "pyarrow", "onnx", "torch")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print and return the description."""
    return _installation(arguments) if arguments.model is None else _model(arguments)


def _installation(arguments: argparse.Namespace) -> dict[str, Any]:
    config = gs.show_config()
    packages: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = None
    if not arguments.json:
        print(f"gradstack {gs.__version__}")
        print(f"python {platform.python_version()}, numpy {np.__version__}, {platform.platform()}")
        for key, value in config.items():
            print(f"{key} {value}")
        for package, version in packages.items():
            print(f"{package} {version or 'not installed'}")
    return {
        "command": "info",
        "gradstack": gs.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "config": config,
        "packages": packages,
    }


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.model
    try:
        tensors, _ = _safetensors.read(path)
    except FileNotFoundError:
        raise InputError(f"there is no model {path!r}") from None
    facts = read_facts(path)
    parameters = [
        {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in tensors.items()
    ]
    result: dict[str, Any] = {
        "command": "info",
        "model": path,
        "parameters": parameters,
        "n_parameters": sum(array.size for array in tensors.values()),
        "network": None,
    }
    try:
        result["network"] = repr(gs.load(path))
    except ValueError as error:
        result["network_missing"] = str(error)
    if facts is not None:
        encoding, training = facts
        result["task"] = encoding.target.task
        result["target"] = encoding.target.name
        result["classes"] = list(encoding.target.class_names or encoding.target.classes)
        result["columns"] = [feature.name for feature in encoding.features]
        result["training"] = training
    if not arguments.json:
        _print(result)
    return result


def _print(result: dict[str, Any]) -> None:
    print(result["network"] or f"no network: {result['network_missing']}")
    for parameter in result["parameters"]:
        shape = " x ".join(str(extent) for extent in parameter["shape"])
        print(f"{parameter['name']}: {shape or 'scalar'} {parameter['dtype']}")
    print(f"{result['n_parameters']} parameters")
    if "task" not in result:
        return
    classes = f", classes {', '.join(result['classes'])}" if result["classes"] else ""
    columns = len(result["columns"])
    print(f"{result['task']} of {result['target']!r} from {columns} columns{classes}")
    for key, value in result["training"].items():
        nested = isinstance(value, dict)
        text = ", ".join(f"{name} {item}" for name, item in value.items()) if nested else value
        print(f"{key}: {text}")
