"""Hyperparameters: which setting did best, chosen on other seeds than those it is reported on, and what tuning buys.

Of many settings the best one is in part the luckiest. On the seeds that it was chosen by, its score is too good; on
fresh seeds it is what it is. So a label that pools many settings is compared in two steps: `choose` takes the best
setting by some seeds, and all that is said about it afterwards is said of the others. A *setting* is one value of every
hyperparameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import gammaln

from analysis import bootstrap
from analysis.evidence import shown
from analysis.scores import Array, Manifest, ResultsError, TaskScores, by_task, once, score

MINIMUM_RUNS = 4
"""Runs of each setting that a choice needs, and runs of the best one that a report needs: fewer have no quartiles."""


class Settings(NamedTuple):
    """The runs of one label on one task, by setting."""

    hypers: pd.DataFrame
    """`[settings]` rows, a column each hyperparameter, in the order of their values."""
    scores: list[Array]
    """`[runs]` of each setting, by seed"""
    seeds: list[NDArray[np.int64]]
    """`[runs]` of each setting, ascending"""

    @property
    def iqm(self) -> Array:
        """`[settings]` IQM over the runs of each."""
        return np.array([bootstrap.estimate([scores], bootstrap.iqm) for scores in self.scores])

    def varied(self) -> pd.DataFrame:
        """`hypers` without those that are the same in all settings."""
        return self.hypers.loc[:, self.hypers.nunique() > 1]

    def select_seeds(self, seeds: Iterable[int], *, others: bool = False) -> Settings:
        """Of the runs at these seeds alone, or at all others."""
        kept = [np.isin(setting_seeds, list(seeds), invert=others) for setting_seeds in self.seeds]
        return Settings(
            self.hypers,
            [scores[k] for scores, k in zip(self.scores, kept, strict=True)],
            [setting_seeds[k] for setting_seeds, k in zip(self.seeds, kept, strict=True)],
        )


def settings(task: TaskScores, kind: str = "final") -> Settings:
    """The runs that count of one label on one task, by setting.

    Args:
        task: of `Scores.tasks`.
        kind: `final` (the last evaluation) or `auc` (mean over the evaluations after step 0).

    Raises:
        ValueError: another `kind`.
    """
    values, seeds = task.scores(kind), task.seeds[task.counted]
    hypers = task.hypers[task.counted].reset_index(drop=True)
    rows, setting = np.unique(hypers.to_numpy(np.float64), axis=0, return_inverse=True)
    order = np.lexsort([seeds, np.ravel(setting)])
    starts = np.flatnonzero(np.diff(np.ravel(setting)[order])) + 1
    return Settings(
        pd.DataFrame(rows, columns=hypers.columns),
        np.split(values[order], starts),
        np.split(seeds[order], starts),
    )


class Choice(NamedTuple):
    """What `choose` found."""

    table: pd.DataFrame
    """One row per label, and per task where each has its own choice. `settings`: how many there were to choose among.
    `hyper/<name>`: the chosen one, those that vary. `selection_runs` and `selection`: runs of each setting that the
    choice was made by, and the chosen one's IQM there. `runs`, `estimate`, `low`, `high`: how many runs report, and
    their IQM with its interval, and `no_interval` why there is none. `optimism`: `selection - estimate`, what a
    report on the seeds of the selection would have claimed too much. In episode return, or over tasks in normalised
    scores."""
    frame: pd.DataFrame
    """The rows of the chosen settings at the reported seeds: `score(choice.frame, choice.manifests)` gives their
    scores, for everything that takes such."""
    manifests: list[Manifest]
    """Of `frame`."""


def choose(
    frame: pd.DataFrame,
    shard_manifests: Sequence[Manifest],
    *,
    selection_seeds: Iterable[int],
    report_seeds: Iterable[int] | None = None,
    kind: str = "final",
    over_tasks: bool = False,
    repetitions: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Choice:
    """The best setting of each label by IQM on some seeds, and what it scores on the others.

    Of settings that tie, the one with the higher mean is taken, then the first in the order of their values. Imported
    curves are left out: nobody knows their settings.

    Args:
        frame, shard_manifests: from `load` and `manifests`.
        selection_seeds: the choice is made by the runs at these seeds.
        report_seeds: the runs at these report; None are all other seeds. What is at neither is left out.
        kind: what a run scores, `final` or `auc`, as in `Scores.normalised`.
        over_tasks: choose one setting for all tasks that `Scores.comparable` gives, by the IQM of normalised scores,
            instead of one for each task.
        repetitions, seed, confidence: of the bootstrap intervals.

    Raises:
        ResultsError: a seed that selects and reports; a label with too few runs of a setting at the selection seeds, or
            of the best one at the others; one that pools several configurations; with `over_tasks`, no task to compare,
            or settings that differ between tasks; no label that is not imported.
        ValueError: another `kind`.
    """
    shard_manifests = [manifest for manifest in shard_manifests if "foreign" not in manifest]
    frame = frame[frame["shard"].isin([manifest["shard"] for manifest in shard_manifests])]
    if frame.empty:
        raise ResultsError("all labels are imported, and nobody knows their settings; give results of rlsuite")
    selection_seeds = sorted(set(selection_seeds))
    if report_seeds is not None:
        report_seeds = set(report_seeds)
        if both := report_seeds & set(selection_seeds):
            raise ResultsError(
                f"seed {min(both)} selects and reports, which makes the best setting look too good; give seeds apart"
            )
        is_chosen = frame["seed"].isin(report_seeds.union(selection_seeds))
        if not is_chosen.any():
            raise ResultsError(
                f"no run at these seeds, expected some of {frame['seed'].min()} to {frame['seed'].max()}; choose others"
            )
        frame = frame[is_chosen]
    scores = score(frame, shard_manifests)
    # Each run once, as the scores have it, under the names of their tasks.
    named, _ = once(*by_task(frame, shard_manifests))
    frame, tasks = frame.loc[named.index], named["environment"]
    rows: list[dict[str, object]] = []
    kept = np.zeros(len(frame), dtype=bool)
    environments, left_out = scores.comparable()
    if over_tasks and not environments:
        reasons = "; ".join(f"{environment}: {reason}" for environment, reason in left_out.items())
        raise ResultsError(f"no task can be compared ({reasons}); choose for each task by itself")
    for label in scores.labels:
        label_environments = [environment for (name, environment) in scores.tasks if name == label]
        for group in [environments] if over_tasks else [[environment] for environment in label_environments]:
            task_settings = [_checked(frame, tasks, scores.tasks[label, environment], kind) for environment in group]
            if over_tasks:
                task_settings = [
                    task._replace(scores=[scores.references[environment].normalise(s) for s in task.scores])
                    for task, environment in zip(task_settings, group, strict=True)
                ]
            where = f"'{label}' on {', '.join(group)}"
            best, row = _choose(
                task_settings, selection_seeds, where, {"repetitions": repetitions, "seed": seed}, confidence
            )
            task_column = {} if over_tasks else {"environment": group[0]}
            rows.append({"label": shown(label, scores.evidence), **task_column, **row})
            best_rows = _rows_of(frame, tasks, label, group, task_settings[0].hypers.loc[best])
            kept |= best_rows & ~frame["seed"].isin(selection_seeds)
    chosen = frame[kept]
    return Choice(pd.DataFrame(rows), chosen, _manifests_of(chosen, shard_manifests))


def _choose(
    task_settings: list[Settings], selection_seeds: list[int], where: str, resampling: dict[str, int], confidence: float
) -> tuple[int, dict[str, object]]:
    """The best setting's place and its row, of tasks whose scores are on one scale."""
    first = task_settings[0]
    if any(not first.hypers.equals(other.hypers) for other in task_settings):
        raise ResultsError(f"{where}: the settings differ between tasks; choose for each task by itself")
    selection = [task.select_seeds(selection_seeds) for task in task_settings]
    fewest = min(scores.size for task in selection for scores in task.scores)
    if fewest < MINIMUM_RUNS:
        raise ResultsError(
            f"{where}: a setting has {fewest} runs at the {len(selection_seeds)} selection seeds, expected at least "
            f"{MINIMUM_RUNS}; select by more seeds, or wait until the sweep has finished"
        )
    # Of each setting one array a task.
    by_setting = list(zip(*(task.scores for task in selection), strict=True))
    ranks = [
        (bootstrap.estimate(tasks, bootstrap.iqm), bootstrap.estimate(tasks, bootstrap.mean)) for tasks in by_setting
    ]
    best = max(range(len(ranks)), key=ranks.__getitem__)  # the first one, of equals
    reported = [task.select_seeds(selection_seeds, others=True).scores[best] for task in task_settings]
    fewest = min(scores.size for scores in reported)
    if fewest < MINIMUM_RUNS:
        raise ResultsError(
            f"{where}: the best setting has {fewest} runs at other seeds than the {len(selection_seeds)} of the "
            f"selection, expected at least {MINIMUM_RUNS}; select by fewer seeds, or train more"
        )
    settings: dict[str, Any] = {**resampling, "confidence": confidence}
    found = bootstrap.interval(reported, bootstrap.iqm, **settings, name=where)
    return best, {
        "settings": len(ranks),
        **{f"hyper/{name}": value for name, value in first.varied().loc[best].items()},
        "selection_runs": min(scores.size for task in selection for scores in task.scores),
        "selection": ranks[best][0],
        "runs": sum(scores.size for scores in reported),
        **found._asdict(),
        "no_interval": bootstrap.why_no_interval(found, [scores.size for scores in reported], bootstrap.iqm),
        "optimism": ranks[best][0] - found.estimate,
    }


