"""Whole updates beside what the authors' own code made of the same numbers, in float64.

`tests/fixtures/originals/README.md` says where the numbers are from. Each test hands the original's parameters, batches
and random draws to an algorithm's own `update`, and compares all that it learns after five of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from numpy_nets import FloatArray, Tree, assert_close
from trained_states import params_of, with_adam

from envs import datasets
from envs.core import Box
from rlsuite.algorithms.off_policy import dsac_t, mdpo_off_policy, sac
from rlsuite.algorithms.offline import iql, prdc, td3_bc
from rlsuite.core import Algorithm, Clock, Task, Transition
from rlsuite.pieces import off_policy, offline, offline_td3, replay, rollout
from rlsuite.pieces.actor_critic import Networks, distribution, log_prob
from rlsuite.pieces.sampling_error import learns_in_fit, sampling_error, within_bounds

Case = dict[str, FloatArray]

FOLDER = Path(__file__).parent / "fixtures" / "originals"
OBS_DIM, ACTION_DIM, BATCH, HIDDEN = 5, 3, 32, (16, 16)
UPDATES = 5
TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@functools.cache
def load(name: str) -> Case:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def hyper(case: Case, name: str) -> float:
    return float(case[f"hyper/{name}"])


def torch_mlp(case: Case, prefix: str, layers: tuple[str, ...]) -> Tree:
    """The layers of this name as `MLP` has them; names with a comma are two heads on one layer, side by side."""

    def dense(names: str) -> Tree:
        heads = [f"{prefix}{name}" for name in names.split(",")]
        kernel = np.concatenate([case[f"{head}.weight"].T for head in heads], axis=1)
        return {"kernel": kernel, "bias": np.concatenate([case[f"{head}.bias"] for head in heads])}

    return {"params": {f"Dense_{i}": dense(names) for i, names in enumerate(layers)}}


def stacked(*nets: Tree) -> Tree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *nets)


@struct.dataclass
class Original:
    """An environment that is never stepped: all that algorithms ask of it while they learn."""

    half_width: tuple[float, ...] = struct.field(pytree_node=False, default=(1.0,) * ACTION_DIM)
    id: str = struct.field(pytree_node=False, default="original")
    obs_dim: int = struct.field(pytree_node=False, default=OBS_DIM)
    max_episode_steps: int = struct.field(pytree_node=False, default=1000)

    @property
    def action_space(self) -> Box:
        return Box(tuple(-width for width in self.half_width), self.half_width)


def batches_of(case: Case) -> Any:
    """`[UPDATES, BATCH, ...]`, as an offline learner draws them; nothing is truncated."""
    done = case["in/done"] > 0.5
    return datasets.Batch(
        obs=case["in/obs"],
        action=case["in/action"],
        reward=case["in/reward"],
        next_obs=case["in/next_obs"],
        next_action=np.full_like(case["in/action"], np.nan),
        terminated=done,
        truncated=np.zeros_like(done),
    )


def replayed(case: Case) -> Any:
    """The same as a replay buffer draws them, for one gradient step an update."""
    batch = batches_of(case)
    fields = (batch.obs, batch.action, batch.reward, batch.next_obs, batch.terminated, batch.truncated)
    return Transition(*(field[:, None] for field in fields))


def learned(
    algorithm: Algorithm,
    task: Task,
    state: Any,
    hypers: Any,
    batches: Any,
    draws: list[FloatArray],
    first_update: int = 0,
    budget: int = 40,
) -> list[Any]:
    """The state after each of the updates, which are given `batches` and normal `draws`, both `[UPDATES, ...]`.

    Draws of one shape are taken in turn. Nothing is collected and nothing stored: `draws` and `batches` stand for it.
    """

    @jax.jit
    def step(state: Any, batch: Any, draws: list[jax.Array], clock: Clock) -> Any:
        turns = {draw.shape: itertools.cycle([x for x in draws if x.shape == draw.shape]) for draw in draws}

        def collect(key: Any, env: Any, carry: Any, policy: Any, num_steps: int) -> Any:
            return carry, Transition(*[jnp.zeros((num_steps, 1, 1))] * 6), None

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollout, "collect", collect)
            patch.setattr(replay, "add_rollout", lambda buffer, *_: buffer)
            patch.setattr(replay, "sample", lambda *_: batch)
            patch.setattr(offline, "sample", lambda *_, **__: batch)
            patch.setattr(jax.random, "normal", lambda key, shape: next(turns[shape]))
            return algorithm.update(jax.random.key(0), task, state, hypers, clock)[0]

    states = []
    for k in range(UPDATES):
        batch, drawn = jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), (batches, draws))
        state = step(state, batch, drawn, Clock(jnp.int32(first_update + k), jnp.asarray(k / budget)))
        states.append(state)
    return states


def assert_equal_to(learner: Any, params: dict[str, Tree], tolerance: float = TOLERANCE) -> None:
    """The fields that `params` names are these."""
    found = params_of(learner)._asdict()
    assert_close({name: found[name] for name in params}, params, tolerance)


def on_device(params: dict[str, Tree]) -> dict[str, Tree]:
    return jax.tree.map(jnp.asarray, params)


def online(learner: Any) -> dict[str, Any]:
    """The fields of an off-policy learner's state; there is no buffer, and only the observation of an environment."""
    return {"learner": learner, "buffer": None, "envs": rollout.EnvCarry(None, jnp.zeros((1, OBS_DIM)))}


