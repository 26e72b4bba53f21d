"""Which code computes a result: rlsuite's own, JAX, and the packages of others that bring its algorithm or environment.

A manifest says it, so that results of different code are told apart where they are kept, resumed, pooled or compared.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import envs
import rlsuite
from envs.plugins import Package
from rlsuite import algorithms
from rlsuite.errors import UserError
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Shard
from rlsuite.training.progress import say

DIGITS = 12
"""Hex digits of a digest."""


@functools.cache
def own_sources() -> str:
    """The digest of all that rlsuite computes with, `rlsuite/` and `envs/`, as it was when first asked for."""
    found = [(module.__name__, *file) for module in (envs, rlsuite) for file in files_of(module.__name__)]
    return digest((f"{module}/{name}", file) for module, name, file in found)


@functools.cache
def sources(package: Package) -> str:
    """The digest of the package that defines what an entry point names, as it was when first asked for."""
    return digest(files_of(package.module))


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """Hex digits of files by their names; others where a name or a byte differs."""
    found = hashlib.sha256()
    for name, file in files:
        content = file.read_bytes()
        found.update(f"{name}\n{len(content)}\n".encode() + content)
    return found.hexdigest()[:DIGITS]


def files_of(module: str) -> list[tuple[str, Path]]:
    """(name within it, file) of all Python files of the package that an imported module is in; or of the module alone,
    if it is in none. Folders that are no packages, in which several distributions may lie, do not count as one."""
    names = module.split(".")
    for end in range(1, len(names) + 1):
        file = sys.modules[".".join(names[:end])].__file__
        if file is None:
            continue
        path = Path(file)
        if path.stem != "__init__":
            return [(path.name, path)]
        return [(below.relative_to(path.parent).as_posix(), below) for below in sorted(path.parent.rglob("*.py"))]
    return []


def packages(algorithm: str, environment: str) -> dict[str, dict[str, str]]:
    """Name, version and digest of the sources of other packages: of the `algorithm`'s, and of the `environment`'s."""
    found = {"algorithm": algorithms.package(algorithm), "environment": envs.package(environment)}
    return {
        what: {"name": package.name, "version": package.version, "sources": sources(package)}
        for what, package in found.items()
        if package
    }


def session() -> dict[str, str]:
    """rlsuite and JAX, as they are in this process."""
    return {"rlsuite": rlsuite.__version__, "rlsuite_sources": own_sources(), "jax": jax.__version__}


def check_kept(shard: Shard, store: Store) -> str | None:
    """A line to print of a finished shard whose packages of others are not recorded; None if there is nothing to say.

    Raises:
        UserError: such a package is not what it was when the shard was trained.
    """
    return _check_packages(shard, store.manifest(shard), "trained", store.path(shard))


def check_resumed(shard: Shard, store: Store) -> None:
    """Print what has changed since the shard was begun that it may go on with: rlsuite and JAX.

    Raises:
        UserError: the package of another is not what it was, which would make one curve of two learners.
    """
    before = store.manifest(shard)
    if line := _check_packages(shard, before, "begun", store.partial(shard)):
        say(line)
    sessions = before.get("sessions") or [{}]
    was, now = sessions[-1], session()
    if "rlsuite_sources" not in was:
        say("  goes on; which rlsuite and JAX it was begun with is not recorded, --retrain begins it anew")
    elif changed := changes(was, now):
        say(f"  goes on with {changed}; the report will say so, --retrain begins it anew")


def same(shard: Shard, manifest: dict[str, Any]) -> bool:
    """Whether all sessions of a shard computed with the code that there is now."""
    sessions = manifest.get("sessions") or [{}]
    now = session()
    return manifest.get("packages") == packages(shard.cell.algorithm, shard.environment) and all(
        {key: each.get(key) for key in now} == now for each in sessions
    )


def changes(was: dict[str, Any], now: dict[str, str]) -> str:
    """`rlsuite 0.2 (sources 1a2b), it was begun with 0.1 (sources 3c4d)`; empty if nothing has changed."""
    changed = []
    if (was["rlsuite"], was["rlsuite_sources"]) != (now["rlsuite"], now["rlsuite_sources"]):
        changed.append("rlsuite {rlsuite} (sources {rlsuite_sources})")
    if was["jax"] != now["jax"]:
        changed.append("JAX {jax}")
    text = " and ".join(changed)
    return f"{text.format(**now)}, it was begun with {text.format(**was)}" if changed else ""


def changed_since(manifest: dict[str, Any]) -> str | None:
    """How the packages of others that a shard was trained with differ from those of now, in words; None if they do
    not, or if that is not recorded."""
    if "packages" not in manifest:
        return None
    now = packages(manifest["algorithm"], manifest["environment"])
    changed = [
        f"the package of the {what} is {_named(now.get(what))}, was {_named(manifest['packages'].get(what))}"
        for what in ("algorithm", "environment")
        if now.get(what) != manifest["packages"].get(what)
    ]
    return " and ".join(changed) or None


def _check_packages(shard: Shard, before: dict[str, Any], done: str, place: Path) -> str | None:
    if changed := changed_since(before):
        raise UserError(
            f"other code than '{shard.name}' was {done} with: {changed}; restore it, or delete '{place}' to begin "
            "again, or have all of this command begun again with --retrain"
        )
    now = packages(shard.cell.algorithm, shard.environment)
    if "packages" in before or not now:
        return None
    names = " and ".join(dict.fromkeys(f"'{package['name']}'" for package in now.values()))
    return f"  which code of {names} it was {done} with is not recorded; --retrain begins it anew"


def _named(package: dict[str, str] | None) -> str:
    return "rlsuite's own" if package is None else "{name} {version} (sources {sources})".format(**package)
