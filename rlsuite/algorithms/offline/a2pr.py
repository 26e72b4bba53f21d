"""A2PR: adaptive advantage-guided policy regularisation (Liu et al. 2024, ICML, arXiv 2405.19909).

TD3+BC whose actor does not always imitate the dataset's action. A conditional VAE, fitted to those of the dataset's
actions that are better than the state's value, offers another one, and the actor is drawn to the better of the two, or
to neither where both are worse than the state's value. This file follows the authors' code
(ltlhuuu/A2PR at f92a2a4), sizes and rates included.

Deviations of the authors' code, and so of this file, from the paper:
- The VAE's action. In the code it is the reconstruction of the actor's own action, and the gradient of the distance
  to it goes through both actions: the default. `detach_reconstruction` holds the reconstruction constant instead.
  The paper says that candidates are sampled from the behaviour policy that advantages have augmented;
  `sample_candidates` decodes a latent drawn from the VAE's prior, clipped to +-0.5, as a function of the code does that
  nothing there calls. That form is our reading of the paper, not the authors' implementation.
- The threshold of the advantage is 0, as in the code.
- `mask`, the weight of the distance, and a discount for single datasets are in the code alone.

Deviations from the authors' code:
- Actions, noise and the squared distance are in units of the action box; on D4RL's tasks they are anyway.
- The actor and the targets move at the first and then at every second gradient step; the authors begin at the second.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.
- The encoder's two output layers are one layer of twice the width, which has the same initialisation and gradient.

The authors publish settings for three datasets, see `PRESETS`; all others get the defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Preset, Source, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import deterministic, offline, vae
from rlsuite.pieces.critics import bellman_target, first_q, init_critics, min_q, q_values, squared_error
from rlsuite.pieces.deterministic import choose, smoothed_action
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.trained import Trained
from rlsuite.pieces.vae import VAE

Array = jax.Array
Params = Any

PRIOR_CLIP = 0.5
"""bound of the latents that `sample_candidates` draws"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of every network that has no option of its own"""
    critic_hidden_sizes: tuple[int, ...] = (256, 256, 256, 256)
    """hidden layers of each critic"""
    value_hidden_sizes: tuple[int, ...] = (256, 256, 256, 256)
    """hidden layers of V, the value of a state"""
    vae_hidden_sizes: tuple[int, ...] = (750, 750)
    """hidden layers of the VAE's encoder and of its decoder"""
    policy_delay: int = 2
    """gradient steps of the critics for each step of the actor and of all targets"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset"""
    detach_reconstruction: bool = False
    """let no gradient pass through the VAE's reconstruction of the actor's action; the authors' code lets it pass"""
    sample_candidates: bool = False
    """let the VAE offer a sample instead of a reconstruction of the actor's action: our reading of the paper"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    value_learning_rate: float = 3e-4
    """learning rate of V, the value of a state"""
    vae_learning_rate: float = 1e-3
    """learning rate of the VAE"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    alpha: float = 2.5
    """weight of the Q term in the actor's loss, relative to the imitation of the chosen action"""
    mask: float = 0.5
    """weight of the imitation where one of the two actions is better than V"""
    vae_weight: float = 1.0
    """weight of the VAE's reconstruction of an action that is better than V"""
    target_noise: float = 0.2
    """standard deviation of the noise on the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of the noise on the target actor's actions, in half widths of the action box"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained
    critics: Trained
    """both critics, stacked on a leading axis `[2]`"""
    value: Trained
    vae: Trained
    """of a dictionary with `encoder` and `decoder`"""
    target_actor: Params
    target_critics: Params


class Networks(NamedTuple):
    """The architectures."""

    td3: deterministic.Networks
    """actor and critic"""
    value: nn.Module
    vae: VAE


def state_value(networks: Networks, value: Params, obs: Array) -> Array:
    """V(s): `[..., obs_dim]` -> `[...]`."""
    values: Array = networks.value.apply(value, obs)
    return values[..., 0]


def q_target(networks: Networks, critics: Params, batch: Batch, next_action: Array, hypers: Hypers) -> Array:
    """r + discount min Q(s', a') by these critics: `[batch]`."""
    next_value = min_q(networks.td3.critic, critics, batch.next_obs, next_action)
    return bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)


def critic_loss(critics: Params, networks: Networks, batch: Batch, target: Array) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to `target` `[batch]`: (loss `[]`, metrics)."""
    return squared_error(q_values(networks.td3.critic, critics, batch.obs, batch.action), target)


