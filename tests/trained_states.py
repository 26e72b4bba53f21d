"""States of learners in tests: what is trained with a fresh Adam around it, and without any."""

from __future__ import annotations

import typing
from typing import Any, TypeVar

import jax
import optax

from rlsuite.pieces.trained import Trained

State = TypeVar("State", bound=Any)


def with_adam(state: State, optimizer: optax.GradientTransformation | None = None) -> State:
    """The record, given parameters in every field, with a fresh optimiser in those that are declared `Trained`."""
    names = [name for name, kind in typing.get_type_hints(type(state)).items() if kind is Trained]
    adam = optimizer or optax.adam(0.0)
    start = jax.jit(lambda trees: [Trained.start(tree, adam) for tree in trees])
    trained: State = state._replace(**dict(zip(names, start([getattr(state, name) for name in names]), strict=True)))
    return trained


def params_of(state: State) -> State:
    """The record with the parameters alone of what is trained in it."""
    found: State = jax.tree.map(
        lambda part: part.params if isinstance(part, Trained) else part,
        state,
        is_leaf=lambda part: isinstance(part, Trained),
    )
    return found
