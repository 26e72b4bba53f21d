"""PROPS: proximal robust on-policy sampling (Corrado & Hanna, arXiv 2311.08290), with ROS (arXiv 2111.14552) as a flag.

PPO on a buffer of its last few batches. So that the buffer as a whole looks as if the policy that learns had collected
it, a second policy collects: it starts from the first one and makes over-represented actions less likely.

    for every round of m environment steps:
        phi <- theta;  behaviour update of phi, on what of the buffer will still be there after this round
        collect m steps with phi;  merge the normalisers' statistics
    PPO update of theta, on the whole buffer, without any correction for phi

This is the paper's loop, entered at another place: there the behaviour update ends a round, here it begins the next
one, so that phi is nothing to keep. Log-probabilities, values and advantages are computed anew with the current theta
and the current statistics each time, from observations and rewards that are stored as they came.

Networks, normalisation and the PPO update are those of `ppo.py`; what this file adds to them is a stop of either
update, before the first minibatch whose approximate KL divergence exceeds a bound, as masks: the steps that remain are
computed and not taken.

Deviations from the authors' code:
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- log pi_theta in the behaviour update is that of the theta which phi starts from, as in the paper; after a PPO update
  the code uses theta from before it (`stale_reference`).
- The statistics of the normalisers are merged once a round, instead of at every step.
- The mean of the policy has no tanh, as in the newer of the two repositories.
- `num_envs` environments (8 by default) where the code steps one.
- Advantage weighting divides by the standard deviation over all data of a behaviour update, not of a minibatch.
- A behaviour update of discrete actions has no KL penalty, as in the code, which has that term commented out.
- The sampling error is fitted as in the newer repository: on all data at once, with a learning rate that rises from a
  third to the whole, and with the hidden layers frozen. The published runs took minibatches, and learned the hidden
  biases too.
Deviations of `behavior="ros"` from its paper:
- One behaviour policy for each round instead of for each step; `behavior_steps=1` with one environment is the paper's.
- The mean gradient is that of the data in the buffer, not of all data since the start.
- The authors of PROPS compare with ROS by code in which the sign of its step is reversed; here it is that of ROS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box, Discrete
from rlsuite.algorithms.on_policy import ppo
from rlsuite.core import Algorithm, Clock, Metrics, Preset, Task, Transition, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import distributions, normalize, returns, rollout
from rlsuite.pieces.sampling_error import sampling_error

Array = jax.Array
Params = Any

BEHAVIORS = ("props", "ros", "target")
MLE_LOG_STD_MIN, MLE_LOG_STD_MAX = -3.0, 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment between two PPO updates"""
    behavior: str = "props"
    """who collects: props, ros, or target, which is the policy that learns"""
    behavior_steps: int = 32
    """steps of each environment between two updates of the behaviour policy; divides num_steps"""
    buffer_batches: int = 2
    """batches of num_envs * num_steps transitions that are kept and learned from"""
    num_epochs: int = 10
    """passes of PPO over the buffer in one update"""
    num_minibatches: int = 32
    """minibatches in one pass over the full buffer; a multiple of buffer_batches"""
    behavior_epochs: int = 16
    """passes over the buffer in one update of the behaviour policy"""
    behavior_minibatches: int = 16
    """minibatches in one of these"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the value network"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running spread of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages per minibatch"""
    clip_value: bool = True
    """clip the value loss like the policy loss"""
    anneal_learning_rate: bool = True
    """let PPO's learning rate fall linearly to 0 over the budget"""
    advantage_weighting: bool = False
    """weigh the behaviour policy's loss by the size of the advantage"""
    stale_reference: bool = False
    """after a PPO update, compare the behaviour policy with the one from before it, as the authors' code does"""
    sampling_error_epochs: int = 0
    """steps of the fit that measures the sampling error (the authors: 1000 or 2000); 0 for no such metric"""
    sampling_error_interval: int = 1
    """updates between two measurements; the metric repeats the last one"""

    @property
    def batch_size(self) -> int:
        """Environment steps in one update."""
        return self.num_envs * self.num_steps


