"""What CONTRIBUTING.md shows, as it stands there, and packages made of it: for tests of both.

The packages are real distributions in a folder on the path: modules beside a `*.dist-info`, as pip would leave them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The page's code blocks in one language."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return found


def install(folder: Path, package: str, group: str, entry_points: Mapping[str, str], **modules: str) -> None:
    """Put a distribution into a folder: its metadata with entry points of one group, and its modules below a package of
    the same name."""
    (folder / package).mkdir()
    for name, source in {"__init__": "", **modules}.items():
        (folder / package / f"{name}.py").write_text(source)
    metadata = folder / f"{package}-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 0.1\n")
    lines = "".join(f"{name} = {target}\n" for name, target in entry_points.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{lines}")


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` where the distributions in a folder are installed."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True)
