"""Steps on batches that are drawn already, and epochs of shuffled minibatches: plain ones, and ones that stop when the
policy has moved too far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from rlsuite.core import Metrics
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any
Carry = TypeVar("Carry")


def steps(
    key: Array, step: Callable[[Carry, Array, Array, Any], tuple[Carry, Metrics]], carry: Carry, batches: Any
) -> tuple[Carry, Metrics]:
    """One step on each of the batches, whose leading axis is `[steps]`.

    `step(carry, number, key, batch)` is called with the step's number, from 0, and a key of its own. Returns the carry
    and the mean of the metrics.
    """

    def body(carry: Carry, inputs: tuple[Array, Array, Any]) -> tuple[Carry, Metrics]:
        return step(carry, *inputs)

    count = len(jax.tree.leaves(batches)[0])
    keys = jax.random.split(key, count)
    carry, metrics = jax.lax.scan(body, carry, (jnp.arange(count, dtype=jnp.int32), keys, batches))
    return carry, jax.tree.map(jnp.mean, metrics)


def epochs(
    key: Array,
    step: Callable[[Carry, Any], tuple[Carry, Metrics]],
    carry: Carry,
    rows: Any,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Carry, Metrics]:
    """Passes over the rows, each in another random order and cut into minibatches.

    `step(carry, minibatch)` is called with `[rows / num_minibatches, ...]`. Returns the carry and the metrics of all
    steps, `[num_epochs, num_minibatches]`.
    """
    size = len(jax.tree.leaves(rows)[0])

    def epoch(carry: Carry, key: Array) -> tuple[Carry, Metrics]:
        order = jax.random.permutation(key, size)
        minibatches = jax.tree.map(lambda x: x[order].reshape(num_minibatches, -1, *x.shape[1:]), rows)
        return jax.lax.scan(step, carry, minibatches)

    return jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))


def mean_of(x: Array, valid: Array) -> Array:
    """Mean over the valid rows, both `[batch]`; 0 where there are none."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def shuffle(key: Array, size: int, count: Array | int) -> Array:
    """A random order `[size]` of rows of which only the last `count` are valid: these first."""
    bits = jax.random.bits(key, (size,), jnp.uint32)
    # A high bit sorts the invalid rows after all valid ones.
    is_valid = jnp.arange(size) >= size - count
    return jnp.argsort(jnp.where(is_valid, bits >> 1, bits | jnp.uint32(1 << 31)))


def descend(
    key: Array,
    loss: Callable[[Params, Any, Array], tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    trained: Trained,
    rows: Any,
    count: Array | int,
    max_kl: Array | float,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Trained, Metrics]:
    """Epochs of shuffled minibatches over the last `count` of the rows, as long as the policy has not moved too far.

    `loss(params, minibatch, valid [minibatch])` gives (loss, metrics), `approx_kl` among them. Where that is not within
    `max_kl`, neither this step nor any later one is taken. Minibatches that are not all valid come last in an epoch,
    and are skipped if nothing in them is. Returns what was trained and the mean of the metrics over the steps taken,
    with `steps_taken` as a share of all that the rows give.
    """
    size = len(jax.tree.leaves(rows)[0])
    in_minibatch = (jnp.arange(size) < count).reshape(num_minibatches, -1)

    def minibatch_step(carry: tuple[Trained, Array], inputs: tuple[Any, Array]) -> tuple[Any, Any]:
        trained, continues = carry
        minibatch, valid = inputs
        present = jnp.any(valid)
        grads, metrics = jax.grad(loss, has_aux=True)(trained.params, minibatch, valid)
        # A divergence that is NaN is not within its bound either.
        continues = continues & ((metrics["approx_kl"] <= max_kl) | ~present)
        taken = continues & present
        # Selected, not multiplied: a step that is not taken may be NaN.
        trained = jax.tree.map(lambda x, y: jnp.where(taken, x, y), trained.step(grads, optimizer), trained)
        return (trained, continues), (metrics, taken)

    def epoch(carry: tuple[Trained, Array], key: Array) -> tuple[Any, Any]:
        order = shuffle(key, size, count)
        minibatches = jax.tree.map(lambda x: x[order].reshape(num_minibatches, -1, *x.shape[1:]), rows)
        return jax.lax.scan(minibatch_step, carry, (minibatches, in_minibatch))

    start = (trained, jnp.asarray(True))
    (trained, _), (metrics, taken) = jax.lax.scan(epoch, start, jax.random.split(key, num_epochs))
    means = {name: mean_of(values, taken) for name, values in metrics.items()}
    possible = jnp.maximum(num_epochs * jnp.sum(jnp.any(in_minibatch, axis=1)), 1)
    return trained, {**means, "steps_taken": jnp.sum(taken) / possible}
