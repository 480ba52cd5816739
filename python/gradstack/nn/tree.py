"""`ModuleTree`: how a module keeps its submodules and parameters, and finds those below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gradstack._arrays import as_real
from gradstack._arrays import cast as cast_array
from gradstack._flat import Parameter, clock

if TYPE_CHECKING:
    from gradstack.nn.module import Module

M = TypeVar("M", bound="ModuleTree")


class ModuleTree:
    """What `Module` does with its submodules and parameters; `Module` is its only subclass."""

    _parameters: dict[str, Parameter | None]
    _modules: dict[str, Module | None]
    _stamp: int

    def _bind(self) -> None:
        raise NotImplementedError

    # Registration -----------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        state = self.__dict__
        if "_modules" not in state:
            if isinstance(value, (ModuleTree, Parameter)):
                raise AttributeError(
                    f"[{type(self).__name__}] call super().__init__() before assigning {name!r}"
                )
            object.__setattr__(self, name, value)
            return
        parameters, modules = state["_parameters"], state["_modules"]
        if isinstance(value, ModuleTree):
            # One that replaces another takes its place in the order, as in PyTorch.
            if name not in modules:
                self._forget(name)
            modules[name] = cast("Module", value)
        elif isinstance(value, Parameter) and value._leaf:
            if name not in parameters:
                self._forget(name)
            parameters[name] = value
        elif name in parameters and value is not None:
            self._assign(name, value)
            return
        elif name in parameters:
            parameters[name] = None
        elif name in modules:
            if value is not None:
                raise TypeError(
                    f"[{type(self).__name__}] {name!r} is a module and cannot become "
                    f"{type(value).__name__}; delete it first"
                )
            modules[name] = None
        else:
            object.__setattr__(self, name, value)
        self._touch()

    def __getattr__(self, name: str) -> Any:
        for registry in ("_parameters", "_modules"):
            slots = self.__dict__.get(registry)
            if slots is not None and name in slots:
                return slots[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        if name in self._parameters or name in self._modules:
            self._forget(name)
        else:
            object.__delattr__(self, name)
        self._touch()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._modules})

    def _forget(self, name: str) -> None:
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        self.__dict__.pop(name, None)

    def _touch(self) -> None:
        """Note that this module changed: what was traced from it is checked before it is reused."""
        self.__dict__["_stamp"] += 1
        clock.now += 1

    def _assign(self, name: str, value: Any) -> None:
        """Copy values into a registered parameter."""
        parameter = self._parameters[name]
        if parameter is None:
            raise ValueError(
                f"[{type(self).__name__}] has no {name!r}; assign an nn.Parameter to add one"
            )
        array = cast_array(as_real(value, name), parameter.dtype, name)
        if array.shape != parameter.shape:
            raise ValueError(
                f"[{type(self).__name__}] {name} has shape {array.shape}, expected "
                f"{parameter.shape}"
            )
        parameter[...] = array

    def register_parameter(self, name: str, param: Any) -> None:
        """Register a parameter under `name` (None: an empty slot)."""
        if param is None:
            self._forget(name)
            self._parameters[name] = None
            self._touch()
        elif isinstance(param, Parameter) and param._leaf:
            setattr(self, name, param)
        else:
            raise TypeError(f"param must be an nn.Parameter, got {type(param).__name__}")

    def add_module(self, name: Any, module: Any) -> None:
        """Register a submodule under `name`."""
        if module is not None and not isinstance(module, ModuleTree):
            raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"name must be a non-empty string without dots, got {name!r}")
        if name not in self._modules and hasattr(self, name):
            raise KeyError(f"attribute {name!r} already exists")
        self._modules[name] = cast("Module | None", module)
        self._touch()

    register_module = add_module

    # Traversal --------------------------------------------------------------------------------

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) for this module and all below it, each module once."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, cast("Module", self))]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            dot = path + "." if path else ""
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    stack.append((dot + name, child))

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) for the direct submodules, each module once."""
        seen: set[int] = set()
        for name, child in self._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """Yield the direct submodules, each once."""
        return (child for _, child in self.named_children())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (name, array) in the order of ``net.w``; tied parameters once.

        The arrays are views: writing to them changes the net.
        """
        self._bind()
        for name, parameter in self._named_parameters():
            if recurse or "." not in name:
                yield f"{prefix}.{name}" if prefix else name, parameter

    def _named_parameters(self) -> list[tuple[str, Parameter]]:
        found: list[tuple[str, Parameter]] = []
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    found.append((f"{path}.{name}" if path else name, parameter))
        return found

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters in the order of ``net.w``; tied ones once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path; ``""`` is this module."""
        module = cast("Module", self)
        for name in target.split(".") if target else ():
            child = module._modules.get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__!r} has no submodule {name!r}")
            module = child
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        parameter = module._parameters.get(name)
        if parameter is None:
            raise AttributeError(f"{type(module).__name__!r} has no parameter {name!r}")
        return parameter

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call `fn` on every submodule, then on this module."""
        for child in self.children():
            child.apply(fn)
        fn(cast("Module", self))
        return self
