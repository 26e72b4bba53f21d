"""Mean, VaR and CVaR of episode returns of a base policy and of the same policy corrected by the CDSA-style
reconstruction, from the raw episodes in a results folder.

    python benchmarks/cdsa_risk.py FOLDER LABEL CORRECTED_LABEL [SHARE]

FOLDER is one experiment's, such as results/offline. The episodes are those of every run's last evaluation. VaR at 10 %
(SHARE 0.1) is the return that a tenth of the episodes do not exceed, CVaR the mean of that worst tenth; for both, more
is better. Intervals are 95 % percentile bootstraps over runs, whose episodes stay together. Where both labels have the
same seeds, so do the resamples, and the difference is between the same runs.

A run that diverged shows the episodes that it played last, and counts. All numbers are of the reconstruction; there is
no published result of CDSA to set beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RESAMPLES = 2000
COLUMNS = ["label", "environment", "dataset", "run", "seed", "step", "episode_returns"]
STATISTICS = ("mean", "VaR", "CVaR")


def last_episodes(folder: Path, label: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """Task -> (seed of each run, the returns of its last evaluation `[runs, episodes]`), in the order of seeds.

    Raises:
        ValueError: no results of this label, or of one task more than one setting.
    """
    found: dict[str, dict[int, tuple[int, list[float]]]] = {}
    for file in sorted(folder.glob("[!.]*.parquet")):
        columns = pq.read_schema(file).names
        table = pq.read_table(file, columns=[name for name in COLUMNS if name in columns])
        rows = table.filter(pa.compute.equal(table["label"], label)).to_pylist()
        last_evaluations: dict[int, tuple[int, list[float]]] = {}
        for row in rows:
            if row["run"] not in last_evaluations or last_evaluations[row["run"]][0] < row["step"]:
                last_evaluations[row["run"]] = row["step"], row["episode_returns"]
        seeds = {row["run"]: row["seed"] for row in rows}
        for run, episodes in last_evaluations.items():
            # The dataset is the task of an offline learner.
            runs = found.setdefault(rows[0].get("dataset") or rows[0]["environment"], {})
            if seeds[run] in runs:
                raise ValueError(f"'{label}' has two runs of seed {seeds[run]}; give each setting a label of its own")
            runs[seeds[run]] = episodes
    if not found:
        raise ValueError(f"no results labelled '{label}' in '{folder}'")
    return {env: (sorted(runs), np.array([runs[seed][1] for seed in sorted(runs)])) for env, runs in found.items()}


def statistics(returns: np.ndarray, share: float) -> np.ndarray:
    """Mean, VaR and CVaR at `share` of all episodes: `[..., runs, episodes]` -> `[..., 3]`.

    VaR is the k-th smallest return and CVaR the mean of the k smallest, where k is the share of the episodes, rounded
    up.
    """
    episodes = np.sort(returns.reshape(*returns.shape[:-2], -1), axis=-1)
    k = max(1, int(np.ceil(round(share * episodes.shape[-1], 9))))
    return np.stack([episodes.mean(axis=-1), episodes[..., k - 1], episodes[..., :k].mean(axis=-1)], axis=-1)


def resampled(returns: np.ndarray, share: float) -> np.ndarray:
    """`statistics` of `RESAMPLES` draws of as many runs, with replacement; the same draws for as many runs."""
    rng = np.random.default_rng(0)
    return np.stack([statistics(returns[rng.integers(0, len(returns), len(returns))], share) for _ in range(RESAMPLES)])


def line(name: str, values: np.ndarray, samples: np.ndarray) -> str:
    """A row of the table."""
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return f"| {name} |" + "".join(f" {v:.2f} [{a:.2f}, {b:.2f}] |" for v, a, b in zip(values, low, high, strict=True))


def main(folder: Path, labels: tuple[str, str], share: float) -> None:
    """Print a table for each environment that has results of both labels."""
    base, corrected = (last_episodes(folder, label) for label in labels)
    both = sorted(set(base) & set(corrected))
    if not both:
        raise ValueError(f"no environment in '{folder}' has results of '{labels[0]}' and of '{labels[1]}'")
    for environment in both:
        runs, episodes = base[environment][1].shape
        print(f"\n| {environment}, {runs} runs of {episodes} episodes |", end="")
        print("".join(f" {name}{'' if name == 'mean' else f' {100 * share:g} %'} |" for name in STATISTICS))
        print("|---|---|---|---|")
        values, samples = [], []
        for label, results in zip(labels, (base, corrected), strict=True):
            returns = results[environment][1]
            values.append(statistics(returns, share))
            samples.append(resampled(returns, share))
            print(line(label, values[-1], samples[-1]))
        paired = base[environment][0] == corrected[environment][0]
        name = "difference, run by run" if paired else "difference, of other seeds"
        if not paired:
            samples[1] = np.random.default_rng(1).permutation(samples[1])
        print(line(name, values[1] - values[0], samples[1] - samples[0]))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), (sys.argv[2], sys.argv[3]), float(sys.argv[4]) if len(sys.argv) > 4 else 0.1)
    except ValueError as error:
        sys.exit(str(error))
