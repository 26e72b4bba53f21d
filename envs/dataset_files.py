"""Datasets on disk: Minari's format, read and written by Minari itself, and HDF5 files in the layout of D4RL.

A dataset is named by the path of such a file or folder, or by an id: of a dataset made here (below a folder of ours,
where Minari's version `-v0` may be left out), or of one in Minari's own local store. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs import datasets
from envs.core import Box, Env, Reference
from envs.datasets import Dataset, DatasetError, Records

VERSION = "-v0"
"""of datasets made here, in Minari's naming"""
OURS = "rlsuite"
"""the key of Minari's metadata below which ours lie"""
MAKING = ".making-"
"""how the names of folders begin in which a dataset is being made, or was when its process died"""
METADATA = Path("data", "metadata.json")
"""where a Minari folder says what it holds"""
HDF5 = (".hdf5", ".h5")
D4RL_KEYS = ("observations", "actions", "rewards", "terminals")
MINARI_ROOT = "MINARI_DATASETS_PATH"
"""the environment variable in which Minari looks for its store"""


def find(dataset_id: str, folder: Path) -> Path | None:
    """The HDF5 file, or the Minari folder that holds `data/`, of this name; None if there is none."""
    path = Path(dataset_id)
    if path.suffix in HDF5 or path.is_file():
        return path if path.is_file() else None
    places = [path, *(root / name for root in (folder, minari_root()) for name in (dataset_id, dataset_id + VERSION))]
    return next((place for place in places if (place / "data").is_dir()), None)


def minari_root() -> Path:
    """Minari's own local store."""
    return Path(os.environ.get(MINARI_ROOT, Path.home() / ".minari" / "datasets"))


def available(folder: Path) -> list[str]:
    """The ids that `find` finds in `folder` and in Minari's store."""
    found = set()
    for root in (folder, minari_root()):
        found |= {path.parent.parent.relative_to(root).as_posix() for path in root.glob("**/data/metadata.json")}
    return sorted(name for name in found if not name.startswith(MAKING))


def load(dataset_id: str, env: Env, folder: Path) -> Dataset:
    """Read the dataset of this name, for this environment.

    Raises:
        DatasetError: there is none, the package that reads it is missing, it is damaged, or of another environment.
    """
    place = find(dataset_id, folder)
    if place is None:
        near = difflib.get_close_matches(dataset_id, available(folder), n=1)
        raise DatasetError(
            f"no dataset '{dataset_id}'; "
            + (f"did you mean '{near[0]}'?" if near else "expected an HDF5 file, a Minari folder, or the id of one")
        )
    facts: dict[str, Any]
    if place.is_file():
        records, facts = read_d4rl(place, env.max_episode_steps), {"source": f"D4RL layout, {place.name}"}
    else:
        records, facts = read_minari(place)
    if records.obs.shape[1] != env.obs_dim:
        raise DatasetError(
            f"dataset '{dataset_id}' has observations of {records.obs.shape[1]} numbers, but '{env.id}' shows "
            f"{env.obs_dim}; name the environment that it is of"
        )
    return datasets.build(dataset_id, records, env.action_space, source=facts["source"], reference=reference_of(place))


def reference_of(place: Path) -> Reference | None:
    """The returns for normalised scores that a dataset brings, as those made here do. Its transitions are not read.

    Raises:
        DatasetError: what a folder says of its dataset cannot be read.
    """
    if place.is_file():
        return None
    ours = read_metadata(place).get(OURS, {})
    return Reference(**ours["reference"]) if "reference" in ours else None


# --- Minari -----------------------------------------------------------------------------------------------------------


def minari() -> Any:
    """The package. Raises DatasetError where it, or what it reads HDF5 with, is missing."""
    try:
        import h5py  # noqa: F401
        import minari as package
    except ImportError as error:
        raise DatasetError(f"datasets need '{error.name}'; install it with: pip install 'rlsuite[datasets]'") from error
    return package


