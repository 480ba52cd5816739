"""From table columns to the arrays a net sees, and back; fitted once, stored with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradstack.cli._errors import InputError
from gradstack.cli._table import Array, Table, shorten

# A target of whole numbers with more distinct values than this is a quantity, not a class.
_MAX_INTEGER_CLASSES = 20


def _numbers(table: Table, name: str) -> Array:
    """Return a column as float64, with no gaps."""
    values = table.column(name)
    if values.dtype.kind == "O":
        row = next((i for i, item in enumerate(values) if item is not None), 0)
        raise InputError(
            f"column {name!r} of {table.source} holds text ({values[row]!r} in "
            f"{table.row_name(row)}), expected numbers"
        )
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        kind = "missing" if np.isnan(numbers[bad[0]]) else "infinite"
        raise InputError(
            f"column {name!r} of {table.source} has {bad.size} {kind} values, the first in "
            f"{table.row_name(int(bad[0]))}: fill them in, or train without the column (--drop)"
        )
    return numbers


def _texts(table: Table, name: str) -> list[str]:
    """Return a column as text, with no gaps."""
    values = table.column(name)
    if values.dtype.kind != "O":
        # A category such as a postal code may look like a number in some other file.
        return [format_label(item) for item in _numbers(table, name).tolist()]
    for row, item in enumerate(values):
        if item is None:
            raise InputError(
                f"column {name!r} of {table.source} has missing values, the first in "
                f"{table.row_name(row)}: fill them in, or train without the column (--drop)"
            )
    return list(values)


def format_label(value: float) -> str:
    """Write a number the way people write labels: 3 rather than 3.0."""
    return str(int(value)) if value == int(value) else repr(value)


@dataclass(frozen=True)
class Feature:
    """One column as an input: standardised when numeric, one-hot when it has categories."""

    name: str
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return len(self.categories) or 1

    @classmethod
    def fit(cls, table: Table, name: str, rows: Array, max_categories: int) -> Feature:
        """Categories come from the whole table, mean and scale from `rows` alone."""
        if table.column(name).dtype.kind == "O":
            categories = sorted(set(_texts(table, name)))
            if len(categories) > max_categories:
                raise InputError(
                    f"column {name!r} of {table.source} is text with {len(categories)} distinct "
                    f"values: leave it out with --drop, or raise --max-categories"
                )
            return cls(name, categories=tuple(categories))
        values = _numbers(table, name)[rows]
        return cls(name, *_mean_and_scale(values))

    def encode(self, table: Table) -> Array:
        """Return (N, width) float64."""
        if not self.categories:
            return ((_numbers(table, self.name) - self.mean) / self.scale)[:, None]
        index = {category: i for i, category in enumerate(self.categories)}
        encoded = np.zeros((table.n_rows, self.width))
        for row, item in enumerate(_texts(table, self.name)):
            if item not in index:
                raise InputError(
                    f"column {self.name!r} of {table.source} has {item!r} in "
                    f"{table.row_name(row)}; in training it was one of {shorten(self.categories)}"
                )
            encoded[row, index[item]] = 1
        return encoded


def _mean_and_scale(values: Array) -> tuple[float, float]:
    mean, scale = float(values.mean()), float(values.std())
    # A constant column has a standard deviation of rounding errors, not of information.
    constant = scale <= 1e-14 * float(np.abs(values).max(initial=0))
    return mean, 1.0 if constant else scale


def encode_features(features: Sequence[Feature], table: Table, dtype: str) -> Array:
    """Encode a table for a net of `dtype`: (N, sum of the features' widths)."""
    encoded = np.empty((table.n_rows, sum(feature.width for feature in features)), dtype)
    begin = 0
    for feature in features:
        encoded[:, begin : begin + feature.width] = feature.encode(table)
        begin += feature.width
    return encoded


@dataclass(frozen=True)
class Target:
    """What the net predicts: one of `classes`, or a number with `mean` and `scale`."""

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    #: Names for people, where the classes themselves are numbers.
    class_names: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        return "classification" if self.classes else "regression"

    @property
    def width(self) -> int:
        return len(self.classes) or 1

    @classmethod
    def recognise(cls, table: Table, name: str, task: str | None) -> tuple[Target, str]:
        """Decide between classification and regression; also returns the reason.

        The scale of a regression target is fitted later, by `with_scale`.
        """
        values = table.column(name)
        if values.dtype.kind == "O":
            if task == "regression":
                _numbers(table, name)  # raises, naming the cell
            distinct = sorted(set(_texts(table, name)))
            kind = "text"
        else:
            numbers = np.unique(_numbers(table, name))
            distinct = [format_label(item) for item in numbers.tolist()]
            whole = bool(np.all(numbers == np.floor(numbers)))
            kind = "whole numbers" if whole else "numbers"
            few = whole and len(distinct) <= _MAX_INTEGER_CLASSES
            if task == "regression" or (task is None and not few):
                return cls(name), f"{len(distinct)} distinct {kind}"
        if len(distinct) < 2:
            raise InputError(
                f"column {name!r} of {table.source} has {len(distinct)} distinct values; "
                "classification needs two or more"
            )
        names = table.class_names if len(table.class_names) == len(distinct) else ()
        return cls(name, tuple(distinct), class_names=names), f"{len(distinct)} distinct {kind}"

    def with_scale(self, table: Table, rows: Array) -> Target:
        """Return the target with the mean and scale of `rows`, if it is a number."""
        if self.classes:
            return self
        return Target(self.name, (), *_mean_and_scale(_numbers(table, self.name)[rows]))

    def encode(self, table: Table) -> Array:
        """Return class indices (N,) int64, or the numbers (N,) as they are, float64."""
        if not self.classes:
            return _numbers(table, self.name)
        index = {label: i for i, label in enumerate(self.classes)}
        encoded = np.empty(table.n_rows, np.int64)
        for row, item in enumerate(_texts(table, self.name)):
            if item not in index:
                raise InputError(
                    f"column {self.name!r} of {table.source} has {item!r} in "
                    f"{table.row_name(row)}; the classes are {shorten(self.classes)}"
                )
            encoded[row] = index[item]
        return encoded


@dataclass(frozen=True)
class Encoding:
    """All that turns a table into a net's input and its output into an answer."""

    features: tuple[Feature, ...]
    target: Target

    def to_json(self) -> dict[str, Any]:
        return {"features": [asdict(f) for f in self.features], "target": asdict(self.target)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoding:
        """Rebuild from what `to_json` gave; raises KeyError or TypeError when it is not that."""
        features = tuple(
            Feature(**{**item, "categories": tuple(item["categories"])})
            for item in data["features"]
        )
        target = dict(data["target"])
        for key in ("classes", "class_names"):
            target[key] = tuple(target[key])
        return cls(features, Target(**target))
