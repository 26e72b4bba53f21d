"""ReBRAC: TD3+BC with retuned components: both actor and critic are penalised for leaving the dataset, each with a
coefficient of its own; deeper networks, larger batches and critics with layer norms (Tarasov et al. 2023, arXiv
2305.09836).

The target subtracts from the smaller critic the squared distance of its action to the one that the dataset took next.
The actor maximises the smaller critic, divided by its mean size, minus the squared distance to the dataset's action.
Sizes and rates are those of the authors' code.

Deviations from the authors' code:
- Actions, noise and squared distances are in units of the action box; on D4RL's tasks they are anyway.
- Where a transition was truncated, the dataset took no next action: its target has no penalty. The authors' data
  (D4RL's) leave out such transitions.
- PyTorch's default initialisation; the code has biases of 0.1 and last layers within 1e-3 (actor) and 3e-3 (critics).
- Layer norms add 1e-5 to the variance, as PyTorch's do; those of the code add 1e-6. They follow the ReLU, as there.
- The target of the actor moves towards the actor that has just learned; in the code, towards that from before the step.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Reduction, Source, Trial
from rlsuite.pieces import offline_td3
from rlsuite.pieces.critics import bellman_target, min_q, q_values, squared_error
from rlsuite.pieces.deterministic import Networks, State, choose, smoothed_action
from rlsuite.pieces.networks import MLP

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 1024
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of every network that has no option of its own"""
    policy_delay: int = 2
    """gradient steps of the critics for each step of the actor and of all targets"""
    normalize_obs: bool = False
    """standardise observations by the mean and standard deviation of the dataset"""
    actor_layer_norm: bool = False
    """use layer norms in the actor"""
    critic_layer_norm: bool = True
    """use layer norms in the critics"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 1e-3
    """learning rate of the actor"""
    critic_learning_rate: float = 1e-3
    """learning rate of the critics"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    actor_penalty: float = 0.01
    """weight of the squared distance to the dataset's action in the actor's loss"""
    critic_penalty: float = 0.01
    """weight of the squared distance to the dataset's next action, subtracted in the critics' target"""
    target_noise: float = 0.2
    """standard deviation of the noise on the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of the noise on the target actor's actions, in half widths of the action box"""
    reward_shift: float = 0.0
    """constant added to every reward, after any scaling"""


def networks(config: Config, action_dim: int) -> Networks:
    """Architectures with layer norms where the config says so."""
    return Networks(
        MLP((*config.hidden_sizes, action_dim), layer_norm=config.actor_layer_norm),
        MLP((*config.hidden_sizes, 1), layer_norm=config.critic_layer_norm),
    )


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to r + discount (min Q'(s', b) - critic_penalty |b - a'|^2), where
    b = mu'(s') + noise and a' is the dataset's next action: (loss `[]`, metrics).

    `noise` `[batch, action_dim]` is standard normal; its scale and bounds are those of `hypers`.
    """
    next_action = smoothed_action(networks, state.target_actor, batch.next_obs, noise, hypers)
    next_value = min_q(networks.critic, state.target_critics, batch.next_obs, next_action)
    left = jnp.sum((next_action - batch.next_action) ** 2, axis=-1)
    next_value = next_value - hypers.critic_penalty * jnp.where(batch.truncated, 0.0, left)
    target = bellman_target(batch.reward + hypers.reward_shift, hypers.discount, batch.terminated, next_value)
    return squared_error(q_values(networks.critic, critics, batch.obs, batch.action), target)


def actor_loss(actor: Params, networks: Networks, critics: Params, obs: Array, anchor: Array, hypers: Hypers) -> Array:
    """Mean of actor_penalty |mu(s) - anchor|^2 - lambda min Q(s, mu(s)), lambda = 1 / mean |min Q| held constant: `[]`.

    The anchor `[batch, action_dim]` is the dataset's action.
    """
    action = choose(networks, actor, obs)
    q = min_q(networks.critic, critics, obs, action)
    scale = jax.lax.stop_gradient(1.0 / jnp.mean(jnp.abs(q)))
    left = jnp.sum((action - anchor) ** 2, axis=-1)
    return jnp.mean(hypers.actor_penalty * left - scale * q)


METHOD = offline_td3.METHOD._replace(networks=networks, critic_loss=critic_loss, actor_loss=actor_loss)


def make(config: Config) -> Algorithm:
    """ReBRAC with this config.

    Raises:
        UserError: a size is not positive.
    """
    return offline_td3.make(config, METHOD)


SOURCE = "the authors, by CORL's configurations"


def _gym(actor_penalty: float, critic_penalty: float) -> Preset:
    return Preset(Config(), Hypers(actor_penalty=actor_penalty, critic_penalty=critic_penalty), SOURCE)


def _antmaze(actor_penalty: float, critic_penalty: float) -> Preset:
    hypers = Hypers(
        actor_learning_rate=3e-4,
        critic_learning_rate=5e-5,
        discount=0.999,
        actor_penalty=actor_penalty,
        critic_penalty=critic_penalty,
        reward_shift=-1.0,
    )
    return Preset(Config(batch_size=256), hypers, SOURCE)


PRESETS = {
    "halfcheetah-random": _gym(0.001, 0.1),
    "halfcheetah-medium": _gym(0.001, 0.01),
    "halfcheetah-medium-replay": _gym(0.01, 0.001),
    "halfcheetah-medium-expert": _gym(0.01, 0.1),
    "halfcheetah-expert": _gym(0.01, 0.01),
    "halfcheetah-full-replay": _gym(0.001, 0.1),
    "hopper-random": _gym(0.001, 0.01),
    "hopper-medium": _gym(0.01, 0.01),
    "hopper-medium-replay": _gym(0.05, 0.5),
    "hopper-medium-expert": _gym(0.1, 0.01),
    "hopper-expert": _gym(0.1, 0.1),
    "hopper-full-replay": _gym(0.01, 0.01),
    "walker2d-random": _gym(0.01, 0.0),
    "walker2d-medium": _gym(0.05, 0.1),
    "walker2d-medium-replay": _gym(0.05, 0.01),
    "walker2d-medium-expert": _gym(0.01, 0.01),
    "walker2d-expert": _gym(0.01, 0.5),
    "walker2d-full-replay": _gym(0.01, 0.01),
    "antmaze-umaze": _antmaze(0.003, 0.002),
    "antmaze-umaze-diverse": _antmaze(0.003, 0.001),
    "antmaze-medium-play": _antmaze(0.001, 0.0005),
    "antmaze-medium-diverse": _antmaze(0.001, 0.0),
    "antmaze-large-play": _antmaze(0.002, 0.001),
    "antmaze-large-diverse": _antmaze(0.002, 0.002),
}

TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(32, 32)),
    Hypers(
        actor_learning_rate=1e-3,
        critic_learning_rate=3e-3,
        discount=0.5,
        tau=0.1,
        actor_penalty=0.05,
        critic_penalty=0.0,
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
    # Its actor climbs the smaller critic, TD3+BC's the first one: only with an actor that stays are the critics equal.
    reduces_to=Reduction(
        "td3_bc",
        {"actor_layer_norm": False, "critic_layer_norm": False},
        {"actor_learning_rate": 0.0, "critic_penalty": 0.0, "reward_shift": 0.0},
    ),
    summary="TD3+BC with penalties in actor and critic, and layer norms",
    source=Source(paper="Tarasov et al. 2023, arXiv 2305.09836", read="CORL, algorithms/offline/rebrac.py", level="A"),
)