# --- SAC --------------------------------------------------------------------------------------------------------------


def sac_params(case: Case, when: str) -> dict[str, Tree]:
    def critics(suffix: str) -> Tree:
        return stacked(*(torch_mlp(case, f"{when}/qf{i}{suffix}.", ("fc1", "fc2", "fc3")) for i in (1, 2)))

    return {
        "actor": torch_mlp(case, f"{when}/actor.", ("fc1", "fc2", "fc_mean,fc_logstd")),
        "critics": critics(""),
        "target_critics": critics("_target"),
        "log_alpha": case[f"{when}/log_alpha"][0],
    }


@pytest.mark.parametrize(("name", "cleanrl"), [("cleanrl_sac", True), ("cleanrl_sac_edited", False)])
def test_sac_in_both_forms(name: str, cleanrl: bool) -> None:
    case = load(name)
    config = sac.Config(batch_size=BATCH, buffer_size=BATCH, warmup_steps=1, hidden_sizes=HIDDEN, cleanrl=cleanrl)
    hypers = sac.Hypers(
        actor_learning_rate=hyper(case, "policy_lr"),
        critic_learning_rate=hyper(case, "q_lr"),
        alpha_learning_rate=hyper(case, "q_lr"),
        discount=hyper(case, "gamma"),
        tau=hyper(case, "tau"),
    )
    params = on_device(sac_params(case, "init"))
    learner = with_adam(sac.Learner(**params))
    actor_noises = [case["noise/action"], case["noise/alpha"]] if cleanrl else [case["noise/action"]]
    states = learned(
        sac.make(config),
        Task(Original(tuple(case["hyper/high"].tolist()))),
        off_policy.State(**online(learner)),
        hypers,
        replayed(case),
        [case["noise/next_action"], np.stack(actor_noises, axis=1)],
        first_update=1,
    )
    assert_equal_to(states[-1].learner, sac_params(case, "out5"))


# --- DSAC-T -----------------------------------------------------------------------------------------------------------


def dsac_t_params(case: Case, when: str) -> dict[str, Tree]:
    layers = ("0", "2", "4", "6")

    def critics(suffix: str) -> Tree:
        return stacked(*(torch_mlp(case, f"{when}/q{i}{suffix}.q.", layers) for i in (1, 2)))

    return {
        "actor": torch_mlp(case, f"{when}/policy.policy.", layers),
        "target_actor": torch_mlp(case, f"{when}/policy_target.policy.", layers),
        "critics": critics(""),
        "target_critics": critics("_target"),
        "b": np.stack([case[f"{when}/mean_std1"], case[f"{when}/mean_std2"]]),
        "log_alpha": case[f"{when}/log_alpha"],
    }


def test_dsac_t_with_the_loss_of_2025() -> None:
    case = load("dsac_t_huber")
    config = dsac_t.Config(
        batch_size=BATCH, buffer_size=BATCH, warmup_steps=1, hidden_sizes=(*HIDDEN, HIDDEN[-1]), huber=True
    )
    hypers = dsac_t.Hypers(
        actor_learning_rate=hyper(case, "policy_learning_rate"),
        critic_learning_rate=hyper(case, "value_learning_rate"),
        alpha_learning_rate=hyper(case, "alpha_learning_rate"),
        discount=hyper(case, "gamma"),
        tau=hyper(case, "tau"),
        tau_b=hyper(case, "tau_b"),
    )
    params = on_device(dsac_t_params(case, "init"))
    learner = with_adam(dsac_t.Learner(**params))
    returns = np.stack([case["noise/return_1"], case["noise/return_2"]], axis=1)
    states = learned(
        dsac_t.make(config),
        Task(Original(tuple(case["hyper/action_high_limit"].tolist()))),
        off_policy.State(**online(learner)),
        hypers,
        replayed(case),
        # The next action's noise is drawn first, the actor's last.
        [case["noise/next_action"], returns, case["noise/action"]],
        first_update=1,
    )
    assert_equal_to(states[-1].learner, dsac_t_params(case, "out5"))