class Hypers(NamedTuple):
    """What may differ between the runs of one program."""

    learning_rate: float = 1e-3
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    entropy_coef: float = 0.01
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float = 0.03
    """approximate KL divergence at which a PPO update ends"""
    behavior_learning_rate: float = 1e-3
    behavior_clip_epsilon: float = 0.3
    """how far the behaviour policy may lower a probability, as a share of it"""
    behavior_target_kl: float = 0.05
    """approximate KL divergence at which an update of the behaviour policy ends"""
    behavior_kl_coef: float = 0.3
    """weight of the mean KL divergence over the action dimensions in the behaviour policy's loss"""
    ros_step_size: float = 0.1
    """length of ROS' one step, in units of the mean gradient"""


class Memory(NamedTuple):
    """What collecting changes."""

    buffer: Transition
    """`[time, num_envs, ...]`, the newest step last; time = buffer_batches * num_steps. As it came, but for the action,
    which is the policy's, not yet clipped to the box. Zeros where nothing is stored yet."""
    obs_stats: normalize.RunningStats
    return_stats: normalize.RunningStats
    discounted_return: Array
    """`[num_envs]`: the running sum behind `return_stats`"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    params: Params
    """the target policy, theta, and its value network"""
    opt_state: optax.OptState
    stale_params: Params | None
    """`params` before the last PPO update, for `stale_reference`"""
    behavior_opt: optax.OptState | None
    """PROPS' Adam, which goes on although phi starts anew each time"""
    memory: Memory
    envs: rollout.EnvCarry
    sampling_error: Array | None
    """`[]`: the last measurement"""


class Past(NamedTuple):
    """What a behaviour update needs of each transition, leading axis `[batch]`."""

    obs: Array
    """`[batch, obs_dim]`, normalised"""
    action: Array
    """`[batch, action_dim]` unclipped, or `[batch]` int32"""
    dist: tuple[Array, ...]
    """the target policy's distribution at obs, see `ppo.py`"""
    log_prob: Array
    """`[batch]` under the target policy"""
    weight: Array | None
    """`[batch]`: the size of the advantage, for `advantage_weighting`"""


def actor_of(params: Params) -> Params:
    """The policy's part of a learner's parameters."""
    return {name: part for name, part in params["params"].items() if name != "critic"}


def distribution(networks: ppo.Networks, actor: Params, obs: Array) -> tuple[Array, ...]:
    """`[..., obs_dim]` -> (logits,) or (mean, log_std), each `[..., n]`, by a policy without its critic."""

    def apply(module: ppo.Networks, obs: Array) -> tuple[Array, ...]:
        out = module.policy(obs)
        return (out,) if isinstance(module.space, Discrete) else (out, jnp.broadcast_to(module.log_std, out.shape))

    dist: tuple[Array, ...] = networks.apply({"params": actor}, obs, method=apply)
    return dist


