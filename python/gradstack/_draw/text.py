"""How wide texts are, and how numbers are written in few characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Advance widths in em of DejaVu Sans, rounded up. It is wider than Helvetica, Arial and most of
# what a viewer may put in their place, so a box that fits these numbers fits the text.
_CLASSES = {
    0.30: "'IJijl",
    0.35: " ,./:;\\|·",
    0.40: "()-[]ft",
    0.45: "!r₀₁₂₃₄₅₆₇₈₉",
    0.50: '"*_`‖',
    0.55: "?csz∂",
    0.60: "FLkvxyȳ",
    0.65: "$0123456789EPSTYabdeghnopqu{}Σσμ",
    0.70: "ABCKRVXZΔ",
    0.75: "NU",
    0.80: "&DGHOQ",
    0.85: "#+<=>^w~×−÷→∞",
    0.90: "M",
}
_WIDTHS = {character: width for width, text in _CLASSES.items() for character in text}
_BOLD = 1.2  # bold is at most that much wider, on the average of a word


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width in pixels of a line of text that is `size` pixels high."""
    em = sum(_WIDTHS.get(character, 1.0) for character in text)
    return em * size * (_BOLD if bold else 1.0)


def shorten(text: str, limit: int) -> str:
    """`text` with its middle left out when it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as diagrams write it: 784, 28×28, or scalar."""
    return "×".join(map(str, shape)) if shape else "scalar"


def count_text(count: int, noun: str) -> str:
    """A count with its noun: 1 block, 1,204 blocks."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """A number in at most seven characters, with a proper minus sign."""
    if not math.isfinite(value):
        return str(value).replace("-", "−").replace("inf", "∞")
    text = f"{value:.3g}"
    if "e" in text:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")