def _checked(frame: pd.DataFrame, tasks: pd.Series, task: TaskScores, kind: str) -> Settings:
    task_rows = frame[(frame["label"] == task.label) & (tasks == task.environment)]
    if task_rows["config_hash"].nunique() > 1 or ("sampling" in task_rows and task_rows["sampling"].nunique() > 1):
        raise ResultsError(
            f"'{task.label}' on {task.environment} pools runs of several configurations or samplings, which are no "
            "hyperparameters; give each its own label"
        )
    if not np.isfinite(task.scores(kind)).all():
        raise ResultsError(
            f"'{task.label}' on {task.environment} has no finite score to choose by; leave that task out"
        )
    return settings(task, kind)


def _rows_of(
    frame: pd.DataFrame, tasks: pd.Series, label: str, environments: list[str], setting: pd.Series
) -> NDArray[np.bool_]:
    rows = (frame["label"] == label) & tasks.isin(environments)
    for name, value in setting.items():
        rows &= frame[f"hyper/{name}"] == value
    mask: NDArray[np.bool_] = rows.to_numpy(bool)
    return mask


def _manifests_of(frame: pd.DataFrame, shard_manifests: Sequence[Manifest]) -> list[Manifest]:
    """The manifests of the shards in the frame, with the seeds of the runs in it."""
    runs = frame.drop_duplicates(["experiment", "shard", "run"])
    seeds = {shard: shard_seeds.tolist() for shard, shard_seeds in runs.groupby(["experiment", "shard"])["seed"]}
    named = [((manifest["experiment"], manifest["shard"]), manifest) for manifest in shard_manifests]
    return [{**manifest, "seeds": seeds[shard]} for shard, manifest in named if shard in seeds]


