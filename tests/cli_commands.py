"""Tables and calls of the gradstack command for its tests."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
import pytest

from gradstack.cli import main

Capture = pytest.CaptureFixture[str]
FAST = ["--hidden", "16", "--dropout", "0", "--epochs", "200", "--quiet"]


def table_rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: str, header: list[str], rows: Any, delimiter: str = ",") -> str:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def flowers(path: str = "flowers.csv", n: int = 150, delimiter: str = ",") -> str:
    """Text classes, decided by one number and one category."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        length = rng.choice([40, 60]) + rng.normal(0, 3)
        colour = str(rng.choice(["red", "blue", "green"]))
        kind = "rose" if (length > 50) == (colour == "red") else "tulip"
        rows.append([f"{length:.3f}", colour, kind])
    return write(path, ["length", "colour", "kind"], rows, delimiter)


def prices(path: str = "prices.csv", n: int = 200) -> str:
    """A number, far from mean 0 and variance 1."""
    rng = np.random.default_rng(0)
    size, age = rng.uniform(20, 200, n), rng.integers(0, 80, n)
    price = 3000 * size - 900 * age + 50000
    rows = zip(size.tolist(), age.tolist(), price.tolist(), strict=True)
    return write(path, ["size", "age", "price"], rows)


def ok(*arguments: str, capsys: Capture) -> str:
    """Run a command that must succeed; returns its standard output."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def as_json(*arguments: str, capsys: Capture) -> Any:
    return json.loads(ok(*arguments, "--json", capsys=capsys))


def fails(*arguments: str, capsys: Capture, code: int = 2) -> str:
    """Run a command that must fail with one line on stderr; returns it."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("gradstack: error: ")
    return line
