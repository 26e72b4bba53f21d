"""Datasets on disk: files that Minari and h5py themselves have written, and what is said of broken ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

import envs
from envs import dataset_files, datasets
from envs.core import Reference
from envs.datasets import DatasetError, Records
from rlsuite.sweeping import catalogue


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No store in the home folder, and a failure for whoever reaches for the network."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.delenv(dataset_files.MINARI_ROOT, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


ENV = envs.make("gymnax/Pendulum-v1")  # 3 observations, one action in [-2, 2]
REFERENCE = Reference(-1200.0, -150.0, "random", "expert")
LENGTHS = (4, 1, 3)
PLAYED = envs.make("gymnax/Pendulum-v1", max_episode_steps=4)
"""what `some_records` are of"""


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Uniform in [-1, 1], which float32 holds exactly."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def some_records() -> Records:
    """Episodes of `LENGTHS`: the first runs out of time, the second terminates, the third is cut off."""
    n = sum(LENGTHS)
    episode = np.repeat(np.arange(3), LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    obs, action, reward = numbers(n + 3, 3), numbers(n, 1, seed=1), numbers(n, seed=2)
    rows = np.arange(n) + episode  # each episode has one observation more than rows
    following = np.minimum(np.arange(n) + 1, n - 1)
    following[ends] = ends
    terminated = np.arange(n) == ends[1]
    return Records(
        obs=obs[rows],
        action=action,
        reward=reward,
        next_obs=obs[rows + 1],
        next_action=action[following],
        terminated=terminated,
        truncated=np.isin(np.arange(n), ends) & ~terminated,
        episode=episode,
        episode_return=np.bincount(episode, weights=reward),
        complete=np.array([True, True, False]),
    )


def assert_same(dataset: Any, records: Records) -> None:
    batch = dataset.transitions
    for name in ("obs", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(records, name), err_msg=name)
    for name in ("action", "next_action"):
        np.testing.assert_allclose(2.0 * getattr(batch, name), getattr(records, name), atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(dataset.episode, records.episode)
    np.testing.assert_allclose(dataset.episode_return, records.episode_return, rtol=1e-6)
    np.testing.assert_array_equal(dataset.complete, records.complete)


def write(folder: Path, records: Records | None = None, reference: Reference | None = REFERENCE) -> Path:
    return dataset_files.write(
        "gymnax/Pendulum-v1/medium",
        some_records() if records is None else records,
        PLAYED,
        folder,
        reference=reference,
        source="a test",
        algorithm="sac",
        seed=7,
    )


# --- Written here -----------------------------------------------------------------------------------------------------


def test_what_is_written_here_is_read_again(tmp_path: Path) -> None:
    assert write(tmp_path) == tmp_path / "gymnax/Pendulum-v1/medium-v0"
    for name in (
        "gymnax/Pendulum-v1/medium",
        "gymnax/Pendulum-v1/medium-v0",
        str(tmp_path / "gymnax/Pendulum-v1/medium-v0"),
    ):
        dataset = dataset_files.load(name, ENV, tmp_path)
        assert_same(dataset, some_records())
        assert (dataset.id, dataset.source, dataset.reference) == (name, "a test", REFERENCE)
    assert dataset_files.available(tmp_path) == ["gymnax/Pendulum-v1/medium-v0"]
    assert [path.name for path in tmp_path.iterdir()] == ["gymnax"], "nothing is left beside it"


def test_what_is_written_here_loads_in_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    found = minari.load_dataset("gymnax/Pendulum-v1/medium-v0")
    records = some_records()
    assert (found.total_episodes, found.total_steps) == (3, sum(LENGTHS))
    assert [len(episode) for episode in found.iterate_episodes()] == list(LENGTHS)
    first = found[0]
    np.testing.assert_array_equal(first.observations, [*records.obs[:4], records.next_obs[3]])
    np.testing.assert_array_equal(first.actions, records.action[:4])
    assert not first.terminations.any() and first.truncations.tolist() == [False, False, False, True]
    assert found[1].terminations.tolist() == [True]
    assert not found[2].terminations.any() and not found[2].truncations.any(), "a record that is cut off just stops"
    assert "gymnax/Pendulum-v1/medium-v0" in minari.list_local_datasets()
    np.testing.assert_allclose(minari.get_normalized_score(found, np.array([-150.0])), [1.0])


def test_reference_returns_may_come_later(tmp_path: Path) -> None:
    """Once; whoever has some keeps them, and what is not there is not made."""
    dataset_files.complete("gymnax/Pendulum-v1/medium", tmp_path, REFERENCE)
    assert not list(tmp_path.iterdir())
    metadata = write(tmp_path, reference=None) / dataset_files.METADATA
    assert dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path).reference is None
    for reference in (REFERENCE, REFERENCE._replace(high=5.0)):
        dataset_files.complete("gymnax/Pendulum-v1/medium", tmp_path, reference)
        dataset = dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)
        assert (dataset.reference, dataset.source) == (REFERENCE, "a test")
        assert json.loads(metadata.read_text())["ref_max_score"] == REFERENCE.high
    assert sorted(path.name for path in metadata.parent.iterdir()) == ["main_data.hdf5", "metadata.json"]
    metadata.write_text("{")
    with pytest.raises(DatasetError, match=r"cannot be read .*; copy or make it again"):
        dataset_files.complete("gymnax/Pendulum-v1/medium", tmp_path, REFERENCE)


def test_a_folder_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("datasets"))
    assert_same(dataset_files.load("gymnax/Pendulum-v1/medium", ENV, Path("datasets")), some_records())


def test_a_dataset_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DatasetError, match="is there already; delete it to make it again"):
        write(tmp_path)


def test_what_a_dead_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    place = write(tmp_path)
    (tmp_path / ".making-1").mkdir()
    shutil.move(place.parents[1], tmp_path / ".making-1" / "gymnax")
    with pytest.raises(DatasetError, match="no dataset 'gymnax/Pendulum-v1/medium'; expected"):
        dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)
    write(tmp_path)
    assert dataset_files.available(tmp_path) == ["gymnax/Pendulum-v1/medium-v0"]


def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DatasetError, match=r"cannot write .*\(No space left on device\); choose another folder"):
        write(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert dataset_files.MINARI_ROOT not in os.environ


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write '.*file/gymnax.*\(Not a directory\)"):
        write(tmp_path / "file")


# --- Minari's ---------------------------------------------------------------------------------------------------------


def write_minari(root: Path, dataset_id: str, episodes: list[EpisodeBuffer], action_space: Any = None) -> None:
    """Have Minari write a dataset into its store."""
    with dataset_files.root_at(root), pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64),
            action_space=action_space or gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32),
        )


def episode(length: int, *, seed: int = 0, **ends: list[bool]) -> EpisodeBuffer:
    never = [False] * length
    return EpisodeBuffer(
        observations=numbers(length + 1, 3, seed=seed).astype(np.float64),
        actions=numbers(length, 1, seed=seed + 1),
        rewards=numbers(length, seed=seed + 2).tolist(),
        terminations=ends.get("terminations", never),
        truncations=ends.get("truncations", never),
    )


def test_a_dataset_of_minaris_own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    store.mkdir()
    buffers = [
        episode(3, truncations=[False, False, True]),
        episode(2, seed=5, terminations=[False, True]),
        episode(2, seed=9),  # it simply stops
    ]
    write_minari(store, "mujoco/thing/medium-v3", buffers)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    dataset = dataset_files.load("mujoco/thing/medium-v3", ENV, tmp_path / "none")
    batch = dataset.transitions
    np.testing.assert_array_equal(batch.obs[:3], np.float32(buffers[0].observations)[:3])
    np.testing.assert_array_equal(batch.next_obs[:3], np.float32(buffers[0].observations)[1:])
    np.testing.assert_array_equal(batch.terminated, [0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(batch.truncated, [0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(dataset.episode, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(dataset.episode_return, [np.sum(buffer.rewards) for buffer in buffers], rtol=1e-6)
    np.testing.assert_allclose(2 * batch.next_action[0], batch.action[1] * 2)
    assert dataset.source == "Minari, mujoco/thing/medium-v3" and dataset.reference is None


def test_a_near_name_is_offered(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DatasetError, match="did you mean 'gymnax/Pendulum-v1/medium-v0'"):
        dataset_files.load("gymnax/Pendulum-v1/meduim-v0", ENV, tmp_path)


def test_other_spaces_are_refused(tmp_path: Path) -> None:
    buffer = episode(2)
    discrete = EpisodeBuffer(**{**buffer.__dict__, "actions": np.array([0, 1])})
    write_minari(tmp_path, "an/discrete-v0", [discrete], gymnasium.spaces.Discrete(2))
    with pytest.raises(DatasetError, match=r"has actions in Discrete\(2\); expected vectors"):
        dataset_files.load("an/discrete-v0", ENV, tmp_path)


def test_another_environment_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    message = "is of 'gymnax/Pendulum-v1', as its metadata say, not of 'probe/constant/continuous'; name one of "
    with pytest.raises(DatasetError, match=message):
        dataset_files.load("gymnax/Pendulum-v1/medium", envs.make("probe/constant/continuous"), tmp_path)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    place = write(tmp_path)
    data = next(place.glob("data/*.hdf5"))
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"cannot be read \(.*; copy or make it again"):
        dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)
    shutil.rmtree(place / "data")
    with pytest.raises(DatasetError, match="no dataset"):
        dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    write_minari(tmp_path, "an/empty-v0", [])
    with pytest.raises(DatasetError, match=r"holds no episode|cannot be read"):
        dataset_files.load("an/empty-v0", ENV, tmp_path)


@pytest.mark.parametrize("count", [3, 5])
def test_an_episode_has_one_observation_more_than_steps(tmp_path: Path, count: int) -> None:
    write_minari(tmp_path, "mujoco/thing/medium-v3", [episode(3, truncations=[False, False, True])])
    folder = tmp_path / "mujoco/thing/medium-v3"
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = numbers(count, 3)
    with pytest.raises(DatasetError, match=f"episode 0 has {count} observations and 3 actions for 3 rewards"):
        dataset_files.load(str(folder), ENV, tmp_path)


def test_an_episode_of_minaris_is_whole_if_it_terminates_or_reaches_its_limit(tmp_path: Path) -> None:
    """Whatever its last flag says: Minari itself sets it where a recording stops."""
    buffers = [
        episode(3, truncations=[False, False, True]),
        episode(2, terminations=[False, True]),
        episode(2, truncations=[False, True]),
        episode(3),
    ]
    write_minari(tmp_path, "some/thing-v0", buffers)
    for limit, complete in ((3, [True, True, False, True]), (200, [False, True, False, False])):
        env = envs.make(ENV.id, max_episode_steps=limit)
        dataset = dataset_files.load("some/thing-v0", env, tmp_path)
        np.testing.assert_array_equal(dataset.complete, complete)
    spec = json.loads(gymnasium.spec("Pendulum-v1").to_json())
    named(tmp_path / "some/thing-v0", env_spec=json.dumps({**spec, "max_episode_steps": 3}))
    # The limit that it was recorded with is the dataset's, not that of whoever learns from it.
    dataset = dataset_files.load("some/thing-v0", ENV, tmp_path)
    np.testing.assert_array_equal(dataset.complete, [True, True, False, True])
    with pytest.raises(DatasetError, match=r"episode 0 has 3 steps, but the time limit is 2; .*--max-episode-steps"):
        named(tmp_path / "some/thing-v0", env_spec=None)
        dataset_files.load("some/thing-v0", envs.make(ENV.id, max_episode_steps=2), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"terminations": [False, True, False]},
            r"goes on after step 1, which is among its terminations; split it there",
        ),
        ({"truncations": [True, False, True]}, r"goes on after step 0, which is among its truncations; split it there"),
        ({"terminations": [0.0, 0.0, 0.5]}, "has terminations that are not one 0 or 1 a step"),
        (
            {"truncations": [False, False]},
            "with 3 terminations and 2 truncations; expected one observation more, as many",
        ),
        ({"rewards": [b"1", b"2", b"3"]}, "has rewards of type .*; expected numbers"),
        ({"rewards": [0.0, 1e39, 0.0]}, r"reward of transition 1 is not finite in float32 \(1e\+39\)"),
        ({"observations": np.full((4, 3), -1e39)}, r"obs of transition 0 is not finite in float32 \(-1e\+39\)"),
        (
            {"observations": np.zeros((1, 3)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0)},
            "episode 0 has no step",
        ),
    ],
)
def test_what_minari_episodes_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_minari(tmp_path, "some/thing-v0", [episode(3, truncations=[False, False, True])])
    with h5py.File(tmp_path / "some/thing-v0/data/main_data.hdf5", "r+") as file:
        for key, values in change.items():
            del file[f"episode_0/{key}"]
            file[f"episode_0/{key}"] = values
    with pytest.raises(DatasetError, match=message) as refused:
        dataset_files.load("some/thing-v0", ENV, tmp_path)
    assert "\n" not in str(refused.value)


# --- Of which environment ---------------------------------------------------------------------------------------------

CHEETAH = envs.make("mujoco/HalfCheetah-v5")
"""as many observations and actions as Walker2d"""


def named(place: Path, **metadata: Any) -> None:
    """Change what a Minari folder says of itself."""
    file = place / dataset_files.METADATA
    file.write_text(json.dumps(json.loads(file.read_text()) | metadata))


def write_cheetah(root: Path, dataset_id: str) -> Path:
    """A Minari folder whose arrays fit HalfCheetah, and Walker2d."""
    obs, action = numbers(4, 17), numbers(3, 6)
    never = [False] * 3
    whole = EpisodeBuffer(
        observations=obs, actions=action, rewards=[0.0] * 3, terminations=never, truncations=[False, False, True]
    )
    with dataset_files.root_at(root), pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            dataset_id,
            [whole],
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (17,), np.float32),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (6,), np.float32),
        )
    return root / dataset_id


SPECS = {
    "HalfCheetah-v5": True,
    "HalfCheetah-v4": True,  # versions are not compared
    "halfcheetah-medium-expert-v2": True,  # D4RL's name
    "some_module:mujoco/HalfCheetah-v5": True,
    "Walker2d-v5": False,
    "walker2d-medium-v2": False,
    "mujoco/Walker2d-v5": False,
    "brax/walker2d/spring": False,
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["spec", "attribute", "attribute with a spec"])
def test_metadata_of_another_environment_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, spec: str
) -> None:
    whole = gymnasium.spec("HalfCheetah-v5").to_json()
    text = json.dumps({**json.loads(whole), "id": spec})
    if kind == "spec":
        place = write_cheetah(tmp_path, "some/thing-v0")
        named(place, env_spec=text)
        # By path, by id below our folder with and without version, and by an id of Minari's store.
        monkeypatch.setenv(dataset_files.MINARI_ROOT, str(tmp_path))
        names = [(str(place), Path("none")), ("some/thing", tmp_path), ("some/thing-v0", Path("none"))]
    else:
        arrays = {
            "observations": numbers(4, 17), "actions": numbers(4, 6), "rewards": numbers(4), "terminals": np.zeros(4),
        }  # fmt: skip
        file = hdf5(tmp_path / "thing.hdf5", arrays)
        with h5py.File(file, "r+") as opened:
            opened.attrs["env_id" if kind == "attribute" else "env_spec"] = spec if kind == "attribute" else text
        names = [(file, Path("none"))]
    for name, folder in names:
        if SPECS[spec]:
            assert dataset_files.load(name, CHEETAH, folder).obs_dim == 17
            continue
        message = f"dataset '{name}' is of '{spec}', as its metadata say, not of 'mujoco/HalfCheetah-v5'; name one of"
        with pytest.raises(DatasetError, match=f"^{re.escape(message)}"):
            dataset_files.load(name, CHEETAH, folder)


NOISY = f"{ENV.id}+observation_noise=0.1"


@pytest.mark.parametrize(
    ("environment", "env_id", "accepted"),
    [
        (ENV.id, ENV.id, True),
        (NOISY, NOISY, True),
        # What leaves returns comparable.
        (ENV.id, f"{ENV.id}+clip_actions", True),
        (f"{NOISY}+clip_actions", NOISY, True),
        # What does not.
        (ENV.id, NOISY, False),
        (NOISY, ENV.id, False),
        (f"{ENV.id}+reward_scale=0.1", ENV.id, False),
        (ENV.id, f"{ENV.id}+reward_scale=0.1", False),
        (f"{ENV.id}+reward_scale=0.1", f"{ENV.id}+reward_scale=0.2", False),
        ("gymnax/MountainCarContinuous-v0", ENV.id, False),
        ("another-packages/Pendulum-v1", ENV.id, False),
    ],
)
def test_an_environment_with_other_wrappers_is_another_one(
    tmp_path: Path, environment: str, env_id: str, accepted: bool
) -> None:
    place, env = write(tmp_path), envs.make(env_id)
    recorded = json.loads((place / dataset_files.METADATA).read_text())["rlsuite"]
    named(place, rlsuite={**recorded, "environment": environment})
    if accepted:
        assert dataset_files.load("gymnax/Pendulum-v1/medium", env, tmp_path).reference == REFERENCE
        return
    message = f"is of '{environment}', as its metadata say, not of '{env_id}'; name one of '{env_id}', or the "
    with pytest.raises(DatasetError, match=re.escape(message)):
        dataset_files.load("gymnax/Pendulum-v1/medium", env, tmp_path)


def test_gymnasiums_environments_have_no_wrappers_of_ours(tmp_path: Path) -> None:
    write_minari(tmp_path, "some/thing-v0", [episode(3)])
    named(tmp_path / "some/thing-v0", env_spec=gymnasium.spec("Pendulum-v1").to_json())
    assert dataset_files.load("some/thing-v0", envs.make(f"{ENV.id}+clip_actions"), tmp_path).size == 3
    with pytest.raises(DatasetError, match=re.escape(f"is of 'Pendulum-v1', as its metadata say, not of '{NOISY}'")):
        dataset_files.load("some/thing-v0", envs.make(NOISY), tmp_path)


def test_actions_of_another_box_are_refused_though_they_lie_in_it(tmp_path: Path) -> None:
    """1 is half of the torque that a plain pendulum takes, and all of that of the wrapped one."""
    write(tmp_path)
    message = r"with actions in \[-2\.0\] \.\. \[2\.0\], but those of '.*scale_actions' are in \[-1\.0\] \.\. \[1\.0\]"
    with pytest.raises(DatasetError, match=message):
        dataset_files.load("gymnax/Pendulum-v1/medium", envs.make(f"{ENV.id}+scale_actions"), tmp_path)


@pytest.mark.parametrize(
    "reference", [{"low": 0.0}, "none", {"low": float("nan"), "high": 1.0, "low_source": "a", "high_source": "b"}]
)
def test_reference_returns_that_are_none_are_refused(tmp_path: Path, reference: Any) -> None:
    place = write(tmp_path)
    named(place, rlsuite={"environment": ENV.id, "reference": reference})
    with pytest.raises(DatasetError, match="expected finite low and high, low_source and high_source"):
        dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)


# --- Where, and what to do --------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data")
    hdf5(tmp_path / "a.hdf5", raw())
    assert dataset_files.load("~/a.hdf5", ENV, tmp_path / "none").size == 9
    assert dataset_files.load("~/data/gymnax/Pendulum-v1/medium-v0", ENV, tmp_path / "none").size == sum(LENGTHS)
    monkeypatch.setenv(dataset_files.MINARI_ROOT, "~/data")
    assert dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path / "none").size == sum(LENGTHS)
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, "~/data")
    assert catalogue.folder() == tmp_path / "data" and catalogue.find("gymnax/Pendulum-v1/medium")


def test_what_is_said_to_be_done_can_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write(tmp_path)

    def said(name: str | Path) -> str:
        with pytest.raises(DatasetError) as refused:
            dataset_files.load(str(name), ENV, tmp_path)
        return str(refused.value)

    named(place, minari_version="9.9.9")
    assert re.search(r"is of Minari 9\.9\.9, and Minari .* here reads .*; upgrade Minari, or make", said(place))
    (place / dataset_files.METADATA).write_text("[]")
    assert said(place).endswith("copy or make it again")
    (place / dataset_files.METADATA).unlink()
    assert said(place).endswith("name a folder of Minari's, or copy the whole of this one")
    (tmp_path / "notes.hdf5").write_text("no HDF5")
    assert said(tmp_path / "notes.hdf5").endswith("name an HDF5 file, or a Minari folder")
    cut = Path(hdf5(tmp_path / "cut.hdf5", raw()))
    cut.write_bytes(cut.read_bytes()[:500])
    assert said(cut).endswith("copy it again; if it is whole, upgrade h5py")

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", locked)
    assert said(hdf5_file := tmp_path / "cut.hdf5").endswith("let it be read, or name another path"), hdf5_file
    for arrays in ({**raw(), "rewards": [b"one"] * 12}, {**raw(), "rewards": numbers(11)}, raw(n=1)):
        monkeypatch.undo()
        assert "copy" not in said(hdf5(tmp_path / "odd.hdf5", arrays))


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    records = some_records()
    reward = records.reward.copy()
    reward[2] = np.nan
    write(tmp_path, records._replace(reward=reward))
    with pytest.raises(DatasetError, match="reward of transition 2 is not finite"):
        dataset_files.load("gymnax/Pendulum-v1/medium", ENV, tmp_path)


# --- D4RL's -----------------------------------------------------------------------------------------------------------


def raw(n: int = 12, timeouts: tuple[int, ...] | None = (3, 9), terminals: tuple[int, ...] = (6,)) -> dict[str, Any]:
    """Arrays in the layout of D4RL."""
    arrays: dict[str, Any] = {
        "observations": numbers(n, 3),
        "actions": numbers(n, 1, seed=1),
        "rewards": numbers(n, seed=2),
        "terminals": np.isin(np.arange(n), terminals),
    }
    return arrays if timeouts is None else {**arrays, "timeouts": np.isin(np.arange(n), timeouts)}


def hdf5(path: Path, arrays: dict[str, Any]) -> str:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return str(path)


def qlearning_dataset(arrays: dict[str, Any], limit: int) -> list[tuple[Any, ...]]:
    """D4RL's reading of a file, row by row: (obs, action, reward, next_obs, done).

    Without `timeouts` it differs from D4RL's own code as `read_d4rl` says: steps count from 0 in every episode, and a
    row that terminates at the limit is kept. With them it is D4RL's own.
    """
    rows, step = [], 0
    for i in range(len(arrays["rewards"]) - 1):
        final = arrays["timeouts"][i] if "timeouts" in arrays else step == limit - 1
        done = bool(arrays["terminals"][i])
        if final and ("timeouts" in arrays or not done):
            step = 0
            continue
        rows.append(
            (arrays["observations"][i], arrays["actions"][i], arrays["rewards"][i], arrays["observations"][i + 1], done)
        )
        step = 0 if done or final else step + 1
    return rows


@pytest.mark.parametrize(
    ("arrays", "limit"),
    [
        (raw(), 200),
        (raw(timeouts=()), 200),
        (raw(timeouts=None), 4),
        (raw(timeouts=None, terminals=(3, 11)), 4),  # it terminates on the very step of the limit
        (raw(timeouts=(11,), terminals=(10,)), 200),
        (raw(timeouts=(6,), terminals=(6,)), 200),
    ],
    ids=("timeouts", "no timeout", "no key", "terminal at the limit", "ends of the file", "both at once"),
)
def test_rows_are_those_of_d4rl(tmp_path: Path, arrays: dict[str, Any], limit: int) -> None:
    env = envs.make("gymnax/Pendulum-v1", max_episode_steps=limit)
    dataset = dataset_files.load(hdf5(tmp_path / "pendulum_medium-v2.hdf5", arrays), env, tmp_path)
    want = qlearning_dataset(arrays, limit)
    batch = dataset.transitions
    assert dataset.size == len(want)
    for name, column in (("obs", 0), ("reward", 2), ("next_obs", 3), ("terminated", 4)):
        np.testing.assert_array_equal(getattr(batch, name), [row[column] for row in want], err_msg=name)
    np.testing.assert_allclose(2 * batch.action, [row[1] for row in want], atol=1e-6)
    assert not batch.truncated.any()


def test_next_actions_and_returns_of_d4rl(tmp_path: Path) -> None:
    """A row whose time ran out is no transition, but its action was taken and its reward was paid."""
    arrays = raw()
    dataset = dataset_files.load(hdf5(tmp_path / "a.hdf5", arrays), ENV, tmp_path)
    actions, rewards = arrays["actions"], arrays["rewards"].astype(np.float64)
    # Rows 0 1 2 | 4 5 6 | 7 8 | 10, and rows 3 and 9 timed out, 6 terminated, 11 is the last.
    np.testing.assert_array_equal(dataset.episode, [0, 0, 0, 1, 1, 1, 2, 2, 3])
    following = actions[[1, 2, 3, 5, 6, 6, 8, 9, 11]]
    np.testing.assert_allclose(2 * dataset.transitions.next_action, following, atol=1e-6)
    want = [rewards[:4].sum(), rewards[4:7].sum(), rewards[7:10].sum(), rewards[10:].sum()]
    np.testing.assert_allclose(dataset.episode_return, want, rtol=1e-6)
    np.testing.assert_array_equal(dataset.start_obs, arrays["observations"][[0, 4, 7, 10]])


# A row's own next observation, and ends that are marked in part.


def own_next(given: dict[str, Any]) -> dict[str, Any]:
    """With the observation that each row led to, which at the end of an episode is nowhere else in the file."""
    ends = np.asarray(given["terminals"], bool) | np.asarray(given.get("timeouts", np.zeros(12)), bool)
    elsewhere = numbers(12, 3, seed=8)
    following = np.roll(given["observations"], -1, axis=0)
    return {**given, "next_observations": np.where((ends | (np.arange(12) == 11))[:, None], elsewhere, following)}


def test_next_observations_of_the_file_are_the_next_observations(tmp_path: Path) -> None:
    """Which rows there are stays D4RL's; only where an episode terminates the row below says something else."""
    for name, arrays in (("timeouts", raw()), ("none", raw(timeouts=()))):
        with_next = own_next(arrays)
        plain, own = (
            dataset_files.load(hdf5(tmp_path / f"{name}{i}.hdf5", given), ENV, tmp_path)
            for i, given in enumerate((arrays, with_next))
        )
        kept = np.flatnonzero(~arrays["timeouts"] & (np.arange(12) < 11))
        np.testing.assert_array_equal(own.transitions.next_obs, with_next["next_observations"][kept])
        same = ~plain.transitions.terminated
        np.testing.assert_array_equal(own.transitions.next_obs[same], plain.transitions.next_obs[same])
        for field in ("obs", "action", "reward", "next_action", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(own.transitions, field), getattr(plain.transitions, field))
        np.testing.assert_array_equal(own.episode, plain.episode)


