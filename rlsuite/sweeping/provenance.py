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


def same(packages: dict[str, dict[str, str]], manifest: dict[str, Any]) -> bool:
    """Whether all sessions of a shard computed with the code that there is now, these packages of others included."""
    sessions = manifest.get("sessions") or [{}]
    now = session()
    return manifest.get("packages") == packages and all({key: each.get(key) for key in now} == now for each in sessions)


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


def _named(package: dict[str, str] | None) -> str:
    return "rlsuite's own" if package is None else "{name} {version} (sources {sources})".format(**package)