# --- Off-policy MDPO --------------------------------------------------------------------------------------------------


def tensorflow_adam(learning_rate: float) -> optax.GradientTransformation:
    """TensorFlow 1's: epsilon is added before the bias correction, and all constants are those of float32."""
    rate, decay_1, decay_2, eps = (float(np.float32(x)) for x in (learning_rate, 0.9, 0.999, 1e-8))
    # What a float32 accumulator makes of decay^t.
    powers_1, powers_2 = (
        jnp.asarray(np.cumprod(np.full(UPDATES, decay, np.float32)), jnp.float64) for decay in (decay_1, decay_2)
    )

    def init(params: Tree) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.int32(0), zeros, zeros

    def update(grads: Tree, state: Any, params: Tree = None) -> Any:
        count, mean, square = state
        mean = jax.tree.map(lambda m, g: m + (g - m) * (1.0 - decay_1), mean, grads)
        square = jax.tree.map(lambda v, g: v + (g**2 - v) * (1.0 - decay_2), square, grads)
        scale = rate * jnp.sqrt(1.0 - powers_2[count]) / (1.0 - powers_1[count])
        steps = jax.tree.map(lambda m, v: -scale * m / (jnp.sqrt(v) + eps), mean, square)
        return steps, (count + 1, mean, square)

    return optax.GradientTransformation(init, update)


def mdpo_params(case: Case, when: str) -> dict[str, Tree]:
    def mlp(prefix: str, *layers: str) -> Tree:
        def dense(names: str) -> Tree:
            heads = [f"{when}/{prefix}/{name}" for name in names.split(",")]
            return {
                "kernel": np.concatenate([case[f"{head}/kernel"] for head in heads], axis=1),
                "bias": np.concatenate([case[f"{head}/bias"] for head in heads]),
            }

        return {"params": {f"Dense_{i}": dense(names) for i, names in enumerate(layers)}}

    return {
        "actor": mlp("model/pi", "fc0", "fc1", "dense,dense_1"),
        "old_actor": mlp("old/pi", "fc0", "fc1", "dense,dense_1"),
        "critics": stacked(*(mlp(f"model/values_fn/qf{i}", "fc0", "fc1", f"qf{i}") for i in (1, 2))),
        "value": mlp("model/values_fn/vf", "fc0", "fc1", "vf"),
        "target_value": mlp("target/values_fn/vf", "fc0", "fc1", "vf"),
    }


