"""PROPS: proximal robust on-policy sampling (Corrado & Hanna, arXiv 2311.08290).

PPO on a buffer of its last few batches (`buffered_ppo.py`). So that the buffer as a whole looks as if the policy
theta that learns had collected it, a second policy phi collects. It starts from theta and makes over-represented
actions less likely, by a behaviour update on those transitions that will still be in the buffer after the round.

This is the paper's loop, entered at another place: there the behaviour update ends a round, here it begins the next
one, so that phi is not part of the state.

Deviations from the authors' code:
- Truncation is not termination: the advantage at a time limit bootstraps with V of the observation it was reached with.
- log pi_theta and the KL term in the behaviour update are those of the theta which phi starts from, as in the paper;
  after a PPO update the code uses theta from before it, so that the behaviour update may stop at once
  (`stale_reference`).
- The statistics of the normalisers are merged once a round, instead of at every step.
- The mean of the policy has no tanh, as in the newer of the two repositories.
- `num_envs` environments (8 by default) where the code steps one.
- `num_minibatches` must be a multiple of `buffer_batches`, so that PPO's minibatches are whole while the buffer fills.
- Advantage weighting divides by the standard deviation over all data of a behaviour update, not of a minibatch.
- A behaviour update of discrete actions has no KL penalty, as in the code, which has that term commented out.
- The sampling error is fitted as in the newer repository: on all data at once, with a learning rate that rises from a
  third to the whole, and with the hidden layers frozen. The published runs took minibatches, and learned the hidden
  biases too. Its mean is over the data as they are, as in the published runs; the latest code weights them by |A|.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlsuite.algorithms.on_policy import buffered_ppo
from rlsuite.algorithms.on_policy.buffered_ppo import Round
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Reduction, Source, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import distributions, rollout_buffer
from rlsuite.pieces.actor_critic import Networks, actor_of, distribution, log_prob, optimizer
from rlsuite.pieces.minibatches import descend, mean_of
from rlsuite.pieces.rollout_buffer import Recall
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 8
    """environments stepped side by side in each run"""
    num_steps: int = 256
    """steps of each environment in one update"""
    behavior_steps: int = 32
    """steps of each environment between two updates of the behaviour policy; divides num_steps"""
    buffer_batches: int = 2
    """batches of num_envs * num_steps transitions that are kept and learned from"""
    num_epochs: int = 10
    """passes over the rollout or the buffer in one update"""
    num_minibatches: int = 32
    """minibatches in one pass over the full buffer; a multiple of buffer_batches"""
    behavior_epochs: int = 16
    """passes over the buffer in one update of the behaviour policy"""
    behavior_minibatches: int = 16
    """minibatches in one pass of the behaviour policy's update"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """hidden layers of every network that has no option of its own"""
    normalize_obs: bool = True
    """standardise observations by running statistics"""
    normalize_reward: bool = True
    """divide rewards by the running standard deviation of the discounted return"""
    normalize_advantage: bool = True
    """standardise advantages per minibatch"""
    clip_value: bool = True
    """clip the value loss as PPO does, with clip_epsilon"""
    anneal_learning_rate: bool = True
    """let the learning rate fall linearly to 0 over the budget"""
    advantage_weighting: bool = False
    """weight the behaviour policy's loss by the size of the advantage"""
    stale_reference: bool = False
    """after a PPO update, compare the behaviour policy with the target policy from before it, as the authors' code
    does"""
    sampling_error_epochs: int = 0
    """steps of the fit that measures the sampling error (the authors: 1000 or 2000); 0 turns this off"""
    sampling_error_interval: int = 1
    """updates between two measurements of the sampling error; the metric repeats the last one"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    learning_rate: float = 1e-3
    """learning rate of Adam"""
    discount: float = 0.99
    """discount factor of future rewards"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation: 0 is the one-step error, 1 the full return"""
    clip_epsilon: float = 0.2
    """clip range of the probability ratio around 1, and with clip_value of the value around its old one"""
    entropy_coef: float = 0.01
    """weight of the policy's entropy, which the loss rewards"""
    value_coef: float = 0.5
    """weight of the value loss in the whole loss"""
    max_grad_norm: float = 0.5
    """gradients are clipped to this global norm"""
    target_kl: float = 0.03
    """approximate KL divergence at which a PPO update ends"""
    behavior_learning_rate: float = 1e-3
    """learning rate of the behaviour policy"""
    behavior_clip_epsilon: float = 0.3
    """largest share by which the behaviour policy may lower a probability"""
    behavior_target_kl: float = 0.05
    """approximate KL divergence at which an update of the behaviour policy ends"""
    behavior_kl_coef: float = 0.3
    """weight of the KL divergence, averaged over the action dimensions, in the behaviour policy's loss"""


class Carry(NamedTuple):
    """The state of the behaviour policy, passed from round to round."""

    stale_params: Params | None
    """theta and its value network before the last PPO update, for `stale_reference`"""
    opt_state: Any
    """state of its Adam, which is kept although phi starts from theta each time"""


