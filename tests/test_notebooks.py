"""The notebooks: kept without outputs, and run from start to end on small real sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from rlsuite.commands import cli, report

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "analysis" / "notebooks").glob("*.ipynb"))
SWEEPS = {"introduction": "TWO", "hyperparameters": "MANY"}
"""Notebook -> what is trained for it, of `notebook_sweep.py`."""
FIGURES = {"introduction": 3, "hyperparameters": 6}
DEFAULTS = {"introduction": "results/quick", "hyperparameters": "results/hyperparameters"}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_all_notebooks_are_tested() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SWEEPS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert "execution_count" not in cell or cell.execution_count is None
        assert not cell.get("outputs") and not cell.metadata
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}  # no version of who saved it


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_at_the_top_names_the_results(path: Path) -> None:
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    assert code[0] == f'RESULTS = "{DEFAULTS[path.stem]}"'
    assert not any("RESULTS =" in source for source in code[1:])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_start_to_end(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "report_after", lambda folder, shards=None: 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel imports this checkout, wherever it starts
    file = f"{ROOT / 'tests' / 'notebook_sweep.py'}:{SWEEPS[path.stem]}"
    assert cli.main(["sweep", file, "--results", str(tmp_path), "--width", "8", "--no-save-policies"]) == 0
    notebook = read(path)
    top = next(cell for cell in notebook.cells if cell.cell_type == "code")
    top.source = f'RESULTS = "{tmp_path / SWEEPS[path.stem].lower()}"'
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute(cwd=str(path.parent))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # A warning or an error would be on the standard error output.
    assert [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"] == []
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == FIGURES[path.stem]
    assert any(output.output_type == "stream" and "runs" in output.text for output in outputs)
