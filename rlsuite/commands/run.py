"""`rlsuite run ALGORITHM --env ID ...`: train one algorithm on one environment at many seeds, then report."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from envs import Reference
from envs.datasets import SAMPLINGS
from rlsuite import algorithms
from rlsuite.commands import report
from rlsuite.commands.execution import add_execution_options, add_retrain_option, execution_settings
from rlsuite.commands.options import Parser, add_options, add_results_option
from rlsuite.core import AlgorithmSpec, Preset
from rlsuite.errors import UserError
from rlsuite.sweeping import extend, job, local, search
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell
from rlsuite.training.device import prepare_jax

GIVEN = "given with --reference"
"""Where reference returns of the command line are from."""


def main(arguments: list[str]) -> int:
    """Train the runs that are missing and report on the experiment."""
    if not arguments or arguments[0] in ("-h", "--help"):
        show_algorithms()
    name = arguments[0]
    if name.startswith("-"):
        raise UserError(
            f"expected an algorithm before '{name}', one of: {', '.join(algorithms.registered())}; "
            "type it right after 'rlsuite run'"
        )
    spec = algorithms.get(name)
    # The environment, or the dataset, has a say in the defaults, which the help shows.
    task_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    task_parser.add_argument("--env", nargs="?")
    task_parser.add_argument("--dataset", nargs="?")
    named = task_parser.parse_known_args(arguments[1:])[0]
    preset = spec.preset(named.env or "", named.dataset)
    options = vars(parser_of(name, spec, preset).parse_args(arguments[1:]))
    settings = execution_settings(options)
    prepare_jax()
    one = job.resolve(options["name"], cell_of(name, spec, preset, options))
    store = Store(Path(options["results"]) / options["name"])
    local.run(extend.extending([one], store), store, settings)
    return report.report_after(store.folder)


def show_algorithms() -> None:
    """Print the help that names no algorithm, and leave."""
    parser = Parser(
        prog="rlsuite run",
        usage="rlsuite run ALGORITHM --env ENV ...",
        description="Train one algorithm on one environment at many seeds.",
        epilog="'rlsuite run ALGORITHM --help' lists the options, with those of the algorithm.",
    )
    names = ", ".join(algorithms.registered())
    parser.add_argument("ALGORITHM", help=f"{names}; +cdsa may follow any that learns from a dataset")
    parser.parse_args(["--help"])


def parser_of(name: str, spec: AlgorithmSpec, preset: Preset) -> Parser:
    """The parser of one algorithm, whose defaults are those of the preset."""
    parser = Parser(prog=f"rlsuite run {name}", description=f"Train {name} on one environment at many seeds.")
    parser.usage = f"rlsuite run {name} --env ENV [OPTION ...]"
    parser.add_argument("--env", required=True, help="environment id, see 'rlsuite list'")
    if spec.offline:
        parser.usage += " --dataset DATASET"
        parser.add_argument(
            "--dataset", required=True, help="what to learn from: a file, a folder, an id (docs/datasets.md)"
        )
        parser.add_argument(
            "--sampling", default="uniform", help=f"how transitions are drawn: {', '.join(SAMPLINGS)} (%(default)s)"
        )
        parser.add_argument(
            "--clip-actions", action="store_true", help="clip actions of the dataset that lie outside of the action box"
        )
    add_cell_options(parser, steps="gradient" if spec.offline else "environment")
    config_group = parser.add_argument_group(
        "config", f"what shapes the program; another value compiles another program (shown: {preset.source})"
    )
    defaults = {field: getattr(preset.config, field) for field in config_fields(spec)}
    add_options(config_group, defaults, spec.config)
    hyper_group = parser.add_argument_group(
        "hyperparameters", "what may differ between the runs of one program; lists are trained in every combination"
    )
    add_options(hyper_group, preset.hypers._asdict(), spec.hypers, several=True)
    add_execution_options(parser)
    add_retrain_option(parser)
    return parser


def add_cell_options(parser: Parser, steps: str) -> None:
    """How long and how often each algorithm is trained, how it is evaluated, and where that goes; `steps` says which
    steps `--steps` counts."""

    def count(flag: str, default: int | None, text: str) -> None:
        parser.add_argument(flag, type=int, metavar="N", default=default, help=text)

    count("--steps", 100_000, f"{steps} steps of each run (%(default)s)")
    count("--seeds", 32, "runs of each setting of the hyperparameters (%(default)s)")
    count("--first-seed", 0, "the first seed of each setting (%(default)s)")
    count("--evaluations", 10, "evaluations while training (%(default)s)")
    count("--eval-episodes", 16, "complete episodes of each run in each evaluation (%(default)s)")
    count("--max-episode-steps", None, "time limit, if not the environment's own")
    parser.add_argument(
        "--eval-physics",
        choices=("own", "mujoco"),
        default="own",
        help="evaluate on the environment's own simulator or on C MuJoCo, for mujoco/... (%(default)s)",
    )
    parser.add_argument(
        "--reference",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="returns that normalised scores lie between (the dataset's or the environment's, if there are)",
    )
    parser.add_argument("--name", default="run", help="experiment, the folder below the results (%(default)s)")
    parser.add_argument("--label", help="name of the curve in reports (the algorithm's)")
    add_results_option(parser)


def config_fields(spec: AlgorithmSpec) -> list[str]:
    """The names of the fields of its `Config`."""
    return [field.name for field in dataclasses.fields(spec.config)]


def cell_of(name: str, spec: AlgorithmSpec, preset: Preset, options: dict[str, Any]) -> Cell:
    """The cell that these options name. Raises UserError for values of hyperparameters that do not go together."""
    returns = options["reference"]
    return Cell(
        algorithm=name,
        environment=options["env"],
        steps=options["steps"],
        seeds=options["seeds"],
        first_seed=options["first_seed"],
        config=spec.config(**{field: options[field] for field in config_fields(spec)}),
        hypers=search.grid(preset.hypers, **{field: options[field] for field in preset.hypers._fields}),
        evaluations=options["evaluations"],
        eval_episodes=options["eval_episodes"],
        max_episode_steps=options["max_episode_steps"],
        evaluation_physics=options["eval_physics"],
        dataset=options.get("dataset"),
        sampling=options.get("sampling", "uniform"),
        clip_actions=options.get("clip_actions", False),
        label=options["label"],
        reference=None if returns is None else Reference(returns[0], returns[1], GIVEN, GIVEN),
    )
