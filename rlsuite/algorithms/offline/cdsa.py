"""CDSA-style reconstruction: any offline learner's actions, corrected by the score of the dataset's density.

After CDSA, the conservative denoising score-based algorithm (Liu, Yang & Li 2024, arXiv 2406.07541). THIS IS A
RECONSTRUCTION, NOT THE AUTHORS' METHOD. They have published no code, and the parts of the paper that we had do not
state: the networks' sizes, the levels of noise, whether the density is the joint one of observation and action, how
inputs are normalised, the coefficients, the number of corrections, and where the score of the observation is taken. All
of that, every default below and every resulting number is ours. No published result of CDSA can be compared with it.

What is known of CDSA, and is so here: a model learns by denoising score matching the gradient of the log-density of the
dataset; the action of an offline policy is adjusted at decision time, and the policy's training is left as it is; what
the gradient says about states is turned into a correction of the action by an inverse dynamics model.

Deviations from what is known of the paper, and choices of ours:
- The score is that of the joint density of the normalised observation and the action in units of the action box.
- The models learn along with the policy instead of after it, one gradient step an update, on batches of their own,
  drawn as the dataset's sampling says. They are as old as the policy. The policy's learner keeps its own keys and
  networks, so that it learns the same bits as without.
- Observations are always normalised for the models, whether the policy's learner does so or not.
- The step towards likely states starts from the next observation that a forward model predicts (`forward_model`),
  where the score is taken at the base policy's own action there.
- Transitions that terminated or were truncated teach dynamics like any other: datasets here keep where they led.
- A stochastic environment is not refused. The inverse dynamics then learn a mean.
- `Algorithm.value` and `Algorithm.report` are those of the base: no critic knows of the correction.

Zero coefficients give the base policy, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from envs.core import Box
from envs.datasets import STD_FLOOR
from rlsuite.core import Algorithm, AlgorithmSpec, Clock, Metrics, Preset, Reduction, Source, Task, Trial
from rlsuite.errors import UserError, check_positive
from rlsuite.pieces import denoisers, dynamics, offline
from rlsuite.pieces.dynamics import Dynamics
from rlsuite.pieces.joint_settings import joined
from rlsuite.pieces.networks import MLP
from rlsuite.pieces.trained import Trained

Array = jax.Array
Params = Any

LABEL = "CDSA-style reconstruction"
"""the name that reports must use"""
MODELS = 0xCD5A
"""folded into the keys of the base's learner for the keys of the models; a split never uses an index this large"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings that shape the program, in addition to the base's."""

    model_batch_size: int = 256
    """CDSA-style: transitions in one gradient step of the models"""
    score_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """CDSA-style: hidden layers of the score network"""
    dynamics_hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """CDSA-style: hidden layers of the inverse and of the forward dynamics"""
    forward_model: bool = True
    """CDSA-style: take the score of states at the state that a forward model predicts, instead of at the present one"""
    correction_steps: int = 1
    """CDSA-style: corrections of an action, one after the other"""


class Hypers(NamedTuple):
    """Settings that may differ between the runs of one program, in addition to the base's."""

    score_learning_rate: float = 3e-4
    """CDSA-style: learning rate of the score network"""
    dynamics_learning_rate: float = 3e-4
    """CDSA-style: learning rate of the inverse and of the forward dynamics"""
    sigma_min: float = 0.01
    """CDSA-style: smallest noise that the score is learned at, log-uniform up to sigma_max; equal to it for one
    level"""
    sigma_max: float = 1.0
    """CDSA-style: largest noise that the score is learned at"""
    score_ema: float = 0.999
    """CDSA-style: share of the averaged score network that stays at each update"""
    sigma_eval: float = 0.1
    """CDSA-style: noise at which the score corrects actions"""
    action_coef: float = 0.05
    """CDSA-style: step of the action along its score, in sigma_eval^2; 0 turns this off"""
    state_coef: float = 0.1
    """CDSA-style: share of the action's change towards likelier states; 0 turns this off"""
    state_eta: float = 0.05
    """CDSA-style: step of the state along its score"""


class Guidance(NamedTuple):
    """The hyperparameters that `act` needs, kept in the state because `act` is not given any. All `[]`."""

    sigma: Array
    action_coef: Array
    state_coef: Array
    state_eta: Array


