"""Trained networks: a step is the optimiser's own, and files number leaves as when states were flat records."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from trained_states import params_of, with_adam

from rlsuite import algorithms
from rlsuite.pieces.trained import Trained, disk_order


class Learner(NamedTuple):
    """Two networks that learn, one of them with a target between."""

    actor: Trained
    target: Any
    critic: Trained


class Flat(NamedTuple):
    """The same as a flat record."""

    actor: Any
    target: Any
    critic: Any
    actor_opt: Any
    critic_opt: Any


class Run(NamedTuple):
    """A learner and more after it."""

    learner: Any
    buffer: Any


def learner() -> Learner:
    trees = [{"kernel": jnp.full(2, float(i)), "bias": jnp.full(1, 10.0 + i)} for i in range(3)]
    return with_adam(Learner(*trees))


def test_a_step_is_the_optimisers() -> None:
    adam, grads = optax.adam(0.1), {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
    before = learner().actor
    updates, opt_state = adam.update(grads, before.opt_state)
    after = before.step(grads, adam)
    chex.assert_trees_all_equal(after, Trained(optax.apply_updates(before.params, updates), opt_state))
    assert not jnp.array_equal(after.params["kernel"], before.params["kernel"])


def test_files_number_the_leaves_of_a_record_with_several_networks_as_those_of_a_flat_one() -> None:
    nested = learner()
    plain = params_of(nested)
    flat = Flat(plain.actor, plain.target, plain.critic, nested.actor.opt_state, nested.critic.opt_state)
    for outer in (lambda inner: inner, lambda inner: Run(inner, jnp.full(3, 7.0))):
        leaves = jax.tree.leaves(outer(nested))
        in_file = [leaves[position] for position in disk_order(outer(nested))]
        chex.assert_trees_all_equal(in_file, jax.tree.leaves(outer(flat)))


def test_files_number_the_leaves_of_a_record_with_one_network_in_its_order() -> None:
    state = Run(learner().actor, jnp.full(3, 7.0))
    assert disk_order(state) == list(range(len(jax.tree.leaves(state))))


@pytest.mark.parametrize("tree", [jnp.zeros(2), {}, (), None, [jnp.zeros(1), {"a": jnp.zeros(1)}]])
def test_any_tree_has_such_an_order(tree: Any) -> None:
    assert disk_order(tree) == list(range(len(jax.tree.leaves(tree))))


def test_every_method_declares_where_it_comes_from() -> None:
    for card in algorithms.cards():
        assert card.summary and not card.summary.endswith("."), card.name
        assert card.source and card.source.paper and card.source.read, card.name
        # What rests on less than code or equations is called so wherever its results show.
        if card.source.level in "CD":
            assert "reconstruction" in (algorithms.get(card.name).label or ""), card.name
