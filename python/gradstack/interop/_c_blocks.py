"""How each kind of block is written in C."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack.interop._c_places import Place
from gradstack.interop._c_text import Names, Real, array, comment, named, op_function, wrapped

_Array = npt.NDArray[Any]
_Stage = Mapping[str, Any]

# Functions that blocks call, for a type `real`. A sum keeps the order that is written unless users
# ask for -ffast-math: `linear` loops over outputs inside, which makes vectors without it, and takes
# four inputs at a time.
_FUNCTIONS = {
    "linear": """\
/* s = W z + b. The weights of one input are neighbours: weight[j * outputs + i] is W[i, j]. */
static inline void NAME(const real *weight, const real *bias, const real *z, real *s, int inputs,
                        int outputs)
{
    int j = 0;
    for (int i = 0; i < outputs; ++i)
        s[i] = bias ? bias[i] : 0.0;
    for (; j + 4 <= inputs; j += 4, weight += 4 * outputs) {
        const real z0 = z[j], z1 = z[j + 1], z2 = z[j + 2], z3 = z[j + 3];
        const real *w1 = weight + outputs, *w2 = w1 + outputs, *w3 = w2 + outputs;
        for (int i = 0; i < outputs; ++i)
            s[i] += weight[i] * z0 + w1[i] * z1 + w2[i] * z2 + w3[i] * z3;
    }
    for (; j < inputs; ++j, weight += outputs) {
        const real z0 = z[j];
        for (int i = 0; i < outputs; ++i)
            s[i] += weight[i] * z0;
    }
}
""",
    "sparse": """\
/* s = W z + b: row i of W has the weights first[i] .. first[i + 1] - 1, in these columns. */
static inline void NAME(const real *weight, const index *column, const index *first,
                        const real *bias, const real *z, real *s, int outputs)
{
    for (int i = 0; i < outputs; ++i) {
        real sum = bias ? bias[i] : 0.0;
        for (uint32_t k = first[i]; k < first[i + 1]; ++k)
            sum += weight[k] * z[column[k]];
        s[i] = sum;
    }
}
""",
    "softmax": """\
/* z = e^s / sum e^s; z may be s. */
static inline void NAME(const real *s, real *z, int n)
{
    real top = s[0], sum = 0.0;
    for (int i = 1; i < n; ++i)
        top = s[i] > top ? s[i] : top;
    for (int i = 0; i < n; ++i) {
        z[i] = exp(s[i] - top);
        sum += z[i];
    }
    for (int i = 0; i < n; ++i)
        z[i] /= sum;
}
""",
    "log_softmax": """\
/* z = s - log sum e^s; z may be s. */
static inline void NAME(const real *s, real *z, int n)
{
    real top = s[0], sum = 0.0;
    for (int i = 1; i < n; ++i)
        top = s[i] > top ? s[i] : top;
    for (int i = 0; i < n; ++i)
        sum += exp(s[i] - top);
    sum = log(sum);
    for (int i = 0; i < n; ++i)
        z[i] = s[i] - top - sum;
}
""",
    "nearest": """\
