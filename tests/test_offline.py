"""Offline learners from command to report: cells, shards, rows, manifests, policies, and one copy of the dataset."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from offline_data import probe_dataset

import envs
from analysis import load, manifests, score
from analysis.tables import LAST, summarise
from envs import datasets
from rlsuite import algorithms
from rlsuite.algorithms.offline import bc, td3_bc
from rlsuite.commands import cli
from rlsuite.core import Task, dataset_name
from rlsuite.errors import UserError
from rlsuite.sweeping import catalogue, collect, job, kept, local, policies, sweep
from rlsuite.sweeping.catalogue import Found
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training import batch

ENV = "probe/action/continuous"
CELL = Cell(
    "td3_bc",
    "gymnax/Pendulum-v1",
    steps=100,
    seeds=2,
    evaluations=2,
    eval_episodes=3,
    dataset="gymnax/Pendulum-v1/medium",
)


def refusal(cell: Cell) -> str:
    with pytest.raises(UserError) as refused:
        job.resolve("mine", cell)
    return str(refused.value)


def test_the_dataset_and_its_sampling_are_in_the_name() -> None:
    others: list[dict[str, Any]] = [
        {"dataset": "gymnax/Pendulum-v1/expert"},
        {"sampling": "top=0.1"},
        {"clip_actions": True},
    ]
    names = [job.resolve("mine", dataclasses.replace(CELL, **other)).name for other in ({}, *others)]
    assert len(set(names)) == 4
    assert names[0].startswith("td3_bc__gymnax-Pendulum-v1-medium__")


def test_a_long_path_fits_into_file_names(tmp_path: Path) -> None:
    """The readable part is the end of the path; the digest is of all of it."""
    names = []
    for folder in ("a" * 120, "b" * 120):
        file = tmp_path / folder / ("c" * 120) / "replay.hdf5"
        file.parent.mkdir(parents=True)
        file.touch()
        shard = job.resolve("mine", dataclasses.replace(CELL, dataset=str(file), label="x" * 80))
        assert len(shard.name) == job.MAX_NAME and "-replay.hdf5__" in shard.name
        store = Store(tmp_path / "results")
        with store.open(shard).claim() as ours:
            assert ours
            store.open(shard).write_policies(0, 1, np.zeros(2, bool), {"leaf": np.zeros((2, 1), np.float32)})
            store.open(shard).write_manifest({})
        store.open(shard).policies_path.touch()
        names.append(shard.name)
    assert names[0] != names[1]
    assert job.resolve("mine", CELL).name == "td3_bc__gymnax-Pendulum-v1-medium__f5bb285d"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset": None},
            "'td3_bc' learns from a dataset and was given none; name one, such as 'gymnax/Pendulum-v1/",
        ),
        ({"dataset": "gymnax/Pendulum-v1/meduim"}, "no dataset 'gymnax/Pendulum-v1/meduim'; expected a file, a folder"),
        ({"sampling": "best=0.1"}, "unknown sampling 'best=0.1'; there are: uniform, advantage_weighted=T"),
        ({"sampling": "top=2"}, "sampling 'top=2' needs a share above 0 and at most 1, such as top=0.1"),
        ({"sampling": "return_weighted"}, "needs a temperature above 0, such as return_weighted=0.1"),
        ({"algorithm": "td3"}, "'td3' learns from its environment and takes no dataset; those that do: "),
        (
            {"algorithm": "td3", "dataset": None, "clip_actions": True},
            "'td3' learns from its environment and takes no ",
        ),
        ({"clip_actions": 1}, "clip_actions=1 must be of type bool"),
        ({"environment": "gymnax/CartPole-v1"}, "'td3_bc' needs Box actions"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_anything_runs(change: dict[str, Any], message: str) -> None:
    assert message in refusal(dataclasses.replace(CELL, **change))


@pytest.mark.parametrize(
    "dataset_id",
    [
        "mujoco/Hopper-v5/medium-replay",
        "mujoco/Hopper-v5/medium-replay-v0",
        "datasets/mujoco/Hopper-v5/medium-replay-v0",
        "/data/mujoco/Hopper-v5/medium-replay-v0/",
        "mujoco/hopper/medium-replay-v0",
        "data/mujoco/hopper/medium-replay-v0",
        "/home/me/.minari/datasets/D4RL/hopper/medium-replay-v2",
        "/data/mujoco/hopper/medium-replay-v0.hdf5",
        "hopper-medium-replay-v2",
        "data/hopper-medium-replay-v2",
        "hopper_medium_replay-v2.hdf5",
        "/data/hopper_medium_replay-v2.hdf5",
        "../d4rl/hopper_medium_replay-v2.h5",
    ],
)
def test_one_name_for_a_dataset_whoever_wrote_it(dataset_id: str) -> None:
    assert dataset_name(dataset_id) == "hopper-medium-replay"


@pytest.mark.parametrize(
    ("dataset_id", "name"),
    [
        ("gymnax/Pendulum-v1/medium", "gymnax-pendulum-v1-medium"),
        ("brax/hopper/spring/medium", "brax-hopper-spring-medium"),
        ("datasets/brax/hopper/spring/medium-v0", "datasets-brax-hopper-spring-medium"),
        ("mujoco/Hopper-v5+reward_scale=2/medium", "hopper-v5+reward-scale=2-medium"),
        ("mujoco/Hopper-v5/random-expert-5", "hopper-random-expert-5"),
        ("mujoco/InvertedPendulum-v5/medium", "invertedpendulum-medium"),
        ("mujoco/mine/hopper/medium", "mujoco-mine-hopper-medium"),
        ("data/my-hopper-medium-v2", "data-my-hopper-medium"),
        ("D4RL/antmaze/umaze-diverse-v1", "antmaze-umaze-diverse"),
    ],
)
def test_other_datasets_keep_names_of_their_own(dataset_id: str, name: str) -> None:
    assert dataset_name(dataset_id) == name
    if "antmaze" not in name:
        assert not [key for key, spec in algorithms.registered().items() if name in spec.presets]


def test_the_full_comparison_has_the_settings_that_were_published() -> None:
    """And the quick ones have their own, whatever was published."""
    full = load_experiment("FULL")
    sources = {
        (cell.algorithm, cell.dataset): algorithms.get(cell.algorithm).preset(cell.environment, cell.dataset).source
        for cell in full.cells
    }
    assert len(sources) == 81
    published = {algorithm for (algorithm, _), source in sources.items() if source != "defaults"}
    assert published == {"a2pr", "cql", "edac", "iql", "prdc", "rebrac"}
    for algorithm in ("cql", "edac", "prdc", "rebrac"):
        assert all(source != "defaults" for (name, _), source in sources.items() if name == algorithm)
    for name in ("EXPERIMENT", "WEIGHTING", "CHOICE", "LONGER"):
        assert all(cell.config is not None and cell.hypers is not None for cell in load_experiment(name).cells)


def load_experiment(name: str) -> sweep.Experiment:
    return sweep.load(f"{Path(__file__).resolve().parent.parent / 'experiments' / 'offline.py'}:{name}")


def test_a_preset_is_that_of_the_dataset() -> None:
    tuned = algorithms.get("td3_bc").hypers(alpha=40.0)
    preset = algorithms.get("td3_bc").preset("mujoco/HalfCheetah-v5")
    spec = dataclasses.replace(
        algorithms.get("td3_bc"), presets={"halfcheetah-medium": preset._replace(hypers=tuned, source="somebody")}
    )
    assert spec.preset("mujoco/HalfCheetah-v5", "mujoco/halfcheetah/medium-v0").source == "somebody"
    assert spec.preset("mujoco/HalfCheetah-v5", "mujoco/halfcheetah/expert-v0").source == "defaults"


# --- A whole run ------------------------------------------------------------------------------------------------------

BC = bc.Config(batch_size=32, hidden_sizes=(16,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results folder of two learners on one dataset of a probe, and the dataset."""
    folder = tmp_path_factory.mktemp("results")
    dataset = dataclasses.replace(
        probe_dataset(ENV, good=True), id=f"{ENV}/good", reference=envs.Reference(0.0, 1.0, "somebody", "somebody else")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "check", lambda dataset_id, env: None)
        found = Found(dataset.id, folder, (), "0123456789abcdef")
        patch.setattr(collect, "ensure", lambda dataset_id, env: found)
        patch.setattr(Found, "read", lambda found, env, sampling, clip: datasets.draw(dataset, sampling))
        patch.setattr(catalogue, "read", lambda dataset_id, env, sampling, clip: datasets.draw(dataset, sampling))
        cell = dataclasses.replace(CELL, algorithm="bc", environment=ENV, dataset=dataset.id, steps=300, evaluations=6)
        shards = [
            job.resolve("mine", dataclasses.replace(cell, config=BC, hypers=bc.Hypers(1e-2), label=label, sampling=how))
            for label, how in (("all", "uniform"), ("best", "top=0.5"))
        ]
        store = Store(folder / "mine")
        local.run(shards, store, Settings(save_policies=True))
        yield store, shards, dataset