class Models(NamedTuple):
    """The models of the dataset."""

    score: Trained
    score_ema: Params
    """the average of `score` over the updates, which corrects actions"""
    dynamics: Trained
    """of a dictionary with `inverse`, and with `forward` if there is one"""


class State(NamedTuple):
    """All that one run carries from update to update."""

    base: Any
    """the state of the base's learner"""
    models: Models
    guidance: Guidance


class Networks(NamedTuple):
    """The architectures. Observations are normalised, actions in units of the box."""

    score: nn.Module
    dynamics: Dynamics


def correction(networks: Networks, state: State, policy: Callable[[Array], Array], obs: Array, action: Array) -> Array:
    """The change of an action: `[obs_dim]` normalised, `[action_dim]` -> `[action_dim]`, in units of the box.

    The first part moves the action itself to where it is likelier at this observation. The second part moves the next
    state by `state_eta` times the score there, and is the difference that this makes to the inverse dynamics.
    `policy` is the base's action at a normalised observation.
    """
    guidance, models, params = state.guidance, networks.dynamics, state.models.dynamics.params

    def scores(obs: Array, action: Array) -> tuple[Array, Array]:
        x = jnp.concatenate([obs, action])
        joint = denoisers.score(networks.score, state.models.score_ema, x, guidance.sigma)
        return joint[: obs.shape[0]], joint[obs.shape[0] :]

    state_score, action_score = scores(obs, action)
    if "forward" in params:
        change = models.predict(params, obs, action)
        state_score, _ = scores(obs + change, policy(obs + change))
        wanted = models.invert(params, obs, change + guidance.state_eta * state_score)
        steered = wanted - models.invert(params, obs, change)
    else:
        steered = models.invert(params, obs, guidance.state_eta * state_score)
    return guidance.action_coef * guidance.sigma**2 * action_score + guidance.state_coef * steered


def networks_of(config: Config, task: Task) -> Networks:
    """The architectures for this task."""
    assert isinstance(task.env.action_space, Box)
    obs_dim, action_dim = task.env.obs_dim, task.env.action_space.dim
    return Networks(
        MLP((*config.score_hidden_sizes, obs_dim + action_dim), nn.silu),
        Dynamics.of(config.dynamics_hidden_sizes, obs_dim, action_dim),
    )


