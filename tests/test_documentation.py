"""Every public name is on a page of docs/ and has a docstring that says what goes in and out."""

from __future__ import annotations

import inspect
import pathlib
import re
from typing import Any

import pytest

import gradstack as gs
from gradstack import io, nn, optim
from gradstack.cli._arguments import build_parser
from gradstack.optim import schedules

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

SCHEDULES = [
    name
    for name, value in vars(schedules).items()
    if getattr(value, "__module__", "") == schedules.__name__ and not name.startswith("_")
]
NAMES: dict[str, Any] = {
    f"{label}.{name}": getattr(module, name)
    for label, module, names in (
        ("gs", gs, gs.__all__),
        ("nn", nn, nn.__all__),
        ("optim", optim, optim.__all__),
        ("schedules", schedules, SCHEDULES),
        ("io", io, io.__all__),
    )
    for name in names
    if not inspect.ismodule(getattr(module, name))
}
CALLABLE = {name: value for name, value in NAMES.items() if callable(value)}
# Made by the library, never by its users.
RETURNED = {"gs.Backprop", "gs.DeviceArray", "gs.Stage"}


def sections(value: Any) -> dict[str, str]:
    """The titled sections of a numpydoc docstring."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parameters(value: Any) -> list[str]:
    found: Any
    if not inspect.isclass(value):
        found = inspect.signature(value).parameters
    elif "__signature__" in vars(value):
        found = value.__signature__.parameters
    else:
        init = value.__init__ if "__new__" not in vars(value) else value.__new__
        found = {} if init is object.__init__ else inspect.signature(init).parameters
    return [name for name in found if name not in ("self", "cls")]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_on_a_page(name: str) -> None:
    label, _, word = name.partition(".")
    # A function named like a common word counts only where it is called one of ours.
    pattern = rf"\b{label}\.{word}\b" if word.islower() and label == "gs" else rf"\b{word}\b"
    assert re.search(pattern, TEXT), f"{name} is mentioned in none of {[p.name for p in PAGES]}"


@pytest.mark.parametrize("name", CALLABLE)
def test_docstrings_say_what_goes_in_and_out(name: str) -> None:
    value = CALLABLE[name]
    text = inspect.getdoc(value) or ""
    first = text.partition("\n")[0]
    assert first.rstrip().endswith((".", "...")), f"{name}: {first!r}"
    found = sections(value)
    if name in RETURNED:
        assert "Attributes" in found
        return
    missing = [
        p for p in parameters(value) if not re.search(rf"\b{p}\b", found.get("Parameters", ""))
    ]
    assert not missing, f"{name} says nothing of {missing}"
    returns = None if inspect.isclass(value) else inspect.signature(value).return_annotation
    if returns not in (None, "None", inspect.Signature.empty):
        assert "Returns" in found, name


@pytest.mark.parametrize("name", [n for n, value in CALLABLE.items() if inspect.isclass(value)])
def test_public_methods_have_docstrings(name: str) -> None:
    for method, value in vars(CALLABLE[name]).items():
        if not method.startswith("_") and (
            inspect.isfunction(value) or isinstance(value, property)
        ):
            assert inspect.getdoc(value), f"{name}.{method}"


def test_the_check_can_fail() -> None:
    def undocumented(x: int, *, y: int) -> int:
        """Add.

        Parameters
        ----------
        x : int
        """
        return x + y

    assert parameters(undocumented) == ["x", "y"]
    assert sections(undocumented) == {"Parameters": "x : int"}


def test_defaults_of_the_command_line_are_on_its_page() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `--([\w-]+).*?` \| (.*) \|$", page, flags=re.MULTILINE))
    defaults = vars(build_parser().parse_args(["train", "table.csv", "--target", "y"]))
    for option in defaults:
        if option not in ("command", "data", "run", "json", "quiet", "no_header", "delimiter"):
            shown = option.replace("_", "-")
            assert shown in rows or f"`--{shown}" in page, option
    assert rows["hidden"] == f"`{','.join(map(str, defaults['hidden']))}`"
    for option in ("activation", "epochs", "batch_size", "optimizer", "schedule", "seed", "dtype",
                   "dropout", "test_size", "max_categories", "task"):  # fmt: skip
        assert rows[option.replace("_", "-")].startswith(f"`{defaults[option]}`"), option
