"""PRDC: TD3 whose actor is drawn to the dataset's action nearest to its own (Ran et al. 2023, arXiv 2306.06569).

TD3+BC pulls the actor to the action of the same transition, however good another one would be. PRDC takes its anchor
from all transitions: with D the dataset, it is the action of the one that minimises

    |beta (s - s_i)|^2 + |mu(s) - a_i|^2        over i in D, observations in standard deviations,

the k-th nearest if k > 1. The critics, the scale of the first one in the actor's loss and the delays are those of
`td3_bc.py`. The search is exact and on the device, see `nearest.py`. Sizes and rates are those of the authors' code.

Deviations from the authors' code:
- Actions, noise and distances are in units of the action box; on D4RL's tasks they are anyway.
- Distances in float32, where the code's are in float64: of two transitions at nearly the same distance, either may be
  the anchor.
- The actor and the targets move at the first and then at every second gradient step; the authors begin at the second.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it; the authors drop it.

Deviations of that code, and so of this file, from the paper:
- The actor's loss has the squared distance of the actions, averaged over dimensions, in place of the norm of the whole
  difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.core import Box
from envs.datasets import STD_FLOOR, Batch, with_blocks
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Reduction, Source, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import deterministic, offline, offline_td3
from rlsuite.pieces.deterministic import Networks, State
from rlsuite.pieces.nearest import nearest

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    policy_delay: int = 2
    """gradient steps of the critics for each step of the actor and of all targets"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset, for distances too"""
    k: int = 1
    """imitate the action of the k-th nearest transition"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    alpha: float = 2.5
    """weight of the Q term in the actor's loss, relative to the imitation of the chosen action"""
    beta: float = 2.0
    """weight of a distance between observations relative to one between actions"""
    target_noise: float = 0.2
    """standard deviation of the noise on the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of the noise on the target actor's actions, in half widths of the action box"""
    reward_scale: float = 1.0
    """factor of every reward, before any shift"""
    reward_shift: float = 0.0
    """constant added to every reward, after any scaling"""


def anchors(config: Config, task: Task, recorded: Batch, action: Array, hypers: Hypers) -> Array:
    """The action of the k-th nearest transition of the dataset: `[batch, action_dim]`, held constant.

    `recorded` holds the observations without normalisation; `action` `[batch, action_dim]` is in units of the box.
    """
    dataset = offline.dataset_of(task)
    assert dataset.blocks is not None, "the dataset was not prepared: pass it through `AlgorithmSpec.prepare`"
    deviation = dataset.obs_std + STD_FLOOR if config.normalize_obs else jnp.ones(dataset.obs_dim)
    weight = jnp.concatenate([hypers.beta / deviation, jnp.ones(dataset.space.dim)])
    query = jax.lax.stop_gradient(jnp.concatenate([recorded.obs, action], axis=-1))
    return dataset.unpack(dataset.rows[nearest(dataset.blocks, query, weight, config.k)]).action


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, hypers: Hypers
) -> tuple[Array, Metrics]:
    """That of TD3+BC, on the scaled and shifted reward: (loss `[]`, metrics)."""
    batch = batch._replace(reward=hypers.reward_scale * batch.reward + hypers.reward_shift)
    return deterministic.critic_loss(critics, networks, state, batch, noise, hypers)


METHOD = offline_td3.METHOD._replace(critic_loss=critic_loss, anchor=anchors)


def make(config: Config) -> Algorithm:
    """PRDC with this config.

    Raises:
        UserError: a size is not positive; or, once there is a dataset, it has fewer than k transitions.
    """
    check_positive(k=config.k)
    algorithm = offline_td3.make(config, METHOD)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        size = offline.dataset_of(task).size
        if size < config.k:
            raise UserError(f"k={config.k} is more than the {size} transitions of the dataset; choose a smaller one")
        state: State = algorithm.init(key, task, hypers)
        return state

    return algorithm._replace(init=init)


def _published(**hypers: float) -> Preset:
    return Preset(Config(), Hypers(**hypers), "the authors' code")


_TIERS = ("random", "medium", "medium-replay", "medium-expert")
_MAZES = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")

PRESETS = {
    **{f"halfcheetah-{tier}": _published(alpha=40.0) for tier in _TIERS},
    **{f"{robot}-{tier}": _published() for robot in ("hopper", "walker2d") for tier in _TIERS},
    **{f"antmaze-{maze}": _published(alpha=7.5, beta=7.5, reward_scale=1e4, reward_shift=-1.0) for maze in _MAZES},
}

TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(64, 64)),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=5e-3, discount=0.5, tau=0.1, alpha=5.0),
    updates=2000,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    presets=PRESETS,
    prepare=with_blocks,
    offline=True,
    # So large a beta makes the recorded transition the nearest one, where no two observations are equal.
    reduces_to=Reduction("td3_bc", {"k": 1}, {"beta": 1e6, "reward_scale": 1.0, "reward_shift": 0.0}),
    summary="TD3 drawn to the dataset's nearest action",
    source=Source(paper="Ran et al. 2023, arXiv 2306.06569", read="LAMDA-RL/PRDC 9f38464", level="A"),
)
