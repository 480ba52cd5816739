"""`Diagram`: a finished picture."""

from __future__ import annotations

import os


class Diagram:
    """A picture as SVG; notebooks show it.

    Attributes
    ----------
    svg : str
        The whole document.
    width, height : float
        In pixels.
    """

    __slots__ = ("height", "svg", "width")

    def __init__(self, svg: str, width: float, height: float) -> None:
        self.svg = svg
        self.width = width
        self.height = height

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the SVG file, atomically.

        Parameters
        ----------
        path : path-like
            The file, ``*.svg``; an existing one is replaced.

        Raises
        ------
        ValueError
            The name ends in something else than ``.svg``.
        OSError
            The directory does not exist or cannot be written to.
        """
        from gradstack._files import atomic_file

        name = os.fspath(path)
        if not name.lower().endswith(".svg"):
            raise ValueError(f"path must end in .svg, got {name!r}")
        with atomic_file(path) as file:
            file.write(self.svg.encode())

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Diagram({self.width:.0f} x {self.height:.0f}, {len(self.svg)} characters of SVG)"
