"""JAX, compiled by XLA; compilation is not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from bench import blackbox
from bench.calculus import Candidates, Problem

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def _parts(problem: Problem) -> tuple[Callable[..., Any], Any, Any, Any]:
    """Return the network as a function of (layers, x), the layers, x and the labels."""
    h = ACTIVATIONS[problem.activation]

    def net(layers: Any, x: Any) -> Any:
        for w, b in layers[:-1]:
            x = h(w @ x + b)
        w, b = layers[-1]
        return w @ x + b

    layers = [(jnp.asarray(w), jnp.asarray(b)) for w, b in problem.layers]
    return net, layers, jnp.asarray(problem.x), jnp.asarray(problem.labels)


def _compiled(name: str, function: Callable[..., Any], *arguments: Any) -> Candidates:
    compiled = jax.jit(function)
    return {f"JAX, {name}": lambda: jax.block_until_ready(compiled(*arguments))}


def jacobian(problem: Problem) -> Candidates:
    """With respect to x, in both modes."""
    net, layers, x, _ = _parts(problem)
    found: Candidates = {}
    for mode in (jax.jacrev, jax.jacfwd):
        found |= _compiled(mode.__name__, jax.vmap(mode(net, 1), (None, 0)), layers, x)
    return found


def _loss(net: Callable[..., Any]) -> Callable[..., Any]:
    return lambda layers, x, y: -jax.nn.log_softmax(net(layers, x))[y]


def per_sample_grad(problem: Problem) -> Candidates:
    """Of the cross entropy."""
    net, layers, x, y = _parts(problem)
    return _compiled("vmap(grad)", jax.vmap(jax.grad(_loss(net)), (None, 0, 0)), layers, x, y)


def per_sample_grad_norm(problem: Problem) -> Candidates:
    """From the gradients, as far as the compiler forms them."""
    net, layers, x, y = _parts(problem)

    def norm(layers: Any, x: Any, y: Any) -> Any:
        parts = jax.tree.leaves(jax.grad(_loss(net))(layers, x, y))
        return jnp.sqrt(sum((p * p).sum() for p in parts))

    return _compiled("vmap(grad)", jax.vmap(norm, (None, 0, 0)), layers, x, y)


def hvp(problem: Problem) -> Candidates:
    """Forward over reverse."""
    net, layers, x, y = _parts(problem)
    losses = jax.vmap(_loss(net), (None, 0, 0))
    flat, unflatten = jax.flatten_util.ravel_pytree(layers)
    v = jnp.asarray(problem.direction)

    def product(flat: Any, v: Any, x: Any, y: Any) -> Any:
        gradient = jax.grad(lambda w: losses(unflatten(w), x, y).mean())
        return jax.jvp(gradient, (flat,), (v,))[1][:, None]

    return _compiled("jvp(grad)", product, flat, v, x, y)


def population(problem: Problem) -> Candidates:
    """Average cross entropy of every member."""
    net, _, x, y = _parts(problem)
    losses = jax.vmap(_loss(net), (None, 0, 0))
    rows = blackbox.unpack(problem, blackbox.population(problem))
    members = [tuple(map(jnp.asarray, layer)) for layer in rows]
    mean = jax.vmap(lambda layers, x, y: losses(layers, x, y).mean(), (0, None, None))
    return _compiled("vmap", mean, members, x, y)
