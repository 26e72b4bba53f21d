"""`rlsuite report FOLDER`: hand over to the analysis package, which reads results and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlsuite.errors import UserError


def main(arguments: list[str], shards: Sequence[str] | None = None) -> int:
    """Report on a folder of results; on these shards of it alone, where some are given."""
    try:
        from analysis.__main__ import main as analysis_main
    except ImportError as error:
        raise missing_extra(error) from error
    return analysis_main(arguments, shards)


def report_after(folder: Path, shards: Sequence[str] | None = None) -> int:
    """Report on what has just run: these shards of the folder, or all of it. Its results are whole without the analysis
    extra, so that is no failure."""
    try:
        return main([str(folder)], shards)
    except UserError as error:
        print(f"rlsuite: results are in {folder}; {error}")
        return 0


def missing_extra(error: ImportError) -> UserError:
    """What to say where a package of the analysis extra cannot be imported."""
    return UserError(f"reports need the analysis extra ({error.name} is missing): pip install 'rlsuite[analysis]'")
