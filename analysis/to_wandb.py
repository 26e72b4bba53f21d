"""Weights & Biases: a run there for each series, grouped by label and task, in a project.

With `WANDB_MODE=offline` each export leaves a folder for each series that has something new, which `wandb sync` sends
later, in the order of their names: each goes on with the run of the same id. A server says how far a run
has come, and takes no step twice. Offline folders that a killed export has begun are removed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import wandb

from analysis.export import Record, Series
from analysis.scores import ResultsError

MOST_CHARACTERS = 128
"""of the name of a group"""

# Facts about this process say nothing about the one that trained, and take four fifths of the time.
SETTINGS = wandb.Settings(
    x_disable_stats=True,
    x_disable_meta=True,
    x_disable_machine_info=True,
    x_save_requirements=False,
    disable_git=True,
    disable_code=True,
    disable_job_creation=True,
    console="off",
    silent=True,
)


class Wandb:
    """A `Target` that is a project.

    Raises:
        ResultsError: a name that is none.
    """

    def __init__(self, project: str) -> None:
        if not re.fullmatch(r"[^/\\#?%:]+", project):
            raise ResultsError(f"'{project}' is no name of a W&B project; give one without / \\ # ? % :")
        self.project = project
        self.root = Path(os.environ.get("WANDB_DIR", "."))
        self.folder = self.root / "wandb"
        self.state = self.folder / f"rlsuite-export-{project}.json"

    def holds(self, record: Record) -> bool:
        return True  # folders may go once they are synced

    def send(self, part: Series, record: Record, doubtful: bool) -> Record:
        folders = record.get("folders", [])
        if doubtful:
            # W&B numbers the folders of one second.
            for folder in self.folder.glob(f"offline-run-*-{part.key}*"):
                if folder.name not in folders:
                    shutil.rmtree(folder)
        try:
            with wandb.init(
                project=self.project,
                dir=self.root,
                id=part.key,
                name=f"{part.label} {part.task} {part.name}",
                group=f"{part.label} {part.task}"[:MOST_CHARACTERS],
                job_type=part.kind,
                config={"label": part.label, "task": part.task, **part.settings, "manifest": part.manifest},
                resume="allow",
                reinit="create_new",
                settings=SETTINGS,
            ) as run:
                for step, _, values in part.rows():
                    if step >= run.starting_step:
                        run.log(values, step=step)
                run.summary.update(part.facts)
                written = Path(run.settings.sync_dir).name
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ResultsError(f"W&B says: {reason}; WANDB_MODE=offline needs neither network nor account") from error
        return {"folders": [*folders, written]}

    def close(self) -> None:
        wandb.teardown()
