"""`rlsuite check [FILE]`: train a small set of cells and compare their curves with reference curves.

The comparison itself is `analysis/regression.py`; here is what it takes: the cells, their rounds of seeds and the
folder of results. `check_references.py` has the files of the references, `check_speed.py` the option `--speed`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import envs
import rlsuite
from rlsuite.commands import check_references, check_speed
from rlsuite.commands.options import Parser, add_results_option, path
from rlsuite.commands.report import missing_extra
from rlsuite.errors import MOST_RUNS, UserError, check_at_most, check_positive
from rlsuite.sweeping import catalogue, local, manifest, sweep
from rlsuite.sweeping.job import Job, resolve, resolve_all
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Experiment
from rlsuite.training.device import prepare_jax
from rlsuite.training.plan import Limits
from rlsuite.training.progress import say

FILE = "experiments/check.py"
SETTINGS = Settings(Limits(width=8))
"""The width is fixed: what was measured fastest may differ from day to day, and with it the order of sums."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Cells that are compared with references."""

    experiment: Experiment
    """each cell with the `seeds` of one round, and one setting of its hyperparameters"""
    reference_seeds: int
    """runs of each reference, which are made when it is refreshed; their seeds begin where the cell's do"""
    rounds: int = 3
    """how often a cell that is inconclusive gets as many seeds again, the first round included"""
    margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """name of a reference -> share of what it has learned that may be lost, if not `analysis.regression.MARGIN`"""


def main(arguments: list[str]) -> int:
    """0 if learners are as good as their references, 1 if one is not, 3 if that is unclear."""
    options = parse(arguments)
    prepare_jax()
    check = load(options.check)
    experiment = check.experiment.name
    file = options.check.partition(":")[0]
    references = Path(options.references or Path(file).parent / "references") / experiment
    names = choose(check, options.cells)
    remedy = f"make it: rlsuite check {options.check} --refresh --cells {{}} --reason 'WHY'"
    folder = Path(options.results) / experiment / code_state(check)
    print(f"{experiment}: {check.experiment.description}", flush=True)
    if options.refresh:
        refresh(check, names, Store(folder / "references"), references, options.reason.strip())
        print(f"rlsuite: references of {', '.join(names)} in {references}; commit them")
        return 0
    manifests = {name: check_references.read_manifest(references, name, remedy.format(name)) for name in names}
    if options.speed:
        shards = round_jobs(check, 0)
        return check_speed.compare({name: shards[name] for name in names}, manifests)
    try:
        from analysis import ResultsError, regression, tables
    except ImportError as error:
        raise missing_extra(error) from error

    try:
        # Before anything is trained.
        for name, shard in round_jobs(check, 0).items():
            if name in manifests:
                regression.check_same(manifests[name], shard.describe(), remedy.format(name))
        store = Store(folder)

        def judge(there: dict[str, list[Job]]) -> list[Any]:
            shards = {name: [shard.name for shard in cell_jobs] for name, cell_jobs in there.items()}
            return regression.from_files(references, store.folder, shards, check.margins, check.rounds)

        judged = run(check, names, store, judge, lambda one: one.verdict is regression.Verdict.INCONCLUSIVE)
        verdict = regression.report(judged, store.folder, check.rounds, tables.make_console())
    except ResultsError as error:
        raise UserError(str(error)) from error
    return verdict.value


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options. Raises UserError for those that do not go together."""
    parser = Parser(
        prog="rlsuite check",
        description="Train a small set of cells and compare their learning curves with reference curves: PASS (exit\n"
        "code 0), FAIL (1) or INCONCLUSIVE (3). docs/regression.md says how to read the answer.",
    )
    parser.add_argument(
        "check",
        nargs="?",
        type=path,
        default=FILE,
        metavar="FILE",
        help="a Python file that defines CHECK, or file.py:NAME for one that it calls NAME (%(default)s)",
    )
    parser.add_argument("--cells", metavar="LIST", help="names of its references, with commas between (all)")
    parser.add_argument("--speed", action="store_true", help="instead, compare speed and memory, which takes no runs")
    parser.add_argument("--refresh", action="store_true", help="make new references, which takes a --reason")
    parser.add_argument("--reason", metavar="TEXT", help="why the curves may have changed; it is kept with them")
    parser.add_argument(
        "--references", metavar="DIR", type=path, help="folder of the references (references/ next to FILE)"
    )
    add_results_option(parser)
    options = parser.parse_args(arguments)
    if options.refresh and not (options.reason or "").strip():
        raise UserError("--refresh needs a reason, such as --reason 'PPO anneals its learning rate'; it is recorded")
    if options.refresh and options.speed:
        raise UserError("--refresh makes references of scores, speed and memory alike; leave out --speed")
    if options.reason and not options.refresh:
        raise UserError("--reason is for --refresh; add it, or leave out the reason")
    return options


def load(path: str | Path) -> Check:
    """The `CHECK` that a Python file defines, or with `file.py:LARGE` the one it calls `LARGE`.

    Raises:
        UserError: no such file, it does not run, or what it defines is no check that can be run.
    """
    check = sweep.load_as(Check, path, "CHECK")
    check_positive(reference_seeds=check.reference_seeds, rounds=check.rounds)
    check_at_most(MOST_RUNS, reference_seeds=check.reference_seeds, rounds=check.rounds)
    shards = resolve_all(check.experiment)
    names = [reference_name(shard) for shard in shards]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"check '{check.experiment.name}' has {count} cells called {name}; label them")
    for shard in shards:
        if len(shard.runs) != shard.cell.seeds:
            raise UserError(f"{reference_name(shard)}: a cell of a check has one setting of hypers; make others cells")
    if unknown := set(check.margins) - set(names):
        raise UserError(f"margins of {', '.join(sorted(unknown))}, but the cells are {', '.join(names)}")
    return check


def reference_name(shard: Job) -> str:
    """The shard's name without the digest, so that a cell that has changed still finds its reference."""
    return shard.name.rpartition("__")[0]


