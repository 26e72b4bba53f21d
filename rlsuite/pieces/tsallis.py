"""Mirror descent's two weights: the Tsallis logarithm with its divergence, and the step size that falls over the budget
(Tomar et al. 2020, arXiv 2005.09814)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rlsuite.core import Clock

Array = jax.Array

MIN_STEP_SIZE = 1e-4
"""the least t_k; only a budget of more than 10,000 updates reaches it"""
MIN_LOG_DENSITY = math.log(1e-6)
"""lower bound of a log-probability or log-density, as in the code's log_q"""


def log_q(log_x: Array, q: Array | float) -> Array:
    """(x^(q - 1) - 1) / (q - 1), the logarithm to which q = 1 gives log x, from log x: `[...]` -> `[...]`.

    In Tsallis' own counting this is the logarithm of order 2 - q; q is the order of the divergence made of it.
    """
    order = jnp.where(q == 1.0, 1.0, q - 1.0)  # never 0: a derivative of the branch not taken may not be NaN either
    return jnp.where(q == 1.0, log_x, jnp.expm1(order * log_x) / order)


def tsallis_divergence(log_prob: Array, old_log_prob: Array, q: Array | float) -> Array:
    """An unbiased estimate of the Bregman divergence of sum_a pi(a) log_q pi(a), never negative: all `[...]`.

    That is sum_a (pi^q - old^q - q old^(q - 1) (pi - old)) / (q - 1), which for q = 1 is KL(new || old). Its terms over
    old(a), for the old policy's actions, are old^(q - 1) (ratio log_q(ratio) - (ratio - 1)).
    """
    log_ratio = log_prob - old_log_prob
    scale = jnp.exp((q - 1.0) * jnp.maximum(old_log_prob, MIN_LOG_DENSITY))
    return scale * (jnp.exp(log_ratio) * log_q(log_ratio, q) - jnp.expm1(log_ratio))


def annealed(kl_coef: Array | float, progress: Array) -> Array:
    """The weight 1 / t_k after a share `progress` `[]` of the budget, no more than kl_coef / MIN_STEP_SIZE: `[]`."""
    return kl_coef / jnp.maximum(1.0 - progress, MIN_STEP_SIZE)


def divergence_weight(anneal: bool, kl_coef: Array | float, clock: Clock) -> Array | float:
    """The weight of the divergence now, `annealed` or constant: `[]`."""
    return annealed(kl_coef, clock.progress) if anneal else kl_coef
