"""What other installed packages bring: environments and algorithms, named by entry points."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import NamedTuple


class Package(NamedTuple):
    """The distribution that brings something, and where its code is."""

    name: str
    version: str
    module: str
    """that the entry point names"""


def load(group: str, what: str, add: Callable[[str, object, Package], None]) -> None:
    """Load every entry point of a group and call `add(its name, what it names, who brings it)`.

    Where either fails, a warning that speaks of `what` names the package; the others are loaded all the same.
    """
    for entry_point in importlib.metadata.entry_points(group=group):
        found = entry_point.dist
        package = Package(found.name, found.version, entry_point.module) if found else Package("unknown", "", "")
        try:
            add(entry_point.name, entry_point.load(), package)
        except (Exception, SystemExit) as error:  # whatever another's code may raise, our own works
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(
                f"left out: {what} {entry_point.name!r} of the package {package.name!r} ({reason}); "
                "repair or uninstall it",
                stacklevel=2,
            )
