"""The command line, `rlsuite COMMAND ...`: each command of `COMMANDS` is a module, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

import rlsuite
from rlsuite.commands.options import Parser
from rlsuite.errors import Stopped, UserError, hint

COMMANDS = {
    "demo": ("demo", "see a small comparison and its report, in half a minute"),
    "run": ("run", "train one algorithm on one environment at many seeds"),
    "sweep": ("sweep", "run every cell of an experiment file that has no results yet"),
    "collect": ("collect", "train an agent and record datasets for offline learners"),
    "dataset": ("dataset", "measure a dataset: size, returns, quality and coverage"),
    "evaluate": ("evaluate", "play a trained policy in real Gymnasium, and film it"),
    "report": ("report", "compare the results in a folder: tables, figures and a page"),
    "import": ("import_curves", "put curves of other programs next to ours, marked as imported"),
    "export": ("export", "send curves to TensorBoard, W&B or MLflow"),
    "power": ("power", "how many seeds a comparison needs, from pilot results"),
    "tune": ("tune", "choose the best setting by some seeds, and report it on others"),
    "check": ("check", "compare learners with the reference curves of earlier versions"),
    "bench": ("bench", "measure speed and memory against the number of runs"),
    "list": ("listing", "show the algorithms, the environments and their wrappers"),
}
"""Name -> module of this folder, and a line for the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it should, 2 with one line on stderr if the user asked for what cannot be."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and not arguments[0].startswith("-"):
            code = command(arguments[0])(arguments[1:])
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
        print(f"rlsuite: {stopped.signal_name}; all is saved, {again} goes on from here", file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("rlsuite: interrupted; evaluations and snapshots are kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe, as in `rlsuite list | head`. What is left to write would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def command(name: str) -> Callable[[list[str]], int]:
    """The function that takes a command's arguments. Raises UserError where there is no command of this name."""
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; {hint(name, COMMANDS)}")
    entry: Callable[[list[str]], int] = importlib.import_module(f"rlsuite.commands.{COMMANDS[name][0]}").main
    return entry


if __name__ == "__main__":
    sys.exit(main())
