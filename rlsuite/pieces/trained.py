"""Parameters and the optimiser that moves them, as one record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Params = Any


class Trained(NamedTuple):
    """A network's parameters, or any other pytree, and the state of the optimiser that moves them."""

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

    def descend(
        self, optimizer: optax.GradientTransformation, loss: Callable[..., tuple[jax.Array, Any]], *inputs: Any
    ) -> tuple[Trained, Any]:
        """One step down `loss(params, *inputs)`, which gives (loss `[]`, more); the record after it, and `more`."""
        grads, more = jax.grad(loss, has_aux=True)(self.params, *inputs)
        return self.step(grads, optimizer), more


def disk_order(tree: Any) -> list[int]:
    """Positions among the leaves of a state, in the order in which files number them.

    That is the order of the leaves, except that a record with several trained networks has the states of their
    optimisers after everything else. So snapshots and policies of states that were flat records are read as they were
    written.
    """
    leaves, structure = jax.tree.flatten(tree)
    return _ordered(jax.tree.unflatten(structure, range(len(leaves))))


def _ordered(node: Any) -> list[int]:
    children = jax.tree.leaves(node, is_leaf=lambda part: part is not node)
    if children == [node]:
        return [node]
    if sum(isinstance(child, Trained) for child in children) < 2:
        return [number for child in children for number in _ordered(child)]
    late = [number for child in children if isinstance(child, Trained) for number in _ordered(child.opt_state)]
    early = [_ordered(child.params if isinstance(child, Trained) else child) for child in children]
    return [number for numbers in early for number in numbers] + late
