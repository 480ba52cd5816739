"""Check that kernel units keep to themselves.

A kernel unit is compiled for a newer instruction set than the rest of the library. A weak symbol
outside the unit's own namespace (an inline function of the standard library, a template of
another header) could be the copy that the linker keeps for everybody, and crash older processors.
Every symbol that a unit's object file defines must therefore lie in ``gradstack::<unit>::``,
apart from the two functions the unit exports.

Usage: check_symbols.py [--nm NM] FILE...

FILE is an object file or a static library; members without kernels are ignored. Exit status 1
names the leaks; finding no kernel unit at all is an error too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

# Mangled names, because they begin with the namespace: return types and arguments come last.
EXPORT = re.compile(r"_ZN9gradstack\d+(\w+)_kernels_f(?:32|64)Ev$")
# Guard variables, vtables, type information and locals of functions carry a prefix.
NESTED_NAME = r"_Z(?:GV|TV|TI|TS|TT|TH|TW|Z|L)*N[VKrRO]*"


def members(nm: str, path: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (name, symbols) of each object in `path`; a symbol is its (kind, mangled name)."""
    listing = subprocess.run(
        [nm, "--defined-only", path], check=True, capture_output=True, text=True
    ).stdout
    objects: list[tuple[str, list[tuple[str, str]]]] = [(path, [])]
    for line in listing.splitlines():
        # Members of a library may share a name: each heading starts another one.
        if line.endswith(":") and " " not in line:
            objects.append((f"{path}({line[:-1]})", []))
            continue
        fields = line.split(maxsplit=2)
        if len(fields) == 3:
            objects[-1][1].append((fields[1], fields[2]))
    return objects


def leaks(symbols: list[tuple[str, str]], unit: str) -> list[str]:
    """Return the names among `symbols` that the linker could share with code outside `unit`."""
    own = re.compile(rf"{NESTED_NAME}9gradstack{len(unit)}{unit}")
    shared = []
    for kind, name in symbols:
        # Lower-case kinds are local to the object, but for weak (w, v) and unique (u) ones.
        if kind.islower() and kind not in "wvu":
            continue
        if EXPORT.match(name) or own.match(name):
            continue
        shared.append(f"{kind} {name}")
    return shared


def main() -> int:
    """Run the check on the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nm", default="nm", help="the nm to use, for cross-compiled objects")
    parser.add_argument("files", nargs="+", metavar="FILE")
    arguments = parser.parse_args()

    units, failed = 0, False
    for path in arguments.files:
        for where, symbols in members(arguments.nm, path):
            exports = {match[1] for _, name in symbols if (match := EXPORT.match(name))}
            if not exports:
                continue
            if len(exports) > 1:
                print(f"{where}: kernels of several units in one object: {sorted(exports)}")
                failed = True
                continue
            units += 1
            unit = exports.pop()
            for leak in leaks(symbols, unit):
                print(f"{where}: {leak} is not in gradstack::{unit}::")
                failed = True
    if units == 0:
        print("no kernel unit found")
        return 1
    print(f"{units} kernel units checked" + (": leaks found" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
