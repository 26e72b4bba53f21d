"""This suite beside its peers: the same work in one go on one machine, as tables.

    python benchmarks/peers/compare.py --python PYTHON [--runs 1 16 256] [--peers PEER ...] [--json FILE]
        [BENCHMARK ...]

`make bench` calls it with the interpreter of an environment that has the peers (constraints.txt beside this file):
Rejax, Stable-Baselines3, SBX, and PyTorch for the single files of this folder. Each measurement is a process of its
own, one after another; compare the rows of one table, and spoil none with other work. `BENCHMARKS` and the peers' files
are all that anyone needs to check their settings.

A program of this folder is called with a job, one JSON object, and answers with another on its last line:

    algorithm, environment      ppo or sac on a task of gymnax and Gymnasium; or an offline learner and null
    config, hypers              all of our `Config` and `Hypers`
    updates                     of each run, after any warm-up. PPO: a rollout and all its epochs. SAC: `num_envs` steps
                                and `gradient_steps` gradient steps. Offline: a gradient step
    eval_episodes               played by each run at the end, in the time that is measured
    runs, threads, repeats      how many are trained by the process, with how many threads (PyTorch), how often
    device, graphs              cpu or cuda, and whether steps are replayed as CUDA graphs, to `torch_offline`; JAX
                                takes an accelerator where it sees one
    rows                        of a dataset of Hopper's sizes, see transitions.py (offline)
    width                       runs at once on each device; null lets rlsuite choose. Peers take all at once

    seconds                     of one training of all runs with its evaluation: the fastest of `repeats`
    warmup_seconds              of SAC's first steps without learning, where `seconds` leaves them out
    compile_seconds             spent before, and not in `seconds`
    run_updates                 runs * updates
    peak_bytes                  of the process
    score                       mean return of the evaluations, or null
    arrangement, versions       in words; package -> version, for ours also the device

This program itself starts no JAX: on an accelerator it would hold the memory that the ones it calls need.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rlsuite import algorithms
from rlsuite.training import memory
from rlsuite.training.progress import quantity

DOCS = Path(__file__).resolve().parent.parent
REPEATS = 2
SHORTER = 8
"""how many times fewer updates a peer gets that trains one run in a process"""
ROWS = 100_000
RUNS = (1, 16, 256)


class Benchmark(NamedTuple):
    """What is trained, by everyone."""

    algorithm: str
    environment: str | None
    config: dict[str, Any]
    hypers: dict[str, Any]
    budget: int
    """updates of one run that a user would ask for; seconds for a run are given for so many"""
    eval_episodes: int = 10
    seconds: float = 4.0
    """how long our side of each measurement takes, roughly; the peers get the same number of updates"""


PPO_CONFIG: dict[str, Any] = {
    "num_envs": 8,
    "num_steps": 256,
    "num_epochs": 10,
    "num_minibatches": 32,
    "hidden_sizes": (64, 64),
    "normalize_obs": False,
    "normalize_reward": False,
    "normalize_advantage": True,
    "clip_value": True,
    "anneal_learning_rate": False,
}
PPO_HYPERS = {
    "learning_rate": 3e-4,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "clip_epsilon": 0.2,
    "entropy_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
}
SAC_CONFIG: dict[str, Any] = {
    "num_envs": 1,
    "gradient_steps": 1,
    "batch_size": 256,
    "buffer_size": 10_000,
    "warmup_steps": 256,
    "hidden_sizes": (256, 256),
}
RATES = {"actor_learning_rate": 3e-4, "critic_learning_rate": 3e-4, "discount": 0.99, "tau": 0.005}
SMALL: dict[str, Any] = {"batch_size": 64, "hidden_sizes": (64, 64)}
LARGE: dict[str, Any] = {"batch_size": 256, "hidden_sizes": (256, 256)}

BENCHMARKS = {
    "ppo": Benchmark("ppo", "CartPole-v1", PPO_CONFIG, PPO_HYPERS, budget=50),
    "sac-small": Benchmark(
        "sac", "Pendulum-v1", SAC_CONFIG | SMALL, {**RATES, "alpha_learning_rate": 3e-4}, budget=20_000
    ),
    "sac": Benchmark(
        # Longer and with less around it, or at 256 runs most of the time would be warm-up and evaluation.
        "sac",
        "Pendulum-v1",
        SAC_CONFIG | {"warmup_steps": 64},
        {**RATES, "alpha_learning_rate": 3e-4},
        budget=20_000,
        eval_episodes=1,
        seconds=12.0,
    ),
    "td3_bc-small": Benchmark("td3_bc", None, SMALL, RATES, budget=100_000, eval_episodes=0),
    "td3_bc": Benchmark("td3_bc", None, LARGE, RATES, budget=100_000, eval_episodes=0),
    "iql-small": Benchmark("iql", None, SMALL, RATES, budget=100_000, eval_episodes=0),
    "iql": Benchmark("iql", None, LARGE, RATES, budget=100_000, eval_episodes=0),
    "prdc": Benchmark("prdc", None, LARGE, RATES, budget=100_000, eval_episodes=0),
    "a2pr": Benchmark(
        "a2pr",
        None,
        LARGE | {name: (256, 256) for name in ("critic_hidden_sizes", "value_hidden_sizes", "vae_hidden_sizes")},
        RATES,
        budget=100_000,
        eval_episodes=0,
    ),
}


class Peer(NamedTuple):
    """How another program is run."""

    title: str
    module: str
    algorithms: tuple[str, ...]
    batches: bool
    """whether a process trains many runs; else it trains one, and more would follow at the same rate"""
    processes: int = 1
    """side by side, each with its part of the runs and of the cores"""
    device: str = "cpu"
    """for `torch_offline`, as `graphs`; the others do not ask"""
    graphs: bool = False

    def runs_of_each(self, runs: int) -> int:
        """Of so many runs, those that one process trains; 0 where this peer is not asked."""
        return runs // self.processes if self.batches else int(runs == 1)


CORES = memory.num_cores()
ONLINE, STACKED, OFFLINE = ("ppo", "sac"), ("td3_bc", "iql"), ("td3_bc", "iql", "prdc", "a2pr")
ON_CPU = {
    "rejax": Peer("Rejax", "with_rejax", ONLINE, batches=True),
    "stacked": Peer("PyTorch, stacked", "torch_offline", STACKED, batches=True),
    "stacked-processes": Peer(
        f"PyTorch, stacked in {CORES} processes", "torch_offline", STACKED, batches=True, processes=CORES
    ),
    "online-threads": Peer(f"PyTorch, {CORES} threads", "torch_online", ONLINE, batches=False),
    "online-processes": Peer(f"PyTorch, {CORES} processes", "torch_online", ONLINE, batches=False, processes=CORES),
    "sb3": Peer(f"Stable-Baselines3, {CORES} processes", "with_sb3", ONLINE, batches=False, processes=CORES),
    "sbx": Peer(f"SBX, {CORES} processes", "with_sbx", ONLINE, batches=False, processes=CORES),
    "offline-threads": Peer(f"PyTorch, {CORES} threads", "torch_offline", OFFLINE, batches=False),
    "offline-processes": Peer(f"PyTorch, {CORES} processes", "torch_offline", OFFLINE, batches=False, processes=CORES),
}
ON_GPU = {
    "cuda": Peer("PyTorch, CUDA, stacked", "torch_offline", STACKED, batches=True, device="cuda"),
    "cuda-graphs": Peer("PyTorch, CUDA graphs, stacked", "torch_offline", STACKED, True, device="cuda", graphs=True),
    "cuda-one": Peer("PyTorch, CUDA, one run", "torch_offline", ("prdc", "a2pr"), batches=False, device="cuda"),
    "cuda-graphs-one": Peer(
        "PyTorch, CUDA graphs, one run", "torch_offline", ("a2pr",), False, device="cuda", graphs=True
    ),
}
PEERS = ON_CPU | ON_GPU


class Found(NamedTuple):
    """One measurement."""

    peer: str
    runs: int
    rate: float
    """run-updates per second, of all processes together"""
    compile_seconds: float
    peak_bytes: int
    """of all processes together"""
    score: float | None
    arrangement: str
    versions: dict[str, str]


def ask(python: str, module: str, job: dict[str, Any], processes: int = 1) -> list[dict[str, Any]]:
    """The answers of so many processes that do the job side by side.

    Raises:
        SystemExit: one of them failed; its last line says why.
    """
    command = [python, "-m", f"peers.{module}", json.dumps(job)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=DOCS)
        for _ in range(processes)
    ]
    answers = []
    for process in running:
        said, complaint = process.communicate()
        if process.returncode != 0:
            raise SystemExit(
                f"{module}: {(complaint.strip().splitlines() or ['it failed'])[-1]}; the job was {command[-1]}"
            )
        answers.append(json.loads(said.splitlines()[-1]))
    return answers


def found_of(title: str, runs: int, answers: list[dict[str, Any]]) -> Found:
    """Rates and memory of processes that ran side by side add up."""
    return Found(
        title,
        runs,
        sum(answer["run_updates"] / (answer["seconds"] + answer.get("warmup_seconds", 0.0)) for answer in answers),
        max(answer["compile_seconds"] for answer in answers),
        sum(answer["peak_bytes"] for answer in answers),
        answers[0]["score"],
        answers[0].get("arrangement", ""),
        answers[0]["versions"],
    )


def compare(name: str, given: argparse.Namespace) -> list[Found]:
    """Everyone's measurements of one benchmark."""
    benchmark, python = BENCHMARKS[name], given.python
    spec = algorithms.get(benchmark.algorithm)
    found = []
    job = {
        **benchmark._asdict(),
        "config": dataclasses.asdict(spec.config(**benchmark.config)),
        "hypers": spec.hypers(**benchmark.hypers)._asdict(),
        "updates": given.updates,
        "repeats": given.repeats,
        "rows": given.rows,
        "threads": CORES,
    }
    for runs in given.runs:
        (ours,) = ask(sys.executable, "suite", job | {"runs": runs, "width": runs if given.at_once else None})
        found.append(found_of("rlsuite", runs, [ours]))
        same = job | {"runs": runs, "updates": ours["updates"]}
        for peer in (PEERS[key] for key in given.peers):
            each = peer.runs_of_each(runs)
            if not each or benchmark.algorithm not in peer.algorithms:
                continue
            share = same | {"runs": each, "threads": max(1, CORES // peer.processes)}
            share |= {"device": peer.device, "graphs": peer.graphs}
            if not peer.batches:
                share["updates"] = -(-ours["updates"] // SHORTER)  # slower by far, and no faster for more of them
            found.append(found_of(peer.title, runs, ask(python, peer.module, share, peer.processes)))
    return found


def print_table(name: str, found: list[Found], widths: list[int]) -> None:
    """Run-updates per second, and how many times as many this suite does, at each number of runs."""
    benchmark = BENCHMARKS[name]
    config = ", ".join(f"{field} {value}" for field, value in benchmark.config.items())
    print(f"\n### {name}: {benchmark.algorithm} on {benchmark.environment or 'transitions of Hopper sizes'}\n")
    print(f"{config}; {', '.join(f'{field} {value}' for field, value in benchmark.hypers.items())}.\n")
    titles = [f"{runs} run{'s' * (runs > 1)}" for runs in widths]
    print("| | " + " | ".join(titles) + f" | {benchmark.budget:,} updates of one of {widths[-1]} | compile | peak |")
    print("|---" * (len(widths) + 4) + "|")
    rates = {(row.peer, row.runs): row.rate for row in found}
    for peer in dict.fromkeys(row.peer for row in found):
        rows = {row.runs: row for row in found if row.peer == peer}
        last = rows[max(rows)]
        cells = []
        for runs in widths:
            # One run in each process: more would follow at the same rate.
            rate = rates.get((peer, runs), last.rate if max(rows) == 1 else None)
            if rate is None:
                cells.append("")
            elif peer == "rlsuite":
                cells.append(f"{quantity(rate)}")
            else:
                cells.append(f"{quantity(rate)} ({rates['rlsuite', runs] / rate:.2g}x)")
        seconds = benchmark.budget / last.rate
        print(
            f"| {peer} | "
            + " | ".join(cells)
            + f" | {seconds:.3g} s | {last.compile_seconds:.0f} s | {quantity(last.peak_bytes)}B |",
            flush=True,
        )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="This suite beside its peers.")
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)} (all)")
    parser.add_argument("--python", required=True, help="interpreter of the environment that has the peers")
    parser.add_argument("--runs", type=int, nargs="+", default=list(RUNS))
    parser.add_argument(
        "--peers", nargs="*", default=list(ON_CPU), metavar="PEER", help=f"of {', '.join(PEERS)} (those for processors)"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help="transitions of the dataset of offline learners")
    parser.add_argument("--updates", type=int, help="of each run; by default as many as take rlsuite some seconds")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each measurement; the fastest counts")
    parser.add_argument(
        "--at-once", action="store_true", help="have rlsuite train all runs at once instead of choosing a width"
    )
    parser.add_argument("--json", type=Path, help="file for every measurement")
    given = parser.parse_args()
    if os.sep in given.python:
        given.python = os.path.abspath(given.python)  # it is called from another folder
    if unknown := set(given.benchmarks) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {unknown.pop()!r}; choose from {', '.join(BENCHMARKS)}")
    if unknown := set(given.peers) - set(PEERS):
        parser.error(f"unknown peer {unknown.pop()!r}; choose from {', '.join(PEERS)}")
    print(f"{CORES} cores. Run-updates per second; in brackets how many times as many rlsuite does.")
    measured = {}
    for name in given.benchmarks or BENCHMARKS:
        measured[name] = compare(name, given)
        print_table(name, measured[name], given.runs)
        if given.json:
            rows = {name: [row._asdict() for row in rows] for name, rows in measured.items()}
            given.json.write_text(json.dumps(rows, indent=1))
    versions = {key: value for rows in measured.values() for row in rows for key, value in row.versions.items()}
    print("\n" + ", ".join(f"{package} {version}" for package, version in sorted(versions.items())))


if __name__ == "__main__":
    main()