@pytest.mark.xdist_group("offline run")
def test_rows_and_manifest_say_what_was_learned_from(trained: Any) -> None:
    store, shards, dataset = trained
    for shard, sampling in zip(shards, ("uniform", "top=0.5"), strict=True):
        table = pq.read_table(store.open(shard).path)
        assert set(table["dataset"].to_pylist()) == {f"{ENV}/good"}
        assert set(table["sampling"].to_pylist()) == {sampling}
        manifest = json.loads(store.open(shard).manifest_path.read_text())
        assert (manifest["dataset"], manifest["sampling"]) == (f"{ENV}/good", sampling)
        assert manifest["dataset_checksum"] == dataset.checksum
        assert manifest["dataset_source"] == dataset.source
        assert manifest["dataset_size"] == datasets.draw(dataset, sampling).size
        assert manifest["reference"]["high"] == 1.0 and manifest["reference"]["high_source"] == "somebody else"
        assert manifest["steps_per_update"] == 1 and manifest["total_updates"] == 300


@pytest.mark.xdist_group("offline run")
def test_cloning_good_actions_pays(trained: Any) -> None:
    store, shards, _ = trained
    rows = pq.read_table(store.open(shards[0]).path).to_pandas()
    assert (rows[rows.step == 300].return_mean > 0.98).all()


