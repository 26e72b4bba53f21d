"""Which datasets there are, by name: files of others, and those made here, which `collect.py` makes. This file reads.

`<environment>/<tier>` names one that is made here, see `recipes.TIERS`; it lies below `folder()`.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Found:
    """A dataset that is there."""

    id: str
    place: Path
    """its HDF5 file, or the Minari folder that holds `data/`"""
    files: tuple[Path, ...]
    """in order"""
    fingerprint: str
    """digits that stay the same for as long as the files do, judged by sizes and times"""

    def reference(self) -> Reference | None:
        """The returns for normalised scores that the dataset brings itself. Its transitions are not read.

        Raises:
            UserError: what it says of itself cannot be read.
        """
        try:
            return dataset_files.reference_of(self.place)
        except DatasetError as error:
            raise UserError(str(error)) from error

    def read(self, env: Env, sampling: str = "uniform", clip_actions: bool = False) -> Dataset:
        """Its transitions; `clip_actions` as `dataset_files.load` has it.

        Raises:
            UserError: it cannot be read, is of another environment, or there is no such sampling.
        """
        try:
            return datasets.draw(dataset_files.load(self.id, env, folder(), clip_actions), sampling)
        except DatasetError as error:
            raise UserError(str(error)) from error


def find(dataset_id: str) -> Found | None:
    """The dataset of this id, made here or by others; None if it is not there, or has no files."""
    place = dataset_files.find(dataset_id, folder())
    if place is None:
        return None
    below = [place] if place.is_file() else sorted(path for path in (place / "data").rglob("*") if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in below]
    return Found(dataset_id, place, tuple(below), hashlib.sha256(repr(facts).encode()).hexdigest()[:16])


def read(dataset_id: str, env: Env, sampling: str = "uniform", clip_actions: bool = False) -> Dataset:
    """The transitions of the dataset of this id, which is not made if it is not there.

    Raises:
        UserError: it is not there, or as `Found.read`.
    """
    found = find(dataset_id)
    if found is None:
        raise UserError(missing(dataset_id, env))
    return found.read(env, sampling, clip_actions)


def check(dataset_id: str, env: Env) -> None:
    """Raise UserError unless the dataset is there or can be made here. Nothing is read."""
    if find(dataset_id) is not None:
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
