"""The command line, `rlsuite COMMAND ...`, with the commands of `COMMANDS`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import shutil
import signal
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import rlsuite
from rlsuite.errors import MOST_INT32, MOST_RUNS, Stopped, UserError, check_at_most, check_positive

MAX_WIDTH = 100
"""Columns of a help text, in a terminal that is wider."""
GIVEN = "given with --reference"
"""Where reference returns of the command line are from."""
MOST_SEEDS = 1_000_000
"""that one option names"""
MOST_NAMES = 5
"""Shards that one line names."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, no wider than MAX_WIDTH, with line breaks in descriptions kept."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size().columns, MAX_WIDTH))


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and without abbreviated options: `--step` is a typing error, not `--steps`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it should, 2 with one line on stderr if the user asked for what cannot be."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-"):
            code = int(command(arguments[0])(arguments[1:]))
            sys.stdout.flush()
            return code
        summaries = "\n".join(f"  {name:<8} {summary}" for name, (_, summary) in COMMANDS.items())
        parser = Parser(
            prog="rlsuite",
            usage="rlsuite COMMAND ...",
            description="Compare reinforcement-learning methods at many seeds.",
            epilog=f"commands ('rlsuite COMMAND --help' says more):\n{summaries}",
        )
        parser.add_argument("--version", action="version", version=f"rlsuite {rlsuite.__version__}")
        parser.parse_args(arguments or ["--help"])
        return 0
    except UserError as error:
        print(f"rlsuite: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        again = "the same command" + (" without --retrain" if "--retrain" in arguments else "")
        print(f"rlsuite: {stopped}; all is saved, {again} goes on from here", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("rlsuite: interrupted; evaluations and snapshots are kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who reads has seen enough, as in `rlsuite list | head`. What is left to write would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def command(name: str) -> Any:
    """The function behind a command. Raises UserError where there is none of this name."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(
            f"unknown command '{name}'; "
            + (f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COMMANDS)}")
        )
    return COMMANDS[name][0]


def run(arguments: list[str]) -> int:
    """`rlsuite run ALGORITHM --env ID ...`: train one algorithm on one environment at many seeds."""
    from envs.datasets import SAMPLINGS
    from rlsuite import algorithms
    from rlsuite.sweeping import extend, job, local, search, sweep
    from rlsuite.sweeping.store import Store
    from rlsuite.training.device import prepare_jax

    if not arguments or arguments[0] in ("-h", "--help"):
        parser = Parser(
            prog="rlsuite run",
            usage="rlsuite run ALGORITHM --env ENV ...",
            description="Train one algorithm on one environment at many seeds.",
            epilog="'rlsuite run ALGORITHM --help' lists the options, with those of the algorithm.",
        )
        names = ", ".join(algorithms.registered())
        parser.add_argument("ALGORITHM", help=f"{names}; +cdsa may stand behind any that learns from a dataset")
        parser.parse_args(["--help"])
    name = arguments[0]
    if name.startswith("-"):
        raise UserError(
            f"expected an algorithm before '{name}', one of: {', '.join(algorithms.registered())}; "
            "type it right after 'rlsuite run'"
        )
    spec = algorithms.get(name)
    # The environment, or the dataset, has a say in the defaults, which the help shows.
    of_env = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    of_env.add_argument("--env", nargs="?")
    of_env.add_argument("--dataset", nargs="?")
    named = of_env.parse_known_args(arguments[1:])[0]
    preset = spec.preset(named.env or "", named.dataset)
    parser = Parser(prog=f"rlsuite run {name}", description=f"Train {name} on one environment at many seeds.")
    parser.usage = f"rlsuite run {name} --env ENV [OPTION ...]"

    def count(flag: str, default: int | None, text: str) -> None:
        parser.add_argument(flag, type=int, metavar="N", default=default, help=text)

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
    steps = "gradient" if spec.offline else "environment"
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
    parser.add_argument(
        "--results", metavar="DIR", type=path, default="results", help="folder of all results (%(default)s)"
    )
    config_group = parser.add_argument_group(
        "config", f"what shapes the program; another value compiles another program (shown: {preset.source})"
    )
    fields = [field.name for field in dataclasses.fields(spec.config)]
    add_options(config_group, {field: getattr(preset.config, field) for field in fields}, spec.config)
    hyper_group = parser.add_argument_group(
        "hyperparameters", "what may differ between the runs of one program; lists are trained in every combination"
    )
    add_options(hyper_group, preset.hypers._asdict(), spec.hypers, several=True)
    add_execution_options(parser)
    add_retrain_option(parser)
    options = vars(parser.parse_args(arguments[1:]))
    settings = execution_settings(options)
    prepare_jax()

    cell = sweep.Cell(
        algorithm=name,
        environment=options["env"],
        steps=options["steps"],
        seeds=options["seeds"],
        first_seed=options["first_seed"],
        config=spec.config(**{field: options[field] for field in fields}),
        hypers=search.grid(preset.hypers, **{field: options[field] for field in preset.hypers._fields}),
        evaluations=options["evaluations"],
        eval_episodes=options["eval_episodes"],
        max_episode_steps=options["max_episode_steps"],
        evaluation_physics=options["eval_physics"],
        dataset=options.get("dataset"),
        sampling=options.get("sampling", "uniform"),
        clip_actions=options.get("clip_actions", False),
        label=options["label"],
        reference=None if options["reference"] is None else given_reference(*options["reference"]),
    )
    one = job.resolve(options["name"], cell)
    store = Store(Path(options["results"]) / options["name"])
    local.run(extend.extending([one], store), store, settings)
    return report_after(store.folder)


def given_reference(low: float, high: float) -> Any:
    """The `Reference` of `--reference LOW HIGH`."""
    from envs import Reference

    return Reference(low, high, GIVEN, GIVEN)


def run_sweep(arguments: list[str]) -> int:
    """`rlsuite sweep FILE`: run every cell of an experiment that has no results yet, then report."""
    from rlsuite.sweeping import extend, job, local, sweep
    from rlsuite.sweeping.store import Store
    from rlsuite.training.device import prepare_jax

    parser = Parser(prog="rlsuite sweep", description="Run every cell of an experiment that has no results yet.")
    parser.add_argument(
        "experiment",
        type=path,
        help="a Python file that defines EXPERIMENT, or file.py:NAME for one that it calls NAME",
    )
    parser.add_argument(
        "--results", metavar="DIR", type=path, default="results", help="folder of all results (%(default)s)"
    )
    add_execution_options(parser)
    add_retrain_option(parser)
    options = parser.parse_args(arguments)
    settings = execution_settings(vars(options))
    prepare_jax()
    experiment = sweep.load(options.experiment)
    wanted = job.resolve_all(experiment)  # before there is a folder
    store = Store(Path(options.results) / experiment.name)
    shards = extend.extending(wanted, store)
    print(f"{experiment.name}: {experiment.description}", flush=True)
    local.run(shards, store, settings)
    if others := store.others(shards):
        names = ", ".join([*others[:MOST_NAMES], *(["..."] if len(others) > MOST_NAMES else [])])
        print(
            f"rlsuite: shards in '{store.folder}' that are not in '{options.experiment}', nor in the report: "
            f"{len(others)} ({names}); `rlsuite report {store.folder}` is of all",
            flush=True,
        )
    return report_after(store.folder, [shard.name for shard in shards])


def run_collect(arguments: list[str]) -> int:
    """`rlsuite collect ENV`: train an agent and record datasets of several qualities from along its way."""
    from rlsuite import algorithms
    from rlsuite.sweeping import collect, recipes
    from rlsuite.sweeping.sweep import make_env
    from rlsuite.training.device import prepare_jax

    parser = Parser(
        prog="rlsuite collect",
        description="Train an agent on an environment and record datasets from along its way, in Minari's format.\n\n"
        + "\n".join(f"  {tier:<18} {text}" for tier, text in recipes.TIERS.items()),
    )
    parser.add_argument("env", metavar="ENV", help="environment id, see 'rlsuite list'")
    parser.add_argument("--tiers", metavar="LIST", help="of the above, with commas between (all)")
    parser.add_argument("--transitions", type=int, metavar="N", help="in each tier (as in the recipe, else 20000)")
    parser.add_argument(
        "--algorithm", metavar="NAME", help="ppo or sac, at its default settings for ENV (the recipe's)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="environment steps of each run (the recipe's, else 100000)"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs, of which the best becomes the expert (8)")
    options = parser.parse_args(arguments)
    env = make_env(options.env)
    prepare_jax()
    recipe = recipes.RECIPES.get(env.id)
    if recipe is None or options.algorithm is not None:
        name = options.algorithm or "sac"
        preset = algorithms.get(name).preset(env.id)
        recipe = recipes.Recipe(name, preset.config, preset.hypers, steps=100_000, transitions=20_000)
    given = {name: getattr(options, name) for name in ("transitions", "steps", "seeds")}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    check_positive(transitions=recipe.transitions, steps=recipe.steps, seeds=recipe.seeds)
    check_at_most(MOST_INT32, transitions=recipe.transitions)
    check_at_most(MOST_RUNS, seeds=recipe.seeds)
    collect.make(env, recipe, tuple(options.tiers.split(",")) if options.tiers else tuple(recipes.TIERS))
    return 0


def run_dataset(arguments: list[str]) -> int:
    """`rlsuite dataset ID --env ENV`: how large, how good and how broad a dataset is."""
    from rich.console import Console

    from rlsuite.commands import dataset_table
    from rlsuite.sweeping.sweep import make_env

    parser = Parser(
        prog="rlsuite dataset",
        description="Print sizes, episode returns and lengths of a dataset, its quality (TQ) and its coverage (SACo).",
    )
    parser.add_argument("id", metavar="ID", help="a file, a folder, an id (docs/datasets.md)")
    parser.add_argument("--env", required=True, help="the environment that it is of, see 'rlsuite list'")
    parser.add_argument(
        "--reference-dataset", metavar="ID", help="what coverage is relative to: the replay dataset of the same run"
    )
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="time limit, if not the environment's own")
    parser.add_argument("--clip-actions", action="store_true", help="clip actions that lie outside of the action box")
    options = parser.parse_args(arguments)
    # Into a pipe, tables are as wide as in a wide terminal.
    console = Console() if sys.stdout.isatty() else Console(file=sys.stdout, width=MAX_WIDTH)
    env = make_env(options.env, options.max_episode_steps)
    dataset_table.describe(options.id, env, options.reference_dataset, console, options.clip_actions)
    return 0


def run_evaluate(arguments: list[str]) -> int:
    """`rlsuite evaluate RUN --gymnasium ID`: what a trained policy is worth in real Gymnasium."""
    from rlsuite.commands.transfer import transfer
    from rlsuite.training.device import prepare_jax

    parser = Parser(
        prog="rlsuite evaluate",
        description="Play fresh episodes of a trained policy here and in real Gymnasium, and compare the returns.",
    )
    parser.add_argument("run", metavar="RUN", type=path, help="a finished shard, such as results/run/<shard>")
    parser.add_argument("--gymnasium", metavar="ID", required=True, help="Gymnasium's own id, such as Hopper-v5")
    parser.add_argument(
        "--episodes", type=int, metavar="N", default=100, help="complete episodes in each (%(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=seed, default="first", help="which run, or 'all' (%(default)s)")
    parser.add_argument("--video", metavar="FILE", type=path, help="film one episode in Gymnasium, as .mp4 or .gif")
    options = parser.parse_args(arguments)
    prepare_jax()
    video = None if options.video is None else Path(options.video)
    transfer(options.run, options.gymnasium, options.episodes, options.seed, video)
    return 0


def path(text: str) -> str:
    """The reader of every option that names a file or a folder: shells leave the `~` of `--results=~/runs` as it is."""
    return os.path.expanduser(text)


def seed(text: str) -> int | str:
    """The reader of `rlsuite evaluate --seed`."""
    if text in ("first", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 'first' or 'all'") from None


def list_registered(arguments: list[str]) -> int:
    """`rlsuite list [algorithms [ROOM] | envs | NAME]`: what can be trained, and on what."""
    parser = Parser(
        prog="rlsuite list",
        usage="rlsuite list [algorithms [ROOM] | envs | NAME]",
        description="What can be trained, and on what; or one algorithm with its settings.",
    )
    parser.add_argument("what", nargs="?", metavar="WHAT", help="'algorithms', 'envs' or an algorithm (both lists)")
    parser.add_argument("room", nargs="?", metavar="ROOM", help="of 'algorithms', such as offline (all)")
    options = parser.parse_args(arguments)
    if options.room and options.what != "algorithms":
        raise UserError(f"'{options.room}' has no meaning after '{options.what}' (see 'rlsuite list --help')")
    if options.what not in (None, "algorithms", "envs"):
        return list_one(options.what)
    if options.what != "envs":
        list_algorithms(options.room)
    if options.what != "algorithms":
        import envs

        print("environments")
        heads = ("id", "obs", "actions", "limit", "backend", "returns", "task")
        print_columns([heads, *map(env_row, envs.registered())])
        print("wrappers, added to an id in any number, such as gymnax/Pendulum-v1+observation_delay=2+reward_scale=0.1")
        print_columns(list(envs.describe_wrappers().items()))
    return 0


def list_algorithms(room: str | None) -> None:
    """Print a line on each algorithm, by room; of one room alone, if it is given."""
    from rlsuite import algorithms
    from rlsuite.evidence import EVIDENCE

    cards = algorithms.cards()
    rooms = sorted({card.room for card in cards})
    if room not in (None, *rooms):
        raise UserError(f"no room '{room}'; there are: {', '.join(rooms)}")
    print("algorithms")
    heads = ("name", "room", "evidence", "actions", "learns from", "what it is", "paper")
    print_columns(
        [
            heads,
            *(
                (
                    card.name,
                    card.room,
                    card.source.level if card.source else "-",
                    " ".join(card.actions),
                    "a dataset" if card.offline else "the environment",
                    card.summary or "-",
                    card.source.paper if card.source else "-",
                )
                for card in sorted(cards, key=lambda card: (card.room, card.name))
                if room in (None, card.room)
            ),
        ]
    )
    levels = "; ".join(f"{level} {meaning}" for level, meaning in EVIDENCE.items())
    print(f"evidence: {levels}. +cdsa may follow the name of any that learns from a dataset")


def list_one(name: str) -> int:
    """Print one algorithm: where it comes from, and its settings with their texts and defaults."""
    if name not in ("algorithms", "envs"):
        near = difflib.get_close_matches(name, ("algorithms", "envs"), n=1, cutoff=0.8)
        if near:
            raise UserError(f"'{name}' is no list; did you mean '{near[0]}'? (see 'rlsuite list --help')")
    from rlsuite import algorithms
    from rlsuite.evidence import EVIDENCE

    try:
        spec = algorithms.get(name)
    except UserError as error:
        raise UserError(f"{error}; lists are 'algorithms' and 'envs' (see 'rlsuite list --help')") from error
    print(f"{name}: {spec.summary}" if spec.summary else name)
    if spec.source:
        print(f"  paper     {spec.source.paper}")
        print(f"  read      {spec.source.read}")
        print(f"  evidence  {spec.source.level}, {EVIDENCE[spec.source.level]}")
    print(f"  actions   {' or '.join(space.__name__ for space in spec.action_spaces)}")
    print(f"  learns    from {'a dataset' if spec.offline else 'its environment'}")
    for title, settings in (
        ("config", dataclasses.asdict(spec.config())),
        ("hyperparameters", spec.hypers()._asdict()),
    ):
        texts = field_texts(spec.config if title == "config" else spec.hypers)
        print(title)
        print_columns([(field, show(value), texts.get(field, "")) for field, value in settings.items()])
    if spec.presets:
        print(f"published settings for: {', '.join(sorted(spec.presets))}")
    return 0


def env_row(env_id: str) -> tuple[str, ...]:
    """What `rlsuite list envs` shows of an environment; returns are those that normalised scores lie between."""
    import envs

    task = envs.info(env_id)
    actions = f"{task.num_actions} {'disc.' if task.discrete else 'cont.'}"
    returns = f"{task.reference.low:g} .. {task.reference.high:g}" if task.reference else "-"
    return env_id, str(task.obs_dim), actions, str(task.max_episode_steps), task.backend, returns, task.summary


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many texts as columns, indented by two; the last column may be of any width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def report(arguments: list[str], shards: Sequence[str] | None = None) -> int:
    """`rlsuite report FOLDER`: hand over to the analysis package, which reads results and nothing else. Only these
    shards, where some are given."""
    try:
        from analysis.__main__ import main as analysis_main
    except ImportError as error:
        raise missing_extra(error) from error
    return analysis_main(arguments, shards)


def missing_extra(error: ImportError) -> UserError:
    """What to say where a package of the analysis extra cannot be imported."""
    return UserError(f"reports need the analysis extra ({error.name} is missing): pip install 'rlsuite[analysis]'")


def report_after(folder: Path, shards: Sequence[str] | None = None) -> int:
    """Report on what has just run: these shards of the folder, or all of it. Its results are whole without the analysis
    extra, so that is no failure."""
    try:
        return report([str(folder)], shards)
    except UserError as error:
        print(f"rlsuite: results are in {folder}; {error}")
        return 0


def run_power(arguments: list[str]) -> int:
    """`rlsuite power FOLDER --label A`: how many seeds a comparison needs, from the runs of a pilot."""
    try:
        from analysis import ResultsError, power
        from analysis.scores import KINDS
        from analysis.tables import make_console
    except ImportError as error:
        raise missing_extra(error) from error

    parser = Parser(
        prog="rlsuite power",
        description="How many seeds a comparison needs to see a difference, simulated from the runs of a pilot.",
    )
    parser.add_argument("results", metavar="RESULTS", type=path, help="the pilot's folder, such as results/quick")
    parser.add_argument("--label", required=True, metavar="A", help="what is compared, as it is called in the report")
    parser.add_argument("--against", metavar="B", help="with what (with a copy of A)")
    differences = parser.add_mutually_exclusive_group()
    differences.add_argument(
        "--difference",
        type=float,
        metavar="X",
        help="IQM of A less that of B, as a share of the range of the reference returns (what the pilot shows)",
    )
    differences.add_argument("--return-difference", type=float, metavar="X", help="instead, in episode return")
    parser.add_argument("--env", metavar="ENV", help="on this task, or dataset, alone (on all that can be compared)")
    parser.add_argument(
        "--kind",
        choices=tuple(KINDS),
        default="final",
        help="a run's score: its last evaluation, or the mean of all after step 0 (%(default)s)",
    )
    parser.add_argument("--power", type=share, metavar="X", default=0.8, help="how often to see it (%(default)s)")
    parser.add_argument("--confidence", type=share, metavar="X", default=0.95, help="of the intervals (%(default)s)")
    parser.add_argument(
        "--runs", type=reader(tuple[int, ...]), metavar="LIST", default=(), help="numbers of runs to try (chosen)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the simulation (%(default)s)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must be 0 or more")
    if options.runs and min(options.runs) < power.LEAST:
        raise UserError(f"--runs {min(options.runs)} must be at least {power.LEAST}")
    if options.runs and max(options.runs) > power.MOST:
        raise UserError(f"--runs {max(options.runs)} must be at most {power.MOST}")
    try:
        pilot = power.make_pilot(
            options.results,
            options.label,
            options.against,
            difference=options.difference,
            return_difference=options.return_difference,
            environment=options.env,
            kind=options.kind,
        )
        power.report(
            pilot,
            f"{options.label} and {options.against or 'a copy of it'}",
            options.power,
            make_console(),
            options.runs,
            confidence=options.confidence,
            seed=options.seed,
        )
    except ResultsError as error:
        raise UserError(str(error)) from error
    return 0


def run_tune(arguments: list[str]) -> int:
    """`rlsuite tune RESULTS --select SEEDS`: the best setting by some seeds, and what it scores on others."""
    try:
        from analysis import ResultsError, load, manifests, tuning
        from analysis.scores import KINDS
        from analysis.tables import make_console, render_choice
    except ImportError as error:
        raise missing_extra(error) from error

    parser = Parser(
        prog="rlsuite tune",
        description="Choose the best setting of each label by IQM on some seeds, and report it on others.",
    )
    parser.add_argument(
        "results", metavar="RESULTS", type=path, help="an experiment's folder, or a folder of experiments"
    )
    parser.add_argument("--select", type=seeds, required=True, metavar="SEEDS", help="to choose by, such as 0-7")
    parser.add_argument("--report", type=seeds, metavar="SEEDS", help="to report on, such as 8-15,20 (all others)")
    parser.add_argument(
        "--kind",
        choices=tuple(KINDS),
        default="final",
        help="a run's score: its last evaluation, or the mean of all after step 0 (%(default)s)",
    )
    parser.add_argument(
        "--over-tasks", action="store_true", help="one setting for all tasks, by normalised scores (one for each)"
    )
    options = parser.parse_args(arguments)
    try:
        choice = tuning.choose(
            load(options.results),
            manifests(options.results),
            selection_seeds=options.select,
            report_seeds=options.report,
            kind=options.kind,
            over_tasks=options.over_tasks,
        )
    except ResultsError as error:
        raise UserError(str(error)) from error
    render_choice(choice.table, options.kind, make_console())
    return 0


def seeds(text: str) -> list[int]:
    """The reader of seeds: `0-7`, or `0-3,8`."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII)
        here = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not 0 < len(here) <= MOST_SEEDS - len(found):
            raise argparse.ArgumentTypeError(
                f"'{text}' must be seeds, {MOST_SEEDS} of them or fewer, such as 0-7 or 0-3,8"
            )
        found += here
    return found


def share(text: str) -> float:
    """The reader of a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be a share between 0 and 1, such as 0.8")
    return value


def run_check(arguments: list[str]) -> int:
    """`rlsuite check [FILE]`: 0 if learners are as good as their references, 1 if one is not, 3 if that is unclear."""
    from rlsuite.commands import check as checking
    from rlsuite.commands import check_speed
    from rlsuite.sweeping.store import Store
    from rlsuite.training.device import prepare_jax

    parser = Parser(
        prog="rlsuite check",
        description="Train a small set of cells and compare their learning curves with reference curves: PASS (exit\n"
        "code 0), FAIL (1) or INCONCLUSIVE (3). docs/regression.md says how to read the answer.",
    )
    parser.add_argument(
        "check",
        nargs="?",
        type=path,
        default=checking.FILE,
        metavar="FILE",
        help="a Python file that defines CHECK, or file.py:NAME for one that it calls NAME (%(default)s)",
    )
    parser.add_argument("--cells", metavar="LIST", help="names of its references, with commas between (all)")
    parser.add_argument("--speed", action="store_true", help="instead, compare speed and memory, which takes no runs")
    parser.add_argument("--refresh", action="store_true", help="make new references, which takes a --reason")
    parser.add_argument("--reason", metavar="TEXT", help="why the curves may have changed; it is kept with them")
    parser.add_argument(
        "--references", metavar="DIR", type=path, help="folder of the references (references/ beside FILE)"
    )
    parser.add_argument(
        "--results", metavar="DIR", type=path, default="results", help="folder of all results (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.refresh and not (options.reason or "").strip():
        raise UserError("--refresh needs a reason, such as --reason 'PPO anneals its learning rate'; it is recorded")
    if options.refresh and options.speed:
        raise UserError("--refresh makes references of scores, speed and memory alike; leave out --speed")
    if options.reason and not options.refresh:
        raise UserError("--reason is for --refresh; add it, or leave out the reason")
    prepare_jax()
    check = checking.load(options.check)
    experiment = check.experiment.name
    file = options.check.partition(":")[0]
    references = Path(options.references or Path(file).parent / "references") / experiment
    names = checking.choose(check, options.cells)
    remedy = f"make it: rlsuite check {options.check} --refresh --cells {{}} --reason 'WHY'"
    folder = Path(options.results) / experiment / checking.code_state(check)
    print(f"{experiment}: {check.experiment.description}", flush=True)
    if options.refresh:
        checking.refresh(check, names, Store(folder / "references"), references, options.reason.strip())
        print(f"rlsuite: references of {', '.join(names)} in {references}; commit them")
        return 0
    manifests = {name: checking.read_manifest(references, name, remedy.format(name)) for name in names}
    if options.speed:
        shards = checking.of_round(check, 0)
        return check_speed.compare({name: shards[name] for name in names}, manifests)
    try:
        from analysis import ResultsError, regression, tables
    except ImportError as error:
        raise missing_extra(error) from error

    try:
        # Before anything is trained.
        for name, shard in checking.of_round(check, 0).items():
            if name in manifests:
                regression.check_same(manifests[name], shard.describe(), remedy.format(name))
        store = Store(folder)

        def judge(there: dict[str, list[Any]]) -> list[Any]:
            shards = {name: [shard.name for shard in of_cell] for name, of_cell in there.items()}
            return regression.from_files(references, store.folder, shards, check.margins, check.rounds)

        judged = checking.run(check, names, store, judge, lambda one: one.verdict is regression.Verdict.INCONCLUSIVE)
        verdict = regression.report(judged, store.folder, check.rounds, tables.make_console())
    except ResultsError as error:
        raise UserError(str(error)) from error
    return verdict.value


def run_bench(arguments: list[str]) -> int:
    """`rlsuite bench`: speed and memory against the number of runs, on this machine."""
    from rlsuite.commands.bench import BENCHMARKS, DEFAULT, bench
    from rlsuite.training.device import prepare_jax

    parser = Parser(prog="rlsuite bench", description="Speed and memory against the number of runs, on this machine.")
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="BENCHMARK",
        default=DEFAULT,
        help=f"of {', '.join(BENCHMARKS)} ({', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--runs",
        metavar="LIST",
        type=reader(tuple[int, ...]),
        default=(1, 4, 16, 64, 256, 1024),
        help="numbers of runs (1,4,16,64,256,1024)",
    )
    parser.add_argument("--output", metavar="FILE", type=path, help="write the table there too, as JSON")
    add_execution_options(parser)
    options = parser.parse_args(arguments)
    for name in options.benchmarks:
        if name not in BENCHMARKS:
            raise UserError(f"unknown benchmark '{name}'; there are: {', '.join(BENCHMARKS)}")
    if max(options.runs) > MOST_RUNS:
        raise UserError(f"--runs {max(options.runs)} must be at most {MOST_RUNS}")
    limits = execution_settings(vars(options)).limits
    prepare_jax()
    bench(options.benchmarks, options.runs, limits, Path(options.output) if options.output else None)
    return 0


COMMANDS = {
    "run": (run, "train one algorithm on one environment at many seeds"),
    "sweep": (run_sweep, "run every cell of an experiment file that has no results yet"),
    "collect": (run_collect, "train an agent and record datasets for offline learners"),
    "dataset": (run_dataset, "measure a dataset: size, returns, quality and coverage"),
    "evaluate": (run_evaluate, "play a trained policy in real Gymnasium, and film it"),
    "report": (report, "compare the results in a folder: tables, figures and a page"),
    "power": (run_power, "how many seeds a comparison needs, from pilot results"),
    "tune": (run_tune, "choose the best setting by some seeds, and report it on others"),
    "check": (run_check, "compare learners with the reference curves of earlier versions"),
    "bench": (run_bench, "measure speed and memory against the number of runs"),
    "list": (list_registered, "show the algorithms, the environments and their wrappers"),
}


def add_execution_options(parser: Parser) -> None:
    """How runs are executed; nothing here changes what they compute, but for the order of floating-point sums."""
    group = parser.add_argument_group("execution")
    group.add_argument("--width", type=int, metavar="N", help="runs at once on each device (chosen by measuring)")
    group.add_argument("--devices", type=int, metavar="N", help="devices, or processor cores without one (all)")
    group.add_argument(
        "--memory-share", type=float, metavar="X", default=0.75, help="share of the free memory to take (%(default)s)"
    )
    group.add_argument(
        "--save-every", type=float, metavar="SECONDS", default=300.0, help="time between two snapshots (%(default)s)"
    )
    group.add_argument(
        "--no-save-policies",
        dest="save_policies",
        action="store_false",
        help="do not keep what each run has learned, for 'rlsuite evaluate' (kept: 4 bytes a parameter of the policy)",
    )


def add_retrain_option(parser: Parser) -> None:
    """To train again what is finished."""
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train again what is finished, and begin anew what other code has begun; what was there goes to .before/",
    )


def execution_settings(options: dict[str, Any]) -> Any:
    """`rlsuite.sweeping.local.Settings` from these options. Raises UserError for one that is out of range."""
    from rlsuite.sweeping.local import Settings
    from rlsuite.training.plan import Limits

    for name in ("width", "devices"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name} {options[name]} must be at least 1; leave it out to have it chosen")
    if not 0 < options["memory_share"] <= 1:
        raise UserError(f"--memory-share {options['memory_share']} must be above 0 and at most 1, such as 0.75")
    if not options["save_every"] >= 0:
        raise UserError(f"--save-every {options['save_every']} must be 0 (at every pause) or more seconds")
    limits = Limits(options["width"], options["devices"], options["memory_share"])
    return Settings(limits, options["save_every"], options["save_policies"], options.get("retrain", False))


METAVARS: dict[Any, str] = {int: "N", float: "X", tuple[int, ...]: "N,N,...", tuple[float, ...]: "X,X,..."}


def add_options(group: Any, defaults: dict[str, Any], owner: type, several: bool = False) -> None:
    """One typed option per field of a Config or Hypers class; its help is the text below the field and the default.

    With `several`, which is for fields that are floats, each option takes a list of values and gives a tuple.
    """
    types = typing.get_type_hints(owner)
    texts = field_texts(owner)
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        text = f"{texts.get(name, '')} ({show(default)})".strip().replace("%", "%%")
        if types[name] is bool:
            # Two options, because BooleanOptionalAction appends the default a second time on some versions of Python.
            choice = group.add_mutually_exclusive_group()
            choice.add_argument(flag, action="store_true", default=default, help=text)
            choice.add_argument("--no-" + flag[2:], dest=name, action="store_false", default=default)
        else:
            kind = tuple[float, ...] if several else types[name]
            metavar = METAVARS.get(kind)
            group.add_argument(
                flag, type=reader(kind), metavar=metavar, default=(default,) if several else default, help=text
            )


def field_texts(owner: type) -> dict[str, str]:
    """Field -> the string that stands below it in the class or in a base, which Python itself does not keep."""
    texts = {}
    for of_class in reversed(owner.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(of_class))
        except (OSError, TypeError):  # defined where no file is, as in a notebook, or in C
            continue
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def reader(kind: Any) -> Any:
    """The function that reads one option of this type from its text."""
    if kind == tuple[int, ...]:

        def sizes(text: str) -> tuple[int, ...]:
            try:
                numbers = tuple(int(part) for part in text.split(","))
            except ValueError:
                numbers = (0,)
            if min(numbers) < 1:
                raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers of at least 1, such as 64,64")
            return numbers

        return sizes
    if kind == tuple[float, ...]:

        def values(text: str) -> tuple[float, ...]:
            try:
                return tuple(float(part) for part in text.split(","))
            except ValueError:
                raise argparse.ArgumentTypeError(f"'{text}' must be numbers, such as 0.9 or 0.9,0.99") from None

        return values
    return kind


def show(value: Any) -> str:
    """A default as the user would type it."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
