"""What the parsers of several commands share: errors, texts of help and readers of values."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import os
import shutil
import textwrap
import typing
from typing import Any, NoReturn

from rlsuite.errors import UserError

MAX_WIDTH = 100
"""Columns of a help text, in a terminal that is wider."""
METAVARS: dict[Any, str] = {int: "N", float: "X", tuple[int, ...]: "N,N,...", tuple[float, ...]: "X,X,..."}


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


def add_results_option(parser: Parser) -> None:
    """The folder below which an experiment has its own."""
    parser.add_argument(
        "--results", metavar="DIR", type=path, default="results", help="folder of all results (%(default)s)"
    )


def flag(name: str) -> str:
    """The option of a field: `num_envs` -> `--num-envs`."""
    return "--" + name.replace("_", "-")


def add_options(group: Any, defaults: dict[str, Any], owner: type, several: bool = False) -> None:
    """One typed option per field of a Config or Hypers class; its help is the text below the field and the default.

    With `several`, which is for fields that are floats, each option takes a list of values and gives a tuple.
    """
    types = typing.get_type_hints(owner)
    texts = field_texts(owner)
    for name, default in defaults.items():
        text = f"{texts.get(name, '')} ({show(default)})".strip().replace("%", "%%")
        if types[name] is bool:
            # Two options, because BooleanOptionalAction appends the default a second time on some versions of Python.
            choice = group.add_mutually_exclusive_group()
            choice.add_argument(flag(name), action="store_true", default=default, help=text)
            choice.add_argument(flag(f"no_{name}"), dest=name, action="store_false", default=default)
        else:
            kind = tuple[float, ...] if several else types[name]
            metavar = METAVARS.get(kind)
            group.add_argument(
                flag(name), type=reader(kind), metavar=metavar, default=(default,) if several else default, help=text
            )


def field_texts(owner: type) -> dict[str, str]:
    """Field -> the string that stands below it in the class or in a base, which Python itself does not keep."""
    texts = {}
    for owner_class in reversed(owner.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(owner_class))
        except (OSError, TypeError):  # defined where no file is, as in a notebook, or in C
            continue
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def show(value: Any) -> str:
    """A default as the user would type it."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


# --- Readers ----------------------------------------------------------------------------------------------------------


def path(text: str) -> str:
    """The reader of every option that names a file or a folder: shells leave the `~` of `--results=~/runs` as it is."""
    return os.path.expanduser(text)


def reader(kind: Any) -> Any:
    """The function that reads one option of this type from its text."""
    if kind == tuple[int, ...]:
        return sizes
    if kind == tuple[float, ...]:
        return values
    return kind


def sizes(text: str) -> tuple[int, ...]:
    """The reader of positive whole numbers: `64,64`."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' must be whole numbers of at least 1, such as 64,64")
    return numbers


def values(text: str) -> tuple[float, ...]:
    """The reader of numbers: `0.9,0.99`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be numbers, such as 0.9 or 0.9,0.99") from None
