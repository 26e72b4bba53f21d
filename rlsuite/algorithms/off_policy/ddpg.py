"""DDPG: deep deterministic policy gradient (Lillicrap et al. 2015, arXiv 1509.02971).

DDPG is TD3 with a single critic, no delay and no smoothing of the target. This file declares the remaining settings;
the losses and the learning loop are those of `td3.py`.

Deviations from the paper:
- Exploration is uncorrelated Gaussian noise in units of half the width of the action box, not an Ornstein-Uhlenbeck
  process, and starts after a warm-up with uniform actions.
- Neither batch normalisation nor weight decay; the action enters the critic's first layer, not its second; PyTorch's
  default initialisation everywhere, the output layers included.
- Sizes and rates are CleanRL's (`ddpg_continuous_action.py`): two layers of 256, 3e-4, 256 transitions, tau 0.005.

Deviations from CleanRL:
- Actor and targets move at every gradient step, as in the paper; CleanRL moves them at every second one.
- Those of `td3.py`: free numbers of environments and gradient steps, the first gradient step one step earlier, and
  evaluation without noise.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

from envs.core import Box
from rlsuite.algorithms.off_policy import td3
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Reduction, Source, Task, Trial
from rlsuite.pieces import off_policy, replay

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    num_envs: int = 1
    """environments stepped side by side in each run"""
    gradient_steps: int = 1
    """gradient steps in one update"""
    batch_size: int = 256
    """transitions in one gradient step"""
    buffer_size: int = 1_000_000
    """transitions kept; a smaller budget takes less memory"""
    warmup_steps: int = 25_000
    """environment steps with uniform actions before learning starts"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    value_bias_episodes: int = 0
    """episodes after which each evaluation reports the critic's bias (`pieces/value_bias.py`); 0 turns this off"""


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
    exploration_noise: float = 0.1
    """standard deviation of the noise on the actions taken, in half widths of the action box"""


State = off_policy.State


def make(config: Config) -> Algorithm:
    """DDPG with this config.

    Raises:
        UserError: the buffer does not hold whole steps of all environments, or a size is not positive.
    """
    algorithm = td3.make(td3.Config(**dataclasses.asdict(config), num_critics=1, policy_delay=1))

    def td3_hypers(hypers: Hypers) -> td3.Hypers:
        return td3.Hypers(**hypers._asdict(), target_noise=0.0, target_noise_clip=0.0)

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        state: State = algorithm.init(key, task, td3_hypers(hypers))
        return state

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        return algorithm.update(key, task, state, td3_hypers(hypers), clock)

    return algorithm._replace(init=init, update=update)


def fit(config: Config, total_steps: int) -> Config:
    """The same training with no more buffer than the budget fills: results are identical, memory is not."""
    return replay.fitted(config, total_steps, config.num_envs)


TRIAL = Trial(
    Config(num_envs=4, gradient_steps=4, batch_size=32, buffer_size=2048, warmup_steps=64, hidden_sizes=(32, 32)),
    Hypers(actor_learning_rate=3e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.05, exploration_noise=0.3),
    updates=400,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    fit=fit,
    reduces_to=Reduction(
        "td3",
        base_config={"num_critics": 1, "policy_delay": 1},
        base_hypers={"target_noise": 0.0, "target_noise_clip": 0.0},
    ),
    summary="deterministic actor and one critic, from a replay buffer",
    source=Source(
        paper="Lillicrap et al. 2015, arXiv 1509.02971",
        read="CleanRL, ddpg_continuous_action.py",
        level="B",
    ),
)
