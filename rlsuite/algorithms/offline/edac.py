"""EDAC and SAC-N: SAC from a dataset, pessimistic by the smallest of N critics (An et al. 2021, arXiv 2110.01548).

SAC-N is SAC with N critics instead of two, and has no term for the dataset: where there are no data, N critics
disagree, and the smallest is low. SAC-N takes up to 500 of them. EDAC needs 10 to 50: it diversifies them by a loss on
the cosines between the gradients of any two critics by the action, at the dataset's actions. SAC-N is eta = 0;
`diversity=False` is the same and leaves the term out of the program, which saves the cost of unused gradients.

Sizes, rates, initialisation, bounds of the log standard deviation ([-5, 2]) and the order of a gradient step
(temperature, actor, critics, targets, each with what the ones before it have learned) follow CORL, which follows the
authors' code. Observations are not normalised there.

Deviations from CORL:
- The sum over pairs is |sum of the unit gradients|^2 minus their own squares, which is the same number in N steps
  instead of N^2.
- A gradient that is 0 has no direction and takes no part; CORL divides by its length plus 1e-10.
- With one action dimension every unit gradient is 1 or -1, whatever the parameters: the term teaches nothing, and EDAC
  is SAC-N. The same holds in the authors' code.
- The first layer of a critic is drawn by its own number of inputs; CORL takes its number of outputs by mistake.
- The log-determinant of tanh is exact instead of log(1 - tanh^2 + 1e-6).
- Actions and log-probabilities are in units of the action box; on D4RL's tasks they are anyway.
- A transition that was truncated bootstraps with the value of the observation that it led to, where the dataset has
  kept it. D4RL's files have not, and those transitions are left out when such a file is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.core import Box
from envs.datasets import Batch
from rlsuite.core import Algorithm, AlgorithmSpec, Metrics, Preset, Reduction, Source, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import offline_sac, squashed
from rlsuite.pieces.critics import bellman_target, min_q, q_values, squared_error
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.offline_sac import Draws, Networks, State

Array = jax.Array
Params = Any

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program."""

    batch_size: int = 256
    """transitions in one gradient step"""
    num_critics: int = 10
    """number of critics; targets take the smallest of their values"""
    diversity: bool = True
    """add the diversity term to the critics' loss; without it this is SAC-N"""
    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """hidden layers of every network that has no option of its own"""
    learn_alpha: bool = True
    """learn the temperature; else it stays at initial_alpha"""
    normalize_obs: bool = False
    """standardise observations by the mean and standard deviation of the dataset"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program."""

    actor_learning_rate: float = 3e-4
    """learning rate of the actor"""
    critic_learning_rate: float = 3e-4
    """learning rate of the critics"""
    alpha_learning_rate: float = 3e-4
    """learning rate of the temperature, with learn_alpha"""
    discount: float = 0.99
    """discount factor of future rewards"""
    tau: float = 0.005
    """share of an online network that moves into its target whenever the target moves"""
    eta: float = 1.0
    """weight of the diversity term relative to the sum of the critics' errors"""
    initial_alpha: float = 1.0
    """temperature at the start of training"""
    target_entropy_scale: float = 1.0
    """target entropy = -scale * action_dim, in nats, of actions in units of the box"""


def bounded(network: MLP, key: Array, inputs: Array, output_bound: float) -> Params:
    """The authors' initialisation: PyTorch's, but biases of 0.1 in hidden layers and a last layer within +-bound."""
    layers = dict(network.init(key, inputs)["params"])
    last = f"Dense_{len(layers) - 1}"
    for name, layer in layers.items():
        if name != last:
            layers[name] = {"kernel": layer["kernel"], "bias": jnp.full_like(layer["bias"], 0.1)}
    # PyTorch's bound is 1 / sqrt(inputs), for weights and biases.
    scale = output_bound * layers[last]["kernel"].shape[0] ** 0.5
    layers[last] = jax.tree.map(lambda x: scale * x, layers[last])
    return {"params": layers}


def diversity_loss(critics: Params, networks: Networks, obs: Array, action: Array) -> Array:
    """Sum over pairs i != j of the cosine of dQ_i/da and dQ_j/da, over N - 1, mean over the batch: `[]`."""

    def total(params: Params, action: Array) -> Array:
        return jnp.sum(networks.critic.apply(params, jnp.concatenate([obs, action], axis=-1)))

    gradients = jax.vmap(jax.grad(total, argnums=1), (0, None))(critics, action)  # [num_critics, batch, action_dim]
    square = jnp.sum(gradients**2, axis=-1, keepdims=True)
    sloped = square > 0.0
    # The inner `where` keeps 1 / sqrt(0) out of the derivative too.
    units = jnp.where(sloped, gradients * jax.lax.rsqrt(jnp.where(sloped, square, 1.0)), 0.0)
    pairs = jnp.sum(jnp.sum(units, axis=0) ** 2, axis=-1) - jnp.sum(units**2, axis=(0, 2))
    return jnp.mean(pairs) / (len(gradients) - 1)


