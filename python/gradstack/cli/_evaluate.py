"""``gradstack evaluate``: a model's scores on a table that has the answers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from gradstack.cli._encode import encode_features
from gradstack.cli._errors import InputError
from gradstack.cli._model import load_model
from gradstack.cli._scores import answers, score
from gradstack.cli._table import read_table


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score and print; returns what ``--json`` prints."""
    net, encoding = load_model(arguments.model)
    table = read_table(
        arguments.data, header=not arguments.no_header, delimiter=arguments.delimiter
    )
    target = replace(encoding.target, name=arguments.target or encoding.target.name)
    truth = target.encode(table)
    if not len(truth):
        raise InputError(f"{table.source} has no rows to score")
    x = encode_features(encoding.features, table, net.w.dtype.name)
    scores = score(answers(net(x), target), truth, target)
    if not arguments.json:
        for name, value in scores.items():
            print(f"{name} {value:.4f} ({table.n_rows} rows)")
    return {"command": "evaluate", "task": target.task, "rows": table.n_rows, "scores": scores}
