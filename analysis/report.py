"""The interactive report: one HTML file that needs nothing else.

`document` gathers all figures as one JSON document, and `write` puts it into the page of `analysis/page/`, together
with its style and script. The script builds the page from the document and draws its plots as SVG.

Plots are drawn by a script of our own. The library to take would be plotly, but its plotly.js adds 4.8 MB to every
report (a whole report of 40 cells x 32 runs is a ninth of that) and its package 40 MB to every installation; it hovers
over points and not over lines, and has no logarithmic axis for negative returns. What is needed here, lines, bands,
ticks, a hover, one switch for all panels and arrow keys, is half of a script of 700 lines, and styled by the same
variables as the rest of the page: dark, printed, or on a phone.

The page is safe to open whatever the results are called: the document is embedded so that no name in it can end its
script element, the script only ever sets text, and the page's content security policy forbids every request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import CurveInterval
from analysis.curves import Curve, Curves, Profiles
from analysis.plots import look_of
from analysis.scores import KINDS, RUN_KEYS, Array, Manifest, Scores, TaskScores, by_task, once
from analysis.tables import AGGREGATES, CONFIDENCE, LAST, MARKS, MEANINGS, TITLES, by_tasks, survives

MAX_RUNS = 50
"""Runs of a label that are drawn one by one on a task; more would only make the file larger."""
MAX_EVALUATIONS = 200
"""Evaluations that each of them is drawn with."""
MAX_DIVERGED = 200
"""Diverged runs that are listed."""


def document(
    scores: Scores,
    frame: pd.DataFrame,
    shard_manifests: Sequence[Manifest],
    summary: pd.DataFrame,
    curves: Curves,
    profiles: Mapping[str, Profiles],
    *,
    repetitions: int,
    seed: int,
) -> dict[str, Any]:
    """All that the page shows, as plain JSON values; labels and tasks are numbered by their places in `labels` and
    `tasks`, and what is not a number is None.

    Args:
        scores: from `analysis.score`.
        frame, shard_manifests: from `analysis.load` and `analysis.manifests`, as `scores` is.
        summary: from `tables.summarise`.
        curves, profiles: from `analysis.curves`; profiles by kind of score, none without tasks that can be compared.
        repetitions, seed: of the bootstrap, as they were.
    """
    what_was_run = _manifests(shard_manifests)
    frame, shard_manifests = by_task(frame, shard_manifests)
    frame, _ = once(frame, shard_manifests)
    labels, environments = scores.labels, scores.environments
    compared, left_out = scores.comparable()
    rows = {key: group for key, group in frame.groupby(["label", "environment"])}
    diverged = [run for key, task in scores.tasks.items() for run in _diverged(task, rows[key], labels, environments)]
    several = len({manifest["experiment"] for manifest in shard_manifests}) > 1

    def label_of(manifest: Manifest) -> str:
        return f"{manifest['experiment']}/{manifest['label']}" if several else str(manifest["label"])

    cells: dict[tuple[str, str], list[Manifest]] = {key: [] for key in scores.tasks}
    for manifest in shard_manifests:
        if (label_of(manifest), manifest["environment"]) in cells:
            cells[label_of(manifest), manifest["environment"]].append(manifest)

    return {
        "title": ", ".join(sorted({str(manifest["experiment"]) for manifest in shard_manifests})),
        "bootstrap": {"repetitions": repetitions, "seed": seed, "confidence": CONFIDENCE},
        "limits": {"runs": MAX_RUNS, "diverged": MAX_DIVERGED, "last": LAST},
        "labels": [{"name": label, **look_of(index)._asdict()} for index, label in enumerate(labels)],
        "tasks": [_task(scores, environment, shard_manifests, left_out) for environment in environments],
        "kinds": KINDS,
        "statistics": TITLES,
        "marks": [
            {"mark": MARKS[reason], "meaning": meaning, "used": bool((summary["no_interval"] == reason).any())}
            for reason, meaning in MEANINGS.items()
        ],
        "notes": list(scores.notes),
        "cells": [
            {
                **_place(key, labels, environments),
                **_curve(curves.tasks[key]),
                **_runs(task, rows[key]),
                **_speed(task, cells[key]),
            }
            for key, task in scores.tasks.items()
        ],
        "aggregate_curves": [
            {"label": labels.index(label), **_curve(curve)} for label, curve in curves.aggregate.items()
        ],
        "table": _table(summary, labels, environments),
        "aggregates": _aggregates(summary, labels) if compared else {},
        "improvements": _improvements(summary, labels),
        "improvement_tasks": [
            {"tasks": shared, "pairs": [f"{x} and {y}" for x, y in pairs]} for shared, pairs in by_tasks(scores.pairs())
        ],
        "profiles": {
            kind: {
                "x": _numbers(found.thresholds),
                "bands": [{"label": labels.index(label), **_band(band)} for label, band in found.bands.items()],
            }
            for kind, found in profiles.items()
        },
        "diverged": {"total": len(diverged), "runs": diverged[:MAX_DIVERGED]},
        "manifests": what_was_run,
    }


def page(report: Mapping[str, Any]) -> str:
    """The HTML page of a document: one text, without a link to anything."""
    folder = resources.files("analysis") / "page"
    template, style, script = ((folder / f"report.{ending}").read_text("utf-8") for ending in ("html", "css", "js"))
    data = json.dumps(report, allow_nan=False, separators=(",", ":"))
    # The only way out of a script element is a tag; within JSON, "<" occurs in strings alone.
    data = data.replace("<", "\\u003c")
    # Each part is looked for in the template alone, so that nothing in the data is taken for a place.
    before, rest = template.split("/* STYLE */")
    between, rest = rest.split("/* DATA */")
    then, after = rest.split("/* SCRIPT */")
    return "".join((before, style, between, data, then, script, after))


def write(report: Mapping[str, Any], file: str | Path) -> None:
    """Write the page of a document.

    Raises:
        OSError: the file cannot be written.
    """
    Path(file).write_text(page(report), encoding="utf-8")


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Iterable[Any]) -> list[float | None]:
    return [_number(value) for value in values]


def _short_number(value: float) -> float | None:
    """Six digits, which are all that a drawing shows."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _band(band: CurveInterval) -> dict[str, Any]:
    return {name: _numbers(values) for name, values in band._asdict().items()}