def expected_best(selection: Array, reported: Array | None = None) -> Array:
    """What tuning by random search buys: the expected score of the best of k settings, for every k.

    The k settings are drawn without replacement from those there are, all alike. That is the unbiased estimate of Tang
    et al. (2020, arXiv 2004.13705); Dodge et al. (2019, arXiv 1909.03004), who introduced the curve, drew with
    replacement, which is too low.

    Args:
        selection: `[settings]` score by which the best is chosen; of settings that tie, each is as likely.
        reported: `[settings]` score that counts once a setting is chosen, such as that on other seeds; by default that
            of the selection itself, which promises too much.

    Returns:
        `[settings]`: the expected score for k = 1, 2, ..., all.

    Raises:
        ValueError: no setting, different numbers of them, or a score that is not finite.
    """
    selection = np.asarray(selection, np.float64)
    reported = selection if reported is None else np.asarray(reported, np.float64)
    if selection.ndim != 1 or selection.size == 0 or selection.shape != reported.shape:
        raise ValueError(f"shapes {selection.shape} and {reported.shape}, expected [settings] twice, with one or more")
    if not (np.isfinite(selection).all() and np.isfinite(reported).all()):
        raise ValueError("a score is not finite; replace it first, as analysis.scores does for runs that diverged")
    _, tied, group_sizes = np.unique(selection, return_inverse=True, return_counts=True)
    group_means = np.bincount(tied, weights=reported) / group_sizes
    # A set of k has its best among the groups up to the i-th with probability C(settings up to there, k) / C(all, k).
    total, below = selection.size, np.cumsum(group_sizes)
    k = np.arange(1, total + 1)[:, None]
    possible = below >= k
    rest = np.where(possible, below - k, 0)
    logarithm = gammaln(below + 1) - gammaln(rest + 1) - gammaln(total + 1) + gammaln(total - k + 1)
    cumulative = np.where(possible, np.exp(logarithm), 0.0)
    expected: Array = np.diff(cumulative, axis=1, prepend=0.0) @ group_means
    return expected
