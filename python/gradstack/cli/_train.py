"""``gradstack train``: a table in, a model and its held-out score out."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gradstack as gs
from gradstack import nn, optim
from gradstack.cli._encode import Encoding, Feature, Target, encode_features
from gradstack.cli._errors import InputError
from gradstack.cli._model import save_model
from gradstack.cli._scores import answers, score
from gradstack.cli._table import Array, Table, read_table, shorten

# Set aside from the training rows when early stopping needs something to watch.
_VALIDATION_SIZE = 0.1


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, report, save; returns the facts that ``--json`` prints."""
    out = arguments.out or "model.safetensors"
    _check_writable(out)
    activation = _activation(arguments.activation)
    optimizer = _optimizer(arguments)
    table = read_table(
        arguments.data, header=not arguments.no_header, delimiter=arguments.delimiter
    )
    if not table.n_rows:
        raise InputError(f"{table.source} has no rows to train on")
    for name in arguments.drop:
        table.column(name)
    target_name = arguments.target or table.target
    if target_name is None:
        raise InputError(f"--target is needed: the columns are {shorten(table.columns)}")
    target, reason = Target.recognise(
        table, target_name, None if arguments.task == "auto" else arguments.task
    )
    truth = target.encode(table)
    held_out, watched = np.random.default_rng(arguments.seed).spawn(2)
    train, test = _split(truth, arguments.test_size, target, held_out)
    target = target.with_scale(table, train)
    encoding = Encoding(_fit_features(table, target, train, arguments), target)
    x = encode_features(encoding.features, table, arguments.dtype)
    y = truth if target.classes else (truth - target.mean) / target.scale

    net = _build(x.shape[1], target.width, activation, arguments)
    talk = _Talk(arguments)
    talk(
        f"data {table.source}: {table.n_rows} rows, {len(encoding.features)} columns, "
        f"{x.shape[1]} features; {len(train)} rows to train on, {len(test)} held out"
    )
    talk(f"task {target.task}: column {target.name!r} has {reason}")
    talk(f"network {_describe(net)}: {net.w.size} parameters")

    start = time.perf_counter()
    history = _fit(net, (x, y), train, optimizer, target=target, rng=watched, arguments=arguments)
    seconds = time.perf_counter() - start

    net.eval()
    where, rows = ("held-out", test) if len(test) else ("training", train)
    scores = score(answers(net(x[rows]), target), truth[rows], target)
    facts = {
        "source": os.path.basename(table.source),
        "rows": table.n_rows,
        "training_rows": len(train),
        "held_out_rows": len(test),
        "epochs": len(history.loss),
        "batch_size": arguments.batch_size,
        "optimizer": arguments.optimizer,
        "seed": arguments.seed,
        "loss": float(history.loss[-1]) if len(history.loss) else None,
        "scores": {k: None if math.isnan(v) else v for k, v in scores.items()},
        "scored_on": where,
    }
    save_model(out, net, encoding, facts)
    for name, value in scores.items():
        talk(f"{name} {value:.4f} ({where}, {len(rows)} rows)", result=True)
    talk(f"saved {out} ({len(history.loss)} epochs in {seconds:.1f} s)")
    return {
        "command": "train",
        "task": target.task,
        "target": target.name,
        "classes": list(target.classes),
        "features": x.shape[1],
        "parameters": int(net.w.size),
        "seconds": seconds,
        "model": out,
        **facts,
    }


