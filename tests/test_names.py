"""Identifiers are nouns of the field: none starts with `of_`. CONTRIBUTING.md has the rule under House style."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("analysis", "benchmarks", "envs", "experiments", "rlsuite", "tests")


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that the code defines or reads, and of its keyword arguments and imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.alias(name=name, asname=alias):
                yield alias or name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_identifier_starts_with_of(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    headless = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in files
        for name, line in identifiers(ast.parse(file.read_text()))
        if name.lstrip("_").startswith("of_")
    ]
    assert headless == [], "name what it holds: policy_loss, not of_policy"


def test_every_kind_of_identifier_is_seen() -> None:
    code = """
import of_a as b
import c as of_d
of_e: int = 0
class of_f: of_g = 0
def of_h(of_i, *of_j, of_k, **of_l): x.of_m = f(of_n=0)
async def of_o(): return [of_p for of_p in y]
try: lambda of_q: 0
except E as of_r: pass
match z:
    case [of_s, *of_t]: pass
"""
    found = {name for name, _ in identifiers(ast.parse(code)) if name.startswith("of_")}
    assert found == {f"of_{letter}" for letter in "defghijklmnopqrst"}