def _curve(curve: Curve) -> dict[str, Any]:
    return {"x": _numbers(curve.x), **_band(curve.band), "complete": curve.complete.tolist()}


def _interval(row: pd.Series) -> list[Any]:
    """Estimate, low and high; and the mark that stands behind an estimate that has no interval, or an empty text."""
    return [*_numbers(row[["estimate", "low", "high"]]), MARKS.get(row["no_interval"], "")]


def _place(key: tuple[str, str], labels: list[str], environments: list[str]) -> dict[str, int]:
    return {"label": labels.index(key[0]), "task": environments.index(key[1])}


# --- Parts of the document --------------------------------------------------------------------------------------------


def _task(
    scores: Scores, environment: str, shard_manifests: Sequence[Manifest], left_out: Mapping[str, str]
) -> dict[str, Any]:
    found = scores.references.get(environment)
    sources = [m["reference"] for m in shard_manifests if m["environment"] == environment and m.get("reference")]
    reference = None
    if found is not None:
        # The sources of the bounds that are used, should shards disagree.
        source: Manifest = next((s for s in sources if (s["low"], s["high"]) == (found.low, found.high)), {})
        reference = {
            "low": found.low,
            "high": found.high,
            "low_source": source.get("low_source"),
            "high_source": source.get("high_source"),
        }
    return {
        "name": environment,
        "offline": any(task.offline for (_, name), task in scores.tasks.items() if name == environment),
        "budget": scores.budgets[environment],
        "reference": reference,
        "left_out": left_out.get(environment),
    }


