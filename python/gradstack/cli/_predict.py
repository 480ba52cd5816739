"""``gradstack predict``: a model and a table in, an answer per row out."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from typing import Any

from gradstack._files import atomic_file, require_directory
from gradstack.cli._encode import encode_features
from gradstack.cli._errors import InputError
from gradstack.cli._model import load_model
from gradstack.cli._scores import answers
from gradstack.cli._table import read_table


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict and write; returns what ``--json`` prints."""
    if arguments.out:
        require_directory(arguments.out)
    net, encoding = load_model(arguments.model)
    target = encoding.target
    if arguments.proba and not target.classes:
        raise InputError(f"--proba: {arguments.model} is a regression and has no classes")
    table = read_table(
        arguments.data, header=not arguments.no_header, delimiter=arguments.delimiter
    )
    x = encode_features(encoding.features, table, net.w.dtype.name)
    answer = answers(net(x), target)
    columns: dict[str, list[Any]] = {}
    if target.classes:
        names = target.class_names or target.classes
        columns[target.name] = [names[i] for i in answer.argmax(axis=1).tolist()]
        if arguments.proba:
            for i, name in enumerate(names):
                columns[f"p({name})"] = answer[:, i].tolist()
    else:
        columns[target.name] = answer.tolist()
    if arguments.out:
        text = io.StringIO()
        _write(text, columns)
        with atomic_file(arguments.out) as file:
            file.write(text.getvalue().encode())
        if not (arguments.quiet or arguments.json):
            print(f"wrote {arguments.out}: {table.n_rows} rows", file=sys.stderr)
    elif not arguments.json:
        _write(sys.stdout, columns)
    return {
        "command": "predict",
        "task": target.task,
        "rows": table.n_rows,
        "out": arguments.out,
        **({} if arguments.out else {"columns": columns}),
    }


def _write(file: Any, columns: dict[str, list[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
