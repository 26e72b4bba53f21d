"""Sampling error: the distance of collected data from the data that a policy would give (arXiv 2311.08290).

The most likely policy of the actions in the data, compared with the policy itself: mean(log pi_MLE - log pi) over the
data, which estimates KL(data || pi) and is 0 where every action is as frequent as under the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlsuite.pieces.actor_critic import Networks, actor_of, distribution, log_prob
from rlsuite.pieces.advantages import Batch
from rlsuite.pieces.settings import RolloutBuffer

Array = jax.Array
Params = Any

MLE_LOG_STD_MIN, MLE_LOG_STD_MAX = -3.0, 1.0
"""bounds of the log standard deviation in the fit of the sampling error"""


def sampling_error(
    log_prob: Callable[[Params], Array],
    params: Params,
    trainable: Params,
    valid: Array,
    num_steps: int,
    project: Callable[[Params], Params] = lambda params: params,
    learning_rate: float = 1e-3,
    max_grad_norm: float = 1.0,
) -> Array:
    """mean(log pi_MLE - log pi) over the rows that are `valid` `[rows]` bool: `[]`, in nats.

    `log_prob(params)` `[rows]` gives log pi of every action in the data, `params` are those of pi. The fit starts from
    them and takes `num_steps` steps of Adam on all rows at once, on the leaves where the tree of Python bools
    `trainable` is True. The rate rises linearly from a third of `learning_rate` to the whole, as in the newer of the
    authors' two repositories. `project` puts the parameters back into their bounds.
    """
    count = jnp.maximum(jnp.sum(valid), 1)
    rate = optax.linear_schedule(learning_rate / 3.0, learning_rate, num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(rate))

    def likelihood(params: Params) -> Array:
        return jnp.sum(jnp.where(valid, log_prob(params), 0.0)) / count

    def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
        fitted, opt_state = carry
        grads = jax.grad(lambda params: -likelihood(params))(fitted)
        grads = jax.tree.map(lambda grad, learns: grad if learns else jnp.zeros_like(grad), grads, trainable)
        change, opt_state = optimizer.update(grads, opt_state)
        return (project(optax.apply_updates(fitted, change)), opt_state), None

    (fitted, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, num_steps)
    return likelihood(fitted) - likelihood(params)


def learns_in_fit(actor: Params) -> Params:
    """Which leaves the fit of the sampling error moves: all but the hidden layers, or it would fit single samples."""
    hidden = [f"Dense_{i}" for i in range(len(actor["policy"]) - 1)]

    def learns(path: tuple[Any, ...], leaf: Array) -> bool:
        return all(entry.key not in hidden for entry in path)

    return jax.tree.map_with_path(learns, actor)


def within_bounds(actor: Params) -> Params:
    """The same actor with its log standard deviation, if it has one, where the fit of the sampling error keeps it."""
    if "log_std" not in actor:
        return actor
    return {**actor, "log_std": jnp.clip(actor["log_std"], MLE_LOG_STD_MIN, MLE_LOG_STD_MAX)}


def measure(
    config: RolloutBuffer, networks: Networks, params: Params, rows: Batch, valid: Array, update: Array, last: Array
) -> Array:
    """The sampling error of the valid rows for the policy of `params`: `[]`.

    Between two measurements, of which every `sampling_error_interval`-th `update` takes one, the `last` one.
    """
    actor = actor_of(params)

    def fit() -> Array:
        return sampling_error(
            lambda actor: log_prob(distribution(networks, actor, rows.obs), rows.action),
            actor,
            learns_in_fit(actor),
            valid,
            config.sampling_error_epochs,
            within_bounds,
        )

    return jax.lax.cond(update % config.sampling_error_interval == 0, fit, lambda: last)