def make(config: Config, base: Algorithm, split: Callable[[Any], Any]) -> Algorithm:
    """The base with its actions corrected. `split` takes the base's hyperparameters out of all of them.

    Raises:
        UserError: a size is not positive.
    """
    check_positive(model_batch_size=config.model_batch_size, correction_steps=config.correction_steps)

    def init(key: Array, task: Task, hypers: Any) -> State:
        score_key, inverse_key, forward_key = jax.random.split(jax.random.fold_in(key, MODELS), 3)
        networks = networks_of(config, task)
        assert isinstance(task.env.action_space, Box)
        obs, action = jnp.zeros(task.env.obs_dim), jnp.zeros(task.env.action_space.dim)
        params = networks.score.init(score_key, jnp.concatenate([obs, action, jnp.zeros(1)]))
        dynamics_params = networks.dynamics.init(inverse_key, forward_key, obs, action, config.forward_model)
        given = (hypers.sigma_eval, hypers.action_coef, hypers.state_coef, hypers.state_eta)
        return State(
            base=base.init(key, task, split(hypers)),
            models=Models(
                score=Trained.start(params, optax.adam(hypers.score_learning_rate)),
                score_ema=params,
                dynamics=Trained.start(dynamics_params, optax.adam(hypers.dynamics_learning_rate)),
            ),
            guidance=Guidance(*(jnp.asarray(value, jnp.result_type(float)) for value in given)),
        )

    def update(key: Array, task: Task, state: State, hypers: Any, clock: Clock) -> tuple[State, Metrics]:
        base_state, metrics = base.update(key, task, state.base, split(hypers), clock)
        networks, models = networks_of(config, task), state.models
        batch_key, sigma_key, noise_key = jax.random.split(jax.random.fold_in(key, MODELS), 3)
        batch = offline.sample(batch_key, task, (config.model_batch_size,), normalize_obs=True)
        uniform = jax.random.uniform(sigma_key, (config.model_batch_size,))
        sigma = denoisers.noise_levels(uniform, hypers.sigma_min, hypers.sigma_max)
        x = jnp.concatenate([batch.obs, batch.action], axis=-1)
        noise = jax.random.normal(noise_key, x.shape)

        score_error, grads = jax.value_and_grad(denoisers.score_loss)(
            models.score.params, networks.score, x, sigma, noise
        )
        trained_score = models.score.step(grads, optax.adam(hypers.score_learning_rate))
        grads, dynamics_metrics = jax.grad(dynamics.loss, has_aux=True)(
            models.dynamics.params, networks.dynamics, batch
        )
        models = Models(
            score=trained_score,
            score_ema=optax.incremental_update(trained_score.params, models.score_ema, 1.0 - hypers.score_ema),
            dynamics=models.dynamics.step(grads, optax.adam(hypers.dynamics_learning_rate)),
        )
        return State(base_state, models, state.guidance), metrics | {"score_loss": score_error} | dynamics_metrics

    def act(key: Array, task: Task, state: State, obs: Array) -> Array:
        networks, dataset, space = networks_of(config, task), offline.dataset_of(task), task.env.action_space
        assert isinstance(space, Box)
        low, high = jnp.asarray(space.low), jnp.asarray(space.high)
        half_width = 0.5 * (high - low)

        def units(action: Array) -> Array:
            return (action - low) / half_width - 1.0

        def policy(obs: Array) -> Array:
            raw = obs * (dataset.obs_std + STD_FLOOR) + dataset.obs_mean
            return units(base.act(key, task, state.base, raw))

        action = base.act(key, task, state.base, obs)
        for _ in range(config.correction_steps):
            shift = correction(networks, state, policy, dataset.normalize(obs), units(action))
            # In the environment's units: converting the base's action to units of the box and back would round it.
            action = jnp.where(shift == 0.0, action, jnp.clip(action + half_width * shift, low, high))
        return action

    def value(key: Array, task: Task, state: State, obs: Array) -> Array:
        assert base.value is not None
        return base.value(key, task, state.base, obs)

    return Algorithm(init, update, act, base.steps_per_update, None if base.value is None else value)


def around(name: str, spec: AlgorithmSpec) -> AlgorithmSpec:
    """An offline learner `name` with its actions corrected, a learner again: `Config` and `Hypers` hold the base's
    fields and then those above.

    Raises:
        UserError: the base learns online, or has a setting that is called like one of these.
    """
    if not spec.offline:
        raise UserError(f"'{name}' cannot be corrected: it learns online, and +cdsa needs an offline learner")
    joint = joined(name, spec, "cdsa", Config, Hypers)

    def make_both(config: Any) -> Algorithm:
        base, own = joint.split_config(config)
        return make(own, spec.make(base), joint.split_hypers)

    return DECLARED(
        joint.config,
        joint.hypers,
        make_both,
        Trial(
            joint.join_config(spec.trial.config, TRIAL.config),
            joint.hypers(*spec.trial.hypers, *TRIAL.hypers),
            max(spec.trial.updates, TRIAL.updates),
        ),
        prepare=spec.prepare,
        presets={
            key: Preset(
                joint.join_config(preset.config, Config()),
                joint.hypers(*preset.hypers, *Hypers()),
                f"{preset.source}; of the {LABEL} its defaults",
            )
            for key, preset in spec.presets.items()
        },
        label=f"{name} + {LABEL}",
        read_with=spec.read_with,
        reduces_to=Reduction(name, hypers={"action_coef": 0.0, "state_coef": 0.0}),
    )


TRIAL = Trial(
    Config(model_batch_size=32, score_hidden_sizes=(16, 16), dynamics_hidden_sizes=(16,)),
    Hypers(score_learning_rate=1e-3, dynamics_learning_rate=1e-3),
    updates=0,
)
"""The settings that are added to every base's trial."""

DECLARED = partial(
    AlgorithmSpec,
    action_spaces=(Box,),
    offline=True,
    summary="any offline learner, its actions corrected by the score of the dataset's density",
    source=Source(paper="after Liu, Yang and Li 2024, arXiv 2406.07541", read="the abstract", level="D"),
)
"""The part of `SPEC` that all corrected learners share."""
