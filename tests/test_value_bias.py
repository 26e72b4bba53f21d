"""The bias of a critic, where it is known: on probes in closed form, elsewhere against a step-by-step account."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import probes
from envs.core import Discrete, Env
from rlsuite import algorithms
from rlsuite.core import Task
from rlsuite.errors import UserError
from rlsuite.pieces.value_bias import Critique, value_bias
from rlsuite.training import batch, train

Array = jax.Array

GAMMA = 0.9
REPORTING = ("sac", "td3", "ddpg", "dsac", "dsac_t")


def bias(env: Env, critique: Any, episodes: int = 3) -> dict[str, float]:
    measure = jax.jit(value_bias, static_argnums=(2, 4))
    found = measure(jax.random.key(0), env, critique, GAMMA, episodes)
    return {name: float(value) for name, value in found.items()}


def knows(env_id: str, error: float = 0.0, bonus: float = 0.0) -> Any:
    """A critic that is wrong by `error` everywhere, of a policy with this bonus at each of its steps."""

    def critique(key: Array, obs: Array) -> Critique:
        right = probes.values(env_id, GAMMA)
        levels = jnp.asarray([x for (x,), _ in right])
        value = jnp.asarray([value for _, value in right])[jnp.argmin(jnp.abs(levels - obs[0]))]
        # With a bonus at every step for ever, the values grow by what it is worth.
        return Critique(jnp.zeros(1), jnp.float32(bonus), value + bonus / (1.0 - GAMMA) + error)

    return critique


@pytest.mark.parametrize("name", ["discount", "truncation"])
@pytest.mark.parametrize("error", [0.0, 0.7, -3.0])
def test_a_critic_that_is_wrong_by_a_constant_has_that_bias(name: str, error: float) -> None:
    env_id = f"probe/{name}/continuous"
    found = bias(envs.make(env_id), knows(env_id, error))
    assert found["value_bias"] == pytest.approx(error, abs=1e-4)


def test_an_end_on_the_step_of_the_limit_is_an_end() -> None:
    env_id = "probe/discount/continuous"
    assert bias(envs.make(env_id, max_episode_steps=2), knows(env_id, 0.7))["value_bias"] == pytest.approx(
        0.7, abs=1e-4
    )


def test_what_the_policy_counts_beside_the_reward_is_no_bias() -> None:
    env_id = "probe/truncation/continuous"
    assert bias(envs.make(env_id), knows(env_id, bonus=0.5))["value_bias"] == pytest.approx(0.0, abs=1e-4)
    assert bias(envs.make(env_id), knows(env_id, 2.0, bonus=0.5))["value_bias"] == pytest.approx(2.0, abs=1e-4)


def test_the_estimate_is_the_mean_over_all_steps() -> None:
    first, later = GAMMA / (1.0 - GAMMA), 1.0 / (1.0 - GAMMA)
    env_id = "probe/truncation/continuous"  # one step at [0], four at [1]
    assert bias(envs.make(env_id), knows(env_id))["value_estimate"] == pytest.approx((first + 4 * later) / 5, rel=1e-5)


@pytest.mark.parametrize("env_id", ["gymnax/CartPole-v1", "gymnax/Pendulum-v1"])
def test_agrees_with_an_account_of_every_step(env_id: str) -> None:
    """CartPole falls within the limit in some episodes and not in others; Pendulum always reaches it."""
    env, episodes = envs.make(env_id, max_episode_steps=40), 12
    space = env.action_space

    def critique(key: Array, obs: Array) -> Critique:
        upright = obs[2] + 0.3 * obs[-1]
        action: Array = jnp.int32(upright > 0) if isinstance(space, Discrete) else jnp.sin(7.0 * obs[:1])
        if isinstance(space, Discrete):
            action = jnp.where(jax.random.uniform(key) < 0.4, 1 - action, action)
        return Critique(action, jnp.cos(obs[0]), 3.0 + obs[1] * obs[2])

    found = bias(env, critique, episodes)

    # The same episodes, one after another, in float64 and from the definition.
    reset_key, loop_key = jax.random.split(jax.random.key(0))
    step, look = jax.jit(env.step), jax.jit(critique)
    keys = jax.jit(lambda n: jax.random.split(jax.random.fold_in(loop_key, n), episodes))
    excess, seen, estimates, ends = 0.0, 0.0, [], set()
    for i, key in enumerate(jax.random.split(reset_key, episodes)):
        state, obs = env.reset(key)
        values, rewards, t = [], [], 0
        while True:
            now = look(keys(2 * t)[i], obs)
            state, shown = step(keys(2 * t + 1)[i], state, now.action)
            values.append(float(now.value))
            rewards.append(float(shown.reward) + float(now.bonus))
            obs, t = shown.obs, t + 1
            if shown.terminated or shown.truncated:
                break
        ends.add(bool(shown.terminated))
        rest = 0.0 if shown.terminated else float(look(keys(2 * t)[i], obs).value)
        for start in range(t):
            discounts = GAMMA ** np.arange(t - start)
            cut = 0.0 if shown.terminated else GAMMA ** (t - start)
            excess += values[start] - (discounts @ np.asarray(rewards[start:]) + cut * rest)
            seen += 1.0 - cut
        estimates += values
    assert found["value_bias"] == pytest.approx(excess / seen, rel=1e-3)
    assert found["value_estimate"] == pytest.approx(np.mean(estimates), rel=1e-4)
    assert ends == ({True, False} if isinstance(space, Discrete) else {False})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "sac" else [pytest.mark.slow]) for name in REPORTING]
)
def test_a_trained_critic_reports_what_its_own_policy_then_gets(name: str) -> None:
    """Where a policy has entropy, this is counted for so much that leaving it out, or its wrong sign, is a bias."""
    spec = algorithms.get(name)
    algorithm = spec.make(dataclasses.replace(spec.trial.config, value_bias_episodes=4))
    task = Task(envs.make("probe/truncation/continuous"))
    hypers, one_device = spec.trial.hypers, jax.local_devices()[:1]
    entropy = 0.0
    if "initial_alpha" in hypers._fields:
        hypers = hypers._replace(initial_alpha=0.5)
        entropy = 0.5 * np.log(2.0) / (1.0 - hypers.discount)  # that of uniform actions, the best ones here
    programs = batch.compile_programs(algorithm, task, hypers, 2, 1, one_device).programs
    total = spec.trial.updates
    *_, last = train.train(programs, [0, 1], [hypers, hypers], total, [total])
    metrics = last.training.evaluation.metrics
    (_, first), (_, later) = probes.values("probe/truncation/continuous", hypers.discount)
    np.testing.assert_allclose(metrics["value_estimate"], (first + 4 * later) / 5 + entropy, atol=0.1)
    np.testing.assert_allclose(metrics["value_bias"], 0.0, atol=0.1)
    assert spec.make(spec.trial.config).report is None


def test_a_negative_number_of_episodes_is_refused() -> None:
    spec = algorithms.get("sac")
    with pytest.raises(UserError, match="value_bias_episodes=-1 must be at least 0"):
        spec.make(dataclasses.replace(spec.trial.config, value_bias_episodes=-1))
