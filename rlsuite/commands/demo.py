"""`rlsuite demo`: a first look, a small comparison that takes half a minute on two cores."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from rlsuite.algorithms.on_policy import ppo
from rlsuite.commands import report
from rlsuite.commands.options import Parser, add_results_option
from rlsuite.sweeping import job, local
from rlsuite.sweeping.settings import Settings
from rlsuite.sweeping.store import Store
from rlsuite.sweeping.sweep import Cell, Experiment, Reference
from rlsuite.training.device import prepare_jax

EXPERIMENT = Experiment(
    name="demo",
    description="PPO on CartPole with three learning rates: 32 runs of each, which differ in nothing but their seed.",
    cells=tuple(
        Cell(
            "ppo",
            "gymnax/CartPole-v1",
            steps=20_000,
            seeds=32,
            config=ppo.Config(num_envs=8, num_steps=64, num_epochs=4, num_minibatches=4),
            hypers=ppo.Hypers(learning_rate=rate, entropy_coef=0.01),
            evaluations=8,
            eval_episodes=8,
            label=f"ppo lr {rate}",
            reference=Reference(
                22.0, 500.0, "mean over 1024 episodes of uniformly random actions, measured here", "the maximum"
            ),
        )
        for rate in (0.003, 0.001, 0.0003)
    ),
)
BEFORE = """\
The runs of a rate train side by side in one compiled program. All this takes half a minute, half of it compiling."""
AFTER = """
P(X > Y) is the chance that a run of X ends above a run of Y. Where its interval leaves out 0.5, seeds alone do not
explain the difference.

What to try next:
  rlsuite list                                          # the methods and tasks that there are
  rlsuite run ppo --env gymnax/Acrobot-v1 --seeds 16    # one of each, with its default settings
  rlsuite run ppo --help                                # all its settings; lists, as 1e-3,3e-4, are compared"""


def main(arguments: list[str]) -> int:
    """Train what is missing of the comparison, report on it, and say what to try next."""
    parser = Parser(prog="rlsuite demo", description="Train and report a small comparison, in half a minute.")
    parser.add_argument("--open", action="store_true", help="show the report in the browser, where there is a display")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    prepare_jax()
    print(f"{EXPERIMENT.description}\n{BEFORE}\n", flush=True)
    jobs, store = job.resolve_all(EXPERIMENT), Store(Path(options.results) / EXPERIMENT.name)
    local.run(jobs, store, Settings(save_policies=True))
    code = report.report_after(store.folder, [one.name for one in jobs])
    print(AFTER)
    if options.open:
        open_page((store.folder / "report.html").resolve())
    return code


def open_page(page: Path) -> None:
    """Show a page in the browser, or say that it cannot be shown. Without a display, the browser would be one that
    takes over the terminal."""
    display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (display and webbrowser.open(page.as_uri())):
        print(f"\nThere is no display or no browser here; the page is {page}")
