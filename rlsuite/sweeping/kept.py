"""Whether results that are there may be kept or gone on with: their code and data must be those of now.

What a manifest says of the reference returns may change; training depends on nothing of it.
"""

from __future__ import annotations

from typing import Any

from envs.datasets import Dataset
from rlsuite.errors import UserError
from rlsuite.sweeping import catalogue, provenance
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.sweep import env_of
from rlsuite.training.progress import say


def check_kept(entry: Entry) -> str | None:
    """A line to print of a finished shard whose packages of others are not recorded; None if there is nothing to say.

    Raises:
        UserError: such a package is not what it was when the shard was trained.
    """
    return _check_packages(entry, entry.manifest(), finished=True)


def check_resumed(entry: Entry) -> None:
    """Print what has changed since the shard was begun that it may go on with: rlsuite and JAX.

    Raises:
        UserError: the package of another is not what it was, which would make one curve of two learners.
    """
    before = entry.manifest()
    if line := _check_packages(entry, before, finished=False):
        say(line)
    sessions = before.get("sessions") or [{}]
    was, now = sessions[-1], provenance.session()
    if "rlsuite_sources" not in was:
        say("  goes on; which rlsuite and JAX it was begun with is not recorded, --retrain starts it over")
    elif changed := provenance.changes(was, now):
        say(f"  goes on with {changed}; the report will say so, --retrain starts it over")


def begun_with_other_code(entry: Entry) -> bool:
    """Whether the shard is there, unfinished, and other code than that of now has worked on it."""
    unfinished = not entry.path.exists() and entry.begun()
    return unfinished and not provenance.same(entry.job.packages, entry.manifest())


def check_checksum(entry: Entry, dataset: Dataset, finished: bool) -> None:
    """Raise UserError if the shard, which is begun or `finished`, has learned from other data of the same name."""
    before = entry.manifest().get("dataset_checksum", dataset.checksum)
    if before != dataset.checksum:
        what, there = ("trained", entry.path) if finished else ("begun", entry.partial)
        raise UserError(
            f"dataset '{dataset.id}' has changed (checksum {dataset.checksum}, was {before}) since "
            f"'{entry.job.name}' was {what}; restore it, or delete '{there}' to begin again"
        )


def news_of(entry: Entry) -> dict[str, Any]:
    """What the manifest of a finished shard should say now and does not.

    Raises:
        UserError: the shard has learned from other data than its dataset holds now.
    """
    job, before = entry.job, entry.manifest()
    if not before:  # it is lost, and cannot be made again from this
        return {}
    now = {"reference": job.reference()} if job.cell.dataset is None or job.cell.reference is not None else {}
    if job.cell.dataset is not None:
        now |= look_at_dataset(entry, before, job.cell.dataset)
    return {name: value for name, value in now.items() if value != before.get(name)}


def look_at_dataset(entry: Entry, before: dict[str, Any], dataset_id: str) -> dict[str, Any]:
    """What the manifest of a finished shard says of its dataset as it is now; nothing if that is not there any more.

    It is read only if its files have changed.
    """
    job, found = entry.job, catalogue.find(dataset_id)
    if found is None:
        return {}
    if found.fingerprint == before.get("dataset_files"):
        return {"reference": job.reference(found.reference())}
    try:
        dataset = found.read(env_of(job.cell), clip_actions=job.cell.clip_actions)
    except UserError as error:
        say(f"  whether dataset '{dataset_id}' has changed since '{job.name}' was trained cannot be told: {error}")
        return {}
    check_checksum(entry, dataset, finished=True)
    return {"dataset_files": found.fingerprint, "reference": job.reference(dataset.reference)}


def tell_reference(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say so if the facts of a manifest have another reference now. The first time that they have one is no change."""
    if "reference" not in before or "reference" not in now or before["reference"] == now["reference"]:
        return
    reference = now["reference"]
    text = "none" if reference is None else "{low:g} ({low_source}) to {high:g} ({high_source})".format(**reference)
    say(f"  its reference returns have changed, and its manifest with them: now {text}")


def tell_devices(before: dict[str, Any], devices: int) -> None:
    """Say so if the shard, by the manifest of the process that worked on it last, goes on with other devices."""
    sessions = before.get("sessions", [])
    # Earlier versions recorded the devices of the last process alone.
    last = sessions[-1].get("devices", before.get("plan", {}).get("devices")) if sessions else None
    if last not in (None, devices):
        say(
            f"  goes on with {devices} device(s), not {last} as before: other runs on each round sums "
            "otherwise, and curves are not to the last bit those of one go; the manifest lists who trained on how many"
        )


def _check_packages(entry: Entry, before: dict[str, Any], finished: bool) -> str | None:
    done, place = ("trained", entry.path) if finished else ("begun", entry.partial)
    if changed := provenance.changed_since(before):
        raise UserError(
            f"other code than '{entry.job.name}' was {done} with: {changed}; restore it, or delete '{place}' to begin "
            "again, or have all of this command begun again with --retrain"
        )
    now = entry.job.packages
    if "packages" in before or not now:
        return None
    names = " and ".join(dict.fromkeys(f"'{package['name']}'" for package in now.values()))
    return f"  which code of {names} it was {done} with is not recorded; --retrain starts it over"
