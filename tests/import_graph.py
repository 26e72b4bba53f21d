"""Who imports whom in this repository, read from the syntax trees: nothing has to be importable, and an import inside a
function counts."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import PurePosixPath


def imported_modules(path: str, node: ast.AST) -> list[str]:
    """The absolute names that one node imports; none if it is not an import. `path` resolves relative imports."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            package = PurePosixPath(path).parts[:-1]
            # One dot is the file's own package; dots that leave the top-level package reach its siblings.
            base = list(package[: len(package) - (level - 1)]) if level else []
            base += module.split(".") if module else []
            return [".".join(base)] if base else [alias.name for alias in names]
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def is_for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:` without an `else`, which no program runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse


def module_name(path: str) -> str:
    """`rlsuite/core.py` -> `rlsuite.core`; a package's `__init__.py` has the package's name."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: str, nodes: Iterable[ast.AST]) -> set[str]:
    """All that these nodes may import, with dots: `from a import b` is of `a`, and may be of `a.b`."""
    names = set()
    for node in nodes:
        names.update(imported_modules(path, node))
        if isinstance(node, ast.ImportFrom):
            names.update(f"{base}.{alias.name}" for base in imported_modules(path, node) for alias in node.names)
    return names
