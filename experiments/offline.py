"""Offline learners: BC, TD3+BC, IQL, AWAC, CQL, ReBRAC, EDAC, SAC-N, PRDC, A2PR, and CDSA-style correction of two.

`EXPERIMENT` is for two cores: two physics tasks, three datasets of each, 32 seeds, small networks and 1500 gradient
steps; for time CQL draws 3 actions of each kind instead of 10, and EDAC and SAC-N have 5 critics. `WEIGHTING` compares
how transitions are drawn from data that are nearly all bad. Their datasets are made when they are first asked for, by
`rlsuite collect`'s recipes. All learners share sizes, rates and the discount; what else a method has is as published
for D4RL. The two rates were chosen by TD3+BC and IQL on one dataset, at seeds that are not reported (docs/offline.md):
this compares methods at common settings, not each at its best.

`FULL` is for a GPU: `rlsuite sweep experiments/offline.py:FULL` takes a million gradient steps on datasets of three of
Gymnasium's tasks, a million transitions each, everyone with the settings of its own paper or code.
"""

from typing import Any

from rlsuite import algorithms
from rlsuite.algorithms import a2pr, awac, bc, cql, edac, iql, prdc, rebrac, td3_bc
from rlsuite.sweep import Cell, Experiment

STEPS = 1500
SIZES: dict[str, Any] = {"batch_size": 64, "hidden_sizes": (64, 64)}
RATES: dict[str, Any] = {"actor_learning_rate": 1e-2, "critic_learning_rate": 1e-2, "discount": 0.99, "tau": 0.02}

LEARNERS: dict[str, tuple[str, Any, Any]] = {
    "bc": ("bc", bc.Config(**SIZES), bc.Hypers(learning_rate=1e-2)),
    "td3_bc": ("td3_bc", td3_bc.Config(**SIZES), td3_bc.Hypers(**RATES)),
    "iql": ("iql", iql.Config(**SIZES), iql.Hypers(**RATES, value_learning_rate=1e-2)),
    "awac": ("awac", awac.Config(**SIZES), awac.Hypers(**RATES)),
    "cql": (
        "cql",
        cql.Config(batch_size=64, num_actions=3, actor_hidden_sizes=(64, 64), critic_hidden_sizes=(64, 64)),
        cql.Hypers(**RATES, alpha_learning_rate=1e-2),
    ),
    "rebrac": ("rebrac", rebrac.Config(**SIZES), rebrac.Hypers(**RATES)),
    "edac": ("edac", edac.Config(**SIZES, num_critics=5), edac.Hypers(**RATES, alpha_learning_rate=1e-2)),
    "sac_n": (
        "edac",
        edac.Config(**SIZES, num_critics=5, diversity=False),
        edac.Hypers(**RATES, alpha_learning_rate=1e-2),
    ),
    "prdc": ("prdc", prdc.Config(**SIZES), prdc.Hypers(**RATES)),
    "a2pr": (
        "a2pr",
        a2pr.Config(**SIZES, critic_hidden_sizes=(64, 64), value_hidden_sizes=(64, 64), vae_hidden_sizes=(64, 64)),
        a2pr.Hypers(**RATES, value_learning_rate=1e-2),
    ),
}
"""label -> (algorithm, Config, Hypers)"""

CORRECTION: dict[str, Any] = {
    "model_batch_size": 64,
    "score_hidden_sizes": (64, 64),
    "dynamics_hidden_sizes": (64, 64),
}
for base in ("td3_bc", "iql"):
    spec = algorithms.get(f"{base}+cdsa")
    _, config, hypers = LEARNERS[base]
    LEARNERS[f"{base} + CDSA-style"] = (
        f"{base}+cdsa",
        spec.config(**vars(config), **CORRECTION),
        spec.hypers(**hypers._asdict(), score_learning_rate=1e-2, dynamics_learning_rate=1e-2),
    )

ENVIRONMENTS = ("gymnax/Pendulum-v1", "brax/hopper/spring")
TIERS = ("medium", "medium-replay", "medium-expert")


def cell(label: str, environment: str, tier: str, sampling: str = "uniform", suffix: str = "") -> Cell:
    """One learner of `LEARNERS` on one dataset at 32 seeds."""
    algorithm, config, hypers = LEARNERS[label]
    return Cell(
        algorithm,
        environment,
        steps=STEPS,
        seeds=32,
        config=config,
        hypers=hypers,
        evaluations=5,
        eval_episodes=4,
        label=label + suffix,
        dataset=f"{environment}/{tier}",
        sampling=sampling,
    )


EXPERIMENT = Experiment(
    name="offline",
    description="offline learners on six datasets of two physics tasks, 32 seeds each",
    cells=tuple(
        each
        for environment in ENVIRONMENTS
        for tier in TIERS
        for each in (
            *(cell(label, environment, tier) for label in LEARNERS),
            cell("bc", environment, tier, "top=0.1", " top 10"),
        )
    ),
)

WEIGHTING = Experiment(
    name="offline_weighting",
    description="how transitions are drawn where 5 % of them are an expert's and the others random, 32 seeds each",
    cells=tuple(
        cell(label, environment, "random-expert-5", sampling, suffix)
        for environment in ENVIRONMENTS
        for label in ("bc", "td3_bc", "iql")
        for sampling, suffix in (
            ("uniform", ""),
            ("advantage_weighted=0.1", " AW"),
            ("return_weighted=0.1", " RW"),
            ("top=0.1", " top 10"),
        )
    ),
)

FULL = Experiment(
    name="offline_full",
    description="offline learners on nine datasets of three of Gymnasium's tasks, a million steps, 256 seeds each",
    cells=tuple(
        Cell(
            algorithm,
            f"mujoco/{task}-v5",
            steps=1_000_000,
            seeds=256,
            evaluations=20,
            eval_episodes=10,
            dataset=f"mujoco/{task}-v5/{tier}",
        )
        for task in ("Hopper", "HalfCheetah", "Walker2d")
        for tier in TIERS
        for algorithm in ("bc", "td3_bc", "iql", "awac", "cql", "rebrac", "edac", "prdc", "a2pr")
    ),
)
