"""Where the values of a net live while its C function runs.

The plan is static: every block's output is a range of an argument or of one workspace, and ranges
whose values are never needed at the same time share memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

# The output is a part of the input, in place.
_VIEWS = {"reshape", "slice", "dropout"}
# Entry i of the output needs entry i of the inputs and what was read before it is written.
_ENTRYWISE = {"pointwise", "add", "sub", "mul", "div", "softmax", "log_softmax"}

WORKSPACE = "work"


@dataclasses.dataclass(eq=False)
class Buffer:
    """A range of memory, and the steps between which it is in use."""

    base: str  # the C array that it is a part of
    size: int
    first: int = 0
    last: int = 0
    offset: int = 0

    def overlaps(self, other: Buffer) -> bool:
        """Whether both are in use at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclasses.dataclass(frozen=True)
class Place:
    """The values of one variable: `size` numbers from `offset` of a buffer."""

    buffer: Buffer
    offset: int
    size: int

    @property
    def pointer(self) -> str:
        """The first number's address in C."""
        start = self.buffer.offset + self.offset
        return f"{self.buffer.base} + {start}" if start else self.buffer.base

    def at(self, index: str) -> str:
        """The number at a C expression."""
        start = self.buffer.offset + self.offset
        return f"{self.buffer.base}[{start} + {index}]" if start else f"{self.buffer.base}[{index}]"


def plan_places(
    stages: Sequence[Mapping[str, Any]], inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> tuple[dict[str, Place], int]:
    """Choose a place for the output of every stage.

    Parameters
    ----------
    stages : sequence of mapping
        What ``Graph.stages()`` returns.
    inputs, outputs : mapping
        The C arrays of input and output stages, by stage name.

    Returns
    -------
    places : dict
        The place of every stage's output. An output that is part of something else has its place
        there and must be copied.
    size : int
        Numbers in the workspace.
    """
    origin: dict[str, str] = {}  # of a view: the stage that computes the values
    whole: dict[str, bool] = {}  # whether a view has all of them
    last: dict[str, int] = {}
    for step, stage in enumerate(stages):
        name = stage["name"]
        origin[name], whole[name] = name, True
        if stage["kind"] in _VIEWS:
            (source,) = stage["inputs"]
            origin[name] = origin[source]
            whole[name] = whole[source] and stage["kind"] != "slice"
        for source in stage["inputs"]:
            last[origin[source]] = step
    direct: dict[str, str] = {}  # stages that write straight to an output
    for name, array in outputs.items():
        if whole[name] and origin[name] not in inputs:
            direct.setdefault(origin[name], array)
        last[origin[name]] = len(stages)
    # What such a stage then changes in place may be there from the beginning.
    for step, stage in reversed(list(enumerate(stages))):
        if stage["kind"] in _ENTRYWISE and stage["name"] in direct:
            for source in stage["inputs"]:
                before = origin[source]
                if whole[source] and last[before] == step and before not in {*inputs, *direct}:
                    direct[before] = direct[stage["name"]]
                    break

    places: dict[str, Place] = {}
    work: list[Buffer] = []
    for step, stage in enumerate(stages):
        name, size = stage["name"], math.prod(stage["shape"])
        if stage["kind"] in _VIEWS:
            source = places[stage["inputs"][0]]
            begin = stage["begin"] if stage["kind"] == "slice" else 0
            places[name] = Place(source.buffer, source.offset + begin, size)
        elif name in inputs or name in direct:
            base = inputs.get(name) or direct[name]
            places[name] = Place(Buffer(base, size), 0, size)
        else:
            buffer = _dying(stage, step, places, origin, last)
            if buffer is None:
                buffer = Buffer(WORKSPACE, size, first=step)
                work.append(buffer)
            buffer.last = last[name]
            places[name] = Place(buffer, 0, size)
    return places, _pack(work)


def _dying(
    stage: Mapping[str, Any],
    step: int,
    places: Mapping[str, Place],
    origin: Mapping[str, str],
    last: Mapping[str, int],
) -> Buffer | None:
    """The buffer of an input that nobody needs after this stage, for its output."""
    if stage["kind"] not in _ENTRYWISE:
        return None
    for source in stage["inputs"]:
        place = places[source]
        unneeded = place.buffer.base == WORKSPACE and last[origin[source]] == step
        if unneeded and place.size == place.buffer.size:
            return place.buffer
    return None


def _pack(buffers: Sequence[Buffer]) -> int:
    """Give buffers their offsets, large ones first; returns the size of all together."""
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        buffer.offset = 0
        for other in sorted(placed, key=lambda b: b.offset):
            fits_before = buffer.offset + buffer.size <= other.offset
            if not fits_before and buffer.overlaps(other):
                buffer.offset = max(buffer.offset, other.offset + other.size)
        placed.append(buffer)
    return max((b.offset + b.size for b in placed), default=0)
