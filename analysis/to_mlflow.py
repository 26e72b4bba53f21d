"""MLflow: a run there for each series, in the experiment of its name, on a tracking server or in a folder.

After an export that was killed, runs in doubt are looked for by their key, and asked for the points that they have.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from analysis.export import Record, Series
from analysis.scores import ResultsError

# Before MLflow is imported, which reports on its use otherwise.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

KEY = "rlsuite.key"
"""The tag that tells a series."""
MOST_ENTITIES = 1000
"""metrics, parameters and tags together that MLflow takes in one call"""
MOST_CHARACTERS = 5000
"""of a tag"""


class Mlflow:
    """A `Target` that is a folder, or a server by its URI.

    Raises:
        ResultsError: MLflow does not take the URI.
    """

    def __init__(self, place: str, results: Path) -> None:
        if "://" in place or place == "databricks":
            self.state = results / f".export-mlflow-{hashlib.sha256(place.encode()).hexdigest()[:8]}.json"
        else:
            # MLflow advises against folders, and refuses them unless it is told that one is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            self.state = Path(place) / "rlsuite-export.json"
            place = str(Path(place).absolute())
        self.experiments: dict[str, str] = {}
        try:
            self.client = MlflowClient(tracking_uri=place)
            self.client.search_experiments(max_results=1)
        except MlflowException as error:
            raise ResultsError(
                f"MLflow does not take '{place}' ({_one_line(error)}); give a folder or the URI of a server, or for a "
                "database: pip install mlflow"
            ) from error

    def holds(self, record: Record) -> bool:
        return True

    def send(self, part: Series, record: Record, doubtful: bool) -> Record:
        try:
            run = record.get("run") or (self._found(part) if doubtful else None)
            there = self._points(run, part) if doubtful and run else set()
            if run is None:
                created = self.client.create_run(
                    self._experiment(part.experiment),
                    start_time=int(1000 * part.times[0]),
                    tags={KEY: part.key},
                    run_name=f"{part.label} {part.task} {part.name}",
                )
                run = created.info.run_id
            metrics = [
                Metric(name, value, int(1000 * time), step)
                for step, time, values in part.rows()
                for name, value in values.items()
                if (name, step) not in there
            ]
            params = [Param(name, str(value)) for name, value in part.settings.items()] if not record else []
            tags = [RunTag(name, value) for name, value in _tags(part).items()]
            first = MOST_ENTITIES - len(params) - len(tags)
            self.client.log_batch(run, metrics[:first], params, tags)
            for start in range(first, len(metrics), MOST_ENTITIES):
                self.client.log_batch(run, metrics[start : start + MOST_ENTITIES])
            if part.facts["finished"]:
                last = part.times[-1] if part.times.size else record["time"]
                self.client.set_terminated(run, "FINISHED", end_time=int(1000 * last))
        except MlflowException as error:
            raise ResultsError(f"MLflow says: {_one_line(error)}") from error
        return {"run": run}

    def close(self) -> None:
        pass

    def _experiment(self, name: str) -> str:
        if name not in self.experiments:
            found = self.client.get_experiment_by_name(name)
            self.experiments[name] = found.experiment_id if found else self.client.create_experiment(name)
        return self.experiments[name]

    def _found(self, part: Series) -> str | None:
        """The run of a series that was made just before an export was killed."""
        experiment = self._experiment(part.experiment)
        runs = self.client.search_runs([experiment], f"tags.`{KEY}` = '{part.key}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _points(self, run: str, part: Series) -> set[tuple[str, int]]:
        """(name, step) of all points that a run has."""
        return {(name, metric.step) for name in part.values for metric in self.client.get_metric_history(run, name)}


def _tags(part: Series) -> dict[str, str]:
    manifest = json.dumps(part.manifest)
    tags: dict[str, Any] = {"label": part.label, "task": part.task, "kind": part.kind, **part.facts}
    return {**{name: str(value) for name, value in tags.items()}, "manifest": manifest[:MOST_CHARACTERS]}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
