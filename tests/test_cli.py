"""The gradstack command: training on tables, and using what was trained."""

from __future__ import annotations

import builtins
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstack as gs
from cli_commands import FAST, Capture, as_json, fails, flowers, ok, prices, table_rows, write
from gradstack import nn


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Training -----------------------------------------------------------------------------------------


def test_digits_with_the_defaults(capsys: Capture) -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    begin = time.perf_counter()
    out = ok("train", "digits", "--out", "digits.safetensors", capsys=capsys)
    assert time.perf_counter() - begin < 60
    (line,) = [line for line in out.splitlines() if line.startswith("accuracy")]
    assert float(line.split()[1]) >= 0.97
    assert "held-out, 359 rows" in line
    assert "task classification" in out
    again = ok(
        "train", "digits", "--out", "again.safetensors", "-q", "--threads", "1", capsys=capsys
    )
    assert line in again
    assert gs.load("digits.safetensors").w.tobytes() == gs.load("again.safetensors").w.tobytes()
    scores = as_json("evaluate", "digits.safetensors", "digits", capsys=capsys)["scores"]
    assert scores["accuracy"] > 0.99  # most rows were trained on


@pytest.mark.parametrize(
    ("name", "score", "least"),
    [
        ("iris", "accuracy", 0.9),
        ("wine", "accuracy", 0.9),
        ("breast_cancer", "accuracy", 0.93),
        ("diabetes", "r2", 0.3),
    ],
)
def test_data_sets(name: str, score: str, least: float, capsys: Capture) -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    result = as_json("train", name, "--hidden", "32", "--epochs", "100", "--quiet", capsys=capsys)
    assert result["scores"][score] >= least
    assert result["task"] == ("regression" if name == "diabetes" else "classification")


