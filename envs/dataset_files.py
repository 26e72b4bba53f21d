"""Datasets on disk: Minari's format, read and written by Minari itself, and HDF5 files in the layout of D4RL.

A dataset is named by the path of such a file or folder, or by an id: of a dataset made here (below a folder of ours,
where Minari's version `-v0` may be left out), or of one in Minari's own local store. Nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs import datasets, registry
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
D4RL_FLAGS = ("terminals", "timeouts")
NEXT = "next_observations"
"""the key of a D4RL file that says where each row's action led"""
NAMES_OF_ENVIRONMENT = ("environment", "env_id", "env_name", "env", "env_spec")
"""attributes of HDF5 files that say which environment their data are of"""
MINARI_ROOT = "MINARI_DATASETS_PATH"
"""the environment variable in which Minari looks for its store"""


class Facts(NamedTuple):
    """The facts that a dataset states in addition to its transitions."""

    source: str
    """in words"""
    environment: str | None = None
    """the id, ours, of the environment that a dataset made here is of"""
    outside: str | None = None
    """Gymnasium's or D4RL's name of the environment"""
    action_box: Box | None = None
    """of that environment, for a dataset made here"""
    max_episode_steps: int | None = None
    """the time limit that it was recorded with"""
    reference: Reference | None = None
    """returns for normalised scores, of that environment"""


def find(dataset_id: str, folder: Path) -> Path | None:
    """The HDF5 file, or the Minari folder that holds `data/`, of this name; None if there is none."""
    path = Path(dataset_id).expanduser()
    if path.suffix in HDF5 or path.is_file():
        return path if path.is_file() else None
    places = [path, *(root / name for root in (folder, minari_root()) for name in (dataset_id, dataset_id + VERSION))]
    return next((place for place in places if (place / "data").is_dir()), None)


def minari_root() -> Path:
    """Minari's own local store."""
    return Path(os.environ.get(MINARI_ROOT, Path.home() / ".minari" / "datasets")).expanduser()


def available(folder: Path) -> list[str]:
    """The ids that `find` finds in `folder` and in Minari's store."""
    found = set()
    for root in (folder, minari_root()):
        found |= {path.parent.parent.relative_to(root).as_posix() for path in root.glob("**/data/metadata.json")}
    return sorted(name for name in found if not name.startswith(MAKING))


def load(dataset_id: str, env: Env, folder: Path, clip_actions: bool = False) -> Dataset:
    """Read the dataset of this name, for this environment.

    Args:
        dataset_id: a path or an id.
        env: what it is of; wrappers that leave returns comparable may differ.
        folder: of datasets made here.
        clip_actions: clip actions to the action box instead of refusing those outside of it.

    Raises:
        DatasetError: there is none, the package that reads it is missing, it is damaged, contradicts itself, or is of
            another environment.
    """
    place = find(dataset_id, folder)
    if place is None:
        near = difflib.get_close_matches(dataset_id, available(folder), n=1)
        raise DatasetError(
            f"no dataset '{dataset_id}'; "
            + (f"did you mean '{near[0]}'?" if near else "expected an HDF5 file, a Minari folder, or the id of one")
        )
    facts = facts_of(place)
    check_environment(dataset_id, facts, env)
    read = read_d4rl if place.is_file() else read_minari
    records = read(place, facts.max_episode_steps or env.max_episode_steps)
    if records.obs.shape[1] != env.obs_dim:
        raise DatasetError(
            f"dataset '{dataset_id}' has observations of {records.obs.shape[1]} numbers, but '{env.id}' shows "
            f"{env.obs_dim}; name the environment that it is of"
        )
    return datasets.build(
        dataset_id,
        records,
        env.action_space,
        source=facts.source,
        reference=facts.reference,
        clip_actions=clip_actions,
    )


def reference_of(place: Path) -> Reference | None:
    """The returns for normalised scores that a dataset brings, as those made here do. Its transitions are not read.

    Raises:
        DatasetError: what a folder says of its dataset cannot be read.
    """
    return None if place.is_file() else facts_of(place).reference