def read_minari(place: Path) -> tuple[Records, dict[str, Any]]:
    """What a Minari folder holds, and what it says of its source and reference returns.

    Raises:
        DatasetError: it is damaged, empty, or has observations or actions that are no plain vectors.
    """
    package = minari()
    try:
        found = package.MinariDataset(place / "data")
        metadata = json.loads((place / METADATA).read_text())
        episodes = list(found.iterate_episodes())
    except Exception as error:  # whatever Minari, h5py or Arrow raise on a file that is not whole
        raise DatasetError(
            f"dataset '{place}' cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
            "copy or make it again"
        ) from error
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        if type(space).__name__ != "Box" or len(space.shape) != 1:
            raise DatasetError(f"dataset '{place}' has {name} in {space}; expected vectors of continuous numbers")
    if not episodes:
        raise DatasetError(f"dataset '{place}' holds no episode; copy or make it again")
    parts: list[dict[str, np.ndarray]] = []
    for number, episode in enumerate(episodes):
        length = len(episode.rewards)
        if not length or len(episode.observations) != length + 1 or len(episode.actions) != length:
            raise DatasetError(
                f"dataset '{place}': episode {number} has {len(episode.observations)} observations and "
                f"{len(episode.actions)} actions for {length} rewards; expected one observation more, as many actions"
            )
        terminated = np.asarray(episode.terminations, bool)
        # A record that simply stops is cut off like one whose time ran out: its last value is bootstrapped.
        truncated = np.arange(length) == length - 1
        parts.append(
            {
                "obs": np.asarray(episode.observations[:-1]),
                "action": np.asarray(episode.actions),
                "reward": np.asarray(episode.rewards),
                "next_obs": np.asarray(episode.observations[1:]),
                "next_action": np.concatenate([episode.actions[1:], episode.actions[-1:]]),
                "terminated": terminated,
                "truncated": truncated & ~terminated,
                "episode": np.full(length, number),
            }
        )
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    returns = np.array([np.sum(part["reward"], dtype=np.float64) for part in parts])
    ours = metadata.get(OURS, {})
    facts = {"source": ours.get("source", f"Minari, {metadata.get('dataset_id', place.name)}")}
    return Records(**together, episode_return=returns), facts


def write(
    dataset_id: str,
    records: Records,
    env: Env,
    folder: Path,
    *,
    reference: Reference | None,
    source: str,
    algorithm: str,
    seed: int,
) -> Path:
    """Write a dataset into `folder` in Minari's format, whole or not at all, and return where it lies.

    Args:
        dataset_id: `<environment>/<tier>`; Minari knows it as this with `-v0` behind.
        records: whole episodes.
        env: what they were played in.
        folder: for datasets; made if it is not there.
        reference: the returns that normalised scores lie between; None if they are not known yet, see `complete`.
        source: where the data come from, in words.
        algorithm: what was trained for it.
        seed: of the run whose policies were recorded.

    Raises:
        DatasetError: it is there already, the folder cannot be written, or Minari is missing.
    """
    package = minari()
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    space = env.action_space
    assert isinstance(space, Box)
    target = folder / (dataset_id + VERSION)
    if target.exists():
        raise DatasetError(f"dataset '{target}' is there already; delete it to make it anew")
    buffers = []
    for rows in np.split(np.arange(len(records.obs)), np.flatnonzero(np.diff(records.episode)) + 1):
        observations = np.concatenate([records.obs[rows], records.next_obs[rows[-1:]]])
        buffers.append(
            EpisodeBuffer(
                observations=np.asarray(observations, np.float32),
                actions=np.asarray(records.action[rows], np.float32),
                rewards=np.asarray(records.reward[rows], np.float32),
                terminations=records.terminated[rows],
                truncations=records.truncated[rows],
            )
        )
    beside = None
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
        # A whole path, since Minari 0.5 joins a relative one to itself.
        beside = Path(tempfile.mkdtemp(prefix=MAKING, dir=folder.resolve()))
        with root_at(beside), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no author, no permalink and no Gymnasium environment
            made = package.create_dataset_from_buffers(
                dataset_id + VERSION,
                buffers,
                observation_space=spaces.Box(-np.inf, np.inf, (env.obs_dim,), np.float32),
                action_space=spaces.Box(
                    np.array(space.low, np.float32), np.array(space.high, np.float32), dtype=np.float32
                ),
                algorithm_name=algorithm,
                description=source,
            )
        ours = {"environment": env.id, "source": source, "seed": seed}
        made.storage.update_metadata({OURS: ours} if reference is None else with_reference(ours, reference))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside / (dataset_id + VERSION), target)
    except OSError as error:
        if target.exists():  # another process was faster
            return target
        raise DatasetError(f"cannot write '{target}' ({error.strerror or error}); choose another folder") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return target


