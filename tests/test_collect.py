"""Datasets made here: whole episodes, the tiers, and what is written of them."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from rlsuite import algorithms
from rlsuite.commands import cli
from rlsuite.core import Algorithm, Task, Transition
from rlsuite.errors import UserError
from rlsuite.sweeping import catalogue, collect, policies, recipes
from rlsuite.sweeping.collect import first_of, joined, records_of
from rlsuite.sweeping.recipes import Recipe

ENV = "probe/action/continuous"


def steps(done: list[list[str]]) -> Transition:
    """Transitions `[time, num_envs]` numbered in the order of time; an entry `x` terminates, `t` truncates."""
    ends = np.array(done)
    time, num_envs = ends.shape
    number = np.arange(time * num_envs, dtype=np.float32).reshape(time, num_envs)
    fields: Any = {
        "obs": number[..., None],
        "action": number[..., None] / 100,
        "reward": number,
        "next_obs": number[..., None] + 0.5,
        "terminated": (ends == "x") | (ends == "b"),
        "truncated": (ends == "t") | (ends == "b"),
    }
    return Transition(**fields)


def test_records_are_whole_episodes_of_one_environment_after_the_other() -> None:
    records = records_of(steps([[".", "x"], ["t", "."], [".", "b"], [".", "."]]))
    # Environment 0: steps 0 and 2, then no end; environment 1: step 1, then 3 and 5.
    np.testing.assert_array_equal(records.obs[:, 0], [0, 2, 1, 3, 5])
    np.testing.assert_array_equal(records.next_obs[:, 0], [0.5, 2.5, 1.5, 3.5, 5.5])
    np.testing.assert_array_equal(records.episode, [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(records.episode_return, [2, 1, 8])
    np.testing.assert_array_equal(records.terminated, [False, False, True, False, True])
    # Where both flags are set it terminated.
    np.testing.assert_array_equal(records.truncated, [False, True, False, False, False])
    # The action that followed; at an end the action itself.
    np.testing.assert_allclose(records.next_action[:, 0], [0.02, 0.02, 0.01, 0.05, 0.05])


def test_no_more_episodes_of_each_environment_than_asked_for() -> None:
    records = records_of(steps([[".", "x"], ["t", "."], [".", "x"]]), most=1)
    np.testing.assert_array_equal(records.obs[:, 0], [0, 2, 1])


def test_no_episode_is_an_error() -> None:
    with pytest.raises(ValueError, match="no episode ended within 2 steps of 1 environments; take more"):
        records_of(steps([["."], ["."]]))


def test_a_part_ends_as_by_a_time_limit() -> None:
    records = records_of(steps([["x", "."], [".", "."], [".", "x"], ["t", "t"]]))  # lengths 1, 3, 3, 1
    cut = first_of(records, 3)
    np.testing.assert_array_equal(cut.obs, records.obs[:3])
    np.testing.assert_array_equal(cut.episode, [0, 1, 1])
    np.testing.assert_array_equal(cut.truncated, [False, False, True])
    np.testing.assert_array_equal(cut.next_action[:, 0], [0.0, records.action[2, 0], records.action[2, 0]])
    np.testing.assert_array_equal(cut.episode_return, [records.reward[0], records.reward[1:3].sum()])
    assert not records.truncated[2], "the whole record stays as it was"
    np.testing.assert_array_equal(cut.complete, [True, False])
    assert records.complete.all()
    # An end of its own stays one.
    assert not first_of(records, 1).truncated.any() and first_of(records, 1).terminated.all()
    for whole in (first_of(records, 1), first_of(records, 4), records):
        assert whole.complete.all()
    assert first_of(records, 4).terminated[-1] == records.terminated[3]


def test_parts_are_numbered_on() -> None:
    records = records_of(steps([["x", "."], [".", "."], [".", "x"], ["t", "t"]]))
    both = joined([first_of(records, 1), records])
    np.testing.assert_array_equal(both.episode, [0, 1, 2, 2, 2, 3, 3, 3, 4])
    np.testing.assert_array_equal(both.episode_return, [records.episode_return[0], *records.episode_return])


SAC = algorithms.get("sac")
RECIPE = Recipe("sac", SAC.trial.config, SAC.trial.hypers, steps=1200, transitions=500, seeds=2, checkpoints=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiers of a probe, by name."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(catalogue.FOLDER_VARIABLE, str(folder))
        env = envs.make(ENV)
        collect.make(env, RECIPE, tuple(recipes.TIERS))
        return {tier: catalogue.read(f"{ENV}/{tier}", env) for tier in recipes.TIERS}


@pytest.mark.xdist_group("collect")
def test_every_tier_has_the_transitions_that_were_asked_for(made: dict[str, Any]) -> None:
    for tier, dataset in made.items():
        assert dataset.size == 500, tier
        batch = dataset.transitions
        # The probe's episodes are one step long and end by themselves.
        assert batch.terminated.all() and not batch.truncated.any()
        assert len(dataset.episode_return) == dataset.size
        # The reward is that of the action, in the environment's units and in those of the box alike.
        np.testing.assert_allclose(batch.reward, 1 - (batch.action[:, 0] - 0.5 * batch.obs[:, 0]) ** 2, atol=1e-5)


@pytest.mark.xdist_group("collect")
def test_tiers_are_as_good_as_they_say(made: dict[str, Any]) -> None:
    mean = {tier: float(np.mean(dataset.episode_return)) for tier, dataset in made.items()}
    assert mean["random"] < mean["medium"] <= mean["expert"]
    assert mean["medium-expert"] == pytest.approx((mean["medium"] + mean["expert"]) / 2, abs=0.05)
    for percent in (1, 5, 10, 50):
        share = percent / 100
        expected = (1 - share) * mean["random"] + share * mean["expert"]
        assert mean[f"random-expert-{percent}"] == pytest.approx(expected, abs=0.06)
    # Random actions are uniform in the box.
    actions = made["random"].transitions.action
    assert abs(actions.mean()) < 0.1 and actions.std() == pytest.approx(3**-0.5, abs=0.05)
    # An exploring policy's are not its mean's.
    expert = made["expert"].transitions
    assert expert.action[expert.obs[:, 0] > 0].std() > 1e-3


@pytest.mark.xdist_group("collect")
def test_the_dataset_says_where_it_comes_from(made: dict[str, Any]) -> None:
    reference = made["medium"].reference
    assert reference.low == pytest.approx(float(np.mean(made["random"].episode_return)), abs=1e-4)
    assert reference.high > reference.low
    assert "random actions" in reference.low_source and "best of 2 runs of sac" in reference.high_source
    assert "sac" in made["medium"].source and ENV in made["medium"].source
    assert len({dataset.checksum for dataset in made.values()}) == len(made)
    # Random actions were written before there was an expert, and got what scores lie between after that.
    assert {dataset.reference for dataset in made.values()} == {reference}


def test_explore_draws_what_the_learner_collects_with() -> None:
    """Of SAC's policy: the same state, other keys, other actions; their mean is about the evaluation's action."""
    algorithm, task = SAC.make(SAC.trial.config), Task(envs.make(ENV))
    state = algorithm.init(jax.random.key(0), task, SAC.trial.hypers)
    obs = jnp.ones(1)
    assert algorithm.explore is not None
    draws = jax.vmap(algorithm.explore, (0, None, None, None))(
        jax.random.split(jax.random.key(1), 512), task, state, obs
    )
    assert draws.std() > 0.1
    np.testing.assert_allclose(draws.mean(axis=0), algorithm.act(jax.random.key(2), task, state, obs), atol=0.1)


@pytest.mark.parametrize(
    ("change", "tiers", "message"),
    [
        ({}, ("best",), "unknown tier 'best'; there are: random, medium"),
        ({"algorithm": "td3", "config": algorithms.get("td3").config()}, ("random",), "'td3' is no source of datasets"),
    ],
)
def test_what_cannot_be_made_is_refused(change: dict[str, Any], tiers: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect.make(envs.make(ENV), RECIPE._replace(**change), tiers)


def test_a_folder_that_cannot_be_written_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path / "file" / "datasets"))
    monkeypatch.setattr(collect, "checkpoints", lambda *_: pytest.fail("trains"))
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); choose another with RLSUITE_DATASETS"):
        collect.make(envs.make(ENV), RECIPE, ("medium",))


def test_random_actions_are_there_before_an_agent_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training then falls short; without an expert there is no reference."""
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    recorder = collect.recorder

    def with_a_bad_agent(algorithm: Algorithm, task: Task, hypers: Any) -> Any:
        play = recorder(algorithm, task, hypers)
        return lambda leaves, key: play(None, key) if leaves is None else records_of(steps([["x"]]))

    monkeypatch.setattr(collect, "recorder", with_a_bad_agent)
    monkeypatch.setattr(collect, "checkpoints", lambda *_: [collect.Policy([], 9.0, 1200, recipes.FIRST_SEED)])
    with pytest.raises(UserError, match="take more --steps or other settings"):
        collect.make(envs.make(ENV), RECIPE, ("medium", "random"))
    dataset = catalogue.read(f"{ENV}/random", envs.make(ENV))
    assert dataset.size == 500 and dataset.reference is None
    assert dataset.source == f"uniformly random actions on {ENV}"
    assert catalogue.find(f"{ENV}/medium") is None


