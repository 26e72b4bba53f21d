"""From the files of an experiment to scores: reading the store, and what each run scored on each task.

A *label* names a curve (an algorithm with its configuration), a *task* is an environment, or for those that learn
offline a dataset and the environment that it is played on, a *run* is one seed. A run's curve is its `return_mean`
(mean undiscounted return over the complete episodes of one evaluation) at every evaluation.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from analysis import evidence

Array: TypeAlias = NDArray[np.float64]
Manifest: TypeAlias = dict[str, Any]

FORMAT = 1
PARTIAL = ".partial"
ATTEMPTS = 10
"""Times that a shard is read before giving up, where its files change meanwhile."""
EPISODE_COLUMNS = ("episode_returns", "episode_lengths")
REQUIRED_COLUMNS = (
    *("experiment", "algorithm", "environment", "config_hash", "run", "seed", "step"),
    *("wall_seconds", "return_mean", "diverged"),
)
REQUIRED_KEYS = ("format", "shard", "experiment", "algorithm", "environment", "label", "steps", "seeds")


class ResultsError(ValueError):
    """The results cannot be read. The message is one line that names the file and the remedy."""


# --- Reading the store ------------------------------------------------------------------------------------------------


def load(path: str | Path, *, episodes: bool = False) -> pd.DataFrame:
    """All results below a folder, one row per (run, evaluation).

    Args:
        path: an experiment's folder (`results/quick`), or a folder of experiments (`results`).
        episodes: also read the returns and lengths of single episodes, which are most of the bytes.

    Returns:
        The store's columns; `hyper/` and `metric/` columns that a shard lacks are NaN there. Added are `label` (from
        the manifest; `<experiment>/<label>` where the folder holds several experiments), `shard`, and `partial` (bool:
        the shard is still running or was interrupted). A run is identified by (experiment, shard, run).

    Raises:
        ResultsError: no such folder, no results in it, a file that is truncated or not one of ours, or a shard that
            is there twice.
    """
    frame: pd.DataFrame = load_arrow(path, episodes=episodes).to_pandas()
    return frame


def load_arrow(path: str | Path, *, episodes: bool = False) -> pa.Table:
    """`load` as an Arrow table, where a value that a shard lacks is null: for DuckDB, R, or
    `polars.from_arrow(load_arrow("results/quick"))`. Arguments and errors as there.
    """
    tables = []
    places: dict[tuple[str, str], Path] = {}
    for shard in _shards(Path(path)):
        read = _read(shard, episodes)
        if read is None:
            continue
        table, manifest, partial = read
        # Runs are told apart by these names, so that a copy's would take the place of the original's.
        other = places.setdefault((manifest["experiment"], manifest["shard"]), shard.manifest)
        if other != shard.manifest:
            raise ResultsError(
                f"shard '{manifest['shard']}' of experiment '{manifest['experiment']}' is there twice: '{other}' and "
                f"'{shard.manifest}'; give the folder of one of them, or move one out of '{path}'"
            )
        added = {"label": manifest["label"], "shard": manifest["shard"], "partial": partial}
        table = table.drop_columns([name for name in added if name in table.column_names])
        for name, value in added.items():
            table = table.append_column(name, pa.array([value] * table.num_rows))
        tables.append(table)
    whole = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    if not whole.num_rows:
        raise ResultsError(f"no evaluation in the results of '{path}' yet; wait for the first one, or run it again")
    if len(whole["experiment"].unique()) > 1:
        labels = pc.binary_join_element_wise(whole["experiment"], whole["label"], "/")
        whole = whole.set_column(whole.column_names.index("label"), "label", labels)
    return whole


def manifests(path: str | Path) -> list[Manifest]:
    """The manifests of the shards that `load` reads, in the same order; errors as there."""
    return [_read_manifest(shard.manifest) for shard in _shards(Path(path)) if shard.files()]


def unfinished(path: str | Path) -> list[str]:
    """Names of the shards below a folder that are still running or were interrupted, those too that `load` leaves out
    because they have no evaluation yet. Raises ResultsError where there is no such folder, or no results in it."""
    return [shard.name for shard in _shards(Path(path)) if not shard.finished.exists()]


class _Shard(NamedTuple):
    """Where the files of one shard lie, finished or not."""

    folder: Path
    name: str

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def finished(self) -> Path:
        return self.folder / f"{self.name}.parquet"

    def files(self) -> list[Path]:
        """The finished file, else the parts that a running shard has so far, else none."""
        if not self.finished.exists():
            try:
                parts = sorted((self.folder / (self.name + PARTIAL)).glob("runs*.parquet"))
            except FileNotFoundError:  # it may have been removed just now, because the shard is finished
                parts = []
            if parts:
                return parts
        return [self.finished] if self.finished.exists() else []


def _shards(folder: Path) -> list[_Shard]:
    if not folder.exists():
        raise ResultsError(f"no such results folder '{folder}'; give one that `rlsuite sweep` or `rlsuite run` wrote")
    if not folder.is_dir():
        raise ResultsError(f"'{folder}' is a file, expected a results folder; give the folder that it lies in")
    shards = _shards_in(folder) or [
        # What has a dot is no experiment: there lies what was trained again.
        shard
        for below in sorted(folder.iterdir())
        if not below.name.startswith(".")
        for shard in _shards_in(below)
    ]
    if not shards:
        raise ResultsError(
            f"no results in '{folder}', expected <shard>.parquet or <experiment>/<shard>.parquet; "
            "run `rlsuite sweep` or `rlsuite run` first"
        )
    return shards


def _shards_in(folder: Path) -> list[_Shard]:
    """The shards that lie in this very folder; none if it is a file. Names that begin with a dot are not results."""
    finished = {file.name.removesuffix(".parquet") for file in folder.glob("[!.]*.parquet")}
    partial = {below.name.removesuffix(PARTIAL) for below in folder.glob(f"[!.]*{PARTIAL}") if below.is_dir()}
    return [_Shard(folder, name) for name in sorted(finished | partial)]


def _read(shard: _Shard, episodes: bool) -> tuple[pa.Table, Manifest, bool] | None:
    """The rows of a shard, its manifest, and whether it is only a part of it; None if it has no evaluation yet.

    A running shard goes on while it is read: parts are added, and at the end a finished file takes the place of all.
    What was read is whole if no file of it has gone since, for those that were added belong to later evaluations.
    """
    for _ in range(ATTEMPTS):
        files = shard.files()
        try:
            read = _read_files(shard, files, episodes) if files else None
        except FileNotFoundError:
            continue
        now = shard.files()
        if set(files) <= set(now) and bool(files) == bool(now):
            return read
    raise ResultsError(
        f"the files of '{shard.finished}' changed {ATTEMPTS} times while they were read; try again when it has finished"
    )


def _read_files(shard: _Shard, files: list[Path], episodes: bool) -> tuple[pa.Table, Manifest, bool]:
    partial = files != [shard.finished]
    remedy = (
        "run the same command again, which trains its runs anew" if partial else "delete it and run its shard again"
    )
    manifest = _read_manifest(shard.manifest)
    table = pa.concat_tables(
        [_read_table(file, manifest, episodes, remedy) for file in files], promote_options="permissive"
    )
    if partial:
        # As in the finished file: by evaluation, then by run.
        table = table.sort_by([("step", "ascending"), ("run", "ascending")])
    twice = table.select(["run", "step"]).to_pandas().duplicated().to_numpy()
    if twice.any():
        place = files[0].parent if partial else files[0]
        raise ResultsError(f"'{place}' has a run with two evaluations at one step; {remedy}")
    if not partial and (hole := _hole(table, manifest)):
        raise ResultsError(f"'{files[0]}' lacks evaluations ({hole}); {remedy}")
    return table, manifest, partial


def _hole(table: pa.Table, manifest: Manifest) -> str | None:
    """What a finished shard lacks; None if every run has every evaluation, as far as its manifest tells."""
    runs, evaluations = len(manifest["seeds"]), len(table["step"].unique())
    planned, updates = manifest.get("evaluations"), manifest.get("total_updates")
    if isinstance(planned, int) and isinstance(updates, int):  # that of step 0, and no two after the same update
        evaluations = min(planned, updates) + 1
    rows, expected = table.num_rows, runs * evaluations
    return None if rows == expected else f"it has {rows} rows, expected {expected}"


def _read_manifest(file: Path) -> Manifest:
    remedy = "restore it, or delete the shard's files and run it again"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"manifest '{file}' is missing; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read manifest '{file}' ({_one_line(error)}); {remedy}") from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise ResultsError(f"'{file}' is not a manifest of rlsuite, it has no {_listed(missing)}; {remedy}")
    if manifest["format"] != FORMAT:
        raise ResultsError(
            f"manifest '{file}' has format {manifest['format']!r}, expected {FORMAT}; "
            "read it with the version of rlsuite that wrote it, or run it again"
        )
    reference = manifest.get("reference")
    if reference is not None and not _is_reference(reference):
        raise ResultsError(f"manifest '{file}' has reference {reference!r}, expected numbers low and high; {remedy}")
    return manifest


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(bound), int | float) for bound in ("low", "high"))


def _read_table(file: Path, manifest: Manifest, episodes: bool, remedy: str) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            table = parquet.read(columns=[n for n in names if episodes or n not in EPISODE_COLUMNS])
            if "nonfinite_episodes" not in names and "episode_returns" in names:
                table = _without_lost_episodes(table, parquet)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ResultsError(f"cannot read results '{file}' ({_one_line(error)}); {remedy}") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in names]
    if missing:
        raise ResultsError(f"'{file}' is not a result shard of rlsuite, it has no column {_listed(missing)}; {remedy}")
    for column in ("experiment", "algorithm", "environment"):
        found = table[column].unique().to_pylist()
        if table.num_rows and found != [manifest[column]]:
            raise ResultsError(
                f"'{file}' has {column} {_listed(map(str, found))}, but its manifest says '{manifest[column]}'; "
                "the two do not belong together: delete both and run the shard again"
            )
    return table


def _without_lost_episodes(table: pa.Table, parquet: pq.ParquetFile) -> pa.Table:
    """The table of a file from before `nonfinite_episodes` was a column, with that column, and with the mean of the
    episodes that are finite where one that is not had made it NaN or infinite."""
    means, diverged = (table[name].to_numpy(zero_copy_only=False) for name in ("return_mean", "diverged"))
    lost = np.flatnonzero(~np.isfinite(means) & ~diverged.astype(bool))
    if not lost.size:
        return table
    returns = parquet.read(columns=["episode_returns"])["episode_returns"].take(pa.array(lost)).to_pylist()
    means, counts = means.copy(), np.zeros(len(means), np.int32)
    for row, episodes in zip(lost, returns, strict=True):
        finite = np.asarray(episodes, np.float64)[np.isfinite(np.asarray(episodes, np.float64))]
        means[row] = finite.mean() if finite.size else np.nan
        counts[row] = len(episodes) - finite.size
    at = table.column_names.index("return_mean")
    return table.set_column(at, "return_mean", pa.array(means)).append_column("nonfinite_episodes", pa.array(counts))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


# --- Scores -----------------------------------------------------------------------------------------------------------

KINDS = {"final": "final score", "auc": "area under the curve"}
"""What the score of a run may be, see `Scores.normalised`."""
CONDITIONS = {
    "max_episode_steps": "time limit",
    "evaluation_physics": "evaluation physics",
    "dataset_checksum": "checksum of the dataset",
}
"""Keys of a manifest, which may lack them: what the scores on a task depend on and its name does not tell."""
RUN_KEYS = ["experiment", "shard", "run"]
"""Columns that tell a run."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The returns that normalised scores 0 and 1 stand for, with `low < high`."""

    low: float
    high: float

    def normalise(self, scores: Array) -> Array:
        """(scores - low) / (high - low), of any shape."""
        return (scores - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """All runs of one label on one task.

    A run that diverged is never dropped. Where an evaluation is not finite, its run has its last finite score, else
    the environment's floor: the reference's `low`, or without a reference the lowest finite score seen on the task.
    That is so for every run, diverged or not: one whose evaluation has no finite episode may go on learning.

    Of a shard that is still running (or was interrupted) some runs may be finished while others have only begun, and
    others are not there at all. Scores at different steps are not scores of one thing, so its runs count only once they
    have come as far as any run of the label on the task. Which runs come first does not depend on how well they do, but
    those of one setting of the hyperparameters may come before those of another.
    """

    label: str
    environment: str
    """the task: an environment, or the dataset that was learned from, see `by_task`"""
    offline: bool
    """Its steps are gradient steps."""
    steps: NDArray[np.int64]
    """`[evaluations]` environment or gradient steps, increasing: every step at which any run was evaluated."""
    curves: Array
    """`[runs, evaluations]` mean episode return, with the policy for diverged runs applied; NaN where not evaluated.
    (Also NaN where a run has no finite score and neither reference nor any other run of the task gives a floor.)"""
    evaluated: NDArray[np.bool_]
    """`[runs, evaluations]`: the run was evaluated at that step. Runs of a shard that is still going have fewer."""
    diverged: NDArray[np.bool_]
    """`[runs]`: flagged as diverged by the trainer, which alone says so (`nonfinite` in rlsuite/training/train.py)."""
    running: NDArray[np.bool_]
    """`[runs]`: of a shard that is still running or was interrupted."""
    seeds: NDArray[np.int64]
    """`[runs]`"""
    hypers: pd.DataFrame
    """`[runs]` rows, a column each hyperparameter that the label has, under its name without `hyper/`."""
    planned: int
    """Number of runs there will be when all shards are finished: that of now, if none is running."""
    steps_per_second: float
    """Environment steps of all runs together per second of wall time without compiling; NaN if no time is recorded."""

    def select_runs(self, rows: NDArray[np.int64] | slice) -> TaskScores:
        """With these of its runs alone: `[runs]` places, in this order, any as often as it is named."""
        return dataclasses.replace(
            self,
            curves=self.curves[rows],
            evaluated=self.evaluated[rows],
            diverged=self.diverged[rows],
            running=self.running[rows],
            seeds=self.seeds[rows],
            hypers=self.hypers.iloc[rows],
        )

    @property
    def runs(self) -> int:
        """Number of runs that have been evaluated."""
        return len(self.diverged)

    @property
    def last_steps(self) -> NDArray[np.int64]:
        """`[runs]` environment steps at each run's last evaluation."""
        return self.steps[self._last_evaluation]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """`[runs]`: of a finished shard, or come as far as any run. At least one does."""
        return ~self.running | (self.last_steps == self.last_steps.max())

    @property
    def final(self) -> Array:
        """`[runs that count]` score of the last evaluation."""
        return self._last_scores[self.counted]

    def mean_of_last(self, count: int) -> Array:
        """`[runs that count]` mean score over the last `count` evaluations of each run, without that of step 0 (where
        there is no other yet: the untrained score)."""
        trained = self.evaluated & (self.steps > 0)
        later = np.cumsum(trained[:, ::-1], axis=1)[:, ::-1]  # evaluations from this one on
        last = trained & (later <= count)
        means = np.where(last, self.curves, 0.0).sum(axis=1) / np.maximum(last.sum(axis=1), 1)
        return np.where(last.any(axis=1), means, self._last_scores)[self.counted]

    @property
    def auc(self) -> Array:
        """`[runs that count]` mean score over the evaluations after step 0 (where there is none yet: the untrained
        score)."""
        return self.mean_of_last(len(self.steps))

    def scores(self, kind: str) -> Array:
        """`[runs that count]` the score of this kind, one of `KINDS`. Raises ValueError for another."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of score '{kind}', expected 'final' or 'auc'")
        return self.final if kind == "final" else self.auc

    @property
    def untrained(self) -> Array:
        """`[runs that count]` score at step 0, of those that were evaluated there."""
        at_zero = self.steps == 0
        return self.curves[:, at_zero][self.evaluated[:, at_zero] & self.counted[:, None]]

    @property
    def _last_scores(self) -> Array:
        return np.take_along_axis(self.curves, self._last_evaluation[:, None], axis=1)[:, 0]

    @property
    def _last_evaluation(self) -> NDArray[np.intp]:
        return self.evaluated.shape[1] - 1 - np.argmax(self.evaluated[:, ::-1], axis=1)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What every label scored on every task it was run on."""

    tasks: dict[tuple[str, str], TaskScores]
    """By (label, environment): labels in the order of the experiment's cells where the manifests tell it, else of
    their names; environments sorted."""
    references: dict[str, Reference]
    """By environment, where the manifests give a usable one."""
    budgets: dict[str, int]
    """By environment: the environment steps that a run was to take (the largest, where labels differ)."""
    notes: tuple[str, ...]
    """What a reader must know before comparing: pooled settings, runs that have not finished, and so on."""
    unequal: dict[str, str] = dataclasses.field(default_factory=dict)
    """By environment, where runs differ in some of `CONDITIONS`: in which, as words."""
    evidence: dict[str, str] = dataclasses.field(default_factory=dict)
    """By label: the evidence level of its method, see `analysis.evidence.levels`."""

    @property
    def labels(self) -> list[str]:
        """In the order of `tasks`."""
        return list(dict.fromkeys(label for label, _ in self.tasks))

    @property
    def environments(self) -> list[str]:
        """Sorted."""
        return sorted({environment for _, environment in self.tasks})

    def pairs(self) -> dict[tuple[str, str], list[str]]:
        """The tasks on which runs of two labels can be compared by which is higher, for each two labels: none for those
        that have no such task in common."""
        pairs = itertools.combinations(self.labels, 2)
        return {pair: self.comparable(scaled=False, labels=pair)[0] for pair in pairs}

    def comparable(
        self, *, scaled: bool = True, labels: Sequence[str] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """The tasks that aggregates may use, and for each other task the reason why not.

        A task needs a reference (else its scores have no common scale), finite scores, runs of every label (else
        labels would be compared on different tasks), and the same `CONDITIONS` for all of them (else it is several
        tasks under one name).

        Args:
            scaled: whether a reference is needed. It is not where only scores on the same task are compared, and those
                only by which is higher, as in the probability of improvement.
            labels: those to compare; by default all.
        """
        reasons = {}
        labels = self.labels if labels is None else labels
        for environment in self.environments:
            lacking = [label for label in labels if (label, environment) not in self.tasks]
            present = [self.tasks[label, environment] for label in labels if label not in lacking]
            if lacking:
                reasons[environment] = f"no run of {_listed(lacking)}"
            elif environment in self.unequal:
                reasons[environment] = f"its runs differ in {self.unequal[environment]}"
            elif scaled and environment not in self.references:
                reasons[environment] = "no reference returns in its manifests"
            elif not all(np.isfinite(task.final).all() for task in present):
                reasons[environment] = "no finite score"
        return [environment for environment in self.environments if environment not in reasons], reasons

    def returns(self, environments: Sequence[str], kind: str = "final") -> dict[str, list[Array]]:
        """As `normalised`, but in episode return, which needs no reference."""
        return {
            label: [self.tasks[label, environment].scores(kind) for environment in environments]
            for label in self.labels
        }

    def normalised(self, environments: Sequence[str], kind: str = "final") -> dict[str, list[Array]]:
        """Normalised scores by label: one array `[runs that count]` for each environment, which needs a reference.

        Args:
            environments: as `comparable` gives them.
            kind: `final` (the last evaluation) or `auc` (mean over the evaluations after step 0).

        Raises:
            ValueError: another `kind`.
        """
        return {
            label: [
                self.references[environment].normalise(task)
                for environment, task in zip(environments, label_returns, strict=True)
            ]
            for label, label_returns in self.returns(environments, kind).items()
        }

    def paired(
        self, x: str, y: str, environments: Sequence[str], kind: str = "final"
    ) -> tuple[list[Array], list[Array]]:
        """Normalised scores of two labels in pairs, for `bootstrap.difference(..., paired=True)`: of each environment
        an array `[seeds]`, of the seeds that both have a run of that counts.

        Whether runs of one seed have anything in common is the reader's to judge: the same first states, and
        the same network where it is made alike; they part from the first update on.

        Raises:
            ValueError: another `kind`; a label that has several runs of one seed, as with several settings; no seed in
                common.
        """
        scores = self.normalised(environments, kind)
        pairs: tuple[list[Array], list[Array]] = ([], [])
        for index, environment in enumerate(environments):
            seeds = []
            for label in (x, y):
                task = self.tasks[label, environment]
                seeds.append(task.seeds[task.counted])
                if len(np.unique(seeds[-1])) < len(seeds[-1]):
                    raise ValueError(
                        f"'{label}' on {environment} has several runs of one seed, which cannot be paired; "
                        "choose one setting of the hyperparameters first"
                    )
            common, *places = np.intersect1d(seeds[0], seeds[1], assume_unique=True, return_indices=True)
            if not common.size:
                raise ValueError(f"'{x}' and '{y}' have no seed in common on {environment}; compare them unpaired")
            for values, label, place in zip(pairs, (x, y), places, strict=True):
                values.append(scores[label][index][place])
        return pairs


def score(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> Scores:
    """Scores from what `load` and `manifests` gave for the same folder."""
    notes: list[str] = []
    frame, shard_manifests = by_task(frame, shard_manifests)
    planned = {
        cell: sum(len(manifest["seeds"]) for manifest in _manifests_of(rows, shard_manifests))
        for cell, rows in frame.groupby(["label", "environment"], sort=True)
    }
    frame, left_out = once(frame, shard_manifests)
    references = _references(shard_manifests, notes)
    budgets: dict[str, int] = {}
    for manifest in shard_manifests:
        budgets[manifest["environment"]] = max(int(manifest["steps"]), budgets.get(manifest["environment"], 0))
    order = _order(frame, shard_manifests)
    tasks = {}
    played: dict[tuple[int, int], list[str]] = {}
    floors = _floors(frame, references)
    unequal = {}
    for environment, rows in frame.groupby("environment", sort=True):
        if differ := _differences(_manifests_of(rows, shard_manifests)):
            unequal[environment] = _in_words(differ)
            notes.append(f"{environment}: runs differ in {unequal[environment]}; their scores are not of one task")
    cell_rows = frame.groupby(["label", "environment"], sort=True)
    for (label, environment), rows in sorted(cell_rows, key=lambda item: order[item[0][0]]):
        where = f"'{label}' on {environment}"
        cell_manifests = _manifests_of(rows, shard_manifests)
        budget = max(int(manifest["steps"]) for manifest in cell_manifests)
        if budget < budgets[environment]:
            notes.append(
                f"{where}: its budget is {budget:,} steps, that of another label {budgets[environment]:,}; "
                "final scores are those at the end of each one's own"
            )
        repeated = left_out.get((label, environment), 0)
        if repeated:
            notes.append(
                f"{where}: {repeated} runs repeat the seed and settings of another one and are left out; the one that "
                "came farthest counts, of equals the newest"
            )
        planned_here = planned[label, environment] - repeated
        task = _task_scores(label, environment, rows, floors[environment], planned_here)
        tasks[label, environment] = task
        notes += _pooling_notes(rows, cell_manifests, where)
        notes += _foreign_notes(cell_manifests, where)
        notes += _lost_episodes(rows, where)
        if task.offline:
            played.setdefault(_episodes_played(task, rows, shard_manifests), []).append(where)
        if task.running.any():
            notes.append(
                f"{where}: still running, or interrupted; {task.counted.sum():,} of {task.planned:,} runs have come to "
                f"step {task.last_steps.max():,} of {budget:,}; final scores and aggregates are theirs alone"
            )
        ended = int(np.sum(task.last_steps[~task.running] < budget))
        if ended:
            notes.append(
                f"{where}: {ended} of {task.runs} runs end before the budget of {budget:,} steps; "
                "their final score is that of their last evaluation"
            )
    # Whoever chooses by an offline learner's scores has tuned on so much of the environment.
    for (total, run_episodes), cells in played.items():
        whose = cells[0] if len(cells) == 1 else f"each of {len(cells)} offline cells"
        notes.append(f"{whose}: {total:,} episodes were played to evaluate, {run_episodes:,} a run")
    notes += _code_notes(frame, shard_manifests)
    found = evidence.levels(frame, shard_manifests)
    levels = {label: found[label] for label in sorted(found, key=order.__getitem__)}
    notes += evidence.notes(levels)
    return Scores(tasks, references, budgets, tuple(notes), unequal, levels)


def by_task(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> tuple[pd.DataFrame, list[Manifest]]:
    """With the task in the place of the environment, which differs for offline learners.

    Their task is a dataset, which its checksum tells, on an environment. It has the dataset's name, the shortest of
    several ids of one checksum, and behind it the environment in brackets where that name has several. Datasets of
    several checksums under one id stay one name, whose runs then differ in `CONDITIONS`.
    """
    offline = [manifest for manifest in shard_manifests if manifest.get("dataset") is not None]
    if not offline:
        return frame, list(shard_manifests)
    checksums: dict[str, set[str]] = {}
    for manifest in offline:
        checksums.setdefault(manifest["dataset"], set()).update(filter(None, [manifest.get("dataset_checksum")]))

    def data(manifest: Manifest) -> str:
        """The checksum; where it is not recorded that of the id, if there is one, else the id."""
        known = checksums[manifest["dataset"]]
        return str(manifest.get("dataset_checksum") or (next(iter(known)) if len(known) == 1 else manifest["dataset"]))

    ids: dict[str, set[str]] = {}
    for manifest in offline:
        ids.setdefault(data(manifest), set()).add(manifest["dataset"])
    names = {each: min(datasets, key=lambda name: (len(name), name)) for each, datasets in ids.items()}
    played_on: dict[str, set[str]] = {}
    for manifest in shard_manifests:
        name = manifest["environment"] if manifest.get("dataset") is None else names[data(manifest)]
        played_on.setdefault(name, set()).add(manifest["environment"])

    def task(manifest: Manifest) -> str:
        environment = str(manifest["environment"])
        if manifest.get("dataset") is None:
            return environment
        name = names[data(manifest)]
        return name if len(played_on[name]) == 1 else f"{name} ({environment})"

    tasks = {(manifest["experiment"], manifest["shard"]): task(manifest) for manifest in offline}
    codes, shards = pd.factorize(pd.MultiIndex.from_frame(frame[["experiment", "shard"]]))
    shard_tasks = pd.Series([tasks.get(shard) for shard in shards], dtype=object).to_numpy()
    environments = pd.Series(shard_tasks[codes], index=frame.index).fillna(frame["environment"])
    return frame.assign(environment=environments), [{**m, "environment": task(m)} for m in shard_manifests]


def once(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> tuple[pd.DataFrame, dict[tuple[str, str], int]]:
    """Without runs that repeat another one of the same label, task, settings, seed, budget and `CONDITIONS`, and how
    many these are by (label, environment). Of runs that repeat each other the one that came farthest stays, a finished
    one before one that goes on, of equals the newest.

    Args:
        frame, shard_manifests: as `by_task` gives them.
    """
    facts = {(manifest["experiment"], manifest["shard"]): manifest for manifest in shard_manifests}
    settings = [name for name in frame.columns if name.startswith("hyper/") or name == "sampling"]
    kept = {"step": "max", **dict.fromkeys(["partial", "seed", "config_hash", *settings], "first")}
    left_out: dict[tuple[str, str], int] = {}
    repeats = []
    for cell, rows in frame.groupby(["label", "environment"], sort=True):
        runs = rows.groupby(RUN_KEYS, sort=False).agg(kept)
        if not runs.duplicated("seed").any():
            continue
        run_manifests = [facts[experiment, shard] for experiment, shard, _ in runs.index]
        differ = _differences(_manifests_of(rows, shard_manifests))
        runs = runs.assign(
            budget=[int(manifest["steps"]) for manifest in run_manifests],
            conditions=[str([manifest.get(key) for key in differ]) for manifest in run_manifests],
            created=[str(manifest.get("created", "")) for manifest in run_manifests],
        )
        order = runs.sort_values(["step", "partial", "created"], ascending=[False, True, False], kind="stable")
        again = order.index[order.duplicated(["seed", "config_hash", *settings, "budget", "conditions"])]
        if len(again):
            left_out[cell] = len(again)
            repeats.extend(again)
    if repeats:
        frame = frame[~pd.MultiIndex.from_frame(frame[RUN_KEYS]).isin(repeats)]
    return frame, left_out


def _order(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> dict[str, tuple[str, float, str]]:
    """What labels are sorted by: the experiment, the first of its cells that has the label, the name. Manifests of
    earlier versions have no `cell`, and come last."""
    cells = {(m["experiment"], m["shard"]): float(m.get("cell", math.inf)) for m in shard_manifests}
    order: dict[str, tuple[str, float, str]] = {}
    for label, *shard in frame[["label", "experiment", "shard"]].drop_duplicates().itertuples(index=False, name=None):
        place = (shard[0], cells.get((shard[0], shard[1]), math.inf), label)
        order[label] = min(place, order.get(label, place))
    return order


def _manifests_of(rows: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> list[Manifest]:
    """Those of the shards that the rows are of."""
    shards = set(rows[["experiment", "shard"]].drop_duplicates().itertuples(index=False, name=None))
    return [manifest for manifest in shard_manifests if (manifest["experiment"], manifest["shard"]) in shards]


def _differences(shard_manifests: Sequence[Manifest]) -> dict[str, list[Any]]:
    """The `CONDITIONS` that manifests disagree on, with their values. What a manifest does not say, it agrees on."""
    values = {key: list(dict.fromkeys(m[key] for m in shard_manifests if key in m)) for key in CONDITIONS}
    return {key: found for key, found in values.items() if len(found) > 1}


def _in_words(differences: dict[str, list[Any]]) -> str:
    """`time limit (50 and the task's own)`"""
    words = {
        key: " and ".join("the task's own" if value is None else str(value) for value in values)
        for key, values in differences.items()
    }
    return ", ".join(f"{CONDITIONS[key]} ({values})" for key, values in words.items())


def _code_notes(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> Iterator[str]:
    """Which runs are of other versions of rlsuite, JAX or a package that brings a learner or an environment."""
    present = _manifests_of(frame, shard_manifests)
    cells = frame[["label", "environment", "experiment", "shard"]].drop_duplicates()
    everywhere: dict[str, dict[str, set[str]]] = {}
    for (label, environment), rows in cells.groupby(["label", "environment"], sort=True):
        codes = [_code(manifest) for manifest in _manifests_of(rows, present)]
        for what in sorted({what for code in codes for what in code}):
            versions = sorted({version for code in codes for version in code.get(what, ())})
            for version in versions:
                everywhere.setdefault(what, {}).setdefault(version, set()).add(label)
            if len(versions) > 1:
                within = any(len(code.get(what, ())) > 1 for code in codes)
                curves = "; a shard was interrupted between them, so that one curve may be of both" if within else ""
                yield f"'{label}' on {environment}: pools runs of several versions of {what} ({_and(versions)}){curves}"
    for what, labels in sorted(everywhere.items()):
        if len(labels) > 1:
            whose = [
                f"{version} for {_listed(sorted(version_labels))}" for version, version_labels in sorted(labels.items())
            ]
            yield f"results of several versions of {what} are compared: {_and(whose)}"
    ours = [manifest for manifest in present if "foreign" not in manifest]
    unrecorded = sum(not _is_code_recorded(manifest) for manifest in ours)
    if unrecorded:
        yield (
            f"which sources of rlsuite, and of other packages, computed {unrecorded} of {len(ours)} shards is not "
            "recorded; whether they are all of one version cannot be told"
        )


def _foreign_notes(cell_manifests: Sequence[Manifest], where: str) -> Iterator[str]:
    """Whose numbers imported curves are, see `analysis.foreign`."""
    for foreign in (manifest["foreign"] for manifest in cell_manifests if "foreign" in manifest):
        source = f" from {foreign['source']}" if foreign["source"] else ""
        names = _listed(list(foreign["files"])[:3]) + (" ..." if len(foreign["files"]) > 3 else "")
        yield (
            f"{where}: imported{source} ({names}), {foreign['returns']} returns of another program, "
            f"{foreign['resampling']}"
        )


def _is_code_recorded(manifest: Manifest) -> bool:
    sessions = manifest.get("sessions") or [{}]
    return "packages" in manifest and all("rlsuite_sources" in session for session in sessions)


def _code(manifest: Manifest) -> dict[str, set[str]]:
    """What computed a shard, such as rlsuite -> all its versions, in words, as far as it is recorded."""
    found: dict[str, set[str]] = {}
    for session in manifest.get("sessions") or []:
        if "rlsuite_sources" in session:
            version = f"{session['rlsuite']} of sources {session['rlsuite_sources']}"
            found.setdefault("rlsuite", set()).add(version)
            found.setdefault("JAX", set()).add(str(session["jax"]))
    versions = manifest.get("versions") or {}
    if "jax" in versions:
        found.setdefault("JAX", {str(versions["jax"])})
    for package in (manifest.get("packages") or {}).values():
        version = f"{package['version']} of sources {package['sources']}"
        found.setdefault(f"the package '{package['name']}'", set()).add(version)
    return found


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _episodes_played(task: TaskScores, rows: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> tuple[int, int]:
    """How many episodes a comparison has seen of the environment: of all runs together, and of one."""
    episodes = {(m["experiment"], m["shard"]): int(m.get("eval_episodes", 1)) for m in shard_manifests}
    played = rows[["experiment", "shard"]].itertuples(index=False, name=None)
    total = sum(episodes.get(shard, 1) for shard in played)
    return total, total // task.runs


def metric_frame(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with a training metric in the place of the return, of the evaluations that have one.

    `score` makes curves of it, if it is given manifests without their references.

    Raises:
        ResultsError: no evaluation has this metric.
    """
    column = f"metric/{name}"
    metrics = sorted(other.removeprefix("metric/") for other in frame.columns if other.startswith("metric/"))
    if column not in frame or frame[column].isna().all():
        raise ResultsError(f"no evaluation has a metric '{name}'; there are: {', '.join(metrics) or 'none'}")
    return frame[frame[column].notna()].assign(return_mean=frame[column])


def matrix(tasks: Sequence[Array]) -> Array:
    """`[run, task]`, as rliable wants scores, from one array `[runs]` a task.

    Raises:
        ValueError: the tasks have different numbers of runs.
    """
    counts = [task.size for task in tasks]
    if len(set(counts)) != 1:
        raise ValueError(f"the tasks have {counts} runs, a matrix needs equal numbers; use the list of arrays instead")
    return np.stack(tasks, axis=1)


def _references(shard_manifests: Sequence[Manifest], notes: list[str]) -> dict[str, Reference]:
    found: dict[str, Reference] = {}
    # Oldest first, so that the newest wins where they disagree.
    for manifest in sorted(shard_manifests, key=lambda manifest: str(manifest.get("created", ""))):
        environment = manifest["environment"]
        if manifest.get("reference") is None:
            continue
        reference = Reference(float(manifest["reference"]["low"]), float(manifest["reference"]["high"]))
        if not (np.isfinite([reference.low, reference.high]).all() and reference.low < reference.high):
            note = f"{environment}: reference low {reference.low:g}, high {reference.high:g} is unusable and ignored"
        elif found.setdefault(environment, reference) != reference:
            found[environment] = reference
            note = f"{environment}: shards disagree on the reference returns; all are normalised with the newest"
        else:
            continue
        if note not in notes:
            notes.append(note)
    return found


def _floors(frame: pd.DataFrame, references: dict[str, Reference]) -> dict[str, float]:
    returns = frame["return_mean"].where(np.isfinite(frame["return_mean"]))
    lowest = returns.groupby(frame["environment"]).min()
    return {env: references[env].low if env in references else float(value) for env, value in lowest.items()}


def _task_scores(label: str, environment: str, rows: pd.DataFrame, floor: float, planned: int) -> TaskScores:
    shard_keys = ["experiment", "shard"]
    run_index = rows.groupby([*shard_keys, "run"]).ngroup().to_numpy()
    steps, step_index = np.unique(rows["step"].to_numpy(np.int64), return_inverse=True)
    returns = rows["return_mean"].to_numpy(np.float64)
    runs = int(run_index.max()) + 1
    curves = np.full((runs, steps.size), np.nan)
    curves[run_index, step_index] = returns
    evaluated = np.zeros((runs, steps.size), dtype=bool)
    evaluated[run_index, step_index] = True
    diverged = np.zeros(runs, dtype=bool)
    np.logical_or.at(diverged, run_index, rows["diverged"].to_numpy(bool))
    running = np.zeros(runs, dtype=bool)
    running[run_index] = rows["partial"].to_numpy(bool)
    seeds = np.zeros(runs, dtype=np.int64)
    seeds[run_index] = rows["seed"].to_numpy(np.int64)
    hyper_columns = [name for name in rows.columns if name.startswith("hyper/") and rows[name].notna().any()]
    hypers = rows.groupby([*shard_keys, "run"])[hyper_columns].first().reset_index(drop=True)
    run_steps = rows.groupby([*shard_keys, "run"])["step"].max().sum()
    # Runs that trained at once have their seconds in common, to the last digit; chunks of runs took turns.
    run_seconds = rows.groupby([*shard_keys, "run"])["wall_seconds"].max().reset_index()
    seconds = run_seconds.drop_duplicates([*shard_keys, "wall_seconds"])["wall_seconds"].sum()
    return TaskScores(
        label=label,
        environment=environment,
        offline="dataset" in rows and bool(rows["dataset"].notna().any()),
        steps=steps,
        curves=np.where(evaluated, _carry_forward(curves, floor), np.nan),
        evaluated=evaluated,
        diverged=diverged,
        running=running,
        seeds=seeds,
        hypers=hypers.rename(columns=lambda name: name.removeprefix("hyper/")),
        planned=planned,
        steps_per_second=float(run_steps / seconds) if seconds > 0 else float("nan"),
    )


def _carry_forward(curves: Array, floor: float) -> Array:
    """`[runs, evaluations]` with every entry that is not finite replaced by the last finite one before it, or floor."""
    finite_at = np.where(np.isfinite(curves), np.arange(curves.shape[1]), -1)
    last = np.maximum.accumulate(finite_at, axis=1)
    return np.where(last >= 0, np.take_along_axis(curves, np.maximum(last, 0), axis=1), floor)


def _lost_episodes(rows: pd.DataFrame, where: str) -> Iterator[str]:
    """How many episodes are not in the scores, if there are any."""
    if "nonfinite_episodes" not in rows:
        return
    lost = rows[rows["nonfinite_episodes"].fillna(0) > 0]
    if len(lost):
        runs, none = len(lost[["experiment", "shard", "run"]].drop_duplicates()), int(lost["return_mean"].isna().sum())
        yield (
            f"{where}: {int(lost['nonfinite_episodes'].sum()):,} evaluation episodes of {runs:,} runs are not finite "
            "and left out of their evaluations' means"
            + (f"; in {none:,} evaluations nothing was left, they have the run's score before" if none else "")
        )


def _pooling_notes(rows: pd.DataFrame, cell_manifests: Sequence[Manifest], where: str) -> Iterator[str]:
    """Warnings about runs that one label pools although they may not belong together."""
    differ = _differences(cell_manifests)
    if differ:
        yield f"{where}: pools runs that differ in {_in_words(differ)}; report on each in a folder of its own"
    configs = rows["config_hash"].nunique()
    if configs > 1:
        yield f"{where}: pools runs of {configs} configurations; give each its own label to compare them"
    if "sampling" in rows and rows["sampling"].nunique() > 1:
        yield f"{where}: pools runs of {rows['sampling'].nunique()} samplings; give each its own label to compare them"
    hypers = [column for column in rows.columns if column.startswith("hyper/")]
    # `nunique` leaves NaN out: a hyperparameter that only other shards have does not vary here.
    varied = [column.removeprefix("hyper/") for column in hypers if rows[column].nunique() > 1]
    if varied:
        yield (
            f"{where}: pools runs that differ in {_listed(varied)}; "
            "`analysis.tuning.choose` takes the best setting by some of the seeds and reports the others"
        )
    identity = ["config_hash", "seed", *hypers]
    runs = rows.drop_duplicates(["experiment", "shard", "run"])
    if differ:
        conditions = {(m["experiment"], m["shard"]): str([m.get(key) for key in differ]) for m in cell_manifests}
        shards = runs[["experiment", "shard"]].itertuples(index=False, name=None)
        runs, identity = runs.assign(conditions=[conditions[shard] for shard in shards]), [*identity, "conditions"]
    repeated = int(runs.duplicated(identity).sum())
    if repeated:
        yield f"{where}: {repeated} runs repeat the seed and settings of another one; they are not independent"
