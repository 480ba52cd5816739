"""The error that ends a command with one line and exit code 2."""

from __future__ import annotations


class InputError(Exception):
    """What the user gave cannot be used; the message says what, where and what was expected."""
