"""Random small networks, the same for gradstack and for functions of (w, x) in another library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gradstack as gs
from gradstack import nn

SMOOTH = ["tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "softplus", "mish", "sine", "tanhshrink"]
KINKED = ["relu", "leaky_relu", "elu", "selu", "celu", "softsign", "log_sigmoid"]
BOUNDED = ["hardtanh", "relu6", "hardsigmoid", "hardswish"]


class Recipe(NamedTuple):
    """Instructions on numbered values; value 0 is the input."""

    d_in: int
    d_out: int
    linears: list[tuple[int, int, bool, Any]]  # (in, out, bias, mask or None)
    program: list[tuple[Any, ...]]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(o * i + o * b for i, o, b, _ in self.linears)


def make_recipe(seed: int, activations: list[str] | None = None) -> Recipe:
    """Draw a graph with chains, residuals, diamonds, masks, shared layers, slices and heads."""
    rng = np.random.default_rng(seed)
    acts = activations or SMOOTH
    widths = [int(rng.integers(2, 6))]
    linears: list[tuple[int, int, bool, Any]] = []
    program: list[tuple[Any, ...]] = []

    def push(width: int, *instruction: Any) -> int:
        program.append(instruction)
        widths.append(width)
        return len(widths) - 1

    def linear(source: int, width: int) -> int:
        shape = (width, widths[source])
        mask = rng.random(shape) < 0.6 if rng.random() < 0.3 else None
        linears.append((shape[1], width, bool(rng.random() < 0.8), mask))
        return push(width, "linear", source, len(linears) - 1)

    def act(source: int) -> int:
        return push(widths[source], "act", source, str(rng.choice(acts)))

    # Every recipe has a diamond; the rest is drawn.
    kinds = ["layer", "residual", "concat", "slice", "product", "numbers", "shared", "reshape"]
    chosen = ["layer", "diamond", *rng.choice(kinds, int(rng.integers(1, 4)))]
    last = 0
    for kind in chosen:
        n = widths[last]
        if kind == "layer":
            last = act(linear(last, int(rng.integers(2, 7))))
        elif kind == "diamond":
            a, b = act(linear(last, 4)), push(4, "act", linear(last, 4), "sigmoid")
            last = push(4, "div", push(4, "sub", a, b), push(4, "affine", b, 1.0, 1.0))
        elif kind == "residual":
            last = push(n, "add", last, act(linear(last, n)))
        elif kind == "concat":
            other = int(rng.integers(0, len(widths)))
            last = push(n + widths[other], "concat", last, other)
        elif kind == "slice" and n > 2:
            last = push(n - 1, "slice", last, 1, n)
        elif kind == "product":
            last = push(n, "mul", last, act(linear(last, n)))
        elif kind == "numbers":
            last = push(n, "affine", last, -0.5, 0.25)
        elif kind == "shared":
            last = act(linear(last, n))
            last = act(push(n, "linear", last, len(linears) - 1))
        elif kind == "reshape":
            last = push(n, "reshape", last)
    head = str(rng.choice(["none", "softmax", "log_softmax"]))
    last = linear(last, int(rng.integers(1 if head == "none" else 2, 4)))
    if head != "none":
        last = push(widths[last], head, last)
    return Recipe(widths[0], widths[last], linears, program)


def run(recipe: Recipe, x: Any, library: Any) -> Any:
    """Follow the instructions with the pieces of a library."""
    values = [x]
    for kind, source, *rest in recipe.program:
        z = values[source]
        if kind == "linear":
            z = library.linear(rest[0], z)
        elif kind == "act":
            z = library.act(rest[0], z)
        elif kind in ("add", "sub", "mul", "div"):
            other = values[rest[0]]
            z = {"add": z + other, "sub": z - other, "mul": z * other, "div": z / other}[kind]
        elif kind == "affine":
            z = rest[0] * z + rest[1]
        elif kind == "slice":
            z = z[rest[0] : rest[1]]
        elif kind == "concat":
            z = library.concat(z, values[rest[0]])
        else:
            z = getattr(library, kind)(z)
        values.append(z)
    return values[-1]


class Net(nn.Module):
    """A recipe in gradstack."""

    def __init__(self, recipe: Recipe, dtype: Any = np.float64) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList(
            [nn.Linear(i, o, bias=b, mask=m, dtype=dtype) for i, o, b, m in recipe.linears]
        )

    def forward(self, x: Any) -> Any:
        return run(self.recipe, x, self)

    def linear(self, k: int, z: Any) -> Any:
        return self.layers[k](z)

    @staticmethod
    def act(name: str, z: Any) -> Any:
        if name == "gelu_tanh":
            return gs.gelu(z, approximate="tanh")
        return getattr(gs, name)(z)

    @staticmethod
    def concat(a: Any, b: Any) -> Any:
        return gs.concat([a, b])

    @staticmethod
    def reshape(z: Any) -> Any:
        return z.view(1, -1).view(-1)

    softmax = staticmethod(gs.softmax)
    log_softmax = staticmethod(gs.log_softmax)


class Pieces:
    """The pieces of a recipe in PyTorch or JAX, for one sample and a flat vector w."""

    def __init__(self, recipe: Recipe, w: Any, acts: Any, stack: Callable[..., Any]) -> None:
        self.acts = acts
        self.stack = stack
        self.layers = []
        at = 0
        for i, o, bias, mask in recipe.linears:
            weight = w[at : at + o * i].reshape(o, i)
            at += o * i
            b = w[at : at + o] if bias else 0.0
            at += o * bias
            self.layers.append((weight if mask is None else weight * acts["mask"](mask), b))

    def linear(self, k: int, z: Any) -> Any:
        weight, bias = self.layers[k]
        return weight @ z + bias

    def act(self, name: str, z: Any) -> Any:
        return self.acts[name](z)

    def concat(self, a: Any, b: Any) -> Any:
        return self.stack([a, b])

    def reshape(self, z: Any) -> Any:
        return z.reshape(1, -1).reshape(-1)

    def softmax(self, z: Any) -> Any:
        return self.acts["softmax"](z)

    def log_softmax(self, z: Any) -> Any:
        return self.acts["log_softmax"](z)


def torch_acts() -> dict[str, Callable[..., Any]]:
    """The activations in PyTorch; formulas where its own derivatives hold float32 constants."""
    import torch

    f = torch.nn.functional
    names = "relu leaky_relu elu selu softsign mish silu gelu softplus tanhshrink hardtanh relu6"
    return {
        **{name: getattr(f, name) for name in [*names.split(), "hardswish"]},
        "celu": lambda s: torch.where(s > 0, s, torch.expm1(s)),
        "hardsigmoid": lambda s: f.hardtanh(s, -3, 3) / 6 + 0.5,
        "identity": lambda s: s * 1,
        "gelu_tanh": lambda s: f.gelu(s, approximate="tanh"),
        "log_sigmoid": f.logsigmoid,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "sine": torch.sin,
        "softmax": lambda s: torch.softmax(s, -1),
        "log_softmax": lambda s: torch.log_softmax(s, -1),
        "mask": lambda m: torch.tensor(m, dtype=torch.float64),
    }


def torch_function(recipe: Recipe) -> Callable[[Any, Any], Any]:
    """The recipe as a function of (w, one sample) in PyTorch."""
    import torch

    acts = torch_acts()
    return lambda w, x: run(recipe, x, Pieces(recipe, w, acts, torch.cat))


def jax_function(recipe: Recipe) -> Callable[[Any, Any], Any]:
    """The recipe as a function of (w, one sample) in JAX; smooth activations only."""
    import jax
    import jax.numpy as jnp

    acts = {
        "tanh": jnp.tanh,
        "sine": jnp.sin,
        "tanhshrink": lambda s: s - jnp.tanh(s),
        "gelu": lambda s: jax.nn.gelu(s, approximate=False),
        "gelu_tanh": lambda s: jax.nn.gelu(s, approximate=True),
        **{name: getattr(jax.nn, name) for name in ("sigmoid", "silu", "softplus", "mish")},
        "softmax": jax.nn.softmax,
        "log_softmax": jax.nn.log_softmax,
        "mask": lambda m: jnp.asarray(m, jnp.float64),
    }
    return lambda w, x: run(recipe, x, Pieces(recipe, w, acts, jnp.concatenate))