def test_the_reference_is_of_episodes_that_did_not_choose_the_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random actions all along, of which one run was lucky when the expert was chosen."""
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    env = envs.make(ENV)
    fresh = records_of(steps([["x", "x"]]))  # returns 0 and 1
    monkeypatch.setattr(collect, "recorder", lambda *_: lambda leaves, key: fresh if leaves else first_of(fresh, 1))
    along = [collect.Policy([np.zeros(1)], lucky, 1200, seed) for lucky, seed in ((0.25, 0), (9.0, 1))]
    monkeypatch.setattr(collect, "checkpoints", lambda *_: along)
    collect.make(env, RECIPE._replace(transitions=2), ("medium", "expert"))
    reference = catalogue.read(f"{ENV}/expert", env).reference
    assert reference is not None and (reference.low, reference.high) == (0.0, 0.5)


def test_random_actions_are_worth_what_whole_episodes_of_them_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes that are cut off have no part in the reference, in what is said, or in the mean of what is read."""
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    env = envs.make("probe/truncation/continuous")  # 5 steps an episode
    limit = env.max_episode_steps
    losing = steps([["."]] * (limit - 1) + [["t"]])
    random = records_of(losing._replace(reward=losing.reward * 0 - 1, action=losing.action * 0))
    expert = random._replace(reward=random.reward * 0, episode_return=random.episode_return * 0)
    monkeypatch.setattr(collect, "recorder", lambda *_: lambda leaves, key: random if leaves is None else expert)
    along = [collect.Policy([np.zeros(1)], 0.0, 1200, 0)]
    monkeypatch.setattr(collect, "checkpoints", lambda *_: along)
    for transitions, complete in ((2 * limit + 1, [True, True, False]), (limit - 1, [False])):
        monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path / str(transitions)))
        collect.make(env, RECIPE._replace(transitions=transitions), ("random", "expert"))
        shown = capsys.readouterr().out
        dataset = catalogue.read(f"{env.id}/random", env)
        np.testing.assert_array_equal(dataset.complete, complete)
        assert dataset.reference is not None and dataset.reference.low == -limit
        worth = f"mean return -{limit}" if any(complete) else "none of them complete"
        assert f"{env.id}/random: {transitions} transitions, {len(complete)} episodes, {worth}\n" in shown
        # As what was recorded before limits were written down: by the length alone, whatever the flag.
        for file in (tmp_path / str(transitions)).rglob("metadata.json"):
            metadata = json.loads(file.read_text())
            assert metadata["rlsuite"].pop("max_episode_steps") == limit
            file.write_text(json.dumps(metadata))
        np.testing.assert_array_equal(catalogue.read(f"{env.id}/random", env).complete, complete)


