"""`rlsuite dataset ID --env ENV`: how large, how good and how broad a dataset is."""

from __future__ import annotations

import sys

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import envs
from envs import dataset_measures
from envs.core import Env
from envs.dataset_measures import Measures, Spread
from envs.datasets import DatasetError
from rlsuite.commands.options import MAX_WIDTH, Parser
from rlsuite.errors import UserError
from rlsuite.sweeping import catalogue
from rlsuite.sweeping.sweep import make_env

BAR = 40
"""characters of the longest bar of the histogram"""
NONE_COMPLETE = "-, no episode is complete"


def main(arguments: list[str]) -> int:
    """Measure a dataset and print the table."""
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
    describe(options.id, env, options.reference_dataset, console, options.clip_actions)
    return 0


def describe(dataset_id: str, env: Env, reference_id: str | None, console: Console, clip_actions: bool = False) -> None:
    """Measure a dataset and print what was found.

    Reference returns are those that the dataset brings, else the environment's. Nothing is made that is not there.

    Raises:
        UserError: a dataset is not there, cannot be read, or is of another environment.
    """
    dataset = catalogue.read(dataset_id, env, clip_actions=clip_actions)
    against = None if reference_id is None else catalogue.read(reference_id, env, clip_actions=clip_actions)
    reference = dataset.reference or envs.info(env.id).reference
    try:
        measures = dataset_measures.measure(dataset, reference, against)
    except DatasetError as error:
        raise UserError(str(error)) from error
    table = Table(title=Text(f"{dataset.id} of {env.id}"), title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    facts = {
        "source": dataset.source,
        "checksum": dataset.checksum,
        "size": f"{measures.transitions:,} transitions in {measures.episodes:,} episodes, of which "
        f"{measures.terminated:,} terminated, {measures.incomplete:,} incomplete",
        "observations, actions": f"{dataset.obs_dim}, {dataset.space.dim}",
        "episode return": NONE_COMPLETE if measures.returns is None else words(measures.returns),
        "episode length": words(measures.lengths),
        "reference returns": "none known"
        if reference is None
        else f"{reference.low:.4g} ({reference.low_source}) .. {reference.high:.4g} ({reference.high_source})",
        "TQ": quality(measures),
        "different (s, a)": pairs(measures, reference_id),
        "SACo": "-, needs --reference-dataset, the replay dataset of the same run"
        if measures.saco is None
        else f"{measures.saco:.3f} of {reference_id}",
    }
    for name, text in facts.items():
        # Text, since brackets in ids are not rich's markup.
        table.add_row(name, Text(text))
    console.print(table)
    returns = dataset_measures.known_returns(dataset)
    if returns.size:
        console.print(histogram(returns))


def quality(measures: Measures) -> str:
    """TQ, or why there is none."""
    if measures.tq is not None:
        return f"{measures.tq:.3f}"
    return NONE_COMPLETE if measures.returns is None else "-, needs reference returns"


def words(spread: Spread) -> str:
    """`mean 3, standard deviation 1, from 2 over 3 (median) to 4`"""
    return (
        f"mean {spread.mean:.4g}, standard deviation {spread.std:.4g}, "
        f"from {spread.low:.4g} over {spread.median:.4g} (median) to {spread.high:.4g}"
    )


def pairs(measures: Measures, reference_id: str | None) -> str:
    """How many, and in which bins."""
    of = "this dataset" if reference_id is None else reference_id
    return f"{measures.pairs:,} in {dataset_measures.BINS} bins an axis between the extremes of {of}"


def histogram(returns: np.ndarray) -> Table:
    """Returns of complete episodes as bars."""
    table = Table(title="episode returns", title_justify="left", box=box.SIMPLE)
    for head in ("from", "to", "episodes"):
        table.add_column(head, justify="right")
    table.add_column("")
    intervals = dataset_measures.histogram(returns)
    most = max(count for *_, count in intervals)
    for low, high, count in intervals:
        # An interval with an episode in it shows at least one character.
        table.add_row(f"{low:.4g}", f"{high:.4g}", f"{count:,}", "#" * -(-BAR * count // most))
    return table