def test_rows_in_any_order_are_cut_off_after_each(tmp_path: Path) -> None:
    """Neither the observation nor the action of the row below has anything to do with a row."""
    arrays = {key: value[::-1] for key, value in own_next(raw(timeouts=None)).items()}
    dataset = dataset_files.load(hdf5(tmp_path / "shuffled.hdf5", arrays), ENV, tmp_path)
    batch, last = dataset.transitions, arrays["terminals"][:11]
    np.testing.assert_array_equal(batch.next_obs, arrays["next_observations"][:11])
    np.testing.assert_array_equal(batch.truncated, ~last)
    np.testing.assert_array_equal(batch.next_action, batch.action)
    np.testing.assert_array_equal(dataset.episode, np.arange(11))
    assert last.any() and not dataset.complete.any(), "nobody knows where the one that terminates began"


def test_what_begins_where_another_was_cut_off_is_not_whole(tmp_path: Path) -> None:
    """Rows 4 and 5 are missing: the second episode stops and the third, of which the end is there, begins anywhere."""
    arrays = {
        key: np.delete(value, (4, 5), axis=0) for key, value in own_next(raw(timeouts=(), terminals=(2, 8))).items()
    }
    dataset = dataset_files.load(hdf5(tmp_path / "hole.hdf5", arrays), ENV, tmp_path)
    np.testing.assert_array_equal(dataset.episode, [0, 0, 0, 1, 2, 2, 2, 3, 3])
    np.testing.assert_array_equal(dataset.complete, [True, False, False, False])
    np.testing.assert_array_equal(dataset.transitions.truncated, np.arange(9) == 3)


