"""The facts of a manifest that are of a process and its surroundings: who trained, where, with which versions."""

from __future__ import annotations

import datetime
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import rlsuite
from envs.datasets import Dataset
from rlsuite.sweeping import provenance
from rlsuite.sweeping.catalogue import Found
from rlsuite.sweeping.entry import Entry
from rlsuite.sweeping.job import Job
from rlsuite.training.device import describe_device

PACKAGES = ("jax", "jaxlib", "flax", "optax", "brax", "mujoco", "mujoco-mjx", "gymnasium", "gymnax", "numpy")


def facts_of(entry: Entry, devices: int, device: str | None = None) -> dict[str, Any]:
    """What the manifest says of this process, which trains on `devices` devices, and of those before it; `device` in
    words is that of its workers, if it has some."""
    job = entry.job
    session = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device or describe_device(),
        "git_revision": git_revision(),
    }
    return {
        "total_updates": job.total_updates,
        "steps_per_update": job.steps_per_update,
        "evaluation_physics": job.physics,
        "reference": job.reference(),
        "packages": job.packages,
        "rlsuite_sources": provenance.own_sources(),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "versions": versions(),
        "command": sys.argv,
        **session,
        "sessions": [*sessions_of(entry), {**session, **provenance.session(), "devices": devices}],
    }


def facts_of_dataset(job: Job, found: Found, dataset: Dataset) -> dict[str, Any]:
    """What an offline learner was given, and the returns that scores are measured between."""
    return {
        "dataset_checksum": dataset.checksum,
        "dataset_files": found.fingerprint,
        "dataset_size": dataset.size,
        "dataset_source": dataset.source,
        "reference": job.reference(dataset.reference),
    }


def sessions_of(entry: Entry) -> list[dict[str, Any]]:
    """Those that have worked on the shard before, whose rows may still be there."""
    sessions: list[dict[str, Any]] = entry.manifest().get("sessions", [])
    return sessions if entry.parts() else []


def versions() -> dict[str, str]:
    """Python's and the packages' versions, those that are installed."""
    found: dict[str, str] = {"python": sys.version.split()[0], "rlsuite": rlsuite.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit this code is at, with a + if the tree has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> Any:
        return subprocess.run(("git", "-C", here, *args), capture_output=True, text=True, check=False)

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        if revision.returncode:
            return None
        return revision.stdout.strip() + ("+" if git("status", "--porcelain").stdout.strip() else "")
    except OSError:
        return None
