"""Which shards together give the runs of a job, where others of the same command have trained some of its seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlsuite.sweeping import catalogue, provenance
from rlsuite.sweeping.job import Job
from rlsuite.sweeping.store import Store


def extending(jobs: Sequence[Job], store: Store) -> list[Job]:
    """The jobs that together give the runs of these, each once, if some are finished in others of the same command.

    For each of `jobs` those are the ones to keep, in the order of their seeds, and last one with the seeds that they
    lack, if any. They are of the same code and data. A job itself is to run where nothing of the kind is there,
    where it has been begun or finished as a whole, and where the seeds that are left have gaps.
    """
    manifests = store.manifests()
    return list({one.name: one for job in jobs for one in parts_of(job, store, manifests)}.values())


def parts_of(job: Job, store: Store, manifests: dict[str, dict[str, Any]]) -> list[Job]:
    """`extending` for one job, given the manifests of the folder."""
    entry = store.open(job)
    if entry.path.exists() or entry.partial.exists():
        return [job]
    held: list[Job] = []
    missing = set(range(job.cell.first_seed, job.cell.first_seed + job.cell.seeds))
    for other in sorted(finished_alike(job, store, manifests), key=lambda other: -other.cell.seeds):
        seeds = {seed for seed, _ in other.runs}
        if seeds & missing:
            held.append(other)
            missing -= seeds
    held.sort(key=lambda other: other.cell.first_seed)
    if not missing:
        return held
    first = min(missing)
    if not held or missing != set(range(first, first + len(missing))):
        return [job]
    return [*held, job.at_seeds(first, len(missing))]


def finished_alike(job: Job, store: Store, manifests: dict[str, dict[str, Any]]) -> Iterator[Job]:
    """All finished jobs that differ from this one in nothing but their seeds, trained with this code and data."""
    dataset = catalogue.find(job.cell.dataset) if job.cell.dataset is not None else None
    files = dataset.fingerprint if dataset else None
    for name, found in manifests.items():
        try:
            seeds = sorted(set(found["seeds"]))
            alike = (found["label"], found["config_hash"]) == (job.label, job.config_hash)
        except (KeyError, TypeError):
            continue
        if not alike or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            continue
        other = job.at_seeds(seeds[0], len(seeds))
        # The name holds a digest of all else that rows depend on.
        if other.name != name or not store.open(other).path.exists() or not provenance.same(other.packages, found):
            continue
        if job.cell.dataset is None or files == found.get("dataset_files"):
            yield other