@pytest.mark.parametrize(
    ("arrays", "limit", "complete"),
    [
        (raw(), 4, [True, True, False, False]),  # 4, 3, 3 and 2 rows; the second terminates
        (raw(timeouts=None, terminals=(5,)), 4, [True, True, True, False]),  # 4, 2, 4 and 2, the last at the file's end
        (raw(timeouts=(3, 7, 11), terminals=()), 4, [True, True, True]),
        (raw(timeouts=(3, 7), terminals=(11,)), 9, [False, False, True]),
    ],
)
def test_an_episode_of_d4rl_is_whole_if_it_terminates_or_reaches_the_limit(
    tmp_path: Path, arrays: dict[str, Any], limit: int, complete: list[bool]
) -> None:
    env = envs.make(ENV.id, max_episode_steps=limit)
    dataset = dataset_files.load(hdf5(tmp_path / "a.hdf5", arrays), env, tmp_path)
    np.testing.assert_array_equal(dataset.complete, complete)


def test_what_was_cut_off_is_not_the_best(tmp_path: Path) -> None:
    """Two episodes of 10 steps and one of 3, at -1 a step."""
    arrays = {
        "observations": numbers(23, 3),
        "actions": numbers(23, 1),
        "rewards": -np.ones(23),
        "terminals": np.zeros(23, bool),
        "timeouts": np.arange(23) % 10 == 9,
    }
    env = envs.make(ENV.id, max_episode_steps=10)
    dataset = dataset_files.load(hdf5(tmp_path / "stub.hdf5", arrays), env, tmp_path)
    best = datasets.draw(dataset, "top=0.3")
    assert best.episode_return == [-10.0] and best.size == 9
    np.testing.assert_array_equal(best.transitions.obs, arrays["observations"][:9])


