"""Part of what a folder holds: some labels, tasks or shards."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.scores import Manifest, ResultsError, by_task


def select(
    frame: pd.DataFrame,
    shard_manifests: Sequence[Manifest],
    *,
    labels: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    shards: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, list[Manifest]]:
    """The rows of these labels, tasks and shards, with the manifests of their shards; of all where none are named.

    Args:
        frame: from `analysis.load`.
        shard_manifests: from `analysis.manifests`.
        labels: as they are called in the report.
        tasks: environments, or datasets of offline learners.
        shards: names of files without their endings. One that is not there is left out.

    Raises:
        ResultsError: no such label or task, or nothing that is all of what was asked for.
    """
    task_of_row = by_task(frame, shard_manifests)[0]["environment"]
    kept = pd.Series(True, index=frame.index)
    if shards is not None:
        kept &= frame["shard"].isin(list(shards))
        if not kept.any():
            raise ResultsError("none of the experiment's shards has results yet; wait for the first, or run it again")
    for what, column, wanted in (("label", frame["label"], labels), ("task", task_of_row, tasks)):
        present = sorted(column[kept].unique())
        for name in wanted or ():
            if name not in present:
                raise ResultsError(f"no {what} '{name}' in the results; there are: {', '.join(present)}")
        if wanted is not None:
            kept &= column.isin(list(wanted))
    rows = frame[kept]
    names = set(rows[["experiment", "shard"]].drop_duplicates().itertuples(index=False, name=None))
    return rows, [manifest for manifest in shard_manifests if (manifest["experiment"], manifest["shard"]) in names]
