"""The command line's grammar."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from gradstack import _core
from gradstack.cli._table import DATA_SETS


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gradstack: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``arguments.run`` is the function that does the command."""
    parser = _Parser(
        prog="gradstack",
        description="Train, use and inspect dense neural networks on tables.",
    )
    parser.add_argument("--version", action="version", version=f"gradstack {_core.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_inspect(commands)
    _add_info(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        "train a network on a table and save it",
        "Features are standardised, text columns one-hot encoded; both are stored with the model. "
        "The score is measured on rows held out of training.",
        "gradstack.cli._train",
    )
    _add_data(parser)
    parser.add_argument("--target", metavar="COL", help="column to predict (data sets: target)")
    parser.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="auto: text or few whole numbers are classes, other numbers a quantity",
    )
    parser.add_argument(
        "--drop", type=_names, default=(), metavar="COL,COL", help="columns to leave out"
    )
    parser.add_argument(
        "--max-categories",
        type=_whole(2),
        default=100,
        metavar="N",
        help="most distinct values of a text column (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="FILE", help="where to save (default: model.safetensors)")
    model = parser.add_argument_group("network")
    model.add_argument(
        "--hidden",
        type=_widths,
        default=(256, 128),
        metavar="N,N",
        help="widths of the hidden layers, '' for none (default: 256,128)",
    )
    model.add_argument("--activation", default="relu", help="pointwise function (default: relu)")
    model.add_argument(
        "--dropout",
        type=_number(0, 1),
        default=0.1,
        metavar="P",
        help="probability, after each hidden layer (default: %(default)s)",
    )
    model.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="(default: %(default)s)"
    )
    fit = parser.add_argument_group("training")
    fit.add_argument(
        "--epochs", type=_whole(0), default=60, metavar="N", help="(default: %(default)s)"
    )
    fit.add_argument(
        "--batch-size", type=_whole(1), default=32, metavar="N", help="(default: %(default)s)"
    )
    fit.add_argument("--optimizer", default="adam", help="update rule (default: adam)")
    fit.add_argument(
        "--lr", type=_number(0), metavar="X", help="learning rate (default: the optimiser's own)"
    )
    fit.add_argument("--momentum", type=_number(0), metavar="X", help="for optimisers that have it")
    fit.add_argument(
        "--weight-decay", type=_number(0), metavar="X", help="default: the optimiser's own"
    )
    fit.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default="cosine",
        help="learning rate over the epochs (default: %(default)s)",
    )
    fit.add_argument(
        "--seed",
        type=_whole(0),
        default=0,
        metavar="N",
        help="of the split, the initial weights, shuffling and dropout (default: %(default)s)",
    )
    fit.add_argument(
        "--test-size",
        type=_number(0, 1),
        default=0.2,
        metavar="P",
        help="fraction of the rows held out for the score (default: %(default)s)",
    )
    fit.add_argument(
        "--early-stopping",
        type=_whole(1),
        metavar="EPOCHS",
        help="stop when a tenth of the training rows, set aside, has not improved for EPOCHS",
    )
    fit.add_argument(
        "--threads", type=_whole(1), metavar="N", help="default: chosen by the library"
    )


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands,
        "predict",
        "predict the rows of a table with a saved model",
        "Columns are found by name; other columns are ignored. Writes one line of CSV per row.",
        "gradstack.cli._predict",
    )
    parser.add_argument("model", metavar="MODEL", help="file written by gradstack train")
    _add_data(parser)
    parser.add_argument("--out", metavar="FILE", help="CSV file (default: standard output)")
    parser.add_argument("--proba", action="store_true", help="also the probability of each class")


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        "score a saved model on a table with known answers",
        "Prints accuracy and log loss, or r2, root mean squared and mean absolute error.",
        "gradstack.cli._evaluate",
    )
    parser.add_argument("model", metavar="MODEL", help="file written by gradstack train")
    _add_data(parser)
    parser.add_argument("--target", metavar="COL", help="default: the column trained on")


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        "draw a saved model and list its blocks",
        "Writes the block diagram as SVG and prints one line per block: what it computes, from "
        "which variables, its shape and its parameters.",
        "gradstack.cli._inspect",
    )
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file")
    parser.add_argument(
        "--out", metavar="FILE", help="where to save the diagram (default: named after the model)"
    )
    parser.add_argument(
        "--view",
        choices=["blocks", "average", "units"],
        default="blocks",
        help="what to draw (default: %(default)s)",
    )


def _add_info(commands: Any) -> None:
    parser = _command(
        commands,
        "info",
        "describe a saved model, or this installation",
        "With a file: its network, parameters and training. Without: versions and backend.",
        "gradstack.cli._info",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a .safetensors file")


def _command(
    commands: Any, name: str, summary: str, description: str, module: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {description}"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, progress on stderr"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress, only the result")
    parser.set_defaults(run=_lazily(module))
    return parser


def _lazily(module: str) -> Callable[[argparse.Namespace], object]:
    """Import a command's module only when it runs, so that --help stays quick."""

    def run(arguments: argparse.Namespace) -> object:
        import importlib

        return importlib.import_module(module).run(arguments)

    return run


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help=f".csv, .tsv, .parquet or .npz file, - for CSV on stdin, or {', '.join(DATA_SETS)}",
    )
    parser.add_argument(
        "--no-header", action="store_true", help="the CSV has no header: columns are 0, 1, ..."
    )
    parser.add_argument(
        "--delimiter",
        type=_character,
        metavar="C",
        help="between cells (default: the one of , ; tab | that the first line has most of)",
    )


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if value >= 1 << 63:
            raise argparse.ArgumentTypeError(f"{value} is not less than 2**63")
        return value

    parse.__name__ = "whole number"
    return parse


def _number(least: float, below: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is not in [{least:g}, {below:g})")
        return value

    parse.__name__ = "number"
    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _widths(text: str) -> tuple[int, ...]:
    parse = _whole(1)
    try:
        return tuple(parse(item) for item in text.split(",") if item.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of widths such as 64,64"
        ) from None


def _character(text: str) -> str:
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one character")
    return text
