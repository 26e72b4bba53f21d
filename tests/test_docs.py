"""README, docs and CONTRIBUTING name what there is: files, commands, programs, methods and the version."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import rlsuite
from rlsuite import algorithms
from rlsuite.commands import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.M))
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links that lead to no file, or to no heading of it."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        file, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def lines_of_code(text: str) -> Iterator[str]:
    """The lines of a page's blocks without a language, and its code in running text, a line break in it a space."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if language in ("", "bash", "sh"):
            yield from block.replace("\\\n", " ").splitlines()
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks))


def faulty_commands(text: str) -> list[str]:
    """The commands of a page that name no command of `rlsuite` or option of it, no target of `make`, or no program."""
    found = []
    for line in lines_of_code(text):
        command = re.match(r"(?:\w+=\S+ )*(rlsuite|make|(?:\S*/)?python3?) (.+)", line.partition(" #")[0].strip())
        if command is None or "[" in command[2]:
            continue
        program, rest = command[1], shlex.split(command[2])
        if program == "rlsuite":
            known = rest[0] in cli.COMMANDS or rest[0].isupper() or rest[0].startswith("-")
            options = {word.partition("=")[0] for word in rest[1:] if re.match(r"--\w", word)}
            if not known or (rest[0] in cli.COMMANDS and not options <= options_of(rest)):
                found.append(line)
        elif program == "make":
            found += [line] * any(re.fullmatch(r"[\w-]+", word) and word not in TARGETS for word in rest)
        elif rest[0].endswith(".py") and not (ROOT / rest[0]).is_file():
            found.append(line)
    return found


def options_of(words: list[str]) -> set[str]:
    """All options that a command has, read from its help; `run` has those of its algorithm."""
    if words[0] != "run":
        return help_options(words[0])
    named = [name for name in words[1:2] if name.removesuffix("+cdsa") in algorithms.names()]
    # Where the page names none, they are those of one that learns online and one that learns from a dataset.
    return {option for name in named or ("ppo", "td3_bc") for option in help_options("run", name)}


@functools.cache
def help_options(*words: str) -> set[str]:
    """The options in `rlsuite WORDS --help`."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    return set(re.findall(r"--[a-z][\w-]*", out.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    assert faulty_commands(page.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "`rlsuite sweeep experiments/quick.py`",
        "```\nrlsuite run ppo --env gymnax/CartPole-v1 --nosuch 3   # a comment\n```",
        "`rlsuite report results --metrics\nvalue_bias`",
        "`python benchmarks/nosuch.py`",
        "```\nmake nosuch PYTEST_ARGS='-k ppo'\n```",
        "```bash\nA=1 .venv-3.11/bin/python docs/drift.py\n```",
    ],
)
def test_a_faulty_command_is_found(planted: str) -> None:
    assert len(faulty_commands(f"Text.\n\n{planted}\n")) == 1


@pytest.mark.parametrize("planted", ["docs/nosuch.md", "docs/report.md#nosuch", "#nosuch"])
def test_a_broken_link_is_found(planted: str) -> None:
    assert broken_links(README, f"[text]({planted})") == [planted]
    assert broken_links(README, "[text](docs/report.md#the-bar) [text](https://example.org)") == []


def test_pages_are_linked() -> None:
    """Each page of `docs/` is reached from the README, over other pages too."""
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", page.read_text("utf-8"))
            waiting += [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert set(PAGES) <= reached


def test_the_readme_lists_every_method() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| \[`([\w+]+)`\]\(docs/algorithms/(\w+)\.md\) \| (.+) \|$", README.read_text(), re.M
    )
    own = [card for card in algorithms.cards() if card.room != "other"]
    there = {(card.room, card.name, card.name.split("+")[-1], card.summary) for card in own}
    wanted = [f"| `{room}` | [`{name}`](docs/algorithms/{page}.md) | {text} |" for room, name, page, text in there]
    assert set(rows) == there and len(rows) == len(there), "the rows of the table are to be:\n" + "\n".join(
        sorted(wanted)
    )


def test_citations_are_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    [version] = re.findall(r"^version: (.+)$", citation, re.M)
    [title] = re.findall(r'^title: "(.+)"$', citation, re.M)
    readme = README.read_text("utf-8")
    assert version == rlsuite.__version__ and f"version = {{{version}}}" in readme
    assert f"title   = {{{title}}}" in readme and "name: The rlsuite developers" in citation
    assert "{{The rlsuite developers}}" in readme
