"""Curves for other people's dashboards: what is sent, as series with attributes, and what was sent before.

A *series* is a run, with its returns and metrics against steps, or an *aggregate*, the IQM over all runs of a label on
a task with its interval. A dashboard cannot take a number back. So each point is sent once, and a point of an aggregate
only when all its runs have come there: from then on it stays as it is.

Next to what a target holds lies a small file that says how far each series was sent, and which are being sent now.
After an export that was killed, only the latter are in doubt. Each target knows how to look at those again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import curves
from analysis.evidence import named
from analysis.scores import (
    RUN_KEYS,
    Array,
    Manifest,
    ResultsError,
    Scores,
    TaskScores,
    by_task,
    load,
    manifests,
    score,
    unfinished,
)

Setting: TypeAlias = str | int | float | bool
Record: TypeAlias = dict[str, Any]
"""What is known of a series that was sent: `step` and `time` of its last evaluation, `finished`, and what its target
adds."""

RETURNS = {f"return_{kind}": f"return/{kind}" for kind in ("mean", "std", "min", "max")}
"""Column of the results -> name in a dashboard, where names with one beginning stand together."""
IQM, LOW, HIGH = "return/iqm", "return/iqm_low", "return/iqm_high"
MANY = ("seeds", "hypers", "sessions")
"""What a manifest says of all runs at once, which a single one does not need."""
BATCH = 64
"""Series that are in doubt after an export was killed."""
REPETITIONS = 2000
"""Of the bootstrap, as in a report."""


class Series(NamedTuple):
    """Curves of one run or one aggregate, whole or the part of them that is new."""

    key: str
    """tells it from all others, also from those of the same run trained again"""
    kind: str
    """`run` or `aggregate`"""
    experiment: str
    label: str
    task: str
    name: str
    """among those of the label on the task"""
    settings: dict[str, Setting]
    """hyperparameters, with the fields of the config"""
    facts: dict[str, bool]
    """how it goes: `finished`, and of a run `diverged`"""
    manifest: dict[str, Any]
    """of its shard; of an aggregate, of each of its shards by name"""
    steps: NDArray[np.int64]
    """`[evaluations]`, increasing"""
    times: Array
    """`[evaluations]` seconds since 1970: when training began, and the seconds it took without compiling"""
    values: dict[str, Array]
    """Name -> `[evaluations]`. What is not finite is not sent."""

    @property
    def points(self) -> int:
        """How many numbers it has to send."""
        return sum(int(np.isfinite(values).sum()) for values in self.values.values())

    def since(self, step: int) -> Series:
        """The part of it after a step."""
        new = self.steps > step
        values = {name: array[new] for name, array in self.values.items()}
        return self._replace(steps=self.steps[new], times=self.times[new], values=values)

    def rows(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        """(step, time, values) of each evaluation that has any."""
        for index, step in enumerate(self.steps.tolist()):
            found = {name: float(array[index]) for name, array in self.values.items() if np.isfinite(array[index])}
            if found:
                yield step, float(self.times[index]), found


class Target(Protocol):
    """Where series are sent to."""

    state: Path
    """the file that says what was sent"""

    def holds(self, record: Record) -> bool:
        """Whether what was sent is still there. If not, it is sent again."""

    def send(self, part: Series, record: Record, doubtful: bool) -> Record:
        """Add new points of a series, and return what to remember of it.

        Args:
            part: the part of it that is new.
            record: what was remembered the last time; empty for a series that was not sent before.
            doubtful: whether an export was killed that may have sent some of this part.
        """

    def close(self) -> None:
        """All is sent for now."""


# --- What there is to send --------------------------------------------------------------------------------------------


def look(path: str | Path, *, runs: bool = True) -> list[Series]:
    """All series of a folder of results as they are now: aggregates, and single runs if these are wanted.

    Raises:
        ResultsError: as `analysis.load`.
    """
    frame, shard_manifests = load(path), manifests(path)
    facts = {(manifest["experiment"], manifest["shard"]): manifest for manifest in shard_manifests}
    frame, shown = named(frame, shard_manifests)
    scores = score(frame, shown)
    frame, _ = by_task(frame, shown)
    shards = frame[["experiment", "shard"]].itertuples(index=False, name=None)
    begun = {shard: _begun(manifest) for shard, manifest in facts.items()}
    # Curves that come from elsewhere may lack times.
    frame = frame.assign(time=[begun[shard] for shard in shards] + frame["wall_seconds"].fillna(0.0))
    return [*_aggregates(frame, scores, facts), *(_runs(frame, facts) if runs else ())]


def _runs(frame: pd.DataFrame, facts: dict[tuple[str, str], Manifest]) -> Iterator[Series]:
    frame = frame.sort_values([*RUN_KEYS, "step"], kind="stable")
    starts = np.flatnonzero(~frame.duplicated(RUN_KEYS).to_numpy())
    metrics = {name: name for name in frame.columns if name.startswith("metric/")}
    returns = {column: name for column, name in RETURNS.items() if column in frame}
    columns = {name: frame[column].to_numpy(np.float64) for column, name in (returns | metrics).items()}
    hypers = [name for name in frame.columns if name.startswith("hyper/")]
    steps, times, diverged = (frame[name].to_numpy() for name in ("step", "time", "diverged"))
    heads = frame.iloc[starts].to_dict("records")
    for start, stop, head in zip(starts, [*starts[1:], len(frame)], heads, strict=True):
        manifest = facts[head["experiment"], head["shard"]]
        key = _digest("run", head["experiment"], head["shard"], head["run"], _identity(manifest))
        run_hypers = {name: head[name] for name in hypers if np.isfinite(head[name])}
        yield Series(
            key=key,
            kind="run",
            experiment=head["experiment"],
            label=head["label"],
            task=head["environment"],
            name=f"seed {head['seed']}",
            settings={"seed": head["seed"], **run_hypers, **_config(manifest)},
            facts={"finished": not head["partial"], "diverged": bool(diverged[start:stop].any())},
            manifest=_without_many(manifest),
            steps=steps[start:stop],
            times=times[start:stop],
            values={name: values[start:stop] for name, values in columns.items()},
        )


def _aggregates(frame: pd.DataFrame, scores: Scores, facts: dict[tuple[str, str], Manifest]) -> Iterator[Series]:
    for (label, task), rows in frame.groupby(["label", "environment"], sort=True):
        shards = sorted(set(rows[["experiment", "shard"]].itertuples(index=False, name=None)))
        found = scores.tasks[label, task]
        complete = found.evaluated.sum(axis=0) == found.planned
        if not complete.any():
            continue
        # Runs that were added later make another aggregate, since those of fewer runs have been sent.
        identities = [[*shard, _identity(facts[shard])] for shard in shards]
        manifest = facts[shards[0]]
        steps = found.steps[complete]
        yield Series(
            key=_digest("aggregate", *identities),
            kind="aggregate",
            experiment=shards[0][0],
            label=label,
            task=task,
            name=f"IQM of {found.planned} runs",
            settings={"runs": found.planned, **_common_hypers(found), **_config(manifest)},
            facts={"finished": not found.running.any() and found.runs == found.planned},
            manifest={name: _without_many(facts[experiment, name]) for experiment, name in shards},
            steps=steps,
            times=rows.groupby("step")["time"].max().loc[steps].to_numpy(),
            values=_iqm(found, complete),
        )


def _iqm(task: TaskScores, complete: NDArray[np.bool_]) -> dict[str, Array]:
    """The IQM and its pointwise interval, at the points where it is complete. The simultaneous band is not sent: it
    changes with every point that is added."""
    curve = curves.task_curve(task, REPETITIONS, 0)
    place = np.isin(curve.x, task.steps[complete])
    bounds = {IQM: curve.band.estimate, LOW: curve.band.low, HIGH: curve.band.high}
    whole = {name: np.full(int(complete.sum()), np.nan) for name in bounds}
    shown = np.isin(task.steps[complete], curve.x)
    for name, values in bounds.items():
        whole[name][shown] = values[place]
    return whole


def _common_hypers(task: TaskScores) -> dict[str, Setting]:
    """The hyperparameters that all runs have in common."""
    return {
        f"hyper/{name}": float(values.iloc[0])
        for name, values in task.hypers.items()
        if values.notna().all() and values.nunique() == 1
    }


def _config(manifest: Manifest) -> dict[str, Setting]:
    fields = {"algorithm": manifest["algorithm"], "environment": manifest["environment"]}
    fields |= {f"config/{name}": value for name, value in (manifest.get("config") or {}).items()}
    return {name: value if isinstance(value, Setting) else json.dumps(value) for name, value in fields.items()}


def _without_many(manifest: Manifest) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name not in MANY}


def _identity(manifest: Manifest) -> str:
    """What a shard that is trained again has another one of: when its first session began."""
    sessions = manifest.get("sessions") or [manifest]
    return str(sessions[0].get("created", manifest.get("created", "")))


def _begun(manifest: Manifest) -> float:
    """Seconds since 1970; 0 where the manifest does not say when."""
    try:
        begun = datetime.datetime.fromisoformat(_identity(manifest))
    except ValueError:
        return 0.0
    return (begun if begun.tzinfo else begun.replace(tzinfo=datetime.UTC)).timestamp()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


# --- What was sent ----------------------------------------------------------------------------------------------------


class State:
    """What the file of a target says: how far each series was sent, and which are in doubt.

    Raises:
        ResultsError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent: dict[str, Record] = {}
        self.doubtful: set[str] = set()
        try:
            read = json.loads(path.read_text("utf-8"))
            self.sent, self.doubtful = dict(read["sent"]), set(read["sending"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"'{path}', which says what was exported, is damaged; restore it, or export to another place"
            ) from error

    def write(self) -> None:
        """Replace the file, by a whole one or not at all."""
        draft = self.path.with_suffix(".tmp")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"sent": self.sent, "sending": sorted(self.doubtful)}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)


