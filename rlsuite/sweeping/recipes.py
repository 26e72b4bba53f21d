"""What datasets can be made here, and of which agent, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlsuite.algorithms.off_policy import sac
from rlsuite.algorithms.on_policy import ppo

TIERS = {
    "random": "uniformly random actions",
    "medium": "a policy a third of the way from random to expert",
    "medium-replay": "every policy up to the medium one, in equal shares",
    "medium-expert": "as many transitions of the medium as of the expert policy",
    "expert": "the best policy at the end of training",
    "random-expert-1": "1 % of the transitions are the expert's, the others random",
    "random-expert-5": "5 %",
    "random-expert-10": "10 %",
    "random-expert-50": "50 %",
}
"""What can be made of an environment, and one line on each."""


class Recipe(NamedTuple):
    """The agent that an environment's datasets come from."""

    algorithm: str
    config: Any
    hypers: Any
    steps: int
    """environment steps of each run"""
    transitions: int
    """in each tier, unless another number is asked for"""
    seeds: int = 8
    """runs side by side, of which the best at the end is the expert; the first seed is `FIRST_SEED`"""
    checkpoints: int = 20


FIRST_SEED = 10_000
"""Not a seed that anybody compares at."""

PPO = ppo.Config(num_envs=8, num_steps=128, num_epochs=10, num_minibatches=8)
RECIPES: Mapping[str, Recipe] = {
    "gymnax/Pendulum-v1": Recipe(
        "sac",
        sac.Config(num_envs=4, gradient_steps=1, batch_size=64, warmup_steps=2_000, hidden_sizes=(64, 64)),
        sac.Hypers(1e-3, 1e-3, 1e-3, discount=0.99, tau=0.01),
        steps=40_000,
        transitions=20_000,
    ),
    "brax/inverted_pendulum/spring": Recipe(
        "ppo", PPO, ppo.Hypers(learning_rate=1e-3, discount=0.997, gae_lambda=0.97), steps=120_000, transitions=20_000
    ),
    "brax/hopper/spring": Recipe(
        "ppo", PPO, ppo.Hypers(learning_rate=1e-3, discount=0.999, gae_lambda=0.99), steps=320_000, transitions=30_000
    ),
    # For a GPU.
    **{
        f"mujoco/{task}-v5": Recipe("sac", sac.Config(), sac.Hypers(), steps=1_000_000, transitions=1_000_000)
        for task in ("Hopper", "HalfCheetah", "Walker2d")
    },
}
"""Environments whose datasets are made when they are first asked for."""
