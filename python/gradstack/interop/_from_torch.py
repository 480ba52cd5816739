"""PyTorch modules as gradstack nets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradstack import _core, nn

if TYPE_CHECKING:
    import torch

_FLOATS = {"torch.float32": np.float32, "torch.float64": np.float64}


def from_torch(module: torch.nn.Module) -> nn.Module:
    """Convert a PyTorch module: structure, weights, dtype and frozen parameters.

    Converted are ``Sequential`` (which stays one), and any other module whose ``forward`` PyTorch
    can trace (``torch.fx``) into ``Linear``, the pointwise functions, ``Dropout``, ``Flatten``,
    ``Softmax``, ``LogSoftmax``, sums, products, concatenation, feature slices and reshapes.
    Parameters keep their names, so ``load_state_dict(module.state_dict())`` works on the result.

    Parameters
    ----------
    module : torch.nn.Module
        In float32 or float64, on any device. It is not changed.

    Returns
    -------
    Module
        An independent net in evaluation mode.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    TypeError
        `module` is not a ``torch.nn.Module``.
    ValueError
        Something in it has no counterpart; the message names the block.

    Examples
    --------
    >>> import torch  # doctest: +SKIP
    >>> net = gs.from_torch(torch.nn.Sequential(torch.nn.Linear(4, 2)))  # doctest: +SKIP
    """
    try:
        import torch
    except ImportError:
        raise ImportError("from_torch needs PyTorch: pip install torch") from None
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module is a {type(module).__name__}, expected a torch.nn.Module")
    converter = Layers(module)
    if converter.is_tree(module):
        net = converter.convert(module, "")
    else:
        from gradstack.interop._torch_graph import convert_graph

        net = convert_graph(module, converter)
    converter.tie()
    return net


class Layers:
    """Converts the layers of one PyTorch module, each once."""

    def __init__(self, root: torch.nn.Module) -> None:
        import torch

        self._torch = torch
        self._made: dict[int, nn.Module] = {}
        self._parameters: dict[int, Any] = {}
        self._ties: list[tuple[nn.Module, str, Any]] = []
        dtypes: dict[str, str] = {}  # and the first parameter of each
        for name, parameter in root.named_parameters():
            dtypes.setdefault(str(parameter.dtype), name)
        for dtype, name in dtypes.items():
            if dtype not in _FLOATS:
                raise ValueError(f"parameter {name!r} has dtype {dtype}, expected float32 or 64")
        if len(dtypes) > 1:
            raise ValueError(f"the parameters have several dtypes: {', '.join(sorted(dtypes))}")
        self.dtype = _FLOATS[next(iter(dtypes), "torch.float32")]
        self._simple = self._simple_layers()

    def _simple_layers(self) -> dict[type, Any]:
        """Layers without parameters, by exact type: a subclass may compute something else."""
        torch_nn = self._torch.nn
        simple: dict[type, Any] = {}
        for op in _core.ops():
            source = getattr(torch_nn, op["module"], None) if op["module"] else None
            if source is not None:
                names = ["approximate"] if op["module"] == "GELU" else [n for n, _ in op["params"]]
                simple[source] = (getattr(nn, op["module"]), names)
        simple[torch_nn.Dropout] = (nn.Dropout, ["p"])
        return simple

    def is_layer(self, module: torch.nn.Module) -> bool:
        """Whether `module` is a PyTorch class of its own, not one written by a user."""
        return type(module).__module__.startswith("torch.nn.")

    def is_tree(self, module: torch.nn.Module) -> bool:
        """Whether nothing but PyTorch's own classes is in `module`, so no forward needs tracing."""
        return all(self.is_layer(part) for part in module.modules())

    def convert(self, module: torch.nn.Module, path: str) -> nn.Module:
        """Convert a Sequential or a layer; a module met before gives the same net again."""
        if id(module) in self._made:
            return self._made[id(module)]
        if _hooks(module):
            raise ValueError(f"{_name(module, path)} has hooks, which cannot be converted")
        if type(module) is self._torch.nn.Sequential:
            chain = nn.Sequential()
            self._made[id(module)] = chain
            for name, child in module._modules.items():
                chain.add_module(name, self.convert(child, f"{path}.{name}" if path else name))
            return chain
        made = self._layer(module, path)
        self._made[id(module)] = made
        return made

    def _layer(self, module: Any, path: str) -> nn.Module:
        kind = type(module)
        torch_nn = self._torch.nn
        if kind is torch_nn.Linear:
            return self._linear(module)
        if kind in self._simple:
            cls, names = self._simple[kind]
            layer: nn.Module = cls(**{name: getattr(module, name) for name in names})
            return layer
        if kind is torch_nn.Flatten:
            if (module.start_dim, module.end_dim) == (1, -1):
                return nn.Flatten()
            raise ValueError(f"{_name(module, path)}: only Flatten(1, -1) leaves the batch alone")
        if kind in (torch_nn.Softmax, torch_nn.LogSoftmax):
            if module.dim in (1, -1):
                return nn.Softmax() if kind is torch_nn.Softmax else nn.LogSoftmax()
            raise ValueError(f"{_name(module, path)}: only dim=1 or -1, the features")
        raise ValueError(f"{_name(module, path)} has no counterpart in gradstack")

    def _linear(self, module: Any) -> nn.Module:
        layer = nn.Linear(
            module.in_features, module.out_features, bias=module.bias is not None, dtype=self.dtype
        )
        for name in ("weight", "bias"):
            source = getattr(module, name)
            if source is None:
                continue
            parameter = getattr(layer, name)
            parameter[...] = source.detach().cpu().numpy()
            parameter.requires_grad = source.requires_grad
            first = self._parameters.setdefault(id(source), (layer, name))
            if first != (layer, name):
                self._ties.append((layer, name, first))
        return layer

    def tie(self) -> None:
        """Share what PyTorch shared, once the net is put together."""
        for layer, name, (first, first_name) in self._ties:
            setattr(layer, name, getattr(first, first_name))


def _hooks(module: torch.nn.Module) -> bool:
    # Weight normalisation and the like compute the weight in a hook before every call.
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _name(module: torch.nn.Module, path: str) -> str:
    return f"block {path!r} ({type(module).__name__})" if path else type(module).__name__
