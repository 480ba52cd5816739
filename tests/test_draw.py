"""Block diagrams: what they show, and that nothing overlaps in any of them."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest

import gradstack as gs
import oracle_nets
from gradstack import nn
from random_nets import RandomNet, random_net

pytest.importorskip("matplotlib", reason="its font measures the texts")
import svg_geometry


def chain(blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append([nn.Linear(64, 64), nn.Tanh(), nn.Dropout(0.1)][i % 3])
    return nn.Sequential(*layers)


def draw(net: nn.Module, *args: Any, **options: Any) -> svg_geometry.Picture:
    return svg_geometry.read(gs.draw(net, *args, **options).svg)


@pytest.mark.parametrize("variables", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_nothing_overlaps_in_random_graphs(seed: int, variables: bool) -> None:
    net = random_net(seed)
    single = len(net.trace().outputs) == 1
    cost = nn.CrossEntropyLoss() if single else None
    assert svg_geometry.problems(draw(net, cost, variables=variables)) == []


@pytest.mark.parametrize("seed", range(20))
def test_nothing_overlaps_in_the_nets_of_the_oracles(seed: int) -> None:
    recipe = oracle_nets.make_recipe(seed)
    net = oracle_nets.Net(recipe)
    net.trace((recipe.d_in,))
    for options in ({}, {"view": "average"}, {"view": "units"}, {"width": 300}):
        assert svg_geometry.problems(draw(net, nn.SquaredError(), **options)) == []


@pytest.mark.parametrize("blocks", [1, 3, 10, 30])
def test_nothing_overlaps_in_chains(blocks: int) -> None:
    picture = draw(chain(blocks), nn.MSELoss())
    assert svg_geometry.problems(picture) == []
    assert picture.width < 1150
    assert picture.height < 120 * (1 + blocks / 4) + 60


def test_a_chain_is_straight() -> None:
    picture = draw(chain(3), nn.MSELoss())
    heights = {
        y for wire in picture.wires if wire.source != "target y" for _, y in wire.points
    }  # fmt: skip
    assert len(heights) == 1


@pytest.mark.parametrize("seed", range(30))
def test_every_connection_is_drawn(seed: int) -> None:
    """Following the wires from figure to figure gives the graph that was traced."""
    net = random_net(seed)
    picture = draw(net)
    stages = net.trace().stages()
    wanted = sorted((source, s["name"]) for s in stages for source in s["inputs"])
    wanted += [(name, f"output {name}") for name in net.trace().outputs]
    got = [(w.source, w.target) for w in picture.wires if w.target]
    assert sorted(got) == sorted(wanted)


@pytest.mark.parametrize("seed", range(10))
def test_wires_touch_what_they_connect(seed: int) -> None:
    picture = draw(random_net(seed), variables=True)
    boxes = {}
    for number, group in enumerate(picture.groups, 1):
        name = group.get("data-name")
        if name is not None:
            shapes = [b for b in picture.shapes if b.group == number]
            boxes[name] = max(shapes, key=lambda b: (b.x1 - b.x0) * (b.y1 - b.y0))
    for wire in picture.wires:
        if wire.target:
            x, y = wire.points[-1]
            box = boxes[wire.target]
            assert abs(x + 5 - box.x0) < 0.1  # the arrowhead is the rest
            assert box.y0 <= y <= box.y1


def test_notation() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].freeze()
    picture = draw(net, nn.CrossEntropyLoss())
    observed = {g.get("data-name") for g in picture.of_class("observed")}
    assert observed == {"x", "target y"}
    shaded = picture.named("x").find(f"{svg_geometry.SVG}circle")
    assert shaded is not None
    assert shaded.get("fill") != "white"
    output = picture.named("output 2").findall(f"{svg_geometry.SVG}circle")
    assert [c.get("fill") for c in output] == ["white"]
    # Class labels are discrete: a double circle.
    assert len(picture.named("target y").findall(f"{svg_geometry.SVG}circle")) == 2
    for name in ("0", "1", "2"):
        path = picture.named(name).find(f"{svg_geometry.SVG}path")
        assert path is not None
        numbers = [float(t) for t in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
        # Flat at the left, an arc at the right only.
        assert numbers[0] == numbers[-2]
        assert path.get("d", "").count("A") == 1
    # The parameters hang below the blocks that have some, shaded when frozen.
    hints = {n: picture.named(n).findall(f"{svg_geometry.SVG}circle") for n in "012"}
    assert [len(hints[n]) for n in "012"] == [1, 0, 1]
    assert hints["0"][0].get("fill") != "white" == hints["2"][0].get("fill")
    (cost,) = picture.of_class("cost")
    square = cost.find(f"{svg_geometry.SVG}rect")
    assert square is not None
    assert square.get("width") == square.get("height")


def test_shapes_and_counts() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.GELU("tanh"), nn.Linear(256, 10))
    net.trace((28, 28))
    texts = [b.what for b in draw(net).texts]
    for text in ("28×28", "784", "256", "10", "w 256×784 + b 256", "200,960 parameters"):
        assert text in texts
    assert "4 blocks, 203,530 parameters, float32" in texts


def test_discrete_output() -> None:
    picture = draw(nn.NearestNeighbour(2, 5), nn.SquaredError())
    (output,) = [
        g for g in picture.of_class("variable") if (g.get("data-name") or "").startswith("output")
    ]
    assert len(output.findall(f"{svg_geometry.SVG}circle")) == 2
    assert not [g for g in picture.groups if g.get("data-name") == "target y"]


def test_average_view() -> None:
    net = chain(3)
    picture = draw(net, nn.MSELoss(), view="average")
    names = [g.get("data-name") or "" for g in picture.groups]
    assert [n for n in names if n.startswith("G ")] == ["G 1", "G 2", "G P"]
    assert names.count("w") == 1
    with pytest.raises(ValueError, match="cost"):
        gs.draw(net, view="average")


def test_units_view_has_a_line_per_weight() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 4)) < 0.5
    net = nn.Sequential(nn.Linear(4, 5, mask=mask), nn.Tanh(), nn.Linear(5, 2))
    net[0].weight[...] = np.abs(net[0].weight)
    net[2].weight[...] = -np.abs(net[2].weight)
    picture = draw(net, view="units")
    units = [g for g in picture.groups if g.get("class") == "units"]
    assert [len(g.findall(f"{svg_geometry.SVG}circle")) for g in units] == [4, 5, 2]
    lines = [g for g in picture.groups if g.get("class") == "wire"]
    assert [len(g) for g in lines] == [mask.sum(), 10]

    def red(color: str) -> bool:
        return int(color[1:3], 16) > int(color[5:7], 16)

    for group, negative in zip(lines, (False, True), strict=True):
        assert all(red(line.get("stroke", "")) == negative for line in group)


def test_units_view_of_large_nets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"40 units a variable, 'x' has 64"):
        gs.draw(chain(2), view="units")


def test_names_are_escaped() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module('<a> & "b"', nn.Linear(3, 2))

        def forward(self, x: Any) -> Any:
            return next(self.children())(x)

    net = Odd()
    net.trace((3,))
    picture = draw(net)
    assert '<a> & "b"' in [b.what for b in picture.texts]


def test_no_style_leaks_into_a_page() -> None:
    svg = gs.draw(chain(3), nn.MSELoss()).svg
    assert "<style" not in svg
    assert " id=" not in svg


def test_save(tmp_path: pathlib.Path) -> None:
    diagram = gs.draw(chain(3))
    path = tmp_path / "net.svg"
    diagram.save(path)
    assert path.read_text("utf-8") == diagram.svg == diagram._repr_svg_()
    with pytest.raises(ValueError, match=r"must end in \.svg"):
        diagram.save(tmp_path / "net.png")
    assert [p.name for p in tmp_path.iterdir()] == ["net.svg"]


def test_bad_arguments() -> None:
    net = chain(3)
    with pytest.raises(TypeError, match="net must be"):
        gs.draw("net")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an instance"):
        gs.draw(net, nn.MSELoss)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="view must be one of"):
        gs.draw(net, view="boxes")
    with pytest.raises(ValueError, match="width must be at least 100"):
        gs.draw(net, width=10)
    with pytest.raises(ValueError, match="sample shape is not known"):
        gs.draw(nn.Sequential(nn.Flatten(), nn.ReLU()))
    two = RandomNet(0, 3)
    two.forward = lambda x: (x + 1, x * 2)  # type: ignore[assignment]
    two.trace((8,))
    with pytest.raises(ValueError, match="2 outputs, a cost takes one"):
        gs.draw(two, nn.MSELoss())


def test_boxes_are_measured_generously() -> None:
    """The widths that boxes are made for hold for the widest of the common fonts."""
    from gradstack._draw.text import text_width

    words = ["Linear", "CrossEntropyLoss", "w 256×784 + b 256", "200,960 parameters", "ȳ₁₂"]
    words += ["a_layer_with_quite_a_long_name", "‖·‖ 0.0252, −0.00298…0.00329", "MWQ@%", "iIlL1"]
    for word in words:
        for bold in (False, True):
            assert svg_geometry.text_length(word, 10, bold) <= text_width(word, 10, bold)


def test_the_test_sees_overlaps() -> None:
    """A text moved onto its neighbour and a box moved onto a wire are found."""
    svg = gs.draw(chain(3), nn.MSELoss()).svg
    assert svg_geometry.problems(svg_geometry.read(svg)) == []
    moved = re.sub(r'<text x="[\d.]+"( y="[\d.]+" font-size="10" text-anchor="start")',
                   r'<text x="60"\1', svg)  # fmt: skip
    assert any("texts" in p for p in svg_geometry.problems(svg_geometry.read(moved)))
    moved = re.sub(r'(data-name="1".*?<path d=")M [\d.]+', r"\1M 60", svg, flags=re.DOTALL)
    found = svg_geometry.problems(svg_geometry.read(moved))
    assert any("wire" in p for p in found)
    assert any("shapes" in p for p in found)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_overlaps_in_a_backprop_run(seed: int) -> None:
    rng = np.random.default_rng(seed)
    recipe = oracle_nets.make_recipe(seed)
    net = oracle_nets.Net(recipe)
    batch = int(rng.integers(1, 40))
    x, y = rng.standard_normal((batch, recipe.d_in)), rng.standard_normal((batch, recipe.d_out))
    for arguments in ((x, y), (x[0], y[0])):
        trace = gs.backprop(net, nn.SquaredError(), *arguments)
        assert svg_geometry.problems(svg_geometry.read(trace.draw().svg)) == []
    each = gs.backprop(net, nn.SquaredError(), x, y, per_sample=True)
    assert svg_geometry.problems(svg_geometry.read(each.draw(width=500).svg)) == []


def test_a_backprop_run_shows_its_values() -> None:
    net = nn.Sequential(
        nn.Linear(2, 3, dtype="float64"), nn.Tanh(), nn.Linear(3, 1, dtype="float64")
    )
    trace = gs.backprop(net, nn.SquaredError(), [1.0, -2.0], [0.5])
    picture = svg_geometry.read(trace._repr_svg_())
    texts = [b.what for b in picture.texts]

    def written(values: Any) -> str:
        return ", ".join(f"{v:.3g}" for v in np.ravel(values)).replace("-", "−")

    for values in (trace.ybar, trace.dybar, *(s.z for s in trace.stages)):
        assert written(values) in texts
    for stage in trace.stages:
        assert written(stage.dz) in texts
    assert texts.count("dC/dw") == 2
    norm = f"‖·‖ {np.linalg.norm(trace['0'].dw):.3g},"
    assert any(t.startswith(norm) for t in texts)
    assert f"{trace.loss:.3g}" in texts


def test_a_backprop_run_of_a_residual_net_shows_total_gradients() -> None:
    """Where a variable is used twice, its dC/dz is the sum over its uses."""
    net = nn.Sequential(nn.Residual(nn.Linear(2, 2, dtype="float64")))
    x, y = np.array([0.3, -0.7]), np.array([1.0, 2.0])
    trace = gs.backprop(net, nn.SquaredError(), x, y)
    dx = 2 * (trace.ybar - y) @ (np.eye(2) + np.asarray(net[0].body.weight))
    texts = [b.what for b in svg_geometry.read(trace.draw().svg).texts]
    assert ", ".join(f"{v:.3g}" for v in dx).replace("-", "−") in texts


def test_labels_and_broken_values_are_written() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    net[0].weight[0, 0] = np.inf
    net[0].weight[1, 1] = np.nan
    x = np.random.default_rng(0).standard_normal((12, 5))
    trace = gs.backprop(net, nn.CrossEntropyLoss(), x, np.arange(12) % 3)
    picture = svg_geometry.read(trace.draw().svg)
    assert "0, 1, 2, 0, 1, 2, 0, 1, …" in [b.what for b in picture.texts]
    assert svg_geometry.problems(picture) == []
