"""The small programs in examples/ run and reach what they are there to show."""

import pathlib
import re
import subprocess
import sys

import pytest

import gradstack as gs

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern + r" (\d+\.\d+)", text)
    assert found, text
    return float(found[1])


def test_lecture() -> None:
    lines = run("lecture.py").splitlines()
    assert lines[0] == "output (10,)"
    assert [line.split()[0] for line in lines[1:]] == ["m0", "relu", "m1", "relu_1", "m2"]


def test_arm() -> None:
    output = run("arm.py")
    assert number("median miss", output) < 0.02
    assert number("worst", output) < 0.2


def test_digits(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn", reason="the example trains on scikit-learn's digits")
    model = tmp_path / "digits.safetensors"
    assert number("accuracy", run("digits.py", str(model))) >= 0.97
    assert gs.load(model).w.size == 64 * 128 + 128 + 128 * 10 + 10