class Sent(NamedTuple):
    """What was new."""

    runs: int
    aggregates: int
    points: int


def export(series: Sequence[Series], target: Target) -> Sent:
    """Send what is new of these series.

    Raises:
        ResultsError: another process is exporting to the same place.
    """
    with _claimed(target.state):
        state = State(target.state)
        for key in [each.key for each in series if each.key in state.sent]:
            if not target.holds(state.sent[key]):
                del state.sent[key]
        parts = [part for each in series if (part := _news(each, state)) is not None]
        for first in range(0, len(parts), BATCH):
            batch = parts[first : first + BATCH]
            killed = state.doubtful & {part.key for part in batch}
            state.doubtful |= {part.key for part in batch}
            state.write()
            for part in batch:
                record = state.sent.get(part.key, {})
                added = target.send(part, record, part.key in killed)
                if part.steps.size:
                    added |= {"step": int(part.steps[-1]), "time": float(part.times[-1])}
                state.sent[part.key] = {**record, **added, "finished": part.facts["finished"]}
            state.doubtful -= {part.key for part in batch}
            state.write()
    kinds = [part.kind for part in parts]
    return Sent(kinds.count("run"), kinds.count("aggregate"), sum(part.points for part in parts))


def _news(series: Series, state: State) -> Series | None:
    """The part of a series that was not sent; None if there is nothing to say of it."""
    record = state.sent.get(series.key)
    if record is None:
        return series
    part = series.since(record["step"])
    return part if part.steps.size or part.facts["finished"] != record["finished"] else None


@contextlib.contextmanager
def _claimed(state: Path) -> Iterator[None]:
    """No other process exports to the same place until this one leaves or dies."""
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(
                f"another process is exporting, as '{state}' shows; wait for it, or export to another place"
            ) from None
        yield


def follow(path: str | Path, target: Target, *, runs: bool, seconds: float) -> Iterator[Sent]:
    """Export again and again, until no shard is left unfinished; after each time, what was new.

    Between two cells of a sweep there is a moment without such a shard, so that two looks in a row must agree.

    Raises:
        ResultsError: as `look` and `export`, but for a folder whose shards have no evaluation yet.
    """
    looks = 0
    while True:
        # Looked at first, so that what has been finished since then is sent the next time.
        looks = 0 if unfinished(path) else looks + 1
        if manifests(path):
            yield export(look(path, runs=runs), target)
        if looks == 2:
            return
        time.sleep(seconds)
