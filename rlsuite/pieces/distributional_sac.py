"""The loop of the distributional soft actor-critics: a warm-up with the initial policy, and a policy, a temperature and
targets that move at every `policy_delay`-th gradient step (Duan et al. 2021, arXiv 2001.02811)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from envs.core import Env
from rlsuite.core import Algorithm
from rlsuite.errors import check_positive
from rlsuite.pieces import off_policy, replay, squashed
from rlsuite.pieces.off_policy import Learner, Step
from rlsuite.pieces.replay import Fitted
from rlsuite.pieces.return_distributions import networks_of
from rlsuite.pieces.settings import DistributionalSAC

Array = jax.Array
Params = Any


def behave(config: DistributionalSAC, key: Array, env: Env, learner: Learner, obs: Array, hypers: Any) -> Array:
    """Actions drawn from the policy, in the warm-up too, when it is still the initial one."""
    return networks_of(config.hidden_sizes, env).policy.sample(key, learner.actor.params, obs)[0]


def play(config: DistributionalSAC, env: Env, learner: Learner, obs: Array) -> Array:
    """The policy's squashed mean: `[obs_dim]` -> `[action_dim]`."""
    return networks_of(config.hidden_sizes, env).policy.mean_action(learner.actor.params, obs)


def is_due(config: DistributionalSAC, step: Step) -> Array:
    """`[]` bool: the policy moves at this gradient step; counted from the end of the warm-up, the first one is due."""
    learned = step.clock.update - off_policy.warmup_of(config, config.steps_per_update)
    return off_policy.is_due(learned * config.gradient_steps + step.number, config.policy_delay)


def step_policy(
    config: DistributionalSAC,
    step: Step,
    key: Array,
    before: Learner,
    learner: Learner,
    critic: Params,
    actor_loss: Callable[..., tuple[Array, Array]],
) -> Learner:
    """`learner` with actor, target actor and, with `learn_alpha`, temperature one step further than in `before`.

    `actor_loss(actor, networks, critic, log_alpha, obs, noise)` gives (loss `[]`, log-probabilities `[batch]`).
    """
    networks, hypers = networks_of(config.hidden_sizes, step.env), step.hypers
    noise = jax.random.normal(key, step.batch.action.shape)
    actor, log_prob = before.actor.descend(
        optax.adam(hypers.actor_learning_rate),
        actor_loss,
        networks,
        critic,
        before.log_alpha.params,
        step.batch.obs,
        noise,
    )
    target_actor = optax.incremental_update(actor.params, learner.target_actor, hypers.tau)
    learner = learner._replace(actor=actor, target_actor=target_actor)
    if not config.learn_alpha:
        return learner
    return learner._replace(log_alpha=squashed.learn_alpha(before.log_alpha, log_prob, noise.shape[-1], hypers))


def make(config: DistributionalSAC, method: off_policy.Method) -> Algorithm:
    """The algorithm of a method. Raises UserError as `off_policy.make`, and for a `policy_delay` below 1."""
    check_positive(policy_delay=config.policy_delay)
    return off_policy.make(
        config,
        method,
        num_steps=config.num_steps,
        uniform_warmup=False,
        value_bias_episodes=config.value_bias_episodes,
    )


def fit(config: Fitted, total_steps: int) -> Fitted:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    return replay.fitted(config, total_steps, config.steps_per_update)