def value_loss(value: Params, networks: Networks, batch: Batch, target: Array) -> tuple[Array, Array]:
    """Mean squared error to `target` `[batch]`: (loss `[]`, V(s) `[batch]` as it is before the step)."""
    v = state_value(networks, value, batch.obs)
    return jnp.mean((v - target) ** 2), v


def candidate(
    config: Config, networks: Networks, params: dict[str, Params], obs: Array, action: Array, noise: Array
) -> Array:
    """The VAE's alternative to the dataset's action: `[batch, action_dim]`.

    By default the reconstruction of the actor's `action`, through which the gradient passes. `noise`
    `[batch, 2 action_dim]` is standard normal.
    """
    if config.sample_candidates:
        return networks.vae.decode(params, obs, jnp.clip(noise, -PRIOR_CLIP, PRIOR_CLIP))
    reconstruction = networks.vae.reconstruct(params, obs, action, noise)
    return jax.lax.stop_gradient(reconstruction) if config.detach_reconstruction else reconstruction


def actor_loss(
    actor: Params,
    config: Config,
    networks: Networks,
    state: State,
    batch: Batch,
    q_data: Array,
    v: Array,
    noise: Array,
    hypers: Hypers,
) -> Array:
    """-lambda mean Q_1(s, mu(s)) + mean m (mu(s) - a*)^2, with lambda = alpha / mean |Q_1| held constant: `[]`.

    a* is the VAE's candidate where that is at least as good as the dataset's action by the first critic, else the
    dataset's. m is `hypers.mask` where one of the two is better than the state's value, else 0. `q_data` `[batch]` is
    Q_1(s, a), `v` `[batch]` is V(s).
    """
    action = choose(networks.td3, actor, batch.obs)
    q = first_q(networks.td3.critic, state.critics.params, batch.obs, action)
    scale = hypers.alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    offered = candidate(config, networks, state.vae.params, batch.obs, action, noise)
    # Compared only, so no gradient comes through these.
    q_offered = first_q(networks.td3.critic, state.critics.params, batch.obs, jax.lax.stop_gradient(offered))
    advantage_offered, advantage_data = q_offered - v, q_data - v
    better = jnp.where((advantage_offered >= advantage_data)[:, None], offered, batch.action)
    weight = hypers.mask * ((advantage_offered >= 0.0) | (advantage_data > 0.0))
    return -scale * jnp.mean(q) + jnp.mean(weight[:, None] * (action - better) ** 2)