def facts_of(place: Path) -> Facts:
    """What a dataset says of itself. Raises DatasetError if that cannot be read, or makes no sense."""
    if place.is_file():
        with opened(place) as file:
            named = [file.attrs[name] for name in NAMES_OF_ENVIRONMENT if name in file.attrs]
        outside, limit = next((spec_of(text) for text in named if isinstance(text, str)), (None, None))
        return Facts(f"D4RL layout, {place.name}", outside=outside, max_episode_steps=limit)
    metadata = read_metadata(place)
    ours = metadata.get(OURS, {})
    spec = metadata.get("env_spec")
    outside, limit = spec_of(spec) if isinstance(spec, str) else (None, None)
    return Facts(
        source=ours.get("source", f"Minari, {metadata.get('dataset_id', place.name)}"),
        environment=ours.get("environment"),
        outside=outside,
        action_box=box_of(metadata.get("action_space")) if ours else None,
        max_episode_steps=ours.get("max_episode_steps", limit),
        reference=reference_in(ours, place),
    )


def box_of(text: str | None) -> Box | None:
    """The action box that Minari's description of a space holds; None if that is no such thing."""
    try:
        space = json.loads(text or "")
        return Box(tuple(space["low"]), tuple(space["high"]))
    except (ValueError, TypeError, KeyError):
        return None


def spec_of(text: str) -> tuple[str | None, int | None]:
    """The name and the time limit that Gymnasium's description of an environment holds; it may be a name alone."""
    try:
        spec = json.loads(text)
    except ValueError:
        return text, None
    if not isinstance(spec, dict):
        return text, None
    limit = spec.get("max_episode_steps")
    return spec.get("id"), limit if isinstance(limit, int) and limit > 0 else None


def reference_in(ours: dict[str, Any], place: Path) -> Reference | None:
    """The reference returns in the metadata of a dataset made here. Raises DatasetError if they are none."""
    given = ours.get("reference")
    if given is None:
        return None
    try:
        reference = Reference(**given)
        fine = bool(np.isfinite([reference.low, reference.high]).all())
    except TypeError:
        fine = False
    if not fine:
        raise DatasetError(
            f"dataset '{place}' has reference returns {given}; expected finite low and high, low_source and high_source"
        )
    return reference


def check_environment(dataset_id: str, facts: Facts, env: Env) -> None:
    """Raise DatasetError if a dataset says that it is of another environment.

    An id with wrappers is another environment, unless they leave returns comparable and the action box as it was.
    Gymnasium's names, and D4RL's, are compared with the task's without versions.
    """
    if facts.environment is None and facts.outside is None:
        return
    task = registry.comparable(env.id)
    if facts.environment is not None:
        named = facts.environment
        same = task == (registry.comparable(named) if named.split("+")[0] == env.id.split("+")[0] else named)
    else:
        named = facts.outside or ""
        same = "+" not in task and plain(task.split("/")[1]) in names_of(named)
    if not same:
        raise DatasetError(
            f"dataset '{dataset_id}' is of '{named}', as its metadata say, not of '{env.id}'; name one of "
            f"'{env.id}', or the environment that it is of"
        )
    box, space = facts.action_box, env.action_space
    if box is None or not isinstance(space, Box):
        return
    if box.dim != space.dim or not np.allclose([box.low, box.high], [space.low, space.high]):
        raise DatasetError(
            f"dataset '{dataset_id}' is of '{named}' with actions in {list(box.low)} .. {list(box.high)}, but those of "
            f"'{env.id}' are in {list(space.low)} .. {list(space.high)}; name '{named}'"
        )


def names_of(outside: str) -> set[str]:
    """What a name such as `HalfCheetah-v5`, `dm_control/cheetah-run-v0` or `hopper-medium-v2` may call a task."""
    parts = [part.split("-") for part in outside.split("+")[0].split("/")]
    return {plain("-".join(words[:n])) for words in parts for n in range(1, len(words) + 1)}


