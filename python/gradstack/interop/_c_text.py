"""Pieces of C: numbers, arrays, names and the functions of the op table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack import _core

_OPS = {row["name"]: row for row in _core.ops()}
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:e[+-]?\d+)?")
_CALL = re.compile(r"\b([a-z]\w*)\(")  # keywords have a space before the parenthesis
_SIGNATURE = re.compile(r"^(static inline \w+ )NAME\((.*?)\)$", re.MULTILINE | re.DOTALL)
WIDTH = 100
# Words of C, C++ and of the functions written here that an argument cannot be called.
_RESERVED = frozenset(
    re.findall(
        r"\w+",
        """
        alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept auto bitand
        bitor bool break case catch char char16_t char32_t char8_t class co_await co_return
        co_yield compl concept const const_cast consteval constexpr constinit continue decltype
        default delete do double dynamic_cast else enum explicit export extern false float for
        friend goto if inline int long mutable namespace new noexcept not not_eq nullptr
        operator or or_eq private protected public reflexpr register reinterpret_cast requires
        restrict return short signed sizeof static static_assert static_cast struct switch
        synchronized template this thread_local throw true try typedef typeid typename typeof
        union unsigned using virtual void volatile wchar_t while xor xor_eq
        i work NULL NAN INFINITY HUGE_VAL
        """,
    )
)


class Names:
    """Identifiers that differ from each other."""

    def __init__(self, *taken: str) -> None:
        self._taken = {name.lower() for name in taken}

    def fresh(self, base: str) -> str:
        """`base` as an identifier, with a number behind it when it is taken."""
        stem = re.sub(r"[^A-Za-z0-9_]", "_", base)
        name, n = stem, 1
        # Macros are made of names in capitals: letter case does not tell names apart.
        while name.lower() in self._taken:
            n += 1
            name = f"{stem}_{n}"
        self._taken.add(name.lower())
        return name


def argument(names: Names, base: str) -> str:
    """A name for an argument of a function."""
    letter_first = base if re.match(r"[A-Za-z]", base) else f"x{base}"
    return names.fresh(f"{letter_first}_" if letter_first in _RESERVED else letter_first)


class Real:
    """The type a net computes in, and how C writes its numbers and functions."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.name = "float" if dtype == np.float32 else "double"
        self.suffix = "f" if dtype == np.float32 else ""
        infinity = "INFINITY" if dtype == np.float32 else "HUGE_VAL"  # the first is a float
        self._special = {"inf": infinity, "-inf": f"-{infinity}", "nan": "NAN"}

    def number(self, value: float) -> str:
        """A constant."""
        return self.numbers(np.array([value], np.float64).astype(self.dtype))[0]

    def numbers(self, values: npt.NDArray[Any]) -> list[str]:
        """Constants of the type: the shortest decimals that are read as the same bits."""
        words: list[str] = values.astype(str).tolist()
        if not np.isfinite(values).all():
            return [self._special.get(word, word + self.suffix) for word in words]
        return [word + self.suffix for word in words]

    def code(self, text: str) -> str:
        """C that is written for a type ``real`` in the type."""
        text = _CALL.sub(rf"\1{self.suffix}(", text)
        text = _NUMBER.sub(lambda m: self.literal(m[0]), text)
        return re.sub(r"\breal\b", self.name, text)

    def literal(self, word: str) -> str:
        """A number in code; those without a point are integers."""
        return word + self.suffix if re.search(r"[.e]", word) else word


def op_function(name: str, op: str, real: Real) -> str:
    """The function of a row of the op table, its parameters being arguments."""
    row = _OPS[op]
    arguments = ", ".join(f"real {a}" for a in ("s", *(p for p, _ in row["params"])))
    body = "".join(f"    {line}\n" for line in row["c"].splitlines())
    return named(real.code(f"static inline real NAME({arguments})\n{{\n{body}}}\n"), name)


def named(text: str, name: str) -> str:
    """A function that is called ``NAME`` under its own name."""

    def signature(match: re.Match[str]) -> str:
        return wrapped(f"{match[1]}{name}(", re.split(r",\s*", match[2]), ")")

    return _SIGNATURE.sub(signature, text, count=1)


def wrapped(begin: str, words: list[str], end: str) -> str:
    """Words with commas between them, continued below the first one."""
    lines, line = [], begin
    for word in words:
        if len(line) + len(word) + 2 > WIDTH and line.strip() and not line.endswith("("):
            lines.append(line.rstrip())
            line = " " * len(begin)
        line += f"{word}, "
    return "\n".join([*lines, line.removesuffix(", ") + end])


def array(type_name: str, name: str, words: list[str], row: int, comment: str) -> str:
    """A constant array; each `row` numbers begin on a line of their own."""
    # C has no empty arrays.
    words = words or ["0"]
    lines = ",\n".join(_lines(words, max(row, 1)))
    return f"/* {comment} */\nstatic const {type_name} {name}[{len(words)}] = {{\n{lines}\n}};\n"


def _lines(words: list[str], row: int) -> Iterator[str]:
    per_line = max(1, (WIDTH - 4) // (max(map(len, words)) + 2))
    for begin in range(0, len(words), row):
        end = min(begin + row, len(words))
        for at in range(begin, end, per_line):
            yield "    " + ", ".join(words[at : min(at + per_line, end)])


def comment(text: str) -> str:
    """Text that may stand in a comment, whatever a user has called a block."""
    return re.sub(r"[^\w .,:()<>=+-]", "_", text, flags=re.ASCII)
