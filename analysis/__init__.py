"""What results mean: scores, bootstrap intervals, tables and plots from the files that rlsuite wrote.

It reads results only, and imports neither `rlsuite` nor `envs`: results stay readable wherever they were made.
"""

import logging

from analysis.scores import Manifest, ResultsError, Scores, TaskScores, load, load_arrow, manifests, metric_frame, score
from analysis.selection import select

__all__ = [
    "Manifest",
    "ResultsError",
    "Scores",
    "TaskScores",
    "load",
    "load_arrow",
    "manifests",
    "metric_frame",
    "score",
    "select",
]


def _without_advice(record: logging.LogRecord) -> bool:
    """Whether a message of Matplotlib's is about something else than where it keeps its fonts.

    Where the home cannot be written it takes a temporary folder, which is all that anyone needs.
    """
    message = record.getMessage()
    return not message.startswith(
        ("mkdir -p failed", "Matplotlib created a temporary", "Matplotlib is building the font")
    )


for _name in ("matplotlib", "matplotlib.font_manager"):
    logging.getLogger(_name).addFilter(_without_advice)
