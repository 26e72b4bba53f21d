"""Training in the kernel of a notebook: a bar that is updated in place, the interrupt, and threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipykernel.zmqshell
import nbformat
import pytest
from nbclient import NotebookClient

from rlsuite.training import notebook

ROOT = Path(__file__).resolve().parent.parent

TRAIN = """
import os, signal, threading
import rlsuite

def train(name, on_evaluation=None):
    config = {"num_envs": 2, "num_steps": 4, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (4,)}
    settings = rlsuite.Settings(rlsuite.Limits(width=2, devices=1))
    rlsuite.run(
        "ppo", "probe/constant/discrete", steps=320, seeds=2, config=config, evaluations=40, eval_episodes=2,
        name=name, settings=settings, on_evaluation=on_evaluation,
    )

def interrupt(evaluation):
    if evaluation.update == 7:
        os.kill(os.getpid(), signal.SIGINT)  # as the button does
"""
CELLS = {
    "definitions": TRAIN,
    "whole": 'train("whole")',
    "interrupted": 'train("interrupted", interrupt)',
    "again": 'train("interrupted")',
    "thread": 'thread = threading.Thread(target=train, args=("thread",))\nthread.start()\nthread.join()',
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of the cells shows at its end."""
    page = nbformat.v4.new_notebook()
    page.cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    page.cells[list(CELLS).index("interrupted")].metadata["tags"] = ["raises-exception"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        NotebookClient(page, timeout=None, kernel_name="python3").execute(cwd=str(tmp_path_factory.mktemp("notebook")))
    return {name: cell.outputs for name, cell in zip(CELLS, page.cells, strict=True)}


def lines(shown: list[Any]) -> list[str]:
    """What a cell has printed."""
    assert {output.name for output in shown if output.output_type == "stream"} == {"stdout"}
    return "".join(output.text for output in shown if output.output_type == "stream").splitlines()


def bars(shown: list[Any]) -> list[Any]:
    """The lines of a cell that are shown in place, as they are at its end."""
    return [output.data for output in shown if output.output_type == "display_data"]


@pytest.mark.parametrize("cell", ["whole", "thread"])
def test_a_cell_shows_a_bar_in_place_of_forty_lines(cell: str, outputs: dict[str, Any]) -> None:
    title, compiled, end = lines(outputs[cell])
    assert title == "[1/1] ppo on probe/constant/discrete, 2 runs x 320 steps"
    assert compiled.startswith("  compiled in ") and end.startswith(f"1 of 1 shards in results/{cell} after ")
    compiling, bar = bars(outputs[cell])
    assert set(compiling.values()) == {""}  # it has been shown while it lasted
    assert bar["text/plain"].startswith("100%  step   320  return IQM      1.00 ")
    assert '<progress max="1" value="1.0000"' in bar["text/html"] and bar["text/plain"] in bar["text/html"]


def test_the_interrupt_saves_and_says_so_and_the_same_call_goes_on(outputs: dict[str, Any]) -> None:
    [error] = [output for output in outputs["interrupted"] if output.output_type == "error"]
    assert error.ename == "Stopped" and error.evalue == "SIGINT; all is saved, the same call goes on from here"
    assert "SIGINT: finishing the segment and saving; once more to leave at once" in lines(outputs["interrupted"])
    assert "  runs 0-1 go on from update 7 of 40" in lines(outputs["again"])
    assert bars(outputs["again"])[-1]["text/plain"].startswith("100%")


def test_a_process_is_no_notebook_for_having_its_packages() -> None:
    assert ipykernel.zmqshell and not notebook.running()
