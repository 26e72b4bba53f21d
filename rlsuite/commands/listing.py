"""`rlsuite list [algorithms [ROOM] | envs | NAME]`: what can be trained, and on what."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from rlsuite import algorithms
from rlsuite.commands.options import Parser, field_texts, show
from rlsuite.errors import UserError, hint
from rlsuite.evidence import EVIDENCE

LISTS = ("algorithms", "envs")


def main(arguments: list[str]) -> int:
    """Print the lists that are asked for, or one algorithm."""
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
    if options.what not in (None, *LISTS):
        list_one(options.what)
        return 0
    if options.what != "envs":
        list_algorithms(options.room)
    if options.what != "algorithms":
        list_envs()
    return 0


def list_algorithms(room: str | None) -> None:
    """Print a line on each algorithm, by room; of one room alone, if it is given."""
    cards = algorithms.cards()
    rooms = sorted({card.room for card in cards})
    if room is not None and room not in rooms:
        raise UserError(f"unknown room '{room}'; {hint(room, rooms)}")
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


def list_envs() -> None:
    """Print a line on each environment, with the returns that normalised scores lie between, and on each wrapper."""
    import envs  # takes JAX, which a list of algorithms does without

    rows = [("id", "obs", "actions", "limit", "backend", "returns", "task")]
    for env_id in envs.registered():
        task = envs.info(env_id)
        actions = f"{task.num_actions} {'disc.' if task.discrete else 'cont.'}"
        returns = f"{task.reference.low:g} .. {task.reference.high:g}" if task.reference else "-"
        limit = str(task.max_episode_steps)
        rows.append((env_id, str(task.obs_dim), actions, limit, task.backend, returns, task.summary))
    print("environments")
    print_columns(rows)
    print("wrappers, added to an id in any number, such as gymnax/Pendulum-v1+observation_delay=2+reward_scale=0.1")
    print_columns(list(envs.describe_wrappers().items()))


def list_one(name: str) -> None:
    """Print one algorithm: where it comes from, and its settings with their texts and defaults."""
    near = difflib.get_close_matches(name, LISTS, n=1, cutoff=0.8)
    if near:
        raise UserError(f"'{name}' is no list; did you mean '{near[0]}'? (see 'rlsuite list --help')")
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
    for title, owner, settings in (
        ("config", spec.config, dataclasses.asdict(spec.config())),
        ("hyperparameters", spec.hypers, spec.hypers()._asdict()),
    ):
        texts = field_texts(owner)
        print(title)
        print_columns([(field, show(value), texts.get(field, "")) for field, value in settings.items()])
    if spec.presets:
        print(f"published settings for: {', '.join(sorted(spec.presets))}")


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many texts as columns, indented by two; the last column may be of any width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
