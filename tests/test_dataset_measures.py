"""TQ, SACo and what `rlsuite dataset` prints."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import envs
from envs import dataset_files, dataset_measures, datasets
from envs.core import Box, Reference
from envs.datasets import Dataset, DatasetError, Records
from rlsuite.commands import cli
from rlsuite.sweeping import catalogue

ENV = envs.make("gymnax/Pendulum-v1")  # 3 observations, one action in [-2, 2]
REFERENCE = Reference(-10.0, 30.0, "random [low]", "expert")


def records(obs: np.ndarray, action: np.ndarray, lengths: tuple[int, ...]) -> Records:
    """Truncated episodes, but for the first, which terminates; the reward is 1 in each step, the time limit 200."""
    n, episode = len(obs), np.repeat(np.arange(len(lengths)), lengths)
    ends = np.isin(np.arange(n), np.cumsum(lengths) - 1)
    return Records(
        obs=obs,
        action=action,
        reward=np.ones(n),
        next_obs=obs,
        next_action=action,
        terminated=ends & (episode == 0),
        truncated=ends & (episode > 0),
        episode=episode,
        episode_return=np.asarray(lengths, np.float64),
        complete=(np.arange(len(lengths)) == 0) | (np.array(lengths) == 200),
    )


def random_records(seed: int, scale: float = 1.0) -> Records:
    rng = np.random.default_rng(seed)
    obs, action = rng.uniform(-scale, scale, (400, 3)).round(1), rng.uniform(-1, 1, (400, 1)).round(1)
    return records(obs.astype(np.float32), action.astype(np.float32), (100, 100, 200))


def build(given: Records, space: Box | None = None) -> Dataset:
    return datasets.build("some", given, space or ENV.action_space, source="a test")


def counted(dataset: Dataset, of: Dataset) -> int:
    """The same count, pair by pair and axis by axis."""

    def pairs(one: Dataset) -> np.ndarray:
        batch = one.transitions
        return np.concatenate([batch.obs, batch.action], axis=1).astype(np.float64)

    seen, low, high = set(), pairs(of).min(axis=0), pairs(of).max(axis=0)
    for row in pairs(dataset):
        edges = [np.linspace(a, b, 101)[1:-1] for a, b in zip(low, high, strict=True)]
        seen.add(tuple(int(np.digitize(x, e)) for x, e in zip(row, edges, strict=True)))
    return len(seen)


def test_coverage_against_a_count_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_measures, "CHUNK", 77)  # several chunks, the last one smaller
    rng = np.random.default_rng(0)
    # Clusters, so that pairs share bins, and a range that the first leaves and the second fills.
    wide, narrow = (
        build(
            records(
                (rng.integers(-3, 4, (600, 3)) * scale + rng.uniform(0, 1e-3, (600, 3))).astype(np.float32),
                (rng.integers(-1, 2, (600, 1)) + rng.uniform(0, 1e-3, (600, 1))).astype(np.float32),
                (600,),
            )
        )
        for scale in (1.0, 0.5)
    )
    for dataset, against in ((wide, narrow), (narrow, wide)):
        measures = dataset_measures.measure(dataset, None, against)
        assert measures.pairs == counted(dataset, against) < 600
        assert measures.saco == counted(dataset, against) / counted(against, against)
    assert dataset_measures.measure(wide, None, wide).saco == 1.0


def test_an_axis_without_extent_has_one_bin() -> None:
    obs = np.zeros((4, 3), np.float32)
    dataset = build(records(obs, np.array([[0], [0], [1], [1]], np.float32), (4,)))
    assert dataset_measures.measure(dataset, None).pairs == 2
    other = build(records(obs + 5, np.array([[0], [0], [1], [1]], np.float32), (4,)))
    assert dataset_measures.measure(other, None, dataset).pairs == 2
    both = build(records(obs + np.array([[0], [5], [0], [5]], np.float32), np.zeros((4, 1), np.float32), (4,)))
    assert dataset_measures.measure(both, None, dataset).pairs == 1  # it varies only where the other one does not


def test_quality_and_sizes() -> None:
    measures = dataset_measures.measure(build(random_records(0)), REFERENCE)
    # The second episode is cut off: its return is of 100 of 200 steps.
    assert measures.tq == pytest.approx((150 + 10) / 40)
    assert (measures.transitions, measures.episodes, measures.terminated, measures.incomplete) == (400, 3, 1, 1)
    assert measures.lengths == (pytest.approx(400 / 3), pytest.approx(47.140452), 100, 100, 200)
    assert measures.returns == (150, 50, 100, 150, 200)
    assert measures.saco is None
    assert dataset_measures.measure(build(random_records(0)), None).tq is None
    assert dataset_measures.measure(build(random_records(0)), REFERENCE._replace(high=-10.0)).tq is None


def test_no_complete_episode_has_no_quality() -> None:
    given = random_records(0)
    measures = dataset_measures.measure(build(given._replace(complete=np.zeros(3, bool))), REFERENCE)
    assert (measures.returns, measures.tq, measures.incomplete) == (None, None, 3)
    assert measures.lengths.high == 200


def test_another_environments_reference_dataset_is_refused() -> None:
    given = random_records(0)
    other = build(given._replace(obs=given.obs[:, :2], next_obs=given.next_obs[:, :2]))
    with pytest.raises(DatasetError, match="has observations of 2 numbers and 1 actions, but 'some' has 3 and 1"):
        dataset_measures.measure(build(given), None, other)


def test_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).normal(size=57)
    intervals = dataset_measures.histogram(values)
    assert len(intervals) == 10 and sum(count for *_, count in intervals) == 57
    assert intervals[0][0] == values.min() and intervals[-1][1] == values.max()
    assert dataset_measures.histogram(np.full(3, 2.0)) == [(2.0, 2.0, 3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two datasets, of which the second has a wider range."""
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(dataset_files.MINARI_ROOT, str(tmp_path / "none"))
    for tier, scale in (("medium", 1.0), ("medium-replay", 2.0)):
        given = random_records(1, scale)
        dataset_files.write(
            f"{ENV.id}/{tier}", given, ENV, tmp_path, reference=REFERENCE, source="[a] test", algorithm="sac", seed=0
        )
    return tmp_path


