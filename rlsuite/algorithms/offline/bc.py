"""BC: behaviour cloning, a deterministic policy fitted to the dataset's actions by least squares (Pomerleau 1991).

Sizes and rates are those of the offline baselines of CORL. With `--sampling top=0.1` it is 10 % BC.

Deviations from CORL:
- Actions are in units of the action box, which they are on D4RL's tasks anyway.
- 10 % BC ranks trajectories by their undiscounted return, as Hong et al. 2023 (arXiv 2306.13085) do; CORL discounts by
  0.99. The number of trajectories is rounded to the nearest; CORL rounds down.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Source, Task, Trial
from rlsuite.errors import check_positive
from rlsuite.pieces import offline
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of every network that has no option of its own"""
    normalize_obs: bool = True
    """standardise observations by the mean and standard deviation of the dataset"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    learning_rate: float = 3e-4
    """learning rate of Adam"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    actor: Trained


def choose(network: MLP, actor: Params, obs: Array) -> Array:
    """The policy's action in units of the box: `[..., obs_dim]` -> `[..., action_dim]`."""
    return jnp.tanh(network.apply(actor, obs))


def loss(actor: Params, network: MLP, batch: Batch) -> Array:
    """Mean over batch and dimensions of the squared distance to the dataset's actions: `[]`."""
    return jnp.mean((choose(network, actor, batch.obs) - batch.action) ** 2)


def make(config: Config) -> Algorithm:
    """BC with this config.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(batch_size=config.batch_size)

    def network_of(task: Task) -> MLP:
        assert isinstance(task.env.action_space, Box)
        return MLP((*config.hidden_sizes, task.env.action_space.dim))

    def init(key: Array, task: Task, hypers: Hypers) -> State:
        actor = network_of(task).init(key, jnp.zeros(task.env.obs_dim))
        return State(Trained.start(actor, optax.adam(hypers.learning_rate)))

    def update(key: Array, task: Task, state: State, hypers: Hypers, clock: Clock) -> tuple[State, Metrics]:
        batch = offline.sample(key, task, (config.batch_size,), config.normalize_obs)
        imitation_error, grads = jax.value_and_grad(loss)(state.actor.params, network_of(task), batch)
        return State(state.actor.step(grads, optax.adam(hypers.learning_rate))), {"actor_loss": imitation_error}

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        obs = offline.observe(task, obs, config.normalize_obs)
        return offline.to_box(task, choose(network_of(task), state.actor.params, obs))

    return Algorithm(init, update, act, 1)


TRIAL = Trial(Config(batch_size=128, hidden_sizes=(32,)), Hypers(learning_rate=3e-3), updates=500)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    offline=True,
    summary="behaviour cloning by least squares",
    source=Source(paper="Pomerleau 1991", read="CORL, algorithms/offline/any_percent_bc.py", level="B"),
)
