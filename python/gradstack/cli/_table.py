"""Tables from files and from scikit-learn's data sets, column by column."""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack.cli._errors import InputError

Array = npt.NDArray[Any]

DATA_SETS = ("digits", "breast_cancer", "wine", "iris", "diabetes")
# What stands for "no value" in a column of numbers; in a column of text only the empty cell does.
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})


@dataclass(frozen=True)
class Table:
    """Named columns of equal length.

    Attributes
    ----------
    source : str
        What the user called it, for messages.
    columns : mapping of str to array
        1-D each: real numbers (missing: NaN), or text as an object array (missing: None).
    n_rows : int
    row_name : callable
        Names row i for a message, as the user would look for it ("line 7", "row 6").
    target : str or None
        The column that is the target unless the user names another.
    class_names : tuple of str
        Names of the target's values 0, 1, ... when the source knows them.
    """

    source: str
    columns: Mapping[str, Array]
    n_rows: int
    row_name: Callable[[int], str] = field(default=lambda row: f"row {row}")
    target: str | None = None
    class_names: tuple[str, ...] = ()

    def column(self, name: str) -> Array:
        """Return a column, or say which ones there are."""
        if name not in self.columns:
            raise InputError(
                f"{self.source} has no column {name!r}; it has {shorten(self.columns)}"
            )
        return self.columns[name]