def test_the_command_prints_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    medium, replay = f"{ENV.id}/medium", f"{ENV.id}/medium-replay"
    assert cli.main(["dataset", medium, "--env", ENV.id]) == 0
    shown = capsys.readouterr()
    text = " ".join(shown.out.split())
    assert shown.err == "" and max(map(len, shown.out.splitlines())) <= 100
    for expected in (
        "400 transitions in 3 episodes, of which 1 terminated, 1 incomplete",
        "[a] test",
        "-10 (random [low]) .. 30 (expert)",
        "mean 150, standard deviation 50, from 100 over 150 (median) to 200",
        "TQ 4.000",
        "SACo -, needs --reference-dataset",
        "between the extremes of this dataset",
        "episode returns",
    ):
        assert expected in text, shown.out
    assert cli.main(["dataset", medium, "--env", ENV.id, "--reference-dataset", replay]) == 0
    text = " ".join(capsys.readouterr().out.split())
    both = [catalogue.read(name, ENV) for name in (medium, replay)]
    assert f"SACo {counted(both[0], both[1]) / counted(both[1], both[1]):.3f} of {replay}" in text


def test_the_command_says_where_no_return_is_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written without the limit, as before it was: episodes of 100 and 200 steps under one of 300."""
    for file in folder.rglob("metadata.json"):
        metadata = json.loads(file.read_text())
        del metadata[dataset_files.OURS]["max_episode_steps"]
        file.write_text(json.dumps(metadata))
    with h5py.File(next(folder.glob("**/medium-v0/data/main_data.hdf5")), "r+") as file:
        file["episode_0/terminations"][-1] = False
    assert cli.main(["dataset", f"{ENV.id}/medium", "--env", ENV.id, "--max-episode-steps", "300"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 episodes, of which 0 terminated, 3 incomplete" in text
    assert "episode return -, no episode is complete" in text and "TQ -, no episode is complete" in text
    assert "episode returns" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--env", ENV.id], "no dataset 'nothing'; expected a file"),
        ([f"{ENV.id}/expert", "--env", ENV.id], f"make it with 'rlsuite collect {ENV.id} --tiers expert'"),
        ([f"{ENV.id}/medium", "--env", "probe/action/continuous"], "is of 'gymnax/Pendulum-v1'"),
        ([f"{ENV.id}/medium", "--env", ENV.id, "--reference-dataset", "zzz"], "no dataset 'zzz'"),
        ([f"{ENV.id}/medium"], "--env"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dataset", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err and shown.err.count("\n") == 1