@pytest.mark.xdist_group("offline run")
def test_the_report_takes_the_dataset_for_the_task(trained: Any) -> None:
    store, _, _ = trained
    scores = score(load(store.folder), manifests(store.folder))
    assert scores.environments == [f"{ENV}/good"] and scores.labels == ["all", "best"]
    assert scores.comparable()[0] == [f"{ENV}/good"]
    task = scores.tasks["all", f"{ENV}/good"]
    assert task.offline
    np.testing.assert_allclose(task.mean_of_last(LAST), task.curves[:, -LAST:].mean(axis=1))
    np.testing.assert_allclose(task.mean_of_last(1), task.final)
    summary = summarise(scores, repetitions=40)
    assert {"final_iqm", "last_iqm"} <= set(summary["statistic"])
    # Two labels of two runs, seven evaluations of three episodes.
    assert "each of 2 offline cells: 42 episodes were played to evaluate, 21 a run" in scores.notes


@pytest.mark.xdist_group("offline run")
def test_a_kept_policy_acts_as_it_did_and_only_with_its_dataset(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, shards, dataset = trained
    kept = policies.load(store.folder / shards[0].name)
    state = kept.state(kept.policy(0).leaves)
    obs = jnp.ones(1)
    action = kept.algorithm.act(jax.random.key(0), kept.task, state, obs)
    np.testing.assert_allclose(action, [0.5], atol=0.15)
    other = dataclasses.replace(dataset, checksum="0123")
    monkeypatch.setattr(catalogue, "read", lambda dataset_id, env, sampling, clip_actions: other)
    with pytest.raises(UserError, match=f"has the checksum 0123, but the policy learned from {dataset.checksum}"):
        policies.load(store.folder / shards[0].name)


@pytest.mark.xdist_group("offline run")
def test_a_policy_is_played_with_its_datasets_actions_as_they_were(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, [one, *_], dataset = trained
    shutil.copytree(store.folder, tmp_path / "kept")
    file = tmp_path / "kept" / f"{one.name}.json"
    asked: list[bool] = []

    def read(dataset_id: str, env: envs.Env, sampling: str, clip_actions: bool) -> datasets.Dataset:
        asked.append(clip_actions)
        return datasets.draw(dataset, sampling)

    monkeypatch.setattr(catalogue, "read", read)
    manifest = json.loads(file.read_text())
    before = {name: value for name, value in manifest.items() if name != "clip_actions"}  # of the version before
    for given in (before, {**manifest, "clip_actions": True}):
        file.write_text(json.dumps(given))
        policies.load(tmp_path / "kept" / one.name)
    assert asked == [False, True]


@pytest.mark.xdist_group("offline run")
def test_a_shard_does_not_go_on_with_other_data(trained: Any, tmp_path: Path) -> None:
    _, shards, dataset = trained
    store = Store(tmp_path)
    store.open(shards[0]).partial.mkdir()
    store.open(shards[0]).write_layout({"width": 1, "devices": 1})
    store.open(shards[0]).write_manifest({"dataset_checksum": "0123"})
    with pytest.raises(UserError, match="has changed"):
        local.run(shards[:1], store)
    store.open(shards[0]).write_manifest({"dataset_checksum": dataset.checksum})
    kept.check_checksum(store.open(shards[0]), dataset, finished=False)


# --- One copy ---------------------------------------------------------------------------------------------------------


def test_runs_share_one_copy_of_the_dataset() -> None:
    """What the compiler sets aside grows with the runs by their networks, and by no transition."""
    dataset = probe_dataset(ENV)
    large = dataclasses.replace(dataset, rows=np.tile(np.asarray(dataset.rows), (64, 1)))
    spec = algorithms.get("td3_bc")
    algorithm, hypers = spec.make(td3_bc.Config(batch_size=4, hidden_sizes=(4,))), spec.hypers()
    device = jax.local_devices()[:1]

    def peak(data: Any, runs: int) -> int:
        task = Task(envs.make(ENV), data)
        return batch.compile_programs(algorithm, task, hypers, runs, 1, device).memory.peak

    rows = np.asarray(large.rows).nbytes - np.asarray(dataset.rows).nbytes
    for runs in (1, 8):
        grown = peak(large, runs) - peak(dataset, runs)
        assert 0.99 * rows < grown < 1.01 * rows, (runs, grown, rows)


def test_placed_once_it_stays_where_it_is() -> None:
    task = batch.place(Task(envs.make(ENV), probe_dataset(ENV)), jax.local_devices()[:2])
    again = batch.place(task, jax.local_devices()[:2])
    shards = [t.dataset.rows.addressable_shards for t in (task, again)]
    pointers = [[shard.data.unsafe_buffer_pointer() for shard in task_shards] for task_shards in shards]
    # Two devices of one processor may share NumPy's own memory, so only that nothing moves is certain.
    assert pointers[0] == pointers[1]
    assert [shard.data.shape for shard in shards[0]] == 2 * [task.dataset.rows.shape]


def test_collect_and_run_have_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "td3_bc", "--env", "gymnax/Pendulum-v1"]) == 2
    assert "--dataset" in capsys.readouterr().err
    assert cli.main(["run", "sac", "--env", "gymnax/Pendulum-v1", "--dataset", "x"]) == 2
    assert "unrecognized arguments: --dataset x" in capsys.readouterr().err
    assert cli.main(["collect", "gymnax/Pendulum-v1", "--tiers", "best"]) == 2
    assert "unknown tier 'best'" in capsys.readouterr().err
    assert cli.main(["collect", "gymnax/Pendulum-v2"]) == 2
    assert "did you mean 'gymnax/Pendulum-v1'" in capsys.readouterr().err