def complete(dataset_id: str, folder: Path, reference: Reference) -> None:
    """Give a dataset made here its reference returns, if it is in this folder and has none.

    Raises:
        DatasetError: what the folder says of it cannot be read or written.
    """
    place = folder / (dataset_id + VERSION)
    file = place / METADATA
    if not file.exists():
        return
    metadata = read_metadata(place)
    if "reference" in metadata.get(OURS, {}):
        return
    beside = file.with_name(f".metadata-{os.getpid()}.json")
    try:
        beside.write_text(json.dumps(metadata | with_reference(metadata.get(OURS, {}), reference)))
        os.replace(beside, file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DatasetError(f"cannot write '{file}' ({error.strerror or error}); choose another folder") from error


def size(dataset_id: str, folder: Path) -> int:
    """How many transitions a Minari folder that `find` finds holds, by its own account.

    Raises:
        DatasetError: it has no such account.
    """
    place = find(dataset_id, folder)
    assert place is not None and place.is_dir()
    steps = read_metadata(place).get("total_steps")
    if not isinstance(steps, int):
        raise DatasetError(f"dataset '{place}' does not say how many steps it holds; copy or make it again")
    return steps


def with_reference(ours: dict[str, Any], reference: Reference) -> dict[str, Any]:
    """What Minari's metadata hold of a dataset made here, `ours` below our key, and of these returns."""
    return {
        OURS: {**ours, "reference": reference._asdict()},
        "ref_min_score": reference.low,
        "ref_max_score": reference.high,
    }


def read_metadata(place: Path) -> dict[str, Any]:
    """What a Minari folder says of its dataset. Raises DatasetError if that cannot be read."""
    try:
        metadata: dict[str, Any] = json.loads((place / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"dataset '{place}' cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
            "copy or make it again"
        ) from error
    return metadata


@contextlib.contextmanager
def root_at(folder: Path) -> Iterator[None]:
    """Minari's store is this folder while the context lasts."""
    before = os.environ.get(MINARI_ROOT)
    os.environ[MINARI_ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[MINARI_ROOT]
        else:
            os.environ[MINARI_ROOT] = before


# --- D4RL -------------------------------------------------------------------------------------------------------------


def read_d4rl(file: Path, max_episode_steps: int) -> Records:
    """What an HDF5 file in the layout of D4RL holds, as D4RL's `qlearning_dataset` reads it.

    The observation that a step led to is that of the row below. Rows whose time ran out are left out, since there it
    is the next episode's; so is the last row of the file, which nothing follows. Where a file has no `timeouts`, an
    episode that has not ended before is taken to end after `max_episode_steps` rows. Returns count every reward.

    Deviations from `qlearning_dataset` (d4rl/__init__.py), both only where a file has no `timeouts`:
    - Rows are counted from 0 in every episode. D4RL counts from 1 after a termination, so that the next episode ends a
      row early, and if it does run out of time its last row is kept, with the first observation of another episode.
    - A row that terminates on the very step of the limit is kept; D4RL leaves it out.

    Raises:
        DatasetError: it is no such file, is damaged or empty, or its arrays do not belong together.
    """
    minari()  # for its error where h5py is missing
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            keys = [*D4RL_KEYS, *(["timeouts"] if "timeouts" in opened else [])]
            lacking = [key for key in keys if not isinstance(opened.get(key), h5py.Dataset)]
            if lacking:
                raise DatasetError(
                    f"'{file}' has no {', '.join(lacking)}; expected the layout of D4RL: {', '.join(D4RL_KEYS)} "
                    "and, if there are any, timeouts"
                )
            arrays = {key: np.asarray(opened[key][()]) for key in keys}
    except DatasetError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError and others on a file that is not whole
        raise DatasetError(
            f"'{file}' cannot be read as HDF5 ({' '.join(str(error).split())[:160]}); copy it again"
        ) from error
    n = arrays["rewards"].size
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"'{file}': {key} are of type {array.dtype}, expected numbers; copy it again")
        # Some files have rewards and flags as columns.
        fits = array.ndim == 2 and len(array) == n if key in ("observations", "actions") else array.size == n
        if not fits:
            shapes = ", ".join(f"{name} {list(there.shape)}" for name, there in arrays.items())
            raise DatasetError(
                f"'{file}': arrays of different lengths or shapes: {shapes}; expected [n, obs_dim], "
                "[n, action_dim] and [n] for the others; it is damaged, copy it again"
            )
    if n < 2:
        raise DatasetError(f"'{file}' holds {n} rows, too few for one transition; copy it again")
    for key, array in arrays.items():
        # All rows, since rewards of rows that are left out count in returns.
        finite = np.isfinite(array).reshape(n, -1).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise DatasetError(f"'{file}': {key} of row {bad} are not finite; remove that episode or copy it again")
    obs, action = arrays["observations"], arrays["actions"]
    reward, terminated = arrays["rewards"].reshape(n), arrays["terminals"].reshape(n).astype(bool)
    if "timeouts" not in arrays:
        ended = np.zeros(n, bool)
        steps = 0
        for i in range(n):
            steps += 1
            ended[i] = steps == max_episode_steps and not terminated[i]
            if terminated[i] or ended[i]:
                steps = 0
    else:
        ended = arrays["timeouts"].reshape(n).astype(bool)
    last = terminated | ended
    episode: np.ndarray = np.cumsum(last) - last
    # As in `qlearning_dataset`, also a row that has terminated and timed out.
    kept = np.arange(n) < n - 1
    kept &= ~ended
    if not kept.any():
        raise DatasetError(f"'{file}' holds no transition whose next observation is known; copy it again")
    following = np.minimum(np.arange(n) + 1, n - 1)
    numbers: np.ndarray
    numbers, renumbered = np.unique(episode[kept], return_inverse=True)
    # The end of the record of an episode whose last rows were left out: no time ran out in the row that is left, and
    # the row below still belongs to the episode, with the action that was taken there.
    return Records(
        obs=obs[kept],
        action=action[kept],
        reward=reward[kept],
        next_obs=obs[following][kept],
        next_action=np.where(terminated[:, None], action, action[following])[kept],
        terminated=terminated[kept],
        truncated=np.zeros(kept.sum(), bool),
        episode=renumbered,
        episode_return=np.bincount(episode, weights=reward)[numbers],
    )
