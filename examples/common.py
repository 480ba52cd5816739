"""What the examples with pictures share: their two options and the look of the figures."""

import argparse
import pathlib
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

Array = npt.NDArray[np.floating[Any]]

# Figures are written to files, never shown: no display is needed.
mpl.use("Agg")
mpl.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
)


def arguments(description: str | None) -> argparse.Namespace:
    """Parse ``--quick`` (a few seconds, rougher), ``--out`` (folder of the picture), ``--seed``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, rougher results")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(), help="picture folder")
    parser.add_argument("--seed", type=int, default=0, help="of data and initial weights")
    return parser.parse_args()


def save(figure: Figure, folder: pathlib.Path, name: str) -> None:
    """Write `figure` to ``folder/name``, making the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, bbox_inches="tight", pil_kwargs={"optimize": True})
    print(f"picture {folder / name}")