def _settings(rows: pd.DataFrame) -> pd.DataFrame:
    """What tells the runs of a label on a task apart, one row a run in the order of `TaskScores`: `seed`, and the
    hyperparameters that vary."""
    columns = [name for name in rows.columns if name.startswith("hyper/") and rows[name].nunique() > 1]
    settings = rows.groupby(RUN_KEYS)[["seed", *columns]].first()
    return settings.rename(columns=lambda name: name.removeprefix("hyper/"))


def _setting(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": int(run["seed"]),
        "hypers": {name: _short_number(value) for name, value in run.items() if name != "seed"},
    }


def _last_scores(task: TaskScores) -> Array:
    """`[runs]`, those that do not count too"""
    return np.array([curve[evaluated][-1] for curve, evaluated in zip(task.curves, task.evaluated, strict=True)])


def _chosen(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _runs(task: TaskScores, rows: pd.DataFrame) -> dict[str, Any]:
    settings = _settings(rows)
    ranked = np.argsort(_last_scores(task), kind="stable")
    at = _chosen(task.steps.size, MAX_EVALUATIONS)
    shown = np.where(task.evaluated, task.curves, np.nan)[:, at]
    return {
        "run_count": task.runs,
        "counted": int(task.counted.sum()),
        "planned": task.planned,
        "varied": [name for name in settings.columns if name != "seed"],
        "steps": task.steps[at].tolist(),
        "runs": [
            {
                **_setting(settings.iloc[run].to_dict()),
                "diverged": bool(task.diverged[run]),
                "returns": [_short_number(value) for value in shown[run]],
            }
            for run in sorted(ranked[_chosen(task.runs, MAX_RUNS)].tolist())
        ],
    }


def _diverged(task: TaskScores, rows: pd.DataFrame, labels: list[str], environments: list[str]) -> list[dict[str, Any]]:
    if not task.diverged.any():
        return []
    settings, last, counted = _settings(rows), _last_scores(task), task.counted
    lost = rows[rows["diverged"].to_numpy(bool)]
    # Of every run, so that they stay in the order of `TaskScores`.
    first = lost.groupby(RUN_KEYS)["step"].min().reindex(settings.index)
    causes = _first_nonfinite(rows).reindex(settings.index)
    return [
        {
            **_place((task.label, task.environment), labels, environments),
            **_setting(settings.iloc[run].to_dict()),
            "step": int(first.iloc[run]),
            "cause": None if pd.isna(causes["nonfinite"].iloc[run]) else str(causes["nonfinite"].iloc[run]),
            "cause_step": None if pd.isna(causes["step"].iloc[run]) else int(causes["step"].iloc[run]),
            "score": _number(last[run]),
            "counted": bool(counted[run]),
        }
        for run in np.flatnonzero(task.diverged).tolist()
    ]


def _first_nonfinite(rows: pd.DataFrame) -> pd.DataFrame:
    """By run: what was first seen to be non-finite, `nonfinite`, and at which `step`. Results from before this was
    recorded have none."""
    if "nonfinite" not in rows:
        rows = rows.assign(nonfinite=None)
    found = rows[rows["nonfinite"].notna()].sort_values("step", kind="stable")
    return found.drop_duplicates(RUN_KEYS).set_index(RUN_KEYS)[["nonfinite", "step"]]


def _speed(task: TaskScores, shards: Sequence[Manifest]) -> dict[str, Any]:
    """Of all shards of a label on a task together."""

    def values(key: str) -> list[float]:
        return [float(manifest[key]) for manifest in shards if isinstance(manifest.get(key), int | float)]

    plans = [manifest["plan"] for manifest in shards if isinstance(manifest.get("plan"), dict)]
    compile_seconds, run_seconds, memory = (
        values(key) for key in ("compile_seconds", "run_seconds", "peak_memory_bytes")
    )
    return {
        "steps_per_second": _number(task.steps_per_second),
        "compile_seconds": sum(compile_seconds) if compile_seconds else None,
        "run_seconds": sum(run_seconds) if run_seconds else None,
        "peak_memory_bytes": max(memory, default=None),
        "width": sorted({int(plan["width"]) for plan in plans if "width" in plan}),
        "devices": sorted({int(plan["devices"]) for plan in plans if "devices" in plan}),
    }


def _table(summary: pd.DataFrame, labels: list[str], environments: list[str]) -> list[dict[str, Any]]:
    rows = []
    task_rows = summary[summary["section"] == "task"]
    for (label, environment), group in task_rows.groupby(["label", "environment"], sort=False):
        statistics = group.set_index("statistic")
        facts = group.iloc[0]
        rows.append(
            {
                **_place((label, environment), labels, environments),
                **{name: _interval(statistics.loc[f"{name}_iqm"]) for name in ("untrained", "final", "last", "auc")},
                **{name: int(facts[name]) for name in ("runs", "planned_runs", "diverged")},
                **{name: int(facts[name]) for name in ("first_final_step", "last_final_step")},
            }
        )
    return rows


def _aggregates(summary: pd.DataFrame, labels: list[str]) -> dict[str, Any]:
    """By kind of score, then by statistic: an interval for each label."""
    rows = summary[summary["section"] == "aggregate"].set_index(["score", "statistic", "label"])
    return {
        kind: {
            statistic: [_interval(rows.loc[(kind, statistic, label)]) for label in labels] for statistic in AGGREGATES
        }
        for kind in KINDS
    }


def _improvements(summary: pd.DataFrame, labels: list[str]) -> dict[str, Any]:
    """By kind of score: `[label][against]`, an interval of the probability that a run of `label` scores higher, and
    whether it leaves out one half when corrected for the number of pairs; empty where there are no two labels on one
    task."""
    rows = summary[summary["section"] == "improvement"]
    found: dict[str, Any] = {kind: [[None] * len(labels) for _ in labels] for kind in KINDS if len(rows)}
    for _, row in rows.iterrows():
        x, y = labels.index(row["label"]), labels.index(row["against"])
        estimate, low, high, mark = _interval(row)
        matrix = found[row["score"]]
        matrix[x][y] = [estimate, low, high, mark, survives(row)]
        # A tie counts one half for either, so that the other way round is the rest.
        matrix[y][x] = [*(None if value is None else 1 - value for value in (estimate, high, low)), mark, survives(row)]
    return found


def _manifests(shard_manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What all manifests have in common, and of each one the rest."""
    shortened = [_shorten(manifest) for manifest in shard_manifests]
    first = shortened[0]
    common = {key: value for key, value in first.items() if all(key in m and m[key] == value for m in shortened)}
    return {
        "common": common,
        "shards": [{key: value for key, value in m.items() if key not in common} for m in shortened],
    }


def _shorten(manifest: Manifest) -> Manifest:
    """Thousands of seeds and settings as their ranges."""
    short = {**manifest, "seeds": _ranges(manifest["seeds"])}
    settings = manifest.get("hypers")
    if isinstance(settings, list) and settings and all(isinstance(setting, dict) for setting in settings):
        values = {name: {setting.get(name) for setting in settings} for name in settings[0]}
        short["hypers"] = {
            name: next(iter(found)) if len(found) == 1 else f"{len(found)} values from {min(found)} to {max(found)}"
            for name, found in values.items()
        }
        short["settings"] = len(settings)
    return {key: _plain(value) for key, value in short.items()}


def _plain(value: Any) -> Any:
    """The same without the numbers that JSON lacks, which Python reads and writes all the same."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _ranges(seeds: Iterable[int]) -> str:
    """`0-31, 40`, each seed once"""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