def critic_loss(
    critics: Params, networks: Networks, state: State, batch: Batch, noise: Array, diversity: bool, hypers: Hypers
) -> tuple[Array, Metrics]:
    """Sum over the critics of the mean squared error to the soft target, plus eta times the diversity term.

    `noise` `[batch, action_dim]` draws the next action from the online policy. (loss `[]`, metrics)
    """
    next_action, next_log_prob = networks.policy.draw(state.actor.params, batch.next_obs, noise)
    next_q = min_q(networks.critic, state.target_critics, batch.next_obs, next_action)
    next_value = next_q - jnp.exp(state.log_alpha.params) * next_log_prob
    target = bellman_target(batch.reward, hypers.discount, batch.terminated, next_value)
    q = q_values(networks.critic, critics, batch.obs, batch.action)
    loss, metrics = squared_error(q, target)
    metrics["q_std"] = jnp.mean(jnp.std(q, axis=0))
    if diversity:
        metrics["diversity_loss"] = diversity_loss(critics, networks, batch.obs, batch.action)
        loss = loss + hypers.eta * metrics["diversity_loss"]
    return loss, metrics


def networks_of(config: Config, action_dim: int) -> Networks:
    """Plain networks; the actor gives mean and log standard deviation."""
    actor = MLP((*config.hidden_sizes, 2 * action_dim))
    bound = squashed.clipped(LOG_STD_MIN, LOG_STD_MAX)
    return Networks(squashed.Policy.in_units(actor, action_dim, bound), MLP((*config.hidden_sizes, 1)))


def start(
    config: Config, networks: Networks, keys: Array, obs: Array, action: Array, hypers: Hypers
) -> tuple[Params, Params, tuple[()]]:
    """New parameters of the actor and of the critics."""
    inputs, critic_keys = jnp.concatenate([obs, action]), jax.random.split(keys[1], config.num_critics)
    critics = jax.vmap(lambda key: bounded(networks.critic, key, inputs, 3e-3))(critic_keys)
    return bounded(networks.policy.network, keys[0], obs, 1e-3), critics, ()


def learn(
    config: Config, task: Task, networks: Networks, state: State, draws: Draws, hypers: Hypers
) -> tuple[State, Metrics]:
    """One step of the temperature, then of the actor, then of the critics and their targets."""
    batch, (alpha_key, actor_key, critic_key) = draws.batch, draws.keys
    shape = batch.action.shape
    if config.learn_alpha:
        _, log_prob = networks.policy.draw(state.actor.params, batch.obs, jax.random.normal(alpha_key, shape))
        state = state._replace(log_alpha=squashed.learn_alpha(state.log_alpha, log_prob, shape[-1], hypers))

    noise = jax.random.normal(actor_key, shape)
    grads, _ = jax.grad(squashed.actor_loss, has_aux=True)(
        state.actor.params, *networks, state.critics.params, state.log_alpha.params, batch.obs, noise
    )
    state = state._replace(actor=state.actor.step(grads, optax.adam(hypers.actor_learning_rate)))

    noise = jax.random.normal(critic_key, shape)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(
        state.critics.params, networks, state, batch, noise, config.diversity, hypers
    )
    critics = state.critics.step(grads, optax.adam(hypers.critic_learning_rate))
    targets = optax.incremental_update(critics.params, state.target_critics, hypers.tau)
    return state._replace(critics=critics, target_critics=targets), metrics


def value(config: Config, key: Array, task: Task, networks: Networks, state: State, obs: Array) -> Array:
    """The soft value of an action drawn from the policy: `[]`."""
    action, log_prob = networks.policy.sample(key, state.actor.params, obs)
    q = min_q(networks.critic, state.critics.params, obs, action)
    return q - jnp.exp(state.log_alpha.params) * log_prob


METHOD = offline_sac.Method(networks_of, start, learn, value)


def make(config: Config) -> Algorithm:
    """EDAC or SAC-N with this config.

    Raises:
        UserError: a size is not positive, or a single critic is to be diversified.
    """
    check_positive(num_critics=config.num_critics)
    if config.diversity and config.num_critics < 2:
        raise UserError(f"num_critics={config.num_critics} cannot be kept apart; take 2 or more, or diversity=False")
    return offline_sac.make(config, METHOD, num_keys=3)


def _published(num_critics: int = 10, eta: float = 1.0) -> Preset:
    return Preset(Config(num_critics=num_critics), Hypers(eta=eta), "CORL, configs/offline/edac")


PRESETS = {
    "halfcheetah-medium": _published(),
    "halfcheetah-medium-replay": _published(),
    "halfcheetah-medium-expert": _published(eta=5.0),
    "hopper-medium": _published(num_critics=50),
    "hopper-medium-replay": _published(num_critics=50),
    "hopper-medium-expert": _published(num_critics=50),
    "walker2d-medium": _published(),
    "walker2d-medium-replay": _published(),
    "walker2d-medium-expert": _published(eta=5.0),
}

TRIAL = Trial(
    Config(batch_size=64, num_critics=3, hidden_sizes=(32, 32), learn_alpha=False),
    Hypers(actor_learning_rate=3e-4, critic_learning_rate=3e-3, discount=0.5, tau=0.1, initial_alpha=3e-3),
    updates=1500,
)

SPEC = AlgorithmSpec(
    Config,
    Hypers,
    make,
    TRIAL,
    action_spaces=(Box,),
    presets=PRESETS,
    offline=True,
    read_with={
        "alpha_learning_rate": {"learn_alpha": True},
        "target_entropy_scale": {"learn_alpha": True},
        "eta": {"diversity": True},
    },
    # SAC-N, as the docstring says.
    reduces_to=Reduction("edac", {"diversity": True}, {"eta": 0.0}, base_config={"diversity": False}),
    summary="SAC with N diversified critics; SAC-N without that term",
    source=Source(paper="An et al. 2021, arXiv 2110.01548", read="CORL, algorithms/offline/edac.py", level="B"),
)