def mdpo_states(case: Case, mean_log_prob: bool) -> list[Any]:
    """After each update, with the Adam of the code."""
    config = mdpo_off_policy.Config(
        batch_size=BATCH,
        buffer_size=BATCH,
        warmup_steps=2,
        hidden_sizes=HIDDEN,
        sgd_steps=int(hyper(case, "gradient_steps")),
        mean_log_prob=mean_log_prob,
    )
    params = on_device(mdpo_params(case, "init"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax, "adam", tensorflow_adam)
        learner = with_adam(mdpo_off_policy.Learner(**params))
        return learned(
            mdpo_off_policy.make(config),
            Task(Original()),
            off_policy.State(**online(learner)),
            mdpo_hypers(case),
            replayed(case),
            [case["noise/action"]],
            first_update=2,
        )


def mdpo_hypers(case: Case) -> mdpo_off_policy.Hypers:
    return mdpo_off_policy.Hypers(
        actor_learning_rate=hyper(case, "actor_lr"),
        critic_learning_rate=hyper(case, "critic_lr"),
        discount=hyper(case, "gamma"),
        tau=hyper(case, "tau"),
        kl_coef=hyper(case, "klconst"),
        entropy_coef=hyper(case, "lamda"),
        tsallis_q=hyper(case, "tsallis_q"),
    )


def test_off_policy_mdpo_with_the_mean_over_the_batch() -> None:
    case = load("mdpo_off_policy")
    states = mdpo_states(case, True)
    assert_equal_to(states[0].learner, mdpo_params(case, "out1"))
    assert_equal_to(states[-1].learner, mdpo_params(case, "out5"))


def test_off_policy_mdpo_per_sample_differs_from_the_code_in_the_value_alone() -> None:
    case = load("mdpo_off_policy")
    (first, *_) = mdpo_states(case, False)
    want = mdpo_params(case, "out1")
    value_params = {name: want.pop(name) for name in ("value", "target_value")}
    assert_equal_to(first.learner, want)
    with pytest.raises(AssertionError, match="is off by"):
        assert_equal_to(first.learner, value_params, 1e-3)


def test_what_off_policy_mdpo_leaves_out_of_the_loss_of_the_code_is_a_variance() -> None:
    case = load("mdpo_off_policy")
    networks = mdpo_off_policy.networks_of(mdpo_off_policy.Config(hidden_sizes=HIDDEN), Original())
    params, hypers = on_device(mdpo_params(case, "init")), mdpo_hypers(case)
    learner = with_adam(mdpo_off_policy.Learner(**params))

    @jax.jit
    def losses(learner: Any, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = mdpo_off_policy.draw(networks.policy, learner.actor.params, obs, noise)
        log_prob = mdpo_off_policy.log_q_prob(drawn.log_density, hypers.tsallis_q)
        mean_loss = mdpo_off_policy.value_loss(learner.value.params, networks, learner, obs, noise, hypers, True)[0]
        return mean_loss, 0.5 * jnp.var(hypers.entropy_coef * log_prob)

    mean_loss, constant = losses(learner, jnp.asarray(case["in/obs"][0]), jnp.asarray(case["noise/action"][0]))
    assert constant > 0.01
    assert float(mean_loss + constant) == pytest.approx(case["loss/value_loss"][0], rel=TOLERANCE)


# --- Offline ----------------------------------------------------------------------------------------------------------


def twins(case: Case, prefixes: tuple[str, str], layers: tuple[tuple[str, ...], tuple[str, ...]]) -> Tree:
    return stacked(*(torch_mlp(case, prefix, of) for prefix, of in zip(prefixes, layers, strict=True)))


def td3_bc_params(case: Case, when: str) -> dict[str, Tree]:
    layers = ("0", "2", "4")

    def critics(suffix: str) -> Tree:
        return twins(case, (f"{when}/critic_1{suffix}.net.", f"{when}/critic_2{suffix}.net."), (layers, layers))

    return {
        "actor": torch_mlp(case, f"{when}/actor.net.", layers),
        "target_actor": torch_mlp(case, f"{when}/actor_target.net.", layers),
        "critics": critics(""),
        "target_critics": critics("_target"),
    }


def prdc_params(case: Case, when: str) -> dict[str, Tree]:
    first, second = ("l1", "l2", "l3"), ("l4", "l5", "l6")

    def critics(suffix: str) -> Tree:
        return twins(case, (f"{when}/critic{suffix}.",) * 2, (first, second))

    return {
        "actor": torch_mlp(case, f"{when}/actor.", first),
        "target_actor": torch_mlp(case, f"{when}/actor_target.", first),
        "critics": critics(""),
        "target_critics": critics("_target"),
    }


def td3_state(params: dict[str, Tree]) -> offline_td3.State:
    """That of TD3+BC and of PRDC."""
    return with_adam(offline_td3.State(**on_device(params)))


def test_td3_bc() -> None:
    case = load("td3_bc")
    config = td3_bc.Config(batch_size=BATCH, hidden_sizes=HIDDEN, normalize_obs=False)
    hypers = td3_bc.Hypers(
        actor_learning_rate=hyper(case, "actor_lr"),
        critic_learning_rate=hyper(case, "critic_lr"),
        discount=hyper(case, "discount"),
        tau=hyper(case, "tau"),
        alpha=hyper(case, "alpha"),
        target_noise=hyper(case, "policy_noise"),
        target_noise_clip=hyper(case, "noise_clip"),
    )
    state = td3_state(td3_bc_params(case, "init"))
    task, draws = Task(Original()), [case["noise/target"]]
    states = learned(td3_bc.make(config), task, state, hypers, batches_of(case), draws)
    assert_equal_to(states[-1], td3_bc_params(case, "out5"))


def recorded(case: Case) -> datasets.Dataset:
    """The dataset of PRDC in float64, which a dataset of our own is not, with the blocks of the one in float32."""
    end = case["data/terminals"] > 0.5
    records = datasets.Records(
        obs=case["data/observations"],
        action=case["data/actions"],
        reward=case["data/rewards"],
        next_obs=case["data/next_observations"],
        next_action=case["data/actions"],
        terminated=end,
        truncated=np.arange(len(end)) == len(end) - 1,
        episode=np.concatenate([[0], np.cumsum(end)[:-1]]),
        episode_return=np.zeros(int(end[:-1].sum()) + 1),
        complete=np.ones(int(end[:-1].sum()) + 1, bool),
    )
    dataset = datasets.with_blocks(datasets.build("prdc", records, Original().action_space, source="the original's"))
    columns = (records.obs, records.action, records.reward[:, None], records.next_obs, records.next_action)
    rows = np.concatenate([*columns, end[:, None], np.zeros((len(end), 1))], axis=1)
    dataset = dataset.replace(rows=rows, obs_mean=records.obs.mean(axis=0), obs_std=records.obs.std(axis=0))
    on_this_device: datasets.Dataset = jax.tree.map(jnp.asarray, dataset)
    return on_this_device


def test_prdc() -> None:
    case = load("prdc")
    config = prdc.Config(batch_size=BATCH, hidden_sizes=HIDDEN, k=int(hyper(case, "k")))
    hypers = prdc.Hypers(
        actor_learning_rate=hyper(case, "actor_lr"),
        critic_learning_rate=hyper(case, "critic_lr"),
        discount=hyper(case, "discount"),
        tau=hyper(case, "tau"),
        alpha=hyper(case, "alpha"),
        beta=hyper(case, "beta"),
        target_noise=hyper(case, "policy_noise"),
        target_noise_clip=hyper(case, "noise_clip"),
        reward_scale=hyper(case, "scale"),
        reward_shift=hyper(case, "shift"),
    )
    dataset = recorded(case)
    batches = dataset.unpack(dataset.rows[case["in/idx"].astype(int)])
    state = td3_state(prdc_params(case, "init"))
    task, draws = Task(Original(), dataset), [case["noise/target"]]
    states = learned(prdc.make(config), task, state, hypers, batches, draws)
    assert_equal_to(states[-1], prdc_params(case, "out5"))


def iql_params(case: Case, when: str) -> dict[str, Tree]:
    layers = ("0", "2", "4")

    def critics(name: str) -> Tree:
        return twins(case, (f"{when}/{name}.q1.net.", f"{when}/{name}.q2.net."), (layers, layers))

    return {
        "actor": iql.Actor(torch_mlp(case, f"{when}/actor.net.net.", layers), case[f"{when}/actor.log_std"]),
        "critics": critics("qf"),
        "target_critics": critics("q_target"),
        "value": torch_mlp(case, f"{when}/vf.v.net.", layers),
    }


def test_iql() -> None:
    case = load("iql")
    config = iql.Config(batch_size=BATCH, hidden_sizes=HIDDEN, normalize_obs=False)
    hypers = iql.Hypers(
        actor_learning_rate=hyper(case, "actor_lr"),
        critic_learning_rate=hyper(case, "critic_lr"),
        value_learning_rate=hyper(case, "value_lr"),
        discount=hyper(case, "discount"),
        tau=hyper(case, "tau"),
        expectile=hyper(case, "iql_tau"),
        beta=hyper(case, "beta"),
        max_weight=hyper(case, "exp_adv_max"),
    )
    state = with_adam(iql.State(**on_device(iql_params(case, "init"))))
    task, budget = Task(Original()), int(hyper(case, "max_steps"))
    states = learned(iql.make(config), task, state, hypers, batches_of(case), [], budget=budget)
    assert_equal_to(states[-1], iql_params(case, "out5"))


# --- Sampling error ---------------------------------------------------------------------------------------------------


def test_sampling_error() -> None:
    case = load("props_sampling_error")
    networks = Networks(HIDDEN, Original().action_space)
    policy = torch_mlp(case, "init/agent.actor_mean.", ("0", "2", "4"))["params"]
    actor = on_device({"policy": policy, "log_std": case["init/agent.actor_logstd"][0]})

    @jax.jit
    def measured(actor: Tree, obs: jax.Array, action: jax.Array) -> jax.Array:
        return sampling_error(
            lambda actor: log_prob(distribution(networks, actor, obs), action),
            actor,
            learns_in_fit(actor),
            jnp.ones(len(obs), bool),
            num_steps=2000,
            project=within_bounds,
        )

    got = measured(actor, jnp.asarray(case["in/obs"]), jnp.asarray(case["in/action"]))
    # PyTorch adds 1e-6 to the norm that it clips gradients by.
    assert float(got) == pytest.approx(float(case["out/sampling_error"]), rel=1e-6)
