"""How much of a method's source was read: the level that manifests state, and the word that two levels need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

EVIDENCE = {
    "A": "the official code was read",
    "B": "third-party code or the paper's equations were read",
    "C": "written from the abstract or from memory",
    "D": "a reconstruction",
}
"""As in `rlsuite/evidence.py`: level -> what it rests on."""
RECONSTRUCTED = frozenset({"C", "D"})
"""Levels that tables, figures and pages call a reconstruction, next to the label."""
WORD = "reconstruction"


def levels(frame: pd.DataFrame, shard_manifests: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Label -> evidence level of its method, several with commas between; an empty text where no manifest states one.

    Args:
        frame, shard_manifests: from `analysis.load` and `analysis.manifests`.
    """
    stated = {(manifest["experiment"], manifest["shard"]): manifest.get("evidence") for manifest in shard_manifests}
    found: dict[str, set[str]] = {}
    for label, *shard in frame[["label", "experiment", "shard"]].drop_duplicates().itertuples(index=False, name=None):
        level = stated.get((shard[0], shard[1]))
        found.setdefault(label, set()).update([str(level)] if level else [])
    return {label: ", ".join(sorted(letters)) for label, letters in found.items()}


def shown(label: str, label_levels: Mapping[str, str]) -> str:
    """The label as results show it: `name (reconstruction)`, if `levels` has such a level for it."""
    reconstructed = RECONSTRUCTED & set(label_levels.get(label, "").split(", "))
    return f"{label} ({WORD})" if reconstructed and WORD not in label else label


def named(frame: pd.DataFrame, shard_manifests: Sequence[dict[str, Any]]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The same rows and manifests with labels as they are to be shown, for all that is made of them."""
    label_levels = levels(frame, shard_manifests)
    names = {label: shown(label, label_levels) for label in label_levels}
    shard_labels = frame[["experiment", "shard", "label"]].drop_duplicates().itertuples(index=False, name=None)
    added = {(experiment, shard): names[label].removeprefix(label) for experiment, shard, label in shard_labels}
    return frame.assign(label=frame["label"].map(names)), [
        {**manifest, "label": f"{manifest['label']}{added.get((manifest['experiment'], manifest['shard']), '')}"}
        for manifest in shard_manifests
    ]


def notes(label_levels: Mapping[str, str]) -> Iterator[str]:
    """One line on the levels of all labels, if any is known."""
    if not any(label_levels.values()):
        return
    groups: dict[str, list[str]] = {}
    for label, level in label_levels.items():
        groups.setdefault(level, []).append(f"'{label}'")
    meanings = {level: " and ".join(EVIDENCE.get(each, each) for each in level.split(", ")) for level in groups}
    yield "evidence: " + "; ".join(
        f"{level} ({meanings[level]}) for {', '.join(groups[level])}" if level else f"- for {', '.join(groups[level])}"
        for level in sorted(groups, key=lambda level: (not level, level))
    )
