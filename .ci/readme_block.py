"""Print the `sh` block under a heading of README.md: `python3 readme_block.py "Quick start"`."""

import pathlib
import re
import sys

readme = pathlib.Path(__file__).parent.parent / "README.md"
heading = re.escape(sys.argv[1])
found = re.search(
    rf"^##+ {heading}\n(?:(?!^##? ).*\n)*?```sh\n(.*?)^```$",
    readme.read_text(encoding="utf-8"),
    flags=re.MULTILINE | re.DOTALL,
)
if not found:
    sys.exit(f"README.md has no sh block under the heading {sys.argv[1]!r}")
print(found[1], end="")
