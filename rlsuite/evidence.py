"""Where a method comes from, and how much of its source was read. Imports nothing that takes time, as lists show it."""

from __future__ import annotations

from typing import Literal, NamedTuple

EVIDENCE = {
    "A": "the official code was read",
    "B": "third-party code or the paper's equations were read",
    "C": "written from the abstract or from memory",
    "D": "a reconstruction",
}
"""Evidence level -> what it rests on. Results of levels C and D are called a reconstruction wherever they show."""


class Source(NamedTuple):
    """Where a method comes from."""

    paper: str
    """authors, year and arXiv id, or another reference"""
    read: str
    """what was read: a repository and its commit, or equations"""
    level: Literal["A", "B", "C", "D"]
    """a key of `EVIDENCE`"""
