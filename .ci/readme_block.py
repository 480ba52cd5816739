"""Print the `sh` block under a heading of README.md: `python3 readme_block.py "Quick start"`."""

import pathlib
import sys


def block(text: str, heading: str) -> str | None:
    """Return the first `sh` block of the section with this heading."""
    inside = False
    code: list[str] | None = None
    for line in text.splitlines(keepends=True):
        if code is not None:
            if line.startswith("```"):
                return "".join(code)
            code.append(line)
        elif line.startswith("#"):
            inside = line.lstrip("#").strip() == heading
        elif inside and line.rstrip() == "```sh":
            code = []
    return None


readme = pathlib.Path(__file__).parent.parent / "README.md"
found = block(readme.read_text(encoding="utf-8"), sys.argv[1])
if found is None:
    sys.exit(f"README.md has no sh block under the heading {sys.argv[1]!r}")
print(found, end="")