class Past(NamedTuple):
    """The parts of each transition that a behaviour update reads, leading axis `[batch]`."""

    obs: Array
    """`[batch, obs_dim]`, normalised"""
    action: Array
    """`[batch, action_dim]` unclipped, or `[batch]` int32"""
    dist: tuple[Array, ...]
    """the target policy's distribution at obs, see `actor_critic.py`"""
    log_prob: Array
    """`[batch]` under the target policy"""
    weight: Array | None
    """`[batch]`: the size of the advantage, for `advantage_weighting`"""


def behavior_loss(actor: Params, networks: Networks, past: Past, valid: Array, hypers: Hypers) -> tuple[Array, Metrics]:
    """PROPS' objective on the valid rows `[batch]` bool: (loss `[]`, metrics).

    mean(max(r, 1 - epsilon)) with r = pi_phi / pi_theta lowers the probability of the recorded actions, down to 1 -
    epsilon of it. The paper writes max(r, clip(r, 1 - epsilon, 1 + epsilon)), whose upper bound never binds. The KL
    divergence from the target policy is added, as a mean over the action dimensions.
    """
    dist = distribution(networks, actor, past.obs)
    log_ratio = log_prob(dist, past.action) - past.log_prob
    clipped = jnp.maximum(jnp.exp(log_ratio), 1.0 - hypers.behavior_clip_epsilon)
    loss = mean_of(clipped if past.weight is None else clipped * past.weight, valid)
    if len(dist) == 2:
        kl = jnp.mean(distributions.gaussian_kl(*dist, *past.dist), axis=-1)
        loss = loss + hypers.behavior_kl_coef * mean_of(kl, valid)
    return loss, {"loss": loss, "approx_kl": mean_of(jnp.expm1(log_ratio) - log_ratio, valid)}


def past_of(recall: Recall, config: Config) -> Past:
    """The parts of the rows that `behavior_loss` reads."""
    rows, valid = recall.rows, recall.valid
    weight = None
    if config.advantage_weighting:
        centre = mean_of(rows.advantage, valid)
        spread = jnp.sqrt(mean_of((rows.advantage - centre) ** 2, valid))
        weight = jnp.abs(rows.advantage) / (spread + 1e-8)
    return Past(rows.obs, rows.action, rows.dist, rows.log_prob, weight)


def start(config: Config, params: Params, hypers: Hypers) -> Carry:
    """Adam of the behaviour policy, and theta for a stale reference."""
    opt_state = optimizer(hypers, hypers.behavior_learning_rate).init(actor_of(params))
    return Carry(params if config.stale_reference else None, opt_state)


def behave(
    config: Config, key: Array, networks: Networks, current_round: Round, carry: Carry, hypers: Hypers
) -> tuple[Params, Carry, Metrics]:
    """theta after epochs of `behavior_loss` on the transitions that the buffer will still hold."""
    reference = current_round.params
    if config.stale_reference:
        is_first = current_round.number == 0
        reference = jax.tree.map(lambda x, y: jnp.where(is_first, x, y), carry.stale_params, current_round.params)
    recall = current_round.recall(reference)
    behavior, metrics = descend(
        key,
        lambda actor, past, valid: behavior_loss(actor, networks, past, valid, hypers),
        optimizer(hypers, hypers.behavior_learning_rate),
        Trained(actor_of(current_round.params), carry.opt_state),
        past_of(recall, config),
        recall.num_valid,
        hypers.behavior_target_kl,
        config.behavior_epochs,
        config.behavior_minibatches,
    )
    # The next update's first round takes it for its reference.
    stale_params = current_round.params if config.stale_reference else None
    metrics = {f"behavior_{name}": value for name, value in metrics.items()}
    return behavior.params, Carry(stale_params, behavior.opt_state), metrics


METHOD = buffered_ppo.Method(start, behave)


def make(config: Config) -> Algorithm:
    """PROPS with this config.

    Raises:
        UserError: a size is not positive, or one does not divide what it has to.
    """
    check_positive(behavior_epochs=config.behavior_epochs, behavior_minibatches=config.behavior_minibatches)
    kept = rollout_buffer.check_rounds(config, config.behavior_steps)
    if kept % config.behavior_minibatches:
        raise UserError(
            f"behavior_minibatches={config.behavior_minibatches} does not divide the {kept} transitions of the buffer "
            "that are older than a round; choose a divisor of it"
        )
    return buffered_ppo.make(config, METHOD, config.behavior_steps)


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

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    presets=PRESETS,
    former={"behavior": "props"},
    former_hypers={"ros_step_size": 0.1},
    read_with={"sampling_error_interval": {"sampling_error_epochs": 1}},
    reduces_to=Reduction("ppo_buffer", {"behavior_steps": TRIAL.config.num_steps}, {"behavior_learning_rate": 0.0}),
    summary="PPO on a buffer, with a behaviour policy that corrects its sampling error",
    source=Source(
        paper="Corrado and Hanna 2023, arXiv 2311.08290",
        read="NicholasCorrado/PPOROS, NicholasCorrado/PROPS",
        level="A",
    ),
)