def round_jobs(check: Check, number: int) -> dict[str, Job]:
    """The shards that the round of this number trains, the first being 0, by the names of their references."""
    cells = [
        dataclasses.replace(cell, first_seed=cell.first_seed + number * cell.seeds) for cell in check.experiment.cells
    ]
    return {reference_name(shard): shard for shard in (resolve(check.experiment.name, cell) for cell in cells)}


def code_state(check: Check) -> str:
    """Twelve hex digits of all source files, the versions of all packages, the check itself and its datasets' files.

    Results of another state are never taken for those of this one.
    """
    digest = hashlib.sha256(repr([sorted(manifest.versions().items()), check]).encode())
    for package in (envs, rlsuite):
        folder = Path(str(package.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder.parent)}\n".encode() + file.read_bytes())
    for dataset_id in sorted({cell.dataset for cell in check.experiment.cells if cell.dataset is not None}):
        for file in found.files if (found := catalogue.find(dataset_id)) else ():
            with file.open("rb") as opened:
                digest.update(f"{file.name}\n".encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


def choose(check: Check, listed: str | None) -> list[str]:
    """The names in a list with commas, all if there is none. Raises UserError for one that is no cell's."""
    there = list(round_jobs(check, 0))
    if listed is None:
        return there
    names = listed.split(",")
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"no cell '{unknown[0]}' in check '{check.experiment.name}'; there are: {', '.join(there)}")
    return names


Judged = TypeVar("Judged")


def run(
    check: Check,
    names: Sequence[str],
    store: Store,
    judge: Callable[[dict[str, list[Job]]], Sequence[Judged]],
    is_inconclusive: Callable[[Judged], bool],
) -> Sequence[Judged]:
    """Train the cells of these names, and those that are inconclusive again at other seeds, up to the last round.

    Args:
        check: what is compared.
        names: of the cells to train.
        store: where results lie; what it holds already is not trained again.
        judge: is told after each round which shards of each cell are there, and gives one judgement a cell, in order.
        is_inconclusive: whether a judgement asks for more runs.

    Returns:
        What `judge` gave after the last round.

    Raises:
        UserError, Stopped: as `local.run`.
    """
    there: dict[str, list[Job]] = {name: [] for name in names}
    waiting = list(names)
    judged: Sequence[Judged] = ()
    for number in range(check.rounds):
        if not waiting:
            break
        if number:
            say(f"inconclusive so far: {', '.join(waiting)}; more seeds, round {number + 1} of {check.rounds}")
        shards = round_jobs(check, number)
        local.run([shards[name] for name in waiting], store, SETTINGS)
        for name in waiting:
            there[name].append(shards[name])
        judged = judge(there)
        waiting = [name for name, one in zip(there, judged, strict=True) if is_inconclusive(one)]
    return judged


def reference_shards(check: Check) -> dict[str, Job]:
    """What the references are made from, by their names."""
    cells = [dataclasses.replace(cell, seeds=check.reference_seeds) for cell in check.experiment.cells]
    return {reference_name(shard): shard for shard in (resolve(check.experiment.name, cell) for cell in cells)}


def refresh(check: Check, names: Sequence[str], store: Store, folder: Path, reason: str) -> None:
    """Train the cells of these names at `reference_seeds`, measure their speed, and replace their references.

    Raises:
        UserError: as `local.run` and `check_speed.measure`; the folder cannot be written.
    """
    shards = reference_shards(check)
    local.run([shards[name] for name in names], store, SETTINGS)
    speeds = {name: check_speed.measure(shards[name]) for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            check_references.write(store, name, shards[name], speeds[name], folder, reason)
    except OSError as error:
        raise UserError(
            f"references '{folder}' cannot be written ({error}); choose another with --references"
        ) from error
