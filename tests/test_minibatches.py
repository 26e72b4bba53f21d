"""Epochs over shuffled minibatches that stop at a divergence, against a loop that just stops."""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlsuite.pieces.minibatches import descend, shuffle
from rlsuite.pieces.trained import Trained

SIZE, COUNT, MINIBATCHES, EPOCHS = 12, 7, 4, 3


def toy_descent(max_kl: float, broken_beyond: float = math.inf) -> tuple[Any, Any]:
    """`descend` of x towards the mean of rows of which the first ones are not valid, and its metrics.

    The divergence is how far x has come, tenfold in the minibatch of the last row: after one that is too far come
    others that are not. Beyond some distance it is NaN, as is the gradient.
    """
    rows = jnp.asarray(np.where(np.arange(SIZE) < SIZE - COUNT, np.nan, np.arange(SIZE)), jnp.float32)

    def loss(x: Any, minibatch: Any, valid: Any) -> tuple[Any, Any]:
        error = jnp.where(valid, (x - jnp.where(valid, minibatch, 0.0)) ** 2, 0.0).sum() / jnp.maximum(valid.sum(), 1)
        bad = jnp.where(jnp.abs(x) > broken_beyond, jnp.nan, 1.0)
        far = jnp.where(jnp.any(minibatch == SIZE - 1), 10.0, 1.0)
        return error * bad, {"loss": error * bad, "approx_kl": far * jnp.abs(x) * bad}

    adam = optax.sgd(0.05)
    x = jnp.float32(0.0)
    got, metrics = jax.jit(
        lambda key: descend(key, loss, adam, Trained.start(x, adam), rows, COUNT, max_kl, EPOCHS, MINIBATCHES)
    )(jax.random.key(5))
    return got.params, metrics


def plain_descent(max_kl: float, broken_beyond: float = math.inf) -> tuple[float, list[float], list[float]]:
    """The same as a loop that just stops: x, and the losses and divergences of the steps taken."""
    x, losses, divergences = 0.0, [], []
    for key in jax.random.split(jax.random.key(5), EPOCHS):
        rows = np.asarray(shuffle(key, SIZE, COUNT))[:COUNT]  # row i holds the number i
        for first in range(0, COUNT, SIZE // MINIBATCHES):
            minibatch = rows[first : first + SIZE // MINIBATCHES]
            divergence = abs(x) * (10.0 if SIZE - 1 in minibatch else 1.0)
            if divergence > max_kl or abs(x) > broken_beyond:
                return x, losses, divergences
            losses.append(float(np.mean((x - minibatch) ** 2)))
            divergences.append(divergence)
            x -= 0.05 * 2.0 * float(np.mean(x - minibatch))
    return x, losses, divergences


@pytest.mark.parametrize("max_kl", [math.inf, 15.0, 4.0, 1.0, 0.0])
def test_a_descent_stops_before_the_step_that_starts_too_far(max_kl: float) -> None:
    x, losses, divergences = plain_descent(max_kl)
    got, metrics = toy_descent(max_kl)
    assert float(got) == pytest.approx(x, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(metrics["approx_kl"]) == pytest.approx(np.mean(divergences), rel=1e-5)
    # Three of the four minibatches hold anything.
    assert float(metrics["steps_taken"]) == pytest.approx(len(losses) / (3 * EPOCHS))
    assert (len(losses) == 3 * EPOCHS) == (max_kl == math.inf)
    assert max_kl > 0.0 or len(losses) == 1


@pytest.mark.parametrize("max_kl", [1.0, math.inf])
def test_what_is_not_a_number_ends_a_descent_and_reaches_nothing(max_kl: float) -> None:
    got, metrics = toy_descent(max_kl, broken_beyond=1.0)
    assert float(got) == pytest.approx(plain_descent(max_kl, broken_beyond=1.0)[0], rel=1e-5)
    assert all(np.isfinite(x) for x in metrics.values())


def test_nothing_valid_is_nothing_learned() -> None:
    rows = jnp.ones(6)

    def loss(x: Any, minibatch: Any, valid: Any) -> tuple[Any, Any]:
        return jnp.sum(x * minibatch), {"approx_kl": jnp.float32(0.0)}

    adam = optax.adam(0.1)
    x = jnp.float32(0.5)
    start = Trained.start(x, adam)
    got, metrics = descend(jax.random.key(0), loss, adam, start, rows, 0, 1.0, 2, 3)
    chex.assert_trees_all_equal(got, start)
    assert float(metrics["steps_taken"]) == 0.0


def test_a_shuffle_puts_the_valid_rows_first_in_any_order() -> None:
    orders = np.asarray(jax.vmap(lambda key: shuffle(key, 10, 4))(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(10), (2000, 1)))
    assert orders[:, :4].min() == 6
    for place in range(4):
        np.testing.assert_allclose(np.bincount(orders[:, place] - 6) / 2000, 0.25, atol=0.05)
    whole = np.asarray(jax.vmap(lambda key: shuffle(key, 10, 10))(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_allclose(np.bincount(whole[:, 0]) / 2000, 0.1, atol=0.03)
