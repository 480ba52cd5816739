"""`draw`: nets as block diagrams in the lecture's notation."""

from __future__ import annotations

from typing import Any

from gradstack._draw.diagram import Diagram
from gradstack.nn.cost import Cost
from gradstack.nn.module import Module

__all__ = ["Diagram", "draw"]

_VIEWS = ("blocks", "average", "units")


def draw(
    net: Module,
    cost: Cost | None = None,
    *,
    view: str = "blocks",
    variables: bool = False,
    width: float = 1000,
) -> Diagram:
    """Draw a net as a block diagram.

    Circles are variables: shaded when observed (inputs and targets), double when discrete.
    Functions are blocks, flat where their inputs arrive and rounded on the side of the output, the
    direction in which they are easy to compute; the small circle below a block stands for its
    parameters, an implicit input, shaded when they are frozen. A cost is a square whose scalar
    output is implicit. Numbers on wires are shapes of one sample.

    Parameters
    ----------
    net : Module
        A net that knows its sample shape: a Sequential, or any other once it has been called,
        trained or traced (``net.trace(sample_shape)``).
    cost : Cost, optional
        Drawn behind the output, with the target y.
    view : {"blocks", "average", "units"}
        "blocks": every block of the graph. "average": the net as one function G(x, w) applied to
        several samples with the same w, and the average of their losses (needs `cost`). "units":
        every unit of a small net as a circle, and every weight as a line, blue when positive and
        red when negative, as thick as its magnitude.
    variables : bool
        In the blocks view, also draw the variables between blocks as circles.
    width : float
        Pixels after which a diagram goes on in a row below.

    Returns
    -------
    Diagram
        Shown by notebooks; ``.save(path)`` writes an SVG file.

    Raises
    ------
    ValueError
        The sample shape is not known, an argument is out of range, the net has several outputs but
        a cost is given, or the net is too large for a view of its units.

    Examples
    --------
    >>> import gradstack as gs
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> diagram = gs.draw(net, nn.CrossEntropyLoss())
    >>> diagram.svg.startswith("<svg")
    True
    >>> diagram.save("net.svg")  # doctest: +SKIP
    """
    from gradstack._draw.model import read_model
    from gradstack.functional import require_cost, require_net

    model = read_model(require_net(net))
    room = read_width(width)
    if view not in _VIEWS:
        raise ValueError(f"view must be one of {', '.join(map(repr, _VIEWS))}, got {view!r}")
    if cost is not None:
        require_cost(cost)
        if len(model.outputs) != 1:
            raise ValueError(
                f"[{model.name}] has {len(model.outputs)} outputs, a cost takes one: join them "
                "with gs.concat"
            )
    if view == "average":
        from gradstack._draw.average import draw_average

        if cost is None:
            raise ValueError("view='average' shows the average of a cost: pass cost=")
        return draw_average(model, cost)
    if view == "units":
        from gradstack._draw.units import draw_units

        return draw_units(net, model)
    from gradstack._arrays import as_flag
    from gradstack._draw.blocks import draw_blocks

    return draw_blocks(model, cost, as_flag(variables, "variables"), room)


def read_width(width: Any) -> float:
    """Check a row's width in pixels."""
    from gradstack._arrays import as_number

    return as_number(width, "width", low=100.0)
