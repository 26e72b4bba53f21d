"""What the CDSA-style reconstruction must be beside its losses: a right score, and no change to its base."""

from __future__ import annotations

import dataclasses
import functools
import runpy
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import linen as nn
from numpy_nets import HIGH, LOW, Toy

from envs import datasets
from envs.datasets import Dataset, Records
from rlsuite import algorithms
from rlsuite.algorithms.offline import cdsa
from rlsuite.commands.options import field_texts
from rlsuite.core import Algorithm, AlgorithmSpec, Preset, Task
from rlsuite.errors import UserError
from rlsuite.pieces import denoisers
from rlsuite.pieces.networks import MLP
from rlsuite.sweeping import checks, job, sweep
from rlsuite.training import train

Array = jax.Array
OBS_DIM = ACTION_DIM = 3
SIZE = 20_000
SPREAD = 0.2
"""of actions, in units of the box, whose ends lie at five of these"""


def mixing() -> np.ndarray:
    """`[6, 6]`: what makes six correlated numbers of variance 1 from six independent ones."""
    rows = np.eye(6) + 0.5 * np.tril(np.random.default_rng(0).normal(size=(6, 6)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@functools.cache
def gaussian() -> Dataset:
    """Observations and actions from one correlated Gaussian, in a box that is neither centred nor of width 2."""
    z = np.random.default_rng(1).normal(size=(SIZE, 6)) @ mixing().T
    obs = z[:, :OBS_DIM] * [2.0, 0.5, 1.0] + [1.0, -3.0, 0.0]
    unit = np.clip(SPREAD * z[:, OBS_DIM:], -1.0, 1.0)
    action = LOW + 0.5 * (HIGH - LOW) * (unit + 1.0)
    episode = np.arange(SIZE) // 100
    return datasets.build(
        "gaussian",
        Records(
            obs=obs,
            action=action,
            reward=obs[:, 0],
            next_obs=np.roll(obs, -1, axis=0),
            next_action=action,
            terminated=np.zeros(SIZE, bool),
            truncated=np.arange(SIZE) % 100 == 99,
            episode=episode,
            episode_return=np.zeros(SIZE // 100),
            complete=np.ones(SIZE // 100, bool),
        ),
        Toy().action_space,
        source="a Gaussian",
    )


def trained(algorithm: Algorithm, hypers: Any, updates: int) -> Any:
    """The state after so many updates, as the training loop makes them."""

    @jax.jit
    def run(task: Task) -> Any:
        seed, zero, stop = jnp.uint32(0), jnp.int32(0), jnp.int32(updates)
        learning = train.init(algorithm, task, seed, hypers)
        return train.segment(algorithm, task, learning, seed, hypers, zero, stop, stop, zero).state

    return run(Task(Toy(), gaussian()))


def small(name: str, **settings: Any) -> tuple[Algorithm, Any]:
    """The algorithm with small networks, and its hypers with these."""
    spec = algorithms.get(name)
    config = spec.trial.config
    return spec.make(config), spec.trial.hypers._replace(**settings)


LEVEL = 0.3


def test_the_score_of_a_gaussian_is_the_analytic_one() -> None:
    """-(Sigma + sigma^2 I)^-1 (x - mu), in the coordinates that the network sees."""
    spec = algorithms.get("bc+cdsa")
    hidden = (32, 32)
    config = spec.config(
        batch_size=1,
        hidden_sizes=(1,),
        score_hidden_sizes=hidden,
        dynamics_hidden_sizes=(1,),
        forward_model=False,
    )
    hypers = spec.hypers(score_learning_rate=3e-3, score_ema=0.998, sigma_min=LEVEL, sigma_max=LEVEL)
    state = trained(spec.make(config), hypers, 2500)

    dataset = gaussian()
    batch = dataset.transitions
    x = np.concatenate([np.asarray(dataset.normalize(batch.obs)), np.asarray(batch.action)], axis=1)[::40]
    network = MLP((*hidden, 6), nn.silu)
    got = np.asarray(denoisers.score(network, state.models.score_ema, jnp.asarray(x), jnp.full(len(x), LEVEL)))

    # From the distribution, not from the sample, but for the statistics by which observations are normalised.
    scale = np.concatenate([[2.0, 0.5, 1.0] / (np.asarray(dataset.obs_std) + 1e-3), [SPREAD] * ACTION_DIM])
    mean = np.concatenate([np.asarray(dataset.normalize(jnp.asarray([1.0, -3.0, 0.0]))), np.zeros(ACTION_DIM)])
    covariance = scale[:, None] * (mixing() @ mixing().T) * scale
    assert np.max(np.abs(np.corrcoef(covariance) - np.eye(6))) > 0.5, "this would be too easy"
    want = -(x - mean) @ np.linalg.inv(covariance + LEVEL**2 * np.eye(6))
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


@functools.cache
def compared() -> tuple[Any, Any]:
    """The states of TD3+BC alone and of TD3+BC with the models beside it, after the same updates."""
    alone, hypers = small("td3_bc")
    both, all_hypers = small("td3_bc+cdsa")
    return trained(alone, hypers, 25), trained(both, all_hypers, 25)


def test_the_base_learns_the_same_bits() -> None:
    alone, both = compared()
    chex.assert_trees_all_equal(both.base, alone)
    moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), both.models.score.params, both.models.score_ema)
    assert all(jax.tree.leaves(moved))


def actions(name: str, state: Any) -> np.ndarray:
    """At the dataset's first observations, in one jitted batch."""
    algorithm, _ = small(name)
    act = jax.jit(lambda task, state, obs: jax.vmap(lambda o: algorithm.act(jax.random.key(0), task, state, o))(obs))
    task = Task(Toy(), gaussian())
    return np.asarray(act(task, state, task.dataset.transitions.obs[:500]))


def test_zero_coefficients_are_exactly_the_base_policy() -> None:
    alone, both = compared()
    nothing = jnp.float32(0.0)
    guidance = both.guidance._replace(action_coef=nothing, state_coef=nothing)
    base = actions("td3_bc", alone)
    assert actions("td3_bc+cdsa", both._replace(guidance=guidance)).tobytes() == base.tobytes()
    for name in ("action_coef", "state_coef"):
        one = guidance._replace(**{name: jnp.float32(0.5)})
        assert np.mean(actions("td3_bc+cdsa", both._replace(guidance=one)) != base) > 0.9


def test_the_coefficients_are_those_of_the_hypers() -> None:
    algorithm, hypers = small("bc+cdsa", sigma_eval=0.5, action_coef=0.25, state_coef=0.125, state_eta=2.0)
    init = jax.jit(algorithm.init, compiler_options={"xla_backend_optimization_level": 0})
    guidance = init(jax.random.key(0), Task(Toy(), gaussian()), hypers).guidance
    assert [float(x) for x in guidance] == [0.5, 0.25, 0.125, 2.0]


# The registry and the names.


def test_any_offline_learner_has_a_corrected_one() -> None:
    for name, spec in algorithms.registered().items():
        if spec.offline and not name.endswith("+cdsa"):
            corrected = algorithms.get(name + "+cdsa")
            assert corrected is algorithms.get(name + "+cdsa")
            assert corrected.hypers()._fields == spec.hypers()._fields + cdsa.Hypers._fields
            fields = [field.name for of in (spec.config, cdsa.Config) for field in dataclasses.fields(of)]
            assert [field.name for field in dataclasses.fields(corrected.config)] == fields
            assert corrected.make(corrected.config()).steps_per_update == 1
    assert algorithms.get("td3_bc+cdsa") is algorithms.registered()["td3_bc+cdsa"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("td3_bcc+cdsa", "unknown algorithm 'td3_bcc+cdsa'; did you mean 'td3_bc+cdsa'?"),
        ("bc+cds", "unknown algorithm 'bc+cds'; did you mean 'bc+cdsa'?"),
        ("bc+cdsa+cdsa", "unknown algorithm 'bc+cdsa+cdsa'; did you mean 'bc+cdsa'?"),
        ("+cdsa", "unknown algorithm '+cdsa'; did you mean 'bc+cdsa'?"),
        ("sac+cdsa", "'sac' cannot be corrected: it learns online, and +cdsa needs an offline learner"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        algorithms.get(name)
    assert str(raised.value) == message


def test_settings_of_one_name_are_refused() -> None:
    spec = algorithms.get("bc")
    other = dataclasses.make_dataclass("Other", [("correction_steps", int, 1)], bases=(spec.config,), frozen=True)
    with pytest.raises(UserError, match="'x' and cdsa both have a setting 'correction_steps'"):
        cdsa.around("x", dataclasses.replace(spec, config=other))


def test_presets_of_the_base_hold() -> None:
    spec = algorithms.get("bc")
    bc_config, bc_hypers = spec.config, spec.hypers
    tuned = Preset(bc_config(batch_size=7), bc_hypers(0.125), "somebody")
    corrected: AlgorithmSpec = cdsa.around("bc", dataclasses.replace(spec, presets={"hopper-medium": tuned}))
    preset = corrected.preset("", "mujoco/hopper/medium-v0")
    assert preset.source == "somebody; of the CDSA-style reconstruction its defaults"
    assert preset.config == corrected.config(batch_size=7) and preset.hypers == corrected.hypers(0.125)
    assert type(preset.config) is corrected.config and type(preset.hypers) is corrected.hypers


def test_what_cannot_work_is_refused_by_name() -> None:
    spec = algorithms.get("td3_bc+cdsa")
    for name in ("batch_size", "policy_delay", "model_batch_size", "correction_steps"):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1"):
            spec.make(spec.config(**{name: 0}))


def test_every_setting_of_the_models_is_explained() -> None:
    for owner in (algorithms.get("td3_bc+cdsa").config, algorithms.get("td3_bc+cdsa").hypers):
        texts = field_texts(owner)
        assert texts["alpha" if owner is not algorithms.get("td3_bc+cdsa").config else "policy_delay"]
        own = cdsa.Config if owner is algorithms.get("td3_bc+cdsa").config else cdsa.Hypers
        assert all(texts[name].startswith("CDSA-style: ") for name in own.__annotations__)


def test_reports_call_it_a_reconstruction() -> None:
    cell = sweep.Cell("td3_bc+cdsa", "gymnax/Pendulum-v1", steps=10, dataset="gymnax/Pendulum-v1/medium")
    shard = job.resolve("x", cell)
    assert shard.label == "td3_bc + CDSA-style reconstruction"
    for name in (shard.label, "td3_bc+cdsa"):
        checks.check_file_name("label", name)


# benchmarks/cdsa_risk.py

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "cdsa_risk.py"


def test_value_at_risk_of_known_returns() -> None:
    statistics = runpy.run_path(str(SCRIPT))["statistics"]
    returns = np.arange(20.0)[::-1].reshape(4, 5)
    np.testing.assert_allclose(statistics(returns, 0.1), [9.5, 1.0, 0.5])  # of 0, 1, ..., 19 the worst two
    np.testing.assert_allclose(statistics(np.stack([returns, returns + 1]), 0.05), [[9.5, 0, 0], [10.5, 1, 1]])
    np.testing.assert_allclose(statistics(np.ones((1, 10)), 0.1), 1.0)


def test_risk_is_that_of_the_last_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, shift in (("base", 0.0), ("corrected", 2.0)):
        rows = [
            {"label": label, "environment": "e", "run": run, "seed": run, "step": step, "episode_returns": returns}
            for step, offset in ((0, -100.0), (50, 0.0))
            for run in (0, 1)
            for returns in [[offset + shift + 10.0 * run + x for x in range(10)]]
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{label}.parquet")
    runpy.run_path(str(SCRIPT))["main"](tmp_path, ("base", "corrected"), 0.1)
    lines = capsys.readouterr().out.split("\n")
    assert lines[1] == "| e, 2 runs of 10 episodes | mean | VaR 10 % | CVaR 10 % |"
    assert lines[3].startswith("| base | 9.50 [4.50, 14.50] | 1.00 [0.00, 10.00] | 0.50 [0.00, 10.")
    assert lines[5] == "| difference, run by run | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] | 2.00 [2.00, 2.00] |"
    with pytest.raises(ValueError, match="no results labelled 'bas'"):
        runpy.run_path(str(SCRIPT))["main"](tmp_path, ("bas", "corrected"), 0.1)
