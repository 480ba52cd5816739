"""Games: several players, each of whom descends a cost of its own that depends on all.

A Nash equilibrium is a point where no player can lower its cost alone. Following the gradients is
no descent of any one function, and how the players take turns decides whether they get there: on
the bilinear game min_u max_v u^T A v with learning rate lr and a singular value s of A,

- `Simultaneous` moves circle outward, by sqrt(1 + (lr s)^2) per step;
- `Alternating` moves stay on ellipses around the equilibrium while lr s < 2, their average
  converges (Gidel et al., 2019, "Negative momentum for improved game dynamics");
- `Extragradient` converges for lr s < 1 (Korpelevich, 1976);
- `Optimistic` converges for lr s < 1/sqrt(3) (Popov, 1980; Daskalakis et al., 2018), at one
  gradient per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradstack._arrays import as_number, as_vector
from gradstack.optim.base import Optimizer

__all__ = ["Alternating", "Extragradient", "Game", "Optimistic", "Simultaneous"]

Array = npt.NDArray[Any]
Gradients = Sequence[Callable[[], Any]]


class Game:
    """Base class of the ways to move; makes the steps of all players.

    Parameters
    ----------
    players : sequence of Module or numpy.ndarray
        Nets, or vectors (P,) of float32 or float64, which are changed in place.
    optimizers : float, or a sequence of float or Optimizer
        One per player: a learning rate stands for plain gradient steps, vectors take no other. One
        number serves all.

    Examples
    --------
    >>> import numpy as np
    >>> from gradstack import optim
    >>> u, v = np.array([1.0]), np.array([1.0])
    >>> game = optim.games.Extragradient([u, v], 0.5)
    >>> for _ in range(100):
    ...     game.step([lambda: v, lambda: -u])  # u descends u v, v ascends it
    >>> bool(np.hypot(u, v)[0] < 1e-4)
    True
    """

    def __init__(self, players: Sequence[Any], optimizers: Any) -> None:
        rules = list(optimizers) if np.ndim(optimizers) else [optimizers] * len(players)
        if isinstance(optimizers, Optimizer) or len(rules) != len(players):
            raise ValueError(
                f"optimizers must be one number, or one entry per player ({len(players)})"
            )
        self._players = [_Player(p, rule) for p, rule in zip(players, rules, strict=True)]

    def step(self, gradients: Gradients) -> None:
        """Move every player once.

        Parameters
        ----------
        gradients : sequence of callables
            One per player: called without arguments, it returns the derivative (P,) of this
            player's cost with respect to its parameters, where all players are at that moment.
        """
        if len(gradients) != len(self._players):
            raise ValueError(
                f"gradients has {len(gradients)} entries, expected {len(self._players)}"
            )
        self._step(gradients)

    def _step(self, gradients: Gradients) -> None:
        raise NotImplementedError

    def _evaluate(self, gradients: Gradients) -> list[Array]:
        """Everybody's gradient before anybody moves."""
        pairs = zip(self._players, gradients, strict=True)
        return [player.read(gradient()) for player, gradient in pairs]

    def _move(self, directions: Sequence[Array]) -> None:
        for player, dw in zip(self._players, directions, strict=True):
            player.move(dw)


class Simultaneous(Game):
    """All players move at once: w_i <- w_i - lr g_i(w)."""

    def _step(self, gradients: Gradients) -> None:
        self._move(self._evaluate(gradients))


class Alternating(Game):
    """Players move in turn, each seeing what those before it did."""

    def _step(self, gradients: Gradients) -> None:
        for player, gradient in zip(self._players, gradients, strict=True):
            player.move(player.read(gradient()))


class Extragradient(Game):
    """All look one step ahead, and move from where they were with the gradients found there."""

    def _step(self, gradients: Gradients) -> None:
        saved = [player.save() for player in self._players]
        self._move(self._evaluate(gradients))
        ahead = self._evaluate(gradients)
        for player, state in zip(self._players, saved, strict=True):
            player.restore(state)
        self._move(ahead)


class Optimistic(Game):
    """All move at once with 2 g - g_before, foreseeing that the gradient goes on changing so."""

    def __init__(self, players: Sequence[Any], optimizers: Any) -> None:
        super().__init__(players, optimizers)
        self._before: list[Array] | None = None

    def _step(self, gradients: Gradients) -> None:
        now = self._evaluate(gradients)
        before = now if self._before is None else self._before
        self._before = now
        self._move([2 * g - old for g, old in zip(now, before, strict=True)])


class _Player:
    """A net or a vector with what moves it."""

    def __init__(self, player: Any, rule: Any) -> None:
        from gradstack.nn.module import Module

        self._net = player if isinstance(player, Module) else None
        self._rule: Any
        if isinstance(rule, Optimizer):
            if self._net is None:
                raise TypeError(f"a vector takes a learning rate, got {rule!r}")
            self._rule = rule
        else:
            self._rule = as_number(rule, "optimizers", low=0.0)
        self._vector = player
        if self._net is None and not (
            isinstance(player, np.ndarray)
            and player.ndim == 1
            and player.dtype in (np.float32, np.float64)
        ):
            raise TypeError(f"players must be modules or float vectors (P,), got {player!r}")

    @property
    def w(self) -> Array:
        w: Array = self._vector if self._net is None else self._net.w
        return w

    def read(self, gradient: Any) -> Array:
        """The gradient, copied: a player's own vector may be part of what it returns."""
        w = self.w
        return as_vector(gradient, w.size, w.dtype, "gradient").copy()

    def move(self, dw: Array) -> None:
        if isinstance(self._rule, Optimizer):
            assert self._net is not None
            self._rule.update(self._net, dw)
        else:
            w = self.w
            w -= w.dtype.type(self._rule) * dw

    def save(self) -> tuple[Array, Any]:
        rule = self._rule
        return self.w.copy(), rule.state_dict() if isinstance(rule, Optimizer) else None

    def restore(self, saved: tuple[Array, Any]) -> None:
        w, state = saved
        self.w[...] = w
        if state is not None:
            self._rule.load_state_dict(state)