def mean_of(x: Array, valid: Array) -> Array:
    """Mean over the valid rows, both `[batch]`; 0 where there are none."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def behavior_loss(
    actor: Params, networks: ppo.Networks, past: Past, valid: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """PROPS' objective on the valid rows `[batch]` bool: (loss `[]`, metrics).

    mean(max(r, 1 - epsilon)) with r = pi_phi / pi_theta lowers the probability of what is there, as far as 1 - epsilon
    of it. The paper writes max(r, clip(r, 1 - epsilon, 1 + epsilon)), whose upper bound never binds. To it comes the KL
    divergence from the target policy, as a mean over the action dimensions.
    """
    dist = distribution(networks, actor, past.obs)
    log_ratio = ppo.log_prob(dist, past.action) - past.log_prob
    clipped = jnp.maximum(jnp.exp(log_ratio), 1.0 - hypers.behavior_clip_epsilon)
    loss = mean_of(clipped if past.weight is None else clipped * past.weight, valid)
    if len(dist) == 2:
        kl = jnp.mean(distributions.gaussian_kl(*dist, *past.dist), axis=-1)
        loss = loss + hypers.behavior_kl_coef * mean_of(kl, valid)
    return loss, {"loss": loss, "approx_kl": mean_of(jnp.expm1(log_ratio) - log_ratio, valid)}


def ros_actor(
    actor: Params, networks: ppo.Networks, past: Past, valid: Array, step_size: Array | float
) -> tuple[Params, Array]:
    """theta - alpha * the mean gradient of log pi over the valid rows, so that they become less likely.

    Returns these parameters and the mean log-probability `[]` before the step.
    """

    def likelihood(actor: Params) -> Array:
        return mean_of(ppo.log_prob(distribution(networks, actor, past.obs), past.action), valid)

    before, gradient = jax.value_and_grad(likelihood)(actor)
    return jax.tree.map(lambda theta, g: theta - step_size * g, actor, gradient), before


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


def shuffle(key: Array, size: int, count: Array | int) -> Array:
    """A random order `[size]` of rows of which only the last `count` are valid: these first."""
    bits = jax.random.bits(key, (size,), jnp.uint32)
    # A high bit sends the others behind all that are valid.
    is_valid = jnp.arange(size) >= size - count
    return jnp.argsort(jnp.where(is_valid, bits >> 1, bits | jnp.uint32(1 << 31)))


def descend(
    key: Array,
    loss: Callable[[Params, Any, Array], tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    rows: Any,
    count: Array | int,
    max_kl: Array | float,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Params, optax.OptState, Metrics]:
    """Epochs of shuffled minibatches over the last `count` of the rows, as long as the policy has not moved too far.

    `loss(params, minibatch, valid [minibatch])` gives (loss, metrics), `approx_kl` among them. Where that is not within
    `max_kl`, neither this step nor any later one is taken. Minibatches that are not all valid come last in an epoch,
    and are skipped if nothing in them is. Returns parameters, the optimiser's state and the mean of the metrics over
    the steps taken, with `steps_taken` as a share of all that the rows give.
    """
    size = len(jax.tree.leaves(rows)[0])
    in_minibatch = (jnp.arange(size) < count).reshape(num_minibatches, -1)

    def minibatch_step(carry: tuple[Params, Any, Array], inputs: tuple[Any, Array]) -> tuple[Any, Any]:
        params, opt_state, going = carry
        minibatch, valid = inputs
        there = jnp.any(valid)
        grads, metrics = jax.grad(loss, has_aux=True)(params, minibatch, valid)
        # A divergence that is NaN is not within its bound either.
        going = going & ((metrics["approx_kl"] <= max_kl) | ~there)
        taken = going & there
        change, new_opt_state = optimizer.update(grads, opt_state, params)
        new = (optax.apply_updates(params, change), new_opt_state)
        # Selected, not multiplied: what is not taken may be NaN.
        params, opt_state = jax.tree.map(lambda x, y: jnp.where(taken, x, y), new, (params, opt_state))
        return (params, opt_state, going), (metrics, taken)

    def epoch(carry: tuple[Params, Any, Array], key: Array) -> tuple[Any, Any]:
        order = shuffle(key, size, count)
        minibatches = jax.tree.map(lambda x: x[order].reshape(num_minibatches, -1, *x.shape[1:]), rows)
        return jax.lax.scan(minibatch_step, carry, (minibatches, in_minibatch))

    start = (params, opt_state, jnp.asarray(True))
    (params, opt_state, _), (metrics, taken) = jax.lax.scan(epoch, start, jax.random.split(key, num_epochs))
    means = {name: mean_of(values, taken) for name, values in metrics.items()}
    possible = jnp.maximum(num_epochs * jnp.sum(jnp.any(in_minibatch, axis=1)), 1)
    return params, opt_state, {**means, "steps_taken": jnp.sum(taken) / possible}


def store(buffer: Transition, steps: Transition) -> Transition:
    """The buffer with these newest `steps` `[time, num_envs, ...]` at its end and as many of the oldest gone."""
    return jax.tree.map(lambda old, new: jnp.concatenate([old[len(new) :], new.astype(old.dtype)]), buffer, steps)


def flatten(tree: Any) -> Any:
    """`[time, num_envs, ...]` -> `[time * num_envs, ...]`"""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def check(config: Config) -> None:
    """Raise UserError, naming value and remedy, for a config that cannot work."""
    check_positive(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        behavior_steps=config.behavior_steps,
        buffer_batches=config.buffer_batches,
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
        behavior_epochs=config.behavior_epochs,
        behavior_minibatches=config.behavior_minibatches,
        sampling_error_interval=config.sampling_error_interval,
    )
    if config.sampling_error_epochs < 0:
        raise UserError(f"sampling_error_epochs={config.sampling_error_epochs} must be at least 0, which is for none")
    if config.behavior not in BEHAVIORS:
        raise UserError(f"behavior='{config.behavior}' is unknown; choose one of {', '.join(BEHAVIORS)}")
    flags = {"stale_reference": config.stale_reference, "advantage_weighting": config.advantage_weighting}
    for flag, is_set in flags.items():
        if is_set and config.behavior != "props":
            raise UserError(f"{flag}=True is for behavior='props', but behavior='{config.behavior}'; leave it out")
    if config.num_steps % config.behavior_steps:
        raise UserError(
            f"behavior_steps={config.behavior_steps} does not divide num_steps={config.num_steps}; choose a divisor"
        )
    rows = config.buffer_batches * config.batch_size
    if config.num_minibatches % config.buffer_batches or rows % config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} must be a multiple of buffer_batches={config.buffer_batches} "
            f"and divide the whole buffer, num_envs * num_steps * buffer_batches = {rows}; choose such a number"
        )
    if config.normalize_advantage and rows == config.num_minibatches:
        raise UserError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of one sample, whose advantages have no "
            "standard deviation; choose fewer minibatches or normalize_advantage=False"
        )
    if config.behavior == "target":
        return
    kept = rows - config.num_envs * config.behavior_steps
    if not kept:
        raise UserError(
            f"behavior_steps={config.behavior_steps} replaces the whole buffer, so that behavior='{config.behavior}' "
            "has nothing to correct; choose fewer, or more buffer_batches"
        )
    if config.behavior == "props" and kept % config.behavior_minibatches:
        raise UserError(
            f"behavior_minibatches={config.behavior_minibatches} does not divide the {kept} transitions of the buffer "
            "that are older than a round; choose a divisor of it"
        )


def make(config: Config) -> Algorithm:
    """PROPS, ROS, or PPO with a buffer, by `config.behavior`.

    Raises:
        UserError: behaviour or flags do not exist or go together, a size is not positive, or one does not divide what
            it has to.
    """
    check(config)
    rounds = config.num_steps // config.behavior_steps
    buffer_steps = config.buffer_batches * config.num_steps
    ppo_config = ppo.Config(normalize_advantage=config.normalize_advantage, clip_value=config.clip_value)

    def networks_of(task: Task) -> ppo.Networks:
        return ppo.Networks(config.hidden_sizes, task.env.action_space)

    def seen(stats: normalize.RunningStats, obs: Array) -> Array:
        return normalize.standardize(obs, stats) if config.normalize_obs else obs

    def ppo_hypers(hypers: Hypers) -> ppo.Hypers:
        return ppo.Hypers(**{name: x for name, x in hypers._asdict().items() if name in ppo.Hypers._fields})

    def behavior_adam(hypers: Hypers) -> optax.GradientTransformation:
        return ppo.optimizer(ppo_hypers(hypers), hypers.behavior_learning_rate)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        params_key, envs_key = jax.random.split(key)
        params = networks_of(task).init(params_key, jnp.zeros(task.env.obs_dim))
        space = task.env.action_space

        def zeros(*shape: int, dtype: Any = jnp.float32) -> Array:
            return jnp.zeros((buffer_steps, config.num_envs, *shape), dtype)

        buffer = Transition(
            obs=zeros(task.env.obs_dim),
            action=zeros(space.dim) if isinstance(space, Box) else zeros(dtype=jnp.int32),
            reward=zeros(),
            next_obs=zeros(task.env.obs_dim),
            terminated=zeros(dtype=bool),
            truncated=zeros(dtype=bool),
        )
        obs_stats, return_stats = normalize.init((task.env.obs_dim,)), normalize.init()
        is_props = config.behavior == "props"
        return State(
            params=params,
            opt_state=ppo.optimizer(ppo_hypers(hypers), hypers.learning_rate).init(params),
            stale_params=params if config.stale_reference else None,
            behavior_opt=behavior_adam(hypers).init(actor_of(params)) if is_props else None,
            memory=Memory(buffer, obs_stats, return_stats, jnp.zeros(config.num_envs)),
            envs=rollout.start(envs_key, task.env, config.num_envs),
            sampling_error=jnp.zeros(()) if config.sampling_error_epochs else None,
        )

    def judge(
        networks: ppo.Networks, params: Params, memory: Memory, hypers: Hypers
    ) -> tuple[tuple[Array, ...], ppo.Batch]:
        """The whole buffer as this policy and this value network see it now, `[time, num_envs, ...]`."""
        buffer = memory.buffer
        obs = seen(memory.obs_stats, buffer.obs)
        dist, value = networks.apply(params, obs)
        next_value = networks.apply(params, seen(memory.obs_stats, buffer.next_obs), method=ppo.Networks.value)
        reward = buffer.reward
        if config.normalize_reward:
            reward = normalize.rescale(reward, memory.return_stats)
        advantage = returns.gae(
            reward, value, next_value, buffer.terminated, buffer.truncated, hypers.discount, hypers.gae_lambda
        )
        log_prob = ppo.log_prob(dist, buffer.action)
        return dist, ppo.Batch(obs, buffer.action, log_prob, value, advantage, advantage + value)

    def behave(
        key: Array,
        networks: ppo.Networks,
        params: Params,
        reference: Params,
        behavior_opt: optax.OptState | None,
        memory: Memory,
        stored: Array,
        hypers: Hypers,
    ) -> tuple[Params, optax.OptState | None, Metrics]:
        """The policy that collects next, after `stored` `[]` steps of each environment; what it is made from is what
        of the buffer will be there with its data."""
        actor = actor_of(params)
        if config.behavior == "target":
            return actor, behavior_opt, {}
        dist, judged = judge(networks, reference, memory, hypers)
        dist, judged = flatten(jax.tree.map(lambda x: x[config.behavior_steps :], (dist, judged)))
        size = len(judged.log_prob)
        count = jnp.minimum(stored * config.num_envs, size)
        valid = jnp.arange(size) >= size - count
        weight = None
        if config.advantage_weighting:
            centre = mean_of(judged.advantage, valid)
            spread = jnp.sqrt(mean_of((judged.advantage - centre) ** 2, valid))
            weight = jnp.abs(judged.advantage) / (spread + 1e-8)
        past = Past(judged.obs, judged.action, dist, judged.log_prob, weight)
        if config.behavior == "ros":
            actor, likelihood = ros_actor(actor, networks, past, valid, hypers.ros_step_size)
            return actor, behavior_opt, {"behavior_log_prob": likelihood}
        actor, behavior_opt, metrics = descend(
            key,
            lambda actor, past, valid: behavior_loss(actor, networks, past, valid, hypers),
            behavior_adam(hypers),
            actor,
            behavior_opt,
            past,
            count,
            hypers.behavior_target_kl,
            config.behavior_epochs,
            config.behavior_minibatches,
        )
        return actor, behavior_opt, {f"behavior_{name}": x for name, x in metrics.items()}

    def measure(networks: ppo.Networks, params: Params, rows: ppo.Batch, valid: Array) -> Array:
        """The sampling error of the buffer."""
        actor = actor_of(params)
        return sampling_error(
            lambda actor: ppo.log_prob(distribution(networks, actor, rows.obs), rows.action),
            actor,
            learns_in_fit(actor),
            valid,
            config.sampling_error_epochs,
            within_bounds,
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        rounds_key, learn_key = jax.random.split(key)
        params = state.params

        def play(
            carry: tuple[optax.OptState | None, Memory, rollout.EnvCarry], inputs: tuple[Array, Array]
        ) -> tuple[Any, Metrics]:
            behavior_opt, memory, envs = carry
            index, key = inputs
            behavior_key, collect_key = jax.random.split(key)

            # The behaviour policy, from what is stored so far.
            stored = (clock.update * rounds + index) * config.behavior_steps
            reference = params
            if config.stale_reference:
                reference = jax.tree.map(lambda x, y: jnp.where(index == 0, x, y), state.stale_params, params)
            actor, behavior_opt, metrics = behave(
                behavior_key, networks, params, reference, behavior_opt, memory, stored, hypers
            )

            # Collect with it. The unclipped action comes along.
            def policy(key: Array, obs: Array) -> tuple[Array, Array]:
                action = ppo.draw(key, distribution(networks, actor, seen(memory.obs_stats, obs)))
                return ppo.into_box(task.env, action), action

            envs, steps, action = rollout.collect(collect_key, task.env, envs, policy, config.behavior_steps)
            discounted_return, sums = normalize.discounted_returns(
                memory.discounted_return, steps.reward, steps.terminated | steps.truncated, hypers.discount
            )
            memory = Memory(
                buffer=store(memory.buffer, steps._replace(action=action)),
                obs_stats=normalize.update(memory.obs_stats, flatten(steps.obs)),
                return_stats=normalize.update(memory.return_stats, flatten(sums)),
                discounted_return=discounted_return,
            )
            return (behavior_opt, memory, envs), metrics

        (behavior_opt, memory, envs), of_rounds = jax.lax.scan(
            play,
            (state.behavior_opt, state.memory, state.envs),
            (jnp.arange(rounds), jax.random.split(rounds_key, rounds)),
        )
        metrics = jax.tree.map(jnp.mean, of_rounds)

        # PPO on the whole buffer. Its minibatches are valid as a whole or not at all: `check` sees to that.
        _, judged = judge(networks, params, memory, hypers)
        rows: ppo.Batch = flatten(judged)
        count = jnp.minimum((clock.update + 1) * config.num_steps, buffer_steps) * config.num_envs
        learning_rate = hypers.learning_rate * ((1.0 - clock.progress) if config.anneal_learning_rate else 1.0)
        of_ppo = ppo_hypers(hypers)
        new_params, opt_state, of_learning = descend(
            learn_key,
            lambda params, batch, valid: ppo.loss(params, networks, batch, ppo_config, of_ppo),
            ppo.optimizer(of_ppo, learning_rate),
            params,
            state.opt_state,
            rows,
            count,
            hypers.target_kl,
            config.num_epochs,
            config.num_minibatches,
        )
        metrics |= of_learning

        # How on-policy the data was for the policy that has learned from it, which is the one before its update.
        error = state.sampling_error
        if config.sampling_error_epochs:
            size = len(rows.log_prob)
            valid = jnp.arange(size) >= size - count
            error = jax.lax.cond(
                clock.update % config.sampling_error_interval == 0,
                lambda: measure(networks, params, rows, valid),
                lambda: state.sampling_error,
            )
            metrics["sampling_error"] = error

        stale_params = params if config.stale_reference else None
        return State(new_params, opt_state, stale_params, behavior_opt, memory, envs, error), metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        dist = distribution(networks_of(task), actor_of(state.params), seen(state.memory.obs_stats, obs))
        return ppo.into_box(task.env, ppo.mode(dist))

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        inputs = seen(state.memory.obs_stats, obs)
        scaled = networks_of(task).apply(state.params, inputs, method=ppo.Networks.value)
        return scaled * jnp.sqrt(state.memory.return_stats.var + 1e-8) if config.normalize_reward else scaled

    return Algorithm(init, update, act, config.batch_size, value)


def _tuned(
    num_steps: int,
    behavior_steps: int,
    learning_rate: float,
    behavior_learning_rate: float,
    behavior_target_kl: float,
    behavior_kl_coef: float,
    behavior_minibatches: int = 16,
) -> Preset:
    return Preset(
        Config(
            num_envs=1,
            num_steps=num_steps,
            behavior_steps=behavior_steps,
            behavior_minibatches=behavior_minibatches,
        ),
        Hypers(
            learning_rate=learning_rate,
            behavior_learning_rate=behavior_learning_rate,
            behavior_target_kl=behavior_target_kl,
            behavior_kl_coef=behavior_kl_coef,
        ),
        "NicholasCorrado/PPOROS, names of the folders of its published results (Gymnasium v4)",
    )


PRESETS = {
    "mujoco/Swimmer": _tuned(2048, 1024, 1e-3, 1e-5, 0.03, 0.1),
    "mujoco/Hopper": _tuned(2048, 256, 1e-3, 1e-3, 0.05, 0.3),
    "mujoco/HalfCheetah": _tuned(1024, 512, 1e-4, 1e-3, 0.05, 0.3),
    "mujoco/Walker2d": _tuned(2048, 256, 1e-3, 1e-3, 0.1, 0.3, behavior_minibatches=32),
    "mujoco/Ant": _tuned(2048, 256, 1e-4, 1e-3, 0.03, 0.1),
    "mujoco/Humanoid": _tuned(8192, 256, 1e-4, 1e-4, 0.1, 0.1, behavior_minibatches=32),
}

TRIAL = Trial(
    Config(
        num_envs=8,
        num_steps=16,
        behavior_steps=8,
        num_epochs=3,
        num_minibatches=4,
        behavior_epochs=1,
        behavior_minibatches=4,
        hidden_sizes=(16,),
        normalize_reward=False,
    ),
    Hypers(learning_rate=1e-2, discount=0.5, entropy_coef=0.0, target_kl=0.1),
    updates=200,
)
