"""Write those parts of the pages in docs/algorithms/ that the methods' modules state: `make pages`.

Each part is between two markers; all else on a page is written by hand and stays. A method without a page gets one
with empty sections.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsuite import algorithms
from rlsuite.commands.options import field_texts
from rlsuite.core import AlgorithmSpec, Reduction
from rlsuite.evidence import EVIDENCE

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^(<!-- generated: (\w+) -->\n)(.*?)^(<!-- end -->)$", re.M | re.S)
ACTIONS = {"Discrete": "discrete", "Box": "continuous"}
NEW = """<!-- generated: head -->
<!-- end -->

## Equations

## Settings

<!-- generated: settings -->
<!-- end -->

## Deviations

<!-- generated: deviations -->
<!-- end -->

## Run it

"""


def path(name: str) -> Path:
    """The page of a method; that of all `+cdsa` is `cdsa.md`."""
    return ROOT / "docs" / "algorithms" / f"{name.split('+')[-1]}.md"


def page(text: str, card: algorithms.Card) -> str:
    """The page with its generated parts as the method's module has them now."""
    spec = algorithms.get(card.name)
    module = path(card.name).stem
    docstring = importlib.import_module(f"rlsuite.algorithms.{card.room}.{module}").__doc__ or ""
    parts = {
        "head": head(card, spec, module, docstring),
        "settings": settings(card.name, spec),
        "deviations": deviations(docstring),
    }
    return BLOCK.sub(lambda found: f"{found[1]}{parts[found[2]]}\n{found[4]}", text)


def head(card: algorithms.Card, spec: AlgorithmSpec, module: str, docstring: str) -> str:
    """Title, summary, and the table of where the method comes from and what it is for."""
    assert card.source is not None
    level = card.source.level
    paper = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", card.source.paper)
    rows = [
        ("method", f"`{card.name}`, in [{module}.py](../../rlsuite/algorithms/{card.room}/{module}.py)"),
        ("room", f"`{card.room}`"),
        ("paper", paper),
        ("read", card.source.read),
        ("evidence", f"{level}: {EVIDENCE[level]}"),
        ("actions", " or ".join(ACTIONS[space] for space in card.actions)),
        ("learns from", "a dataset" if card.offline else "its environment"),
    ]
    if spec.reduces_to is not None:
        rows.append(("reduces to", reduction(spec.reduces_to)))
    warning = "\n\n**This is a reconstruction.** Its results are not those of the authors." if level in "CD" else ""
    title = " ".join(docstring.partition(":")[0].split())
    return f"# {title}\n\n{sentence(card.summary)}{warning}\n\n{table(('', ''), rows)}"


def reduction(found: Reduction) -> str:
    """The setting in which the method is another one, in words."""
    own, other = values({**found.config, **found.hypers}), values({**found.base_config, **found.base_hypers})
    return (
        (f"with {own} and all else" if own else "with all settings")
        + f" as in `TRIAL`, it gives the bits of [`{found.base}`]({path(found.base).name})"
        + (f" with {other}" if other else "")
    )


def settings(name: str, spec: AlgorithmSpec) -> str:
    """The tables of all fields, and of the settings that presets change. Of `+cdsa` those fields that it adds."""
    base = algorithms.get(name.split("+")[0]) if "+" in name else None
    defaults = fields(spec.config(), spec.hypers())
    others = fields(base.config(), base.hypers()) if base else {}
    parts = []
    for text, owner, own in (
        ("`Config`, which shapes the program:", spec.config, dataclasses.asdict(spec.config())),
        ("`Hypers`, which may differ between the runs of one program:", spec.hypers, spec.hypers()._asdict()),
    ):
        texts = field_texts(owner)
        rows = [(f"`{field}`", shown(value), texts[field]) for field, value in own.items() if field not in others]
        parts.append(f"{text}\n\n{table(('setting', 'default', 'meaning'), rows)}")
    sources: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for preset_name, preset in spec.presets.items():
        preset_values = fields(preset.config, preset.hypers)
        changed = {field: value for field, value in preset_values.items() if value != defaults[field]}
        sources[preset.source][values(changed) or "the defaults"].append(preset_name)
    for source, groups in sources.items():
        rows = [(", ".join(names), changed) for changed, names in groups.items()]
        parts.append(f"Presets, used by default, from {source}:\n\n{table(('for', 'settings'), rows)}")
    return "\n\n".join(parts)


def deviations(docstring: str) -> str:
    """The paragraphs of the docstring that begin with "Deviations", without that word."""
    paragraphs = [part for part in docstring.strip().split("\n\n") if part.startswith("Deviations")]
    parts = []
    for paragraph in paragraphs:
        first, *items = re.split(r"\n(?=- )", paragraph)
        first = first.removeprefix("Deviations").strip()
        parts += [sentence(first, "")] * (first != ":") + ["\n".join(items)] * bool(items)
    return "\n\n".join(parts)


def fields(config: Any, hypers: Any) -> dict[str, Any]:
    """All settings -> their values."""
    return {**dataclasses.asdict(config), **hypers._asdict()}


def values(settings: Mapping[str, Any]) -> str:
    """Settings with their values, as in `` `eta` 5 ``."""
    return ", ".join(f"`{name}` {shown(value)}" for name, value in settings.items())


def shown(value: Any) -> str:
    """A value as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(shown(part) for part in value)
    return str(value).removesuffix(".0")


def sentence(text: str, stop: str = ".") -> str:
    """With a capital letter and a full stop."""
    return text[0].upper() + text[1:] + stop


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    cells = [heads, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    first, *others = ("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in cells)
    return "\n".join([first, "|" + "---|" * len(heads), *others])


def main() -> None:
    """Write every page that differs from its module, and name it."""
    for card in algorithms.cards():
        if card.room != "other":
            file = path(card.name)
            before = file.read_text("utf-8") if file.is_file() else NEW
            after = page(before, card)
            if after != before or not file.is_file():
                file.write_text(after, "utf-8")
                print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