def plain(name: str) -> str:
    """A task's name without version, in small letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-v[0-9]+$", "", name.lower()))


def unreadable(what: str, error: Exception, remedy: str) -> DatasetError:
    """What to say of a dataset that could not be read: `remedy`, unless the error knows a better one."""
    if isinstance(error, PermissionError):
        remedy = "let it be read, or name another path"
    elif isinstance(error, ImportError):
        remedy = "install what is missing"
    reason = " ".join(str(error).split())[:160]
    return DatasetError(f"{what} ({type(error).__name__}: {reason}); {remedy}")


def check_lengths(place: Path, lengths: np.ndarray, max_episode_steps: int) -> None:
    """Raise DatasetError if an episode, with steps `[episodes]`, is longer than the time limit lets it be."""
    if (lengths > max_episode_steps).any():
        longest = int(np.argmax(lengths > max_episode_steps))
        raise DatasetError(
            f"'{place}': episode {longest} has {lengths[longest]} steps, but the time limit is {max_episode_steps}; "
            "mark where episodes end, or say with what limit they were recorded: in its metadata, else as "
            "--max-episode-steps"
        )


# --- Minari -----------------------------------------------------------------------------------------------------------


def minari() -> Any:
    """The package. Raises DatasetError where it, or what it reads HDF5 with, is missing."""
    try:
        import h5py  # noqa: F401
        import minari as package
    except ImportError as error:
        raise DatasetError(f"datasets need '{error.name}'; install it with: pip install 'rlsuite[datasets]'") from error
    return package


def read_minari(place: Path, max_episode_steps: int) -> Records:
    """What a Minari folder holds. An episode is complete that terminates, or has as many steps as the time limit.

    Raises:
        DatasetError: it is damaged, empty, contradicts itself, or has observations or actions that are no vectors.
    """
    package = minari()
    version = read_metadata(place).get("minari_version")
    if version not in package.supported_dataset_versions:
        raise DatasetError(
            f"dataset '{place}' is of Minari {version}, and Minari {package.__version__} here reads "
            f"{', '.join(sorted(package.supported_dataset_versions))}; upgrade Minari, or make the dataset again"
        )
    try:
        found = package.MinariDataset(place / "data")
        episodes = list(found.iterate_episodes())
    except Exception as error:  # whatever Minari, h5py or Arrow raise on a file that is not whole
        remedy = "copy or make it again; if it is whole, upgrade Minari"
        raise unreadable(f"dataset '{place}' cannot be read", error, remedy) from error
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        if type(space).__name__ != "Box" or len(space.shape) != 1:
            raise DatasetError(f"dataset '{place}' has {name} in {space}; expected vectors of continuous numbers")
    if not episodes:
        raise DatasetError(f"dataset '{place}' holds no episode; record some, or name another")
    parts = [rows_of(place, number, episode) for number, episode in enumerate(episodes)]
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lengths = np.array([len(part["reward"]) for part in parts])
    check_lengths(place, lengths, max_episode_steps)
    return Records(
        **together,
        episode_return=np.array([np.sum(part["reward"], dtype=np.float64) for part in parts]),
        complete=together["terminated"][np.cumsum(lengths) - 1] | (lengths == max_episode_steps),
    )


def rows_of(place: Path, number: int, episode: Any) -> dict[str, np.ndarray]:
    """The rows of one of Minari's episodes, as fields of `Records`.

    Raises:
        DatasetError: it has no step, its arrays are of different lengths or no numbers, or it goes on after its end.
    """
    what = f"dataset '{place}': episode {number}"
    arrays = {
        "rewards": np.asarray(episode.rewards),
        "observations": np.asarray(episode.observations),
        "actions": np.asarray(episode.actions),
        "terminations": np.asarray(episode.terminations),
        "truncations": np.asarray(episode.truncations),
    }
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"{what} has {name} of type {array.dtype}; expected numbers")
    length = len(episode.rewards)
    if not length:
        raise DatasetError(f"{what} has no step, only where it began; leave it out")
    lengths = {name: len(array) for name, array in arrays.items()}
    if lengths != {name: length + (name == "observations") for name in arrays}:
        raise DatasetError(
            f"{what} has {lengths['observations']} observations and {lengths['actions']} actions for {length} rewards, "
            f"with {lengths['terminations']} terminations and {lengths['truncations']} truncations; expected one "
            "observation more, as many of the others"
        )
    for name in ("terminations", "truncations"):
        flags = arrays[name]
        if flags.shape != (length,) or not np.isin(flags, (0, 1)).all():
            raise DatasetError(f"{what} has {name} that are not one 0 or 1 a step")
        if flags[:-1].any():
            raise DatasetError(
                f"{what} has {length} steps and goes on after step {int(np.argmax(flags))}, which is among its {name}; "
                "split it there"
            )
    obs, action, terminated = arrays["observations"], arrays["actions"], arrays["terminations"].astype(bool)
    return {
        "obs": obs[:-1],
        "action": action,
        "reward": arrays["rewards"],
        "next_obs": obs[1:],
        "next_action": np.concatenate([action[1:], action[-1:]]),
        "terminated": terminated,
        # A record that simply stops is cut off like one whose time ran out: its last value is bootstrapped.
        "truncated": (np.arange(length) == length - 1) & ~terminated,
        "episode": np.full(length, number),
    }


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
        dataset_id: `<environment>/<tier>`; Minari knows it as this with `-v0` after it.
        records: episodes; those that are not complete simply stop, without a mark of truncation.
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
        raise DatasetError(f"dataset '{target}' is there already; delete it to make it again")
    buffers = []
    truncated = records.truncated & records.complete[records.episode]
    for rows in np.split(np.arange(len(records.obs)), np.flatnonzero(np.diff(records.episode)) + 1):
        observations = np.concatenate([records.obs[rows], records.next_obs[rows[-1:]]])
        buffers.append(
            EpisodeBuffer(
                observations=np.asarray(observations, np.float32),
                actions=np.asarray(records.action[rows], np.float32),
                rewards=np.asarray(records.reward[rows], np.float32),
                terminations=records.terminated[rows],
                truncations=truncated[rows],
            )
        )
    temporary = None
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
        # A whole path, since Minari 0.5 joins a relative one to itself.
        temporary = Path(tempfile.mkdtemp(prefix=MAKING, dir=folder.resolve()))
        with root_at(temporary), warnings.catch_warnings():
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
        ours = {"environment": env.id, "max_episode_steps": env.max_episode_steps, "source": source, "seed": seed}
        made.storage.update_metadata({OURS: ours} if reference is None else with_reference(ours, reference))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / (dataset_id + VERSION), target)
    except OSError as error:
        if target.exists():  # another process was faster
            return target
        raise DatasetError(f"cannot write '{target}' ({error.strerror or error}); choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
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
    temporary = file.with_name(f".metadata-{os.getpid()}.json")
    try:
        temporary.write_text(json.dumps(metadata | with_reference(metadata.get(OURS, {}), reference)))
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
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
        if not isinstance(metadata, dict) or not isinstance(metadata.get(OURS, {}), dict):
            raise ValueError(f"{METADATA} is no table of names and values")
    except FileNotFoundError as error:
        raise unreadable(
            f"dataset '{place}' cannot be read", error, "name a folder of Minari's, or copy the whole of this one"
        ) from error
    except (OSError, ValueError) as error:
        raise unreadable(f"dataset '{place}' cannot be read", error, "copy or make it again") from error
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


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The HDF5 file, open for reading. Raises DatasetError where it, or what is read of it inside, cannot be read."""
    minari()  # for its error where h5py is missing
    import h5py

    try:
        with h5py.File(file, "r") as found:
            yield found
    except DatasetError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, KeyError and others on a file that is not whole
        whole = "copy it again; if it is whole, upgrade h5py"
        remedy = whole if h5py.is_hdf5(file) else "name an HDF5 file, or a Minari folder"
        raise unreadable(f"'{file}' cannot be read as HDF5", error, remedy) from error


