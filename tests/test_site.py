"""The documentation site: it builds, its links hold, it asks no other host, and nothing public is left out."""

from __future__ import annotations

import html.parser
import importlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from benchmark_scripts import load

from rlsuite import algorithms

documentation = load("documentation")
ROOT = documentation.ROOT

pytestmark = pytest.mark.xdist_group("site")


class Page(html.parser.HTMLParser):
    """What a built page has and asks for."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.equations = 0
        self.macros: list[str] = []
        """parts of equations that are still TeX"""
        self._within: list[str] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect addresses, and where text is code."""
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag in ("a", "area"):
            self.links += [found["href"]] if "href" in found else []
        elif tag != "form":
            self.loaded += [found[name] for name in ("src", "href") if name in found]
        self.equations += tag == "math"
        if tag in ("code", "pre", "script", "style", "math"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave what `handle_starttag` has entered."""
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        """Text that a reader sees as such."""
        if not self._within:
            self.text.append(data)
        elif "math" in self._within and "\\" in data:
            self.macros.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Every page of the site, by its file."""
    out = tmp_path_factory.mktemp("site") / "built"
    documentation.build(out)
    return {file: Page(file) for file in sorted(out.rglob("*.html"))}


def top(site: dict[Path, Page]) -> Path:
    return next(file for file in site if file.name == "404.html").parent


def navigation(entry: object) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for below in entry.values():
            yield from navigation(below)
    elif isinstance(entry, list):
        for below in entry:
            yield from navigation(below)


def test_every_link_leads_somewhere(site: dict[Path, Page]) -> None:
    broken = []
    for file, page in site.items():
        if file.name == "404.html":  # its addresses are of the place where the site will be
            continue
        for link in page.links + page.loaded:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:|//", link):
                continue
            target = (file.parent / path).resolve() if path else file
            there = site[target].anchors if target in site else set()
            if not target.exists() or (anchor and target.suffix == ".html" and anchor not in there):
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_nothing_is_loaded_from_another_host(site: dict[Path, Page]) -> None:
    for file, page in site.items():
        assert not [address for address in page.loaded if re.match(r"(https?:)?//", address)], file
    for sheet in top(site).rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


def test_every_page_is_in_the_navigation_once() -> None:
    config = tomllib.loads((ROOT / "docs/zensical.toml").read_text("utf-8"))
    named = list(navigation(config["project"]["nav"]))
    pages = [page.relative_to(ROOT).as_posix() for page in documentation.pages()]
    api = [f"api/{name}.md" for name in documentation.API]
    assert sorted(named) == sorted([*(page.replace("README", "index") for page in pages), *api])
    rooms: dict[str, list[str]] = {}
    for card in algorithms.cards():
        rooms.setdefault(card.room, []).append(f"docs/algorithms/{card.name.split('+')[-1]}.md")
    [methods] = [entry["Methods"] for entry in config["project"]["nav"] if "Methods" in entry]
    shown = {title: pages for room in methods for title, pages in room.items()}
    for room, title in (("on_policy", "On-policy"), ("off_policy", "Off-policy"), ("offline", "Offline")):
        assert sorted(shown[title]) == sorted(set(rooms[room]))


@pytest.mark.parametrize("name", documentation.API)
def test_every_public_name_is_documented(name: str, site: dict[Path, Page]) -> None:
    page = site[top(site) / "api" / f"{name}.html"]
    module = importlib.import_module(name)
    defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
    public = getattr(module, "__all__", [key for key in defined if not key.startswith("_")])
    missing = {each for each in public if not any(anchor.split(".")[-1] == each for anchor in page.anchors)}
    assert len(public) > 5 and not missing


def test_markdown_is_rendered(site: dict[Path, Page]) -> None:
    """What GitHub shows as a list, a table or an equation is one here."""
    for file, page in site.items():
        text = "".join(page.text)
        for left in (r"^\s*- \w", r"\|\s*-{3,}", r"\\\(|\\\[|\$\\", r"\]\(", r"\*\*\w", r"^#+ ", r"^:::"):
            found = re.search(left, text, re.M)
            assert found is None, (file.name, text[found.start() - 60 : found.end() + 60])
    assert site[top(site) / "docs/algorithms/a2pr.html"].equations > 20
    assert {file.name: page.macros for file, page in site.items() if page.macros} == {}


def test_a_broken_link_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "docs", copy / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (copy / name).write_text("# Nothing\n")
    page = copy / "docs/tuning.md"
    page.write_text(page.read_text() + "\n[nowhere](nowhere.md)\n")
    monkeypatch.setattr(documentation, "ROOT", copy)
    with pytest.raises(SystemExit, match=r"\[nowhere\]\(nowhere.md\)"):
        documentation.build(tmp_path / "site")


def test_a_docstring_with_a_wrong_name_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameter would have neither type nor default."""
    copy = tmp_path / "copy"
    for name in ("docs", "rlsuite", "envs", "analysis"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    module = copy / "rlsuite/commands/api.py"
    module.write_text(
        module.read_text().replace("        metrics: training metrics", "        metric: training metrics")
    )
    monkeypatch.setattr(documentation, "ROOT", copy)
    with pytest.raises(SystemExit, match="'metric' does not appear in the function signature"):
        documentation.build(tmp_path / "site")
