"""Which datasets there are, by name: files of others, and those made here, which `collect.py` makes. This file reads.

`<environment>/<tier>` names one that is made here, see `recipes.TIERS`; it lies below `folder()`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from envs import dataset_files, datasets
from envs.core import Env, Reference
from envs.datasets import Dataset, DatasetError
from rlsuite.errors import UserError
from rlsuite.sweeping.recipes import RECIPES, TIERS

FOLDER_VARIABLE = "RLSUITE_DATASETS"


def folder() -> Path:
    """Where datasets made here lie: `datasets/`, or what RLSUITE_DATASETS says."""
    return Path(os.environ.get(FOLDER_VARIABLE, "datasets")).expanduser()


def read(dataset_id: str, env: Env, sampling: str = "uniform", clip_actions: bool = False) -> Dataset:
    """The dataset of this id, which is not made if it is not there; `clip_actions` as `dataset_files.load` has it.

    Raises:
        UserError: it is not there, cannot be read, is of another environment, or there is no such sampling.
    """
    if not exists(dataset_id):
        raise UserError(missing(dataset_id, env))
    try:
        return datasets.draw(dataset_files.load(dataset_id, env, folder(), clip_actions), sampling)
    except DatasetError as error:
        raise UserError(str(error)) from error


def reference(dataset_id: str) -> Reference | None:
    """The returns for normalised scores that a dataset which is there brings itself. Its transitions are not read.

    Raises:
        UserError: what it says of itself cannot be read.
    """
    place = dataset_files.find(dataset_id, folder())
    try:
        return None if place is None else dataset_files.reference_of(place)
    except DatasetError as error:
        raise UserError(str(error)) from error


def files(dataset_id: str) -> list[Path]:
    """The files of a dataset, in order; empty if it is not there."""
    place = dataset_files.find(dataset_id, folder())
    if place is None or place.is_file():
        return [place] if place else []
    return sorted(path for path in (place / "data").rglob("*") if path.is_file())


def fingerprint(dataset_id: str) -> str | None:
    """Digits that stay the same for as long as a dataset's files do, judged by sizes and times; None without files."""
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files(dataset_id)]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else None


def exists(dataset_id: str) -> bool:
    """Whether there are files of this name, made here or by others."""
    return dataset_files.find(dataset_id, folder()) is not None


def check(dataset_id: str, env: Env) -> None:
    """Raise UserError unless the dataset is there or can be made here. Nothing is read."""
    if exists(dataset_id):
        return
    if tier_of(dataset_id, env) is None:
        raise UserError(missing(dataset_id, env))
    if env.id not in RECIPES:
        raise UserError(f"{missing(dataset_id, env)} (made by themselves are those of {', '.join(RECIPES)})")


def missing(dataset_id: str, env: Env) -> str:
    """What to say of a dataset that is not there."""
    tier = tier_of(dataset_id, env)
    if tier is not None:
        return f"no dataset '{dataset_id}'; make it with 'rlsuite collect {env.id} --tiers {tier}'"
    return (
        f"no dataset '{dataset_id}'; expected a file, a folder or an id of Minari's, or '{env.id}/TIER' with TIER "
        f"one of {', '.join(TIERS)}"
    )


def tier_of(dataset_id: str, env: Env) -> str | None:
    """The tier of a dataset that could be made here of this environment; None if it is none."""
    tier = dataset_id.removeprefix(f"{env.id}/")
    return tier if tier != dataset_id and tier in TIERS else None
