"""Code in README.md and docs/ runs and prints what the page says it prints.

The `python` blocks of a page run from top to bottom in one namespace. A `text` block that follows
one is what it prints; numbers may differ by two units in their last digit. The `sh` blocks of
docs/command-line.md run in an empty folder.
"""

import contextlib
import io
import itertools
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"diagrams.md": "matplotlib", "scikit-learn.md": "sklearn"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Block(NamedTuple):
    line: int
    code: str
    output: str | None


def blocks(page: pathlib.Path, language: str) -> list[Block]:
    """Blocks of one language, each with the `text` block that follows it."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    found = []
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        if fence[1] == language:
            adjacent = (
                following is not None
                and following[1] == "text"
                and not text[fence.end() : following.start()].strip()
            )
            output = following[2] if adjacent and following is not None else None
            found.append(Block(text.count("\n", 0, fence.start()) + 2, fence[2], output))
    return found


def close(printed: str, expected: str) -> bool:
    """Equal up to two units in the last digit of a decimal number."""
    if printed == expected:
        return True
    mantissa, _, exponent = expected.partition("e")
    if "." not in mantissa:
        return False
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(printed) - float(expected)) <= 2.01 * unit


def same_output(printed: str, expected: str) -> bool:
    words = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (printed, expected)]
    numbers = [NUMBER.findall(text) for text in (printed, expected)]
    return words[0] == words[1] and all(map(close, *numbers))


def test_output_comparison_can_fail() -> None:
    assert same_output("loss 0.1235  x", "loss 0.1234 x\n")
    assert not same_output("loss 0.1239", "loss 0.1234")
    assert not same_output("shape (3, 4)", "shape (3, 5)")
    assert not same_output("loss", "cost")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(
    page: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name], reason="the page uses it")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        # Leading newlines make line numbers in a traceback those of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None:
            assert same_output(printed.getvalue(), block.output), (
                f"{page.name}:{block.line} printed\n{printed.getvalue()}"
            )


def test_diagrams_on_the_page_are_what_its_code_draws(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the page draws with it too")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "diagrams.md"
    namespace: dict[str, object] = {"__name__": "page"}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(page, "python"):
            exec(compile(block.code, str(page), "exec"), namespace)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 5
    for picture in drawn:
        stored = (ROOT / "docs" / "images" / picture.name).read_text("utf-8")
        # Values are rounded differently by different instruction sets, shapes and texts are not.
        new, old = (
            re.findall(r"<(?:title|text)[^>]*>([^<]*)|<(circle|rect|g)", text)
            for text in (picture.read_text("utf-8"), stored)
        )
        assert [re.sub(r"[\d.−e]+", "#", a) + b for a, b in new] == [
            re.sub(r"[\d.−e]+", "#", a) + b for a, b in old
        ]


def test_command_line_page(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sklearn", reason="the page trains on scikit-learn's data sets")
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = 'gradstack() { python -m gradstack.cli "$@"; }\n'  # also where no script is installed
    for block in blocks(ROOT / "docs" / "command-line.md", "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command + block.code],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if block.output is not None:
            assert same_output(done.stdout, block.output), f"line {block.line}:\n{done.stdout}"


def test_links_between_pages_exist() -> None:
    for page in [*PAGES, ROOT / "HACKING.md"]:
        for target in re.findall(
            r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")
        ):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
