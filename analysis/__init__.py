"""What results mean: scores, bootstrap intervals, tables and plots from the files that rlsuite wrote.

It reads results only, and imports neither `rlsuite` nor `envs`: results stay readable wherever they were made.
"""

from analysis.scores import Manifest, ResultsError, Scores, TaskScores, load, load_arrow, manifests, of_metric, score
from analysis.selection import select

__all__ = [
    "Manifest",
    "ResultsError",
    "Scores",
    "TaskScores",
    "load",
    "load_arrow",
    "manifests",
    "of_metric",
    "score",
    "select",
]
