"""TD3+BC: TD3 whose actor also imitates the dataset (Fujimoto & Gu 2021, arXiv 2106.06860).

The critics learn as in TD3. The actor maximises the first critic, scaled by alpha over its mean size so that this term
has a known weight relative to the imitation of the dataset's actions. Sizes and rates are those of the authors and of
CORL.

Deviations from the authors' code and CORL:
- Actions, noise and the squared distance are in units of the action box; on D4RL's tasks they are anyway.
- The actor and the targets move at the first and then at every second gradient step; the authors begin at the second.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.
- Rewards are as they were recorded. CORL subtracts 1 from those of AntMaze.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from envs.core import Box
from rlsuite.core import Algorithm, AlgorithmSpec, Source, Trial
from rlsuite.pieces import offline_td3


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
    """standardise observations by the mean and standard deviation of the dataset"""


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
    target_noise: float = 0.2
    """standard deviation of the noise on the target actor's actions, in half widths of the action box"""
    target_noise_clip: float = 0.5
    """bound of the noise on the target actor's actions, in half widths of the action box"""


def make(config: Config) -> Algorithm:
    """TD3+BC with this config.

    Raises:
        UserError: a size is not positive.
    """
    return offline_td3.make(config, offline_td3.METHOD)


TRIAL = Trial(
    Config(batch_size=64, hidden_sizes=(32, 32)),
    Hypers(actor_learning_rate=1e-3, critic_learning_rate=3e-3, discount=0.5, tau=0.1, alpha=10.0),
    updates=2000,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    offline=True,
    summary="TD3 whose actor also imitates the dataset",
    source=Source(paper="Fujimoto and Gu 2021, arXiv 2106.06860", read="CORL, algorithms/offline/td3_bc.py", level="B"),
)
