"""The command line: rlsuite run | sweep | list | report."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlsuite.core import UserError


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it should, 2 with one line on stderr if the user asked for what cannot be."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = COMMANDS.get(arguments[0]) if arguments else None
        if command is not None:
            return command(arguments[1:])
        parser = Parser(prog="rlsuite", description=__doc__.splitlines()[0] if __doc__ else None)
        parser.add_argument("command", choices=sorted(COMMANDS), help="'rlsuite COMMAND --help' says more")
        parser.parse_args(arguments or ["--help"])
        return 0
    except UserError as error:
        print(f"rlsuite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlsuite: interrupted; finished shards and evaluations are kept", file=sys.stderr)
        return 130


def run(arguments: list[str]) -> int:
    """`rlsuite run ALGORITHM --env ID ...`: train one algorithm on one environment at many seeds."""
    from rlsuite import algorithms, local, sweep
    from rlsuite.store import Store

    if not arguments or arguments[0] in ("-h", "--help"):
        parser = Parser(prog="rlsuite run", description="Train one algorithm on one environment at many seeds.")
        parser.add_argument("algorithm", choices=sorted(algorithms.REGISTRY))
        parser.add_argument("options", nargs="...", help="'rlsuite run ALGORITHM --help' lists them")
        parser.parse_args(arguments or ["--help"])
    name = arguments[0]
    spec = algorithms.get(name)
    parser = Parser(prog=f"rlsuite run {name}", description=f"Train {name} on one environment at many seeds.")
    parser.add_argument("--env", required=True, help="environment id, see 'rlsuite list'")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=32, help="number of runs (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first run (%(default)s)")
    parser.add_argument("--evaluations", type=int, default=10, help="evaluations while training (%(default)s)")
    parser.add_argument("--eval-episodes", type=int, default=16, help="episodes in each evaluation (%(default)s)")
    parser.add_argument("--max-episode-steps", type=int, help="time limit, if not the environment's own")
    parser.add_argument("--name", default="run", help="experiment name (%(default)s)")
    parser.add_argument("--label", help="name of the curve in reports (the algorithm's)")
    parser.add_argument("--results", default="results", help="folder of all results (%(default)s)")
    config_group = parser.add_argument_group("config", "what shapes the program; another value compiles another program")
    add_options(config_group, {field.name: field.default for field in dataclasses.fields(spec.config)}, spec.config)
    hyper_group = parser.add_argument_group("hyperparameters", "what may differ between the runs of one program")
    add_options(hyper_group, spec.hypers._field_defaults, spec.hypers)  # type: ignore[attr-defined]
    options = vars(parser.parse_args(arguments[1:]))

    cell = sweep.Cell(
        algorithm=name,
        environment=options["env"],
        steps=options["steps"],
        seeds=options["seeds"],
        first_seed=options["first_seed"],
        config=spec.config(**{field.name: options[field.name] for field in dataclasses.fields(spec.config)}),
        hypers=spec.hypers(**{field: options[field] for field in spec.hypers._fields}),  # type: ignore[attr-defined]
        evaluations=options["evaluations"],
        eval_episodes=options["eval_episodes"],
        max_episode_steps=options["max_episode_steps"],
        label=options["label"],
    )
    shard = sweep.shard(options["name"], cell)
    use_compilation_cache()
    local.run([shard], Store(Path(options["results"]) / options["name"]))
    return report([str(Path(options["results"]) / options["name"])])


def run_sweep(arguments: list[str]) -> int:
    """`rlsuite sweep FILE`: run every cell of an experiment that has no results yet, then report."""
    from rlsuite import local, sweep
    from rlsuite.store import Store

    parser = Parser(prog="rlsuite sweep", description="Run every cell of an experiment that has no results yet.")
    parser.add_argument("experiment", help="a Python file that defines EXPERIMENT, such as experiments/quick.py")
    parser.add_argument("--results", default="results", help="folder of all results (%(default)s)")
    options = parser.parse_args(arguments)
    experiment = sweep.load(options.experiment)
    shards = sweep.shards(experiment)
    store = Store(Path(options.results) / experiment.name)
    use_compilation_cache()
    print(f"{experiment.name}: {experiment.description}", flush=True)
    local.run(shards, store)
    return report([str(store.folder)])


def list_registered(arguments: list[str]) -> int:
    """`rlsuite list`: what can be trained, and on what."""
    import envs
    from rlsuite import algorithms

    Parser(prog="rlsuite list", description="What can be trained, and on what.").parse_args(arguments)
    print("algorithms")
    for name, spec in sorted(algorithms.REGISTRY.items()):
        spaces = " and ".join(space.__name__ for space in spec.action_spaces)
        print(f"  {name:<34} {spaces} actions")
    print("environments")
    for env_id in envs.registered():
        print(f"  {env_id:<34} {envs.describe(env_id)}")
    return 0


def report(arguments: list[str]) -> int:
    """`rlsuite report FOLDER`: hand over to the analysis package, which reads results and nothing else."""
    try:
        from analysis.__main__ import main as analysis_main
    except ImportError as error:
        raise UserError(
            f"reports need the analysis extra ({error.name} is missing): pip install 'rlsuite[analysis]'"
        ) from error
    return analysis_main(arguments)


COMMANDS = {"run": run, "sweep": run_sweep, "list": list_registered, "report": report}


def use_compilation_cache() -> None:
    """Keep compiled programs in a user folder, so that the same sweep started again does not compile again.

    JAX_COMPILATION_CACHE_DIR chooses another folder.
    """
    import jax

    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(home / "rlsuite" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def add_options(group: Any, defaults: dict[str, Any], owner: type) -> None:
    """One typed option per field of a Config or Hypers class."""
    types = typing.get_type_hints(owner)
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        if types[name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=f"({default})")
        else:
            group.add_argument(flag, type=reader(types[name]), default=default, help=f"({show(default)})")


def reader(kind: Any) -> Any:
    """The function that reads one option of this type from its text."""
    if kind == tuple[int, ...]:

        def sizes(text: str) -> tuple[int, ...]:
            return tuple(int(part) for part in text.split(","))

        sizes.__name__ = "comma-separated integers"
        return sizes
    return kind


def show(value: Any) -> str:
    """A default as the user would type it."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
