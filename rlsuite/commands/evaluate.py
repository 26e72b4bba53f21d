"""`rlsuite evaluate RUN --gymnasium ID`: what a trained policy is worth in real Gymnasium."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlsuite.commands.options import Parser, path
from rlsuite.commands.transfer import transfer
from rlsuite.training.device import prepare_jax


def main(arguments: list[str]) -> int:
    """Play the policies of a shard here and in Gymnasium."""
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


def seed(text: str) -> int | str:
    """The reader of `--seed`."""
    if text in ("first", "all"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be a whole number, 'first' or 'all'") from None
