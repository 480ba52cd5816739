"""Rewriting rules that leave the function of a net as it is; each says whether it did anything."""

from __future__ import annotations

import numpy as np

from gradstack._simplify.graph import Array, Blocks, Node

ElementWise = tuple[Array, Array]  # a and b of z = a * x + b, scalars or in the shape of x


def simplify_blocks(blocks: Blocks, low_rank: bool) -> None:
    """Apply all rules until none applies."""
    while any(
        [
            _drop_identities(blocks),
            _move_views(blocks),
            _fold_scales(blocks),
            _merge_linear(blocks, low_rank),
            _merge_parallel(blocks),
        ]
    ):
        blocks.sweep()


def element_wise(node: Node) -> ElementWise | None:
    """a and b, when the block is z = a * x + b element by element."""
    if node.kind == "scale":
        return node.matrix, np.zeros(node.shape) if node.bias is None else node.bias
    if node.kind == "pointwise" and node.attrs["op"] == "affine":
        a, b = node.attrs["params"]
        return np.asarray(a), np.asarray(b)
    return None


def _set_element_wise(node: Node, a: Array, b: Array) -> None:
    node.origin = None
    if np.ndim(a) == 0 and np.ndim(b) == 0:
        node.kind, node.attrs = "pointwise", {"op": "affine", "params": [float(a), float(b)]}
        node.weight = node.bias = None
        return
    node.kind, node.attrs = "scale", {}
    node.weight = np.broadcast_to(a, node.shape).copy()
    node.bias = np.broadcast_to(b, node.shape).copy()


def _drop_identities(blocks: Blocks) -> bool:
    """Dropout (in evaluation), the identity, 1 z + 0, and views that change nothing."""
    changed = False
    for node in blocks:
        if not node.inputs:
            continue
        source = blocks[node.inputs[0]]
        if node.kind == "reshape" and source.kind == "reshape":
            node.inputs = list(source.inputs)
            source = blocks[node.inputs[0]]
            changed = True
        ab = element_wise(node)
        nothing = (
            node.kind == "dropout"
            or (node.kind == "pointwise" and node.attrs["op"] == "identity")
            or (node.kind == "reshape" and node.shape == source.shape)
            or (ab is not None and bool(np.all(ab[0] == 1) and np.all(ab[1] == 0)))
        )
        if nothing and source.kind == "input" and node.name in blocks.outputs:
            # The input itself is no output: something has to hand it through.
            node.kind, node.attrs = "pointwise", {"op": "identity", "params": []}
        elif nothing:
            blocks.replace(node.name, source.name)
            del blocks.nodes[node.name]
            changed = True
    return changed


def _move_views(blocks: Blocks) -> bool:
    """Let scaling follow reshaping and slicing, so that it meets the linear block behind them."""
    changed = False
    for node in blocks:
        if node.kind not in ("reshape", "slice"):
            continue
        source = blocks[node.inputs[0]]
        ab = element_wise(source)
        if ab is None or not blocks.only_feeds(source.name, node):
            continue
        a, b = (_view(value, node) if np.ndim(value) else value for value in ab)
        after = Node(blocks.fresh(source.name), "scale", [], node.shape)
        _set_element_wise(after, a, b)
        node.inputs = list(source.inputs)
        blocks.replace(node.name, after.name)
        after.inputs = [node.name]
        blocks.insert_after(node.name, after)
        del blocks.nodes[source.name]
        changed = True
    return changed


def _view(values: Array, node: Node) -> Array:
    if node.kind == "reshape":
        return np.reshape(values, node.shape)
    return values[node.attrs["begin"] : node.attrs["end"]]


def _fold_scales(blocks: Blocks) -> bool:
    """Put scaling into the scaling or linear block before it, or the linear block behind it."""
    changed = False
    for node in blocks:
        if not node.inputs:
            continue
        source = blocks[node.inputs[0]]
        outer, inner = element_wise(node), element_wise(source)
        if outer is not None and inner is not None:
            _set_element_wise(node, outer[0] * inner[0], outer[0] * inner[1] + outer[1])
            node.inputs = list(source.inputs)
            changed = True
        elif outer is not None and source.kind == "linear" and blocks.users(source.name) == 1:
            a, b = np.broadcast_to(outer[0], node.shape), outer[1]
            node.inputs = list(source.inputs)
            node.set_linear(a[:, None] * source.matrix, a * source.offset + b)
            changed = True
        elif inner is not None and node.kind == "linear":
            a, b = (np.broadcast_to(value, source.shape) for value in inner)
            node.inputs = list(source.inputs)
            node.set_linear(node.matrix * a, node.offset + node.matrix @ b)
            changed = True
    return changed


def _merge_linear(blocks: Blocks, low_rank: bool) -> bool:
    """W2 (W1 z + b1) + b2 = (W2 W1) z + (W2 b1 + b2), and slices of linear blocks."""
    changed = False
    for node in blocks:
        if node.kind not in ("linear", "slice"):
            continue
        source = blocks[node.inputs[0]]
        if source.kind != "linear" or blocks.users(source.name) != 1:
            continue
        if node.kind == "slice":
            rows = slice(node.attrs["begin"], node.attrs["end"])
            bias = None if source.bias is None else source.bias[rows]
            node.inputs = list(source.inputs)
            node.set_linear(source.matrix[rows], bias)
        else:
            product = len(node.matrix) * source.matrix.shape[1]
            if low_rank and product > node.matrix.size + source.matrix.size:
                continue
            both = node.bias is None and source.bias is None
            bias = None if both else node.matrix @ source.offset + node.offset
            node.inputs = list(source.inputs)
            node.set_linear(node.matrix @ source.matrix, bias)
        changed = True
    return changed


def _merge_parallel(blocks: Blocks) -> bool:
    """Sums, differences and concatenations of linear blocks of one and the same variable."""
    changed = False
    for node in blocks:
        if node.kind not in ("add", "sub", "concat"):
            continue
        linear = [blocks[name] for name in node.inputs if blocks[name].kind == "linear"]
        linear = [part for part in linear if blocks.only_feeds(part.name, node)]
        if not linear or (node.kind == "concat" and len(linear) < len(node.inputs)):
            continue
        source = linear[0].inputs[0]
        parts = [_as_linear(blocks, name, source, node) for name in node.inputs]
        if any(part is None for part in parts):
            continue
        weights = [part[0] for part in parts if part is not None]
        biases = [part[1] for part in parts if part is not None]
        node.inputs = [source]
        if node.kind == "concat":
            node.set_linear(np.concatenate(weights), np.concatenate(biases))
        else:
            sign = 1.0 if node.kind == "add" else -1.0
            node.set_linear(weights[0] + sign * weights[1], biases[0] + sign * biases[1])
        node.attrs = {}
        changed = True
    return changed


def _as_linear(blocks: Blocks, name: str, source: str, user: Node) -> tuple[Array, Array] | None:
    """A variable as W, b of another one: linear in it, or the same."""
    node = blocks[name]
    if name == source:
        return np.eye(node.size), np.zeros(node.size)
    if node.kind == "linear" and node.inputs == [source] and blocks.only_feeds(name, user):
        return node.matrix, node.offset
    return None
