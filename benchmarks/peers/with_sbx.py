"""SBX' side of the table that compare.py makes: trains what a JSON job says and prints how long it took.

    cd docs; python -m peers.with_sbx '{"algorithm": "ppo", "environment": "CartPole-v1", "config": {...}, ...}'

SBX is Stable-Baselines3 with its networks and losses in JAX; environments and loops stay in Python. It gets what
with_sb3.py gives Stable-Baselines3; clipping of PPO's value loss it ignores. A short training of a run that is thrown
away has everything compiled before anything is timed. Needs sbx; not rlsuite.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

from peers.answer import Job, answer_of
from peers.with_sb3 import check, train
from sbx import PPO, SAC

WARM_UP = 2
"""updates of the run that is thrown away"""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def measure(job: Job) -> dict[str, Any]:
    """Train and evaluate, `repeats` times from the beginning."""
    check(job, "SBX")
    if job["threads"] == 1:
        os.environ["XLA_FLAGS"] = ONE_THREAD  # read when JAX first computes; SBX has no option for it
    learners = {"ppo": PPO, "sac": SAC}
    began = time.perf_counter()
    train(job | {"updates": WARM_UP}, learners, seed=0)
    compile_seconds = time.perf_counter() - began
    versions = {package: version(package) for package in ("sbx-rl", "jax", "gymnasium")}
    return answer_of(job, lambda seed: train(job, learners, seed), versions, compile_seconds)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