@pytest.mark.parametrize("timeouts", [(), (3,)])
def test_an_episode_longer_than_the_limit_is_refused(tmp_path: Path, timeouts: tuple[int, ...]) -> None:
    """The marks are there and say so: they are not all there."""
    file = hdf5(tmp_path / "unmarked.hdf5", raw(timeouts=timeouts, terminals=()))
    env = envs.make(ENV.id, max_episode_steps=7)
    message = (
        rf"episode {len(timeouts)} has {8 if timeouts else 12} steps, but the time limit is 7; mark where episodes"
    )
    with pytest.raises(DatasetError, match=message):
        dataset_files.load(file, env, tmp_path)
    assert dataset_files.load(file, ENV, tmp_path).size == 11 - len(timeouts)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in raw().items() if name != key}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("rewards"), r"has no rewards; expected the layout of D4RL: observations, actions, rewards, terminals"),
        ({**raw(), "rewards": numbers(11)}, r"different lengths or shapes: observations \[12, 3\], "),
        ({**raw(), "timeouts": np.zeros(5, bool)}, r"timeouts \[5\]; expected"),
        ({**raw(), "observations": numbers(12)}, "arrays of different lengths or shapes"),
        (raw(n=1), "holds 1 rows, too few"),
        (raw(n=2, timeouts=(0,)), "holds no transition whose next observation is known"),
        ({**raw(), "observations": numbers(12, 4)}, "has observations of 4 numbers, but 'gymnax/Pendulum-v1' shows 3"),
        ({**raw(), "actions": numbers(12, 2)}, r"action is \[9, 2\], expected \[9, 1\]"),
        ({**raw(), "actions": 3 * numbers(12, 1)}, r"lies outside of the action box \[-2.0\] .. \[2.0\]"),
        ({**raw(), "rewards": np.full(12, np.inf)}, "rewards of row 0 are not finite"),
        # Of rows that are no transitions: one that timed out, whose reward counts in a return, and the last one.
        ({**raw(), "rewards": np.where(np.arange(12) == 3, np.nan, 0.5)}, "rewards of row 3 are not finite"),
        ({**raw(), "actions": np.where(np.arange(12) == 11, np.nan, 0.5)[:, None]}, "actions of row 11 are not"),
        ({**raw(), "terminals": np.full(12, np.nan)}, "terminals of row 0 are not finite"),
        ({**raw(), "observations": np.float32(1.0)}, r"different lengths or shapes: observations \[\]"),
        ({**raw(), "rewards": [b"one"] * 12}, "rewards are of type .*, expected numbers"),
        ({**raw(), "terminals": np.full(12, 0.5)}, r"terminals of row 0 is 0\.5; expected 0 or 1"),
        ({**raw(), "timeouts": np.arange(12)}, "timeouts of row 2 is 2; expected 0 or 1"),
        ({**raw(), "next_observations": numbers(12, 2)}, r"different lengths or shapes: .*next_observations \[12, 2\]"),
        ({**raw(), "next_observations": numbers(11, 3)}, r"different lengths or shapes: .*next_observations \[11, 3\]"),
        # Finite in float64, infinite in the float32 that is kept; also in the last row, which is no transition.
        *(
            (
                {**raw(), key: np.where(np.arange(12 * width).reshape(12, width) // width == row, 1e39, 0.0)},
                rf"{key} of row {row} are not finite in float32 \(1e\+39\)",
            )
            for key, width in (("observations", 3), ("actions", 1), ("rewards", 1), ("next_observations", 3))
            for row in (4, 11)
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_fault(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        dataset_files.load(hdf5(tmp_path / "broken.hdf5", arrays), ENV, tmp_path)
    assert "broken.hdf5" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = Path(hdf5(tmp_path / "cut.hdf5", raw()))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match="cannot be read as HDF5"):
        dataset_files.load(str(path), ENV, tmp_path)


def test_a_group_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "group.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in raw(timeouts=None).items():
            file[key] = value
        file.create_group("timeouts")
    with pytest.raises(DatasetError, match="has no timeouts"):
        dataset_files.load(str(path), ENV, tmp_path)


def test_damage_within_a_file_is_named(tmp_path: Path) -> None:
    """The file opens; a compressed chunk of it does not."""
    path = tmp_path / "holes.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in raw().items():
            file.create_dataset(key, data=value, compression="gzip", chunks=value.shape)
        chunk = file["observations"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"holes\.hdf5' cannot be read as HDF5 \("):
        dataset_files.load(str(path), ENV, tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "medium.npz"
    path.write_bytes(b"no HDF5")
    with pytest.raises(DatasetError, match=r"medium\.npz' cannot be read as HDF5 \("):
        dataset_files.load(str(path), ENV, tmp_path)


def test_rewards_and_flags_may_be_columns(tmp_path: Path) -> None:
    arrays = raw()
    columns = {key: value.reshape(12, -1) for key, value in arrays.items()}
    flat, wide = (
        dataset_files.load(hdf5(tmp_path / f"{i}.hdf5", given), ENV, tmp_path)
        for i, given in enumerate((arrays, columns))
    )
    np.testing.assert_array_equal(flat.rows, wide.rows)
    np.testing.assert_array_equal(flat.episode_return, wide.episode_return)


@pytest.mark.parametrize("package", ("minari", "h5py"))
def test_a_missing_package_is_named_with_its_remedy(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hdf5(tmp_path / "a.hdf5", raw())
    monkeypatch.setitem(sys.modules, package, None)
    for action in (lambda: dataset_files.load(path, ENV, tmp_path), lambda: write(tmp_path)):
        with pytest.raises(DatasetError, match=r"datasets need .*pip install 'rlsuite\[datasets\]'"):
            action()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset '.*nothing\.hdf5'"):
        dataset_files.load(str(tmp_path / "nothing.hdf5"), ENV, tmp_path)


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    metadata = json.loads((write(tmp_path) / "data" / "metadata.json").read_text())
    assert metadata["rlsuite"]["environment"] == "gymnax/Pendulum-v1" and metadata["rlsuite"]["seed"] == 7
    assert metadata["algorithm_name"] == "sac"
