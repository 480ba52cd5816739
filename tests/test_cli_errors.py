"""The gradstack command when things go wrong: one line, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gradstack as gs
from cli_commands import FAST, Capture, fails, flowers, ok, prices


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Errors -------------------------------------------------------------------------------------------


def test_bad_data(capsys: Capture) -> None:
    def train(*arguments: str) -> str:
        return fails("train", *arguments, *FAST, capsys=capsys)

    def table(text: str) -> str:
        Path("t.csv").write_text(text)
        return "t.csv"

    assert "no file 'none.csv'" in train("none.csv", "--target", "y")
    assert "cannot tell what 'thing' is" in train("thing", "--target", "y")
    assert "--target is needed: the columns are a, y" in train(table("a,y\n1,2\n"))
    assert "no column 'z'; it has a, y" in train(table("a,y\n1,2\n"), "--target", "z")
    assert "no column 'q'" in train(table("a,y\n1,2\n"), "--target", "y", "--drop", "q")
    assert "no column left" in train(table("y\n1\n0\n1\n0\n"), "--target", "y", "--test-size", "0")
    assert "is empty" in train(table(""), "--target", "y")
    assert "t.csv has no rows to train on" in train(table("a,y\n"), "--target", "y")
    np.savez("t.npz", a=np.array([None, 1], object))
    assert "no arrays of numbers or text" in train("t.npz", "--target", "a")
    assert "line 3: 1 cells, expected 2" in train(table("a,y\n1,2\n3\n"), "--target", "y")
    assert "occur twice: a" in train(table("a,a,y\n1,2,3\n"), "--target", "y")
    assert "column 'a' of t.csv has 1 missing values, the first in line 3" in train(
        table("a,y\n1,0\n,1\n3,0\n"), "--target", "y", "--test-size", "0"
    )
    assert "has 2 missing values, the first in line 2" in train(
        table("a,y\nNA,0\n2,1\nnan,0\n"), "--target", "y", "--test-size", "0"
    )
    assert "column 'c' of t.csv has missing values, the first in line 4" in train(
        table("c,y\nu,0\nv,1\n,0\n"), "--target", "y", "--test-size", "0"
    )
    assert "column 'y' of t.csv has 1 missing" in train(table("a,y\n1,0\n2,\n"), "--target", "y")
    assert "column 'a' of t.csv has 1 infinite" in train(
        table("a,y\n1,0\ninf,1\n"), "--target", "y", "--test-size", "0"
    )
    assert "expected numbers" in train(
        table("a,y\n1,u\n2,v\n"), "--target", "y", "--task", "regression"
    )
    assert "1 distinct values" in train(table("a,y\n1,u\n2,u\n"), "--target", "y")
    assert "leave none to hold out" in train(table("a,y\n1,0\n2,1\n"), "--target", "y")
    names = "".join(f"name{i},{i % 2}\n" for i in range(101))
    assert "column 'id' of t.csv is text with 101 distinct values" in train(
        table("id,y\n" + names), "--target", "y"
    )
    Path("t.csv").write_bytes(b"a,y\n\xff,1\n")
    assert "not UTF-8" in train("t.csv", "--target", "y")
    Path("t.npz").write_bytes(b"PK nonsense")
    assert "cannot read t.npz" in train("t.npz", "--target", "y")
    np.savez("u.npz", X=np.zeros((3, 2)), y=np.zeros(4))
    assert "different numbers of rows" in train("u.npz")
    np.savez("v.npz", X=np.array([{}, {}]), y=np.zeros(2))
    assert "cannot read v.npz" in train("v.npz")
    np.savez("w.npz", X=np.zeros(2, complex), y=np.zeros(2))
    assert "'X' has dtype complex128" in train("w.npz")
    assert not Path("model.safetensors").exists()


def test_bad_parquet(capsys: Capture) -> None:
    pytest.importorskip("pyarrow", reason="reads the file")
    Path("t.parquet").write_bytes(b"PAR1 nonsense")
    assert "cannot read t.parquet" in fails("train", "t.parquet", "--target", "y", capsys=capsys)
    assert "no file" in fails("train", "none.parquet", "--target", "y", capsys=capsys)


def test_bad_rows_for_a_model(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)

    def use(command: str, text: str) -> str:
        Path("t.csv").write_text(text)
        return fails(command, "model.safetensors", "t.csv", capsys=capsys)

    assert "no column 'length'; it has colour" in use("predict", "colour\nred\n")
    assert "has 'mauve' in line 3; in training it was one of blue, green, red" in use(
        "predict", "length,colour\n1,red\n2,mauve\n"
    )
    assert "holds text ('long' in line 2), expected numbers" in use(
        "predict", "length,colour\nlong,red\n"
    )
    assert "has 'lily' in line 2; the classes are rose, tulip" in use(
        "evaluate", "length,colour,kind\n1,red,lily\n"
    )
    assert "no rows to score" in use("evaluate", "length,colour,kind\n")
    assert use("predict", "").endswith("t.csv is empty")


def test_no_rows_to_predict(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    Path("t.csv").write_text("length,colour\n")
    assert ok("predict", "model.safetensors", "t.csv", capsys=capsys) == "kind\n"


def test_bad_arguments(capsys: Capture) -> None:
    data = [flowers(), "--target", "kind"]
    wrong = {
        ("--hidden", "a"): "not a list of widths",
        ("--hidden", "0"): "0 is less than 1",
        ("--epochs", "-1"): "-1 is less than 0",
        ("--seed", "1" + 30 * "0"): "not less than 2**63",
        ("--hidden", "4" + 15 * "0"): "llocate",
        ("--epochs", "x"): "invalid whole number value: 'x'",
        ("--dropout", "1"): "not in [0, 1)",
        ("--test-size", "nan"): "not in [0, 1)",
        ("--lr", "-1"): "not in [0, inf)",
        ("--activation", "swoosh"): "'swoosh': expected one of celu,",
        ("--optimizer", "magic"): "'magic': expected one of adadelta,",
        ("--momentum", "0.9"): "--momentum means nothing to Adam",
        ("--delimiter", "ab"): "not one character",
        ("--out", "none/model"): "there is no directory",
        ("--out", "."): "is a directory",
        ("--task", "guess"): "invalid choice",
    }
    for arguments, message in wrong.items():
        assert message in fails("train", *data, *arguments, capsys=capsys), arguments
    assert "required" in fails(capsys=capsys)
    assert "invalid choice" in fails("fly", capsys=capsys)
    assert "required: DATA" in fails("train", capsys=capsys)
    assert "there is no model 'none'" in fails("predict", "none", "flowers.csv", capsys=capsys)
    assert "there is no model 'none'" in fails("info", "none", capsys=capsys)
    Path("broken").write_bytes(b"nonsense that is no model")
    assert "not a safetensors file" in fails("info", "broken", capsys=capsys)


def test_files_that_cannot_be_written(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, "--epochs", "1", capsys=capsys)
    for arguments in (
        ["predict", "model.safetensors", "flowers.csv"],
        ["inspect", "model.safetensors"],
    ):
        message = fails(*arguments, "--out", "none/file.svg", capsys=capsys)
        assert "path 'none/file.svg': there is no directory" in message


def test_proba_of_a_regression(capsys: Capture) -> None:
    ok("train", prices(), "--target", "price", *FAST, "--epochs", "1", capsys=capsys)
    message = fails("predict", "model.safetensors", "prices.csv", "--proba", capsys=capsys)
    assert "is a regression" in message


def test_help(capsys: Capture) -> None:
    for arguments in (["--help"], ["train", "--help"], ["predict", "--help"]):
        assert "usage: gradstack" in ok(*arguments, capsys=capsys)


def test_version(capsys: Capture) -> None:
    assert ok("--version", capsys=capsys) == f"gradstack {gs.__version__}\n"


def test_divergence_is_a_failure_of_its_own(capsys: Capture) -> None:
    arguments = [
        "train",
        prices(),
        "--target",
        "price",
        *FAST,
        "--optimizer",
        "sgd",
        "--lr",
        "1e30",
        "--schedule",
        "constant",
    ]
    assert re.search(r"the loss is (nan|inf) at epoch", fails(*arguments, capsys=capsys, code=1))
    assert not Path("model.safetensors").exists()


def test_damaged_table_metadata(capsys: Capture) -> None:
    net = gs.nn.Sequential(gs.nn.Linear(2, 2))
    for text in (
        "{",
        "[]",
        "{}",
        '{"encoding": {}, "training": {}}',
        '{"encoding": 3}',
        '{"encoding": {"features": [{"name": "a", "categories": [], "x": 1}], '
        '"target": {}}, "training": {}}',
    ):
        gs.save(net, "m", metadata={"gradstack.table": text})
        assert "damaged gradstack.table" in fails("predict", "m", flowers(), capsys=capsys)


# Processes ----------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gradstack.cli", *arguments]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(capsys: Capture) -> None:
    arguments = command("train", flowers(), "--target", "kind", "--epochs", "100000000")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.read(1)  # the bar has appeared, so training runs
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.perf_counter() - begin < 10
    assert "interrupted" in error
    assert "Traceback" not in error
    assert not Path("model.safetensors").exists()


def test_progress_goes_to_stderr() -> None:
    arguments = command("train", flowers(), "--target", "kind", "--epochs", "3", "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["command"] == "train"
    assert done.stderr != ""
    done = subprocess.run([*arguments, "--quiet"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_no_traceback(capsys: Capture) -> None:
    ok("train", flowers(n=3000), "--target", "kind", "--epochs", "1", "--quiet", capsys=capsys)
    process = subprocess.Popen(
        command("predict", "model.safetensors", "flowers.csv", "--proba"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in error
    assert "Exception ignored" not in error
