"""A model file of the command line: a net, and what turns tables into its input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradstack as gs
from gradstack import _safetensors
from gradstack.cli._encode import Encoding
from gradstack.cli._errors import InputError

_KEY = "gradstack.table"


def save_model(path: str, net: Any, encoding: Encoding, facts: Mapping[str, Any]) -> None:
    """Write a net with its encoding and the facts of its training, atomically."""
    record = {"encoding": encoding.to_json(), "training": dict(facts)}
    gs.save(net, path, metadata={_KEY: json.dumps(record, allow_nan=False)})


def read_facts(path: str) -> tuple[Encoding, dict[str, Any]] | None:
    """Return the encoding and the training facts; None when the file was written otherwise."""
    text = _read_metadata(path).get(_KEY)
    if text is None:
        return None
    try:
        record = json.loads(text)
        return Encoding.from_json(record["encoding"]), dict(record["training"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged {_KEY} metadata: {error!r}") from None


def load_model(path: str) -> tuple[Any, Encoding]:
    """Return a net ready to predict, and its encoding."""
    facts = read_facts(path)
    if facts is None:
        raise InputError(
            f"{path} was not written by gradstack train, so how to read a table for it is unknown; "
            "use gradstack.load in Python"
        )
    net = gs.load(path)
    net.eval()
    return net, facts[0]


def _read_metadata(path: str) -> dict[str, str]:
    try:
        return _safetensors.read_metadata(path)
    except FileNotFoundError:
        raise InputError(f"there is no model {path!r}") from None
