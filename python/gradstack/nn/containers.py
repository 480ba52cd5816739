"""Modules made of modules."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from gradstack._trace import TraceError, Var, concat
from gradstack.nn.layers import Dropout, Flatten, _OverFeatures
from gradstack.nn.module import Module, SampleHint


def _require_module(owner: Module, name: str, module: Any) -> Module:
    if isinstance(module, Module):
        return module
    got = type(module).__name__
    if isinstance(module, type):
        got = f"the class {module.__name__}: write {module.__name__}(...)"
    elif isinstance(module, (list, tuple)):
        got += ": modules are arguments of their own, as in (*modules)"
    raise TypeError(f"[{type(owner).__name__}] item {name} must be an nn.Module, got {got}")


class _Numbered(Module):
    """Submodules named "0", "1", ... or by the keys of a mapping."""

    def _add_all(self, modules: Iterable[tuple[str, Any]]) -> None:
        for name, module in modules:
            self.add_module(name, _require_module(self, name, module))

    def _name_at(self, index: int) -> str:
        n = len(self._modules)
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of range for {n} modules")
        return list(self._modules)[index]

    def _items(self) -> list[Module]:
        return [m for m in self._modules.values() if m is not None]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items())

    def __setitem__(self, index: int, module: Module) -> None:
        name = self._name_at(operator.index(index))
        self._add_all([(name, module)])
        self._bind()

    def _renumber(self, modules: list[Module]) -> None:
        self._modules.clear()
        self._add_all((str(i), m) for i, m in enumerate(modules))
        self._touch()
        self._bind()

    def _get(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(*self._items()[index])
        return self._modules[self._name_at(operator.index(index))]


class Sequential(_Numbered):
    """Modules applied one after the other.

    Parameters
    ----------
    *modules : Module, or one mapping of names to modules
        Without names they are "0", "1", ...

    Examples
    --------
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> net[0], len(net[:2])
    (Linear(in_features=3, out_features=4, bias=True), 2)
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            self._add_all(modules[0].items())
        else:
            self._add_all((str(i), m) for i, m in enumerate(modules))

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Module:
        """A module, or a Sequential of some of them (sharing their parameters)."""
        if isinstance(index, slice):
            names = list(self._modules)[index]
            return Sequential({n: self._modules[n] for n in names})
        module: Module = self._get(index)
        return module

    def __delitem__(self, index: int | slice) -> None:
        items = self._items()
        del items[index]
        self._renumber(items)

    def append(self, module: Module) -> Sequential:
        """Add a module at the end; returns the net."""
        self._add_all([(str(len(self)), module)])
        self._bind()
        return self

    def extend(self, modules: Iterable[Module]) -> Sequential:
        """Add modules at the end; returns the net."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Sequential:
        """Put a module before position `index`; returns the net."""
        items = self._items()
        items.insert(index, module)
        self._renumber(items)
        return self

    def forward(self, x: Any) -> Any:
        """Apply the modules in order."""
        for module in self._items():
            x = module(*x) if isinstance(x, tuple) else module(x)
        return x

    def _sample_hint(self) -> SampleHint | None:
        flattens = False
        for module in self._items():
            if isinstance(module, Flatten):
                flattens = True
                continue
            hint = module._sample_hint()
            if hint is not None:
                return hint._replace(flattens=hint.flattens or flattens)
            if not keeps_shape(module):
                return None
        return None


def keeps_shape(module: Module) -> bool:
    """Whether a module takes samples of any shape and leaves it as it is."""
    from gradstack.nn.pointwise import PointwiseModule
    from gradstack.nn.python import Pointwise

    return isinstance(module, (PointwiseModule, Pointwise, Dropout, _OverFeatures))


class ModuleList(_Numbered):
    """Modules in a list, registered, for use inside ``forward``.

    Parameters
    ----------
    modules : iterable of Module

    Examples
    --------
    >>> from gradstack import nn
    >>> layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
    >>> [name for name, _ in layers.named_parameters()]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self._add_all((str(i), m) for i, m in enumerate(modules))

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    def __getitem__(self, index: int | slice) -> Module:
        """A module, or a ModuleList of some of them."""
        if isinstance(index, slice):
            return ModuleList(self._items()[index])
        module: Module = self._get(index)
        return module

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end; returns the list."""
        self._add_all([(str(len(self)), module)])
        self._bind()
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add modules at the end; returns the list."""
        for module in modules:
            self.append(module)
        return self


class _Branches(Module):
    """Modules applied to the same input."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        if not modules:
            raise ValueError(f"[{type(self).__name__}] needs at least one module")
        for i, module in enumerate(modules):
            self.add_module(str(i), _require_module(self, str(i), module))

    def _branches(self, x: Any) -> list[Any]:
        return [m(x) for m in self._modules.values() if m is not None]

    def _sample_hint(self) -> SampleHint | None:
        for module in self._modules.values():
            hint = None if module is None else module._sample_hint()
            if hint is not None:
                return hint
        return None


class Add(_Branches):
    """Sum of several modules applied to the same input: m0(x) + m1(x) + ...

    Parameters
    ----------
    *modules : Module
        At least one; their outputs have one shape.
    """

    def forward(self, x: Any) -> Any:
        """Sum of the branches."""
        total, *rest = self._branches(x)
        for branch in rest:
            total = total + branch
        return total


class Concat(_Branches):
    """Outputs of several modules applied to the same input, side by side.

    Parameters
    ----------
    *modules : Module
        At least one.
    """

    def forward(self, x: Any) -> Any:
        """Outputs of the branches, side by side."""
        return concat(self._branches(x))


class Residual(Module):
    """x + f(x), where f is a module (or several, applied one after the other).

    Parameters
    ----------
    *modules : Module
        The output of the last has the shape of x.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import nn
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.Residual(nn.Linear(8, 8), nn.Tanh()))
    >>> net(np.zeros(3)).shape
    (8,)
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        one = len(modules) == 1
        self.body = _require_module(self, "0", modules[0]) if one else Sequential(*modules)

    def forward(self, x: Any) -> Any:
        """x + f(x)."""
        if not isinstance(x, Var):
            raise TraceError(f"[Residual] takes one variable, got {type(x).__name__}")
        return x + self.body(x)

    def _sample_hint(self) -> SampleHint | None:
        return self.body._sample_hint()