def test_classes_are_text(capsys: Capture) -> None:
    result = as_json("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    assert result["task"] == "classification"
    assert result["classes"] == ["rose", "tulip"]
    assert result["features"] == 4  # one number, three colours
    assert result["scores"]["accuracy"] > 0.9
    assert result["training_rows"] + result["held_out_rows"] == 150
    out = ok("predict", "model.safetensors", "flowers.csv", capsys=capsys).splitlines()
    assert out[0] == "kind"
    truth = [row["kind"] for row in table_rows("flowers.csv")]
    agreement = np.mean([a == b for a, b in zip(out[1:], truth, strict=True)])
    assert agreement > 0.9


def test_numbers_are_a_quantity(capsys: Capture) -> None:
    result = as_json(
        "train", prices(), "--target", "price", *FAST, "--epochs", "200", capsys=capsys
    )
    assert result["task"] == "regression"
    assert result["scores"]["r2"] > 0.98
    out = ok("predict", "model.safetensors", "prices.csv", capsys=capsys).splitlines()
    truth = np.array([float(row["price"]) for row in table_rows("prices.csv")])
    # In the target's own unit: the standardisation is undone.
    assert np.corrcoef(truth, [float(v) for v in out[1:]])[0, 1] > 0.99
    assert abs(np.mean([float(v) for v in out[1:]]) - truth.mean()) < 0.1 * truth.std()


@pytest.mark.parametrize(
    ("values", "options", "task"),
    [
        ([0, 1, 2], [], "classification"),
        ([0, 1, 2], ["--task", "regression"], "regression"),
        (list(range(21)), [], "regression"),
        (list(range(21)), ["--task", "classification"], "classification"),
        ([0.5, 1.5], [], "regression"),
        ([0.5, 1.5], ["--task", "classification"], "classification"),
        (["a", "b"], [], "classification"),
        (["True", "False"], [], "classification"),
    ],
)
def test_task(values: list[Any], options: list[str], task: str, capsys: Capture) -> None:
    rows = [[i % 7, values[i % len(values)]] for i in range(84)]
    path = write("t.csv", ["x", "y"], rows)
    arguments = ["train", path, "--target", "y", *FAST, "--epochs", "1", *options]
    assert as_json(*arguments, capsys=capsys)["task"] == task


def test_the_task_is_said(capsys: Capture) -> None:
    out = ok(
        "train", flowers(), "--target", "kind", "--hidden", "8", "--epochs", "2", capsys=capsys
    )
    assert "task classification: column 'kind' has 2 distinct text" in out
    assert "saved model.safetensors" in out


def test_options_reach_the_net(capsys: Capture) -> None:
    ok(
        "train",
        flowers(),
        "--target",
        "kind",
        "--hidden",
        "7,5",
        "--activation",
        "tanh",
        "--dropout",
        "0.25",
        "--dtype",
        "float64",
        "--epochs",
        "2",
        "--quiet",
        "--optimizer",
        "sgd",
        "--lr",
        "0.1",
        "--momentum",
        "0.9",
        "--weight-decay",
        "0.01",
        "--schedule",
        "constant",
        "--batch-size",
        "17",
        "--threads",
        "2",
        capsys=capsys,
    )
    net = gs.load("model.safetensors")
    assert [type(layer).__name__ for layer in net] == [
        "Linear",
        "Tanh",
        "Dropout",
        "Linear",
        "Tanh",
        "Dropout",
        "Linear",
    ]
    assert net.w.dtype == np.float64
    assert (net[0].out_features, net[3].out_features, net[2].p) == (7, 5, 0.25)


def test_seed_and_threads(capsys: Capture) -> None:
    common = ["train", flowers(), "--target", "kind", *FAST, "--epochs", "3"]
    for name, extra in {"a": [], "b": ["--threads", "1"], "c": ["--seed", "1"]}.items():
        ok(*common, "--out", name, *extra, capsys=capsys)
    a, b, c = (gs.load(name).w.tobytes() for name in "abc")
    assert a == b
    assert a != c


def test_early_stopping(capsys: Capture) -> None:
    result = as_json(
        "train",
        flowers(),
        "--target",
        "kind",
        "--hidden",
        "16",
        "--epochs",
        "2000",
        "--quiet",
        "--early-stopping",
        "5",
        capsys=capsys,
    )
    assert result["epochs"] < 2000
    assert result["scores"]["accuracy"] > 0.85


def test_linear_models_and_no_epochs(capsys: Capture) -> None:
    out = ok("train", flowers(), "--target", "kind", "--hidden", "", "--epochs", "0", capsys=capsys)
    assert "network 4-2: 10 parameters" in out


def test_without_a_held_out_part(capsys: Capture) -> None:
    out = ok("train", flowers(), "--target", "kind", *FAST, "--test-size", "0", capsys=capsys)
    assert "(training, 150 rows)" in out


def test_drop(capsys: Capture) -> None:
    result = as_json(
        "train", flowers(), "--target", "kind", "--drop", "colour", *FAST, capsys=capsys
    )
    assert result["features"] == 1


def test_held_out_rows_do_not_leak_into_the_scaling(capsys: Capture) -> None:
    """Mean and scale come from the training rows: a huge held-out value must not move them."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    path = write("t.csv", ["x", "y"], zip(values, values > 0, strict=True))
    ok("train", path, "--target", "y", *FAST, "--out", "a", capsys=capsys)
    held_out = find_held_out_row("t.csv", capsys)
    values[held_out] = 1e6
    write("u.csv", ["x", "y"], zip(values, values > 0, strict=True))
    ok("train", "u.csv", "--target", "y", *FAST, "--out", "b", capsys=capsys)
    a, b = (json.loads(gs.io.read_metadata(n)["gradstack.table"])["encoding"] for n in "ab")
    assert a["features"] == b["features"]


def find_held_out_row(path: str, capsys: Capture) -> int:
    from gradstack.cli._encode import Target
    from gradstack.cli._table import read_table
    from gradstack.cli._train import _split

    table = read_table(path)
    target, _ = Target.recognise(table, "y", None)
    truth = target.encode(table)
    _, test = _split(truth, 0.2, target, np.random.default_rng(0).spawn(2)[0])
    return next(int(row) for row in test if truth[row] == 1)


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_recognised(delimiter: str, capsys: Capture) -> None:
    path = flowers(delimiter=delimiter)
    result = as_json("train", path, "--target", "kind", *FAST, "--epochs", "1", capsys=capsys)
    assert result["features"] == 4


def test_odd_but_valid_csv(capsys: Capture) -> None:
    text = '\ufeff"a, b" , c,y\r\n\r\n1, 2 ,"x ""1"""\r\n 3,4e0,z\r\n5,-.5,z\r\n7,+8,"x ""1"""\r\n'
    Path("t.csv").write_bytes(text.encode())
    result = as_json("train", "t.csv", "--target", "y", *FAST, "--test-size", "0", capsys=capsys)
    assert result["classes"] == ['x "1"', "z"]
    assert result["features"] == 2
    out = ok("predict", "model.safetensors", "t.csv", capsys=capsys)
    assert next(csv.reader(out.splitlines()[1:])) in (['x "1"'], ["z"])


def test_no_header(capsys: Capture) -> None:
    Path("t.csv").write_text("".join(f"{i},{i % 3},{i % 2}\n" for i in range(40)))
    result = as_json("train", "t.csv", "--no-header", "--target", "2", *FAST, capsys=capsys)
    assert (result["rows"], result["features"], result["task"]) == (40, 2, "classification")


def test_standard_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    with open("flowers.csv") as file:
        monkeypatch.setattr(sys, "stdin", file)
        out = ok("predict", "model.safetensors", "-", capsys=capsys)
    assert len(out.splitlines()) == 151


def test_columns_are_found_by_name(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    expected = ok("predict", "model.safetensors", "flowers.csv", capsys=capsys)
    rows = table_rows("flowers.csv")
    write(
        "other.csv",
        ["colour", "extra", "length"],
        [[row["colour"], "?", row["length"]] for row in rows],
    )
    assert ok("predict", "model.safetensors", "other.csv", capsys=capsys) == expected


def test_npz(capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2, 3)).astype(np.float32)
    np.savez("t.npz", X=x, y=(x[:, 1, 2] > 0).astype(int))
    result = as_json("train", "t.npz", *FAST, capsys=capsys)  # y is the target's usual name
    assert (result["features"], result["task"]) == (6, "classification")
    assert result["scores"]["accuracy"] > 0.8
    np.savez("new.npz", X=x)
    assert len(ok("predict", "model.safetensors", "new.npz", capsys=capsys).splitlines()) == 121


def parquet(path: str) -> str:
    pandas = pytest.importorskip("pandas", reason="writes the file")
    pytest.importorskip("pyarrow", reason="writes the file")
    frame = pandas.read_csv(flowers())
    frame["colour"] = frame["colour"].astype("category")
    frame["flag"] = frame["length"] > 40
    frame.to_parquet(path)
    return path


@pytest.mark.parametrize("missing", ["", "pyarrow"])
def test_parquet(missing: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet("t.parquet")
    if missing:
        pytest.importorskip("polars", reason="reads the file when pyarrow is missing")
        hide(monkeypatch, missing)
    result = as_json("train", path, "--target", "kind", *FAST, capsys=capsys)
    assert result["features"] == 5
    assert result["scores"]["accuracy"] > 0.85


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages look as if they were not installed."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] in names:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_missing_packages_are_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("t.parquet").write_bytes(b"PAR1")
    hide(monkeypatch, "pyarrow", "polars", "sklearn")
    assert "needs pyarrow or polars" in fails("train", "t.parquet", "--target", "y", capsys=capsys)
    assert "pip install 'gradstack[cli]'" in fails("train", "iris", capsys=capsys)


# Using a model ------------------------------------------------------------------------------------


def test_probabilities_and_out(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    out = ok(
        "predict", "model.safetensors", "flowers.csv", "--proba", "--out", "p.csv", capsys=capsys
    )
    assert out == ""
    rows = table_rows("p.csv")
    assert list(rows[0]) == ["kind", "p(rose)", "p(tulip)"]
    for row in rows:
        rose, tulip = float(row["p(rose)"]), float(row["p(tulip)"])
        assert rose + tulip == pytest.approx(1)
        assert row["kind"] == ("rose" if rose > tulip else "tulip")


def test_predictions_are_the_nets(capsys: Capture) -> None:
    """Against the stored encoding, applied by hand."""
    ok("train", prices(), "--target", "price", *FAST, capsys=capsys)
    record = json.loads(gs.io.read_metadata("model.safetensors")["gradstack.table"])["encoding"]
    rows = table_rows("prices.csv")
    x = np.array(
        [
            [(float(row[f["name"]]) - f["mean"]) / f["scale"] for f in record["features"]]
            for row in rows
        ]
    )
    net = gs.load("model.safetensors")
    target = record["target"]
    expected = net(x.astype(np.float32))[:, 0].astype(float) * target["scale"] + target["mean"]
    result = as_json("predict", "model.safetensors", "prices.csv", capsys=capsys)
    np.testing.assert_allclose(result["columns"]["price"], expected, rtol=1e-12)


def test_evaluate_agrees_with_scikit_learn(capsys: Capture) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle is not installed")
    ok("train", flowers(), "--target", "kind", *FAST, "--epochs", "5", capsys=capsys)
    scores = as_json("evaluate", "model.safetensors", "flowers.csv", capsys=capsys)["scores"]
    columns = as_json("predict", "model.safetensors", "flowers.csv", "--proba", capsys=capsys)[
        "columns"
    ]
    truth = [row["kind"] for row in table_rows("flowers.csv")]
    probabilities = np.array([columns["p(rose)"], columns["p(tulip)"]]).T
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, columns["kind"]))
    assert scores["log_loss"] == pytest.approx(metrics.log_loss(truth, probabilities))

    ok("train", prices(), "--target", "price", *FAST, capsys=capsys)
    scores = as_json("evaluate", "model.safetensors", "prices.csv", capsys=capsys)["scores"]
    answer = as_json("predict", "model.safetensors", "prices.csv", capsys=capsys)["columns"]
    known = [float(row["price"]) for row in table_rows("prices.csv")]
    assert scores["r2"] == pytest.approx(metrics.r2_score(known, answer["price"]))
    assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(known, answer["price"]))
    rmse = metrics.mean_squared_error(known, answer["price"]) ** 0.5
    assert scores["rmse"] == pytest.approx(rmse)