class _Talk:
    """Prints for people: nothing under --json, only results under --quiet."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._level = 0 if arguments.json else 1 if arguments.quiet else 2

    def __call__(self, text: str, *, result: bool = False) -> None:
        if self._level >= (1 if result else 2):
            print(text, flush=True)


def _check_writable(out: str) -> None:
    """Find out before training, not after."""
    directory = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(directory):
        raise InputError(f"--out {out!r}: there is no directory {directory!r}")
    if os.path.isdir(out):
        raise InputError(f"--out {out!r} is a directory")
    if not os.access(directory, os.W_OK):
        raise InputError(f"--out {out!r}: directory {directory!r} cannot be written to")


def _activation(name: str) -> Any:
    """Return the module class of a pointwise function."""
    from gradstack import _core

    modules = {op["name"]: op["module"] for op in _core.ops() if op["module"]}
    if name not in modules:
        raise InputError(f"--activation {name!r}: expected one of {', '.join(sorted(modules))}")
    return getattr(nn, modules[name])


def _optimizer(arguments: argparse.Namespace) -> Callable[[int], Any]:
    """Return what makes the optimiser for a number of steps; complains before training starts."""
    from gradstack import _core

    rules = {rule["cls"].lower(): rule for rule in _core.rules()}
    rule = rules.get(arguments.optimizer.lower())
    if rule is None:
        names = ", ".join(sorted(rules))
        raise InputError(f"--optimizer {arguments.optimizer!r}: expected one of {names}")
    accepted = {name for name, _ in rule["hyper"]}
    options: dict[str, Any] = {}
    for option in ("momentum", "weight_decay"):
        value = getattr(arguments, option)
        if value is None:
            continue
        if option not in accepted:
            flag = option.replace("_", "-")
            raise InputError(f"--{flag} means nothing to {rule['cls']}")
        options[option] = value
    cls = getattr(optim, rule["cls"])
    lr = arguments.lr if arguments.lr is not None else cls().lr

    def make(steps: int) -> Any:
        rate = optim.schedules.cosine(lr, steps) if arguments.schedule == "cosine" else lr
        return cls(lr=rate, **options)

    return make


def _split(
    truth: Array, test_size: float, target: Target, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Split the rows at random, class by class so that both parts have the classes' shares."""
    order = rng.permutation(len(truth))
    groups = (
        [order[truth[order] == label] for label in range(len(target.classes))]
        if target.classes
        else [order]
    )
    parts = [round(len(group) * test_size) for group in groups]
    test = np.sort(np.concatenate([g[:n] for g, n in zip(groups, parts, strict=True)]))
    train = np.sort(np.concatenate([g[n:] for g, n in zip(groups, parts, strict=True)]))
    if not len(train):
        raise InputError(f"{len(truth)} rows with --test-size {test_size:g} leave none to train on")
    if test_size > 0 and not len(test):
        raise InputError(
            f"{len(truth)} rows with --test-size {test_size:g} leave none to hold out; "
            "give more rows, or --test-size 0"
        )
    return train, test


def _fit_features(
    table: Table, target: Target, train: Array, arguments: argparse.Namespace
) -> tuple[Feature, ...]:
    left_out = {target.name, *arguments.drop}
    features = tuple(
        Feature.fit(table, name, train, arguments.max_categories)
        for name in table.columns
        if name not in left_out
    )
    if not features:
        raise InputError(f"{table.source} has no column left to predict {target.name!r} from")
    return features


def _build(width: int, outputs: int, activation: Any, arguments: argparse.Namespace) -> Any:
    gs.seed(arguments.seed)
    layers: list[nn.Module] = []
    for hidden in arguments.hidden:
        layers.append(nn.Linear(width, hidden, dtype=arguments.dtype))
        layers.append(activation())
        if arguments.dropout:
            layers.append(nn.Dropout(arguments.dropout))
        width = hidden
    layers.append(nn.Linear(width, outputs, dtype=arguments.dtype))
    return nn.Sequential(*layers)


def _describe(net: Any) -> str:
    widths = [layer for layer in net if isinstance(layer, nn.Linear)]
    return "-".join(str(n) for n in [widths[0].in_features, *(w.out_features for w in widths)])


def _fit(
    net: Any,
    data: tuple[Array, Array],
    train: Array,
    optimizer: Callable[[int], Any],
    *,
    target: Target,
    rng: np.random.Generator,
    arguments: argparse.Namespace,
) -> Any:
    x, y = data
    options: dict[str, Any] = {}
    if arguments.early_stopping:
        labels = y if target.classes else np.zeros(len(y), np.int64)
        kept, watched = _split(labels[train], _VALIDATION_SIZE, target, rng)
        train, watched = train[kept], train[watched]
        options["validation"] = (x[watched], y[watched])
        options["early_stopping"] = gs.EarlyStopping(patience=arguments.early_stopping)
    steps = max(1, arguments.epochs * -(-len(train) // arguments.batch_size))
    return gs.fit(
        net,
        x[train],
        y[train],
        cost=nn.CrossEntropyLoss() if target.classes else nn.MSELoss(),
        optimizer=optimizer(steps),
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        seed=arguments.seed,
        progress=not arguments.quiet,
        num_threads=arguments.threads,
        **options,
    )
