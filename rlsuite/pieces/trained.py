"""Parameters and the optimiser that moves them, as one record."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

Params = Any


class Trained(NamedTuple):
    """What gradient descent changes: a network's parameters, or any other pytree, and the optimiser's state."""

    params: Params
    opt_state: optax.OptState

    @classmethod
    def start(cls, params: Params, optimizer: optax.GradientTransformation) -> Trained:
        """Parameters before their first step."""
        return cls(params, optimizer.init(params))

    def step(self, grads: Params, optimizer: optax.GradientTransformation) -> Trained:
        """One step against these gradients, which have the structure of `params`.

        The optimiser is the kind that the record was started with. Its rates may differ from step to step.
        """
        updates, opt_state = optimizer.update(grads, self.opt_state, self.params)
        return Trained(optax.apply_updates(self.params, updates), opt_state)