/* The first row of weight that is nearest to x. */
static inline int32_t NAME(const real *weight, const real *x, int32_t rows, int n)
{
    int32_t found = 0;
    real least = 0.0;
    for (int32_t k = 0; k < rows; ++k, weight += n) {
        real distance = 0.0;
        for (int i = 0; i < n; ++i)
            distance += (x[i] - weight[i]) * (x[i] - weight[i]);
        if (k == 0 || distance < least) {
            found = k;
            least = distance;
        }
    }
    return found;
}
""",
}
# Share of connections up to which a masked block is written as a list of edges: it is smaller then
# and, but on wide vectors, faster.
_SPARSE = 0.25
# Columns and positions; the second where the first is too small.
_INDEX = (np.dtype(np.uint16), np.dtype(np.uint32))


class Writer:
    """Collects what the file consists of: constant arrays, functions, and predict's statements.

    Parameters
    ----------
    prefix : str
        What all identifiers of the file begin with, ``name_``.
    real : Real
    taken : sequence of str
        Identifiers, without the prefix, that are in use.
    discrete : collection of str
        The arguments of predict that are integers.
    """

    def __init__(
        self, prefix: str, real: Real, taken: Sequence[str], discrete: Collection[str]
    ) -> None:
        self.real = real
        self.discrete = discrete
        self.arrays: list[str] = []
        self.functions: list[str] = []
        self.statements: list[str] = []
        self.bytes = 0
        self._prefix = prefix
        self._names = Names(*taken)
        self._known: dict[tuple[str, ...], str] = {}

    def function(self, name: str, index: np.dtype[Any] = _INDEX[0]) -> str:
        """The name of a function of `_FUNCTIONS`, which is written when it is asked for first."""
        key = "function", name, index.name
        if key not in self._known:
            made = self._known[key] = self._fresh(name)
            text = self.real.code(_FUNCTIONS[name]).replace("index", f"{index.name}_t")
            self.functions.append(named(text, made))
        return self._known[key]

    def op(self, op: str) -> str:
        """The name of the function of a row of the op table."""
        key = "op", op
        if key not in self._known:
            made = self._known[key] = self._fresh(op)
            self.functions.append(op_function(made, op, self.real))
        return self._known[key]

    def array(self, name: str, values: _Array, row: int, note: str, form: str = "") -> str:
        """The name of a constant array; the same for the same `name` in the same `form`."""
        key = "array", name, form
        if key not in self._known:
            made = self._known[key] = self._fresh(name)
            kind, words = f"{values.dtype.name}_t", values.astype(str).tolist()
            if values.dtype == self.real.dtype:
                kind, words = self.real.name, self.real.numbers(values)
            self.arrays.append(array(kind, made, words, row, note))
            self.bytes += max(values.size, 1) * values.itemsize
        return self._known[key]

    def begin(self, stage: _Stage, text: str) -> None:
        """Say what the following statements compute."""
        self.statements.append(f"    /* {comment(stage['name'])}: {text} */")

    def call(self, function: str, *arguments: str | int) -> None:
        """Add a statement that calls a function."""
        self.statements.append(wrapped(f"    {function}(", [str(a) for a in arguments], ");"))

    def loop(self, to: Place, value: Callable[[str], str]) -> None:
        """Add a loop that computes every entry of `to`."""
        self.statements.append(f"    for (int i = 0; i < {to.size}; ++i)")
        self.statements.append(f"        {to.at('i')} = {value('i')};")

    def _fresh(self, base: str) -> str:
        return self._prefix + self._names.fresh(base)


def _linear(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
    name = stage["weight"]
    weight = p[name]
    out, n = weight.shape
    form = "columns"
    if stage["mask"] is not None:
        mask = np.reshape(stage["mask"], weight.shape)
        if np.count_nonzero(mask) <= _SPARSE * mask.size:
            _sparse(w, stage, x, to, p, np.argwhere(mask), weight[mask], n)
            return
        weight = np.where(mask, weight, 0).astype(weight.dtype)
        form = _digest(mask)  # another block may have another mask
    w.begin(stage, f"linear {n} -> {out}")
    text = f"{comment(name)}: for each of {n} inputs the weights to {out} outputs"
    array = w.array(name, weight.T.ravel(), out, text, form)
    w.call(w.function("linear"), array, _bias(w, stage, p), x[0].pointer, to.pointer, n, out)


def _sparse_linear(
    w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]
) -> None:
    edges = np.asarray(stage["edges"].edges)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    weight = p[stage["weight"]][order]
    n = stage["edges"].in_features
    _sparse(w, stage, x, to, p, edges[order], weight, n)


def _sparse(
    w: Writer,
    stage: _Stage,
    x: list[Place],
    to: Place,
    p: Mapping[str, _Array],
    edges: _Array,
    weight: _Array,
    n: int,
) -> None:
    """Rows of weights with their columns; `edges` are sorted by row."""
    out = to.size
    name, form = stage["weight"], _digest(edges)
    index = _index_type(n, len(edges))
    w.begin(stage, f"linear {n} -> {out}, {len(edges)} edges")
    first = np.searchsorted(edges[:, 0], np.arange(out + 1)).astype(index)
    text = comment(name)
    arguments = [
        w.array(name, weight, 8, f"{text}: one per edge", form),
        w.array(f"{name}_column", edges[:, 1].astype(index), 16, f"{text}: inputs of edges", form),
        w.array(f"{name}_first", first, 16, f"{text}: where the edges of outputs begin", form),
    ]
    function = w.function("sparse", index)
    w.call(function, *arguments, _bias(w, stage, p), x[0].pointer, to.pointer, out)


def _digest(values: _Array) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _index_type(n: int, edges: int) -> np.dtype[Any]:
    return _INDEX[max(n, edges) > np.iinfo(_INDEX[0]).max]


def _bias(w: Writer, stage: _Stage, p: Mapping[str, _Array]) -> str:
    name = stage["bias"]
    return w.array(name, p[name], 8, comment(name)) if name else "NULL"


def _pointwise(
    w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]
) -> None:
    w.begin(stage, stage["op"])
    function = w.op(stage["op"])
    numbers = "".join(f", {w.real.number(v)}" for v in stage["params"])
    w.loop(to, lambda i: f"{function}({x[0].at(i)}{numbers})")


def _softmax(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
    w.begin(stage, stage["kind"])
    w.call(w.function(stage["kind"]), x[0].pointer, to.pointer, to.size)


def _nearest(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
    name = stage["weight"]
    rows, n = p[name].shape
    w.begin(stage, f"nearest of {rows} points")
    array = w.array(name, p[name].ravel(), n, f"{comment(name)}: {rows} points", "rows of points")
    value = f"{w.function('nearest')}({array}, {x[0].pointer}, {rows}, {n})"
    # An output is an integer; a block behind it takes the index for a number.
    cast = "" if to.buffer.base in w.discrete else f"({w.real.name})"
    w.statements.append(f"    {to.at('0')} = {cast}{value};")


def _concat(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
    w.begin(stage, "concat")
    at = 0
    for part in x:
        copy(w, part, Place(to.buffer, to.offset + at, part.size))
        at += part.size


def copy(w: Writer, source: Place, to: Place) -> None:
    """Copy values to another place."""
    w.loop(to, source.at)


def _binary(symbol: str) -> Callable[..., None]:
    def emit(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
        w.begin(stage, stage["kind"])
        w.loop(to, lambda i: f"{x[0].at(i)} {symbol} {x[1].at(i)}")

    return emit


def _view(w: Writer, stage: _Stage, x: list[Place], to: Place, p: Mapping[str, _Array]) -> None:
    """Nothing to do: the output is where the input is."""


KINDS: dict[str, Callable[[Writer, _Stage, list[Place], Place, Mapping[str, _Array]], None]] = {
    "linear": _linear,
    "sparse_linear": _sparse_linear,
    "pointwise": _pointwise,
    "nearest": _nearest,
    "slice": _view,
    "reshape": _view,
    "dropout": _view,
    "add": _binary("+"),
    "sub": _binary("-"),
    "mul": _binary("*"),
    "div": _binary("/"),
    "concat": _concat,
    "softmax": _softmax,
    "log_softmax": _softmax,
}