def shorten(names: Iterable[object], limit: int = 12) -> str:
    """List names for a message without flooding the terminal."""
    names = list(names)
    text = ", ".join(str(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"


def read_table(source: str, *, header: bool = True, delimiter: str | None = None) -> Table:
    """Read a table from a file or one of `DATA_SETS`.

    Parameters
    ----------
    source : str
        A data set's name, a ``.npz``, ``.parquet`` or delimited text file, or ``-`` for delimited
        text on standard input.
    header : bool
        Whether delimited text starts with the columns' names (else they are 0, 1, ...).
    delimiter : str, optional
        One character; by default whichever of ``, ; tab |`` is most frequent in the first line.

    Raises
    ------
    InputError
        The source is missing, malformed, or needs a package that is not installed.
    """
    if source in DATA_SETS:
        return _read_data_set(source)
    extension = os.path.splitext(source)[1].lower()
    try:
        if extension == ".npz":
            return _read_npz(source)
        if extension in (".parquet", ".pq"):
            return _read_parquet(source)
        if source == "-":
            return _read_text(sys.stdin, "standard input", header, delimiter)
        if extension not in (".csv", ".tsv", ".txt", ".data"):
            raise InputError(
                f"cannot tell what {source!r} is: expected a .csv, .tsv, .parquet or .npz file, "
                f"- for standard input, or one of {', '.join(DATA_SETS)}"
            )
        with open(source, newline="", encoding="utf-8-sig") as file:
            return _read_text(file, source, header, delimiter)
    except FileNotFoundError:
        raise InputError(f"there is no file {source!r}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text: {error}") from None


def _read_data_set(name: str) -> Table:
    try:
        from sklearn import datasets
    except ImportError:
        raise InputError(
            f"the data set {name!r} comes with scikit-learn: pip install 'gradstack[cli]'"
        ) from None
    bunch = getattr(datasets, f"load_{name}")()
    columns = {str(key): bunch.data[:, i] for i, key in enumerate(bunch.feature_names)}
    columns["target"] = bunch.target
    names = tuple(str(label) for label in getattr(bunch, "target_names", ()))
    return Table(name, columns, len(bunch.target), target="target", class_names=names)


def _read_npz(path: str) -> Table:
    """Arrays of equal length; one with several axes becomes one column per entry."""
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        why = "it has no arrays of numbers or text" if "pickle" in str(error) else error
        raise InputError(f"cannot read {path}: {why}") from None
    columns: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InputError(f"{path}: array {name!r} is a single value, expected rows")
        if array.ndim == 1:
            columns[name] = _clean(name, array, path)
            continue
        flat = array.reshape(len(array), -1)
        # Fortran order makes each column contiguous.
        flat = np.asfortranarray(_clean(name, flat, path))
        for i, index in enumerate(itertools.product(*map(range, array.shape[1:]))):
            columns[f"{name}[{','.join(map(str, index))}]"] = flat[:, i]
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path}: arrays have different numbers of rows: {lengths}")
    n_rows = next(iter(lengths.values()), 0)
    return Table(path, columns, n_rows, target="y" if "y" in columns else None)


def _read_parquet(path: str) -> Table:
    columns = _parquet_columns(path)
    n_rows = max((len(array) for array in columns.values()), default=0)
    return Table(path, {name: _clean(name, a, path) for name, a in columns.items()}, n_rows)


def _parquet_columns(path: str) -> dict[str, Array]:
    """Read with whichever package is there."""
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        pass
    else:
        try:
            table = parquet.read_table(path)
        except pyarrow.ArrowException as error:
            raise InputError(f"cannot read {path}: {error}") from None
        columns = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            coded = pyarrow.types.is_dictionary(column.type)
            plain = column.cast(column.type.value_type) if coded else column
            columns[name] = plain.to_numpy()
        return columns
    try:
        import polars
    except ImportError:
        raise InputError(
            f"reading {path} needs pyarrow or polars: pip install pyarrow, or use a .csv file"
        ) from None
    try:
        frame = polars.read_parquet(path)
    except polars.exceptions.PolarsError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return {column.name: np.asarray(column.to_list()) for column in frame.iter_columns()}


def _clean(name: str, array: Array, source: str) -> Array:
    """Return real numbers with NaN, or text with None; refuse everything else."""
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind in "OUST":
        items = array.reshape(-1).tolist()
        if all(isinstance(item, str | None) for item in items):
            text = np.empty(len(items), object)
            text[:] = [item or None for item in items]
            return text.reshape(array.shape)
        try:
            # Decimals, and integers or bools with gaps.
            numbers = [np.nan if item is None else float(item) for item in items]
        except (TypeError, ValueError):
            pass
        else:
            return np.array(numbers).reshape(array.shape)
    raise InputError(
        f"{source}: column {name!r} has dtype {array.dtype}, expected numbers or text "
        "(leave it out with --drop)"
    )


def _read_text(file: Iterable[str], source: str, header: bool, delimiter: str | None) -> Table:
    lines = iter(file)
    skipped = 0
    first = ""
    for first in lines:
        if first.strip():
            break
        skipped += 1
    if not first.strip():
        raise InputError(f"{source} is empty")
    if delimiter is None:
        delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    rows: list[Sequence[str]] = []
    numbers: list[int] = []
    try:
        names = next(reader)
        if not header:
            rows.append(names)
            numbers.append(skipped + 1)
            names = [str(i) for i in range(len(names))]
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                line = skipped + reader.line_num
                raise InputError(f"{source}, line {line}: {len(row)} cells, expected {len(names)}")
            rows.append(row)
            numbers.append(skipped + reader.line_num)
    except csv.Error as error:
        raise InputError(f"{source}, line {skipped + reader.line_num}: {error}") from None
    names = [name.strip() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{source}: column names occur twice: {shorten(twice)}")
    columns = zip(*rows, strict=True) if rows else [() for _ in names]
    table = {name: _parse(column) for name, column in zip(names, columns, strict=True)}
    return Table(source, table, len(rows), row_name=lambda row: f"line {numbers[row]}")


def _parse(cells: Sequence[str]) -> Array:
    """Numbers when every cell is one or is missing, else text."""
    cells = [cell.strip() for cell in cells]
    values = np.empty(len(cells))
    present = 0
    for i, cell in enumerate(cells):
        if cell.lower() in _MISSING:
            values[i] = np.nan
            continue
        try:
            values[i] = float(cell)
        except ValueError:
            break
        if "_" in cell:  # Python's own notation, not a number in a file
            break
        present += 1
    else:
        if present or not cells:
            return values
    text = np.empty(len(cells), object)
    text[:] = [cell or None for cell in cells]
    return text