def test_evaluate_with_another_target_column(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, capsys=capsys)
    text = Path("flowers.csv").read_text().replace("kind", "answer", 1)
    Path("renamed.csv").write_text(text)
    assert "no column 'kind'" in fails(
        "evaluate", "model.safetensors", "renamed.csv", capsys=capsys
    )
    out = ok("evaluate", "model.safetensors", "renamed.csv", "--target", "answer", capsys=capsys)
    assert out.startswith("accuracy ")


def test_info(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, "--seed", "7", capsys=capsys)
    out = ok("info", "model.safetensors", capsys=capsys)
    for part in (
        "Linear(in_features=4, out_features=16",
        "0.weight: 16 x 4 float32",
        "114 parameters",
        "classification of 'kind' from 2 columns",
        "seed: 7",
        "accuracy 0.",
    ):
        assert part in out
    result = as_json("info", "model.safetensors", capsys=capsys)
    assert result["n_parameters"] == 114
    assert result["classes"] == ["rose", "tulip"]

    config = as_json("info", capsys=capsys)
    assert config["gradstack"] == gs.__version__
    assert config["config"] == gs.show_config()
    assert f"gradstack {gs.__version__}" in ok("info", capsys=capsys)


def test_info_on_files_of_others(capsys: Capture) -> None:
    from gradstack import _safetensors

    _safetensors.write("plain", {"a": np.zeros((3, 2)), "b": np.array(1, np.float16)})
    out = ok("info", "plain", capsys=capsys)
    assert "no network" in out
    assert "a: 3 x 2 float64" in out
    assert "b: scalar float16" in out
    assert "not written by gradstack train" in fails("predict", "plain", flowers(), capsys=capsys)


