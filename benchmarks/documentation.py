"""Build the documentation site of docs/zensical.toml: `make docs`.

    python benchmarks/documentation.py [--out site]

Pages and what they link to are copied into a folder as they lie in the repository, so that links hold; the README is
the first page. Pages of the public API are made from docstrings, and equations become MathML, which browsers show
without a script.
"""

from __future__ import annotations

import argparse
import html
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
API = ("rlsuite", "rlsuite.core", "envs", "analysis")
"""Modules whose public names have a page each."""


def pages() -> list[Path]:
    """All Markdown files of the site, as they lie in the repository."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*found, *sorted((ROOT / "docs").rglob("*.md"))]


def stage(folder: Path) -> None:
    """Put all that the site is made of into a folder."""
    shutil.copy(ROOT / "docs/zensical.toml", folder)
    top = folder / "pages"
    top.mkdir()
    shutil.copy(ROOT / "docs/site.css", top)
    for page in pages():
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            file = (page.parent / link).resolve()
            if not re.match(r"\w+:", link) and file.suffix != ".md" and file.is_file():
                copy = top / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        place = top / page.relative_to(ROOT)
        place = place.with_name("index.md") if page == ROOT / "README.md" else place
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(re.sub(r"(\]\((?:\.\./)*)README\.md", r"\1index.md", text), "utf-8")
    (top / "api").mkdir()
    for name in API:
        (top / "api" / f"{name}.md").write_text(api_page(name), "utf-8")


def api_page(name: str) -> str:
    """The page of a module: each of its public names, from its docstring."""
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    if names is None:
        body = f"::: {name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
    else:
        body = "\n\n".join([(module.__doc__ or "").strip(), *(f"::: {name}.{each}" for each in names)]) + "\n"
    return f"# `{name}`\n\n{body}"


def with_mathml(page: str) -> str:
    """A built page whose equations are MathML."""

    def equation(match: re.Match[str]) -> str:
        text = html.unescape(match[3])
        mathml: str = convert(text, display="block" if match[2] == "[" else "inline")
        # Fonts without mathematics have the prime raised and small already, and as a superscript it gets lost.
        return mathml.replace("&#x02032;", "'")

    return re.sub(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', equation, page, flags=re.S)


def build(out: Path) -> None:
    """Build the site into a folder, whose former contents go. Raises SystemExit with what Zensical warns of."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stage(folder)
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        # Its warnings, without colours and the trace of its own that follows them. Those of docstrings do not stop it.
        warnings = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr.partition("Traceback")[0])
        if done.returncode or re.search(r"^\W*\d*griffe: ", warnings, re.M):
            raise SystemExit(warnings)
        for page in (folder / "site").rglob("*.html"):
            page.write_text(with_mathml(page.read_text("utf-8")), "utf-8")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "site", out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="its folder (%(default)s)")
    out = parser.parse_args().out
    build(out)
    print(f"{out / 'index.html'}; for the search: python3 -m http.server --bind 127.0.0.1 -d {out}")


if __name__ == "__main__":
    main()