def test_training_that_was_only_lucky_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    same = records_of(steps([["x", "x"]]))
    monkeypatch.setattr(collect, "recorder", lambda *_: lambda leaves, key: same)
    monkeypatch.setattr(collect, "checkpoints", lambda *_: [collect.Policy([np.zeros(1)], 9.0, 1200, 0)])
    with pytest.raises(UserError, match=r"sac ends at a return of 0\.5 on '.*', random actions at 0\.5; take more"):
        collect.make(envs.make(ENV), RECIPE._replace(transitions=2), ("medium",))


def test_random_actions_alone_take_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(collect, "checkpoints", lambda *_: pytest.fail("trains"))
    collect.make(envs.make(ENV), RECIPE, ("random",))
    assert catalogue.find(f"{ENV}/random")


def test_the_agent_takes_no_more_memory_than_its_steps_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay buffer of the default million would be there for each of the runs."""
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))

    def agent_policies(algorithm: Algorithm, task: Task, recipe: Recipe) -> list[collect.Policy]:
        state = policies.state_shapes(algorithm, task, recipe.hypers)
        assert max(leaf.shape[0] for leaf in jax.tree.leaves(state.buffer) if leaf.shape) <= recipe.steps
        raise UserError("seen")

    monkeypatch.setattr(collect, "checkpoints", agent_policies)
    config = dataclasses.replace(SAC.trial.config, buffer_size=1_000_000)
    with pytest.raises(UserError, match="seen"):
        collect.make(envs.make(ENV), RECIPE._replace(config=config), ("medium",))


def test_nothing_is_announced_that_is_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([ENV, "--algorithm", "td3"], "'td3' is no source of datasets; those are: ppo, sac"),
        (["gymnax/CartPole-v1"], "'gymnax/CartPole-v1' has discrete actions; offline learners here need continuous"),
        (["gymnax/CartPole-v1", "--algorithm", "ppo"], "'gymnax/CartPole-v1' has discrete actions"),
    ):
        assert cli.main(["collect", *arguments]) == 2
        shown = capsys.readouterr()
        assert message in shown.err and shown.out == ""


def test_what_is_kept_says_how_much_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    env = envs.make(ENV)
    collect.make(env, RECIPE._replace(transitions=70), ("random",))
    for transitions, more in ((70, ""), (90, ", not 90; delete its folder to make it again")):
        capsys.readouterr()
        collect.make(env, RECIPE._replace(transitions=transitions), ("random",))
        assert capsys.readouterr().out == f"{ENV}/random: made before, kept with its 70 transitions{more}\n"


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(UserError, match="'probe/action/discrete' has discrete actions"):
        collect.make(envs.make("probe/action/discrete"), RECIPE, ("random",))


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=rf"no dataset 'nothing'; expected .* '{ENV}/TIER' with TIER one of random"):
        catalogue.check("nothing", envs.make(ENV))
    with pytest.raises(UserError, match=rf"make it with 'rlsuite collect {ENV} --tiers medium'"):
        catalogue.check(f"{ENV}/medium", envs.make(ENV))
    catalogue.check("gymnax/Pendulum-v1/medium", envs.make("gymnax/Pendulum-v1"))  # has a recipe


@pytest.mark.slow
@pytest.mark.xdist_group("collect")
def test_a_dataset_with_a_recipe_is_made_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    for module in (collect, catalogue):
        monkeypatch.setattr(module, "RECIPES", {ENV: RECIPE})
    collect.ensure(f"{ENV}/random", envs.make(ENV))
    dataset = catalogue.read(f"{ENV}/random", envs.make(ENV), "top=0.1")
    assert dataset.size == 50
    assert all(catalogue.find(f"{ENV}/{tier}") for tier in recipes.TIERS), "one training serves all tiers"
    monkeypatch.setattr(collect, "make", lambda *_: pytest.fail("made twice"))
    collect.ensure(f"{ENV}/random", envs.make(ENV))
    again = catalogue.read(f"{ENV}/random", envs.make(ENV), "top=0.1")
    np.testing.assert_array_equal(dataset.rows, again.rows)


def test_every_recipe_is_of_an_environment_and_an_agent_that_can_record() -> None:
    for env_id, recipe in recipes.RECIPES.items():
        assert env_id in envs.registered()
        assert dataclasses.is_dataclass(recipe.config)
        assert algorithms.get(recipe.algorithm).make(recipe.config).explore is not None


def test_collecting_is_batched_over_environments() -> None:
    """A record is of `LANES` environments' first episodes, whole ones."""
    algorithm, task = SAC.make(SAC.trial.config), Task(envs.make("probe/truncation/continuous"))
    records = collect.recorder(algorithm, task, SAC.trial.hypers)(None, jax.random.key(0))
    assert len(records.episode_return) == collect.LANES
    np.testing.assert_array_equal(np.bincount(records.episode), task.env.max_episode_steps)


def test_the_best_return_is_that_of_a_run_that_has_not_diverged() -> None:
    with warnings.catch_warnings(action="error"):
        assert collect.best(np.float32([1, np.nan, 3, np.inf])) == 3
        assert collect.best(np.float32([np.nan, np.nan])) == -np.inf