def test_inspect(capsys: Capture) -> None:
    ok("train", flowers(), "--target", "kind", *FAST, "--out", "model.safetensors", capsys=capsys)
    out = ok("inspect", "model.safetensors", capsys=capsys)
    assert "Sequential: 3 blocks, 114 parameters, float32" in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[2][:5] == ["0", "Linear", "x", "16", "80"]
    svg = Path("model.svg").read_text("utf-8")
    assert svg.startswith("<svg")
    assert "CrossEntropyLoss" in svg  # what gradstack train minimised

    result = as_json("inspect", "model.safetensors", "--out", "units.svg", "--view", "units",
                     capsys=capsys)  # fmt: skip
    assert result["n_parameters"] == 114
    assert [b["kind"] for b in result["blocks"]] == ["linear", "pointwise", "linear"]
    net = gs.load("model.safetensors")
    assert result["blocks"][0]["norm"] == pytest.approx(np.linalg.norm(net.w[:80]), rel=1e-6)
    assert result["blocks"][2]["inputs"] == ["1"]
    assert 'class="units"' in Path("units.svg").read_text("utf-8")


def test_inspect_without_a_model_or_a_cost(capsys: Capture) -> None:
    assert "there is no model" in fails("inspect", "nothing.safetensors", capsys=capsys)
    gs.save(nn.Sequential(nn.Linear(2, 1)), "own.safetensors")
    ok("inspect", "own.safetensors", "--quiet", capsys=capsys)
    assert "cost" in fails("inspect", "own.safetensors", "--view", "average", capsys=capsys)
    assert ".svg" in fails("inspect", "own.safetensors", "--out", "own.png", capsys=capsys)
