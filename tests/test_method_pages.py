"""The pages in docs/algorithms/: each method has one, it says what the module says, and its other parts name settings
that there are."""

from __future__ import annotations

import re
from pathlib import Path

import benchmark_scripts
import pytest

from rlsuite import algorithms
from rlsuite.algorithms import Card
from rlsuite.evidence import EVIDENCE

pages = benchmark_scripts.load("method_pages")

METHODS = [card for card in algorithms.cards() if card.room != "other"]
HEADINGS = ["Equations", "Settings", "Deviations", "Metrics", "Run it", "Results"]
OPTIONAL = {"Metrics", "Results"}
OPTIONS = {"sampling", "eval_episodes", "seeds"}
"""options of `rlsuite run` that belong to no method"""
each_method = pytest.mark.parametrize("card", METHODS, ids=[card.name for card in METHODS])


def stale(text: str, card: Card) -> list[str]:
    """The generated parts of a page that are missing or not as the method's module has them."""
    wanted = {found[2]: found[0] for found in pages.BLOCK.finditer(pages.page(pages.NEW, card))}
    there = {found[2]: found[0] for found in pages.BLOCK.finditer(text)}
    return [part for part in wanted if there.get(part) != wanted[part]]


def settings(name: str) -> set[str]:
    """The names of a method's settings."""
    spec = algorithms.get(name)
    return set(pages.fields(spec.config(), spec.hypers()))


def unknown_settings(text: str, name: str) -> list[str]:
    """The code in the hand-written parts of a page that is a setting of another method only, or an option of none."""
    by_hand = re.sub(r"^```.*?^```", "", pages.BLOCK.sub("", text), flags=re.M | re.S)
    own = settings(name)
    others = set().union(*(settings(card.name) for card in METHODS))
    found = []
    for code in re.findall(r"`([^`]+)`", by_hand):
        options = [word.removeprefix("no-").replace("-", "_") for word in re.findall(r"--(\w[\w-]*)", code)]
        found += [option for option in options if option not in own | OPTIONS and not code.startswith("rlsuite run ")]
        found += [code] * (code in others - own)
    return found


@each_method
def test_a_page_says_what_the_module_says(card: Card) -> None:
    assert stale(pages.path(card.name).read_text("utf-8"), card) == [], "make pages"


@each_method
def test_a_page_has_the_sections_of_all(card: Card) -> None:
    text = pages.path(card.name).read_text("utf-8")
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    there = re.findall(r"^## (.+)$", without_code, re.M)
    assert there == [heading for heading in HEADINGS if heading in there or heading not in OPTIONAL]
    assert not re.search(r"^## .+\s+(?:## |\Z)", text, re.M), "a section is empty"


@each_method
def test_a_page_names_settings_that_there_are(card: Card) -> None:
    assert unknown_settings(pages.path(card.name).read_text("utf-8"), card.name) == []


def test_each_page_is_of_a_method() -> None:
    assert set((pages.ROOT / "docs" / "algorithms").iterdir()) == {pages.path(card.name) for card in METHODS}


def test_a_setting_of_another_method_is_found() -> None:
    page = pages.path("ppo").read_text("utf-8")
    assert unknown_settings(page + "`tau` and `--warmup-steps 3`, but not `clip_epsilon`\n", "ppo") == [
        "tau",
        "warmup_steps",
    ]


@pytest.mark.parametrize("level", EVIDENCE)
def test_levels_c_and_d_are_called_a_reconstruction(level: str) -> None:
    card = next(card for card in METHODS if card.name == "ppo")
    assert card.source is not None
    text = pages.page(pages.NEW, card._replace(source=card.source._replace(level=level)))
    assert ("**This is a reconstruction.**" in text) == (level in "CD")
    assert f"| evidence | {level}: {EVIDENCE[level]} |" in text


def test_a_page_begins_with_its_generated_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written by hand stays, and a page that is right is left alone."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "docs" / "algorithms").mkdir(parents=True)
    pages.main()
    page = pages.path("td3")
    fresh = page.read_text("utf-8")
    page.write_text(fresh.replace("\n\n## Deviations", "\n\nBy hand.\n\n## Deviations").replace("| 25000 |", "| 3 |"))
    pages.main()
    assert page.read_text("utf-8") == fresh.replace("\n\n## Deviations", "\n\nBy hand.\n\n## Deviations")