def read_d4rl(file: Path, max_episode_steps: int) -> Records:
    """What an HDF5 file in the layout of D4RL holds, as D4RL's `qlearning_dataset` reads it.

    The observation that a step led to is the row's in `next_observations`, else that of the row below. Rows whose time
    ran out are left out, since there the row below is the next episode's; so is the last row of the file, which nothing
    follows. They are left out as well where `next_observations` says what they led to, so that the rows are D4RL's.
    Where a file has no `timeouts`, an episode that has not ended before is taken to end after `max_episode_steps` rows.
    Returns count every reward. An episode is complete that terminates, or has as many rows as the time limit.

    Deviations from `qlearning_dataset` (d4rl/__init__.py), the first two only where a file has no `timeouts`:
    - Rows are counted from 0 in every episode. D4RL counts from 1 after a termination, so that the next episode ends a
      row early, and if it does run out of time its last row is kept, with the first observation of another episode.
    - A row that terminates on the very step of the limit is kept; D4RL leaves it out.
    - D4RL does not look at `next_observations`. Where the row below begins elsewhere than a row led to, the record of
      an episode is cut off: that row is truncated, what was done after it is not known, and the episode that begins in
      the row below is not complete either, nor is any if most rows are like this.

    Raises:
        DatasetError: it is no such file, is damaged or empty, its arrays do not belong together, or an episode is
            longer than the time limit.
    """
    arrays = arrays_of(file)
    n = len(arrays["observations"])
    obs, action = arrays["observations"], arrays["actions"]
    reward, terminated = arrays["rewards"].reshape(n), arrays["terminals"].reshape(n).astype(bool)
    following = np.minimum(np.arange(n) + 1, n - 1)
    next_obs, jumps = obs[following], np.zeros(n, bool)
    if NEXT in arrays:
        # To rounding, since a file may hold the two in different precision.
        jumps = ~np.isclose(arrays[NEXT], next_obs, rtol=1e-5, atol=1e-6).all(axis=1) & ~terminated
        next_obs = arrays[NEXT]
    if "timeouts" not in arrays:
        ended = np.zeros(n, bool)
        steps = 0
        for i in range(n):
            steps += 1
            ended[i] = steps == max_episode_steps and not terminated[i]
            if terminated[i] or ended[i] or jumps[i]:
                steps = 0
    else:
        ended = arrays["timeouts"].reshape(n).astype(bool)
    jumps &= ~ended
    last = terminated | ended | jumps
    episode: np.ndarray = np.cumsum(last) - last
    lengths = np.bincount(episode)
    check_lengths(file, lengths, max_episode_steps)
    last_rows = np.cumsum(lengths) - 1
    whole = terminated[last_rows] | (lengths == max_episode_steps)
    # What follows a jump may begin in the middle of an episode, and in a file in any order everything may.
    whole &= np.append(True, ~jumps[last_rows[:-1]]) & (2 * jumps.sum() <= (~(terminated | ended)).sum())
    # As in `qlearning_dataset`, also a row that has terminated and timed out.
    kept = np.arange(n) < n - 1
    kept &= ~ended
    if not kept.any():
        raise DatasetError(f"'{file}' holds no transition whose next observation is known; record more")
    numbers: np.ndarray
    numbers, renumbered = np.unique(episode[kept], return_inverse=True)
    # The end of the record of an episode whose last rows were left out: no time ran out in the row that is left, and
    # the row below still belongs to the episode, with the action that was taken there.
    return Records(
        obs=obs[kept],
        action=action[kept],
        reward=reward[kept],
        next_obs=next_obs[kept],
        next_action=np.where((terminated | jumps)[:, None], action, action[following])[kept],
        terminated=terminated[kept],
        truncated=jumps[kept],
        episode=renumbered,
        episode_return=np.bincount(episode, weights=reward)[numbers],
        complete=whole[numbers],
    )


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an HDF5 file by D4RL's keys, all of one length `n >= 2`; rewards and flags may be columns.

    Raises:
        DatasetError: one is missing, of another length or no numbers, or a number is not finite in float32.
    """
    with opened(file) as found:
        import h5py

        keys = [*D4RL_KEYS, *(key for key in ("timeouts", NEXT) if key in found)]
        lacking = [key for key in keys if not isinstance(found.get(key), h5py.Dataset)]
        if lacking:
            raise DatasetError(
                f"'{file}' has no {', '.join(lacking)}; expected the layout of D4RL: {', '.join(D4RL_KEYS)} "
                f"and, if there are any, timeouts and {NEXT}"
            )
        arrays = {key: np.asarray(found[key][()]) for key in keys}
    n = arrays["rewards"].size
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DatasetError(f"'{file}': {key} are of type {array.dtype}, expected numbers; store them as such")
        # Some files have rewards and flags as columns.
        fits = array.ndim == 2 and len(array) == n if key in ("observations", "actions", NEXT) else array.size == n
        if not fits or (key == NEXT and array.shape != arrays["observations"].shape):
            shapes = ", ".join(f"{name} {list(there.shape)}" for name, there in arrays.items())
            raise DatasetError(
                f"'{file}': arrays of different lengths or shapes: {shapes}; expected [n, obs_dim], "
                "[n, action_dim] and [n] for the others; store one row a step in each"
            )
    if n < 2:
        raise DatasetError(f"'{file}' holds {n} rows, too few for one transition; record more")
    for key, array in arrays.items():
        # All rows, since rewards of rows that are left out count in returns.
        if (fault := datasets.first_fault(array.reshape(n, -1))) is not None:
            row, what = fault
            raise DatasetError(f"'{file}': {key} of row {row} are {what}; remove that episode or record again")
    for key in D4RL_FLAGS:
        flags = arrays.get(key, np.zeros(n, bool)).reshape(n)
        if not np.isin(flags, (0, 1)).all():
            bad = int(np.argmin(np.isin(flags, (0, 1))))
            raise DatasetError(f"'{file}': {key} of row {bad} is {flags[bad]}; expected 0 or 1")
    return arrays