def make(config: Config) -> Algorithm:
    """A2PR with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size, policy_delay=config.policy_delay)

    def networks_of(task: Task) -> Networks:
        assert isinstance(task.env.action_space, Box)
        action_dim = task.env.action_space.dim
        return Networks(
            deterministic.Networks(MLP((*config.hidden_sizes, action_dim)), MLP((*config.critic_hidden_sizes, 1))),
            value=MLP((*config.value_hidden_sizes, 1)),
            vae=VAE.of(config.vae_hidden_sizes, action_dim),
        )

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor_key, critic_key, value_key, encoder_key, decoder_key = jax.random.split(key, 5)
        networks, obs = networks_of(task), jnp.zeros(task.env.obs_dim)
        actor = networks.td3.actor.init(actor_key, obs)
        action = choose(networks.td3, actor, obs)
        critics = init_critics(critic_key, networks.td3.critic, obs, action)
        return State(
            actor=Trained.start(actor, optax.adam(hypers.actor_learning_rate)),
            critics=Trained.start(critics, optax.adam(hypers.critic_learning_rate)),
            value=Trained.start(networks.value.init(value_key, obs), optax.adam(hypers.value_learning_rate)),
            vae=Trained.start(
                networks.vae.init(encoder_key, decoder_key, obs, action), optax.adam(hypers.vae_learning_rate)
            ),
            target_actor=actor,
            target_critics=critics,
        )

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        networks = networks_of(task)
        batch_key, target_key, vae_key, candidate_key = jax.random.split(key, 4)
        batch = offline.sample(batch_key, task, (config.batch_size,), config.normalize_obs)
        latent_shape = (config.batch_size, 2 * batch.action.shape[-1])

        target_noise = jax.random.normal(target_key, batch.action.shape)
        next_action = smoothed_action(networks.td3, state.target_actor, batch.next_obs, target_noise, hypers)
        target = q_target(networks, state.target_critics, batch, next_action, hypers)
        grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critics.params, networks, batch, target)
        state = state._replace(critics=state.critics.step(grads, optax.adam(hypers.critic_learning_rate)))

        # The same next action, also valued by the critics after their step. V(s) below is from before this step.
        online_target = q_target(networks, state.critics.params, batch, next_action, hypers)
        (value_error, v), grads = jax.value_and_grad(value_loss, has_aux=True)(
            state.value.params, networks, batch, jnp.minimum(online_target, target)
        )
        state = state._replace(value=state.value.step(grads, optax.adam(hypers.value_learning_rate)))

        q_data = first_q(networks.td3.critic, state.critics.params, batch.obs, batch.action)
        weight = hypers.vae_weight * (q_data > v)
        noise = jax.random.normal(vae_key, latent_shape)
        grads, vae_metrics = jax.grad(vae.loss, has_aux=True)(
            state.vae.params, networks.vae, batch.obs, batch.action, noise, weight
        )
        state = state._replace(vae=state.vae.step(grads, optax.adam(hypers.vae_learning_rate)))

        def learn_actor(state: State) -> State:
            noise = jax.random.normal(candidate_key, latent_shape)
            grads = jax.grad(actor_loss)(state.actor.params, config, networks, state, batch, q_data, v, noise, hypers)
            return deterministic.step_actor(state, grads, hypers)

        due = clock.update % config.policy_delay == 0
        metrics |= {"value_loss": value_error, **vae_metrics, "better_than_value": jnp.mean(q_data > v)}
        return jax.lax.cond(due, learn_actor, lambda state: state, state), metrics

    act, value = deterministic.acting(config.normalize_obs, lambda task: networks_of(task).td3)
    return Algorithm(init, update, act, 1, value)


_SOURCE = "ltlhuuu/A2PR f92a2a4, the commands in its README"

PRESETS = {
    "halfcheetah-medium": Preset(Config(), Hypers(alpha=40.0, mask=1.0, vae_weight=1.0), _SOURCE),
    "hopper-medium": Preset(Config(), Hypers(alpha=2.5, mask=0.4, vae_weight=1.0, discount=0.995), _SOURCE),
    "walker2d-medium": Preset(Config(), Hypers(alpha=2.5, mask=1.0, vae_weight=1.5), _SOURCE),
}

TRIAL = Trial(
    Config(
        batch_size=64,
        hidden_sizes=(64, 64),
        critic_hidden_sizes=(64, 64),
        value_hidden_sizes=(32, 32),
        vae_hidden_sizes=(32,),
    ),
    Hypers(
        actor_learning_rate=1e-3, critic_learning_rate=5e-3, value_learning_rate=3e-3, discount=0.5, tau=0.1, alpha=5.0
    ),
    updates=2000,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    presets=PRESETS,
    offline=True,
    summary="TD3+BC that imitates a VAE's action where that is better",
    source=Source(paper="Liu et al. 2024, arXiv 2405.19909", read="ltlhuuu/A2PR f92a2a4", level="A"),
)
